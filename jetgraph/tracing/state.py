"""What a model holds: noted before it runs, and put back afterwards.

A model may make or move things when it runs: a table at the first call, a cache that grows, a counter, a running mean.
What it is run for in a trace is not its own work, so nothing of that may stay.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

DEEPEST = 4
"""Containers and objects inside each other, from a module on, that are looked into."""

_PLAIN = (str, bytes, int, float, complex, type(None), type, ModuleType)
"""What holds nothing that a forward pass changes."""


@contextmanager
def kept(model: nn.Module) -> Iterator[Held]:
    """Put back, at the end, what the modules of a model hold.

    That is their attributes, parameters, buffers and submodules; what is in the dicts, lists, sets and objects among
    them; the values of the tensors there, other than parameters; and the memory and attributes of parameters, which
    some libraries lay out anew at the first run.
    """
    held = Held(model)
    try:
        yield held
    finally:
        held.put_back()


class Held:
    """What the modules of a model held when this was made."""

    def __init__(self, model: nn.Module) -> None:
        self._contents: list[tuple[Any, Any]] = []
        """Containers and copies of them; that of a module or another object is its `__dict__`."""
        self._values: list[tuple[Tensor, int, Tensor]] = []
        """Tensors, how often they have been written to, and copies of them."""
        self._memory: list[tuple[nn.Parameter, Tensor]] = []
        """Parameters, and tensors on the memory that they had."""
        # The containers themselves, so that no other one gets the id.
        self._seen: dict[int, Any] = {}
        self._look(model, 0)

    @property
    def changed(self) -> bool:
        """The modules hold other things now; values written into the same tensors do not count."""
        kept = all(_same(container, copy) for container, copy in self._contents)
        return not (kept and all(_same_memory(parameter, tensor) for parameter, tensor in self._memory))

    def put_back(self) -> None:
        """Make everything what it was."""
        for container, copy in self._contents:
            if not _same(container, copy):
                container.clear()
                container.extend(copy) if isinstance(container, list | deque) else container.update(copy)
        for parameter, tensor in self._memory:
            if not _same_memory(parameter, tensor):
                parameter.data = tensor
        self.put_values_back()

    def put_values_back(self) -> None:
        """Give the tensors the values that they had; what holds them stays as it is now."""
        for index, (tensor, writes, copy) in enumerate(self._values):
            if tensor._version != writes:
                with torch.no_grad():
                    tensor.resize_(copy.shape).copy_(copy)
                self._values[index] = (tensor, tensor._version, copy)

    def _look(self, value: Any, depth: int, copied: bool = True) -> None:
        """Note what a value holds, and values of tensors as far as they are to be `copied`."""
        if isinstance(value, _PLAIN) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, nn.Parameter):
            if value.layout is torch.strided and not (is_traceable_wrapper_subclass(value) or is_lazy(value)):
                self._memory.append((value, value.data))
                # Copies of what belongs to weights could be as large as they are.
                self._look(value.__dict__, 0, copied=False)
        elif isinstance(value, Tensor):
            # Of the others, those on `meta` have no values, and the rest cannot be written to.
            if copied and type(value) is Tensor and not value.is_meta and not value.is_inference():
                self._values.append((value, value._version, value.detach().clone()))
        elif isinstance(value, nn.Module):
            self._look(value.__dict__, 0)
        elif depth >= DEEPEST:
            return
        elif isinstance(value, dict):
            self._contents.append((value, dict(value)))
            self._look_at_all(value.values(), depth, copied)
        elif isinstance(value, list | set | deque):
            self._contents.append((value, list(value)))
            self._look_at_all(value, depth, copied)
        elif isinstance(value, tuple):
            self._look_at_all(value, depth, copied)
        elif isinstance(getattr(value, "__dict__", None), dict):
            self._look(value.__dict__, depth, copied)

    def _look_at_all(self, values: Iterable[Any], depth: int, copied: bool) -> None:
        for value in values:
            self._look(value, depth + 1, copied)


def _same_memory(parameter: nn.Parameter, tensor: Tensor) -> bool:
    places = [(one.dtype, one.shape, one.stride(), one.storage_offset()) for one in (parameter, tensor)]
    return places[0] == places[1] and parameter.untyped_storage()._cdata == tensor.untyped_storage()._cdata


def _same(container: Any, copy: Any) -> bool:
    """The very same things, in the same order."""
    if len(container) != len(copy):
        return False
    if isinstance(container, dict):
        return all(
            name is other and value is kept
            for (name, value), (other, kept) in zip(container.items(), copy.items(), strict=True)
        )
    return all(value is kept for value, kept in zip(container, copy, strict=True))
