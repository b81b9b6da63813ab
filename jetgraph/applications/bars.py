"""A picture of names and numbers: horizontal bars."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jetgraph.layout.colours import GIVES, OTHER, TAKES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = 24
"""The most bars in a figure."""


def drawn(number: int, whole: int) -> str:
    """How a title ends where the picture has less than the table.

    >>> drawn(24, 1200), drawn(24, 24)
    ('; drawn: 24 of 1,200', '')
    """
    return f"; drawn: {number:,} of {whole:,}" if number < whole else ""


def bars(values: Sequence[tuple[str, float]], title: str, label: str) -> Figure:
    """Horizontal bars of names and values, the first on top; blue, and red below zero. Of more than `BARS` the title
    says how many are drawn.
    """
    from matplotlib.figure import Figure

    shown = values[:BARS]
    figure = Figure(figsize=(8.5, 1.4 + 0.27 * max(3, len(shown))), layout="constrained")
    axes = figure.subplots()
    places = list(range(len(shown)))
    axes.barh(places, [value for _, value in shown], color=[GIVES if v >= 0 else TAKES for _, v in shown])
    # A dollar sign in a token opens no formula.
    axes.set_yticks(places, [name for name, _ in shown], fontsize=8, parse_math=False)
    axes.axvline(0, color=OTHER, linewidth=0.6)
    axes.grid(axis="x", alpha=0.3)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    title += drawn(len(shown), len(values))
    axes.set_title("\n".join(textwrap.wrap(title, 90)), fontsize=9, parse_math=False)
    return figure
