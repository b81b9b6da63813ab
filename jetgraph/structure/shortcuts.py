"""Norms on shortcuts, written out: with its statistics held, LN(h) is an affine image of h, and LN(h) + f(h) is a join.

    LN(h) + f(h)    → r ⊙ (h − mean h) ⊙ w + b + f(h),    r = 1/√(var h + ε);    and so LN(h) + f(LN(h), h)

One operator has no value to hold; of its parts r is one. So a norm reads as it does where the code spells it by mean
and rsqrt. It is written out where the sum adds something that a layer makes of what the norm reads, and not of what it
gives alone: elsewhere it is a map of the stream, or code of a branch, and stays whole. Values stay as they are up to
rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from jetgraph.jets.arithmetic import working_dtype
from jetgraph.jets.registry import bind, nodes_in
from jetgraph.jets.rules.norms import rms_eps
from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.images import RANK, affine_past, multiplied
from jetgraph.structure.operators import aten, mixes, packet_of
from jetgraph.structure.pieces import cleaned, copy_of
from jetgraph.structure.sums import summands_of_whole
from jetgraph.tracing.traced import Traced


def with_norms_written_out(flow: Dataflow) -> Traced | None:
    """The program with norms on shortcuts as what they are made of; None where there are none."""
    norms = dict.fromkeys(norm for node in flow.nodes for norm in _on_shortcuts(flow, node))
    if not norms:
        return None
    graph, copied = copy_of(flow.traced.graph)
    for norm in map(copied.__getitem__, norms):
        with graph.inserting_before(norm):
            written = _written_out(norm)
        norm.replace_all_uses_with(written)
    return replace(flow.traced, graph=cleaned(graph))


# Finding them

_CENTRED = {aten.layer_norm: True, aten.rms_norm: False, aten.group_norm: True, aten.instance_norm: True}
"""Norms that are one operator, and whether they take the mean off first."""


def _on_shortcuts(flow: Dataflow, total: fx.Node) -> Iterator[fx.Node]:
    """The norms of which a summand is a multiple, or a norm, beside one that a layer makes of what they read."""
    operands = summands_of_whole(flow, total)
    for operand in operands:
        others = [other for other in operands if other is not operand]
        for image, norms in _normed(flow, operand):
            if _is_beside_layer(flow, image, norms, others):
                yield from norms
                break


def _normed(flow: Dataflow, operand: fx.Node) -> Iterator[tuple[fx.Node, tuple[fx.Node, ...]]]:
    """The values of which an operand is a multiple, up to layout, behind norms, each with these; the nearest first on
    every way.
    """
    stack: list[tuple[fx.Node, tuple[fx.Node, ...]]] = [(operand, ())]
    seen = {operand}
    while stack:
        node, norms = stack.pop()
        if norms:
            yield from ((image, norms) for image, kind in affine_past(flow, node) if RANK[kind] <= RANK["scaled"])
        is_norm = packet_of(node) in _CENTRED and len(flow.carriers[node]) == 1
        above = flow.carriers[node] if is_norm else [parent for parent, _ in multiplied(flow, node)]
        stack += [(parent, (*norms, node) if is_norm else norms) for parent in above if parent not in seen]
        seen.update(above)


def _is_beside_layer(flow: Dataflow, image: fx.Node, norms: Sequence[fx.Node], others: Sequence[fx.Node]) -> bool:
    """Of what norms read a layer makes another summand, and of what they give it makes none, or reads both; no summand
    is an affine image of that: it would be the skip.
    """
    layers = [other for other in others if flow.depends(other, image)]
    return (
        all(_reads_past(flow, image, norm, other) for other in layers for norm in norms if flow.depends(other, norm))
        and any(any(map(mixes, flow.between(image, other))) for other in layers)
        and all(node is not image for other in others for node, _ in affine_past(flow, other))
    )


def _reads_past(flow: Dataflow, image: fx.Node, norm: fx.Node, other: fx.Node) -> bool:
    """What is made of a norm reads what that is of beside it, as an attention with queries of the one and keys of the
    other."""
    return any(flow.depends(node, image) for node in flow.region(norm, other).side)


# Writing them


@dataclass(frozen=True)
class _Over:
    """A value as a norm sees it: in the type in which it computes, with groups of channels apart."""

    value: fx.Node
    dims: list[int]
    """Over which it takes its means."""
    eps: float


def _written_out(norm: fx.Node) -> fx.Node:
    """r ⊙ (x − mean x) ⊙ w + b in the place of a norm of x."""
    bound = bind(norm.target, norm.args, norm.kwargs)  # type: ignore[arg-type]
    x = bound["input"]
    over = _over(norm, bound, _cast(x, working_dtype(x.meta["dtype"])))
    y = over.value
    if _CENTRED[packet_of(norm)]:
        mean = _call(aten.mean.dim, y, over.dims, True, shape=_pooled(y, over.dims))
        y = _call(aten.add.Tensor, y, _call(aten.neg.default, mean))
    square = _call(aten.mul.Tensor, y, y)
    variance = _call(aten.mean.dim, square, over.dims, True, shape=_pooled(y, over.dims))
    y = _call(aten.mul.Tensor, y, _call(aten.rsqrt.default, _call(aten.add.Tensor, variance, over.eps)))
    if y.meta["shape"] != x.meta["shape"]:
        y = _call(aten.flatten.using_ints, y, 1, 2, shape=x.meta["shape"])
    ahead = 0 if "normalized_shape" in bound else len(x.meta["shape"]) - 2
    for name, op in (("weight", aten.mul.Tensor), ("bias", aten.add.Tensor)):
        given = bound.get(name)
        if isinstance(given, fx.Node):
            y = _call(op, y, _spread(_cast(given, y.meta["dtype"]), ahead))
    return _cast(y, norm.meta["dtype"])


def _over(norm: fx.Node, bound: dict[str, Any], x: fx.Node) -> _Over:
    shape = x.meta["shape"]
    given: Any = bound.get("eps")
    if "normalized_shape" in bound:
        eps = rms_eps(given, x.meta["dtype"]) if packet_of(norm) is aten.rms_norm else given
        return _Over(x, list(range(-len(bound["normalized_shape"]), 0)), 1e-5 if eps is None else eps)
    if packet_of(norm) is aten.instance_norm:
        return _Over(x, list(range(2, len(shape))), given)
    groups = bound["num_groups"]
    apart = (groups, shape[1] // groups)
    value = _call(aten.unflatten.int, x, 1, list(apart), shape=(shape[0], *apart, *shape[2:]))
    return _Over(value, list(range(2, len(shape) + 1)), 1e-5 if given is None else given)


def _pooled(node: fx.Node, dims: list[int]) -> tuple[int | str, ...]:
    shape = node.meta["shape"]
    ones = {dim % len(shape) for dim in dims}
    return tuple(1 if dim in ones else size for dim, size in enumerate(shape))


def _spread(given: fx.Node, ahead: int) -> fx.Node:
    """A number for each channel, with dimensions behind it for what the channels have."""
    for _ in range(ahead):
        given = _call(aten.unsqueeze.default, given, -1, shape=(*given.meta["shape"], 1))
    return given


def _cast(node: fx.Node, dtype: torch.dtype) -> fx.Node:
    if node.meta["dtype"] is dtype:
        return node
    cast = node.graph.call_function(aten._to_copy.default, (node,), {"dtype": dtype})
    cast.meta = {**node.meta, "dtype": dtype}
    return cast


def _call(op: Any, *args: Any, shape: tuple[int | str, ...] | None = None) -> fx.Node:
    """A new node with the metadata of its first argument, but for the shape."""
    node = next(nodes_in(args)).graph.call_function(op, args)
    node.meta = dict(args[0].meta)
    if shape is not None:
        node.meta["shape"] = shape
    return node
