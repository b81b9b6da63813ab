"""Model and example inputs → one canonical `torch.fx` graph.

`torch.export` gives a functional graph of ATen operators that keeps linear, layer_norm, gelu and attention whole. It
is copied into a plain `torch.fx.Graph` that holds only what the explained output needs, with light metadata on every
node (`module_path`, `dtype`, `shape`) in place of fake tensors, so that later stages, and the file format, depend on
nothing else of the exporter.

The traced graph shares the model's parameters; nothing is copied and the model is not modified.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from jetgraph.algebra.sizes import evaluate as size_of
from jetgraph.algebra.sizes import holds
from jetgraph.errors import InputError, JetGraphError, StateError, TraceError
from jetgraph.export.callables import Function
from jetgraph.export.normal_form import normalise
from jetgraph.export.process import alone, torch_silent
from jetgraph.export.program import (
    Exported,
    chooses_by_values,
    export_program,
    fails_by_itself,
    first_line,
    ordinary_operators,
    refused,
)
from jetgraph.jets.interpreter import check_rows, evaluate
from jetgraph.jets.registry import op_name
from jetgraph.tracing.agreement import compare
from jetgraph.tracing.decisions import Answering, Decisions, Heard, modules_stay
from jetgraph.tracing.guards import check_guards, guards_of, named
from jetgraph.tracing.packed import Unpacking, holds_packed, refused_activations, rounded, unknown
from jetgraph.tracing.state import Held, kept
from jetgraph.tracing.weights import Place, Weights, find, place_of

Dynamic = Literal["all", "batch", "none"]
"""Which input dimensions may change between calls: every one the model allows, the leading one, or none."""


@dataclass(frozen=True, slots=True)
class Binding:
    """What a placeholder of the graph stands for."""

    kind: Literal["parameter", "buffer", "constant", "input"]
    name: str
    """Qualified name of a parameter or buffer, name of a constant, or the input's place, such as `input_ids`."""


@dataclass(frozen=True, eq=False)
class Traced:
    """A model as a functional graph of ATen operators.

    Placeholders stand for parameters, buffers, constants and inputs (`bindings`, by node name); `tensors` holds the
    values of all but the inputs under the names that the bindings give.
    """

    graph: fx.Graph
    bindings: Mapping[str, Binding]
    tensors: Mapping[str, Tensor]
    """Looked up in the model while it lives; see `jetgraph.tracing.weights`."""
    defaults: Mapping[str, Any]
    """Non-tensor inputs by place, as they were in the trace; a call may leave them out but not change them."""
    input_shapes: Mapping[str, tuple[int | str, ...]]
    """By place; dynamic sizes are symbols."""
    positional: tuple[str, ...]
    """Names of the model's positional arguments: an input may be given either way."""
    module_types: Mapping[str, str]
    """Class names of the model's modules by path, as far as they ran."""
    output_name: str
    """Which of the model's outputs the graph computes, as in `logits`."""
    dynamic: Dynamic
    note: str = ""
    """Why the graph is less dynamic than asked for; empty where it is not."""
    guards: tuple[str, ...] = ()
    """Conditions on the open sizes, by name, without which the graph is not what the model does: `length <= 8`."""
    decisions: Decisions | None = None
    """Conditions on values, where the model's code chooses by such."""
    place: Place = dataclasses.field(init=False)
    """Where the weights were in the trace."""
    meta: bool = dataclasses.field(init=False)
    """The weights were on the `meta` device: structure only, no values."""
    state: Mapping[fx.Node, str] = dataclasses.field(init=False)
    """The placeholders that are no inputs, with the names of their tensors."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", place_of(self.tensors.values()))
        object.__setattr__(self, "meta", any(tensor.is_meta for tensor in self.tensors.values()))
        bound = ((node, self.bindings[node.name]) for node in self.graph.find_nodes(op="placeholder"))
        object.__setattr__(self, "state", {node: binding.name for node, binding in bound if binding.kind != "input"})

    @property
    def model(self) -> nn.Module | None:
        """The model that the weights are looked up in; None where it is gone, or a function that reads several."""
        owners = self.tensors.owners if isinstance(self.tensors, Weights) else []
        return owners[0] if len(owners) == 1 else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Traced:
        """The same program over copies of the weights."""
        graph = _copied_graph(self.graph, lambda value: value)
        return dataclasses.replace(self, graph=graph, tensors=copy.deepcopy(self.tensors, memo))

    def __reduce__(self) -> Any:
        raise StateError(
            "a traced graph, and what holds one, is not pickled: write it with jetgraph.save(graph, folder), read it "
            "with jetgraph.load(folder), and take tensors out of results"
        )

    @property
    def output(self) -> fx.Node:
        """The node whose value is the explained output."""
        result = self.graph.output_node().args[0]
        assert isinstance(result, fx.Node)
        return result

    def state_values(self, tensors: Callable[[str], Tensor] | None = None) -> dict[fx.Node, Any]:
        """Values of the placeholders that are no inputs, from the weights by name; the model's own by default."""
        tensors = tensors or self.tensors.__getitem__
        values: dict[fx.Node, Any] = {}
        for node, name in self.state.items():
            weight = tensors(name)
            # What was made in inference mode has no gradients, and autograd refuses to record it.
            values[node] = weight.detach() if weight.is_inference() else weight
        return values

    def input_values(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[fx.Node, Any]:
        """Values of the input placeholders for a call with these arguments.

        Raises `InputError` for inputs that were not there in the trace, that are missing, whose rank, kind or fixed
        sizes differ from the traced ones, or whose sizes the trace does not hold for.
        """
        given = dict(_places(args, kwargs, self.positional))
        values: dict[fx.Node, Any] = {}
        for node in self.graph.find_nodes(op="placeholder"):
            binding = self.bindings[node.name]
            if binding.kind != "input":
                continue
            place = binding.name
            if place not in given and any(other.startswith(f"{place}.") for other in given):
                raise InputError(f"input {place!r} is a collection, but was a tensor in the trace: give a tensor")
            if place not in given:
                raise InputError(f"input {place!r} is missing: the model was traced with {self._signature()}")
            value = given[place]
            self._check(place, node, value)
            values[node] = value
        known = {*self.input_shapes, *self.defaults}
        for place, value in given.items():
            if place not in known:
                if value is None:
                    continue
                raise InputError(
                    f"input {place!r} was not among the inputs of the trace ({self._signature()}): trace the model "
                    "with it to use it"
                )
            if place in self.defaults and not _same(self.defaults[place], value):
                raise InputError(
                    f"input {place!r} was fixed to {self.defaults[place]!r} by the trace and cannot be {value!r} "
                    "now: trace the model again"
                )
        self._check_sizes({self.bindings[node.name].name: value for node, value in values.items()})
        if self.decisions is not None:
            held = self.state_values() | values
            self.decisions.check({node.name: value for node, value in held.items()})
        return values

    def sizes(self, given: Mapping[str, Tensor]) -> dict[str, int]:
        """The open sizes of inputs, by name; raises `InputError` where two inputs differ in one of them."""
        known: dict[str, int] = {}
        places: dict[str, str] = {}
        for place, value in given.items():
            for size, actual in zip(self.input_shapes[place], value.shape, strict=True):
                if isinstance(size, str) and size.isidentifier() and known.setdefault(size, actual) != actual:
                    raise InputError(
                        f"input {place!r} has {size} {actual}, but input {places[size]!r} has {size} {known[size]}: "
                        "in the trace they were the same"
                    )
                places.setdefault(str(size), place)
        return known

    def _check_sizes(self, given: Mapping[str, Tensor]) -> None:
        known = self.sizes(given)
        places: dict[str, str] = {}
        for place, value in given.items():
            for size, actual in zip(self.input_shapes[place], value.shape, strict=True):
                if isinstance(size, int):
                    continue
                if not actual:
                    raise InputError(f"input {place!r} is empty: its shape is {tuple(value.shape)}")
                places.setdefault(size, place)
                if not size.isidentifier() and size_of(size, known) != actual:
                    raise InputError(f"input {place!r} has {actual} where the trace has {size}, with {_listed(known)}")
        check_guards(self.guards, known, places)

    def relocated(self, tensor: Callable[[str], Tensor]) -> Traced:
        """The same program for weights on another device or of another floating-point type; itself if nothing moved.

        The type that most weights had in the trace is replaced by the one that they have now, wherever the trace wrote
        it into the graph; other types, such as a norm's float32 in a bfloat16 model, stay.
        """
        moved = {name: tensor(name) for name in self.tensors}
        old, new = self.place, place_of(moved.values())
        if old == new:
            return self

        def swap(value: Any) -> Any:
            if isinstance(value, torch.device):
                return new[0]
            return new[1] if isinstance(value, torch.dtype) and value == old[1] else value

        graph = _copied_graph(self.graph, swap)
        for node in graph.find_nodes(op="placeholder"):
            if (binding := self.bindings[node.name]).kind != "input":
                node.meta["dtype"] = moved[binding.name].dtype
        decisions = self.decisions and dataclasses.replace(
            self.decisions, graph=_copied_graph(self.decisions.graph, swap)
        )
        return dataclasses.replace(self, graph=graph, tensors=moved, decisions=decisions)

    def _signature(self) -> str:
        parts = [f"{place}[{', '.join(map(str, shape))}]" for place, shape in self.input_shapes.items()]
        return ", ".join(parts + [f"{place}={value!r}" for place, value in self.defaults.items()])

    def _check(self, place: str, node: fx.Node, value: Any) -> None:
        shape = self.input_shapes[place]
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_quantized:
            raise InputError(
                f"input {place!r} is a {type(value).__name__}, not a tensor of plain memory as in the trace"
            )
        if (kind := _kind(value.dtype)) != (traced := _kind(node.meta["dtype"])):
            raise InputError(
                f"input {place!r} is {kind} ({value.dtype}), but was {traced} ({node.meta['dtype']}) in the trace, and "
                "operators such as an index or a negation differ by kind: convert it, or trace the model again with it"
            )
        if not _width_fits(value.dtype, node):
            raise InputError(f"input {place!r} is of {value.dtype}, but was of {node.meta['dtype']} in the trace")
        devices = {tensor.device for tensor in self.tensors.values()}
        if len(devices) == 1 and value.device not in devices:
            raise InputError(f"input {place!r} is on {value.device}, but the weights are on {devices.pop()}: move it")
        fits = len(shape) == value.dim() and all(
            isinstance(size, str) or size == actual for size, actual in zip(shape, value.shape, strict=True)
        )
        if not fits:
            raise InputError(
                f"input {place!r} has shape {tuple(value.shape)}, but the trace takes [{', '.join(map(str, shape))}] "
                "(letters are sizes that may change). "
                + (f"{self.note[:1].upper()}{self.note[1:]}. " if self.note else "")
                + "Trace the model again with such an input."
            )
        rows = rows_looked_up(node)
        if rows is not None and value.numel() and not value.is_meta:
            lowest, highest = int(value.min()), int(value.max())
            if lowest < 0 or highest >= rows:
                wrong = lowest if lowest < 0 else highest
                raise InputError(f"input {place!r} holds {wrong}, but its embedding has the rows 0 to {rows - 1}")


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())


def _kind(dtype: torch.dtype) -> str:
    """What counts in a type besides its precision. An index or a mask of uint8 is taken for one of booleans."""
    if dtype is torch.bool:
        return "boolean"
    if dtype.is_complex:
        return "complex"
    return "real" if dtype.is_floating_point else "integer" if dtype.is_signed else "unsigned"


def _width_fits(given: torch.dtype, node: fx.Node) -> bool:
    """Integers may be of another width, but for ids; a float may be one that the model casts itself."""
    traced = node.meta["dtype"]
    if given == traced:
        return True
    if traced.is_floating_point:
        return all(user.target is torch.ops.aten._to_copy.default for user in node.users)
    return given in (torch.int64, torch.int32) or rows_looked_up(node) is None


def rows_looked_up(node: fx.Node) -> int | None:
    """The rows of the smallest table that an input looks values up in, itself or reshaped; None where there is none."""
    aten = torch.ops.aten
    found = []
    stack = [node]
    while stack:
        current = stack.pop()
        for user in current.users:
            if user.target is aten.embedding.default and user.args[1] is current:
                table = user.args[0]
                assert isinstance(table, fx.Node)
                found.append(table.meta["shape"][0])
            elif user.target in (aten.view.default, aten.reshape.default, aten.unsqueeze.default):
                stack.append(user)
    return min((rows for rows in found if isinstance(rows, int)), default=None)


def canonical(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    output: str | int | None = None,
    dynamic: bool = True,
) -> Traced:
    """Trace `model(*args, **kwargs)` down to the tensor that `output` names.

    Parameters
    ----------
    output
        Attribute, key or index of the wanted tensor in the model's output, dotted for nested ones; by default
        `logits`, else the first float tensor.
    dynamic
        Let batch, length and other sizes of the inputs vary where the model allows. Where export refuses, first only
        the batch is left free, then nothing; `Traced.note` says so. `Traced.guards` says between which bounds.

    Raises
    ------
    TraceError
        The model is no module, is in training mode, does not run on the inputs, or is random; torch.export refuses it,
        or `output` names no float tensor.
    InputError
        An example input is empty, or holds ids that the model does not have.
    """
    return trace_example(model, args, kwargs or {}, output=output, dynamic=dynamic)[0]


def trace_example(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], *, output: str | int | None, dynamic: bool
) -> tuple[Traced, Tensor | None]:
    """What `canonical` returns, and the output of the model itself on the example; None for that on `meta`."""
    _check_call(model, output)
    values, options = tuple(args), _call_options(model, kwargs)
    for place, leaf in _places(values, options, _positional(model)):
        if isinstance(leaf, Tensor) and not leaf.numel():
            raise InputError(
                f"input {place!r} is empty: its shape is {tuple(leaf.shape)}. Trace the model with one whose batch and "
                "length are at least 1"
            )
    if any(parameter.is_meta for parameter in model.parameters()):
        values, options = pytree.tree_map_only(Tensor, lambda leaf: leaf.to("meta"), (values, options))
    with alone(), torch_silent(), kept(model) as held, _random_numbers_kept(model):
        traced, expected = _Example(model, values, options, output, held).trace(dynamic)
    # What the model made on the way is gone from it again, and is the graph's own.
    assert isinstance(traced.tensors, Weights)
    return dataclasses.replace(traced, tensors=traced.tensors.rebound(_owners(model))), expected


def _check_call(model: nn.Module, output: Any) -> None:
    named = output is None or (isinstance(output, str) and len(output) < 200)
    if isinstance(output, bool) or not (named or (isinstance(output, int) and abs(output) < 2**31)):
        raise TraceError(
            "output is a name or an index, such as 'logits', 'hidden_states.3' or 0, and not this "
            f"{type(output).__name__}"
        )
    training = [name or type(model).__name__ for name, module in _code(model) if module.training]
    if training:
        raise TraceError(
            f"{training[0]!r} is in training mode (with {len(training) - 1} more modules), where dropout and batch "
            "norm make the output random: call model.eval() first"
        )
    _check_loaded(model)


def _random_numbers_kept(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Random numbers that follow are those that would have followed: also of a table that the model draws once."""
    devices = {parameter.device for parameter in model.parameters()}
    return torch.random.fork_rng(sorted(device.index or 0 for device in devices if device.type == "cuda"))


def _code(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules whose code runs. Of an `fx.GraphModule` that is the graph, which reads no mode, and what it calls."""
    if not isinstance(model, fx.GraphModule):
        yield path, model
    named = (
        dict.fromkeys(str(node.target) for node in model.graph.nodes if node.op == "call_module" and node.users)
        if isinstance(model, fx.GraphModule)
        else [name for name, _ in model.named_children()]
    )
    for name in named:
        yield from _code(model.get_submodule(name), f"{path}.{name}".lstrip("."))


def _check_loaded(model: nn.Module) -> None:
    """Raise `TraceError` for a model that is on meta in part."""
    parameters = dict(model.named_parameters())
    loaded = next((name for name, tensor in parameters.items() if not tensor.is_meta), None)
    tensors = {**parameters, **dict(model.named_buffers())}
    absent = next((name for name, tensor in tensors.items() if tensor.is_meta), None)
    if loaded is not None and absent is not None:
        raise TraceError(
            f"{absent!r} is on the meta device, without values, and {loaded!r} is not: weights that are offloaded, or "
            "were never loaded, cannot be traced. Load the whole model into memory (without offloading, such as "
            "device_map='cpu'), or put all of it on meta for its structure alone"
        )


def run_model(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: str | int | None) -> Tensor:
    """The explained output of the model itself, computed with the operators that the graph has."""
    with ordinary_operators():
        return _pick(model(*args, **_call_options(model, kwargs)), output)[1]


def _call_options(model: nn.Module, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The call's options, without a cache of keys and values where the model would keep one."""
    cached = "use_cache" in _signature(model).parameters
    return {"use_cache": False, **kwargs} if cached else dict(kwargs)


# Export


class _Explained(nn.Module):
    """The model down to one tensor. Arguments come as one tuple and one dict, so that the exporter never has
    to bind names.
    """

    def __init__(
        self,
        model: nn.Module,
        output: str | int | None,
        record: Callable[[str, Answering | None], None],
        unpack: bool = False,
        heard: Heard | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.output = output
        self.unpack = unpack
        self.heard = heard
        # Export undoes changes of a module's own attributes.
        self.record = record

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | tuple[Tensor, ...]:
        """The tensor; after those that were asked for their values, where there are answers."""
        answering = None if self.heard is None else Answering(self.heard)
        with Unpacking() if self.unpack else contextlib.nullcontext(), answering or contextlib.nullcontext():
            result = self.model(*args, **kwargs)
        name, tensor = _pick(result, self.output)
        self.record(name, answering)
        return tensor if answering is None else (*answering.asked, tensor)


def _pick(result: Any, output: str | int | None) -> tuple[str, Tensor]:
    """The tensor of a model's result that `output` names, with its name."""
    if isinstance(result, Tensor):
        if output not in (None, 0, "0", "logits", "output"):
            raise TraceError(f"output={output!r} was asked for, but the model returns a single tensor")
        return "output", result
    if output is not None:
        value = result
        for part in str(output).split("."):
            value = _member(value, part, result)
        if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
            kind = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
            raise TraceError(f"output={output!r} is a {kind}, not a float tensor; there are {_named(result)}")
        return str(output), value
    for name, value in _floats(result):
        if name == "logits":
            return name, value
    for name, value in _floats(result):
        return name, value
    raise TraceError(f"the model returns no float tensor, but a {type(result).__name__}")


def _member(value: Any, part: str, result: Any) -> Any:
    if isinstance(value, Mapping) and part in value:
        return value[part]
    if isinstance(value, Sequence) and re.fullmatch(r"-?\d+", part) and -len(value) <= int(part) < len(value):
        return value[int(part)]
    if hasattr(value, part):
        return getattr(value, part)
    raise TraceError(f"the model's output has no {part!r}; there are {_named(result)}")


def _floats(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Float tensors inside a model's result, outermost first, with dotted names."""
    if isinstance(value, Tensor):
        if value.dtype.is_floating_point:
            yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _floats(item, f"{name}.{key}".lstrip("."))
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from _floats(item, f"{name}.{index}".lstrip("."))
    elif dataclasses.is_dataclass(value):
        for member in dataclasses.fields(value):
            yield from _floats(getattr(value, member.name), f"{name}.{member.name}".lstrip("."))


def _named(result: Any) -> str:
    return ", ".join(repr(name) for name, _ in _floats(result)) or "no float tensors"


class _UnfitError(Exception):
    """A trace that does not hold for the example itself."""


class _ExportError(Exception):
    """The exporter refuses."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(first_line(cause))
        self.cause = cause


class _ChoiceError(_ExportError):
    """The exporter refuses a choice by the values of tensors."""


@dataclass(frozen=True, eq=False)
class _Example:
    """A model and example inputs, while the model's state is kept."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: str | int | None
    held: Held

    deciding: bool = False
    """What the code asks of tensors is answered as on the example."""

    def trace(self, dynamic: bool) -> tuple[Traced, Tensor | None]:
        """The most dynamic trace that the exporter grants and that holds for the example."""
        # Before the export, so that what the model makes when it first runs is real.
        expected = None if _is_meta(self.model) else self._first_run()
        try:
            return self._most_dynamic(dynamic, expected), expected
        except _ChoiceError as choice:
            deciding = dataclasses.replace(self, deciding=True)
            try:
                return deciding._most_dynamic(dynamic, expected), expected
            except (TraceError, InputError):
                raise refused(choice.cause, self.model) from choice.cause

    def _most_dynamic(self, dynamic: bool, expected: Tensor | None) -> Traced:
        given = (self.args, self.kwargs)
        examples = [wide for wide in [_generic(given)] if wide is not given and self._runs(wide)] + [given]
        # A table that the model makes anew for longer inputs is part of the graph where it is made in the export.
        states = [self.held] * self.held.changed + [Held(self.model)]
        refusal = ""
        for level in _LEVELS if dynamic else _LEVELS[-1:]:
            tried = examples if level != "none" else [given]
            for example, state in [(example, state) for example in tried for state in states]:
                try:
                    return self._attempt(example, level, state, expected, refusal)
                except (_UnfitError, _ExportError, TraceError) as error:
                    if state is not states[-1]:
                        continue
                    if isinstance(error, TraceError):
                        raise
                    refusal = refusal or first_line(error)
                    if isinstance(error, _ExportError):
                        self._decide(error, expected)
                        if level == "none":
                            raise refused(error.cause, self.model) from error.cause
                        break
                    # As given, a size of 1 is a constant.
                    examples = [given]
        raise TraceError(f"no trace of {type(self.model).__name__} holds for the example: {refusal}")

    def _decide(self, error: _ExportError, expected: Tensor | None) -> None:
        """Raise `_ChoiceError` where values of tensors decide and were not answered, but can be."""
        possible = not self.deciding and expected is not None and chooses_by_values(error.cause)
        if possible and self._heard((self.args, self.kwargs)).answers:
            raise _ChoiceError(error.cause)

    def _heard(self, example: Any) -> Heard:
        """What the model's code asks of tensors on an example."""
        with Answering() as answering:
            self.run(*example)
        return Heard(tuple(answering.answers), tuple(answering.places))

    def _attempt(self, example: Any, level: Dynamic, state: Held, expected: Tensor | None, refusal: str) -> Traced:
        state.put_back()
        if expected is None:
            return self._export(example, level, refusal)
        if not holds_packed(self.model):
            return self._shown(self._export(example, level, refusal), expected)
        return self._shown(self._export_packed(example, level, refusal, expected), expected)

    def _export_packed(self, example: Any, level: Dynamic, refusal: str, expected: Tensor) -> Traced:
        """The model as it is written, or with packed weights unpacked where only that gives operators with rules.

        Raises `TraceError` where not the weights alone are rounded.
        """
        found = self._exported(example, level, refusal, unpack=False)
        closed: list[fx.Node] = []
        if isinstance(found, Traced):
            for node in rounded(found.graph, found.state):
                raise refused_activations(self.model, node, f"rounds its inputs to {node.meta['dtype']}")
            closed += unknown(found.graph, found.state)
            if not closed:
                return found
        plain = self._exported(example, level, refusal, unpack=True)
        if isinstance(plain, Traced):
            still = [node.target for node in unknown(plain.graph, plain.state)]
            opened = [node for node in closed if node.target not in still]
            if opened or isinstance(found, _ExportError):
                check = compare(_replayed(plain, self.args, self.kwargs), expected)
                if check.good:
                    return plain
                if opened:
                    why = f"rounds more than the weights (without which the output has a {check})"
                    raise refused_activations(self.model, opened[0], why)
        if isinstance(found, _ExportError):
            raise found
        return found

    def _exported(self, example: Any, level: Dynamic, refusal: str, unpack: bool) -> Traced | _ExportError:
        try:
            return self._export(example, level, refusal, unpack)
        except _ExportError as error:
            return error

    def run(self, args: Any, kwargs: Any) -> Tensor:
        """The explained output of the model itself; the values that it holds are put back."""
        args, kwargs = pytree.tree_map_only(Tensor, lambda leaf: leaf.detach().clone(), (args, kwargs))
        try:
            with ordinary_operators():
                return _pick(self.model(*args, **kwargs), self.output)[1]
        finally:
            self.held.put_values_back()

    def _first_run(self) -> Tensor:
        lookups = _Lookups(self.model, dict(_places(self.args, self.kwargs, _positional(self.model))))
        try:
            with lookups:
                return self.run(self.args, self.kwargs)
        except JetGraphError:
            raise
        except Exception as error:  # whatever the model raises
            raise fails_by_itself(error, self.model) from error

    def _runs(self, example: Any) -> bool:
        """The model takes a wider example: the exporter may see it."""
        if _is_meta(self.model):
            return True
        try:
            self.run(*example)
        except Exception:  # whatever the model raises: then its example is traced as it is
            return False
        return True

    def _export(self, example: Any, level: Dynamic, refusal: str, unpack: bool = False) -> Traced:
        picked: list[tuple[str, Answering | None]] = []
        heard = self._heard(example) if self.deciding else None
        wrapper = _Explained(self.model, self.output, lambda *found: picked.append(found), unpack, heard)
        wrapper.training = False
        example = pytree.tree_map(_unmarked, example)
        shapes = None if level == "none" else pytree.tree_map(partial(_dims, level=level), example)
        # What the model makes while it is exported has no values.
        with kept(self.model), modules_stay():
            try:
                exported = export_program(wrapper, example, shapes)
            except TraceError:
                raise
            except Exception as error:  # the exporter raises many types
                raise _ExportError(error) from error
        return _copy(exported, self.model, *picked[-1], level, refusal)

    def _shown(self, traced: Traced, expected: Tensor) -> Traced:
        """The trace, with a guard against each size of 1 for which it is not shown to be what the model does.

        The exporter takes it for granted that open sizes are 2 or more, and notes no choice that follows from it.
        """
        try:
            known = _sizes(traced, self.args, self.kwargs)
        except InputError as error:
            raise _UnfitError(str(error)) from error
        if 1 in known.values() and not _agrees(traced, self.args, self.kwargs, expected):
            raise _UnfitError("the model does not do the same for a size of 1 as for larger ones")
        bounded = {guard.partition(" >= ")[0] for guard in traced.guards}
        open_sizes = [name for name, size in known.items() if size > 1 and name not in bounded]
        guards: list[str] = []
        shown: list[str] = []
        for name in open_sizes:
            # A mask may have a batch of its own to the exporter, and be 1 where the ids' is.
            alike = [other for other, size in known.items() if size == known[name]]
            if self._holds_at_one(traced, known, name):
                shown.append(name)
            elif len(alike) > 1 and self._holds_for(traced, known | dict.fromkeys(alike, 1)):
                shown.append(name)
                guards.append(f"({name} >= 2) | (Max({', '.join(alike)}) < 2)")
            else:
                guards.append(f"{name} >= 2")
        if len(shown) > 1 and not self._holds_for(traced, known | dict.fromkeys(shown, 1)):
            guards.append(f"Max({', '.join(shown)}) >= 2")
        return dataclasses.replace(traced, guards=(*traced.guards, *guards))

    def _holds_at_one(self, traced: Traced, known: Mapping[str, int], name: str) -> bool:
        """With one size cut down to 1, the graph and the model give the same; the others as they are, and at 2."""
        few = {other: min(size, 2) for other, size in known.items()} | {name: 1}
        many = {**known, name: 1}
        possible = [many] if many == few or not all(holds(guard, few) for guard in traced.guards) else [many, few]
        return all(self._holds_for(traced, sizes) for sizes in possible)

    def _holds_for(self, traced: Traced, sizes: Mapping[str, int]) -> bool:
        """With the example cut down to these sizes, the graph and the model give the same."""
        leaves, structure = pytree.tree_flatten((self.args, self.kwargs))
        places = (place for place, _ in _places(self.args, self.kwargs, traced.positional))
        shapes = (traced.input_shapes.get(place, ()) for place in places)
        try:
            cut = [_cut(leaf, shape, sizes) for leaf, shape in zip(leaves, shapes, strict=True)]
            args, kwargs = pytree.tree_unflatten(cut, structure)
            return _agrees(traced, args, kwargs, self.run(args, kwargs))
        except Exception:  # whatever the model raises for such sizes: it is not shown, and refused
            return False


def _sizes(traced: Traced, args: Any, kwargs: Any) -> dict[str, int]:
    """The sizes of a call by name."""
    values = traced.input_values(args, kwargs)
    return traced.sizes({traced.bindings[node.name].name: value for node, value in values.items()})


def _agrees(traced: Traced, args: Any, kwargs: Any, expected: Tensor) -> bool:
    """The traced graph gives what the model gave."""
    actual = _replayed(traced, args, kwargs)
    return actual.shape == expected.shape and compare(actual, expected).good


def _replayed(traced: Traced, args: Any, kwargs: Any) -> Tensor:
    values = {**traced.state_values(), **traced.input_values(args, kwargs)}
    with torch.no_grad():
        return evaluate(traced.graph.nodes, values, keep={traced.output})[traced.output]


def _is_meta(model: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())


def _cut(leaf: Any, shape: Sequence[int | str], sizes: Mapping[str, int]) -> Any:
    """A tensor cut down to smaller sizes."""
    for dim, size in enumerate(shape):
        leaf = leaf if isinstance(size, int) else leaf.narrow(dim, 0, size_of(size, sizes))
    return leaf


class _Lookups(TorchFunctionMode):
    """Looks at the rows that a model asks its tables for, which on some devices would end the process."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, Any]) -> None:
        super().__init__()
        self.names = {id(tensor): name for name, tensor in model.named_parameters()}
        self.inputs = inputs

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.embedding, nn.functional.embedding) and len(args) > 1:
            table, rows = (args[1], args[0]) if function is nn.functional.embedding else args[:2]
            try:
                check_rows(table, rows)
            except InputError as error:
                module = self.names.get(id(table), "").rpartition(".")[0]
                where = f"the table of module {module!r}" if module else "a table"
                raise InputError(f"{self._given(rows)}{where}: {error}") from error
        return function(*args, **(kwargs or {}))

    def _given(self, rows: Tensor) -> str:
        """Which input the rows are, as it stands or reshaped."""
        for place, value in self.inputs.items():
            if isinstance(value, Tensor) and torch.equal(value.flatten(), rows.flatten()):
                return f"input {place!r} does not fit "
        return ""


_LEVELS: tuple[Dynamic, ...] = ("all", "batch", "none")


def _freedom(shapes: Mapping[str, tuple[int | str, ...]], bindings: Mapping[str, torch.dtype]) -> Dynamic:
    """What may change between calls, by the sizes that the exporter left open."""
    ranked = [(place, shape) for place, shape in shapes.items() if shape]
    if not any(isinstance(size, str) for _, shape in ranked for size in shape):
        return "none"
    ids = [shape[1] for place, shape in ranked if len(shape) > 1 and not bindings[place].is_floating_point]
    return "batch" if ids and not any(isinstance(size, str) for size in ids) else "all"


def _unmarked(leaf: Any) -> Any:
    """A tensor as an object of its own: an export that fails leaves marks on its examples, which the next one heeds."""
    return leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf


def _generic(example: Any) -> Any:
    """Repeat examples of batch or length 1: the exporter takes sizes 0 and 1 for constants of the program.

    The same object where there are none.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor) and leaf.dim() > 0]
    ids = [tensor for tensor in tensors if tensor.dim() > 1 and not tensor.is_floating_point()]
    lone_batch = bool(tensors) and all(tensor.shape[0] == 1 for tensor in tensors)
    short = bool(ids) and all(tensor.shape[1] == 1 for tensor in ids)

    def widen(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0:
            return leaf
        if lone_batch:
            leaf = torch.cat([leaf, leaf])
        if short and leaf.dim() > 1 and not leaf.is_floating_point():
            leaf = torch.cat([leaf, leaf], dim=1)
        return leaf

    return pytree.tree_map(widen, example) if lone_batch or short else example


def _dims(leaf: Any, level: Dynamic) -> Any:
    """Which sizes of an input the exporter may leave open."""
    if not isinstance(leaf, Tensor) or not leaf.dim():
        return {} if isinstance(leaf, Tensor) else None
    # Free image sides would mean proofs about windows and strides, over which the exporter can spend hours (Swin).
    image = leaf.is_floating_point() and leaf.dim() > 3
    free = range(1) if level == "batch" or image else range(leaf.dim())
    return dict.fromkeys(free, torch.export.Dim.AUTO)


# Copying graphs


def _copied_graph(graph: fx.Graph, swap: Callable[[Any], Any]) -> fx.Graph:
    """A copy with `swap` applied to every argument, and to dtypes and devices in the metadata."""
    new_graph, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        new = copied[node] = new_graph.node_copy(node, copied.__getitem__)
        new.name = node.name
        new.args, new.kwargs = pytree.tree_map(swap, (new.args, new.kwargs))
        new.meta = {key: swap(value) for key, value in node.meta.items()}
    return new_graph


def _copy(
    exported: Exported, model: nn.Module, picked: str, answered: Answering | None, asked: Dynamic, refusal: str
) -> Traced:
    program = exported.program
    result = next(node for node in program.graph.nodes if node.op == "output").args[0][-1]
    if not isinstance(result, fx.Node):
        raise TraceError(f"the output {picked!r} is the constant {result!r}, not a tensor that the inputs change")
    decisions = None if answered is None else _decisions(program, answered)
    live = _ancestors(result)
    _check_nodes(live)
    copy = _Copy(program, model)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            copy.placeholder(node, read=node in live or (decisions is not None and node.name in decisions.reads))
        elif node.op != "output" and node in live:
            copy.call(node)
    graph, bindings = copy.finished(result), copy.bindings
    types = _module_types(program)
    dtypes = {bindings[node.name].name: node.meta["dtype"] for node in graph.find_nodes(op="placeholder")}
    granted = _freedom(copy.shapes, dtypes)
    level: Dynamic = granted if _LEVELS.index(granted) > _LEVELS.index(asked) else asked
    note = _note(refusal, asked, level)
    if decisions is not None:
        note = "; ".join(filter(None, (note, str(decisions))))
    guards = (*guards_of(exported, copy.names), *_kept_dimensions(graph))
    weights = Weights(copy.tensors, _owners(model))
    return Traced(
        graph, bindings, weights, copy.defaults, copy.shapes, copy.positional, types, picked, level, note, guards,
        decisions,
    )  # fmt: skip


def _check_nodes(live: Iterable[fx.Node]) -> None:
    """Raise `TraceError` for control flow and random numbers, which no graph of values is of."""
    for node in live:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise TraceError(
                f"{_module_path(node) or 'the model'} holds the control-flow operator {node.target}, which cannot be "
                "analysed: replace it by ordinary operators"
            )
        if _is_random(node):
            raise TraceError(
                f"{op_name(node.target)} in {_named_module(node)} draws random numbers, so the model has no one output "
                "to explain: switch it off (dropout with probability 0, or training=False), or give its numbers as an "
                "input"
            )


def _note(refusal: str, asked: Dynamic, level: Dynamic) -> str:
    """Why sizes are fixed that were to be open."""
    if refusal and level != "all":
        kept = "only the batch size may change" if level == "batch" else "input shapes are fixed to the traced ones"
        return f"torch.export refused dynamic sizes ({refusal}), so {kept}"
    if asked == "all" and level != "all":
        return "the model's code takes some sizes for constants, so they are fixed to the traced ones"
    return ""


class _Copy:
    """A graph of the operators of an exported program, node by node, and what its placeholders stand for."""

    def __init__(self, program: torch.export.ExportedProgram, model: nn.Module) -> None:
        assert program.call_spec.in_spec is not None
        self.bindings: dict[str, Binding] = {}
        self.tensors: dict[str, Tensor] = {}
        self.shapes: dict[str, tuple[int | str, ...]] = {}
        self.defaults: dict[str, Any] = {}
        self.names: dict[str, str] = {}
        """Of sizes."""
        self.positional = _positional(model)
        self._program, self._model = program, model
        self._places = iter(_spec_places(program, self.positional))
        self._specs = {s.arg.name: s for s in program.graph_signature.input_specs if hasattr(s.arg, "name")}
        self._graph = fx.Graph()
        self._copied: dict[fx.Node, fx.Node] = {}

    def placeholder(self, node: fx.Node, *, read: bool) -> None:
        """An input, or a weight that is read; an input that is no tensor is a default of its place."""
        spec = self._specs[node.name]
        kind = _BINDING_KINDS[spec.kind.name]
        if kind == "input":
            place, value = next(self._places), node.meta.get("val")
            if not isinstance(value, Tensor):
                self.defaults[place] = getattr(spec.arg, "value", value)
                return
            self.bindings[node.name] = Binding("input", place)
            _name_sizes(value, place, self.names)
            self.shapes[place] = _shape(value, self.names)
        elif not read:
            return
        else:
            assert spec.target is not None
            name, tensor = bound_tensor(self._program, self._model, spec.target, "model.")
            self.bindings[node.name] = Binding(kind, name)
            self.tensors[name] = tensor
        self._put(node)

    def call(self, node: fx.Node) -> None:
        """Raise `TraceError` for a node that is no call of an operator."""
        if node.op != "call_function":
            raise TraceError(
                f"the traced graph holds the node {node.name!r} of kind {node.op!r} ({node.target}), which "
                f"cannot be analysed"
            )
        self._put(node)

    def finished(self, result: fx.Node) -> fx.Graph:
        """The graph in normal form, with this output."""
        graph = self._graph
        graph.output(self._copied[result])
        normalise(graph)
        graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        graph.lint()
        return graph

    def _put(self, node: fx.Node) -> None:
        new = self._graph.node_copy(node, self._copied.__getitem__)
        new.name = node.name
        new.meta = _light(node, self.names)
        self._copied[node] = new


def _decisions(program: torch.export.ExportedProgram, answered: Answering) -> Decisions | None:
    """What a program that returns the tensors that were asked, and its result, takes for granted of inputs' values."""
    signature = program.graph_signature
    (outputs,) = program.graph.output_node().args
    assert isinstance(outputs, list | tuple)
    asked: Any = outputs[len(outputs) - len(signature.user_outputs) : -1]
    graph, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    # What follows from weights and constants alone is the same at every call.
    given = set(signature.user_inputs)
    places = [place for place, node in enumerate(asked) if isinstance(node, fx.Node)]
    kept = [place for place in places if not given.isdisjoint(each.name for each in _ancestors(asked[place]))]
    needed = set[fx.Node]().union(*(_ancestors(asked[place]) for place in kept))
    for node in program.graph.nodes:
        if node in needed:
            copied[node] = graph.node_copy(node, copied.__getitem__)
            copied[node].name = node.name
            copied[node].meta = {"module_path": _module_path(node)}
    graph.output([copied[asked[place]] for place in kept])
    answers, lines = (tuple(each[place] for place in kept) for each in (answered.answers, answered.places))
    # No other input gives the very number again, so that the trace would be of the example alone.
    if any(isinstance(leaf, float) for leaf in pytree.tree_leaves(answers)):
        raise TraceError("the model's code reads real numbers of tensors that depend on the inputs")
    return Decisions(graph, answers, lines) if kept else None


def _kept_dimensions(graph: fx.Graph) -> Iterator[str]:
    """Guards for dimensions that are squeezed where they have size 1, which in the trace they had not."""
    squeeze = torch.ops.aten.squeeze
    for node in graph.nodes:
        if getattr(node.target, "overloadpacket", None) is not squeeze:
            continue
        shape = node.args[0].meta["shape"]
        dims = node.args[1] if len(node.args) > 1 else range(len(shape))
        sizes = [shape[dim] for dim in ([dims] if isinstance(dims, int) else dims)]
        yield from (f"{size} != 1" for size in sizes if isinstance(size, str))


_BINDING_KINDS: dict[str, Literal["parameter", "buffer", "constant", "input"]] = {
    "PARAMETER": "parameter",
    "BUFFER": "buffer",
    "CONSTANT_TENSOR": "constant",
    "USER_INPUT": "input",
}


def bound_tensor(
    program: torch.export.ExportedProgram, model: nn.Module, target: str, prefix: str = ""
) -> tuple[str, Tensor]:
    """What a placeholder of a program stands for, with its name: the model's own parameter or buffer, not the detached
    one of the program's state; a constant lifted from the model's code otherwise.

    The exporter unwraps a tensor subclass (an int8 weight with its scales, say) into plain tensors, and writes the k-th
    of `a.weight` as `a.parametrizations.weight.original<k>`. Here it keeps its own name, such as `a.weight.scale`.
    """
    if target in program.constants and isinstance(constant := program.constants[target], Tensor):
        inner = find(model, target.removeprefix(prefix).split("."))
        return target.removeprefix(prefix), inner if isinstance(inner, Tensor) else constant
    name = target.removeprefix(prefix)
    value = find(model, name.split("."))
    if value is None and (parts := re.fullmatch(r"((?:.+\.)?)parametrizations\.(\w+)\.original(\d+)", name)):
        outer = parts[1] + parts[2]
        inside = _plain_names(find(model, outer.split(".")))
        name = f"{outer}.{list(inside)[int(parts[3])]}"
        value = find(model, name.split("."))
    assert isinstance(value, Tensor), f"{target} is no tensor of the model"
    return name, value


def _plain_names(tensor: Any) -> Iterator[str]:
    """Names of the plain tensors inside a tensor subclass, in the order in which it is taken apart."""
    for attribute in tensor.__tensor_flatten__()[0]:
        inner = getattr(tensor, attribute)
        if type(inner) is Tensor:
            yield attribute
        else:
            yield from (f"{attribute}.{name}" for name in _plain_names(inner))


def _owners(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that a user holds, by the beginning of their tensors' names: the model, or what a function reads."""
    if isinstance(model, Function):
        return {f"modules_read.{index}": module for index, module in enumerate(model.modules_read)}
    return {"": model}


def _is_random(node: fx.Node) -> bool:
    """The op draws from a generator: it is one that may, and no argument says that this time it does not."""
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in op.tags:
        return False
    given = dict(zip((argument.name for argument in op._schema.arguments), node.args, strict=False)) | node.kwargs
    defaults = {argument.name: argument.default_value for argument in op._schema.arguments}
    return not any(
        # Off, or with probability 0.
        given.get(name, defaults[name]) in (False, 0)
        for name in defaults.keys() & {"train", "training", "p", "dropout_p"}
    )


def _named_module(node: fx.Node) -> str:
    path = _module_path(node)
    return f"module {path!r}" if path else "the root module"


def _ancestors(node: fx.Node) -> set[fx.Node]:
    seen, stack = {node}, [node]
    while stack:
        for parent in stack.pop().all_input_nodes:
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return seen


def _light(node: fx.Node, names: Mapping[str, str]) -> dict[str, Any]:
    meta: dict[str, Any] = {"module_path": _module_path(node)}
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        meta["dtype"] = value.dtype
        meta["shape"] = _shape(value, names)
    return meta


def _module_path(node: fx.Node) -> str:
    """Path of the innermost module that the node belongs to."""
    stack = node.meta.get("nn_module_stack") or {}
    for path, _ in reversed(stack.values()):
        if path == "model" or path.startswith("model."):
            return _inner_path(path)
    return ""


def _inner_path(path: str) -> str:
    # A module that runs twice is exported as `name@1` the second time.
    return re.sub(r"@\d+", "", path).removeprefix("model").removeprefix(".")


def _module_types(program: torch.export.ExportedProgram) -> dict[str, str]:
    types: dict[str, str] = {}
    for node in program.graph.nodes:
        for path, kind in (node.meta.get("nn_module_stack") or {}).values():
            name = kind if isinstance(kind, str) else kind.__qualname__
            types[_inner_path(path)] = name.rpartition(".")[2]
    return types


def _name_sizes(value: Tensor, place: str, names: dict[str, str]) -> None:
    """Name the open sizes of an input: `batch`, `length`, and others after the input."""
    for dim, size in enumerate(value.shape):
        symbol = str(size)
        if not symbol.isidentifier() or symbol in names:
            continue
        name = ("batch", "length")[dim] if dim < 2 and value.dim() < 4 else "batch" if dim == 0 else ""
        if not name or name in names.values():
            name = f"{re.sub(r'[^A-Za-z0-9_]', '_', place)}_{name or dim}"
        names[symbol] = name


def _shape(value: Tensor, names: Mapping[str, str]) -> tuple[int | str, ...]:
    texts = (named(str(size), names) for size in value.shape)
    return tuple(int(text) if text.isdigit() else text for text in texts)


def _places(args: Sequence[Any], kwargs: Mapping[str, Any], positional: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Leaves of a call's arguments, each with its place: `input_ids`, `past.0.key`."""
    try:
        leaves, _ = pytree.tree_flatten_with_path((tuple(args), dict(kwargs)))
    except RecursionError:
        raise InputError("the inputs are nested too deeply, or hold themselves: give tensors by name") from None
    for (side, *path), leaf in leaves:
        names = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
        if getattr(side, "idx", None) == 0 and int(names[0]) < len(positional):
            names[0] = positional[int(names[0])]
        yield ".".join(names), leaf


def _positional(model: nn.Module) -> tuple[str, ...]:
    """Names of the arguments that the model takes by position or name."""
    parameters = _signature(model).parameters.values()
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def _signature(model: nn.Module) -> inspect.Signature:
    """Of the model's forward, or of the function that it stands for, where that has one."""
    if isinstance(model, Function):
        with contextlib.suppress(TypeError, ValueError):
            return inspect.signature(model.function[0])
    return inspect.signature(model.forward)


def _spec_places(program: torch.export.ExportedProgram, positional: Sequence[str]) -> list[str]:
    spec = program.call_spec.in_spec
    assert spec is not None
    skeleton = pytree.tree_unflatten([object()] * spec.num_leaves, spec)
    (args, kwargs), _ = skeleton
    return [place for place, _ in _places(args, kwargs, positional)]


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and not isinstance(one, Tensor) and one == other)
