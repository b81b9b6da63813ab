"""Shapes without a forward pass."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import jetgraph as jg
from tests import zoo


class Nothing(TorchDispatchMode):
    """No operator is called."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} was run")


@pytest.mark.parametrize("name", ["gpt2", "unet"])
def test_shapes_are_those_of_the_values(name, traced):
    example = traced(zoo.case(name))
    inputs = example.case.inputs(*((3, 5) if name == "gpt2" else (3, 8)))
    forward = example.graph.run(**inputs)
    nodes = [node for node in example.graph.traced.graph.nodes if isinstance(node.meta.get("shape"), tuple)]
    with Nothing():
        shapes = {node: forward.shape(node) for node in nodes}
    with torch.no_grad():
        values = forward.values.of(nodes)
    assert len(nodes) > 20
    for node, shape in shapes.items():
        if isinstance(values[node], Tensor):
            assert tuple(values[node].shape) == shape, node.name
            assert forward.sizes.zeros(node).shape == shape


def test_a_size_that_depends_on_values():
    """A batch cut to its longest text: how long that is, is read off the value."""

    class Cut(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.layer = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 4)

        def forward(self, ids):
            h = self.embed(ids[:, : (ids != 0).sum(1).max()])
            return h + self.layer(h).tanh()

    torch.manual_seed(0)
    model, ids = Cut().eval(), torch.tensor([[3, 4, 5, 0, 0], [6, 7, 0, 0, 0]])
    module = jg.compile(jg.expand(jg.trace(model, ids), order=0, recipe="lens"))
    with torch.no_grad():
        for given in (ids, torch.tensor([[3, 4, 5, 1, 0], [6, 7, 0, 0, 0]])):
            assert torch.equal(module(given).output, model(given))
