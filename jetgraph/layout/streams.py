"""One stream from left to right, in lines: what is added to it above, what enters it below."""

from __future__ import annotations

from collections.abc import Iterable
from math import floor

import networkx as nx

from jetgraph.layout.coordinates import GAP, ROW, Coordinates, Lines, box_width, stacked

STACKED = 16
"""How many sources that enter at one place stand one below the other, under one straight stream."""


def is_straight(dag: nx.MultiDiGraph) -> bool:
    """Every walk passes the same points, one after the other, as all edges say, and few sources enter at one place."""
    if not all({"from_point", "to_point"} <= facts.keys() for _, _, facts in dag.edges(data=True)):
        return False
    points = [facts["point"] for _, facts in dag.nodes(data=True) if facts["role"] == "point"]
    if len(set(points)) < len(points):
        return False
    if any(
        dag.nodes[site]["role"] == "branch" and facts["to_point"] > dag.nodes[site]["point"]
        for site, _, facts in dag.edges(data=True)
    ):
        return False
    entering = [_column(dag, node) for node, role in dag.nodes(data="role") if role == "source"]
    return all(column < 0 or entering.count(column) <= STACKED for column in set(entering))


def along_stream(dag: nx.MultiDiGraph, page: float) -> Coordinates:
    """Coordinates of a graph of one stream, in lines of a page's width."""
    boxes = [facts["label"] for _, facts in dag.nodes(data=True) if facts["role"] != "point"]
    width = max(map(box_width, boxes), default=0.0) + GAP
    number = max(1, int(page // width))
    columns = {node: _column(dag, node) for node in dag}
    # What enters at the beginning stands before it, on the first line; the output with the decoder, and by itself only
    # where a line holds no more than one column.
    ends = {node: 0.75 * (role == "sink" and number > 1) for node, role in dag.nodes(data="role")}
    lines_of = {node: max(0, floor((column - ends[node]) / number)) for node, column in columns.items()}
    offsets = _offsets(dag, columns)
    extents = [(0.0, 0.0)] * (1 + max(lines_of.values()))
    for node, line in lines_of.items():
        low, high = extents[line]
        extents[line] = min(low, offsets[node]), max(high, offsets[node])
    lines = stacked(extents, -0.4 * width, number * width - 0.18 * GAP)
    coordinates = Coordinates(line=lines_of)
    for node, line in lines_of.items():
        x = columns[node] - line * number if columns[node] > 0 else columns[node]
        coordinates.at[node] = width * x, lines.levels[line] + offsets[node]
    _lead_on(dag, coordinates, lines)
    return coordinates


def _column(dag: nx.MultiDiGraph, node: str) -> float:
    """Of a point its number; of what is between two points, the middle."""
    facts = dag.nodes[node]
    if facts["role"] == "point":
        return float(facts["point"])
    if facts["role"] == "sink":
        return facts["point"] + 0.25
    if facts["role"] == "source":
        enters = min((edge["from_point"] for _, _, edge in dag.out_edges(node, data=True)), default=0)
        return -1.0 if enters == 0 else enters - 0.5
    return facts["point"] - 0.5


def _offsets(dag: nx.MultiDiGraph, columns: dict[str, float]) -> dict[str, float]:
    """Heights above the stream."""
    stacks: dict[tuple[float, str], dict[str, list[str]]] = {}
    for node, facts in dag.nodes(data=True):
        role = facts["role"]
        level = "under" if role == "source" else "over" if role == "branch" else "along"
        # Orders of one site stand next to each other.
        stacks.setdefault((columns[node], level), {}).setdefault(facts["alias"], []).append(node)
    offsets: dict[str, float] = {}
    for (column, level), by_alias in stacks.items():
        nodes = [node for some in by_alias.values() for node in some]
        # Orders of a decoder reach above the stream and below it.
        along = sum(map(len, stacks.get((column, "along"), {}).values()))
        first = (1.35 + max(0.0, (along - 1) / 2)) * ROW
        for index, node in enumerate(nodes):
            if column < 0 or level == "along":
                offsets[node] = ROW * ((len(nodes) - 1) / 2 - index)
            else:
                offsets[node] = (first + ROW * index) * (-1 if level == "under" else 1)
    return offsets


def _lead_on(dag: nx.MultiDiGraph, coordinates: Coordinates, lines: Lines) -> None:
    """The ways of edges from one line to a later one."""
    edges: Iterable[tuple[str, str, int]] = dag.edges(keys=True)
    for start, end, key in edges:
        line = coordinates.line[start]
        if coordinates.line[end] > line:
            coordinates.ways[start, end, key] = lines.between(coordinates.at[start], line, coordinates.at[end])
