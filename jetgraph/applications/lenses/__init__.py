"""Lenses: what the decoder makes of the stream before its end."""

from jetgraph.applications.lenses.evaluation import LensEvaluation, evaluate_lens
from jetgraph.applications.lenses.iterative import Lens, lens
from jetgraph.applications.lenses.joint import JointLens, joint_lens
from jetgraph.applications.lenses.sidebyside import LensComparison, compare_lenses
from jetgraph.applications.lenses.transport import Transport, TransportLens, fit_transport, transport_lens

__all__ = [
    "JointLens",
    "Lens",
    "LensComparison",
    "LensEvaluation",
    "Transport",
    "TransportLens",
    "compare_lenses",
    "evaluate_lens",
    "fit_transport",
    "joint_lens",
    "lens",
    "transport_lens",
]
