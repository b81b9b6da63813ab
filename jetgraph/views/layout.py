"""Where the boxes and points of a path DAG stand in a picture.

One stream is a straight line, with sites above it and what enters it below; one of more steps than `WIDEST` is folded
in the middle. Streams that part are drawn in layers, ordered so that walks that stay together cross little.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import networkx as nx

from jetgraph.errors import BudgetError

WIDEST = 20
"""How many steps of the stream are drawn; of longer ones the first and last, with an ellipsis between them."""

LARGEST = 300
"""How many sites and points a picture may show."""

STACKED = 16
"""How many sources that enter at one place are drawn one below the other, under one straight stream."""

_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Way:
    """Where edges to the same end pass a layer between their ends, around what stands there."""

    end: Any
    layer: int


@dataclass(eq=False)
class Box:
    """A site with all orders taken there, a source, or the sink."""

    key: tuple[Any, ...]
    text: str
    kind: str
    role: str
    column: float
    orders: set[int] = field(default_factory=set)
    whole: str = ""
    """What is written of a jet of which all orders are together."""

    @property
    def label(self) -> str:
        if self.whole:
            return self.whole
        orders = sorted(order for order in self.orders if order >= 0)
        shown = [str(order).translate(_SUPERSCRIPTS) for order in orders]
        if len(shown) > 4:
            shown = [shown[0], "…", shown[-1]]
        return self.text + " ".join(shown)


class Layout:
    """Boxes and points of a path DAG with their places.

    Parameters
    ----------
    dag
        What `jetgraph.path_graph` returns.

    Raises
    ------
    BudgetError
        There is more to draw than `LARGEST` places.
    """

    def __init__(self, dag: nx.MultiDiGraph) -> None:
        self.dag = dag
        self.last: int = max(facts["point"] for _, facts in dag.nodes(data=True))
        self.points = [node for node, facts in dag.nodes(data=True) if facts["role"] == "point"]
        whole = sorted(dag.nodes[node]["point"] for node in self.points) == list(range(self.last))
        self.hidden = _folded(self.last) if whole else (0, 0)
        """Between which points nothing is drawn: only where every walk passes all of them."""
        self.boxes = self._boxes()
        """By node; nodes that differ only in their order share one."""
        self.at: dict[Any, tuple[float, float]] = {}
        """Place of every box and point that is drawn."""
        self.ways: dict[Way, tuple[float, float]] = {}
        self.layers: dict[Any, int] = {}
        """Number of the layer of every box and point, where there are any."""
        one_each = len({dag.nodes[node]["point"] for node in self.points}) == len(self.points)
        jumps = any(
            facts["role"] == "branch" and facts["to_point"] > dag.nodes[site]["point"]
            for site, _, facts in dag.edges(data=True)
            if site in self.boxes
        )
        self.straight = one_each and not jumps
        """Every walk passes the same points, one after the other, so that there is one stream."""
        entering = [box.column for box in self.distinct() if box.role == "source" and box.column > 0]
        if self.straight and all(entering.count(column) <= STACKED for column in entering):
            self._along_stream()
        else:
            self.straight = False
            self._in_layers()
        if len(self.at) > LARGEST:
            raise BudgetError(
                f"the graph has {len(self.at)} places to draw, more than the {LARGEST} that a picture can show: select "
                "fewer paths, or write it as .graphml for a graph viewer"
            )

    def distinct(self) -> tuple[Box, ...]:
        """Every box once."""
        return tuple(dict.fromkeys(self.boxes.values()))

    def _boxes(self) -> dict[str, Box]:
        """A box for every node but the points; nodes that differ only in their order share one."""
        groups: dict[tuple[Any, ...], Box] = {}
        boxes: dict[str, Box] = {}
        for node, facts in self.dag.nodes(data=True):
            if facts["role"] == "point":
                continue
            key = (facts["alias"], facts["role"], tuple(sorted(self.dag.successors(node))))
            if key not in groups:
                text = facts["label"] if facts["role"] == "sink" else facts["alias"]
                groups[key] = Box(key, text, facts["kind"], facts["role"], self._column(node))
            groups[key].orders.add(facts["order"])
            if facts["hop"] == f"{facts['alias']}~{facts['order']}":
                groups[key].whole = facts["hop"]
            boxes[node] = groups[key]
        return boxes

    def _column(self, node: str) -> float:
        facts = self.dag.nodes[node]
        if facts["role"] == "sink":
            return self.last + 0.25
        if facts["role"] == "source":
            enters = min((edge["from_point"] for _, _, edge in self.dag.out_edges(node, data=True)), default=0)
            return -1.0 if enters == 0 else enters - 0.5
        return facts["point"] - 0.5

    def thing(self, node: str) -> Any:
        """What stands for a node of the DAG: its box, or the point itself."""
        return self.boxes.get(node, node)

    # One stream: a straight line, with what is added to it above and what enters it below

    def _along_stream(self) -> None:
        for node in self.points:
            if self._seen(self.dag.nodes[node]["point"]):
                self.at[node] = (self.x(self.dag.nodes[node]["point"]), 0.0)
        columns: dict[tuple[float, bool], list[Box]] = {}
        for box in self.distinct():
            if self._seen(box.column):
                columns.setdefault((box.column, box.role == "source"), []).append(box)
        for (column, is_source), boxes in columns.items():
            for index, box in enumerate(boxes):
                if column < 0:
                    row = 0.62 * ((len(boxes) - 1) / 2 - index)
                elif is_source:
                    row = -1.0 - 0.62 * index
                else:
                    row = 1.0 + 0.62 * index if box.role == "branch" else 0.0
                self.at[box] = (self.x(column), row)

    def x(self, column: float) -> float:
        """Place of a point of the stream, with the folded ones left out; the gap is as wide as one step and a half."""
        first, last = self.hidden
        return first + 1.5 + column - last if last > first and column >= last else column

    def _seen(self, column: float) -> bool:
        first, last = self.hidden
        return last <= first or column <= first or column >= last

    # Several: layers of points and sites, ordered so that walks that stay together cross little

    def _in_layers(self) -> None:
        columns: dict[float, list[Any]] = {}
        for thing in dict.fromkeys(map(self.thing, self.dag.nodes)):
            column = thing.column if isinstance(thing, Box) else float(self.dag.nodes[thing]["point"])
            if isinstance(thing, Box) and thing.role == "source" and thing.kind == "stream":
                column = -1.0
            if self._seen(column):
                columns.setdefault(column, []).append(thing)
        layers = [things for _, things in sorted(columns.items())]
        self.layers = {thing: number for number, things in enumerate(layers) for thing in things}
        near: dict[Any, set[Any]] = {thing: set() for thing in self.layers}
        for start, end in self.dag.edges():
            one, other = self.thing(start), self.thing(end)
            if one in self.layers and other in self.layers:
                ways = self.ways_between(one, other)
                for way in ways:
                    if way not in near:
                        layers[way.layer].append(way)
                        near[way] = set()
                for here, there in pairwise([one, *ways, other]):
                    near[here].add(there)
                    near[there].add(here)
        rows = {thing: float(index) for things in layers for index, thing in enumerate(things)}
        for sweep in range(12):
            for things in reversed(layers) if sweep % 2 else layers:
                wanted = {thing: _mean([rows[other] for other in near[thing]], rows[thing]) for thing in things}
                for thing, row in zip(things, _spread([wanted[t] for t in things]), strict=True):
                    rows[thing] = row
        for index, things in enumerate(layers):
            for thing in things:
                place = (0.85 * index, 0.62 * rows[thing])
                (self.ways if isinstance(thing, Way) else self.at)[thing] = place

    def ways_between(self, start: Any, end: Any) -> list[Way]:
        """Where an edge passes the layers between its ends."""
        return [Way(end, layer) for layer in range(self.layers[start] + 1, self.layers[end])]

    def curve(self, start: str, end: str, *, branch: bool) -> list[tuple[float, float]]:
        """Places of an edge from node to node: its start, and three for each cubic piece of it, the last its end."""
        one, other = self.thing(start), self.thing(end)
        ways = self.ways_between(one, other) if self.layers else []
        stops = [self.at[one], *(self.ways[way] for way in ways), self.at[other]]
        if self.straight and (bends := self._around(start, end, branch)) is not None:
            return [stops[0], *bends, stops[1]]
        # Horizontal at points of the stream.
        pieces = (
            (((left + right) / 2, low), ((left + right) / 2, high), (right, high))
            for (left, low), (right, high) in pairwise(stops)
        )
        return [stops[0], *(place for piece in pieces for place in piece)]

    def _around(self, start: str, end: str, branch: bool) -> list[tuple[float, float]] | None:
        """How an edge to or from a box above or below the one stream bends; None for one along the stream."""
        (x0, y0), (x1, y1) = self.at[self.thing(start)], self.at[self.thing(end)]
        to_box = end in self.boxes
        if branch and max(y0, y1) > 1.0:
            # Around the boxes below.
            return [(x0, y0 + 0.7 * (y1 - y0)), (x0, y1)] if to_box else [(x1, y0), (x1, y0)]
        if branch:
            return [(x1, y0), (x1, y1)] if to_box else [(x0 + 0.9 * (x1 - x0), y0), (x1, y1 + 0.4)]
        if x0 > 0 and self.dag.nodes[start]["role"] == "source":
            # Around the boxes above, the sooner the deeper it starts.
            return [(x1, y0), (x1, min(y1 - 0.4, y0 + 0.2 * (y1 - y0)) if y0 < -1 else y1 - 0.4)]
        return None

    def size(self) -> tuple[float, float]:
        """Width and height of a picture in inches."""
        xs, ys = zip(*self.at.values(), *self.ways.values(), strict=True)
        return max(6.0, 1.22 * (max(xs) - min(xs) + 1.4)), max(2.2, 0.86 * (max(ys) - min(ys)) + 1.7)


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _spread(wanted: list[float]) -> list[float]:
    """Rows near the wanted ones, at least 1 apart, in the order of the wanted ones.

    >>> _spread([0.0, 0.0, 5.0])
    [-0.5, 0.5, 5.0]
    """
    order = sorted(range(len(wanted)), key=lambda index: (wanted[index], index))
    groups: list[tuple[float, int]] = []
    for index in order:
        groups.append((wanted[index], 1))
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < (groups[-1][1] + groups[-2][1]) / 2:
            (high, m), (low, n) = groups.pop(), groups.pop()
            groups.append(((low * n + high * m) / (n + m), n + m))
    rows = [0.0] * len(wanted)
    places = [centre - (size - 1) / 2 + step for centre, size in groups for step in range(size)]
    for index, place in zip(order, places, strict=True):
        rows[index] = place
    return rows


def _folded(last: int) -> tuple[int, int]:
    """The points between which the stream is not drawn; equal ones where all of it is."""
    if last <= WIDEST:
        return 0, 0
    shown = WIDEST // 2
    return shown, last - shown
