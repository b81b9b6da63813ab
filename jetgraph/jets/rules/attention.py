"""Softmax and attention.

The coefficients of a partition function are small, so their recurrences are cheap. Half-precision attention is computed
in float32, as PyTorch's own kernels do. Held, an attention pattern keeps its value at the centre.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from jetgraph.errors import InputError, TraceError
from jetgraph.jets import arithmetic, elementary
from jetgraph.jets.arithmetic import align, cast, widened, working_dtype
from jetgraph.jets.elementary import Rows
from jetgraph.jets.frozen import is_marked
from jetgraph.jets.registry import TaylorRule, register_rule
from jetgraph.jets.rules.bilinear import matrix_product
from jetgraph.jets.rules.centres import with_a_dim, with_own_centre
from jetgraph.jets.series import Series

aten = torch.ops.aten


# Softmax


def softmax_rows(x: Rows, p0: Tensor, dim: int) -> tuple[Rows, Rows]:
    """p = exp(x - L) and L = log Σ exp x, whose order 0 is left None: p' = p (x' - L') with L' = Σ p x'.

    A score of -inf has p = 0 at every order, and so have all of a row that is masked throughout.
    """
    p: Rows = [torch.nan_to_num(p0, nan=0.0)]
    log_partition: Rows = [None]
    for j in range(1, len(x)):
        row = elementary.step(x, p, j)
        log_partition.append(None if row is None else row.sum(dim, keepdim=True))
        p.append(elementary.step(log_partition, p, j, row, -1))
    return p, log_partition


def _softmax(order: int, x: Series, dim: int, p0: Tensor) -> Series:
    """p0 is the plain op's value; the recurrence starts from one that is not rounded to half precision."""
    if order == 0 or not x.varies:
        return Series.constant(p0, order)
    dtype = working_dtype(p0.dtype)
    first = p0 if p0.dtype == dtype else torch.softmax(x.coefficient(0).to(dtype), dim)
    rows, _ = softmax_rows(cast(x, dtype).rows(), first, dim)
    return Series.of_rows([p0, *rows[1:]], order, p0)


def _softmax_like(op: Any) -> None:
    def rule(order: int, x: Series, dim: int, *args: Any, **kwargs: Any) -> Series:
        return _softmax(order, x, dim, op(x.coefficient(0), dim, *args, **kwargs))

    def line(order: int, x: Series, dim: int, *args: Any, **kwargs: Any) -> Series:
        return mean_slope(x, lambda value: rule(1, value, dim, *args, **kwargs))

    register_rule(op, rule, gate="attention", line=line)


_NODES, _SHARES = ((tensor + shift) / 2 for tensor, shift in zip(map(torch.tensor, leggauss(32)), (1, 0), strict=True))
"""Gauss-Legendre quadrature from 0 to 1."""


def mean_slope(x: Series, rule: Callable[[Series], Series]) -> Series:
    """f(0) + ∫_0^1 Df(s z) ds x at z = x_0: the secant through 0 and z for a function of several variables.

    It agrees with f at 0 and at z up to the quadrature, and does not care for what f does not, such as a shift.
    """
    z, direction = x.coefficient(0).double(), x.coefficient(1).double()
    slope = torch.zeros((), dtype=z.dtype, device=z.device)
    for node, share in zip(_NODES.tolist(), _SHARES.tolist(), strict=True):
        slope = slope + share * rule(Series.variate(node * z, direction, 1)).coefficient(1)
    y0 = rule(Series.constant(x.coefficient(0), 1)).coefficient(0)
    return Series.of_rows([y0, slope], 1, y0)


_softmax_like(aten.softmax.int)
_softmax_like(aten._softmax.default)
_softmax_like(aten._safe_softmax.default)


def _log_partition(x: Rows, dim: int) -> Rows:
    """Rows from order 1 of L = log Σ exp x, kept dim; order 0 is left None."""
    return softmax_rows(x, torch.softmax(elementary.head(x), dim), dim)[1]


def _log_softmax_like(op: Any) -> None:
    """x - log Σ exp x."""

    def rule(order: int, x: Series, dim: int, *args: Any, **kwargs: Any) -> Series:
        y0 = op(x.coefficient(0), dim, *args, **kwargs)
        if order == 0 or not x.varies:
            return Series.constant(y0, order)
        rows = cast(x, working_dtype(y0.dtype)).rows()
        result = elementary.plus(rows, _log_partition(rows, dim), -1)
        return Series.of_rows([y0, *result[1:]], order, y0)

    def held(order: int, x: Series, dim: int, *args: Any, **kwargs: Any) -> Series:
        y0 = op(x.coefficient(0), dim, *args, **kwargs)
        return Series.of_rows([y0, *x.rows()[1:]], order, y0)

    register_rule(op, rule, gate="attention", held=held)


_log_softmax_like(aten.log_softmax.int)
_log_softmax_like(aten._log_softmax.default)


@with_a_dim
def _logsumexp(order: int, x: Series, dim: Sequence[int] | int, keepdim: bool = False) -> Series:
    """log Σ exp x."""
    y0 = aten.logsumexp.default(x.coefficient(0), [dim] if isinstance(dim, int) else dim, keepdim)
    if order == 0 or not x.varies:
        return Series.constant(y0, order)
    dims = [item % x.ndim for item in ([dim] if isinstance(dim, int) else dim)]
    kept = [item for item in range(x.ndim) if item not in dims]
    sizes = [x.shape[item] for item in kept]
    count = math.prod(x.shape[item] for item in dims)
    flat = [
        None if row is None else row.permute(*kept, *dims).reshape(*sizes, count)
        for row in cast(x, working_dtype(x.dtype)).rows()
    ]
    rows = [None if row is None else row.reshape(y0.shape) for row in _log_partition(flat, -1)]
    return Series.of_rows([y0, *rows[1:]], order, y0)


register_rule(
    aten.logsumexp.default,
    _logsumexp,
    gate="attention",
    line=lambda order, x, *args, **kwargs: mean_slope(x, lambda value: _logsumexp(1, value, *args, **kwargs)),
)


def _logaddexp(op: Any, base: float | None = None) -> TaylorRule:
    """Register log(exp a + exp b), to a base: log Σ exp of the two, stacked."""

    def rule(order: int, a: Any, b: Any) -> Series:
        shape = torch.broadcast_shapes(a.shape, b.shape)
        dtype = torch.promote_types(a.dtype, b.dtype)
        wide = (cast(value, working_dtype(dtype)) for value in (a, b))
        series = [value if isinstance(value, Series) else Series.constant(value, order) for value in wide]
        stacks = [align(value.stacked(), len(shape)).expand(-1, *shape) for value in series]
        both = Series(torch.stack(stacks, 1), order)
        scale = 1.0 if base is None else math.log(base)
        result = _logsumexp(order, both.like(scale * both.coefficients), 0)
        return cast(result.like(result.coefficients / scale), dtype)

    register_rule(op, with_own_centre(op, rule), kind="elementwise", gate="gate")
    return rule


_log_sum = _logaddexp(aten.logaddexp.default)
_logaddexp(aten.logaddexp2.default, 2.0)


@with_a_dim
def _logcumsumexp(order: int, x: Series, dim: int) -> Series:
    """log Σ exp of all entries up to each, one after the other."""
    where = dim - x.ndim if dim >= 0 else dim
    entries = [x.like(part) for part in x.coefficients.unbind(where)]
    sums = entries[:1]
    for entry in entries[1:]:
        sums.append(_log_sum(order, sums[-1], entry))
    return Series(torch.stack([each.stacked() for each in sums], where), order) if sums else x


register_rule(aten.logcumsumexp.default, with_own_centre(aten.logcumsumexp.default, _logcumsumexp), gate="attention")


# Attention


def _expanded_heads(x: Any, times: int) -> Any:
    if times == 1:
        return x
    if isinstance(x, Series):
        return x.like(x.coefficients.repeat_interleave(times, dim=-3))
    return x.repeat_interleave(times, dim=-3)


def _transposed(x: Any) -> Any:
    return x.like(x.coefficients.transpose(-1, -2)) if isinstance(x, Series) else x.transpose(-1, -2)


def _masked(scores: Any, mask: Any, is_causal: bool) -> Any:
    """Scores with the mask applied at order 0 (and above, where the mask itself varies)."""
    if is_causal:
        length, sources = scores.shape[-2], scores.shape[-1]
        mask = torch.ones((length, sources), dtype=torch.bool, device=scores.device).tril()
    if mask is None:
        return scores
    if isinstance(mask, Series):
        return arithmetic.add(scores.order if isinstance(scores, Series) else mask.order, scores, mask)
    first = scores.coefficient(0) if isinstance(scores, Series) else scores
    first = torch.where(mask, first, -math.inf) if mask.dtype == torch.bool else first + mask
    if not isinstance(scores, Series):
        return first
    return Series.of_rows([first, *scores.rows()[1:]], scores.order, first.to(scores.dtype))


def _pattern(order: int, query: Any, key: Any, mask: Any, is_causal: bool, scale: float | None, line: bool) -> Any:
    """softmax(scale · q kᵀ + mask), in the working dtype; a row that is masked throughout is 0. Or its line."""
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    query = widened(query)
    key = widened(key)
    if isinstance(query, Series) or isinstance(key, Series):
        scaled = query.like(query.coefficients * factor) if isinstance(query, Series) else query * factor
        scores = matrix_product(order, scaled, _transposed(key))
    else:
        scores = torch.matmul(query * factor, _transposed(key))
    scores = _masked(scores, mask, is_causal)
    if not isinstance(scores, Series):
        return aten._safe_softmax.default(scores, -1)

    def softmax(scores: Series) -> Series:
        return _softmax(order, scores, -1, aten._safe_softmax.default(scores.coefficient(0), -1))

    return mean_slope(scores, softmax) if line else softmax(scores)


def attention(
    order: int,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    line: bool = False,
) -> Any:
    """softmax(scale · q kᵀ + mask) v; with the line of the pattern instead of the pattern if asked for."""
    if dropout_p > 0:
        raise TraceError("attention has dropout switched on, so its value is random: call .eval() on the model")
    if enable_gqa:
        key = _expanded_heads(key, query.shape[-3] // key.shape[-3])
        value = _expanded_heads(value, query.shape[-3] // value.shape[-3])
    pattern = _pattern(order, query, key, attn_mask, is_causal, scale, line)
    wide = widened(value)
    if not isinstance(pattern, Series) and not isinstance(wide, Series):
        return torch.matmul(pattern, wide).to(value.dtype)
    result = matrix_product(order, pattern, wide)
    return arithmetic.cast(result, value.dtype)


def _attention_line(order: int, query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
    """Of values that do not vary, along the secant of the pattern, whose scores are to be affine."""
    if isinstance(query, Series) and isinstance(key, Series):
        raise InputError(
            "attention to values that do not vary is read by itself, and its scores are a product of two values that "
            "do: what is left with the pattern held is not affine; take a jet or an atom there"
        )
    return attention(1, query, key, *args, **kwargs, line=True)


register_rule(
    aten.scaled_dot_product_attention.default,
    attention,
    affine="value",
    gate="attention",
    held=attention,
    line=_attention_line,
    # Along the pattern, at 0 the weights are all alike.
    through_zero=lambda bound: is_marked(bound["value"]),
    absorbs="query key attn_mask",
)
