"""Functions that are cut out of the graph, on any values; what they read besides comes from a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from jetgraph.algebra.rules import Freeze
from jetgraph.jets.fusion import Fusion
from jetgraph.jets.interpreter import evaluate
from jetgraph.jets.recorded import Routine
from jetgraph.jets.series import Series, coefficient
from jetgraph.jets.totals import summed, total
from jetgraph.running.alone import by_element
from jetgraph.running.values import Values
from jetgraph.structure.regions import Branch, Cut, Part, Region

_KNOWN = "_jetgraph_along"
"""Where a graph keeps what passes regions by code."""

_LIMIT = 64
"""Ways past regions that a graph keeps; where there were more, it starts again."""

Opened = dict[fx.Node, Any]
"""What the parts of a branch have in common, by node: the inner value that is dealt out to them, and what is held."""


class Pieces:
    """Regions and branches as functions of what enters them: of tensors, or of series of an order.

    Parameters
    ----------
    values
        The pass that they read from.
    fusion
        Compiles the evaluation of series; they are evaluated op by op where it is None.
    """

    def __init__(self, values: Values | _Given, fusion: Fusion | None = None) -> None:
        self._values = values
        self._fusion = fusion

    @property
    def fused(self) -> bool:
        """Series are evaluated by compiled functions."""
        return self._fusion is not None

    # Regions

    def side(self, region: Region) -> dict[fx.Node, Any]:
        """Values that a region reads besides its entry."""
        return self._values.of(region.side)

    def through(self, region: Region, value: Any, order: int = 0, frozen: Freeze | None = None) -> Any:
        """Push a value through a region.

        Parameters
        ----------
        region
            The function.
        value
            A tensor, or a series of `order`.
        order
            The highest order that is wanted.
        frozen
            The gates that are held at the series' centre, as in `jets.evaluate`.
        """
        if not region.nodes:
            return value
        return self.within(region, self._reads(region, value), order, frozen)

    def within(
        self,
        region: Region,
        values: dict[fx.Node, Any],
        order: int = 0,
        frozen: Freeze | None = None,
        out: Tensor | None = None,
    ) -> Any:
        """The region's exit, from values for everything it reads; `out` as in `jets.evaluate`."""
        # An affine region has little to fuse.
        if order and self._fusion is not None and not region.affine:
            return self._fusion(region.nodes, values, order, region.exit, frozen)
        self._values.read_ahead(region.nodes)
        memory = None if out is None else {region.exit: out}
        return evaluate(region.nodes, values, order, keep={region.exit}, frozen=frozen, out=memory)[region.exit]

    def along(self, region: Region, centre: Tensor, frozen: Freeze | None) -> Callable[[Tensor], Tensor]:
        """Directions t [n, *entry] ↦ A t [n, *exit], where f(h) = A h + b has its gates held at one centre.

        Parameters
        ----------
        region, frozen
            As in `through`.
        centre
            h, of the shape of the entry.
        """

        def along(pieces: Pieces, directions: Tensor, centre: Tensor) -> tuple[Tensor]:
            def along_one(direction: Tensor) -> Tensor:
                return coefficient(pieces.through(region, Series.of_rows([centre, direction], 1), 1, frozen), 1)

            # What does not depend on the direction is not batched, so it is computed once for all of a batch.
            return (torch.vmap(along_one)(directions),)

        routine = self.kept(region, frozen, along)
        return lambda directions: routine(directions, centre)[0]

    def kept(
        self, region: Region, kind: Hashable, function: Callable[..., tuple[Tensor, ...]]
    ) -> Callable[..., tuple[Tensor, ...]]:
        """A function of tensors that pass a region, decided once for all passes of the graph, which keeps it.

        Parameters
        ----------
        region
            What the function evaluates.
        kind
            All else that it depends on: one that was kept for the same kind is taken in its place.
        function
            Of pieces, which have what the region reads besides, and of tensors; it gives a tuple of tensors.
        """
        side = self.side(region)
        self._values.read_ahead(region.nodes)
        tensors = {node: value for node, value in side.items() if isinstance(value, Tensor)}
        others = {node: value for node, value in side.items() if node not in tensors}
        routine = _routine(region, kind, tuple(tensors), others, function)
        return lambda *given: routine(*given, *tensors.values())

    def linear(self, region: Region, value: Tensor) -> Tensor:
        """The linear part of an affine region."""
        if not region.nodes:
            return value
        return coefficient(self.through(region, Series.direction(value), 1), 1)

    def side_by_side(
        self,
        region: Region,
        value: Any,
        order: int = 0,
        *,
        linear: bool = False,
        frozen: Freeze | None = None,
        out: Tensor | None = None,
    ) -> Any:
        """Push several values through a region: in one pass where each element of the batch goes by itself, else one
        by one.

        Parameters
        ----------
        region, order, frozen
            As in `through`.
        value
            A stack [n, *entry] of values, or a series of stacks.
        linear
            Only the linear part of an affine region, of a tensor.
        out
            Memory [n, *exit] that the result of one pass may be written to.

        Returns
        -------
        Tensor or Series
            [n, *exit].
        """
        if not region.nodes:
            return value
        if linear:
            return coefficient(self.side_by_side(region, Series.direction(value), 1), 1)
        number = value.shape[0]
        if not by_element(region):
            rows = [
                self.through(region, _over(value, lambda x, dim, i=i: x.select(dim, i)), order, frozen)
                for i in range(number)
            ]
            if not any(isinstance(row, Series) for row in rows):
                return torch.stack(rows)
            return Series(
                torch.stack([torch.stack([coefficient(row, j) for row in rows]) for j in range(order + 1)]), order
            )
        flat = _over(value, lambda x, dim: x.flatten(dim, dim + 1))
        memory = None if out is None else out.flatten(0, 1)
        result = self.within(region, self._reads(region, flat), order, frozen, memory)
        return _over(result, lambda x, dim: x.unflatten(dim, (number, -1)))

    def sums(self, region: Region, value: Series, order: int) -> Tensor:
        """What `side_by_side` gives of a series of stacks, its coefficients added up."""
        if not region.nodes or not by_element(region) or self.fused:
            return summed(self.side_by_side(region, value, order))
        number = value.shape[0]
        self._values.read_ahead(region.nodes)
        flat = value.like(value.coefficients.flatten(1, 2))
        return total(region.nodes, self._reads(region, flat), order, region.exit).unflatten(0, (number, -1))

    def _reads(self, region: Region, value: Any) -> dict[fx.Node, Any]:
        """What a region reads when a value enters it; sizes along its dimensions are those of the value."""
        named = zip(region.entry.meta["shape"], value.shape, strict=True)
        sizes = {size: actual for size, actual in named if isinstance(size, str)}
        side = self.side(region)
        side |= {node: sizes[size] for node, size in region.sizes.items() if size in sizes}
        return side | {region.entry: value}

    # Branches, and their parts

    def branch(self, branch: Branch, value: Any, order: int = 0, frozen: Freeze | None = None) -> Any:
        """Push a value through a branch, or through a part of one; arguments as in `through`."""
        if branch.part is None:
            return self.through(branch.region, value, order, frozen)
        return self.part(branch.part, self.open(branch.part.cut, value, order, frozen), order, frozen)

    def open(self, cut: Cut, value: Any, order: int = 0, frozen: Freeze | None = None) -> Opened:
        """Push a value through a split branch, up to where its parts go different ways."""
        return cut.open({**self.side(cut.region), cut.region.entry: value}, order, frozen)

    def part(self, part: Part, opened: Opened, order: int = 0, frozen: Freeze | None = None) -> Any:
        """Push what `open` gave through one part."""
        return part.cut.part(opened, self.side(part.cut.region), part, order, frozen)

    def own(self, branch: Branch) -> Tensor:
        """A branch, or a part of one, on the pass's own stream."""
        read = self._values.of(own_reads(branch))
        if branch.part is None:
            return read[branch.node]
        cut = branch.part.cut
        if not cut.carried:
            return self.branch(branch, read[cut.region.entry])
        return self.part(branch.part, {node: read[node] for node in (cut.node, *cut.held)})

    def own_parts(self, branches: Sequence[Branch]) -> Tensor:
        """Several parts of one branch on the pass's own stream: what each adds [part, …], by one product where it can
        be.

        All of one cut, as in `own`.
        """
        parts = [branch.part for branch in branches if branch.part is not None]
        cut = parts[0].cut
        if len(parts) < 2 or not cut.carried:
            return torch.stack([self.own(branch) for branch in branches])
        read = self._values.of(own_reads(branches[0]))
        opened = {node: read[node] for node in (cut.node, *cut.held)}
        together = cut.linear_parts(opened, self.side(cut.region), parts)
        return torch.stack([self.part(part, opened) for part in parts]) if together is None else together

    def constant(self, cut: Cut, value: Tensor) -> Tensor:
        """What a split branch adds besides its parts; `value`, at its fork, gives no more than the shape."""
        return cut.fixed(self.open(cut, value), self.side(cut.region))


class _Given:
    """What a region reads besides its entry, as `Values` has it."""

    def __init__(self, values: Mapping[fx.Node, Any]) -> None:
        self._values = values

    def of(self, nodes: Iterable[fx.Node]) -> dict[fx.Node, Any]:
        return {node: self._values[node] for node in nodes}

    def read_ahead(self, nodes: Iterable[fx.Node]) -> None:
        """Whoever gave them has seen to it."""


def _routine(
    region: Region,
    kind: Hashable,
    side: Sequence[fx.Node],
    others: Mapping[fx.Node, Any],
    function: Callable[..., tuple[Tensor, ...]],
) -> Routine:
    """Of tensors, and then values of the side: what `kept` calls. The graph keeps it, whatever the pass."""

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        number = len(given) - len(side)
        read = {**others, **dict(zip(side, given[number:], strict=True))}
        return function(Pieces(_Given(read)), *given[:number])

    known: dict[Any, Routine] = vars(region.exit.graph).setdefault(_KNOWN, {})
    # One that is true is none that is 1.
    key = region.entry, region.nodes, region.exit, kind, tuple((node, repr(value)) for node, value in others.items())
    if key not in known:
        if len(known) >= _LIMIT:
            known.clear()
        known[key] = Routine(run, region.nodes)
    return known[key]


def own_reads(branch: Branch) -> tuple[fx.Node, ...]:
    """The values that `Pieces.own` reads, to be computed in one pass: what several of them need, such as a mask, is
    dropped after it.
    """
    if branch.part is None:
        return (branch.node,)
    cut = branch.part.cut
    # Where the branch's end itself is dealt out, its value may be one with some parts exchanged: the way there is run.
    inner = (cut.node, *cut.held) if cut.carried else (cut.region.entry,)
    return (*cut.region.side, *inner)


def _over(value: Any, function: Callable[[Tensor, int], Tensor]) -> Any:
    """A function of a tensor and of its first dimension, on a tensor or on the stack of a series."""
    return value.like(function(value.coefficients, 1)) if isinstance(value, Series) else function(value, 0)
