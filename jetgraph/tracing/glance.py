"""Whether a model still holds what it held, at a glance: value by value, without describing all of it again.

Where it does, its code is what it was. Where it does not, something may have changed, and is to be described anew.
"""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from operator import attrgetter, itemgetter
from typing import Any

from torch import nn
from torch.nn.modules import module as of_modules

from jetgraph.tracing.facts import (
    BUILT_IN,
    DEEPEST,
    FOLLOWED,
    GLOBAL_HOOKS,
    HOOKS,
    MOST,
    PLAIN,
    Asked,
    bound,
    kind_of,
    members,
    names_of,
)

_Still = Callable[[Any], bool]
"""Whether an object is like the one that stood in its place."""
_Held = tuple[int, Callable[[Any], Any], tuple[Any, ...], Callable[[Any], Any], list[_Still]]
"""How many names a dict has; what takes values of some, which are plain, and these; what takes others, and what looks
at each."""


class Glance:
    """What a model held. Plain values are kept, and classes; nothing else is kept alive."""

    def __init__(self, model: nn.Module, asked: Asked) -> None:
        self._rows: list[tuple[int, str, type, list[tuple[str, list[Any]]], _Held]] = []
        """Of each module, whose submodule it is and under which name; and what it held."""
        self._asked = asked
        self._known: dict[int, tuple[Any, _Still]] = {}
        self._seen: set[tuple[int, int]] = set()
        """Objects that have been looked at in this glance, and by what."""
        kinds: dict[type, None] = {}
        stack: list[tuple[nn.Module, int, str]] = [(model, -1, "")]
        while stack:
            module, above, name = stack.pop()
            stack += [(child, len(self._rows), key) for key, child in module._modules.items() if child is not None]
            kinds[kind_of(module)] = None
            own = vars(module)
            # Almost all modules have no hooks, and most have no submodules, which is told with their values.
            empty = [held for held in (*HOOKS, "_modules") if not own[held]]
            full = [(held, [*own[held]]) for held in (*HOOKS, "_modules") if own[held]]
            self._rows.append((above, name, type(module), full, self._held(own, [*names_of(module, asked), *empty])))
        self._known.clear()
        self._members = [(kind, _members(kind, names)) for kind in kinds if (names := members(kind, asked))]
        self._members += [
            (module, _members(module, [*names]))
            for file, names in asked.functions.items()
            if (module := sys.modules.get(file)) is not None
        ]
        self._hooks = _global_hooks()

    def still(self, model: nn.Module) -> bool:
        """The model holds what it held."""
        self._seen.clear()
        try:
            return (
                self._modules_still(model)
                and _global_hooks() == self._hooks
                and all(still(holder) for holder, still in self._members)
            )
        except Exception:  # whatever comes of comparing what a user has put there
            return False

    def _modules_still(self, model: nn.Module) -> bool:
        # One loop, with few calls: it is run before all that a graph computes.
        below: list[Any] = []
        for above, name, kind, full, (number, get, values, get_others, others) in self._rows:
            module = model if above < 0 else below[above][name]
            own = module.__dict__
            if type(module) is not kind or len(own) != number or get(own) != values:
                return False
            for held, keys in full:
                # The number of a hook is given once.
                if [*own[held]] != keys:
                    return False
            if others and not self._others_still(get_others(own), others):
                return False
            below.append(own["_modules"])
        return True

    def _others_still(self, values: tuple[Any, ...], others: list[_Still]) -> bool:
        for value, still in zip(values, others, strict=True):
            if (both := (id(value), id(still))) not in self._seen:
                self._seen.add(both)
                if not still(value):
                    return False
        return True

    def _held(self, own: Mapping[str, Any], names: list[str]) -> _Held:
        rest = [name for name in names if not isinstance(own[name], FOLLOWED)]
        plain = [name for name in rest if _is_plain(own[name], 0)]
        others = [name for name in rest if name not in plain]
        values = tuple(_copied(own[name]) for name in plain)
        return len(own), _getter(plain), values, _getter(others), [self._still(own[name]) for name in others]

    def _still(self, value: Any) -> _Still:
        """What looks at an object that is no plain value, such as a config."""
        if id(value) not in self._known:
            # What holds itself is met again inside, and is looked at once.
            self._known[id(value)] = value, lambda _: True
            self._known[id(value)] = value, self._made(value)
        return self._known[id(value)][1]

    def _made(self, value: Any) -> _Still:
        if isinstance(value, BUILT_IN):
            return lambda other: other is value
        if isinstance(value, types.FunctionType):
            code, values = value.__code__, bound(value)
            if not all(map(_is_plain, values, [0] * len(values))):
                return _never
            return lambda other: type(other) is types.FunctionType and other.__code__ is code and bound(other) == values
        own, kind = getattr(value, "__dict__", None), type(value)
        if not isinstance(own, dict) or isinstance(value, (*_CONTAINERS, types.MethodType)):
            return _never
        number, get, values, get_others, others = self._held(own, [name for name in own if name in self._asked])

        def still(other: Any) -> bool:
            held = other.__dict__
            return (
                type(other) is kind
                and len(held) == number
                and get(held) == values
                and (not others or self._others_still(get_others(held), others))
            )

        return still


_CONTAINERS = (dict, OrderedDict, list, tuple, set, frozenset)


def _never(_: Any) -> bool:
    """What cannot be told at a glance."""
    return False


def _members(holder: Any, names: list[str]) -> _Still:
    """What looks at a class, or a module of Python's: it has the same values, and functions of the same code."""
    get: Any = attrgetter(*names) if len(names) > 1 else lambda holder: (getattr(holder, names[0]),)
    values = get(holder)
    functions = [value for value in values if isinstance(value, types.FunctionType)]
    codes = [function.__code__ for function in functions]
    return lambda holder: get(holder) == values and [function.__code__ for function in functions] == codes


def _global_hooks() -> list[int]:
    return [number for name in GLOBAL_HOOKS for number in vars(of_modules)[name]]


def _getter(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) > 1:
        return itemgetter(*names)
    return (lambda own: (own[names[0]],)) if names else (lambda own: ())


def _is_plain(value: Any, depth: int) -> bool:
    """It holds nothing but plain values."""
    if isinstance(value, PLAIN):
        return True
    if type(value) not in _CONTAINERS or depth > DEEPEST or len(value) > MOST:
        return False
    return all(_is_plain(each, depth + 1) for each in (value.values() if isinstance(value, dict) else value))


def _copied(value: Any) -> Any:
    """A plain value that does not change with this one."""
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return type(value)(map(_copied, value)) if type(value) in _CONTAINERS else value
