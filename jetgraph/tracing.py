"""Model and example inputs → one canonical `torch.fx` graph.

`torch.export` gives a functional graph of ATen operators that keeps linear, layer_norm, gelu and attention whole. It
is copied into a plain `torch.fx.Graph` that holds only what the explained output needs, with light metadata on every
node (`module_path`, `dtype`, `shape`) in place of fake tensors, so that later stages, and the file format, depend on
nothing else of the exporter.

The traced graph shares the model's parameters; nothing is copied and the model is not modified.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import operator
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
from jetgraph.errors import InputError, TraceError
from jetgraph.frames import on_one_chunk

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

    @property
    def output(self) -> fx.Node:
        """The node whose value is the explained output."""
        result = self.graph.output_node().args[0]
        assert isinstance(result, fx.Node)
        return result

    @property
    def meta(self) -> bool:
        """The weights are on the `meta` device: structure only, no values."""
        return any(tensor.is_meta for tensor in self.tensors.values())

    def state_values(self) -> dict[fx.Node, Any]:
        """Values of the placeholders that are no inputs."""
        return {
            node: self.tensors[binding.name]
            for node in self.graph.find_nodes(op="placeholder")
            if (binding := self.bindings[node.name]).kind != "input"
        }

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
        old, new = _place_of(self.tensors.values()), _place_of(moved.values())
        if old == new:
            return self

        def swap(value: Any) -> Any:
            if isinstance(value, torch.device):
                return new[0]
            return new[1] if isinstance(value, torch.dtype) and value == old[1] else value

        graph = fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            copy = graph.node_copy(node, copied.__getitem__)
            copy.args, copy.kwargs = pytree.tree_map(swap, (copy.args, copy.kwargs))
            copy.meta = {key: swap(value) for key, value in node.meta.items()}
            copied[node] = copy
        return dataclasses.replace(self, graph=graph, tensors=moved)

    def _signature(self) -> str:
        parts = [f"{place}[{', '.join(map(str, shape))}]" for place, shape in self.input_shapes.items()]
        return ", ".join(parts + [f"{place}={value!r}" for place, value in self.defaults.items()])

    def _check(self, place: str, node: fx.Node, value: Any) -> None:
        shape = self.input_shapes[place]
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            raise InputError(f"input {place!r} is a {type(value).__name__}, not a tensor as in the trace")
        if not _type_fits(value, node):
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


def _type_fits(value: Tensor, node: fx.Node) -> bool:
    """An input's type is the trace's; integers may be of another width, but for ids, and a float may be one that the
    model casts itself.
    """
    given, traced = value.dtype, node.meta["dtype"]
    if given == traced:
        return True
    if value.layout is not torch.strided or torch.bool in (given, traced) or given.is_complex or traced.is_complex:
        return False
    if given.is_floating_point != traced.is_floating_point:
        return False
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
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise TraceError(
            f"{training[0]!r} is in training mode (with {len(training) - 1} more modules), where dropout and batch "
            "norm make the output random: call model.eval() first"
        )
    values, options = tuple(args), _call_options(model, kwargs or {})
    if any(parameter.is_meta for parameter in model.parameters()):
        values, options = pytree.tree_map_only(Tensor, lambda leaf: leaf.to("meta"), (values, options))
    return _trace(model, values, options, output, dynamic)


def run_model(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: str | int | None) -> Tensor:
    """The explained output of the model itself, computed with the operators that the graph has."""
    with ordinary_operators():
        return _pick(model(*args, **_call_options(model, kwargs)), output)[1]


def _call_options(model: nn.Module, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The call's options, without a cache of keys and values where the model would keep one."""
    cached = "use_cache" in inspect.signature(model.forward).parameters
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
    """Trace without gradients, and without the fused inference path of `nn.TransformerEncoder`, which is one
    opaque operator.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
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
                "inputs which it fills in for itself (an attention mask, say) are given"
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
    with ordinary_operators(), warnings.catch_warnings():
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


# Copying the exporter's graph


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
                name = spec.target.removeprefix("model.")
                bindings[node.name] = Binding(kind, name)
                tensors[name] = _tensor(program, model, spec.target, kind)
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
    return Traced(graph, bindings, tensors, defaults, shapes, positional, types, picked, level, note)


_BINDING_KINDS: dict[str, Literal["parameter", "buffer", "constant", "input"]] = {
    "PARAMETER": "parameter",
    "BUFFER": "buffer",
    "CONSTANT_TENSOR": "constant",
    "USER_INPUT": "input",
}


def _tensor(program: torch.export.ExportedProgram, model: nn.Module, target: str, kind: str) -> Tensor:
    """The model's own parameter or buffer; a constant lifted from its code otherwise."""
    if kind == "constant":
        constant = program.constants[target]
        assert isinstance(constant, Tensor)
        return constant
    return operator.attrgetter(target.removeprefix("model."))(model)


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
    parameters = inspect.signature(model.forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def _spec_places(program: torch.export.ExportedProgram, positional: Sequence[str]) -> list[str]:
    spec = program.call_spec.in_spec
    assert spec is not None
    skeleton = pytree.tree_unflatten([object()] * spec.num_leaves, spec)
    (args, kwargs), _ = skeleton
    return [place for place, _ in _places(args, kwargs, positional)]


def _place_of(tensors: Iterable[Tensor]) -> tuple[torch.device | None, torch.dtype | None]:
    """The device, and the floating-point type of most elements."""
    elements: dict[torch.dtype, int] = {}
    device = None
    for tensor in tensors:
        device = device or tensor.device
        if tensor.is_floating_point():
            elements[tensor.dtype] = elements.get(tensor.dtype, 0) + tensor.numel()
    return device, max(elements, key=elements.__getitem__, default=None)


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and not isinstance(one, Tensor) and one == other)


def wrap_function(function: Callable[..., Any]) -> nn.Module:
    """A callable as a module in evaluation mode, so that it can be traced; a module is returned as it is."""
    return function if isinstance(function, nn.Module) else _Function(function)


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
    """The module whose method it is, or the modules that its body names."""
    owner = getattr(function, "__self__", None)
    body = inspect.unwrap(getattr(function, "__func__", function))
    named: list[Any] = [owner]
    if inspect.isfunction(body):
        variables = inspect.getclosurevars(body)
        named += [*variables.nonlocals.values(), *variables.globals.values()]
    return [value for value in named if isinstance(value, nn.Module)]
