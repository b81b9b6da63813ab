"""Dataflow → joins: sums and concatenations of a skip and a branch, each with the fork that both come from.

Every add and every concatenation is looked at once, in execution order. Which of its operands is the skip, and where it
forks from the branches, is settled operand by operand: the skip is an affine image of the fork, the branches depend on
the fork through something that mixes features or positions. Where several operands could be the skip, the one that the
stream runs through is taken (`_preference`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from jetgraph.algebra.outline import SkipKind
from jetgraph.jets.registry import nodes_in, readers
from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.images import (
    RANK,
    affine_history,
    affine_past,
    gated_history,
    keeps_channels,
    same_size,
    widest,
)
from jetgraph.structure.operators import (
    IDENTITY,
    SCALES,
    SOFTMAX,
    aten,
    branch_kind,
    is_float_tensor,
    mixes,
    packet_of,
)
from jetgraph.structure.regions import Branch, Join, Region

Found = Mapping[fx.Node, Join]
"""The joins so far, by the node that each ends at."""


@dataclass(frozen=True, eq=False)
class Sum:
    """A sum (a tree of adds) or a concatenation, which may be a join."""

    node: fx.Node
    operands: tuple[fx.Node, ...]
    """In order; for a sum, the leaves of the tree."""
    adds: tuple[fx.Node, ...]
    """The nodes that it is made of, in execution order."""
    concat: bool = False


def find_joins(flow: Dataflow) -> tuple[Join, ...]:
    """Every join of the graph, with its depth, in topological order; names are given later."""
    found: dict[fx.Node, Join] = {}
    for node in flow.nodes:
        if node not in flow:
            continue
        packet = packet_of(node)
        if packet is aten.add and _is_sum(node):
            join = _summed(flow, node, found)
            if join is None:
                join = _without_skip(flow, flattened(flow, node, {add for add in found if found[add].skip}))
        elif packet is aten.cat and is_float_tensor(node) and len(flow.parents[node]) > 1:
            join = _joined(flow, Sum(node, tuple(nodes_in(node.args[:1])), (node,), concat=True), found)
        else:
            continue
        if join is not None:
            for absorbed in join.adds[:-1]:
                found.pop(absorbed, None)
            found[node] = join
    joins = [found[node] for node in flow.ordered(found)]
    joins = [join for join in joins if not _is_aside(flow, join, found)]
    return tuple(replace(join, depth=sum(is_inside(join, other) for other in joins)) for join in joins)


def is_inside(inner: Join, outer: Join) -> bool:
    """The whole of `inner`, from fork to sum, lies in a branch of `outer`, or in a gate of its skip, and leads nowhere
    else: what is read outside too, such as values that branches share, is no code of that branch alone.
    """
    return (
        inner.node is not outer.node
        and any(
            inner.node in region.node_set and (inner.fork in region.node_set or inner.fork is outer.fork)
            for region in outer.inside
        )
        and _leads_only_to(inner.node, outer)
    )


def _is_aside(flow: Dataflow, join: Join, found: Found) -> bool:
    """The sum is code of one branch alone, and no stream runs through it: its fork comes from outside of that branch,
    or a softmax is all that reads it.

    So it is where each layer adds one position bias to its scores, or one made of its own input, or the first layer's
    values to its own. A fork that another join made, or a norm of that, is a point of a stream.
    """
    holders = [other for other in found.values() if other is not join and _holds(other, join.node)]
    inside = [other for other in holders if _leads_only_to(join.node, other)]
    apart = any(other.fork is not join.fork and not _holds(other, join.fork) for other in inside)
    return (apart and not _is_point(flow, join.fork, found)) or (bool(inside) and _only_steers(join.node))


def _is_point(flow: Dataflow, node: fx.Node, found: Found) -> bool:
    """The node is the sum of a join, or a map of it to as many values in which nothing mixes.

    A mean of it that a branch adds inside is no state of a stream.
    """
    before = gate(flow, node, found)
    if before is None or before.node.meta["shape"] != node.meta["shape"]:
        return False
    return not any(map(mixes, flow.between(before.node, node)))


def _only_steers(node: fx.Node) -> bool:
    """Every way from a node, through layout, factors, masks and further sums, ends at a softmax."""
    seen, stack = {node}, [node]
    while stack:
        for user in readers(stack.pop()):
            packet = packet_of(user)
            if packet in SOFTMAX or user in seen:
                continue
            if packet not in IDENTITY | SCALES | _MASKING:
                return False
            seen.add(user)
            stack.append(user)
    return True


_MASKING = {aten.add, aten.masked_fill, aten.where, aten.clamp, aten.slice}


def _holds(join: Join, node: fx.Node) -> bool:
    return any(node in region.node_set for region in join.inside)


def _leads_only_to(node: fx.Node, join: Join) -> bool:
    """Every way from a node inside a join passes the sum."""
    inside = frozenset().union(*(region.node_set for region in join.inside), join.skip.nodes if join.skip else ())
    seen, stack = {node}, [node]
    while stack:
        for user in readers(stack.pop()):
            if user in join.adds or user in seen:
                continue
            if user not in inside:
                return False
            seen.add(user)
            stack.append(user)
    return True


def gate(flow: Dataflow, node: fx.Node, ends: Found) -> Join | None:
    """The join whose value alone reaches this node, if there is one."""
    frontier: set[fx.Node] = set()
    seen = {node}
    stack = [node]
    while stack:
        current = stack.pop()
        if current in ends:
            frontier.add(current)
            continue
        if not flow.carriers[current]:
            return None
        for parent in flow.carriers[current]:
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return ends[frontier.pop()] if len(frontier) == 1 else None


def branch_over(region: Region) -> Branch:
    """A region as a branch, without a name."""
    return Branch("", "", branch_kind(region), region)


# Sums


def _is_sum(node: fx.Node) -> bool:
    return bool(
        len(node.args) >= 2
        and node.kwargs.get("alpha", 1) == 1
        and all(isinstance(arg, fx.Node) and is_float_tensor(arg) for arg in node.args[:2])
    )


def _summed(flow: Dataflow, node: fx.Node, found: Found) -> Join | None:
    """The join that ends at this add. Adds below it belong to it unless they are joins of another fork."""
    closed: set[fx.Node] = set()
    while True:
        total = flattened(flow, node, closed)
        join = _joined(flow, total, found)
        inner = [add for add in total.adds if add is not node and add in found]
        if join is not None:
            # A sum of points alone, without a branch, is part of the sum that it goes into.
            inner = [add for add in inner if found[add].fork is not join.fork and found[add].branches]
        if not inner:
            return join
        # The outermost of them first: opening it may hide the others.
        closed.add(max(inner, key=flow.positions.__getitem__))


def flattened(flow: Dataflow, root: fx.Node, closed: Collection[fx.Node]) -> Sum:
    """The tree of adds that ends at a node; an add that something else reads too, or that is closed, is a leaf."""
    leaves: list[fx.Node] = []
    adds: list[fx.Node] = []
    stack = [root]
    while stack:
        node = stack.pop()
        inner = node is root or (
            node not in closed and packet_of(node) is aten.add and _is_sum(node) and len(readers(node)) == 1
        )
        if inner and node in flow:
            adds.append(node)
            stack += reversed(list(nodes_in(node.args[:2])))
        else:
            leaves.append(node)
    return Sum(root, tuple(leaves), flow.ordered(adds))


# Skips and branches


def _joined(flow: Dataflow, total: Sum, found: Found) -> Join | None:
    """The join over these operands, if one of them is a skip and another one a branch of the same fork.

    Parameters
    ----------
    flow
        The graph's dataflow.
    total
        The sum or concatenation.
    found
        The joins before it.
    """
    flowing = [operand for operand in total.operands if operand in flow]
    again = {operand for operand, number in Counter(flowing).items() if number > 1}
    if len(flowing) < 2 or len(again) > 1:
        return None
    # What is added twice is the skip, or there is none.
    candidates = [join for operand in again or flowing if (join := _forked(flow, total, operand)) is not None]
    chosen = [join for join in candidates if not any(_earlier(flow, join, other, found) for other in candidates)]
    if chosen:
        return _ungated(flow, _latest(flow, max(chosen, key=lambda join: _preference(flow, join)), found), found)
    return None if total.concat or again else _gated(flow, total, flowing)


def _forked(flow: Dataflow, total: Sum, skip: fx.Node) -> Join | None:
    """The join with this operand as its skip.

    The nearest node that another operand depends on is the fork or there is none: through any earlier one, skip and
    branch would share their way, as in x + 0.044715 x³ after a linear layer.
    """
    others = [operand for operand in total.operands if operand in flow and operand is not skip]
    history = ((*each, _depending(flow, others, each[0])) for each in affine_past(flow, skip))
    fork, kind, dependent = next((each for each in history if each[2]), (None, "identity", []))
    if fork is None or (total.concat and kind == "projection" and not _is_part(flow, total, fork, skip)):
        return None
    regions = [flow.region(fork, other) for other in dependent]
    if not any(mixes(node) for region in regions for node in region.nodes):
        return None
    # Two linear layers side by side are one linear layer, and none of them a skip; a norm by kept statistics is one.
    normed = not total.concat and keeps_channels(flow, flow.between(fork, skip))
    if kind == "projection" and not normed and all(region.affine for region in regions):
        return None
    return _over(total, "concat" if total.concat else kind, flow.region(fork, skip), fork, regions)


def _is_part(flow: Dataflow, total: Sum, fork: fx.Node, skip: fx.Node) -> bool:
    """A concatenation that carries a part of the fork on, and puts something else in the place of the rest."""
    return same_size(fork, total.node) and not any(mixes(node) for node in flow.between(fork, skip))


def _over(
    total: Sum,
    kind: SkipKind,
    skip: Region | None,
    fork: fx.Node,
    branches: Sequence[Region],
    gates: tuple[Region, ...] = (),
) -> Join:
    """The join over a sum, of this skip and these branches."""
    return Join(
        name="",
        alias="",
        kind=kind,
        depth=0,
        fork=fork,
        node=total.node,
        skip=skip,
        branches=tuple(map(branch_over, branches)),
        injections=_without(total.operands, skip and skip.exit, [region.exit for region in branches]),
        operands=total.operands,
        adds=total.adds,
        gates=gates,
    )


def _depending(flow: Dataflow, operands: Iterable[fx.Node], fork: fx.Node) -> list[fx.Node]:
    return [operand for operand in operands if flow.depends(operand, fork)]


def _without(operands: tuple[fx.Node, ...], skip: fx.Node | None, branches: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
    """The operands but for one occurrence of the skip, and the branches."""
    at = len(operands) if skip is None else operands.index(skip)
    return tuple(operand for operand in (*operands[:at], *operands[at + 1 :]) if operand not in branches)


# Gated skips


def _gated(flow: Dataflow, total: Sum, flowing: Sequence[fx.Node]) -> Join | None:
    """The join with a skip that is affine once its factors are held, at the latest fork that has one: σ(g(h)) h + f(h).

    The branch depends on the fork by more than the gate alone: (1 − g(h)) h + g(h) y says how h and y are mixed.
    """
    best: Join | None = None
    for skip in flowing:
        others = [operand for operand in flowing if operand is not skip]
        for fork, held in gated_history(flow, skip):
            if not same_size(fork, skip) or (best and flow.positions[fork] <= flow.positions[best.fork]):
                continue
            dependent = _depending(flow, others, fork)
            gating = {node for factor in held for node, _ in affine_history(flow, factor)}
            if any(mixes(node) for other in dependent for node in flow.between(fork, other, gating)):
                best = _gated_over(flow, total, fork, skip, held, dependent)
    return best


def _gated_over(
    flow: Dataflow,
    total: Sum,
    fork: fx.Node,
    skip: fx.Node,
    held: tuple[fx.Node, ...],
    branches: Iterable[fx.Node],
) -> Join:
    gates = tuple(flow.region(fork, factor) for factor in held)
    regions = [flow.region(fork, other) for other in branches]
    return _over(total, "gated", flow.region(fork, skip, held), fork, regions, gates)


def _ungated(flow: Dataflow, join: Join, found: Found) -> Join:
    """The join with its fork at the value whose gated image is its fork, if a branch reads that value too.

    In hyper-connections h ↦ M = A(h) h comes first; M is what is added, and what the branch reads and is weighed by is
    M and h.
    """
    if join.fork in found or join.skip is None or join.kind == "concat":
        return join
    for fork, held in gated_history(flow, join.fork):
        learned = any(mixes(node) for factor in held for node in flow.between(fork, factor))
        reads = any(flow.depends(node, fork) for branch in join.branches for node in branch.region.context)
        if learned and reads and same_size(fork, join.skip.exit):
            total = Sum(join.node, join.operands, join.adds)
            others = [operand for operand in join.operands if operand in flow and operand is not join.skip.exit]
            return _gated_over(flow, total, fork, join.skip.exit, held, _depending(flow, others, fork))
    return join


# Sums without a skip


def _without_skip(flow: Dataflow, total: Sum) -> Join | None:
    """The join over branches alone, as a bottleneck's beside a shortcut with a norm: f(h) + g(h).

    It is one where everything on its way from the input to the output passes the fork, and then the sum: inside a
    branch such a sum is no more than the branch's code.
    """
    flowing = list(dict.fromkeys(operand for operand in total.operands if operand in flow))
    if len(flowing) < 2 or not flow.dominates(total.node, flow.traced.output):
        return None
    fork = flow.bottleneck(total.node)
    while fork in total.adds:
        fork = flow.bottleneck(fork)
    if fork is None or not all(flow.depends(operand, fork) for operand in flowing):
        return None
    regions = [flow.region(fork, operand) for operand in flowing]
    if any(region.affine or not any(mixes(node) for node in region.nodes) for region in regions):
        return None
    return _over(total, "none", None, fork, regions)


# Which of several skips


def _preference(flow: Dataflow, join: Join) -> tuple[bool, bool, int, int, int]:
    """Which of several skips is the stream's: a direct one, whose fork alone feeds the branches, and most."""
    alone = all(flow.dominates(join.fork, branch.node) for branch in join.branches)
    return join.kind != "projection", alone, len(join.branches), -RANK[join.kind], flow.positions[join.fork]


def _earlier(flow: Dataflow, join: Join, other: Join, found: Found) -> bool:
    """What `join` takes for a branch is the skip of `other`, which forks later in the same stream."""
    return (
        other.fork is not join.fork
        and other.skip is not None
        and other.skip.exit in {branch.node for branch in join.branches}
        and _leads(flow, join.fork, other.fork, found)
    )


def _leads(flow: Dataflow, start: fx.Node, end: fx.Node, found: Found) -> bool:
    """Joins, one at least, and maps between them lead from one value of a stream to another."""
    join = gate(flow, end, found)
    while join is not None and flow.positions[join.fork] > flow.positions[start]:
        before = gate(flow, join.fork, found)
        if before is None:
            return flow.dominates(start, join.fork)
        join = before
    return join is not None and join.fork is start


# Long skips


def _latest(flow: Dataflow, join: Join, found: Found) -> Join:
    """The join with its fork at the latest point of the stream that it adds an affine image of.

    In cat(h_4, h_1), where skips lead from h_1 on to h_4, the stream is h_4, and h_1 is read by a long skip.
    """
    latest: tuple[fx.Node, SkipKind, fx.Node] | None = None
    for operand in (branch.node for branch in join.branches):
        # The nearest join that the operand is an image of; further ones are earlier points of the same stream.
        node, kind = next((past for past in affine_past(flow, operand) if past[0] in found), (None, "identity"))
        if node is None:
            continue
        after = flow.positions[latest[0] if latest else join.fork]
        if flow.positions[node] > after and _skips(flow, join, node, kind, found):
            latest = node, kind, operand
    if latest is None:
        return join
    fork, kind, skip = latest
    others = [operand for operand in join.operands if operand in flow and operand is not skip]
    dependent = _depending(flow, others, fork)
    return replace(
        join,
        kind=join.kind if join.kind == "concat" else kind,
        fork=fork,
        skip=flow.region(fork, skip),
        branches=tuple(branch_over(flow.region(fork, other)) for other in dependent),
        injections=_without(join.operands, skip, dependent),
    )


def _skips(flow: Dataflow, join: Join, end: fx.Node, kind: SkipKind, found: Found) -> bool:
    """Skips alone lead from the fork of a join to another value of the same stream, and on to an operand, which is an
    image of that of this kind.

    They are identities, scales and gates: a branch that projects the stream, or projects what its own joins have made
    of it, is nested. Only where a concatenation skips several joins may they be projections, as from level to level of
    a U-net.
    """
    node, start, joins = end, join.fork, 0
    while flow.positions[node] > flow.positions[start]:
        past = affine_past(flow, node)
        reached = next((pair for pair in past if pair[0] in found or pair[0] is start), None)
        if reached is None:
            return False
        node, image = reached
        kind = widest(kind, image)
        if node is not start:
            inner = found[node]
            joins += 1
            if inner.skip is None:
                return False
            kind = widest(kind, "scaled" if inner.kind == "gated" else inner.kind)
            node = inner.fork
    same = RANK[kind] <= RANK["scaled"] or (join.kind == "concat" and joins > 1)
    return node is start and same
