"""The linearisation with gates held: f(h) = A_h h + b_h, and A_h t for a direction t.

Values are plain, or a `Series` of order 1 (coefficient 0 the true value, coefficient 1 the direction's image), or one
of the markers here. What is held is a constant wherever it multiplies, selects or divides something else; where it is
read by itself, it is the straight line through its values at 0 and at h,

    f(0) + ((f(z) − f(0)) / z) · z

so that a soft cap, or a sigmoid at the end, passes on what reaches it. What is not affine is carried as `NonAffine`
until something held absorbs it, as a softmax does with q kᵀ.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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


@dataclass(frozen=True)
class Held:
    """A value that is held: a constant, and a line where it is read by itself."""

    value: Any
    make_line: Callable[[], Any]

    @cached_property
    def line(self) -> Series | NonAffine:
        """The affine function that stands for it by itself; `NonAffine` where there is none, as for an index."""
        return _mapped(self.make_line(), _as_wanted)


@dataclass(frozen=True, slots=True)
class Gated:
    """A value whose history contains held gates: a constant, a series or a marker.

    Of two varying factors the one with more gates behind it is the gate: it is held. So `silu(g) * u` holds `silu(g)`,
    in the second layer too, where a gate of the first lies behind both.
    """

    value: Any
    depth: int
    """Most held gates on any way from the input."""


def is_marked(value: Any) -> bool:
    """The value is, or holds, a series or a marker."""
    if isinstance(value, (Series, NonAffine, Held, Gated)):
        return True
    return isinstance(value, (list, tuple)) and any(map(is_marked, value))


def run(
    op: Callable[..., Any],
    entry: Registration,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    gates: Collection[str],
    where: str,
    *,
    halves: bool = False,
) -> Any:
    """One node's value, some of its arguments being series or markers; `where` names op and module.

    `halves`: where two factors are alike, each is held for one half of the product.
    """
    if op is operator.getitem:
        return args[0][args[1]]
    bound = bind(op, args, kwargs)
    moving = _count(bound, _varies)
    held = _count(bound, _is_held)

    def again(lines: Collection[str], halves: bool = False) -> Any:
        named = {name: (_as_line if name in lines else _as_constant)(value) for name, value in bound.items()}
        places = list(bound)[: len(args)]
        changed = [named[name] for name in places], {name: named[name] for name in kwargs}
        return run(op, entry, *changed, gates, where, halves=halves)

    if entry.kind == "constant":
        return execute(op, _centre(args), _centre(kwargs))
    if held and not moving:
        # What only held values reach is held as well.
        return _hold(execute(op, _centre(args), _centre(kwargs)), lambda: again(bound, halves=True), _depth(bound))
    if held:
        jointly = {name: moving.get(name, 0) + held.get(name, 0) for name in moving | held}
        if entry.affine_in(bound, jointly):
            return again(bound)
        # A gate's own argument goes through it, what it divides by or weighs with does not.
        return again(bound.keys() - entry.absorbs if entry.held is not None else ())
    return _pass(op, entry, bound, args, kwargs, gates, where, halves)


def _pass(
    op: Callable[..., Any],
    entry: Registration,
    bound: Mapping[str, Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    gates: Collection[str],
    where: str,
    halves: bool,
) -> Any:
    """`run` without held values among the arguments."""
    leaves = {name: tuple(_leaves(value)) for name, value in bound.items()}
    moving = _count(bound, _varies)
    broken = {name for name, items in leaves.items() if any(isinstance(_open(item), NonAffine) for item in items)}
    depths = {name: max(map(_leaf_depth, items), default=0) for name, items in leaves.items()}
    depth = max(depths.values(), default=0)

    def apply(rule: Callable[..., Any], held: Collection[str]) -> Any:
        named = {name: _centre(value) if name in held else _opened(value) for name, value in bound.items()}
        places = list(bound)[: len(args)]
        return rule(1, *(named[name] for name in places), **{name: named[name] for name in kwargs})

    def plain() -> Any:
        return execute(op, _centre(args), _centre(kwargs))

    def refused(culprit: str = where) -> Any:
        return _broken(plain(), next((_culprit(leaves[name]) for name in sorted(broken)), culprit))

    if not moving:
        return _gate(plain(), depth)
    if entry.kind == "piecewise" and entry.gate is None and not entry.affine:
        # An index, a mask, a step: it steers, and has no slope.
        steps = f"{where}, which is constant on pieces,"
        return _hold(plain(), lambda: refused(steps), depth) if "gate" in gates else refused()
    if not broken and entry.affine_in(bound, moving):
        return _gate(apply(entry.rule, ()), depth)
    if "gate" in gates:
        factors = _gating_factors(entry, bound, moving, depths)
        if factors and broken <= factors:
            return _gate(apply(entry.rule, factors), depth)
    if halves and not broken and (sides := _sides(entry, moving)):
        return _gate(_mean([apply(entry.rule, moving.keys() - side) for side in sides]), depth)
    gate = entry.gate(bound) if callable(entry.gate) else entry.gate
    # A product without a gate of its own, such as the square of a ReLU, is held through its gated argument.
    chosen = gate in gates if gate is not None else entry.held is not None and depth > 0 and "gate" in gates
    behind = depth + (chosen and gate == "gate")
    if chosen and entry.held is None:
        line = (lambda: refused()) if broken else (lambda: apply(entry.line or entry.rule, ()))
        return _hold(plain(), line, behind if gate == "gate" else 0)
    if chosen and entry.held is not None and broken <= entry.absorbs:
        return _gate(apply(entry.held, broken), behind)
    return _gate(refused(), behind)


def settle(
    chain: Sequence[fx.Node],
    values: dict[fx.Node, Any],
    wanted: Collection[fx.Node],
    frozen: Freeze,
    constants: Collection[fx.Node] = (),
) -> None:
    """Take the markers out of `values`; raises `JetGraphError` for a wanted value that is not affine.

    A held value is its line where it is wanted, and a constant where it is not, or is among `constants`.
    """
    for node in chain:
        if node not in values:
            continue
        settled = _as_wanted if node in wanted and node not in constants else _as_steering
        value = _mapped(values[node], settled)
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


def _as_wanted(leaf: Any) -> Any:
    leaf = _open(leaf)
    return leaf.line if isinstance(leaf, Held) else leaf


def _as_steering(leaf: Any) -> Any:
    leaf = _open(leaf)
    return leaf.value if isinstance(leaf, Held) else leaf


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


def _sides(entry: Registration, moving: Mapping[str, int]) -> list[frozenset[str]]:
    """The sets of moving factors in each of which the op is affine, where together they are all."""
    sides = list(dict.fromkeys(names.intersection(moving) for names in entry.affine if names.intersection(moving)))
    return sides if len(sides) > 1 and frozenset().union(*sides) == moving.keys() else []


def _mean(lines: Sequence[Any]) -> Any:
    """The mean of series that have one value at the centre."""
    first = lines[0]
    assert isinstance(first, Series)
    slope = sum(line.coefficient(1) for line in lines) / len(lines)
    return Series.of_rows([first.coefficient(0), slope], 1, first.coefficient(0))


# Leaves


def _count(bound: Mapping[str, Any], holds: Callable[[Any], bool]) -> dict[str, int]:
    """How many leaves of each argument are such; arguments without one are left out."""
    return {name: count for name, value in bound.items() if (count := sum(map(holds, _leaves(value))))}


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same with every leaf changed."""
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    return change(value)


def _open(value: Any) -> Any:
    """Without the mark of a gate."""
    return value.value if isinstance(value, Gated) else value


def _leaf_depth(leaf: Any) -> int:
    return leaf.depth if isinstance(leaf, Gated) else 0


def _depth(bound: Mapping[str, Any]) -> int:
    return max((_leaf_depth(leaf) for value in bound.values() for leaf in _leaves(value)), default=0)


def _varies(leaf: Any) -> bool:
    return isinstance(_open(leaf), (Series, NonAffine))


def _is_held(leaf: Any) -> bool:
    return isinstance(_open(leaf), Held)


def _culprit(leaves: Sequence[Any]) -> str:
    return next(opened.culprit for leaf in leaves if isinstance(opened := _open(leaf), NonAffine))


def _opened(value: Any) -> Any:
    return _mapped(value, _open)


def _centre(value: Any) -> Any:
    """Everything at its true value."""

    def at_centre(leaf: Any) -> Any:
        leaf = _open(leaf)
        if isinstance(leaf, (NonAffine, Held)):
            return leaf.value
        return leaf.coefficient(0) if isinstance(leaf, Series) else leaf

    return _mapped(value, at_centre)


def _as_line(value: Any) -> Any:
    """Held leaves as lines, with the gates that are behind them."""
    return _mapped(value, lambda leaf: _gate(_open(leaf).line, _leaf_depth(leaf)) if _is_held(leaf) else leaf)


def _as_constant(value: Any) -> Any:
    """Held leaves as constants, with the gates that are behind them."""
    return _mapped(value, lambda leaf: _gate(_open(leaf).value, _leaf_depth(leaf)) if _is_held(leaf) else leaf)


def _hold(value: Any, make_line: Callable[[], Any], depth: int) -> Any:
    """A held value; each part of a tuple by itself."""
    if not isinstance(value, (list, tuple)):
        return _gate(Held(value, make_line), depth)
    whole = Held(value, make_line)

    def part(index: int) -> Any:
        line: Any = whole.line
        return line[index]

    return type(value)(_hold(item, lambda index=index: part(index), depth) for index, item in enumerate(value))


def _gate(value: Any, depth: int) -> Any:
    """With that many gates behind it, if it is a value that can gate."""

    def gated(leaf: Any) -> Any:
        counts = isinstance(leaf, (Series, NonAffine, Held)) or (
            isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
        )
        return Gated(leaf, depth) if depth and counts else leaf

    return _mapped(value, gated)


def _broken(value: Any, culprit: str) -> Any:
    return _mapped(value, lambda leaf: NonAffine(leaf, culprit) if isinstance(leaf, Tensor) else leaf)
