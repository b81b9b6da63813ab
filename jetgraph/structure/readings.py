"""What the operands of a sum read of the points of a line: one of them alone, or several, weighed by factors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import fx

from jetgraph.algebra.outline import SkipKind
from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.images import affine_past, factored, same_size
from jetgraph.structure.lines import branch_over, without
from jetgraph.structure.operators import is_mixing, mixes
from jetgraph.structure.regions import Join, Region


def behind(flow: Dataflow, join: Join, points: Sequence[fx.Node]) -> Join:
    """The join with its fork at the last of some points that it reads: what is affine in that is the skip, if there is
    such an operand, and what reads one other point alone is a branch too.
    """
    regions = list(read_each(flow, join.operands, points).values())
    fork = max((region.entry for region in regions), key=flow.positions.__getitem__)
    skip = next((region for region in regions if region.entry is fork and region.affine), None)
    kind: SkipKind = "none"
    if skip is not None:
        past = dict(affine_past(flow, skip.exit))
        kind = "concat" if join.kind == "concat" else "gated" if skip.held else past.get(skip.entry, "projection")
    branches = sorted((region for region in regions if region is not skip), key=lambda one: one.entry is not fork)
    return replace(
        join,
        kind=kind,
        fork=fork,
        skip=skip,
        branches=tuple(map(branch_over, branches)),
        injections=without(join.operands, skip and skip.exit, [region.exit for region in branches]),
        gates=tuple(flow.region(fork, factor) for factor in (skip.held if skip else ()) if flow.depends(factor, fork)),
    )


def read_each(
    flow: Dataflow, operands: Iterable[fx.Node], points: Sequence[fx.Node], *, weighed: bool = False
) -> dict[fx.Node, Region]:
    """Those operands that `read_alone` reads, with what they read.

    Where points are weighed, none is read otherwise because its own weight is made of nothing else: `weighed` says so
    of what stands beside these operands.
    """
    read = {one: region for one in operands if (region := read_alone(flow, one, points)) is not None}
    if weighed or any(region.held for region in read.values()):
        return {one: region if region.affine else _weighed(flow, region) or region for one, region in read.items()}
    return read


def _weighed(flow: Dataflow, region: Region) -> Region | None:
    """The region as a multiple of its entry by factors that are held; None where it is none."""
    for node, factors in factored(flow, region.exit):
        if node is region.entry:
            whole = flow.region(node, region.exit, [factor for factor in factors if flow.depends(factor, node)])
            return whole if whole.affine else None
    return None


def weighing(flow: Dataflow, operand: fx.Node, points: Sequence[fx.Node]) -> Region | None:
    """An operand as an affine image of one of some points, with factors held that are made of later ones as well."""
    for node, factors in factored(flow, operand):
        if node in points:
            region = flow.region(node, operand, [factor for factor in factors if flow.depends(factor, points[0])])
            return region if region.affine else None
    return None


def read_alone(flow: Dataflow, operand: fx.Node, points: Sequence[fx.Node]) -> Region | None:
    """An operand as a function of the latest point that it depends on, if it is one of that alone; or as an affine
    image of one, with factors held that others are made into as well.
    """
    region = reading(flow, operand, points)
    if region is not None:
        return region
    for node, factors in factored(flow, operand):
        image = reading(flow, node, points)
        # Of two values of one size, either could be the factor; one number for many places is no point of a stream.
        alike = [factor for factor in factors if same_size(factor, node)]
        if image is None or not image.affine or any(_is_image(flow, factor, points) for factor in alike):
            continue
        # Values that a layer makes, and sums of these over places by weights made of data, are an attention's.
        if any(map(mixes, image.nodes)) and any(map(is_mixing, flow.between(node, operand, factors))):
            continue
        whole = flow.region(image.entry, operand, [factor for factor in factors if flow.depends(factor, points[0])])
        if whole.affine and not any(flow.depends(node, points[0]) for node in whole.side if node not in whole.held):
            return whole
    return None


def _is_image(flow: Dataflow, node: fx.Node, points: Sequence[fx.Node]) -> bool:
    """The node is as good an image of a point as what it multiplies."""
    image = reading(flow, node, points)
    return image is not None and image.affine


def reading(flow: Dataflow, operand: fx.Node, points: Sequence[fx.Node]) -> Region | None:
    """An operand as a function of the latest point that it depends on, if it is one of that point alone."""
    point = next((point for point in reversed(points) if flow.depends(operand, point)), None)
    region = None if point is None else flow.region(point, operand)
    # What reads other points of the stream besides is no function of one.
    return None if region is None or any(flow.depends(node, points[0]) for node in region.side) else region
