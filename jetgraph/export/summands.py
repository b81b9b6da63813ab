"""Summands of a tree of adds, and sums that hold a part of a value once: what is added to that part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import fx

from jetgraph.export.pieces import is_alike, is_float, with_meta

aten = torch.ops.aten


def is_add(node: Any) -> bool:
    """An add of two values of its own floating type; one that casts an operand is no sum to open."""
    return (
        is_float(node)
        and node.target is aten.add.Tensor
        and not node.kwargs
        and all(is_float(arg) and arg.meta["dtype"] == node.meta["dtype"] for arg in node.args)
    )


def is_whole_sum(node: fx.Node) -> bool:
    """An add that is no part of a larger sum."""
    return is_add(node) and not (len(node.users) == 1 and is_add(next(iter(node.users))))


def summands(total: Any) -> Iterator[fx.Node]:
    """The leaves of a tree of adds; an add below its root that others read too is one. None of what is no sum."""
    if not is_add(total):
        return
    for operand in total.args:
        if is_add(operand) and len(operand.users) == 1:
            yield from summands(operand)
        else:
            yield operand


def alike_summands(total: fx.Node) -> list[fx.Node]:
    """The summands of a sum, if all have its shape and type; none of what is no sum."""
    leaves = list(summands(total))
    return leaves if all(is_alike(total, leaf) for leaf in leaves) else []


def added_up(like: fx.Node, leaves: Sequence[fx.Node], shape: fx.Node) -> fx.Node:
    """The sum of these, of a value's shape; zeros where there are none."""
    if not leaves:
        return with_meta(aten.zeros_like.default, like, shape)
    full = [leaf if is_alike(like, leaf) else with_meta(aten.expand_as.default, like, leaf, shape) for leaf in leaves]
    return reduce(lambda one, other: with_meta(aten.add.Tensor, like, one, other), full)


@dataclass(frozen=True)
class Update:
    """part + Σ others, as a tree of adds; or a multiple of the part in its place."""

    node: fx.Node
    part: fx.Node
    others: tuple[fx.Node, ...]
    image: fx.Node
    """The part, or the multiple of it that is a summand."""

    def sum(self) -> fx.Node:
        """Σ others, of the part's shape."""
        total, *others = map(self._spread, self.others)
        for other in others:
            total = with_meta(aten.add.Tensor, self.node, total, other)
        return total

    def _spread(self, other: fx.Node) -> fx.Node:
        return other if is_alike(self.node, other) else with_meta(aten.expand_as.default, self.node, other, self.part)


def as_update(node: fx.Node, is_part: Any, *, multiples: bool = False) -> Update | None:
    """A node as a sum that holds the part once, or else a multiple of it if these count, and whose shape the part has;
    inner adds that others read too are not opened.
    """
    leaves = list(summands(node))
    parts = [(leaf, leaf) for leaf in leaves if is_part(leaf)]
    if multiples and not parts:
        parts = [(leaf, part) for leaf in leaves for part in factors_of(leaf) if is_part(part)]
    others = tuple(leaf for leaf in leaves if all(leaf is not image for image, _ in parts))
    if len(parts) != 1 or not others or not is_alike(node, parts[0][1]):
        return None
    if any(leaf.meta.get("dtype") != node.meta["dtype"] for leaf in others):
        return None
    image, part = parts[0]
    return Update(node, part, others, image)


def factors_of(node: fx.Node) -> Iterator[fx.Node]:
    """The values of the same shape of which a node is a multiple."""
    if node.target in (aten.mul.Tensor, aten.div.Tensor, aten.neg.default):
        for value in node.args[: 2 if node.target is aten.mul.Tensor else 1]:
            if isinstance(value, fx.Node) and is_alike(node, value):
                yield value
                yield from factors_of(value)
