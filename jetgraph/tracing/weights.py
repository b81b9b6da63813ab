"""A model's tensors by name, as they are whenever somebody looks.

A graph does not hold its weights but binds them: where a parameter has been replaced since the trace
(`load_state_dict(assign=True)`, `module.weight = ...`), the graph computes with the new one, as the model does.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from jetgraph.errors import StateError
from jetgraph.export.callables import find
from jetgraph.export.process import one_at_a_time
from jetgraph.tracing.code import Call, Change, Code
from jetgraph.tracing.facts import Asked

DeviceAndDtype = tuple[torch.device | None, torch.dtype | None]
"""Where weights are: their device, and the floating-point type of most of their elements."""


@dataclass(frozen=True, slots=True)
class _Look:
    """Where a tensor is found, from a module down, attribute by attribute; and what it was in the trace."""

    owner: weakref.ref[nn.Module]
    attributes: tuple[str, ...]
    also: tuple[tuple[str, ...], ...]
    """Other attributes of the owner that held the same tensor, such as an unembedding tied to the embedding."""
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


_Tour = tuple[weakref.ref[nn.Module], list[tuple[int, str]], list[tuple[str, int, str, _Look]]]
"""An owner; modules below it, each as the number of one before it (0: the owner) and the name there; and tensors, each
with the number of its module, its name there and where else to look."""


class Weights(Mapping[str, Tensor]):
    """Tensors by name; those that belong to `owners`, by the beginning of their names, are looked up anew each time.

    An owner is held weakly: where it is gone, its tensors are those of the last look. Raises `StateError` where a
    tensor has gone, has another shape, or has become something else, so that the traced program no longer fits it.
    """

    def __init__(self, tensors: Mapping[str, Tensor], owners: Mapping[str, nn.Module]) -> None:
        self._held = dict(tensors)
        self._looks: dict[str, _Look] = {}
        self.codes: tuple[Code, ...] = ()
        """Of owners, what their code was in the trace, where that is watched."""
        for prefix, owner in owners.items():
            reference = weakref.ref(owner)
            begin = f"{prefix}." if prefix else ""
            names: dict[int, list[str]] = {}
            for name, parameter in owner.named_parameters(remove_duplicate=False):
                names.setdefault(id(parameter), []).append(name)
            for name, tensor in tensors.items():
                inner = name.removeprefix(begin)
                if name.startswith(begin) and find(owner, inner.split(".")) is tensor:
                    also = tuple(tuple(other.split(".")) for other in names.get(id(tensor), ()) if other != inner)
                    place = tensor.shape, tensor.dtype, tensor.device
                    self._looks[name] = _Look(reference, tuple(inner.split(".")), also, *place)

    def __getitem__(self, name: str) -> Tensor:
        look = self._looks.get(name)
        owner = None if look is None else look.owner()
        if look is None or owner is None:
            return self._held[name]
        # While another thread exports the model, stand-ins are in the place of its weights.
        with one_at_a_time():
            return self._checked(name, look, owner, find(owner, look.attributes))

    def _checked(self, name: str, look: _Look, owner: nn.Module, value: Any) -> Tensor:
        """What stands in a tensor's place now, if the traced program fits it."""
        if value is not self._held[name]:
            self._held[name] = _accepted(name, value, self._held[name])
        if value.shape != look.shape:
            raise _changed(name, f"has become one of shape {list(value.shape)} instead of {list(look.shape)}")
        for other in look.also:
            if find(owner, other) is not value:
                raise _changed(name, f"is no longer one tensor with {'.'.join(other)!r}")
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def owners(self) -> list[nn.Module]:
        """The modules that the tensors are looked up in, those that still live."""
        owners = (owner() for owner, _, _ in self._tours)
        return list(dict.fromkeys(owner for owner in owners if owner is not None))

    def is_owned(self, name: str) -> bool:
        """The tensor is looked up in an owner; others, such as constants of the code, are held here alone."""
        return name in self._looks

    def rebound(self, owners: Mapping[str, nn.Module]) -> Weights:
        """The same tensors, looked up where these owners have them now; what they do not have stays as it is."""
        return Weights(self._held, owners)

    def over(self, tensors: Mapping[str, Tensor], owner: nn.Module) -> Weights:
        """Those of another model, whose code is watched from now on as that of the owners of these is."""
        weights = Weights(tensors, {"": owner})
        if self.codes:
            weights.watch([owner], self.codes[0].asked, self.codes[0].example)
        return weights

    def watch(self, owners: Iterable[nn.Module], asked: Asked, example: Call) -> None:
        """From now on, note what becomes another one in the owners' code; see `jetgraph.tracing.code`."""
        self.codes = tuple(Code(owner, asked, example) for owner in owners)

    def changes(self) -> list[Change]:
        """What is not as it was in the owners' code when it was traced."""
        if not self.codes:
            return []
        with one_at_a_time():
            return [change for code in self.codes for change in code.changes()]

    def now(self) -> tuple[dict[str, Tensor], bool]:
        """All tensors, and whether one has another device or type than it had in the trace.

        It goes once through the modules: a forward pass of a small model takes a few milliseconds, and this some tens
        of microseconds.
        """
        with one_at_a_time():
            return self._toured()

    def _toured(self) -> tuple[dict[str, Tensor], bool]:
        values = dict(self._held)
        moved = False
        for owner, routes, leaves in self._tours:
            root = owner()
            modules: list[nn.Module | None] = [root]
            for parent, child in routes:
                above = modules[parent]
                modules.append(None if above is None else above._modules.get(child))
            for name, index, leaf, look in leaves:
                holder = modules[index]
                value = None if holder is None else holder._parameters.get(leaf)
                if root is None:
                    value = values[name]
                elif value is None or value is not values[name] or look.also or value.shape != look.shape:
                    value = values[name] = self._checked(name, look, root, find(root, look.attributes))
                if value.dtype is not look.dtype or value.device != look.device:
                    moved = True
        return values, moved

    @cached_property
    def _tours(self) -> list[_Tour]:
        """How to pass each module once, by owner."""
        # By number: what no longer lives has no hash.
        tours: dict[int, _Tour] = {}
        places: dict[tuple[int, tuple[str, ...]], int] = {}
        for name, look in self._looks.items():
            _, routes, leaves = tours.setdefault(id(look.owner), (look.owner, [], []))
            index = 0
            for depth, attribute in enumerate(look.attributes[:-1], start=1):
                key = id(look.owner), look.attributes[:depth]
                if key not in places:
                    routes.append((index, attribute))
                    places[key] = len(routes)
                index = places[key]
            leaves.append((name, index, look.attributes[-1], look))
        return list(tours.values())

    def __deepcopy__(self, memo: dict[int, Any]) -> Weights:
        """Copies of the tensors, which belong to the copy of their model where that is being copied too."""
        copied = Weights(copy.deepcopy(dict(self), memo), {})
        owners = ((code, memo.get(id(code.owner))) for code in self.codes)
        copied.codes = tuple(code.of(owner) for code, owner in owners if owner is not None)
        for name, look in self._looks.items():
            owner = memo.get(id(look.owner()))
            if owner is not None:
                copied._looks[name] = replace(look, owner=weakref.ref(owner))
        return copied

    def constants_on(self, device: torch.device | None) -> Weights:
        """The same, with what belongs to no owner (constants of the code) on a device."""
        tensors = {name: held if name in self._looks else held.to(device) for name, held in self._held.items()}
        moved = Weights(tensors, {})
        moved._looks, moved.codes = self._looks, self.codes
        return moved


def device_and_dtype(tensors: Iterable[Tensor]) -> DeviceAndDtype:
    """The device, and the floating-point type of most elements."""
    elements: dict[torch.dtype, int] = {}
    device = None
    for tensor in tensors:
        device = device or tensor.device
        dtype = tensor.dtype
        if dtype.is_floating_point:
            elements[dtype] = elements.get(dtype, 0) + tensor.numel()
    return device, max(elements, key=elements.__getitem__, default=None)


def _accepted(name: str, value: Any, before: Tensor) -> Tensor:
    """What stands in a tensor's place now, if the traced program fits it."""
    if not isinstance(value, Tensor):
        raise _changed(name, "is gone from the model" if value is None else f"has become a {type(value).__name__}")
    if value.is_meta and not before.is_meta:
        raise _changed(name, "has been moved to the meta device, where it has no values")
    if is_traceable_wrapper_subclass(value) and not is_traceable_wrapper_subclass(before):
        raise _changed(name, f"has become a {type(value).__name__}")
    if _kind(value) != _kind(before):
        raise _changed(name, f"has become one of {value.dtype} instead of {before.dtype}")
    return value


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _changed(name: str, how: str) -> StateError:
    return StateError(
        f"since the trace, the weight {name!r} {how}: trace the model again, with jetgraph.trace(model, ...)"
    )
