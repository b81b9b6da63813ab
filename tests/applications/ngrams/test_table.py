"""Tables of n-grams against formulas written out for each architecture; chunks and memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.applications.ngrams import (
    ngrams,
)
from jetgraph.applications.ngrams.table import PathTable
from tests.applications.ngrams.tables import (
    BY_NAME,
    DTYPES,
    EVERY,
    FORMULAS,
    Lookup,
    assert_near,
    gpt2_head,
    gptj,
    peak,
    relocated,
)
from tests.zoo import VOCAB


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_bigrams_are_the_formula(name, dtype, traced):
    example = traced(BY_NAME[name])
    model = BY_NAME[name].build().to(dtype)
    graph = relocated(example.graph, dtype)
    with torch.no_grad():
        for path, mlp in (("embed > logits", False), ("embed > L0.mlp > logits", True)):
            table = PathTable(graph, path)
            assert (table.tokens, table.vocabulary) == (VOCAB, VOCAB)
            assert_near(table.logits(EVERY[:, None]), FORMULAS[name](model, EVERY, mlp), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_mean_of_paths_has_the_bias_once(dtype, traced):
    model = BY_NAME["gptj"].build().to(dtype)
    table = PathTable(relocated(traced(BY_NAME["gptj"]).graph, dtype), ["embed > logits", "embed > L0.mlp > logits"])
    with torch.no_grad():
        both = [gptj(model, EVERY, mlp).float() for mlp in (False, True)]
    assert_near(table.logits(EVERY[:, None]), ((both[0] + both[1]) / 2).to(dtype), dtype)
    every = PathTable(traced(BY_NAME["gptj"]).graph, "** > logits")
    assert "bias" not in {path.source.alias for path in every.paths}
    assert len(every.paths) == 9


def test_a_model_by_name(demo):
    table = PathTable(demo)
    assert (table.tokens, table.vocabulary) == (1024, 1024)
    assert repr(table) == "PathTable: 1,024 contexts, 1,024 next tokens, embed > logits^0"
    assert table.text(0) == "'<|endoftext|>'"


def llama_head(model: Any, ids: Tensor, head: int, distance: int) -> Tensor:
    """The same with one key-value head for two query heads, and rotary positions 0 and `distance`."""
    body, width = model.model, 8
    layer = body.layers[0]
    x = layer.input_layernorm(body.embed_tokens(ids))
    angle = torch.arange(ids.shape[1])[:, None] * distance / 10000 ** (torch.arange(0, width, 2) / width)
    cos, sin = (torch.cat([wave, wave], dim=-1) for wave in (angle.cos(), angle.sin()))

    def turned(y: Tensor) -> Tensor:
        return y * cos + torch.cat([-y[..., 4:], y[..., :4]], dim=-1) * sin

    part = slice(head * width, (head + 1) * width)
    q = turned(x @ layer.self_attn.q_proj.weight[part].T)
    k = turned(x @ layer.self_attn.k_proj.weight.T)
    pattern = ((q[:, -1:] @ k.transpose(1, 2)) / width**0.5).softmax(-1)
    written = (pattern @ (x @ layer.self_attn.v_proj.weight.T))[:, 0] @ layer.self_attn.o_proj.weight[:, part].T
    return body.norm(written) @ model.lm_head.weight.T


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("n", [2, 3])
def test_heads_of_gpt2(n, dtype, traced):
    graph, model = relocated(traced(BY_NAME["gpt2"]).graph, dtype), BY_NAME["gpt2"].build().to(dtype)
    contexts = EVERY[:, None] if n == 2 else torch.cartesian_prod(EVERY[::5], EVERY[::7])
    for head in (0, 1):
        table = PathTable(graph, f"embed > L0.attn.head{head} > logits", n)
        assert_near(table.logits(contexts), gpt2_head(model, contexts, head), dtype)


@torch.no_grad()
def test_heads_of_llama_over_a_distance(traced):
    model = BY_NAME["llama"].build()
    contexts = torch.cartesian_prod(EVERY[::5], EVERY[::7])
    near = PathTable(traced(BY_NAME["llama"]).graph, "embed > L0.attn.head1 > logits", 3)
    far = PathTable(model, "embed > L0.attn.head1 > logits", 3, distance=6)
    assert_near(near.logits(contexts), llama_head(model, contexts, 1, 1), torch.float32)
    assert_near(far.logits(contexts), llama_head(model, contexts, 1, 6), torch.float32)
    assert float((near.logits(contexts) - far.logits(contexts)).abs().max()) > 1e-2


@torch.no_grad()
def test_whole_attention_of_a_parallel_block(traced):
    """With one token, the pattern is 1: what is left is U ln_f(W_O W_V ln(E)) + b."""
    model = BY_NAME["gptj"].build()
    block = model.transformer.h[0]
    x = block.ln_1(model.transformer.wte(EVERY))
    written = x @ block.attn.v_proj.weight.T @ block.attn.out_proj.weight.T
    expected = model.transformer.ln_f(written) @ model.lm_head.weight.T + model.lm_head.bias
    table = PathTable(traced(BY_NAME["gptj"]).graph, "embed > L0.attn > logits")
    assert_near(table.logits(EVERY[:, None]), expected, torch.float32)


def bert_attention(model: Any, ids: Tensor) -> Tensor:
    """`embed > L0.attn > logits` of a post-norm encoder, at the last of two tokens: no positions, no token types."""
    body, (first, second) = model.bert, model.bert.encoder.layer
    x = body.embeddings.LayerNorm(body.embeddings.word_embeddings(ids))
    own = first.attention.self
    q, k, v = (part(x).view(len(ids), 2, 2, 8).transpose(1, 2) for part in (own.query, own.key, own.value))
    mixed = ((q @ k.transpose(2, 3)) / 8**0.5).softmax(-1) @ v
    h = first.attention.output.dense(mixed.transpose(1, 2).reshape(len(ids), 2, 16))
    for norm in (first.attention.output, first.output, second.attention.output, second.output):
        h = norm.LayerNorm(h)
    return model.cls(h)[:, -1]


@torch.no_grad()
def test_a_mask_in_the_trace_is_filled_in(traced):
    graph = traced(BY_NAME["bert"]).graph
    assert "attention_mask" in graph.traced.input_shapes
    contexts = torch.cartesian_prod(EVERY[::9], EVERY[::9])
    table = PathTable(graph, "embed > L0.attn > logits", 3)
    assert_near(table.logits(contexts), bert_attention(BY_NAME["bert"].build(), contexts), torch.float32)


class TwoTexts(nn.Module):
    """A model of two texts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.mlp = nn.Linear(4, 4)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        h = self.embed(one) + self.embed(other)
        return h + torch.tanh(self.mlp(h))


def test_two_texts_are_too_many():
    ids = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(jg.InputError, match=r"one input of token ids \[batch, length\], but TwoTexts takes one"):
        PathTable(jg.trace(TwoTexts().eval(), ids, ids))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("gpt2", {"n": 4}, "n=4 is not available"),
        ("gpt2", {"distance": 3}, "for n=3 only"),
        ("gpt2", {"n": 3, "distance": 3}, "needs? input_ids and position_ids"),
        ("gpt2", {"memory": 1000}, "take memory=2,160 or more"),
        ("gptj", {"path": "bias > logits"}, "name a path from 'embed'"),
        ("polynomial", {}, "one input of token ids"),
    ],
)
def test_tables_that_cannot_be(name, options, words, traced):
    with pytest.raises(jg.JetGraphError, match=words):
        _ = PathTable(traced(BY_NAME[name]).graph, **options).chunk_rows


def test_contexts_are_checked(traced):
    table = PathTable(traced(BY_NAME["gpt2"]).graph)
    for contexts in (torch.tensor([[VOCAB]]), torch.tensor([[1, 2]]), torch.tensor([[0.5]])):
        with pytest.raises(jg.InputError):
            table.logits(contexts)


def test_chunks_are_the_table(traced):
    table = PathTable(traced(BY_NAME["gpt2"]).graph, "embed > L0.attn > logits", 3, memory=2**19)
    # The next chunk may take the memory of the one before.
    chunks = [(c, v.clone()) for c, v in table.chunks()]
    contexts, logits = torch.cat([c for c, _ in chunks]), torch.cat([v for _, v in chunks])
    assert len(chunks) > 10
    assert {len(c) for c, _ in chunks[:-1]} == {table.chunk_rows}
    assert torch.equal(contexts, torch.cartesian_prod(EVERY, EVERY))
    torch.testing.assert_close(logits, table.logits(contexts))
    rest = [v.clone() for _, v in table.chunks(start=2 * table.chunk_rows)]
    assert torch.equal(torch.cat(rest), torch.cat([v for _, v in chunks[2:]]))
    some = list(table.chunks([torch.tensor([5, 3]), None]))
    assert torch.equal(torch.cat([c for c, _ in some]), torch.cartesian_prod(torch.tensor([5, 3]), EVERY))


@pytest.mark.parametrize("per", ["all", "row"])
def test_memory_is_bounded(per):
    vocabulary = 1500
    model = Lookup(vocabulary, 8).eval()
    graph = jg.trace(model, torch.zeros(2, 3, dtype=torch.long))
    for path, memory in (("embed > logits", 2**20), (["embed > logits", "embed > L0.mlp > logits"], 2**22)):
        used = peak(lambda path=path, memory=memory: ngrams(graph, path, top=5, per=per, memory=memory))
        result = 24 * 5 * (vocabulary if per == "row" else 1)
        assert memory / 4 < used < memory + 2 * result, (path, used, memory)
        assert used < 4 * vocabulary**2


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_memory_is_bounded_through_attention(name, traced):
    """The insides of attention count too, where the vocabulary is small."""
    graph = traced(BY_NAME[name]).graph
    for path in ("embed > L0.attn > L0.mlp > logits", ["embed > L0.attn > logits", "embed > L1.attn > logits"]):
        used = peak(lambda path=path: ngrams(graph, path, n=3, top=5, memory=2**20))
        assert 2**18 < used < 2**20, (path, used)


class Experts(nn.Module):
    """A block whose experts get the tokens that a router sends them: how many these are depends on values."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way, self.wte, self.router = way, nn.Embedding(VOCAB, 8), nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(3))
        self.head = nn.Linear(8, VOCAB)

    def mlp(self, h: Tensor) -> Tensor:
        rows = h.reshape(-1, 8)
        chosen, total = self.router(rows).argmax(-1), torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            if self.way == "mask":
                total[chosen == number] = expert(rows[chosen == number])
            else:
                (places,) = torch.where(chosen == number)
                total = total.index_add(0, places, expert(rows[places]))
        return total.view(h.shape)

    def forward(self, input_ids: Tensor) -> Tensor:
        h = self.wte(input_ids)
        return self.head(h + self.mlp(h))


@pytest.mark.parametrize("way", ["mask", "where"])
def test_bigrams_of_experts_that_get_some_of_the_tokens(way):
    model = Experts(way).eval()
    graph = jg.trace(model, torch.randint(VOCAB, (4, 5)))
    table = PathTable(graph, "embed > L0.mlp > logits", memory=2**14)
    with torch.no_grad():
        expected = model.head(model.mlp(model.wte(EVERY)))
    assert table.chunk_rows < VOCAB
    torch.testing.assert_close(torch.cat([logits.clone() for _, logits in table.chunks()]), expected)
    assert len(ngrams(table, top=5)) == 5
