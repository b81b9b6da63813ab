"""Paths → a plan: what passes which site in which way, each common prefix once.

First the paths become values, numbered so that equal ones have one number: sources, values carried to a point, and what
a site gives at an order. Then each site is visited once, in the order of the stream, and its rule says which operations
take the values past it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import fx

from jetgraph.algebra.automaton import Entry
from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.passages import Passage
from jetgraph.algebra.paths import Hop, Path
from jetgraph.algebra.rules import Distribute, Freeze, Jet, Rule, Tangent
from jetgraph.compilation.origins import SOURCES, Model, own_values
from jetgraph.compilation.plan import (
    Along,
    Carry,
    Coefficient,
    Enter,
    Land,
    Lane,
    Open,
    Operation,
    Optimum,
    Own,
    Part,
    Pass,
    Plan,
    Polynomial,
    Preset,
    Stream,
    Sum,
    Towards,
    Visit,
    Weigh,
    Work,
)
from jetgraph.errors import BudgetError, big
from jetgraph.jets.series import check_order
from jetgraph.structure.regions import JoinStage

CENTRE_BUDGET = 4096
"""How many centres a site may have where all are needed at once: with directions="terms", or optimal weights."""


def plan(model: Model, paths: Sequence[Path], point: int | None = None, by_site: bool = False) -> Plan:
    """The evaluation of paths of an expansion; as they arrive at a point, which they pass last, where one is given, and
    with the sums of what each site gives, where these are wanted.

    Raises `BudgetError` for orders, and for numbers of centres, that would take forever.
    """
    values = Values(model.expansion)
    results = {path: values.of(path) if point is None else values.at(path, point) for path in paths}
    return Planning(model, values, by_site).plan(results)


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
    members: tuple[int, ...] = ()
    """Of a group, the values that it is the sum of."""


@dataclass
class Values:
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
        for hop in path.hops[len(entry.hops) :]:
            value = self.past(value, hop)
        return value

    def at(self, path: Path, point: int) -> int:
        """The value of a path at the last point before the sink."""
        entry = self.expansion.start(path)
        value = self.enter(entry)
        for hop in path.hops[len(entry.hops) : -1]:
            value = self.past(value, hop)
        return self.carry(value, point)

    def _new(self, value: _Value) -> int:
        self.values.append(value)
        return len(self.values) - 1

    def enter(self, entry: Entry) -> int:
        alias = entry.source.alias
        if entry.is_group:
            assert entry.hop is not None
            return self.past(self._group(self.expansion.passage(entry.hop.alias), entry.source.alias), entry.hop)
        if alias not in self._entered:
            self._entered[alias] = self._new(_Value(entry.enters, alias, entry))
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
            self._lumps[point, name, members] = self._new(_Value(point, name, members=members))
        return self._lumps[point, name, members]

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
                self._check_centres(passage, 'directions="terms"')
                self.arriving(passage.reads)
            new = self._new(_Value(passage.step, hop.alias, before=read, hop=hop))
            self._passed[read, hop] = new
            self.passing.setdefault((hop.alias, read), {})[hop] = new
            if not passage.rule.weighs_alike:
                self._complete(passage)
        return self._passed[read, hop]

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
                f'centres, more than {CENTRE_BUDGET}: use directions="stream" and weights such as "uniform" there, '
                'groups at every site, or a recipe with fewer terms such as "components"'
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


@dataclass(frozen=True, slots=True)
class Held:
    """The operation that makes a value, as it is before the weight of the centre that it comes from, and that weight.

    What does not read lengths reads it without: a weight far below the √ε of a norm would change what the norm gives.
    """

    operation: int
    factor: float = 1.0
    weights: int | None = None
    """The operation that gives weights by token, where there are such."""
    place: int = 0
    """Of the centre among them."""
    tokens: tuple[int, ...] = ()
    """The dimensions along which they differ, counted from the end."""


class Planning:
    """Operations that make the values, visit by visit."""

    def __init__(self, model: Model, values: Values, by_site: bool = False) -> None:
        self.model = model
        self.values = values
        self._by_site = by_site
        self._sums: dict[str, int] = {}
        """By site, the operation that adds up what it gives, where that is wanted."""
        self.operations: list[Operation] = []
        self.work: list[Work] = []
        self.visits: list[Visit] = []
        self._known: dict[Operation, int] = {}
        self._made: dict[int, Held] = {}
        """By value, what makes it."""
        self.totals: dict[tuple[str, int], int] = {}
        """By site with optimal weights and centre: the operation that makes its whole jet."""
        self.reading: dict[str, list[int]] = {}
        """By site, the values that pass it."""
        self._points: list[int] = []
        """Of the true stream, those that are read."""
        passages = model.expansion.passages.values()
        self._weights_apart = any(isinstance(p.rule, Jet) and not p.rule.reads_lengths(p.site) for p in passages)
        """Some site reads no lengths, so that weights are kept apart."""

    def plan(self, results: dict[Path, int]) -> Plan:
        passed = Counter[str]()
        for alias, value in self.values.passing:
            passed[self.model.expansion.passage(alias).site.role] += 1
            self.reading.setdefault(alias, []).append(value)
        self.pass_sites(self.model.expansion.passages.values())
        rest = [index for value in results.values() for index in self.make(value)]
        made = {path: self.weighed(value, rest) for path, value in results.items()}
        self.visit_alone(rest)
        return Plan(
            tuple(self.operations),
            tuple(self.work),
            tuple(self.visits),
            made,
            passed,
            tuple(self.model.graph.traced.graph.nodes),
            max(self._points, default=None),
            self._sums,
        )

    def pass_sites(self, passages: Iterable[Passage]) -> None:
        """Visit those of some sites that values pass, in their order; the parts of one branch are visited together."""
        found: dict[str, list[Passage]] = {}
        for passage in passages:
            if (alias := passage.site.alias) in self.reading:
                part = self.model.part(passage)
                found.setdefault(alias if part is None else part.whole, []).append(passage)
        for together in found.values():
            self._visit(together)

    def visit_alone(self, operations: Sequence[int]) -> None:
        """A visit of some operations, if there are any, that pass no site."""
        if operations:
            self.visits.append(Visit((Lane(tuple(operations), (), ()),), stacked=False))

    def held(self) -> Iterator[int]:
        """The operations that values are made by, weights by token among them."""
        yield from self._sums.values()
        for made in self._made.values():
            yield made.operation
            if made.weights is not None:
                yield made.weights

    def sums(self) -> Mapping[str, int]:
        """By site, the operation that adds up what it gives, where that is asked for."""
        return self._sums

    def forget(self, index: int) -> None:
        """An operation's value is there no more: it is made again where it is read again."""
        self._known.pop(self.operations[index], None)

    def add(self, operation: Operation, work: Work, into: list[int]) -> int:
        """The number of an operation, which is a new one of the list if it was not there before."""
        if operation not in self._known:
            self._known[operation] = len(self.operations)
            self.operations.append(operation)
            self.work.append(work)
            into.append(self._known[operation])
        return self._known[operation]

    def make(self, value: int) -> list[int]:
        """New operations that make a value that has not passed a site since it was made."""
        new: list[int] = []
        if (members := self.values.values[value].members) and value not in self._made:
            for member in members:
                new += self.make(member)
            self._made[value] = self._made[members[0]] if len(members) == 1 else Held(self._sum(value, members, new))
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
                self._made[number] = Held(self._enter(found.entry, new))
            else:
                assert found.before is not None
                assert found.hop is None
                self._made[number] = self._carried(found.before, found.point, new)
        return new

    def _sum(self, value: int, members: tuple[int, ...], into: list[int]) -> int:
        """The operation that adds the members of a group."""
        made = tuple(self.weighed(member, into) for member in members)
        return self.add(Sum("", made), Work((), self.model.point(self.values.values[value].point)), into)

    def _carried(self, value: int, point: int, into: list[int]) -> Held:
        made = self._made[value]
        if self._carry(made.operation, point, None) == made.operation:
            return made
        # Weights of single tokens do not go through what mixes tokens; those of all do.
        operation = self.weighed(value, into, factor=False)
        return Held(self._carry(operation, point, into), made.factor)

    def made(self, value: int) -> Held:
        """What makes a value."""
        return self._made[value]

    def keeps_weights(self, passage: Passage) -> bool:
        """The weights of what a site gives are kept apart from it."""
        return self._weights_apart and passage.site.role != "decoder"

    def weighed(self, value: int, into: list[int], factor: bool = True) -> int:
        """The operation that makes a value with its weights by token, and with the factor of all, if wanted."""
        made = self._made[value]
        operation, like = made.operation, self._at(self.values.values[value].point)
        if made.weights is not None:
            operation = self.add(Weigh(operation, made.weights, made.place), Work((), like), into)
        if factor and made.factor != 1:
            operation = self.add(Coefficient(operation, 0, made.factor), Work((), like), into)
        return operation

    def unweighed(self, value: int, free: Collection[int], into: list[int]) -> int:
        """The operation that makes a value without weights that something reads which does not care for lengths, nor
        for those of the indices of its free dimensions."""
        made = self._made[value]
        return made.operation if {*made.tokens} <= {*free} else self.weighed(value, into, factor=False)

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

    def _carry(self, value: int, point: int, into: list[int] | None) -> int:
        """The operation that carries a value to the next point; where it is the value itself, no new one."""
        region, makes = self.model.carrying(point), self.model.point(point)
        stage = self.model.stage(point)
        same = region is not None and not region.nodes and region.entry.meta["dtype"] == makes.meta["dtype"]
        if same and not (isinstance(stage, JoinStage) and stage.join.kind == "concat"):
            return value
        side, nodes = ((), ()) if region is None else (region.side, region.nodes)
        if into is None:
            return -1
        if region is not None and region.held:
            self._points.append(point - 1)
        return self.add(Carry(value, point), Work(side, makes, runs=nodes), into)

    # At a site

    def _visit(self, passages: Sequence[Passage]) -> None:
        passing = self.values.passing
        aliases = {passage.site.alias: passage for passage in passages}
        lanes: list[Lane] = []
        for value in dict.fromkeys(value for alias in aliases for value in self.reading[alias]):
            lane = _Lane(self, passages[0], self.values.values[value].last)
            lane.before += self.make(value)
            for alias, passage in aliases.items():
                if (alias, value) in passing:
                    lane.passage = passage
                    given = RULES[type(passage.rule)](lane, value, passing[alias, value])
                    self._made |= {n: made if isinstance(made, Held) else Held(made) for n, made in given.items()}
            lanes.append(Lane(tuple(lane.before), tuple(lane.passes), tuple(lane.after)))
        region = self.model.region(passages[0])
        passes = [self.operations[number] for lane in lanes for number in lane.passes]
        one = len(passes) == len(lanes) and all(isinstance(operation, Pass) for operation in passes)
        self.visits.append(Visit(tuple(lanes), one and bool(region.nodes) and self.model.graph.by_element(region)))
        for alias, passage in aliases.items():
            _weigh(self, alias, passage)

    def stream(self, point: int, into: list[int]) -> int:
        self._points.append(point)
        return self.add(Stream(point), Work((self.model.point(point),), self.model.point(point)), into)


def _weigh(planning: Planning, alias: str, passage: Passage) -> None:
    """Weights that are not known before, for what a site gave."""
    new: list[int] = []
    made = {value: planning.values.passing[alias, value] for value in planning.reading.get(alias, ())}
    if not passage.rule.weighs_alike:
        exit, tokens = planning.model.region(passage).exit, planning.model.tokens(passage)
        arrived = planning.values.centres(passage)
        if passage.rule.weighting == "optimal":
            totals = tuple(planning.totals[alias, value] for value in arrived)
            planning._points.append(passage.reads)
            own = planning.add(Own(alias), Work(tuple(own_values(planning.model, passage)), exit), new)
            weights = planning.add(Optimum(alias, totals, own), Work((), exit, len(totals)), new)
        else:
            weights = planning.add(Preset(alias), Work((), exit, len(arrived)), new)
        for place, value in enumerate(arrived):
            for number in made.get(value, {}).values():
                planning._made[number] = replace(planning._made[number], weights=weights, place=place, tokens=tokens)
    if not planning.keeps_weights(passage):
        for given in made.values():
            for number in given.values():
                planning._made[number] = Held(planning.weighed(number, new))
    if planning._by_site:
        given = tuple(planning.weighed(number, new) for some in made.values() for number in some.values())
        planning._sums[alias] = planning.add(Sum(alias, given), Work((), planning._at(passage.step)), new)
    planning.visit_alone(new)


class _Lane:
    """The operations that take one value past a site."""

    def __init__(self, planning: Planning, passage: Passage, last: str) -> None:
        self.planning, self.passage, self.last = planning, passage, last
        self.model = planning.model
        self.before: list[int] = []
        self.passes: list[int] = []
        self.after: list[int] = []

    def value(self, number: int) -> int:
        """A value with all its weights."""
        return self.planning.weighed(number, self.before)

    def centre(self, number: int) -> int:
        """A value that the site takes a jet at: without weights where its length makes no difference."""
        rule, site = self.passage.rule, self.passage.site
        if isinstance(rule, Jet) and not rule.reads_lengths(site):
            scaling = self.model.region(self.passage).scaling
            return self.planning.unweighed(number, () if scaling is None else scaling.free, self.before)
        return self.value(number)

    def linear(self, number: int) -> tuple[int, float]:
        """A value that the site is linear in, and the factor that it has besides."""
        operation = self.planning.weighed(number, self.before, factor=False)
        return operation, self.planning.made(number).factor

    def stream(self) -> int:
        """The true stream that the site reads."""
        return self.planning.stream(self.passage.reads, self.before)

    @property
    def matched(self) -> str | None:
        """The site in whose coordinates centres are matched, where they are."""
        rule = self.passage.rule
        return self.passage.site.alias if isinstance(rule, Jet) and rule.matches(self.passage.site) else None

    def towards(self, number: int, order: int) -> int:
        """The series from a centre to the stream; of order 0 the centre as it is, or matched."""
        centre = self.centre(number)
        if not order and not self.matched:
            return centre
        return self.prepare(Towards(centre, self.stream(), order, self.matched), order)

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
        part = self.model.part(passage)
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

    def taken(self, passed: int, hop: Hop, weight: float) -> int:
        """What a hop takes of a series: a coefficient, or the sum up to one."""
        if not hop.together:
            return self.coefficient(passed, hop.order or 0, weight)
        exit = self.model.region(self.passage).exit
        return self.planning.add(Polynomial(passed, hop.order or 0, weight), Work((), exit), self.after)

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
        """The weight of a centre, of the lane's own unless another last hop is given; 1 where it is not known yet."""
        if not self.passage.rule.weighs_alike:
            return 1.0
        return float(self.model.expansion.centre_weight(self.passage.site.alias, last or self.last))


# By rule: takes a value past a site, at the orders that are asked for.

Given = dict[Hop, int]
"""By hop, the number of the value that is to be made."""

Made = Mapping[int, int | Held]
"""By number of a value, the operation that makes it, with the weight that is kept apart where there is one."""


def _linear(lane: _Lane, value: int, given: Given) -> Made:
    """A t for f(h) = A h + b: an affine f, one whose gates are held at the true stream, or A = Df(h)."""
    rule = lane.passage.rule
    direction, factor = lane.linear(value)
    along = Along(direction) if isinstance(rule, Distribute) else Along(direction, lane.stream())
    passed = lane.through(lane.prepare(along, 1), 1, rule.frozen)
    made = Held(lane.land(lane.coefficient(passed, 1)), factor)
    return dict.fromkeys(given.values(), made)


def _jet(lane: _Lane, value: int, given: Given) -> Made:
    """w (1/j!) D^j f(s x)[(h − s x)^{⊗j}], of one order or the sum up to it; with directions="terms" what is of order 1
    is Σ_{i≠m} w_i Df(s_i x_i)[t_m].
    """
    across, made = lane.passage.rule.across, dict[int, Held]()
    alone = {hop: number for hop, number in given.items() if not across(hop.order)}
    for hop in given.keys() - alone.keys():
        made[given[hop]] = _directional(lane, value, hop.together)
    if not alone:
        return made
    highest, weight = max(hop.order or 0 for hop in alone), lane.weight()
    passed = lane.through(lane.towards(value, highest), highest)
    now, later = (1.0, weight) if lane.planning.keeps_weights(lane.passage) else (weight, 1.0)
    parts = {hop: lane.taken(passed, hop, now) for hop in alone}
    made |= {number: Held(lane.land(parts[hop]), later) for hop, number in alone.items()}
    if lane.passage.rule.weighting == "optimal":
        lane.planning.totals[lane.passage.site.alias, value] = lane.total(parts.values())
    return made


def _directional(lane: _Lane, value: int, together: bool) -> Held:
    """Σ_{i≠m} w_i Df(s_i x_i)[t_m] for the incoming term m; with w_m f(x_m), if both are together."""
    direction, factor = (lane.value(value), 1.0) if together else lane.linear(value)
    summands: list[int] = []
    if together:
        summands.append(lane.coefficient(lane.through(lane.towards(value, 0), 0), 0, lane.weight()))
    stream = lane.stream() if lane.matched else None
    for centre in lane.planning.values.arriving(lane.passage.reads):
        if centre == value:
            continue
        lane.before += lane.planning.make(centre)
        series = lane.prepare(Along(direction, lane.centre(centre), stream, lane.matched), 1)
        weight = lane.weight(lane.planning.values.values[centre].last)
        summands.append(lane.coefficient(lane.through(series, 1), 1, weight))
    return Held(lane.land(lane.total(summands)), factor)


RULES: dict[type[Rule], Callable[[_Lane, int, Given], Made]] = {
    Distribute: _linear,
    Freeze: _linear,
    Tangent: _linear,
    Jet: _jet,
}
"""How each rule takes a value past a site. No path passes an atom."""
