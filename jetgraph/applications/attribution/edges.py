"""Path patching of any set of edges of an attribution graph: what the model gives when others carry something else.

An edge u@i → v@j is patched when v, at j, is evaluated on a stream to which u, at i, gives its filling in the place of
its value. As every j may read another stream, a site that mixes positions is run once for each set of edges that
differs; by queries, keys and values it reads three. What comes out goes on to all edges that are kept, so that sets of
edges are patched together as circuits are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from jetgraph.algebra.dialects import translated
from jetgraph.applications.attribution.graphs import Attribution
from jetgraph.applications.interventions.network import Network
from jetgraph.compilation.components import Component, Stream
from jetgraph.compilation.linear import LinearMaps
from jetgraph.compilation.origins import Model, landed, own, through
from jetgraph.errors import InputError, amount, quoted
from jetgraph.running.forward import Forward
from jetgraph.running.reals import as_like, as_reals
from jetgraph.running.ways import Entering, opened
from jetgraph.running.ways import through as through_attention

CHUNK = 64
"""Streams that pass a site together."""

CONSTANT = ("skip", "split", "decoder")
"""Origins of sources that belong to the model and to no site: they are the same on all prompts, and stay."""

Filling = Mapping[int, Tensor]
"""By sender, what stands for it: [position, features], or one position for all."""


@dataclass(frozen=True)
class Sender:
    """A source, or a site with the constant that its linear map leaves, which is one value in the model."""

    alias: str
    numbers: tuple[int, ...]
    """Of its components: those that receive, in the order of the ways into it; and its constant."""


class Streams:
    """The model evaluated site by site, each on a stream of its own."""

    def __init__(self, attribution: Attribution) -> None:
        if told := sorted(attribution.flows.stream.scores):
            raise InputError(
                f"the scores of {told[0]} are sites of their own here, and what reads another query for each key is no "
                "run of the model: attribute without scores= to patch edges"
            )
        self.stream: Stream = attribution.flows.stream
        self.components: Sequence[Component] = attribution.flows.components
        self.aims = attribution.aims
        by_alias: dict[str, list[int]] = {}
        for number, one in enumerate(self.components):
            if one.passage is not None:
                by_alias.setdefault(one.passage.site.alias, []).append(number)
            elif one.entry is not None and one.entry.origin in ("freeze", "affine") and one.entry.site is not None:
                # A constant of a site; that of the decoder has the sink's name, and no sender.
                by_alias.setdefault(one.entry.site.alias, []).append(number)
            elif one.entry is not None and one.entry.origin not in CONSTANT:
                by_alias.setdefault(one.alias, []).append(number)
        sites = {
            alias: [n for n in numbers if self.components[n].passage is not None] for alias, numbers in by_alias.items()
        }
        self.senders = [
            Sender(alias, tuple(sorted(numbers, key=lambda n: n not in sites[alias])))
            for alias, numbers in by_alias.items()
            if self.components[numbers[0]].lands <= self.stream.end
        ]
        self.sender_of = {number: at for at, one in enumerate(self.senders) for number in one.numbers}
        order = sorted(range(len(self.senders)), key=lambda at: self._component(at).lands)
        self.order = order

    def _component(self, sender: int) -> Component:
        return self.components[self.senders[sender].numbers[0]]

    def places(self, sender: int) -> int:
        """How many positions of a sender are told apart."""
        return len(self._component(sender).positions)

    def receivers(self, sender: int) -> list[int]:
        """The components by which a site receives; none of a source."""
        return [number for number in self.senders[sender].numbers if self.components[number].passage is not None]

    def clean(self, sender: int) -> Tensor:
        """A sender's value on the prompt."""
        first, *more = (self.stream.added[number] for number in self.senders[sender].numbers)
        return first + sum(more) if more else first

    def filling(self, network: Network) -> dict[int, Tensor]:
        """By sender, its value on another prompt, [position, features]."""
        maps = LinearMaps(self.stream.expansion, network.forward)
        model, forward = maps.model, maps.forward
        values: dict[int, Tensor] = {}
        for at in range(len(self.senders)):
            one = self._component(at)
            if one.passage is not None:
                value = landed(model, forward, one.passage, own(model, forward, one.passage))
            else:
                assert one.entry is not None
                value = maps.source(one.entry)
            values[at] = self.stream.placed(as_reals(value)[None])[0]
        return values

    def targets(
        self, gone: Mapping[int, Mapping[int, Tensor]], current: Mapping[int, Tensor], fill: Filling | None
    ) -> float:
        """Σ of the targets, each read off a stream of its own."""
        size = sum(len(one.positions) for one in self.components)
        model, forward = self._run
        structure = model.graph.structure
        total = 0.0
        for number, aim in enumerate(self.aims):
            entering = self.entering(self.stream.end, gone.get(size + number, {}), 1, current, fill)[0]
            hidden = forward.pieces.through(structure.decoder.nonlinear, entering)
            output = forward.pieces.through(structure.decoder.affine, hidden)[0]
            at = output if aim.readout.place is None else output[aim.readout.place]
            total += float((at.double().cpu() * aim.readout.weights.double()).sum())
        return total

    @cached_property
    def _run(self) -> tuple[Model, Forward]:
        return self.stream.maps.model, self.stream.maps.forward

    def entering(
        self, point: int, gone: Mapping[int, Tensor], rows: int, current: Mapping[int, Tensor], fill: Filling | None
    ) -> Tensor:
        """Streams at a point, [row, *point], in each of which some senders are filled at the positions that are gone.

        Parameters
        ----------
        gone
            By sender, [row, position].
        current
            By sender, its value now.
        fill
            None is zero.
        """
        stream, total = self.stream, None
        for segment, numbers in reversed(list(stream.segments_before(point))):
            if total is not None:
                assert segment.above is not None
                total = segment.above[1].forwards(total)
            for number in numbers:
                sender = self.sender_of.get(number)
                if sender is not None and number != self.senders[sender].numbers[0]:
                    continue
                value = stream.added[number] if sender is None else current[sender]
                if sender is not None and sender in gone:
                    given = self._filled(value, gone[sender], None if fill is None else fill[sender])
                else:
                    given = value[None]
                total = given if total is None else total + given
        assert total is not None
        return as_like(total.expand(rows, *total.shape[1:]), stream.own[point])

    def _filled(self, value: Tensor, gone: Tensor, fill: Tensor | None) -> Tensor:
        """[row, *point] of one value."""
        rows = value.expand(len(gone), *value.shape).clone(memory_format=torch.contiguous_format)
        seen = self.stream.placed(rows)
        other = torch.zeros_like(seen[:1]) if fill is None else fill.to(seen).expand(seen.shape[1], -1)[None]
        seen.copy_(torch.where(gone[..., None].to(seen.device), other, seen))
        return rows

    def site(self, sender: int, streams: Mapping[int, Tensor]) -> Tensor:
        """What a site adds on each of some streams, [row, *point]; by receiving component."""
        model, forward = self._run
        passage = self._component(sender).passage
        assert passage is not None
        several = list(streams.items())
        if len(several) == 1:
            stack = several[0][1]
            if passage.site.role != "branch" or model.part(passage) is None:
                region = model.region(passage)
                made = [forward.pieces.side_by_side(region, some) for some in stack.split(CHUNK)]
                values = torch.cat(made)
            else:
                values = torch.stack([through(model, forward, passage, row) for row in stack])
        else:
            branch, site = model.branch(passage), passage.site.alias
            rows: list[Tensor] = []
            for row in zip(*(stack for _, stack in several), strict=True):
                names = [self.components[number].alias.removeprefix(f"{site}.") for number, _ in several]
                read = {way: Entering(forward.pieces, branch, value) for way, value in zip(names, row, strict=True)}
                rows.append(through_attention(forward.pieces, branch, opened(read)))  # type: ignore[arg-type]
            values = torch.stack(rows)
        return torch.stack([as_reals(landed(model, forward, passage, value)) for value in values])


class EdgeRuns:
    """Runs of the model with some edges patched.

    Parameters
    ----------
    attribution
        Whose edges they are; those of one pair of nodes are one edge, constants of the sender's with its own.
    fillings
        What senders are filled with, once or by prompt; None is zero.
    """

    what = "edges"

    def __init__(self, attribution: Attribution, fillings: Sequence[Filling | None], streams: Streams) -> None:
        flows = attribution.flows
        if flows.left_out:
            raise InputError(
                f"the attribution has left out {amount(flows.left_out, 'edge')} for want of memory, so that circuits "
                "of edges would not be whole: attribute with more memory="
            )
        self._attribution, self._fillings, self.streams = attribution, fillings, streams
        self._known: dict[frozenset[int], float] = {}
        size = sum(len(one.positions) for one in flows.components)
        self._sender = torch.full((size,), -1)
        self._place = torch.zeros(size, dtype=torch.long)
        for number, one in enumerate(flows.components):
            if (sender := streams.sender_of.get(number)) is not None:
                nodes = slice(one.first, one.first + len(one.positions))
                self._sender[nodes] = sender
                self._place[nodes] = torch.arange(len(one.positions))
        self._most = max((len(one.positions) for one in flows.components), default=1)
        own = self._sender[flows.senders] >= 0
        self._numbers = own.nonzero()[:, 0]
        """Edges of the flows that are patched."""
        sent = self._sender[flows.senders[own]] * self._most + self._place[flows.senders[own]]
        key = sent * (size + flows.targets) + flows.receivers[own]
        keys, self._edge = key.unique(return_inverse=True)
        """By edge of the flows that is patched, its number here."""
        self.edges = len(keys)
        self._sent, self._received = keys // (size + flows.targets), keys % (size + flows.targets)
        self._receiver = torch.zeros(size + flows.targets, dtype=torch.long)
        self._row = torch.zeros_like(self._receiver)
        for number, one in enumerate(flows.components):
            nodes = slice(one.first, one.first + len(one.positions))
            self._receiver[nodes], self._row[nodes] = number, torch.arange(len(one.positions))

    def ranked(self, by: str) -> list[int]:
        """The numbers of all edges, the most important first."""
        flows = self._attribution.flows
        score = (flows.influences if by == "influence" else flows.values)[self._numbers].double()
        total = torch.zeros(self.edges, dtype=torch.float64).index_add_(0, self._edge, score)
        return total.abs().argsort(descending=True, stable=True).tolist()

    def standing(self, numbers: Iterable[int]) -> set[int]:
        """The edges that some edges of the flows are of."""
        place = {number: at for at, number in enumerate(self._numbers.tolist())}
        return {int(self._edge[place[number]]) for number in numbers if number in place}

    def named(self, pairs: Iterable[tuple[str, str]]) -> set[int]:
        """The edges between nodes of these names.

        Raises
        ------
        InputError
            There is no such edge.
        """
        flows = self._attribution.flows
        size = len(self._sender)
        names = {
            one.name if position is None else f"{one.name}@{position}": one.first + at
            for one in flows.components
            for at, position in enumerate(one.positions)
        }
        names |= {aim.name: size + number for number, aim in enumerate(self._attribution.aims)}
        by_ends = {ends: at for at, ends in enumerate(zip(self._sent.tolist(), self._received.tolist(), strict=True))}
        edges: set[int] = set()
        for pair in pairs:
            sender, receiver = (names.get(_called(name), -1) for name in pair)
            known = 0 <= sender < size
            key = (int(self._sender[sender] * self._most + self._place[sender]) if known else -1, receiver)
            if key not in by_ends:
                raise InputError(
                    f"{quoted(' → '.join(pair))} is no edge of the attribution: edges are pairs of names of its nodes, "
                    "such as ('L0.mlp@3', 'L1.attn@5')"
                )
            edges.add(by_ends[key])  # type: ignore[index]
        return edges

    def value(self, kept: Iterable[int]) -> float:
        """The targets with all edges patched but these."""
        stays = frozenset(kept)
        if stays not in self._known:
            gone = self._gone(stays)
            self._known[stays] = sum(self._value(gone, fill) for fill in self._fillings) / len(self._fillings)
        return self._known[stays]

    def _gone(self, kept: frozenset[int]) -> dict[int, dict[int, Tensor]]:
        """By receiving component (or target, by its node), and by sender, what is patched: [row, position]."""
        streams, size = self.streams, len(self._sender)
        patched = torch.ones(self.edges, dtype=torch.bool)
        patched[list(kept)] = False
        gone: dict[int, dict[int, Tensor]] = {}
        for sent, received in zip(self._sent[patched].tolist(), self._received[patched].tolist(), strict=True):
            sender, place = divmod(sent, self._most)
            target = received >= size
            receiver = received if target else int(self._receiver[received])
            rows = 1 if target else len(streams.components[receiver].positions)
            masks = gone.setdefault(receiver, {})
            if sender not in masks:
                masks[sender] = torch.zeros(rows, streams.places(sender), dtype=torch.bool)
            masks[sender][0 if target else int(self._row[received]), place] = True
        return gone

    def _value(self, gone: Mapping[int, Mapping[int, Tensor]], fill: Filling | None) -> float:
        streams = self.streams
        current: dict[int, Tensor] = {}
        for sender in streams.order:
            receivers = streams.receivers(sender)
            # Where nothing that it reads has changed, a site is what it is on the prompt.
            current[sender] = self._site(sender, receivers, gone, current, fill) if receivers else streams.clean(sender)
        return streams.targets(gone, current, fill)

    def _site(
        self,
        sender: int,
        receivers: Sequence[int],
        gone: Mapping[int, Mapping[int, Tensor]],
        current: Mapping[int, Tensor],
        fill: Filling | None,
    ) -> Tensor:
        """A site's value, each position from the stream that it reads."""
        streams, stream = self.streams, self.streams.stream
        passage = streams.components[receivers[0]].passage
        assert passage is not None
        places = streams.places(sender)
        if places > 1 and stream.alone(passage):
            # One stream for all positions: each is read at itself.
            masks = {at: mask.diagonal()[None] for at, mask in gone.get(receivers[0], {}).items()}
            entering = streams.entering(passage.reads, masks, 1, current, fill)
            return streams.site(sender, {receivers[0]: entering})[0]
        keys = [gone.get(number, {}) for number in receivers]
        flat = [mask for masks in keys for _, mask in sorted(masks.items())]
        table = torch.cat(flat, dim=1) if flat else torch.zeros(places, 0, dtype=torch.bool)
        _, row_of = table.unique(dim=0, return_inverse=True) if flat else (None, torch.zeros(places, dtype=torch.long))
        rows = int(row_of.max()) + 1
        first = [int((row_of == row).nonzero()[0]) for row in range(rows)]
        read = {
            number: streams.entering(
                passage.reads, {at: mask[first] for at, mask in masks.items()}, rows, current, fill
            )
            for number, masks in zip(receivers, keys, strict=True)
        }
        made = streams.site(sender, read)
        if places == 1:
            return made[0]
        value = made[0].clone(memory_format=torch.contiguous_format)
        stream.placed(value[None])[0].copy_(stream.placed(made)[row_of, torch.arange(places)])
        return value


def _called(node: str) -> str:
    """A node's name, where TransformerLens has one for its component."""
    component, at, position = node.partition("@")
    return f"{translated(component) or component}{at}{position}"
