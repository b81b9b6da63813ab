"""The largest paths of a linear expansion, by branch and bound along the stream.

What has come to a point is a prefix of paths with a value there. Prefixes whose energy says that no completion reaches
the least value that is looked for are dropped; the others pass the sites that read the point, all together. With exact
energies nothing is missed. Where a number of paths is asked for, a beam says first what the least of them is worth at
least.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jetgraph.algebra.outline import SINK
from jetgraph.algebra.passages import Passage
from jetgraph.algebra.paths import Hop
from jetgraph.compilation.bounds import Energies, Estimate
from jetgraph.compilation.components import Readout, Stream
from jetgraph.errors import BudgetError, big

ERRORS = 2.0
"""Standard errors that an estimated energy is given on top before a prefix is dropped."""

PREFIX_BUDGET = 200_000
"""Prefixes at one point, at most."""

BEAM = 64
"""The least width of the beam."""

Step = tuple[Hop, int | None]
"""A hop, and the position at which it is taken where these are told apart."""


@dataclass(frozen=True)
class Found:
    """One path and what it gives the target."""

    steps: tuple[Step, ...]
    value: float


@dataclass(frozen=True)
class Search:
    """What a search has found."""

    found: tuple[Found, ...]
    """Largest first."""
    visited: int
    """Prefixes that were evaluated."""
    energy: float
    """Σ c² over all paths."""
    error: float
    """Its standard error; 0 where it is exact."""


def search(
    stream: Stream, readout: Readout, energies: Energies, back: Tensor, top: int | None, least: float | None
) -> Search:
    """The paths that give a target most, by absolute value.

    Parameters
    ----------
    stream, energies
        Of the expansion.
    readout
        The target.
    back
        Its gradient at the last point.
    top
        How many at most; None for all that reach `least`.
    least
        The least absolute value; None for whatever the first `top` have.

    Raises
    ------
    BudgetError
        More than `PREFIX_BUDGET` prefixes may lead to such paths.
    """
    walk = _Walk(stream, energies, back)
    constants = [
        Found(((Hop(stream.components[at].alias), None), (Hop(SINK), None)), sum(values))
        for at, values in stream.constants([readout]).items()
    ]
    visited = 0
    if least is None:
        assert top is not None
        beam = walk.run(_widest(max(BEAM, 4 * top)))
        ranked = sorted((abs(one.value) for one in (*beam, *constants)), reverse=True)
        # Somewhat less, for what rounding may have made of it.
        least = ranked[top - 1] * (1 - 1e-5) if len(ranked) >= top else 0.0
        visited = walk.visited
    paths = walk.run(_reaching(least))
    whole = [one for one in (*paths, *constants) if abs(one.value) >= least]
    whole.sort(key=lambda one: -abs(one.value))
    energy = walk.energy + sum(one.value**2 for one in constants)
    return Search(tuple(whole[:top]), visited + walk.visited, energy, 0.0 if energies.exact else walk.error)


Keep = Callable[[Estimate], Tensor]
"""Which of some prefixes go on, by their energies; a mask."""


def _reaching(least: float) -> Keep:
    # What rounding may have left of an energy is none where all paths are asked for that have one.
    return lambda estimate: (estimate[0] + ERRORS * estimate[1] >= least**2) & ((estimate[0] > 0) | (least > 0))


def _widest(width: int) -> Keep:
    def keep(estimate: Estimate) -> Tensor:
        energy = estimate[0].flatten()
        kept = torch.zeros_like(energy, dtype=torch.bool)
        kept[energy.topk(min(width, len(energy))).indices] = True
        return (kept & (energy > 0)).reshape(estimate[0].shape)

    return keep


@dataclass(eq=False)
class _Prefixes:
    """Some prefixes at a point: their numbers, and their values [n, *point]."""

    numbers: list[int]
    values: Tensor

    def chosen(self, mask: Tensor) -> _Prefixes:
        places = mask.nonzero()[:, 0].tolist()
        return _Prefixes([self.numbers[at] for at in places], self.values[mask])


class _Walk:
    """Prefixes on their way along the stream."""

    def __init__(self, stream: Stream, energies: Energies, back: Tensor) -> None:
        self._stream, self._energies, self._back = stream, energies, back
        self._reading: dict[int, list[Passage]] = {}
        for component in stream.components:
            if component.passage is not None:
                self._reading.setdefault(component.passage.reads, []).append(component.passage)

    def run(self, keep: Keep) -> list[Found]:
        """All paths whose prefixes are kept."""
        self._trail: list[tuple[int, Step]] = []
        """By prefix, the one before it (−1 for a source), and its last step."""
        self._keep = keep
        self.visited, self.energy, self.error = 0, 0.0, 0.0
        self._at: dict[int, list[_Prefixes]] = {}
        paths: list[Found] = []
        for point in range(self._stream.end + 1):
            self._enter(point)
            arrived = self._at.pop(point, [])
            if not arrived:
                continue
            prefixes = _Prefixes(
                [number for one in arrived for number in one.numbers], torch.cat([one.values for one in arrived])
            )
            prefixes = prefixes.chosen(keep(self._energies.at(point, prefixes.values)))
            if len(prefixes.numbers) > PREFIX_BUDGET:
                raise BudgetError(
                    f"{big(len(prefixes.numbers))} prefixes of paths may lead to what is looked for, more than "
                    f"{PREFIX_BUDGET}: ask for larger values, at_least={self._affordable():.3g} (--at-least)"
                )
            if prefixes.numbers:
                self._leave(point, prefixes)
            if point == self._stream.end:
                values = (prefixes.values.flatten(1).double() @ self._back.flatten().double()).tolist()
                paths += [
                    Found((*self._steps(number), (Hop(SINK), None)), value)
                    for number, value in zip(prefixes.numbers, values, strict=True)
                ]
        return paths

    def _affordable(self) -> float:
        """A least value with which no point has more prefixes than the budget.

        All completions of all prefixes at a point are different paths, so that the energies of the prefixes sum to no
        more than that of all paths: no more prefixes than the budget can have their part of it, or a larger one.
        """
        total = 0.0
        for number, component in enumerate(self._stream.components):
            if component.passage is None:
                energy, error = self._energies.each(component.lands, self._stream.added[number][None])
                total += float((energy + ERRORS * error).sum())
        # For digits that are not shown; and for estimates, which may be larger at other points.
        return (1.01 if self._energies.exact else 1.5) * (total / PREFIX_BUDGET) ** 0.5

    def _steps(self, number: int) -> tuple[Step, ...]:
        steps: list[Step] = []
        while number >= 0:
            number, step = self._trail[number]
            steps.append(step)
        return tuple(reversed(steps))

    def _enter(self, point: int) -> None:
        """The sources at a point."""
        for number, component in enumerate(self._stream.components):
            if component.lands == point and component.passage is None:
                values = self._stream.added[number][None]
                estimate = self._energies.each(point, values)
                self.energy += float(estimate[0].sum())
                self.error = (self.error**2 + float(estimate[1].square().sum())) ** 0.5
                self._arrive(point, Hop(component.alias), [-1], values, estimate)

    def _leave(self, point: int, prefixes: _Prefixes) -> None:
        for passage in self._reading.get(point, ()):
            some = prefixes.chosen(self._keep(self._energies.into(passage.site.alias, prefixes.values)))
            if some.numbers:
                passed = self._stream.sites[passage.site.alias].forwards(some.values)
                estimate = self._energies.each(passage.step, passed)
                self._arrive(passage.step, Hop(passage.site.alias), some.numbers, passed, estimate)
        for stop, silent in enumerate(self._stream.silent):
            if silent is not None and silent[0] == point:
                carried = _Prefixes(prefixes.numbers, silent[1].forwards(prefixes.values))
                self._at.setdefault(stop, []).append(carried)

    def _arrive(self, point: int, hop: Hop, before: list[int], values: Tensor, estimate: Estimate) -> None:
        """New prefixes, of the values' parts at each position where these are told apart."""
        self.visited += len(before)
        mask = self._keep(estimate)
        at = mask.nonzero()
        if not len(at):
            return
        told_apart = self._stream.positions_of(values[0]) != (None,)
        if told_apart:
            parts = values.new_zeros(len(at), *values.shape[1:])
            index = torch.arange(len(at), device=values.device)
            self._stream.placed(parts)[index, at[:, 1]] = self._stream.placed(values)[at[:, 0], at[:, 1]]
        else:
            parts = values[at[:, 0]]
        first = len(self._trail)
        self._trail += [(before[row], (hop, place if told_apart else None)) for row, place in at.tolist()]
        self._at.setdefault(point, []).append(_Prefixes(list(range(first, len(self._trail))), parts))
