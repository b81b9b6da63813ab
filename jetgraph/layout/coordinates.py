"""Coordinates, sizes, and lines that end at a page's width as those of a text do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import networkx as nx

XY = tuple[float, float]

ROW = 34.0
"""From a box to the next one above it."""

GAP = 44.0
"""From one column of boxes to the next."""

CHARACTER = 6.4
"""Width of a letter in a box, on average."""

WIDEST = 1240.0
"""Width of a page: what is longer goes on in a line below."""


@dataclass(eq=False)
class Coordinates:
    """Where nodes stand, and what edges pass on their way."""

    at: dict[Any, XY] = field(default_factory=dict)
    ways: dict[tuple[str, str, Any], list[XY]] = field(default_factory=dict)
    line: dict[Any, int] = field(default_factory=dict)
    """Number of the line that a node stands on, from above."""


@dataclass(frozen=True)
class Lines:
    """Lines of a page, one below the other, and how one leads to the next."""

    levels: tuple[float, ...]
    """Height of the middle of each."""
    below: tuple[float, ...]
    """Height at which one passes below each."""
    left: float
    right: float

    def between(self, start: XY, line: int, end: XY) -> list[XY]:
        """From the end of a line to a place on a later one: around the right edge, and back below it."""
        low = self.below[line]
        return [(self.right, start[1]), (self.right, low), (self.left, low), (self.left, end[1])]


def stacked(extents: Sequence[tuple[float, float]], left: float, right: float) -> Lines:
    """Lines that reach from `low` to `high` around their middles, one below the other.

    >>> stacked([(-10.0, 30.0), (0.0, 50.0)], 0.0, 100.0).levels
    (0.0, -110.0)
    """
    levels: list[float] = []
    below: list[float] = []
    for low, high in extents:
        level = 0.0 if not levels else below[-1] - ROW - high + 9
        levels.append(level)
        below.append(level + low - 25)
    return Lines(tuple(levels), tuple(below), left, right)


def box_width(text: str) -> float:
    """Width of a box around a text."""
    return CHARACTER * len(text) + 16


def store(dag: nx.MultiDiGraph, places: Coordinates) -> None:
    """Write places onto a graph."""
    for node, (x, y) in places.at.items():
        dag.nodes[node].update(x=round(x, 1), y=round(y, 1))
    for start, end, key, facts in dag.edges(keys=True, data=True):
        facts["way"] = as_text(places.ways.get((start, end, key), ()))


def as_text(way: Iterable[XY]) -> str:
    """Coordinates as the text of an attribute.

    >>> as_text([(1.0, 2.5), (3.0, -4.0)])
    '1,2.5 3,-4'
    """
    return " ".join(f"{round(x, 1):g},{round(y, 1):g}" for x, y in way)


def read_way(text: str) -> list[XY]:
    """The places that `as_text` has written."""
    return [(float(x), float(y)) for x, _, y in (one.partition(",") for one in text.split())]
