"""Whether two models mean the same by a token."""

from __future__ import annotations

import math
from typing import Any

from jetgraph.errors import InputError


def check_tokenizers(one: Any | None, other: Any | None, names: tuple[str, str]) -> None:
    """Raise `InputError` where two tokenizers give a token different ids. Sizes are compared with the tables."""
    if one is None or other is None or one is other:
        return
    first, second = one.get_vocab(), other.get_vocab()
    if first == second:
        return
    differing = [token for token in {**first, **second} if first.get(token) != second.get(token)]
    differing.sort(key=lambda token: (min(first.get(token, math.inf), second.get(token, math.inf)), token))
    shown = "; ".join(
        f"{token!r} is {_place(first.get(token))} in {names[0]} and {_place(second.get(token))} in {names[1]}"
        for token in differing[:5]
    )
    raise InputError(
        f"{names[0]} and {names[1]} have different tokenizers ({len(differing):,} tokens differ): {shown}. Compare "
        "models of one tokenizer, or pass tokenizer=... if the ids mean the same in both"
    )


def check_sizes(one: int, other: int, names: tuple[str, str]) -> None:
    """Raise `InputError` where two tables have other numbers of next tokens."""
    if one != other:
        raise InputError(
            f"{names[0]} has {one} output tokens and {names[1]} {other}: only models of one vocabulary can be compared "
            "token by token"
        )


def _place(index: int | None) -> str:
    return "missing" if index is None else f"token {index}"
