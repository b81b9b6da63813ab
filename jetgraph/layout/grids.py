"""Components at tokens: a column for each position, a row for each point of the stream, from below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import networkx as nx

from jetgraph.layout.blocks import branch_in, within_block
from jetgraph.layout.coordinates import CHARACTER, ROW, Coordinates

ABREAST = 5
"""Nodes of one token and one point that stand side by side; of more, some stand above the others."""

BETWEEN = 14.0
"""From one node of a cell to the next, and half of what is between columns."""


def on_grid(dag: nx.MultiDiGraph, abreast: int = ABREAST) -> Coordinates:
    """Coordinates of an attribution graph, so many nodes of a cell side by side."""
    cells: dict[tuple[int, int], list[str]] = {}
    last = max(facts["point"] for _, facts in dag.nodes(data=True))
    for node, facts in dag.nodes(data=True):
        # What was cut has no place of its own: it stands apart, after the last token.
        column = len(dag) if facts["role"] == "rest" else facts["position"]
        cells.setdefault((column, last if facts["role"] == "rest" else facts["point"]), []).append(node)
    columns, rows = sorted({column for column, _ in cells}), sorted({row for _, row in cells})
    width, lines = dict.fromkeys(columns, 0.0), dict.fromkeys(rows, 1)
    for (column, row), nodes in cells.items():
        width[column], lines[row] = (
            max(width[column], _across(dag, nodes, abreast)),
            max(lines[row], _lines(nodes, abreast)),
        )
    # What has no edges stands close, as in a table.
    cells_only = dag.number_of_edges() == 0
    edge, middle = 0.0, {}
    for column in columns:
        middle[column] = edge + width[column] / 2
        edge += width[column] + (0.2 if cells_only else 2.0) * BETWEEN
    level, height = 0.0, {}
    for row in rows:
        height[row] = level
        level += ROW * (lines[row] - 1) + (0.75 if cells_only else 1.5) * ROW
    coordinates = Coordinates()
    for (column, row), nodes in cells.items():
        for line in range(_lines(nodes, abreast)):
            some = nodes[line * abreast : (line + 1) * abreast]
            x = middle[column] - _extent(dag, some) / 2
            for node in some:
                half = short_width(dag.nodes[node]) / 2
                coordinates.at[node] = x + half, height[row] + ROW * line
                x += 2 * half + BETWEEN
    return coordinates


def _lines(nodes: list[str], abreast: int) -> int:
    return -(-len(nodes) // abreast)


def _across(dag: nx.MultiDiGraph, nodes: list[str], abreast: int) -> float:
    """Width of a cell, its token's text included."""
    text = max(len(dag.nodes[node].get("token") or "") for node in nodes)
    lines = (nodes[line * abreast : (line + 1) * abreast] for line in range(_lines(nodes, abreast)))
    return max(*(_extent(dag, some) for some in lines), CHARACTER * text, 44.0)


def _extent(dag: nx.MultiDiGraph, nodes: list[str]) -> float:
    return sum(short_width(dag.nodes[node]) + BETWEEN for node in nodes) - BETWEEN


def short_width(facts: Mapping[str, Any]) -> float:
    """Width of a node, whose text is small, and leaves out what its row says."""
    return 6.0 * len(short_name(facts)) + 12


def short_name(facts: Mapping[str, Any]) -> str:
    """What is written on a node of a grid: what the node is within its block; of a target or a cell, its label."""
    return within_block(facts["label"].partition("@")[0]) if facts["role"] in ("source", "site") else facts["label"]


def branch_of(facts: Mapping[str, Any]) -> str:
    """The branch that a node is a part of, which is what its row is called."""
    if facts["role"] in ("target", "cell"):
        return "target" if facts["role"] == "target" else str(facts["alias"])
    return branch_in(str(facts["label"]).partition("@")[0])
