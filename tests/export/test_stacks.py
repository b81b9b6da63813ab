"""Sums over stacks of layers, with weights of every shape, are sums of the layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import jetgraph as jg
from tests.laws import EXACT, check_values, distance, subject

WIDTH = 6


class Weighed(nn.Module):
    """Layers side by side, times what the input makes for each entry of each, times learned weights, added up."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, 4), nn.GELU(), nn.Linear(4, WIDTH)) for _ in "ab")
        self.gates, self.weights = nn.Linear(WIDTH, 3 * WIDTH), nn.Parameter(torch.rand(3, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        gates = torch.sigmoid(self.gates(h)).unflatten(-1, (3, WIDTH)).movedim(-2, 0)
        points = [h]
        for block in self.blocks:
            points.append(points[-1] + block(points[-1]))
        return self.head((gates * torch.stack(points) * self.weights).sum(0))


@torch.no_grad()
def test_factors_of_every_entry_are_those_of_each_layer() -> None:
    torch.manual_seed(0)
    net = Weighed().eval().double()
    inputs, others = ({"x": torch.randint(0, 9, (2, 4))} for _ in range(2))
    graph = jg.trace(net, **inputs)
    assert not any("stack" in str(node.target) for node in graph.traced.graph.nodes)
    assert [join.kind for join in graph.stream.joins] == ["identity", "identity", "gated"]
    assert distance(graph(**others), net(**others)) < EXACT
    assert check_values(subject(graph, inputs, others, torch.float64)) >= 9


def test_a_sum_of_a_number_along_its_dim_is_no_sum_over_a_stack() -> None:
    x = torch.tensor([2.0, -3.0])
    found = jg.jet(lambda y: nn.functional.cosine_similarity(y[0], y[1] ** 3, dim=0) + y.sum().sum(0), x, x, 1)
    assert found.tolist() == [-2.0, -1.0]
