"""A model on one input, piece by piece: any of its components can be scaled or replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx

from jetgraph.algebra.outline import JoinStep
from jetgraph.applications.subject import last_tokens
from jetgraph.errors import InputError, quoted
from jetgraph.residual import ResidualGraph
from jetgraph.running.alone import by_element, by_position
from jetgraph.running.copies import Change, Copies, Reach, between, changed_nodes
from jetgraph.running.forward import Forward
from jetgraph.running.indices import Position, dims_of_rows
from jetgraph.running.memory import allowed, give_back, suited

At = Position | Literal["last"] | None
"""Where logits are looked at: one position, one for each row, `last` (the last token of each row that is no padding),
or everywhere."""

Places = int | Tensor | None
"""The place that is looked at, or that of each example [examples]; None is all of them."""

Changes = Mapping[str, Change]
"""What becomes of components, by alias."""

ROWS = 128
"""So many tokens have to join those that are side by side at once: fewer are not worth the stop."""

SIDE_BY_SIDE, LAUNCHED_TOGETHER = 64, 256
"""Copies that go together at most, and on an accelerator: more are hardly faster, take memory, and leave nothing told
of how far they have come."""

HELD_SIDE_BY_SIDE = 2**24
"""Bytes of copies that go together on a CPU where nobody says: there more are hardly faster as well, and they would be
most of what an ablation of many components needs."""


_REACHES: WeakKeyDictionary[ResidualGraph, dict[tuple[frozenset[str], fx.Node], Reach | None]] = WeakKeyDictionary()
"""By graph, what was asked for before: to follow dimensions through a graph takes longer than a forward pass."""

_BORDERS: WeakKeyDictionary[
    ResidualGraph, dict[tuple[int, fx.Node], tuple[frozenset[fx.Node], tuple[fx.Node, ...]]]
] = WeakKeyDictionary()
"""By graph, what changes from a step on reach on the way to an end, and what leads to that."""


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
        steps = {source.alias: 0 for source in outline.sources}
        for number, step in enumerate(outline.steps, start=1):
            if isinstance(step, JoinStep):
                steps |= {site.alias: number for site in step.branches}
                steps |= {source.alias: number for source in step.injections if source.alias in self.graph.injections}
        return steps

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

    def rows(self, alias: str) -> tuple[int | None, int | None]:
        """The dimensions of a component, counted from the end, along which the batch and the positions of the output
        lie; None for one that the sizes of the trace do not tell.
        """
        branch, injected = self.graph.branches.get(alias), self.graph.injections.get(alias)
        if branch is not None:
            node = branch.node
        elif injected is not None and injected[0].concatenates:
            node = injected[1]
        else:
            node = self.forward.sum_of(alias)
        return dims_of_rows(node.meta["shape"], self.graph.traced.output.meta["shape"][:-1])

    def changed(self, changes: Changes) -> Forward:
        """The pass in which components are changed, each as it comes out after those before it were."""
        copies = Copies(self.forward, None)
        self._change(copies, {alias: [((0,), change)] for alias, change in changes.items()}, self.graph.traced.output)
        return copies.forward

    def outcomes(
        self, several: Sequence[Changes], read: Callable[[Forward, int], Tensor], at: Places, memory: int | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """What is read of the pass with each of several changes of components.

        They go side by side along the batch, as many as memory allows, where that changes nothing (see `Reach.of`),
        else one by one. What lies before the first of those that go together is not computed again.

        Parameters
        ----------
        several
            Each by alias.
        read
            Reads so many copies, [copy, ...].
        at
            The places of the output that it looks at.
        memory
            Bytes that those that go together may take; a share of what is free unless given.

        Returns
        -------
        Iterator of (int, Tensor)
            Their numbers among `several`, and what was read, in the order of the stream.
        """
        if len(several) < 2 or (reach := self.reach({alias for changes in several for alias in changes}, at)) is None:
            for number in sorted(range(len(several)), key=lambda number: self._first(several[number])):
                yield number, read(self.changed(several[number]), 1)[0]
            return
        for groups in self._batches(several, reach, memory):
            forward = self._together([[several[number] for number in group] for group in groups], reach)
            numbers = [number for group in groups for number in group]
            yield from zip(numbers, read(forward, len(numbers)), strict=True)
            del forward
            give_back(self._device)

    def _first(self, changes: Changes) -> int:
        """The step at which changes begin."""
        return min((self.steps[alias] for alias in changes), default=0)

    def _together(self, groups: Sequence[Sequence[Changes]], reach: Reach) -> Forward:
        """The pass with each of several changes, side by side; each group joins those before where it begins."""
        starts = [self._first(group[0]) for group in groups]
        rows: list[Changes] = []
        copies: Copies | None = None
        for group, start, stop in zip(groups, starts, [*starts[1:], max(self.steps.values()) + 1], strict=True):
            rows += group
            if copies is None:
                copies = Copies(self.forward, reach if len(groups) > 1 or len(group) > 1 else None, len(group))
            else:
                border = self._border(self._before(rows, start), start, *reach.ends)
                assert border is not None
                copies = copies.grown(len(group), border)
            now = {alias: each for alias, each in self._by_alias(rows).items() if start <= self.steps[alias] < stop}
            self._change(copies, now, *reach.ends)
        assert copies is not None
        return copies.forward

    def _change(
        self, copies: Copies, changes: Mapping[str, Sequence[tuple[Sequence[int], Change]]], end: fx.Node
    ) -> None:
        """Change components in some of the copies, in the order of the stream, each step once those before it were."""
        steps: dict[int, list[str]] = {}
        for alias in sorted(changes, key=self.steps.__getitem__):
            steps.setdefault(self.steps[alias], []).append(alias)
        before: list[str] = []
        for step, aliases in steps.items():
            if before and (border := self._border(before, step, end)) is not None:
                copies.wait(border)
            for alias in aliases:
                copies.change(alias, changes[alias])
            before += aliases

    def _border(self, before: Iterable[str], step: int, end: fx.Node) -> tuple[fx.Node, ...] | None:
        """What all is made from that components from a step on can change on the way to an end; None where some
        components before that step lie behind it.
        """
        known = _BORDERS.setdefault(self.graph, {})
        if (step, end) not in known:
            later = [alias for alias, at in self.steps.items() if at >= step]
            changed = {node for alias in later for node in changed_nodes(self.forward, alias)}
            nodes, border = between(changed, (end,), self.graph.positions)
            known[step, end] = frozenset(nodes), border
        nodes, border = known[step, end]
        behind = any(node in nodes for alias in before for node in changed_nodes(self.forward, alias))
        return None if behind else border

    def reach(self, aliases: Iterable[str], at: Places) -> Reach | None:
        """What changes of components can reach before the output is read, where several can go side by side."""
        decoder = self.graph.structure.decoder.affine
        inside = at is not None and by_position(decoder) and by_element(decoder)
        end = decoder.entry if inside else self.graph.traced.output
        key = frozenset(aliases), end
        known = _REACHES.setdefault(self.graph, {})
        if key not in known:
            known[key] = Reach.of(self.forward, key[0], (end,))
        return known[key]

    def together(self, reach: Reach, memory: int | None, besides: int = 0) -> int:
        """Copies that go side by side: as many as fit into the bytes that are given, each with what is kept `besides`
        it; into a share of what is free unless given.
        """
        held = allowed(memory, self._device)
        if memory is None:
            held = suited(self._device, cpu=min(held, HELD_SIDE_BY_SIDE), accelerator=held)
        most = suited(self._device, cpu=SIDE_BY_SIDE, accelerator=LAUNCHED_TOGETHER)
        return max(1, min(most, held // (reach.bytes(self.forward.sizes) + besides)))

    @property
    def _device(self) -> torch.device:
        return next(iter(self.forward.inputs.values())).device

    def _batches(self, several: Sequence[Changes], reach: Reach, memory: int | None) -> Iterator[list[list[int]]]:
        """Groups of changes, by number: each begins at a step of its own, and those that go together are a batch."""
        forward, most = self.forward, self.together(reach, memory)
        enough = -(-ROWS // prod(forward.shape(self.graph.stream.end)[:-1]))
        groups: list[list[int]] = []
        for number in sorted(range(len(several)), key=lambda number: self._first(several[number])):
            start = self._first(several[number])
            if sum(map(len, groups)) == most:
                yield groups
                groups = []
            full = bool(groups) and len(groups[-1]) >= enough and start > self._first(several[groups[-1][-1]])
            if full:
                joint = [several[one] for group in groups for one in group]
                if self._border(self._before(joint, start), start, *reach.ends) is None:
                    yield groups
                    groups = []
            if full or not groups:
                groups.append([])
            groups[-1].append(number)
        yield groups

    def _before(self, several: Iterable[Changes], step: int) -> set[str]:
        """What is changed before a step."""
        return {alias for changes in several for alias in changes if self.steps[alias] < step}

    def _by_alias(self, several: Sequence[Changes]) -> dict[str, list[tuple[list[int], Change]]]:
        """By component, in the order of the stream: which copies it is changed in, and how."""
        by_alias: dict[str, dict[Change, list[int]]] = {}
        for number, changes in enumerate(several):
            for alias, change in changes.items():
                by_alias.setdefault(alias, {}).setdefault(change, []).append(number)
        ordered = sorted(by_alias, key=self.steps.__getitem__)
        return {alias: [(rows, change) for change, rows in by_alias[alias].items()] for alias in ordered}


def logits_at(forward: Forward, places: Places, copies: int = 1) -> Tensor:
    """A pass's logits [examples, places, vocabulary], at one place or all of them (None); copies in a row."""
    if isinstance(places, Tensor):
        places = places.repeat(copies)
    if places is not None:
        return forward.output_at(places)
    output = forward.output
    return output.unsqueeze(1) if output.dim() == 2 else output
