"""Where terms come from, numerically: by origin, what a source reads of the true forward pass, and its value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, fx

from jetgraph.algebra.automaton import Entry, Origin
from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.passages import Passage
from jetgraph.algebra.rules import Freeze
from jetgraph.jets.series import Series, coefficient
from jetgraph.residual import ResidualGraph
from jetgraph.running.alone import by_place, comes_alone
from jetgraph.running.forward import Forward
from jetgraph.running.pieces import own_reads
from jetgraph.running.placed import counts_positions
from jetgraph.structure.regions import Branch, Join, JoinStage, Part, Region, Stage

Places = int | Tensor
"""A position of the output, or one of each row."""


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

    def branch(self, passage: Passage) -> Branch:
        """The branch at a site."""
        return self.graph.branches[passage.site.alias]

    def part(self, passage: Passage) -> Part | None:
        """Where a site is a part of a branch that was cut: which."""
        return self.branch(passage).part if passage.site.role == "branch" else None

    def region(self, passage: Passage) -> Region:
        """The code of a site; for the decoder its nonlinear part."""
        if passage.site.role == "decoder":
            return self.graph.structure.decoder.nonlinear
        return self.stage(passage.step).region if passage.site.role == "map" else self.branch(passage).region

    def region_of(self, alias: str) -> Region:
        """The code of a site, or of a split branch, by its alias."""
        whole = self.wholes.get(alias)
        return self.region(self.expansion.passage(alias)) if whole is None else whole.region

    def tokens(self, passage: Passage) -> tuple[int, ...]:
        """The dimensions of what a site gives, counted from the end, along which centres have weights of their own.

        Those along which a norm before it may scale; where there is none, all but the last one, or but the first of
        four and more, as of images. Never the one along which a concatenation puts it beside others.
        """
        region = self.region(passage)
        rank = len(region.exit.meta["shape"])
        if region.scaling is not None and len(region.entry.meta["shape"]) == rank:
            tokens = region.scaling.free
        else:
            tokens = tuple(range(-rank, -1)) if rank < 4 else (-rank,)
        if passage.site.role != "branch" or not (join := self.join(passage.step)).concatenates:
            return tokens
        dim = join.node.args[1] if len(join.node.args) > 1 else 0
        assert isinstance(dim, int)
        return tuple(token for token in tokens if token % rank != dim % rank)

    def carrying(self, point: int) -> Region | None:
        """What a term passes on its silent way to a point; None at a nonlinear map, and where a join has no skip."""
        stage = self.stage(point)
        if isinstance(stage, JoinStage):
            return stage.join.skip
        return stage.region if stage.region.affine else None

    def counts_positions(self, node: fx.Node) -> bool:
        """A tensor [batch, position, ...] with the positions of the output."""
        return counts_positions(node, self.graph.traced.output)

    def keeps_places(self, point: int, places: Places) -> bool:
        """What a term passes on its silent way to a point keeps positions apart."""
        region = self.carrying(point)
        return (region is None or by_place(region, places)) and self.lands_in_place(point)

    def lands_in_place(self, point: int) -> bool:
        """At a point operands are not put one after the other along positions."""
        stage = self.stage(point) if point < self.expansion.sink else None
        if not isinstance(stage, JoinStage) or not stage.join.concatenates:
            return True
        dim = stage.join.node.args[1] if len(stage.join.node.args) > 1 else 0
        assert isinstance(dim, int)
        return dim % len(stage.join.node.meta["shape"]) > 1

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

    def passage(self, entry: Entry) -> Passage:
        """The site that makes an entry."""
        assert entry.site is not None
        return self.expansion.passage(entry.site.alias)


def through(
    model: Model, forward: Forward, passage: Passage, value: Any, order: int = 0, rule: Freeze | None = None
) -> Any:
    """Push a value through the code of a site."""
    if passage.site.role == "branch":
        return forward.branch(model.branch(passage), value, order, rule)
    return forward.through(model.region(passage), value, order, frozen=rule)


def landed(model: Model, forward: Forward, passage: Passage, value: Tensor, *, stacked: bool = False) -> Tensor:
    """What a site gave, as a summand of the next point; of the decoder, before its affine part. `stacked`: several
    values [n, …]."""
    if passage.site.role != "branch":
        return value
    return forward.stages.land(model.join(passage.step), model.branch(passage).node, value, stacked=stacked)


def own_values(model: Model, passage: Passage) -> Iterator[fx.Node]:
    """What `own` reads of the forward pass."""
    if passage.site.role == "branch":
        yield from own_reads(model.branch(passage))
    else:
        yield model.region(passage).exit


def own(model: Model, forward: Forward, passage: Passage) -> Tensor:
    """What a site gives at the true stream."""
    if passage.site.role == "branch":
        return forward.component(passage.site.alias)
    return forward[model.region(passage).exit]


# By origin


def _nowhere(model: Model, entry: Entry) -> None:
    """It needs no point of the stream."""


def _here(model: Model, entry: Entry) -> int:
    return entry.point


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
    return forward.stages.at_end(entry.point)


def _reads_injection(model: Model, entry: Entry) -> Iterator[fx.Node]:
    yield model.injection(entry)


def _stream_apart(model: Model, entry: Entry, places: Places) -> bool:
    steps = range(entry.point + 1, model.expansion.sink)
    return model.counts_positions(model.point(entry.point)) and all(model.keeps_places(p, places) for p in steps)


def _injection(model: Model, forward: Forward, entry: Entry) -> Tensor:
    node = model.injection(entry)
    return forward.stages.land(model.join(entry.enters), node, forward[node])


def _reads_skip(model: Model, entry: Entry) -> Iterator[fx.Node]:
    yield from _biased_skip(model, entry).side


def _skip(model: Model, forward: Forward, entry: Entry) -> Tensor:
    skip = _biased_skip(model, entry)
    value = forward.through(skip, forward.sizes.zeros(skip.entry))
    return forward.stages.land(model.join(entry.enters), skip.exit, value)


def _gated_at(model: Model, entry: Entry) -> int | None:
    """The point that the gates of a skip read, where it has some."""
    return entry.enters - 1 if _biased_skip(model, entry).held else None


def _biased_skip(model: Model, entry: Entry) -> Region:
    skip = model.join(entry.enters).skip
    assert skip is not None
    return skip


def _reads_split(model: Model, entry: Entry) -> Iterator[fx.Node]:
    yield from model.whole(entry)[1].region.side


def _split(model: Model, forward: Forward, entry: Entry) -> Tensor:
    join, branch = model.whole(entry)
    assert branch.part is not None
    value = forward.pieces.constant(branch.part.cut, forward.sizes.zeros(branch.region.entry))
    return forward.stages.land(join, branch.node, value)


def _reads_atom(model: Model, entry: Entry) -> Iterator[fx.Node]:
    yield from own_values(model, model.passage(entry))


def _atom(model: Model, forward: Forward, entry: Entry) -> Tensor:
    passage = model.passage(entry)
    return landed(model, forward, passage, own(model, forward, passage))


def _atom_apart(model: Model, entry: Entry, places: Places) -> bool:
    return own_apart(model, model.passage(entry), places)


def own_apart(model: Model, passage: Passage, places: Places) -> bool:
    """A position of what a site gives is one of a value of the pass, or made of one by operators that keep positions
    apart.
    """
    part = model.part(passage)
    if part is None or not part.cut.carried:
        return part is None and all(map(model.counts_positions, own_values(model, passage)))
    return not part.cut.whole and comes_alone(part.cut.after, places)


def _branch_cut(model: Model, entry: Entry) -> str | None:
    """The branch of which an atom is a part: its parts are computed together."""
    part = model.part(model.passage(entry))
    return None if part is None else part.whole


def _atoms(model: Model, forward: Forward, entries: Sequence[Entry]) -> Tensor:
    values = forward.parts([entry.site.alias for entry in entries if entry.site is not None])
    return landed(model, forward, model.passage(entries[0]), values, stacked=True)


def _alone(model: Model, entry: Entry) -> None:
    """It is computed by itself."""


def _reads_affine(model: Model, entry: Entry) -> Iterator[fx.Node]:
    yield from model.region(model.passage(entry)).side


def _affine(model: Model, forward: Forward, entry: Entry) -> Tensor:
    passage = model.passage(entry)
    value = through(model, forward, passage, forward.sizes.zeros(model.region(passage).entry))
    return landed(model, forward, passage, value)


def _reads_freeze(model: Model, entry: Entry) -> Iterator[fx.Node]:
    passage = model.passage(entry)
    yield from model.region(passage).side
    yield model.point(passage.reads)
    if passage.site.role == "decoder":
        yield from model.graph.structure.decoder.affine.side


def _before(model: Model, entry: Entry) -> int:
    """The point that the site reads."""
    return model.passage(entry).reads


def _freeze(model: Model, forward: Forward, entry: Entry) -> Tensor:
    """b_h = f(h) − A_h h, where A_h is f with its gates held, or its derivative."""
    passage = model.passage(entry)
    h = forward[model.point(passage.reads)]
    held = through(model, forward, passage, Series.variate(h, h, 1), 1, passage.rule.frozen)
    return landed(model, forward, passage, through(model, forward, passage, h) - coefficient(held, 1))


def _freeze_apart(model: Model, entry: Entry, places: Places) -> bool:
    passage = model.passage(entry)
    return model.counts_positions(model.point(passage.reads)) and by_place(model.region(passage), places)


def _reads_decoder(model: Model, entry: Entry) -> Iterator[fx.Node]:
    decoder = model.graph.structure.decoder
    yield from (*decoder.nonlinear.side, *decoder.affine.side)


def _decoder(model: Model, forward: Forward, entry: Entry) -> Tensor:
    """Zero, to which the decoder's affine part adds its constant."""
    return forward.sizes.zeros(model.graph.structure.decoder.nonlinear.exit)


def _always(model: Model, entry: Entry, places: Places) -> bool:
    return True


def _never(model: Model, entry: Entry, places: Places) -> bool:
    return False


@dataclass(frozen=True)
class SourceValue:
    """What a source of some origin reads of the true forward pass, and its value where it enters."""

    reads: Callable[[Model, Entry], Iterator[fx.Node]]
    run: Callable[[Model, Forward, Entry], Tensor]
    point: Callable[[Model, Entry], int | None] = _nowhere
    """The last point of the true stream that it needs; None where it needs none."""
    group: Callable[[Model, Entry], str | None] = _alone
    """What it is computed together with: all entries of one origin with the same answer; None for nothing."""
    together: Callable[[Model, Forward, Sequence[Entry]], Tensor] | None = None
    """The values [n, …] of entries of one group."""
    apart: Callable[[Model, Entry, Places], bool] = _never
    """One position of it can be made by itself, in a pass at that position."""


SOURCES: dict[Origin, SourceValue] = {
    "encoder": SourceValue(_reads_encoder, _encoder),
    "stream": SourceValue(_reads_stream, _stream, _here, apart=_stream_apart),
    "injection": SourceValue(_reads_injection, _injection),
    "skip": SourceValue(_reads_skip, _skip, _gated_at),
    "split": SourceValue(_reads_split, _split),
    "atom": SourceValue(_reads_atom, _atom, _here, _branch_cut, _atoms, _atom_apart),
    "affine": SourceValue(_reads_affine, _affine),
    "freeze": SourceValue(_reads_freeze, _freeze, _before, apart=_freeze_apart),
    "decoder": SourceValue(_reads_decoder, _decoder, apart=_always),
}
"""All origins."""
