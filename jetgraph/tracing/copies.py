"""An exported program → the graph of a trace.

What the explained output needs is copied into a plain `torch.fx.Graph` with light metadata on every node
(`module_path`, `dtype`, `shape`) in place of fake tensors, so that later stages, and the file format, depend on nothing
else of the exporter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from jetgraph.errors import TraceError
from jetgraph.export.callables import Function, find
from jetgraph.export.normal_form import normalise
from jetgraph.export.program import Exported
from jetgraph.export.reach import above
from jetgraph.jets.draws import draws, is_random
from jetgraph.jets.registry import op_name
from jetgraph.tracing.calls import named_leaves, positional_names
from jetgraph.tracing.decisions import Answering, Decisions
from jetgraph.tracing.examples import LEVELS, freedom
from jetgraph.tracing.guards import guards_of, named
from jetgraph.tracing.traced import Binding, Dynamic, Traced
from jetgraph.tracing.weights import Weights


def copy_program(
    exported: Exported, model: nn.Module, picked: str, answered: Answering | None, asked: Dynamic, refusal: str
) -> Traced:
    """What an exported program does, down to its last output, which is called `picked`.

    Parameters
    ----------
    answered
        What the code asked of tensors' values; None where it was not answered.
    asked
        Which sizes were to be open.
    refusal
        Why the exporter has refused more of them; empty where it has not.

    Raises
    ------
    TraceError
        The output depends on no input, on control flow or on random numbers.
    """
    program = exported.program
    result = next(node for node in program.graph.nodes if node.op == "output").args[0][-1]
    if not isinstance(result, fx.Node):
        raise TraceError(
            f"the output {picked!r} is the constant {result!r}, not a tensor that the inputs change: name another one "
            "with output="
        )
    decisions = None if answered is None else _decisions(program, answered)
    live = above([result])
    _check_nodes(live)
    copy = _Copy(program, model)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            decides = decisions is not None and node.name in decisions.reads
            copy.placeholder(node, read=node in live or decides, asked=decides)
        elif node.op != "output" and node in live:
            copy.call(node)
    graph, bindings = copy.finished(result), copy.bindings
    types = _module_types(program)
    dtypes = {bindings[node.name].name: node.meta["dtype"] for node in graph.find_nodes(op="placeholder")}
    granted = freedom(copy.shapes, dtypes)
    level: Dynamic = granted if LEVELS.index(granted) > LEVELS.index(asked) else asked
    note = _note(refusal, asked, level)
    if decisions is not None:
        note = "; ".join(filter(None, (note, str(decisions))))
    if answered is not None and answered.loops and answered.spread:
        where = ", ".join(list(dict.fromkeys(answered.loops))[:2])
        note = "; ".join(filter(None, (note, f"loops over where a mask holds go over all of its places ({where})")))
    guards = (*guards_of(exported, copy.names), *_kept_dimensions(graph))
    weights = Weights(copy.tensors, owners(model))
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
        if is_random(node.target, node.args, node.kwargs):
            raise draws(f"{op_name(node.target)} in {_named_module(node)}")


def _note(refusal: str, asked: Dynamic, level: Dynamic) -> str:
    """Why sizes are fixed that were to be open."""
    if refusal and level != "all":
        kept = "only the batch size may change" if level == "batch" else "input shapes are fixed to the traced ones"
        return f"torch.export refused dynamic sizes ({refusal}), so {kept}"
    if asked == "all" and level != "all":
        return "the model's code takes some sizes for constants, so they are fixed to the traced ones"
    return ""


_BINDING_KINDS: dict[str, Literal["parameter", "buffer", "constant", "input"]] = {
    "PARAMETER": "parameter",
    "BUFFER": "buffer",
    "CONSTANT_TENSOR": "constant",
    "USER_INPUT": "input",
}


_FEW = 1024


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
        self.positional = positional_names(model)
        self._program, self._model = program, model
        self._inputs = iter(_input_names(program, self.positional))
        self._specs = {s.arg.name: s for s in program.graph_signature.input_specs if hasattr(s.arg, "name")}
        self._graph = fx.Graph()
        self._copied: dict[fx.Node, fx.Node] = {}
        self._constants: dict[Any, fx.Node] = {}
        """Those of a few whole numbers, by these."""

    def placeholder(self, node: fx.Node, *, read: bool, asked: bool) -> None:
        """An input, or a weight that is read; an input that is no tensor is a default of its own.

        What decisions ask for by its name keeps that.
        """
        spec = self._specs[node.name]
        kind = _BINDING_KINDS[spec.kind.name]
        if kind == "input":
            name, value = next(self._inputs), node.meta.get("val")
            if not isinstance(value, Tensor):
                self.defaults[name] = getattr(spec.arg, "value", value)
                return
            self.bindings[node.name] = Binding("input", name)
            _name_sizes(value, name, self.names)
            self.shapes[name] = _shape(value, self.names)
        elif not read:
            return
        else:
            assert spec.target is not None
            name, tensor = bound_tensor(self._program, self._model, spec.target, "model.")
            if kind == "constant" and not asked and (again := self._seen(tensor, node)) is not node:
                self._copied[node] = self._copied[again]
                return
            self.bindings[node.name] = Binding(kind, name)
            self.tensors[name] = tensor
        self._put(node)

    def _seen(self, tensor: Tensor, node: fx.Node) -> fx.Node:
        """The first node of the same few whole numbers: code that reads and writes at places may list them twice."""
        if tensor.is_floating_point() or tensor.is_complex() or tensor.is_meta or tensor.numel() > _FEW:
            return node
        return self._constants.setdefault((tensor.dtype, tensor.shape, tuple(tensor.flatten().tolist())), node)

    def call(self, node: fx.Node) -> None:
        """Raise `TraceError` for a node that is no call of an operator."""
        if node.op != "call_function":
            raise TraceError(
                f"{_named_module(node)} holds the node {node.name!r} of kind {node.op!r} ({node.target}), which is no "
                "call of an operator: replace it by ordinary operators"
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
    indices = [index for index, node in enumerate(asked) if isinstance(node, fx.Node)]
    kept = [index for index in indices if not given.isdisjoint(each.name for each in above([asked[index]]))]
    needed = above(asked[index] for index in kept)
    for node in program.graph.nodes:
        if node in needed:
            copied[node] = graph.node_copy(node, copied.__getitem__)
            copied[node].name = node.name
            copied[node].meta = {"module_path": _module_path(node)}
    graph.output([copied[asked[index]] for index in kept])
    answers, lines = (tuple(each[index] for index in kept) for each in (answered.answers, answered.lines))
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


def owners(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that a user holds, by the beginning of their tensors' names: the model, or what a function reads."""
    if isinstance(model, Function):
        return {f"modules_read.{index}": module for index, module in enumerate(model.modules_read)}
    return {"": model}


def _named_module(node: fx.Node) -> str:
    path = _module_path(node)
    return f"module {path!r}" if path else "the root module"


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


def _name_sizes(value: Tensor, of: str, names: dict[str, str]) -> None:
    """Name the open sizes of an input: `batch`, `length`, and others after the input."""
    for dim, size in enumerate(value.shape):
        symbol = str(size)
        if not symbol.isidentifier() or symbol in names:
            continue
        name = ("batch", "length")[dim] if dim < 2 and value.dim() < 4 else "batch" if dim == 0 else ""
        if not name or name in names.values():
            # One of `*args` is called by its number, with which no name starts.
            of = f"input{of}" if of[:1].isdigit() else of
            name = f"{re.sub(r'[^A-Za-z0-9_]', '_', of)}_{name or dim}"
        names[symbol] = name


def _shape(value: Tensor, names: Mapping[str, str]) -> tuple[int | str, ...]:
    texts = (named(str(size), names) for size in value.shape)
    return tuple(int(text) if text.isdigit() else text for text in texts)


def _input_names(program: torch.export.ExportedProgram, positional: Sequence[str]) -> list[str]:
    spec = program.call_spec.in_spec
    assert spec is not None
    # A container of its own kind may hold nothing but tensors.
    (args, kwargs), _ = program.example_inputs or pytree.tree_unflatten([object()] * spec.num_leaves, spec)
    return [of for of, _ in named_leaves(args, kwargs, positional)]
