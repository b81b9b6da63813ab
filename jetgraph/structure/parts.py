"""Arithmetic of parts: coordinates of an inner value that are kept, and norms and activations that are held at the
whole's value.

On tensors and on series alike; what a part of a branch is stands in `jetgraph.structure.regions`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from jetgraph.jets.registry import bind, find_rule
from jetgraph.jets.rules.norms import normalised, over_groups, rms_eps, scaled_and_shifted
from jetgraph.jets.series import Series, has_series

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Axis:
    """A factor of one of u's dimensions, along which coordinates are dealt out."""

    dim: int
    """Counted from the end."""
    size: int
    outer: int | None = 1
    """How many of it the dimension has one after the other; None where that is open."""
    inner: int | None = 1
    """How many neighbours share one of its coordinates; None where that is open."""
    widths: tuple[int, ...] = ()
    """How many share each, where these are not alike; there is nothing outside then."""

    def numbers(self, u: Tensor) -> Tensor:
        """Its coordinate at every index of u's dimension, to be broadcast over u."""
        length = u.shape[self.dim]
        if self.widths:
            each = torch.tensor(self.widths, device=u.device)
            return torch.arange(self.size, device=u.device).repeat_interleave(each).reshape(-1, *[1] * (-self.dim - 1))
        inner = self.inner or length // (self.size * (self.outer or 1))
        numbers = torch.arange(length, device=u.device) // inner % self.size
        return numbers.reshape(-1, *[1] * (-self.dim - 1))


_OVER_LAST = {aten.layer_norm.default: True, aten.rms_norm.default: False}
"""Norms over the last dimensions that are one operator, and whether they take the mean off first."""

HELD_NORMS = {*_OVER_LAST, aten.group_norm.default}
"""The norms that are one operator and that are held here."""


def whole_of(node: fx.Node) -> fx.Node:
    """What one of these norms normalises, or one of the activations below goes over."""
    (read, *_) = node.args
    assert isinstance(read, fx.Node)
    return read


def held(node: fx.Node, x: Any, values: Mapping[fx.Node, Any], order: int) -> Any:
    """A norm or an activation of the part among `values`, held at what it is of the whole x."""
    return (held_norm if node.target in HELD_NORMS else held_activation)(node, x, values, order)


def held_norm(norm: fx.Node, x: Any, values: Mapping[fx.Node, Any], order: int) -> Any:
    """g ⊙ (y − mean y) / σ(x) + b, for the part y among `values` of the whole x; without the means in an RMS norm."""
    bound = bind(norm.target, norm.args, norm.kwargs)  # type: ignore[arg-type]
    y = values[whole_of(norm)]
    whole, part = (value if isinstance(value, Series) else Series.constant(value, order) for value in (x, y))
    weight, bias = (None if node is None else values[node] for node in (bound.get("weight"), bound.get("bias")))
    if norm.target is aten.group_norm.default:
        result = over_groups(
            order, whole, bound["num_groups"], weight, bias, bound.get("eps", 1e-5), held=False, part=part
        )
    else:
        dims = list(range(-len(bound["normalized_shape"]), 0))
        centred = _OVER_LAST[norm.target]  # type: ignore[index]
        eps = bound.get("eps", 1e-5) if centred else rms_eps(bound.get("eps"), whole.dtype)
        scaled = normalised(order, whole, dims, eps, centred=centred, held=False, part=part)
        result = scaled_and_shifted(order, scaled, weight, bias, whole.dtype)
    return result if has_series((x, y)) else result.coefficient(0)


def _rule(op: Any, order: int, *args: Any) -> Any:
    entry = find_rule(op)
    assert entry is not None
    return entry.rule(order, *args)


def _leaky_relu(order: int, x: Series, negative_slope: float = 0.01) -> Tensor:
    first = x.coefficient(0)
    return torch.where(first > 0, torch.ones_like(first), negative_slope)


def _gelu(order: int, x: Series, approximate: str = "none") -> Series:
    """Φ(x), or the sigmoid that stands for it."""
    if approximate == "none":
        twice = _rule(aten.erfc.default, order, x.like(x.coefficients * -math.sqrt(0.5)))
        return twice.like(twice.coefficients / 2)
    cube = _rule(aten.mul.Tensor, order, x, _rule(aten.mul.Tensor, order, x, x))
    slope = 2 * math.sqrt(2 / math.pi)
    inner = _rule(
        aten.add.Tensor, order, x.like(x.coefficients * slope), cube.like(cube.coefficients * 0.044715 * slope)
    )
    return _rule(aten.sigmoid.default, order, inner)


def _hardswish(order: int, x: Series) -> Any:
    return _rule(aten.hardsigmoid.default, order, x)


def _mish(order: int, x: Series) -> Any:
    return _rule(aten.tanh.default, order, _rule(aten.softplus.default, order, x))


ACTIVATIONS: dict[Any, Callable[..., Any]] = {
    aten.relu.default: lambda order, x: (x.coefficient(0) > 0).to(x.dtype),
    aten.leaky_relu.default: _leaky_relu,
    aten.silu.default: partial(_rule, aten.sigmoid.default),
    aten.gelu.default: _gelu,
    aten.hardswish.default: _hardswish,
    aten.mish.default: _mish,
}
"""Activations f(x) = g(x) x, each with its factor g."""


def held_activation(node: fx.Node, x: Any, values: Mapping[fx.Node, Any], order: int) -> Any:
    """g(x) y, for the part y among `values` of the whole x, where the activation is g(x) x."""
    y = values[whole_of(node)]
    whole, part = (value if isinstance(value, Series) else Series.constant(value, order) for value in (x, y))
    result = _rule(aten.mul.Tensor, order, part, ACTIVATIONS[node.target](order, whole, *node.args[1:], **node.kwargs))
    return result if has_series((x, y)) else result.coefficient(0)


def kept(u: Tensor | Series, indices: tuple[int, ...], axes: tuple[Axis, ...]) -> Any:
    """1_I ⊙ u."""
    if not axes:
        return u
    value = u.coefficients if isinstance(u, Series) else u
    wanted = torch.tensor(indices, device=value.device)
    if axes == (Axis(dim := axes[0].dim, value.shape[axes[0].dim]),):
        dealt = torch.zeros_like(value).index_copy_(dim, wanted, value.index_select(dim, wanted))
    else:
        numbers = axes[0].numbers(value)
        for axis in axes[1:]:
            numbers = numbers * axis.size + axis.numbers(value)
        dealt = torch.where(torch.isin(numbers, wanted), value, 0)
    return u.like(dealt) if isinstance(u, Series) else dealt


def zeros_like(u: Tensor | Series) -> Tensor:
    """Zeros of the shape and type of a tensor, or of a series' coefficients."""
    return torch.zeros_like(u.first if isinstance(u, Series) else u)


def lifted(value: Any, order: int) -> Any:
    """A series as one of this order; anything else as it is."""
    return value.raised(0, order) if isinstance(value, Series) else value


def minus(one: Any, other: Any, order: int) -> Any:
    """The difference of two tensors, or of two series or a series and a tensor to this order."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one - other
    first, second = (value if isinstance(value, Series) else Series.constant(value, order) for value in (one, other))
    return Series(first.stacked() - second.stacked(), order)
