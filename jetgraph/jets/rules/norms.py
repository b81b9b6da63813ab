"""Norms that divide by a deviation: layer, RMS, group, instance and batch norm.

Means run once on the stack; the coefficients of a variance are small, so their recurrences are cheap. Where nothing
follows what is done, a layer or RMS norm is the operator at the centre, and above it one weighted sum of coefficients,
whose weights are those of the reciprocal deviation. Half-precision
input is computed in float32, as PyTorch's own kernels do. Held, a norm keeps the denominator that it has at the centre,
and its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jetgraph.errors import MissingRuleError
from jetgraph.jets import arithmetic, elementary
from jetgraph.jets.arithmetic import cast, multiply, rank, widened, working_dtype
from jetgraph.jets.domain import demand, positive
from jetgraph.jets.elementary import Rows
from jetgraph.jets.frozen import is_marked
from jetgraph.jets.recording import may_follow
from jetgraph.jets.registry import Condition, TaylorRule, register_rule
from jetgraph.jets.rules.bilinear import plain_at_order_0
from jetgraph.jets.rules.centres import with_own_centre
from jetgraph.jets.series import Series

aten = torch.ops.aten

WEIGHT_AND_BIAS = ("weight bias",)


def _register_norm(
    op: Any,
    rule: Callable[[bool], TaylorRule],
    affine: Sequence[str] = WEIGHT_AND_BIAS,
    *,
    direct: Callable[..., Series | None] | None = None,
    when: Condition | None = None,
    plain: Callable[..., Any] | None = None,
    shifts: Callable[[Mapping[str, Any]], bool] = lambda bound: False,
    absorbs: str = "weight",
) -> None:
    """Register `rule(held)` of a norm, free and held; `plain` is what gives its value, the operator unless given,
    `direct` gives what the free rule does where it can, and `shifts` says whether the norm adds anything besides its
    bias where it is held."""
    general = with_own_centre(plain or op, rule(False), in_place=True)

    def free(order: int, *args: Any, **kwargs: Any) -> Any:
        found = None if direct is None else direct(order, *args, **kwargs)
        return general(order, *args, **kwargs) if found is None else found

    register_rule(
        op,
        free,
        affine=affine,
        when=when,
        gate="norm",
        held=with_own_centre(plain or op, rule(True), in_place=True),
        through_zero=lambda bound: not shifts(bound) and (bound.get("bias") is None or is_marked(bound["bias"])),
        absorbs=absorbs,
    )


# Deviations


def mean_square(x: Series, dims: list[int]) -> Rows:
    """Rows of the mean of x² over negative dims, kept as size 1."""
    stack, stored = x.coefficients, x.stop - x.start
    squares: Rows = [None] * (x.order + 1)
    for i in range(stored):
        lowest = 2 * (x.start + i)
        if lowest > x.order:
            break
        parts = (stack[i] * stack[i : i + x.order + 1 - lowest]).mean(dims, keepdim=True)
        for j, part in enumerate(parts.unbind(0), lowest):
            squares[j] = elementary.total(squares[j], part, 1 if j == lowest else 2)
    return squares


def normalised(
    order: int,
    x: Series,
    dims: list[int],
    eps: float,
    *,
    centred: bool = True,
    held: bool,
    part: Series | None = None,
) -> Series:
    """(x - mean x) · (mean (x - mean x)² + eps)^(-1/2) over negative dims, in the working dtype.

    Uncentred: x · (mean x² + eps)^(-1/2). Held: the second factor is a constant, its value at the centre. Of a `part`
    of x, it is the first factor that is the part's.
    """

    def away(value: Series) -> Series:
        return _away(widened(value), dims) if centred else widened(value)

    whole = away(x)
    factor = whole if part is None else away(part)
    return multiply(order, factor, _inverse_deviation(order, whole, dims, eps, held))


def _away(x: Series, dims: list[int]) -> Series:
    return x.like(x.coefficients - x.coefficients.mean(dims, keepdim=True))


def _inverse_deviation(order: int, away: Series, dims: list[int], eps: float, held: bool) -> Series | Tensor:
    """(mean away² + eps)^(-1/2)."""
    if held:
        return (away.coefficient(0).square().mean(dims, keepdim=True) + eps).rsqrt()
    square = mean_square(away, dims)
    zero = next((row for row in square if row is not None), away.coefficients.new_zeros((1,) * away.ndim))
    first = (torch.zeros_like(zero) if square[0] is None else square[0]) + eps
    if eps <= 0:
        demand(first, positive, "the mean square under a norm must be positive")
    rows = elementary.rsqrt([first, *square[1:]]) if any(row is not None for row in square[1:]) else [first.rsqrt()]
    return Series.of_rows(rows, order, first)


def _directly(
    order: int, x: Any, dims: list[int], eps: float, *given: Any, centred: bool, plain: Callable[[Tensor], Tensor]
) -> Series | None:
    """The norm of a series, times a weight, the first that is `given`, and plus the others; None where it is not to be
    had so: where derivatives are asked for, what is given varies, or the centre is not looked at by it.

    y_j = w Σ_i (x_i − mean x_i) r_(j−i), with r of the reciprocal deviation, and `plain` at the centre.
    """
    varies = isinstance(x, Series) and order > 0 and x.varies and not x.start
    if not varies or eps <= 0 or may_follow() or any(isinstance(each, Series) for each in given):
        return None
    wide, first = widened(x), plain(x.coefficient(0))
    away = _away(wide, dims) if centred else wide
    inverse = _inverse_deviation(order, away, dims, eps, False)
    assert isinstance(inverse, Series)
    shares, stack = inverse.span(0, order + 1), away.coefficients
    weight, room = given[0] if given else None, first.new_empty((order + 1, *x.shape))
    # What is rounded in the end is rounded as it is written; of the sums, the last one goes over all orders.
    above = torch.mul(stack[0], shares[1:], out=room[1:] if room.dtype == stack.dtype else None)
    for i in range(len(stack) - 1, 1, -1):
        above[i - 1 :].addcmul_(stack[i], shares[: order + 1 - i])
    torch.addcmul(above, stack[1], shares[:order], out=room[1:] if weight is None else above)
    if weight is not None:
        torch.mul(above, weight, out=room[1:])
    return Series.beside(first, room, order)


def _statistics(order: int, x: Any, dims: list[int], eps: float, held: bool) -> tuple[Any, Any]:
    """Mean and reciprocal deviation, the further outputs of the native norms."""
    x = _as_series(x, order)
    wide = widened(x)
    mean = wide.like(wide.coefficients.mean(dims, keepdim=True))
    return cast(mean, x.dtype), cast(_inverse_deviation(order, _away(wide, dims), dims, eps, held), x.dtype)


def scaled_and_shifted(order: int, x: Series, weight: Any, bias: Any, dtype: torch.dtype) -> Series:
    """x · weight + bias, in `dtype`; x belongs to the caller."""
    if weight is not None:
        x = multiply(order, x, weight)
    if bias is not None:
        if not isinstance(bias, Series) and x.start == 0 and x.dtype == bias.dtype:
            x.coefficients[0].add_(bias)
        else:
            x = arithmetic.add(order, x, bias)
    return cast(x, dtype)


def _as_series(x: Any, order: int) -> Series:
    return x if isinstance(x, Series) else Series.constant(x, order)


# Over the last dims


def _last(shape: Sequence[int]) -> list[int]:
    return list(range(-len(shape), 0))


def _layer_norm(held: bool) -> TaylorRule:
    def rule(
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
        return scaled_and_shifted(
            order, normalised(order, x, _last(normalized_shape), eps, held=held), weight, bias, x.dtype
        )

    return rule


def _native_layer_norm(held: bool) -> TaylorRule:
    norm = _layer_norm(held)

    def rule(order: int, x: Any, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> tuple[Any, ...]:
        """layer_norm, mean and reciprocal deviation."""
        return norm(order, x, shape, weight, bias, eps), *_statistics(order, x, _last(shape), eps, held)

    return rule


def rms_eps(eps: float | None, dtype: torch.dtype) -> float:
    """That of an RMS norm: PyTorch's default is the machine precision of the dtype in which it computes."""
    return torch.finfo(working_dtype(dtype)).eps if eps is None else eps


def _rms_norm(held: bool) -> TaylorRule:
    def rule(
        order: int, x: Any, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None
    ) -> Series:
        """x / sqrt(mean x² + eps) · weight over the last dims."""
        x = _as_series(x, order)
        scaled = normalised(order, x, _last(normalized_shape), rms_eps(eps, x.dtype), centred=False, held=held)
        return scaled_and_shifted(order, scaled, weight, None, x.dtype)

    return rule


def _fused_rms_norm(held: bool) -> TaylorRule:
    norm = _rms_norm(held)

    def rule(order: int, x: Any, shape: Sequence[int], weight: Any, eps: float | None) -> tuple[Any, Any]:
        """rms_norm and the reciprocal root mean square."""
        x = _as_series(x, order)
        inverse = _inverse_deviation(order, widened(x), _last(shape), rms_eps(eps, x.dtype), held)
        return norm(order, x, shape, weight, eps), cast(inverse, working_dtype(x.dtype))

    return rule


def _layer_norm_directly(
    order: int, x: Any, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *options: Any
) -> Series | None:
    def plain(centre: Tensor) -> Tensor:
        return aten.layer_norm.default(centre, shape, weight, bias, eps)

    return _directly(order, x, _last(shape), eps, weight, bias, centred=True, plain=plain)


def _rms_norm_directly(
    order: int, x: Any, shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> Series | None:
    def plain(centre: Tensor) -> Tensor:
        return aten.rms_norm.default(centre, shape, weight, eps)

    return _directly(order, x, _last(shape), rms_eps(eps, x.dtype), weight, centred=False, plain=plain)


_register_norm(aten.layer_norm.default, _layer_norm, direct=_layer_norm_directly)
_register_norm(aten.native_layer_norm.default, _native_layer_norm)
_register_norm(aten.rms_norm.default, _rms_norm, ("weight",), direct=_rms_norm_directly)
_register_norm(aten._fused_rms_norm.default, _fused_rms_norm, ("weight",))


# Over groups of channels


def _over_channels(value: Any, ndim: int) -> Any:
    sizes = (1, -1, *[1] * (ndim - 2))
    if isinstance(value, Series):
        return value.like(value.coefficients.reshape(value.coefficients.shape[0], *sizes))
    return None if value is None else value.reshape(sizes)


def _in_groups(x: Series, groups: int) -> Series:
    size = x.shape[1:].numel() // groups
    return x.like(x.coefficients.reshape(*x.coefficients.shape[:2], groups, size))


def over_groups(
    order: int, x: Any, groups: int, weight: Any, bias: Any, eps: float, held: bool, part: Series | None = None
) -> Series:
    """A norm over groups of channels and all positions; of a `part` of x, it is held at the whole."""
    x = _as_series(x, order)
    grouped = None if part is None else _in_groups(part, groups)
    scaled = normalised(order, _in_groups(x, groups), [-1], eps, held=held, part=grouped)
    whole = scaled.like(scaled.coefficients.reshape(scaled.coefficients.shape[0], *x.shape))
    return scaled_and_shifted(order, whole, _over_channels(weight, x.ndim), _over_channels(bias, x.ndim), x.dtype)


def _group_norm(held: bool) -> TaylorRule:
    def rule(
        order: int,
        x: Any,
        num_groups: int,
        weight: Any = None,
        bias: Any = None,
        eps: float = 1e-5,
        cudnn_enabled: bool = True,
    ) -> Series:
        """layer_norm over groups of channels and all positions."""
        return over_groups(order, x, num_groups, weight, bias, eps, held)

    return rule


def _native_group_norm(held: bool) -> TaylorRule:
    def rule(
        order: int, x: Any, weight: Any, bias: Any, batch: int, channels: int, positions: int, group: int, eps: float
    ) -> tuple[Any, ...]:
        """group_norm, mean and reciprocal deviation."""
        x = _as_series(x, order)
        mean, inverse = _statistics(order, _in_groups(x, group), [-1], eps, held)
        flat = inverse.like(inverse.coefficients.squeeze(-1)) if isinstance(inverse, Series) else inverse.squeeze(-1)
        result = over_groups(order, x, group, weight, bias, eps, held)
        return result, mean.like(mean.coefficients.squeeze(-1)), flat

    return rule


def _instances(x: Any, weight: Any, bias: Any, mean: Any, var: Any, *options: Any) -> Tensor:
    """instance_norm by its input's statistics, of which it would else make running ones, in place."""
    return aten.instance_norm.default(x, weight, bias, None, None, *options)


def _instance_norm(held: bool) -> TaylorRule:
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
            raise MissingRuleError("instance_norm with running statistics has no rule: use batch_norm in eval instead")
        return over_groups(order, x, x.shape[1], weight, bias, eps, held)

    return rule


_register_norm(aten.group_norm.default, _group_norm)
_register_norm(aten.native_group_norm.default, _native_group_norm)
_register_norm(aten.instance_norm.default, _instance_norm, plain=_instances)


# Batch norm


def _with_running_statistics(order: int, x: Any, weight: Any, bias: Any, mean: Any, var: Any, eps: float) -> Series:
    """(x - mean) / sqrt(var + eps) · weight + bias with running statistics; channels on dim 1 of x."""
    dtype, given = x.dtype, (weight, bias, mean, var)
    if isinstance(x, Series) and not any(isinstance(value, Series) for value in given):
        factor = _over_channels(torch.rsqrt(widened(var) + eps) * (1 if weight is None else widened(weight)), x.ndim)

        def normal(stack: Tensor, first: bool) -> Tensor:
            if first:
                return aten.batch_norm.default(stack[0], *given, False, 0.0, eps, False).unsqueeze(0)
            return (widened(stack) * factor).to(dtype)

        return plain_at_order_0(x, normal, normal(torch.zeros_like(x.first)[None], True)[0] if x.start else mean)
    x, weight, bias, mean, var = (None if value is None else widened(value) for value in (x, weight, bias, mean, var))
    spread = arithmetic.add(order, var, eps)
    factor = Series.of_rows(elementary.rsqrt(spread.rows()), order, spread.first)
    if weight is not None:
        factor = multiply(order, weight, factor)
    away = arithmetic.add(order, x, _over_channels(mean, rank(x)), -1)
    result = multiply(order, away, _over_channels(factor, rank(x)))
    return cast(result if bias is None else arithmetic.add(order, result, _over_channels(bias, rank(x))), dtype)


def _batches(x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *options: Any) -> Tensor:
    """batch_norm, which makes no running statistics of its input's."""
    given = (None, None) if training else (mean, var)
    return aten.batch_norm.default(x, weight, bias, *given, training, *options)


def _batch_norm(held: bool) -> TaylorRule:
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
        if not training:
            return _with_running_statistics(order, x, weight, bias, running_mean, running_var, eps)
        x = _as_series(x, order)
        dims = [-x.ndim, *range(2 - x.ndim, 0)]
        scaled = normalised(order, x, dims, eps, held=held)
        return scaled_and_shifted(order, scaled, _over_channels(weight, x.ndim), _over_channels(bias, x.ndim), x.dtype)

    return rule


def _shifts_by_running_statistics(bound: Mapping[str, Any]) -> bool:
    """In eval, by a mean that does not vary, or where the variance alone does: a tangent to it misses 0."""
    return not bound["training"] and not (is_marked(bound["input"]) and is_marked(bound["running_mean"]))


_AFFINE_IN_EVAL = ("input bias running_mean", "weight bias")

_register_norm(
    aten.batch_norm.default,
    _batch_norm,
    _AFFINE_IN_EVAL,
    when=lambda bound, moving: not bound["training"] or "input" not in moving,
    plain=_batches,
    shifts=_shifts_by_running_statistics,
    absorbs="weight running_var",
)


@register_rule(aten._native_batch_norm_legit_no_training.default, affine=_AFFINE_IN_EVAL)
def _native_batch_norm(
    order: int, x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: float, eps: float
) -> tuple[Any, Tensor, Tensor]:
    empty = arithmetic.row_of(running_mean).new_empty((0,))
    return _with_running_statistics(order, x, weight, bias, running_mean, running_var, eps), empty, empty
