"""Centres brought to the length at which they are nearest to the stream, each token as the norm there sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jetgraph.errors import InputError
from jetgraph.export.precision import summed_in
from jetgraph.jets.recording import may_follow
from jetgraph.jets.series import Series
from jetgraph.running.pieces import Pieces
from jetgraph.running.reals import in_double, product
from jetgraph.running.reals import square as square_of
from jetgraph.structure.homogeneity import Scaling
from jetgraph.structure.regions import Region

ROUNDING = 64
"""A centre is taken for rounding alone that is shorter than this many units in the last place of the stream."""

LONGEST = 2.0**-5
"""In no type is a centre of a larger share of the stream's length rounding alone."""

SHORTEST = 1e-6
"""As a share of the stream's length, what a closed form of a norm takes for the least that a centre has."""


@dataclass(frozen=True)
class Match:
    """s x, and the way from there to the stream."""

    centre: Tensor
    """s x; where no s > 0 brings x near to h, x itself."""
    way: Tensor
    """h − s x; there it is 0."""
    near: Tensor
    """By token, whether there is such an s, and x is more than rounding; of size 1 where all have the same."""
    unmatched: Tensor
    """|x| / |h − x| by token as the norm sees them, to be read where there is none."""
    scale: Tensor
    """s by token; 1 where there is none."""


def match(pieces: Pieces, region: Region, x: Tensor, h: Tensor) -> Match:
    """x scaled to s x with s = ⟨h, h⟩ / ⟨x, h⟩ per token, in the coordinates of the region's norm.

    h − s x is then perpendicular to h, so that t ↦ s x + t (h − s x) meets h at its point nearest to the origin, and
    the norm's series in t has the radius of convergence 1 / sin∠(x, h). No s > 0 does that where ⟨x, h⟩ ≤ 0.

    Parameters
    ----------
    pieces
        Of the pass whose stream this is.
    region
        A homogeneous one.
    x
        A value of its entry, or a stack [n, *entry] of such.
    h
        The stream there.

    Raises
    ------
    InputError
        The region is not homogeneous.
    """
    scaling = region.scaling
    if scaling is None:
        raise InputError(
            f"the region that ends at {region.exit.name!r} is not homogeneous: its centres have one length"
        )
    raw, end = (_seen(pieces, region, value) for value in (x, h))
    wide = torch.promote_types(raw.dtype, torch.float32)
    sums = wide.to_real()
    # Of half precision, products and lengths are in float32 without a copy of what they are of.
    centre, end = _centred(raw, scaling), _centred(end, scaling).to(wide)
    along, square = (
        value.sum(scaling.summed) if scaling.summed else value for value in (product(centre, end), square_of(end))
    )
    length = _length(centre, scaling, sums).square()
    before = _length(raw, scaling, sums).square() if scaling.centred else length
    # Up to rounding, which would be blown up: a right angle is none that a scale brings nearer, a constant is zero
    # without its mean, and so is what is far shorter than the stream, such as a second derivative of a linear function.
    eps = torch.finfo(x.dtype).eps
    shortest = min(ROUNDING * eps, LONGEST)
    near = (along > eps * (square * length).sqrt()) & (length > shortest**2 * torch.maximum(before, square))
    scale = torch.where(near, square / torch.where(near, along, 1), 1)
    # At an obtuse angle nothing cancels.
    unmatched = (length / (square + length - 2 * along)).sqrt()
    scale, near, unmatched = (_at_entry(value, region) for value in (scale, near, unmatched))
    return Match(*_pair(x, scale, h, near), near, unmatched, scale)


def _pair(x: Tensor, scale: Tensor, h: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """s x and h − s x, one after the other in memory where nothing records what is done: so a series has them."""
    if may_follow() or x.dtype != h.dtype or type(x) is not Tensor:
        scaled = (x * scale).to(x.dtype)
        return scaled, torch.where(near, h - scaled, 0)
    pair = x.new_empty(2, *torch.broadcast_shapes(x.shape, scale.shape, h.shape))
    torch.sub(h, torch.mul(x, scale, out=pair[0]), out=pair[1])
    pair[1].masked_fill_(~near, 0)
    return pair[0], pair[1]


def radius(pieces: Pieces, region: Region, x: Tensor, way: Tensor) -> Tensor:
    """|x| / |v| per token in the coordinates of the region's norm: where it stands alone, up to its ε the radius of
    convergence of t ↦ f(x + t v), since the roots of |x + t v|² are a complex pair whose product is |x|² / |v|².

    Parameters
    ----------
    pieces, region, x
        As in `match`.
    way
        v, of x's shape.
    """
    scaling = region.scaling
    assert scaling is not None
    wide = summed_in(x.dtype.to_real())
    one, other = (_length(_centred(_seen(pieces, region, value), scaling), scaling, wide) for value in (x, way))
    return _at_entry(one / other, region)


def radius_of(pieces: Pieces, region: Region, found: Match) -> Tensor | None:
    """`radius` of a centre that was matched; of one that is near at no scale as it is. None where the region is no norm
    alone.
    """
    if region.scaling is None or not region.scaling.alone:
        return None
    with torch.no_grad():
        return torch.where(found.near, radius(pieces, region, found.centre, found.way), found.unmatched)


def towards(centre: Tensor | Match, stream: Tensor | None, order: int) -> Any:
    """The series from a centre, or a stack of such, to the stream; of order 0 the centre that it starts at."""
    if isinstance(centre, Match):
        return Series.variate(centre.centre, centre.way, order) if order else centre.centre
    assert stream is not None
    return Series.variate(centre, stream - centre, order)


def left_by_orders(pieces: Pieces, region: Region, x: Tensor, h: Tensor, highest: int, matched: bool) -> Tensor:
    """‖f(h) − J^k f(x)(h)‖ / ‖f(h)‖ for a norm f, k = 0..highest, without evaluating any: [order, *tokens].

    Parameters
    ----------
    pieces, region, x, h, highest, matched
        As in `errors_by_orders`; x without a stack.
    """
    scaling = region.scaling
    assert scaling is not None
    errors = errors_by_orders(pieces, region, x.unsqueeze(0), h, highest, matched)
    squares = (square_of(error[0]) for error in errors)
    left = [square.sum(scaling.summed) if scaling.summed else square for square in squares]
    return _at_entry(torch.stack(left).sqrt(), region)


def errors_by_orders(
    pieces: Pieces, region: Region, x: Tensor, h: Tensor, highest: int, matched: bool
) -> Iterator[Tensor]:
    """J^k f(x)(h) − f(h) of a norm f, for k = 0..highest, without evaluating any: each [n, *image], in float64.

    They are in the norm's own coordinates, of which f(h) has length 1 for each token. With v = h − x, and P_j
    Legendre's polynomials, whose generating function is (1 − 2 μ r + r²)^{−1/2},

        1 / |x + t v| = Σ_j t^j g_j,   g_j = P_j(μ) r^j / |x|,   r = |v| / |x|,   μ = −⟨x, v⟩ / (|x| |v|)

    so that J^k f(x)(h) = x Σ_{j≤k} g_j + v Σ_{j<k} g_j, up to the norm's ε and its gain. For matched x, h − x ⟂ h: then
    μ = r = sin∠(x, h), and what is left shrinks like its powers.

    Parameters
    ----------
    pieces, region
        As in `match`; the region is a norm alone.
    x
        Centres, [n, *entry].
    h
        The stream there.
    highest
        The highest order.
    matched
        The centres are brought to their matched length first; a token for which there is none stays at order 0.
    """
    scaling = region.scaling
    assert scaling is not None
    fitted = match(pieces, region, x, h) if matched else None
    start, end = (
        in_double(_centred(_seen(pieces, region, value), scaling))
        for value in (x if fitted is None else fitted.centre, h)
    )
    way, summed = end - start, scaling.summed
    xx, xv, vv, hh = (
        value.sum(summed, keepdim=True) if summed else value
        for value in (square_of(start), product(start, way), square_of(way), square_of(end))
    )
    # From next to nothing on, the norm's ε is its length; it is far from any other all the same.
    xx = torch.maximum(xx, SHORTEST**2 * hh)
    ratio, mean, goal = vv / xx, -xv / xx, (xx / hh).sqrt()
    # g_j |x|: of r^j P_j(μ), so that neither the one nor the other has to exist by itself.
    before, now = torch.zeros_like(xx), torch.ones_like(xx)
    sums, first = torch.zeros_like(xx), None
    near = None if fitted is None else _at_image(fitted.near, region)
    for order in range(highest + 1):
        last, sums = sums, sums + now
        error = (start * (sums - goal) + way * (last - goal)) / xx.sqrt()
        first = error if first is None else first
        yield error if near is None else torch.where(near, error, first)
        before, now = now, ((2 * order + 1) * mean * now - order * ratio * before) / (order + 1)


def _seen(pieces: Pieces, region: Region, value: Tensor) -> Tensor:
    """A value, or a stack of such, as the norm sees it."""
    image, scaling = region.normalised, region.scaling
    assert scaling is not None
    if image.nodes:
        # It is linear, so that a stack passes as the coefficients of a series do.
        stack = value if value.dim() > len(region.entry.meta["shape"]) else value.unsqueeze(0)
        seen = pieces.through(image, Series(stack, len(stack) - 1), len(stack) - 1).stacked()
        value = seen if stack is value else seen[0]
    return value


def _centred(value: Tensor, scaling: Scaling) -> Tensor:
    """Without its mean where the norm takes that off, then in float32 at least."""
    if not scaling.centred or not scaling.summed:
        return value
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    return wide - wide.mean(scaling.summed, keepdim=True)


def _length(value: Tensor, scaling: Scaling, wide: torch.dtype) -> Tensor:
    """By token, summed in a type."""
    if value.is_complex():
        value = value.abs()
    if not scaling.summed:
        return value.to(wide).abs()
    return torch.linalg.vector_norm(value, dim=scaling.summed, dtype=wide)


def _at_image(value: Tensor, region: Region) -> Tensor:
    """What is given by token as the entry has them, as the image has them; `_at_entry` the other way."""
    scaling = region.scaling
    assert scaling is not None
    ends, rank = len(region.entry.meta["shape"]), len(scaling.image.meta["shape"])
    stacked = value.dim() - ends
    value = value.squeeze([dim for dim in range(-ends, 0) if dim not in scaling.free])
    order = sorted(range(len(scaling.places)), key=scaling.places.__getitem__)
    value = value.permute([*range(stacked), *(stacked + at for at in order)])
    for dim in range(-rank, 0):
        if dim not in scaling.places:
            value = value.unsqueeze(stacked + rank + dim)
    return value


def _at_entry(value: Tensor, region: Region) -> Tensor:
    """What is given by token, the free dimensions in the order that the image has them in, as the entry has them."""
    scaling = region.scaling
    assert scaling is not None
    stacked = value.dim() - len(scaling.places)
    order = [sorted(scaling.places).index(place) for place in scaling.places]
    value = value.permute([*range(stacked), *(stacked + place for place in order)])
    for place, dim in enumerate(range(-len(region.entry.meta["shape"]), 0)):
        if dim not in scaling.free:
            value = value.unsqueeze(stacked + place)
    return value
