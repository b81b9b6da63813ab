"""Tensors that were made in inference mode, for autograd, which refuses to save them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
