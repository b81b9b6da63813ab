"""N-grams by pointwise mutual information, in one look at a table.

What an n-gram a c is worth, log P(c | a) − log of the mean of P(c | ·), is not known before all rows have been seen.
But of n-grams whose probability is `least` or more a row has no more than 1 / `least`: where these fit into memory they
are held while the mean is summed, so that no row is computed twice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jetgraph.applications.ngrams.blocks import blocks, row_scales
from jetgraph.applications.ngrams.budget import NGRAM_BYTES
from jetgraph.applications.ngrams.search import Entries, Per, entries_of, exclude, record_of
from jetgraph.applications.ngrams.table import PathTable
from jetgraph.scale.states import ADDED, Record, from_grid, onto_grid

COARSE, FINE = f"{ADDED}coarse", f"{ADDED}fine"
"""The sums of probabilities over rows, as whole numbers: the same in any order."""


class Information:
    """The n-grams of a table that are probable enough, and the mean row against which they are told.

    Parameters
    ----------
    table
        That comes in chunks, whose rows come once.
    rows
        How many of them there are.
    keep
        How many n-grams are looked for, in all or per row.
    per
        Of what: of all rows, or of each.
    identity
        False leaves out next tokens that occur in the context.
    memory
        Bytes that a look at a chunk may take.
    least
        The least probability of an n-gram, above 0.
    """

    def __init__(
        self, table: PathTable, rows: int, keep: int, per: Per, identity: bool, memory: int, least: float
    ) -> None:
        self._given = table, rows, keep, per, identity, memory, least
        self._vocabulary, self._rows, self._memory = table.vocabulary, rows, memory
        self._keep, self._per, self._identity, self._least = keep, per, identity, math.log(least)
        self._work: Tensor | None = None
        self._found: list[Entries] = []
        """By chunk: row numbers, next tokens, log-probabilities."""
        self._sums = (torch.zeros(table.vocabulary, dtype=torch.long), torch.zeros(table.vocabulary, dtype=torch.long))

    @staticmethod
    def fits(rows: int, least: float, memory: int) -> bool:
        """All n-grams of such rows that can be so probable take no more than the quarter of memory that is there."""
        return least > 0 and rows / least * NGRAM_BYTES <= memory / 4

    def add(self, number: Tensor, contexts: Tensor, logits: Tensor) -> None:
        """Look at a chunk whose rows have these numbers [rows]."""
        total = torch.zeros(self._vocabulary, dtype=torch.float64, device=logits.device)
        found: list[Entries] = []
        for offset, block in blocks(self._memory, logits):
            some = slice(offset, offset + len(block))
            if self._work is None or len(self._work) < len(block):
                self._work = torch.empty_like(block)
            work = self._work[: len(block)]
            largest, scale = row_scales(block, work)
            # There exp(logit − largest) stands now.
            total += (largest - scale).exp() @ work
            logs = torch.sub(block, scale[:, None], out=work)
            if not self._identity:
                exclude(logs, contexts[some])
            row, column = (logs >= self._least).nonzero().T
            found.append((number[some][row.cpu()], column.cpu(), logs[row, column].cpu()))
        self._found.append(tuple(torch.cat(parts) for parts in zip(*found, strict=True)))  # type: ignore[arg-type]
        self._add(*onto_grid(total.cpu()))

    def _add(self, *sums: Tensor) -> None:
        for total, more in zip(self._sums, sums, strict=True):
            total += more

    @property
    def fresh(self) -> Record:
        """What the last chunk has left to be kept."""
        return record_of(self._found[-1])

    @property
    def held(self) -> Record:
        """What all chunks so far have left together."""
        return dict(zip((COARSE, FINE), self._sums, strict=True))

    @property
    def options(self) -> dict[str, str]:
        """What is looked for."""
        return {
            "top": str(self._keep),
            "per": self._per,
            "scores": "pmi in one look",
            "identity": str(self._identity),
            "least": str(self._least),
        }

    def anew(self) -> Information:
        """One that looks for the same, and has found nothing yet."""
        return Information(*self._given)

    def take(self, record: Record) -> None:
        """Take up what another one has found in other rows, or what all have left together."""
        if (found := entries_of(record)) is not None:
            self._found.append(found)
        if COARSE in record:
            self._add(record[COARSE], record[FINE])

    @property
    def mean(self) -> Tensor:
        """log of the mean row [vocabulary], in float64, once all rows have been seen."""
        return (from_grid(*self._sums) / self._rows).log()

    def result(self) -> Entries:
        """Row numbers, next tokens and scores, sorted."""
        number, following, logs = (torch.cat(parts) for parts in zip(*self._found, strict=True))
        scores = (logs.double() - self.mean[following]).to(logs.dtype)
        # They came by row and next token, which decide where scores are equal.
        order = scores.sort(descending=True, stable=True).indices
        if self._per == "row":
            order = order[number[order].sort(stable=True).indices]
            _, each = number[order].unique_consecutive(return_counts=True)
            place = torch.arange(len(order)) - (each.cumsum(0) - each).repeat_interleave(each)
            order = order[place < self._keep]
        else:
            order = order[: self._keep]
        return number[order], following[order], scores[order]
