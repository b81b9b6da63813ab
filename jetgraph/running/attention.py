"""Attention patterns of a branch, by head: what each query takes of each key."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from jetgraph.errors import InputError
from jetgraph.export.reach import above, below
from jetgraph.jets.registry import bind, execute, nodes_in
from jetgraph.running.forward import Forward
from jetgraph.structure.contractions import labels_of, operands_of
from jetgraph.structure.dimensions import Dimensions, Factor, Factors, Size, follow, leaves
from jetgraph.structure.kinds import attention_products
from jetgraph.structure.operators import SOFTMAX, packet_of
from jetgraph.structure.regions import Branch, Region


def attention_pattern(forward: Forward, branch: Branch) -> Tensor:
    """The weights of a branch's last attention product, as they are multiplied with the values; those of all where
    several stand beside each other, as heads do that are modules of their own.

    Fused attention is linear in its values, so that with the unit matrix in their place it gives its pattern, whatever
    its mask, scale and groups of heads are. Which dimensions are queries and keys is said by the product: queries are
    in what it gives, and keys are summed over. Of the others, the batch is followed from the branch's entry, and the
    rest are heads.

    Returns
    -------
    Tensor
        [batch, head, query, key].

    Raises
    ------
    InputError
        The branch has no attention by softmax, or one whose dimensions are none of these, as where positions attend in
        groups.
    """
    region, products = _products(branch)
    if not products:
        raise InputError(f"{branch.alias!r} (module {branch.name!r}) has no attention by softmax, so it has no pattern")
    layouts = follow(region.entry, region.nodes)
    patterns = [_of_product(forward, region, product, start, layouts) for product, start in products.items()]
    told = [pattern for pattern in patterns if pattern is not None]
    if len(told) < len(patterns) or len({(one.shape[0], *one.shape[2:]) for one in told}) > 1:
        product = next(reversed(products))
        raise InputError(
            f"the attention of {branch.alias!r}, {product.target} of shape {list(product.meta['shape'])}, does not say "
            "which of its dimensions are heads, queries and keys"
        )
    return told[0] if len(told) == 1 else torch.cat(told, 1)


def reads_itself(branch: Branch) -> bool:
    """Whether the values of a branch's last attention products are made of what the branch reads of the stream, so that
    keys are its positions; those of cross attention are of something else, however many there are.
    """
    region, products = _products(branch)
    own = {region.entry, *region.nodes}
    for product, start in products.items():
        if product is start:
            values = list(nodes_in([bind(product.target, product.args, product.kwargs)["value"]]))  # type: ignore[arg-type]
        else:
            values = [node for node in operands_of(product) if start not in above([node])]
        if not own.intersection(values):
            return False
    return True


def _products(branch: Branch) -> tuple[Region, dict[fx.Node, fx.Node]]:
    """The last attention products of a branch by softmax, each with what its weights start from, and where they are."""
    region = branch.region if branch.part is None else branch.part.cut.region
    found = attention_products(region)
    # What another one is made of is not multiplied with the values that the branch gives.
    ends = {product: start for product, start in found.items() if not _leads_on(product, found, region)}
    return region, {one: start for one, start in ends.items() if one is start or packet_of(start) in SOFTMAX}


def _leads_on(product: fx.Node, others: Collection[fx.Node], region: Region) -> bool:
    """Some other product of a region is made from one."""
    made = below([product], region.node_set.__contains__)
    return any(user in others for node in made for user in node.users)


def _of_product(
    forward: Forward, region: Region, product: fx.Node, start: fx.Node, layouts: Dimensions
) -> Tensor | None:
    weights = _fused(forward, product, layouts) if product is start else _by_hand(forward, product, start, layouts)
    return None if weights is None else _by_head(forward, region, weights, layouts)


@dataclass(frozen=True)
class _Weights:
    """Weights of an attention product."""

    value: Tensor
    """[*aside, query, key]"""
    aside: tuple[Factors, ...]
    """What makes up the dimensions besides queries and keys."""
    query: Factors
    """What makes up that of queries."""


def _fused(forward: Forward, product: fx.Node, layouts: Dimensions) -> _Weights | None:
    """What fused attention makes of the unit matrix."""
    layout = layouts.get(product)
    if layout is None:
        return None
    forward.need(product.all_input_nodes)
    op: Any = product.target
    args: Any = map_arg(product.args, forward.__getitem__)
    kwargs: Any = map_arg(product.kwargs, forward.__getitem__)
    bound = bind(op, args, kwargs)
    key = bound["key"]
    unit = torch.eye(key.shape[-2], dtype=key.dtype, device=key.device).expand(*key.shape[:-1], key.shape[-2])
    named: dict[str, Any] = {name: value for name, value in bound.items() if name not in ("query", "key", "value")}
    weights = execute(op, (bound["query"], key, unit.contiguous()), named)
    *aside, query = (layout.at(dim) for dim in range(len(layout.dims) - 1))
    return _Weights(weights, tuple(aside), query)


def _by_hand(forward: Forward, product: fx.Node, softmax: fx.Node, layouts: Dimensions) -> _Weights | None:
    """The factor of a product that is made of a softmax; None where its queries or keys are no one dimension."""
    made = below([softmax])
    told = labels_of(product)
    if told is None:
        return None
    factors, labels = told
    place = next((place for place, factor in enumerate(factors) if factor in made), 0)
    layout = layouts.get(factors[place])
    if layout is None:
        return None
    own, other, out = labels[place], labels[1 - place], labels[2]
    queries = [dim for dim, label in enumerate(own) if label in out and label not in other]
    keys = [dim for dim, label in enumerate(own) if label in other and label not in out]
    if len(queries) != 1 or len(keys) != 1:
        return None
    aside = [dim for dim in range(len(own)) if dim not in (*queries, *keys)]
    weights = forward[factors[place]].permute(*aside, *queries, *keys)
    return _Weights(weights, tuple(map(layout.at, aside)), layout.at(queries[0]))


def _by_head(forward: Forward, region: Region, weights: _Weights, layouts: Dimensions) -> Tensor | None:
    """The weights as [batch, head, query, key]; None where the batch is not told apart from heads, or queries see keys
    of some positions alone, whose groups would pass for heads.
    """
    counted, batch = _batch(forward, region, layouts)
    beside = {factor for factors in weights.aside for factor in factors}
    positions = [set(leaves(dim)).difference(counted) for dim in layouts.start.dims]
    if any(beside.intersection(each) and each.intersection(weights.query) for each in positions):
        return None
    if not counted and batch == 1:
        return weights.value[None, None].flatten(1, -3)
    for dim, factors in enumerate(weights.aside):
        if len(counted) == 1 and counted[0] in factors:
            at = factors.index(counted[0])
            sizes = [_number(factors[:at]), batch, _number(factors[at + 1 :])]
            if sizes.count(-1) < 2:
                return weights.value.unflatten(dim, sizes).movedim(dim + 1, 0).flatten(1, -3)
    return None


def _batch(forward: Forward, region: Region, layouts: Dimensions) -> tuple[Factors, int]:
    """What of a region's entry counts the batch, as the first dimension of the output does, and how many it counts; −1
    where a stream has batch and positions in one dimension.
    """
    size, *_ = forward.graph.traced.output.meta["shape"] or (1,)
    places = [place for place, one in enumerate(region.entry.meta["shape"]) if isinstance(one, str) and one == size]
    place = places[0] if len(places) == 1 else 0
    counted = layouts.start.at(place)
    named = [factor for factor in counted if factor.size == Size.of(size)]
    if len(counted) > 1 and len(named) == 1:
        return tuple(named), -1
    return counted, forward.shape(region.entry)[place]


def _number(factors: Sequence[Factor]) -> int:
    """The product of sizes; −1 where one is open."""
    return -1 if any(factor.size.symbols for factor in factors) else prod(factor.size.number for factor in factors)
