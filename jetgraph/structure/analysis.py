"""Traced graph → residual structure: joins, branches, maps on the stream, encoder and decoder.

Only the graph is read: dataflow says what is a skip and what is a branch, operators say what kind a branch is, and
module paths only give names (design: "the graph tells"). The analysis finds

    join    a sum (a tree of adds) or concatenation with a skip, i.e. an operand that is the fork itself or an affine
            image of it, and a branch, i.e. an operand that depends on the fork through a learned mixing operator;
    stream  a chain of joins, each forking where the one before it ended, up to maps such as a post-norm;
    state   streams that read each other are one stream of all of them, side by side;
    head    what reads several points at once reads one more point, at which these lie side by side;
    long    an operand of a join that reads an earlier point of the stream than the fork: a skip over several joins, an
            input that is added again, a weighted sum of layers;
    nesting a join inside another one's branch has a depth of 1 or more and is listed, but expanded with that branch.

Each step is a function from frozen value to frozen value in a module of its own:

    traced → dataflow → joins (→ alongside → dataflow → joins) → tracks (→ gathering → …) → labels → streams → ends
"""

from __future__ import annotations

from collections.abc import Iterable

from jetgraph.errors import TraceError
from jetgraph.structure.alongside import side_by_side
from jetgraph.structure.dataflow import Dataflow, dataflow
from jetgraph.structure.ends import decoder, encoder, first_value
from jetgraph.structure.gathering import gathered
from jetgraph.structure.histories import side_by_side_in_lists
from jetgraph.structure.joins import find_joins, with_depth
from jetgraph.structure.labels import label
from jetgraph.structure.regions import Join, Stream, Structure
from jetgraph.structure.shortcuts import with_norms_written_out
from jetgraph.structure.streams import Track, find_streams, find_tracks
from jetgraph.structure.unskipped import within_map
from jetgraph.tracing.traced import Traced


def analyse(traced: Traced) -> Structure:
    """Find the residual structure of a traced graph; a graph without a join has one stream without stages.

    Parameters
    ----------
    traced
        The graph in normal form.

    Returns
    -------
    Structure
        Streams in topological order, the one that leads to the output last; all joins; the decoder.

    Raises
    ------
    TraceError
        Where the output does not depend on the model's inputs.
    """
    flow = dataflow(traced)
    output = traced.output
    if output not in flow:
        raise TraceError(
            f"the output {traced.output_name!r} does not depend on the model's inputs through differentiable "
            "operators: name another one with output="
        )
    written = with_norms_written_out(flow)
    if written is not None:
        traced, flow = written, dataflow(written)
    listed = side_by_side_in_lists(flow)
    if listed is not None:
        traced, flow = listed, dataflow(listed)
    joins, tracks = _placed(flow, find_joins(flow))
    together = side_by_side(flow, joins)
    if together is not None:
        traced, flow = together, dataflow(together)
        joins, tracks = _placed(flow, find_joins(flow))
    several = gathered(flow, tracks)
    if several is not None:
        traced, flow = several.traced, dataflow(several.traced)
        joins, tracks = _placed(flow, with_depth(_with(flow, find_joins(flow), [several.join(flow)])))
    output = traced.output
    labels = label(flow, joins, [track.joins for track in tracks])
    others, main = find_streams(flow, tracks, labels)
    if main is None:
        main = Stream(encoder(flow, first_value(flow, output)), ())
    named = tuple(labels.joins[join.node] for join in joins)
    return Structure(traced, (*others, main), named, decoder(flow, main.end, output))


def _with(flow: Dataflow, joins: tuple[Join, ...], more: Iterable[Join]) -> tuple[Join, ...]:
    """The joins with these for what ends at their nodes, in execution order."""
    by_node = {each.node: each for each in (*joins, *more)}
    return tuple(by_node[node] for node in flow.ordered(by_node))


def _placed(flow: Dataflow, joins: tuple[Join, ...]) -> tuple[tuple[Join, ...], tuple[Track, ...]]:
    """The joins as they are on their tracks, and these: there one may fork at an earlier point, and read further ones.

    What lies inside of what is read so is nested, and has no track of its own; sums of layers in a map between two
    points are joins of that track.
    """
    tracks = find_tracks(flow, joins)
    on = {join.node: join for track in tracks for join in track.joins}
    placed = tuple(on.get(join.node, join) for join in joins)
    in_maps = [
        join
        for track in tracks
        for leg in track.legs
        for region in leg.maps
        for join in within_map(flow, region.entry, region.exit, {join.node: join for join in placed})
    ]
    deeper = with_depth(_with(flow, placed, in_maps))
    if [join.depth for join in deeper] == [join.depth for join in joins]:
        return placed, tracks
    return _placed(flow, deeper)
