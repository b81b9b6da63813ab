"""Which paths a table of n-grams is the mean of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jetgraph.algebra.dialects import parts_asked
from jetgraph.algebra.expansion import Expansion, expand
from jetgraph.algebra.outline import Split
from jetgraph.algebra.paths import Path
from jetgraph.algebra.selection import select
from jetgraph.applications.kept import kept
from jetgraph.applications.subject import Subject
from jetgraph.errors import BudgetError, InputError, big
from jetgraph.residual import ResidualGraph

Paths = str | Path | Iterable[str | Path]
"""One path or pattern, or several."""

DIRECT = "embed > logits"
"""The path that passes no site: bi-grams of embedding and unembedding alone."""

PATH_BUDGET = 4096
"""The most paths whose mean is one table."""


@dataclass(frozen=True)
class Choice:
    """The paths of one table, and the decoder's constant part, which it has once however many paths there are."""

    label: str
    expansion: Expansion
    paths: tuple[Path, ...]
    constants: tuple[Path, ...]


def choose(subject: Subject, wanted: Sequence[str | Path], split: Split | None) -> Choice:
    """The paths of recipe `path` that match; those of the last few tables of a graph are there already.

    Raises
    ------
    SelectionError
        No path matches.
    BudgetError
        More than `PATH_BUDGET` do.
    InputError
        Only the decoder's constant part does.
    """
    if split is not None and not isinstance(split, str):
        return _chosen(subject, wanted, split)
    key = tuple(map(str, wanted)), split
    return kept(subject.graph, "tables", key, lambda: _chosen(subject, wanted, split))


def _chosen(subject: Subject, wanted: Sequence[str | Path], split: Split | None) -> Choice:
    label = ", ".join(map(str, wanted))
    expansion = _expansion(subject, wanted, split)
    chosen = select(expansion, wanted)
    if chosen.count() > PATH_BUDGET:
        raise BudgetError(
            f"{big(chosen.count())} paths match {label}, more than the {PATH_BUDGET:,} that a table is the "
            "mean of: name fewer, such as 'embed > *.mlp > logits'"
        )
    constants = expansion.constants
    paths = tuple(path for path in chosen if path.source.alias not in constants)
    if not paths:
        raise InputError(
            f"{label} is the decoder's constant part alone, which every table has already: name a path from 'embed'"
        )
    return Choice(label, expansion, paths, tuple(Path.parse(f"{alias} > logits") for alias in sorted(constants)))


def single_mlps(graph: ResidualGraph) -> list[str]:
    """The paths from the embedding through one MLP each, in the order of the stream."""
    sites = graph.outline.sites()
    return [f"embed > {site.alias} > logits" for site in sites if site.kind == "mlp" and site.role == "branch"]


def _expansion(subject: Subject, wanted: Sequence[str | Path], split: Any | None) -> Expansion:
    """The expansion of recipe `path`, split where the paths name parts of a site."""
    if split is None and subject.graph.parts is None:
        split = parts_asked(wanted, subject.graph.outline)
    return expand(subject.graph, recipe="path", split=split)
