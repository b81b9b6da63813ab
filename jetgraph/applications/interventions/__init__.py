"""Interventions: parts of a model taken away, scaled, or fed from another input."""

from jetgraph.applications.interventions.ablation import Ablation, ablate
from jetgraph.applications.interventions.patching import Patching, patch

__all__ = ["Ablation", "Patching", "ablate", "patch"]
