"""Paths as values, numbered so that equal ones have one number: sources, values carried to a point, and what a site
gives of a value at an order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from jetgraph.algebra.automaton import Entry
from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.passages import Passage
from jetgraph.algebra.paths import Hop, Path
from jetgraph.errors import BudgetError, big
from jetgraph.jets.series import check_order

CENTRE_BUDGET = 4096
"""How many centres a site may have where all are needed at once: with directions="terms", or optimal weights."""


class Value(NamedTuple):
    """A term at a point: a source, another value carried there, or what a site gave."""

    point: int
    last: str
    """Alias of its last hop."""
    entry: Entry | None = None
    before: int | None = None
    hop: Hop | None = None
    members: tuple[int, ...] = ()
    """Of a group, the values that it is the sum of."""


@dataclass
class Values:
    """All values that some paths need, by number; those that a value is made from have lower numbers."""

    expansion: Expansion
    values: list[Value] = field(default_factory=list)
    passing: dict[tuple[str, int], dict[Hop, int]] = field(default_factory=dict)
    """By site and value that it reads: the values that it gives, by hop."""

    def __post_init__(self) -> None:
        self._entered: dict[str, int] = {}
        self._taken: dict[tuple[int, Hop], int] = {}
        """By a value, wherever it is on its silent way, and a hop that it takes: what that gives."""
        self._carried: dict[tuple[int, int], int] = {}
        self._arrived: dict[int, list[int]] = {}
        self._completed: set[str] = set()
        self.chosen: dict[str, list[int]] = {}
        """By site that chooses its centres when it runs: those."""
        self._lumps: dict[tuple[int, str, tuple[int, ...]], int] = {}

    def of(self, path: Path) -> int:
        """The value of a path at the sink."""
        entry = self.expansion.start(path)
        value = self.enter(entry)
        if self.values[value].point == self.expansion.sink:
            return value
        for hop in path.hops[entry.begins :]:
            value = self.past(value, hop)
        return value

    def at(self, path: Path, point: int) -> int:
        """The value of a path at the last point before the sink."""
        entry = self.expansion.start(path)
        value = self.enter(entry)
        for hop in path.hops[entry.begins : -1]:
            value = self.past(value, hop)
        return self.carry(value, point)

    def _new(self, value: Value) -> int:
        self.values.append(value)
        return len(self.values) - 1

    def enter(self, entry: Entry) -> int:
        alias = entry.source.alias
        if entry.is_group:
            assert entry.hop is not None
            return self.past(self._group(self.expansion.passage(entry.hop.alias), entry.source.alias), entry.hop)
        if alias not in self._entered:
            self._entered[alias] = self._new(Value(entry.enters, alias, entry))
        return self._entered[alias]

    def _group(self, passage: Passage, name: str) -> int:
        """All terms of a group, at the point that its site reads."""
        self._check_centres(passage, "centres=")
        arriving = self.arriving(passage.reads)
        groups = self.expansion.groups(passage.site.alias)
        members = tuple(value for value in arriving if groups[self.values[value].last] == name)
        return self.lump(passage.reads, name, members)

    def lump(self, point: int, name: str, members: tuple[int, ...]) -> int:
        """The sum of values at a point, as one centre."""
        if (point, name, members) not in self._lumps:
            self._lumps[point, name, members] = self._new(Value(point, name, members=members))
        return self._lumps[point, name, members]

    def carry(self, value: int, point: int) -> int:
        """A value at a later point, along the silent way there."""
        for between in self.expansion.automaton.route(self.values[value].point, point) or ():
            if (value, between) not in self._carried:
                carried = Value(between, self.values[value].last, before=value)
                self._carried[value, between] = self._new(carried)
            value = self._carried[value, between]
        return value

    def past(self, value: int, hop: Hop) -> int:
        """What a site gives of a value at an order."""
        if (known := self._taken.get((value, hop))) is not None:
            return known
        passage = self.expansion.passage(hop.alias)
        read = self.carry(value, passage.reads)
        if read != value:
            self._taken[value, hop] = known = self.past(read, hop)
            return known
        if hop.order:
            check_order(hop.order)
        if passage.rule.across(hop.order):
            self._check_centres(passage, 'directions="terms"')
            self.arriving(passage.reads)
        self._taken[value, hop] = new = self._new(Value(passage.step, hop.alias, before=value, hop=hop))
        self.passing.setdefault((hop.alias, value), {})[hop] = new
        if not passage.rule.weighs_alike:
            self._complete(passage)
        return new

    def _complete(self, passage: Passage) -> None:
        """The jets of all centres at a site, whose weights are found together."""
        if passage.site.alias in self._completed:
            return
        self._completed.add(passage.site.alias)
        if passage.beam is None:
            self._check_centres(passage, "weights that are not the same for all tokens")
        for centre in self.centres(passage):
            for hop in passage.hops if passage.rule.weighting == "optimal" else ():
                self.past(centre, hop)

    def centres(self, passage: Passage) -> list[int]:
        """Every centre of a site, in the order of `Expansion.centres`."""
        if passage.site.alias in self.chosen:
            return self.chosen[passage.site.alias]
        if passage.groups:
            return [self._group(passage, name) for name in passage.groups]
        return self.arriving(passage.reads)

    def _check_centres(self, passage: Passage, what: str) -> None:
        centres = self.expansion.incoming(passage.reads)
        if centres > CENTRE_BUDGET:
            raise BudgetError(
                f"{what} at {passage.site.alias!r} takes all {big(centres)} terms that arrive there as "
                f'centres, more than {CENTRE_BUDGET:,}: use directions="stream" and weights such as "uniform" there, '
                'groups at every site, or a recipe with fewer terms such as "components"'
            )

    def arriving(self, point: int) -> list[int]:
        """Every term of the expansion at a point of the stream."""
        if point not in self._arrived:
            arrived: list[int] = []
            for move in self.expansion.automaton.moves[point - 1] if point else ():
                for value in self.arriving(move.start):
                    arrived.append(self.carry(value, point) if move.hop is None else self.past(value, move.hop))
            arrived += map(self.enter, self.expansion.automaton.entering[point])
            self._arrived[point] = arrived
        return self._arrived[point]
