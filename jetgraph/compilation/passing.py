"""A value on its way past a site: by rewrite rule, the operations that take it there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

from torch import fx

from jetgraph.algebra.passages import Passage
from jetgraph.algebra.paths import Hop
from jetgraph.algebra.rules import Distribute, Freeze, Jet, Rule, Tangent
from jetgraph.compilation.making import Held, Making
from jetgraph.compilation.plan import (
    Along,
    Coefficient,
    Land,
    Lane,
    Matched,
    Open,
    Part,
    Pass,
    Polynomial,
    Sum,
    Towards,
    Work,
)


class Crossing:
    """A site as it is for every value that passes it."""

    def __init__(self, making: Making, passage: Passage) -> None:
        self.making, self.passage = making, passage
        model = making.model
        self.alias, self.rule = passage.site.alias, passage.rule
        self.region = model.region(passage)
        self.part = model.part(passage)
        rule, site = passage.rule, passage.site
        self.matched = isinstance(rule, Jet) and rule.matches(site)
        """Centres are brought to a length of their own."""
        self.reads_lengths = not isinstance(rule, Jet) or rule.reads_lengths(site)
        """How long a value is makes a difference."""
        self.free = () if self.region.scaling is None else self.region.scaling.free
        self.keeps_weights = making.keeps_weights(passage)
        self.jets: dict[int, int] = {}
        """With optimal weights, by centre the operation that makes its whole jet."""
        self._weights: dict[str, float] = {}
        self._runs: dict[int, Work] = {}
        self.value_in, self.series_in = Work((), self.region.entry), Work((), self.region.entry, rows=2)
        """Of what only makes a value, or a series, that goes in; below, one that comes out, and a summand of the join.
        """
        self.out = Work((), self.region.exit)
        self.landed = Work((), model.join(passage.step).node) if site.role == "branch" else None

    @cached_property
    def reads(self) -> tuple[fx.Node, ...]:
        """What the site reads of the true forward pass."""
        if self.passage.site.role == "decoder":
            return (*self.region.side, *self.making.model.graph.structure.decoder.affine.side)
        return self.region.side

    @property
    def whole(self) -> str:
        """The site itself, or the branch of which it is a part."""
        return self.alias if self.part is None else self.part.whole

    def runs(self, order: int) -> Work:
        """Of what the site makes of a series of an order."""
        if order not in self._runs:
            nodes = self.region.nodes if self.part is None else self.part.cut.carried
            self._runs[order] = Work(self.reads, self.region.exit, order + 1, nodes)
        return self._runs[order]

    def weight(self, last: str) -> float:
        """The weight of a centre by its last hop; 1 where it is not known yet."""
        if last not in self._weights:
            known = self.rule.weighs_alike
            weight = self.making.model.expansion.centre_weight(self.alias, last) if known else 1
            self._weights[last] = float(weight)
        return self._weights[last]


class Crossed:
    """The operations that take one value past a site, or past the parts of one branch."""

    def __init__(self, value: int, making: Making) -> None:
        self.number, self.making = value, making
        self.last = making.values.values[value].last
        self.before: list[int] = making.make(value)
        self.passes: list[int] = []
        self.after: list[int] = []

    def lane(self) -> Lane:
        """They, in the order in which they run."""
        return Lane(tuple(self.before), tuple(self.passes), tuple(self.after))

    def pass_by(self, crossing: Crossing, given: Given) -> None:
        """Make what a site gives of the value, at each hop."""
        for number, made in RULES[type(crossing.rule)](self, crossing, given).items():
            self.making.keep(number, made if isinstance(made, Held) else Held(made))

    # Before

    def value(self) -> int:
        """The value with all its weights."""
        return self.making.weighed(self.number, self.before)

    def linear(self) -> tuple[int, float]:
        """The value, of which the site is a linear function, and the factor that it has besides."""
        operation = self.making.weighed(self.number, self.before, factor=False)
        return operation, self.making.made(self.number).factor

    def centre(self, crossing: Crossing, number: int) -> int:
        """A value as what the site takes a jet at: without weights where its length makes no difference, and matched
        where it is to be.
        """
        self.before += self.making.make(number)
        if crossing.reads_lengths:
            return self.making.weighed(number, self.before)
        centre = self.making.unweighed(number, crossing.free, self.before)
        if not crossing.matched:
            return centre
        matched = Matched(centre, self.stream(crossing), crossing.whole)
        return self.making.add(matched, crossing.series_in, self.before)

    def stream(self, crossing: Crossing) -> int:
        """The true stream that the site reads."""
        return self.making.stream(crossing.passage.reads, self.before)

    def towards(self, crossing: Crossing, order: int) -> int:
        """The series from the value as a centre to the stream; of order 0 the centre as it is, or matched."""
        centre = self.centre(crossing, self.number)
        if not order and not crossing.matched:
            return centre
        stream = None if crossing.matched else self.stream(crossing)
        return self.prepare(crossing, Towards(centre, stream, order), order)

    def prepare(self, crossing: Crossing, operation: Towards | Along, order: int) -> int:
        """A series that goes in."""
        return self.making.add(operation, crossing.series_in if order else crossing.value_in, self.before)

    # There

    def through(self, crossing: Crossing, value: int, order: int, frozen: Freeze | None = None) -> int:
        """What the site makes of a value; the coefficients are those up to `order`."""
        part, work = crossing.part, crossing.runs(order)
        if part is None:
            return self.making.add(Pass(crossing.alias, value, order, frozen), work, self.passes)
        opened = Work(crossing.reads, part.cut.node, order + 1, part.cut.before)
        number = self.making.add(Open(part.whole, value, order, frozen), opened, self.passes)
        return self.making.add(Part(crossing.alias, number, order, frozen), work, self.passes)

    # After

    def coefficient(self, crossing: Crossing, passed: int, order: int, weight: float = 1.0) -> int:
        """One coefficient of a series, weighed."""
        return self.making.add(Coefficient(passed, order, weight), crossing.out, self.after)

    def taken(self, crossing: Crossing, passed: int, hop: Hop, weight: float) -> int:
        """What a hop takes of a series: a coefficient, or the sum up to one."""
        if not hop.together:
            return self.coefficient(crossing, passed, hop.order or 0, weight)
        return self.making.add(Polynomial(passed, hop.order or 0, weight), crossing.out, self.after)

    def total(self, crossing: Crossing, values: Iterable[int]) -> int:
        """A sum of what the site gives."""
        return self.making.add(Sum(crossing.alias, tuple(values)), crossing.out, self.after)

    def land(self, crossing: Crossing, value: int) -> int:
        """A summand of the next point."""
        if crossing.landed is None:
            return value
        return self.making.add(Land(crossing.alias, value), crossing.landed, self.after)


# By rule: takes a value past a site, at the orders that are asked for.

Given = Mapping[Hop, int]
"""By hop, the number of the value that is to be made."""

Made = Mapping[int, int | Held]
"""By number of a value, the operation that makes it, with the weight that is kept apart where there is one."""


def _linear(lane: Crossed, at: Crossing, given: Given) -> Made:
    """A t for f(h) = A h + b: an affine f, one whose gates are held at the true stream, or A = Df(h)."""
    direction, factor = lane.linear()
    along = Along(direction) if isinstance(at.rule, Distribute) else Along(direction, lane.stream(at))
    passed = lane.through(at, lane.prepare(at, along, 1), 1, at.rule.frozen)
    made = Held(lane.land(at, lane.coefficient(at, passed, 1)), factor)
    return dict.fromkeys(given.values(), made)


def _jet(lane: Crossed, at: Crossing, given: Given) -> Made:
    """w (1/j!) D^j f(s x)[(h − s x)^{⊗j}], of one order or the sum up to it; with directions="terms" what is of order 1
    is Σ_{i≠m} w_i Df(s_i x_i)[t_m].
    """
    made: dict[int, Held] = {}
    alone: list[Hop] = []
    for hop, number in given.items():
        if at.rule.across(hop.order):
            made[number] = _directional(lane, at, hop.together)
        else:
            alone.append(hop)
    if not alone:
        return made
    highest, weight = max(hop.order or 0 for hop in alone), at.weight(lane.last)
    passed = lane.through(at, lane.towards(at, highest), highest)
    now, later = (1.0, weight) if at.keeps_weights else (weight, 1.0)
    parts = [lane.taken(at, passed, hop, now) for hop in alone]
    made |= {given[hop]: Held(lane.land(at, part), later) for hop, part in zip(alone, parts, strict=True)}
    if at.rule.weighting == "optimal":
        at.jets[lane.number] = lane.total(at, parts)
    return made


def _directional(lane: Crossed, at: Crossing, together: bool) -> Held:
    """Σ_{i≠m} w_i Df(s_i x_i)[t_m] for the incoming term m; with w_m f(x_m), if both are together."""
    direction, factor = (lane.value(), 1.0) if together else lane.linear()
    summands: list[int] = []
    if together:
        passed = lane.through(at, lane.towards(at, 0), 0)
        summands.append(lane.coefficient(at, passed, 0, at.weight(lane.last)))
    values = lane.making.values
    for centre in values.arriving(at.passage.reads):
        if centre != lane.number:
            series = lane.prepare(at, Along(direction, lane.centre(at, centre)), 1)
            weight = at.weight(values.values[centre].last)
            summands.append(lane.coefficient(at, lane.through(at, series, 1), 1, weight))
    return Held(lane.land(at, lane.total(at, summands)), factor)


RULES: dict[type[Rule], Callable[[Crossed, Crossing, Given], Made]] = {
    Distribute: _linear,
    Freeze: _linear,
    Tangent: _linear,
    Jet: _jet,
}
"""How each rule takes a value past a site. No path passes an atom."""
