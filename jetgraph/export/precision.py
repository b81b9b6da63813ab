"""The types and devices that a graph computes in are those of its own: a surrounding `torch.autocast`, or a default
device, has no say in them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import torch

_DEVICES = ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "maia", "xla", "privateuseone")

_CALLERS: ContextVar[torch.device | None] = ContextVar("the caller's default device", default=None)
"""The default device that `own_types` has taken out of force; None where that was the CPU."""


@contextmanager
def own_types() -> Iterator[None]:
    """Without the autocast of the caller, on any device, and without the caller's default device; also a decorator.

    What a model's own code casts is written in its graph. An autocast around a call would cast the operators of the
    graph, and the arithmetic on their values, once more: other numbers than those of the model that was traced. So are
    the devices: what is made of nothing is made on the CPU here, and brought to the model where it is for that.
    """
    with ExitStack() as stack:
        # A default device is a mode of functions; without any, nothing is to be asked.
        if torch._C._len_torch_function_stack() and (device := torch.get_default_device()).type != "cpu":
            stack.callback(_CALLERS.reset, _CALLERS.set(device))
            stack.enter_context(torch.device("cpu"))
        if torch._C._is_any_autocast_enabled():
            for device in _DEVICES:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def callers_device() -> Iterator[None]:
    """With the default device of the caller again, inside `own_types`: for code of the model itself, which may make
    tensors where the caller has them made."""
    device = _CALLERS.get()
    with ExitStack() as stack:
        if device is not None:
            stack.enter_context(device)
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
