"""Kinds of lenses side by side on a text: the logit lens, jets with plain and matched centres, and transports."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from jetgraph.algebra.expansion import expand
from jetgraph.applications.distances import METRICS
from jetgraph.applications.intervals import Array, bootstrap, check_bootstrap
from jetgraph.applications.lenses.corpora import Cursor, Texts, Windows, alike, corpus
from jetgraph.applications.lenses.iterative import Lens, lens
from jetgraph.applications.lenses.points import CHUNK, Layers, after_point, lens_points, output_shape
from jetgraph.applications.lenses.transport import Transport, transport_lens
from jetgraph.applications.results import Cell, Result
from jetgraph.applications.subject import Model, Subject
from jetgraph.errors import InputError, amount, check
from jetgraph.export.precision import own_types
from jetgraph.jets.series import check_order

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class LensComparison(Result):
    """Kinds of lenses against the model's output on a text. Made by `compare_lenses`."""

    model: str
    kinds: tuple[str, ...]
    points: tuple[int, ...]
    after: tuple[str, ...]
    tokens: int
    windows: int
    mean: Mapping[str, Array]
    """By metric (`kl`, `cosine`, `top1`, `top5`, `remainder`), means over tokens [kind, point]."""
    low: Mapping[str, Array]
    """The lower ends of 95 % bootstrap intervals over windows; NaN of one window."""
    high: Mapping[str, Array]
    """The upper ends."""

    @property
    def title(self) -> str:
        return (
            f"Lenses of {self.model}: {', '.join(self.kinds)}; at {amount(len(self.points), 'point')}, on "
            f"{amount(self.tokens, 'token')} in {amount(self.windows, 'window')}"
        )

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """A row for each quantity, kind and point: mean and 95 % interval."""
        rows = [(name, k, p) for name in self.mean for k in range(len(self.kinds)) for p in range(len(self.points))]
        cells = {
            end: [None if np.isnan(value[name][k, p]) else float(value[name][k, p]) for name, k, p in rows]
            for end, value in (("mean", self.mean), ("low", self.low), ("high", self.high))
        }
        return {
            "quantity": [name for name, *_ in rows],
            "lens": [self.kinds[k] for _, k, _ in rows],
            "point": [f"h{self.points[p]}" for *_, p in rows],
            "after": [self.after[p] for *_, p in rows],
            **cells,
        }

    def figure(self) -> Figure:
        """KL, remainder and agreement along the stream, a line for each kind, with its interval."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(14, 4.4), layout="constrained")
        places = range(len(self.points))
        panels = (("kl", "KL(model ‖ lens), nats"), ("remainder", "‖output − lens‖ / ‖output‖"), ("top1", "top agrees"))
        for axes, (name, label) in zip(figure.subplots(1, 3), panels, strict=True):
            for k, kind in enumerate(self.kinds):
                axes.plot(places, self.mean[name][k], "o-", markersize=3, label=kind)
                axes.fill_between(places, self.low[name][k], self.high[name][k], alpha=0.2)
            if name != "top1":
                axes.set_yscale("symlog", linthresh=0.01)
            axes.set_ylabel(label)
            ticks = range(0, len(self.points), -(-len(self.points) // 24))
            labels = [f"h{self.points[i]} {self.after[i]}" for i in ticks]
            axes.set_xticks(ticks, labels, rotation=60, ha="right", fontsize=7, parse_math=False)
            axes.grid(alpha=0.25)
        figure.axes[0].legend(fontsize=8)
        figure.supxlabel("point of the stream, and what it follows", fontsize=9)
        figure.suptitle(self.title, fontsize=10, parse_math=False)
        return figure


@torch.no_grad()
@own_types()
def compare_lenses(
    model: Model,
    texts: Texts,
    transport: Transport | str | os.PathLike[str] | None = None,
    *,
    order: int = 1,
    layers: Layers = None,
    tokens: int = 2_000,
    window: int | None = None,
    batch: int = 4,
    resamples: int = 1000,
    seed: int = 0,
    tokenizer: Any | None = None,
) -> LensComparison:
    """The logit lens, jets of an order with plain and with matched centres, and a transport, side by side.

    Parameters
    ----------
    model, texts, layers, tokens, window, batch, resamples, seed, tokenizer
        As in `evaluate_lens`; points are those of the transport where one is given and `layers` is not.
    transport
        What `fit_transport` gives, or its file; of another text than this one, if it is to say anything.
    order
        Of the jets.

    Raises
    ------
    InputError
        As `evaluate_lens`, and for an order below 1.
    """
    check(compare_lenses, locals())
    if order < 1 or tokens < 1 or batch < 1 or (window is not None and window < 2):
        raise InputError(f"order={order}, tokens={tokens}, batch={batch} are 1 or more, and a window 2 or more")
    check_order(order)
    check_bootstrap(resamples, seed)
    fitted = Transport.load(transport) if isinstance(transport, str | os.PathLike) else transport
    one, windows = corpus(model, texts, tokens, 64 if window is None else window, tokenizer)
    given = list(fitted.points) if fitted is not None and layers is None else layers
    points = lens_points(expand(one.graph, 0, recipe="lens", layers=given))
    kinds: dict[str, Callable[[Any, list[int]], Lens]] = {
        "logit": lambda inputs, some: lens(one.graph, inputs, order=[0], layers=some),
        f"jet {order} plain": lambda inputs, some: lens(one.graph, inputs, order=[order], layers=some, scale="none"),
        f"jet {order} matched": lambda inputs, some: lens(one.graph, inputs, order=[order], layers=some),
    }
    if fitted is not None:
        kinds["transport"] = lambda inputs, some: transport_lens(one.graph, inputs, fitted, layers=some)
    # By unit that is resampled, [metric, kind, point] and the number of positions.
    measured = list(_measured(one, windows, batch, points, list(kinds.values())))
    sums = np.stack([total for total, _ in measured])
    sizes = np.array([number for _, number in measured], dtype=np.float64).reshape(-1, 1, 1, 1)
    low, high = bootstrap(sums, sizes, resamples, seed)
    mean = sums.sum(0) / sizes.sum()
    return LensComparison(
        one.graph.title,
        tuple(kinds),
        points,
        tuple(after_point(one.graph.outline, point) for point in points),
        int(sizes.sum()),
        windows.number,
        *({name: values[at] for at, name in enumerate(METRICS)} for values in (mean, low, high)),
    )


def _measured(
    one: Subject, windows: Windows, batch: int, points: Sequence[int], kinds: Sequence[Callable[..., Lens]]
) -> Iterator[tuple[Array, int]]:
    """Windows of one shape together, and as many points as logits of `CHUNK` bytes allow."""
    cursor, run, pool = Cursor(windows.begin), windows.run(batch), windows.pool()
    for start in range(0, windows.number, run):
        some = cursor.take(start, start + run)
        by_window: dict[int, Array] = {}
        for places in alike(some, lambda window: batch):
            inputs = one.inputs(torch.stack([some[place] for place in places]))
            size = max(1, CHUNK // (8 * int(np.prod(output_shape(one, inputs)))))
            parts = [points[at : at + size] for at in range(0, len(points), size)]
            distances = np.stack(
                [np.concatenate([_distances(kind(inputs, list(part))) for part in parts], axis=1) for kind in kinds], 1
            )
            by_window |= {place: distances[:, :, :, row] for row, place in enumerate(places)}
        for at in range(0, len(some), pool):
            together = [by_window[place] for place in range(at, min(at + pool, len(some)))]
            sums = np.stack([values.sum(-1) for values in together])
            yield sums.sum(0), sum(values.shape[-1] for values in together)


def _distances(lens: Lens) -> Array:
    """[metric, point, row, position] of a lens of one order."""
    values = torch.stack([getattr(lens.comparison, name).double()[:, 0] for name in METRICS]).cpu().numpy()
    return values if values.ndim == 4 else values[..., None]
