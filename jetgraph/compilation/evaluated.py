"""What an evaluation gives: the values of paths, and what was found out on the way to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from jetgraph.algebra.paths import Path


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Values of paths before the decoder's affine part, with weights and counts by site."""

    hidden: Mapping[Path, Tensor]
    """By path, in the order in which they were given."""
    weights: Mapping[str, Tensor]
    """By site, the weights of its centres [centre, *tokens] where they were found, or given by a tensor."""
    far: Mapping[str, tuple[Any, int]]
    """By site: how many tokens of centres no scale brings near to the stream, and of how many."""
    sums: Mapping[str, Tensor]
    """By site, the sum of what it gives, where the plan has that."""
    radii: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    """By site that is one norm: radii of its matched centres, one stack [n, *tokens] after the other."""
    scales: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    """By such a site: what these centres were multiplied by, where they were not summed up at once."""
