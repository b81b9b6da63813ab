"""What distinguishes two models, and what a model learns when: n-gram tables, paths and weights side by side.

The tables are `jetgraph.applications.tables.PathTable`: the next-token distribution P(b | a) that a path gives after a
context a, by itself and without data. Two of them are walked through together, a few rows at a time, so that the whole
vocabulary is compared and never more than `memory` bytes of it are there at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from os import PathLike
from pathlib import Path as Folder
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from jetgraph.algebra.expansion import expand
from jetgraph.algebra.selection import Pattern, select
from jetgraph.applications.distances import cosine, jensen_shannon, total_variation
from jetgraph.applications.ngrams import ngram_mass
from jetgraph.applications.ranking import RunningTop
from jetgraph.applications.readout import token_text
from jetgraph.applications.results import Cell, Result
from jetgraph.applications.subject import Model, Subject, subject
from jetgraph.applications.tables import DIRECT, PathTable, check_top, single_mlps
from jetgraph.errors import InputError, check, quoted
from jetgraph.export.precision import own_types
from jetgraph.files.writing import is_folder
from jetgraph.loading import Loaded
from jetgraph.residual import ResidualGraph, whole_numbers
from jetgraph.structure.regions import MapStage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Contexts = Tensor | Sequence[int] | int
"""Token ids of the contexts a, or how many of them, spread evenly over the vocabulary."""

Checkpoint = Model | PathLike[str] | Callable[[], Model]
"""A model, a name of one, or a function that makes one when its turn comes."""

ARRAYS = 12
"""Arrays of float64, each of one value per entry, that comparing two tables holds at once."""

SHOWN_NGRAMS = 12
"""Bars of a kind that a figure of n-grams has."""


# Two models


@dataclass(frozen=True)
class NgramChange:
    """One n-gram a b in two models."""

    context: tuple[int, ...]
    token: int
    before: float
    """P_a(b | a)."""
    after: float
    """P_b(b | a)."""

    @property
    def change(self) -> float:
        """P_b(b | a) − P_a(b | a)."""
        return self.after - self.before


@dataclass(frozen=True, eq=False, repr=False)
class NgramChanges(Result):
    """The n-grams that gained most and lost most, largest change first."""

    names: tuple[str, str]
    path: str
    contexts: int
    """Number of contexts that were compared."""
    gained: tuple[NgramChange, ...]
    lost: tuple[NgramChange, ...]
    tokenizer: Any | None = field(default=None)

    @property
    def title(self) -> str:
        """What was compared."""
        one, other = self.names
        return (
            f"n-grams that {other} has gained and lost against {one}, over {self.contexts} contexts along {self.path}"
        )

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """kind, context, token, p_a, p_b, change = p_b − p_a, and the ids behind the texts."""
        rows = [("gained", one) for one in self.gained] + [("lost", one) for one in self.lost]
        return {
            "kind": [kind for kind, _ in rows],
            "context": [self._context(one) for _, one in rows],
            "token": [token_text(self.tokenizer, one.token) for _, one in rows],
            "p_a": [one.before for _, one in rows],
            "p_b": [one.after for _, one in rows],
            "change": [one.change for _, one in rows],
            "context_ids": [" ".join(map(str, one.context)) for _, one in rows],
            "token_id": [one.token for _, one in rows],
        }

    def figure(self) -> Figure:
        """Bars: the change of P(b | a) by n-gram."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 1.5 + 0.24 * len(self._bars())), layout="constrained")
        self.draw(figure.subplots())
        return figure

    def draw(self, axes: Any) -> None:
        """The bars, on matplotlib axes."""
        bars = self._bars()
        places = range(len(bars))
        axes.barh(places, [one.change for one in bars], color=["C2" if one.change > 0 else "C3" for one in bars])
        labels = [f"{self._context(one)} → {token_text(self.tokenizer, one.token)}" for one in bars]
        axes.set_yticks(places, labels, fontsize=8, parse_math=False)
        axes.invert_yaxis()
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel("change of P(next token | context)")
        axes.set_title(f"n-grams along {self.path}", fontsize=10, parse_math=False)

    def _bars(self) -> tuple[NgramChange, ...]:
        return (*self.gained[:SHOWN_NGRAMS], *reversed(self.lost[:SHOWN_NGRAMS]))

    def _context(self, one: NgramChange) -> str:
        return " ".join(token_text(self.tokenizer, index) for index in one.context)


@dataclass(frozen=True)
class Distance:
    """How far the tables of one path are from each other: means over contexts. None where one model lacks the path."""

    path: str
    total_variation: float | None
    jensen_shannon: float | None
    cosine_distance: float | None


@dataclass(frozen=True, eq=False, repr=False)
class PathDistances(Result):
    """Distance between the tables of two models, path by path."""

    names: tuple[str, str]
    contexts: int
    rows: tuple[Distance, ...]

    @property
    def title(self) -> str:
        """What was compared."""
        return f"distance of {self.names[1]} from {self.names[0]} by path, mean over {self.contexts} contexts"

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """path, total_variation in 0..1, jensen_shannon in nats (0..ln 2), cosine_distance in 0..2."""
        return {
            "path": [row.path for row in self.rows],
            "total_variation": [row.total_variation for row in self.rows],
            "jensen_shannon": [row.jensen_shannon for row in self.rows],
            "cosine_distance": [row.cosine_distance for row in self.rows],
        }

    def figure(self) -> Figure:
        """Bars: the three distances by path."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 1.6 + 0.45 * len(self.rows)), layout="constrained")
        self.draw(figure.subplots())
        return figure

    def draw(self, axes: Any) -> None:
        """The bars, on matplotlib axes."""
        columns = self.columns()
        labels = {
            "total_variation": "total variation",
            "jensen_shannon": "Jensen–Shannon (nats)",
            "cosine_distance": "1 − cosine of centred logits",
        }
        for index, (name, label) in enumerate(labels.items()):
            places = [place + 0.27 * (index - 1) for place in range(len(self.rows))]
            axes.barh(places, [math.nan if cell is None else cell for cell in columns[name]], 0.25, label=label)
        axes.set_yticks(range(len(self.rows)), columns["path"], fontsize=8, parse_math=False)
        axes.invert_yaxis()
        axes.set_xlabel("distance between the tables, mean over contexts")
        axes.set_xlim(left=0)
        axes.set_title("by path", fontsize=10)
        # Below the axes, where it covers no bar.
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False)


@dataclass(frozen=True)
class SiteChange:
    """How far the weights that a site, a source or a skip reads have moved."""

    site: str
    module: str
    parameters: int
    """Numbers in them."""
    change: float | None
    """‖W_b − W_a‖_F / ‖W_a‖_F over all of them together; None where names or shapes differ, or W_a is zero."""


@dataclass(frozen=True, eq=False, repr=False)
class SiteChanges(Result):
    """Relative change of the weights, site by site, in the order of the stream."""

    names: tuple[str, str]
    rows: tuple[SiteChange, ...]

    @property
    def title(self) -> str:
        """What was compared."""
        return f"relative change of weights from {self.names[0]} to {self.names[1]} by site"

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """site, module, parameters, change = ‖W_b − W_a‖ / ‖W_a‖."""
        return {
            "site": [row.site for row in self.rows],
            "module": [row.module for row in self.rows],
            "parameters": [row.parameters for row in self.rows],
            "change": [row.change for row in self.rows],
        }

    def figure(self) -> Figure:
        """Bars: the relative change by site."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 1.4 + 0.22 * len(self.rows)), layout="constrained")
        self.draw(figure.subplots())
        return figure

    def draw(self, axes: Any) -> None:
        """The bars, on matplotlib axes."""
        places = range(len(self.rows))
        axes.barh(places, [math.nan if row.change is None else row.change for row in self.rows], color="C0")
        axes.set_yticks(places, [row.site for row in self.rows], fontsize=8, parse_math=False)
        axes.set_ylim(len(self.rows) - 0.5, -0.5)
        axes.set_xlim(left=0)
        for place, row in enumerate(self.rows):
            if row.change is None:
                axes.text(0, place, " no weights of the same name and shape", va="center", fontsize=7, color="grey")
        axes.set_xlabel("‖W_b − W_a‖ / ‖W_a‖ (Frobenius)")
        axes.set_title("weights by site", fontsize=10)


@dataclass(frozen=True, eq=False, repr=False)
class ModelDiff(Result):
    """Two models side by side; the table is the one of n-grams, the other two are `paths` and `sites`."""

    ngrams: NgramChanges
    paths: PathDistances
    sites: SiteChanges

    @property
    def title(self) -> str:
        """What was compared."""
        return self.ngrams.title

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """The columns of `ngrams`."""
        return self.ngrams.columns()

    def figure(self) -> Figure:
        """Three panels: n-grams, paths, weights."""
        from matplotlib.figure import Figure

        rows = max(2 * SHOWN_NGRAMS, 2 * len(self.paths.rows), len(self.sites.rows))
        figure = Figure(figsize=(17, 1.8 + 0.22 * rows), layout="constrained")
        for part, axes in zip((self.ngrams, self.paths, self.sites), figure.subplots(1, 3), strict=True):
            part.draw(axes)
        one, other = self.ngrams.names
        figure.suptitle(f"{other} against {one}, {self.ngrams.contexts} contexts", parse_math=False)
        return figure

    def __repr__(self) -> str:
        return "\n\n".join(map(repr, (self.ngrams, self.paths, self.sites)))

    def _repr_html_(self) -> str:
        return "".join(part._repr_html_() for part in (self.ngrams, self.paths, self.sites))


@torch.no_grad()
@own_types()
def diff(
    model_a: Model,
    model_b: Model,
    *,
    paths: Pattern = DIRECT,
    top: int = 50,
    contexts: Contexts | None = None,
    memory: int = 2**28,
    tokenizer: Any | None = None,
) -> ModelDiff:
    """What has changed from one model to another: n-grams, paths, weights. No data is needed.

    - n-grams: with P the table of `paths` (see `PathTable`: softmax of the mean over the selected order-0 paths), the
      pairs a b with the largest P_b(b | a) − P_a(b | a), and those with the smallest, over the whole vocabulary.
    - paths: for each selected path, the direct one, and the one through each single MLP, means over the contexts of
      total variation ½ Σ_b |P_b − P_a|, Jensen–Shannon divergence in nats, and 1 − cosine of the centred logits.
    - sites: ‖W_b − W_a‖_F / ‖W_a‖_F over all parameters that a site's code reads, and those of sources, projecting
      skips and the decoder. Weights that several of them share, such as a tied unembedding, count at each.

    Parameters
    ----------
    paths
        A path or patterns over the recipe `path`, which have to match in both models.
    top
        How many n-grams of each kind are kept.
    contexts
        Token ids a to look at, or their number; the whole vocabulary unless given. Tokens that never occur in training
        have tables too, which change with nothing to learn from: name the contexts that matter to leave them out.
    memory
        Bytes that the comparison may take above the models themselves.
    tokenizer
        For the texts; the models' own unless given.

    Raises
    ------
    InputError
        The models do not share a vocabulary: the first tokens that differ are shown.
    SelectionError
        A path that one of the models does not have.
    """
    check(diff, locals())
    if top < 1:
        raise InputError(f"top={top} keeps no n-gram: give 1 or more")
    one, other = subject(model_a, tokenizer=tokenizer), subject(model_b, tokenizer=tokenizer)
    names = _names(one, other)
    _check_tokenizers(one.tokenizer, other.tokenizer, names)
    tables = _tables((one, other), paths, memory, names)
    chosen = _contexts(contexts, min(table.tokens for table in tables))
    check_top(top, len(chosen) * tables[0].vocabulary)
    best = RunningTop(top, above=0.0, carried=2), RunningTop(top, above=0.0, carried=2)
    distances = {_text(tables[0]): _compare(tables, chosen, memory, best)} if len(tables[0].paths) == 1 else {}
    if not distances:
        _compare(tables, chosen, memory, best)
    for text, shared in _single_paths(one, other, tables[0]).items():
        if text not in distances:
            distances[text] = (
                _compare(_tables((one, other), text, memory, names), chosen, memory) if shared else _Distances()
            )
    gained, lost = best
    return ModelDiff(
        NgramChanges(names, _text(tables[0]), len(chosen), _changes(gained), _changes(lost), one.tokenizer),
        PathDistances(names, len(chosen), tuple(sums.row(text) for text, sums in distances.items())),
        SiteChanges(names, tuple(_site_changes(one.graph, other.graph))),
    )


def _names(one: Subject, other: Subject) -> tuple[str, str]:
    """How the two models are called in titles."""
    first, second = (side.graph.title if side.loaded is None else _short(side.loaded.name) for side in (one, other))
    return (first, second) if first != second else (f"{first} (a)", f"{second} (b)")


def _short(name: str) -> str:
    """A folder by its own name, anything else as it is."""
    return Folder(name).name if is_folder(name) else name


def _tables(
    sides: tuple[Subject, Subject], paths: Pattern, memory: int, names: tuple[str, str]
) -> tuple[PathTable, PathTable]:
    one, other = (PathTable(side.graph, paths, tokenizer=side.tokenizer, memory=max(1, memory // 2)) for side in sides)
    _check_sizes(one.vocabulary, other.vocabulary, names)
    return one, other


def _text(table: PathTable) -> str:
    paths = [str(path) for path in table.paths]
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def _single_paths(one: Subject, other: Subject, table: PathTable) -> dict[str, bool]:
    """Paths to measure one by one, and whether both models have them."""
    graph = one.graph
    first, second = expand(graph, recipe="path"), expand(other.graph, recipe="path")
    found = [str(path) for path in table.paths]
    if any(source.alias == "embed" for source in graph.outline.sources):
        for pattern in (DIRECT, *single_mlps(graph)):
            found += [str(path) for path in select(first, pattern)]
    return {text: text in second for text in dict.fromkeys(found)}


# Vocabularies


def _check_tokenizers(one: Any | None, other: Any | None, names: tuple[str, str]) -> None:
    """Raise `InputError` where two tokenizers give a token different ids. Sizes are compared with the tables."""
    if one is None or other is None or one is other:
        return
    first, second = one.get_vocab(), other.get_vocab()
    if first == second:
        return
    differing = [token for token in {**first, **second} if first.get(token) != second.get(token)]
    differing.sort(key=lambda token: (min(first.get(token, math.inf), second.get(token, math.inf)), token))
    shown = "; ".join(
        f"{token!r} is {_place(first.get(token))} in {names[0]} and {_place(second.get(token))} in {names[1]}"
        for token in differing[:5]
    )
    raise InputError(
        f"{names[0]} and {names[1]} have different tokenizers ({len(differing)} tokens differ): {shown}. Compare "
        "models of one tokenizer, or pass tokenizer=... if the ids mean the same in both"
    )


def _check_sizes(one: int, other: int, names: tuple[str, str]) -> None:
    if one != other:
        raise InputError(
            f"{names[0]} has {one} output tokens and {names[1]} {other}: only models of one vocabulary can be compared "
            "token by token"
        )


def _place(index: int | None) -> str:
    return "missing" if index is None else f"token {index}"


# Walking through tables


def _contexts(given: Contexts | None, tokens: int) -> Tensor:
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


def _rows(
    tables: Sequence[PathTable], contexts: Tensor, memory: int, label: str
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Contexts [rows] and the logits [rows, vocabulary] of each table, in pieces whose statistics fit into memory."""
    first, *others = tables
    rows = max(1, memory // 4 // (8 * ARRAYS * first.vocabulary))
    with tqdm(total=len(contexts), desc=label, disable=None, leave=False, unit=" contexts") as bar:
        for ids, logits in first.chunks(contexts):
            values = [logits, *(table.logits(ids).to(logits.device) for table in others)]
            for start in range(0, len(ids), rows):
                piece = slice(start, start + rows)
                yield ids[piece, 0], [value[piece] for value in values]
                bar.update(len(ids[piece]))


@dataclass
class _Distances:
    """Sums over contexts of the distances between two tables."""

    total_variation: float = 0.0
    jensen_shannon: float = 0.0
    cosine: float = 0.0
    contexts: int = 0

    def add(self, logits: Sequence[Tensor], log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> None:
        self.contexts += len(p)
        self.total_variation += float(total_variation(p, q).sum())
        self.jensen_shannon += float(jensen_shannon(log_p, log_q).sum())
        self.cosine += float(cosine(*logits).sum())

    def row(self, path: str) -> Distance:
        if not self.contexts:
            return Distance(path, None, None, None)
        return Distance(
            path,
            self.total_variation / self.contexts,
            self.jensen_shannon / self.contexts,
            1 - self.cosine / self.contexts,
        )


def _compare(
    tables: tuple[PathTable, PathTable],
    contexts: Tensor,
    memory: int,
    best: tuple[RunningTop, RunningTop] | None = None,
) -> _Distances:
    """Distances between two tables, and into `best` the entries that gained and lost most."""
    sums = _Distances()
    for ids, logits in _rows(tables, contexts, memory, _text(tables[0])):
        log_p, log_q = (value.double().log_softmax(-1) for value in logits)
        p, q = log_p.exp(), log_q.exp()
        sums.add(logits, log_p, log_q, p, q)
        del log_p, log_q
        if best is not None:
            gained, lost = best
            gained.add(ids, q - p, p, q)
            lost.add(ids, p - q, p, q)
    return sums


def _changes(best: RunningTop) -> tuple[NgramChange, ...]:
    """The entries of a top, with what both tables have there."""
    rows = zip(best.rows.tolist(), best.columns.tolist(), best.carried.tolist(), strict=True)
    return tuple(NgramChange((context,), token, before, after) for context, token, (before, after) in rows)


# Weights


def _site_changes(one: ResidualGraph, other: ResidualGraph) -> Iterator[SiteChange]:
    first, second = _readers(one), _readers(other)
    for alias in dict.fromkeys((*first, *second)):
        module, names = (first if alias in first else second)[alias]
        graph = one if alias in first else other
        parameters = sum(graph.traced.tensors[name].numel() for name in names)
        shared = alias in first and alias in second and first[alias][1] == second[alias][1]
        yield SiteChange(alias, module, parameters, _relative_change(one, other, names) if shared else None)


def _relative_change(one: ResidualGraph, other: ResidualGraph, names: Sequence[str]) -> float | None:
    """‖W_b − W_a‖_F / ‖W_a‖_F over parameters; None where there are none, their shapes differ, or W_a is zero."""
    before = [one.traced.tensors[name].detach() for name in names]
    after = [other.traced.tensors[name].detach() for name in names]
    if not names or any(a.shape != b.shape for a, b in zip(before, after, strict=True)):
        return None
    moved = math.fsum(
        float((b.to(a.device).double() - a.double()).square().sum()) for a, b in zip(before, after, strict=True)
    )
    size = math.fsum(float(a.double().square().sum()) for a in before)
    if size == 0:
        return 0.0 if moved == 0 else None
    return math.sqrt(moved / size)


def _readers(graph: ResidualGraph) -> dict[str, tuple[str, tuple[str, ...]]]:
    """What reads weights on the stream, in its order: alias → module path and names of the parameters."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    constant = _constant(graph)
    for summand in graph.stream.encoder.summands:
        found[summand.source.alias] = (summand.source.path, _source_parameters(graph, summand.leaf, constant))
    for stage in graph.stream.stages:
        if isinstance(stage, MapStage):
            site = stage.step.site
            found[site.alias] = (site.path, _parameters(graph, stage.region.side, constant))
            continue
        for branch in stage.join.branches:
            found[branch.alias] = (branch.name, _parameters(graph, branch.region.side, constant))
        if skip := _parameters(graph, stage.join.skip.side, constant):
            found[f"skip of {stage.join.alias}"] = (stage.join.name, skip)
    decoder = graph.structure.decoder
    sides = (*decoder.nonlinear.side, *decoder.affine.side)
    found[decoder.site.alias] = (decoder.site.path, _parameters(graph, sides, constant))
    return found


def _source_parameters(graph: ResidualGraph, leaf: fx.Node | None, constant: set[fx.Node]) -> tuple[str, ...]:
    """Names of the parameters that a source of the encoder is made with, those on its way to point 0 included."""
    encoder = graph.stream.encoder
    if leaf is None:
        leaves = set(encoder.leaves)
        read = {arg for node in encoder.nodes for arg in node.all_input_nodes} - leaves
        return _parameters(graph, read, constant)
    way = {leaf}
    for node in encoder.nodes:
        if not way.isdisjoint(node.all_input_nodes):
            way.add(node)
    read = {arg for node in way - {leaf} for arg in node.all_input_nodes} - way - {*encoder.nodes, *encoder.leaves}
    return tuple(sorted({*_parameters(graph, [leaf], None), *_parameters(graph, read, constant)}))


def _constant(graph: ResidualGraph) -> set[fx.Node]:
    """Nodes whose values the inputs' contents do not reach; sizes are no contents."""
    varying: set[fx.Node] = set()
    for node in graph.traced.graph.nodes:
        is_input = node.op == "placeholder" and graph.traced.bindings[node.name].kind == "input"
        if is_input or (node.meta.get("dtype") is not None and not varying.isdisjoint(node.all_input_nodes)):
            varying.add(node)
    return set(graph.traced.graph.nodes) - varying


def _parameters(graph: ResidualGraph, nodes: Iterable[fx.Node], within: set[fx.Node] | None) -> tuple[str, ...]:
    """Names of the parameters that these values are made from, by way of `within` only (None: any way)."""
    seen: set[fx.Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in seen and (within is None or node in within):
            seen.add(node)
            stack.extend(node.all_input_nodes)
    bindings = (graph.traced.bindings[node.name] for node in seen if node.op == "placeholder")
    return tuple(sorted({binding.name for binding in bindings if binding.kind == "parameter"}))


# Checkpoints


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory(Result):
    """What a path's n-grams look like at each checkpoint, against those of the last one."""

    path: str
    top: int
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
            f"{len(self.names)} checkpoints against the last one, by its {self.top} most probable n-grams over "
            f"{self.contexts} contexts along {self.path}"
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
        left.plot(places, self.hit_ratio, "o-", label=f"hit ratio at {self.top}")
        left.plot(places, self.mass, "s-", label="mass on the last one's n-grams")
        if self.keyword_mass is not None:
            left.plot(places, self.keyword_mass, "^-", label="mass on the keywords")
        left.set_ylim(-0.02, 1.04)
        left.set_ylabel("share")
        left.legend(fontsize=8)
        right.plot(places, self.entropy, "o-", color="C3")
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
    """How a path's n-grams become those of the last checkpoint.

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
        raise InputError(f"{len(checkpoints)} checkpoints have {len(names)} names: give each one")
    if top < 1:
        raise InputError(f"top={top} keeps no n-gram: give 1 or more")
    labels = tuple(names) if names is not None else tuple(map(_label, checkpoints, range(len(checkpoints))))
    own: tuple[Any | None, int] | None = None
    rows: list[_Snapshot] = []
    # The last one comes first, for the others are held against its n-grams.
    order = [len(checkpoints) - 1, *range(len(checkpoints) - 1)]
    for index in tqdm(order, desc="checkpoints", disable=None, leave=False, unit=" checkpoints"):
        side = _opened(checkpoints[index], tokenizer)
        table = PathTable(side.graph, path, tokenizer=side.tokenizer, memory=max(1, memory // 2))
        if own is None:
            own = side.tokenizer, table.vocabulary
        pair = (str(labels[-1]), str(labels[index]))
        _check_tokenizers(own[0], side.tokenizer, pair)
        _check_sizes(own[1], table.vocabulary, pair)
        snapshot = _snapshot(table, top, _contexts(contexts, table.tokens), memory, rows[0] if rows else None)
        rows.append(snapshot if keywords is None else replace(snapshot, keywords=ngram_mass(table, keywords).total))
        # Nothing of a checkpoint may stay in memory while the next one is loaded.
        del side, table
    final, *others = rows
    rows = [*others, final]
    return Trajectory(
        path=final.path,
        top=len(final.entries),
        contexts=final.contexts,
        names=labels,
        hit_ratio=tuple(len(row.entries & final.entries) / len(final.entries) for row in rows),
        mass=tuple(row.mass for row in rows),
        entropy=tuple(row.entropy for row in rows),
        keyword_mass=None if keywords is None else tuple(row.keywords for row in rows),
    )


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


def _snapshot(table: PathTable, top: int, contexts: Tensor, memory: int, final: _Snapshot | None) -> _Snapshot:
    check_top(top, len(contexts) * table.vocabulary)
    best = RunningTop(top)
    pairs = torch.tensor(sorted(final.entries)) if final is not None else torch.empty(0, 2, dtype=torch.long)
    entropy = mass = 0.0
    for ids, (logits,) in _rows([table], contexts, memory, _text(table)):
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
    return _Snapshot(_text(table), len(contexts), frozenset(entries), mass / len(listed), entropy / len(contexts))


def _opened(checkpoint: Checkpoint, tokenizer: Any | None) -> Subject:
    if isinstance(checkpoint, nn.Module | ResidualGraph | Loaded | str | PathLike):
        return subject(checkpoint, tokenizer=tokenizer)
    return subject(checkpoint(), tokenizer=tokenizer)


def _label(checkpoint: Checkpoint, index: int) -> str:
    if isinstance(checkpoint, str | PathLike):
        return _short(str(checkpoint))
    return checkpoint.name if isinstance(checkpoint, Loaded) else str(index)
