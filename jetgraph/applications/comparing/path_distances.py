"""How far the tables of two models are from each other, path by path."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from jetgraph.applications.distances import cosine_distance, jensen_shannon, total_variation
from jetgraph.applications.results import Cell, Result, Shown
from jetgraph.errors import amount

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Distance:
    """How far the tables of one path are from each other: means over contexts. None where one model lacks the path."""

    path: str
    total_variation: float | None
    jensen_shannon: float | None
    cosine_distance: float | None
    intervals: tuple[float, float, float] | None = None
    """Half of each mean's 95 % interval, where the contexts are a sample of the vocabulary."""


@dataclass(frozen=True, eq=False, repr=False)
class PathDistances(Result):
    """Distance between the tables of two models, path by path."""

    names: tuple[str, str]
    contexts: int
    rows: tuple[Distance, ...]

    @property
    def title(self) -> str:
        """What was compared."""
        return f"distance of {self.names[1]} from {self.names[0]} by path, mean over {amount(self.contexts, 'context')}"

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """path, total_variation in 0..1, jensen_shannon in nats (0..ln 2), cosine_distance in 0..2; of a sample of
        contexts half of each mean's 95 % interval too.
        """
        columns: dict[str, list[Cell]] = {"path": [row.path for row in self.rows]}
        sampled = any(row.intervals is not None for row in self.rows)
        for place, name in enumerate(("total_variation", "jensen_shannon", "cosine_distance")):
            columns[name] = [getattr(row, name) for row in self.rows]
            if sampled:
                columns[f"{name} ±"] = [None if row.intervals is None else row.intervals[place] for row in self.rows]
        return columns

    def shown(self) -> Shown:
        """The largest distance first."""
        return Shown(first=("total_variation",))

    def figure(self) -> Figure:
        """Bars: the three distances by path."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 1.6 + 0.45 * len(self.rows)), layout="constrained")
        self.draw(figure.subplots())
        return figure

    def draw(self, axes: Any) -> None:
        """The bars, on matplotlib axes."""
        columns = self.columns()
        labels = {
            "total_variation": "total variation",
            "jensen_shannon": "Jensen–Shannon (nats)",
            "cosine_distance": "1 − cosine of centred logits",
        }
        for index, (name, label) in enumerate(labels.items()):
            places = [place + 0.27 * (index - 1) for place in range(len(self.rows))]
            widths = [math.nan if cell is None else cell for cell in columns[name]]
            halves = [0.0 if cell is None else cell for cell in columns.get(f"{name} ±", ())]
            axes.barh(places, widths, 0.25, label=label, xerr=halves or None, error_kw={"linewidth": 0.8})
        axes.set_yticks(range(len(self.rows)), columns["path"], fontsize=8, parse_math=False)
        axes.invert_yaxis()
        axes.set_xlabel("distance between the tables, mean over contexts")
        axes.set_xlim(left=0)
        axes.set_title("by path", fontsize=10)
        # Below the axes, where it covers no bar.
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False)


NORMAL = 1.959964
"""Standard errors of a mean to each end of its 95 % interval."""


@dataclass
class Distances:
    """Sums over contexts of the distances between two tables, and of their squares."""

    total_variation: float = 0.0
    jensen_shannon: float = 0.0
    cosine_distance: float = 0.0
    contexts: int = 0
    squares: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def add(self, logits: Sequence[Tensor], log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> None:
        """Some contexts more."""
        several = total_variation(p, q), jensen_shannon(log_p, log_q), cosine_distance(*logits)
        each = [value.double() for value in several]
        variation, divergence, angle = (float(value.sum()) for value in each)
        first, second, third = (float(value.square().sum()) for value in each)
        more = Distances(variation, divergence, angle, len(p), (first, second, third))
        vars(self).update(vars(self.plus(more)))

    def plus(self, other: Distances) -> Distances:
        """Over the contexts of both."""
        mine, its = self.numbers(), other.numbers()
        return Distances.of([one + another for one, another in zip(mine, its, strict=True)])

    def numbers(self) -> list[float]:
        """All of it as numbers, from which `of` makes it again."""
        return [self.total_variation, self.jensen_shannon, self.cosine_distance, self.contexts, *self.squares]

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Distances:
        """What `numbers` gave."""
        variation, divergence, angle, contexts, *squares = numbers
        return cls(variation, divergence, angle, int(contexts), (squares[0], squares[1], squares[2]))

    def row(self, path: str, sampled: int) -> Distance:
        """Means over contexts, which are a sample of so many tokens; 0 where they are none."""
        number = self.contexts
        if not number:
            return Distance(path, None, None, None)
        means = [value / number for value in (self.total_variation, self.jensen_shannon, self.cosine_distance)]
        halves = None
        if 1 < number < sampled:
            # Of a sample without replacement: nothing is left open once all have been seen.
            spread = [max(0.0, square / number - mean**2) for square, mean in zip(self.squares, means, strict=True)]
            first, second, third = (NORMAL * math.sqrt(one / (number - 1) * (1 - number / sampled)) for one in spread)
            halves = (first, second, third)
        return Distance(path, means[0], means[1], means[2], halves)
