"""A model traced so that contexts of some tokens can be passed, and its input of token ids."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from jetgraph.applications.subject import FILLED, Model, Subject, is_vocabulary, opened, subject
from jetgraph.errors import InputError, amount
from jetgraph.loading import Loaded
from jetgraph.residual import ResidualGraph


def filling(name: str, length: int, distance: int) -> Tensor:
    """Values of an input besides the token ids, [1, length], for contexts without padding."""
    if name == "position_ids":
        return torch.arange(length, device="cpu")[None] * distance
    value = 1 if name == "attention_mask" else 0
    return torch.full((1, length), value, dtype=torch.long, device="cpu")


def fitting(model: Model | Subject, tokenizer: Any | None, n: int, distance: int) -> Subject:
    """The model, traced so that contexts of n - 1 tokens, `distance` apart, can be passed."""
    if not isinstance(model, Subject | ResidualGraph):
        model = opened(model, tokenizer)
    if not isinstance(model, Loaded) or model.graph is not None or distance == 1:
        studied = model if isinstance(model, Subject) else subject(model, tokenizer=tokenizer)
        studied = studied if tokenizer is None else replace(studied, tokenizer=tokenizer)
    else:
        reader, example = model.reader, model.inputs()
        reader.check_length(distance * (n - 2) + 1, "way from the first token to the last", f"distance={distance}")
        if reader.longest is not None:
            # As many tokens of the example as there are positions for.
            some = max(n - 1, (reader.longest - 1) // distance + 1)
            example = {name: value[:, :some] for name, value in example.items()}
        studied = _positioned(model, example, distance, tokenizer)
    ids = ids_input(studied)
    needed = [ids] if distance == 1 else [ids, "position_ids"]
    if _fits(studied, ids, n, needed):
        return studied
    if studied.loaded is None:
        raise InputError(
            f"the graph was traced with {signature(studied)}, but these n-grams need {' and '.join(needed)} of any "
            f"batch size and of length {n - 1}: give the model itself, or trace it so"
        )
    example = {ids: torch.arange(2 * (n - 1)).view(2, n - 1).to(studied.device)}
    again = _positioned(studied.loaded, example, distance, studied.tokenizer)
    if not _fits(again, ids, n, needed):
        raise InputError(
            f"{studied.loaded.name} can only be traced with {signature(again)}, but n-grams need any batch size and "
            f"the length {n - 1}. {again.graph.traced.note}"
        )
    return again


def _fits(subject: Subject, ids: str, n: int, needed: Sequence[str]) -> bool:
    shapes = subject.graph.traced.input_shapes
    batch, length = shapes[ids]
    return isinstance(batch, str) and (isinstance(length, str) or length == n - 1) and set(needed) <= set(shapes)


def signature(subject: Subject) -> str:
    """The inputs of a trace, as messages tell them."""
    shapes = subject.graph.traced.input_shapes.items()
    return ", ".join(f"{name}[{', '.join(map(str, shape))}]" for name, shape in shapes)


def _positioned(loaded: Loaded, example: dict[str, Tensor], distance: int, tokenizer: Any | None) -> Subject:
    """The model traced on example ids; with positions, where they are not those of neighbours."""
    if distance != 1:
        known = inspect.signature(loaded.model.forward).parameters
        if "position_ids" not in known:
            raise InputError(
                f"{loaded.name} takes no position_ids, so distance={distance} cannot be told to it: leave distance at 1"
            )
        ids = next(iter(example.values()))
        # Without a mask, transformers takes a gap between positions for the border of two packed texts.
        for name in ("position_ids", *(["attention_mask"] if "attention_mask" in known else [])):
            example |= {name: filling(name, ids.shape[1], distance).repeat(ids.shape[0], 1).to(ids.device)}
    return subject(loaded, example, tokenizer)


def ids_input(subject: Subject) -> str:
    """The one input of token ids.

    Raises
    ------
    InputError
        There is none, or more than one besides the known fillings.
    """
    traced = subject.graph.traced
    integers, others = [], []
    for node, name in traced.inputs.items():
        if name not in FILLED:
            dtype = node.meta["dtype"]
            (others if dtype.is_floating_point or dtype == torch.bool else integers).append(name)
    if len(integers) != 1 or others or len(traced.input_shapes[integers[0]]) != 2:
        raise InputError(
            f"n-grams need a model with one input of token ids [batch, length], but {subject.graph.title} takes "
            f"{signature(subject)}"
        )
    return integers[0]


def without_ngrams(subject: Subject) -> str:
    """Why a model has no n-grams: it reads no tokens, or gives no logits of them; nothing where it has."""
    try:
        ids_input(subject)
        vocabulary_of(subject)
    except InputError as error:
        return str(error)
    return ""


def token_number(subject: Subject, ids: str, vocabulary: int) -> int:
    """Rows of the embedding that the token ids index, as far as config and graph tell; else the output's size."""
    traced = subject.graph.traced
    facts = None if subject.loaded is None else subject.loaded.facts
    # A config that does not say how many tokens there are is of 2.
    sizes = [facts.vocabulary] if facts is not None and facts.described and facts.vocabulary > 2 else []
    for node in traced.graph.find_nodes(op="call_function", target=torch.ops.aten.embedding.default):
        table, index = node.args[0], node.args[1]
        binding = traced.bindings.get(index.name)
        if binding is not None and binding.name == ids:
            sizes.append(table.meta["shape"][0])
    return min(sizes, default=vocabulary)


def vocabulary_of(subject: Subject) -> int:
    """Number of next tokens: the output's features, read off its shape.

    Raises
    ------
    InputError
        The output is no logits of tokens.
    """
    output, name = subject.graph.traced.output, subject.graph.traced.output_name
    shape = output.meta["shape"]
    if len(shape) not in (2, 3) or not isinstance(shape[-1], int):
        raise InputError(
            f"the output {name!r} has shape {list(shape)}, but logits are [batch, length, vocabulary] or "
            "[batch, vocabulary]: name the output when you trace the model"
        )
    if not is_vocabulary(subject.graph, shape[-1], subject.tokenizer):
        raise InputError(
            f"n-grams need a logit for each token, but the output {name!r} of {subject.graph.title} has "
            f"{amount(shape[-1], 'feature')}: load the model with its language modelling head, or name another "
            "output when you trace it"
        )
    return shape[-1]
