"""What an application is about: a model as residual graph, its tokenizer, and inputs in any form that a user has.

Every application takes a model, a residual graph, or a name that `jetgraph.loading.load` takes; and inputs as text, as
token ids, or by keyword. This is the one place where those become one thing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from jetgraph.errors import InputError
from jetgraph.loading import Loaded, load, quiet
from jetgraph.residual import ResidualGraph, Traceable, trace
from jetgraph.tracing import title, wrap_function

Model = Traceable | ResidualGraph | Loaded | str
"""A loaded model, a traced one, or the name of one (a Hugging Face id, a folder, `demo`)."""

Inputs = str | Sequence[str] | Tensor | Mapping[str, Any]
"""A prompt, prompts of equal length in tokens, the model's first input, or its inputs by name."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that is taken apart. Made by `subject`."""

    graph: ResidualGraph
    tokenizer: Any | None
    loaded: Loaded | None
    """The model itself, where it was given."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((tensor.device for tensor in self.graph.traced.tensors.values()), torch.device("cpu"))

    def inputs(self, given: Inputs) -> dict[str, Any]:
        """The model's inputs by name, on its device.

        Raises `InputError` for a text without a tokenizer, for prompts of unequal length, and for an empty one.
        """
        if isinstance(given, Mapping):
            return {
                name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in given.items()
            }
        if isinstance(given, Tensor):
            return {self.first_input: given.to(self.device)}
        texts = [given] if isinstance(given, str) else list(given)
        return {self.first_input: self.encode(texts).to(self.device)}

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Token ids [batch, length] of texts that have the same number of tokens."""
        rows = [encode(self.tokenizer, text) for text in texts]
        lengths = sorted({len(row) for row in rows})
        if not rows or lengths[0] == 0:
            raise InputError("there is no text to look at, or one without a token: give prompts of a word or more")
        if len(lengths) > 1:
            raise InputError(
                f"the prompts have between {lengths[0]} and {lengths[-1]} tokens: give them one by one, or make "
                "them equally long"
            )
        return torch.tensor(rows, dtype=torch.long)

    @cached_property
    def first_input(self) -> str:
        """Name of the input that texts and bare tensors are for: the first one of the trace."""
        return next(iter(self.graph.traced.input_shapes))


def encode(tokenizer: Any | None, text: str, *, special: bool = True) -> list[int]:
    """Token ids of a text, with what the tokenizer puts around one or without it.

    Raises `InputError` where there is no tokenizer.
    """
    if tokenizer is None:
        raise InputError(
            f"the text {textwrap.shorten(text, 40)!r} needs a tokenizer: pass tokenizer=..., or token ids instead"
        )
    # Its advice on length is for those who pass the whole to the model; where that fails, an error says so.
    return tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]


def opened(model: Traceable | Loaded | str, tokenizer: Any | None = None) -> Loaded:
    """A model by name, loaded, or as it is given. Raises `TraceError` for what is no model."""
    if isinstance(model, str):
        return load(model)
    if isinstance(model, Loaded):
        return model
    module = wrap_function(model)
    return Loaded(title(module), module, tokenizer)


def subject(model: Model, inputs: Inputs | None = None, tokenizer: Any | None = None) -> Subject:
    """Trace a model, if it is not traced yet.

    The trace is made on `inputs` where they are given by name or as a tensor, else on example inputs of the kind that
    the model's config describes.

    Raises
    ------
    InputError
        A module without a config, and no inputs to trace it on.
    TraceError
        What is given is none of these, such as a pipeline.
    """
    if isinstance(model, ResidualGraph):
        return Subject(model.current(), tokenizer, None)
    model = opened(model, tokenizer)
    tokenizer = tokenizer if tokenizer is not None else model.tokenizer
    with quiet():
        if isinstance(inputs, Tensor):
            graph = trace(model.model, inputs)
        elif isinstance(inputs, Mapping):
            graph = trace(model.model, inputs=inputs)
        elif hasattr(model.model, "config"):
            example: dict[str, Any] = model.inputs()
            graph = trace(model.model, inputs=example)
        else:
            raise InputError(
                f"{model.name} has no config to derive example inputs from: pass its inputs as a tensor or by name, "
                "or what jetgraph.trace(model, ...) returns"
            )
    return Subject(graph, tokenizer, model)
