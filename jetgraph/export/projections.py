"""What a sum takes away of a value along a direction, written beside that value: it belongs to the skip.

    h + (f − m·⟨f, h⟩·h)      → (1 − m·⟨f, h⟩)·h + f
    h + b·(v − ⟨u, h⟩)·u      → (h − b·⟨u, h⟩·u) + b·v·u
    h + a·(mean f − mean h)   → (h − a·mean h) + a·mean f

In the first one what a branch has along the stream is taken away, in the second one what the stream has along a
direction, in the third one what all its places or features have in common. With the factors held all are affine in h,
so that no layer adds them. Values stay as they are up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from math import prod

import torch
from torch import fx

from jetgraph.export.factors import Factor, Writer, is_made_of, steps_of
from jetgraph.export.inner_products import inner_product
from jetgraph.export.summands import is_add, is_whole_sum, summands

aten = torch.ops.aten


def write_projections_beside(graph: fx.Graph) -> None:
    """Rewrite such sums in place."""
    for node in list(graph.nodes):
        if is_whole_sum(node):
            _write_beside(node)
    graph.eliminate_dead_code()


@dataclass(frozen=True, eq=False)
class _Term:
    """A summand: a value times factors, or in another precision, the innermost first."""

    leaf: fx.Node
    value: fx.Node
    steps: tuple[Factor | torch.dtype, ...]


def _write_beside(total: fx.Node) -> None:
    leaves = list(summands(total))
    for base in leaves:
        if base.meta.get("shape") != total.meta["shape"] or len(base.users) < 2 or leaves.count(base) > 1:
            continue
        terms = [term for leaf in leaves if leaf is not base for term in _terms(leaf, leaf)]
        weights = {term: weight for term in terms if (weight := _weight(term, base)) is not None}
        weights |= {term: [] for term in _in_common(terms, base)}
        if not weights or len(weights) == len(terms):
            continue
        # ⟨u, h⟩·u is an image of u as well; the stream is what the others are made of.
        if any(is_made_of(base, leaf) for leaf in leaves if leaf is not base):
            continue
        write = Writer(total)
        opened = {term.leaf for term in weights}
        with total.graph.inserting_before(total):
            factors = [
                write.weight([_same_type(write, one) for one in weight]) for weight in weights.values() if weight
            ]
            skip = write.product(base, Factor(reduce(write.sum, factors, 1)))
            skip = reduce(write.sum, [_written(write, term) for term, weight in weights.items() if not weight], skip)
            # A summand without such a part stays as it is.
            rest = [leaf for leaf in leaves if leaf is not base and leaf not in opened]
            rest += [_written(write, term) for term in terms if term.leaf in opened and term not in weights]
            # What a layer gives stays in one sum.
            result = write.sum(skip, reduce(write.sum, rest))
        total.replace_all_uses_with(result)
        total.graph.erase_node(total)
        return


def _terms(leaf: fx.Node, node: fx.Node, steps: tuple[Factor | torch.dtype, ...] = ()) -> Iterator[_Term]:
    """The terms of a summand: of sums that nothing else reads, with what these are multiplied by."""
    if is_add(node) and len(node.users) == 1:
        for inner in summands(node):
            yield from _terms(leaf, inner, steps)
        return
    way = next((way for way in _ways(node) if len(node.users) == 1 and _holds_sum(way[0])), None)
    if way is None:
        yield _Term(leaf, node, steps)
    else:
        yield from _terms(leaf, way[0], (way[1], *steps))


def _ways(node: fx.Node) -> Iterator[tuple[fx.Node, Factor | torch.dtype]]:
    """The values of which a node is a multiple, or the same in another precision."""
    yield from steps_of(node)
    before = _before_cast(node)
    if before is not None:
        yield before, node.meta["dtype"]


def _holds_sum(node: fx.Node) -> bool:
    """The node is a sum that nothing else reads, up to factors."""
    return len(node.users) == 1 and (is_add(node) or any(_holds_sum(value) for value, _ in _ways(node)))


def _before_cast(node: fx.Node) -> fx.Node | None:
    """What a node is in another precision; None where it is no such thing."""
    before = node.args[0] if node.target is aten._to_copy.default else None
    if not isinstance(before, fx.Node):
        return None
    return before if all(one.meta["dtype"].is_floating_point for one in (before, node)) else None


def _weight(term: _Term, base: fx.Node) -> list[Factor] | None:
    """The factors that make a term from the base where it is a multiple of that, and a contraction among them has the
    base in it; none where a contraction of the base is put back along what it was contracted with; else None.
    """
    factors = [*_factors(term.value)]
    factors += [inner for step in term.steps if isinstance(step, Factor) for inner in _factors_in(step)]
    directions = {factor.value for factor in factors if not factor.divides}
    for factor in factors:
        contracted = [] if factor.divides else _contracted(factor.value)
        if base in contracted and base in directions:
            at = next(at for at, one in enumerate(factors) if one.value is base and not one.divides)
            return factors[:at] + factors[at + 1 :]
        if contracted.count(base) == 1 and directions.intersection(contracted):
            return []
    return None


def _in_common(terms: list[_Term], base: fx.Node) -> list[_Term]:
    """The terms that have a mean of the base, or a sum of it, over places or features, if one takes it away. That from
    which its own mean is taken away is centred, as norms do it.
    """
    means = [term for term in terms if _is_mean(term.value, base)]
    centred = any(one.value is base for term in terms for one in _factors(term.value))
    return means if not centred and any(_sign(term) < 0 for term in means) else []


def _is_mean(value: fx.Node, base: fx.Node) -> bool:
    """Up to factors, a value is a sum or a mean of multiples of another one."""
    for one in (factor.value for factor in _factors(value) if isinstance(factor.value, fx.Node) and not factor.divides):
        above = one.args[0] if one.target in _MEANS else None
        if isinstance(above, fx.Node) and [factor.value for factor in _factors(above)].count(base) == 1:
            return True
    return False


_MEANS = {aten.mean.dim, aten.sum.dim_IntList}


def _sign(term: _Term) -> int:
    steps = [step for step in term.steps if isinstance(step, Factor)]
    return prod(factor.sign for factor in (*_factors(term.value), *steps))


def _factors_in(factor: Factor) -> Iterator[Factor]:
    if not isinstance(factor.value, fx.Node):
        yield factor
        return
    for inner in _factors(factor.value):
        yield Factor(inner.value, inner.divides != factor.divides)


def _factors(node: fx.Node) -> Iterator[Factor]:
    """What a value is a product of, up to precision and repetition."""
    step = next(steps_of(node), None)
    above = node.args[0] if node.target is aten.expand.default else _before_cast(node)
    if isinstance(above, fx.Node):
        yield from _factors(above)
    elif step is None or step[0] is step[1].value:
        yield Factor(node)  # A square is no direction, and powers by squaring have too many factors.
    else:
        yield from _factors(step[0])
        yield from _factors_in(step[1])


def _contracted(value: object) -> list[fx.Node]:
    """The factors of the product whose sum over a dimension, which is kept, a value is."""
    found = inner_product(value) if isinstance(value, fx.Node) else None
    factors = (factor for one in found or () for factor in _factors(one))
    return [factor.value for factor in factors if isinstance(factor.value, fx.Node) and not factor.divides]


# Writing


def _written(write: Writer, term: _Term) -> fx.Node:
    value = term.value
    for step in term.steps:
        value = write.product(value, step) if isinstance(step, Factor) else _cast(value, step)
    return value


def _same_type(write: Writer, factor: Factor) -> Factor:
    """A factor in the precision of the sum."""
    if not isinstance(factor.value, fx.Node):
        return factor
    return Factor(_cast(factor.value, write.total.meta["dtype"]), factor.divides)


def _cast(value: fx.Node, dtype: torch.dtype) -> fx.Node:
    """A value in another precision: itself, if it is a cast of that to more digits."""
    before, given = _before_cast(value), value.meta["dtype"]
    if before is not None and before.meta["dtype"] is dtype and torch.promote_types(dtype, given) is given:
        return before
    if given is dtype:
        return value
    cast = value.graph.call_function(aten._to_copy.default, (value,), {"dtype": dtype})
    cast.meta = {**value.meta, "dtype": dtype}
    return cast
