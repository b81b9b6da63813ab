"""Attention patterns against those that models return themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import jetgraph as jg
from jetgraph.applications.interventions.attention import AttentionPatterns
from jetgraph.loading import load
from jetgraph.models import bundled
from tests.conftest import Example
from tests.zoo import case


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@torch.no_grad()
def test_patterns_are_those_that_the_model_returns(name: str) -> None:
    """Fused attention, here with fewer keys than queries' heads, a causal mask and padding; eager gives them out."""
    side = {"llama": "left", "gpt2": "right"}[name]
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(bundled(name), padding_side=side)
    inputs = dict(tokenizer(["Raise Value", "for key in error values"], padding=True, return_tensors="pt"))
    loaded = load(f"demo:{name}")
    assert loaded.config._attn_implementation == "sdpa"
    eager = transformers.AutoModelForCausalLM.from_pretrained(bundled(name), attn_implementation="eager").eval()
    found = jg.attention_patterns(loaded.trace(inputs), inputs, tokenizer=tokenizer)
    expected = eager(**inputs, output_attentions=True).attentions
    counted = inputs["attention_mask"] != 0
    assert len(found.patterns) == len(expected)
    for actual, one in zip(found.patterns.values(), expected, strict=True):
        rows = counted[:, None, :, None].expand_as(one)
        torch.testing.assert_close(actual[rows], one[rows], atol=1e-5, rtol=1e-4)
    columns = found.columns()
    told = set(zip(columns["example"], columns["position"], strict=True))
    assert told == {tuple(place) for place in counted.nonzero().tolist()}
    # What is shown first is the last token of each prompt, and not what it is padded with.
    ends = [row.nonzero().flatten().tolist() for row in counted]
    shown = found.shown()
    kept = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    shown_at = {(row["example"], row["position"]) for row in kept if shown.keep is None or shown.keep(row)}
    assert shown_at == {(example, places[-1]) for example, places in enumerate(ends)}
    at_first = torch.stack(
        [one[:, places[-1], places[0]] for layer in expected for one, places in zip(layer, ends, strict=True)]
    )
    assert found.resting == pytest.approx(float(at_first.mean()), abs=1e-5)


@pytest.mark.parametrize("name", ["gptj", "bloom", "gpt_neox", "opt"])
@torch.no_grad()
def test_patterns_of_attention_by_hand(name: str, traced: Callable[..., Example]) -> None:
    """Products with a softmax, also with the heads beside the batch; streams with batch and positions in one."""
    example = traced(case(name))
    found = jg.attention_patterns(example.graph, example.inputs, branches="L1.attn")
    example.model.config._attn_implementation = "eager"
    expected = example.model(**{**example.inputs, "output_attentions": True}).attentions[1]
    torch.testing.assert_close(found.patterns["L1.attn"], expected, atol=1e-5, rtol=1e-4)
    one = jg.attention_patterns(example.graph, example.inputs, branches=["L1H1", "L0.attn.head*"])
    assert one.heads == {"L0.attn": (0, 1), "L1.attn": (1,)}
    torch.testing.assert_close(one.patterns["L1.attn"], expected[:, 1:2], atol=1e-5, rtol=1e-4)
    columns = one.columns()
    assert {head for alias, head in zip(columns["branch"], columns["head"], strict=True) if alias == "L1.attn"} == {1}
    for wrong, says in (
        ("L1.attn.head2", "has the heads 0 to 1, and no head2"),
        ("L7.attn.head0", "matches no branch"),
    ):
        with pytest.raises(jg.InputError, match=says):
            jg.attention_patterns(example.graph, example.inputs, branches=wrong)


class Attention(nn.Module):
    """x + attention(x) of two heads, laid out in some way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

    def weights(self, x: Tensor) -> Tensor:
        q, k = (each(x).unflatten(-1, (2, 4)).transpose(1, 2) for each in (self.q, self.k))
        return (q @ k.mT / 2).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (each(x).unflatten(-1, (2, 4)) for each in (self.q, self.k, self.v))
        if self.way == "einsum":
            z = torch.einsum("bkqh,bkhd->bqhd", (torch.einsum("bqhd,bkhd->bkqh", q, k) / 2).softmax(1), v)
            return x + self.o(z.flatten(2))
        if self.way == "written out":
            pattern = ((q[:, :, None] * k[:, None]).sum(-1) / 2).softmax(2)
            return x + self.o((pattern[..., None] * v[:, None]).sum(2).flatten(2))
        if self.way == "apart":
            (a, b), (c, d), (e, f) = (each.unbind(2) for each in (q, k, v))
            parts = [F.scaled_dot_product_attention(a, c, e), (b @ d.mT / 2).softmax(-1) @ f]
            return x + self.o(torch.cat(parts, -1))
        # By head, then by row.
        q, k, v = (each.permute(2, 0, 1, 3) for each in (q, k, v))
        if self.way == "fused":
            z = F.scaled_dot_product_attention(q, k, v)
        else:
            q, k, v = (each.reshape(2 * batch, length, 4) for each in (q, k, v))
            z = torch.bmm((torch.bmm(q, k.mT) / 2).softmax(-1), v).view(2, batch, length, 4)
        return x + self.o(z.permute(1, 2, 0, 3).flatten(2))


class Crossing(nn.Module):
    """Words that attend to themselves, and to as many features in two ways."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.layers, self.out = (
            nn.Embedding(9, 4),
            nn.ModuleList(nn.Linear(4, 4) for _ in range(3)),
            nn.Linear(4, 4),
        )

    def forward(self, words: Tensor, features: Tensor) -> Tensor:
        x = self.embed(words)
        x = x + self.layers[0]((x @ x.mT).softmax(-1) @ x)
        x = x + self.layers[1]((x @ features.mT).softmax(-1) @ features)
        q, k = x[:, None], features[:, None]
        return self.out(x + self.layers[2](F.scaled_dot_product_attention(q, k, k)[:, 0]))


def test_keys_of_something_else_are_not_called_as_tokens() -> None:
    inputs = {"words": torch.tensor([[3, 1, 4]]), "features": torch.randn(1, 3, 4)}
    columns = jg.attention_patterns(jg.trace(Crossing().eval(), inputs=inputs), inputs).columns()
    told = {*zip(columns["branch"], columns["key"], columns["read"], strict=True)}
    own = {("L0.attn", 0, "#3"), ("L0.attn", 1, "#1"), ("L0.attn", 2, "#4")}
    assert told == own | {(alias, key, None) for alias in ("L1.attn", "L2.attn") for key in range(3)}


class Remembering(nn.Module):
    """Reads keys that are there already beside those of its tokens: learned ones, or those of a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)
        self.query, self.key, self.value, self.out = (nn.Linear(4, 4) for _ in range(4))
        self.learned = nn.Parameter(torch.randn(1, 2, 4))

    def forward(self, ids: Tensor, past: Mapping[str, Tensor] | None = None) -> Tensor:
        h = self.embed(ids)
        learned = self.learned.expand(ids.shape[0], -1, -1)
        keys, values = (learned, learned) if past is None else (past["keys"], past["values"])
        keys, values = torch.cat([keys, self.key(h)], 1), torch.cat([values, self.value(h)], 1)
        pattern = (self.query(h) @ keys.mT / 2).softmax(-1)
        return self.head(h + self.out(pattern @ values))


@pytest.mark.parametrize("past", [True, False])
def test_keys_that_are_there_already_are_not_called_as_tokens(past: bool) -> None:
    inputs: dict[str, Any] = {"ids": torch.tensor([[3, 1, 4], [1, 5, 2]])}
    if past:
        inputs["past"] = {"keys": torch.randn(2, 2, 4), "values": torch.randn(2, 2, 4)}
    columns = jg.attention_patterns(jg.trace(Remembering().eval(), inputs=inputs), inputs).columns()
    assert set(columns["key"]) == set(range(5))
    assert set(columns["read"]) == {None}
    assert set(columns["token"]) == {"#3", "#1", "#4", "#5", "#2"}


def test_inputs_in_containers_have_rows_too() -> None:
    """Each row is attributed as it is alone, with its own part of what a container holds."""
    model = Remembering().eval()
    ids, past = torch.tensor([[3, 1, 4], [1, 5, 2]]), {"keys": torch.randn(2, 2, 4), "values": torch.randn(2, 2, 4)}
    graph = jg.trace(model, ids, past)
    several = jg.attribute(graph, {"ids": ids, "past": past}, target=2)
    assert len(several.each) == 2
    for row, one in enumerate(several.each):
        own = {"ids": ids[row : row + 1], "past": {name: value[row : row + 1] for name, value in past.items()}}
        alone = jg.attribute(graph, own, target=2)
        assert [node.flow for node in one.nodes] == pytest.approx([node.flow for node in alone.nodes])
        with torch.no_grad():
            logits = model(**own)[0, -1]
        assert one.output == pytest.approx(float(logits[2] - logits.mean()), abs=1e-5)
    ranked = jg.rank(graph, {"ids": ids, "past": past}, target=2)
    assert len(ranked.each) == 2


@pytest.mark.parametrize("way", ["einsum", "written out", "fused", "one dimension", "apart"])
@torch.no_grad()
def test_heads_may_come_before_rows_and_keys_before_queries(way: str) -> None:
    """As many rows as heads: nothing but the way through the code tells one from the other."""
    model, x = Attention(way).eval(), torch.randn(3, 5, 8)
    graph = jg.trace(model, x)
    for rows in (2, 3, 1):
        x = torch.randn(rows, 4, 8)
        found = jg.attention_patterns(graph, x).patterns["L0.attn"]
        torch.testing.assert_close(found, model.weights(x), atol=1e-5, rtol=1e-4)


def test_what_has_no_pattern_is_refused(traced: Callable[..., Example], tmp_path: Any) -> None:
    example = traced(case("gptj"))
    with pytest.raises(jg.InputError, match=r"'L0\.mlp'.*has no attention by softmax"):
        jg.attention_patterns(example.graph, example.inputs, branches="L0.mlp")
    with pytest.raises(jg.SelectionError, match="matches no branch"):
        jg.attention_patterns(example.graph, example.inputs, branches="L7.*")
    found = jg.attention_patterns(example.graph, example.inputs)
    found.plot(tmp_path / "patterns.png")
    assert "4 heads of 2 branches" in repr(found)
    columns = found.columns()
    first = [weight for key, weight in zip(columns["position"], columns["weight"], strict=True) if key == 0]
    assert first == pytest.approx([1.0] * 8, abs=1e-5)


def test_heads_that_rest_on_the_first_key_are_said_to_and_not_shown_first() -> None:
    resting = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.7, 0.05, 0.25]]).expand(1, 2, 3, 3)
    found = AttentionPatterns("m", {"L0.attn": resting}, {"L0.attn": (0, 1)}, ())
    assert found.note.startswith("the last position gives 70% of its attention to the first key")
    assert list(found.top(2).columns()["key"]) == [2, 2]
    reading = AttentionPatterns("m", {"L0.attn": resting.flip(-1)}, {"L0.attn": (0, 1)}, ())
    assert (reading.note, reading.top(1).columns()["key"]) == ("", [2])
    one = AttentionPatterns("m", {"L0.attn": torch.ones(1, 1, 1, 1)}, {"L0.attn": (0,)}, ())
    assert one.top(1).columns()["key"] == [0]
