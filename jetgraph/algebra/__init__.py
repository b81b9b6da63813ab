"""Outlines, rules, paths and expansions: everything that is known before a tensor is touched.

Outlines can be written by hand from the names here.
"""

from jetgraph.algebra.outline import SINK, JoinStep, MapStep, Outline, Site, Source
from jetgraph.algebra.paths import Hop, Path
from jetgraph.algebra.rules import Atom, Distribute, Freeze, Jet, Rule, Tangent

__all__ = [
    "SINK",
    "Atom",
    "Distribute",
    "Freeze",
    "Hop",
    "Jet",
    "JoinStep",
    "MapStep",
    "Outline",
    "Path",
    "Rule",
    "Site",
    "Source",
    "Tangent",
]
