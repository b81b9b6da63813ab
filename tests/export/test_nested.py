"""Operators that hold graphs of their own, written out: the same as what torch runs, whichever side is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functorch.experimental.control_flow import map as map_over
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import jetgraph as jg
from tests import laws


class Layer(nn.Module):
    """A function of a stream [batch, length, 8] and of a few modules."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.norm, self.wide, self.back, self.other = (
            nn.LayerNorm(8),
            nn.Linear(8, 12),
            nn.Linear(12, 8),
            nn.Linear(8, 8),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.norm(x))


class Net(nn.Module):
    """Such a layer on a stream."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Linear(4, 8), Layer(function), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.head(h + self.layer(h))


def mlp(layer: Any, x: Tensor) -> Tensor:
    return layer.back(F.gelu(layer.wide(x)))


def by_value(layer: Any, x: Tensor) -> Tensor:
    """A choice by a tensor of one number inside of another choice."""

    def inner(x: Tensor) -> Tensor:
        return torch.cond(x[0, 0, 1:2] > 0, lambda x: x.sin(), lambda x: mlp(layer, x), (x,))

    return torch.cond(x[0, 0, 0] > 0, inner, lambda x: torch.tanh(layer.other(x)), (x,))


def by_size(layer: Any, x: Tensor) -> Tensor:
    return torch.cond(x.shape[0] > 1, lambda x: mlp(layer, x), lambda x: torch.tanh(layer.other(x)), (x,))


def each_row(layer: Any, x: Tensor) -> Tensor:
    def one(row: Any, *_: Any) -> Tensor:
        return mlp(layer, row)

    return map_over(one, x)


def recurrent(layer: Any, x: Tensor) -> Tensor:
    def step(state: Tensor, each: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.tanh(layer.other(state) + each)
        return state, state * 2

    return scan(step, torch.zeros_like(x[:, 0]), x, dim=1)[1]


def attending(layer: Any, x: Tensor) -> Tensor:
    """Causal, with a bias for the distance, of two groups of heads."""
    q, k, v = (part.unflatten(-1, (-1, 2)).transpose(1, 2) for part in layer.wide(x).split([8, 2, 2], -1))
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, x.shape[1], x.shape[1], device="cpu")

    def biased(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return 2 * torch.tanh(score / 2) - (i - j) * (h + 1) / 4

    # It has no derivatives on a CPU; the exporter asks for some of what weights that are trained have made.
    return flex_attention(q, k, v, score_mod=biased, block_mask=mask, enable_gqa=True).transpose(1, 2).flatten(2)


CASES = {
    "by value": (by_value, "dynamic sizes"),
    "by size": (by_size, "fixed"),
    "map": (each_row, "fixed"),
    "scan": (recurrent, "batch"),
    "attention": (attending, "fixed"),
}


@pytest.mark.parametrize(("function", "sizes"), CASES.values(), ids=list(CASES))
def test_they_are_written_out(function: Callable[..., Tensor], sizes: str) -> None:
    """The graph does what torch does, at inputs that take either side; jets are those of what is written out."""
    torch.manual_seed(0)
    model = Net(function).double().eval()
    inputs = [torch.randn(2, 5, 4, dtype=torch.float64) for _ in range(5)]
    graph = jg.trace(model, inputs[0])
    # What the steps of a scan add is code of the branch.
    assert [(join.name, join.kind) for join in graph.joins if not join.depth] == [("layer", "identity")]
    assert sizes in str(graph)
    module = jg.compile(jg.expand(graph, recipe="components"))
    with torch.no_grad():
        taken = {bool(model.layer.norm(model.embed(x))[0, 0, 0] > 0) for x in inputs}
        assert taken == {True, False}
        for x in inputs:
            torch.testing.assert_close(module(x).total, model(x))
    given = laws.subject(graph, {"x": inputs[0]}, {"x": inputs[1]}, torch.float64)
    assert laws.check_values(given)
    laws.check_slopes(given)


class Loops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + while_loop(lambda y: y.sum() < 9, lambda y: (y.abs() + 1,), (x,))[0]


def test_what_is_written_by_nothing() -> None:
    """How often a loop runs may be different at each call."""
    with pytest.raises(jg.TraceError, match="holds the control-flow operator while_loop, which cannot be analysed"):
        jg.trace(nn.Sequential(nn.Linear(3, 3), Loops()).eval(), torch.ones(2, 3))
