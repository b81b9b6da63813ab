"""What adds to the stream on one input, node by node, and the maps that lead from one point to the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jetgraph.algebra.automaton import Entry
from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.outline import SINK
from jetgraph.algebra.passages import Passage
from jetgraph.compilation.decoding import Decoding
from jetgraph.compilation.linear import LinearMap, LinearMaps, SharedMap, Shares, on_reals
from jetgraph.errors import BudgetError, InputError, big
from jetgraph.lazy.tensors import Deferred, read_ahead_backwards
from jetgraph.running.alone import by_element, by_position
from jetgraph.running.forward import Forward
from jetgraph.running.reals import as_like, as_reals
from jetgraph.structure.regions import Region


@dataclass(frozen=True, eq=False)
class Readout:
    """A linear function of the output at one position: ⟨weights, output[place]⟩."""

    place: int | None
    """The position; None where the output has none."""
    weights: Tensor
    """Of the output's features, [*features]."""


@dataclass(frozen=True, eq=False)
class Component:
    """What adds to the stream: a source, or a site."""

    alias: str
    kind: str
    lands: int
    """The point that it adds to; the sink's number for constants of the decoder."""
    entry: Entry | None
    passage: Passage | None
    first: int
    """The number of its first node; its nodes are one for each position that is told apart."""
    positions: tuple[int | None, ...]
    """The positions of its nodes."""

    @property
    def name(self) -> str:
        """Its alias; of the constant that a site leaves, that of the site with `.bias`."""
        if self.entry is None or self.entry.site is None or self.entry.is_atom:
            return self.alias
        return f"{self.entry.site.alias}.bias"

    @property
    def path(self) -> str:
        """Module path of the code that makes it."""
        if self.passage is not None:
            return self.passage.site.path
        assert self.entry is not None
        return self.entry.source.path


@dataclass(eq=False)
class Segment:
    """Points that silent moves join which leave values as they are, and what is added to them."""

    above: tuple[int, LinearMap] | None
    """The silent move into its first point, and where that starts."""
    straight: bool
    """That move takes each position to itself; True where there is none."""
    numbers: list[int]
    """Components, in the order in which they land."""
    values: Tensor
    """What they add, [component, *point]."""


class Stream:
    """The components of an expansion on one input, with what they add, and the maps between the points.

    Where the stream is complex, all of these are of pairs of real numbers.

    Parameters
    ----------
    expansion, forward, positions, memory, dictionaries
        As of `flows`.
    ways
        Tell apart by which way a value enters attention whose scores vary: by its queries (`L3.attn.q`), keys, values.
    scores
        Aliases of sites whose ways by queries and keys are told apart score by score (`L3.attn.q2`, by that of key 2).
    """

    def __init__(
        self,
        expansion: Expansion,
        forward: Forward,
        positions: bool,
        memory: int,
        dictionaries: Mapping[str, Tensor] | None = None,
        ways: bool = False,
        scores: frozenset[str] = frozenset(),
    ) -> None:
        self.dictionaries = dictionaries or {}
        """By alias of a site, directions along which what it adds is shared out."""
        self._whole = self.dictionaries if ways else None
        self.scores = scores
        self.expansion = expansion
        self.maps = LinearMaps(expansion, forward, memory)
        self.end = expansion.sink - 1
        """The last point."""
        self.own = [self.maps.forward[self.maps.model.point(point)] for point in range(expansion.sink)]
        """The points as the model has them."""
        self._hidden = self.maps.forward[self.maps.model.graph.structure.decoder.nonlinear.exit]
        self.points = [as_reals(value) for value in self.own]
        shape = self.maps.forward.shape(self.maps.model.graph.traced.output)
        if not shape or shape[0] != 1:
            raise InputError(
                f"the output has shape {list(shape)}, with several examples in its first dimension: give one prompt at "
                "a time"
            )
        self._positions, self._output = positions, shape
        self.device = self.points[0].device
        self.dtype = torch.float64 if any(value.dtype == torch.float64 for value in self.points) else torch.float32
        self.silent = [None, *(self._silent(point) for point in range(1, self.end + 1))]
        """By point, where the silent move into it starts, and its map."""
        self.sites: dict[str, LinearMap] = {}
        """The map of each site."""
        self.components = self._components(memory)
        self.decoder = on_reals(self.maps.site(expansion.passage(SINK)))
        self.segments, self._segment_of = self._segments()

    def segments_before(self, point: int) -> Iterator[tuple[Segment, list[int]]]:
        """The segments that silent moves lead from to a point, the nearest first, and their components that do."""
        at: int | None = point
        while at is not None:
            segment = self.segments[self._segment_of[at]]
            yield segment, [number for number in segment.numbers if self.components[number].lands <= at]
            at = None if segment.above is None else segment.above[0]

    def read_ahead_backwards(self) -> None:
        """Weights that are in files are read in the order in which a sweep from the end to the beginning wants them."""
        if any(isinstance(tensor, Deferred) for tensor in self.maps.model.graph.traced.tensors.values()):
            landing = sorted((one for one in self.components if one.alias in self.sites), key=lambda one: -one.lands)
            read_ahead_backwards(self.sites[one.alias].graph for one in landing)

    def _segments(self) -> tuple[list[Segment], list[int]]:
        place: list[int] = []
        above: list[tuple[int, LinearMap] | None] = []
        for point in range(self.end + 1):
            silent = self.silent[point]
            if silent is not None and silent[1].identity and silent[0] == point - 1:
                place.append(place[-1])
                continue
            place.append(len(above))
            above.append(silent)
        segments: list[Segment] = []
        landing: list[list[int]] = [[] for _ in above]
        for at, one in enumerate(self.components):
            if one.lands <= self.end:
                landing[place[one.lands]].append(at)
        for number, (move, numbers) in enumerate(zip(above, landing, strict=True)):
            values = [self.added[at].to(self.dtype) for at in numbers]
            straight = move is None or self._straight(place.index(number), move[0])
            segments.append(Segment(move, straight, numbers, torch.stack(values) if values else torch.empty(0)))
            if values and self.added[numbers[0]].dtype == self.dtype:
                # One copy of each.
                for row, at in zip(segments[-1].values, numbers, strict=True):
                    self.added[at] = row
        return segments, place

    def _silent(self, point: int) -> tuple[int, LinearMap] | None:
        start = next((move.start for move in self.expansion.automaton.moves[point - 1] if move.hop is None), None)
        return None if start is None else (start, on_reals(self.maps.carry(point, start)))

    def _components(self, memory: int) -> tuple[Component, ...]:
        """All of them in the order of the points, and what they add into `self.added`."""
        self.added: list[Tensor] = []
        components: list[Component] = []
        first = 0
        passages = self._by_step()
        self._check_size(passages, memory)
        for point in range(self.expansion.sink + 1):
            for alias, kind, entry, passage, value in self._landing(point, passages.get(point, [])):
                places = self.positions_of(value) if point <= self.end else (None,)
                components.append(Component(alias, kind, point, entry, passage, first, places))
                self.added.append(value)
                first += len(places)
        return tuple(components)

    def _check_size(self, passages: Mapping[int, Sequence[Passage]], memory: int) -> None:
        """Raise `BudgetError` where what the components add is too much, before any of it is computed."""
        size = sum(
            (len(self.expansion.automaton.entering[at]) + sum(map(self._number, passages.get(at, ())))) * value.nbytes
            for at, value in enumerate(self.points)
        )
        if size > 64 * memory:
            raise BudgetError(
                f"what the components add takes {big(size)} bytes, more than 64 times the memory of {big(memory)}: "
                f"take memory={-(-size // 64)} or more (--memory), shorten the prompt, or split fewer branches"
            )

    def _number(self, passage: Passage) -> int:
        """How many components a site makes."""
        alias = passage.site.alias
        if alias in self.dictionaries:
            return len(self.dictionaries[alias]) + 1
        ways = None if self._whole is None else self.maps.ways(passage)
        return 1 if ways is None else len(ways.names)

    def _landing(
        self, point: int, passages: Sequence[Passage]
    ) -> Iterator[tuple[str, str, Entry | None, Passage | None, Tensor]]:
        for entry in self.expansion.automaton.entering[point]:
            yield entry.source.alias, entry.source.kind, entry, None, as_reals(self.maps.source(entry))
        for site, passage, whole in self.maps.by_site(passages, self._whole, self.scores):
            for alias, own in self._shared(site, whole):
                map = self.sites[alias] = on_reals(own)
                yield alias, passage.site.kind, None, passage, map.image

    def _shared(self, alias: str, whole: LinearMap) -> Iterator[tuple[str, LinearMap]]:
        """A site's map, or those of the directions of its dictionary and of the rest."""
        if alias not in self.dictionaries:
            yield alias, whole
            return
        shares = Shares(self.dictionaries[alias].to(whole.image))
        for number in range(len(shares.directions)):
            yield f"{alias}.direction{number}", SharedMap(whole, shares, number)
        yield f"{alias}.rest", SharedMap(whole, shares, None)

    def _by_step(self) -> dict[int, list[Passage]]:
        by_step: dict[int, list[Passage]] = {}
        for passage in self.expansion.passages.values():
            if passage.hops and passage.site.role != "decoder":
                by_step.setdefault(passage.step, []).append(passage)
        return by_step

    def positions_of(self, value: Tensor) -> tuple[int | None, ...]:
        """The positions of a value of the stream that are told apart."""
        places = self.placed(value[None]).shape[1]
        return (None,) if places == 1 and not self._told_apart(value) else tuple(range(places))

    def placed(self, stack: Tensor) -> Tensor:
        """Values of a point [n, *point] by position: [n, position, features], a view."""
        if not self._told_apart(stack[0]):
            return stack.flatten(1).unsqueeze(1)
        return stack[:, 0].flatten(2) if stack.dim() > 3 else stack

    def _told_apart(self, value: Tensor) -> bool:
        """The value is [1, position, d_model], or [1, position, ...] where that is as long as the output; or
        [position, d_model], where the one example has no dimension.
        """
        if not self._positions or value.dim() < 2:
            return False
        if value.dim() == 2:
            # One row is one position where the output has one too: batch and positions are one dimension (OPT).
            return value.shape[0] > 1 or (len(self._output) == 3 and self._output[1] == 1)
        return value.dim() == 3 or (len(self._output) == 3 and value.shape[1] == self._output[1])

    def alone(self, passage: Passage) -> bool:
        """Each position goes through the site by itself, as it does on all silent ways to the point that it reads."""
        ways = [segment.straight for segment, _ in self.segments_before(passage.reads)]
        return self._alone(self.maps.model.region(passage), passage.reads) and all(ways)

    def _alone(self, region: Region, point: int) -> bool:
        return by_position(region) if self.points[point].dim() > 2 else by_element(region)

    def _straight(self, point: int, start: int) -> bool:
        """Between two points each position goes silently to itself."""
        one, other = (self.placed(self.points[at][None]).shape[1] for at in (start, point))
        regions = [(at, self.maps.model.carrying(at)) for at in range(start + 1, point + 1)]
        return one == other and all(
            region is None or not region.nodes or self._alone(region, at - 1) for at, region in regions
        )

    def cotangents(self, readouts: Sequence[Readout]) -> Tensor:
        """Of the last point, for each readout: [readout, *point]."""
        gradients: list[Tensor] = []
        for readout in readouts:
            decode = on_reals(self.maps.decode(readout.place))
            seed = torch.zeros_like(decode.image)
            weights = readout.weights.to(seed)
            if readout.place is None or seed.shape[1] == 1:
                seed[0] = weights
            else:
                seed[0, readout.place] = weights
            back = decode.backwards(seed[None])[0]
            if back.shape != (hidden := as_reals(self._hidden)).shape:
                whole = torch.zeros_like(hidden)
                whole.narrow(1, readout.place or 0, 1).copy_(back)
                back = whole
            gradients.append(back)
        return self.decoder.backwards(torch.stack(gradients))

    def constants(self, readouts: Sequence[Readout]) -> dict[int, list[float]]:
        """By component that is a constant of the decoder, what it gives each readout."""
        decoding = Decoding(self.expansion, self.maps.forward)
        by_component: dict[int, list[float]] = {}
        for number, component in enumerate(self.components):
            if component.lands > self.end:
                value = decoding.decode(as_like(self.added[number][None], self._hidden), [1.0])[0, 0]
                at = [value if readout.place is None else value[readout.place] for readout in readouts]
                by_component[number] = [
                    float((one.double().cpu() * readout.weights.double()).sum())
                    for one, readout in zip(at, readouts, strict=True)
                ]
        return by_component
