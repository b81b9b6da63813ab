"""The figure of an attribution graph: positions from left to right, the stream from bottom to top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from jetgraph.layout.colours import BY_KIND, GIVES, OTHER, TAKES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST = 400
"""Edges that are drawn, the widest."""


def picture(title: str, nodes: Sequence[Any], senders: Tensor, receivers: Tensor, values: Tensor) -> Figure:
    """Draw nodes (as of `jetgraph.applications.attribution.graphs`) and edges; blue gives, red takes away."""
    from matplotlib.figure import Figure

    at = _places(nodes)
    columns = sorted({x for x, _ in at})
    figure = Figure(figsize=(max(6.5, 1.1 * len(columns) + 2), 7), layout="constrained")
    axes = figure.subplots()
    order = values.abs().argsort(descending=True, stable=True)[:LARGEST].tolist()
    largest = float(values.abs().max()) if len(values) else 1.0
    for edge in order:
        (x0, y0), (x1, y1) = at[int(senders[edge])], at[int(receivers[edge])]
        size = abs(float(values[edge])) / (largest or 1.0)
        colour = GIVES if float(values[edge]) >= 0 else TAKES
        axes.plot([x0, x1], [y0, y1], color=colour, linewidth=0.3 + 3 * size, alpha=0.15 + 0.6 * size, zorder=1)
    most = max((node.influence for node in nodes), default=0.0) or 1.0
    begun: set[tuple[int | None, int, str]] = set()
    for node, (x, y) in zip(nodes, at, strict=True):
        axes.scatter([x], [y], s=20 + 130 * node.influence / most, color=BY_KIND.get(node.kind, OTHER), zorder=2)
        # As in tables, but for the position, which is told below.
        name = node.name if node.role == "target" else node.name.partition("@")[0]
        whole, _, part = name.rpartition(".")
        place = (node.position, node.point, whole)
        # Of parts of one branch that stand side by side, the first is called in full.
        text = part if whole and place in begun and node.role != "target" else name
        begun.add(place)
        axes.annotate(
            text, (x, y), xytext=(0, 6), textcoords="offset points", fontsize=6, ha="center", parse_math=False
        )
    labels = {node.position: node.token for node in nodes if node.position is not None and node.role != "target"}
    ticks = sorted(labels)
    axes.set_xticks(ticks, [f"{at} {labels[at] or ''}" for at in ticks], rotation=60, fontsize=7, parse_math=False)
    axes.set_xlabel("position")
    axes.set_ylabel("point of the stream")
    axes.set_title(title, fontsize=8, parse_math=False, wrap=True)
    return figure


def _places(nodes: Sequence[Any]) -> list[tuple[float, float]]:
    """Where nodes are: those of one position and point side by side; what has no position is in the middle."""
    positions = [node.position for node in nodes if node.position is not None]
    middle = sum(positions) / len(positions) if positions else 0.0
    last = max((node.point for node in nodes), default=0)
    shared: dict[tuple[float, float], int] = {}
    found: list[tuple[float, float]] = []
    for node in nodes:
        x = float(node.position) if node.position is not None else middle
        x = (max(positions, default=0) + 1.0) if node.role in ("rest", "target") else x
        y = last / 2 if node.role == "rest" else node.point
        number = shared.setdefault((x, y), 0)
        shared[x, y] += 1
        found.append((x + 0.16 * number, float(y) + 0.25 * number))
    return found
