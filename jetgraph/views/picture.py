"""A picture of a path DAG.

Only the graph that `jetgraph.path_graph` returns is read, so a graph that was read back from a file can be drawn too.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import networkx as nx

from jetgraph.errors import InputError, MissingExtraError, check
from jetgraph.files.targets import check_target
from jetgraph.files.writing import write_atomically
from jetgraph.views.layout import Box, Layout

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = (".png", ".svg", ".pdf")
"""Suffixes of pictures that can be written."""

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
    layout = Layout(dag)
    figure = Figure(figsize=layout.size(), layout="constrained")
    _Painter(layout, figure.add_subplot()).paint(title)
    if path is not None:
        write_atomically(path, lambda part: figure.savefig(part, dpi=130))
    return figure


class _Painter:
    """Draws a layout on axes."""

    def __init__(self, layout: Layout, axes: Axes) -> None:
        self.layout = layout
        self.axes = axes

    def paint(self, title: str) -> None:
        self.axes.set_axis_off()
        for start, end, facts in self.layout.dag.edges(data=True):
            if self.layout.thing(start) in self.layout.at and self.layout.thing(end) in self.layout.at:
                self._edge(start, end, facts)
        self._ellipsis()
        for thing in self.layout.at:
            if isinstance(thing, Box):
                self._box(thing)
            else:
                self._point(thing)
        xs, ys = zip(*self.layout.at.values(), *self.layout.ways.values(), strict=True)
        self.axes.set_xlim(min(xs) - 0.6, max(xs) + 0.6)
        self.axes.set_ylim(min(ys) - 0.5, max(ys) + 0.5)
        graph = self.layout.dag.graph
        text = f"{_count(graph['count'])} paths · recipe {graph.get('recipe')}, order {graph.get('order')}"
        self.axes.set_title(
            f"{title}\n{text}" if title else text, fontsize=10, color=_SOURCE, loc="left", parse_math=False
        )

    def _edge(self, start: str, end: str, facts: Mapping[str, Any]) -> None:
        from matplotlib.patches import FancyArrowPatch
        from matplotlib.path import Path as Curve

        layout, nodes = self.layout, self.layout.dag.nodes
        enters = nodes[start]["role"] == "source"
        moves_on = facts["role"] in ("skip", "map", "decoder") or nodes[end]["role"] == "sink"
        stream = moves_on and not enters
        colour = _STREAM if stream else _SOURCE if enters else _COLOURS.get(facts["kind"], _OTHER)
        places = layout.curve(start, end, branch=facts["role"] == "branch")
        self.axes.add_patch(
            FancyArrowPatch(
                path=Curve(places, [Curve.MOVETO, *[Curve.CURVE4] * (len(places) - 1)]),
                arrowstyle="-" if stream else "-|>,head_width=2.2,head_length=4.2",
                color=colour,
                linewidth=2.6 if stream and layout.straight else 1.3,
                alpha=1.0 if stream else 0.8,
                shrinkA=0,
                shrinkB=0 if stream else (11 if end in layout.boxes else 6),
                zorder=1 if stream else 2,
            )
        )

    def _point(self, node: str) -> None:
        x, y = self.layout.at[node]
        self.axes.plot(
            [x], [y], marker="o", markersize=6, color="white", markeredgecolor=_STREAM, markeredgewidth=1.8, zorder=3
        )
        self.axes.text(
            x + 0.06,
            y - 0.13,
            self.layout.dag.nodes[node]["label"],
            ha="left",
            va="top",
            fontsize=7.5,
            color=_OTHER,
            zorder=3,
            parse_math=False,
        )

    def _box(self, box: Box) -> None:
        hollow = box.role in ("source", "sink")
        colour = _SOURCE if hollow else _COLOURS.get(box.kind, _OTHER)
        self.axes.text(
            *self.layout.at[box],
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

    def _ellipsis(self) -> None:
        first, last = self.layout.hidden
        if last <= first:
            return
        hidden = {box.text: box for box in self.layout.distinct() if box not in self.layout.at}
        # An atom is a site too, at which terms start.
        sites = sum(box.role != "source" or box.kind == "atom" for box in hidden.values())
        sources = len(hidden) - sites
        text = f"⋯\n{sites} more sites" + (f", {sources} more sources" if sources else "")
        if self.layout.straight:
            self.axes.plot(
                [first, self.layout.x(last)], [0, 0], color=_STREAM, linewidth=2.6, linestyle=(0, (1, 1.6)), zorder=1
            )
            self.axes.text(
                (first + self.layout.x(last)) / 2, 0.9, text, ha="center", va="center", fontsize=9, color=_OTHER
            )
        elif hidden:
            self.axes.text(
                0.5, 0.0, f"not drawn: {text[2:]}", ha="center", fontsize=9, color=_OTHER, transform=self.axes.transAxes
            )


def _count(digits: str) -> str:
    """A count in digits, with an exponent where it is long.

    >>> _count("26244"), _count(str(2**252))
    ('26,244', '7.24e+75')
    """
    if len(digits) <= 12:
        return f"{int(digits):,}"
    return f"{Decimal(digits):.2e}"
