"""Bi-gram tables of a model against the bi-gram counts of a corpus."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jetgraph.applications.intervals import bootstrap, check_bootstrap
from jetgraph.applications.ngrams.choosing import DIRECT, single_mlps
from jetgraph.applications.ngrams.counts import Counts, Texts, corpus_rows
from jetgraph.applications.ngrams.table import PathTable, own_logits
from jetgraph.applications.results import Cell, Result, Shown
from jetgraph.applications.subject import Model, Subject, subject
from jetgraph.errors import InputError, amount, check, quoted, renamed
from jetgraph.export.precision import own_types
from jetgraph.layout.colours import GIVES, OTHER

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
            f"bi-grams of {self.model} against {self.pairs:,} of a corpus, mean over "
            f"{amount(self.contexts[0], 'context')} that occur {amount(self.minimum, 'time')} or more"
        )

    def value(self, path: str, measure: str) -> tuple[float, float, float]:
        """Mean and interval of one measure for one path.

        Raises
        ------
        InputError
            An unknown one.
        """
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

    def shown(self) -> Shown:
        """All rows, in their order."""
        return Shown(counts=("contexts",))

    def figure(self) -> Figure:
        """Mean and interval of every path, in a panel per measure."""
        from matplotlib.figure import Figure

        height = 1.6 + 0.3 * len(self.paths)
        figure = Figure(figsize=(3.2 + 2.2 * len(self.measures), height), layout="constrained")
        panels = figure.subplots(1, len(self.measures), sharey=True, squeeze=False)[0]
        place = list(range(len(self.paths)))
        for column, (axes, measure) in enumerate(zip(panels, self.measures, strict=True)):
            middle, low, high = (ends[:, column].numpy() for ends in (self.values, self.low, self.high))
            colours = [OTHER if path in _REFERENCES else GIVES for path in self.paths]
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


@renamed(paths="path", corpus="texts")
@torch.no_grad()
@own_types()
def ngram_agreement(
    model: Model | Subject,
    texts: Texts,
    *,
    path: str | Sequence[str] | None = None,
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
    texts
        Token ids, in one row [tokens] or in rows [rows, tokens] that do not follow one another; or texts, of which each
        is a row: in memory, in the path of a text file, .jsonl or .parquet, or as `open_corpus` gives them. Files and
        data sets are read once, and only the bi-grams that differ are kept.
    path
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
    studied = model if isinstance(model, Subject) else subject(model, tokenizer=tokenizer)
    rows = corpus_rows(texts, tokenizer if tokenizer is not None else studied.tokenizer)
    if path is None:
        path = [DIRECT, *single_mlps(studied.graph)]
    paths = [path] if isinstance(path, str) else list(path)
    if not paths:
        raise InputError("there is no path to compare: name one, or leave path out")
    tables = [PathTable(studied, one, memory=memory) for one in paths]
    counts = Counts(rows, tables[0], minimum)
    scorers: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        (one, table.logits) for one, table in zip(paths, tables, strict=True)
    ]
    unigram = counts.unigram(tables[0].vocabulary)
    scorers.append(("unigram", lambda contexts: unigram.expand(len(contexts), -1)))
    scorers.append(("model", lambda contexts: own_logits(tables[0], contexts)))
    measures = (*(f"hit@{number}" for number in top), "spearman")
    # All are looked at before the first is asked for, which may be in other shards.
    every = torch.stack([studied() for studied in [counts.compare(name, scorer, top) for name, scorer in scorers]])
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
        studied.graph.title,
    )


def _intervals(values: Tensor, resamples: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means over contexts of [paths, contexts, measures] and their 95 % percentile bootstrap intervals."""
    known = (~values.isnan()).double()
    filled = values.nan_to_num(0.0)
    low, high = bootstrap(filled.transpose(0, 1).numpy(), known.transpose(0, 1).numpy(), resamples, seed)
    return filled.sum(1) / known.sum(1), torch.from_numpy(low), torch.from_numpy(high)
