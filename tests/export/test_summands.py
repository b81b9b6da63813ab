"""The leaves of a tree of adds: what is opened, and what is one summand."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

import jetgraph as jg
from jetgraph.export.summands import is_add, is_whole_sum, summands

aten = torch.ops.aten


def node(graph: fx.Graph, op: object, *args: object, dtype: torch.dtype = torch.float32) -> fx.Node:
    """A node of three numbers, or of whole numbers or another precision."""
    made = graph.placeholder(str(op)) if isinstance(op, str) else graph.call_function(op, args)  # type: ignore[arg-type]
    made.meta = {"dtype": dtype, "shape": (3,)}
    return made


def test_a_tree_of_adds_is_opened_down_to_what_others_read_too() -> None:
    graph = fx.Graph()
    x, y, z = (node(graph, name) for name in "xyz")
    alone = node(graph, aten.add.Tensor, x, y)
    shared = node(graph, aten.add.Tensor, y, z)
    inner = node(graph, aten.add.Tensor, alone, shared)
    total = node(graph, aten.add.Tensor, inner, x)
    node(graph, aten.neg.default, shared)
    assert list(summands(total)) == [x, y, shared, x]
    assert [one for one in (alone, shared, inner, total) if is_whole_sum(one)] == [shared, total]
    assert not list(summands(x))


def test_an_add_of_two_precisions_or_of_a_number_is_one_summand() -> None:
    graph = fx.Graph()
    x, half = node(graph, "x"), node(graph, "half", dtype=torch.bfloat16)
    whole = node(graph, "whole", dtype=torch.int64)
    cast = node(graph, aten.add.Tensor, x, half)
    shifted = node(graph, aten.add.Tensor, x, 1.0)
    counted = node(graph, aten.add.Tensor, whole, whole, dtype=torch.int64)
    total = node(graph, aten.add.Tensor, cast, shifted)
    assert [one for one in (x, cast, shifted, counted) if is_add(one)] == []
    assert list(summands(total)) == [cast, shifted]


class Mixed(nn.Module):
    """A stream in single precision, in some rows of which a layer in another one adds to itself and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(4, 4, dtype=torch.bfloat16)
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        return torch.where(rows[:, None], x + self.added(x), x)

    def added(self, x: Tensor) -> Tensor:
        return self.bias + torch.tanh(self.mlp(x.bfloat16()))


def test_a_layer_in_another_precision_adds_to_the_rows_that_are_chosen() -> None:
    torch.manual_seed(0)
    net, x, rows = Mixed().eval(), torch.randn(3, 4), torch.tensor([True, False, True])
    graph = jg.trace(net, x, rows, dynamic=False)
    (join,) = graph.joins
    assert join.kind == "identity"
    (branch,) = join.branches
    with torch.no_grad():
        forward, other = graph.run(x, rows), 3 * x.flip(0)
        assert torch.equal(forward.branch(branch, other), torch.where(rows[:, None], net.added(other), 0))
