"""Products of two values summed over a dimension, ⟨u, h⟩, however they are spelled.

    (u * h).sum(-1, keepdim=True), (u * h).sum(-1)[..., None], (u * h).mean(-1, keepdim=True)
    einsum("...d,...d->...", u, h)[..., None],    (u[..., None, :] @ h[..., :, None])[..., 0], the same by `bmm`

Which is told by shapes: what a product of rows and columns reads and gives lies in the order in which the values do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from jetgraph.export.layouts import VIEWS

aten = torch.ops.aten

_SUMS = {aten.sum.dim_IntList, aten.mean.dim}
_ROWS = {aten.matmul.default, aten.bmm.default}


def inner_product(node: fx.Node) -> tuple[fx.Node, ...] | None:
    """What is multiplied in a node that is Σ one ⊙ other over dimensions, of which as many are left as both have, with
    one entry each: two values, or the product of both.
    """
    core = _in_order(node)
    if core.target in _SUMS:
        return _summed(node, core)
    if core.target is aten.einsum.default:
        return _by_labels(node, core)
    return _of_rows(node, core) if core.target in _ROWS else None


def sums(core: fx.Node) -> bool:
    """The operator is a sum, a mean of a product, or sums up products of two values to one number for each place."""
    if core.target is aten.sum.dim_IntList:
        return True
    if core.target is aten.mean.dim:
        return isinstance(core.args[0], fx.Node) and core.args[0].target is aten.mul.Tensor
    if core.target is aten.einsum.default:
        return _summed_label(core) is not None
    return core.target in _ROWS and _pair(core) is not None


def _summed(node: fx.Node, core: fx.Node) -> tuple[fx.Node, ...] | None:
    product, dims = core.args[:2]
    if not dims or not isinstance(product, fx.Node) or product.target is not aten.mul.Tensor:
        return None
    return (product,) if _without(product, dims) == node.meta.get("shape") else None


def _by_labels(node: fx.Node, core: fx.Node) -> tuple[fx.Node, ...] | None:
    operands: Any = core.args[1]
    dim = _summed_label(core)
    if dim is None or _without(operands[0], [dim]) != node.meta.get("shape"):
        return None
    return tuple(operands)


def _summed_label(core: fx.Node) -> int | None:
    """The dimension over which an einsum of two values of one shape sums, counted from the end, if it is one."""
    equation, operands = str(core.args[0]).replace(" ", ""), core.args[1]
    reads, arrow, out = equation.partition("->")
    one, *others = reads.split(",")
    if not arrow or others != [one] or len({_shape(operand) for operand in operands}) != 1:  # type: ignore[union-attr]
        return None
    # Dimensions that dots stand for are in front of the others, and are kept.
    labels, kept = one.removeprefix("..."), out.removeprefix("...")
    if one.count(".") != out.count(".") or "." in labels + kept or len(set(labels)) < len(labels):
        return None
    return next((at - len(labels) for at in range(len(labels)) if labels[:at] + labels[at + 1 :] == kept), None)


def _of_rows(node: fx.Node, core: fx.Node) -> tuple[fx.Node, ...] | None:
    pair = _pair(core)
    return pair if pair and _without(pair[0], [-1]) == node.meta.get("shape") else None


def _pair(core: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The values of which a product multiplies rows by columns, one by one."""
    row, column = core.args[:2]
    if (
        not isinstance(row, fx.Node)
        or not isinstance(column, fx.Node)
        or min(len(_shape(row)), len(_shape(column))) < 3
    ):
        return None
    if _shape(row)[-2] != 1 or _shape(column)[-1] != 1 or _shape(row)[:-2] != _shape(column)[:-2]:
        return None
    length, values = _shape(row)[-1], (_in_order(row), _in_order(column))
    shapes = {_shape(value) for value in values}
    return values if len(shapes) == 1 and shapes.pop()[-1:] == (length,) else None


def _in_order(node: fx.Node) -> fx.Node:
    """What a node is in another shape, its entries in the same order."""
    while isinstance(above := node.args[0] if node.args else None, fx.Node):
        if node.target not in VIEWS and not (node.target in _MOVES and _keeps_order(node, above)):
            break
        node = above
    return node


_MOVES = {aten.transpose.int, aten.select.int}


def _keeps_order(node: fx.Node, above: fx.Node) -> bool:
    """Neighbouring dimensions of which one has one entry change places, or the one entry of one is taken."""
    shape: Any = _shape(above)
    dims: Any = node.args[1:3]
    if node.target is aten.select.int:
        return shape[dims[0]] == 1
    first, second = sorted(dim % len(shape) for dim in dims)
    return second - first == 1 and 1 in (shape[first], shape[second])


def _shape(node: fx.Node) -> tuple[int | str, ...]:
    return tuple(node.meta.get("shape", ()))


def _without(value: fx.Node, dims: Any) -> tuple[int | str, ...]:
    """The shape of a value with one entry along some dimensions."""
    shape = _shape(value)
    ones: Sequence[int] = [dim % len(shape) for dim in dims]
    return tuple(1 if dim in ones else size for dim, size in enumerate(shape))
