"""What an attention product takes of its fork, in three ways: queries, keys and values."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from jetgraph.errors import InputError
from jetgraph.export.reach import above, below
from jetgraph.jets.registry import bind
from jetgraph.structure.contractions import factors_of, labels_of
from jetgraph.structure.dimensions import follow, leaves
from jetgraph.structure.kinds import attention_products
from jetgraph.structure.operators import SOFTMAX, packet_of
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
    told = labels_of(product)
    made = below({start}, region.node_set.__contains__)
    if told is None or factors_of(start) or not scores:
        return None
    pair, labels = told
    patterns = [at for at, factor in enumerate(pair) if factor in made]
    if len(patterns) != 1:
        return None
    at = patterns[0]
    summed = [label for label in labels[at] if label in labels[1 - at] and label not in labels[2]]
    if len(summed) != 1:
        return None
    found = [Product(product, {"v": _operand(product, pair[1 - at], labels[1 - at], summed[0])})]
    for node in scores:
        asked = _queries_and_keys(region, node, pair[at], labels[at].index(summed[0]) - len(labels[at]))
        if asked is None:
            return None
        found.append(asked)
    return found


def _operand(product: fx.Node, factor: fx.Node, labels: list[Hashable], label: Hashable) -> Operand:
    return Operand(factor, None if packet_of(product) is aten.einsum else labels.index(label) - len(labels))


def _queries_and_keys(region: Region, scores: fx.Node, pattern: fx.Node, summed: int) -> Product | None:
    """A product of scores, whose keys are those dimensions that are the summed one of the pattern and no other."""
    made = below({scores}, region.node_set.__contains__)
    dimensions = follow(scores, [node for node in region.nodes if node in made and node is not scores])
    layout = dimensions.start if pattern is scores else dimensions.get(pattern)
    product = labels_of(scores)
    if layout is None or pattern in dimensions.unknown or product is None:
        return None
    # What is summed over may hold more than these keys, such as a sink beside them: all others are kept.
    rank = len(layout.dims)
    kept = {factor for dim in range(rank) if dim != rank + summed for factor in leaves(layout.at(dim))}
    own = dimensions.start
    places = [dim - len(own.dims) for dim in range(len(own.dims)) if own.at(dim) and kept.isdisjoint(own.at(dim))]
    if len(places) != 1:
        return None
    (keys,), (pair, labels) = places, product
    by_keys = labels[2][keys]
    owners = [at for at in (0, 1) if by_keys in labels[at]]
    if len(owners) != 1:
        return None
    (at,) = owners
    asked = [label for label in labels[1 - at] if label in labels[2] and label not in labels[at]]
    if len(asked) != 1:
        return None
    queries = _operand(scores, pair[1 - at], labels[1 - at], asked[0])
    return Product(scores, {"q": queries, "k": _operand(scores, pair[at], labels[at], by_keys)}, keys)


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
    before = above(nodes, region.node_set.__contains__)
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
        if len(varying.intersection(factors_of(node))) > 1:
            found[node] = None
            continue
        fresh = [read for read in node.all_input_nodes if read in region.node_set and read not in seen]
        seen.update(fresh)
        stack += fresh
    return list(found)


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
