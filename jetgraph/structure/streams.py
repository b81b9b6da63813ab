"""Joins → streams: chains of joins, the maps between them, and where a stream starts and is left.

chain    joins at depth 0, each of which forks from the one before it, up to a map;
track    the chain with its encoder and, before every join, the maps that lead to it: every value of the stream is
         known then, so that operands which read earlier ones become branches (long skips);
stream   the track with names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from torch import fx

from jetgraph.algebra.outline import JoinStep, MapStep, Site, Source
from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.ends import adds_positions, encoder
from jetgraph.structure.images import as_many, image_kind
from jetgraph.structure.kinds import map_kind
from jetgraph.structure.labels import Labels, Numbers
from jetgraph.structure.lines import branch_over, gate, gates
from jetgraph.structure.naming import Uniquely, common_path
from jetgraph.structure.operators import LAYOUT, mixes, packet_of
from jetgraph.structure.readings import read_each
from jetgraph.structure.regions import Branch, Encoder, Join, JoinStage, MapStage, Region, Stage, Stream


@dataclass(frozen=True, eq=False)
class Leg:
    """A join of a track, and the maps that lead to it from the point before."""

    maps: tuple[Region, ...]
    join: Join


@dataclass(frozen=True, eq=False)
class Track:
    """A stream before it has names: a chain of joins with where it starts, and the maps between them."""

    encoder: Encoder
    legs: tuple[Leg, ...]

    @property
    def joins(self) -> tuple[Join, ...]:
        return tuple(leg.join for leg in self.legs)

    @property
    def points(self) -> tuple[fx.Node, ...]:
        """The values of the stream, from the encoder's on."""
        after = (node for leg in self.legs for node in (*(region.exit for region in leg.maps), leg.join.node))
        return (self.encoder.exit, *after)


# Tracks


def find_tracks(flow: Dataflow, joins: Sequence[Join]) -> tuple[Track, ...]:
    """The tracks of all streams, in topological order of their first joins."""
    ends = [join.node for join in joins]
    ends += {node for join in joins for region in join.inside for node in region.nodes if mixes(node)}
    return tuple(_track(flow, chain, ends) for chain in chains(flow, [join for join in joins if join.depth == 0]))


def chains(flow: Dataflow, joins: Sequence[Join]) -> list[list[Join]]:
    """Joins as chains in which each one forks from the one before it, up to a map that leaves nothing behind."""
    ends = {join.node: join for join in joins}
    all_chains: list[list[Join]] = []
    # A second join that forks from the same one starts a chain of its own: what leads on is no longer the last.
    last: dict[fx.Node, list[Join]] = {}
    for join in joins:
        before = gate(flow, join.fork, ends) or _conditioned(flow, join.fork, ends, last)
        if before is not None and _is_left_behind(flow, before, join, joins):
            before = None
        chain = last.pop(before.node, None) if before else None
        if chain is None:
            chain = []
            all_chains.append(chain)
        chain.append(join)
        last[join.node] = chain
    return all_chains


def _conditioned(
    flow: Dataflow, fork: fx.Node, ends: Mapping[fx.Node, Join], last: Mapping[fx.Node, Sequence[Join]]
) -> Join | None:
    """The last join of a chain which a fork is a map of that reads something from outside too, as a norm whose scale
    is made of a condition: nothing mixes there, and all other joins come in through what does.
    """
    for end, chain in last.items():
        if (
            flow.depends(fork, end)
            and as_many(fork, end)
            and gates(flow, fork, ends, chain[0].fork) == {end}
            and not any(map(mixes, flow.between(end, fork)))
            and all(
                flow.depends(end, other) or any(map(mixes, flow.between(other, fork)))
                for other in ends
                if flow.depends(fork, other)
            )
        ):
            return chain[-1]
    return None


def _is_left_behind(flow: Dataflow, before: Join, join: Join, joins: Sequence[Join]) -> bool:
    """The fork of a join is made of another stream, which goes on being read beside it: the queries of a decoder that
    starts with constants are its own stream from where they have read the encoder first.
    """
    way = flow.between(before.node, join.fork)
    if not any(map(mixes, way)) or not any(map(partial(adds_positions, flow), way)):
        return False
    beside = (
        node
        for later in joins
        if flow.depends(later.fork, join.fork)
        for branch in later.branches
        for node in branch.region.context
    )
    return any(flow.depends(node, before.node) and not flow.depends(node, join.fork) for node in beside)


def _track(flow: Dataflow, chain: Sequence[Join], ends: Sequence[fx.Node]) -> Track:
    """The points of a chain of joins: where it starts, and the maps before each of its joins."""
    start = encoder(flow, _start(flow, chain), ends)
    legs: list[Leg] = []
    points = [start.exit]
    for join in chain:
        if join.fork is not points[-1]:
            join = _rebased(flow, join, points[-1])
        maps = _pieces(flow, points[-1], join.fork) if join.fork is not points[-1] else ()
        points += [region.exit for region in maps]
        legs.append(Leg(maps, _reading(flow, join, points)))
        points.append(join.node)
    return Track(start, tuple(legs))


def _start(flow: Dataflow, chain: Sequence[Join]) -> fx.Node:
    """Where the stream of a chain starts: at its first fork, or before it at what joins further on add again; if the
    first fork is made of an earlier value that a branch further on reads, at that.
    """
    first = start = chain[0].fork
    read = [branch.region for join in chain for branch in join.branches if not flow.depends(branch.region.entry, first)]
    images = [region for region in read if flow.depends(first, region.entry)]
    added = [operand for join in chain for operand in join.injections if operand in flow]
    # Where a condition enters on the way there is no one node above: the stream starts at the earlier value itself.
    for operand, otherwise in (*((region.exit, region.entry) for region in images), *((one, None) for one in added)):
        node: fx.Node | None = start
        while node is not None and not flow.depends(operand, node):
            node = flow.bottleneck(node)
        start = node or (otherwise if otherwise and flow.depends(start, otherwise) else start)
    return start


def _rebased(flow: Dataflow, join: Join, point: fx.Node) -> Join:
    """The join with its fork at `point`, if only layout and precision change from there; no map stands between then."""
    if any(image_kind(flow, node) != "identity" for node in flow.between(point, join.fork)):
        return join
    # What lies before the layout changes may be most of a branch, and what it is called after.
    branches = tuple(branch_over(flow.region(point, b.region.exit, b.region.held)) for b in join.branches)
    gates = tuple(flow.region(point, region.exit) for region in join.gates)
    skip = None if join.skip is None else flow.region(point, join.skip.exit, join.skip.held)
    return replace(join, fork=point, skip=skip, branches=branches, gates=gates)


def _reading(flow: Dataflow, join: Join, points: Sequence[fx.Node]) -> Join:
    """The join with what it adds of earlier points as branches that read those, each the latest one that it can."""
    here = [branch for branch in join.branches if branch.region.entry is join.fork]
    others = [*join.injections, *(branch.node for branch in join.branches if branch not in here)]
    again = [operand for operand in dict.fromkeys(join.operands) if operand in others]
    read = read_each(flow, again, points, weighed=join.kind == "gated")
    by_operand = {operand: branch_over(region) for operand, region in read.items()}
    # What reads a point of another stream, or of none, is added from outside.
    left = tuple(operand for operand in others if operand not in by_operand)
    return replace(join, branches=(*here, *by_operand.values()), injections=left) if others else join


def _pieces(flow: Dataflow, entry: fx.Node, exit: fx.Node) -> tuple[Region, ...]:
    """A map in up to three: affine pieces at its ends that change the stream's layout stand on their own.

    The pooling and projection around a norm (patch merging, factorised embeddings) are then distributed over terms, and
    what is left as nonlinear keeps the shape.
    """
    cuts = [exit]
    while cuts[-1] is not entry:
        above = flow.bottleneck(cuts[-1])
        if above is None or flow.positions[above] < flow.positions[entry]:
            return (flow.region(entry, exit),)
        cuts.append(above)
    cuts.reverse()
    affine = [flow.region(one, other).affine for one, other in pairwise(cuts)]
    if all(affine):
        return (flow.region(entry, exit),)
    first, last = affine.index(False), len(affine) - affine[::-1].index(False)
    start = first if _reshapes(flow, entry, cuts[first]) else 0
    stop = last if _reshapes(flow, cuts[last], exit) else len(cuts) - 1
    ends = dict.fromkeys([0, start, stop, len(cuts) - 1])
    return tuple(flow.region(cuts[one], cuts[other]) for one, other in pairwise(ends))


def _reshapes(flow: Dataflow, entry: fx.Node, exit: fx.Node) -> bool:
    """Between these the stream changes its shape or the order of its dimensions."""
    return entry.meta["shape"] != exit.meta["shape"] or any(
        packet_of(node) in LAYOUT for node in flow.between(entry, exit)
    )


# Streams


def find_streams(flow: Dataflow, tracks: Sequence[Track], labels: Labels) -> tuple[list[Stream], Stream | None]:
    """The streams beside the main one, and the main one, which leads to the output, if there is any."""
    main = main_track(flow, tracks)
    streams = [_stream(flow, track, labels, numbers) for track, numbers in zip(tracks, labels.numbers, strict=True)]
    return streams, None if main is None else _left(flow, streams.pop(main), flow.traced.output)


def main_track(flow: Dataflow, tracks: Sequence[Track]) -> int | None:
    """The number of the track that leads to the output: of several, that whose end is nearest to it."""
    ends = [track.points[-1] for track in tracks]
    reaching = [number for number, end in enumerate(ends) if flow.depends(flow.traced.output, end)]
    return max(reaching, key=lambda number: flow.positions[ends[number]], default=None)


def reads_beside(flow: Dataflow, track: Track, node: fx.Node) -> bool:
    """A value is made of other points of a track besides the last one."""
    return any(flow.depends(read, track.points[0]) for read in flow.region(track.points[-1], node).side)


def _stream(flow: Dataflow, track: Track, labels: Labels, numbers: Numbers) -> Stream:
    unique = Uniquely()
    stages: list[Stage] = []
    points = [track.encoder.exit]
    for leg, before in zip(track.legs, (None, *numbers.of_joins), strict=False):
        for region in leg.maps:
            stages.append(_map_stage(flow, region, numbers, before, unique))
            points.append(region.exit)
        join = labels.joins[leg.join.node]
        sites = tuple(_site(branch, points) for branch in join.branches)
        step = JoinStep(
            join.alias, join.kind, join.skip is not None and join.skip.bias, sites, tuple(_injections(flow, join))
        )
        stages.append(JoinStage(step, join, flow.region(join.fork, join.node)))
        points.append(join.node)
    return Stream(track.encoder, tuple(stages))


def _map_stage(flow: Dataflow, region: Region, numbers: Numbers, before: int | None, unique: Uniquely) -> MapStage:
    """A map as a stage; it has the number of its own block, or else that of the join before it."""
    work = [node for node in region.nodes if image_kind(flow, node) != "identity"] or region.nodes
    path = common_path(node.meta["module_path"] for node in work)
    own = numbers.blocks.number(path)
    number = before if own is None else own
    at = numbers.prefix if number is None else f"{numbers.prefix}L{number}."
    kind = map_kind(region)
    site = Site(
        unique(f"{at}{kind}"), path, kind, "map", region.affine, region.bias, region.held_bias, None, region.homogeneous
    )
    return MapStage(MapStep(site), region)


def _site(branch: Branch, points: Sequence[fx.Node]) -> Site:
    """A branch as a site of the step after these points."""
    region = branch.region
    reads = points.index(region.entry)
    return Site(
        branch.alias,
        branch.name,
        branch.kind,
        "branch",
        region.affine,
        region.bias,
        region.held_bias,
        None if reads == len(points) - 1 else reads,
        region.homogeneous,
    )


def _injections(flow: Dataflow, join: Join) -> Iterator[Source]:
    for number, node in enumerate(join.injections, 1):
        alias = f"{join.alias}.in" + (f".{number}" if number > 1 else "")
        yield Source(alias, node.meta["module_path"], "embed" if node in flow else "pos")


def _left(flow: Dataflow, stream: Stream, output: fx.Node) -> Stream:
    """The stream up to the last point through which alone its start reaches the output.

    Where the output also reads earlier points, with what does not fit side by side, or a skip or map does, those reads
    would pass for constants; what follows belongs to the decoder then.
    """
    start = stream.encoder.exit

    def reads_start(region: Region | None) -> bool:
        return region is not None and any(flow.depends(node, start) for node in region.side if node not in region.held)

    length = 0
    for stage in stream.stages:
        if reads_start(stage.join.skip if isinstance(stage, JoinStage) else stage.region):
            break
        length += 1
    while length and reads_start(flow.region(stream.points[length], output)):
        length -= 1
    return Stream(stream.encoder, stream.stages[:length])
