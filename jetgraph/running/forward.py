"""A forward pass of the model, as its callers see it: values, pieces, stages, sizes and components of one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from jetgraph.algebra.rules import Freeze
from jetgraph.errors import SelectionError, StateError, check
from jetgraph.jets.fusion import Fusion
from jetgraph.running.alone import by_place
from jetgraph.running.components import Components, Graph
from jetgraph.running.indices import Position, at_places, places_of
from jetgraph.running.pieces import Pieces
from jetgraph.running.sizes import Sizes
from jetgraph.running.stages import Stages
from jetgraph.running.values import Values
from jetgraph.structure.regions import Branch, Region


class Forward:
    """The model's own forward pass on given inputs, computed on demand and each value at most once.

    `patch` puts another value in a component's place; everything that depends on it is then computed anew.

    Parameters
    ----------
    graph
        What is run.
    state, inputs
        Weights and constants, and the inputs, by placeholder.
    fusion
        Compiles the evaluation of series; they are evaluated op by op where it is None.
    values
        Where the values come from, unless they are all computed from the inputs.
    sizes
        Shapes of values, unless they are those that follow from the inputs.
    """

    def __init__(
        self,
        graph: Graph,
        state: Mapping[fx.Node, Any],
        inputs: Mapping[fx.Node, Any],
        fusion: Fusion | None = None,
        values: Values | None = None,
        sizes: Sizes | None = None,
    ) -> None:
        self.graph = graph
        self.state = state
        self.inputs = inputs
        self.values = Values(state, inputs, graph.positions) if values is None else values
        """Values of nodes, patches included."""
        self.sizes = Sizes(inputs, values=self.values.__getitem__) if sizes is None else sizes
        """Shapes, for which nothing is run unless they depend on values."""
        self.pieces = Pieces(self.values, fusion)
        """Regions and branches as functions."""
        self.stages = Stages(graph.structure, self.values, self.pieces, self.sizes)
        """The way along the stream, for its points and for summands of them."""
        self._components = Components(graph, self.values, self.pieces, self.stages, self.sizes)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise StateError("an evaluation is not copied: copy the tensors that it gives, or run the graph again")

    # Values

    def __getitem__(self, node: fx.Node) -> Any:
        if not isinstance(node, fx.Node):
            check(Forward.__getitem__, locals())
        return self.values[node]

    def need(self, nodes: Iterable[fx.Node]) -> None:
        """Compute these values, in one pass, if they are not there yet."""
        self.values.need(nodes)

    @property
    def output(self) -> Tensor:
        """The model's output, patches included."""
        return self[self.graph.traced.output]

    def output_at(self, position: Position) -> Tensor:
        """The output [batch, position, ...] at one position of each row; the decoder's affine part is run there.

        Parameters
        ----------
        position
            One for all rows, or one for each.

        Returns
        -------
        Tensor
            [batch, 1, ...].

        Raises
        ------
        InputError
            There is no such position.
        """
        check(Forward.output_at, locals())
        region = self.graph.structure.decoder.affine
        places = self.places(position)
        if region.exit in self.values or not by_place(region, places):
            # A view would keep the others in memory.
            return at_places(self.output, places).clone()
        return self.through(region, at_places(self[region.entry], places))

    def point(self, number: int) -> Tensor:
        """The stream after step `number`; 0 is the encoder's sum, -1 the last point.

        Raises
        ------
        SelectionError
            The stream does not have that point.
        """
        check(Forward.point, locals())
        points = self.graph.structure.main.points
        if not -len(points) <= number < len(points):
            raise SelectionError(f"the stream has points 0..{len(points) - 1}, not {number}")
        return self[points[number]]

    # Components

    def component(self, alias: str) -> Tensor:
        """What a branch, a part of one, a source of the encoder, or one that enters in mid-stream adds to its sum.

        Raises
        ------
        SelectionError
            There is no component of that name.
        """
        check(Forward.component, locals())
        return self._components.component(alias)

    def parts(self, aliases: Sequence[str]) -> Tensor:
        """What several parts of one branch, such as all its heads, add to its sum [part, …]: as `component` of each, in
        one matrix product where the branch ends in one.
        """
        return self._components.parts(aliases)

    def patch(self, alias: str, value: Tensor) -> None:
        """Put a value in a component's place.

        Everything that depends on it and was computed before is forgotten; components that are patched keep their
        values, whatever changes before them.

        Parameters
        ----------
        alias
            The component's name, as in `component`.
        value
            Of the component's shape and type.

        Raises
        ------
        SelectionError
            There is no component of that name.
        InputError
            The value has another shape or type, or the component is a part of a branch that was patched as a whole.
        """
        check(Forward.patch, locals())
        self._components.patch(alias, value)

    def sum_of(self, alias: str) -> fx.Node:
        """The sum, or the operand of one, in which a component is patched.

        Raises
        ------
        SelectionError
            There is no component of that name.
        """
        check(Forward.sum_of, locals())
        return self._components.sum_of(alias)

    def summand(self, alias: str) -> Tensor:
        """One source of the encoder, as it enters point 0.

        Raises
        ------
        SelectionError
            Another name.
        """
        check(Forward.summand, locals())
        return self.stages.summand(alias)

    # Pieces

    def through(self, region: Region, value: Any, order: int = 0, frozen: Freeze | None = None) -> Any:
        """Push a value (a tensor or a series) through a region; see `Pieces.through`."""
        return self.pieces.through(region, value, order, frozen)

    def branch(self, branch: Branch, value: Any, order: int = 0, frozen: Freeze | None = None) -> Any:
        """Push a value through a branch, or through a part of one; see `Pieces.branch`."""
        return self.pieces.branch(branch, value, order, frozen)

    def at_end(self, point: int) -> Tensor:
        """The stream at a point, carried to its end; see `Stages.at_end`."""
        check(Forward.at_end, locals())
        return self.stages.at_end(point)

    def replay(self) -> Tensor:
        """The output, put together stage by stage; see `Stages.replay`."""
        return self.stages.replay()

    # Sizes

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Sizes of a node's value for these inputs, without computing it."""
        return self.sizes.shape(node)

    def places(self, position: Position) -> int | Tensor:
        """Where a position of the output [batch, position, ...] is, counted from the start; see `places_of`."""
        return places_of(position, self.shape(self.graph.traced.output))
