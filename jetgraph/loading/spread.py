"""Models whose weights are spread over devices, or offloaded, as accelerate leaves them.

accelerate hangs a hook on modules, which says where the module is to run and, of weights that are offloaded, which
mapping has them; the module itself holds tensors on `meta` then. Such a model is taken as one whose weights are
deferred (`jetgraph.lazy`): each operator runs where its weight is, or is brought to, and streams go there and back.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from jetgraph.errors import LoadError
from jetgraph.export.waiting import progress
from jetgraph.lazy.shelf import Shelf
from jetgraph.lazy.tensors import Deferred

SHARE = 2
"""Weights that are brought from elsewhere may take one part in so many of the machine's memory."""

_HOOK, _FORWARD = "_hf_hook", "_old_forward"
"""What accelerate adds to a module: its hook, and the forward that it stands before."""


def without_hooks(model: nn.Module, memory: int | None = None) -> nn.Module:
    """A model without hooks over the same weights, deferred where they are elsewhere; itself where it has no hooks.

    Parameters
    ----------
    model
        It is left as it is.
    memory
        Bytes that weights may take that are brought from elsewhere; half of the machine's unless given.

    Raises
    ------
    LoadError
        A weight is on `meta`, and no hook says where its value is.
    """
    hooked = [module for module in model.modules() if _hooks(module)]
    if not hooked:
        return model
    shelf = Shelf(memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // SHARE, progress)
    home = _home(model)
    values = {name: tensor for name, tensor in _tensors(model) if _is_elsewhere(tensor, home)}
    found = dict(_deferred(model, values, shelf, home))
    lacking = next((name for name in values if name not in found), None)
    if lacking is not None:
        raise LoadError(
            f"{lacking!r} is on the meta device, without values, and no hook of accelerate's says where they are: load "
            "the model without offloading"
        )
    # Weights are shared, and hooks, which may hold all of them, are not copied.
    shared = [*model.parameters(), *model.buffers(), *(hook for module in hooked for hook in [vars(module)[_HOOK]])]
    copied = copy.deepcopy(model, {id(one): one for one in shared})
    for module in copied.modules():
        _unhook(module)
    made: dict[int, Tensor] = {}
    for name, value in found.items():
        path, _, leaf = name.rpartition(".")
        module, before = copied.get_submodule(path), values[name]
        if leaf in module._parameters:
            one = made.setdefault(id(before), nn.Parameter(value, requires_grad=before.requires_grad))
            module._parameters[leaf] = one  # type: ignore[assignment]
        else:
            module._buffers[leaf] = value
    return copied


def _hooks(module: nn.Module) -> list[Any]:
    """The hooks of a module, one by one."""
    hook = vars(module).get(_HOOK)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


def _unhook(module: nn.Module) -> None:
    """Take the hook away, and put the forward back that it stood before."""
    own = vars(module)
    if own.pop(_HOOK, None) is not None:
        own.pop("forward", None)
        before = own.pop(_FORWARD)
        if getattr(before, "__func__", None) is not type(module).forward:
            module.forward = before  # type: ignore[method-assign]


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _home(model: nn.Module) -> torch.device:
    """Where the model takes its inputs: the device of the first hook that has one."""
    places = (_place(hook) for module in model.modules() for hook in _hooks(module))
    return next((place for place in places if place is not None), torch.device("cpu"))


def _place(hook: Any) -> torch.device | None:
    """Where a hook has its module run."""
    device = getattr(hook, "execution_device", None)
    if device is None:
        return None
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)


def _is_elsewhere(tensor: Tensor, home: torch.device) -> bool:
    return tensor.device != home


def _deferred(
    model: nn.Module, values: dict[str, Tensor], shelf: Shelf, home: torch.device
) -> Iterator[tuple[str, Deferred]]:
    """What stands for tensors that are elsewhere, by name."""
    for path, module in model.named_modules():
        for hook in _hooks(module):
            mapping, place = getattr(hook, "weights_map", None), _place(hook) or home
            # Views of a larger mapping tell the names in that.
            known = set() if mapping is None else {*mapping}
            for leaf, tensor in _tensors(module):
                name = f"{path}.{leaf}" if path else leaf
                if mapping is not None and name in values and tensor.is_meta and {leaf, name} & known:
                    yield name, Deferred.offloaded(shelf, mapping, leaf, tensor, home, place)
    for name, tensor in values.items():
        if not tensor.is_meta:
            yield name, Deferred.placed(shelf, name, tensor.detach(), home)
