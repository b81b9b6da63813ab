"""Traces kept between processes: an export takes many times as long as all that is done with it afterwards.

A file of the cache is a safetensors file. Its header holds the traced graph as JSON, as in a saved graph, and its
tensors are those that the model's code made and the model does not hold; the model's weights are not in it. It is
called after the fingerprint of what the trace depends on (see `jetgraph.export.fingerprint`). What is read is bound to
the weights of the model at hand, and has to give the model's own output on the inputs at hand; where it does not, or
is damaged, it is dropped, and the model traced again.

The files are in `$JETGRAPH_CACHE`, else in `$XDG_CACHE_HOME/jetgraph`, else in `~/.cache/jetgraph`; none are, and none
are read, with `JETGRAPH_CACHE=off`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from jetgraph.errors import FileError, InputError, JetGraphError
from jetgraph.export.callables import find, title
from jetgraph.export.fingerprint import fingerprint, first_stamp
from jetgraph.files.stored import Stored
from jetgraph.files.writing import is_file, is_folder, make_folder, naming, parse_json, reason, write_atomically
from jetgraph.residual import ResidualGraph, analysed, checked, trace
from jetgraph.saving.serialization import held_tensor, traced_from_json, traced_to_json
from jetgraph.tracing.calls import call_options, named_leaves, positional_names
from jetgraph.tracing.code import Call
from jetgraph.tracing.copies import owners
from jetgraph.tracing.ran import Ran
from jetgraph.tracing.trace import example_output
from jetgraph.tracing.traced import Traced, copied_graph
from jetgraph.tracing.weights import Weights, device_and_dtype

VERSION = 1
"""Of the format."""
MOST = 200
"""Traces that are kept; those that were not used for longest go first."""

_used: ContextVar[bool] = ContextVar("the cache of traces is used", default=True)


class CacheWarning(UserWarning):
    """A trace cannot be kept for the next process."""


@contextlib.contextmanager
def unused() -> Iterator[None]:
    """Neither read nor keep traces."""
    token = _used.set(False)
    try:
        yield
    finally:
        _used.reset(token)


def cache_folder() -> Path | None:
    """Where traces are kept; None where they are not."""
    chosen = os.environ.get("JETGRAPH_CACHE", "")
    if chosen.lower() == "off" or not _used.get():
        return None
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jetgraph"
        return (Path(chosen).expanduser() if chosen else base) / "traces"
    except RuntimeError:
        # Nobody's home is known.
        return None


def checkpoints_folder() -> Path | None:
    """Where it is kept what is known of checkpoints (see `jetgraph.loading.known`); None where traces are not kept."""
    folder = cache_folder()
    return None if folder is None else folder.with_name("checkpoints")


def kept_file(model: nn.Module, inputs: Mapping[str, Any]) -> Path | None:
    """The file in which the trace of `model(**inputs)` is kept, or would be; None where it is not."""
    folder = cache_folder()
    key = None if folder is None else key_of(model, inputs)
    return None if folder is None or key is None else folder / f"{key}.safetensors"


def kept_trace(model: nn.Module, inputs: Mapping[str, Any]) -> ResidualGraph:
    """`jetgraph.trace(model, inputs=inputs)`, taken from an earlier process where that traced the same.

    Raises
    ------
    TraceError, InputError
        As `jetgraph.trace`.
    """
    file = kept_file(model, inputs)
    if file is None:
        return trace(model, inputs=inputs)
    graph = _read(file, model, inputs)
    if graph is None:
        graph = trace(model, inputs=inputs)
        _keep(graph, file)
    return graph


def key_of(model: nn.Module, inputs: Mapping[str, Any]) -> str | None:
    """The fingerprint of all that a trace of `model(**inputs)` depends on but values; None where it has none.

    Of inputs that are tensors that is their type, device and rank, and which of their sizes are 0 or 1: with others, a
    trace says itself for which sizes it holds.
    """
    leaves = named_leaves((), call_options(model, inputs), positional_names(model))
    return fingerprint(_libraries(), model, [(place, kind_of(leaf)) for place, leaf in leaves])


def kind_of(leaf: Any) -> Any:
    """What counts of an input: see `key_of`."""
    if not isinstance(leaf, Tensor):
        return leaf
    return [leaf.dtype, leaf.device, leaf.requires_grad, [min(size, 2) for size in leaf.shape]]


def _libraries() -> list[Any]:
    """The libraries that make a trace, and the files of this one."""
    import transformers

    package = Path(__file__).parents[1]
    own = [[path.relative_to(package).as_posix(), *first_stamp(path)] for path in sorted(package.rglob("*.py"))]
    return [platform.python_version(), torch.__version__, transformers.__version__, torch.get_default_dtype(), own]


# Reading


def _read(file: Path, model: nn.Module, inputs: Mapping[str, Any]) -> ResidualGraph | None:
    """The graph that a file holds, over the model's weights; None where there is none that fits."""
    if not is_file(file):
        return None
    try:
        graph = analysed(_of_model(file, model), title(model))
        if not graph.traced.meta:
            ran = Ran()
            graph = checked(graph, (), inputs, example_output(model, (), inputs, None, ran))
            assert isinstance(graph.traced.tensors, Weights)
            graph.traced.tensors.watch([model], ran.asked(model.modules()), Call((), inputs, None))
    except InputError:
        # Of inputs that the model does not take, it says so when it is traced; for others, it is traced anew.
        return None
    except JetGraphError:
        # Where it cannot be removed it cannot be replaced either, which is said then.
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        return None
    with contextlib.suppress(OSError):
        os.utime(file)
    return graph


def _of_model(file: Path, model: nn.Module) -> Traced:
    """The trace in a file, over the model's weights and what else the file holds.

    Raises `FileError` for a damaged file, and for a model that lacks one of the weights.
    """
    traced, own = bound_trace(file, lambda name: find(model, name.split(".")))
    weights = Weights({name: own.get(name, tensor) for name, tensor in traced.tensors.items()}, owners(model))
    device = device_and_dtype(own.values())[0]
    if device is None or device.type == "cpu":
        # As graphs are read.
        return replace(traced, tensors=weights)

    def swap(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    return replace(traced, graph=copied_graph(traced.graph, swap), tensors=weights)


def bound_trace(file: Path, weight: Callable[[str], Any]) -> tuple[Traced, dict[str, Tensor]]:
    """The trace in a file, with the weights that its model has to have; each is asked for by its name.

    Raises
    ------
    FileError
        The file is damaged, or there is no such weight.
    """
    with naming("read", file), safe_open(file, "pt") as stored:
        header = stored.metadata() or {}
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (it is no mapping)
    described = Stored(_json(header.get("trace", ""), file), file)
    own = {name.text(): weight(name.text()) for name in described.members()["bound"].items()}
    if gone := [name for name, value in own.items() if not isinstance(value, Tensor)]:
        raise FileError(f"{file} is of another model: this one has no {gone[0]!r}")
    return traced_from_json(described, tensors | own), own


def _json(text: str, file: Path) -> dict[str, Any]:
    """What the header describes, which is of this version of the format."""
    try:
        described = parse_json(text)
    except ValueError as error:
        raise FileError(f"{file} is damaged: {reason(error)}") from error
    if not isinstance(described, dict) or described.get("version") != VERSION or "bound" not in described:
        raise FileError(f"{file} is damaged: it holds no trace of version {VERSION}")
    return described


# Keeping


def _keep(graph: ResidualGraph, file: Path) -> None:
    """Write a trace for the next process; a trace that has no JSON form is not kept."""
    traced = graph.traced
    assert isinstance(traced.tensors, Weights)
    bound = [name for name in traced.tensors if traced.tensors.is_owned(name)]
    try:
        described = {"version": VERSION, "bound": bound, **traced_to_json(traced, dict(traced.tensors))}
        own = {name: held_tensor(name, traced.tensors[name]).clone() for name in traced.tensors.keys() - set(bound)}
    except (InputError, FileError):
        return
    header = {"trace": json.dumps(described), "model": graph.title, "inputs": traced.signature}
    try:
        make_folder(file.parent)
        write_atomically(file, lambda beside: save_file(own, beside, header))
        forget(file.parent)
    except FileError as error:
        text = f"the next process will have to trace {graph.title} again: {error} (JETGRAPH_CACHE names another folder)"
        warnings.warn(text, CacheWarning, stacklevel=4)


def forget(folder: Path) -> None:
    """Remove the files of a folder of the cache that were not used for longest, so that `MOST` are left."""
    for file, _ in _files(folder)[MOST:]:
        _remove(file)


# What is there


@dataclass(frozen=True)
class KeptTrace:
    """A file of the cache."""

    file: Path
    model: str
    """The model's class."""
    inputs: str
    """The inputs of the trace with their shapes, in which names are sizes that may change."""
    bytes: int
    used: float
    """When it was last used, in seconds since 1970."""


def kept_traces(folder: Path | None = None) -> list[KeptTrace]:
    """The traces in the cache, or in a folder; the last used first."""
    folder = folder or cache_folder()
    if folder is None or not is_folder(folder):
        return []
    return [KeptTrace(file, *_about(file), state.st_size, state.st_mtime) for file, state in _files(folder)]


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """The files of a cache and their states, the last used first; nothing in them is read."""
    files: list[tuple[Path, os.stat_result]] = []
    for file in sorted(filter(is_file, folder.glob("*.safetensors"))):
        # Another process may have removed it.
        with contextlib.suppress(FileNotFoundError):
            files.append((file, file.stat()))
    return sorted(files, key=lambda each: -each[1].st_mtime)


def _remove(file: Path) -> None:
    with naming("remove", file):
        file.unlink(missing_ok=True)


def _about(file: Path) -> tuple[str, str]:
    """The model and inputs that a file names; empty for a damaged one."""
    try:
        with naming("read", file), safe_open(file, "pt") as stored:
            header = stored.metadata() or {}
    except FileError:
        return "", ""
    return header.get("model", ""), header.get("inputs", "")


def clear_traces() -> list[KeptTrace]:
    """Remove all traces from the cache, and what is known of checkpoints; returns the traces that were there."""
    traces, checkpoints = kept_traces(), checkpoints_folder()
    known = [] if checkpoints is None or not is_folder(checkpoints) else [file for file, _ in _files(checkpoints)]
    for file in [*(kept.file for kept in traces), *known]:
        _remove(file)
    return traces
