"""The texts that the experiments use, as rows of token ids, and fine-tuning on them.

The texts are on every machine that runs Python: the docstrings and comments of its standard library, on which the
bundled models were trained, and the library's source files whole. Files are set apart as held-out text by a hash of
their name, the same ones for both, so no text that is held out in one is trained on in the other.
"""

from __future__ import annotations

import copy
import sys
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

# The bundled models were made by a script one folder up, whose stages serve here too.
sys.path.insert(0, str(Path(__file__).parents[1]))
from train_demo_model import (
    EXCLUDED_FOLDERS,
    Document,
    Settings,
    load_corpus,
    next_token_loss,
    split,
    windows,
)

CONTEXT = 128
"""Tokens that a model is trained on at a time."""

Loss = Callable[[PreTrainedModel, Tensor], Tensor]
"""A model and token ids [batch, length + 1] → what is to be made small."""


def _root(quick: bool) -> Path:
    library = Path(sysconfig.get_paths()["stdlib"])
    return library / "asyncio" if quick else library


def docstrings(quick: bool = False) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """(training, held-out) docstrings and comments of the standard library; of one package of it with `quick`."""
    return split(load_corpus(_root(quick)).documents)


def source_code(quick: bool = False) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """(training, held-out) source files of the standard library, whole; split as `docstrings` are."""
    root, documents = _root(quick), []
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if EXCLUDED_FOLDERS.intersection(place.parts):
            continue
        try:
            with tokenize.open(path) as file:
                text = file.read()
        except (SyntaxError, UnicodeDecodeError):
            continue  # no Python source; the other corpus leaves it out too
        if text.strip():
            documents.append(Document(".".join(place.with_suffix("").parts).removesuffix(".__init__"), (text,)))
    return split(documents)


def token_row(tokenizer: Any, documents: Sequence[Document], limit: int | None = None) -> Tensor:
    """The first `limit` token ids, int64, of all texts in one row, with the tokenizer's end-of-text between them."""
    separator = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    ends = [] if separator is None else [separator]
    ids = list(ends)
    for text in (text for document in documents for text in document.texts):
        ids.extend((*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], *ends))
        if limit is not None and len(ids) >= limit:
            break
    return torch.tensor(ids[:limit])


class Counts:
    """Conditional frequencies of bi-grams in rows of token ids."""

    def __init__(self, tokens: Tensor, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        pairs = tokens[:-1] * vocabulary + tokens[1:]
        self.codes, self.numbers = (part.numpy() for part in torch.unique(pairs, return_counts=True))
        self.contexts = torch.bincount(tokens[:-1], minlength=vocabulary).numpy()

    def number(self, codes: np.ndarray) -> np.ndarray:
        """How often the pairs a * vocabulary + b occur."""
        place = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        return np.where(self.codes[place] == codes, self.numbers[place], 0)

    def log_frequency(self, codes: np.ndarray) -> np.ndarray:
        """ln of the frequency of b after a, 0.5 added to each count."""
        contexts = self.contexts[codes // self.vocabulary]
        return np.log((self.number(codes) + 0.5) / (contexts + 0.5 * self.vocabulary))


def tuning_settings(model: Any, steps: int, seed: int, learning_rate: float = 1e-3) -> Settings:
    """How a model is fine-tuned: the settings of its first training, but short and with smaller steps."""
    longest = getattr(model.config, "max_position_embeddings", CONTEXT)
    return replace(
        Settings(),
        steps=steps,
        context=min(CONTEXT, longest),
        learning_rate=learning_rate,
        warm_up=20,
        seed=seed,
        threads=torch.get_num_threads(),
    )


def fine_tune(
    model: Any,
    tokens: Tensor,
    settings: Settings,
    loss: Loss = next_token_loss,
    on_checkpoint: Callable[[int, PreTrainedModel], None] | None = None,
    checkpoints: Iterable[int] = (),
    frozen: Iterable[Tensor] = (),
) -> PreTrainedModel:
    """A copy of `model`, trained further on a row of token ids with AdamW; the model itself is not changed.

    There is no dropout, so that the seed of the settings decides everything.

    `on_checkpoint` is called with the number of updates done and the copy, at each number in `checkpoints`. `frozen`
    are parameters of `model` that stay as they are.
    """
    fixed = {id(parameter) for parameter in frozen}
    names = {name for name, parameter in model.named_parameters() if id(parameter) not in fixed}
    tuned = copy.deepcopy(model).eval()
    free = [parameter.requires_grad_(name in names) for name, parameter in tuned.named_parameters()]
    free = [parameter for parameter in free if parameter.requires_grad]
    groups = [
        {"params": [p for p in free if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in free if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas)
    batches, due = windows(tokens, settings), frozenset(checkpoints)
    for step in tqdm(range(settings.steps + 1), desc="fine-tuning", unit="step", leave=False, disable=None):
        if on_checkpoint and step in due:
            on_checkpoint(step, tuned)
        if step == settings.steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(step)
        value = loss(tuned, next(batches).to(model.device))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(free, settings.clip)
        optimizer.step()
    return tuned.requires_grad_(True)
