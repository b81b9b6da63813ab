"""One model with its lenses compiled, measured window by window."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jetgraph.algebra.expansion import expand
from jetgraph.algebra.rules import Scale
from jetgraph.applications.distances import METRICS, compare
from jetgraph.applications.intervals import Array
from jetgraph.applications.lenses.choosing import chosen_orders
from jetgraph.applications.lenses.corpora import Cursor, Windows, alike
from jetgraph.applications.lenses.points import (
    CHUNK,
    LARGE_CHUNK,
    JetSums,
    Layers,
    by_position,
    by_row,
    is_norm_alone,
    lens_points,
    output_shape,
    stream_dims,
)
from jetgraph.applications.lenses.radius import RADIUS_ORDER, radius_of_convergence
from jetgraph.applications.lenses.tallies import Tally
from jetgraph.applications.orders import HIGHEST, ChosenOrder
from jetgraph.applications.subject import Subject
from jetgraph.compilation import PathModule, compile
from jetgraph.running.forward import Forward
from jetgraph.running.matching import match, radius
from jetgraph.running.memory import suited
from jetgraph.scale.shards import each
from jetgraph.scale.states import Record, digest_of_model


class Measurement:
    """One model with its lenses compiled, and what of them a window of text has at once.

    Parameters
    ----------
    one, layers, scale
        As of `evaluate_lens`.
    batch
        Windows that are run at once.
    memory
        Bytes that lenses of one batch may take before the unembedding, and logits of some points after it.
    """

    def __init__(
        self, one: Subject, layers: Layers, batch: int, scale: Scale, memory: int | None = None, skip: int = 0
    ) -> None:
        self.subject = one
        self.skip = skip
        """Positions at the beginning of each window that are left out."""
        self.graph = one.graph
        self.batch = batch
        usual = suited(one.device, cpu=CHUNK, accelerator=LARGE_CHUNK)
        self.memory = usual if memory is None else memory
        self.scale: Scale = scale
        self.points = lens_points(expand(one.graph, 0, recipe="lens", layers=layers))
        self._looked_at = ""
        """The windows and orders of the first stage."""

    @property
    def _identity(self) -> dict[str, str]:
        """What the measurement is determined by; windows and orders are those of its first stage."""
        options = repr(
            {"points": self.points, "scale": self.scale, "batch": self.batch, "memory": self.memory, "skip": self.skip}
        )
        return {"model": digest_of_model(self.graph), "text and orders": self._looked_at, "options": options}

    def chosen(self, windows: Sequence[Tensor], tolerance: float) -> tuple[ChosenOrder, ...]:
        """The order at each point that leaves no more than a tolerance over all windows."""
        batches = [self._together(windows, some) for some in alike(windows, self._size(HIGHEST))]
        return chosen_orders(self.graph, batches, self.points, self.scale, tolerance)

    def measure(
        self, windows: Windows, orders: Sequence[int], sample: Collection[int] = ()
    ) -> Callable[[], Sequence[Record]]:
        """What gives a tally of [metric, point, order], in the order of `METRICS`.

        Of windows that are in a sample, by their numbers, each token's `remainder` is kept, [point, order, position].
        """
        module = self._lenses(orders[-1])

        def look(batch: dict[str, Any]) -> Array:
            values = module(**batch)
            output = by_position(values.output)
            sums, parts = JetSums(module.expansion, values), list[Array]()
            # In one product where there is memory for it.
            number = max(1, self.memory // (4 * output.numel()))
            several = max(1, number // len(orders))
            for at in range(0, len(self.points), several):
                measured = [
                    self._compared(sums, output, self.points[at : at + several], orders[start : start + number])
                    for start in range(0, len(orders), number)
                ]
                parts.append(torch.cat(measured, dim=2).cpu().numpy())
            # [metric, point, order, window, position]
            return np.concatenate(parts, axis=1)

        def of_sample(measured: Sequence[Array], start: int) -> Record:
            remainder = [
                one[METRICS.index("remainder")] for number, one in enumerate(measured, start) if number in sample
            ]
            return {"remainder": torch.from_numpy(np.concatenate(remainder, axis=-1))} if remainder else {}

        return self._each("lenses", windows, orders, look, Tally.over(windows), of_sample)

    def _compared(self, sums: JetSums, output: Tensor, points: Sequence[int], orders: Sequence[int]) -> Tensor:
        """[metric, point, order, window, position] at some points; the logits are gone again after it."""
        logits = sums.of([f"h{point}" for point in points], orders)
        comparison = compare(output, logits.reshape(len(points), len(orders), *output.shape))
        return torch.stack([getattr(comparison, name).double() for name in METRICS])

    def geometry(self, windows: Windows) -> Callable[[], Sequence[Record]]:
        """What gives a tally of [distance, radius and whether it is above 1, point].

        Radii of a norm alone have a closed form; those of other decoders are read off `RADIUS_ORDER` orders.
        """
        region = self.graph.structure.decoder.nonlinear
        closed = is_norm_alone(self.graph)
        module = None if closed or not region.nodes else self._lenses(RADIUS_ORDER)

        def look(batch: dict[str, Any]) -> Array:
            forward = self.graph.run(**batch)
            rows = output_shape(self.graph, batch)[:-1]
            rows = rows if len(rows) > 1 else (*rows, 1)
            centres, ways = ways_to_end(forward, self.points, self.scale)
            dims = stream_dims(self.graph)
            distances = [_ratio(way, centre, rows, dims) for centre, way in zip(centres, ways, strict=True)]
            if module is not None:
                radii = _read_off(module, batch, self.points)
            elif closed:
                found = radius(forward.pieces, region, centres, ways).cpu().numpy()
                radii = [by_row(each, rows, dims) for each in found]
            else:
                radii = [np.full(rows, np.inf) for _ in ways]
            return np.stack([np.stack(distances), np.stack(radii), (np.stack(radii) > 1).astype(np.float64)])

        return self._each("radii", windows, [0 if module is None else RADIUS_ORDER], look, Tally.whole(windows))

    def _each(
        self,
        stage: str,
        windows: Windows,
        orders: Sequence[int],
        look: Callable[[dict[str, Any]], Array],
        tally: Tally,
        besides: Callable[[Sequence[Array], int], Record] = lambda measured, start: {},
    ) -> Callable[[], Sequence[Record]]:
        """What gives a tally of what batches of windows give, [..., window, position], run by run."""
        self._looked_at = self._looked_at or repr((windows.digest, tuple(orders)))
        cursor, run = Cursor(windows.begin), windows.run(self.batch)
        size = self._size(orders[-1])

        def compute(unit: int) -> Record:
            some = cursor.take(unit * run, (unit + 1) * run)
            measured: dict[int, Array] = {}
            for places in alike(some, size):
                values = look(self._together(some, places))[..., self.skip :]
                measured |= {place: values[..., i, :] for i, place in enumerate(places)}
            every = [measured[place] for place in range(len(some))]
            return {**tally.record(every), **besides(every, unit * run)}

        number, glance = windows.units(self.batch)
        return each(stage, number, compute, lambda: self._identity, glance)

    def _size(self, order: int) -> Callable[[Tensor], int]:
        """How many windows go together."""
        sizes: dict[tuple[int, ...], int] = {}

        def size(window: Tensor) -> int:
            shape = tuple(window.shape)
            if shape not in sizes:
                alone = self._bytes(self.subject.inputs(window[None]), order)
                sizes[shape] = min(self.batch, max(1, self.memory // alone))
            return sizes[shape]

        return size

    def _together(self, windows: Sequence[Tensor], places: Sequence[int]) -> dict[str, Any]:
        return self.subject.inputs(torch.stack([windows[place] for place in places]))

    def _bytes(self, inputs: Mapping[str, Any], order: int) -> int:
        """What one window takes: lenses of all points before the unembedding, or logits of one point after it."""
        logits = 8 * int(np.prod(output_shape(self.graph, inputs)[1:]))
        entry = self.graph.structure.decoder.affine.entry
        hidden = int(np.prod(self.graph.run(**inputs).shape(entry))) * entry.meta["dtype"].itemsize
        return (order + 1) * max(logits, hidden * len(self.points))

    def _lenses(self, order: int) -> PathModule:
        """The lenses of all points."""
        expansion = expand(self.graph, order, recipe="lens", layers=self.points, scale=self.scale)
        return compile(expansion, memory=self.memory)


def ways_to_end(forward: Forward, points: Sequence[int], scale: Scale) -> tuple[Tensor, Tensor]:
    """The centres of lenses [point, ...], matched where they are to be, and what is still missing to the end of the
    stream.

    Of a token that no scale brings near, both are those of the centre as it is.
    """
    region = forward.graph.structure.decoder.nonlinear
    x, end = torch.stack([forward.at_end(point) for point in points]), forward.point(-1)
    if scale == "matched" and region.scaling is not None:
        x = match(forward.pieces, region, x, end).centre
    return x, end - x


def closed_radii(forward: Forward, points: Sequence[int], scale: Scale, rows: tuple[int, ...]) -> Tensor | None:
    """Radii of convergence of lenses [point, *rows], where the decoder is one norm; None where they have no closed
    form."""
    if not is_norm_alone(forward.graph):
        return None
    region = forward.graph.structure.decoder.nonlinear
    # A point lives in float64 eight times or so.
    size = max(1, CHUNK // (64 * forward.point(-1).numel()))
    parts = (ways_to_end(forward, points[start : start + size], scale) for start in range(0, len(points), size))
    radii = torch.cat([radius(forward.pieces, region, *ways) for ways in parts]).cpu().numpy()
    return torch.from_numpy(np.stack([by_row(each, rows, stream_dims(forward.graph)) for each in radii]))


def _read_off(module: PathModule, batch: dict[str, Any], points: Sequence[int]) -> list[Array]:
    """Radii of convergence by point, from the sizes of coefficients."""
    values = module(**batch)
    radii = []
    for point in points:
        terms = values.each([path for path in values.hidden if path.source.alias == f"h{point}"])
        sizes = torch.stack([by_position(term).double().norm(dim=-1) for term in terms])
        radii.append(radius_of_convergence(sizes.cpu().numpy()))
    return radii


def _ratio(value: Tensor, whole: Tensor, rows: tuple[int, ...], dims: tuple[int | None, int | None]) -> Array:
    """‖value‖ / ‖whole‖ per row of the output; over the whole stream where the output has no positions."""
    # Some models have rows and positions in one dimension on the way.
    by_position = int(np.prod(whole.shape[:-1])) == int(np.prod(rows))
    summed = (-1,) if by_position else tuple(range(1, whole.dim()))
    if None not in dims:
        summed = tuple(dim for dim in range(-whole.dim(), 0) if dim not in dims)
    one, other = (torch.linalg.vector_norm(each.double(), dim=summed) for each in (value, whole))
    return by_row((one / other).cpu().numpy(), rows, dims)
