"""Values that only say how others are mixed: scores on their way to a softmax, and what gates are made of."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import fx

from jetgraph.jets.registry import readers
from jetgraph.structure.operators import IDENTITY, SCALES, SOFTMAX, aten, packet_of

GATES = {aten.sigmoid, aten.hardsigmoid}


def only_steers(node: fx.Node, by: Collection[Any] = frozenset(SOFTMAX)) -> bool:
    """Every way from a node, through layout, factors, masks, activations and further sums, ends at one of these, or at
    a softmax that is written out, e / Σ e, be it over the neighbours of a node.
    """
    seen, stack = {node}, [node]
    while stack:
        for user in readers(stack.pop()):
            packet = packet_of(user)
            if packet in by or user in seen or _is_weight(user):
                continue
            if packet not in IDENTITY | SCALES | _MASKING:
                return False
            seen.add(user)
            stack.append(user)
    return True


def _is_weight(node: fx.Node) -> bool:
    """The exponential that a softmax which is written out divides by a sum of it."""
    return packet_of(node) is aten.exp and any(
        packet_of(user) is aten.div and user.args[0] is node for user in readers(node)
    )


def is_weighed_up(node: fx.Node) -> bool:
    """All that reads a value is one layer whose outputs are gates: how stream and branch are mixed is made of both,
    side by side, or of their difference.
    """
    stack, layers = [node], set[fx.Node]()
    while stack:
        for user in readers(stack.pop()):
            if packet_of(user) in _LAYERS:
                layers.add(user)
            elif packet_of(user) in IDENTITY | {aten.cat}:
                stack.append(user)
            else:
                return False
    return bool(layers) and all(only_steers(layer, GATES) for layer in layers)


_LAYERS = {aten.linear, aten.addmm, aten.mm}


_MASKING = {
    aten.add, aten.masked_fill, aten.where, aten.clamp, aten.slice, aten.leaky_relu, aten.leaky_relu_, aten.tanh,
    aten.amax, aten.scatter_reduce, aten.scatter_reduce_, aten.index_select, aten.index,
}  # fmt: skip
"""What scores pass on their way to a softmax: masks, activations, and the largest of them, which is taken away."""
