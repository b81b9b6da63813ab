"""Buffers that are written into piece by piece, until nothing is left of what they were filled with.

    b = zeros(…); b[…, :d] = x; b[…, d:] = y      → cat([x, y], -1)
    b = empty(…); b[:, 0] = x; b[:, 1] = y        → stack([x, y], 1)

Heads of attention, or layers of which a sum is made, are then pieces side by side as they are elsewhere.
"""

from __future__ import annotations

import torch
from torch import fx

from jetgraph.export.members import unsqueezed
from jetgraph.export.pieces import FILLS, WRITES, entries, takes_everything

aten = torch.ops.aten


def write_buffers_as_pieces(graph: fx.Graph) -> None:
    """Rewrite them in place."""
    for node in list(graph.nodes):
        if (at := _WHOLE.get(node.target)) is not None and takes_everything(node, at):
            node.replace_all_uses_with(node.args[at])
            graph.erase_node(node)
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        pieces = _pieces(node) if node.target in WRITES.values() else None
        if pieces is None:
            continue
        dim, written = pieces
        with graph.inserting_before(node):
            if all(one.target is aten.select_scatter.default for one in written):
                whole = graph.call_function(aten.stack.default, ([one.args[1] for one in written], dim))
            else:
                parts = [_with_dim(one, dim) for one in written]
                whole = graph.call_function(aten.cat.default, (parts, dim))
        whole.meta = dict(node.meta)
        node.replace_all_uses_with(whole)
    graph.eliminate_dead_code()


_WHOLE = {aten.slice.Tensor: 0, aten.slice_scatter.default: 1}
"""Operators that read or write a stretch, and which argument they give where that is everything."""


def _with_dim(write: fx.Node, dim: int) -> fx.Node:
    part = write.args[1]
    assert isinstance(part, fx.Node)
    return unsqueezed(part, dim) if write.target is aten.select_scatter.default else part


def _pieces(node: fx.Node) -> tuple[int, list[fx.Node]] | None:
    """The dimension along which a buffer was written, and what has been, in order, if that is all of it, each entry
    once, and nothing has read it before.
    """
    if any(user.target in WRITES.values() and user.args[0] is node for user in node.users):
        return None
    writes: list[tuple[tuple[int, int, int], fx.Node]] = []
    base: object = node
    while isinstance(base, fx.Node) and base.target in WRITES.values():
        place = entries(base)
        part = base.args[1]
        alike = isinstance(part, fx.Node) and part.meta.get("dtype") == node.meta.get("dtype")
        if place is None or base.kwargs or not alike or (base is not node and len(base.users) > 1):
            return None
        writes.append((place, base))
        base = base.args[0]
    shapes = [value.meta["shape"] for _, write in writes for value in (write, write.args[1])]  # type: ignore[union-attr]
    if not all(isinstance(size, int | str) for shape in shapes for size in shape):
        return None
    if not isinstance(base, fx.Node) or base.target not in FILLS or len(writes) < 2:
        return None
    writes.sort(key=lambda one: one[0])
    dim = writes[0][0][0]
    at = 0
    for (other, start, end), write in writes:
        size = write.args[1].meta["shape"]  # type: ignore[union-attr]
        sliced = write.target is aten.slice_scatter.default
        if other != dim or start != at or (sliced and size[dim] != end - start):
            return None
        if tuple(size[:dim]) + tuple(size[dim + sliced :]) != node.meta["shape"][:dim] + node.meta["shape"][dim + 1 :]:
            return None  # Something is repeated over a piece.
        at = end
    return (dim, [write for _, write in writes]) if at == node.meta["shape"][dim] else None
