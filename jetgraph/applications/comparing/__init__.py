"""Models side by side: two of them, and one over its training."""

from jetgraph.applications.comparing.checkpoints import Trajectory, trajectory
from jetgraph.applications.comparing.models import ModelDiff, diff

__all__ = ["ModelDiff", "Trajectory", "diff", "trajectory"]
