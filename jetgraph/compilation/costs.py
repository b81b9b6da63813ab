"""Floating-point operations of a piece of the graph, by the shapes of its nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod

import torch
from torch import fx

aten = torch.ops.aten

Sizes = Callable[[fx.Node], tuple[int, ...]]

_LINEAR = {aten.linear: 1, aten.addmm: 2, aten.mm: 1}
"""Products with a weight, or with what varies, by the argument whose shape holds the length of the sums."""

_PRODUCTS = {aten.bmm: 0, aten.matmul: 0, aten.baddbmm: 1}

_CONVOLUTIONS = {aten.convolution, aten.conv1d, aten.conv2d, aten.conv3d}


def flops(nodes: Iterable[fx.Node], sizes: Sizes, rows: int = 1) -> int:
    """2 for each multiplication and addition of the products among the nodes, and 1 for each element of the others.

    On `rows` coefficients of a series linear operators take so many times that, products of two series and elementwise
    functions rows (rows + 1) / 2 times.
    """
    return sum(_flops(node, sizes, rows) for node in nodes if node.op == "call_function")


def _flops(node: fx.Node, sizes: Sizes, rows: int) -> int:
    if "shape" not in node.meta:
        return 0
    made = prod(sizes(node))
    packet = getattr(node.target, "overloadpacket", None)
    pairs = rows * (rows + 1) // 2
    if packet in _LINEAR:
        return 2 * made * sizes(_argument(node, _LINEAR[packet]))[0 if packet is aten.mm else -1] * rows
    if packet in _PRODUCTS:
        return 2 * made * sizes(_argument(node, _PRODUCTS[packet]))[-1] * pairs
    if packet in _CONVOLUTIONS:
        return 2 * made * prod(sizes(_argument(node, 1))[1:]) * rows
    if packet is aten.scaled_dot_product_attention:
        query, key = (sizes(_argument(node, at)) for at in (0, 1))
        return 2 * prod(query) * key[-2] * 2 * pairs
    return made * pairs


def _argument(node: fx.Node, place: int) -> fx.Node:
    argument = node.args[place]
    assert isinstance(argument, fx.Node)
    return argument
