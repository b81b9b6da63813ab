"""What autograd and transforms of functions ask of tensors: which of them they follow, and which they may save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor, peek_interpreter_stack
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils._pytree import tree_leaves


def may_follow() -> bool:
    """Derivatives of something may be asked for now, or what is done be recorded as a program."""
    return (
        torch.is_grad_enabled()
        or forward_ad._current_level >= 0
        or peek_interpreter_stack() is not None
        or torch.compiler.is_compiling()
        or get_proxy_mode() is not None
    )


def is_followed(tensor: Tensor) -> bool:
    """Derivatives may be asked for of what is made of the tensor: autograd records it; it has a tangent, as it may also
    where nothing is recorded; a derivative of a function sees it, or a trace, which may be run later in any mode.
    """
    if not may_follow():
        return False
    # A compiler cannot ask what a tensor is.
    if torch.compiler.is_compiling() or get_proxy_mode() is not None:
        return True
    while is_batchedtensor(tensor):
        tensor = get_unwrapped(tensor)
    if is_functorch_wrapped_tensor(tensor):
        return True
    return (torch.is_grad_enabled() and tensor.requires_grad) or forward_ad.unpack_dual(tensor).tangent is not None


def recordable(tensor: Tensor) -> Tensor:
    """The tensor, which autograd may save: of one that was made in inference mode another one in the same memory, so
    that it is what the model's own is now; without gradients, as that has none. A copy where memory cannot be shared.

    Tensors of other classes see to themselves: of a lazy one, what is saved is read later.
    """
    if not tensor.is_inference():
        return tensor
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
        return tensor.detach()
    with torch.inference_mode(False), torch.no_grad():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
            return tensor.detach().clone()
        shared = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return shared.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def bound_to(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """By name, what an operator is called with; what is left out at what the operator says."""
    arguments = func._schema.arguments
    named = zip((argument.name for argument in arguments), args, strict=False)
    return {argument.name: argument.default_value for argument in arguments} | dict(named) | dict(kwargs)


def written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """What an operator writes to of what it is called with."""
    if not func._schema.is_mutable:
        return []
    bound = bound_to(func, args, kwargs)
    writes = [each.name for each in func._schema.arguments if each.alias_info is not None and each.alias_info.is_write]
    return [leaf for name in writes for leaf in tree_leaves(bound[name])]
