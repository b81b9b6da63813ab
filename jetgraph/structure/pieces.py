"""Several tensors as pieces of one, in a copy of a graph: values stay as they are, and a point has them all."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from math import prod
from typing import Any

from torch import fx

from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.operators import aten


def copy_of(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A graph again, and by node its copy."""
    made, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    made.output(made.graph_copy(graph, copied))
    return made, copied


def cleaned(graph: fx.Graph) -> fx.Graph:
    """A graph without the nodes that nothing reads any more."""
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.lint()
    return graph


def dimension(nodes: Iterable[fx.Node]) -> int | None:
    """The dimension along which values can lie side by side: the last one that is known, if all others are the same for
    all of them; or an open one in which alone they differ, as the lengths of two texts do.
    """
    nodes = tuple(nodes)
    shapes = {tuple(node.meta["shape"]) for node in nodes}
    if len({len(shape) for shape in shapes}) > 1 or len({node.meta["dtype"] for node in nodes}) > 1:
        return None
    sizes = list(map(set, zip(*shapes, strict=True)))
    differ = [dim for dim, along in enumerate(sizes) if len(along) > 1]
    known = [dim for dim, along in enumerate(sizes) if all(isinstance(size, int) for size in along)]
    return next((dim for dim in reversed(known) if differ in ([], [dim])), differ[0] if len(differ) == 1 else None)


def fit_in_rows(nodes: Iterable[fx.Node]) -> bool:
    """Values of any shapes can lie side by side as rows of numbers, one for each index of their first dimension, if all
    sizes but that are known.
    """
    nodes = tuple(nodes)
    firsts = {tuple(node.meta["shape"])[:1] for node in nodes}
    known = all(isinstance(size, int) for node in nodes for size in node.meta["shape"][1:])
    return known and len(firsts) == 1 and firsts != {()} and len({node.meta["dtype"] for node in nodes}) == 1


def _total(lengths: Iterable[int | str]) -> int | str:
    """Sizes added up, in one form whatever their order."""
    lengths = list(lengths)
    known = sum(length for length in lengths if isinstance(length, int))
    texts = sorted(length for length in lengths if isinstance(length, str))
    return " + ".join([*texts, *([str(known)] if known else [])]) if texts else known


class Pieces:
    """Writes values side by side into a copy of a graph, and lets what comes after read the pieces.

    They lie along a dimension; as rows, where there is none that they have in common.
    """

    def __init__(self, flow: Dataflow, graph: fx.Graph, copied: Mapping[fx.Node, fx.Node], dim: int | None) -> None:
        self.flow, self.graph, self.copied = flow, graph, copied
        self.in_rows, self.dim = dim is None, 1 if dim is None else dim
        self.now = dict(copied)
        """By value of the program, what stands for it at the moment."""
        self.places = {copied[node]: place for node, place in flow.positions.items()}
        self.sizes: dict[str, fx.Node] = {}
        """Open sizes by their formula."""

    def behind(self, node: fx.Node) -> Any:
        """A context in which new nodes stand behind this one of the program."""
        following = self.copied[node].next
        while following.op == "placeholder":
            following = following.next
        return self.graph.inserting_before(following)

    def call(self, op: Any, *args: Any, like: fx.Node | None = None) -> fx.Node:
        """A new node with the metadata of another one, its first argument."""
        made = self.graph.call_function(op, args)
        made.meta = dict((args[0] if like is None else like).meta)
        return made

    def sum(self, nodes: Sequence[fx.Node]) -> fx.Node:
        """Values added up."""
        return reduce(lambda one, other: self.call(aten.add.Tensor, one, other), nodes)

    def cat(self, nodes: Sequence[fx.Node]) -> fx.Node:
        """Values side by side; of one alone the same, under a name of its own, so that sums in it stay apart."""
        if len(nodes) == 1:
            return self.call(aten.alias.default, nodes[0])
        laid = [self._row(node) for node in nodes] if self.in_rows else list(nodes)
        whole = self.call(aten.cat.default, laid, self.dim, like=laid[0])
        shape = list(laid[0].meta["shape"])
        shape[self.dim] = _total(map(self._length, nodes))
        whole.meta["shape"] = tuple(shape)
        return whole

    def _length(self, node: fx.Node) -> int | str:
        """How much of the dimension a value takes."""
        shape = node.meta["shape"]
        return prod(shape[1:]) if self.in_rows else shape[self.dim]

    def _behind(self, start: Any, value: fx.Node) -> Any:
        """Where a value ends that starts there: a number, or what is computed from open sizes."""
        length: Any = self._length(value)
        if isinstance(length, str):
            # Of the first value that has it: sums that others take the place of are not read any more.
            if length not in self.sizes:
                self.sizes[length] = self._size(aten.sym_size.int, value, self.dim)
            length = self.sizes[length]
        if isinstance(start, int) and isinstance(length, int):
            return start + length
        return length if start == 0 else self._size(operator.add, start, length)

    def _size(self, op: Any, *args: Any) -> fx.Node:
        """A new node that is no tensor, but a size."""
        node = self.graph.call_function(op, args)
        node.meta = {"module_path": ""}
        return node

    def _row(self, node: fx.Node) -> fx.Node:
        row = self.call(aten.reshape.default, node, [-1, self._length(node)])
        row.meta["shape"] = (node.meta["shape"][0], self._length(node))
        return row

    def read(self, whole: fx.Node, nodes: Sequence[fx.Node], at: fx.Node) -> None:
        """Let what comes after a node read these values as the pieces of a state."""
        start: Any = 0
        for node in nodes:
            piece, before = whole, self.now[node]
            if len(nodes) > 1:
                stop = self._behind(start, before)
                piece = self.call(aten.slice.Tensor, whole, self.dim, start, stop, like=before)
                start = stop
                if self.in_rows:
                    piece.meta["shape"] = (before.meta["shape"][0], self._length(node))
                    piece = self.call(aten.reshape.default, piece, [-1, *before.meta["shape"][1:]], like=before)
            place = self.flow.positions[at]
            for user in list(before.users):
                if user.op == "output" or self.places.get(user, -1) > place:
                    user.replace_input_with(before, piece)
            self.now[node] = piece
