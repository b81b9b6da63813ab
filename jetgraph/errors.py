"""Everything that jetgraph raises on purpose. Messages say what was seen, where, and what to do next.

Arguments of another type than their annotation's are told here too, before they break something inside: `check`.
"""

from __future__ import annotations

import inspect
import numbers
import os
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from decimal import Decimal
from functools import cache, wraps
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

QUOTED = 160
"""Characters of what was given that a message shows."""


def quoted(value: object) -> str:
    """What was given, as a message shows it: its repr, the middle of a long one left out.

    >>> quoted("L0.mlp"), quoted(["a"] * 1000)[-46:]
    ("'L0.mlp'", ", 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a']")
    """
    try:
        text = repr(value)
    except ValueError:
        # Python prints no integers of thousands of digits.
        text = f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= QUOTED else f"{text[: QUOTED // 2]} … {text[-QUOTED // 2 :]}"


class JetGraphError(Exception):
    """Base of all errors of this package; each that is raised is of one of the classes below."""


# What was given


class InputError(JetGraphError, ValueError):
    """An argument or an option does not fit: unknown, of another type, out of range, or not for this model; inputs that
    the traced model does not take.
    """


class SelectionError(InputError):
    """A pattern or a path could not be read, or names nothing that there is."""


class NoSuchPathError(SelectionError, IndexError):
    """A selection has fewer paths than the number that was asked for."""


class NotComputedError(SelectionError, KeyError):
    """A path is none of those that were compiled."""

    # A KeyError shows the repr of its text.
    __str__ = Exception.__str__


class BudgetError(JetGraphError):
    """What was asked for is larger than its budget; nothing was computed."""


# The model


class TraceError(JetGraphError):
    """A model could not be traced, is random, or the traced graph does not reproduce it."""


class MissingRuleError(JetGraphError):
    """An operator on the variate's way has no Taylor rule."""


class DomainError(JetGraphError):
    """A Taylor expansion was asked for at a point where the function has none (a kink, a pole)."""


class StateError(JetGraphError, RuntimeError):
    """What was asked for cannot be done with a thing as it is now: a graph without weights is to be run, weights have
    changed since, a compiler is missing.
    """


class SizeError(JetGraphError):
    """A formula of sizes cannot be read, or has no value."""


# The machine


class UnfinishedError(StateError):
    """A shard of a job is done and kept, and others are not; see `jetgraph.sharded`."""


class FileError(JetGraphError, OSError):
    """A file could not be read or written, or does not hold what it should; in one line, with its name and why."""


class LoadError(FileError):
    """A model could not be loaded by its name or from its folder."""


class MissingExtraError(JetGraphError, ImportError):
    """A library that one of the extras installs (`plot`, `tables`) is missing; the message says which."""


# Arguments

P = ParamSpec("P")
R = TypeVar("R")


def renamed(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function take arguments under the names that they had before, with a warning; old names by keyword.

    >>> @renamed(paths="path")
    ... def count(path):
    ...     return len(path)
    >>> count(paths="ab", path="ab")
    Traceback (most recent call last):
    jetgraph.errors.InputError: count takes path=, whose old name is paths=: give one of the two
    """

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        name = function.__qualname__.removesuffix(".__init__")

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            given: dict[str, Any] = kwargs
            for old, new in names.items():
                if old in given:
                    if new in given:
                        raise InputError(f"{name} takes {new}=, whose old name is {old}=: give one of the two")
                    what = f"{name}({old}=) is now called {new}="
                    warnings.warn(what, DeprecationWarning, stacklevel=2)
                    given[new] = given.pop(old)
            return function(*args, **kwargs)

        return call

    return decorated


_PLAIN = (str, bytes, numbers.Number, list, tuple, dict, set, os.PathLike, type(None))
"""Types of values that a message shows; of others it names the type."""


_LARGEST = 2**1000
"""No number is as large as that: it has no float, and Python does not print those of thousands of digits."""


def big(number: int) -> str:
    """A count for people: all its digits, by thousands, where it is short; a power of two where it is one.

    >>> big(48), big(12288), big(2**252), big(3**252 * 2)
    ('48', '12,288', '2^252 ≈ 7.24e+75', '≈ 3.43e+120')
    """
    if number < 10**12:
        return f"{number:,}"
    power = f"2^{number.bit_length() - 1} " if number & (number - 1) == 0 else ""
    return f"{power}≈ {Decimal(number):.2e}"


def amount(number: int, word: str) -> str:
    """A number of things, as `big` says it; a single one is one.

    >>> amount(1, "path"), amount(0, "path"), amount(2048, "branch")
    ('1 path', '0 paths', '2,048 branches')
    """
    return f"{big(number)} {word if number == 1 else word + ('es' if word.endswith(('ch', 's', 'x')) else 's')}"


def several(number: int, things: str) -> str:
    """The same where the plural is what is known.

    >>> several(1, "runs of 4 windows"), several(1, "passes"), several(1, "branches"), several(2048, "sizes")
    ('1 run of 4 windows', '1 pass', '1 branch', '2,048 sizes')
    """
    word, space, rest = things.partition(" ")
    ending = "es" if word.endswith(("ches", "sses", "xes")) else "s"
    return f"{big(number)} {word.removesuffix(ending) if number == 1 else word}{space}{rest}"


def check(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raise `InputError` for the first of some arguments that is not of the type with which `function` declares it.

    Literals count as texts, elements of iterators are not looked at, and numbers of numpy count as numbers.

    >>> def double(number: int, times: float | None = None) -> None:
    ...     check(double, locals())
    >>> double(3, 0.5)
    >>> double([3])
    Traceback (most recent call last):
    jetgraph.errors.InputError: double takes as number a whole number, not [3] (list)
    """
    for name, hint in _hints(function).items():
        value = given[name]
        if not _fits(value, hint):
            kind = type(value).__name__
            seen = f"{quoted(value)} ({kind})" if isinstance(value, _PLAIN) else f"a {_packing(value)}{kind}"
            raise InputError(
                f"{function.__qualname__.removesuffix('.__init__')} takes as {name} {_said(hint)}, not {seen}"
            )


@cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of a function's own parameters. What it returns may be known to type checkers alone."""
    function = inspect.unwrap(function)
    declared = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
    scope = getattr(function, "__globals__", {})
    return typing.get_type_hints(types.SimpleNamespace(__annotations__=declared), scope)


@cache
def _taken_apart(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(hint), get_args(hint)


_SURE = frozenset({type(None), bool, str})
"""Types of values that fit where their type is asked for, whatever they are."""


def _fits(value: Any, hint: Any) -> bool:
    kind = type(value)
    if kind is hint and kind in _SURE:
        return True
    origin, inner = _taken_apart(hint)
    if origin in (Union, types.UnionType):
        return (kind in _SURE and kind in inner) or any(_fits(value, one) for one in inner)
    if origin is Literal:
        return isinstance(value, tuple({type(one) for one in inner}))
    if origin is tuple and inner[-1] is not Ellipsis:
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if origin is not None:
        if not isinstance(value, origin):
            return False
        return not issubclass(origin, Iterable) or (_is_collection(value) and _fit_inside(value, inner))
    if hint is Any:
        return True
    if isinstance(value, bool) and hint in (int, float):
        return False
    if isinstance(value, int) and abs(value) >= _LARGEST:
        return False
    if hint in (int, float):
        return isinstance(value, numbers.Integral if hint is int else numbers.Real)
    if getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False):
        return True
    return isinstance(value, type(None) if hint is None else hint) and not _packing(value)


def _is_collection(value: Any) -> bool:
    """Tensors and arrays count as iterable, though not all of them are; where they are meant, it says so. Some modules
    have the method and raise.
    """
    try:
        iter(value)
    except Exception:
        return False
    return not hasattr(value, "dtype")


def _packing(value: Any) -> str:
    """How a tensor is packed so that it has no shape or no plain numbers; empty for all others, and other values."""
    return "nested " if getattr(value, "is_nested", False) else "quantized " * bool(getattr(value, "is_quantized", 0))


def _fit_inside(value: Any, inner: Sequence[Any]) -> bool:
    """The elements of a collection fit; a text, whose elements are texts, is left alone."""
    if isinstance(value, Mapping) and len(inner) == 2:
        return all(_fits(key, inner[0]) and _fits(item, inner[1]) for key, item in value.items())
    if isinstance(value, bytes | bytearray | memoryview):
        return False
    if isinstance(value, Sequence | Set | Mapping) and (not isinstance(value, str) or inner[0] is not str):
        # Of many elements most are of one type, which may say all.
        return all(_is_one(kind, inner[0]) for kind in set(map(type, value))) or all(
            _fits(item, inner[0]) for item in value
        )
    return True


@cache
def _is_one(kind: type, hint: Any) -> bool:
    """All values of a type fit, and none has to be looked at."""
    origin, inner = _taken_apart(hint)
    if origin in (Union, types.UnionType):
        return any(_is_one(kind, one) for one in inner)
    looked_at = issubclass(kind, int) or hasattr(kind, "is_nested") or hasattr(kind, "is_quantized")
    plain = origin is None and isinstance(hint, type) and not getattr(hint, "_is_protocol", False)
    return plain and not looked_at and issubclass(kind, hint)


_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", type(None): "None"}


def _said(hint: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        options = list(dict.fromkeys(map(_said, inner)))
        return ", ".join(options[:-1]) + f" or {options[-1]}" if len(options) > 1 else options[0]
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"a pair ({', '.join(map(_said, inner))})"
    if origin is not None and issubclass(origin, Mapping):
        return f"a mapping from {_said(inner[0])} to {_said(inner[1])}"
    if origin is not None and issubclass(origin, Iterable) and inner:
        return f"several of ({_said(inner[0])})"
    if origin is not None:
        return "a path" if origin is os.PathLike else "a function"
    return _NAMES.get(hint, f"a {getattr(hint, '__name__', 'value')}")
