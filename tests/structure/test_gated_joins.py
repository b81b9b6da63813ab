"""Joins whose skip is gated, and joins without a skip, against recursions written by hand."""

from __future__ import annotations

import functools
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.algebra.formulas import formula
from jetgraph.applications.comparing.site_changes import site_changes
from tests.laws import EXACT, check_affine, check_slopes, check_values, distance, subject
from tests.zoo import PreNorm

WIDTH, STREAMS = 6, 3


class Block(nn.Module):
    """h ↦ skip(gates(h), h) + branch(h)."""

    kind = "gated"
    streams = False

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.LayerNorm(WIDTH), PreNorm(WIDTH).mlp)
        self.w = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6))

    def gates(self, h: Tensor) -> Tensor:
        return torch.sigmoid(self.w[0](h))

    def skip(self, gates: Tensor, h: Tensor) -> Tensor:
        return gates * h

    def branch(self, h: Tensor) -> Tensor:
        return self.f(h)

    def forward(self, h: Tensor) -> Tensor:
        return self.skip(self.gates(h), h) + self.branch(h)


class Highway(Block):
    """(1 − g) h + g f(h): the branch has the gate as it is where the branch is evaluated."""

    def skip(self, gates: Tensor, h: Tensor) -> Tensor:
        return (1 - gates) * h

    def branch(self, h: Tensor) -> Tensor:
        return self.gates(h) * self.f(h)


class Recurrent(Block):
    """GTrXL: the gates of a GRU between the stream and what a branch makes of it."""

    def gates(self, h: Tensor) -> Tensor:
        return torch.sigmoid(self.w[0](self.f(h)) + self.w[1](h))

    def skip(self, gates: Tensor, h: Tensor) -> Tensor:
        return (1 - gates) * h

    def branch(self, h: Tensor) -> Tensor:
        y = self.f(h)
        reset = torch.sigmoid(self.w[2](y) + self.w[3](h))
        return self.gates(h) * torch.tanh(self.w[4](y) + self.w[5](reset * h))


class Squeezed(Block):
    """A gate of all positions, on a scaled stream."""

    def gates(self, h: Tensor) -> Tensor:
        return torch.tanh(self.w[0](h).mean(1, keepdim=True))

    def skip(self, gates: Tensor, h: Tensor) -> Tensor:
        return 0.5 * h * gates


class Mixed(Block):
    """Several streams, mixed by a doubly stochastic matrix made of them."""

    streams = True

    def __init__(self) -> None:
        super().__init__()
        self.pre, self.post = nn.Linear(WIDTH * STREAMS, STREAMS), nn.Linear(WIDTH * STREAMS, STREAMS)
        self.matrix = nn.Linear(WIDTH * STREAMS, STREAMS**2)

    def flat(self, h: Tensor) -> Tensor:
        return F.rms_norm(h.flatten(2), (WIDTH * STREAMS,))

    def gates(self, h: Tensor) -> Tensor:
        gates = self.matrix(self.flat(h)).unflatten(-1, (STREAMS, STREAMS)).softmax(-1)
        for _ in range(2):
            gates = gates / gates.sum(-2, keepdim=True)
            gates = gates / gates.sum(-1, keepdim=True)
        return gates

    def skip(self, gates: Tensor, h: Tensor) -> Tensor:
        return gates.transpose(-1, -2) @ h

    def branch(self, h: Tensor) -> Tensor:
        read, write = torch.sigmoid(self.pre(self.flat(h))), 2 * torch.sigmoid(self.post(self.flat(h)))
        return write.unsqueeze(-1) * self.f((read.unsqueeze(-1) * h).sum(2)).unsqueeze(-2)


class Hyper(Block):
    """Dynamic hyper-connections: what is read and what is kept come from one product."""

    streams = True

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.alpha, self.beta = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, STREAMS + 1), nn.Linear(WIDTH, 1)
        self.still = nn.Parameter(torch.randn(STREAMS, STREAMS + 1))

    def gates(self, h: Tensor) -> Tensor:
        return torch.tanh(self.alpha(self.norm(h))) + self.still

    def skip(self, gates: Tensor, h: Tensor) -> Tensor:
        return (gates.transpose(-1, -2) @ h)[..., 1:, :]

    def branch(self, h: Tensor) -> Tensor:
        read = (self.gates(h).transpose(-1, -2) @ h)[..., 0, :]
        return torch.tanh(self.beta(self.norm(h))) * self.f(read).unsqueeze(-2)

    def forward(self, h: Tensor) -> Tensor:
        mixed = self.gates(h).transpose(-1, -2) @ h
        return torch.tanh(self.beta(self.norm(h))) * self.f(mixed[..., 0, :]).unsqueeze(-2) + mixed[..., 1:, :]


def along(one: Tensor, other: Tensor, dim: int = -1) -> Tensor:
    return (one * other).sum(dim, keepdim=True)


class Orthogonal(Block):
    """What a branch has along the stream is taken away from it: h + (f − p h), which is (1 − p) h + f."""

    def gates(self, h: Tensor) -> Tensor:
        return 1 - along(self.f(h), h) / (along(h, h) + 1e-6)

    def forward(self, h: Tensor) -> Tensor:
        f = self.f(h)
        return h + (f - along(f, h) / (along(h, h) + 1e-6) * h)


class Weighed(Block):
    """The same where what lies along the stream has a weight of its own, and the direction is a unit vector."""

    def weights(self, f: Tensor) -> tuple[Tensor, ...]:
        return torch.sigmoid(self.w[0](f))[..., :2].split(1, -1)

    def gates(self, h: Tensor) -> Tensor:
        f = self.f(h)
        parallel, orthogonal = self.weights(f)
        return 1 + (parallel - orthogonal) * along(f, h) / along(h, h)

    def branch(self, h: Tensor) -> Tensor:
        return self.f(h) * self.weights(self.f(h))[1]

    def forward(self, h: Tensor) -> Tensor:
        f, unit = self.f(h), F.normalize(h, dim=-1)
        one, other = self.weights(f)
        parallel = along(f, unit) * unit
        return h + parallel * one + (f - parallel) * other


class Delta(Block):
    """What the stream has along a direction is replaced: h + b (v − ⟨u, h⟩) u, which is (h − b ⟨u, h⟩ u) + b v u."""

    dim = -1

    def gates(self, h: Tensor) -> Tensor:
        return F.normalize(self.f(h), dim=-1)

    def skip(self, gates: Tensor, h: Tensor) -> Tensor:
        return h - 0.7 * along(gates, h, self.dim) * gates

    def new(self, h: Tensor) -> Tensor:
        return self.w[1](h)[..., :1]

    def branch(self, h: Tensor) -> Tensor:
        return 0.7 * self.new(h) * self.gates(h)

    def forward(self, h: Tensor) -> Tensor:
        u = self.gates(h)
        return h + 0.7 * (self.new(h) - along(u, h, self.dim)) * u


class Replaced(Delta):
    """The same along positions, which are weighed by what stands there."""

    dim = 1

    def gates(self, h: Tensor) -> Tensor:
        return self.w[0](self.f(h))[..., :1].softmax(1)

    def new(self, h: Tensor) -> Tensor:
        return self.w[1](h).sum(1, keepdim=True)


class Normed(Block):
    """A norm as one operator on the shortcut: its deviation is held, its bias is added from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = self.made()
        self.norm.weight.data += 0.3 * torch.rand(WIDTH)

    def made(self) -> nn.LayerNorm | nn.RMSNorm:
        return nn.LayerNorm(WIDTH, bias=False)

    def gates(self, h: Tensor) -> Tensor:
        return (h.var(-1, keepdim=True, unbiased=False) + 1e-5).rsqrt()

    def skip(self, gates: Tensor, h: Tensor) -> Tensor:
        return (h - h.mean(-1, keepdim=True)) * gates * self.norm.weight

    def forward(self, h: Tensor) -> Tensor:
        return self.norm(h) + self.branch(h)


class RootMean(Normed):
    """The same without means, behind a gate."""

    def made(self) -> nn.LayerNorm | nn.RMSNorm:
        return nn.RMSNorm(WIDTH, eps=1e-3)

    def gates(self, h: Tensor) -> Tensor:
        return super(Normed, self).gates(h) * ((h * h).mean(-1, keepdim=True) + 1e-3).rsqrt()

    def skip(self, gates: Tensor, h: Tensor) -> Tensor:
        return h * gates * self.norm.weight

    def forward(self, h: Tensor) -> Tensor:
        return super(Normed, self).gates(h) * self.norm(h) + self.branch(h)


class OfBranch(Block):
    """A gate that is made of what the branch gives, which is no point of the stream."""

    def gates(self, h: Tensor) -> Tensor:
        return torch.sigmoid(self.w[0](self.f(h)))


class Clipped(Block):
    """A step may make the stream longer by a half at most: the factor is made of the stream and of the sum."""

    def gates(self, h: Tensor) -> Tensor:
        longest = 1.1 * h.norm(dim=-1, keepdim=True)
        return torch.clamp(longest / (h + self.f(h)).norm(dim=-1, keepdim=True), max=1)

    def branch(self, h: Tensor) -> Tensor:
        return self.gates(h) * self.f(h)

    def forward(self, h: Tensor) -> Tensor:
        total = h + self.f(h)
        return total * torch.clamp(1.1 * h.norm(dim=-1, keepdim=True) / total.norm(dim=-1, keepdim=True), max=1)


class Kept(Clipped):
    """The length stays as it is, by a division and a product."""

    def gates(self, h: Tensor) -> Tensor:
        return h.norm(dim=-1, keepdim=True) / (h + self.f(h)).norm(dim=-1, keepdim=True)

    def forward(self, h: Tensor) -> Tensor:
        total = h + self.f(h)
        return total / total.norm(dim=-1, keepdim=True) * h.norm(dim=-1, keepdim=True)


class Alive(Clipped):
    """What is not alive before a step and after it is nothing, as in a cellular automaton."""

    def lives(self, h: Tensor) -> Tensor:
        return h[..., :1] > -0.6

    def gates(self, h: Tensor) -> Tensor:
        return (self.lives(h) & self.lives(h + self.f(h))).to(h.dtype)

    def forward(self, h: Tensor) -> Tensor:
        total = h + self.f(h)
        return total * (self.lives(h) & self.lives(total)).to(h.dtype)


class Filled(Alive):
    """The same with a mask that is filled."""

    def forward(self, h: Tensor) -> Tensor:
        total = h + self.f(h)
        return total.masked_fill(~(self.lives(h) & self.lives(total)), 0.0)


class Chosen(Alive):
    """By where, after the stream before alone."""

    def gates(self, h: Tensor) -> Tensor:
        return self.lives(h).to(h.dtype)

    def forward(self, h: Tensor) -> Tensor:
        total = h + self.f(h)
        return torch.where(self.lives(h), total, torch.zeros_like(total))


class Times(Chosen):
    """By a product with what is true or false."""

    def forward(self, h: Tensor) -> Tensor:
        return (h + self.f(h)) * self.lives(h)


class Net(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(9, WIDTH), nn.ModuleList(blocks)
        self.streams = any(getattr(block, "streams", False) for block in blocks)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5, bias=False)

    def start(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return h.unsqueeze(2).expand(-1, -1, STREAMS, -1) if self.streams else h

    def end(self, h: Tensor) -> Tensor:
        return self.head(self.norm(h.sum(2) if self.streams else h))

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x)
        for block in self.blocks:
            h = block(h)
        return self.end(h)


@functools.cache
def traced(*blocks: type[nn.Module]) -> tuple[Net, dict[str, Any], jg.ResidualGraph]:
    torch.manual_seed(0)
    net = Net(*(block() for block in blocks)).eval().double()
    inputs = {"x": torch.randint(0, 9, (2, 4))}
    return net, inputs, jg.trace(net, **inputs, dynamic=False)


def check_laws(graph: jg.ResidualGraph, inputs: dict[str, Any], expected: Tensor) -> None:
    """The pieces at other values, and with everything frozen the terms alone are the model."""
    given = subject(graph, inputs, {"x": torch.randint(0, 9, (2, 4))}, torch.float64)
    assert check_values(given) >= 9
    check_affine(given)
    check_slopes(given)
    frozen = jg.compile(jg.expand(graph, rules={"*": jg.Freeze()}))(**inputs)
    assert distance(sum(frozen.terms.values()), expected) < EXACT  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "blocks",
    [
        *((Block, Highway), (Recurrent, Squeezed), (Mixed, Hyper), (Orthogonal, Delta), (Weighed, Replaced)),
        *((Clipped, Kept), (Alive, Filled), (Chosen, Times), (Normed, RootMean), (OfBranch, OfBranch)),
    ],
)
@torch.no_grad()
def test_terms_pass_gated_skips_with_the_gates_of_the_stream(blocks: tuple[type[Block], ...]) -> None:
    net, inputs, graph = traced(*blocks)
    assert [join.kind for join in graph.stream.joins] == ["gated", "gated"]
    assert all(join.depth for join in graph.joins if join.kind != "gated")
    sites = [site.alias for site in graph.outline.sites()[:-1]]
    assert [alias.partition(".")[0] for alias in sites] == ["L0", "L1"]
    expected = net(**inputs)
    check_laws(graph, inputs, expected)
    points = [net.start(**inputs)]
    for each in net.blocks:
        points.append(each(points[-1]))
    terms = jg.compile(jg.expand(graph, order=0, weights="unit"))(**inputs).terms
    assert len(terms) == 4
    for way in product((False, True), repeat=2):
        value = points[0]
        for each, h, taken in zip(net.blocks, points, way, strict=False):
            assert isinstance(each, Block)
            value = each.branch(value) if taken else each.skip(each.gates(h), value)
        passed = "".join(f" > {site}^0" for site, taken in zip(sites, way, strict=True) if taken)
        assert distance(terms[jg.Path.parse(f"embed{passed} > logits^0")], net.end(value)) < EXACT


@torch.no_grad()
def test_a_gated_skip_is_shown_as_one() -> None:
    net, inputs, graph = traced(Block, Block)
    assert "+ L0.mlp  blocks.0.f  gated" in repr(graph)
    expansion = jg.expand(graph, order=0)
    assert str(formula(expansion, "embed > L1.mlp^0 > logits^0")).count("G[L0.mlp](embed)") == 1
    kinds = {facts["kind"] for _, _, facts in jg.path_graph(expansion).edges(data=True) if facts["role"] == "skip"}
    assert kinds == {"gated"}
    # The gates are read at the point before each join.
    module = jg.compile(jg.expand(graph, recipe="path"), ["embed > L0.mlp > logits"])
    assert module.plan.last == 1
    # Its weights are told apart from the branch's.
    changes = {change.site: change.parameters for change in site_changes(graph, graph, dict)()}
    assert changes["skip of L1.mlp"] == WIDTH * (WIDTH + 1)
    # A patch before a gate changes the gate.
    forward = graph.run(**inputs)
    forward.patch("L0.mlp", torch.zeros_like(forward.component("L0.mlp")))
    first, second = net.blocks
    assert isinstance(first, Block)
    h = net.start(**inputs)
    assert distance(forward.output, net.end(second(first.skip(first.gates(h), h)))) < EXACT


class Fused(Block):
    """A gate that says how a branch is mixed with what another branch made: no join of the two."""

    def forward(self, h: Tensor) -> Tensor:
        one, two = self.f(h), torch.tanh(self.w[1](h))
        gate = torch.sigmoid(self.w[2](one))
        return h + gate * one + (1 - gate) * two


class Apart(Fused):
    """What one branch has along another one is no part of the stream."""

    def forward(self, h: Tensor) -> Tensor:
        one, two = self.f(h), torch.tanh(self.w[1](h))
        return h + (one - along(one, two) * two)


def test_a_gate_alone_makes_no_join() -> None:
    *_, graph = traced(Fused, Apart)
    assert [join.kind for join in graph.joins] == ["identity", "identity"]
    assert [len(join.branches) for join in graph.joins] == [2, 2]


class Again(Fused):
    """What a gate of the stream adds of an earlier point is added to the stream."""

    def forward(self, h: Tensor) -> Tensor:
        now = h + self.f(h)
        return now + torch.sigmoid(self.w[0](now)) * h


def test_a_gate_on_an_earlier_point_is_no_skip() -> None:
    *_, graph = traced(Again, Again)
    assert [(join.kind, join.depth) for join in graph.joins] == [("identity", 0)] * 4


class Solved(nn.Module):
    """Attention by a delta rule, a row of whose triangular matrix is corrected by the rows above: a row has as many
    numbers as the norm of the keys, or as the keys, where its index happens to be the length, or that times the width.
    """

    def __init__(self, rows: int, row: int) -> None:
        super().__init__()
        self.key, self.out = nn.Linear(WIDTH, 4), nn.Linear(4, WIDTH)
        self.rows, self.row = rows, row

    def forward(self, h: Tensor) -> Tensor:
        key = self.key(h)
        key = key * torch.rsqrt((key * key).sum(-1, keepdim=True) + 1e-6)
        key = F.pad(key, (0, 0, 0, self.rows - key.shape[1]))
        scores = -(key @ key.mT).tril(-1)
        above = scores[:, : self.row, : self.row].clone()
        row = scores[:, self.row, : self.row].clone()
        scores = scores.clone()
        scores[:, self.row, : self.row] = row + (row[..., None] * above).sum(-2)
        return h + self.out(((scores + torch.eye(self.rows)) @ key)[:, : h.shape[1]])


@pytest.mark.parametrize(("rows", "row"), [(8, 5), (24, 20), (8, 4)])
def test_a_piece_of_a_value_is_no_gated_skip(rows: int, row: int) -> None:
    """Though it has as many numbers, or others."""
    graph = jg.trace(Solved(rows, row).eval(), torch.randn(2, 5, WIDTH), dynamic="batch")
    assert [join.kind for join in graph.joins] == ["identity"]


class Channels(nn.Module):
    """A norm over groups, or channels, or numbers of each position, beside a convolution."""

    def __init__(self, norm: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.start, self.end = nn.Conv1d(6, 6, 1), nn.Conv1d(6, 6, 1)
        self.convs = nn.ModuleList(nn.Conv1d(6, 6, 3, padding=1) for _ in range(2))
        self.which = norm
        self.weight, self.bias = nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.randn(6))
        self.to(dtype)

    def norm(self, h: Tensor) -> Tensor:
        if self.which == "group":
            return F.group_norm(h, 3, self.weight, self.bias)
        if self.which == "instance":
            return F.instance_norm(h, weight=self.weight, bias=self.bias)
        return F.layer_norm(h.mT, (6,), self.weight, self.bias).mT

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x)
        for conv in self.convs:
            h = self.norm(h) + conv(torch.tanh(h))
        return self.end(h)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("norm", ["group", "instance", "layer"])
@torch.no_grad()
def test_a_norm_on_a_shortcut_is_a_gated_skip_however_it_is_spelled(norm: str, dtype: torch.dtype) -> None:
    net, x = Channels(norm, dtype).eval(), torch.randn(2, 6, 5, dtype=dtype)
    graph = jg.trace(net, x)
    assert [(join.kind, join.depth) for join in graph.joins] == [("gated", 0)] * 2
    forward = graph.run(x)
    close = 1e-12 if dtype is torch.float64 else 0.02
    assert distance(forward.output, net(x)) < close
    # The skip of another value has the deviation of the stream: it is affine in that.
    skip, h = graph.joins[1].skip, forward.point(1)
    assert skip is not None
    zero, one, two = (forward.through(skip, times * h) for times in range(3))
    assert distance(two - one, one - zero) < close
    whole = forward.through(graph.joins[1].branches[0].region, h) + one
    assert distance(whole, forward.point(2)) < close or graph.joins[1].injections
    if dtype is torch.float64:
        frozen = jg.compile(jg.expand(graph, rules={"*": jg.Freeze()}))(x)
        assert distance(sum(frozen.terms.values()), net(x)) < EXACT  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["group", "layer"])
@torch.no_grad()
def test_a_norm_on_a_shortcut_of_a_program_in_core_operators(norm: str) -> None:
    net, x = Channels(norm, torch.float64).eval(), torch.randn(2, 6, 5, dtype=torch.float64)
    graph = jg.trace(torch.export.export(net, (x,)).run_decompositions(), x)
    assert [(join.kind, join.depth) for join in graph.joins] == [("gated", 0)] * 2
    assert distance(graph.run(x).output, net(x)) < 1e-12


class Twice(Normed):
    """A norm of a norm."""

    def forward(self, h: Tensor) -> Tensor:
        return self.norm(F.rms_norm(h, (WIDTH,))) + self.branch(h)


def test_a_norm_of_a_norm_on_a_shortcut() -> None:
    *_, graph = traced(Twice, Twice)
    assert [(join.kind, join.depth) for join in graph.joins] == [("gated", 0)] * 2


class Both(Block):
    """A layer that reads the norm on the shortcut, and what that is of."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.norm = way, nn.LayerNorm(WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in "qkv")

    def forward(self, h: Tensor) -> Tensor:
        n = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6) if "by hand" in self.way else self.norm(h)
        if "product" in self.way:
            return n + torch.tanh(self.q(n)) * self.v(h)
        q, k, v = (n, h, h) if "keys" in self.way else (h, n, n)
        return n + torch.softmax(self.q(q) @ self.k(k).mT, -1) @ self.v(v)


@pytest.mark.parametrize("way", ["keys", "queries", "product", "keys, by hand", "queries, by hand", "product, by hand"])
@torch.no_grad()
def test_a_layer_over_a_norm_and_its_stream_is_one_of_the_stream(way: str) -> None:
    torch.manual_seed(0)
    net, x = Net(Both(way), Both(way)).eval().double(), torch.randint(0, 9, (2, 4))
    graph = jg.trace(net, x)
    assert [(join.kind, join.depth) for join in graph.joins] == [("gated", 0)] * 2
    # Nothing of the stream is held in the branch: at another point it is what the code makes of that.
    forward = graph.run(x)
    block, h = net.blocks[1], 3 * forward.point(1)
    skip, branch = graph.joins[1].skip, graph.joins[1].branches[0]
    assert skip is not None
    norm = block.norm(h) if "hand" not in way else h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)
    assert distance(forward.through(branch.region, h), block(h) - norm) < 1e-12


class Shortcuts(Block):
    """Norms beside a layer that is made of none of what they read, or of what they give, or beside each other."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.norm, self.other = way, nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        if self.way == "after":
            return h + self.norm(self.f(h))
        if self.way == "point":
            n = self.norm(h)
            return n + self.f(n)
        return h + self.f(self.norm(h) + self.other(h))


@pytest.mark.parametrize("way", ["after", "point", "both"])
def test_other_norms_stay_whole(way: str) -> None:
    net = Net(Shortcuts(way), Shortcuts(way)).eval()
    graph = jg.trace(net, torch.randint(0, 9, (2, 4)))
    assert [(join.kind, join.depth) for join in graph.joins] == [("identity", 0)] * 2
    operators = [str(node.target) for node in graph.structure.traced.graph.nodes]
    assert not any("rsqrt" in name for name in operators)


# No skip


class Short(nn.Module):
    """A shortcut with a norm, as in the first block of each stage of BiT."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.short = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))

    def forward(self, h: Tensor) -> Tensor:
        return self.short(h) + self.f(h)


class Three(Short):
    """And a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.third, self.constant = PreNorm(WIDTH).mlp, nn.Parameter(torch.randn(4, WIDTH))

    def forward(self, h: Tensor) -> Tensor:
        return self.constant + (super().forward(h) + self.third(h))


@pytest.mark.parametrize("blocks", [(Short, Short), (Block, Short, Block), (Three, Block)])
@torch.no_grad()
def test_branches_are_added_without_a_skip(blocks: tuple[type[nn.Module], ...]) -> None:
    net, inputs, graph = traced(*blocks)
    kinds = ["none" if issubclass(block, Short) else "gated" for block in blocks]
    assert [join.kind for join in graph.joins] == kinds
    check_laws(graph, inputs, net(**inputs))
    assert "no skip" in repr(graph)
    expansion = jg.expand(graph, order=0, weights="unit")
    text = "embed > " + " > ".join(f"L{number}.mlp^0" for number in range(len(blocks))) + " > logits^0"
    value = net.start(**inputs)
    for number in range(len(blocks)):
        value = net.get_submodule(graph.branches[f"L{number}.mlp"].name)(value)
    assert distance(jg.compile(expansion, [text])(**inputs).terms[jg.Path.parse(text)], net.end(value)) < EXACT
    # No path leaves a join without a skip out, and the message says what it may pass.
    at = kinds.index("none")
    without = text.replace(f"L{at}.mlp^0 > ", "")
    with pytest.raises(jg.SelectionError, match=rf"it has to pass L{at}\.mlp"):
        jg.compile(expansion, [jg.Path.parse(without)])
    # Between two points with such a join nothing is carried beside the jets.
    found = jg.jet_expand(graph, inputs["x"], at=f"h{at + 1}", centres=[f"h{at}"], order=0)
    assert list(found.terms) == [f"h{at} > {graph.stream.joins[at].alias}^0"]
    assert distance(sum(found.terms.values()), net.blocks[at](graph.run(**inputs).point(at))) < EXACT  # type: ignore[arg-type]
    # A lens leaves the join out, as it does a nonlinear map.
    assert jg.compile(jg.expand(graph, recipe="lens"))(**inputs).remainder.isfinite().all()


def test_inside_a_branch_a_sum_of_branches_is_its_code() -> None:
    class Outer(Short):
        def forward(self, h: Tensor) -> Tensor:
            return h + torch.tanh(self.short(h) + self.f(h))

    *_, graph = traced(Outer, Outer)
    assert [join.kind for join in graph.joins] == ["identity", "identity"]


class GatedByCell(nn.Module):
    """Attention whose output a recurrent cell takes in, over rows of all positions (GTrXL)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Linear(3, 8), nn.Linear(8, 24)
        self.cells = nn.ModuleList(nn.GRUCell(8, 8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for cell in self.cells:
            q, k, v = self.qkv(h).chunk(3, -1)
            h = cell(((q @ k.mT).softmax(-1) @ v).flatten(0, 1), h.flatten(0, 1)).reshape_as(h)
        return h


def test_a_branch_is_called_after_what_lies_before_a_change_of_layout() -> None:
    graph = jg.trace(GatedByCell().eval(), torch.randn(2, 5, 3), dynamic=False)
    # What goes into a sigmoid, of the stream and a branch, is code of the gate.
    assert [join.kind for join in graph.joins] == ["gated", "gated"]
    assert [branch.kind for join in graph.stream.joins for branch in join.branches] == ["attn", "attn"]


@torch.no_grad()
def test_the_first_layer_reads_the_point_that_rows_are_laid_out_from() -> None:
    """What the branch makes of that is none of the rows, and would be held."""
    torch.manual_seed(0)
    net, x = GatedByCell().eval().double(), torch.randn(2, 5, 3, dtype=torch.float64)
    graph = jg.trace(net, x, dynamic=False)
    assert not any(branch.region.context for join in graph.stream.joins for branch in join.branches)
    given = subject(graph, {"x": x}, {"x": torch.randn(2, 5, 3, dtype=torch.float64)}, torch.float64)
    assert check_values(given) >= 6
    check_affine(given)
    # The branch at another value is z ⊙ n of that, by the cell's own weights.
    (join, _), h = graph.stream.joins, torch.randn(2, 5, 8, dtype=torch.float64)
    q, k, v = net.qkv(h).chunk(3, -1)
    cell, y = net.cells[0], ((q @ k.mT).softmax(-1) @ v).flatten(0, 1)
    assert isinstance(cell, nn.GRUCell)
    rows = h.flatten(0, 1)
    r, z, n = F.linear(y, cell.weight_ih, cell.bias_ih).chunk(3, -1)
    r2, z2, n2 = F.linear(rows, cell.weight_hh, cell.bias_hh).chunk(3, -1)
    new = (1 - torch.sigmoid(z + z2)) * torch.tanh(n + torch.sigmoid(r + r2) * n2)
    value = graph.run(x).through(join.branches[0].region, h)
    assert distance(value.reshape_as(new), new) < EXACT


class Pooled(nn.Module):
    """Two layers, and a head over the mean and the deviation of all places, weighed by attention or by gates."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))
        self.weights = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in self.layers:
            h = h + layer(h)
        scores = self.weights(h)
        if self.way == "softmax":
            weights = torch.softmax(scores, 1)
        elif self.way == "one for all":
            weights = torch.softmax(scores.mean(-1, keepdim=True), 1)
        else:
            weights = torch.sigmoid(scores) / torch.sigmoid(scores).sum(1, keepdim=True)
        mean = (weights * h).sum(1)
        deviation = (weights * (h - mean.unsqueeze(1)).square()).sum(1).clamp(1e-6).sqrt()
        return self.head(torch.cat([mean, deviation], -1))


@pytest.mark.parametrize("way", ["softmax", "one for all", "gates"])
@torch.no_grad()
def test_what_is_centred_by_a_weighed_mean_is_no_join(way: str) -> None:
    torch.manual_seed(0)
    net, x = Pooled(way).eval().double(), torch.randn(2, 5, 4, dtype=torch.float64)
    graph = jg.trace(net, x)
    assert [(join.kind, join.depth) for join in graph.joins] == [("identity", 0)] * 2
    assert len(graph.stream.joins) == 2
    assert check_values(subject(graph, {"x": x}, {"x": x.flip(0)}, torch.float64)) >= 2
