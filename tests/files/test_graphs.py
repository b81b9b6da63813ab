"""Path DAGs as files."""

from __future__ import annotations

import json
import math
import pathlib
import re
from typing import Any
from xml.etree import ElementTree

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetgraph.algebra.dag import count_paths, path_graph, path_texts
from jetgraph.algebra.expansion import Expansion, expand
from jetgraph.algebra.outline import MapStep
from jetgraph.algebra.rules import Atom, Freeze
from jetgraph.errors import InputError, JetGraphError
from jetgraph.files.graphs import read_graph, write_graph
from tests.outlines import a_map, branch, decoder, gpt2, join, llama, outline

SUFFIXES = (".graphml", ".gexf", ".json")
"""What is read back."""


def rich_expansion() -> Expansion:
    net = outline(
        join(branch("L0.attn"), branch("L0.mlp"), bias=True),
        MapStep(a_map("L0.norm")),
        join(branch("L1.attn", affine=True, bias=True), branch("L1.mlp")),
        MapStep(a_map("L1.norm", affine=True)),
        last=decoder(bias=True),
    )
    return expand(net, 2, rules={"L1.mlp": Atom(), "L0.attn": Freeze()}, weights={"embed": 2.0})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_give_everything_back(suffix: str, tmp_path: pathlib.Path) -> None:
    for expansion in (rich_expansion(), expand(llama(126), 1), expand(gpt2(126), 1, orders="apart")):
        dag = path_graph(expansion)
        file = write_graph(dag, tmp_path / f"dag{suffix}")
        again = read_graph(str(file))
        assert type(again) is nx.MultiDiGraph
        assert nx.utils.graphs_equal(again, dag)
        assert again.graph == dag.graph
        assert list(again.nodes) == list(dag.nodes)
        assert count_paths(again) == expansion.count()
        if expansion.count() < 10_000:
            assert list(path_texts(again)) == [str(path) for path in expansion]
    assert [path.name for path in tmp_path.iterdir()] == [f"dag{suffix}"]


AWKWARD = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn", "Co")), max_size=8) | st.sampled_from(
    ['a "b"', "\\", '\\"', "<&>", "12", "-1", "true", "graph", "a -> b;", "é∂", "{x}", "#no", "//", "None", ""]
)


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(st.data())
@settings(max_examples=40, deadline=None)
def test_files_keep_awkward_text_and_parallel_edges(tmp_path_factory: pytest.TempPathFactory, suffix, data) -> None:
    values = st.fixed_dictionaries({"label": AWKWARD, "hop": AWKWARD, "order": st.integers(-(2**40), 2**40)})
    dag = nx.MultiDiGraph(recipe=data.draw(AWKWARD), order=3, count=str(2**252))
    names = [f"site:{number}^{number}" for number in range(3)]
    for name in names:
        dag.add_node(name, **data.draw(values))
    for key in data.draw(st.lists(st.integers(0, 9), max_size=4, unique=True)):
        dag.add_edge(names[0], names[1], key=key, **data.draw(values))
    dag.add_edge(names[1], names[2], **data.draw(values))
    file = tmp_path_factory.mktemp("graphs") / f"dag{suffix}"
    again = read_graph(write_graph(dag, file))
    assert nx.utils.graphs_equal(again, dag)
    assert again.graph == dag.graph


def test_files_are_what_their_formats_say(tmp_path: pathlib.Path) -> None:
    dag = path_graph(rich_expansion())
    for suffix in (".graphml", ".gexf"):
        tree = ElementTree.parse(write_graph(dag, tmp_path / f"dag{suffix}"))
        for kind in ("node", "edge"):
            ids = [element.get("id") for element in tree.iter() if element.tag.endswith(f"}}{kind}")]
            assert len(ids) == len(set(ids)) == (len(dag) if kind == "node" else dag.number_of_edges())
    assert nx.read_graphml(tmp_path / "dag.graphml", force_multigraph=True).number_of_edges() == dag.number_of_edges()
    assert nx.read_gexf(tmp_path / "dag.gexf").nodes["site:L0.norm~2"]["order"] == 2
    content = json.loads(write_graph(dag, tmp_path / "dag.json").read_text(encoding="utf-8"))
    assert (content["directed"], content["multigraph"], len(content["nodes"])) == (True, True, len(dag))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pydot")
def test_dot_is_read_by_others(tmp_path: pathlib.Path) -> None:
    pydot = pytest.importorskip("pydot")
    dag = path_graph(rich_expansion())
    (graph,) = pydot.graph_from_dot_file(str(write_graph(dag, tmp_path / "dag.dot")))
    assert len(graph.get_nodes()) == len(dag)
    assert len(graph.get_edges()) == dag.number_of_edges()


def test_dot_is_for_writing(tmp_path: pathlib.Path) -> None:
    file = write_graph(path_graph(rich_expansion()), tmp_path / "dag.gv")
    with pytest.raises(JetGraphError, match=r"DOT is for writing; write the graph as \.json"):
        read_graph(file)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", "{"),
        ("a.json", "[]"),
        ("a.json", "[" * 100_000),
        ("a.json", '{"nodes": 3, "edges": []}'),
        ("a.json", '{"nodes": [{"id": {}}], "edges": []}'),
        ("a.json", '{"nodes": [{"id": "a"}], "edges": [{"source": "a"}]}'),
        ("a.json", '{"nodes": [], "edges": [], "graph": "text"}'),
        ("a.json", '{"nodes": [], "edges": [], "graph": {"count": ' + "9" * 5000 + "}}"),
        ("a.graphml", "<graphml"),
        ("a.graphml", '<?xml version="1.0" encoding="no-such"?><graphml/>'),
        ("a.graphml", '<graphml><graph><node id="a"><data key="k">1</data></node></graph></graphml>'),
        ("a.gexf", "<gexf/>"),
        ("a.gexf", "\0"),
    ],
)
def test_broken_files(name: str, content: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(JetGraphError, match=rf"{name} is no {name[2:]} file"):
        read_graph(tmp_path / name)


@pytest.mark.parametrize("suffix", [".graphml", ".gexf"])
def test_xml_that_declares_entities_is_refused(suffix: str, tmp_path: pathlib.Path) -> None:
    file = write_graph(path_graph(expand(llama(1))), tmp_path / f"dag{suffix}")
    text = file.read_text(encoding="utf-8")
    laughs = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 9}">' for i in range(1, 12))
    for inside in (f'<!ENTITY a0 "ha">{laughs}', f'<!ENTITY a0 SYSTEM "{tmp_path / "secret"}">'):
        file.write_text(re.sub(r"(<\?xml[^>]*\?>)", rf"\1<!DOCTYPE g [{inside}]>", text, count=1), encoding="utf-8")
        assert "<!DOCTYPE" in file.read_text(encoding="utf-8")
        with pytest.raises(JetGraphError, match="declares a document type"):
            read_graph(file)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_byte_order_mark_is_no_part_of_a_graph(suffix: str, tmp_path: pathlib.Path) -> None:
    dag = path_graph(expand(llama(1)))
    file = write_graph(dag, tmp_path / f"dag{suffix}")
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert nx.utils.graphs_equal(read_graph(file), dag)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("text", ["a\0b", "bell\a", "esc\x1b[0m", "\ufffe"])
def test_control_characters_are_kept_or_refused(suffix: str, text: str, tmp_path: pathlib.Path) -> None:
    dag = nx.MultiDiGraph(recipe="x")
    dag.graph["incoming_graph_data"] = "a name that networkx uses"
    dag.add_edge("a", "b", key=0, label=text)
    file = tmp_path / f"dag{suffix}"
    if suffix in (".graphml", ".gexf"):
        with pytest.raises(JetGraphError, match=r"which XML cannot: write the graph as \.json or \.dot"):
            write_graph(dag, file)
        assert not file.exists()
    else:
        again = read_graph(write_graph(dag, file))
        assert nx.utils.graphs_equal(again, dag)
        assert again.graph == dag.graph


@pytest.mark.parametrize("name", [None, "", 3])
def test_what_names_no_file(name: Any) -> None:
    with pytest.raises(JetGraphError, match=r"is no name of a file|takes as file a "):
        read_graph(name)
    with pytest.raises(JetGraphError, match=r"is no name of a file|takes as file a "):
        write_graph(nx.MultiDiGraph(), name)


def test_files_that_cannot_be(tmp_path: pathlib.Path) -> None:
    dag = path_graph(expand(llama(1)))
    with pytest.raises(JetGraphError, match=r"end it in one of \.graphml, \.gexf, \.json, \.dot, \.gv"):
        write_graph(dag, tmp_path / "dag.png")
    with pytest.raises(JetGraphError, match="does not exist"):
        write_graph(dag, tmp_path / "nowhere" / "dag.json")
    with pytest.raises(JetGraphError, match="there is no file"):
        read_graph(tmp_path / "dag.json")


def test_a_failed_write_leaves_the_old_file(tmp_path: pathlib.Path) -> None:
    file = write_graph(path_graph(expand(llama(1))), tmp_path / "dag.graphml")
    before = file.read_bytes()
    broken = nx.MultiDiGraph()
    broken.add_node("a", value=object())
    with pytest.raises(InputError, match=r"holds what 'dag\.graphml' cannot"):
        write_graph(broken, file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("suffix", [".graphml", ".gexf", ".json", ".cytoscape.json", ".explorer-data.json"])
def test_facts_that_a_format_has_no_words_for(suffix: str, tmp_path: pathlib.Path) -> None:
    dag = path_graph(expand(llama(1)))
    dag.nodes["sink"]["value"] = math.nan if suffix.endswith("-data.json") else object()
    with pytest.raises(InputError, match=f"holds what 'dag{suffix}' cannot"):
        write_graph(dag, tmp_path / f"dag{suffix}")
    assert not list(tmp_path.iterdir())


def test_half_of_a_character_is_kept(tmp_path: pathlib.Path) -> None:
    dag = path_graph(expand(llama(1)))
    dag.nodes["sink"]["label"] = "é\ud800"
    for suffix in (".json", ".cytoscape.json"):
        assert read_graph(write_graph(dag, tmp_path / f"dag{suffix}")).nodes["sink"]["label"] == "é\ud800"
    for suffix in (".dot", ".html"):
        assert write_graph(dag, tmp_path / f"dag{suffix}").read_text(encoding="utf-8")


def test_edges_of_others_are_drawn_and_cycles_are_refused(tmp_path: pathlib.Path) -> None:
    dag = path_graph(expand(llama(1)))
    first, *_, last = nx.topological_sort(dag)
    dag.add_edge(first, last)
    assert write_graph(dag, tmp_path / "dag.html").exists()
    dag.add_edge(last, first)
    with pytest.raises(InputError, match="has a cycle"):
        write_graph(dag, tmp_path / "dag.html")
