"""A traced graph run node by node with torch alone: what jetgraph's pieces are compared with.

Nothing here is shared with `jetgraph.jets.interpreter`: every node is executed as the graph says it, and whatever
depends on a value that was put in by hand is computed anew, integers and masks included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

import jetgraph as jg

CHECKS = ("_assert", "sym_constrain")
"""Operators that hold the traced shapes and dtypes, which other values need not have."""


class Interpretation:
    """Values of every node of a traced graph on given inputs, and what they become when some are replaced."""

    def __init__(self, graph: jg.ResidualGraph, inputs: Mapping[str, Any]) -> None:
        self.nodes: list[fx.Node] = [node for node in graph.traced.graph.nodes if node.op != "output"]
        self.values: dict[fx.Node, Any] = {}
        for node in self.nodes:
            if node.op == "placeholder":
                binding = graph.traced.bindings[node.name]
                held = inputs if binding.kind == "input" else graph.traced.tensors
                self.values[node] = held[binding.name]
            else:
                self.values[node] = execute(node, self.values)

    def __call__(self, replaced: Mapping[fx.Node, Any], wanted: fx.Node) -> Any:
        """The value of `wanted` where those nodes have these values, whatever they are computed from."""
        values = dict(self.values) | dict(replaced)
        changed = set(replaced)
        needed = ancestors(wanted)
        for node in self.nodes:
            if node in needed and node not in replaced and not changed.isdisjoint(node.all_input_nodes):
                values[node] = execute(node, values)
                changed.add(node)
        return values[wanted]

    def function(self, entry: fx.Node, exit: fx.Node) -> Callable[[Tensor], Tensor]:
        """The map from a value of one node to the value of another one."""
        return lambda value: self({entry: value}, exit)


def execute(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """One node, from the values of what it reads."""
    target: Any = node.target
    if any(check in str(target) for check in CHECKS):
        return None
    if target is torch.ops.aten.view.default:  # a value put in by hand may have other strides
        target = torch.reshape
    # Without a forward-mode derivative, and with a wrong one.
    if target is torch.ops.aten.copy.default:
        target = _copied
    if "grouped_mm" in str(target):
        target = _grouped
    return target(*map_arg(node.args, values.__getitem__), **map_arg(node.kwargs, values.__getitem__))


def _copied(into: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    return source.to(into).expand_as(into)


def _grouped(rows: Tensor, matrices: Tensor, offs: Tensor) -> Tensor:
    ends = offs.tolist()
    return torch.cat([rows[a:b] @ m for a, b, m in zip([0, *ends], ends, matrices, strict=False)])


def ancestors(node: fx.Node) -> set[fx.Node]:
    """The node and all that its value is computed from."""
    found: set[fx.Node] = {node}
    stack = [node]
    while stack:
        for read in stack.pop().all_input_nodes:
            if read not in found:
                found.add(read)
                stack.append(read)
    return found
