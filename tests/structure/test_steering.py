"""What only says how other values are mixed: scores, written out or not, and what gates are made of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from jetgraph.export.program import export_program
from jetgraph.structure.operators import SOFTMAX, aten, packet_of
from jetgraph.structure.steering import GATES, is_weighed_up, only_steers

X = torch.linspace(-1, 1, 12).view(3, 4)
WEIGHT = torch.linspace(-1, 1, 16).view(4, 4)


class Function(torch.nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _sum(function: Callable[[Tensor], Tensor]) -> fx.Node:
    """The first sum in a function."""
    graph = export_program(Function(function).eval(), (X,)).program.graph
    return next(node for node in graph.nodes if packet_of(node) is aten.add)


def _written_out(x: Tensor) -> Tensor:
    scores = (x + 1).exp()
    return scores / scores.sum(-1, keepdim=True)


STEERING: dict[str, Callable[[Tensor], Tensor]] = {
    "scores": lambda x: torch.softmax(x + 1, -1),
    "masked scores": lambda x: torch.softmax(((x + 1) / 2).masked_fill(x > 0, -1e9), -1),
    "scores in another order": lambda x: torch.softmax((x + 1).transpose(0, 1), -1),
    "a softmax that is written out": _written_out,
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "what a layer reads": lambda x: torch.softmax((x + 1) @ WEIGHT, -1),
    "an exponential": lambda x: (x + 1).exp() * 2,
    "a gate": lambda x: torch.sigmoid(x + 1) * x,
}


@pytest.mark.parametrize("name", STEERING)
def test_scores_steer(name: str) -> None:
    assert only_steers(_sum(STEERING[name]))


@pytest.mark.parametrize("name", ["what a layer reads", "an exponential", "a gate"])
def test_other_values_do_not(name: str) -> None:
    assert not only_steers(_sum(OTHERS[name]))


def test_what_is_read_twice_does_not() -> None:
    def twice(x: Tensor) -> Tensor:
        y = x + 1
        return torch.softmax(y, -1) * y.sin()

    assert not only_steers(_sum(twice))


def test_gates_are_told_from_scores() -> None:
    node = _sum(OTHERS["a gate"])
    assert only_steers(node, SOFTMAX | GATES)
    assert not only_steers(node)


def test_a_layer_whose_outputs_are_gates_weighs_what_it_reads() -> None:
    assert is_weighed_up(_sum(lambda x: torch.sigmoid(F.linear(x + 1, WEIGHT)) * x))
    assert is_weighed_up(_sum(lambda x: torch.sigmoid(F.linear(torch.cat([x + 1, x], 0), WEIGHT))))
    assert not is_weighed_up(_sum(lambda x: F.linear(x + 1, WEIGHT) * x))
    assert not is_weighed_up(_sum(lambda x: torch.sigmoid(x + 1) * x))
