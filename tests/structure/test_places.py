"""Branches without a layer, a pool or a transform: they mix where they read other places than their own."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from tests.laws import check_affine, check_values, subject

POSITIONS, CHANNELS = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 0, 1, 5, 3, 4])


def windows(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1)


def shifted_in_place(x: Tensor) -> Tensor:
    """A part of the channels from the position before, written into a copy."""
    moved = x.clone()
    moved[:, 1:, :2] = x[:, :-1, :2]
    return moved.tanh()


MIXING: list[Callable[[Tensor], Tensor]] = [
    lambda x: x[:, POSITIONS].tanh(),
    lambda x: x[..., CHANNELS].relu(),
    lambda x: torch.take_along_dim(x, POSITIONS[None, :, None], 1).tanh(),
    lambda x: F.pad(x, (0, 0, 1, -1)).relu(),
    lambda x: torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1).tanh(),
    shifted_in_place,
    lambda x: windows(x).amax(-1),
    lambda x: F.unfold(x.mT.unsqueeze(-1), (3, 1), padding=(1, 0)).view(-1, 6, 3, 5).prod(2).mT,
    lambda x: x.view(-1, 5, 2, 3).transpose(2, 3).reshape(-1, 5, 6).tanh(),
    lambda x: x.mean(1, keepdim=True).tanh(),
    lambda x: (x.mean(1, keepdim=True) - x).tanh(),
    lambda x: x.amax(1, keepdim=True).expand_as(x).tanh(),
    lambda x: (x.quantile(0.3, 1, keepdim=True) - x).tanh(),
    lambda x: x * x.var(1, keepdim=True),
    lambda x: x.softmax(1),
    lambda x: (x.unsqueeze(2) - x.unsqueeze(1)).tanh().sum(2),
]
"""Each of what stands at other places."""

BY_ITSELF: list[Callable[[Tensor], Tensor]] = [
    torch.tanh,
    lambda x: x.softmax(-1),
    lambda x: F.normalize(x, dim=-1),
    lambda x: x * (x * x).mean(-1, keepdim=True).rsqrt(),
    lambda x: (x - x.mean(-1, keepdim=True)) / torch.var_mean(x, -1, keepdim=True)[0],
    lambda x: -x.amax(1, keepdim=True),  # what exp is taken of
    lambda x: 0.3 * torch.cat([-x[..., 3:], x[..., :3]], -1),  # rotary embeddings
    lambda x: torch.cat([half.tanh() for half in x.chunk(2, -1)], -1),
]
"""Each of what stands there, and of norms."""


class Layers(nn.Module):
    def __init__(self, layers: list[Callable[[Tensor], Tensor]], *, normed: bool) -> None:
        super().__init__()
        self.layers = layers
        self.embed, self.head = nn.Linear(3, 6), nn.Linear(6, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(6) if normed else nn.Identity() for _ in layers)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = h + layer(norm(h))
        return self.head(h)


def test_what_reads_other_places_is_a_branch():
    torch.manual_seed(0)
    inputs, others = ({"x": torch.randn(2, 5, 3, dtype=torch.float64)} for _ in range(2))
    model = Layers(MIXING, normed=True).double().eval()
    graph = jg.trace(model, inputs=inputs)
    assert [join.depth for join in graph.stream.joins] == [0] * len(MIXING)
    assert {branch.kind for join in graph.stream.joins for branch in join.branches} == {"mix"}
    given = subject(graph, inputs, others, torch.float64)
    with torch.no_grad():
        check_values(given)
        check_affine(given)


def test_what_reads_its_own_place_is_none():
    graph = jg.trace(Layers(BY_ITSELF, normed=False).eval(), torch.randn(2, 5, 3))
    assert not graph.joins


def test_features_are_where_layers_have_them():
    """Means over channels that come first are part of a norm, over positions a pool."""

    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv1d(3, 6, 1), nn.Conv1d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x)
            h = h + h * h.pow(2).mean(1, keepdim=True).rsqrt()
            return self.head(h + h.mean(2, keepdim=True).tanh())

    graph = jg.trace(Images().eval(), torch.randn(2, 3, 5))
    assert len(graph.joins) == 1
