"""Values that each layer of a stream is given are conditions, and no streams themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import jetgraph as jg
from jetgraph.structure.conditions import is_given, is_given_without_skip
from jetgraph.structure.dataflow import Dataflow, dataflow
from jetgraph.structure.joins import find_sums
from jetgraph.structure.lines import Found
from jetgraph.structure.regions import Join
from jetgraph.structure.sums import flattened, join_over
from jetgraph.tracing.trace import canonical
from tests.laws import check_values, subject


class Net(nn.Module):
    """Two layers over h, the first of which adds to it; what they are given is a sine, and `starts` says of what."""

    def __init__(self, run: Callable[[Net, Tensor, Tensor], Tensor], starts: str = "apart") -> None:
        super().__init__()
        self.run, self.starts = run, starts
        self.mlps, self.projections = (nn.ModuleList(nn.Linear(4, 4) for _ in range(2)) for _ in range(2))
        self.start, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        c = torch.sin(x if self.starts == "of one input" else c)
        h = self.start(c if self.starts == "with it" else x)
        return self.head(torch.tanh(self.run(self, h, c)))


def shifted(net: Net, h: Tensor, c: Tensor) -> Tensor:
    for mlp, projection in zip(net.mlps, net.projections, strict=True):
        h = h + torch.tanh(mlp(h)) + projection(c)
    return h


def read(net: Net, h: Tensor, c: Tensor) -> Tensor:
    for mlp, projection in zip(net.mlps, net.projections, strict=True):
        h = h + torch.tanh(mlp(h) + projection(c))
    return h


def scaled_last(net: Net, h: Tensor, c: Tensor) -> Tensor:
    h = h + torch.tanh(net.mlps[0](h))
    return h * torch.sigmoid(c) + torch.tanh(net.projections[0](c))


def scaled_beside_layers(net: Net, h: Tensor, c: Tensor) -> Tensor:
    """What is made of the condition has a join of its own."""
    h = h + torch.tanh(net.mlps[0](h))
    made = net.projections[0](c)
    return h * torch.sigmoid(c) + torch.tanh(made + torch.tanh(net.mlps[1](made)))


@pytest.mark.parametrize("run", [shifted, read])
def test_a_condition_enters_or_is_read_and_has_no_stream(run: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    net = Net(run).eval().double()
    inputs = {"x": torch.randn(2, 4, dtype=torch.float64), "c": torch.randn(2, 4, dtype=torch.float64)}
    graph = jg.trace(net, **inputs, dynamic=False)
    assert len(graph.streams) == 1
    assert [join.kind for join in graph.joins] == ["identity"] * 2
    assert graph.stream.encoder.exit.meta["module_path"] == "start"
    assert [len(join.injections) for join in graph.joins] == [int(run is shifted)] * 2
    others = {name: value.flip(0) for name, value in inputs.items()}
    assert check_values(subject(graph, inputs, others, torch.float64)) >= 6


def last_sum(run: Callable[..., Tensor], starts: str) -> tuple[Dataflow, fx.Node, fx.Node, Found]:
    """The flow of a net, its condition, the sum of the second layer, and the joins before that."""
    flow = dataflow(canonical(Net(run, starts).eval(), (torch.randn(2, 4), torch.randn(2, 4)), dynamic=False))
    (condition,) = (node for node in flow.nodes if node.target is torch.ops.aten.sin.default)
    *_, total = (node for node in flow.nodes if node.target is torch.ops.aten.add.Tensor)
    return flow, condition, total, {node: join for node, join in find_sums(flow).items() if node is not total}


def forked(flow: Dataflow, total: fx.Node, fork: fx.Node, *, skips: bool) -> Join:
    """The join over a sum that forks at the condition; its skip is the last of what is affine in that."""
    whole = flattened(flow, total, ())
    regions = [flow.region(fork, node) for node in whole.operands if flow.depends(node, fork)]
    skip = next(region for region in reversed(regions) if region.affine) if skips else None
    branches = [region for region in regions if region is not skip]
    return join_over(whole, "projection" if skips else "none", skip, fork, branches)


@pytest.mark.parametrize(("starts", "given"), [("apart", True), ("of one input", True), ("with it", False)])
def test_what_is_given_a_condition_starts_without_it(starts: str, given: bool) -> None:
    flow, condition, total, before = last_sum(shifted, starts)
    join = forked(flow, total, condition, skips=True)
    assert join.skip is not None
    assert len(join.branches) == 2
    assert is_given(flow, join, before) is given
    # Without the join before it, what is added is made of the condition alone, as far as can be followed.
    assert not is_given(flow, join, {})


@pytest.mark.parametrize(
    ("run", "starts", "given"),
    [(scaled_last, "apart", True), (scaled_last, "with it", False), (scaled_beside_layers, "apart", False)],
)
def test_the_last_layer_of_a_condition_needs_no_skip_of_it(
    run: Callable[..., Tensor], starts: str, given: bool
) -> None:
    flow, condition, total, before = last_sum(run, starts)
    assert len(before) == (2 if run is scaled_beside_layers else 1)
    assert is_given_without_skip(flow, forked(flow, total, condition, skips=False), before) is given
