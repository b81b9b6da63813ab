"""Sources that are computed together, against each by itself, and what they cost."""

from __future__ import annotations

import pytest
import torch
import transformers

import jetgraph as jg
from jetgraph.compilation import stacking
from jetgraph.compilation.snapshot import Snapshot
from tests.operators import Operators, peak
from tests.zoo import CASES

BY_NAME = {case.name: case for case in CASES}


def direct(graph: jg.ResidualGraph, memory: int | None = None) -> jg.PathModule:
    expansion = jg.expand(graph, recipe="components", rules={"logits": jg.Freeze()}, split="heads")
    return jg.compile(expansion, memory=memory)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
@torch.no_grad()
def test_in_any_memory_each_head_is_what_it_is_alone(name: str) -> None:
    """Of batches of all sizes, which end inside of layers, and are done again where they are alike."""
    case = BY_NAME[name]
    inputs = case.inputs()
    graph = jg.trace(case.build().double(), **inputs, dynamic=False)
    module = direct(graph)
    expected = dict(module(**inputs).hidden)
    largest = max(value.nbytes for value in expected.values())
    for number in (1, 2, 3, 5):
        found = direct(graph, 3 * 4 * number * largest)(**inputs).hidden
        for path, value in expected.items():
            torch.testing.assert_close(found[path], value, rtol=1e-12, atol=1e-12)
    # By itself, and in the place of all.
    for path in [path for path in module.paths if "head" in str(path)][:3]:
        alone = jg.compile(module.expansion, path)(**inputs).hidden[path]
        torch.testing.assert_close(alone, expected[path], rtol=1e-12, atol=1e-12)


def llama(heads: int) -> transformers.LlamaForCausalLM:
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=heads, vocab_size=11
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def trace(model: transformers.LlamaForCausalLM) -> jg.ResidualGraph:
    return jg.trace(model, input_ids=torch.tensor([[1, 2, 3]]).to(model.device))


@torch.no_grad()
def test_more_heads_are_no_more_operators() -> None:
    """Neither in one stack nor at one position."""
    ids = torch.tensor([[1, 2, 3, 4]])
    counts = []
    for heads in (2, 16):
        module = direct(trace(llama(heads)))
        # Which columns a head has is found out once.
        module(input_ids=ids)
        module.at(-1, input_ids=ids)
        with Operators() as all_positions:
            list(module(input_ids=ids).hidden.values())
        with Operators() as one_position:
            list(module.at(-1, input_ids=ids).hidden.values())
        counts.append((all_positions.counts.total(), one_position.counts.total()))
    assert counts[0] == counts[1]


@torch.no_grad()
def test_few_values_are_there_besides_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much memory there is: what passes a centre in one batch is there twice, as it enters and as it leaves."""
    monkeypatch.setattr(stacking, "LITTLE", 1)
    module, ids = direct(trace(llama(16))), torch.arange(64)[None] % 11

    def work() -> list[torch.Tensor]:
        return list(module(input_ids=ids).hidden.values())

    results = sum(value.nbytes for value in work())
    work()
    assert results < peak(work) < 1.5 * results


@torch.no_grad()
def test_a_snapshot_is_a_module_without_parameters() -> None:
    model = llama(2)
    graph = trace(model)
    expansion = jg.expand(graph, recipe="path")
    paths = list(jg.select(expansion, "embed > L*.mlp > logits"))
    snapshot, module = Snapshot(expansion, paths), jg.compile(expansion, paths)
    ids = torch.tensor([[5, 6]])

    def found(values: jg.PathValues) -> torch.Tensor:
        return torch.stack([*values.hidden.values()])

    assert torch.equal(found(snapshot(input_ids=ids)), found(module(input_ids=ids)))
    before = found(snapshot(input_ids=ids))
    # In place the weights are the model's; a model that has moved is another one.
    model.get_parameter("model.layers.0.mlp.down_proj.weight").mul_(2)
    assert not torch.equal(found(snapshot(input_ids=ids)), before)
    changed = found(snapshot(input_ids=ids))
    model.double()
    assert torch.equal(found(snapshot(input_ids=ids)), changed)
    assert found(Snapshot(expansion, paths)(input_ids=ids)).dtype == torch.float64
    meta = trace(llama(2).to("meta"))
    with pytest.raises(jg.StateError, match="meta device"):
        Snapshot(jg.expand(meta, recipe="path"), paths)
