"""Files of residual graphs and compiled paths: JSON for what they are, safetensors for their weights, never pickle.

A folder holds

    graph.json           the traced graph: nodes, arguments, metadata, bindings
    paths.json           for compiled paths: the recipe, the rule at each site, and the paths' texts; of a beam what is
                         kept of those that it finds
    weights.safetensors  the tensors by name; complex ones as pairs of real numbers

Structure is not stored: it is found again in the graph.

The three are one: graph.json holds the digests of the others and of itself, and files that do not belong together are
not loaded. A save writes the weights and paths beside those that are there, under names that begin with their digest,
and then replaces graph.json, which is the moment at which the folder becomes the new one; after it, they get their own
names. Where a save is killed in between, `load` finds them under the others.

A folder may come from anywhere. It is read as data (see `jetgraph.files.stored`), and what a graph may call is listed
(see `jetgraph.saving.targets`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path as File
from typing import Any, get_args

from safetensors.torch import load_file, save_file
from torch import Tensor

from jetgraph.algebra.expansion import Expansion, expand
from jetgraph.algebra.outline import Split
from jetgraph.algebra.paths import Path
from jetgraph.algebra.rewriting import Recipe
from jetgraph.algebra.selection import Selection, select
from jetgraph.compilation import PathModule
from jetgraph.errors import FileError, InputError, JetGraphError, StateError, quoted
from jetgraph.files.stored import LARGEST, Stored
from jetgraph.files.writing import (
    LEFTOVER,
    fill_beside,
    make_folder,
    naming,
    parse_json,
    reason,
    shown,
    write_atomically,
)
from jetgraph.residual import ResidualGraph, analysed
from jetgraph.saving.rules import HIGHEST, rule_from_json, rule_to_json
from jetgraph.saving.serialization import held_tensor, traced_from_json, traced_to_json

VERSION = 2
"""Of the format; 1, without digests, is read too."""
GRAPH, PATHS, WEIGHTS = "graph.json", "paths.json", "weights.safetensors"


def save(value: ResidualGraph | PathModule, folder: str | os.PathLike[str]) -> File:
    """Write a residual graph or compiled paths into a folder, and return it.

    The folder is made if need be, and other files in it are left alone. What was saved there before is replaced as a
    whole: at any moment, a reader finds the old or the new.

    Raises
    ------
    InputError
        The value is of another type, holds an argument that has no JSON form, or a weight is no plain tensor.
    StateError
        The graph is on `meta`.
    FileError
        The system refuses, or the graph holds a call that `load` would not take.
    """
    if isinstance(value, PathModule):
        graph, tensors = value.graph, value.tensors()
    elif isinstance(value, ResidualGraph):
        graph, tensors = value, dict(value.traced.tensors)
    else:
        raise InputError(f"only residual graphs and compiled paths can be saved, not {type(value).__name__}")

    if graph.traced.meta:
        raise StateError("the graph was traced on the meta device: there are no weights to save")
    target = _folder(folder)
    # Compiled paths may have moved to another type, and the graph with them.
    traced = graph.traced.relocated({name: tensor.detach() for name, tensor in tensors.items()}.__getitem__)
    described = {
        "version": VERSION,
        "title": graph.title,
        "parts": _parts_to_json(graph.parts),
        **traced_to_json(traced, tensors),
    }
    held = _separate(tensors)
    paths = _paths_to_json(value) if isinstance(value, PathModule) else None
    make_folder(target)
    with naming("save to", target), _alone(target) as alone:
        _settle(target)
        _replace(target, described, held, paths)
        if alone:
            _clear(target)
    return target


def load(folder: str | os.PathLike[str]) -> ResidualGraph | PathModule:
    """Read back what `save` wrote: a `PathModule` where the folder holds paths, else a `ResidualGraph`.

    Nothing in the folder is run, whoever wrote it; of what it says to call when the graph is run, only operators with
    a rule, PyTorch's functional ones and arithmetic are taken.

    Raises
    ------
    FileError
        A file is missing, damaged, not of the same save as the others, or of a newer version of the format.
    """
    source = _folder(folder)
    described, stored, tensors = _read(source)
    traced = traced_from_json(described, tensors)
    fields = described.members()
    title, parts = fields["title"].text(), _parts_from_json(fields["parts"])
    with _whole(source / GRAPH):
        graph = analysed(traced, title, parts)
    return graph if stored is None else _paths_from_json(stored, graph)


def _folder(folder: str | os.PathLike[str]) -> File:
    if not isinstance(folder, str | os.PathLike) or not (name := os.fspath(folder)) or not isinstance(name, str):
        raise InputError(f"{quoted(folder)} is no name of a folder: give one, as a text or a path")
    if "\0" in name:
        raise InputError(f"{quoted(folder)} is no name of a folder: it holds a zero byte")
    try:
        os.stat(name)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in Unicode"
        raise InputError(f"{quoted(folder)} is no name of a folder: {reason}") from error
    if os.path.exists(name) and not os.path.isdir(name):
        raise FileError(f"{name} is a file: name a folder, in which several files belong together")
    return File(name)


def _parts_to_json(parts: Split | None) -> Any:
    if parts is None or isinstance(parts, str):
        return parts
    return {
        pattern: share if isinstance(share, str | int) else [[int(index) for index in indices] for indices in share]
        for pattern, share in parts.items()
    }


def _parts_from_json(stored: Stored) -> Any:
    if stored.value is None or isinstance(stored.value, str):
        return stored.value
    return {pattern: _share_from_json(share) for pattern, share in stored.members().items()}


def _share_from_json(stored: Stored) -> Any:
    if isinstance(stored.value, str):
        return stored.value
    if isinstance(stored.value, list):
        return [[index.integer(0, LARGEST) for index in indices.items()] for indices in stored.items()]
    return stored.integer(1, LARGEST)


@contextlib.contextmanager
def _whole(file: File) -> Iterator[None]:
    """Values that are right one by one need not make a graph: what they fail by, the file is told to be damaged by."""
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, JetGraphError) else f"{type(error).__name__}: "
        raise FileError(
            f"{file} is damaged: what it describes does not hold together ({kind}{reason(error)})"
        ) from error


# Paths


def _paths_to_json(module: PathModule) -> dict[str, Any]:
    expansion: Expansion = module.expansion
    layers = [entry.point for entry in expansion.entries if entry.is_stream]
    return {
        "recipe": expansion.recipe,
        "order": expansion.order,
        "layers": layers if expansion.recipe == "lens" else None,
        "rules": {alias: rule_to_json(rule) for alias, rule in expansion.rules.items()},
        "paths": [str(path) for path in module.paths],
        **({} if module.wanted is None else {"wanted": _wanted_to_json(module.wanted)}),
    }


def _wanted_to_json(wanted: Selection) -> dict[str, Any]:
    """Which of the paths that a beam finds are kept."""
    asked, shortest, longest = wanted.asked()
    kinds = [{"path" if isinstance(one, Path) else "pattern": str(one)} for one in asked]
    return {"any": kinds, "min_length": shortest, "max_length": longest}


def _paths_from_json(stored: Stored, graph: ResidualGraph) -> PathModule:
    fields = stored.fields("recipe", "order", "layers", "rules", "paths", optional=("wanted",))
    layers = None if fields["layers"].value is None else [layer.integer(0) for layer in fields["layers"].items()]
    rules = {alias: rule_from_json(rule) for alias, rule in fields["rules"].members().items()}
    recipe, order = fields["recipe"].choice(get_args(Recipe)), fields["order"].integer(0, HIGHEST)
    texts = [path.text() for path in fields["paths"].items()]
    asked = None if "wanted" not in fields else _wanted_from_json(fields["wanted"])
    with _whole(File(stored.file)):
        # There is a rule for every site, so that the recipe's width is that of none.
        width = 1 if recipe == "beam" else None
        expansion = expand(graph, order, recipe=recipe, rules=rules, layers=layers, width=width)  # type: ignore[arg-type]
        if expansion.chooses != (asked is not None):
            raise InputError("paths that are found when it runs, and those that are known before, are not told apart")
        if asked is not None:
            wanted = [Path.parse(text) if kind == "path" else text for kind, text in asked[0]]
            chosen = select(expansion, wanted, min_length=asked[1], max_length=asked[2])
            return PathModule(expansion, (), wanted=chosen)
        return PathModule(expansion, [expansion.check(Path.parse(text)) for text in texts])


def _wanted_from_json(stored: Stored) -> tuple[list[tuple[str, str]], int | None, int | None]:
    """Kinds and texts of what is kept, and bounds on the length."""
    fields = stored.fields("any", "min_length", "max_length")
    shortest, longest = (
        None if fields[name].value is None else fields[name].integer(0) for name in ("min_length", "max_length")
    )
    found: list[tuple[str, str]] = []
    for one in fields["any"].items():
        given = one.fields(optional=("path", "pattern"))
        if len(given) != 1:
            raise one.damage("which is neither a path nor a pattern")
        found += [(kind, text.text()) for kind, text in given.items()]
    return found, shortest, longest


# The folder

_DIGEST = re.compile("[0-9a-f]{64}")
_CHUNK = 2**24
_TRIES = 20


def _replace(target: File, described: dict[str, Any], tensors: dict[str, Tensor], paths: dict[str, Any] | None) -> None:
    """Put all files of a save in the place of those that are there; the moment is that of graph.json."""
    staged: dict[str, str] = {}
    try:
        staged[WEIGHTS] = _stage(target / WEIGHTS, lambda file: save_file(tensors, file))
        if paths is not None:
            recipe = json.dumps(paths, indent=1)
            staged[PATHS] = _stage(target / PATHS, lambda file: file.write_text(recipe, encoding="utf-8"))
        described = {**described, "files": staged}
        text = json.dumps({**described, "digest": _seal(described)}, indent=1, allow_nan=False)
        write_atomically(target / GRAPH, lambda file: file.write_text(text, encoding="utf-8"))
    except BaseException:
        if _named(target) != staged:
            for name, digest in staged.items():
                _staged(target, name, digest).unlink(missing_ok=True)
        raise
    _settle(target, staged)
    if paths is None:
        (target / PATHS).unlink(missing_ok=True)


def _stage(file: File, write: Callable[[File], Any]) -> str:
    """Write a file beside the one that it is to replace, under a name for its digest; the digest."""
    with naming("write", file):
        part = fill_beside(file, write)
        try:
            # Else a computer that stops may keep the names and lose the content.
            with part.open("rb") as handle:
                os.fsync(handle.fileno())
            digest = _digest_of(part)
            part.replace(_staged(file.parent, file.name, digest))
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    return digest


def _staged(folder: File, name: str, digest: str) -> File:
    return folder / f".{digest[:16]}.{name}"


def _settle(target: File, files: Mapping[str, str] | None = None) -> None:
    """Give what was written beside, and is named by graph.json, its own name; also where a save was killed before."""
    for name, digest in (_named(target) if files is None else files).items():
        staged = _staged(target, name, digest)
        if staged.exists():
            staged.replace(target / name)


def _named(target: File) -> dict[str, str]:
    """The digests that a graph.json names, if there is one that does."""
    try:
        described = parse_json((target / GRAPH).read_text(encoding="utf-8-sig"))
        files = dict(described["files"])
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    return {name: digest for name, digest in files.items() if name in (WEIGHTS, PATHS) and _is_digest(digest)}


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


@contextlib.contextmanager
def _alone(folder: File) -> Iterator[bool]:
    """Wait until no other save into the folder is at work; False where the file system cannot tell."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield _locked(handle)
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        # Not every system has it.
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)
    except (ImportError, OSError):
        return False
    return True


_BESIDE = rf"\.[0-9a-f]{{16}}\.({re.escape(PATHS)}|{re.escape(WEIGHTS)})"
_OURS = re.compile("|".join([_BESIDE, *map(re.escape, (GRAPH, PATHS, WEIGHTS))]))
_LEFT = re.compile(
    "|".join(
        [
            _BESIDE,
            # Where safetensors writes before it gives the file its name.
            r"\.tmp[0-9A-Za-z]{6}",
            *(LEFTOVER.format(stem=File(name).stem, suffix=File(name).suffix) for name in (GRAPH, PATHS, WEIGHTS)),
        ]
    )
)


def _clear(target: File) -> None:
    """Remove what killed saves have left."""
    for file in target.iterdir():
        if _LEFT.fullmatch(file.name):
            file.unlink(missing_ok=True)


def _read(source: File) -> tuple[Stored, Stored | None, dict[str, Tensor]]:
    """What a folder describes, its paths if it has some, and its tensors; all of one save."""
    with naming("read", source):
        for _ in range(_TRIES):
            before = _state(source)
            try:
                found = _read_once(source)
            except JetGraphError:
                if _state(source) == before:
                    raise
            else:
                if _state(source) == before:
                    return found
            # Another process has saved in the meantime.
    raise FileError(f"cannot read {source}: it is saved to all the time")


def _state(source: File) -> Any:
    """Which files of a save there are, and in which versions."""
    found = []
    for file in source.iterdir() if source.is_dir() else ():
        if _OURS.fullmatch(file.name):
            with contextlib.suppress(FileNotFoundError):
                facts = file.lstat()
                found.append((file.name, facts.st_ino, facts.st_mtime_ns))
    return sorted(found)


_FIELDS = (
    *("version", "title", "parts", "output_name", "dynamic", "note", "defaults", "input_shapes", "positional"),
    *("module_types", "bindings", "nodes"),
)


def _read_once(source: File) -> tuple[Stored, Stored | None, dict[str, Tensor]]:
    described = _read_json(source / GRAPH)
    version = described.members().get("version")
    if version is None or version.value not in (1, VERSION) or isinstance(version.value, bool):
        raise FileError(
            f"{source / GRAPH} is of format {None if version is None else version.value!r}, and this version of "
            f"jetgraph reads 1 to {VERSION}: use the version of jetgraph that wrote it"
        )
    if version.value == 1:
        described.fields(*_FIELDS, "trainable")
        stored = _read_json(source / PATHS) if (source / PATHS).exists() else None
        return described, stored, _load_tensors(source / WEIGHTS)
    fields = described.fields(*_FIELDS, "parameters", "files", "digest", optional=("guards", "decisions"))
    if fields["digest"].text() != _seal(described.value):
        raise FileError(f"{source / GRAPH} is damaged: it does not have the digest that it was written with")
    files = fields["files"].fields(WEIGHTS, optional=(PATHS,))
    for digest in files.values():
        if not _is_digest(digest.value):
            raise digest.damage("which is no digest")
    stored = _read_json(_found(source, PATHS, files[PATHS].value)) if PATHS in files else None
    return described, stored, _load_tensors(_found(source, WEIGHTS, files[WEIGHTS].value))


def _found(source: File, name: str, digest: str) -> File:
    """The file of this digest: under its own name, or as a save that was killed has left it."""
    staged = _staged(source, name, digest)
    file = staged if staged.exists() else source / name
    with naming("read", file):
        found = _digest_of(file)
    if found != digest:
        raise FileError(
            f"cannot read {file}: it is not the file that {GRAPH} was saved with, but damaged, or of another save"
        )
    return file


def _load_tensors(file: File) -> dict[str, Tensor]:
    with naming("read", file):
        return load_file(file)


def _read_json(file: File) -> Stored:
    try:
        value = parse_json(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise FileError(
            f"{shown(file.parent)} holds no saved graph: cannot read {file.name}: {reason(error)}"
        ) from error
    except ValueError as error:
        raise FileError(f"{file} is damaged: {reason(error)}") from error
    stored = Stored(value, file)
    stored.members()
    return stored


def _seal(described: Mapping[str, Any]) -> str:
    """The digest of all that graph.json says besides it."""
    rest = {key: value for key, value in described.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _digest_of(file: File) -> str:
    """SHA-256 of the SHA-256s of a file's chunks of 16 MiB, which several cores take at once."""
    with file.open("rb") as handle, ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        size = os.fstat(handle.fileno()).st_size

        def one(start: int) -> bytes:
            return hashlib.sha256(os.pread(handle.fileno(), _CHUNK, start)).digest()

        return hashlib.sha256(b"".join(pool.map(one, range(0, size, _CHUNK)))).hexdigest()


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors takes them: contiguous, and none in another one's memory."""
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = held_tensor(name, tensor)
        if value.numel() and value.untyped_storage().data_ptr() in seen:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        separate[name] = value
    return separate
