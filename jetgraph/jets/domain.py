"""Checks of values: a centre must lie where the function has a Taylor expansion, a row inside its table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor

from jetgraph.errors import DomainError, JetGraphError, amount

Found = TypeVar("Found")

_deferred: ContextVar[tuple[type[JetGraphError], list[Tensor]] | None] = ContextVar("deferred", default=None)


_passing: ContextVar[bool] = ContextVar("passing", default=False)
"""Demands of what shows are let pass."""


@contextmanager
def deferred(among: type[JetGraphError] = JetGraphError) -> Iterator[list[Tensor]]:
    """Collect the outcomes of demands, each a boolean of no dimension, without looking at them; of those that would
    raise such an error.
    """
    checks: list[Tensor] = []
    token = _deferred.set((among, checks))
    try:
        yield checks
    finally:
        _deferred.reset(token)


def has_passed() -> bool:
    """What shows is let pass now."""
    return _passing.get()


@contextmanager
def shown(passing: bool = True) -> Iterator[None]:
    """Let pass what shows in what comes of it (see `demand`), or no more."""
    token = _passing.set(passing)
    try:
        yield
    finally:
        _passing.reset(token)


def looked_at_once(run: Callable[[], Found], openly: Callable[[], Found] | None = None) -> Found:
    """What `run` gives, its demands on centres looked at together: a device is waited for once, not at every operator.

    Where one does not hold, it is run again, openly, and says where; or another way is gone, which does the same.
    Within another such run, that one looks.
    """
    waiting = _deferred.get()
    if waiting is not None and waiting[0] is DomainError:
        return run()
    outcome: Any = None
    failed: Exception | None = None
    with deferred(DomainError) as checks:
        try:
            outcome = run()
        except Exception as error:
            failed = error
    if checks and not bool(torch.stack(checks).all()):
        return (openly or run)()
    if failed is not None:
        raise failed
    return outcome


def leave(checks: Iterable[Tensor]) -> None:
    """Outcomes of demands that were collected, for the run that looks at all of them."""
    waiting = _deferred.get()
    assert waiting is not None, "nobody looks at these"
    waiting[1].extend(checks)


def demand(
    value: Tensor,
    holds: Callable[[Tensor], Tensor],
    need: str,
    error: type[JetGraphError] = DomainError,
    *,
    shows: bool = False,
) -> None:
    """Raise `error` unless `holds(value)` is true everywhere; `need` says what was expected of the value.

    Values that nobody can look at pass. It `shows` where what comes of a value that does not fit, at order 0 or above,
    is infinite or no number.
    """
    if (shows and _passing.get()) or not can_be_looked_at(value):
        return
    value = value.detach()
    fine = holds(value)
    waiting = _deferred.get()
    if waiting is not None and issubclass(error, waiting[0]):
        waiting[1].append(fine.all())
        return
    if not bool(fine.all()):
        wrong = value[~fine]
        raise error(
            f"{need}, but {wrong.numel()} of {amount(fine.numel(), 'value')} are not (such as {wrong[0].item():g})"
        )


def can_be_looked_at(value: Tensor) -> bool:
    """There are values, which are no meta tensor's, and no stand-ins of a compiler or vmap."""
    unseen = value.is_meta or isinstance(value, FakeTensor) or value.numel() == 0 or torch.compiler.is_compiling()
    return not unseen and not is_functorch_wrapped_tensor(value)


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
