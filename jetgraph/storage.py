"""Files of residual graphs and compiled paths: JSON for what they are, safetensors for their weights, never pickle.

A folder holds

    graph.json           the traced graph: nodes, arguments, metadata, bindings
    paths.json           for compiled paths: the recipe, the rule at each site, and the paths' texts
    weights.safetensors  the tensors by name

Structure is not stored: it is found again in the graph.
"""

from __future__ import annotations

import json
import math
import operator
import os
from collections.abc import Callable, Mapping
from pathlib import Path as File
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, fx

from jetgraph.compilation import PathModule
from jetgraph.errors import JetGraphError, check, quoted
from jetgraph.expansion import Expansion, expand
from jetgraph.files import is_file, make_folder, write_atomically
from jetgraph.program import Atom, Distribute, Freeze, Jet, Path, Rule, Split
from jetgraph.residual import ResidualGraph
from jetgraph.tracing import Binding, Traced

VERSION = 1
GRAPH, PATHS, WEIGHTS = "graph.json", "paths.json", "weights.safetensors"


def save(value: ResidualGraph | PathModule, folder: str | os.PathLike[str]) -> File:
    """Write a residual graph or compiled paths into a folder, and return it.

    The folder is made if need be. Each file is replaced only once its new version is complete.

    Raises
    ------
    JetGraphError
        The value is of another type, the graph is on `meta`, or it holds an argument that has no JSON form.
    """
    if isinstance(value, PathModule):
        graph, tensors = value.expansion.graph, value.tensors()
        paths = _paths_to_json(value)
    elif isinstance(value, ResidualGraph):
        graph, tensors, paths = value, dict(value.traced.tensors), None
    else:
        raise JetGraphError(f"only residual graphs and compiled paths can be saved, not {type(value).__name__}")
    check(save, locals())
    if graph.traced.meta:
        raise JetGraphError("the graph was traced on the meta device: there are no weights to save")
    target = make_folder(folder)
    if paths is not None:
        _write_json(target / PATHS, paths)
    _write_json(
        target / GRAPH,
        {
            "version": VERSION,
            "title": graph.title,
            "parts": _parts_to_json(graph.parts),
            **_traced_to_json(graph.traced),
        },
    )
    write_atomically(target / WEIGHTS, lambda file: save_file(_separate(tensors), file))
    return target


def load(folder: str | os.PathLike[str]) -> ResidualGraph | PathModule:
    """Read back what `save` wrote: a `PathModule` where the folder holds paths, else a `ResidualGraph`.

    Raises
    ------
    JetGraphError
        A file is missing, damaged, or of a newer version of the format.
    """
    check(load, locals())
    source = File(folder)
    if not is_file(source / GRAPH):
        raise JetGraphError(f"{quoted(str(source))} holds no saved graph: there is no {GRAPH} in it")
    described = _read_json(source / GRAPH)
    if described.get("version") != VERSION:
        raise JetGraphError(
            f"{source / GRAPH} is of format {described.get('version')!r}, and this version of jetgraph reads "
            f"{VERSION}: use the version of jetgraph that wrote it"
        )
    try:
        tensors = load_file(source / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise JetGraphError(f"cannot read {source / WEIGHTS}: {error}") from error
    trainable = set(described["trainable"])
    for name in trainable & tensors.keys():
        tensors[name] = torch.nn.Parameter(tensors[name])
    graph = ResidualGraph(_traced_from_json(described, tensors), title=described["title"], parts=described["parts"])
    if not (source / PATHS).exists():
        return graph
    stored = _read_json(source / PATHS)
    expansion = expand(
        graph,
        stored["order"],
        recipe=stored["recipe"],
        rules={alias: _rule_from_json(rule) for alias, rule in stored["rules"].items()},
        layers=stored["layers"],
    )
    return PathModule(expansion, [expansion.check(Path.parse(text)) for text in stored["paths"]])


def _parts_to_json(parts: Split | None) -> Any:
    if parts is None or isinstance(parts, str):
        return parts
    return {
        pattern: share if isinstance(share, str | int) else [[int(index) for index in indices] for indices in share]
        for pattern, share in parts.items()
    }


# Paths


def _paths_to_json(module: PathModule) -> dict[str, Any]:
    expansion: Expansion = module.expansion
    layers = [entry.point for entry in expansion.entries if entry.origin == "stream"]
    return {
        "recipe": expansion.recipe,
        "order": expansion.order,
        "layers": layers if expansion.recipe == "lens" else None,
        "rules": {alias: _rule_to_json(rule) for alias, rule in expansion.rules.items()},
        "paths": [str(path) for path in module.paths],
    }


def _rule_to_json(rule: Rule) -> dict[str, Any]:
    if isinstance(rule, Jet):
        weights = rule.weights if isinstance(rule.weights, str) else dict(rule.weights)
        return {"rule": "jet", "order": rule.order, "directions": rule.directions, "weights": weights}
    if isinstance(rule, Freeze):
        return {"rule": "freeze", "gates": list(rule.gates)}
    return {"rule": "atom" if isinstance(rule, Atom) else "distribute"}


def _rule_from_json(stored: Mapping[str, Any]) -> Rule:
    kind = stored["rule"]
    if kind == "jet":
        return Jet(stored["order"], stored["directions"], stored["weights"])
    if kind == "freeze":
        return Freeze(tuple(stored["gates"]))
    return {"atom": Atom(), "distribute": Distribute()}[kind]


# Graphs


def _traced_to_json(traced: Traced) -> dict[str, Any]:
    return {
        "output_name": traced.output_name,
        "dynamic": traced.dynamic,
        "note": traced.note,
        "defaults": _to_json(dict(traced.defaults), "the inputs"),
        "input_shapes": {place: list(shape) for place, shape in traced.input_shapes.items()},
        "positional": list(traced.positional),
        "module_types": dict(traced.module_types),
        "bindings": {node: [binding.kind, binding.name] for node, binding in traced.bindings.items()},
        "trainable": [name for name, tensor in traced.tensors.items() if isinstance(tensor, torch.nn.Parameter)],
        "nodes": [_node_to_json(node) for node in traced.graph.nodes],
    }


def _traced_from_json(stored: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Traced:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for row in stored["nodes"]:
        if row["op"] == "output":
            graph.output(nodes[row["args"][0]["node"]])
            continue
        target = row["target"] if row["op"] == "placeholder" else _target_from_text(row["target"])
        node = graph.create_node(
            row["op"], target, _from_json(row["args"], nodes), _from_json(row["kwargs"], nodes), row["name"]
        )
        node.name = row["name"]
        node.meta = {"module_path": row["module_path"]}
        if "dtype" in row:
            node.meta |= {"dtype": _dtype(row["dtype"]), "shape": tuple(row["shape"])}
        nodes[row["name"]] = node
    bindings = {node: Binding(kind, name) for node, (kind, name) in stored["bindings"].items()}
    missing = sorted({b.name for b in bindings.values() if b.kind != "input"} - tensors.keys())
    if missing:
        raise JetGraphError(f"{WEIGHTS} lacks {missing[0]!r} and {len(missing) - 1} more tensors that {GRAPH} names")
    return Traced(
        graph=graph,
        bindings=bindings,
        tensors=tensors,
        defaults=_from_json(stored["defaults"], nodes),
        input_shapes={place: tuple(shape) for place, shape in stored["input_shapes"].items()},
        positional=tuple(stored["positional"]),
        module_types=stored["module_types"],
        output_name=stored["output_name"],
        dynamic=stored["dynamic"],
        note=stored["note"],
    )


def _node_to_json(node: fx.Node) -> dict[str, Any]:
    where = f"{node.name} in {node.meta.get('module_path') or 'the model'}"
    row = {
        "name": node.name,
        "op": node.op,
        "target": node.target if isinstance(node.target, str) else _target_to_text(node.target),
        "args": _to_json(list(node.args), where),
        "kwargs": _to_json(dict(node.kwargs), where),
        "module_path": node.meta.get("module_path", ""),
    }
    if "dtype" in node.meta:
        row |= {"dtype": str(node.meta["dtype"]), "shape": list(node.meta["shape"])}
    return row


_MODULES = {"operator": operator, "_operator": operator, "math": math, "torch": torch}


def _target_to_text(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return f"op:{target.namespace}:{target._schema.name.split('::')[1]}:{target._overloadname}"
    module, name = getattr(target, "__module__", ""), getattr(target, "__name__", "")
    if getattr(_MODULES.get(module), name, None) is target:
        return f"py:{module}:{name}"
    raise JetGraphError(f"the function {target} of the graph has no name under which it could be stored")


def _target_from_text(text: str) -> Callable[..., Any]:
    kind, *parts = text.split(":")
    try:
        if kind == "py":
            return getattr(_MODULES[parts[0]], parts[1])
        namespace, name, overload = parts
        return getattr(getattr(getattr(torch.ops, namespace), name), overload)
    except (AttributeError, KeyError, ValueError) as error:
        raise JetGraphError(
            f"the stored graph calls {text!r}, which this installation does not have: import the library that "
            f"defines it first"
        ) from error


_KINDS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    torch.dtype: ("dtype", str),
    torch.device: ("device", str),
    torch.layout: ("layout", str),
    torch.memory_format: ("memory_format", str),
}


def _to_json(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return [_to_json(item, where) for item in value]
    if isinstance(value, Mapping):
        return {"dict": {str(key): _to_json(item, where) for key, item in value.items()}}
    if isinstance(value, slice):
        return {"slice": [_to_json(item, where) for item in (value.start, value.stop, value.step)]}
    for kind, (tag, text) in _KINDS.items():
        if isinstance(value, kind):
            return {tag: text(value)}
    raise JetGraphError(f"the argument {value!r} ({type(value).__name__}) of {where} has no JSON form")


def _from_json(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return tuple(_from_json(item, nodes) for item in value)
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == "node":
        return nodes[content]
    if tag == "dict":
        return {key: _from_json(item, nodes) for key, item in content.items()}
    if tag == "slice":
        return slice(*(_from_json(item, nodes) for item in content))
    if tag == "float":
        return float(content)
    if tag == "device":
        # Where the weights are loaded to, wherever the trace was made.
        return torch.device("cpu")
    return getattr(torch, content.removeprefix("torch."))


def _dtype(text: str) -> torch.dtype:
    return getattr(torch, text.removeprefix("torch."))


# Files


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors takes them: contiguous, and none in another one's memory."""
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor.detach().contiguous()
        if value.numel() and value.untyped_storage().data_ptr() in seen:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        separate[name] = value
    return separate


def _write_json(file: File, value: Any) -> None:
    text = json.dumps(value, indent=1)
    write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _read_json(file: File) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise JetGraphError(f"{file.parent} holds no saved graph: {error}") from error
    except json.JSONDecodeError as error:
        raise JetGraphError(f"{file} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise JetGraphError(f"{file} is damaged: it holds a {type(value).__name__}, not an object")
    return value
