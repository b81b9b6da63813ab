"""Components of a model by name, in one forward pass: what each adds to its sum, and other values in their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, fx

from jetgraph.algebra.matching import nearest
from jetgraph.errors import InputError, SelectionError, quoted
from jetgraph.running.pieces import Pieces
from jetgraph.running.sizes import Sizes
from jetgraph.running.stages import Stages
from jetgraph.running.values import Exchange, Places, Values
from jetgraph.structure.regions import Branch, Join, Structure
from jetgraph.tracing.traced import Traced


class Graph(Protocol):
    """What a pass reads of a residual graph."""

    @property
    def traced(self) -> Traced: ...
    @property
    def structure(self) -> Structure: ...
    @property
    def branches(self) -> Mapping[str, Branch]: ...
    @property
    def injections(self) -> Mapping[str, tuple[Join, fx.Node]]: ...
    @property
    def positions(self) -> Places: ...


class Components:
    """Branches, parts of branches, sources of the encoder, and what enters in mid-stream.

    Parameters
    ----------
    graph
        Whose components they are.
    values, pieces, stages, sizes
        Of the pass.
    """

    def __init__(self, graph: Graph, values: Values, pieces: Pieces, stages: Stages, sizes: Sizes) -> None:
        self._graph = graph
        self._values = values
        self._pieces = pieces
        self._stages = stages
        self._sizes = sizes
        self._put: dict[str, Tensor] = {}
        """Patches of long skips and of what enters in mid-stream, which stand in joins as the summands that they are
        there."""

    def component(self, alias: str) -> Tensor:
        """What a component adds to its sum, patches included; see `Forward.component`."""
        if alias in self._put:
            return self._put[alias]
        patched = self._values.exchanged(self.sum_of(alias), alias)
        return self._own(alias) if patched is None else patched

    def parts(self, aliases: Sequence[str]) -> Tensor:
        """What several parts of one branch add to its sum [part, …], patches included."""
        branches = [self._graph.branches[alias] for alias in aliases]
        node = branches[0].node
        if self._values.has_exchanged(node, aliases):
            return torch.stack([self.component(alias) for alias in aliases])
        return self._pieces.own_parts(branches)

    def patch(self, alias: str, value: Tensor) -> None:
        """Put a value in a component's place; see `Forward.patch`.

        Raises
        ------
        SelectionError
            There is no such component.
        InputError
            A value of another shape or type.
        """
        node, branch, encoder = self.sum_of(alias), self._graph.branches.get(alias), self._graph.structure.main.encoder
        landing = self._landing(alias)
        # What enters a sum is as large as that, as sources of the encoder are.
        whole_sum = branch is None and (landing is None or not landing[0].concatenates)
        own = node if whole_sum else branch.node if branch is not None else self._graph.injections[alias][1]
        expected = self._sizes.shape(own)
        if tuple(value.shape) != expected:
            raise InputError(f"{alias!r} has the shape {expected}, and {tuple(value.shape)} was given")
        if value.dtype != own.meta["dtype"]:
            raise InputError(f"{alias!r} is of type {own.meta['dtype']}, and {value.dtype} was given")
        if landing is not None:
            join, operand = landing

            def summand() -> Tensor:
                return self._stages.land(join, operand, self._own(alias))

            self._values.exchange(node, alias, Exchange(self._stages.land(join, operand, value), summand))
            self._put[alias] = value
            return
        if branch is not None and branch.part is None:
            self._values.put(node, value)
            return
        # A source that is all of point 0 is replaced as it stands.
        whole = branch is None and not encoder.nodes
        self._values.exchange(node, alias, Exchange(value, None if whole else partial(self._own, alias)))

    def sum_of(self, alias: str) -> fx.Node:
        """The sum that a component belongs to; for a branch, and for a part of one, the operand that it is of.

        What a long skip adds may be the stream itself at an earlier point, which others read: it belongs to its join.

        Raises
        ------
        SelectionError
            There is no component of that name.
        """
        if alias in self._graph.branches:
            branch = self._graph.branches[alias]
            return self._join(branch).node if branch.kind == "skip" else branch.node
        if alias in self._graph.injections:
            return self._graph.injections[alias][0].node
        encoder = self._graph.structure.main.encoder
        sources = [summand.source.alias for summand in encoder.summands]
        if alias not in sources:
            names = (*sources, *self._graph.branches, *self._graph.injections)
            raise SelectionError(f"there is no component {quoted(alias)}{nearest(alias, names)}")
        return encoder.exit

    def _landing(self, alias: str) -> tuple[Join, fx.Node] | None:
        """The join, and the operand of it, of what stands in a join as the summand that it is there."""
        branch = self._graph.branches.get(alias)
        if branch is None:
            return self._graph.injections.get(alias)
        return (self._join(branch), branch.node) if branch.kind == "skip" else None

    def _join(self, branch: Branch) -> Join:
        return next(join for join in self._graph.structure.joins if branch in join.branches)

    def _own(self, alias: str) -> Tensor:
        """What a component is by itself, patches of it left aside."""
        if alias in self._graph.branches:
            return self._pieces.own(self._graph.branches[alias])
        if alias in self._graph.injections:
            join, operand = self._graph.injections[alias]
            value = self._values[operand]
            return value if join.concatenates else self._stages.land(join, operand, value)
        return self._stages.summand(alias)
