"""One model with its lenses compiled, measured window by window."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jetgraph.algebra.rules import Scale
from jetgraph.applications.distances import METRICS, Reference
from jetgraph.applications.intervals import Array
from jetgraph.applications.lenses.choosing import chosen_orders
from jetgraph.applications.lenses.compiled import Lenses, lenses
from jetgraph.applications.lenses.corpora import Cursor, Windows, alike
from jetgraph.applications.lenses.points import (
    CHUNK,
    LARGE_CHUNK,
    JetSums,
    Layers,
    by_position,
    by_rows,
    is_norm_alone,
    shape_of,
    stream_dims,
)
from jetgraph.applications.lenses.radius import RADIUS_ORDER, radius_of_convergence
from jetgraph.applications.lenses.tallies import Tally
from jetgraph.applications.orders import HIGHEST, ChosenOrder
from jetgraph.applications.subject import Subject
from jetgraph.compilation.values import PathValues
from jetgraph.errors import amount
from jetgraph.export.frames import on_one_chunk
from jetgraph.export.precision import summed_in
from jetgraph.running.forward import Forward
from jetgraph.running.matching import match, radius
from jetgraph.running.memory import suited
from jetgraph.scale.shards import advance, each
from jetgraph.scale.states import Record, digest_of_model

Look = Callable[[], tuple[Array, ...]]
"""What reads of a device what was computed of some windows, and waits for it."""


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
        known = lenses(one.graph, 0, layers, scale)
        self.points, self.after = known.points, known.after
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
        return chosen_orders(self.subject, batches, self.points, self.scale, tolerance)

    def measure(
        self, windows: Windows, orders: Sequence[int], sample: Collection[int] = ()
    ) -> Callable[[], Sequence[Record]]:
        """What gives a tally of [metric, point, order], in the order of `METRICS`.

        Of windows that are in a sample, by their numbers, each token's `remainder` is kept, [point, order, position],
        and `ways`, which `geometry` takes, where no orders are evaluated for it.
        """
        known = self._lenses(orders[-1])

        def look(forward: Forward) -> Look:
            values = self._values(known, forward)
            ways = self._ways(forward, _scales(values, self.points)) if sample and self._is_closed else None
            output = by_position(values.output)
            sums, reference, parts = JetSums(known.expansion, values), Reference(output), list[Tensor]()
            # In one product where there is memory for it, beside the terms and what a comparison makes.
            number = max(1, self.memory // (4 * output.nbytes))
            several = max(1, number // len(orders))
            for at in range(0, len(self.points), several):
                measured = [
                    _compared(sums, reference, self.points[at : at + several], orders[start : start + number])
                    for start in range(0, len(orders), number)
                ]
                parts.append(torch.cat(measured, dim=2))
                advance(parts[-1].shape[1] * parts[-1].shape[3])
            # [metric, point, order, window, position]
            found = torch.cat(parts, dim=1)
            return lambda: (found.cpu().numpy(), *(() if ways is None else (ways(),)))

        def of_sample(measured: Sequence[tuple[Array, ...]], start: int) -> Record:
            sampled = [one for number, one in enumerate(measured, start) if number in sample]
            if not sampled:
                return {}
            kept = {"remainder": np.concatenate([found[METRICS.index("remainder")] for found, *_ in sampled], axis=-1)}
            if self._is_closed:
                kept["ways"] = np.concatenate([ways for _, ways in sampled], axis=-1)
                kept["lengths"] = np.array([ways.shape[-1] for _, ways in sampled])
            return {name: torch.from_numpy(values) for name, values in kept.items()}

        return self._each("lenses", windows, orders, look, Tally.over(windows), of_sample)

    def geometry(self, windows: Windows, lenses: Callable[[], Sequence[Record]]) -> Callable[[], Sequence[Record]]:
        """What gives a tally of [distance, radius and whether it is above 1, point] of windows that were a sample of
        what `measure` gives.

        Radii of a norm alone have a closed form, and stand there; those of other decoders are read off `RADIUS_ORDER`
        orders.
        """
        tally = Tally.whole(windows)
        if self._is_closed:
            return lambda: [tally.record([ways for record in lenses() for ways in _by_window(record)])]
        known = self._lenses(RADIUS_ORDER)

        def look(forward: Forward) -> Look:
            values = self._values(known, forward)
            ways = self._ways(forward, _scales(values, self.points), np.stack(_read_off(values, self.points)))
            return lambda: (ways(),)

        return self._each("radii", windows, [RADIUS_ORDER], look, tally)

    @property
    def _is_closed(self) -> bool:
        """No orders are evaluated for radii: the decoder is a norm alone, or affine."""
        return is_norm_alone(self.graph) or not self.graph.structure.decoder.nonlinear.nodes

    def _ways(self, forward: Forward, scales: Tensor | None, radii: Array | None = None) -> Callable[[], Array]:
        """What reads [distance, radius and whether it is above 1, point, window, position] of a device; the radii are
        those of closed forms unless given. See `_some_ways`.
        """
        region, dims = self.graph.structure.decoder.nonlinear, stream_dims(self.graph)
        rows = (*shape_of(self.graph, forward)[:-1], 1)[:2]
        distances, found = list[Tensor](), list[Tensor]()
        for centres, ways in _some_ways(forward, self.points, self.scale, self.memory // 2, scales):
            distances.append(_ratios(ways, centres, rows, dims))
            if is_norm_alone(self.graph):
                found.append(radius(forward.pieces, region, centres, ways))

        def read() -> Array:
            own = np.full((len(self.points), *rows), np.inf) if radii is None else radii
            own = by_rows(torch.cat(found), rows, dims) if found else own
            return np.stack([by_rows(torch.cat(distances), rows, dims), own, own > 1])

        return read

    def _each(
        self,
        stage: str,
        windows: Windows,
        orders: Sequence[int],
        look: Callable[[Forward], Look],
        tally: Tally,
        besides: Callable[[Sequence[tuple[Array, ...]], int], Record] = lambda measured, start: {},
    ) -> Callable[[], Sequence[Record]]:
        """What gives a tally of the first of what batches of windows give, [..., window, position], run by run."""
        self._looked_at = self._looked_at or repr((windows.digest, tuple(orders)))
        cursor, run = Cursor(windows.begin), windows.run(self.batch)
        size = self._size(orders[-1])

        def compute(unit: int) -> Record:
            some = cursor.take(unit * run, (unit + 1) * run)
            measured: dict[int, tuple[Array, ...]] = {}
            batches = [*alike(some, size)]
            # To check the inputs of a batch, a device is waited for: they are before anything is computed.
            forwards = deque(self.subject.run(self._together(some, places)) for places in batches)
            looks = ((places, look(forwards.popleft())) for places in batches)
            for places, read in _one_behind(looks):
                found = [values[..., self.skip :] for values in read()]
                measured |= {place: tuple(values[..., i, :] for values in found) for i, place in enumerate(places)}
            every = [measured[place] for place in range(len(some))]
            return {**tally.record([first for first, *_ in every]), **besides(every, unit * run)}

        number, glance = windows.units(self.batch)
        parts = windows.parts(run, len(self.points), "points × windows")
        of = f"runs of {amount(run, 'window')}"
        return each(stage, number, compute, lambda: self._identity, glance, of, parts)

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
        entry = self.graph.structure.decoder.affine.entry
        forward = self.subject.run(inputs)
        logits = 8 * int(np.prod(shape_of(self.graph, forward)[1:]))
        hidden = int(np.prod(forward.shape(entry))) * entry.meta["dtype"].itemsize
        return (order + 1) * max(logits, hidden * len(self.points))

    def _lenses(self, order: int) -> Lenses:
        """The lenses of all points."""
        return lenses(self.graph, order, self.points, self.scale)

    def _values(self, known: Lenses, forward: Forward) -> PathValues:
        """Their terms on a forward pass."""
        return on_one_chunk(lambda: known.values(forward, memory=self.memory))


def _one_behind(looks: Iterable[tuple[list[int], Look]]) -> Iterator[tuple[list[int], Look]]:
    """Each once the next one has begun: a device works on that while it is asked for this."""
    before: list[tuple[list[int], Look]] = []
    for one in looks:
        yield from before
        before = [one]
    yield from before


def _by_window(record: Record) -> Sequence[Array]:
    """The `ways` of each window of a sample."""
    if "ways" not in record:
        return []
    ends = np.cumsum(record["lengths"].numpy())[:-1]
    return np.split(record["ways"].numpy(), ends, axis=-1)


def _compared(sums: JetSums, reference: Reference, points: Sequence[int], orders: Sequence[int]) -> Tensor:
    """[metric, point, order, window, position] at some points; the logits are gone again after it."""
    logits = sums.of([f"h{point}" for point in points], orders)
    comparison = reference.compare(logits.reshape(*logits.shape[:2], *reference.shape))
    return torch.stack([getattr(comparison, name).double() for name in METRICS])


def _scales(values: PathValues, points: Sequence[int]) -> Tensor | None:
    """What matched the centres of all points, [point, ...]; None where not all were matched."""
    told = [scales for site in values.scales.values() for scales in site]
    return torch.cat(told) if told and sum(map(len, told)) == len(points) else None


def ways_to_end(
    forward: Forward, points: Sequence[int], scale: Scale, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The centres of lenses [point, ...], matched where they are to be, and what is still missing to the end of the
    stream.

    Of a token that no scale brings near, both are those of the centre as it is. Where `scales` are given, what matches
    the centres is known.
    """
    region = forward.graph.structure.decoder.nonlinear
    x, end = torch.stack([forward.at_end(point) for point in points]), forward.point(-1)
    if scale == "matched" and region.scaling is not None:
        x = match(forward.pieces, region, x, end).centre if scales is None else (x * scales).to(x.dtype)
    return x, end - x


def _some_ways(
    forward: Forward, points: Sequence[int], scale: Scale, memory: int, scales: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """`ways_to_end` of as many points at once as fit into so many bytes."""
    stream = forward.graph.structure.main.points
    # In one pass, which keeps them all.
    forward.need([*(stream[point] for point in points), stream[-1]])
    end = forward.point(-1)
    # What a point has lives in the type that it is summed in eight times or so.
    size = max(1, memory // (8 * summed_in(end.dtype).itemsize * end.numel()))
    parts = (slice(start, start + size) for start in range(0, len(points), size))
    return (ways_to_end(forward, points[at], scale, None if scales is None else scales[at]) for at in parts)


def closed_radii(forward: Forward, points: Sequence[int], scale: Scale) -> Tensor | None:
    """Radii of convergence of lenses [point, ...], where the decoder is one norm; None where they have no closed form.

    On their device: for the rows of the output see `by_rows`.
    """
    if not is_norm_alone(forward.graph):
        return None
    region = forward.graph.structure.decoder.nonlinear
    memory = suited(forward.graph.traced.device_and_dtype[0], cpu=CHUNK, accelerator=LARGE_CHUNK // 2)
    return torch.cat([radius(forward.pieces, region, *ways) for ways in _some_ways(forward, points, scale, memory)])


def _read_off(values: PathValues, points: Sequence[int]) -> list[Array]:
    """Radii of convergence by point, from the sizes of coefficients."""
    radii = []
    for point in points:
        terms = values.each([path for path in values.hidden if path.source.alias == f"h{point}"])
        sizes = torch.stack([by_position(term).double().norm(dim=-1) for term in terms])
        radii.append(radius_of_convergence(sizes.cpu().numpy()))
    return radii


def _ratios(values: Tensor, wholes: Tensor, rows: tuple[int, ...], dims: tuple[int | None, int | None]) -> Tensor:
    """‖value‖ / ‖whole‖ of stacks of them, per row of the output; over the whole stream where the output has no
    positions.
    """
    # Some models have rows and positions in one dimension on the way.
    by_position = int(np.prod(wholes.shape[1:-1])) == int(np.prod(rows))
    summed = (-1,) if by_position else tuple(range(2, wholes.dim()))
    if None not in dims:
        summed = tuple(dim for dim in range(1 - wholes.dim(), 0) if dim not in dims)
    wide = summed_in(values.dtype)
    one, other = (torch.linalg.vector_norm(each, dim=summed, dtype=wide) for each in (values, wholes))
    return one / other
