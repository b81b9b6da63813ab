"""How far the tables of two models are from each other, path by path."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from jetgraph.applications.distances import cosine, jensen_shannon, total_variation
from jetgraph.applications.results import Cell, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Distance:
    """How far the tables of one path are from each other: means over contexts. None where one model lacks the path."""

    path: str
    total_variation: float | None
    jensen_shannon: float | None
    cosine_distance: float | None


@dataclass(frozen=True, eq=False, repr=False)
class PathDistances(Result):
    """Distance between the tables of two models, path by path."""

    names: tuple[str, str]
    contexts: int
    rows: tuple[Distance, ...]

    @property
    def title(self) -> str:
        """What was compared."""
        return f"distance of {self.names[1]} from {self.names[0]} by path, mean over {self.contexts} contexts"

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """path, total_variation in 0..1, jensen_shannon in nats (0..ln 2), cosine_distance in 0..2."""
        return {
            "path": [row.path for row in self.rows],
            "total_variation": [row.total_variation for row in self.rows],
            "jensen_shannon": [row.jensen_shannon for row in self.rows],
            "cosine_distance": [row.cosine_distance for row in self.rows],
        }

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
            axes.barh(places, [math.nan if cell is None else cell for cell in columns[name]], 0.25, label=label)
        axes.set_yticks(range(len(self.rows)), columns["path"], fontsize=8, parse_math=False)
        axes.invert_yaxis()
        axes.set_xlabel("distance between the tables, mean over contexts")
        axes.set_xlim(left=0)
        axes.set_title("by path", fontsize=10)
        # Below the axes, where it covers no bar.
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False)


@dataclass
class Distances:
    """Sums over contexts of the distances between two tables."""

    total_variation: float = 0.0
    jensen_shannon: float = 0.0
    cosine: float = 0.0
    contexts: int = 0

    def add(self, logits: Sequence[Tensor], log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> None:
        self.contexts += len(p)
        self.total_variation += float(total_variation(p, q).sum())
        self.jensen_shannon += float(jensen_shannon(log_p, log_q).sum())
        self.cosine += float(cosine(*logits).sum())

    def plus(self, other: Distances) -> Distances:
        """Over the contexts of both."""
        mine, its = vars(self), vars(other)
        return Distances(**{name: mine[name] + its[name] for name in mine})

    def row(self, path: str) -> Distance:
        if not self.contexts:
            return Distance(path, None, None, None)
        return Distance(
            path,
            self.total_variation / self.contexts,
            self.jensen_shannon / self.contexts,
            1 - self.cosine / self.contexts,
        )
