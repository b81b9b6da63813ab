"""What reaches the targets along some edges alone: sums over the paths of a subgraph, one path among them."""

from __future__ import annotations

import torch
from torch import Tensor

from jetgraph.compilation.flows import Flows
from jetgraph.export.precision import own_types


@own_types()
def along(flows: Flows, edges: Tensor) -> Tensor:
    """What reaches each target from the sources along some edges alone: [target], in float64.

    Parameters
    ----------
    flows
        What they are edges of.
    edges
        Numbers of edges, in any order.
    """
    with torch.inference_mode(False), torch.no_grad():
        return _Along(flows, edges).run()


class _Along:
    """What the sources give along some edges alone, node by node in the order of the stream."""

    def __init__(self, flows: Flows, edges: Tensor) -> None:
        self.flows, self.stream = flows, flows.stream
        self._place = [
            (number, at) for number, one in enumerate(self.stream.components) for at in range(len(one.positions))
        ]
        """By node, its component and its place among the component's positions."""
        self._into: dict[int, list[int]] = {}
        for edge in edges.tolist():
            self._into.setdefault(int(flows.receivers[edge]), []).append(edge)
        self._known: dict[int, Tensor] = {}
        """By node of a site, what it adds at its position."""

    def run(self) -> Tensor:
        for component in self.stream.components:
            nodes = range(component.first, component.first + len(component.positions))
            reached = [node for node in nodes if node in self._into]
            if component.passage is None or not reached:
                continue
            added = self.stream.sites[component.alias].forwards(self._entering(reached, component.passage.reads))
            for row, node in zip(added, reached, strict=True):
                self._known[node] = self.stream.placed(row[None])[0, self._place[node][1]]
        first = len(self._place)
        targets = range(first, first + self.flows.targets)
        entering = self._entering(list(targets), self.stream.end)
        totals = (entering.double() * self.flows.back.double()).flatten(1).sum(1)
        for row, node in enumerate(targets):
            for edge in self._into.get(node, ()):
                sender = self._place[int(self.flows.senders[edge])][0]
                if self.stream.components[sender].lands > self.stream.end:
                    totals[row] += float(self.flows.values[edge])
        return totals

    def _entering(self, nodes: list[int], point: int) -> Tensor:
        """What enters some nodes that read a point: [node, *point]."""
        total: Tensor | None = None
        for segment, numbers in reversed(list(self.stream.segments_before(point))):
            if total is not None:
                assert segment.above is not None
                total = segment.above[1].forwards(total)
            if numbers:
                given = torch.stack([self._given(node, frozenset(numbers)) for node in nodes])
                total = given if total is None else total + given
        return (
            self.stream.points[point].new_zeros(len(nodes), *self.stream.points[point].shape)
            if total is None
            else total
        )

    def _given(self, node: int, components: frozenset[int]) -> Tensor:
        """What some components, which add to one segment, give a node: [*point]."""
        like = self.stream.added[min(components)]
        # Contiguous, so that positions of it are views.
        total = like.new_zeros(like.shape)
        for edge in self._into.get(node, ()):
            sender = int(self.flows.senders[edge])
            number, at = self._place[sender]
            if number not in components:
                continue
            value = self._known.get(sender)
            own = self.stream.placed(self.stream.added[number][None])[0, at] if value is None else value
            self.stream.placed(total[None])[0, at] += own
        return total
