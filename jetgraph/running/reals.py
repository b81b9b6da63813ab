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


def product(one: Tensor, other: Tensor) -> Tensor:
    """Entry by entry the summands of ⟨one, other⟩, which is that of the two as pairs where they are complex."""
    return (one.conj() * other).real if one.is_complex() or other.is_complex() else one * other


def square(value: Tensor) -> Tensor:
    """Entry by entry the summands of ⟨value, value⟩."""
    return product(value, value) if value.is_complex() else value.square()


def in_double(value: Tensor) -> Tensor:
    """In float64; complex values in the type of such pairs."""
    return value.to(torch.complex128) if value.is_complex() else value.double()
