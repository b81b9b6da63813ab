"""Traced graphs as JSON, and back; and their weights as safetensors can hold them.

What comes back is checked against itself: nodes are read in order and may use only earlier ones, calls are those that
`jetgraph.saving.targets` lists, with arguments that they have, each placeholder is bound to an input or a weight, and
each weight is of the shape and type that its placeholder says.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch
from torch import Tensor, fx

from jetgraph.algebra.sizes import names
from jetgraph.errors import FileError, InputError, JetGraphError, SizeError
from jetgraph.files.stored import LARGEST, Stored
from jetgraph.jets.registry import argument_names
from jetgraph.saving.targets import target_of, target_text
from jetgraph.tracing.trace import Binding, Dynamic, Traced

DEEPEST = 32
"""Arguments inside each other."""


def traced_to_json(traced: Traced, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The JSON form of a traced graph with these weights.

    Raises `InputError` for an argument that has no JSON form, for a call that could not be read again, and for a trace
    that holds for some values of its inputs only.
    """
    if traced.decisions is not None:
        raise InputError(
            f"this graph cannot be saved: {traced.decisions}. Save the model, and trace it where it is read"
        )
    return {
        "output_name": traced.output_name,
        "dynamic": traced.dynamic,
        "note": traced.note,
        "guards": list(traced.guards),
        "defaults": _to_json(dict(traced.defaults), "the inputs"),
        "input_shapes": {place: list(shape) for place, shape in traced.input_shapes.items()},
        "positional": list(traced.positional),
        "module_types": dict(traced.module_types),
        "bindings": {node: [binding.kind, binding.name] for node, binding in traced.bindings.items()},
        "parameters": {
            name: tensor.requires_grad for name, tensor in tensors.items() if isinstance(tensor, torch.nn.Parameter)
        },
        "nodes": [_node_to_json(node, traced, tensors) for node in traced.graph.nodes],
    }


def traced_from_json(described: Stored, tensors: Mapping[str, Tensor]) -> Traced:
    """The traced graph that a file describes, with the weights of another.

    Raises `FileError` for a value that is not what it should be, with its place, and where graph and weights do
    not fit together.
    """
    fields = described.members()
    shapes = {place: _shape(shape) for place, shape in fields["input_shapes"].members().items()}
    bindings = {node: _binding(pair) for node, pair in fields["bindings"].members().items()}
    graph = _graph(fields["nodes"])
    weights = _bound(described, graph, bindings, shapes, tensors)
    dynamic: Any = fields["dynamic"].choice(get_args(Dynamic))
    return Traced(
        graph=graph,
        bindings=bindings,
        tensors=_with_parameters(fields, weights),
        defaults=_defaults(fields["defaults"]),
        input_shapes=shapes,
        positional=tuple(name.text() for name in fields["positional"].items()),
        module_types={path: kind.text() for path, kind in fields["module_types"].members().items()},
        output_name=fields["output_name"].text(),
        dynamic=dynamic,
        note=fields["note"].text(),
        guards=tuple(_guard(guard, shapes) for guard in fields["guards"].items()) if "guards" in fields else (),
    )


# Nodes


def _node_to_json(node: fx.Node, traced: Traced, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    where = f"{node.name} in {node.meta.get('module_path') or 'the model'}"
    row = {
        "name": node.name,
        "op": node.op,
        "target": node.target if isinstance(node.target, str) else target_text(node.target),
        "args": _to_json(list(node.args), where),
        "kwargs": _to_json(dict(node.kwargs), where),
        "module_path": node.meta.get("module_path", ""),
    }
    binding = traced.bindings.get(node.name)
    if binding is not None and binding.kind != "input":
        # As they are now: a model may have been cast since it was traced.
        tensor = tensors[binding.name]
        return row | {"dtype": str(tensor.dtype), "shape": list(tensor.shape)}
    if "dtype" in node.meta:
        row |= {"dtype": str(node.meta["dtype"]), "shape": list(node.meta["shape"])}
    return row


def _graph(stored: Stored) -> fx.Graph:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    rows = list(stored.items())
    for row in rows:
        fields = row.fields("name", "op", "target", "args", "kwargs", "module_path", optional=("dtype", "shape"))
        op = fields["op"].choice(("placeholder", "call_function", "output"))
        if op == "output":
            _output(row, fields, graph, nodes, last=row.value is rows[-1].value)
            return graph
        name = fields["name"].name()
        if name in nodes or keyword.iskeyword(name):
            raise fields["name"].damage("which is taken")
        args, kwargs = (_from_json(fields[part], nodes) for part in ("args", "kwargs"))
        if not isinstance(args, tuple) or not isinstance(kwargs, dict):
            raise row.damage("whose arguments are no list and no dict")
        target = _target(fields, args, kwargs)
        node = graph.create_node(op, target, args, kwargs, name)
        node.name = name
        node.meta = {"module_path": fields["module_path"].text()}
        if ("dtype" in fields) != ("shape" in fields) or (op == "placeholder" and "dtype" not in fields):
            raise row.damage("which lacks a dtype or a shape")
        if "dtype" in fields:
            node.meta |= {"dtype": _constant("dtype", fields["dtype"]), "shape": _shape(fields["shape"])}
        nodes[name] = node
    raise stored.damage("which has no output")


def _output(
    row: Stored, fields: Mapping[str, Stored], graph: fx.Graph, nodes: Mapping[str, fx.Node], last: bool
) -> None:
    result = _from_json(fields["args"], nodes)
    if not last or not isinstance(result, tuple) or len(result) != 1 or not isinstance(result[0], fx.Node):
        raise row.damage("and not the one output of a graph, at its end")
    if "dtype" not in result[0].meta:
        raise row.damage("and gives no tensor")
    graph.output(result[0])


def _target(fields: Mapping[str, Stored], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a node stands for or calls, with arguments that it has."""
    if fields["op"].value == "placeholder":
        if args or kwargs:
            raise fields["args"].damage("but a placeholder has no arguments")
        return fields["target"].name()
    try:
        target = target_of(fields["target"].text())
    except JetGraphError as error:
        raise fields["target"].damage(f"but {error}") from error
    known = argument_names(target)
    needed: list[str] = []
    if isinstance(target, torch._ops.OpOverload):
        declared = target._schema.arguments
        needed = [argument.name for argument in declared if not argument.has_default_value()]
        by_place = sum(not argument.kwarg_only for argument in declared)
    else:
        by_place = len(known)
    given = [*known[: len(args)], *kwargs]
    if len(args) > by_place or set(kwargs) - set(known) or len(set(given)) < len(given) or set(needed) - set(given):
        raise fields["args"].damage(f"which are not the arguments of {fields['target'].value}, {', '.join(known)}")
    if isinstance(target, torch._ops.OpOverload):
        bound = dict(zip(known, args, strict=False)) | dict(kwargs)
        for argument in target._schema.arguments:
            if argument.name in bound and not _fits(bound[argument.name], str(argument.type)):
                raise fields["args"].damage(f"of which {argument.name!r} is no {argument.type} for {target}")
    return target


def _fits(value: Any, kind: str) -> bool:
    """Whether an argument can be of a type of PyTorch's schemas; what a node gives is not known before it runs."""
    if kind.startswith("Optional["):
        return value is None or _fits(value, kind[9:-1])
    if kind.startswith("List["):
        # A list of numbers may be given as one, which stands for all.
        inner = kind[5:-1]
        return all(_fits(item, inner) for item in value) if isinstance(value, tuple) else _fits(value, inner)
    return isinstance(value, (fx.Node, *_PLAIN.get(kind, (object,))))


_PLAIN: dict[str, tuple[type, ...]] = {
    "Tensor": (int, float, complex),
    "number": (int, float, complex),
    # The types and layouts of tensors are numbers to a schema.
    "int": (int, torch.dtype, torch.layout, torch.memory_format),
    "float": (int, float),
    "complex": (int, float, complex),
    "bool": (bool,),
    "str": (str,),
    "Device": (torch.device,),
    "Generator": (),
}
"""By type of a schema: what is such a value as it stands. A number may stand for a tensor."""


# Inputs and weights


def _defaults(stored: Stored) -> dict[str, Any]:
    values = _from_json(stored, {})
    if not isinstance(values, dict):
        raise stored.damage("which are no inputs by name")
    return values


def _binding(stored: Stored) -> Binding:
    pair = list(stored.items())
    if len(pair) != 2:
        raise stored.damage("which is no kind and name")
    kind: Any = pair[0].choice(("parameter", "buffer", "constant", "input"))
    return Binding(kind, pair[1].text())


def _bound(
    described: Stored,
    graph: fx.Graph,
    bindings: Mapping[str, Binding],
    shapes: Mapping[str, tuple[int | str, ...]],
    tensors: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The weights by name; each placeholder has its weight or input, and nothing is left over."""
    stored = described.members()["bindings"]
    inputs: list[str] = []
    weights: dict[str, Tensor] = {}
    placeholders = graph.find_nodes(op="placeholder")
    if bindings.keys() != {node.name for node in placeholders}:
        raise stored.damage("which are not those of the graph's placeholders")
    for node in placeholders:
        name = bindings[node.name].name
        if bindings[node.name].kind != "input":
            weights[name] = _fitting(name, node, tensors, described)
            continue
        if node.meta["shape"] != shapes.get(name) or name in inputs:
            raise stored.damage(f"but the input {name!r} has no shape, another one, or two placeholders")
        inputs.append(name)
    unbound = [name for name in shapes if name not in inputs]
    left = [name for name in tensors if name not in weights]
    if unbound or left:
        raise FileError(
            f"{described.file} is damaged, or not of one save with its weights: "
            + (
                f"the input {unbound[0]!r} has no placeholder"
                if unbound
                else f"it does not name the weight {left[0]!r}"
            )
        )
    return weights


def _fitting(name: str, node: fx.Node, tensors: Mapping[str, Tensor], described: Stored) -> Tensor:
    """The weight of a placeholder, of the placeholder's type and shape."""
    if name not in tensors:
        missing = "the weights lack"
    else:
        dtype, shape, tensor = node.meta["dtype"], node.meta["shape"], tensors[name]
        if dtype.is_complex and not tensor.is_complex() and tensor.shape[-1:] == (2,):
            tensor = torch.view_as_complex(tensor.clone()) if tensor.dtype in _PAIRS else tensor
        elif tensor.dtype == torch.uint8 and dtype not in _HELD and dtype.itemsize == 1:
            tensor = tensor.view(dtype)
        if tensor.dtype == dtype and tuple(tensor.shape) == shape:
            return tensor
        missing = f"the weights have {tensor.dtype} {list(tensor.shape)} where it has {dtype} {list(shape)} for"
    raise FileError(f"{described.file} is damaged, or not of one save with its weights: {missing} {name!r}")


def _with_parameters(fields: Mapping[str, Stored], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with those as parameters that were; only numbers with a derivative can want one."""
    if "trainable" in fields:
        # Format 1, in which all parameters want a gradient.
        chosen = {name.text(): (name, True) for name in fields["trainable"].items()}
    else:
        chosen = {name: (stored, stored.flag()) for name, stored in fields["parameters"].members().items()}
    found = dict(weights)
    for name, (stored, trained) in chosen.items():
        if name not in weights:
            raise stored.damage("which is of no weight")
        tensor = weights[name]
        real = tensor.is_floating_point() or tensor.is_complex()
        found[name] = torch.nn.Parameter(tensor, requires_grad=trained and real)
    return found


_HELD = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
        *(torch.uint64, torch.uint32, torch.uint16),
    }
)
"""Types that every safetensors of the supported versions holds."""
_PAIRS = frozenset({torch.float64, torch.float32, torch.float16})


def held_tensor(name: str, tensor: Tensor) -> Tensor:
    """A weight as safetensors holds it: contiguous; complex numbers as pairs, other types of one byte as bytes.

    Raises `InputError` for what is no plain tensor, such as a sparse, a quantised or a lazily conjugated one.
    """
    value = tensor.detach().cpu()
    lazy = "conjugated " if value.is_conj() else "negated " if value.is_neg() else ""
    if type(value) is not Tensor or value.layout != torch.strided or value.is_quantized or lazy:
        kind = type(value).__name__ if type(value) is not Tensor else f"{lazy}{value.layout} {value.dtype}"
        raise InputError(f"the weight {name!r} is a {kind}, and only plain tensors can be saved: convert it first")
    value = value.contiguous()
    if value.is_complex():
        return torch.view_as_real(value)
    if value.dtype in _HELD:
        return value
    if value.dtype.itemsize == 1:
        return value.view(torch.uint8)
    raise InputError(f"the weight {name!r} is of {value.dtype}, which cannot be saved: convert it first")


# Values


def _shape(stored: Stored) -> tuple[int | str, ...]:
    return tuple(_size(size) for size in stored.items())


def _size(stored: Stored) -> int | str:
    """A size, or a formula of sizes."""
    if not isinstance(stored.value, str):
        return stored.integer(0)
    try:
        names(stored.value)
    except SizeError as error:
        raise stored.damage(f"but {error}") from error
    return stored.value


def _guard(stored: Stored, shapes: Mapping[str, tuple[int | str, ...]]) -> str:
    """A condition on sizes that the inputs name."""
    known = {size for shape in shapes.values() for size in shape if isinstance(size, str)}
    text = stored.text()
    if not isinstance(_size(stored), str) or not set(names(text)) <= known:
        raise stored.damage("which reads sizes that no input has")
    return text


_CONSTANTS: dict[str, tuple[type, dict[str, Any]]] = {
    tag: (kind, {str(value): value for value in vars(torch).values() if isinstance(value, kind)})
    for tag, kind in (("dtype", torch.dtype), ("layout", torch.layout), ("memory_format", torch.memory_format))
}
"""By tag: the constants of PyTorch that an argument may be, by their texts."""


def _constant(tag: str, stored: Stored) -> Any:
    known = _CONSTANTS[tag][1]
    if not isinstance(stored.value, str) or stored.value not in known:
        raise stored.damage(f"which is no {tag.replace('_', ' ')} of PyTorch")
    return known[stored.value]


def _to_json(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, str)) or (isinstance(value, int) and abs(value) <= LARGEST):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, complex):
        return {"complex": [_to_json(value.real, where), _to_json(value.imag, where)]}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return [_to_json(item, where) for item in value]
    if isinstance(value, Mapping):
        return {"dict": {str(key): _to_json(item, where) for key, item in value.items()}}
    if isinstance(value, slice):
        return {"slice": [_to_json(item, where) for item in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for tag, (kind, _) in _CONSTANTS.items():
        if isinstance(value, kind):
            return {tag: str(value)}
    raise InputError(f"the argument {value!r} ({type(value).__name__}) of {where} has no JSON form")


def _from_json(stored: Stored, nodes: Mapping[str, fx.Node], depth: int = 0) -> Any:
    value = stored.value
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)):
        return stored.number()
    if depth > DEEPEST:
        raise stored.damage("which is nested too deeply")
    if isinstance(value, list):
        return tuple(_from_json(item, nodes, depth + 1) for item in stored.items())
    members = stored.members()
    if len(members) != 1 or (tag := next(iter(members))) not in _TAGS:
        raise stored.damage("which is no argument")
    return _TAGS[tag](members[tag], nodes, depth + 1)


def _node(stored: Stored, nodes: Mapping[str, fx.Node], depth: int) -> fx.Node:
    if stored.text() not in nodes:
        raise stored.damage("which is no node before it")
    return nodes[stored.text()]


def _dict(stored: Stored, nodes: Mapping[str, fx.Node], depth: int) -> dict[str, Any]:
    return {key: _from_json(item, nodes, depth) for key, item in stored.members().items()}


def _slice(stored: Stored, nodes: Mapping[str, fx.Node], depth: int) -> slice:
    ends = [_from_json(item, nodes, depth) for item in stored.items()]
    if len(ends) != 3:
        raise stored.damage("which is no slice")
    return slice(*ends)


def _complex(stored: Stored, nodes: Mapping[str, fx.Node], depth: int) -> complex:
    parts = [_from_json(item, {}, depth) for item in stored.items()]
    if len(parts) != 2 or not all(type(part) in (int, float) for part in parts):
        raise stored.damage("which is no complex number")
    return complex(*parts)


def _device(stored: Stored, nodes: Mapping[str, fx.Node], depth: int) -> torch.device:
    # Where the weights are loaded to, wherever the trace was made.
    stored.text()
    return torch.device("cpu")


_TAGS: dict[str, Callable[[Stored, Mapping[str, fx.Node], int], Any]] = {
    "node": _node,
    "dict": _dict,
    "slice": _slice,
    "complex": _complex,
    "device": _device,
    "float": lambda stored, nodes, depth: float(stored.choice(("inf", "-inf", "nan"))),
    **{tag: lambda stored, nodes, depth, tag=tag: _constant(tag, stored) for tag in _CONSTANTS},
}
"""How an argument that is no plain value is read, by the one name of its object."""
