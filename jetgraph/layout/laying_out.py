"""Which way a graph is laid out: along its one stream, in layers, or over the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Callable

import networkx as nx

from jetgraph.errors import InputError, check
from jetgraph.layout.coordinates import WIDEST, Coordinates, store
from jetgraph.layout.grids import on_grid
from jetgraph.layout.layers import in_layers
from jetgraph.layout.streams import along_stream, is_straight


def lay_out(dag: nx.MultiDiGraph, page: float = WIDEST) -> nx.MultiDiGraph:
    """Give the nodes of a path or attribution graph their places, `x` and `y`, and its edges their `way`.

    Of a path graph the stream goes from left to right, in lines of a page's width: what is added to it stands above,
    what enters it below. Where there are several streams, or chosen paths that part, columns are steps of the longest
    path, and rows are such that edges cross little. An attribution graph has a column for each token and a row for each
    point of the stream, from below.

    Parameters
    ----------
    dag
        Whose nodes say `role`, `point` and `label`, as those of `jetgraph.path_graph` do; changed in place.
    page
        Width of the page in whose lines a path graph goes.

    Returns
    -------
    nx.MultiDiGraph
        The same graph.

    Raises
    ------
    InputError
        The nodes do not say what they are, or those of a path graph lead back to themselves.
    """
    check(lay_out, locals())
    if not all({"role", "point", "label"} <= facts.keys() for _, facts in dag.nodes(data=True)):
        raise InputError(
            "this graph is no path graph and no attribution graph: its nodes have no role, point and label"
        )
    # In one of attributions, the node of what was cut away leads to others and back.
    in_lines = any(role in ("point", "branch", "sink") for _, role in dag.nodes(data="role"))
    if in_lines and not nx.is_directed_acyclic_graph(dag):
        raise InputError("this graph has a cycle, which a path graph has not")
    if len(dag):
        store(dag, _along(dag)(dag, page) if in_lines else on_grid(dag))
    return dag


def _along(dag: nx.MultiDiGraph) -> Callable[[nx.MultiDiGraph, float], Coordinates]:
    return along_stream if is_straight(dag) else in_layers


def is_laid_out(dag: nx.MultiDiGraph) -> bool:
    """Every node has a place, and every edge a way."""
    nodes = (facts for _, facts in dag.nodes(data=True))
    edges = (facts for _, _, facts in dag.edges(data=True))
    return all("x" in one and "y" in one for one in nodes) and all("way" in one for one in edges)
