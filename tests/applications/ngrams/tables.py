"""What tests of n-grams share: a table that is given, and its top by sorting."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import jetgraph as jg
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


class StoppedError(Exception):
    pass
