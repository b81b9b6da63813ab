"""How much probability a bi-gram table gives to a list of words."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from jetgraph.applications.bars import bars
from jetgraph.applications.ngrams.blocks import blocks, row_scales
from jetgraph.applications.ngrams.choosing import Paths
from jetgraph.applications.ngrams.contexts import chunks_of
from jetgraph.applications.ngrams.listing import NGrams
from jetgraph.applications.ngrams.table import PathTable, own_logits, table_of
from jetgraph.applications.readout import token_text
from jetgraph.applications.results import Cell, Result, Shown
from jetgraph.applications.subject import Model, Subject
from jetgraph.errors import FileError, InputError, amount, check, quoted
from jetgraph.export.precision import own_types
from jetgraph.export.waiting import progress
from jetgraph.files.writing import is_file
from jetgraph.prompts import encode, texts_of
from jetgraph.scale.shards import each
from jetgraph.scale.states import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class NGramMass(Result):
    """The mass of a bi-gram table on a list of words. Made by `ngram_mass`."""

    words: tuple[str, ...]
    spellings: tuple[str, ...]
    """Per word, the token sequences by which it is written."""
    masses: tuple[float, ...]
    """Per word, the probability that the chain writes it."""
    total: float
    """The probability that the chain writes any of the words, in [0, 1]."""
    lower_bound: bool
    """The table held the top next tokens only, so that masses may be larger than stated."""
    path: str
    model: str
    uniform: tuple[float, ...] = ()
    """Per word, the probability that tokens drawn alike write it: what its mass is to be compared with."""
    own: tuple[float, ...] = ()
    """Per word, the mass of the model's own bi-grams; none where they were not asked for."""
    sampled: int = 0
    """Contexts of which these are means; 0 where they are of all."""

    @property
    def title(self) -> str:
        sign = "at least " if self.lower_bound else ""
        return (
            f"mass of {self.path} of {self.model} on {amount(len(self.words), 'word')}: {sign}{self.total:.4g} in all"
        )

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """word, its token sequences, its mass, that of tokens drawn alike, and how many times it is that; where it was
        asked for, that of the model itself, and how many times it is that; in the order given.
        """
        alike = self.uniform or (math.nan,) * len(self.words)
        columns: dict[str, Sequence[Cell]] = {
            "word": self.words,
            "tokens": self.spellings,
            "mass": self.masses,
            "uniform": alike,
            "times": [mass / even for mass, even in zip(self.masses, alike, strict=True)],
        }
        if self.own:
            columns["model"] = self.own
            columns["times model"] = [
                mass / own if own else None for mass, own in zip(self.masses, self.own, strict=True)
            ]
        return columns

    @property
    def note(self) -> str:
        """Of how many contexts the model's own masses are means."""
        if not self.sampled:
            return ""
        contexts = amount(self.sampled, "context")
        return f"the model's own masses are means over {contexts}, spread evenly over the vocabulary"

    def shown(self) -> Shown:
        """The largest mass first."""
        return Shown(first=("mass",))

    def figure(self) -> Figure:
        """Bars of the words with the largest masses."""
        best = sorted(range(len(self.words)), key=lambda index: -self.masses[index])
        axis = "mass: mean over contexts of P(word | context)" + (", lower bound" if self.lower_bound else "")
        return bars([(self.words[index], self.masses[index]) for index in best], self.title, axis)


@torch.no_grad()
@own_types()
def ngram_mass(
    model: Model | Subject | PathTable | NGrams,
    keywords: str | os.PathLike[str] | Sequence[str],
    *,
    path: Paths | None = None,
    weights: Tensor | None = None,
    reference: Literal["uniform", "model"] = "uniform",
    memory: int | None = None,
    tokenizer: Any | None = None,
) -> NGramMass:
    """How much probability a bi-gram table gives to a list of words.

        mass(word) = Σ_{s ∈ S(word)}  Σ_a w(a) P(s_1 | a) · P(s_2 | s_1) · … · P(s_m | s_{m-1})

    where P is the row softmax of the table, a runs over all tokens of the vocabulary, w is uniform (1/V) unless given,
    and S(word) are the token sequences that spell the word, with and without a leading space. It is the probability
    that the Markov chain of the table, started behind a random token, writes the word next.

    Sequences that begin with another one of S are left out, for what they stand for is in the other's event already.
    What is left are disjoint events, so every mass lies in [0, 1]. The `total` does the same over the sequences of all
    words together: the probability that any of them is written. It is the sum of the masses unless a word begins with
    another one (`car`, `carpet`), and then less. `uniform` is what tokens drawn alike would give, Σ V^−m.

    Parameters
    ----------
    model
        A model, a `PathTable` of n=2, or an `NGrams` of n=2 with `per="row"` and probabilities over all contexts. The
        latter has the top of each row only, and what it lacks counts as 0: the masses are then lower bounds.
    path, memory
        As in `ngrams`; for a model only.
    keywords
        The path of a text file with a word in each line, where # begins a comment; or a word, or a list of them.
    weights
        Weight of each context token [V], such as its frequency in a corpus; scaled to sum 1. Uniform unless given.
    reference
        What masses stand beside: `uniform`, those of tokens drawn alike; or `model` as well, those of the model's own
        bi-grams, P(next | the token alone as a prompt). That takes a forward pass for each context, of which `ASKED`
        are taken, spread evenly over the vocabulary, where there are more and no `weights`.

    Raises
    ------
    InputError
        No word, no tokenizer, weights that do not fit, or n-grams that are no table of this kind.
    FileError
        No such file, or one that is no text.

    Source: n-gram mass of Chen et al., arXiv 2410.06024, whose normalisation is not published; this one is ours.
    """
    check(ngram_mass, locals())
    if reference not in ("uniform", "model"):
        raise InputError(f"reference={quoted(reference)} is unknown: choose 'uniform' or 'model'")
    words = _words(keywords)
    if isinstance(model, NGrams):
        if path is not None or memory is not None:
            raise InputError("n-grams have a path and are in memory already: leave path and memory out")
        if reference == "model":
            raise InputError("reference='model' runs the model, which n-grams are not: give the model or a PathTable")
        source: Source = _Listed(model)
    else:
        own = None if isinstance(model, PathTable) else tokenizer
        source = _Streamed(table_of(model, path=path, memory=memory, tokenizer=own))
    tokenizer = tokenizer if tokenizer is not None else source.tokenizer
    sequences = [_spellings(tokenizer, word, source.vocabulary) for word in words]
    first = sorted({sequence[0] for some in sequences for sequence in some})
    pairs = sorted({pair for some in sequences for sequence in some for pair in pairwise(sequence)})
    tokens = {token for some in sequences for sequence in some for token in sequence}
    texts = {token: token_text(tokenizer, token) for token in tokens}
    scale = _weights(weights, source.rows)
    mass = _chain(source, first, pairs, scale)
    own = asked = None
    if reference == "model" and isinstance(source, _Streamed):
        asked = source.asked(weights is None)
        some = scale[asked.contexts]
        own = _chain(asked, first, pairs, some / some.sum())
    return NGramMass(
        tuple(words),
        tuple(" or ".join(" ".join(texts[token] for token in one) for one in some) for some in sequences),
        tuple(mass(some) for some in sequences),
        mass(prefix_free(sequence for some in sequences for sequence in some)),
        isinstance(source, _Listed),
        source.path,
        source.model,
        tuple(math.fsum(float(source.vocabulary) ** -len(one) for one in some) for some in sequences),
        () if own is None else tuple(own(some) for some in sequences),
        0 if asked is None or len(asked.contexts) == source.rows else len(asked.contexts),
    )


def _chain(
    source: Source, first: Sequence[int], pairs: Sequence[tuple[int, int]], weights: Tensor
) -> Callable[[Sequence[tuple[int, ...]]], float]:
    """The probability that the chain of some bi-grams writes one of some sequences."""
    start = dict(zip(first, source.mean(first, weights), strict=True))
    step = dict(zip(pairs, source.steps(pairs), strict=True))

    def mass(some: Sequence[tuple[int, ...]]) -> float:
        return math.fsum(start[sequence[0]] * math.prod(step[pair] for pair in pairwise(sequence)) for sequence in some)

    return mass


def _words(keywords: str | os.PathLike[str] | Sequence[str]) -> list[str]:
    if isinstance(keywords, os.PathLike) and not is_file(keywords):
        raise FileError(
            f"there is no file {quoted(str(keywords))} to read words from: name a text file, or give a list"
        )
    if isinstance(keywords, str | os.PathLike):
        (text,) = texts_of(keywords)
        keywords = [re.sub(r"(^|\s)#.*", "", line) for line in text.splitlines()]
    words = list(dict.fromkeys(word for text in keywords if (word := text.strip())))
    if not words:
        raise InputError("there is no word to look for: give one or more, a word in each line of the file")
    return words


def _spellings(tokenizer: Any | None, word: str, vocabulary: int) -> list[tuple[int, ...]]:
    """The token sequences of a word with and without a leading space, none of them the beginning of another."""
    sequences = [tuple(encode(tokenizer, text, special=False)) for text in (word, f" {word}")]
    wrong = next((token for sequence in sequences for token in sequence if token >= vocabulary), None)
    if wrong is not None:
        raise InputError(
            f"the tokenizer writes {quoted(word)} with token {wrong}, but the table has {vocabulary} tokens: it is not "
            "the tokenizer of this model"
        )
    if not any(sequences):
        raise InputError(f"the tokenizer writes {quoted(word)} with no token at all: leave the word out")
    return prefix_free(sequence for sequence in sequences if sequence)


def prefix_free(sequences: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The sequences of which no proper beginning is among them too.

    >>> prefix_free([(1, 2), (3,), (1,), (3, 1)])
    [(3,), (1,)]
    """
    every = dict.fromkeys(sequences)
    kept: dict[tuple[int, ...], None] = {}
    # In order, those that begin with a kept one follow it before any other is kept.
    for one in sorted(every):
        last = next(reversed(kept), None)
        if last is None or one[: len(last)] != last:
            kept[one] = None
    return [one for one in every if one in kept]


def _weights(given: Tensor | None, rows: int) -> Tensor:
    if given is None:
        return torch.full((rows,), 1 / rows, dtype=torch.float64)
    strange = given.is_meta or given.is_complex() or given.layout is not torch.strided
    values = torch.empty(0) if strange else given.detach().double().cpu().reshape(-1)
    if len(values) != rows or not bool((values.isfinite() & (values >= 0)).all()) or float(values.sum()) <= 0:
        raise InputError(
            f"weights are one number per context token, {rows} in all, finite, not negative and not all zero"
        )
    return values / values.sum()


ASKED = 512
"""Contexts that the model itself is asked for at most."""


class Source(Protocol):
    """Bi-grams that masses are made of."""

    rows: int
    vocabulary: int
    tokenizer: Any
    path: str
    model: str

    def mean(self, tokens: Sequence[int], weights: Tensor) -> list[float]: ...
    def steps(self, pairs: Sequence[tuple[int, int]]) -> list[float]: ...


class _Asked:
    """Probabilities of the model itself, after a token alone."""

    def __init__(self, table: PathTable, contexts: Tensor) -> None:
        self._table = table
        self.contexts = contexts
        """Token ids [contexts] over which means are taken."""
        self.rows = len(contexts)
        self.vocabulary = min(table.tokens, table.vocabulary)
        self.tokenizer = table.subject.tokenizer
        self.path, self.model = "the model itself", table.subject.graph.title

    def mean(self, tokens: Sequence[int], weights: Tensor) -> list[float]:
        """Σ_a w(a) P(t | a) of some tokens t."""
        total = torch.zeros(len(tokens), dtype=torch.float64)
        for start, logs in self._rows(self.contexts):
            total += weights[start : start + len(logs)] @ logs[:, list(tokens)].exp()
        return total.tolist()

    def steps(self, pairs: Sequence[tuple[int, int]]) -> list[float]:
        """P(b | a) of some pairs (a, b)."""
        contexts = sorted({first for first, _ in pairs})
        found: dict[tuple[int, int], float] = {}
        for start, logs in self._rows(torch.tensor(contexts, dtype=torch.long)):
            rows = {token: row for row, token in enumerate(contexts[start : start + len(logs)])}
            found |= {pair: float(logs[rows[pair[0]], pair[1]].exp()) for pair in pairs if pair[0] in rows}
        return [found[pair] for pair in pairs]

    def _rows(self, contexts: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Log probabilities [rows, vocabulary] in float64, on the CPU, some rows at a time."""
        size = max(1, self._table.memory // (32 * self._table.vocabulary))
        with progress(total=len(contexts), desc="the model itself", unit="contexts") as bar:
            for start in range(0, len(contexts), size):
                logits = own_logits(self._table, contexts[start : start + size, None])
                yield start, logits.double().cpu().log_softmax(-1)
                bar.update(len(logits))


class _Streamed:
    """Probabilities of a `PathTable`."""

    def __init__(self, table: PathTable) -> None:
        if table.n != 2:
            raise InputError(f"the mass is that of a table of bi-grams, but this one has n={table.n}")
        self._table = table
        self.rows = table.tokens
        self.vocabulary = min(table.tokens, table.vocabulary)
        self.tokenizer = table.subject.tokenizer
        self.path, self.model = table.label, table.subject.graph.title

    def asked(self, few: bool) -> _Asked:
        """The model's own bi-grams after all tokens, or after few of many."""
        number = min(self.rows, ASKED) if few else self.rows
        return _Asked(self._table, torch.linspace(0, self.rows - 1, number).round().long())

    def mean(self, tokens: Sequence[int], weights: Tensor) -> list[float]:
        """Σ_a w(a) P(t | a) of some tokens t."""
        columns, size = torch.tensor(tokens), self._table.chunk_rows

        def look(unit: int) -> Record:
            number = torch.arange(unit * size, min((unit + 1) * size, self.rows))
            total = torch.zeros(len(tokens), dtype=torch.float64)
            for offset, block in blocks(self._table.memory, self._table.logits(self._table.contexts(number))):
                at = unit * size + offset
                probabilities = (block[:, columns.to(block.device)] - row_scales(block)[1][:, None]).exp()
                total += weights[at : at + len(block)] @ probabilities.double().cpu()
            return {"mass": total}

        def identity() -> dict[str, str]:
            given = [tokens, size, weights.tolist()]
            return {"table": self._table.fingerprint, "tokens": sha256(repr(given).encode()).hexdigest()}

        records = each(
            f"masses along {self.path}", -(-self.rows // size), look, identity, of=chunks_of(size, self.rows)
        )()
        return torch.stack([record["mass"] for record in records]).sum(0).tolist()

    def steps(self, pairs: Sequence[tuple[int, int]]) -> list[float]:
        """P(b | a) of some pairs (a, b)."""
        contexts = sorted({first for first, _ in pairs})
        place = {token: number for number, token in enumerate(contexts)}
        probabilities: dict[tuple[int, int], float] = {}
        size = self._table.chunk_rows
        for start in range(0, len(contexts), size):
            some = contexts[start : start + size]
            logits = self._table.logits(torch.tensor(some)[:, None])
            for offset, block in blocks(self._table.memory, logits):
                scale = row_scales(block)[1]
                for pair in pairs:
                    row = place[pair[0]] - start - offset
                    if 0 <= row < len(block):
                        probabilities[pair] = float((block[row, pair[1]] - scale[row]).exp())
            del logits
        return [probabilities[pair] for pair in pairs]


class _Listed:
    """Probabilities of an `NGrams`, 0 for what it does not list."""

    def __init__(self, listed: NGrams) -> None:
        if listed.n != 2 or listed.per != "row" or listed.kind != "probability" or not listed.complete:
            raise InputError(
                'the mass of n-grams needs ngrams(..., n=2, per="row", scores="probability") over all contexts; or '
                "give the model, whose table is then streamed"
            )
        self.rows = listed.rows
        self.vocabulary = listed.rows
        self.tokenizer = listed.tokenizer
        self.path, self.model = listed.path, listed.model
        self._contexts = listed.contexts[:, 0]
        self._following = listed.following
        self._scores = listed.scores.double()

    def mean(self, tokens: Sequence[int], weights: Tensor) -> list[float]:
        """Σ_a w(a) P(t | a) of some tokens t."""
        total = torch.zeros(max(int(self._following.max()), *tokens) + 1, dtype=torch.float64)
        total.index_add_(0, self._following, weights[self._contexts] * self._scores)
        return total[torch.tensor(tokens)].tolist()

    def steps(self, pairs: Sequence[tuple[int, int]]) -> list[float]:
        """P(b | a) of some pairs (a, b)."""
        scores = [self._scores[(self._contexts == a) & (self._following == b)] for a, b in pairs]
        return [float(values.sum()) for values in scores]
