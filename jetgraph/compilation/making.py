"""Operations that make values between the sites: sources, what the silent way carries, sums, and weights."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from torch import fx

from jetgraph.algebra.automaton import Entry
from jetgraph.algebra.passages import Passage
from jetgraph.algebra.rules import Jet
from jetgraph.compilation.numbering import Values
from jetgraph.compilation.origins import SOURCES, Model, own_values
from jetgraph.compilation.plan import (
    Carry,
    Coefficient,
    Enter,
    Operation,
    Optimum,
    Own,
    Preset,
    Stream,
    Sum,
    Weigh,
    Work,
)
from jetgraph.structure.regions import JoinStage


class Held(NamedTuple):
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


class Making:
    """Operations so far, equal ones once, and which of them make the values."""

    def __init__(self, model: Model, values: Values) -> None:
        self.model = model
        self.values = values
        self.operations: list[Operation] = []
        self.work: list[Work] = []
        self._known: dict[Operation, int] = {}
        self._made: dict[int, Held] = {}
        """By value, what makes it."""
        self.points: list[int] = []
        """Of the true stream, those that are read."""
        passages = model.expansion.passages.values()
        self._weights_apart = any(isinstance(p.rule, Jet) and not p.rule.reads_lengths(p.site) for p in passages)
        """Some site reads no lengths, so that weights are kept apart."""

    def add(self, operation: Operation, work: Work, into: list[int]) -> int:
        """The number of an operation, which is a new one of the list if it was not there before."""
        new = len(self.operations)
        number = self._known.setdefault(operation, new)
        if number == new:
            self.operations.append(operation)
            self.work.append(work)
            into.append(new)
        return number

    def forget(self, index: int) -> None:
        """An operation's value is there no more: it is made again where it is read again."""
        self._known.pop(self.operations[index], None)

    # Values

    def make(self, value: int) -> list[int]:
        """New operations that make a value that has not passed a site since it was made."""
        if value in self._made:
            return []
        new: list[int] = []
        if members := self.values.values[value].members:
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
            facts = self.values.values[number]
            if facts.entry is not None:
                self._made[number] = Held(self._enter(facts.entry, new))
            else:
                assert facts.before is not None
                assert facts.hop is None
                self._made[number] = self._carried(facts.before, facts.point, new)
        return new

    def made(self, value: int) -> Held:
        """What makes a value."""
        return self._made[value]

    def keep(self, value: int, made: Held) -> None:
        """A value is made by that."""
        self._made[value] = made

    def held(self) -> list[int]:
        """The operations that values are made by, weights by token among them."""
        weights = [made.weights for made in self._made.values() if made.weights is not None]
        return [*(made.operation for made in self._made.values()), *weights]

    def _enter(self, entry: Entry, into: list[int]) -> int:
        source = SOURCES[entry.origin]
        point = source.point(self.model, entry)
        if point is not None:
            self.points.append(point)
        return self.add(Enter(entry), Work(tuple(source.reads(self.model, entry)), self.at(entry.enters)), into)

    def _sum(self, value: int, members: tuple[int, ...], into: list[int]) -> int:
        """The operation that adds the members of a group."""
        made = tuple(self.weighed(member, into) for member in members)
        return self.add(Sum("", made), Work((), self.model.point(self.values.values[value].point)), into)

    def _carried(self, value: int, point: int, into: list[int]) -> Held:
        made = self._made[value]
        if not self._moves(point):
            return made
        # Weights of single tokens do not go through what mixes tokens; those of all do.
        operation = self.weighed(value, into, factor=False)
        return Held(self._carry(operation, point, into), made.factor)

    def _moves(self, point: int) -> bool:
        """What a term passes on its silent way to a point makes another value of it."""
        region, stage = self.model.carrying(point), self.model.stage(point)
        if region is None or region.nodes or region.entry.meta["dtype"] != self.model.point(point).meta["dtype"]:
            return True
        return isinstance(stage, JoinStage) and stage.join.concatenates

    def _carry(self, value: int, point: int, into: list[int]) -> int:
        """The operation that carries a value to the next point."""
        region = self.model.carrying(point)
        side, nodes = ((), ()) if region is None else (region.side, region.nodes)
        if region is not None and region.held:
            self.points.append(point - 1)
        return self.add(Carry(value, point), Work(side, self.model.point(point), runs=nodes), into)

    def stream(self, point: int, into: list[int]) -> int:
        """The operation that is the true stream at a point."""
        if (known := self._known.get(Stream(point))) is not None:
            return known
        self.points.append(point)
        node = self.model.point(point)
        return self.add(Stream(point), Work((node,), node), into)

    def at(self, point: int) -> fx.Node:
        """A node like a value at a point; at the sink, before the decoder's affine part."""
        if point == self.model.expansion.sink:
            return self.model.graph.structure.decoder.nonlinear.exit
        return self.model.point(point)

    # Weights

    def keeps_weights(self, passage: Passage) -> bool:
        """The weights of what a site gives are kept apart from it."""
        return self._weights_apart and passage.site.role != "decoder"

    def weighed(self, value: int, into: list[int], factor: bool = True) -> int:
        """The operation that makes a value with its weights by token, and with the factor of all, if wanted."""
        made = self._made[value]
        operation = made.operation
        if made.weights is not None:
            weigh = Weigh(operation, made.weights, made.place)
            operation = self.add(weigh, Work((), self.at(self.values.values[value].point)), into)
        if factor and made.factor != 1.0:
            scaled = Coefficient(operation, 0, made.factor)
            operation = self.add(scaled, Work((), self.at(self.values.values[value].point)), into)
        return operation

    def unweighed(self, value: int, free: Collection[int], into: list[int]) -> int:
        """The operation that makes a value without weights that something reads which does not care for lengths, nor
        for those of the indices of its free dimensions."""
        made = self._made[value]
        return made.operation if {*made.tokens} <= {*free} else self.weighed(value, into, factor=False)

    def weigh(self, passage: Passage, given: dict[int, list[int]], totals: dict[int, int], into: list[int]) -> None:
        """Weights that are not known before, for what a site gave.

        Parameters
        ----------
        passage
            How paths pass the site.
        given
            By value that passed it, the values that came of it.
        totals
            With optimal weights, by centre the operation that makes its whole jet.
        into
            Takes the operations that are new.
        """
        if not passage.rule.weighs_alike:
            alias, exit = passage.site.alias, self.model.region(passage).exit
            arrived = self.values.centres(passage)
            if passage.rule.weighting == "optimal":
                jets = tuple(totals[value] for value in arrived)
                self.points.append(passage.reads)
                own = self.add(Own(alias), Work(tuple(own_values(self.model, passage)), exit), into)
                weights = self.add(Optimum(alias, jets, own), Work((), exit, len(jets)), into)
            else:
                weights = self.add(Preset(alias), Work((), exit, len(arrived)), into)
            tokens = self.model.tokens(passage)
            for place, value in enumerate(arrived):
                for number in given.get(value, ()):
                    made = self._made[number]._replace(weights=weights, place=place, tokens=tokens)
                    self._made[number] = made
        if not self.keeps_weights(passage):
            for number in (number for some in given.values() for number in some):
                self._made[number] = Held(self.weighed(number, into))
