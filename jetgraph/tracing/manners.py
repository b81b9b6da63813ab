"""Manners in which a model is called for the exporter, one tried after the other: as given; with masks; with its own
use of a cache; with code that is not told of the exporter; and with derivatives that its code takes, and functions that
it maps over a dimension, written out.

Code that fills in a mask for itself often does so only where nobody traces it, or makes one only where it is traced,
and some models cannot run without the cache that they keep by default. What is assumed is said in the trace's note, and
held at each call: an input that is filled in is none of the trace's, and an option stays what it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jetgraph.tracing.calls import call_options, positional_names, signature_of


@dataclass(frozen=True)
class Manner:
    """How a model is called in an export."""

    options: Mapping[str, Any]
    masks: Mapping[str, str]
    """Names of masks that are filled in, with the argument whose first two sizes each has."""
    note: str = ""
    """What is assumed; empty where nothing is."""
    unseen: bool = False
    """Code that asks whether it is exported or compiled is told that it is not, and does what it does at any call."""
    derived: bool = False
    """Derivatives that code takes (`torch.autograd.grad`, `torch.func.grad`) are written out as what computes them, and
    functions that it maps over a dimension (`torch.vmap`) as operators with that dimension. Of these the exporter knows
    only at a level where composite operators are written out as well.
    """

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Where the model is to be called; for use within `alone`."""
        asked = [getattr(torch.compiler, name) for name in _ASKED] if self.unseen else []
        codes = [function.__code__ for function in asked]
        try:
            for function in asked:
                # What it does, and not what its name stands for: code may have a name of its own for it.
                function.__code__ = _no.__code__
            yield
        finally:
            for function, code in zip(asked, codes, strict=True):
                function.__code__ = code

    def filled(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The named arguments of a call, with the masks that a tokenizer would give: ones, for nothing is padding."""
        given = {**dict(zip(positional_names(model), args, strict=False)), **kwargs}
        masks = {
            name: torch.ones(given[of].shape[:2], dtype=torch.long, device=given[of].device)
            for name, of in self.masks.items()
        }
        return {**kwargs, **masks}


_ASKED = ("is_compiling", "is_exporting", "is_dynamo_compiling")
"""Functions of `torch.compiler` that tell code what is done with it."""


def _no() -> bool:
    return False


def manners(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Manner]:
    """The manners in which a model may be called with these arguments, the most faithful first."""
    plain = call_options(model, kwargs)
    yield Manner(plain, {})
    masks = dict(_masks_left_out(model, args, kwargs))
    note = f"{' and '.join(masks)} filled in as a tokenizer does where nothing is padding"
    if masks:
        yield Manner(plain, masks, note)
    if plain.keys() != kwargs.keys():
        cached = "use_cache as the model has it by default"
        yield Manner(kwargs, {}, cached)
        if masks:
            yield Manner(kwargs, masks, f"{note}; {cached}")
    hidden = "its code is not told that it is exported"
    yield Manner(plain, {}, hidden, unseen=True)
    if plain.keys() != kwargs.keys():
        yield Manner(kwargs, {}, f"{hidden}; use_cache as the model has it by default", unseen=True)
    yield Manner(plain, {}, derived=True)


def _masks_left_out(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Masks that the model takes and is not given, and what tells their size."""
    given = {**dict(zip(positional_names(model), args, strict=False)), **kwargs}
    for name, parameter in signature_of(model).parameters.items():
        prefix = name.removesuffix("attention_mask")
        if prefix == name or parameter.default is not None or given.get(name) is not None:
            continue
        for of in (f"{prefix}input_ids", f"{prefix}inputs_embeds"):
            if isinstance(value := given.get(of), Tensor) and value.dim() > 1:
                yield name, of
                break
