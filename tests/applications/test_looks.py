"""A call looks at a model's code once, however often it runs and compiles, and the next call looks again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

import jetgraph as jg
from jetgraph.residual import check_code, one_look
from jetgraph.tracing.code import Code

IDS = torch.arange(6)[None] * 7
OTHER = IDS.flip(1)
Call = Callable[[jg.ResidualGraph], Any]

CALLS: dict[str, Call] = {
    "a replay": lambda graph: graph(input_ids=IDS),
    "a pass": lambda graph: graph.run(input_ids=IDS).output,
    "a module": lambda graph: jg.compile(jg.expand(graph, recipe="frozen"), "embed > *.mlp > logits")(input_ids=IDS),
    "attribute": lambda graph: jg.attribute(graph, IDS),
    "attribute, prompts": lambda graph: jg.attribute(graph, [IDS, OTHER]),
    "rank": lambda graph: jg.rank(graph, IDS, top=3),
    "spectrum": lambda graph: jg.spectrum(graph, IDS, by="attn"),
    "lens": lambda graph: jg.lens(graph, IDS),
    "lens, order found": lambda graph: jg.lens(graph, IDS, order="auto"),
    "joint_lens": lambda graph: jg.joint_lens(graph, IDS),
    "evaluate_lens": lambda graph: jg.evaluate_lens(graph, IDS.repeat(4, 1), resamples=10),
    "jet_expand": lambda graph: jg.jet_expand(graph, IDS, at="L3.mlp", centres=["embed", "L0.attn"]),
    "terms": lambda graph: jg.terms(graph, IDS),
    "ablate": lambda graph: jg.ablate(graph, None, IDS),
    "ablate, exchanged": lambda graph: jg.ablate(graph, None, IDS, corrupt=OTHER),
    "patch": lambda graph: jg.patch(graph, IDS, OTHER, senders="embed", receivers="L3.mlp"),
    "attention_patterns": lambda graph: jg.attention_patterns(graph, IDS),
    "ngrams": lambda graph: jg.ngrams(graph, "embed > L0.mlp > logits", first=[1, 2], top=3),
    "compare": lambda graph: jg.compare(graph, graph, [IDS]),
    "diff": lambda graph: jg.diff(graph, graph, contexts=[1, 2], top=3),
}


@pytest.fixture(scope="module")
def pristine() -> tuple[Any, jg.ResidualGraph]:
    named = jg.load_model("demo")
    return named.model, named.trace({"input_ids": IDS})


@pytest.fixture
def pair(pristine: tuple[Any, jg.ResidualGraph]) -> tuple[Any, jg.ResidualGraph]:
    return copy.deepcopy(pristine)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Code]:
    """What was looked at, in order."""
    found: list[Code] = []
    changes = Code.changes

    def counted(code: Code) -> Any:
        found.append(code)
        return changes(code)

    monkeypatch.setattr(Code, "changes", counted)
    return found


@pytest.mark.parametrize("name", CALLS)
def test_a_call_looks_once_and_the_next_one_again(
    name: str, pair: tuple[Any, jg.ResidualGraph], looks: list[Code]
) -> None:
    (model, graph), call = pair, CALLS[name]
    for _ in range(2):
        looks.clear()
        call(graph)
        assert len(looks) == 1
    model.transformer.h[1].register_forward_hook(lambda *_: None)
    with pytest.raises(jg.StateError, match="forward hooks"):
        call(graph)


LATER: dict[str, tuple[Call, Callable[[jg.ResidualGraph, Any], Any]]] = {
    "faithfulness": (
        lambda graph: jg.attribute(graph, IDS),
        lambda _, attribution: jg.faithfulness(attribution, sizes=[0.5]),
    ),
    "transport_lens": (
        lambda graph: jg.fit_transport(graph, IDS),
        lambda graph, transport: jg.transport_lens(graph, IDS, transport),
    ),
}


@pytest.mark.parametrize("name", LATER)
def test_what_goes_on_from_a_result_looks_again(
    name: str, pair: tuple[Any, jg.ResidualGraph], looks: list[Code]
) -> None:
    (model, graph), (before, after) = pair, LATER[name]
    found = before(graph)
    looks.clear()
    after(graph, found)
    assert len(looks) == 1
    model.transformer.h[0].mlp.act = torch.nn.ReLU()
    with pytest.raises(jg.StateError):
        after(graph, found)


def test_two_models_are_looked_at_each(pair: tuple[Any, jg.ResidualGraph], looks: list[Code]) -> None:
    model, graph = pair
    other = copy.deepcopy(model)
    two = graph.over(other)
    looks.clear()
    jg.compare(graph, two, [IDS])
    assert len(looks) == len({id(code) for code in looks}) == 2
    other.transformer.h[1].register_forward_hook(lambda *_: None)
    with pytest.raises(jg.StateError, match="forward hooks"):
        jg.compare(graph, two, [IDS])


def test_what_was_refused_is_looked_at_again(pair: tuple[Any, jg.ResidualGraph], looks: list[Code]) -> None:
    model, graph = pair
    with one_look():
        handle = model.transformer.h[1].register_forward_hook(lambda *_: None)
        for _ in range(2):
            with pytest.raises(jg.StateError):
                check_code(graph)
        handle.remove()
        with one_look():
            check_code(graph)
        check_code(graph)
    assert len(looks) == 3
    check_code(graph)
    assert len(looks) == 4
