"""Lenses over a corpus: how near each order is to the model's output at each point of the stream, and why.

What decides about orders is the radius of convergence ρ of t ↦ ν(h_p + t (h_n − h_p)) at t = 0, since the lens is its
Taylor polynomial at t = 1: for ρ > 1 higher orders converge to the output, for ρ < 1 they diverge from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jetgraph.algebra.rules import Scale
from jetgraph.applications.distances import METRICS
from jetgraph.applications.intervals import Array, check_bootstrap
from jetgraph.applications.lenses.corpora import Texts, Windows, corpus, spread
from jetgraph.applications.lenses.measuring import Measurement
from jetgraph.applications.lenses.points import Layers, output_shape
from jetgraph.applications.lenses.tallies import Statistic, statistic, tokens_of, values_of
from jetgraph.applications.orders import Auto, ChosenOrder, tolerated
from jetgraph.applications.results import Cell, Result
from jetgraph.applications.subject import Model, Subject
from jetgraph.errors import InputError, amount, check, quoted
from jetgraph.export.precision import own_types
from jetgraph.jets.series import check_order
from jetgraph.layout.colours import CYCLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RADIUS_TOKENS = 2048
"""Tokens on which `evaluate_lens` measures distances and radii."""


@dataclass(frozen=True, eq=False, repr=False)
class LensEvaluation(Result):
    """Lenses of several orders against the model's output on a corpus. Made by `evaluate_lens`."""

    model: str
    points: tuple[int, ...]
    after: tuple[str, ...]
    orders: tuple[int, ...]
    """In ascending order; those that some point has, where they were chosen."""
    scale: Scale
    """Whether centres were matched to the end of the stream, where the decoder allows it."""
    tokens: int
    """Positions that were compared."""
    windows: int
    metrics: Mapping[str, Statistic]
    """`kl`, `cosine`, `top1`, `top5` and `remainder`, each [point, order]."""
    geometry: Mapping[str, Statistic]
    """`distance`, `radius` and `converges`, each [point], over `radius_tokens` positions."""
    inside: Array
    """Median relative remainder where ρ > 1: [point, order]; NaN where there is no such token."""
    outside: Array
    """Median relative remainder where ρ ≤ 1: [point, order]; NaN where there is no such token."""
    radius_tokens: int
    chosen: tuple[ChosenOrder, ...] = ()
    """At each point the order that was chosen over the same positions, and why, where orders were not given."""

    @property
    def title(self) -> str:
        orders = ", ".join(map(str, self.orders))
        plain = " with plain centres" if self.orders[-1] and self.scale == "none" else ""
        why = f", chosen for each point to leave {self.chosen[0].tolerance:g}," if self.chosen else ""
        return (
            f"Lenses of orders {orders}{plain}{why} of {self.model} at {amount(len(self.points), 'point')}, on "
            f"{amount(self.tokens, 'token')} in {amount(self.windows, 'window')}"
        )

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """One row per quantity, order and point: mean, 95 % interval, and median.

        Quantities: `kl`, `cosine`, `top1`, `top5`, `remainder` (see `Comparison`); `remainder inside` and `remainder
        outside`, its medians over the tokens with ρ > 1 and with ρ ≤ 1; and without an order `distance`, `radius` and
        `converges`, the share of tokens with ρ > 1 (see `evaluate_lens`). Where orders were chosen, `chosen` says why,
        beside what the order of a point leaves.
        """
        rows: list[tuple[Cell, ...]] = []
        places = list(enumerate(zip(self.points, self.after, strict=True)))

        def add(name: str, order: int | None, numbers: Sequence[Array | None], tokens: int) -> None:
            for i, (point, after) in places:
                cells = (None if values is None or np.isnan(values[i]) else float(values[i]) for values in numbers)
                rows.append((name, order, f"h{point}", after, *cells, tokens))

        for name, band in self.metrics.items():
            for j, order in enumerate(self.orders):
                add(name, order, [v[:, j] for v in (band.mean, band.low, band.high, band.median)], self.tokens)
        for name, medians in (("remainder inside", self.inside), ("remainder outside", self.outside)):
            for j, order in enumerate(self.orders):
                add(name, order, [None, None, None, medians[:, j]], self.radius_tokens)
        for name, band in self.geometry.items():
            add(name, None, [band.mean, band.low, band.high, band.median], self.radius_tokens)
        names = ("quantity", "order", "point", "after", "mean", "low", "high", "median", "tokens")
        table = {name: [row[i] for row in rows] for i, name in enumerate(names)}
        if self.chosen:
            why = {(f"h{p}", one.order): one.why for p, one in zip(self.points, self.chosen, strict=True)}
            table["chosen"] = [why.get((row[2], row[1])) for row in rows]  # type: ignore[arg-type]
        return table

    def figure(self) -> Figure:
        """Every metric along the stream, by order, with its interval; and what explains it."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(16.5, 7.6), layout="constrained")
        grid = figure.subplots(2, 4, sharex=True).flatten()
        panels = (
            ("kl", "KL(model ‖ lens), nats", 0.0),
            ("remainder", "‖output − lens‖ / ‖output‖, centred", 0.0),
            ("cosine", "cosine of centred logits", 1.0),
            ("top1", "share of tokens: top tokens agree", 1.0),
            ("top5", "share of tokens: model's top in lens's five", 1.0),
        )
        for axes, (name, label, own) in zip(grid[[0, 1, 2, 4, 5]], panels, strict=True):
            self._panel(axes, name, own)
            axes.set_ylabel(label, fontsize=9)
        grid[0].legend(fontsize=8)
        self._by_radius(grid[3])
        self._radii(grid[6])
        self._convergent(grid[7])
        # Deep models have more points than labels fit.
        ticks = range(0, len(self.points), -(-len(self.points) // 24))
        labels = [f"h{self.points[i]} {self.after[i]}" for i in ticks]
        for axes in grid:
            axes.grid(alpha=0.25)
            axes.tick_params(labelsize=8)
        for axes in grid[4:]:
            axes.set_xticks(ticks, labels, rotation=60, ha="right", fontsize=7, parse_math=False)
            axes.set_xlabel("point of the stream, and what it follows", fontsize=9)
        figure.suptitle(self.title, fontsize=11, parse_math=False)
        return figure

    def _panel(self, axes: Axes, name: str, own: float) -> None:
        band, places = self.metrics[name], range(len(self.points))
        unbounded = name in ("kl", "remainder")
        for j, order in enumerate(self.orders):
            label = f"order {order}" + (" (logit lens)" if order == 0 else "")
            (line,) = axes.plot(places, band.mean[:, j], "o-", markersize=3, linewidth=1.4, label=label)
            colour = line.get_color()
            axes.fill_between(places, band.low[:, j], band.high[:, j], alpha=0.25, color=colour, linewidth=0)
            if unbounded:
                axes.plot(places, band.median[:, j], ":", color=colour, linewidth=1.2)
        if unbounded:
            axes.plot([], [], ":", color="black", linewidth=1.2, label="medians")
            axes.set_yscale("symlog", linthresh=0.01)
            axes.set_ylim(bottom=-0.003)
        axes.axhline(own, color="black", linestyle="--", linewidth=1, label="the model's own output")

    def _by_radius(self, axes: Axes) -> None:
        places = range(len(self.points))
        for j, order in enumerate(self.orders):
            (line,) = axes.plot(
                places, self.inside[:, j], "o-", markersize=3, linewidth=1.4, label=f"order {order}, ρ > 1"
            )
            axes.plot(places, self.outside[:, j], "x:", color=line.get_color(), label=f"order {order}, ρ ≤ 1")
        axes.set_yscale("symlog", linthresh=0.01)
        axes.set_ylim(bottom=-0.003)
        axes.set_ylabel("median of ‖output − lens‖ / ‖output‖, centred", fontsize=9)
        axes.legend(fontsize=7, ncols=2)

    def _radii(self, axes: Axes) -> None:
        for name, colour, label in (
            ("radius", CYCLE[3], "radius of convergence ρ, in units of h_n − h_p"),
            ("distance", CYCLE[2], "distance ‖h_n − h_p‖ / ‖h_p‖"),
        ):
            values = self.geometry[name].median
            shown = np.where(np.isfinite(values) & (values > 0), values, np.nan)
            axes.plot(range(len(self.points)), shown, "o-", markersize=3, color=colour, label=label)
        axes.set_yscale("log")
        axes.axhline(1.0, color="black", linestyle="--", linewidth=1, label="where the lens is evaluated")
        axes.set_ylabel("median over tokens", fontsize=9)
        axes.legend(fontsize=7)

    def _convergent(self, axes: Axes) -> None:
        band, places = self.geometry["converges"], range(len(self.points))
        axes.plot(places, band.mean, "o-", markersize=3, color=CYCLE[3])
        axes.fill_between(places, band.low, band.high, alpha=0.25, color=CYCLE[3], linewidth=0)
        axes.set_ylim(-0.03, 1.03)
        axes.set_ylabel("share of tokens with ρ > 1", fontsize=9)


@torch.no_grad()
@own_types()
def evaluate_lens(
    model: Model,
    texts: Texts,
    *,
    orders: Sequence[int] | Auto = (0, 1, 2, 3),
    tolerance: float | None = None,
    layers: Layers = None,
    scale: Scale = "matched",
    tokens: int = 20_000,
    window: int | None = None,
    batch: int = 16,
    resamples: int = 1000,
    seed: int = 0,
    memory: int | None = None,
    skip_first: int = 0,
    tokenizer: Any | None = None,
) -> LensEvaluation:
    """Lenses of several orders against the model's own output, at every point of the stream and every position.

    Texts are tokenised and cut into windows, each an input of its own; a text's last window may be shorter, and one of
    a single token is left out. Where there are more windows than `tokens` needs, they are taken at even distances; of
    files above a MiB and of data sets, whose end is not known, they are the first. One pass gives all orders. What is
    kept of it does not grow with the text: sums of at most `POOLS` runs of windows, and numbers per token only as far
    as they fit into 256 MiB.

    Parameters
    ----------
    model, layers, scale, tokenizer
        As in `lens`.
    texts
        The path of a text file (UTF-8), of a .jsonl or of a .parquet; what `open_corpus` gives, of other columns or
        of a data set; a sequence of prompts; or a tensor [row, ...] of inputs, such as token ids.
    orders
        Which orders to report. `auto`: at each point the lowest one that leaves no more than `tolerance` over as many
        positions as `geometry` is of; those that some point has are reported, and `chosen` says which and why. Where
        the decoder is one norm they are read off its closed form, and no other order is evaluated.
    tolerance
        As in `lens`, for the orders `auto`.
    tokens
        How many positions to compare, at most about as many.
    window
        Tokens in a window of text, 64 unless given; a tensor has windows already.
    batch
        Windows that are run at once; fewer where there is no memory for them.
    resamples, seed
        Of the bootstrap. Whole windows are resampled, as the tokens of one are not independent, and above `POOLS`
        windows so many neighbours at once as leave no more units; of one window alone there is no interval (NaN).
    memory
        Bytes above the model and its output, 256 MiB unless given and 2 GiB on an accelerator: lenses of one batch of
        windows before the unembedding, and logits of as many points as fit after it, each take as much at most; of one
        window and order, whatever they take.
    skip_first
        Positions at the beginning of each window that are left out of all numbers: the first token of a window is what
        attention falls back on, and its stream is unlike any other's. Windows of no more tokens than that are left out.

    Returns
    -------
    LensEvaluation
        `metrics`: means with 95 % intervals, and medians, of what `Comparison` has. Means over tokens are ruled by few
        tokens where an expansion diverges; the median is not. Where numbers per token are not kept, it is that of
        numbers rounded to 7 binary digits, so right to 0.8 %.

        `geometry`, on whole windows of `RADIUS_TOKENS` positions or more in all: `distance` ‖h_n − s h_p‖ / ‖s h_p‖ to
        the centre; `radius` ρ, the radius of convergence of t ↦ ν(s h_p + t (h_n − s h_p)) in units of that distance;
        and `converges`, whether ρ > 1. For an RMSNorm ρ is the distance's inverse, and for a LayerNorm that of centred
        vectors (up to the norm's ε): the expansion converges where the centre is longer than what is still missing,
        which with matched scale is at every angle below a right one, ρ being 1 / sin∠(h_p, h_n). For other decoders ρ
        is estimated by `radius_of_convergence` from orders up to `RADIUS_ORDER`.

    Raises
    ------
    InputError
        No text, no tokenizer for it, or orders that are none.
    FileError
        A file that does not exist, or is no text.

    Notes
    -----
    Windows start in mid-text, without a token that marks a start, except where the tokenizer puts one before a text.
    `top5` is whether the model's top token is among the lens's five.
    """
    check(evaluate_lens, locals())
    limit = tolerated(orders, tolerance)
    reported = _reported(orders)
    size = 64 if window is None else window
    _check_sizes(texts, tokens, window, batch, memory, skip_first, limit is not None)
    check_bootstrap(resamples, seed)
    one, windows = corpus(model, texts, tokens, size, tokenizer)
    windows = _long_enough(one, windows, skip_first)
    run = Measurement(one, layers, batch, scale, memory, skip_first)
    numbers = spread(windows.number, windows.tokens, RADIUS_TOKENS)
    sampled = windows.at(numbers)
    chosen = () if limit is None else run.chosen(sampled, limit)
    reported = reported or tuple(sorted({one.order for one in chosen}))
    lenses = run.measure(windows, reported, set(numbers))
    radii = run.geometry(Windows.counted(partial(iter, sampled), is_sorted=windows.sorted), lenses)
    measured, geometry = lenses(), radii()
    metrics, shape = statistic(measured, resamples, seed), statistic(geometry, resamples, seed)
    remainder, converges = values_of(measured, "remainder"), values_of(geometry)[2] > 0
    return LensEvaluation(
        model=one.graph.title,
        points=run.points,
        after=run.after,
        orders=reported,
        scale=scale,
        tokens=tokens_of(measured),
        windows=windows.number,
        metrics={name: metrics[i] for i, name in enumerate(METRICS)},
        geometry={name: shape[i] for i, name in enumerate(("distance", "radius", "converges"))},
        inside=_medians(remainder, converges),
        outside=_medians(remainder, ~converges),
        radius_tokens=tokens_of(geometry),
        chosen=chosen,
    )


def _check_sizes(
    texts: Any, tokens: int, window: int | None, batch: int, memory: int | None, skip_first: int, auto: bool
) -> None:
    """Raise `InputError` for numbers that there cannot be, or that do not go together."""
    if tokens < 1 or (window is not None and window < 2) or batch < 1 or (memory is not None and memory < 1):
        raise InputError(
            "tokens, batch and memory are 1 or more, and a window 2 or more, but "
            f"tokens={tokens}, batch={batch}, memory={memory}, window={window} were given"
        )
    if skip_first < 0 or (skip_first and auto):
        raise InputError(
            f"skip_first={skip_first} is a number of positions, and goes with orders that are given: 'auto' looks at "
            "all of them"
        )
    if isinstance(texts, Tensor) and window is not None:
        raise InputError(f"window={window} is for texts: the rows of a tensor are the windows; leave it out")


def _long_enough(one: Subject, windows: Windows, skip: int) -> Windows:
    """The windows of more positions than are skipped."""
    if not skip:
        return windows
    lengths: dict[tuple[int, ...], bool] = {}

    def is_long(window: Tensor) -> bool:
        shape = tuple(window.shape)
        if shape not in lengths:
            rows = output_shape(one, one.inputs(window[None]))[:-1]
            lengths[shape] = len(rows) > 1 and rows[1] > skip
        return lengths[shape]

    kept = windows.where(is_long)
    if not kept.number:
        raise InputError(
            f"skip_first={skip} leaves nothing: the longest of {amount(windows.number, 'window')} has no more "
            "positions in the output than that"
        )
    return kept


def _reported(orders: Sequence[int] | Auto) -> tuple[int, ...]:
    """Orders that are given, in ascending order; none where they are to be chosen."""
    if isinstance(orders, str):
        return ()
    ascending = tuple(sorted(set(orders)))
    if not ascending or ascending[0] < 0:
        raise InputError(f"orders={quoted(orders)} gives none: they are 0 or more, such as [0, 2]")
    check_order(ascending[-1])
    return ascending


def _medians(values: Array, where: NDArray[np.bool_]) -> Array:
    """Median over chosen tokens of [point, order, token], chosen per point [point, token]; NaN where there are none."""
    medians = np.full(values.shape[:2], np.nan)
    for point, chosen in enumerate(where):
        if chosen.any():
            medians[point] = np.median(values[point][:, chosen], axis=-1)
    return medians
