"""Interventions: parts of a model taken away, scaled, or fed from another input."""

from jetgraph.applications.interventions.ablation import Ablation, ablate
from jetgraph.applications.interventions.attention import AttentionPatterns, attention_patterns
from jetgraph.applications.interventions.patching import Patching, patch

__all__ = ["Ablation", "AttentionPatterns", "Patching", "ablate", "attention_patterns", "patch"]
