"""The decoder's affine part, applied to values that are held before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from jetgraph.algebra.expansion import Expansion
from jetgraph.errors import StateError
from jetgraph.export.precision import own_types
from jetgraph.running.alone import by_position
from jetgraph.running.forward import Forward
from jetgraph.running.indices import Position, at_places


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
        self.biased = any(entry.of_decoder for entry in expansion.entries)
        """The decoder may have a constant part."""
        self._grad = torch.is_grad_enabled()
        self._versions = [
            (value, value._version)
            for value in forward.state.values()
            if isinstance(value, Tensor) and not value.is_inference()
        ]

    def decode(
        self, hidden: Tensor, constant: Sequence[float], position: Position | None = None, out: Tensor | None = None
    ) -> Tensor:
        """U x + β b for rows of x and β: [row, *output], at one position if given, in `out` where that can be."""
        region = self.forward.graph.structure.decoder.affine
        if position is not None:
            places = self.forward.places(position)
            if not by_position(region):
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

    @contextmanager
    def reading(self) -> Iterator[None]:
        """The evaluation's modes. Raises `StateError` where its weights have changed in place."""
        if any(value._version != version for value, version in self._versions):
            raise StateError(
                "the model's weights were changed in place after these paths were evaluated (an optimiser's step, or "
                "other ones were loaded): read what you need before, or call the module again"
            )
        with own_types(), torch.set_grad_enabled(self._grad):
            yield
