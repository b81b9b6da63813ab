"""Path DAGs as files: GraphML, GEXF and node-link JSON, which are read back; DOT and pages, which are for writing."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Callable
from io import BytesIO
from typing import Any, NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

import networkx as nx

from jetgraph.errors import FileError, InputError, JetGraphError, check, quoted
from jetgraph.files.exchange import (
    ESCAPED,
    finite,
    from_cytoscape,
    from_eap,
    from_neuronpedia,
    to_cytoscape,
    to_eap,
    to_model_explorer,
    to_model_explorer_data,
    to_neuronpedia,
)
from jetgraph.files.targets import check_target
from jetgraph.files.writing import is_file, naming, parse_json, reason, write_atomically
from jetgraph.page.building import page

_KEY = "parallel_key"


def write_graph(dag: nx.MultiDiGraph, file: str | os.PathLike[str]) -> pathlib.Path:
    """Write a path DAG in the format of the file's suffix: .graphml, .gexf, .json (node-link), .dot, .gv, or .html.

    A page (.html) is one file that a browser opens, of a path graph or an attribution graph.

    A .json of another program is asked for by its name: .neuronpedia.json (circuit-tracer's too), .eap.json (EAP-IG,
    MIB), .cytoscape.json, .explorer.json and .explorer-data.json (Model Explorer's graph, and values to lay over it).

    In the others, everything on it is kept: attributes and their types, direction, parallel edges. An existing file is
    replaced as a whole or not at all.

    Raises
    ------
    InputError
        Another suffix, and what the format cannot hold: control characters in the two of XML, facts that are no texts
        and numbers, numbers that are not finite, graphs that another program has no words for.
    FileError
        A folder that does not exist.
    """
    check(write_graph, locals())
    path = _path(file)
    check_target(path, GRAPHS)
    try:
        content = _format(path)[0](dag)
    except (TypeError, ValueError, nx.NetworkXError) as error:
        if isinstance(error, JetGraphError):
            raise
        raise InputError(f"this graph holds what {quoted(path.name)} cannot: {reason(error)}") from error
    return write_atomically(path, lambda part: part.write_bytes(content))


def read_graph(file: str | os.PathLike[str]) -> nx.MultiDiGraph:
    """Read a graph that `write_graph` has written, with all its attributes. XML that declares entities is refused: a
    few lines of it can stand for more than any memory holds.

    Raises
    ------
    InputError
        Another suffix.
    FileError
        A missing file or one that is not in its format.
    """
    check(read_graph, locals())
    path = _path(file)
    parse = _format(path)[1]
    if parse is None:
        what = {".html": "a page", ".json": "Model Explorer's JSON"}.get(path.suffix.lower(), "DOT")
        raise InputError(f"{quoted(path.name)}: {what} is for writing; write the graph as .json, and read that")
    if not is_file(path):
        raise FileError(f"there is no file {quoted(str(path))} to read a graph from")
    with naming("read", path):
        content = path.read_bytes()
    try:
        return parse(content)
    except Exception as error:  # the parsers raise many types at what is not theirs
        kind = "" if isinstance(error, ValueError | SyntaxError | nx.NetworkXError) else f"{type(error).__name__}: "
        raise FileError(f"{path} is no {path.suffix[1:]} file that can be read: {kind}{reason(error)}") from error


def _path(file: str | os.PathLike[str]) -> pathlib.Path:
    if not isinstance(file, str | os.PathLike) or not os.fspath(file):
        raise InputError(f"{file!r} is no name of a file: give one, as a text or a path")
    return pathlib.Path(file)


def _format(
    path: pathlib.Path,
) -> tuple[Callable[[nx.MultiDiGraph], bytes], Callable[[bytes], nx.MultiDiGraph] | None]:
    named = "".join(path.suffixes[-2:]).lower()
    suffix = named if named in _FORMATS else path.suffix.lower()
    if suffix not in _FORMATS:
        raise InputError(f"{quoted(path.name)} names no graph format: end it in one of {', '.join(_FORMATS)}")
    return _FORMATS[suffix]


def _numbered_edges(dag: nx.MultiDiGraph) -> nx.MultiDiGraph:
    """A copy whose edge keys are unique in the whole graph, as GraphML and GEXF want of the ids made from them."""
    copy = nx.MultiDiGraph()
    copy.graph.update(dag.graph)
    copy.add_nodes_from((node, dict(facts)) for node, facts in dag.nodes(data=True))
    for number, (start, end, key, facts) in enumerate(dag.edges(keys=True, data=True)):
        copy.add_edge(start, end, key=number, **{**facts, _KEY: key})
    return copy


def _original_edges(graph: Any, attributes: dict[str, Any]) -> nx.MultiDiGraph:
    """The graph as it was before `_numbered_edges`, without what networkx's readers add."""
    dag = nx.MultiDiGraph()
    dag.graph.update(attributes)
    for node, facts in graph.nodes(data=True):
        dag.add_node(node, **{name: value for name, value in facts.items() if name != "viz"})
    for start, end, key, facts in graph.edges(keys=True, data=True):
        kept = {name: value for name, value in facts.items() if name not in ("id", _KEY)}
        dag.add_edge(start, end, key=facts.get(_KEY, key), **kept)
    return dag


_NOT_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _as_xml(dag: nx.MultiDiGraph) -> nx.MultiDiGraph:
    """The graph for a file of XML. Raises `InputError` for texts that XML cannot hold."""
    held = [dag.graph, *(facts | {"node": node} for node, facts in dag.nodes(data=True))]
    for facts in (*held, *(facts for _, _, facts in dag.edges(data=True))):
        for text in (*facts, *facts.values()):
            if isinstance(text, str) and (match := _NOT_XML.search(text)) is not None:
                raise InputError(
                    f"{text!r} holds the character {match[0]!r}, which XML cannot: write the graph as .json or .dot"
                )
    return _numbered_edges(dag)


def _checked_xml(content: bytes) -> bytes:
    """XML as it came. Raises `ValueError` where it declares a document type, and so perhaps entities."""

    def refuse(*_: Any) -> NoReturn:
        raise ValueError("it declares a document type, as no file of a graph does")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(content, True)
    return content


def _to_graphml(dag: nx.MultiDiGraph) -> bytes:
    buffer = BytesIO()
    nx.write_graphml_xml(_as_xml(dag), buffer)
    return buffer.getvalue()


def _from_graphml(content: bytes) -> nx.MultiDiGraph:
    graph = nx.read_graphml(BytesIO(_checked_xml(content)), force_multigraph=True)
    added = ("node_default", "edge_default")
    return _original_edges(graph, {name: value for name, value in graph.graph.items() if name not in added})


_GEXF = "http://www.gexf.net/1.2draft"


def _to_gexf(dag: nx.MultiDiGraph) -> bytes:
    buffer = BytesIO()
    numbered = _as_xml(dag)
    for _, facts in numbered.nodes(data=True):
        if {"x", "y"} <= facts.keys():
            facts["viz"] = {"position": {"x": facts["x"], "y": facts["y"], "z": 0.0}}
    nx.write_gexf(numbered, buffer)
    # GEXF has no attributes of the graph itself, so they go where it keeps remarks.
    ElementTree.register_namespace("", _GEXF)
    tree = ElementTree.fromstring(buffer.getvalue())
    meta = tree.find(f"{{{_GEXF}}}meta")
    assert meta is not None
    ElementTree.SubElement(meta, f"{{{_GEXF}}}description").text = json.dumps(dag.graph)
    graph = tree.find(f"{{{_GEXF}}}graph")
    assert graph is not None
    # networkx writes an attribute that the schema has not.
    graph.attrib.pop("name", None)
    return ElementTree.tostring(tree, encoding="utf-8", xml_declaration=True)


def _from_gexf(content: bytes) -> nx.MultiDiGraph:
    remarks = ElementTree.fromstring(_checked_xml(content)).findtext(f"{{{_GEXF}}}meta/{{{_GEXF}}}description", "{}")
    return _original_edges(nx.MultiDiGraph(nx.read_gexf(BytesIO(content))), json.loads(remarks))


def _to_json(dag: nx.MultiDiGraph) -> bytes:
    data = nx.node_link_data(dag, edges="edges")
    data |= {part: [*map(finite, data[part])] for part in ("nodes", "edges")}
    return json.dumps(data, indent=1, ensure_ascii=False).encode(*ESCAPED)


def _from_json(content: bytes) -> nx.MultiDiGraph:
    data = parse_json(content.decode("utf-8-sig"))
    if not isinstance(data, dict):
        raise ValueError(f"node-link JSON is an object, not {type(data).__name__}")
    return nx.MultiDiGraph(nx.node_link_graph(data, directed=True, multigraph=True, edges="edges"))


# DOT: for Graphviz and other viewers; nothing reads it back.


def _quote(value: str | int | float) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if isinstance(value, str) else repr(value)


def _dot_facts(facts: dict[str, Any]) -> str:
    return ", ".join(f"{_quote(name)}={_quote(value)}" for name, value in facts.items())


def _to_dot(dag: nx.MultiDiGraph) -> bytes:
    lines = [f"  {_quote(name)}={_quote(value)};" for name, value in dag.graph.items()]
    lines += [f"  {_quote(node)} [{_dot_facts(facts)}];" for node, facts in dag.nodes(data=True)]
    for start, end, key, facts in dag.edges(keys=True, data=True):
        lines.append(f"  {_quote(start)} -> {_quote(end)} [{_dot_facts({**facts, 'key': key})}];")
    return "\n".join(["digraph {", *lines, "}", ""]).encode(*ESCAPED)


# A page: for people; nothing reads it back.


def _to_html(dag: nx.MultiDiGraph) -> bytes:
    return page(dag).encode()


_FORMATS: dict[str, tuple[Callable[[nx.MultiDiGraph], bytes], Callable[[bytes], nx.MultiDiGraph] | None]] = {
    ".graphml": (_to_graphml, _from_graphml),
    ".gexf": (_to_gexf, _from_gexf),
    ".json": (_to_json, _from_json),
    ".dot": (_to_dot, None),
    ".gv": (_to_dot, None),
    ".html": (_to_html, None),
    ".cytoscape.json": (to_cytoscape, from_cytoscape),
    ".neuronpedia.json": (to_neuronpedia, from_neuronpedia),
    ".eap.json": (to_eap, from_eap),
    ".explorer.json": (to_model_explorer, None),
    ".explorer-data.json": (to_model_explorer_data, None),
}

GRAPHS = tuple(suffix for suffix in _FORMATS if suffix.count(".") == 1)
"""Suffixes of graph files."""
