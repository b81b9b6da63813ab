"""The rule table, one module per kind of op. Importing this package fills `jetgraph.jets.registry.RULES`."""

from jetgraph.jets.rules import (
    attention,
    bilinear,
    complex,
    composite,
    constant,
    elementwise,
    factors,
    linear,
    matrices,
    norms,
    piecewise,
    recurrent,
    special,
)

__all__ = [
    "attention",
    "bilinear",
    "complex",
    "composite",
    "constant",
    "elementwise",
    "factors",
    "linear",
    "matrices",
    "norms",
    "piecewise",
    "recurrent",
    "special",
]
