"""The figure of an attribution graph: positions from left to right, the stream from bottom to top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import networkx as nx

from jetgraph.layout.colours import BY_KIND, GIVES, OTHER, TAKES
from jetgraph.layout.coordinates import ROW
from jetgraph.layout.grids import branch_of, short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LARGEST = 400
"""Edges that are drawn, the widest."""


PIXELS = 130
"""Of a layout to an inch."""


Edge = tuple[Any, Any, dict[str, Any]]
"""Its ends, and what is known of it."""


def widest(dag: nx.MultiDiGraph) -> list[Edge]:
    """The edges that are drawn, the widest first."""
    return sorted(dag.edges(data=True), key=lambda edge: -abs(edge[2]["value"]))[:LARGEST]


def picture(title: str, dag: nx.MultiDiGraph, edges: Sequence[Edge]) -> Figure:
    """Draw an attribution graph at its places, and of its edges these; blue gives, red takes away."""
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch

    nodes = dict(dag.nodes(data=True))
    xs, ys = ([facts[axis] for facts in nodes.values()] for axis in ("x", "y"))
    size = (max(xs) - min(xs)) / PIXELS + 2.5, (max(ys) - min(ys)) / PIXELS + 1.6
    figure = Figure(figsize=(max(6.5, size[0]), max(4.0, size[1])), layout="constrained")
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
        axes.annotate(short_name(facts), place, fontsize=6, parse_math=False, **above)
    _label(axes, [facts for facts in nodes.values() if facts["role"] != "rest"])
    _legend(figure)
    axes.set_title(title, fontsize=8, parse_math=False, wrap=True)
    return figure


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


def _legend(figure: Figure) -> None:
    """Say what colours of edges, their widths and the sizes of nodes mean."""
    from matplotlib.lines import Line2D

    said = [
        Line2D([], [], color=GIVES, label="adds to the target"),
        Line2D([], [], color=TAKES, label="takes from it"),
        Line2D([], [], color=OTHER, linewidth=3, label="wide: large flow"),
        Line2D([], [], color=OTHER, marker="o", linestyle="", label="large: much influence"),
    ]
    figure.legend(handles=said, loc="outside lower center", ncols=len(said), fontsize=6)
