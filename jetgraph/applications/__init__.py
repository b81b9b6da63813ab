"""What people come for: lenses, n-grams, model diffs and interventions, written on the engine's public names only."""

from jetgraph.applications.diffing import diff, trajectory
from jetgraph.applications.interventions import ablate, patch
from jetgraph.applications.joint_lenses import joint_lens
from jetgraph.applications.lens_evaluation import evaluate_lens
from jetgraph.applications.lenses import lens
from jetgraph.applications.ngrams import ngram_agreement, ngram_mass, ngrams
from jetgraph.applications.tables import PathTable

__all__ = [
    "PathTable",
    "ablate",
    "diff",
    "evaluate_lens",
    "joint_lens",
    "lens",
    "ngram_agreement",
    "ngram_mass",
    "ngrams",
    "patch",
    "trajectory",
]
