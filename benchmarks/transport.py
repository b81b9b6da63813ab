"""The mean Jacobian of the stream's tail, against a Jacobian of the model itself by torch.func."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import jetgraph as jg
from benchmarks import models
from benchmarks.harness import Benchmark, Case, Contestant, Setting

TOKENS = 8
CHUNK = 64
"""Rows of a Jacobian that torch.func makes together."""


def cases(setting: Setting) -> Iterator[Case]:
    """From one point in the last third of the stream, and from all points after it, in one fit."""
    problem = _Problem(setting)
    yield Case("one point", [problem.floor(), problem.jetgraph("jetgraph", 1), problem.func()])
    yield Case("last third", [problem.floor(), problem.jetgraph("jetgraph", setting.layers - problem.layer)])


class _Problem:
    """Two windows of random tokens, of each of which one position is looked at."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model: Any = models.gpt2(setting)
        self.ids = models.token_ids(setting, 2, TOKENS)
        self.layer = setting.layers - max(1, setting.layers // 3)
        """The stream is taken before this block."""
        drawn = torch.Generator().manual_seed(models.SEED)
        self.places = (torch.rand(2, generator=drawn) * TOKENS).int().tolist()

    def floor(self) -> Contestant:
        def work() -> None:
            with torch.no_grad():
                self.model(input_ids=self.ids)

        return Contestant("floor", "floor", work, note="a forward pass")

    def jetgraph(self, name: str, points: int) -> Contestant:
        """`jg.fit_transport`; the error is that at the first point."""
        graph, first = models.traced(self.setting), 2 * self.layer
        layers = [first + 2 * at for at in range(points)]

        def work() -> Tensor:
            fitted = jg.fit_transport(graph, self.ids, layers=layers, tokens=2 * TOKENS, seed=models.SEED)
            return fitted.map(first)

        return Contestant(name, "jetgraph", work, self.error, note=f"{points} points" if points > 1 else "")

    def func(self) -> Contestant:
        return Contestant("torch.func.jacrev", "rival", lambda: jacobian(self.model, self), self.error)

    def error(self, found: Tensor) -> float:
        return float((found.cpu().double() - self.exact).norm() / self.exact.norm())

    @cached_property
    def exact(self) -> Tensor:
        return jacobian(models.double(self.model), self)


def jacobian(model: Any, problem: _Problem) -> Tensor:
    """The mean over windows of ∂h_n/∂h_p at one position of each, by reverse mode on the blocks of the model."""
    blocks, device = model.transformer.h[problem.layer :], model.lm_head.weight.device
    with torch.no_grad():
        entering = models.states(model, problem.ids.to(device))[f"h{2 * problem.layer}"]

    def tail(row: Tensor, place: int) -> Callable[[Tensor], Tensor]:
        def function(value: Tensor) -> Tensor:
            h = torch.cat([row[:place], value[None], row[place + 1 :]])[None]
            for block in blocks:
                found = block(h)
                h = found if isinstance(found, Tensor) else found[0]
            return h[0, place]

        return function

    rows = [
        torch.func.jacrev(tail(row, place), chunk_size=CHUNK)(row[place])
        for row, place in zip(entering, problem.places, strict=True)
    ]
    return torch.stack([row.detach().double().cpu() for row in rows]).mean(0)


BENCHMARK = Benchmark(
    "transport",
    "The mean Jacobian of the stream's tail",
    "Two windows of 8 random tokens, one position of each: ∂h_n/∂h_p from before the last third of the blocks, and "
    "from before each of these in one fit. Floor: a forward pass, so that the column / floor is the multiple of it; a "
    "Jacobian has as many rows as the stream has features. Rival: `torch.func.jacrev` on the blocks themselves, one "
    "point and one window at a time. The error is the distance from the same in float64.",
    cases,
)
