"""jetgraph: residual networks as exact sums of explicit path terms plus an explicit remainder.

    model ──trace──▶ ResidualGraph ──expand──▶ Expansion ──select──▶ paths ──compile──▶ nn.Module
                                                  └──path_graph──▶ networkx DAG ──▶ GraphML, JSON, DOT, …

The mathematics is that of "Jet Expansions of Residual Computation" (arXiv 2410.06024).
"""

from jetgraph.algebra.dag import path_graph
from jetgraph.algebra.expansion import Expansion, expand
from jetgraph.algebra.outline import Outline
from jetgraph.algebra.paths import Path
from jetgraph.algebra.rules import Atom, Distribute, Freeze, Jet, Tangent
from jetgraph.algebra.selection import select
from jetgraph.applications import (
    PathTable,
    Transport,
    ablate,
    attribute,
    choose_orders,
    compare_lenses,
    diff,
    evaluate_lens,
    faithfulness,
    fit_transport,
    jet_expand,
    joint_lens,
    lens,
    ngram_agreement,
    ngram_mass,
    ngrams,
    patch,
    rank,
    spectrum,
    terms,
    trajectory,
    transport_lens,
)
from jetgraph.compilation import PathModule, PathValues, compile
from jetgraph.errors import (
    BudgetError,
    DomainError,
    FileError,
    InputError,
    JetGraphError,
    LoadError,
    MissingExtraError,
    MissingRuleError,
    NoSuchPathError,
    NotComputedError,
    SelectionError,
    StateError,
    TraceError,
)
from jetgraph.files.graphs import read_graph, write_graph
from jetgraph.jets import Series, jet, register_rule
from jetgraph.residual import ResidualGraph, trace
from jetgraph.saving.models import load, save
from jetgraph.viewing import View, view

__all__ = [
    "Atom",
    "BudgetError",
    "Distribute",
    "DomainError",
    "Expansion",
    "FileError",
    "Freeze",
    "InputError",
    "Jet",
    "JetGraphError",
    "LoadError",
    "MissingExtraError",
    "MissingRuleError",
    "NoSuchPathError",
    "NotComputedError",
    "Outline",
    "Path",
    "PathModule",
    "PathTable",
    "PathValues",
    "ResidualGraph",
    "SelectionError",
    "Series",
    "StateError",
    "Tangent",
    "TraceError",
    "Transport",
    "View",
    "ablate",
    "attribute",
    "choose_orders",
    "compare_lenses",
    "compile",
    "diff",
    "evaluate_lens",
    "expand",
    "faithfulness",
    "fit_transport",
    "jet",
    "jet_expand",
    "joint_lens",
    "lens",
    "load",
    "ngram_agreement",
    "ngram_mass",
    "ngrams",
    "patch",
    "path_graph",
    "rank",
    "read_graph",
    "register_rule",
    "save",
    "select",
    "spectrum",
    "terms",
    "trace",
    "trajectory",
    "transport_lens",
    "view",
    "write_graph",
]
