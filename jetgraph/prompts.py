"""What a text becomes as inputs: token ids that a tokenizer writes, and no more of them than the model takes.

Models loaded by name, every application and the command line read texts here, so that what cannot be read is refused in
the same words on every way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jetgraph.errors import FileError, InputError, amount, check, quoted
from jetgraph.export.precision import own_types
from jetgraph.files.writing import absent, is_file, read_text

Prompts = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A text, a file that holds one, or several."""

Message = Mapping[str, str]
"""A turn of a conversation: who speaks (`role`), and what (`content`)."""


class Chat(str):
    """A conversation as a prompt, which a tokenizer writes by its chat template, up to where the model is to answer.

    As a text it is what was said last. Made by `chat`.
    """

    messages: tuple[Message, ...]


def chat(messages: str | Sequence[Message], *, system: str | None = None) -> Chat:
    """A conversation as a prompt, in the format of the model's chat template.

    Parameters
    ----------
    messages
        What the user says; or the turns, each with `role` and `content`. Where the last turn is the assistant's, the
        model continues it.
    system
        What is said before all of it.

    Raises
    ------
    InputError
        No turn, or one without `role` and `content`.

    >>> chat("What is the capital of France?").messages
    ({'role': 'user', 'content': 'What is the capital of France?'},)
    """
    check(chat, locals())
    turns: list[Message] = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    if system is not None:
        turns.insert(0, {"role": "system", "content": system})
    if not turns or not all({*turn} >= {"role", "content"} for turn in turns):
        raise InputError("a conversation is one turn or more, each with 'role' and 'content'")
    conversation = Chat(turns[-1]["content"])
    conversation.messages = tuple(turns)
    return conversation


def texts_of(given: Prompts) -> list[str]:
    """Texts, wherever they are taken: a string is a text, a path is a file that holds one.

    Raises
    ------
    FileError
        There is no such file, or it is no text.
    InputError
        A string that is the name of a file.
    """
    if isinstance(given, os.PathLike):
        if not is_file(given):
            raise FileError(f"{absent(given)}: name one that holds a prompt, or give its text")
        return [read_text(given)]
    if not isinstance(given, str):
        return [one if isinstance(one, str) else texts_of(one)[0] for one in given]
    if re.fullmatch(r"\S+\.(txt|md|text|csv|jsonl?|py)", given) is None:
        return [given]
    if not is_file(given):
        raise FileError(f"there is no text file {quoted(given)}: give prompts as a list, and files as pathlib.Path")
    raise InputError(
        f"{quoted(given)} is a text here, and there is a file of this name: give pathlib.Path({quoted(given)}) for the "
        f"file, or [{quoted(given)}] for the text"
    )


def prompts_of(given: Prompts) -> list[str]:
    """Prompts: a string is always one, and a path is a file that holds one, without the line's end at its end.

    Raises
    ------
    FileError
        As `texts_of`.
    """
    listed = [given] if isinstance(given, str | os.PathLike) else list(given)
    return [one if isinstance(one, str) else texts_of(one)[0].rstrip("\r\n") for one in listed]


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
        f"the prompts have between {int(lengths.min())} and {amount(int(lengths.max()), 'token')}, but {says} "
        "attention_mask: give them one by one, or make them equally long, or give the model itself, which is then "
        "traced with a mask"
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
    unread: Callable[[], str] = str
    """Why a tokenizer that is there cannot be read; nothing where there is none."""

    @own_types()
    def read(self, texts: Prompts, side: str | None = None) -> Batch:
        """Token ids of texts; shorter ones are padded on the side that the tokenizer says, or on another.

        Parameters
        ----------
        texts
            A text, a file of one, or several.
        side
            `left` or `right`, whatever the tokenizer says.

        Raises
        ------
        InputError
            A model that takes no token ids, no tokenizer, no text, one without a token, or more tokens than the model
            takes.
        """
        listed = prompts_of(texts)
        if self.other is not None:
            raise InputError(
                f"{self.name} takes {self.other!r}, so it takes no prompt: leave it out where example inputs came with "
                "the model, or look at it from Python, with its inputs by name"
            )
        if not listed:
            raise InputError("there is no text to look at: give a prompt of a word or more")
        self.check_tokenizer(f"prompt such as {quoted(listed[0])}")
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

    def check_tokenizer(self, what: str) -> None:
        """Raise `InputError` where there is no tokenizer that reads a prompt or another text."""
        if self.tokenizer is not None:
            return
        why = self.unread()
        seen = f"the tokenizer of {self.name} cannot be read ({why})" if why else f"{self.name} has no tokenizer"
        raise InputError(
            f"{seen}, so it takes no {what}: name one with --tokenizer, or from Python pass tokenizer=..., or token ids"
        )

    def check_length(self, tokens: int, what: str = "prompt", option: str = "") -> None:
        """Raise `InputError` for more tokens than the model takes; where an option asks for them, it is named."""
        if self.longest is not None and tokens > self.longest:
            said = f"{option}: " if option else ""
            told = (
                f"{said}the {what} has {amount(tokens, 'token')}, more than the {self.longest} that {self.name} takes"
            )
            raise InputError(f"{told}; take {self.longest} or less" if option else told)

    def check_ids(self, ids: Tensor, what: str = "input", option: str = "") -> None:
        """The same of token ids [rows, length]; of what are none, nothing is known."""
        if ids.dim() == 2 and not ids.is_floating_point() and not ids.is_complex() and self.other is None:
            self.check_length(ids.shape[1], what, option)


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
    if isinstance(text, Chat):
        return _encode_chat(tokenizer, text)
    check_text(text)
    # Its advice on length is for those who pass the whole to the model; where that fails, an error says so.
    return tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]


def _encode_chat(tokenizer: Any, given: Chat) -> list[int]:
    """Token ids of a conversation; what the template writes around the turns is all there is around them."""
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "the tokenizer has no chat template: give the prompt as a text, in the form that the model knows"
        )
    open_turn = given.messages[-1]["role"] == "assistant"
    how = {"continue_final_message": True} if open_turn else {"add_generation_prompt": True}
    try:
        text = tokenizer.apply_chat_template([dict(turn) for turn in given.messages], tokenize=False, **how)
    except Exception as error:
        # A template is code of the checkpoint's, and refuses turns in its own words.
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"the tokenizer's chat template refuses these turns: {said[0][:200]}") from error
    check_text(text)
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


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
