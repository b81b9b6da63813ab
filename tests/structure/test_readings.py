"""What an operand reads of the points of a line: of one alone, as a function or an image, or of several by factors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from jetgraph.structure.dataflow import Dataflow, dataflow
from jetgraph.structure.readings import behind, read_alone, read_each, reading, weighing
from jetgraph.structure.sums import bare, flattened
from jetgraph.tracing.trace import canonical


class Net(nn.Module):
    """Two points of a line, h and the one after it, and what is made of them; `points` are where their sines are."""

    def __init__(self, made: Callable[[Net, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.made = made
        self.mlp, self.other, self.gate = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first = torch.sin(x)
        second = torch.sin(first + torch.tanh(self.mlp(first)))
        return self.made(self, first, second)


def traced(made: Callable[[Net, Tensor, Tensor], Tensor]) -> tuple[Dataflow, list[fx.Node], fx.Node]:
    """The flow of such a net, its points, and what it makes of them."""
    program = canonical(Net(made).eval(), (torch.randn(2, 4),), dynamic=False)
    flow = dataflow(program)
    points = [node for node in flow.nodes if node.target is torch.ops.aten.sin.default]
    return flow, points, program.output


FACTOR = "sigmoid"


@pytest.mark.parametrize(
    ("made", "entry", "affine", "held"),
    [
        (lambda net, first, second: net.other(second), 1, True, []),
        (lambda net, first, second: torch.tanh(net.other(first)), 0, False, []),
        # What both are made into is a factor; the one that it multiplies is read.
        (lambda net, first, second: first * torch.sigmoid(net.gate(second)[:, :1]), 0, True, [FACTOR]),
        (lambda net, first, second: second * torch.sigmoid(net.gate(first)[:, :1]), 1, True, [FACTOR]),
        # Of two images of one size either could be the factor.
        (lambda net, first, second: net.other(first) * net.gate(second), None, None, None),
        # A layer of both reads neither alone.
        (lambda net, first, second: torch.tanh(net.other(first) + net.gate(second)), None, None, None),
    ],
)
def test_an_operand_is_a_function_of_one_point_or_an_image_with_factors_held(
    made: Callable[[Net, Tensor, Tensor], Tensor], entry: int | None, affine: bool | None, held: list[str] | None
) -> None:
    flow, points, value = traced(made)
    region = read_alone(flow, value, points)
    if entry is None:
        assert region is None
        return
    assert region is not None
    assert (region.entry, region.exit, region.affine) == (points[entry], value, affine)
    assert [node.target.__name__.partition(".")[0] for node in region.held] == held  # type: ignore[union-attr]
    # Without its factors held it reads both, unless there are none.
    assert (reading(flow, value, points) is None) is bool(held)


def test_beside_weights_a_point_is_read_by_its_own_weight_too() -> None:
    flow, points, total = traced(lambda net, first, second: weighed(net.gate(first), second, first))
    one, other = flattened(flow, total, ()).operands
    own = read_each(flow, [one], points)[one]
    assert (own.entry, own.affine, own.held) == (points[0], False, ())
    for read in (read_each(flow, [one], points, weighed=True), read_each(flow, [one, other], points)):
        assert read[one].entry is points[0]
        assert read[one].affine
        assert len(read[one].held) == 1
    by_weight = weighing(flow, other, points)
    assert by_weight is not None
    assert (by_weight.entry, by_weight.affine) == (points[1], True)
    assert weighing(flow, one, points[1:]) is None


def weighed(weights: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return second * torch.sigmoid(weights[:, :1]) + first * torch.sigmoid(weights[:, 1:2])


@pytest.mark.parametrize(
    ("made", "kind", "branches", "injections"),
    [
        (lambda net, first, second: second + torch.tanh(net.other(first)), "identity", [0], 0),
        (lambda net, first, second: net.gate(second) + first, "projection", [0], 0),
        (lambda net, first, second: torch.tanh(net.gate(second)) + first, "none", [1, 0], 0),
        (lambda net, first, second: weighed(net.gate(second), first, second), "gated", [0], 0),
        # What is made of both by a layer reads neither, and comes from outside.
        (lambda net, first, second: second + torch.tanh(net.other(first) + net.gate(second)), "identity", [], 1),
    ],
)
def test_a_sum_forks_at_the_last_point_that_it_reads(
    made: Callable[[Net, Tensor, Tensor], Tensor], kind: str, branches: list[int], injections: int
) -> None:
    flow, points, total = traced(made)
    join = behind(flow, bare(flattened(flow, total, ())), points)
    assert (join.kind, join.fork, join.node) == (kind, points[1], total)
    assert [points.index(branch.region.entry) for branch in join.branches] == branches
    assert len(join.injections) == injections
    assert (join.skip is None) is (kind == "none")
    assert bool(join.gates) is (kind == "gated")
