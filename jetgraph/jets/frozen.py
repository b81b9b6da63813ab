"""The linearisation with gates held: f(h) = A_h h + b_h, and A_h t for a direction t.

Values are plain, or a `Series` of order 1 (coefficient 0 the true value, coefficient 1 the direction's image), or one
of the two markers here. What is held becomes a constant; what is not affine is carried as `NonAffine` until something
held absorbs it, as a softmax does with q kᵀ.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from jetgraph.errors import JetGraphError
from jetgraph.jets.registry import Registration, bind, execute
from jetgraph.jets.series import Series
from jetgraph.program import Freeze


@dataclass(frozen=True, slots=True)
class NonAffine:
    """A value that is not an affine function of the input, at the centre."""

    value: Any
    culprit: str
    """The op, and its module, that made it so."""


@dataclass(frozen=True, slots=True)
class Gated:
    """A value whose history contains held gates: a constant, a series or a `NonAffine`.

    Of two varying factors the one with more gates behind it is the gate: it is held. So `silu(g) * u` holds `silu(g)`,
    in the second layer too, where a gate of the first lies behind both.
    """

    value: Any
    depth: int
    """Most held gates on any way from the input."""


def is_marked(value: Any) -> bool:
    """The value is, or holds, a series or a marker."""
    if isinstance(value, (Series, NonAffine, Gated)):
        return True
    return isinstance(value, (list, tuple)) and any(map(is_marked, value))


def run(
    op: Callable[..., Any],
    entry: Registration,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    gates: Collection[str],
    where: str,
) -> Any:
    """One node's value, some of its arguments being series or markers; `where` names op and module."""
    if op is operator.getitem:
        return args[0][args[1]]
    bound = bind(op, args, kwargs)
    leaves = {name: tuple(_leaves(value)) for name, value in bound.items()}
    moving = {name: count for name, items in leaves.items() if (count := sum(map(_varies, items)))}
    broken = {name for name, items in leaves.items() if any(isinstance(_open(item), NonAffine) for item in items)}
    depths = {name: max(map(_depth, items), default=0) for name, items in leaves.items()}
    depth = max(depths.values(), default=0)

    def apply(rule: Callable[..., Any], held: Collection[str]) -> Any:
        named = {name: _centre(value) if name in held else _opened(value) for name, value in bound.items()}
        places = list(bound)[: len(args)]
        return rule(1, *(named[name] for name in places), **{name: named[name] for name in kwargs})

    def plain() -> Any:
        return execute(op, _centre(args), _centre(kwargs))

    if entry.kind == "constant" or (entry.kind == "piecewise" and entry.gate is None and not entry.affine):
        return plain()
    if not moving:
        return _gate(plain(), depth)
    if not broken and entry.affine_in(bound, moving):
        return _gate(apply(entry.rule, ()), depth)
    if "gate" in gates:
        factors = _gating_factors(entry, bound, moving, depths)
        if factors and broken <= factors:
            return _gate(apply(entry.rule, factors), depth)
    gate = entry.gate(bound) if callable(entry.gate) else entry.gate
    # A product without a gate of its own, such as the square of a ReLU, is held through its gated argument.
    chosen = gate in gates if gate is not None else entry.held is not None and depth > 0 and "gate" in gates
    behind = depth + (chosen and gate == "gate")
    if chosen and entry.held is None:
        return _gate(plain(), behind if gate == "gate" else 0)
    if chosen and entry.held is not None and broken <= entry.absorbs:
        return _gate(apply(entry.held, broken), behind)
    culprit = next((_culprit(leaves[name]) for name in sorted(broken)), where)
    return _gate(_broken(plain(), culprit), behind)


def settle(chain: Sequence[fx.Node], values: dict[fx.Node, Any], wanted: Collection[fx.Node], frozen: Freeze) -> None:
    """Take the markers out of `values`; raises `JetGraphError` for a wanted value that is not affine."""
    for node in chain:
        if node not in values:
            continue
        value = _opened(values[node])
        if not any(isinstance(leaf, NonAffine) for leaf in _leaves(value)):
            values[node] = value
        elif node in wanted:
            others = [gate for gate in ("norm", "attention", "gate") if gate not in frozen.gates]
            more = f"add {' or '.join(map(repr, others))} to the gates, or " if others else ""
            raise JetGraphError(
                f"with gates={frozen.gates} held, the value of {node.name!r} is not affine in the input: "
                f"{_culprit(tuple(_leaves(value)))} is neither affine nor held; {more}take a jet or an atom there"
            )
        else:
            del values[node]


def _gating_factors(
    entry: Registration, bound: Mapping[str, Any], moving: Mapping[str, int], depths: Mapping[str, int]
) -> set[str] | None:
    """The varying factors to hold so that the op is affine in the others: those with more gates behind them.

    A tie leaves the choice open, so none is made, unless the factors are one gated value: x · x is then x times its
    held self.
    """
    for names in entry.affine:
        outside, inside = moving.keys() - names, moving.keys() & names
        if not outside or not inside:
            continue
        same = all(depths[first] and bound[first] is bound[second] for first in outside for second in inside)
        if same or min(depths[name] for name in outside) > max(depths[name] for name in inside):
            return set(outside)
    return None


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _open(value: Any) -> Any:
    """Without the mark of a gate."""
    return value.value if isinstance(value, Gated) else value


def _depth(value: Any) -> int:
    return value.depth if isinstance(value, Gated) else 0


def _varies(leaf: Any) -> bool:
    return isinstance(_open(leaf), (Series, NonAffine))


def _culprit(leaves: Sequence[Any]) -> str:
    return next(opened.culprit for leaf in leaves if isinstance(opened := _open(leaf), NonAffine))


def _opened(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_opened(item) for item in value)
    return _open(value)


def _centre(value: Any) -> Any:
    """Everything at its true value."""
    if isinstance(value, (list, tuple)):
        return type(value)(_centre(item) for item in value)
    if isinstance(value, dict):
        return {key: _centre(item) for key, item in value.items()}
    value = _open(value)
    if isinstance(value, NonAffine):
        return value.value
    return value.coefficient(0) if isinstance(value, Series) else value


def _gate(value: Any, depth: int) -> Any:
    """With that many gates behind it, if it is a value that can gate."""
    if isinstance(value, (list, tuple)):
        return type(value)(_gate(item, depth) for item in value)
    counts = isinstance(value, (Series, NonAffine)) or (isinstance(value, Tensor) and value.is_floating_point())
    return Gated(value, depth) if depth and counts else value


def _broken(value: Any, culprit: str) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_broken(item, culprit) for item in value)
    return NonAffine(value, culprit) if isinstance(value, Tensor) and value.is_floating_point() else value
