"""A picture of a path DAG: the stream as a straight line, sites above it, what enters it below.

Only the graph that `jetgraph.path_graph` returns is read, so a graph that was read back from a file can be drawn too.
One stream of more steps than `WIDEST` is folded in the middle; of selected paths that part on the way, all is drawn.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import networkx as nx

from jetgraph.errors import BudgetError, InputError, MissingExtraError, check
from jetgraph.files.targets import check_target
from jetgraph.files.writing import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = (".png", ".svg", ".pdf")
"""Suffixes of pictures that can be written."""

WIDEST = 20
"""How many steps of the stream are drawn; of longer ones the first and last, with an ellipsis between them."""

LARGEST = 300
"""How many sites and points a picture may show."""

STACKED = 16
"""How many sources that enter at one place are drawn one below the other, under one straight stream."""

_COLOURS = {
    "attn": "#3b6fb6",
    "mlp": "#d98032",
    "conv": "#3f8f63",
    "ssm": "#8a62b0",
    "mix": "#2f9c95",
    "norm": "#7d8590",
    "act": "#7d8590",
    "map": "#7d8590",
    "logits": "#b23a48",
}
"""By kind of site; other kinds are grey."""
_SOURCE = "#2f3b45"
_STREAM = "#9aa4ad"
_OTHER = "#7d8590"
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class _Way:
    """Where edges to the same end pass a layer between their ends, around what stands there."""

    end: Any
    layer: int


@dataclass(eq=False)
class _Box:
    """A site with all orders taken there, a source, or the sink."""

    key: tuple[Any, ...]
    text: str
    kind: str
    role: str
    column: float
    orders: set[int] = field(default_factory=set)

    @property
    def label(self) -> str:
        orders = sorted(order for order in self.orders if order >= 0)
        shown = [str(order).translate(_SUPERSCRIPTS) for order in orders]
        if len(shown) > 4:
            shown = [shown[0], "…", shown[-1]]
        return self.text + " ".join(shown)


def draw(dag: nx.MultiDiGraph, file: str | os.PathLike[str] | None = None, *, title: str = "") -> Figure:
    """Draw a path DAG from left to right; orders taken at one site share a box.

    Parameters
    ----------
    dag
        What `jetgraph.path_graph` or `jetgraph.read_graph` returns.
    file
        Where to write the picture: .png, .svg or .pdf. An existing file is replaced as a whole or not at all.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    InputError
        The suffix is unknown, or the graph is no path DAG.
    FileError
        The file cannot be written.
    BudgetError
        The graph is too large for a picture.
    """
    check(draw, locals())
    path = None if file is None else pathlib.Path(file)
    if path is not None:
        check_target(path, PICTURES)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "drawing needs matplotlib, which is not installed: pip install 'jetgraph[plot]'"
        ) from error
    if not all("role" in facts and "point" in facts for _, facts in dag.nodes(data=True)) or "count" not in dag.graph:
        raise InputError("this graph is no path DAG: draw what jetgraph.path_graph(expansion) returns")
    picture = _Picture(dag)
    width, height = picture.size()
    figure = Figure(figsize=(width, height), layout="constrained")
    picture.paint(figure.add_subplot(), title)
    if path is not None:
        write_atomically(path, lambda part: figure.savefig(part, dpi=130))
    return figure


class _Picture:
    """Boxes and points of a path DAG with their places; a layout says where these are."""

    def __init__(self, dag: nx.MultiDiGraph) -> None:
        self.dag = dag
        self.last: int = max(facts["point"] for _, facts in dag.nodes(data=True))
        self.points = [node for node, facts in dag.nodes(data=True) if facts["role"] == "point"]
        whole = sorted(dag.nodes[node]["point"] for node in self.points) == list(range(self.last))
        self.hidden = _folded(self.last) if whole else (0, 0)
        """Between which points nothing is drawn: only where every walk passes all of them."""
        self.boxes = self._boxes()
        self.at: dict[Any, tuple[float, float]] = {}
        """Place of every box and point that is drawn."""
        self.ways: dict[_Way, tuple[float, float]] = {}
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
        entering = [box.column for box in self._distinct() if box.role == "source" and box.column > 0]
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

    def _distinct(self) -> tuple[_Box, ...]:
        return tuple(dict.fromkeys(self.boxes.values()))

    def _boxes(self) -> dict[str, _Box]:
        """A box for every node but the points; nodes that differ only in their order share one."""
        groups: dict[tuple[Any, ...], _Box] = {}
        boxes: dict[str, _Box] = {}
        for node, facts in self.dag.nodes(data=True):
            if facts["role"] == "point":
                continue
            key = (facts["alias"], facts["role"], tuple(sorted(self.dag.successors(node))))
            if key not in groups:
                text = facts["label"] if facts["role"] == "sink" else facts["alias"]
                groups[key] = _Box(key, text, facts["kind"], facts["role"], self._column(node))
            groups[key].orders.add(facts["order"])
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

    def _thing(self, node: str) -> Any:
        return self.boxes.get(node, node)

    # One stream: a straight line, with what is added to it above and what enters it below

    def _along_stream(self) -> None:
        for node in self.points:
            if self._seen(self.dag.nodes[node]["point"]):
                self.at[node] = (self._x(self.dag.nodes[node]["point"]), 0.0)
        columns: dict[tuple[float, bool], list[_Box]] = {}
        for box in self._distinct():
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
                self.at[box] = (self._x(column), row)

    def _x(self, column: float) -> float:
        """Place of a point of the stream, with the folded ones left out; the gap is as wide as one step and a half."""
        first, last = self.hidden
        return first + 1.5 + column - last if last > first and column >= last else column

    def _seen(self, column: float) -> bool:
        first, last = self.hidden
        return last <= first or column <= first or column >= last

    # Several: layers of points and sites, ordered so that walks that stay together cross little

    def _in_layers(self) -> None:
        columns: dict[float, list[Any]] = {}
        for thing in dict.fromkeys(map(self._thing, self.dag.nodes)):
            column = thing.column if isinstance(thing, _Box) else float(self.dag.nodes[thing]["point"])
            if isinstance(thing, _Box) and thing.role == "source" and thing.kind == "stream":
                column = -1.0
            if self._seen(column):
                columns.setdefault(column, []).append(thing)
        layers = [things for _, things in sorted(columns.items())]
        self.layers = {thing: number for number, things in enumerate(layers) for thing in things}
        near: dict[Any, set[Any]] = {thing: set() for thing in self.layers}
        for start, end in self.dag.edges():
            one, other = self._thing(start), self._thing(end)
            if one in self.layers and other in self.layers:
                ways = self._ways(one, other)
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
                (self.ways if isinstance(thing, _Way) else self.at)[thing] = place

    def _ways(self, start: Any, end: Any) -> list[_Way]:
        """Where an edge passes the layers between its ends."""
        return [_Way(end, layer) for layer in range(self.layers[start] + 1, self.layers[end])]

    # Painting

    def size(self) -> tuple[float, float]:
        """Inches."""
        xs, ys = zip(*self.at.values(), *self.ways.values(), strict=True)
        return max(6.0, 1.22 * (max(xs) - min(xs) + 1.4)), max(2.2, 0.86 * (max(ys) - min(ys)) + 1.7)

    def paint(self, axes: Axes, title: str) -> None:
        axes.set_axis_off()
        for start, end, facts in self.dag.edges(data=True):
            if self._thing(start) in self.at and self._thing(end) in self.at:
                self._edge(axes, start, end, facts)
        self._ellipsis(axes)
        for thing in self.at:
            if isinstance(thing, _Box):
                self._box(axes, thing)
            else:
                self._point(axes, thing)
        xs, ys = zip(*self.at.values(), *self.ways.values(), strict=True)
        axes.set_xlim(min(xs) - 0.6, max(xs) + 0.6)
        axes.set_ylim(min(ys) - 0.5, max(ys) + 0.5)
        graph = self.dag.graph
        text = f"{_count(graph['count'])} paths · recipe {graph.get('recipe')}, order {graph.get('order')}"
        axes.set_title(f"{title}\n{text}" if title else text, fontsize=10, color=_SOURCE, loc="left", parse_math=False)

    def _edge(self, axes: Axes, start: str, end: str, facts: Mapping[str, Any]) -> None:
        from matplotlib.patches import FancyArrowPatch
        from matplotlib.path import Path as Curve

        one, other = self._thing(start), self._thing(end)
        (x0, y0), (x1, y1) = self.at[one], self.at[other]
        enters = self.dag.nodes[start]["role"] == "source"
        moves_on = facts["role"] in ("skip", "map", "decoder") or self.dag.nodes[end]["role"] == "sink"
        stream = moves_on and not enters
        colour = _STREAM if stream else _SOURCE if enters else _COLOURS.get(facts["kind"], _OTHER)
        middle = (x0 + x1) / 2
        # Horizontal at points of the stream; vertical at the boxes above and below one stream.
        bends = [(middle, y0), (middle, y1)]
        if self.straight and facts["role"] == "branch" and max(y0, y1) > 1.0:
            # Around the boxes below.
            column = x0 if end in self.boxes else x1
            bends = (
                [(column, y0 + 0.7 * (y1 - y0)), (column, y1)] if end in self.boxes else [(column, y0), (column, y0)]
            )
        elif self.straight and facts["role"] == "branch":
            bends = [(x1, y0), (x1, y1)] if end in self.boxes else [(x0 + 0.9 * (x1 - x0), y0), (x1, y1 + 0.4)]
        elif self.straight and x0 > 0 and enters:
            # Around the boxes above, the sooner the deeper it starts.
            bends = [(x1, y0), (x1, min(y1 - 0.4, y0 + 0.2 * (y1 - y0)) if y0 < -1 else y1 - 0.4)]
        stops = [(x0, y0), (x1, y1)]
        if self.layers:
            stops[1:1] = [self.ways[way] for way in self._ways(one, other)]
            bends = [
                place
                for (left, low), (right, high) in pairwise(stops)
                for place in (((left + right) / 2, low), ((left + right) / 2, high), (right, high))
            ][:-1]
        axes.add_patch(
            FancyArrowPatch(
                path=Curve([stops[0], *bends, stops[-1]], [Curve.MOVETO, *[Curve.CURVE4] * (len(bends) + 1)]),
                arrowstyle="-" if stream else "-|>,head_width=2.2,head_length=4.2",
                color=colour,
                linewidth=2.6 if stream and self.straight else 1.3,
                alpha=1.0 if stream else 0.8,
                shrinkA=0,
                shrinkB=0 if stream else (11 if end in self.boxes else 6),
                zorder=1 if stream else 2,
            )
        )

    def _point(self, axes: Axes, node: str) -> None:
        x, y = self.at[node]
        axes.plot(
            [x], [y], marker="o", markersize=6, color="white", markeredgecolor=_STREAM, markeredgewidth=1.8, zorder=3
        )
        axes.text(
            x + 0.06,
            y - 0.13,
            self.dag.nodes[node]["label"],
            ha="left",
            va="top",
            fontsize=7.5,
            color=_OTHER,
            zorder=3,
            parse_math=False,
        )

    def _box(self, axes: Axes, box: _Box) -> None:
        hollow = box.role in ("source", "sink")
        colour = _SOURCE if hollow else _COLOURS.get(box.kind, _OTHER)
        axes.text(
            *self.at[box],
            box.label,
            ha="center",
            va="center",
            fontsize=9,
            parse_math=False,
            color=colour if hollow else "white",
            zorder=4,
            bbox={
                "boxstyle": "round,pad=0.35,rounding_size=0.5",
                "facecolor": "white" if hollow else colour,
                "edgecolor": colour,
                "linewidth": 1.3,
            },
        )

    def _ellipsis(self, axes: Axes) -> None:
        first, last = self.hidden
        if last <= first:
            return
        hidden = {box.text: box for box in self._distinct() if box not in self.at}
        # An atom is a site too, at which terms start.
        sites = sum(box.role != "source" or box.kind == "atom" for box in hidden.values())
        sources = len(hidden) - sites
        text = f"⋯\n{sites} more sites" + (f", {sources} more sources" if sources else "")
        if self.straight:
            axes.plot([first, self._x(last)], [0, 0], color=_STREAM, linewidth=2.6, linestyle=(0, (1, 1.6)), zorder=1)
            axes.text((first + self._x(last)) / 2, 0.9, text, ha="center", va="center", fontsize=9, color=_OTHER)
        elif hidden:
            axes.text(
                0.5, 0.0, f"not drawn: {text[2:]}", ha="center", fontsize=9, color=_OTHER, transform=axes.transAxes
            )


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


def _count(digits: str) -> str:
    """A count in digits, with an exponent where it is long.

    >>> _count("26244"), _count(str(2**252))
    ('26,244', '7.24e+75')
    """
    if len(digits) <= 12:
        return f"{int(digits):,}"
    return f"{Decimal(digits):.2e}"
