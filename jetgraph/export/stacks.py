"""Sums over what was stacked as sums of what it is made of; stacks that grow as one value that grows.

    sum(stack([a, b, …], d), d)                 → a + b + …, and mean's like
    sum(stack([a, b, …], d) · w, d)             → a·w₀ + b·w₁ + …, with w's entries along d
    einsum("n…,n->…", stack([a, b, …]), w)      → the same
    stack([a, b, c], d) after stack([a, b], d)  → cat(cat(a, b), c) of unsqueezed values

So a weighted sum of layers is one of points, however it is spelled. Where weights are made of the stack itself, as in
attention over layers, that is a value of which the sum is a function, and stays whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import fx

from jetgraph.export.factors import broadcast, is_made_of

aten = torch.ops.aten


def write_sums_over_stacks(graph: fx.Graph) -> None:
    """Rewrite them in place."""
    for node in list(graph.nodes):
        if not _is_float(node):
            continue
        with graph.inserting_before(node):
            if node.target in (aten.sum.dim_IntList, aten.mean.dim):
                total = _summed(node)
            elif node.target is aten.einsum.default:
                total = _contracted(node)
            else:
                continue
        if total is not None:
            node.replace_all_uses_with(total)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def nest_stacks(graph: fx.Graph) -> None:
    """A stack that begins or ends as an earlier one is that with more beside it, in place."""
    earlier: list[tuple[fx.Node, list[Any], int]] = []
    for node in list(graph.nodes):
        if node.target is not aten.stack.default:
            continue
        parts, dim = list(node.args[0]), _dim(node)
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
                        [_unsqueezed(part, dim) for part in some] for some in (parts[:at], parts[at + len(pieces) :])
                    ]
                    whole = _like(node, aten.cat.default, [*ends[0], other, *ends[1]], dim)
                    whole.meta = dict(node.meta)
                node.replace_all_uses_with(whole)
                graph.erase_node(node)
                break
        earlier.append((whole, parts, dim))


def _laid_side_by_side(stack: fx.Node, parts: Sequence[Any], dim: int) -> fx.Node:
    """A stack that grows later on, as a concatenation, which what it grows by is put beside likewise."""
    with stack.graph.inserting_before(stack):
        whole = _like(stack, aten.cat.default, [_unsqueezed(part, dim) for part in parts], dim)
    whole.meta = dict(stack.meta)
    stack.replace_all_uses_with(whole)
    stack.graph.erase_node(stack)
    return whole


def _is_float(node: fx.Node) -> bool:
    return getattr(node.meta.get("dtype"), "is_floating_point", False)


def _dim(stack: fx.Node) -> int:
    """The dimension along which the parts lie."""
    dim: Any = stack.args[1] if len(stack.args) > 1 else stack.kwargs.get("dim", 0)
    return dim % len(stack.meta["shape"])


def _like(node: fx.Node, op: Any, *args: Any) -> fx.Node:
    """A node in the place of another one, of the shape that its operands have together."""
    made = node.graph.call_function(op, args)
    shapes = [arg.meta["shape"] for arg in args if isinstance(arg, fx.Node)]
    made.meta = {**node.meta, "shape": reduce(broadcast, shapes) if shapes else node.meta["shape"]}
    return made


def _unsqueezed(part: fx.Node, dim: int) -> fx.Node:
    made = _like(part, aten.unsqueeze.default, part, dim)
    shape = part.meta["shape"]
    made.meta["shape"] = (*shape[:dim], 1, *shape[dim:])
    return made


def _entry(node: fx.Node, dim: int, place: int) -> fx.Node:
    made = _like(node, aten.select.int, node, dim, place)
    shape = node.meta["shape"]
    made.meta["shape"] = (*shape[:dim], *shape[dim + 1 :])
    return made


# Sums


def _summed(node: fx.Node) -> fx.Node | None:
    """Σ of the members of a stack, each with its weight."""
    value, dims = node.args[:2]
    if not isinstance(value, fx.Node) or not value.meta["shape"] or not dims or node.kwargs:
        return None
    keep = len(node.args) > 2 and bool(node.args[2])
    rank = len(value.meta["shape"])
    dim = dims[0] % rank  # type: ignore[index, operator]
    found = _members(value, dim) if len(dims) == 1 else None  # type: ignore[arg-type]
    if keep or found is None:
        return None
    _, members = found
    total = reduce(lambda one, other: _like(node, aten.add.Tensor, one, other), members)
    return _like(node, aten.div.Tensor, total, len(members)) if node.target is aten.mean.dim else total


def _members(value: fx.Node, dim: int) -> tuple[fx.Node, list[fx.Node]] | None:
    """A stack, and along its dimension the entries of a value that is it or a multiple of it; two or more."""
    if value.target is aten.stack.default and _dim(value) == dim:
        parts: Any = value.args[0]
        return (value, list(parts)) if len(parts) > 1 else None
    if value.target not in (aten.mul.Tensor, aten.div.Tensor) or value.kwargs:
        return None
    left, right = value.args
    for one, other in ((left, right), (right, left))[: 2 if value.target is aten.mul.Tensor else 1]:
        if isinstance(one, fx.Node) and one.meta.get("shape") == value.meta["shape"]:
            found = _members(one, dim)
            if found is not None and not is_made_of(other, found[0]):
                stack, members = found
                rank, number = len(value.meta["shape"]), len(members)
                factors = [_weight(other, dim, rank, place) for place in range(number)]
                return stack, [_like(value, value.target, *pair) for pair in zip(members, factors, strict=True)]
    return None


def _weight(factor: Any, dim: int, rank: int, place: int) -> Any:
    """What the entry at a place is multiplied by."""
    if not isinstance(factor, fx.Node):
        return factor
    shape = factor.meta["shape"]
    own = dim - (rank - len(shape))
    return factor if own < 0 else _entry(factor, own, 0 if shape[own] == 1 else place)


def _contracted(node: fx.Node) -> fx.Node | None:
    """An einsum of a stack and weights that are told by letters of it, over the letter of the stack."""
    equation, operands = node.args[:2]
    assert isinstance(operands, Sequence)
    terms, arrow, output = str(equation).replace(" ", "").partition("->")
    letters = terms.split(",")
    if not arrow or "." in terms or len(letters) != 2 or node.kwargs:
        return None
    for at in (0, 1):
        stack, weight = operands[at], operands[1 - at]
        assert isinstance(stack, fx.Node)
        assert isinstance(weight, fx.Node)
        own, others = letters[at], letters[1 - at]
        parts: Any = stack.args[0] if stack.target is aten.stack.default else ()
        if len(parts) < 2 or len(set(own)) < len(own):
            continue
        along = own[_dim(stack)]
        rest = own.replace(along, "")
        if output != rest or along not in others or [one for one in own if one in others] != list(others):
            continue
        if is_made_of(weight, stack):
            return None
        summands = [_weighed(node, part, weight, others, rest, along, place) for place, part in enumerate(parts)]
        return reduce(lambda one, other: _like(node, aten.add.Tensor, one, other), summands)
    return None


def _weighed(node: fx.Node, part: fx.Node, weight: fx.Node, letters: str, rest: str, along: str, place: int) -> fx.Node:
    """A part times its weight, which has a size of one for each letter that it lacks."""
    factor = _entry(weight, letters.index(along), place)
    own: Sequence[str] = letters.replace(along, "")
    for dim, letter in enumerate(rest):
        if own and letter not in own:
            factor = _unsqueezed(factor, dim)
    return _like(node, aten.mul.Tensor, part, factor)
