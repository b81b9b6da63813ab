"""Which joins are of streams that read each other: what relates two chains of joins that are pieces of one state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import jetgraph as jg
from tests.laws import check_values, subject
from tests.zoo import PreNorm


class Controlled(nn.Module):
    """Each layer is given what a copy has made by then, which reads nothing of it, as in a ControlNet."""

    def __init__(self) -> None:
        super().__init__()
        self.starts = nn.ModuleList(nn.Linear(4, 6) for _ in range(2))
        self.layers = nn.ModuleList(PreNorm(6).mlp for _ in range(3))
        self.others = nn.ModuleList(PreNorm(6).mlp for _ in range(3))
        self.gives = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, c = (start(x) for start in self.starts)
        for layer, other, give in zip(self.layers, self.others, self.gives, strict=True):
            c = c + other(c)
            h = h + layer(h) + give(c)
        return self.head(torch.tanh(h))


def test_a_stream_that_is_given_what_another_one_has_made_by_then() -> None:
    """Both are one stream, which the copy's layers and those of the stream add to in turn."""
    torch.manual_seed(0)
    net, x = Controlled().eval().double(), torch.randn(2, 3, 4, dtype=torch.float64)
    graph = jg.trace(net, x, dynamic=False)
    assert len(graph.streams) == 1
    assert [branch.name for join in graph.stream.joins for branch in join.branches] == [
        f"{kind}.{at}" for at in range(3) for kind in ("others", "layers")
    ]
    # What the copy gives is an image of its piece of the state.
    assert [join.kind for join in graph.stream.joins] == ["identity", "projection"] * 3
    assert not any(join.injections for join in graph.stream.joins)
    assert check_values(subject(graph, {"x": x}, {"x": x.flip(0)}, torch.float64)) >= 18


class Begun(nn.Module):
    """What a layer has inside goes on as a stream that reads the one of the layer, which reads nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.into, self.out, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(12, 3)
        self.layers = nn.ModuleList(PreNorm(6).mlp for _ in range(3))
        self.others = nn.ModuleList(PreNorm(6).mlp for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x)
        inner = torch.tanh(self.into(h))
        h = h + self.out(inner)
        for layer, other in zip(self.layers, self.others, strict=True):
            inner = inner + other(torch.tanh(inner) * h)
            h = h + layer(h)
        return self.head(torch.tanh(torch.cat([h, inner], -1)))


def test_a_stream_that_begins_in_a_branch() -> None:
    """It is put beside the stream where it begins, and both are one from there on."""
    torch.manual_seed(0)
    net, x = Begun().eval().double(), torch.randn(2, 3, 4, dtype=torch.float64)
    graph = jg.trace(net, x, dynamic=False)
    assert len(graph.streams) == 1
    assert [join.kind for join in graph.stream.joins] == ["identity", "concat"] + ["identity"] * 6
    assert [branch.name for join in graph.stream.joins for branch in join.branches][2:] == [
        f"{kind}.{at}" for at in range(3) for kind in ("others", "layers")
    ]
    assert check_values(subject(graph, {"x": x}, {"x": x.flip(0)}, torch.float64)) >= 24
