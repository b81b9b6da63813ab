"""A recurrent cell that is a step of a stream, written out: h′ = z·h + (1 − z)·n, a join whose skip is gated.

So it is where what the cell reads is made of its state, as the messages of a graph network or what the slots of slot
attention have seen. Where the input is made of something else, a chain of cells is a recurrence over that, and each
stays one operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from jetgraph.export.factors import is_made_of

aten = torch.ops.aten

_LAYOUT = {
    aten.view, aten._unsafe_view, aten.reshape, aten.flatten, aten.unflatten, aten.permute, aten.transpose,
    aten.squeeze, aten.unsqueeze, aten.expand, aten.clone,
}  # fmt: skip


_SCALES = {aten.mul, aten.div, aten.neg}


def write_out_steps(graph: fx.Graph) -> None:
    """Rewrite them in place."""
    for node in list(graph.nodes):
        if node.target is aten.gru_cell.default and not node.kwargs and _reads_itself(*node.args[:2]):
            with graph.inserting_before(node):
                step = _step(node, *node.args)
            node.replace_all_uses_with(step)
            graph.erase_node(node)


def _reads_itself(read: Any, state: Any) -> bool:
    """What a cell reads is made of the value that its state is, or is a multiple of, in whatever layout."""
    if not isinstance(read, fx.Node) or not isinstance(state, fx.Node):
        return False
    stack = [state]
    while stack:
        node = stack.pop()
        packet = getattr(node.target, "overloadpacket", None)
        if packet in _LAYOUT or packet in _SCALES:
            stack += node.all_input_nodes
        elif is_made_of(read, node):
            return True
    return False


def _step(node: fx.Node, read: fx.Node, state: fx.Node, *weights: Any) -> fx.Node:
    """n + z (h − n), with r = σ(…), z = σ(…) and n = tanh(W x + r (U h))."""

    def call(op: Any, *args: Any, shape: Sequence[int | str] = node.meta["shape"]) -> fx.Node:
        made = node.graph.call_function(op, args)
        made.meta = {**node.meta, "shape": tuple(shape)}
        return made

    width = node.meta["shape"][-1]
    rows = (*node.meta["shape"][:-1], 3 * width)
    mine, others, bias, other_bias = (*weights, None, None)[:4]
    given = call(aten.linear.default, read, mine, bias, shape=rows)
    kept = call(aten.linear.default, state, others, other_bias, shape=rows)
    x, h = (
        [call(aten.slice.Tensor, each, -1, at * width, (at + 1) * width) for at in range(3)] for each in (given, kept)
    )
    reset, update = (call(aten.sigmoid.default, call(aten.add.Tensor, x[at], h[at])) for at in (0, 1))
    new = call(aten.tanh.default, call(aten.add.Tensor, x[2], call(aten.mul.Tensor, reset, h[2])))
    moved = call(aten.mul.Tensor, call(aten.sub.Tensor, state, new), update)
    return call(aten.add.Tensor, new, moved)
