"""Weights that are packed: a few narrow numbers with scales, in a tensor subclass that knows the values they stand for.

The exporter takes such a weight apart, and the graph computes with what it holds, as the model does. Where a library
multiplies by packed weights in an operator of its own, of which nothing is known, the model is exported once more with
the weights' values in the place of the weights: the graph then unpacks them at each run, and the product is an ordinary
one. That is only done where it gives the model's own output: a model whose activations are rounded too is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from jetgraph.errors import MissingRuleError, TraceError
from jetgraph.export.program import PLAIN_WEIGHTS
from jetgraph.jets.interpreter import op_in_module, rule_for
from jetgraph.jets.registry import is_floating


def holds_packed(model: nn.Module) -> bool:
    """A parameter or buffer of the model is packed."""
    return any(_is_packed(tensor) for tensors in (model.parameters(), model.buffers()) for tensor in tensors)


class Unpacking(TorchFunctionMode):
    """Operators are given the values of packed tensors in place of these."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map_only(Tensor, _unpacked, (args, kwargs or {}))
        return function(*args, **kwargs)


def _is_packed(tensor: Tensor) -> bool:
    """A subclass with tensors inside that says itself how to make a plain tensor of them."""
    return is_traceable_wrapper_subclass(tensor) and type(tensor).dequantize is not Tensor.dequantize


def _unpacked(tensor: Tensor) -> Tensor:
    return tensor.dequantize() if _is_packed(tensor) else tensor


def unknown(graph: fx.Graph, state: Collection[fx.Node]) -> Iterator[fx.Node]:
    """The nodes that have no rule, and read floating values which do not come from the model's state alone."""
    for node, floating in _driven(graph, state):
        try:
            if floating:
                rule_for(node)
        except MissingRuleError:
            yield node


def rounded(graph: fx.Graph, state: Collection[fx.Node]) -> Iterator[fx.Node]:
    """The nodes that make numbers of one byte of such values: quantised activations."""
    for node, floating in _driven(graph, state):
        dtype = node.meta.get("dtype", torch.bool)
        if floating and dtype.itemsize == 1 and dtype is not torch.bool:
            yield node


def _driven(graph: fx.Graph, state: Collection[fx.Node]) -> Iterator[tuple[fx.Node, bool]]:
    """The nodes that depend on something else than the model's state, and whether they read floating values that do."""
    reached = {node for node in graph.find_nodes(op="placeholder") if node not in state}
    for node in graph.nodes:
        read = reached.intersection(node.all_input_nodes)
        if read and node.op == "call_function":
            reached.add(node)
            yield node, any("dtype" in arg.meta and is_floating(arg) for arg in read)


def refused_activations(model: nn.Module, node: fx.Node, why: str) -> TraceError:
    """What to say of a model that rounds more than its weights."""
    return TraceError(
        f"jetgraph refuses {type(model).__name__}: {op_in_module(node)} {why}, beside its quantised weights, and "
        f"what has been rounded has no derivatives: {PLAIN_WEIGHTS}"
    )
