"""Dataflow → joins: sums and concatenations of a skip and a branch, each with the fork that both come from.

Every add and every concatenation is looked at once, in execution order. Which of its operands is the skip, and where it
forks from the branches, is settled operand by operand: the skip is an affine image of the fork, the branches depend on
the fork through something that mixes features or positions. Where several operands could be the skip, the one that the
stream runs through is taken (`jetgraph.structure.lines.preference`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

from torch import fx

from jetgraph.jets.registry import nodes_in, readers
from jetgraph.structure.conditions import is_given
from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.gated import (
    from_before_gate,
    gated_ahead,
    gated_join,
    is_centred,
    with_one_layer,
    with_projection_held,
)
from jetgraph.structure.images import affine_history, affine_past, fills, keeps_channels, same_size, widest
from jetgraph.structure.lines import Found, depending, gate, is_earlier, is_made_by, is_point, leads_only_to, preference
from jetgraph.structure.long_skips import along, is_beside, latest
from jetgraph.structure.operators import (
    SOFTMAX,
    aten,
    is_float_tensor,
    is_mixing,
    mixes,
    multiple_of,
    packet_of,
)
from jetgraph.structure.places import bounds, reads_elsewhere
from jetgraph.structure.regions import Join, Region
from jetgraph.structure.steering import GATES, is_weighed_up, only_steers
from jetgraph.structure.sums import KEEPING, Sum, flattened, gated_over, is_sum, join_over
from jetgraph.structure.unskipped import behind_points, beside_line, points_passed, without_skip


def find_joins(flow: Dataflow) -> tuple[Join, ...]:
    """Every join of the graph, with its depth, in topological order; names are given later."""
    by_node = find_sums(flow)
    return with_depth([join for join in by_node.values() if not _is_aside(flow, join, by_node)])


def find_sums(flow: Dataflow) -> dict[fx.Node, Join]:
    """The joins by the node that each ends at, in topological order: also those that are code of one branch alone."""
    by_node: dict[fx.Node, Join] = {}
    for node in flow.nodes:
        if node not in flow:
            continue
        packet = packet_of(node)
        if packet is aten.add and is_sum(node) and not bounds(node):
            join = _summed(flow, node, by_node)
            if join is not None and (points := points_passed(flow, join, by_node)):
                behind = behind_points(flow, node, by_node)
                # What a projected skip adds to itself on its way, and nothing else reads, is one layer with it.
                by_node = by_node if behind else {at: by_node[at] for at in by_node if at not in points}
                join = behind or join
            if join is None:
                total = flattened(flow, node, {add for add in by_node if by_node[add].skip})
                join = behind_points(flow, node, by_node) or without_skip(flow, total, by_node)
        elif packet is aten.cat and is_float_tensor(node) and len(flow.parents[node]) > 1:
            total = Sum(node, tuple(nodes_in(node.args[:1])), (node,), concat=True)
            join = _joined(flow, total, by_node)
            join = along(flow, join, by_node) if join is not None else beside_line(flow, total, by_node)
        else:
            continue
        if join is not None:
            for absorbed in join.adds[:-1]:
                by_node.pop(absorbed, None)
            by_node = dict(_unheld(join, by_node)) if join.kind == "gated" else by_node
            by_node[node] = join
    return {node: by_node[node] for node in flow.ordered(by_node)}


def with_depth(joins: Collection[Join]) -> tuple[Join, ...]:
    """The joins, each with the number of others that it is nested in."""
    return tuple(replace(join, depth=sum(is_inside(join, other) for other in joins)) for join in joins)


def is_inside(inner: Join, outer: Join) -> bool:
    """The whole of `inner`, from fork to sum, lies in a branch of `outer`, or in a gate of its skip, and leads nowhere
    else: what is read outside too, such as values that branches share, is no code of that branch alone.
    """
    return (
        inner.node is not outer.node
        and any(
            inner.node in region.node_set
            and (inner.fork in region.node_set or inner.fork is outer.fork or _starts_row(inner, region))
            for region in outer.inside
        )
        and _stays_inside(inner.node, outer)
    )


def _starts_row(join: Join, region: Region) -> bool:
    """The branch starts where the join forks, at an earlier point that this keeps as it is, and ends in a sum: it is a
    row of joins.
    """
    ends_in_sum = packet_of(multiple_of(region.exit)) is aten.add
    return join.fork is region.entry and join.kind in KEEPING and ends_in_sum


def _is_aside(flow: Dataflow, join: Join, by_node: Found) -> bool:
    """The sum is code of one branch alone, and no stream runs through it: its fork comes from outside of that branch,
    or all that it adds does; or it is code of branches, and softmaxes or gates are all that reads it.

    So it is where each layer adds one position bias to its scores, or one made of its own input, or the scores of the
    layer before, or the first layer's values to its own, or the model's input to what it reads.
    """
    holders = [other for other in by_node.values() if other is not join and _holds(other, join.node)]
    if holders and (only_steers(join.node, SOFTMAX | GATES) or is_weighed_up(join.node)):
        return True
    inside = [other for other in holders if _stays_inside(join.node, other)]
    return any(_adds_given(join, other) for other in inside) or _forks_outside(flow, join, inside, by_node)


def _adds_given(join: Join, other: Join) -> bool:
    """All that a sum inside a branch of another join adds comes from outside of that."""
    # What reads another point than the fork comes from there, by factors of its own.
    elsewhere = {branch.node: branch.region.entry for branch in join.branches if branch.region.entry is not join.fork}
    operands = [node for node in join.operands if join.skip is None or node is not join.skip.exit]
    added = [elsewhere.get(node, node) for node in operands]
    return not any(_holds(other, node) or _starts(other, join, node) for node in added)


def _forks_outside(flow: Dataflow, join: Join, inside: Collection[Join], by_node: Found) -> bool:
    """The fork of a sum comes from outside of a branch that the sum is code of, and is no point of a stream, such as
    what another join made, or a norm of that.
    """
    if all(_holds(other, join.fork) for other in inside):
        return False
    # A norm of the stream beside another point, for a layer of the branch to read, is nothing that a stream goes on in;
    # the norm of a line inside the branch is, as where a level comes back from below.
    if join.kind == "none" and not any(mixes(node) for each in join.branches for node in each.region.nodes):
        return True
    apart = all(other.fork is not join.fork for other in inside)
    return apart and (not is_point(flow, join.fork, by_node) or any(_lays_made(flow, join, other) for other in inside))


def is_read_by_layer(flow: Dataflow, join: Join, by_node: Found) -> bool:
    """A concatenation is what a layer of a branch reads: an earlier point beside what the branch has made by then."""
    holders = (other for other in by_node.values() if other is not join and _holds(other, join.node))
    return any(_lays_made(flow, join, other) and _stays_inside(join.node, other) for other in holders)


def _lays_made(flow: Dataflow, join: Join, other: Join) -> bool:
    """A concatenation in a branch lays an earlier point beside what the branch has made by layers or a norm."""
    if not join.concatenates or _holds(other, join.fork):
        return False
    read = [operand for operand in join.operands if operand in flow and flow.depends(operand, other.fork)]
    return bool(read) and all(node is not other.fork for operand in read for node, _ in affine_history(flow, operand))


def _holds(join: Join, node: fx.Node) -> bool:
    return any(node in region.node_set for region in join.inside)


def _starts(join: Join, inner: Join, node: fx.Node) -> bool:
    """A branch starts at a value, and holds another join, fork and sum: the value is an earlier point of its line."""
    return any(region.entry is node and {inner.node, inner.fork} <= region.node_set for region in join.inside)


def _stays_inside(node: fx.Node, join: Join) -> bool:
    """Every way from a node inside a join stays there until it passes the sum."""
    inside = frozenset().union(*(region.node_set for region in join.inside), join.skip.nodes if join.skip else ())
    return leads_only_to(node, join, inside)


def _summed(flow: Dataflow, node: fx.Node, by_node: Found) -> Join | None:
    """The join that ends at this add. Adds below it belong to it unless they are joins of another fork."""
    closed: set[fx.Node] = set()
    while True:
        total = flattened(flow, node, closed)
        join = _joined(flow, total, by_node)
        if join is not None:
            if is_centred(flow, join):
                return None
            join = with_projection_held(flow, total, join)
            join = with_one_layer(flow, Sum(join.node, join.operands, join.adds), join)
        if join is not None and join.kind == "gated":
            by_node = _unheld(join, by_node)
        moved = join and along(flow, join, by_node)
        inner = [add for add in total.adds if add is not node and add in by_node]
        if join is not None and moved is not None:
            inner = [add for add in inner if not _is_part_of(flow, by_node[add], join, moved, by_node)]
        if not inner:
            return moved
        # The outermost of them first: opening it may hide the others.
        closed.add(max(inner, key=flow.positions.__getitem__))


def _unheld(join: Join, by_node: Found) -> Found:
    """The joins but for what a gated join skips and it alone reads: a concatenation, of whose pieces each is multiplied
    by its own factor, or a sum of images of its fork.
    """
    skip = by_node.get(join.skip.exit) if join.skip else None
    part = skip is not None and (skip.concatenates or skip.fork is join.fork)
    if skip is None or not part or any(user not in join.adds for user in readers(skip.node)):
        return by_node
    return {node: other for node, other in by_node.items() if other is not skip}


def _is_part_of(flow: Dataflow, inner: Join, join: Join, moved: Join, by_node: Found) -> bool:
    """A sum below another one is no join of its own: it has the same fork, or no skip but a map of what a map makes of
    that, such as its norm; or is a sum of points alone, without a branch, or of some of those that the other one sums,
    or its branches are made of the fork of the other one, which adds an earlier point to them, or weighs points of the
    stream alone.
    """
    if inner.fork is join.fork:
        return moved is not join or not is_beside(flow, join, by_node)
    # What is added to the norm itself is a join inside the branch.
    of_map = flow.carries(join.fork, inner.fork) and not any(map(mixes, flow.between(join.fork, inner.fork)))
    if of_map and inner.kind != "identity":
        return True
    across = all(flow.carries(join.fork, branch.node) for branch in inner.branches) and join.kind == "identity"
    weighed = join.kind == "gated" and all(branch.kind == "skip" for branch in join.branches)
    return (
        not inner.branches
        or (moved is not join and flow.depends(moved.fork, inner.fork))
        or ((across or weighed) and flow.depends(join.fork, inner.fork))
    )


# Skips and branches


def _joined(flow: Dataflow, total: Sum, by_node: Found) -> Join | None:
    """The join over these operands, if one of them is a skip and another one a branch of the same fork.

    Parameters
    ----------
    flow
        The graph's dataflow.
    total
        The sum or concatenation.
    by_node
        The joins before it.
    """
    flowing = [operand for operand in total.operands if operand in flow]
    again = {operand for operand, number in Counter(flowing).items() if number > 1}
    if len(flowing) < 2 or len(again) > 1:
        return None
    # What is added twice is the skip, or there is none.
    candidates = [join for operand in again or flowing if (join := _forked(flow, total, operand)) is not None]
    candidates = [join for join in candidates if not is_given(flow, join, by_node)]
    candidates = [
        join for join in candidates if not any(is_made_by(flow, join, other, by_node) for other in candidates)
    ]
    chosen = [join for join in candidates if not any(is_earlier(flow, join, other, by_node) for other in candidates)]
    if chosen:
        join = latest(flow, max(chosen, key=lambda join: preference(flow, join)), by_node)
        gated = None if total.concat or again else gated_ahead(flow, total, join, flowing, by_node)
        return _whole(flow, gated or from_before_gate(flow, join, by_node), by_node)
    gated = None if total.concat or again else gated_join(flow, total, flowing, by_node)
    return gated and _whole(flow, gated, by_node)


def _forked(flow: Dataflow, total: Sum, skip: fx.Node) -> Join | None:
    """The join with this operand as its skip.

    The nearest node that another operand depends on is the fork or there is none: through any earlier one, skip and
    branch would share their way, as in x + 0.044715 x³ after a linear layer.
    """
    if not (total.concat or fills(skip, total.node)):
        return None  # One value for many places, such as the mean that was taken away, is no stream through them.
    others = [operand for operand in total.operands if operand in flow and operand is not skip]
    history = ((*each, depending(flow, others, each[0])) for each in affine_past(flow, skip))
    fork, kind, dependent = next((each for each in history if each[2]), (None, "identity", []))
    if fork is None or (total.concat and kind == "projection" and not _is_part(flow, total, fork, skip)):
        return None
    regions = [flow.region(fork, other) for other in dependent]
    if not any(mixes(node) for region in regions for node in region.nodes):
        # What reads pieces of a wider value is put side by side with the rest, and no layer of its own.
        keeps = not total.concat and kind in KEEPING
        if not (keeps and any(reads_elsewhere(flow, region, skip) for region in regions)):
            return None
    # Two linear layers side by side are one linear layer, and none of them a skip; a norm by kept statistics is one, as
    # is a value with zeros around it. Put side by side, a value and linear images of it are one as well.
    kept = not total.concat and keeps_channels(flow, flow.between(fork, skip))
    if (total.concat or (kind == "projection" and not kept)) and all(region.affine for region in regions):
        return None
    return join_over(total, "concat" if total.concat else kind, flow.region(fork, skip), fork, regions)


def _whole(flow: Dataflow, join: Join, by_node: Found) -> Join:
    """The join with its fork at the point that its fork is a piece of, if a branch reads that otherwise too.

    Of streams that lie side by side, the last layer goes on with one, and reads all.
    """
    if join.skip is None or join.kind == "concat" or join.fork in by_node:
        return join
    past = list(affine_past(flow, join.fork))
    # The point is a join's value, or else what nothing mixes in since, as where streams have passed their norms.
    at = next((each for each in past if each[0] in by_node), None)
    at = at or next((each for each in past if _is_read(flow, join, each[0]) and _is_map(flow, each[0], by_node)), None)
    # The stream may start with a pool of what its first layer reads as it was.
    at = at or next((each for each in past if _is_read(flow, join, each[0])), None)
    if at is None or not _is_read(flow, join, at[0]):
        return join
    point, kind = at
    # What is read by a layer on the way, and by others further on, is given to each of them.
    given = point not in by_node and any(map(is_mixing, flow.between(point, join.fork)))
    if given and not flow.dominates(join.node, flow.traced.output, point):
        return join
    total = Sum(join.node, join.operands, join.adds)
    regions = [flow.region(point, branch.node) for branch in join.branches]
    if join.kind == "gated":
        return gated_over(flow, total, point, join.skip.exit, join.skip.held, regions)
    return join_over(total, widest(kind, join.kind), flow.region(point, join.skip.exit), point, regions)


def _is_read(flow: Dataflow, join: Join, point: fx.Node) -> bool:
    """Branches of a join read a point otherwise than by the join's fork."""
    return any(flow.depends(node, point) for branch in join.branches for node in branch.region.context)


def _is_map(flow: Dataflow, point: fx.Node, by_node: Found) -> bool:
    """A value is made of a join's alone, and nothing mixes there."""
    before = gate(flow, point, by_node)
    return before is not None and not any(map(mixes, flow.between(before.node, point)))


def _is_part(flow: Dataflow, total: Sum, fork: fx.Node, skip: fx.Node) -> bool:
    """A concatenation that carries a part of the fork on, and puts something else in the place of the rest."""
    return same_size(fork, total.node) and not any(mixes(node) for node in flow.between(fork, skip))
