"""Colours of kinds of nodes, alike in pictures and pages; told apart by the colour-blind too."""

from __future__ import annotations

BY_KIND = {
    "attn": "#3b6fb6",
    "mlp": "#d98032",
    "conv": "#3f8f63",
    "ssm": "#8a62b0",
    "mix": "#2f9c95",
    "embed": "#4f7d4a",
    "pos": "#4f7d4a",
    "logits": "#b23a48",
    "target": "#b23a48",
}
"""By kind; others are of `OTHER`."""

OTHER = "#7d8590"
"""Of kinds that have no colour of their own."""

GIVES = "#2b6cb0"
"""Of what adds to a target."""

TAKES = "#c2491d"
"""Of what takes away from it."""

CYCLE = ("#2b6cb0", "#c2491d", "#2a8c6b", "#b0609a", "#d39b12", "#5aa6d6", "#4a5560")
"""Of lines that have no kind, one after the other."""
