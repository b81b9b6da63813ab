"""Terms by size against the compiled module's terms, looked at by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import jetgraph as jg
from jetgraph.applications.readout import token_text
from jetgraph.loading import Loaded, load
from tests.conftest import Example
from tests.zoo import case


@pytest.fixture(scope="module")
def demo() -> tuple[Loaded, jg.ResidualGraph]:
    loaded = load("demo")
    return loaded, loaded.trace(loaded.inputs())


def test_terms_are_those_of_the_expansion(demo: tuple[Loaded, jg.ResidualGraph], tmp_path: Path) -> None:
    loaded, graph = demo
    expansion = jg.expand(graph, order=1, recipe="components")
    inputs = loaded.inputs("Raise Value")
    found = jg.terms(expansion, inputs, tokenizer=loaded.tokenizer)
    with torch.no_grad():
        values = jg.compile(expansion)(**inputs)
        output = loaded.model(**inputs).logits[0, -1].double()
    assert not found.alone
    assert {term.path for term in found.terms} == set(map(str, values.terms))
    norms = [term.norm for term in found.terms]
    assert norms == sorted(norms, reverse=True)
    best = int(output.argmax())
    for term in found.terms:
        logits = values.terms[jg.Path.parse(term.path)][0, -1].double()
        centred = logits - logits.mean()
        assert term.norm == pytest.approx(float(centred.norm()), rel=1e-4)
        assert term.share == pytest.approx(float(centred[best]), rel=1e-3, abs=1e-3)
        # Where no length of a centre fits the stream at this token, its term of order 1 is zero.
        angle = float(torch.corrcoef(torch.stack([output, logits]))[0, 1]) if logits.any() else 0.0
        assert term.cosine == pytest.approx(angle, abs=1e-4)
        assert term.says.startswith(token_text(loaded.tokenizer, int(logits.argmax())))
    assert found.best == (repr(loaded.tokenizer.decode([best])),)
    torch.testing.assert_close(found.total[0], values.total[0, -1].double(), rtol=1e-4, atol=1e-3)
    rest = output - found.total[0]
    size = output - output.mean()
    assert float(found.rest) == pytest.approx(float((rest - rest.mean()).norm() / size.norm()), rel=1e-3)
    assert found.save(tmp_path / "terms.csv").read_text().startswith("example,norm,path")
    assert found.figure().axes[0].get_xlabel() == "‖centred logits‖"


def test_values_on_path_graphs(demo: tuple[Loaded, jg.ResidualGraph], tmp_path: Path) -> None:
    """Of terms, of a module's values and of a ranking alike; kept by files."""
    loaded, graph = demo
    inputs = loaded.inputs("Raise Value")
    expansion = jg.expand(graph, order=0)
    paths = jg.select(expansion, "embed > *.mlp > logits")
    terms = jg.terms(expansion, inputs, paths, tokenizer=loaded.tokenizer)
    values = jg.compile(expansion, paths)(**inputs)
    ranking = jg.rank(expansion, inputs, target=int(terms.output[0].argmax()), path=paths)
    assert jg.view(ranking, tmp_path / "ranking.html").title == ranking.title
    assert "Content-Security-Policy" in (tmp_path / "ranking.html").read_text(encoding="utf-8")
    dags = [jg.path_graph(expansion, paths, values=found) for found in (terms, values, ranking)]
    row = terms.output[0].double()
    best, last = int(row.argmax()), values.terms["embed > L1.mlp^0 > logits^0"][0, -1].detach().double()
    for dag in dags:
        assert dag.graph["total"] == pytest.approx(float(row[best] - row.mean()), rel=1e-5)
        nodes = [facts for _, facts in dag.nodes(data=True) if facts["alias"] == "L1.mlp"]
        assert sum(facts["value"] for facts in nodes) == pytest.approx(float(last[best] - last.mean()), rel=1e-4)
    assert dags[0].nodes["sink"]["position"] == inputs["input_ids"].shape[1] - 1
    assert dags[0].nodes["sink"]["token"] == token_text(loaded.tokenizer, int(inputs["input_ids"][0, -1]))
    for suffix in (".graphml", ".gexf", ".json"):
        again = jg.read_graph(jg.write_graph(dags[0], tmp_path / f"a{suffix}"))
        assert dict(again.nodes(data=True)) == dict(dags[0].nodes(data=True))
    with pytest.raises(jg.InputError, match="no target=100000"):
        values.scores(100000)
    with pytest.raises(jg.InputError, match=r"examples 0\.\.0"):
        terms.scores(1)


def test_chosen_terms_of_each_row(traced: Callable[..., Example]) -> None:
    example = traced(case("gpt2"))
    expansion = jg.expand(example.graph, order=0)
    found = jg.terms(expansion, example.inputs, jg.select(expansion, "embed > *.mlp > logits"))
    examples = [term.example for term in found.terms]
    assert examples == sorted(examples)
    assert set(examples) == set(range(len(example.output)))
    assert len({term.path for term in found.terms}) * len(example.output) == len(found)


def test_orders_of_a_chain_add_up(demo: tuple[Loaded, jg.ResidualGraph]) -> None:
    loaded, graph = demo
    found = jg.terms(
        jg.expand(graph, recipe="lens", order=1, layers=[0, -1]), "Raise Value", tokenizer=loaded.tokenizer
    )
    lens = jg.lens(graph, "Raise Value", order=1, layers=[0, -1], tokenizer=loaded.tokenizer)
    assert found.alone
    assert found.terms[-1].remainder < 1e-5
    expected = lens.comparison.kl[:, :, 0, -1].flatten().tolist()
    assert [term.kl for term in found.terms if term.path.startswith("h")] == pytest.approx(expected, abs=1e-3, rel=1e-3)


def test_scores_of_a_chain_are_those_of_its_orders(demo: tuple[Loaded, jg.ResidualGraph]) -> None:
    loaded, graph = demo
    inputs = loaded.inputs("Raise Value")
    expansion = jg.expand(graph, order=1, recipe="lens")
    found = jg.terms(expansion, inputs, tokenizer=loaded.tokenizer).scores()
    values = jg.compile(expansion)(**inputs).scores()
    assert found.by_path == pytest.approx(dict(values.by_path), abs=1e-4)
    assert found.total == pytest.approx(values.total, rel=1e-5)


def test_terms_of_a_model_are_its_direct_attribution(demo: tuple[Loaded, jg.ResidualGraph]) -> None:
    loaded, _ = demo
    found = jg.terms(loaded, "Raise Value", split="heads")
    assert any(".head" in term.path for term in found.terms)
    assert float(found.rest) < 1e-5


def test_what_cannot_be_told(demo: tuple[Loaded, jg.ResidualGraph]) -> None:
    loaded, graph = demo
    with pytest.raises(jg.BudgetError, match="more than the 10,000 that are told one by one"):
        jg.terms(jg.expand(graph, order=1, orders="apart"), "Raise Value", tokenizer=loaded.tokenizer)
    with pytest.raises(jg.InputError, match="comes too late"):
        jg.terms(jg.expand(graph, order=0), "Raise", split="heads", tokenizer=loaded.tokenizer)
