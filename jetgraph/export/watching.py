"""Whether a module is still as it was described, without describing it again.

A description follows from what each object that was met holds: where all of them hold the same objects as then, it is
the same. That is told by identity, which takes a tenth of the time. What holds equal but other objects counts as
changed, and is to be described anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from types import FunctionType
from typing import Any
from weakref import ref

import torch
from torch import Tensor

Describe = Callable[[Any, "Held"], None]

_CONTAINERS = (dict, list, tuple, deque, set, frozenset)
_PLAIN = frozenset(
    {type(None), bool, int, float, complex, str, bytes, FunctionType, property, staticmethod, classmethod}
)


def is_kind(value: Any, kinds: type | tuple[type, ...]) -> bool:
    """An object is of a kind, which it is not asked: some classes answer in code of their own, which takes longer."""
    return issubclass(type(value), kinds)


class Held:
    """What objects hold: other objects in order, and facts that are compared by their values."""

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self.facts: list[Any] = []
        self._met: dict[int, int] = {}

    def add(self, value: Any) -> None:
        """An object; of a container what it holds, and whether it was met before."""
        if type(value) in _PLAIN or not is_kind(value, _CONTAINERS):
            self.objects.append(value)
            return
        if not value and not getattr(value, "__dict__", None):
            self.objects.append(type(value))
            return
        if (before := self._met.get(id(value))) is not None:
            self.facts.append(before)
            return
        self._met[id(value)] = len(self._met)
        self.objects.append(type(value))
        self.facts.append(len(value))
        if is_kind(value, dict):
            self.objects += value
        self.each(value.values() if is_kind(value, dict) else value)
        if more := getattr(value, "__dict__", None):
            self.add(more)

    def each(self, values: Iterable[Any]) -> None:
        """Several objects: `add` of each, without a call for what modules and classes hold most of, which is plain
        values, functions, and containers that are empty.
        """
        append = self.objects.append
        for value in values:
            if (kind := type(value)) in _PLAIN or not issubclass(kind, _CONTAINERS):
                append(value)
            elif not value and not getattr(value, "__dict__", None):
                append(kind)
            else:
                self.add(value)


class Watch:
    """Objects as they were when they were described. It keeps none of them alive, but for plain values.

    Parameters
    ----------
    root
        The one that was described.
    met
        It, and all others that were met, but for containers.
    describe
        Adds to what is held all that a description reads of an object.

    Raises
    ------
    TypeError
        Something that cannot be told from another thing in its place once it is gone.
    """

    def __init__(self, root: Any, met: Iterable[Any], describe: Describe) -> None:
        self._describe = describe
        self._met = [ref(value) for value in {id(value): value for value in met if value is not root}.values()]
        held = self._held([root, *(value() for value in self._met)])
        self._ids, self._facts = [*map(id, held.objects)], held.facts
        # Those in whose place no other can come: they are alive, or held.
        others = {id(value): value for value in held.objects if value is not root}
        self._alive, self._kept = list[Callable[[], Any]](), list[Any]()
        for value in others.values():
            try:
                self._alive.append(ref(value))
            except TypeError:
                # Plain values, types of numbers, and what classes have besides functions.
                self._kept.append(value)

    def still(self, root: Any) -> bool:
        """All objects hold what they held."""
        met = [value() for value in self._met]
        if any(value is None for value in met) or any(value() is None for value in self._alive):
            return False
        held = self._held([root, *met])
        return [*map(id, held.objects)] == self._ids and held.facts == self._facts

    def _held(self, values: Sequence[Any]) -> Held:
        held = Held()
        for value in values:
            self._describe(value, held)
        return held


def of_tensor(value: Tensor, held: Held) -> None:
    """All of a tensor but its numbers."""
    layout = value.stride() if value.layout is torch.strided else value.layout
    alone = type(value) is Tensor and value.numel() == 1 and value.device.type == "cpu"
    held.facts.append((type(value), value.dtype, value.device, value.requires_grad, value.shape, layout))
    held.facts.append(repr(value.tolist()) if alone else None)
