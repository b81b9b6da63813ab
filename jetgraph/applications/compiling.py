"""Whether kernels of our own can be had."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn


def kernels_for(values: Tensor) -> Any:
    """The module `kernels`, for values on a device that has them; None where operators of PyTorch have to do.

    It is imported here alone, for it needs Triton, which PyTorch brings with it where it has CUDA.
    """
    plain = values.device.type == "cuda" and type(values) in (Tensor, nn.Parameter)
    return _compiled(values.device) if plain else None


@cache
def _compiled(device: torch.device) -> Any:
    """The module, where Triton is there and compiles what gives the right numbers."""
    if find_spec("triton") is None:
        return None
    import jetgraph.applications.kernels as kernels

    try:
        kernels.check(device)
    # Triton, the compilers that it calls and the driver raise errors of their own.
    except Exception as error:
        warnings.warn(
            f"logits are looked at operator by operator, which takes longer: Triton does not serve {device} ({error})",
            stacklevel=2,
        )
        return None
    return kernels
