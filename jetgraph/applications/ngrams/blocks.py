"""A table's chunk in blocks that stay in a core's cache, and what a softmax needs of each row."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from jetgraph.errors import InputError
from jetgraph.running.memory import is_accelerator, suited

BLOCK = 2**19
"""Cells that are looked at together on a CPU: few enough to stay in a core's cache."""

LARGE_BLOCK = 2**27
"""The same on an accelerator, where each look is a number of launches."""


def blocks(memory: int, logits: Tensor, *, cast: bool = True) -> Iterator[tuple[int, Tensor]]:
    """A chunk in blocks of rows, in float32 at least, with the place of the first row. On a CPU they fit into a cache.

    A quarter of `memory` is there for them: what is looked at, a copy to work on, and masks. Without `cast` they are
    parts of the chunk as it is, of which there is one copy in float32.
    """
    cells = suited(logits.device, cpu=BLOCK, accelerator=LARGE_BLOCK)
    size = max(1, min(cells, memory // (64 if cast else 32)) // logits.shape[1])
    for start in range(0, len(logits), size):
        block = logits[start : start + size]
        yield start, block.to(precise(block.dtype)) if cast else block


def precise(dtype: torch.dtype) -> torch.dtype:
    """The type that scores are computed in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def is_fused(logits: Tensor) -> bool:
    """Log-probabilities are best written out as one: on an accelerator that is one kernel, which reads the logits in
    their own type and writes as much as a difference would. A CPU makes them in its cache; see `row_scales`."""
    return is_accelerator(logits.device)


def finite(largest: Tensor) -> Tensor:
    """The largest values of rows.

    Raises
    ------
    InputError
        One that is not finite.
    """
    if not bool(largest.isfinite().all()):
        raise InputError("the path gives logits that are not finite: check the weights, or take another precision")
    return largest


def row_scales(block: Tensor, work: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """max and log Σ exp of each row.

    Raises
    ------
    InputError
        A maximum that is not finite.
    """
    largest = finite(block.amax(1))
    shifted = torch.sub(block, largest[:, None], out=work[: len(block)] if work is not None else None)
    # Below, exp gives denormal numbers, which processors are ten times slower at; V e^-80 is far from any digit.
    return largest, largest + shifted.clamp_(min=-80).exp_().sum(1).log_()
