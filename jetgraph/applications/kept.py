"""What a graph keeps of the last requests: it lives as long as the graph does, of which it is made."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from jetgraph.residual import ResidualGraph

KEPT = 8
"""Requests of one kind that a graph keeps."""

_NAME = "_kept"
"""Where it keeps them."""

Made = TypeVar("Made")


def kept(graph: ResidualGraph, kind: str, key: Hashable, make: Callable[[], Made]) -> Made:
    """What is made for a request of a kind; where it is one of the last few, what was made for it before."""
    of_kinds: dict[str, OrderedDict[Hashable, Any]] = vars(graph).setdefault(_NAME, {})
    known = of_kinds.setdefault(kind, OrderedDict())
    # Another thread may ask at the same time: what it takes out meanwhile is made twice.
    made = known.pop(key, None)
    known[key] = made = make() if made is None else made
    if len(known) > KEPT:
        known.popitem(last=False)
    return made
