"""Sums over what was stacked as sums of what it is made of; stacks that grow as one value that grows.

    sum(stack([a, b, …], d), d)                 → a + b + …, and mean's like
    sum(stack([a, b, …], d) · w, d)             → a·w₀ + b·w₁ + …, with w's entries along d
    einsum("n…,n->…", stack([a, b, …]), w)      → the same, and so tensordot, stack(…, -1) @ w, w @ stack(…).flatten(1)
    conv2d(stack([a, b, …], 1), w) of 1 × 1     → the same, for one channel
    cumsum(stack([a, b, …], d), d)[…, -1]       → a + b + …
    sum(cat([a, b], -1).view(…, 2, d), -2)      → a + b, and so of cat([a.unsqueeze(0), b.unsqueeze(0)])
    stack([a, b, c], d) after stack([a, b], d)  → cat(cat(a, b), c) of unsqueezed values
    linear(stack([a, b, …], d))[…, 1]           → linear(b), where d is not the last dimension

So a weighted sum of layers is one of points, however it is spelled. Where weights are made of the stack itself, as in
attention over layers, that is a value of which the sum is a function, and stays whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import fx

from jetgraph.export.factors import is_made_of
from jetgraph.export.members import (
    LAYOUTS,
    Members,
    arguments,
    before_stacked,
    entry,
    like,
    members,
    stacked_along,
    unsqueezed,
)
from jetgraph.export.pieces import is_float

aten = torch.ops.aten


def write_sums_over_stacks(graph: fx.Graph) -> None:
    """Rewrite them in place."""
    for node in list(graph.nodes):
        if not is_float(node):
            continue
        with graph.inserting_before(node):
            write = _SUMS.get(node.target)
            total = None if write is None else write(node)
        if total is not None:
            node.replace_all_uses_with(total)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def read_past_stacks(graph: fx.Graph) -> None:
    """What is read of a stack at one place is what lies there, in place: the last of the layers that a decoder has kept
    is one point, and what a head makes of it is made of that alone. So is an open size, which would keep the stack.
    """
    for node in graph.find_nodes(op="call_function", target=aten.sym_size.int):
        node.args = before_stacked(*arguments(node))
    for node in list(graph.nodes):
        if node.target is not aten.select.int or not is_float(node) or node.kwargs:
            continue
        value, dim, place = arguments(node)
        with graph.inserting_before(node):
            member = _member(value, dim % len(value.meta["shape"]), place) if isinstance(place, int) else None
        if member is not None and member.meta["shape"] == node.meta["shape"]:
            node.replace_all_uses_with(member)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _member(value: fx.Node, dim: int, place: int) -> fx.Node | None:
    """What a stack, or a linear layer over the last dimension of one, has at a place of the stacked dimension."""
    shape = value.meta["shape"]
    if value.target is aten.linear.default and dim < len(shape) - 1:
        read, *weights = arguments(value)
        inner = _member(read, dim, place)
        if inner is None:
            return None
        made = like(value, aten.linear.default, inner, *weights)
        made.meta["shape"] = (*shape[:dim], *shape[dim + 1 :])
        return made
    found = members(value, dim)
    return found[1][place] if found is not None and -len(found[1]) <= place < len(found[1]) else None


def nest_stacks(graph: fx.Graph) -> None:
    """A stack that begins or ends as an earlier one is that with more beside it, in place."""
    earlier: list[tuple[fx.Node, list[Any], int]] = []
    for node in list(graph.nodes):
        if node.target is not aten.stack.default:
            continue
        parts, dim = list(node.args[0]), stacked_along(node)
        inside = [one for one in earlier if one[2] == dim and len(one[1]) < len(parts)]
        whole = node
        for other, pieces, _ in sorted(inside, key=lambda one: -len(one[1])):
            at = next((at for at in (0, len(parts) - len(pieces)) if parts[at : at + len(pieces)] == pieces), None)
            if at is not None:
                if other.target is aten.stack.default:
                    other = _laid_side_by_side(other, pieces, dim)
                    earlier = [(other if one[1] is pieces else one[0], *one[1:]) for one in earlier]
                with graph.inserting_before(node):
                    ends = [
                        [unsqueezed(part, dim) for part in some] for some in (parts[:at], parts[at + len(pieces) :])
                    ]
                    whole = like(node, aten.cat.default, [*ends[0], other, *ends[1]], dim)
                    whole.meta = dict(node.meta)
                node.replace_all_uses_with(whole)
                graph.erase_node(node)
                break
        earlier.append((whole, parts, dim))


def _laid_side_by_side(stack: fx.Node, parts: Sequence[Any], dim: int) -> fx.Node:
    """A stack that grows later on, as a concatenation, which what it grows by is put beside likewise."""
    with stack.graph.inserting_before(stack):
        whole = like(stack, aten.cat.default, [unsqueezed(part, dim) for part in parts], dim)
    whole.meta = dict(stack.meta)
    stack.replace_all_uses_with(whole)
    stack.graph.erase_node(stack)
    return whole


# Sums


def _total(node: fx.Node, parts: Sequence[fx.Node], factors: Sequence[fx.Node] = ()) -> fx.Node:
    """The sum of values, times factors if there are any; what is laid out alike, as flattened layers are, is so after
    that, as far as factors are numbers.
    """
    first, *others = parts
    if first.target in LAYOUTS and not any(factor.meta["shape"] for factor in factors):
        read = [part.args[0] for part in parts]
        shapes = {one.meta["shape"] for one in read if isinstance(one, fx.Node)}
        if (
            all((part.target, *part.args[1:]) == (first.target, *first.args[1:]) for part in others)
            and len(shapes) == 1
        ):
            total = like(node, first.target, _total(node, read, factors), *first.args[1:])  # type: ignore[arg-type]
            total.meta["shape"] = first.meta["shape"]
            return total
    if factors:
        parts = [like(node, aten.mul.Tensor, *pair) for pair in zip(parts, factors, strict=True)]
    return reduce(lambda one, other: like(node, aten.add.Tensor, one, other), parts)


def _summed(node: fx.Node) -> fx.Node | None:
    """Σ of the members of a stack, each with its weight."""
    value = node.args[0]
    dims: Any = node.args[1] if len(node.args) > 1 else None
    if not isinstance(value, fx.Node) or not value.meta["shape"] or not dims or node.kwargs:
        return None
    dim: int = dims[0] % len(value.meta["shape"])
    found = members(value, dim) if len(dims) == 1 else None
    if found is None:
        return None
    total = _total(node, found[1])
    if node.target is aten.mean.dim:
        total = like(node, aten.div.Tensor, total, len(found[1]))
    return unsqueezed(total, dim) if len(node.args) > 2 and node.args[2] else total


def _last_of_running_sums(node: fx.Node) -> fx.Node | None:
    """An entry of a running sum over a stack: the sum of its members so far."""
    running, dim, place = node.args
    if not isinstance(running, fx.Node) or running.target is not aten.cumsum.default or not isinstance(place, int):
        return None
    rank = len(running.meta["shape"])
    dim = dim % rank  # type: ignore[operator]
    found = members(running.args[0], dim) if running.args[1] % rank == dim else None  # type: ignore[operator]
    return None if found is None else _total(node, found[1][: place % len(found[1]) + 1])


def _contracted(node: fx.Node) -> fx.Node | None:
    """An einsum of a stack and weights that are told by letters of it, over the letter of the stack."""
    equation, operands = node.args[:2]
    assert isinstance(operands, Sequence)
    terms, arrow, output = str(equation).replace(" ", "").partition("->")
    letters = terms.split(",")
    if not arrow or "." in terms or len(letters) > 2 or node.kwargs:
        return None
    if len(letters) == 1:
        return _left_out(node, operands[0], letters[0], output)
    for at in (0, 1):
        value, weight = operands[at], operands[1 - at]
        assert isinstance(weight, fx.Node)
        own, others = letters[at], letters[1 - at]
        (along, *more) = [letter for letter in own if letter not in output] or [""]
        rest = own.replace(along, "")
        if more or not along or len(set(own)) < len(own) or output != rest or along not in others:
            continue
        if len(set(others)) < len(others) or not set(others) <= set(own):
            continue
        found = members(value, own.index(along))
        if found is None:
            continue
        stack, parts = found
        if is_made_of(weight, stack):
            return None
        summands = [_weighed(node, part, weight, others, rest, along, place) for place, part in enumerate(parts)]
        return _total(node, summands)
    return None


def _left_out(node: fx.Node, value: Any, own: str, output: str) -> fx.Node | None:
    """An einsum of a stack alone, whose letter it leaves out."""
    missing = [letter for letter in own if letter not in output]
    if len(missing) != 1 or len(set(own)) < len(own):
        return None
    found = members(value, own.index(missing[0]))
    if found is None:
        return None
    total, rest = _total(node, found[1]), own.replace(missing[0], "")
    if output == rest:
        return total
    shape = total.meta["shape"]
    total = like(node, aten.permute.default, total, [rest.index(letter) for letter in output])
    total.meta["shape"] = tuple(shape[rest.index(letter)] for letter in output)
    return total


def _weighed(node: fx.Node, part: fx.Node, weight: fx.Node, letters: str, rest: str, along: str, place: int) -> fx.Node:
    """A part times its weight, which has a size of one for each letter that it lacks."""
    factor = entry(weight, letters.index(along), place)
    own: Sequence[str] = letters.replace(along, "")
    order = sorted(range(len(own)), key=lambda at: rest.index(own[at]))
    if order != sorted(order):
        shape = factor.meta["shape"]
        factor = like(factor, aten.permute.default, factor, order)
        factor.meta["shape"] = tuple(shape[at] for at in order)
    for dim, letter in enumerate(rest):
        if own and letter not in own:
            factor = unsqueezed(factor, dim)
    return like(node, aten.mul.Tensor, part, factor)


# Products with weights


def _multiplied(node: fx.Node) -> fx.Node | None:
    """A matrix product over a dimension of a stack that gives one sum: with a vector, a column or a row."""
    one, other = node.args[:2]
    if not isinstance(one, fx.Node) or not isinstance(other, fx.Node) or node.kwargs:
        return None
    ranks = len(one.meta["shape"]), len(other.meta["shape"])
    if ranks[0] > 1 and (ranks[1] == 1 or other.meta["shape"][-1] == 1):
        found = _alone(one, ranks[0] - 1, other)
        if found is not None:
            return _by_weights(node, found, other, max(ranks[1] - 2, 0), None if ranks[1] == 1 else -1)
    if ranks[1] > 1 and (ranks[0] == 1 or one.meta["shape"][-2] == 1):
        found = _alone(other, ranks[1] - 2, one)
        if found is not None:
            return _by_weights(node, found, one, ranks[0] - 1, None if ranks[0] == 1 else -2)
    return None


def _projected(node: fx.Node) -> fx.Node | None:
    """A linear layer of one output over the last dimension of a stack."""
    value, weight, bias = (*node.args, None)[:3]
    if not isinstance(value, fx.Node) or not isinstance(weight, fx.Node) or node.kwargs:
        return None
    shape = weight.meta["shape"]
    found = _alone(value, len(value.meta["shape"]) - 1, weight) if len(shape) == 1 or shape[0] == 1 else None
    if found is None:
        return None
    total = _by_weights(node, found, weight, len(shape) - 1, None if len(shape) == 1 else -1)
    return total if bias is None else like(node, aten.add.Tensor, total, bias)


def _convolved(node: fx.Node) -> fx.Node | None:
    """A convolution of one channel, place by place, over the channels of a stack."""
    value, weight, bias = (*node.args, None)[:3]
    if not isinstance(value, fx.Node) or not isinstance(weight, fx.Node) or node.kwargs or len(node.args) > 3:
        return None
    one, channels, *places = weight.meta["shape"]
    found = _alone(value, 1, weight) if {one, *places} == {1} and len(value.meta["shape"]) == len(places) + 2 else None
    if found is None or len(found[1]) != channels:
        return None
    total = _by_weights(node, found, weight, 1, None)
    if isinstance(bias, fx.Node):
        total = like(node, aten.add.Tensor, total, _as_number(bias))
    return unsqueezed(total, 1)


def _by_vector(node: fx.Node) -> fx.Node | None:
    """A product over the last dimension of a stack with a vector, or over a named dimension."""
    one, other = node.args[:2]
    assert isinstance(one, fx.Node)
    assert isinstance(other, fx.Node)
    dims: Any = node.args[2:] or ([-1], [-1])
    for value, weight, own in ((one, other, dims[0]), (other, one, dims[1])):
        if len(own) == 1 and len(weight.meta["shape"]) == 1 and not node.kwargs:
            found = _alone(value, own[0] % len(value.meta["shape"]), weight)
            if found is not None:
                return _by_weights(node, found, weight, 0, None)
    return None


def _alone(value: fx.Node, dim: int, weight: fx.Node) -> Members | None:
    """The members of a stack that is made for this sum: what else is read of it would read it as a whole."""
    found = members(value, dim)
    if found is None or is_made_of(weight, found[0]):
        return None
    at = found[0]
    while at is not value:
        if len(at.users) > 1:
            return None
        (at,) = (user for user in at.users if user is value or is_made_of(value, user))
    return found if len(value.users) == 1 else None


def _by_weights(node: fx.Node, found: Members, weight: fx.Node, dim: int, one: int | None) -> fx.Node:
    """Σ of members times entries of the weight along a dimension; `one` where the product has a dimension of size one,
    counted from the end.
    """
    factors = [_as_number(entry(weight, dim, place)) for place in range(len(found[1]))]
    total = _total(node, found[1], factors)
    return total if one is None else unsqueezed(total, len(total.meta["shape"]) + 1 + one)


def _as_number(factor: fx.Node) -> fx.Node:
    """A factor that is one number, without dimensions."""
    if all(size == 1 for size in factor.meta["shape"]):
        for _ in factor.meta["shape"]:
            factor = entry(factor, 0, 0)
    return factor


def _beside(node: fx.Node) -> fx.Node | None:
    """A product entry by entry, summed over the dimension of a stack."""
    one, other = node.args[:2]
    assert isinstance(one, fx.Node)
    assert isinstance(other, fx.Node)
    along: Any = node.kwargs.get("dim", -1)
    dim: int = along % len(one.meta["shape"])
    for value, weight in ((one, other), (other, one)):
        if one.meta["shape"] == other.meta["shape"] and (found := _alone(value, dim, weight)) is not None:
            return _by_weights(node, found, weight, dim, None)
    return None


_SUMS: dict[Any, Callable[[fx.Node], fx.Node | None]] = {
    aten.sum.dim_IntList: _summed,
    aten.mean.dim: _summed,
    aten.select.int: _last_of_running_sums,
    aten.einsum.default: _contracted,
    aten.tensordot.default: _by_vector,
    aten.inner.default: _by_vector,
    aten.linalg_vecdot.default: _beside,
    aten.linear.default: _projected,
    **dict.fromkeys((aten.conv1d.default, aten.conv2d.default, aten.conv3d.default), _convolved),
    **dict.fromkeys((aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default), _multiplied),
}
"""Operators that sum over dimensions, by how they are written out."""
