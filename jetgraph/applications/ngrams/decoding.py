"""The decoder's affine part by itself, for tables of n-grams."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from jetgraph.applications.kept import kept
from jetgraph.applications.ngrams.fitting import vocabulary_of
from jetgraph.applications.subject import Subject
from jetgraph.errors import InputError, check
from jetgraph.running.forward import Forward


class Decoding:
    """The affine part x ↦ U x + b of the decoder, on values x as `PathTable.hidden` gives them.

    Parameters
    ----------
    subject
        The model.
    length
        Positions of a context.
    run
        A forward pass over so many contexts.
    biased
        The table has the constant b.
    """

    def __init__(self, subject: Subject, length: int, run: Callable[[int], Forward], *, biased: bool) -> None:
        self._length, self._run, self._biased = length, run, biased
        self._graph = graph = subject.graph
        # Else the affine part needs the other positions too.
        self.last_alone: bool = length > 1 and graph.by_position(graph.structure.decoder.affine)
        """Of the positions of a context, the last one alone goes through the affine part."""
        self.vocabulary: int = vocabulary_of(subject)
        self.device: torch.device = subject.device

    @torch.no_grad()
    def decode(self, hidden: Tensor, *, linear: bool = False) -> Tensor:
        """U x + b [rows, vocabulary] for values x as `hidden` gives them; U x alone if `linear`.

        Raises
        ------
        InputError
            Values of another shape, type or layout.
        """
        check(Decoding.decode, locals())
        size = math.prod(self.shape)
        plain = hidden.layout is torch.strided and not hidden.is_meta and hidden.dtype == self.dtype
        if not plain or hidden.dim() != 2 or hidden.shape[1] != size:
            raise InputError(
                f"values before the decoder's affine part are {self.dtype} of shape [rows, {size}], not "
                f"{hidden.dtype} of shape {list(hidden.shape)} on {hidden.device}"
            )
        forward = self._run(len(hidden))
        region = forward.graph.structure.decoder.affine
        value = hidden.unflatten(1, self.shape)
        return last(forward.pieces.linear(region, value) if linear else forward.through(region, value))

    def units(self, start: int, number: int) -> Tensor:
        """Unit vectors [number, d] of the features from `start` on, as values before the affine part."""
        units = torch.zeros(number, math.prod(self.shape), dtype=self.dtype, device=self.device)
        units[:, start:].fill_diagonal_(1)
        return units

    @torch.no_grad()
    def constant(self) -> Tensor:
        """The constant b [vocabulary] of the logits; a single zero where they have none."""
        if not self._biased:
            return torch.zeros(1, device=self.device)
        return self.decode(0 * self.units(0, 1))[0]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of a row before the decoder's affine part: [`positions`, d_model]."""
        node = self._graph.structure.decoder.nonlinear.exit
        shape = kept(self._graph, "shape before U", self._length, lambda: self._run(1).shape(node)[1:])
        return (1, *shape[1:]) if self.last_alone else shape

    @property
    def positions(self) -> int:
        """Positions of a context whose logits are computed: the last one alone where the decoder allows for it."""
        return 1 if self.last_alone else self._length

    @property
    def dtype(self) -> torch.dtype:
        """Type of the values before the decoder's affine part."""
        return self._graph.structure.decoder.nonlinear.exit.meta["dtype"]

    @property
    def by_row(self) -> bool:
        """Each row goes through the decoder's affine part by itself."""
        return self._graph.by_element(self._graph.structure.decoder.affine)


def last(value: Tensor) -> Tensor:
    """The logits at the last position, [rows, vocabulary], of a term of the output's shape, which has 2 or 3 sizes."""
    at_last = value if value.dim() == 2 else value[:, -1]
    # A view of the last position would keep the others in memory.
    return at_last if at_last.is_contiguous() else at_last.contiguous()
