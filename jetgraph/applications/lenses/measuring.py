"""One model with its lenses compiled, measured window by window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from jetgraph.algebra.expansion import expand
from jetgraph.applications.distances import METRICS, compare
from jetgraph.applications.intervals import Array
from jetgraph.applications.lenses.points import CHUNK, Layers, by_position, jet_sums, lens_points, output_shape
from jetgraph.applications.lenses.radius import RADIUS_ORDER, radius_of_convergence
from jetgraph.applications.subject import Subject
from jetgraph.compilation import PathModule, compile
from jetgraph.running.forward import Forward


class Measurement:
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
                terms = values.each(paths)
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
