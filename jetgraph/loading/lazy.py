"""Models whose weights stay in their files until they are used.

transformers loads such a model from tensors that are deferred (`jetgraph.lazy`): it renames, casts, stacks and ties
them as it does all others, and nothing is read. What a trace needs besides, a model that runs, is a stand-in: the same
modules over other weights of the same shapes, each a window that slides over a few random numbers, so that it takes no
memory either.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from jetgraph.errors import LoadError
from jetgraph.export.waiting import progress
from jetgraph.files.writing import reason
from jetgraph.lazy.shelf import Shelf
from jetgraph.lazy.tensors import Deferred
from jetgraph.loading.loaded import Loaded
from jetgraph.loading.quiet import one_line
from jetgraph.loading.request import Options
from jetgraph.loading.spread import without_hooks
from jetgraph.loading.unreadable import not_whole
from jetgraph.running.memory import total

SHARE = 2
"""Weights may take one part in so many of the memory that there is, where nothing else is said."""

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip
"""Of safetensors; what is not here is packed."""


def refuse_packed(name: str, config: Any) -> None:
    """Raise `LoadError` for a checkpoint whose weights are quantised."""
    if quantization := getattr(config, "quantization_config", None):
        method = (
            quantization.get("quant_method")
            if isinstance(quantization, dict)
            else getattr(quantization, "quant_method", None)
        )
        raise LoadError(
            f"the weights of {name} are quantised ({method}), and those cannot be read one by one: load it without "
            "weights='lazy'"
        )


def stored_weights(name: str, location: str, options: Options) -> dict[str, Tensor]:
    """The tensors of a checkpoint, deferred, under the names that they have in it.

    Raises
    ------
    LoadError
        It has no .safetensors files, or a damaged one.
    """
    shelf = Shelf(options.memory or total() // SHARE, progress)
    weights: dict[str, Tensor] = {}
    for file in _files(name, location, options):
        try:
            with safe_open(file, "pt") as stored:
                for key in stored.keys():  # noqa: SIM118 (it is no mapping)
                    tensor = stored.get_slice(key)
                    if (kind := tensor.get_dtype()) not in _TYPES:
                        raise LoadError(
                            f"the weight {key!r} of {name} is of {kind}, a packed type: load it without weights='lazy'"
                        )
                    weights[key] = Deferred.stored(shelf, file, key, tensor.get_shape(), _TYPES[kind])
        except SafetensorError as error:
            raise LoadError(not_whole(file, str(error))) from error
        except OSError as error:
            raise LoadError(f"cannot read {file}: {reason(error)}") from error
    return weights


def _files(name: str, location: str, options: Options) -> list[Path]:
    """The files of a checkpoint, in the order of their names."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
    from transformers.utils.hub import get_checkpoint_shard_files

    source: dict[str, Any] = {} if options.revision is None else {"revision": options.revision}
    with one_line(name):
        for file in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
            path = cached_file(location, file, _raise_exceptions_for_missing_entries=False, **source)
            if path is not None and file == SAFE_WEIGHTS_NAME:
                return [Path(path)]
            if path is not None:
                shards = get_checkpoint_shard_files(location, path, **source)[0]
                return sorted(Path(shard) for shard in shards or ())
    raise LoadError(
        f"{name} has no {SAFE_WEIGHTS_NAME} and no {SAFE_WEIGHTS_INDEX_NAME}, and weights='lazy' reads no other "
        "format: load it without, and save it with model.save_pretrained(folder)"
    )


def lazy(loaded: Loaded) -> Loaded:
    """A model with its stand-in, where weights of it are deferred, as those are that lie on several devices or are
    offloaded; else itself.

    Raises
    ------
    LoadError
        Weights are on `meta`, and nothing says where their values are.
    """
    model = without_hooks(loaded.model)
    if not any(isinstance(parameter, Deferred) for parameter in model.parameters()):
        return replace(loaded, model=model)
    for parameter in model.parameters():
        if isinstance(parameter, Deferred):
            parameter.settle()
    for module in model.modules():
        # Small, and code asks them for their values.
        module._buffers.update(
            {
                key: value.value().to(value.device, copy=True)
                for key, value in module._buffers.items()
                if isinstance(value, Deferred)
            }
        )
    return replace(loaded, model=model, stand_in=_stand_in(model))


def _stand_in(model: nn.Module) -> nn.Module:
    """A copy of a model over weights of the same shapes and types that take next to no memory."""
    copied = copy.deepcopy(model)
    windows = _Windows(next(one.device for one in model.parameters() if isinstance(one, Deferred)))
    made: dict[int, nn.Parameter] = {}
    for module in copied.modules():
        for key, parameter in module._parameters.items():
            if isinstance(parameter, Deferred):
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(windows.like(parameter), parameter.requires_grad)
                module._parameters[key] = made[id(parameter)]
    return copied


class _Windows:
    """Small random weights, all of them windows into a few numbers: rows, or whole matrices of a stack, overlap."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._random = torch.Generator().manual_seed(0)
        self._numbers: dict[tuple[torch.dtype, int], Tensor] = {}
        self._made = 0

    def like(self, tensor: Tensor) -> Tensor:
        """One of a tensor's shape and type; of full rank."""
        shape, dtype = tensor.shape, tensor.dtype
        if tensor.dim() < 2:
            return (torch.rand(shape, generator=self._random) + 0.5).to(self._device, dtype)
        inner = shape[-2:] if tensor.dim() > 2 else shape[-1:]
        # Kernels for stacks of matrices want each of them as it would be by itself.
        strides = (*[_STEP] * (tensor.dim() - len(inner)), *(shape[-1], 1)[-len(inner) :])
        self._made += 1
        start = _STEP * (self._made % _STARTS)
        length = start + 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True) if size)
        return self._of(dtype, shape[-1], length).as_strided(shape, strides, start)

    def _of(self, dtype: torch.dtype, width: int, length: int) -> Tensor:
        """At least so many numbers, as large as weights of so many inputs are."""
        numbers = self._numbers.get((dtype, width))
        if numbers is None or len(numbers) < length:
            numbers = (torch.randn(length, generator=self._random) / max(width, 1) ** 0.5).to(self._device, dtype)
            self._numbers[dtype, width] = numbers
        return numbers


_STEP = 16
_STARTS = 64
"""How far windows, and beginnings of weights, are apart; and how many beginnings there are."""
