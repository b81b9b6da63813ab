"""Concatenations of pieces of a value, to some of which something is added, as sums over all of it.

cat(h[:a], h[a:b] + y, h[b:])                → h + cat(0, y, 0), also in another order
cat(h[:a], g·h[a:b] + y, h[b:])              → cat(h[:a], g·h[a:b], h[b:]) + cat(0, y, 0)
cat(h[:a], g·(h[a:b] + y), h[b:])            → the same with g·y
cat(c + g(c), h[a:]) with c = h[:a] + y      → h + cat(y, 0), and to that cat(g(c), 0)
cat(h[:a] + y, h[a:], z)                     → cat(h, 0) + cat(y, 0, z)
cat(q, t)[:, :a], where that is q and t is not read → q
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from torch import fx

from jetgraph.export.factors import is_made_of
from jetgraph.export.layouts import laid_out_apart
from jetgraph.export.pieces import (
    END,
    Piece,
    are_all_of,
    as_piece,
    is_alike,
    is_float,
    read_piece,
    side_by_side,
    with_meta,
)
from jetgraph.export.summands import Update, alike_summands, as_update, factors_of, is_add, summands

aten = torch.ops.aten


def write_concatenated(node: fx.Node) -> None:
    """One sum for each piece that something is added to, in the order in which they are made; pieces that change
    places do so after it.
    """
    operands = [_spread_out(operand) for operand in node.args[0]]  # type: ignore[union-attr]
    bases = dict.fromkeys(piece.base for piece in map(as_piece, operands) if piece is not None)
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
                beside = side_by_side(pieces) == list(range(len(before)))
                if changed != [at] or not beside or not are_all_of(pieces, node, dim % len(node.meta["shape"])):
                    continue
                with node.graph.inserting_before(inner.next):
                    kept = [
                        read_piece(base, *pair) for pair in zip(pieces, before, strict=True) if pair[1] is not inner
                    ]
                    whole = with_meta(aten.cat.default, node, [*kept[:at], inner, *kept[at:]], dim)
                    now = [read_piece(whole, *pair) for pair in zip(pieces, before, strict=True)]
                for user in [user for user in inner.users if user is operand or user in sums]:
                    user.replace_input_with(inner, now[at])
                write_concatenated(whole)
                return _after_first_sums(node, [*now[:at], operand, *now[at + 1 :]], dim)
    return operands


def _sums_below(total: fx.Node) -> list[fx.Node]:
    """The adds below the root of a tree of adds, those that others read as well too."""
    found = [total] if is_add(total) else []
    for one in found:
        found += [arg for arg in one.all_input_nodes if is_add(arg) and arg not in found]
    return found[1:]


def _write_among_others(node: fx.Node, operands: Sequence[fx.Node], base: fx.Node, dim: int) -> bool:
    """cat(h[:a] + y, h[a:], z), where the pieces of a value stand beside others, as cat(h, 0) + cat(y, 0, z)."""
    added = [_added(operand, base) for operand in operands]
    places = [at for at, (piece, _) in enumerate(added) if piece is not None]
    pieces = [piece for piece, _ in added if piece is not None]
    updates = [update for _, update in added if update is not None]
    beside = places == list(range(places[0], places[-1] + 1)) if places else False
    whole = side_by_side(pieces) == list(range(len(pieces))) and {piece.dim for piece in pieces} == {dim}
    plain = all(update.image is update.part and len(update.node.users) == 1 for update in updates)
    if not (beside and whole and plain and updates) or base.meta["dtype"] != node.meta["dtype"]:
        return False

    def zeros(of: fx.Node) -> fx.Node:
        return with_meta(aten.zeros_like.default, of, of)

    before, after = operands[: places[0]], operands[places[-1] + 1 :]
    with node.graph.inserting_before(node):
        kept = [*map(zeros, before), base, *map(zeros, after)]
        made = [zeros(operands[at]) if (update := added[at][1]) is None else update.sum() for at in places]
        pair = [kept, [*before, *made, *after]]
        total = reduce(
            lambda one, other: with_meta(aten.add.Tensor, node, one, other),
            [with_meta(aten.cat.default, node, each, dim) for each in pair],
        )
    node.replace_all_uses_with(total)
    node.graph.erase_node(node)
    return True


def _spread_out(operand: fx.Node) -> fx.Node:
    """A sum that is laid out anew with a piece of a value, as the sum of what is laid out so."""
    total = laid_out_apart(operand, alike_summands, lambda leaf: as_piece(leaf) is not None)
    if total is not operand:
        operand.replace_all_uses_with(total)
    return total


def _multiplied_out(operand: fx.Node, bases: Collection[fx.Node]) -> fx.Node:
    """A multiple of a sum with a piece of one of these values, as the sum of multiples that it is."""
    if operand.target not in (aten.mul.Tensor, aten.div.Tensor) or len(operand.users) > 1:
        return operand
    for place, total in enumerate(operand.args[: 2 if operand.target is aten.mul.Tensor else 1]):
        if not isinstance(total, fx.Node) or not is_add(total) or len(total.users) > 1:
            continue
        leaves = list(summands(total))
        pieces = [piece for piece in map(as_piece, leaves) if piece is not None and piece.base in bases]
        if pieces and all(is_alike(operand, leaf) for leaf in leaves):
            with operand.graph.inserting_before(operand):
                args = [[leaf if at == place else arg for at, arg in enumerate(operand.args)] for leaf in leaves]
                multiples = [with_meta(operand.target, operand, *each) for each in args]
                opened = reduce(lambda one, other: with_meta(aten.add.Tensor, operand, one, other), multiples)
            operand.replace_all_uses_with(opened)
            return opened
    return operand


def _write_pieces(
    node: fx.Node, operands: Sequence[fx.Node], added: Sequence[tuple[Piece | None, Update | None]], dim: Any
) -> bool:
    """The same where the operands are these pieces of one value, or are added to them; False where they are not."""
    found = [piece for piece, _ in added if piece is not None]
    places = side_by_side(found)
    moved = places != list(range(len(added)))
    pieces = [found[place] for place in places]
    changes = [added[place][1] for place in places]
    if not pieces or not are_all_of(pieces, node, dim % len(node.meta["shape"])) or (moved and not any(changes)):
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
            value = with_meta(aten.add.Tensor, whole, value, whole)
        read = _read_again(value, [update.node for _, update in updates], pieces, order)
        updates = []
    for place, update in sorted(updates, key=lambda pair: order[pair[1].node]):
        value = _widened(update, parts, pieces, place, value)
        read[place] = update.node
        read = _read_again(value, read, pieces, order)
    if moved:
        with node.graph.inserting_before(node):
            now = [read_piece(value, piece, part) for piece, part in zip(pieces, parts, strict=True)]
            value = with_meta(aten.cat.default, node, [now[places.index(at)] for at in range(len(now))], dim)
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)
    return True


def _added_at_once(
    pieces: Sequence[Piece], changes: Sequence[Update | None], order: dict[fx.Node, int]
) -> fx.Node | None:
    """What is added to a value whose pieces all have a piece of it added: h[:a] + z[:a] beside h[a:] + z[a:] is h + z.

    So it is, too, where z is put together elsewhere of what is added to each.
    """
    updates = [update for update in changes if update is not None and len(update.others) == 1]
    if len(updates) < len(pieces) or any(update.image is not update.part for update in updates):
        return None
    added = [update.others[0] for update in updates]
    base, dim = pieces[0].base, pieces[0].dim
    of_one = [piece for piece in map(as_piece, added) if piece is not None]
    if len(of_one) == len(added) and side_by_side(of_one) == list(range(len(added))) and are_all_of(of_one, base, dim):
        whole = of_one[0].base
    else:
        beside = (user for user in added[0].users if user.target is aten.cat.default and is_alike(base, user))
        rank = len(base.meta["shape"])
        whole = next((one for one in beside if (one.args[0], (*one.args, 0)[1] % rank) == (added, dim)), None)  # type: ignore[operator]
    first, last = (end(order[update.node] for update in updates) for end in (min, max))
    early = (user for update in updates for user in update.node.users if order.get(user, last + 1) <= last)
    return None if whole is None or order.get(whole, first) >= first or any(early) else whole


def _bases(operand: Any) -> Iterator[fx.Node]:
    """The values of which an operand is a piece, or to pieces of which it may add something."""
    found: list[Any] = [operand]
    for one in found:
        piece = as_piece(one)
        if piece is not None:
            yield piece.base
        elif isinstance(one, fx.Node):
            found += one.all_input_nodes if is_add(one) else factors_of(one)


def _added(operand: Any, base: fx.Node) -> tuple[Piece | None, Update | None]:
    """The piece of a value that an operand is, or to which it adds something."""

    def piece_of(node: Any) -> Piece | None:
        piece = as_piece(node)
        return piece if piece is not None and piece.base is base else None

    piece = piece_of(operand)
    if piece is not None or not isinstance(operand, fx.Node):
        return piece, None
    update = as_update(operand, lambda node: piece_of(node) is not None, multiples=True)
    if update is None or (update.image is not update.part and not _reads_past(update, base)):
        return None, None
    return as_piece(update.part), update


def _reads_past(update: Update, base: fx.Node) -> bool:
    """A sum is made of a value by other ways than its piece alone, as in a coupling layer and not in a rotation."""
    return is_made_of(update.node, base, past=update.part)


def _widened(update: Update, parts: Sequence[fx.Node], pieces: Sequence[Piece], place: int, value: fx.Node) -> fx.Node:
    """value + cat(0, …, Σ others, …, 0), right after the sum of the piece; the piece of the value by its factor."""

    def zeros(part: fx.Node, piece: Piece) -> fx.Node:
        return with_meta(aten.zeros_like.default, part, read_piece(value, piece, part))

    with update.node.graph.inserting_before(update.node.next):
        added = [
            update.sum() if at == place else zeros(*pair) for at, pair in enumerate(zip(parts, pieces, strict=True))
        ]
        wide = with_meta(aten.cat.default, value, added, pieces[0].dim)
        wide.meta["module_path"] = update.node.meta["module_path"]
        if update.image is not update.part:
            pairs = list(zip(parts, pieces, strict=True))
            now = [
                update.image if at == place else read_piece(value, piece, part)
                for at, (part, piece) in enumerate(pairs)
            ]
            value = with_meta(aten.cat.default, value, now, pieces[0].dim)
        return with_meta(aten.add.Tensor, wide, value, wide)


def _read_again(
    total: fx.Node, parts: Sequence[fx.Node], pieces: Sequence[Piece], order: dict[fx.Node, int]
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
                now[at] = read_piece(total, piece, part)
            for user in users:
                user.replace_input_with(part, now[at])
    return now


def read_alone(node: fx.Node) -> fx.Node | None:
    """The operand of a concatenation that is all that is read of it, as queries are of queries beside a text: it stands
    for what reads it, and what is beside it has no say.
    """
    operands: Any
    dim: Any
    operands, dim = (*node.args, 0)[:2]
    read = {as_piece(user) for user in node.users}
    if len(read) != 1 or (piece := read.pop()) is None or piece.dim != dim % len(node.meta["shape"]):
        return None
    start: Any = 0
    for operand in operands[:-1]:
        length = operand.meta["shape"][dim] if is_float(operand) else None
        if not isinstance(length, int):
            return None
        if (piece.start, piece.stop) == (start, start + length):
            return operand
        start += length
    return operands[-1] if (piece.start, piece.stop) == (start, END) else None
