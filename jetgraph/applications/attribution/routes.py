"""Paths through an attribution graph, best first by influence, each with its exact value."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jetgraph.applications.bars import bars
from jetgraph.applications.readout import Texts
from jetgraph.applications.results import Cell, Result
from jetgraph.errors import amount

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Route:
    """One path, from a source at a position to a target."""

    path: str
    """Its nodes, joined by ` > `."""
    value: float
    """What it gives the target."""
    influence: float
    """The target's influence times the shares of its edges."""


@dataclass(frozen=True, eq=False, repr=False)
class Routes(Result):
    """Paths through an attribution graph. Made by `Attribution.paths`."""

    graph: str
    """The title of the graph."""
    total: float
    """Σ of the targets."""
    found: tuple[Route, ...]
    """Largest value first."""
    tokens: Texts = ()
    """The texts of the prompt's tokens, as of its one example; none where it has no tokens."""

    @property
    def title(self) -> str:
        together = sum(route.value for route in self.found)
        return f"{amount(len(self.found), 'path')}, together {together:.4g} of {self.total:.4g}; {self.graph}"

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """path, value, its share of the targets, and influence."""
        return {
            "path": [route.path for route in self.found],
            "value": [route.value for route in self.found],
            "share": [route.value / self.total if self.total else None for route in self.found],
            "influence": [route.influence for route in self.found],
        }

    def figure(self) -> Figure:
        """Bars: the values of the paths."""
        return bars([(route.path, route.value) for route in self.found], self.title, "what the path gives the target")


def best_first(
    roles: Sequence[str], influences: Sequence[float], edges: Mapping[int, tuple[int, int, float]]
) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Influences and edges of paths from source to target, in falling order of the influence.

    Shares are at most 1, so that no completion of a path has more than its end.

    Parameters
    ----------
    roles, influences
        By node: `source`, `site` or `target`, and its influence.
    edges
        By number: sender, receiver and influence.
    """
    enters: dict[int, list[tuple[int, float]]] = {}
    for edge, (_, receiver, influence) in sorted(edges.items(), key=lambda item: -item[1][2]):
        if influences[receiver] > 0:
            enters.setdefault(receiver, []).append((edge, influence / influences[receiver]))
    heap: list[tuple[float, int, int, int, float, tuple[int, ...]]] = []
    counter = 0

    def push(node: int, rank: int, influence: float, after: tuple[int, ...]) -> None:
        nonlocal counter
        if rank < len(enters.get(node, ())):
            counter += 1
            heapq.heappush(heap, (-influence * enters[node][rank][1], counter, node, rank, influence, after))

    for node, role in enumerate(roles):
        if role == "target":
            push(node, 0, influences[node], ())
    while heap:
        negative, _, node, rank, influence, after = heapq.heappop(heap)
        push(node, rank + 1, influence, after)
        edge = enters[node][rank][0]
        sender = edges[edge][0]
        path = (edge, *after)
        if roles[sender] == "source":
            yield -negative, path
        else:
            push(sender, 0, -negative, path)
