"""N-grams that a model's weights hold, read off order-0 paths without data.

`ngrams` streams a `PathTable` over the whole vocabulary and keeps the top; nothing here holds a table as a whole.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path as File
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from jetgraph.applications.bars import bars, drawn
from jetgraph.applications.ngrams.budget import check_top
from jetgraph.applications.ngrams.choosing import Paths
from jetgraph.applications.ngrams.information import Information
from jetgraph.applications.ngrams.screening import Screen
from jetgraph.applications.ngrams.search import LEAST, Entries, Per, Scores, Search, mean_row
from jetgraph.applications.ngrams.streaming import stream
from jetgraph.applications.ngrams.table import PathTable, table_of
from jetgraph.applications.readout import token_text
from jetgraph.applications.results import Cell, Result
from jetgraph.applications.subject import Model, Subject, encode_token
from jetgraph.errors import InputError, amount, check, quoted
from jetgraph.export.precision import own_types
from jetgraph.running.indices import whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Screening = Literal["bf16"]

Tokens = Tensor | Sequence[int | str] | str
"""Tokens by id, or texts of one token each."""

BARS = 20
"""The most bars in a figure."""


@dataclass(frozen=True, eq=False, repr=False)
class NGrams(Result):
    """The top n-grams of a table, best first; per row, rows in the order of their ids. Made by `ngrams`."""

    contexts: Tensor
    """Token ids before the last one, int64 [entries, n-1]."""
    following: Tensor
    """Token ids that follow, int64 [entries]."""
    scores: Tensor
    """What `kind` says [entries]: probabilities of the softmax over the row's whole vocabulary, logits, information."""
    probabilities: Tensor | None
    """Beside pointwise mutual information, the probabilities that it is of, [entries]."""
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
        what, distance = ("bi-gram", "") if self.n == 2 else ("skip-tri-gram", f" (distance {self.distance})")
        which = f"{amount(len(self), f'top {what}')}{distance}"
        which = which if self.per == "all" else f"top {what}s{distance} of each context"
        return f"{which} of {self.model} along {self.path}, of {amount(self.rows, 'context')}"

    @property
    def note(self) -> str:
        """That contexts are repeated, where most are."""
        repeated = int((self.contexts == self.following[:, None]).any(1).sum())
        if 2 * repeated <= len(self):
            return ""
        told = f"{repeated} of {len(self)} repeat a token of their context, as a tied unembedding makes of each: "
        if self.kind == "pmi":
            return f"{told}identity=False (--no-identity) leaves these out"
        # By probability alone the few tokens with the longest rows of the unembedding follow everything then.
        return (
            f"{told}identity=False with scores='pmi' (--no-identity --scores pmi) leaves these out and tells what a "
            "context changes, and so does a path through a branch, such as embed > L0.mlp > logits"
        )

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
        if self.probabilities is not None:
            columns["probability"] = self.probabilities.tolist()
        return columns | {f"{name} id": tokens for name, tokens in ids.items()}

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """Texts of the tokens (`readout.token_text`), the score, beside information the probability, and the tokens'
        ids.
        """
        return self._columns

    def figure(self) -> Figure:
        """Bars of the n-grams with the largest scores."""
        best = self.scores.double().sort(descending=True, stable=True).indices[:BARS].tolist()
        labels = []
        for entry in best:
            before = " … ".join(self._texts[token] for token in self.contexts[entry].tolist())
            labels.append(f"{before} → {self._texts[int(self.following[entry])]}")
        given = "token" if self.n == 2 else "first, second"
        axis = {
            "probability": f"probability P(next | {given})",
            "logit": "logit of the next token",
            "pmi": f"log P(next | {given}) − log of its mean over contexts, nats",
        }[self.kind]
        shown = drawn(len(best), len(self))
        values = [float(self.scores[entry]) for entry in best]
        return bars(list(zip(labels, values, strict=True)), self.title + shown, axis)


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
    least: float | None = None,
    identity: bool = True,
    first: Tokens | None = None,
    second: Tokens | None = None,
    distance: int | None = None,
    memory: int | None = None,
    screen: Screening | None = None,
    resume: str | os.PathLike[str] | None = None,
    tokenizer: Any | None = None,
    rows: Tokens | Sequence[Tokens | None] | None = None,
) -> NGrams:
    """The n-grams that an order-0 path of a model scores highest, over the whole vocabulary.

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
        logits of different rows differ by more than they say, so `all` is rarely useful with them. `pmi`: pointwise
        mutual information, log P(c | a) − log of the mean of P(c | ·) over the contexts, in nats; what the context
        changes, where probabilities of a tied model say that each token follows itself. In one look at the table where
        a quarter of `memory` has 20 bytes for each n-gram that may be as probable as `least`, 1 / `least` of a row;
        else in two.
    least
        For `pmi`, the least probability of an n-gram, 0.1 unless given: rare tokens have the largest ratios.
    identity
        False leaves out next tokens that occur in the context.
    first, second
        Tokens of the context's first place, and with n=3 of its second, by id or as texts of one token each; the whole
        vocabulary unless given. `rows`, the two together, is their old name.
    distance
        For n=3, how far apart the two tokens stand; 1 unless given.
    memory
        Bytes that may be used above the model and the result, 2**28 unless given, 2**31 on an accelerator. It bounds
        the rows of a chunk.
    screen
        `bf16`: a product in bfloat16 with a proven bound of its error says how large the scores of each row can be
        (`ngrams.screening.Screen`), and only rows that can still hold one of the top are computed in the
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
        The table is too large (n=3 over a large vocabulary): it says how many rows there are; restrict `first` or
        `second`. Or a
        screen's copy of the unembedding does not fit into `memory`, or so many n-grams are more than memory holds.
    InputError
        An option that does not fit or that a table has already, information of a single context, a screen of a model in
        half precision or with a soft cap on its logits, a text of several tokens, a model without token ids, a `resume`
        folder that holds another run.

    Source: the jet bi-grams of Chen et al., arXiv 2410.06024.
    """
    check(ngrams, locals())
    _check_choices(per, scores, least, screen)
    if top < 1:
        raise InputError(f"top={top} n-grams cannot be given: ask for 1 or more")
    table = table_of(model, path=path, n=n, tokenizer=tokenizer, distance=distance, memory=memory)
    places = _places(table, first, second, rows)
    if table.n == 3:
        _check_first(table)
    keep = min(top, table.vocabulary - (0 if identity else table.n - 1))
    rows_read = table.count(places)
    check_top(top if per == "all" else keep * rows_read, table.vocabulary * rows_read)
    screened = None if screen is None else Screen(table, scores, identity)
    free = table.memory if screened is None else screened.memory
    number = top if per == "all" else keep
    if scores == "pmi":
        search = _informed(table, places, number, per, identity, LEAST if least is None else least)
    else:
        search = Search(table, number, per, scores, identity, free)
    stream(table, places, search, screened, None if resume is None else File(resume))
    number, following, values = _finite(search.result())
    return NGrams(
        table.contexts(number, places),
        following,
        values.exp() if scores == "probability" else values,
        None if (mean := search.mean) is None else (values.double() + mean[following]).exp().to(values),
        scores,
        per,
        table.label,
        table.subject.graph.title,
        table.distance,
        table.count(places),
        all(place is None for place in places),
        table.subject.tokenizer,
    )


def _informed(
    table: PathTable, places: list[Tensor | None], keep: int, per: Per, identity: bool, least: float
) -> Search | Information:
    """What looks for the n-grams of the largest information: at all rows once, or twice where what is probable enough
    does not fit into memory.
    """
    rows, memory = table.count(places), table.memory
    if rows == 1:
        raise InputError(
            'scores="pmi" tells what a context changes against the mean over all that are looked at, which is nothing '
            "of a single one: name more of them, or none, or take another score"
        )
    if Information.fits(rows, least, memory):
        return Information(table, rows, keep, per, identity, memory, least)
    return Search(table, keep, per, "pmi", identity, memory, mean_row(table, places, memory), least)


def _check_choices(per: Per, scores: Scores, least: float | None, screen: Screening | None) -> None:
    """Raise `InputError` for options that are unknown, or do not go together."""
    for name, value, choices in (
        ("per", per, ("all", "row")),
        ("scores", scores, ("probability", "logit", "pmi")),
        ("screen", screen, ("bf16", None)),
    ):
        if value not in choices:
            raise InputError(f"{name}={quoted(value)} is unknown: choose one of {', '.join(map(str, choices))}")
    if screen is not None and per == "row":
        raise InputError(
            'screen="bf16" finds the rows that hold the top of all, but per="row" asks for the top of every row, which '
            "is the whole product: leave screen out"
        )
    if least is not None and (scores != "pmi" or not 0 <= least < 1):
        raise InputError(f'least={least} is a probability below 1, and goes with scores="pmi"')
    if screen is not None and scores == "pmi":
        raise InputError('screen="bf16" bounds probabilities and logits, and not scores="pmi": leave screen out')


def _finite(entries: Entries) -> Entries:
    """Without those n-grams that were left out, where fewer are left than were asked for."""
    kept = entries[2] > -math.inf
    return entries if bool(kept.all()) else tuple(part[kept] for part in entries)  # type: ignore[return-value]


def _places(table: PathTable, first: Tokens | None, second: Tokens | None, rows: Any) -> list[Tensor | None]:
    """The tokens of each place of a context, sorted, so that the order of rows is that of their ids."""
    if rows is not None:
        first, second = _old_rows(table, first, second, rows)
    if table.n == 2 and second is not None:
        raise InputError("second= is the second token of a context of two: it needs n=3")
    wanted = {"first": first, "second": second}
    return [None if given is None else _tokens(table, given, name) for name, given in wanted.items()][: table.n - 1]


def _old_rows(table: PathTable, first: Any, second: Any, rows: Any) -> tuple[Tokens | None, Tokens | None]:
    """What `rows=` stood for before it was `first=` and `second=`."""
    if first is not None or second is not None:
        raise InputError("ngrams takes first= and second=, whose old name is rows=: leave rows out")
    warnings.warn("ngrams(rows=) is now called first=, and second= for n=3", DeprecationWarning, stacklevel=6)
    if table.n == 2:
        return rows, None
    if isinstance(rows, str | Tensor) or len(rows) != 2:
        raise InputError("with n=3 there are two tokens before the next one: give first=, second= or both")
    return rows[0], rows[1]


def _tokens(table: PathTable, given: Any, name: str) -> Tensor:
    """Token ids, each once and sorted."""
    listed = [given] if isinstance(given, str) else whole_numbers(given, name) if isinstance(given, Tensor) else given
    if strange := [item for item in listed if not isinstance(item, Integral | str) or isinstance(item, bool)]:
        raise InputError(f"{name} holds {quoted(strange[0])}, which is neither a token id nor a text")
    tokenizer = table.subject.tokenizer
    ids = [
        encode_token(tokenizer, item, "place of a context") if isinstance(item, str) else int(item) for item in listed
    ]
    wrong = next((token for token in ids if not 0 <= token < table.tokens), None)
    if wrong is not None or not ids:
        seen = "none" if wrong is None else str(wrong)
        raise InputError(f"{name} holds token ids from 0 to {table.tokens - 1}, one or more, not {seen}")
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
