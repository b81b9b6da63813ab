"""Random numbers that a model draws: it has then no one output to explain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from jetgraph.errors import TraceError
from jetgraph.export.program import line_above
from jetgraph.jets.registry import op_name


class DrawsError(TraceError):
    """A model draws random numbers, and has no one output to explain."""


def draws(what: str) -> DrawsError:
    """What to say of a model that draws random numbers with an operator somewhere."""
    return DrawsError(
        f"{what} draws random numbers, so the model has no one output to explain: switch it off (dropout with "
        "probability 0, or training=False), or give its numbers as an input"
    )


def is_random(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """The op draws from a generator: it is one that may, and no argument says that this time it does not."""
    if not isinstance(op, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in op.tags:
        return False
    given = {**dict(zip((argument.name for argument in op._schema.arguments), args, strict=False)), **kwargs}
    defaults = {argument.name: argument.default_value for argument in op._schema.arguments}
    return not any(
        # Off, or with probability 0.
        given.get(name, defaults[name]) in (False, 0)
        for name in defaults.keys() & {"train", "training", "p", "dropout_p"}
    )


def drawn(run: Callable[[], Tensor]) -> TraceError | None:
    """What to say of a model that gives something else the second time, for it draws random numbers; else None."""
    one, other = run(), run()
    if one.shape == other.shape and torch.equal(one, other):
        return None
    # Only then, for code that compiles itself does not run where one listens, and is remembered as such by torch.
    try:
        with _Listening() as listening:
            run()
    except Exception:  # whatever the model raises
        return None
    return draws(" at ".join(listening.drawn[0])) if listening.drawn else None


def at_its_line(error: DrawsError, run: Callable[[], Any]) -> DrawsError:
    """The error with the line of code that draws, if it can be heard in a run."""
    with _Listening() as listening:
        try:
            run()
        except Exception:  # whatever the model raises: then it stays as it is said
            return error
    what, _, rest = str(error).partition(" draws ")
    # The exporter may write an operator with others, whose names these are then.
    lines = [line for op, line in listening.drawn if what.startswith(op)] or [line for _, line in listening.drawn]
    return error if len(set(lines)) != 1 else DrawsError(f"{what} at {lines[0]} draws {rest}")


class _Listening(TorchDispatchMode):
    """Notes the operators that draw, with the line that calls them."""

    supports_higher_order_operators = True
    """Those that hold graphs of their own, such as `torch.cond`, may run."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[tuple[str, str]] = []
        """By call, the operator and the line."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_random(func, args, kwargs or {}):
            self.drawn.append((op_name(func), line_above()))
        return func(*args, **(kwargs or {}))
