"""Integers, booleans and choices as formulas in the indices of a tensor, read off the operators that make them.

    integers       c + Σ a_d i_d                     arange and what shifts, stretches or gathers it
    booleans       all of some formulas are ≥ 0      comparisons, and their conjunctions
    numbers        yes where such a boolean holds, else no

A formula holds for every size. What depends on values or on sizes has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Formula:
    """An integer c + Σ a_d i_d in the indices of a tensor."""

    constant: int
    slopes: tuple[int, ...] = ()

    @property
    def alone(self) -> int | None:
        """The number, where it is the same at all indices."""
        return None if any(self.slopes) else self.constant

    @property
    def positive(self) -> bool | None:
        """Whether it is ≥ 0, where that is so or not so at all indices."""
        if min(self.constant, *self.slopes, 0) == 0:
            return True
        return False if self.constant < 0 and max(self.slopes, default=0) <= 0 else None

    def plus(self, other: Formula, times: int = 1) -> Formula:
        """This + times · other, broadcast."""
        rank = max(len(self.slopes), len(other.slopes))
        one, two = ((0,) * (rank - len(each.slopes)) + each.slopes for each in (self, other))
        slopes = tuple(a + times * b for a, b in zip(one, two, strict=True))
        return Formula(self.constant + times * other.constant, slopes)

    def over(self, dims: Sequence[int | None]) -> Formula:
        """With other dimensions: by each, which one of these it is; None for a new one."""
        return Formula(self.constant, tuple(0 if dim is None else self.slopes[dim] for dim in dims))

    def along(self, dim: int, start: int, step: int) -> Formula:
        """At index start + step · i of a dimension in the place of i."""
        slopes = tuple(slope * step if at == dim else slope for at, slope in enumerate(self.slopes))
        return Formula(self.constant + start * self.slopes[dim], slopes)


@dataclass(frozen=True, slots=True)
class Choice:
    """`yes` where all of some formulas are ≥ 0, else `no`; a boolean is 1 or 0."""

    where: frozenset[Formula] = frozenset()
    yes: float = 1
    no: float = 0

    @property
    def alone(self) -> float | None:
        """The number, where it is the same at all indices."""
        return self.yes if not self.where or self.yes == self.no else None

    def over(self, dims: Sequence[int | None]) -> Choice:
        return replace(self, where=frozenset(each.over(dims) for each in self.where))

    def along(self, dim: int, start: int, step: int) -> Choice:
        return replace(self, where=frozenset(each.along(dim, start, step) for each in self.where))

    def otherwise(self) -> Choice | None:
        """The same with yes and no exchanged, where that is one formula again."""
        if self.alone is not None:
            return Choice(frozenset(), self.alone, self.alone)
        if len(self.where) != 1:
            return None
        (each,) = self.where
        return Choice(
            frozenset({Formula(-each.constant - 1, tuple(-slope for slope in each.slopes))}), self.no, self.yes
        )


Known = Formula | Choice


def holds(formula: Formula) -> Choice:
    """formula ≥ 0, as a boolean."""
    known = formula.positive
    return Choice(frozenset({formula})) if known is None else Choice(yes=float(known), no=float(known))


def arguments(node: fx.Node) -> dict[str, Any]:
    """A call's arguments by name."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


# Formulas, by operator


def follow(node: fx.Node, known: dict[fx.Node, Known | None]) -> Known | None:
    """The formula of a node's value; None where there is none."""
    stack = [node]
    while stack:
        current = stack[-1]
        rule = _RULES.get(getattr(current.target, "overloadpacket", None)) if "shape" in current.meta else None
        waiting = [] if rule is None else [arg for arg in current.all_input_nodes if arg not in known]
        if waiting:
            stack += waiting
            continue
        stack.pop()
        formula = None if rule is None else rule(current, lambda value: _read(value, known))
        known[current] = formula if formula is None else _settled(formula, current)
    return known[node]


def _read(value: Any, known: Mapping[fx.Node, Known | None]) -> Known | None:
    if isinstance(value, fx.Node):
        return known[value]
    if isinstance(value, bool | float):
        return _same_everywhere(float(value))
    return Formula(value) if isinstance(value, int) else None


_WHOLE = (torch.int64, torch.int32)
"""Types of integers that indices do not overflow."""


def _settled(known: Known, node: fx.Node) -> Known | None:
    """As a value of the node's type, over the node's own dimensions; along one of size 1 there is no index but 0.

    A number that is the same at all indices is a formula where it is an integer, else a choice.
    """
    shape, dtype = node.meta["shape"], node.meta["dtype"]

    def over(formula: Formula) -> Formula:
        slopes = (0,) * (len(shape) - len(formula.slopes)) + formula.slopes
        return Formula(formula.constant, tuple(0 if n == 1 else s for n, s in zip(shape, slopes, strict=True)))

    if dtype not in _WHOLE and dtype != torch.bool and not dtype.is_floating_point:
        return None
    if isinstance(known, Formula) and dtype in _WHOLE:
        return over(known)
    if isinstance(known, Formula):
        return None if known.alone is None else _same_everywhere(_held(known.alone, dtype))
    every = [over(each) for each in known.where]
    never = any(each.positive is False for each in every)
    yes, no = _held(known.no if never else known.yes, dtype), _held(known.no, dtype)
    where = frozenset(each for each in every if each.positive is None)
    if yes != no and where:
        choice = Choice(where, yes, no)
        return (choice.otherwise() or choice) if dtype == torch.bool and no else choice
    return over(Formula(int(yes))) if dtype in _WHOLE else _same_everywhere(yes)


def _held(number: float, dtype: torch.dtype) -> float:
    """A number as a type holds it."""
    return float(torch.tensor(number, dtype=torch.float64).to(dtype))


def _same_everywhere(number: float) -> Choice:
    return Choice(yes=number, no=number)


Read = Callable[[Any], Known | None]
"""The formula of an argument."""

Rule = Callable[[Any, Read], Known | None]
"""An operator's own, from a node of a graph and the formulas of what it reads."""


def _arange(node: Any, read: Read) -> Known | None:
    args = [0, *node.args] if len(node.args) == 1 else list(node.args)
    start, step = args[0], (*args[2:], 1)[0]
    whole = type(start) is int and type(step) is int and not node.meta["dtype"].is_floating_point
    return Formula(start, (step,)) if whole else None


def _filled(number: float | None) -> Rule:
    """The same number everywhere: `number`, or the one that is given as what it is filled with."""

    def rule(node: Any, read: Read) -> Known | None:
        bound = arguments(node)
        value = number if number is not None else bound.get("fill_value", bound.get("s"))
        if not isinstance(value, bool | int | float):
            return None
        return _same_everywhere(float(value))

    return rule


def _same(node: Any, read: Read) -> Known | None:
    """Copies and casts."""
    return read(node.args[0])


def _rearranged(dims: Callable[[Any, int], Sequence[int | None] | None]) -> Rule:
    """An operator that only changes which dimension is where."""

    def rule(node: Any, read: Read) -> Known | None:
        formula = read(node.args[0])
        order = dims(node, len(node.args[0].meta["shape"]))
        return None if formula is None or order is None else formula.over(order)

    return rule


def _unsqueezed(node: Any, rank: int) -> Sequence[int | None]:
    at = node.args[1] % (rank + 1)
    return (*range(at), None, *range(at, rank))


def _expanded(node: Any, rank: int) -> Sequence[int | None]:
    return (*(None,) * (len(node.meta["shape"]) - rank), *range(rank))


def _transposed(node: Any, rank: int) -> Sequence[int | None]:
    order = list(range(rank))
    if rank:
        one, other = node.args[1], node.args[2]
        order[one], order[other] = order[other], order[one]
    return order


def _permuted(node: Any, rank: int) -> Sequence[int | None]:
    return [dim % rank for dim in node.args[1]]


def _reshaped(node: Any, rank: int) -> Sequence[int | None] | None:
    """Dimensions of size 1 put in or left out."""
    before, after = node.args[0].meta["shape"], node.meta["shape"]
    wide = [dim for dim, size in enumerate(before) if size != 1]
    if [before[dim] for dim in wide] != [size for size in after if size != 1]:
        return None
    left = iter(wide)
    return [None if size == 1 else next(left) for size in after]


def _sliced(node: Any, read: Read) -> Known | None:
    rest: tuple[Any, ...] = (*node.args[1:], *(0, None, None, 1)[len(node.args) - 1 :])
    formula, (dim, start, _, step) = read(node.args[0]), rest
    start = 0 if start is None else start
    if formula is None or type(start) is not int or start < 0 or type(step) is not int or node.kwargs:
        return None
    return formula.along(dim % len(node.meta["shape"]), start, step)


def _selected(node: Any, read: Read) -> Known | None:
    formula, (dim, index) = read(node.args[0]), node.args[1:]
    rank = len(node.meta["shape"]) + 1
    if formula is None or type(index) is not int or index < 0 or node.kwargs:
        return None
    at = dim % rank
    return formula.along(at, index, 0).over([each for each in range(rank) if each != at])


def _sum(sign: int) -> Rule:
    def rule(node: Any, read: Read) -> Known | None:
        one, other = map(read, node.args[:2])
        if node.kwargs or not isinstance(one, Formula) or not isinstance(other, Formula):
            return None
        return one.plus(other, sign)

    return rule


def _product(node: Any, read: Read) -> Known | None:
    """Of numbers of which one is the same everywhere, or of a choice between something and 0 with a boolean."""
    one, other = map(read, node.args[:2])
    for a, b in ((one, other), (other, one)):
        if isinstance(a, Formula) and isinstance(b, Formula) and a.alone is not None:
            return Formula(0, (0,) * len(b.slopes)).plus(b, a.alone)
        # ∞ · 0 is no number.
        if (
            isinstance(a, Choice)
            and isinstance(b, Choice)
            and math.isfinite(a.yes)
            and (a.no, b.no, b.yes) == (0, 0, 1)
        ):
            return Choice(a.where | b.where, a.yes)
    return None


def _difference(node: Any, read: Read) -> Known | None:
    """x_{i+1} − x_i along a dimension, where what is put before x goes on as x does."""
    bound = arguments(node)
    formula, before, dim = read(bound["self"]), bound.get("prepend"), bound.get("dim", -1)
    if not isinstance(formula, Formula) or bound.get("n", 1) != 1 or bound.get("append") is not None:
        return None
    slope = formula.slopes[dim]
    if before is not None:
        first = read(before)
        at = dim % len(formula.slopes)
        if not isinstance(first, Formula) or before.meta["shape"][at] != 1:
            return None
        gap = formula.along(at, 0, 0).plus(first, -1)
        if gap.alone != slope:
            return None
    return Formula(slope, (0,) * len(formula.slopes))


def _running_sum(node: Any, read: Read) -> Known | None:
    formula = read(node.args[0])
    return Formula(0) if formula is not None and formula.alone == 0 else None


def _gathered(node: Any, read: Read) -> Known | None:
    """x at indices that are formulas themselves."""
    known, indices = read(node.args[0]), [None if index is None else read(index) for index in node.args[1]]
    if known is None or len(indices) != len(node.args[0].meta["shape"]):
        return None
    places = [index for index in indices if isinstance(index, Formula)]
    # A negative index counts from the end.
    if len(places) < len(indices) or any(min(index.constant, *index.slopes, 0) < 0 for index in places):
        return None

    def at(formula: Formula) -> Formula:
        total = Formula(formula.constant)
        for slope, index in zip(formula.slopes, places, strict=True):
            total = total.plus(index, slope)
        return total

    return at(known) if isinstance(known, Formula) else replace(known, where=frozenset(map(at, known.where)))


def _compared(write: Callable[[Formula, Formula], Sequence[Formula]]) -> Rule:
    """A comparison as formulas that are ≥ 0."""

    def rule(node: Any, read: Read) -> Known | None:
        one, other = map(read, node.args[:2])
        if not isinstance(one, Formula) or not isinstance(other, Formula):
            return None
        return _all(*map(holds, write(one, other)))

    return rule


def _logical(write: Callable[..., Choice | None], bitwise: bool = False) -> Rule:
    """An operator on booleans, or on numbers as such; one that works bit by bit is that of booleans alone."""

    def rule(node: Any, read: Read) -> Known | None:
        if bitwise and node.meta["dtype"] != torch.bool:
            return None
        return write(*(_boolean(read(arg)) for arg in node.args))

    return rule


def _boolean(known: Known | None) -> Choice | None:
    """Whether a number is another one than 0."""
    if isinstance(known, Choice):
        return replace(known, yes=float(known.yes != 0), no=float(known.no != 0))
    return None if known is None or known.alone is None else _same_everywhere(float(known.alone != 0))


def _all(*booleans: Choice | None) -> Choice | None:
    """All of some booleans."""
    where: frozenset[Formula] = frozenset()
    for each in booleans:
        if each is None:
            return None
        if each.alone == 0:
            return _same_everywhere(0)
        if each.yes != 1 or each.no != 0:
            if each.alone != 1:
                return None
            continue
        where |= each.where
    return Choice(where)


def _any(one: Choice | None, other: Choice | None) -> Choice | None:
    """One of two booleans, of which one is the same everywhere."""
    for a, b in ((one, other), (other, one)):
        if a is not None and b is not None and a.alone is not None:
            return a if a.alone else b
    return None


def _negated(boolean: Choice | None) -> Choice | None:
    """The other way round."""
    return None if boolean is None else replace(boolean, yes=1 - boolean.yes, no=1 - boolean.no)


def _unequal(node: Any, read: Read) -> Known | None:
    one, other = map(read, node.args[:2])
    if not isinstance(one, Formula) or not isinstance(other, Formula):
        return None
    gap = one.plus(other, -1).alone
    return None if gap is None else _same_everywhere(float(gap != 0))


def _triangle(sign: int) -> Rule:
    """What is kept on one side of a diagonal, and 0 on the other."""

    def rule(node: Any, read: Read) -> Known | None:
        choice, shift = read(node.args[0]), arguments(node).get("diagonal", 0)
        if not isinstance(choice, Choice) or type(shift) is not int or (choice.no != 0 and choice.alone is None):
            return None
        rank = len(node.meta["shape"])
        side = Formula(sign * shift, (*(0,) * (rank - 2), sign, -sign))
        return Choice(choice.where | {side}, choice.yes)

    return rule


def _chosen(node: Any, read: Read) -> Known | None:
    """where(condition, yes, no) of numbers."""
    bound = arguments(node)
    return _choice(*(read(bound[name]) for name in ("condition", "self", "other")))


def _masked(node: Any, read: Read) -> Known | None:
    bound = arguments(node)
    return _choice(*(read(bound[name]) for name in ("mask", "value", "self")))


def _choice(condition: Known | None, yes: Known | None, no: Known | None) -> Choice | None:
    one, other = (None if known is None else known.alone for known in (yes, no))
    if not isinstance(condition, Choice) or one is None or other is None:
        return None
    # The condition may be false where its formulas hold.
    where, elsewhere = (float(one if truth else other) for truth in (condition.yes, condition.no))
    return Choice(condition.where, where, elsewhere)


_RULES: dict[Any, Rule] = {
    aten.arange: _arange,
    aten.ones: _filled(1), aten.new_ones: _filled(1), aten.ones_like: _filled(1),
    aten.zeros: _filled(0), aten.new_zeros: _filled(0), aten.zeros_like: _filled(0),
    aten.full: _filled(None), aten.new_full: _filled(None), aten.full_like: _filled(None),
    aten.scalar_tensor: _filled(None),
    aten._to_copy: _same, aten.clone: _same, aten.contiguous: _same,
    aten.unsqueeze: _rearranged(_unsqueezed), aten.expand: _rearranged(_expanded),
    aten.transpose: _rearranged(_transposed), aten.view: _rearranged(_reshaped), aten.reshape: _rearranged(_reshaped),
    aten.squeeze: _rearranged(_reshaped), aten.permute: _rearranged(_permuted),
    aten.slice: _sliced, aten.select: _selected, aten.diff: _difference, aten.cumsum: _running_sum,
    aten.add: _sum(1), aten.sub: _sum(-1), aten.mul: _product, aten.index: _gathered,
    aten.ge: _compared(lambda a, b: [a.plus(b, -1)]), aten.le: _compared(lambda a, b: [b.plus(a, -1)]),
    aten.gt: _compared(lambda a, b: [a.plus(b, -1).plus(Formula(-1))]),
    aten.lt: _compared(lambda a, b: [b.plus(a, -1).plus(Formula(-1))]),
    aten.eq: _compared(lambda a, b: [a.plus(b, -1), b.plus(a, -1)]), aten.ne: _unequal,
    aten.logical_and: _logical(_all), aten.bitwise_and: _logical(_all, True), aten.__and__: _logical(_all, True),
    aten.logical_or: _logical(_any), aten.bitwise_or: _logical(_any, True), aten.__or__: _logical(_any, True),
    aten.logical_not: _logical(_negated), aten.bitwise_not: _logical(_negated, True),
    aten.tril: _triangle(1), aten.triu: _triangle(-1), aten.where: _chosen, aten.masked_fill: _masked,
}  # fmt: skip
