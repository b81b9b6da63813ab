"""Coefficients of low order of activations in bfloat16, in closed form.

A recurrence works in float32 and reads and writes each coefficient several times, at twice the width. What a device
does with an activation takes as long as the memory takes that it moves: here the same is worked out in as few passes
as there are, in float32 inside each operator, which casts what it reads and what it writes as it goes. Every
coefficient is rounded once, and keeps its digits where f and its derivatives are tiny.

A function takes x_0 and the coefficients above it, of which None is zero, then the operator's further arguments, and
gives those of f(x) above order 0, or None for orders that it does not know. Nothing may follow what it does. Float16
is not for it, for coefficients there overflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

aten = torch.ops.aten

Above = list[Tensor | None] | None
Closed = Callable[..., Above]
"""`(rows of x, *further arguments of the op) → rows of y from 1 on`."""


def softplus(x: Sequence[Tensor | None], beta: float = 1, threshold: float = 20) -> Above:
    """f′ = σ(beta x), and 1 beyond the threshold."""
    centre, first, *others = x
    if others or centre is None or first is None:
        return None
    return [aten.softplus_backward.default(first, centre, beta, threshold)]


def mish(x: Sequence[Tensor | None]) -> Above:
    """x tanh(softplus x), whose slope is one operator."""
    centre, first, *others = x
    if others or centre is None or first is None:
        return None
    return [aten.mish_backward.default(first, centre)]


def exp(x: Sequence[Tensor | None]) -> Above:
    """exp′ = exp."""
    centre, first, *others = x
    if others or centre is None or first is None:
        return None
    return [_product(centre.float().exp_(), first)]


def sigmoid(x: Sequence[Tensor | None], times: float = 1.0) -> Above:
    """σ′(times · x_0) x_1 with σ′ = σ (1 − σ), which is even: for negative values both factors have their digits."""
    centre, first, *others = x
    if others or centre is None or first is None:
        return None
    y = torch.mul(_below_zero(centre), _constant(times, centre)).sigmoid_()
    return [aten.sigmoid_backward.grad_input(first, y, grad_input=torch.empty_like(first))]


def tanh(x: Sequence[Tensor | None]) -> Above:
    """tanh x = 2 σ(2 x) − 1, so that tanh′(x) = 4 σ′(2 x)."""
    above = sigmoid(x, 2.0)
    return None if above is None else [None if row is None else row.mul_(4) for row in above]


def silu(x: Sequence[Tensor | None]) -> Above:
    """x σ(x): f′ is one operator; f″ = 2 σ (1 − σ) (1 + x (1 − 2 σ) / 2), which is even."""
    centre, first, *others = x
    if centre is None or len(others) > 1:
        return None
    if first is None:
        return [None, *(None if row is None else aten.silu_backward.default(row, centre) for row in others)]
    above: list[Tensor | None] = [aten.silu_backward.default(first, centre)]
    for second in others:
        below = _below_zero(centre)
        y = below.float().sigmoid_()
        bend = torch.addcmul(below, below, y, value=-2)
        half = aten.sigmoid_backward.default(first, y)
        half.addcmul_(half, bend, value=0.5)
        if second is None:
            above.append(_product(half, first))
        else:
            # In float32, for it is the sum of both that is rounded.
            rest = aten.silu_backward.default(second.float(), centre)
            above.append(torch.addcmul(rest, half, first, out=torch.empty_like(first)))
    return above


def gelu(x: Sequence[Tensor | None], *, approximate: str = "none") -> Above:
    """x Φ(x): f′ = Φ + x φ with Φ = erfc(−x / √2) / 2, and f″ = φ (2 − x²); of the form by tanh f′ alone."""
    centre, first, *others = x
    if centre is None or first is None or len(others) > 1 or (others and approximate == "tanh"):
        return None
    if approximate == "tanh":
        return [_gelu_tanh(centre, first)]
    density = _constant(-math.log(math.sqrt(2 * math.pi)), centre).addcmul(centre, centre, value=-0.5).exp_()
    double = torch.mul(centre, _constant(-math.sqrt(0.5), centre)).erfc_().addcmul_(centre, density, value=2)
    above: list[Tensor | None] = [_half_product(_constant(0.0, centre), double, first)]
    for second in others:
        bend = density.addcmul(density * centre, centre, value=-0.5).mul_(first)
        above.append(_product(bend, first) if second is None else _half_product(bend.mul_(first), double, second))
    return above


def _gelu_tanh(centre: Tensor, first: Tensor) -> Tensor:
    """x σ(u) with u = x (a + b x²): f′ = σ + x u′ σ (1 − σ), x u′ = x (a + 3 b x²)."""
    a = 2 * math.sqrt(2 / math.pi)
    b = 0.044715 * a
    inner = _constant(a, centre).addcmul(centre, centre, value=b).mul_(centre)
    along = _constant(a, centre).addcmul(centre, centre, value=3 * b).mul_(centre)
    y = inner.sigmoid()
    along.mul_(inner.neg_().sigmoid_())
    y.mul_(first)
    return torch.addcmul(y, y, along, out=torch.empty_like(first))


def _below_zero(x: Tensor) -> Tensor:
    """−|x|"""
    return torch.copysign(x, -1.0)


def _constant(value: float, like: Tensor) -> Tensor:
    """A number to whose type others are brought that are beside it."""
    return torch.full((1,) * like.dim(), value, dtype=torch.float32, device=like.device)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b, rounded to the type of b."""
    return torch.mul(a, b, out=torch.empty_like(b))


def _half_product(rest: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """rest + a b / 2, rounded to the type of b."""
    return torch.addcmul(rest, a, b, value=0.5, out=torch.empty_like(b))
