"""What the stream has along a direction is told however the inner product is spelled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from tests.laws import EXACT, distance

WIDTH = 4

Product = Callable[[Tensor, Tensor], Tensor]

SPELLINGS: dict[str, Product] = {
    "sum": lambda u, h: (u * h).sum(-1, keepdim=True),
    "unsqueezed": lambda u, h: (u * h).sum(-1).unsqueeze(-1),
    "indexed": lambda u, h: (u * h).sum(-1)[..., None],
    "mean": lambda u, h: (u * h).mean(-1, keepdim=True) * WIDTH,
    "matmul": lambda u, h: (u.unsqueeze(-2) @ h.unsqueeze(-1)).squeeze(-1),
    "transposed": lambda u, h: (h.unsqueeze(-2) @ u.unsqueeze(-2).transpose(-1, -2))[..., 0],
    "bmm": lambda u, h: torch.bmm(u.reshape(-1, 1, WIDTH), h.reshape(-1, WIDTH, 1)).reshape(*h.shape[:-1], 1),
    "einsum": lambda u, h: torch.einsum("bld,bld->bl", u, h).unsqueeze(-1),
    "dots": lambda u, h: torch.einsum("...d,...d->...", u, h)[..., None],
    "vecdot": lambda u, h: torch.linalg.vecdot(u, h).unsqueeze(-1),
}


class Net(nn.Module):
    def __init__(self, product: Product, *, parallel: bool) -> None:
        super().__init__()
        self.product, self.parallel = product, parallel
        self.embed, self.head = nn.Embedding(9, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(2))
        self.new = nn.Linear(WIDTH, 1)

    def along(self, f: Tensor, h: Tensor, t: Tensor) -> Tensor:
        """What is taken away of t."""
        if self.parallel:
            return (f * h).sum(-1, keepdim=True) / (h * h).sum(-1, keepdim=True) * t
        u = F.normalize(f, dim=-1)
        return 2 * (u * t).sum(-1, keepdim=True) * u

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for block in self.blocks:
            f = block(h)
            if self.parallel:
                h = h + (f - self.product(f, h) / self.product(h, h) * h)
            else:
                u = F.normalize(f, dim=-1)
                h = h + 2 * (self.new(h) - self.product(u, h)) * u
        return self.head(h)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("name", SPELLINGS)
@torch.no_grad()
def test_a_direction_belongs_to_the_skip(name: str, parallel: bool) -> None:
    torch.manual_seed(0)
    net, x = Net(SPELLINGS[name], parallel=parallel).eval().double(), torch.randint(0, 9, (2, 5))
    graph = jg.trace(net, x)
    assert [(join.kind, join.depth, len(join.branches)) for join in graph.joins] == [("gated", 0, 1)] * 2
    forward = graph.run(x)
    h, t = forward.point(1), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    skip = graph.joins[1].skip
    assert skip is not None
    assert distance(forward.through(skip, t), t - net.along(net.blocks[1](h), h, t)) < EXACT
    frozen = jg.compile(jg.expand(graph, rules={"*": jg.Freeze()}))(x)
    assert distance(sum(frozen.terms.values()), net(x)) < EXACT  # type: ignore[arg-type]


class Other(nn.Module):
    """Products that give a number for each pair of places: attention."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.embed, self.f = way, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        u = torch.tanh(self.f(h))
        if self.way == "einsum":
            return h + torch.einsum("blm,bmd->bld", torch.einsum("bld,bmd->blm", u, h), u) + u
        return h + (u @ h.mT) @ u + u


@pytest.mark.parametrize("way", ["einsum", "matmul"])
def test_other_products_are_branches(way: str) -> None:
    graph = jg.trace(Other(way).eval(), torch.randn(2, 5, WIDTH))
    assert [(join.kind, len(join.branches)) for join in graph.stream.joins] == [("identity", 2)]
