"""Pictures of n-grams and of words: horizontal bars."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = 20
"""The most bars in a figure."""


def bars(labels: Sequence[str], values: Sequence[float], axis: str, title: str) -> Figure:
    """Horizontal bars, the largest on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.3 + 0.27 * max(3, len(labels))), layout="constrained")
    axes = figure.subplots()
    place = list(range(len(labels)))
    axes.barh(place, values, color="tab:blue")
    # A dollar sign in a token opens no formula.
    axes.set_yticks(place, labels, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(axis)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title("\n".join(textwrap.wrap(title, 76)), fontsize=10, parse_math=False)
    return figure
