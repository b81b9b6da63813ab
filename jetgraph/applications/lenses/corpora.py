"""Texts and tensors as windows on which a model is looked at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jetgraph.applications.lenses.points import output_shape
from jetgraph.applications.subject import Model, Subject, subject
from jetgraph.errors import InputError
from jetgraph.loading import Loaded, load_model
from jetgraph.prompts import encode, texts_of


def corpus(
    model: Model,
    texts: str | os.PathLike[str] | Sequence[str] | Tensor,
    tokens: int,
    window: int,
    tokenizer: Any | None,
) -> tuple[Subject, list[Tensor]]:
    """The traced model and the windows on which it is looked at."""
    read = texts if isinstance(texts, Tensor) else texts_of(texts)
    if isinstance(model, str | os.PathLike):
        model = load_model(model)
    if isinstance(read, Tensor):
        if read.dim() < 2:
            raise InputError(f"inputs as a tensor are [windows, length] and more, not of shape {list(read.shape)}")
        windows = list(read)
    else:
        own = getattr(model, "tokenizer", None)
        windows = _cut(read, tokenizer if tokenizer is not None else own, window)
    if not windows:
        raise InputError("there is no text to look at: give one of two tokens or more")
    example = None
    module = model.model if isinstance(model, Loaded) else model
    described = isinstance(model, Loaded) and model.is_described
    if isinstance(module, nn.Module) and not hasattr(module, "config") and not described:
        device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
        example = torch.stack([one for one in windows if one.shape == windows[0].shape][:2]).to(device)
    one = subject(model, example, tokenizer)
    if not isinstance(read, Tensor):
        one.reader.check_length(max(map(len, windows)), "longest piece of text", f"window={window}")
    rows = output_shape(one.graph, one.inputs(windows[0][None]))
    each = rows[1] if len(rows) == 3 else 1
    number = -(-tokens // each) if isinstance(read, Tensor) else None
    chosen = spread(windows, tokens) if number is None else _even(len(windows), number)
    return one, [windows[i] for i in chosen]


def _cut(texts: Sequence[str], tokenizer: Any | None, window: int) -> list[Tensor]:
    """Windows of ids, at least two tokens long."""
    windows = []
    for text in texts:
        ids = encode(tokenizer, text)
        pieces = (ids[start : start + window] for start in range(0, len(ids), window))
        windows.extend(torch.tensor(piece, dtype=torch.long) for piece in pieces if len(piece) > 1)
    return windows


def spread(windows: Sequence[Tensor], tokens: int) -> list[int]:
    """Windows at even distances, about as many as hold `tokens` tokens."""
    total = sum(window.shape[0] if window.dim() == 1 else 1 for window in windows)
    return _even(len(windows), -(-tokens * len(windows) // total))


def _even(total: int, number: int) -> list[int]:
    return [i * total // number for i in range(number)] if number < total else list(range(total))
