"""Models side by side: two of them, by weights and on prompts, and one over its training."""

from jetgraph.applications.comparing.checkpoints import Trajectory, trajectory
from jetgraph.applications.comparing.models import ModelDiff, diff
from jetgraph.applications.comparing.on_prompts import compare
from jetgraph.applications.comparing.prompt_changes import PromptComparison

__all__ = ["ModelDiff", "PromptComparison", "Trajectory", "compare", "diff", "trajectory"]
