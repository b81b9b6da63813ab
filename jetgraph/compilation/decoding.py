"""The decoder's affine part, applied to values that are held before it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor

from jetgraph.algebra.expansion import Expansion
from jetgraph.errors import StateError
from jetgraph.export.precision import own_types
from jetgraph.running.alone import by_element, by_place, by_position
from jetgraph.running.forward import Forward
from jetgraph.running.indices import Position, at_places

WIDE = 2**28
"""Bytes of outputs that are held at once where only their sizes are asked for."""


class Decoding:
    """U x + b for values x before the decoder's affine part, in the grad mode in which this was made.

    Parameters
    ----------
    expansion
        Whose terms they are.
    forward
        The pass that they belong to.
    """

    def __init__(self, expansion: Expansion, forward: Forward) -> None:
        self.forward = forward
        self.biased = bool(expansion.constants)
        """The decoder may have a constant part."""
        self._grad = torch.is_grad_enabled()
        weights = (value for value in forward.state.values() if isinstance(value, Tensor))
        self._weights = [weight for weight in weights if not weight.is_inference()]
        self._versions = [weight._version for weight in self._weights]

    def decode(
        self, hidden: Tensor, constant: Sequence[float], position: Position | None = None, out: Tensor | None = None
    ) -> Tensor:
        """U x + β b for rows of x and β: [row, *output], at one position if given, in `out` where that can be."""
        region = self.forward.graph.structure.decoder.affine
        if position is not None:
            places = self.forward.places(position)
            if not by_place(region, places):
                return at_places(self.decode(hidden, constant), places, 2)
            hidden = at_places(hidden, places, 2).contiguous()
        whole = not self.biased or all(weight == 1 for weight in constant)
        with self.reading():
            value = self.forward.pieces.side_by_side(region, hidden, linear=not whole, out=out)
            if whole or not any(constant):
                return value
            bias = self.forward.through(region, torch.zeros_like(hidden[0]))
            return torch.stack(
                [row + weight * bias if weight else row for row, weight in zip(value, constant, strict=True)]
            )

    def norms(self, hidden: Sequence[Tensor], constant: Sequence[float]) -> list[float]:
        """‖U x + β b‖ in float64, each by itself, with no more than `WIDE` bytes of outputs at once.

        Where U is one matrix for all positions, and more rows x go through it than it has columns, ‖U x‖² is xᵀ(UᵀU)x.
        """
        rows = hidden[0].numel() // hidden[0].shape[-1] if hidden[0].dim() else 1
        linear = [at for at, weight in enumerate(constant) if not weight]
        many = len(linear) * rows > hidden[0].shape[-1:].numel() and not hidden[0].is_complex()
        gram = self._gram if many else None
        norms: dict[int, float] = {}
        if gram is not None:
            for at in linear:
                flat = hidden[at].detach().double().flatten(0, -2)
                norms[at] = math.sqrt(max(float(((flat @ gram) * flat).sum()), 0.0))
        rest = [at for at in range(len(hidden)) if at not in norms]
        size = max(1, WIDE // self._bytes)
        for start in range(0, len(rest), size):
            some = rest[start : start + size]
            values = self.decode(torch.stack([hidden[at] for at in some]), [constant[at] for at in some]).detach()
            norms |= {at: float(value.double().norm()) for at, value in zip(some, values, strict=True)}
        return [norms[at] for at in range(len(hidden))]

    @cached_property
    def _bytes(self) -> int:
        """What one output takes, in float64."""
        return 8 * max(1, math.prod(self.forward.shape(self.forward.graph.traced.output)))

    @cached_property
    def _gram(self) -> Tensor | None:
        """UᵀU in float64, where every position goes through U by itself, and all alike; None elsewhere.

        A copy of U is in memory for that time.
        """
        region = self.forward.graph.structure.decoder.affine
        shape = self.forward.shape(region.entry)
        if len(shape) != 3 or not region.nodes or not by_element(region) or not by_position(region):
            return None
        batch, _, width = shape
        like = self.forward.sizes.zeros(region.entry)
        number = -(-width // batch)
        units = torch.zeros(number * batch, 1, width, dtype=like.dtype, device=like.device)
        units[range(width), 0, range(width)] = 1
        with self.reading():
            columns = self.forward.pieces.side_by_side(region, units.unflatten(0, (number, batch)), linear=True)
            columns = columns.detach().flatten(0, 1)[:width].flatten(1)
            return sum(part.double() @ part.double().T for part in columns.split(2**13, dim=1))  # type: ignore[return-value]

    @contextmanager
    def reading(self) -> Iterator[None]:
        """The evaluation's modes.

        Raises
        ------
        StateError
            Its weights have changed in place.
        """
        if [weight._version for weight in self._weights] != self._versions:
            raise StateError(
                "the model's weights were changed in place after these paths were evaluated (an optimiser's step, or "
                "other ones were loaded): read what you need before, or call the module again"
            )
        with own_types(), torch.set_grad_enabled(self._grad):
            yield
