"""Recurrent cells and layers of them, each a small program of ops that have rules of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    register_rule(op, rule, parts=definition)


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


# Layers


def _layer(op: Any, cell: Callable[..., Any], gated: bool) -> None:
    """Register a recurrent layer by its cell: over positions, forwards and backwards, and over layers.

    A state is (h, c) for an LSTM, and h alone for the others. Dropout is that of evaluation.
    """

    def definition(
        step: Step,
        x: Any,
        states: Any,
        params: Any,
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Any, ...]:
        del dropout, train
        directions = 2 if bidirectional else 1
        initial = zip(*(step(aten.unbind.int, state, 0) for state in (states if gated else [states])), strict=True)
        starts = [list(state) for state in initial]
        each = len(params) // (num_layers * directions)
        inputs = list(step(aten.unbind.int, x, 1 if batch_first else 0))
        ends: list[list[Any]] = []
        for layer in range(num_layers):
            outputs = []
            for direction in range(directions):
                place = layer * directions + direction
                weights = params[place * each : (place + 1) * each]
                made, end = _run(step, cell, inputs[::-1] if direction else inputs, starts[place], weights, has_biases)
                outputs.append(made[::-1] if direction else made)
                ends.append(end)
            inputs = (
                outputs[0]
                if directions == 1
                else [step(aten.cat.default, pair, -1) for pair in zip(*outputs, strict=True)]
            )
        whole = step(aten.stack.default, inputs, 1 if batch_first else 0)
        return whole, *(step(aten.stack.default, list(parts), 0) for parts in zip(*ends, strict=True))

    _cell(op, definition)


def _run(
    step: Step, cell: Callable[..., Any], inputs: Sequence[Any], state: list[Any], weights: Sequence[Any], biases: bool
) -> tuple[list[Any], list[Any]]:
    """The outputs of one direction of one layer, and its last state; the last of the weights may project what an LSTM
    puts out.
    """
    cells, project = (weights[:4], weights[4:]) if biases else (weights[:2], weights[2:])
    made = []
    for x in inputs:
        new = cell(step, x, state if len(state) > 1 else state[0], *cells)
        state = list(new) if isinstance(new, tuple) else [new]
        if project:
            state[0] = step(aten.linear.default, state[0], project[0])
        made.append(state[0])
    return made, state


_layer(aten.lstm.input, _lstm_cell, gated=True)
_layer(aten.gru.input, _gru_cell, gated=False)
_layer(aten.rnn_tanh.input, _rnn_cell(aten.tanh.default), gated=False)
_layer(aten.rnn_relu.input, _rnn_cell(aten.relu.default), gated=False)
