"""Derivatives that code takes as it runs, such as those of an energy that a layer goes down; functions that it maps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal
from unittest import mock

import torch
import torch._functorch.vmap
from torch import Tensor, nn
from torch._functorch import eager_transforms
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


@contextmanager
def maps() -> Iterator[list[bool]]:
    """One for each function that code maps over a dimension (`torch.vmap`, `torch.func.jacfwd`), or of which it takes
    a slope on the way forwards (`torch.func.jvp`); for use within `alone`.
    """
    made: list[bool] = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def entered(*args: Any, **kwargs: Any) -> Any:
            made.append(True)
            return function(*args, **kwargs)

        return entered

    places = ((torch._functorch.vmap, "_vmap_increment_nesting"), (eager_transforms, "_jvp_increment_nesting"))
    with ExitStack() as patched:
        for module, name in places:
            patched.enter_context(mock.patch.object(module, name, noted(getattr(module, name))))
        yield made


def transforms(run: Callable[[], Any]) -> Literal["derivatives", "maps", ""]:
    """What code that may take derivatives does with functions, if it runs; for use within `alone`."""
    try:
        with torch.enable_grad(), derivatives() as taken, maps() as mapped:
            run()
    except Exception:  # whatever it raises: then there is nothing to write out
        return ""
    return "derivatives" if taken else "maps" if mapped else ""


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
