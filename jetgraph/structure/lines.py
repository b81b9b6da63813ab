"""Lines of joins: which leads to which, what a point of one is, and which of several skips is where the stream runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import fx

from jetgraph.algebra.outline import SkipKind
from jetgraph.jets.registry import readers
from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.images import RANK, affine_past
from jetgraph.structure.kinds import branch_kind
from jetgraph.structure.operators import mixes
from jetgraph.structure.regions import Branch, Join, Region

Found = Mapping[fx.Node, Join]
"""The joins so far, by the node that each ends at."""


def gate(flow: Dataflow, node: fx.Node, ends: Found, of: fx.Node | None = None) -> Join | None:
    """The join whose value alone reaches this node, if there is one; `of` a value, where only what is made of that
    counts: a condition that enters every layer is none of it.
    """
    found = gates(flow, node, ends, of)
    return ends[next(iter(found))] if len(found) == 1 else None


def gates(flow: Dataflow, node: fx.Node, ends: Found, of: fx.Node | None = None) -> set[fx.Node]:
    """The ends of the joins whose values reach this node; none where something else does too."""
    frontier: set[fx.Node] = set()
    seen = {node}
    stack = [node]
    while stack:
        current = stack.pop()
        if current in ends:
            frontier.add(current)
            continue
        if not flow.carriers[current] or current is of:
            return set()
        for parent in flow.carriers[current]:
            if parent not in seen and (of is None or flow.depends(parent, of)):
                seen.add(parent)
                stack.append(parent)
    return frontier


def branch_over(region: Region) -> Branch:
    """A region as a branch, without a name."""
    return Branch("", "", branch_kind(region), region)


def depending(flow: Dataflow, operands: Iterable[fx.Node], fork: fx.Node) -> list[fx.Node]:
    """Those operands that depend on a value."""
    return [operand for operand in operands if flow.depends(operand, fork)]


def without(operands: tuple[fx.Node, ...], skip: fx.Node | None, branches: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
    """The operands but for one occurrence of the skip, and the branches."""
    at = len(operands) if skip is None else operands.index(skip)
    return tuple(operand for operand in (*operands[:at], *operands[at + 1 :]) if operand not in branches)


# Points


def is_point(flow: Dataflow, node: fx.Node, by_node: Found) -> bool:
    """The node is the sum of a join, or a map of it to as many values in which nothing mixes.

    A mean of it that a branch adds inside is no state of a stream.
    """
    before = gate(flow, node, by_node)
    if before is None or before.node.meta["shape"] != node.meta["shape"]:
        return False
    return not any(map(mixes, flow.between(before.node, node)))


def point_above(flow: Dataflow, skip: fx.Node, by_node: Found) -> tuple[fx.Node | None, SkipKind]:
    """The nearest end of a join that a value is an affine image of, or the map of one behind which it is one."""
    point: tuple[fx.Node | None, SkipKind] = (None, "identity")
    for node, kind in affine_past(flow, skip):
        if node in by_node:
            return node, kind
        if is_point(flow, node, by_node):
            point = node, kind
    return point


# Which of several skips


def preference(flow: Dataflow, join: Join) -> tuple[bool, bool, int, int, int]:
    """Which of several skips is the stream's: a direct one, whose fork alone feeds the branches, and most."""
    alone = all(flow.dominates(join.fork, branch.node) for branch in join.branches)
    return join.kind != "projection", alone, len(join.branches), -RANK[join.kind], flow.positions[join.fork]


def is_earlier(flow: Dataflow, join: Join, other: Join, by_node: Found) -> bool:
    """What `join` takes for a branch is the skip of `other`, which forks later in the same stream."""
    return (
        other.fork is not join.fork
        and other.skip is not None
        and other.skip.exit in {branch.node for branch in join.branches}
        and _leads(flow, join.fork, other.fork, by_node)
    )


def is_made_by(flow: Dataflow, join: Join, other: Join, by_node: Found) -> bool:
    """`join` forks at what a branch of `other` has made of its fork by layers, and all that it adds is branches of that
    one too: in P h + (y + g(y)) the stream is h, and y = f(h) no point of it.
    """
    if join.skip is None or other.skip is None or not flow.depends(join.fork, other.fork) or join.concatenates:
        return False
    added = {join.skip.exit, *(branch.node for branch in join.branches)}
    way = flow.region(other.fork, join.fork)
    return (
        added.issubset(branch.node for branch in other.branches)
        and not way.affine
        and any(map(mixes, way.nodes))
        and by_node.keys().isdisjoint(way.nodes)
    )


def _leads(flow: Dataflow, start: fx.Node, end: fx.Node, by_node: Found) -> bool:
    """Joins, one at least, and maps between them lead from one value of a stream to another. What a branch projects
    before it has joins of its own is none.
    """
    join = gate(flow, end, by_node)
    while join is not None and flow.positions[join.fork] > flow.positions[start]:
        before = gate(flow, join.fork, by_node)
        if before is None:
            return flow.dominates(start, join.fork) and not any(map(mixes, flow.between(start, join.fork)))
        join = before
    return join is not None and join.fork is start


# From point to point


def line_to(flow: Dataflow, point: fx.Node, by_node: Found) -> list[fx.Node]:
    """The points of a stream up to one that a join has led to, the earliest first."""
    points, at = [point], by_node.get(point)
    while at is not None:
        points.append(at.fork)
        at = gate(flow, at.fork, by_node)
        if at is not None and at.node is not points[-1]:
            points.append(at.node)
    return points[::-1]


def leads_only_to(node: fx.Node, join: Join, inside: Collection[fx.Node] | None = None) -> bool:
    """Every way from a value to the output passes the sum of a join; and stays inside some nodes until then, if these
    are given, but for values of which nothing is made in the end.
    """
    seen, stack = {node}, [node]
    while stack:
        for user in readers(stack.pop()):
            if user in join.adds or user in seen:
                continue
            if user.op == "output" or (inside is not None and user not in inside and _is_used(user)):
                return False
            seen.add(user)
            stack.append(user)
    return True


def _is_used(node: fx.Node) -> bool:
    """Something is made of a value in the end; a shape alone may be asked for, as for the zeros beside a part."""
    seen, stack = {node}, [node]
    while stack:
        for user in readers(stack.pop()):
            if user.op == "output":
                return True
            if user not in seen:
                seen.add(user)
                stack.append(user)
    return False
