"""Putting the operators of one graph into another one, as the exporter notes them: with a value of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx


def call(op: Any, args: tuple[Any, ...], before: fx.Node) -> fx.Node:
    """An operator before a node, whose place in the model's code it has, with the value that it gives."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(op, args)
    node.meta = {**before.meta, "val": op(*fx.map_arg(args, lambda each: each.meta["val"]))}
    return node


def copy_into(
    inner: fx.Graph,
    copies: dict[fx.Node, Any],
    before: fx.Node,
    copied: Callable[[fx.Node, fx.Node], fx.Node] = lambda original, copy: copy,
) -> Any:
    """The operators of a graph before a node of another one.

    Parameters
    ----------
    copies
        What its inputs are there. It is filled with the copies of all other nodes.
    copied
        Given a node and its copy: what stands for the node.

    Returns
    -------
    Any
        What the graph returns, in copies.
    """
    for node in inner.nodes:
        if node.op not in ("placeholder", "output"):
            with before.graph.inserting_before(before):
                copy = before.graph.node_copy(node, copies.__getitem__)
            copies[node] = copied(node, copy)
    return fx.map_arg(inner.output_node().args[0], copies.__getitem__)


def replace(node: fx.Node, result: Any) -> None:
    """Let what reads a node read its result or, where that is several, each of them."""
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
    else:
        for user in list(node.users):
            user.replace_all_uses_with(result[user.args[1]])
            node.graph.erase_node(user)
    node.graph.erase_node(node)
