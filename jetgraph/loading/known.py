"""Checkpoints that an earlier process has loaded and traced: what was found then holds while no file has changed.

A command that looks at a checkpoint needs a trace, weights and a tokenizer, and seldom the model itself, whose code
takes longest to import. So the first command keeps beside its trace which code ran, by its files; what the model says
of itself; in which place of the checkpoint each weight of the trace is, to the bit; and that the trace gives the
model's own output with these weights. A later process that finds code and checkpoint as they were binds the trace to
the weights in the files. Where anything differs, or is damaged, nothing is known, and all is done as the first time.

A file is as it was while its size, its place on the disk and its times of change are, of which a program can set one
and not the other: to read gigabytes of weights for a digest would take longer than to load them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from jetgraph.errors import FileError, InputError, JetGraphError
from jetgraph.export.fingerprint import stamp
from jetgraph.files.stored import Stored
from jetgraph.files.writing import is_file, make_folder, naming, parse_json, write_atomically
from jetgraph.loading.facts import Facts
from jetgraph.loading.request import Options
from jetgraph.residual import ResidualGraph, analysed
from jetgraph.saving.serialization import held_tensor
from jetgraph.saving.traces import bound_trace, cache_folder, checkpoints_folder, forget, kept_file, kind_of
from jetgraph.tracing.agreement import Check
from jetgraph.tracing.weights import Weights, device_and_dtype

VERSION = 1
"""Of the format."""

LARGEST = 2**26
"""Bytes of weights that the model makes itself, such as tables of positions, which are kept beside the rest."""

MOST = 2000
"""Files of a checkpoint; a folder of more is something else besides."""

LIKELY = 4
"""Places of the checkpoint in which a weight is looked for."""

YOUNG = 10**10
"""Nanoseconds: code that was changed later than so long before this module was imported may not be what runs."""

_BEGUN = time.time_ns()


@dataclass(frozen=True)
class _Place:
    """Where a weight of a trace is."""

    file: str
    """Of the checkpoint; empty for one that the model makes itself, which is in the record."""
    key: str
    dtype: str
    """The type that it is loaded in."""


@dataclass(frozen=True)
class _Found:
    """A trace in the cache that gives the model's output."""

    file: str
    digest: str
    check: Check


@dataclass(frozen=True, eq=False)
class Record:
    """What is known of a checkpoint."""

    facts: Facts
    parameters: int
    """How many the model has, tied ones once."""
    dtype: str
    """The type of most of them, without `torch.`."""
    places: Mapping[str, _Place]
    """By name of a weight."""
    own: Mapping[str, Tensor]
    """Weights that the model makes itself."""
    found: Mapping[str, _Found]
    """Traces by kinds of inputs."""


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a checkpoint, or can become known. Made by `known`."""

    folder: Path
    file: Path
    """Where it is kept."""
    record: Record | None

    def graph(self, inputs: Mapping[str, Any]) -> ResidualGraph | None:
        """The graph on such inputs over the weights in the files; None where none is known that fits."""
        kinds = _kinds(inputs)
        found = None if self.record is None or kinds is None else self.record.found.get(kinds)
        traces = cache_folder()
        if self.record is None or found is None or traces is None:
            return None
        file = traces / found.file
        try:
            if _digest(file.read_bytes()) != found.digest:
                return None
            traced, _ = bound_trace(file, _Reader(self.folder, self.record).weight)
            # For sizes that the trace does not hold for, it says so.
            traced.input_values((), inputs)
            graph = analysed(traced, self.record.facts.kind)
            os.utime(file)
            os.utime(self.file)
        except (JetGraphError, OSError):
            return None
        return replace(graph, check=found.check)

    def keep(self, model: nn.Module, inputs: Mapping[str, Any], graph: ResidualGraph) -> None:
        """Keep what a process has found out that has loaded the model of this folder and traced it."""
        kinds, trace = _kinds(inputs), kept_file(model, inputs)
        weights = graph.traced.tensors
        if kinds is None or trace is None or graph.check is None or not isinstance(weights, Weights):
            return
        before = self.record
        places, own = (dict(before.places), dict(before.own)) if before is not None else ({}, {})
        try:
            code = _code()
            reader = _Reader(self.folder, None)
            for name in weights:
                if weights.is_owned(name) and name not in places:
                    tensor = weights[name]
                    places[name] = reader.place(name, tensor)
                    if not places[name].file:
                        own[name] = held_tensor(name, tensor).clone()
            found = _Found(trace.name, _digest(trace.read_bytes()), graph.check)
        except (InputError, FileError, OSError):
            return
        if code is None or sum(tensor.nbytes for tensor in own.values()) > LARGEST:
            return
        every = {} if before is None else dict(before.found)
        number = sum(parameter.numel() for parameter in model.parameters())
        dtype = str(device_and_dtype(model.parameters())[1]).removeprefix("torch.")
        _write(self.file, Record(Facts.of(model), number, dtype, places, own, every | {kinds: found}), code)


def known(folder: Path, options: Options) -> Known | None:
    """What is known of the checkpoint in a folder that is loaded with these options; None where that is not kept."""
    kept = checkpoints_folder()
    if kept is None or not options.given.keys() <= {"dtype", "device", "tokenizer"}:
        return None
    device = options.torch_device
    try:
        files = _checkpoint(folder)
    except OSError:
        return None
    if files is None or (device is not None and device.type != "cpu"):
        return None
    name = _digest(json.dumps([VERSION, files, str(options.type), _surroundings()]).encode())
    file = kept / f"{name}.safetensors"
    return Known(folder, file, _read(file))


# What it depends on


def _checkpoint(folder: Path) -> list[Any] | None:
    """The files of a checkpoint as they are; None for more than a checkpoint has."""
    files: list[Any] = []
    for above, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(above, name)
            state = os.stat(path)
            files.append([path, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns])
            if len(files) > MOST:
                return None
    return [os.path.realpath(folder), files]


def _surroundings() -> list[Any]:
    """What else tells libraries how to load a model: which are installed, and their settings."""
    packages = [name for path in sys.path for name in _listed(path) if name.endswith((".dist-info", ".egg-info"))]
    settings = [[name, value] for name, value in os.environ.items() if name.startswith(_SETTINGS)]
    default = str(torch.get_default_dtype())
    return [platform.python_version(), platform.machine(), sorted({*packages}), sorted(settings), default]


_SETTINGS = ("TRANSFORMERS_", "USE_", "DISABLE_")
"""What names of settings begin with, which decide between ways to compute the same."""


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _code() -> list[list[Any]] | None:
    """The files of all modules that were imported; None where one of them may have been changed since."""
    # A module may be imported meanwhile.
    modules = [module for name, module in list(sys.modules.items()) if name != "__main__"]
    named = (getattr(module, "__file__", None) for module in modules)
    # Modules that are made by others may say that they are of a file that is none.
    paths = sorted({path for path in named if isinstance(path, str) and os.path.isabs(path)})
    stamps = [[path, *stamp(path)] for path in paths]
    return None if any(changed > _BEGUN - YOUNG for _, _, changed in stamps) else stamps


def _kinds(inputs: Mapping[str, Any]) -> str | None:
    """Of which kinds inputs are; None where not all are tensors."""
    if not all(isinstance(value, Tensor) for value in inputs.values()):
        return None
    return str([(name, kind_of(value)) for name, value in inputs.items()])


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# The checkpoint's weights


class _Reader:
    """The weights in the files of a checkpoint, each file opened once; values are read when something computes."""

    def __init__(self, folder: Path, record: Record | None) -> None:
        self._folder, self._record = folder, record
        self._open: dict[str, Any] = {}
        self._made: dict[_Place, Tensor] = {}

    def weight(self, name: str) -> Tensor | None:
        """A weight by its name in the trace."""
        record = self._record
        place = None if record is None else record.places.get(name)
        if record is None or place is None:
            return None
        if not place.file:
            return record.own.get(name)
        if place not in self._made:
            self._made[place] = self._tensor(place)
        return self._made[place]

    def place(self, name: str, tensor: Tensor) -> _Place:
        """Where a weight that was loaded is: of the places for one of its shape, the first that has its very bits."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        parts = set(name.split("."))
        likely = [_Place(file, key, dtype) for file, key in self._shapes.get(tuple(tensor.shape), [])]
        likely.sort(key=lambda place: (place.key != name, -len(parts & set(place.key.split(".")))))
        for place in likely[:LIKELY]:
            if _same_bits(self._tensor(place), tensor):
                return place
        return _Place("", "", dtype)

    def _tensor(self, place: _Place) -> Tensor:
        path = self._folder / place.file
        with naming("read", path):
            return self._file(place.file).get_tensor(place.key).to(_type(place.dtype))

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self._folder / name, "pt")
        return self._open[name]

    @cached_property
    def _shapes(self) -> dict[tuple[int, ...], list[tuple[str, str]]]:
        """By shape, the files and names of weights."""
        shapes: dict[tuple[int, ...], list[tuple[str, str]]] = {}
        for path in sorted(self._folder.glob("*.safetensors")):
            with naming("read", path):
                stored = self._file(path.name)
                for key in stored.keys():  # noqa: SIM118 (it is no mapping)
                    shapes.setdefault(tuple(stored.get_slice(key).get_shape()), []).append((path.name, key))
        return shapes


def _type(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise FileError(f"there is no type {name!r}")
    return dtype


def _same_bits(one: Tensor, other: Tensor) -> bool:
    flat = (tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(*flat)


# The file


def _write(file: Path, record: Record, code: list[list[Any]]) -> None:
    """Write a record in a file's place, or none where there is no room for one: nobody asked for it."""
    described = {
        "code": code,
        "facts": record.facts.to_json(),
        "parameters": record.parameters,
        "dtype": record.dtype,
        "places": {name: [place.file, place.key, place.dtype] for name, place in record.places.items()},
        "found": {
            kinds: [found.file, found.digest, found.check.error, found.check.scale, found.check.excess]
            for kinds, found in record.found.items()
        },
    }
    text, own = json.dumps(described), dict(record.own)
    header = {"known": text, "digest": _whole(text, own)}
    with contextlib.suppress(FileError):
        make_folder(file.parent)
        write_atomically(file, lambda beside: save_file(own, beside, header))
        forget(file.parent)


def _read(file: Path) -> Record | None:
    """The record in a file; None where there is none, where it is damaged, and where other code would run now."""
    if not is_file(file):
        return None
    try:
        with naming("read", file), safe_open(file, "pt") as stored:
            header = stored.metadata() or {}
            own = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (it is no mapping)
        text = header.get("known", "")
        if header.get("digest") != _whole(text, own):
            raise FileError(f"{file} is damaged")
        return _record(Stored(parse_json(text), file), own)
    except (FileError, ValueError):
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        return None


def _whole(text: str, own: Mapping[str, Tensor]) -> str:
    """The digest of all that a record holds."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(own):
        digest.update(name.encode() + own[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _record(stored: Stored, own: Mapping[str, Tensor]) -> Record | None:
    """What a file says; None where files of code are not as they were."""
    fields = stored.fields("code", "facts", "parameters", "dtype", "places", "found")
    for one in fields["code"].items():
        path, size, changed = one.items()
        try:
            same = stamp(path.text()) == (size.value, changed.value)
        except OSError:
            same = False
        if not same:
            return None
    return Record(
        facts=Facts.from_json(fields["facts"]),
        parameters=fields["parameters"].integer(0),
        dtype=fields["dtype"].text(),
        places={
            name: _Place(*(part.text() for part in place.items())) for name, place in fields["places"].members().items()
        },
        own=own,
        found={kinds: _found(found) for kinds, found in fields["found"].members().items()},
    )


def _found(stored: Stored) -> _Found:
    file, digest, *check = stored.items()
    return _Found(Path(file.text()).name, digest.text(), Check(*(float(number.number()) for number in check)))
