"""The types that a graph computes in are those of its own: a surrounding `torch.autocast` has no say in them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_DEVICES = ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "maia", "xla", "privateuseone")


@contextmanager
def own_types() -> Iterator[None]:
    """Without the autocast of the caller, on any device; also a decorator.

    What a model's own code casts is written in its graph. An autocast around a call would cast the operators of the
    graph, and the arithmetic on their values, once more: other numbers than those of the model that was traced.
    """
    with ExitStack() as stack:
        if torch._C._is_any_autocast_enabled():
            for device in _DEVICES:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
        yield


def summed_in(dtype: torch.dtype) -> torch.dtype:
    """The type in which values of a type are squared, compared and summed.

    float32 for half precision, which has three digits, and float64 for all others, of which differences of what is
    nearly equal are read.
    """
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else torch.float64


def rounding(number: int, dtype: torch.dtype) -> float:
    """The largest length that so many equal values can have once their mean is taken off, over the size of one."""
    return 4 * torch.finfo(dtype).eps * math.sqrt(number)
