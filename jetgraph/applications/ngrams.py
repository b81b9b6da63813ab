"""N-grams that a model's weights hold, read off order-0 paths without data, and how they compare with a corpus.

`ngrams` streams a `PathTable` over the whole vocabulary and keeps the top; `ngram_mass` asks how much probability such
a table gives to a list of words; `ngram_agreement` compares tables with the bi-gram counts of a corpus. Nothing here
holds a table as a whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from numbers import Integral
from pathlib import Path as File
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from jetgraph.applications.intervals import bootstrap, check_bootstrap
from jetgraph.applications.ranking import RunningTop, row_top
from jetgraph.applications.readout import token_text
from jetgraph.applications.results import Cell, Result
from jetgraph.applications.screening import Screen
from jetgraph.applications.subject import Model, Subject, encode_token, subject
from jetgraph.applications.tables import DIRECT, Paths, PathTable, check_top, single_mlps, table_of
from jetgraph.errors import FileError, InputError, check, quoted
from jetgraph.export.precision import own_types
from jetgraph.files.writing import is_file, make_folder, parse_json, read_text, shown, write_atomically
from jetgraph.prompts import encode
from jetgraph.residual import whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Per = Literal["all", "row"]
Scores = Literal["probability", "logit"]
Screening = Literal["bf16"]
Tokens = Tensor | Sequence[int] | Sequence[str] | str
"""Tokens by id, or texts of one token each."""

Entries = tuple[Tensor, Tensor, Tensor]
"""Of a table: row numbers, next tokens and scores."""

BARS = 20
"""The most bars in a figure."""

FEW = 16
"""The fewest rows whose screened scores are computed anew together, where there are as many."""

WAITING = 4096
"""Screened rows that may wait until it is known whether their scores are needed; as many as are asked for if those are
more."""

BLOCK = 2**19
"""Cells that are looked at together: few enough to stay in a core's cache."""


# N-grams


@dataclass(frozen=True, eq=False, repr=False)
class NGrams(Result):
    """The top n-grams of a table, best first; per row, rows in the order of their ids. Made by `ngrams`."""

    contexts: Tensor
    """Token ids before the last one, int64 [entries, n-1]."""
    following: Tensor
    """Token ids that follow, int64 [entries]."""
    scores: Tensor
    """Probabilities (of the softmax over the row's whole vocabulary) or logits, [entries]."""
    kind: Scores
    per: Per
    path: str
    model: str
    distance: int
    rows: int
    """Number of contexts that were gone through."""
    complete: bool
    """They were all contexts of the vocabulary."""
    tokenizer: Any | None

    @property
    def n(self) -> int:
        return self.contexts.shape[1] + 1

    @property
    def title(self) -> str:
        what = "bi-grams" if self.n == 2 else f"skip-tri-grams (distance {self.distance})"
        which = f"{len(self.following):,} top {what}" if self.per == "all" else f"top {what} of each context"
        return f"{which} of {self.model} along {self.path}, of {self.rows:,} contexts"

    def __len__(self) -> int:
        return len(self.following)

    @cached_property
    def _texts(self) -> Mapping[int, str]:
        used = torch.cat([self.contexts.reshape(-1), self.following]).unique().tolist()
        return {token: token_text(self.tokenizer, token) for token in used}

    @cached_property
    def _columns(self) -> Mapping[str, Sequence[Cell]]:
        names = ("token",) if self.n == 2 else ("first", "second")
        ids = {name: self.contexts[:, place].tolist() for place, name in enumerate(names)}
        ids["next"] = self.following.tolist()
        columns: dict[str, Sequence[Cell]] = {
            name: [self._texts[token] for token in tokens] for name, tokens in ids.items()
        }
        columns[self.kind] = self.scores.tolist()
        return columns | {f"{name} id": tokens for name, tokens in ids.items()}

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """Texts of the tokens (`readout.token_text`), the score, and the tokens' ids."""
        return self._columns

    def figure(self) -> Figure:
        """Bars of the n-grams with the largest scores."""
        best = self.scores.double().sort(descending=True, stable=True).indices[:BARS].tolist()
        labels = []
        for entry in best:
            before = " … ".join(self._texts[token] for token in self.contexts[entry].tolist())
            labels.append(f"{before} → {self._texts[int(self.following[entry])]}")
        given = "token" if self.n == 2 else "first, second"
        axis = f"probability P(next | {given})" if self.kind == "probability" else "logit of the next token"
        shown = f"; the {len(best)} largest" if len(best) < len(self) else ""
        return _bars(labels, [float(self.scores[entry]) for entry in best], axis, self.title + shown)


@torch.no_grad()
@own_types()
def ngrams(
    model: Model | Subject | PathTable,
    path: Paths | None = None,
    *,
    n: int | None = None,
    top: int = 100,
    per: Per = "all",
    scores: Scores = "probability",
    identity: bool = True,
    rows: Tokens | Sequence[Tokens | None] | None = None,
    distance: int | None = None,
    memory: int | None = None,
    screen: Screening | None = None,
    resume: str | os.PathLike[str] | None = None,
    tokenizer: Any | None = None,
) -> NGrams:
    """The n-grams to which an order-0 path of a model gives the largest scores, over the whole vocabulary.

        P(c | a) = softmax_c( U ν(γ_m(… γ_1(E[a]))) + b )

    No data and no forward pass: the model's weights along the path, applied to the embedding of every token.
    `PathTable` says what is computed in detail: positions take no part, the unembedding's bias enters once, and of
    several paths the logits are averaged. With n=3 the path leads through attention, such as
    `embed > L0.attn.head3 > logits`: what the head alone writes at the second token of a pair [a, b] when its softmax
    runs over the two, which stand `distance` apart.

    Parameters
    ----------
    model
        As `PathTable` takes it, or a `PathTable`, which has a path, n, distance, memory and tokenizer of its own.
    path
        A path or pattern of recipe `path`, or several, whose mean is taken; `embed > logits` unless given.
    n
        2: bi-grams (through attention: skip-bi-grams of the OV circuit), unless given. 3: skip-tri-grams.
    top
        How many, in all or per context.
    per
        `all`: the top over all contexts. `row`: the top next tokens of each context.
    scores
        `probability`: softmax over the row's whole vocabulary, whatever is left out afterwards. `logit`: as they are;
        logits of different rows differ by more than they say, so `all` is rarely useful with them.
    identity
        False leaves out next tokens that occur in the context.
    rows
        Tokens that a context is made of, by id or as texts of one token each; all unless given. For n=3 a pair, one for
        each place, of which None is the whole vocabulary.
    distance
        For n=3, how far apart the two tokens stand; 1 unless given.
    memory
        Bytes that may be used above the model and the result, 2**28 unless given. It bounds the rows of a chunk.
    screen
        `bf16`: a product in bfloat16 with a proven bound of its error says how large the scores of each row can be
        (`jetgraph.applications.screening.Screen`), and only rows that can still hold one of the top are computed in the
        model's precision. The n-grams and scores are the same as without, up to what rounding in float32 leaves open:
        scores may differ in their last digits, and n-grams whose scores do may change places. It gains where processors
        are faster in bfloat16 and the bound is tight; where it leaves most rows open (weights of very large norm), it
        costs a product more. For `per="all"` and models in float32 or float64. A copy of the unembedding in bfloat16
        counts as `memory`. With `resume`, more rows are computed than without, for none may wait from chunk to chunk.
    resume
        A folder for the state, which is written after every chunk. The same call then continues there after an
        interruption, with the same result as an uninterrupted run, and reads a finished one back.

    Returns
    -------
    NGrams
        Sorted by score; ties are broken by the ids of the context, then of the next token.

    Raises
    ------
    BudgetError
        The table is too large (n=3 over a large vocabulary): it says how many rows there are; restrict `rows`. Or a
        screen's copy of the unembedding does not fit into `memory`, or so many n-grams are more than memory holds.
    InputError
        An option that does not fit or that a table has already, a screen of a model in half precision or with a soft
        cap on its logits, a text of several tokens, a model without token ids, a `resume` folder that holds another
        run.

    Source: the jet bi-grams of Chen et al., arXiv 2410.06024.
    """
    check(ngrams, locals())
    for name, value, choices in (
        ("per", per, ("all", "row")),
        ("scores", scores, ("probability", "logit")),
        ("screen", screen, ("bf16", None)),
    ):
        if value not in choices:
            raise InputError(f"{name}={quoted(value)} is unknown: choose one of {', '.join(map(str, choices))}")
    if screen is not None and per == "row":
        raise InputError(
            'screen="bf16" finds the rows that hold the top of all, but per="row" asks for the top of every row, which '
            "is the whole product: leave screen out"
        )
    if top < 1:
        raise InputError(f"top={top} n-grams cannot be given: ask for 1 or more")
    table = table_of(model, paths=path, n=n, tokenizer=tokenizer, distance=distance, memory=memory)
    places = _places(table, rows)
    if table.n == 3:
        _check_first(table)
    keep = min(top, table.vocabulary - (0 if identity else table.n - 1))
    rows_read = table.count(places)
    check_top(top if per == "all" else keep * rows_read, table.vocabulary * rows_read)
    screened = None if screen is None else Screen(table, scores, identity)
    free = table.memory if screened is None else screened.memory
    search = _Search(table, top if per == "all" else keep, per, scores, identity, free)
    _stream(table, places, search, screened, None if resume is None else File(resume))
    number, following, values = search.result()
    return NGrams(
        table.contexts(number, places),
        following,
        values.exp() if scores == "probability" else values,
        scores,
        per,
        table.label,
        table.subject.graph.title,
        table.distance,
        table.count(places),
        all(place is None for place in places),
        table.subject.tokenizer,
    )


def _places(table: PathTable, rows: Tokens | Sequence[Tokens | None] | None) -> list[Tensor | None]:
    """The tokens of each place of a context, sorted, so that the order of rows is that of their ids."""
    if rows is None:
        return [None] * (table.n - 1)
    if table.n == 2:
        return [_tokens(table, rows)]
    if isinstance(rows, str | Tensor) or len(rows) != table.n - 1:
        raise InputError(
            "with n=3, rows is a pair: the tokens of the first and of the second place, None for all of the vocabulary"
        )
    return [None if place is None else _tokens(table, place) for place in rows]


def _tokens(table: PathTable, given: Any) -> Tensor:
    """Token ids, each once and sorted."""
    listed = [given] if isinstance(given, str) else whole_numbers(given, "rows") if isinstance(given, Tensor) else given
    if strange := [item for item in listed if not isinstance(item, Integral | str) or isinstance(item, bool)]:
        raise InputError(f"rows hold {quoted(strange[0])}, which is neither a token id nor a text")
    tokenizer = table.subject.tokenizer
    ids = [
        encode_token(tokenizer, item, "place of a context") if isinstance(item, str) else int(item) for item in listed
    ]
    wrong = next((token for token in ids if not 0 <= token < table.tokens), None)
    if wrong is not None or not ids:
        seen = "none" if wrong is None else str(wrong)
        raise InputError(f"rows hold token ids from 0 to {table.tokens - 1}, one or more, not {seen}")
    return torch.tensor(sorted(set(ids)))


def _check_first(table: PathTable) -> None:
    """Raises `InputError` where the first token of two has no influence at all."""
    tried = torch.tensor([[first, 0] for first in range(min(4, table.tokens))])
    values = table.logits(tried)
    if bool((values == values[0]).all()):
        raise InputError(
            f"the first of the two tokens makes no difference along {table.label}: take the path through attention, "
            "such as 'embed > L0.attn > logits', or n=2"
        )


# Searching


def _blocks(memory: int, logits: Tensor) -> Iterator[tuple[int, Tensor]]:
    """A chunk in blocks of rows that fit into a cache, in float32 at least, with the place of the first row."""
    cells = BLOCK if logits.device.type == "cpu" else 16 * BLOCK
    size = max(1, min(cells, memory // 64) // logits.shape[1])
    for start in range(0, len(logits), size):
        block = logits[start : start + size]
        yield start, block.to(torch.promote_types(block.dtype, torch.float32))


def _row_maxima(block: Tensor) -> Tensor:
    """max of each row; raises `InputError` where it is not finite."""
    largest = block.amax(1)
    if not bool(largest.isfinite().all()):
        raise InputError("the path gives logits that are not finite: check the weights, or take another precision")
    return largest


def _row_scales(block: Tensor, work: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """max and log Σ exp of each row."""
    largest = _row_maxima(block)
    shifted = torch.sub(block, largest[:, None], out=work[: len(block)] if work is not None else None)
    # Below, exp gives denormal numbers, which processors are ten times slower at; V e^-80 is far from any digit.
    return largest, largest + shifted.clamp_(min=-80).exp_().sum(1).log_()


def _exclude(values: Tensor, contexts: Tensor) -> None:
    """Put −inf where the next token occurs in the context, in place."""
    row = torch.arange(len(values), device=values.device)
    for place in range(contexts.shape[1]):
        token = contexts[:, place].to(values.device)
        inside = token < values.shape[1]
        values[row[inside], token[inside]] = -math.inf


class _Search:
    """The running top of a table that comes in chunks; log-probabilities or logits.

    Rows may come in any order, and each comes once; with `per="row"` they come in the order of their numbers.
    """

    def __init__(self, table: PathTable, keep: int, per: Per, scores: Scores, identity: bool, memory: int) -> None:
        self._memory = memory
        self._keep = keep
        self._per = per
        self._scores = scores
        self._identity = identity
        self._work: Tensor | None = None
        self.best = RunningTop(keep, torch.promote_types(table.dtype, torch.float32))
        """The top of all rows."""
        self._by_row: list[Entries] = []

    def add(self, number: Tensor, contexts: Tensor, logits: Tensor) -> None:
        """Look at a chunk whose rows have these numbers [rows]."""
        fresh = []
        for offset, block in _blocks(self._memory, logits):
            some, rows = contexts[offset : offset + len(block)], number[offset : offset + len(block)]
            scale = None
            if self._scores == "probability":
                if self._work is None or len(self._work) < len(block):
                    self._work = torch.empty_like(block)
                largest, scale = _row_scales(block, self._work)
            else:
                largest = _row_maxima(block)
            if self._per == "all":
                self._merge(rows, some, block, largest, scale)
            else:
                fresh.append(self._rows(rows, some, block, scale))
        if self._per == "row":
            self._by_row.append(tuple(torch.cat(parts) for parts in zip(*fresh, strict=True)))  # type: ignore[arg-type]

    @property
    def last(self) -> Entries:
        """What the last chunk has left to be kept."""
        return self._by_row[-1] if self._by_row else self.best.held

    @property
    def keep(self) -> int:
        """How many n-grams are looked for, in all or per row."""
        return self._keep

    @property
    def by_row(self) -> bool:
        """What `last` returns is the chunk's own, and not the top so far."""
        return self._per == "row"

    @property
    def options(self) -> dict[str, str]:
        """What is looked for."""
        return {
            "top": str(self._keep),
            "per": self._per,
            "scores": self._scores,
            "identity": str(self._identity),
        }

    def restore(self, found: Entries) -> None:
        """Take up what `last` was in an earlier run."""
        if self.by_row:
            self._by_row.append(found)
        else:
            self.best.held = found

    def result(self) -> Entries:
        """Row numbers, next tokens and scores, sorted."""
        if not self._by_row:
            return self.best.held
        number, following, values = (torch.cat(parts) for parts in zip(*self._by_row, strict=True))
        return number, following, values

    def _values(self, block: Tensor, contexts: Tensor, scale: Tensor | None) -> Tensor:
        values = block.clone() if scale is None else block - scale[:, None]
        if not self._identity:
            _exclude(values, contexts)
        return values

    def _rows(self, number: Tensor, contexts: Tensor, block: Tensor, scale: Tensor | None) -> Entries:
        best, place = row_top(self._values(block, contexts, scale), self._keep)
        return number.repeat_interleave(self._keep), place.reshape(-1).cpu(), best.reshape(-1).cpu()

    def _merge(self, number: Tensor, contexts: Tensor, block: Tensor, largest: Tensor, scale: Tensor | None) -> None:
        # A row whose largest value stays below the bound needs no second look.
        highest = largest if scale is None else largest - scale
        some = (highest > self.best.bounds(number, block)).nonzero()[:, 0]
        if not len(some):
            return
        where = some.cpu()
        if len(some) < len(block):
            block, scale = block[some], scale if scale is None else scale[some]
        self.best.add(number[where], self._values(block, contexts[where], scale))


# Streaming, and taking a run up again


def _stream(
    table: PathTable, places: list[Tensor | None], search: _Search, screen: Screen | None, folder: File | None
) -> None:
    total = table.count(places)
    state = None if folder is None else _State(folder, _identity_of(table, places, search, screen), search)
    start = 0 if state is None else state.restore()
    if screen is None:
        chunks = _every_row(table, places, search, start)
    else:
        chunks = _screened(table, places, search, screen, start, settle=state is not None)
    with tqdm(total=total, initial=start, disable=None, leave=False, unit="row", desc=table.label) as bar:
        for rows in chunks:
            start += rows
            if state is not None:
                state.write(start, search.last)
            bar.update(rows)


def _every_row(table: PathTable, places: list[Tensor | None], search: _Search, start: int) -> Iterator[int]:
    """Look at all rows, chunk by chunk; the number of rows of each."""
    for contexts, logits in table.chunks(places, start):
        search.add(torch.arange(start, start + len(contexts)), contexts, logits)
        # The next chunk is made while a name still holds this one, which would take its memory twice.
        del logits
        start += len(contexts)
        yield len(contexts)


def _screened(
    table: PathTable, places: list[Tensor | None], search: _Search, screen: Screen, start: int, settle: bool
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

    def __init__(self, table: PathTable, places: list[Tensor | None], search: _Search, screen: Screen) -> None:
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
    table: PathTable, places: Sequence[Tensor | None], search: _Search, screen: Screen | None
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


class _State:
    """The folder of a run: `state.safetensors`, and for `per="row"` one file per chunk beside it."""

    def __init__(self, folder: File, identity: Mapping[str, str], search: _Search) -> None:
        self._folder = folder
        self._identity = dict(identity)
        self._search = search
        self._file = folder / "state.safetensors"
        self._parts = 0

    def restore(self) -> int:
        """The row at which to go on; what was found before it is given to the search."""
        if is_file(self._folder):
            raise FileError(f"resume={str(self._folder)!r} is a file: name a folder for the state of the run")
        make_folder(self._folder)
        if not self._file.exists():
            return 0
        facts, found = _read(self._file)
        try:
            given = dict(parse_json(facts["run"]))
            parts, following = int(facts["parts"]), int(facts["next"])
        except (KeyError, ValueError, TypeError) as error:
            raise FileError(
                f"{shown(self._file)} is no state of a run of ngrams ({error}): remove its folder, and start again"
            ) from error
        differs = [name for name, value in self._identity.items() if given.get(name) != value]
        if differs:
            raise InputError(
                f"{shown(self._folder)} holds the state of another run: {', '.join(differs)} differ. Name another "
                "folder, or remove it"
            )
        self._parts = parts
        for part in range(self._parts):
            self._search.restore(_read(self._part(part))[1])
        if not self._parts and len(found[0]):
            self._search.restore(found)
        return following

    def write(self, start: int, kept: Entries) -> None:
        """Keep what was found up to row `start`."""
        facts = {"run": json.dumps(self._identity), "next": str(start)}
        if self._search.by_row:
            # Written first: a part that no state counts is written again.
            _write(self._part(self._parts), kept, {})
            self._parts += 1
            kept = (kept[0][:0], kept[1][:0], kept[2][:0])
        _write(self._file, kept, facts | {"parts": str(self._parts)})

    def _part(self, number: int) -> File:
        return self._folder / f"rows-{number:06d}.safetensors"


_NAMES = ("row", "next", "score")


def _write(file: File, found: Entries, facts: dict[str, str]) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in zip(_NAMES, found, strict=True)}
    write_atomically(file, lambda path: save_file(tensors, path, metadata=facts))


def _read(file: File) -> tuple[dict[str, str], Entries]:
    try:
        with safetensors.safe_open(file, framework="pt") as held:
            row, following, score = (held.get_tensor(name) for name in _NAMES)
            return held.metadata() or {}, (row, following, score)
    except (OSError, safetensors.SafetensorError) as error:
        raise FileError(
            f"{file} is no state of a run of ngrams ({error}): remove its folder, and start again"
        ) from error


# Mass


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

    @property
    def title(self) -> str:
        sign = "at least " if self.lower_bound else ""
        return f"mass of {self.path} of {self.model} on {len(self.words)} words: {sign}{self.total:.4g} in all"

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """word, its token sequences, and its mass; in the order given."""
        return {"word": self.words, "tokens": self.spellings, "mass": self.masses}

    def figure(self) -> Figure:
        """Bars of the words with the largest masses."""
        best = sorted(range(len(self.words)), key=lambda index: -self.masses[index])[:BARS]
        axis = "mass: mean over contexts of P(word | context)" + (", lower bound" if self.lower_bound else "")
        return _bars([self.words[index] for index in best], [self.masses[index] for index in best], axis, self.title)


@torch.no_grad()
@own_types()
def ngram_mass(
    model: Model | Subject | PathTable | NGrams,
    keywords: str | os.PathLike[str] | Sequence[str],
    *,
    path: Paths | None = None,
    weights: Tensor | None = None,
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
    another one (`car`, `carpet`), and then less.

    Parameters
    ----------
    model
        A model, a `PathTable` of n=2, or an `NGrams` of n=2 with `per="row"` and probabilities over all contexts. The
        latter has the top of each row only, and what it lacks counts as 0: the masses are then lower bounds.
    path, memory
        As in `ngrams`; for a model only.
    keywords
        A text file with a word in each line, where # begins a comment; or a list of words.
    weights
        Weight of each context token [V], such as its frequency in a corpus; scaled to sum 1. Uniform unless given.

    Raises
    ------
    InputError
        No word, no tokenizer, weights that do not fit, or n-grams that are no table of this kind.
    FileError
        No such file, or one that is no text.

    Source: n-gram mass of Chen et al., arXiv 2410.06024, whose normalisation is not published; this one is ours.
    """
    check(ngram_mass, locals())
    words = _words(keywords)
    if isinstance(model, NGrams):
        if path is not None or memory is not None:
            raise InputError("n-grams have a path and are in memory already: leave path and memory out")
        source: _Listed | _Streamed = _Listed(model)
    else:
        own = None if isinstance(model, PathTable) else tokenizer
        source = _Streamed(table_of(model, paths=path, memory=memory, tokenizer=own))
    tokenizer = tokenizer if tokenizer is not None else source.tokenizer
    sequences = [_spellings(tokenizer, word, source.vocabulary) for word in words]
    first = sorted({sequence[0] for some in sequences for sequence in some})
    pairs = sorted({pair for some in sequences for sequence in some for pair in pairwise(sequence)})
    tokens = {token for some in sequences for sequence in some for token in sequence}
    texts = {token: token_text(tokenizer, token) for token in tokens}
    start = dict(zip(first, source.mean(first, _weights(weights, source.rows)), strict=True))
    step = dict(zip(pairs, source.steps(pairs), strict=True))

    def mass(some: Sequence[tuple[int, ...]]) -> float:
        return math.fsum(start[sequence[0]] * math.prod(step[pair] for pair in pairwise(sequence)) for sequence in some)

    return NGramMass(
        tuple(words),
        tuple(" or ".join(" ".join(texts[token] for token in one) for one in some) for some in sequences),
        tuple(mass(some) for some in sequences),
        mass(_prefix_free(sequence for some in sequences for sequence in some)),
        isinstance(source, _Listed),
        source.path,
        source.model,
    )


def _words(keywords: str | os.PathLike[str] | Sequence[str]) -> list[str]:
    if isinstance(keywords, str | os.PathLike):
        file = File(keywords)
        if not is_file(file):
            raise FileError(
                f"there is no file {quoted(str(keywords))} to read words from: name a text file, or give a list"
            )
        lines = read_text(file).splitlines()
        keywords = [re.sub(r"(^|\s)#.*", "", line) for line in lines]
    words = list(dict.fromkeys(word for text in keywords if (word := text.strip())))
    if not words:
        raise InputError("there is no word to look for: give one or more, a word in each line of the file")
    return words


def _spellings(tokenizer: Any | None, word: str, vocabulary: int) -> list[tuple[int, ...]]:
    """The token sequences of a word with and without a leading space, none of them the beginning of another."""
    found = [tuple(encode(tokenizer, text, special=False)) for text in (word, f" {word}")]
    wrong = next((token for sequence in found for token in sequence if token >= vocabulary), None)
    if wrong is not None:
        raise InputError(
            f"the tokenizer writes {quoted(word)} with token {wrong}, but the table has {vocabulary} tokens: it is not "
            "the tokenizer of this model"
        )
    if not any(found):
        raise InputError(f"the tokenizer writes {quoted(word)} with no token at all: leave the word out")
    return _prefix_free(sequence for sequence in found if sequence)


def _prefix_free(sequences: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The sequences of which no proper beginning is among them too.

    >>> _prefix_free([(1, 2), (3,), (1,), (3, 1)])
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

    def mean(self, tokens: Sequence[int], weights: Tensor) -> list[float]:
        """Σ_a w(a) P(t | a) of some tokens t."""
        columns = torch.tensor(tokens)
        total = torch.zeros(len(tokens), dtype=torch.float64)
        start = 0
        with tqdm(total=self.rows, disable=None, leave=False, unit="row", desc=self.path) as bar:
            for contexts, logits in self._table.chunks():
                for offset, block in _blocks(self._table.memory, logits):
                    at = start + offset
                    probabilities = (block[:, columns.to(block.device)] - _row_scales(block)[1][:, None]).exp()
                    total += weights[at : at + len(block)] @ probabilities.double().cpu()
                start += len(contexts)
                bar.update(len(contexts))
                del logits
        return total.tolist()

    def steps(self, pairs: Sequence[tuple[int, int]]) -> list[float]:
        """P(b | a) of some pairs (a, b)."""
        contexts = sorted({first for first, _ in pairs})
        place = {token: number for number, token in enumerate(contexts)}
        found: dict[tuple[int, int], float] = {}
        size = self._table.chunk_rows
        for start in range(0, len(contexts), size):
            some = contexts[start : start + size]
            logits = self._table.logits(torch.tensor(some)[:, None])
            for offset, block in _blocks(self._table.memory, logits):
                scale = _row_scales(block)[1]
                for pair in pairs:
                    row = place[pair[0]] - start - offset
                    if 0 <= row < len(block):
                        found[pair] = float((block[row, pair[1]] - scale[row]).exp())
            del logits
        return [found[pair] for pair in pairs]


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
        found = [self._scores[(self._contexts == a) & (self._following == b)] for a, b in pairs]
        return [float(values.sum()) for values in found]


# Agreement with a corpus


@dataclass(frozen=True, eq=False, repr=False)
class Agreement(Result):
    """How well tables predict a corpus' bi-gram counts. Made by `ngram_agreement`."""

    paths: tuple[str, ...]
    """The paths, then `unigram` and `model`."""
    measures: tuple[str, ...]
    """`hit@K`… and `spearman`."""
    values: Tensor
    """Means over contexts, [paths, measures]."""
    low: Tensor
    """Lower ends of the 95 % bootstrap intervals, as `values`."""
    high: Tensor
    contexts: tuple[int, ...]
    """Per measure, the number of contexts that it is averaged over."""
    pairs: int
    """Number of bi-grams in the corpus."""
    minimum: int
    model: str

    @property
    def title(self) -> str:
        return (
            f"bi-grams of {self.model} against {self.pairs:,} of a corpus, mean over {self.contexts[0]:,} contexts "
            f"that occur {self.minimum} times or more"
        )

    def value(self, path: str, measure: str) -> tuple[float, float, float]:
        """Mean and interval of one measure for one path. Raises `InputError` for an unknown one."""
        check(Agreement.value, locals())
        for name, known in ((path, self.paths), (measure, self.measures)):
            if name not in known:
                raise InputError(f"{quoted(name)} was not compared: there are {', '.join(known)}")
        at = self.paths.index(path), self.measures.index(measure)
        return float(self.values[at]), float(self.low[at]), float(self.high[at])

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """A row per measure and path: mean, 95 % interval, number of contexts."""
        rows = [(path, measure) for measure in range(len(self.measures)) for path in range(len(self.paths))]
        return {
            "measure": [self.measures[measure] for _, measure in rows],
            "path": [self.paths[path] for path, _ in rows],
            "mean": [float(self.values[at]) for at in rows],
            "low": [float(self.low[at]) for at in rows],
            "high": [float(self.high[at]) for at in rows],
            "contexts": [self.contexts[measure] for _, measure in rows],
        }

    def figure(self) -> Figure:
        """Mean and interval of every path, in a panel per measure."""
        from matplotlib.figure import Figure

        height = 1.6 + 0.3 * len(self.paths)
        figure = Figure(figsize=(3.2 + 2.2 * len(self.measures), height), layout="constrained")
        panels = figure.subplots(1, len(self.measures), sharey=True, squeeze=False)[0]
        place = list(range(len(self.paths)))
        for column, (axes, measure) in enumerate(zip(panels, self.measures, strict=True)):
            middle, low, high = (ends[:, column].numpy() for ends in (self.values, self.low, self.high))
            colours = ["tab:grey" if path in _REFERENCES else "tab:blue" for path in self.paths]
            axes.hlines(place, low, high, colors=colours)
            axes.scatter(middle, place, c=colours, s=22, zorder=3)
            axes.set_xlabel(_AXES["spearman"] if measure == "spearman" else _AXES["hit"].format(measure[4:]))
            axes.grid(axis="x", alpha=0.3)
        panels[0].set_yticks(place, self.paths, parse_math=False)
        panels[0].invert_yaxis()
        figure.suptitle(f"{self.title};\nlines: 95 % bootstrap intervals over contexts", fontsize=10, parse_math=False)
        return figure


_REFERENCES = ("unigram", "model")
_AXES = {"hit": "hit ratio at {} [share]", "spearman": "Spearman rank correlation"}


@torch.no_grad()
@own_types()
def ngram_agreement(
    model: Model | Subject,
    corpus: Tensor | str | Sequence[str],
    *,
    paths: str | Sequence[str] | None = None,
    top: int | Sequence[int] = (1, 5, 10),
    minimum: int = 20,
    resamples: int = 1000,
    seed: int = 0,
    memory: int = 2**28,
    tokenizer: Any | None = None,
) -> Agreement:
    """Compare bi-gram tables of a model with the bi-gram counts c(a, b) of a corpus, path by path.

    For each context a that is followed by something `minimum` times or more:

    - hit ratio at K: |top-K of the table's row ∩ top-K of the counts| / min(K, distinct followers of a). With fewer
      than K distinct followers, the share of those among the table's top K. Ties are broken by token id.
    - Spearman: rank correlation (mean ranks for ties) of the table's score with c(a, b) over the followers b that
      occur. Contexts whose followers all occur equally often have none and are left out of this mean.

    Means over contexts, each context counting once, with 95 % intervals from `resamples` bootstrap samples of the
    contexts (percentiles; the same samples for every path). Two references come last: `unigram`, where every row is
    the number of times that each token follows anything in the corpus, and `model`, the model's own output on the
    prompt that is the token alone.

    Parameters
    ----------
    corpus
        Token ids, in one row [tokens] or in rows [rows, tokens] that do not follow one another; or texts, of which each
        is a row.
    paths
        Paths or patterns, each a table of its own (a pattern: the mean of what it matches). By default the embedding
        alone and the path through each single MLP.

    Raises
    ------
    InputError
        No context occurs often enough, or token ids that the model does not know.
    """
    check(ngram_agreement, locals())
    top = [int(top)] if isinstance(top, int | Integral) else list(top)
    if not top or min(top) < 1 or minimum < 1:
        raise InputError(f"top={quoted(top)} and minimum={minimum} are 1 or more")
    check_bootstrap(resamples, seed)
    found = model if isinstance(model, Subject) else subject(model, tokenizer=tokenizer)
    rows = _corpus_rows(corpus, tokenizer if tokenizer is not None else found.tokenizer)
    if paths is None:
        paths = [DIRECT, *single_mlps(found.graph)]
    paths = [paths] if isinstance(paths, str) else list(paths)
    if not paths:
        raise InputError("there is no path to compare: name one, or leave paths out")
    tables = [PathTable(found, path, memory=memory) for path in paths]
    counts = _Counts(rows, tables[0], minimum)
    scorers: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        (path, table.logits) for path, table in zip(paths, tables, strict=True)
    ]
    unigram = counts.unigram(tables[0].vocabulary)
    scorers.append(("unigram", lambda contexts: unigram.expand(len(contexts), -1)))
    scorers.append(("model", lambda contexts: _own_logits(tables[0], contexts)))
    measures = (*(f"hit@{number}" for number in top), "spearman")
    every = torch.stack([counts.compare(name, scorer, top) for name, scorer in scorers])
    values, low, high = _intervals(every, resamples, seed)
    return Agreement(
        tuple(name for name, _ in scorers),
        measures,
        values,
        low,
        high,
        # Where a measure is defined depends on the counts alone, so one path says it for all.
        tuple(int((~column.isnan()).sum()) for column in every[0].T),
        counts.pairs,
        minimum,
        found.graph.title,
    )


def _own_logits(table: PathTable, contexts: Tensor) -> Tensor:
    """The model's own output at the last position of the contexts."""
    output = table.subject.graph(**table.inputs(contexts))
    return output if output.dim() == 2 else output[:, -1]


def _corpus_rows(corpus: Tensor | str | Sequence[str], tokenizer: Any | None) -> list[np.ndarray]:
    if isinstance(corpus, Tensor):
        if corpus.dtype.is_floating_point or corpus.dtype.is_complex or corpus.is_meta or corpus.dim() not in (1, 2):
            raise InputError(
                f"a corpus is token ids [tokens] or [rows, tokens], or texts, not {corpus.dtype} of shape "
                f"{list(corpus.shape)}"
            )
        return list(np.atleast_2d(corpus.cpu().numpy()))
    texts = [corpus] if isinstance(corpus, str) else list(corpus)
    return [np.array(encode(tokenizer, text, special=False), dtype=np.int64) for text in texts]


class _Counts:
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

    def compare(self, name: str, logits: Callable[[Tensor], Tensor], top: Sequence[int]) -> Tensor:
        """Measures of every context, [contexts, measures]; NaN where one is not defined."""
        found = []
        size = self._table.chunk_rows
        for start in tqdm(range(0, len(self.contexts), size), disable=None, leave=False, unit="chunk", desc=name):
            values = logits(self.contexts[start : start + size])
            for offset, block in _blocks(self._table.memory, values):
                best = row_top(block, min(max(top), block.shape[1]))[1].cpu().numpy()
                for row in range(len(block)):
                    found.append(self._measures(start + offset + row, block[row], best[row], top))
        return torch.tensor(found, dtype=torch.float64)

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


def _intervals(values: Tensor, resamples: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means over contexts of [paths, contexts, measures] and their 95 % percentile bootstrap intervals."""
    known = (~values.isnan()).double()
    filled = values.nan_to_num(0.0)
    low, high = bootstrap(filled.transpose(0, 1).numpy(), known.transpose(0, 1).numpy(), resamples, seed)
    return filled.sum(1) / known.sum(1), torch.from_numpy(low), torch.from_numpy(high)


# Figures


def _bars(labels: Sequence[str], values: Sequence[float], axis: str, title: str) -> Figure:
    """Horizontal bars, the largest on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.3 + 0.27 * max(3, len(labels))), layout="constrained")
    axes = figure.subplots()
    place = list(range(len(labels)))
    axes.barh(place, values, color="tab:blue")
    # A dollar sign in a token opens no formula.
    axes.set_yticks(place, labels, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(axis)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title("\n".join(textwrap.wrap(title, 76)), fontsize=10, parse_math=False)
    return figure
