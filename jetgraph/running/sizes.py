"""Shapes of values for given inputs. Nothing is run for them where the graph has a formula for each size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from math import prod

import torch
from torch import Tensor, fx

from jetgraph.algebra.sizes import evaluate as size_of
from jetgraph.algebra.sizes import names
from jetgraph.errors import SizeError


class Sizes:
    """Shapes of the values that a forward pass on these inputs would have.

    Parameters
    ----------
    inputs
        The inputs by placeholder, as `Traced.input_values` gives them.
    others
        Open sizes by name that are not those of the inputs.
    values
        Gives a node's value, for sizes that depend on values, such as how long the longest text is without padding.
    """

    def __init__(
        self,
        inputs: Mapping[fx.Node, Tensor],
        others: Mapping[str, int] | None = None,
        values: Callable[[fx.Node], Tensor] | None = None,
    ) -> None:
        self._inputs = inputs
        self._others = dict(others or {})
        self._values = values

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Sizes of a node's value."""
        shape = node.meta["shape"]
        if all(isinstance(size, int) for size in shape):
            return shape
        try:
            return tuple(size if isinstance(size, int) else self._size(size) for size in shape)
        except SizeError:
            if self._values is None:
                raise
        return tuple(self._values(node).shape)

    def bounded(self, graph: fx.Graph) -> Sizes:
        """With bounds of sizes that depend on values, such as of how many tokens an expert gets: all that are counted,
        or cut in so many pieces. Nothing is run for these either.
        """
        bounds = dict(self._others)
        known = Sizes(self._inputs, bounds)
        for node in graph.nodes:
            shape = node.meta.get("shape")
            for name in [name for size in shape or () if isinstance(size, str) for name in names(size)]:
                if name not in known._known:
                    read = [prod(known.shape(value)) for value in node.all_input_nodes if "shape" in value.meta]
                    known._known[name] = bounds[name] = max(read, default=1)
        return Sizes(self._inputs, bounds, self._values)

    def zeros(self, node: fx.Node) -> Tensor:
        """Zeros of a node's shape and type, where the inputs are."""
        device = next(iter(self._inputs.values())).device
        return torch.zeros(self.shape(node), dtype=node.meta["dtype"], device=device)

    def _size(self, formula: str) -> int:
        if formula not in self._known:
            self._known[formula] = size_of(formula, self._known)
        return self._known[formula]

    @cached_property
    def _known(self) -> dict[str, int]:
        """Sizes by their formula; at first those that the inputs' shapes name."""
        named = {
            size: actual
            for node, value in self._inputs.items()
            for size, actual in zip(node.meta["shape"], value.shape, strict=True)
            if isinstance(size, str)
        }
        return named | self._others
