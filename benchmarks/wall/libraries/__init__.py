"""Nets of other libraries than transformers, tiny, with the joins that a person reads off their code.

A library has a module here, named after it, with `NETS`. None of them is a requirement: what cannot be imported is left
out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Net:
    """One net of a library, and what its own code says of it."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any] | tuple[Tensor, ...]]
    """Arguments by name or by place, small; drawn from torch's generator."""
    joins: int
    """Residual joins on the main stream (`len(graph.joins)`), read off the code before jetgraph was run."""
    read: str
    """Where they are: `4 stages of 2 blocks, each h + f(h)`."""
    kinds: str = ""
    """Kinds of branches that are expected, in any order, as `attn 2, mlp 2`; empty where nobody wrote them down."""
