"""What an attention product takes of its fork, in three ways: queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from jetgraph.errors import InputError
from jetgraph.jets.registry import bind
from jetgraph.structure.dimensions import follow
from jetgraph.structure.kinds import attention_products
from jetgraph.structure.operators import PRODUCTS, SOFTMAX, packet_of
from jetgraph.structure.regions import Branch, Region

aten = torch.ops.aten


@dataclass(frozen=True)
class Operand:
    """One factor of an attention product or of its scores."""

    node: fx.Node
    dim: int
    """The dimension, counted from the end, along which its positions lie."""


def operands(branch: Branch) -> dict[str, Operand]:
    """The queries `q`, keys `k` and values `v` of a branch's attention; those that do not depend on its fork are left
    out, as keys and values of cross-attention.

    Raises
    ------
    InputError
        The branch has no attention by softmax; several products of which none is the last; or its pattern reads the
        fork in other ways than as queries and keys, which are then not all of what it attends by.
    """
    region = branch.region if branch.part is None else branch.part.cut.region
    where = f"{branch.alias!r} (module {branch.name!r})"
    products = attention_products(region)
    product, start = next(reversed(products.items()), (None, None))
    if product is None or start is None or (product is not start and packet_of(start) not in SOFTMAX):
        raise InputError(f"{where} has no attention by softmax, so it has no queries, keys and values")
    found = _fused(product) if product is start else _scored(region, product, start)
    if found is None or len({operand.node for operand in found.values()}) < len(found):
        raise InputError(f"the queries, keys and values of {where} cannot be told apart in its operators")
    nodes = {operand.node for operand in found.values()}
    before = _made_from(nodes, region, backwards=True)
    if any(other not in before for other in products if other is not product):
        raise InputError(f"{where} has {len(products)} attention products beside each other: patch it as a whole")
    pattern = [start] if product is not start else [node for node in product.all_input_nodes if node not in nodes]
    if _reads_fork(pattern, region, nodes):
        raise InputError(f"the pattern of {where} reads its fork besides by queries and keys: patch it as a whole")
    return {name: operand for name, operand in found.items() if operand.node in region.node_set}


def _fused(product: fx.Node) -> dict[str, Operand] | None:
    """Those of fused attention."""
    bound = bind(product.target, product.args, product.kwargs)  # type: ignore[arg-type]
    return {name[0]: Operand(bound[name], -2) for name in ("query", "key", "value")}


def _scored(region: Region, product: fx.Node, softmax: fx.Node) -> dict[str, Operand] | None:
    """Those of a product with what a softmax gives; None where the operators do not tell."""
    factors, after = _factors(product), _made_from({softmax}, region)
    scores = _scores(softmax, region)
    if factors is None or len(scores) != 1 or (of_scores := _factors(scores[0])) is None:
        return None
    left, right = factors
    weighs_left = left in after
    if weighs_left == (right in after):
        return None
    pattern, value = (left, right) if weighs_left else (right, left)
    # What is summed over counts the keys.
    place = -1 if weighs_left else -2
    made = _made_from({scores[0]}, region)
    dimensions = follow(scores[0], [node for node in region.nodes if node in made and node is not scores[0]])
    layout = dimensions.start if pattern is scores[0] else dimensions.get(pattern)
    if layout is None or pattern in dimensions.unknown:
        return None
    summed, kept = (set(layout.at(len(layout.dims) + dim)) for dim in (place, -3 - place))
    rank = len(dimensions.start.dims)
    own = {dim: set(dimensions.start.at(rank + dim)) for dim in (-2, -1)}
    # Keys may be more there, of a sink that attention can go to; the queries are then what they were.
    told = (dim for dim in (-1, -2) if own[-1] != own[-2] and (summed == own[dim] or kept == own[-3 - dim]))
    counted = next(told, None)
    if counted is None:
        return None
    sides = {-2: Operand(of_scores[0], -2), -1: Operand(of_scores[1], -1)}
    return {"q": sides[-3 - counted], "k": sides[counted], "v": Operand(value, -2 if weighs_left else -1)}


def _factors(product: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two matrices of a product."""
    if packet_of(product) is aten.einsum or packet_of(product) not in PRODUCTS:
        return None
    args: tuple[Any, ...] = tuple(arg for arg in product.args if isinstance(arg, fx.Node))
    return None if len(args) < 2 else (args[-2], args[-1])


def _scores(softmax: fx.Node, region: Region) -> list[fx.Node]:
    """The products of two activations that a softmax is made from, the nearest ones on each way."""
    activations = {region.entry, *region.nodes, *region.context}
    found: dict[fx.Node, None] = {}
    seen, stack = {softmax}, [softmax]
    while stack:
        for arg in stack.pop().all_input_nodes:
            if arg in seen or arg not in region.node_set:
                continue
            seen.add(arg)
            if packet_of(arg) in PRODUCTS and len([one for one in arg.all_input_nodes if one in activations]) > 1:
                found[arg] = None
            else:
                stack.append(arg)
    return list(found)


def _made_from(nodes: Iterable[fx.Node], region: Region, *, backwards: bool = False) -> set[fx.Node]:
    """What of a region is made of some nodes, or what they are made from; they themselves too."""
    made, stack = set(nodes), list(nodes)
    while stack:
        node = stack.pop()
        for other in node.all_input_nodes if backwards else node.users:
            if other not in made and other in region.node_set:
                made.add(other)
                stack.append(other)
    return made


def _reads_fork(ends: Iterable[fx.Node], region: Region, but: set[fx.Node]) -> bool:
    """Some values depend on the region's entry, other than by way of some nodes."""
    seen, stack = set(but), [end for end in ends if end not in but]
    while stack:
        node = stack.pop()
        if node is region.entry:
            return True
        if node not in seen and node in region.node_set:
            seen.add(node)
            stack.extend(node.all_input_nodes)
    return False
