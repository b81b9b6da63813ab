"""Selected paths as a module: a plan, the model's weights, and an executor."""

from __future__ import annotations

import copy
import functools
import html
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from jetgraph.algebra.advice import of_weights
from jetgraph.algebra.automaton import accepted
from jetgraph.algebra.expansion import COUNTABLE, Expansion
from jetgraph.algebra.paths import Path
from jetgraph.algebra.selection import Selection, select
from jetgraph.compilation.beam import beam_ledger, evaluate_beam
from jetgraph.compilation.evaluated import Evaluated
from jetgraph.compilation.evaluation import LARGE_MEMORY, MEMORY, evaluate
from jetgraph.compilation.ledger import ledger
from jetgraph.compilation.origins import Model
from jetgraph.compilation.placing import evaluate_at, taken_at
from jetgraph.compilation.plan import Plan
from jetgraph.compilation.planning import kept_plan
from jetgraph.compilation.values import PathValues
from jetgraph.errors import BudgetError, InputError, StateError, amount, big, check
from jetgraph.export.frames import on_one_chunk
from jetgraph.export.precision import own_types
from jetgraph.jets.domain import looked_at_once
from jetgraph.jets.fusion import Fusion
from jetgraph.residual import ResidualGraph, check_code
from jetgraph.running.forward import Forward
from jetgraph.running.indices import Position
from jetgraph.running.memory import suited
from jetgraph.tracing.traced import Traced
from jetgraph.tracing.weights import device_and_dtype

PATH_BUDGET = 100_000
"""How many paths are compiled without being asked for by number."""


def compile(
    expansion: Expansion, paths: Any = None, *, budget: int = PATH_BUDGET, fuse: bool = False, memory: int | None = None
) -> PathModule:
    """Compile paths of an expansion into a module.

    Parameters
    ----------
    paths
        What `jetgraph.select` returns, paths, texts or patterns; all terms of the expansion if left out.
    budget
        How many paths there may be.
    fuse
        Evaluate jets of order 1 and more through `torch.compile`, which fuses the elementwise work between the matrix
        products. The first call with inputs of a new shape compiles, for seconds to a minute per kind of site and
        order; it needs a C++ compiler on CPU and Triton on CUDA. Worth it where one module is called many times. Parts
        of a split branch are not fused, and values pass sites one by one.
    memory
        Bytes for the inner values of a call of a site, through which as many terms go together as fit; 0 passes them
        one by one. 256 MiB unless given, 1 GiB on an accelerator.

    Returns
    -------
    PathModule
        Takes the traced model's inputs, of any batch size and length that the trace allows, and returns `PathValues`.

    Raises
    ------
    InputError
        An expansion of an outline, or a negative `memory`.
    SelectionError
        `paths` matches nothing.
    BudgetError
        There are more paths than `budget`; nothing was enumerated.
    StateError
        The model's code is not what it was when it was traced.
    """
    check(compile, locals())
    if not isinstance(expansion.graph, ResidualGraph):
        raise InputError(
            "this expansion was made from an outline, which has no tensors: expand what jetgraph.trace(model, "
            "...) returns"
        )
    if memory is not None and memory < 0:
        raise InputError(f"memory is a number of bytes, not {memory}")
    if paths is None:
        paths = "**"
    selection = select(expansion, paths)
    if expansion.chooses:
        return PathModule(expansion, (), fuse, memory, selection)
    if selection.count() > budget:
        number = selection.count()
        more = f", or raise it with jetgraph.compile(expansion, paths, budget={number})" if number < COUNTABLE else ""
        raise BudgetError(
            f"{big(number)} paths are selected, more than the budget of {budget}: take some with "
            f"jetgraph.select(expansion, pattern, limit={budget}){more}"
        )
    paths = tuple(selection)
    _warn_of_weights(expansion, paths)
    return PathModule(expansion, paths, fuse, memory)


class WeightWarning(UserWarning):
    """Weights along a path are smaller than the numbers of its type."""


def _warn_of_weights(expansion: Expansion, paths: Sequence[Path]) -> None:
    """Say so where paths come out as zeros."""
    graph = expansion.graph
    dtype = graph.traced.device_and_dtype[1] if isinstance(graph, ResidualGraph) else None
    if dtype is None or not paths:
        return
    facts = torch.finfo(dtype)
    smallest = -math.log2(facts.smallest_normal * facts.eps)
    if expansion.lightness() <= smallest:
        return
    exponent = expansion.lightness(max(paths, key=lambda path: len(path.hops)))
    if exponent > smallest:
        told = of_weights(exponent, smallest, str(dtype).removeprefix("torch."))
        warnings.warn(told, WeightWarning, stacklevel=3)


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _as_it_is(method: _Method) -> _Method:
    """Reading a graph is no work for a compiler: inside `torch.compile` it is called as it is."""

    @functools.wraps(method)
    def called(*args: Any, **kwargs: Any) -> Any:
        # Asked for there alone: the compiler takes longer to import than all else.
        if torch.compiler.is_compiling():
            return torch.compiler.disable(method)(*args, **kwargs)
        return method(*args, **kwargs)

    untyped: Any = called
    return untyped


class PathModule(nn.Module):
    """Selected paths of an expansion as a module over the traced model's inputs.

    The weights are the model's own at the time of `jetgraph.compile`, shared in memory, but registered as parameters of
    this module under `weights`: they can be moved, cast, trained and saved without touching the model's registration of
    them. So what changes the model's weights in place (an optimiser's step, `load_state_dict`) changes these, and what
    replaces the model's (`load_state_dict(assign=True)`, a cast or a move) does not: compile again, which is cheap, for
    the graph has the new ones. A copy made with `copy.deepcopy` has weights of its own.
    """

    def __init__(
        self,
        expansion: Expansion,
        paths: Sequence[Path],
        fuse: bool = False,
        memory: int | None = None,
        wanted: Selection | None = None,
    ) -> None:
        super().__init__()
        if not paths and wanted is None:
            raise InputError("no path was given to compile: leave paths= out for all terms, or select some")
        self.expansion = expansion
        self.paths = tuple(paths)
        check_code(self.graph)
        self.weights, self._holders = _weights(self.graph)
        self._model = Model(expansion, self.graph)
        self.wanted = wanted
        """Of a beam, whose paths are found when it runs: which of them are kept."""
        self._plan = None if wanted is not None else kept_plan(self._model, self.paths)
        self._fusion = Fusion() if fuse else None
        # Other numbers of values would be other shapes, each to be compiled.
        self._memory = 0 if fuse else memory

    @property
    def graph(self) -> ResidualGraph:
        """What the expansion was made from."""
        graph = self.expansion.graph
        assert isinstance(graph, ResidualGraph)
        return graph

    @property
    def plan(self) -> Plan:
        """What an evaluation consists of; printed, it is a table of costs.

        Raises
        ------
        StateError
            A beam, whose plan is made as it runs.
        """
        if self._plan is None:
            raise StateError("a beam chooses its terms when it runs, so that it has no plan before")
        return self._plan

    @_as_it_is
    def forward(self, *args: Any, **kwargs: Any) -> PathValues:
        """Evaluate the paths on the model's inputs."""
        with own_types():
            return on_one_chunk(lambda: self._evaluate(args, kwargs))

    @_as_it_is
    def at(self, position: Position | None, /, *args: Any, **kwargs: Any) -> PathValues:
        """Evaluate the paths at one position of outputs [batch, position, ...], or at one of each row.

        What a path passes after the last operator that mixes positions is computed there alone, and so are its term and
        the output. All that is read of the values is then of shape [batch, 1, ...], but for `remainders`.

        Parameters
        ----------
        position
            Negative ones are counted from the end; None stands for all of them.
        args, kwargs
            The model's inputs.

        Raises
        ------
        InputError
            There is no such position.
        """
        with own_types():
            return on_one_chunk(lambda: self._evaluate(args, kwargs, position))

    def run(self, *args: Any, **kwargs: Any) -> Forward:
        """The model's own forward pass on these inputs, evaluated on demand, with this module's weights."""
        traced = self._located().graph.traced
        check_weights(traced)
        # Views, so that values which are computed later (the output) still see the weights of this call after a move.
        state = traced.state_values(lambda name: (weight := self._tensor(name)).view_as(weight))
        return Forward(self._model.graph, state, traced.input_values(args, kwargs), self._fusion)

    def _evaluate(self, args: tuple[Any, ...], kwargs: dict[str, Any], position: Position | None = None) -> PathValues:
        forward, model = self.run(*args, **kwargs), self._model
        if self._plan is not None:
            return values_of(self._plan, model, self.paths, forward, position, self._memory, self._fusion)
        places = None if position is None else forward.places(position)
        memory = _bound(self._memory, model)
        evaluated = looked_at_once(lambda: evaluate_beam(model, forward, self._accepts, memory))
        evaluated = evaluated if places is None else taken_at(evaluated, model, forward, places)
        return PathValues(self.expansion, forward, evaluated, lambda: beam_ledger(model, forward, memory), places)

    def _accepts(self, path: Path) -> bool:
        """Of a beam: whether a term that was found is one of those that were asked for."""
        assert self.wanted is not None
        return accepted(self.wanted.term_graph().acceptor, path)

    def __deepcopy__(self, memo: dict[int, Any]) -> PathModule:
        """The same paths over weights of its own."""
        # What does not change is shared: a copy of the graph would hold the weights a second time.
        memo[id(self.expansion)] = self.expansion
        memo[id(self.wanted)] = self.wanted
        copied = memo[id(self)] = self.__class__.__new__(self.__class__)
        copied.__setstate__({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return copied

    def tensors(self) -> dict[str, Tensor]:
        """The weights by their names in the model."""
        return {name: self._tensor(name) for name in self._model.graph.traced.tensors}

    def _tensor(self, name: str) -> Tensor:
        holder, leaf = self._holders[name]
        held = holder._parameters.get(leaf)
        # Else a buffer, or what a parametrization makes.
        return getattr(holder, leaf) if held is None else held

    def _located(self) -> Model:
        """The model for where the weights are now: the graph's constants follow them to another device or precision."""
        traced = self._model.graph.traced
        if device_and_dtype(map(self._tensor, traced.tensors)) != traced.device_and_dtype:
            # A move changes the parameters' data in place; what is detached from them stays where and what it was.
            now = {name: self._tensor(name).detach() for name in traced.tensors}
            # From the trace itself: types that one move has merged could not be told apart by the next.
            self._model = Model(self.expansion, self.graph.relocated(now.__getitem__))
            self._plan = None if self._plan is None else kept_plan(self._model, self.paths)
        return self._model

    def _repr_html_(self) -> str:
        """The first paths, and what an evaluation of all takes."""
        table = "" if self._plan is None else f"<pre>{html.escape(repr(self._plan))}</pre>"
        shown = "".join(f"<li>{path._repr_html_()}</li>" for path in self.paths[:12])
        more = f"<p>… {len(self.paths) - 12} more</p>" if len(self.paths) > 12 else ""
        what = "a beam, whose paths are found when it runs" if self._plan is None else amount(len(self.paths), "path")
        return f"<p><b>PathModule</b>: {what}</p><ul>{shown}</ul>{more}{table}"

    def extra_repr(self) -> str:
        shown = [f"{path}" for path in self.paths[:5]] + (
            [f"… {len(self.paths) - 5} more"] if len(self.paths) > 5 else []
        )
        fused = "" if self._fusion is None else ", fused"
        if self._plan is None:
            return f"a beam, whose paths are found when it runs{fused}"
        return "\n".join([f"{amount(len(self.paths), 'path')}: {self._plan.summary()}{fused}", *shown])


def check_weights(traced: Traced) -> None:
    """Raise `StateError` for a graph that has none."""
    if traced.meta:
        raise StateError(
            "these paths were compiled from a graph on the meta device, which has no weights, so they cannot be run: "
            "trace a model with weights"
        )


def values_of(
    plan: Plan,
    model: Model,
    paths: Sequence[Path],
    forward: Forward,
    position: Position | None = None,
    memory: int | None = None,
    fusion: Fusion | None = None,
) -> PathValues:
    """What paths evaluate to on a forward pass of their graph, by their plan.

    Parameters
    ----------
    plan, model, paths
        As `jetgraph.compilation.planning.plan` has made it of the others.
    forward, fusion
        The pass, and what it evaluates series with.
    position, memory
        As of `PathModule.at` and of `compile`.
    """
    places = None if position is None else forward.places(position)
    bound = _bound(memory, model)

    def evaluated_there() -> Evaluated:
        if places is None:
            return evaluate(plan, model, forward, bound)
        return evaluate_at(plan, model, forward, places, bound, fusion)

    evaluated = looked_at_once(evaluated_there)
    return PathValues(model.expansion, forward, evaluated, lambda: ledger(model, forward, paths, bound), places)


def _bound(memory: int | None, model: Model) -> int:
    """Bytes for the inner values of a call of a site."""
    device = model.graph.traced.device_and_dtype[0]
    return suited(device, cpu=MEMORY, accelerator=LARGE_MEMORY) if memory is None else memory


class _Weights(nn.Module):
    """Parameters and buffers of a model under their own names."""

    def __repr__(self) -> str:
        return f"{sum(tensor.numel() for tensor in self.parameters()):,} weights, shared with the model"


def _weights(graph: ResidualGraph) -> tuple[nn.Module, dict[str, tuple[nn.Module, str]]]:
    """A module of a graph's weights, and by name of a weight the module that holds it and its name there."""
    modules: dict[str, nn.Module] = {"": _Weights()}

    def module(path: str) -> nn.Module:
        if path not in modules:
            above, _, own = path.rpartition(".")
            modules[path] = _Weights()
            module(above).add_module(own, modules[path])
        return modules[path]

    holders: dict[str, tuple[nn.Module, str]] = {}
    tensors = graph.traced.tensors_now()
    for binding in graph.traced.bindings.values():
        if binding.kind == "input":
            continue
        above, _, leaf = binding.name.rpartition(".")
        holder, tensor = module(above), tensors[binding.name]
        holders[binding.name] = holder, leaf
        if binding.kind == "parameter":
            trained = tensor.requires_grad and not tensor.is_inference()
            # Registered without its checks, which hold for the model's own names and take most of the time.
            holder._parameters[leaf] = nn.Parameter(tensor.detach(), requires_grad=trained)
        else:
            holder.register_buffer(leaf, tensor.detach())
    return modules[""], holders
