"""Which block of a model a name belongs to."""

from __future__ import annotations

import re

_BLOCK = re.compile(r"(?:[^.]+\.)*?L\d+(?=\.)")


def block_of(alias: str) -> str:
    """The block that an alias begins with; empty where there is none.

    >>> block_of("L3.attn.head2"), block_of("encoder.L1.mlp"), block_of("embed")
    ('L3', 'encoder.L1', '')
    """
    match = _BLOCK.match(alias)
    return match[0] if match else ""


def within_block(alias: str) -> str:
    """What an alias says besides its block, of parts the part.

    >>> within_block("L3.attn.head2"), within_block("L3.mlp"), within_block("embed")
    ('head2', 'mlp', 'embed')
    """
    rest = alias.removeprefix(f"{block_of(alias)}.")
    whole, _, part = rest.partition(".")
    return part if part and part != "bias" and whole else rest
