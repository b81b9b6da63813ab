"""Fields of frozen values that are made when somebody asks for them: a model whose code takes seconds to import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Later(Generic[T]):
    """What makes a value."""

    make: Callable[[], T]


class WhenAsked(Generic[T]):
    """A field of a dataclass that takes a value, or what makes it: that is asked once, when the field is read.

    >>> @dataclass(frozen=True)
    ... class Room:
    ...     light: WhenAsked[str] = WhenAsked()
    >>> Room("on").light, Room(Later(lambda: "off")).light
    ('on', 'off')
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> T:
        if instance is None:
            # So that a dataclass finds no default.
            raise AttributeError(self._name)
        held = vars(instance)
        value = held[self._name]
        if isinstance(value, Later):
            value = held[self._name] = value.make()
        return value

    def __set__(self, instance: Any, value: T | Later[T]) -> None:
        vars(instance)[self._name] = value
