"""Jobs in shards: `each` goes over units of work, all of them or those of a shard."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jetgraph.errors import InputError, StateError, UnfinishedError, amount, check, quoted
from jetgraph.export.waiting import progress
from jetgraph.files.writing import shown
from jetgraph.running.memory import give_back
from jetgraph.scale.places import check_state, clear, head_of, is_state
from jetgraph.scale.states import Record, State, code

EVERY = 10.0
"""Seconds after which a state is written again."""


@dataclass(frozen=True)
class Glance:
    """What there is of the work of a stage where an estimate has read the beginning of a text alone."""

    units: int
    share: float
    """Of all that is to be done."""


@dataclass(frozen=True)
class Parts:
    """What a unit that takes long is made of, so that a bar comes forward within it: `compute` tells by `advance`."""

    name: str
    """What they are, in the plural."""
    of: Callable[[int], int]
    """How many a unit has, by its number."""


_advance: ContextVar[Callable[[float], Any] | None] = ContextVar("moves the bar of the units", default=None)


def advance(number: int) -> None:
    """Say that so many more parts of the unit that is computed are done."""
    if (move := _advance.get()) is not None:
        move(number)


def _followed(
    done: Iterator[tuple[int, Record]], units: Sequence[int], stage: str, of: str, parts: Parts | None
) -> Iterator[tuple[int, Record]]:
    """Records of units as they come, with a bar that says how far they are, in parts of units where they have some."""
    sizes = {unit: 1 if parts is None else parts.of(unit) for unit in units}
    ended = 0
    with progress(total=sum(sizes.values()), desc=stage, unit=of if parts is None else parts.name) as bar:
        while True:
            token = _advance.set(None if parts is None else bar.update)
            try:
                unit, record = next(done, (None, {}))
            finally:
                _advance.reset(token)
            if unit is None:
                return
            ended += sizes[unit]
            bar.update(ended - bar.n)
            yield unit, record


class Job:
    """One function's work, of which a shard is done here. Made by `sharded`."""

    def __init__(self, file: Path, shard: tuple[int, int]) -> None:
        self.file = file
        self.shard = shard
        clear(file)
        self._seen = _version(file)
        self.state = State.load(file) if is_state(file) else State()
        self._kept = set(self.state.records)
        """What the file holds."""
        self.finished = False
        """All records were there, so that the function has returned its result."""
        self.told = ""
        """What is lacking, where it has not."""
        self._written = time.monotonic()
        self._pause = EVERY
        self._of: dict[str, str] = {}
        """What units are, by stage."""
        self._before = 0
        """Units of the stages before: shards take turns over all of them."""

    def fill(
        self,
        stage: str,
        total: int,
        compute: Callable[[int], Record],
        identity: Callable[[], Mapping[str, str]],
        glance: Glance | None = None,
        of: str = "units",
        parts: Parts | None = None,
    ) -> Callable[[], list[Record]]:
        """Do this shard's units of a stage; see `each`."""
        assert glance is None
        told = {"code": code(), **identity()}
        self.state.check_same(told, f"the state in {shown(self.file)}")
        if self.state.totals.get(stage, total) != total:
            raise InputError(
                f"the state in {shown(self.file)} is of another job: {stage} had {self.state.totals[stage]}"
            )
        is_new = stage not in self.state.totals
        self._of[stage] = of
        self.state = State(told, {**self.state.totals, stage: total}, self.state.records, self.state.sums)
        index, number = self.shard
        turn = (unit for unit in range(total) if (self._before + unit) % number == index)
        mine = [unit for unit in turn if (stage, unit) not in self.state.records]
        self._before += total
        try:
            done = self.records(stage, mine, compute)
            for unit, record in _followed(done, mine, stage, of, parts):
                self.state.take(stage, unit, record)
                if time.monotonic() - self._written > self._pause:
                    self._write()
        finally:
            if mine or is_new:
                self._write()
        return lambda: self._all(stage)

    def records(
        self, stage: str, units: Sequence[int], compute: Callable[[int], Record]
    ) -> Iterator[tuple[int, Record]]:
        """The records of some units, one after the other."""
        for unit in units:
            # What a unit needs of other jobs is its own.
            with alone():
                record = compute(unit)
            give_back()
            yield unit, record

    def _write(self) -> None:
        start = time.monotonic()
        if (now := _version(self.file)) is not None and now != self._seen:
            raise StateError(
                f"another job has written to {shown(self.file)} meanwhile, and what it did would be lost: give each a "
                "state of its own, and join them with jetgraph merge"
            )
        self.state.save(self.file, self._kept)
        clear(self.file)
        self._seen, self._kept = _version(self.file), set(self.state.records)
        self._written = time.monotonic()
        # A large state is not written all the time.
        self._pause = max(EVERY, 10 * (self._written - start))

    def _all(self, stage: str) -> list[Record]:
        lacking = self.state.lacking()
        if lacking:
            index, number = self.shard
            done = len(self.state.records)
            units = "; ".join(f"{stage}: {of}" for stage, of in self._of.items())
            self.told = (
                f"shard {index}/{number} is done: {shown(self.file)} holds {done:,} of "
                f"{amount(done + lacking, 'unit')} ({units}). Join the states of all shards with jetgraph merge STATES "
                "-o ALL, and give ALL to the same call"
            )
            raise UnfinishedError(self.told)
        self.finished = True
        return self.state.all_of(stage)


def _version(file: Path) -> tuple[int, int, int] | None:
    """What tells whether a file was put in the place of another; None where there is none."""
    try:
        facts = head_of(file).stat()
    except FileNotFoundError:
        return None
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


class Divided(Protocol):
    """What does some units of a job, and keeps what they give."""

    def fill(
        self,
        stage: str,
        total: int,
        compute: Callable[[int], Record],
        identity: Callable[[], Mapping[str, str]],
        glance: Glance | None = None,
        of: str = "units",
        parts: Parts | None = None,
    ) -> Callable[[], list[Record]]:
        """Do those of a stage; see `each`."""
        ...


@runtime_checkable
class Estimating(Divided, Protocol):
    """What does so few units of a job that it knows what all of them cost."""

    def longer(self, seconds: float) -> None:
        """What was read before the first unit would have taken so much longer as a whole."""
        ...


_job: ContextVar[Divided | None] = ContextVar("the job that is divided", default=None)


@contextmanager
def divided_by(job: Divided | None) -> Iterator[None]:
    """What says which units are done in here."""
    token = _job.set(job)
    try:
        yield
    finally:
        _job.reset(token)


def alone() -> AbstractContextManager[None]:
    """No job is being divided in here."""
    return divided_by(None)


def estimating() -> Estimating | None:
    """What estimates the job, if that is all that is done of it."""
    job = _job.get()
    return job if isinstance(job, Estimating) else None


def is_sharded() -> bool:
    """A job is being divided."""
    return _job.get() is not None


@contextmanager
def sharded(state: str | os.PathLike[str], shard: tuple[int, int] | None = None) -> Iterator[Job]:
    """Do one shard of the work of the function that is called inside, and keep its result in a file.

    Called with all records in the file, the function returns its result, which is that of the undivided job to the last
    bit; before, it ends where it needs what is lacking, and the block ends there without an error, `job.finished`
    being False. A job that was killed goes on from its file. States join with `merge`.

    Parameters
    ----------
    state
        A .safetensors file; or a .parquet folder, to which records are added as they come, as tables that other
        programs read too. Made where there is none.
    shard
        (i, n): every nth unit from the ith on. Unless given, that of the environment: `RANK` of `WORLD_SIZE`, or the
        place of `SLURM_ARRAY_TASK_ID` in its array, each with a file of its own, `<state>-<i>-of-<n>`; else all. A
        state in which nothing is lacking, as `merge` gives it, is taken as it is.

    Raises
    ------
    InputError
        A shard that is none; inside, a state of another job.
    FileError
        A file that is no state.
    StateError
        Inside, a file to which another job has written meanwhile.
    """
    check(sharded, locals())
    file = check_state(state)
    if shard is None and (shard := shard_of_environment()) is not None:
        if is_state(file) and State.load(file).is_whole:
            shard = None
        else:
            file = file.with_name(f"{file.stem}-{shard[0]}-of-{shard[1]}{file.suffix}")
    index, number = shard or (0, 1)
    if not 0 <= index < number:
        raise InputError(f"shard={quoted(shard)} is none: a shard (i, n) is one of n, counted from 0")
    job = Job(file, (index, number))
    with divided_by(job), suppress(UnfinishedError):
        yield job


def shard_of_environment() -> tuple[int, int] | None:
    """The shard that torchrun or a Slurm array says that this process is; None where none does.

    Raises
    ------
    InputError
        They say something else than numbers.
    """
    environment = os.environ
    names = [("RANK", "WORLD_SIZE"), ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")]
    for one, all_ in names:
        if one in environment and all_ in environment:
            try:
                number, first, step = int(environment[one]), 0, 1
                if one.startswith("SLURM"):
                    # An array of 3-9:2 has the tasks 3, 5, 7 and 9.
                    first = int(environment.get("SLURM_ARRAY_TASK_MIN", 0))
                    step = max(1, int(environment.get("SLURM_ARRAY_TASK_STEP", 1)))
                return (number - first) // step, int(environment[all_])
            except ValueError:
                raise InputError(
                    f"{one}={quoted(environment[one])} of {all_}={quoted(environment[all_])} is no shard"
                ) from None
    return None


def each(
    stage: str,
    total: int,
    compute: Callable[[int], Record],
    identity: Callable[[], Mapping[str, str]],
    glance: Glance | None = None,
    of: str = "units",
    parts: Parts | None = None,
) -> Callable[[], Sequence[Record]]:
    """Do units of work: all, or those of the shard where a job is divided.

    Parameters
    ----------
    stage
        What they are called, for people and in states; each of a job's stages has a name of its own.
    total
        How many there are.
    compute
        Gives the record of a unit by its number; it depends on nothing that another unit does. Units are asked for in
        ascending order.
    identity
        What the job is determined by besides this code: model, options, data.
    glance
        Which of the units there are, where the job is `estimating`, and has not read all that it is of.
    of
        What units are, for people: `checkpoints`, `chunks of 512 contexts`.
    parts
        What they are made of, where each takes long.

    Returns
    -------
    Callable[[], Sequence[Record]]
        Gives all records in order, and is an `UnfinishedError` where some are in other shards. A function first does
        its stages, and asks for records then. What records have that is added up (`ADDED`) stands in the first one.
    """
    job = _job.get()
    if job is not None:
        return job.fill(stage, total, compute, identity, glance, of, parts)
    state = State(totals={stage: total})
    done = ((unit, compute(unit)) for unit in range(total))
    for unit, record in _followed(done, range(total), stage, of, parts):
        state.take(stage, unit, record)
        give_back()
    return lambda: state.all_of(stage)
