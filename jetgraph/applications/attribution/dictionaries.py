"""Dictionaries of directions, along which what a site adds is shared out: decoders of sparse autoencoders, say."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.matching import matching, nearest
from jetgraph.algebra.outline import Split
from jetgraph.algebra.rules import Tangent
from jetgraph.errors import InputError, SelectionError, quoted
from jetgraph.residual import ResidualGraph
from jetgraph.structure.ways import find_ways

Shared = Split | Mapping[str, Any]
"""What `jetgraph.expand` takes, and for a branch also a matrix of directions [n, d_model]."""


def told_apart(split: Shared | None) -> tuple[Split | None, dict[str, Tensor]]:
    """What cuts branches into parts, and the dictionaries, by pattern."""
    if not isinstance(split, Mapping):
        return split, {}
    tensors = {pattern: how for pattern, how in split.items() if isinstance(how, Tensor)}
    others: dict[str, Any] = {pattern: how for pattern, how in split.items() if pattern not in tensors}
    return others or None, tensors


def scored(expansion: Expansion, given: str | Sequence[str] | None, shared: Collection[str]) -> frozenset[str]:
    """The attentions whose scores are told apart, by alias.

    Raises
    ------
    SelectionError
        A pattern matches no branch.
    InputError
        A branch has no scores, its rule holds them, or what it adds is shared out along directions.
    """
    passages = {alias: one for alias, one in expansion.passages.items() if one.site.role == "branch" and one.hops}
    graph, aliases = expansion.graph, list[str]()
    assert isinstance(graph, ResidualGraph)
    for pattern in [given] if isinstance(given, str) else given or ():
        named = matching(pattern, {alias: one.site.path for alias, one in passages.items()})
        if not named:
            raise SelectionError(f"scores={quoted(pattern)} matches no branch{nearest(pattern, passages, globs=True)}")
        for alias in named:
            varies = isinstance(passages[alias].rule, Tangent) and alias not in shared
            if not varies or find_ways(graph.branches[alias].region) is None:
                why = "is shared out along directions" if alias in shared else "has none that vary"
                raise InputError(
                    f"scores={quoted(pattern)}: {alias!r} {why}; they are those of an attention whose rule is of first "
                    'order, such as rules="gradient"'
                )
        aliases += named
    return frozenset(aliases)


def dictionaries(expansion: Expansion, given: Mapping[str, Tensor], size: Mapping[str, int]) -> dict[str, Tensor]:
    """Dictionaries by alias of a branch.

    Parameters
    ----------
    expansion
        Whose branches they are.
    given
        By pattern over alias or module path.
    size
        By alias, the features that a branch adds.

    Raises
    ------
    SelectionError
        A pattern matches no branch.
    InputError
        What is given is no matrix of directions of that size.
    """
    by_alias: dict[str, Tensor] = {}
    branches = {
        alias: passage.site.path
        for alias, passage in expansion.passages.items()
        if passage.site.role == "branch" and passage.hops
    }
    for pattern, directions in given.items():
        named = matching(pattern, branches) if isinstance(pattern, str) else []
        if not named:
            raise SelectionError(
                f"split[{quoted(pattern)}] matches no branch{nearest(str(pattern), branches, globs=True)}"
            )
        for alias in named:
            fits = directions.dim() == 2 and len(directions) and directions.shape[1] == size[alias]
            if not fits or not directions.is_floating_point() or not bool(directions.isfinite().all()):
                raise InputError(
                    f"split[{quoted(pattern)}] has shape {list(directions.shape)}, but {alias!r} adds {size[alias]} "
                    f"features: give directions [n, {size[alias]}] of finite numbers"
                )
            by_alias[alias] = directions.detach()
    return by_alias
