"""Dataflow → joins: sums and concatenations of a skip and a branch, each with the fork that both come from.

Every add and every concatenation is looked at once, in execution order. Which of its operands is the skip, and where it
forks from the branches, is settled operand by operand: the skip is an affine image of the fork, the branches depend on
the fork through something that mixes features or positions. Where several operands could be the skip, the one that the
stream runs through is taken (`_preference`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from jetgraph.algebra.outline import SkipKind
from jetgraph.export.inner_products import sums
from jetgraph.jets.registry import bind, is_affine, nodes_in, readers
from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.dimensions import follow
from jetgraph.structure.images import (
    affine_history,
    affine_past,
    factored,
    fills,
    gated_history,
    held_image,
    is_of_several,
    keeps_channels,
    same_size,
    widest,
)
from jetgraph.structure.lines import (
    Found,
    along,
    behind,
    branch_over,
    depending,
    end_read,
    gate,
    is_beside,
    is_earlier,
    is_given,
    is_made_by,
    is_point,
    latest,
    line_to,
    point_above,
    preference,
    reading,
    weighing,
    without,
)
from jetgraph.structure.operators import (
    IDENTITY,
    SCALES,
    SOFTMAX,
    aten,
    is_float_tensor,
    is_mixing,
    mixes,
    packet_of,
)
from jetgraph.structure.places import bounds, reads_elsewhere
from jetgraph.structure.regions import Join, Region


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
    by_node = find_sums(flow)
    return with_depth([join for join in by_node.values() if not _is_aside(flow, join, by_node)])


def find_sums(flow: Dataflow) -> dict[fx.Node, Join]:
    """The joins by the node that each ends at, in topological order: also those that are code of one branch alone."""
    by_node: dict[fx.Node, Join] = {}
    for node in flow.nodes:
        if node not in flow:
            continue
        packet = packet_of(node)
        if packet is aten.add and _is_sum(node) and not bounds(node):
            join = _summed(flow, node, by_node)
            if join is not None and (passed := _passed(flow, join, by_node)):
                behind = _behindhand(flow, node, by_node)
                # What a projected skip adds to itself on its way, and nothing else reads, is one layer with it.
                by_node = by_node if behind else {at: by_node[at] for at in by_node if at not in passed}
                join = behind or join
            if join is None:
                total = flattened(flow, node, {add for add in by_node if by_node[add].skip})
                join = _behindhand(flow, node, by_node) or _without_skip(flow, total, by_node)
        elif packet is aten.cat and is_float_tensor(node) and len(flow.parents[node]) > 1:
            total = Sum(node, tuple(nodes_in(node.args[:1])), (node,), concat=True)
            join = _joined(flow, total, by_node)
            join = along(flow, join, by_node) if join is not None else _beside_line(flow, total, by_node)
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
            inner.node in region.node_set and (inner.fork in region.node_set or inner.fork is outer.fork)
            for region in outer.inside
        )
        and _leads_only_to(inner.node, outer)
    )


def _is_aside(flow: Dataflow, join: Join, by_node: Found) -> bool:
    """The sum is code of one branch alone, and no stream runs through it: its fork comes from outside of that branch,
    or all that it adds does; or it is code of branches, and softmaxes or gates are all that reads it.

    So it is where each layer adds one position bias to its scores, or one made of its own input, or the scores of the
    layer before, or the first layer's values to its own, or the model's input to what it reads. A fork that another
    join made, or a norm of that, is a point of a stream.
    """
    holders = [other for other in by_node.values() if other is not join and _holds(other, join.node)]
    inside = [other for other in holders if _leads_only_to(join.node, other)]
    apart = any(not _holds(other, join.fork) for other in inside) and all(
        other.fork is not join.fork for other in inside
    )
    # What reads another point than the fork comes from there, by factors of its own.
    elsewhere = {branch.node: branch.region.entry for branch in join.branches if branch.region.entry is not join.fork}
    operands = [node for node in join.operands if join.skip is None or node is not join.skip.exit]
    added = [elsewhere.get(node, node) for node in operands]
    given = any(not any(_holds(other, node) for node in added) for other in inside)
    steers = bool(holders) and (only_steers(join.node, SOFTMAX | _GATES) or _is_weighed_up(join.node))
    # A norm of the stream beside another point, for a layer of the branch to read, is nothing that a stream goes on in.
    nothing = join.kind == "none" and not any(mixes(node) for each in join.branches for node in each.region.nodes)
    return (apart and not is_point(flow, join.fork, by_node)) or given or steers or (nothing and bool(inside))


_GATES = {aten.sigmoid, aten.hardsigmoid}


def only_steers(node: fx.Node, by: Collection[Any] = frozenset(SOFTMAX)) -> bool:
    """Every way from a node, through layout, factors, masks and further sums, ends at one of these."""
    seen, stack = {node}, [node]
    while stack:
        for user in readers(stack.pop()):
            packet = packet_of(user)
            if packet in by or user in seen:
                continue
            if packet not in IDENTITY | SCALES | _MASKING:
                return False
            seen.add(user)
            stack.append(user)
    return True


def _is_weighed_up(node: fx.Node) -> bool:
    """All that reads a value is one layer whose outputs are gates: how stream and branch are mixed is made of both,
    side by side, or of their difference.
    """
    stack, layers = [node], set[fx.Node]()
    while stack:
        for user in readers(stack.pop()):
            if packet_of(user) in _LAYERS:
                layers.add(user)
            elif packet_of(user) in IDENTITY | {aten.cat}:
                stack.append(user)
            else:
                return False
    return bool(layers) and all(only_steers(layer, _GATES) for layer in layers)


_LAYERS = {aten.linear, aten.addmm, aten.mm}

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
            if user not in inside and _is_used(user):
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


# Sums


def _is_sum(node: fx.Node) -> bool:
    return bool(
        len(node.args) >= 2
        and node.kwargs.get("alpha", 1) == 1
        and all(isinstance(arg, fx.Node) and is_float_tensor(arg) for arg in node.args[:2])
    )


def _summed(flow: Dataflow, node: fx.Node, by_node: Found) -> Join | None:
    """The join that ends at this add. Adds below it belong to it unless they are joins of another fork."""
    closed: set[fx.Node] = set()
    while True:
        total = flattened(flow, node, closed)
        join = _joined(flow, total, by_node)
        join = join and _projected(flow, total, join)
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


def summands_of_whole(flow: Dataflow, total: fx.Node) -> list[fx.Node]:
    """The operands of a sum that is no part of another sum; nothing of another node."""
    if total not in flow or total.target is not aten.add.Tensor or not is_float_tensor(total):
        return []
    users = readers(total)
    if len(users) == 1 and next(iter(users)).target is aten.add.Tensor:
        return []
    return [operand for operand in flattened(flow, total, ()).operands if operand in flow]


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
        gated = None if total.concat or again else _gated_before(flow, total, join, flowing, by_node)
        return gated or _whole(flow, _ungated(flow, join, by_node), by_node)
    gated = None if total.concat or again else _gated(flow, total, flowing, by_node)
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
    return _over(total, "concat" if total.concat else kind, flow.region(fork, skip), fork, regions)


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
        return _gated_over(flow, total, point, join.skip.exit, join.skip.held, regions)
    return _over(total, widest(kind, join.kind), flow.region(point, join.skip.exit), point, regions)


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
        injections=without(total.operands, skip and skip.exit, [region.exit for region in branches]),
        operands=total.operands,
        adds=total.adds,
        gates=gates,
    )


def bare(total: Sum) -> Join:
    """The join over a sum or concatenation, none of whose operands is a skip yet."""
    return _over(total, "concat" if total.concat else "none", None, total.operands[0], [])


# Gated skips


def _gated(flow: Dataflow, total: Sum, flowing: Sequence[fx.Node], by_node: Found) -> Join | None:
    """The join with a skip that is affine once its factors are held, at the latest fork that has one: σ(g(h)) h + f(h).

    The branch depends on the fork by more than the gate alone: (1 − g(h)) h + g(h) y says how h and y are mixed, unless
    y is an earlier point of the stream, which is weighed with the others then.
    """
    best: Join | None = None
    for skip in flowing:
        others = [operand for operand in flowing if operand is not skip]
        for fork, held in gated_history(flow, skip):
            whole = same_size(fork, skip) and not _is_piece(flow, fork, skip, held)
            if not (whole or is_of_several(flow, skip)) or (best and flow.positions[fork] <= flow.positions[best.fork]):
                continue
            dependent = depending(flow, others, fork)
            gating = {node for factor in held for node, _ in affine_history(flow, factor)}
            found: Join | None = None
            adds = any(mixes(node) for other in dependent for node in flow.between(fork, other, gating))
            if adds and not _is_weighed(flow, total.node, fork):
                found = _gated_over(flow, total, fork, skip, held, (flow.region(fork, other) for other in dependent))
            elif dependent and fork in by_node:
                points = line_to(flow, fork, by_node)
                weighed = [weighing(flow, other, points[:-1]) for other in dependent]
                if None not in weighed:
                    found = _gated_over(flow, total, fork, skip, held, filter(None, weighed))
            # A gate that is made of a condition alone scales another stream, and is none.
            if found is not None and not is_given(flow, found, by_node):
                best = found
    return best


def _is_weighed(flow: Dataflow, total: fx.Node, fork: fx.Node) -> bool:
    """A sum has what its fork has, place by place, by the sum of several gates, and nothing is added to that: as where
    squeeze and excitation go over channels and over places at once.
    """
    held = held_image(flow, total, (fork,))
    return held is not None and not any(map(mixes, flow.between(fork, total, held)))


def _gated_before(flow: Dataflow, total: Sum, join: Join, flowing: Sequence[fx.Node], by_node: Found) -> Join | None:
    """The join whose gated skip another one takes for the branch, where that forks from what a layer adds: in
    (1 − g(f(h))) h + f(h) the gate is made of f(h), which is no point of a stream.
    """
    if len(join.branches) != 1 or join.fork in by_node or not _is_multiple_beside(flow, join):
        return None
    gated = _gated(flow, total, flowing, by_node)
    if gated is None or gated.skip is None or gated.skip.exit is not join.branches[0].node:
        return None
    after = (end for end in by_node if end is not gated.fork and flow.depends(end, gated.fork))
    ahead = gated.fork is not join.fork and flow.depends(join.fork, gated.fork)
    return _whole(flow, gated, by_node) if ahead and not any(flow.depends(join.fork, end) for end in after) else None


def _is_multiple_beside(flow: Dataflow, join: Join) -> bool:
    """The branch is a multiple, by a factor made of the fork, of what is not made of that."""
    (branch,) = join.branches
    return any(not flow.depends(node, join.fork) for node, _ in factored(flow, branch.node))


def _is_piece(flow: Dataflow, fork: fx.Node, skip: fx.Node, held: tuple[fx.Node, ...]) -> bool:
    """With these factors held, the skip is made of some indices of the fork's positions or features alone.

    That it has as many numbers is then chance, as where a delta rule corrects row i of its scores, and i is the length.
    """
    nodes = flow.between(fork, skip, held)
    cuts = [node for node in nodes if packet_of(node) in (aten.slice, aten.select)]
    if not cuts:
        return False
    followed = follow(fork, nodes)
    own = {*followed.start.present}
    for node in cuts:
        layout = followed.get(node.args[0])
        if layout is None:
            continue
        dim = bind(node.target, node.args, node.kwargs).get("dim", 0)  # type: ignore[arg-type]
        if any(factor.roots() & own for factor in layout.at(dim % len(layout.dims))):
            return True
    return False


def _gated_over(
    flow: Dataflow,
    total: Sum,
    fork: fx.Node,
    skip: fx.Node,
    held: tuple[fx.Node, ...],
    branches: Iterable[Region],
) -> Join:
    gates = tuple(flow.region(fork, factor) for factor in held)
    return _over(total, "gated", flow.region(fork, skip, held), fork, list(branches), gates)


def _projected(flow: Dataflow, total: Sum, join: Join) -> Join:
    """The join with what its fork has along directions as a part of its skip, if that is added to the fork first, as
    normal form writes it: (h − ⟨u(h), h⟩ u(h)) + f(h).
    """
    if join.skip is None or join.kind not in KEEPING:
        return join
    images = {branch.node for branch in join.branches if _is_along(flow, branch.node, join.fork)}
    others = [branch.region for branch in join.branches if branch.node not in images]
    for add in total.adds[:-1]:
        if {*flattened(flow, add, ()).operands} == {join.skip.exit, *images} and images and others:
            opened = flattened(flow, total.node, {add})
            held = held_image(flow, add, (join.fork,)) or ()
            return _gated_over(flow, opened, join.fork, add, held, others)
    return join


def _is_along(flow: Dataflow, node: fx.Node, fork: fx.Node) -> bool:
    """A value is a sum over places or features of a fork with factors, put back along a direction: affine in the fork
    with these held."""
    held = held_image(flow, node, (fork,))
    return bool(held) and any(map(sums, flow.between(fork, node, held)))


def _ungated(flow: Dataflow, join: Join, by_node: Found) -> Join:
    """The join with its fork at the value whose gated image is its fork, if a branch reads that value too.

    In hyper-connections h ↦ M = A(h) h comes first; M is what is added, and what the branch reads and is weighed by is
    M and h. Factors in which nothing mixes, such as a norm's, are gates only where a layer reads h besides.
    """
    if join.fork in by_node or join.skip is None or join.kind == "concat":
        return join
    for fork, held in gated_history(flow, join.fork):
        learned = any(mixes(node) for factor in held for node in flow.between(fork, factor))
        read = [node for branch in join.branches for node in branch.region.context if flow.depends(node, fork)]
        reads = bool(read) if learned else any(mixes(inner) for node in read for inner in flow.between(fork, node))
        if reads and same_size(fork, join.skip.exit):
            total = Sum(join.node, join.operands, join.adds)
            others = [operand for operand in join.operands if operand in flow and operand is not join.skip.exit]
            regions = (flow.region(fork, other) for other in depending(flow, others, fork))
            return _gated_over(flow, total, fork, join.skip.exit, held, regions)
    return join


# Sums of a point and what is made of earlier ones


KEEPING: tuple[SkipKind, ...] = ("identity", "scaled")
"""Skips after which a stream is what it was, up to a factor."""


def _passed(flow: Dataflow, join: Join, by_node: Found) -> list[fx.Node]:
    """The ends of joins by which a stream goes on between a fork and what is skipped of it, by affine branches."""
    if join.kind != "projection" or join.skip is None:
        return []
    way = (node for node, _ in affine_past(flow, join.skip.exit) if flow.positions[node] > flow.positions[join.fork])
    return [node for node in way if node in by_node and by_node[node].fork is join.fork]


def _behindhand(flow: Dataflow, node: fx.Node, by_node: Found) -> Join | None:
    """The join that ends at this add whose branches all read earlier points; adds below it that are such joins too, of
    the same point, belong to it.
    """
    skipping = {add: join for add, join in by_node.items() if join.skip}
    waiting = {add for add, join in skipping.items() if any(one.region.entry is join.fork for one in join.branches)}
    whole, opened = (flattened(flow, node, closed) for closed in (waiting, skipping))
    join = _behind_point(flow, whole, by_node) or _with_inner(flow, whole, by_node)
    return join or _behind_point(flow, opened, by_node)


def _with_inner(flow: Dataflow, total: Sum, by_node: Found) -> Join | None:
    """The join over an image of a point and what is made of earlier ones, which the code adds one by one: P h₃ + Q h₂
    is a join, and (P h₃ + Q h₂) + R h₁ is one of the same point.
    """
    inner = next((by_node[add] for add in reversed(total.adds[:-1]) if add in by_node), None)
    if inner is None or inner.skip is None:
        return None
    join = behind(flow, bare(total), line_to(flow, inner.fork, by_node))
    return join if join.fork is inner.fork and not any(one in flow for one in join.injections) else None


def _behind_point(flow: Dataflow, total: Sum, by_node: Found) -> Join | None:
    """The join over a point of a stream and branches that all read earlier ones, as where a layer need not wait for the
    one before it: h₂ = a h₁ + f(h₀). The point may be a map of what a join gave, such as its norm; where each operand
    could be such a point, none is.
    """
    flowing = [operand for operand in total.operands if operand in flow]
    if len(set(flowing)) < max(2, len(flowing)):
        return None
    best: Join | None = None
    mapped: list[Join] = []
    for skip in flowing:
        point, kind = point_above(flow, skip, by_node)
        if point is None or kind not in KEEPING or not same_size(skip, total.node):
            continue
        # Of streams that are mixed with weights, each has images in the others.
        if kind == "scaled" and sum(_is_image(flow, user) for user in point.users) > 1:
            continue
        others = [operand for operand in flowing if operand is not skip]
        # What is made of the point itself is no layer that did not wait for it.
        if any(flow.depends(operand, point) for operand in others):
            continue
        points = _plain_line(flow, point, by_node)[:-1]
        read = [reading(flow, operand, points) for operand in others]
        regions = [region for region in read if region is not None and any(map(mixes, region.nodes))]
        if len(regions) < len(read):
            continue
        join = _over(total, kind, flow.region(point, skip), point, regions)
        if point not in by_node:
            mapped.append(join)
        elif best is None or flow.positions[point] > flow.positions[best.fork]:
            best = join
    return best or (mapped[0] if len(mapped) == 1 else None)


def _is_image(flow: Dataflow, node: fx.Node) -> bool:
    """An affine function, place by place, of what it reads of the input."""
    return node in flow and is_affine(node, set(flow.parents[node]).__contains__) and not mixes(node)


def _plain_line(flow: Dataflow, point: fx.Node, by_node: Found) -> list[fx.Node]:
    """The points of a stream from which nothing but joins that keep it, up to a factor, and maps lead to one, the
    earliest first."""
    points, at = [point], point
    while is_point(flow, at, by_node):
        join = gate(flow, at, by_node)
        if join is None or join.kind not in KEEPING:
            break
        points += [node for node in (join.node, join.fork) if node is not points[-1]]
        at = join.fork
    return points[::-1]


# Sums without a skip


def _without_skip(flow: Dataflow, total: Sum, by_node: Found) -> Join | None:
    """The join over branches alone, as a bottleneck's beside a shortcut with a norm: f(h) + g(h).

    It is one where everything on its way from the input to the output passes the fork, and then the sum: inside a
    branch such a sum is no more than the branch's code. It is one too where the stream leads from the fork to one of
    its operands: then it forks at the end of that, and the others read an earlier point.
    """
    flowing = _flowing(flow, total)
    if len(flowing) < 2:
        return None
    of = _stream_input(flow, total, flowing, by_node)
    outermost = flow.dominates(total.node, flow.traced.output, of)
    if not outermost and len({end_read(flow, operand, by_node) for operand in flowing}) == 1:
        return None
    join = _of_branches(flow, total, _met(flow, total, of), by_node)
    moved = join and along(flow, join, by_node)
    return moved if outermost or moved is not join else None


def _beside_line(flow: Dataflow, total: Sum, by_node: Found) -> Join | None:
    """The join over a concatenation of where a line of joins has come to and what other ways make of the value that the
    line starts from: cat(m + f(m), g(h)) with m made of h. Without a line it is code.

    Everything on its way from the input to the output passes that value, and then the concatenation.
    """
    flowing = _flowing(flow, total)
    above = [point_above(flow, operand, by_node)[0] for operand in flowing]
    ends = [end for end in above if end is not None and end in by_node]
    if len(flowing) < 2 or len(ends) != 1:
        return None
    of = _stream_input(flow, total, flowing, by_node)
    start = _met(flow, total, of)
    line = line_to(flow, ends[0], by_node)
    if start is None or not flow.depends(line[0], start) or not flow.dominates(total.node, flow.traced.output, of):
        return None
    join = behind(flow, bare(total), [start, *line])
    layers = [branch.region for branch in join.branches if any(map(mixes, branch.region.nodes))]
    return join if join.skip is not None and layers and len(layers) == len(flowing) - 1 else None


def within_map(flow: Dataflow, entry: fx.Node, exit: fx.Node, by_node: Found) -> list[Join]:
    """The joins over branches alone in a map of a stream: everything from its entry to its exit passes their forks and
    sums, though further layers read the entry too, as where a level of a pyramid is pooled again.
    """
    found: list[Join] = []
    for node in flow.between(entry, exit):
        added = packet_of(node) is aten.add and _is_sum(node) and node not in by_node
        if not added or not flow.dominates(node, exit, entry):
            continue
        total = flattened(flow, node, by_node)
        join = _of_branches(flow, total, _met(flow, total, entry), by_node) if len(_flowing(flow, total)) > 1 else None
        found += [join] if join is not None else []
    return found


def _flowing(flow: Dataflow, total: Sum) -> list[fx.Node]:
    """The operands of a sum that are made of the input, each once."""
    return list(dict.fromkeys(operand for operand in total.operands if operand in flow))


def _of_branches(flow: Dataflow, total: Sum, fork: fx.Node | None, by_node: Found) -> Join | None:
    """The join of what is made of a fork, if each operand is a layer over that."""
    flowing = _flowing(flow, total)
    if fork is None or not all(flow.depends(operand, fork) for operand in flowing):
        return None
    points = (node for node in (fork, *by_node) if all(flow.depends(operand, node) for operand in flowing))
    if held_image(flow, total.node, (max(points, key=flow.positions.__getitem__),)) is not None:
        return None  # What a point has is weighed here, and nothing is added to it.
    regions = [flow.region(fork, operand) for operand in flowing]
    # What is affine only with others held, as messages along weighed edges are, is no skip that was told.
    if all(region.affine for region in regions) or any(
        (region.affine and not region.context) or not any(mixes(node) for node in region.nodes) for region in regions
    ):
        return None
    return _over(total, "none", None, fork, regions)


def _met(flow: Dataflow, total: Sum, of: fx.Node | None) -> fx.Node | None:
    """Where the ways to a sum's operands part: all, or those from one value."""
    fork = flow.bottleneck(total.node, of)
    while fork in total.adds:
        fork = flow.bottleneck(fork, of)
    return fork


def _stream_input(flow: Dataflow, total: Sum, flowing: Sequence[fx.Node], by_node: Found) -> fx.Node | None:
    """Of the inputs that all operands of a sum are made of, the one whose stream the sum belongs to, if it is none of
    the stream of all: nothing of that input passes the sum by.

    The others come in as a mask, an adjacency or a condition does, which further layers read too. Where the last layer
    alone reads one, the stream is that which has joins, or is as large as the sum. Where a stream that starts elsewhere
    reads this one, there are two, which meet in a head.
    """
    if _met(flow, total, None) is not None:
        return None
    forks = {start: _met(flow, total, start) for start in flow.shared_inputs(flowing)}
    above = [join for end, join in by_node.items() if any(flow.depends(operand, end) for operand in flowing)]
    through = [
        (any(flow.depends(fork, join.node) for join in above), same_size(fork, total.node), start)
        for start, fork in forks.items()
        if fork is not None
        and flow.dominates(total.node, flow.traced.output, start)
        and not any(flow.depends(join.node, start) and not flow.depends(join.fork, start) for join in above)
    ]
    return max(through, key=lambda one: one[:2], default=(False, False, None))[2]
