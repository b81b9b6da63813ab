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
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from jetgraph import graph_passes
from jetgraph.errors import InputError, JetGraphError, TraceError
from jetgraph.frames import on_one_chunk
from jetgraph.precision import own_types
from jetgraph.weights import Place, Weights, find, place_of

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
    """Looked up in the model while it lives; see `jetgraph.weights`."""
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

    def __deepcopy__(self, memo: dict[int, Any]) -> Traced:
        """The same program over copies of the weights."""
        graph = _copied_graph(self.graph, lambda value: value)
        return dataclasses.replace(self, graph=graph, tensors=copy.deepcopy(self.tensors, memo))

    def __reduce__(self) -> Any:
        raise JetGraphError(
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

        Raises `InputError` for inputs that were not there in the trace, that are missing, or whose rank, kind
        or fixed sizes
        differ from the traced ones.
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
        return values

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
        return dataclasses.replace(self, graph=graph, tensors=moved)

    def _signature(self) -> str:
        parts = [f"{place}[{', '.join(map(str, shape))}]" for place, shape in self.input_shapes.items()]
        return ", ".join(parts + [f"{place}={value!r}" for place, value in self.defaults.items()])

    def _check(self, place: str, node: fx.Node, value: Any) -> None:
        shape = self.input_shapes[place]
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            raise InputError(f"input {place!r} is a {type(value).__name__}, not a tensor as in the trace")
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
                "(letters are sizes that may change). " + (self.note or "Trace the model again with such an input.")
            )
        if 0 in value.shape and 0 not in shape:
            raise InputError(f"input {place!r} of shape {tuple(value.shape)} is empty: give one element or more")
        rows = rows_looked_up(node)
        if rows is not None and value.numel() and not value.is_meta:
            lowest, highest = int(value.min()), int(value.max())
            if lowest < 0 or highest >= rows:
                wrong = lowest if lowest < 0 else highest
                raise InputError(f"input {place!r} holds {wrong}, but its embedding has the rows 0 to {rows - 1}")


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
        the batch is left free, then nothing; `Traced.note` says so.

    Raises
    ------
    TraceError
        The model is in training mode, torch.export refuses it, or `output` names no float tensor.
    """
    training = [name or type(model).__name__ for name, module in _code(model) if module.training]
    if training:
        raise TraceError(
            f"{training[0]!r} is in training mode (with {len(training) - 1} more modules), where dropout and batch "
            "norm make the output random: call model.eval() first"
        )
    _check_loaded(model)
    values, options = tuple(args), _call_options(model, kwargs or {})
    if any(parameter.is_meta for parameter in model.parameters()):
        values, options = pytree.tree_map_only(Tensor, lambda leaf: leaf.to("meta"), (values, options))
    return _trace(model, values, options, output, dynamic)


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

    def __init__(self, model: nn.Module, output: str | int | None, record: Callable[[str], None]) -> None:
        super().__init__()
        self.model = model
        self.output = output
        # Export undoes changes of a module's own attributes.
        self.record = record

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        result = self.model(*args, **kwargs)
        name, tensor = _pick(result, self.output)
        self.record(name)
        return tensor


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


@contextlib.contextmanager
def ordinary_operators() -> Iterator[None]:
    """Trace without gradients, without the caller's autocast, and without the fused inference path of
    `nn.TransformerEncoder`, which is one opaque operator.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), own_types():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def _trace(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: str | int | None, dynamic: bool
) -> Traced:
    """The most dynamic trace that the exporter grants and that takes the example inputs."""
    picked: list[str] = []
    wrapper = _Explained(model, output, picked.append)
    wrapper.training = False
    refusal = ""
    for level in _LEVELS if dynamic else _LEVELS[-1:]:
        example = pytree.tree_map(_unmarked, (args, kwargs))
        example = example if level == "none" else _generic(example)
        shapes = None if level == "none" else pytree.tree_map(partial(_dims, level=level), example)
        try:
            program = export_program(wrapper, example, shapes)
        except TraceError:
            raise
        except Exception as error:  # the exporter raises many types; the last refusal is raised on
            refusal = refusal or _first_line(error)
            if level != "none":
                continue
            raise TraceError(
                f"torch.export refuses {type(model).__name__}: {_first_line(error)}. Check that the model runs on "
                "these inputs by itself, that its control flow does not depend on the values of tensors, and that "
                f"inputs which it fills in for itself (an attention mask, say) are given{_packed(model)}"
            ) from error
        traced = _copy(program, model, picked[-1], level, refusal)
        try:
            traced.input_values(args, kwargs)
        except InputError as error:
            # A size that was widened came back as a constant.
            refusal = refusal or _first_line(error)
            if level == "none":
                raise
            continue
        return traced
    raise AssertionError("the last level returns or raises")


def _packed(model: nn.Module) -> str:
    """What to know about a model whose weights are not plain floating-point parameters."""
    for path, module in model.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            if type(weight) is not nn.Parameter or not (weight.is_floating_point() or weight.is_complex()):
                return (
                    f". The {name} of {path or 'the model'!r} ({type(module).__name__}) is a {type(weight).__name__} "
                    f"of {weight.dtype}: where the code of such quantised weights cannot be exported, make them plain "
                    "ones first (model.dequantize() in transformers)"
                )
    return ""


_LEVELS: tuple[Dynamic, ...] = ("all", "batch", "none")


def _freedom(shapes: Mapping[str, tuple[int | str, ...]], bindings: Mapping[str, torch.dtype]) -> Dynamic:
    """What may change between calls, by the sizes that the exporter left open."""
    ranked = [(place, shape) for place, shape in shapes.items() if shape]
    if not any(isinstance(size, str) for _, shape in ranked for size in shape):
        return "none"
    ids = [shape[1] for place, shape in ranked if len(shape) > 1 and not bindings[place].is_floating_point]
    return "batch" if ids and not any(isinstance(size, str) for size in ids) else "all"


def export_program(module: nn.Module, args: tuple[Any, ...], shapes: Any = None) -> torch.export.ExportedProgram:
    """The functional graph of ATen operators of a module on example arguments."""
    # The exporter sets flags on tensors like the weights; on what was made in inference mode it may do so only there.
    made_there = any(parameter.is_inference() for parameter in module.parameters())
    with ordinary_operators(), torch.inference_mode(made_there), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        return on_one_chunk(
            lambda: torch.export.export(module, args, dynamic_shapes=shapes, strict=False).run_decompositions({})
        )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def _unmarked(leaf: Any) -> Any:
    """A tensor as an object of its own: an export that fails leaves marks on its examples, which the next one heeds."""
    return leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf


def _generic(example: Any) -> Any:
    """Repeat examples of batch or length 1: the exporter takes sizes 0 and 1 for constants of the program."""
    tensors = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor) and leaf.dim() > 0]
    lone_batch = bool(tensors) and all(tensor.shape[0] == 1 for tensor in tensors)
    short = all(tensor.shape[1] == 1 for tensor in tensors if tensor.dim() > 1 and not tensor.is_floating_point())

    def widen(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0:
            return leaf
        if lone_batch:
            leaf = torch.cat([leaf, leaf])
        if short and leaf.dim() > 1 and not leaf.is_floating_point():
            leaf = torch.cat([leaf, leaf], dim=1)
        return leaf

    return pytree.tree_map(widen, example)


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


def _copy(program: torch.export.ExportedProgram, model: nn.Module, picked: str, asked: Dynamic, refusal: str) -> Traced:
    signature = program.graph_signature
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    bindings: dict[str, Binding] = {}
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, tuple[int | str, ...]] = {}
    defaults: dict[str, Any] = {}
    names: dict[str, str] = {}
    assert program.call_spec.in_spec is not None
    positional = _positional(model)
    places = iter(_spec_places(program, positional))
    specs = {spec.arg.name: spec for spec in signature.input_specs if hasattr(spec.arg, "name")}
    result = next(node for node in program.graph.nodes if node.op == "output").args[0][-1]
    if not isinstance(result, fx.Node):
        raise TraceError(f"the output {picked!r} is the constant {result!r}, not a tensor that the inputs change")
    live = _ancestors(result)
    for node in live:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise TraceError(
                f"{_module_path(node) or 'the model'} holds the control-flow operator {node.target}, which cannot be "
                "analysed: replace it by ordinary operators"
            )
    for node in program.graph.nodes:
        if node.op == "output" or (node not in live and node.op != "placeholder"):
            continue
        if node.op not in ("placeholder", "call_function"):
            raise TraceError(
                f"the traced graph holds the node {node.name!r} of kind {node.op!r} ({node.target}), which "
                f"cannot be analysed"
            )
        if node.op == "placeholder":
            spec = specs[node.name]
            kind = _BINDING_KINDS[spec.kind.name]
            if kind == "input":
                place = next(places)
                value = node.meta.get("val")
                if not isinstance(value, Tensor):
                    defaults[place] = getattr(spec.arg, "value", value)
                    continue
                bindings[node.name] = Binding("input", place)
                _name_sizes(value, place, names)
                shapes[place] = _shape(value, names)
            else:
                if node not in live:
                    continue
                assert spec.target is not None
                name, tensor = bound_tensor(program, model, spec.target, "model.")
                bindings[node.name] = Binding(kind, name)
                tensors[name] = tensor
        new = graph.node_copy(node, copied.__getitem__)
        new.name = node.name
        new.meta = _light(node, names)
        copied[node] = new
    graph.output(copied[result])
    graph_passes.normalise(graph)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    graph.lint()
    types = _module_types(program)
    dtypes = {bindings[node.name].name: node.meta["dtype"] for node in graph.find_nodes(op="placeholder")}
    granted = _freedom(shapes, dtypes)
    level: Dynamic = granted if _LEVELS.index(granted) > _LEVELS.index(asked) else asked
    note = ""
    if refusal and level != "all":
        kept = "only the batch size may change" if level == "batch" else "input shapes are fixed to the traced ones"
        note = f"torch.export refused dynamic sizes ({refusal}), so {kept}"
    elif asked == "all" and level != "all":
        note = "the model's code takes some sizes for constants, so they are fixed to the traced ones"
    return Traced(
        graph, bindings, Weights(tensors, _owners(model)), defaults, shapes, positional, types, picked, level, note
    )


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
    if isinstance(model, _Function):
        return {f"modules_read.{index}": module for index, module in enumerate(model.modules_read)}
    return {"": model}


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
    texts = (re.sub(r"[A-Za-z_]\w*", lambda match: names.get(match[0], match[0]), str(size)) for size in value.shape)
    return tuple(int(text) if text.isdigit() else text for text in texts)


def _places(args: Sequence[Any], kwargs: Mapping[str, Any], positional: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Leaves of a call's arguments, each with its place: `input_ids`, `past.0.key`."""
    leaves, _ = pytree.tree_flatten_with_path((tuple(args), dict(kwargs)))
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
    if isinstance(model, _Function):
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


def wrap_function(function: Any) -> nn.Module:
    """What can be traced as a module: a module as it is, an exported program as its module, a function as a module in
    evaluation mode.

    Raises `TraceError` for anything else, and for scripted code.
    """
    if isinstance(function, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        raise TraceError(
            f"{type(function).__name__} is TorchScript, which torch.export cannot read: pass the module or function "
            "that it was made from"
        )
    if isinstance(function, nn.Module):
        return function
    if isinstance(function, torch.export.ExportedProgram):
        return function.module()
    held = [] if _is_function(function) else [name for name, value in _attributes(function) if _is_module(value)]
    if held or not callable(function):
        instead = f"the module that it holds, its .{held[0]}" if held else "a torch.nn.Module or a function of tensors"
        raise TraceError(f"a {type(function).__name__} is neither a module nor a function of tensors: pass {instead}")
    return _Function(function)


def title(model: nn.Module) -> str:
    """What to call a model: its class, or the function that it stands for."""
    named = model.function[0] if isinstance(model, _Function) else type(model)
    return getattr(named, "__name__", type(named).__name__)


class _Function(nn.Module):
    """A function as a module that holds the modules it uses, so that the graph reads their own parameters."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.modules_read = nn.ModuleList(_modules_read(function))
        # In a tuple, so that a module is registered once.
        self.function = (function,)
        self.training = self.modules_read.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function[0](*args, **kwargs)


def _modules_read(function: Callable[..., Any]) -> list[nn.Module]:
    """The modules that a function reads: whose method it is, that its body names, or that are bound to its arguments;
    directly, in collections, and through functions of the same file.
    """
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    stack: list[Any] = [function]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if _is_module(value):
            found[id(value)] = value
        elif isinstance(value, partial):
            stack += [value.func, *value.args, *value.keywords.values()]
        elif inspect.ismethod(value):
            owner = value.__self__
            stack += [value.__func__, *([owner] if _is_module(owner) else (each for _, each in _attributes(owner)))]
        elif inspect.isfunction(value):
            body = inspect.unwrap(value)
            variables = inspect.getclosurevars(body)
            stack += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
            stack += variables.nonlocals.values()
            stack += (
                each
                for each in variables.globals.values()
                if not inspect.isfunction(each) or each.__module__ == body.__module__
            )
        elif isinstance(value, list | tuple):
            stack += value
        elif isinstance(value, dict):
            stack += value.values()
    return list(found.values())


def _is_module(value: Any) -> bool:
    return isinstance(value, nn.Module)


def _is_function(value: Any) -> bool:
    return inspect.isroutine(value) or isinstance(value, partial | torch._ops.OpOverload | torch._ops.OpOverloadPacket)


def _attributes(value: Any) -> Iterable[tuple[str, Any]]:
    return getattr(value, "__dict__", {}).items()
