"""`jetgraph.view`: graphs, expansions and results as pages of a browser; and graphs as files of any kind."""

from __future__ import annotations

import os
from pathlib import Path

import networkx as nx

from jetgraph.algebra.dag import path_graph
from jetgraph.algebra.expansion import Expansion, expand
from jetgraph.algebra.scores import Values
from jetgraph.applications.results import Result
from jetgraph.errors import InputError, check
from jetgraph.files.graphs import write_graph as write_file
from jetgraph.files.pages import View, view_of
from jetgraph.files.targets import check_target
from jetgraph.residual import ResidualGraph
from jetgraph.views.picture import PICTURES, draw


def view(
    what: nx.MultiDiGraph | ResidualGraph | Expansion | Result,
    file: str | os.PathLike[str] | None = None,
    *,
    values: Values | None = None,
) -> View:
    """A page of a graph: one file, offline, to be searched, folded, thresholded and walked through.

    Parameters
    ----------
    what
        A graph (of `jetgraph.path_graph`, `jetgraph.read_graph` or `to_networkx()`), an expansion, a traced model, of
        which the terms of order 1 are shown, or a result: attributions and lenses are graphs, others tables under
        their figures.
    file
        Where to write it: .html.
    values
        Of the paths of an expansion, as in `jetgraph.path_graph`.

    Returns
    -------
    View
        Shows itself in a notebook; `save` writes it.

    Raises
    ------
    InputError
        The graph's nodes do not say what they are, or values are given for what has no paths.
    FileError
        The file cannot be written.

    >>> from jetgraph.algebra import JoinStep, Outline, Site, Source
    >>> decoder = Site("logits", "", "logits", "decoder", False, False)
    >>> view(expand(Outline((Source("embed", "embed", "embed"),), (), decoder), order=0)).title
    'Expansion of order 0, recipe exhaustive'
    """
    check(view, locals())
    if values is not None and not isinstance(what, Expansion):
        raise InputError("values= is for the paths of an expansion: give path_graph(expansion, values=...) otherwise")
    if file is not None:
        check_target(file, (".html",))
    made = what.page() if isinstance(what, Result) else view_of(_graph(what, values))
    if file is not None:
        made.save(file)
    return made


def _graph(what: nx.MultiDiGraph | ResidualGraph | Expansion, values: Values | None) -> nx.MultiDiGraph:
    """The graph that is shown, with a title."""
    if isinstance(what, nx.MultiDiGraph):
        return what
    expansion = expand(what) if isinstance(what, ResidualGraph) else what
    dag = path_graph(expansion, values=values)
    dag.graph["title"] = f"Expansion of order {expansion.order}, recipe {expansion.recipe}"
    if isinstance(what, ResidualGraph):
        dag.graph["title"] = f"{what.title}: {dag.graph['title']}"
    return dag


def write_graph(dag: nx.MultiDiGraph, file: str | os.PathLike[str]) -> Path:
    """Write a path graph or an attribution graph in the format of the file's suffix, and return the file.

    .graphml, .gexf, .json (node-link), .dot, .gv: as `jetgraph.files.graphs.write_graph`, which tells of the formats of
    other programs too; .html a page that a browser opens; .png, .svg, .pdf a picture, as `jetgraph.draw`.

    Raises
    ------
    InputError
        Another suffix, and what the format cannot hold.
    FileError
        A folder that does not exist.
    MissingExtraError
        A picture without matplotlib.
    BudgetError
        A graph that is too large for a picture.
    """
    check(write_graph, locals())
    if Path(os.fspath(file)).suffix.lower() not in PICTURES:
        return write_file(dag, file)
    draw(dag, file)
    return Path(file)
