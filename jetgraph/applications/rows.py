"""Whether rows of inputs are inputs by themselves: what the model makes of each does not change with the others.

Along the batch of a language model they are. Where positions come first, as `nn.MultiheadAttention` has them unless it
is told otherwise, or nodes of a graph do, rows read one another, and what is said of one alone is of another input.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from jetgraph.residual import ResidualGraph
from jetgraph.running.alone import by_element
from jetgraph.structure.regions import JoinStage
from jetgraph.tracing.calls import named_leaves


def are_apart(graph: ResidualGraph, inputs: Mapping[str, Any], along: Collection[str], rows: int) -> bool:
    """Each of some rows is an input by itself.

    As the graph's regions tell; where they do not, the model is run with some of the rows changed, half of them at a
    time, until any two have been told apart: so 2 log₂ n times.

    Parameters
    ----------
    graph
        The model.
    inputs
        Its inputs by name.
    along
        Names of those that have these rows as their first dimension.
    rows
        How many there are.
    """
    if rows < 2 or _told_apart(graph):
        return True
    with torch.no_grad():
        whole = graph(**inputs)
        if not isinstance(whole, Tensor) or not whole.dim() or whole.shape[0] != rows:
            return False
        for bit in range((rows - 1).bit_length()):
            for side in (0, 1):
                kept = [row for row in range(rows) if row >> bit & 1 == side]
                made = graph(**_changed(inputs, along, kept))
                if not _is_same(made[kept], whole[kept]):
                    return False
    return True


def _told_apart(graph: ResidualGraph) -> bool:
    """Each row goes through the stream's stages and the decoder by itself, as the graph tells."""
    regions = [graph.structure.decoder.nonlinear, graph.structure.decoder.affine]
    for stage in graph.stream.stages:
        if isinstance(stage, JoinStage):
            regions += [branch.region for branch in stage.join.branches]
            regions += [stage.join.skip] if stage.join.skip is not None else []
        else:
            regions.append(stage.region)
    return all(by_element(region) for region in regions if region.nodes)


def _changed(inputs: Mapping[str, Any], along: Collection[str], kept: list[int]) -> dict[str, Any]:
    """Inputs in which all rows but these are others: zeros, or where they are counted the first of these."""

    def changed(name: str, value: Any) -> Any:
        if name not in along:
            return value
        others = torch.zeros_like(value[:1]) if value.is_floating_point() else value[kept[:1]]
        made = others.expand_as(value).clone()
        made[kept] = value[kept]
        return made

    leaves = [changed(name, value) for name, value in named_leaves((), dict(inputs), ())]
    return pytree.tree_unflatten(leaves, pytree.tree_structure(dict(inputs)))


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Up to what rounding makes of another order of sums."""
    if not (one.is_floating_point() or one.is_complex()):
        return torch.equal(one, other)
    near = torch.finfo(one.dtype).eps ** 0.5
    # What a mask hides altogether may be no number.
    size = float(other[other.isfinite()].abs().max()) if bool(other.isfinite().any()) else 0.0
    return torch.allclose(one, other, rtol=near, atol=near * size, equal_nan=True)
