"""What a model learns when: a path's n-grams at each checkpoint against those of the last one."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from jetgraph.algebra.selection import Pattern
from jetgraph.applications.comparing.vocabularies import check_sizes, check_tokenizers
from jetgraph.applications.comparing.walking import Contexts, contexts_of, path_text, rows_of, short_name
from jetgraph.applications.ngrams.budget import check_top
from jetgraph.applications.ngrams.choosing import DIRECT
from jetgraph.applications.ngrams.mass import ngram_mass
from jetgraph.applications.ngrams.table import PathTable
from jetgraph.applications.ranking import RunningTop
from jetgraph.applications.results import Cell, Result
from jetgraph.applications.subject import Model, Subject, subject
from jetgraph.errors import InputError, amount, check
from jetgraph.export.precision import own_types
from jetgraph.files.writing import read_text
from jetgraph.layout.colours import TAKES
from jetgraph.loading import Loaded
from jetgraph.residual import ResidualGraph
from jetgraph.scale.shards import alone, each, is_sharded
from jetgraph.scale.states import Record, digest_of_files, digest_of_model, digest_of_tensors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Checkpoint = Model | PathLike[str] | Callable[[], Model]
"""A model, a name of one, or a function that makes one when its turn comes."""


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory(Result):
    """What a path's n-grams look like at each checkpoint, against those of the last one."""

    path: str
    number: int
    """K: number of the last checkpoint's n-grams that the others are held against."""
    contexts: int
    names: tuple[str | float, ...]
    hit_ratio: tuple[float, ...]
    mass: tuple[float, ...]
    entropy: tuple[float, ...]
    keyword_mass: tuple[float, ...] | None = None

    @property
    def title(self) -> str:
        """What was followed."""
        return (
            f"{amount(len(self.names), 'checkpoint')} against the last one, by its {self.number:,} most probable "
            f"n-grams over {amount(self.contexts, 'context')} along {self.path}"
        )

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """checkpoint, hit_ratio, mass, entropy in nats, and keyword_mass where keywords were given."""
        columns: dict[str, Sequence[Cell]] = {
            "checkpoint": list(self.names),
            "hit_ratio": self.hit_ratio,
            "mass": self.mass,
            "entropy": self.entropy,
        }
        return columns if self.keyword_mass is None else {**columns, "keyword_mass": self.keyword_mass}

    def figure(self) -> Figure:
        """Curves over the checkpoints: hit ratio and masses on one panel, entropy on the other."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        numbers = all(isinstance(name, int | float) for name in self.names)
        places = list(self.names) if numbers else list(range(len(self.names)))
        left.plot(places, self.hit_ratio, "o-", label=f"hit ratio at {self.number}")
        left.plot(places, self.mass, "s-", label="mass on the last one's n-grams")
        if self.keyword_mass is not None:
            left.plot(places, self.keyword_mass, "^-", label="mass on the keywords")
        left.set_ylim(-0.02, 1.04)
        left.set_ylabel("share")
        left.legend(fontsize=8)
        right.plot(places, self.entropy, "o-", color=TAKES)
        right.set_ylabel("entropy of P(next | context), nats, mean")
        for axes in (left, right):
            axes.set_xlabel("training step" if numbers else "checkpoint")
            axes.grid(alpha=0.3)
            if not numbers:
                axes.set_xticks(places, [str(name) for name in self.names], rotation=30, ha="right", parse_math=False)
        figure.suptitle(f"n-grams along {self.path} over training", fontsize=11, parse_math=False)
        return figure


@torch.no_grad()
@own_types()
def trajectory(
    checkpoints: Sequence[Checkpoint],
    *,
    path: Pattern = DIRECT,
    top: int = 1000,
    names: Sequence[str | float] | None = None,
    keywords: str | PathLike[str] | Sequence[str] | None = None,
    contexts: Contexts | None = None,
    memory: int = 2**28,
    tokenizer: Any | None = None,
) -> Trajectory:
    """How a path's n-grams develop over training towards those of the last checkpoint.

    With P_t(b | a) the table of checkpoint t and F the K = `top` pairs a b that are most probable at the last one:

    - hit ratio: |top-K pairs of P_t ∩ F| / K.
    - mass: the mean, over the contexts a that occur in F, of Σ P_t(b | a) over the b that F lists after a.
    - entropy: the mean over all contexts of −Σ_b P_t(b | a) ln P_t(b | a).
    - keyword mass: the probability that the table, as a Markov chain behind a random token, writes one of the keywords
      next: the `total` of `jetgraph.ngram_mass`.

    Parameters
    ----------
    checkpoints
        In the order of training. A name, a folder, or a function that returns a model is loaded when its turn comes and
        released after it, so that no more than two are in memory.
    path
        A path or patterns over the recipe `path`.
    keywords
        A text file with a word in each line, or a list of words.
    names
        What the checkpoints are called; numbers are taken as training steps. Folder names or numbers unless given.
    contexts, memory, tokenizer
        As in `diff`.

    Raises
    ------
    InputError
        No checkpoint, names of another number, or checkpoints that do not share a vocabulary.

    Source: the paper's experiment on pre-training dynamics, arXiv 2410.06024; it leaves the mass's normalisation open.
    """
    check(trajectory, locals())
    if not checkpoints:
        raise InputError("there is no checkpoint to follow: give at least one")
    if names is not None and len(names) != len(checkpoints):
        raise InputError(f"{amount(len(names), 'name')} for {amount(len(checkpoints), 'checkpoint')}: give each one")
    if top < 1:
        raise InputError(f"top={top} keeps no n-gram: give 1 or more")
    labels = tuple(names) if names is not None else tuple(map(_label, checkpoints, range(len(checkpoints))))
    followed = _Followed(checkpoints, labels, path, top, keywords, contexts, memory, tokenizer)
    rows = followed.snapshots()
    final, *others = rows
    rows = [*others, final]
    return Trajectory(
        path=final.path,
        number=len(final.entries),
        contexts=final.contexts,
        names=labels,
        hit_ratio=tuple(len(row.entries & final.entries) / len(final.entries) for row in rows),
        mass=tuple(row.mass for row in rows),
        entropy=tuple(row.entropy for row in rows),
        keyword_mass=None if keywords is None else tuple(row.keywords for row in rows),
    )


class _Followed:
    """Checkpoints whose turn comes one after the other; each is a unit of a job that is divided."""

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        labels: Sequence[str | float],
        path: Pattern,
        top: int,
        keywords: str | PathLike[str] | Sequence[str] | None,
        contexts: Contexts | None,
        memory: int,
        tokenizer: Any | None,
    ) -> None:
        self._checkpoints, self._labels, self._tokenizer = checkpoints, labels, tokenizer
        self._path, self._top, self._keywords, self._contexts, self._memory = path, top, keywords, contexts, memory
        # The last one comes first, for the others are held against its n-grams.
        self._order = [len(checkpoints) - 1, *range(len(checkpoints) - 1)]
        self._shared: tuple[Any | None, int] | None = None
        self._final: _Snapshot | None = None
        self._divided = is_sharded()
        self._told: dict[str, str] = {}

    def snapshots(self) -> list[_Snapshot]:
        """All of them, the last one first. A shard looks at the last one too, whoever keeps it."""
        if self._divided:
            with alone():
                self._last()
        records = each("checkpoints", len(self._order), self._record, lambda: self._told, of="checkpoints")
        return [_Snapshot.read(record) for record in records()]

    def _record(self, unit: int) -> Record:
        final = self._last()
        return final.record() if unit == 0 else self._look(self._order[unit], final).record()

    def _last(self) -> _Snapshot:
        if self._final is None:
            self._final = self._look(self._order[0], None)
        return self._final

    def _look(self, index: int, final: _Snapshot | None) -> _Snapshot:
        side = _opened(self._checkpoints[index], self._tokenizer)
        table = PathTable(side.graph, self._path, tokenizer=side.tokenizer, memory=max(1, self._memory // 2))
        if self._shared is None:
            self._shared = side.tokenizer, table.vocabulary
        pair = (str(self._labels[-1]), str(self._labels[index]))
        check_tokenizers(self._shared[0], side.tokenizer, pair)
        check_sizes(self._shared[1], table.vocabulary, pair)
        chosen = contexts_of(self._contexts, table.tokens)
        if final is None and self._divided:
            words = read_text(self._keywords) if isinstance(self._keywords, PathLike) else self._keywords
            marks = list(zip(map(str, self._labels), map(_mark, self._checkpoints), strict=True))
            options = (self._top, words, chosen.tolist(), self._memory, marks)
            self._told = {
                "last checkpoint": table.fingerprint,
                "checkpoints and options": sha256(repr(options).encode()).hexdigest(),
            }
        snapshot = _snapshot(table, self._top, chosen, self._memory, final)
        if self._keywords is not None:
            snapshot = replace(snapshot, keywords=ngram_mass(table, self._keywords).total)
        return snapshot


@dataclass(frozen=True)
class _Snapshot:
    """One checkpoint's table in short."""

    path: str
    contexts: int
    entries: frozenset[tuple[int, int]]
    """Its K most probable pairs."""
    mass: float
    entropy: float
    keywords: float = math.nan

    def record(self) -> Record:
        """As tensors."""
        return {
            "path": torch.tensor(list(self.path.encode()), dtype=torch.uint8),
            "contexts": torch.tensor(self.contexts),
            "entries": torch.tensor(sorted(self.entries)),
            "numbers": torch.tensor([self.mass, self.entropy, self.keywords], dtype=torch.float64),
        }

    @classmethod
    def read(cls, record: Record) -> _Snapshot:
        """What `record` gave."""
        entries = frozenset((int(a), int(b)) for a, b in record["entries"].tolist())
        path = bytes(record["path"].tolist()).decode()
        return cls(path, int(record["contexts"]), entries, *record["numbers"].tolist())


def _snapshot(table: PathTable, top: int, contexts: Tensor, memory: int, final: _Snapshot | None) -> _Snapshot:
    check_top(top, len(contexts) * table.vocabulary)
    best = RunningTop(top)
    pairs = torch.tensor(sorted(final.entries)) if final is not None else torch.empty(0, 2, dtype=torch.long)
    entropy = mass = 0.0
    for ids, (logits,) in rows_of([table], contexts, memory, path_text(table)):
        log_p = logits.double().log_softmax(-1)
        p = log_p.exp()
        entropy += float(torch.special.entr(p).sum())
        best.add(ids, log_p)
        row_of = torch.full((table.tokens,), -1)
        row_of[ids] = torch.arange(len(ids))
        here = pairs[row_of[pairs[:, 0]] >= 0]
        mass += float(p[row_of[here[:, 0]].to(p.device), here[:, 1].to(p.device)].sum())
    entries = list(zip(best.rows.tolist(), best.columns.tolist(), strict=True))
    if final is None:
        mass = float(best.values.exp().sum())
    listed = {a for a, _ in (entries if final is None else final.entries)}
    return _Snapshot(path_text(table), len(contexts), frozenset(entries), mass / len(listed), entropy / len(contexts))


def _opened(checkpoint: Checkpoint, tokenizer: Any | None) -> Subject:
    if isinstance(checkpoint, nn.Module | ResidualGraph | Loaded | str | PathLike):
        return subject(checkpoint, tokenizer=tokenizer)
    return subject(checkpoint(), tokenizer=tokenizer)


def _mark(checkpoint: Checkpoint) -> str:
    """What tells a checkpoint apart without loading it; nothing does of a function."""
    if isinstance(checkpoint, str | PathLike):
        return digest_of_files(checkpoint) if os.path.exists(checkpoint) else str(checkpoint)
    held = (checkpoint.graph or checkpoint.model) if isinstance(checkpoint, Loaded) else checkpoint
    if isinstance(held, ResidualGraph):
        return digest_of_model(held)
    return digest_of_tensors(held.state_dict()) if isinstance(held, nn.Module) else ""


def _label(checkpoint: Checkpoint, index: int) -> str:
    if isinstance(checkpoint, str | PathLike):
        return short_name(str(checkpoint))
    return checkpoint.name if isinstance(checkpoint, Loaded) else str(index)
