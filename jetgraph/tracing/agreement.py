"""How well one output agrees with another that should be the same, up to rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_SHARE = 0.1
"""No dtype is so coarse that more than this share of a row is rounding."""


@dataclass(frozen=True, slots=True)
class Check:
    """How well the stages, put together, reproduced the model's output on the example inputs."""

    error: float
    """max |replay − model|."""
    scale: float
    """max |model|."""
    excess: float = 0.0
    """The largest error of a row, as a multiple of what rounding may make of it."""

    @property
    def exact(self) -> bool:
        return self.error == 0

    @property
    def good(self) -> bool:
        """Rounding explains the difference."""
        return self.excess <= 1

    def __str__(self) -> str:
        return "bit-equal" if self.exact else f"max error {self.error:.1e} of {self.scale:.1e}"


def compare(actual: Tensor, expected: Tensor) -> Check:
    """Compare an output [..., d] with the expected one.

    Rounding may make 100 √d eps of the largest entry of a row, and at most a tenth of it. What counts is the row, for
    the entries of one (logits, probabilities, the state of a token) come from the same numbers, and those of another
    may be of any other size: an output of 1e-4 is held to as many digits as one of 1. Rows of one entry count together.

    >>> import torch
    >>> compare(torch.tensor([[1e-4, 2e-4], [1e4, 2e4]]), torch.tensor([[1e-4, 3e-4], [1e4, 2e4]])).good
    False
    """
    if not expected.numel():
        return Check(0.0, 0.0)
    error, size = (actual.double() - expected.double()).abs(), expected.double().abs()
    width = expected.shape[-1] if expected.dim() and expected.shape[-1] > 1 else expected.numel()
    rows, scales = error.reshape(-1, width).amax(-1), size.reshape(-1, width).amax(-1)
    precision = torch.finfo(expected.dtype)
    share = min(100 * math.sqrt(expected.shape[-1] if expected.dim() else 1) * precision.eps, LARGEST_SHARE)
    excess = rows / (share * scales + precision.tiny)
    return Check(float(error.max()), float(size.max()), float(excess.max()))
