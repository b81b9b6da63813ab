"""The ways into a branch with attention: by its queries, its keys or its values, and past it.

A branch is cut where what it reads first meets in an attention product. Everything before is a function of what enters,
everything after of what crosses the cut; each crossing is one way, so that a value can enter by one of them alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import fx

from jetgraph.jets.registry import bind, nodes_in
from jetgraph.structure.dimensions import einsum_labels, follow, leaves
from jetgraph.structure.kinds import attention_products
from jetgraph.structure.operators import PRODUCTS, packet_of
from jetgraph.structure.regions import Region

aten = torch.ops.aten

Way = Literal["q", "k", "v", "past"]
"""As a query, a key or a value; or past the attention products, as a gate on what they give."""

WAYS: tuple[Way, ...] = ("q", "k", "v", "past")
"""In the order in which they are told."""


@dataclass(frozen=True, eq=False)
class Ways:
    """Where what enters a region crosses into its attention."""

    before: frozenset[fx.Node]
    """The entry, and the nodes that are not behind an attention product."""
    crossings: Mapping[fx.Node, Mapping[fx.Node, Way]]
    """By node behind one, the way by which it reads each of those before."""
    scores: Mapping[fx.Node, int | None]
    """The products of queries and keys, each with the dimension along which its keys are, counted from the end; None
    for fused attention, whose scores are no value."""

    @property
    def names(self) -> tuple[Way, ...]:
        """The ways that there are."""
        ways = {way for reads in self.crossings.values() for way in reads.values()}
        return tuple(way for way in WAYS if way in ways)


_KNOWN: WeakKeyDictionary[Region, Ways | None] = WeakKeyDictionary()


def find_ways(region: Region) -> Ways | None:
    """The ways into a region's attention.

    Returns
    -------
    Ways or None
        None where there is one way at most, as into the queries of a cross-attention; where an operand is two of them
        at once; or where no softmax tells queries from keys, as in linear attention.
    """
    if region not in _KNOWN:
        _KNOWN[region] = _found(region)
    return _KNOWN[region]


def _found(region: Region) -> Ways | None:
    inside = {region.entry, *region.nodes}
    operands: dict[fx.Node, dict[fx.Node, Way]] = {}
    scores: dict[fx.Node, int | None] = {}
    for product, start in attention_products(region).items():
        for node, read, way in _operands(region, product, start, scores) or ():
            if operands.setdefault(node, {}).setdefault(read, way) != way:
                return None
        if product not in operands:
            return None
    behind: set[fx.Node] = set()
    for node in region.nodes:
        if node in operands or not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)
    crossings: dict[fx.Node, dict[fx.Node, Way]] = {}
    for node in behind:
        reads = [read for read in node.all_input_nodes if read in inside and read not in behind and _floats(read)]
        crossings[node] = {read: operands.get(node, {}).get(read, "past") for read in reads}
    ways = Ways(frozenset(inside - behind), crossings, scores)
    return ways if len(ways.names) > 1 else None


def _floats(node: fx.Node) -> bool:
    return "dtype" in node.meta and node.meta["dtype"].is_floating_point


def _operands(
    region: Region, product: fx.Node, start: fx.Node, keys: dict[fx.Node, int | None]
) -> list[tuple[fx.Node, fx.Node, Way]] | None:
    """Node, what it reads, and as what, for the products of one attention; None where that cannot be told. `keys` takes
    the products of scores, as `Ways.scores` has them.
    """
    if product is start:
        keys[product] = None
        bound = bind(product.target, product.args, product.kwargs)  # type: ignore[arg-type]
        return [(product, bound["query"], "q"), (product, bound["key"], "k"), (product, bound["value"], "v")]
    if packet_of(start) in PRODUCTS:
        return None
    made = _made_from(start, region)
    values = [read for read in list(nodes_in(product.args))[-2:] if read not in made]
    scores = list(_scores(region, start))
    operands: list[tuple[fx.Node, fx.Node, Way]] = []
    roles: tuple[Way, Way, Way] = ("q", "k", "v")
    operands.extend((product, read, roles[2]) for read in values)
    for node in scores:
        told = _queries_and_keys(region, node, start)
        if told is None:
            return None
        *pair, keys[node] = told
        operands.extend((node, read, role) for read, role in zip(pair, roles[:2], strict=True))
    return operands if values and scores else None


def _made_from(start: fx.Node, region: Region) -> set[fx.Node]:
    made = {start}
    for node in region.nodes:
        if not made.isdisjoint(node.all_input_nodes):
            made.add(node)
    return made


def _scores(region: Region, start: fx.Node) -> Iterator[fx.Node]:
    """The products of two values that vary which a softmax is made of, the nearest ones."""
    varying = {region.entry, *region.nodes}
    stack, seen = [start], {start}
    while stack:
        node = stack.pop()
        if packet_of(node) in PRODUCTS and len(varying.intersection(node.all_input_nodes)) > 1:
            yield node
            continue
        fresh = [read for read in node.all_input_nodes if read in region.node_set and read not in seen]
        seen.update(fresh)
        stack += fresh


def _queries_and_keys(region: Region, scores: fx.Node, softmax: fx.Node) -> tuple[fx.Node, fx.Node, int] | None:
    """The operands of a product of scores: that whose positions are left over, and that over which softmax goes; and
    the dimension of the product along which the latter's are, counted from the end."""
    dimensions = follow(scores, region.nodes[region.nodes.index(scores) + 1 :])
    bound = bind(softmax.target, softmax.args, softmax.kwargs)  # type: ignore[arg-type]
    read = next((arg for arg in softmax.all_input_nodes if dimensions.get(arg) is not None), None)
    layout = dimensions.get(read)
    operands = list(nodes_in(scores.args))[-2:]
    if layout is None or len(operands) != 2 or not isinstance(bound.get("dim"), int):
        return None
    over = bound["dim"] % len(layout.dims)
    # What the softmax goes over may hold more than these keys, such as a sink beside them: all others are kept.
    kept = {factor for dim in range(len(layout.dims)) if dim != over for factor in leaves(layout.at(dim))}
    start = dimensions.start
    places = [dim for dim in range(len(start.dims)) if start.at(dim) and kept.isdisjoint(start.at(dim))]
    if len(places) != 1:
        return None
    rank = len(start.dims)
    if packet_of(scores) is aten.einsum:
        labels = einsum_labels(str(scores.args[0]), [len(operand.meta["shape"]) for operand in operands])
        if labels is None or len(labels) != 3:
            return None
        owners = [labels[-1][places[0]] in read_labels for read_labels in labels[:2]]
        if sum(owners) != 1:
            return None
        first, second = operands if owners[1] else reversed(operands)
        return first, second, places[0] - rank
    if places[0] < rank - 2:
        return None
    first, second = operands if places[0] == rank - 1 else reversed(operands)
    return first, second, places[0] - rank
