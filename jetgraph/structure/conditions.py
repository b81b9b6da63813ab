"""Forks that are no stream: conditions that each layer of another stream is given, by its branches or beside it."""

from __future__ import annotations

from torch import fx

from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.images import factored, same_size
from jetgraph.structure.lines import Found, gate
from jetgraph.structure.operators import aten, mixes, packet_of
from jetgraph.structure.regions import Join


def is_given(flow: Dataflow, join: Join, by_node: Found) -> bool:
    """What a join adds to an image of its fork is made of another stream, which starts without that and reads it in
    branches alone: the fork is no stream, but a condition that each layer of the other one is given.
    """
    if join.kind == "concat":
        return all(_is_scaled_beside(flow, branch.node, join.fork) for branch in join.branches)
    for branch in join.branches:
        # What the fork scales, as in h ⊙ σ(g(c)) + P c, is given it as well; not so the values that queries weigh which
        # are added themselves, be it to a part of the places.
        learned = join.kind == "projection" and join.skip is not None and any(map(mixes, join.skip.nodes))
        scaled = [node for node, _ in factored(flow, branch.node)] if learned or join.kind == "gated" else []
        # A number for many places, such as the weight of an edge, is no stream.
        scaled = [node for node in scaled if same_size(node, branch.node)]
        starts = (_start(flow, node, join.fork, by_node) for node in (branch.node, *scaled))
        start = next((node for node in starts if node is not None), None)
        if start is None or flow.depends(start, join.fork) or flow.depends(join.fork, start):
            return False
    return True


def is_given_without_skip(flow: Dataflow, join: Join, by_node: Found) -> bool:
    """What a join without a skip forks from is a condition: an operand is a stream that starts without it and is given
    it by layers, the last of which is this one, as in h ⊙ s(c) + f(c), or starts with it and other values side by side;
    and f(c) has no joins of its own.
    """
    streams = [branch.node for branch in join.branches if _starts_apart(flow, branch.node, join.fork, by_node)]
    others = [branch.region for branch in join.branches if branch.node not in streams]
    return bool(streams) and all(by_node.keys().isdisjoint(region.nodes) for region in others)


def _starts_apart(flow: Dataflow, node: fx.Node, of: fx.Node, by_node: Found) -> bool:
    """A value, or what it is a multiple of, is of a stream that starts with more than is made of another value, which
    no join has made.
    """
    values = [node, *(one for one, _ in factored(flow, node))]
    streams = [one for one in values if flow.depends(one, of) or gate(flow, one, by_node) is not None]
    starts = (_start(flow, one, of, by_node) for one in streams)
    found = [start for start in starts if start is not None and not flow.depends(of, start)]
    first = not any(flow.depends(of, end) for end in by_node)
    return any(not flow.depends(start, of) or (first and _is_beside_others(flow, start, of)) for start in found)


def _is_beside_others(flow: Dataflow, node: fx.Node, of: fx.Node) -> bool:
    """On the way from one value to another, what is made of it is put beside something else."""
    joined = (one for one in flow.between(of, node) if packet_of(one) is aten.cat)
    return any(not flow.depends(parent, of) for one in joined for parent in flow.parents[one])


def _is_scaled_beside(flow: Dataflow, node: fx.Node, fork: fx.Node) -> bool:
    """What is put beside a fork is another value, of which that says no more than a factor for each number: as a
    recurrent unit reads cat(σ(g(h, x)) ⊙ h, x), where x is what its step is given, and h its state. A value that the
    fork is made of is an earlier point, as the level beside what comes back from below it.
    """
    return any(
        not (flow.depends(value, fork) or flow.depends(fork, value))
        and same_size(value, node)
        and not any(map(mixes, flow.between(value, node, held)))
        for value, held in factored(flow, node)
    )


def _start(flow: Dataflow, node: fx.Node, of: fx.Node, by_node: Found) -> fx.Node | None:
    """Where the stream of a value starts, as far as it can be followed by what another value alone does not make: to a
    value that does not depend on that, or to a fork that does; None where the value is made of that alone.
    """
    if not flow.depends(node, of):
        return node
    end = gate(flow, node, by_node, of)
    if end is None or end.node is of:
        return None
    while flow.depends(end.fork, of):
        above = [
            other
            for other in by_node
            if flow.depends(end.fork, other) and other is not of and not flow.depends(of, other)
        ]
        if not above:
            return end.fork
        end = by_node[max(above, key=flow.positions.__getitem__)]
    return end.fork
