"""The residual graph: a traced model with its joins, streams, encoder and decoder, which can be run piece by piece.

`trace` makes one from a model and example inputs, and checks it: each branch is cut out and run by itself on the fork's
value, and the stages put together again have to give the model's output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn

from jetgraph.analysis import Branch, Encoder, Join, Region, Stage, Stream, Structure, analyse
from jetgraph.display import html, tree
from jetgraph.errors import JetGraphError, TraceError
from jetgraph.jets.interpreter import evaluate
from jetgraph.program import Outline
from jetgraph.tracing import Traced, canonical, run_model


def trace(
    model: nn.Module, *args: Any, output: str | int | None = None, dynamic: bool = True, **kwargs: Any
) -> ResidualGraph:
    """Trace a model on example inputs and find its residual structure.

    Parameters
    ----------
    model
        Any loaded `nn.Module` in evaluation mode, on any device; on `meta`, where there are no weights, the
        structure is found
        but nothing can be run. The model is not modified, and the graph shares its parameters.
    args, kwargs
        Example inputs, given as to the model. A `use_cache` argument is set to False where the model has one.
    output
        The output to explain: its attribute, key or index in what the model returns (dotted if nested); by default
        `logits`, else the first float tensor.
    dynamic
        Let sizes of the inputs differ from the example's in later calls, where the model allows.

    Returns
    -------
    ResidualGraph
        `graph.joins` is empty for a model without a residual join; such a graph still runs and expands, as one
        function.

    Raises
    ------
    TraceError
        The model is in training mode, cannot be exported, or its stages do not reproduce it.

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
    traced = canonical(model, args, kwargs, output=output, dynamic=dynamic)
    graph = ResidualGraph(traced, title=type(model).__name__)
    if not traced.meta:
        graph = ResidualGraph(traced, graph.structure, graph.title, _check(graph, model, args, kwargs, output))
    return graph


@dataclass(frozen=True, slots=True)
class Check:
    """How well the stages, put together, reproduced the model's output on the example inputs."""

    error: float
    """max |replay − model|."""
    scale: float
    """max |model|."""

    @property
    def exact(self) -> bool:
        return self.error == 0

    def __str__(self) -> str:
        return "bit-equal" if self.exact else f"max error {self.error:.1e} of {self.scale:.1e}"


class ResidualGraph:
    """A model as encoder, stream of joins and maps, and decoder.

    `graph(**inputs)` is the model's output, replayed from the stages; `print(graph)` shows the structure.
    """

    def __init__(
        self, traced: Traced, structure: Structure | None = None, title: str = "model", check: Check | None = None
    ) -> None:
        self.traced = traced
        self.structure = structure or analyse(traced)
        self.title = title
        self.check = check
        """None for graphs on `meta` and for loaded ones."""

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
    def positions(self) -> Mapping[fx.Node, int]:
        """Place of every node in execution order."""
        return {node: index for index, node in enumerate(self.traced.graph.nodes)}

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The model's output, replayed from the stages."""
        return self.run(*args, **kwargs).replay()

    def run(self, *args: Any, **kwargs: Any) -> Forward:
        """A forward pass on these inputs, evaluated on demand."""
        if self.traced.meta:
            raise JetGraphError(
                "the graph was traced on the meta device and has no weights, so it cannot be run: trace a "
                "model with weights"
            )
        return Forward(self, self.traced.state_values(), self.traced.input_values(args, kwargs))

    @property
    def _checked(self) -> str | None:
        return None if self.check is None else str(self.check)

    def relocated(self, tensor: Callable[[str], Tensor]) -> ResidualGraph:
        """The same graph for weights that have moved to another device or floating-point type; itself if they have not.

        `tensor(name)` gives a weight as it is now. Devices and types that the trace wrote into the graph follow.
        """
        traced = self.traced.relocated(tensor)
        return self if traced is self.traced else ResidualGraph(traced, None, self.title, self.check)

    def __repr__(self) -> str:
        return tree(self.structure, self.title, self._checked)

    def _repr_html_(self) -> str:
        return html(self.structure, self.title, self._checked)


class Forward:
    """Values of the model's own forward pass on given inputs, computed on demand and each at most once.

    Only what was asked for is kept: a region's inner values are dropped as soon as nothing waits for them.
    """

    def __init__(self, graph: ResidualGraph, state: Mapping[fx.Node, Any], inputs: Mapping[fx.Node, Any]) -> None:
        self.graph = graph
        self.inputs = inputs
        self.values: dict[fx.Node, Any] = {**state, **inputs}

    def __getitem__(self, node: fx.Node) -> Any:
        if node not in self.values:
            self.need([node])
        return self.values[node]

    def need(self, nodes: Iterable[fx.Node]) -> None:
        """Compute these values, in one pass, if they are not there yet."""
        wanted = [node for node in nodes if node not in self.values]
        if not wanted:
            return
        todo: set[fx.Node] = set()
        stack = list(wanted)
        while stack:
            node = stack.pop()
            if node in todo or node in self.values:
                continue
            todo.add(node)
            stack.extend(node.all_input_nodes)
        order = sorted(todo, key=self.graph.positions.__getitem__)
        evaluate(order, self.values, keep={*self.values, *wanted})

    def side(self, region: Region) -> dict[fx.Node, Any]:
        """Values that a region reads besides its entry."""
        self.need(region.side)
        return {node: self.values[node] for node in region.side}

    def through(self, region: Region, value: Any, order: int = 0, **options: Any) -> Any:
        """Push a value (a tensor or a series) through a region."""
        if not region.nodes:
            return value
        return self.within(region, self.side(region) | {region.entry: value}, order, **options)

    def within(self, region: Region, values: dict[fx.Node, Any], order: int = 0, **options: Any) -> Any:
        """The region's exit, from values for everything it reads."""
        return evaluate(region.nodes, values, order, keep={region.exit}, **options)[region.exit]

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Sizes of a node's value for these inputs, without computing it."""
        sizes = node.meta["shape"]
        if all(isinstance(size, int) for size in sizes):
            return sizes
        return tuple(size if isinstance(size, int) else self._size(size) for size in sizes)

    def _size(self, text: str) -> int:
        size = sympy.sympify(text).subs(self._symbols)
        if not isinstance(size, sympy.Integer):
            raise JetGraphError(f"the size {text} does not follow from the sizes of the inputs")
        return int(size)

    @cached_property
    def _symbols(self) -> list[tuple[sympy.Symbol, int]]:
        found: dict[str, int] = {}
        for node, value in self.inputs.items():
            for size, actual in zip(node.meta["shape"], value.shape, strict=True):
                if isinstance(size, str):
                    found[size] = actual
        return [(sympy.Symbol(size), actual) for size, actual in found.items()]

    def replay(self) -> Tensor:
        """The output, put together stage by stage: encoder, then each join from its own branches, then decoder."""
        stream = self.graph.stream
        value = self.encode(stream.encoder)
        for stage in stream.stages:
            value = self.advance(stage, value)
        decoder = self.graph.structure.decoder
        return self.through(decoder.affine, self.through(decoder.nonlinear, value))

    def encode(self, encoder: Encoder) -> Tensor:
        """Point 0 of a stream, from its leaves."""
        self.need([*encoder.leaves, *_inputs_of(encoder.nodes)])
        if not encoder.nodes:
            return self.values[encoder.exit]
        values = dict(self.values)
        return evaluate(encoder.nodes, values, keep={encoder.exit})[encoder.exit]

    def advance(self, stage: Stage, value: Tensor) -> Tensor:
        """The point after a stage from the one before it; the branches of a join are each run on their own."""
        if stage.join is None:
            return self.through(stage.region, value)
        join = stage.join
        values = {join.fork: value}
        for region in (join.skip, *(branch.region for branch in join.branches)):
            values[region.exit] = self.through(region, value)
        self.need(join.injections)
        values |= {node: self.values[node] for node in join.injections}
        return evaluate(join.adds, values, keep={join.node})[join.node]


def _inputs_of(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    inside = set(nodes)
    return list(dict.fromkeys(arg for node in nodes for arg in node.all_input_nodes if arg not in inside))


def _check(
    graph: ResidualGraph, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: str | int | None
) -> Check:
    """Compare the replay with the model itself on the example inputs."""
    expected = run_model(model, args, kwargs, output)
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
    difference = (actual.double() - expected.double()).abs()
    check = Check(float(difference.max()) if difference.numel() else 0.0, float(expected.double().abs().max()))
    tolerance = (
        100 * math.sqrt(max(expected.shape[-1:], default=1)) * torch.finfo(expected.dtype).eps * max(check.scale, 1)
    )
    if not check.error <= tolerance:
        raise TraceError(
            f"the stages do not reproduce {graph.title}: {check} exceeds {tolerance:.1e}. The model may be "
            f"random in evaluation "
            "mode, or depend on state outside its inputs; please report the model otherwise"
        )
    return check
