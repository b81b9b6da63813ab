"""The rewrite rules: what may be done with a site so that the sum of all terms and the remainder stays the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jetgraph.errors import JetGraphError, check, quoted

Directions = Literal["stream", "terms"]


@dataclass(frozen=True, slots=True)
class Distribute:
    """A h = Σ A_lin t + b + A_lin δ. Only for affine sites, where it is what every recipe does."""


@dataclass(frozen=True, slots=True)
class Jet:
    """Terms w_i (1/j!) D^j f(x_i)[(h - x_i)^{⊗j}] for j = 0..order, every incoming term x_i being a centre.

    `directions="terms"` splits the order-1 term along the incoming terms instead: the term of incoming path m is
    Σ_{i≠m} w_i Df(x_i)[t_m].
    """

    order: int = 1
    directions: Directions = "stream"
    weights: Literal["uniform", "unit"] | Mapping[str, float] = "uniform"
    """`uniform`: 1/n for n centres; `unit`: 1 for each (each centre is then an expansion of its own); a mapping
    from patterns over the centre's last site or source, by alias or module path, to relative weights (1 where none
    matches), which are scaled to sum to 1."""

    def __post_init__(self) -> None:
        check(Jet.__init__, {name: getattr(self, name) for name in self.__slots__})
        if self.order < 0:
            raise JetGraphError(f"the order of a jet is at least 0, not {self.order}")
        if self.directions not in ("stream", "terms"):
            raise JetGraphError(f"directions={quoted(self.directions)} is unknown: choose 'stream' or 'terms'")
        if self.directions == "terms" and self.order > 1:
            raise JetGraphError(
                f'directions="terms" splits terms up to order 1; order {self.order} is not available yet: '
                'use directions="stream" for higher orders'
            )
        if not isinstance(self.weights, Mapping) and self.weights not in ("uniform", "unit"):
            raise JetGraphError(f"weights={quoted(self.weights)} is unknown: choose 'uniform', 'unit' or a mapping")


@dataclass(frozen=True, slots=True)
class Atom:
    """f at the true stream, as one term whose history starts at f."""


@dataclass(frozen=True, slots=True)
class Freeze:
    """Hold the chosen nonlinear nodes inside f at the values they take on the true stream; f is then affine.

    `gates` names what is held: `norm` (denominators of norms), `attention` (attention patterns), `gate`
    (activations, multiplicative gates, and what selects: masks, indices, comparisons). What is left must be affine.
    Where a held value is read by itself, as a soft cap's is, it is the line through its values at 0 and at h; an index,
    a mask or a step has no such line and is a constant.
    """

    gates: tuple[Literal["norm", "attention", "gate"], ...] = ("norm", "attention", "gate")

    def __post_init__(self) -> None:
        check(Freeze.__init__, {"gates": self.gates})
        if unknown := set(self.gates) - {"norm", "attention", "gate"}:
            raise JetGraphError(f"gates={quoted(self.gates)}: {quoted(unknown.pop())} is none of norm, attention, gate")


Rule = Distribute | Jet | Atom | Freeze
