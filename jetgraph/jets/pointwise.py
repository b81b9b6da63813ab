"""Runs of pointwise ops, evaluated block by block.

An activation in primitives, such as the tanh form of GELU, is a run of ops that each pass over all coefficients: for
large tensors the passes through memory, and the pages for what lies in between, cost more than the arithmetic. A block
of elements goes through the whole run while it is in the cache, by the same rules as the whole would.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._C._functorch import peek_interpreter_stack
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from jetgraph.jets.series import Series

BLOCK = 2**15
"""Elements of a coefficient per thread that go through a run at once."""


def group(chain: Sequence[fx.Node], place: int, values: dict[fx.Node, Any]) -> tuple[fx.Node, ...]:
    """The run of pointwise ops on series that starts at a place of the chain; empty where blocks gain nothing.

    Every operand is a number, of the run, or a value of the shape of its results that lies in the CPU's memory in one
    piece, and nobody records or transforms what is computed.
    """
    shape: torch.Size | None = None
    found: dict[fx.Node, None] = {}
    for node in itertools.islice(chain, place, None):
        if not _is_pointwise(node.target):
            break
        outside = [values.get(read) for read in node.all_input_nodes if read not in found]
        if shape is None:
            shape = next((value.shape for value in outside if isinstance(value, Series)), None)
            if shape is None or shape.numel() < 2 * _size() or not _open():
                return ()
        if not all(isinstance(value, int | float) or _fits(value, shape) for value in outside):
            break
        found[node] = None
    return tuple(found) if len(found) > 1 else ()


def run(
    group: Sequence[fx.Node],
    needed: Sequence[fx.Node],
    values: dict[fx.Node, Any],
    evaluate: Callable[[fx.Node, dict[fx.Node, Any]], Any],
) -> None:
    """Give `values` those of the `needed` nodes of a group; `evaluate(node, values)` runs one."""
    reads = {read: values[read] for node in group for read in node.all_input_nodes if read in values}
    shape = next(value.shape for value in reads.values() if isinstance(value, Series))
    results: dict[fx.Node, Any] = {}
    for first in range(0, shape.numel(), _size()):
        some = slice(first, first + _size())
        parts = {read: _part(value, some) for read, value in reads.items()}
        for node in group:
            parts[node] = evaluate(node, parts)
        for node in needed:
            if first == 0:
                results[node] = _room(parts[node], shape)
            into = _part(results[node], some)
            if not _alike(into, parts[node]):
                # Which orders are zero by structure depends on the values: no two blocks need agree.
                for one in group:
                    reads[one] = evaluate(one, reads)
                values |= {one: reads[one] for one in needed}
                return
            _held(into).copy_(_held(parts[node]))
    values |= results


def _room(part: Any, shape: torch.Size) -> Any:
    """Memory for a value of that shape, whose first elements `part` has."""
    held = _held(part)
    room = held.new_empty(*held.shape[:-1], *shape)
    return part.like(room) if isinstance(part, Series) else room


def _alike(one: Any, other: Any) -> bool:
    """The same orders are stored."""
    if isinstance(one, Series) and isinstance(other, Series):
        return (one.start, one.stop) == (other.start, other.stop)
    return isinstance(one, Tensor) and isinstance(other, Tensor)


def _held(value: Any) -> Tensor:
    return value.coefficients if isinstance(value, Series) else value


def _part(value: Any, some: slice) -> Any:
    """Some elements of a value, in one dimension."""
    if isinstance(value, Series):
        return value.like(value.coefficients.flatten(1)[:, some])
    return value.flatten()[some] if isinstance(value, Tensor) and value.dim() else value


def _fits(value: Any, shape: torch.Size) -> bool:
    """The value is of that shape, and parts of it can be taken and worked on."""
    if not isinstance(value, Series | Tensor) or (value.shape != shape and (isinstance(value, Series) or value.dim())):
        return False
    held = _held(value)
    return (
        type(held) in (Tensor, torch.nn.Parameter)
        and held.device.type == "cpu"
        and held.is_contiguous()
        and not (held.requires_grad and torch.is_grad_enabled())
    )


def _size() -> int:
    return BLOCK * torch.get_num_threads()


def _open() -> bool:
    """Nothing looks on: no compiler, no transformation, no tracer."""
    transformed = peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0
    return not transformed and get_proxy_mode() is None and not torch.compiler.is_compiling()


@functools.cache
def _is_pointwise(op: Any) -> bool:
    """Each element of the op's one result depends on the same element of its operands alone."""
    return (
        isinstance(op, torch._ops.OpOverload)
        and torch.Tag.pointwise in op.tags
        and torch.Tag.nondeterministic_seeded not in op.tags
        and len(op._schema.returns) == 1
        and not op._schema.is_mutable
    )
