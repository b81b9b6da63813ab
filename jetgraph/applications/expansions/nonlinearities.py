"""Where a function of the stream is expanded: at a site, over a block, up to a point, or at the decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from jetgraph.algebra.dialects import points_called
from jetgraph.algebra.matching import matching, nearest
from jetgraph.algebra.outline import SINK, JoinStep, Outline, Site
from jetgraph.errors import InputError, SelectionError, quoted
from jetgraph.jets.series import Series, coefficient
from jetgraph.residual import ResidualGraph
from jetgraph.running.forward import Forward
from jetgraph.structure.dataflow import dataflow
from jetgraph.structure.regions import JoinStage, Region


@dataclass(frozen=True, eq=False)
class Nonlinearity:
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
    bound: str = ""
    """Why they may not."""


def nonlinearity_at(graph: ResidualGraph, forward: Forward, at: str | int) -> Nonlinearity:
    """The nonlinear function that a text or the number of a point names.

    Parameters
    ----------
    graph
        Of which it is a part.
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
    if isinstance(at, str) and len(called := points_called(at, outline)) == 1:
        at = called.pop()
    point = at if isinstance(at, int) else next((p for p in range(last + 1) if at == f"h{p}"), None)
    if point is not None:
        point = point + last + 1 if point < 0 else point
        if not 0 < point <= last:
            raise InputError(f"at={quoted(at)} is no point that a step leads to: there are h1 to h{last}")
        return _stretch(graph, forward, point - 1, point, _joined(outline, point))
    assert isinstance(at, str)
    sites = {site.alias: (step, site) for step, site in outline.numbered()}
    block = [step for alias, (step, _) in sites.items() if alias.startswith(f"{at}.")]
    aliases = matching(at, {alias: site.path for alias, (_, site) in sites.items()})
    if block and at not in aliases:
        return _stretch(graph, forward, min(block) - 1, max(block), at)
    if len(aliases) != 1:
        several = f" names {len(aliases)} sites, {aliases[0]} and others; one is wanted" if aliases else " is no place"
        names = [*sites, *(f"h{p}" for p in range(1, last + 1))]
        raise SelectionError(f"at={quoted(at)}{several}{'' if aliases else nearest(at, names)}")
    step, site = sites[aliases[0]]
    return _decoder(graph, forward) if site.alias == SINK else _site(graph, forward, step, site)


def _joined(outline: Outline, point: int) -> str:
    step = outline.steps[point - 1]
    return "+".join(site.alias for site in step.sites) or (step.name if isinstance(step, JoinStep) else f"h{point}")


def _stretch(graph: ResidualGraph, forward: Forward, start: int, stop: int, name: str) -> Nonlinearity:
    """All that is between two points; what it has besides the skip, where there is one all the way."""
    stream = graph.stream
    region = dataflow(graph.traced).region(stream.points[start], stream.points[stop])
    steps = graph.outline.steps[start:stop]
    direct = all(step.skip != "none" if isinstance(step, JoinStep) else step.site.affine for step in steps)

    def carried(value: Tensor) -> Tensor:
        return forward.stages.carry(value, start, stop)

    def through(value: Any, order: int) -> Any:
        image = forward.through(region, value, order)
        return _less(image, value, carried, order) if direct else image

    true = forward[stream.points[stop]]
    norm, bound = _shared_norm(graph, start, stop) if direct else _scaled(region, name)
    return Nonlinearity(name, start, through, _same, carried if direct else None, None, true, norm, bound)


def _shared_norm(graph: ResidualGraph, start: int, stop: int) -> tuple[Region | None, str]:
    """Where all that is added between two points is as it is at any length of what is read there: the code of a branch
    whose scales the others allow too. Else why not.

    What reads an earlier point is a constant here. What reads a later one reads what was added before beside the
    stream, and that keeps its length: f(s x + a(x)) is not f(x + a(x)).
    """
    reading: list[Region] = []
    for number in range(start + 1, stop + 1):
        step = graph.outline.steps[number - 1]
        for site in step.sites if isinstance(step, JoinStep) else ():
            if site.reads_at(number) > start:
                return None, f"{site.alias} reads what is added on the way, whose length stays, beside the stream"
            if site.reads_at(number) == start:
                region, why = _scaled(graph.branches[site.alias].region, site.alias)
                if region is None:
                    return None, why
                reading.append(region)
    free = [set(region.scaling.free) for region in reading if region.scaling is not None]
    shared = [region for region, own in zip(reading, free, strict=True) if all(own <= other for other in free)]
    if not shared:
        return None, "its branches allow no scale together" if reading else "no branch reads the stream there"
    return shared[0], ""


def _scaled(region: Region, name: str) -> tuple[Region | None, str]:
    """A region whose entry may have any length, or why it may not."""
    return (region, "") if region.scaling is not None else (None, f"how long a value is makes a difference to {name}")


def _same(value: Tensor) -> Tensor:
    return value


def _less(image: Any, value: Any, carried: Callable[[Tensor], Tensor], order: int) -> Any:
    """What is left of a tensor, or of a series of an order, without the linear part that goes beside it."""
    if not isinstance(value, Series):
        return image - carried(value)
    beside = [None if row is None else carried(row) for row in value.rows()]
    rows = [coefficient(image, j) if row is None else coefficient(image, j) - row for j, row in enumerate(beside)]
    return Series.of_rows(rows, order)


def _site(graph: ResidualGraph, forward: Forward, step: int, site: Site) -> Nonlinearity:
    stage = graph.stream.stages[step - 1]
    if site.role == "map":
        region = stage.region
        true = forward[region.exit]
        scaled = _scaled(region, site.alias)
        return Nonlinearity(
            site.alias, step - 1, lambda v, k: forward.through(region, v, k), _same, None, None, true, *scaled
        )
    assert isinstance(stage, JoinStage)
    branch, join = graph.branches[site.alias], stage.join

    def land(value: Tensor) -> Tensor:
        return forward.stages.land(join, branch.node, value)

    true = land(forward.component(site.alias))
    reads, scaled = site.reads_at(step), _scaled(branch.region, site.alias)
    return Nonlinearity(site.alias, reads, lambda v, k: forward.branch(branch, v, k), land, None, None, true, *scaled)


def _decoder(graph: ResidualGraph, forward: Forward) -> Nonlinearity:
    decoder, last = graph.structure.decoder, len(graph.outline.steps)

    def land(value: Tensor) -> Tensor:
        return forward.pieces.linear(decoder.affine, value)

    zero = forward.sizes.zeros(decoder.affine.entry)
    constant = forward.through(decoder.affine, zero) if decoder.site.bias else None

    def through(value: Any, order: int) -> Any:
        return forward.through(decoder.nonlinear, value, order)

    return Nonlinearity(SINK, last, through, land, None, constant, forward.output, *_scaled(decoder.nonlinear, SINK))
