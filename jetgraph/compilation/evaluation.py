"""Running a plan on inputs, visit by visit; what nothing waits for is freed."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from jetgraph.compilation.evaluated import Evaluated
from jetgraph.compilation.origins import Model
from jetgraph.compilation.plan import (
    Plan,
)
from jetgraph.compilation.stacking import StackedRun
from jetgraph.running.forward import Forward
from jetgraph.running.memory import give_back

MEMORY = 256 * 2**20
"""Bytes that the inner values of one call of a site may take, for all values that pass together."""

LARGE_MEMORY = 2**30
"""The same on an accelerator, where each call is a launch."""


def evaluate(plan: Plan, model: Model, forward: Forward, memory: int = MEMORY) -> Evaluated:
    """Values of all paths before the decoder's affine part, in the order in which they were given, and what was found
    out on the way.
    """
    shape = forward.shape(model.graph.structure.decoder.nonlinear.exit)
    values = evaluated(plan, model, forward, memory)
    return replace(values, hidden={path: broadcast(value, shape) for path, value in values.hidden.items()})


def broadcast(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A value that broadcasts, in a shape; one of it as it is."""
    return value if value.shape == shape else value.expand(shape)


def evaluated(plan: Plan, model: Model, forward: Forward, memory: int = MEMORY) -> Evaluated:
    """The results of a plan, in the order in which they were given, and what was found out on the way."""
    forward.need(plan.reads)
    give_back(model.graph.traced.device_and_dtype[0])
    run = StackedRun(plan, model, forward, memory)
    for visit in plan.visits:
        run.visit(visit)
    results = {path: run.values[index] for path, index in plan.results.items()}
    far = {site: (sum(few), all_) for site, (few, all_) in run.far.items()}
    sums = {site: run.values[index] for site, index in plan.sums.items()}
    return Evaluated(results, run.weights, far, sums, run.radii, run.scales)
