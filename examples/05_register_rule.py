"""Teach jetgraph an operator of your own: y = x / (1 + x²), as a custom op that PyTorch keeps whole.

python examples/05_register_rule.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import jetgraph as jg


@torch.library.custom_op("example::witch", mutates_args=())
def witch(x: Tensor) -> Tensor:
    """The operator."""
    return x / (1 + x * x)


witch.register_fake(torch.empty_like)


def witch_series(order: int, value: jg.Series) -> jg.Series:
    """y (1 + x²) = x fixes the Taylor coefficients of y one after the other."""
    x = value.stacked()
    square = [sum(x[i] * x[j - i] for i in range(j + 1)) for j in range(order + 1)]
    y: list[Tensor] = []
    for j in range(order + 1):
        known = sum((y[i] * square[j - i] for i in range(j)), torch.zeros_like(x[0]))
        y.append((x[j] - known) / (1 + square[0]))
    return jg.Series.of_rows(y, order)


@torch.no_grad()
def main() -> None:
    """Fail without the rule, then take jets with it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).double().eval()
    x, v, t = torch.randn(5, 3).double(), torch.randn(5, 3).double(), 0.05

    def curve(value: Tensor) -> Tensor:
        return network(witch(value))

    try:
        jg.jet(curve, x, v, order=1)
    except jg.MissingRuleError as error:
        print(f"before: {error}\n")
    jg.register_rule(torch.ops.example.witch.default, witch_series, kind="elementwise")

    coefficients = jg.jet(curve, x, v, order=8)
    for order in range(9):
        taylor = sum(coefficients[j] * t**j for j in range(order + 1))
        print(f"order {order}: f(x + t v) to within {(taylor - curve(x + t * v)).abs().max():.1e}")


if __name__ == "__main__":
    main()
