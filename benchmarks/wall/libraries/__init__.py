"""Nets of other libraries than transformers, tiny, with the joins that a person reads off their code.

A library has a module here, named after it (`timm_nets`), with `NETS` by name. None of them is a requirement: a library
that cannot be imported is left out.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
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
    """Residual joins, inner ones included (`len(graph.joins)`), read off the code before jetgraph was run."""
    read: str
    """Where they are: `4 stages of 2 blocks, each h + f(h)`."""
    kinds: str = ""
    """Kinds of branches that are expected, in any order, as `attn 2, mlp 2`; empty where nobody wrote them down."""


def module_of(library: str) -> str:
    """The module here that has its nets."""
    return f"{__name__}.{library}_nets"


def found(libraries: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Libraries with the name of a net each, of those that can be imported; `timm/volo` is one net of a library."""
    modules = [module.name for module in pkgutil.iter_modules(__path__)]
    known = [name.removesuffix("_nets") for name in modules if name.endswith("_nets")]
    for asked in libraries or known:
        library, _, wanted = asked.partition("/")
        try:
            nets = importlib.import_module(module_of(library)).NETS
        except ImportError as error:
            print(f"{library}: left out, since it cannot be imported ({error})")
            continue
        for name in [wanted] if wanted else nets:
            yield library, name
