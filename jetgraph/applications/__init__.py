"""What people come for: lenses, n-grams, model diffs and interventions, written on the engine's public names only."""

from jetgraph.applications.attribution import attribute, faithfulness, rank, spectrum
from jetgraph.applications.comparing import diff, trajectory
from jetgraph.applications.expansions import choose_orders, jet_expand
from jetgraph.applications.interventions import ablate, patch
from jetgraph.applications.lenses import (
    Transport,
    compare_lenses,
    evaluate_lens,
    fit_transport,
    joint_lens,
    lens,
    transport_lens,
)
from jetgraph.applications.ngrams import PathTable, ngram_agreement, ngram_mass, ngrams
from jetgraph.applications.terms import terms

__all__ = [
    "PathTable",
    "Transport",
    "ablate",
    "attribute",
    "choose_orders",
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
    "terms",
    "trajectory",
    "transport_lens",
]
