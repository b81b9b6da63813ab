"""Reductions that are not linear, such as variances, norms of a tensor and products, and gated linear units.

Norm layers are in `norms`, softmax and attention in `attention`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from jetgraph.jets import elementary
from jetgraph.jets.arithmetic import cast, multiply, widened, working_dtype
from jetgraph.jets.domain import demand, nonzero, positive
from jetgraph.jets.elementary import Rows
from jetgraph.jets.registry import TaylorRule, register_rule
from jetgraph.jets.rules.centres import with_a_dim, with_own_centre
from jetgraph.jets.rules.complex import modulus
from jetgraph.jets.rules.norms import mean_square
from jetgraph.jets.series import Series

aten = torch.ops.aten


# Gated linear unit


def _glu(held: bool) -> TaylorRule:
    def rule(order: int, x: Series, dim: int = -1) -> Series:
        """a σ(b), (a, b) being the halves of x."""
        a, b = (x.like(half) for half in x.coefficients.chunk(2, dim + 1 if dim >= 0 else dim))
        b = widened(b)
        gate: Series | Tensor = torch.sigmoid(b.coefficient(0))
        if b.varies and order and not held:
            gate = Series.of_rows(elementary.sigmoid(b.rows(), gate), order, gate)
        result = multiply(order, a, gate)
        return cast(result, x.dtype)

    return rule


register_rule(aten.glu.default, _glu(False), gate="gate", held=_glu(True), through_zero=True)


# Moments and norms of a tensor


def _reduced_dims(x: Series, dim: Any) -> list[int]:
    """Negative dims; all of them for None or an empty list."""
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return list(range(-x.ndim, 0))
    return [item - x.ndim if item >= 0 else item for item in (dim if isinstance(dim, (list, tuple)) else [dim])]


def _drop(rows: Rows, dims: list[int], keepdim: bool) -> Rows:
    return rows if keepdim else [None if row is None else row.squeeze(tuple(dims)) for row in rows]


def _variance_rows(x: Series, dims: list[int], correction: float) -> Rows:
    away = x.like(x.coefficients - x.coefficients.mean(dims, keepdim=True))
    count = math.prod(x.shape[dim] for dim in dims)
    left = max(count - correction, 0)
    # As for PyTorch: NaN of entries that are all the same, such as a single one, and infinite of others.
    return elementary.scale(mean_square(away, dims), count / left if left else math.inf)


def _moment(order: int, x: Series, dim: Any, correction: float, keepdim: bool, root: bool, flat: bool) -> Series:
    """Variance, or its root."""
    dims = _reduced_dims(x, dim)
    rows = _variance_rows(widened(x), dims, correction)
    if root and order and x.varies:
        rows = _root(rows, "the variance under a standard deviation must be positive", flat)
    elif root:
        rows = elementary.sqrt([elementary.head(rows), *rows[1:]])
    return cast(Series.of_rows(_drop(rows, dims, keepdim), order), x.dtype)


def _root(squares: Rows, message: str, flat: bool) -> Rows:
    """√ of a variance. Where that is 0, it has no expansion; or, where it is taken as `flat`, the slope 0."""
    first = elementary.head(squares)
    if not flat:
        demand(first, lambda value: positive(value) | value.isnan(), message)
        return elementary.sqrt([first, *squares[1:]])
    return _level_at_zero(squares, elementary.sqrt)


def _means(x: Series, dim: Any, keepdim: bool) -> Series:
    return x.like(x.coefficients.mean(_reduced_dims(x, dim), keepdim=keepdim))


def _moments(op: Any, root: bool, with_mean: bool, by_correction: bool) -> None:
    @with_a_dim
    def rule(order: int, x: Series, dim: Any = None, *args: Any, flat: bool = False, **kwargs: Any) -> Any:
        if by_correction:
            correction = kwargs.get("correction")
            correction = 1 if correction is None else correction
            keepdim = kwargs.get("keepdim", False)
        else:
            unbiased = kwargs.get("unbiased", args[0] if args else True)
            correction = 1 if unbiased else 0
            keepdim = kwargs.get("keepdim", args[1] if len(args) > 1 else False)
        moment = _moment(order, x, dim, correction, keepdim, root, flat)
        return (moment, _means(x, dim, keepdim)) if with_mean else moment

    def halved(order: int, x: Series, *args: Any, **kwargs: Any) -> Series:
        """One of the two factors of every square held."""
        moment = rule(order, x, *args, **kwargs)
        return Series.of_rows([moment.coefficient(0), moment.coefficient(1) / 2], order, moment.coefficient(0))

    free = with_own_centre(op, rule)
    if with_mean:
        register_rule(op, free)
    elif root:
        register_rule(op, free, gate="norm", line=partial(rule, flat=True), through_zero=True)
    else:
        # A factor as a deviation is, where something is multiplied with it.
        register_rule(op, free, gate="norm", line=with_own_centre(op, halved), through_zero=True)


_moments(aten.var.correction, root=False, with_mean=False, by_correction=True)
_moments(aten.std.correction, root=True, with_mean=False, by_correction=True)
_moments(aten.var.dim, root=False, with_mean=False, by_correction=False)
_moments(aten.std.dim, root=True, with_mean=False, by_correction=False)
_moments(aten.var_mean.correction, root=False, with_mean=True, by_correction=True)
_moments(aten.std_mean.correction, root=True, with_mean=True, by_correction=True)


def _level_at_zero(x: Rows, f: Callable[[Rows], Rows]) -> Rows:
    """f(x) where x_0 ≠ 0; elsewhere 0 at every order, as on the kink of |x|."""
    first = elementary.head(x)
    zero = first == 0
    rows = f([torch.where(zero, 1.0, first), *x[1:]])
    return [None if row is None else torch.where(zero, 0.0, row) for row in rows]


@with_a_dim
def _vector_norm(order: int, x: Series, p: float, dim: Any, keepdim: bool, dtype: torch.dtype | None) -> Series:
    """(Σ |x|^p)^(1/p); max |x| for p = ∞, min |x| for p = −∞, how many are not 0 for p = 0.

    Where it is 0 the norm has a kink, and the slope 0, as |x| has.
    """
    if dtype is not None:
        x = cast(x, dtype)
    dims = _reduced_dims(x, dim)
    if x.dtype.is_complex and p != 2:
        return _vector_norm(order, modulus(order, x), p, dims, keepdim, None)
    if x.dtype.is_complex:
        # Over the parts, which is smooth where single entries are 0.
        parts = x.like(torch.view_as_real(x.coefficients.resolve_conj()))
        norm = _vector_norm(order, parts, p, [*(item - 1 for item in dims), -1], keepdim, None)
        return norm.like(norm.coefficients.squeeze(-1)) if keepdim else norm
    y0 = torch.linalg.vector_norm(x.coefficient(0), p, dims, keepdim=keepdim)
    if order == 0 or not x.varies or p == 0 or 0 in x.shape:
        return Series.constant(y0, order)
    x = cast(x, working_dtype(x.dtype))
    if p == 2:
        squares = elementary.scale(mean_square(x, dims), math.prod(x.shape[item] for item in dims))
        rows = _level_at_zero(squares, elementary.sqrt)
    elif p in (1, math.inf, -math.inf):
        rows = _sum_of_chosen(x.rows(), p, dims)
    else:
        powers = _powers_of_modulus(x.rows(), p)
        sums = [None if row is None else row.sum(dims, keepdim=True) for row in powers]
        rows = _level_at_zero(sums, lambda rows: elementary.power(rows, 1 / p))
    return Series.of_rows([y0, *_drop(rows, dims, keepdim)[1:]], order, y0)


def _sum_of_chosen(rows: Rows, p: float, dims: list[int]) -> Rows:
    """Σ |x|, max |x| or min |x|, which are linear on pieces; ties are shared."""
    first = elementary.head(rows)
    weight = first.sign()
    if p != 1:
        extreme = first.abs().amax(dims, True) if p > 0 else first.abs().amin(dims, True)
        ties = (first.abs() == extreme).to(first.dtype)
        weight = weight * ties / ties.sum(dims, keepdim=True)
    return [None if row is None else (row * weight).sum(dims, keepdim=True) for row in rows]


def _powers_of_modulus(rows: Rows, p: float) -> Rows:
    """|x|^p entry by entry.

    Where x_0 = 0, an even power is x^p, the others are level below order p; an odd one has its kink at order p, where
    it is level as |x| is, and any other has no coefficient from there on.
    """
    first = elementary.head(rows)
    if p > 0 and float(p).is_integer() and p <= 64:
        sign = 1.0 if p % 2 == 0 else first.sign()
        modulus_rows = [None if row is None else row * sign for row in rows]
        return elementary.integer_power(modulus_rows, int(p), first.abs() ** p)
    if p < len(rows) - 1:
        moves = sum((row != 0 for row in rows[1:] if row is not None), torch.full_like(first, p < 0, dtype=torch.bool))
        demand(torch.where(moves, first, 1.0), nonzero, f"under a norm of order {p} no entry that varies may be 0")
    sign = first.sign()
    signed = [None if row is None else row * sign for row in rows]
    return _level_at_zero(signed, lambda rows: elementary.power(rows, p)) if p > 0 else elementary.power(signed, p)


def _linalg_vector_norm(
    order: int,
    x: Series,
    ord: float = 2,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Series:
    return _vector_norm(order, x, ord, dim, keepdim, dtype)


def _norm_over_dims(order: int, x: Series, p: float | None, dim: Any, keepdim: bool = False) -> Series:
    return _vector_norm(order, x, 2 if p is None else p, dim, keepdim, None)


def _norm(order: int, x: Series, p: float = 2) -> Series:
    return _vector_norm(order, x, p, None, False, None)


for _op, _rule in (
    (aten.linalg_vector_norm.default, _linalg_vector_norm),
    (aten.norm.ScalarOpt_dim, _norm_over_dims),
    (aten.norm.Scalar, _norm),
):
    register_rule(_op, _rule, gate="norm", line=_rule, through_zero=True, complex_values=True)


# Products of entries


def _product_along(order: int, x: Series, dim: int) -> Series:
    """Π over one negative dim, dropped, as a balanced tree."""
    factors = [x.like(part) for part in widened(x).coefficients.unbind(dim)]
    if not factors:
        return Series.constant(torch.ones_like(x.first.sum(dim)), order)
    while len(factors) > 1:
        paired = [multiply(order, a, b) for a, b in zip(factors[::2], factors[1::2], strict=False)]
        factors = paired + factors[len(paired) * 2 :]
    return cast(factors[0], x.dtype)


@register_rule(aten.prod.default)
def _prod(order: int, x: Series, *, dtype: torch.dtype | None = None) -> Series:
    """Π x."""
    stack = x.coefficients if dtype is None else x.coefficients.to(dtype)
    return _product_along(order, x.like(stack.reshape(stack.shape[0], -1)), -1)


@register_rule(aten.prod.dim_int)
@with_a_dim
def _prod_over_dim(
    order: int, x: Series, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Series:
    """Π x over one dim."""
    if dtype is not None:
        x = cast(x, dtype)
    where = dim - x.ndim if dim >= 0 else dim
    result = _product_along(order, x, where)
    return result.like(result.coefficients.unsqueeze(where)) if keepdim else result


@register_rule(aten.cumprod.default, complex_values=True)
@with_a_dim
def _cumprod(order: int, x: Series, dim: int, *, dtype: torch.dtype | None = None) -> Series:
    """Running products along one dim, one factor after the other."""
    if dtype is not None:
        x = cast(x, dtype)
    where = dim - x.ndim if dim >= 0 else dim
    factors = [x.like(part) for part in widened(x).coefficients.unbind(where)]
    if not factors:
        return x
    running = [factors[0]]
    for factor in factors[1:]:
        running.append(multiply(order, running[-1], factor))
    start = min(item.start for item in running)
    stop = max(item.stop for item in running)
    return cast(Series(torch.stack([item.span(start, stop) for item in running], where), order, start), x.dtype)
