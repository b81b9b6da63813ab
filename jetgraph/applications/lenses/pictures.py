"""The picture of a lens: what it says by point and position, or how a token fares along the stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jetgraph.applications.lenses.following import at_last, curves, followed
from jetgraph.applications.lenses.held import LensValues
from jetgraph.applications.lenses.points import by_position
from jetgraph.applications.readout import token_text
from jetgraph.errors import InputError, quoted
from jetgraph.layout.colours import TAKES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

L = TypeVar("L", bound=LensValues)

CELL = 0.66
"""Inches that a column of a lens's picture is wide."""

NAMED = 24
"""Letters of names of sources that a point's label has room for."""

HIGH = 32
"""Points that a page has room for."""

AXIS = "point of the stream, and what it follows"
"""What the rows of a lens's picture are."""

WIDE = 12
"""Columns of a lens's picture from which on orders stand below each other."""


def figure_of(lens: LensValues, row: int, colour: str, columns: int) -> Figure:
    """See `Lens.figure`.

    Raises
    ------
    InputError
        An input that is not there, and columns below 1.
    """
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure

    check_figure(lens.output, row, colour, columns)
    if lens.target is not None:
        return _target_figure(lens, row, lens.target)
    logits, output, shown, heads = _columns(lens, row)
    every, some = len(heads), slice(-columns, None)
    logits, output, heads, shown = logits[:, :, some], output[some], heads[some], shown[:, :, some]
    best = logits.max(-1)
    if colour == "probability" and not lens.features:
        shown = (best.values.double() - logits.double().logsumexp(-1)).exp()
    points, orders, columns = shown.shape
    beyond = _beyond(lens, row, some)
    # Narrow panels go side by side, wide ones one below the other.
    down, across = (orders, 1) if columns > WIDE else (1, orders)
    size = (2.2 + across * max(2.4, CELL * columns), 1.8 + down * (0.3 + 0.25 * points))
    figure = Figure(figsize=size, layout="constrained")
    values = shown.cpu().numpy()
    # Orders that diverge and orders that converge are to be told apart on one scale.
    apart = colour == "kl" and not lens.features
    scale = LogNorm(1e-2, 10.0, clip=True) if apart else Normalize(0.0, 1.0, clip=True)
    labels = [*map(_label, lens.points, lens.after), *([] if lens.features else ["model"])]
    panels = figure.subplots(down, across, sharex="col", sharey="row", squeeze=False).flatten()
    said = [] if lens.features else [[*map(lens.said, output.argmax(-1).tolist())]]
    for j, (order, axes) in enumerate(zip(lens.orders, panels, strict=True)):
        told, say = (values[:, j], "{:.2f}".format) if lens.features else (best.indices[:, j].tolist(), lens.said)
        _paint(axes, values[:, j], scale, [*([*map(say, line)] for line in told), *said], f"YlGnBu{'_r' * apart}")
        axes.set_title("order 0: logit lens" if order == 0 else f"order {order}", fontsize=9)
        if order and beyond is not None:
            _mark(axes, beyond)
        axes.set_xticks(range(columns), heads, rotation=60, ha="right", fontsize=8, parse_math=False)
        axes.set_yticks(range(len(labels)), labels, fontsize=8, parse_math=False)
    figure.supxlabel(_below(lens, beyond, columns, every), fontsize=9)
    figure.supylabel(AXIS, fontsize=9)
    what = _what(lens)
    figure.suptitle(f"{lens.title}: {what}", fontsize=10, parse_math=False)
    name = what if lens.features else "KL(model ‖ lens), nats" if apart else f"probability of the {_one(lens)} shown"
    _bar(figure, panels[-1], name, "both" if apart else "neither")
    return figure


def _what(lens: LensValues) -> str:
    """What cells say."""
    if lens.features:
        return "cosine with the output"
    return "most probable tokens" if _one(lens) == "token" else "largest outputs"


def _one(lens: LensValues) -> str:
    """What one output is called: of a model that reads no tokens nothing says that its outputs are some."""
    return "token" if lens.vocabulary and lens.ids is not None else "output"


def _label(point: int, after: str) -> str:
    """A point and what it follows; of many sources the first."""
    first, *others = after.split(" + ")
    return f"h{point}  {after if len(after) <= NAMED else f'{first} + {len(others)} more'}"


def _bar(figure: Figure, axes: Axes, name: str, extend: str) -> None:
    """What colours mean, beside all panels, as thin as in a low figure."""
    thin = max(20.0, 6 * figure.get_figheight())
    figure.colorbar(axes.images[0], ax=figure.axes, label=name, extend=extend, pad=0.01, aspect=thin, extendfrac=0.02)


def room(lens: LensValues, width: float) -> tuple[int, int]:
    """Every how many points, and how many columns, have room for their tokens in a width in inches."""
    columns = (width - 2.2) / CELL
    return -(-len(lens.points) // HIGH), max(1, int(columns if columns > WIDE else columns / len(lens.orders)))


def thinned(lens: L, step: int) -> L:
    """The same lens at every so many points, back from the last."""
    kept = list(range(len(lens.points))[::-step][::-1])
    chosen = tuple(lens.chosen[p] for p in kept) if lens.chosen else ()
    points, after = (tuple(column[p] for p in kept) for column in (lens.points, lens.after))
    radius = None if lens.radius is None else lens.radius[kept]
    return replace(lens, points=points, after=after, logits=lens.logits[kept], chosen=chosen, radius=radius)


def _below(lens: LensValues, beyond: NDArray[Any] | None, columns: int, every: int) -> str:
    """What columns are, which of them are shown, and what is hatched."""
    what = "input token" if lens.output.dim() == 3 else "input"
    part = f", the last {columns} of {every}" if columns < every else ""
    hatched = bool(lens.order) and beyond is not None and bool(beyond.any())
    return f"{what}{part}" + "; hatched: beyond the radius of convergence" * hatched


def _target_figure(lens: LensValues, row: int, target: int) -> Figure:
    last = lens.last(row)
    told, own = (at_last(followed(x, target), row, last) for x in (lens.grid, by_position(lens.output)))
    labels = [f"h{point} {after}" for point, after in zip(lens.points, lens.after, strict=True)]
    return curves(told, own, lens.orders, labels, f"{lens.said(target)} by: {lens.title}")


def _columns(lens: LensValues, row: int) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """What has a column each, by position of one input, or by input: logits, output, KL (of features the cosine) and
    what is above.
    """
    told = lens.comparison.cosine if lens.features else lens.comparison.kl
    if lens.output.dim() == 2:
        return lens.logits, lens.output, told, [f"input {i}" for i in range(len(lens.output))]
    logits, output, told = lens.logits[:, :, row], lens.output[row], told[:, :, row]
    heads = heads_of(lens, row)
    if lens.counted is None:
        return logits, output, told, heads
    kept = lens.counted[row].nonzero()[:, 0]
    return logits[:, :, kept], output[kept], told[:, :, kept], [heads[place] for place in kept.tolist()]


def heads_of(lens: LensValues, row: int) -> list[str]:
    """What stands above or below the columns of one input: its tokens."""
    if lens.ids is None:
        return [str(i) for i in range(lens.output.shape[1])]
    return [short_text(token_text(lens.tokenizer, index)) for index in lens.ids[row].tolist()]


def check_figure(output: Tensor, row: int, colour: str, columns: int) -> None:
    """Raise `InputError` for options of `Lens.figure` that do not fit."""
    if colour not in ("kl", "probability"):
        raise InputError(f"colour={quoted(colour)} is unknown: choose 'kl' or 'probability'")
    if columns < 1:
        raise InputError(f"columns={columns} leaves nothing to show: take 1 or more")
    if not 0 <= row < output.shape[0]:
        raise InputError(f"the lens has inputs 0..{output.shape[0] - 1}, so row={row} does not exist")
    if row and output.dim() == 2:
        raise InputError(f"row={row} is for outputs with positions: here every input is a column; leave it out")


def short_text(text: str, width: int = 9) -> str:
    """A token for a narrow cell, its quotes taken off."""
    text = text[1:-1] if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"" else text
    text = text.replace(" ", "␣")
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _paint(axes: Axes, values: NDArray[Any], scale: Normalize, texts: Sequence[Sequence[str]], colours: str) -> None:
    """Cells [row, column] of a picture in colours, with texts on them; more rows of texts have no colour."""
    extra = len(texts) - len(values)
    cells = np.vstack([values, np.full((extra, values.shape[1]), np.nan)])
    image = axes.imshow(cells, aspect="auto", origin="lower", cmap=colours, norm=scale)
    # How bright a colour is to the eye.
    brightness = image.cmap(scale(np.nan_to_num(values)))[..., :3] @ np.array([0.299, 0.587, 0.114])
    brightness = np.vstack([brightness, np.ones((extra, values.shape[1]))])
    for y, line in enumerate(texts):
        for x, text in enumerate(line):
            colour = "white" if brightness[y, x] < 0.55 else "black"
            axes.text(x, y, short_text(text), ha="center", va="center", fontsize=7.5, color=colour, parse_math=False)


def _beyond(lens: LensValues, row: int, some: slice) -> NDArray[Any] | None:
    """Which cells [point, column] of a picture are beyond the radius of convergence."""
    if lens.radius is None:
        return None
    if lens.output.dim() == 2:
        return (lens.radius[:, :, 0] < 1).numpy()[:, some]
    kept = slice(None) if lens.counted is None else lens.counted[row].nonzero()[:, 0]
    return (lens.radius[:, row][:, kept] < 1).numpy()[:, some]


def _mark(axes: Axes, cells: NDArray[Any]) -> None:
    """Hatch the cells [row, column] in which the series does not converge."""
    from matplotlib.patches import Rectangle

    for y, x in zip(*cells.nonzero(), strict=True):
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="////", edgecolor=TAKES, linewidth=0))
