"""Faithfulness against ablations by hooks on the model itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.applications.attribution.graphs import Attribution
from tests.compilation.test_flows import one_example
from tests.conftest import Example
from tests.zoo import case

MODULES = {f"L{i}.{kind}": f"transformer.h.{i}.{kind}" for i in range(2) for kind in ("attn", "mlp")}


@pytest.fixture(scope="module")
def given(traced: Callable[..., Example]) -> tuple[nn.Module, dict[str, Any], Attribution]:
    example = traced(case("gpt2"))
    inputs = one_example(example.inputs)
    return example.model, inputs, jg.attribute(example.graph, inputs, target=(3, 5))


def ablated(
    model: nn.Module, inputs: dict[str, Any], kept: set[tuple[str, int]], others: dict[str, Tensor] | None
) -> float:
    """logit 3 − logit 5 with hooks in the place of all that is not kept."""
    handles = []
    for alias, path in MODULES.items():

        def replace(module: nn.Module, given: Any, value: Any, alias: str = alias) -> Any:
            whole = (value[0] if isinstance(value, tuple) else value).clone()
            for position in range(whole.shape[1]):
                if (alias, position) not in kept:
                    whole[:, position] = (
                        0 if others is None else others[alias][:, min(position, others[alias].shape[1] - 1)]
                    )
            return (whole, *value[1:]) if isinstance(value, tuple) else whole

        handles.append(model.get_submodule(path).register_forward_hook(replace))
    try:
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()
    return float(logits[3] - logits[5])


def values_on(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
    found: dict[str, Any] = {}

    def keep(alias: str) -> Any:
        def hook(module: nn.Module, given: Any, value: Any) -> None:
            found[alias] = value[0] if isinstance(value, tuple) else value

        return hook

    handles = [model.get_submodule(path).register_forward_hook(keep(alias)) for alias, path in MODULES.items()]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return found


def ranked(graph: Attribution, by: str) -> Sequence[tuple[str, int]]:
    nodes = [node for node in graph.nodes if node.alias in MODULES]
    nodes.sort(key=lambda node: -(node.influence if by == "influence" else abs(node.flow)))
    return [(node.alias, node.position or 0) for node in nodes]


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
@pytest.mark.parametrize("by", ["influence", "flow"])
def test_curves_are_those_of_hooks(
    ablation: Any, by: Any, given: tuple[nn.Module, dict[str, Any], Attribution]
) -> None:
    model, inputs, graph = given
    others = [one_example(case("gpt2").inputs(3)), {**inputs, "input_ids": inputs["input_ids"].flip(1)}]
    prompts = None if ablation == "zero" else others
    values = [values_on(model, one) for one in others]
    fillings: list[dict[str, Tensor] | None] = [None]
    if ablation == "mean":
        fillings = [
            {alias: torch.cat([one[alias] for one in values], dim=1).mean(1, keepdim=True) for alias in MODULES}
        ]
    if ablation == "resample":
        fillings = list(values)
    order = ranked(graph, by)
    found = jg.faithfulness(graph, ablation=ablation, prompts=prompts, by=by, sizes=(0.1, 0.3, 0.6))
    without = jg.faithfulness(graph, ablation=ablation, prompts=prompts, by=by, sizes=(0.1, 0.3, 0.6), inside=True)
    assert [one.components for one in found.circuits] == [0, 3, 8, 17, 28]
    for circuit, other in zip(found.circuits, without.circuits, strict=True):
        first = set(order[: circuit.components])
        for one, kept in ((circuit, first), (other, set(order) - first)):
            expected = sum(ablated(model, inputs, kept, filling) for filling in fillings) / len(fillings)
            assert one.value == pytest.approx(expected, rel=1e-3, abs=1e-4)
    none, whole = found.circuits[0].value, found.circuits[-1].value
    assert whole == pytest.approx(graph.output, rel=1e-4, abs=1e-5)
    for one in found.circuits:
        assert one.faithfulness == pytest.approx((one.value - none) / (whole - none), abs=1e-6)
    shares = torch.tensor([one.share for one in found.circuits])
    heights = torch.tensor([one.faithfulness for one in found.circuits])
    assert found.cpr == pytest.approx(float(torch.trapezoid(heights, shares)), rel=1e-5)
    assert found.cmd == pytest.approx(float(torch.trapezoid((1 - heights).abs(), shares)), rel=1e-5)


def test_the_graph_itself(given: tuple[nn.Module, dict[str, Any], Attribution]) -> None:
    model, inputs, graph = given
    pruned = graph.prune(0.6)
    found = jg.faithfulness(pruned)
    kept = {(node.alias, node.position or 0) for node in pruned.nodes if node.alias in MODULES}
    assert found.kept.components == len(kept)
    assert found.kept.value == pytest.approx(ablated(model, inputs, kept, None), rel=1e-3, abs=1e-4)
    assert found.figure().axes[0].get_ylabel() == "faithfulness"
    assert list(found.columns()) == ["share", "components", "value", "faithfulness"]


def test_branches_are_ablated_whole_where_their_ways_are_told_apart(
    given: tuple[nn.Module, dict[str, Any], Attribution], traced: Callable[..., Example]
) -> None:
    model, inputs, _ = given
    graph = jg.attribute(traced(case("gpt2")).graph, inputs, target=(3, 5), rules="gradient")
    flow: dict[tuple[str, int], float] = {}
    for node in graph.nodes:
        if node.kind in ("attn", "mlp"):
            key = (node.alias.removesuffix(".q").removesuffix(".k").removesuffix(".v"), node.position or 0)
            flow[key] = flow.get(key, 0.0) + node.flow
    order = sorted(flow, key=lambda key: -abs(flow[key]))
    found = jg.faithfulness(graph, by="flow", sizes=(0.2, 0.5))
    assert [one.components for one in found.circuits] == [0, 6, 14, 28]
    for circuit in found.circuits:
        expected = ablated(model, inputs, set(order[: circuit.components]), None)
        assert circuit.value == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_heads_are_ablated_one_by_one(traced: Callable[..., Example]) -> None:
    example = traced(case("gpt2"))
    inputs = one_example(example.inputs)
    graph = jg.attribute(example.graph, inputs, target=(3, 5), split="heads")
    found = jg.faithfulness(graph, sizes=(0.2,))
    assert found.circuits[-1].value == pytest.approx(graph.output, rel=1e-4, abs=1e-5)
    # Without anything: the constants of the output projections stay, as they belong to no head.
    model: Any = example.model
    biases = {f"L{i}.attn": model.transformer.h[i].attn.c_proj.bias.view(1, 1, -1) for i in range(2)}
    nothing = biases | {f"L{i}.mlp": torch.zeros(1, 1, model.config.n_embd) for i in range(2)}
    assert found.circuits[0].value == pytest.approx(ablated(model, inputs, set(), nothing), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": torch.tensor([[1, 2]])}, "not for"),
        ({"ablation": "mean"}, "takes values of other prompts"),
        ({"ablation": "mean", "prompts": []}, "no prompt"),
        ({"ablation": "resample", "prompts": torch.tensor([[1, 2]])}, "of its length"),
        ({"ablation": "none"}, "unknown"),
        ({"by": "name"}, "unknown"),
        ({"sizes": (2.0,)}, "shares"),
    ],
)
def test_what_does_not_fit_is_refused(
    options: Any, message: str, given: tuple[nn.Module, dict[str, Any], Attribution]
) -> None:
    with pytest.raises(jg.InputError, match=message):
        jg.faithfulness(given[2], **options)
