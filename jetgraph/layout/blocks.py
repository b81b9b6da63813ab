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

    >>> within_block("L3.attn.head2"), within_block("L3.mlp"), within_block("L3.norm.2"), within_block("embed")
    ('head2', 'mlp', 'norm.2', 'embed')
    """
    branch, part = _parted(alias)
    if part in ("", "bias"):
        return ".".join(filter(None, (branch, part)))
    return part


def branch_in(alias: str) -> str:
    """The branch that an alias is a part of, or is, with its block.

    >>> branch_in("L3.attn.head2"), branch_in("L3.norm.2"), branch_in("L3.mlp.2.neuron5"), branch_in("embed")
    ('L3.attn', 'L3.norm.2', 'L3.mlp.2', 'embed')
    """
    block = block_of(alias)
    return f"{block}.{_parted(alias)[0]}" if block else alias


def _parted(alias: str) -> tuple[str, str]:
    """A branch without its block, and its part. The second norm of a block is `norm.2`, which is no part of `norm`."""
    branch, _, part = alias.removeprefix(f"{block_of(alias)}.").partition(".")
    number, _, after = part.partition(".")
    return (f"{branch}.{number}", after) if number.isdigit() else (branch, part)
