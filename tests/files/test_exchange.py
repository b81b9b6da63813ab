"""Graphs as other programs read them, held against what these publish of their formats."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

import jetgraph as jg
from tests.drawn import tokens
from tests.outlines import llama

NUMBER = (int, float)


def fits(value: Any, shape: Any, at: str = "") -> None:
    """Hold a JSON value against a shape: types, tuples of types, [items], {keys}, those with ? perhaps missing."""
    if isinstance(shape, dict):
        assert isinstance(value, dict), at
        for key, inner in shape.items():
            name = key.removesuffix("?")
            assert name in value or key.endswith("?"), f"{at}.{name} is missing"
            if name in value:
                fits(value[name], inner, f"{at}.{name}")
    elif isinstance(shape, list):
        assert isinstance(value, list), at
        for number, one in enumerate(value):
            fits(one, shape[0], f"{at}[{number}]")
    else:
        assert isinstance(value, shape), f"{at} is {value!r}"
        assert not isinstance(value, float) or math.isfinite(value)


NEURONPEDIA = {
    "metadata": {
        "slug": str,
        "scan": str,
        "prompt_tokens": [str],
        "prompt": str,
        "info?": {"description": str},
        "transcoder_list": [str],
    },
    # circuit-tracer's reader asks for all of these, and for the transcoders below.
    "qParams": {"pinnedIds": [str], "supernodes": [list], "linkType": str, "clickedId": str, "sg_pos": str},
    "nodes": [
        {
            "node_id": str,
            "feature": (int, type(None)),
            "layer": (str, int),
            "ctx_idx": int,
            "feature_type": str,
            "jsNodeId": str,
            "clerp": str,
            "influence?": (*NUMBER, type(None)),
            "activation?": (*NUMBER, type(None)),
        }
    ],
    "links": [{"source": str, "target": str, "weight": NUMBER}],
}
"""What neuronpedia's graph-schema.json (version 1.0.0) requires."""

EXPLORER = {
    "label": str,
    "graphs": [
        {
            "id": str,
            "nodes": [
                {
                    "id": str,
                    "label": str,
                    "namespace": str,
                    "attrs": [{"key": str, "value": str}],
                    "incomingEdges": [{"sourceNodeId": str, "sourceNodeOutputId": str, "targetNodeInputId": str}],
                }
            ],
        }
    ],
}
"""`GraphCollection` of Model Explorer's input_graph.ts."""


def written(dag: nx.MultiDiGraph, file: Path) -> Any:
    return json.loads(jg.write_graph(dag, file).read_text(encoding="utf-8"))


def test_neuronpedia(tmp_path: Path) -> None:
    dag = tokens()
    data = written(dag, tmp_path / "a.neuronpedia.json")
    fits(data, NEURONPEDIA)
    ids = [node["node_id"] for node in data["nodes"]]
    assert len(set(ids)) == len(ids) == len(dag)
    assert {link[end] for link in data["links"] for end in ("source", "target")} <= set(ids)
    assert data["metadata"]["prompt_tokens"] == ["a", "a"]
    again = jg.read_graph(tmp_path / "a.neuronpedia.json")
    assert nx.is_isomorphic(again, dag)
    facts = {facts["label"]: facts["value"] for _, facts in again.nodes(data=True)}
    assert facts == dict(dag.nodes(data="value"))
    # A graph of circuit-tracer has nothing of ours in it.
    for node in data["nodes"]:
        del node["jetgraph"]
    (tmp_path / "b.neuronpedia.json").write_text(json.dumps(data))
    theirs = jg.read_graph(tmp_path / "b.neuronpedia.json")
    assert [role for _, role in theirs.nodes(data="role")].count("target") == 1
    assert sum(value for *_, value in theirs.edges(data="value")) == sum(value for *_, value in dag.edges(data="value"))
    assert "jetgraph" in jg.view(theirs).html
    with pytest.raises(jg.InputError, match="has no positions"):
        written(jg.path_graph(jg.expand(llama(1))), tmp_path / "c.neuronpedia.json")


def by_heads() -> nx.MultiDiGraph:
    """Heads by position, with the constants that they leave."""
    names = {f"L{layer}.attn@{at}": f"L{layer}.attn.head0@{at}" for layer in range(3) for at in range(2)}
    dag = nx.relabel_nodes(tokens(), names)
    for node in names.values():
        dag.nodes[node]["label"] = node
    bias = {"label": "L0.mlp.bias@1", "role": "source", "kind": "bias", "position": 1, "point": 2, "alias": "bias3"}
    dag.add_node("L0.mlp.bias@1", **bias)
    dag.add_edge("L0.mlp.bias@1", "'b'", value=0.5)
    dag.add_node("rest", label="rest", role="rest", kind="rest", position=-1, point=-1, alias="rest")
    dag.add_edge("rest", "'b'", value=0.25)
    return dag


def test_eap_and_mib(tmp_path: Path) -> None:
    dag = by_heads()
    data = written(dag, tmp_path / "a.eap.json")
    config = {"n_layers": int, "n_heads": int, "d_model": int, "parallel_attn_mlp": bool}
    fits(data, {"cfg": config, "nodes": dict, "edges": dict})
    # As `Graph.from_model` names them.
    inner = {f"{kind}{layer}{head}" for layer in range(3) for kind, head in (("a", ".h0"), ("m", ""))}
    assert set(data["nodes"]) == {"input", "logits"} | inner
    assert all(type(node["in_graph"]) is bool for node in data["nodes"].values())
    for name, edge in data["edges"].items():
        fits(edge, {"score": NUMBER, "in_graph": bool})
        start, _, end = name.partition("->")
        assert start in data["nodes"]
        assert end.partition("<")[0] in data["nodes"]
        assert end.endswith("<v>") == end.startswith("a")
    # Positions are summed, and a constant belongs to its site.
    ends = [value for start, end, value in dag.edges(data="value") if end == "'b'" and start.startswith("L0.mlp")]
    assert data["edges"]["m0->logits"]["score"] == pytest.approx(sum(ends))
    assert data["left_out"] == 0.25
    again = jg.read_graph(tmp_path / "a.eap.json")
    assert again.number_of_edges() == len(data["edges"])
    assert "jetgraph" in jg.view(again).html
    with pytest.raises(jg.InputError, match="split='heads'"):
        written(jg.path_graph(jg.expand(llama(1))), tmp_path / "b.eap.json")
    dag.nodes["L1.mlp@0"]["label"] = "L1.conv@0"
    with pytest.raises(jg.InputError, match="is no head and no MLP"):
        written(dag, tmp_path / "c.eap.json")


def test_model_explorer(tmp_path: Path) -> None:
    dag = tokens()
    data = written(dag, tmp_path / "a.explorer.json")
    fits(data, EXPLORER)
    nodes = data["graphs"][0]["nodes"]
    assert {node["namespace"] for node in nodes} == {"", "L0", "L1", "L2"}
    assert sum(len(node["incomingEdges"]) for node in nodes) == dag.number_of_edges()
    values = written(dag, tmp_path / "a.explorer-data.json")
    fits(values, {data["graphs"][0]["id"]: {"results": dict, "thresholds?": [{"value": NUMBER, "bgColor": str}]}})
    assert set(values["jetgraph"]["results"]) == {node["id"] for node in nodes}
    assert values["jetgraph"]["results"]["L2.mlp@0"] == {"value": 6.0}
    with pytest.raises(jg.InputError, match="has no values"):
        written(jg.path_graph(jg.expand(llama(1))), tmp_path / "b.explorer-data.json")
    with pytest.raises(jg.InputError, match="is for writing"):
        jg.read_graph(tmp_path / "a.explorer.json")


@pytest.mark.parametrize("dag", [tokens(), jg.path_graph(jg.expand(llama(2), 1))], ids=["tokens", "paths"])
def test_cytoscape(dag: nx.MultiDiGraph, tmp_path: Path) -> None:
    data = written(dag, tmp_path / "a.cytoscape.json")
    place = {"x": NUMBER, "y": NUMBER}
    node, edge = {"data": {"id": str}, "position": place}, {"data": {"id": str, "source": str, "target": str}}
    fits(data, {"data": dict, "elements": {"nodes": [node], "edges": [edge]}})
    names = [one["data"]["id"] for kind in ("nodes", "edges") for one in data["elements"][kind]]
    assert len(set(names)) == len(names)
    again = jg.read_graph(tmp_path / "a.cytoscape.json")
    assert nx.utils.graphs_equal(again, dag)
    assert again.graph == dag.graph


@pytest.mark.parametrize("suffix", [".json", ".cytoscape.json", ".neuronpedia.json"])
def test_what_is_not_finite_is_no_json(suffix: str, tmp_path: Path) -> None:
    """The radius of a series that converges everywhere, say: other programs would not read the file at all."""
    dag = tokens(1, 1)
    for number, node in enumerate(dag):
        dag.nodes[node]["radius"] = math.inf if number else 2.0
    dag.nodes["L0.attn@0"]["value"] = math.nan
    text = jg.write_graph(dag, tmp_path / f"a{suffix}").read_text(encoding="utf-8")
    json.loads(text, parse_constant=pytest.fail)
    radii = [radius for _, radius in jg.read_graph(tmp_path / f"a{suffix}").nodes(data="radius")]
    assert [radius for radius in radii if radius is not None] == [2.0]


def test_gexf_has_places(tmp_path: Path) -> None:
    dag = tokens(1, 1)
    text = jg.write_graph(dag, tmp_path / "a.gexf").read_text(encoding="utf-8")
    # The schema of GEXF 1.2 knows these attributes of a graph, and networkx others.
    graph = re.findall(r"<graph ([^>]*)>", text)
    assert [set(re.findall(r"(\w+)=", one)) <= {"defaultedgetype", "mode", "idtype"} for one in graph] == [True]
    facts = dag.nodes["L0.mlp@0"]
    assert f'x="{facts["x"]}" y="{facts["y"]}"' in text
    assert "viz" not in dag.nodes["L0.mlp@0"], "the graph itself is left as it was"
    assert nx.utils.graphs_equal(jg.read_graph(tmp_path / "a.gexf"), dag)
