"""Paths → a plan: what passes which site in which way, each common prefix once.

First the paths become values, numbered so that equal ones have one number: sources, values carried to a point, and what
a site gives at an order. Then each site is visited once, in the order of the stream, and its rule says which operations
take the values past it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import fx

from jetgraph.algebra.automaton import Entry
from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.passages import Passage
from jetgraph.algebra.paths import Hop, Path
from jetgraph.algebra.rules import Distribute, Freeze, Jet, Rule, Tangent
from jetgraph.compilation.origins import SOURCES, Model
from jetgraph.compilation.plan import (
    Along,
    Carry,
    Coefficient,
    Enter,
    Land,
    Lane,
    Open,
    Operation,
    Part,
    Pass,
    Plan,
    Polynomial,
    Stream,
    Sum,
    Towards,
    Visit,
    Work,
)
from jetgraph.errors import BudgetError, big
from jetgraph.jets.series import check_order
from jetgraph.structure.regions import JoinStage

CENTRE_BUDGET = 4096
"""How many centres a site with directions="terms" may have."""


def plan(model: Model, paths: Sequence[Path], point: int | None = None) -> Plan:
    """The evaluation of paths of an expansion; as they arrive at a point, which they pass last, where one is given.

    Raises `BudgetError` for orders, and for numbers of centres, that would take forever.
    """
    values = _Values(model.expansion)
    results = {path: values.of(path) if point is None else values.at(path, point) for path in paths}
    return _Planning(model, values).plan(results)


# Values


@dataclass(frozen=True, slots=True)
class _Value:
    """A term at a point: a source, another value carried there, or what a site gave."""

    point: int
    last: str
    """Alias of its last hop."""
    entry: Entry | None = None
    before: int | None = None
    hop: Hop | None = None


@dataclass
class _Values:
    """All values that some paths need, by number; those that a value is made from have lower numbers."""

    expansion: Expansion
    values: list[_Value] = field(default_factory=list)
    passing: dict[tuple[str, int], dict[Hop, int]] = field(default_factory=dict)
    """By site and value that it reads: the values that it gives, by hop."""

    def __post_init__(self) -> None:
        self._entered: dict[str, int] = {}
        self._carried: dict[tuple[int, int], int] = {}
        self._passed: dict[tuple[int, Hop], int] = {}
        self._arrived: dict[int, list[int]] = {}

    def of(self, path: Path) -> int:
        """The value of a path at the sink."""
        value = self.enter(self.expansion.entry(path.source.alias))
        if self.values[value].point == self.expansion.sink:
            return value
        for hop in path.hops[1:]:
            value = self.past(value, hop)
        return value

    def at(self, path: Path, point: int) -> int:
        """The value of a path at the last point before the sink."""
        value = self.enter(self.expansion.entry(path.source.alias))
        for hop in path.sites:
            value = self.past(value, hop)
        return self.carry(value, point)

    def _new(self, value: _Value) -> int:
        self.values.append(value)
        return len(self.values) - 1

    def enter(self, entry: Entry) -> int:
        alias = entry.source.alias
        if alias not in self._entered:
            self._entered[alias] = self._new(_Value(entry.enters, alias, entry))
        return self._entered[alias]

    def carry(self, value: int, point: int) -> int:
        """A value at a later point, along the silent way there."""
        for between in self.expansion.automaton.route(self.values[value].point, point) or ():
            if (value, between) not in self._carried:
                carried = _Value(between, self.values[value].last, before=value)
                self._carried[value, between] = self._new(carried)
            value = self._carried[value, between]
        return value

    def past(self, value: int, hop: Hop) -> int:
        """What a site gives of a value at an order."""
        passage = self.expansion.passage(hop.alias)
        read = self.carry(value, passage.reads)
        if (read, hop) not in self._passed:
            if hop.order:
                check_order(hop.order)
                if passage.rule.across(hop.order):
                    self._check_centres(passage)
                    self.arriving(passage.reads)
            new = self._new(_Value(passage.step, hop.alias, before=read, hop=hop))
            self._passed[read, hop] = new
            self.passing.setdefault((hop.alias, read), {})[hop] = new
        return self._passed[read, hop]

    def _check_centres(self, passage: Passage) -> None:
        centres = self.expansion.incoming(passage.reads)
        if centres > CENTRE_BUDGET:
            raise BudgetError(
                f'directions="terms" at {passage.site.alias!r} takes all {big(centres)} terms that arrive there as '
                f'centres, more than {CENTRE_BUDGET}: use directions="stream" there, or a recipe with fewer terms '
                'such as "components"'
            )

    def arriving(self, point: int) -> list[int]:
        """Every term of the expansion at a point of the stream."""
        if point not in self._arrived:
            found: list[int] = []
            for move in self.expansion.automaton.moves[point - 1] if point else ():
                for value in self.arriving(move.start):
                    found.append(self.carry(value, point) if move.hop is None else self.past(value, move.hop))
            found += map(self.enter, self.expansion.automaton.entering[point])
            self._arrived[point] = found
        return self._arrived[point]


# Operations


class _Planning:
    """Operations that make the values, visit by visit."""

    def __init__(self, model: Model, values: _Values) -> None:
        self.model = model
        self.values = values
        self.operations: list[Operation] = []
        self.work: list[Work] = []
        self.visits: list[Visit] = []
        self._known: dict[Operation, int] = {}
        self._made: dict[int, int] = {}
        """By value, the operation that makes it."""
        self._reading: dict[str, list[int]] = {}
        """By site, the values that pass it."""
        self._points: list[int] = []
        """Of the true stream, those that are read."""

    def plan(self, results: dict[Path, int]) -> Plan:
        passed = Counter[str]()
        for alias, value in self.values.passing:
            passed[self.model.expansion.passage(alias).site.role] += 1
            self._reading.setdefault(alias, []).append(value)
        for passages in self._sites():
            self._visit(passages)
        rest = [index for value in results.values() for index in self._make(value)]
        if rest:
            self.visits.append(Visit((Lane(tuple(rest), (), ()),), stacked=False))
        return Plan(
            tuple(self.operations),
            tuple(self.work),
            tuple(self.visits),
            {path: self._made[value] for path, value in results.items()},
            passed,
            tuple(self.model.graph.traced.graph.nodes),
            max(self._points, default=None),
        )

    def _sites(self) -> Iterator[list[Passage]]:
        """The sites that are passed, in the order of the stream; the parts of one branch are visited together."""
        found: dict[str, list[Passage]] = {}
        for alias, passage in self.model.expansion.passages.items():
            if alias in self._reading:
                part = self.model.branch(passage).part if passage.site.role == "branch" else None
                found.setdefault(alias if part is None else part.whole, []).append(passage)
        yield from found.values()

    def add(self, operation: Operation, work: Work, into: list[int]) -> int:
        """The number of an operation, which is a new one of the list if it was not there before."""
        if operation not in self._known:
            self._known[operation] = len(self.operations)
            self.operations.append(operation)
            self.work.append(work)
            into.append(self._known[operation])
        return self._known[operation]

    def _make(self, value: int) -> list[int]:
        """New operations that make a value that has not passed a site since it was made."""
        new: list[int] = []
        chain: list[int] = []
        at = value
        while at not in self._made:
            chain.append(at)
            before = self.values.values[at].before
            if before is None:
                break
            at = before
        for number in reversed(chain):
            found = self.values.values[number]
            if found.entry is not None:
                self._made[number] = self._enter(found.entry, new)
            else:
                assert found.before is not None
                assert found.hop is None
                self._made[number] = self._carry(self._made[found.before], found.point, new)
        return new

    def _enter(self, entry: Entry, into: list[int]) -> int:
        source = SOURCES[entry.origin]
        point = source.point(self.model, entry)
        if point is not None:
            self._points.append(point)
        return self.add(Enter(entry), Work(tuple(source.reads(self.model, entry)), self._at(entry.enters)), into)

    def _at(self, point: int) -> fx.Node:
        """A node like a value at a point; at the sink, before the decoder's affine part."""
        if point == self.model.expansion.sink:
            return self.model.graph.structure.decoder.nonlinear.exit
        return self.model.point(point)

    def _carry(self, value: int, point: int, into: list[int]) -> int:
        region, makes = self.model.carrying(point), self.model.point(point)
        stage = self.model.stage(point)
        same = region is not None and not region.nodes and region.entry.meta["dtype"] == makes.meta["dtype"]
        if same and not (isinstance(stage, JoinStage) and stage.join.kind == "concat"):
            return value
        side, nodes = ((), ()) if region is None else (region.side, region.nodes)
        return self.add(Carry(value, point), Work(side, makes, runs=nodes), into)

    # At a site

    def _visit(self, passages: Sequence[Passage]) -> None:
        passing = self.values.passing
        aliases = {passage.site.alias: passage for passage in passages}
        lanes: list[Lane] = []
        for value in dict.fromkeys(value for alias in aliases for value in self._reading[alias]):
            lane = _Lane(self, passages[0], self.values.values[value].last)
            lane.before += self._make(value)
            for alias, passage in aliases.items():
                if (alias, value) in passing:
                    lane.passage = passage
                    self._made |= RULES[type(passage.rule)](lane, value, passing[alias, value])
            lanes.append(Lane(tuple(lane.before), tuple(lane.passes), tuple(lane.after)))
        region = self.model.region(passages[0])
        passes = [self.operations[number] for lane in lanes for number in lane.passes]
        one = len(passes) == len(lanes) and all(isinstance(operation, Pass) for operation in passes)
        self.visits.append(Visit(tuple(lanes), one and bool(region.nodes) and self.model.graph.by_element(region)))

    def stream(self, point: int, into: list[int]) -> int:
        self._points.append(point)
        return self.add(Stream(point), Work((self.model.point(point),), self.model.point(point)), into)


class _Lane:
    """The operations that take one value past a site."""

    def __init__(self, planning: _Planning, passage: Passage, last: str) -> None:
        self.planning, self.passage, self.last = planning, passage, last
        self.model = planning.model
        self.before: list[int] = []
        self.passes: list[int] = []
        self.after: list[int] = []

    def value(self, number: int) -> int:
        return self.planning._made[number]

    def stream(self) -> int:
        """The true stream that the site reads."""
        return self.planning.stream(self.passage.reads, self.before)

    def prepare(self, operation: Towards | Along, order: int) -> int:
        entry = self.model.region(self.passage).entry
        return self.planning.add(operation, Work((), entry, rows=2 if order else 1), self.before)

    def through(self, value: int, order: int, frozen: Freeze | None = None) -> int:
        """What the site makes of a value; the coefficients are those up to `order`."""
        passage, region = self.passage, self.model.region(self.passage)
        rows, alias = order + 1, passage.site.alias
        reads = region.side
        if passage.site.role == "decoder":
            reads = (*reads, *self.model.graph.structure.decoder.affine.side)
        part = self.model.branch(passage).part if passage.site.role == "branch" else None
        if part is None:
            work = Work(reads, region.exit, rows, region.nodes)
            return self.planning.add(Pass(alias, value, order, frozen), work, self.passes)
        cut = part.cut
        opened = Open(part.whole, value, order, frozen)
        number = self.planning.add(opened, Work(reads, cut.node, rows, cut.before), self.passes)
        work = Work(reads, region.exit, rows, cut.carried)
        return self.planning.add(Part(alias, number, order, frozen), work, self.passes)

    def coefficient(self, passed: int, order: int, weight: float = 1.0) -> int:
        exit = self.model.region(self.passage).exit
        return self.planning.add(Coefficient(passed, order, weight), Work((), exit), self.after)

    def polynomial(self, passed: int, order: int, weight: float = 1.0) -> int:
        exit = self.model.region(self.passage).exit
        return self.planning.add(Polynomial(passed, order, weight), Work((), exit), self.after)

    def total(self, values: Iterable[int]) -> int:
        exit = self.model.region(self.passage).exit
        return self.planning.add(Sum(self.passage.site.alias, tuple(values)), Work((), exit), self.after)

    def land(self, value: int) -> int:
        """A summand of the next point."""
        if self.passage.site.role != "branch":
            return value
        node = self.model.join(self.passage.step).node
        return self.planning.add(Land(self.passage.site.alias, value), Work((), node), self.after)

    def weight(self, last: str | None = None) -> float:
        """The weight of a centre, of the lane's own unless another last hop is given."""
        return float(self.model.expansion.centre_weight(self.passage.site.alias, last or self.last))


# By rule: takes a value past a site, at the orders that are asked for.

Given = dict[Hop, int]
"""By hop, the number of the value that is to be made."""

Made = dict[int, int]
"""By number of a value, the operation that makes it."""


def _distribute(lane: _Lane, value: int, given: Given) -> Made:
    """A t for an affine f(h) = A h + b."""
    passed = lane.through(lane.prepare(Along(lane.value(value)), 1), 1)
    made = lane.land(lane.coefficient(passed, 1))
    return dict.fromkeys(given.values(), made)


def _freeze(lane: _Lane, value: int, given: Given) -> Made:
    """A_h t for f(h) = A_h h + b_h with the gates held at the true stream."""
    rule = lane.passage.rule
    assert isinstance(rule, Freeze)
    series = lane.prepare(Along(lane.value(value), lane.stream()), 1)
    made = lane.land(lane.coefficient(lane.through(series, 1, rule), 1))
    return dict.fromkeys(given.values(), made)


def _tangent(lane: _Lane, value: int, given: Given) -> Made:
    """Df(h) t."""
    series = lane.prepare(Along(lane.value(value), lane.stream()), 1)
    made = lane.land(lane.coefficient(lane.through(series, 1), 1))
    return dict.fromkeys(given.values(), made)


def _jet(lane: _Lane, value: int, given: Given) -> Made:
    """w (1/j!) D^j f(x)[(h − x)^{⊗j}], of one order or the sum up to it; with directions="terms" what is of order 1 is
    Σ_{i≠m} w_i Df(x_i)[t_m].
    """
    across, made = lane.passage.rule.across, dict[int, int]()
    alone = {hop: number for hop, number in given.items() if not across(hop.order)}
    for hop in given.keys() - alone.keys():
        first = [lane.coefficient(lane.through(lane.value(value), 0), 0, lane.weight())] if hop.together else []
        made[given[hop]] = lane.land(lane.total([*first, *_directional(lane, value)]))
    if not alone:
        return made
    highest, centre, weight = max(hop.order or 0 for hop in alone), lane.value(value), lane.weight()
    if highest:
        centre = lane.prepare(Towards(centre, lane.stream(), highest), highest)
    passed = lane.through(centre, highest)
    for hop, number in alone.items():
        take = lane.polynomial if hop.together else lane.coefficient
        made[number] = lane.land(take(passed, hop.order or 0, weight))
    return made


def _directional(lane: _Lane, value: int) -> list[int]:
    """w_i Df(x_i)[t_m] for the incoming term m and every other one i."""
    summands: list[int] = []
    for centre in lane.planning.values.arriving(lane.passage.reads):
        if centre == value:
            continue
        lane.before += lane.planning._make(centre)
        series = lane.prepare(Along(lane.value(value), lane.value(centre)), 1)
        weight = lane.weight(lane.planning.values.values[centre].last)
        summands.append(lane.coefficient(lane.through(series, 1), 1, weight))
    return summands


RULES: dict[type[Rule], Callable[[_Lane, int, Given], Made]] = {
    Distribute: _distribute,
    Freeze: _freeze,
    Tangent: _tangent,
    Jet: _jet,
}
"""How each rule takes a value past a site. No path passes an atom."""
