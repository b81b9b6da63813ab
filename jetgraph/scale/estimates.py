"""What a job will cost, from a few of its own units of work.

A job that goes over units (`jetgraph.scale.shards.each`) does some of each stage while it is estimated: the first ones,
in which code is still being made, and others at even distances, until the time for it is over. Their seconds,
floating-point operations and memory, times what is left, are those of the whole job on this machine. What comes before
the first unit (loading, tracing) is done as it is, and timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from jetgraph.errors import InputError, UnfinishedError, amount, check, several
from jetgraph.lazy.shelf import bytes_read
from jetgraph.running.memory import give_back
from jetgraph.scale.shards import Glance, Parts, alone, divided_by
from jetgraph.scale.states import ADDED, Record

SECONDS = 10.0
"""What an estimate may take for each stage of a job."""

FIRST = 4
"""Units at the beginning, which are slower than others: code is made in them."""

SPREAD = 24
"""Units that are done at most besides."""


@dataclass(frozen=True)
class Stage:
    """What one stage of a job costs."""

    name: str
    units: int
    looked_at: int
    """Units that were done to know it."""
    seconds: float
    flops: int
    """2 for each multiplication and addition of its products."""
    read: int
    """Bytes of weights that are read from files in the meantime; 0 where they are in memory."""
    kept: int
    """Bytes of what its units give."""
    of: str = "units"
    """What units are."""


@dataclass
class Estimate:
    """What a job costs. Made by `estimated`, and filled while the job is called inside."""

    stages: list[Stage] = field(default_factory=list)
    before: float = 0.0
    """Seconds before the first unit: loading, tracing, counting tokens."""
    peak: int = 0
    """The most memory of the process while units were done, in bytes, without what they give; 0 where it is unknown."""
    budget: float = SECONDS

    @property
    def units(self) -> int:
        """Of all stages; there can be no more shards."""
        return sum(stage.units for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Of the whole job in one process."""
        return self.before + sum(stage.seconds for stage in self.stages)

    @property
    def memory(self) -> int:
        """Bytes of the process at most."""
        return self.peak + sum(stage.kept for stage in self.stages)

    def shards(self, seconds: float = 3600.0) -> int:
        """How many are done in so many seconds each, loading and tracing included; no more than there are units."""
        working = max(seconds - self.before, seconds / 10)
        wanted = -(-sum(stage.seconds for stage in self.stages) // working)
        return int(min(max(1, self.units), max(1, wanted)))

    def longer(self, seconds: float) -> None:
        """What was read before the first unit would have taken so much longer as a whole."""
        self._unread += seconds

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
        """Do some units of a stage; see `jetgraph.scale.shards.each`."""
        start = time.perf_counter()
        if not self.stages:
            self.before = start - self._started + self._unread
        reset_peak()
        counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.linear: _of_linear})
        there, share = (total, 1.0) if glance is None else (glance.units, glance.share)
        with alone():
            took, kept, read = self._tried(there, compute, counter)
        self.peak = max(self.peak, peak())
        first, rest = took[:FIRST], took[FIRST:] or took[-1:]
        seconds = sum(first) + median(rest) * max(0, there - len(first)) if took else 0.0
        read = int(read * there / max(1, len(took)) / share)
        flops = int(counter.get_total_flops() * there / share)
        whole = int(kept[0] * there / share) + kept[1]
        self.stages.append(Stage(stage, total, len(took), seconds / share, flops, read, whole, of))

        def unfinished() -> list[Record]:
            raise UnfinishedError("the job was estimated, and not done")

        return unfinished

    def _tried(
        self, total: int, compute: Callable[[int], Record], counter: FlopCounterMode
    ) -> tuple[list[float], tuple[int, int], int]:
        """Seconds of some units, in ascending order; bytes that each gives at most, of its own and of sums over all
        units; and bytes that all have read.
        """
        took, kept, read = list[float](), (0, 0), bytes_read()
        start = time.perf_counter()
        # Counting takes time of its own, so what is counted is not timed, but where it is all and takes long.
        for unit in range(total)[:2][-1:]:
            with counter:
                record = compute(unit)
            if total == 1 and (seconds := time.perf_counter() - start) > self.budget:
                return [seconds], _kept(record), bytes_read() - read
            read = bytes_read()
        for unit in _sample(total):
            now = time.perf_counter()
            # The first alone says little: what others share may be made before it.
            if len(took) >= min(2, total) and now - start > self.budget:
                break
            record = compute(unit)
            kept = max(kept[0], _kept(record)[0]), max(kept[1], _kept(record)[1])
            give_back()
            took.append(time.perf_counter() - now)
        return took, kept, bytes_read() - read

    def __post_init__(self) -> None:
        self._started = time.perf_counter()
        self._unread = 0.0

    def __repr__(self) -> str:
        lines = [("stage", "units", "FLOPs", "bytes read", "seconds")]
        lines += [
            (one.name, several(one.units, one.of), f"{one.flops:.2e}", f"{one.read:,}", f"{one.seconds:.3g}")
            for one in self.stages
        ]
        widths = [max(len(line[at]) for line in lines) for at in range(5)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        shards = self.shards()
        return "\n".join(
            [
                f"Estimate: {self.seconds:.3g} s on this machine in one process, {self.before:.3g} of them before the "
                f"first unit; at most {self.memory / 2**20:,.0f} MiB of memory",
                *(line.rstrip() for line in table),
                f"{amount(self.units, 'unit')}, so as many shards at most; {shards} of an hour at most each",
            ]
        )


def _kept(record: Record) -> tuple[int, int]:
    """Bytes of what is kept of a unit, and of what is added to that of others."""
    own, added = ([one.nbytes for name, one in record.items() if name.startswith(ADDED) == sums] for sums in (0, 1))
    return sum(own), sum(added)


def _of_linear(value: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of a product that is written into memory which is there, by shapes: torch counts all others."""
    return 2 * prod(value) * weight[0]


def _sample(total: int) -> list[int]:
    """Units in ascending order: the first ones, and others at even distances."""
    rest = max(0, total - FIRST)
    number = min(SPREAD, rest)
    return [*range(min(FIRST, total)), *(FIRST + i * rest // number for i in range(number))]


@contextmanager
def estimated(seconds: float = SECONDS) -> Iterator[Estimate]:
    """Estimate what the job that is called inside will cost, by doing only a little of it.

    Parameters
    ----------
    seconds
        What each stage of the job may take for that; a unit that has begun is done.

    Raises
    ------
    InputError
        Seconds that are none.

    >>> from jetgraph.scale.shards import Parts, each
    >>> with estimated(0.1) as estimate:
    ...     records = each("products", 1000, lambda unit: {"x": torch.eye(8) @ torch.eye(8)}, dict)()
    >>> estimate.units, estimate.stages[0].flops
    (1000, 1024000)
    """
    check(estimated, locals())
    if not seconds > 0:
        raise InputError(f"seconds={seconds} is no time to estimate in: give a number above 0")
    estimate = Estimate(budget=seconds)
    with divided_by(estimate), suppress(UnfinishedError):
        yield estimate


# The process


def reset_peak() -> None:
    """Forget how much memory the process has had."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    # A system that does not let a process do this tells the most since it began.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak() -> int:
    """The most memory that the process had since then, with that of its device; 0 where the system does not say."""
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    status = Path("/proc/self/status")
    if not status.exists():
        return device
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines() if ":" in line)
    return device + int(lines["VmHWM"].split()[0]) * 1024
