"""Terms by size: what the terms of an expansion say on a prompt, the largest first.

Of recipes whose chains are expansions each (`lens`, `path`), the orders of a chain add up and different chains do not:
their rows are sums up to the order that is named, in the order of the expansion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jetgraph.algebra.advice import of_remainder
from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.outline import Split
from jetgraph.algebra.paths import Path
from jetgraph.algebra.scores import PathScores
from jetgraph.algebra.selection import Pattern, select
from jetgraph.applications.bars import bars
from jetgraph.applications.distances import centred, cosine, divergence, norm, relative_remainder
from jetgraph.applications.lenses.points import token_ids
from jetgraph.applications.ranking import row_top
from jetgraph.applications.readout import token_text, token_texts, top_tokens
from jetgraph.applications.results import Cell, Result, Shown
from jetgraph.applications.subject import (
    DIRECTION,
    Inputs,
    Model,
    Subject,
    expanded,
    is_vocabulary,
    last_tokens,
    own_direction,
)
from jetgraph.compilation import Ledger, PathValues, compile
from jetgraph.errors import BudgetError, InputError, amount, big, check, renamed
from jetgraph.export.precision import own_types
from jetgraph.residual import one_look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PATH_BUDGET = 10_000
"""How many terms are told one by one."""

TERM_BYTES = 2**26
"""Bytes of logits of terms that are measured at once, which takes some times as much."""

SAYS = 3
"""Tokens that a term's largest logits are told of."""


@dataclass(frozen=True)
class Term:
    """One term on one input, at the position that is looked at."""

    path: str
    example: int
    norm: float
    """‖centred logits‖."""
    cosine: float
    """With the model's own centred logits."""
    kl: float
    """KL(model ‖ term) in nats."""
    remainder: float
    """‖model − term‖ / ‖model‖ of centred logits."""
    share: float
    """The centred logit of the model's top token; of features, their length along the direction of the output."""
    says: str
    """The tokens of its largest logits."""


@dataclass(frozen=True, eq=False, repr=False)
class Terms(Result):
    """Terms of an expansion by size. Made by `terms`."""

    model: str
    recipe: str
    alone: bool
    """Each chain is an expansion of its own, and its rows are sums of its orders."""
    terms: tuple[Term, ...]
    """By example, largest first; with `alone`, in the order of the expansion."""
    output: Tensor
    """The model's own logits [example, vocabulary], at the position that is looked at."""
    total: Tensor
    """Σ of the terms, in float64; as `output`."""
    tokenizer: Any | None
    """None where the output is no vocabulary."""
    remainders: Ledger | None = None
    """What each site leaves besides its terms, at all positions; None where some terms are not among these."""
    read: tuple[tuple[int, str], ...] = ()
    """By example, the position that is looked at and the token there; −1 and nothing where there are no positions."""
    direction: Tensor | None = None
    """That of the output [example, features], where it is features, which say no tokens."""

    @property
    def title(self) -> str:
        order = "sums of each chain" if self.alone else "by size"
        return f"{amount(len(self.terms), 'term')} of {self.model}, {self.recipe}, {order}, at the last position"

    @property
    def note(self) -> str:
        """What the terms leave of the output, where they are all of them and it is much."""
        left = "" if self.remainders is None else of_remainder(float(self.rest.max()))
        features = "" if self.direction is None else f"share: what a term gives along the {DIRECTION}"
        return "; ".join(part for part in (features, left) if part)

    def shown(self) -> Shown:
        """The largest first."""
        names = (
            ("path", "cosine", "kl", "remainder", "says") if self.alone else ("norm", "path", "cosine", "share", "says")
        )
        return Shown(("example", *names) if len(self.output) > 1 else names)

    @property
    def rest(self) -> Tensor:
        """‖output − total‖ / ‖output‖ of centred logits, [example]: what the terms leave of the output."""
        return relative_remainder(self.output, self.total)

    @property
    def says(self) -> tuple[str, ...]:
        """By example, the tokens of the model's own largest logits; nothing of features."""
        if self.direction is not None:
            return ("",) * len(self.output)
        return tuple(top_tokens(row, self.tokenizer, SAYS) for row in self.output)

    @property
    def best(self) -> tuple[str, ...]:
        """By example, what `Term.share` is of: the model's top token, or the direction of its features."""
        if self.direction is not None:
            return (DIRECTION,) * len(self.output)
        return tuple(token_text(self.tokenizer, int(row.argmax())) for row in self.output)

    def scores(self, example: int = 0) -> PathScores:
        """The `share` of each term, for `jetgraph.path_graph`. With `alone`, of each the part of its own order.

        Raises
        ------
        InputError
            An example that is not there.
        """
        check(Terms.scores, locals())
        if not 0 <= example < len(self.output):
            raise InputError(f"there are examples 0..{len(self.output) - 1}, so example={example} is none")
        by_path: dict[str, float] = {}
        chains: dict[tuple[str, ...], float] = {}
        for term in self.terms:
            if term.example == example:
                chain = tuple(hop.alias for hop in Path.parse(term.path).hops)
                by_path[term.path] = term.share - (chains.get(chain, 0.0) if self.alone else 0.0)
                chains[chain] = term.share
        position, token = self.read[example] if self.read else (-1, "")
        row = self.output[example]
        total = centred(row)[row.argmax()] if self.direction is None else (row.double() * self.direction[example]).sum()
        return PathScores(by_path, float(total), self.best[example], position, token)

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """A row per example and term; see `Term` for what each column is. Features have no `kl`, and say no tokens."""
        names = ("example", "norm", "path", "cosine", "kl", "remainder", "share", "says")
        if self.direction is not None:
            names = ("example", "norm", "path", "cosine", "remainder", "share")
        return {name: [getattr(term, name) for term in self.terms] for name in names}

    def figure(self) -> Figure:
        """Bars: the norms of the largest terms of the first example."""
        shown = sorted((term for term in self.terms if term.example == 0), key=lambda term: -term.norm)
        return bars(
            [(f"{term.path}   {term.says}".rstrip(), term.norm) for term in shown], self.title, "‖centred logits‖"
        )


@renamed(paths="path")
@torch.no_grad()
@own_types()
@one_look()
def terms(
    model: Model | Expansion,
    inputs: Inputs,
    path: Pattern | None = None,
    *,
    split: Split | None = None,
    tokenizer: Any | None = None,
) -> Terms:
    """What the terms of an expansion predict on a prompt, at the last token of each row.

    Parameters
    ----------
    model
        An expansion; or a model or graph, whose components with all norms held are then the terms (direct logit
        attribution).
    inputs
        A prompt, prompts, token ids, or inputs by name.
    path
        What `jetgraph.select` takes; all terms unless given.
    split
        Branches of a model to cut first, as in `jetgraph.expand`.
    tokenizer
        For texts; a model given by name brings its own.

    Returns
    -------
    Terms
        Largest norm of centred logits first; of equal ones, the first of the expansion.

    Raises
    ------
    InputError
        Inputs that do not fit, an output that is no logits, or a split of what is expanded already.
    SelectionError
        No path matches.
    BudgetError
        More than `PATH_BUDGET` terms.

    >>> components = terms("demo", "Raise Value")
    >>> bool(components.rest < 1e-5)
    True
    """
    check(terms, locals())
    subject, expansion = expanded(model, inputs, split, tokenizer, path)
    chosen = select(expansion, "**" if path is None else path)
    if chosen.count() > PATH_BUDGET and not expansion.chooses:
        raise BudgetError(
            f"{big(chosen.count())} terms are selected, more than the {PATH_BUDGET:,} that are told one by one: take "
            "so many at most (--limit), their sums by class (spectrum), components (attribute), or the largest (rank)"
        )
    given = subject.inputs(inputs)
    shape = subject.run(given).shape(subject.graph.traced.output)
    last = last_tokens(subject.graph, given, shape[:-1])
    values = compile(expansion, chosen, budget=PATH_BUDGET).at(_places(shape, last), **given)
    listed = list(values.hidden)
    output = values.output.reshape(shape[0], shape[-1])
    direction = own_direction(subject.graph, output)
    own = subject.tokenizer if is_vocabulary(subject.graph, output.shape[-1], subject.tokenizer) else None
    alone = expansion.recipe in ("lens", "path")
    total = torch.zeros_like(output, dtype=torch.float64)
    rows: list[Term] = []
    sums: dict[tuple[str, ...], Tensor] = {}
    for some, logits in _logits(values, listed, output):
        total += logits.sum(0)
        if alone:
            for path, row in zip(some, logits, strict=True):
                chain = tuple(hop.alias for hop in path.hops)
                sums[chain] = row.add_(sums[chain]) if chain in sums else row
        rows += _told(some, output, logits, own, direction)
    rows.sort(key=lambda term: (term.example, 0.0 if alone else -term.norm))
    return Terms(
        subject.graph.title,
        f"{expansion.recipe} of order {expansion.order}",
        alone,
        tuple(rows),
        output,
        total,
        own,
        values.remainders if not alone and len(listed) == expansion.count() else None,
        tuple(_read(subject, given, shape, last)),
        direction,
    )


def _read(
    subject: Subject, inputs: Mapping[str, Any], shape: Sequence[int], last: Tensor | None
) -> Iterator[tuple[int, str]]:
    """By example, the position that is looked at, and the token there."""
    if len(shape) == 2:
        yield from [(-1, "")] * shape[0]
        return
    ids = token_ids(subject.graph, inputs, shape[:2])
    for row in range(shape[0]):
        place = shape[1] - 1 if last is None else int(last[row])
        yield place, "" if ids is None else token_text(subject.tokenizer, int(ids[row, place]))


def _places(shape: Sequence[int], last: Tensor | None) -> Tensor | int | None:
    if len(shape) not in (2, 3):
        raise InputError(
            f"the output has shape {list(shape)}, but logits are [batch, classes] or [batch, position, vocabulary]: "
            "name the output when you trace the model"
        )
    return None if len(shape) == 2 else -1 if last is None else last


def _logits(values: PathValues, paths: Sequence[Path], output: Tensor) -> Iterator[tuple[Sequence[Path], Tensor]]:
    """Terms with their logits [term, example, vocabulary], in float64, some at a time."""
    size = max(1, TERM_BYTES // (output.numel() * 8))
    for start in range(0, len(paths), size):
        some = paths[start : start + size]
        # A copy where it is of that type already: sums are made in it.
        yield some, values.each(some).view(len(some), *output.shape).to(torch.float64, copy=True)


def _told(
    paths: Sequence[Path], output: Tensor, logits: Tensor, tokenizer: Any | None, direction: Tensor | None
) -> Iterator[Term]:
    best = output.argmax(-1, keepdim=True).expand(len(paths), -1, 1)
    share = centred(logits).gather(-1, best)[..., 0] if direction is None else (logits * direction).sum(-1)
    measured = torch.stack(
        [
            norm(logits),
            cosine(output, logits),
            divergence(output, logits),
            relative_remainder(output, logits),
            share,
        ],
        dim=-1,
    )
    _, largest = row_top(logits.flatten(0, 1), min(SAYS, logits.shape[-1]))
    told = iter(largest.tolist())
    for path, numbers in zip(paths, measured.tolist(), strict=True):
        for example, (size, angle, kl, remainder, share) in enumerate(numbers):
            says = token_texts(tokenizer, next(told)) if direction is None else ""
            yield Term(str(path), example, size, angle, kl, remainder, share, says)
