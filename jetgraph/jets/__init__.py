"""Taylor-mode arithmetic on `torch.fx` graphs of ATen ops: truncated power series in, truncated power series out."""

from jetgraph.jets import rules
from jetgraph.jets.function import Taylor, jet, taylor
from jetgraph.jets.interpreter import evaluate
from jetgraph.jets.registry import is_affine, register_rule
from jetgraph.jets.series import Series

__all__ = ["Series", "Taylor", "evaluate", "is_affine", "jet", "register_rule", "rules", "taylor"]
