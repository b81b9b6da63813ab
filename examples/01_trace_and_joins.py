"""Trace models and read their residual structure: no code here, or in jetgraph, knows any of them.

python examples/01_trace_and_joins.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import jetgraph as jg
from jetgraph.models import bundled


class Block(nn.Module):
    """A plain residual block: h + W2 gelu(W1 h)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.body(h)


def main() -> None:
    """Trace a language model and a plain module."""
    language_model = AutoModelForCausalLM.from_pretrained(bundled("gpt2")).eval()
    graph = jg.trace(language_model, input_ids=torch.arange(1, 7)[None])
    print(graph)

    plain = nn.Sequential(nn.Linear(3, 8), Block(8), Block(8), nn.LayerNorm(8), nn.Linear(8, 5)).eval()
    graph = jg.trace(plain, torch.randn(2, 3))
    print("\n" + str(graph) + "\n")
    for join in graph.joins:
        branches = ", ".join(f"{branch.alias} ({branch.name})" for branch in join.branches)
        print(f"join in {join.name}: an {join.kind} skip plus {branches}")

    x = torch.randn(7, 3)
    print(f"replayed from the stages on another batch size: max error {(graph(x) - plain(x)).abs().max():.1e}")


if __name__ == "__main__":
    main()
