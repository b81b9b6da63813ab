"""Sums that are laid out anew, as sums of what is: what was laid out the other way before is then what it was.

(f(h.mT.view(…)) + h.mT.view(…)).flatten(2).mT     → f(h.mT.view(…)).flatten(2).mT + h
(h[:, 0] + y)[:, None]                             → h[:, 0][:, None] + y[:, None]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import count
from typing import Any

import torch
from torch import fx

from jetgraph.algebra.sizes import evaluate, names
from jetgraph.errors import SizeError

aten = torch.ops.aten

VIEWS = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.dim,
    aten.squeeze.default, aten.squeeze.dims, aten.flatten.using_ints, aten.unflatten.int,
}  # fmt: skip
"""Operators that give a value another shape, its entries in the same order."""

_TURNS = {aten.permute.default, aten.transpose.int}


def laid_out_apart(
    written: fx.Node, leaves: Callable[[fx.Node], Sequence[fx.Node]], is_part: Callable[[fx.Node], bool]
) -> fx.Node:
    """The sum of summands that are laid out as their sum is; the node itself where none of them is a part then.

    Parameters
    ----------
    written
        What may be a sum in another layout.
    leaves
        The summands of a sum, all of its shape and type; none of what is no sum.
    is_part
        What one of the summands has to be.
    """
    chain: list[fx.Node] = []
    total: Any = written
    while total.target in VIEWS | _TURNS and (total is written or len(total.users) == 1):
        chain.append(total)
        total = total.args[0]
    summands = leaves(total) if chain and len(total.users) == 1 else []
    if not summands:
        return written
    built: list[fx.Node] = []

    def like(op: Any, node: fx.Node, *args: Any) -> fx.Node:
        built.append(node.graph.call_function(op, args))
        built[-1].meta = dict(node.meta)
        return built[-1]

    with written.graph.inserting_before(written):
        laid = [_before(leaf, chain) or _laid_out(leaf, chain, like) for leaf in summands]
        if any(map(is_part, laid)):
            return reduce(lambda one, other: like(aten.add.Tensor, written, one, other), laid)
    for node in reversed(built):
        node.graph.erase_node(node)
    return written


def _laid_out(leaf: fx.Node, chain: Sequence[fx.Node], like: Callable[..., fx.Node]) -> fx.Node:
    """A summand in the layout of the sum; the last operator of a chain comes first."""
    return reduce(lambda value, node: like(node.target, node, value, *node.args[1:]), reversed(chain), leaf)


def _before(leaf: fx.Node, chain: Sequence[fx.Node]) -> fx.Node | None:
    """What was laid out the other way before it was a summand; None where that is not so."""
    ways = [*chain]
    value: Any = leaf
    while value.target in VIEWS | _TURNS:
        ways.append(value)
        value = value.args[0]
        if value.meta.get("shape") == chain[0].meta["shape"] and _changes_nothing(value, ways):
            return value
    return None


def _changes_nothing(value: fx.Node, ways: Sequence[fx.Node]) -> bool:
    """After these, the last first, each entry of a value is where it was. No storage is needed to tell: where entries
    lie is known by strides, which no copy may come between."""
    try:
        sizes = {str(size) for node in (value, *ways) for size in node.meta["shape"]}
        numbers = dict(zip(sorted({name for size in sizes for name in names(size)}), count(7, 2), strict=False))
        start = torch.empty(_numbers(value, numbers), device="meta")
        end: Any = start
        for node in reversed(ways):
            viewed = node.target in VIEWS
            end = end.view(_numbers(node, numbers)) if viewed else node.target(end, *node.args[1:])  # type: ignore[operator]
    except (RuntimeError, SizeError):
        return False
    strides = zip(start.shape, start.stride(), end.stride(), strict=True) if start.shape == end.shape else [(2, 0, 1)]
    return all(size == 1 or one == other for size, one, other in strides)


def _numbers(node: fx.Node, numbers: dict[str, int]) -> list[int]:
    return [size if isinstance(size, int) else evaluate(size, numbers) for size in node.meta["shape"]]
