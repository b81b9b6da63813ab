"""The residual graph: a traced model with its joins, streams, encoder and decoder, which can be run piece by piece.

`trace` makes one from a model and example inputs, and checks it: each branch is cut out and run by itself on the fork's
value, and the stages put together again have to give the model's output.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from jetgraph.algebra.outline import Outline, Split
from jetgraph.errors import InputError, JetGraphError, StateError, TraceError
from jetgraph.export.callables import find, title, wrap_function
from jetgraph.export.precision import own_types
from jetgraph.export.waiting import stage, waited_for
from jetgraph.running.alone import by_element, by_position
from jetgraph.running.forward import Forward
from jetgraph.running.values import Places
from jetgraph.structure.analysis import analyse
from jetgraph.structure.regions import Branch, Join, JoinStage, Region, Stream, Structure
from jetgraph.structure.splitting import split
from jetgraph.tracing.agreement import Check, compare
from jetgraph.tracing.code import Change, Code
from jetgraph.tracing.state import kept
from jetgraph.tracing.trace import example_output, trace_example
from jetgraph.tracing.traced import Traced
from jetgraph.tracing.weights import DeviceAndDtype, Weights, device_and_dtype
from jetgraph.views.tree import html, tree

Traceable = nn.Module | torch.export.ExportedProgram | Callable[..., Any]
"""What `trace` takes for a model."""

STRICT = 0.1
"""What rounding may make of a row, as a part of what it may make in a trace, where only a switch has changed since: so
much that attention in another order of its sums passes, and an approximate activation in single precision does not."""


@own_types()
def trace(
    model: Traceable,
    /,
    *args: Any,
    output: str | int | None = None,
    dynamic: bool | Literal["batch"] = True,
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
        what replaces, casts or moves them; where the model is gone, it has those that it read last. It computes what
        the model's code does now, and raises `StateError` when it is run after that has changed.
    args, kwargs
        Example inputs, given as to the model. A `use_cache` argument is set to False where the model has one.
    output
        The output to explain: its attribute, key or index in what the model returns (dotted if nested); by default
        `logits`, else the first float tensor.
    dynamic
        Let sizes of the inputs differ from the example's in later calls, where the model allows. That takes two to
        three times as long as a trace of fixed sizes (False), more where code computes with its sizes: where it asks
        some hundred questions about them, only the batch is left open, and the graph's text says so. "batch" asks for
        that at once.
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
    with waited_for(f"tracing {title(module)}"):
        traced, expected = trace_example(module, args, kwargs, output=output, dynamic=dynamic)
        stage("finding the structure")
        graph = analysed(traced, title(module))
        stage("running the graph on the example")
        return graph if expected is None else checked(graph, args, kwargs, expected)


def _check_options(output: Any, dynamic: Any) -> None:
    for name, value, kinds, what in (
        ("output", output, str | int | None, "names the output to explain"),
        ("dynamic", dynamic, bool, "is True or False, or 'batch'"),
    ):
        if not isinstance(value, kinds) and (name, value) != ("dynamic", "batch"):
            raise InputError(
                f"{name}= of jetgraph.trace {what}, and a {type(value).__name__} was given: the model's own argument "
                f"{name!r} goes into inputs={{{name!r}: ..., ...}}"
            )


def analysed(traced: Traced, title: str = "model", parts: Split | None = None) -> ResidualGraph:
    """The residual graph of a program, with branches split into `parts`."""
    structure = analyse(traced)
    return ResidualGraph(structure.traced, structure if parts is None else split(structure, parts), title, parts=parts)


@dataclass(frozen=True, eq=False, repr=False)
class ResidualGraph:
    """A model as encoder, stream of joins and maps, and decoder.

    `graph(**inputs)` is the model's output, replayed from the stages; `print(graph)` shows the structure.
    """

    traced: Traced
    structure: Structure
    title: str = "model"
    check: Check | None = None
    """How well the stages reproduced the model on the example inputs; None for graphs on `meta` and for loaded ones."""
    parts: Split | None = None
    """How branches are split into parts; None where none is."""
    branches: Mapping[str, Branch] = field(init=False)
    """Branches of every join by alias."""
    injections: Mapping[str, tuple[Join, fx.Node]] = field(init=False)
    """What enters in mid-stream, by alias: the join, and the operand. Concatenated ones are left out."""
    positions: Places = field(init=False)
    """Place of every node in execution order."""

    def __post_init__(self) -> None:
        branches = {branch.alias: branch for join in self.joins for branch in join.branches}
        injections = {
            source.alias: (stage.join, node)
            for stream in self.streams
            for stage in stream.stages
            if isinstance(stage, JoinStage) and not stage.join.concatenates
            for source, node in zip(stage.step.injections, stage.join.injections, strict=True)
        }
        object.__setattr__(self, "branches", branches)
        object.__setattr__(self, "injections", injections)
        object.__setattr__(self, "positions", Places(self.traced.graph))

    def __deepcopy__(self, memo: dict[int, Any]) -> ResidualGraph:
        """A graph of its own, over copies of the weights. The program is shared, for it never changes."""
        traced = replace(self.traced, tensors=copy.deepcopy(self.traced.tensors, memo))
        return replace(self, traced=traced, structure=replace(self.structure, traced=traced))

    def over(self, model: nn.Module) -> ResidualGraph:
        """The same graph over the weights of another model, which has all that this one's has under the same names.

        Raises
        ------
        StateError
            It lacks one.
        """
        held = self.traced.tensors
        assert isinstance(held, Weights)
        own = {name: find(model, name.split(".")) if held.is_owned(name) else held[name] for name in held}
        if gone := next((name for name, value in own.items() if not isinstance(value, Tensor)), None):
            raise StateError(
                f"{type(model).__name__} has no weight {gone!r}, so it is not the model of this graph: give one of the "
                "same weights, or trace it with jetgraph.trace(model, ...)"
            )
        # Devices and types that the trace wrote into the graph follow.
        program = self.traced.relocated(own.__getitem__)
        traced = replace(program, tensors=held.over(own, model))
        if program is not self.traced:
            return replace(self._over(traced), check=None)
        return replace(self, traced=traced, structure=replace(self.structure, traced=traced), check=None)

    def _over(self, traced: Traced) -> ResidualGraph:
        """The same graph over the program for another device or type.

        Such a program has nodes of its own, and a structure is made of nodes: it is found again.
        """
        return replace(analysed(traced, self.title, self.parts), check=self.check)

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

    def by_element(self, region: Region) -> bool:
        """Each element of the batch goes through the region by itself; see `jetgraph.running.alone`."""
        return by_element(region)

    def by_position(self, region: Region) -> bool:
        """Each position goes through the region by itself, and all alike; see `jetgraph.running.alone`."""
        return by_position(region)

    def split(self, how: Split) -> ResidualGraph:
        """The same graph with branches cut into heads or sets of neurons; see `jetgraph.expand`.

        Raises
        ------
        InputError
            Branches are split already, or cannot be split so.
        """
        if self.parts is not None:
            raise InputError(
                f"the branches of this graph are split already, by {self.parts!r}: split the graph that it was made "
                "from, with one mapping for everything, such as {'*.attn': 'heads', 'L0.mlp': [[0, 1]]}"
            )
        return replace(self, structure=split(self.structure, how), parts=how)

    @own_types()
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The model's output, replayed from the stages."""
        return self.run(*args, **kwargs).replay()

    @own_types()
    def run(self, *args: Any, **kwargs: Any) -> Forward:
        """A forward pass on these inputs, evaluated on demand, with the model's weights as they are now.

        Parameters
        ----------
        args, kwargs
            The model's inputs.

        Returns
        -------
        Forward
            Its `graph` is this one, or `current()` where the model was moved or cast since the trace.

        Raises
        ------
        StateError
            The graph has no weights, or the model has changed otherwise since the trace.
        InputError
            The trace does not hold for these inputs.
        """
        _check(self)
        return _pass_over(*self._now(), args, kwargs)

    def current(self) -> ResidualGraph:
        """The graph for where the model's weights are now: itself, unless the model was moved or cast since the trace.

        Its nodes are other ones than this graph's.

        Raises
        ------
        StateError
            The model has changed in another way.
        """
        return Looked.at(self).graph

    def _now(self) -> tuple[ResidualGraph, Mapping[str, Tensor]]:
        """The graph for where the weights are now, and the weights."""
        weights = self.traced.tensors
        if not isinstance(weights, Weights):
            return self, weights
        tensors, moved = weights.now()
        if not moved:
            return self, tensors
        place, graph = device_and_dtype(tensors.values()), self
        if place != self.traced.device_and_dtype:
            if place not in self._elsewhere:
                traced = replace(self.traced.relocated(tensors.__getitem__), tensors=weights.constants_on(place[0]))
                self._elsewhere.clear()
                self._elsewhere[place] = self._over(traced)
            graph = self._elsewhere[place]
            tensors = dict(graph.traced.tensors)
        for node, name in graph.traced.state.items():
            if tensors[name].dtype != node.meta["dtype"] or tensors[name].device != place[0]:
                raise StateError(
                    f"since the trace, the weight {name!r} has become one of {tensors[name].dtype} on "
                    f"{tensors[name].device}, and others have not: cast and move the whole model, or trace it again"
                )
        return graph, tensors

    @cached_property
    def _elsewhere(self) -> dict[DeviceAndDtype, ResidualGraph]:
        """This graph for where the weights were last, if that is not where they were in the trace."""
        return {}

    @property
    def _checked(self) -> str | None:
        return None if self.check is None else str(self.check)

    def relocated(self, tensor: Callable[[str], Tensor]) -> ResidualGraph:
        """The same graph for weights that have moved to another device or floating-point type; itself if they have not.

        Devices and types that the trace wrote into the graph follow.

        Parameters
        ----------
        tensor
            Gives a weight by its name, as it is now.
        """
        traced = self.traced.relocated(tensor)
        return self if traced is self.traced else self._over(traced)

    def __repr__(self) -> str:
        return tree(self.structure, self.title, self._checked)

    def _repr_html_(self) -> str:
        return html(self.structure, self.title, self._checked)


@dataclass(frozen=True, eq=False)
class Looked:
    """A graph for where its model's weights are, and the weights, as they were when they were looked up."""

    graph: ResidualGraph
    tensors: Mapping[str, Tensor]

    @classmethod
    def at(cls, graph: ResidualGraph) -> Looked:
        """As `ResidualGraph.current`, whose errors it raises."""
        check_code(graph)
        return cls(*graph._now())

    @own_types()
    def run(self, inputs: Mapping[str, Any]) -> Forward:
        """As `ResidualGraph.run`, whose errors it raises, without looking again: that takes as long as some layers."""
        _check_weights(self.graph.traced)
        return _pass_over(self.graph, self.tensors, (), inputs)


def _check(graph: ResidualGraph) -> None:
    """Raise `StateError` where a graph has no weights, or its model other code than in the trace."""
    _check_weights(graph.traced)
    check_code(graph)


def _check_weights(traced: Traced) -> None:
    if traced.meta:
        raise StateError(
            "the graph was traced on the meta device, or saved without weights, and has no weights, so it cannot "
            "be run: trace a model with weights (which are loaded, not offloaded), or give the model to "
            "jetgraph.load(folder, weights=model)"
        )


def _pass_over(
    graph: ResidualGraph, tensors: Mapping[str, Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Forward:
    """A forward pass of a graph for where these weights are."""
    state = graph.traced.state_values(tensors.__getitem__)
    return Forward(graph, state, graph.traced.input_values(args, kwargs))


_seen: ContextVar[dict[int, Sequence[Code]] | None] = ContextVar("code that this call has looked at", default=None)


@contextmanager
def one_look() -> Iterator[None]:
    """One look at a model's code does for all that a function runs and compiles; also a decorator.

    Of functions that return when they are done, and that run none of their user's code between two passes, such as a
    generator of texts, which could change something.
    """
    if _seen.get() is not None:
        yield
        return
    token = _seen.set({})
    try:
        yield
    finally:
        _seen.reset(token)


def check_code(graph: ResidualGraph) -> None:
    """Look whether the code of a graph's model is what it was when it was traced; once in `one_look`.

    Of what may change nothing that is computed, as many switches of a config do, that is found out once, by running the
    model on the example.

    Raises
    ------
    StateError
        It is not.
    """
    weights, seen = graph.traced.tensors, _seen.get()
    if not isinstance(weights, Weights) or not (codes := weights.codes):
        return
    if seen is not None and id(codes) in seen:
        return
    if changes := weights.changes():
        _check_changes(graph, codes, changes)
    if seen is not None:
        # Held by its number, which would be given to another one.
        seen[id(codes)] = codes


def _check_changes(graph: ResidualGraph, codes: Sequence[Code], changes: Sequence[Change]) -> None:
    """Raise `StateError` for what has changed in a model's code, unless nothing comes of it."""
    if all(change.harmless for change in changes) and _still_agrees(graph, codes):
        for code in codes:
            code.accept()
        return
    first = next((change for change in changes if not change.harmless), changes[0])
    more = ", among others" if len(changes) > 1 else ""
    raise StateError(
        f"since the trace, the model's code has changed ({first}{more}), and a graph computes what the code did in the "
        "trace: put it back, or trace the model again with jetgraph.trace(model, ...). Where the change makes no "
        "difference, graph.over(model) takes the model as it is now"
    )


def _still_agrees(graph: ResidualGraph, codes: Sequence[Code]) -> bool:
    """A graph still gives on the example what its model gives."""
    if len(codes) != 1 or (model := codes[0].owner) is None or graph.traced.meta:
        return False
    example = codes[0].example
    try:
        here, tensors = graph._now()
        device = here.traced.device_and_dtype[0]
        args, kwargs = pytree.tree_map_only(Tensor, lambda leaf: leaf.to(device), (example.args, example.kwargs))
        with kept(model):
            # Of which the graph is, also while it is being trained.
            expected = example_output(model.eval(), args, kwargs, example.output)
        with torch.no_grad():
            return compare(_pass_over(here, tensors, args, kwargs).replay(), expected).excess <= STRICT
    except JetGraphError:
        return False


def checked(graph: ResidualGraph, args: Sequence[Any], kwargs: Mapping[str, Any], expected: Tensor) -> ResidualGraph:
    """The graph with how well its replay agrees with the output of the model itself on the example inputs.

    Raises
    ------
    TraceError
        It does not agree.
    """
    with torch.no_grad():
        actual = graph(*args, **kwargs)
    if actual.shape != expected.shape:
        raise TraceError(
            f"the stages give an output of shape {tuple(actual.shape)}, but {graph.title} one of "
            f"{tuple(expected.shape)}: please report the model"
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
            "rounding may make of it. The model may be random in evaluation mode, depend on state outside its inputs, "
            "or do something else where its code asks whether it is exported; please report the model otherwise"
        )
    return replace(graph, check=check)
