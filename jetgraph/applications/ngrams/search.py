"""The running top of a table that comes in chunks."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from jetgraph.applications.compiling import kernels_for
from jetgraph.applications.ngrams.blocks import blocks, finite, is_fused, precise, row_scales
from jetgraph.applications.ngrams.table import PathTable
from jetgraph.applications.ranking import RunningTop, row_top
from jetgraph.export.waiting import progress
from jetgraph.scale.states import Record

Per = Literal["all", "row"]
"""Of what the top is taken: of all contexts, or of each."""

Scores = Literal["probability", "logit", "pmi"]
"""What n-grams are ranked by."""

LEAST = 0.1
"""The least probability of an n-gram that is ranked by its pointwise mutual information."""

Entries = tuple[Tensor, Tensor, Tensor]
"""Of a table: row numbers, next tokens and scores."""


NAMES = "row", "next", "score"
"""What the parts of entries are called where they are kept."""


def record_of(entries: Entries) -> Record:
    """Entries by name."""
    return dict(zip(NAMES, entries, strict=True))


def entries_of(record: Record) -> Entries | None:
    """Those of a record, which may have none."""
    return (record["row"], record["next"], record["score"]) if "row" in record else None


def exclude(values: Tensor, contexts: Tensor) -> None:
    """Put −inf where the next token occurs in the context, in place."""
    row = torch.arange(len(values), device=values.device)
    for place in range(contexts.shape[1]):
        token = contexts[:, place].to(values.device)
        inside = token < values.shape[1]
        values[row[inside], token[inside]] = -math.inf


def mean_row(table: PathTable, places: list[Tensor | None], memory: int) -> Tensor:
    """log of the mean over contexts of P(next | context) [vocabulary], in float64; a pass over all rows of its own."""
    total, number = torch.zeros(table.vocabulary, dtype=torch.float64), 0
    with progress(total=table.count(places), unit="rows", desc="the mean row") as bar:
        for contexts, logits in table.chunks(places, 0):
            for _, block in blocks(memory, logits):
                _, scale = row_scales(block)
                total += (block - scale[:, None]).exp_().sum(0, dtype=torch.float64).cpu()
            # The next chunk is made while a name still holds this one.
            del logits
            number += len(contexts)
            bar.update(len(contexts))
    return (total / number).log()


class Search:
    """The running top of a table that comes in chunks; log-probabilities or logits.

    Rows may come in any order, and each comes once; with `per="row"` they come in the order of their numbers.
    """

    def __init__(
        self,
        table: PathTable,
        keep: int,
        per: Per,
        scores: Scores,
        identity: bool,
        memory: int,
        mean: Tensor | None = None,
        least: float = LEAST,
    ) -> None:
        self._table = table
        self._memory = memory
        self._keep = keep
        self._per: Per = per
        self._scores: Scores = scores
        self._identity = identity
        self.mean = mean
        """log of the mean row, against which information is told."""
        self._minimum = least
        self._least = math.log(least) if least > 0 else -math.inf
        self._work: Tensor | None = None
        self.best = RunningTop(keep, precise(table.dtype))
        """The top of all rows."""
        self._by_row: list[Entries] = []

    def add(self, number: Tensor, contexts: Tensor, logits: Tensor) -> None:
        """Look at a chunk whose rows have these numbers [rows]."""
        if self._per == "all" and self._identity and self.mean is None and is_fused(logits):
            open_rows = self._open(number, logits)
            number, contexts, logits = number[open_rows], contexts[open_rows], logits[open_rows.to(logits.device)]
        fresh = []
        for offset, block in blocks(self._memory, logits, cast=not is_fused(logits)):
            some, rows = contexts[offset : offset + len(block)], number[offset : offset + len(block)]
            block, largest, scale = self._scored(block)
            if self._per == "all":
                self._merge(rows, some, block, largest, scale)
            else:
                if self.mean is None:
                    finite(largest)
                fresh.append(self._rows(rows, some, block, scale))
        if self._per == "row":
            self._by_row.append(tuple(torch.cat(parts) for parts in zip(*fresh, strict=True)))  # type: ignore[arg-type]

    def _open(self, number: Tensor, logits: Tensor) -> Tensor:
        """Rows of a chunk that may hold one of the top [rows]; of a device, which is asked once.

        Of as many rows as are looked for the largest scores are known to be reached.
        """
        parts = [self._highest(block) for _, block in blocks(self._memory, logits, cast=False)]
        highest, rounding = torch.cat(parts, dim=1).cpu()
        finite(highest)
        where = (highest + rounding > self.best.bounds(number, highest)).nonzero()[:, 0]
        if len(where) > self._keep:
            reached = (highest - rounding)[where].topk(self._keep).values[-1]
            where = where[(highest + rounding)[where] >= reached]
        return where

    def _highest(self, block: Tensor) -> Tensor:
        """The largest score of each row, and how far it may be off [2, rows]."""
        wide = precise(block.dtype)
        if self._scores == "logit":
            largest = block.amax(1).to(wide)
            return torch.stack([largest, torch.zeros_like(largest)])
        if (kernels := kernels_for(block)) is not None:
            largest, log_total, _ = kernels.totals(block, wide, lengths=False)
        else:
            largest = block.amax(1).to(wide)
            log_total = largest - block.log_softmax(1, wide).amax(1)
        return torch.stack([largest - log_total, 32 * torch.finfo(wide).eps * (largest.abs() + log_total.abs())])

    def _scored(self, block: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values of a block, the largest of each row, and what is still to be taken from a row for its scores.

        That the largest are finite is for others to see, who read them of a device; beside a mean they need not be.
        """
        if self._scores == "logit":
            return block, block.amax(1), None
        if is_fused(block):
            block, scale = block.log_softmax(1, precise(block.dtype)), None
            largest = block.amax(1)
        else:
            if self._work is None or len(self._work) < len(block):
                self._work = torch.empty_like(block)
            largest, scale = row_scales(block, self._work)
        if self.mean is not None:
            finite(largest)
            block = self._informed(block, scale)
            largest = block.amax(1)
        return block, largest, scale

    def _informed(self, block: Tensor, scale: Tensor | None) -> Tensor:
        """Values less the log of the mean row, −inf where the probability is less than the least that is asked for."""
        assert self.mean is not None
        logs = block if scale is None else block - scale[:, None]
        return torch.where(logs < self._least, -math.inf, block - self.mean.to(block))

    @property
    def fresh(self) -> Record:
        """What the last chunk has left to be kept; nothing where that is the top of all."""
        return record_of(self._by_row[-1]) if self._by_row else {}

    @property
    def held(self) -> Record:
        """What all chunks so far have left together; nothing where each leaves its own."""
        return {} if self._per == "row" else record_of(self.best.held)

    @property
    def keep(self) -> int:
        """How many n-grams are looked for, in all or per row."""
        return self._keep

    @property
    def options(self) -> dict[str, str]:
        """What is looked for."""
        return {
            "top": str(self._keep),
            "per": self._per,
            "scores": self._scores,
            "identity": str(self._identity),
            **({} if self.mean is None else {"least": str(self._least)}),
        }

    def anew(self) -> Search:
        """One that looks for the same, and has found nothing yet."""
        return Search(
            self._table, self._keep, self._per, self._scores, self._identity, self._memory, self.mean, self._minimum
        )

    def take(self, record: Record) -> None:
        """Take up what another one has found in other rows."""
        if (entries := entries_of(record)) is None:
            return
        if self._per == "row":
            self._by_row.append(entries)
        else:
            self.best.take(entries)

    def result(self) -> Entries:
        """Row numbers, next tokens and scores, sorted."""
        if not self._by_row:
            return self.best.held
        number, following, values = (torch.cat(parts) for parts in zip(*self._by_row, strict=True))
        return number, following, values

    def _values(self, block: Tensor, contexts: Tensor, scale: Tensor | None) -> Tensor:
        values = block.to(precise(block.dtype)) if scale is None else block - scale[:, None]
        if not self._identity:
            # The chunk belongs to others.
            values = values.clone() if values is block else values
            exclude(values, contexts)
        return values

    def _rows(self, number: Tensor, contexts: Tensor, block: Tensor, scale: Tensor | None) -> Entries:
        best, place = row_top(self._values(block, contexts, scale), self._keep)
        return number.repeat_interleave(self._keep), place.reshape(-1).cpu(), best.reshape(-1).cpu()

    def _merge(self, number: Tensor, contexts: Tensor, block: Tensor, largest: Tensor, scale: Tensor | None) -> None:
        # A row whose largest value stays below the bound needs no second look, and a device is asked once.
        highest = (largest if scale is None else largest - scale).cpu()
        if self.mean is None:
            finite(highest)
        where = (highest > self.best.bounds(number, highest)).nonzero()[:, 0]
        if not len(where):
            return
        if len(where) < len(block):
            some = where.to(block.device)
            block, scale = block[some], scale if scale is None else scale[some]
        self.best.add(number[where], self._values(block, contexts[where], scale))
