"""What a sum takes away of the stream along a direction stands beside the stream, however the sum is spelled."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from tests.laws import distance

WIDTH = 4


class Net(nn.Module):
    """Four blocks h ↦ P(h) h + f(h), each with another spelling."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        f = self.blocks[0](h)
        wide, unit = f.double(), F.normalize(h.double(), dim=-1)
        h = h + (wide - (wide * unit).sum(-1, keepdim=True) * unit).float()
        u = self.blocks[1](h)
        h = (u - u * (h * u).sum(-1, keepdim=True)) + h
        u = self.blocks[2](h)
        h = (h + u) - 0.5 * (u * (u * h).sum(-1, keepdim=True))
        f = self.blocks[3](h)
        return self.head(f - h * (f * h).sum(-1, keepdim=True) / (h * h).sum(-1, keepdim=True) + h)


@torch.no_grad()
def test_a_projection_belongs_to_the_skip_in_any_order_and_precision() -> None:
    torch.manual_seed(0)
    net, inputs = Net().eval(), {"x": torch.randint(0, 9, (2, 5))}
    graph = jg.trace(net, **inputs, dynamic=False)
    assert [(join.kind, join.depth, len(join.branches)) for join in graph.joins] == [("gated", 0, 1)] * 4
    frozen = jg.compile(jg.expand(graph, rules={"*": jg.Freeze()}))(**inputs)
    assert distance(sum(frozen.terms.values()), net(**inputs)) < 1e-6  # type: ignore[arg-type]
