"""Values that enter a branch's attention by one way each: by queries, by keys, by values, or past it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from jetgraph.jets.interpreter import evaluate
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
    found = find_ways(branch.region)
    assert found is not None
    return found


def opened(entering: Mapping[Way, Entering]) -> Opened:
    """The values at a branch's end, or where its parts go different ways, of what enters by each way."""
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
        values[node] = evaluate((node,), local, first.order)[node]
    return {node: past.values[node] if node in ways.before else values[node] for node in first.keep}


def through(pieces: Pieces, branch: Branch, found: Opened, order: int = 0) -> Tensor | Series:
    """What a branch, or a part of one, makes of what `opened` gave."""
    if branch.part is None:
        return found[branch.region.exit]
    return pieces.part(branch.part, found, order)
