"""Differences from a value that are added to it, times a factor, as weighted sums: one spelling of an interpolation.

    h + a·(f − h)            → (1 − a)·h + a·f, as `lerp(h, f, a)` is written
    h − (h − f)/t            → (1 − 1/t)·h + f/t
    h − a·h + a·f            → the same, in whatever order
    h + a·(f − b·h + c·g)    → (1 − a·b)·h + a·f + a·c·g, and so on for differences within differences
    (h + f) − h              → f, and 2·h − h + f  → h + f, and h + f(h) + f(h)  → h + 2·f(h)
    a·(b·h₀ + c·h₁) + d·h₂   → a·b·h₀ + a·c·h₁ + d·h₂
    g(h)·(h + f(h))          → g(h)·h + g(h)·f(h), and so where g is made of the sum too, or a mask

A factor is a number or a tensor, learned or made of the stream. It is distributed where what it multiplies takes away
what the whole adds: such a sum is a difference from the stream and no point of it, unlike h + f(h) in
w·h + v·(h + f(h)), and unlike one that is read more than once. It is distributed too where what it multiplies
weighs values that are read elsewhere, as a running mean of layers does, and where it is made of the same value as the
sum that it multiplies, which nothing else reads, and the product is not weighed with that value: from the sum alone no
way leads on then, as in an autoregressive flow, or where a step is cut to a share of the length before. Values stay as
they are up to rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import zip_longest
from math import prod
from typing import Any

import torch
from torch import fx

from jetgraph.export.inner_products import inner_product
from jetgraph.export.summands import is_add, is_whole_sum, summands

aten = torch.ops.aten


def distribute_over_differences(graph: fx.Graph) -> None:
    """Rewrite them in place, the innermost first."""
    for node in list(graph.nodes):
        if not is_whole_sum(node):
            continue
        total: fx.Node | None = _collected(node)
        while total is not None:
            total = _distribute(total)
    graph.eliminate_dead_code()


def distribute_over_own_sums(graph: fx.Graph) -> None:
    """Rewrite g(h)·(h + f(h)) in place, with g made of h, and maybe of the sum too, which nothing else reads."""
    for node in list(graph.nodes):
        found = next((found for found in _products(node) if _is_own(node, *found)), None)
        if found is None:
            continue
        total, steps = found
        write = Writer(node)
        with graph.inserting_before(node):
            result = reduce(write.sum, [_multiplied(leaf, steps) for leaf in summands(total)])
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    graph.eliminate_dead_code()


_Step = tuple[fx.Node, int]
"""A product of a value, and which of its arguments that is."""


def _products(node: fx.Node) -> Iterator[tuple[fx.Node, tuple[_Step, ...]]]:
    """The sums of which a node is a multiple, with the products on the way, the innermost first."""
    for place in _places_of_value(node):
        value = node.args[place]
        if not isinstance(value, fx.Node) or not _same_type(value, node) or not _is_full(value, node):
            continue
        if is_add(value):
            yield value, ((node, place),)
        elif len(value.users) == 1:
            yield from ((total, (*steps, (node, place))) for total, steps in _products(value))


def _places_of_value(node: fx.Node) -> tuple[int, ...]:
    """The arguments in which a node is linear: a factor of a product, what is divided, what is left where a mask is."""
    if node.kwargs:
        return ()
    if node.target is aten.mul.Tensor:
        return (0, 1)
    if node.target in (aten.where.self, aten.where.ScalarOther):
        return (1,) if is_nothing(node.args[2]) else ()
    if node.target is aten.masked_fill.Scalar:
        return (0,) if is_nothing(node.args[2]) else ()
    return (0,) if node.target is aten.div.Tensor else ()


def _multiplied(value: fx.Node, steps: Sequence[_Step]) -> fx.Node:
    """A value in the place of the sum that steps multiply."""
    for node, place in steps:
        args: list[Any] = [value if at == place else arg for at, arg in enumerate(node.args)]
        target: Any = node.target
        if target is aten.where.self:
            # Zeros may have the shape of the sum.
            target, args[2] = aten.where.ScalarOther, 0.0
        value = node.graph.call_function(target, tuple(args))
        value.meta = dict(node.meta)
    return value


def _is_own(node: fx.Node, total: fx.Node, steps: Sequence[_Step]) -> bool:
    leaves = list(summands(total))
    # Without its mean a value is centred, as norms do it, and no sum of two.
    if not all(_is_full(leaf, total) for leaf in leaves):
        return False
    factors = [arg for step, place in steps for at, arg in enumerate(step.args) if at != place]
    own = any(
        len(leaf.users) > 1
        and any(is_made_of(factor, leaf, past=total) for factor in factors)
        and all(other is leaf or is_made_of(other, leaf) for other in leaves)
        and not _is_weighed_with(node, leaf)
        for leaf in leaves
    )
    # What is dear is asked last: a stream leads to the end.
    return own and _leads_to(total, node)


def _leads_to(total: fx.Node, node: fx.Node) -> bool:
    """All that reads a sum goes into one node, and what that gives is all that goes on."""
    seen, waiting = {node}, [total]
    while waiting:
        users = [user for user in waiting.pop().users if user not in seen]
        if any(user.op == "output" for user in users):
            return False
        seen.update(users)
        waiting += users
    return True


def _is_weighed_with(node: fx.Node, value: fx.Node) -> bool:
    """In w·h + v·(h + f(h)) the sum is a point that is weighed with another one."""
    for user in filter(is_add, node.users):
        total = user
        while len(total.users) == 1 and is_add(above := next(iter(total.users))):
            total = above
        if any(leaf is not node and is_made_of(leaf, value, past=node) for leaf in summands(total)):
            return True
    return False


def _collected(total: fx.Node) -> fx.Node | None:
    """The sum with one multiple of a value in the place of several by numbers, of which one takes away what another one
    adds, or which are made of another summand and the same; None where nothing is left to look at, since one summand is
    all there is.

    A sum that only what is taken away gives its shape to stays as it is.
    """
    leaves = list(summands(total))
    multiples = [_by_number(leaf) for leaf in leaves]
    weights: dict[fx.Node, list[float]] = {}
    for value, number in multiples:
        weights.setdefault(value, []).append(number)
    again = {leaf for leaf, number in Counter(leaves).items() if number > 1}
    twice = {leaf for leaf in again if any(is_made_of(leaf, other) for other in leaves if other is not leaf)}
    several = {
        value
        for leaf, (value, _) in zip(leaves, multiples, strict=True)
        if leaf in twice or min(weights[value]) < 0 < max(weights[value])
    }
    kept = {value: sum(weights[value]) for value in several}
    left = [value.meta["shape"] for value in weights if kept.get(value, 1)]
    if not several or not left or reduce(broadcast, left) != total.meta["shape"]:
        return total
    write, written = Writer(total), list[fx.Node]()
    with total.graph.inserting_before(total):
        for leaf, (value, _) in zip(leaves, multiples, strict=True):
            weight = kept.pop(value, 0) if value in several else None
            if weight != 0:
                written.append(leaf if weight is None else write.product(value, Factor(weight)))
        result = reduce(write.sum, written)
    total.replace_all_uses_with(result)
    total.graph.erase_node(total)
    return result if len(written) > 1 else None


def _by_number(leaf: fx.Node) -> tuple[fx.Node, float]:
    """A value, and the number that a summand is times that."""
    number = 1.0
    while True:
        step = next((step for step in steps_of(leaf) if not isinstance(step[1].value, fx.Node)), None)
        if step is None:
            return leaf, number
        leaf, factor = step
        number = number / factor.value if factor.divides else number * factor.value


def _distribute(total: fx.Node) -> fx.Node | None:
    """What the sum is written as, if a summand takes away a multiple of another one, or weighs values further."""
    return _over_difference(total) or _over_values(total)


def _over_values(total: fx.Node) -> fx.Node | None:
    """With factors distributed over sums of multiples of values that others read as well: no sum of these is more."""
    opened = [_weighed(leaf) for leaf in summands(total)]
    if not any(len(each) > 1 for each in opened):
        return None
    write = Writer(total)
    with total.graph.inserting_before(total):
        result = reduce(write.sum, [write.multiple(each) for several in opened for each in several])
    total.replace_all_uses_with(result)
    total.graph.erase_node(total)
    return result


def _weighed(leaf: fx.Node) -> list[Multiple]:
    """A summand as the sum of multiples that it is, if it is a multiple of such a sum of values; else by itself."""
    node, factors = leaf, tuple[Factor, ...]()
    while len(node.users) == 1 and not is_add(node):
        step = next((step for step in steps_of(node) if _is_full(step[0], node)), None)
        if step is None:
            break
        node, factors = step[0], (step[1], *factors)
    if not factors or not is_add(node) or len(node.users) > 1:
        return [Multiple(leaf, ())]
    found = [_of_value(inner) for inner in summands(node)]
    # Without its mean, a value is centred, as norms do it, and no sum of two.
    if any(each is None or not _is_full(each.value, node) for each in found):
        return [Multiple(leaf, ())]
    return [Multiple(each.value, (*each.factors, *factors)) for each in found if each is not None]


def _of_value(leaf: fx.Node) -> Multiple | None:
    """A summand as a multiple of a value that others read as well."""
    factors: tuple[Factor, ...] = ()
    node = leaf
    while len(node.users) == 1:
        step = next((step for step in steps_of(node) if _is_full(step[0], node)), None)
        if step is None:
            return None
        node, factors = step[0], (step[1], *factors)
    return Multiple(node, factors) if _is_full(node, leaf) else None


def _is_full(value: fx.Node, whole: fx.Node) -> bool:
    """A value has the shape of what is made of it."""
    return value.meta.get("shape") == whole.meta.get("shape")


def _over_difference(total: fx.Node) -> fx.Node | None:
    """With factors distributed over what takes away a multiple of a summand."""
    leaves = list(summands(total))
    for leaf in leaves:
        base, sign = _stripped(leaf, len(total.meta["shape"]))
        if not _same_type(base, total) or base.meta.get("shape") != total.meta["shape"]:
            continue
        of = _Of(base, sign)
        opened = [list(of.summands(other)) for other in leaves]
        multiples = [each for several in opened for each in several]
        if len(multiples) > len(leaves) or _is_weighed_against(of, multiples):
            return _write(total, base, multiples)
    return None


def _is_weighed_against(of: _Of, multiples: Sequence[Multiple]) -> bool:
    """A summand takes away a multiple of the value by data, which is added, beside what is no multiple of it, as in
    h − a·h + a·f. A power of the value, such as h·h·h, is none, and what lies along it is told elsewhere.
    """
    taken = (
        each.value is of.base
        and prod(factor.sign for factor in each.factors) < 0 < of.sign
        and any(isinstance(factor.value, fx.Node) for factor in each.factors)
        and not any(_is_power(factor.value, of.base) for factor in each.factors)
        for each in multiples
    )
    return any(each.value is not of.base for each in multiples) and any(taken)


def _is_power(factor: Any, base: fx.Node) -> bool:
    """A factor is the value, or a product or an inner product in which it is."""
    found = [factor] if isinstance(factor, fx.Node) else []
    for node in found:
        summed = inner_product(node)
        above = [value for value, _ in steps_of(node)] if summed is None else summed
        found += [value for value in above if value not in found]
    return base in found


def _same_type(one: fx.Node, other: fx.Node) -> bool:
    return one.meta.get("dtype") == other.meta.get("dtype")


@dataclass(frozen=True)
class Factor:
    """Times a number or a tensor, or divided by it."""

    value: Any
    divides: bool = False

    @property
    def sign(self) -> int:
        negated = self.value.target is aten.neg.default if isinstance(self.value, fx.Node) else self.value < 0
        return -1 if negated else 1


@dataclass(frozen=True)
class Multiple:
    """A value times factors, the innermost first."""

    value: fx.Node
    factors: tuple[Factor, ...]


def steps_of(node: fx.Node) -> Iterator[tuple[fx.Node, Factor]]:
    """The values of which a node is a multiple by one factor: two, if it is a product of two."""
    if node.target is aten.neg.default:
        yield node.args[0], Factor(-1)  # type: ignore[misc]
    elif node.target in (aten.mul.Tensor, aten.div.Tensor) and not node.kwargs:
        one, other = node.args
        divides = node.target is aten.div.Tensor
        for value, factor in ((one, other),) if divides else ((one, other), (other, one)):
            nodes = [each for each in (value, factor) if isinstance(each, fx.Node)]
            if isinstance(value, fx.Node) and all(_same_type(each, node) for each in nodes):
                yield value, Factor(factor, divides)


def _stripped(leaf: fx.Node, rank: int) -> tuple[fx.Node, int]:
    """A summand without numbers, and without factors of fewer dimensions, such as a learned scale; and its sign."""
    sign = 1
    while True:
        for value, factor in steps_of(leaf):
            if not isinstance(factor.value, fx.Node) or len(factor.value.meta.get("shape", ())) < rank:
                leaf, sign = value, sign * factor.sign
                break
        else:
            return leaf, sign


class _Of:
    """Sums in terms of a value that is added with this sign: those that take it away are opened."""

    def __init__(self, base: fx.Node, sign: int) -> None:
        self.base, self.sign = base, sign
        self._signs: dict[fx.Node, frozenset[int]] = {base: frozenset((1,))}

    def summands(self, node: fx.Node, factors: tuple[Factor, ...] = ()) -> Iterator[Multiple]:
        """A multiple of a node as a sum of multiples, in which the value stands by itself."""
        step = self._step(node)
        if factors and node is not self.base and self._opens(node, factors):
            for leaf in summands(node):
                yield from self.summands(leaf, factors)
        elif step is not None and self._leads(node, factors):
            value, factor = step
            yield from self.summands(value, (factor, *factors))
        else:
            yield Multiple(node, factors)

    def _leads(self, node: fx.Node, factors: tuple[Factor, ...]) -> bool:
        """Through factors alone the node is a multiple of the value, or of a sum that is opened."""
        while (step := self._step(node)) is not None:
            node, factors = step[0], (step[1], *factors)
        return node is self.base or self._opens(node, factors)

    def _opens(self, node: fx.Node, factors: Sequence[Factor]) -> bool:
        """The node is a sum that takes the value away; one that is read more than once is a value by itself."""
        return is_add(node) and len(node.users) == 1 and self._takes_away(node, factors)

    def _takes_away(self, node: fx.Node, factors: Sequence[Factor]) -> bool:
        outside = prod(factor.sign for factor in factors)
        return any(sign * outside == -self.sign for sign in self._signs_in(node))

    def _step(self, node: fx.Node) -> tuple[fx.Node, Factor] | None:
        """The one factor of a product in which the value is summed up."""
        if node is self.base:
            return None
        steps = [step for step in steps_of(node) if self._signs_in(step[0])]
        return steps[0] if len(steps) == 1 else None

    def _signs_in(self, node: fx.Node) -> frozenset[int]:
        """The signs with which the value is summed up in a node, through factors."""
        if node not in self._signs:
            self._signs[node] = frozenset(() if node < self.base else self._found_in(node))
        return self._signs[node]

    def _found_in(self, node: fx.Node) -> Iterator[int]:
        if is_add(node):
            yield from (sign for arg in node.all_input_nodes for sign in self._signs_in(arg))
        elif (step := self._step(node)) is not None:
            yield from (sign * step[1].sign for sign in self._signs_in(step[0]))


# Writing


def _write(total: fx.Node, base: fx.Node, multiples: Sequence[Multiple]) -> fx.Node | None:
    """c·base + Σ others in the place of a sum; None where c is nothing."""
    write = Writer(total)
    with total.graph.inserting_before(total):
        weights = [write.weight(each.factors) for each in multiples if each.value is base]
        # Numbers first: what they come to decides whether there is anything left.
        weight = reduce(write.sum, sorted(weights, key=lambda weight: isinstance(weight, fx.Node)))
        if weight == 0:
            return None
        result = write.product(base, Factor(weight))
        for each in multiples:
            if each.value is not base:
                result = write.sum(result, write.multiple(each))
    total.replace_all_uses_with(result)
    total.graph.erase_node(total)
    return result


class Writer:
    """Writes nodes in the place of one, with its metadata but for the shape."""

    def __init__(self, total: fx.Node) -> None:
        self.total = total

    def __call__(self, op: Any, *args: Any) -> fx.Node:
        node = self.total.graph.call_function(op, args)
        shapes = [arg.meta["shape"] for arg in args if isinstance(arg, fx.Node)]
        node.meta = {**self.total.meta, "shape": reduce(broadcast, shapes)}
        return node

    def sum(self, one: Any, other: Any) -> Any:
        if not isinstance(one, fx.Node) and not isinstance(other, fx.Node):
            return one + other
        if isinstance(one, fx.Node):
            return one if isinstance(other, (int, float)) and other == 0 else self(aten.add.Tensor, one, other)
        return self.sum(other, one)

    def product(self, value: Any, factor: Factor) -> Any:
        """Of two numbers a number, −1 as a sign."""
        other = factor.value
        if not isinstance(value, fx.Node) and not isinstance(other, fx.Node):
            return value / other if factor.divides else value * other
        if not isinstance(value, fx.Node):
            other = self(aten.reciprocal.default, other) if factor.divides else other
            return self.product(other, Factor(value))
        if not isinstance(other, fx.Node) and other in (1, -1):
            return value if other == 1 else self(aten.neg.default, value)
        return self(aten.div.Tensor if factor.divides else aten.mul.Tensor, value, other)

    def weight(self, factors: Sequence[Factor]) -> Any:
        """The product of factors, a number where all are."""
        return reduce(self.product, factors, 1)

    def multiple(self, of: Multiple) -> fx.Node:
        """A value times factors; numbers are taken together, a sign comes last."""
        value: Any = of.value
        number: Any = 1
        while of.factors and value.target is aten.neg.default:
            value, number = value.args[0], -number
        for factor in of.factors:
            if isinstance(factor.value, fx.Node):
                value = self.product(value, factor)
            else:
                number = self.product(number, factor)
        return self.product(value, Factor(number))


def is_made_of(node: Any, of: fx.Node, *, past: fx.Node | None = None) -> bool:
    """A value is another one, or computed from it by a way that does not lead through `past`."""
    seen, waiting = {past}, [node] if isinstance(node, fx.Node) else []
    while waiting:
        one = waiting.pop()
        if one is of:
            return True
        above = [other for other in one.all_input_nodes if other not in seen and not other < of]
        seen.update(above)
        waiting += above
    return False


def is_nothing(value: Any) -> bool:
    """The number 0, or zeros."""
    return is_zeros(value) if isinstance(value, fx.Node) else value == 0


def is_zeros(value: Any) -> bool:
    """A tensor that is filled with zeros, in whatever layout. Zeros times a number are where a state starts, such as a
    speed: its first step is like the others.
    """
    while isinstance(value, fx.Node) and value.target in _KEEP_ZEROS:
        value = value.args[0]
    if not isinstance(value, fx.Node) or value.target not in _FILLED_AT:
        return False
    at = _FILLED_AT[value.target]
    return at is None or value.args[at] in (0, False)


_FILLED_AT: dict[Any, int | None] = {
    aten.zeros.default: None, aten.zeros_like.default: None, aten.new_zeros.default: None, aten.full.default: 1,
    aten.full_like.default: 1, aten.new_full.default: 2, aten.scalar_tensor.default: 0,
}  # fmt: skip
"""Operators that fill a tensor, and which argument they fill it with, where that is not always zero."""

_KEEP_ZEROS = {aten.expand.default, aten.view.default, aten.reshape.default}


def broadcast(one: Sequence[int | str], other: Sequence[int | str]) -> tuple[int | str, ...]:
    """The shape of what is made of values of two shapes."""
    pairs = zip_longest(reversed(one), reversed(other), fillvalue=1)
    return tuple(left if right == 1 else right for left, right in pairs)[::-1]
