"""Where a function of the stream is expanded: at a site, over a block, up to a point, or at the decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from jetgraph.algebra.matching import matching, nearest
from jetgraph.algebra.outline import SINK, JoinStep, Outline, Site
from jetgraph.errors import InputError, SelectionError, quoted
from jetgraph.jets.series import Series, coefficient
from jetgraph.residual import ResidualGraph
from jetgraph.running.forward import Forward
from jetgraph.structure.dataflow import dataflow
from jetgraph.structure.regions import JoinStage, Region


@dataclass(frozen=True, eq=False)
class Place:
    """A function f of the stream at a point, and what it is part of there."""

    name: str
    """What hops call the function."""
    reads: int
    """The point that it reads."""
    through: Callable[[Any, int], Any]
    """f of a tensor or of a series of an order."""
    land: Callable[[Tensor], Tensor]
    """The linear part of what follows: where a branch adds to its join, or U of the decoder."""
    skip: Callable[[Tensor], Tensor] | None
    """A centre on its way beside f; None where the value is that of f alone."""
    constant: Tensor | None
    """What is there whatever the centres are: the bias of the decoder's affine part."""
    value: Tensor
    """The true value there: of f after `land`, of the point, or the output."""
    norm: Region | None = None
    """Where centres may have any length, for f(s x) = f(x): the code that they are matched to the stream for."""


def place_at(graph: ResidualGraph, forward: Forward, at: str | int) -> Place:
    """The place that a text or the number of a point names.

    Parameters
    ----------
    graph
        Of which it is a place.
    forward
        The run whose stream is read.
    at
        `logits` or `output`; the alias or module path of a site; a point `h3`, or its number; a block `L2`.

    Raises
    ------
    SelectionError
        It names none of these, or several sites.
    InputError
        Point 0, to which nothing leads.
    """
    outline = graph.outline
    last = len(outline.steps)
    point = at if isinstance(at, int) else next((p for p in range(last + 1) if at == f"h{p}"), None)
    if point is not None:
        point = point + last + 1 if point < 0 else point
        if not 0 < point <= last:
            raise InputError(f"at={quoted(at)} is no point that a step leads to: there are h1 to h{last}")
        return _stretch(graph, forward, point - 1, point, _joined(outline, point))
    assert isinstance(at, str)
    sites = {site.alias: (step, site) for step, site in outline.numbered()}
    block = [step for alias, (step, _) in sites.items() if alias.startswith(f"{at}.")]
    found = matching(at, {alias: site.path for alias, (_, site) in sites.items()})
    if block and at not in found:
        return _stretch(graph, forward, min(block) - 1, max(block), at)
    if len(found) != 1:
        several = f" names {len(found)} sites, {found[0]} and others; one is wanted" if found else " is no place"
        names = [*sites, *(f"h{p}" for p in range(1, last + 1))]
        raise SelectionError(f"at={quoted(at)}{several}{'' if found else nearest(at, names)}")
    step, site = sites[found[0]]
    return _decoder(graph, forward) if site.alias == SINK else _site(graph, forward, step, site)


def _joined(outline: Outline, point: int) -> str:
    step = outline.steps[point - 1]
    return "+".join(site.alias for site in step.sites) or (step.name if isinstance(step, JoinStep) else f"h{point}")


def _stretch(graph: ResidualGraph, forward: Forward, start: int, stop: int, name: str) -> Place:
    """All that is between two points; what it has besides the skip, where there is one all the way."""
    stream = graph.stream
    region = dataflow(graph.traced).region(stream.points[start], stream.points[stop])
    steps = graph.outline.steps[start:stop]
    direct = all(step.skip != "none" if isinstance(step, JoinStep) else step.site.affine for step in steps)

    def carried(value: Tensor) -> Tensor:
        return forward.stages.carry(value, start, stop)

    def through(value: Any, order: int) -> Any:
        found = forward.through(region, value, order)
        return _less(found, value, carried, order) if direct else found

    true = forward[stream.points[stop]]
    norm = _shared_norm(graph, start, stop) if direct else _homogeneous(region)
    return Place(name, start, through, _same, carried if direct else None, None, true, norm)


def _shared_norm(graph: ResidualGraph, start: int, stop: int) -> Region | None:
    """Where one step adds branches that all are as they are at any length: the code of the first one."""
    step, stage = graph.outline.steps[start], graph.stream.stages[start]
    if stop > start + 1 or not isinstance(stage, JoinStage):
        return None
    norms = [_homogeneous(graph.branches[site.alias].region) for site in step.sites]
    here = all(site.reads_at(stop) == start for site in step.sites)
    return norms[0] if norms and here and None not in norms else None


def _homogeneous(region: Region) -> Region | None:
    return None if region.scaling is None else region


def _same(value: Tensor) -> Tensor:
    return value


def _less(found: Any, value: Any, carried: Callable[[Tensor], Tensor], order: int) -> Any:
    """What is left of a tensor, or of a series of an order, without the linear part that goes beside it."""
    if not isinstance(value, Series):
        return found - carried(value)
    beside = [None if row is None else carried(row) for row in value.rows()]
    rows = [coefficient(found, j) if row is None else coefficient(found, j) - row for j, row in enumerate(beside)]
    return Series.of_rows(rows, order)


def _site(graph: ResidualGraph, forward: Forward, step: int, site: Site) -> Place:
    stage = graph.stream.stages[step - 1]
    if site.role == "map":
        region = stage.region
        true = forward[region.exit]
        norm = _homogeneous(region)
        return Place(site.alias, step - 1, lambda v, k: forward.through(region, v, k), _same, None, None, true, norm)
    assert isinstance(stage, JoinStage)
    branch, join = graph.branches[site.alias], stage.join

    def land(value: Tensor) -> Tensor:
        return forward.stages.place(join, branch.node, value)

    true = land(forward.component(site.alias))
    reads, norm = site.reads_at(step), _homogeneous(branch.region)
    return Place(site.alias, reads, lambda v, k: forward.branch(branch, v, k), land, None, None, true, norm)


def _decoder(graph: ResidualGraph, forward: Forward) -> Place:
    decoder, last = graph.structure.decoder, len(graph.outline.steps)

    def land(value: Tensor) -> Tensor:
        return forward.pieces.linear(decoder.affine, value)

    zero = forward.sizes.zeros(decoder.affine.entry)
    constant = forward.through(decoder.affine, zero) if decoder.site.bias else None
    norm = _homogeneous(decoder.nonlinear)
    return Place(
        SINK, last, lambda v, k: forward.through(decoder.nonlinear, v, k), land, None, constant, forward.output, norm
    )
