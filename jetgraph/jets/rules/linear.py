"""Ops that are linear, or affine, in their tensor arguments: shape, selection, sums, pools, casts, padding.

They run once on the stacked coefficients wherever the op can carry one dim more: dims shift by one (`shifted`), sizes
gain a leading one, ops with a fixed number of spatial dims have the stack folded into their batch (`folded`). What
fits none of these runs coefficient by coefficient (`by_row`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from jetgraph.errors import TraceError
from jetgraph.jets import arithmetic
from jetgraph.jets.arithmetic import align, cast, orders, rank, spread
from jetgraph.jets.registry import Condition, TaylorRule, bind, register_rule
from jetgraph.jets.rules.centres import with_a_dim
from jetgraph.jets.series import Series

aten = torch.ops.aten

_DIMS = frozenset(
    {"dim", "dims", "dim0", "dim1", "dim2", "start_dim", "end_dim", "axis", "source", "destination", "axis0", "axis1"}
)
_SIZES = frozenset({"size", "shape"})


def _shift(value: Any) -> Any:
    """A dim, or list of dims, as seen on the stack."""
    if isinstance(value, Sequence):
        return [_shift(item) for item in value]
    return value + 1 if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else value


def _results(x: Series, value: Any) -> Any:
    """A series, or a tuple of them, with x's orders."""
    if isinstance(value, Tensor):
        return x.like(value)
    return tuple(_results(x, item) for item in value)


def by_row(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A map that is linear in its first argument, one coefficient at a time."""
    x, *rest = args
    values = [op(row, *rest, **kwargs) for row in x.stored()]
    if isinstance(values[0], Tensor):
        return x.like(torch.stack(values))
    return tuple(x.like(torch.stack(column)) for column in zip(*values, strict=True))


def shifted(op: Any, *, when: Condition | None = None) -> None:
    """An op on one tensor whose dims can be counted from 1 on, sizes being given a leading dim."""
    schema = op._schema.arguments

    def rule(order: int, x: Series, *args: Any, **kwargs: Any) -> Any:
        if x.ndim == 0:
            return by_row(op, x, *args, **kwargs)
        moved: list[Any] = []
        named: dict[str, Any] = {}
        for place, argument in enumerate(schema[1:]):
            name = argument.name
            value = args[place] if place < len(args) else kwargs.get(name, argument.default_value)
            if name in _DIMS:
                value = _shift(value)
            elif name in _SIZES:
                value = [x.coefficients.shape[0], *value]
            if argument.kwarg_only:
                named[name] = value
            else:
                moved.append(value)
        return _results(x, op(x.coefficients, *moved, **named))

    register_rule(op, rule, kind="linear", when=when)


def _without_layout(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Options of an operator on a stack: how images lie in memory is no value, and their format is for so many dims."""
    kept = torch.contiguous_format, torch.preserve_format
    return {name: value for name, value in kwargs.items() if name != "memory_format" or value in kept}


def trailing(op: Any, *, when: Condition | None = None) -> None:
    """An op on one tensor that any number of leading dims leaves alone."""

    def rule(order: int, x: Series, *args: Any, **kwargs: Any) -> Any:
        return _results(x, op(x.coefficients, *args, **_without_layout(kwargs)))

    register_rule(op, rule, kind="linear", when=when)


def rowwise(op: Any, *, when: Condition | None = None) -> None:
    """An op on one tensor that runs coefficient by coefficient."""
    register_rule(op, lambda order, *args, **kwargs: by_row(op, *args, **kwargs), kind="linear", when=when)


def fold(stack: Tensor, spatial: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The stack as one batch for an op over `spatial` dims and a channel dim, and how to undo it."""
    if stack.dim() == spatial + 2:
        return stack, lambda result: result
    sizes = stack.shape[:2]
    return stack.flatten(0, 1), lambda result: result.unflatten(0, sizes)


def folded(op: Any, spatial: int) -> None:
    """An op over images: the stack joins the batch."""

    def rule(order: int, x: Series, *args: Any, **kwargs: Any) -> Series:
        batch, unfold = fold(x.coefficients, spatial)
        return x.like(unfold(op(batch, *args, **kwargs)))

    register_rule(op, rule, kind="linear")


def jointly(op: Any, affine: str, *, when: Condition | None = None, plain: Callable[..., Tensor] | None = None) -> None:
    """A linear op of several arguments, coefficient by coefficient; a constant among them counts at order 0 only. Where
    it is given, `plain` is called in the op's place.
    """
    names = affine.split()
    call = op if plain is None else plain

    def rule(order: int, *args: Any, **kwargs: Any) -> Any:
        bound = bind(op, args, kwargs)
        values = [bound[name] for name in names if name in bound]
        flat = [item for value in values for item in (value if isinstance(value, (list, tuple)) else [value])]
        start, stop = orders(*(value for value in flat if isinstance(value, (Series, Tensor))))
        rows: list[Tensor | None] = [None] * start
        for j in range(start, stop):
            chosen = {name: _coefficient(bound[name], j) for name in names if name in bound}
            rows.append(call(**bound | chosen))
        return Series.of_rows(rows, order)

    register_rule(op, rule, kind="linear", affine=affine, when=when)


def _coefficient(value: Any, j: int) -> Any:
    """Coefficient j of an operand, written out as zeros where it is zero by structure."""
    if isinstance(value, (list, tuple)):
        return [_coefficient(item, j) for item in value]
    if isinstance(value, Series):
        return value.coefficient(j)
    if j == 0:
        return value
    return torch.zeros_like(value)


for _op in (
    aten.reshape.default,
    aten.transpose.int,
    aten.swapaxes.default,
    aten.swapdims.default,
    aten.movedim.int,
    aten.movedim.intlist,
    aten.moveaxis.int,
    aten.moveaxis.intlist,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.select.int,
    aten.slice.Tensor,
    aten.narrow.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.split.sizes,
    aten.tensor_split.sections,
    aten.tensor_split.indices,
    aten.chunk.default,
    aten.unbind.int,
    aten.diagonal.default,
    aten.flip.default,
    aten.cumsum.default,
):
    shifted(_op)

for _op in (
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    aten.positive.default,
    aten.neg.default,
    aten.tril.default,
    aten.triu.default,
    aten.mT.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
):
    trailing(_op)

for _op in (
    aten.repeat_interleave.self_int,
    aten.repeat_interleave.self_Tensor,
    aten.trace.default,
    aten.rot90.default,
    aten.take.default,
    aten.col2im.default,
    aten.im2col.default,
    aten.diag_embed.default,
):
    rowwise(_op)


@register_rule(aten.as_strided.default, kind="linear")
def _as_strided(order: int, x: Series, *args: Any) -> Series:
    """Each coefficient in memory of its own, for places in it are counted from where that begins."""
    return by_row(lambda row: aten.as_strided.default(row.clone(memory_format=torch.contiguous_format), *args), x)


for _op, _spatial in (
    (aten.avg_pool1d.default, 1),
    (aten.avg_pool2d.default, 2),
    (aten.avg_pool3d.default, 3),
    (aten.adaptive_avg_pool1d.default, 1),
    (aten.adaptive_avg_pool2d.default, 2),
    (aten.adaptive_avg_pool3d.default, 3),
    (aten._adaptive_avg_pool2d.default, 2),
    (aten._adaptive_avg_pool3d.default, 3),
    (aten.upsample_nearest1d.vec, 1),
    (aten.upsample_nearest2d.vec, 2),
    (aten.upsample_nearest2d.default, 2),
    (aten.upsample_bilinear2d.vec, 2),
    (aten.upsample_bilinear2d.default, 2),
    (aten.upsample_bicubic2d.vec, 2),
    (aten.upsample_linear1d.vec, 1),
    (aten.reflection_pad1d.default, 1),
    (aten.reflection_pad2d.default, 2),
    (aten.replication_pad1d.default, 1),
    (aten.replication_pad2d.default, 2),
):
    folded(_op, _spatial)

for _op, _affine in (
    (aten.index_put.default, "self values"),
    (aten.scatter.src, "self src"),
    (aten.scatter_add.default, "self src"),
    (aten.slice_scatter.default, "self src"),
    (aten.select_scatter.default, "self src"),
    (aten.diagonal_scatter.default, "self src"),
    (aten.index_add.default, "self source"),
    (aten.index_copy.default, "self source"),
    (aten.masked_scatter.default, "self source"),
    (aten.lerp.Scalar, "self end"),
):
    jointly(_op, _affine)


def _strided_scatter(*, self: Tensor, **given: Any) -> Tensor:
    """Each coefficient in memory of its own, for places in it are counted from where that begins."""
    return aten.as_strided_scatter.default(self.clone(memory_format=torch.contiguous_format), **given)


jointly(aten.as_strided_scatter.default, "self src", plain=_strided_scatter)


# Shapes


def _reshaped(order: int, x: Series, size: Sequence[int]) -> Series:
    """A view where the stack's strides allow it, else a copy: they need not be those of the plain value."""
    return x.like(x.coefficients.reshape(x.coefficients.shape[0], *size))


for _op in (aten.view.default, aten._unsafe_view.default, aten.view_copy.default):
    register_rule(_op, _reshaped, kind="linear")


@register_rule(aten.permute.default, kind="linear")
def _permute(order: int, x: Series, dims: Sequence[int]) -> Series:
    return x.like(x.coefficients.permute(0, *(dim % x.ndim + 1 for dim in dims)))


@register_rule(aten.t.default, kind="linear")
def _t(order: int, x: Series) -> Series:
    return x if x.ndim < 2 else x.like(x.coefficients.transpose(1, 2))


@register_rule(aten.numpy_T.default, kind="linear")
def _numpy_t(order: int, x: Series) -> Series:
    return x.like(x.coefficients.permute(0, *range(x.ndim, 0, -1)))


@register_rule(aten.squeeze.default, kind="linear")
def _squeeze(order: int, x: Series) -> Series:
    return x.like(x.coefficients.reshape(x.coefficients.shape[0], *(size for size in x.shape if size != 1)))


@register_rule(aten.ravel.default, kind="linear")
def _ravel(order: int, x: Series) -> Series:
    return x.like(x.coefficients.reshape(x.coefficients.shape[0], -1))


@register_rule(aten.expand.default, kind="linear")
def _expand(order: int, x: Series, size: Sequence[int], *, implicit: bool = False) -> Series:
    return x.like(align(x.coefficients, len(size)).expand(-1, *size))


@register_rule(aten.broadcast_to.default, kind="linear")
def _broadcast_to(order: int, x: Series, size: Sequence[int]) -> Series:
    return _expand(order, x, size)


@register_rule(aten.broadcast_tensors.default, kind="linear", affine="tensors")
def _broadcast_tensors(order: int, tensors: Sequence[Any]) -> list[Any]:
    shape = torch.broadcast_shapes(*(x.shape for x in tensors))
    return [_expand(order, x, shape) if isinstance(x, Series) else x.expand(shape) for x in tensors]


@register_rule(aten.expand_as.default, kind="linear", unread="other")
def _expand_as(order: int, x: Any, other: Any) -> Any:
    return _expand(order, x, other.shape) if isinstance(x, Series) else x.expand(other.shape)


@register_rule(aten.view_as.default, kind="linear", unread="other")
def _view_as(order: int, x: Any, other: Any) -> Any:
    return x.like(x.coefficients.reshape(-1, *other.shape)) if isinstance(x, Series) else x.view(other.shape)


@register_rule(aten.reshape_as.default, kind="linear", unread="other")
def _reshape_as(order: int, x: Any, other: Any) -> Any:
    return x.like(x.coefficients.reshape(-1, *other.shape)) if isinstance(x, Series) else x.reshape(other.shape)


@register_rule(aten.repeat.default, kind="linear")
def _repeat(order: int, x: Series, repeats: Sequence[int]) -> Series:
    return x.like(align(x.coefficients, len(repeats)).repeat(1, *repeats))


@register_rule(aten.tile.default, kind="linear")
def _tile(order: int, x: Series, dims: Sequence[int]) -> Series:
    times = [*[1] * (x.ndim - len(dims)), *dims]
    return _repeat(order, x, times)


@register_rule(aten.roll.default, kind="linear")
def _roll(order: int, x: Series, shifts: Sequence[int] | int, dims: Sequence[int] | int = ()) -> Series:
    if not isinstance(dims, int) and len(dims) == 0:
        return by_row(aten.roll.default, x, shifts)
    return x.like(torch.roll(x.coefficients, shifts, _shift(dims)))


@register_rule(aten.unfold.default, kind="linear")
def _unfold(order: int, x: Series, dimension: int, size: int, step: int) -> Series:
    if x.ndim == 0:
        return by_row(aten.unfold.default, x, dimension, size, step)
    return x.like(x.coefficients.unfold(_shift(dimension), size, step))


# Sums


def _reduction(op: Any) -> None:
    """A sum over dims, all of them where none is named."""

    @with_a_dim
    def rule(order: int, x: Series, dim: Any, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Series:
        none_named = dim is None or (not isinstance(dim, int) and len(dim) == 0)
        own = list(range(x.ndim)) if none_named else [dim] if isinstance(dim, int) else dim
        if x.apart:
            # Sums are small, so that they are put together rather than what they are of.
            rows = [None if row is None else op(row, own, keepdim, dtype=dtype) for row in x.rows()]
            return Series.of_rows(rows, x.order)
        return x.like(op(x.coefficients, _shift(own), keepdim, dtype=dtype))

    register_rule(op, rule, kind="linear")


_reduction(aten.sum.dim_IntList)
_reduction(aten.mean.dim)


@register_rule(aten.sum.default, kind="linear")
def _total(order: int, x: Series, *, dtype: torch.dtype | None = None) -> Series:
    return x.like(x.coefficients.reshape(x.coefficients.shape[0], -1).sum(1, dtype=dtype))


@register_rule(aten.mean.default, kind="linear")
def _mean(order: int, x: Series, *, dtype: torch.dtype | None = None) -> Series:
    return x.like(x.coefficients.reshape(x.coefficients.shape[0], -1).mean(1, dtype=dtype))


@register_rule(aten.add.Tensor, kind="linear", affine="self other")
def _add(order: int, a: Any, b: Any, *, alpha: float | int = 1) -> Series:
    return arithmetic.add(order, a, b, alpha)


@register_rule(aten.add.Scalar, kind="linear", affine="self other")
def _add_scalar(order: int, a: Series, b: float, alpha: float | int = 1) -> Series:
    return arithmetic.add(order, a, b, alpha)


@register_rule(aten.sub.Tensor, kind="linear", affine="self other")
def _subtract(order: int, a: Any, b: Any, *, alpha: float | int = 1) -> Series:
    return arithmetic.add(order, a, b, -alpha)


@register_rule(aten.sub.Scalar, kind="linear", affine="self other")
def _subtract_scalar(order: int, a: Series, b: float, alpha: float | int = 1) -> Series:
    return arithmetic.add(order, a, b, -alpha)


def _reversed_subtract(order: int, a: Any, b: Any, alpha: float | int = 1) -> Series:
    """b - alpha a."""
    if isinstance(b, (Series, Tensor)):
        return arithmetic.add(order, b, a, -alpha)
    return arithmetic.add(order, arithmetic.multiply(order, a, -alpha), b)


register_rule(aten.rsub.Scalar, _reversed_subtract, kind="linear", affine="self other")
register_rule(aten.rsub.Tensor, _reversed_subtract, kind="linear", affine="self other")


# Several tensors


def _joined(op: Any) -> TaylorRule:
    """cat and stack: constants among the pieces get zeros above order 0."""

    def rule(order: int, tensors: Sequence[Any], dim: int = 0) -> Series:
        like = next(value for value in tensors if isinstance(value, Series))
        start, stop = orders(*tensors)
        stacks = [spread(value, start, stop, like.coefficients) for value in tensors]
        where = dim + 1 if dim >= 0 else dim
        return Series(op(stacks, where), order, start)

    return register_rule(op, rule, kind="linear", affine="tensors")


_cat = _joined(aten.cat.default)
_joined(aten.stack.default)


@register_rule(aten.diff.default, kind="linear", affine="self prepend append")
def _diff(order: int, x: Any, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Any:
    """Differences of neighbours, n times, of what is put together first; of no difference, x itself."""
    if n == 0:
        return x
    parts = [value for value in (prepend, x, append) if value is not None]
    whole = _cat(order, parts, dim) if len(parts) > 1 else x
    return whole.like(torch.diff(whole.coefficients, n, _shift(dim)))


@register_rule(aten.where.self, kind="linear", affine="self other")
def _where(order: int, condition: Tensor, a: Any, b: Any) -> Series:
    like = a if isinstance(a, Series) else b
    start, stop = orders(a, b)
    ndim = max(condition.dim(), rank(a), rank(b))
    left, right = (align(spread(value, start, stop, like.coefficients), ndim) for value in (a, b))
    return Series(torch.where(condition, left, right).to(arithmetic.promoted(a, b)), order, start)


for _op in (aten.where.ScalarSelf, aten.where.ScalarOther):
    register_rule(_op, _where, kind="linear", affine="self other")


@register_rule(aten.masked_fill.Scalar, kind="linear", affine="self value")
def _masked_fill(order: int, x: Series, mask: Tensor, value: float) -> Series:
    ndim = max(x.ndim, mask.dim())
    stack = x.coefficients if value == 0 or x.start == 0 else x.span(0, x.stop)
    start = x.start if value == 0 else 0
    stack = align(stack, ndim)
    if value == 0 or stack.shape[0] == 1:
        return Series(stack.masked_fill(mask, value), order, start)
    fill = stack.new_zeros((stack.shape[0], *(1,) * ndim))
    fill[0] = value
    return Series(torch.where(mask, fill, stack), order, start)


@register_rule(aten.masked_fill.Tensor, kind="linear", affine="self value")
def _masked_fill_tensor(order: int, x: Any, mask: Tensor, value: Any) -> Series:
    dtype = x.dtype
    if isinstance(value, Tensor):
        value = value.to(dtype)
    return cast(_where(order, mask, value, x), dtype)


@register_rule(aten.copy.default, kind="linear", affine="src", unread="self")
def _copy(order: int, target: Any, source: Any, non_blocking: bool = False) -> Any:
    dtype, size = target.dtype, target.shape
    if not isinstance(source, Series):
        return source.to(dtype).expand(size)
    return _expand(order, cast(source, dtype), size)


def _index_adjacent(indices: Sequence[Any]) -> bool:
    """The indexed dims follow one another, so that the result's dims stay where they are."""
    places = [i for i, index in enumerate(indices) if index is not None]
    return not places or places[-1] - places[0] == len(places) - 1


@register_rule(aten.index.Tensor, kind="linear")
def _index(order: int, x: Series, indices: Sequence[Any]) -> Series:
    if not _index_adjacent(indices):
        return by_row(aten.index.Tensor, x, indices)
    return x.like(aten.index.Tensor(x.coefficients, [None, *indices]))


register_rule(aten._unsafe_index.Tensor, _index, kind="linear")


@register_rule(aten.index_select.default, kind="linear")
def _index_select(order: int, x: Series, dim: int, chosen: Tensor) -> Series:
    if x.ndim == 0:
        return by_row(aten.index_select.default, x, dim, chosen)
    return x.like(x.coefficients.index_select(_shift(dim), chosen))


@register_rule(aten.gather.default, kind="linear")
def _gather(order: int, x: Series, dim: int, chosen: Tensor, *, sparse_grad: bool = False) -> Series:
    if x.ndim == 0:
        return by_row(aten.gather.default, x, dim, chosen)
    return x.like(x.coefficients.gather(_shift(dim), chosen.expand(x.coefficients.shape[0], *chosen.shape)))


@register_rule(aten.take_along_dim.default, kind="linear")
def _take_along_dim(order: int, x: Series, chosen: Tensor, dim: int | None = None) -> Series:
    return by_row(aten.take_along_dim.default, x, chosen, dim)


def _value_at_order_0(op: Any) -> None:
    """scatter and fill of a number: the number counts at order 0 only."""

    def rule(order: int, x: Series, *args: Any, **kwargs: Any) -> Series:
        *places, value = args if "value" not in kwargs else (*args, kwargs.pop("value"))
        rows: list[Tensor | None] = [None] * (x.start if value == 0 else 0)
        for j in range(len(rows), x.stop):
            rows.append(op(x.coefficient(j), *places, value if j == 0 else 0, **kwargs))
        return Series.of_rows(rows, order)

    register_rule(op, rule, kind="linear", affine="self value")


_value_at_order_0(aten.scatter.value)
_value_at_order_0(aten.index_fill.int_Scalar)


@register_rule(aten.fill.Scalar, kind="constant")
def _fill(order: int, x: Series, value: float) -> Tensor:
    return torch.full_like(x.first, value)


@register_rule(aten.constant_pad_nd.default, kind="linear", affine="self value")
def _constant_pad(order: int, x: Series, pad: Sequence[int], value: float = 0) -> Series:
    if value == 0:
        return x.like(aten.constant_pad_nd.default(x.coefficients, pad, 0))
    rows = aten.constant_pad_nd.default(x.span(0, x.stop), pad, 0)
    inside = aten.constant_pad_nd.default(torch.ones_like(x.first, dtype=torch.bool), pad, False)
    fill_value = rows.new_zeros((rows.shape[0], *(1,) * x.ndim))
    fill_value[0] = value
    return Series(torch.where(inside, rows, fill_value), order)


@register_rule(aten.pad.default, kind="linear", affine="self value")
def _pad(order: int, x: Series, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Series:
    if mode == "constant":
        return _constant_pad(order, x, pad, value or 0)
    return by_row(aten.pad.default, x, pad, mode, value)


# Casts


def _cast(op: Any, unread: str = "") -> None:
    """To a floating dtype a cast is linear; to an integer one it reads the centre. Of a tensor that only names the
    dtype, the values do not count."""

    def rule(order: int, x: Any, *args: Any, **kwargs: Any) -> Any:
        named = [value.first if isinstance(value, Series) else value for value in args]
        if not isinstance(x, Series):
            return op(x, *named, **kwargs)
        moved = op(x.coefficients, *named, **_without_layout(kwargs))
        if moved.is_floating_point() or moved.is_complex():
            return x.like(moved)
        return op(x.coefficient(0), *named, **kwargs)

    register_rule(op, rule, kind="linear", unread=unread)


for _op in (aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device):
    _cast(_op)
for _op in (aten.to.other, aten.type_as.default):
    _cast(_op, "other")


# Ops that leave the values alone when they are not training


# In a graph the sequence is one value.
@register_rule(operator.getitem, kind="linear", affine="a", added=lambda bound, moving: ())
def _getitem(order: int, sequence: Any, place: Any) -> Any:
    return sequence[place]


def _not_training(name: str) -> Condition:
    return lambda bound, moving: bound.get(name) is False or bound.get("p") == 0


def _dropout(op: Any) -> None:
    def rule(order: int, x: Series, p: float, train: bool) -> Series:
        if train and p > 0:
            raise TraceError(f"{op} is in training mode, where its value is random: call .eval() on the model")
        return x

    register_rule(op, rule, kind="linear", when=_not_training("train"))


for _op in (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default):
    _dropout(_op)


@register_rule(aten.native_dropout.default, kind="linear", when=_not_training("train"))
def _native_dropout(order: int, x: Series, p: float, train: bool | None) -> tuple[Series, Tensor]:
    if train and p > 0:
        raise TraceError("native_dropout is in training mode, where its value is random: call .eval() on the model")
    return x, torch.ones_like(x.first, dtype=torch.bool)


def _skip(op: Callable[..., Any]) -> None:
    """Checks on a value, which return nothing."""
    register_rule(op, lambda order, *args, **kwargs: None, kind="constant")


for _op in (aten._assert_tensor_metadata.default, aten._assert_async.msg, aten._assert_scalar.default):
    _skip(_op)
