"""Values of paths on a path graph: at each node and edge, the sum of those of the paths that pass it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import networkx as nx

from jetgraph.algebra.paths import Path
from jetgraph.errors import InputError, quoted

Edge = tuple[str, str, int]
"""An edge of a path graph: its ends, and its key."""


@dataclass(frozen=True)
class PathScores:
    """What paths give a target."""

    by_path: Mapping[str, float]
    """By the text of the path."""
    total: float
    """The target's own value, of which shares are told."""
    target: str = ""
    """What it is a value of, such as a token."""
    position: int = -1
    """Of the target in the output; −1 where there are none, or all were summed."""
    token: str = ""
    """The text of the input there, where it is known."""


@runtime_checkable
class Scored(Protocol):
    """What knows the values of paths."""

    def scores(self) -> PathScores:
        """By path, the value that a target has of it."""
        ...


Values = Mapping[str, float] | Mapping[Path, float] | PathScores | Scored
"""Values of paths: by path or its text, or what knows them."""


def scores_of(values: Values) -> PathScores:
    """Values of paths with what they are values of; shares of a mapping are those of its sum.

    Raises
    ------
    InputError
        Values that are no numbers.
    """
    if isinstance(values, PathScores):
        return values
    if isinstance(values, Mapping):
        by_path = {str(path): value for path, value in values.items()}
        for path, value in by_path.items():
            if not isinstance(value, int | float):
                raise InputError(f"the value of {quoted(path)} is a {type(value).__name__}, not a number: give one")
        return PathScores(by_path, float(sum(by_path.values())))
    return values.scores()


def add_scores(dag: nx.MultiDiGraph, scores: PathScores) -> None:
    """Write values onto a graph whose walks are the paths that have them.

    Raises
    ------
    InputError
        A path of the graph that has none.
    """
    for _, facts in dag.nodes(data=True):
        facts["value"] = 0.0
    for _, _, facts in dag.edges(data=True):
        facts["value"] = 0.0
    for walk in walks(dag):
        text = walk_text(dag, walk)
        if text not in scores.by_path:
            raise InputError(
                f"there is no value of {quoted(text)}: give one for each path of the graph, or name paths="
            )
        value = scores.by_path[text]
        dag.nodes[walk[0][0]]["value"] += value
        for start, end, key in walk:
            dag.edges[start, end, key]["value"] += value
            dag.nodes[end]["value"] += value
    whole = scores.total
    for facts in (*(facts for _, facts in dag.nodes(data=True)), *(facts for *_, facts in dag.edges(data=True))):
        facts["share"] = facts["value"] / whole if whole else 0.0
        facts |= {"position": scores.position, "token": scores.token}
    dag.graph |= {"target": scores.target, "total": whole}


def sources(dag: nx.MultiDiGraph) -> list[str]:
    """The nodes at which walks begin."""
    return [node for node, role in dag.nodes(data="role") if role == "source"]


def walks(dag: nx.MultiDiGraph) -> Iterator[list[Edge]]:
    """The walks from a source to the sink of a path graph, edge by edge; in the expansion's order."""
    for source in sources(dag):
        walk: list[Edge] = []
        stack = [iter(list(dag.out_edges(source, keys=True)))]
        while stack:
            edge = next(stack[-1], None)
            if edge is None:
                stack.pop()
                continue
            del walk[len(stack) - 1 :]
            walk.append(edge)
            if dag.nodes[edge[1]]["role"] == "sink":
                yield list(walk)
            else:
                stack.append(iter(list(dag.out_edges(edge[1], keys=True))))


def walk_text(dag: nx.MultiDiGraph, walk: list[Edge]) -> str:
    """The text of the path that a walk is."""
    hops = (dag.nodes[node]["hop"] for node in (walk[0][0], *(end for _, end, _ in walk)))
    return " > ".join(hop for hop in hops if hop)
