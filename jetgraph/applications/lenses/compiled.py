"""The lenses of a graph: the expansion of its decoder around points of the stream, with its plan, made once."""

from __future__ import annotations

from dataclasses import dataclass

from jetgraph.algebra.expansion import Expansion, expand
from jetgraph.algebra.paths import Path
from jetgraph.algebra.rules import Scale
from jetgraph.algebra.selection import select
from jetgraph.applications.kept import kept
from jetgraph.applications.lenses.points import Layers, after_point, lens_points
from jetgraph.compilation import Plan
from jetgraph.compilation.module import values_of
from jetgraph.compilation.origins import Model
from jetgraph.compilation.planning import plan
from jetgraph.compilation.values import PathValues
from jetgraph.residual import ResidualGraph
from jetgraph.running.forward import Forward
from jetgraph.running.indices import Position


@dataclass(frozen=True, eq=False)
class Lenses:
    """Lenses at some points, evaluated with the weights that the model has now, and without a module of their own."""

    expansion: Expansion
    points: tuple[int, ...]
    after: tuple[str, ...]
    """What each point follows."""
    _model: Model
    _paths: tuple[Path, ...]
    _plan: Plan

    def values(self, forward: Forward, position: Position | None = None, memory: int | None = None) -> PathValues:
        """Their terms on a forward pass of the graph; at one position, as `PathModule.at`."""
        return values_of(self._plan, self._model, self._paths, forward, position, memory)


def lenses(graph: ResidualGraph, order: int, layers: Layers, scale: Scale, together: bool = False) -> Lenses:
    """The lenses up to an order at points of a graph: those of the last few requests are there already.

    Parameters
    ----------
    graph
        As its weights are now: see `ResidualGraph.current`.
    order, layers, scale
        As of `jetgraph.expand`.
    together
        The sum of all orders is one term.
    """
    asked = layers if layers is None or isinstance(layers, int | str) else tuple(layers)
    key = order, asked, scale, together
    return kept(graph, "lenses", key, lambda: _made(graph, order, layers, scale, together))


def _made(graph: ResidualGraph, order: int, layers: Layers, scale: Scale, together: bool) -> Lenses:
    expansion = expand(
        graph, order, recipe="lens", layers=layers, scale=scale, orders="together" if together else "auto"
    )
    points, paths, model = lens_points(expansion), tuple(select(expansion, "**")), Model(expansion, graph)
    after = tuple(after_point(graph.outline, point) for point in points)
    return Lenses(expansion, points, after, model, paths, plan(model, paths))
