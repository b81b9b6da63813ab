"""Walks from state to state: where several values go on beside each other, and what each step adds to them.

cut    the values that are made by one place of the graph and read after it: a *state* if all of them go on;
walk   a state and the steps from it (`jetgraph.structure.steps`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from torch import fx

from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.operators import aten, is_float_tensor, mixes
from jetgraph.structure.pieces import lying
from jetgraph.structure.regions import Join
from jetgraph.structure.steering import only_steers
from jetgraph.structure.steps import (
    Known,
    Next,
    Step,
    adding_step,
    between,
    is_mixed,
    lies_whole,
    mapping_step,
    mixing_step,
    way_from,
)
from jetgraph.structure.sums import is_whole_sum

Cuts = Mapping[fx.Node, tuple[fx.Node, ...]]
"""By node, what is made up to there and read later; in execution order."""


@dataclass(frozen=True, eq=False)
class Walk:
    """A state and the steps from it."""

    at: fx.Node
    start: tuple[fx.Node, ...]
    steps: tuple[Step, ...]

    @property
    def values(self) -> tuple[fx.Node, ...]:
        """All that is to lie side by side."""
        return (*self.start, *(node for step in self.steps for node in step.state))


Beginning = tuple[fx.Node, tuple[fx.Node, ...], Step]
"""A place, the values there that go on, and the step from these."""


def walks_over(flow: Dataflow, group: Sequence[Join], outside: Collection[fx.Node]) -> Iterator[Walk]:
    """Walks from state to state over the joins of a group, one after the other."""
    first = min(flow.positions[join.fork] for join in group)
    last = max(flow.positions[join.node] for join in group)
    cuts = _cuts(flow, flow.nodes[first : last + 1], outside)
    ends = [node for node in cuts if may_be_point(node)]
    joined = {join.node: join for join in group}
    begun = False
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
        several = further or (len(walk.start) > 1 and all(each.branches for each in first.nexts))
        # Further on, what is made of one value while it goes on is code of a branch, as a class token that attends.
        nested = begun and any(flow.depends(*pair) for pair in permutations(walk.start, 2))
        if several and not is_one and not nested:
            begun = True
            yield walk
        cuts = {node: live for node, live in cuts.items() if flow.positions[node] >= past}
        ends = [node for node in ends if flow.positions[node] > past]


def _adding(walk: Walk) -> list[Step]:
    """The steps that add to a value."""
    return [step for step in walk.steps if any(each.branches for each in step.nexts)]


def _is_one(walk: Walk) -> bool:
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


def _further(flow: Dataflow, walk: Walk) -> Walk:
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
        step = adding_step(flow, state, node, live, all_carried=False) if may_be_point(node) else None
        if step is not None and _crosses(flow, state, step):
            steps.append(step)
    longer = replace(walk, steps=tuple(steps))
    return walk if lying(flow, longer.values) is None else longer


def _crosses(flow: Dataflow, state: Sequence[fx.Node], step: Step) -> bool:
    """A step keeps values of a state as they are, or lays some side by side, but for some that it adds to, by what
    reads another one; or it is the sum of all in which they end.
    """
    if is_mixed(flow, state, step) or any(each.gates for each in step.nexts):
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


def may_be_point(node: fx.Node) -> bool:
    """A stream may go on in a sum: it is no part of a larger one, and says not only where an attention looks, as what
    is added to its scores.
    """
    return is_whole_sum(node) and not only_steers(node)


def _walk(flow: Dataflow, cuts: Cuts, ends: Sequence[fx.Node], joined: Mapping[fx.Node, Join]) -> Walk | None:
    """The first walk there is; it starts at one value, or at as many as the state after it has, if that can be, and
    with nothing that its states have no more further on, such as what a layer goes on reading in its midst; and its
    values fit side by side, as those of a stream and scores of an attention do not.
    """
    grown: Walk | None = None
    other: Walk | None = None
    # What goes on from a start is live at many ends, and is looked at once for all of them.
    known: dict[fx.Node, Known] = {at: {} for at in cuts}
    for end in ends:
        starts = [at for at in cuts if flow.positions[at] < flow.positions[end]]
        beginnings = [
            (at, *first)
            for at in starts
            if (first := _first_step(flow, cuts[at], end, cuts[end], known[at])) is not None
        ]
        if not beginnings:
            continue
        at, start, step = _settled(flow, beginnings, joined)
        walk = Walk(at, start, _left(flow, start, tuple(_steps(flow, cuts, ends, joined, step))))
        if _loses(walk) or lying(flow, walk.values) is None:
            other = other or walk
        elif len(start) in (1, len(step.nexts)):
            return max(filter(None, (walk, grown)), key=lambda one: (len(_adding(one)), len(one.steps)))
        else:
            grown = grown or walk
    return grown or other


def _settled(flow: Dataflow, beginnings: Sequence[Beginning], joined: Collection[fx.Node]) -> Beginning:
    """Of several beginnings with as few values the first one, or a later one that has an affine image of each of its
    values: what comes in up to there, as positions and a class token do, is added by no layer. Of those with one value,
    preferably one with no whole joins in its branches.
    """

    def number(one: Beginning) -> tuple[bool, int]:
        return len(one[1]) != len(one[2].nexts), len(one[1])

    fewest = [one for one in beginnings if number(one) == min(map(number, beginnings))]
    single = [
        one for one in fewest if len(one[1]) == 1 and not any(node in joined for node in between(flow, one[1], one[2]))
    ]
    chosen, *others = sorted(single or fewest, key=_new)
    for other in others:
        way = way_from(flow, chosen[1], other[1])
        inside = {*chosen[1], *way}
        apart = all(sum(flow.depends(node, before) for before in chosen[1]) == 1 for node in other[1])
        if apart and not any(map(mixes, way)) and all(flow.affine(node, inside) for node in way):
            chosen = other
    return chosen


def _new(one: Beginning) -> int:
    """How many values that a walk does not start with its first state goes on with: half of one, or one with tokens
    put beside it.
    """
    _, start, step = one
    single = (each for each in step.nexts if len(each.homes) == 1 and not each.gates)
    return sum(node not in start for each in single for node in each.skip)


def _loses(walk: Walk) -> bool:
    """States between the first and the last have fewer values than that, and several."""
    return any(1 < len(step.nexts) < len(walk.start) for step in walk.steps[:-1])


def _steps(
    flow: Dataflow, cuts: Cuts, ends: Sequence[fx.Node], joined: Mapping[fx.Node, Join], step: Step | None
) -> Iterator[Step]:
    """A step and those after it.

    Where the next one mixes values of the state by what is learned before it adds to them, as where the resolutions of
    a network exchange what they have made, that is a step of its own.
    """
    while step is not None:
        yield step
        state, past = step.state, flow.positions[step.at]
        later = {node: live for node, live in cuts.items() if flow.positions[node] > past}
        following = _first_of(flow, state, _steps_from(flow, state, later, ends), joined)
        if following is None:
            # The last layer's sum may go on into one that reads the other streams as well.
            inner = [n for n in later if n.target is aten.add.Tensor and n not in ends and not only_steers(n)]
            last = _first_of(flow, state, _steps_from(flow, state, {node: later[node] for node in inner}, inner))
            following = last if last is not None and len(last.nexts) == len(state) else None
        if following is None or is_mixed(flow, state, following):
            end = len(flow.nodes) if following is None else flow.positions[following.at]
            before = {node: later[node] for node in ends if node in later and flow.positions[node] < end}
            mixed = _first_of(flow, state, (mixing_step(flow, state, *cut) for cut in before.items()))
            following = following if mixed is None or _has(following, mixed, len(state)) else mixed
        step = following or _grown(flow, state, later, joined)


def _steps_from(
    flow: Dataflow, state: Sequence[fx.Node], cuts: Cuts, ends: Collection[fx.Node]
) -> Iterator[Step | None]:
    """From a state to what is live at each node: the step that adds to it at an end, else the one that maps it."""
    for at, live in cuts.items():
        yield adding_step(flow, state, at, live) if at in ends else mapping_step(flow, state, at, live)


def _has(step: Step | None, mixed: Step, number: int) -> bool:
    """A step makes what another one mixes, and as many values as there were, while after that one all are still read:
    values that are mixed one by one, to the last of which a layer adds, are one state.
    """
    return step is not None and len(step.nexts) <= number < len(mixed.nexts) and mixed.at in step.state


def _grown(flow: Dataflow, state: Sequence[fx.Node], cuts: Cuts, joined: Mapping[fx.Node, Join]) -> Step | None:
    """The first step from a state to one with one value more, which layers make of it, and from which a stream starts,
    such as the next resolution of a network that keeps all of them.
    """
    forks = {join.fork for join in joined.values()}
    for at, live in cuts.items():
        if at in forks and {*live} == {*state, at} and any(map(mixes, way_from(flow, state, [at]))):
            # A level of which nothing but what comes back from below is put beside it does not go on.
            adding = (join for join in joined.values() if join.fork in state and not join.concatenates)
            if not any(flow.positions[join.node] > flow.positions[at] for join in adding):
                return None
            nexts = [Next(node, (node,), (), (), (place,)) for place, node in enumerate(state)]
            return Step(at, (*nexts, Next(at, (), (at,), (), ())))
    return None


def _left(flow: Dataflow, start: Sequence[fx.Node], steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps up to where the last one that adds is left, and a layer that only one value goes on with begins to be
    taken for steps that mix.
    """
    number = 1 + max((at for at, step in enumerate(steps) if any(each.branches for each in step.nexts)), default=-1)
    states = [start, *(step.state for step in steps)]
    while number < len(steps) and not is_mixed(flow, states[number], steps[number]):
        number += 1
    return tuple(steps[:number])


def _first_of(
    flow: Dataflow, state: Sequence[fx.Node], steps: Iterable[Step | None], joined: Collection[fx.Node] = ()
) -> Step | None:
    """The first of the steps that there are from a state; one to a state of more values only where there is no other,
    or none but with whole joins in its branches.
    """
    larger: Step | None = None
    for step in steps:
        if step is not None and len(step.nexts) <= (1 if lies_whole(state, step) else len(state)):
            whole = larger and any(node in joined for node in between(flow, state, step))
            return larger if whole else step
        larger = larger or step
    return larger


def _first_step(
    flow: Dataflow,
    start: Sequence[fx.Node],
    at: fx.Node,
    end: Sequence[fx.Node],
    known: Known,
) -> tuple[tuple[fx.Node, ...], Step] | None:
    """The values at a place that go on in the state at another one, and the step to that, if it is one; `known` holds
    what later values are over all of the start.
    """
    step = adding_step(flow, start, at, end, all_carried=False, known=known)
    if step is None or len(step.nexts) < 2:
        return None
    homes = {home for each in step.nexts for home in each.homes}
    kept = tuple(node for place, node in enumerate(start) if place in homes)
    others = [node for place, node in enumerate(start) if place not in homes]
    if not all(map(is_float_tensor, kept)) or any(flow.depends(other, node) for other in others for node in kept):
        return None
    step = adding_step(flow, kept, at, end)
    if step is None:
        return None
    return None if is_mixed(flow, kept, step) else (kept, step)
