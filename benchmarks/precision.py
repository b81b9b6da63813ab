"""Accuracy and time of a block's jets in float32, bfloat16 and float16, coefficient by coefficient."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import jetgraph as jg
from benchmarks import models, oracle
from benchmarks.harness import Benchmark, Case, Contestant, Setting
from jetgraph.residual import Forward

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def cases(setting: Setting) -> Iterator[Case]:
    """One per dtype and order."""
    for dtype in DTYPES:
        problem = _Problem(setting, dtype)
        name = str(dtype).removeprefix("torch.")
        for order in (0, *setting.orders):
            yield Case(f"{name}, order {order}", [problem.forward(order), problem.jetgraph(order)])


class _Problem:
    """A block in a dtype, a centre x, a direction v, and the exact coefficients for these weights, x and v."""

    def __init__(self, setting: Setting, dtype: torch.dtype) -> None:
        self.setting = setting
        self.dtype = dtype
        model: Any = models.gpt2(setting, dtype)
        self.block: Any = model.transformer.h[0]
        self.ids = models.token_ids(setting, setting.batch, setting.length)
        with torch.no_grad():
            places = torch.arange(setting.length, device=self.ids.device)
            self.x: Tensor = model.transformer.wte(self.ids) + model.transformer.wpe(places)
            generator = torch.Generator().manual_seed(1)
            self.v = (torch.randn(self.x.shape, generator=generator) * float(self.x.float().std())).to(self.x)

    @cached_property
    def coefficients(self) -> Tensor:
        """[order + 1, batch, length, width] in float64."""
        exact: Any = models.double(self.block)
        centre, direction = self.x.cpu().double(), self.v.cpu().double()
        return oracle.taylor(lambda h: _tensor(exact(h)), centre, direction, max(self.setting.orders))

    def tolerance(self, order: int) -> float:
        """Half precision: every op rounds each coefficient by half an eps of its own, and coefficient k feels an
        earlier error in each of its k + 1 factors. Float32: the sums inside matrix products count too."""
        return 1e-5 if self.dtype == torch.float32 else 2 * (order + 1) * torch.finfo(self.dtype).eps

    def forward(self, order: int) -> Contestant:
        """The model's own block on order + 1 times the rows, and how far it is off at x."""
        rows = self.x.repeat(order + 1, 1, 1)

        def work() -> Tensor:
            with torch.no_grad():
                return _tensor(self.block(rows))

        def error(found: Tensor) -> float:
            return oracle.distance(found[: len(self.x)], self.coefficients[0])

        note = f"forward, {order + 1}× rows"
        return Contestant("floor", "floor", work, error, tolerance=self.tolerance(0), note=note)

    def jetgraph(self, order: int) -> Contestant:
        """The two stages of the traced graph on a series."""

        def work() -> Tensor:
            with torch.no_grad():
                value: Any = jg.Series.variate(self.x, self.v, order)
                for stage in self.graph.stream.stages[:2]:
                    value = self.run.through(stage.region, value, order)
                return value.coefficient(order)

        def error(found: Tensor) -> float:
            assert found.dtype == self.dtype
            return oracle.distance(found, self.coefficients[order])

        return Contestant(
            "jetgraph", "jetgraph", work, error, tolerance=self.tolerance(order), prepare=lambda: self.run
        )

    @cached_property
    def graph(self) -> jg.ResidualGraph:
        return models.traced(self.setting, self.dtype)

    @cached_property
    def run(self) -> Forward:
        """A pass that has what the block reads besides the stream."""
        run = self.graph.run(input_ids=self.ids)
        with torch.no_grad():
            for stage in self.graph.stream.stages[:2]:
                run.side(stage.region)
        return run


def _tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


BENCHMARK = Benchmark(
    "precision",
    "Taylor coefficients of a block in half precision",
    "As `jets`, in three dtypes. Floor: the model's own block in the same dtype on k + 1 times the rows. Errors are "
    "against the block with the same rounded weights, centre and direction, interpolated at Chebyshev nodes in "
    "float64: of jetgraph that of coefficient k, relative to coefficient k, and of the floor that of the plain "
    "forward pass. One rounding is at most 4e-3 in bfloat16 and 5e-4 in float16.",
    cases,
)
