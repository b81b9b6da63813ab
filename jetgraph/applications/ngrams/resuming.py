"""A run's state in a folder, from which the same call goes on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path as File

import safetensors
from safetensors.torch import save_file

from jetgraph.applications.ngrams.search import Entries, Search
from jetgraph.errors import FileError, InputError
from jetgraph.files.writing import is_file, make_folder, parse_json, shown, write_atomically


class State:
    """The folder of a run: `state.safetensors`, and for `per="row"` one file per chunk beside it."""

    def __init__(self, folder: File, identity: Mapping[str, str], search: Search) -> None:
        self._folder = folder
        self._identity = dict(identity)
        self._search = search
        self._file = folder / "state.safetensors"
        self._parts = 0

    def restore(self) -> int:
        """The row at which to go on; what was found before it is given to the search."""
        if is_file(self._folder):
            raise FileError(f"resume={str(self._folder)!r} is a file: name a folder for the state of the run")
        make_folder(self._folder)
        if not self._file.exists():
            return 0
        facts, entries = _read(self._file)
        try:
            given = dict(parse_json(facts["run"]))
            parts, following = int(facts["parts"]), int(facts["next"])
        except (KeyError, ValueError, TypeError) as error:
            raise FileError(
                f"{shown(self._file)} is no state of a run of ngrams ({error}): remove its folder, and start again"
            ) from error
        differs = [name for name, value in self._identity.items() if given.get(name) != value]
        if differs:
            raise InputError(
                f"{shown(self._folder)} holds the state of another run: {', '.join(differs)} differ. Name another "
                "folder, or remove it"
            )
        self._parts = parts
        for part in range(self._parts):
            self._search.restore(_read(self._part(part))[1])
        if not self._parts and len(entries[0]):
            self._search.restore(entries)
        return following

    def write(self, start: int, kept: Entries) -> None:
        """Keep what was found up to row `start`."""
        facts = {"run": json.dumps(self._identity), "next": str(start)}
        if self._search.by_row:
            # Written first: a part that no state counts is written again.
            _write(self._part(self._parts), kept, {})
            self._parts += 1
            kept = (kept[0][:0], kept[1][:0], kept[2][:0])
        _write(self._file, kept, facts | {"parts": str(self._parts)})

    def _part(self, number: int) -> File:
        return self._folder / f"rows-{number:06d}.safetensors"


_NAMES = ("row", "next", "score")


def _write(file: File, entries: Entries, facts: dict[str, str]) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in zip(_NAMES, entries, strict=True)}
    write_atomically(file, lambda path: save_file(tensors, path, metadata=facts))


def _read(file: File) -> tuple[dict[str, str], Entries]:
    try:
        with safetensors.safe_open(file, framework="pt") as held:
            row, following, score = (held.get_tensor(name) for name in _NAMES)
            return held.metadata() or {}, (row, following, score)
    except (OSError, safetensors.SafetensorError) as error:
        raise FileError(
            f"{file} is no state of a run of ngrams ({error}): remove its folder, and start again"
        ) from error
