"""What a model's code reads besides inputs and weights, as plain values that can be held against each other later.

That is, of each module, its class, its hooks, its submodules, and those of its attributes that the code asks for by
name (see `jetgraph.tracing.ran`), as far as they are numbers, texts, functions, containers of such, or objects with
attributes, such as a config; and of each class the methods that ran, and its values.
"""

from __future__ import annotations

import dis
import enum
import functools
import inspect
import sys
import types
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_modules
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

DEEPEST = 4
"""Containers and objects inside each other, from a module on, that are looked into."""
MOST = 1024
"""Entries of a container that is looked into."""

HOOKS = {"_forward_hooks": "forward hooks", "_forward_pre_hooks": "forward pre-hooks"}
GLOBAL_HOOKS = {"_global_forward_hooks": "forward hooks", "_global_forward_pre_hooks": "forward pre-hooks"}
"""Those of all modules, by the name that torch has for them."""
OWN = frozenset(vars(nn.Module()))
"""What every module holds, of which hooks and submodules alone are code."""
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Modules whose submodules have no names that their code knows."""
FOLLOWED = (nn.Module, Tensor, torch.device, torch.dtype)
"""What is looked at elsewhere, or follows the model when it moves."""
PLAIN = (type(None), bool, int, float, complex, str, bytes, enum.Enum, type)
BUILT_IN = (types.BuiltinFunctionType, torch._ops.OpOverload, torch._ops.OpOverloadPacket)


class Asked:
    """The names that a model's code asks for.

    Parameters
    ----------
    codes
        What ran.
    named
        What it names; None where that is not known.
    changed
        What a run changes, such as a counter: it is no part of the code.
    written
        What other runs may change, such as a length up to which there is a table.
    functions
        By module of Python's, the names by which functions of it are called.
    """

    def __init__(
        self,
        codes: frozenset[types.CodeType],
        named: frozenset[str] | None,
        changed: frozenset[str] = frozenset(),
        written: frozenset[str] = frozenset(),
        functions: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.codes, self.written, self.functions = codes, written, functions or {}
        self._named, self._changed = named, changed

    def __contains__(self, name: str) -> bool:
        return (self._named is None or name in self._named) and name not in self._changed


EVERYTHING = Asked(frozenset(), None)


class Absent:
    """In the place of what one of two models does not have."""

    def __repr__(self) -> str:
        return "nothing"


ABSENT = Absent()


@dataclass(frozen=True)
class Function:
    """A function by its code, and what is bound to it."""

    name: str
    package: str
    code: types.CodeType
    bound: Any


@dataclass(frozen=True, eq=False)
class Facts:
    """What counts of a model."""

    modules: Mapping[str, Mapping[str, Any]]
    """By path, and then by what it is."""
    classes: Mapping[type, Mapping[str, Any]]
    """Methods and values, by class and name."""
    hooks: Mapping[str, Any]
    """Those of all modules."""
    functions: Mapping[str, Mapping[str, Any]]
    """By module of Python's and name."""


def described(model: nn.Module, asked: Asked) -> Facts:
    """What counts of a model as it is now."""
    known: dict[int, tuple[Any, Any]] = {}
    modules: dict[str, dict[str, Any]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        facts: dict[str, Any] = {"class": kind_of(module), "submodules": _children(module, asked)}
        for held, what in HOOKS.items():
            facts[what] = _hooks(vars(module)[held], asked, known)
        for name in names_of(module, asked):
            value = _forward(module) if name == "forward" else _described(vars(module)[name], asked, known, 0)
            if value is not ABSENT:
                facts[f".{name}"] = value
        modules[path] = facts
    kinds = dict.fromkeys(facts["class"] for facts in modules.values())
    classes = {kind: {name: member(kind, name) for name in members(kind, asked)} for kind in kinds}
    every = {what: _hooks(vars(of_modules)[held], asked, known) for held, what in GLOBAL_HOOKS.items()}
    functions = {
        file: {name: member(sys.modules[file], name) for name in names}
        for file, names in asked.functions.items()
        if file in sys.modules
    }
    return Facts(modules, classes, every, functions)


def kind_of(module: nn.Module) -> type:
    """The class of a module; of one whose weights are made by parametrizations, that of before."""
    return type_before_parametrizations(module) if is_parametrized(module) else type(module)


def names_of(module: nn.Module, asked: Asked) -> list[str]:
    """Names of a module's attributes that count."""
    return [name for name in vars(module) if name not in OWN and (name in asked or name == "forward")]


def members(kind: type, asked: Asked) -> list[str]:
    """Names of the methods of a class that ran, and of plain values in its body that code asks for."""
    found = dict[str, None]()
    for above in kind.__mro__:
        if above in (nn.Module, object):
            continue
        for name, value in vars(above).items():
            function = value.fget if isinstance(value, property) else value
            if isinstance(function, types.FunctionType):
                counts = has_run(function, asked.codes)
            else:
                counts = above.__module__.partition(".")[0] != "torch" and type(value) in PLAIN and name in asked
            if counts and not name.startswith("__"):
                found[name] = None
    return list(found)


def has_run(function: types.FunctionType, codes: Collection[types.CodeType]) -> bool:
    """A function, and what it is wrapped around, is among what ran: the code of a decorator is that of all that it
    decorates.
    """
    within = getattr(inspect.unwrap(function), "__code__", None)
    return function.__code__ in codes and (within is None or within in codes)


def member(kind: Any, name: str) -> Any:
    """What a class, or a module of Python's, has under a name."""
    value = getattr(kind, name, ABSENT)
    return _described(value.fget if isinstance(value, property) else value, EVERYTHING, {}, 1)


def _children(module: nn.Module, asked: Asked) -> tuple[str, ...]:
    """Names of the submodules that there are: all that a container has, and those that code asks for."""
    children = (name for name, child in module._modules.items() if child is not None)
    if isinstance(module, CONTAINERS):
        return tuple(children)
    return tuple(sorted(name for name in children if name in asked and name != "parametrizations"))


def _hooks(hooks: Mapping[int, Any], asked: Asked, known: dict[int, tuple[Any, Any]]) -> tuple[Any, ...]:
    """Hooks without those with which torch counts operators, say, which change nothing."""
    return tuple(_described(hook, asked, known, 1) for hook in hooks.values() if not _is_torchs(hook))


def _is_torchs(hook: Any) -> bool:
    """torch's own, but for those that make a weight anew, as pruning does."""
    package = package_of(hook)
    return package.partition(".")[0] == "torch" and not package.startswith("torch.nn.utils")


def package_of(function: Any) -> str:
    """The module of Python's that a function or an object's class is written in."""
    function = function.__func__ if isinstance(function, types.MethodType) else function
    return getattr(function, "__module__", None) or type(function).__module__


def _forward(module: nn.Module) -> Any:
    """A module's own `forward`; nothing for one of accelerate's, which stands before that of the class."""
    own = vars(module)
    function, hook = own["forward"], own.get("_hf_hook")
    if hook is not None:
        hooks = getattr(hook, "hooks", [hook])
        if others := [type(each) for each in hooks if package_of(each).partition(".")[0] != "accelerate"]:
            return tuple(others)
        function = own.get("_old_forward", function)
    function = getattr(function, "__func__", function)
    return ABSENT if function is kind_of(module).forward else _described(function, EVERYTHING, {}, 1)


def _described(value: Any, asked: Asked, known: dict[int, tuple[Any, Any]], depth: int) -> Any:
    """What a value is, in plain values that compare by what they hold."""
    if isinstance(value, (*PLAIN, *BUILT_IN)):
        return value
    if isinstance(value, FOLLOWED) or depth > DEEPEST:
        return ABSENT
    if id(value) not in known:
        # What holds itself is met again inside. The value is held so that no other one gets the id.
        known[id(value)] = value, ABSENT
        known[id(value)] = value, _inside(value, asked, known, depth)
    return known[id(value)][1]


def _inside(value: Any, asked: Asked, known: dict[int, tuple[Any, Any]], depth: int) -> Any:
    within = functools.partial(_described, asked=asked, known=known, depth=depth + 1)
    if isinstance(value, types.FunctionType):
        return Function(value.__qualname__, value.__module__ or "", value.__code__, within(bound(value)))
    if isinstance(value, types.MethodType):
        return within(value.__func__)
    if isinstance(value, functools.partial):
        return within((value.func, value.args, value.keywords))
    if isinstance(value, dict | list | tuple | deque | set | frozenset):
        return _contents(value, within) if len(value) <= MOST else ABSENT
    own = getattr(value, "__dict__", None)
    attributes = own if isinstance(own, dict) else {}
    found = {f".{name}": within(each) for name, each in attributes.items() if name in asked}
    return {"class": type(value), **{name: each for name, each in found.items() if each is not ABSENT}}


def _contents(value: Any, within: Any) -> Any:
    if isinstance(value, dict):
        return {repr(key): within(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return frozenset(each for each in value if isinstance(each, PLAIN))
    return tuple(map(within, value))


def bound(function: types.FunctionType) -> tuple[Any, ...]:
    """The values of defaults, and what a function holds of the one around it, unless it changes that.

    Nothing that can be written to: a hook that records keeps there what it has seen.
    """
    code = function.__code__.co_code
    cells = () if _STORE in code[::2] else tuple(map(_held, function.__closure__ or ()))
    values = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *cells)
    return tuple(value for value in values if isinstance(value, _FIXED))


_FIXED = (*PLAIN, *BUILT_IN, types.FunctionType, types.MethodType, functools.partial, tuple, frozenset)
_STORE = dis.opmap["STORE_DEREF"]


def _held(cell: types.CellType) -> Any:
    """What is in a variable of another function, which may not have come to it yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def moved(before: Facts, now: Facts) -> frozenset[str]:
    """Names of attributes that differ in two descriptions of a model."""
    pairs = ((facts, now.modules[path]) for path, facts in before.modules.items() if path in now.modules)
    return frozenset(name for one, other in pairs for name in _moved("", one, other))


def _moved(attribute: str, was: Any, now: Any) -> Iterable[str]:
    if was is now or was == now:
        return
    if isinstance(was, dict) and isinstance(now, dict) and "class" in was:
        for name in was | now:
            yield from _moved(name.removeprefix("."), was.get(name, ABSENT), now.get(name, ABSENT))
    else:
        yield attribute
