"""Rows that a graph looks up in its tables, by inputs or by places that follow from sizes: checked with the inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from jetgraph.algebra.sizes import evaluate as size_of
from jetgraph.errors import InputError
from jetgraph.export.indices import Formula, Known, follow
from jetgraph.jets.interpreter import check_index, module_path
from jetgraph.jets.registry import op_name

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Counted:
    """A lookup of rows whose numbers are a formula in the indices of what holds them."""

    node: fx.Node
    formula: Formula
    shape: tuple[int | str, ...]
    rows: int

    def check(self, sizes: Mapping[str, int]) -> None:
        """Raise `InputError` for sizes at which there is no such row."""
        shape = [size if isinstance(size, int) else size_of(size, sizes) for size in self.shape]
        ends = [slope * (size - 1) for slope, size in zip(self.formula.slopes, shape, strict=True)]
        lowest, highest = (self.formula.constant + sum(only(0, end) for end in ends) for only in (min, max))
        if lowest >= 0 and highest < self.rows:
            return
        places = torch.meshgrid(*map(torch.arange, shape), indexing="ij") if shape else ()
        index = sum((slope * each for slope, each in zip(self.formula.slopes, places, strict=True)), torch.zeros(shape))
        try:
            check_index(self.rows, index.long() + self.formula.constant)
        except InputError as error:
            where = f"{op_name(self.node.target)} in module {module_path(self.node)!r}"
            raise InputError(f"{where}: {error}") from error


def lookups_of(node: fx.Node) -> Iterator[fx.Node]:
    """The lookups by an input, itself or reshaped."""
    stack = [node]
    while stack:
        current = stack.pop()
        for user in current.users:
            if user.target is aten.embedding.default and user.args[1] is current:
                yield user
            elif user.target in (aten.view.default, aten.reshape.default, aten.unsqueeze.default):
                stack.append(user)


def counted_lookups(graph: fx.Graph) -> tuple[Counted, ...]:
    """The lookups of places in a graph."""
    known: dict[fx.Node, Known | None] = {}
    lookups = []
    for node in graph.find_nodes(op="call_function", target=aten.embedding.default):
        table, index = node.args[:2]
        formula, rows = follow(index, known), table.meta["shape"][0]
        if isinstance(formula, Formula) and isinstance(rows, int):
            lookups.append(Counted(node, formula, index.meta["shape"], rows))
    return tuple(lookups)
