"""Where terms come from, numerically: by origin, what a source reads of the true forward pass, and its value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, fx

from jetgraph.algebra.automaton import Entry, Origin
from jetgraph.algebra.expansion import Expansion, Place
from jetgraph.algebra.program import Freeze
from jetgraph.jets.series import Series, coefficient
from jetgraph.residual import ResidualGraph
from jetgraph.running.forward import Forward
from jetgraph.running.pieces import own_reads
from jetgraph.structure.regions import Branch, Join, JoinStage, Region, Stage


@dataclass(frozen=True)
class Model:
    """An expansion on the graph that it is run on, which may be that of another device or precision."""

    expansion: Expansion
    graph: ResidualGraph

    def __deepcopy__(self, memo: dict[int, Any]) -> Model:
        """Itself: it never changes, and copies of its graph would be other nodes than a plan's."""
        return self

    def point(self, number: int) -> fx.Node:
        """The true stream at a point."""
        return self._points[number]

    @cached_property
    def _points(self) -> tuple[fx.Node, ...]:
        return self.graph.stream.points

    def stage(self, point: int) -> Stage:
        """The step that ends at a point."""
        return self.graph.stream.stages[point - 1]

    def join(self, point: int) -> Join:
        """The join that ends at a point."""
        return self._joined(point).join

    def _joined(self, point: int) -> JoinStage:
        stage = self.stage(point)
        assert isinstance(stage, JoinStage)
        return stage

    def branch(self, place: Place) -> Branch:
        """The branch at a site."""
        return self.graph.branches[place.site.alias]

    def region(self, place: Place) -> Region:
        """The code of a site; for the decoder its nonlinear part."""
        if place.site.role == "decoder":
            return self.graph.structure.decoder.nonlinear
        return self.stage(place.step).region if place.site.role == "map" else self.branch(place).region

    def carrying(self, point: int) -> Region | None:
        """What a term passes on its silent way to a point; None at a nonlinear map."""
        stage = self.stage(point)
        if isinstance(stage, JoinStage):
            return stage.join.skip
        return stage.region if stage.region.affine else None

    def whole(self, entry: Entry) -> tuple[Join, Branch]:
        """The join, and some part of the split branch, whose constant part an entry is."""
        assert entry.site is not None
        return self.join(entry.enters), self.wholes[entry.site.alias]

    @cached_property
    def wholes(self) -> Mapping[str, Branch]:
        """By alias of a split branch, one of its parts."""
        return {branch.part.whole: branch for branch in self.graph.branches.values() if branch.part is not None}

    def injection(self, entry: Entry) -> fx.Node:
        """The operand that a source in mid-stream is."""
        stage = self._joined(entry.enters)
        return stage.join.injections[stage.step.injections.index(entry.source)]

    def place(self, entry: Entry) -> Place:
        """The site that makes an entry."""
        assert entry.site is not None
        return self.expansion.place(entry.site.alias)


def through(
    model: Model, forward: Forward, place: Place, value: Any, order: int = 0, rule: Freeze | None = None
) -> Any:
    """Push a value through the code of a site."""
    if place.site.role == "branch":
        return forward.branch(model.branch(place), value, order, rule)
    return forward.through(model.region(place), value, order, frozen=rule)


def landed(model: Model, forward: Forward, place: Place, value: Tensor) -> Tensor:
    """What a site gave, as a summand of the next point; of the decoder, before its affine part."""
    if place.site.role != "branch":
        return value
    return forward.stages.place(model.join(place.step), model.branch(place).node, value)


# By origin


def _reads_encoder(model: Model, entry: Entry) -> Iterator[fx.Node]:
    encoder = model.graph.stream.encoder
    yield from (*encoder.leaves, *encoder.side)


def _encoder(model: Model, forward: Forward, entry: Entry) -> Tensor:
    return forward.summand(entry.source.alias)


def _reads_stream(model: Model, entry: Entry) -> Iterator[fx.Node]:
    yield model.point(entry.point)
    for point in range(entry.point + 1, model.expansion.sink):
        region = model.carrying(point)
        yield from () if region is None else region.side


def _stream(model: Model, forward: Forward, entry: Entry) -> Tensor:
    return forward.at_end(entry.point)


def _reads_injection(model: Model, entry: Entry) -> Iterator[fx.Node]:
    yield model.injection(entry)


def _injection(model: Model, forward: Forward, entry: Entry) -> Tensor:
    node = model.injection(entry)
    return forward.stages.place(model.join(entry.enters), node, forward[node])


def _reads_skip(model: Model, entry: Entry) -> Iterator[fx.Node]:
    yield from model.join(entry.enters).skip.side


def _skip(model: Model, forward: Forward, entry: Entry) -> Tensor:
    join = model.join(entry.enters)
    return forward.stages.place(join, join.skip.exit, forward.through(join.skip, forward.sizes.zeros(join.skip.entry)))


def _reads_split(model: Model, entry: Entry) -> Iterator[fx.Node]:
    yield from model.whole(entry)[1].region.side


def _split(model: Model, forward: Forward, entry: Entry) -> Tensor:
    join, branch = model.whole(entry)
    assert branch.part is not None
    value = forward.pieces.constant(branch.part.cut, forward.sizes.zeros(branch.region.entry))
    return forward.stages.place(join, branch.node, value)


def _reads_atom(model: Model, entry: Entry) -> Iterator[fx.Node]:
    place = model.place(entry)
    if place.site.role == "branch":
        yield from own_reads(model.branch(place))
    else:
        yield model.region(place).exit


def _atom(model: Model, forward: Forward, entry: Entry) -> Tensor:
    place = model.place(entry)
    value = forward.component(place.site.alias) if place.site.role == "branch" else forward[model.region(place).exit]
    return landed(model, forward, place, value)


def _reads_affine(model: Model, entry: Entry) -> Iterator[fx.Node]:
    yield from model.region(model.place(entry)).side


def _affine(model: Model, forward: Forward, entry: Entry) -> Tensor:
    place = model.place(entry)
    value = through(model, forward, place, forward.sizes.zeros(model.region(place).entry))
    return landed(model, forward, place, value)


def _reads_freeze(model: Model, entry: Entry) -> Iterator[fx.Node]:
    place = model.place(entry)
    yield from model.region(place).side
    yield model.point(place.reads)
    if place.site.role == "decoder":
        yield from model.graph.structure.decoder.affine.side


def _freeze(model: Model, forward: Forward, entry: Entry) -> Tensor:
    """b_h = f(h) − A_h h."""
    place = model.place(entry)
    assert isinstance(place.rule, Freeze)
    h = forward[model.point(place.reads)]
    held = through(model, forward, place, Series.variate(h, h, 1), 1, place.rule)
    return landed(model, forward, place, through(model, forward, place, h) - coefficient(held, 1))


def _reads_decoder(model: Model, entry: Entry) -> Iterator[fx.Node]:
    decoder = model.graph.structure.decoder
    yield from (*decoder.nonlinear.side, *decoder.affine.side)


def _decoder(model: Model, forward: Forward, entry: Entry) -> Tensor:
    """Zero, to which the decoder's affine part adds its constant."""
    return forward.sizes.zeros(model.graph.structure.decoder.nonlinear.exit)


@dataclass(frozen=True)
class Source:
    """What a source of some origin reads of the true forward pass, and its value where it enters."""

    reads: Callable[[Model, Entry], Iterator[fx.Node]]
    run: Callable[[Model, Forward, Entry], Tensor]


SOURCES: dict[Origin, Source] = {
    "encoder": Source(_reads_encoder, _encoder),
    "stream": Source(_reads_stream, _stream),
    "injection": Source(_reads_injection, _injection),
    "skip": Source(_reads_skip, _skip),
    "split": Source(_reads_split, _split),
    "atom": Source(_reads_atom, _atom),
    "affine": Source(_reads_affine, _affine),
    "freeze": Source(_reads_freeze, _freeze),
    "decoder": Source(_reads_decoder, _decoder),
}
"""All origins."""
