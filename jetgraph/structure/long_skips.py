"""Sums that read several points of a line: the join forks at the last of these, and reads the others by long skips.

Of the operands of a sum that could be its skip, one is where the stream runs. Where a line of other joins leads on from
that fork to another operand, the stream runs there, and what is read of earlier points is added as long skips
(`latest`, `along`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from jetgraph.algebra.outline import SkipKind
from jetgraph.export.factors import is_nothing
from jetgraph.jets.registry import nodes_in, readers
from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.images import RANK, affine_history, affine_past, factored, same_size, widest
from jetgraph.structure.levels import Level, level
from jetgraph.structure.lines import Found, branch_over, depending, gate, is_point, leads_only_to, point_above, without
from jetgraph.structure.operators import aten, mixes, packet_of
from jetgraph.structure.readings import behind, read_each, reading
from jetgraph.structure.regions import Join, Region


def latest(flow: Dataflow, join: Join, by_node: Found) -> Join:
    """The join with its fork at the latest point of the stream that it adds an affine image of.

    In cat(h_4, h_1), where skips lead from h_1 on to h_4, the stream is h_4, and h_1 is read by a long skip.
    """
    latest: tuple[fx.Node, SkipKind, fx.Node] | None = None
    for operand in (branch.node for branch in join.branches):
        # The nearest join that the operand is an image of; further ones are earlier points of the same stream. Side by
        # side, a map of a point is where the stream is too; added to that, it is made by a branch.
        if join.concatenates:
            node, kind = point_above(flow, operand, by_node)
        else:
            node, kind = next((past for past in affine_past(flow, operand) if past[0] in by_node), (None, "identity"))
        if node is None:
            continue
        after = flow.positions[latest[0] if latest else join.fork]
        if flow.positions[node] > after and _skips(flow, join, node, kind, by_node):
            latest = node, kind, operand
    if latest is None:
        return join
    fork, kind, skip = latest
    others = [operand for operand in join.operands if operand in flow and operand is not skip]
    dependent = depending(flow, others, fork)
    return replace(
        join,
        kind=join.kind if join.kind == "concat" else kind,
        fork=fork,
        skip=flow.region(fork, skip),
        branches=tuple(branch_over(flow.region(fork, other)) for other in dependent),
        injections=without(join.operands, skip, dependent),
    )


def _skips(flow: Dataflow, join: Join, end: fx.Node, kind: SkipKind, by_node: Found) -> bool:
    """Skips alone lead from the fork of a join to another value of the same stream, and on to an operand, which is an
    image of that of this kind.

    They are identities, scales and gates: a branch that projects the stream, or projects what its own joins have made
    of it, is nested. Only where a concatenation skips several joins may they be projections, as from level to level of
    a U-net.
    """
    node, start, joins = end, join.fork, 0
    while flow.positions[node] > flow.positions[start]:
        past = affine_past(flow, node)
        reached = next((pair for pair in past if pair[0] in by_node or pair[0] is start), None)
        if reached is None and join.concatenates and is_point(flow, node, by_node):
            mapped = gate(flow, node, by_node)
            reached = None if mapped is None else (mapped.node, kind)
        if reached is None:
            return False
        node, image = reached
        kind = widest(kind, image)
        if node is not start:
            inner = by_node[node]
            joins += 1
            if inner.skip is None:
                return False
            kind = widest(kind, "scaled" if inner.kind == "gated" else inner.kind)
            node = inner.fork
    same = RANK[kind] <= RANK["scaled"] or (join.kind == "concat" and joins > 1)
    return node is start and same


# Sums of several points


@dataclass(frozen=True, eq=False)
class _Read:
    """A line of joins whose points a sum reads."""

    line: tuple[Join, ...]
    before: Mapping[fx.Node, Join | None]
    """By operand of the sum, the join that it is made of."""
    plainer: bool
    """The stream runs on through plainer skips there than that of the sum."""

    @property
    def last(self) -> fx.Node:
        """The end of the line."""
        return self.line[-1].node

    @property
    def ends(self) -> list[fx.Node]:
        """The operands that are made of it."""
        return [operand for operand, end in self.before.items() if end is self.line[-1]]


def along(flow: Dataflow, join: Join, by_node: Found) -> Join:
    """The join with its fork at the end of the line of joins whose points it reads.

    Such are the sum of what each layer of a WaveNet gives to the output, and one over projections of layers. The points
    are those of a stream, which goes on where it has the plainest skips; the sum reads the last one, and by long skips
    the others.
    """
    read = _line_read(flow, join, by_node)
    if read is None:
        return join
    again = _is_given_again(flow, join, read.line, read.ends)
    summed = (
        read.plainer
        or again
        or _puts_beside(flow, join, read.line, read.ends)
        or _reads_several(flow, join, read.line, read.before, by_node)
    ) and leads_only_to(read.last, join)
    if not summed and not _is_level(flow, join, read.line, read.ends, by_node):
        return join
    moved = _behind_line(flow, join, read, again)
    if moved is None:
        return join
    return moved if summed or moved.skip is not None or _comes_back(flow, read.last, read.ends) else join


def _line_read(flow: Dataflow, join: Join, by_node: Found) -> _Read | None:
    """The longest line of joins that leads to an operand of a sum, of those with plainer skips if there are any; None
    where there is none, or something is added twice.
    """
    operands = [operand for operand in join.operands if operand in flow]
    fork = join.fork
    before = {one: end_read(flow, one, by_node, fork if flow.depends(one, fork) else None) for one in operands}
    lines = [_line(flow, fork, end, by_node) for end in before.values() if end is not None]
    plainer = [line for line in lines if line and _is_plainer(line[0], join)]
    line = max(plainer or lines, key=len, default=())
    return _Read(line, before, bool(plainer)) if line and len(before) == len(operands) else None


def _behind_line(flow: Dataflow, join: Join, read: _Read, again: bool) -> Join | None:
    """The join with its fork at the last point of a line that it reads; None where something is made of several points
    at once, which would pass for a constant.
    """
    first = read.line[0]
    start = join.fork if flow.depends(first.fork, join.fork) else first.fork
    # A norm at the end of a round is a map of the stream.
    mapped = read.ends if again and not any(map(mixes, flow.between(read.last, read.ends[0]))) else []
    points = [start, *(one.node for one in read.line), *mapped]
    if not read_each(flow, join.operands, points):
        return None
    moved = behind(flow, join, points)
    # The fork beside another stream would pass for a constant too.
    beside = not flow.depends(join.fork, start) and not flow.depends(start, join.fork)
    lost = (start, join.fork) if beside else (start,)
    mixed = any(flow.depends(operand, at) for operand in moved.injections if operand in flow for at in lost)
    return None if mixed else moved


def _reads_several(
    flow: Dataflow, join: Join, line: Sequence[Join], before: Mapping[fx.Node, Join | None], by_node: Found
) -> bool:
    """Three points are read, or two of the line and its start; `before` has by operand the join that it is made of."""
    points = [join.fork, *(one.node for one in line)]
    # Joins beside the line are nested in branches, and what reads several points, or another stream, reads none.
    read = {end for end in before.values() if end and (end.node in points or not flow.depends(end.node, join.fork))}
    source = _source(join.fork, by_node)
    images = [reading(flow, operand, [source]) for operand, end in before.items() if end is None]
    if len(read) + any(region is not None and region.affine for region in images) > 2:
        return True
    # Two points of the line that operands read, one of which leads to the other, are in no branch of either.
    on_line = {end.node for end in before.values() if end is not None}.intersection(points[1:])
    return len(on_line) > 1 and any(region is not None for region in images)


def end_read(flow: Dataflow, operand: fx.Node, by_node: Found, of: fx.Node | None = None) -> Join | None:
    """The join whose value alone an operand is made of, or is an affine image of up to factors."""
    end = gate(flow, operand, by_node, of)
    if end is not None:
        return end
    for node, _ in factored(flow, operand):
        # A norm makes the fork a multiple of what is above it.
        if of is not None and (node is of or not flow.depends(node, of)):
            continue
        end = gate(flow, node, by_node, of)
        if end is not None and flow.region(end.node, node).affine:
            return end
    return None


def _source(point: fx.Node, by_node: Found) -> fx.Node:
    """Where the stream of a point starts."""
    while point in by_node:
        point = by_node[point].fork
    return point


def is_beside(flow: Dataflow, join: Join, by_node: Found) -> bool:
    """What a join adds from elsewhere is where the stream is: a line of joins leads there from the point that the fork
    of this one is made of, as where a head fuses what it has made of several layers.
    """
    point = gate(flow, join.fork, by_node)
    if point is None or point.node is join.fork:
        return False
    ends = [gate(flow, operand, by_node) for operand in join.injections if operand in flow]
    lines = [_line(flow, point.node, end, by_node) for end in ends if end is not None]
    return any(line[0].fork is point.node and leads_only_to(line[-1].node, join) for line in lines if line)


def _line(flow: Dataflow, start: fx.Node, end: Join, by_node: Found) -> tuple[Join, ...]:
    """The joins that lead to one, each forking from the one before it, as far as they depend on a value above them."""
    line: list[Join] = []
    at: Join | None = end
    while at is not None and at.node is not start and flow.depends(at.node, start):
        line.append(at)
        at = gate(flow, at.fork, by_node, start)
    return tuple(reversed(line))


def _is_plainer(first: Join, join: Join) -> bool:
    """The stream runs on through another join, out of whose branch this one reads: it keeps the stream as it is, and
    this one does not. Where nothing is shared, as in P h + g(h + f(h)), the join is nested in the branch g.
    """
    within = any(join.fork in region.node_set for region in first.inside)
    return within and first.kind in ("identity", "scaled", "gated") and join.kind in ("projection", "none")


def _is_given_again(flow: Dataflow, join: Join, line: Sequence[Join], ends: Sequence[fx.Node]) -> bool:
    """What is put beside the end of a line, or added to it, is so at other points of it too, or read after that: a loop
    is given it in each of its rounds, and the line is where the stream is, which comes back by an affine way or a map.
    """
    if join.skip is None or join.kind not in ("identity", "scaled", "concat"):
        return False
    if join.concatenates and join.skip.exit is not join.fork:
        return False
    if not join.concatenates and not _comes_back(flow, line[-1].node, ends):
        return False
    before = any(_adds(flow, one, join.fork) and (join.concatenates or one.fork is not join.fork) for one in line)
    # What grows, and is projected back, is a dense block: code of a branch.
    if not before and not join.concatenates and not same_size(line[-1].node, join.fork):
        return False
    return before or any(flow.positions.get(user, 0) > flow.positions[join.node] for user in readers(join.fork))


def _adds(flow: Dataflow, join: Join, value: fx.Node) -> bool:
    """A join has a value, up to a factor, among its operands."""
    images = (image for operand in join.operands if operand in flow for image in affine_history(flow, operand))
    return any(node is value and RANK[kind] <= RANK["scaled"] for node, kind in images)


def _is_level(flow: Dataflow, join: Join, line: Sequence[Join], ends: Sequence[fx.Node], by_node: Found) -> bool:
    """The line works at another number of places than what is around it, as the next level of a pyramid: what comes
    back from there is where the stream is, and the fork is an earlier point of it. What takes the place of a part of
    the fork, as a class token that has attended, is no level.
    """
    if _is_for_part(flow, join, line[-1].node, ends):
        return False
    beside = [join.skip] if join.skip else [region for region in join.inside if line[-1].node not in region.node_set]
    around = {above} if (above := _level_above(flow, join.fork)) is not None else set()
    # A state may have pieces of different levels, as nodes and edges.
    before = by_node[join.fork].branches if join.fork in by_node else ()
    around |= {level(nodes[-1]) for branch in before if (nodes := _working(branch.region))}
    around |= {
        end for nodes in map(_working, beside) if nodes for end in (level(nodes[0], before=True), level(nodes[-1]))
    }
    for one in line:
        # One value for many places, such as a maximum over a set, is no level of the line.
        made = (branch for branch in one.branches if same_size(branch.node, one.node))
        below = {level(nodes[-1]) for branch in made if (nodes := _working(branch.region))}
        if around and below and around.isdisjoint(below):
            return True
    return False


def _is_for_part(flow: Dataflow, join: Join, end: fx.Node, operands: Sequence[fx.Node]) -> bool:
    """What is made of the end of a line takes the place of a part of the fork, or is added to one."""
    if not same_size(join.fork, join.node):
        return False
    way = (node for operand in operands for node in flow.between(end, operand))
    padded = (packet_of(node) is aten.cat and any(map(is_nothing, nodes_in(node.args[:1]))) for node in way)
    return join.concatenates or any(padded)


def _puts_beside(flow: Dataflow, join: Join, line: Sequence[Join], ends: Sequence[fx.Node]) -> bool:
    """The line puts earlier points of the stream beside the fork, and comes back by an affine way, on which they would
    pass for constants.
    """
    earlier = (node for one in line if one.concatenates for node in one.injections if node in flow)
    return any(flow.depends(join.fork, node) for node in earlier) and all(
        flow.region(line[-1].node, end).affine for end in ends
    )


def _comes_back(flow: Dataflow, end: fx.Node, operands: Sequence[fx.Node]) -> bool:
    """The stream comes back from its end in some operand: by an affine way, maps that mix nothing before it. By another
    way nothing goes on, and the joins are nested in a branch.
    """
    for operand in operands:
        ways = [region for node in (end, *flow.between(end, operand)) if (region := flow.region(node, operand)).affine]
        if ways and not any(map(mixes, flow.between(end, ways[0].entry))):
            return True
    return False


def _working(region: Region) -> list[fx.Node]:
    """The nodes of a region that work at places."""
    return [node for node in region.nodes if level(node) is not None]


def _level_above(flow: Dataflow, node: fx.Node) -> Level | None:
    """The places at which a value was made."""
    above = [node]
    for one in above:
        if (found := level(one)) is not None:
            return found
        above += [parent for parent in flow.carriers[one] if parent not in above]
    return None
