"""What lies along a dimension of a value that was stacked there, member by member, also where the stack was laid out
otherwise since, or multiplied.

    stack([a, b, …], d) · w           → a·w₀, b·w₁, …
    stack([a, b, …]).flatten(1)       → a.flatten(), b.flatten(), …
    stack([a, b, …]).permute(1, 2, 0) → a, b, …
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import fx

from jetgraph.export.factors import broadcast, is_made_of

aten = torch.ops.aten

Members = tuple[fx.Node, list[fx.Node]]
"""A stack, and its members as they are at some place behind it."""


def stacked_along(stack: fx.Node) -> int:
    """The dimension along which the parts of a stack lie."""
    dim: Any = stack.args[1] if len(stack.args) > 1 else stack.kwargs.get("dim", 0)
    return dim % len(stack.meta["shape"])


def members(value: Any, dim: int) -> Members | None:
    """A stack, and the entries of a value along this dimension, if it is that, laid out otherwise or as a multiple of
    it; two or more. Weights that are made of the stack itself make it none.
    """
    if not isinstance(value, fx.Node) or "shape" not in value.meta or value.kwargs:
        return None
    if value.target is aten.stack.default and stacked_along(value) == dim:
        parts: Any = value.args[0]
        return (value, list(parts)) if len(parts) > 1 else None
    if value.target is aten.cat.default:
        pieces = _side_by_side(value, dim) or []
        return (value, _entries(pieces, dim)) if {piece.meta["shape"][dim] for piece in pieces} == {1} else None
    if value.target in (aten.mul.Tensor, aten.div.Tensor):
        return _multiplied(value, dim)
    laid = _LAID.get(value.target)
    return laid(value, dim) if laid is not None and _is_known(value) and _is_known(value.args[0]) else None


def _is_known(value: Any) -> bool:
    """Sizes are numbers and names; one that is counted from values cannot be compared."""
    return all(isinstance(size, int | str) for size in value.meta.get("shape", ()))


def like(node: fx.Node, op: Any, *args: Any) -> fx.Node:
    """A node in the place of another one, of the shape that its operands have together."""
    made = node.graph.call_function(op, args)
    shapes = [arg.meta["shape"] for arg in args if isinstance(arg, fx.Node)]
    made.meta = {**node.meta, "shape": reduce(broadcast, shapes) if shapes else node.meta["shape"]}
    return made


def unsqueezed(part: fx.Node, dim: int) -> fx.Node:
    """A value with a dimension of size one more."""
    made = like(part, aten.unsqueeze.default, part, dim)
    shape = part.meta["shape"]
    made.meta["shape"] = (*shape[:dim], 1, *shape[dim:])
    return made


def entry(node: fx.Node, dim: int, place: int) -> fx.Node:
    """What a value has at a place of a dimension."""
    made = like(node, aten.select.int, node, dim, place)
    shape = node.meta["shape"]
    made.meta["shape"] = (*shape[:dim], *shape[dim + 1 :])
    return made


# Concatenations


def _side_by_side(value: Any, dim: int) -> list[fx.Node] | None:
    """The pieces of a concatenation along this dimension, two or more."""
    if not isinstance(value, fx.Node) or value.target is not aten.cat.default or value.kwargs:
        return None
    pieces: Any = value.args[0]
    along: Any = value.args[1] if len(value.args) > 1 else 0
    return list(pieces) if along % len(value.meta["shape"]) == dim and len(pieces) > 1 else None


def _entries(pieces: Sequence[fx.Node], dim: int) -> list[fx.Node]:
    """What pieces of size one have there."""

    def without(piece: fx.Node) -> fx.Node:
        read, at = (*piece.args, None)[:2]
        laid = piece.target is aten.unsqueeze.default and at % len(piece.meta["shape"]) == dim  # type: ignore[operator]
        return read if laid else entry(piece, dim, 0)  # type: ignore[return-value]

    return list(map(without, pieces))


def _cut(value: fx.Node, dim: int) -> Members | None:
    """The pieces of a concatenation that is cut into these: cat(a, b, -1).view(…, 2, d)."""
    read, sizes = arguments(value)
    after = value.meta["shape"]
    pieces = _side_by_side(read, dim)
    if pieces is None or len({piece.meta["shape"] for piece in pieces}) > 1 or after[dim] != len(pieces):
        return None
    shape = pieces[0].meta["shape"]
    own, whole = (after[dim + 1 :], shape[dim:])
    if after[:dim] != shape[:dim] or _counted(own) != _counted(whole):
        return None
    left = [size for at, size in enumerate(sizes) if at != dim]
    made = [piece if own == whole else like(value, aten.view.default, piece, left) for piece in pieces]
    for one in made:
        one.meta["shape"] = (*after[:dim], *own)
    return read, made


# Multiples


def _multiplied(value: fx.Node, dim: int) -> Members | None:
    left, right = value.args
    for one, other in ((left, right), (right, left))[: 2 if value.target is aten.mul.Tensor else 1]:
        if isinstance(one, fx.Node) and one.meta.get("shape") == value.meta["shape"]:
            found = members(one, dim)
            if found is not None and not is_made_of(other, found[0]):
                stack, parts = found
                factors = [_weight(other, dim, len(value.meta["shape"]), place) for place in range(len(parts))]
                return stack, [like(value, value.target, *pair) for pair in zip(parts, factors, strict=True)]
    return None


def _weight(factor: Any, dim: int, rank: int, place: int) -> Any:
    """What the entry at a place is multiplied by."""
    if not isinstance(factor, fx.Node):
        return factor
    shape = factor.meta["shape"]
    own = dim - (rank - len(shape))
    return factor if own < 0 else entry(factor, own, 0 if shape[own] == 1 else place)


# Layout


def _each(value: fx.Node, found: Members | None, dim: int, op: Any, *args: Any) -> Members | None:
    """The members, each after the operator that makes `value`, whose shape they have but for this dimension."""
    if found is None:
        return None
    stack, parts = found
    made = [like(value, op, part, *args) for part in parts]
    shape = value.meta["shape"]
    for one in made:
        one.meta["shape"] = (*shape[:dim], *shape[dim + 1 :])
    return stack, made


def arguments(value: fx.Node) -> tuple[Any, ...]:
    """What a node is called with by place."""
    return value.args


def before_stacked(value: fx.Node, dim: int) -> tuple[fx.Node, int]:
    """What has the size of a dimension of a stack, which may be permuted: a part, and its dimension."""
    if value.target in (aten.transpose.int, aten.permute.default):
        part, own = before_stacked(arguments(value)[0], _order(value)[dim])
        return (value, dim) if part is value.args[0] else (part, own)
    if value.target is aten.stack.default and dim != stacked_along(value):
        return arguments(value)[0][0], dim - (dim > stacked_along(value))
    return value, dim


def _order(value: fx.Node) -> list[int]:
    """Where the dimensions of a permuted value come from."""
    rank, args = len(value.meta["shape"]), arguments(value)
    if value.target is aten.permute.default:
        return [at % rank for at in args[1]]
    order = list(range(rank))
    one, other = (at % rank for at in args[1:])
    order[one], order[other] = other, one
    return order


def _permuted(value: fx.Node, dim: int) -> Members | None:
    order, args = _order(value), arguments(value)
    own = order[dim]
    rest = [at - (at > own) for at in order if at != own]
    found = members(args[0], own)
    return found if rest == sorted(rest) else _each(value, found, dim, aten.permute.default, rest)


def _viewed(value: fx.Node, dim: int) -> Members | None:
    if (found := _cut(value, dim)) is not None:
        return found
    read, sizes = arguments(value)
    before, after = read.meta["shape"], value.meta["shape"]
    for own, size in enumerate(before):
        if size == after[dim] and all(
            _counted(one) == _counted(other)
            for one, other in ((before[:own], after[:dim]), (before[own + 1 :], after[dim + 1 :]))
        ):
            found = members(read, own)
            left = [size for at, size in enumerate(sizes) if at != dim]
            if found is not None:
                return found if before == after else _each(value, found, dim, aten.view.default, left)
    return None


def _counted(shape: Sequence[int | str]) -> tuple[int, list[str]]:
    """How many entries a shape has: a number, times the names of open sizes, also of those that are products."""
    factors = [factor for size in shape for factor in (str(size).split("*") if _is_product(size) else [str(size)])]
    number = reduce(lambda one, other: one * int(other), [factor for factor in factors if factor.isdecimal()], 1)
    return number, sorted(factor for factor in factors if not factor.isdecimal())


def _is_product(size: int | str) -> bool:
    """A formula of a size that is numbers and names times each other alone."""
    return all(factor.isidentifier() or factor.isdecimal() for factor in str(size).split("*"))


def _unsqueezed(value: fx.Node, dim: int) -> Members | None:
    read, at = arguments(value)
    at %= len(value.meta["shape"])
    found = None if at == dim else members(read, dim - (at < dim))
    return _each(value, found, dim, aten.unsqueeze.default, at - (at > dim))


def _squeezed(value: fx.Node, dim: int) -> Members | None:
    read, at = arguments(value)
    at %= len(read.meta["shape"])
    if read.meta["shape"][at] != 1:
        return members(read, dim)
    own = dim + (at <= dim)
    return _each(value, members(read, own), dim, aten.squeeze.dim, at - (at > own))


def _flipped(value: fx.Node, dim: int) -> Members | None:
    read, dims = arguments(value)
    found = members(read, dim)
    along = [at % len(value.meta["shape"]) for at in dims]
    return (found[0], found[1][::-1]) if found is not None and along == [dim] else None


def _negated(value: fx.Node, dim: int) -> Members | None:
    return _each(value, members(value.args[0], dim), dim, aten.neg.default)


_LAID: dict[Any, Callable[[fx.Node, int], Members | None]] = {
    aten.permute.default: _permuted,
    aten.transpose.int: _permuted,
    aten.view.default: _viewed,
    aten.reshape.default: _viewed,
    aten.unsqueeze.default: _unsqueezed,
    aten.squeeze.dim: _squeezed,
    aten.flip.default: _flipped,
    aten.neg.default: _negated,
}

LAYOUTS = {target for target in _LAID if target not in (aten.flip.default, aten.neg.default)}
"""Operators that lay out a value otherwise."""
