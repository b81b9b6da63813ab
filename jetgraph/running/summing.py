"""Jets of a region from many centres to the stream, each summed up: decided once for all passes of a graph."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from jetgraph.running.alone import by_element
from jetgraph.running.matching import match, radius_of, towards
from jetgraph.running.pieces import Pieces
from jetgraph.structure.regions import Region


@dataclass(frozen=True)
class Summed:
    """Sums of jets from a stack of centres, and what was found out where these were matched."""

    total: Tensor
    """[n, *exit]"""
    near: Tensor | None
    """As of a `Match`."""
    radii: Tensor | None
    """Of a norm alone, those of convergence, [n, *tokens]."""


def can_be_summed(pieces: Pieces, region: Region, order: int) -> bool:
    """Jets of a region go side by side, and nothing compiles them."""
    return order > 0 and bool(region.nodes) and by_element(region) and not pieces.fused


def summed_towards(
    pieces: Pieces, region: Region, centres: Tensor, stream: Tensor, order: int, *, matched: bool
) -> Summed:
    """Σ_{j≤order} of the coefficients of f(x + t (h − x)) for each of some centres x, up to rounding.

    Parameters
    ----------
    pieces
        Of the pass whose stream this is.
    region, order
        As `can_be_summed` takes them.
    centres, stream
        x, as a stack [n, *entry], and h.
    matched
        They are brought to their matched length first.
    """

    def run(pieces: Pieces, centres: Tensor, stream: Tensor) -> tuple[Tensor, ...]:
        start = match(pieces, region, centres, stream) if matched else None
        total = pieces.sums(region, towards(centres if start is None else start, stream, order), order)
        if start is None:
            return (total,)
        return total, start.near, *(() if (radii := radius_of(pieces, region, start)) is None else (radii,))

    total, *told = pieces.kept(region, ("sums", order, matched), run)(centres, stream)
    near, radii = (*told, None, None)[:2]
    return Summed(total, near, radii)
