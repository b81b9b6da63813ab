"""What is read of several points of a stream at once → one more point, at which all of that lies side by side.

A head that puts features of several layers together is no function of one point of the stream, nor a sum of such. Up to
some place, though, everything that it has made is made of one point each; there it is put side by side,

    H = cat(f₁(h₁), f₂(h₄), h₇),    output = D(H),

a join that reads the last point it can, and the others by long skips or branches. What follows is a function of H.
Where the model itself adds all of that up, or puts it side by side, that is the join.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from jetgraph.jets.registry import nodes_in
from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.operators import aten, is_float_tensor, packet_of
from jetgraph.structure.pieces import Pieces, cleaned, copy_of, lying
from jetgraph.structure.readings import behind
from jetgraph.structure.regions import Join
from jetgraph.structure.streams import Track, main_track, reads_beside
from jetgraph.structure.sums import Sum, bare, flattened
from jetgraph.tracing.traced import Traced


@dataclass(frozen=True, eq=False)
class Gathering:
    """A program in which what is read of several points lies side by side."""

    traced: Traced
    total: Sum
    """Where it does."""
    points: tuple[fx.Node, ...]
    """Of the stream whose points these are."""

    def join(self, flow: Dataflow) -> Join:
        """That as a join of that stream."""
        return behind(flow, bare(self.total), self.points)


def gathered(flow: Dataflow, tracks: Sequence[Track]) -> Gathering | None:
    """The program with what the output reads of several points of a stream side by side; None where it reads one point
    of each stream alone, or what it reads has no shape in common.
    """
    main = main_track(flow, tracks)
    if main is None:
        return None
    # What a head makes after that may be a stream of its own, where no point had it all.
    others = [(track, tracks[main].joins[0].fork) for track in tracks if track is not tracks[main]]
    for track, end in [(tracks[main], flow.traced.output), *others]:
        if flow.depends(end, track.points[-1]) and reads_beside(flow, track, end):
            state = _place(flow, track.points, end)
            if state is not None:
                at, values = state
                total = _own(flow, values)
                return (
                    _written(flow, track.points, at, values)
                    if total is None
                    else Gathering(flow.traced, total, track.points)
                )
    return None


def _place(flow: Dataflow, points: Sequence[fx.Node], end: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]] | None:
    """The last place before a value at which all that is made of a stream is made of one point each, and that."""
    made = _points_read(flow, points, end)
    last = {node: max(flow.positions[user] for user in node.users if user in made) for node in made if node is not end}
    in_rows: tuple[fx.Node, tuple[fx.Node, ...]] | None = None
    for at in reversed(flow.nodes[flow.positions[points[-1]] : flow.positions[end]]):
        place = flow.positions[at]
        live = tuple(node for node, user in last.items() if flow.positions[node] <= place < user)
        if all(len(made[node]) == 1 and is_float_tensor(node) for node in live):
            several = len(frozenset().union(*(made[node] for node in live))) > 1
            lies = lying(flow, live)
            if lies is not None and not lies.in_rows:
                return (at, live) if several else in_rows
            in_rows = in_rows or ((at, live) if several and lies is not None else None)
    return in_rows


def _points_read(flow: Dataflow, points: Sequence[fx.Node], end: fx.Node) -> Mapping[fx.Node, frozenset[fx.Node]]:
    """By node on a way from a stream to a value, the points that it is made of."""
    by_node: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in flow.nodes[flow.positions[points[0]] : flow.positions[end] + 1]:
        if node in points:
            by_node[node] = frozenset({node})
        elif flow.depends(end, node) and flow.depends(node, points[0]):
            by_node[node] = frozenset().union(*(by_node.get(parent, ()) for parent in flow.parents[node]))
    return by_node


def _own(flow: Dataflow, values: Sequence[fx.Node]) -> Sum | None:
    """The sum or concatenation of the model itself that reads these values, which nothing else does."""
    users = {user for value in values for user in value.users if user in flow}
    node = max(users, key=flow.positions.__getitem__)
    if users == {node} and packet_of(node) is aten.cat:
        total = Sum(node, tuple(nodes_in(node.args[:1])), (node,), concat=True)
    elif node.target is aten.add.Tensor:
        total = flattened(flow, node, values)
    else:
        return None
    read = {operand for operand in total.operands if operand in flow}
    return total if read == set(values) and users <= {*total.adds} and len(total.operands) == len(values) else None


def _written(flow: Dataflow, points: Sequence[fx.Node], at: fx.Node, values: Sequence[fx.Node]) -> Gathering:
    graph, copied = copy_of(flow.traced.graph)
    lies = lying(flow, values)
    assert lies is not None
    pieces = Pieces(flow, graph, copied, lies)
    with pieces.behind(at):
        whole = pieces.cat([copied[node] for node in values])
        pieces.read(whole, values, at)
    total = Sum(whole, tuple(nodes_in(whole.args[:1])), (whole,), concat=True)
    return Gathering(replace(flow.traced, graph=cleaned(graph)), total, tuple(copied[point] for point in points))
