"""Lenses: what the decoder makes of the stream before its end."""

from jetgraph.applications.lenses.evaluation import LensEvaluation, evaluate_lens
from jetgraph.applications.lenses.iterative import Lens, lens
from jetgraph.applications.lenses.joint import JointLens, joint_lens

__all__ = ["JointLens", "Lens", "LensEvaluation", "evaluate_lens", "joint_lens", "lens"]
