"""The orders of lenses, point by point: the lowest ones that leave no more than a tolerance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from jetgraph.algebra.expansion import expand
from jetgraph.algebra.rules import Scale
from jetgraph.applications.intervals import Array
from jetgraph.applications.lenses.points import (
    Layers,
    by_position,
    is_norm_alone,
    jet_sums,
    lens_points,
    output_shape,
    shape_of,
)
from jetgraph.applications.orders import HIGHEST, ChosenOrder, chosen, improving
from jetgraph.applications.subject import Subject, counted_tokens
from jetgraph.compilation import compile
from jetgraph.running.matching import left_by_orders


def chosen_orders(
    one: Subject, batches: Sequence[Mapping[str, Any]], layers: Layers, scale: Scale, tolerance: float
) -> tuple[ChosenOrder, ...]:
    """The order at each point of the stream over all tokens of some inputs, with its reason.

    Where the decoder is one norm of tokens that have logits each, what an order leaves of it has a closed form: the
    root of the mean square over tokens, which is ‖ν(h_n) − J^k ν(s h_p)(h_n)‖ / ‖ν(h_n)‖ up to the norm's gain.
    Elsewhere orders are raised, all points together, as long as their ratios are worth it, and ‖output − lens‖ /
    ‖output‖ is measured.
    """
    points = lens_points(expand(one.graph, 0, recipe="lens", layers=layers, scale=scale))
    certified = [_certified(one, given, points, scale) for given in batches]
    if (known := [each for each in certified if each is not None]) and len(known) == len(certified):
        # [point, order, token] of all inputs.
        squares = np.square(np.concatenate(known, axis=-1)).mean(-1)
        return tuple(chosen(each.tolist(), tolerance, certified=True) for each in np.sqrt(squares))
    measured = _measured(one, batches, points, scale, tolerance)
    return tuple(chosen(measured[point], tolerance) for point in points)


def _certified(one: Subject, given: Mapping[str, Any], points: tuple[int, ...], scale: Scale) -> Array | None:
    """What orders 0..`HIGHEST` leave of the decoder's norm, [point, order, token]; None where the decoder is more than
    a norm, or makes a row of the output of several tokens, or of one of them.
    """
    graph = one.graph
    if not is_norm_alone(graph):
        return None
    forward, region = one.run(given), graph.structure.decoder.nonlinear
    rows = shape_of(graph, forward)[:-1]
    counted = counted_tokens(graph, given, rows)
    kept = slice(None) if counted is None else counted.cpu().numpy()
    end = forward.point(-1)
    by_point: list[Array] = []
    for point in points:
        left = left_by_orders(forward.pieces, region, forward.at_end(point), end, HIGHEST, scale == "matched")
        if left[0].numel() != np.prod(rows):
            return None
        by_point.append(left.reshape(HIGHEST + 1, *rows).cpu().numpy()[:, kept].reshape(HIGHEST + 1, -1))
    return np.stack(by_point)


def _measured(
    one: Subject,
    batches: Sequence[Mapping[str, Any]],
    points: tuple[int, ...],
    scale: Scale,
    tolerance: float,
) -> dict[int, list[float]]:
    """By point, what orders 0, 1, … leave of the logits, as far as they were raised."""
    left: dict[int, list[float]] = {point: [] for point in points}
    pending = list(points)
    for order in range(HIGHEST + 1):
        module = compile(expand(one.graph, order, recipe="lens", layers=pending, scale=scale))
        whole, rest = 0.0, dict.fromkeys(pending, 0.0)
        for given in batches:
            values = module(**given)
            counted = counted_tokens(one.graph, given, output_shape(one, given)[:-1])
            output = _kept(values.output, counted)
            whole += float(output.square().sum())
            for point in pending:
                logits = _kept(jet_sums(module.expansion, values, [f"h{point}"], [order])[0, 0], counted)
                rest[point] += float((output - logits).square().sum())
        for point in pending:
            left[point].append(math.sqrt(rest[point] / whole) if whole else float(rest[point] > 0))
        pending = [point for point in pending if not left[point][-1] <= tolerance and improving(left[point])]
        if not pending:
            break
    return left


def _kept(output: Tensor, counted: Tensor | None) -> Tensor:
    """The rows of tokens, without padding."""
    rows = by_position(output).double()
    return rows if counted is None else rows[counted.to(rows.device)]
