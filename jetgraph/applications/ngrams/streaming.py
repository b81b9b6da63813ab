"""A table's rows, chunk by chunk: all of them, or those that a screen leaves open."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path as File

import torch
from torch import Tensor

from jetgraph.applications.ngrams.contexts import chunks_of
from jetgraph.applications.ngrams.information import Information
from jetgraph.applications.ngrams.resuming import State
from jetgraph.applications.ngrams.screening import Screen
from jetgraph.applications.ngrams.search import Search
from jetgraph.applications.ngrams.table import PathTable
from jetgraph.errors import InputError
from jetgraph.export.waiting import progress
from jetgraph.scale.shards import each, is_sharded
from jetgraph.scale.states import Record

FEW = 16
"""The fewest rows whose screened scores are computed anew together, where there are as many."""

WAITING = 4096
"""Screened rows that may wait until it is known whether their scores are needed; as many as are asked for if those are
more."""


def stream(
    table: PathTable,
    places: list[Tensor | None],
    search: Search | Information,
    screen: Screen | None,
    folder: File | None,
) -> None:
    """Look at a table's rows for the top of them, from where an earlier run stopped, if its state is in the folder.

    A screen is for a `Search`.
    """
    if is_sharded():
        if screen is not None or folder is not None:
            raise InputError(
                "a job in shards has a state of its own, and gives the same to the last bit: leave screen and resume "
                "out"
            )
        _in_shards(table, places, search)
        return
    total = table.count(places)
    state = None if folder is None else State(folder, _identity_of(table, places, search, screen), search)
    start = 0 if state is None else state.restore()
    if screen is None:
        chunks = _every_row(table, places, search, start)
    else:
        assert isinstance(search, Search)
        chunks = _screened(table, places, search, screen, start, settle=state is not None)
    with progress(total=total, initial=start, unit="rows", desc=table.label) as bar:
        for rows in chunks:
            start += rows
            if state is not None:
                state.write(start)
            bar.update(rows)


def _in_shards(table: PathTable, places: list[Tensor | None], search: Search | Information) -> None:
    """Look at all rows, of which others have looked at some."""
    total, size = table.count(places), table.chunk_rows

    def look(unit: int) -> Record:
        number = torch.arange(unit * size, min((unit + 1) * size, total))
        contexts, fresh = table.contexts(number, places), search.anew()
        fresh.add(number, contexts, table.logits(contexts))
        return {**fresh.fresh, **fresh.held}

    identity = partial(_identity_of, table, places, search, None)
    for record in each("n-grams", -(-total // size), look, identity, of=chunks_of(size, total))():
        search.take(record)


def _every_row(
    table: PathTable, places: list[Tensor | None], search: Search | Information, start: int
) -> Iterator[int]:
    """Look at all rows, chunk by chunk; the number of rows of each."""
    for contexts, logits in table.chunks(places, start):
        search.add(torch.arange(start, start + len(contexts)), contexts, logits)
        # The next chunk is made while a name still holds this one, which would take its memory twice.
        del logits
        start += len(contexts)
        yield len(contexts)


def _screened(
    table: PathTable, places: list[Tensor | None], search: Search, screen: Screen, start: int, settle: bool
) -> Iterator[int]:
    """Look at the rows whose bounds allow for one of the top; the number of rows of each chunk.

    `settle`: after each chunk nothing is left open. Otherwise rows wait, for the more is known the fewer are left.
    """
    waiting = _Waiting(table, places, search, screen)
    for number in table.numbers(screen.chunk_rows, places, start):
        waiting.add(number, *screen.bounds(table.contexts(number, places)))
        if settle or len(waiting) > max(WAITING, search.keep):
            waiting.settle()
        yield len(number)
    waiting.settle()


class _Waiting:
    """Rows that may hold one of the top of all, and whose scores are only known to lie between bounds."""

    def __init__(self, table: PathTable, places: list[Tensor | None], search: Search, screen: Screen) -> None:
        self._table = table
        self._places = places
        self._search = search
        self._most = screen.rescored_rows
        self._number = torch.empty(0, dtype=torch.long)
        self._upper = torch.empty(0, dtype=torch.float64)
        # The largest lower bounds of all rows so far, best first.
        self._lower = torch.empty(0, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self._number)

    def add(self, number: Tensor, lower: Tensor, upper: Tensor) -> None:
        """Take up rows [rows] with bounds of their largest scores."""
        keep = self._search.keep
        self._lower = torch.cat([self._lower, lower]).sort(descending=True).values[:keep]
        self._number, self._upper = torch.cat([self._number, number]), torch.cat([self._upper, upper])
        beaten = self._search.best.beaten(self._number, self._upper)
        if len(self._lower) == keep:
            # As many rows have an n-gram that is better.
            beaten |= self._upper < self._lower[-1]
        self._number, self._upper = self._number[~beaten], self._upper[~beaten]

    def settle(self) -> None:
        """Compute the scores of all that are not beaten, those with the highest bound first."""
        # Bounds that are not numbers come first.
        upper, order = self._upper.sort(descending=True, stable=True)
        number = self._number[order]
        done, size = 0, min(self._most, max(FEW, self._search.keep))
        while left := int((~self._search.best.beaten(number[done : done + size], upper[done : done + size])).sum()):
            some = number[done : done + left]
            contexts = self._table.contexts(some, self._places)
            self._search.add(some, contexts, self._table.logits(contexts))
            done, size = done + left, min(self._most, 2 * size)
        self._number, self._upper = self._number[:0], self._upper[:0]


def _identity_of(
    table: PathTable, places: Sequence[Tensor | None], search: Search | Information, screen: Screen | None
) -> dict[str, str]:
    """What a run is determined by, for people and for comparison."""
    digest = hashlib.sha256()
    for place in places:
        digest.update(b"all" if place is None else repr(place.tolist()).encode())
    return {
        "path": table.label,
        "weights": table.fingerprint,
        "n": str(table.n),
        "distance": str(table.distance),
        "rows": digest.hexdigest(),
        "rows per chunk (memory)": str(table.chunk_rows if screen is None else screen.chunk_rows),
        "screen": "none" if screen is None else "bf16",
        **search.options,
    }
