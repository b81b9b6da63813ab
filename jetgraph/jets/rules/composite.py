"""Norms, softmax, attention and other reductions that are not linear.

Means run once on the stack; the coefficients of a variance or a partition function are small, so their recurrences are
cheap. Half-precision input is computed in float32, as PyTorch's own kernels do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jetgraph.errors import JetGraphError
from jetgraph.jets import arithmetic, elementary
from jetgraph.jets.arithmetic import dot, multiply, rank, rows_of
from jetgraph.jets.domain import demand, nonzero, positive
from jetgraph.jets.elementary import Rows
from jetgraph.jets.registry import register_rule
from jetgraph.jets.rules.bilinear import matrix_product, plus_constant
from jetgraph.jets.rules.elementwise import working_dtype
from jetgraph.jets.series import Series, centre, stack_rows

aten = torch.ops.aten


# Norms


def _widened(x: Series) -> Series:
    dtype = working_dtype(x.dtype)
    return x if dtype is x.dtype else x.like(x.coefficients.to(dtype))


def mean_square(x: Series, dims: list[int]) -> Rows:
    """Rows of the mean of x² over negative dims, kept as size 1."""
    rows = rows_of(x)
    squares: Rows = []
    for j in range(x.order + 1):
        square: Tensor | None = None
        for i in range(max(x.start, j - x.stop + 1), j // 2 + 1):
            left, right = rows[i], rows[j - i]
            if left is None or right is None:
                continue
            part = (left * right).mean(dims, keepdim=True)
            square = elementary.total(square, part, 1 if 2 * i == j else 2)
        squares.append(square)
    return squares


def normalised(order: int, x: Series, dims: list[int], eps: float, centred: bool = True) -> Series:
    """(x - mean x) · (mean (x - mean x)² + eps)^(-1/2), in the working dtype; uncentred: x · (mean x² + eps)^(-1/2)."""
    away = _widened(x)
    if centred:
        away = away.like(away.coefficients - away.coefficients.mean(dims, keepdim=True))
    return multiply(order, away, _inverse_root(mean_square(away, dims), eps, order, away))


def _inverse_root(square: Rows, eps: float, order: int, like: Series) -> Series:
    """(square + eps)^(-1/2)."""
    zero = next((row for row in square if row is not None), like.coefficients.new_zeros((1,) * like.ndim))
    first = (torch.zeros_like(zero) if square[0] is None else square[0]) + eps
    if eps <= 0:
        demand(first, positive, "the mean square under a norm must be positive")
    rows = elementary.rsqrt([first, *square[1:]]) if any(row is not None for row in square[1:]) else [first.rsqrt()]
    return stack_rows([*rows, *[None] * (order + 1 - len(rows))], order, first)


def _held_normalised(x: Series, dims: list[int], eps: float, centred: bool = True) -> Series:
    """As `normalised`, the denominator held at the centre."""
    away = _widened(x)
    if centred:
        away = away.like(away.coefficients - away.coefficients.mean(dims, keepdim=True))
    square = away.coefficient(0).square().mean(dims, keepdim=True) + eps
    return away.like(away.coefficients * square.rsqrt())


def _affine(order: int, x: Series, weight: Any, bias: Any, dtype: torch.dtype) -> Series:
    """x · weight + bias, in `dtype`; x belongs to the caller."""
    if weight is not None:
        x = multiply(order, x, weight)
    if bias is not None:
        if not isinstance(bias, Series) and x.start == 0 and x.dtype == bias.dtype:
            x.coefficients[0].add_(bias)
        else:
            x = arithmetic.add(order, x, bias)
    return x if x.dtype == dtype else x.like(x.coefficients.to(dtype))


def _as_series(x: Any, order: int) -> Series:
    return x if isinstance(x, Series) else Series.constant(x, order)


def _last(shape: Sequence[int]) -> list[int]:
    return list(range(-len(shape), 0))


def _layer_norm(
    order: int,
    x: Any,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Series:
    """(x - mean) / sqrt(var + eps) · weight + bias over the last dims."""
    x = _as_series(x, order)
    return _affine(order, normalised(order, x, _last(normalized_shape), eps), weight, bias, x.dtype)


def _held_layer_norm(
    order: int,
    x: Any,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Series:
    x = _as_series(x, order)
    return _affine(order, _held_normalised(x, _last(normalized_shape), eps), weight, bias, x.dtype)


_NORM_AFFINE = ("weight bias",)

register_rule(aten.layer_norm.default, _layer_norm, affine=_NORM_AFFINE, gate="norm", held=_held_layer_norm)


def _statistics(order: int, x: Any, dims: list[int], eps: float, held: bool) -> tuple[Series, Any]:
    """Mean and reciprocal deviation, the further outputs of the native norms."""
    x = _as_series(x, order)
    wide = _widened(x)
    mean = wide.like(wide.coefficients.mean(dims, keepdim=True))
    away = wide.like(wide.coefficients - mean.coefficients)
    inverse = _inverse_deviation(order, away, dims, eps, held, x.dtype)
    return mean.like(mean.coefficients.to(x.dtype)), inverse


def _inverse_deviation(order: int, away: Series, dims: list[int], eps: float, held: bool, dtype: torch.dtype) -> Any:
    if held:
        return (away.coefficient(0).square().mean(dims, keepdim=True) + eps).rsqrt().to(dtype)
    inverse = _inverse_root(mean_square(away, dims), eps, order, away)
    return inverse.like(inverse.coefficients.to(dtype))


def _native_layer_norm(held: bool) -> Any:
    def rule(order: int, x: Any, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> tuple[Any, ...]:
        """layer_norm, mean and reciprocal deviation."""
        norm = _held_layer_norm if held else _layer_norm
        return norm(order, x, shape, weight, bias, eps), *_statistics(order, x, _last(shape), eps, held)

    return rule


register_rule(
    aten.native_layer_norm.default,
    _native_layer_norm(False),
    affine=_NORM_AFFINE,
    gate="norm",
    held=_native_layer_norm(True),
)


def _eps(eps: float | None, dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if eps is None else eps


def _rms_norm(
    order: int, x: Any, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> Series:
    """x / sqrt(mean x² + eps) · weight over the last dims."""
    x = _as_series(x, order)
    scaled = normalised(order, x, _last(normalized_shape), _eps(eps, x.dtype), centred=False)
    return _affine(order, scaled, weight, None, x.dtype)


def _held_rms_norm(
    order: int, x: Any, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> Series:
    x = _as_series(x, order)
    scaled = _held_normalised(x, _last(normalized_shape), _eps(eps, x.dtype), centred=False)
    return _affine(order, scaled, weight, None, x.dtype)


register_rule(aten.rms_norm.default, _rms_norm, affine="weight", gate="norm", held=_held_rms_norm)


def _fused_rms_norm(held: bool) -> Any:
    def rule(order: int, x: Any, shape: Sequence[int], weight: Any, eps: float | None) -> tuple[Any, Any]:
        """rms_norm and the reciprocal root mean square."""
        x = _as_series(x, order)
        norm = _held_rms_norm if held else _rms_norm
        inverse = _inverse_deviation(order, _widened(x), _last(shape), _eps(eps, x.dtype), held, working_dtype(x.dtype))
        return norm(order, x, shape, weight, eps), inverse

    return rule


register_rule(
    aten._fused_rms_norm.default, _fused_rms_norm(False), affine="weight", gate="norm", held=_fused_rms_norm(True)
)


def _over_channels(value: Any, ndim: int) -> Any:
    sizes = (1, -1, *[1] * (ndim - 2))
    if isinstance(value, Series):
        return value.like(value.coefficients.reshape(value.coefficients.shape[0], *sizes))
    return None if value is None else value.reshape(sizes)


def _group_norm(order: int, x: Any, groups: int, weight: Any, bias: Any, eps: float, held: bool = False) -> Series:
    x = _as_series(x, order)
    split = x.like(x.coefficients.reshape(*x.coefficients.shape[:2], groups, -1))
    scaled = _held_normalised(split, [-1], eps) if held else normalised(order, split, [-1], eps)
    whole = scaled.like(scaled.coefficients.reshape(scaled.coefficients.shape[0], *x.shape))
    return _affine(order, whole, _over_channels(weight, x.ndim), _over_channels(bias, x.ndim), x.dtype)


def _group_norm_rule(
    order: int,
    x: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Series:
    """layer_norm over groups of channels and all positions."""
    return _group_norm(order, x, num_groups, weight, bias, eps)


def _held_group_norm(
    order: int,
    x: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Series:
    return _group_norm(order, x, num_groups, weight, bias, eps, held=True)


register_rule(aten.group_norm.default, _group_norm_rule, affine=_NORM_AFFINE, gate="norm", held=_held_group_norm)


def _native_group_norm(held: bool) -> Any:
    def rule(
        order: int, x: Any, weight: Any, bias: Any, batch: int, channels: int, positions: int, group: int, eps: float
    ) -> tuple[Any, ...]:
        """group_norm, mean and reciprocal deviation."""
        x = _as_series(x, order)
        split = x.like(x.coefficients.reshape(*x.coefficients.shape[:2], group, -1))
        mean, inverse = _statistics(order, split, [-1], eps, held)
        flat = inverse.like(inverse.coefficients.squeeze(-1)) if isinstance(inverse, Series) else inverse.squeeze(-1)
        result = _group_norm(order, x, group, weight, bias, eps, held)
        return result, mean.like(mean.coefficients.squeeze(-1)), flat

    return rule


register_rule(
    aten.native_group_norm.default,
    _native_group_norm(False),
    affine=_NORM_AFFINE,
    gate="norm",
    held=_native_group_norm(True),
)


def _instance_norm(held: bool) -> Any:
    def rule(
        order: int,
        x: Any,
        weight: Any,
        bias: Any,
        running_mean: Any,
        running_var: Any,
        use_input_stats: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool,
    ) -> Series:
        """Each channel of each example normalised over its positions."""
        if not use_input_stats:
            raise JetGraphError("instance_norm with running statistics has no rule: use batch_norm in eval instead")
        return _group_norm(order, x, (x.shape)[1], weight, bias, eps, held)

    return rule


register_rule(
    aten.instance_norm.default, _instance_norm(False), affine=_NORM_AFFINE, gate="norm", held=_instance_norm(True)
)


# Batch norm


def _batch_norm(order: int, x: Any, weight: Any, bias: Any, mean: Any, var: Any, eps: float) -> Any:
    """(x - mean) / sqrt(var + eps) · weight + bias with running statistics; channels on dim 1 of x."""
    scale: Any = torch.rsqrt(var + eps)
    if weight is not None:
        scale = multiply(order, weight, scale) if isinstance(weight, Series) else scale * weight
    ndim = rank(x)
    factor: Any = _over_channels(scale, ndim)
    if isinstance(x, Series) and not isinstance(scale, Series) and not isinstance(bias, Series):
        shift = -mean * scale if bias is None else bias - mean * scale
        scaled = x.like(x.coefficients * factor.to(x.dtype))
        return plus_constant(scaled, _over_channels(shift, ndim).to(x.dtype))
    away = _over_channels(mean, ndim)
    moved: Any = arithmetic.add(order, x, away, -1) if isinstance(x, Series) else x - away
    if isinstance(moved, Series) or isinstance(factor, Series):
        result: Any = multiply(order, moved, factor)
    else:
        result = moved * factor
    return result if bias is None else arithmetic.add(order, result, _over_channels(bias, ndim))


def _batch_norm_rule(held: bool) -> Any:
    def rule(
        order: int,
        x: Any,
        weight: Any,
        bias: Any,
        running_mean: Any,
        running_var: Any,
        training: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool,
    ) -> Any:
        """In eval, affine in x; with batch statistics, a norm over batch and positions."""
        if not training and running_mean is not None and running_var is not None:
            return _batch_norm(order, x, weight, bias, running_mean, running_var, eps)
        x = _as_series(x, order)
        dims = [-x.ndim, *range(2 - x.ndim, 0)]
        scaled = _held_normalised(x, dims, eps) if held else normalised(order, x, dims, eps)
        return _affine(order, scaled, _over_channels(weight, x.ndim), _over_channels(bias, x.ndim), x.dtype)

    return rule


register_rule(
    aten.batch_norm.default,
    _batch_norm_rule(False),
    affine=("input bias running_mean", "weight bias"),
    when=lambda bound, moving: not bound["training"] or "input" not in moving,
    gate="norm",
    held=_batch_norm_rule(True),
)


@register_rule(aten._native_batch_norm_legit_no_training.default, affine=("input bias running_mean", "weight bias"))
def _native_batch_norm(
    order: int, x: Any, weight: Any, bias: Any, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float
) -> tuple[Any, Tensor, Tensor]:
    empty = running_mean.new_empty((0,))
    return _batch_norm(order, x, weight, bias, running_mean, running_var, eps), empty, empty


# Softmax


def softmax_rows(x: Rows, p0: Tensor, dim: int) -> Rows:
    """p = e / Z with e = exp x scaled to Z_0 = 1, so e_0 = p_0; a score of -inf has p = 0 at every order."""
    e: Rows = [torch.nan_to_num(p0, nan=0.0)]
    p: Rows = [e[0]]
    z: Rows = [None]
    for j in range(1, len(x)):
        e.append(elementary.step(x, e, j))
        row = e[j]
        z.append(None if row is None else row.sum(dim, keepdim=True))
        p.append(elementary.total(row, dot(z, p, j, first=1), -1))
    p[0] = p0
    return p


def _softmax(order: int, x: Series, dim: int, p0: Tensor) -> Series:
    if order == 0 or not x.varies:
        return Series.constant(p0, order)
    dtype = working_dtype(p0.dtype)
    rows = softmax_rows(rows_of(x, dtype), p0.to(dtype), dim)
    return stack_rows([None if row is None else row.to(p0.dtype) for row in rows], order, p0)


def _softmax_like(op: Any) -> None:
    def rule(order: int, x: Series, dim: int, *args: Any, **kwargs: Any) -> Series:
        return _softmax(order, x, dim, op(x.coefficient(0), dim, *args, **kwargs))

    register_rule(op, rule, gate="attention")


_softmax_like(aten.softmax.int)
_softmax_like(aten._softmax.default)
_softmax_like(aten._safe_softmax.default)


def _log_partition(x: Rows, dim: int) -> Rows:
    """Rows from order 1 of L = log Σ exp x, kept dim: j L_j = Σ_i i Σ_dim x_i p_(j-i); order 0 is left None."""
    p0 = torch.softmax(elementary.head(x), dim)
    p = softmax_rows(x, p0, dim)
    p[0] = torch.nan_to_num(p0, nan=0.0)
    rows: Rows = [None]
    for j in range(1, len(x)):
        row = elementary.step(x, p, j)
        rows.append(None if row is None else row.sum(dim, keepdim=True))
    return rows


def _log_softmax_like(op: Any) -> None:
    """x - log Σ exp x."""

    def rule(order: int, x: Series, dim: int, *args: Any, **kwargs: Any) -> Series:
        y0 = op(x.coefficient(0), dim, *args, **kwargs)
        if order == 0 or not x.varies:
            return Series.constant(y0, order)
        rows = rows_of(x, working_dtype(y0.dtype))
        result = elementary.plus(rows, _log_partition(rows, dim), -1)
        result[0] = y0
        return stack_rows([None if row is None else row.to(y0.dtype) for row in result], order, y0)

    def held(order: int, x: Series, dim: int, *args: Any, **kwargs: Any) -> Series:
        y0 = op(x.coefficient(0), dim, *args, **kwargs)
        return stack_rows([y0, *(None if row is None else row.to(y0.dtype) for row in rows_of(x)[1:])], order, y0)

    register_rule(op, rule, gate="attention", held=held)


_log_softmax_like(aten.log_softmax.int)
_log_softmax_like(aten._log_softmax.default)


@register_rule(aten.logsumexp.default, gate="attention")
def _logsumexp(order: int, x: Series, dim: Sequence[int] | int, keepdim: bool = False) -> Series:
    """log Σ exp x."""
    y0 = aten.logsumexp.default(x.coefficient(0), [dim] if isinstance(dim, int) else dim, keepdim)
    if order == 0 or not x.varies:
        return Series.constant(y0, order)
    dims = [item % x.ndim for item in ([dim] if isinstance(dim, int) else dim)]
    kept = [item for item in range(x.ndim) if item not in dims]
    sizes = [x.shape[item] for item in kept]
    flat = [
        None if row is None else row.permute(*kept, *dims).reshape(*sizes, -1)
        for row in rows_of(x, working_dtype(x.dtype))
    ]
    rows = [None if row is None else row.reshape(y0.shape).to(y0.dtype) for row in _log_partition(flat, -1)]
    rows[0] = y0
    return stack_rows(rows, order, y0)


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
    rows = rows_of(scores)
    rows[0] = first.to(scores.dtype)
    full = [None if row is None else row.expand(first.shape) for row in rows]
    return stack_rows(full, scores.order, first)


def _pattern(order: int, query: Any, key: Any, mask: Any, is_causal: bool, scale: float | None) -> Any:
    """softmax(scale · q kᵀ + mask), in the working dtype; a row that is masked throughout is 0."""
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    query = _widen(query)
    key = _widen(key)
    if isinstance(query, Series) or isinstance(key, Series):
        scaled = query.like(query.coefficients * factor) if isinstance(query, Series) else query * factor
        scores = matrix_product(order, scaled, _transposed(key))
    else:
        scores = torch.matmul(query * factor, _transposed(key))
    scores = _masked(scores, mask, is_causal)
    if not isinstance(scores, Series):
        return aten._safe_softmax.default(scores, -1)
    return _softmax(order, scores, -1, aten._safe_softmax.default(scores.coefficient(0), -1))


def _widen(value: Any) -> Any:
    dtype = working_dtype(value.dtype)
    if dtype is value.dtype:
        return value
    return value.like(value.coefficients.to(dtype)) if isinstance(value, Series) else value.to(dtype)


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
) -> Any:
    """softmax(scale · q kᵀ + mask) v."""
    if dropout_p > 0:
        raise JetGraphError("attention has dropout switched on, so its value is random: call .eval() on the model")
    if enable_gqa:
        key = _expanded_heads(key, query.shape[-3] // key.shape[-3])
        value = _expanded_heads(value, query.shape[-3] // value.shape[-3])
    pattern = _pattern(order, query, key, attn_mask, is_causal, scale)
    wide = _widen(value)
    if not isinstance(pattern, Series) and not isinstance(wide, Series):
        return torch.matmul(pattern, wide).to(value.dtype)
    result = matrix_product(order, pattern, wide)
    return result if result.dtype == value.dtype else result.like(result.coefficients.to(value.dtype))


def _held_attention(
    order: int, query: Any, key: Any, value: Any, attn_mask: Any = None, *args: Any, **kwargs: Any
) -> Any:
    return attention(order, centre(query), centre(key), value, centre(attn_mask), *args, **kwargs)


register_rule(
    aten.scaled_dot_product_attention.default,
    attention,
    affine="value",
    gate="attention",
    held=_held_attention,
    absorbs="query key attn_mask",
)


# Gated linear unit


def _glu(order: int, x: Series, dim: int = -1) -> Series:
    """a σ(b), (a, b) being the halves of x."""
    where = dim + 1 if dim >= 0 else dim
    a, b = (x.like(half) for half in x.coefficients.chunk(2, where))
    gate = elementary.sigmoid(rows_of(b, working_dtype(b.dtype)))
    opened = (
        stack_rows(gate, order, b.coefficients[0])
        if order and b.varies
        else Series.constant(elementary.head(gate), order)
    )
    result = multiply(order, a, opened)
    return result.like(result.coefficients.to(x.dtype))


def _held_glu(order: int, x: Series, dim: int = -1) -> Series:
    where = dim + 1 if dim >= 0 else dim
    a, b = (x.like(half) for half in x.coefficients.chunk(2, where))
    return multiply(order, a, torch.sigmoid(b.coefficient(0)))


register_rule(aten.glu.default, _glu, gate="gate", held=_held_glu)


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
    return elementary.scale(mean_square(away, dims), count / (count - correction))


def _moment(order: int, x: Series, dim: Any, correction: float, keepdim: bool, root: bool) -> Series:
    """Variance, or its root."""
    dims = _reduced_dims(x, dim)
    rows = _variance_rows(_widened(x), dims, correction)
    if root:
        first = elementary.head(rows)
        rows[0] = first
        if order and x.varies:
            demand(first, positive, "the variance under a standard deviation must be positive")
        rows = elementary.sqrt(rows)
    rows = _drop(rows, dims, keepdim)
    rows = [None if row is None else row.to(x.dtype) for row in rows]
    return stack_rows(rows, order, next(row for row in rows if row is not None))


def _means(x: Series, dim: Any, keepdim: bool) -> Series:
    return x.like(x.coefficients.mean(_reduced_dims(x, dim), keepdim=keepdim))


def _moments(op: Any, root: bool, with_mean: bool, by_correction: bool) -> None:
    def rule(order: int, x: Series, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
        if by_correction:
            correction = kwargs.get("correction", args[0] if args else None)
            correction = 1 if correction is None else correction
            keepdim = kwargs.get("keepdim", False)
        else:
            unbiased = kwargs.get("unbiased", args[0] if args else True)
            correction = 1 if unbiased else 0
            keepdim = kwargs.get("keepdim", args[1] if len(args) > 1 else False)
        moment = _moment(order, x, dim, correction, keepdim, root)
        return (moment, _means(x, dim, keepdim)) if with_mean else moment

    register_rule(op, rule, gate="norm" if root and not with_mean else None)


_moments(aten.var.correction, root=False, with_mean=False, by_correction=True)
_moments(aten.std.correction, root=True, with_mean=False, by_correction=True)
_moments(aten.var.dim, root=False, with_mean=False, by_correction=False)
_moments(aten.std.dim, root=True, with_mean=False, by_correction=False)
_moments(aten.var_mean.correction, root=False, with_mean=True, by_correction=True)
_moments(aten.std_mean.correction, root=True, with_mean=True, by_correction=True)


def _vector_norm(order: int, x: Series, p: float, dim: Any, keepdim: bool, dtype: torch.dtype | None) -> Series:
    """(Σ |x|^p)^(1/p); max |x| for p = inf."""
    if dtype is not None:
        x = x.like(x.coefficients.to(dtype))
    dims = _reduced_dims(x, dim)
    y0 = torch.linalg.vector_norm(x.coefficient(0), p, dims, keepdim=keepdim)
    if order == 0 or not x.varies:
        return Series.constant(y0, order)
    rows = rows_of(x, working_dtype(x.dtype))
    if p == 2:
        sums = elementary.scale(mean_square(_widened(x), dims), math.prod(x.shape[item] for item in dims))
        demand(elementary.head(sums), positive, "the norm must not be 0")
        sums = elementary.sqrt([elementary.head(sums), *sums[1:]])
    elif p in (1, math.inf, -math.inf):
        first = elementary.head(rows)
        sign = first.sign()
        if p == 1:
            weight = sign
        else:
            extreme = first.abs().amax(dims, True) if p > 0 else first.abs().amin(dims, True)
            ties = (first.abs() == extreme).to(first.dtype)
            weight = sign * ties / ties.sum(dims, keepdim=True)
        sums = [None if row is None else (row * weight).sum(dims, keepdim=True) for row in rows]
    else:
        first = elementary.head(rows)
        demand(first, nonzero, f"under a norm of order {p} no entry may be 0")
        sign = first.sign()
        powers = elementary.power([None if row is None else row * sign for row in rows], p)
        sums = [None if row is None else row.sum(dims, keepdim=True) for row in powers]
        sums = elementary.power(sums, 1 / p)
    result = [None if row is None else row.to(y0.dtype) for row in _drop(sums, dims, keepdim)]
    result[0] = y0
    return stack_rows(result, order, y0)


@register_rule(aten.linalg_vector_norm.default, gate="norm")
def _linalg_vector_norm(
    order: int, x: Series, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Series:
    return _vector_norm(order, x, ord, dim, keepdim, dtype)


@register_rule(aten.norm.ScalarOpt_dim, gate="norm")
def _norm_over_dims(order: int, x: Series, p: float | None, dim: Any, keepdim: bool = False) -> Series:
    return _vector_norm(order, x, 2 if p is None else p, dim, keepdim, None)


@register_rule(aten.norm.Scalar, gate="norm")
def _norm(order: int, x: Series, p: float = 2) -> Series:
    return _vector_norm(order, x, p, None, False, None)


# Products of entries


def _product_along(order: int, x: Series, dim: int) -> Series:
    """Π over one negative dim, dropped, as a balanced tree."""
    factors = [x.like(part) for part in x.coefficients.unbind(dim)]
    if not factors:
        return Series.constant(torch.ones_like(x.coefficients[0].sum(dim)), order)
    while len(factors) > 1:
        paired = [multiply(order, a, b) for a, b in zip(factors[::2], factors[1::2], strict=False)]
        factors = paired + factors[len(paired) * 2 :]
    return factors[0]


@register_rule(aten.prod.default)
def _prod(order: int, x: Series, *, dtype: torch.dtype | None = None) -> Series:
    """Π x."""
    stack = x.coefficients if dtype is None else x.coefficients.to(dtype)
    return _product_along(order, x.like(stack.reshape(stack.shape[0], -1)), -1)


@register_rule(aten.prod.dim_int)
def _prod_over_dim(
    order: int, x: Series, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Series:
    """Π x over one dim."""
    if dtype is not None:
        x = x.like(x.coefficients.to(dtype))
    where = dim - x.ndim if dim >= 0 else dim
    result = _product_along(order, x, where)
    return result.like(result.coefficients.unsqueeze(where)) if keepdim else result


@register_rule(aten.cumprod.default)
def _cumprod(order: int, x: Series, dim: int, *, dtype: torch.dtype | None = None) -> Series:
    """Running products along one dim, one factor after the other."""
    if dtype is not None:
        x = x.like(x.coefficients.to(dtype))
    where = dim - x.ndim if dim >= 0 else dim
    factors = [x.like(part) for part in x.coefficients.unbind(where)]
    running = [factors[0]]
    for factor in factors[1:]:
        running.append(multiply(order, running[-1], factor))
    start = min(item.start for item in running)
    stop = max(item.stop for item in running)
    return Series(torch.stack([item.span(start, stop) for item in running], where), order, start)
