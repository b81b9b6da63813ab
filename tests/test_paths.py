"""Selections against naive matching, path DAGs against the list of terms, graph files against what was written."""

from __future__ import annotations

import json
import pathlib
import re
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import islice
from math import comb
from typing import Any
from xml.etree import ElementTree

import networkx as nx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jetgraph.errors import BudgetError, JetGraphError, SelectionError
from jetgraph.expansion import Expansion, expand
from jetgraph.paths import count_paths, path_graph, path_texts, read_graph, select, write_graph
from jetgraph.program import Atom, Freeze, Hop, MapStep, Outline, Path, Site
from tests.outlines import a_map, branch, by_hand, decoder, gpt2, join, llama, nets, outline

SUFFIXES = (".graphml", ".gexf", ".json", ".dot", ".gv")


def post_norm(blocks: int) -> Outline:
    steps = []
    for block in range(blocks):
        steps += [join(branch(f"L{block}.mlp")), MapStep(a_map(f"L{block}.norm"))]
    return outline(*steps)


def found(expansion: Expansion, pattern: str | list[str], **bounds: int) -> list[str]:
    return [str(path) for path in select(expansion, pattern, **bounds)]


# Patterns


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("embed > logits", ["embed > logits^0", "embed > logits^1"]),
        ("embed > *.mlp > output^1", ["embed > L1.mlp^0 > logits^1", "embed > L1.mlp^1 > logits^1",
                                      "embed > L0.mlp^0 > logits^1", "embed > L0.mlp^1 > logits^1"]),
        ("embed > L0.attn^1 > L1.mlp^0 > logits^0", ["embed > L0.attn^1 > L1.mlp^0 > logits^0"]),
        ("embed > model.layers.0.attn^1 > *.attn^0 > logits^0", ["embed > L0.attn^1 > L1.attn^0 > logits^0"]),
        ("embed > L0.attn^1 > ** > L1.attn^1 > logits^1", [
            "embed > L0.attn^1 > L1.attn^1 > logits^1",
            "embed > L0.attn^1 > L0.mlp^0 > L1.attn^1 > logits^1",
            "embed > L0.attn^1 > L0.mlp^1 > L1.attn^1 > logits^1",
        ]),
        ("*>L1.mlp^1>*^0", ["embed > L1.mlp^1 > logits^0"]),
        ("embed > L?.mlp^* > logits^0", ["embed > L1.mlp^0 > logits^0", "embed > L1.mlp^1 > logits^0",
                                         "embed > L0.mlp^0 > logits^0", "embed > L0.mlp^1 > logits^0"]),
    ],
)  # fmt: skip
def test_patterns(pattern: str, expected: list[str]) -> None:
    assert found(expand(llama(2), 1), pattern) == expected


def test_an_exact_alias_is_no_module_path() -> None:
    sites = [Site(f"L{block}.mlp", f"L{block + 1}.mlp", "mlp", "branch", False, False) for block in range(3)]
    expansion = expand(outline(*map(join, sites)), order=0)
    assert found(expansion, "embed > L1.mlp > logits") == ["embed > L1.mlp^0 > logits^0"]
    assert found(expansion, "embed > L3.mlp > logits") == ["embed > L2.mlp^0 > logits^0"]
    assert found(expansion, "embed > *.mlp > L2.mlp > output") == [
        "embed > L1.mlp^0 > L2.mlp^0 > logits^0",
        "embed > L0.mlp^0 > L2.mlp^0 > logits^0",
    ]
    with pytest.raises(SelectionError, match="two meanings"):
        select(expansion, "embed > L1.* > logits")


def test_every_path_matches_a_gap() -> None:
    expansion = expand(gpt2(1), 1)
    assert found(expansion, "**") == found(expansion, "** > **") == [str(path) for path in expansion]
    assert found(expansion, "** > *") == found(expansion, "**")
    assert set(found(expansion, "pos > **")) | set(found(expansion, "embed > **")) == set(found(expansion, "**"))


def test_maps_are_passed_silently_and_can_be_named() -> None:
    expansion = expand(post_norm(2), 0)
    assert found(expansion, "embed > logits") == ["embed > L0.norm^0 > L1.norm^0 > logits^0"]
    assert found(expansion, "embed > L0.mlp > logits") == ["embed > L0.mlp^0 > L0.norm^0 > L1.norm^0 > logits^0"]
    assert found(expansion, "embed > L0.norm > logits") == found(expansion, "embed > logits")
    # a bare * is a site that the path has a choice about
    assert found(expansion, "embed > * > logits") == [
        "embed > L0.norm^0 > L1.mlp^0 > L1.norm^0 > logits^0",
        "embed > L0.mlp^0 > L0.norm^0 > L1.norm^0 > logits^0",
    ]
    with pytest.raises(SelectionError, match="no path has them in this order"):
        select(expansion, "embed > L1.norm > L0.mlp > logits")


def test_union_has_no_duplicates() -> None:
    expansion = expand(llama(2), 0)
    both = select(expansion, ["embed > ** > L0.mlp > logits", "embed > L0.* > logits", "** > L0.mlp > logits"])
    assert [str(path) for path in both] == [
        "embed > L0.mlp^0 > logits^0",
        "embed > L0.attn^0 > logits^0",
        "embed > L0.attn^0 > L0.mlp^0 > logits^0",
    ]
    assert both.count() == len(both) == 3


def test_length_bounds() -> None:
    expansion = expand(llama(3), 1)
    assert select(expansion, "**", min_length=2, max_length=3).count() == 2 * (comb(6, 2) * 4 + comb(6, 3) * 8)
    assert select(expansion, "** > L2.mlp > **", max_length=1).count() == 4
    assert {path.length for path in select(expansion, "**", min_length=5)} == {5, 6}
    assert {path.length for path in select(expansion, "**", max_length=0)} == {0}
    with pytest.raises(SelectionError, match=r"matches 4 paths, but none of a length within 2\.\.any"):
        select(expansion, "embed > L1.mlp > logits", min_length=2)


def test_paths_are_checked_and_keep_their_order() -> None:
    expansion = expand(llama(2), 0)
    paths = [Path.parse("embed > L1.mlp^0 > logits^0"), Path.parse("embed > logits^0")]
    assert list(select(expansion, [*paths, paths[0]])) == paths
    assert list(select(expansion, paths[1])) == paths[1:]
    assert list(select(expansion, [paths[0], "embed > logits"])) == paths[::-1]
    assert list(select(expansion, paths, max_length=0)) == paths[1:]
    with pytest.raises(SelectionError, match=r"L1\.mlp\^0, not L1\.mlp\^1"):
        select(expansion, Path.parse("embed > L1.mlp^1 > logits^0"))
    with pytest.raises(SelectionError, match="none of the 2 paths"):
        select(expansion, paths, min_length=2)


def test_a_selection_can_be_selected_from() -> None:
    expansion = expand(llama(2), 0)
    selection = select(expansion, "embed > * > logits")
    assert select(expansion, selection) is selection
    assert list(select(expansion, selection, limit=1)) == list(selection)[:1]
    assert list(select(expand(llama(2), 1), selection)) == list(selection)
    assert "embed > L1.mlp^0 > logits^0" in repr(selection)


# Against naive matching


def matches(elements: Sequence[str], hops: Sequence[Hop], net: Outline, first: bool = True) -> bool:
    """A pattern against a path, by trying everything."""
    if not hops:
        return all(element == "**" for element in elements)
    hop, rest = hops[0], hops[1:]
    sites = {site.alias: site for site in net.sites()}
    is_map = not first and sites[hop.alias].role == "map"
    if is_map and matches(elements, rest, net, False):
        return True
    if not elements:
        return False
    if elements[0] == "**":
        return matches(elements[1:], hops, net, first) or matches(elements, rest, net, False)
    glob, _, order = elements[0].partition("^")
    glob = "logits" if glob == "output" else glob
    module = sites[hop.alias].path if hop.alias in sites else {"embed": "model.embed", "pos": "wpe"}.get(hop.alias, "")
    named = not is_map if glob == "*" else fnmatchcase(hop.alias, glob) or (module and fnmatchcase(module, glob))
    right = named and order in ("", str(hop.order))
    return bool(right) and matches(elements[1:], rest, net, False)


ELEMENTS = st.sampled_from(
    [
        "*",
        "**",
        "**",
        "**",
        "embed",
        "L*",
        "*.mlp",
        "L0.*",
        "*^1",
        "*^0",
        "*.norm",
        "model.*",
        "bias*",
        "wpe",
        "L1.attn^0",
    ]
)
PATTERNS = st.lists(ELEMENTS, max_size=4).flatmap(
    lambda middle: st.sampled_from(["logits", "output^0", "**", "*"]).map(lambda last: [*middle, last])
)


@given(nets(), st.lists(PATTERNS, min_size=1, max_size=3), st.none() | st.integers(0, 2), st.none() | st.integers(1, 3))
@settings(max_examples=400, deadline=None)
def test_selection_agrees_with_naive_matching(case, patterns, shortest, longest) -> None:
    net, rules = case
    expansion = expand(net, rules=rules)
    assume(0 < expansion.count() < 2000)
    inside = [
        path for path in expansion if (shortest or 0) <= path.length and (longest is None or path.length <= longest)
    ]
    hits = [[path for path in inside if matches(pattern, path.hops, net)] for pattern in patterns]
    wanted = [" > ".join(pattern) for pattern in patterns]
    if not all(hits):
        with pytest.raises(SelectionError):
            select(expansion, wanted, min_length=shortest, max_length=longest)
        return
    expected = [path for path in inside if any(path in hit for hit in hits)]
    selection = select(expansion, wanted, min_length=shortest, max_length=longest)
    assert list(selection) == expected
    assert selection.count() == len(selection) == len(expected)
    assert [selection[index] for index in range(-len(expected), len(expected))] == expected * 2
    assert list(selection[1:5]) == expected[1:5]
    assert list(selection[::-2]) == expected[::-2]
    dag = path_graph(expansion, selection)
    assert count_paths(dag) == len(expected)
    assert list(path_texts(dag)) == [str(path) for path in expected]


# Lazily


def test_ten_of_two_to_the_252_are_instant() -> None:
    expansion = expand(llama(126), 0)
    begin = time.perf_counter()
    selection = select(expansion, "embed > ** > L63.mlp > ** > logits")
    first = list(islice(selection, 10))
    assert time.perf_counter() - begin < 1
    assert selection.count() == 2**251
    assert len(set(first)) == 10
    assert str(first[0]) == "embed > L63.mlp^0 > logits^0"
    assert list(selection[:10]) == first == list(select(expansion, "embed > ** > L63.mlp > ** > logits", limit=10))
    assert selection[2**250].sites[0] == Hop("L0.attn", 0)
    assert selection[-1].length == 252
    assert time.perf_counter() - begin < 3
    assert select(expansion, "**", min_length=126, max_length=126).count() == comb(252, 126)


def test_numbers_go_straight_to_their_path() -> None:
    selection = select(expand(llama(126), 0), "**")
    # at order 0 path number n, read in binary from the first join on, says which sites are passed
    number = (1 << 251) | (1 << 3) | 1
    assert [hop.alias for hop in selection[number].sites] == ["L0.attn", "L124.attn", "L125.mlp"]
    assert list(selection[number : number + 2]) == [selection[number], selection[number + 1]]
    assert selection[number : number + 7 : 3].count() == 3
    assert not selection[5:5]
    with pytest.raises(IndexError, match=r"2\^252"):
        selection[2**252]


def test_listing_too_many_is_refused() -> None:
    selection = select(expand(llama(126), 0), "**")
    for attempt in (list, len, tuple):
        with pytest.raises(BudgetError, match=r"2\^252 .*limit=n"):
            attempt(selection)
    assert selection
    assert "and 2^252" not in repr(selection[:6])


def test_iterating_past_the_budget_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetgraph.paths.LIST_BUDGET", 3)
    selection = select(expand(llama(1), 0), "**")
    seen = []
    with pytest.raises(BudgetError, match="selects 4 paths"):
        seen.extend(path for path in selection)  # a generator has no length to ask for
    assert len(list(selection[:4])) == 4
    assert len(list(select(expand(llama(1), 0), "**", limit=4))) == 4


def test_an_automaton_that_grows_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetgraph.automaton.STATE_BUDGET", 50)
    with pytest.raises(BudgetError, match="fewer gaps"):
        select(expand(llama(30), 0), "** > *.mlp > * > * > * > **")


# Errors that name the fix


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("embed > L0.mpl > logits", r"'L0\.mpl' in .* matches no source and no site; did you mean 'L0\.mlp'"),
        ("embd > logits", r"'embd' .* did you mean 'embed'.*There are: embed, L0\.attn, L0\.mlp, L1\.attn"),
        ("embed > L0.mlp^3 > logits", r"'L0\.mlp\^3' .* order that is not taken there.*L0\.mlp\^0, L0\.mlp\^1"),
        ("embed^0 > logits", r"order that is not taken.*embed"),
        ("embed > L1.mlp > L0.mlp > logits", r"no path has them in this order.*embed > L0\.mlp > L1\.mlp > logits"),
        ("embed > L0.mlp", "no path has them"),
        ("L0.mlp > logits", "no path has them"),
        ("embed >", "cannot be read"),
        ("embed > **^1 > logits", "cannot be read"),
        ("embed > L0 mlp > logits", "cannot be read"),
        ([], "empty list"),
        (["embed > logits", "embed > L9.mlp > logits"], r"'L9\.mlp'"),
        (["embed > logits", "logits > embed"], "'logits > embed' matches by itself"),
    ],
)
def test_patterns_that_match_nothing(pattern: str | list[str], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        select(expand(llama(2), 1), pattern)


def test_bounds_that_are_none() -> None:
    for bounds in ({"limit": 0}, {"min_length": -1}, {"max_length": -1}):
        with pytest.raises(SelectionError, match="is at least"):
            select(expand(llama(1)), "**", **bounds)


# The path DAG


@given(nets())
@settings(max_examples=150, deadline=None)
def test_walks_of_the_dag_are_the_terms(case) -> None:
    net, rules = case
    expansion = expand(net, rules=rules)
    dag = path_graph(expansion)
    assert nx.is_directed_acyclic_graph(dag)
    assert count_paths(dag) == expansion.count() == int(dag.graph["count"])
    terms = by_hand(net, lambda site: rules[site.alias])[-1]
    assert sorted(path_texts(dag)) == sorted(" > ".join(term.hops) for term in terms)
    assert list(path_texts(dag)) == [str(path) for path in expansion.terms(budget=None)]
    on_a_walk = {node for node, facts in dag.nodes(data=True) if facts["role"] in ("source", "sink")}
    assert all(dag.in_degree(node) and dag.out_degree(node) for node in dag if node not in on_a_walk)


def test_attributes() -> None:
    expansion = expand(llama(1), 1)
    dag = path_graph(expansion)
    assert isinstance(dag, nx.MultiDiGraph)
    assert dag.graph == {"recipe": "exhaustive", "order": 1, "count": "18"}
    assert dag.nodes["site:L0.mlp^1"] == {
        "label": "L0.mlp^1",
        "hop": "L0.mlp^1",
        "point": 2,
        "alias": "L0.mlp",
        "path": "model.layers.0.mlp",
        "order": 1,
        "kind": "mlp",
        "role": "branch",
        "weight_symbol": "w[L0.mlp]",
        "weight_value": "1/3",
    }
    roles = {facts["role"] for _, facts in dag.nodes(data=True)}
    assert roles == {"source", "point", "branch", "decoder", "sink"}
    kinds = [(facts["role"], facts["kind"], facts["order"]) for *_, facts in dag.edges("site:logits^1", data=True)]
    assert kinds == [("decoder", "logits", 1)]
    assert dag.edges["point:0", "point:1", 0]["role"] == "skip"
    assert dag.edges["point:0", "point:1", 0]["kind"] == "identity"
    assert dag.edges["point:1", "site:L0.mlp^1", 0]["weight_symbol"] == "w[L0.mlp]"
    for facts in [facts for *_, facts in (*dag.nodes(data=True), *dag.edges(data=True))]:
        assert all(type(value) in (str, int) for value in facts.values())


def test_weights_given_by_centre_have_no_one_value() -> None:
    dag = path_graph(expand(llama(1), 0, weights={"embed": 2.0}))
    facts = dag.nodes["site:logits^0"]
    assert (facts["weight_symbol"], facts["weight_value"]) == ("w[logits]", "")


def test_the_dag_of_405b_is_small() -> None:
    expansion = expand(llama(126), 2)
    begin = time.perf_counter()
    dag = path_graph(expansion)
    assert count_paths(dag) == 4**252 * 3
    assert len(dag) == 1 + 253 + 252 * 3 + 3 + 1
    assert dag.number_of_edges() == 1 + 252 + 252 * 3 * 2 + 3 * 2
    assert time.perf_counter() - begin < 2


def test_the_dag_of_a_selection_is_short() -> None:
    expansion = expand(llama(126), 0)
    dag = path_graph(expansion, "embed > L3.mlp > logits")
    assert list(path_texts(dag)) == ["embed > L3.mlp^0 > logits^0"]
    assert [facts["label"] for _, facts in dag.nodes(data=True)] == [
        "embed", "h7", "L3.mlp^0", "h252", "logits^0", "output"
    ]  # fmt: skip
    paths = list(select(expansion, "**")[2**200 : 2**200 + 500])
    assert list(path_texts(path_graph(expansion, paths))) == [str(path) for path in paths]
    assert count_paths(path_graph(expansion, select(expansion, "**")[:7])) == 7


def test_dag_of_a_lens_and_of_components() -> None:
    lens = path_graph(expand(llama(1), recipe="lens"))
    assert list(path_texts(lens)) == ["h0 > logits^0", "h1 > logits^0", "h2 > logits^0"]
    assert {lens.nodes[f"source:h{point}"]["kind"] for point in range(3)} == {"stream"}
    components = path_graph(expand(llama(1), 0, recipe="components"))
    assert sorted(path_texts(components)) == ["L0.attn > logits^0", "L0.mlp > logits^0", "embed > logits^0"]


# Graph files


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
    for expansion in (rich_expansion(), expand(llama(126), 1)):
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


@pytest.mark.parametrize("suffix", SUFFIXES[:-1])
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
    assert nx.read_gexf(tmp_path / "dag.gexf").nodes["site:L0.norm^1"]["order"] == 1
    content = json.loads(write_graph(dag, tmp_path / "dag.json").read_text(encoding="utf-8"))
    assert (content["directed"], content["multigraph"], len(content["nodes"])) == (True, True, len(dag))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pydot")
def test_dot_is_read_by_others(tmp_path: pathlib.Path) -> None:
    pydot = pytest.importorskip("pydot")
    dag = path_graph(rich_expansion())
    (graph,) = pydot.graph_from_dot_file(str(write_graph(dag, tmp_path / "dag.dot")))
    assert len(graph.get_nodes()) == len(dag)
    assert len(graph.get_edges()) == dag.number_of_edges()


def test_dot_of_others_is_read(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "other.dot"
    file.write_text('digraph G { // two edges\n a -> b -> "c d" [w=.5; k=x]\n b [label="x\\"y"] /* end */ }')
    dag = read_graph(file)
    assert list(dag.edges(data=True)) == [("a", "b", {"w": 0.5, "k": "x"}), ("b", "c d", {"w": 0.5, "k": "x"})]
    assert dag.nodes["b"] == {"label": 'x"y'}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.dot", "graph { a -- b }"),
        ("a.dot", "digraph { a -> }"),
        ("a.gv", "digraph { a; ~ }"),
        ("a.json", "{"),
        ("a.json", "[]"),
        ("a.json", "[" * 100_000),
        ("a.json", '{"nodes": 3, "edges": []}'),
        ("a.json", '{"nodes": [{"id": {}}], "edges": []}'),
        ("a.json", '{"nodes": [{"id": "a"}], "edges": [{"source": "a"}]}'),
        ("a.json", '{"nodes": [], "edges": [], "graph": "text"}'),
        ("a.json", '{"nodes": [], "edges": [], "graph": {"count": ' + "9" * 5000 + "}}"),
        ("a.dot", 'digraph { "' + "a" * 9 + "\\"),
        ("a.dot", "digraph { a [1=2] }"),
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
    with pytest.raises(nx.NetworkXError):
        write_graph(broken, file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
