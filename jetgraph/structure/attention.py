"""What an attention product takes of its fork, in three ways: queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from jetgraph.errors import InputError
from jetgraph.jets.registry import bind, nodes_in
from jetgraph.structure.dimensions import einsum_labels, follow, leaves
from jetgraph.structure.kinds import attention_products
from jetgraph.structure.operators import PRODUCTS, SOFTMAX, packet_of
from jetgraph.structure.regions import Branch, Region

aten = torch.ops.aten


Role = Literal["q", "k", "v"]
"""As what an operand is read: queries, keys or values."""

ROLES: tuple[Role, ...] = ("q", "k", "v")
"""In the order in which they are told."""


@dataclass(frozen=True)
class Operand:
    """One factor of an attention product or of its scores."""

    node: fx.Node
    dim: int | None
    """The dimension, counted from the end, along which its positions lie; None where an einsum has them."""


@dataclass(frozen=True)
class Product:
    """A product, what it reads, and as what."""

    node: fx.Node
    operands: Mapping[Role, Operand]
    keys: int | None = None
    """Of scores: the dimension along which its keys are, counted from the end."""


def products_of(region: Region, product: fx.Node, start: fx.Node) -> list[Product] | None:
    """Fused attention; or an attention product with the scores that its pattern is made of.

    Keys are what the attention product sums over: what a softmax goes over may be something else, as the queries of
    slot attention, which compete for the keys.

    Parameters
    ----------
    product, start
        As `attention_products` has them.

    Returns
    -------
    list of Product or None
        None where it cannot be told, as without a softmax.
    """
    if product is start:
        bound = bind(product.target, product.args, product.kwargs)  # type: ignore[arg-type]
        roles: tuple[tuple[Role, str], ...] = (("q", "query"), ("k", "key"), ("v", "value"))
        return [Product(product, {role: Operand(bound[name], -2) for role, name in roles})]
    scores = _scores(region, start)
    pair = list(nodes_in(product.args))[-2:]
    made = _made_from({start}, region)
    patterns = [at for at, factor in enumerate(pair) if factor in made]
    if packet_of(start) in PRODUCTS or len(pair) != 2 or len(patterns) != 1 or not scores:
        return None
    pattern, value = pair[patterns[0]], pair[1 - patterns[0]]
    summed = _summed(product, pair, patterns[0])
    if summed is None:
        return None
    dim = None if packet_of(product) is aten.einsum else (-2, -1)[patterns[0]]
    found = [Product(product, {"v": Operand(value, dim)})]
    for node in scores:
        told = _queries_and_keys(region, node, pattern, summed)
        if told is None:
            return None
        found.append(told)
    return found


def _summed(product: fx.Node, pair: list[fx.Node], at: int) -> int | None:
    """The dimension of one of a product's two factors over which it sums, counted from the end."""
    if packet_of(product) is not aten.einsum:
        return (-1, -2)[at]
    labels = einsum_labels(str(product.args[0]), [len(factor.meta["shape"]) for factor in pair])
    if labels is None or len(labels) != 3:
        return None
    places = [dim - len(labels[at]) for dim, label in enumerate(labels[at]) if label not in labels[2]]
    return places[0] if len(places) == 1 else None


def _queries_and_keys(region: Region, scores: fx.Node, pattern: fx.Node, summed: int) -> Product | None:
    """A product of scores, whose keys are those dimensions that are the summed one of the pattern and no other."""
    made = _made_from({scores}, region)
    dimensions = follow(scores, [node for node in region.nodes if node in made and node is not scores])
    layout = dimensions.start if pattern is scores else dimensions.get(pattern)
    pair = list(nodes_in(scores.args))[-2:]
    if layout is None or pattern in dimensions.unknown or len(pair) != 2:
        return None
    # What is summed over may hold more than these keys, such as a sink beside them: all others are kept.
    rank = len(layout.dims)
    kept = {factor for dim in range(rank) if dim != rank + summed for factor in leaves(layout.at(dim))}
    own = dimensions.start
    places = [dim - len(own.dims) for dim in range(len(own.dims)) if own.at(dim) and kept.isdisjoint(own.at(dim))]
    if len(places) != 1:
        return None
    keys = places[0]
    if packet_of(scores) is not aten.einsum:
        if keys < -2:
            return None
        return Product(scores, {"q": Operand(pair[-3 - keys], -3 - keys), "k": Operand(pair[keys], keys)}, keys)
    labels = einsum_labels(str(scores.args[0]), [len(factor.meta["shape"]) for factor in pair])
    if labels is None or len(labels) != 3:
        return None
    owners = [at for at, given in enumerate(labels[:2]) if labels[2][keys] in given]
    if len(owners) != 1:
        return None
    return Product(scores, {"q": Operand(pair[1 - owners[0]], None), "k": Operand(pair[owners[0]], None)}, keys)


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
    told = products_of(region, product, start) or []
    found = {role: operand for one in told for role, operand in one.operands.items()}
    nodes = {operand.node for operand in found.values()}
    # One of each, in a value of its own, with its positions along a dimension that is known.
    if sum(len(one.operands) for one in told) != 3 or len(nodes) != 3 or None in {one.dim for one in found.values()}:
        raise InputError(f"the queries, keys and values of {where} cannot be told apart in its operators")
    before = _made_from(nodes, region, backwards=True)
    if any(other not in before for other in products if other is not product):
        raise InputError(f"{where} has {len(products)} attention products beside each other: patch it as a whole")
    pattern = [start] if product is not start else [node for node in product.all_input_nodes if node not in nodes]
    if _reads_fork(pattern, region, nodes):
        raise InputError(f"the pattern of {where} reads its fork besides by queries and keys: patch it as a whole")
    return {role: found[role] for role in ROLES if found[role].node in region.node_set}


def _scores(region: Region, softmax: fx.Node) -> list[fx.Node]:
    """The products of two values that vary which a softmax is made of, the nearest ones on each way."""
    varying = {region.entry, *region.nodes, *region.context}
    found: dict[fx.Node, None] = {}
    stack, seen = [softmax], {softmax}
    while stack:
        node = stack.pop()
        if packet_of(node) in PRODUCTS and len(varying.intersection(node.all_input_nodes)) > 1:
            found[node] = None
            continue
        fresh = [read for read in node.all_input_nodes if read in region.node_set and read not in seen]
        seen.update(fresh)
        stack += fresh
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
