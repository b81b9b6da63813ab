"""Ops made of pieces: the piece active at the centre is the one that is expanded.

On a kink the choice is the one that PyTorch's own derivative makes: relu, abs and the shrinking ops take slope 0 at the
kink, clamp takes the inner piece, maxima share a tie evenly, sorts and max-with-index take the chosen entry. What
is constant on each piece (comparisons, rounding, indices) gives plain values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jetgraph.errors import MissingRuleError, TraceError
from jetgraph.jets import arithmetic, elementary
from jetgraph.jets.arithmetic import cast, rank, widened, working_dtype
from jetgraph.jets.elementary import Rows
from jetgraph.jets.frozen import is_marked
from jetgraph.jets.registry import argument_names, bind, plain_rule, register_rule
from jetgraph.jets.rules.centres import with_a_dim, with_own_centre
from jetgraph.jets.rules.complex import held_modulus, modulus
from jetgraph.jets.rules.elementwise import divide, scaled
from jetgraph.jets.rules.linear import by_row
from jetgraph.jets.series import Series, centre

aten = torch.ops.aten


# Constant on each piece


def at_centre(op: Callable[..., Any]) -> None:
    """The plain op on the coefficients 0: a plain value."""
    register_rule(op, plain_rule(op), kind="piecewise", complex_values=True)


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    for _overload in ("Tensor", "Scalar"):
        at_centre(getattr(getattr(aten, _name), _overload))

for _op in (
    aten.logical_not.default,
    aten.logical_and.default,
    aten.logical_or.default,
    aten.logical_xor.default,
    aten.bitwise_not.default,
    aten.bitwise_and.Tensor,
    aten.bitwise_or.Tensor,
    aten.isnan.default,
    aten.isinf.default,
    aten.isfinite.default,
    aten.isclose.default,
    aten.any.default,
    aten.any.dim,
    aten.all.default,
    aten.all.dim,
    aten.argmax.default,
    aten.argmin.default,
    aten.argsort.default,
    aten.argsort.stable,
    aten.nonzero.default,
    aten.nonzero_numpy.default,
    aten.nonzero_static.default,
    aten.where.default,
    aten.count_nonzero.default,
    aten.sign.default,
    aten.signbit.default,
    aten.floor.default,
    aten.ceil.default,
    aten.round.default,
    aten.trunc.default,
    aten.floor_divide.default,
    aten.heaviside.default,
    aten.histc.default,
    aten.bincount.default,
    aten.bucketize.Tensor,
    aten.searchsorted.Tensor,
    aten.one_hot.default,
    aten.item.default,
):
    at_centre(_op)


# Linear on each piece


def sloped(
    op: Any, slope: Callable[..., Tensor], *, through_zero: bool = False, affine: Sequence[str] | str = ()
) -> None:
    """y_j = slope(x_0) x_j above order 0; `through_zero`: every piece is slope · x, so order 0 too."""

    def rule(order: int, x: Series, *args: Any, **kwargs: Any) -> Series:
        first = x.coefficient(0)
        factor = slope(widened(first), *args, **kwargs)
        if through_zero:
            return scaled(x, factor)
        y0 = op(first, *args, **kwargs)
        if order == 0 or not x.varies:
            return Series.constant(y0, order)
        above = x.span(1, x.stop) * factor
        return Series(torch.cat((y0.unsqueeze(0), above.to(y0.dtype))), order)

    register_rule(op, rule, kind="piecewise", affine=affine, gate="gate", held=rule, through_zero=through_zero)


def _between(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """1 where low ≤ x ≤ high."""
    inside = torch.ones_like(x, dtype=torch.bool)
    if low is not None:
        inside = inside & (x >= low)
    if high is not None:
        inside = inside & (x <= high)
    return inside.to(x.dtype)


def _strictly_between(low: float, high: float, slope: float = 1.0) -> Callable[..., Tensor]:
    return lambda x, *_: ((x > low) & (x < high)).to(x.dtype) * slope


def _relu(order: int, x: Series) -> Series:
    return x.like(torch.where(x.coefficient(0) > 0, x.coefficients, 0.0))


register_rule(aten.relu.default, _relu, kind="piecewise", gate="gate", held=_relu, through_zero=True)


def _leaky_slope(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    return torch.where(x > 0, torch.ones_like(x), negative_slope)


sloped(aten.leaky_relu.default, _leaky_slope, through_zero=True)


def _mean_slope(x: Tensor, lower: float = 0.125, upper: float = 1 / 3, training: bool = False, *_: Any) -> Tensor:
    if training:
        raise TraceError("rrelu is in training mode, where its value is random: call .eval() on the model")
    return _leaky_slope(x, (lower + upper) / 2)


sloped(aten.rrelu.default, _mean_slope, through_zero=True)


def _abs(order: int, x: Series) -> Series:
    """|x|; on the kink the slope is 0."""
    return modulus(order, x) if x.dtype.is_complex else scaled(x, torch.sign(widened(x.coefficient(0))))


register_rule(
    aten.abs.default,
    _abs,
    kind="piecewise",
    gate="gate",
    held=lambda order, x: held_modulus(x),
    through_zero=True,
    complex_values=True,
)
sloped(aten.clamp.default, _between)
sloped(aten.clamp_min.default, lambda x, low: _between(x, low))
sloped(aten.clamp_max.default, lambda x, high: _between(x, None, high))
sloped(aten.relu6.default, _strictly_between(0, 6))
sloped(aten.hardtanh.default, lambda x, low=-1, high=1: ((x > low) & (x < high)).to(x.dtype))
sloped(aten.hardsigmoid.default, _strictly_between(-3, 3, 1 / 6))
sloped(aten.hardshrink.default, lambda x, edge=0.5: (x.abs() > edge).to(x.dtype), through_zero=True)
sloped(aten.softshrink.default, lambda x, edge=0.5: (x.abs() > edge).to(x.dtype))
sloped(aten.threshold.default, lambda x, edge, value: (x > edge).to(x.dtype))
sloped(aten.frac.default, lambda x: torch.ones_like(x))
sloped(aten.remainder.Scalar, lambda x, divisor: torch.ones_like(x))
sloped(aten.fmod.Scalar, lambda x, divisor: torch.ones_like(x))
sloped(aten.nan_to_num.default, lambda x, *args, **kwargs: torch.isfinite(x).to(x.dtype), affine="self")


def _remainder(op: Any, quotient: Callable[[Tensor, Tensor], Tensor]) -> None:
    """x less the divisor, as often as at the centre."""

    def rule(order: int, x: Any, divisor: Any) -> Series:
        first, second = centre(x), centre(divisor)
        y0 = op(first, second)
        above = cast(x, y0.dtype) if isinstance(x, Series) else x.to(y0.dtype)
        if isinstance(divisor, Series):
            times = quotient(first, second).to(y0.dtype)
            above = arithmetic.add(order, above, arithmetic.multiply(order, cast(divisor, y0.dtype), times), -1)
        return Series.of_rows([y0, *above.rows()[1:]], order, y0)

    def through_zero(bound: Mapping[str, Any]) -> bool:
        return is_marked(bound["self"]) and is_marked(bound["other"])

    register_rule(op, rule, kind="piecewise", gate="gate", held=rule, through_zero=through_zero)


_remainder(aten.remainder.Tensor, lambda x, divisor: torch.div(x, divisor, rounding_mode="floor"))
_remainder(aten.fmod.Tensor, lambda x, divisor: torch.div(x, divisor, rounding_mode="trunc"))


def _copysign(order: int, x: Any, sign: Any) -> Any:
    """|x| with the sign of the other at the centre; level on the kink."""
    first, second = centre(x), centre(sign)
    y0 = torch.copysign(first, second)
    if not isinstance(x, Series):
        return y0
    flipped = torch.signbit(torch.as_tensor(second)) != torch.signbit(first)
    factor = torch.where(first == 0, 0.0, torch.where(flipped, -1.0, 1.0))
    return Series.of_rows([y0, *arithmetic.multiply(order, x, factor.to(x.dtype)).rows()[1:]], order, y0)


for _op in (aten.copysign.Tensor, aten.copysign.Scalar):
    register_rule(_op, _copysign, kind="piecewise", gate="gate", held=_copysign, through_zero=True)


def _blend(order: int, a: Any, b: Any, share: Tensor, y0: Tensor) -> Series:
    """share · a + (1 - share) · b above order 0."""
    parts: list[Rows] = []
    for value, weight in ((a, share), (b, 1 - share)):
        if isinstance(value, Series):
            rows = cast(value, y0.dtype).rows()
            parts.append([None, *(None if row is None else row * weight for row in rows[1:])])
        else:
            parts.append([None] * (order + 1))
    rows = elementary.plus(parts[0], parts[1])
    return Series.of_rows([y0, *rows[1:]], order, y0)


def _extremum(op: Any, share: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The larger, or smaller, of two; `share` is the first one's."""

    def rule(order: int, a: Any, b: Any) -> Series:
        first, second = centre(a), centre(b)
        y0 = op(first, second)
        return _blend(order, a, b, share(first, second).to(y0.dtype), y0)

    register_rule(op, rule, kind="piecewise", gate="gate", held=rule)


for _op in (aten.maximum.default, aten.max.other):
    _extremum(_op, lambda a, b: (a > b) + 0.5 * (a == b))
for _op in (aten.minimum.default, aten.min.other):
    _extremum(_op, lambda a, b: (a < b) + 0.5 * (a == b))
# These take the one that is a number, and of two that are equal the first.
_extremum(aten.fmax.default, lambda a, b: (a >= b) | b.isnan())
_extremum(aten.fmin.default, lambda a, b: (a <= b) | b.isnan())


def _clamp_tensor(order: int, x: Any, low: Any = None, high: Any = None) -> Any:
    """min(max(x, low), high), bounds being tensors; inside, and on a bound, x itself."""
    result = x
    for bound, above in ((low, torch.ge), (high, torch.le)):
        if bound is None:
            continue
        first, second = centre(result), centre(bound)
        inside = above(first, second)
        y0 = torch.where(inside, first, second)
        if isinstance(result, Series) or isinstance(bound, Series):
            result = _blend(order, result, bound, inside.to(y0.dtype), y0)
        else:
            result = y0
    return result


for _op, _adapted in (
    (aten.clamp.Tensor, _clamp_tensor),
    (aten.clamp_min.Tensor, _clamp_tensor),
    (aten.clamp_max.Tensor, lambda order, x, high: _clamp_tensor(order, x, None, high)),
):
    register_rule(_op, _adapted, kind="piecewise", gate="gate", held=_adapted)


def _prelu(order: int, x: Any, weight: Any) -> Series:
    """x where positive, weight · x elsewhere."""
    sizes = (-1, *[1] * (rank(x) - 2))
    first = centre(x)
    if isinstance(weight, Series):
        slope = weight.like(weight.coefficients.reshape(weight.coefficients.shape[0], *sizes))
        below: Any = arithmetic.multiply(order, x, slope)
        start, stop = arithmetic.orders(x, below)
        rows = [
            torch.where(
                first > 0, x.coefficient(j) if isinstance(x, Series) else (x if j == 0 else 0.0), below.coefficient(j)
            )
            for j in range(start, stop)
        ]
        return Series(torch.stack(rows), order, start)
    return x.like(x.coefficients * torch.where(first > 0, 1.0, weight.reshape(sizes)).to(x.dtype))


register_rule(
    aten.prelu.default,
    _prelu,
    kind="piecewise",
    affine="weight",
    # The input where it is positive.
    added=lambda bound, moving: [bound["self"]],
    gate="gate",
    held=_prelu,
    through_zero=True,
    absorbs="weight",
)


def _prelu_kernel(order: int, x: Any, weight: Any) -> Series:
    """As `_prelu`, the slope being broadcast already."""
    if isinstance(weight, Series):
        raise MissingRuleError("_prelu_kernel has no rule for a slope that varies")
    return x.like(x.coefficients * torch.where(x.coefficient(0) > 0, torch.ones_like(weight), weight))


register_rule(
    aten._prelu_kernel.default, _prelu_kernel, kind="piecewise", gate="gate", held=_prelu_kernel, through_zero=True
)


# Smooth on each piece


def _elu(
    order: int, x: Series, alpha: float, scale: float, input_scale: float, y0: Tensor, linear: bool = False
) -> Series:
    """scale · x where positive, scale · alpha · (exp(input_scale x) - 1) elsewhere."""
    if order == 0 or not x.varies:
        return Series.constant(y0, order)
    dtype = working_dtype(x.dtype)
    rows = cast(x, dtype).rows()
    first = elementary.head(rows)
    positive = first > 0
    if linear:
        curved: Rows = [None] * len(rows)
    else:
        # exp of a large positive entry would overflow although its piece is not the active one.
        bounded = elementary.scale([torch.where(positive, 0.0, first), *rows[1:]], input_scale)
        curved = elementary.scale(elementary.exp(bounded), scale * alpha)
    straight = elementary.scale(rows, scale)
    result: Rows = [y0]
    for up, down in zip(straight[1:], curved[1:], strict=True):
        if up is None and down is None:
            result.append(None)
            continue
        result.append(torch.where(positive, 0.0 if up is None else up, 0.0 if down is None else down))
    return Series.of_rows(result, order, y0)


def _elu_like(op: Any, constants: Callable[..., tuple[float, float, float]]) -> None:
    def rule(order: int, x: Series, *args: Any, **kwargs: Any) -> Series:
        return _elu(order, x, *constants(*args, **kwargs), op(x.coefficient(0), *args, **kwargs))

    def held(order: int, x: Series, *args: Any, **kwargs: Any) -> Series:
        return _elu(order, x, *constants(*args, **kwargs), op(x.coefficient(0), *args, **kwargs), linear=True)

    register_rule(op, rule, kind="piecewise", gate="gate", held=held)


_elu_like(aten.elu.default, lambda alpha=1.0, scale=1.0, input_scale=1.0: (alpha, scale, input_scale))
_elu_like(aten.celu.default, lambda alpha=1.0: (alpha, 1.0, 1.0 / alpha))
_elu_like(aten.selu.default, lambda: (1.6732632423543772848170429916717, 1.0507009873554804934193349852946, 1.0))


def _hardswish(order: int, x: Series) -> Series:
    """x (x + 3) / 6 between -3 and 3, 0 below, x above."""
    y0 = aten.hardswish.default(x.coefficient(0))
    if order == 0 or not x.varies:
        return Series.constant(y0, order)
    rows = cast(x, working_dtype(x.dtype)).rows()
    first = elementary.head(rows)
    square = elementary.product(rows, rows)
    curved = elementary.scale(elementary.plus(elementary.scale(rows, 3), square), 1 / 6)
    result: Rows = [y0]
    for up, middle in zip(rows[1:], curved[1:], strict=True):
        if middle is None:
            result.append(None)
            continue
        inner = torch.where(first < 3, middle, 0.0 if up is None else up)
        result.append(torch.where(first > -3, inner, 0.0))
    return Series.of_rows(result, order, y0)


register_rule(
    aten.hardswish.default,
    _hardswish,
    kind="piecewise",
    gate="gate",
    held=lambda order, x: scaled(x, (widened(x.coefficient(0)) + 3).clamp(0, 6) / 6),
    through_zero=True,
)


# Chosen entries


def _picked(x: Series, chosen: Tensor, dim: int) -> Series:
    """Entries at the centre's indices, along one dim of the coefficients."""
    if x.ndim == 0:
        return x
    where = dim + 1 if dim >= 0 else dim
    return x.like(x.coefficients.gather(where, chosen.expand(x.coefficients.shape[0], *chosen.shape)))


def _choice(op: Any) -> None:
    """An op that returns entries and their indices along one dim."""
    drops = "keepdim" in argument_names(op)

    def rule(order: int, x: Series, *args: Any, **kwargs: Any) -> tuple[Series, Tensor]:
        _, chosen = op(x.coefficient(0), *args, **kwargs)
        bound = bind(op, (x, *args), kwargs)
        dim = bound.get("dim", -1)
        if not drops or bound.get("keepdim", False) or x.ndim == 0:
            return _picked(x, chosen, dim), chosen
        values = _picked(x, chosen.unsqueeze(dim), dim)
        return values.like(values.coefficients.squeeze(dim + 1 if dim >= 0 else dim)), chosen

    register_rule(op, rule, kind="piecewise", gate="gate", held=rule, through_zero=True)


for _op in (
    aten.max.dim,
    aten.min.dim,
    aten.median.dim,
    aten.nanmedian.dim,
    aten.mode.default,
    aten.kthvalue.default,
    aten.topk.default,
    aten.sort.default,
    aten.sort.stable,
    aten.cummax.default,
    aten.cummin.default,
):
    _choice(_op)


def _shared_extremum(order: int, x: Series, dims: list[int], keepdim: bool, y0: Tensor, kept: Tensor) -> Series:
    """The mean of those entries that attain the extremum `kept` (y0 with its dims kept)."""
    if order == 0 or not x.varies:
        return Series.constant(y0, order)
    ties = (x.coefficient(0) == kept).to(x.dtype)
    share = ties / ties.sum(dims, keepdim=True)
    above = (x.span(1, x.stop) * share).sum(dims, keepdim=keepdim)
    return Series(torch.cat((y0.unsqueeze(0), above)), order)


def _extreme_over_dims(op: Any) -> None:
    @with_a_dim
    def rule(order: int, x: Series, dim: Sequence[int] = (), keepdim: bool = False) -> Series:
        dims = [item - x.ndim if item >= 0 else item for item in ([dim] if isinstance(dim, int) else dim)]
        dims = dims or list(range(-x.ndim, 0))
        first = x.coefficient(0)
        kept = op(first, dims, True)
        y0 = kept if keepdim else kept.squeeze(tuple(dims))
        return _shared_extremum(order, x, dims, keepdim, y0, kept)

    register_rule(op, rule, kind="piecewise", gate="gate", held=rule, through_zero=True)


def _extreme_of_all(op: Any) -> None:
    @with_a_dim
    def rule(order: int, x: Series) -> Series:
        y0 = op(x.coefficient(0))
        return _shared_extremum(order, x, list(range(-x.ndim, 0)), False, y0, y0)

    register_rule(op, rule, kind="piecewise", gate="gate", held=rule, through_zero=True)


_extreme_over_dims(aten.amax.default)
_extreme_over_dims(aten.amin.default)
for _op in (aten.max.default, aten.min.default, aten.median.default, aten.nanmedian.default):
    _extreme_of_all(_op)


def _lands_linearly(bound: Mapping[str, Any]) -> bool:
    """Values that land in one place are added up, with no regard to how large they are."""
    return bound["reduce"] in ("sum", "mean")


def _scatter_reduce(
    order: int, own: Any, dim: int, index: Tensor, src: Any, reduce: str, *, include_self: bool = True
) -> Series:
    """Coefficients by the share that each value has in the result at the centre."""
    first = aten.scatter_reduce.two(centre(own), dim, index, centre(src), reduce, include_self=include_self)
    places = tuple(map(slice, index.shape))
    kept, landed = _shares(first, dim, index, centre(own), centre(src)[places], reduce, include_self)
    rows: Rows = [first]
    for j in range(1, max(each.stop for each in (own, src) if isinstance(each, Series))):
        row = own.row(j) if isinstance(own, Series) else None
        made = torch.zeros_like(first) if row is None else kept * row
        row = src.row(j) if isinstance(src, Series) else None
        rows.append(made if row is None else made.scatter_add(dim, index, landed * row[places]))
    return Series.of_rows(rows, order, first)


def _shares(
    made: Tensor, dim: int, index: Tensor, own: Tensor, landing: Tensor, reduce: str, include_self: bool
) -> tuple[Tensor, Tensor]:
    """What a value that was there before, and one that lands there, has of the result; an extremum is shared by those
    that attain it.
    """
    landed = torch.ones_like(landing)
    count = torch.zeros_like(made).scatter_add(dim, index, landed)
    kept = torch.ones_like(made) if include_self else (count == 0).to(made.dtype)
    if reduce == "sum":
        return kept, landed
    if reduce in ("amax", "amin"):
        kept = kept * (own == made)
        landed = (landing == made.gather(dim, index)).to(made.dtype)
        count = torch.zeros_like(made).scatter_add(dim, index, landed)
    elif reduce != "mean":
        raise MissingRuleError(f"what lands in one place is reduced by {reduce!r}, which has no Taylor rule")
    total = kept + count
    return kept / total, landed / total.gather(dim, index)


register_rule(
    aten.scatter_reduce.two,
    _scatter_reduce,
    kind="piecewise",
    affine="self src",
    when=lambda bound, moving: _lands_linearly(bound),
    gate=lambda bound: None if _lands_linearly(bound) else "gate",
    held=_scatter_reduce,
)


def _quantile(op: Any, *, skips: bool = False) -> None:
    """Between two neighbours of the entries, in the order that they have at the centre; where an op `skips` what is no
    number there, of the others.
    """

    def rule(
        order: int, x: Series, q: Any, dim: int | None = None, keepdim: bool = False, *, interpolation: str = "linear"
    ) -> Series:
        place = -1 if dim is None else dim - x.ndim if dim >= 0 else dim
        stack = x.coefficients.flatten(1) if dim is None else x.coefficients.movedim(place, -1)
        first = x.coefficient(0).flatten() if dim is None else x.coefficient(0).movedim(place, -1)
        ordered = stack.gather(-1, first.argsort(-1).expand(stack.shape))
        shares = torch.as_tensor(q, dtype=x.dtype, device=stack.device)
        counted = ~first.isnan() if skips else torch.ones_like(first, dtype=torch.bool)
        at = (counted.sum(-1, keepdim=True) - 1).clamp_min(0) * shares.reshape(-1)
        lower, upper = at.floor().long(), at.ceil().long()
        share = {"linear": at - lower, "lower": 0, "higher": 1, "nearest": at.round() - lower, "midpoint": 0.5}
        below, above = (ordered.gather(-1, index.expand(len(stack), *index.shape)) for index in (lower, upper))
        between = torch.lerp(below, above, torch.as_tensor(share[interpolation], dtype=x.dtype).to(stack))
        between = between if shares.ndim else between.squeeze(-1)
        if keepdim:
            kept = [1] * x.ndim if dim is None else list(first.movedim(-1, place).shape)
            kept[place] = 1
            between = between.reshape(stack.shape[0], *kept, *shares.shape)
        return x.like(between.movedim(-1, 1) if shares.ndim else between)

    register_rule(op, with_own_centre(op, rule), kind="piecewise", gate="gate", held=rule, through_zero=True)


_quantile(aten.quantile.default)
_quantile(aten.quantile.scalar)
_quantile(aten.nanquantile.default, skips=True)
_quantile(aten.nanquantile.scalar, skips=True)


@register_rule(aten.masked_select.default, kind="linear")
def _masked_select(order: int, x: Series, mask: Tensor) -> Series:
    return by_row(aten.masked_select.default, x, mask)


# Max pools


def _max_pool(op: Any, indexed: Callable[..., tuple[Tensor, Tensor]], spatial: int, with_indices: bool) -> None:
    """The entry that is largest at the centre, window by window."""

    def rule(order: int, x: Series, *args: Any, **kwargs: Any) -> Any:
        values, chosen = indexed(x.coefficient(0), *args, **kwargs)
        flat = x.coefficients.flatten(-spatial)
        places = chosen.flatten(-spatial).expand(flat.shape[0], *chosen.shape[:-spatial], -1)
        picked = x.like(flat.gather(-1, places).unflatten(-1, values.shape[-spatial:]))
        return (picked, chosen) if with_indices else picked

    register_rule(op, rule, kind="piecewise", gate="gate", held=rule, through_zero=True)


_max_pool(aten.max_pool1d.default, aten.max_pool1d_with_indices.default, 1, False)
_max_pool(aten.max_pool2d.default, aten.max_pool2d_with_indices.default, 2, False)
_max_pool(aten.max_pool3d.default, aten.max_pool3d_with_indices.default, 3, False)
_max_pool(aten.max_pool1d_with_indices.default, aten.max_pool1d_with_indices.default, 1, True)
_max_pool(aten.max_pool2d_with_indices.default, aten.max_pool2d_with_indices.default, 2, True)
_max_pool(aten.max_pool3d_with_indices.default, aten.max_pool3d_with_indices.default, 3, True)
_max_pool(aten.adaptive_max_pool1d.default, aten.adaptive_max_pool1d.default, 1, True)
_max_pool(aten.adaptive_max_pool2d.default, aten.adaptive_max_pool2d.default, 2, True)
_max_pool(aten.adaptive_max_pool3d.default, aten.adaptive_max_pool3d.default, 3, True)


# Quotients that are rounded


@register_rule(
    aten.div.Tensor_mode,
    kind="piecewise",
    affine="self",
    when=lambda bound, moving: bound.get("rounding_mode") is None,
)
def _divide_rounded(order: int, a: Any, b: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is None:
        return divide(order, a, b)
    return aten.div.Tensor_mode(centre(a), centre(b), rounding_mode=rounding_mode)
