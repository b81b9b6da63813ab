"""Joins whose branches do not read what is skipped: over a point and what is made of earlier ones, h₂ = a h₁ + f(h₀),
and over branches alone, f(h) + g(h).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from jetgraph.jets.registry import is_affine
from jetgraph.structure.conditions import is_given_without_skip
from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.images import affine_past, held_image, same_size
from jetgraph.structure.lines import Found, gate, is_point, line_to, point_above
from jetgraph.structure.long_skips import along, end_read
from jetgraph.structure.operators import aten, mixes, packet_of
from jetgraph.structure.readings import behind, reading
from jetgraph.structure.regions import Join
from jetgraph.structure.sums import KEEPING, Sum, bare, flattened, flowing_operands, is_sum, join_over


def points_passed(flow: Dataflow, join: Join, by_node: Found) -> list[fx.Node]:
    """The ends of joins by which a stream goes on between a fork and what is skipped of it, by affine branches."""
    if join.kind != "projection" or join.skip is None:
        return []
    way = (node for node, _ in affine_past(flow, join.skip.exit) if flow.positions[node] > flow.positions[join.fork])
    return [node for node in way if node in by_node and by_node[node].fork is join.fork]


def behind_points(flow: Dataflow, node: fx.Node, by_node: Found) -> Join | None:
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
        join = join_over(total, kind, flow.region(point, skip), point, regions)
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


def without_skip(flow: Dataflow, total: Sum, by_node: Found) -> Join | None:
    """The join over branches alone, as a bottleneck's beside a shortcut with a norm: f(h) + g(h).

    It is one where everything on its way from the input to the output passes the fork, and then the sum: inside a
    branch such a sum is no more than the branch's code. It is one too where the stream leads from the fork to one of
    its operands: then it forks at the end of that, and the others read an earlier point.
    """
    flowing = flowing_operands(flow, total)
    if len(flowing) < 2:
        return None
    of = _stream_input(flow, total, flowing, by_node)
    outermost = flow.dominates(total.node, flow.traced.output, of)
    if not outermost and len({end_read(flow, operand, by_node) for operand in flowing}) == 1:
        return None
    join = _of_branches(flow, total, _met(flow, total, of), by_node)
    if join is not None and is_given_without_skip(flow, join, by_node):
        return None
    moved = join and along(flow, join, by_node)
    return moved if outermost or moved is not join else None


def beside_line(flow: Dataflow, total: Sum, by_node: Found) -> Join | None:
    """The join over a concatenation of where a line of joins has come to and what other ways make of the value that the
    line starts from: cat(m + f(m), g(h)) with m made of h. Without a line it is code.

    Everything on its way from the input to the output passes that value, and then the concatenation.
    """
    flowing = flowing_operands(flow, total)
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
        added = packet_of(node) is aten.add and is_sum(node) and node not in by_node
        if not added or not flow.dominates(node, exit, entry):
            continue
        total = flattened(flow, node, by_node)
        join = (
            _of_branches(flow, total, _met(flow, total, entry), by_node)
            if len(flowing_operands(flow, total)) > 1
            else None
        )
        found += [join] if join is not None else []
    return found


def _of_branches(flow: Dataflow, total: Sum, fork: fx.Node | None, by_node: Found) -> Join | None:
    """The join of what is made of a fork, if each operand is a layer over that."""
    flowing = flowing_operands(flow, total)
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
    return join_over(total, "none", None, fork, regions)


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
    reads this one, or is read here, there are two: they meet in a head, or this one is a condition of the other.
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
        and not any(_is_other_stream(flow, start, join, fork) for join in above)
    ]
    return max(through, key=lambda one: one[:2], default=(False, False, None))[2]


def _is_other_stream(flow: Dataflow, start: fx.Node, join: Join, fork: fx.Node) -> bool:
    """Whether a join belongs to a stream that starts elsewhere and reads this one, or that is read above the fork."""
    reads = flow.depends(join.node, start) and not flow.depends(join.fork, start)
    return reads or (flow.depends(fork, join.node) and not flow.depends(join.node, start))
