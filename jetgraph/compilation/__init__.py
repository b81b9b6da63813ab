"""Paths → an executable `torch.nn.Module`.

A path is evaluated from its source to the sink: a skip pushes a value on by its linear part, a site replaces it by one
of its Taylor coefficients there,

    x ← w · (1/j!) D^j f(x)[(h − x)^{⊗j}]        (h is the true stream; w the centre's weight)

`planning` turns paths into a `Plan`: operations in which a common prefix is one node, each with what it reads of the
true forward pass and what it costs. `evaluation` runs a plan on inputs, `module` ties both to a model's weights.
"""

from jetgraph.compilation.ledger import Ledger, SiteRemainder
from jetgraph.compilation.module import PATH_BUDGET, PathModule, compile
from jetgraph.compilation.plan import Plan
from jetgraph.compilation.values import PathValues, Terms

__all__ = ["PATH_BUDGET", "Ledger", "PathModule", "PathValues", "Plan", "SiteRemainder", "Terms", "compile"]
