"""The residual graph: a traced model with its joins, streams, encoder and decoder, which can be run piece by piece.

`trace` makes one from a model and example inputs, and checks it: each branch is cut out and run by itself on the fork's
value, and the stages put together again have to give the model's output.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from jetgraph.algebra.matching import nearest
from jetgraph.algebra.outline import Outline, Split
from jetgraph.algebra.rules import Freeze
from jetgraph.algebra.sizes import evaluate as size_of
from jetgraph.errors import InputError, SelectionError, StateError, TraceError, check, quoted
from jetgraph.export.callables import title, wrap_function
from jetgraph.jets.fusion import Fusion
from jetgraph.jets.interpreter import evaluate
from jetgraph.jets.series import Series
from jetgraph.structure.analysis import analyse
from jetgraph.structure.dimensions import Factor, Layout, goes_alone, size_read
from jetgraph.structure.regions import (
    Branch,
    Cut,
    Encoder,
    Join,
    JoinStage,
    MapStage,
    Region,
    Stage,
    Stream,
    Structure,
)
from jetgraph.structure.splitting import split
from jetgraph.tracing.agreement import Check, compare
from jetgraph.tracing.trace import Traced, trace_example
from jetgraph.tracing.weights import Weights, place_of
from jetgraph.views.tree import html, tree

aten = torch.ops.aten

Position = int | Sequence[int] | Tensor
"""A position of a sequence, negative ones counted from its end; or one for each row of the batch."""

Traceable = nn.Module | torch.export.ExportedProgram | Callable[..., Any]
"""What `trace` takes for a model."""


def trace(
    model: Traceable,
    /,
    *args: Any,
    output: str | int | None = None,
    dynamic: bool = True,
    inputs: Any = None,
    **kwargs: Any,
) -> ResidualGraph:
    """Trace a model on example inputs and find its residual structure.

    Parameters
    ----------
    model
        Any loaded `nn.Module` in evaluation mode, on any device; on `meta`, where there are no weights, the structure
        is found but nothing can be run. Also a `torch.export.ExportedProgram`, or a function of tensors that reads
        modules. The model is not modified. The graph reads its parameters by name while the model lives, so it follows
        what replaces, casts or moves them; where the model is gone, it has those that it read last.
    args, kwargs
        Example inputs, given as to the model. A `use_cache` argument is set to False where the model has one.
    output
        The output to explain: its attribute, key or index in what the model returns (dotted if nested); by default
        `logits`, else the first float tensor.
    dynamic
        Let sizes of the inputs differ from the example's in later calls, where the model allows.
    inputs
        Example inputs by name, in one mapping: for a model that has arguments called `output`, `dynamic` or `inputs`,
        and for what a tokenizer returns. Anything but a mapping is the model's own argument `inputs`.

    Returns
    -------
    ResidualGraph
        `graph.joins` is empty for a model without a residual join; such a graph still runs and expands, as one
        function.

    Raises
    ------
    TraceError
        The model is in training mode, random, is TorchScript or has only part of its weights, cannot be exported, or
        its stages do not reproduce it.
    InputError
        The model does not take the example inputs, or `output` or `dynamic` is no option of `trace`, but looks like an
        argument of the model.

    >>> import torch, jetgraph as jg
    >>> class Block(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.mlp = torch.nn.Linear(4, 4)
    ...     def forward(self, x):
    ...         return x + torch.tanh(self.mlp(x))
    >>> graph = jg.trace(torch.nn.Sequential(Block(), Block()).eval(), torch.randn(2, 4))
    >>> graph.joins
    (Join('0.mlp', kind='identity', branches=L0.mlp, depth=0), Join('1.mlp', kind='identity', branches=L1.mlp, depth=0))
    """
    _check_options(output, dynamic)
    kwargs |= dict(inputs) if isinstance(inputs, Mapping) else {} if inputs is None else {"inputs": inputs}
    module = wrap_function(model)
    traced, expected = trace_example(module, args, kwargs, output=output, dynamic=dynamic)
    graph = ResidualGraph(traced, title=title(module))
    if expected is not None:
        graph = ResidualGraph(traced, graph.structure, graph.title, _check(graph, args, kwargs, expected))
    return graph


def _check_options(output: Any, dynamic: Any) -> None:
    for name, value, kinds, what in (
        ("output", output, str | int | None, "names the output to explain"),
        ("dynamic", dynamic, bool, "is True or False"),
    ):
        if not isinstance(value, kinds):
            raise InputError(
                f"{name}= of jetgraph.trace {what}, and a {type(value).__name__} was given: the model's own argument "
                f"{name!r} goes into inputs={{{name!r}: ..., ...}}"
            )


class ResidualGraph:
    """A model as encoder, stream of joins and maps, and decoder.

    `graph(**inputs)` is the model's output, replayed from the stages; `print(graph)` shows the structure.
    """

    def __init__(
        self,
        traced: Traced,
        structure: Structure | None = None,
        title: str = "model",
        check: Check | None = None,
        parts: Split | None = None,
    ) -> None:
        self.traced = traced
        whole = structure or analyse(traced)
        self.structure = whole if parts is None else split(whole, parts)
        self.parts: Split | None = parts
        """How branches are split into parts; None where none is."""
        self.title = title
        self.check = check
        """None for graphs on `meta` and for loaded ones."""
        self._passed: dict[tuple[Region, int], tuple[Factor, Layout] | None] = {}
        self._elsewhere: ResidualGraph | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> ResidualGraph:
        """A graph of its own, over copies of the weights."""
        return ResidualGraph(copy.deepcopy(self.traced, memo), None, self.title, self.check, self.parts)

    @property
    def joins(self) -> tuple[Join, ...]:
        """Joins of all streams and depths, in topological order."""
        return self.structure.joins

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The streams; the last one, which leads to the output, is the one that is expanded."""
        return self.structure.streams

    @property
    def stream(self) -> Stream:
        """The stream that leads to the output."""
        return self.structure.main

    @property
    def outline(self) -> Outline:
        """The stream without tensors, as expansion sees it."""
        return self.structure.outline

    @cached_property
    def branches(self) -> Mapping[str, Branch]:
        """Branches of every join by alias."""
        return {branch.alias: branch for join in self.joins for branch in join.branches}

    @cached_property
    def injections(self) -> Mapping[str, tuple[Join, fx.Node]]:
        """What enters in mid-stream, by alias: the join, and the operand. Concatenated ones are left out."""
        return {
            source.alias: (stage.join, node)
            for stream in self.streams
            for stage in stream.stages
            if isinstance(stage, JoinStage) and stage.join.kind != "concat"
            for source, node in zip(stage.step.injections, stage.join.injections, strict=True)
        }

    @cached_property
    def positions(self) -> Mapping[fx.Node, int]:
        """Place of every node in execution order."""
        return {node: index for index, node in enumerate(self.traced.graph.nodes)}

    def by_element(self, region: Region) -> bool:
        """Each element of the batch, the first dimension of the region's entry and of its exit, goes through the region
        by itself: several values can be put side by side.
        """
        shape = region.entry.meta["shape"]
        found = self._alone(region, 0) if shape and isinstance(shape[0], str) else None
        return found is not None and found[1].dims[:1] != () and found[1].at(0)[:1] == found[:1]

    def by_position(self, region: Region) -> bool:
        """Each index of the second dimension of the entry, which has three or more, goes through the region by itself
        to the exit's second dimension, and all of them alike: one can be taken out.
        """
        found = self._alone(region, 1) if len(region.entry.meta["shape"]) > 2 else None
        return found is not None and found[1].dims[1:2] != () and found[1].at(1) == found[:1]

    def _alone(self, region: Region, dim: int) -> tuple[Factor, Layout] | None:
        if (region, dim) not in self._passed:
            self._passed[region, dim] = goes_alone(region.entry, region.nodes, region.exit, region.side, dim)
        return self._passed[region, dim]

    def split(self, how: Split) -> ResidualGraph:
        """The same graph with branches cut into heads or sets of neurons; see `jetgraph.expand`."""
        if self.parts is not None:
            raise InputError(
                f"the branches of this graph are split already, by {self.parts!r}: split the graph that it was made "
                "from, with one mapping for everything, such as {'*.attn': 'heads', 'L0.mlp': [[0, 1]]}"
            )
        return ResidualGraph(self.traced, self.structure, self.title, self.check, how)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The model's output, replayed from the stages."""
        return self.run(*args, **kwargs).replay()

    def run(self, *args: Any, **kwargs: Any) -> Forward:
        """A forward pass on these inputs, evaluated on demand, with the model's weights as they are now.

        `Forward.graph` is this graph, or `current()` where the model was moved or cast since the trace.
        """
        if self.traced.meta:
            raise StateError(
                "the graph was traced on the meta device and has no weights, so it cannot be run: trace a "
                "model with weights (which are loaded, not offloaded)"
            )
        graph, tensors = self._now()
        state = graph.traced.state_values(tensors.__getitem__)
        return Forward(graph, state, graph.traced.input_values(args, kwargs))

    def current(self) -> ResidualGraph:
        """The graph for where the model's weights are now: itself, unless the model was moved or cast since the trace.

        Its nodes are other ones than this graph's. Raises `StateError` where the model has changed in another way.
        """
        return self._now()[0]

    def _now(self) -> tuple[ResidualGraph, Mapping[str, Tensor]]:
        """The graph for where the weights are now, and the weights."""
        weights = self.traced.tensors
        if not isinstance(weights, Weights):
            return self, weights
        tensors, moved = weights.now()
        if not moved:
            return self, tensors
        place, graph = place_of(tensors.values()), self
        if place != self.traced.place:
            if self._elsewhere is None or self._elsewhere.traced.place != place:
                traced = replace(self.traced.relocated(tensors.__getitem__), tensors=weights.constants_on(place[0]))
                self._elsewhere = ResidualGraph(traced, None, self.title, self.check, self.parts)
            graph, tensors = self._elsewhere, dict(self._elsewhere.traced.tensors)
        for node, name in graph.traced.state.items():
            if tensors[name].dtype != node.meta["dtype"] or tensors[name].device != place[0]:
                raise StateError(
                    f"since the trace, the weight {name!r} has become one of {tensors[name].dtype} on "
                    f"{tensors[name].device}, and others have not: cast and move the whole model, or trace it again"
                )
        return graph, tensors

    @property
    def _checked(self) -> str | None:
        return None if self.check is None else str(self.check)

    def relocated(self, tensor: Callable[[str], Tensor]) -> ResidualGraph:
        """The same graph for weights that have moved to another device or floating-point type; itself if they have not.

        `tensor(name)` gives a weight as it is now. Devices and types that the trace wrote into the graph follow.
        """
        traced = self.traced.relocated(tensor)
        return self if traced is self.traced else ResidualGraph(traced, None, self.title, self.check, self.parts)

    def __repr__(self) -> str:
        return tree(self.structure, self.title, self._checked)

    def _repr_html_(self) -> str:
        return html(self.structure, self.title, self._checked)


class Forward:
    """Values of the model's own forward pass on given inputs, computed on demand and each at most once.

    Only what was asked for is kept: a region's inner values are dropped as soon as nothing waits for them. `patch` puts
    another value in a component's place; everything that depends on it is then computed anew.
    """

    def __init__(
        self,
        graph: ResidualGraph,
        state: Mapping[fx.Node, Any],
        inputs: Mapping[fx.Node, Any],
        fusion: Fusion | None = None,
    ) -> None:
        self.graph = graph
        self.fusion = fusion
        """Compiles the evaluation of series; they are evaluated op by op where it is None."""
        self.state = state
        self.inputs = inputs
        self.values: dict[fx.Node, Any] = {**state, **inputs}
        self._patched: dict[fx.Node, dict[str, Tensor]] = {}
        """By sum: new values of some of its parts (of the summands of point 0, of the parts of a branch)."""
        self._fixed: set[fx.Node] = set()
        """Nodes whose values were put there by a patch."""
        self._opened: tuple[Any, Any, Any] = (None, None, None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise StateError("an evaluation is not copied: copy the tensors that it gives, or run the graph again")

    def __getitem__(self, node: fx.Node) -> Any:
        if not isinstance(node, fx.Node):
            check(Forward.__getitem__, locals())
        if node not in self.values:
            self.need([node])
        return self.values[node]

    def need(self, nodes: Iterable[fx.Node]) -> None:
        """Compute these values, in one pass, if they are not there yet."""
        wanted = [node for node in nodes if node not in self.values]
        if any(node.graph is not self.graph.traced.graph for node in wanted):
            raise InputError(
                f"{wanted[0].name!r} is of another graph than this pass, which is of the model as it was moved or cast "
                "since the trace: take points, regions and branches from forward.graph"
            )
        while wanted and (patched := self._missing(wanted).keys() & self._patched.keys()):
            # A sum some of whose parts are patched is made first, and then its parts are exchanged.
            first = min(patched, key=self.graph.positions.__getitem__)
            self._compute([first])
            self.values[first] = self._replaced(first, self.values[first])
            wanted = [node for node in wanted if node not in self.values]
        self._compute(wanted)

    def _compute(self, wanted: Sequence[fx.Node]) -> None:
        if wanted:
            order = sorted(self._missing(wanted), key=self.graph.positions.__getitem__)
            # A stream may start at an input itself, whose value a patch has put aside.
            self.values |= {node: self.inputs[node] for node in order if node in self.inputs}
            evaluate(order, self.values, keep={*self.values, *wanted})

    def _missing(self, wanted: Sequence[fx.Node]) -> dict[fx.Node, None]:
        """What has to be computed for these values."""
        found: dict[fx.Node, None] = {}
        stack = list(wanted)
        while stack:
            node = stack.pop()
            if node not in found and node not in self.values:
                found[node] = None
                stack.extend(node.all_input_nodes)
        return found

    # Components

    @property
    def output(self) -> Tensor:
        """The model's output, patches included."""
        return self[self.graph.traced.output]

    def output_at(self, position: Position) -> Tensor:
        """The output [batch, position, ...] at one position of each row, [batch, 1, ...]; the decoder's affine part is
        run there.

        Raises `InputError` for a position that does not exist.
        """
        check(Forward.output_at, locals())
        decoder = self.graph.structure.decoder
        places = self.places(position)
        if decoder.affine.exit in self.values or not self.graph.by_position(decoder.affine):
            # A view would keep the others in memory.
            return at_places(self.output, places).clone()
        return self.through(decoder.affine, at_places(self[decoder.affine.entry], places))

    def places(self, position: Position) -> int | Tensor:
        """Where a position of the output [batch, position, ...] is, counted from the start: one place for all rows, or
        the place of each [batch].

        Raises `InputError` for a position that the output does not have, and for other numbers of them than rows.
        """
        shape = self.shape(self.graph.traced.output)
        if len(shape) < 3:
            raise InputError(f"position={quoted(position)} does not exist: the output {list(shape)} has no positions")
        listed = whole_numbers(position, "position") if isinstance(position, Tensor) else position
        rows = list(listed) if isinstance(listed, Sequence) else [listed]
        if len(rows) not in (1, shape[0]) or not all(isinstance(row, int) for row in rows):
            raise InputError(
                f"position={quoted(listed)} does not fit an output of {shape[0]} rows: give a whole number, or one for "
                "each row"
            )
        wrong = next((row for row in rows if not -shape[1] <= row < shape[1]), None)
        if wrong is not None:
            raise InputError(f"position={quoted(wrong)} does not exist: the output has positions 0 to {shape[1] - 1}")
        places = [row % shape[1] for row in rows]
        return places[0] if len(set(places)) == 1 else torch.tensor(places)

    def point(self, number: int) -> Tensor:
        """The stream after step `number`; 0 is the encoder's sum, -1 the last point.

        Raises `SelectionError` for a point that the stream does not have.
        """
        check(Forward.point, locals())
        points = self.graph.stream.points
        if not -len(points) <= number < len(points):
            raise SelectionError(f"the stream has points 0..{len(points) - 1}, not {number}")
        return self[points[number]]

    def component(self, alias: str) -> Tensor:
        """What a branch, a part of one, a source of the encoder, or one that enters in mid-stream adds to its sum.

        Raises `SelectionError` for another name.
        """
        check(Forward.component, locals())
        node, branch = self._component(alias)
        if alias in self._patched.get(node, {}):
            return self._patched[node][alias]
        if branch is not None and branch.part is None:
            return self[node]
        return self._own(alias)

    def _own(self, alias: str) -> Tensor:
        """What such a part of a sum is by itself, patches of it left aside."""
        branch = self.graph.branches.get(alias)
        if branch is not None:
            return self.branch(branch, self[branch.region.entry])
        injection = self.graph.injections.get(alias)
        return self.summand(alias) if injection is None else self[injection[1]]

    def patch(self, alias: str, value: Tensor) -> None:
        """Put `value` in a component's place.

        Everything that depends on it and was computed before is forgotten; components that are patched keep their
        values, whatever changes before them.

        Raises `SelectionError` for an unknown name, and `InputError` for a value of another shape.
        """
        check(Forward.patch, locals())
        node, branch = self._component(alias)
        own = self.graph.injections[alias][1] if alias in self.graph.injections else node
        expected = self.shape(own)
        if tuple(value.shape) != expected:
            raise InputError(f"{alias!r} has the shape {expected}, and {tuple(value.shape)} was given")
        if value.dtype != own.meta["dtype"]:
            raise InputError(f"{alias!r} is of type {own.meta['dtype']}, and {value.dtype} was given")
        if branch is not None and branch.part is None:
            self._fixed.add(node)
            self._patched.pop(node, None)
            self._forget(node)
            self.values[node] = value
            return
        if node in self._fixed:
            raise InputError(f"a part of {node.name!r} cannot be patched, for the whole branch was: make a new pass")
        self._patched.setdefault(node, {})[alias] = value
        self._forget(node)

    def _component(self, alias: str) -> tuple[fx.Node, Branch | None]:
        """The sum that a component belongs to (for a whole branch the operand itself), and its branch."""
        branch = self.graph.branches.get(alias)
        if branch is not None:
            return branch.node, branch
        if alias in self.graph.injections:
            return self.graph.injections[alias][0].node, None
        encoder = self.graph.stream.encoder
        sources = [summand.source.alias for summand in encoder.summands]
        if alias not in sources:
            names = (*sources, *self.graph.branches, *self.graph.injections)
            raise SelectionError(f"there is no component {quoted(alias)}{nearest(alias, names)}")
        return encoder.exit, None

    def _replaced(self, node: fx.Node, value: Tensor) -> Tensor:
        """A sum with the patched ones among its parts exchanged."""
        for alias, new in self._patched[node].items():
            branch = self.graph.branches.get(alias)
            # A source that is all of point 0 is replaced as it stands.
            whole = branch is None and node is self.graph.stream.encoder.exit and not self.graph.stream.encoder.nodes
            value = new if whole else (value + (new - self._own(alias))).to(value.dtype)
        return value

    def _forget(self, node: fx.Node) -> None:
        """Drop the value and all that depends on it."""
        seen: set[fx.Node] = set()
        stack = [node]
        while stack:
            current = stack.pop()
            self.values.pop(current, None)
            for user in current.users:
                if user not in seen and user not in self._fixed:
                    seen.add(user)
                    stack.append(user)

    # Pieces

    def side(self, region: Region) -> dict[fx.Node, Any]:
        """Values that a region reads besides its entry."""
        self.need(region.side)
        return {node: self.values[node] for node in region.side}

    def through(self, region: Region, value: Any, order: int = 0, frozen: Freeze | None = None) -> Any:
        """Push a value (a tensor or a series) through a region."""
        if not region.nodes:
            return value
        return self.within(region, self._reads(region, value), order, frozen)

    def _reads(self, region: Region, value: Any) -> dict[fx.Node, Any]:
        """What a region reads when a value enters it; sizes along its dimensions are those of the value."""
        named = zip(region.entry.meta["shape"], value.shape, strict=True)
        sizes: dict[str | int | None, int] = {size: actual for size, actual in named if isinstance(size, str)}
        side = {node: sizes.get(size_read(node), held) for node, held in self.side(region).items()}
        return side | {region.entry: value}

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
        if order and self.fusion is not None and not region.affine:
            return self.fusion(region.nodes, values, order, region.exit, frozen)
        memory = None if out is None else {region.exit: out}
        return evaluate(region.nodes, values, order, keep={region.exit}, frozen=frozen, out=memory)[region.exit]

    def branch(self, branch: Branch, value: Any, order: int = 0, frozen: Freeze | None = None) -> Any:
        """Push a value through a branch, or through a part of one."""
        if branch.part is None:
            return self.through(branch.region, value, order, frozen)
        side = self.side(branch.region)
        cut = branch.part.cut
        key = (cut, order, frozen)
        # The parts of a branch share all that lies before the cut.
        if self._opened[0] != key or self._opened[1] is not value:
            self._opened = (key, value, cut.open({**side, branch.region.entry: value}, order, frozen))
        return cut.part(self._opened[2], side, branch.part, order, frozen)

    def linear(self, region: Region, value: Tensor) -> Tensor:
        """The linear part of an affine region."""
        if not region.nodes:
            return value
        return coefficient(self.through(region, Series.direction(value), 1), 1)

    def carry(self, value: Tensor, start: int, stop: int) -> Tensor:
        """A summand of the stream at point `start` as one at point `stop`, through skips and affine maps.

        It has the type of each point. Nonlinear maps on the way are left out.
        """
        for stage in self.graph.stream.stages[start:stop]:
            if isinstance(stage, JoinStage):
                value = self.place(stage.join, stage.join.skip.exit, self.linear(stage.join.skip, value))
            elif stage.region.affine:
                value = self.linear(stage.region, value)
            # A map that is left out may still be where the stream changes its type.
            value = value.to(stage.region.exit.meta["dtype"])
        return value

    def at_end(self, point: int) -> Tensor:
        """The stream at a point, carried to its end.

        Raises `InputError` where a nonlinear map on the way changes the stream's shape, and `SelectionError` for a
        point that the stream does not have.
        """
        check(Forward.at_end, locals())
        points = self.graph.stream.points
        if not 0 <= point < len(points):
            raise SelectionError(f"the stream has points 0..{len(points) - 1}, not {quoted(point)}")
        value = self[points[point]]
        for step, stage in enumerate(self.graph.stream.stages[point:], point):
            left_out = isinstance(stage, MapStage) and not stage.region.affine
            if left_out and tuple(value.shape) != self.shape(stage.region.exit):
                raise InputError(
                    f"a lens cannot look at h{point}: the map {stage.alias!r} after it changes the stream's shape"
                )
            value = self.carry(value, step, step + 1)
        return value

    def place(self, join: Join, operand: fx.Node, value: Tensor) -> Tensor:
        """An operand's value as a summand of the join, of its type: cat(a, b) = cat(a, 0) + cat(0, b)."""
        value = value.to(join.node.meta["dtype"])
        if join.kind != "concat":
            return self._full(value, self.shape(join.node))
        dim = join.node.args[1] if len(join.node.args) > 1 else 0
        assert isinstance(dim, int)
        return torch.cat(
            [value if other is operand else value.new_zeros(self.shape(other)) for other in join.operands], dim
        )

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
        """Push a stack [n, *entry] of values, or a series of stacks, through a region: [n, *exit].

        In one pass where each element of the batch goes by itself, else one by one. `linear`: the linear part of an
        affine region, of a tensor. `out`: memory [n, *exit] that the result of one pass may be written to.
        """
        if not region.nodes:
            return value
        if linear:
            return coefficient(self.side_by_side(region, Series.direction(value), 1), 1)
        number = value.shape[0]
        if not self.graph.by_element(region):
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

    def summand(self, alias: str) -> Tensor:
        """One source of the encoder, as it enters point 0. Raises `SelectionError` for another name."""
        check(Forward.summand, locals())
        encoder = self.graph.stream.encoder
        leaves_by_alias = {summand.source.alias: summand.leaf for summand in encoder.summands}
        if alias not in leaves_by_alias:
            raise SelectionError(f"{quoted(alias)} is no source of the encoder: there are {', '.join(leaves_by_alias)}")
        leaf = leaves_by_alias[alias]
        if leaf is not None and leaf is encoder.exit:
            return self[leaf]
        if leaf is None:
            leaves = {node: torch.zeros_like(self[node]) for node in encoder.leaves}
        else:
            leaves = {leaf: Series.direction(self[leaf])}
        self.need(set(encoder.side) - leaves.keys())
        values = {node: self.values[node] for node in encoder.side if node not in leaves} | leaves
        value = evaluate(encoder.nodes, values, 1, keep={encoder.exit})[encoder.exit]
        value = value if leaf is None else coefficient(value, 1)
        return self._full(value.to(encoder.exit.meta["dtype"]), self.shape(encoder.exit))

    def _full(self, value: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A summand that broadcasts (one position table for the whole batch), written out."""
        return value if tuple(value.shape) == shape else value.expand(shape).contiguous()

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Sizes of a node's value for these inputs, without computing it."""
        shape = node.meta["shape"]
        if all(isinstance(size, int) for size in shape):
            return shape
        return tuple(size if isinstance(size, int) else self._size(size) for size in shape)

    def _size(self, text: str) -> int:
        if text not in self._sizes:
            self._sizes[text] = size_of(text, self._sizes)
        return self._sizes[text]

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """Sizes by their formula; at first those that the inputs' shapes name."""
        found: dict[str, int] = {}
        for node, value in self.inputs.items():
            for size, actual in zip(node.meta["shape"], value.shape, strict=True):
                if isinstance(size, str):
                    found[size] = actual
        return found

    # Replay

    def replay(self) -> Tensor:
        """The output, put together stage by stage: encoder, then each join from its own branches, then decoder."""
        stream = self.graph.stream
        points = {stream.encoder.exit: self.encode(stream.encoder)}
        for stage in stream.stages:
            points[stage.region.exit] = self.advance(stage, points)
        decoder = self.graph.structure.decoder
        return self.through(decoder.affine, self.through(decoder.nonlinear, points[stream.end]))

    def encode(self, encoder: Encoder) -> Tensor:
        """Point 0 of a stream, from its leaves."""
        if not encoder.nodes:
            return self[encoder.exit]
        self.need(encoder.side)
        values = {node: self.values[node] for node in encoder.side}
        return evaluate(encoder.nodes, values, keep={encoder.exit})[encoder.exit]

    def advance(self, stage: Stage, points: Mapping[fx.Node, Tensor]) -> Tensor:
        """The point after a stage from those before it; the branches of a join are each run on their own."""
        value = points[stage.region.entry]
        if isinstance(stage, MapStage):
            return self.through(stage.region, value)
        join = stage.join
        values = {join.fork: value, join.skip.exit: self.through(join.skip, value)}
        for branch in join.branches:
            if branch.node is join.skip.exit:
                continue  # The stream itself once more; the adds read it as often as it is added.
            summand = self.branch(branch, points[branch.region.entry])
            values[branch.node] = values[branch.node] + summand if branch.node in values else summand
        for cut, node in {branch.part.cut: branch.node for branch in join.branches if branch.part}.items():
            if cut.constant == "fixed":
                values[node] = values[node] + self.constant(cut, points[cut.region.entry])
        self.need(join.injections)
        values |= {node: self.values[node] for node in join.injections}
        return evaluate(join.adds, values, keep={join.node})[join.node]

    def constant(self, cut: Cut, value: Tensor) -> Tensor:
        """What a split branch adds besides its parts; `value`, at its fork, gives no more than the shape."""
        side = self.side(cut.region)
        return cut.fixed(cut.open({**side, cut.region.entry: value}), side)


def _over(value: Any, function: Callable[[Tensor, int], Tensor]) -> Any:
    """A function of a tensor and of its first dimension, on a tensor or on the stack of a series."""
    return value.like(function(value.coefficients, 1)) if isinstance(value, Series) else function(value, 0)


def check_whole(value: Tensor, name: str) -> None:
    """Raise `InputError` for what is no tensor of indices: of another type, or without numbers."""
    packed = value.layout is not torch.strided or value.is_quantized
    if value.is_meta or packed or value.is_floating_point() or value.is_complex():
        raise InputError(f"{name} is a tensor of {value.dtype} on {value.device}: give whole numbers")


def whole_numbers(value: Tensor, name: str) -> list[int]:
    """The numbers in a tensor of indices; see `check_whole`."""
    check_whole(value, name)
    return [int(number) for number in value.flatten().tolist()]


def at_places(value: Tensor, places: int | Tensor, dim: int = 1) -> Tensor:
    """One place along dimension `dim`, which is kept with the size 1; with places [batch], that of each element of the
    batch, the dimension before it.
    """
    if isinstance(places, int):
        return value.narrow(dim, places, 1)
    index = places.to(value.device).view(-1, *[1] * (value.dim() - dim))
    return value.take_along_dim(index.expand(-1, 1, *value.shape[dim + 1 :])[(None,) * (dim - 1)], dim)


def coefficient(value: Any, order: int) -> Tensor:
    """The coefficient of what a region gave; a plain tensor did not depend on the variate."""
    if isinstance(value, Series):
        return value.coefficient(order)
    return value if order == 0 else torch.zeros_like(value)


def _check(graph: ResidualGraph, args: Sequence[Any], kwargs: Mapping[str, Any], expected: Tensor) -> Check:
    """Compare the replay with the output of the model itself on the example inputs."""
    with torch.no_grad():
        actual = graph(*args, **kwargs)
    if actual.shape != expected.shape:
        raise TraceError(
            f"the stages give an output of shape {tuple(actual.shape)}, but {graph.title} one of "
            f"{tuple(expected.shape)}"
        )
    if not expected.isfinite().all():
        raise TraceError(
            f"the output of {graph.title} on the example inputs is not finite, so there is nothing to explain: check "
            "the inputs and the weights"
        )
    check = compare(actual, expected)
    if not check.good:
        raise TraceError(
            f"the stages do not reproduce {graph.title}: {check}, and in one row {check.excess:.1e} times what "
            "rounding may make of it. The model may be random in evaluation mode, or depend on state outside its "
            "inputs; please report the model otherwise"
        )
    return check
