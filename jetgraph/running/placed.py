"""A pass at one position: the values of another pass there, and functions of the graph that are run there alone.

It is for what keeps positions apart (`jetgraph.running.alone`): whoever runs something else with it gets nonsense.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx

from jetgraph.algebra.sizes import names
from jetgraph.jets.fusion import Fusion
from jetgraph.running.forward import Forward
from jetgraph.running.indices import at_places
from jetgraph.running.sizes import Sizes
from jetgraph.running.values import Values
from jetgraph.structure.dimensions import size_read


def placed(forward: Forward, places: int | Tensor, fusion: Fusion | None = None) -> Forward:
    """A pass at a place of the output [batch, position, ...], or at one of each row.

    Parameters
    ----------
    forward
        The pass whose values it reads; not one with patches that are still to come.
    places
        As `Forward.places` gives them.
    fusion
        As of `Forward`.
    """
    batch, size = forward.graph.traced.output.meta["shape"][:2]
    sizes = Sizes(forward.inputs, {size: 1})
    values = _Placed(forward, sizes, (batch, size), places)
    return Forward(forward.graph, forward.state, forward.inputs, fusion, values, sizes)


def counts_positions(node: fx.Node, output: fx.Node) -> bool:
    """A tensor [batch, position, ...] whose positions have the size of the output's, which nothing else has."""
    own, shape = tuple(node.meta.get("shape", ())), output.meta["shape"]
    return len(own) > 2 and own[0] == shape[0] and _place(own, shape[1]) == 1


def _place(shape: tuple[int | str, ...], size: int | str) -> int | None:
    """The one dimension that counts positions; None where there is none, or something else counts them too."""
    if not isinstance(size, str) or not size.isidentifier():
        return None
    naming = [dim for dim, one in enumerate(shape) if isinstance(one, str) and size in names(one)]
    return naming[0] if len(naming) == 1 and shape[naming[0]] == size else None


class _Placed(Values):
    """Values of another pass, at a place where they have one dimension for positions."""

    def __init__(self, whole: Forward, sizes: Sizes, counted: tuple[int | str, int | str], places: int | Tensor):
        super().__init__(whole.state, {}, whole.graph.positions)
        self._whole, self._sizes, self._counted, self._places = whole, sizes, counted, places

    def need(self, nodes: Iterable[fx.Node]) -> None:
        wanted = [node for node in nodes if node not in self._held]
        self._whole.need(node for node in wanted if size_read(node) is None)
        self._held |= {node: self._at(node) for node in wanted}

    def _at(self, node: fx.Node) -> Any:
        if size_read(node) is not None:
            tensor, dim = node.args
            return self._sizes.shape(tensor)[dim]  # type: ignore[arg-type, index]
        value, (batch, size) = self._whole[node], self._counted
        shape = tuple(node.meta.get("shape", ()))
        dim = _place(shape, size)
        # What has no such dimension, or two, is the same for all positions or is not read by what keeps them apart.
        if dim is None or not (isinstance(self._places, int) or (dim and shape[0] == batch)):
            return value
        return at_places(value, self._places, dim, 0)
