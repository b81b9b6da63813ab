"""The sum of a series' coefficients, where nothing else of it is wanted: what comes last is linear, and is done once.

Σ_j A y_j + b = A (Σ_j y_j) + b,        Σ_{i+j≤k} a_i b_j = Σ_i a_i (Σ_{j≤k−i} b_j)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import fx

from jetgraph.jets.arithmetic import cast, dot, promoted, working_dtype
from jetgraph.jets.interpreter import evaluate
from jetgraph.jets.registry import is_affine
from jetgraph.jets.series import Series

aten = torch.ops.aten

_KNOWN = "_jetgraph_endings"
"""Where a graph keeps how its chains end: it lives as long as the nodes that it is of."""


def total(nodes: tuple[fx.Node, ...], values: dict[fx.Node, Any], order: int, result: fx.Node) -> Any:
    """Σ_{j≤order} of the coefficients of `result`, up to rounding.

    Parameters
    ----------
    nodes, values, order
        As of `jetgraph.jets.interpreter.evaluate`.
    result
        One of the nodes.

    Raises
    ------
    MissingRuleError, DomainError
        As `evaluate`.
    """
    ending = _ending(nodes, frozenset(node for node, value in values.items() if isinstance(value, Series)), result)
    evaluate(ending.before, values, order, ending.kept)
    values |= {
        node: summed(values[node]) if read is None else product(order, *(values[arg] for arg in read))
        for node, read in ending.totals.items()
    }
    for node in ending.over:
        del values[node]
    return evaluate(ending.after, values, keep={result})[result] if ending.after else values[result]


def summed(value: Any) -> Any:
    """Σ_j x_j; of a value that does not vary, itself."""
    if not isinstance(value, Series):
        return value
    stack = value.coefficients
    return stack[0] if len(stack) == 1 else stack.sum(0)


def product(order: int, a: Any, b: Any) -> Any:
    """Σ_{j≤order} of the coefficients of a · b."""
    if not isinstance(a, Series) or not isinstance(b, Series):
        return summed(a) * summed(b)
    dtype = promoted(a, b)
    if (a.stop - a.start, -a.first.numel()) > (b.stop - b.start, -b.first.numel()):
        a, b = b, a
    few, many = (cast(value, working_dtype(dtype)).rows() for value in (a, b))
    sums = list(accumulate(many, lambda one, other: other if one is None else one if other is None else one + other))
    found = dot(few, sums, order)
    return (torch.zeros_like(a.first * b.first) if found is None else found).to(dtype)


@dataclass(frozen=True, eq=False)
class _Ending:
    """How a chain ends."""

    before: tuple[fx.Node, ...]
    """What runs on series."""
    kept: frozenset[fx.Node]
    """What is read of it."""
    totals: dict[fx.Node, tuple[fx.Node, fx.Node] | None]
    """The last values that are series, and of products of two, which."""
    over: tuple[fx.Node, ...]
    """What nothing reads once these are summed."""
    after: tuple[fx.Node, ...]
    """What is affine in them, on their sums."""


def _ending(nodes: tuple[fx.Node, ...], varying: frozenset[fx.Node], result: fx.Node) -> _Ending:
    known: dict[Any, _Ending] = vars(result.graph).setdefault(_KNOWN, {})
    key = nodes, varying, result
    if key not in known:
        known[key] = _found(nodes, varying, result)
    return known[key]


def _found(nodes: Sequence[fx.Node], varying: frozenset[fx.Node], result: fx.Node) -> _Ending:
    inside, depends, after = set(nodes), set(varying), set[fx.Node]()
    for node in nodes:
        if not depends.isdisjoint(node.all_input_nodes):
            depends.add(node)

    def is_last(node: fx.Node) -> bool:
        """Nothing reads it but what is after, and something does."""
        readers = inside.intersection(node.users)
        return node is result or (bool(readers) and after.issuperset(readers))

    for node in reversed(nodes):
        moving = depends.intersection(node.all_input_nodes)
        single = all("shape" in one.meta for one in (node, *moving))
        if moving and single and is_last(node) and is_affine(node, depends.__contains__):
            after.add(node)
    read = dict.fromkeys(arg for node in nodes if node in after for arg in node.all_input_nodes if arg not in after)
    last = [node for node in read if node in depends] if after else [result]
    products = {node for node in last if node in inside and is_last(node) and _is_product(node, depends)}
    totals = {node: (node.args[0], node.args[1]) if node in products else None for node in last}
    before = tuple(node for node in nodes if node not in after and node not in products)
    factors = {arg for node in products for arg in node.args if isinstance(arg, fx.Node)}
    kept = frozenset({*read, *last, *factors} - products)
    over = tuple(node for node in factors if node in inside and node not in read)
    return _Ending(before, kept, totals, over, tuple(node for node in nodes if node in after))  # type: ignore[arg-type]


def _is_product(node: fx.Node, depends: set[fx.Node]) -> bool:
    return node.target is aten.mul.Tensor and depends.issuperset(node.args) and not node.kwargs  # type: ignore[arg-type]
