"""How figures look: one style for all of them, told apart by the colour-blind too, in the sizes that papers print."""

from __future__ import annotations

import functools
import io
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from jetgraph.errors import InputError
from jetgraph.files.writing import write_atomically
from jetgraph.layout.colours import CYCLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

NARROWEST, WIDEST = 2.5, 60.0
"""Inches that a figure may be wide: 3.3 is a column of a paper with two, 6.8 its page."""

SHOWN = 100
"""Dots to the inch of a figure in a notebook."""

_ASPECT = 0.62
"""Width of a letter, as a share of its size."""

_DRAWN = 0.8
"""The share of a figure's width that is no margin, about."""

P = ParamSpec("P")
R = TypeVar("R")


def style() -> dict[str, Any]:
    """The settings of matplotlib that differ from its own."""
    from cycler import cycler

    return {
        "axes.axisbelow": True,
        "axes.edgecolor": "#6b7680",
        "axes.linewidth": 0.7,
        "axes.prop_cycle": cycler(color=CYCLE),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.facecolor": "white",
        "font.family": "sans-serif",
        "font.size": 9,
        "grid.color": "#d9dee3",
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "pdf.fonttype": 42,
        "svg.hashsalt": "jetgraph",
        "xtick.color": "#4a5560",
        "ytick.color": "#4a5560",
    }


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """A function that draws, in the style."""

    @functools.wraps(draw)
    def inside(*given: P.args, **named: P.kwargs) -> R:
        import matplotlib

        settings: Any = style()
        with matplotlib.rc_context(settings):
            return draw(*given, **named)

    return inside


def check_width(width: float) -> None:
    """Raise `InputError` for a width in inches that no paper has."""
    if not NARROWEST <= width <= WIDEST:
        raise InputError(f"width={width} is no width of a figure in inches: take {NARROWEST} to {WIDEST}")


def showing(figure: Figure) -> Figure:
    """The figure, which shows itself in a notebook: matplotlib's do so only where pyplot was imported."""

    def png() -> bytes:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=SHOWN, bbox_inches="tight")
        return buffer.getvalue()

    figure._repr_png_ = styled(png)  # pyright: ignore[reportAttributeAccessIssue]
    return figure


def save_figure(figure: Figure, file: str | os.PathLike[str], **how: Any) -> Path:
    """Write a figure in the format of the file's suffix, and return the file.

    It is drawn in memory first: on a disk that is full, writers of formats fail once more while they close their files.

    Raises
    ------
    FileError
        The system refuses.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format=Path(file).suffix[1:].lower(), **how)
    return write_atomically(file, lambda path: path.write_bytes(buffer.getvalue()))


def fit(figure: Figure, width: float | None = None) -> Figure:
    """Bring a figure to a width in inches, letters as large as they are; titles go on in lines below.

    Raises
    ------
    InputError
        A width that no paper has.
    """
    wide, high = figure.get_size_inches()
    if width is not None:
        check_width(width)
        figure.set_size_inches(width, high * min(1.0, max(0.7, width / wide)))
        wide = width
    for axes in figure.axes:
        place = axes.get_subplotspec()
        columns = 1 if place is None else place.get_gridspec().ncols
        for title in (axes.title, axes._left_title, axes._right_title):  # pyright: ignore[reportAttributeAccessIssue]
            _wrap(title, wide / columns)
        _wrap(axes.xaxis.label, wide / columns)
        _thin(axes, wide / columns)
    if (whole := getattr(figure, "_suptitle", None)) is not None:
        _wrap(whole, wide)
    return showing(figure)


def _thin(axes: Axes, wide: float) -> None:
    """Of upright names below an axis that would stand on each other, every second, third, …"""
    from matplotlib.ticker import FixedLocator

    labels = axes.get_xticklabels()
    if not isinstance(axes.xaxis.get_major_locator(), FixedLocator) or not labels or labels[0].get_rotation() < 45:
        return
    size = float(labels[0].get_fontsize())
    step = -int(-(len(labels) * 1.1 * size / 72) // (_DRAWN * wide))
    if step > 1:
        places, names = list(axes.get_xticks()), [label.get_text() for label in labels]
        kept = {"rotation": labels[0].get_rotation(), "fontsize": size, "parse_math": False}
        axes.set_xticks(places[::step], names[::step], ha=labels[0].get_horizontalalignment(), **kept)


def _wrap(text: Text, wide: float) -> None:
    text.set_text(wrapped(text.get_text(), wide, float(text.get_fontsize())))


def wrapped(text: str, wide: float, size: float) -> str:
    """A text whose lines are broken so that, in letters of a size, they fit into so many inches.

    >>> wrapped("a title of some length", 1.0, 9.0)
    'a title of some\\nlength'
    """
    letters = max(16, int(72 * wide / (_ASPECT * size)))
    lines = text.splitlines()
    if all(len(line) <= letters for line in lines):
        return text
    return "\n".join(part for line in lines for part in textwrap.wrap(line, letters))
