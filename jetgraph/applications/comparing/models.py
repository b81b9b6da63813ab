"""What distinguishes two models: n-gram tables, paths and weights side by side.

The tables are `jetgraph.PathTable`: the next-token distribution P(b | a) that a path gives after a context a, by itself
and without data.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jetgraph.algebra.expansion import expand
from jetgraph.algebra.selection import Pattern, select
from jetgraph.applications.comparing.ngram_changes import SHOWN_NGRAMS, NgramChanges, changes_of
from jetgraph.applications.comparing.path_distances import Distances, PathDistances
from jetgraph.applications.comparing.site_changes import SiteChanges, site_changes
from jetgraph.applications.comparing.vocabularies import check_sizes, check_tokenizers
from jetgraph.applications.comparing.walking import Contexts, contexts_of, path_text, rows_of, titles
from jetgraph.applications.ngrams.budget import check_top
from jetgraph.applications.ngrams.choosing import DIRECT, single_mlps
from jetgraph.applications.ngrams.contexts import chunks_of
from jetgraph.applications.ngrams.fitting import without_ngrams
from jetgraph.applications.ngrams.table import PathTable
from jetgraph.applications.ranking import RunningTop
from jetgraph.applications.results import Cell, Result
from jetgraph.applications.subject import Model, Subject, subject
from jetgraph.errors import InputError, amount, big, check, renamed
from jetgraph.export.precision import own_types
from jetgraph.export.waiting import progress, say
from jetgraph.residual import one_look
from jetgraph.scale.shards import each
from jetgraph.scale.states import Record, digest_of_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure


ENTRIES = 2 * 10**8
"""Probabilities of each model that are compared unless contexts are named: a minute or so of one core."""

LEAST = 30
"""Contexts of a sample at least."""


@dataclass(frozen=True, eq=False, repr=False)
class ModelDiff(Result):
    """Two models side by side; the table is the one of n-grams, the other two are `paths` and `sites`.

    Of models that have no n-grams, such as encoders, there is `sites` alone, and the table is that.
    """

    ngrams: NgramChanges
    paths: PathDistances
    sites: SiteChanges

    @property
    def parts(self) -> tuple[NgramChanges | PathDistances | SiteChanges, ...]:
        """The tables that there are, the first of which is the one that this is."""
        return (self.sites,) if self.ngrams.none else (self.ngrams, self.paths, self.sites)

    @property
    def title(self) -> str:
        """What was compared."""
        return self.parts[0].title

    @property
    def note(self) -> str:
        """What there is to say of n-grams: that there are none, or that they are of a sample."""
        return self.ngrams.note

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """The columns of `ngrams`; of `sites` where there are none."""
        return self.parts[0].columns()

    def figure(self) -> Figure:
        """Three panels: n-grams, paths, weights; or that of weights."""
        from matplotlib.figure import Figure

        if self.ngrams.none:
            return self.sites.figure()
        rows = max(2 * SHOWN_NGRAMS, 2 * len(self.paths.rows), len(self.sites.rows))
        figure = Figure(figsize=(17, 1.8 + 0.22 * rows), layout="constrained")
        for part, axes in zip(self.parts, figure.subplots(1, 3), strict=True):
            part.draw(axes)
        one, other = self.ngrams.names
        figure.suptitle(f"{other} against {one}, {amount(self.ngrams.contexts, 'context')}", parse_math=False)
        return figure

    def __repr__(self) -> str:
        return "\n\n".join([*([self.note] if self.ngrams.none else []), *map(repr, self.parts)])

    def _repr_html_(self) -> str:
        said = f"<p>{html.escape(self.note)}</p>" if self.ngrams.none else ""
        return said + "".join(part._repr_html_() for part in self.parts)


@renamed(paths="path")
@torch.no_grad()
@own_types()
@one_look()
def diff(
    model_a: Model,
    model_b: Model,
    *,
    path: Pattern = DIRECT,
    top: int = 50,
    contexts: Contexts | None = None,
    memory: int = 2**28,
    tokenizer: Any | None = None,
) -> ModelDiff:
    """What changed between two models: n-grams, paths and weights. No data is needed.

    Of models that have no n-grams, such as encoders, the weights alone are compared.

    - n-grams: with P the table of `path` (see `PathTable`: softmax of the mean over the selected order-0 paths), the
      pairs a b with the largest P_b(b | a) − P_a(b | a), and those with the smallest, over the whole vocabulary.
    - paths: for each selected path, the direct one, and the one through each single MLP, means over the contexts of
      total variation ½ Σ_b |P_b − P_a|, Jensen–Shannon divergence in nats, and 1 − cosine of the centred logits.
    - sites: ‖W_b − W_a‖_F / ‖W_a‖_F over all parameters that a site's code reads, and those of sources, projecting
      skips and the decoder. Weights that several of them share, such as a tied unembedding, count at each.

    Parameters
    ----------
    path
        A path or patterns over the recipe `path`, which have to match in both models.
    top
        How many n-grams of each kind are kept.
    contexts
        Token ids a to look at, or how many of them, spread evenly over the vocabulary. Unless given all of them, where
        these are `ENTRIES` probabilities of each model at most over all paths, else as many as that are; means over a
        sample have intervals. Tokens that never occur in training have tables too, which change with nothing to learn
        from: name the contexts that matter to leave them out.
    memory
        Bytes that the comparison may take above the models themselves.
    tokenizer
        For the texts; the models' own unless given.

    Raises
    ------
    InputError
        The models do not share a vocabulary: the first tokens that differ are shown; or paths or contexts of n-grams
        are asked for, and one of the models has none.
    SelectionError
        A path that one of the models does not have.
    """
    check(diff, locals())
    if top < 1:
        raise InputError(f"top={top} keeps no n-gram: give 1 or more")
    one, other = subject(model_a, tokenizer=tokenizer), subject(model_b, tokenizer=tokenizer)
    names = titles(one, other)
    if none := without_ngrams(one) or without_ngrams(other):
        if path != DIRECT or contexts is not None:
            raise InputError(f"{none}; without path= and contexts=, weights alone are compared")
        return _of_weights(one, other, names, none)
    check_tokenizers(one.tokenizer, other.tokenizer, names)
    tables = _tables((one, other), path, memory, names)
    tokens = min(table.tokens for table in tables)
    single = _single_paths(one, other, tables[0])
    label = path_text(tables[0])
    compared_paths = len({label, *(text for text, shared in single.items() if shared)})
    chosen, sampled = _sample(contexts, tokens, compared_paths, tables[0].vocabulary)
    check_top(top, len(chosen) * tables[0].vocabulary)

    def identity() -> dict[str, str]:
        models = {"model a": digest_of_model(one.graph), "model b": digest_of_model(other.graph)}
        return {**models, "options": repr([label, top, memory, chosen.tolist()])}

    with progress(total=compared_paths * len(chosen), desc="comparing", unit="contexts") as bar:
        sums = {label: _compare(label, tables, chosen, memory, top, identity, bar.update)}
        for text, shared in single.items():
            if text not in sums and shared:
                some = _tables((one, other), text, memory, names)
                sums[text] = _compare(text, some, chosen, memory, 0, identity, bar.update)
    weights = site_changes(one.graph, other.graph, identity)
    # All were looked at before the first is asked for, which may be in other shards.
    compared = {text: of() for text, of in sums.items()}
    listed = dict.fromkeys([label, *single] if len(tables[0].paths) == 1 else single)
    distances = {text: compared[text][0] if text in compared else Distances() for text in listed}
    _, gained, lost = compared[label]
    return ModelDiff(
        NgramChanges(names, label, len(chosen), changes_of(gained), changes_of(lost), one.tokenizer, sampled),
        PathDistances(names, len(chosen), tuple(sums.row(text, sampled) for text, sums in distances.items())),
        SiteChanges(names, weights()),
    )


def _of_weights(one: Subject, other: Subject, names: tuple[str, str], none: str) -> ModelDiff:
    """What there is of two models of which one has no n-grams."""

    def identity() -> dict[str, str]:
        return {"model a": digest_of_model(one.graph), "model b": digest_of_model(other.graph), "options": "weights"}

    weights = site_changes(one.graph, other.graph, identity)
    return ModelDiff(
        NgramChanges(names, "", 0, (), (), one.tokenizer, none=none),
        PathDistances(names, 0, ()),
        SiteChanges(names, weights()),
    )


def _sample(contexts: Contexts | None, tokens: int, paths: int, vocabulary: int) -> tuple[Tensor, int]:
    """The contexts that are compared, and of how many tokens they are a sample; 0 where they are none.

    What is about to be done is said, for it may take long.
    """
    given = min(tokens, max(LEAST, ENTRIES // (paths * vocabulary))) if contexts is None else contexts
    chosen = contexts_of(given, tokens)
    sampled = tokens if isinstance(given, int | Integral) and len(chosen) < tokens else 0
    number = len(chosen)
    more = f"; --contexts {tokens} takes all, {tokens / number:.0f} times as long" if sampled else ""
    which = "all" if number == tokens else f"{number:,} of"
    entries = f"{big(number * paths * vocabulary)} probabilities of each model"
    say(f"comparing {which} {amount(tokens, 'context')} along {amount(paths, 'path')}: {entries}{more}")
    return chosen, sampled


def _tables(
    sides: tuple[Subject, Subject], paths: Pattern, memory: int, names: tuple[str, str]
) -> tuple[PathTable, PathTable]:
    one, other = (PathTable(side.graph, paths, tokenizer=side.tokenizer, memory=max(1, memory // 2)) for side in sides)
    check_sizes(one.vocabulary, other.vocabulary, names)
    return one, other


def _single_paths(one: Subject, other: Subject, table: PathTable) -> dict[str, bool]:
    """Paths to measure one by one, and whether both models have them."""
    graph = one.graph
    first, second = expand(graph, recipe="path"), expand(other.graph, recipe="path")
    texts = [str(path) for path in table.paths]
    if any(source.alias == "embed" for source in graph.outline.sources):
        for pattern in (DIRECT, *single_mlps(graph)):
            texts += [str(path) for path in select(first, pattern)]
    return {text: text in second for text in dict.fromkeys(texts)}


def _compare(
    stage: str,
    tables: tuple[PathTable, PathTable],
    contexts: Tensor,
    memory: int,
    top: int,
    identity: Callable[[], Mapping[str, str]],
    told: Callable[[int], object],
) -> Callable[[], tuple[Distances, RunningTop, RunningTop]]:
    """What gives the distances between two tables, and the entries that gained and lost most."""
    size = tables[0].chunk_rows

    def look(unit: int) -> Record:
        sums, gained, lost = Distances(), *_tops(top)
        for ids, logits in rows_of(tables, contexts[unit * size : (unit + 1) * size], memory):
            log_p, log_q = (value.double().log_softmax(-1) for value in logits)
            p, q = log_p.exp(), log_q.exp()
            sums.add(logits, log_p, log_q, p, q)
            del log_p, log_q
            if top:
                gained.add(ids, q - p, p, q)
                lost.add(ids, p - q, p, q)
            told(len(ids))
        return {"sums": torch.tensor(sums.numbers(), dtype=torch.float64)} | _held(gained, "+") | _held(lost, "-")

    records = each(stage, -(-len(contexts) // size), look, identity, of=chunks_of(size, len(contexts)))

    def whole() -> tuple[Distances, RunningTop, RunningTop]:
        sums, gained, lost = Distances(), *_tops(top)
        for record in records():
            sums = sums.plus(Distances.of(record["sums"].tolist()))
            for best, sign in ((gained, "+"), (lost, "-")) if top else ():
                best.take((record[f"rows{sign}"], record[f"columns{sign}"], record[f"values{sign}"]), record[sign])
        return sums, gained, lost

    return whole


def _tops(top: int) -> tuple[RunningTop, RunningTop]:
    return RunningTop(max(top, 1), above=0.0, carried=2), RunningTop(max(top, 1), above=0.0, carried=2)


def _held(best: RunningTop, sign: str) -> dict[str, Tensor]:
    names = zip(("rows", "columns", "values"), best.held, strict=True)
    return {f"{name}{sign}": value for name, value in names} | {sign: best.carried}
