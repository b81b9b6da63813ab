"""What the program of a model depends on, besides the values of its weights, as plain text.

Two models with one fingerprint have the same modules of the same classes, whose source files have not been touched in
between, with the same attributes (among them the config), and tensors of the same shapes, types and ties. It is asked
for before a trace is taken from an earlier process, and it is no proof: what a function reads from elsewhere is not
seen. So what it finds is checked against the model, and what it cannot describe has no fingerprint.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import os
import sys
import types
from collections import deque
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def fingerprint(*values: Any) -> str | None:
    """The SHA-256 of everything that these values are but the numbers in their tensors, in hexadecimal digits.

    Parameters
    ----------
    values
        Modules, functions, and plain values.

    Returns
    -------
    str | None
        None for a module with hooks, and for what holds something that cannot be described: a class that was typed into
        a session, an object of C, a tensor that is no plain one.
    """
    look = _Look()
    try:
        described = [look.described(value) for value in values]
    except _UnknownError:
        return None
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


class _UnknownError(Exception):
    """A value that cannot be described."""


@cache
def stamp(path: str | Path) -> tuple[int, int]:
    """Bytes of a file, and the time of its last change in nanoseconds since 1970; as they are at the first look."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


class _Look:
    """A look at everything that a model holds. What is met again is the number of its first time."""

    def __init__(self) -> None:
        # The objects themselves, so that no other one gets the id.
        self._seen: dict[int, tuple[int, Any]] = {}

    def described(self, value: Any) -> Any:
        """What a value is, as lists and texts."""
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            return [type(value).__name__, repr(value)]
        if isinstance(value, torch.dtype | torch.device | torch.layout | enum.Enum):
            return repr(value)
        if id(value) in self._seen:
            return ["again", self._seen[id(value)][0]]
        self._seen[id(value)] = len(self._seen), value
        if isinstance(value, type):
            return _code(value)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, dict):
            return ["dict", [[self.described(key), self.described(item)] for key, item in value.items()]]
        if isinstance(value, list | tuple | deque):
            return [type(value).__name__, [self.described(item) for item in value]]
        if isinstance(value, set | frozenset):
            return ["set", sorted(json.dumps(self.described(item)) for item in value)]
        if isinstance(value, functools.partial):
            return ["partial", *map(self.described, (value.func, value.args, value.keywords))]
        if isinstance(value, types.MethodType):
            return ["method", self.described(value.__func__), self.described(value.__self__)]
        if isinstance(value, types.FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return [_code(value), self.described(value.__defaults__), self.described(cells)]
        if isinstance(value, types.BuiltinFunctionType | torch._ops.OpOverload | torch._ops.OpOverloadPacket):
            return str(value)
        if isinstance(value, types.ModuleType):
            return value.__name__
        return self._object(value)

    def _tensor(self, value: Tensor) -> Any:
        if type(value) not in (Tensor, nn.Parameter) or is_traceable_wrapper_subclass(value):
            raise _UnknownError
        return [type(value).__name__, str(value.dtype), str(value.device), value.requires_grad, list(value.shape)]

    def _object(self, value: Any) -> Any:
        """A module, a config, and whatever else is a class with attributes."""
        attributes = getattr(value, "__dict__", None)
        if not isinstance(attributes, dict) or hasattr(type(value), "__slots__"):
            raise _UnknownError
        if isinstance(value, nn.Module) and any(attributes[name] for name in _HOOKS):
            raise _UnknownError
        kinds = _lineage(type(value))
        # Python's hashes are other ones in each process.
        lasting = {name: item for name, item in attributes.items() if not name.endswith("_hash")}
        return [kinds, [[name, self.described(item)] for name, item in lasting.items()]]


@cache
def _lineage(kind: type) -> list[Any]:
    """A class and those that it inherits from."""
    return [_code(above) for above in kind.__mro__[:-1]]


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""What else runs when a module is called."""


def _code(value: Any) -> Any:
    """A class or function by its name and the file that it is written in."""
    module = sys.modules.get(value.__module__ or "")
    file = getattr(module, "__file__", None)
    if module is None or (file is None and value.__module__ != "builtins"):
        raise _UnknownError
    return [value.__module__, value.__qualname__, *(() if file is None else stamp(file))]
