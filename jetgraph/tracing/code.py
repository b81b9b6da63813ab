"""The code of a model as it was when it was traced: what a graph goes by, and does not see change.

A graph looks its weights up in the model, but computes what the model's code did in the trace. So where the code is
another one now (another activation, another ε, a hook), what the graph gives is no longer what the model gives. That is
looked for whenever a graph is about to compute something: at a glance (`jetgraph.tracing.glance`), and only where the
model does not hold what it held, in full (`jetgraph.tracing.facts`). It is no proof: tables and objects
that functions find in their files are not looked at. The mode is not either, for a graph is of the model in evaluation
mode.
"""

from __future__ import annotations

import enum
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from jetgraph.tracing.facts import (
    ABSENT,
    BUILT_IN,
    HOOKS,
    Absent,
    Asked,
    Facts,
    Function,
    described,
    member,
    package_of,
)
from jetgraph.tracing.glance import Glance


@dataclass(frozen=True, eq=False)
class Call:
    """The call of a model that was traced."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: str | int | None


@dataclass(frozen=True)
class Change:
    """Something that a model's code reads, and that is not what it was."""

    what: str
    was: Any
    now: Any
    harmless: bool = False
    """It may change nothing that is computed: a switch, what was not there before, what a forward pass keeps, and hooks
    of an installed library that modules of the model are of."""

    def __str__(self) -> str:
        return f"{self.what}: {_shown(self.was)} in the trace, {_shown(self.now)} now"


class Code:
    """What the code of a model reads, besides inputs and weights, as it was when this was made.

    Parameters
    ----------
    owner
        The model. It is held weakly: where it is gone, nothing has changed.
    asked
        The names that count.
    example
        The call that was traced.
    """

    def __init__(self, owner: nn.Module, asked: Asked, example: Call) -> None:
        self.asked, self.example = asked, example
        self._owner = weakref.ref(owner)
        self._before = described(owner, asked)
        self._glance: Glance | None = Glance(owner, asked)

    @property
    def owner(self) -> nn.Module | None:
        """The model; None where it is gone."""
        return self._owner()

    def changes(self) -> list[Change]:
        """What is not as it was."""
        owner = self._owner()
        if owner is None or (self._glance is not None and self._glance.still(owner)):
            return []
        found = list(_changes(self._before, described(owner, self.asked), self.asked))
        self._glance = None if found else Glance(owner, self.asked)
        return found

    def accept(self) -> None:
        """Go by what the model is now."""
        owner = self._owner()
        if owner is not None:
            self._before, self._glance = described(owner, self.asked), Glance(owner, self.asked)

    def of(self, owner: nn.Module) -> Code:
        """The same, to be held against a copy of the model."""
        copied = object.__new__(Code)
        copied.asked, copied.example, copied._owner = self.asked, self.example, weakref.ref(owner)
        copied._before, copied._glance = self._before, None
        return copied


def _changes(before: Facts, now: Facts, asked: Asked) -> Iterator[Change]:
    """What two descriptions of a model differ in; a submodule that only one has is told of the module above."""
    libraries = {package_of(facts["class"]).partition(".")[0] for facts in now.modules.values()}
    for path, facts in before.modules.items():
        if path in now.modules:
            kind = facts["class"].__name__
            where = f" of module {path!r} ({kind})" if path else f" of the model ({kind})"
            for change in _changed(facts, now.modules[path], asked, libraries):
                yield replace(change, what=change.what + where)
    for kind, members in before.classes.items():
        others = now.classes.get(kind, members)
        for name in (name for name, was in members.items() if others.get(name, ABSENT) != was):
            yield Change(f"{name} of class {kind.__name__}", members[name], member(kind, name))
    for file, functions in before.functions.items():
        for name, was in functions.items():
            if was != (is_now := now.functions.get(file, functions)[name]):
                yield Change(f"the function {name} of {file}", was, is_now)
    for what, hooks in before.hooks.items():
        if hooks != now.hooks[what]:
            yield Change(f"{what} of all modules", hooks, now.hooks[what])


def _changed(facts: Mapping[str, Any], now: Mapping[str, Any], asked: Asked, libraries: set[str]) -> Iterator[Change]:
    """What two descriptions of a module differ in."""
    if now["class"] is not facts["class"]:
        # What else it holds is that of another class.
        yield Change("the class", facts["class"], now["class"])
        return
    for what in {**facts, **now}:
        was, is_now = facts.get(what, ABSENT), now.get(what, ABSENT)
        if what in HOOKS.values():
            gone, new = tuple(h for h in was if h not in is_now), tuple(h for h in is_now if h not in was)
            if gone or new:
                yield Change(what, gone, new, all(_is_of(hook, libraries) for hook in (*gone, *new)))
        else:
            for place, one, other in _unlike(what, was, is_now):
                yield Change(place.lstrip("."), one, other, _is_harmless(place, one, other, asked))


def _unlike(place: str, was: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Where two values differ, as far inside as both are of names."""
    if was is now or was == now:
        return
    if isinstance(was, dict) and isinstance(now, dict):
        for name in was | now:
            inside = name if name.startswith(".") else f"[{name}]"
            yield from _unlike(f"{place}{inside}", was.get(name, ABSENT), now.get(name, ABSENT))
    else:
        yield place, was, now


def _is_of(hook: Any, libraries: set[str]) -> bool:
    """A hook is a function of one of these, as installed: not of who looks into a model, who may do so by hooks."""
    installed = isinstance(hook, Function) and not {"site-packages", "dist-packages"}.isdisjoint(
        Path(hook.code.co_filename).parts
    )
    return installed and hook.package.partition(".")[0] in libraries


def _is_harmless(place: str, was: Any, now: Any, asked: Asked) -> bool:
    name = place.rpartition(".")[2].partition("[")[0]
    if place in (".forward", "submodules"):
        return False
    switched = all(isinstance(each, bool | str | enum.Enum | None | Absent) for each in (was, now))
    return switched or was is ABSENT or name in asked.written


def _shown(value: Any) -> str:
    """A value of a description, in few words."""
    if isinstance(value, Function):
        return value.name
    if isinstance(value, (type, *BUILT_IN)):
        return value.__name__
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))[:80] or "none"
    if isinstance(value, dict):
        return f"a {value['class'].__name__}" if "class" in value else "a dict"
    return repr(value)[:80]
