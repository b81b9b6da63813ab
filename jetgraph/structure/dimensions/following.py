"""Layouts carried through the nodes of a graph, from one value on."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from jetgraph.jets.registry import bind, find_rule, nodes_in
from jetgraph.structure.dimensions.factors import (
    SIZE_READS,
    Factor,
    Factors,
    Layout,
    Layouts,
    Size,
    leaves,
    names_in,
    size_names,
    size_read,
)
from jetgraph.structure.operators import packet_of


class Dimensions:
    """Layouts by node, from those of what an operator reads by the table of `jetgraph.structure.dimensions.layouts`."""

    def __init__(
        self,
        start: fx.Node,
        nodes: Iterable[fx.Node],
        layouts: Mapping[Any, LayoutOf],
        abreast: Iterable[fx.Node] = (),
    ) -> None:
        self._layouts = layouts
        self._known: dict[frozenset[Factor], frozenset[Factor]] = {}
        """Each set once: along a stream most nodes have mixed what those before them have."""
        self.start = Layout(tuple(map(self.fresh, start.meta["shape"])))
        self._found: dict[fx.Node, Layouts] = {start: self.start}
        for node in abreast:
            # Other values that are followed as well, whose first dimension counts the same as that of the start.
            self._found[node] = Layout((self.start.dims[0], *map(self.fresh, node.meta["shape"][1:])))
        self.unknown: set[fx.Node] = set()
        """Nodes behind which the dimensions could not be followed any further."""
        self.ties: dict[fx.Node, frozenset[Factor]] = {}
        """By node, the factors that are tied by it, and maybe before it too."""
        for node in nodes:
            reads = [layout for arg in node.all_input_nodes if (layout := self.get(arg)) is not None]
            if not reads or node.target in SIZE_READS:
                continue
            if node.target is operator.getitem and isinstance(several := self._found[node.args[0]], list):  # type: ignore[index]
                self._found[node] = several[node.args[1]]  # type: ignore[index]
            else:
                self._found[node] = self._completed(node, self._through(node), reads)

    def get(self, node: Any) -> Layout | None:
        """The layout of a node that depends on the start; None for any other value."""
        layouts = self._found.get(node) if isinstance(node, fx.Node) else None
        return Layout((), self._all(layouts), self._all(layouts)) if isinstance(layouts, list) else layouts

    def fresh(self, size: int | str | Size) -> Factors:
        """A dimension with a factor of its own."""
        return () if (known := Size.of(size)) == Size(1) else (Factor(known),)

    def _through(self, node: fx.Node) -> Layouts | None:
        if node.op != "call_function":
            return None
        layout_of = self._layouts.get(packet_of(node))
        if layout_of is None:
            entry = find_rule(node.target)
            layout_of = Dimensions.each if entry is not None and entry.kind == "elementwise" else None
        bound = bind(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
        return None if layout_of is None else layout_of(self, node, bound)

    def _completed(self, node: fx.Node, layouts: Layouts | None, reads: Sequence[Layout]) -> Layouts:
        """With what the arguments had mixed, and with what any node may do to a dimension."""
        if layouts is None:
            self.unknown.add(node)
            mixed = frozenset(self.start.present).union(*(layout.present for layout in reads))
            layouts = Layout(tuple(map(self.fresh, node.meta.get("shape", ()))), mixed)
        if isinstance(layouts, Layout):
            self.ties[node] = layouts.tied
        mixed = frozenset[Factor]().union(*(layout.mixed for layout in reads))
        tied = frozenset[Factor]().union(*(layout.tied for layout in reads)) | self._counted(node)

        def completed(layout: Layout) -> Layout:
            seen = layout.present
            twice = {factor for factor in seen if seen.count(factor) > 1} if len(set(seen)) < len(seen) else set()
            all_mixed, all_tied = layout.mixed | mixed | twice, layout.tied | tied
            known = self._known.setdefault
            return replace(layout, mixed=known(all_mixed, all_mixed), tied=known(all_tied, all_tied))

        return [completed(layout) for layout in layouts] if isinstance(layouts, list) else completed(layouts)

    def _counted(self, node: fx.Node) -> set[Factor]:
        """Factors whose size the node reads as a number: as a divisor, say, and not as the size of a view."""
        bound = bind(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
        read = [value for name, value in bound.items() if name not in ("size", "shape", "sizes")]
        names = {
            name for n in nodes_in(read) if "shape" not in n.meta and self.get(n) is None for name in size_names(n)
        }
        return {factor for factor in self.start.present if names & names_in(factor.size.symbols)} if names else set()

    def _all(self, given: Layouts | None) -> frozenset[Factor]:
        layouts = given if isinstance(given, list) else [given] if given is not None else []
        return frozenset(factor for layout in layouts for factor in (*layout.present, *layout.mixed))

    # What the layouts of operators are made of

    def each(self, node: fx.Node, bound: Mapping[str, Any]) -> Layout | None:
        """Entry by entry, operands being aligned at their last dimensions and broadcast."""
        if "shape" not in node.meta:
            return None
        operands = [value for value in nodes_in(dict(bound)) if "shape" in value.meta]
        labelled = [(operand, range(-len(operand.meta["shape"]), 0)) for operand in operands]
        return self.joined(labelled, range(-len(node.meta["shape"]), 0), node.meta["shape"])

    def joined(
        self,
        operands: Sequence[tuple[fx.Node, Sequence[Hashable]]],
        out: Sequence[Hashable],
        shape: Sequence[int | str],
    ) -> Layout:
        """A product, or any function entry by entry, of operands whose dimensions carry labels; those not in `out` are
        summed over. Operands with the same label are aligned, one of size 1 is broadcast.
        """
        factors: dict[Hashable, Factors] = {}
        mixed: set[Factor] = set()
        uneven: set[Hashable] = set()
        for node, labels in operands:
            layout = self.get(node)
            for place, label in enumerate(labels):
                if layout is None:
                    if node.meta["shape"][place] != 1:
                        uneven.add(label)
                elif here := layout.at(place):
                    so_far = leaves(factors.get(label, ()))
                    if so_far and so_far != here:
                        # Aligned with something else: an entry is no longer that of one index.
                        common = self._aligned(here, so_far)
                        mixed |= {*here, *so_far} - {*common}
                        here = common or self.fresh(node.meta["shape"][place])
                    factors[label] = here
        mixed |= {factor for label, at_label in factors.items() if label not in out for factor in leaves(at_label)}
        tied = {factor for label in uneven for factor in leaves(factors.get(label, ()))}
        dims = tuple(
            factors[label] if label in factors else self.fresh(size) for label, size in zip(out, shape, strict=True)
        )
        pieces = {layout.pieces for node, _ in operands if (layout := self.get(node)) is not None}
        return Layout(dims, frozenset(mixed), frozenset(tied), pieces.pop() if len(pieces) == 1 else ())

    def _aligned(self, one: Factors, other: Factors) -> Factors:
        """What two dimensions have in common, factor by factor, with new ones in the place of the rest; nothing where
        their factors have other sizes.
        """
        if [factor.size for factor in one] != [factor.size for factor in other]:
            return ()
        return tuple(a if a is b else Factor(a.size) for a, b in zip(one, other, strict=True))

    def regrouped(self, factors: Factors, shape: Sequence[int | str | Size]) -> tuple[list[Factors], Factors]:
        """Factors dealt out to dimensions of these sizes in row-major order, and those that could not be.

        From both ends, so that what fits on either side of what does not is found.
        """
        queue = deque(factors)
        groups: list[Factors | None] = [None] * len(shape)
        for places, last in ((range(len(shape)), False), (range(len(shape) - 1, -1, -1), True)):
            for place in places:
                if groups[place] is not None or (group := _taken(queue, Size.of(shape[place]), last)) is None:
                    break
                groups[place] = group
        dealt = [self.fresh(size) if group is None else group for group, size in zip(groups, shape, strict=True)]
        return dealt, tuple(queue)

    def stiff(self, factors: Factors, written: Any) -> Factors:
        """Those of a dimension's factors whose size a view's argument fixes: -1 and the start's own size follow it."""
        if written == -1:
            return ()
        text = size_read(written) if isinstance(written, fx.Node) else None
        own = isinstance(text, str) and len(factors) == 1 and factors[0] in self.start.present
        return () if own and factors[0].size == Size.of(text) else factors  # type: ignore[arg-type]


def _taken(queue: deque[Factor], size: Size, last: bool) -> Factors | None:
    """Factors of this size in all, off one end of the queue; None, and the queue as it was, where they do not fit."""
    group: list[Factor] = []
    left = size
    before = list(queue)
    while left != Size(1):
        if not queue:
            break
        factor = queue.pop() if last else queue.popleft()
        if len(parts := factor.leaves()) > 1:
            # It stood here twice, and was split the first time.
            queue.extend(parts) if last else queue.extendleft(reversed(parts))
            continue
        rest = left.over(factor.size)
        if rest is None:
            other = factor.size.over(left)
            if other is None:
                break
            outer, inner = factor.split(other if last else left)
            group.append(inner if last else outer)
            queue.append(outer) if last else queue.appendleft(inner)
            left = Size(1)
        else:
            group.append(factor)
            left = rest
    if left != Size(1):
        queue.clear()
        queue.extend(leaves(before))
        return None
    return tuple(group[::-1] if last else group)


LayoutOf = Callable[[Dimensions, fx.Node, Mapping[str, Any]], Layouts | None]
"""The layout of a node's value from those of its arguments; a list for a tuple of values; None: not known."""
