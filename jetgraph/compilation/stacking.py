"""Values that pass one site in one way go through it together, stacked along the batch; memory bounds the batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from math import prod
from typing import Any

import torch
from torch import Tensor

from jetgraph.compilation.origins import landed
from jetgraph.compilation.plan import (
    Along,
    Coefficient,
    Enter,
    Land,
    Lane,
    Matched,
    Pass,
    Polynomial,
    Stream,
    Towards,
    Visit,
)
from jetgraph.compilation.run import Run
from jetgraph.jets.registry import is_native
from jetgraph.jets.series import Series
from jetgraph.running.matching import towards
from jetgraph.running.summing import can_be_summed, summed_towards
from jetgraph.structure.regions import Region

LITTLE = 2**24
"""Bytes of inner values that go together, however little the results take. What is linear in directions gives as much
as it takes: with all at once, twice the results would be there."""


class StackedRun(Run):
    """A run of visits, each of whose lanes go side by side as many as fit."""

    def visit(self, visit: Visit) -> None:
        """All lanes of a visit, those together that fit."""
        along: dict[Any, Callable[[Tensor], Tensor]] = {}
        for lanes in self.batches(visit):
            self.pass_together(lanes, along) if len(lanes) > 1 else self.all_of(lanes[0])

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
            room = min(self.memory, max(LITTLE, self._kept // 2)) if alike and self._kept else self.memory
            number = max(1, room // max(3 * largest * (1 if alike else order + 1), 1))
            # Of what is computed together no part is left for another stack, where there is room for all of it.
            whole = groupby(lanes, self._group) if alike else ((None, [lane]) for lane in lanes)
            yield from packed([list(some) for _, some in whole], number)

    @cached_property
    def _kept(self) -> int:
        """Bytes of all results; none of a plan that is still being made."""
        exit = self.model.graph.structure.decoder.nonlinear.exit
        return len(self.plan.results) * prod(self.forward.shape(exit)) * exit.meta["dtype"].itemsize

    def _group(self, lane: Lane) -> tuple[int, ...]:
        """All that is computed together with what enters a lane's only pass along a direction."""
        one = self.plan.operations[lane.passes[0]]
        assert isinstance(one, Pass)
        value = self.plan.operations[one.value]
        return self.sources.group(value.direction) if isinstance(value, Along) else ()

    def pass_together(self, lanes: Sequence[Lane], along: dict[Any, Callable[[Tensor], Tensor]]) -> None:
        """Lanes with one pass each, of one site and kind; `along` has the ways past it at a centre that all have."""
        numbers = [number for lane in lanes for number in lane.passes]
        passes = [operation for number in numbers if isinstance(operation := self.plan.operations[number], Pass)]
        centre = self._held_at(passes)
        if centre is not None:
            self._pass_at(centre, lanes, passes, along)
            return
        first = passes[0]
        region = self.model.region(self.model.expansion.passage(first.site))
        later = self._later({one.value for one in passes})
        self._make_ready(lanes, later)
        order, pieces = self._added_alike(lanes), self.forward.pieces
        together = order is not None and order == first.order and first.frozen is None
        if together and later and can_be_summed(pieces, region, first.order):
            self._add_up(lanes, self._summed(region, passes))
            return
        stacked = self._stacked(passes)
        if together and isinstance(stacked, Series):
            self._add_up(lanes, pieces.sums(region, stacked, first.order))
            return
        images = pieces.side_by_side(region, stacked, first.order, frozen=first.frozen)
        if order is not None:
            self._add_up(lanes, images.span(0, order + 1).sum(0) if isinstance(images, Series) else images)
            return
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

    def _added_alike(self, lanes: Sequence[Lane]) -> int | None:
        """The order up to which all lanes add up what they get, with nothing else to do but to land it; else None."""
        operations, chains = self.plan.operations, [lane.after for lane in lanes]
        first = [operations[index] for index in chains[0]]
        if not first or not isinstance(first[0], Polynomial):
            return None
        sites = [one.site for one in first[1:] if isinstance(one, Land)]
        if len(first) > 1 + len(sites) or len(sites) > 1:
            return None
        for lane, chain in zip(lanes, chains, strict=True):
            (number,) = lane.passes
            alike = [Polynomial(number, first[0].order), *(Land(site, chain[0]) for site in sites)]
            if [operations[index] for index in chain] != alike:
                return None
            if any(self.waiting[index] != 1 for index in (number, *chain[:-1])):
                return None
        return first[0].order

    def _add_up(self, lanes: Sequence[Lane], total: Tensor) -> None:
        """All lanes' sums of coefficients, in one stack."""
        for land in (self.plan.operations[index] for index in lanes[0].after):
            if isinstance(land, Land):
                total = landed(self.model, self.forward, self.model.expansion.passage(land.site), total, stacked=True)
        for lane, row in zip(lanes, total.unbind(), strict=True):
            for index in (*lane.passes, *lane.after[:-1]):
                self.values[index] = None
                self.read(index)
            self.made(lane.after[-1], row)

    def _pass_at(
        self, centre: int, lanes: Sequence[Lane], passes: Sequence[Pass], along: dict[Any, Callable[[Tensor], Tensor]]
    ) -> None:
        """Directions past a site, at a centre that all have."""
        operations, first = self.plan.operations, passes[0]
        entering = [one.direction for at in passes if isinstance(one := operations[at.value], Along)]
        unmade = (index for index in entering if type(operations[index]) is Enter and index not in self.values)
        fresh = {index for index in unmade if self.waiting[index] == 1}
        # Sources that are computed together come as the stack that they are.
        runs = [(is_fresh, list(some)) for is_fresh, some in groupby(entering, fresh.__contains__)]
        stacks = [(some, self.sources.stack(some) if is_fresh else None) for is_fresh, some in runs]
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
        (number,), after = lane.passes, lane.after
        # There may be thousands of lanes: no operation is made to be compared with.
        one = self.plan.operations[after[0]] if len(after) == 1 and self.waiting[number] == 1 else None
        if isinstance(one, Coefficient) and one.value == number and one.order == one.weight == 1:
            self.values[number] = None
            self.read(number)
            self.made(after[0], image)
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
        if len(series) < len(passes) or len(centres) > 1 or not self.wait_alone({one.value for one in passes}):
            return None
        (centre,) = centres
        return centre if centre is not None and isinstance(self.plan.operations[centre], Stream) else None

    def _later(self, ready: set[int]) -> set[int]:
        """Series that nothing else reads, and the centres matched for them, are made of what is stacked already: those
        that are not to be made before.
        """
        operations = self.plan.operations
        series = [operation for at in ready if isinstance(operation := operations[at], Towards)]
        if len(series) < len(ready) or not self.wait_alone(ready):
            return set()
        matched = {one.centre for one in series if one.stream is None}
        return ready | matched if not matched or self.wait_alone(matched) else set()

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
        first, centres, stream, order = self._centres(numbers)
        start = self.matched(first, centres, stream) if isinstance(first, Matched) else centres
        return towards(start, stream, order)

    def _summed(self, region: Region, passes: Sequence[Pass]) -> Tensor:
        """The sums of what passes make of stacked centres."""
        first, centres, stream, order = self._centres([one.value for one in passes])
        matched = isinstance(first, Matched)
        found = summed_towards(self.forward.pieces, region, centres, stream, order, matched=matched)
        if found.near is not None:
            self.note(first.site, found.near, found.radii)
        return found.total

    def _centres(self, numbers: Sequence[int]) -> tuple[Any, Tensor, Tensor, int]:
        """Of series from centres to the stream, which count as made from here on: the first that is made of a centre,
        the stacked centres, the stream, and the order.
        """
        operations = self.plan.operations
        series = [operation for number in numbers if isinstance(operation := operations[number], Towards)]
        made = [one.centre for one in series if one.stream is None]
        starts = [operation for number in made if isinstance(operation := operations[number], Matched)] or series
        first = starts[0]
        assert first.stream is not None
        stream, centres = self.values[first.stream], torch.stack([self.values[one.centre] for one in starts])
        for number in (*made, *numbers):
            self.values[number] = None
            self.read(number)
        return first, centres, stream, series[0].order


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
