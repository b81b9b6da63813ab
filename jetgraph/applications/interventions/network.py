"""A model on one input, piece by piece: any of its components can be scaled or replaced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from torch import Tensor

from jetgraph.algebra.outline import JoinStep
from jetgraph.applications.subject import last_tokens
from jetgraph.errors import InputError, quoted
from jetgraph.residual import ResidualGraph
from jetgraph.running.forward import Forward
from jetgraph.running.indices import Position

At = Position | Literal["last"] | None
"""Where logits are looked at: one position, one for each row, `last` (the last token of each row that is no padding),
or everywhere."""


@dataclass(frozen=True, eq=False)
class Network:
    """A model on one input, any of whose components can be replaced."""

    graph: ResidualGraph
    inputs: Mapping[str, Any]

    @cached_property
    def forward(self) -> Forward:
        """The pass as it is."""
        return self.graph.run(**self.inputs)

    @cached_property
    def steps(self) -> dict[str, int]:
        """The step at which each component enters the stream: sources of the encoder at 0, then in order branches, and
        what enters in mid-stream."""
        outline = self.graph.outline
        found = {source.alias: 0 for source in outline.sources}
        for number, step in enumerate(outline.steps, start=1):
            if isinstance(step, JoinStep):
                found |= {site.alias: number for site in step.branches}
                found |= {source.alias: number for source in step.injections if source.alias in self.graph.injections}
        return found

    @cached_property
    def whole(self) -> frozenset[str]:
        """Branches that are neither parts of one nor skips: to hold one of these saves its computation."""
        branches = self.graph.branches
        held = (alias for alias in self.steps if alias in branches and branches[alias].kind != "skip")
        return frozenset(alias for alias in held if branches[alias].part is None)

    def places(self, position: At) -> int | Tensor | None:
        """Where the output is looked at; None is everywhere.

        Raises
        ------
        InputError
            An output that is no logits.
        """
        shape = self.forward.shape(self.graph.traced.output)
        if len(shape) not in (2, 3):
            raise InputError(
                f"the output has shape {list(shape)}, but logits are [batch, classes] or [batch, position, "
                "vocabulary]: name the output when you trace the model"
            )
        if isinstance(position, str):
            if position != "last":
                raise InputError(f"position={quoted(position)} is unknown: give a number, one for each row, or 'last'")
            last = last_tokens(self.graph, self.inputs, shape[:-1])
            position = -1 if last is None else last
        if position is None or (len(shape) == 2 and isinstance(position, int) and position == -1):
            return None
        return self.forward.places(position)

    def value(self, alias: str) -> Tensor:
        """A component's own value."""
        return self.forward.component(alias)

    def started(self, step: int) -> Forward:
        """A new pass, in which branches before a step need not be computed again."""
        forward = self.graph.run(**self.inputs)
        for alias, at in self.steps.items():
            if at < step and alias in self.whole:
                forward.patch(alias, self.value(alias))
        return forward

    def scaled(self, aliases: Iterable[str], scale: float) -> Forward:
        """The pass in which components are scaled, each as it comes out after those before it were."""
        chosen = set(aliases)
        ordered = [alias for alias in self.steps if alias in chosen]
        forward = self.started(self.steps[ordered[0]])
        for alias in ordered:
            forward.patch(alias, forward.component(alias) * scale)
        return forward

    def replaced(self, alias: str, value: Tensor) -> Forward:
        """The pass in which one component has another value."""
        forward = self.started(self.steps[alias])
        forward.patch(alias, value)
        return forward


def logits_at(forward: Forward, places: int | Tensor | None) -> Tensor:
    """A pass's logits [examples, places, vocabulary], at one place or all of them (None)."""
    if places is not None:
        return forward.output_at(places)
    output = forward.output
    return output.unsqueeze(1) if output.dim() == 2 else output
