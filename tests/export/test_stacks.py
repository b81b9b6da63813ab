"""Sums over stacks of layers, with weights of every shape, are sums of the layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
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


class Spelt(nn.Module):
    """A weighted sum of layers, of which each reads the one before it alone."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.embed, self.head = nn.Embedding(9, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, 4), nn.GELU(), nn.Linear(4, WIDTH)) for _ in "abc")
        self.weights, self.gates = nn.Parameter(torch.rand(4)), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        points = [self.embed(x)]
        for block in self.blocks:
            points.append(block(points[-1]))
        return self.head(SPELT[self.how](torch.stack(points), self.weights, torch.tanh(self.gates(points[0]))))


SPELT: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "tensordot": lambda layers, w, g: torch.tensordot(w, layers, dims=1),
    "tensordot of two": lambda layers, w, g: torch.tensordot(layers.movedim(0, -1), w, dims=([3], [0])),
    "vector behind": lambda layers, w, g: (layers.permute(1, 2, 3, 0) * 2) @ w,
    "vector before": lambda layers, w, g: (w @ layers.flatten(1)).view(layers.shape[1:]),
    "row": lambda layers, w, g: (w[None] @ layers.reshape(4, -1)).view_as(layers[0]),
    "column": lambda layers, w, g: (layers.movedim(0, -1) @ g.unsqueeze(-1)).squeeze(-1),
    "rows": lambda layers, w, g: (g.unsqueeze(-2) @ layers.movedim(0, 2)).squeeze(-2),
    "batch": lambda layers, w, g: (w.expand(layers.shape[1], 1, 4) @ layers.transpose(0, 1).flatten(2)).view_as(
        layers[0]
    ),
    "linear": lambda layers, w, g: nn.functional.linear(layers.movedim(0, -1), -w[None], w[:1]).squeeze(-1),
    "inner": lambda layers, w, g: torch.inner(w, -layers.movedim(0, -1)),
    "vecdot": lambda layers, w, g: torch.linalg.vecdot(layers, g.movedim(-1, 0).unsqueeze(-1).expand_as(layers), dim=0),
    "einsum": lambda layers, w, g: torch.einsum("lbtd,btl->btd", layers, g),
    "einsum with dots": lambda layers, w, g: torch.einsum("l...,...l->...", layers, g.unsqueeze(-2)),
    "einsum of entries": lambda layers, w, g: torch.einsum(
        "...ld,ld->...d", layers.movedim(0, 2), w[:, None] * w.new_ones(6)
    ),
    "einsum without output": lambda layers, w, g: torch.einsum("zabc,z", layers, w),
    "column of rows": lambda layers, w, g: torch.mv(layers.movedim(0, -1).reshape(-1, 4), w).view_as(layers[0]),
    "addmv": lambda layers, w, g: torch.addmv(w.new_zeros(8 * WIDTH), layers.flatten(1).T, w).view(2, 4, WIDTH),
    "running": lambda layers, w, g: (w.view(-1, 1, 1, 1) * layers).cumsum(0)[-1],
    "running, up to one": lambda layers, w, g: (layers * 2).cumsum(0).select(0, 2),
    "flipped": lambda layers, w, g: (layers.flip(0) * w.view(-1, 1, 1, 1)).flip(0).sum(0),
    "permuted": lambda layers, w, g: (layers.permute(1, 2, 3, 0) * w).sum(-1),
    "unsqueezed": lambda layers, w, g: (layers[:, None] * w.view(-1, 1, 1, 1, 1)).mean(0)[0],
}


@pytest.mark.parametrize("how", [how for how in SPELT if how != "addmv"])  # whose zeros fix the sizes
@torch.no_grad()
def test_sums_over_a_stack_of_open_sizes_are_sums_of_its_layers(how: str) -> None:
    torch.manual_seed(0)
    net = Spelt(how).eval().double()
    graph = jg.trace(net, torch.randint(0, 9, (2, 4)))
    assert not any("stack" in str(node.target) for node in graph.traced.graph.nodes)
    (join,) = graph.stream.joins
    assert join.depth == 0
    others = {"x": torch.randint(0, 9, (3, 5))}
    assert distance(graph(**others), net(**others)) < EXACT


@pytest.mark.parametrize("how", SPELT)
@torch.no_grad()
def test_products_and_layouts_of_a_stack_are_sums_of_its_layers(how: str) -> None:
    torch.manual_seed(0)
    net = Spelt(how).eval().double()
    inputs, others = ({"x": torch.randint(0, 9, (2, 4))} for _ in range(2))
    graph = jg.trace(net, **inputs, dynamic=False)
    assert not any("stack" in str(node.target) for node in graph.traced.graph.nodes)
    (join,) = (join for join in graph.joins if join.depth == 0)
    assert join.node.meta["shape"][-1] == (WIDTH if how != "batch" else 4 * WIDTH)
    assert graph.stream.joins == (join,)
    assert distance(graph(**others), net(**others)) < EXACT
    assert check_values(subject(graph, inputs, others, torch.float64)) > 0


@torch.no_grad()
def test_a_stack_that_a_product_and_others_read_is_kept_whole() -> None:
    class Streams(Spelt):
        def forward(self, x: Tensor) -> Tensor:
            layers = torch.stack([self.embed(x), self.blocks[0](self.embed(x))], -1)
            read = layers @ self.weights[:2]
            return self.head(torch.tanh(layers + self.blocks[1](read)[..., None]).sum(-1))

    torch.manual_seed(0)
    graph = jg.trace(Streams("").eval(), torch.randint(0, 9, (2, 4)), dynamic=False)
    assert sum("stack" in str(node.target) for node in graph.traced.graph.nodes) == 1
    assert sum("matmul" in str(node.target) for node in graph.traced.graph.nodes) == 1


JOINED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cat of rows": lambda h, f: torch.cat([h[None], f.unsqueeze(0)]).sum(0),
    "cat of entries": lambda h, f: torch.cat([h.unsqueeze(-1), f.view(*f.shape, 1)], -1).sum(-1),
    "cat of features": lambda h, f: torch.cat([h, f], -1).view(*h.shape[:2], 2, WIDTH).sum(2),
    "cat of positions": lambda h, f: torch.hstack([h, f]).view(h.shape[0], 2, *h.shape[1:]).sum(1),
    "cat of batches": lambda h, f: 2 * torch.cat([h, f]).view(2, *h.shape).mean(0),
    "einsum of one": lambda h, f: torch.einsum("nbtd->dtb", torch.stack([h, f])).permute(2, 1, 0),
    "channels": lambda h, f: torch.conv2d(torch.stack([h, f], 1), h.new_ones(1, 2, 1, 1), h.new_ones(1)).squeeze(1),
}


class Joined(nn.Module):
    """h and f(h) put side by side, and added up."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, 4), nn.GELU(), nn.Linear(4, WIDTH)) for _ in "ab")
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = JOINED[self.how](x, block(x))
        return self.head(x)


@pytest.mark.parametrize("how", JOINED)
@torch.no_grad()
def test_what_is_put_side_by_side_and_added_up_is_a_sum(how: str) -> None:
    torch.manual_seed(0)
    net, x = Joined(how).eval().double(), torch.randn(2, 5, WIDTH).double()
    graph = jg.trace(net, x)
    assert [join.kind in ("identity", "scaled") for join in graph.stream.joins] == [True, True]
    assert distance(graph(x.flip(0)[:, :3]), net(x.flip(0)[:, :3])) < EXACT
    assert check_values(subject(graph, {"x": x}, {"x": x.flip(0)}, torch.float64)) >= 4


def test_pieces_of_which_one_is_read_further_lie_side_by_side_still() -> None:
    """Two of three pieces, and pieces that are cut at other places, are no summands."""

    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            wide = torch.cat([x, x.sin(), x.cos()], -1)
            return wide.view(*x.shape[:-1], 2, 9).sum(-2) + torch.cat([x[..., :2], x.exp()[..., :4]], -1).sum(-1, True)

    torch.manual_seed(0)
    net, x = Cut().eval().double(), torch.randn(2, 6).double()
    assert distance(jg.trace(net, x, dynamic=False)(x), net(x)) < EXACT
