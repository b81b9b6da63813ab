"""One evaluation of a plan: the values that something waits for, and what each operation does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from jetgraph.algebra.passages import Passage
from jetgraph.compilation.entering import Sources
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
    Weigh,
)
from jetgraph.compilation.weighing import given_weights, optimal_weights
from jetgraph.jets.series import Series, coefficient
from jetgraph.running.forward import Forward
from jetgraph.running.matching import Match, match, radius_of, towards


class Run:
    """The values of one evaluation that something waits for, by operation.

    Parameters
    ----------
    plan, model, forward, memory
        As of `jetgraph.compilation.evaluation.evaluate`.
    taken
        By operation, what is made at once of a result of the plan, and kept in its place.
    """

    def __init__(
        self,
        plan: Plan,
        model: Model,
        forward: Forward,
        memory: int,
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
        self.radii: dict[str, list[Tensor]] = {}
        """By site that is one norm: radii of the centres that were matched, [n, *tokens] each."""
        self.scales: dict[str, list[Tensor]] = {}
        """By such a site: what these centres were multiplied by, as `radii`."""
        self.waiting = plan.waiting()
        """By operation, how often its value will be read."""
        self.sources = Sources(plan, model, forward, memory)

    def all_of(self, lane: Lane) -> None:
        for index in (*lane.before, *lane.passes, *lane.after):
            self.run(index)

    def run(self, index: int) -> None:
        operation = self.plan.operations[index]
        value = self.sources.value(index) if type(operation) is Enter else RUN[type(operation)](self, operation)
        self.made(index, value)

    def made(self, index: int, value: Any) -> None:
        """An operation has its value."""
        self.values[index] = value
        if index in self.taking:
            self.taken[index] = self.taking[index](value)
            self.waiting[index] -= 1
            if not self.waiting[index]:
                del self.values[index]
        self.read(index)

    def read(self, index: int) -> None:
        """What an operation was made from may go, where nothing else waits for it."""
        waiting = self.waiting
        for read in self.plan.links[index]:
            waiting[read] -= 1
            if not waiting[read]:
                del self.values[read]

    def wait_alone(self, numbers: set[int]) -> bool:
        """Operations that have not run, each of which one other waits for."""
        return all(number not in self.values and self.waiting[number] == 1 for number in numbers)

    def weighed_by(self, passage: Passage, weights: Tensor) -> Tensor:
        """Weights [centre, *tokens], kept as a result and returned."""
        self.weights[passage.site.alias] = weights
        return weights

    def matched(self, operation: Matched, centre: Tensor, stream: Tensor) -> Match:
        """A centre, or a stack of such, matched to the stream; tokens for which there is no match are counted."""
        site = operation.site
        region, pieces = self.model.region_of(site), self.forward.pieces
        matched = match(pieces, region, centre, stream)
        radii = radius_of(pieces, region, matched)
        if radii is not None:
            stacked = centre.dim() > stream.dim()
            self.scales.setdefault(site, []).append(matched.scale if stacked else matched.scale.unsqueeze(0))
            radii = radii if stacked else radii.unsqueeze(0)
        self.note(site, matched.near, radii)
        return matched

    def note(self, site: str, near: Tensor, radii: Tensor | None) -> None:
        """What was found out of centres [n, …] that were matched at a site: for which tokens, and their radii."""
        few, seen = self.far.setdefault(site, ([], 0))
        few.append((~near).sum())
        self.far[site] = few, seen + near.numel()
        if radii is not None:
            self.radii.setdefault(site, []).append(radii)


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
