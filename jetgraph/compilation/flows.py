"""Flows to a target: what each component at each position gives it, and by way of which others.

With A_v the linear map of a site v at the true stream and g the gradient of a target along all paths, u at position i
gives to v at position j, and with it to the target,

    e(u@i → v@j) = ⟨g at what v adds at j, A_v (what u adds at i)⟩

Where the scores of an attention vary, as they do to first order, A_v is the sum of what goes by its queries, by its
keys and by its values, each of which is a component. Everything that enters v@j, constants included, adds up to what
v@j passes on: ⟨g, what v adds at j⟩. One sweep from the target back makes all of them: at each site as many cotangents
go back as it has positions that are told apart, and each is multiplied with what all components before it add.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.passages import Passage
from jetgraph.compilation.components import Component, Readout, Stream
from jetgraph.compilation.evaluation import MEMORY
from jetgraph.compilation.linear import check_linear
from jetgraph.export.precision import own_types
from jetgraph.running.forward import Forward


@dataclass(frozen=True, eq=False)
class Flows:
    """All flows to the sum of some targets. Nodes are numbered: those of the components, then the targets."""

    components: tuple[Component, ...]
    """In the order in which they enter the stream."""
    targets: int
    """How many; theirs are the last nodes."""
    flow: Tensor
    """[node]: what it passes on to the targets, constants of its own site left out; what enters it, but for sources."""
    influence: Tensor
    """[node]: share of the targets that is due to it when every node's is divided among what enters it by size."""
    senders: Tensor
    """[edge]: numbers of nodes."""
    receivers: Tensor
    """[edge]"""
    values: Tensor
    """[edge]: the flow along it, signed."""
    influences: Tensor
    """[edge]: the receiver's influence times the share that the edge has in the size of all that enters it."""
    left_out: int
    """Edges, the least influential, for which there was no memory."""
    stream: Stream
    back: Tensor
    """Cotangents of the last point for each target, [target, *point]."""


@own_types()
def flows(
    expansion: Expansion,
    forward: Forward,
    readouts: Sequence[Readout],
    *,
    positions: bool = True,
    memory: int = MEMORY,
    dictionaries: Mapping[str, Tensor] | None = None,
    scores: Collection[str] = (),
) -> Flows:
    """All flows to the sum of some linear functions of the output.

    Parameters
    ----------
    expansion
        Whose sites are all linear.
    forward
        A pass over its graph, of one example.
    readouts
        The targets.
    positions
        Tell positions of the sequence apart.
    memory
        Bytes for cotangents that go back together, and bytes for edges; the least influential edges are dropped first.
    dictionaries
        By alias of a site, directions [n, d] along which what it adds is shared out by least squares: each is a
        component, and so is the rest.
    scores
        Aliases of sites with attention whose scores vary: what goes by its queries and by its keys is told apart by the
        key of each score, `L3.attn.q2` and `L3.attn.k2`, whose node at position j is the score of j with key 2.

    Returns
    -------
    Flows
        In float32, or float64 where the model computes in it.

    Raises
    ------
    InputError
        A site is not linear under its rule, there are several examples, or a site has no scores that vary.
    BudgetError
        The components' values alone are larger than 64 times the memory.
    """
    check_linear(expansion.passages.values())
    with torch.inference_mode(False), torch.no_grad():
        stream = Stream(expansion, forward, positions, memory, dictionaries, ways=True, scores=frozenset(scores))
        sweep = _Sweep(stream, readouts, memory)
        return sweep.run()


class _Sweep:
    """Cotangents on their way from the targets back."""

    def __init__(self, stream: Stream, readouts: Sequence[Readout], memory: int) -> None:
        self.stream, self.readouts, self.memory = stream, readouts, memory
        self.size = sum(len(component.positions) for component in stream.components)
        nodes = self.size + len(readouts)
        self.flow = torch.zeros(nodes, dtype=stream.dtype, device=stream.device)
        self.influence = torch.zeros(nodes, dtype=stream.dtype, device=stream.device)
        self.edges = _Edges(max(1, memory // 64))

    def run(self) -> Flows:
        stream = self.stream
        back = stream.cotangents(self.readouts)
        stream.read_ahead_backwards()
        self._targets(back)
        gradient: dict[int, Tensor] = {stream.end: back.sum(0)}
        by_point: dict[int, list[tuple[int, Component]]] = {}
        for number, component in enumerate(stream.components):
            by_point.setdefault(component.lands, []).append((number, component))
        for point in range(stream.end, -1, -1):
            own = gradient.pop(point, None)
            if own is None:
                continue
            for number, component in by_point.get(point, ()):
                self._pass_on(number, component, own)
            for _, component in by_point.get(point, ()):
                if component.passage is not None:
                    rows = self._back(component, component.passage, own)
                    _add(gradient, component.passage.reads, rows.sum(0))
            if (silent := stream.silent[point]) is not None:
                _add(gradient, silent[0], silent[1].backwards(own[None])[0])
        senders, receivers, values, influences = (column.cpu() for column in self.edges.sorted())
        return Flows(
            stream.components,
            len(self.readouts),
            self.flow.cpu(),
            self.influence.cpu(),
            senders,
            receivers,
            values,
            influences,
            self.edges.left_out,
            stream,
            back,
        )

    def _targets(self, back: Tensor) -> None:
        """What enters the targets."""
        flows = self._entering(back, self.stream.end)
        constants = self.stream.constants(self.readouts)
        numbers = [self.stream.components[at].first for at in constants]
        extra = torch.tensor(list(constants.values()), dtype=self.stream.dtype, device=self.stream.device).reshape(
            len(numbers), len(self.readouts)
        )
        for at, number in enumerate(numbers):
            self.flow[number] = extra[at].sum()
        nodes, table = flows
        nodes = torch.cat([nodes, self._numbers(numbers)])
        table = torch.cat([table, extra.T], dim=1)
        receivers = self._numbers(range(self.size, self.size + len(self.readouts)))
        self.flow[receivers] = table.sum(1)
        size = table.abs().sum(1)
        self.influence[receivers] = size / size.sum() if float(size.sum()) else torch.zeros_like(size)
        self._record(nodes.expand(len(receivers), -1), receivers, table)

    def _pass_on(self, number: int, component: Component, gradient: Tensor) -> None:
        product = gradient.to(self.stream.dtype) * self.stream.added[number].to(self.stream.dtype)
        own = self.stream.placed(product[None])[0].sum(1)
        self.flow[component.first : component.first + len(own)] = own

    def _back(self, component: Component, passage: Passage, gradient: Tensor) -> Tensor:
        """Cotangents of the point that a site reads, by its position where they go different ways: [row, *point]."""
        map = self.stream.sites[component.alias]
        places = len(component.positions)
        if places == 1:
            rows = map.backwards(gradient[None])
            nodes, table = self._entering(rows, passage.reads)
            self._record(nodes[None], self._numbers([component.first]), table.flatten(1))
            return rows
        if self.stream.alone(passage):
            rows = map.backwards(gradient[None])
            nodes, table = self._entering(rows, passage.reads, places)
            # From position to position.
            self._record(nodes.T, component.first + self._numbers(range(places)), table[0].T)
            return rows
        total: Tensor | None = None
        moving = self.stream.placed(gradient[None])[0].abs().sum(1).nonzero()[:, 0]
        each = max(1, self.memory // (8 * max(1, gradient.numel(), self._width(passage.reads))))
        for some in moving.split(each):
            seeds = gradient.new_zeros(len(some), *gradient.shape)
            seen = self.stream.placed(seeds)
            seen[self._numbers(range(len(some))), some] = self.stream.placed(gradient[None])[0, some]
            rows = map.backwards(seeds)
            nodes, table = self._entering(rows, passage.reads)
            self._record(nodes.expand(len(some), -1), component.first + some, table)
            total = rows.sum(0, keepdim=True) if total is None else total + rows.sum(0)
        return map.backwards(torch.zeros_like(gradient)[None]) if total is None else total

    def _numbers(self, numbers: Sequence[int]) -> Tensor:
        """Numbers of nodes where the stream is."""
        return torch.tensor(list(numbers), dtype=torch.long, device=self.stream.device)

    def _width(self, point: int) -> int:
        """Numbers in the flows that enter one node."""
        return sum(
            segment.values.numel() // max(1, segment.values.shape[-1])
            for segment, _ in self.stream.segments_before(point)
        )

    def _entering(self, rows: Tensor, point: int, places: int | None = None) -> tuple[Tensor, Tensor]:
        """Numbers of all nodes before a point, and what they give along cotangents there.

        [node] and [row, node]; where each of some `places` is to be by itself, [component, place] and [row, component,
        place].
        """
        stream = self.stream
        nodes: list[Tensor] = []
        tables: list[Tensor] = []
        for segment, numbers in stream.segments_before(point):
            if numbers:
                given, values = stream.placed(rows.to(stream.dtype)), stream.placed(segment.values[: len(numbers)])
                table = torch.einsum("ntd,utd->nut", given, values)
                first = self._numbers([stream.components[number].first for number in numbers])
                nodes.append(first[:, None] + self._numbers(range(table.shape[-1])))
                tables.append(table)
            if segment.above is not None:
                rows = segment.above[1].backwards(rows)
        if places is not None:
            none = self._numbers([]).reshape(0, places), rows.new_zeros(len(rows), 0, places, dtype=stream.dtype)
            return torch.cat([none[0], *nodes]), torch.cat([none[1], *tables], dim=1)
        none = self._numbers([]), rows.new_zeros(len(rows), 0, dtype=stream.dtype)
        return (
            torch.cat([none[0], *(one.flatten() for one in nodes)]),
            torch.cat([none[1], *(one.flatten(1) for one in tables)], dim=1),
        )

    def _record(self, senders: Tensor, receivers: Tensor, table: Tensor) -> None:
        """Flows [receiver, sender] of the senders of each receiver."""
        size = table.abs().sum(1, keepdim=True)
        share = torch.where(size > 0, table.abs() / size, 0.0)
        influence = share * self.influence[receivers][:, None]
        self.influence.index_add_(0, senders.flatten(), influence.flatten())
        kept = table != 0
        self.edges.add(senders[kept], receivers[:, None].expand_as(table)[kept], table[kept], influence[kept])


class _Edges:
    """The most influential edges, as many as there is room for."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._found: list[tuple[Tensor, ...]] = []
        self._held = 0
        self.left_out = 0

    def add(self, *columns: Tensor) -> None:
        """Senders, receivers, values and influences."""
        self._found.append(columns)
        self._held += len(columns[0])
        if self._held > 2 * self._room:
            self._drop()

    def _drop(self) -> None:
        whole = self._joined()
        best = whole[3].topk(min(self._room, len(whole[3]))).indices.sort().values
        self.left_out += len(whole[3]) - len(best)
        self._found = [tuple(column[best] for column in whole)]
        self._held = len(best)

    def _joined(self) -> tuple[Tensor, ...]:
        return tuple(torch.cat(columns) for columns in zip(*self._found, strict=True))

    def sorted(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All that are held, the most influential first."""
        whole = self._joined()
        number = len(whole[3])
        if number > self._room:
            order = whole[3].topk(self._room).indices
            self.left_out += number - self._room
        else:
            order = whole[3].sort(descending=True, stable=True).indices
        senders, receivers, values, influences = (column[order] for column in whole)
        return senders, receivers, values, influences


def _add(totals: dict[int, Tensor], point: int, value: Tensor) -> None:
    totals[point] = totals[point] + value if point in totals else value
