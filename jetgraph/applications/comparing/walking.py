"""Tables walked through together, a few rows at a time, so that few bytes of them are there at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral
from pathlib import Path as Folder

import torch
from torch import Tensor

from jetgraph.applications.ngrams.table import PathTable
from jetgraph.applications.subject import Subject
from jetgraph.errors import InputError, quoted
from jetgraph.export.waiting import progress
from jetgraph.files.writing import is_folder
from jetgraph.running.indices import whole_numbers

Contexts = Tensor | Sequence[int] | int
"""Token ids of the contexts a, or how many of them, spread evenly over the vocabulary."""

ARRAYS = 12
"""Arrays of float64, each of one value per entry, that comparing two tables holds at once."""


def path_text(table: PathTable) -> str:
    """A table's paths in titles."""
    paths = [str(path) for path in table.paths]
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def contexts_of(given: Contexts | None, tokens: int) -> Tensor:
    """Token ids [contexts, 1]."""
    if given is None:
        return torch.arange(tokens).unsqueeze(1)
    if isinstance(given, int | Integral):
        if given < 1:
            raise InputError(f"contexts={given} leaves nothing to look at: give 1 or more")
        return torch.linspace(0, tokens - 1, min(int(given), tokens)).round().long().unsqueeze(1)
    listed = whole_numbers(given, "contexts") if isinstance(given, Tensor) else given
    if not listed or not 0 <= min(listed) <= max(listed) < tokens:
        raise InputError(f"contexts are token ids from 0 to {tokens - 1}, at least one of them, not {quoted(listed)}")
    return torch.tensor(listed, dtype=torch.long).reshape(-1, 1)


def rows_of(
    tables: Sequence[PathTable], contexts: Tensor, memory: int, label: str | None = None
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Contexts [rows] and the logits [rows, vocabulary] of each table, in pieces whose statistics fit into memory.

    How far it is is told under a label; without one, who asks for them tells it.
    """
    first, *others = tables
    rows = max(1, memory // 4 // (8 * ARRAYS * first.vocabulary))
    with progress(total=len(contexts), desc=label, unit="contexts", disable=label is None) as bar:
        for ids, logits in first.chunks(contexts):
            values = [logits, *(table.logits(ids).to(logits.device) for table in others)]
            for start in range(0, len(ids), rows):
                piece = slice(start, start + rows)
                yield ids[piece, 0], [value[piece] for value in values]
                bar.update(len(ids[piece]))


def short_name(name: str) -> str:
    """A folder by its own name, anything else as it is."""
    return Folder(name).name if is_folder(name) else name


def titles(one: Subject, other: Subject) -> tuple[str, str]:
    """How two models are called in titles."""
    first, second = (side.graph.title if side.loaded is None else short_name(side.loaded.name) for side in (one, other))
    return (first, second) if first != second else (f"{first} (a)", f"{second} (b)")
