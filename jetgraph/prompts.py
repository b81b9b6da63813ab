"""What a text becomes as inputs: token ids that a tokenizer writes, and no more of them than the model takes.

Models loaded by name, every application and the command line read texts here, so that what cannot be read is refused in
the same words on every way.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jetgraph.errors import InputError, quoted


@dataclass(frozen=True, eq=False)
class Batch:
    """Token ids of texts, [batch, length], the shorter ones padded."""

    ids: Tensor
    mask: Tensor
    """1 where there is a token, 0 where there is padding."""

    @property
    def padded(self) -> bool:
        """There is padding."""
        return not bool(self.mask.all())

    @property
    def on_the_left(self) -> bool:
        """There is padding before a text."""
        return not bool(self.mask[:, 0].all())

    @property
    def positions(self) -> Tensor:
        """The number of each token in its own text; 0 for padding before it."""
        return (self.mask.cumsum(1) - 1).clamp(min=0)


def unmasked(batch: Batch, says: str) -> InputError:
    """What is told of prompts that need a mask which something does not take."""
    lengths = batch.mask.sum(1)
    return InputError(
        f"the prompts have between {int(lengths.min())} and {int(lengths.max())} tokens, but {says} attention_mask: "
        "give them one by one, or make them equally long, or give the model itself, which is then traced with a mask"
    )


def _padding(tokenizer: Any) -> int:
    """The id that stands where there is no token; any will do, as it is masked."""
    known = (getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
    return next((index for index in known if isinstance(index, int)), 0)


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads texts for one model."""

    name: str
    """The model, as messages call it."""
    tokenizer: Any | None
    longest: int | None = None
    """The most tokens that the model takes, where that is known."""
    other: str | None = None
    """The input that the model takes in place of token ids."""

    def read(self, texts: str | Sequence[str], side: str | None = None) -> Batch:
        """Token ids of texts; shorter ones are padded on the side that the tokenizer says, or on another.

        Parameters
        ----------
        texts
            A text, or several.
        side
            `left` or `right`, whatever the tokenizer says.

        Raises
        ------
        InputError
            A model that takes no token ids, no tokenizer, no text, one without a token, or more tokens than the model
            takes.
        """
        listed = [texts] if isinstance(texts, str) else list(texts)
        if self.other is not None:
            raise InputError(
                f"{self.name} takes {self.other!r}, so it takes no prompt: look at it from Python, with its inputs by "
                "name"
            )
        if not listed:
            raise InputError("there is no text to look at: give a prompt of a word or more")
        if self.tokenizer is None:
            raise InputError(
                f"the text {quoted(listed[0])} needs a tokenizer, but {self.name} has no tokenizer, so it takes no "
                "prompt: name one with --tokenizer, or from Python pass tokenizer=..., or token ids instead"
            )
        rows = [encode(self.tokenizer, text) for text in listed]
        for text, row in zip(listed, rows, strict=True):
            if not row:
                raise InputError(
                    f"there is no text to look at: the prompt {quoted(text)} has no tokens; give one with at least one "
                    "word"
                )
        longest = max(map(len, rows))
        self.check_length(longest)
        left = (side or getattr(self.tokenizer, "padding_side", "right")) == "left"
        pad, padded = _padding(self.tokenizer), list[list[int]]()
        for row in rows:
            filling = [pad] * (longest - len(row))
            padded.append([*filling, *row] if left else [*row, *filling])
        ids, lengths = torch.tensor(padded, dtype=torch.long), torch.tensor([len(row) for row in rows])
        places = torch.arange(longest)
        counted = places >= longest - lengths[:, None] if left else places < lengths[:, None]
        return Batch(ids, counted.long())

    def check_length(self, tokens: int, what: str = "prompt") -> None:
        """Raise `InputError` for more tokens than the model takes."""
        if self.longest is not None and tokens > self.longest:
            raise InputError(f"the {what} has {tokens} tokens, more than the {self.longest} that {self.name} takes")


def longest_of(config: Any | None) -> int | None:
    """The most tokens that a model of this config takes; None where it does not say."""
    longest = getattr(config, "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None


def encode(tokenizer: Any | None, text: str, *, special: bool = True) -> list[int]:
    """Token ids of a text, with what the tokenizer puts around one or without it.

    Raises
    ------
    InputError
        No tokenizer, or a text that is none in Unicode.
    """
    if tokenizer is None:
        raise InputError(f"the text {quoted(text)} needs a tokenizer: pass tokenizer=..., or token ids instead")
    check_tokenizer(tokenizer)
    check_text(text)
    # Its advice on length is for those who pass the whole to the model; where that fails, an error says so.
    return tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]


def check_tokenizer(tokenizer: Any | None) -> None:
    """Raise `InputError` for what cannot be asked for the tokens of a text, and their number."""
    looks = callable(tokenizer) and isinstance(tokenizer, Sized) and not isinstance(tokenizer, nn.Module)
    if tokenizer is not None and not looks:
        raise InputError(f"tokenizer={quoted(tokenizer)} is no tokenizer: give one of transformers', or ids as inputs")


def check_text(text: str) -> None:
    """Raise `InputError` for a text that has no UTF-8 form, such as a prompt from a terminal of another encoding."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text {quoted(text)} holds {quoted(text[error.start])}, which is half of a character: give it in UTF-8"
        ) from None
