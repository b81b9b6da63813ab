"""How a model is to be loaded: options, what they default to, and which go together."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from jetgraph.errors import InputError, LoadError, quoted
from jetgraph.loading.quiet import first_sentence, quiet


@dataclass(frozen=True)
class Options:
    """Options of `load_model`; None where one is not given."""

    meta: bool | None = None
    weights: str | None = None
    memory: int | None = None
    device: str | torch.device | None = None
    dtype: str | torch.dtype | None = None
    revision: str | None = None
    device_map: str | Mapping[str, Any] | None = None
    trust_remote_code: bool | None = None
    quantization: Any = None
    gguf_file: str | None = None
    peft: Any = None
    tokenizer: Any = field(default=None, repr=False)

    @property
    def given(self) -> dict[str, Any]:
        """Those that are."""
        every = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in every.items() if value is not None and value is not False}

    @property
    def type(self) -> torch.dtype | None:
        """`dtype` as PyTorch's; None where it is left to the checkpoint.

        Raises
        ------
        InputError
            No floating-point type.
        """
        if self.dtype is None or (isinstance(self.dtype, str) and self.dtype == "auto"):
            return None
        named = getattr(torch, self.dtype.removeprefix("torch."), None) if isinstance(self.dtype, str) else self.dtype
        if not isinstance(named, torch.dtype) or not named.is_floating_point:
            raise InputError(
                f"dtype={quoted(self.dtype)} is no floating-point type: give float32, bfloat16, float16, float64, or "
                "auto for that of the checkpoint"
            )
        return named

    @property
    def torch_device(self) -> torch.device | None:
        """`device` as PyTorch's.

        Raises
        ------
        InputError
            There is no such device here.
        """
        if self.device is None:
            return None
        try:
            device = torch.device(self.device)
            torch.empty(1, device=device)
        except Exception as error:
            # PyTorch raises AssertionError, RuntimeError and more for what it was not built for.
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(
                f"device={quoted(self.device)} cannot be used here ({said[0][:200]}): give cpu, cuda, cuda:0, mps, …"
            ) from error
        if device.type == "meta":
            raise InputError("device='meta' has no weights to run: for the structure alone, give meta=True (--meta)")
        return device

    def source(self) -> dict[str, Any]:
        """What says which checkpoint it is, to each `from_pretrained`."""
        arguments: dict[str, Any] = {"trust_remote_code": bool(self.trust_remote_code)}
        more = {"revision": self.revision, "gguf_file": self.gguf_file}
        return arguments | {name: value for name, value in more.items() if value is not None}

    def holding(self) -> dict[str, Any]:
        """What says how a checkpoint's weights are to be held, to a model's `from_pretrained`."""
        arguments: dict[str, Any] = {}
        if self.dtype is not None:
            arguments["dtype"] = self.type or "auto"
        if self.device_map is not None:
            arguments["device_map"] = self.device_map
        if self.quantization is not None:
            arguments["quantization_config"] = quantization_of(self.quantization)
        return arguments

    def check(self) -> None:
        """Raise `InputError` for options that do not go together."""
        given = self.given
        for one, others in _APART.items():
            if one in given and (other := next((other for other in others if other in given), None)):
                raise InputError(f"{one} and {other} do not go together: leave one of the two out")
        _ = self.type, self.torch_device
        if self.weights not in (None, "lazy"):
            raise InputError(f"weights={quoted(self.weights)} is unknown: give 'lazy', or leave it out")
        if self.memory is not None and (self.weights is None or self.memory < 1):
            raise InputError(
                f"memory={quoted(self.memory)} is the number of bytes that weights='lazy' may hold at once, and goes "
                "with that alone"
            )

    def only(self, names: tuple[str, ...], what: str) -> None:
        """Raise `LoadError` where another option is given than those that something takes."""
        for name in self.given:
            if name not in names:
                raise LoadError(f"{name} goes with models that transformers loads, and not with {what}: leave it out")


_APART = {
    "meta": ("device", "device_map", "quantization", "gguf_file", "peft"),
    "device": ("device_map",),
    "weights": ("meta", "device", "device_map", "quantization", "gguf_file", "peft"),
}

_defaults: ContextVar[Options | None] = ContextVar("options of models that are loaded by name", default=None)


@contextlib.contextmanager
def loading_with(**options: Any) -> Iterator[None]:
    """What models that are loaded by name inside are loaded with, unless a call says otherwise.

    >>> with loading_with(dtype="bfloat16"):
    ...     merged(Options(device="cpu")).given
    {'device': 'cpu', 'dtype': 'bfloat16'}
    """
    token = _defaults.set(merged(Options(**options)))
    try:
        yield
    finally:
        _defaults.reset(token)


def merged(options: Options) -> Options:
    """Options over those of `loading_with`."""
    held = _defaults.get()
    return options if held is None else Options(**(held.given | options.given))


def quantization_of(value: Any) -> Any:
    """A config of transformers as it is; a mapping, its JSON, or the name of a method as the config that it stands for.

    Raises
    ------
    LoadError
        transformers knows no such method, or lacks what it needs.
    """
    if isinstance(value, str):
        named: Any = None
        with contextlib.suppress(ValueError, RecursionError):
            named = json.loads(value)
        value = named if isinstance(named, dict) else _method(value)
    if not isinstance(value, Mapping):
        return value
    from transformers.quantizers.auto import AutoQuantizationConfig

    try:
        with quiet():
            return AutoQuantizationConfig.from_dict(dict(value))
    except Exception as error:
        # As in `one_line`; each config says in its own way what it does not take.
        method, said = quoted(value.get("quant_method")), first_sentence(error)
        raise LoadError(
            f"the quantization {method} cannot be made (a method with its settings is such as quanto:weights=int8): "
            f"{said}"
        ) from error


def _method(text: str) -> dict[str, Any]:
    """`quanto` or `quanto:weights=int8` as a mapping.

    >>> _method("quanto:weights=int8")
    {'quant_method': 'quanto', 'weights': 'int8'}
    """
    method, _, rest = text.partition(":")
    config: dict[str, Any] = {"quant_method": method.strip()}
    for part in filter(None, rest.split(",")):
        name, equals, said = (one.strip() for one in part.partition("="))
        if not equals or not name or not said:
            raise InputError(
                f"quantization {quoted(text)} is not understood: write a method of transformers and its settings, such "
                "as quanto:weights=int8, or its config as JSON"
            )
        try:
            config[name] = json.loads(said)
        except ValueError:
            config[name] = said
    return config
