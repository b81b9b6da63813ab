"""The tensor of a model's result that is explained."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from jetgraph.errors import TraceError


def pick(result: Any, output: str | int | None) -> tuple[str, Tensor]:
    """The tensor of a model's result that `output` names, with its name.

    Raises
    ------
    TraceError
        It names none, or there is no float tensor at all.
    """
    if isinstance(result, Tensor):
        if output not in (None, 0, "0", "logits", "output"):
            raise TraceError(
                f"output={output!r} was asked for, but the model returns a single tensor: leave output= out"
            )
        return "output", result
    if output is not None:
        value = result
        for part in str(output).split("."):
            value = _member(value, part, result)
        if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
            kind = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
            raise TraceError(f"output={output!r} is a {kind}, not a float tensor; there are {_named(result)}")
        return str(output), value
    for name, value in _floats(result):
        if name == "logits":
            return name, value
    for name, value in _floats(result):
        return name, value
    raise TraceError(
        f"the model returns no float tensor, but a {type(result).__name__}: trace a function that calls it and returns "
        "the tensor to explain"
    )


def _member(value: Any, part: str, result: Any) -> Any:
    if isinstance(value, Mapping) and part in value:
        return value[part]
    if isinstance(value, Sequence) and re.fullmatch(r"-?\d+", part) and -len(value) <= int(part) < len(value):
        return value[int(part)]
    if hasattr(value, part):
        return getattr(value, part)
    raise TraceError(f"the model's output has no {part!r}; there are {_named(result)}")


def _floats(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Float tensors inside a model's result, outermost first, with dotted names."""
    if isinstance(value, Tensor):
        if value.dtype.is_floating_point:
            yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _floats(item, f"{name}.{key}".lstrip("."))
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from _floats(item, f"{name}.{index}".lstrip("."))
    elif dataclasses.is_dataclass(value):
        for member in dataclasses.fields(value):
            yield from _floats(getattr(value, member.name), f"{name}.{member.name}".lstrip("."))


def _named(result: Any) -> str:
    return ", ".join(repr(name) for name, _ in _floats(result)) or "no float tensors"
