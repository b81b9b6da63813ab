"""Values that enter a branch's attention by one way each: by queries, by keys, by values, or past it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from jetgraph.jets.interpreter import evaluate
from jetgraph.jets.registry import bind
from jetgraph.jets.rules.attention import attention
from jetgraph.jets.series import Series
from jetgraph.running.pieces import Opened, Pieces
from jetgraph.structure.regions import Branch
from jetgraph.structure.ways import Way, Ways, find_ways


class Entering:
    """What enters a branch, evaluated up to its attention, once for all ways by which it may go on.

    Parameters
    ----------
    pieces
        The pass that it is run in.
    branch
        With attention, whose ways can be told apart; or one part of a branch that was cut, standing for all of them.
    value
        A tensor, or a series of `order`.
    """

    def __init__(self, pieces: Pieces, branch: Branch, value: Any, order: int = 0) -> None:
        cut = None if branch.part is None else branch.part.cut
        region = branch.region if cut is None else cut.region
        self.nodes: Sequence[fx.Node] = region.nodes if cut is None else cut.before
        self.keep: Collection[fx.Node] = {region.exit} if cut is None else {cut.node, *cut.held}
        self.side = pieces.side(region)
        self.order = order
        self.ways = _ways(branch)
        first = [node for node in self.nodes if node in self.ways.before]
        self.values = evaluate(first, {**self.side, region.entry: value}, order)


def _ways(branch: Branch) -> Ways:
    ways = find_ways(branch.region)
    assert ways is not None
    return ways


def opened(entering: Mapping[Way, Entering], key: int | None = None) -> Opened:
    """The values at a branch's end, or where its parts go different ways, of what enters by each way.

    With `key`, what enters by queries or by keys goes by the scores of that key alone: of series of order 1, the slopes
    of all other scores are 0.
    """
    first = next(iter(entering.values()))
    ways, values = first.ways, dict(first.side)
    past = entering.get("past", first)
    for node in first.nodes:
        if node in ways.before:
            continue
        reads = ways.crossings[node]
        local = {read: values[read] for read in node.all_input_nodes if read in values}
        local |= {read: past.values[read] for read in node.all_input_nodes if read not in local and read not in reads}
        local |= {read: entering[way].values[read] for read, way in reads.items()}
        if key is None or node not in ways.scores:
            values[node] = evaluate((node,), local, first.order)[node]
        else:
            values[node] = _by_one_key(node, ways.scores[node], local, key)
    return {node: past.values[node] if node in ways.before else values[node] for node in first.keep}


def _by_one_key(node: fx.Node, dim: int | None, local: Mapping[fx.Node, Any], key: int) -> Any:
    """Scores, or fused attention, of which those of one key have a slope."""
    if dim is not None:
        value = evaluate((node,), dict(local), 1)[node]
        return _alone(value, key, dim) if isinstance(value, Series) else value
    args = map_arg(node.args, lambda read: local[read])
    kwargs = map_arg(node.kwargs, lambda read: local[read])
    bound = dict(bind(node.target, args, kwargs))  # type: ignore[arg-type]
    query, keys = bound["query"], bound["key"]
    if bound.get("scale") is None:
        bound["scale"] = query.shape[-1] ** -0.5
    # q kᵀ + t q' k'ᵀ is the product of [q, t q'] and [k, k'], k' being 0 but for one key.
    bound["query"] = _beside(query) if isinstance(query, Series) else torch.cat([query, query], dim=-1)
    if isinstance(keys, Series):
        bound["key"] = _beside(_alone(keys, key, -2))
    else:
        bound["key"] = torch.cat([keys, keys * _chosen(keys, key, -2)], dim=-1)
    return attention(1, **bound)


def _beside(value: Series) -> Series:
    """[x, t x'] of x + t x'."""
    x, slope = value.coefficient(0), value.coefficient(1)
    none = torch.zeros_like(x)
    return Series.of_rows([torch.cat([x, none], dim=-1), torch.cat([none, slope], dim=-1)], 1)


def _alone(value: Series, place: int, dim: int) -> Series:
    """A series of order 1 whose slope is 0 but at one place of a dimension."""
    slope = value.coefficient(1)
    return Series.of_rows([value.coefficient(0), slope * _chosen(slope, place, dim)], 1)


def _chosen(like: Tensor, place: int, dim: int) -> Tensor:
    """1 at one place of a dimension, counted from the end, and else 0; 0 where there is no such place."""
    places = torch.arange(like.shape[dim], device=like.device) == place
    return places.to(like.dtype).reshape(-1, *[1] * (-dim - 1))


def through(pieces: Pieces, branch: Branch, inside: Opened, order: int = 0) -> Tensor | Series:
    """What a branch, or a part of one, makes of what `opened` gave."""
    if branch.part is None:
        return inside[branch.region.exit]
    return pieces.part(branch.part, inside, order)
