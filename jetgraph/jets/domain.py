"""Checks of values: a centre must lie where the function has a Taylor expansion, a row inside its table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor

from jetgraph.errors import DomainError, JetGraphError

_deferred: ContextVar[list[Tensor] | None] = ContextVar("deferred", default=None)


@contextmanager
def deferred() -> Iterator[list[Tensor]]:
    """Collect the outcomes of demands, each a boolean of no dimension, without looking at them."""
    checks: list[Tensor] = []
    token = _deferred.set(checks)
    try:
        yield checks
    finally:
        _deferred.reset(token)


def demand(
    value: Tensor, holds: Callable[[Tensor], Tensor], need: str, error: type[JetGraphError] = DomainError
) -> None:
    """Raise `error` unless `holds(value)` is true everywhere; `need` says what was expected of the value.

    Values that nobody can look at (meta tensors, a compiler's or vmap's stand-ins) pass.
    """
    if value.is_meta or isinstance(value, FakeTensor) or value.numel() == 0 or torch.compiler.is_compiling():
        return
    if is_functorch_wrapped_tensor(value):
        return
    value = value.detach()
    fine = holds(value)
    checks = _deferred.get()
    if checks is not None:
        checks.append(fine.all())
        return
    if not bool(fine.all()):
        wrong = value[~fine]
        raise error(f"{need}, but {wrong.numel()} of {fine.numel()} values are not (such as {wrong[0].item():g})")


def positive(value: Tensor) -> Tensor:
    """x > 0; of a complex value that it is off the cut along x ≤ 0."""
    return (value.imag != 0) | (value.real > 0) if value.is_complex() else value > 0


def nonzero(value: Tensor) -> Tensor:
    """x ≠ 0"""
    return value != 0


def inside_one(value: Tensor) -> Tensor:
    """|x| < 1"""
    return value.abs() < 1


def above_one(value: Tensor) -> Tensor:
    """x > 1"""
    return value > 1
