"""Which terms are one centre together, by the last site or source of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from jetgraph.algebra.matching import Aliases, named
from jetgraph.errors import InputError, quoted

Grouping = Literal["terms", "components", "blocks", "kinds"] | Mapping[str, str | Sequence[str]]
"""`terms`: every term is a centre; `components`: all terms of one last site or source are one; `blocks`: those of one
block; `kinds`: those of one kind, such as all attention; or groups by name, as patterns over the last site or source.
What no group has is one centre more, `rest`."""

REST = "rest"
"""The group of what is in no other."""

_BLOCK = re.compile(r"(?:[^.]+\.)*?L\d+(?=\.)")


def block_of(alias: str) -> str:
    """The block that a site belongs to, or the alias itself.

    >>> block_of("L3.mlp"), block_of("L3.attn.head0"), block_of("encoder.L0.attn"), block_of("embed")
    ('L3', 'L3', 'encoder.L0', 'embed')
    """
    match = _BLOCK.match(alias)
    return alias if match is None else match[0]


def check_grouping(grouping: Grouping, what: str) -> None:
    """Raise `InputError` for what is none."""
    if isinstance(grouping, Mapping):
        for name, patterns in grouping.items():
            if not re.fullmatch(r"[^\s>^~*?\[\]]+", name):
                raise InputError(
                    f"{what} has the group {quoted(name)}: a name has no spaces, and none of > ^ ~ * ? [ ]"
                )
            if not patterns:
                raise InputError(f"{what}[{quoted(name)}] has no pattern")
    elif grouping not in ("terms", "components", "blocks", "kinds"):
        raise InputError(
            f"{what}={quoted(grouping)} is unknown: choose 'terms', 'components', 'blocks', 'kinds', or a mapping from "
            "names of groups to patterns"
        )


def grouped(
    grouping: Grouping, aliases: Iterable[str], names: Mapping[str, str], kinds: Mapping[str, str]
) -> dict[str, str]:
    """The group of each alias; of several that fit, the first.

    Parameters
    ----------
    grouping
        Not `terms`.
    aliases
        Last sites and sources of terms.
    names
        Module paths by alias, for patterns.
    kinds
        Kinds of sites and sources by alias.

    Raises
    ------
    SelectionError
        A pattern matches nothing of `names`.
    """
    aliases = list(aliases)
    if not isinstance(grouping, Mapping):
        key = {"components": lambda a: a, "blocks": block_of, "kinds": lambda a: kinds.get(a, a)}[grouping]
        return {alias: key(alias) for alias in aliases}
    groups, names = dict[str, str](), Aliases(names, kinds)
    for group, patterns in grouping.items():
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            for alias in named(pattern, names, names, f"centres[{group!r}]: {pattern!r} matches no source and no site"):
                groups.setdefault(alias, group)
    return {alias: groups.get(alias, REST) for alias in aliases}
