"""The automaton of an expansion: its walks from a source to the sink are the terms.

Its states are the points 0..n of the stream and the sink n+1, in topological order. A source enters at a point; a move
leads from a point to any later one, silently (a skip) or under a label (a site).

    incoming(v) = entries(v) + Σ_{moves u → v} incoming(u)
    count       = incoming(n+1)

In a chain every move comes from the point before; long skips and inputs that are added again come from earlier ones.
No point has two silent moves into it, so that the hops of a path say which walk it is. Counting is a dynamic programme
over the points, exact at any size, and the product with an acceptor is a selection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

from jetgraph.algebra.outline import Site, Source
from jetgraph.algebra.paths import Hop, Path
from jetgraph.errors import BudgetError

STATE_BUDGET = 300_000
"""How many states the automaton of a selection may have."""

Origin = Literal["encoder", "injection", "skip", "affine", "freeze", "decoder", "split", "atom", "stream", "group"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A source, and where its history starts."""

    source: Source
    enters: int
    """The point of the stream at which the term appears; n+1 for a bias of the decoder."""
    point: int
    """The point to which the value belongs: `enters`, except for a `stream` source, which is the stream at `point`
    and goes straight to the decoder (it enters at n)."""
    origin: Origin
    """What makes it: a summand of the encoder, an injection, the bias of a skip, the bias of an affine site, what a
    site leaves besides its linear part at the true stream, what a split branch has besides its parts, the bias of the
    decoder's affine part, an atom, the stream itself, or several terms that are one centre."""
    site: Site | None = None
    """The site that makes it, where one does (affine, freeze, decoder, atom; for `split` the whole branch; for `group`
    the one that reads it)."""
    hop: Hop | None = None
    """What it has passed where it enters, as a group of terms has that is a centre of one site alone, and the bias of
    the decoder."""

    @property
    def hops(self) -> tuple[Hop, ...]:
        """What its path begins with."""
        source = Hop(self.source.alias)
        return (source,) if self.hop is None else (source, self.hop)

    @property
    def begins(self) -> int:
        """How many hops its path begins with."""
        return 1 if self.hop is None else 2

    @property
    def last(self) -> str:
        """The last site or source of its term."""
        return self.source.alias if self.hop is None else self.hop.alias

    @property
    def of_decoder(self) -> bool:
        """A constant of the decoder, which no term passes."""
        return self.hop is not None and not self.is_group

    @property
    def is_group(self) -> bool:
        """The sum of several terms, at the one site of which it is a centre."""
        return self.origin == "group"

    @property
    def is_atom(self) -> bool:
        """What a site gives at the true stream, as a term of its own."""
        return self.origin == "atom"

    @property
    def is_stream(self) -> bool:
        """The true stream itself at a point, as in a lens."""
        return self.origin == "stream"

    @property
    def is_output_bias(self) -> bool:
        """The constant of the decoder's affine part, which is in the output whatever the terms are."""
        return self.origin == "decoder"


@dataclass(frozen=True, slots=True)
class Move:
    """How a history gets on from the point `start`: past a site under its label, or silently (None)."""

    start: int
    hop: Hop | None = None


@dataclass(frozen=True, eq=False)
class Automaton:
    """Sources, and the moves between the points of a stream."""

    entries: tuple[Entry, ...]
    """All sources, in the order in which they enter."""
    moves: tuple[tuple[Move, ...], ...]
    """moves[v-1]: how histories get to point v. The last ones pass the decoder."""
    groups: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By site whose centres are groups of terms: the group of each that arrives, by the alias of its last hop."""

    @property
    def sink(self) -> int:
        """The number of the sink as a point: one after the last point of the stream."""
        return len(self.moves)

    def hops(self) -> Iterator[Hop]:
        """What paths may write of sites, along the stream."""
        for point, moves in enumerate(self.moves, start=1):
            yield from (move.hop for move in moves if move.hop is not None)
            yield from dict.fromkeys(entry.hop for entry in self.entering[point] if entry.is_group and entry.hop)

    @cached_property
    def entering(self) -> tuple[tuple[Entry, ...], ...]:
        """The entries at each point, the sink's last."""
        by_point: list[list[Entry]] = [[] for _ in range(self.sink + 1)]
        for entry in self.entries:
            by_point[entry.enters].append(entry)
        return tuple(map(tuple, by_point))

    @cached_property
    def incoming(self) -> tuple[int, ...]:
        """The number of terms at each point, the sink's last."""
        counts = [len(self.entering[0])]
        for point, moves in enumerate(self.moves, start=1):
            counts.append(sum(counts[move.start] for move in moves) + len(self.entering[point]))
        return tuple(counts)

    @cached_property
    def _silent(self) -> tuple[int | None, ...]:
        """By point, where the silent move into it starts."""
        starts = (next((move.start for move in moves if move.hop is None), None) for moves in self.moves)
        return (None, *starts)

    @cached_property
    def _routes(self) -> dict[tuple[int, int], tuple[int, ...] | None]:
        return {}

    def route(self, start: int, stop: int) -> tuple[int, ...] | None:
        """The points after `start` that silent moves pass on their way to `stop`, which is the last; None where there
        is no way.
        """
        if (start, stop) not in self._routes:
            self._routes[start, stop] = self._route(start, stop)
        return self._routes[start, stop]

    def _route(self, start: int, stop: int) -> tuple[int, ...] | None:
        points: list[int] = []
        at: int | None = stop
        while at is not None and at > start:
            points.append(at)
            at = self._silent[at]
        return tuple(reversed(points)) if at == start else None

    def beginnings(self, point: int) -> tuple[str, ...]:
        """The texts of all ways from a source to a point."""
        arrived: list[list[str]] = []
        for at in range(point + 1):
            moves = self.moves[at - 1] if at else ()
            moved = [
                text if move.hop is None else f"{text} > {move.hop}" for move in moves for text in arrived[move.start]
            ]
            arrived.append([*moved, *(" > ".join(map(str, entry.hops)) for entry in self.entering[at])])
        return tuple(arrived[point])

    def last_hops(self, point: int) -> dict[str, int]:
        """Number of terms at a point, by the alias of their last hop."""
        numbers: dict[str, int] = {}
        at: int | None = point
        while at is not None:
            for entry in self.entering[at]:
                numbers[entry.last] = numbers.get(entry.last, 0) + 1
            for move in self.moves[at - 1] if at else ():
                if move.hop is not None:
                    numbers[move.hop.alias] = numbers.get(move.hop.alias, 0) + self.incoming[move.start]
            at = self._silent[at]
        return numbers

    # Counting

    def count(self, length: int | None = None, order: int | None = None) -> int:
        """Exact number of terms, of those with a given `Path.length` or `Path.order` where one is given."""
        if length is None and order is None:
            return self.incoming[-1]
        if not 0 <= (length or 0) <= self.sink or not 0 <= (order or 0) <= self.highest:
            return 0
        by_length, bits = self.distribution(length is not None, order, length)
        return sum(_coefficient(value, bits, order or 0) for n, value in by_length.items() if n == (length or 0))

    def counts(self) -> dict[tuple[int, int], int]:
        """Number of terms by (`Path.length`, `Path.order`); pairs without terms are left out."""
        top = self.highest
        table, bits = self.distribution(True, top)
        numbers = {(n, j): _coefficient(value, bits, j) for n, value in table.items() for j in range(top + 1)}
        return {key: numbers[key] for key in sorted(numbers) if numbers[key]}

    @cached_property
    def highest(self) -> int:
        """No path has a higher order."""
        best = [0]
        for moves in self.moves:
            orders = [best[move.start] + ((move.hop and move.hop.order) or 0) for move in moves]
            orders += [(entry.hop and entry.hop.order) or 0 for entry in self.entering[len(best)]]
            best.append(max(orders, default=0))
        return best[-1]

    def distribution(
        self, by_length: bool = True, order: int | None = None, longest: int | None = None
    ) -> tuple[dict[int, int], int]:
        """Terms by length; each value is a polynomial in y (the order), up to y^order, packed into one integer.

        Packing puts the coefficient of y^j at bit j·bits. No coefficient exceeds the total count, so none spills,
        and multiplying by 1 + y + … + y^k is a few shifts. bits = 0 stands for y = 1. Lengths above `longest` are left
        out.
        """
        bits = 0 if order is None else self.incoming[-1].bit_length() + 1
        mask = (1 << bits * ((order or 0) + 1)) - 1
        last_read = {move.start: point for point, moves in enumerate(self.moves, start=1) for move in moves}
        tables: dict[int, dict[int, int]] = {0: {0: len(self.entering[0])}}
        for point, moves in enumerate(self.moves, start=1):
            longer = 1 if by_length and point < self.sink else 0
            reached: dict[int, int] = {}
            for start in dict.fromkeys(move.start for move in moves):
                hops = [move.hop for move in moves if move.start == start]
                for n, value in tables[start].items():
                    if silent := hops.count(None):
                        reached[n] = reached.get(n, 0) + silent * value
                    if silent < len(hops) and (longest is None or n + longer <= longest):
                        passed = _passed(value, hops, bits)
                        reached[n + longer] = reached.get(n + longer, 0) + (passed & mask if bits else passed)
            for entry in self.entering[point]:
                passed = longer if entry.is_group else 0
                if longest is None or passed <= longest:
                    one = 1 << bits * ((entry.hop and entry.hop.order) or 0)
                    reached[passed] = reached.get(passed, 0) + (one & mask if bits else 1)
            tables[point] = reached
            # Of points that nothing reads any more the tables, of large numbers, are dropped.
            tables = {at: table for at, table in tables.items() if last_read.get(at, self.sink) > point or at == point}
        return tables[self.sink], bits


def _passed(value: int, hops: Iterable[Hop | None], bits: int) -> int:
    """A packed polynomial after the moves under a label, all from one point."""
    orders: dict[str, list[int]] = {}
    for hop in hops:
        if hop is not None:
            orders.setdefault(hop.alias, []).append(hop.order or 0)
    total = 0
    for taken, sites in Counter(map(tuple, orders.values())).items():
        if taken == tuple(range(len(taken))):
            total += sites * _geometric(value, len(taken), bits)
        else:
            total += sites * sum(value << bits * order for order in taken)
    return total


def _geometric(value: int, width: int, bits: int) -> int:
    """A packed polynomial times 1 + y + … + y^(width-1)."""
    if bits == 0:
        return value * width
    if width == 1:
        return value
    if width % 2:
        return _geometric(value, width - 1, bits) + (value << bits * (width - 1))
    half = _geometric(value, width // 2, bits)
    return half + (half << bits * (width // 2))


def _coefficient(value: int, bits: int, order: int) -> int:
    return value if bits == 0 else (value >> bits * order) & ((1 << bits) - 1)


# Selections


class Acceptor(Protocol):
    """A deterministic automaton over hops; the product with an expansion's is a selection."""

    def start(self) -> Hashable: ...

    def step(self, state: Any, hop: Hop) -> Hashable | None:
        """The state after `hop`, or None where no path can match any more."""
        ...

    def accepts(self, state: Any) -> bool: ...


def accepted(acceptor: Acceptor, path: Path) -> bool:
    """Whether an acceptor takes a path."""
    state: Any = acceptor.start()
    for hop in path.hops:
        state = None if state is None else acceptor.step(state, hop)
    return state is not None and acceptor.accepts(state)


class Everything:
    """Accepts every path."""

    def start(self) -> int:
        return 0

    def step(self, state: int, hop: Hop) -> int:
        return state

    def accepts(self, state: int) -> bool:
        return True


Node = tuple[int, Hashable]
"""A state of a term graph: a point, and the state of the acceptor there."""


@dataclass(frozen=True, slots=True)
class Arc:
    """One move of a term graph; `hop` is None for a silent one."""

    hop: Hop | None
    target: Node


@dataclass(frozen=True, slots=True)
class Root:
    """A source's entry into a term graph, and what its paths begin with."""

    entry: Entry
    hops: tuple[Hop, ...]
    target: Node


class TermGraph:
    """The product of an automaton with an acceptor: a DAG whose walks are the accepted paths.

    Only states that lie on an accepted path are kept, so that every walk from a root ends in `end`.
    """

    def __init__(self, automaton: Automaton, acceptor: Acceptor) -> None:
        self.end: Node = (automaton.sink, None)
        self.finals: set[Hashable] = set()
        """Accepting states that are reached."""
        self.acceptor = acceptor
        roots: list[Root] = []
        arcs: dict[Node, list[Arc]] = {}
        reached: list[list[Hashable]] = []
        """The acceptor's states at each point."""
        for point in range(automaton.sink + 1):
            states: dict[Hashable, None] = {}
            for start, hops in _by_start(automaton.moves[point - 1] if point else ()):
                for state in reached[start]:
                    arcs[start, state] += self._arcs(hops, point, state, states)
            for entry in automaton.entering[point]:
                root = self._root(entry)
                if root is not None:
                    roots.append(root)
                    if root.target != self.end:
                        states[root.target[1]] = None
            # In the order of the points, so that backwards every arc leads to a node that was met before.
            arcs |= {(point, state): [] for state in states}
            reached.append(list(states))
            if len(arcs) > STATE_BUDGET:
                # Who asks for it says what would fit.
                raise BudgetError(f"the automaton of this selection has over {STATE_BUDGET} states")
        self._prune(roots, arcs)

    @classmethod
    def count_within(cls, automaton: Automaton, acceptor: Acceptor) -> int | None:
        """How many paths the product accepts; None where it is over the budget."""
        try:
            return cls(automaton, acceptor).count()
        except BudgetError:
            return None

    def _finish(self, state: Hashable) -> Node | None:
        if not self.acceptor.accepts(state):
            return None
        self.finals.add(state)
        return self.end

    def _root(self, entry: Entry) -> Root | None:
        state: Hashable | None = self.acceptor.start()
        for hop in entry.hops:
            state = None if state is None else self.acceptor.step(state, hop)
        if state is None:
            return None
        target = self._finish(state) if entry.enters == self.end[0] else (entry.enters, state)
        return None if target is None else Root(entry, entry.hops, target)

    def _arcs(
        self, hops: Iterable[Hop | None], point: int, state: Hashable, states: dict[Hashable, None]
    ) -> Iterator[Arc]:
        """The arcs of a state to a point, whose states are added to."""
        for hop in hops:
            after = state if hop is None else self.acceptor.step(state, hop)
            if after is None:
                continue
            target: Node | None = (point, after)
            if point == self.end[0]:
                target = self._finish(after)
            else:
                states[after] = None
            if target is not None:
                yield Arc(hop, target)

    def _prune(self, roots: list[Root], arcs: dict[Node, list[Arc]]) -> None:
        self.counts: dict[Node, int] = {self.end: 1}
        kept: dict[Node, tuple[Arc, ...]] = {}
        for node in reversed(arcs):
            alive = tuple(arc for arc in arcs[node] if arc.target in self.counts)
            if alive:
                kept[node] = alive
                self.counts[node] = sum(self.counts[arc.target] for arc in alive)
        self.arcs = dict(reversed(kept.items()))
        self.roots = tuple(root for root in roots if root.target in self.counts)

    def count(self) -> int:
        """Exact number of accepted paths."""
        return sum(self.counts[root.target] for root in self.roots)

    def paths(self, skip: int = 0) -> Iterator[Path]:
        """The accepted paths in the expansion's order, from number `skip` on; what is skipped is not enumerated."""
        for root in self.roots:
            number = self.counts[root.target]
            if skip < number:
                yield from self._descend(root, skip)
            skip = max(0, skip - number)

    def _descend(self, root: Root, skip: int) -> Iterator[Path]:
        hops = list(root.hops)
        if root.target == self.end:
            yield Path(tuple(hops))
            return
        stack = [(iter(self.arcs[root.target]), len(hops))]
        while stack:
            moves, length = stack[-1]
            arc = next(moves, None)
            if arc is None:
                stack.pop()
                continue
            if skip and skip >= self.counts[arc.target]:
                skip -= self.counts[arc.target]
                continue
            del hops[length:]
            if arc.hop is not None:
                hops.append(arc.hop)
            if arc.target == self.end:
                yield Path(tuple(hops))
            else:
                stack.append((iter(self.arcs[arc.target]), len(hops)))


def _by_start(moves: Iterable[Move]) -> Iterable[tuple[int, list[Hop | None]]]:
    """The hops of moves by the point where they start."""
    by_start: dict[int, list[Hop | None]] = {}
    for move in moves:
        by_start.setdefault(move.start, []).append(move.hop)
    return by_start.items()
