"""Derivatives that code takes as it runs, such as those of an energy that a layer goes down."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


@contextmanager
def derivatives() -> Iterator[list[bool]]:
    """One for each derivative that code takes (`torch.autograd.grad`, `torch.func.grad`); for use within `alone`."""
    taken: list[bool] = []
    backward = torch.autograd._engine_run_backward

    def noted(*args: Any, **kwargs: Any) -> Any:
        taken.append(True)
        return backward(*args, **kwargs)

    with mock.patch.object(torch.autograd, "_engine_run_backward", noted):
        yield taken


def takes_derivatives(run: Callable[[], Any]) -> bool:
    """Code that may take derivatives takes some, and runs; for use within `alone`."""
    try:
        with torch.enable_grad(), derivatives() as taken:
            run()
    except Exception:  # whatever it raises: then there is nothing to write out
        return False
    return bool(taken)


@contextmanager
def own_derivatives(module: nn.Module) -> Iterator[None]:
    """A module whose code may take derivatives, though none is taken of what it returns; for use within `alone`."""
    forward = module.forward

    @functools.wraps(forward)
    def derived(*args: Any, **kwargs: Any) -> Any:
        with torch.enable_grad():
            return pytree.tree_map_only(Tensor, Tensor.detach, forward(*args, **kwargs))

    with mock.patch.object(module, "forward", derived):
        yield
