"""Sums of coefficients against definitions, at orders 0..6."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import jetgraph as jg
from jetgraph.jets.interpreter import evaluate
from jetgraph.jets.series import Series
from jetgraph.jets.totals import product, total
from tests.jets import definitions as d
from tests.jets import oracle
from tests.jets.definitions import Array
from tests.operators import Operators

aten = torch.ops.aten
WIDTH = 6


class Gated(nn.Module):
    """A norm that is written out, and a gated MLP behind it, with a way past both."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.gate, self.up, self.down = (nn.Linear(WIDTH, WIDTH, bias=bias) for bias in (False, False, True))

    def normal(self, x: Tensor) -> Tensor:
        return self.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.normal(x)
        return self.down(torch.nn.functional.silu(self.gate(y)) * self.up(y)).transpose(0, 1)


def past(x: Tensor) -> Tensor:
    """Of which the last product is read twice, and one factor goes on by itself."""
    a, b = x.sin(), x.exp()
    y = a * b
    return torch.cat([y * 3 + a, y.flip(0) - 1]) / 2


def past_defined(x: Array) -> Array:
    a, b = d.each(mp.sin)(x), d.exp(x)
    return np.concatenate([a * b * 3 + a, (a * b)[::-1] - 1]) / 2


def chained(x: Tensor) -> Tensor:
    """Products of which one is a factor of the next, both of which are read in the end."""
    y = x * x.exp()
    return (y * x).sum(0) - y.mean(0)


def chained_defined(x: Array) -> Array:
    y = x * d.exp(x)
    return np.sum(y * x, axis=0) - np.sum(y, axis=0) / len(y)


def masked(x: Tensor) -> Tensor:
    """Where the mask varies with x, though no number of it does, and so does what has x's shape alone."""
    above = x > 0.125
    return torch.where(above, x, 0.5).cumsum(1) + above.to(x.dtype) * x.T.reshape(x.shape) + torch.ones_like(x)


def masked_defined(x: Array) -> Array:
    above = x > mp.mpf("0.125")
    return np.cumsum(np.where(above, x, mp.mpf("0.5")), axis=1) + above * x.T.reshape(x.shape) + 1


def gated(x: Array) -> Array:
    gate, up, down = (module.weight.detach().numpy() for module in (GATED.gate, GATED.up, GATED.down))
    y = normal(x)
    inner = np.matmul(y, gate.T)
    return np.swapaxes(np.matmul(inner * d.sigmoid(inner) * np.matmul(y, up.T), down.T) + BIAS, 0, 1)


def normal(x: Array) -> Array:
    return GATED.gain.detach().numpy() * d.normalised(x, -1, 1e-3, centred=False)


torch.manual_seed(0)
GATED = Gated().double()
BIAS = GATED.down.bias.detach().numpy()
ENDINGS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Array], Array]]] = {
    "norm": (lambda x: Gated.normal(GATED, x), normal),
    "gated": (GATED, gated),
    "layer norm": (
        lambda x: nn.functional.layer_norm(x, [WIDTH], GATED.gain.to(x.dtype), None) @ x.new_ones(WIDTH, 2),
        lambda x: np.matmul(d.layer_norm(x, [WIDTH], GATED.gain.detach().numpy()), np.ones((WIDTH, 2))),
    ),
    "read twice": (past, past_defined),
    "one after the other": (chained, chained_defined),
    "a mask": (masked, masked_defined),
    "square": (lambda x: x * x, lambda x: x * x),
    "broadcast product": (lambda x: x.exp() * x[:, :1], lambda x: d.exp(x) * x[:, :1]),
    "affine": (lambda x: 2 * x.T + 1, lambda x: 2 * x.T + 1),
    "no ending": (lambda x: x.exp(), d.exp),
    "constant": (lambda x: torch.ones_like(x).T * 2, lambda x: 2 + 0 * x.T),
    "attention": (
        lambda x: nn.functional.scaled_dot_product_attention(x[None, None], x[None, None].sin(), x[None, None]),
        lambda x: d.attention(x[None, None], d.each(mp.sin)(x[None, None]), x[None, None]),
    ),
}


def _curves() -> list[Series]:
    """Series of all orders, at several centres; at zero; a line, without its centre too; and one that stays."""
    rows = torch.randn(7, 3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    top = oracle.TOP
    lines = (Series.variate(4 * rows[1], rows[2], top), Series.direction(rows[0], top), Series.constant(rows[3], top))
    return [Series(rows, top), *lines]


@pytest.mark.parametrize("name", ENDINGS)
def test_totals_are_sums_of_coefficients(name: str) -> None:
    """At orders 0..6, against definitions on numbers of 180 digits."""
    function, defined = ENDINGS[name]
    curves = _curves()
    taylor = jg.taylor(function, curves[0].first)
    program = taylor._program
    for x in curves:
        (expected,) = oracle.definition(lambda t, x=x: [defined(oracle.at(x.stacked().numpy(), t))])
        for order in range(oracle.TOP + 1):
            series = Series(x.coefficients, order, x.start)
            read = dict(zip(program.reads, program.values(taylor._module), strict=True)) | {program.source: series}
            found = total(program.nodes, read, order, program.result)
            sums = torch.from_numpy(expected[: order + 1].sum(0))
            torch.testing.assert_close(found.detach(), sums, rtol=1e-10, atol=1e-10 * (1e-3 + float(sums.abs().max())))


def test_what_is_linear_at_the_end_runs_once() -> None:
    """On one row, whatever the order; and of the product before it a product for each row of a factor."""
    x = torch.randn(2, 4, WIDTH, dtype=torch.float64)
    taylor = jg.taylor(GATED, x[0])
    program = taylor._program
    last = [node for node in program.nodes if node.target is aten.mul.Tensor][-1].args
    for order in (1, 4):
        read: dict[Any, Any] = dict(zip(program.reads, program.values(taylor._module), strict=True))
        read[program.source] = Series.variate(x[0], x[1], order)
        given = dict(read)
        before = program.nodes[: 1 + max(map(program.nodes.index, last))]
        with torch.no_grad(), Operators() as alone:
            evaluate(before, {**read}, order)
        with torch.no_grad(), Operators() as operators:
            total(program.nodes, read, order, program.result)
        products = [one.numbers["mul"] + one.numbers["addcmul_"] for one in (operators, alone)]
        assert products[0] - products[1] == (order + 1) * x[0].numel()
        assert operators.numbers["addmm"] + operators.numbers["mm"] - alone.numbers["mm"] == x[0].numel()
        # What nothing reads any more has gone, and what was given has not.
        assert given.items() <= read.items()
        assert not any(arg in read for arg in last)


def test_products_of_half_precision_are_rounded_once() -> None:
    a, b = (Series(torch.randn(rows, 50).bfloat16(), 3) for rows in (2, 4))
    exact = product(3, *(Series(value.coefficients.double(), 3) for value in (a, b)))
    found = product(3, a, b)
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found, exact.bfloat16(), rtol=2**-8, atol=2**-10)
    assert not product(0, Series.direction(a.first, 0), b).any()


def test_what_nothing_reads_ends_nothing() -> None:
    """An affine node beside the result, which no node reads."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    beside, result = (graph.call_function(op, (x,)) for op in (aten.neg.default, aten.exp.default))
    for node in (x, beside, result):
        node.meta["shape"] = (2,)
    rows = torch.tensor([[0.0, 1.0], [2.0, 3.0]], dtype=torch.float64)
    found = total((beside, result), {x: Series(rows, 1)}, 1, result)
    torch.testing.assert_close(found, rows[0].exp() * (1 + rows[1]))
