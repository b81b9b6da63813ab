"""Models spread over devices as accelerate leaves them, without it: its hooks, as far as jetgraph reads them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


@dataclass
class Hook:
    """Where a module runs, and what has its weights where they are offloaded."""

    execution_device: torch.device
    weights_map: Mapping[str, Tensor] | None = None

    def run(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward, on its device."""
        own = {name: value.to(self.execution_device) for name, value in (self.weights_map or {}).items()}
        args, kwargs = pytree.tree_map_only(Tensor, lambda leaf: leaf.to(self.execution_device), (args, kwargs))
        forward: Any = module._old_forward
        for name, value in own.items():
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
        return forward(*args, **kwargs)


def hooked(module: nn.Module, device: str, *, offloaded: bool = False) -> None:
    """Put a module's own weights on a device, or on `meta` with their values in a mapping, and hang hooks on it."""
    place = torch.device(device)
    for one in module.modules():
        mapping = {name: value.detach().clone() for name, value in one._parameters.items() if value is not None}
        if not mapping and one is not module:
            continue
        for name, value in mapping.items():
            there = value.to("meta" if offloaded else place)
            one._parameters[name] = nn.Parameter(there, requires_grad=False)
        hook = Hook(place, mapping if offloaded else None)
        one.__dict__["_old_forward"] = one.forward
        one.__dict__["_hf_hook"] = hook
        one.__dict__["forward"] = functools.partial(hook.run, one)
