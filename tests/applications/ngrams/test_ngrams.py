"""Tables of order-0 paths, their top n-grams, masses and agreement with counts, against formulas written by hand."""

from __future__ import annotations

import csv
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import jetgraph as jg
from jetgraph.applications.ngrams import (
    NGrams,
    agreement,
    blocks,
    budget,
    ngram_agreement,
    ngram_mass,
    ngrams,
    resuming,
    streaming,
)
from jetgraph.applications.ngrams import contexts as context_numbers
from jetgraph.applications.ngrams.mass import prefix_free
from jetgraph.applications.ngrams.screening import Screen
from jetgraph.applications.ngrams.table import PathTable
from jetgraph.applications.readout import token_text
from jetgraph.applications.subject import subject
from jetgraph.loading import load
from tests.zoo import CASES, VOCAB

BY_NAME = {case.name: case for case in CASES}
DTYPES = [torch.float32, torch.bfloat16]
FORMULAS: dict[str, Callable[[Any, Tensor, bool], Tensor]] = {}


def formula(function: Callable[[Any, Tensor, bool], Tensor]) -> Callable[[Any, Tensor, bool], Tensor]:
    FORMULAS[function.__name__] = function
    return function


@formula
def gpt2(model, ids, mlp):
    body = model.transformer
    h = body.wte(ids)
    h = body.h[0].mlp(body.h[0].ln_2(h)) if mlp else h
    return body.ln_f(h) @ model.lm_head.weight.T


@formula
def llama(model, ids, mlp):
    body = model.model
    h = body.embed_tokens(ids)
    h = body.layers[0].mlp(body.layers[0].post_attention_layernorm(h)) if mlp else h
    wide = h.float()
    rms = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + model.config.rms_norm_eps)).to(h.dtype)
    return (body.norm.weight * rms) @ model.lm_head.weight.T


@formula
def gemma(model, ids, mlp):
    body = model.model
    h = F.embedding(ids, body.embed_tokens.weight) * torch.tensor(16**0.5, dtype=body.embed_tokens.weight.dtype)
    h = body.layers[0].mlp(body.layers[0].post_attention_layernorm(h)) if mlp else h
    wide = h.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + model.config.rms_norm_eps)
    return (wide * (1 + body.norm.weight.float())).to(h.dtype) @ body.embed_tokens.weight.T


@formula
def opt_post_norm(model, ids, mlp):
    body = model.model.decoder
    first, second = body.layers
    h = first.self_attn_layer_norm(body.embed_tokens(ids) @ body.project_in.weight.T)
    h = first.fc2(first.fc1(h).relu()) if mlp else h
    h = second.final_layer_norm(second.self_attn_layer_norm(first.final_layer_norm(h)))
    return h @ body.project_out.weight.T @ model.lm_head.weight.T


@formula
def gptj(model, ids, mlp):
    body = model.transformer
    h = body.wte(ids)
    h = body.h[0].mlp(body.h[0].ln_1(h)) if mlp else h
    return body.ln_f(h) @ model.lm_head.weight.T + model.lm_head.bias


def relocated(graph: jg.ResidualGraph, dtype: torch.dtype) -> jg.ResidualGraph:
    tensors = graph.traced.tensors
    return graph.relocated(lambda name: tensors[name].to(dtype) if tensors[name].is_floating_point() else tensors[name])


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert actual.dtype == dtype
    scale = float(expected.double().abs().max())
    bound = (2e-6 if dtype == torch.float32 else 3e-2) * scale
    assert float((actual.double() - expected.double()).abs().max()) < bound


EVERY = torch.arange(VOCAB)


# Tables


@pytest.fixture(scope="module")
def demo():
    return subject(load("demo"))


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


def gpt2_head(model: Any, ids: Tensor, head: int) -> Tensor:
    """U ln_f(Σ_j A_j x_j W_V W_O) of one head at the last of the tokens [rows, length]."""
    body, width = model.transformer, 8
    block = body.h[0]
    x = block.ln_1(body.wte(ids))
    weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
    part = slice(head * width, (head + 1) * width)
    q, k, v = (x @ weight[:, 16 * i : 16 * (i + 1)][:, part] + bias[16 * i : 16 * (i + 1)][part] for i in range(3))
    pattern = ((q[:, -1:] @ k.transpose(1, 2)) / width**0.5).softmax(-1)
    return body.ln_f((pattern @ v)[:, 0] @ block.attn.c_proj.weight[part]) @ model.lm_head.weight.T


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
        ("gpt2", {"memory": 1000}, "raise memory"),
        ("gptj", {"paths": "bias > logits"}, "name a path from 'embed'"),
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


# Chunks and memory


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


class Lookup(nn.Module):
    """logits = E[a] along `embed > logits`: a table that a test can write."""

    def __init__(self, vocabulary: int, width: int | None = None, bias: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width or vocabulary)
        self.mlp = nn.Linear(width or vocabulary, width or vocabulary)
        self.head = nn.Linear(width or vocabulary, vocabulary, bias=bias)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(vocabulary, width or vocabulary))

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        return self.head(h + torch.tanh(self.mlp(h)))


def peak(call: Callable[[], Any]) -> int:
    """The most bytes that tensors took at once beyond what was there, all allocations of the call counted."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert events
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


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


# The top


GRAPHS: dict[int, tuple[Lookup, jg.ResidualGraph]] = {}


def lookup(values: Tensor) -> jg.ResidualGraph:
    size = len(values)
    if size not in GRAPHS:
        model = Lookup(size).eval()
        GRAPHS[size] = model, jg.trace(model, torch.zeros(2, 3, dtype=torch.long))
    model, graph = GRAPHS[size]
    with torch.no_grad():
        model.embed.weight.copy_(values)
    return graph


def brute(values: Tensor, rows: list[int], scores: str, identity: bool) -> list[tuple[float, int, int]]:
    """All bi-grams with their scores, best first, ties by ids."""
    table = values.log_softmax(-1) if scores == "probability" else values
    found = [(-float(table[a, b]), a, b) for a in rows for b in range(values.shape[1]) if identity or a != b]
    return sorted(found)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    levels=st.sampled_from([1, 2, 5, 40]),
    top=st.sampled_from([1, 7, 31, 400]),
    scores=st.sampled_from(["probability", "logit"]),
    identity=st.booleans(),
    some=st.booleans(),
    block=st.sampled_from([1, 70, 2**19]),
    rows=st.sampled_from([1, 4, 100]),
)
def test_top_is_that_of_the_sorted_table(seed, levels, top, scores, identity, some, block, rows):
    """With a few levels, most scores tie. Rows of equal values have equal softmax sums, whatever their order."""
    size = 17
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(levels, (1, size), generator=generator).float()
    values = values[:, torch.stack([torch.randperm(size, generator=generator) for _ in range(size)])][0]
    chosen = torch.randperm(size, generator=generator)[:6].tolist() if some else list(range(size))
    graph = lookup(values)
    table = PathTable(graph)
    memory = int(rows * table.row_bytes / 0.75) + 1
    expected = brute(values, sorted(chosen), scores, identity)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", block)
        options: dict[str, Any] = {"scores": scores, "identity": identity, "rows": chosen, "memory": memory}
        whole = ngrams(graph, top=top, per="all", **options)
        each = ngrams(graph, top=top, per="row", **options)
    # Softmax sums of permuted rows may differ in the last digit: ties are compared where there are ties.
    rounded = {(a, b): round(score, 4) for score, a, b in expected}
    assert len(whole) == min(top, len(expected))
    pairs = list(zip(whole.contexts[:, 0].tolist(), whole.following.tolist(), strict=True))
    assert [rounded[pair] for pair in pairs] == [round(score, 4) for score, _, _ in expected[:top]]
    if scores == "logit":
        assert pairs == [(a, b) for _, a, b in expected[:top]]
    by_row = list(zip(each.contexts[:, 0].tolist(), each.following.tolist(), strict=True))
    keep = min(top, size - (not identity))
    assert by_row == [(a, b) for row in sorted(chosen) for _, a, b in [x for x in expected if x[1] == row][:keep]]


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt_post_norm", "gptj", "gemma"])
def test_top_bigrams_of_models(name, dtype, traced):
    graph = relocated(traced(BY_NAME[name]).graph, dtype)
    found = ngrams(graph, top=40, memory=2**15)
    logits = PathTable(graph).logits(EVERY[:, None]).double()
    expected, place = logits.softmax(-1).flatten().sort(descending=True, stable=True)
    torch.testing.assert_close(found.scores.double(), expected[:40], rtol=1e-5, atol=0)
    if dtype == torch.float32:
        assert torch.equal(found.contexts[:, 0] * VOCAB + found.following, place[:40])


@torch.no_grad()
def test_top_skip_trigrams(traced):
    graph = traced(BY_NAME["gpt2"]).graph
    found = ngrams(graph, "embed > L0.attn.head1 > logits", n=3, top=30, identity=False, rows=(None, [7, 3, 7]))
    pairs = torch.cartesian_prod(EVERY, torch.tensor([3, 7]))
    scores = gpt2_head(BY_NAME["gpt2"].build(), pairs, 1).softmax(-1)
    for place in (0, 1):
        scores[torch.arange(len(pairs)), pairs[:, place]] = 0
    expected, place = scores.flatten().sort(descending=True)
    torch.testing.assert_close(found.scores, expected[:30])
    assert torch.equal(found.contexts, pairs[place[:30] // VOCAB])
    assert torch.equal(found.following, place[:30] % VOCAB)
    assert found.n == 3
    assert not found.complete
    assert list(found.columns()) == ["first", "second", "next", "probability", "first id", "second id", "next id"]


def test_large_logits_do_not_overflow():
    values = torch.zeros(5, 5)
    values[2, 3], values[4, 0] = 5e4, -5e4
    found = ngrams(lookup(values), top=1)
    assert (found.contexts.item(), found.following.item(), found.scores.item()) == (2, 3, 1.0)
    values[1, 1] = math.inf
    for scores in ("probability", "logit"):
        with pytest.raises(jg.InputError, match="not finite"):
            ngrams(lookup(values), top=1, scores=scores)


# Screening


@pytest.fixture(scope="module")
def narrow() -> tuple[Lookup, jg.ResidualGraph]:
    """logits = W E[a] + b of 90 tokens and 8 numbers each."""
    model = Lookup(90, 8, bias=True).eval()
    return model, jg.trace(model, torch.zeros(2, 3, dtype=torch.long))


def written(model: Lookup, kind: str) -> None:
    """Write weights into the model that are easy or hard to screen."""
    generator = torch.Generator().manual_seed(3)
    embed, head, bias = (torch.randn(shape, generator=generator) for shape in ((90, 8), (90, 8), (90,)))
    if kind == "near ties":
        # Far below what bfloat16 tells apart.
        embed, head, bias = embed[:1] + 1e-5 * embed, head[:1] + 1e-5 * head, 1e-4 * bias
    elif kind == "levels":
        embed, head, bias = (torch.randint(-1, 2, x.shape, generator=generator).float() for x in (embed, head, bias))
    elif kind == "huge":
        embed, head = 300 * embed, 300 * head
    elif kind == "sure":
        # Every token is followed by itself, with probability 1 as far as float32 goes.
        embed = head = 30 * F.normalize(embed)
    elif kind == "tiny":
        embed, head, bias = 1e-12 * embed, 1e-12 * head, 0 * bias
    elif kind == "one column":
        head[41] *= 1000
    elif kind == "common part":
        embed, head, bias = embed + 30, head + 30, 1000 * bias
    elif kind == "beyond bfloat16":
        head[0, 0] = torch.finfo(torch.float32).max
        embed[:, 0] = 1e-38
    with torch.no_grad():
        model.embed.weight.copy_(embed)
        model.head.weight.copy_(head)
        model.head.bias.copy_(bias)


KINDS = ["random", "near ties", "levels", "huge", "sure", "tiny", "one column", "common part", "beyond bfloat16"]


def log_probabilities(model: Lookup, scores: str, identity: bool) -> Tensor:
    table = model.embed.weight.double() @ model.head.weight.double().T + model.head.bias.double()
    table = table.log_softmax(-1) if scores == "probability" else table
    return table if identity else table.fill_diagonal_(-math.inf)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_of_the_screen_hold(kind, narrow):
    model, graph = narrow
    written(model, kind)
    table, every = PathTable(graph), torch.arange(90)[:, None]
    exact = model.embed.weight.double() @ model.head.weight.double().T
    size = model.embed.weight.double().norm(dim=1) * model.head.weight.double().norm(dim=1).max()
    for scores, identity in itertools.product(("probability", "logit"), (True, False)):
        screen = Screen(table, scores, identity)
        found, error, largest = screen.product(every)
        centred = exact - exact.mean(1, keepdim=True) if scores == "probability" else exact
        if kind == "beyond bfloat16":
            assert not bool(error.isfinite().any())
        else:
            assert bool(((found.double() - centred).abs().amax(1) <= error).all())
            assert bool((error < 0.03 * size + 1e-3).all())
            assert bool((exact + model.head.bias.double()).abs().amax(1).le(largest * (1 + 1e-6)).all())
        highest = log_probabilities(model, scores, identity).amax(1)
        lower, upper = screen.bounds(every)
        assert not bool(((upper < highest) | (lower > highest)).any())
        if kind == "random":
            assert float((upper - lower).max()) < 1


@torch.no_grad()
@pytest.mark.parametrize("rounded", ["unembedding", "value", "logit"])
def test_the_bound_is_reached(rounded, narrow):
    """Where all roundings go one way, they add up to nearly all that is allowed for."""
    model, graph = narrow
    written(model, "tiny")
    # A little less than halfway, up from 1 and down from -1: both are rounded down, and their sum is small.
    half = 2.0**-8 - 2.0**-16
    worst = torch.tensor([1 + half, -1 - 2.0**-7 + half] * 4)
    with torch.no_grad():
        model.embed.weight.copy_(worst if rounded == "value" else torch.ones(8))
        model.head.weight.copy_(worst if rounded == "unembedding" else torch.ones(8))
        if rounded == "logit":
            model.head.weight.copy_(torch.tensor([1, half, 0, 0, 0, 0, 0, 0]))
    found, error, _ = Screen(PathTable(graph), "logit", True).product(torch.arange(90)[:, None])
    exact = model.embed.weight.double() @ model.head.weight.double().T
    distance = (found.double() - exact).abs().amax(1)
    assert bool((distance <= error).all())
    assert bool((distance >= 0.9 * error).all())


def assert_same(found: NGrams, expected: NGrams) -> None:
    """The same n-grams wherever the scores of neighbours differ by more than float32 rounds."""
    assert len(found) == len(expected)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-6, atol=1e-6)
    ids = [torch.cat([one.contexts, one.following[:, None]], 1) for one in (found, expected)]
    assert len(ids[0].unique(dim=0)) == len(found)
    scores = expected.scores.double()
    apart = (scores[:-1] - scores[1:]) > 4e-6 * scores[:-1].abs()
    # Of the last one the next is not known.
    known = torch.cat([torch.tensor([True]), apart]) & torch.cat([apart, torch.tensor([False])])
    assert torch.equal(ids[0][known], ids[1][known])


@pytest.mark.parametrize("kind", KINDS)
def test_screened_ngrams_are_those_of_float32(kind, narrow, monkeypatch):
    model, graph = narrow
    written(model, kind)
    monkeypatch.setattr(streaming, "FEW", 3)
    for scores, identity in itertools.product(("probability", "logit"), (True, False)):
        for top, rows in ((1, None), (40, None), (7, [5, 88, 17, 3]), (100_000, [*range(0, 90, 7)])):
            options: dict[str, Any] = {"top": top, "rows": rows, "scores": scores, "identity": identity}
            expected = ngrams(graph, **options)
            found = ngrams(graph, **options, screen="bf16", memory=2**17)
            assert_same(found, expected)
            if kind == "levels" and scores == "logit":
                # Sums of small integers are exact, so ties are ties, and broken by ids in whatever order rows come.
                assert torch.equal(found.contexts, expected.contexts)
                assert torch.equal(found.following, expected.following)


@pytest.fixture
def rescored(monkeypatch) -> list[int]:
    """Tokens of the contexts whose logits a table gives from now on."""
    seen: list[int] = []
    original = PathTable.logits

    def logits(self, contexts):
        seen.extend(contexts[:, -1].tolist())
        return original(self, contexts)

    monkeypatch.setattr(PathTable, "logits", logits)
    return seen


def test_few_rows_are_computed_anew(demo, rescored, narrow):
    expected = ngrams(demo, top=20)
    assert not rescored
    assert_same(ngrams(demo, top=20, screen="bf16"), expected)
    assert 1 <= len(rescored) == len(set(rescored)) < 60
    # Where the bound tells nothing, every row is, once.
    written(narrow[0], "near ties")
    rescored.clear()
    ngrams(narrow[1], top=20, screen="bf16")
    assert sorted(rescored) == list(range(90))
    # Where all are sure, the first of them are the top.
    written(narrow[0], "sure")
    rescored.clear()
    assert ngrams(narrow[1], top=20, screen="bf16").contexts[:, 0].tolist() == list(range(20))
    assert len(rescored) < 60


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt_post_norm", "gptj", "cohere"])
def test_screened_ngrams_of_models(name, traced):
    graph = traced(BY_NAME[name]).graph
    for path in ("embed > logits", ["embed > L0.mlp > logits", "embed > L1.mlp > logits"]):
        table = PathTable(graph, path)
        torch.testing.assert_close(
            table.decoding.decode(table.decoding.hidden(EVERY[:, None])), table.logits(EVERY[:, None])
        )
        assert_same(ngrams(graph, path, top=40, screen="bf16", memory=2**17), ngrams(graph, path, top=40))


def test_screened_skip_trigrams(traced, rescored):
    graph = traced(BY_NAME["gpt2"]).graph
    options: dict[str, Any] = {"n": 3, "top": 30, "identity": False, "rows": (None, [7, 3, 40])}
    expected = ngrams(graph, "embed > L0.attn.head1 > logits", **options)
    rescored.clear()
    found = ngrams(graph, "embed > L0.attn.head1 > logits", **options, screen="bf16", memory=2**17)
    assert_same(found, expected)
    assert len(rescored) < 3 * VOCAB


def test_screened_ngrams_in_float64(traced):
    graph = relocated(traced(BY_NAME["gptj"]).graph, torch.float64)
    assert ngrams(graph, screen="bf16").scores.dtype == torch.float64
    assert_same(ngrams(graph, screen="bf16"), ngrams(graph))


def test_interrupted_screens_go_on(traced, tmp_path, monkeypatch):
    graph = traced(BY_NAME["gpt2"]).graph
    options: dict[str, Any] = {"top": 5, "memory": 80_000, "screen": "bf16"}
    monkeypatch.setattr(streaming, "FEW", 2)
    whole = ngrams(graph, **options)
    original, seen = Screen.bounds, []

    def bounds(self, contexts):
        seen.append(contexts[:, 0].tolist())
        if len(seen) == 3 and stopping:
            raise StoppedError
        return original(self, contexts)

    monkeypatch.setattr(Screen, "bounds", bounds)
    stopping = True
    with pytest.raises(StoppedError):
        ngrams(graph, resume=tmp_path, **options)
    stopping = False
    again = ngrams(graph, resume=tmp_path, **options)
    assert seen[3] == seen[2]
    assert list(itertools.chain(*seen[:2], *seen[3:])) == list(range(VOCAB))
    assert torch.equal(again.contexts, whole.contexts)
    assert torch.equal(again.following, whole.following)
    assert torch.equal(again.scores, whole.scores)
    with pytest.raises(jg.InputError, match=r"screen"):
        ngrams(graph, resume=tmp_path, **{**options, "screen": None})


def test_memory_of_a_screen_is_bounded():
    graph = jg.trace(Lookup(1500, 8).eval(), torch.zeros(2, 3, dtype=torch.long))
    for memory in (2**20, 2**22):
        used = peak(lambda memory=memory: ngrams(graph, top=5, screen="bf16", memory=memory))
        assert memory / 8 < used < memory, (used, memory)
    with pytest.raises(jg.BudgetError, match=r"unembedding in bfloat16 .* raise memory"):
        ngrams(graph, screen="bf16", memory=2**16)


def test_screens_that_do_not_fit(traced):
    gpt2 = traced(BY_NAME["gpt2"]).graph
    for graph, options, words in (
        (gpt2, {"screen": "int8"}, "choose one of bf16, None"),
        (gpt2, {"per": "row"}, "the top of every row"),
        (relocated(gpt2, torch.bfloat16), {}, "this one is in torch.bfloat16"),
        (traced(BY_NAME["gemma2"]).graph, {}, "soft cap"),
    ):
        with pytest.raises(jg.InputError, match=words):
            ngrams(graph, **{"screen": "bf16", **options})


def test_a_product_that_is_worse_than_assumed_is_noticed(narrow, monkeypatch):
    written(narrow[0], "random")
    product = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out: out.copy_(product(a[:, :4], b[:4])))
    with pytest.raises(jg.JetGraphError, match="does not accumulate in float32"):
        ngrams(narrow[1], screen="bf16")


# Options and errors


def test_options_are_checked(traced, monkeypatch):
    graph = traced(BY_NAME["gpt2"]).graph
    attention = "embed > L0.attn > logits"
    for options, words in (
        ({"per": "column"}, "all, row"),
        ({"scores": "loss"}, "probability, logit"),
        ({"top": 0}, "1 or more"),
        ({"rows": []}, "not none"),
        ({"rows": [VOCAB]}, "not 53"),
        ({"rows": ["a"]}, "tokenizer"),
        ({"path": attention, "n": 3, "rows": [3]}, "a pair"),
        ({"n": 3}, "makes no difference"),
    ):
        with pytest.raises(jg.InputError, match=words):
            ngrams(graph, **options)
    monkeypatch.setattr(context_numbers, "CELL_BUDGET", 10_000)
    with pytest.raises(jg.BudgetError, match=r"2,809 rows .* restrict the tokens of each place with rows="):
        ngrams(graph, attention, n=3)
    assert len(ngrams(graph, attention, n=3, rows=(None, [4]), top=10**6)) == VOCAB * VOCAB


def test_rows_by_text(demo):
    found = ngrams(demo, rows=[" the", "self"], per="row", top=2)
    assert [found.columns()["token"][i] for i in (0, 2)] == [
        repr(text) for text in sorted([" the", "self"], key=lambda text: demo.tokenizer(text)["input_ids"][0])
    ]
    with pytest.raises(jg.InputError, match="holds one token"):
        ngrams(demo, rows="hippopotamus")


def test_texts_survive_files(demo, tmp_path):
    tokens = [demo.tokenizer(text)["input_ids"][0] for text in ("\n", '"', ",", "'", "\u00e9"[0], "\t")]
    partial = next(token for token in range(1024) if token_text(demo.tokenizer, token).startswith("<"))
    found = ngrams(demo, rows=[*tokens, partial], per="row", top=30)
    columns = {name: list(values) for name, values in found.columns().items()}
    with open(found.save(tmp_path / "a.csv"), encoding="utf-8", newline="") as file:
        names, *rows = csv.reader(file)
    assert names == list(columns)
    assert rows == [[str(cell) for cell in row] for row in zip(*columns.values(), strict=True)]
    frame = pandas.read_csv(tmp_path / "a.csv", keep_default_na=False)
    assert frame["token"].tolist() == columns["token"]
    assert frame["next"].tolist() == columns["next"]
    assert pandas.read_parquet(found.save(tmp_path / "a.parquet")).to_dict("list") == columns
    assert repr("\n") in columns["token"]
    assert token_text(demo.tokenizer, partial) in columns["token"]


def test_repr_and_figure(demo):
    found = ngrams(demo, top=30)
    assert repr(found).startswith("30 top bi-grams of GPT2LMHeadModel along embed > logits, of 1,024 contexts\n")
    axes = found.figure().axes[0]
    assert axes.get_xlabel() == "probability P(next | token)"
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(found.scores[:20].tolist())
    assert axes.get_yticklabels()[0].get_text() == " → ".join(found.columns()[name][0] for name in ("token", "next"))
    logits = ngrams(demo, "embed > L1.attn.head0 > logits", n=3, rows=([5], None), scores="logit", top=3)
    assert logits.figure().axes[0].get_xlabel() == "logit of the next token"


# Resuming


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("options", [{"per": "all", "top": 25}, {"per": "row", "top": 3, "identity": False}])
def test_interrupted_runs_go_on(options, traced, tmp_path, monkeypatch):
    graph = traced(BY_NAME["gpt2"]).graph
    options |= {"memory": 2**14}
    rows = PathTable(graph, memory=2**14).chunk_rows
    assert rows < VOCAB / 4
    whole = ngrams(graph, **options)
    evaluated: list[int] = []
    original = PathTable.chunks

    def chunks(self, contexts=None, start=0):
        for chunk, logits in original(self, contexts, start):
            evaluated.extend(chunk[:, 0].tolist())
            if len(evaluated) == 3 * rows and stopping:
                raise StoppedError
            yield chunk, logits

    monkeypatch.setattr(PathTable, "chunks", chunks)
    stopping = True
    with pytest.raises(StoppedError):
        ngrams(graph, resume=tmp_path / "run", **options)
    stopping = False
    evaluated.clear()
    again = ngrams(graph, resume=tmp_path / "run", **options)
    assert evaluated == list(range(2 * rows, VOCAB))
    evaluated.clear()
    read = ngrams(graph, resume=tmp_path / "run", **options)
    assert evaluated == []
    for found in (again, read):
        assert torch.equal(found.contexts, whole.contexts)
        assert torch.equal(found.following, whole.following)
        assert torch.equal(found.scores, whole.scores)
    assert not [file for file in (tmp_path / "run").iterdir() if file.suffix != ".safetensors"]


def test_a_stop_between_part_and_state_loses_nothing(traced, tmp_path, monkeypatch):
    """The part of a chunk is written before the state that counts it."""
    graph = traced(BY_NAME["gpt2"]).graph
    options: dict[str, Any] = {"per": "row", "top": 3, "memory": 2**14, "resume": tmp_path}
    write = resuming.write_atomically

    def failing(file, fill):
        if file.name == "state.safetensors" and (tmp_path / "rows-000001.safetensors").exists():
            raise StoppedError
        return write(file, fill)

    monkeypatch.setattr(resuming, "write_atomically", failing)
    with pytest.raises(StoppedError):
        ngrams(graph, **options)
    monkeypatch.setattr(resuming, "write_atomically", write)
    again = ngrams(graph, **options)
    assert torch.equal(again.scores, ngrams(graph, **{**options, "resume": None}).scores)


def test_another_run_is_refused(traced, tmp_path):
    graph = traced(BY_NAME["gpt2"]).graph
    ngrams(graph, top=5, resume=tmp_path / "run")
    for options, words in (
        ({"top": 6}, ": top differ"),
        ({"path": "embed > L0.mlp > logits"}, "path, weights"),
        ({"memory": 2**15}, "memory"),
    ):
        with pytest.raises(jg.InputError, match=words):
            ngrams(graph, **{"top": 5, **options}, resume=tmp_path / "run")
    with pytest.raises(jg.InputError, match="weights"):
        ngrams(relocated(graph, torch.bfloat16), top=5, resume=tmp_path / "run")
    (tmp_path / "run" / "state.safetensors").write_bytes(b"broken")
    with pytest.raises(jg.FileError, match="no state of a run"):
        ngrams(graph, top=5, resume=tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(jg.FileError, match="is a file"):
        ngrams(graph, top=5, resume=tmp_path / "file")


# Mass


@pytest.fixture(scope="module")
def probabilities(demo) -> Tensor:
    return PathTable(demo).logits(torch.arange(1024)[:, None]).double().softmax(-1)


def chain(probabilities: Tensor, start: Tensor, sequence: tuple[int, ...]) -> float:
    value = float(start @ probabilities[:, sequence[0]])
    for a, b in itertools.pairwise(sequence):
        value *= float(probabilities[a, b])
    return value


def test_mass_by_hand(demo, probabilities):
    words = ["return", "raise", "re", "the"]
    uniform = torch.full((1024,), 1 / 1024, dtype=torch.float64)
    spelt = {word: [tuple(demo.tokenizer(text)["input_ids"]) for text in (word, " " + word)] for word in words}
    assert spelt["return"][0][: len(spelt["re"][0])] == spelt["re"][0]
    found = ngram_mass(demo, words, memory=2**22)
    for word, mass in zip(found.words, found.masses, strict=True):
        assert mass == pytest.approx(sum(chain(probabilities, uniform, one) for one in spelt[word]), rel=1e-5)
    kept = {one for some in spelt.values() for one in some} - {spelt["return"][0]}
    assert found.total == pytest.approx(sum(chain(probabilities, uniform, one) for one in kept), rel=1e-5)
    assert found.total < sum(found.masses)
    weights = torch.arange(1024.0)
    weighted = ngram_mass(PathTable(demo), words, weights=weights)
    expected = sum(chain(probabilities, weights.double() / weights.sum(), one) for one in spelt["the"])
    assert weighted.masses[3] == pytest.approx(expected, rel=1e-5)


class Letters:
    """A tokenizer with a token for a space and for each letter."""

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [2 if letter == " " else ord(letter) - ord("a") + 3 for letter in text]}

    def decode(self, ids: list[int]) -> str:
        return "".join(" " if token == 2 else chr(token - 3 + ord("a")) for token in ids)

    def __len__(self) -> int:
        return 29


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_mass_on_every_architecture(name, dtype, traced):
    graph, model = relocated(traced(BY_NAME[name]).graph, dtype), BY_NAME[name].build().to(dtype)
    found = ngram_mass(graph, ["a", "if", "def"], path="embed > L0.mlp > logits", tokenizer=Letters())
    table = FORMULAS[name](model, EVERY, True).double().softmax(-1)
    uniform = torch.full((VOCAB,), 1 / VOCAB, dtype=torch.float64)
    for word, mass in zip(("a", "if", "def"), found.masses, strict=True):
        sequences = [tuple(Letters()(text)["input_ids"]) for text in (word, " " + word)]
        expected = sum(chain(table, uniform, sequence) for sequence in sequences)
        assert mass == pytest.approx(expected, rel=1e-4 if dtype == torch.float32 else 0.1)
    assert found.total == pytest.approx(sum(found.masses))


def test_mass_of_everything_is_one(demo):
    """Every printable beginning of a text starts with one of these tokens, whatever follows."""
    tokens = [demo.tokenizer.decode([token]) for token in range(1024)]
    single = [text for text in tokens if demo.tokenizer(text)["input_ids"] == [demo.tokenizer(text)["input_ids"][0]]]
    words = [word for word in dict.fromkeys(text.strip() for text in single) if word and "\ufffd" not in word]
    total = ngram_mass(demo, words).total
    assert 0.8 < total <= 1
    assert total >= ngram_mass(demo, words[::2]).total


def test_mass_of_listed_ngrams_is_a_lower_bound(demo):
    words = ["return", "raise", "import"]
    exact = ngram_mass(demo, words)
    bound = ngram_mass(ngrams(demo, per="row", top=20), words)
    assert bound.lower_bound
    assert not exact.lower_bound
    assert 0 < bound.total < exact.total
    assert "at least" in bound.title
    full = ngram_mass(ngrams(demo, per="row", top=1024), words)
    assert full.masses == pytest.approx(exact.masses, rel=1e-5)
    for wrong in (ngrams(demo), ngrams(demo, per="row", scores="logit"), ngrams(demo, per="row", rows=[1])):
        with pytest.raises(jg.InputError, match="needs ngrams"):
            ngram_mass(wrong, words)


def test_keywords_from_a_file(demo, tmp_path):
    file = tmp_path / "words.txt"
    # With a byte-order mark, as some editors write.
    file.write_text("\ufeffreturn  # often\n# a list\n\nC#\nreturn\n", encoding="utf-8")
    found = ngram_mass(demo, file)
    assert found.words == ("return", "C#")
    assert found.masses == pytest.approx(ngram_mass(demo, ["return", "C#"]).masses)
    assert found.figure().axes[0].get_xlabel().startswith("mass: mean over contexts")
    assert list(found.to_dataframe().columns) == ["word", "tokens", "mass"]
    with pytest.raises(jg.InputError, match="no word"):
        ngram_mass(demo, [])
    with pytest.raises(jg.FileError, match="there is no file"):
        ngram_mass(demo, tmp_path / "none.txt")
    with pytest.raises(jg.InputError, match="weights are one number"):
        ngram_mass(demo, ["a"], weights=torch.ones(3))


def test_mass_needs_a_tokenizer_and_bigrams(demo, traced):
    with pytest.raises(jg.InputError, match="tokenizer"):
        ngram_mass(traced(BY_NAME["gpt2"]).graph, ["a"])
    with pytest.raises(jg.InputError, match="n=3"):
        ngram_mass(PathTable(demo, "embed > L0.attn > logits", 3), ["a"])


# Agreement


def corpus(tokens: int = 4000) -> Tensor:
    """A Markov chain over 20 tokens with skewed transitions."""
    generator = np.random.default_rng(0)
    transitions = generator.dirichlet(np.full(20, 0.3), size=20)
    row = [0]
    for _ in range(tokens - 1):
        row.append(generator.choice(20, p=transitions[row[-1]]))
    return torch.tensor(row)


def by_hand(scores: Tensor, counts: np.ndarray, minimum: int, top: int) -> tuple[float, float]:
    hits, correlations = [], []
    for context in range(len(counts)):
        if counts[context].sum() < minimum:
            continue
        seen = [token for token in range(VOCAB) if counts[context, token] > 0]
        truth = sorted(seen, key=lambda token: (-counts[context, token], token))[:top]
        best = sorted(range(VOCAB), key=lambda token: (-float(scores[context, token]), token))[:top]
        hits.append(len(set(truth) & set(best)) / len(truth))
        ours = pandas.Series([float(scores[context, token]) for token in seen]).rank()
        theirs = pandas.Series([counts[context, token] for token in seen]).rank()
        if theirs.nunique() > 1:
            correlations.append(float(ours.corr(theirs)) if ours.nunique() > 1 else 0.0)
    return float(np.mean(hits)), float(np.mean(correlations))


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt_post_norm", "gptj", "gemma"])
def test_agreement_by_hand(name, traced):
    example = traced(BY_NAME[name])
    ids = corpus()
    found = ngram_agreement(example.graph, ids, top=(1, 5), minimum=50, resamples=50)
    assert found.paths == ("embed > logits", "embed > L0.mlp > logits", "embed > L1.mlp > logits", "unigram", "model")
    counts = np.zeros((VOCAB, VOCAB), dtype=int)
    for a, b in itertools.pairwise(ids.tolist()):
        counts[a, b] += 1
    model = BY_NAME[name].build()
    tables = {
        "embed > logits": FORMULAS[name](model, EVERY, False),
        "embed > L0.mlp > logits": FORMULAS[name](model, EVERY, True),
        "unigram": torch.tensor(counts.sum(0))[None].expand(VOCAB, -1),
        "model": model(EVERY[:, None]).logits[:, 0],
    }
    for path, scores in tables.items():
        for top in (1, 5):
            hit, correlation = by_hand(scores, counts, 50, top)
            assert found.value(path, f"hit@{top}")[0] == pytest.approx(hit)
        assert found.value(path, "spearman")[0] == pytest.approx(correlation)
    assert found.pairs == len(ids) - 1


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt_post_norm", "gptj", "gemma"])
def test_agreement_in_bfloat16(name, traced):
    """By the tables as they are in bfloat16, for its rounding makes ties that the formula breaks otherwise."""
    graph = relocated(traced(BY_NAME[name]).graph, torch.bfloat16)
    ids = corpus()
    found = ngram_agreement(graph, ids, paths="embed > L0.mlp > logits", top=(5,), minimum=50, resamples=50)
    counts = np.zeros((VOCAB, VOCAB), dtype=int)
    for a, b in itertools.pairwise(ids.tolist()):
        counts[a, b] += 1
    scores = PathTable(graph, "embed > L0.mlp > logits").logits(EVERY[:, None])
    assert scores.dtype == torch.bfloat16
    hit, correlation = by_hand(scores, counts, 50, 5)
    # The last bit depends on how many contexts are computed at once.
    assert found.value("embed > L0.mlp > logits", "hit@5")[0] == pytest.approx(hit, abs=0.02)
    assert found.value("embed > L0.mlp > logits", "spearman")[0] == pytest.approx(correlation, abs=0.01)


def test_agreement_of_the_true_table_is_perfect():
    ids = corpus()
    counts = torch.zeros(VOCAB, VOCAB)
    for a, b in itertools.pairwise(ids.tolist()):
        counts[a, b] += 1
    found = ngram_agreement(lookup(counts), ids, paths=["embed > logits"], resamples=20)
    for measure in found.measures:
        assert found.value("embed > logits", measure) == pytest.approx((1, 1, 1))
        assert found.value("unigram", measure)[2] < 1


def test_intervals_are_those_of_the_mean():
    """With many contexts, the percentile bootstrap comes to mean ± 1.96 standard errors."""
    values = torch.from_numpy(np.random.default_rng(1).exponential(size=(2, 900, 1)))
    values[0, 3, 0] = math.nan
    mean, low, high = agreement._intervals(values, 2000, 0)
    for path in (0, 1):
        known = values[path, :, 0][~values[path, :, 0].isnan()]
        error = 1.96 * float(known.std()) / math.sqrt(len(known))
        assert float(mean[path, 0]) == pytest.approx(float(known.mean()))
        assert float(known.mean() - low[path, 0]) == pytest.approx(error, rel=0.15)
        assert float(high[path, 0] - known.mean()) == pytest.approx(error, rel=0.15)
    again = agreement._intervals(values, 2000, 0)
    assert torch.equal(again[1], low)


def test_agreement_with_texts(demo):
    texts = ["raise an exception if the value is not valid", "return the value of the name"] * 10
    found = ngram_agreement(demo, texts, paths=["embed > logits", "embed > *.mlp > logits"], minimum=10, resamples=10)
    lengths = [len(demo.tokenizer(text)["input_ids"]) for text in texts]
    assert found.pairs == sum(lengths) - len(texts)
    frame = found.to_dataframe()
    assert list(frame.columns) == ["measure", "path", "mean", "low", "high", "contexts"]
    assert ((frame["low"] <= frame["mean"] + 1e-9) & (frame["mean"] <= frame["high"] + 1e-9)).all()
    axes = found.figure().axes
    assert [one.get_xlabel() for one in axes][-2:] == ["hit ratio at 10 [share]", "Spearman rank correlation"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == list(found.paths)
    with pytest.raises(jg.InputError, match="there are hit@1"):
        found.value("unigram", "hit@3")


def test_corpora_that_do_not_fit(demo, traced):
    graph = traced(BY_NAME["gpt2"]).graph
    for ids, words in (
        (torch.tensor([1, VOCAB]), "model knows 0 to 52"),
        (torch.tensor([1, 2]), "give more text"),
        (torch.tensor([0.5]), "token ids"),
        (torch.tensor([1]), "give more text"),
        ("text", "tokenizer"),
    ):
        with pytest.raises(jg.InputError, match=words):
            ngram_agreement(graph, ids)
    with pytest.raises(jg.InputError, match="1 or more"):
        ngram_agreement(graph, corpus(), top=())


def test_a_result_is_what_it_says(traced):
    found = ngrams(traced(BY_NAME["gpt2"]).graph, top=3)
    assert isinstance(found, NGrams)
    assert len(found) == 3
    assert found.columns()["token"][0].startswith("#")


# More than there is room for


def test_words_of_any_length_are_read_at_once():
    sequences = [(1, 2), (3,), (1,), (3, 1), (1, 2, 3), (2, 1)]
    assert prefix_free(sequences) == [(3,), (1,), (2, 1)]
    random = np.random.default_rng(0)
    for _ in range(50):
        some = [tuple(random.integers(0, 3, random.integers(1, 5)).tolist()) for _ in range(8)]
        every = dict.fromkeys(some)
        free = [one for one in every if not any(one[:length] in every for length in range(1, len(one)))]
        assert prefix_free(some) == free
    start = time.process_time()
    assert len(prefix_free([(1,) * 100_000, (2,) * 100_000])) == 2
    assert time.process_time() - start < 1


def test_results_that_no_memory_holds_are_refused(monkeypatch, demo):
    calls = [
        lambda: ngrams(demo.graph, top=10**9),
        lambda: ngrams(demo.graph, top=10**9, per="row"),
        lambda: jg.diff(demo.graph, demo.graph, top=10**9),
        lambda: jg.trajectory([demo.graph], top=10**9),
    ]
    monkeypatch.setattr(budget, "TOP_BUDGET", 2**20)
    for call in calls:
        with pytest.raises(jg.BudgetError, match=r"are [\d,]+ n-grams here, more than the 52,428 that a result"):
            call()


def test_positions_are_whole_numbers_of_a_model(demo):
    with pytest.raises(jg.InputError, match=r"distance=1\d+ does not fit: it is 1 to 2,147,483,648"):
        ngrams(demo.graph, "embed > L0.attn > logits", n=3, distance=10**23)
