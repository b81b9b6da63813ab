"""Graphs as other programs read them: Neuronpedia and circuit-tracer, EAP-IG and MIB, Model Explorer, Cytoscape.

Sources of the formats: `apps/webapp/app/api/graph/graph-schema.json` of github.com/hijohnnylin/neuronpedia;
`Graph.to_json` of github.com/hannamw/EAP-IG; `input_graph.ts` and `types.ts` of
github.com/google-ai-edge/model-explorer; the Cytoscape.js JSON of js.cytoscape.org.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import networkx as nx

from jetgraph.errors import InputError, amount, quoted
from jetgraph.files.writing import parse_json
from jetgraph.layout.laying_out import lay_out

Facts = Mapping[str, Any]

ESCAPED = ("utf-8", "backslashreplace")
"""How texts of JSON are encoded: half of a character, which UTF-8 does not have, as JSON's own escape of it."""


# Cytoscape


def to_cytoscape(dag: nx.MultiDiGraph) -> bytes:
    """The JSON of Cytoscape and Cytoscape.js, with places; it is read back."""
    nodes = [{"data": {"id": str(node), **finite(facts)}, **_position(facts)} for node, facts in dag.nodes(data=True)]
    edges = [
        {"data": {"id": f"e{number}", "source": str(start), "target": str(end), "key": key, **finite(facts)}}
        for number, (start, end, key, facts) in enumerate(dag.edges(keys=True, data=True))
    ]
    whole = {"generated_by": "jetgraph", "target_cytoscapejs_version": "~3", "data": dict(dag.graph)}
    return _written({**whole, "elements": {"nodes": nodes, "edges": edges}})


def finite(facts: Facts) -> dict[str, Any]:
    """Facts without numbers that JSON has not: where a series converges everywhere its radius is infinite."""
    return {name: fact for name, fact in facts.items() if not isinstance(fact, float) or math.isfinite(fact)}


def _position(facts: Facts) -> dict[str, Any]:
    """Heights grow downwards there."""
    return {"position": {"x": facts["x"], "y": -facts["y"]}} if {"x", "y"} <= facts.keys() else {}


def from_cytoscape(content: bytes) -> nx.MultiDiGraph:
    """A graph of `to_cytoscape`, or of another program."""
    data = _read(content)
    dag = nx.MultiDiGraph(**data.get("data", {}))
    for node in data["elements"]["nodes"]:
        facts = dict(node["data"])
        dag.add_node(facts.pop("id"), **facts)
    for edge in data["elements"]["edges"]:
        facts = {name: fact for name, fact in edge["data"].items() if name not in ("id", "source", "target", "key")}
        dag.add_edge(edge["data"]["source"], edge["data"]["target"], key=edge["data"].get("key"), **facts)
    return dag


# Model Explorer


def to_model_explorer(dag: nx.MultiDiGraph) -> bytes:
    """A collection of one graph for Model Explorer: blocks are namespaces, facts are attributes."""
    nodes = []
    for node, facts in dag.nodes(data=True):
        coming = [
            {"sourceNodeId": str(start), "sourceNodeOutputId": "0", "targetNodeInputId": str(number)}
            for number, (start, _) in enumerate(dag.in_edges(node))
        ]
        told = [{"key": name, "value": str(fact)} for name, fact in facts.items() if fact != "" and name != "variants"]
        space = str(facts.get("layer", "")).replace(".", "/")
        nodes.append(
            {"id": str(node), "label": str(facts.get("label", node)), "namespace": space}
            | {"attrs": told, "incomingEdges": coming}
        )
    return _written({"label": _name(dag), "graphs": [{"id": "jetgraph", "nodes": nodes}]})


def to_model_explorer_data(dag: nx.MultiDiGraph) -> bytes:
    """Values of nodes for Model Explorer, to be laid over `to_model_explorer`'s graph.

    Raises
    ------
    InputError
        There are none.
    """
    values: dict[str, float] = {str(node): facts["value"] for node, facts in dag.nodes(data=True) if "value" in facts}
    if not values:
        raise InputError("this graph has no values: give path_graph(expansion, values=...), or an attribution's graph")
    most = max(map(abs, values.values())) or 1.0
    colours = ((-1.0, "#c2491d"), (-0.25, "#e9b8a4"), (0.25, "#f5f5f5"), (1.0, "#9dbfe3"))
    bounds = [{"value": share * most, "bgColor": colour} for share, colour in colours[:-1]]
    bounds.append({"value": most, "bgColor": colours[-1][1]})
    results = {node: {"value": value} for node, value in values.items()}
    return _written({"jetgraph": {"results": results, "thresholds": bounds}})


# EAP-IG and MIB


def to_eap(dag: nx.MultiDiGraph) -> bytes:
    """A circuit as EAP-IG and MIB read it (`Graph.from_json`): heads and MLPs, positions summed.

    A constant that a site leaves belongs to its node there. What has no node there, such as constants of the decoder
    and `rest`, is told as `left_out`.

    Raises
    ------
    InputError
        A graph of another architecture, or with attention that is not split into heads.
    """
    sizes = {name: dag.graph.get(name) for name in ("layers", "heads", "width", "parallel")}
    if None in sizes.values() or not sizes["heads"]:
        raise InputError(
            "this graph is no circuit of a transformer's heads and MLPs: write that of attribute(..., split='heads')"
        )
    config = {"n_layers": sizes["layers"], "n_heads": sizes["heads"], "d_model": sizes["width"]}
    config["parallel_attn_mlp"] = bool(sizes["parallel"])
    names = _eap_nodes(config["n_layers"], config["n_heads"])
    scores: dict[str, float] = {}
    left_out = 0.0
    used = {"logits"}
    for start, end, facts in dag.edges(data=True):
        value: float = facts["value"]
        one, other = _eap_name(dag.nodes[start]), _eap_name(dag.nodes[end])
        if one is None or other is None:
            left_out += abs(value)
            continue
        given = one.partition("<")[0]
        edge = f"{given}->{other if '<' in other or not other.startswith('a') else f'{other}<v>'}"
        scores[edge] = scores.get(edge, 0.0) + value
        used |= {given, other.partition("<")[0]}
    for name in used - names:
        raise InputError(
            f"{quoted(name)} is no node of {amount(config['n_layers'], 'layer')} of {amount(config['n_heads'], 'head')}"
        )
    nodes: dict[str, dict[str, Any]] = {name: {"in_graph": name in used} for name in sorted(names)}
    edges = {name: {"score": value, "in_graph": True} for name, value in scores.items()}
    return _written({"cfg": config, "nodes": nodes, "edges": edges, "left_out": left_out})


def _eap_nodes(layers: int, heads: int) -> set[str]:
    inner = {f"m{layer}" for layer in range(layers)} | {f"a{i}.h{j}" for i in range(layers) for j in range(heads)}
    return {"input", "logits"} | inner


_SITE = re.compile(r"L(\d+)\.(?:mlp|attn\.head(\d+)(?:\.([qkv]))?)(?:\.bias)?")


def _eap_name(facts: Facts) -> str | None:
    """The name of a node there, with q, k or v where it is told; None for what has none."""
    if facts["role"] == "target":
        return "logits"
    name = str(facts["label"]).partition("@")[0]
    if facts["role"] == "source" and facts["kind"] in ("embed", "pos"):
        return "input"
    match = _SITE.fullmatch(name)
    if match is None:
        if facts["role"] == "site":
            raise InputError(f"{quoted(name)} is no head and no MLP of a layer, and EAP-IG knows nothing else")
        return None
    layer, head, by = match.groups()
    return f"m{layer}" if head is None else f"a{layer}.h{head}" + (f"<{by}>" if by else "")


def from_eap(content: bytes) -> nx.MultiDiGraph:
    """The nodes and edges of a circuit that are in it, with their scores."""
    data = _read(content)
    heads = data["cfg"]["n_heads"]
    dag = nx.MultiDiGraph(layers=data["cfg"]["n_layers"], heads=heads, width=data["cfg"]["d_model"])
    dag.graph["parallel"] = int(data["cfg"].get("parallel_attn_mlp", False))
    for name, edge in data["edges"].items():
        if not edge["in_graph"]:
            continue
        start, _, end = name.partition("->")
        end, _, by = end.partition("<")
        for node in (start, end):
            dag.add_node(node, **_of_eap(node, data["cfg"]["n_layers"]))
        dag.add_edge(start, end, value=float(edge["score"]), by=by.rstrip(">"))
    return lay_out(dag)


def _of_eap(name: str, layers: int) -> dict[str, Any]:
    """What a node there is in our words."""
    if name in ("input", "logits"):
        facts = ("embed", "source", "embed", 0) if name == "input" else ("logits", "target", "target", 2 * layers + 1)
        alias, role, kind, point = facts
        return _facts(alias, alias, "", role, kind, point, -1, "")
    layer, _, head = name[1:].partition(".")
    kind = "attn" if head else "mlp"
    alias = f"L{layer}.{kind}" + (f".head{head[1:]}" if head else "")
    return _facts(alias, alias, f"L{layer}", "site", kind, 2 * int(layer) + (1 if head else 2), -1, "")


def _facts(
    label: str, alias: str, layer: str, role: str, kind: str, point: int, position: int, token: str
) -> dict[str, Any]:
    names = {"label": label, "alias": alias, "layer": layer, "role": role, "kind": kind}
    return {**names, "point": point, "position": position, "token": token, "order": -1}


# Neuronpedia and circuit-tracer


def to_neuronpedia(dag: nx.MultiDiGraph) -> bytes:
    """An attribution graph as Neuronpedia and circuit-tracer show it; it is read back.

    Nodes without a position, such as `rest`, have no place there, and are told in the description.

    Raises
    ------
    InputError
        A graph without positions.
    """
    placed = {node: facts for node, facts in dag.nodes(data=True) if facts.get("position", -1) >= 0}
    if not placed:
        raise InputError("this graph has no positions: write that of attribute(...), whose positions are told apart")
    tokens = [_plain(text) for text in json.loads(dag.graph.get("tokens", "[]"))]
    last = max(facts["position"] for facts in placed.values())
    for facts in placed.values():
        tokens += [""] * (last + 1 - len(tokens))
        tokens[facts["position"]] = tokens[facts["position"]] or _plain(facts.get("token", ""))
    names = {
        node: f"{_depth(facts)}_{number}_{facts['position']}" for number, (node, facts) in enumerate(placed.items())
    }
    nodes = [_neuronpedia_node(names[node], number, facts) for number, (node, facts) in enumerate(placed.items())]
    links = [
        {"source": names[start], "target": names[end], "weight": facts["value"]}
        for start, end, facts in dag.edges(data=True)
        if start in names and end in names
    ]
    slug = re.sub(r"[^a-z0-9]+", "-", _name(dag).lower()).strip("-") or "graph"
    apart = [str(node) for node in dag if node not in placed]
    about = f"{dag.graph.get('target', '')}" + (f"; without {', '.join(apart)}" if apart else "")
    info = {"description": about, "generator": {"name": "jetgraph"}}
    metadata = {"slug": slug, "scan": str(dag.graph.get("model", "model")), "prompt_tokens": tokens}
    metadata |= {"prompt": "".join(tokens), "info": info, "schema_version": 1, "transcoder_list": []}
    # What circuit-tracer's own reader asks for, which Neuronpedia leaves open.
    state = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
    return _written({"metadata": metadata, "qParams": state, "nodes": nodes, "links": links})


_TYPES = {"source": "embedding", "target": "logit"}


def _depth(facts: Facts) -> str:
    """The layer: E for what the stream begins with; else the point of the stream, of which a block has several."""
    return "E" if facts["role"] == "source" and facts["point"] == 0 else str(facts["point"])


def _neuronpedia_node(name: str, number: int, facts: Facts) -> dict[str, Any]:
    kind = _TYPES.get(facts["role"], facts["kind"]) if facts["kind"] != "bias" else "bias"
    node = {"node_id": name, "feature": number, "layer": _depth(facts), "ctx_idx": facts["position"]}
    node |= {"feature_type": kind, "jsNodeId": f"{_depth(facts)}_{number}-{facts['position']}"}
    node |= {"clerp": facts["label"], "influence": facts.get("influence"), "activation": finite(facts).get("value")}
    own = {key: fact for key, fact in finite(facts).items() if key not in ("x", "y")}
    return {**node, "is_target_logit": facts["role"] == "target", "jetgraph": own}


def _plain(text: str) -> str:
    """A token without the quotes that it is shown in."""
    try:
        literal = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
    return literal if isinstance(literal, str) else text


def from_neuronpedia(content: bytes) -> nx.MultiDiGraph:
    """An attribution graph that Neuronpedia, circuit-tracer or `to_neuronpedia` has written."""
    data = _read(content)
    about, tokens = data["metadata"], data["metadata"]["prompt_tokens"]
    dag = nx.MultiDiGraph(model=about["scan"], target="", tokens=json.dumps([repr(token) for token in tokens]))
    numbers = [int(node["layer"]) for node in data["nodes"] if str(node["layer"]).isdecimal()]
    deepest = max(numbers, default=0) + 2
    for node in data["nodes"]:
        dag.add_node(node["node_id"], **(node.get("jetgraph") or _of_neuronpedia(node, tokens, deepest)))
    for link in data["links"]:
        dag.add_edge(link["source"], link["target"], value=float(link["weight"]))
    targets = [str(facts["label"]) for _, facts in dag.nodes(data=True) if facts["role"] == "target"]
    dag.graph["target"] = " + ".join(targets[:4])
    return lay_out(dag)


def _of_neuronpedia(node: Facts, tokens: list[str], deepest: int) -> dict[str, Any]:
    """What a node of others is in our words."""
    what, layer, at = str(node["feature_type"]), str(node["layer"]), int(node["ctx_idx"])
    role = {"embedding": "source", "logit": "target"}.get(what, "source" if "error" in what else "site")
    kind = "embed" if what == "embedding" else "target" if role == "target" else "bias" if "error" in what else "mlp"
    block = f"L{layer}" if layer.isdecimal() and role != "target" else ""
    alias = f"{block}.{node['node_id']}" if block else "embed" if kind == "embed" else "logits"
    point = deepest if role == "target" else int(layer) + 1 if layer.isdecimal() else 0
    label = str(node.get("clerp") or node["node_id"])
    facts = _facts(label, alias, block, role, kind, point, at, repr(tokens[at]) if at < len(tokens) else "")
    activation, influence = node.get("activation"), node.get("influence")
    return facts | {"influence": influence or 0.0} | ({} if activation is None else {"activation": activation})


# All


def _name(dag: nx.MultiDiGraph) -> str:
    named = (str(dag.graph[name]) for name in ("title", "model", "target", "recipe") if dag.graph.get(name))
    return " ".join(named) or "jetgraph"


def _written(data: Any) -> bytes:
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False).encode(*ESCAPED)


def _read(content: bytes) -> dict[str, Any]:
    data = parse_json(content.decode("utf-8-sig"))
    if not isinstance(data, dict):
        raise ValueError(f"it is {type(data).__name__}, not an object")
    return data
