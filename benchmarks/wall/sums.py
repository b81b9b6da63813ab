"""Residual sums of a model, looked for without jetgraph: what shows that a model without joins has none.

In an exported graph, a sum or concatenation is residual where one operand is a value x, a multiple of x by something
fixed, or x laid out in another way, and another operand is made of x by an operator that mixes features or positions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import reduce
from operator import or_

import torch
from torch import Tensor, fx, nn

CATS = ("cat.", "concat.")
SUMS = ("add.", "add_.", "sub.", "lerp.", "addcmul.")
PLAIN = (
    *("view", "reshape", "permute", "transpose", "expand", "squeeze", "flatten", "contiguous", "clone", "to.", "slice"),
    *("mul", "div", "neg", "batch_norm", "dropout", "getitem", "pad", "roll", "unbind", "chunk", "split"),
)
"""What leaves a value what it is, up to layout and factors, where it reads no other value of the flow."""
MIXING = ("linear", "mm.", "matmul", "einsum", "conv", "attention", "lstm", "gru", "pool", "fft", "bilinear")


def exported_sums(model: nn.Module, given: Mapping[str, Tensor]) -> list[fx.Node]:
    """All residual sums in the graph of a model that `torch.export` alone has made."""
    with torch.no_grad():
        program = torch.export.export(model, (), dict(given), strict=False)
    return residual_sums(program.graph, program.graph_signature.user_inputs)


def residual_sums(graph: fx.Graph, inputs: Iterable[object], *, concatenations: bool = True) -> list[fx.Node]:
    """All residual sums in a graph with inputs of these names, and concatenations if these are wanted too."""
    names, kinds = set(inputs), (*SUMS, *CATS) if concatenations else SUMS
    above: dict[fx.Node, int] = {}
    """By node that depends on the inputs, what it depends on, itself included, as a bit set."""
    mixing: dict[fx.Node, int] = {}
    """And the nodes whose values reach it through something that mixes."""
    bits: dict[fx.Node, int] = {}
    for place, node in enumerate(graph.nodes):
        reads = [read for read in node.all_input_nodes if read in above]
        if node.op != "output" and (reads or node.name in names):
            bits[node] = 1 << place
            before = reduce(or_, (above[read] for read in reads), 0)
            above[node] = before | bits[node]
            mixing[node] = before if _says(node, MIXING) else reduce(or_, (mixing[read] for read in reads), 0)
    return [node for node in above if _says(node, kinds) and _is_residual(node, bits, mixing)]


def _is_residual(node: fx.Node, bits: Mapping[fx.Node, int], mixing: Mapping[fx.Node, int]) -> bool:
    operands = [read for read in node.all_input_nodes if read in bits]
    whole = operands if _says(node, CATS) else [read for read in operands if _size(read) == _size(node)]
    return any(
        bits[value] & mixing[other]
        for skip in whole
        for value in _history(skip, bits)
        for other in operands
        if other is not skip
    )


def _history(node: fx.Node, flow: Collection[fx.Node]) -> Iterator[fx.Node]:
    """A value and those of which it is a plain image."""
    yield node
    reads = [read for read in node.all_input_nodes if read in flow]
    if len(reads) == 1 and _says(node, PLAIN):
        yield from _history(reads[0], flow)


def _says(node: fx.Node, names: tuple[str, ...]) -> bool:
    target = getattr(node.target, "__name__", str(node.target))
    return node.op == "call_function" and any(name in target for name in names)


def _size(node: fx.Node) -> object:
    """The number of elements, as far as it is known; a mask that is added to scores has fewer than these."""
    value = node.meta.get("val")
    shape = node.meta.get("shape", ()) if value is None else value.shape
    return sorted(map(str, shape))
