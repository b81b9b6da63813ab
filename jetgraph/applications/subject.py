"""What an application is about: a model as residual graph, its tokenizer, and inputs in any form that a user has.

Every application takes a model, a residual graph, or a name that `jetgraph.loading.load` takes; and inputs as text, as
token ids, or by keyword. This is the one place where those become one thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from jetgraph.errors import InputError, check, quoted
from jetgraph.export.callables import title, wrap_function
from jetgraph.loading import Loaded, check_text, load, quiet
from jetgraph.residual import ResidualGraph, Traceable, trace
from jetgraph.tracing.trace import rows_looked_up

Model = Traceable | ResidualGraph | Loaded | str | PathLike[str]
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
        check(Subject.inputs, locals())
        if isinstance(given, Mapping):
            return {name: self._moved(value) if isinstance(value, Tensor) else value for name, value in given.items()}
        if isinstance(given, Tensor):
            return {self.first_input: self._moved(given)}
        texts = [given] if isinstance(given, str) else list(given)
        return {self.first_input: self.encode(texts).to(self.device)}

    def _moved(self, value: Tensor) -> Tensor:
        # What has no numbers cannot be moved; the graph says so.
        return value if value.is_meta else value.to(self.device)

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


def stream_inputs(graph: ResidualGraph) -> list[str]:
    """Names of the inputs that the stream starts from."""
    seen, stack = set(), [graph.stream.encoder.exit]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(node.all_input_nodes)
    bindings = (
        graph.traced.bindings[node.name] for node in graph.traced.graph.find_nodes(op="placeholder") if node in seen
    )
    return [binding.name for binding in bindings if binding.kind == "input"]


def last_tokens(graph: ResidualGraph, inputs: Mapping[str, Any], rows: Sequence[int]) -> Tensor | None:
    """The place [batch] of the last token of each row that the attention mask of an output of rows [batch, length]
    counts; None where there is no such mask.

    The mask is the one that goes with what the stream starts from, so of encoder-decoders the decoder's. Raises
    `InputError` for a row without a token.
    """
    for name in stream_inputs(graph):
        prefix = name.removesuffix("input_ids").removesuffix("inputs_embeds")
        mask = inputs.get(f"{prefix}attention_mask") if prefix != name else None
        if isinstance(mask, Tensor) and tuple(mask.shape) == tuple(rows):
            counted = mask.cpu() != 0
            if not bool(counted.any(1).all()):
                empty = (~counted.any(1)).nonzero()[0].item()
                raise InputError(f"row {empty} of '{prefix}attention_mask' counts no token: leave the row out")
            return counted.shape[1] - 1 - counted.flip(1).int().argmax(1)
    return None


FILLED = ("attention_mask", "position_ids", "token_type_ids")
"""Inputs of integers that are no token ids."""


def is_vocabulary(graph: ResidualGraph, size: int, tokenizer: Any | None) -> bool:
    """Whether an output of this size holds a logit for each token, and no features or classes.

    It then has the size of the table in which token ids are looked up, or of the tokenizer, up to a sixteenth by which
    some are padded or lack tokens that are never written. Where neither is known, nothing speaks against it.
    """
    known = [] if tokenizer is None else [len(tokenizer)]
    for node in graph.traced.graph.find_nodes(op="placeholder"):
        binding = graph.traced.bindings[node.name]
        if binding.kind == "input" and binding.name not in FILLED:
            known += [rows for rows in [rows_looked_up(node)] if rows is not None]
    return not known or any(abs(size - number) <= number // 16 for number in known)


def encode(tokenizer: Any | None, text: str, *, special: bool = True) -> list[int]:
    """Token ids of a text, with what the tokenizer puts around one or without it.

    Raises `InputError` where there is no tokenizer, and for a text that is none in Unicode.
    """
    if tokenizer is None:
        raise InputError(f"the text {quoted(text)} needs a tokenizer: pass tokenizer=..., or token ids instead")
    _check_tokenizer(tokenizer)
    check_text(text)
    # Its advice on length is for those who pass the whole to the model; where that fails, an error says so.
    return tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]


def _check_tokenizer(tokenizer: Any | None) -> None:
    """Raise `InputError` for what cannot be asked for the tokens of a text, and their number."""
    looks = callable(tokenizer) and isinstance(tokenizer, Sized) and not isinstance(tokenizer, nn.Module)
    if tokenizer is not None and not looks:
        raise InputError(f"tokenizer={quoted(tokenizer)} is no tokenizer: give one of transformers', or ids as inputs")


def opened(model: Traceable | Loaded | str | PathLike[str], tokenizer: Any | None = None) -> Loaded:
    """A model by name, loaded, or as it is given. Raises `TraceError` for what is no model."""
    if isinstance(model, str | PathLike):
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
    check(subject, locals())
    _check_tokenizer(tokenizer)
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
