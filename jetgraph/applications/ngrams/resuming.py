"""A run's state in a folder, from which the same call goes on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path as File

import safetensors
from safetensors.torch import save_file

from jetgraph.applications.ngrams.information import Information
from jetgraph.applications.ngrams.search import Search, entries_of
from jetgraph.errors import FileError, InputError
from jetgraph.files.writing import is_file, make_folder, parse_json, shown, write_atomically
from jetgraph.scale.states import Record


class State:
    """The folder of a run: `state.safetensors`, and beside it one file per chunk where each leaves something of its
    own.
    """

    def __init__(self, folder: File, identity: Mapping[str, str], search: Search | Information) -> None:
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
        facts, held = _read(self._file)
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
            self._search.take(self._kept(part))
        self._search.take(held)
        return following

    def write(self, start: int) -> None:
        """Keep what was found up to row `start`."""
        facts = {"run": json.dumps(self._identity), "next": str(start)}
        if fresh := self._search.fresh:
            # Written first: a part that no state counts is written again.
            _write(self._part(self._parts), fresh, {})
            self._parts += 1
        _write(self._file, self._search.held, facts | {"parts": str(self._parts)})

    def _kept(self, number: int) -> Record:
        """What a chunk has left."""
        record = _read(self._part(number))[1]
        if entries_of(record) is None:
            raise FileError(f"{self._part(number)} holds no n-grams: remove its folder, and start again")
        return record

    def _part(self, number: int) -> File:
        return self._folder / f"rows-{number:06d}.safetensors"


def _write(file: File, record: Record, facts: dict[str, str]) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in record.items()}
    write_atomically(file, lambda path: save_file(tensors, path, metadata=facts))


def _read(file: File) -> tuple[dict[str, str], Record]:
    try:
        with safetensors.safe_open(file, framework="pt") as held:
            return held.metadata() or {}, {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise FileError(
            f"{file} is no state of a run of ngrams ({error}): remove its folder, and start again"
        ) from error
