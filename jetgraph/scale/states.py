"""What a shard of a job has computed, as a file, and how such files join.

A job goes over *units* of work that have nothing to do with each other (rows of a table, windows of a text), in stages.
A state holds a record for each unit that is done: tensors by name. States of one job join by putting their records
together, in any order and any grouping, and what a job makes of all records it makes of them in the order of the units;
so the result is that of a job that was never divided, to the last bit. What is too large to be kept for each unit is
added up: whole numbers, whose sums are the same in any order, and floats on a grid of whole numbers (`onto_grid`).
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from jetgraph.errors import FileError, InputError, StateError, amount, check, quoted
from jetgraph.files.writing import (
    is_file,
    make_folder,
    naming,
    parse_json,
    shown,
    write_atomically,
)
from jetgraph.lazy.tensors import Deferred
from jetgraph.residual import ResidualGraph
from jetgraph.scale.places import HEAD, check_state, head_of, is_state
from jetgraph.scale.tables import read_records, write_records

VERSION = 2
"""Of the format."""

ADDED = "added/"
"""What begins the names of tensors in a record that are kept as sums over all units."""

Record = Mapping[str, Tensor]
"""What a unit of work has given; tensors whose names begin with `ADDED` are whole numbers."""

COARSE, FINE = 20, 60
"""Powers of two of the two grids of `onto_grid`."""


@dataclass(frozen=True, eq=False)
class State:
    """Records of a job. Made by `jetgraph.sharded`, or read by `State.load`."""

    identity: Mapping[str, str] = field(default_factory=dict)
    """What the job is determined by: model, code and options, by name. Empty where nothing is done yet."""
    totals: Mapping[str, int] = field(default_factory=dict)
    """How many units each stage has."""
    records: dict[tuple[str, int], dict[str, Tensor]] = field(default_factory=dict)
    """By stage and number of the unit, without what is added up."""
    sums: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    """What is added up over the units of a stage that are done, by stage and name."""

    def take(self, stage: str, unit: int, record: Record) -> None:
        """Put in the record of one unit more, all of it at the end: an interrupt on the way must leave no half."""
        kept, sums = dict[str, Tensor](), dict[tuple[str, str], Tensor]()
        for name, value in record.items():
            tensor = value.detach().cpu()
            if name.startswith(ADDED):
                assert not tensor.is_floating_point(), f"{stage}: {name} is no whole number, and depends on the order"
                before = self.sums.get((stage, name))
                sums[stage, name] = tensor if before is None else _added(before, tensor, f"{name} of {stage!r}")
            else:
                kept[name] = tensor
        self.sums.update(sums)
        self.records[stage, unit] = kept

    def all_of(self, stage: str) -> list[Record]:
        """The records of a stage in order; what was added up stands in the first."""
        found: list[Record] = [self.records[stage, unit] for unit in range(self.totals[stage])]
        added = {name: tensor for (of, name), tensor in self.sums.items() if of == stage}
        return [{**found[0], **added}, *found[1:]] if added else found

    def lacking(self) -> int:
        """How many units are not done, of the stages that have begun."""
        return sum(self.totals.values()) - len(self.records)

    @property
    def is_whole(self) -> bool:
        """There are stages, and none of their units is lacking."""
        return bool(self.totals) and not self.lacking()

    def check_units(self) -> None:
        """Raise `ValueError` where a stage has no number of units, or a record is of none of them."""
        for stage, total in self.totals.items():
            if type(total) is not int or total < 0:
                raise ValueError(f"stage {stage!r} has {total!r} units")
        for stage, unit in self.records:
            if not 0 <= unit < self.totals.get(stage, 0):
                raise ValueError(f"it holds unit {unit} of {stage!r}, which has {self.totals.get(stage, 0)}")
        for stage, name in self.sums:
            if not any(of == stage for of, _ in self.records):
                raise ValueError(f"it holds the sum {name!r} of {stage!r}, and none of its units")

    def check_same(self, identity: Mapping[str, str], what: str) -> None:
        """Raise `InputError` where `what` is the state of another job than that of an identity."""
        differs = [key for key in {**self.identity, **identity} if self.identity.get(key) != identity.get(key)]
        if self.identity and differs:
            told = {key: _apart(self.identity.get(key), identity.get(key)) for key in differs}
            seen = ", ".join(f"{key} ({one} there, {another} here)" for key, (one, another) in told.items())
            raise InputError(f"{what} is of another job: {seen} differ. Shards of one job have all of these in common")

    def merge(self, other: State) -> State:
        """The records of both.

        Raises
        ------
        InputError
            They are of different jobs, or have computed a unit both and not the same.
        """
        other.check_same(self.identity or other.identity, "one of the states")
        for stage in self.totals.keys() & other.totals.keys():
            if self.totals[stage] != other.totals[stage]:
                raise InputError(
                    f"one of the states is of another job: {stage!r} has {amount(other.totals[stage], 'unit')} there, "
                    f"and {self.totals[stage]} in the others"
                )
        for key in self.records.keys() & other.records.keys():
            one, two = self.records[key], other.records[key]
            if one.keys() != two.keys() or not all(_equal(one[name], two[name]) for name in one):
                raise InputError(
                    f"two states hold unit {key[1]} of {key[0]!r}, and not the same: they were computed on machines "
                    "that round differently; leave one of the two out"
                )
        return State(
            self.identity or other.identity,
            {**self.totals, **other.totals},
            {**self.records, **other.records},
            self._sums_with(other),
        )

    def _sums_with(self, other: State) -> dict[tuple[str, str], Tensor]:
        sums = dict(self.sums)
        for (stage, name), tensor in other.sums.items():
            own, others = ({unit for of, unit in state.records if of == stage} for state in (self, other))
            if (stage, name) not in sums or own < others:
                sums[stage, name] = tensor
            elif not own & others:
                sums[stage, name] = _added(sums[stage, name], tensor, f"{name} of {stage!r}")
            elif own == others and not _equal(sums[stage, name], tensor):
                raise InputError(
                    f"two states hold the same units of {stage!r}, and not the same sums: they were computed on "
                    "machines that round differently; leave one of the two out"
                )
            elif not others <= own:
                raise InputError(
                    f"two states hold unit {min(own & others)} of {stage!r}, of which sums over all units are kept, "
                    "and each holds units that the other does not: leave one of the two out"
                )
        return sums

    def save(self, file: str | os.PathLike[str], kept: Collection[tuple[str, int]] = ()) -> Path:
        """Write it, whole or not at all: as .safetensors, or into a folder .parquet, where the records that are `kept`
        there already stay as they are.
        """
        target = check_state(file)
        if target.suffix.lower() != ".parquet":
            return self._write(target, self.records)
        if not is_state(make_folder(target)):
            # From now on the folder is known for one of a state, also if this process is killed.
            State(self.identity, self.totals)._write(target / HEAD, {}, parts=[])
        parts = _parts(target) if kept else []
        if fresh := {key: record for key, record in self.records.items() if key not in kept}:
            parts = [*parts, f"part-{len(parts):05}-{secrets.token_hex(4)}.parquet"]
            write_records(fresh, target / parts[-1])
        self._write(target / HEAD, {}, parts=parts)
        for left in target.glob("part-*.parquet"):
            # Of a process that was killed before it wrote the head, or of what this one has taken the place of.
            if left.name not in parts:
                left.unlink(missing_ok=True)
        return target

    def _write(self, file: Path, records: Mapping[tuple[str, int], Record], **facts: Any) -> Path:
        tensors = {
            f"{stage}/{unit}/{name}": tensor.contiguous()
            for (stage, unit), record in sorted(records.items())
            for name, tensor in record.items()
        } | {f"{stage}/{name}": tensor.contiguous() for (stage, name), tensor in self.sums.items()}
        empty = [[stage, unit] for (stage, unit), record in records.items() if not record]
        told = {"empty": empty, "job": self.identity, "totals": self.totals, **facts}
        metadata = {
            "jetgraph": str(VERSION),
            **{name: json.dumps(value, sort_keys=True) for name, value in told.items()},
        }

        def fill(path: Path) -> None:
            # safetensors writes to a file of a name of its own first: whose that is, is told by the folder it is in.
            with tempfile.TemporaryDirectory(prefix=f"{path.name}.", dir=path.parent) as inside:
                save_file(tensors, Path(inside, HEAD), metadata=metadata)
                Path(inside, HEAD).replace(path)

        return write_atomically(file, fill)

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> State:
        """Read what `save` has written.

        Raises
        ------
        FileError
            Anything else.
        """
        path = Path(file)
        whole = head_of(path)
        if not is_file(whole):
            raise FileError(f"there is no file {quoted(str(whole))}: a state is written by --state, with --shard")
        records: dict[tuple[str, int], dict[str, Tensor]] = {}
        sums: dict[tuple[str, str], Tensor] = {}
        try:
            with safetensors.safe_open(whole, framework="pt") as stored:
                facts = stored.metadata() or {}
                if not facts.keys() >= {"jetgraph", "empty", "job", "totals"}:
                    raise ValueError("it holds tensors of something else")
                if facts["jetgraph"] != str(VERSION):
                    raise ValueError(f"it is of version {facts['jetgraph']}, and this is version {VERSION}")
                for key in stored.keys():  # noqa: SIM118 (it is no mapping)
                    stage, unit, name = key.rsplit("/", 2)
                    if f"{unit}/" == ADDED:
                        sums[stage, f"{unit}/{name}"] = stored.get_tensor(key)
                    else:
                        records.setdefault((stage, int(unit)), {})[name] = stored.get_tensor(key)
            records |= {(stage, unit): {} for stage, unit in parse_json(facts["empty"])}
            for part in _parts(path) if whole != path else ():
                records |= read_records(path / part)
            state = cls(dict(parse_json(facts["job"])), dict(parse_json(facts["totals"])), records, sums)
            state.check_units()
            return state
        except (OSError, safetensors.SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise FileError(f"{shown(path)} is no state of a job: {error}") from error


def _parts(folder: Path) -> list[str]:
    """The names of the tables that a state in a folder has."""
    with safetensors.safe_open(folder / HEAD, framework="pt") as stored:
        names = parse_json(stored.metadata()["parts"])
    if not isinstance(names, list) or any(Path(name).name != name for name in names):
        raise ValueError(f"{names!r} are no files beside its head")
    return names


def merge(files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> State:
    """Join the states of shards, read from files, into one.

    Raises
    ------
    FileError, InputError
        As `State.load` and `State.merge`, and no file.
    """
    check(merge, locals())
    listed = [files] if isinstance(files, str | os.PathLike) else list(files)
    if not listed:
        raise InputError("there is no state to join: name the files that --state, or jetgraph.sharded, has written")
    joined = State()
    for file in listed:
        joined = joined.merge(State.load(file))
    return joined


def _added(one: Tensor, other: Tensor, what: str) -> Tensor:
    """The sum of whole numbers.

    Raises
    ------
    StateError
        It is larger than their type holds.
    """
    total = one + other
    # A sum that has another sign than both of what it is made of has gone round.
    if bool((((one ^ total) & (other ^ total)) < 0).any()):
        raise StateError(f"{what} is larger than {total.dtype} holds, and cannot be added up exactly")
    return total


def _equal(one: Tensor, other: Tensor) -> bool:
    """Bit by bit: NaN is what NaN is."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    views = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(*views)


def onto_grid(values: Tensor) -> tuple[Tensor, Tensor]:
    """Floats as whole numbers of 2^−20 and, what they leave, of 2^−60, so that sums are the same in any order.

    Raises
    ------
    StateError
        A number that is none, or too large to be added up.

    >>> values = torch.tensor([1 / 3, -5e6], dtype=torch.float64)
    >>> torch.equal(from_grid(*onto_grid(values)), values)
    True
    """
    values = values.double()
    if not bool((values.abs() < 2**40).all()):
        raise StateError(f"{float(values.abs().max()):g} cannot be added up exactly: it has to be below 2^40")
    coarse = (values * 2**COARSE).round()
    rest = ((values - coarse / 2**COARSE) * 2**FINE).round()
    return coarse.long(), rest.long()


def from_grid(coarse: Tensor, fine: Tensor) -> Tensor:
    """What sums of whole numbers of both grids come to, in float64."""
    return coarse.double() / 2**COARSE + fine.double() / 2**FINE


SHOWN = 30
"""Letters of what two jobs differ in."""


def _apart(one: str | None, other: str | None) -> tuple[str, str]:
    """Two texts around the place from which on they differ."""
    if one is None or other is None:
        return _cut(one, 0), _cut(other, 0)
    same = next((place for place, pair in enumerate(zip_longest(one, other)) if pair[0] != pair[1]), 0)
    start = max(0, same - SHOWN // 3) if max(len(one), len(other)) > SHOWN else 0
    return _cut(one, start), _cut(other, start)


def _cut(text: str | None, start: int) -> str:
    if text is None:
        return "none"
    return "…" * (start > 0) + text[start : start + SHOWN] + "…" * (len(text) > start + SHOWN)


def digest_of_tensors(tensors: Mapping[str, Tensor], *facts: object) -> str:
    """A digest of tensors by name, and of facts; of weights that are in files, by what tells them apart there."""
    digest = hashlib.sha256(repr(facts).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(repr((name, tuple(tensor.shape), tensor.dtype)).encode())
        if isinstance(tensor, Deferred):
            digest.update(tensor.mark())
        else:
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of_model(graph: ResidualGraph) -> str:
    """A digest of a model's program and of all its weights."""
    return digest_of_tensors(graph.traced.tensors, str(graph.traced.graph))


PIECE, APART = 2**12, 2**20
"""Bytes of a piece of a file, and from one to the next: a weight of more than that cannot differ unseen."""


def digest_of_files(path: str | os.PathLike[str]) -> str:
    """A digest of a file, or of those in a folder: of names and sizes, of small files, and of pieces of large ones."""
    root, digest = Path(path), hashlib.sha256()
    # Hidden ones are of the system, and of whoever is writing just now.
    inside = sorted(root.iterdir()) if root.is_dir() else [root]
    files = [file for file in inside if is_file(file) and (file == root or not file.name.startswith("."))]
    with naming("read", root):
        for file in files:
            size = file.stat().st_size
            digest.update(repr((file.relative_to(root).as_posix(), size)).encode())
            with file.open("rb") as opened:
                for start in range(0, size, APART if size > 64 * APART else PIECE):
                    opened.seek(start)
                    digest.update(opened.read(PIECE))
    return digest.hexdigest()


@cache
def code() -> str:
    """A digest of this library's code, and the version of torch."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256(torch.__version__.encode())
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()
