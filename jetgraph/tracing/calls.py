"""A call of a model: its arguments by name, what it must be like before it is traced, and its own output."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from jetgraph.errors import InputError, TraceError
from jetgraph.export.callables import Function
from jetgraph.export.program import ordinary_operators
from jetgraph.jets.interpreter import check_rows
from jetgraph.tracing.outputs import pick


def run_model(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: str | int | None) -> Tensor:
    """The explained output of the model itself, computed with the operators that the graph has."""
    with ordinary_operators():
        return pick(model(*args, **call_options(model, kwargs)), output)[1]


def call_options(model: nn.Module, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The call's options, without a cache of keys and values where the model would keep one."""
    cached = "use_cache" in signature_of(model).parameters
    return {"use_cache": False, **kwargs} if cached else dict(kwargs)


def named_leaves(
    args: Sequence[Any], kwargs: Mapping[str, Any], positional: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    """Leaves of a call's arguments, each with its name: `input_ids`, `past.0.key`.

    Raises
    ------
    InputError
        They hold themselves, or lie in a container that does not name what it holds.
    """
    try:
        leaves, _ = pytree.tree_flatten_with_path((tuple(args), dict(kwargs)))
        if any(_is_cache(leaf) for _, leaf in leaves):
            importlib.import_module("transformers.integrations.executorch").register_dynamic_cache_export_support()
            leaves, _ = pytree.tree_flatten_with_path((tuple(args), dict(kwargs)))
    except RecursionError:
        raise InputError("the inputs are nested too deeply, or hold themselves: give tensors by name") from None
    except ValueError as error:  # a container that was registered without names of what it holds
        raise InputError(f"the inputs cannot be called by names: {error}") from None
    for (side, *path), leaf in leaves:
        names = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
        if getattr(side, "idx", None) == 0 and int(names[0]) < len(positional):
            names[0] = positional[int(names[0])]
        yield ".".join(names), leaf


def _is_cache(leaf: Any) -> bool:
    """A cache of keys and values, which torch takes apart as soon as transformers has told it how."""
    caches = None if isinstance(leaf, Tensor) else sys.modules.get("transformers.cache_utils")
    return caches is not None and isinstance(leaf, caches.DynamicCache)


def positional_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the arguments that the model takes by position or name."""
    parameters = signature_of(model).parameters.values()
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def signature_of(model: nn.Module) -> inspect.Signature:
    """Of the model's forward, or of the function that it stands for, where that has one."""
    if isinstance(model, Function):
        with contextlib.suppress(TypeError, ValueError):
            return inspect.signature(model.function[0])
    return inspect.signature(model.forward)


def check_call(model: nn.Module, output: Any) -> None:
    """Raise `TraceError` for a model in training mode, in part scripted or on `meta`, and an output that is no name or
    index.
    """
    named = output is None or (isinstance(output, str) and len(output) < 200)
    if isinstance(output, bool) or not (named or (isinstance(output, int) and abs(output) < 2**31)):
        raise TraceError(
            "output is a name or an index, such as 'logits', 'hidden_states.3' or 0, and not this "
            f"{type(output).__name__}"
        )
    scripted = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        raise TraceError(
            f"module {scripted[0]!r} is TorchScript, which torch.export cannot read: put the module that it was made "
            "from in its place"
        )
    training = [name or type(model).__name__ for name, module in _code(model) if module.training]
    if training:
        raise TraceError(
            f"{training[0]!r} is in training mode (with {len(training) - 1} more modules), where dropout and batch "
            "norm make the output random: call model.eval() first"
        )
    _check_loaded(model)


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


class Lookups(TorchFunctionMode):
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
        for name, value in self.inputs.items():
            if isinstance(value, Tensor) and torch.equal(value.flatten(), rows.flatten()):
                return f"input {name!r} does not fit "
        return ""
