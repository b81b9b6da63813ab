"""Rewrite rules as JSON: their name, and their fields by the types that these are declared with, whichever rules there
are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jetgraph.algebra.rules import RULES, Freeze, Jet, Rule
from jetgraph.errors import FileError, JetGraphError
from jetgraph.files.stored import Stored

HIGHEST = 1000
"""Order of a jet in a file: a larger one would only fill the memory."""


def rule_to_json(rule: Rule) -> dict[str, Any]:
    """A rule as `{"rule": name, field: value, …}`."""
    return {"rule": rule.name} | {name: _plain(getattr(rule, name)) for name in _fields(type(rule))}


def rule_from_json(stored: Stored) -> Rule:
    """Read a rule back.

    Raises
    ------
    JetGraphError
        The name is none of a rule, a field is missing, unknown or of another type, or the rule refuses its value.
    """
    known = [name for kind in RULES.values() for name in _fields(kind)]
    kind = RULES[stored.fields("rule", optional=known)["rule"].choice(RULES)]
    later = _LATER.get(kind, {})
    fields = stored.fields("rule", *(name for name in _fields(kind) if name not in later), optional=tuple(later))
    if "order" in fields:
        fields["order"].integer(0, HIGHEST)
    given = {name: _read(fields[name], hint) for name, hint in _fields(kind).items() if name in fields}
    if kind is Jet and "orders" not in given and given["order"] and given["weights"] != "unit":
        raise FileError(
            f"{stored.file} has a jet of order {given['order']} of a version of jetgraph in which terms that are "
            "always zero took weight from the others, so it would give other numbers now: compile these paths again, "
            "and save them"
        )
    given = {**later, **given}
    try:
        return kind(**given)
    except JetGraphError as error:
        raise stored.damage(f"which does not hold together: {error}") from error


_LATER: Mapping[type[Rule], Mapping[str, Any]] = {
    Jet: {"orders": "apart", "scale": "none", "centres": "terms", "width": None, "target": None},
    Freeze: {"halves": False},
}
"""Fields that older files lack, and what they meant."""


@cache
def _fields(kind: type[Rule]) -> dict[str, Any]:
    """The names of a rule's fields, and their types."""
    assert dataclasses.is_dataclass(kind)
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    # Numbers may be numpy's, or fractions.
    return value if value is None or isinstance(value, str | int) else float(value)


def _read(stored: Stored, hint: Any) -> Any:
    """A value of the type of a field: an order, a text out of some, several of them, or numbers by name."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType) and NoneType in inner:
        return None if stored.value is None else _read(stored, next(kind for kind in inner if kind is not NoneType))
    if origin in (Union, UnionType):
        return _read(stored, next(_fitting(stored.value, inner), inner[-1]))
    if origin is Literal:
        return stored.choice(inner)
    if hint is Any:
        # Numbers, or tuples of such, as the weights of a tensor are.
        return tuple(_read(item, Any) for item in stored.items()) if isinstance(stored.value, list) else stored.number()
    if origin in (tuple, Sequence):
        return tuple(_read(item, inner[0]) for item in stored.items())
    if origin is Mapping:
        return {key: _read(item, inner[1]) for key, item in stored.members().items()}
    if hint is int:
        return stored.integer(0)
    return {float: stored.number, str: stored.text, bool: stored.flag}[hint]()


def _fitting(value: Any, hints: tuple[Any, ...]) -> Iterator[Any]:
    """The types of a choice that a value of JSON can be of, by what it looks like."""
    kinds = {Literal: str, tuple: list, Sequence: list, Mapping: dict, None: str}
    return (hint for hint in hints if isinstance(value, kinds.get(get_origin(hint), ())))
