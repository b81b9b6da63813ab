"""Complex values as pairs of real ones, among which gradients are cotangents like all others.

With the gradient g of a real number by a complex z, that changes by Re(conj(g) dz): the inner product of the two as
pairs. What adds up such products, or lays out linear maps as matrices, does so on pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def as_reals(value: Tensor) -> Tensor:
    """A complex value [..., d] as real ones [..., 2 d]; a real value as it is."""
    if not value.is_complex():
        return value
    pairs = torch.view_as_real(value.resolve_conj())
    return pairs.flatten(-2) if value.dim() else pairs


def as_like(value: Tensor, like: Tensor) -> Tensor:
    """What `as_reals` gives, [n, *reals], as values like another one again, in its type."""
    if not like.is_complex():
        return value.to(like.dtype)
    pairs = value.to(like.real.dtype).reshape(len(value), *like.shape, 2)
    return torch.view_as_complex(pairs.contiguous())


def products(one: Tensor, other: Tensor) -> Tensor:
    """Entry by entry what a value and a gradient make together, in float64."""
    if not one.is_complex() and not other.is_complex():
        return one.double() * other.double()
    return (one.to(torch.complex128).conj() * other.to(torch.complex128)).real
