"""Streams that part: columns are steps of the longest path, rows such that walks that stay together cross little."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import networkx as nx

from jetgraph.layout.coordinates import GAP, ROW, XY, Coordinates, Lines, box_width, stacked

SWEEPS = 12
"""How often rows are brought near those of their neighbours."""

LARGEST = 3000
"""Of more nodes, edges go straight from end to end, and rows are brought near only twice."""


@dataclass(frozen=True)
class Way:
    """Where edges to the same end pass a layer between their ends, around what stands there."""

    end: str
    layer: int


def in_layers(dag: nx.MultiDiGraph, page: float) -> Coordinates:
    """Coordinates of a graph of several streams, or of chosen paths, in lines of a page's width."""
    layer_of = _layers(dag)
    layers: list[list[Any]] = [[] for _ in range(1 + max(layer_of.values()))]
    for node, layer in layer_of.items():
        layers[layer].append(node)
    near: dict[Any, set[Any]] = {node: set() for node in layer_of}
    ways: dict[tuple[str, str], list[Way]] = {}
    large = len(dag) > LARGEST
    for start, end in dict.fromkeys(dag.edges()):
        passed = [] if large else [Way(end, layer) for layer in range(layer_of[start] + 1, layer_of[end])]
        for way in passed:
            if way not in near:
                layers[way.layer].append(way)
                near[way] = set()
        for here, there in pairwise([start, *passed, end]):
            near[here].add(there)
            near[there].add(here)
        ways[start, end] = passed
    rows = _rows(layers, near, 2 if large else SWEEPS)
    return _placed(dag, layers, layer_of, rows, ways, page)


def _layers(dag: nx.MultiDiGraph) -> dict[str, int]:
    """By node, the length of the longest walk to it; sources stand right before what they enter."""
    order = list(nx.topological_sort(dag))
    layer_of: dict[str, int] = {}
    for node in order:
        layer_of[node] = 1 + max((layer_of[one] for one in dag.predecessors(node)), default=-1)
    for node in order:
        if dag.nodes[node]["role"] == "source" and dag.nodes[node]["kind"] != "stream":
            layer_of[node] = min((layer_of[one] for one in dag.successors(node)), default=1) - 1
    return layer_of


def _rows(layers: Sequence[Sequence[Any]], near: dict[Any, set[Any]], sweeps: int) -> dict[Any, float]:
    """Rows near those of neighbours: barycentres, layer by layer, forwards and backwards."""
    rows = {thing: float(index) for things in layers for index, thing in enumerate(things)}
    for sweep in range(sweeps):
        for things in reversed(layers) if sweep % 2 else layers:
            wanted = [_mean([rows[other] for other in near[thing]], rows[thing]) for thing in things]
            for thing, row in zip(things, spread(wanted), strict=True):
                rows[thing] = row
    return rows


def _placed(
    dag: nx.MultiDiGraph,
    layers: Sequence[Sequence[Any]],
    layer_of: dict[str, int],
    rows: dict[Any, float],
    ways: dict[tuple[str, str], list[Way]],
    page: float,
) -> Coordinates:
    """Columns as wide as what stands in them, in lines of a page's width."""
    columns = [max((_width(dag, thing) for thing in things), default=0.0) for things in layers]
    middles, line_of = _wrapped(columns, page)
    extents = [(0.0, 0.0)] * (1 + max(line_of))
    for number, things in enumerate(layers):
        low, high = extents[line_of[number]]
        levels = [ROW * rows[thing] for thing in things]
        extents[line_of[number]] = min(low, *levels), max(high, *levels)
    right = max(middle + width / 2 for middle, width in zip(middles, columns, strict=True)) + GAP / 2
    lines = stacked(extents, middles[0] - columns[0] / 2 - GAP / 2, right)
    at: dict[Any, XY] = {
        thing: (middles[number], lines.levels[line_of[number]] + ROW * rows[thing])
        for number, things in enumerate(layers)
        for thing in things
    }
    coordinates = Coordinates({node: at[node] for node in dag}, {}, {node: line_of[layer_of[node]] for node in dag})
    keys: Iterable[tuple[str, str, int]] = dag.edges(keys=True)
    for start, end, key in keys:
        stops = [start, *ways[start, end], end]
        on = [line_of[one.layer if isinstance(one, Way) else layer_of[one]] for one in stops]
        coordinates.ways[start, end, key] = _way([at[one] for one in stops], on, lines)
    return coordinates


def _way(stops: Sequence[XY], on: Sequence[int], lines: Lines) -> list[XY]:
    """What an edge passes between its ends, its stops standing on these lines."""
    passed: list[XY] = []
    for index, (here, there) in enumerate(pairwise(stops)):
        if on[index + 1] > on[index]:
            passed += lines.between(here, on[index], there)
        passed.append(there)
    return passed[:-1]


def _wrapped(columns: Sequence[float], page: float) -> tuple[list[float], list[int]]:
    """The middle of each column, and the line that it is on."""
    middles: list[float] = []
    on: list[int] = []
    edge, line = 0.0, 0
    for width in columns:
        if edge and edge + width > page:
            edge, line = 0.0, line + 1
        middles.append(edge + width / 2)
        on.append(line)
        edge += width + GAP
    return middles, on


def _width(dag: nx.MultiDiGraph, thing: Any) -> float:
    if isinstance(thing, Way):
        return 0.0
    facts = dag.nodes[thing]
    return 20.0 if facts["role"] == "point" else box_width(facts["label"])


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def spread(wanted: list[float]) -> list[float]:
    """Rows near the wanted ones, at least 1 apart, in the order of the wanted ones.

    >>> spread([0.0, 0.0, 5.0])
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
