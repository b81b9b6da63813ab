"""Bi-gram counts of a corpus, and how well scores agree with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jetgraph.applications.ngrams.blocks import blocks
from jetgraph.applications.ngrams.table import PathTable
from jetgraph.applications.ranking import row_top
from jetgraph.errors import InputError
from jetgraph.prompts import encode
from jetgraph.scale.shards import each
from jetgraph.scale.states import Record, digest_of_model


def corpus_rows(corpus: Tensor | str | Sequence[str], tokenizer: Any | None) -> list[np.ndarray]:
    """Token ids of a corpus in rows that do not follow one another.

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
        return list(np.atleast_2d(corpus.cpu().numpy()))
    texts = [corpus] if isinstance(corpus, str) else list(corpus)
    return [np.array(encode(tokenizer, text, special=False), dtype=np.int64) for text in texts]


class Counts:
    """Bi-gram counts of a corpus, for the contexts that occur often enough."""

    def __init__(self, rows: Sequence[np.ndarray], table: PathTable, minimum: int) -> None:
        self._table = table
        before = np.concatenate([row[:-1] for row in rows]) if rows else np.zeros(0, np.int64)
        after = np.concatenate([row[1:] for row in rows]) if rows else np.zeros(0, np.int64)
        self.pairs = len(before)
        size = min(table.tokens, table.vocabulary)
        highest = int(max(before.max(initial=-1), after.max(initial=-1)))
        lowest = int(min(before.min(initial=0), after.min(initial=0)))
        if lowest < 0 or highest >= size:
            raise InputError(
                f"the corpus holds token ids from {lowest} to {highest}, but the model knows 0 to {size - 1}: encode "
                "it with the model's own tokenizer"
            )
        self._after = np.bincount(after, minlength=table.vocabulary)
        codes, number = np.unique(before.astype(np.int64) * size + after, return_counts=True)
        first, second = codes // size, codes % size
        contexts, starts = np.unique(first, return_index=True)
        totals = np.add.reduceat(number, starts) if len(starts) else starts
        ends = np.append(starts[1:], len(codes))
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

        records = each(name, -(-len(self.contexts) // size), look, lambda: self._identity(top))
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
