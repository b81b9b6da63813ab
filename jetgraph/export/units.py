"""Products of unit vectors with a matrix as rows that are looked up in it.

    one_hot(x, n).to(float) @ W                 → embedding(W, x), for W [n, d]
    linear(one_hot(x, n).to(float), W, b)       → embedding(Wᵀ, x) + b

The rows are the same to the bit, for every other product in their sums is 0; and what looks up tokens is known as that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from jetgraph.export.pieces import with_meta

aten = torch.ops.aten

_CASTS = (aten._to_copy.default, aten.to.dtype)


def write_units_as_lookups(graph: fx.Graph) -> None:
    """Rewrite them in place."""
    for node in list(graph.nodes):
        if node.target not in (aten.matmul.default, aten.mm.default, aten.linear.default) or node.kwargs:
            continue
        value, weight, bias = (*node.args, None)[:3]
        found = _units(value)
        if found is None or not isinstance(weight, fx.Node) or len(weight.meta.get("shape", ())) != 2:
            continue
        index, number = found
        transposed = node.target is aten.linear.default
        if weight.meta["shape"][transposed] != number:
            continue
        with graph.inserting_before(node):
            if transposed:
                rows = with_meta(aten.permute.default, weight, weight, [1, 0])
                rows.meta["shape"] = weight.meta["shape"][::-1]
                weight = rows
            total = with_meta(aten.embedding.default, node, weight, index)
            if bias is not None:
                total = with_meta(aten.add.Tensor, node, total, bias)
        node.replace_all_uses_with(total)
        graph.erase_node(node)
    graph.eliminate_dead_code()


def _units(value: Any) -> tuple[fx.Node, int] | None:
    """What says where the entries of 1 are, and how long each vector is."""
    while isinstance(value, fx.Node) and value.target in _CASTS:
        value = value.args[0]
    if not isinstance(value, fx.Node) or value.target is not aten.one_hot.default:
        return None
    index, number = (*value.args, -1)[:2]
    return (index, number) if isinstance(index, fx.Node) and isinstance(number, int) and number > 0 else None
