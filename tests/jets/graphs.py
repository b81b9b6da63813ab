"""Small functions as canonical graphs, ready to be evaluated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from jetgraph.export.decompositions import decomposed


class _Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


class Graph:
    """A traced module or function, and the values of its parameters and constants."""

    def __init__(self, function: Callable[..., Any], *args: Tensor) -> None:
        module = function if isinstance(function, nn.Module) else _Function(function)
        # As `run_decompositions({})` has it, which takes ten times as long as all else.
        program = decomposed(torch.export.export(module, args, strict=False))
        signature = program.graph_signature
        names = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        tensors = {**program.state_dict, **program.constants}
        holders = [node for node in program.graph.nodes if node.op == "placeholder"]
        self.constants = {node: tensors[names[node.name]] for node in holders if node.name in names}
        self.inputs = [node for node in holders if node.name not in names]
        self.nodes = [node for node in program.graph.nodes if node.op not in ("placeholder", "output")]
        (self.outputs,) = (node.args[0] for node in program.graph.nodes if node.op == "output")

    @property
    def result(self) -> fx.Node:
        """The first output."""
        return self.outputs[0]

    def values(self, *given: Any) -> dict[fx.Node, Any]:
        """What an evaluation starts from."""
        return dict(self.constants) | dict(zip(self.inputs, given, strict=True))

    def node(self, text: str) -> fx.Node:
        """The only node whose target contains the text."""
        (found,) = (node for node in self.nodes if text in str(node.target))
        return found
