"""What logits and prompts say: their tokens, as a person reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from jetgraph.applications.ranking import row_top
from jetgraph.errors import amount

Texts = tuple[tuple[str, ...], ...]
"""By example, the texts of its tokens, by which positions go; none where an input has no tokens."""


def token_text(tokenizer: Any | None, index: int) -> str:
    """A token as a person can read it, spaces and line breaks included."""
    if tokenizer is None or index >= len(tokenizer):
        return f"#{index}"
    text = tokenizer.decode([index])
    # A token may be a part of a character, which has no text of its own.
    return f"<{tokenizer.convert_ids_to_tokens(index)}>" if "\ufffd" in text else repr(text)


def token_texts(tokenizer: Any | None, indices: Iterable[int]) -> str:
    """Several tokens side by side."""
    return "  ".join(token_text(tokenizer, index) for index in indices)


def said_of(tokenizer: Any | None, ids: Sequence[int], most: int = 12) -> str:
    """What a prompt became: how many tokens, which, and whether the tokenizer has put its own before them."""
    if tokenizer is None or not len(ids):
        return ""
    special = set(getattr(tokenizer, "all_special_ids", ()) or ())
    pieces = [token_text(tokenizer, index) for index in ids]
    shown = " ".join(pieces[:most]) + (f" … {pieces[-1]}" if len(pieces) > most else "")
    begun = f"begins with {pieces[0]}" if ids[0] in special else "no token is put before it"
    return f"{amount(len(ids), 'token')}, {begun}: {shown}"


def texts_of(tokenizer: Any | None, ids: Tensor | None) -> Texts:
    """The texts of some token ids [example, length], each by its position; none of none."""
    rows = [] if ids is None else ids.tolist()
    return tuple(tuple(token_text(tokenizer, index) for index in row) for row in rows)


def top_tokens(logits: Tensor, tokenizer: Any | None, number: int = 1) -> str:
    """The tokens with the largest of some logits [vocab], best first."""
    _, best = row_top(logits.detach()[None], min(number, logits.shape[-1]))
    return token_texts(tokenizer, best[0].tolist())
