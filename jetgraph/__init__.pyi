"""The public names, each with the module that it is imported from when it is first asked for."""

from . import loading as loading
from . import symbolic as symbolic
from .algebra.dag import path_graph
from .algebra.expansion import Expansion, expand
from .algebra.outline import Outline
from .algebra.paths import Path
from .algebra.rules import Atom, Distribute, Freeze, Jet, Tangent
from .algebra.selection import select
from .applications import (
    PathTable,
    Transport,
    ablate,
    attention_patterns,
    attribute,
    choose_orders,
    compare,
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
    survey,
    terms,
    trajectory,
    transport_lens,
)
from .compilation import PathModule, PathValues, compile
from .errors import (
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
    UnfinishedError,
)
from .files.graphs import read_graph
from .files.pages import View
from .jets import Series, Taylor, jet, register_rule, taylor
from .loading import load_model
from .loading.tracing import trace
from .prompts import chat
from .reporting.report import report
from .residual import ResidualGraph
from .saving.models import load, save
from .scale.clusters import on_ray
from .scale.estimates import estimated
from .scale.shards import sharded
from .scale.states import merge
from .scale.texts import open_corpus
from .viewing import view, write_graph
from .views.picture import draw

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
    "Taylor",
    "TraceError",
    "Transport",
    "UnfinishedError",
    "View",
    "ablate",
    "attention_patterns",
    "attribute",
    "chat",
    "choose_orders",
    "compare",
    "compare_lenses",
    "compile",
    "diff",
    "draw",
    "estimated",
    "evaluate_lens",
    "expand",
    "faithfulness",
    "fit_transport",
    "jet",
    "jet_expand",
    "joint_lens",
    "lens",
    "load",
    "load_model",
    "loading",
    "merge",
    "ngram_agreement",
    "ngram_mass",
    "ngrams",
    "on_ray",
    "open_corpus",
    "patch",
    "path_graph",
    "rank",
    "read_graph",
    "register_rule",
    "report",
    "save",
    "select",
    "sharded",
    "spectrum",
    "survey",
    "symbolic",
    "taylor",
    "terms",
    "trace",
    "trajectory",
    "transport_lens",
    "view",
    "write_graph",
]
