"""Patterns over paths: automata over the sites that a path passes.

A pattern is an automaton over hops. Its product with the automaton of an expansion counts, numbers and lists what
matches without walking through what does not, so ten paths out of 2^252 cost as much as ten of a few.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.matching import matching
from jetgraph.algebra.outline import SINK
from jetgraph.algebra.paths import Hop, Path
from jetgraph.errors import SelectionError, quoted

_ELEMENT = re.compile(r"(?P<glob>[^\s^~]+)(?:(?P<mark>[\^~])(?P<order>\d{1,9}|\*))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a pattern. `exact` stands for one hop only, glob characters or not."""

    glob: str
    order: int | None = None
    together: bool = False
    """The order is that up to which a jet is taken."""
    exact: Hop | None = None

    @property
    def gap(self) -> bool:
        return self.glob == "**"

    def names(self, expansion: Expansion) -> set[str]:
        """The sources and sites that it stands for, at whatever order."""
        if self.exact is not None:
            return {self.exact.alias}
        if self.glob == "*":
            # Every path has to pass the maps, so a bare `*` counts the sites that it had a choice about.
            return {alias for alias in expansion.names if not is_map(expansion, alias)}
        return set(matching(self.glob, expansion.names))

    def takes(self, hop: Hop) -> bool:
        """Whether it stands for this hop, out of those whose alias it names."""
        if self.exact is not None:
            return hop == self.exact
        return self.order is None or (hop.order, hop.together) == (self.order, self.together and self.order > 0)

    def __str__(self) -> str:
        return str(self.exact or Hop(self.glob, self.order, self.together))


_GAP = Element("**")


def parse(pattern: str) -> tuple[Element, ...]:
    """The elements of a pattern.

    One name alone is no whole path, which has a source and the sink at least: it stands for all paths with it.

    Raises
    ------
    SelectionError
        A text that is none.

    Examples
    --------
    >>> join(parse("L1.mlp"))
    '** > L1.mlp > **'
    """
    elements: list[Element] = []
    for part in pattern.split(">"):
        match = _ELEMENT.fullmatch(part.strip())
        if match is None or (match["glob"] == "**" and match["order"]):
            raise SelectionError(
                f"{quoted(part.strip())} in the pattern {quoted(pattern)} cannot be read: write names or globs with "
                "an optional order (^1 the part of order 1, ~1 the jet up to it), * for any one site, ** for any "
                "chain, joined by ' > ', such as 'embed > *.mlp~1 > ** > logits'"
            )
        order = None if match["order"] in (None, "*") else int(match["order"])
        element = Element(match["glob"], order, match["mark"] == "~")
        if not (element.gap and elements and elements[-1].gap):
            elements.append(element)
    if len(elements) == 1 and not elements[0].gap:
        return _GAP, *elements, _GAP
    return tuple(elements)


def join(elements: Iterable[Element]) -> str:
    """The text of a pattern."""
    return " > ".join(map(str, elements))


def with_gaps(pattern: Sequence[Element]) -> Iterator[tuple[Element, ...]]:
    """A pattern with gaps where it has none: after it, before it, at both ends, between all; the least first.

    >>> [join(one) for one in with_gaps(parse("embed > L1.mlp"))]
    ['embed > L1.mlp > **', '** > embed > L1.mlp', '** > embed > L1.mlp > **', '** > embed > ** > L1.mlp > **']
    """
    named = [element for element in pattern if not element.gap]
    spread = [element for one in named for element in (_GAP, one)]
    several = ([*pattern, _GAP], [_GAP, *pattern], [_GAP, *pattern, _GAP], [*spread, _GAP])
    told = {tuple(pattern)}
    for one in several:
        # Gaps beside each other are one.
        shorter = tuple(element for at, element in enumerate(one) if not (element.gap and at and one[at - 1].gap))
        if shorter not in told:
            told.add(shorter)
            yield shorter


class PatternAcceptor:
    """A union of patterns as a bit-parallel automaton.

    Bit i of a state says that a pattern has matched up to its element i. A path with the same name is met once only,
    however many of the patterns match it, because the states are sets.
    """

    def __init__(self, expansion: Expansion, patterns: Iterable[tuple[Element, ...]]) -> None:
        self._expansion = expansion
        self._elements: dict[str, list[tuple[int, Element]]] = {}
        self.ends: list[int] = []
        self._gaps = 0
        self._spans: list[int] = []
        """By pattern that has a gap: the bits of its gaps, and those of the rest as far as a gap is behind them."""
        starts = 0
        bit = 0
        for pattern in patterns:
            starts |= 1 << bit
            first = bit
            for element in pattern:
                for alias in () if element.gap else element.names(expansion):
                    self._elements.setdefault(alias, []).append((1 << bit, element))
                self._gaps |= element.gap << bit
                bit += 1
            self.ends.append(1 << bit)
            bit += 1
            last = (self._gaps >> first).bit_length()
            if last > 1:
                self._spans.append((1 << first + last) - (1 << first))
        self._accepting = sum(self.ends)
        self._start = self._close(starts)
        self._masks: dict[Hop, tuple[int, bool]] = {}

    def _close(self, state: int) -> int:
        """A gap may be empty; and who has come to a gap may wait there, so that what lies before it adds nothing."""
        for span in self._spans:
            if reached := state & span & self._gaps:
                state &= ~span | -(1 << reached.bit_length() - 1)
        return state | (state & self._gaps) << 1

    def _mask(self, hop: Hop) -> tuple[int, bool]:
        """The elements that match a hop, and whether the hop is a map, which need not be named."""
        if hop not in self._masks:
            hits = (bit for bit, element in self._elements.get(hop.alias, ()) if element.takes(hop))
            self._masks[hop] = sum(hits), is_map(self._expansion, hop.alias)
        return self._masks[hop]

    def start(self) -> int:
        return self._start

    def step(self, state: int, hop: Hop) -> int | None:
        mask, is_map = self._mask(hop)
        after = (state & mask) << 1 | (state & self._gaps)
        return self._close(after | state if is_map else after) or None

    def accepts(self, state: int) -> bool:
        return bool(state & self._accepting)

    def matched(self, state: Any) -> int:
        """The bits of the patterns, of which `ends` says whose is which."""
        return state


class BoundedAcceptor:
    """A pattern together with bounds on the length; counts sites only as far as the bounds need."""

    def __init__(self, inner: PatternAcceptor, shortest: int, longest: int | None) -> None:
        self._inner, self._shortest, self._longest = inner, shortest, longest

    def start(self) -> tuple[int, int]:
        # The source is no site.
        return self._inner.start(), -1

    def step(self, state: tuple[int, int], hop: Hop) -> tuple[int, int] | None:
        after = self._inner.step(state[0], hop)
        length = state[1] + (hop.alias != SINK)
        if after is None or (self._longest is not None and length > self._longest):
            return None
        return after, min(length, self._shortest) if self._longest is None else length

    def accepts(self, state: tuple[int, int]) -> bool:
        return state[1] >= self._shortest and self._inner.accepts(state[0])

    def matched(self, state: Any) -> int:
        return state[0]


class ListAcceptor:
    """Accepts the paths of a list: a trie, of which ends that are alike are one."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._next: list[dict[Hop, int]] = [{}]
        self._ends: set[int] = set()
        for path in paths:
            state = 0
            for hop in path.hops:
                if hop not in self._next[state]:
                    self._next[state][hop] = len(self._next)
                    self._next.append({})
                state = self._next[state][hop]
            self._ends.add(state)
        self._merge()

    def _merge(self) -> None:
        """Make states one from which the same goes on; what comes after a state has a larger number."""
        same: dict[tuple[bool, frozenset[tuple[Hop, int]]], int] = {}
        merged = list(range(len(self._next)))
        for state in range(len(self._next) - 1, -1, -1):
            onward = {hop: merged[after] for hop, after in self._next[state].items()}
            self._next[state] = onward
            merged[state] = same.setdefault((state in self._ends, frozenset(onward.items())), state)

    def start(self) -> int:
        return 0

    def step(self, state: int, hop: Hop) -> int | None:
        return self._next[state].get(hop)

    def accepts(self, state: int) -> bool:
        return state in self._ends


class PathList:
    """Paths given one by one, numbered as given."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(dict.fromkeys(paths))

    def count(self) -> int:
        return len(self._paths)

    def paths(self, skip: int) -> Iterator[Path]:
        return islice(self._paths, skip, None)


def is_map(expansion: Expansion, alias: str) -> bool:
    """Paths pass it as a map."""
    passage = expansion.passages.get(alias)
    return passage is not None and passage.site.role == "map" and bool(passage.hops)
