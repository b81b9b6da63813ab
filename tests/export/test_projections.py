"""What a sum takes away of the stream along a direction stands beside the stream, however the sum is spelled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from tests.laws import check_values, distance, subject

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


def mean(x: Tensor, dim: int, mask: Tensor | None = None) -> Tensor:
    """Over places or features, of those that a mask keeps."""
    if mask is None:
        return x.mean(dim, keepdim=True)
    return (x * mask).sum(dim, keepdim=True) / mask.sum(dim, keepdim=True)


SPELLINGS: dict[str, Callable[[Tensor, Tensor, Tensor, Callable[[Tensor], Tensor]], Tensor]] = {
    "split": lambda h, f, a, mean: h + 0.3 * (f - mean(f)) + a * (mean(f) - mean(h)),
    "one by one": lambda h, f, a, mean: h - a * mean(h) + 0.3 * f - 0.3 * mean(f) + a * mean(f),
    "branch first": lambda h, f, a, mean: (a * (mean(f) - mean(h)) + 0.3 * (f - mean(f))) + h,
    "interpolated": lambda h, f, a, mean: (h - mean(h)) + (0.3 * (f - mean(f)) + torch.lerp(mean(h), mean(f), a)),
    "both by gates": lambda h, f, a, mean: h + (1 - a) * (f - mean(f)) + a * (mean(f) - mean(h)),
    "layer alone": lambda h, f, a, mean: h + a * (f - mean(h)),
}


class Split(nn.Module):
    """Layers that add what is common to all places or features by a factor of its own, which may be made of that."""

    def __init__(self, spelling: str, dim: int, masked: bool, learned: bool) -> None:
        super().__init__()
        self.run, self.dim, self.masked = SPELLINGS[spelling], dim, masked
        self.embed, self.head = nn.Embedding(9, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(2))
        self.gates = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2)) if learned else [None, None]
        self.factor = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.embed(x)
        common = partial(mean, dim=self.dim, mask=mask if self.masked else None)
        for block, gate in zip(self.blocks, self.gates, strict=True):
            f = block(h)
            h = self.run(h, f, self.factor if gate is None else torch.sigmoid(gate(common(f))), common)
        return self.head(h)


@torch.no_grad()
@pytest.mark.parametrize(
    ("spelling", "dim", "masked", "learned"),
    [
        *((spelling, dim, False, False) for spelling in SPELLINGS for dim in (-1, -2)),
        ("split", -2, True, False),
        ("both by gates", -2, False, True),
        ("layer alone", -2, False, True),
    ],
)
def test_a_mean_that_is_taken_away_belongs_to_the_skip(spelling: str, dim: int, masked: bool, learned: bool) -> None:
    torch.manual_seed(0)
    net = Split(spelling, dim, masked, learned).eval().double()
    inputs = {"x": torch.randint(0, 9, (2, 5)), "mask": torch.rand(2, 5, 1).round().double() + 1}
    graph = jg.trace(net, **inputs, dynamic=False)
    kind = "gated" if learned else "projection"
    assert [(join.kind, join.depth, len(join.branches)) for join in graph.joins] == [(kind, 0, 1)] * 2
    frozen = jg.compile(jg.expand(graph, rules={"*": jg.Freeze()}))(**inputs)
    assert distance(sum(frozen.terms.values()), net(**inputs)) < 1e-10  # type: ignore[arg-type]
    other = {**inputs, "x": inputs["x"].flip(1)}
    assert check_values(subject(graph, inputs, other, torch.float64)) >= 3
