"""Sums over a part of a value as sums over all of it, which is how joins are looked for.

    index_add(h, …, y), scatter_add, index_put with accumulate     → h + index_add(0, …, y)
    slice_scatter(h, h[a:b] + y, a, b), and others that overwrite  → h + slice_scatter(0, y, a, b)
    cat(h[:a], h[a:b] + y, h[b:])                                  → h + cat(0, y, 0), also in another order
    cat(h[:a], g·h[a:b] + y, h[b:])                                → cat(h[:a], g·h[a:b], h[b:]) + cat(0, y, 0)
    cat(h[:a], g·(h[a:b] + y), h[b:])                              → the same with g·y
    cat(c + g(c), h[a:]) with c = h[:a] + y                        → h + cat(y, 0), and to that cat(g(c), 0)
    cat(h[:a] + y, h[a:], z)                                       → cat(h, 0) + cat(y, 0, z)
    where(c, h + y, h), where(c, h + y, h + z)                     → h + where(c, y, 0), h + where(c, y, z)
    where(c, f(h), h)                                              → where(c, f(h), 0) + where(c, 0, h)
    select(select_scatter(h, y, 0, i), 0, i), and slices           → y
    cat(q, t)[:, :a], where that is q and t is not read            → q

What reads h[a:b] + y besides is given that part of the sum, so that it lies after the join. Values stay as they are, to
the bit but for sums of several summands at one place.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import accumulate
from typing import Any

import torch
from torch import fx

from jetgraph.export.factors import is_made_of
from jetgraph.export.layouts import laid_out_apart

aten = torch.ops.aten

END = 2**63 - 1


def write_updates_as_sums(graph: fx.Graph) -> None:
    """Rewrite them in place."""
    written: dict[fx.Node, tuple[Any, ...]] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not _is_float(node):
            continue
        if node.target is aten.copy.default:
            drop_copy(node)
        elif node.target in WRITES:
            _read_past_writes(node)
        elif _accumulates(node):
            _write_accumulated(node)
        elif node.target in _READS:
            _write_overwritten(node, written)
        elif node.target is aten.cat.default:
            alone = _read_alone(node)
            if alone is None:
                _write_concatenated(node)
            else:
                for user in node.users:
                    user.replace_all_uses_with(alone)
        elif node.target is aten.where.self:
            _write_chosen(node)
    graph.eliminate_dead_code()


def _is_float(node: Any) -> bool:
    return isinstance(node, fx.Node) and getattr(node.meta.get("dtype"), "is_floating_point", False)


def _like(op: Any, node: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
    """A new node with the metadata of another one."""
    made = node.graph.call_function(op, args, kwargs)
    made.meta = dict(node.meta)
    return made


def _same(node: fx.Node, other: Any) -> bool:
    """Two values of one shape and type."""
    return _is_float(other) and all(node.meta.get(key) == other.meta.get(key) for key in ("shape", "dtype"))


def drop_copy(node: fx.Node) -> None:
    """copy(a, b) is b where nothing is cast or expanded."""
    if _same(node, node.args[1]):
        node.replace_all_uses_with(node.args[1])  # type: ignore[arg-type]
        node.graph.erase_node(node)


def takes_everything(node: fx.Node, at: int) -> bool:
    """A slice is all of a value, or what is written into one is; `at` is the argument that all is of."""
    where = node.args[at + 1 :]
    return _is_float(node) and _written_out(aten.slice.Tensor, where)[1:] == (0, END, 1) and _same(node, node.args[at])


# Reading what was written


WRITES: dict[Any, Any] = {aten.select.int: aten.select_scatter.default, aten.slice.Tensor: aten.slice_scatter.default}
"""By operator that reads a part, the one that writes into it."""


def _read_past_writes(node: fx.Node) -> None:
    """A part that was written into the place where it is read is what was written; one that was written beside it has
    no say, as in a list of layers that lies in one tensor.
    """
    base: Any = node.args[0]
    place = entries(node)
    while place is not None and base.target in WRITES.values() and not base.kwargs:
        written = entries(base)
        if written == place and base.target is WRITES[node.target] and _same(node, base.args[1]):
            node.replace_all_uses_with(base.args[1])
            node.graph.erase_node(node)
            return
        if written is None or written[0] != place[0] or not (written[2] <= place[1] or place[2] <= written[1]):
            break
        base = base.args[0]
    node.args = (base, *node.args[1:])


def _read_alone(node: fx.Node) -> fx.Node | None:
    """The operand of a concatenation that is all that is read of it, as queries are of queries beside a text: it stands
    for what reads it, and what is beside it has no say.
    """
    operands: Any
    dim: Any
    operands, dim = (*node.args, 0)[:2]
    read = {_piece(user) for user in node.users}
    if len(read) != 1 or (piece := read.pop()) is None or piece.dim != dim % len(node.meta["shape"]):
        return None
    start: Any = 0
    for operand in operands[:-1]:
        length = operand.meta["shape"][dim] if _is_float(operand) else None
        if not isinstance(length, int):
            return None
        if (piece.start, piece.stop) == (start, start + length):
            return operand
        start += length
    return operands[-1] if (piece.start, piece.stop) == (start, END) else None


def entries(node: fx.Node) -> tuple[int, int, int] | None:
    """The dimension, first entry and end of what is read or written, if these are known."""
    writes = node.target in WRITES.values()
    base, where = node.args[0], node.args[2 if writes else 1 :]
    assert isinstance(base, fx.Node)
    is_one = node.target in (aten.select.int, aten.select_scatter.default)
    place: tuple[Any, ...] = (*where, None, 1) if is_one else _written_out(aten.slice.Tensor, where)
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


# Operators that add


def _accumulates(node: fx.Node) -> bool:
    if node.target is aten.index_put.default:
        return len(node.args) > 3 and bool(node.args[3])
    return node.target in (aten.index_add.default, aten.scatter_add.default)


def _write_accumulated(node: fx.Node) -> None:
    base, *rest = node.args
    if not isinstance(base, fx.Node) or not _same(node, base) or _is_filled(base):
        return
    with node.graph.inserting_before(node):
        zeros = _like(aten.zeros_like.default, node, base)
        added = _like(node.target, node, zeros, *rest, **node.kwargs)
        total = _like(aten.add.Tensor, node, base, added)
    node.replace_all_uses_with(total)
    node.graph.erase_node(node)


FILLS = {
    aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default, aten.full.default, aten.full_like.default,
    aten.new_full.default, aten.empty.memory_format, aten.empty_like.default,
}  # fmt: skip
"""Operators that make a constant, or what nobody reads."""


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
    if not isinstance(base, fx.Node) or not _same(node, base) or node.kwargs:
        return
    where = _written_out(reads, (*node.args[1:at], *node.args[at + 1 :]))

    def is_part(other: fx.Node) -> bool:
        return other.target is reads and _uncut(other.args[0]) is base and _written_out(reads, other.args[1:]) == where

    written = node.args[at]
    if not isinstance(written, fx.Node):
        return
    everything = reads is aten.slice.Tensor and where[1:] == (0, END, 1) and _same(node, written)
    again = earlier.get(base) == (node.target, *node.args[1:])
    if everything or again or is_part(written):
        node.replace_all_uses_with(written if everything else base)
        node.graph.erase_node(node)
        return
    update = _update(laid_out_apart(written, _alike, is_part), is_part)
    if update is None:
        return
    with node.graph.inserting_before(node):
        zeros = _like(aten.zeros_like.default, node, base)
        # As many rows as a mask chooses of zeros: how many there are does not depend on the base.
        value = replace(update, part=_like(reads, update.part, zeros, *update.part.args[1:])).sum()
        added = _like(node.target, node, zeros, *node.args[1:at], value, *node.args[at + 1 :])
        total = _like(aten.add.Tensor, node, base, added)
    earlier[total] = (node.target, *node.args[1:])
    node.replace_all_uses_with(total)
    node.graph.erase_node(node)


def _uncut(base: Any) -> Any:
    """What a slice is of that takes everything."""
    while isinstance(base, fx.Node) and base.target is aten.slice.Tensor:
        if _written_out(aten.slice.Tensor, base.args[1:])[1:] != (0, END, 1) or not _same(base, base.args[0]):
            break
        base = base.args[0]
    return base


def _written_out(reads: Any, where: tuple[Any, ...]) -> tuple[Any, ...]:
    """Where something is read or written, with defaults and lists in one form."""
    if reads is aten.slice.Tensor:
        dim, start, end, step = (*where, *(0, None, None, 1)[len(where) :])
        return dim, start or 0, END if end is None else end, step
    if reads is aten.index.Tensor:
        return tuple(where[0])
    return where


@dataclass(frozen=True)
class _Update:
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
            total = _like(aten.add.Tensor, self.node, total, other)
        return total

    def _spread(self, other: fx.Node) -> fx.Node:
        return other if _same(self.node, other) else _like(aten.expand_as.default, self.node, other, self.part)


def _update(node: fx.Node, is_part: Any, *, multiples: bool = False) -> _Update | None:
    """A sum that holds the part once, or else a multiple of it if these count, and whose shape the part has; inner adds
    that others read too are not opened.
    """
    leaves = list(_summands(node))
    parts = [(leaf, leaf) for leaf in leaves if is_part(leaf)]
    if multiples and not parts:
        parts = [(leaf, part) for leaf in leaves for part in _factors(leaf) if is_part(part)]
    others = tuple(leaf for leaf in leaves if all(leaf is not image for image, _ in parts))
    if len(parts) != 1 or not others or not _same(node, parts[0][1]):
        return None
    if any(leaf.meta.get("dtype") != node.meta["dtype"] for leaf in others):
        return None
    image, part = parts[0]
    return _Update(node, part, others, image)


def _factors(node: fx.Node) -> Iterator[fx.Node]:
    """The values of the same shape of which a node is a multiple."""
    if node.target in (aten.mul.Tensor, aten.div.Tensor, aten.neg.default):
        for value in node.args[: 2 if node.target is aten.mul.Tensor else 1]:
            if isinstance(value, fx.Node) and _same(node, value):
                yield value
                yield from _factors(value)


def _write_chosen(node: fx.Node) -> None:
    """What two sums have in common, of which one is taken where something holds, and the other one elsewhere."""
    condition, *options = node.args
    if not all(_is_float(option) and _same(node, option) for option in options):
        return
    one, other = ([option, *_summands(option)] for option in options)
    # One of them is a summand of the other one, or both are sums; what is such a sum is no summand besides.
    shared: Any = next((leaf for leaf in (options[0], options[1], *one[1:]) if leaf in one and leaf in other), None)
    if shared is None:
        _write_replaced(node)
        return
    if not _same(node, shared) or one[0] is other[0]:
        return
    summands = [[shared] if leaves[0] is shared else leaves[1:] for leaves in (one, other)]
    same_type = all(leaf.meta.get("dtype") == node.meta["dtype"] for leaves in summands for leaf in leaves)
    if not same_type or any(leaves.count(shared) > 1 for leaves in summands):
        return
    with node.graph.inserting_before(node):
        values = [_added_up(node, [leaf for leaf in leaves if leaf is not shared], shared) for leaves in summands]
        added = _like(aten.where.self, node, condition, *values)
        total = _like(aten.add.Tensor, node, shared, added)
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
        leaves = list(_summands(made)) or [made]
        images = [leaf for leaf in leaves if value in _factors(leaf)]
    rest = [leaf for leaf in leaves if leaf not in images]
    if not rest or any(leaf.meta.get("dtype") != node.meta["dtype"] for leaf in leaves):
        return
    with node.graph.inserting_before(node):
        pairs = [(value, _added_up(node, images, value)), (_added_up(node, [], value), _added_up(node, rest, value))]
        ordered = [pair if made is other else pair[::-1] for pair in pairs]
        kept, added = (
            pair[0] if pair[0] is pair[1] else _like(aten.where.self, node, condition, *pair) for pair in ordered
        )
        total = _like(aten.add.Tensor, node, kept, added)
    node.replace_all_uses_with(total)
    node.graph.erase_node(node)


def _opened(total: fx.Node, value: fx.Node) -> list[fx.Node]:
    """The summands of a sum, and those of summands that a value comes to through sums alone, whoever reads these."""
    leaves = [total]
    while value not in leaves:
        sums = [
            leaf
            for leaf in leaves
            if leaf.target is aten.add.Tensor and all(map(_is_float, leaf.args)) and is_made_of(leaf, value)
        ]
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


def _summands(option: Any) -> Iterator[fx.Node]:
    """Those of a sum; none of what is no sum."""
    if option.target is aten.add.Tensor and all(map(_is_float, option.args)):
        yield from _leaves(option)


def _alike(total: fx.Node) -> list[fx.Node]:
    """The summands of a sum, if all have its shape and type; none of what is no sum."""
    leaves = list(_summands(total))
    return leaves if all(_same(total, leaf) for leaf in leaves) else []


def _added_up(like: fx.Node, leaves: Sequence[fx.Node], shape: fx.Node) -> fx.Node:
    """The sum of these, of a value's shape; zeros where there are none."""
    if not leaves:
        return _like(aten.zeros_like.default, like, shape)
    full = [leaf if _same(like, leaf) else _like(aten.expand_as.default, like, leaf, shape) for leaf in leaves]
    return reduce(lambda one, other: _like(aten.add.Tensor, like, one, other), full)


# Parts put side by side


@dataclass(frozen=True)
class _Piece:
    """base[start:stop] along a dimension; ends are numbers, or computed from sizes."""

    base: fx.Node
    dim: int
    start: int | fx.Node
    stop: int | fx.Node


def _piece(node: Any) -> _Piece | None:
    """The piece of a value that a node is, if it is one."""
    if not isinstance(node, fx.Node):
        return None
    if node.target is aten.slice.Tensor:
        dim, start, stop, step = _written_out(aten.slice.Tensor, node.args[1:])
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


def _split_off(split: fx.Node, number: Any) -> _Piece | None:
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


def _placed(base: Any, dim: Any, start: Any, stop: Any) -> _Piece | None:
    if not isinstance(base, fx.Node) or not all(isinstance(end, int | fx.Node) for end in (start, stop)):
        return None
    dim %= len(base.meta["shape"])
    length = base.meta["shape"][dim]
    if isinstance(length, int) and isinstance(start, int) and isinstance(stop, int):
        start, stop = (number + length if number < 0 else number for number in (start, stop))
        stop = END if stop >= length else stop
    return _Piece(base, dim, start, stop)


def _write_concatenated(node: fx.Node) -> None:
    """One sum for each piece that something is added to, in the order in which they are made; pieces that change
    places do so after it.
    """
    operands = [_spread_out(operand) for operand in node.args[0]]  # type: ignore[union-attr]
    bases = dict.fromkeys(piece.base for piece in map(_piece, operands) if piece is not None)
    operands = [_multiplied_out(operand, bases) for operand in operands]
    dim: Any = node.args[1] if len(node.args) > 1 else 0
    operands = _after_first_sums(node, operands, dim)
    for base in dict.fromkeys(_bases(operands[0])):
        added = [_added(operand, base) for operand in operands]
        if all(piece is not None for piece, _ in added) and _write_pieces(node, operands, added, dim):
            return
    for base in bases:
        if _write_among_others(node, operands, base, dim % len(node.meta["shape"])):
            return


def _after_first_sums(node: fx.Node, operands: list[fx.Node], dim: int) -> list[fx.Node]:
    """The operands where a piece is added to again by what is made of a first sum: with c = h[:a] + y, those of
    cat(c + g(c), h[a:]) are added to pieces of cat(c, h[a:]), which is written as a sum before.
    """
    for at, operand in enumerate(operands):
        sums = _sums_below(operand)
        for inner in (one for one in sums if len(one.users) > 1):
            before = [*operands[:at], inner, *operands[at + 1 :]]
            for base in dict.fromkeys(_bases(inner)):
                added = [_added(one, base) for one in before]
                pieces = [piece for piece, _ in added if piece is not None]
                changed = [place for place, (_, update) in enumerate(added) if update is not None]
                beside = _side_by_side(pieces) == list(range(len(before)))
                if changed != [at] or not beside or not _covers(pieces, node, dim % len(node.meta["shape"])):
                    continue
                with node.graph.inserting_before(inner.next):
                    kept = [_read(base, *pair) for pair in zip(pieces, before, strict=True) if pair[1] is not inner]
                    whole = _like(aten.cat.default, node, [*kept[:at], inner, *kept[at:]], dim)
                    now = [_read(whole, *pair) for pair in zip(pieces, before, strict=True)]
                for user in [user for user in inner.users if user is operand or user in sums]:
                    user.replace_input_with(inner, now[at])
                _write_concatenated(whole)
                return _after_first_sums(node, [*now[:at], operand, *now[at + 1 :]], dim)
    return operands


def _sums_below(total: fx.Node) -> list[fx.Node]:
    """The adds below the root of a tree of adds, those that others read as well too."""
    found = [total] if total.target is aten.add.Tensor else []
    for one in found:
        args: Any = one.args
        found += [arg for arg in args if _is_float(arg) and arg.target is aten.add.Tensor and arg not in found]
    return found[1:]


def _write_among_others(node: fx.Node, operands: Sequence[fx.Node], base: fx.Node, dim: int) -> bool:
    """cat(h[:a] + y, h[a:], z), where the pieces of a value stand beside others, as cat(h, 0) + cat(y, 0, z)."""
    added = [_added(operand, base) for operand in operands]
    places = [at for at, (piece, _) in enumerate(added) if piece is not None]
    pieces = [piece for piece, _ in added if piece is not None]
    updates = [update for _, update in added if update is not None]
    beside = places == list(range(places[0], places[-1] + 1)) if places else False
    whole = _side_by_side(pieces) == list(range(len(pieces))) and {piece.dim for piece in pieces} == {dim}
    plain = all(update.image is update.part and len(update.node.users) == 1 for update in updates)
    if not (beside and whole and plain and updates) or base.meta["dtype"] != node.meta["dtype"]:
        return False

    def zeros(of: fx.Node) -> fx.Node:
        return _like(aten.zeros_like.default, of, of)

    before, after = operands[: places[0]], operands[places[-1] + 1 :]
    with node.graph.inserting_before(node):
        kept = [*map(zeros, before), base, *map(zeros, after)]
        made = [zeros(operands[at]) if (update := added[at][1]) is None else update.sum() for at in places]
        pair = [kept, [*before, *made, *after]]
        total = reduce(
            lambda one, other: _like(aten.add.Tensor, node, one, other),
            [_like(aten.cat.default, node, each, dim) for each in pair],
        )
    node.replace_all_uses_with(total)
    node.graph.erase_node(node)
    return True


def _spread_out(operand: fx.Node) -> fx.Node:
    """A sum that is laid out anew with a piece of a value, as the sum of what is laid out so."""
    total = laid_out_apart(operand, _alike, lambda leaf: _piece(leaf) is not None)
    if total is not operand:
        operand.replace_all_uses_with(total)
    return total


def _multiplied_out(operand: fx.Node, bases: Collection[fx.Node]) -> fx.Node:
    """A multiple of a sum with a piece of one of these values, as the sum of multiples that it is."""
    if operand.target not in (aten.mul.Tensor, aten.div.Tensor) or len(operand.users) > 1:
        return operand
    for place, total in enumerate(operand.args[: 2 if operand.target is aten.mul.Tensor else 1]):
        if not isinstance(total, fx.Node) or total.target is not aten.add.Tensor or len(total.users) > 1:
            continue
        leaves = list(_leaves(total)) if all(map(_is_float, total.args)) else []
        pieces = [piece for piece in map(_piece, leaves) if piece is not None and piece.base in bases]
        if pieces and all(_same(operand, leaf) for leaf in leaves):
            with operand.graph.inserting_before(operand):
                args = [[leaf if at == place else arg for at, arg in enumerate(operand.args)] for leaf in leaves]
                multiples = [_like(operand.target, operand, *each) for each in args]
                opened = reduce(lambda one, other: _like(aten.add.Tensor, operand, one, other), multiples)
            operand.replace_all_uses_with(opened)
            return opened
    return operand


def _leaves(total: fx.Node) -> Iterator[Any]:
    """The summands of a tree of adds; an add below its root that others read too is one."""
    one: Any
    for one in total.args:
        if one.target is aten.add.Tensor and len(one.users) == 1 and all(map(_is_float, one.args)):
            yield from _leaves(one)
        else:
            yield one


def _write_pieces(
    node: fx.Node, operands: Sequence[fx.Node], added: Sequence[tuple[_Piece | None, _Update | None]], dim: Any
) -> bool:
    """The same where the operands are these pieces of one value, or are added to them; False where they are not."""
    found = [piece for piece, _ in added if piece is not None]
    places = _side_by_side(found)
    moved = places != list(range(len(added)))
    pieces = [found[place] for place in places]
    changes = [added[place][1] for place in places]
    if not pieces or not _covers(pieces, node, dim % len(node.meta["shape"])) or (moved and not any(changes)):
        return False
    # Where pieces end has to be known where something is added to the first of them.
    ends = [end for piece in pieces for end in (piece.start, piece.stop) if isinstance(end, fx.Node)]
    if any(update.node < end for update in changes if update is not None for end in ends):
        return False
    order = {other: place for place, other in enumerate(node.graph.nodes)}
    value = pieces[0].base
    parts = [operands[at] if update is None else update.part for at, update in zip(places, changes, strict=True)]
    read = list(parts)
    updates = [(place, update) for place, update in enumerate(changes) if update is not None]
    whole = _added_at_once(pieces, changes, order)
    if whole is not None:
        last = max((update.node for _, update in updates), key=order.__getitem__)
        with node.graph.inserting_before(last.next):
            value = _like(aten.add.Tensor, whole, value, whole)
        read = _read_again(value, [update.node for _, update in updates], pieces, order)
        updates = []
    for place, update in sorted(updates, key=lambda pair: order[pair[1].node]):
        value = _widened(update, parts, pieces, place, value)
        read[place] = update.node
        read = _read_again(value, read, pieces, order)
    if moved:
        with node.graph.inserting_before(node):
            now = [_read(value, piece, part) for piece, part in zip(pieces, parts, strict=True)]
            value = _like(aten.cat.default, node, [now[places.index(at)] for at in range(len(now))], dim)
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)
    return True


def _added_at_once(
    pieces: Sequence[_Piece], changes: Sequence[_Update | None], order: dict[fx.Node, int]
) -> fx.Node | None:
    """What is added to a value whose pieces all have a piece of it added: h[:a] + z[:a] beside h[a:] + z[a:] is h + z.

    So it is, too, where z is put together elsewhere of what is added to each.
    """
    updates = [update for update in changes if update is not None and len(update.others) == 1]
    if len(updates) < len(pieces) or any(update.image is not update.part for update in updates):
        return None
    added = [update.others[0] for update in updates]
    base, dim = pieces[0].base, pieces[0].dim
    of_one = [piece for piece in map(_piece, added) if piece is not None]
    if len(of_one) == len(added) and _side_by_side(of_one) == list(range(len(added))) and _covers(of_one, base, dim):
        whole = of_one[0].base
    else:
        beside = (user for user in added[0].users if user.target is aten.cat.default and _same(base, user))
        rank = len(base.meta["shape"])
        whole = next((one for one in beside if (one.args[0], (*one.args, 0)[1] % rank) == (added, dim)), None)  # type: ignore[operator]
    first, last = (end(order[update.node] for update in updates) for end in (min, max))
    early = (user for update in updates for user in update.node.users if order.get(user, last + 1) <= last)
    return None if whole is None or order.get(whole, first) >= first or any(early) else whole


def _bases(operand: Any) -> Iterator[fx.Node]:
    """The values of which an operand is a piece, or to pieces of which it may add something."""
    found: list[Any] = [operand]
    for one in found:
        piece = _piece(one)
        if piece is not None:
            yield piece.base
        elif isinstance(one, fx.Node):
            found += one.all_input_nodes if one.target is aten.add.Tensor else _factors(one)


def _added(operand: Any, base: fx.Node) -> tuple[_Piece | None, _Update | None]:
    """The piece of a value that an operand is, or to which it adds something."""

    def piece_of(node: Any) -> _Piece | None:
        piece = _piece(node)
        return piece if piece is not None and piece.base is base else None

    piece = piece_of(operand)
    if piece is not None or not isinstance(operand, fx.Node):
        return piece, None
    update = _update(operand, lambda node: piece_of(node) is not None, multiples=True)
    if update is None or (update.image is not update.part and not _reads_past(update, base)):
        return None, None
    return _piece(update.part), update


def _reads_past(update: _Update, base: fx.Node) -> bool:
    """A sum is made of a value by other ways than its piece alone, as in a coupling layer and not in a rotation."""
    return is_made_of(update.node, base, past=update.part)


def _side_by_side(pieces: Sequence[_Piece]) -> list[int]:
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


def _covers(pieces: Sequence[_Piece], whole: fx.Node, dim: int) -> bool:
    """Pieces that lie beside each other are all of one value."""
    return (
        len({(piece.base, piece.dim) for piece in pieces}) == 1
        and pieces[0].dim == dim
        and _same(whole, pieces[0].base)
    )


def _widened(
    update: _Update, parts: Sequence[fx.Node], pieces: Sequence[_Piece], place: int, value: fx.Node
) -> fx.Node:
    """value + cat(0, …, Σ others, …, 0), right after the sum of the piece; the piece of the value by its factor."""

    def zeros(part: fx.Node, piece: _Piece) -> fx.Node:
        return _like(aten.zeros_like.default, part, _read(value, piece, part))

    with update.node.graph.inserting_before(update.node.next):
        added = [
            update.sum() if at == place else zeros(*pair) for at, pair in enumerate(zip(parts, pieces, strict=True))
        ]
        wide = _like(aten.cat.default, value, added, pieces[0].dim)
        wide.meta["module_path"] = update.node.meta["module_path"]
        if update.image is not update.part:
            pairs = list(zip(parts, pieces, strict=True))
            now = [update.image if at == place else _read(value, piece, part) for at, (part, piece) in enumerate(pairs)]
            value = _like(aten.cat.default, value, now, pieces[0].dim)
        return _like(aten.add.Tensor, wide, value, wide)


def _read_again(
    total: fx.Node, parts: Sequence[fx.Node], pieces: Sequence[_Piece], order: dict[fx.Node, int]
) -> list[fx.Node]:
    """Let what comes after a sum, and read pieces of what it was made from, read those of the sum: the pieces now."""
    made = total.prev
    while made not in order:
        made = made.prev
    following = total.next
    now = list(parts)
    for at, (part, piece) in enumerate(zip(parts, pieces, strict=True)):
        users = [user for user in part.users if order.get(user, -1) > order[made]]
        if users:
            with total.graph.inserting_before(following):
                now[at] = _read(total, piece, part)
            for user in users:
                user.replace_input_with(part, now[at])
    return now


def _read(value: fx.Node, piece: _Piece, like: fx.Node) -> fx.Node:
    """The same piece of another value."""
    return _like(aten.slice.Tensor, like, value, piece.dim, piece.start, piece.stop)
