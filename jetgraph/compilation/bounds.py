"""Bounds on what the completions of a path give a target, by their energy.

Give every site, at every position where these are told apart, an independent sign. The target is then a function of the
signs whose Walsh–Fourier coefficients are the values of the paths: distinct paths pass distinct sets of sites. So by
Parseval's equation, for a value v at point p,

    Σ_completions c² = E[⟨a_p, v⟩²] = vᵀ M_p v,        a_p the gradient at p with the signs,
    M_p = Sᵀ M S + Σ_b A_bᵀ M A_b                       over the moves that leave p

and √energy bounds every completion. The matrices are exact, where they fit; else the expectation is a mean over some
random signs, with a standard error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from jetgraph.algebra.passages import Passage
from jetgraph.compilation.components import Stream

LARGEST = 1024
"""Numbers in a point of the stream up to which the matrices are exact."""

Estimate = tuple[Tensor, Tensor]
"""Energies and their standard errors; of exact ones, what rounding may have made of them."""

ROUNDING = 8
"""Units in the last place, of all that could come of a value, by which rounding is taken to change an exact energy: of
a value far smaller than that, as where large numbers cancel, it is as large as its square."""


class Energies(ABC):
    """Energies of all completions of values."""

    exact: bool

    @abstractmethod
    def at(self, point: int, values: Tensor) -> Estimate:
        """Of all completions of values [n, *point]: [n]."""

    @abstractmethod
    def into(self, alias: str, values: Tensor) -> Estimate:
        """Of those that pass a site next, which reads the point of the values: [n]."""

    @abstractmethod
    def each(self, point: int, values: Tensor) -> Estimate:
        """Of all completions of the values' parts at each position: [n, position]."""


def energies(stream: Stream, back: Tensor, signs: int, memory: int, seed: int) -> Energies:
    """The energies of completions.

    Parameters
    ----------
    stream
        The maps.
    back
        The gradient of the target at the last point, [*point].
    signs
        How many random signs are drawn where matrices do not fit.
    memory
        Bytes that the matrices may take.
    seed
        Of the random signs.
    """
    largest = max(value.numel() for value in stream.points)
    size = sum(value.numel() ** 2 for value in stream.points) * 2 * 8
    if largest <= LARGEST and size <= memory:
        return _Exact(stream, back)
    return _Sampled(stream, back, signs, seed)


class _Sampled(Energies):
    """Means over random signs."""

    exact = False

    def __init__(self, stream: Stream, back: Tensor, signs: int, seed: int) -> None:
        self._stream = stream
        self._points: dict[int, Tensor] = {}
        self._sites: dict[str, Tensor] = {}
        random = torch.Generator().manual_seed(seed)
        gradients = {stream.end: back.expand(signs, *back.shape)}
        for point, passages in _backwards(stream):
            if point not in gradients:
                continue
            self._points[point] = own = gradients.pop(point)
            for passage in passages:
                places = stream.placed(own).shape[1]
                sign = torch.randint(0, 2, (signs, places, 1), generator=random).to(own) * 2 - 1
                signed = (stream.placed(own) * sign.to(own.device)).reshape(own.shape)
                rows = stream.sites[passage.site.alias].backwards(signed)
                self._sites[passage.site.alias] = rows
                gradients[passage.reads] = gradients.get(passage.reads, 0) + rows
            if (silent := stream.silent[point]) is not None:
                gradients[silent[0]] = gradients.get(silent[0], 0) + silent[1].backwards(own)

    def at(self, point: int, values: Tensor) -> Estimate:
        return _mean(values.flatten(1) @ self._points[point].flatten(1).T) if point in self._points else _none(values)

    def into(self, alias: str, values: Tensor) -> Estimate:
        return _mean(values.flatten(1) @ self._sites[alias].flatten(1).T) if alias in self._sites else _none(values)

    def each(self, point: int, values: Tensor) -> Estimate:
        placed = self._stream.placed(values)
        if point not in self._points:
            return _none(placed, placed.shape[:2])
        return _mean(torch.einsum("ntd,rtd->ntr", placed, self._stream.placed(self._points[point])))


def _mean(products: Tensor) -> Estimate:
    """The mean of the squares over the last dimension, and its standard error."""
    squares = products.double().square()
    return squares.mean(-1), squares.std(-1) / squares.shape[-1] ** 0.5


def _none(values: Tensor, sizes: Sequence[int] | None = None) -> Estimate:
    """Zeros for each of some values, or of other sizes."""
    zeros = values.new_zeros(sizes or len(values), dtype=torch.float64)
    return zeros, zeros


class _Exact(Energies):
    """The matrices themselves."""

    exact = True

    def __init__(self, stream: Stream, back: Tensor) -> None:
        self._stream = stream
        self._points: dict[int, Tensor] = {}
        self._sites: dict[str, Tensor] = {}
        self._eps = ROUNDING * torch.finfo(stream.dtype).eps
        flat = back.flatten().double()
        matrices = {stream.end: flat[:, None] * flat}
        for point, passages in _backwards(stream):
            if point not in matrices:
                continue
            self._points[point] = own = matrices.pop(point)
            for passage in passages:
                matrix = self._between(self._apart(own, point), stream.sites[passage.site.alias], point, passage.reads)
                self._sites[passage.site.alias] = matrix
                matrices[passage.reads] = matrices.get(passage.reads, 0) + matrix
            if (silent := stream.silent[point]) is not None:
                start, map = silent
                matrix = own if map.identity else self._between(own, map, point, start)
                matrices[start] = matrices.get(start, 0) + matrix

    def _between(self, matrix: Tensor, map: object, point: int, start: int) -> Tensor:
        """Aᵀ M A."""
        stop, begin = self._stream.points[point], self._stream.points[start]

        def back(rows: Tensor) -> Tensor:
            return map.backwards(rows.reshape(-1, *stop.shape).to(stop.dtype)).flatten(1).double()  # type: ignore[attr-defined]

        return back(back(matrix).T.contiguous()).reshape(begin.numel(), begin.numel())

    def _apart(self, matrix: Tensor, point: int) -> Tensor:
        """Without what is between different positions, where these are told apart."""
        places = self._stream.placed(self._stream.points[point][None]).shape[1]
        if places == 1:
            return matrix
        size = matrix.shape[0] // places
        kept = torch.zeros_like(matrix).reshape(places, size, places, size)
        index = torch.arange(places, device=matrix.device)
        kept[index, :, index] = matrix.reshape(places, size, places, size)[index, :, index]
        return kept.reshape_as(matrix)

    def at(self, point: int, values: Tensor) -> Estimate:
        return self._form(self._points.get(point), values)

    def into(self, alias: str, values: Tensor) -> Estimate:
        return self._form(self._sites.get(alias), values)

    def _form(self, matrix: Tensor | None, values: Tensor) -> Estimate:
        if matrix is None:
            return _none(values)
        flat = values.flatten(1).double()
        energy = ((flat @ matrix) * flat).sum(1).clamp_min(0)
        return energy, self._eps * matrix.norm() * flat.square().sum(1)

    def each(self, point: int, values: Tensor) -> Estimate:
        placed = self._stream.placed(values).double()
        if point not in self._points:
            return _none(placed, placed.shape[:2])
        places, size = placed.shape[1:]
        index = torch.arange(places, device=placed.device)
        blocks = self._points[point].reshape(places, size, places, size)[index, :, index]
        energy = torch.einsum("ntd,tde,nte->nt", placed, blocks, placed).clamp_min(0)
        return energy, self._eps * blocks.flatten(1).norm(dim=1) * placed.square().sum(2)


def _backwards(stream: Stream) -> Iterator[tuple[int, list[Passage]]]:
    """The points from the last one back, each with the sites that add to it."""
    stream.read_ahead_backwards()
    by_point: dict[int, list[Passage]] = {}
    for component in stream.components:
        if component.passage is not None:
            by_point.setdefault(component.lands, []).append(component.passage)
    for point in range(stream.end, -1, -1):
        yield point, by_point.get(point, [])
