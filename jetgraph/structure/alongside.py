"""Streams that read each other → one stream of all of them, side by side.

In a reversible network y₁ = x₁ + f(x₂), y₂ = x₂ + g(y₁), and in hyper-connections that are kept as a list of tensors,
no tensor carries the whole state from layer to layer: several do. They are written as pieces of one,

    H = cat(x₁, x₂),    H' = H + cat(f(H[…]), 0),    H'' = H' + cat(0, g(H'[…])),

a plain stream, on which joins, counts, terms and lenses are what they are elsewhere. Values stay as they are. Which
joins are of such streams is told in `jetgraph.structure.groups`; how they go from state to state, in
`jetgraph.structure.walks`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from operator import or_

from torch import fx

from jetgraph.export.reach import above
from jetgraph.jets.registry import nodes_in
from jetgraph.structure.dataflow import Dataflow, dataflow
from jetgraph.structure.groups import together
from jetgraph.structure.joins import find_joins
from jetgraph.structure.lines import gates
from jetgraph.structure.operators import aten, mixes, multiple_of, packet_of
from jetgraph.structure.pieces import Lying, Pieces, cleaned, copy_of, lying
from jetgraph.structure.regions import Join
from jetgraph.structure.steps import Next, Step, way_from
from jetgraph.structure.walks import Walk, may_be_point, walks_over
from jetgraph.tracing.traced import Traced


def side_by_side(flow: Dataflow, joins: Sequence[Join]) -> Traced | None:
    """The program with streams that read each other as one; None where there are none, or none that fit."""
    group = together(flow, joins)
    if not group:
        return None
    walks = _walks(flow, group)
    grown = _concatenations(join for join in group if join.concatenates)
    if grown and not _hold(flow, group, walks):
        summed = dataflow(_as_sums(flow, grown))
        written = side_by_side(summed, find_joins(summed))
        if written is not None:
            return written
    if _left_out(group, walks) or len(walks) > 1:
        later = dataflow(_in_rounds(flow, group))
        again = together(later, find_joins(later))
        others = _walks(later, again) if len(again) == len(group) else []
        if others and _loss(again, others) < _loss(group, walks):
            flow, walks = later, others
    if not walks:
        return None
    graph, copied = copy_of(flow.traced.graph)
    for walk, lies in walks:
        _Writer(flow, graph, copied, lies).write(walk)
    return replace(flow.traced, graph=cleaned(graph))


# What grows


def _concatenations(joins: Iterable[Join]) -> list[fx.Node]:
    """The concatenations that these joins are, and those from which they go on, the first ones first."""
    found = dict.fromkeys(node for join in joins for node in (join.fork, join.node) if packet_of(node) is aten.cat)
    return list(found)


def _hold(flow: Dataflow, group: Iterable[Join], walks: Sequence[tuple[Walk, Lying]]) -> bool:
    """The joins of a group make values of one walk's states, but for concatenations that layers of it read, or what
    comes after it does: pieces of a state lie side by side there, and nothing grows.
    """
    if len(walks) != 1:
        return False
    ((walk, _),) = walks
    states = [walk.start, *(step.state for step in walk.steps)]
    read = set[fx.Node]()
    for state, step in zip(states, walk.steps, strict=False):
        read.update(way_from(flow, state, [branch for each in step.nexts for branch in each.branches]))
    last = walk.steps[-1].at
    return all(
        join.node in walk.values or (join.concatenates and (join.node in read or flow.depends(join.node, last)))
        for join in group
    )


def _as_sums(flow: Dataflow, nodes: Sequence[fx.Node]) -> Traced:
    """The program with concatenations as sums of their operands, each between zeros: so a stream that grows goes on as
    others do.
    """
    graph, copied = copy_of(flow.traced.graph)
    for node in map(copied.__getitem__, nodes):
        operands = list(nodes_in(node.args[:1]))
        dim = node.args[1] if len(node.args) > 1 else 0
        pieces = Pieces(flow, graph, copied, Lying(dim % len(node.meta["shape"])))  # type: ignore[operator]
        with graph.inserting_after(node):
            last = graph.call_function(aten.alias.default, (node,))
        with graph.inserting_before(last):
            zeros = [pieces.call(aten.zeros_like.default, operand) for operand in operands]
            laid = [
                [each if other is place else zero for other, zero in enumerate(zeros)]
                for place, each in enumerate(operands)
            ]
            whole = pieces.sum([pieces.cat(each) for each in laid])
        whole.meta = dict(node.meta)
        node.replace_all_uses_with(whole)
    return replace(flow.traced, graph=cleaned(graph))


# What waits


def _in_rounds(flow: Dataflow, group: Iterable[Join]) -> Traced:
    """The program with its sums in rounds, of which each is made of the one before, after where all streams start; and
    with nothing before a sum that neither it nor an earlier one is made of. Where the code takes one stream through its
    norm, or through a whole layer, before it adds to the other, no place has both sums otherwise.
    """
    rounds = dict.fromkeys(flow.ordered(_starts(flow, group)), 0)
    for end in _waited_for(flow, group):
        if end in rounds:
            continue
        rounds[end] = 1 + max((number for before, number in rounds.items() if flow.depends(end, before)), default=0)
    order = dict.fromkeys(node for node in flow.nodes if node.op == "placeholder")
    for end in sorted(rounds, key=rounds.__getitem__):
        order.update(dict.fromkeys(flow.ordered(above([end], lambda read: read not in order))))
    order.update(dict.fromkeys(flow.nodes))
    graph, copied = copy_of(flow.traced.graph)
    output = next(iter(reversed(graph.nodes)))
    for node in order:
        output.prepend(copied[node])
    return replace(flow.traced, graph=graph)


def _waited_for(flow: Dataflow, group: Iterable[Join]) -> tuple[fx.Node, ...]:
    """The sums of a group, and those in which it mixes what several of them have made; and what layers make of such for
    a stream to start with.
    """
    ends = {join.node: join for join in group}
    last = max(map(flow.positions.__getitem__, ends))
    inner = {node for join in ends.values() for region in join.inside for node in region.nodes}
    sums = (node for node in flow.nodes[:last] if node in flow and node not in inner and may_be_point(node))
    mixed = {node for node in sums if node not in ends and len(gates(flow, node, ends)) > 1}
    known = {*ends, *mixed}
    begun = {join.fork for join in ends.values() if _is_begun(flow, join.fork, known)}
    return flow.ordered({*known, *begun})


def _is_begun(flow: Dataflow, fork: fx.Node, ends: Collection[fx.Node]) -> bool:
    """Layers lie between a fork and the sums that it is made of."""
    way = above([fork], lambda read: read in flow and read not in ends)
    return fork not in ends and any(map(mixes, way))


# How they go on


def _walks(flow: Dataflow, group: Sequence[Join]) -> list[tuple[Walk, Lying]]:
    """The walks over the joins of a group whose values fit side by side, and how they lie; one without what the streams
    are given from outside, if that makes more of the joins values of states, or one walk of several.
    """

    def fitting(outside: Collection[fx.Node]) -> list[tuple[Walk, Lying]]:
        walks = walks_over(flow, group, outside)
        return [(walk, lies) for walk in walks if (lies := lying(flow, walk.values)) is not None]

    found = fitting(())
    if (_left_out(group, found) or len(found) > 1) and (outside := _conditions(flow, group)):
        others = fitting(outside)
        found = others if len(others) == 1 and _loss(group, others) < _loss(group, found) else found
    if not found:
        # All of the joins, or none: what is shared in a pyramid of levels is how they come back.
        others = fitting(_shared(group))
        found = [] if _left_out(group, others) else others
    return found


def _shared(group: Iterable[Join]) -> set[fx.Node]:
    """What lies in branches, of which others read some too, such as where an attention looks that is used again."""
    known = {node for join in group for node in (join.fork, join.node)}
    return {node for join in group for region in join.inside for node in region.nodes} - known


def _left_out(group: Iterable[Join], walks: Iterable[tuple[Walk, Lying]]) -> int:
    """How many joins of a group make no value of a state, or one with which a walk only starts."""
    made = {node for walk, _ in walks for step in walk.steps for node in step.state if node not in walk.start}
    return sum(join.node not in made for join in group)


def _loss(group: Iterable[Join], walks: Sequence[tuple[Walk, Lying]]) -> tuple[int, int]:
    """How many joins make no value of a state, and over how many walks the others are spread: where one ends and
    another begins, no stream goes on.
    """
    return _left_out(group, walks), len(walks)


def _conditions(flow: Dataflow, group: Iterable[Join]) -> set[fx.Node]:
    """What the streams of a group are given from outside, as scales and gates of a time are: neither made of a value
    with which one starts nor what such a value is made of.
    """
    starts = _starts(flow, group)
    mask = flow.mask(starts)
    inside = reduce(or_, (flow.above[start] for start in starts), 0)
    return {node for node in flow.above if not flow.touches(node, mask) and not inside >> flow.positions[node] & 1}


def _starts(flow: Dataflow, group: Iterable[Join]) -> set[fx.Node]:
    """The values from which the streams of a group start."""
    group = tuple(group)
    return {join.fork for join in group if not any(flow.depends(join.fork, other.node) for other in group)}


def _is_zero(node: fx.Node) -> bool:
    """A state that starts at zero, or a multiple of it."""
    return packet_of(multiple_of(node)) in (aten.zeros, aten.zeros_like, aten.new_zeros)


# Writing them


class _Writer(Pieces):
    """Writes the states of a walk into a copy of the graph, and lets what comes after each read its pieces."""

    def write(self, walk: Walk) -> None:
        """The start, and every state after it as a sum over the one before."""
        nodes = walk.start
        with self.behind(walk.at):
            whole = self.now[nodes[0]] if len(nodes) == 1 else self.cat([self.now[node] for node in nodes])
            self.read(whole, nodes, walk.at)
        for step in walk.steps:
            with self.behind(step.at):
                new = [each.node for each in step.nexts if not (each.skip or each.injections)]
                if new:
                    whole = self.cat([whole, *map(self.now.__getitem__, new)])
                else:
                    whole = self.sum([self._skip(step, nodes, whole), *self._added(step, nodes)])
                nodes = step.state
                self.read(whole, nodes, step.at)

    def _skip(self, step: Step, nodes: Sequence[fx.Node], whole: fx.Node) -> fx.Node:
        """The affine image of the state before, which is all of it where every value only has something added."""
        if [each.skip for each in step.nexts] == [(node,) for node in nodes]:
            return whole
        return self.cat([self._total([self.now[node] for node in each.skip], each) for each in step.nexts])

    def _added(self, step: Step, nodes: Sequence[fx.Node]) -> Iterator[fx.Node]:
        """What each branch adds to the values, those that end in one mixing operator being one; and what comes from
        outside.
        """
        added: dict[int, list[list[fx.Node]]] = {}
        for place, each in enumerate(step.nexts):
            for node in (*each.branches, *(node for node in each.injections if not _is_zero(node))):
                inner = way_from(self.flow, nodes, [node]) if node in each.branches else ()
                last = max((self.flow.positions[one] for one in inner if mixes(one)), default=-1)
                added.setdefault(last, [[] for _ in step.nexts])[place].append(self._spread(node, each))
        for several in added.values():
            whole = self.cat([self._total(summands, each) for summands, each in zip(several, step.nexts, strict=True)])
            whole.meta["module_path"] = next(summands[0].meta["module_path"] for summands in several if summands)
            yield whole

    def _full(self, each: Next) -> fx.Node:
        """An operand of a value that has its shape."""
        operands = (*each.skip, *each.injections)
        return next(self.now[node] for node in operands if node.meta["shape"] == each.node.meta["shape"])

    def _spread(self, node: fx.Node, each: Next) -> fx.Node:
        if node.meta["shape"] == each.node.meta["shape"]:
            return self.now[node]
        return self.call(aten.expand_as.default, self.now[node], self._full(each), like=self._full(each))

    def _total(self, nodes: Sequence[fx.Node], each: Next) -> fx.Node:
        return self.sum(nodes) if nodes else self.call(aten.zeros_like.default, self._full(each))
