"""Products of two values that are summed over dimensions which both have, however they are written.

q @ kᵀ,  einsum("bqd,bkd->bqk", q, k),  (q[:, :, None] * k[:, None]).sum(-1)
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import fx

from jetgraph.jets.registry import bind, nodes_in
from jetgraph.structure.dimensions import einsum_labels
from jetgraph.structure.operators import PRODUCTS, aten, packet_of

SUMS = frozenset({aten.sum, aten.mean})
"""Sums over dimensions."""

BY_INDEX = {aten.scatter_add: "src", aten.scatter_reduce: "src", aten.index_add: "source"}
"""Sums of the entries that have one index, as of messages at a node of a graph, and their argument that is summed."""


def factors_of(node: fx.Node) -> tuple[fx.Node, ...]:
    """What a product is made of, its summand too; nothing for any other node."""
    if packet_of(node) in PRODUCTS:
        return tuple(node.all_input_nodes)
    product = written_out(node)
    return () if product is None else tuple(nodes_in(product.args))


def operands_of(node: fx.Node) -> tuple[fx.Node, ...]:
    """What a product is made of, or a sum of a product entry by entry."""
    product = weighted(node)
    return factors_of(node) if product is None else tuple(nodes_in(product.args))


def written_out(node: fx.Node) -> fx.Node | None:
    """The product entry by entry that a node sums over, where each factor is broadcast along a dimension of the other.

    So rows and columns are told; without them it may be any sum with weights, as of experts.
    """
    product = weighted(node)
    if product is None:
        return None
    one, other = (_padded(factor.meta["shape"], len(product.meta["shape"])) for factor in product.all_input_nodes)
    both = {place for place, pair in enumerate(zip(one, other, strict=True)) if 1 not in pair}
    rows, columns = ({at for at, size in enumerate(shape) if size != 1} - both for shape in (one, other))
    return product if rows and columns and both.issuperset(summed_over(node)) else None


def weighted(node: fx.Node) -> fx.Node | None:
    """The product entry by entry of two values that a node sums over, whatever their sizes are."""
    product = next(nodes_in(node.args[:1]), None) if packet_of(node) in SUMS else summed_by_index(node)
    if product is None or packet_of(product) is not aten.mul or len(product.all_input_nodes) != 2:
        return None
    return product


def summed_by_index(node: fx.Node) -> fx.Node | None:
    """The value of which a node sums up entries that have one index."""
    name = BY_INDEX.get(packet_of(node))
    bound: dict[str, Any] = {} if name is None else bind(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
    return bound[name] if name and bound.get("reduce", "sum") == "sum" else None


def summed_over(node: fx.Node) -> set[int]:
    """The dimensions over which a sum of one value goes, counted from the front."""
    rank = len(node.args[0].meta["shape"])  # type: ignore[union-attr]
    dims = bind(node.target, node.args, node.kwargs).get("dim")  # type: ignore[arg-type]
    if dims is None or dims == []:
        return set(range(rank))
    return {dim % rank for dim in (dims if isinstance(dims, list | tuple) else [dims])}


def labels_of(node: fx.Node) -> tuple[tuple[fx.Node, fx.Node], list[list[Hashable]]] | None:
    """The two factors of a product, and names of their dimensions and of those of the product: those that are summed
    over stand in no product, those along which one is broadcast in the other alone.

    None where there are not two, or a dimension stands for two at once.
    """
    product = weighted(node)
    if product is not None:
        one, other = nodes_in(product.args)
        rank = len(product.meta["shape"])
        summed = summed_over(node)
        bound: dict[str, Any] = bind(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
        keeps = bound.get("keepdim") or packet_of(node) in BY_INDEX
        kept = [("kept", at) if at in summed else at for at in range(rank) if keeps or at not in summed]
        return (one, other), [_named(one, other, rank), _named(other, one, rank), kept]
    factors = list(nodes_in(node.args))[-2:]
    if packet_of(node) not in PRODUCTS or len(factors) != 2:
        return None
    one, other = factors
    ranks = [len(factor.meta["shape"]) for factor in factors]
    labels = _of_product(bind(node.target, node.args, node.kwargs), ranks)  # type: ignore[arg-type]
    return None if labels is None else ((one, other), labels)


def _of_product(bound: dict[str, Any], ranks: Sequence[int]) -> list[list[Hashable]] | None:
    if "equation" in bound:
        return einsum_labels(bound["equation"], ranks) if len(bound["tensors"]) == 2 else None
    if min(ranks) < 2:
        return None
    aside: list[Hashable] = list(range(-max(ranks), -2))
    one, other = (aside[len(aside) - rank + 2 :] for rank in ranks)
    return [[*one, "row", "in"], [*other, "in", "column"], [*aside, "row", "column"]]


def _named(factor: fx.Node, other: fx.Node, rank: int) -> list[Hashable]:
    """Numbers of the dimensions of the product, others where only the other factor has one."""
    own, beside = (_padded(node.meta["shape"], rank) for node in (factor, other))
    named: list[Hashable] = [("one", at) if own[at] == 1 != beside[at] else at for at in range(rank)]
    return named[rank - len(factor.meta["shape"]) :]


def _padded(shape: Sequence[int | str], rank: int) -> list[int | str]:
    return [*[1] * (rank - len(shape)), *shape]
