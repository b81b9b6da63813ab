"""Several tensors as pieces of one, in a copy of a graph: values stay as they are, and a point has them all."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

from torch import fx

from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.dimensions import Size
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


@dataclass(frozen=True)
class Lying:
    """How values lie side by side: along a dimension; as rows, what they have from that dimension on is one first."""

    dim: int
    in_rows: bool = False
    first: int | str | None = None
    """How many rows there are, where the first dimension of some values counts more."""


def lying(flow: Dataflow, nodes: Iterable[fx.Node]) -> Lying | None:
    """How values can lie side by side, if they can: along the last dimension that is known, if all others are the same
    for all of them; or an open one in which alone they differ, as the lengths of two texts do.

    Else as rows of numbers, one for each index of the dimensions that they begin with alike: the first one alone if all
    other sizes are known, as those of images are; or more, such as batch and length of features and of vectors of
    three, and then one size of a row may be open, as those of pairs of tokens are. Where the first dimension of some
    counts so many more in each, as pixels of all patches do along the batch, these are in the row; of a batch of one
    all are.
    """
    nodes = tuple(nodes)
    shapes = {tuple(node.meta["shape"]) for node in nodes}
    if len({node.meta["dtype"] for node in nodes}) > 1:
        return None
    if len({len(shape) for shape in shapes}) == 1:
        sizes = list(map(set, zip(*shapes, strict=True)))
        differ = [dim for dim, along in enumerate(sizes) if len(along) > 1]
        known = [dim for dim, along in enumerate(sizes) if all(isinstance(size, int) for size in along)]
        dim = next((dim for dim in reversed(known) if differ in ([], [dim])), differ[0] if len(differ) == 1 else None)
        if dim is not None:
            return Lying(dim)
    for most in (0, 1):
        for dim in range(1 + most, min(map(len, shapes)) + 1):
            open_sizes = [sum(isinstance(size, str) for size in shape[dim:]) for shape in shapes]
            if max(open_sizes) <= most and len({shape[:dim] for shape in shapes}) == 1:
                return Lying(dim, in_rows=True)
    first = min((shape[:1] for shape in shapes), key=lambda size: [Size.of(one).number for one in size])
    known = all(isinstance(size, int) for shape in shapes for size in shape[1:])
    more = [Size.of(shape[0]).over(Size.of(*first)) for shape in shapes] if first and known else [None]
    if not all(one and not one.symbols for one in more) or not _in_same_rows(flow, nodes, first[0]):
        return None
    return Lying(1, in_rows=True, first=first[0])


def _in_same_rows(flow: Dataflow, nodes: Sequence[fx.Node], rows: int | str) -> bool:
    """The first dimensions of values count the same rows, and some so many more in each. Of open sizes their names say
    so. That one number is a multiple of another may be an accident, as of twenty edges of ten nodes: then the rows
    are followed from an input that has them.
    """
    if rows == 1 or isinstance(rows, str):
        return True
    for start in flow.shared_inputs(nodes):
        if start.meta.get("shape", ())[:1] == (rows,):
            followed = flow.followed(start)
            layouts = [followed.get(node) for node in nodes]
            if all(one is not None and one.at(0)[:1] == followed.start.at(0) for one in layouts):
                return True
    return False


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

    def __init__(self, flow: Dataflow, graph: fx.Graph, copied: Mapping[fx.Node, fx.Node], lies: Lying) -> None:
        self.flow, self.graph, self.copied = flow, graph, copied
        self.in_rows, self.dim, self.first = lies.in_rows, lies.dim, lies.first
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
        if not self.in_rows:
            return shape[self.dim]
        number = prod(size for size in shape[self.dim :] if isinstance(size, int)) * self._folded(node)
        names = [size for size in shape[self.dim :] if isinstance(size, str)]
        if not names:
            return number
        (name,) = names
        return name if number == 1 else f"{number}*{name}" if name.isidentifier() else f"{number}*({name})"

    def _behind(self, start: Any, value: fx.Node) -> Any:
        """Where a value ends that starts there: a number, or what is computed from open sizes."""
        length: Any = self._length(value)
        if isinstance(length, str):
            # Of the first value that has it: sums that others take the place of are not read any more.
            if length not in self.sizes:
                self.sizes[length] = self._size(
                    aten.sym_size.int, self._row(value) if self.in_rows else value, self.dim
                )
            length = self.sizes[length]
        if isinstance(start, int) and isinstance(length, int):
            return start + length
        return length if start == 0 else self._size(operator.add, start, length)

    def _size(self, op: Any, *args: Any) -> fx.Node:
        """A new node that is no tensor, but a size."""
        node = self.graph.call_function(op, args)
        node.meta = {"module_path": ""}
        return node

    def _folded(self, node: fx.Node) -> int:
        """How many entries of the first dimension go into each row."""
        folded = None if self.first is None else Size.of(node.meta["shape"][0]).over(Size.of(self.first))
        return folded.number if folded else 1

    def _row(self, node: fx.Node) -> fx.Node:
        shape, folded = node.meta["shape"], self._folded(node)
        if folded > 1:
            apart = self.call(aten.unflatten.int, node, 0, [-1, folded])
            apart.meta["shape"] = (self.first, folded, *shape[1:])
            row = self.call(aten.flatten.using_ints, apart, 1, -1)
        elif len(shape) == self.dim:
            row = self.call(aten.unsqueeze.default, node, -1)
        else:
            row = self.call(aten.flatten.using_ints, node, self.dim, -1)
        row.meta["shape"] = (*((self.first,) if folded > 1 else shape[: self.dim]), self._length(node))
        return row

    def _unrolled(self, row: fx.Node, like: fx.Node) -> fx.Node:
        """What a row was made of."""
        shape, folded = like.meta["shape"], self._folded(like)
        if folded > 1:
            apart = self.call(aten.unflatten.int, row, 1, [folded, *shape[1:]])
            apart.meta["shape"] = (self.first, folded, *shape[1:])
            return self.call(aten.flatten.using_ints, apart, 0, 1, like=like)
        if len(shape) == self.dim:
            return self.call(aten.squeeze.dim, row, -1, like=like)
        sizes = [-1 if isinstance(size, str) else size for size in shape[self.dim :]]
        return self.call(aten.unflatten.int, row, self.dim, sizes, like=like)

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
                    rows = before.meta["shape"][: self.dim] if self._folded(before) == 1 else (self.first,)
                    piece.meta["shape"] = (*rows, self._length(before))
                    piece = self._unrolled(piece, before)
            place = self.flow.positions[at]
            for user in list(before.users):
                if user.op == "output" or self.places.get(user, -1) > place:
                    user.replace_input_with(before, piece)
            self.now[node] = piece
