"""Values read from a JSON file, taken apart by what they have to be: what is something else is told with its place.

A file may come from anywhere. Nothing in it is believed: each value is asked for as what it should be (`text`,
`integer`, `fields`, …), and the first that is not so raises an error that names the file and the value's place in it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator
from typing import Any

from jetgraph.errors import FileError

LARGEST = 2**64
"""No whole number in a file is as large."""


class Stored:
    """A value of a JSON file, and where in it it stands.

    >>> stored = Stored({"shape": [2, "x"]}, file="graph.json")
    >>> [size.integer() for size in stored.fields("shape")["shape"].items()]
    Traceback (most recent call last):
    jetgraph.errors.FileError: graph.json is damaged: shape[1] is 'x', which is no whole number
    """

    __slots__ = ("_key", "_parent", "file", "value")

    def __init__(
        self, value: Any, file: str | os.PathLike[str], key: str | int = "", parent: Stored | None = None
    ) -> None:
        self.value = value
        self.file = file
        self._key = key
        self._parent = parent

    @property
    def location(self) -> str:
        """The way to this value, such as `nodes[3].shape[0]`."""
        if self._parent is None:
            return ""
        above = self._parent.location
        if isinstance(self._key, int):
            return f"{above}[{self._key}]"
        return f"{above}.{self._key}".removeprefix(".")

    def damage(self, what: str) -> FileError:
        """The error that says what is wrong with this value."""
        shown = repr(self.value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}…"
        return FileError(f"{os.fspath(self.file)} is damaged: {self.location or 'it'} is {shown}, {what}")

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self.damage("which is no text")
        return self.value

    def choice(self, choices: Collection[str]) -> str:
        """One of these texts."""
        if not isinstance(self.value, str) or self.value not in choices:
            raise self.damage(f"and not one of {', '.join(choices)}")
        return self.value

    def name(self) -> str:
        """A text that can be the name of a variable."""
        if not isinstance(self.value, str) or not (self.value.isascii() and self.value.isidentifier()):
            raise self.damage("which is no name")
        return self.value

    def integer(self, least: int = -LARGEST, most: int = LARGEST) -> int:
        if type(self.value) is not int:
            raise self.damage("which is no whole number")
        if not least <= self.value <= most:
            raise self.damage(f"which is not between {least} and {most}")
        return self.value

    def number(self) -> float:
        """A finite number, whole ones as they are."""
        if type(self.value) is float and math.isfinite(self.value):
            return self.value
        return self.integer()

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.damage("which is neither true nor false")
        return self.value

    def items(self) -> Iterator[Stored]:
        """The items of a list."""
        if not isinstance(self.value, list):
            raise self.damage("which is no list")
        return (Stored(value, self.file, index, self) for index, value in enumerate(self.value))

    def members(self) -> dict[str, Stored]:
        """The members of an object, by their names."""
        if not isinstance(self.value, dict):
            raise self.damage("which is no object")
        return {key: Stored(value, self.file, key, self) for key, value in self.value.items()}

    def fields(self, *names: str, optional: Collection[str] = ()) -> dict[str, Stored]:
        """The members of an object that has these, and no others but the optional ones."""
        members = self.members()
        missing = [name for name in names if name not in members]
        unknown = [name for name in members if name not in names and name not in optional]
        if missing or unknown:
            raise self.damage(f"which lacks {missing[0]!r}" if missing else f"where {unknown[0]!r} is not expected")
        return members
