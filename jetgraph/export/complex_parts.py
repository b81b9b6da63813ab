"""Real and imaginary parts of complex values that were put together from two real ones, as these.

    complex(h, f).real + complex(h, f).imag          → h + f
    view_as_real(view_as_complex(stack([h, f], -1))) → stack([h, f], -1)
    (complex(h, f) · w).real                         → h·w.real − f·w.imag, and conj's and numbers' like
    (h + 1j·f).imag                                  → f

So a sum of parts is one of the values that they are. What adds to a complex stream stays as it is.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from jetgraph.export.members import like, stacked_along

aten = torch.ops.aten

Part = fx.Node | None
"""A real value, or zero."""


def write_complex_parts(graph: fx.Graph) -> None:
    """Rewrite them in place."""
    for node in graph.find_nodes(op="call_function", target=aten.view_as_real.default):
        with graph.inserting_before(node):
            stack = _side_by_side(node)
        if stack is not None:
            node.replace_all_uses_with(stack)
            graph.erase_node(node)
            _read_members(stack)
    graph.eliminate_dead_code()


def _side_by_side(node: fx.Node) -> fx.Node | None:
    """The parts of a complex value along a last dimension, as `view_as_real` has them."""
    value = node.args[0]
    found = _parts(value) if isinstance(value, fx.Node) else None
    known = [] if found is None else [part for part in found if part is not None]
    if found is None or not known or any(part.meta["shape"] != node.meta["shape"][:-1] for part in known):
        return None
    parts = [part if part is not None else _real_like(known[0], aten.zeros_like.default, known[0]) for part in found]
    stack = _real_like(node, aten.stack.default, parts, -1)
    stack.meta["shape"] = node.meta["shape"]
    return stack


def _read_members(stack: fx.Node) -> None:
    """What reads one of the values that are stacked reads that itself, unless both are read as one value too."""
    if any(user.target not in (aten._neg_view.default, aten.select.int, aten.unbind.int) for user in stack.users):
        return
    parts: Any = stack.args[0]
    for user in list(stack.users):
        if user.target is aten._neg_view.default:
            with stack.graph.inserting_before(user):
                negated = _real_like(user, aten.stack.default, [_negated(part) for part in parts], -1)
            negated.meta = dict(user.meta)
            user.replace_all_uses_with(negated)
            stack.graph.erase_node(user)
            _read_members(negated)
        elif user.target is aten.select.int and user.args[1] in (-1, stacked_along(stack)):
            user.replace_all_uses_with(parts[user.args[2]])
            stack.graph.erase_node(user)
        elif user.target is aten.unbind.int and (*user.args[1:], 0)[0] in (-1, stacked_along(stack)):
            for item in [one for one in user.users if one.target is operator.getitem]:
                item.replace_all_uses_with(parts[item.args[1]])
                stack.graph.erase_node(item)


def _parts(value: fx.Node) -> tuple[Part, Part] | None:
    """The real and the imaginary part, if these were put together; None where the value is complex from the start."""
    args: Any = value.args
    if value.kwargs:
        return None
    if value.target is aten.complex.default:
        return (args[0], args[1]) if _is_taken_apart(value) else None
    if value.target is aten.view_as_complex.default:
        return _of_pair(args[0]) if _is_taken_apart(value) else None
    if value.target in _MULTIPLES - {aten.mul.Tensor}:
        found = _parts(args[0])
        if found is None:
            return None
        real, imaginary = found
        return (_negated(real) if value.target is aten.neg.default else real), _negated(imaginary)
    if value.target is aten.mul.Tensor:
        return next((found for pair in (args, args[::-1]) if (found := _product(*pair)) is not None), None)
    return _with_imaginary(*args) if value.target is aten.add.Tensor else None


def _is_taken_apart(value: fx.Node) -> bool:
    """Nothing is made of a complex value but multiples and parts; another one may be a stream."""
    return all(
        user.target is aten.view_as_real.default or (user.target in _MULTIPLES and _is_taken_apart(user))
        for user in value.users
    )


_MULTIPLES = {aten._conj.default, aten.conj_physical.default, aten.neg.default, aten.mul.Tensor}


def _of_pair(value: fx.Node) -> tuple[Part, Part] | None:
    """Two values that were stacked along the last dimension."""
    last = len(value.meta["shape"]) - 1
    if value.target is not aten.stack.default or stacked_along(value) != last:
        return None
    parts: Any = value.args[0]
    return tuple(parts)


def _product(value: Any, factor: Any) -> tuple[Part, Part] | None:
    """A value whose parts are known times a number, or another value."""
    if not isinstance(value, fx.Node) or "dtype" not in value.meta:
        return None
    found = _parts(value) if value.meta["dtype"].is_complex else (value, None) if isinstance(factor, complex) else None
    if found is None:
        return None
    real, imaginary = found
    if isinstance(factor, fx.Node) and factor.meta["dtype"].is_complex:
        own = _parts(factor) or tuple(_component(factor, place) for place in (0, 1))
    elif isinstance(factor, fx.Node):
        own = (factor, None)
    else:
        own = (complex(factor).real, complex(factor).imag)
    return (
        _plus(_times(real, own[0]), _negated(_times(imaginary, own[1]))),
        _plus(_times(real, own[1]), _times(imaginary, own[0])),
    )


def _with_imaginary(one: Any, other: Any) -> tuple[Part, Part] | None:
    """A real value plus a multiple of a real one by a complex number."""
    for real, value in ((one, other), (other, one)):
        nodes = isinstance(real, fx.Node) and isinstance(value, fx.Node)
        if not nodes or real.meta["dtype"].is_complex or value.target is not aten.mul.Tensor:
            continue
        numbers = [arg for arg in value.args if isinstance(arg, complex)]
        values = [arg for arg in value.args if isinstance(arg, fx.Node) and not arg.meta["dtype"].is_complex]
        if numbers and values:
            product = _product(values[0], numbers[0])
            assert product is not None
            return _plus(real, product[0]), product[1]
    return None


# Arithmetic


def _real_like(node: fx.Node, op: Any, *args: Any) -> fx.Node:
    """What `like` makes, but real, in the place of a node that may be complex."""
    made = like(node, op, *args)
    dtype = node.meta["dtype"]
    made.meta["dtype"] = dtype.to_real() if dtype.is_complex else dtype
    return made


def _component(value: fx.Node, place: int) -> fx.Node:
    """The real or the imaginary part of what is complex from the start."""
    parts = _real_like(value, aten.view_as_real.default, value)
    parts.meta["shape"] = (*value.meta["shape"], 2)
    made = _real_like(parts, aten.select.int, parts, len(value.meta["shape"]), place)
    made.meta["shape"] = value.meta["shape"]
    return made


def _negated(part: Part) -> Part:
    if part is None:
        return None
    if part.target is aten.neg.default:
        return part.args[0]  # type: ignore[return-value]
    return _real_like(part, aten.neg.default, part)


def _times(part: Part, factor: Part | float) -> Part:
    if part is None or factor is None or factor == 0.0:
        return None
    if factor in (1.0, -1.0):
        return part if factor == 1.0 else _negated(part)
    return _real_like(part, aten.mul.Tensor, part, factor)


def _plus(one: Part, other: Part) -> Part:
    if one is None or other is None:
        return other if one is None else one
    return _real_like(one, aten.add.Tensor, one, other)
