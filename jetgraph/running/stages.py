"""What encoder, joins, maps and decoder do with values of the stream, and with summands of it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from jetgraph.algebra.rules import Freeze
from jetgraph.errors import InputError, SelectionError, quoted
from jetgraph.export.reach import below
from jetgraph.jets.interpreter import evaluate
from jetgraph.jets.series import Series, coefficient
from jetgraph.running.pieces import Opened, Pieces
from jetgraph.running.sizes import Sizes
from jetgraph.running.values import Values
from jetgraph.structure.dimensions.factors import size_read
from jetgraph.structure.regions import Cut, Encoder, Join, JoinStage, MapStage, Stage, Structure


class Stages:
    """The way along the stream that leads to the output.

    Parameters
    ----------
    structure
        Where its stages are.
    values, pieces, sizes
        Of the pass that they read from.
    """

    def __init__(self, structure: Structure, values: Values, pieces: Pieces, sizes: Sizes) -> None:
        self._structure = structure
        self._values = values
        self._pieces = pieces
        self._sizes = sizes

    # Summands

    def summand(self, alias: str) -> Tensor:
        """One source of the encoder, as it enters point 0.

        Raises
        ------
        SelectionError
            The encoder has no source of that name.
        """
        encoder = self._structure.main.encoder
        leaves_by_alias = {summand.source.alias: summand.leaf for summand in encoder.summands}
        if alias not in leaves_by_alias:
            raise SelectionError(f"{quoted(alias)} is no source of the encoder: there are {', '.join(leaves_by_alias)}")
        leaf = leaves_by_alias[alias]
        if leaf is not None and leaf is encoder.exit:
            return self._values[leaf]
        if leaf is None:
            leaves: dict[fx.Node, Any] = {node: torch.zeros_like(self._values[node]) for node in encoder.leaves}
        else:
            leaves = {leaf: Series.direction(self._values[leaf])}
        values = self._values.of(node for node in encoder.side if node not in leaves) | leaves
        value = evaluate(encoder.nodes, values, 1, keep={encoder.exit})[encoder.exit]
        value = value if leaf is None else coefficient(value, 1)
        return _written_out(value.to(encoder.exit.meta["dtype"]), self._sizes.shape(encoder.exit))

    def land(self, join: Join, operand: fx.Node, value: Tensor, *, stacked: bool = False) -> Tensor:
        """An operand's value as a summand of the join, of its type: cat(a, b) = cat(a, 0) + cat(0, b).

        `stacked`: several values [n, …] of the operand, as summands [n, …].
        """
        value = value.to(join.node.meta["dtype"])
        before = value.shape[:1] if stacked else ()
        shape = self._sizes.shape(join.node)
        if not join.concatenates:
            if stacked:
                value = value.reshape(*before, *(1,) * (len(shape) + 1 - value.dim()), *value.shape[1:])
            return _written_out(value, (*before, *shape))
        dim = join.node.args[1] if len(join.node.args) > 1 else 0
        assert isinstance(dim, int)
        zeros = [None if other is operand else (*before, *self._sizes.shape(other)) for other in join.operands]
        return torch.cat(
            [value if size is None else value.new_zeros(size) for size in zeros], dim % len(shape) - len(shape)
        )

    def carry(self, value: Tensor, start: int, stop: int) -> Tensor:
        """A summand of the stream at point `start` as one at point `stop`, through skips and affine maps.

        It has the type of each point. Nonlinear maps on the way are left out, and so are joins without a skip.
        """
        for stage in self._stages_that_change(start, stop):
            if isinstance(stage, MapStage):
                value = self._pieces.linear(stage.region, value) if stage.region.affine else value
            elif (skip := stage.join.skip) is not None:
                value = self.land(stage.join, skip.exit, self._pieces.linear(skip, value))
            # A map that is left out may still be where the stream changes its type.
            value = value.to(stage.region.exit.meta["dtype"])
        return value

    def _stages_that_change(self, start: int, stop: int) -> Iterator[Stage]:
        """The stages of `carry`: the first, which writes a summand out that broadcasts, and those after it that make
        another value of it."""
        stream = self._structure.main
        yield from stream.stages[start : min(start + 1, stop)]
        changes = stream.changes
        yield from (stream.stages[at] for at in changes[bisect_left(changes, start + 1) : bisect_left(changes, stop)])

    def tail(self, point: int, value: Series, order: int, frozen: Freeze | None = None) -> Any:
        """What the rest of the stream makes of a series at a point, with all that reads that point or a later one.

        A stage by itself takes what it reads of earlier points, as by a long skip, for constant.

        Parameters
        ----------
        order, frozen
            As in `Pieces.through`.
        """
        first, *later = self._structure.main.points[point:]
        known: dict[fx.Node, Any] = {first: value}
        reached = below([first])
        for end in later:
            nodes, side = _way_to(end, known, reached)
            chain = self._values.in_order(nodes)
            known[end] = evaluate(chain, {**self._values.of(side), **known}, order, {end, *known}, frozen)[end]
        return known[later[-1]] if later else value

    def at_end(self, point: int) -> Tensor:
        """The stream at a point, carried to its end.

        Raises
        ------
        InputError
            A nonlinear map, or a join without a skip, changes the stream's shape on the way.
        SelectionError
            The stream does not have that point.
        """
        stream = self._structure.main
        if not 0 <= point < len(stream.points):
            raise SelectionError(f"the stream has points 0..{len(stream.points) - 1}, not {quoted(point)}")
        value = self._values[stream.points[point]]
        for step in stream.changes[bisect_left(stream.changes, point) :]:
            stage = stream.stages[step]
            left_out = stage.join.skip is None if isinstance(stage, JoinStage) else not stage.region.affine
            if left_out and tuple(value.shape) != self._sizes.shape(stage.region.exit):
                raise InputError(
                    f"a lens cannot look at h{point}: {stage.alias!r} after it is left out, and changes the stream's "
                    "shape"
                )
            value = self.carry(value, step, step + 1)
        return value

    # Replay

    def replay(self) -> Tensor:
        """The output, put together stage by stage: encoder, then each join from its own branches, then decoder."""
        stream, decoder = self._structure.main, self._structure.decoder
        # In one pass: what several regions read besides the stream, such as angles and masks, is made of one thing.
        self._values.need(self._structure.sides)
        points = {stream.encoder.exit: self.encode(stream.encoder)}
        for stage in stream.stages:
            points[stage.region.exit] = self.advance(stage, points)
        return self._pieces.through(decoder.affine, self._pieces.through(decoder.nonlinear, points[stream.end]))

    def encode(self, encoder: Encoder) -> Tensor:
        """Point 0 of a stream, from its leaves."""
        if not encoder.nodes:
            return self._values[encoder.exit]
        return evaluate(encoder.nodes, self._values.of(encoder.side), keep={encoder.exit})[encoder.exit]

    def advance(self, stage: Stage, points: Mapping[fx.Node, Tensor]) -> Tensor:
        """The point after a stage from those before it; the branches of a join are each run on their own."""
        value = points[stage.region.entry]
        if isinstance(stage, MapStage):
            return self._pieces.through(stage.region, value)
        join = stage.join
        values = {join.fork: value}
        if join.skip is not None:
            values[join.skip.exit] = self._pieces.through(join.skip, value)
        for node, summand in self._added(join, points):
            values[node] = values[node] + summand if node in values else summand
        values |= self._values.of(join.injections)
        return evaluate(join.adds, values, keep={join.node})[join.node]

    def _added(self, join: Join, points: Mapping[fx.Node, Tensor]) -> Iterator[tuple[fx.Node, Tensor]]:
        """What each branch adds, and each part of one, which share what lies before they part."""
        opened: dict[Cut, Opened] = {}
        for branch in join.branches:
            if join.skip is not None and branch.node is join.skip.exit:
                continue  # The stream itself once more; the adds read it as often as it is added.
            value = points[branch.region.entry]
            if branch.part is None:
                yield branch.node, self._pieces.through(branch.region, value)
                continue
            cut = branch.part.cut
            if cut not in opened:
                opened[cut] = self._pieces.open(cut, value)
            yield branch.node, self._pieces.part(branch.part, opened[cut])
        for cut, shared in opened.items():
            if cut.constant == "fixed":
                yield cut.region.exit, cut.fixed(shared, self._pieces.side(cut.region))


def _written_out(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A summand that broadcasts (one position table for the whole batch), in the shape of the sum."""
    return value if tuple(value.shape) == shape else value.expand(shape).contiguous()


def _way_to(
    end: fx.Node, known: Mapping[fx.Node, Any], reached: Collection[fx.Node]
) -> tuple[set[fx.Node], list[fx.Node]]:
    """The nodes that make a value of known ones, among those that these reach; and what they read besides, as sizes."""
    nodes: set[fx.Node] = set()
    side: dict[fx.Node, None] = {}
    stack = [end]
    while stack:
        node = stack.pop()
        if node in known or node in nodes:
            continue
        if node not in reached or size_read(node) is not None:
            side[node] = None
        else:
            nodes.add(node)
            stack.extend(node.all_input_nodes)
    return nodes, list(side)
