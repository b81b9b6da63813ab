"""A block of GPT-2 from elementary primitives, once for PyTorch and JAX: for rivals that need it in pieces.

`torch.func.jvp` is wrong through `layer_norm` from order 2 and JAX cannot read a PyTorch module. `xp` is `torch` or
`jax.numpy`, which name these operations alike. The softmax takes no maximum off: the scores here are small.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import nn

Weights = dict[str, Any]


def weights(block: nn.Module) -> Weights:
    """The block's parameters by name."""
    return {name: parameter.detach() for name, parameter in block.named_parameters()}


def apply(x: Any, w: Weights, mask: Any, heads: int, xp: Any) -> Any:
    """h + MLP(norm(h)) with h = x + attention(norm(x)); x is [batch, length, width], mask [length, length] added to
    the scores."""
    h = x + attention(norm(x, w["ln_1.weight"], w["ln_1.bias"], xp), w, mask, heads, xp)
    return h + mlp(norm(h, w["ln_2.weight"], w["ln_2.bias"], xp), w, xp)


def norm(x: Any, scale: Any, shift: Any, xp: Any) -> Any:
    """LayerNorm as its definition."""
    centred = x - xp.mean(x, axis=-1, keepdims=True)
    variance = xp.mean(centred * centred, axis=-1, keepdims=True)
    return centred / xp.sqrt(variance + 1e-5) * scale + shift


def attention(x: Any, w: Weights, mask: Any, heads: int, xp: Any) -> Any:
    """Causal attention over all heads."""
    batch, length, width = x.shape
    joint = x @ w["attn.c_attn.weight"] + w["attn.c_attn.bias"]
    parts = joint.reshape(batch, length, 3, heads, width // heads)
    query, key, value = (parts[:, :, i].swapaxes(1, 2) for i in range(3))
    scores = query @ key.swapaxes(-1, -2) / math.sqrt(width // heads) + mask
    powers = xp.exp(scores)
    mixed = (powers / xp.sum(powers, axis=-1, keepdims=True)) @ value
    return mixed.swapaxes(1, 2).reshape(batch, length, width) @ w["attn.c_proj.weight"] + w["attn.c_proj.bias"]


def mlp(x: Any, w: Weights, xp: Any) -> Any:
    """Two layers with the tanh form of GELU between them."""
    inner = x @ w["mlp.c_fc.weight"] + w["mlp.c_fc.bias"]
    active = 0.5 * inner * (1 + xp.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * (inner * inner * inner))))
    return active @ w["mlp.c_proj.weight"] + w["mlp.c_proj.bias"]


def causal(length: int) -> np.ndarray:
    """What is added to the scores: a number whose exponential is 0 above the diagonal."""
    return np.triu(np.full((length, length), -1e9, dtype=np.float32), 1)
