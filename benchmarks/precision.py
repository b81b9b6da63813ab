"""Accuracy and time of a block's jets in float32, bfloat16 and float16, coefficient by coefficient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks import oracle
from benchmarks.block_jets import Problem
from benchmarks.harness import Benchmark, Case, Contestant, Setting

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def cases(setting: Setting) -> Iterator[Case]:
    """One per dtype and order."""
    for dtype in DTYPES:
        problem = Problem(setting, dtype)
        name = str(dtype).removeprefix("torch.")
        for order in (0, *setting.orders):
            yield Case(f"{name}, order {order}", [_floor(problem, order), _jetgraph(problem, order)])


def _floor(problem: Problem, order: int) -> Contestant:
    """The plain forward pass, whose result is of order 0."""
    return replace(problem.forward(order), tolerance=_tolerance(problem.dtype, 0))


def _jetgraph(problem: Problem, order: int) -> Contestant:
    """Coefficient `order` alone is compared."""

    def error(found: Sequence[Tensor]) -> float:
        assert found[order].dtype == problem.dtype
        return oracle.distance(found[order], problem.coefficients[order])

    return replace(problem.jetgraph(order), error=error, tolerance=_tolerance(problem.dtype, order))


def _tolerance(dtype: torch.dtype, order: int) -> float:
    """Half precision: every op rounds each coefficient by half an eps of its own, and coefficient k feels an earlier
    error in each of its k + 1 factors. Float32: the sums inside matrix products count too."""
    return 1e-5 if dtype == torch.float32 else 2 * (order + 1) * torch.finfo(dtype).eps


BENCHMARK = Benchmark(
    "precision",
    "Taylor coefficients of a block in half precision",
    "As `jets`, in three dtypes. Floor: the model's own block in the same dtype on k + 1 times the rows. Errors are "
    "against the block with the same rounded weights, centre and direction, interpolated at Chebyshev nodes in "
    "float64: of jetgraph that of coefficient k, relative to coefficient k, and of the floor that of the plain "
    "forward pass. One rounding is at most 4e-3 in bfloat16 and 5e-4 in float16.",
    cases,
)
