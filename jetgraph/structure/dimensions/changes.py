"""What the layouts of several operators have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import fx

from jetgraph.structure.dimensions.factors import Factor, Factors, Layout, Layouts, Size
from jetgraph.structure.dimensions.following import Dimensions, LayoutOf


def of_one(rule: Callable[[Dimensions, fx.Node, Mapping[str, Any], Layout], Layouts | None]) -> LayoutOf:
    """A rule of an op that reads one value, its first argument; not known where another one depends on the start."""

    def single(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layouts | None:
        read = [arg for arg in node.all_input_nodes if d.get(arg) is not None]
        layout = d.get(node.args[0]) if node.args else None
        return rule(d, node, bound, layout) if layout is not None and len(read) == 1 else None

    return single


def places_of(dim: Any, rank: int) -> list[int]:
    """Dimensions that an argument names, counted from the front; all of them for None and an empty list."""
    if not rank or dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return list(range(rank))
    return [item % rank for item in (dim if isinstance(dim, (list, tuple)) else [dim])]


def laid_out(
    layout: Layout, dims: Sequence[Factors], mixed: Iterable[Factor] = (), tied: Iterable[Factor] = ()
) -> Layout:
    """A layout of these dimensions, of the same pieces."""
    return Layout(tuple(dims), frozenset(mixed), frozenset(tied), layout.pieces)


def mixed_along(layout: Layout, places: Iterable[int]) -> Layout:
    """The same dimensions, of which these are mixed."""
    return laid_out(layout, layout.dims, (factor for place in places for factor in layout.at(place)))


def resized(d: Dimensions, layout: Layout, shape: Sequence[int | str], places: Iterable[int]) -> Layout:
    """The same dimensions, of which these have been cut or enlarged to the sizes of `shape`."""
    dims = list(layout.dims)
    for place in places:
        dims[place] = (Factor(Size.of(shape[place]), layout.at(place)),)
    return laid_out(layout, dims, (factor for place in places for factor in layout.at(place)))


def reduced(layout: Layout, places: Sequence[int], keep: bool) -> Layout:
    """Without these dimensions, or with them at size 1."""
    dims = [
        () if place in places else factors for place, factors in enumerate(layout.dims) if keep or place not in places
    ]
    return laid_out(layout, dims, (factor for place in places for factor in layout.at(place)))
