"""Sources of one evaluation: those that come out of one computation, such as all heads of an attention, are made
together."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import groupby, islice
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from jetgraph.compilation.origins import SOURCES, Model
from jetgraph.compilation.plan import Enter, Plan
from jetgraph.running.forward import Forward

_GROUPS: WeakKeyDictionary[Plan, Mapping[int, tuple[int, ...]]] = WeakKeyDictionary()
"""By plan, and by operation, all that are computed together with it, in the order in which they run."""


class Sources:
    """Values of the operations of a plan that enter.

    Parameters
    ----------
    plan, model, forward, memory
        As of `jetgraph.compilation.evaluation.evaluate`. Of a plan that still grows, each source is made by itself.
    """

    def __init__(self, plan: Plan, model: Model, forward: Forward, memory: int) -> None:
        self._plan, self._model, self._forward, self._memory = plan, model, forward, memory
        self._groups = _groups(plan, model) if isinstance(plan, Plan) else {}
        self._waiting: dict[tuple[int, ...], deque[int]] = {}
        """By group, those whose turn has not come."""
        self._made: dict[int, Tensor] = {}
        """Those that were made with another one."""

    def group(self, index: int) -> tuple[int, ...]:
        """All that are computed together with a source; none where it is made by itself."""
        return self._groups.get(index, ())

    def value(self, index: int) -> Tensor:
        """A source's value; those of its group are made with it, as many as fit, and wait for their turn."""
        group = self.group(index)
        waiting = self._of(group) if group else deque[int]()
        while index not in self._made and index in waiting:
            some = [waiting.popleft() for _ in range(min(len(waiting), self._fit(index)))]
            self._made |= zip(some, self._run(some).unbind(), strict=True)
        if index in self._made:
            return self._made.pop(index)
        entry = self._entry(index)
        return SOURCES[entry.origin].run(self._model, self._forward, entry)

    def stack(self, indices: Sequence[int]) -> Tensor | None:
        """The values [n, …] of sources that come next, each in its group; None where others of a group do."""
        stacks = [(group, list(some)) for group, some in groupby(indices, self.group)]
        if any(group and list(islice(self._of(group), len(some))) != some for group, some in stacks):
            return None
        made: list[Tensor] = []
        for group, some in stacks:
            if not group:
                made += (self.value(index).unsqueeze(0) for index in some)
                continue
            for _ in some:
                self._of(group).popleft()
            made.append(self._run(some))
        return made[0] if len(made) == 1 else torch.cat(made)

    def _fit(self, index: int) -> int:
        """How many sources like one fit into `memory`, one at least."""
        point = self._model.point(self._entry(index).enters)
        return max(1, self._memory // max(1, prod(self._forward.shape(point)) * point.meta["dtype"].itemsize))

    def _of(self, group: tuple[int, ...]) -> deque[int]:
        if group not in self._waiting:
            self._waiting[group] = deque(group)
        return self._waiting[group]

    def _run(self, indices: Sequence[int]) -> Tensor:
        entries = [self._entry(index) for index in indices]
        together = SOURCES[entries[0].origin].together
        assert together is not None
        return together(self._model, self._forward, entries)

    def _entry(self, index: int) -> Any:
        operation = self._plan.operations[index]
        assert isinstance(operation, Enter)
        return operation.entry


def _groups(plan: Plan, model: Model) -> Mapping[int, tuple[int, ...]]:
    if plan not in _GROUPS:
        by_name: dict[Any, list[int]] = {}
        for index in plan.order():
            if isinstance(operation := plan.operations[index], Enter):
                entry = operation.entry
                if (name := SOURCES[entry.origin].group(model, entry)) is not None:
                    by_name.setdefault((entry.origin, entry.enters, name), []).append(index)
        _GROUPS[plan] = {index: group for group in map(tuple, by_name.values()) for index in group}
    return _GROUPS[plan]
