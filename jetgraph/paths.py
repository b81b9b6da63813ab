"""Choosing among the terms of an expansion, and drawing them: selections, the path DAG, graph files.

A pattern is an automaton over the sites of a path. Its product with the automaton of the expansion counts, numbers
and lists what matches without walking through what does not, so ten paths out of 2^252 cost as much as ten of a few.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice, pairwise
from typing import Any, NoReturn, overload
from xml.etree import ElementTree
from xml.parsers import expat

import networkx as nx

from jetgraph.automaton import Arc, Node, Root, TermGraph
from jetgraph.errors import BudgetError, InputError, JetGraphError, NoSuchPathError, SelectionError, big, check, quoted
from jetgraph.expansion import Expansion
from jetgraph.files import is_file, is_folder, naming, parse_json, reason, write_atomically
from jetgraph.matching import matching, nearest
from jetgraph.program import SINK, Hop, Jet, JoinStep, Path, Site

LIST_BUDGET = 1_000_000
"""How many paths a selection lists without being given a limit."""

# Patterns

_ELEMENT = re.compile(r"(?P<glob>[^\s^]+)(?:\^(?P<order>\d{1,9}|\*))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Element:
    """One element of a pattern. `exact` stands for one hop only, glob characters or not."""

    glob: str
    order: int | None = None
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
            return {alias for alias in expansion.names if not _is_map(expansion, alias)}
        return set(matching(self.glob, expansion.names))

    def takes(self, hop: Hop) -> bool:
        """Whether it stands for this hop, out of those whose alias it names."""
        return hop == self.exact if self.exact is not None else self.order in (None, hop.order)

    def __str__(self) -> str:
        return str(self.exact or Hop(self.glob, self.order))


def _parse(pattern: str) -> tuple[_Element, ...]:
    elements: list[_Element] = []
    for part in pattern.split(">"):
        match = _ELEMENT.fullmatch(part.strip())
        if match is None or (match["glob"] == "**" and match["order"]):
            raise SelectionError(
                f"{quoted(part.strip())} in the pattern {quoted(pattern)} cannot be read: write names or globs with "
                "an optional order, * for any one site, ** for any chain, joined by ' > ', such as "
                "'embed > *.mlp^1 > ** > logits'"
            )
        order = None if match["order"] in (None, "*") else int(match["order"])
        element = _Element(match["glob"], order)
        if not (element.gap and elements and elements[-1].gap):
            elements.append(element)
    return tuple(elements)


class _PatternAcceptor:
    """A union of patterns as a bit-parallel automaton.

    Bit i of a state says that a pattern has matched up to its element i. A path with the same name is met once only,
    however many of the patterns match it, because the states are sets.
    """

    def __init__(self, expansion: Expansion, patterns: Iterable[tuple[_Element, ...]]) -> None:
        self._expansion = expansion
        self._elements: dict[str, list[tuple[int, _Element]]] = {}
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
            self._masks[hop] = sum(hits), _is_map(self._expansion, hop.alias)
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


class _BoundedAcceptor:
    """A pattern together with bounds on the length; counts sites only as far as the bounds need."""

    def __init__(self, inner: _PatternAcceptor, shortest: int, longest: int | None) -> None:
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


class _ListAcceptor:
    """Accepts the paths of a list: a trie."""

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

    def start(self) -> int:
        return 0

    def step(self, state: int, hop: Hop) -> int | None:
        return self._next[state].get(hop)

    def accepts(self, state: int) -> bool:
        return state in self._ends


class _PathList:
    """Paths given one by one, numbered as given."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(dict.fromkeys(paths))

    def count(self) -> int:
        return len(self._paths)

    def paths(self, skip: int = 0) -> Iterator[Path]:
        return islice(self._paths, skip, None)


# Selections


class Selection:
    """Paths of an expansion that match; lazy, in a fixed order, and countable without being listed.

    Indexing and slicing go straight to the place. Listing more than `LIST_BUDGET` paths raises `BudgetError` unless a
    limit or a slice says how many.
    """

    def __init__(
        self, expansion: Expansion, text: str, found: TermGraph | _PathList, window: range | None = None
    ) -> None:
        self.expansion = expansion
        self.text = text
        """What was asked for."""
        self._found = found
        self._window = range(found.count()) if window is None else window
        self._asked = window is not None

    def count(self) -> int:
        """Exact number of paths, of any size."""
        window = self._window
        return max(0, (window.stop - window.start + window.step - (1 if window.step > 0 else -1)) // window.step)

    def __len__(self) -> int:
        self._check_budget()
        return self.count()

    def __bool__(self) -> bool:
        return self.count() > 0

    def _check_budget(self) -> None:
        if not self._asked and self.count() > LIST_BUDGET:
            raise BudgetError(
                f"{quoted(self.text)} selects {big(self.count())} paths, too many to list (over {LIST_BUDGET}): take "
                "the first n with [:n] or limit=n, narrow the pattern, or use .count() for the number"
            )

    def __iter__(self) -> Iterator[Path]:
        if self._window.step == 1:
            count = self.count()
            allowed = count if self._asked else min(count, LIST_BUDGET)
            yield from islice(self._found.paths(self._window.start), allowed)
            if allowed < count:
                self._check_budget()
        else:
            for number in self._window:
                yield next(self._found.paths(number))

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Selection: ...
    def __getitem__(self, index: int | slice) -> Path | Selection:
        try:
            found = self._window[index]
        except IndexError:
            raise NoSuchPathError(
                f"{quoted(self.text)} selects {big(self.count())} paths, so number {quoted(index)} is none"
            ) from None
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"a selection gives a path by its number, or several by a slice, not by {quoted(index)} "
                f"({type(index).__name__}): {quoted(str(error))[1:-1]}"
            ) from None
        if isinstance(found, range):
            return Selection(self.expansion, self.text, self._found, found)
        return next(self._found.paths(found))

    def term_graph(self) -> TermGraph:
        """The automaton whose walks are exactly these paths."""
        whole = self._window == range(self._found.count())
        if whole and isinstance(self._found, TermGraph):
            return self._found
        return TermGraph(self.expansion.automaton, _ListAcceptor(self))

    def __repr__(self) -> str:
        shown = [f"  {path}" for path in self[:5]]
        more = [f"  … and {big(self.count() - 5)} more"] if self.count() > 5 else []
        return "\n".join([f"Selection {self.text!r}: {big(self.count())} paths", *shown, *more])


Pattern = str | Path | Iterable[str | Path] | Selection


def select(
    expansion: Expansion,
    pattern: Pattern,
    *,
    limit: int | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
) -> Selection:
    """The paths of an expansion that match a pattern, lazily.

    A pattern describes a whole path, from source to sink: elements joined by `>`. An element is a name or a glob over
    aliases and module paths (a bias goes by its alias only), with `^order` where only one order is meant; `*` alone is
    any one site, `**` any chain, also an empty one; `logits` or `output` is the sink. Maps on the stream, such as the
    norms of a post-norm model, may be named but need not be: every path passes them. A bare `*` stands for none.

    Args:
        pattern: one or several (then their union, without duplicates), or paths, which are checked. Paths come in the
            order given, matches of patterns in the order of the expansion.
        limit: no more than the first so many.
        min_length, max_length: bounds on `Path.length`, the number of sites between source and sink.

    Raises:
        SelectionError: for a pattern that cannot be read or matches nothing, saying which element and what there is.

    >>> from jetgraph.expansion import expand
    >>> from jetgraph.program import JoinStep, Outline, Site, Source
    >>> mlps = [Site(f"L{i}.mlp", f"layers.{i}.mlp", "mlp", "branch", False, False) for i in range(200)]
    >>> joins = tuple(JoinStep(f"add{i}", "identity", False, (site,)) for i, site in enumerate(mlps))
    >>> decoder = Site("logits", "", "logits", "decoder", False, False)
    >>> expansion = expand(Outline((Source("embed", "embed", "embed"),), joins, decoder))
    >>> selection = select(expansion, "embed > ** > L7.mlp^1 > logits^0")
    >>> selection.count()
    2187
    >>> print(selection[1])
    embed > L6.mlp^0 > L7.mlp^1 > logits^0
    """
    check(select, locals())
    for name, bound, least in (("limit", limit, 1), ("min_length", min_length, 0), ("max_length", max_length, 0)):
        if bound is not None and bound < least:
            raise SelectionError(f"{name} is at least {least}, not {bound}")
    if isinstance(pattern, Selection) and pattern.expansion is expansion and min_length is None and max_length is None:
        return pattern if limit is None else pattern[:limit]
    wanted = [pattern] if isinstance(pattern, str | Path) else list(pattern)
    if wrong := [item for item in wanted if not isinstance(item, str | Path)]:
        raise SelectionError(
            f"{quoted(wrong[0])} is neither a pattern nor a path: give texts such as 'embed > *.mlp > logits'"
        )
    if not wanted:
        raise SelectionError("an empty list selects nothing: give a pattern such as 'embed > *.mlp > logits'")
    text = str(wanted[0]) if len(wanted) == 1 else f"{wanted[0]}' and {len(wanted) - 1} more, such as '{wanted[1]}"
    paths = [item for item in wanted if isinstance(item, Path)]
    if len(paths) == len(wanted):
        longest = max_length if max_length is not None else expansion.sink
        checked = [expansion.check(path) for path in paths]
        found = _PathList(path for path in checked if (min_length or 0) <= path.length <= longest)
        if not found.count():
            raise SelectionError(
                f"none of the {len(paths)} paths has a length within {_bounds(min_length, max_length)}"
            )
    else:
        found = _match(expansion, wanted, min_length, max_length)
    selection = Selection(expansion, text, found)
    return selection if limit is None else selection[:limit]


def _match(expansion: Expansion, wanted: list[str | Path], min_length: int | None, max_length: int | None) -> TermGraph:
    patterns: list[tuple[_Element, ...]] = []
    for item in wanted:
        if isinstance(item, Path):
            expansion.check(item)
            patterns.append(tuple(_Element(hop.alias, exact=hop) for hop in item.hops))
        else:
            patterns.append(_parse(item))
    plain = _PatternAcceptor(expansion, patterns)
    bounded = min_length is not None or max_length is not None
    acceptor = _BoundedAcceptor(plain, min_length or 0, max_length) if bounded else plain
    found = TermGraph(expansion.automaton, acceptor)
    matched = 0
    for state in found.finals:
        matched |= acceptor.matched(state)
    for item, pattern, end in zip(wanted, patterns, plain.ends, strict=True):
        if not matched & end:
            raise SelectionError(_no_match(expansion, str(item), pattern, min_length, max_length))
    return found


def _is_map(expansion: Expansion, alias: str) -> bool:
    """Paths pass it as a map."""
    place = expansion.places.get(alias)
    return place is not None and place.site.role == "map" and bool(place.hops)


def _hops(expansion: Expansion) -> list[Hop]:
    """Everything that a path may write, sources first, then along the stream."""
    sources = [Hop(entry.source.alias) for entry in expansion.entries]
    return sources + [move.hop for moves in expansion.automaton.moves for move in moves if move.hop is not None]


def _bounds(min_length: int | None, max_length: int | None) -> str:
    return f"{min_length or 0}..{'any' if max_length is None else max_length}"


def _no_match(
    expansion: Expansion, text: str, pattern: tuple[_Element, ...], shortest: int | None, longest: int | None
) -> str:
    """Why a pattern matches no path."""
    hops = _hops(expansion)
    named: list[Hop] = []
    for element in (element for element in pattern if not element.gap):
        names = element.names(expansion)
        orders = [hop for hop in hops if hop.alias in names]
        found = [hop for hop in orders if element.takes(hop)]
        named += found
        if found:
            continue
        if orders:
            shown = ", ".join(map(str, orders[:6]))
            return f"{quoted(str(element))} in {quoted(text)} has an order that is not taken there. There are: {shown}"
        written = list(dict.fromkeys(hop.alias for hop in hops))
        return f"{quoted(str(element))} in {quoted(text)} matches no source and no site{nearest(element.glob, written)}"
    if shortest is not None or longest is not None:
        count = TermGraph(expansion.automaton, _PatternAcceptor(expansion, [pattern])).count()
        if count:
            return (
                f"{quoted(text)} matches {big(count)} paths, but none of a length within {_bounds(shortest, longest)}"
            )
    sources = {entry.source.alias for entry in expansion.entries if entry.origin in ("atom", "stream")}
    inside = [element.glob for element in pattern[1:] if element.glob in sources]
    if inside:
        return (
            f"no path matches {quoted(text)}: in this expansion (recipe {expansion.recipe!r}) {inside[-1]!r} is a "
            f"source of its own, at which paths start. Write '{inside[-1]} > {SINK}' or "
            f"'{inside[-1]} > ** > {SINK}', or take another recipe"
        )
    order = list(dict.fromkeys(hop.alias for hop in hops if hop in named))
    shown = " > ".join(order[:12]) + (" > …" if len(order) > 12 else "")
    return (
        f"every element of {quoted(text)} matches by itself, but no path has them in this order. Along the stream they "
        f"come as {shown}; a path runs from a source to {SINK!r}, passes each site once, and branches side by side "
        "exclude each other. Put ** where sites are left out"
    )


# The path DAG


def path_graph(expansion: Expansion, paths: Pattern | None = None) -> nx.MultiDiGraph:
    """The terms as a DAG: its walks from a source to the sink are exactly the terms.

    Nodes are the sources, the points of the stream, each site at each order, and the sink. All have the attributes
    `label`, `hop` (what the path's text says there; empty at points and the sink), `alias`, `path` (of the module),
    `order` (-1 where none is taken), `kind`, `role` (source, point, branch, map, decoder or sink), `point`,
    `weight_symbol` and `weight_value` (an exact fraction; empty where weights differ by centre). Edges have the same
    without `point`, with `from_point` and `to_point`; their role is that of the move (source, skip, branch, map,
    decoder), their `hop` is empty. The graph has `recipe`, `order` and `count` (in digits).

    Args:
        expansion: of which all terms are drawn, at a size of joins times orders.
        paths: draw these only (whatever `select` takes). Points at which none of them part are left out.

    >>> from jetgraph.expansion import expand
    >>> from jetgraph.program import JoinStep, Outline, Site, Source
    >>> join = JoinStep("add", "identity", False, (Site("L0.mlp", "layers.0.mlp", "mlp", "branch", False, False),))
    >>> decoder = Site("logits", "", "logits", "decoder", False, False)
    >>> dag = path_graph(expand(Outline((Source("embed", "embed", "embed"),), (join,), decoder), order=0))
    >>> count_paths(dag), list(path_texts(dag))
    (2, ['embed > logits^0', 'embed > L0.mlp^0 > logits^0'])
    """
    check(path_graph, locals())
    terms = expansion.term_graph if paths is None else select(expansion, paths).term_graph()
    return _Drawing(expansion, terms, shorten=paths is not None).dag


class _Drawing:
    """Draws a term graph, one node after the other."""

    def __init__(self, expansion: Expansion, terms: TermGraph, *, shorten: bool) -> None:
        self._expansion, self._terms = expansion, terms
        count = str(terms.count())
        self.dag = nx.MultiDiGraph(recipe=expansion.recipe, order=expansion.order, count=count)
        self._numbers: dict[Node, int] = {terms.end: 1}
        states: dict[int, int] = {}
        for point, state in terms.arcs:
            states[point] = states.get(point, 0) + 1
            self._numbers[point, state] = states[point]
        # Where a walk has no choice but to move on silently, it is drawn at the point where that ends.
        self._shown: dict[Node, Node] = {terms.end: terms.end}
        for node, arcs in reversed(terms.arcs.items()):
            idle = shorten and len(arcs) == 1 and arcs[0].hop is None
            self._shown[node] = self._shown[arcs[0].target] if idle else node
        for root in terms.roots:
            self._draw_root(root)
        for node, arcs in terms.arcs.items():
            if self._shown[node] == node:
                for arc in arcs:
                    self._draw_arc(node, arc)
        if terms.roots:
            self._point(terms.end)

    def _numbered(self, name: str, node: Node) -> str:
        number = self._numbers[node]
        return name if number == 1 else f"{name}/{number}"

    def _point(self, node: Node) -> str:
        if node == self._terms.end:
            facts = _facts(alias=SINK, kind="sink", role="sink")
            name, label = "sink", "output"
        else:
            facts = _facts(alias=f"h{node[0]}", kind="stream", role="point")
            name, label = self._numbered(f"point:{node[0]}", node), f"h{node[0]}"
        self.dag.add_node(name, label=label, hop="", point=node[0], **facts)
        return name

    def _edge(self, start: str, end: str, points: tuple[int, int], facts: dict[str, str | int]) -> None:
        self.dag.add_edge(start, end, label="", hop="", from_point=points[0], to_point=points[1], **facts)

    def _draw_root(self, root: Root) -> None:
        entry = root.entry
        source = entry.source
        facts = _facts(alias=source.alias, path=source.path, kind=source.kind, role="source")
        name = f"source:{source.alias}"
        self.dag.add_node(name, label=source.alias, hop=source.alias, point=entry.point, **facts)
        for hop in root.hops[1:]:
            self._draw_site(name, entry.enters, hop, root.target)
            return
        target = self._shown[root.target]
        self._edge(name, self._point(target), (entry.enters, target[0]), facts)

    def _draw_arc(self, node: Node, arc: Arc) -> None:
        if arc.hop is not None:
            self._draw_site(self._point(node), node[0], arc.hop, arc.target)
            return
        step = self._expansion.outline.steps[arc.target[0] - 1]
        if isinstance(step, JoinStep):
            facts = _facts(alias=step.name, kind=step.skip, role="skip")
        else:
            facts = _facts(alias=step.site.alias, path=step.site.path, kind=step.site.kind, role="map")
        target = self._shown[arc.target]
        self._edge(self._point(node), self._point(target), (node[0], target[0]), facts)

    def _draw_site(self, start: str, point: int, hop: Hop, target: Node) -> None:
        facts = self._site_facts(self._expansion.place(hop.alias).site, hop)
        name = self._numbered(f"site:{hop}", target)
        new = name not in self.dag
        self.dag.add_node(name, label=str(hop), hop=str(hop), point=target[0], **facts)
        self._edge(start, name, (point, point), facts)
        if new:
            unweighted = facts | {"weight_symbol": "", "weight_value": "1"}
            resolved = self._shown[target]
            self._edge(name, self._point(resolved), (target[0], resolved[0]), unweighted)

    def _site_facts(self, site: Site, hop: Hop) -> dict[str, str | int]:
        facts = _facts(alias=site.alias, path=site.path, kind=site.kind, role=site.role)
        if hop.order is None:
            return facts
        rule = self._expansion.rules[site.alias]
        assert isinstance(rule, Jet)
        value = str(self._expansion.centre_weight(site.alias, "")) if isinstance(rule.weights, str) else ""
        symbol = self._expansion.symbol(site.alias)
        return facts | {"order": hop.order, "weight_symbol": symbol, "weight_value": value}


def _facts(*, alias: str, kind: str, role: str, path: str = "") -> dict[str, str | int]:
    return {
        "alias": alias,
        "path": path,
        "order": -1,
        "kind": kind,
        "role": role,
        "weight_symbol": "",
        "weight_value": "1",
    }


def _sources(dag: nx.MultiDiGraph) -> list[str]:
    return [node for node, facts in dag.nodes(data=True) if facts["role"] == "source"]


def count_paths(dag: nx.MultiDiGraph) -> int:
    """Exact number of walks from a source to the sink of a path DAG, parallel edges told apart."""
    counts: dict[str, int] = {}
    for node in reversed(list(nx.topological_sort(dag))):
        onward = sum(counts[target] for _, target in dag.out_edges(node))
        counts[node] = 1 if dag.nodes[node]["role"] == "sink" else onward
    return sum(counts[source] for source in _sources(dag))


def path_texts(dag: nx.MultiDiGraph) -> Iterator[str]:
    """The texts of the paths of a path DAG, also of one that was read from a file; in the expansion's order."""
    for source in _sources(dag):
        hops = [dag.nodes[source]["hop"]]
        stack = [(iter(list(dag.out_edges(source))), 1)]
        while stack:
            edges, length = stack[-1]
            edge = next(edges, None)
            if edge is None:
                stack.pop()
                continue
            del hops[length:]
            facts = dag.nodes[edge[1]]
            if facts["role"] == "sink":
                yield " > ".join(hops)
                continue
            if facts["hop"]:
                hops.append(facts["hop"])
            stack.append((iter(list(dag.out_edges(edge[1]))), len(hops)))


# Graph files

_KEY = "parallel_key"


def write_graph(dag: nx.MultiDiGraph, file: str | os.PathLike[str]) -> pathlib.Path:
    """Write a path DAG in the format of the file's suffix: .graphml, .gexf, .json (node-link), .dot or .gv.

    Everything on it is kept: attributes and their types, direction, parallel edges. An existing file is replaced as a
    whole or not at all. Raises `JetGraphError` for another suffix, a folder that does not exist, and a text that the
    format cannot hold (control characters in the two of XML).
    """
    check(write_graph, locals())
    path = _path(file)
    content = _format(path)[0](dag)
    if not is_folder(path.parent):
        raise JetGraphError(f"cannot write {quoted(str(path))}: the folder {path.parent} does not exist")
    return write_atomically(path, lambda part: part.write_bytes(content))


def read_graph(file: str | os.PathLike[str]) -> nx.MultiDiGraph:
    """Read a graph that `write_graph` has written, with everything on it.

    Raises `JetGraphError` for another suffix, a missing file or one that is not in its format. XML that declares
    entities is refused: a few lines of it can stand for more than any memory holds.
    """
    check(read_graph, locals())
    path = _path(file)
    parse = _format(path)[1]
    if not is_file(path):
        raise JetGraphError(f"there is no file {quoted(str(path))} to read a graph from")
    with naming("read", path):
        content = path.read_bytes()
    try:
        return parse(content)
    except Exception as error:  # the parsers raise many types at what is not theirs
        kind = "" if isinstance(error, ValueError | SyntaxError | nx.NetworkXError) else f"{type(error).__name__}: "
        raise JetGraphError(f"{path} is no {path.suffix[1:]} file that can be read: {kind}{reason(error)}") from error


def _path(file: str | os.PathLike[str]) -> pathlib.Path:
    if not isinstance(file, str | os.PathLike) or not os.fspath(file):
        raise JetGraphError(f"{file!r} is no name of a file: give one, as a text or a path")
    return pathlib.Path(file)


def _format(path: pathlib.Path) -> tuple[Callable[[nx.MultiDiGraph], bytes], Callable[[bytes], nx.MultiDiGraph]]:
    if path.suffix.lower() not in _FORMATS:
        raise JetGraphError(f"{quoted(path.name)} names no graph format: end it in one of {', '.join(_FORMATS)}")
    return _FORMATS[path.suffix.lower()]


def _numbered_edges(dag: nx.MultiDiGraph) -> nx.MultiDiGraph:
    """A copy whose edge keys are unique in the whole graph, as GraphML and GEXF want of the ids made from them."""
    copy = nx.MultiDiGraph()
    copy.graph.update(dag.graph)
    copy.add_nodes_from(dag.nodes(data=True))
    for number, (start, end, key, facts) in enumerate(dag.edges(keys=True, data=True)):
        copy.add_edge(start, end, key=number, **{**facts, _KEY: key})
    return copy


def _original_edges(graph: Any, attributes: dict[str, Any]) -> nx.MultiDiGraph:
    """The graph as it was before `_numbered_edges`, without what networkx's readers add."""
    dag = nx.MultiDiGraph()
    dag.graph.update(attributes)
    dag.add_nodes_from(graph.nodes(data=True))
    for start, end, key, facts in graph.edges(keys=True, data=True):
        kept = {name: value for name, value in facts.items() if name not in ("id", _KEY)}
        dag.add_edge(start, end, key=facts.get(_KEY, key), **kept)
    return dag


_NOT_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _as_xml(dag: nx.MultiDiGraph) -> nx.MultiDiGraph:
    """The graph for a file of XML. Raises `JetGraphError` for texts that XML cannot hold."""
    held = [dag.graph, *(facts | {"node": node} for node, facts in dag.nodes(data=True))]
    for facts in (*held, *(facts for _, _, facts in dag.edges(data=True))):
        for text in (*facts, *facts.values()):
            if isinstance(text, str) and (found := _NOT_XML.search(text)) is not None:
                raise JetGraphError(
                    f"{text!r} holds the character {found[0]!r}, which XML cannot: write the graph as .json or .dot"
                )
    return _numbered_edges(dag)


def _checked_xml(content: bytes) -> bytes:
    """XML as it came. Raises `ValueError` where it declares a document type, and so perhaps entities."""

    def refuse(*_: Any) -> NoReturn:
        raise ValueError("it declares a document type, as no file of a graph does")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(content, True)
    return content


def _to_graphml(dag: nx.MultiDiGraph) -> bytes:
    buffer = BytesIO()
    nx.write_graphml_xml(_as_xml(dag), buffer)
    return buffer.getvalue()


def _from_graphml(content: bytes) -> nx.MultiDiGraph:
    graph = nx.read_graphml(BytesIO(_checked_xml(content)), force_multigraph=True)
    added = ("node_default", "edge_default")
    return _original_edges(graph, {name: value for name, value in graph.graph.items() if name not in added})


_GEXF = "http://www.gexf.net/1.2draft"


def _to_gexf(dag: nx.MultiDiGraph) -> bytes:
    buffer = BytesIO()
    nx.write_gexf(_as_xml(dag), buffer)
    # GEXF has no attributes of the graph itself, so they go where it keeps remarks.
    ElementTree.register_namespace("", _GEXF)
    tree = ElementTree.fromstring(buffer.getvalue())
    meta = tree.find(f"{{{_GEXF}}}meta")
    assert meta is not None
    ElementTree.SubElement(meta, f"{{{_GEXF}}}description").text = json.dumps(dag.graph)
    return ElementTree.tostring(tree, encoding="utf-8", xml_declaration=True)


def _from_gexf(content: bytes) -> nx.MultiDiGraph:
    remarks = ElementTree.fromstring(_checked_xml(content)).findtext(f"{{{_GEXF}}}meta/{{{_GEXF}}}description", "{}")
    return _original_edges(nx.MultiDiGraph(nx.read_gexf(BytesIO(content))), json.loads(remarks))


def _to_json(dag: nx.MultiDiGraph) -> bytes:
    return json.dumps(nx.node_link_data(dag, edges="edges"), indent=1, ensure_ascii=False).encode()


def _from_json(content: bytes) -> nx.MultiDiGraph:
    data = parse_json(content.decode("utf-8-sig"))
    if not isinstance(data, dict):
        raise ValueError(f"node-link JSON is an object, not {type(data).__name__}")
    return nx.MultiDiGraph(nx.node_link_graph(data, directed=True, multigraph=True, edges="edges"))


# DOT: strings are quoted and numbers are not, so that types come back.


def _quote(value: str | int | float) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if isinstance(value, str) else repr(value)


def _dot_facts(facts: dict[str, Any]) -> str:
    return ", ".join(f"{_quote(name)}={_quote(value)}" for name, value in facts.items())


def _to_dot(dag: nx.MultiDiGraph) -> bytes:
    lines = [f"  {_quote(name)}={_quote(value)};" for name, value in dag.graph.items()]
    lines += [f"  {_quote(node)} [{_dot_facts(facts)}];" for node, facts in dag.nodes(data=True)]
    for start, end, key, facts in dag.edges(keys=True, data=True):
        lines.append(f"  {_quote(start)} -> {_quote(end)} [{_dot_facts({**facts, 'key': key})}];")
    return "\n".join(["digraph {", *lines, "}", ""]).encode()


_DOT = re.compile(
    r'"(?P<quoted>(?:\\.|[^"\\])*)"|(?P<number>-?(?:\.\d+|\d+(?:\.\d*)?)(?:e[+-]?\d+)?)|(?P<name>[^\W\d]\w*)'
    r"|(?P<mark>->|[][{}=;,])|(?P<blank>\s+|//[^\n]*|/\*.*?\*/|\#[^\n]*)",
    re.DOTALL,
)

_Token = tuple[str, str | int | float]


def _dot_tokens(text: str) -> Iterator[_Token]:
    place = 0
    while place < len(text):
        match = _DOT.match(text, place)
        if match is None:
            raise SyntaxError(f"{text[place : place + 20]!r} is not expected")
        place = match.end()
        if match["quoted"] is not None:
            yield "value", re.sub(r"\\(.)", r"\1", match["quoted"], flags=re.DOTALL)
        elif match["number"] is not None:
            number = match["number"]
            yield "value", int(number) if number.lstrip("-").isdigit() else float(number)
        elif match["name"] is not None:
            yield "value", match["name"]
        elif match["mark"] is not None:
            yield match["mark"], match["mark"]


class _DotReader:
    """Reads directed DOT graphs of nodes, edges and attributes (no subgraphs, ports or defaults)."""

    def __init__(self, text: str) -> None:
        self._tokens: list[_Token] = [*_dot_tokens(text), ("end", "the end of the file")]
        self._place = 0
        self.dag = nx.MultiDiGraph()

    def _take(self, kind: str) -> Any:
        found, value = self._tokens[self._place]
        if found != kind:
            raise SyntaxError(f"{value!r} stands where {kind!r} is expected")
        self._place += 1
        return value

    def _skip(self, kind: str) -> bool:
        found = self._tokens[self._place][0] == kind
        self._place += found
        return found

    def read(self) -> nx.MultiDiGraph:
        if self._take("value") != "digraph":
            raise SyntaxError("a graph of jetgraph is a 'digraph'")
        self._skip("value")
        self._take("{")
        while not self._skip("}"):
            self._statement()
            self._skip(";")
        self._take("end")
        return self.dag

    def _statement(self) -> None:
        chain = [self._take("value")]
        if self._skip("="):
            self.dag.graph[chain[0]] = self._take("value")
            return
        while self._skip("->"):
            chain.append(self._take("value"))
        facts = self._facts()
        if len(chain) == 1:
            self.dag.add_node(chain[0], **facts)
        key = facts.pop("key", None) if len(chain) > 1 else None
        for start, end in pairwise(chain):
            self.dag.add_edge(start, end, key=key, **facts)

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        while self._skip("["):
            while not self._skip("]"):
                name = self._take("value")
                self._take("=")
                facts[name] = self._take("value")
                if not self._skip(","):
                    self._skip(";")
        return facts


def _from_dot(content: bytes) -> nx.MultiDiGraph:
    return _DotReader(content.decode("utf-8-sig")).read()


_FORMATS: dict[str, tuple[Callable[[nx.MultiDiGraph], bytes], Callable[[bytes], nx.MultiDiGraph]]] = {
    ".graphml": (_to_graphml, _from_graphml),
    ".gexf": (_to_gexf, _from_gexf),
    ".json": (_to_json, _from_json),
    ".dot": (_to_dot, _from_dot),
    ".gv": (_to_dot, _from_dot),
}

GRAPHS = tuple(_FORMATS)
"""Suffixes of graph files."""
