"""Sums and concatenations: trees of adds with their operands, and joins over them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import fx

from jetgraph.algebra.outline import SkipKind
from jetgraph.jets.registry import nodes_in, readers
from jetgraph.structure.contractions import SUMS
from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.lines import branch_over, without
from jetgraph.structure.operators import aten, is_float_tensor, is_mixing, multiple_of, packet_of
from jetgraph.structure.regions import Join, Region


@dataclass(frozen=True, eq=False)
class Sum:
    """A sum (a tree of adds) or a concatenation, which may be a join."""

    node: fx.Node
    operands: tuple[fx.Node, ...]
    """In order; for a sum, the leaves of the tree."""
    adds: tuple[fx.Node, ...]
    """The nodes that it is made of, in execution order."""
    concat: bool = False


def is_sum(node: fx.Node) -> bool:
    """The node adds two values as they are."""
    return bool(
        len(node.args) >= 2
        and node.kwargs.get("alpha", 1) == 1
        and all(isinstance(arg, fx.Node) and is_float_tensor(arg) for arg in node.args[:2])
    )


def is_whole_sum(node: fx.Node) -> bool:
    """An add that is no part of a larger sum."""
    users = readers(node)
    return node.target is aten.add.Tensor and not (len(users) == 1 and users[0].target is aten.add.Tensor)


def summands_of_whole(flow: Dataflow, total: fx.Node) -> list[fx.Node]:
    """The operands of a sum that is no part of another sum; nothing of another node."""
    if total not in flow or not is_float_tensor(total) or not is_whole_sum(total):
        return []
    return [operand for operand in flattened(flow, total, ()).operands if operand in flow]


def flattened(flow: Dataflow, root: fx.Node, closed: Collection[fx.Node]) -> Sum:
    """The tree of adds that ends at a node; an add that something else reads too, that is closed, or that is a layer's
    product with its bias is a leaf, and so is the node itself where it is no sum of values, as what adds a number to
    one.
    """
    leaves: list[fx.Node] = []
    adds: list[fx.Node] = []
    stack = [root]
    while stack:
        node = stack.pop()
        inner = node is root or (node not in closed and len(readers(node)) == 1)
        added = inner and packet_of(node) is aten.add and is_sum(node) and node in flow
        if added and (node is root or not _is_biased(flow, node)):
            adds.append(node)
            stack += reversed(list(nodes_in(node.args[:2])))
        else:
            leaves.append(node)
    return Sum(root, tuple(leaves), flow.ordered(adds))


def _is_biased(flow: Dataflow, add: fx.Node) -> bool:
    """An add of a learned product and of a constant smaller than it, x W + b, is one layer, as linear(x, W, b) is."""
    parts = list(nodes_in(add.args[:2]))
    made = [part for part in parts if part in flow]
    if len(parts) != 2 or len(made) != 1 or len(readers(made[0])) != 1:
        return False
    if any(part not in flow and part.meta.get("shape") == add.meta["shape"] for part in parts):
        return False
    product = multiple_of(made[0])
    while packet_of(product) in SUMS:  # such as over heads
        product = multiple_of(next(nodes_in(product.args)))
    if packet_of(product) is aten.add and is_sum(product):
        return _is_biased(flow, product)
    return is_mixing(product) and sum(factor in flow for factor in product.all_input_nodes) == 1


def join_over(
    total: Sum,
    kind: SkipKind,
    skip: Region | None,
    fork: fx.Node,
    branches: Sequence[Region],
    gates: tuple[Region, ...] = (),
) -> Join:
    """The join over a sum, of this skip and these branches."""
    return Join(
        name="",
        alias="",
        kind=kind,
        depth=0,
        fork=fork,
        node=total.node,
        skip=skip,
        branches=tuple(map(branch_over, branches)),
        injections=without(total.operands, skip and skip.exit, [region.exit for region in branches]),
        operands=total.operands,
        adds=total.adds,
        gates=gates,
    )


def bare(total: Sum) -> Join:
    """The join over a sum or concatenation, none of whose operands is a skip yet."""
    return join_over(total, "concat" if total.concat else "none", None, total.operands[0], [])


def gated_over(
    flow: Dataflow,
    total: Sum,
    fork: fx.Node,
    skip: fx.Node,
    held: tuple[fx.Node, ...],
    branches: Iterable[Region],
) -> Join:
    """The join whose skip is affine in the fork once these factors are held."""
    gates = tuple(flow.region(fork, factor) for factor in held)
    return join_over(total, "gated", flow.region(fork, skip, held), fork, list(branches), gates)


KEEPING: tuple[SkipKind, ...] = ("identity", "scaled")
"""Skips after which a stream is what it was, up to a factor."""


def flowing_operands(flow: Dataflow, total: Sum) -> list[fx.Node]:
    """The operands of a sum that are made of the input, each once."""
    return list(dict.fromkeys(operand for operand in total.operands if operand in flow))
