"""Smooth functions of one tensor, entry by entry, and quotients and powers of two.

Coefficient 0 is the plain op's own value; the others follow a recurrence of `jetgraph.jets.elementary`, which runs in
float32 for half-precision input, from y_0 in float32: what it subtracts from y_0, as 1 - y_0² of tanh does, would lose
every digit of a rounded one. Frozen, a function of something that varies is a constant; those of the form
x · g(x) keep x and hold g.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jetgraph.errors import DomainError
from jetgraph.jets import arithmetic, elementary
from jetgraph.jets import closed as closed_forms
from jetgraph.jets.arithmetic import cast, promoted, row_at, widened, working_dtype
from jetgraph.jets.domain import above_one, deferred, demand, has_passed, inside_one, nonzero, positive, shown
from jetgraph.jets.elementary import Rows
from jetgraph.jets.frozen import is_marked
from jetgraph.jets.recording import is_followed, may_follow
from jetgraph.jets.registry import Gate, register_rule
from jetgraph.jets.series import Series

aten = torch.ops.aten
Recurrence = Callable[..., Rows]
"""`(rows of x, y_0, *further arguments of the op) → rows of y`."""
Domain = tuple[Callable[..., Tensor], str]
"""What holds of the centre and the op's further arguments, and how to say so."""

POSITIVE: Domain = (positive, "the argument must be positive")
NONZERO: Domain = (nonzero, "the argument must not be 0")
INSIDE_ONE: Domain = (inside_one, "the argument must lie between -1 and 1")
ABOVE_ONE: Domain = (above_one, "the argument must be above 1")


def run(
    order: int, x: Series, f: Callable[[Tensor], Tensor], recurrence: Recurrence, *args: Any, **kwargs: Any
) -> Series:
    """f(x): coefficient 0 is `f` of the centre, the others are the recurrence's."""
    centre = x.coefficient(0)
    y0 = f(centre)
    if order == 0 or not x.varies:
        return Series.constant(y0, order)
    dtype = working_dtype(x.dtype)
    rows = cast(x, dtype).rows()
    first = y0 if dtype == x.dtype else f(elementary.head(rows))
    if x.dtype == torch.float16:
        result = _saturated(rows, lambda bounded: recurrence(bounded, first, *args, **kwargs))
    else:
        result = recurrence(rows, first, *args, **kwargs)
    return Series.of_rows([y0, *result[1:]], order, y0)


def with_derivatives(op: Callable[..., Tensor], recurrence: Recurrence, x: Tensor, *args: Any) -> Tensor:
    """The op's value, with the derivatives that the value of the recurrence has."""
    value = op(x, *args)
    if not is_followed(x):
        return value
    wide = x.to(working_dtype(x.dtype))
    own = recurrence([wide], value.detach().to(wide.dtype), *args)[0]
    assert own is not None
    return value.detach() + (own - own.detach()).to(value.dtype)


def _saturated(x: Rows, recurrence: Callable[[Rows], Rows]) -> Rows:
    """A recurrence on rows out of float16 whose entries may have overflowed: an overflow is passed on as one, except
    where the function is flat.

    The cube in the tanh form of GELU leaves float16 from 40 on. The plain model does not mind, for tanh is 1 there; the
    product of its slope 0 with an infinite coefficient would be no number.
    """
    most = torch.finfo(torch.float16).max
    rows = recurrence([None if row is None else row.clamp(-most, most) for row in x])
    beyond: Tensor | None = None
    for j in range(1, len(x)):
        above, row = x[j], rows[j]
        if above is not None:
            beyond = above.isinf() if beyond is None else beyond | above.isinf()
        if row is not None and beyond is not None:
            rows[j] = torch.where(beyond & (row != 0), row * math.inf, row)
    return rows


def harmless(x: Any, fine: Tensor, value: float) -> Any:
    """x where that is fine, elsewhere a number, which all is well with, that stands still."""
    if not isinstance(x, Series):
        return torch.where(fine, x, value) if isinstance(x, Tensor) else x
    rows: Rows = [x.coefficient(0), *x.rows()[1:]]
    still = [None if row is None else torch.where(fine, row, 0.0 if j else value) for j, row in enumerate(rows)]
    return Series.of_rows(still, x.order, still[0])


def only_where(fine: Tensor, y: Series, y0: Tensor) -> Series:
    """y where that is fine; elsewhere no numbers, of which no derivatives are taken either, above its plain value."""
    first, *above = (y.coefficient(j).to(y0.dtype) for j in range(y.order + 1))
    rows = [torch.where(fine, first, y0.detach()), *(torch.where(fine, row, math.nan) for row in above)]
    return Series.of_rows(rows, y.order, y0)


def elementwise(
    op: Any,
    recurrence: Recurrence,
    *,
    domain: Domain | None = None,
    smooth: Domain | None = None,
    gate: Gate = "gate",
    factor: Callable[..., Tensor] | None = None,
    closed: closed_forms.Closed | None = None,
    holomorphic: bool = False,
    shows: bool = True,
    derived: bool = True,
) -> None:
    """Register y = f(x). `domain` is needed at every order, `smooth` from order 1 on, and what lies outside `shows`
    (see `demand`); `factor` is g where f is x g;
    `closed` gives the coefficients above order 0 in bfloat16, where it knows them; `holomorphic`: the
    recurrence holds for complex values too; not `derived`: PyTorch has no derivative of the op, so that of its value is
    the recurrence's."""

    def rule(order: int, x: Series, *args: Any, **kwargs: Any) -> Series:
        centre = x.coefficient(0)
        for needed in (domain, smooth if order and x.varies else None):
            if needed is None:
                continue
            inside, need = needed
            demand(centre, lambda value, inside=inside: inside(value, *args, **kwargs), need, shows=shows)
            if shows and has_passed():
                fine = inside(centre, *args, **kwargs)
                with shown(False):
                    result = rule(order, harmless(x, fine, 2.0 if needed is ABOVE_ONE else 0.5), *args, **kwargs)
                return only_where(fine, result, op(centre, *args, **kwargs))
        # In full precision the recurrence has more digits, and in float16 it passes an overflow on.
        if closed is not None and order and x.varies and x.dtype == torch.bfloat16 and not may_follow():
            above = closed([centre, *x.rows()[1:]], *args, **kwargs)
            if above is not None:
                value = op(centre, *args, **kwargs)
                return Series.of_rows([value, *above], order, value)
        value = partial(op, **kwargs) if derived else partial(with_derivatives, op, recurrence)
        return run(order, x, lambda centre: value(centre, *args), recurrence, *args, **kwargs)

    def held(order: int, x: Series, *args: Any, **kwargs: Any) -> Series:
        assert factor is not None
        return scaled(x, factor(widened(x.coefficient(0)), *args, **kwargs))

    def line(order: int, x: Series, *args: Any, **kwargs: Any) -> Series:
        return secant(x, lambda value: op(value, *args, **kwargs), lambda value: rule(1, value, *args, **kwargs))

    register_rule(
        op,
        rule,
        kind="elementwise",
        gate=gate,
        held=None if factor is None else held,
        line=line if factor is None else None,
        through_zero=(lambda bound: _is_zero_at_zero(op, bound)) if factor is None else True,
        complex_values=holomorphic,
    )


def _is_zero_at_zero(op: Any, bound: Mapping[str, Any]) -> bool:
    """f(0) = 0, as far as the other arguments are known."""
    numbers = (int, float, str, type(None))
    if not all(isinstance(value, numbers) for name, value in bound.items() if name != "self"):
        return False
    return not op(**{**bound, "self": torch.zeros(())}).item()


def secant(x: Series, f: Callable[[Tensor], Tensor], rule: Callable[[Series], Series]) -> Series:
    """f(0) + ((f(z) − f(0)) / z) x at z = x_0: the line that agrees with f at 0 and at z.

    Its slope is worked out in double precision. Where z is 0, or so near that the difference from another f(0) has no
    digits, it is the derivative at 0, and where f has none there, as a root has none, it is 0: f(0) is then f's whole
    value, whatever z is made of. Where f has no value at 0, the slope is the derivative's at z, which `rule` gives.
    """
    centre = x.coefficient(0)
    z = centre.to(torch.complex128 if centre.is_complex() else torch.float64)
    # Not of z's own making, and no branch on its values: z may be one of several side by side in a `vmap`.
    zero = torch.zeros((), dtype=z.dtype, device=z.device)
    start = f(zero)
    if not start.isfinite():
        return rule(x)
    small = z.abs() < _NEARLY_ZERO if start else z == 0
    slope = torch.where(small, _slope_at(zero, rule), (f(z) - start) / torch.where(small, 1.0, z))
    y0 = f(centre)
    # Where f has no value there is no line, and none that is followed backwards.
    known = slope.isfinite()
    line = torch.where(known, x.coefficient(1), 0.0) * torch.where(known, slope, 0.0)
    return Series.of_rows([y0, torch.where(known, line, math.nan)], 1, y0)


def _slope_at(zero: Tensor, rule: Callable[[Series], Series]) -> Tensor:
    """The derivative; 0 where there is none."""
    with deferred(DomainError) as checks:
        slope = rule(Series.variate(zero, torch.ones_like(zero), 1)).coefficient(1)
    return torch.where(slope.isfinite(), slope, zero) if all(checks) else zero


_NEARLY_ZERO = 1e-6
"""Below it a difference quotient from 0 in double precision has fewer digits than the derivative is off."""


def scaled(x: Series, factor: Tensor) -> Series:
    """x times a factor in the working dtype, rounded once."""
    return arithmetic.entrywise(x, lambda part: (part * factor).to(x.dtype), factor.dim())


# One argument

elementwise(aten.exp.default, elementary.exp, closed=closed_forms.exp, holomorphic=True)
elementwise(aten.expm1.default, elementary.expm1, holomorphic=True)
elementwise(aten.exp2.default, lambda x, y0: elementary.exp(x, y0, math.log(2)), holomorphic=True)
elementwise(aten.log.default, elementary.log, domain=POSITIVE, holomorphic=True)
elementwise(
    aten.log2.default,
    lambda x, y0: elementary.scale(elementary.log(x), 1 / math.log(2)),
    domain=POSITIVE,
    holomorphic=True,
)
elementwise(
    aten.log10.default,
    lambda x, y0: elementary.scale(elementary.log(x), 1 / math.log(10)),
    domain=POSITIVE,
    holomorphic=True,
)
elementwise(
    aten.log1p.default,
    lambda x, y0: elementary.log(elementary.shift(x, 1), y0),
    domain=(lambda value: positive(value + 1), "the argument must be above -1"),
    holomorphic=True,
)
elementwise(aten.sqrt.default, elementary.sqrt, smooth=POSITIVE, gate="norm", holomorphic=True)
elementwise(aten.rsqrt.default, elementary.rsqrt, domain=POSITIVE, gate="norm", holomorphic=True)
elementwise(aten.reciprocal.default, elementary.reciprocal, domain=NONZERO, gate="norm", holomorphic=True)
elementwise(aten.sin.default, lambda x, y0: elementary.sine_cosine(x)[0], holomorphic=True)
elementwise(aten.cos.default, lambda x, y0: elementary.sine_cosine(x)[1], holomorphic=True)
elementwise(aten.tan.default, elementary.tan, holomorphic=True)
elementwise(aten.sinh.default, lambda x, y0: elementary.sine_cosine(x, hyperbolic=True)[0], holomorphic=True)
elementwise(aten.cosh.default, lambda x, y0: elementary.sine_cosine(x, hyperbolic=True)[1], holomorphic=True)
elementwise(aten.tanh.default, elementary.tanh, closed=closed_forms.tanh, holomorphic=True)
elementwise(aten.atan.default, elementary.atan)


def _one_minus_square(x: Rows) -> Rows:
    return elementary.shift(elementary.scale(elementary.product(x, x), -1), 1)


elementwise(
    aten.asin.default,
    lambda x, y0: elementary.integrate(x, lambda x: elementary.rsqrt(_one_minus_square(x)), y0),
    domain=INSIDE_ONE,
)
elementwise(
    aten.acos.default,
    lambda x, y0: elementary.integrate(x, lambda x: elementary.scale(elementary.rsqrt(_one_minus_square(x)), -1), y0),
    domain=INSIDE_ONE,
)
elementwise(
    aten.atanh.default,
    lambda x, y0: elementary.integrate(x, lambda x: elementary.reciprocal(_one_minus_square(x)), y0),
    domain=INSIDE_ONE,
)
elementwise(
    aten.asinh.default,
    lambda x, y0: elementary.integrate(
        x, lambda x: elementary.rsqrt(elementary.shift(elementary.product(x, x), 1)), y0
    ),
)
elementwise(
    aten.acosh.default,
    lambda x, y0: elementary.integrate(
        x, lambda x: elementary.rsqrt(elementary.shift(elementary.product(x, x), -1)), y0
    ),
    domain=ABOVE_ONE,
)
elementwise(aten.erf.default, elementary.erf)
elementwise(aten.erfc.default, lambda x, y0: [y0, *elementary.scale(elementary.erf(x, y0), -1)[1:]])
elementwise(aten.sigmoid.default, elementary.sigmoid, closed=closed_forms.sigmoid, holomorphic=True)


def _log_sigmoid(x: Rows, y0: Tensor) -> Rows:
    return elementary.integrate(x, lambda x: elementary.sigmoid(elementary.scale(x, -1)), y0)


elementwise(aten.log_sigmoid.default, _log_sigmoid)


def _gelu(x: Rows, y0: Tensor, *, approximate: str = "none") -> Rows:
    return elementary.gelu_tanh(x, y0) if approximate == "tanh" else elementary.gelu(x, y0)


def _gelu_factor(x: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        return torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return 0.5 * torch.erfc(x * -math.sqrt(0.5))


elementwise(aten.gelu.default, _gelu, factor=_gelu_factor, closed=closed_forms.gelu)
elementwise(
    aten.silu.default,
    lambda x, y0: elementary.product(x, elementary.sigmoid(x), y0),
    factor=lambda x: torch.sigmoid(x),
    closed=closed_forms.silu,
)
elementwise(
    aten.mish.default,
    lambda x, y0: elementary.product(x, elementary.tanh(elementary.softplus(x)), y0),
    factor=lambda x: torch.tanh(F.softplus(x)),
    closed=closed_forms.mish,
)


def _softplus(x: Rows, y0: Tensor, beta: float = 1, threshold: float = 20) -> Rows:
    """log(1 + exp(beta x)) / beta, and x itself beyond the threshold, as in PyTorch."""
    rows = elementary.integrate(x, lambda x: elementary.sigmoid(elementary.scale(x, beta)), y0)
    linear = elementary.head(x) * beta > threshold
    for j in range(1, len(x)):
        if rows[j] is not None:
            rows[j] = torch.where(linear, elementary.zero_like(x[j], x), elementary.zero_like(rows[j], x))
    return rows


elementwise(aten.softplus.default, _softplus, closed=closed_forms.softplus)


def _logit(x: Rows, y0: Tensor, eps: float | None = None) -> Rows:
    """log x - log(1 - x); of x brought between eps and 1 - eps first, where there is an eps."""
    if eps is not None:
        first = elementary.head(x)
        inside = (first >= eps) & (first <= 1 - eps)
        x = [first.clamp(eps, 1 - eps), *(None if row is None else row * inside for row in x[1:])]
    return elementary.plus(elementary.log(x), elementary.log(elementary.shift(elementary.scale(x, -1), 1)), -1)


elementwise(
    aten.logit.default,
    _logit,
    domain=(
        lambda value, eps=None: (value > 0) & (value < 1) | bool(eps),
        "the argument must lie between 0 and 1",
    ),
)


def polygamma(first: int, x: Rows, y0: Tensor) -> Rows:
    """Taylor coefficients of the polygamma function of order `first`; -1 is lgamma.

    ψ^(m)(x) = (-1)^(m+1) m! ζ(m+1, x), for m ≥ 1: torch.polygamma(1, x) itself is only good to 1e-10.
    """
    centre = elementary.head(x)
    outer = [y0]
    for m in range(1, len(x)):
        order = first + m
        if order == 0:
            outer.append(torch.digamma(centre))
        else:
            scale = (-1) ** (order + 1) * math.factorial(order) / math.factorial(m)
            outer.append(torch.special.zeta(order + 1.0, centre) * scale)
    return elementary.compose(x, outer)


# Below 0 they have values, and the coefficients here are others.
elementwise(aten.lgamma.default, lambda x, y0: polygamma(-1, x, y0), domain=POSITIVE, shows=False)
elementwise(aten.digamma.default, lambda x, y0: polygamma(0, x, y0), domain=POSITIVE, shows=False)


# Powers


def _power_scalar(order: int, x: Series, exponent: float) -> Series:
    """x^exponent; at x_0 = 0 only for integers ≥ 0."""
    centre = x.coefficient(0)
    whole = float(exponent).is_integer()

    def value(base: Tensor) -> Tensor:
        return aten.pow.Tensor_Scalar(base, exponent)

    if exponent == 0:
        return Series.constant(value(centre), order)
    needed = None
    if not whole and ((order and x.varies) or exponent < 0):
        needed = positive, "be positive"
    elif exponent < 0:
        needed = nonzero, "not be 0"
    if needed is not None:
        demand(centre, needed[0], f"the base of a power of {exponent} must {needed[1]}", shows=True)
        if has_passed():
            fine = needed[0](centre)
            with shown(False):
                result = _power_scalar(order, harmless(x, fine, 1.0), exponent)
            return only_where(fine, result, value(centre))
    if whole and exponent > 0:
        return run(order, x, value, lambda rows, first: elementary.integer_power(rows, int(exponent), first))
    return run(order, x, value, lambda rows, first: elementary.power(rows, exponent, first))


def _power_gate(bound: Mapping[str, Any]) -> Gate | None:
    """A root or an inverse power is a denominator of a norm; a whole power is a product."""
    exponent = bound["exponent"]
    if not isinstance(exponent, int | float):
        # A size that is not known.
        return "norm"
    return None if float(exponent).is_integer() and exponent >= 0 else "norm"


def _held_power(order: int, x: Series, exponent: float) -> Series:
    """x · x_0^(exponent - 1) for a whole exponent."""
    return scaled(x, widened(x.coefficient(0)) ** (exponent - 1))


def _power_line(order: int, x: Series, exponent: float) -> Series:
    return secant(x, lambda value: value**exponent, lambda value: _power_scalar(1, value, exponent))


register_rule(
    aten.pow.Tensor_Scalar,
    _power_scalar,
    kind="elementwise",
    affine="self",
    when=lambda bound, moving: bound["exponent"] in (0, 1),
    added=lambda bound, moving: [bound["exponent"] == 0],
    gate=_power_gate,
    held=_held_power,
    held_when=lambda bound: _power_gate(bound) is None,
    line=_power_line,
    through_zero=lambda bound: isinstance(bound["exponent"], int | float) and bound["exponent"] > 0,
    complex_values=True,
)


@register_rule(
    aten.square.default,
    kind="elementwise",
    held=lambda order, x: scaled(x, x.coefficient(0)),
    through_zero=True,
    complex_values=True,
)
def _square(order: int, x: Series) -> Series:
    return arithmetic.multiply(order, x, x)


@register_rule(aten.pow.Scalar, kind="elementwise", gate="gate")
def _power_of_number(order: int, base: float, exponent: Series) -> Series:
    """base^x = exp(x log base)."""
    demand(torch.tensor(float(base)), positive, "the base of a power with a varying exponent must be positive")
    return run(
        order,
        exponent,
        lambda value: aten.pow.Scalar(base, value),
        lambda x, first: elementary.exp(x, first, math.log(base)),
    )


@register_rule(aten.pow.Tensor_Tensor, kind="elementwise", gate="gate")
def _power_of_tensor(order: int, base: Any, exponent: Any) -> Series:
    """base^exponent; where the exponent varies, exp(exponent log base)."""
    first = base.coefficient(0) if isinstance(base, Series) else base
    second = exponent.coefficient(0) if isinstance(exponent, Series) else exponent
    y0 = aten.pow.Tensor_Tensor(first, second)
    dtype = working_dtype(y0.dtype)
    wide = y0 if dtype == y0.dtype else aten.pow.Tensor_Tensor(first.to(dtype), second.to(dtype))
    if not isinstance(exponent, Series):
        whole = exponent == exponent.round()
        fine = exponent >= 0
        if order and base.varies:
            fine = fine & whole
        demand(
            first.expand_as(y0),
            lambda value: (value > 0) | fine | whole & (value != 0),
            "the base of a power must be positive if the power is not whole, and must not be 0 if it is negative",
        )
        rows = _power_recurrence(cast(base, dtype).rows(), exponent.to(dtype), wide)
        return Series.of_rows([y0, *rows[1:]], order, y0)
    demand(first, positive, "the base of a power with a varying exponent must be positive")
    logarithm = log_rows(base, order, dtype)
    inner = elementary.product(cast(exponent, dtype).rows(), logarithm)
    return Series.of_rows([y0, *elementary.exp(inner, wide)[1:]], order, y0)


def log_rows(value: Any, order: int, dtype: torch.dtype) -> Rows:
    """Rows of log(value) for a series or a constant."""
    if isinstance(value, Series):
        return elementary.log(cast(value, dtype).rows())
    return [value.to(dtype).log(), *[None] * order]


def _power_recurrence(x: Rows, exponent: Tensor, y0: Tensor) -> Rows:
    """As `elementary.power`, with one exponent an entry; where x_0 is 0 it is whole and at least 0."""
    zero = elementary.head(x) == 0
    y: Rows = [y0]
    inverse = torch.where(zero, 1.0, elementary.head(x)).reciprocal()
    for j in range(1, len(x)):
        total: Tensor | None = None
        for i in range(1, j + 1):
            left, right = x[i], y[j - i]
            if left is not None and right is not None:
                value = left * right * ((exponent * i - (j - i)) / j)
                total = value if total is None else total + value
        y.append(None if total is None else total * inverse)
    # A power of 0 + x_1 t + … begins at that order, so that higher ones have no coefficient here.
    at_zero: Rows = [None] * len(x)
    for n in range(1, len(x)):
        for j, row in enumerate(elementary.integer_power(x, n, y0)[n:], n):
            chosen = None if row is None else torch.where(exponent == n, row, 0.0)
            at_zero[j] = elementary.total(at_zero[j], chosen, 1)
    return [y0, *(_where_zero(zero, *pair) for pair in zip(at_zero[1:], y[1:], strict=True))]


def _where_zero(zero: Tensor, there: Tensor | None, elsewhere: Tensor | None) -> Tensor | None:
    if there is None and elsewhere is None:
        return None
    return torch.where(zero, 0.0 if there is None else there, 0.0 if elsewhere is None else elsewhere)


# Quotients


def divide(order: int, a: Any, b: Any) -> Series:
    """a / b"""
    if has_passed() and isinstance(b, Series | Tensor):
        first, below = (value.coefficient(0) if isinstance(value, Series) else value for value in (a, b))
        fine = below != 0
        with shown(False):
            result = divide(order, harmless(a, fine, 0.0), harmless(b, fine, 1.0))
        return only_where(fine, result, (first / below).to(promoted(a, b)))
    if not isinstance(b, Series):
        if isinstance(b, Tensor):
            demand(b, nonzero, "the denominator must not be 0", shows=True)
        dtype = promoted(a, b)
        return arithmetic.entrywise(a, lambda part: (part / b).to(dtype), arithmetic.rank(b))
    centre = b.coefficient(0)
    demand(centre, nonzero, "the denominator must not be 0", shows=True)
    dtype = promoted(a, b)
    first = a.coefficient(0) if isinstance(a, Series) else a
    y0 = torch.as_tensor(first / centre).to(dtype)
    if order == 0 or not (b.varies or (isinstance(a, Series) and a.varies)):
        return Series.constant(y0, order)
    work = working_dtype(dtype)
    if isinstance(a, Series):
        above: Rows = cast(a, work).rows()
    else:
        above = [torch.as_tensor(a, dtype=work, device=b.device), *[None] * order]
    return Series.of_rows([y0, *elementary.quotient(above, cast(b, work).rows())[1:]], order, y0)


for _op in (aten.div.Tensor, aten.div.Scalar, aten.true_divide.Tensor):
    register_rule(
        _op,
        divide,
        kind="elementwise",
        affine="self",
        gate="norm",
        held=divide,
        # Along the denominator there is no value at 0.
        through_zero=lambda bound: is_marked(bound["self"]),
        absorbs="other",
        complex_values=True,
    )


def _addcdiv(order: int, a: Any, b: Any, c: Any, *, value: float = 1) -> Series:
    """a + value · b / c"""
    above, below = widened(b), widened(c)
    varies = isinstance(b, Series) or isinstance(c, Series)
    ratio = divide(order, above, below) if varies else above / below
    return cast(arithmetic.add(order, a, ratio, value), promoted(a, b, c))


register_rule(
    aten.addcdiv.default,
    _addcdiv,
    kind="elementwise",
    affine="self tensor1",
    gate="norm",
    held=_addcdiv,
    through_zero=lambda bound: is_marked(bound["self"]) and is_marked(bound["tensor1"]),
    absorbs="tensor2",
)


# Two arguments


@register_rule(aten.atan2.default, kind="elementwise", gate="gate")
def atan2(order: int, a: Any, b: Any) -> Series:
    """The angle of (b, a): y' = (b a' - a b') / (a² + b²)."""
    first, second = row_at(a, 0), row_at(b, 0)
    up = a.coefficient(0) if isinstance(a, Series) else first
    right = b.coefficient(0) if isinstance(b, Series) else second
    y0 = aten.atan2.default(up, right)
    demand(up * up + right * right, nonzero, "the two arguments must not both be 0")
    dtype = working_dtype(y0.dtype)
    n: list[Rows] = [
        cast(value, dtype).rows() if isinstance(value, Series) else [value.to(dtype), *[None] * order]
        for value in (a, b)
    ]
    inverse = elementary.reciprocal(elementary.plus(elementary.product(n[0], n[0]), elementary.product(n[1], n[1])))
    along, against = elementary.product(n[1], inverse), elementary.product(n[0], inverse)
    rows: Rows = [y0.to(dtype)]
    for j in range(1, order + 1):
        rows.append(elementary.total(elementary.step(n[0], along, j), elementary.step(n[1], against, j), -1))
    return Series.of_rows([y0, *rows[1:]], order, y0)
