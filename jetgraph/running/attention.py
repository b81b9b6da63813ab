"""Attention patterns of a branch, by head: what each query takes of each key."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from jetgraph.errors import InputError
from jetgraph.jets.registry import bind, execute
from jetgraph.running.forward import Forward
from jetgraph.structure.operators import PRODUCTS, SOFTMAX, attention_products, packet_of
from jetgraph.structure.regions import Branch

aten = torch.ops.aten


def attention_pattern(forward: Forward, branch: Branch) -> Tensor:
    """The weights of a branch's last attention product, as they are multiplied with the values.

    Fused attention is linear in its values, so that with the unit matrix in their place it gives its pattern, whatever
    its mask, scale and groups of heads are.

    Returns
    -------
    Tensor
        [batch, head, query, key].

    Raises
    ------
    InputError
        The branch has no attention by softmax, or one whose dimensions are none of these.
    """
    region = branch.region if branch.part is None else branch.part.cut.region
    products = attention_products(region)
    product, start = next(reversed(products.items()), (None, None))
    if product is None or start is None or (product is not start and packet_of(start) not in SOFTMAX):
        raise InputError(f"{branch.alias!r} (module {branch.name!r}) has no attention by softmax, so it has no pattern")
    weights = _fused(forward, product) if product is start else _weights(forward, product, start)
    batch = forward.shape(region.entry)[0]
    if weights is not None and weights.dim() == 3 and weights.shape[0] % batch == 0:
        weights = weights.unflatten(0, (batch, -1))
    if weights is not None and weights.dim() == 5:
        weights = weights.flatten(1, 2)
    if weights is None or weights.dim() != 4 or weights.shape[0] != batch:
        raise InputError(
            f"the attention of {branch.alias!r}, {product.target} of shape {list(product.meta['shape'])}, does not say "
            "which of its dimensions are queries and keys"
        )
    return weights


def _fused(forward: Forward, product: fx.Node) -> Tensor:
    """What fused attention makes of the unit matrix."""
    forward.need(product.all_input_nodes)
    op: Any = product.target
    args: Any = map_arg(product.args, forward.__getitem__)
    kwargs: Any = map_arg(product.kwargs, forward.__getitem__)
    bound = bind(op, args, kwargs)
    key = bound["key"]
    unit = torch.eye(key.shape[-2], dtype=key.dtype, device=key.device).expand(*key.shape[:-1], key.shape[-2])
    named: dict[str, Any] = {name: value for name, value in bound.items() if name not in ("query", "key", "value")}
    return execute(op, (bound["query"], key, unit.contiguous()), named)


def _weights(forward: Forward, product: fx.Node, softmax: fx.Node) -> Tensor | None:
    """The factor of a product that is made of a softmax, its queries before its keys; None for other products."""
    if packet_of(product) not in PRODUCTS or packet_of(product) is aten.einsum:
        return None
    made, stack = {softmax}, [softmax]
    while stack:
        for user in stack.pop().users:
            if user not in made:
                made.add(user)
                stack.append(user)
    left, right = product.all_input_nodes[-2:]
    return forward[left] if left in made else forward[right].mT
