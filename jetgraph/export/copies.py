"""What writing into a tensor leaves, by operators that PyTorch differentiates.

    copy(a, b)                  → b, in the type and the shape of a
    slice_scatter(z, y, a, b)   → the same of pairs of real numbers, where z is complex; and select_scatter

A write becomes these two where code that changes tensors is made into functions. The model's own write has a
derivative, which they have not, so that whatever takes one (an attribution, training) would fail.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from jetgraph.export.pieces import WRITES, with_meta

aten = torch.ops.aten


def write_copies_out(graph: fx.Graph) -> None:
    """Casts and expansions in the place of copies, in place."""
    for node in graph.find_nodes(op="call_function", target=aten.copy.default):
        target, value = node.args[:2]
        assert isinstance(target, fx.Node)
        assert isinstance(value, fx.Node)
        if not all({"shape", "dtype"} <= one.meta.keys() for one in (target, value)):
            continue
        with graph.inserting_before(node):
            if value.meta["dtype"] != target.meta["dtype"]:
                value = with_meta(aten._to_copy.default, value, value, dtype=target.meta["dtype"])
                value.meta["dtype"] = target.meta["dtype"]
            if value.meta["shape"] != target.meta["shape"]:
                value = with_meta(aten.expand.default, node, value, _sizes(target))
        node.replace_all_uses_with(value)
        graph.erase_node(node)


def _sizes(value: fx.Node) -> list[Any]:
    """The shape of a value; sizes that are open are asked for."""
    return [
        size if isinstance(size, int) else value.graph.call_function(aten.sym_size.int, (value, dim))
        for dim, size in enumerate(value.meta["shape"])
    ]


def write_complex_parts_as_pairs(graph: fx.Graph) -> None:
    """Complex values that are written into a part of one as pairs of real numbers that are, in place."""
    for node in list(graph.nodes):
        dtype: Any = node.meta.get("dtype")
        if node.target not in WRITES.values() or not getattr(dtype, "is_complex", False) or node.kwargs:
            continue
        base, value, dim, *where = (*node.args, 0)[: max(len(node.args), 3)]
        if not (isinstance(value, fx.Node) and value.meta.get("dtype") == dtype and "shape" in node.meta):
            continue
        with graph.inserting_before(node):
            written = with_meta(node.target, node, _pairs(base), _pairs(value), dim % len(node.meta["shape"]), *where)  # type: ignore[operator]
            written.meta |= {"shape": (*node.meta["shape"], 2), "dtype": dtype.to_real()}
            whole = with_meta(aten.view_as_complex.default, node, written)
        node.replace_all_uses_with(whole)
        graph.erase_node(node)


def _pairs(value: Any) -> fx.Node:
    """Real and imaginary parts along a last dimension; what is conjugated as it is read has none in memory."""
    pairs = with_meta(aten.view_as_real.default, value, with_meta(aten.clone.default, value, value))
    pairs.meta |= {"shape": (*value.meta["shape"], 2), "dtype": value.meta["dtype"].to_real()}
    return pairs
