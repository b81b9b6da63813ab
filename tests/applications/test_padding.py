"""Padding is no token: results over a padded batch list what its rows list one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import jetgraph as jg
from jetgraph.applications.subject import subject
from jetgraph.loading import Loaded, load
from jetgraph.models import bundled
from tests import zoo
from tests.conftest import Example

PROMPTS = ["Raise Value", "for key in error values"]


@pytest.fixture(scope="module", params=["right", "left"])
def padded(request: pytest.FixtureRequest) -> tuple[jg.ResidualGraph, dict[str, Tensor]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(bundled("llama"), padding_side=request.param)
    inputs = dict(tokenizer(PROMPTS, padding=True, return_tensors="pt"))
    assert 0 in inputs["attention_mask"]
    return load("demo:llama").trace(inputs), inputs


def alone(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    kept = inputs["attention_mask"][row] != 0
    return {name: value[row : row + 1, kept] for name, value in inputs.items()}


def rows_of(columns: Any, row: int, *names: str) -> list[Any]:
    number = [place for place, one in enumerate(columns["example"]) if one == row]
    return [columns[name][place] for name in names for place in number]


def test_lenses_list_tokens(padded: Any) -> None:
    graph, inputs = padded
    found = jg.lens(graph, inputs, order=1, layers="*.mlp")
    columns = found.columns()
    tokens = int(inputs["attention_mask"].sum())
    assert len(found) == 2 * len(found.points) * tokens
    assert f"{tokens} tokens" in found.title
    for row in (0, 1):
        single = jg.lens(graph, alone(inputs, row), order=1, layers="*.mlp").columns()
        assert rows_of(columns, row, "token", "top", "says") == rows_of(single, 0, "token", "top", "says")
        assert rows_of(columns, row, "kl") == pytest.approx(rows_of(single, 0, "kl"), rel=1e-3, abs=1e-4)
    panel = found.figure(row=0).axes[0]
    assert len(panel.get_xticks()) == int(inputs["attention_mask"][0].sum())


def test_joint_lenses_list_tokens(padded: Any) -> None:
    graph, inputs = padded
    found = jg.joint_lens(graph, inputs)
    tokens = int(inputs["attention_mask"].sum())
    assert len(found) == tokens * len(found.components)
    assert f"{tokens} tokens" in found.title
    assert found.gap < 1e-8
    columns = found.columns()
    for row in (0, 1):
        single = jg.joint_lens(graph, alone(inputs, row)).columns()
        assert rows_of(columns, row, "token", "component") == rows_of(single, 0, "token", "component")
        assert rows_of(columns, row, "remainder") == pytest.approx(rows_of(single, 0, "remainder"), rel=1e-3)
    assert len(found.figure(row=0).axes[1].get_xticks()) == int(inputs["attention_mask"][0].sum())


class Words:
    """A tokenizer of the numbers of words."""

    pad_token_id = 1

    def __init__(self, side: str) -> None:
        self.padding_side = side

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [3 + len(word) for word in text.split()]}

    def decode(self, ids: list[int]) -> str:
        return f"w{ids[0]}"

    def __len__(self) -> int:
        return 53


@pytest.mark.parametrize(("name", "side"), [("gpt2", "left"), ("opt", "left"), ("bert", "left"), ("bert", "right")])
def test_prompts_of_any_length_are_as_by_themselves(name: str, side: str) -> None:
    """Padded where the tokenizer says, with a mask and the positions of tokens; BERT counts from the left."""
    model = Loaded(name, zoo.case(name).build(), Words(side))
    prompts = ["a bb ccc", "dddd", "a e ff ggg hhhh"]
    graph = subject(model, prompts).graph
    found, alone = (jg.lens(graph, text, order=1, layers="*.mlp", tokenizer=Words(side)) for text in (prompts, "dddd"))
    assert found.counted is not None
    assert found.counted.sum(1).tolist() == [3, 1, 5]
    assert bool(found.counted[1, -1]) is (side == "left" and name != "bert")
    kept = found.counted[1]
    torch.testing.assert_close(found.logits[:, :, 1][:, :, kept], alone.logits[:, :, 0], rtol=1e-4, atol=1e-4)
    for row, prompt in enumerate(prompts):
        own = model.model(torch.tensor([Words(side)(prompt)["input_ids"]])).logits[0]
        torch.testing.assert_close(found.output[row, found.counted[row]], own, rtol=1e-4, atol=1e-4)


TINY: dict[str, Any] = {"vocab_size": 53, "max_position_embeddings": 40}
ROBERTA: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TROCR: dict[str, Any] = {"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}


@torch.no_grad()
def test_padding_is_on_the_right_where_the_left_changes_what_is_made_of_a_text() -> None:
    """Positions from another number than 0, positions in order of place, an encoder's, and a recurrence."""
    torch.manual_seed(0)
    models = {
        "roberta": transformers.RobertaForCausalLM(transformers.RobertaConfig(is_decoder=True, **TINY, **ROBERTA)),
        "trocr": transformers.TrOCRForCausalLM(transformers.TrOCRConfig(**TINY, **TROCR)),
        "rwkv": transformers.RwkvForCausalLM(
            transformers.RwkvConfig(vocab_size=53, hidden_size=16, num_hidden_layers=2)
        ),
        **{name: zoo.case(name).build() for name in ("bart", "gpt2")},
    }
    prompts = ["a bb ccc", "dddd", "a e ff ggg hhhh"]
    for name, model in models.items():
        loaded = Loaded(name, model.eval(), Words("left"))
        given = loaded.inputs(prompts)
        assert bool(given["attention_mask"][1, 0]) is (name != "gpt2")
        output = loaded.model(**given).logits
        for row, text in enumerate(prompts):
            own = loaded.model(**loaded.inputs(text)).logits[0]
            kept = slice(None) if name == "bart" else given["attention_mask"][row] != 0  # one token, of the decoder
            torch.testing.assert_close(output[row, kept], own, rtol=1e-4, atol=1e-4)
    with pytest.raises(jg.InputError, match="does not count the positions of tokens from 0"):
        Loaded("roberta", models["roberta"], Words("left")).inputs("a bb", ["attention_mask", "position_ids"])


def test_a_graph_with_a_mask_takes_any_prompts(padded: Any, traced: Callable[..., Example]) -> None:
    """Of one length too, whose mask is full; one without a mask says what to do."""
    graph, inputs = padded
    # Without positions among its inputs, it is given padding on the right alone.
    tokenizer = transformers.AutoTokenizer.from_pretrained(bundled("llama"), padding_side="left")
    found, direct = jg.lens(graph, PROMPTS, tokenizer=tokenizer), jg.lens(graph, inputs)
    assert found.counted is not None
    assert bool(found.counted[:, 0].all())
    for row in (0, 1):
        kept = inputs["attention_mask"][row] != 0
        ours, theirs = (one[row][mask] for one, mask in ((found.output, found.counted[row]), (direct.output, kept)))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    single = jg.lens(graph, PROMPTS[0], tokenizer=tokenizer)
    assert single.counted is not None
    assert bool(single.counted.all())
    with pytest.raises(jg.InputError, match="between 1 and 2 tokens, but this graph was traced without"):
        jg.lens(traced(zoo.case("gpt2")).graph, ["a", "b c"], tokenizer=Words("left"))


def test_effects_at_every_position_are_those_of_tokens(padded: Any) -> None:
    graph, inputs = padded
    places = [tuple(place) for place in inputs["attention_mask"].nonzero().tolist()]
    found = jg.ablate(graph, "L1.attn > logits", inputs, target=5, position=None)
    assert [(one.example, one.position) for one in found.effects] == places
    other = inputs | {"input_ids": inputs["input_ids"].flip(1) * inputs["attention_mask"]}
    patched = jg.patch(graph, inputs, other, senders="L0.mlp", receivers="logits", target=5, position=None)
    assert torch.equal(patched.effects[0, 0].isnan(), inputs["attention_mask"] == 0)
    kept = patched.totals[0][inputs["attention_mask"] != 0]
    assert patched.columns()["total"] == pytest.approx([float(kept.mean())])


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "bert"])
def test_attributions_and_rankings_of_several_prompts_are_those_of_each(name: str) -> None:
    """Texts of any length, none of which is padded for another; and the rows of a padded batch."""
    words = Words("right")
    model = Loaded(name, zoo.case(name).build(), words)
    prompts = ["a bb ccc", "dddd ee", "a e ff ggg hhhh"]
    padded = model.inputs(prompts)
    assert 0 in padded["attention_mask"]
    masked = jg.trace(model.model, **padded)
    alone = [jg.attribute(masked, text, target=5, tokenizer=words) for text in prompts]
    found = jg.attribute(masked, prompts, target=5, tokenizer=words)
    assert [repr(one) for one in found.each] == [repr(one) for one in alone]
    columns = found.columns()
    assert columns["example"] == [row for row, one in enumerate(alone) for _ in range(len(one))]
    assert columns["flow"] == [flow for one in alone for flow in one.columns()["flow"]]
    rows: Any = jg.attribute(masked, padded, target=5, tokenizer=words)
    for row, one in zip(rows.each, alone, strict=True):
        ours, theirs = _flows(row), _flows(one)
        for edge in ours.keys() | theirs.keys():
            assert ours.get(edge, 0.0) == pytest.approx(theirs.get(edge, 0.0), rel=1e-3, abs=1e-5), edge
    ranked: Any = jg.rank(masked, padded, target=5, top=5, tokenizer=words)
    for row, text in zip(ranked.each, prompts, strict=True):
        one = jg.rank(masked, text, target=5, top=5, tokenizer=words)
        assert [path.path for path in row.found] == [path.path for path in one.found]
        assert [path.value for path in row.found] == pytest.approx([path.value for path in one.found], rel=1e-3)


def _flows(graph: Any) -> dict[tuple[str, str], float]:
    columns = graph.columns()
    return dict(zip(zip(columns["sender"], columns["receiver"], strict=True), columns["flow"], strict=True))
