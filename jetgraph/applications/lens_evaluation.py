"""Lenses over a corpus: how near each order is to the model's output at each point of the stream, and why.

What decides about orders is the radius of convergence ρ of t ↦ ν(h_p + t (h_n − h_p)) at t = 0, since the lens is its
Taylor polynomial at t = 1: for ρ > 1 higher orders converge to the output, for ρ < 1 they diverge from it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from jetgraph.algebra.expansion import expand
from jetgraph.applications.distances import METRICS, compare
from jetgraph.applications.intervals import Array, bootstrap, check_bootstrap
from jetgraph.applications.lenses import (
    CHUNK,
    Layers,
    after_point,
    by_position,
    jet_sums,
    lens_points,
    output_shape,
)
from jetgraph.applications.results import Cell, Result
from jetgraph.applications.subject import Model, Subject, subject
from jetgraph.compilation import PathModule, compile
from jetgraph.errors import FileError, InputError, check, quoted
from jetgraph.export.precision import own_types
from jetgraph.files.writing import is_file, read_text
from jetgraph.jets.series import check_order
from jetgraph.loading import Loaded, load
from jetgraph.prompts import encode
from jetgraph.residual import Forward

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RADIUS_ORDER = 24
"""Highest Taylor coefficient from which a radius of convergence is read."""

RADIUS_TOKENS = 2048
"""Tokens on which `evaluate_lens` measures distances and radii."""


@dataclass(frozen=True, eq=False)
class Statistic:
    """A quantity over tokens: its mean with a 95 % bootstrap interval, and its median.

    Arrays of shape [point, order], or [point] for what does not depend on the order.
    """

    mean: Array
    low: Array
    high: Array
    median: Array


@dataclass(frozen=True, eq=False, repr=False)
class LensEvaluation(Result):
    """Lenses of several orders against the model's output on a corpus. Made by `evaluate_lens`."""

    model: str
    points: tuple[int, ...]
    after: tuple[str, ...]
    orders: tuple[int, ...]
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

    @property
    def title(self) -> str:
        orders = ", ".join(map(str, self.orders))
        return (
            f"Lenses of orders {orders} of {self.model} at {len(self.points)} points, on {self.tokens} tokens in "
            f"{self.windows} windows"
        )

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """One row per quantity, order and point: mean, 95 % interval, and median.

        Quantities: `kl`, `cosine`, `top1`, `top5`, `remainder` (see `Comparison`); `remainder inside` and `remainder
        outside`, its medians over the tokens with ρ > 1 and with ρ ≤ 1; and without an order `distance`, `radius` and
        `converges`, the share of tokens with ρ > 1 (see `evaluate_lens`).
        """
        rows: list[tuple[Cell, ...]] = []
        places = list(enumerate(zip(self.points, self.after, strict=True)))

        def add(name: str, order: int | None, numbers: Sequence[Array | None], tokens: int) -> None:
            for i, (point, after) in places:
                cells = (None if values is None or np.isnan(values[i]) else float(values[i]) for values in numbers)
                rows.append((name, order, f"h{point}", after, *cells, tokens))

        for name, found in self.metrics.items():
            for j, order in enumerate(self.orders):
                add(name, order, [v[:, j] for v in (found.mean, found.low, found.high, found.median)], self.tokens)
        for name, medians in (("remainder inside", self.inside), ("remainder outside", self.outside)):
            for j, order in enumerate(self.orders):
                add(name, order, [None, None, None, medians[:, j]], self.radius_tokens)
        for name, found in self.geometry.items():
            add(name, None, [found.mean, found.low, found.high, found.median], self.radius_tokens)
        names = ("quantity", "order", "point", "after", "mean", "low", "high", "median", "tokens")
        return {name: [row[i] for row in rows] for i, name in enumerate(names)}

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
        found, places = self.metrics[name], range(len(self.points))
        unbounded = name in ("kl", "remainder")
        for j, order in enumerate(self.orders):
            label = f"order {order}" + (" (logit lens)" if order == 0 else "")
            (line,) = axes.plot(places, found.mean[:, j], "o-", markersize=3, linewidth=1.4, label=label)
            colour = line.get_color()
            axes.fill_between(places, found.low[:, j], found.high[:, j], alpha=0.25, color=colour, linewidth=0)
            if unbounded:
                axes.plot(places, found.median[:, j], ":", color=colour, linewidth=1.2)
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
            ("radius", "tab:purple", "radius of convergence ρ, in units of h_n − h_p"),
            ("distance", "tab:brown", "distance ‖h_n − h_p‖ / ‖h_p‖"),
        ):
            values = self.geometry[name].median
            shown = np.where(np.isfinite(values) & (values > 0), values, np.nan)
            axes.plot(range(len(self.points)), shown, "o-", markersize=3, color=colour, label=label)
        axes.set_yscale("log")
        axes.axhline(1.0, color="black", linestyle="--", linewidth=1, label="where the lens is evaluated")
        axes.set_ylabel("median over tokens", fontsize=9)
        axes.legend(fontsize=7)

    def _convergent(self, axes: Axes) -> None:
        found, places = self.geometry["converges"], range(len(self.points))
        axes.plot(places, found.mean, "o-", markersize=3, color="tab:purple")
        axes.fill_between(places, found.low, found.high, alpha=0.25, color="tab:purple", linewidth=0)
        axes.set_ylim(-0.03, 1.03)
        axes.set_ylabel("share of tokens with ρ > 1", fontsize=9)


@torch.no_grad()
@own_types()
def evaluate_lens(
    model: Model,
    texts: str | os.PathLike[str] | Sequence[str] | Tensor,
    *,
    orders: Sequence[int] = (0, 1, 2, 3),
    layers: Layers = None,
    tokens: int = 20_000,
    window: int | None = None,
    batch: int = 16,
    resamples: int = 1000,
    seed: int = 0,
    tokenizer: Any | None = None,
) -> LensEvaluation:
    """Lenses of several orders against the model's own output, at every point of the stream and every position.

    Texts are tokenised and cut into windows, each an input of its own; a text's last window may be shorter, and one of
    a single token is left out. Where there are more windows than `tokens` needs, they are taken at even distances. One
    pass gives all orders, and only numbers per token are kept.

    Parameters
    ----------
    model, layers, tokenizer
        As in `lens`.
    texts
        The name of a text file (UTF-8), a sequence of prompts, or a tensor [row, ...] of inputs, such as token ids.
    orders
        Which orders to report.
    tokens
        How many positions to compare, at most about as many.
    window
        Tokens in a window of text, 64 unless given; a tensor has windows already.
    batch
        Windows that are run at once; fewer where their logits would take more than `CHUNK` bytes.
    resamples, seed
        Of the bootstrap. Whole windows are resampled, as the tokens of one are not independent; of one window alone
        there is no interval (NaN).

    Returns
    -------
    LensEvaluation
        `metrics`: means with 95 % intervals, and medians, of what `Comparison` has. Means over tokens are ruled by few
        tokens where an expansion diverges; the median is not.

        `geometry`, on whole windows of `RADIUS_TOKENS` positions or more in all: `distance` ‖h_n − h_p‖ / ‖h_p‖ to the
        centre; `radius` ρ, the radius of convergence of t ↦ ν(h_p + t (h_n − h_p)) in units of that distance, estimated
        by `radius_of_convergence` from orders up to `RADIUS_ORDER`; and `converges`, whether ρ > 1. For an RMSNorm ρ is
        the distance's inverse, and for a LayerNorm that of centred vectors (up to the norm's ε): the expansion
        converges where the centre is longer than what is still missing.

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
    chosen = tuple(sorted(set(orders)))
    size = 64 if window is None else window
    if not chosen or chosen[0] < 0 or tokens < 1 or size < 2 or batch < 1:
        raise InputError(
            "orders are 0 or more, tokens and batch 1 or more, and a window 2 or more, but "
            f"orders={quoted(orders)}, tokens={tokens}, batch={batch}, window={size} were given"
        )
    if isinstance(texts, Tensor) and window is not None:
        raise InputError(f"window={window} is for texts: the rows of a tensor are the windows; leave it out")
    check_order(chosen[-1])
    check_bootstrap(resamples, seed)
    one, inputs = _corpus(model, texts, tokens, size, tokenizer)
    run = _Run(one, chosen, layers, batch)
    measured = run.measure(inputs)
    sample = _spread(inputs, RADIUS_TOKENS)
    geometry = run.geometry([inputs[i] for i in sample])
    chosen_windows = np.zeros(len(inputs), dtype=bool)
    chosen_windows[sample] = True
    in_sample = np.repeat(chosen_windows, [values.shape[-1] for values in measured])
    flat = np.concatenate(measured, axis=-1)
    remainder = flat[METRICS.index("remainder")][..., in_sample]
    converges = np.concatenate(geometry, axis=-1)[1] > 1
    return LensEvaluation(
        model=one.graph.title,
        points=run.points,
        after=tuple(after_point(one.graph.outline, point) for point in run.points),
        orders=chosen,
        tokens=flat.shape[-1],
        windows=len(inputs),
        metrics={name: _statistic([w[i] for w in measured], resamples, seed) for i, name in enumerate(METRICS)},
        geometry={
            "distance": _statistic([w[0] for w in geometry], resamples, seed),
            "radius": _statistic([w[1] for w in geometry], resamples, seed),
            "converges": _statistic([(w[1] > 1).astype(float) for w in geometry], resamples, seed),
        },
        inside=_medians(remainder, converges),
        outside=_medians(remainder, ~converges),
        radius_tokens=int(in_sample.sum()),
    )


def radius_of_convergence(sizes: Array) -> Array:
    """Radius of convergence of power series from the sizes ‖c_j‖ of their coefficients j = 0..K: [K+1, ...] → [...].

    The root test on ‖c_j‖ ~ C j^(−1/2) ρ^(−j), the growth at a singularity of the kind x^(−1/2), which norms have:
    −log ρ is the slope of log ‖c_j‖ + ½ log j over the upper two thirds of the orders. At a pole that is a few per cent
    too large at K = 24. Only orders before the first one that overflows count; ρ is infinite where the coefficients end
    (a polynomial).

    >>> orders = np.arange(25.0)
    >>> float(radius_of_convergence(0.5**orders / np.sqrt(orders.clip(min=1))).round(6))
    2.0
    """
    sizes = np.asarray(sizes, dtype=np.float64)
    orders = np.arange(len(sizes)).reshape(-1, *[1] * (sizes.ndim - 1))
    finite = np.logical_and.accumulate(np.isfinite(sizes), axis=0)
    usable = finite & (np.nan_to_num(sizes, posinf=0.0) > 0) & (orders > 0)
    last = (usable * orders).max(axis=0)
    used = usable & (orders >= np.maximum(last // 3, 1))
    count = used.sum(axis=0)
    logs = np.where(used, np.log(np.where(used, sizes, 1.0)) + 0.5 * np.log(np.maximum(orders, 1)), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (used * orders).sum(axis=0) / count
        offset = np.where(used, orders - mean, 0.0)
        slope = (offset * logs).sum(axis=0) / np.square(offset).sum(axis=0)
        radius = np.exp(-slope)
    # Zeros after sizes near the smallest number are underflow, zeros after large ones the end of a polynomial.
    size = np.take_along_axis(sizes, last[None], axis=0)[0]
    ended = (last < len(sizes) - 1) & finite[-1] & (size > 1e-25)
    return np.where(ended | (count < 2), np.inf, radius)


class _Run:
    """One model with its lenses compiled; their logits are made of them in parts of at most `CHUNK` bytes."""

    def __init__(self, one: Subject, orders: tuple[int, ...], layers: Layers, batch: int) -> None:
        self.subject = one
        self.graph = one.graph
        self.orders = orders
        self.batch = batch
        self.points = lens_points(expand(one.graph, 0, recipe="lens", layers=layers))

    def measure(self, inputs: Sequence[Tensor]) -> list[Array]:
        """Per window [metric, point, order, position], in the order of `METRICS`."""
        found: list[Array | None] = [None] * len(inputs)
        highest = self.orders[-1]
        module = self._lenses(highest)
        for numbers, batch in self._batches(inputs, highest, "lenses"):
            values = module(**batch)
            output = by_position(values.output)
            parts: list[Array] = []
            for point in self.points:
                logits = jet_sums(module.expansion, values, [f"h{point}"], self.orders)
                one = compare(output, logits.reshape(len(self.orders), *output.shape))
                parts.append(torch.stack([getattr(one, name).double() for name in METRICS]).cpu().numpy())
            # [metric, point, order, window, position]
            stacked = np.stack(parts, axis=1)
            for i, number in enumerate(numbers):
                found[number] = stacked[..., i, :]
        return [window for window in found if window is not None]

    def geometry(self, inputs: Sequence[Tensor]) -> list[Array]:
        """Per window [distance and radius, point, position]."""
        found: list[Array | None] = [None] * len(inputs)
        module = self._lenses(RADIUS_ORDER)
        affine = module.expansion.outline.decoder.affine
        for numbers, batch in self._batches(inputs, RADIUS_ORDER, "radii"):
            values = module(**batch)
            radii = []
            for point in self.points:
                paths = [path for path in values.hidden if path.source.alias == f"h{point}"]
                terms = values.combine(torch.eye(len(paths)), paths)
                sizes = torch.stack([by_position(term).double().norm(dim=-1) for term in terms])
                radii.append(np.full(sizes.shape[1:], np.inf) if affine else radius_of_convergence(sizes.cpu().numpy()))
            forward = self.graph.run(**batch)
            distances = [_distance(forward, point, radii[0].shape) for point in self.points]
            stacked = np.stack([np.stack(distances), np.stack(radii)])
            for i, number in enumerate(numbers):
                found[number] = stacked[..., i, :]
        return [window for window in found if window is not None]

    def _batches(self, inputs: Sequence[Tensor], order: int, label: str) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Windows of equal size together, with their numbers."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, window in enumerate(inputs):
            groups.setdefault(tuple(window.shape), []).append(number)
        with tqdm(total=len(inputs), desc=label, disable=None, leave=False, unit="window") as bar:
            for numbers in groups.values():
                shape = output_shape(self.graph, self.subject.inputs(inputs[numbers[0]][None]))
                size = min(self.batch, max(1, CHUNK // (8 * (order + 1) * int(np.prod(shape[1:])))))
                for start in range(0, len(numbers), size):
                    part = numbers[start : start + size]
                    yield part, self.subject.inputs(torch.stack([inputs[number] for number in part]))
                    bar.update(len(part))

    def _lenses(self, order: int) -> PathModule:
        """The lenses of all points."""
        return compile(expand(self.graph, order, recipe="lens", layers=self.points))


def _distance(forward: Forward, point: int, rows: tuple[int, ...]) -> Array:
    """‖h_n − x‖ / ‖x‖ per row of the output; x is the stream at a point, carried to the end by its skips.

    Where the output has no positions, the norm is over the whole stream.
    """
    value, end = forward.at_end(point).double(), forward.point(-1).double()
    # Some models have rows and positions in one dimension on the way.
    by_position = int(np.prod(end.shape[:-1])) == int(np.prod(rows))
    dims = (-1,) if by_position else tuple(range(1, end.dim()))
    ratio = torch.linalg.vector_norm(end - value, dim=dims) / torch.linalg.vector_norm(value, dim=dims)
    return ratio.cpu().numpy().reshape(rows)


# Corpora


def _corpus(
    model: Model,
    texts: str | os.PathLike[str] | Sequence[str] | Tensor,
    tokens: int,
    window: int,
    tokenizer: Any | None,
) -> tuple[Subject, list[Tensor]]:
    """The traced model and the windows on which it is looked at."""
    read = texts if isinstance(texts, Tensor) else _read(texts)
    if isinstance(model, str | os.PathLike):
        model = load(model)
    if isinstance(read, Tensor):
        if read.dim() < 2:
            raise InputError(f"inputs as a tensor are [windows, length] and more, not of shape {list(read.shape)}")
        windows = list(read)
    else:
        own = getattr(model, "tokenizer", None)
        windows = _cut(read, tokenizer if tokenizer is not None else own, window)
    if not windows:
        raise InputError("there is no text to look at: give one of two tokens or more")
    example = None
    module = model.model if isinstance(model, Loaded) else model
    if isinstance(module, nn.Module) and not hasattr(module, "config"):
        device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
        example = torch.stack([one for one in windows if one.shape == windows[0].shape][:2]).to(device)
    one = subject(model, example, tokenizer)
    if not isinstance(read, Tensor):
        one.reader.check_length(max(map(len, windows)), "window")
    rows = output_shape(one.graph, one.inputs(windows[0][None]))
    each = rows[1] if len(rows) == 3 else 1
    number = -(-tokens // each) if isinstance(read, Tensor) else None
    chosen = _spread(windows, tokens) if number is None else _even(len(windows), number)
    return one, [windows[i] for i in chosen]


def _read(texts: str | os.PathLike[str] | Sequence[str]) -> list[str]:
    if not isinstance(texts, str | os.PathLike):
        return list(texts)
    if not is_file(texts):
        raise FileError(f"there is no text file {quoted(os.fspath(texts))}: give prompts as a list")
    return [read_text(texts)]


def _cut(texts: Sequence[str], tokenizer: Any | None, window: int) -> list[Tensor]:
    """Windows of ids, at least two tokens long."""
    windows = []
    for text in texts:
        ids = encode(tokenizer, text)
        pieces = (ids[start : start + window] for start in range(0, len(ids), window))
        windows.extend(torch.tensor(piece, dtype=torch.long) for piece in pieces if len(piece) > 1)
    return windows


def _spread(windows: Sequence[Tensor], tokens: int) -> list[int]:
    """Windows at even distances, about as many as hold `tokens` tokens."""
    total = sum(window.shape[0] if window.dim() == 1 else 1 for window in windows)
    return _even(len(windows), -(-tokens * len(windows) // total))


def _even(total: int, number: int) -> list[int]:
    return [i * total // number for i in range(number)] if number < total else list(range(total))


# Statistics


def _statistic(windows: Sequence[Array], resamples: int, seed: int) -> Statistic:
    """Mean over tokens, its interval when windows [..., token] are resampled, and median."""
    flat = np.concatenate(windows, axis=-1)
    sums = np.stack([values.sum(axis=-1) for values in windows])
    sizes = np.array([values.shape[-1] for values in windows], dtype=np.float64).reshape(-1, *[1] * (sums.ndim - 1))
    low, high = bootstrap(sums, sizes, resamples, seed)
    return Statistic(flat.mean(axis=-1), low, high, np.median(flat, axis=-1))


def _medians(values: Array, where: NDArray[np.bool_]) -> Array:
    """Median over chosen tokens of [point, order, token], chosen per point [point, token]; NaN where there are none."""
    found = np.full(values.shape[:2], np.nan)
    for point, chosen in enumerate(where):
        if chosen.any():
            found[point] = np.median(values[point][:, chosen], axis=-1)
    return found
