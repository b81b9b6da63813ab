"""What orders of jets leave of sites that are one norm, by its closed form: no order is evaluated for it.

A jet of a norm is a combination of its centre and the stream (`running.matching.errors_by_orders`), so that what Σ w_i
J^k f(s_i x_i) leaves of f(h) is known for all k once the centres that arrive are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.passages import Passage
from jetgraph.algebra.rules import Jet
from jetgraph.compilation.evaluation import MEMORY, evaluated
from jetgraph.compilation.numbering import Values
from jetgraph.compilation.origins import Model
from jetgraph.compilation.planning import Planning
from jetgraph.compilation.weighing import optimal_weights
from jetgraph.residual import ResidualGraph
from jetgraph.running.forward import Forward
from jetgraph.running.matching import errors_by_orders
from jetgraph.running.reals import square as square_of
from jetgraph.structure.regions import Region


def certified(expansion: Expansion) -> tuple[str, ...]:
    """The sites of which the closed form tells: jets of one norm, around centres that are not chosen when it runs, with
    weights that are known, or the best ones.
    """
    model = _model(expansion)
    return tuple(alias for alias, passage in expansion.passages.items() if _is_norm(model, passage))


def _model(expansion: Expansion) -> Model:
    assert isinstance(expansion.graph, ResidualGraph)
    return Model(expansion, expansion.graph)


def _is_norm(model: Model, passage: Passage) -> bool:
    if not isinstance(passage.rule, Jet) or passage.beam is not None or model.part(passage) is not None:
        return False
    region, weighting = model.region(passage), passage.rule.weighting
    plain = passage.rule.weighs_alike and weighting != "unit" and passage.rule.directions == "stream"
    return (plain or weighting == "optimal") and region.scaling is not None and region.scaling.alone


def left_by_sites(
    expansion: Expansion, given: Mapping[str, Any], sites: Sequence[str], highest: int
) -> dict[str, list[float]]:
    """By site, what orders 0..`highest` leave of it, the sites before it being as they are in the expansion.

    The root of the mean square over tokens of ‖f(h) − Σ w_i J^k f(s_i x_i)‖ / ‖f(h)‖ in the norm's own coordinates,
    that is without its gain, and up to its ε. The best weights are those of each order.

    Parameters
    ----------
    expansion
        What is evaluated.
    given
        Inputs by name.
    sites
        Among those that `certified` tells.
    highest
        The highest order.
    """
    if not sites:
        return {}
    model = _model(expansion)
    forward = model.graph.run(**given)
    left: dict[str, list[float]] = {}
    for alias, (centres, weights) in _centres(model, forward, sites).items():
        passage = expansion.passage(alias)
        region, h = model.region(passage), forward[model.point(passage.reads)]
        x = torch.stack([centre.expand_as(h) for centre in centres])
        errors = errors_by_orders(forward.pieces, region, x, h, highest, _raised(passage).matches(passage.site))
        left[alias] = [_left(error, weights, region, alias) for error in errors]
    return left


def _raised(passage: Passage) -> Jet:
    """The rule of a site as it is above order 0."""
    assert isinstance(passage.rule, Jet)
    return replace(passage.rule, order=1)


def _left(errors: Tensor, weights: Sequence[float] | None, region: Region, alias: str) -> float:
    """Of errors [centre, *image] with weights, or the best ones: their root mean square over tokens."""
    assert region.scaling is not None
    if weights is None:
        shares = optimal_weights(list(errors), torch.zeros_like(errors[0]), region.scaling.places, alias)
    else:
        shares = torch.tensor(weights).to(errors).reshape(-1, *[1] * (errors.dim() - 1))
    square = square_of((shares * errors).sum(0))
    return float((square.sum(region.scaling.summed) if region.scaling.summed else square).mean().sqrt())


def _centres(
    model: Model, forward: Forward, sites: Sequence[str]
) -> Mapping[str, tuple[list[Tensor], list[float] | None]]:
    """By site, the centres as its rule takes a jet at them, and their weights where these are known."""
    values = Values(model.expansion)
    arriving = {alias: values.centres(model.expansion.passage(alias)) for alias in sites}
    planning = Planning(model, values)
    making, rest = planning.making, planning.start(number for some in arriving.values() for number in some)
    made: dict[tuple[str, int], int] = {}
    for alias, some in arriving.items():
        passage = model.expansion.passage(alias)
        scaling = model.region(passage).scaling
        assert scaling is not None
        for number in some:
            bare = not _raised(passage).reads_lengths(passage.site)
            made[alias, number] = making.unweighed(number, scaling.free, rest) if bare else making.weighed(number, rest)
        making.points.append(passage.reads)
    hidden: Mapping[Any, Tensor] = evaluated(planning.finished(made, rest), model, forward, MEMORY).hidden
    return {
        alias: ([hidden[alias, number] for number in some], _weights(model, alias, values, some))
        for alias, some in arriving.items()
    }


def _weights(model: Model, alias: str, values: Values, centres: Sequence[int]) -> list[float] | None:
    """The weights of centres; None for the best ones."""
    if not model.expansion.passage(alias).rule.weighs_alike:
        return None
    return [float(model.expansion.centre_weight(alias, values.values[number].last)) for number in centres]
