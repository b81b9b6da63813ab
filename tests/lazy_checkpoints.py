"""Checkpoints of several shards, larger than what weights are allowed to take."""

import pathlib

import torch
import transformers
from torch import nn

from jetgraph.lazy.shelf import Shelf
from jetgraph.lazy.tensors import Deferred

LLAMA = transformers.LlamaConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=48,
)


def saved(model: nn.Module, folder: pathlib.Path) -> int:
    """Save a model in shards, and give the bytes of its weights."""
    model.save_pretrained(folder, max_shard_size="10KB")  # type: ignore[operator]
    assert len(list(folder.glob("*.safetensors"))) > 1
    return sum(parameter.nbytes for parameter in model.parameters())


def shelf_of(model: nn.Module) -> Shelf:
    return next(parameter.shelf for parameter in model.parameters() if isinstance(parameter, Deferred))


def value(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.value() if isinstance(tensor, Deferred) else tensor
