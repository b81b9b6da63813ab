"""The applications, each with the room that it is imported from when it is first asked for."""

from .attribution import attribute, faithfulness, rank, spectrum
from .comparing import compare, diff, trajectory
from .expansions import choose_orders, jet_expand
from .interventions import ablate, attention_patterns, patch
from .lenses import (
    Transport,
    compare_lenses,
    evaluate_lens,
    fit_transport,
    joint_lens,
    lens,
    transport_lens,
)
from .ngrams import PathTable, ngram_agreement, ngram_mass, ngrams
from .surveying import survey
from .terms import terms

__all__ = [
    "PathTable",
    "Transport",
    "ablate",
    "attention_patterns",
    "attribute",
    "choose_orders",
    "compare",
    "compare_lenses",
    "diff",
    "evaluate_lens",
    "faithfulness",
    "fit_transport",
    "jet_expand",
    "joint_lens",
    "lens",
    "ngram_agreement",
    "ngram_mass",
    "ngrams",
    "patch",
    "rank",
    "spectrum",
    "survey",
    "terms",
    "trajectory",
    "transport_lens",
]
