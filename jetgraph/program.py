"""What a residual model is made of and what a term is: the names with which outlines, rules and paths are written."""

from jetgraph.algebra.outline import JoinStep, MapStep, Outline, Site, Source, Step
from jetgraph.algebra.paths import Hop, Path
from jetgraph.algebra.rules import Atom, Distribute, Freeze, Jet, Rule, Tangent

__all__ = [
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
    "Step",
    "Tangent",
]
