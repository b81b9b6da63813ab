"""The linearisation with gates held: f(h) = A_h h + b_h, and A_h t for a direction t.

Values are plain, or a `Series` of order 1 (coefficient 0 the true value, coefficient 1 the direction's image), or one
of the markers here. What is held is a constant wherever it multiplies, selects or divides something else; where it is
read by itself, it is the straight line through its values at 0 and at h,

    f(0) + ((f(z) − f(0)) / z) · z

so that a soft cap, or a sigmoid at the end, passes on what reaches it. What is not affine is carried as `NonAffine`
until something held absorbs it, as a softmax does with q kᵀ.

The same walk without numbers, on a `Form` in the place of every series, says whether b_h is zero by structure.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from jetgraph.algebra.rules import Freeze
from jetgraph.errors import InputError
from jetgraph.jets.registry import (
    Registration,
    adds_constant,
    bind,
    constant_on_pieces,
    execute,
    find_rule,
    is_floating,
)
from jetgraph.jets.series import Series

ALL_GATES = Freeze().gates


# What values there are


@dataclass(frozen=True, slots=True)
class Form:
    """What is known of an affine function of the input without its numbers."""

    constant: bool
    """It may be something else than zero where the input is zero."""


@dataclass(frozen=True, slots=True)
class NonAffine:
    """A value that is not an affine function of the input, at the centre."""

    value: Any
    culprit: str
    """The op, and its module, that made it so."""
    shared: bool = False
    """That is a product of affine values, which could be held for one half each."""


@dataclass(frozen=True)
class Held:
    """A value that is held: a constant, and a line where it is read by itself."""

    value: Any
    make_line: Callable[[], Any]
    origin: str
    """The op, and its module, where something was held first."""

    @cached_property
    def line(self) -> Any:
        """The affine function that stands for it by itself: `NonAffine` where there is none, and of an index, a mask or
        a step the constant."""
        return _mapped(self.make_line(), _as_wanted)


class Depth(NamedTuple):
    """What lies behind a value."""

    gates: int = 0
    """Most held gates on any way from the input."""
    maps: int = 0
    """Most products with something given, such as layers and convolutions, on such a way since the last gate."""


@dataclass(frozen=True, slots=True)
class Gated:
    """A value whose history contains held gates: a constant, a series or a marker.

    Of two varying factors the one with more gates behind it is the gate: it is held. So `silu(g) * u` holds `silu(g)`,
    in the second layer too, where a gate of the first lies behind both. Of two with as many, as the halves of
    `gelu(W h)` in a gMLP, it is the one that more learned maps lead to from there.
    """

    value: Any
    depth: Depth


def is_marked(value: Any) -> bool:
    """The value is, or holds, a series or a marker."""
    if isinstance(value, (Series, Form, NonAffine, Held, Gated)):
        return True
    return isinstance(value, (list, tuple)) and any(map(is_marked, value))


# One op


@dataclass(frozen=True)
class Call:
    """One op on arguments some of which are series or markers."""

    op: Callable[..., Any]
    entry: Registration
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    gates: Collection[str]
    where: str
    """The op and its module, for messages."""
    halves: bool = False
    """Where two factors are alike, each is held for one half of the product."""
    shared: bool = False
    """So it is of any two factors that vary."""
    node: fx.Node | None = None
    """The op's node, where there are forms in the place of series and nothing is computed."""

    @cached_property
    def bound(self) -> dict[str, Any]:
        """Arguments by name."""
        return bind(self.op, self.args, self.kwargs)

    @cached_property
    def leaves(self) -> dict[str, tuple[Any, ...]]:
        """What each argument holds, nested or not; of those whose values the op reads."""
        unread = self.entry.unread
        return {name: tuple(_leaves(value)) for name, value in self.bound.items() if name not in unread}

    def count(self, holds: Callable[[Any], bool]) -> dict[str, int]:
        """How many leaves of each argument are such; arguments without one are left out."""
        return {name: count for name, leaves in self.leaves.items() if (count := sum(map(holds, leaves)))}

    @cached_property
    def apart(self) -> bool:
        """The coefficients of a series are kept apart: where it is affine, the op goes over the directions alone and
        over the centre alone, so that in a graph of autograd nothing of the centre hangs on the directions.
        """
        opened = (_open(leaf) for leaves in self.leaves.values() for leaf in leaves)
        return any(isinstance(leaf, Series) and leaf.apart for leaf in opened)

    @cached_property
    def depth(self) -> Depth:
        """Most held gates behind any argument."""
        return max((_leaf_depth(leaf) for leaves in self.leaves.values() for leaf in leaves), default=Depth())

    def mapped(self, moving: Collection[str]) -> Depth:
        """The depth behind the op's value: one map more where it mixes what moves by something given."""
        product = self.entry.kind == "bilinear" and torch.Tag.pointwise not in getattr(self.op, "tags", ())
        others = frozenset().union(*self.entry.affine).difference(moving)
        given = (leaf for name in others for leaf in self.leaves.get(name, ()))
        is_map = product and any(leaf is _SOME or isinstance(leaf, Tensor) for leaf in given)
        return Depth(self.depth.gates, self.depth.maps + is_map)

    def replaced(self, named: Mapping[str, Any], halves: bool) -> Call:
        """The same op on other arguments."""
        args, kwargs = self.arguments(named)
        return Call(self.op, self.entry, args, kwargs, self.gates, self.where, halves, self.shared, self.node)

    def arguments(self, named: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Arguments by name as the call has them."""
        return [named[name] for name in list(self.bound)[: len(self.args)]], {name: named[name] for name in self.kwargs}

    def plain(self) -> Any:
        """The value at the centre."""
        if self.node is not None:
            return _SOME
        return execute(self.op, _centre(self.args), _centre(self.kwargs))

    def carried(self, held: Collection[str] = ()) -> Any:
        """The op on series in which it is affine, `held` arguments at the centre."""
        if self.apart:
            return _joined(self.plain(), self._applied(self.entry.rule, held, self._adds_constant, _direction))
        return self._applied(self.entry.rule, held, self._adds_constant)

    def with_gate_held(self) -> Any:
        """The op as it is with its gate, and all arguments that the gate absorbs, at the centre."""
        assert self.entry.held is not None
        return self._affine(self.entry.held, self.entry.absorbs)

    def as_line(self) -> Any:
        """The line that stands for the op where its whole value is held."""
        return self._affine(self.entry.line or self.entry.rule, ())

    def _affine(self, rule: Callable[..., Any], held: Collection[str]) -> Any:
        # A rule may put the coefficients together that it is given apart.
        apart = self.apart
        value = self._applied(rule, held, lambda moving: not self._through_zero)
        return _mapped(value, _apart) if apart else value

    def _adds_constant(self, moving: Collection[fx.Node]) -> bool:
        assert self.node is not None
        return adds_constant(self.node, moving.__contains__)

    @property
    def _through_zero(self) -> bool:
        through = self.entry.through_zero
        return through(self.bound) if callable(through) else through

    def _applied(
        self,
        rule: Callable[..., Any],
        held: Collection[str],
        adds: Callable[[Collection[fx.Node]], bool],
        enters: Callable[[Any], Any] | None = None,
    ) -> Any:
        still = self.entry.unread.union(held)
        enters = enters or _open
        named = {
            name: _centre(value) if name in still else _mapped(value, enters) for name, value in self.bound.items()
        }
        if self.node is None:
            args, kwargs = self.arguments(named)
            return rule(1, *args, **kwargs)
        forms = [leaf for value in named.values() for leaf in _leaves(value) if isinstance(leaf, Form)]
        names = bind(self.op, self.node.args, self.node.kwargs)
        moving = [
            node
            for name, value in named.items()
            for node, leaf in zip(_leaves(names[name]), _leaves(value), strict=True)
            if isinstance(leaf, Form)
        ]
        return Form(any(form.constant for form in forms) or adds(moving))

    def broken(self) -> Any:
        """The value as one that is not affine."""
        opened = (_open(leaf) for leaves in self.leaves.values() for leaf in leaves)
        before = next((leaf for leaf in opened if isinstance(leaf, NonAffine)), None)
        culprit = before.culprit if before else self.where
        shared = before.shared if before else bool(_shares(self, self.count(_varies)))
        return _mapped(self.plain(), lambda leaf: NonAffine(leaf, culprit, shared))


_SOME = object()
"""Stands for a value of which nothing is known but that it does not vary."""


def run(call: Call) -> Any:
    """The value of one op."""
    if call.op is operator.getitem:
        whole, place = call.args
        # Without numbers, one form stands for a whole tuple.
        return whole[place] if isinstance(whole, (list, tuple)) else whole
    entry, bound = call.entry, call.bound
    moving, held = call.count(_varies), call.count(_is_held)

    def again(lines: Collection[str], *, halves: bool = False) -> Any:
        named = {name: (_as_line if name in lines else _as_constant)(value) for name, value in bound.items()}
        return run(call.replaced(named, halves))

    if entry.kind == "constant":
        return call.plain()
    if entry.parts is not None and (moving or held):
        # Whether a program of ops is 0 at 0 is not looked into.
        return Form(True) if call.node is not None else entry.parts(partial(_step, call), *call.args, **call.kwargs)
    if held and not moving:
        # What only held values reach is held as well.
        origin = next(leaf.origin for name in held for leaf in map(_open, call.leaves[name]) if isinstance(leaf, Held))
        return _hold(call.plain(), lambda: again(bound, halves=True), call.depth, origin)
    if held:
        if entry.affine_in(bound, call.count(lambda leaf: _varies(leaf) or _is_held(leaf))):
            return again(bound)
        # A gate's own argument goes through it, what it divides by or weighs with does not.
        return again(bound.keys() - entry.absorbs if entry.held is not None else ())
    return _pass(call, moving)


def _step(call: Call, op: Callable[..., Any], *args: Any) -> Any:
    """One op of those that a call consists of."""
    if not is_marked(args):
        return execute(op, args, {})
    entry = find_rule(op)
    assert entry is not None
    return run(Call(op, entry, args, {}, call.gates, call.where, call.halves, call.shared))


def _pass(call: Call, moving: Mapping[str, int]) -> Any:
    """`run` without held values among the arguments."""
    entry, bound, gates, depth = call.entry, call.bound, call.gates, call.depth
    broken = call.count(lambda leaf: isinstance(_open(leaf), NonAffine)).keys()
    if not moving:
        return _gate(call.plain(), depth)
    if entry.kind == "piecewise" and entry.gate is None and not entry.affine:
        # An index, a mask, a step: it steers, and has no slope.
        return _hold(call.plain(), call.plain, depth, call.where) if "gate" in gates else call.broken()
    if not broken and entry.affine_in(bound, moving):
        return _gate(call.carried(), call.mapped(moving.keys()))
    if call.shared and (line := _halves(call, moving, broken)) is not None:
        return _gate(line, depth)
    if "gate" in gates:
        factors = _gating_factors(call, moving)
        if factors and broken <= factors:
            return _gate(call.carried(factors), depth)
    if call.halves and (line := _halves(call, moving, broken)) is not None:
        return _gate(line, depth)
    gate = entry.gate(bound) if callable(entry.gate) else entry.gate
    # A product without a gate of its own, such as the square of a ReLU, is held through its gated argument.
    chosen = gate in gates if gate is not None else entry.held is not None and depth.gates > 0 and "gate" in gates
    behind = Depth(depth.gates + 1) if chosen and gate == "gate" else depth
    whole = (
        entry.held is None
        or moving.keys() <= entry.absorbs
        or (entry.held_when is not None and not entry.held_when(bound))
    )
    if chosen and whole:
        line = call.broken if broken else call.as_line
        return _hold(call.plain(), line, behind if gate == "gate" else Depth(), call.where)
    if chosen and broken <= entry.absorbs:
        return _gate(call.with_gate_held(), behind)
    return _gate(call.broken(), behind)


def _gating_factors(call: Call, moving: Mapping[str, int]) -> set[str] | None:
    """The varying factors to hold so that the op is affine in the others: those with more gates behind them, or with as
    many, and more maps since.

    A tie leaves the choice open, so none is made, unless the factors are one gated value: x · x is then x times its
    held self.
    """
    bound = call.bound
    depths = {name: max(map(_leaf_depth, call.leaves[name])) for name in moving}
    for names in call.entry.affine:
        outside, inside = moving.keys() - names, moving.keys() & names
        if not outside or not inside:
            continue
        same = all(depths[first].gates and bound[first] is bound[second] for first in outside for second in inside)
        if same or min(depths[name] for name in outside) > max(depths[name] for name in inside):
            return set(outside)
    return None


def _halves(call: Call, moving: Mapping[str, int], broken: Collection[str]) -> Any:
    """The product with each of its factors held for one half; None where it is no product of affine values."""
    shares = [] if broken else _shares(call, moving)
    return _mean([share.carried() for share in shares]) if shares else None


def _shares(call: Call, moving: Mapping[str, int]) -> list[Call]:
    """The op once for each set of moving factors in which it is affine, the others at the centre, where together they
    are all; none where there are not several.
    """
    sides = list(dict.fromkeys(names.intersection(moving) for names in call.entry.affine if names.intersection(moving)))
    if len(sides) > 1 and frozenset().union(*sides) == moving.keys():
        return [
            call.replaced(
                {name: value if name in side else _centre(value) for name, value in call.bound.items()}, False
            )
            for side in sides
        ]
    # The factors of an einsum are in one list.
    if len(moving) == 1:
        ((name, number),) = moving.items()
        if number > 1 and call.entry.affine_in(call.bound, {name: 1}):
            return [
                call.replaced({**call.bound, name: _alone(call.bound[name], place)}, False)
                for place, leaf in enumerate(call.leaves[name])
                if _varies(leaf)
            ]
    return []


def _alone(value: Any, place: int) -> Any:
    """A list of leaves with all but one of them at the centre."""
    return [leaf if at == place else _centre(leaf) for at, leaf in enumerate(value)]


def _mean(lines: Sequence[Any]) -> Any:
    """The mean of series that have one value at the centre, or of forms."""
    first = lines[0]
    if isinstance(first, Form):
        return Form(any(line.constant for line in lines))
    slope = torch.stack([line.coefficient(1) for line in lines]).mean(0)
    return Series.of_rows([first.coefficient(0), slope], 1, first.coefficient(0))


# A whole region


def settle(
    chain: Sequence[fx.Node],
    values: dict[fx.Node, Any],
    wanted: Collection[fx.Node],
    frozen: Freeze,
    constants: Collection[fx.Node] = (),
) -> None:
    """Take the markers out of `values`. A held value is its line where it is wanted, and a constant where it is not, or
    is among `constants`.

    Raises
    ------
    InputError
        A wanted value that is not affine.
    """
    for node in chain:
        if node not in values:
            continue
        settled = _as_wanted if node in wanted and node not in constants else _as_steering
        value = _mapped(values[node], settled)
        wrong = next((leaf for leaf in _leaves(value) if isinstance(leaf, NonAffine)), None)
        if wrong is None and settled is _as_wanted and not is_marked(value):
            for leaf in map(_open, _leaves(values[node])):
                if isinstance(leaf, Held):
                    raise InputError(
                        f"with gates={frozen.gates} held, the value of {node.name!r} is not affine in the input but "
                        f"constant: {leaf.origin} is constant on pieces, and nothing else is left; take a jet or an "
                        "atom there"
                    )
        if wrong is None:
            values[node] = value
        elif node in wanted:
            others = [gate for gate in ALL_GATES if gate not in frozen.gates]
            more = f"add {' or '.join(map(repr, others))} to the gates, or " if others else ""
            if wrong.shared and not frozen.halves:
                more += "hold each of its factors for one half of the product, with Freeze(halves=True), or "
            raise InputError(
                f"with gates={frozen.gates} held, the value of {node.name!r} is not affine in the input: "
                f"{wrong.culprit} is neither affine nor held; {more}take a jet or an atom there"
            )
        else:
            del values[node]


def leaves_constant(nodes: Sequence[fx.Node], entry: fx.Node) -> bool:
    """May b_h of f(h) = A_h h + b_h be something else than zero, for the function from `entry` to the last node?

    False only where it is zero by structure: no bias, no constant summand, no gate that is not 0 at 0.
    """
    values: dict[fx.Node, Any] = {entry: Form(False)}
    for node in nodes:
        if not any(arg in values for arg in node.all_input_nodes):
            continue
        args: Any = map_arg(node.args, lambda arg: values.get(arg, _SOME))
        kwargs: Any = map_arg(node.kwargs, lambda arg: values.get(arg, _SOME))
        assert callable(node.target)
        rule = find_rule(node.target) or constant_on_pieces(node.target)
        value = run(Call(node.target, rule, args, kwargs, ALL_GATES, str(node.target), node=node))
        # One form stands for a whole tuple; indices in it are constants, and so are casts to whole numbers.
        if is_floating(node) or not isinstance(_open(value), Form):
            values[node] = value
    value = _as_wanted(values.get(nodes[-1], _SOME)) if nodes else Form(False)
    return not isinstance(value, Form) or value.constant


# Leaves


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


def _direction(leaf: Any) -> Any:
    """A series without its centre."""
    leaf = _open(leaf)
    return Series.direction(leaf.coefficient(1)) if isinstance(leaf, Series) else leaf


def _joined(value: Any, change: Any) -> Any:
    """The series, or the tuple of them, of a value at the centre and what its directions gave."""
    if isinstance(value, (list, tuple)):
        return type(value)(_joined(one, other) for one, other in zip(value, change, strict=True))
    return Series.of_rows([value, change.coefficient(1)], 1, value) if isinstance(change, Series) else value


def _apart(leaf: Any) -> Any:
    """A series with its coefficients apart."""
    return Series.of_rows(leaf.rows(), 1, leaf.first) if isinstance(leaf, Series) else leaf


def _leaf_depth(leaf: Any) -> Depth:
    return leaf.depth if isinstance(leaf, Gated) else Depth()


def _varies(leaf: Any) -> bool:
    return isinstance(_open(leaf), (Series, Form, NonAffine))


def _is_held(leaf: Any) -> bool:
    return isinstance(_open(leaf), Held)


def _centre(value: Any) -> Any:
    """Everything at its true value."""

    def at_centre(leaf: Any) -> Any:
        leaf = _open(leaf)
        if isinstance(leaf, (NonAffine, Held)):
            return leaf.value
        return leaf.coefficient(0) if isinstance(leaf, Series) else _SOME if isinstance(leaf, Form) else leaf

    return _mapped(value, at_centre)


def _as_wanted(leaf: Any) -> Any:
    leaf = _open(leaf)
    return leaf.line if isinstance(leaf, Held) else leaf


def _as_steering(leaf: Any) -> Any:
    leaf = _open(leaf)
    return leaf.value if isinstance(leaf, Held) else leaf


def _as_line(value: Any) -> Any:
    """Held leaves as lines, with the gates that are behind them."""
    return _mapped(value, lambda leaf: _gate(_open(leaf).line, _leaf_depth(leaf)) if _is_held(leaf) else leaf)


def _as_constant(value: Any) -> Any:
    """Held leaves as constants, with the gates that are behind them."""
    return _mapped(value, lambda leaf: _gate(_open(leaf).value, _leaf_depth(leaf)) if _is_held(leaf) else leaf)


def _hold(value: Any, make_line: Callable[[], Any], depth: Depth, origin: str) -> Any:
    """A held value; each part of a tuple by itself."""
    whole = Held(value, make_line, origin)
    if not isinstance(value, (list, tuple)):
        return _gate(whole, depth)
    return type(value)(
        _hold(item, lambda index=index: whole.line[index], depth, origin) for index, item in enumerate(value)
    )


def _gate(value: Any, depth: Depth) -> Any:
    """With that many gates behind it, if it is a value that can gate."""

    def gated(leaf: Any) -> Any:
        counts = (
            leaf is _SOME
            or isinstance(leaf, (Series, Form, NonAffine, Held))
            or (isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()))
        )
        return Gated(leaf, depth) if depth.gates and counts else leaf

    return _mapped(value, gated)
