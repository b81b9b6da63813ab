"""What can be traced: a module, an exported program, or a function, as the module that it stands for."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from jetgraph.errors import TraceError, quoted


def wrap_function(function: Any) -> nn.Module:
    """What can be traced as a module: a module as it is, an exported program as its module, a function as a module in
    evaluation mode.

    Raises
    ------
    TraceError
        Anything else, and scripted code.
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
    if isinstance(function, type):
        raise TraceError(
            f"{function.__name__} is a class: pass an object of it, such as {function.__name__}(...).eval()"
        )
    if isinstance(function, str | os.PathLike):
        raise TraceError(
            f"the {type(function).__name__} {quoted(str(function))} is neither a module nor a function of tensors: "
            "load the model first, as in transformers.AutoModelForCausalLM.from_pretrained(folder).eval()"
        )
    held = [] if _is_function(function) else [name for name, value in _attributes(function) if _is_module(value)]
    if held or not callable(function):
        instead = f"the module that it holds, its .{held[0]}" if held else "a torch.nn.Module or a function of tensors"
        raise TraceError(f"a {type(function).__name__} is neither a module nor a function of tensors: pass {instead}")
    return Function(function)


def title(model: nn.Module) -> str:
    """What to call a model: its class, or the function that it stands for."""
    named = model.function[0] if isinstance(model, Function) else type(model)
    return getattr(named, "__name__", type(named).__name__)


class Function(nn.Module):
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
    modules: dict[int, nn.Module] = {}
    seen: set[int] = set()
    stack: list[Any] = [function]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if _is_module(value):
            modules[id(value)] = value
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
    return list(modules.values())


def _is_module(value: Any) -> bool:
    return isinstance(value, nn.Module)


def _is_function(value: Any) -> bool:
    return inspect.isroutine(value) or isinstance(value, partial | torch._ops.OpOverload | torch._ops.OpOverloadPacket)


def _attributes(value: Any) -> Iterable[tuple[str, Any]]:
    return getattr(value, "__dict__", {}).items()


def find(owner: Any, attributes: Iterable[str]) -> Any:
    """The attribute of an attribute of ... an owner; None where there is none. Several times as fast as `getattr`."""
    for attribute in attributes:
        if isinstance(owner, nn.Module):
            for table in (owner._modules, owner._parameters, owner._buffers):
                if attribute in table:
                    owner = table[attribute]
                    break
            else:
                owner = getattr(owner, attribute, None)
        else:
            owner = getattr(owner, attribute, None)
    return owner
