"""The figure of an attribution graph: positions from left to right, the stream from bottom to top."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import networkx as nx

from jetgraph.errors import amount
from jetgraph.layout.colours import BY_KIND, GIVES, OTHER, TAKES
from jetgraph.layout.coordinates import ROW
from jetgraph.layout.grids import ABREAST, branch_of, on_grid, short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

LARGEST = 400
"""Edges that are drawn, the widest."""


NARROW = 5.0
"""Inches of a picture that has no room for its legend in one line."""

BESIDE = 1.5
"""Inches that names of rows, and halves of names at both ends, take."""

PIXELS = 130
"""Of a layout to an inch."""

HIGHEST = 9.0
"""Inches of a picture, as a page of a paper has."""

NEARER = 1.5
"""How much nearer to each other rows of such a picture stand, at most: nodes and their names still have room."""


Edge = tuple[Any, Any, dict[str, Any]]
"""Its ends, and what is known of it."""


def widest(dag: nx.MultiDiGraph) -> list[Edge]:
    """The edges that are drawn, the widest first."""
    return sorted(dag.edges(data=True), key=lambda edge: -abs(edge[2]["value"]))[:LARGEST]


def picture(
    title: str,
    dag: nx.MultiDiGraph,
    edges: Sequence[Edge],
    width: float | None = None,
    *,
    on_page: bool = True,
    rest: str = "rest",
) -> Figure:
    """Draw an attribution graph at its places, and of its edges these; blue gives, red takes away.

    In a width in inches, targets stand in as many lines as that takes; where it is to go `on_page`, rows stand nearer
    to each other than they would. `rest` is what the node is called of all that was cut.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch

    nodes = dict(dag.nodes(data=True)) if width is None else _narrowed(dag, width)
    xs, ys = ([facts[axis] for facts in nodes.values()] for axis in ("x", "y"))
    wide, high = (max(xs) - min(xs)) / PIXELS + 2.5, (max(ys) - min(ys)) / PIXELS + _around(width)
    high = min(max(4.0, high), HIGHEST) if on_page else max(4.0, high)
    figure = Figure(figsize=(max(6.5, wide) if width is None else width, high), layout="constrained")
    axes = figure.subplots()
    largest = abs(edges[0][2]["value"]) if edges else 1.0
    for start, end, facts in edges:
        share = abs(facts["value"]) / (largest or 1.0)
        ends = [(nodes[end]["x"], nodes[end]["y"]) for end in (start, end)]
        # Straight up, it would run through the nodes between its ends, and over other edges.
        high = abs(ends[0][1] - ends[1][1])
        bend = min(0.3, 4 * ROW / high) if ends[0][0] == ends[1][0] and high > 2 * ROW else 0.0
        look = {"color": GIVES if facts["value"] >= 0 else TAKES, "alpha": 0.15 + 0.6 * share, "zorder": 1}
        way = {"arrowstyle": "-", "connectionstyle": f"arc3,rad={bend}", "shrinkA": 0, "shrinkB": 0, "clip_on": False}
        axes.add_patch(FancyArrowPatch(*ends, linewidth=0.3 + 3 * share, **look, **way))
    most = max((facts["influence"] for facts in nodes.values()), default=0.0) or 1.0
    for facts in nodes.values():
        place, colour = (facts["x"], facts["y"]), BY_KIND.get(facts["kind"], OTHER)
        area = 20 + 130 * facts["influence"] / most
        axes.scatter(*place, s=area, color=colour, zorder=2)
        above = {"xytext": (0, 2 + area**0.5 / 2), "textcoords": "offset points", "va": "bottom", "ha": "center"}
        called = rest if facts["role"] == "rest" else short_name(facts)
        name = axes.annotate(called, place, fontsize=6, parse_math=False, **above)
        name.set_gid(str(facts["influence"]))
    _label(axes, [facts for facts in nodes.values() if facts["role"] != "rest"])
    _legend(figure, figure.get_figwidth() if width is None else width)
    axes.set_title(title, fontsize=8, parse_math=False, wrap=True)
    return figure


def _around(width: float | None) -> float:
    """Inches beside the nodes: a narrow picture has its legend, and a long title, in lines below each other."""
    return 1.6 + 1.5 * (width is not None and width <= NARROW)


def too_high(dag: nx.MultiDiGraph, width: float | None) -> int:
    """How many rows a picture in this width has no room for, as `on_grid` sets them."""
    nodes = dict(dag.nodes(data=True)) if width is None else _narrowed(dag, width)
    places = [facts["y"] for facts in nodes.values()]
    room = (HIGHEST - _around(width)) * PIXELS * NEARER
    return max(0, math.ceil((max(places) - min(places) - room) / (1.5 * ROW)))


def _narrowed(dag: nx.MultiDiGraph, width: float) -> dict[Any, dict[str, Any]]:
    """Nodes at places that are as wide as there is room for, or as narrow as they can be."""
    across = PIXELS * max(0.5, width - BESIDE)
    nodes: dict[Any, dict[str, Any]] = {}
    for abreast in range(ABREAST, 0, -1):
        at = on_grid(dag, abreast).at
        # As they are stored: from below.
        nodes = {name: {**facts, "x": at[name][0], "y": at[name][1]} for name, facts in dag.nodes(data=True)}
        places = [facts["x"] for facts in nodes.values()]
        if max(places) - min(places) <= across:
            break
    return nodes


def _label(axes: Axes, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Say which token a column is, and which branch a row."""
    columns: dict[int, list[Mapping[str, Any]]] = {}
    for facts in nodes:
        columns.setdefault(facts["position"], []).append(facts)
    if any(position >= 0 for position in columns):
        middles = [sum(one["x"] for one in some) / len(some) for some in columns.values()]
        # What is alike at all of them stands before the first.
        texts = ["all" if position < 0 else f"{position} {some[0]['token']}" for position, some in columns.items()]
        axes.set_xticks(middles, texts, rotation=60, fontsize=7, parse_math=False)
        axes.set_xlabel("position")
    else:
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
    rows = {facts["point"]: facts for facts in reversed(nodes) if facts["role"] != "target"}
    axes.set_yticks(
        [facts["y"] for facts in rows.values()],
        [branch_of(facts) for facts in rows.values()],
        fontsize=6,
        parse_math=False,
    )
    axes.set_ylabel("point of the stream")


def _legend(figure: Figure, wide: float) -> None:
    """Say what colours of edges, their widths and the sizes of nodes mean."""
    from matplotlib.lines import Line2D

    said = [
        Line2D([], [], color=GIVES, label="adds to the target"),
        Line2D([], [], color=TAKES, label="takes from it"),
        Line2D([], [], color=OTHER, linewidth=3, label="wide: large flow"),
        Line2D([], [], color=OTHER, marker="o", linestyle="", label="large: much influence"),
    ]
    figure.legend(handles=said, loc="outside lower center", ncols=len(said) if wide > NARROW else 1, fontsize=6)


def without_overlap(figure: Figure) -> Figure:
    """The figure without the names that would stand on others: those of the most influential nodes stay.

    Of a node that is alone at its place in the grid nothing is lost, for its row and its column are named; how many
    have no name is said below the axis.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    renderer = canvas.get_renderer()
    kept: list[Bbox] = []
    hidden = 0
    for name in sorted(axes.texts, key=lambda one: -float(one.get_gid() or 0.0)):
        box = name.get_window_extent(renderer)
        if any(box.overlaps(other) for other in kept):
            name.set_visible(False)
            hidden += 1
        else:
            kept.append(box)
    if hidden:
        said = f"{amount(hidden, 'node')} without a name, for which there is no room"
        axes.set_xlabel("\n".join(filter(None, (axes.get_xlabel(), said))), fontsize=7)
    return figure
