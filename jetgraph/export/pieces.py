"""Pieces of a value, h[a:b]: the operators that read and write them, where, and whether pieces are all of a value."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

END = 2**63 - 1
"""Where a slice ends that goes on to the last entry."""

WRITES: dict[Any, Any] = {aten.select.int: aten.select_scatter.default, aten.slice.Tensor: aten.slice_scatter.default}
"""By operator that reads a part, the one that writes into it."""

FILLS = {
    aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default, aten.full.default, aten.full_like.default,
    aten.new_full.default, aten.empty.memory_format, aten.empty_like.default,
}  # fmt: skip
"""Operators that make a constant, or what nobody reads."""


def is_float(node: Any) -> bool:
    """A node whose value is a real tensor of a floating type."""
    return isinstance(node, fx.Node) and getattr(node.meta.get("dtype"), "is_floating_point", False)


def with_meta(op: Any, node: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
    """A new node with the metadata of another one."""
    made = node.graph.call_function(op, args, kwargs)
    made.meta = dict(node.meta)
    return made


def is_alike(node: fx.Node, other: Any) -> bool:
    """Two values of one shape and type."""
    return is_float(other) and all(node.meta.get(key) == other.meta.get(key) for key in ("shape", "dtype"))


def takes_everything(node: fx.Node, at: int) -> bool:
    """A slice is all of a value, or what is written into one is; `at` is the argument that all is of."""
    where = node.args[at + 1 :]
    return is_float(node) and place_of(aten.slice.Tensor, where)[1:] == (0, END, 1) and is_alike(node, node.args[at])


# Where


def entries(node: fx.Node) -> tuple[int, int, int] | None:
    """The dimension, first entry and end of what is read or written, if these are known."""
    writes = node.target in WRITES.values()
    base, where = node.args[0], node.args[2 if writes else 1 :]
    assert isinstance(base, fx.Node)
    is_one = node.target in (aten.select.int, aten.select_scatter.default)
    place: tuple[Any, ...] = (*where, None, 1) if is_one else place_of(aten.slice.Tensor, where)
    dim, start, end, step = place
    dim %= len(base.meta["shape"])
    length = base.meta["shape"][dim]
    if not isinstance(start, int) or step != 1 or not isinstance(length, int):
        return None
    start = start + length if start < 0 else start
    end = start + 1 if end is None else end
    if not isinstance(end, int):
        return None
    return dim, min(start, length), min(end + length if end < 0 else end, length)


def place_of(reads: Any, where: tuple[Any, ...]) -> tuple[Any, ...]:
    """Where something is read or written, with defaults and lists in one form."""
    if reads is aten.slice.Tensor:
        dim, start, end, step = (*where, *(0, None, None, 1)[len(where) :])
        return dim, start or 0, END if end is None else end, step
    if reads is aten.index.Tensor:
        return tuple(where[0])
    return where


# Pieces side by side


@dataclass(frozen=True)
class Piece:
    """base[start:stop] along a dimension; ends are numbers, or computed from sizes."""

    base: fx.Node
    dim: int
    start: int | fx.Node
    stop: int | fx.Node


def as_piece(node: Any) -> Piece | None:
    """The piece of a value that a node is, if it is one."""
    if not isinstance(node, fx.Node):
        return None
    if node.target is aten.slice.Tensor:
        dim, start, stop, step = place_of(aten.slice.Tensor, node.args[1:])
        return _placed(node.args[0], dim, start, stop) if step == 1 else None
    if node.target is aten.unsqueeze.default:
        inner, dim = node.args
        if isinstance(inner, fx.Node) and inner.target is aten.select.int and isinstance(inner.args[2], int):
            base, along, at = inner.args
            piece = _placed(base, along, at, at + 1 if at != -1 else END)  # type: ignore[operator]
            same = piece is not None and dim % len(node.meta["shape"]) == piece.dim  # type: ignore[operator]
            return piece if same else None
    if node.target is operator.getitem:
        whole, number = node.args
        if isinstance(whole, fx.Node) and whole.target in (aten.split.Tensor, aten.split_with_sizes.default):
            return _split_off(whole, number)
    return None


def _split_off(split: fx.Node, number: Any) -> Piece | None:
    base, sizes = split.args[:2]
    dim = split.args[2] if len(split.args) > 2 else 0
    if not isinstance(base, fx.Node):
        return None
    length = base.meta["shape"][dim]
    if isinstance(sizes, int):
        last = isinstance(length, int) and (number + 1) * sizes >= length
        return _placed(base, dim, number * sizes, END if last else (number + 1) * sizes)
    if not isinstance(sizes, (list, tuple)) or not all(isinstance(size, int) for size in sizes):
        return None
    ends = list(accumulate(sizes))  # type: ignore[arg-type]
    stop = END if number == len(ends) - 1 else ends[number]
    return _placed(base, dim, 0 if number == 0 else ends[number - 1], stop)


def _placed(base: Any, dim: Any, start: Any, stop: Any) -> Piece | None:
    if not isinstance(base, fx.Node) or not all(isinstance(end, int | fx.Node) for end in (start, stop)):
        return None
    dim %= len(base.meta["shape"])
    length = base.meta["shape"][dim]
    if isinstance(length, int) and isinstance(start, int) and isinstance(stop, int):
        start, stop = (number + length if number < 0 else number for number in (start, stop))
        stop = END if stop >= length else stop
    return Piece(base, dim, start, stop)


def side_by_side(pieces: Sequence[Piece]) -> list[int]:
    """The places of pieces in the order in which they lie beside each other, from the first entry to the last; none
    where they do not do so.
    """
    starts: dict[Any, int] = {piece.start: place for place, piece in enumerate(pieces)}
    order: list[int] = []
    end: Any = 0
    while end in starts and end != END:
        order.append(starts.pop(end))
        end = pieces[order[-1]].stop
    return order if end == END and len(order) == len(pieces) else []


def are_all_of(pieces: Sequence[Piece], whole: fx.Node, dim: int) -> bool:
    """Pieces that lie beside each other are all of one value."""
    return (
        len({(piece.base, piece.dim) for piece in pieces}) == 1
        and pieces[0].dim == dim
        and is_alike(whole, pieces[0].base)
    )


def read_piece(value: fx.Node, piece: Piece, like: fx.Node) -> fx.Node:
    """The same piece of another value."""
    return with_meta(aten.slice.Tensor, like, value, piece.dim, piece.start, piece.stop)
