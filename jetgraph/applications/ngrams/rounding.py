"""The unembedding of a table of n-grams in bfloat16, with norms of what rounding changes."""

from __future__ import annotations

import math

import torch

from jetgraph.applications.ngrams.decoding import Decoding


class Rounded:
    """U [V, d] of a decoder's affine part x ↦ U x + b, rounded to bfloat16, and what bounds of its products need.

    U is read off the map by applying it to unit vectors.

    Parameters
    ----------
    decoding
        Whose affine part.
    step
        How many unit vectors are decoded at once.
    centre
        Take u_c − mean_c' u_c', which changes all logits of a row alike, for u_c.
    """

    def __init__(self, decoding: Decoding, step: int, *, centre: bool) -> None:
        width = math.prod(decoding.shape)
        vocabulary, device = decoding.vocabulary, decoding.device
        weight = torch.empty(vocabulary, width, dtype=torch.bfloat16, device=device)
        squares = torch.zeros(2, vocabulary, dtype=torch.float64, device=device)
        used = torch.zeros(width, dtype=torch.bool, device=device)
        shift = torch.zeros(width, dtype=torch.float64, device=device)
        for start in range(0, width, step):
            columns = decoding.decode(decoding.units(start, min(step, width - start)), linear=True)
            some = slice(start, start + len(columns))
            used[some] = (columns != 0).any(1)
            if centre:
                mean = columns.mean(1)
                shift[some] = mean.double()
                columns = columns.sub_(mean[:, None])
            rounded = columns.to(torch.bfloat16)
            weight[:, some] = rounded.T
            squares[0] += columns.square().sum(0)
            squares[1] += columns.sub_(rounded).square_().sum(0)
        # What the last position does not read is left out: with two tokens, all of the first one.
        places = used.nonzero()[:, 0].tolist() or [0]
        self.span = slice(places[0], places[-1] + 1)
        """Of the d features, those that any logit reads."""
        self.weight = weight[:, self.span]
        """ũ_c [V, features of `span`], in bfloat16."""
        # Squares of float32 below 2^-126 count as zero; sums of 256 of them, and centring, are rounded.
        norms = squares.amax(1).sqrt() * (1 + 2.0**-10) + width * 2.0**-62
        length, lost = norms.tolist()
        self.norm_lost: float = lost + 2.0**-23 * length
        """At least max_c ‖u_c − ũ_c‖."""
        self.norm_rounded: float = length + self.norm_lost
        """At least max_c ‖ũ_c‖."""
        self.norm: float = length + float(torch.linalg.vector_norm(shift))
        """At least max_c ‖u_c‖, of those that are not centred."""
        constant = decoding.constant()
        self.constant = constant.float() if bool(constant.any()) else None
        """b [V] in float32; None where it is zero."""
        self.largest_constant = float(constant.abs().max())
