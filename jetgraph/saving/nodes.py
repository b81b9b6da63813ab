"""Nodes of a graph as JSON, and back, with the values that are arguments of calls."""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from jetgraph.algebra.sizes import names
from jetgraph.errors import InputError, JetGraphError, SizeError
from jetgraph.files.stored import LARGEST, Stored
from jetgraph.jets.registry import argument_names
from jetgraph.saving.targets import target_of, target_text
from jetgraph.tracing.traced import Traced

DEEPEST = 32
"""Arguments inside each other."""


def node_to_json(node: fx.Node, traced: Traced, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """A node of a trace with these weights."""
    where = f"{node.name} in {node.meta.get('module_path') or 'the model'}"
    row = {
        "name": node.name,
        "op": node.op,
        "target": node.target if isinstance(node.target, str) else target_text(node.target),
        "args": value_to_json(list(node.args), where),
        "kwargs": value_to_json(dict(node.kwargs), where),
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


def graph_from_json(stored: Stored, *, several: bool = False) -> fx.Graph:
    """The graph of these nodes, with one tensor as its output, or with a list of tensors."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    rows = list(stored.items())
    for row in rows:
        fields = row.fields("name", "op", "target", "args", "kwargs", "module_path", optional=("dtype", "shape"))
        op = fields["op"].choice(("placeholder", "call_function", "output"))
        if op == "output":
            if row.value is not rows[-1].value:
                raise row.damage("and not at the end of a graph")
            _output(row, fields, graph, nodes, several)
            return graph
        name = fields["name"].name()
        if name in nodes or keyword.iskeyword(name):
            raise fields["name"].damage("which is taken")
        args, kwargs = (value_from_json(fields[part], nodes) for part in ("args", "kwargs"))
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise row.damage("whose arguments are no list and no dict")
        target = _target(fields, args, kwargs)
        node = graph.create_node(op, target, tuple(args), kwargs, name)
        node.name = name
        node.meta = {"module_path": fields["module_path"].text()}
        if ("dtype" in fields) != ("shape" in fields) or (op == "placeholder" and "dtype" not in fields):
            raise row.damage("which lacks a dtype or a shape")
        if "dtype" in fields:
            node.meta |= {"dtype": _constant("dtype", fields["dtype"]), "shape": shape_from_json(fields["shape"])}
        nodes[name] = node
    raise stored.damage("which has no output")


def _output(
    row: Stored, fields: Mapping[str, Stored], graph: fx.Graph, nodes: Mapping[str, fx.Node], several: bool
) -> None:
    result = value_from_json(fields["args"], nodes)
    if several and isinstance(result, list) and len(result) == 1 and isinstance(result[0], list):
        if not all(isinstance(node, fx.Node) for node in result[0]):
            raise row.damage("and gives other things than values")
        graph.output(result[0])
        return
    if several or not isinstance(result, list) or len(result) != 1 or not isinstance(result[0], fx.Node):
        raise row.damage("and not the output of such a graph")
    if "dtype" not in result[0].meta:
        raise row.damage("and gives no tensor")
    graph.output(result[0])


def _target(fields: Mapping[str, Stored], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
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
        return all(_fits(item, inner) for item in value) if isinstance(value, list) else _fits(value, inner)
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


# Values


def shape_from_json(stored: Stored) -> tuple[int | str, ...]:
    """Sizes, each of which may be a formula."""
    return tuple(size_from_json(size) for size in stored.items())


def size_from_json(stored: Stored) -> int | str:
    """A size, or a formula of sizes."""
    if not isinstance(stored.value, str):
        return stored.integer(0)
    try:
        names(stored.value)
    except SizeError as error:
        raise stored.damage(f"but {error}") from error
    return stored.value


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


def value_to_json(value: Any, where: str) -> Any:
    """An argument of a call.

    Raises
    ------
    InputError
        One that has no JSON form, with where it was seen.
    """
    if value is None or isinstance(value, (bool, str)) or (isinstance(value, int) and abs(value) <= LARGEST):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, complex):
        return {"complex": [value_to_json(value.real, where), value_to_json(value.imag, where)]}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return [value_to_json(item, where) for item in value]
    if isinstance(value, Mapping):
        return {"dict": {str(key): value_to_json(item, where) for key, item in value.items()}}
    if isinstance(value, slice):
        return {"slice": [value_to_json(item, where) for item in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for tag, (kind, _) in _CONSTANTS.items():
        if isinstance(value, kind):
            return {tag: str(value)}
    raise InputError(f"the argument {value!r} ({type(value).__name__}) of {where} has no JSON form")


def value_from_json(stored: Stored, nodes: Mapping[str, fx.Node], depth: int = 0) -> Any:
    """An argument of a call that may read these nodes.

    Sequences are lists, as the exporter writes them: a graph that was read has the text of the one that was written.
    """
    value = stored.value
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)):
        return stored.number()
    if depth > DEEPEST:
        raise stored.damage("which is nested too deeply")
    if isinstance(value, list):
        return [value_from_json(item, nodes, depth + 1) for item in stored.items()]
    members = stored.members()
    if len(members) != 1 or (tag := next(iter(members))) not in _TAGS:
        raise stored.damage("which is no argument")
    return _TAGS[tag](members[tag], nodes, depth + 1)


def _node(stored: Stored, nodes: Mapping[str, fx.Node], depth: int) -> fx.Node:
    if stored.text() not in nodes:
        raise stored.damage("which is no node before it")
    return nodes[stored.text()]


def _dict(stored: Stored, nodes: Mapping[str, fx.Node], depth: int) -> dict[str, Any]:
    return {key: value_from_json(item, nodes, depth) for key, item in stored.members().items()}


def _slice(stored: Stored, nodes: Mapping[str, fx.Node], depth: int) -> slice:
    ends = [value_from_json(item, nodes, depth) for item in stored.items()]
    if len(ends) != 3:
        raise stored.damage("which is no slice")
    return slice(*ends)


def _complex(stored: Stored, nodes: Mapping[str, fx.Node], depth: int) -> complex:
    parts = [value_from_json(item, {}, depth) for item in stored.items()]
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
