"""Values of paths on path graphs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jetgraph as jg
from jetgraph.algebra.scores import PathScores
from tests.outlines import gpt2, llama, nets


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_a_node_has_the_sum_of_the_paths_that_pass_it(data: st.DataObject) -> None:
    net, rules = data.draw(nets())
    expansion = jg.expand(net, rules=rules)
    paths = list(jg.select(expansion, "**", limit=60))
    values = {str(path): float(2**index) for index, path in enumerate(paths)}
    dag = jg.path_graph(expansion, values=PathScores(values, 10.0, "'a'", 3, "'b'"))
    for hop in {hop for _, hop in dag.nodes(data="hop") if hop}:
        nodes = [facts for _, facts in dag.nodes(data=True) if facts["hop"] == hop]
        passing = sum(value for text, value in values.items() if hop in text.split(" > "))
        assert sum(facts["value"] for facts in nodes) == passing
        assert all(facts["share"] == facts["value"] / 10 for facts in nodes)
        assert {(facts["position"], facts["token"]) for facts in nodes} == {(3, "'b'")}
    assert dag.nodes["sink"]["value"] == sum(values.values())
    for node, facts in dag.nodes(data=True):
        for edges in (dag.in_edges(node, data="value"), dag.out_edges(node, data="value")):
            assert not edges or sum(value for *_, value in edges) == facts["value"], "what enters a node leaves it"


def test_values_are_of_the_paths_that_are_drawn() -> None:
    expansion = jg.expand(llama(2), 0)
    texts = ["embed > L0.attn^0 > logits^0", "embed > L0.attn^0 > L1.mlp^0 > logits^0"]
    dag = jg.path_graph(expansion, values=dict(zip(texts, (3.0, -1.0), strict=True)))
    by_alias = {facts["alias"]: facts["value"] for _, facts in dag.nodes(data=True) if facts["role"] == "branch"}
    assert by_alias == {"L0.attn": 2.0, "L1.mlp": -1.0}
    assert dag.graph["total"] == 2.0
    assert [facts["share"] for _, facts in dag.nodes(data=True) if facts["alias"] == "L1.mlp"] == [-0.5]
    one = jg.path_graph(expansion, texts[0], values=dict(zip(texts, (3.0, -1.0), strict=True)))
    assert one.nodes["sink"]["value"] == 3.0
    assert one.nodes["sink"]["position"] == -1
    # Of a sum that is zero nothing has a share.
    cancelled = jg.path_graph(expansion, values=dict(zip(texts, (2.0, -2.0), strict=True)))
    assert {facts["share"] for _, facts in cancelled.nodes(data=True)} == {0.0}
    # Where every path has a value, all is drawn as it is without.
    every = jg.path_graph(expansion, values=dict.fromkeys(map(str, expansion), 1.0))
    assert list(every) == list(jg.path_graph(expansion))
    with pytest.raises(jg.InputError, match="there is no value of"):
        jg.path_graph(expansion, "embed > *.mlp > logits", values={texts[0]: 1.0})
    with pytest.raises(jg.SelectionError):
        jg.path_graph(expansion, values={"embed > L9.mlp^0 > logits^0": 1.0})
    with pytest.raises(jg.InputError, match="takes as values"):
        jg.path_graph(expansion, values=3)  # type: ignore[arg-type]


def test_nodes_say_what_they_do() -> None:
    dag = jg.path_graph(jg.expand(gpt2(2), 1))
    assert dag.nodes["site:L1.mlp~1"]["formula"] == "w[L1.mlp]*J[L1.mlp, ~1](x)"
    assert dag.nodes["site:L1.mlp~1"]["layer"] == "L1"
    assert dag.nodes["source:embed"]["formula"] == "embed"
    assert dag.nodes["site:logits^1"]["formula"] == "w[logits]*J[logits, 1](x)"
