"""What a person chooses of a tiny model, and small makers of inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Inputs = Callable[[], dict[str, Tensor]]

STREAM: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TEXT: Mapping[str, Any] = {**STREAM, "vocab_size": 128}
GROUPED: Mapping[str, Any] = {**TEXT, "num_key_value_heads": 2}

CODEC: Mapping[str, Any] = {
    **STREAM,
    "num_filters": 4,
    "upsampling_ratios": [2, 2],
    "codebook_size": 16,
    "codebook_dim": 8,
    "num_quantizers": 3,
    "vector_quantization_hidden_dimension": 8,
    "upsample_groups": 32,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "sliding_window": 8,
    "sampling_rate": 800,
}


@dataclass(frozen=True)
class Made:
    """Arguments of a config, and example inputs."""

    config: Mapping[str, Any]
    inputs: Inputs | None = None
    """None: those that the names of the model's arguments ask for."""


def ids(*shape: int, name: str = "input_ids", most: int = 100) -> Inputs:
    """Numbers of tokens, (2, 10) of them if no shape is given."""
    return lambda: {name: torch.randint(5, most, shape or (2, 10), generator=_seeded())}


def normal(name: str, *shape: int) -> Inputs:
    """Pictures, sounds or features."""
    return lambda: {name: torch.randn(shape, generator=_seeded())}


def uniform(name: str, *shape: int) -> Inputs:
    """Numbers of [0, 1), such as corners of boxes."""
    return lambda: {name: torch.rand(shape, generator=_seeded())}


def all_of(*inputs: Inputs, **more: Tensor) -> Inputs:
    """Several inputs, and given ones."""
    return lambda: {name: value for each in inputs for name, value in each().items()} | more


def patched() -> dict[str, Tensor]:
    """Two pictures as rows of patches, of 4 × 4 and of 2 × 8, with a mask."""
    return {
        **normal("pixel_values", 2, 16, 48)(),
        "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4], [2, 8]]),
    }


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
