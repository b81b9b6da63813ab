"""Gated joins: σ(g(h)) h + f(h), whose skip is affine in the fork once factors made of that are held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import fx

from jetgraph.export.inner_products import sums
from jetgraph.jets.registry import bind
from jetgraph.structure.conditions import is_given
from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.dimensions import follow
from jetgraph.structure.images import (
    affine_history,
    factored,
    fills,
    gated_history,
    held_image,
    is_of_several,
    same_size,
)
from jetgraph.structure.lines import Found, branch_over, depending, line_to
from jetgraph.structure.operators import aten, mixes, packet_of
from jetgraph.structure.readings import weighing
from jetgraph.structure.regions import Join
from jetgraph.structure.sums import KEEPING, Sum, flattened, gated_over, join_over


def gated_join(flow: Dataflow, total: Sum, flowing: Sequence[fx.Node], by_node: Found) -> Join | None:
    """The join with a skip that is affine once its factors are held, at the latest fork that has one: σ(g(h)) h + f(h).

    The branch depends on the fork by more than the gate alone: (1 − g(h)) h + g(h) y says how h and y are mixed, unless
    y is an earlier point of the stream, which is weighed with the others then.
    """
    best: Join | None = None
    # One value for many places is no stream through them, with a gate as without.
    for skip in (operand for operand in flowing if fills(operand, total.node)):
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
                found = gated_over(flow, total, fork, skip, held, (flow.region(fork, other) for other in dependent))
            elif dependent and fork in by_node:
                points = line_to(flow, fork, by_node)
                weighed = [weighing(flow, other, points[:-1]) for other in dependent]
                if None not in weighed:
                    found = gated_over(flow, total, fork, skip, held, filter(None, weighed))
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


def gated_ahead(flow: Dataflow, total: Sum, join: Join, flowing: Sequence[fx.Node], by_node: Found) -> Join | None:
    """The join whose gated skip another one takes for the branch, where that forks from what a layer adds: in
    (1 − g(f(h))) h + f(h) the gate is made of f(h), which is no point of a stream.
    """
    if len(join.branches) != 1 or join.fork in by_node or not _is_multiple_beside(flow, join):
        return None
    gated = gated_join(flow, total, flowing, by_node)
    if gated is None or gated.skip is None or gated.skip.exit is not join.branches[0].node:
        return None
    after = (end for end in by_node if end is not gated.fork and flow.depends(end, gated.fork))
    ahead = gated.fork is not join.fork and flow.depends(join.fork, gated.fork)
    return gated if ahead and not any(flow.depends(join.fork, end) for end in after) else None


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


def with_projection_held(flow: Dataflow, total: Sum, join: Join) -> Join:
    """The join with what its fork has along directions, or in common, as a part of its skip, if that is added to the
    fork first, as normal form writes it: (h − ⟨u(h), h⟩ u(h)) + f(h), (h − a mean(h)) + f(h).
    """
    if join.skip is None or join.kind not in KEEPING:
        return join
    images = {branch.node for branch in join.branches if _is_along(flow, branch.node, join.fork)}
    others = [branch.region for branch in join.branches if branch.node not in images]
    for add in total.adds[:-1]:
        if {*flattened(flow, add, ()).operands} == {join.skip.exit, *images} and images and others:
            opened = flattened(flow, total.node, {add, *total.operands})
            whole = flow.region(join.fork, add)
            if whole.affine:
                return join_over(opened, "projection", whole, join.fork, others)
            held = held_image(flow, add, (join.fork,)) or ()
            return gated_over(flow, opened, join.fork, add, held, others)
    return join


def is_centred(flow: Dataflow, join: Join) -> bool:
    """All that a join adds is a mean of its fork over places or features, taken away from each: with the weights
    held, that is a map, as in a norm, whatever the weights are made of.
    """
    return (
        join.kind in KEEPING
        and bool(join.branches)
        and all(
            packet_of(branch.node) is aten.neg
            and not fills(branch.node, join.node)
            and _is_along(flow, branch.node, join.fork)
            for branch in join.branches
        )
    )


def with_one_layer(flow: Dataflow, total: Sum, join: Join) -> Join:
    """The join with one branch for what a sum of its own makes of one value that a layer gave, by factors and means:
    b (f − mean f) + a mean f.
    """
    others = {branch.node for branch in join.branches if branch.region.entry is join.fork}
    for add in reversed(total.adds[:-1]):
        made = {*flattened(flow, add, total.operands).operands}
        if not made <= others or add not in flow:
            continue
        given = flow.bottleneck(add, join.fork)
        while given in total.adds:
            given = flow.bottleneck(given, join.fork)
        if given is None or given in (join.fork, *made) or not any(map(mixes, flow.between(join.fork, given))):
            continue
        if held_image(flow, add, (given,)) is None:
            continue
        total = flattened(flow, total.node, {add, *total.operands})
        others -= made
        kept = [branch for branch in join.branches if branch.node not in made]
        branches = (*kept, branch_over(flow.region(join.fork, add)))
        join = replace(join, branches=branches, operands=total.operands, adds=total.adds)
    return join


def _is_along(flow: Dataflow, node: fx.Node, fork: fx.Node) -> bool:
    """A value is a sum over places or features of a fork with factors, put back along a direction, or a mean: affine in
    the fork with these held.
    """
    held = held_image(flow, node, (fork,))
    return held is not None and any(sums(one) or packet_of(one) is aten.mean for one in flow.between(fork, node, held))


def from_before_gate(flow: Dataflow, join: Join, by_node: Found) -> Join:
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
            return gated_over(flow, total, fork, join.skip.exit, held, regions)
    return join
