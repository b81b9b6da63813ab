"""The dataflow of small graphs against an enumeration of every way through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, fx, nn

import jetgraph as jg
from jetgraph.structure.dataflow import Dataflow, dataflow
from jetgraph.structure.images import affine_history, affine_past, held_image
from jetgraph.structure.operators import is_float_tensor


class Net(nn.Module):
    """Two linear layers, and code over them."""

    def __init__(self, code: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.code = code

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


def blocks(net: Net, x: Tensor) -> Tensor:
    h = x + net.one(x).relu()
    return net.two(h + net.two(h.tanh()) * h)


def side_by_side(net: Net, x: Tensor) -> Tensor:
    a, b = net.one(x), net.two(x)
    return torch.cat([a * b, (a + b).relu()], -1)


def selected(net: Net, x: Tensor) -> Tensor:
    best = net.one(x).argmax(-1, keepdim=True)
    return x + net.two(x).gather(-1, best)


def flow_of(code: Callable[[Net, Tensor], Tensor]) -> Dataflow:
    torch.manual_seed(0)
    return dataflow(jg.trace(Net(code).eval(), torch.randn(2, 3, 4), dynamic=False).traced)


def ways(flow: Dataflow, node: fx.Node) -> Iterator[tuple[fx.Node, ...]]:
    """Every way from the input to a node."""
    if not flow.parents[node]:
        yield (node,)
    for parent in flow.parents[node]:
        for way in ways(flow, parent):
            yield (*way, node)


@pytest.mark.parametrize("code", [blocks, side_by_side, selected])
def test_what_lies_above_and_between(code: Callable[[Net, Tensor], Tensor]) -> None:
    flow = flow_of(code)
    inside = [node for node in flow.nodes if node in flow]
    assert len(inside) > 5
    assert not any(node in flow for node in flow.nodes if node.op == "get_attr")
    for node in inside:
        found = list(ways(flow, node))
        above = {other for way in found for other in way}
        shared = set(inside).intersection(*found)
        common = [other for other in shared - {node} if is_float_tensor(other)]
        assert flow.bottleneck(node) is max(common, key=flow.positions.__getitem__, default=None)
        for other in inside:
            assert flow.depends(node, other) == (other in above)
            if is_float_tensor(other):
                assert flow.dominates(other, node) == (other in shared)
            if other in above and other is not node:
                passed = set(inside).intersection(*(way[way.index(other) :] for way in found if other in way))
                nearest = [step for step in passed - {node} if is_float_tensor(step)]
                assert flow.bottleneck(node, other) is max(nearest, key=flow.positions.__getitem__, default=None)
            if other in above:
                through = {step for way in found if other in way for step in way[way.index(other) + 1 :]}
                assert flow.between(other, node) == flow.ordered(through)


@pytest.mark.parametrize(
    ("code", "kinds"),
    [
        (lambda net, x: x[:, :].transpose(0, 1).contiguous(), {"identity"}),
        (lambda net, x: -x / 3, {"identity", "scaled"}),
        (lambda net, x: net.one(x * 2), {"identity", "projection"}),
        (lambda net, x: net.one(x).relu(), {"identity"}),
        (lambda net, x: x.gather(-1, x.argsort(-1)), {"identity"}),
    ],
    ids=["layout", "multiples", "projection", "nonlinear", "steered by itself"],
)
def test_of_what_a_value_is_an_affine_image(code: Callable[[Net, Tensor], Tensor], kinds: set[str]) -> None:
    flow = flow_of(code)
    output = flow.traced.output
    history = dict(affine_history(flow, output))
    assert next(iter(history.items())) == (output, "identity")
    assert set(history.values()) == kinds
    (source,) = (node for node in flow.nodes if node in flow and not flow.parents[node])
    assert (source in history) == (flow.region(source, output).affine)


def test_a_sum_of_images_is_one() -> None:
    flow = flow_of(lambda net, x: 3 * x + 0.5 * (x + 0.1 * x))
    (source,) = (node for node in flow.nodes if node in flow and not flow.parents[node])
    output = flow.traced.output
    assert source not in dict(affine_history(flow, output))
    assert dict(affine_past(flow, output))[source] == "scaled"


def test_a_sum_of_sums_is_looked_at_once() -> None:
    """Over 60 sums of a value and its double there are 2⁶⁰ ways; a dense net has as many."""

    def doubled(net: Net, x: Tensor) -> Tensor:
        h = net.one(x)
        for _ in range(60):
            h = h * x + h
        return h

    flow = flow_of(doubled)
    (linear,) = (node for node in flow.nodes if node.target is torch.ops.aten.linear.default)
    held = held_image(flow, flow.traced.output, (linear,))
    assert held is not None
    assert [node.op for node in held] == ["placeholder"]
