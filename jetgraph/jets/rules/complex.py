"""Complex values: how they are put together and taken apart, and Fourier transforms.

t is real, so that conjugates, real and imaginary parts are as linear as everything else, coefficient by coefficient.
Moduli and angles are functions of the two parts.
"""

from __future__ import annotations

from typing import Any

import torch

from jetgraph.jets import elementary
from jetgraph.jets.domain import demand, nonzero
from jetgraph.jets.elementary import Rows
from jetgraph.jets.registry import register_rule
from jetgraph.jets.rules.elementwise import atan2
from jetgraph.jets.rules.linear import jointly, rowwise, shifted, trailing
from jetgraph.jets.series import Series, rows_of

aten = torch.ops.aten


# Linear over the reals

for _op in (
    aten._conj.default,
    aten.view_as_real.default,
    aten.view_as_complex.default,
):
    trailing(_op)

for _op in (
    aten.fft_fft.default,
    aten.fft_ifft.default,
    aten.fft_rfft.default,
    aten.fft_irfft.default,
    aten.fft_hfft.default,
    aten.fft_ihfft.default,
    aten.fft_fft2.default,
    aten.fft_ifft2.default,
    aten.fft_rfft2.default,
    aten.fft_irfft2.default,
):
    shifted(_op)

# Without `dim` these take all dims, the orders' too if they ran on the stack.
for _op in (
    aten.fft_fftn.default,
    aten.fft_ifftn.default,
    aten.fft_rfftn.default,
    aten.fft_irfftn.default,
    aten.fft_fftshift.default,
    aten.fft_ifftshift.default,
    aten.stft.default,
    aten.istft.default,
):
    rowwise(_op)

jointly(aten.complex.default, "real imag")


# Moduli and angles


def real_parts(z: Series) -> tuple[Series, Series]:
    """The real and the imaginary part of a complex series."""
    return z.like(z.coefficients.real), z.like(z.coefficients.imag)


def modulus(order: int, z: Series) -> Series:
    """|z| = (Re² z + Im² z)^(1/2)."""
    y0 = z.coefficient(0).abs()
    if order == 0 or not z.varies:
        return Series.constant(y0, order)
    demand(y0, nonzero, "the modulus of a complex value must not be 0")
    real, imaginary = (part.rows() for part in real_parts(z))
    squares = elementary.plus(elementary.product(real, real), elementary.product(imaginary, imaginary))
    return Series.of_rows([y0, *elementary.sqrt([y0 * y0, *squares[1:]])[1:]], order, y0)


def held_modulus(z: Series) -> Series:
    """Re(u z) with the unit number u = conj(z_0) / |z_0| held; 0 where z_0 is."""
    unit = z.coefficient(0).sgn().conj()
    return z.like((z.coefficients * unit).real)


def _unit(order: int, z: Series) -> Any:
    """z / |z|; of a real value, its sign."""
    first = z.coefficient(0)
    if not z.dtype.is_complex:
        return first.sgn()
    y0 = first.sgn()
    if order == 0 or not z.varies:
        return Series.constant(y0, order)
    inverse = elementary.reciprocal(modulus(order, z).rows())
    below = [None if row is None else row.to(y0.dtype) for row in inverse]
    return Series.of_rows([y0, *elementary.product(z.rows(), below)[1:]], order, y0)


register_rule(aten.sgn.default, _unit, kind="piecewise", complex_values=True)


@register_rule(aten.angle.default, kind="piecewise", gate="gate", complex_values=True)
def _angle(order: int, z: Series) -> Any:
    """The argument of z; of a real value 0 or π."""
    if not z.dtype.is_complex:
        return z.coefficient(0).angle()
    real, imaginary = real_parts(z)
    return atan2(order, imaginary, real)


def _polar(order: int, radius: Any, angle: Any) -> Series:
    """r cos φ + i r sin φ."""

    if isinstance(angle, Series):
        sine, cosine = elementary.sine_cosine(rows_of(angle, order))
    else:
        sine, cosine = rows_of(angle.sin(), order), rows_of(angle.cos(), order)
    real, imaginary = (elementary.product(rows_of(radius, order), wave) for wave in (cosine, sine))
    rows: Rows = []
    for one, other in zip(real, imaginary, strict=True):
        present = next((row for row in (one, other) if row is not None), None)
        if present is None:
            rows.append(None)
            continue
        zero = torch.zeros_like(present)
        rows.append(torch.complex(*(zero if row is None else row for row in (one, other))))
    return Series.of_rows(rows, order)


register_rule(
    aten.polar.default,
    _polar,
    kind="composite",
    affine="abs",
    gate="gate",
    held=_polar,
    absorbs="angle",
)
