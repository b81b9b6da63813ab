"""Running a plan on inputs: a loop over its operations, which frees what nothing waits for.

Values that pass one site in one way go through it together, stacked along the batch, in batches bounded by `memory`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from math import prod
from typing import Any

import torch
from torch import Tensor

from jetgraph.algebra.passages import Passage
from jetgraph.compilation.entering import Sources
from jetgraph.compilation.evaluated import Evaluated
from jetgraph.compilation.origins import Model, landed, own, through
from jetgraph.compilation.plan import (
    Along,
    Carry,
    Coefficient,
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
    Polynomial,
    Preset,
    Stream,
    Sum,
    Towards,
    Visit,
    Weigh,
)
from jetgraph.compilation.weighing import given_weights, optimal_weights
from jetgraph.jets.recorded import Repeated
from jetgraph.jets.registry import is_native
from jetgraph.jets.series import Series, coefficient
from jetgraph.running.forward import Forward
from jetgraph.running.matching import Match, match
from jetgraph.running.memory import give_back

MEMORY = 256 * 2**20
"""Bytes that the inner values of one call of a site may take, for all values that pass together."""

LARGE_MEMORY = 2**30
"""The same on an accelerator, where each call is a launch."""


def evaluate(plan: Plan, model: Model, forward: Forward, memory: int = MEMORY) -> Evaluated:
    """Values of all paths before the decoder's affine part, in the order in which they were given, and what was found
    out on the way.
    """
    shape = forward.shape(model.graph.structure.decoder.nonlinear.exit)
    values = evaluated(plan, model, forward, memory)
    return replace(values, hidden={path: broadcast(value, shape) for path, value in values.hidden.items()})


def broadcast(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A value that broadcasts, in a shape; one of it as it is."""
    return value if value.shape == shape else value.expand(shape)


def evaluated(plan: Plan, model: Model, forward: Forward, memory: int = MEMORY) -> Evaluated:
    """The results of a plan, in the order in which they were given, and what was found out on the way."""
    forward.need(plan.reads)
    give_back()
    run = Run(plan, model, forward, memory)
    for visit in plan.visits:
        run.visit(visit)
    results = {path: run.values[index] for path, index in plan.results.items()}
    far = {site: (sum(few), all_) for site, (few, all_) in run.far.items()}
    return Evaluated(results, run.weights, far, {site: run.values[index] for site, index in plan.sums.items()})


class Run:
    """The values of one evaluation that something waits for, by operation.

    Parameters
    ----------
    plan, model, forward, memory
        As of `evaluate`.
    taken
        By operation, what is made at once of a result of the plan, and kept in its place.
    """

    def __init__(
        self,
        plan: Plan,
        model: Model,
        forward: Forward,
        memory: int = MEMORY,
        taken: Mapping[int, Callable[[Any], Any]] | None = None,
    ) -> None:
        self.plan, self.model, self.forward, self.memory = plan, model, forward, memory
        self.taking = taken or {}
        self.taken: dict[int, Any] = {}
        """What was made of results."""
        self.values: dict[int, Any] = {}
        self.weights: dict[str, Tensor] = {}
        """By site, those that were not known before."""
        self.far: dict[str, tuple[list[Tensor], int]] = {}
        """By site: numbers of tokens that no scale brings near to the stream, and how many tokens there were."""
        self.waiting = plan.waiting()
        """By operation, how often its value will be read."""
        self._sources = Sources(plan, model, forward, memory)

    def visit(self, visit: Visit) -> None:
        """All lanes of a visit, those together that fit."""
        along: dict[Any, Repeated] = {}
        for lanes in self.batches(visit):
            self.pass_together(lanes, along) if len(lanes) > 1 else self.all_of(lanes[0])

    def all_of(self, lane: Lane) -> None:
        for index in (*lane.before, *lane.passes, *lane.after):
            self.run(index)

    def run(self, index: int) -> None:
        operation = self.plan.operations[index]
        value = self._sources.value(index) if type(operation) is Enter else RUN[type(operation)](self, operation)
        self.made(index, value)

    def made(self, index: int, value: Any) -> None:
        """An operation has its value."""
        self.values[index] = value
        if index in self.taking:
            self.taken[index] = self.taking[index](value)
            self._let_go(index)
        self.read(index)

    def read(self, index: int) -> None:
        """What an operation was made from may go, where nothing else waits for it."""
        for read in self.plan.links[index]:
            self._let_go(read)

    def _let_go(self, index: int) -> None:
        """One that waited for a value has it."""
        self.waiting[index] -= 1
        if not self.waiting[index]:
            del self.values[index]

    def pass_together(self, lanes: Sequence[Lane], along: dict[Any, Repeated]) -> None:
        """Lanes with one pass each, of one site and kind; `along` has the ways past it at a centre that all have."""
        numbers = [number for lane in lanes for number in lane.passes]
        passes = [operation for number in numbers if isinstance(operation := self.plan.operations[number], Pass)]
        centre = self._held_at(passes)
        if centre is not None:
            self._pass_at(centre, lanes, passes, along)
            return
        first = passes[0]
        region = self.model.region(self.model.expansion.passage(first.site))
        self._make_ready(lanes, self._later({one.value for one in passes}))
        images = self.forward.pieces.side_by_side(region, self._stacked(passes), first.order, frozen=first.frozen)
        for number, row in zip(numbers, _rows(images), strict=True):
            self.made(number, row)
        for lane in lanes:
            for index in lane.after:
                self.run(index)

    def _make_ready(self, lanes: Sequence[Lane], later: set[int]) -> None:
        """All that the passes of some lanes read, but for what is made of stacks."""
        for lane in lanes:
            for index in lane.before:
                if index not in later:
                    self.run(index)

    def _pass_at(self, centre: int, lanes: Sequence[Lane], passes: Sequence[Pass], along: dict[Any, Repeated]) -> None:
        """Directions past a site, at a centre that all have."""
        operations, first = self.plan.operations, passes[0]
        entering = [one.direction for at in passes if isinstance(one := operations[at.value], Along)]
        fresh = {index for index in entering if type(operations[index]) is Enter and self._wait_alone({index})}
        # Sources that are computed together come as the stack that they are.
        runs = [(is_fresh, list(some)) for is_fresh, some in groupby(entering, fresh.__contains__)]
        stacks = [(some, self._sources.stack(some) if is_fresh else None) for is_fresh, some in runs]
        later = {one.value for one in passes} | {index for some, made in stacks if made is not None for index in some}
        self._make_ready(lanes, later)
        parts = [torch.stack([self.values[at] for at in some]) if made is None else made for some, made in stacks]
        directions = parts[0] if len(parts) == 1 else torch.cat(parts)
        self.values |= dict.fromkeys(later)
        del stacks, parts
        key = first.site, centre, first.frozen
        if key not in along:
            region = self.model.region(self.model.expansion.passage(first.site))
            along[key] = self.forward.pieces.along(region, self.values[centre], first.frozen)
        for one in passes:
            self.read(one.value)
        images = along[key](directions)
        del directions
        for lane, image in zip(lanes, images.unbind(), strict=True):
            self._passed_at(lane, image)

    def _passed_at(self, lane: Lane, image: Tensor) -> None:
        """A lane's only pass gave this slope."""
        (number,), after = lane.passes, [self.plan.operations[index] for index in lane.after]
        if self.waiting[number] == 1 and after == [Coefficient(number, 1)]:
            self.values[number] = None
            self.read(number)
            self.made(lane.after[0], image)
            return
        self.made(number, Series(image.unsqueeze(0), 1, 1))
        for index in lane.after:
            self.run(index)

    def _held_at(self, passes: Sequence[Pass]) -> int | None:
        """The centre at which passes of one site hold their gates, where it is the same for all directions that enter:
        what is held is then computed once. None for other passes.
        """
        first = passes[0]
        region = self.model.region(self.model.expansion.passage(first.site))
        if first.frozen is None or self.forward.pieces.fused or not all(map(is_native, region.nodes)):
            return None
        series = [operation for one in passes if isinstance(operation := self.plan.operations[one.value], Along)]
        centres = {one.centre for one in series}
        if len(series) < len(passes) or len(centres) > 1 or not self._wait_alone({one.value for one in passes}):
            return None
        (centre,) = centres
        return centre if centre is not None and isinstance(self.plan.operations[centre], Stream) else None

    def _later(self, ready: set[int]) -> set[int]:
        """Series that nothing else reads, and the centres matched for them, are made of what is stacked already: those
        that are not to be made before.
        """
        operations = self.plan.operations
        series = [operation for at in ready if isinstance(operation := operations[at], Towards)]
        if len(series) < len(ready) or not self._wait_alone(ready):
            return set()
        matched = {one.centre for one in series if one.stream is None}
        return ready | matched if not matched or self._wait_alone(matched) else set()

    def _wait_alone(self, numbers: set[int]) -> bool:
        """Operations that have not run, each of which one other waits for."""
        return all(number not in self.values and self.waiting[number] == 1 for number in numbers)

    def _stacked(self, passes: Sequence[Pass]) -> Any:
        """What goes through together: tensors as [n, …], series as a series of such."""
        numbers = [one.value for one in passes]
        if numbers[0] not in self.values:
            return self._series_of_stacked(numbers)
        given = [self.values[number] for number in numbers]
        if not isinstance(given[0], Series):
            return torch.stack(given)
        return given[0].like(torch.stack([value.coefficients for value in given], dim=1))

    def _series_of_stacked(self, numbers: Sequence[int]) -> Any:
        """What goes through together, made of stacked centres."""
        operations = self.plan.operations
        series = [operation for number in numbers if isinstance(operation := operations[number], Towards)]
        made = [one.centre for one in series if one.stream is None]
        starts = [operation for number in made if isinstance(operation := operations[number], Matched)] or series
        first = starts[0]
        assert first.stream is not None
        stream, centres = self.values[first.stream], torch.stack([self.values[one.centre] for one in starts])
        start = self.matched(first, centres, stream) if isinstance(first, Matched) else centres
        stacked = towards(start, stream, series[0].order)
        for number in (*made, *numbers):
            self.values[number] = None
            self.read(number)
        return stacked

    def weighed_by(self, passage: Passage, weights: Tensor) -> Tensor:
        """Weights [centre, *tokens], kept as a result and returned."""
        self.weights[passage.site.alias] = weights
        return weights

    def matched(self, operation: Matched, centre: Tensor, stream: Tensor) -> Match:
        """A centre, or a stack of such, matched to the stream; tokens for which there is no match are counted."""
        site = operation.site
        matched = match(self.forward.pieces, self.model.region_of(site), centre, stream)
        few, seen = self.far.setdefault(site, ([], 0))
        few.append((~matched.near).sum())
        self.far[site] = few, seen + matched.near.numel()
        return matched

    def batches(self, visit: Visit) -> Iterator[Sequence[Lane]]:
        """The lanes of a visit, as many at once as there is memory for."""
        if not visit.stacked or len(visit.lanes) == 1:
            yield from ((lane,) for lane in visit.lanes)
            return
        kinds: dict[Any, list[Lane]] = {}
        for lane in visit.lanes:
            operation = self.plan.operations[lane.passes[0]] if lane.passes else None
            assert isinstance(operation, Pass)
            kinds.setdefault((operation.order, operation.frozen), []).append(lane)
        for (order, _), lanes in kinds.items():
            # What one value takes inside: the operators' results live in threes or so, some in a wider type.
            inside = [node for node in self.plan.work[lanes[0].passes[0]].runs if "shape" in node.meta]
            largest = max(prod(self.forward.shape(node)) * node.meta["dtype"].itemsize for node in inside)
            passes = [one for lane in lanes if isinstance(one := self.plan.operations[lane.passes[0]], Pass)]
            alike = self._held_at(passes) is not None
            number = max(1, self.memory // max(3 * largest * (1 if alike else order + 1), 1))
            # Of what is computed together no part is left for another stack, where there is room for all of it.
            whole = groupby(lanes, self._group) if alike else ((None, [lane]) for lane in lanes)
            yield from packed([list(some) for _, some in whole], number)

    def _group(self, lane: Lane) -> tuple[int, ...]:
        """All that is computed together with what enters a lane's only pass along a direction."""
        (one,) = (self.plan.operations[number] for number in lane.passes)
        assert isinstance(one, Pass)
        value = self.plan.operations[one.value]
        return self._sources.group(value.direction) if isinstance(value, Along) else ()


def packed(groups: Sequence[Sequence[Lane]], number: int) -> Iterator[Sequence[Lane]]:
    """Groups one after the other in batches of so many at most; only those that are larger are cut."""
    batch: list[Lane] = []
    for group in groups:
        if batch and len(batch) + len(group) > number:
            yield batch
            batch = []
        batch += group
        while len(batch) > number:
            yield batch[:number]
            batch = batch[number:]
    if batch:
        yield batch


def _rows(value: Any) -> Sequence[Any]:
    """What was stacked, one by one."""
    return [*map(value.like, value.coefficients.unbind(1))] if isinstance(value, Series) else value.unbind()


# By operation


def _stream(run: Run, operation: Stream) -> Tensor:
    return run.forward[run.model.point(operation.point)]


def _carry(run: Run, operation: Carry) -> Tensor:
    return run.forward.stages.carry(run.values[operation.value], operation.point - 1, operation.point)


def _matched(run: Run, operation: Matched) -> Match:
    return run.matched(operation, run.values[operation.centre], run.values[operation.stream])


def _towards(run: Run, operation: Towards) -> Any:
    stream = None if operation.stream is None else run.values[operation.stream]
    return towards(run.values[operation.centre], stream, operation.order)


def towards(centre: Tensor | Match, stream: Tensor | None, order: int) -> Any:
    """The series from a centre, or a stack of such, to the stream; of order 0 the centre that it starts at."""
    if isinstance(centre, Match):
        return Series.variate(centre.centre, centre.way, order) if order else centre.centre
    assert stream is not None
    return Series.variate(centre, stream - centre, order)


def _along(run: Run, operation: Along) -> Series:
    direction = run.values[operation.direction]
    if operation.centre is None:
        return Series.direction(direction)
    centre = run.values[operation.centre]
    if isinstance(centre, Match):
        return Series.variate(centre.centre, torch.where(centre.near, direction, 0), 1)
    return Series.variate(centre, direction, 1)


def _pass(run: Run, operation: Pass) -> Any:
    passage = run.model.expansion.passage(operation.site)
    value = run.values[operation.value]
    return through(run.model, run.forward, passage, value, operation.order, operation.frozen)


def _open(run: Run, operation: Open) -> Any:
    branch = run.model.wholes[operation.site]
    assert branch.part is not None
    return run.forward.pieces.open(branch.part.cut, run.values[operation.value], operation.order, operation.frozen)


def _part(run: Run, operation: Part) -> Any:
    branch = run.model.branch(run.model.expansion.passage(operation.site))
    assert branch.part is not None
    return run.forward.pieces.part(branch.part, run.values[operation.opened], operation.order, operation.frozen)


def _coefficient(run: Run, operation: Coefficient) -> Tensor:
    series = run.values[operation.value]
    value = coefficient(series, operation.order)
    if operation.weight != 1:
        return value * operation.weight
    # Of a frozen pass the slope alone is read: a view would keep the value at the centre in memory with each result.
    passed = run.plan.operations[operation.value]
    alone = isinstance(passed, Pass | Part) and passed.frozen is not None and isinstance(series, Series)
    return value.clone() if alone and series.stop - series.start > 1 else value


def _polynomial(run: Run, operation: Polynomial) -> Tensor:
    value = run.values[operation.value]
    total = value.span(0, operation.order + 1).sum(0) if isinstance(value, Series) else value
    return total if operation.weight == 1 else total * operation.weight


def _land(run: Run, operation: Land) -> Tensor:
    return landed(run.model, run.forward, run.model.expansion.passage(operation.site), run.values[operation.value])


def _sum(run: Run, operation: Sum) -> Tensor:
    if not operation.values:
        return run.forward.sizes.zeros(run.model.region(run.model.expansion.passage(operation.site)).exit)
    total = run.values[operation.values[0]]
    for index in operation.values[1:]:
        total = total + run.values[index]
    return total


def _own(run: Run, operation: Own) -> Tensor:
    return own(run.model, run.forward, run.model.expansion.passage(operation.site))


def _optimum(run: Run, operation: Optimum) -> Tensor:
    passage = run.model.expansion.passage(operation.site)
    values = [run.values[value] for value in operation.values]
    return run.weighed_by(
        passage, optimal_weights(values, run.values[operation.own], run.model.tokens(passage), passage.site.alias)
    )


def _preset(run: Run, operation: Preset) -> Tensor:
    passage = run.model.expansion.passage(operation.site)
    exit = run.model.region(passage).exit
    like = run.forward.sizes.zeros(exit)
    return run.weighed_by(passage, given_weights(passage, like, run.model.tokens(passage)))


def _weigh(run: Run, operation: Weigh) -> Tensor:
    return run.values[operation.value] * run.values[operation.weights][operation.place]


RUN: dict[type[Operation], Callable[[Run, Any], Any]] = {
    Stream: _stream,
    Carry: _carry,
    Matched: _matched,
    Towards: _towards,
    Along: _along,
    Pass: _pass,
    Open: _open,
    Part: _part,
    Coefficient: _coefficient,
    Polynomial: _polynomial,
    Land: _land,
    Sum: _sum,
    Own: _own,
    Optimum: _optimum,
    Preset: _preset,
    Weigh: _weigh,
}
"""What each operation does; one that enters, see `Sources`."""
