"""Graphs with edges: softmaxes over neighbours that are written out, layers side by side, gates made of both sides."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from tests.laws import EXACT, check_affine, check_slopes, check_values, distance, subject

WIDTH, NODES = 6, 5
SOURCE, TARGET = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 0, 2, 1]])


class Net(nn.Module):
    """Layers on nodes [n, 3] of a fixed graph."""

    def __init__(self, layer: Callable[[Net, int, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = layer
        self.stem, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 3)
        self.values = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.scores = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(2))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, WIDTH)) for _ in range(2)
        )
        self.gates = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(2))
        self.cells = nn.ModuleList(nn.GRUCell(WIDTH, WIDTH) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm1d(WIDTH) for _ in range(4))
        self.scale = nn.Parameter(torch.rand(WIDTH) + 0.5)
        for norm in self.norms:
            norm.get_buffer("running_mean").normal_()
            norm.get_buffer("running_var").uniform_(0.5, 2.0)
        self.register_buffer("source", SOURCE)
        self.register_buffer("target", TARGET)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for at in range(2):
            h = self.layer(self, at, h)
        return self.head(h)


def _attended(net: Net, at: int, h: Tensor) -> Tensor:
    """Messages weighed by a softmax over the edges that end at a node, the largest score taken away first."""
    scores = torch.nn.functional.leaky_relu(net.scores[at](h)[net.source] + net.scores[at](h)[net.target])
    index = net.target[:, None]
    largest = scores.new_zeros(h.shape[0], 1).scatter_reduce(0, index, scores.detach(), "amax", include_self=False)
    weights = (scores - largest.index_select(0, net.target)).exp()
    total = weights.new_zeros(h.shape[0], 1).scatter_add(0, index, weights)
    weights = weights / (total.index_select(0, net.target) + 1e-16)
    messages = weights * net.values[at](h)[net.source]
    return torch.zeros_like(h).index_add(0, net.target, messages)


def attention(net: Net, at: int, h: Tensor) -> Tensor:
    return torch.relu(_attended(net, at, h))


def residual_attention(net: Net, at: int, h: Tensor) -> Tensor:
    return h + _attended(net, at, h)


def largest_of_rows(net: Net, at: int, h: Tensor) -> Tensor:
    """A softmax over nodes that is written out, with the largest score of all looked up again."""
    scores = net.scores[at](h)
    weights = (scores - scores.amax(0, keepdim=True)).exp()
    return h + (weights / weights.sum(0, keepdim=True)) * net.values[at](h).flip(0)


def gated_by_both(net: Net, at: int, h: Tensor) -> Tensor:
    """The gate is made of the branch and the stream, side by side."""
    branch = net.blocks[at](h)
    return torch.lerp(branch, h, net.gates[at](torch.cat([branch, h], -1)).sigmoid())


def gated_by_difference(net: Net, at: int, h: Tensor) -> Tensor:
    branch = net.blocks[at](h)
    g = net.gates[at](torch.cat([branch, h - branch], -1)).sigmoid()
    return g * h + (1 - g) * branch


def scaled_state(net: Net, at: int, h: Tensor) -> Tensor:
    """A cell takes the stream's multiple in."""
    return net.cells[at](net.blocks[at](h), h * net.scale)


def halved_state(net: Net, at: int, h: Tensor) -> Tensor:
    return net.cells[at](net.blocks[at](h), -h.unsqueeze(0).div(2).squeeze(0))


@pytest.mark.parametrize(
    ("layer", "kinds"),
    [
        (attention, []),
        (residual_attention, ["identity"] * 2),
        (largest_of_rows, ["identity"] * 2),
        (gated_by_both, ["gated"] * 2),
        (gated_by_difference, ["gated"] * 2),
        (scaled_state, ["gated"] * 2),
        (halved_state, ["gated"] * 2),
    ],
)
def test_joins(layer: Callable[[Net, int, Tensor], Tensor], kinds: list[str]) -> None:
    graph, given = _traced(layer)
    assert [join.kind for join in graph.joins] == kinds
    check_values(given)
    check_slopes(given)
    check_affine(given)


def beside(net: Net, at: int, h: Tensor) -> Tensor:
    """A linear layer and another one on their own, each added and normed; and a perceptron."""
    one, two = net.norms[2 * at](h + net.values[at](h)), net.norms[2 * at + 1](h + net.blocks[at](h))
    h = one + two
    return h + net.blocks[1 - at](h)


def beside_messages(net: Net, at: int, h: Tensor, weights: Tensor) -> Tensor:
    """The same with messages along edges in the place of the linear layer."""
    sent = torch.zeros_like(h).index_add(0, net.target, weights[:, None] * net.values[at](h)[net.source])
    one, two = net.norms[2 * at](h + sent), net.norms[2 * at + 1](h + net.blocks[at](h))
    h = one + two
    return h + net.blocks[1 - at](h)


class Weighed(Net):
    """The same with weights of edges."""

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        h = self.stem(x).relu()
        for at in range(2):
            h = beside_messages(self, at, h, weights.abs().sqrt())
        return self.head(h)


@pytest.mark.parametrize("kind", [Net, Weighed])
def test_an_affine_layer_beside_another_one_behind_a_norm(kind: type[Net]) -> None:
    """All is one stream; it was cut at each such layer."""
    inputs: dict[str, Any] = {"x": torch.randn(NODES, 3, dtype=torch.float64)}
    if kind is Weighed:
        inputs["weights"] = torch.randn(len(SOURCE), dtype=torch.float64)
    net = kind(beside).eval().double()
    graph = jg.trace(net, inputs=inputs, dynamic=False)
    assert len(graph.streams) == 1
    assert [len(join.branches) for join in graph.stream.joins] == ([2, 1] if kind is Weighed else [1, 1]) * 2
    given = subject(graph, inputs, {name: value.flip(0) for name, value in inputs.items()}, torch.float64)
    check_values(given)
    check_affine(given)
    frozen = jg.compile(jg.expand(graph, rules={"*": jg.Freeze()}))(**inputs)
    assert distance(sum(frozen.terms.values()), net(**inputs)) < EXACT  # type: ignore[arg-type]


def _traced(layer: Callable[[Net, int, Tensor], Tensor]) -> tuple[jg.ResidualGraph, Any]:
    x = torch.randn(NODES, 3, dtype=torch.float64)
    graph = jg.trace(Net(layer).eval().double().requires_grad_(False), x, dynamic=False)
    return graph, subject(graph, {"x": x}, {"x": torch.randn(NODES, 3, dtype=torch.float64)}, torch.float64)


class Streams(nn.Module):
    """Hyper-connections: layers read a mixture of streams [b·s, n, d], and give to each what they make."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Linear(3, WIDTH), nn.ModuleList(nn.Linear(WIDTH, 4) for _ in range(2))
        self.give = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(2))
        self.perceptron = nn.Sequential(nn.Linear(WIDTH, 5), nn.GELU(), nn.Linear(5, WIDTH))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).repeat_interleave(3, 0)
        for at in range(2):
            parts = h.unflatten(0, (-1, 3)).transpose(1, 2)  # [b, n, s, d]
            mixed = torch.einsum("bnst,bnsd->bntd", self.mix[at](parts).tanh() + 0.3, parts)
            made = self._attended(mixed[:, :, 0]) if at else self.perceptron(mixed[:, :, 0])
            given = torch.einsum("bnd,bns->bnsd", made, self.give[at](parts)[..., 0].tanh())
            h = (given + mixed[:, :, 1:]).transpose(1, 2).flatten(0, 1)
        return h.unflatten(0, (-1, 3)).sum(1)

    def _attended(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).chunk(3, -1)
        return (q @ k.mT).sigmoid() @ v


def test_a_layer_between_products_with_weights_of_streams_is_no_attention() -> None:
    graph = jg.trace(Streams().eval(), torch.randn(2, 4, 3), dynamic=False)
    assert [join.kind for join in graph.joins] == ["gated", "gated"]
    assert [branch.kind for join in graph.joins for branch in join.branches] == ["mlp", "attn"]


class Attention(nn.Module):
    """h + attention of two heads over neighbours, by scores of both ends."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.register_buffer("source", torch.tensor([0, 1, 2, 3, 0, 2, 1, 3]))
        self.register_buffer("target", torch.tensor([1, 2, 3, 0, 0, 0, 1, 2]))

    def gathered(self, messages: Tensor, number: int) -> Tensor:
        total = messages.new_zeros(number, *messages.shape[1:])
        if self.how == "index_add":
            return total.index_add(0, self.target, messages)
        index = self.target.view(-1, *[1] * (messages.dim() - 1)).expand_as(messages)
        if self.how == "scatter_add":
            return total.scatter_add(0, index, messages)
        return total.scatter_reduce(0, index, messages, "sum")

    def branch(self, h: Tensor) -> Tensor:
        q, k, v = (layer(h).unflatten(-1, (2, -1)) for layer in (self.query, self.key, self.value))
        scores = (q[self.target] * k[self.source]).sum(-1) / 2
        weights = scores.exp()
        weights = weights / self.gathered(weights, h.shape[0]).clamp(min=1e-9).index_select(0, self.target)
        return self.out(self.gathered(weights.unsqueeze(-1) * v[self.source], h.shape[0]).flatten(1))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.branch(h)


@pytest.mark.parametrize("how", ["index_add", "scatter_add", "scatter_reduce"])
@torch.no_grad()
def test_attention_over_neighbours_has_heads(how: str) -> None:
    torch.manual_seed(0)
    block = Attention(how).eval().double()
    graph = jg.trace(nn.Sequential(block, nn.Linear(WIDTH, 2)).double().eval(), torch.randn(4, WIDTH).double())
    assert [branch.kind for join in graph.joins for branch in join.branches] == ["attn"]
    split = graph.split("heads")
    assert [*split.branches] == ["L0.attn.head0", "L0.attn.head1"]
    x = torch.randn(4, WIDTH).double()
    forward = split.run(x)
    for head in range(2):
        alone = copy.deepcopy(block)
        alone.out.weight[:, [slice(WIDTH // 2, None), slice(WIDTH // 2)][head]] = 0
        assert distance(forward.component(f"L0.attn.head{head}"), alone.branch(x) - alone.out.bias) < EXACT
    # Which keys a query sees is no table of positions here, and nothing is made up for one.
    with pytest.raises(jg.InputError, match="attention"):
        jg.attention_patterns(graph, x)


SENT, TO = torch.tensor([[0, 1, 2, 3, 0, 2, 1, 3], [1, 2, 3, 0, 0, 0, 1, 2]])


class Additive(Attention):
    """Scores that are sums of what layers make of keys, and of queries, with an activation before the softmax."""

    def __init__(self, how: str) -> None:
        super().__init__("index_add")
        self.how = how
        self.of_keys = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
        self.of_queries = nn.Linear(WIDTH, 1)

    def branch(self, h: Tensor) -> Tensor:
        keys, queries = self.of_keys(h), self.of_queries(h)
        if self.how == "neighbours":
            scores = F.leaky_relu(keys[SENT] + queries[TO])
            largest = scores.new_zeros(len(h), 1).scatter_reduce(0, TO[:, None], scores, "amax")
            weights = (scores - largest[TO]).exp()
            total = weights.new_zeros(len(h), 1).index_add(0, TO, weights)
            weights = weights / (total.index_select(0, TO) + 1e-9)
            made = weights * self.value(h)[SENT]
            return self.out(torch.zeros_like(h).index_add(0, TO, made))
        scores = F.leaky_relu(keys.T + queries)
        if self.how == "softmax":
            weights = torch.softmax(scores, -1)
        else:
            weights = (scores - scores.amax(-1, keepdim=True)).exp()
            weights = weights / weights.sum(-1, keepdim=True)
        return self.out(weights @ self.value(h))


@pytest.mark.parametrize("how", ["neighbours", "softmax", "written out"])
@torch.no_grad()
def test_a_sum_of_scores_is_no_join(how: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Additive(how), Additive(how), nn.Linear(WIDTH, 2)).double().eval()
    x = torch.randn(4, WIDTH).double()
    graph = jg.trace(net, x)
    assert [(join.kind, join.depth, len(join.branches)) for join in graph.joins] == [("identity", 0, 1)] * 2
    assert check_values(subject(graph, {"input": x}, {"input": x.flip(0)}, torch.float64)) >= 2


class Again(nn.Module):
    """Layers over neighbours by weights of edges, to which what the first one reads is added again by another layer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)
        self.layers, self.again = (nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3)) for _ in range(2))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        x = h = self.first(x).relu()
        for layer, again in zip(self.layers, self.again, strict=True):
            if self.how == "edges":
                messages = weights[:, None] * layer(h)[SOURCE]
                made = torch.zeros_like(h).index_add(0, TARGET, messages)
            elif self.how == "nodes":
                made = torch.tanh(layer(h)) * weights[:NODES, None]
            else:
                made = layer(h) * weights[:1]
            h = torch.relu(made + again(x))
        return self.last(h)


@pytest.mark.parametrize("how", ["edges", "nodes", "all"])
@torch.no_grad()
def test_weights_of_edges_are_no_stream_that_a_layer_reads(how: str) -> None:
    torch.manual_seed(0)
    net, x = Again(how).double().eval(), torch.randn(NODES, WIDTH).double()
    weights = torch.rand(len(SOURCE)).double()
    graph = jg.trace(net, x, weights, dynamic=False)
    assert [join.kind for join in graph.joins].count("projection") == (3 if how == "nodes" else 2)
