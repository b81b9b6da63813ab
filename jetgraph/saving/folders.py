"""The files of a save, which belong together: written so that a reader finds the old ones or the new, and read so.

See `jetgraph.saving.models`, which says what is in them.
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
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from jetgraph.errors import FileError, JetGraphError
from jetgraph.files.stored import Stored
from jetgraph.files.writing import LEFTOVER, fill_beside, naming, parse_json, reason, shown, write_text
from jetgraph.saving.serialization import held_tensor

VERSION = 2
"""Of the format; 1, without digests, is read too."""
GRAPH, PATHS, WEIGHTS = "graph.json", "paths.json", "weights.safetensors"

_DIGEST = re.compile("[0-9a-f]{64}")
_CHUNK = 2**24
_TRIES = 20


def replace_save(
    target: File, described: dict[str, Any], tensors: dict[str, Tensor], paths: dict[str, Any] | None
) -> None:
    """Put all files of a save in the place of those that are there; the moment is that of graph.json."""
    staged: dict[str, str] = {}
    try:
        staged[WEIGHTS] = _stage(target / WEIGHTS, lambda file: save_file(tensors, file))
        if paths is not None:
            recipe = json.dumps(paths, indent=1)
            staged[PATHS] = _stage(target / PATHS, lambda file: file.write_text(recipe, encoding="utf-8"))
        described = {**described, "files": staged}
        text = json.dumps({**described, "digest": seal(described)}, indent=1, allow_nan=False)
        write_text(target / GRAPH, text)
    except BaseException:
        if _named(target) != staged:
            for name, digest in staged.items():
                _staged(target, name, digest).unlink(missing_ok=True)
        raise
    settle(target, staged)
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
            digest = digest_of_file(part)
            part.replace(_staged(file.parent, file.name, digest))
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    return digest


def _staged(folder: File, name: str, digest: str) -> File:
    return folder / f".{digest[:16]}.{name}"


def settle(target: File, files: Mapping[str, str] | None = None) -> None:
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
def alone(folder: File) -> Iterator[bool]:
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


def clear(target: File) -> None:
    """Remove what killed saves have left."""
    for file in target.iterdir():
        if _LEFT.fullmatch(file.name):
            file.unlink(missing_ok=True)


def read_save(source: File) -> tuple[Stored, Stored | None, dict[str, Tensor]]:
    """What a folder describes, its paths if it has some, and its tensors; all of one save."""
    with naming("read", source):
        for _ in range(_TRIES):
            before = _state(source)
            try:
                contents = _read_once(source)
            except JetGraphError:
                if _state(source) == before:
                    raise
            else:
                if _state(source) == before:
                    return contents
            # Another process has saved in the meantime.
    raise FileError(f"cannot read {source}: it is saved to all the time")


def _state(source: File) -> Any:
    """Which files of a save there are, and in which versions."""
    versions = []
    for file in source.iterdir() if source.is_dir() else ():
        if _OURS.fullmatch(file.name):
            with contextlib.suppress(FileNotFoundError):
                facts = file.lstat()
                versions.append((file.name, facts.st_ino, facts.st_mtime_ns))
    return sorted(versions)


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
    fields = described.fields(*_FIELDS, "parameters", "files", "digest", optional=("guards", "decisions", "absent"))
    if fields["digest"].text() != seal(described.value):
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
        actual = digest_of_file(file)
    if actual != digest:
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


def seal(described: Mapping[str, Any]) -> str:
    """The digest of all that graph.json says besides it."""
    rest = {key: value for key, value in described.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest_of_file(file: File) -> str:
    """SHA-256 of the SHA-256s of a file's chunks of 16 MiB, which several cores take at once."""
    with file.open("rb") as handle, ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        size = os.fstat(handle.fileno()).st_size

        def one(start: int) -> bytes:
            return hashlib.sha256(os.pread(handle.fileno(), _CHUNK, start)).digest()

        return hashlib.sha256(b"".join(pool.map(one, range(0, size, _CHUNK)))).hexdigest()


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
