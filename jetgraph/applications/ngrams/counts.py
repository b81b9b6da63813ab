"""Bi-gram counts of a corpus, and how well scores agree with them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jetgraph.applications.ngrams.blocks import blocks
from jetgraph.applications.ngrams.contexts import chunks_of
from jetgraph.applications.ngrams.table import PathTable
from jetgraph.applications.ranking import row_top
from jetgraph.errors import InputError
from jetgraph.prompts import encode
from jetgraph.scale.shards import each
from jetgraph.scale.states import Record, digest_of_model
from jetgraph.scale.texts import Corpus, open_corpus

Texts = Tensor | str | Sequence[str] | os.PathLike[str] | Corpus
"""What n-grams are counted in."""

PAIRS = 2**22
"""Bi-grams that are counted at once."""


def corpus_rows(corpus: Texts, tokenizer: Any | None) -> Iterator[np.ndarray]:
    """Token ids of a corpus in rows that do not follow one another, one after the other.

    Raises
    ------
    InputError
        What is no corpus.
    """
    if isinstance(corpus, Tensor):
        if corpus.dtype.is_floating_point or corpus.dtype.is_complex or corpus.is_meta or corpus.dim() not in (1, 2):
            raise InputError(
                f"a corpus is token ids [tokens] or [rows, tokens], or texts, not {corpus.dtype} of shape "
                f"{list(corpus.shape)}"
            )
        return iter(np.atleast_2d(corpus.cpu().numpy()))
    texts = [corpus] if isinstance(corpus, str) else open_corpus(corpus) if isinstance(corpus, os.PathLike) else corpus
    return (np.array(encode(tokenizer, text, special=False), dtype=np.int64) for text in texts)


@dataclass(frozen=True, eq=False)
class Pairs:
    """How often each bi-gram occurs: codes a · size + b in ascending order, and their numbers."""

    codes: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[np.ndarray], size: int) -> Pairs:
        """Of rows that are gone over once; what is kept grows with the bi-grams that differ, not with the corpus.

        Raises
        ------
        InputError
            Token ids that are none of `size`.
        """
        found, waiting, number = cls(np.zeros(0, np.int64), np.zeros(0, np.int64)), list[np.ndarray](), 0
        for row in rows:
            if len(row) > 1:
                _check_known(row, size)
                waiting.append(row[:-1].astype(np.int64) * size + row[1:])
                number += len(row) - 1
            if number >= PAIRS:
                found, waiting, number = found.joined(waiting), [], 0
        return found.joined(waiting) if waiting else found

    def joined(self, codes: Sequence[np.ndarray]) -> Pairs:
        """With more codes."""
        new, often = np.unique(np.concatenate(codes), return_counts=True)
        every, places = np.unique(np.concatenate([self.codes, new]), return_inverse=True)
        numbers = np.zeros(len(every), np.int64)
        np.add.at(numbers, places, np.concatenate([self.numbers, often]))
        return Pairs(every, numbers)


def _check_known(row: np.ndarray, size: int) -> None:
    if row.min() < 0 or row.max() >= size:
        raise InputError(
            f"the corpus holds token ids from {row.min()} to {row.max()}, but the model knows 0 to {size - 1}: encode "
            "it with the model's own tokenizer"
        )


class Counts:
    """Bi-gram counts of a corpus, for the contexts that occur often enough."""

    def __init__(self, rows: Iterable[np.ndarray], table: PathTable, minimum: int) -> None:
        self._table = table
        size = min(table.tokens, table.vocabulary)
        pairs = Pairs.of(rows, size)
        number = pairs.numbers
        self.pairs = int(number.sum())
        first, second = pairs.codes // size, pairs.codes % size
        self._after = np.bincount(second, weights=number, minlength=table.vocabulary).astype(np.int64)
        contexts, starts = np.unique(first, return_index=True)
        totals = np.add.reduceat(number, starts) if len(starts) else starts
        ends = np.append(starts[1:], len(first))
        often = totals >= minimum
        if not often.any():
            raise InputError(
                f"no token is followed by something {minimum} times or more among the {self.pairs} bi-grams of the "
                "corpus: give more text, or lower minimum"
            )
        self.contexts = torch.from_numpy(contexts[often])[:, None]
        self._followers = [second[a:b] for a, b in zip(starts[often], ends[often], strict=True)]
        self._numbers = [number[a:b] for a, b in zip(starts[often], ends[often], strict=True)]

    def unigram(self, vocabulary: int) -> Tensor:
        """How often each token follows another one, [1, vocabulary]."""
        return torch.from_numpy(self._after[:vocabulary].astype(np.float64))[None]

    def compare(self, name: str, logits: Callable[[Tensor], Tensor], top: Sequence[int]) -> Callable[[], Tensor]:
        """What gives the measures of every context, [contexts, measures]; NaN where one is not defined."""
        size = self._table.chunk_rows

        def look(unit: int) -> Record:
            measures, start = [], unit * size
            for offset, block in blocks(self._table.memory, logits(self.contexts[start : start + size])):
                best = row_top(block, min(max(top), block.shape[1]))[1].cpu().numpy()
                for row in range(len(block)):
                    measures.append(self._measures(start + offset + row, block[row], best[row], top))
            return {"measures": torch.tensor(measures, dtype=torch.float64)}

        records = each(
            name,
            -(-len(self.contexts) // size),
            look,
            lambda: self._identity(top),
            of=chunks_of(size, len(self.contexts)),
        )
        return lambda: torch.cat([record["measures"] for record in records()])

    def _identity(self, top: Sequence[int]) -> dict[str, str]:
        digest = sha256(repr([self.contexts.tolist(), self._table.chunk_rows]).encode())
        for values in (*self._followers, *self._numbers, self._after):
            digest.update(np.ascontiguousarray(values).tobytes())
        return {
            "model": digest_of_model(self._table.subject.graph),
            "counts": digest.hexdigest(),
            "top": repr(list(top)),
        }

    def _measures(self, context: int, scores: Tensor, best: np.ndarray, top: Sequence[int]) -> list[float]:
        from scipy.stats import rankdata

        followers, numbers = self._followers[context], self._numbers[context]
        order = np.argsort(-numbers, kind="stable")
        hits = []
        for number in top:
            truth = followers[order[:number]]
            hits.append(len(np.intersect1d(truth, best[:number])) / len(truth))
        given = scores[torch.from_numpy(followers).to(scores.device)].cpu().numpy()
        return [*hits, _correlation(rankdata(given), rankdata(numbers))]


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's, NaN where `other` is constant; 0 where only `one` is, for it then says nothing about the other."""
    a, b = one - one.mean(), other - other.mean()
    if not b.any():
        return math.nan
    return float(a @ b / math.sqrt((a @ a) * (b @ b))) if a.any() else 0.0
