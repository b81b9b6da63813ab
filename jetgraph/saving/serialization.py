"""Traced graphs as JSON, and back; and their weights as safetensors can hold them.

What comes back is checked against itself: nodes are read in order and may use only earlier ones, calls are those that
`jetgraph.saving.targets` lists, with arguments that they have, each placeholder is bound to an input or a weight, and
each weight is of the shape and type that its placeholder says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor, fx

from jetgraph.algebra.sizes import names
from jetgraph.errors import FileError, InputError
from jetgraph.files.stored import Stored
from jetgraph.saving.nodes import (
    DEEPEST,
    graph_from_json,
    node_to_json,
    shape_from_json,
    size_from_json,
    value_from_json,
    value_to_json,
)
from jetgraph.tracing.decisions import Decisions
from jetgraph.tracing.traced import Binding, Dynamic, Traced


def traced_to_json(traced: Traced, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The JSON form of a traced graph with these weights.

    Raises
    ------
    InputError
        An argument that has no JSON form, and a call that could not be read again.
    """
    described = {
        "output_name": traced.output_name,
        "dynamic": traced.dynamic,
        "note": traced.note,
        "guards": list(traced.guards),
        "defaults": value_to_json(dict(traced.defaults), "the inputs"),
        "input_shapes": {place: list(shape) for place, shape in traced.input_shapes.items()},
        "positional": list(traced.positional),
        "module_types": dict(traced.module_types),
        "bindings": {node: [binding.kind, binding.name] for node, binding in traced.bindings.items()},
        "parameters": {
            name: tensor.requires_grad for name, tensor in tensors.items() if isinstance(tensor, torch.nn.Parameter)
        },
        "nodes": [node_to_json(node, traced, tensors) for node in traced.graph.nodes],
    }
    if traced.decisions is not None:
        described["decisions"] = _decisions_to_json(traced.decisions, traced, tensors)
    return described


def traced_from_json(described: Stored, tensors: Mapping[str, Tensor]) -> Traced:
    """The traced graph that a file describes, with the weights of another.

    Raises
    ------
    FileError
        A value that is not what it should be, with its place, and where graph and weights do not fit together.
    """
    fields = described.members()
    shapes = {place: shape_from_json(shape) for place, shape in fields["input_shapes"].members().items()}
    bindings = {node: _binding(pair) for node, pair in fields["bindings"].members().items()}
    graph = graph_from_json(fields["nodes"])
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
        decisions=_decisions(fields["decisions"], bindings) if "decisions" in fields else None,
    )


# Conditions on values


def _decisions_to_json(decisions: Decisions, traced: Traced, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Its placeholders are the trace's, which know their types."""
    placeholders = {node.name: node for node in traced.graph.find_nodes(op="placeholder")}
    nodes = [placeholders.get(node.name, node) for node in decisions.graph.nodes]
    return {
        "nodes": [node_to_json(node, traced, tensors) for node in nodes],
        "answers": value_to_json(list(decisions.answers), "the conditions on values"),
        "places": list(decisions.lines),
    }


def _decisions(stored: Stored, bindings: Mapping[str, Binding]) -> Decisions:
    """A graph over placeholders of the trace, with an answer and a line of code for each of its results."""
    fields = stored.fields("nodes", "answers", "places")
    graph = graph_from_json(fields["nodes"], several=True)
    answers = tuple(_answer(answer) for answer in fields["answers"].items())
    lines = tuple(line.text() for line in fields["places"].items())
    (results,) = graph.output_node().args
    assert isinstance(results, list | tuple)
    if not len(results) == len(answers) == len(lines):
        raise stored.damage("whose results, answers and places are not of one number")
    if any(node.name not in bindings for node in graph.find_nodes(op="placeholder")):
        raise fields["nodes"].damage("which read what the trace has not")
    return Decisions(graph, answers, lines)


def _answer(stored: Stored, depth: int = 0) -> Any:
    """A whole number, true or false, or a list of such."""
    if depth > DEEPEST:
        raise stored.damage("which is nested too deeply")
    if isinstance(stored.value, list):
        return [_answer(item, depth + 1) for item in stored.items()]
    return stored.value if isinstance(stored.value, bool) else stored.integer()


# Inputs and weights


def _defaults(stored: Stored) -> dict[str, Any]:
    values = value_from_json(stored, {})
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
    fields = described.members()
    stored = fields["bindings"]
    absent = {name.text() for name in fields["absent"].items()} - tensors.keys() if "absent" in fields else set()
    inputs: list[str] = []
    weights: dict[str, Tensor] = {}
    placeholders = graph.find_nodes(op="placeholder")
    if bindings.keys() != {node.name for node in placeholders}:
        raise stored.damage("which are not those of the graph's placeholders")
    for node in placeholders:
        name = bindings[node.name].name
        if bindings[node.name].kind != "input":
            weights[name] = _nowhere(node) if name in absent else _fitting(name, node, tensors, described)
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


def _nowhere(node: fx.Node) -> Tensor:
    """A weight without values."""
    return torch.empty(node.meta["shape"], dtype=node.meta["dtype"], device="meta")


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
    tensors = dict(weights)
    for name, (stored, trained) in chosen.items():
        if name not in weights:
            raise stored.damage("which is of no weight")
        tensor = weights[name]
        real = tensor.is_floating_point() or tensor.is_complex()
        tensors[name] = torch.nn.Parameter(tensor, requires_grad=trained and real)
    return tensors


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

    Raises
    ------
    InputError
        What is no plain tensor, such as a sparse, a quantised or a lazily conjugated one.
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


def _guard(stored: Stored, shapes: Mapping[str, tuple[int | str, ...]]) -> str:
    """A condition on sizes that the inputs name."""
    known = {size for shape in shapes.values() for size in shape if isinstance(size, str)}
    text = stored.text()
    if not isinstance(size_from_json(stored), str) or not set(names(text)) <= known:
        raise stored.damage("which reads sizes that no input has")
    return text
