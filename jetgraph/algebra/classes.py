"""Classes of paths: automata that accept every path and say which class it is of.

The product with the automaton of an expansion, or of a selection, sorts all its paths at once: each state of the
product is a point, and what the class depends on of the way there.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from jetgraph.algebra.automaton import Acceptor, Node, TermGraph
from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.grouping import REST, block_of
from jetgraph.algebra.matching import nearest
from jetgraph.algebra.outline import SINK
from jetgraph.algebra.paths import Hop
from jetgraph.algebra.patterns import PatternAcceptor, parse
from jetgraph.errors import InputError, SelectionError, quoted

BIAS = "bias"
"""The class of constants that pass no branch, by first and last branch or layer."""

Label = int | str
"""A class: a number of sites, or a name."""

By = str | Mapping[str, str]
"""What paths are sorted by: see `classifier`."""


class Classifier(Protocol):
    """A deterministic automaton over hops whose every state has a label."""

    def start(self) -> Hashable: ...

    def step(self, state: Any, hop: Hop) -> Hashable: ...

    def label(self, state: Any) -> Label:
        """The class of a path that ends in this state."""
        ...


@dataclass(frozen=True)
class _Whole:
    """One class of everything."""

    def start(self) -> Hashable:
        return ""

    def step(self, state: str, hop: Hop) -> str:
        return "all"

    def label(self, state: str) -> str:
        return state


@dataclass(frozen=True)
class _Number:
    """By the number of some sites."""

    sites: frozenset[str]

    def start(self) -> int:
        return 0

    def step(self, state: int, hop: Hop) -> int:
        return state + (hop.alias in self.sites)

    def label(self, state: int) -> int:
        return state


@dataclass(frozen=True)
class _End:
    """By the first, or the last, of some sites and sources; by a name that several may share."""

    names: Mapping[str, str]
    first: bool

    def start(self) -> str:
        return ""

    def step(self, state: str, hop: Hop) -> str:
        return state if self.first and state else self.names.get(hop.alias, state)

    def label(self, state: str) -> str:
        return state or "none"


class _Patterns:
    """By the first pattern that matches the whole path."""

    def __init__(self, expansion: Expansion, patterns: Mapping[str, str]) -> None:
        self._labels = tuple(patterns.values())
        self._inner = PatternAcceptor(expansion, [parse(pattern) for pattern in patterns])
        for element in {element for pattern in patterns for element in parse(pattern) if not element.gap}:
            if not element.names(expansion):
                there = nearest(element.glob, expansion.names, globs=True)
                raise SelectionError(f"{quoted(str(element))} of by= matches no source and no site{there}")

    def start(self) -> int:
        return self._inner.start()

    def step(self, state: int, hop: Hop) -> int:
        return self._inner.step(state, hop) or 0

    def label(self, state: int) -> str:
        matched = (label for end, label in zip(self._inner.ends, self._labels, strict=True) if state & end)
        return next(matched, REST)


def choices(expansion: Expansion) -> list[str]:
    """The names that `classifier` takes for an expansion."""
    kinds = dict.fromkeys(passage.site.kind for passage in _branches(expansion))
    ends = [f"{end} {kind}" for end in ("last", "first") for kind in kinds]
    return ["all", "length", *kinds, "last", "first", "source", "layer", *ends]


def classifier(expansion: Expansion, by: By) -> Classifier:
    """What sorts the paths of an expansion.

    Parameters
    ----------
    expansion
        Whose paths they are.
    by
        `length`: the number of sites. A kind of branches (`attn`, `mlp`, …): how many of these a path passes. `last`,
        `first`: the last or first branch, or the source where there is none. `last attn` and the like: the last of a
        kind. `layer`: what the alias of the last branch begins with, such as L3. `source`: where paths start. `all`:
        one class. Or a mapping from patterns, as `jetgraph.select` takes them, to names of classes; the first that
        matches counts, and what none does is the class `rest`.

    Raises
    ------
    InputError
        The name is none of these; the message has the choices.
    SelectionError
        A pattern cannot be read, or an element of it stands for nothing.
    """
    if isinstance(by, Mapping):
        if not by:
            raise InputError("by={} sorts nothing: map patterns to names of classes, or name a property of paths")
        return _Patterns(expansion, by)
    if by not in choices(expansion):
        raise InputError(
            f"by={quoted(by)} is unknown: choose {', '.join(choices(expansion))}, or map patterns to names"
        )
    sources = {entry.source.alias: entry.source.alias for entry in expansion.entries}
    starts = {e.source.alias: BIAS if e.source.kind == "bias" else e.source.alias for e in expansion.entries}
    branches = {passage.site.alias: passage.site for passage in _branches(expansion)}
    own = {alias: alias for alias in branches}
    if by in ("all", "length", "source"):
        sites = frozenset(alias for alias in expansion.passages if alias != SINK)
        return {"all": _Whole(), "length": _Number(sites), "source": _End(sources, True)}[by]
    if by in ("last", "first"):
        return _End(starts | own, False) if by == "last" else _First(starts, own)
    if by == "layer":
        return _End(starts | {alias: block_of(alias) for alias in branches}, False)
    end, _, kind = by.rpartition(" ")
    chosen = {alias: alias for alias, site in branches.items() if site.kind == kind}
    return _End(chosen, end == "first") if end else _Number(frozenset(chosen))


@dataclass(frozen=True)
class _First:
    """By the first branch, or the source where there is none."""

    sources: Mapping[str, str]
    branches: Mapping[str, str]

    def start(self) -> str:
        return ""

    def step(self, state: str, hop: Hop) -> str:
        if state in self.branches:
            return state
        return self.branches.get(hop.alias) or self.sources.get(hop.alias, state)

    def label(self, state: str) -> str:
        return state


def _branches(expansion: Expansion) -> Iterator[Any]:
    return (passage for passage in expansion.passages.values() if passage.site.role == "branch" and passage.hops)


@dataclass(frozen=True)
class Sorting:
    """An acceptor together with a classifier: accepts what the one accepts, under the other's labels."""

    acceptor: Acceptor
    classes: Classifier

    def start(self) -> Hashable:
        return self.acceptor.start(), self.classes.start()

    def step(self, state: tuple[Any, Any], hop: Hop) -> Hashable | None:
        accepted = self.acceptor.step(state[0], hop)
        return None if accepted is None else (accepted, self.classes.step(state[1], hop))

    def accepts(self, state: tuple[Any, Any]) -> bool:
        return self.acceptor.accepts(state[0])

    def label(self, state: tuple[Any, Any]) -> Label:
        """The class of a path that ends in this state."""
        return self.classes.label(state[1])


def ends(terms: TermGraph, sorting: Sorting) -> Iterator[tuple[Node | None, int, Hop | None, Label]]:
    """Where walks end: the node before the end and the hop there, and the class of what ends so.

    For a source that goes to the end by itself, its number among the roots stands in the place of the node.
    """
    for number, root in enumerate(terms.roots):
        if root.target == terms.end:
            state: Any = sorting.start()
            for hop in root.hops:
                state = sorting.step(state, hop)
            yield None, number, None, sorting.label(state)
    for node, arcs in terms.arcs.items():
        for arc in arcs:
            if arc.target == terms.end:
                assert arc.hop is not None
                before: Any = node[1]
                after: Any = sorting.step(before, arc.hop)
                yield node, -1, arc.hop, sorting.label(after)


def counted(terms: TermGraph, sorting: Sorting) -> dict[Label, int]:
    """Exact number of paths of each class."""
    numbers: dict[Node, int] = {}
    for root in terms.roots:
        numbers[root.target] = numbers.get(root.target, 0) + 1
    for node, arcs in terms.arcs.items():
        for arc in arcs:
            if arc.target != terms.end:
                numbers[arc.target] = numbers.get(arc.target, 0) + numbers[node]
    by_label: dict[Label, int] = {}
    for node, _, _, label in ends(terms, sorting):
        by_label[label] = by_label.get(label, 0) + (1 if node is None else numbers[node])
    return by_label


def ordered(expansion: Expansion, labels: Mapping[Label, Any], by: By) -> list[Label]:
    """Labels in their order: numbers upwards, names along the stream, patterns as given and `rest` at the end."""
    if isinstance(by, Mapping):
        names = [*dict.fromkeys(by.values()), REST]
    else:
        names = [name for alias in expansion.names for name in (alias, block_of(alias))]
    places = {name: place for place, name in reversed(list(enumerate(names)))}
    return sorted(labels, key=lambda label: label if isinstance(label, int) else places.get(label, len(names)))
