"""Composite operators that stay whole: what torch sets up for that in each export, set up once.

`ExportedProgram.run_decompositions({})` keeps linear, gelu and attention whole. For that torch registers 20 kernels for
each of 500 operators before, and takes them away after: 0.1 s whatever the model, as long as all the rest takes for a
small one. Here the tables that torch makes are remembered, and put in place and away as they are.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
import torch._export.utils
import torch.export.exported_program
from torch._subclasses import fake_impls

_Operators = Mapping[Any, Callable[..., Any]]
_Tables = dict[Any, tuple[dict[Any, Any], Any]]
"""By operator: its kernels in Python by dispatch key, and its rule for fake tensors."""


@contextlib.contextmanager
def composites_at_once() -> Iterator[None]:
    """`run_decompositions` without the work that is the same each time; for use within `alone`.

    A version of torch that has not these functions does as it does.
    """
    with contextlib.ExitStack() as stack:
        # Looked for in each namespace of operators; what is found in the first is there in the others.
        stack.enter_context(_replaced(torch._export.utils, "_materialize_cpp_cia_ops", functools.cache))
        stack.enter_context(_replaced(torch.export.exported_program, "_override_composite_implicit_decomp", _Override))
        yield


@contextlib.contextmanager
def _replaced(module: ModuleType, name: str, change: Callable[[Any], Any]) -> Iterator[None]:
    function = getattr(module, name, None)
    if function is not None:
        setattr(module, name, change(function))
    try:
        yield
    finally:
        if function is not None:
            setattr(module, name, function)


class _Override:
    """Torch's context manager that overrides these operators, with what it made of their tables remembered."""

    made: tuple[_Operators, _Tables, _Tables] | None = None
    """What was overridden last with what, and the tables before and within."""

    def __init__(self, own: Callable[[_Operators], contextlib.AbstractContextManager[None]]) -> None:
        self.own = own

    @contextlib.contextmanager
    def __call__(self, operators: _Operators) -> Iterator[None]:
        before = _tables(operators)
        try:
            if _Override.made is not None and _Override.made[:2] == (operators, before):
                _put(_Override.made[2])
                yield
            else:
                with self.own(operators):
                    _Override.made = dict(operators), before, _tables(operators)
                    yield
        finally:
            _put(before)


def _tables(operators: _Operators) -> _Tables:
    return {op: (dict(op.py_kernels), fake_impls.op_implementations_dict.get(op)) for op in operators}


def _put(tables: _Tables) -> None:
    rules = fake_impls.op_implementations_dict
    for op, (kernels, rule) in tables.items():
        op.py_kernels.clear()
        op.py_kernels.update(kernels)
        # What was looked up in the tables before.
        op._dispatch_cache.clear()
        if rule is None:
            rules.pop(op, None)
        else:
            rules[op] = rule
