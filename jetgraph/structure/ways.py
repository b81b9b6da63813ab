"""The ways into a branch with attention: by its queries, its keys or its values, and past it.

A branch is cut where what it reads first meets in an attention product. Everything before is a function of what enters,
everything after of what crosses the cut; each crossing is one way, so that a value can enter by one of them alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

from torch import fx

from jetgraph.structure.attention import ROLES, Role, products_of
from jetgraph.structure.kinds import attention_products
from jetgraph.structure.regions import Region

Way = Role | Literal["past"]
"""As a query, a key or a value; or past the attention products, as a gate on what they give."""

WAYS: tuple[Way, ...] = (*ROLES, "past")
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
        told = products_of(region, product, start)
        if told is None:
            return None
        for one in told:
            if "q" in one.operands:
                scores[one.node] = one.keys
            for way, operand in one.operands.items():
                if operands.setdefault(one.node, {}).setdefault(operand.node, way) != way:
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
