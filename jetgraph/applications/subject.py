"""What an application is about: a model as residual graph, its tokenizer, and inputs in any form that a user has.

Every application takes a model, a residual graph, or a name that `jetgraph.load_model` takes; and inputs as text, as
token ids, or by keyword. This is the one place where those become one thing.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from jetgraph.algebra.dialects import parts_asked
from jetgraph.algebra.expansion import Expansion, expand
from jetgraph.algebra.outline import Split
from jetgraph.algebra.paths import Path
from jetgraph.algebra.rules import Freeze
from jetgraph.applications.readout import token_text
from jetgraph.errors import InputError, amount, check, quoted
from jetgraph.export.callables import title, wrap_function
from jetgraph.export.reach import above
from jetgraph.loading import Loaded, load_model, quiet
from jetgraph.loading.lazy import lazy
from jetgraph.loading.loaded import graph_inputs
from jetgraph.prompts import Prompts, Reader, check_tokenizer, encode, prompts_of
from jetgraph.residual import Looked, ResidualGraph, Traceable, trace
from jetgraph.running.forward import Forward
from jetgraph.tracing.traced import rows_looked_up

Model = Traceable | ResidualGraph | Loaded | str | PathLike[str]
"""A loaded model, a traced one, or the name of one (a Hugging Face id, a folder, `demo`)."""

Inputs = Prompts | Tensor | Mapping[str, Any]
"""A prompt, a path of a file that holds one, or several, the model's first input, or its inputs by name."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that is taken apart. Made by `subject`."""

    graph: ResidualGraph
    tokenizer: Any | None
    loaded: Loaded | None
    """The model itself, where it was given."""
    looked: Looked | None = None
    """The graph's weights, where they have been looked up."""

    def run(self, given: Mapping[str, Any]) -> Forward:
        """A forward pass on inputs by name, with the weights as they were when this was made."""
        return self.graph.run(**given) if self.looked is None else self.looked.run(given)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((tensor.device for tensor in self.graph.traced.tensors.values()), torch.device("cpu"))

    @property
    def parameters(self) -> int:
        """Number of parameters of the model, tied ones once; of a graph alone those that its output reads."""
        return self.graph.traced.parameters if self._loaded is None else self._loaded.parameters

    def inputs(self, given: Inputs) -> dict[str, Any]:
        """The model's inputs by name, on its device.

        Prompts of unequal length are padded (see `Loaded.inputs`).

        Raises
        ------
        InputError
            A text without a tokenizer, an empty one, and prompts of unequal length where the graph has no mask.
        """
        check(Subject.inputs, locals())
        if isinstance(given, Mapping):
            return {name: self._moved(value) if isinstance(value, Tensor) else value for name, value in given.items()}
        if isinstance(given, Tensor):
            self.reader.check_ids(given)
            return {self.first_input: self._moved(given)}
        known, names = self._loaded, self.graph.traced.input_shapes.keys()
        read = known.inputs(given, names) if known is not None else graph_inputs(self.reader, given, self.graph)
        return {name: value.to(self.device) for name, value in self._by_name(read).items()}

    def _moved(self, value: Tensor) -> Tensor:
        # What has no numbers cannot be moved; the graph says so.
        return value if value.is_meta else value.to(self.device)

    def _by_name(self, read: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inputs made from texts under the names of the trace, where token ids may have another one."""
        (main, ids), *rest = read.items()
        return {main if main in self.graph.traced.input_shapes else self.first_input: ids, **dict(rest)}

    @property
    def reader(self) -> Reader:
        """What reads texts for the model."""
        known = self._loaded
        return Reader(self.graph.title, self.tokenizer) if known is None else known.reader

    @cached_property
    def _loaded(self) -> Loaded | None:
        """The model with this tokenizer; also of a graph, while its model lives."""
        if self.loaded is not None:
            return self.loaded.read_by(self.tokenizer)
        module = self.graph.traced.model
        return None if module is None else Loaded(self.graph.title, module, self.tokenizer)

    @cached_property
    def first_input(self) -> str:
        """Name of the input that texts and bare tensors are for: the first one of the trace."""
        return next(iter(self.graph.traced.input_shapes))


def one_by_one(prompts: Inputs | Sequence[Inputs]) -> list[Inputs]:
    """Inputs one by one; a file is the texts that it holds.

    Raises
    ------
    InputError
        What is no input.
    """
    given: list[Any] = []
    if isinstance(prompts, str | PathLike | Tensor | Mapping):
        given.append(prompts)
    else:
        given.extend(prompts)
    listed: list[Inputs] = []
    for one in given:
        if isinstance(one, str | PathLike):
            listed += prompts_of(one)
        elif isinstance(one, Tensor | Mapping):
            listed.append(one)
        else:
            raise InputError(
                f"a prompt is a text, token ids or inputs by name, and {type(one).__name__} is none: give several as "
                "a list of these"
            )
    return listed


def stream_inputs(graph: ResidualGraph) -> list[str]:
    """Names of the inputs that the stream starts from."""
    read = above([graph.stream.encoder.exit])
    return [name for node, name in graph.traced.inputs.items() if node in read]


def counted_tokens(graph: ResidualGraph, inputs: Mapping[str, Any], rows: Sequence[int]) -> Tensor | None:
    """Which tokens of the inputs are no padding.

    Parameters
    ----------
    graph
        The traced model.
    inputs
        Its inputs by name.
    rows
        The shape of an output's rows, [batch, length].

    Returns
    -------
    Tensor | None
        True [batch, length] where the attention mask counts a token; None where there is no such mask. It is the mask
        that goes with what the stream starts from, so of encoder-decoders the decoder's.
    """
    mask = inputs.get(_mask_name(graph, inputs, rows) or "")
    return None if mask is None else mask.cpu() != 0


def last_tokens(graph: ResidualGraph, inputs: Mapping[str, Any], rows: Sequence[int]) -> Tensor | None:
    """The place [batch] of the last token of each row; parameters and what there is without a mask as of
    `counted_tokens`.

    Raises
    ------
    InputError
        A row without a token.
    """
    counted = counted_tokens(graph, inputs, rows)
    if counted is None:
        return None
    if not bool(counted.any(1).all()):
        empty = (~counted.any(1)).nonzero()[0].item()
        raise InputError(f"row {empty} of {_mask_name(graph, inputs, rows)!r} counts no token: leave the row out")
    return counted.shape[1] - 1 - counted.flip(1).int().argmax(1)


def _mask_name(graph: ResidualGraph, inputs: Mapping[str, Any], rows: Sequence[int]) -> str | None:
    for name in stream_inputs(graph):
        prefix = name.removesuffix("input_ids").removesuffix("inputs_embeds")
        mask = inputs.get(f"{prefix}attention_mask") if prefix != name else None
        if isinstance(mask, Tensor) and tuple(mask.shape) == tuple(rows):
            return f"{prefix}attention_mask"
    return None


FILLED = ("attention_mask", "position_ids", "token_type_ids")
"""Inputs of integers that are no token ids."""


def is_vocabulary(graph: ResidualGraph, size: int, tokenizer: Any | None) -> bool:
    """Whether an output of this size holds a logit for each token, and no features or classes.

    It then has the size of the table in which token ids are looked up, or of the tokenizer, up to a sixteenth by which
    some are padded or lack tokens that are never written. Where neither is known, nothing speaks against it.
    """
    known = [] if tokenizer is None else [len(tokenizer)]
    for node, name in graph.traced.inputs.items():
        if name not in FILLED:
            known += [rows for rows in [rows_looked_up(node)] if rows is not None]
    return not known or any(abs(size - number) <= number // 16 for number in known)


def is_features(graph: ResidualGraph, size: int) -> bool:
    """Whether an output of this size is the stream's features, as of an encoder, and no logits."""
    shape = graph.structure.decoder.nonlinear.entry.meta["shape"]
    return size in shape[-1:] and not is_vocabulary(graph, size, None)


DIRECTION = "direction of the output"
"""What is told of features where no target is named."""


def own_direction(graph: ResidualGraph, output: Tensor) -> Tensor | None:
    """The direction of an output of features [..., features], in float64: what is told of it where no target is named,
    for its largest feature says nothing by itself. None of logits.
    """
    if not is_features(graph, output.shape[-1]):
        return None
    features = output.detach().double()
    length = features.norm(dim=-1, keepdim=True)
    return features / length.where(length > 0, 1.0)


class TokenWarning(UserWarning):
    """A text stands for another token than it is written as."""


def _first_asked(text: str) -> tuple[str, bool]:
    """A text without the dots at its end that ask for its first token, and whether there are such."""
    first = text.removesuffix("…").removesuffix("...")
    return first, bool(first) and first != text


def encode_token(tokenizer: Any | None, text: str, what: str) -> int:
    """The id of a text that is one token.

    Parameters
    ----------
    tokenizer
        Of the model.
    text
        Without what the tokenizer puts around one. One that ends in `…` stands for its first token; one that is several
        tokens, and one token with a space before it, for that, with a `TokenWarning`.
    what
        What the token is for, as a message says it.

    Raises
    ------
    InputError
        As `encode`, an empty text, and one of another number of tokens, which are shown.
    """
    if not text:
        raise InputError(f"'' names no token, but a {what} holds one: write its text (a space is ' '), or give its id")
    first, ended = _first_asked(text)
    ids = encode(tokenizer, text, special=False)
    if len(ids) != 1 and ended and (whole := encode(tokenizer, first, special=False)):
        return whole[0]
    if len(ids) != 1 and not text[:1].isspace() and len(spaced := encode(tokenizer, f" {text}", special=False)) == 1:
        pieces = amount(len(ids), "token")
        what = f"{quoted(text)} is {pieces}, and {quoted(f' {text}')} is one, #{spaced[0]}, which is taken"
        warnings.warn(what, TokenWarning, stacklevel=2)
        return spaced[0]
    if len(ids) != 1:
        pieces = ", ".join(token_text(tokenizer, index) for index in ids[:6]) + (", …" if len(ids) > 6 else "")
        raise InputError(
            f"{quoted(text)} is {amount(len(ids), 'token')} ({pieces or 'none'}), but a {what} holds one token: name "
            f"one of them, give its id, or write {quoted(f'{text}…')} for the first"
        )
    return ids[0]


def opened(model: Traceable | Loaded | str | PathLike[str], tokenizer: Any | None = None) -> Loaded:
    """A model by name, loaded, or as it is given.

    Raises
    ------
    TraceError
        What is no model.
    """
    if isinstance(model, str | PathLike):
        return load_model(model)
    if isinstance(model, Loaded):
        return model
    module = wrap_function(model)
    return lazy(Loaded(title(module), module, tokenizer))


def subject(model: Model, inputs: Inputs | None = None, tokenizer: Any | None = None) -> Subject:
    """Trace a model, if it is not traced yet.

    The trace is made on `inputs` where they are given by name or as a tensor, else on example inputs of the kind that
    the model's config describes.

    Raises
    ------
    InputError
        A module without a config, and no inputs to trace it on; texts that the model cannot take.
    TraceError
        What is given is none of these, such as a pipeline.
    """
    check(subject, locals())
    check_tokenizer(tokenizer)
    if isinstance(model, ResidualGraph):
        return _looked(model, tokenizer)
    model = opened(model, tokenizer)
    tokenizer = tokenizer if tokenizer is not None else model.tokenizer
    if model.graph is not None:
        return _looked(model.graph, tokenizer)
    read: dict[str, Any] = {}
    if isinstance(inputs, Tensor):
        model.reader.check_ids(inputs)
    if model.is_described and isinstance(inputs, str | PathLike | Sequence):
        # What is wrong with a text is said before the model is traced, which can take a minute.
        read = model.read_by(tokenizer).inputs(inputs)
    with quiet():
        if isinstance(inputs, Tensor):
            graph = trace(model.stand_in or model.model, inputs)
            graph = graph if model.stand_in is None else graph.over(model.model)
        elif isinstance(inputs, Mapping):
            graph = model.trace(inputs)
        elif model.is_described:
            # Padding needs a mask, which the graph has to take.
            graph = model.trace(read if "attention_mask" in read else model.inputs())
        else:
            raise InputError(
                f"{model.name} has no config to derive example inputs from: pass its inputs as a tensor or by name, "
                "or what jetgraph.trace(model, ...) returns"
            )
    return Subject(graph, tokenizer, model)


def _looked(graph: ResidualGraph, tokenizer: Any | None) -> Subject:
    looked = Looked.at(graph)
    return Subject(looked.graph, tokenizer, None, looked)


def expanded(
    model: Model | Expansion, inputs: Inputs, split: Split | None, tokenizer: Any | None, patterns: Any = None
) -> tuple[Subject, Expansion]:
    """The expansion to work on, and the graph that it is of; branches of which patterns name parts are split.

    Raises
    ------
    InputError
        A split of what is expanded already, or an expansion of an outline.
    """
    if isinstance(model, Expansion):
        if split is not None:
            raise InputError(f"split={quoted(split)} comes too late for an expansion: give split to jetgraph.expand")
        if not isinstance(model.graph, ResidualGraph):
            raise InputError("this expansion was made from an outline, which has no tensors to run")
        # Of the weights' place of now, where the model was moved or cast since the trace.
        studied = subject(model.graph, tokenizer=tokenizer)
        return studied, model if studied.graph is model.graph else replace(model, graph=studied.graph)
    studied = split_subject(subject(model, inputs, tokenizer), split, patterns)
    sites = studied.graph.outline.sites()
    held = {site.alias: Freeze() for site in sites if site.role != "branch" and not site.affine}
    return studied, expand(studied.graph, recipe="components", rules=held)


def split_subject(subject: Subject, split: Split | None, patterns: Any = None) -> Subject:
    """A subject with branches cut into parts: those that `split` says, else those of which patterns name parts."""
    if split is None and subject.graph.parts is None and patterns is not None:
        # What is selected already was so by its own names.
        listed = patterns if isinstance(patterns, list | tuple) else [patterns]
        split = parts_asked((one for one in listed if isinstance(one, str | Path)), subject.graph.outline)
    return subject if split is None else Subject(subject.graph.split(split), subject.tokenizer, subject.loaded)
