"""A picture of a path DAG.

Only the graph that `jetgraph.path_graph` returns is read, so a graph that was read back from a file can be drawn too.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import networkx as nx

from jetgraph.errors import BudgetError, InputError, MissingExtraError, check
from jetgraph.files.targets import check_target
from jetgraph.layout.colours import BY_KIND, OTHER
from jetgraph.layout.coordinates import GAP, ROW, XY, box_width, read_way
from jetgraph.layout.laying_out import is_laid_out, lay_out
from jetgraph.layout.streams import is_straight
from jetgraph.views.style import check_width, save_figure, showing, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = (".png", ".svg", ".pdf")
"""Suffixes of pictures that can be written."""

LINES = 12
"""How many lines of one stream are drawn; of more the first and last, with an ellipsis between them."""

LARGEST = 300
"""How many sites and points a picture of several streams may show."""

TITLE = 10
"""Size of the letters above a picture."""

PIXELS = 96
"""Of a layout to an inch."""

_SOURCE = "#2f3b45"
_STREAM = "#9aa4ad"
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def draw(
    dag: nx.MultiDiGraph,
    file: str | os.PathLike[str] | None = None,
    *,
    title: str = "",
    width: float | None = None,
) -> Figure:
    """Draw a path DAG from left to right, in lines of a page's width; orders taken at one site share a box.

    Parameters
    ----------
    dag
        What `jetgraph.path_graph` or `jetgraph.read_graph` returns.
    file
        Where to write the picture: .png, .svg or .pdf. An existing file is replaced as a whole or not at all.
    title
        What stands above it.
    width
        In inches, in which the lines end; letters stay as large as they are. 3.3 for a column of a paper, 6.8 for its
        page.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    InputError
        The suffix is unknown, the graph is no path DAG, or the width is less than what two of its boxes need.
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
    sheet = Sheet(dag if is_laid_out(dag) else lay_out(dag.copy())) if width is None else _narrow(dag, width)
    wide, height = sheet.size
    head = _head(dag, title, wide / PIXELS)
    whole = height + max(44, 18 * (1 + head.count("\n")) + 8)
    figure = Figure(figsize=(wide / PIXELS, whole / PIXELS))
    _Painter(sheet, figure.add_axes((0, 0, 1, height / whole))).paint(head)
    if path is not None:
        save_figure(figure, path, dpi=130)
    return showing(figure)


def _head(dag: nx.MultiDiGraph, title: str, wide: float) -> str:
    """What stands above a picture of a width in inches."""
    number = dag.graph["count"]
    paths = f"{_count(number)} path{'s' * (str(number) != '1')}"
    told = f"{paths} · recipe {dag.graph.get('recipe')}, order {dag.graph.get('order')}"
    text = wrapped(f"{title}\n{told}" if title else told, wide, TITLE)
    return "\n".join(f"  {line}" for line in text.splitlines())


def _narrow(dag: nx.MultiDiGraph, width: float) -> Sheet:
    """A sheet of a width in inches."""
    check_width(width)
    page = width * PIXELS
    while True:
        sheet = Sheet(lay_out(dag.copy(), page), width * PIXELS)
        # Beside the lines of a page there is what leads from one to the next.
        over = sheet.size[0] - width * PIXELS
        if over <= 0:
            return sheet
        page -= max(over, GAP)
        if page < GAP:
            least = sheet.size[0] / PIXELS + 0.1
            raise InputError(f"width={width} is too narrow for this graph: take {least:.1f} inches or more")


@dataclass(eq=False)
class Box:
    """A site with all orders taken there, a source, or the sink."""

    text: str
    kind: str
    role: str
    orders: set[int] = field(default_factory=set)
    whole: str = ""
    """What is written of a jet of which all orders are together."""
    places: list[XY] = field(default_factory=list)
    """Those of its nodes."""

    @property
    def at(self) -> XY:
        xs, ys = zip(*self.places, strict=True)
        return sum(xs) / len(xs), sum(ys) / len(ys)

    @property
    def label(self) -> str:
        if self.whole:
            return self.whole
        orders = sorted(order for order in self.orders if order >= 0)
        shown = [str(order).translate(_SUPERSCRIPTS) for order in orders]
        if len(shown) > 4:
            shown = [shown[0], "…", shown[-1]]
        return self.text + " ".join(shown)


class Sheet:
    """What of a path DAG is drawn, and where.

    Parameters
    ----------
    dag
        With its places.
    least
        Pixels that it is wide at least.

    Raises
    ------
    BudgetError
        There is more to draw than `LARGEST` places, and no one stream whose middle could be left out.
    """

    def __init__(self, dag: nx.MultiDiGraph, least: float = 560.0) -> None:
        self.dag = dag
        self.least = least
        self.straight = is_straight(dag)
        self.boxes = _boxes(dag)
        """By node; nodes that differ only in their order share one."""
        ends = _ends_of_lines(dag) if self.straight else []
        half = LINES // 2
        self.hidden = (ends[half - 1], ends[-half]) if len(ends) >= LINES else (0.0, 0.0)
        """Heights between which nothing is drawn, the upper one first."""
        things = [*dict.fromkeys(self.boxes.values())]
        points = [node for node, role in dag.nodes(data="role") if role == "point"]
        self.at: dict[Any, XY] = {}
        """XY of every box and point that is drawn."""
        for thing, (x, y) in [*((box, box.at) for box in things), *((node, _at(dag, node)) for node in points)]:
            if self.shows(y):
                self.at[thing] = x, self.lifted(y)
        if not self.straight and len(self.at) > LARGEST:
            fits = LARGEST // (nx.dag_longest_path_length(nx.DiGraph(dag), weight=None) + 1)
            raise BudgetError(
                f"the graph has {len(self.at)} places to draw, more than the {LARGEST} that a picture can show: select "
                f"{fits} paths or fewer (limit=, --limit), or write it as .html or .graphml"
            )

    def shows(self, y: float) -> bool:
        """What is at a height is drawn."""
        high, low = self.hidden
        return not low < y < high

    def lifted(self, y: float) -> float:
        """A height with what is left out left out."""
        high, low = self.hidden
        return y + high - low - 2 * ROW if high > low and y <= low else y

    def thing(self, node: str) -> Any:
        """What stands for a node of the DAG: its box, or the point itself."""
        return self.boxes.get(node, node)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in pixels."""
        left, low, right, high = self.frame
        return max(self.least, right - left), high - low

    @cached_property
    def frame(self) -> tuple[float, float, float, float]:
        """Left, lowest, right and highest place, with a margin."""
        halves = {thing: box_width(thing.label) / 2 if isinstance(thing, Box) else 14.0 for thing in self.at}
        left = min(x - halves[thing] for thing, (x, _) in self.at.items())
        right = max(x + halves[thing] for thing, (x, _) in self.at.items())
        passed = [place for _, _, way in self.dag.edges(data="way") for place in read_way(way)]
        left, right = (min([left, *(x for x, _ in passed)]), max([right, *(x for x, _ in passed)]))
        levels = [y for _, y in self.at.values()]
        return left - GAP / 2, min(levels) - ROW, right + GAP / 2, max(levels) + ROW

    def curve(self, start: str, end: str, facts: Mapping[str, Any]) -> list[XY]:
        """Coordinates of an edge: its start, and three for each cubic piece of it, the last its end."""
        one = self.at[self.thing(start)]
        way = [(x, self.lifted(y)) for x, y in read_way(facts["way"])]
        if not way and self.straight and (bends := self._around(start, end, facts["role"] == "branch")):
            return [one, *bends, self._edge_of(end, bends[-1])]
        stops = [one, *way, self._edge_of(end, (way or [one])[-1])]
        return [one, *(place for piece in pairwise(stops) for place in _piece(*piece))]

    def _edge_of(self, node: str, before: XY) -> XY:
        """Where an arrow ends: at the side of a box that it comes from."""
        thing = self.thing(node)
        x, y = self.at[thing]
        if not isinstance(thing, Box) or before[0] >= x:
            return x, y
        return x - box_width(thing.label) / 2, y

    def _around(self, start: str, end: str, branch: bool) -> list[XY] | None:
        """How an edge to or from a box above or below the one stream bends; None for one along the stream."""
        (x0, y0), (x1, y1) = self.at[self.thing(start)], self.at[self.thing(end)]
        if branch:
            return [(x0, y0 + 0.75 * (y1 - y0)), (x0, y1)] if end in self.boxes else [(x1, y0), (x1, y0)]
        if self.dag.nodes[start]["role"] == "source" and y0 != y1 and x0 > 0:
            return [(x1, y0), (x1, y0)]
        return None


def _piece(start: XY, end: XY) -> tuple[XY, XY, XY]:
    """A cubic piece that is horizontal at its ends; a straight one up, down and back."""
    (x0, y0), (x1, y1) = start, end
    if x1 <= x0:
        return start, end, end
    return ((x0 + x1) / 2, y0), ((x0 + x1) / 2, y1), end


def _at(dag: nx.MultiDiGraph, node: str) -> XY:
    return dag.nodes[node]["x"], dag.nodes[node]["y"]


def _ends_of_lines(dag: nx.MultiDiGraph) -> list[float]:
    """Heights between the lines of one stream, from above: where edges go back to the left."""
    ways = (read_way(way) for _, _, way in dag.edges(data="way"))
    return sorted({way[1][1] for way in ways if way}, reverse=True)


def _boxes(dag: nx.MultiDiGraph) -> dict[str, Box]:
    """A box for every node but the points; nodes that differ only in their order share one."""
    groups: dict[tuple[Any, ...], Box] = {}
    boxes: dict[str, Box] = {}
    for node, facts in dag.nodes(data=True):
        if facts["role"] == "point":
            continue
        key = (facts["alias"], facts["role"], tuple(sorted(dag.successors(node))))
        if key not in groups:
            text = facts["label"] if facts["role"] == "sink" else facts["alias"]
            groups[key] = Box(text, facts["kind"], facts["role"])
        groups[key].orders.add(facts["order"])
        groups[key].places.append(_at(dag, node))
        if facts["hop"] == f"{facts['alias']}~{facts['order']}":
            groups[key].whole = facts["hop"]
        boxes[node] = groups[key]
    return boxes


class _Painter:
    """Draws a sheet on axes."""

    def __init__(self, sheet: Sheet, axes: Axes) -> None:
        self.sheet = sheet
        self.axes = axes

    def paint(self, head: str) -> None:
        self.axes.set_axis_off()
        for start, end, facts in self.sheet.dag.edges(data=True):
            if self.sheet.thing(start) in self.sheet.at and self.sheet.thing(end) in self.sheet.at:
                self._edge(start, end, facts)
        self._left_out()
        for thing in self.sheet.at:
            if isinstance(thing, Box):
                self._box(thing)
            else:
                self._point(thing)
        left, low, right, high = self.sheet.frame
        self.axes.set_xlim(left, max(right, left + self.sheet.size[0]))
        self.axes.set_ylim(low, high)
        self.axes.set_title(head, fontsize=TITLE, color=_SOURCE, loc="left", parse_math=False)

    def _edge(self, start: str, end: str, facts: Mapping[str, Any]) -> None:
        from matplotlib.patches import FancyArrowPatch
        from matplotlib.path import Path as Curve

        sheet, nodes = self.sheet, self.sheet.dag.nodes
        enters = nodes[start]["role"] == "source"
        moves_on = facts["role"] in ("skip", "map", "decoder") or nodes[end]["role"] == "sink"
        stream = moves_on and not enters
        colour = _STREAM if stream else _SOURCE if enters else BY_KIND.get(facts["kind"], OTHER)
        places = sheet.curve(start, end, facts)
        self.axes.add_patch(
            FancyArrowPatch(
                path=Curve(places, [Curve.MOVETO, *[Curve.CURVE4] * (len(places) - 1)]),
                arrowstyle="-" if stream else "-|>,head_width=2.2,head_length=4.2",
                color=colour,
                linewidth=2.6 if stream and sheet.straight else 1.3,
                alpha=1.0 if stream else 0.8,
                shrinkA=0,
                shrinkB=0 if stream else (1 if end in sheet.boxes else 6),
                zorder=1 if stream else 2,
            )
        )

    def _point(self, node: str) -> None:
        x, y = self.sheet.at[node]
        self.axes.plot(
            [x], [y], marker="o", markersize=6, color="white", markeredgecolor=_STREAM, markeredgewidth=1.8, zorder=3
        )
        self.axes.text(
            x + 5,
            y - 8,
            self.sheet.dag.nodes[node]["label"],
            ha="left",
            va="top",
            fontsize=7.5,
            color=OTHER,
            zorder=3,
            parse_math=False,
        )

    def _box(self, box: Box) -> None:
        hollow = box.role in ("source", "sink")
        colour = _SOURCE if hollow else BY_KIND.get(box.kind, OTHER)
        self.axes.text(
            *self.sheet.at[box],
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

    def _left_out(self) -> None:
        """Say how many sites and sources are not drawn."""
        high, low = self.sheet.hidden
        hidden = {box.text: box for box in self.sheet.boxes.values() if box not in self.sheet.at}
        if high <= low or not hidden:
            return
        # An atom is a site too, at which terms start.
        sites = sum(box.role != "source" or box.kind == "atom" for box in hidden.values())
        sources = len(hidden) - sites
        text = f"⋯\n{sites} more sites" + (f", {sources} more sources" if sources else "")
        left, _, right, _ = self.sheet.frame
        self.axes.text(
            (left + right) / 2, high - ROW, text, ha="center", va="center", fontsize=9, color=OTHER, parse_math=False
        )


def _count(digits: str) -> str:
    """A count in digits, with an exponent where it is long.

    >>> _count("26244"), _count(str(2**252))
    ('26,244', '7.24e+75')
    """
    if len(digits) <= 12:
        return f"{int(digits):,}"
    return f"{Decimal(digits):.2e}"
