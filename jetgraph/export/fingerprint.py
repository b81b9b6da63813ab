"""What the program of a model depends on, besides the values of its weights, as plain text.

Two models with one fingerprint have the same modules of the same classes, whose source files have not been touched in
between, with the same attributes (among them the config), and tensors of the same shapes, types and ties. It is asked
for before a trace is taken from an earlier process, and it is no proof: what a function reads of the environment, say,
is not seen. So what it finds is checked against the model, and what it cannot describe has no fingerprint.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import hashlib
import json
import os
import re
import sys
import types
from collections import OrderedDict, deque
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from jetgraph.export.watching import Describe, Held, Watch, is_kind, of_tensor


def fingerprint(*values: Any) -> str | None:
    """The SHA-256 of everything that these values are but the numbers in their tensors, in hexadecimal digits.

    Parameters
    ----------
    values
        Modules, functions, and plain values.

    Returns
    -------
    str | None
        None where there is no `description`.
    """
    described = description(*values)
    return None if described is None else hashlib.sha256(json.dumps(described).encode()).hexdigest()


def description(*values: Any) -> list[Any] | None:
    """Everything that these values are but the numbers in their tensors, as lists and texts.

    Parameters
    ----------
    values
        Modules, functions, and plain values.

    Returns
    -------
    list | None
        None for a module with hooks, where there are hooks of all modules, and for what holds something that cannot be
        described: a class that was typed into a session, an object of C, a tensor that is no plain one.
    """
    if any(getattr(nn.modules.module, f"_global{name}") for name in _HOOKS):
        return None
    look = _Look()
    try:
        return [look.described(value) for value in values]
    except (_UnknownError, RecursionError):
        return None


def watched(value: Any) -> tuple[list[Any] | None, Watch | None]:
    """The `description` of a module, and what tells whether it is still the same; None where nothing does."""
    look = _Look()
    if any(getattr(nn.modules.module, f"_global{name}") for name in _HOOKS):
        return None, None
    try:
        described = [look.described(value)]
        return described, Watch(value, look.met, _holding)
    except (_UnknownError, RecursionError):
        return None, None
    except TypeError:
        return described, None


def is_watched(value: Any, watch: Watch) -> bool:
    """A module is as it was when it was described."""
    return not any(getattr(nn.modules.module, f"_global{name}") for name in _HOOKS) and watch.still(value)


class _UnknownError(Exception):
    """A value that cannot be described."""


def stamp(path: str | Path) -> tuple[int, int]:
    """Bytes of a file, and the time of its last change in nanoseconds since 1970."""
    state = os.stat(path)
    return state.st_size, state.st_mtime_ns


first_stamp = cache(stamp)
"""The stamp of a file as it was at the first look: that of the code which runs, where a file changes later."""


class _Look:
    """A look at everything that a model holds. What is met again is the number of its first time."""

    def __init__(self) -> None:
        # The objects themselves, so that no other one gets the id.
        self._seen: dict[Any, tuple[int, Any]] = {}
        self.met: list[Any] = []
        """All but containers that anything was read of."""

    def described(self, value: Any) -> Any:
        """What a value is, as lists and texts."""
        kind = type(value)
        if kind in _PLAIN:
            return [kind.__name__, repr(value)]
        # Modules hold a dozen of these each, of hooks that they do not have.
        if kind in _CONTAINERS and not value and not getattr(value, "__dict__", None):
            return kind.__name__
        if (before := self._seen.get(id(value))) is not None:
            return ["again", before[0]]
        if isinstance(value, _NAMED):
            return repr(value)
        if isinstance(value, _BUILT_IN):
            return str(value)
        self._seen[id(value)] = len(self._seen), value
        if not isinstance(value, _HOLDING):
            self.met.append(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, _HOLDING):
            return [type(value).__name__, self._content(value), self._attributes(value)]
        if isinstance(value, functools.partial):
            return ["partial", *map(self.described, (value.func, value.args, value.keywords))]
        if isinstance(value, types.MethodType):
            return ["method", self.described(value.__func__), self.described(value.__self__)]
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.ModuleType):
            return value.__name__
        if isinstance(value, re.Pattern):
            return ["pattern", repr(value.pattern), value.flags]
        return self._object(value)

    def _content(self, value: Any) -> Any:
        """What a container holds; of a set in any order."""
        if isinstance(value, dict):
            return [[self.described(key), self.described(item)] for key, item in value.items()]
        if isinstance(value, list | tuple | deque):
            return [self.described(item) for item in value]
        if isinstance(value, set | frozenset):
            return sorted(json.dumps(self.described(item)) for item in value)
        return repr(value)

    def _attributes(self, value: Any) -> Any:
        """What an object holds besides what it is; of a named tuple, a dict or a number that is mostly nothing."""
        return [[name, self.described(item)] for name, item in getattr(value, "__dict__", {}).items()]

    def _tensor(self, value: Tensor) -> Any:
        if type(value) not in (Tensor, nn.Parameter) or is_traceable_wrapper_subclass(value):
            raise _UnknownError
        kind = [type(value).__name__, str(value.dtype), str(value.device), value.requires_grad]
        layout = list(value.stride()) if value.layout is torch.strided else str(value.layout)
        # A single number that is no weight may be read as one by the model's code, and is then part of the program.
        alone = type(value) is Tensor and value.numel() == 1 and value.device.type == "cpu"
        return [*kind, list(value.shape), layout, repr(value.tolist()) if alone else None]

    def _class(self, value: type) -> Any:
        """A class with those that it inherits from, their values, and what is called when its objects are.

        Besides where it is written: somebody may have put another value or function there since.
        """
        own = _own_lineage(value)
        members = [[above.__qualname__, name, self._read(item)] for above in own for name, item in _values(above)]
        names, met = ["forward", "__call__"], set[str]()
        while names:
            if (name := names.pop()) in met:
                continue
            met.add(name)
            for above in own:
                found = vars(above).get(name)
                function = _function_of(found)
                if isinstance(function, types.FunctionType):
                    members.append([above.__qualname__, name, self._read(function)])
                    read, within = _names(function)
                    names += read
                    self.met += within
                elif found is not None and type(found) not in (*_PLAIN, *_PLAIN_CONTAINERS):
                    members.append([above.__qualname__, name, self._read(found)])
        return [[_code(above) for above in value.__mro__[:-1]], members]

    def _function(self, value: types.FunctionType) -> Any:
        """A function: its code, what is bound to it, and what its code reads of its file's names."""
        cells = [_held(cell) for cell in value.__closure__ or ()]
        # What torch has wrapped knows itself by a place in memory, which is another one in each process.
        attributes = {name: each for name, each in value.__dict__.items() if not name.endswith("_id")}
        bound = [self.described(each) for each in (value.__defaults__, value.__kwdefaults__, cells, attributes)]
        code, _ = _program(value.__code__)
        read = [[name, self._read(item)] for name, item in _read_by(value)]
        return [_code(value), code, bound, read]

    def _read(self, value: Any) -> Any:
        """What a function or class finds under a name: all of it; of what is Python's or torch's, and of what cannot
        be described, such as a logger, the kind.
        """
        named = callable(value) and hasattr(value, "__name__") and hasattr(value, "__module__")
        own = value if named else type(value)
        if own is not value or not _is_library(own.__module__):
            seen, met = len(self._seen), len(self.met)
            with contextlib.suppress(_UnknownError):
                return self.described(value)
            while len(self._seen) > seen:
                self._seen.popitem()
            del self.met[met:]
        text = None
        if isinstance(value, types.FunctionType):
            self.met.append(value)
            text = _program(value.__code__)[0]
        return [own.__module__, own.__name__, text]

    def _object(self, value: Any) -> Any:
        """A module, a config, and whatever else is a class with attributes."""
        slots = _slots(type(value))
        attributes = getattr(value, "__dict__", None if not slots else {})
        if not isinstance(attributes, dict):
            raise _UnknownError
        attributes = {name: getattr(value, name) for name in slots if hasattr(value, name)} | attributes
        if isinstance(value, nn.Module) and any(attributes[name] for name in _HOOKS):
            raise _UnknownError
        kinds = self.described(type(value))
        # Python's hashes, which a config may keep of others, are other ones in each process.
        passing = (
            set[str]() if isinstance(value, nn.Module) else {each for each in attributes if each.endswith("_hash")}
        )
        lasting = {name: item for name, item in attributes.items() if name not in passing}
        return [kinds, [[name, self.described(item)] for name, item in lasting.items()]]


_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_PLAIN_CONTAINERS = (list, tuple, dict, set, frozenset)
_CONTAINERS = frozenset({*_PLAIN_CONTAINERS, OrderedDict, deque})
_HOLDING = (*_PLAIN, dict, list, tuple, deque, set, frozenset)
_NAMED = (torch.dtype, torch.device, torch.layout, enum.Enum)


@cache
def _slots(kind: type) -> tuple[str, ...]:
    """The names of what objects of a class hold apart from their `__dict__`, in places of their own."""
    names = list[str]()
    for above in kind.__mro__:
        slots = vars(above).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            private = name.startswith("__") and not name.endswith("__")
            names.append(f"_{above.__name__.lstrip('_')}{name}" if private else name)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


@cache
def _own_lineage(kind: type) -> list[type]:
    """A class and those that it inherits from, without Python's and torch's."""
    return [above for above in kind.__mro__ if above.__module__.partition(".")[0] not in ("builtins", "torch")]


def _function_of(value: Any) -> Any:
    """The function in what a class holds for one."""
    if isinstance(value, property):
        return value.fget
    return value.__func__ if isinstance(value, staticmethod | classmethod) else value


def _values(kind: type) -> list[tuple[str, Any]]:
    """The plain values in the body of a class, and containers, by name."""
    kinds = (*_PLAIN, *_PLAIN_CONTAINERS)
    return [item for item in list(vars(kind).items()) if type(item[1]) in kinds and not item[0].startswith("__")]


def _names(function: types.FunctionType) -> tuple[list[str], list[types.FunctionType]]:
    """The names that a function reads, and those that it is wrapped around; and these functions."""
    names, met, stack = list[str](), list[types.FunctionType](), [function]
    while stack:
        if (one := stack.pop()) not in met:
            met.append(one)
            names += _program(one.__code__)[1]
            stack += [each for each in map(_held, one.__closure__ or ()) if isinstance(each, types.FunctionType)]
    return names, met


def _read_by(function: types.FunctionType) -> list[tuple[str, Any]]:
    """What the code of a function may read of its file's names, and of modules that it finds there, by name."""
    names, found = _program(function.__code__)[1], function.__globals__
    read = [(name, found[name]) for name in names if name in found]
    modules = [value for _, value in read if isinstance(value, types.ModuleType)]
    for module in modules:
        if not _is_library(module.__name__):
            inner = [(name, vars(module)[name]) for name in names if name in vars(module)]
            modules += [value for _, value in inner if isinstance(value, types.ModuleType) and value not in modules]
            read += [(f"{module.__name__}.{name}", value) for name, value in inner]
    return read


def _is_library(module: str | None) -> bool:
    """A module of Python's, torch's or numpy's."""
    return (module or "").partition(".")[0] in _LIBRARIES


_LIBRARIES = frozenset({"torch", "numpy", *sys.stdlib_module_names})


def _held(cell: types.CellType) -> Any:
    """What a function holds of the one around it, which may not have come to it yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


@cache
def _program(code: types.CodeType) -> tuple[str, tuple[str, ...]]:
    """What a function does, as a digest, and the names that it reads; those inside it included."""
    inner = [_program(each) for each in code.co_consts if isinstance(each, types.CodeType)]
    constants = [repr(each) for each in code.co_consts if not isinstance(each, types.CodeType | frozenset)]
    text = [code.co_code.hex(), constants, code.co_names, code.co_varnames, [each for each, _ in inner]]
    digest = hashlib.sha256(json.dumps(text).encode()).hexdigest()
    return digest, tuple(dict.fromkeys([*code.co_names, *(name for _, names in inner for name in names)]))


def _holding(value: Any) -> Describe:
    """What adds to what is held all that a description reads of objects of this one's kind; it is no container."""
    return next((hold for kinds, hold in _HOLD if is_kind(value, kinds)), _hold_object)


def _hold_class(value: type, held: Held) -> None:
    held.facts.append((tuple(map(id, value.__mro__)), value.__module__, value.__qualname__))
    for above in _own_lineage(value):
        held.members(vars(above))


def _hold_function(value: types.FunctionType, held: Held) -> None:
    held.objects.append(value.__code__)
    cells = [_held(cell) for cell in value.__closure__ or ()]
    held.values += (value.__defaults__, value.__kwdefaults__, cells, value.__dict__)
    read = _read_by(value)
    held.facts += (value.__module__, value.__qualname__, [name for name, _ in read])
    held.values += (item for _, item in read)


def _hold_partial(value: functools.partial[Any], held: Held) -> None:
    held.values += (value.func, value.args, value.keywords)


def _hold_method(value: types.MethodType, held: Held) -> None:
    held.objects += (value.__func__, value.__self__)


def _hold_module(value: types.ModuleType, held: Held) -> None:
    held.facts.append(value.__name__)


def _hold_nothing(value: Any, held: Held) -> None:
    """It stays what it is."""


def _hold_object(value: Any, held: Held) -> None:
    """Its class and all its attributes."""
    held.objects.append(type(value))
    held.values += (getattr(value, name, _ABSENT) for name in _slots(type(value)))
    held.values.append(getattr(value, "__dict__", None))


_ABSENT = object()
_BUILT_IN = (types.BuiltinFunctionType, torch._ops.OpOverload, torch._ops.OpOverloadPacket)
_HOLD: tuple[tuple[Any, Describe], ...] = (
    (nn.Module, _hold_object),
    (Tensor, of_tensor),
    (type, _hold_class),
    (types.FunctionType, _hold_function),
    (functools.partial, _hold_partial),
    (types.MethodType, _hold_method),
    (types.ModuleType, _hold_module),
    ((*_BUILT_IN, re.Pattern), _hold_nothing),
)
"""By kind of object, what adds to what is held; the first that fits."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""What else runs when a module is called."""


def _code(value: Any) -> Any:
    """A class or function by its name and the file that it is written in."""
    module = sys.modules.get(value.__module__ or "")
    file = getattr(module, "__file__", None)
    if module is None or (file is None and value.__module__ != "builtins"):
        raise _UnknownError
    try:
        return [value.__module__, value.__qualname__, *(() if file is None else first_stamp(file))]
    except OSError as error:
        # It is within an archive, or gone.
        raise _UnknownError from error
