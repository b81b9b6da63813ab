"""A model as a functional graph of ATen operators, and what its inputs may be."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from jetgraph.algebra.sizes import evaluate as size_of
from jetgraph.errors import InputError, StateError
from jetgraph.jets.code import CHECKED
from jetgraph.jets.domain import can_be_looked_at
from jetgraph.jets.recording import recordable
from jetgraph.tracing.calls import named_leaves
from jetgraph.tracing.decisions import Decisions
from jetgraph.tracing.guards import check_guards
from jetgraph.tracing.lookups import Counted, counted_lookups, lookups_of
from jetgraph.tracing.weights import DeviceAndDtype, Weights, device_and_dtype

Dynamic = Literal["all", "batch", "none"]
"""Which input dimensions may change between calls: every one the model allows, the leading one, or none."""


@dataclass(frozen=True, slots=True)
class Binding:
    """What a placeholder of the graph stands for."""

    kind: Literal["parameter", "buffer", "constant", "input"]
    name: str
    """Qualified name of a parameter or buffer, name of a constant, or the input's name, such as `input_ids`."""


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
    """Non-tensor inputs by name, as they were in the trace; a call may leave them out but not change them."""
    input_shapes: Mapping[str, tuple[int | str, ...]]
    """By name; dynamic sizes are symbols."""
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
    device_and_dtype: DeviceAndDtype = dataclasses.field(init=False)
    """Where the weights were in the trace."""
    devices: frozenset[torch.device] = dataclasses.field(init=False)
    """All on which they were; compiled paths keep them there, wherever the model's are now."""
    meta: bool = dataclasses.field(init=False)
    """The weights were on the `meta` device: structure only, no values."""
    state: Mapping[fx.Node, str] = dataclasses.field(init=False)
    """The placeholders that are no inputs, with the names of their tensors."""
    inputs: Mapping[fx.Node, str] = dataclasses.field(init=False)
    """The placeholders that are inputs, with their names."""
    counted: tuple[Counted, ...] = dataclasses.field(init=False)
    """Lookups of places, such as learned positions: how many rows they read follows from the inputs' sizes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "device_and_dtype", device_and_dtype(self.tensors.values()))
        object.__setattr__(self, "devices", frozenset(tensor.device for tensor in self.tensors.values()))
        object.__setattr__(self, "meta", any(tensor.is_meta for tensor in self.tensors.values()))
        bound = {node: self.bindings[node.name] for node in self.graph.find_nodes(op="placeholder")}
        for kind, is_input in (("state", False), ("inputs", True)):
            chosen = {node: each.name for node, each in bound.items() if (each.kind == "input") == is_input}
            object.__setattr__(self, kind, chosen)
        looked_up = [lookup for node in self.inputs for lookup in lookups_of(node)]
        object.__setattr__(self, "counted", counted_lookups(self.graph))
        for lookup in (*looked_up, *(each.node for each in self.counted)):
            lookup.meta[CHECKED] = True

    @property
    def model(self) -> nn.Module | None:
        """The model that the weights are looked up in; None where it is gone, or a function that reads several."""
        owners = self.tensors.owners if isinstance(self.tensors, Weights) else []
        return owners[0] if len(owners) == 1 else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Traced:
        """The same program over copies of the weights."""
        graph = copied_graph(self.graph, lambda value: value)
        return dataclasses.replace(self, graph=graph, tensors=copy.deepcopy(self.tensors, memo))

    def __reduce__(self) -> Any:
        raise StateError(
            "a traced graph, and what holds one, is not pickled: write it with jetgraph.save(graph, folder), read it "
            "with jetgraph.load(folder), and take tensors out of results"
        )

    @property
    def parameters(self) -> int:
        """How many parameters the output reads, tied ones once; a model may have more, such as a pooler's."""
        names = (binding.name for binding in self.bindings.values() if binding.kind == "parameter")
        read = {id(tensor): tensor for tensor in map(self.tensors.__getitem__, names)}
        return sum(tensor.numel() for tensor in read.values())

    @property
    def output(self) -> fx.Node:
        """The node whose value is the explained output."""
        result = self.graph.output_node().args[0]
        assert isinstance(result, fx.Node)
        return result

    def tensors_now(self) -> Mapping[str, Tensor]:
        """All weights and constants by name, looked up in one go.

        Raises
        ------
        StateError
            The model has changed in more than its weights' values.
        """
        return self.tensors.now()[0] if isinstance(self.tensors, Weights) else self.tensors

    def state_values(self, tensors: Callable[[str], Tensor] | None = None) -> dict[fx.Node, Any]:
        """Values of the placeholders that are no inputs, from the weights by name; the model's own by default."""
        tensors = tensors or self.tensors.__getitem__
        return {node: recordable(tensors(name)) for node, name in self.state.items()}

    def input_values(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[fx.Node, Any]:
        """Values of the input placeholders for a call with these arguments.

        Raises
        ------
        InputError
            Inputs that were not there in the trace, that are missing, whose rank, kind or fixed sizes differ from the
            traced ones, or whose sizes the trace does not hold for.
        """
        given = dict(named_leaves(args, kwargs, self.positional))
        values: dict[fx.Node, Any] = {}
        for node, name in self.inputs.items():
            if name not in given and any(other.startswith(f"{name}.") for other in given):
                raise InputError(f"input {name!r} is a collection, but was a tensor in the trace: give a tensor")
            if name not in given:
                raise InputError(f"input {name!r} is missing: the model was traced with {self.signature}")
            value = given[name]
            _check_input(self, name, node, value)
            values[node] = recordable(value)
        known = {*self.input_shapes, *self.defaults}
        for name, value in given.items():
            if name not in known:
                if value is None:
                    continue
                raise InputError(
                    f"input {name!r} was not among the inputs of the trace ({self.signature}): trace the model "
                    "with it to use it"
                )
            if name in self.defaults and not _same(self.defaults[name], value):
                raise InputError(
                    f"input {name!r} was fixed to {self.defaults[name]!r} by the trace and cannot be {value!r} "
                    "now: trace the model again"
                )
        self._check_sizes({self.inputs[node]: value for node, value in values.items()})
        if self.decisions is not None:
            held = self.state_values() | values
            self.decisions.check({node.name: value for node, value in held.items()})
        return values

    def sizes(self, given: Mapping[str, Tensor]) -> dict[str, int]:
        """The open sizes of inputs, by name.

        Raises
        ------
        InputError
            Two inputs differ in one of them.
        """
        known: dict[str, int] = {}
        owners: dict[str, str] = {}
        for name, value in given.items():
            for size, actual in zip(self.input_shapes[name], value.shape, strict=True):
                if isinstance(size, str) and size.isidentifier() and known.setdefault(size, actual) != actual:
                    raise InputError(
                        f"input {name!r} has {size} {actual}, but input {owners[size]!r} has {size} {known[size]}: "
                        "in the trace they were the same, so give inputs that agree, or trace the model again"
                    )
                owners.setdefault(str(size), name)
        return known

    def _check_sizes(self, given: Mapping[str, Tensor]) -> None:
        known = self.sizes(given)
        owners: dict[str, str] = {}
        for name, value in given.items():
            for size, actual in zip(self.input_shapes[name], value.shape, strict=True):
                if isinstance(size, int):
                    continue
                if not actual:
                    raise InputError(
                        f"input {name!r} is empty: its shape is {tuple(value.shape)}; every size is 1 or more"
                    )
                owners.setdefault(size, name)
                if not size.isidentifier() and size_of(size, known) != actual:
                    raise InputError(
                        f"input {name!r} has {actual} where the trace has {size}, with {_listed(known)}: give inputs "
                        "that fit each other, or trace the model again"
                    )
        check_guards(self.guards, known, owners)
        for lookup in self.counted:
            lookup.check(known)

    def relocated(self, tensor: Callable[[str], Tensor]) -> Traced:
        """The same program for weights on another device or of another floating-point type; itself if nothing moved.

        The type that most weights had in the trace is replaced by the one that they have now, wherever the trace wrote
        it into the graph; other types, such as a norm's float32 in a bfloat16 model, stay.
        """
        moved = {name: tensor(name) for name in self.tensors}
        old, new = self.device_and_dtype, device_and_dtype(moved.values())
        if old == new:
            return self

        def swap(value: Any) -> Any:
            if isinstance(value, torch.device):
                return new[0]
            return new[1] if isinstance(value, torch.dtype) and value == old[1] else value

        graph = copied_graph(self.graph, swap)
        for node in graph.find_nodes(op="placeholder"):
            if (binding := self.bindings[node.name]).kind != "input":
                node.meta["dtype"] = moved[binding.name].dtype
        decisions = self.decisions and dataclasses.replace(
            self.decisions, graph=copied_graph(self.decisions.graph, swap)
        )
        return dataclasses.replace(self, graph=graph, tensors=moved, decisions=decisions)

    @property
    def signature(self) -> str:
        """The inputs with their shapes, in which names are sizes that may change, and what is fixed: `x[batch, 4]`."""
        parts = [f"{name}[{', '.join(map(str, shape))}]" for name, shape in self.input_shapes.items()]
        return ", ".join(parts + [f"{name}={value!r}" for name, value in self.defaults.items()])


def _check_input(traced: Traced, name: str, node: fx.Node, value: Any) -> None:
    """Raise `InputError` for an input of another kind, place, shape or type than in the trace."""
    shape = traced.input_shapes[name]
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_quantized:
        raise InputError(
            f"input {name!r} is a {type(value).__name__}, not a tensor of plain memory as in the trace: give one, "
            "neither sparse nor quantised"
        )
    if (kind := _kind(value.dtype)) != (before := _kind(node.meta["dtype"])):
        raise InputError(
            f"input {name!r} is {kind} ({value.dtype}), but was {before} ({node.meta['dtype']}) in the trace, and "
            "operators such as an index or a negation differ by kind: convert it, or trace the model again with it"
        )
    if not _width_fits(value.dtype, node):
        raise InputError(
            f"input {name!r} is of {value.dtype}, but was of {node.meta['dtype']} in the trace: convert it, or "
            "trace the model again with it"
        )
    if len(traced.devices) == 1 and value.device not in traced.devices:
        (device,) = traced.devices
        raise InputError(f"input {name!r} is on {value.device}, but the weights are on {device}: move it")
    fits = len(shape) == value.dim() and all(
        isinstance(size, str) or size == actual for size, actual in zip(shape, value.shape, strict=True)
    )
    if not fits:
        raise InputError(
            f"input {name!r} has shape {tuple(value.shape)}, but the trace takes [{', '.join(map(str, shape))}] "
            "(letters are sizes that may change). "
            + (f"{traced.note[:1].upper()}{traced.note[1:]}. " if traced.note else "")
            + "Trace the model again with such an input."
        )
    rows = rows_looked_up(node)
    if rows is not None and can_be_looked_at(value):
        # Read together, so that a device is waited for once.
        lowest, highest = torch.stack(value.aminmax()).tolist()
        if lowest < 0 or highest >= rows:
            wrong = lowest if lowest < 0 else highest
            raise InputError(f"input {name!r} holds {wrong}, but its embedding has the rows 0 to {rows - 1}")


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
    sizes = [lookup.args[0].meta["shape"][0] for lookup in lookups_of(node)]  # type: ignore[union-attr]
    return min((rows for rows in sizes if isinstance(rows, int)), default=None)


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and not isinstance(one, Tensor) and one == other)


def copied_graph(graph: fx.Graph, swap: Callable[[Any], Any]) -> fx.Graph:
    """A copy with `swap` applied to every argument, and to dtypes and devices in the metadata."""
    new_graph, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        new = copied[node] = new_graph.node_copy(node, copied.__getitem__)
        new.name = node.name
        new.args, new.kwargs = pytree.tree_map(swap, (new.args, new.kwargs))
        new.meta = {key: swap(value) for key, value in node.meta.items()}
    return new_graph
