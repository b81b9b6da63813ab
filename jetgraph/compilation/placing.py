"""A plan whose results are wanted at one position: which operations are run there alone, and which cannot be.

From an operator that mixes positions, such as attention, back to the sources values are whole. What is behind the last
one on the way to a result is made at the one position, in a pass at that position (`jetgraph.running.placed`). So a
plan falls into two, and what the second reads of the first is cut down as soon as it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from jetgraph.compilation.evaluated import Evaluated
from jetgraph.compilation.evaluation import broadcast, evaluate
from jetgraph.compilation.origins import SOURCES, Model, Places, own_apart
from jetgraph.compilation.plan import (
    Carry,
    Enter,
    Land,
    Lane,
    Matched,
    Open,
    Operation,
    Optimum,
    Own,
    Part,
    Pass,
    Plan,
    Preset,
    Stream,
    Visit,
)
from jetgraph.compilation.stacking import StackedRun
from jetgraph.jets.fusion import Fusion
from jetgraph.jets.series import Series
from jetgraph.running.alone import by_place
from jetgraph.running.forward import Forward
from jetgraph.running.indices import at_places
from jetgraph.running.placed import counts_positions, placed


@dataclass(frozen=True, eq=False)
class _Divided:
    """A plan in two, the first of which is run on whole values."""

    whole: Plan
    """Its results are what the other reads of it, by operation."""
    apart: Plan


def evaluate_at(
    plan: Plan, model: Model, forward: Forward, places: Places, memory: int, fusion: Fusion | None = None
) -> Evaluated:
    """Values of all paths before the decoder's affine part, at one position or at one of each row; at all of them where
    that part mixes positions.

    Parameters
    ----------
    plan, model, forward, memory
        As of `jetgraph.compilation.evaluation.evaluate`.
    places
        As `Forward.places` gives them.
    fusion
        The forward pass's.
    """
    decoder = model.graph.structure.decoder
    if not model.counts_positions(decoder.nonlinear.exit) or not by_place(decoder.affine, places):
        return taken_at(evaluate(plan, model, forward, memory), model, forward, places)
    divided = _divided(plan, model, places)
    forward.need(plan.reads)
    taken = {index: _taker(forward.shape(plan.work[index].makes), places) for index in divided.whole.results.values()}
    run = StackedRun(divided.whole, model, forward, memory, taken)
    later = StackedRun(divided.apart, model, placed(forward, places, fusion), memory)
    for visit in divided.whole.visits:
        run.visit(visit)
    later.values |= run.taken
    for visit in divided.apart.visits:
        later.visit(visit)
    shape = later.forward.shape(decoder.nonlinear.exit)
    hidden = {path: broadcast(later.values[index], shape) for path, index in plan.results.items()}
    far = {site: (sum(few), all_) for each in (run, later) for site, (few, all_) in each.far.items()}
    return Evaluated(hidden, run.weights | later.weights, far, {})


def taken_at(values: Evaluated, model: Model, forward: Forward, places: Places) -> Evaluated:
    """Values at all positions, cut down to one; as they are where the decoder's affine part mixes positions."""
    decoder = model.graph.structure.decoder
    if not by_place(decoder.affine, places):
        return values
    take = _taker(forward.shape(decoder.nonlinear.exit), places)
    return replace(values, hidden={path: take(value) for path, value in values.hidden.items()})


def _taker(shape: Sequence[int], places: Places) -> Callable[[Any], Any]:
    """Takes the place out of a value [batch, position, ...], without the memory of the others."""

    def taken(value: Any) -> Any:
        if isinstance(value, Series):
            return value.like(at_places(value.coefficients.expand(-1, *shape), places, 2).clone())
        return at_places(value.expand(shape), places).clone()

    return taken


_DIVIDED: WeakKeyDictionary[Plan, dict[bool, _Divided]] = WeakKeyDictionary()
"""By plan, and whether each row has a place of its own."""


def _divided(plan: Plan, model: Model, places: Places) -> _Divided:
    known = _DIVIDED.setdefault(plan, {})
    key = isinstance(places, int)
    if key not in known:
        whole = _whole(plan, model, places)
        order = list(plan.order())
        border = dict.fromkeys(read for index in order if index not in whole for read in plan.links[index])
        border |= dict.fromkeys(plan.results.values())
        taken: Any = {index: index for index in border if index in whole}
        known[key] = _Divided(
            replace(plan, visits=_restricted(plan, whole), results=taken, sums={}),
            replace(plan, visits=_restricted(plan, set(order) - whole), sums={}),
        )
    return known[key]


def _whole(plan: Plan, model: Model, places: Places) -> set[int]:
    """The operations whose values are made at all positions."""
    order = list(plan.order())
    output = model.graph.traced.output
    whole: set[int] = set()
    before = -1
    while len(whole) > before:
        before = len(whole)
        for index in order:
            taken = (read for read in plan.links[index] if read in whole)
            apart = _keeps_apart(plan.operations[index], model, places)
            fits = apart and counts_positions(plan.work[index].makes, output)
            if not fits or not all(_can_be_taken(plan, read, output) for read in taken):
                whole.add(index)
        for index in reversed(order):
            if index in whole:
                whole.update(plan.links[index])
    return whole


def _can_be_taken(plan: Plan, index: int, output: Any) -> bool:
    """An operation's value is a tensor, or a series, [batch, position, ...]."""
    several = isinstance(plan.operations[index], Matched | Open | Optimum | Preset)
    return not several and counts_positions(plan.work[index].makes, output)


def _restricted(plan: Plan, chosen: Collection[int]) -> tuple[Visit, ...]:
    """The visits of some operations."""

    def some(numbers: Iterable[int]) -> tuple[int, ...]:
        return tuple(number for number in numbers if number in chosen)

    visits: list[Visit] = []
    for visit in plan.visits:
        lanes = [Lane(some(lane.before), some(lane.passes), some(lane.after)) for lane in visit.lanes]
        lanes = [lane for lane in lanes if lane.before or lane.passes or lane.after]
        if not visit.stacked or all(lane.passes for lane in lanes):
            visits += [Visit(tuple(lanes), visit.stacked)] if lanes else []
        else:
            visits += _passing_together(plan, lanes)
    return tuple(visits)


def _passing_together(plan: Plan, lanes: Sequence[Lane]) -> list[Visit]:
    """Lanes some of which pass nothing: they are made ready before those that do, and what is after them comes last."""
    ready = [number for lane in lanes for number in lane.before]
    first = {number for lane in lanes if not lane.passes for number in lane.before}
    for number in reversed(ready):
        first |= {read for read in plan.links[number] if read in ready} if number in first else set()
    rest = [replace(lane, before=tuple(n for n in lane.before if n not in first)) for lane in lanes if lane.passes]
    last = tuple(number for lane in lanes if not lane.passes for number in lane.after)
    alone = [Lane(tuple(number for number in ready if number in first), (), ()), Lane((), (), last)]
    visits = [Visit((alone[0],), False), Visit(tuple(rest), True), Visit((alone[1],), False)]
    return [visit for visit in visits if any(lane.before or lane.passes or lane.after for lane in visit.lanes)]


# By operation: whether a position of its value is made of that position of what it reads


def _keeps_apart(operation: Operation, model: Model, places: Places) -> bool:
    keeps = APART.get(type(operation))
    return keeps is None or keeps(operation, model, places)


def _enter(operation: Enter, model: Model, places: Places) -> bool:
    entry = operation.entry
    return SOURCES[entry.origin].apart(model, entry, places) and model.lands_in_place(entry.enters)


def _stream(operation: Stream, model: Model, places: Places) -> bool:
    return model.counts_positions(model.point(operation.point))


def _carry(operation: Carry, model: Model, places: Places) -> bool:
    return model.keeps_places(operation.point, places)


def _at_site(operation: Pass | Part, model: Model, places: Places) -> bool:
    return by_place(model.region(model.expansion.passage(operation.site)), places)


def _at_branch(operation: Matched | Open, model: Model, places: Places) -> bool:
    return by_place(model.region_of(operation.site), places)


def _land(operation: Land, model: Model, places: Places) -> bool:
    return model.lands_in_place(model.expansion.passage(operation.site).step)


def _own(operation: Own, model: Model, places: Places) -> bool:
    return own_apart(model, model.expansion.passage(operation.site), places)


def _optimum(operation: Optimum, model: Model, places: Places) -> bool:
    """Weights are those of each position by itself."""
    passage = model.expansion.passage(operation.site)
    return 1 - len(model.region(passage).exit.meta["shape"]) in model.tokens(passage)


def _preset(operation: Preset, model: Model, places: Places) -> bool:
    """The tensor that was given may have weights for each position."""
    return False


APART: dict[type[Operation], Callable[[Any, Model, Places], bool]] = {
    Enter: _enter,
    Stream: _stream,
    Carry: _carry,
    Matched: _at_branch,
    Pass: _at_site,
    Open: _at_branch,
    Part: _at_site,
    Land: _land,
    Own: _own,
    Optimum: _optimum,
    Preset: _preset,
}
"""Those that are not here go entry by entry."""
