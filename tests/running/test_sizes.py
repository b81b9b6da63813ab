"""Shapes without a forward pass."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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
