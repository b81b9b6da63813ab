"""Streams that read each other → one stream of all of them, side by side.

In a reversible network y₁ = x₁ + f(x₂), y₂ = x₂ + g(y₁), and in hyper-connections that are kept as a list of tensors,
no tensor carries the whole state from layer to layer: several do. They are written as pieces of one,

    H = cat(x₁, x₂),    H' = H + cat(f(H[…]), 0),    H'' = H' + cat(0, g(H'[…])),

a plain stream, on which joins, counts, terms and lenses are what they are elsewhere. Values stay as they are.

cut    the values that are made by one place of the graph and read after it: a *state* if all of them go on;
step   from one state to the next: each value of the next is a sum of an affine image of the state (its skip), and of
       what is made of the state otherwise (branches).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import permutations
from operator import or_

from torch import fx

from jetgraph.jets.registry import nodes_in
from jetgraph.structure.dataflow import Dataflow, dataflow
from jetgraph.structure.images import held_image
from jetgraph.structure.joins import bare, find_joins, find_sums, flattened, is_inside, only_steers, with_depth
from jetgraph.structure.lines import gates
from jetgraph.structure.operators import IDENTITY, SCALES, aten, is_float_tensor, is_mixing, mixes, packet_of
from jetgraph.structure.pieces import Lying, Pieces, cleaned, copy_of, lying
from jetgraph.structure.reach import above
from jetgraph.structure.regions import Join
from jetgraph.structure.streams import chains
from jetgraph.tracing.traced import Traced

Cuts = Mapping[fx.Node, tuple[fx.Node, ...]]
"""By node, what is made up to there and read later; in execution order."""


@dataclass(frozen=True, eq=False)
class _Next:
    """A value of a state, as a sum over the state before it."""

    node: fx.Node
    skip: tuple[fx.Node, ...]
    """Affine images of values of the state before, where factors are held; the value itself where it stays."""
    branches: tuple[fx.Node, ...]
    injections: tuple[fx.Node, ...]
    homes: tuple[int, ...]
    """Which values of the state before these are images of."""
    gates: tuple[fx.Node, ...] = ()
    """Factors that are made of the state, with which they are."""


@dataclass(frozen=True, eq=False)
class _Step:
    at: fx.Node
    """The node at which the next state is there."""
    nexts: tuple[_Next, ...]

    @property
    def state(self) -> tuple[fx.Node, ...]:
        return tuple(each.node for each in self.nexts)


@dataclass(frozen=True, eq=False)
class _Walk:
    """A state and the steps from it."""

    at: fx.Node
    start: tuple[fx.Node, ...]
    steps: tuple[_Step, ...]

    @property
    def values(self) -> tuple[fx.Node, ...]:
        """All that is to lie side by side."""
        return (*self.start, *(node for step in self.steps for node in step.state))


def side_by_side(flow: Dataflow, joins: Sequence[Join]) -> Traced | None:
    """The program with streams that read each other as one; None where there are none, or none that fit."""
    group = _together(flow, joins)
    if not group:
        return None
    walks = _walks(flow, group)
    grown = _concatenations(join for join in group if join.concatenates)
    if grown and not _hold(flow, group, walks):
        summed = dataflow(_as_sums(flow, grown))
        together = side_by_side(summed, find_joins(summed))
        if together is not None:
            return together
    if _left_out(group, walks):
        later = dataflow(_in_rounds(flow, group))
        again = _together(later, find_joins(later))
        others = _walks(later, again) if len(again) == len(group) else []
        if others and _left_out(again, others) < _left_out(group, walks):
            flow, walks = later, others
    if not walks:
        return None
    graph, copied = copy_of(flow.traced.graph)
    for walk, lies in walks:
        _Writer(flow, graph, copied, lies).write(walk)
    return replace(flow.traced, graph=cleaned(graph))


# What grows


def _concatenations(joins: Iterable[Join]) -> list[fx.Node]:
    """The concatenations that these joins are, and those from which they go on, the first ones first."""
    found = dict.fromkeys(node for join in joins for node in (join.fork, join.node) if packet_of(node) is aten.cat)
    return list(found)


def _hold(flow: Dataflow, group: Iterable[Join], walks: Sequence[tuple[_Walk, Lying]]) -> bool:
    """The joins of a group make values of one walk's states, but for concatenations that layers of it read, or what
    comes after it does: pieces of a state lie side by side there, and nothing grows.
    """
    if len(walks) != 1:
        return False
    ((walk, _),) = walks
    states = [walk.start, *(step.state for step in walk.steps)]
    read = set[fx.Node]()
    for state, step in zip(states, walk.steps, strict=False):
        read.update(_way(flow, state, [branch for each in step.nexts for branch in each.branches]))
    last = walk.steps[-1].at
    return all(
        join.node in walk.values or (join.concatenates and (join.node in read or flow.depends(join.node, last)))
        for join in group
    )


def _as_sums(flow: Dataflow, nodes: Sequence[fx.Node]) -> Traced:
    """The program with concatenations as sums of their operands, each between zeros: so a stream that grows goes on as
    others do.
    """
    graph, copied = copy_of(flow.traced.graph)
    for node in map(copied.__getitem__, nodes):
        operands = list(nodes_in(node.args[:1]))
        dim = node.args[1] if len(node.args) > 1 else 0
        pieces = Pieces(flow, graph, copied, Lying(dim % len(node.meta["shape"])))  # type: ignore[operator]
        with graph.inserting_after(node):
            last = graph.call_function(aten.alias.default, (node,))
        with graph.inserting_before(last):
            zeros = [pieces.call(aten.zeros_like.default, operand) for operand in operands]
            laid = [
                [each if other is place else zero for other, zero in enumerate(zeros)]
                for place, each in enumerate(operands)
            ]
            whole = pieces.sum([pieces.cat(each) for each in laid])
        whole.meta = dict(node.meta)
        node.replace_all_uses_with(whole)
    return replace(flow.traced, graph=cleaned(graph))


# What waits


def _in_rounds(flow: Dataflow, group: Iterable[Join]) -> Traced:
    """The program with its sums in rounds, of which each is made of the one before, after where all streams start; and
    with nothing before a sum that neither it nor an earlier one is made of. Where the code takes one stream through its
    norm, or through a whole layer, before it adds to the other, no place has both sums otherwise.
    """
    ends = flow.ordered(join.node for join in group)
    rounds = dict.fromkeys(flow.ordered(_starts(flow, group)), 0)
    for end in ends:
        rounds[end] = 1 + max((number for before, number in rounds.items() if flow.depends(end, before)), default=0)
    order = dict.fromkeys(node for node in flow.nodes if node.op == "placeholder")
    for end in sorted(rounds, key=rounds.__getitem__):
        order.update(dict.fromkeys(flow.ordered(above([end], lambda read: read not in order))))
    order.update(dict.fromkeys(flow.nodes))
    graph, copied = copy_of(flow.traced.graph)
    output = next(iter(reversed(graph.nodes)))
    for node in order:
        output.prepend(copied[node])
    return replace(flow.traced, graph=graph)


# Finding them


def _together(flow: Dataflow, joins: Sequence[Join]) -> tuple[Join, ...]:
    """The joins of streams that read each other, if there are any."""
    group = _reading_each_other(flow, joins)
    if not group and len(joins) > 1:
        joins = _with_values_of_branches(flow, joins)
        group = _reading_each_other(flow, joins) or _crossing(flow, joins)
    if not group:
        return ()
    # The last state may be made by joins of which none reads another one, and go into a sum of its values.
    ends = {join.node: join for join in joins}
    for join in joins:
        known = {other.node for other in group}
        read = gates(flow, join.fork, ends) if join.depth == 0 else set()
        mixes_them = len(read) > 1 or (join.kind == "gated" and join.fork in known)
        if join not in group and mixes_them and read <= known:
            group += (join,)
    return group


def _crossing(flow: Dataflow, joins: Sequence[Join]) -> tuple[Join, ...]:
    """Joins, and sums beyond them, of which each adds to one what is made of others that add to each other in turn: in
    x, y ← x + f(y), y + g(x) no later sum has a fork that its branch reads.
    """
    ends = {join.node: join for join in joins if not join.concatenates}
    crossing: dict[fx.Node, tuple[fx.Node, set[fx.Node]]] = {}
    for node in flow.nodes:
        if node in ends or node not in flow or not _is_whole_sum(node):
            continue
        operands = [operand for operand in flattened(flow, node, ()).operands if operand in flow]
        kept = [operand for operand in operands if operand in ends]
        read = set[fx.Node]().union(*(gates(flow, operand, ends) for operand in operands if operand not in kept))
        pairs = [pair for one in read for end in kept for pair in ((one, end), (end, one))]
        if len(kept) == 1 and pairs and not any(flow.depends(*pair) for pair in pairs):
            crossing[node] = kept[0], read
            ends[node] = bare(flattened(flow, node, ()))
    # Each goes on with a value, and reads one with which another one goes on.
    number = -1
    while number != len(crossing):
        number = len(crossing)
        added, seen = {kept for kept, _ in crossing.values()}, {one for _, read in crossing.values() for one in read}
        crossing = {node: (kept, read) for node, (kept, read) in crossing.items() if kept in seen and read <= added}
    made = {one for kept, read in crossing.values() for one in (kept, *read)}
    return tuple(ends[node] for node in flow.ordered({*crossing, *made}))


def _with_values_of_branches(flow: Dataflow, joins: Sequence[Join]) -> tuple[Join, ...]:
    """The joins with the sums over points of a stream that look like code of one branch: where the speed of a stream is
    a stream itself, h + v seems to be made in the branch that reads it.
    """
    found = {join.node: join for join in joins}
    starts = {join.fork for join in joins}
    for node, join in find_sums(flow).items():
        # At the start a sum of two points is what a branch reads; a layer adds what is made of one.
        adds = join.fork in starts and not any(branch.node in found for branch in join.branches)
        if node not in found and (join.fork in found or adds):
            found[node] = join
    laid = {node for node, join in found.items() if join.concatenates and _lays_streams(flow, join, found)}
    return with_depth([found[node] for node in flow.ordered(found.keys() - laid)])


def _lays_streams(flow: Dataflow, join: Join, found: Mapping[fx.Node, Join]) -> bool:
    """A concatenation lays streams side by side: what its fork was made into was added to one that started before."""
    later = (operand for operand in join.operands if operand is not join.fork and flow.depends(operand, join.fork))
    sums = (found[operand] for operand in later if operand in found)
    return any(one.skip is not None and not flow.depends(one.fork, join.fork) for one in sums)


def _reading_each_other(flow: Dataflow, joins: Sequence[Join]) -> tuple[Join, ...]:
    """The joins of chains that depend on each other: each on the other one, or on where that starts, or the one on the
    other with one fork.
    """
    # What lies inside a sum of branches alone, from the input to the output, is no code of a branch here.
    without = [join for join in joins if join.kind == "none"]
    outer = [join for join in joins if join.depth == sum(is_inside(join, other) for other in without)]
    outer_chains = chains(flow, [join for join in outer if join not in without])

    def reads(one: Sequence[Join], other: Sequence[Join]) -> bool:
        return flow.depends(one[-1].node, other[0].node)

    def splits_from(one: Sequence[Join], other: Sequence[Join]) -> bool:
        """The one forks from the midst of the other, and goes on reading what that makes afterwards."""
        later = [join for join in other if not flow.depends(one[0].fork, join.node)]
        return 0 < len(later) < len(other) and reads(one, later)

    def starts_from(one: Sequence[Join], other: Sequence[Join]) -> bool:
        """Branches of the one read what the other one starts with, or is made of that."""
        beside = (node for join in one for branch in join.branches for node in branch.region.context)
        return one[0].fork is not other[0].fork and any(flow.depends(node, other[0].fork) for node in beside)

    def begins_in(one: Sequence[Join], other: Sequence[Join]) -> bool:
        """The one starts with what a branch of the other is made of, and is read elsewhere too."""
        return any(one[0].fork in branch.region.node_set for join in other for branch in join.branches)

    def goes_on_beside(one: Sequence[Join], other: Sequence[Join]) -> bool:
        """The one adds what the other has made, and later on what that has made by then; or does so once, where the
        other starts apart, and is no branch of a point. What every layer adds alike is a condition.
        """
        made = {join.node: join for join in other}
        given = [node for join in one for node in join.injections if node in flow]
        given += [each.node for join in one for each in join.branches if each.region.entry is not join.fork]
        read = (gates(flow, operand, made) for operand in given)
        added = [node for nodes in read if len(nodes) == 1 for node in nodes]
        once = len(added) == 1 and not flow.depends(other[0].fork, one[0].fork)
        return once or len(set(added)) > 1

    pairs = [
        (one, other)
        for one, other in permutations(outer_chains, 2)
        if (reads(one, other) and (reads(other, one) or one[0].fork is other[0].fork))
        or splits_from(one, other)
        or (reads(one, other) and begins_in(one, other))
        or (starts_from(one, other) and starts_from(other, one))
        or goes_on_beside(one, other)
    ]
    pairs += _forking_together(flow, outer_chains)
    return tuple(dict.fromkeys(join for pair in pairs for chain in pair for join in chain))


def _forking_together(flow: Dataflow, outer: Sequence[list[Join]]) -> Iterator[tuple[list[Join], list[Join]]]:
    """The chains of joins that fork from what several have made, with the chains of these."""
    chain_of = {join.node: chain for chain in outer for join in chain}
    ends = {join.node: join for chain in outer for join in chain}
    made = {join.fork: (join, read) for join in ends.values() if len(read := gates(flow, join.fork, ends)) > 1}
    # Where streams exchange what they have made, two forks at least are made of the same ends.
    for (one, these), (other, those) in permutations(made.values(), 2):
        if len(these & those) > 1:
            yield from ((chain_of[one.node], chain_of[node]) for node in (other.node, *these & those))
    # Where one forks from what several have made, they were one state before it; layers of one fork are its branches.
    for join, read in made.values():
        if len({id(chain_of[node]) for node in read}) > 1 and len({ends[node].fork for node in read}) > 1:
            yield from ((chain_of[join.node], chain_of[node]) for node in read)


def _walks(flow: Dataflow, group: Sequence[Join]) -> list[tuple[_Walk, Lying]]:
    """The walks over the joins of a group whose values fit side by side, and how they lie; one without what the streams
    are given from outside, if that makes more of the joins values of states.
    """

    def fitting(outside: Collection[fx.Node]) -> list[tuple[_Walk, Lying]]:
        walks = _all_walks(flow, group, outside)
        return [(walk, lies) for walk in walks if (lies := lying(walk.values)) is not None]

    found = fitting(())
    if not (_left_out(group, found) and (outside := _conditions(flow, group))):
        return found
    others = fitting(outside)
    return others if len(others) == 1 and _left_out(group, others) < _left_out(group, found) else found


def _left_out(group: Iterable[Join], walks: Iterable[tuple[_Walk, Lying]]) -> int:
    """How many joins of a group make no value of a state."""
    made = {node for walk, _ in walks for node in walk.values}
    return sum(join.node not in made for join in group)


def _all_walks(flow: Dataflow, group: Sequence[Join], outside: Collection[fx.Node]) -> Iterator[_Walk]:
    """Walks from state to state over the joins of a group, one after the other."""
    first = min(flow.positions[join.fork] for join in group)
    last = max(flow.positions[join.node] for join in group)
    cuts = _cuts(flow, flow.nodes[first : last + 1], outside)
    ends = [node for node in cuts if _is_whole_sum(node)]
    joined = {join.node for join in group}
    while ends:
        walk = _walk(flow, cuts, ends, joined)
        if walk is None:
            return
        shorter, walk = walk, _further(flow, walk)
        # Of one layer alone those after it say whether there is another value that is added to.
        is_one = _is_one(shorter if len(_adding(shorter)) > 1 else walk)
        past = flow.positions[walk.steps[-1].at]
        # One step alone that adds splits a value into branches, unless what it starts from is there already.
        first, *further = _adding(walk) or walk.steps
        if (further or (len(walk.start) > 1 and all(each.branches for each in first.nexts))) and not is_one:
            yield walk
        cuts = {node: live for node, live in cuts.items() if flow.positions[node] >= past}
        ends = [node for node in ends if flow.positions[node] > past]


def _conditions(flow: Dataflow, group: Iterable[Join]) -> set[fx.Node]:
    """What the streams of a group are given from outside, as scales and gates of a time are: neither made of a value
    with which one starts nor what such a value is made of.
    """
    starts = _starts(flow, group)
    mask = flow.mask(starts)
    inside = reduce(or_, (flow.above[start] for start in starts), 0)
    return {node for node in flow.above if not flow.touches(node, mask) and not inside >> flow.positions[node] & 1}


def _starts(flow: Dataflow, group: Iterable[Join]) -> set[fx.Node]:
    """The values from which the streams of a group start."""
    group = tuple(group)
    return {join.fork for join in group if not any(flow.depends(join.fork, other.node) for other in group)}


def _adding(walk: _Walk) -> list[_Step]:
    """The steps that add to a value."""
    return [step for step in walk.steps if any(each.branches for each in step.nexts)]


def _is_one(walk: _Walk) -> bool:
    """Each step makes one value, which goes on from the one that the step before made and takes its place: a plain
    stream, beside what is given to its layers.
    """
    adding = [number for number, step in enumerate(walk.steps) if any(each.branches for each in step.nexts)]
    before, last = walk.start, None
    for step in walk.steps[: adding[-1] + 1] if adding else ():
        new = [each for each in step.nexts if each.node not in before]
        made = new if last else [each for each in new if each.branches]
        if len(made) != 1 or last in step.state or (last and last not in {before[home] for home in made[0].homes}):
            return False
        before, last = step.state, made[0].node
    return last is not None


def _further(flow: Dataflow, walk: _Walk) -> _Walk:
    """The walk with the steps after it that each add to one value what is made of another one, while all that are
    read further on are kept: the last rounds of registers that shift, of which none is read by a sum any more, look
    like layers of one point.
    """
    cuts = _cuts(flow, flow.nodes[flow.positions[walk.steps[-1].at] :])
    steps = list(walk.steps)
    for node, live in cuts.items():
        state = steps[-1].state
        if len(state) < 2:
            break
        step = _step(flow, state, node, live, all_carried=False) if _is_whole_sum(node) else None
        if step is not None and _crosses(flow, state, step):
            steps.append(step)
    longer = replace(walk, steps=tuple(steps))
    return walk if lying(longer.values) is None else longer


def _crosses(flow: Dataflow, state: Sequence[fx.Node], step: _Step) -> bool:
    """A step keeps values of a state as they are, or lays some side by side, but for some that it adds to, by what
    reads another one; or it is the sum of all in which they end.
    """
    if _is_mixed(flow, state, step) or any(each.gates for each in step.nexts):
        return False
    if len(step.nexts) == 1 and len(step.nexts[0].skip) > 1:
        return set(step.nexts[0].skip) <= {*state}
    changed = [each for each in step.nexts if each.branches]
    return all(set(each.skip) <= {*state} and len(each.skip) == 1 for each in changed) and all(
        any(flow.depends(branch, other) for branch in each.branches for other in state if other not in each.skip)
        for each in changed
    )


def _cuts(flow: Dataflow, nodes: Sequence[fx.Node], outside: Collection[fx.Node] = ()) -> Cuts:
    """By node of the flow, what is made up to there and read later, but for what comes from outside."""
    last = {node: _last_read(flow, node) for node in flow.nodes if node in flow and node not in outside}
    start = flow.positions[nodes[0]]
    live = [node for node, place in last.items() if flow.positions[node] <= start < place]
    cuts = {nodes[0]: tuple(live)}
    for node in nodes[1:]:
        if node in last:
            place = flow.positions[node]
            live = [*(other for other in live if last[other] > place), node]
            cuts[node] = tuple(live)
    return cuts


def _last_read(flow: Dataflow, node: fx.Node) -> int:
    """Where a value is read for the last time; what only asks for its size does not read it."""
    readers = (user for user in node.users if node in flow.parents.get(user, (node,)))
    return max((flow.positions.get(user, len(flow.nodes)) for user in readers), default=-1)


def _is_whole_sum(node: fx.Node) -> bool:
    return _is_sum(node) and not (len(node.users) == 1 and next(iter(node.users)).target is aten.add.Tensor)


def _is_sum(node: fx.Node) -> bool:
    """An add, unless it only says where an attention looks, as what is added to its scores."""
    return node.target is aten.add.Tensor and not only_steers(node)


def _walk(flow: Dataflow, cuts: Cuts, ends: Sequence[fx.Node], joined: Collection[fx.Node]) -> _Walk | None:
    """The first walk there is; it starts at one value, or at as many as the state after it has, if that can be, and
    with nothing that its states have no more further on, such as what a layer goes on reading in its midst; and its
    values fit side by side, as those of a stream and scores of an attention do not.
    """
    grown: _Walk | None = None
    other: _Walk | None = None
    # What goes on from a start is live at many ends, and is looked at once for all of them.
    known: dict[fx.Node, dict[fx.Node, _Next | None]] = {at: {} for at in cuts}
    for end in ends:
        starts = [at for at in cuts if flow.positions[at] < flow.positions[end]]
        beginnings = [
            (at, *first)
            for at in starts
            if (first := _first_step(flow, cuts[at], end, cuts[end], known[at])) is not None
        ]
        if not beginnings:
            continue
        at, start, step = min(beginnings, key=lambda one: (len(one[1]) != len(one[2].nexts), len(one[1])))
        walk = _Walk(at, start, _left(flow, start, tuple(_steps(flow, cuts, ends, joined, step))))
        if _loses(walk) or lying(walk.values) is None:
            other = other or walk
        elif len(start) in (1, len(step.nexts)):
            return max(filter(None, (walk, grown)), key=lambda one: len(one.steps))
        else:
            grown = grown or walk
    return grown or other


def _loses(walk: _Walk) -> bool:
    """States between the first and the last have fewer values than that, and several."""
    return any(1 < len(step.nexts) < len(walk.start) for step in walk.steps[:-1])


def _steps(
    flow: Dataflow, cuts: Cuts, ends: Sequence[fx.Node], joined: Collection[fx.Node], step: _Step | None
) -> Iterator[_Step]:
    """A step and those after it.

    Where the next one mixes values of the state by what is learned before it adds to them, as where the resolutions of
    a network exchange what they have made, that is a step of its own.
    """
    while step is not None:
        yield step
        state, past = step.state, flow.positions[step.at]
        later = {node: live for node, live in cuts.items() if flow.positions[node] > past}
        following = _following(flow, state, later, ends, joined)
        if following is None:
            # The last layer's sum may go on into one that reads the other streams as well.
            inner = [node for node in later if _is_sum(node) and node not in ends]
            last = _following(flow, state, {node: later[node] for node in inner}, inner)
            following = last if last is not None and len(last.nexts) == len(state) else None
        if following is None or _is_mixed(flow, state, following):
            end = len(flow.nodes) if following is None else flow.positions[following.at]
            before = {node: live for node, live in later.items() if flow.positions[node] < end}
            following = _following(flow, state, before, ends, affine=True) or following
        step = following


def _left(flow: Dataflow, start: Sequence[fx.Node], steps: Sequence[_Step]) -> tuple[_Step, ...]:
    """The steps up to where the last one that adds is left, and a layer that only one value goes on with begins to be
    taken for steps that mix.
    """
    number = 1 + max((at for at, step in enumerate(steps) if any(each.branches for each in step.nexts)), default=-1)
    states = [start, *(step.state for step in steps)]
    while number < len(steps) and not _is_mixed(flow, states[number], steps[number]):
        number += 1
    return tuple(steps[:number])


def _following(
    flow: Dataflow,
    state: Sequence[fx.Node],
    cuts: Cuts,
    ends: Sequence[fx.Node],
    joined: Collection[fx.Node] = (),
    *,
    affine: bool = False,
) -> _Step | None:
    """The first step from a state to one of these; to a state of more values only where there is no other, or none but
    with whole joins in its branches.
    """
    larger: _Step | None = None
    for at, live in cuts.items():
        if at in ends:
            step = _step(flow, state, at, live, affine=affine)
        else:
            step = None if affine else _map(flow, state, at, live)
        if step is not None and len(step.nexts) <= len(state):
            branches = [branch for each in step.nexts for branch in each.branches]
            return larger if larger and any(node in joined for node in _way(flow, state, branches)) else step
        larger = larger or step
    return larger


def _is_mixed(flow: Dataflow, state: Sequence[fx.Node], step: _Step) -> bool:
    """Something learned lies between a state and its image in the next one."""
    images = [image for each in step.nexts for image in each.skip]
    gates = [gate for each in step.nexts for gate in each.gates]
    return any(map(mixes, _way(flow, state, images, gates)))


def _first_step(
    flow: Dataflow,
    start: Sequence[fx.Node],
    at: fx.Node,
    end: Sequence[fx.Node],
    known: dict[fx.Node, _Next | None],
) -> tuple[tuple[fx.Node, ...], _Step] | None:
    """The values at a place that go on in the state at another one, and the step to that, if it is one; `known` holds
    what later values are over all of the start.
    """
    step = _step(flow, start, at, end, all_carried=False, known=known)
    if step is None or len(step.nexts) < 2:
        return None
    homes = {home for each in step.nexts for home in each.homes}
    kept = tuple(node for place, node in enumerate(start) if place in homes)
    others = [node for place, node in enumerate(start) if place not in homes]
    if not all(map(is_float_tensor, kept)) or any(flow.depends(other, node) for other in others for node in kept):
        return None
    step = _step(flow, kept, at, end)
    if step is None:
        return None
    return None if _is_mixed(flow, kept, step) else (kept, step)


def _step(
    flow: Dataflow,
    state: Sequence[fx.Node],
    at: fx.Node,
    live: Sequence[fx.Node],
    *,
    all_carried: bool = True,
    affine: bool = False,
    known: dict[fx.Node, _Next | None] | None = None,
) -> _Step | None:
    """The step from a state to what is live at a node, if each value of that carries the state on, and adds to it;
    `affine` where they only mix it.
    """
    known = {} if known is None else known
    nexts: list[_Next] = []
    mask = flow.mask(state)
    for node in live:
        if not flow.touches(node, mask):
            continue  # no part of the state: what the streams are given from outside
        if node not in known:
            known[node] = _next(flow, state, node)
        each = known[node]
        if each is None:
            return None
        nexts.append(each)
    carried = {home for each in nexts for home in each.homes}
    branches = [branch for each in nexts for branch in each.branches]
    if (all_carried and len(carried) < len(state)) or any(map(mixes, _way(flow, state, branches))) is affine:
        return None
    if affine and (branches or all(node in state for node in live) or any(_is_product(flow, state, e) for e in nexts)):
        return None
    nexts.sort(key=lambda each: (each.homes, flow.positions[each.node]))
    return _Step(at, tuple(nexts))


def _is_product(flow: Dataflow, state: Sequence[fx.Node], each: _Next) -> bool:
    """A value is made of several others by layers alone: a branch's code, and none of them goes on in it."""
    return len(each.homes) > 1 and all(any(map(mixes, _way(flow, state, [image], each.gates))) for image in each.skip)


def _map(flow: Dataflow, state: Sequence[fx.Node], at: fx.Node, live: Sequence[fx.Node]) -> _Step | None:
    """The step in which a value of the state is replaced by a function of it, such as a post-norm."""
    gone = [node for node in state if node not in live]
    way = _way(flow, state, [at])
    read = {parent for inner in way for parent in flow.parents[inner]}.intersection(state)
    others = [node for node in live if node not in state and node is not at]
    beside = any(flow.depends(node, before) for node in others for before in state)
    if len(gone) != 1 or read != set(gone) or beside or not is_float_tensor(at) or any(map(mixes, way)):
        return None
    if at.meta["shape"] != gone[0].meta["shape"]:
        return None  # A mean of a value is what a branch reads of it.
    nexts = [at if node in gone else node for node in state]
    return _Step(at, tuple(_Next(node, (node,), (), (), (place,)) for place, node in enumerate(nexts)))


def _next(flow: Dataflow, state: Sequence[fx.Node], node: fx.Node) -> _Next | None:
    """A value as a sum of affine images of a state and others; of nothing but branches it is none."""
    if not is_float_tensor(node):
        return None
    whole = node in state or node.target is not aten.add.Tensor
    operands = (node,) if whole else flattened(flow, node, state).operands
    skip, branches, injections, gates, homes = [], [], [], [], set[int]()
    for operand in operands:
        held = held_image(flow, operand, state)
        way = _way(flow, state, [operand], held or ())
        if held and any(mixes(inner) and not is_mixing(inner) for inner in way):
            # Messages to neighbours, a(h) (x_i − x_j), are what a branch makes of a state.
            held, way = None, _way(flow, state, [operand])
        inside = {*state, *way}
        read = {operand, *(parent for inner in way for parent in flow.parents[inner])}.intersection(state)
        if held is None and not read:
            injections.append(operand)
        elif held is not None or all(flow.affine(inner, inside) for inner in way):
            skip.append(operand)
            gates += held or ()
            homes.update(map(state.index, read))
        else:
            branches.append(operand)
    # One that starts at a constant has no skip yet.
    if all(operand.meta["shape"] != node.meta["shape"] for operand in (*skip, *injections)):
        return None
    return _Next(node, tuple(skip), tuple(branches), tuple(injections), tuple(sorted(homes)), tuple(gates))


def _is_zero(node: fx.Node) -> bool:
    """A state that starts at zero, or a multiple of it."""
    while packet_of(node) in IDENTITY | SCALES and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return packet_of(node) in (aten.zeros, aten.zeros_like, aten.new_zeros)


def _way(
    flow: Dataflow, state: Sequence[fx.Node], ends: Sequence[fx.Node], held: Sequence[fx.Node] = ()
) -> tuple[fx.Node, ...]:
    """The nodes between a state and values that are made of it, these with them, but for those behind what is held."""
    known, mask = {*state, *held}, flow.mask(state)
    nodes = [end for end in ends if end not in known]
    known.update(nodes)
    for node in nodes:
        for parent in flow.parents[node]:
            if parent not in known and flow.touches(parent, mask):
                known.add(parent)
                nodes.append(parent)
    return tuple(nodes)


# Writing them


class _Writer(Pieces):
    """Writes the states of a walk into a copy of the graph, and lets what comes after each read its pieces."""

    def write(self, walk: _Walk) -> None:
        """The start, and every state after it as a sum over the one before."""
        nodes = walk.start
        with self.behind(walk.at):
            whole = self.now[nodes[0]] if len(nodes) == 1 else self.cat([self.now[node] for node in nodes])
            self.read(whole, nodes, walk.at)
        for step in walk.steps:
            with self.behind(step.at):
                whole = self.sum([self._skip(step, nodes, whole), *self._added(step, nodes)])
                nodes = step.state
                self.read(whole, nodes, step.at)

    def _skip(self, step: _Step, nodes: Sequence[fx.Node], whole: fx.Node) -> fx.Node:
        """The affine image of the state before, which is all of it where every value only has something added."""
        if [each.skip for each in step.nexts] == [(node,) for node in nodes]:
            return whole
        return self.cat([self._total([self.now[node] for node in each.skip], each) for each in step.nexts])

    def _added(self, step: _Step, nodes: Sequence[fx.Node]) -> Iterator[fx.Node]:
        """What each branch adds to the values, those that end in one mixing operator being one; and what comes from
        outside.
        """
        added: dict[int, list[list[fx.Node]]] = {}
        for place, each in enumerate(step.nexts):
            for node in (*each.branches, *(node for node in each.injections if not _is_zero(node))):
                inner = _way(self.flow, nodes, [node]) if node in each.branches else ()
                last = max((self.flow.positions[one] for one in inner if mixes(one)), default=-1)
                added.setdefault(last, [[] for _ in step.nexts])[place].append(self._spread(node, each))
        for several in added.values():
            whole = self.cat([self._total(summands, each) for summands, each in zip(several, step.nexts, strict=True)])
            whole.meta["module_path"] = next(summands[0].meta["module_path"] for summands in several if summands)
            yield whole

    def _full(self, each: _Next) -> fx.Node:
        """An operand of a value that has its shape."""
        operands = (*each.skip, *each.injections)
        return next(self.now[node] for node in operands if node.meta["shape"] == each.node.meta["shape"])

    def _spread(self, node: fx.Node, each: _Next) -> fx.Node:
        if node.meta["shape"] == each.node.meta["shape"]:
            return self.now[node]
        return self.call(aten.expand_as.default, self.now[node], self._full(each), like=self._full(each))

    def _total(self, nodes: Sequence[fx.Node], each: _Next) -> fx.Node:
        return self.sum(nodes) if nodes else self.call(aten.zeros_like.default, self._full(each))
