"""From a state of two values to the next: layers add to it, or it is mixed, or one value is replaced by a map of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from jetgraph.structure.dataflow import Dataflow, dataflow
from jetgraph.structure.steps import Step, adding_step, is_mixed, mapping_step, mixing_step
from jetgraph.tracing.trace import canonical

Made = Callable[["Net", Tensor, Tensor], tuple[Tensor, ...]]


class Net(nn.Module):
    """Two values, a sine and a cosine, and what is made of them and read afterwards."""

    def __init__(self, made: Made) -> None:
        super().__init__()
        self.made = made
        self.layer, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.made(self, torch.sin(x), torch.cos(x)), -1)


def traced(made: Made) -> tuple[Dataflow, list[fx.Node], list[fx.Node]]:
    """The flow of such a net, its state, and what is read of that in the end."""
    flow = dataflow(canonical(Net(made).eval(), (torch.randn(2, 4),), dynamic=False))
    functions = (torch.ops.aten.sin.default, torch.ops.aten.cos.default)
    state = [node for node in flow.nodes if node.target in functions]
    (last,) = (node for node in flow.nodes if node.target is torch.ops.aten.cat.default)
    return flow, state, list(last.args[0])  # type: ignore[arg-type]


def told(step: Step | None) -> list[tuple[tuple[int, ...], int, int]] | None:
    """By value of the next state: whose images it has, and how many images and branches it is the sum of."""
    return None if step is None else [(each.homes, len(each.skip), len(each.branches)) for each in step.nexts]


@pytest.mark.parametrize(
    ("made", "adds", "mixes"),
    [
        (lambda net, a, b: (a + torch.tanh(net.layer(b)), b), [((0,), 1, 1), ((1,), 1, 0)], None),
        # What is made of both by a layer is added to one, and both go on in the order of the state.
        (lambda net, a, b: (b, 2 * a + torch.tanh(net.layer(a * b))), [((0,), 1, 1), ((1,), 1, 0)], None),
        (lambda net, a, b: (a + b, a - b), None, [((0, 1), 2, 0), ((0, 1), 2, 0)]),
        (lambda net, a, b: (a + net.layer(b), b), None, [((0, 1), 2, 0), ((1,), 1, 0)]),
        # Nothing is added or mixed, and a value that is made by layers alone has no image of the state.
        (lambda net, a, b: (a, b), None, None),
        (lambda net, a, b: (torch.tanh(net.layer(a)), b), None, None),
        # A product of layers of both is code of a branch.
        (lambda net, a, b: (a, b, net.layer(a) + net.other(b)), None, None),
    ],
)
def test_a_step_adds_or_mixes(made: Made, adds: object, mixes: object) -> None:
    flow, state, live = traced(made)
    adding, mixing = adding_step(flow, state, live[0], live), mixing_step(flow, state, live[0], live)
    assert (told(adding), told(mixing)) == (adds, mixes)
    for step in filter(None, (adding, mixing)):
        assert {*step.state} == {*live}


def test_a_step_carries_all_of_a_state_unless_a_walk_begins() -> None:
    flow, state, (total, _) = traced(lambda net, a, b: (a + torch.tanh(net.layer(b)), b))
    assert adding_step(flow, state, total, [total]) is None
    assert told(adding_step(flow, state, total, [total], all_carried=False)) == [((0,), 1, 1)]


def test_what_is_learned_between_a_state_and_its_image_mixes() -> None:
    flow, state, live = traced(lambda net, a, b: (a + net.layer(b), b))
    step = mixing_step(flow, state, live[0], live)
    assert step is not None
    assert is_mixed(flow, state, step)
    flow, state, live = traced(lambda net, a, b: (a + b, b))
    step = mixing_step(flow, state, live[0], live)
    assert step is not None
    assert not is_mixed(flow, state, step)


@pytest.mark.parametrize(
    ("made", "maps"),
    [
        (lambda net, a, b: (F.layer_norm(a, (4,)), b), True),
        (lambda net, a, b: (a, torch.tanh(b)), True),
        # What reads the other one too, a layer, and a mean of a value are none.
        (lambda net, a, b: (torch.tanh(a) * b, b), False),
        (lambda net, a, b: (net.layer(a), b), False),
        (lambda net, a, b: (a.mean(-1, keepdim=True), b), False),
    ],
)
def test_a_value_is_replaced_by_a_map_of_it(made: Made, maps: bool) -> None:
    flow, state, live = traced(made)
    (new,) = (node for node in live if node not in state)
    step = mapping_step(flow, state, new, live)
    assert (step is not None) is maps
    if step is not None:
        assert step.state == tuple(live)
