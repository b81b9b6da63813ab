"""Flows against sums over all paths, listed; against autograd with gates detached by hand; and their conservation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.compilation.along import along
from jetgraph.compilation.components import Readout
from jetgraph.compilation.flows import Flows, flows
from tests.conftest import Example
from tests.structure import test_gated_joins as gated
from tests.structure import test_long_skips as skips
from tests.zoo import ROUTED, case


def one_example(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value[:1] if isinstance(value, Tensor) else value for name, value in inputs.items()}


def edges_of(found: Flows) -> dict[tuple[str, str], float]:
    """Flows by names, positions summed."""
    names = [one.alias for one in found.components for _ in one.positions] + ["target"] * found.targets
    total: dict[tuple[str, str], float] = defaultdict(float)
    for sender, receiver, value in zip(
        *(c.tolist() for c in (found.senders, found.receivers, found.values)), strict=True
    ):
        total[names[sender], names[receiver]] += value
    return total


def check_conservation(found: Flows, exact: float) -> None:
    """What enters is what is passed on, at every node; and all of it is there."""
    size = float(found.values.abs().max())
    inside = found.flow.shape[0] - found.targets
    enters, leaves = (
        torch.zeros_like(found.flow).index_add_(0, ends, found.values) for ends in (found.receivers, found.senders)
    )
    site = torch.tensor([one.passage is not None for one in found.components for _ in one.positions])
    assert float((enters - found.flow)[:inside][site].abs().max()) <= exact * size
    assert float((leaves - found.flow)[:inside].abs().max()) <= exact * size
    torch.testing.assert_close(enters[inside:], found.flow[inside:])
    source = torch.zeros_like(found.flow, dtype=torch.bool)
    source[:inside] = ~site
    torch.testing.assert_close(found.flow[source].sum(), found.flow[inside:].sum(), rtol=100 * exact, atol=exact * size)


def check_flows(graph: jg.ResidualGraph, inputs: dict[str, Any], exact: float, heads: bool = False) -> None:
    """Edges are the sums of all paths that take them; with positions and without."""
    expansion = jg.expand(graph, rules={"*": jg.Freeze()}, split="heads" if heads else None)
    inputs = one_example(inputs)
    with torch.no_grad():
        values = jg.compile(expansion)(**inputs)
        output = values.output
        place = None if output.dim() == 2 else output.shape[1] - 1
        weights = torch.linspace(-1, 2, output.shape[-1], dtype=torch.float64)
        read: Callable[[Tensor], float] = lambda term: float(  # noqa: E731
            ((term[0] if place is None else term[0, place]).double() * weights).sum()
        )
        paths: dict[tuple[str, str], float] = defaultdict(float)
        for path, term in values.terms.items():
            names = [hop.alias for hop in path.hops[:-1]] + ["target"]
            for pair in pairwise(names):
                paths[pair] += read(term)
        run = expansion.graph.run(**inputs)  # type: ignore[union-attr]
        size = max(map(abs, paths.values()))
        for positions in (False, True):
            found = flows(expansion, run, [Readout(place, weights)], positions=positions)
            assert found.left_out == 0
            edges = edges_of(found)
            for pair in paths.keys() | edges.keys():
                assert abs(paths.get(pair, 0.0) - edges.get(pair, 0.0)) < exact * size, (positions, pair)
            check_conservation(found, exact)
            assert abs(float(found.flow[-1]) - read(output)) < exact * size
            whole = along(found, torch.arange(len(found.values)))
            assert abs(float(whole[0]) - read(output)) < 10 * exact * size


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "opt_post_norm"])
def test_edges_are_sums_over_all_paths(name: str, heads: bool, traced: Callable[..., Example]) -> None:
    example = traced(case(name))
    check_flows(example.graph, example.inputs, 2e-5, heads)


@pytest.mark.parametrize("name", ["bart", "unet_additive", "phi", "scaled_skip", "convnext"])
def test_edges_of_other_streams(name: str, traced: Callable[..., Example]) -> None:
    example = traced(case(name))
    check_flows(example.graph, example.inputs, 2e-5)


def test_edges_of_a_mixture_of_experts(traced: Callable[..., Example]) -> None:
    example = traced(ROUTED[0])
    check_flows(example.graph, example.inputs, 2e-5)


@pytest.mark.parametrize("run", [skips.added_again, skips.concatenated, skips.weighted_history, skips.summed])
def test_edges_over_long_skips(run: Any) -> None:
    _, inputs, graph = skips.traced(run)
    net_inputs = {"x": inputs["x"][:1]}
    model = graph.traced.model
    assert model is not None
    traced_alone = jg.trace(model, **net_inputs, dynamic=False)
    check_flows(traced_alone, net_inputs, 1e-12)


class Merging(nn.Module):
    """Positions that are merged in pairs on the stream, and others that the skip itself moves along."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.merge, self.second = Mlp(6), nn.Linear(12, 6), Mlp(6)
        self.third, self.fourth, self.head = Mlp(6), Mlp(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x)
        x = self.merge(x.reshape(x.shape[0], -1, 12))
        x = x + self.second(x)
        x = x.roll(1, 1) + self.third(x)
        return self.head(x + self.fourth(x))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.read, self.write = nn.Linear(width, 8), nn.Linear(8, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.write(F.silu(self.read(x)))


def test_positions_that_silent_ways_mix() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 6, dtype=torch.float64)
    graph = jg.trace(Merging().double().eval(), x, dynamic=False)
    assert [join.kind for join in graph.joins] == ["identity", "identity", "projection", "identity"]
    check_flows(graph, {"x": x}, 1e-11)


@pytest.mark.parametrize("block", [gated.Highway, gated.Squeezed, gated.Mixed, gated.Three])
def test_edges_past_gated_skips_and_none(block: Any) -> None:
    """Gates on the stream itself, of all positions, between several streams; and branches that are added alone."""
    net, inputs, _ = gated.traced(block, block)
    alone = {"x": inputs["x"][:1]}
    check_flows(jg.trace(net, **alone, dynamic=False), alone, 1e-12)


# Positions, against autograd with everything detached by hand


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.end = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out, self.gate, self.up = nn.Linear(width, width), nn.Linear(width, 8), nn.Linear(width, 8)
        self.down = nn.Linear(8, width)

    def attn(self, h: Tensor, held: bool = False) -> Tensor:
        x = normed(self.norm, h, held)
        scores = (self.q(x) @ self.k(x).transpose(-1, -2)).tril()
        pattern = scores.masked_fill(scores == 0, -torch.inf).softmax(-1)
        return self.out((pattern.detach() if held else pattern) @ self.v(x))

    def mlp(self, h: Tensor, held: bool = False) -> Tensor:
        x = normed(self.end, h, held)
        gate = F.silu(self.gate(x))
        return self.down((gate.detach() if held else gate) * self.up(x))

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.attn(h)
        return h + self.mlp(h)


def normed(norm: nn.RMSNorm, h: Tensor, held: bool) -> Tensor:
    scale = (h.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    return h * (scale.detach() if held else scale) * norm.weight


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(6) for _ in range(2))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_positions_against_autograd_with_gates_detached() -> None:
    torch.manual_seed(0)
    net, x = Net().double().eval(), torch.randn(1, 4, 6, dtype=torch.float64)
    graph = jg.trace(net, x, dynamic=False)
    expansion = jg.expand(graph, rules={"*": jg.Freeze()})
    weights = torch.randn(5, dtype=torch.float64)
    with torch.no_grad():
        found = flows(expansion, graph.run(x), [Readout(2, weights)])
    check_conservation(found, 1e-12)
    # By hand: the stream with all that is held detached, each branch's value a leaf of its own.
    blocks: list[Any] = list(net.blocks)
    names = [f"L{i}.{kind}" for i in range(2) for kind in ("attn", "mlp")]
    functions = [function for block in blocks for function in (block.attn, block.mlp)]
    h, added, entered = x.clone().requires_grad_(), {"embed": x}, {}
    start, values = h, {}
    for name, function in zip(names, functions, strict=True):
        entered[name] = h
        values[name] = function(h, True)
        added[name] = torch.func.jvp(lambda z, f=function: f(z, True), (h.detach(),), (h.detach(),))[1]
        h = h + values[name]
    target = (net.head(h)[0, 2] * weights).sum()
    slopes = dict(
        zip([*names], torch.autograd.grad(target, [values[name] for name in names], retain_graph=True), strict=True)
    )
    (slopes["embed"],) = torch.autograd.grad(target, start, retain_graph=True)
    number = {
        (one.alias, position): one.first + at for one in found.components for at, position in enumerate(one.positions)
    }
    for name, slope in slopes.items():
        for at in range(4):
            # Held branches are affine: what enters by their constants is no flow of theirs.
            expected = float((slope[0, at] * added[name][0, at]).sum().detach())
            assert float(found.flow[number[name, at]]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    table = {
        (int(sender), int(receiver)): float(value)
        for sender, receiver, value in zip(found.senders, found.receivers, found.values, strict=True)
    }
    for place, (name, function) in enumerate(zip(names, functions, strict=True)):
        for j in range(4):
            entry = entered[name].detach().requires_grad_()
            seed = torch.zeros_like(x)
            seed[0, j] = slopes[name][0, j]
            (back,) = torch.autograd.grad(function(entry, True), entry, seed)
            for sender in ["embed", *names[:place]]:
                for i in range(4):
                    expected = float((back[0, i] * added[sender][0, i]).sum())
                    given = table.get((number[sender, i], number[name, j]), 0.0)
                    assert given == pytest.approx(expected, rel=1e-9, abs=1e-12), (sender, i, name, j)


def test_the_last_flows_are_ablations_by_hooks() -> None:
    """After the last branch everything is affine: taking it away takes off its flow, and that of its constant."""
    torch.manual_seed(1)
    net, x = Net().double().eval(), torch.randn(1, 4, 6, dtype=torch.float64)
    graph = jg.trace(net, x, dynamic=False)
    expansion = jg.expand(graph, rules={"*": jg.Freeze()})
    weights = torch.randn(5, dtype=torch.float64)
    with torch.no_grad():
        found = flows(expansion, graph.run(x), [Readout(3, weights)], positions=False)
        whole = (net(x)[0, 3] * weights).sum()
        last: Any = net.blocks[1]
        handle = last.down.register_forward_hook(lambda module, given, value: torch.zeros_like(value))
        without = (net(x)[0, 3] * weights).sum()
        handle.remove()
    chosen = [
        one
        for one in found.components
        if one.alias == "L1.mlp" or (one.entry and one.entry.site and one.entry.site.alias == "L1.mlp")
    ]
    assert len(chosen) == 2
    torch.testing.assert_close(sum(found.flow[one.first] for one in chosen), whole - without)


def test_a_chain_of_edges_is_a_path(traced: Callable[..., Example]) -> None:
    """What flows along one chain is the term of that path; positions summed, all such chains are."""
    example = traced(case("gpt2"))
    inputs = one_example(example.inputs)
    expansion = jg.expand(example.graph, rules={"*": jg.Freeze()})
    with torch.no_grad():
        path = "embed > L0.mlp > L1.attn > logits"
        term = jg.compile(expansion, path)(**inputs).terms[path][0, -1].double()
        weights = torch.linspace(-1, 1, len(term), dtype=torch.float64)
        found = flows(expansion, example.graph.run(**inputs), [Readout(example.output.shape[1] - 1, weights)])
    names = [one.alias for one in found.components for _ in one.positions] + ["target"]
    pairs = {("embed", "L0.mlp"), ("L0.mlp", "L1.attn"), ("L1.attn", "target")}
    chosen = [
        edge
        for edge, (sender, receiver) in enumerate(zip(found.senders.tolist(), found.receivers.tolist(), strict=True))
        if (names[sender], names[receiver]) in pairs
    ]
    assert float(along(found, torch.tensor(chosen))[0]) == pytest.approx(float((term * weights).sum()), rel=1e-4)
    assert float(along(found, torch.tensor([], dtype=torch.long))[0]) == 0


def test_memory_bounds_edges_and_batches(traced: Callable[..., Example]) -> None:
    example = traced(case("gpt2"))
    inputs = one_example(example.inputs)
    expansion = jg.expand(example.graph, rules={"*": jg.Freeze()})
    readouts = [Readout(3, torch.ones(example.output.shape[-1]).double().cumsum(0))]
    run = example.graph.run(**inputs)
    full, few = (flows(expansion, run, readouts, memory=memory) for memory in (2**28, 4000))
    assert few.left_out == len(full.values) - len(few.values) > 0
    assert len(few.values) == 4000 // 64
    torch.testing.assert_close(few.flow, full.flow)
    torch.testing.assert_close(few.influence, full.influence)
    torch.testing.assert_close(few.influences, full.influences[: len(few.influences)])
    with pytest.raises(jg.BudgetError, match="64 times the memory") as refused:
        flows(expansion, run, readouts, memory=10)
    fits = int(str(refused.value).partition("take memory=")[2].split()[0])
    assert len(flows(expansion, run, readouts, memory=fits).components) == len(full.components)
    with pytest.raises(jg.BudgetError, match=f"take memory={fits} "):
        flows(expansion, run, readouts, memory=fits - 1)
    with pytest.raises(jg.InputError, match="one prompt at a time"):
        flows(expansion, example.graph.run(**example.inputs), readouts)
