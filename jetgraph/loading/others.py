"""Models that no checkpoint holds: saved graphs, exported programs, and what a function of Python makes."""

from __future__ import annotations

import contextlib
import importlib
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from jetgraph.algebra.matching import nearest
from jetgraph.errors import JetGraphError, LoadError, amount, quoted
from jetgraph.export.callables import wrap_function
from jetgraph.loading.loaded import Loaded
from jetgraph.loading.quiet import first_sentence, one_line
from jetgraph.loading.request import Options
from jetgraph.loading.tokenizers import tokenizer_of
from jetgraph.residual import ResidualGraph, analysed
from jetgraph.saving.models import TOKENIZER
from jetgraph.saving.models import load as load_saved
from jetgraph.tracing.calls import positional_names


class Replay(nn.Module):
    """A saved graph in the place of the model that it was traced from, whose code is not there."""

    def __init__(self, graph: ResidualGraph) -> None:
        super().__init__()
        self.graph = graph
        self.main_input_name = next(iter(graph.traced.input_shapes))
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        value, name = self.graph(*args, **kwargs), self.graph.traced.output_name
        for part in reversed(str(name).split(".")):
            value = {part: value}
        return value


def from_saved(name: str, folder: pathlib.Path, options: Options) -> Loaded:
    """A graph that `jetgraph.save` has written; of compiled paths, the graph that they are of."""
    options.only(("device", "dtype", "tokenizer"), "a saved graph")
    saved = load_saved(folder)
    graph = moved(saved if isinstance(saved, ResidualGraph) else saved.graph, options)
    beside = folder / TOKENIZER
    own = str(beside) if beside.is_dir() else None
    return Loaded(name, Replay(graph), tokenizer_of(own, options), graph=graph)


def moved(graph: ResidualGraph, options: Options) -> ResidualGraph:
    """A graph with its weights where and of the type that options say.

    Raises
    ------
    LoadError
        It has no weights.
    """
    device, dtype = options.torch_device, options.type
    if device is None and dtype is None:
        return graph
    if graph.traced.meta:
        raise LoadError("this graph was saved without weights, so that there is nothing to move or to cast")
    tensors = {
        name: tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
        for name, tensor in graph.traced.tensors.items()
    }
    traced = replace(graph.traced.relocated(tensors.__getitem__), tensors=tensors)
    return analysed(traced, graph.title, graph.parts)


class Program(nn.Module):
    """An exported program that is called with all inputs by name, which its own module may take in order alone."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        args, kwargs = program.example_inputs or ((), {})
        self.exported, self.program = program, program.module()
        self.in_order = positional_names(self.program)[: len(args)]
        self.example = dict(zip(self.in_order, args, strict=True)) | dict(kwargs)
        self.training = False

    def train(self, mode: bool = True) -> Program:
        """Its graph reads no mode, and refuses to be asked for one."""
        return self

    def forward(self, **inputs: Any) -> Any:
        moved = [inputs.pop(name) for name in self.in_order]
        return self.program(*moved, **inputs)


def from_program(name: str, file: pathlib.Path, options: Options) -> Loaded:
    """An exported program, with the inputs that it was exported on."""
    options.only(("device", "tokenizer"), "an exported program")
    with one_line(name):
        program = torch.export.load(file)
        if options.torch_device is not None:
            program = move_to_device_pass(program, options.torch_device)
        module = Program(program)
    example = {key: _put(value, options.torch_device, None) for key, value in module.example.items()}
    return Loaded(name, module, tokenizer_of(None, options), example=example)


def from_factory(name: str, options: Options) -> Loaded:
    """What `package.module:factory` is or makes.

    Raises
    ------
    LoadError
        There is no such name, it fails, or makes something else than a model with its inputs and tokenizer.
    """
    options.only(("device", "dtype", "tokenizer"), "what a function of Python makes")
    with _folder_of_work(), _told(name):
        module, _, attribute = name.partition(":")
        made: Any = importlib.import_module(module)
        for part in attribute.split("."):
            if not hasattr(made, part):
                public = [one for one in dir(made) if not one.startswith("_")]
                raise LoadError(
                    f"cannot make {quoted(name)}: no {quoted(part)} is defined there{nearest(part, public)}"
                )
            made = getattr(made, part)
        if not isinstance(made, nn.Module | ResidualGraph | torch.export.ExportedProgram | Loaded | tuple):
            made = made()
    model, example, tokenizer = _parts(name, made)
    if isinstance(model, torch.export.ExportedProgram):
        model = Program(model)
        example = model.example if example is None else example
    if isinstance(model, ResidualGraph):
        graph = moved(model, options)
        named = _moved(_by_name(name, graph.traced.positional, example), options)
        return Loaded(name, Replay(graph), tokenizer_of(None, options, tokenizer), graph=graph, example=named)
    module = wrap_function(model)
    return _placed(name, module, _by_name(name, positional_names(module), example), tokenizer, options)


def _parts(name: str, made: Any) -> tuple[Any, Any, Any]:
    """A model, its example inputs and its tokenizer."""
    if isinstance(made, Loaded):
        return made.graph or made.model, made.example, made.tokenizer
    if not isinstance(made, tuple):
        return made, None, None
    if not 1 <= len(made) <= 3:
        raise LoadError(
            f"{name} gives {amount(len(made), 'value')}, and a model, its example inputs and its tokenizer were "
            "expected"
        )
    model, *more = made
    example, tokenizer = [*more, None, None][:2]
    return model, example, tokenizer


def _by_name(name: str, names: Sequence[str], example: Any) -> dict[str, Any] | None:
    """Example inputs by the names that the model has for them."""
    if example is None or isinstance(example, Mapping):
        return None if example is None else dict(example)
    listed = [example] if isinstance(example, Tensor) else example
    if not isinstance(listed, Sequence) or len(listed) > len(names):
        raise LoadError(
            f"the example inputs of {name} are {quoted(example)}, and the model takes {', '.join(names) or 'none'}: "
            "give a tensor, several in a list, or a mapping by name"
        )
    return dict(zip(names, listed, strict=False))


def _placed(name: str, module: nn.Module, example: dict[str, Any] | None, tokenizer: Any, options: Options) -> Loaded:
    with one_line(name):
        module = module.to(device=options.torch_device, dtype=options.type).eval()
    return Loaded(name, module, tokenizer_of(None, options, tokenizer), example=_moved(example, options))


def _moved(example: dict[str, Any] | None, options: Options) -> dict[str, Any] | None:
    """Example inputs where the weights are, and of their type."""
    return example and {key: _put(value, options.torch_device, options.type) for key, value in example.items()}


def _put(value: Any, device: torch.device | None, dtype: torch.dtype | None) -> Any:
    """An example input where the weights are, and of their type if it has one."""
    if not isinstance(value, Tensor):
        return value
    return value.to(device=device, dtype=dtype if value.is_floating_point() else None)


@contextlib.contextmanager
def _folder_of_work() -> Iterator[None]:
    """Modules of the working folder are found, as `python -m` finds them."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """What the code of a user raises, in one line."""
    try:
        yield
    except JetGraphError:
        raise
    except Exception as error:
        raise LoadError(f"cannot make {quoted(name)}: {first_sentence(error)}") from error
