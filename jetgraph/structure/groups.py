"""Joins → the group of those whose streams read each other, and which are pieces of one state.

Chains of joins are of one state where each is made of the other, or of where that starts; where one splits from the
midst of another, begins in its branches, or adds what that has made by then; and where several fork from what several
have made (`_RELATIONS`, `_forking_together`). Sums over points of a stream that look like code of one branch are looked
at too where no chains are found without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations

from torch import fx

from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.joins import find_sums, is_inside, is_read_by_layer, with_depth
from jetgraph.structure.lines import Found, gates
from jetgraph.structure.regions import Join
from jetgraph.structure.streams import chains
from jetgraph.structure.sums import bare, flattened
from jetgraph.structure.walks import may_be_point

Chain = Sequence[Join]
"""Joins of which each forks from the one before it."""


def together(flow: Dataflow, joins: Sequence[Join]) -> tuple[Join, ...]:
    """The joins of streams that read each other, if there are any.

    Parameters
    ----------
    joins
        All joins of the graph, in topological order.
    """
    group = _reading_each_other(flow, joins)
    if not group and len(joins) > 1:
        joins = _with_values_of_branches(flow, joins)
        group = _reading_each_other(flow, joins) or _crossing(flow, joins)
    if not group:
        return ()
    # The last state may be made by joins of which none reads another: they go into a sum of its values, or each adds
    # to a piece of what the one before has become.
    ends = {join.node: join for join in joins}
    for join in joins:
        known = {other.node for other in group}
        read = gates(flow, join.fork, ends) if join.depth == 0 else set()
        mixes_them = len(read) > 1 or (join.kind == "gated" and join.fork in known)
        if join not in group and read and read <= known and (mixes_them or _adds_beside(flow, join, group, read, ends)):
            group += (join,)
    return group


def _adds_beside(flow: Dataflow, join: Join, group: Sequence[Join], read: set[fx.Node], ends: Found) -> bool:
    """No join of the group is made of a join, and it adds to another piece of one state than one of them does."""
    return not any(flow.depends(other.fork, join.node) for other in group) and any(
        other.fork is not join.fork
        and not flow.depends(join.node, other.node)
        and gates(flow, other.fork, ends) == read
        for other in group
    )


def _crossing(flow: Dataflow, joins: Sequence[Join]) -> tuple[Join, ...]:
    """Joins, and sums beyond them, of which each adds to one what is made of others that add to each other in turn: in
    x, y ← x + f(y), y + g(x) no later sum has a fork that its branch reads.
    """
    ends = {join.node: join for join in joins if not join.concatenates}
    crossing: dict[fx.Node, tuple[fx.Node, set[fx.Node]]] = {}
    for node in flow.nodes:
        if node in ends or node not in flow or not may_be_point(node):
            continue
        operands = [operand for operand in flattened(flow, node, ()).operands if operand in flow]
        kept = [operand for operand in operands if operand in ends]
        read = set[fx.Node]().union(*(gates(flow, operand, ends) for operand in operands if operand not in kept))
        pairs = [pair for one in read for end in kept for pair in ((one, end), (end, one))]
        if len(kept) == 1 and pairs and not any(flow.depends(*pair) for pair in pairs):
            crossing[node] = kept[0], read
            ends[node] = bare(flattened(flow, node, ()))
    # Each goes on with a value, and reads one with which another one goes on.
    number = -1
    while number != len(crossing):
        number = len(crossing)
        added, seen = {kept for kept, _ in crossing.values()}, {one for _, read in crossing.values() for one in read}
        crossing = {node: (kept, read) for node, (kept, read) in crossing.items() if kept in seen and read <= added}
    made = {one for kept, read in crossing.values() for one in (kept, *read)}
    return tuple(ends[node] for node in flow.ordered({*crossing, *made}))


def _with_values_of_branches(flow: Dataflow, joins: Sequence[Join]) -> tuple[Join, ...]:
    """The joins with the sums over points of a stream that look like code of one branch: where the speed of a stream is
    a stream itself, h + v seems to be made in the branch that reads it.
    """
    found = {join.node: join for join in joins}
    starts = {join.fork for join in joins}
    for node, join in find_sums(flow).items():
        # At the start a sum of two points is what a branch reads; a layer adds what is made of one.
        adds = join.fork in starts and not any(branch.node in found for branch in join.branches)
        if node not in found and (join.fork in found or adds):
            found[node] = join
    laid = {
        node
        for node, join in found.items()
        if join.concatenates and (_lays_streams(flow, join, found) or is_read_by_layer(flow, join, found))
    }
    return with_depth([found[node] for node in flow.ordered(found.keys() - laid)])


def _lays_streams(flow: Dataflow, join: Join, found: Mapping[fx.Node, Join]) -> bool:
    """A concatenation lays streams side by side: what its fork was made into was added to one that started before."""
    later = (operand for operand in join.operands if operand is not join.fork and flow.depends(operand, join.fork))
    sums = (found[operand] for operand in later if operand in found)
    return any(one.skip is not None and not flow.depends(one.fork, join.fork) for one in sums)


def _reading_each_other(flow: Dataflow, joins: Sequence[Join]) -> tuple[Join, ...]:
    """The joins of chains of which one is related to another one as two streams of one state are."""
    # What lies inside a sum of branches alone, from the input to the output, is no code of a branch here.
    without = [join for join in joins if join.kind == "none"]
    outer = [join for join in joins if join.depth == sum(is_inside(join, other) for other in without)]
    outer_chains = chains(flow, [join for join in outer if join not in without])
    pairs = [pair for pair in permutations(outer_chains, 2) if any(related(flow, *pair) for related in _RELATIONS)]
    pairs += _forking_together(flow, outer_chains)
    return tuple(dict.fromkeys(join for pair in pairs for chain in pair for join in chain))


# Two chains of one state


def _reads(flow: Dataflow, one: Chain, other: Chain) -> bool:
    """The last value of the one is made of the first one that the other makes."""
    return flow.depends(one[-1].node, other[0].node)


def _read_each_other(flow: Dataflow, one: Chain, other: Chain) -> bool:
    """Each reads the other one, or the one does and both fork from one value."""
    return _reads(flow, one, other) and (_reads(flow, other, one) or one[0].fork is other[0].fork)


def _splits_from(flow: Dataflow, one: Chain, other: Chain) -> bool:
    """The one forks from the midst of the other, and goes on reading what that makes afterwards."""
    later = [join for join in other if not flow.depends(one[0].fork, join.node)]
    return 0 < len(later) < len(other) and _reads(flow, one, later)


def _begins_in(flow: Dataflow, one: Chain, other: Chain) -> bool:
    """The one starts with what a branch of the other is made of, and reads that other one later."""
    inside = any(one[0].fork in branch.region.node_set for join in other for branch in join.branches)
    return inside and _reads(flow, one, other)


def _read_each_others_start(flow: Dataflow, one: Chain, other: Chain) -> bool:
    """Branches of each read what the other one starts with, or is made of that."""
    if one[0].fork is other[0].fork:
        return False
    return all(
        any(
            flow.depends(node, start.fork)
            for join in chain
            for branch in join.branches
            for node in branch.region.context
        )
        for chain, start in ((one, other[0]), (other, one[0]))
    )


def _goes_on_beside(flow: Dataflow, one: Chain, other: Chain) -> bool:
    """The one adds what the other has made, and later on what that has made by then; or does so once, where the other
    starts apart, and is no branch of a point, nor passes the one with which this starts. What every layer adds alike is
    a condition.
    """
    made = {join.node: join for join in other}
    given = [node for join in one for node in join.injections if node in flow]
    given += [each.node for join in one for each in join.branches if each.region.entry is not join.fork]
    read = (gates(flow, operand, made) for operand in given)
    added = [node for nodes in read if len(nodes) == 1 for node in nodes]
    apart = not flow.depends(other[0].fork, one[0].fork) and all(join.fork is not one[0].fork for join in other)
    once = len(added) == 1 and apart
    return once or len(set(added)) > 1


_RELATIONS = (_read_each_other, _splits_from, _begins_in, _read_each_others_start, _goes_on_beside)
"""How two chains of one state are related; any of them will do."""


def _forking_together(flow: Dataflow, outer: Sequence[list[Join]]) -> Iterator[tuple[list[Join], list[Join]]]:
    """The chains of joins that fork from what several have made, with the chains of these."""
    chain_of = {join.node: chain for chain in outer for join in chain}
    ends = {join.node: join for chain in outer for join in chain}
    made = {join.fork: (join, read) for join in ends.values() if len(read := gates(flow, join.fork, ends)) > 1}
    # Where streams exchange what they have made, two forks at least are made of the same ends.
    for (one, these), (other, those) in permutations(made.values(), 2):
        if len(these & those) > 1:
            yield from ((chain_of[one.node], chain_of[node]) for node in (other.node, *these & those))
    # Where one forks from what several have made, they were one state before it; layers of one fork are its branches.
    for join, read in made.values():
        if len({id(chain_of[node]) for node in read}) > 1 and len({ends[node].fork for node in read}) > 1:
            yield from ((chain_of[join.node], chain_of[node]) for node in read)
