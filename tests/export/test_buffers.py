"""Buffers that are wholly written are their pieces side by side; others stay as they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import jetgraph as jg
from tests.laws import EXACT, distance

WIDTH = 6


def by_slices(layers: list[Tensor]) -> Tensor:
    whole = torch.empty(*layers[0].shape[:-1], len(layers) * WIDTH, dtype=layers[0].dtype)
    for number, layer in enumerate(layers):
        whole[..., number * WIDTH : (number + 1) * WIDTH] = layer
    return whole.unflatten(-1, (-1, WIDTH)).sum(-2)


def by_places(layers: list[Tensor]) -> Tensor:
    whole = torch.zeros(len(layers), *layers[0].shape, dtype=layers[0].dtype)
    for number, layer in reversed(list(enumerate(layers))):
        whole[number] = layer
    return whole.sum(0)


def both(layers: list[Tensor]) -> Tensor:
    whole = torch.zeros(len(layers), *layers[0].shape, dtype=layers[0].dtype)
    whole[0] = layers[0]
    whole[1:] = torch.stack(layers[1:])
    return whole.sum(0)


def partly(layers: list[Tensor]) -> Tensor:
    whole = torch.zeros(len(layers) + 1, *layers[0].shape, dtype=layers[0].dtype)
    for number, layer in enumerate(layers):
        whole[number] = layer
    return whole.sum(0)


def read_before(layers: list[Tensor]) -> Tensor:
    whole = torch.zeros(len(layers), *layers[0].shape, dtype=layers[0].dtype)
    for number, layer in enumerate(layers):
        whole[number] = layer + torch.tanh(whole.sum(0))
    return whole.sum(0)


def repeated(layers: list[Tensor]) -> Tensor:
    whole = torch.zeros(len(layers), *layers[0].shape, dtype=layers[0].dtype)
    for number, layer in enumerate(layers):
        whole[number] = layer[:1]
    return whole.sum(0)


class Net(nn.Module):
    """Layers, each of the one before it, in a buffer."""

    def __init__(self, write: Callable[[list[Tensor]], Tensor]) -> None:
        super().__init__()
        self.write = write
        self.embed, self.head = nn.Embedding(9, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, 4), nn.GELU(), nn.Linear(4, WIDTH)) for _ in "ab")

    def forward(self, x: Tensor) -> Tensor:
        layers = [self.embed(x)]
        for block in self.blocks:
            layers.append(block(layers[-1]))
        return self.head(self.write(layers))


@pytest.mark.parametrize(
    ("write", "whole"),
    [(by_slices, True), (by_places, True), (both, True), (partly, False), (read_before, False), (repeated, True)],
)
@torch.no_grad()
def test_what_is_wholly_written(write: Callable[[list[Tensor]], Tensor], whole: bool) -> None:
    torch.manual_seed(0)
    net = Net(write).eval().double()
    inputs, others = ({"x": torch.randint(0, 9, (2, 4))} for _ in range(2))
    graph = jg.trace(net, **inputs, dynamic=False)
    assert any("scatter" in str(node.target) for node in graph.traced.graph.nodes) != whole
    assert distance(graph(**others), net(**others)) < EXACT
    if write is by_places:
        assert [join.depth for join in graph.joins] == [0]
        assert len(graph.joins[0].branches) == 2
