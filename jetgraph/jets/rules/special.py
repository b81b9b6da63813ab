"""Special functions: those of Bessel, the scaled error function and what is made of it, orthogonal polynomials, zeta.

Taylor coefficients at the centre come of a recurrence that the function obeys, started by its own values: of a linear
differential equation, x y'' + (a + b x) y' + (c + d x) y = 0, or of an order, as P_(k+1) of P_k and P_(k−1). Sources:
Abramowitz and Stegun, Handbook of Mathematical Functions, 7.2, 9 and 22; NIST Digital Library of Mathematical
Functions, 3.6 for which direction is stable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jetgraph.errors import MissingRuleError
from jetgraph.jets import elementary
from jetgraph.jets.domain import demand, inside_one, positive
from jetgraph.jets.elementary import Rows
from jetgraph.jets.recording import is_followed
from jetgraph.jets.registry import register_rule
from jetgraph.jets.rules.elementwise import NONZERO, POSITIVE, elementwise, polygamma, run, with_derivatives
from jetgraph.jets.series import Series

aten = torch.ops.aten

# Of a linear differential equation


@dataclass(frozen=True)
class _Equation:
    """x y'' + (a + b x) y' + (c + d x) y = 0, of a function that is even, or one of x > 0."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    a: float = 1
    b: float = 0
    c: float = 0
    d: float = 1
    entire: bool = True
    """Its series at 0 begins with 1 and is that of x > 0 everywhere."""

    def coefficients(self, x: Tensor, number: int) -> list[Tensor]:
        """So many Taylor coefficients at x. Where derivatives are taken by x, they are those of the polynomial that
        more coefficients make, for PyTorch has none of these functions.
        """
        if not is_followed(x):
            return self._at(x, number)
        found, step = self._at(x.detach(), number + _FOLLOWED), x - x.detach()
        moved = []
        for m in range(number):
            row = torch.zeros_like(step)
            for k in range(_FOLLOWED, -1, -1):
                row = row * step + math.comb(m + k, k) * found[m + k]
            moved.append(row)
        return moved

    def _at(self, x: Tensor, number: int) -> list[Tensor]:
        side, x = x.sign(), x.abs()
        far = x.clamp_min(_NEAR) if self.entire else x
        found = [self.value(far), self.slope(far)]
        for m in range(number - 2):
            rest = (m + 1) * (m + self.a + self.b * far) * found[m + 1] + (self.b * m + self.c + self.d * far) * found[
                m
            ]
            if m:
                rest = rest + self.d * found[m - 1]
            found.append(rest / (far * -((m + 2) * (m + 1))))
        if self.entire:
            near = self._around_zero(x.clamp_max(_NEAR), number)
            found = [torch.where(x < _NEAR, one, other) for one, other in zip(near, found, strict=False)]
        return [row * side**m for m, row in enumerate(found[:number])]

    def _around_zero(self, x: Tensor, number: int) -> list[Tensor]:
        """The same of the series at 0, where a division by x would cost digits."""
        series = [1.0, -self.c / self.a]
        for k in range(1, _TERMS):
            series.append(-((self.b * k + self.c) * series[k] + self.d * series[k - 1]) / ((k + 1) * (k + self.a)))
        rows = []
        for m in range(number):
            row = torch.zeros_like(x)
            for k in range(_TERMS, m - 1, -1):
                row = row * x + math.comb(k, m) * series[k]
            rows.append(row)
        return rows


_NEAR = 2.0
"""Up to here a series at 0 has all digits, from here on a recurrence does."""
_TERMS = 44
_FOLLOWED = 4
"""How many derivatives by the centre are right."""


def _spherical_slope(x: Tensor) -> Tensor:
    return (x.cos() - x.sin() / x) / x


# Beyond 5 PyTorch's own J and Y are good to 1e-7 alone, and so is what begins with them.
_J = _Equation(aten.special_bessel_j0.default, lambda x: -aten.special_bessel_j1.default(x))
_Y = _Equation(aten.special_bessel_y0.default, lambda x: -aten.special_bessel_y1.default(x), entire=False)
_I = _Equation(aten.i0.default, aten.special_i1.default, d=-1)
_K = _Equation(
    aten.special_modified_bessel_k0.default,
    lambda x: -aten.special_modified_bessel_k1.default(x),
    d=-1,
    entire=False,
)
_SCALED_I = _Equation(
    aten.special_i0e.default, lambda x: aten.special_i1e.default(x) - aten.special_i0e.default(x), b=2, c=1, d=0
)
_SCALED_K = _Equation(
    aten.special_scaled_modified_bessel_k0.default,
    lambda x: aten.special_scaled_modified_bessel_k0.default(x) - aten.special_scaled_modified_bessel_k1.default(x),
    b=-2,
    c=-1,
    d=0,
    entire=False,
)
_SPHERICAL = _Equation(lambda x: x.sin() / x, _spherical_slope, a=2)


def _solution(equation: _Equation, slope: float = 0, value: Callable[[Tensor], Any] = lambda x: 0) -> Any:
    """Of a solution y the function itself, or `slope` · y′ + `value` · y."""

    def recurrence(x: Rows, y0: Tensor) -> Rows:
        first = elementary.head(x)
        own = equation.coefficients(first, len(x) + 1)
        if not slope:
            return elementary.compose(x, own[:-1])
        beside = value(first)
        outer = [slope * (m + 1) * own[m + 1] + beside * own[m] for m in range(len(x))]
        return elementary.compose(x, outer)

    return recurrence


for _op, _recurrence in (
    (aten.special_bessel_j0.default, _solution(_J)),
    (aten.special_bessel_j1.default, _solution(_J, -1)),
    (aten.i0.default, _solution(_I)),
    (aten.special_i1.default, _solution(_I, 1)),
    (aten.special_modified_bessel_i0.default, _solution(_I)),
    (aten.special_modified_bessel_i1.default, _solution(_I, 1)),
    (aten.special_spherical_bessel_j0.default, _solution(_SPHERICAL)),
):
    elementwise(_op, _recurrence, derived=False)
# e^−|x| has a kink.
elementwise(aten.special_i0e.default, _solution(_SCALED_I), smooth=NONZERO)
elementwise(aten.special_i1e.default, _solution(_SCALED_I, 1, torch.sign), smooth=NONZERO)
for _op, _recurrence in (
    (aten.special_bessel_y0.default, _solution(_Y)),
    (aten.special_bessel_y1.default, _solution(_Y, -1)),
    (aten.special_modified_bessel_k0.default, _solution(_K)),
    (aten.special_modified_bessel_k1.default, _solution(_K, -1)),
    (aten.special_scaled_modified_bessel_k0.default, _solution(_SCALED_K)),
    (aten.special_scaled_modified_bessel_k1.default, _solution(_SCALED_K, -1, torch.ones_like)),
):
    elementwise(_op, _recurrence, domain=POSITIVE, derived=False)


# The normal distribution


def _scaled_complement(x: Tensor, number: int) -> list[Tensor]:
    """Taylor coefficients of y = exp(x²) erfc(x): y' = 2 x y − 2/√π, so that (m + 1) y_(m+1) = 2 x y_m + 2 y_(m−1).

    Up to 2 forwards; beyond, y is the solution that decays with m, which is found backwards and scaled to y_0.
    """
    first = aten.special_erfcx.default(x)
    near, far = x.clamp_max(2.0), x.clamp_min(2.0)
    forwards = [first, 2 * near * first - 2 / math.sqrt(math.pi)]
    for m in range(1, number - 1):
        forwards.append((2 * near * forwards[m] + 2 * forwards[m - 1]) / (m + 1))
    rows = [torch.zeros_like(x), torch.full_like(x, 1e-200 if x.dtype == torch.float64 else 1e-30)]
    for m in range(number + 60, 0, -1):
        # Coefficients change their signs by turns, and are taken without them.
        rows.append(far * rows[-1] + (m + 1) / 2 * rows[-2])
        if m > number:
            largest = rows[-1].abs()
            rows = [rows[-2] / largest, rows[-1] / largest]
    backwards = [row / rows[-1] * first * (-1) ** m for m, row in enumerate(reversed(rows[-number:]))]
    return [torch.where(x < 2.0, *pair) for pair in zip(forwards[:number], backwards, strict=True)]


elementwise(
    aten.special_erfcx.default,
    lambda x, y0: elementary.compose(x, _scaled_complement(elementary.head(x), len(x))),
)


def _log_cdf(x: Rows, y0: Tensor) -> Rows:
    """log Φ: y' = φ/Φ x', below 0 by the scaled error function, where Φ would vanish."""
    first = elementary.head(x)

    def slope(x: Rows) -> Rows:
        low = [first.clamp_max(0.0), *x[1:]]
        below = elementary.scale(low, -math.sqrt(0.5))
        scaled = elementary.compose(below, _scaled_complement(elementary.head(below), len(x)))
        hazard = elementary.scale(elementary.reciprocal(scaled), math.sqrt(2 / math.pi))
        high = [first.clamp_min(0.0), *x[1:]]
        square = elementary.product(high, high)
        density = elementary.exp(square, (elementary.head(square) * -0.5).exp() / math.sqrt(2 * math.pi), -0.5)
        half = elementary.scale(high, -math.sqrt(0.5))
        cdf = elementary.scale(elementary.erf(half, torch.erf(elementary.head(half))), -0.5)
        whole: Rows = [torch.erfc(elementary.head(half)) / 2, *cdf[1:]]
        ratio = elementary.quotient(density, whole)
        pairs = zip(hazard, ratio, strict=True)
        return [
            torch.where(first < 0, elementary.zero_like(one, hazard), elementary.zero_like(other, ratio))
            for one, other in pairs
        ]

    return elementary.integrate(x, slope, y0)


def _normal_quantile(x: Rows, y0: Tensor) -> Rows:
    """Φ⁻¹: y' = √(2π) exp(y²/2) x'."""
    square: Rows = []
    inverse_density: Rows = []

    def slope(y: Rows, m: int) -> Tensor | None:
        square.append(elementary.dot(y, y, m))
        if m == 0:
            inverse_density.append((y0 * y0 / 2).exp() * math.sqrt(2 * math.pi))
        else:
            inverse_density.append(elementary.step(square, inverse_density, m, factor=0.5))
        return inverse_density[m]

    return elementary.solve(x, y0, slope)


elementwise(aten.special_log_ndtr.default, _log_cdf)
elementwise(
    aten.special_ndtri.default,
    _normal_quantile,
    domain=(lambda value: inside_one(2 * value - 1), "the argument must lie between 0 and 1"),
)


# Functions of an order, which stays


def _of_order(op: Any, recurrence: Callable[[Rows, Tensor, Any], Rows], need: str, order_first: bool = True) -> None:
    """Register a function of x > 0 and of an order, by which it has no Taylor rule."""

    def rule(order: int, *given: Any) -> Series:
        at, x = given if order_first else reversed(given)
        if isinstance(at, Series):
            raise MissingRuleError(f"there is no Taylor rule in {need}: hold it constant")
        first = x.coefficient(0)
        demand(first, positive, "the argument must be positive")

        def value(centre: Tensor) -> Tensor:
            return op(at, centre) if order_first else op(centre, at)

        return run(order, x, value, lambda rows, y0: recurrence(rows, y0, at))

    register_rule(op, rule, kind="elementwise", gate="gate")


def _zeta(x: Rows, y0: Tensor, s: Any) -> Rows:
    """ζ(s, x): coefficient m is C(−s, m) ζ(s + m, x)."""
    centre = elementary.head(x)
    outer, factor = [y0], torch.as_tensor(1.0, dtype=centre.dtype)
    for m in range(1, len(x)):
        factor = factor * (-(s + m - 1) / m)
        outer.append(factor * torch.special.zeta(s + float(m), centre))
    return elementary.compose(_widely(x, y0), outer)


def _widely(x: Rows, like: Tensor) -> Rows:
    """Rows of the shape of what comes of them and another argument."""
    return [None if row is None else row.expand(like.shape) for row in x]


def _gamma_share(sign: int) -> Callable[[Rows, Tensor, Any], Rows]:
    """Of the regularised incomplete gamma functions: y' = ± x^(a−1) e^−x / Γ(a) x'."""

    def recurrence(x: Rows, y0: Tensor, a: Any) -> Rows:
        x = _widely(x, y0)
        exponent = torch.as_tensor(a, dtype=y0.dtype, device=y0.device)

        def slope(x: Rows) -> Rows:
            power = [None if row is None else row * (exponent - 1) for row in elementary.log(x)]
            inner = elementary.plus(power, x, -1)
            head = (elementary.head(inner) - torch.lgamma(exponent)).exp() * sign
            return elementary.exp(inner, head)

        return elementary.integrate(x, slope, y0)

    return recurrence


for _op in (aten.special_zeta.default, aten.special_zeta.self_scalar):
    _of_order(_op, _zeta, "its first argument")
for _op, _sign in (
    (aten.special_gammainc.default, 1),
    (aten.igamma.default, 1),
    (aten.special_gammaincc.default, -1),
    (aten.igammac.default, -1),
):
    _of_order(_op, _gamma_share(_sign), "its first argument")
_of_order(aten.polygamma.default, lambda x, y0, n: polygamma(n, x, y0), "its order")


# Orthogonal polynomials

_Step = Callable[[int], tuple[float, float, float]]
"""A, B and C of P_(k+1) = (A x + B) P_k − C P_(k−1)."""


def _chebyshev(first: tuple[float, float], shifted: bool = False) -> tuple[tuple[float, float], _Step]:
    """P_1 = p x + q and the recurrence; shifted, of 2 x − 1."""
    p, q = first
    if shifted:
        return (2 * p, q - p), lambda k: (4.0, -2.0, 1.0)
    return first, lambda k: (2.0, 0.0, 1.0)


_POLYNOMIALS: dict[str, tuple[tuple[float, float], _Step]] = {
    "hermite_polynomial_h": ((2, 0), lambda k: (2, 0, 2 * k)),
    "hermite_polynomial_he": ((1, 0), lambda k: (1, 0, k)),
    "laguerre_polynomial_l": ((-1, 1), lambda k: (-1 / (k + 1), (2 * k + 1) / (k + 1), k / (k + 1))),
    "legendre_polynomial_p": ((1, 0), lambda k: ((2 * k + 1) / (k + 1), 0, k / (k + 1))),
    **{
        f"{'shifted_' * shifted}chebyshev_polynomial_{kind}": _chebyshev(first, shifted)
        for kind, first in {"t": (1, 0), "u": (2, 0), "v": (2, -1), "w": (2, 1)}.items()
        for shifted in (False, True)
    },
}
"""By name P_1 = p x + q, where P_0 = 1, and how it goes on."""


def _polynomial(op: Any, first: tuple[float, float], step: _Step) -> None:
    def rule(order: int, x: Series | Tensor, n: Any) -> Any:
        # A degree is a whole number, whatever it is made of.
        degree = n.coefficient(0) if isinstance(n, Series) else n
        if not isinstance(x, Series):
            return op(x, degree)
        return run(order, x, lambda centre: with_derivatives(op, recurrence, centre, degree), recurrence, degree)

    def recurrence(x: Rows, y0: Tensor, n: Any) -> Rows:
        x = _widely(x, y0)
        degree = torch.as_tensor(n, device=y0.device).trunc()
        before: Rows = [torch.ones_like(y0), *[None] * (len(x) - 1)]
        now = elementary.shift(elementary.scale(x, first[0]), first[1])
        found = [torch.where(degree == 0, 1.0, 0.0).to(y0).expand(y0.shape), *[torch.zeros_like(y0)] * (len(x) - 1)]
        for k in range(1, int(degree.max()) + 1 if degree.numel() else 0):
            found = [
                old if row is None else torch.where(degree == k, row, old) for row, old in zip(now, found, strict=True)
            ]
            a, b, c = step(k)
            after = elementary.product(elementary.shift(elementary.scale(x, a), b), now)
            before, now = now, elementary.plus(after, before, -c)
        return [*found]

    register_rule(op, rule, kind="elementwise", gate="gate")


for _name, (_first, _step) in _POLYNOMIALS.items():
    for _overload in ("default", "n_scalar"):
        _polynomial(getattr(getattr(aten, f"special_{_name}"), _overload), _first, _step)
