"""Whether a module is still as it was described, without describing it again.

A description follows from what each object that was met holds: where all of them hold the same objects as then, it is
the same. That is told by identity, which takes a small part of the time: where to look is known, so that all is looked
at together rather than one by one. What holds equal but other objects counts as changed, and is to be described anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from operator import itemgetter, methodcaller
from typing import Any
from weakref import ref

import torch
from torch import Tensor

Describe = Callable[[Any, "Held"], None]
"""Adds to what is held all that a description reads of an object."""

_CONTAINERS = (dict, list, tuple, deque, set, frozenset)


def is_kind(value: Any, kinds: type | tuple[type, ...]) -> bool:
    """An object is of a kind, which it is not asked: some classes answer in code of their own, which takes longer."""
    return issubclass(type(value), kinds)


class Held:
    """What objects hold: other objects in order, values, of which containers count by what they hold, and facts that
    are compared by their values.
    """

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self.values: list[Any] = []
        self.facts: list[Any] = []
        self._members: list[tuple[int, Mapping[str, Any]]] = []

    def members(self, members: Mapping[str, Any]) -> None:
        """All that a class has by names. What containers hold whose names are Python's, such as annotations, is read by
        nobody.
        """
        self._members.append((len(self.values), members))
        self.facts.append([*members])
        self.values += members.values()

    def closed(self) -> set[int]:
        """Places of values that are containers of which nobody reads what they hold."""
        return {
            at
            for start, members in self._members
            for at, (name, value) in enumerate(members.items(), start)
            if name.startswith("__") and type(value) in _CONTAINERS
        }


class Watch:
    """Objects as they were when they were described. It keeps none of them alive, but for plain values, and classes of
    containers.

    Parameters
    ----------
    root
        The one that was described.
    met
        It, and all others that were met, but for containers.
    describing
        Of an object, what describes those of its kind.

    Raises
    ------
    TypeError
        Something that cannot be told from another thing in its place once it is gone.
    """

    def __init__(self, root: Any, met: Iterable[Any], describing: Callable[[Any], Describe]) -> None:
        every = [*{id(value): value for value in (root, *met)}.values()]
        self._met, self._describe = [*map(ref, every[1:])], [*map(describing, every)]
        held = self._held(every)
        self._ids, self._facts = [*map(id, held.objects)], held.facts
        # By its place in memory, where a container was met first among all those of all levels.
        first, found = dict[int, int](), [*held.objects]
        self._levels, self._places, values, closed = list[_Level](), list[int](), held.values, held.closed()
        while values:
            self._levels.append(level := _Level(values, closed, first, self._places))
            found += level.objects(values)
            values, closed = level.inside(values), set[int]()
        # Those in whose place no other can come: they are alive, or held. What goes is noted by the references.
        self._gone, self._alive, self._kept = list[Any](), list[Any](), list[Any]()
        for value in {id(value): value for value in found if value is not root}.values():
            try:
                self._alive.append(ref(value, self._gone.append))
            except TypeError:
                # Plain values, types of numbers, and what classes have besides functions.
                self._kept.append(value)

    def still(self, root: Any) -> bool:
        """All objects hold what they held."""
        met = [value() for value in self._met]
        if self._gone or any(value is None for value in met):
            return False
        held = self._held([root, *met])
        if [*map(id, held.objects)] != self._ids or held.facts != self._facts:
            return False
        values, containers = held.values, list[Any]()
        for level in self._levels:
            if not level.is_same(values, containers):
                return False
            values = level.inside(values)
        first = dict[int, int]()
        return [*map(first.setdefault, map(id, containers), range(len(containers)))] == self._places

    def _held(self, values: Sequence[Any]) -> Held:
        held = Held()
        for describe, value in zip(self._describe, values, strict=True):
            describe(value, held)
        return held


class _Level:
    """Some values, and which of them are containers, whose contents are the values of the next level.

    Parameters
    ----------
    values
        As they are now.
    closed
        Places of containers whose contents do not count.
    first, places
        What was met before, and where each container was met first; those of this level are added.
    """

    def __init__(self, values: Sequence[Any], closed: set[int], first: dict[int, int], places: list[int]) -> None:
        self._number = len(values)
        containers = [at for at, value in enumerate(values) if is_kind(value, _CONTAINERS)]
        self._plain, self._containers = _those(set(range(len(values))).difference(containers)), _those(containers)
        self._ids, self._kinds = [*map(id, self._plain(values))], [*map(type, self._containers(values))]
        opened = [at for at in containers if at not in closed]
        more = {at: vars(values[at]) for at in opened if hasattr(values[at], "__dict__")}
        full = [at for at in opened if values[at] or more.get(at)]
        self._empty, self._bare = _those(set(opened).difference(full)), _those([at for at in more if not more[at]])
        new = list[int]()
        for at in full:
            places.append(first.setdefault(id(values[at]), len(places)))
            if places[-1] == len(places) - 1:
                new.append(at)
        self._full, self._lengths = _those(full), [len(values[at]) for at in full]
        self._more = _those([at for at in new if more.get(at)])
        self._dicts = _those([at for at in new if is_kind(values[at], dict)])
        self._others = _those([at for at in new if not is_kind(values[at], dict)])
        keys = [*chain.from_iterable(self._dicts(values))]
        self._keys = keys if {*map(type, keys)} <= {str} else None

    def objects(self, values: Sequence[Any]) -> Sequence[Any]:
        """All but containers."""
        return self._plain(values)

    def is_same(self, values: Sequence[Any], containers: list[Any]) -> bool:
        """The values are what they were, as far as this level goes; containers that are not empty are added."""
        if len(values) != self._number or [*map(type, self._containers(values))] != self._kinds:
            return False
        if (
            [*map(id, self._plain(values))] != self._ids
            or any(self._empty(values))
            or any(map(vars, self._bare(values)))
        ):
            return False
        containers += (full := self._full(values))
        keys = self._keys is None or [*chain.from_iterable(self._dicts(values))] == self._keys
        return keys and [*map(len, full)] == self._lengths

    def inside(self, values: Sequence[Any]) -> list[Any]:
        """What the containers hold that were not met before, and what attributes these have."""
        dicts = self._dicts(values)
        keys = [] if self._keys is not None else chain.from_iterable(dicts)
        held = chain.from_iterable(map(_VALUES, dicts)), chain.from_iterable(self._others(values))
        return [*keys, *chain.from_iterable(held), *map(vars, self._more(values))]


_VALUES = methodcaller("values")


def _those(places: Iterable[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """What takes the values in some places, in order."""
    places = sorted(places)
    if len(places) > 1:
        return itemgetter(*places)
    return lambda values: [values[place] for place in places]


def of_tensor(value: Tensor, held: Held) -> None:
    """All of a tensor but its numbers."""
    layout = value.stride() if value.layout is torch.strided else value.layout
    alone = type(value) is Tensor and value.numel() == 1 and value.device.type == "cpu"
    held.facts.append((type(value), value.dtype, value.device, value.requires_grad, value.shape, layout))
    held.facts.append(repr(value.tolist()) if alone else None)
