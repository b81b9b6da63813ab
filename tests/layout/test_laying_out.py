"""Where the nodes of graphs stand."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import networkx as nx
import pytest

import jetgraph as jg
from jetgraph.algebra.outline import JoinStep, Outline
from jetgraph.layout.coordinates import WIDEST, box_width, read_way
from jetgraph.layout.laying_out import is_laid_out, lay_out
from jetgraph.layout.streams import along_stream
from tests.outlines import branch, decoder, gpt2, join, llama, outline


def with_heads(layers: int, heads: int) -> Outline:
    whole = llama(layers)
    steps = [
        replace(step, branches=tuple(branch(f"{step.branches[0].alias}.head{i}") for i in range(heads)))
        if isinstance(step, JoinStep) and step.branches[0].kind == "attn"
        else step
        for step in whole.steps
    ]
    return replace(whole, steps=tuple(steps))


def overlaps(dag: nx.MultiDiGraph) -> list[tuple[str, str]]:
    """Pairs of boxes that touch."""
    boxes = [
        (node, facts["x"], facts["y"], box_width(facts["label"]) / 2)
        for node, facts in dag.nodes(data=True)
        if facts["role"] != "point"
    ]
    return [
        (one[0], other[0])
        for one, other in combinations(boxes, 2)
        if abs(one[1] - other[1]) < one[3] + other[3] and abs(one[2] - other[2]) < 24
    ]


@pytest.mark.parametrize("recipe", ["exhaustive", "components", "frozen", "lens"])
def test_thirty_layers_of_nine_heads_fit_a_page_and_do_not_overlap(recipe: str) -> None:
    dag = jg.path_graph(jg.expand(with_heads(30, 9), recipe=recipe))
    assert is_laid_out(dag)
    assert overlaps(dag) == []
    left, right = (extreme(x for _, x in dag.nodes(data="x")) for extreme in (min, max))
    assert right - left < 1.3 * WIDEST


def test_no_line_has_the_output_alone() -> None:
    dag = jg.path_graph(jg.expand(gpt2(4), recipe="frozen"))
    for page in range(300, 1400, 60):
        line = along_stream(dag, page).line
        assert sum(one == line["sink"] for one in line.values()) > 1, page


@pytest.mark.parametrize(
    "net",
    [
        outline(
            join(branch("L0.a"), branch("L0.b"), bias=True),
            join(branch("L1.a", reads=0)),
            join(branch("L2.a", reads=0)),
        ),
        gpt2(12),
        outline(join(branch("L0.a")), last=decoder(bias=True)),
        outline(),
    ],
    ids=["long skips", "gpt2", "biased decoder", "none"],
)
def test_streams_that_part_do_not_overlap(net: Outline) -> None:
    expansion = jg.expand(net, 3, orders="apart")
    for paths in (None, jg.select(expansion, "**", limit=9)):
        dag = jg.path_graph(expansion, paths)
        assert overlaps(dag) == []
        for start, end, facts in dag.edges(data=True):
            stops = [dag.nodes[start]["x"], *(x for x, _ in read_way(facts["way"])), dag.nodes[end]["x"]]
            assert stops == sorted(stops) or facts["way"], "an edge goes back only where a line ends"


def test_rows_of_chosen_paths_cross_little() -> None:
    """Two chains that have nothing in common stand one above the other."""
    dag = jg.path_graph(
        jg.expand(llama(4), 0), ["embed > L0.attn > L1.attn > logits", "embed > L2.mlp > L3.mlp > logits"]
    )
    level = {facts["alias"]: facts["y"] for _, facts in dag.nodes(data=True) if facts["role"] == "branch"}
    assert (level["L0.attn"] - level["L2.mlp"]) * (level["L1.attn"] - level["L3.mlp"]) > 0


def test_graphs_of_other_kinds_are_refused() -> None:
    with pytest.raises(jg.InputError, match="no role, point and label"):
        lay_out(nx.MultiDiGraph([("a", "b")]))
    assert len(lay_out(nx.MultiDiGraph())) == 0
