"""Jets of an ordinary function: trace it once, run the graph on series."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from jetgraph.errors import InputError, StateError, TraceError, amount, check
from jetgraph.export.callables import Function, find, title, wrap_function
from jetgraph.export.derivatives import transforms
from jetgraph.export.fingerprint import is_watched, watched
from jetgraph.export.normal_form import normalise
from jetgraph.export.process import alone, one_at_a_time
from jetgraph.export.program import export_program, first_line, origin
from jetgraph.export.watching import Watch
from jetgraph.jets.draws import at_its_line, draws, is_random
from jetgraph.jets.interpreter import evaluate, module_path, op_in_module
from jetgraph.jets.recorded import Routine
from jetgraph.jets.recording import recordable
from jetgraph.jets.registry import has_rule
from jetgraph.jets.series import Series, check_order


def jet(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, order: int) -> Tensor:
    """Taylor coefficients 0..order of t ↦ f(x + t v), stacked on dim 0: coefficient j is (1/j!) D^j f(x)[v, …, v].

    `f` is a module or function of one floating tensor that returns one tensor. The result is differentiable in `f`'s
    parameters, `x` and `v`. A module is traced again only when it, or what its code finds in files, has changed
    in more than its weights' values, and a function each time: see `taylor`. Variables of the environment and of
    contexts are not looked at.

    In half precision recurrences and sums of products run in float32, and every op rounds a coefficient once; for a
    transformer block the error of coefficient j is then at most about j + 1 times the dtype's eps, of its norm. A
    coefficient of float16 above 65504 is infinite, and one below 6e-8 is 0; coefficient j goes with the j-th power of
    the length of `v`, so a shorter or longer one brings them back.

    Raises
    ------
    InputError
        Arguments that do not fit.
    MissingRuleError
        An op without a rule.
    DomainError
        f has no expansion at x.

    >>> import torch
    >>> jet(torch.exp, torch.zeros(1), torch.ones(1), order=3).squeeze(-1)
    tensor([1.0000, 1.0000, 0.5000, 0.1667])
    """
    found, guess = _launched(f, x, v, order)
    check(jet, locals())
    _check(x, v, order)
    module = wrap_function(f)
    program = _traced(module, x)
    return found if found is not None and program is guess else Taylor(module, x, program).at(x, v, order)


def _launched(f: Any, x: Any, v: Any, order: Any) -> tuple[Tensor | None, _Program | None]:
    """What a module's program of before gives, and the program; nothing where there is none, or where it fails.

    To look whether the module is still what it was takes as long as to launch this: a device works meanwhile.
    """
    # Nobody has looked at the arguments either. An error that is the module's own comes again where it is called.
    with suppress(Exception):
        _check(x, v, order)
        module = wrap_function(f)
        if (program := _last(module, x)) is not None:
            return Taylor(module, x, program).at(x, v, order), program
    return None, None


def taylor(f: Callable[[Tensor], Tensor], example: Tensor) -> Taylor:
    """The Taylor coefficients of a function, for loops: it is traced once, at an example, and read no more.

    `jet` traces a function each time, for nobody could tell whether what it reads has changed in between; of a module
    it can be told, and `jet` keeps what it has traced.

    Parameters
    ----------
    f
        As of `jet`.
    example
        A tensor of the shape, type and device of those at which coefficients are wanted.

    Returns
    -------
    Taylor
        `taylor(f, example)(x, v, order)` is `jet(f, x, v, order)`.

    Raises
    ------
    InputError
        `f` does not return one tensor, or the example is no floating tensor.
    TraceError
        torch.export cannot trace `f`.

    >>> import torch
    >>> series = taylor(torch.exp, torch.zeros(1))
    >>> [series(torch.full((1,), x), torch.ones(1), 2)[2].item() for x in (0.0, 0.0)]
    [0.5, 0.5]
    """
    check(taylor, locals())
    _check_point(example)
    module = wrap_function(f)
    return Taylor(module, example, _traced(module, example))


class Taylor:
    """The Taylor coefficients of a function that has been traced. Made by `taylor`; weights are read at each call."""

    def __init__(self, module: nn.Module, example: Tensor, program: _Program) -> None:
        self._module, self._program = module, program
        self._kind = example.shape, example.dtype, example.device

    def __call__(self, x: Tensor, v: Tensor, order: int) -> Tensor:
        """Coefficients 0..order of t ↦ f(x + t v), stacked on dim 0; arguments and errors as of `jet`.

        Raises
        ------
        InputError
            Arguments that do not fit, or a tensor of another shape, type or device than the example.
        StateError
            A weight has gone, has another shape, type or device than in the trace, or is tied no more.
        """
        check(Taylor.__call__, locals())
        _check(x, v, order)
        if (kind := (x.shape, x.dtype, x.device)) != self._kind:
            seen, traced = (f"{list(shape)} {dtype} on {device}" for shape, dtype, device in (kind, self._kind))
            raise InputError(f"x is {seen}, but the function was traced at {traced}: make another one with jg.taylor")
        return self.at(x, v, order)

    def at(self, x: Tensor, v: Tensor, order: int) -> Tensor:
        """The same of arguments that have been looked at."""
        # While another thread exports the module, its weights are stand-ins.
        with one_at_a_time():
            weights = self._program.values(self._module)
        (found,) = self._program.series(order)(recordable(x), recordable(v), *weights)
        return found

    def __repr__(self) -> str:
        shape, dtype, _ = self._kind
        return f"Taylor coefficients of {title(self._module)} at {list(shape)} {dtype}"


def _check(x: Tensor, v: Tensor, order: int) -> None:
    """Raise `InputError` for what no jet is taken of."""
    if order < 0:
        raise InputError(f"the order of a jet is at least 0, not {order}")
    check_order(order)
    _check_point(x)
    if x.shape != v.shape or x.dtype != v.dtype:
        raise InputError(
            f"x is {list(x.shape)} {x.dtype} but v is {list(v.shape)} {v.dtype}: give the direction x's shape and dtype"
        )


def _check_point(x: Any) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise InputError(f"a jet is taken at one floating tensor, not at {getattr(x, 'dtype', type(x).__name__)}")


# Tracing


@dataclass(frozen=True, eq=False)
class _Program:
    """A function in normal form. It holds no module, so that what is kept of one does not keep it alive."""

    nodes: tuple[fx.Node, ...]
    source: fx.Node
    """What x enters at."""
    result: fx.Node
    names: Mapping[fx.Node, str]
    """What the other placeholders are called in the module."""
    ties: tuple[tuple[str, str], ...]
    """Pairs of names of one parameter, of which the program may read the first for both."""
    constants: Mapping[fx.Node, Tensor]
    """Those that the module has no name for, such as a tensor that its code makes."""
    known: dict[int, Routine] = field(default_factory=dict)
    """By order, what `series` gives."""

    @property
    def reads(self) -> tuple[fx.Node, ...]:
        """What is read besides x: what has names, then the constants."""
        return (*self.names, *self.constants)

    def series(self, order: int) -> Routine:
        """Of x, a direction and what is read besides, as of `values`: the coefficients up to an order, stacked."""
        if order not in self.known:

            def run(x: Tensor, v: Tensor, *weights: Tensor) -> tuple[Tensor]:
                values: dict[fx.Node, Any] = dict(zip(self.reads, weights, strict=True))
                values[self.source] = Series.variate(x, v, order)
                value = evaluate(self.nodes, values, order, keep=(self.result,))[self.result]
                return ((value if isinstance(value, Series) else Series.constant(value, order)).stacked(),)

            self.known[order] = Routine(run, self.nodes)
        return self.known[order]

    def values(self, module: nn.Module) -> list[Tensor]:
        """What is read besides x, as it is now: of each of `reads`.

        Raises
        ------
        StateError
            A weight has gone, has another shape, type or device than in the trace, or is tied no more.
        """
        weights = [find(module, attributes) for attributes, _ in self._looks]
        for name, value, (_, traced) in zip(self.names.values(), weights, self._looks, strict=True):
            seen = (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else None
            if seen != traced:
                now, then = (
                    "gone" if one is None else f"{list(one[0])} {one[1]} on {one[2]}" for one in (seen, traced)
                )
                raise StateError(
                    f"since the trace, the weight {name!r} of {title(module)} has changed: it is {now} "
                    f"instead of {then}. Trace it again, with jetgraph.taylor"
                )
        for name, other in self.ties:
            if find(module, name.split(".")) is not find(module, other.split(".")):
                raise StateError(
                    f"since the trace, the weight {name!r} of {title(module)} is no longer one tensor with {other!r}. "
                    "Trace it again, with jetgraph.taylor"
                )
        return [recordable(value) for value in (*weights, *self.constants.values())]

    @cached_property
    def _looks(self) -> list[tuple[list[str], tuple[Any, ...]]]:
        """By what attributes each of the names is found in the module, and shape, type and device in the trace."""
        kinds = ("shape", "dtype", "device")
        return [(name.split("."), tuple(node.meta[kind] for kind in kinds)) for node, name in self.names.items()]


_KEPT: WeakKeyDictionary[nn.Module, list[tuple[Any, _Program]]] = WeakKeyDictionary()
"""By module, what programs depend on besides the values of its weights, and the programs."""
_WATCHED: WeakKeyDictionary[nn.Module, tuple[Any, Watch]] = WeakKeyDictionary()
"""By module, how it was described last, and what tells that this is still so."""
_MOST = 8
"""Programs that are kept of a module; the oldest goes first."""


def _traced(module: nn.Module, x: Tensor) -> _Program:
    """The program of a module at tensors like x; of one that has not changed it is kept."""
    with one_at_a_time():
        described = None if isinstance(module, Function) else _described(module)
        if (program := _kept(module, described, x)) is not None:
            return program
        with alone():
            program = _trace(module, x)
        # A constant may be any tensor that the module had somewhere, and may have exchanged since.
        if described is not None and not program.constants:
            _KEPT[module] = [*_KEPT.get(module, [])[-_MOST + 1 :], (_key(described, x), program)]
        return program


def _last(module: nn.Module, x: Tensor) -> _Program | None:
    """The program of a module at tensors like x if it is still what it was when it was looked at last; None if there
    is none."""
    with one_at_a_time():
        return _kept(module, _WATCHED.get(module, (None, None))[0], x)


def _kept(module: nn.Module, described: Any, x: Tensor) -> _Program | None:
    """What is kept of a module of this description; nothing of one that has none."""
    if described is None:
        return None
    # Compared as it is: a digest of it would cost as much as making it.
    key = _key(described, x)
    return next((program for before, program in _KEPT.get(module, []) if before == key), None)


def _key(described: Any, x: Tensor) -> tuple[Any, ...]:
    """All that a program depends on."""
    return described, x.shape, x.stride(), x.dtype, x.device, torch.get_default_dtype()


def _described(module: nn.Module) -> Any:
    """The description of a module as it is now; the one of before where nothing has changed."""
    described, watch = _WATCHED.get(module, (None, None))
    if watch is None or not is_watched(module, watch):
        described, watch = watched(module)
        if watch is not None:
            _WATCHED[module] = described, watch
    return described


def _trace(module: nn.Module, x: Tensor) -> _Program:
    """The program of a module at tensors like x."""
    try:
        exported = _exported(module, recordable(x).detach())
    except Exception as error:
        raise TraceError(
            f"torch.export cannot trace {title(module)}: {first_line(error)}{origin(error, module)}"
        ) from error
    signature = exported.graph_signature
    bound = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    returned = next(node for node in exported.graph.nodes if node.op == "output").args[0]
    results = [item for item in returned if isinstance(item, fx.Node)]
    if len(returned) != 1 or len(results) != 1 or not isinstance(results[0].meta.get("val"), Tensor):
        raise InputError(
            f"a jet needs a function that returns one tensor; {title(module)} returns {amount(len(returned), 'value')}"
        )
    graph = _normal(exported.graph, results[0])
    for node in graph.nodes:
        if is_random(node.target, node.args, node.kwargs):
            raise at_its_line(draws(op_in_module(node)), lambda: module(x))
    *placeholders, source = sorted(graph.find_nodes(op="placeholder"), key=lambda node: node.name not in bound)
    assert source.name not in bound, "an exported function of one tensor has an input that is no parameter"
    names = {node: bound[node.name] for node in placeholders}
    # Not the program's own tensors where the module has them, which may be detached: gradients are the module's.
    unnamed = {node: name for node, name in names.items() if not isinstance(find(module, name.split(".")), Tensor)}
    constants: dict[fx.Node, Any] = {node: exported.constants[name] for node, name in unnamed.items()}
    nodes = tuple(node for node in graph.nodes if node.op not in ("placeholder", "output"))
    result = graph.output_node().args[0]
    assert isinstance(result, fx.Node)
    named = {node: names[node] for node in names.keys() - unnamed.keys()}
    return _Program(nodes, source, result, named, _ties(module), constants)


def _exported(module: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    try:
        return export_program(module, (x,), has_rule=has_rule).program
    except Exception:  # the exporter raises many types
        if not transforms(lambda: module(x)):
            raise
    return export_program(module, (x,), has_rule=has_rule, derived=True).program


def _ties(module: nn.Module) -> tuple[tuple[str, str], ...]:
    """Pairs of names of one parameter."""
    first: dict[int, str] = {}
    pairs = [(first.setdefault(id(tensor), name), name) for name, tensor in module.named_parameters("", True, False)]
    return tuple((name, other) for name, other in pairs if name != other)


def _normal(exported: fx.Graph, result: fx.Node) -> fx.Graph:
    """An exported graph in the form in which models are traced too."""
    graph, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in exported.nodes:
        if node.op == "output":
            continue
        new = copied[node] = graph.node_copy(node, copied.__getitem__)
        new.name = node.name
        value = node.meta.get("val")
        new.meta = {"module_path": module_path(node)}
        if isinstance(value, Tensor):
            new.meta |= {"dtype": value.dtype, "shape": tuple(value.shape), "device": value.device}
    graph.output(copied[result])
    normalise(graph)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    return graph
