"""The contexts of a table of n-grams: which there are, their numbers, and whether given ones are any."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jetgraph.errors import BudgetError, InputError, amount, quoted
from jetgraph.running.indices import check_whole

Contexts = Tensor | Sequence[Tensor | None]
"""Contexts [rows, n-1], or for each place the tokens that may stand there (None: the whole vocabulary)."""

CELL_BUDGET = 2**37
"""Largest table (contexts times next tokens) that is streamed: about twice the square of a vocabulary of 256,000."""


@dataclass(frozen=True)
class Numbering:
    """The contexts [rows, n-1] of tokens 0 to `tokens` - 1 at each of n - 1 places, numbered with the last fastest."""

    n: int
    tokens: int

    def count(self, contexts: Contexts | None = None) -> int:
        """Number of contexts: of those given, or of all combinations of the tokens of each place."""
        if isinstance(contexts, Tensor):
            return self.checked(contexts).shape[0]
        return math.prod(self.tokens if place is None else place.numel() for place in self._each(contexts))

    def numbers(self, rows: int, columns: int, contexts: Contexts | None, start: int) -> Iterator[Tensor]:
        """The numbers of the contexts from `start` on, `rows` at a time.

        Raises
        ------
        InputError
            `rows` or `start` are no such numbers.
        BudgetError
            The table of that many contexts and of `columns` next tokens has more than `CELL_BUDGET` cells.
        """
        if rows < 1 or start < 0:
            raise InputError(f"rows={quoted(rows)} from start={quoted(start)} are none: take 1 or more, from 0 on")
        total = self.count(contexts)
        if total * columns > CELL_BUDGET:
            raise BudgetError(
                f"the table has {amount(total, 'row')} of {amount(columns, 'next token')}, more than the "
                f"budget of {CELL_BUDGET:,} cells: restrict the tokens of each place with first= and second= "
                f"(--first, --second), to {amount(CELL_BUDGET // columns, 'row')} or fewer"
            )
        for first in range(start, total, rows):
            yield torch.arange(first, min(first + rows, total), device="cpu")

    def numbered(self, rows: Tensor, contexts: Contexts | None = None) -> Tensor:
        """The contexts [rows, n-1] of these numbers [rows].

        Raises
        ------
        InputError
            There are no contexts of such numbers.
        """
        check_whole(rows, "rows")
        total = self.count(contexts)
        if rows.dim() != 1 or (len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < total):
            raise InputError(f"rows are the numbers [rows] of contexts, 0 to {total - 1}, not {quoted(rows)}")
        if isinstance(contexts, Tensor):
            return self.checked(contexts)[rows]
        columns: list[Tensor] = []
        for place in reversed(self._each(contexts)):
            size = self.tokens if place is None else place.numel()
            digit = rows % size
            columns.append(digit if place is None else place.reshape(-1)[digit])
            rows = rows // size
        return self.checked(torch.stack(columns[::-1], dim=1))

    def first(self, rows: int) -> Tensor:
        """As many contexts of token 0 alone."""
        return torch.zeros(rows, self.n - 1, dtype=torch.long, device="cpu")

    def checked(self, contexts: Tensor) -> Tensor:
        """The contexts as they are.

        Raises
        ------
        InputError
            They are no token ids [rows, n-1], or of tokens that there are not.
        """
        odd = contexts.is_meta or contexts.layout is not torch.strided or contexts.is_complex()
        if odd or contexts.dim() != 2 or contexts.shape[1] != self.n - 1 or contexts.is_floating_point():
            raise InputError(
                f"contexts of n={self.n} are token ids of shape [rows, {self.n - 1}], not {contexts.dtype} of shape "
                f"{list(contexts.shape)}"
            )
        if contexts.numel() and (int(contexts.min()) < 0 or int(contexts.max()) >= self.tokens):
            raise InputError(
                f"token ids are 0 to {self.tokens - 1}, but the contexts hold {int(contexts.min())} to "
                f"{int(contexts.max())}"
            )
        return contexts

    def _each(self, contexts: Sequence[Tensor | None] | None) -> Sequence[Tensor | None]:
        places = [None] * (self.n - 1) if contexts is None else list(contexts)
        if len(places) != self.n - 1:
            raise InputError(f"a context of n={self.n} has {self.n - 1} place(s), but tokens for {len(places)} came")
        return places


def chunks_of(size: int, total: int) -> str:
    """What a table is gone through by, for people.

    >>> chunks_of(512, 50_257), chunks_of(10**9, 1024)
    ('chunks of 512 contexts', 'chunks of 1,024 contexts')
    """
    return f"chunks of {amount(min(size, total), 'context')}"
