"""Whether a model still holds what it held, at a glance: value by value, without describing all of it again.

Where it does, its code is what it was. Where it does not, something may have changed, and is to be described anew.
"""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
_Get = Callable[[Any], tuple[Any, ...]]
_DICT, _CODE = attrgetter("__dict__"), attrgetter("__code__")


@dataclass(frozen=True, eq=False)
class _Held:
    """What a dict held: how many names, the plain values of some, and what looks at the values of others."""

    number: int
    get: _Get
    values: tuple[Any, ...]
    others: dict[str, _Still]


class Glance:
    """What a model held. Plain values are kept, and classes; nothing else is kept alive."""

    def __init__(self, model: nn.Module, asked: Asked) -> None:
        self._asked = asked
        self._known: dict[int, tuple[Any, _Still]] = {}
        self._seen: set[tuple[int, int]] = set()
        """Objects that have been looked at in this glance, and by what."""
        modules, self._routes = [model], list[tuple[int, str]]()
        for above, module in enumerate(modules):
            below = [(name, child) for name, child in module._modules.items() if child is not None]
            modules += [child for _, child in below]
            self._routes += [(above, name) for name, _ in below]
        self._types, self._full = [*map(type, modules)], list[tuple[int, str, list[Any]]]()
        held = list[_Held]()
        for at, module in enumerate(modules):
            own = vars(module)
            # Almost all modules have no hooks, and most have no submodules, which is told with their values.
            empty = [name for name in (*HOOKS, "_modules") if not own[name]]
            self._full += [(at, name, [*own[name]]) for name in (*HOOKS, "_modules") if own[name]]
            held.append(self._held(own, [*names_of(module, asked), *empty]))
        self._numbers, self._get = [one.number for one in held], [one.get for one in held]
        self._values = [one.values for one in held]
        others = [(at, name, still) for at, one in enumerate(held) for name, still in one.others.items()]
        # Those of one config one after the other.
        self._others = sorted(others, key=lambda other: id(other[2]))
        self._known.clear()
        kinds: dict[Any, list[str]] = {kind: members(kind, asked) for kind in dict.fromkeys(map(kind_of, modules))}
        files = {file: [*names] for file, names in asked.functions.items() if file in sys.modules}
        holders = [*kinds.items(), *((sys.modules[file], names) for file, names in files.items())]
        self._holders = [(holder, _attributes(names)) for holder, names in holders if names]
        self._members = [get(holder) for holder, get in self._holders]
        functions = (value for values in self._members for value in values)
        self._functions = [value for value in functions if isinstance(value, types.FunctionType)]
        self._codes = [*map(_CODE, self._functions)]
        self._hooks = _global_hooks()

    def still(self, model: nn.Module) -> bool:
        """The model holds what it held."""
        self._seen.clear()
        try:
            return (
                self._modules_still(model)
                and [get(holder) for holder, get in self._holders] == self._members
                and [*map(_CODE, self._functions)] == self._codes
                and _global_hooks() == self._hooks
            )
        except Exception:  # whatever comes of comparing what a user has put there
            return False

    def _modules_still(self, model: nn.Module) -> bool:
        # Few calls, all modules together: it is run before all that a graph computes.
        modules: list[Any] = [model]
        for above, name in self._routes:
            modules.append(modules[above]._modules[name])
        own = [*map(_DICT, modules)]
        if [*map(type, modules)] != self._types or [*map(len, own)] != self._numbers:
            return False
        if [get(one) for get, one in zip(self._get, own, strict=True)] != self._values:
            return False
        for at, name, keys in self._full:
            # The number of a hook is given once.
            if [*own[at][name]] != keys:
                return False
        last = None, None
        for at, name, still in self._others:
            value = own[at][name]
            if value is not last[0] or still is not last[1]:
                if not self._still_one(value, still):
                    return False
                last = value, still
        return True

    def _still_one(self, value: Any, still: _Still) -> bool:
        if (both := (id(value), id(still))) in self._seen:
            return True
        self._seen.add(both)
        return still(value)

    def _held(self, own: Mapping[str, Any], names: list[str]) -> _Held:
        rest = [name for name in names if not isinstance(own[name], FOLLOWED)]
        plain = [name for name in rest if _is_plain(own[name], 0)]
        others = [name for name in rest if name not in plain]
        values = tuple(_copied(own[name]) for name in plain)
        return _Held(len(own), _items(plain), values, {name: self._still(own[name]) for name in others})

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
        held = self._held(own, [name for name in own if name in self._asked])

        def still(other: Any) -> bool:
            now = other.__dict__
            if type(other) is not kind or len(now) != held.number or held.get(now) != held.values:
                return False
            return all(self._still_one(now[name], still) for name, still in held.others.items())

        return still


_CONTAINERS = (dict, OrderedDict, list, tuple, set, frozenset)


def _never(_: Any) -> bool:
    """What cannot be told at a glance."""
    return False


def _global_hooks() -> list[int]:
    return [number for name in GLOBAL_HOOKS for number in vars(of_modules)[name]]


def _items(names: list[str]) -> _Get:
    """What takes some values of a dict."""
    if len(names) > 1:
        return itemgetter(*names)
    return (lambda own: (own[names[0]],)) if names else (lambda own: ())


def _attributes(names: list[str]) -> _Get:
    """What takes some attributes of an object."""
    get: Any = attrgetter(*names)
    return get if len(names) > 1 else (lambda holder: (get(holder),))


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
