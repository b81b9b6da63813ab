"""Algorithm 1 of the paper at one place: chosen centres, their jets, and what is left there."""

from jetgraph.applications.expansions.algorithm import JetExpansion, jet_expand

__all__ = ["JetExpansion", "jet_expand"]
