"""Paths → a plan: what passes which site in which way, each common prefix once.

First the paths become numbered values (`numbering`). Then each site is visited once, in the order of the stream, and
its rule says which operations take the values past it (`passing`); between the sites they are carried, summed and
weighed (`making`).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from jetgraph.algebra.passages import Passage
from jetgraph.algebra.paths import Path
from jetgraph.compilation.making import Making
from jetgraph.compilation.numbering import Values
from jetgraph.compilation.origins import Model
from jetgraph.compilation.passing import Crossed, Crossing
from jetgraph.compilation.plan import Lane, Pass, Plan, Sum, Visit, Work


def plan(model: Model, paths: Sequence[Path], point: int | None = None, by_site: bool = False) -> Plan:
    """The evaluation of paths of an expansion.

    Parameters
    ----------
    model
        What is run.
    paths
        Of its expansion.
    point
        Take them as they arrive at this point, which they pass last; at the sink unless given.
    by_site
        The sums of what each site gives are wanted too.

    Raises
    ------
    BudgetError
        Orders, or numbers of centres, that would take forever.
    """
    values = Values(model.expansion)
    results = {path: values.of(path) if point is None else values.at(path, point) for path in paths}
    return Planning(model, values, by_site).plan(results)


KEPT = 8
"""Plans of a graph that are kept for the next call."""
LONGEST = 4096
"""Paths of a plan that is kept; those of more take more memory than a graph should hold unasked."""

_PLANS: WeakKeyDictionary[Any, OrderedDict[Any, Plan]] = WeakKeyDictionary()
"""By graph, those that were asked for last."""


def kept_plan(model: Model, paths: Sequence[Path]) -> Plan:
    """`plan(model, paths)`, the same one for the same paths of an expansion by the same rules, while the graph lives.

    A plan names nodes and sites, and holds no tensor. Where weights of centres are tensors, it is made each time.
    """
    if len(paths) > LONGEST:
        return plan(model, paths)
    expansion = model.expansion
    key = (expansion.recipe, expansion.order, tuple(expansion.rules.items()), expansion.entries, tuple(paths))
    try:
        hash(key)
    except TypeError:
        return plan(model, paths)
    plans = _PLANS.setdefault(model.graph, OrderedDict())
    made = plans.pop(key, None)
    plans[key] = made = plan(model, paths) if made is None else made
    if len(plans) > KEPT:
        plans.popitem(last=False)
    return made


class Planning:
    """Operations that make the values, visit by visit."""

    def __init__(self, model: Model, values: Values, by_site: bool = False) -> None:
        self.model = model
        self.values = values
        self.making = Making(model, values)
        self._by_site = by_site
        self._sums: dict[str, int] = {}
        """By site, the operation that adds up what it gives, where that is wanted."""
        self.visits: list[Visit] = []
        self.reading: dict[str, list[int]] = {}
        """By site, the values that pass it."""

    def plan(self, results: Mapping[Path, int]) -> Plan:
        """The plan that makes values, by path."""
        rest = self.start(results.values())
        return self.finished({path: self.making.weighed(value, rest) for path, value in results.items()}, rest)

    def start(self, wanted: Iterable[int]) -> list[int]:
        """Visit all sites that values pass, and make those that are wanted; what is new of it."""
        for alias, value in self.values.passing:
            self.reading.setdefault(alias, []).append(value)
        self.pass_sites(self.model.expansion.passages.values())
        return [index for value in wanted for index in self.making.make(value)]

    def finished(self, made: Mapping[Any, int], rest: Sequence[int]) -> Plan:
        """The plan that ends in some operations, the last of which are visited now."""
        self.visit_alone(rest)
        passed = Counter(self.model.expansion.passage(alias).site.role for alias, _ in self.values.passing)
        return Plan(
            tuple(self.making.operations),
            tuple(self.making.work),
            tuple(self.visits),
            made,
            passed,
            tuple(self.model.graph.traced.graph.nodes),
            max(self.making.points, default=None),
            self._sums,
        )

    def pass_sites(self, passages: Iterable[Passage]) -> None:
        """Visit those of some sites that values pass, in their order; the parts of one branch are visited together."""
        by_branch: dict[str, list[Crossing]] = {}
        for passage in passages:
            if passage.site.alias in self.reading:
                crossing = Crossing(self.making, passage)
                by_branch.setdefault(crossing.whole, []).append(crossing)
        for together in by_branch.values():
            self._visit(together)

    def visit_alone(self, operations: Sequence[int]) -> None:
        """A visit of some operations, if there are any, that pass no site."""
        if operations:
            self.visits.append(Visit((Lane(tuple(operations), (), ()),), stacked=False))

    def held(self) -> Iterator[int]:
        """The operations that values are made by, weights by token and sums of sites among them."""
        yield from self._sums.values()
        yield from self.making.held()

    def sums(self) -> Mapping[str, int]:
        """By site, the operation that adds up what it gives, where that is asked for."""
        return self._sums

    def _visit(self, crossings: Sequence[Crossing]) -> None:
        """All values past a site, or past the parts of one branch."""
        passing, operations = self.values.passing, self.making.operations
        lanes: list[Lane] = []
        for value in dict.fromkeys(value for at in crossings for value in self.reading[at.alias]):
            crossed = Crossed(value, self.making)
            for at in crossings:
                if given := passing.get((at.alias, value)):
                    crossed.pass_by(at, given)
            lanes.append(crossed.lane())
        region = crossings[0].region
        one = all(len(lane.passes) == 1 and isinstance(operations[lane.passes[0]], Pass) for lane in lanes)
        self.visits.append(Visit(tuple(lanes), one and bool(region.nodes) and self.model.graph.by_element(region)))
        for at in crossings:
            self._leave(at)

    def _leave(self, at: Crossing) -> None:
        """Weights of what a site gave, and its sum where that is wanted."""
        passing, alias, new = self.values.passing, at.alias, list[int]()
        given = {value: [*passing[alias, value].values()] for value in self.reading[alias]}
        self.making.weigh(at.passage, given, at.jets, new)
        if self._by_site:
            parts = tuple(self.making.weighed(number, new) for some in given.values() for number in some)
            self._sums[alias] = self.making.add(Sum(alias, parts), Work((), self.making.at(at.passage.step)), new)
        self.visit_alone(new)
