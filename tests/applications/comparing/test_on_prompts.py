"""Comparisons on prompts against sums worked out from the modules' own outputs, and against all paths."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.applications.comparing.prompt_changes import PromptComparison

PROMPTS = ["Raise Value", "return a new"]


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    """The bundled model, and one that says something else after the second prompt."""
    one = jg.load_model("demo")
    other = jg.load_model("demo")
    with torch.no_grad():
        other.model.transformer.h[2].mlp.c_proj.weight.mul_(-1.5)  # pyright: ignore[reportCallIssue]
        other.model.transformer.h[1].attn.c_proj.weight.mul_(2.0)  # pyright: ignore[reportCallIssue]
    return one, other


@pytest.fixture(scope="module")
def compared(models: tuple[Any, Any]) -> PromptComparison:
    return jg.compare(*models, PROMPTS, top=5)


@torch.no_grad()
def logits(loaded: Any, prompt: str) -> Tensor:
    return loaded.model(**loaded.tokenizer(prompt, return_tensors="pt")).logits[0, -1].double()


@torch.no_grad()
def given_directly(loaded: Any, module: nn.Module, prompt: str, weights: Tensor) -> float:
    """What the last norm, at its own scale, and the unembedding make of what a module adds at the last token."""
    seen: dict[str, Tensor] = {}
    body = loaded.model.transformer
    hooks = [
        module.register_forward_hook(lambda _, __, out: seen.update(out=(out[0] if isinstance(out, tuple) else out))),
        body.ln_f.register_forward_pre_hook(lambda _, args: seen.update(end=args[0])),
    ]
    loaded.model(**loaded.tokenizer(prompt, return_tensors="pt"))
    for hook in hooks:
        hook.remove()
    added, end = (seen[name][0, -1].double() for name in ("out", "end"))
    scale = (end.var(unbiased=False) + body.ln_f.eps).rsqrt()
    row = (added - added.mean()) * scale * body.ln_f.weight.double()
    return float(weights @ (loaded.model.lm_head.weight.double() @ row))


def test_components_are_what_modules_add(models: tuple[Any, Any], compared: PromptComparison) -> None:
    """The default target is what the second says against what the first says; with weights of its centred logits."""
    weights = []
    for prompt, row in zip(PROMPTS, compared.prompts.rows, strict=True):
        best = [int(logits(side, prompt).argmax()) for side in models]
        size = len(models[0].tokenizer)
        own = torch.zeros(size, dtype=torch.float64)
        own[best[1]] = 1.0
        if best[0] == best[1]:
            own -= 1 / size
        else:
            own[best[0]] -= 1.0
        weights.append(own)
        texts = [repr(models[0].tokenizer.decode([index])) for index in best]
        assert row.says == tuple(texts)
        assert row.target == (texts[1] if best[0] == best[1] else f"{texts[1]} − {texts[0]}")
        assert row.value == pytest.approx([float(own @ logits(side, prompt)) for side in models], abs=1e-4)
        p, q = (logits(side, prompt).softmax(-1) for side in models)
        assert row.probability == pytest.approx((float(p[best[1]]), float(q[best[1]])), abs=1e-6)
        assert row.kl == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-5)
    assert {row.says[0] == row.says[1] for row in compared.prompts.rows} == {True, False}
    columns = {
        name: dict(zip(compared.components.columns()["component"], cells, strict=True))
        for name, cells in compared.components.columns().items()
    }
    for side, end in zip(models, ("a", "b"), strict=True):
        for alias, module in {
            "L2.mlp": side.model.transformer.h[2].mlp,
            "L1.attn": side.model.transformer.h[1].attn,
        }.items():
            by_hand = [given_directly(side, module, *one) for one in zip(PROMPTS, weights, strict=True)]
            told = columns[f"direct_{end}"]
            assert told[alias] + told[f"{alias}.bias"] == pytest.approx(np.mean(by_hand), abs=1e-4)
    moved = np.mean([row.value[1] - row.value[0] for row in compared.prompts.rows])
    assert sum(columns["direct"].values()) == pytest.approx(moved, abs=1e-3)
    one = jg.attribute(models[1], PROMPTS[0], target=models[0].tokenizer.encode("Error")[0], positions=False)
    two = jg.compare(*models, PROMPTS[0], target="Error", top=1).components.columns()
    for name, value in zip(two["component"], two["through_b"], strict=True):
        assert value == pytest.approx({node.name: node.flow for node in one.nodes}[str(name)], abs=1e-4)


def test_a_head_that_gives_nothing_gives_0_and_is_not_missing() -> None:
    one, other = jg.load_model("demo"), jg.load_model("demo")
    with torch.no_grad():
        weight = other.model.transformer.h[1].attn.c_proj.weight  # pyright: ignore[reportAttributeAccessIssue]
        weight[2 * len(weight) // 4 : 3 * len(weight) // 4] = 0  # pyright: ignore
    told = jg.compare(one, other, PROMPTS[:1], target="Error", split="heads").components.columns()
    row = {name: cells[list(told["component"]).index("L1.attn.head2")] for name, cells in told.items()}
    assert (row["direct_b"], row["through_b"]) == (0, 0)
    assert row["direct"] == pytest.approx(-float(row["direct_a"]))


def test_no_other_path_changes_by_more(models: tuple[Any, Any], compared: PromptComparison) -> None:
    """Against all 512 · 2 paths and constants, each evaluated in both models."""
    assert compared.paths.exact
    values = []
    for side in models:
        graph = side.trace(side.inputs())
        frozen = jg.expand(graph, rules={"*": jg.Freeze()})
        means: dict[str, float] = {}
        for prompt, row in zip(PROMPTS, compared.prompts.rows, strict=True):
            tokens = [side.tokenizer.encode(text.strip("'").replace("\\n", "\n")) for text in row.target.split(" − ")]
            aim = (tokens[0][0], tokens[1][0]) if len(tokens) == 2 else tokens[0][0]
            found = jg.rank(frozen, prompt, target=aim, path="**", top=5_000, tokenizer=side.tokenizer).found
            for one in found:
                means[one.path] = means.get(one.path, 0.0) + one.value / len(PROMPTS)
        values.append(means)
    listed = dict(zip(compared.paths.values.names, compared.paths.values.change, strict=True))
    changes = {path: values[1][path] - values[0][path] for path in values[0]}
    for path, change in listed.items():
        assert change == pytest.approx(changes[path], abs=1e-4), path
    others = [abs(change) for path, change in changes.items() if path not in listed]
    assert 0 < max(others) <= compared.paths.beyond + 1e-4
    assert f"{compared.paths.beyond:.3g}" in compared.paths.note


def test_means_of_several_prompts_are_of_each(models: tuple[Any, Any], compared: PromptComparison) -> None:
    aims = []
    for prompt in PROMPTS:
        best = [int(logits(side, prompt).argmax()) for side in models]
        aims.append(best[0] if best[0] == best[1] else (best[1], best[0]))
    singles = [jg.compare(*models, prompt, target=aim, top=5) for prompt, aim in zip(PROMPTS, aims, strict=True)]
    columns = compared.columns()
    assert "direct_low" not in singles[0].columns()
    for name in ("direct_a", "direct_b", "direct", "through"):
        means = np.mean([one.columns()[name] for one in singles], axis=0)
        assert columns[name] == pytest.approx(means.tolist(), abs=1e-5)
    for low, mean, high in zip(columns["direct_low"], columns["direct"], columns["direct_high"], strict=True):
        assert low - 1e-9 <= mean <= high + 1e-9
    assert compared.paths.beyond == pytest.approx(np.mean([one.paths.beyond for one in singles]), rel=1e-4)
    again = jg.compare(*models, PROMPTS, target=aims, top=1)
    assert again.columns() == columns
    assert repr(compared).count("\n\n") == 2
    assert "2 prompts" in compared.title


def gpt2(layers: int, vocabulary: int = 40) -> nn.Module:
    torch.manual_seed(layers)
    config = transformers.GPT2Config(n_layer=layers, n_head=2, n_embd=8, vocab_size=vocabulary, n_positions=16)
    return transformers.GPT2LMHeadModel(config).eval()


def test_what_one_of_two_models_has_not() -> None:
    """Its change is all that it gives; by heads, and on token ids."""
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    found = jg.compare(gpt2(1), gpt2(2), ids, split="heads", top=3)
    columns = found.columns()
    rows = dict(
        zip(columns["component"], zip(*(columns[f"direct{end}"] for end in ("_a", "_b", "")), strict=True), strict=True)
    )
    assert rows["L1.attn.head1"][0] is None
    assert rows["L1.attn.head1"][1] == rows["L1.attn.head1"][2] != 0
    assert rows["L0.attn.head1"][2] == pytest.approx(rows["L0.attn.head1"][1] - rows["L0.attn.head1"][0])
    (row,) = found.prompts.rows
    assert row.prompt == "[3, 1, 4, 1, 5]"
    assert found.note.startswith("direct:")
    assert jg.compare(gpt2(1), gpt2(1), ids, top=1).note.startswith("nothing has changed")
    assert sum(columns["direct"]) == pytest.approx(row.value[1] - row.value[0], abs=1e-5)
    assert any(
        " L1." in path and before is None
        for path, before in zip(found.paths.columns()["path"], found.paths.columns()["a"], strict=True)
    )


@pytest.fixture(scope="module")
def small() -> jg.ResidualGraph:
    return jg.trace(gpt2(1), input_ids=torch.tensor([[1, 2, 3], [3, 4, 5]]))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"prompts": []}, jg.InputError, "no prompt"),
        ({"target": [1, 2, 3]}, jg.InputError, "3 targets for 1"),
        ({"top": 0}, jg.InputError, "looks for no path"),
        ({"top": 2_501}, jg.BudgetError, "take top=2500"),
        ({"memory": 64}, jg.BudgetError, "edges between components do not fit into memory=64: take more"),
        ({"prompts": torch.tensor([[1, 2], [3, 4]])}, jg.InputError, "one prompt"),
        ({"prompts": [7]}, jg.InputError, "takes as prompts"),
    ],
)
def test_what_does_not_fit(small: jg.ResidualGraph, arguments: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        jg.compare(small, small, **{"prompts": torch.tensor([[1, 2]]), **arguments})


def test_models_of_other_tokens(models: tuple[Any, Any]) -> None:
    with pytest.raises(jg.InputError, match="40 output tokens and"):
        jg.compare(gpt2(1), gpt2(1, 41), torch.tensor([[1, 2]]))
    # Of one vocabulary, but the second puts a token before each text.
    begun = copy.deepcopy(models[1].tokenizer)
    begun.backend_tokenizer.post_processor = TemplateProcessing(single="<> $A", special_tokens=[("<>", 0)])
    with pytest.raises(jg.InputError, match=r"as \[1, 7\] and .* as \[1, 8\], of other tokens"):
        jg.compare(models[0], replace(models[1], tokenizer=begun), "Raise Value")
