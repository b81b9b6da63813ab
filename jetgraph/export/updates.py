"""Sums over a part of a value as sums over all of it, which is how joins are looked for.

    index_add(h, …, y), scatter_add, index_put with accumulate     → h + index_add(0, …, y)
    slice_scatter(h, h[a:b] + y, a, b), and others that overwrite  → h + slice_scatter(0, y, a, b)
    where(c, h + y, h), where(c, h + y, h + z)                     → h + where(c, y, 0), h + where(c, y, z)
    where(c, f(h), h)                                              → where(c, f(h), 0) + where(c, 0, h)
    select(select_scatter(h, y, 0, i), 0, i), and slices           → y

Concatenations of pieces are written so in `jetgraph.export.concatenations`. What reads h[a:b] + y besides is given that
part of the sum, so that it lies after the join. Values stay as they are, to the bit but for sums of several summands at
one place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from jetgraph.export.concatenations import read_alone, write_concatenated
from jetgraph.export.factors import is_made_of
from jetgraph.export.layouts import laid_out_apart
from jetgraph.export.pieces import END, FILLS, WRITES, entries, is_alike, is_float, place_of, with_meta
from jetgraph.export.summands import added_up, alike_summands, as_update, factors_of, is_add, summands

aten = torch.ops.aten


def write_updates_as_sums(graph: fx.Graph) -> None:
    """Rewrite them in place."""
    written: dict[fx.Node, tuple[Any, ...]] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not is_float(node):
            continue
        if node.target in WRITES:
            _read_past_writes(node)
        elif _accumulates(node):
            _write_accumulated(node)
        elif node.target in _READS:
            _write_overwritten(node, written)
        elif node.target is aten.cat.default:
            alone = read_alone(node)
            if alone is None:
                write_concatenated(node)
            else:
                for user in node.users:
                    user.replace_all_uses_with(alone)
        elif node.target is aten.where.self:
            _write_chosen(node)
    graph.eliminate_dead_code()


# Reading what was written


def _read_past_writes(node: fx.Node) -> None:
    """A part that was written into the place where it is read is what was written; one that was written beside it has
    no say, as in a list of layers that lies in one tensor.
    """
    base: Any = node.args[0]
    place = entries(node)
    while place is not None and base.target in WRITES.values() and not base.kwargs:
        written = entries(base)
        if written == place and base.target is WRITES[node.target] and is_alike(node, base.args[1]):
            node.replace_all_uses_with(base.args[1])
            node.graph.erase_node(node)
            return
        if written is None or written[0] != place[0] or not (written[2] <= place[1] or place[2] <= written[1]):
            break
        base = base.args[0]
    node.args = (base, *node.args[1:])


# Operators that add


def _accumulates(node: fx.Node) -> bool:
    if node.target is aten.index_put.default:
        return len(node.args) > 3 and bool(node.args[3])
    return node.target in (aten.index_add.default, aten.scatter_add.default)


def _write_accumulated(node: fx.Node) -> None:
    base, *rest = node.args
    if not isinstance(base, fx.Node) or not is_alike(node, base) or _is_filled(base):
        return
    with node.graph.inserting_before(node):
        zeros = with_meta(aten.zeros_like.default, node, base)
        added = with_meta(node.target, node, zeros, *rest, **node.kwargs)
        total = with_meta(aten.add.Tensor, node, base, added)
    node.replace_all_uses_with(total)
    node.graph.erase_node(node)


def _is_filled(base: fx.Node) -> bool:
    """What is added to starts as a constant, as where a mixture of experts gathers what they make."""
    while _accumulates(base):
        base = base.args[0]  # type: ignore[assignment]
    return base.target in FILLS


# Operators that overwrite


_READS: dict[Any, tuple[Any, int]] = {
    aten.slice_scatter.default: (aten.slice.Tensor, 1),
    aten.select_scatter.default: (aten.select.int, 1),
    aten.diagonal_scatter.default: (aten.diagonal.default, 1),
    aten.index_put.default: (aten.index.Tensor, 2),
    aten.scatter.src: (aten.gather.default, 3),
    aten.index_copy.default: (aten.index_select.default, 3),
}
"""By operator that writes into a part, the one that reads it, and the place of what is written."""


def _write_overwritten(node: fx.Node, earlier: dict[fx.Node, tuple[Any, ...]]) -> None:
    """An update of a part that was read before; one that writes all, or writes back what was there, is dropped.

    `earlier` are the sums that such updates have become, with what was written where: `h[a:b] += y` writes twice.
    """
    base = _uncut(node.args[0])
    reads, at = _READS[node.target]
    if not isinstance(base, fx.Node) or not is_alike(node, base) or node.kwargs:
        return
    where = place_of(reads, (*node.args[1:at], *node.args[at + 1 :]))

    def is_part(other: fx.Node) -> bool:
        return other.target is reads and _uncut(other.args[0]) is base and place_of(reads, other.args[1:]) == where

    written = node.args[at]
    if not isinstance(written, fx.Node):
        return
    everything = reads is aten.slice.Tensor and where[1:] == (0, END, 1) and is_alike(node, written)
    again = earlier.get(base) == (node.target, *node.args[1:])
    if everything or again or is_part(written):
        node.replace_all_uses_with(written if everything else base)
        node.graph.erase_node(node)
        return
    update = as_update(laid_out_apart(written, alike_summands, is_part), is_part)
    if update is None:
        return
    with node.graph.inserting_before(node):
        zeros = with_meta(aten.zeros_like.default, node, base)
        # As many rows as a mask chooses of zeros: how many there are does not depend on the base.
        value = replace(update, part=with_meta(reads, update.part, zeros, *update.part.args[1:])).sum()
        added = with_meta(node.target, node, zeros, *node.args[1:at], value, *node.args[at + 1 :])
        total = with_meta(aten.add.Tensor, node, base, added)
    earlier[total] = (node.target, *node.args[1:])
    node.replace_all_uses_with(total)
    node.graph.erase_node(node)


def _uncut(base: Any) -> Any:
    """What a slice is of that takes everything."""
    while isinstance(base, fx.Node) and base.target is aten.slice.Tensor:
        if place_of(aten.slice.Tensor, base.args[1:])[1:] != (0, END, 1) or not is_alike(base, base.args[0]):
            break
        base = base.args[0]
    return base


def _write_chosen(node: fx.Node) -> None:
    """What two sums have in common, of which one is taken where something holds, and the other one elsewhere."""
    condition, *options = node.args
    if not all(is_float(option) and is_alike(node, option) for option in options):
        return
    one, other = ([option, *summands(option)] for option in options)
    # One of them is a summand of the other one, or both are sums; what is such a sum is no summand besides.
    shared: Any = next((leaf for leaf in (options[0], options[1], *one[1:]) if leaf in one and leaf in other), None)
    if shared is None:
        _write_replaced(node)
        return
    if not is_alike(node, shared) or one[0] is other[0]:
        return
    sides = [[shared] if leaves[0] is shared else leaves[1:] for leaves in (one, other)]
    same_type = all(leaf.meta.get("dtype") == node.meta["dtype"] for leaves in sides for leaf in leaves)
    if not same_type or any(leaves.count(shared) > 1 for leaves in sides):
        return
    with node.graph.inserting_before(node):
        values = [added_up(node, [leaf for leaf in leaves if leaf is not shared], shared) for leaves in sides]
        added = with_meta(aten.where.self, node, condition, *values)
        total = with_meta(aten.add.Tensor, node, shared, added)
    node.replace_all_uses_with(total)
    node.graph.erase_node(node)


def _write_replaced(node: fx.Node) -> None:
    """A value in some places, and in the others what layers make of it: the sum of both, each with zeros elsewhere.

    Multiples of the value stay with it. Where the value itself decides on the places, only what comes to it through
    sums is told apart.
    """
    condition, one, other = node.args
    assert isinstance(one, fx.Node)
    assert isinstance(other, fx.Node)
    value, made = (other, one) if other < one else (one, other)
    if not _is_layered(made, value):
        return
    if is_made_of(condition, value):
        leaves = _opened(made, value)
        if leaves.count(value) != 1:
            return
        images = [value]
    else:
        leaves = list(summands(made)) or [made]
        images = [leaf for leaf in leaves if value in factors_of(leaf)]
    rest = [leaf for leaf in leaves if leaf not in images]
    if not rest or any(leaf.meta.get("dtype") != node.meta["dtype"] for leaf in leaves):
        return
    with node.graph.inserting_before(node):
        pairs = [(value, added_up(node, images, value)), (added_up(node, [], value), added_up(node, rest, value))]
        ordered = [pair if made is other else pair[::-1] for pair in pairs]
        kept, added = (
            pair[0] if pair[0] is pair[1] else with_meta(aten.where.self, node, condition, *pair) for pair in ordered
        )
        total = with_meta(aten.add.Tensor, node, kept, added)
    node.replace_all_uses_with(total)
    node.graph.erase_node(node)


def _opened(total: fx.Node, value: fx.Node) -> list[fx.Node]:
    """The summands of a sum, and those of summands that a value comes to through sums alone, whoever reads these."""
    leaves = [total]
    while value not in leaves:
        sums = [leaf for leaf in leaves if is_add(leaf) and is_made_of(leaf, value)]
        if not sums:
            return leaves
        at = leaves.index(sums[0])
        leaves[at : at + 1] = sums[0].args  # type: ignore[assignment]
    return leaves


def _is_layered(node: fx.Node, of: fx.Node) -> bool:
    """A value is made of another one, and of matrices on the way."""
    made, between = {of}, list[fx.Node]()
    current = of
    while current is not node and current.op != "root":
        current = current.next
        if not made.isdisjoint(current.all_input_nodes):
            made.add(current)
            between.append(current)
    needed = {node} & made
    layered = False
    for current in reversed(between):
        if current in needed:
            needed.update(made.intersection(current.all_input_nodes))
            others = (other for other in current.all_input_nodes if other.op == "placeholder" and other not in made)
            layered = layered or any(len(other.meta.get("shape", ())) > 1 for other in others)
    return layered
