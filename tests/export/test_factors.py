"""An interpolation between the stream and a branch has one structure, however it is spelled."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from tests.laws import EXACT, check_affine, check_values, distance, subject

WIDTH = 6

Weights = tuple[Tensor | float, list[Any]]
"""What the stream is multiplied by, and what each branch."""


class Block(nn.Module):
    def __init__(self, spelling: Callable[[Block, Tensor], Tensor]) -> None:
        super().__init__()
        self.f, self.g = (nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)) for _ in range(2))
        self.gate = nn.Linear(WIDTH, WIDTH)
        self.a, self.b = nn.Parameter(torch.rand(WIDTH)), nn.Parameter(torch.rand(WIDTH))
        self.spelling = spelling

    def forward(self, h: Tensor) -> Tensor:
        return self.spelling(self, h)

    def t(self, h: Tensor) -> Tensor:
        return torch.sigmoid(self.gate(h))


SPELLINGS: dict[str, tuple[Callable[[Block, Tensor], Tensor], Callable[[Block, Tensor], Weights]]] = {
    "lerp": (lambda b, h: torch.lerp(h, b.f(h), b.a), lambda b, h: (1 - b.a, [b.a])),
    "ngpt": (lambda b, h: h + b.a * (b.f(h) - h), lambda b, h: (1 - b.a, [b.a])),
    "number": (lambda b, h: h + 0.3 * (b.f(h) - h), lambda b, h: (0.7, [0.3])),
    "taken": (lambda b, h: h - (h - b.f(h)) / (1 + b.a), lambda b, h: (1 - 1 / (1 + b.a), [1 / (1 + b.a)])),
    "made": (lambda b, h: h + b.t(h) * (b.f(h) - h), lambda b, h: (1 - b.t(h), [b.t(h)])),
    "apart": (lambda b, h: h - b.t(h) * h + b.t(h) * b.f(h), lambda b, h: (1 - b.t(h), [b.t(h)])),
    "last": (lambda b, h: b.f(h) * b.t(h) + (h - h * b.t(h)), lambda b, h: (1 - b.t(h), [b.t(h)])),
    "apart by a weight": (lambda b, h: -b.a * h + h + b.a * b.f(h), lambda b, h: (1 - b.a, [b.a])),
    "scaled": (lambda b, h: b.b * h + (b.f(h) - 0.5 * h) * b.a, lambda b, h: (b.b - b.a / 2, [b.a])),
    "nested": (
        lambda b, h: h + b.a * (b.f(h) + b.b * (b.g(h) - h)),
        lambda b, h: (1 - b.a * b.b, [b.a, b.a * b.b]),
    ),
    "gate within": (
        lambda b, h: h + b.a * (torch.lerp(h, b.f(h), b.t(h)) - h),
        lambda b, h: (1 - b.a * b.t(h), [b.a * b.t(h)]),
    ),
}
"""By name: the block, and what it multiplies the stream and its branches by."""


class Net(nn.Module):
    def __init__(self, spelling: Callable[[Block, Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(9, WIDTH), nn.ModuleList(Block(spelling) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


@pytest.mark.parametrize("name", SPELLINGS)
@torch.no_grad()
def test_a_difference_times_a_factor_is_an_interpolation(name: str) -> None:
    torch.manual_seed(0)
    spelling, weights = SPELLINGS[name]
    net = Net(spelling).eval().double()
    inputs: dict[str, Any] = {"x": torch.randint(0, 9, (2, 4))}
    graph = jg.trace(net, **inputs, dynamic=False)
    kind = "gated" if name in ("made", "apart", "last", "gate within") else "scaled"
    assert [(join.kind, join.depth) for join in graph.joins] == [(kind, 0)] * 2
    given = subject(graph, inputs, {"x": torch.randint(0, 9, (2, 4))}, torch.float64)
    assert check_values(given) >= 9
    check_affine(given)
    frozen = jg.compile(jg.expand(graph, rules={"*": jg.Freeze()}))(**inputs)
    assert distance(frozen.total, net(**inputs)) < EXACT
    # Skips with the factors of the stream, branches with those of what they are evaluated at.
    points = [net.embed(inputs["x"])]
    for block in net.blocks:
        points.append(block(points[-1]))
    terms = jg.compile(jg.expand(graph, order=0, weights="unit"))(**inputs).terms
    ways = list(product(range(len(graph.stream.joins[0].branches) + 1), repeat=2))
    assert len(terms) == len(ways)
    for way in ways:
        value, text = points[0], "embed"
        for block, join, h, taken in zip(net.blocks, graph.stream.joins, points, way, strict=False):
            assert isinstance(block, Block)
            if taken:
                branch = join.branches[taken - 1]
                factor = weights(block, value)[1][branch.name.endswith("g")]
                value, text = factor * net.get_submodule(branch.name)(value), f"{text} > {branch.alias}^0"
            else:
                value = weights(block, h)[0] * value
        assert distance(terms[jg.Path.parse(f"{text} > logits^0")], net.head(net.norm(value))) < EXACT


def mixture_of_points(block: Block, h: Tensor) -> Tensor:
    return 0.3 * h + 0.7 * (h + block.f(h))


def normalised_difference(block: Block, h: Tensor) -> Tensor:
    n = F.layer_norm(h, (WIDTH,))
    return h + block.a * (block.f(n) - n)


def gate_alone(block: Block, h: Tensor) -> Tensor:
    """Nothing is put in the place of what is taken away."""
    return h - block.t(h) * h


def power(block: Block, h: Tensor) -> Tensor:
    return h - h * h * h + block.f(h)


def both_added(block: Block, h: Tensor) -> Tensor:
    """What a gate adds to the stream is a branch."""
    return h + block.t(h) * h + block.f(h)


def weighed_by_itself(block: Block, h: Tensor) -> Tensor:
    """The sum stays whole, though its weight is made of the point before: that is weighed with it."""
    return block.t(h) * (h + block.f(h)) + (1 - block.t(h)) * h


def masked_by_itself(block: Block, h: Tensor) -> Tensor:
    """A map of the sum alone."""
    total = h + block.f(h)
    return total * (total[..., :1] > -0.5)


@pytest.mark.parametrize(
    ("spelling", "kinds"),
    [
        (mixture_of_points, ["identity", "scaled"]),
        (weighed_by_itself, ["gated"]),
        (masked_by_itself, ["identity"]),
        (normalised_difference, ["identity"]),
        (gate_alone, ["identity"]),
        (power, ["identity"]),
        (both_added, ["identity"]),
    ],
)
def test_other_sums_stay_as_they_are(spelling: Callable[[Block, Tensor], Tensor], kinds: list[str]) -> None:
    net = Net(spelling).eval()
    graph = jg.trace(net, x=torch.randint(0, 9, (2, 4)), dynamic=False)
    assert [join.kind for join in graph.joins if not join.depth] == kinds * 2


@pytest.mark.parametrize("along", [-1, 1, (1, 2)])
@pytest.mark.parametrize("divides", [True, False])
def test_a_value_without_its_mean_stays_one(along: Any, divides: bool) -> None:
    """Of norms by hand, with a weight, though value and mean are read again for the deviation; the sum of embeddings
    that they read is where the stream starts.
    """

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.places, self.f = nn.Embedding(9, WIDTH), nn.Embedding(4, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.weight, self.bias = nn.Parameter(torch.rand(WIDTH)), nn.Parameter(torch.rand(WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            h = self.embed(x) + self.places.weight
            mean = h.mean(along, keepdim=True)
            variance = (h - mean).pow(2).mean(along, keepdim=True) + 1e-7
            centred = h - mean
            h = self.weight * (centred / variance.sqrt() if divides else centred * variance.rsqrt()) + self.bias
            return h + torch.tanh(self.f(h))

    graph = jg.trace(Normed().eval(), x=torch.randint(0, 9, (2, 4)), dynamic=False)
    assert [(source.alias, source.path) for source in graph.outline.sources[:2]] == [
        ("embed", "embed"),
        ("pos", "places.weight"),
    ]
    assert len(graph.joins) == 1


def pooled_difference(block: Block, h: Tensor) -> Tensor:
    """What is taken away gave the sum its shape."""
    one = h + torch.tanh(h.mean(1, keepdim=True))
    other = h + block.b
    return h + block.f(torch.cat([(one - h).sum(1, keepdim=True), other - h], 1))[:, 1:]


@torch.no_grad()
def test_a_difference_keeps_its_shape() -> None:
    torch.manual_seed(0)
    net, inputs = Net(pooled_difference).eval().double(), {"x": torch.randint(0, 9, (2, 4))}
    graph = jg.trace(net, **inputs)
    assert [join.kind for join in graph.stream.joins] == ["identity"] * 2
    others = {"x": torch.randint(0, 9, (3, 5))}
    assert distance(graph(**others), net(**others)) < EXACT
