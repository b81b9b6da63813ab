"""Recurrent cells, each a small program of ops that have rules of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from jetgraph.jets.arithmetic import cast, widened
from jetgraph.jets.registry import execute, find_rule, register_rule
from jetgraph.jets.series import Series, has_series

aten = torch.ops.aten
Step = Callable[..., Any]
"""`step(op, *args)`: the op on tensors or series."""


def _cell(op: Any, definition: Callable[..., Any]) -> None:
    """Register an op by what it consists of: `definition(step, *args)`, in the working dtype and rounded once."""

    def rule(order: int, x: Any, state: Any, *weights: Any) -> Any:
        args = pytree.tree_map(widened, (x, state, *weights), is_leaf=lambda leaf: isinstance(leaf, Series))
        dtype = x.dtype

        def step(inner: Any, *values: Any) -> Any:
            if not has_series(values):
                return execute(inner, values, {})
            entry = find_rule(inner)
            assert entry is not None
            return entry.rule(order, *values)

        result = definition(step, *args)
        return tuple(cast(part, dtype) for part in result) if isinstance(result, tuple) else cast(result, dtype)

    register_rule(op, rule)


def _preactivations(step: Step, x: Any, h: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> Any:
    """(W x + b) and (W' h + b')."""
    return step(aten.linear.default, x, w_ih, b_ih), step(aten.linear.default, h, w_hh, b_hh)


def _gru_cell(step: Step, x: Any, h: Any, *weights: Any) -> Series:
    """n + z (h − n) with r, z = σ(·) and n = tanh(W_n x + r W_n' h)."""
    read, kept = (step(aten.chunk.default, part, 3, 1) for part in _preactivations(step, x, h, *weights))
    reset, update = (step(aten.sigmoid.default, step(aten.add.Tensor, kept[i], read[i])) for i in (0, 1))
    inner = step(aten.add.Tensor, read[2], step(aten.mul.Tensor, kept[2], reset))
    new = step(aten.tanh.default, inner)
    return step(aten.add.Tensor, step(aten.mul.Tensor, step(aten.sub.Tensor, h, new), update), new)


def _lstm_cell(step: Step, x: Any, state: Any, *weights: Any) -> tuple[Any, Any]:
    """h' = o tanh c' and c' = f c + i g, with i, f, o = σ(·) and g = tanh(·)."""
    hidden, cell = state
    read, kept = _preactivations(step, x, hidden, *weights)
    gates = step(aten.chunk.default, step(aten.add.Tensor, kept, read), 4, 1)
    i, f, o = (step(aten.sigmoid.default, gates[place]) for place in (0, 1, 3))
    written = step(aten.mul.Tensor, i, step(aten.tanh.default, gates[2]))
    cell = step(aten.add.Tensor, step(aten.mul.Tensor, f, cell), written)
    return step(aten.mul.Tensor, o, step(aten.tanh.default, cell)), cell


def _rnn_cell(activation: Any) -> Callable[..., Any]:
    def definition(step: Step, x: Any, h: Any, *weights: Any) -> Any:
        read, kept = _preactivations(step, x, h, *weights)
        return step(activation, step(aten.add.Tensor, kept, read))

    return definition


_cell(aten.gru_cell.default, _gru_cell)
_cell(aten.lstm_cell.default, _lstm_cell)
_cell(aten.rnn_tanh_cell.default, _rnn_cell(aten.tanh.default))
_cell(aten.rnn_relu_cell.default, _rnn_cell(aten.relu.default))
