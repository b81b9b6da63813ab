"""Elementary functions of a truncated series, each by the recurrence of its differential equation.

A series is a list of rows here, rows[j] being coefficient j and None a structural zero. If y' = w(x) x' then
j y_j = Σ_{i=1..j} i x_i w_(j-i): each function names its w, or a recurrence of its own. Every function takes the rows
of x and, where the caller has it from the plain op, y_0. Source: Griewank and Walther, Evaluating Derivatives (2008),
chapter 13.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from jetgraph.jets.arithmetic import convolve, dot, square_at

Rows = list[Tensor | None]


def zero_like(row: Tensor | None, x: Rows) -> Tensor:
    """A row written out."""
    return torch.zeros_like(next(item for item in x if item is not None)) if row is None else row


def head(x: Rows) -> Tensor:
    """x_0."""
    return zero_like(x[0], x)


def total(a: Tensor | None, b: Tensor | None, factor: float) -> Tensor | None:
    """a + factor · b."""
    if b is None:
        return a
    if a is None:
        return b if factor == 1 else b * factor
    return torch.add(a, b, alpha=factor)


def scale(x: Rows, factor: float) -> Rows:
    """factor · x"""
    return x if factor == 1 else [None if row is None else row * factor for row in x]


def shift(x: Rows, amount: float) -> Rows:
    """x + amount."""
    return [head(x) + amount, *x[1:]]


def plus(a: Rows, b: Rows, factor: float = 1) -> Rows:
    """a + factor · b."""
    return [total(left, right, factor) for left, right in zip(a, b, strict=True)]


def product(a: Rows, b: Rows, y0: Tensor | None = None) -> Rows:
    """a · b"""
    if y0 is None:
        return convolve(a, b, len(a) - 1)
    return [y0, *(dot(a, b, j) for j in range(1, len(a)))]


def step(x: Rows, w: Rows, j: int, onto: Tensor | None = None, factor: float = 1) -> Tensor | None:
    """y_j of y' = factor · w x'; reads w_0 … w_(j-1). With `onto`, which it is written over, onto + y_j."""
    return dot(x, w, j, first=1, weight=lambda i: factor * i / j, onto=onto)


def integrate(x: Rows, slope: Callable[[Rows], Rows], y0: Tensor) -> Rows:
    """y of y' = w x' for w = slope(x), of which one order less is needed."""
    w = slope([head(x), *x[1:-1]])
    return [y0, *(step(x, w, j) for j in range(1, len(x)))]


def solve(x: Rows, y0: Tensor, slope: Callable[[Rows, int], Tensor | None]) -> Rows:
    """y of y' = w(y) x': `slope(y, m)` gives w_m from y_0 … y_m."""
    y: Rows = [y0]
    w: Rows = []
    for j in range(1, len(x)):
        w.append(slope(y, j - 1))
        y.append(step(x, w, j))
    return y


def exp(x: Rows, y0: Tensor | None = None, factor: float = 1) -> Rows:
    """y' = factor · y x'; exp(factor · x), or a multiple of it by y_0."""
    y: Rows = [(head(x) * factor).exp() if y0 is None else y0]
    for j in range(1, len(x)):
        y.append(step(x, y, j, factor=factor))
    return y


def expm1(x: Rows, y0: Tensor) -> Rows:
    """exp x - 1; only coefficient 0 differs from exp."""
    return [y0, *exp(x)[1:]]


def log(x: Rows, y0: Tensor | None = None) -> Rows:
    """x y' = x'."""
    y: Rows = [head(x).log() if y0 is None else y0]
    inverse = head(x).reciprocal()
    for j in range(1, len(x)):
        below = dot(y, x, j, first=1, last=j - 1, weight=lambda i, j=j: i / j)
        row = total(x[j], below, -1)
        y.append(None if row is None else row * inverse)
    return y


def power(x: Rows, exponent: float, y0: Tensor | None = None) -> Rows:
    """x^exponent where x_0 ≠ 0: x y' = exponent · y x'."""
    y: Rows = [head(x).pow(exponent) if y0 is None else y0]
    inverse = head(x).reciprocal()
    for j in range(1, len(x)):
        row = dot(x, y, j, first=1, weight=lambda i, j=j: (exponent * i - (j - i)) / j)
        y.append(None if row is None else row * inverse)
    return y


def integer_power(x: Rows, exponent: int, y0: Tensor) -> Rows:
    """x^exponent, exponent ≥ 1: y' = exponent · x^(exponent-1) x'; nothing is divided, so x_0 may be 0."""
    if exponent == 1:
        return [y0, *x[1:]]
    if exponent == 2:
        return [y0, *(square_at(x, j) for j in range(1, len(x)))]
    below = _repeatedly_squared(x[:-1], exponent - 1)
    return [y0, *(step(x, below, j, factor=exponent) for j in range(1, len(x)))]


def _repeatedly_squared(x: Rows, exponent: int) -> Rows:
    """x^exponent, exponent ≥ 1."""
    if exponent == 1:
        return x
    half = _repeatedly_squared(x, exponent // 2)
    square = product(half, half)
    return product(square, x) if exponent % 2 else square


def reciprocal(x: Rows, y0: Tensor | None = None) -> Rows:
    """x y = 1."""
    first = head(x).reciprocal() if y0 is None else y0
    y: Rows = [first]
    for j in range(1, len(x)):
        row = dot(x, y, j, first=1)
        y.append(None if row is None else -row * first)
    return y


def quotient(a: Rows, b: Rows) -> Rows:
    """y b = a; where only a varies, a multiple of a."""
    inverse = head(b).reciprocal()
    y: Rows = []
    for j in range(len(a)):
        row = total(a[j], dot(b, y, j, first=1) if j else None, -1)
        y.append(None if row is None else row * inverse)
    return y


def sqrt(x: Rows, y0: Tensor | None = None) -> Rows:
    """y² = x."""
    first = head(x).sqrt() if y0 is None else y0
    y: Rows = [first]
    inverse = (2 * first).reciprocal()
    for j in range(1, len(x)):
        row = total(x[j], dot(y, y, j, first=1, last=j - 1), -1)
        y.append(None if row is None else row * inverse)
    return y


def rsqrt(x: Rows, y0: Tensor | None = None) -> Rows:
    """x^(-1/2)"""
    return power(x, -0.5, y0)


def tanh(x: Rows, y0: Tensor | None = None) -> Rows:
    """y' = (1 - y²) x'."""

    def slope(y: Rows, m: int) -> Tensor | None:
        if m == 0:
            first = head(y)
            return torch.addcmul(torch.ones((), dtype=first.dtype, device=first.device), first, first, value=-1)
        square = square_at(y, m)
        return None if square is None else square.neg_()

    return solve(x, head(x).tanh() if y0 is None else y0, slope)


def tan(x: Rows, y0: Tensor) -> Rows:
    """y' = (1 + y²) x'."""

    def slope(y: Rows, m: int) -> Tensor | None:
        square = square_at(y, m)
        return 1 + square if m == 0 and square is not None else square

    return solve(x, y0, slope)


def sigmoid(x: Rows, y0: Tensor | None = None) -> Rows:
    """y' = y (1 - y) x'."""
    value = head(x).sigmoid() if y0 is None else y0
    # 1 - y loses every digit where y is near 1; the sigmoid of -x does not.
    rest = torch.neg(head(x)).sigmoid_()
    difference = rest - value if len(x) > 2 else None

    def slope(y: Rows, m: int) -> Tensor | None:
        """(1 - 2 y_0) y_m - Σ_{0<i<m} y_i y_(m-i), and y_0 (1 - y_0) at order 0."""
        if difference is None or m == 0:
            return value * rest
        last = y[m]
        return total(None if last is None else last * difference, square_at([None, *y[1:m], None], m), -1)

    return solve(x, value, slope)


def sine_cosine(x: Rows, hyperbolic: bool = False) -> tuple[Rows, Rows]:
    """(sin x, cos x), or (sinh x, cosh x)."""
    first = head(x)
    s: Rows = [first.sinh() if hyperbolic else first.sin()]
    c: Rows = [first.cosh() if hyperbolic else first.cos()]
    for j in range(1, len(x)):
        up, down = step(x, c, j), step(x, s, j, factor=1 if hyperbolic else -1)
        s.append(up)
        c.append(down)
    return s, c


def atan(x: Rows, y0: Tensor) -> Rows:
    """y' = x' / (1 + x²)."""
    return integrate(x, lambda x: reciprocal(shift(product(x, x), 1)), y0)


def erf(x: Rows, y0: Tensor) -> Rows:
    """y' = 2/√π exp(-x²) x'."""

    def slope(x: Rows) -> Rows:
        square = product(x, x)
        return exp(square, (-head(square)).exp() * (2 / math.sqrt(math.pi)), -1)

    return integrate(x, slope, y0)


def softplus(x: Rows, y0: Tensor | None = None) -> Rows:
    """log(1 + exp x): y' = σ(x) x'."""
    return integrate(x, sigmoid, torch.nn.functional.softplus(head(x)) if y0 is None else y0)


def gelu(x: Rows, y0: Tensor) -> Rows:
    """x Φ(x): y' = (Φ + x φ) x' with Φ' = φ x' and φ' = -x φ x'; Φ by erfc, which keeps its digits in the left tail."""

    def slope(x: Rows) -> Rows:
        first = head(x)
        phi = (first * first * -0.5).exp() * (1 / math.sqrt(2 * math.pi))
        density: Rows = [phi]
        moment: Rows = [first * phi]
        rows: Rows = [torch.erfc(first * -math.sqrt(0.5)) * 0.5 + first * phi]
        for m in range(1, len(x)):
            density.append(step(x, moment, m, factor=-1))
            moment.append(dot(x, density, m))
            # Φ_m is Σ_i i/m x_i φ_(m-i).
            rows.append(dot(x, density, m, weight=lambda i, m=m: 1 + i / m))
        return rows

    return integrate(x, slope, y0)


def gelu_tanh(x: Rows, y0: Tensor) -> Rows:
    """x (1 + tanh(u/2)) / 2 with u = 2 √(2/π) (x + 0.044715 x³), written x σ(u) to keep digits in the left tail."""
    c = 2 * math.sqrt(2 / math.pi)
    first = head(x)
    inner = integrate(
        x, lambda x: shift(scale(product(x, x), 3 * c * 0.044715), c), first * (c + c * 0.044715 * first**2)
    )
    return product(x, sigmoid(inner), y0)


def compose(x: Rows, outer: list[Tensor]) -> Rows:
    """f(x) from the Taylor coefficients `outer[m]` = f^(m)(x_0)/m! of f, by Horner."""
    around: Rows = [None, *x[1:]]
    result: Rows = [outer[-1], *[None] * (len(x) - 1)]
    for coefficient in reversed(outer[:-1]):
        result = product(result, around)
        result[0] = coefficient
    return result
