"""Names beside the points of a scatter plot, where they hide neither a point nor each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from jetgraph.algebra.outline import SINK

Point = tuple[str, float, float]
"""A path, and where it is: its predicted and its actual effect."""

LABELLED = 10
"""Points of a scatter plot that are named."""


def name_points(points: Sequence[Point], axes: Any) -> None:
    """Write the names of the largest effects beside their points, as far as there is room."""
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7, "va": "center", "parse_math": False}
    for path, x, y, side in _labels(points, axes):
        axes.annotate(path, (x, y), xytext=(4 * side, 0), ha="left" if side > 0 else "right", **style)


def _labels(points: Sequence[Point], axes: Any) -> Iterator[tuple[str, float, float, int]]:
    """The names of the largest effects that have room, and on which side of the point (1: right, -1: left)."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    spots = [(path, x, y, (x - left) / (right - left), (y - low) / (high - low)) for path, x, y in points]
    taken: list[tuple[float, float, float]] = []
    for path, x, y, across, up in sorted(spots, key=lambda spot: -abs(spot[1]) - abs(spot[2])):
        name = path.removesuffix(f" > {SINK}")
        # In shares of the axes: a letter is about 0.0105 wide, a line 0.025 high.
        reach = 0.02 + 0.0105 * len(name)
        for side, start in ((1, across + 0.008), (-1, across - 0.008 - reach)):
            end = start + reach
            clear = all(abs(up - other[4]) > 0.017 or not start < other[3] < end for other in spots)
            free = all(abs(up - other) > 0.027 or end < begin or start > stop for begin, stop, other in taken)
            if clear and free and start > 0 and end < 1:
                taken.append((start, end, up))
                yield name, x, y, side
                break
        if len(taken) == LABELLED:
            return
