"""Lines of joins: which leads to which, and where on a line a sum forks that reads several points of it.

Of the operands of a sum that could be its skip, one is where the stream runs (`preference`, `is_earlier`). Where a line
of other joins leads on from that fork to another operand, the stream runs there, and what is read of earlier points is
added as long skips (`latest`, `along`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from torch import fx

from jetgraph.algebra.outline import SkipKind
from jetgraph.export.factors import is_nothing
from jetgraph.jets.registry import nodes_in, readers
from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.images import RANK, affine_history, affine_past, factored, same_size, widest
from jetgraph.structure.kinds import branch_kind
from jetgraph.structure.levels import Level, level
from jetgraph.structure.operators import aten, is_mixing, mixes, packet_of
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


def line_to(flow: Dataflow, point: fx.Node, by_node: Found) -> list[fx.Node]:
    """The points of a stream up to one that a join has led to, the earliest first."""
    points, at = [point], by_node.get(point)
    while at is not None:
        points.append(at.fork)
        at = gate(flow, at.fork, by_node)
        if at is not None and at.node is not points[-1]:
            points.append(at.node)
    return points[::-1]


def weighing(flow: Dataflow, operand: fx.Node, points: Sequence[fx.Node]) -> Region | None:
    """An operand as an affine image of one of some points, with factors held that are made of later ones as well."""
    for node, factors in factored(flow, operand):
        if node in points:
            region = flow.region(node, operand, [factor for factor in factors if flow.depends(factor, points[0])])
            return region if region.affine else None
    return None


# Long skips


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


def along(flow: Dataflow, join: Join, by_node: Found) -> Join:
    """The join with its fork at the end of the line of joins whose points it reads.

    Such are the sum of what each layer of a WaveNet gives to the output, and one over projections of layers. The points
    are those of a stream, which goes on where it has the plainest skips; the sum reads the last one, and by long skips
    the others.
    """
    operands = [operand for operand in join.operands if operand in flow]
    fork = join.fork
    before = {one: end_read(flow, one, by_node, fork if flow.depends(one, fork) else None) for one in operands}
    lines = [_line(flow, join.fork, end, by_node) for end in before.values() if end is not None]
    plainer = [line for line in lines if line and _is_plainer(line[0], join)]
    line = max(plainer or lines, key=len, default=())
    twice = len(before) < len(operands)
    if not line or twice:
        return join
    ends = [operand for operand, end in before.items() if end is line[-1]]
    again = _is_given_again(flow, join, line, ends)
    summed = (
        plainer or again or _puts_beside(flow, join, line, ends) or _reads_several(flow, join, line, before, by_node)
    )
    summed = summed and leads_only_to(line[-1].node, join)
    if not summed and not _is_level(flow, join, line, ends, by_node):
        return join
    start = join.fork if flow.depends(line[0].fork, join.fork) else line[0].fork
    # A norm at the end of a round is a map of the stream.
    mapped = ends if again and not any(mixes(node) for node in flow.between(line[-1].node, ends[0])) else []
    points = [start, *(one.node for one in line), *mapped]
    if not read_each(flow, join.operands, points):
        return join  # All operands are made of what several points have.
    moved = behind(flow, join, points)
    # What is made of several points at once would pass for a constant, and so would the fork beside another stream.
    beside = not flow.depends(join.fork, start) and not flow.depends(start, join.fork)
    lost = (start, join.fork) if beside else (start,)
    mixed = any(flow.depends(operand, at) for operand in moved.injections if operand in flow for at in lost)
    goes_on = summed or moved.skip is not None or _comes_back(flow, line[-1].node, ends)
    return moved if goes_on and not mixed else join


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


def is_given(flow: Dataflow, join: Join, by_node: Found) -> bool:
    """What a join adds to an image of its fork is made of another stream, which starts without that and reads it in
    branches alone: the fork is no stream, but a condition that each layer of the other one is given.
    """
    if join.kind == "concat":
        return all(_is_scaled_beside(flow, branch.node, join.fork) for branch in join.branches)
    for branch in join.branches:
        # What the fork scales, as in h ⊙ σ(g(c)) + P c, is given it as well; not so the values that queries weigh which
        # are added themselves, be it to a part of the places.
        learned = join.kind == "projection" and join.skip is not None and any(map(mixes, join.skip.nodes))
        scaled = [node for node, _ in factored(flow, branch.node)] if learned or join.kind == "gated" else []
        # A number for many places, such as the weight of an edge, is no stream.
        scaled = [node for node in scaled if same_size(node, branch.node)]
        starts = (_start(flow, node, join.fork, by_node) for node in (branch.node, *scaled))
        start = next((node for node in starts if node is not None), None)
        if start is None or flow.depends(start, join.fork) or flow.depends(join.fork, start):
            return False
    return True


def is_given_without_skip(flow: Dataflow, join: Join, by_node: Found) -> bool:
    """What a join without a skip forks from is a condition: an operand is a stream that starts without it and is given
    it by layers, the last of which is this one, as in h ⊙ s(c) + f(c), or starts with it and other values side by side;
    and f(c) has no joins of its own.
    """
    streams = [branch.node for branch in join.branches if _starts_apart(flow, branch.node, join.fork, by_node)]
    others = [branch.region for branch in join.branches if branch.node not in streams]
    return bool(streams) and all(by_node.keys().isdisjoint(region.nodes) for region in others)


def _starts_apart(flow: Dataflow, node: fx.Node, of: fx.Node, by_node: Found) -> bool:
    """A value, or what it is a multiple of, is of a stream that starts with more than is made of another value, which
    no join has made.
    """
    values = [node, *(one for one, _ in factored(flow, node))]
    streams = [one for one in values if flow.depends(one, of) or gate(flow, one, by_node) is not None]
    starts = (_start(flow, one, of, by_node) for one in streams)
    found = [start for start in starts if start is not None and not flow.depends(of, start)]
    first = not any(flow.depends(of, end) for end in by_node)
    return any(not flow.depends(start, of) or (first and _is_beside_others(flow, start, of)) for start in found)


def _is_beside_others(flow: Dataflow, node: fx.Node, of: fx.Node) -> bool:
    """On the way from one value to another, what is made of it is put beside something else."""
    joined = (one for one in flow.between(of, node) if packet_of(one) is aten.cat)
    return any(not flow.depends(parent, of) for one in joined for parent in flow.parents[one])


def _is_scaled_beside(flow: Dataflow, node: fx.Node, fork: fx.Node) -> bool:
    """What is put beside a fork is another value, of which that says no more than a factor for each number: as a
    recurrent unit reads cat(σ(g(h, x)) ⊙ h, x), where x is what its step is given, and h its state. A value that the
    fork is made of is an earlier point, as the level beside what comes back from below it.
    """
    return any(
        not (flow.depends(value, fork) or flow.depends(fork, value))
        and same_size(value, node)
        and not any(map(mixes, flow.between(value, node, held)))
        for value, held in factored(flow, node)
    )


def _start(flow: Dataflow, node: fx.Node, of: fx.Node, by_node: Found) -> fx.Node | None:
    """Where the stream of a value starts, as far as it can be followed by what another value alone does not make: to a
    value that does not depend on that, or to a fork that does; None where the value is made of that alone.
    """
    if not flow.depends(node, of):
        return node
    end = gate(flow, node, by_node, of)
    if end is None or end.node is of:
        return None
    while flow.depends(end.fork, of):
        above = [
            other
            for other in by_node
            if flow.depends(end.fork, other) and other is not of and not flow.depends(of, other)
        ]
        if not above:
            return end.fork
        end = by_node[max(above, key=flow.positions.__getitem__)]
    return end.fork


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


def behind(flow: Dataflow, join: Join, points: Sequence[fx.Node]) -> Join:
    """The join with its fork at the last of some points that it reads: what is affine in that is the skip, if there is
    such an operand, and what reads one other point alone is a branch too.
    """
    regions = list(read_each(flow, join.operands, points).values())
    fork = max((region.entry for region in regions), key=flow.positions.__getitem__)
    skip = next((region for region in regions if region.entry is fork and region.affine), None)
    kind: SkipKind = "none"
    if skip is not None:
        past = dict(affine_past(flow, skip.exit))
        kind = "concat" if join.kind == "concat" else "gated" if skip.held else past.get(skip.entry, "projection")
    branches = sorted((region for region in regions if region is not skip), key=lambda one: one.entry is not fork)
    return replace(
        join,
        kind=kind,
        fork=fork,
        skip=skip,
        branches=tuple(map(branch_over, branches)),
        injections=without(join.operands, skip and skip.exit, [region.exit for region in branches]),
        gates=tuple(flow.region(fork, factor) for factor in (skip.held if skip else ()) if flow.depends(factor, fork)),
    )


def read_each(
    flow: Dataflow, operands: Iterable[fx.Node], points: Sequence[fx.Node], *, weighed: bool = False
) -> dict[fx.Node, Region]:
    """Those operands that `read_alone` reads, with what they read.

    Where points are weighed, none is read otherwise because its own weight is made of nothing else: `weighed` says so
    of what stands beside these operands.
    """
    read = {one: region for one in operands if (region := read_alone(flow, one, points)) is not None}
    if weighed or any(region.held for region in read.values()):
        return {one: region if region.affine else _weighed(flow, region) or region for one, region in read.items()}
    return read


def _weighed(flow: Dataflow, region: Region) -> Region | None:
    """The region as a multiple of its entry by factors that are held; None where it is none."""
    for node, factors in factored(flow, region.exit):
        if node is region.entry:
            whole = flow.region(node, region.exit, [factor for factor in factors if flow.depends(factor, node)])
            return whole if whole.affine else None
    return None


def read_alone(flow: Dataflow, operand: fx.Node, points: Sequence[fx.Node]) -> Region | None:
    """An operand as a function of the latest point that it depends on, if it is one of that alone; or as an affine
    image of one, with factors held that others are made into as well.
    """
    region = reading(flow, operand, points)
    if region is not None:
        return region
    for node, factors in factored(flow, operand):
        image = reading(flow, node, points)
        # Of two values of one size, either could be the factor; one number for many places is no point of a stream.
        alike = [factor for factor in factors if same_size(factor, node)]
        if image is None or not image.affine or any(_is_image(flow, factor, points) for factor in alike):
            continue
        # Values that a layer makes, and sums of these over places by weights made of data, are an attention's.
        if any(map(mixes, image.nodes)) and any(map(is_mixing, flow.between(node, operand, factors))):
            continue
        whole = flow.region(image.entry, operand, [factor for factor in factors if flow.depends(factor, points[0])])
        if whole.affine and not any(flow.depends(node, points[0]) for node in whole.side if node not in whole.held):
            return whole
    return None


def _is_image(flow: Dataflow, node: fx.Node, points: Sequence[fx.Node]) -> bool:
    """The node is as good an image of a point as what it multiplies."""
    image = reading(flow, node, points)
    return image is not None and image.affine


def reading(flow: Dataflow, operand: fx.Node, points: Sequence[fx.Node]) -> Region | None:
    """An operand as a function of the latest point that it depends on, if it is one of that point alone."""
    point = next((point for point in reversed(points) if flow.depends(operand, point)), None)
    region = None if point is None else flow.region(point, operand)
    # What reads other points of the stream besides is no function of one.
    return None if region is None or any(flow.depends(node, points[0]) for node in region.side) else region
