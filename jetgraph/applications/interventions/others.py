"""The values that components take from other inputs: those of another prompt, or their mean over several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from jetgraph.applications.interventions.network import Network
from jetgraph.applications.subject import Inputs, Subject, counted_tokens
from jetgraph.errors import InputError, quoted
from jetgraph.tracing.calls import named_leaves

Source = Literal["prompt", "mean"]
"""`prompt`: the value on another prompt (resample ablation); `mean`: the mean over the tokens of others (mean
ablation)."""


class Other(Protocol):
    """Where components take their values from."""

    def value(self, alias: str) -> Tensor:
        """What stands for a component, in the shape that it has on one's own input."""
        ...


@dataclass(frozen=True, eq=False)
class Mean:
    """Components at the mean over the tokens of other inputs, in the shape that they have on one's own."""

    own: Network
    of: Network

    def value(self, alias: str) -> Tensor:
        """What stands for a component.

        Raises
        ------
        InputError
            It has other features, or other positions that are not told apart from features.
        """
        value, like = self.of.value(alias), self.own.value(alias)
        rows = self.of.forward.shape(self.own.graph.traced.output)[:-1]
        # Of rows and positions in one dimension, or of none, the first one is the mean's.
        dims = [dim for dim in self.of.rows(alias) if dim is not None] or [-value.dim()]
        tokens = value.movedim(dims, tuple(range(len(dims)))).flatten(0, len(dims) - 1)
        counted = counted_tokens(self.own.graph, self.of.inputs, rows) if len(rows) == 2 else None
        if counted is not None and len(tokens) == counted.numel():
            tokens = tokens[counted.flatten().to(tokens.device)]
        mean = tokens.mean(0)
        if tuple(mean.shape) != tuple(size for dim, size in enumerate(like.shape, -like.dim()) if dim not in dims):
            raise InputError(
                f"{alias!r} has the mean {list(mean.shape)} on the corrupt inputs, and {list(like.shape)} on the clean "
                "ones: give corrupt inputs of the same length"
            )
        for dim in sorted(dims):
            mean = mean.unsqueeze(dim + like.dim())
        return mean.expand(like.shape)


@dataclass(frozen=True, eq=False)
class Pair:
    """A model on one's own inputs, and on the others that components take values from."""

    one: Network
    given: Network
    other: Other
    source: Source

    @classmethod
    def of(cls, studied: Subject, clean: Inputs, corrupt: Inputs, source: Source) -> Pair:
        """The two passes.

        Raises
        ------
        InputError
            Inputs of different shapes where values are those of a prompt, and another source.
        """
        if source not in ("prompt", "mean"):
            raise InputError(f"values={quoted(source)} is unknown: choose 'prompt' or 'mean'")
        if source == "prompt" and isinstance(clean, str) and isinstance(corrupt, list | tuple):
            # One prompt against each of several.
            clean = [clean] * len(corrupt)
        own, others = studied.inputs(clean), studied.inputs(corrupt)
        if source == "mean":
            one, given = Network(studied.graph, own), Network(studied.graph, others)
            return cls(one, given, Mean(one, given), source)
        if pytree.tree_structure(own) == pytree.tree_structure(others):
            own = pytree.tree_map(_as_many, own, others)
        _check_shapes(dict(named_leaves((), own, ())), dict(named_leaves((), others, ())))
        given = Network(studied.graph, others)
        return cls(Network(studied.graph, own), given, given, source)

    def differs(self, alias: str) -> bool:
        """A component has another value on the other inputs."""
        return not torch.equal(self.one.value(alias), self.other.value(alias))


def _as_many(value: Any, other: Any) -> Any:
    """One row as often as there are rows that it stands against."""
    if not isinstance(value, Tensor) or not isinstance(other, Tensor) or not value.dim() or value.shape[0] != 1:
        return value
    return value.expand(other.shape) if value.shape[1:] == other.shape[1:] else value


def _check_shapes(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raise `InputError` where two inputs cannot be exchanged for one another."""
    if one.keys() != other.keys():
        raise InputError(
            f"the clean input has {', '.join(one)}, the corrupt one {', '.join(other)}: give the same names"
        )
    for name, value in one.items():
        if isinstance(value, Tensor) and value.shape != getattr(other[name], "shape", None):
            raise InputError(
                f"{name!r} has shape {list(value.shape)} in the clean input and {_shape(other[name])} in the "
                "corrupt one: values of a prompt fit into one of its shape, so give prompts of equally many tokens, or "
                "values='mean'"
            )
        if name.endswith("attention_mask") and isinstance(value, Tensor) and not torch.equal(value, other[name]):
            raise InputError(
                f"{name!r} counts other tokens in the clean input than in the corrupt one, so that padding would be "
                "put in the place of tokens: give prompts of equally many tokens, or values='mean'"
            )


def read_together(clean: Inputs, corrupt: Inputs) -> Inputs:
    """What a model is traced on that is to take both: all texts at once, which may need a mask."""
    texts: list[str] = []
    for given in (clean, corrupt):
        listed = [given] if isinstance(given, str) else list(given) if isinstance(given, list | tuple) else []
        if not listed or not all(isinstance(one, str) for one in listed):
            return clean
        texts += [one for one in listed if isinstance(one, str)]
    return texts


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else f"none ({type(value).__name__})"
