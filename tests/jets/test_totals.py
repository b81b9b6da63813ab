"""Sums of coefficients against the coefficients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.jets.interpreter import evaluate
from jetgraph.jets.series import Series
from jetgraph.jets.totals import product, total
from tests.operators import Operators

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


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "norm": lambda x: Gated.normal(GATED, x),
    "gated": lambda x: GATED(x),
    "layer norm": lambda x: nn.functional.layer_norm(x, [WIDTH], GATED.gain.to(x.dtype), None) @ x.new_ones(WIDTH, 2),
    "read twice": past,
    "square": lambda x: x * x,
    "affine": lambda x: 2 * x.T + 1,
    "no ending": lambda x: x.exp(),
    "attention": lambda x: nn.functional.scaled_dot_product_attention(
        x[None, None], x[None, None].sin(), x[None, None]
    ),
}
torch.manual_seed(0)
GATED = Gated().double()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_totals_are_sums_of_coefficients(name: str) -> None:
    x, v = torch.randn(2, 4, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    module = GATED if name == "gated" else FUNCTIONS[name]
    taylor = jg.taylor(module, x)
    program = taylor._program
    for order in (1, 2, 5):
        for series in (Series.variate(x, v, order), Series.direction(v, order), Series.constant(x, order)):
            read = {**program.values(taylor._module), program.source: series}
            nodes, result = program.nodes, program.result
            whole = evaluate(nodes, {**read}, order, keep=(result,))[result]
            torch.testing.assert_close(total(nodes, read, order, result), whole.coefficients.sum(0))


def test_what_is_linear_at_the_end_runs_once() -> None:
    """On one row, whatever the order; and so on what the model itself computes it."""
    x = torch.randn(2, 4, WIDTH, dtype=torch.float64)
    taylor = jg.taylor(GATED, x[0])
    program = taylor._program
    counts = []
    for order in (1, 4):
        read = {**program.values(taylor._module), program.source: Series.variate(x[0], x[1], order)}
        with Operators() as operators:
            total(program.nodes, read, order, program.result)
        counts.append([operators.counts[name] for name in ("addmm", "linear", "transpose")])
    assert counts[0] == counts[1]


def test_products_of_half_precision_are_rounded_once() -> None:
    a, b = (Series(torch.randn(rows, 50).bfloat16(), 3) for rows in (2, 4))
    exact = product(3, *(Series(value.coefficients.double(), 3) for value in (a, b)))
    found = product(3, a, b)
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found, exact.bfloat16(), rtol=2**-8, atol=2**-10)
    assert not product(0, Series.direction(a.first, 0), b).any()
