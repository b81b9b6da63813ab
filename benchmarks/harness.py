"""One way to measure: rounds in which all contestants alternate, medians with quartiles, peak memory, and agreement.

A `Case` is one piece of work. Its contestants are the floor (what no method can avoid), jetgraph, and the rivals, each
with a distance of its result from an oracle in float64 that none of them had a part in. A rival that is not there, or
that cannot do the work, stays in the table with the reason.

Peak memory is measured in processes of their own, one per contestant, where the work is short: what a process held at
most during the work, less what it held before (the model, and what the contestant had prepared).
"""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

ROOT = Path(__file__).parents[1]

LONG = 5.0
"""Seconds from which on a first run needs no warm-up: it counts."""

VERY_LONG = 10.0
"""Seconds from which on three rounds have to do for a rival."""

Role = Literal["floor", "jetgraph", "rival"]


@dataclass(frozen=True)
class Setting:
    """Sizes and conditions; GPT-2 small unless `quick`."""

    quick: bool = False
    layers: int = 12
    width: int = 768
    heads: int = 12
    vocabulary: int = 50257
    positions: int = 1024
    batch: int = 4
    """Rows of a block's jets."""
    length: int = 32
    """Tokens in each of them."""
    tokens: int = 64
    """Tokens of the text that lenses look at."""
    terms: int = 1000
    """Selected paths."""
    term_tokens: int = 8
    """Tokens of the text on which those are evaluated: every one of them has logits of its own."""
    top: int = 100
    """Bi-grams that are asked for."""
    orders: tuple[int, ...] = (1, 2, 3, 4)
    """Of a block's jets."""
    rounds: int = 5
    threads: int = 2
    device: str = "cpu"
    dtype: str = "float32"
    """Of the Llama."""
    checkpoint: str | None = None
    """A folder with a trained Llama, in place of one with random weights."""
    jex: str | None = None
    """A checkout of github.com/lucfra/JetExpansions."""
    torch_jet: str | None = None
    """A checkout of github.com/f-dangel/torch-jet, where jet-for-pytorch is not installed."""
    transformer_lens: str | None = None
    """The Python of an environment that has TransformerLens."""
    large: bool = False
    """Trace Llama 3.1 405B on the meta device as well."""
    memory: bool = True
    """Measure peak memory, in processes of their own."""

    @classmethod
    def small(cls) -> Setting:
        """A model that takes no time: to see that everything runs, not to measure."""
        return cls(
            quick=True,
            layers=2,
            width=32,
            heads=4,
            vocabulary=211,
            positions=64,
            batch=2,
            length=6,
            tokens=7,
            terms=40,
            term_tokens=5,
            top=10,
            orders=(1, 2, 3),
            rounds=2,
        )

    @classmethod
    def seven_billion(cls) -> Setting:
        """A Llama of 7 billion weights in bfloat16, on a GPU."""
        return cls(
            layers=32,
            width=4096,
            heads=32,
            vocabulary=32000,
            tokens=512,
            rounds=3,
            device="cuda",
            dtype="bfloat16",
        )

    @classmethod
    def read(cls, text: str) -> Setting:
        """From the JSON of `text`; how a process hands it to its children."""
        values = json.loads(text)
        return cls(**values | {"orders": tuple(values["orders"])})

    @property
    def text(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Contestant:
    """One way to do the work of a case."""

    name: str
    role: Role
    work: Callable[[], Any] | None
    """None: missing, for the reason `missing`."""
    error: Callable[[Any], float | None] | None = None
    """Relative distance of the result from the oracle; None where the work has no result to compare."""
    tolerance: float = 1e-4
    """The largest error with which the result counts as right."""
    share: float = 1.0
    """`work` does this part of the whole, and its time counts for so much more."""
    own: Callable[[Any], tuple[float, float]] | None = None
    """Seconds and peak bytes, where the work is done in a process of its own that measures itself."""
    prepare: Callable[[], Any] | None = None
    """What comes before the work and is not measured."""
    note: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Case:
    """One piece of work and all who do it."""

    name: str
    contestants: Sequence[Contestant]


@dataclass(frozen=True)
class Benchmark:
    """A subject: its cases are made one after the other, so that one is gone before the next."""

    name: str
    title: str
    text: str
    """What is computed, what the floor is, and what the oracle."""
    cases: Callable[[Setting], Iterable[Case]]


@dataclass
class Row:
    """What was measured of one contestant in one case."""

    case: str
    contestant: Contestant
    seconds: list[float] = field(default_factory=list)
    error: float | None = None
    missing: str = ""
    peak: float | None = None
    """Bytes above what the process held before."""

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) / self.contestant.share if self.seconds else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        if not self.seconds:
            return None
        if len(self.seconds) == 1:
            only = self.seconds[0] / self.contestant.share
            return only, only
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low / self.contestant.share, high / self.contestant.share

    @property
    def right(self) -> bool | None:
        return None if self.error is None else self.error <= self.contestant.tolerance


def missing(name: str, why: str) -> Contestant:
    """A rival that cannot take part."""
    return Contestant(name, "rival", None, missing=why)


# Time


def measure(case: Case, setting: Setting) -> list[Row]:
    """Time all contestants of a case in strictly alternating rounds.

    The first run of each gives the result that is compared, and warms up unless it takes `LONG`. A rival that raises
    is reported with what it raised; jetgraph and the floor must not.
    """
    rows = [Row(case.name, contestant, missing=contestant.missing) for contestant in case.contestants]
    gc.collect()
    # What is there now is none of the garbage that is looked for before each run.
    gc.freeze()
    try:
        _alternate(rows, setting)
    finally:
        gc.unfreeze()
    return rows


def _alternate(rows: Sequence[Row], setting: Setting) -> None:
    """The rounds, the first one included."""
    first: dict[int, float] = {}
    for index, row in enumerate(rows):
        if row.contestant.work is None:
            continue
        try:
            if row.contestant.prepare is not None:
                row.contestant.prepare()
            with Peak(setting.device) as peak:
                seconds, result = clock(row.contestant, setting.device)
            row.error = None if row.contestant.error is None else row.contestant.error(result)
        except Exception as error:
            if row.contestant.role != "rival":
                raise
            row.missing = reason(error)
            continue
        if row.contestant.own is not None:
            row.peak = row.contestant.own(result)[1]
        elif seconds >= LONG or peak.cuda:
            # The allocator of a GPU knows the peak exactly: no process of its own has to make the model again.
            row.peak = peak.bytes
        del result
        first[index] = seconds
        if seconds >= LONG or row.contestant.own is not None:
            row.seconds.append(seconds)
    for number in range(1, setting.rounds + 1):
        for index, seconds in first.items():
            rival = rows[index].contestant.role == "rival"
            rounds = min(setting.rounds, 3) if rival and seconds >= VERY_LONG else setting.rounds
            if len(rows[index].seconds) < rounds and number <= rounds:
                rows[index].seconds.append(clock(rows[index].contestant, setting.device)[0])


def clock(contestant: Contestant, device: str) -> tuple[float, Any]:
    """Seconds that a contestant's work takes, and its result."""
    assert contestant.work is not None
    gc.collect()
    synchronise(device)
    started = time.perf_counter()
    result = contestant.work()
    synchronise(device)
    seconds = time.perf_counter() - started
    return seconds if contestant.own is None else contestant.own(result)[0], result


def seconds(work: Callable[[], Any], device: str) -> float:
    """Of one run."""
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def synchronise(device: str) -> None:
    """Wait for the device, where work on it is only queued."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def reason(error: Exception) -> str:
    """What was raised, in a line."""
    first = (str(error).splitlines() or [""])[0]
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return text if len(text) <= 110 else f"{text[:109]}…"


# Memory


class Peak:
    """The most memory that is held while the block runs, above what was held when it began: `bytes`."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.bytes = 0.0

    def __enter__(self) -> Peak:
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = float(torch.cuda.memory_allocated())
        else:
            _trim()
            clear = Path("/proc/self/clear_refs")
            if clear.exists():
                # Linux counts the peak from here on; elsewhere it is the peak of the process so far.
                clear.write_text("5", encoding="ascii")
            self.before = _held("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            peak = float(torch.cuda.max_memory_allocated())
        else:
            peak = _held("VmHWM")
        self.bytes = max(0.0, peak - self.before)


def _trim() -> None:
    """Give the system back what is free: work that finds it in the allocator would seem to need less."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _held(field_name: str) -> float:
    """Bytes that this process holds (VmRSS) or has held at most (VmHWM)."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(rf"{field_name}:\s+(\d+) kB", status.read_text(encoding="ascii"))
        assert found is not None
        return float(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def peaks(benchmark: Benchmark, setting: Setting, contestant: str, names: Sequence[str]) -> dict[str, float]:
    """Peak bytes of one contestant in the cases of these names, in this process, which should be fresh."""
    found: dict[str, float] = {}
    for case in benchmark.cases(setting):
        for one in case.contestants:
            if one.name == contestant and case.name in names and one.work is not None:
                if one.prepare is not None:
                    one.prepare()
                with Peak(setting.device) as peak:
                    result = one.work()
                del result
                found[case.name] = peak.bytes
    return found


def add_peaks(benchmark: Benchmark, setting: Setting, rows: Sequence[Row]) -> None:
    """Fill in the peaks of all contestants that ran, two processes at a time."""
    wanted: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.seconds and row.peak is None:
            wanted.setdefault(row.contestant.name, {})[row.case] = row

    def ask(name: str) -> dict[str, float]:
        return child("--peak", benchmark.name, name, *wanted[name], "--setting", setting.text)

    with ThreadPoolExecutor(2) as pool:
        for group, found in zip(wanted.values(), pool.map(ask, wanted), strict=True):
            for case, row in group.items():
                row.peak = found[case]


def child(*arguments: str) -> Any:
    """What this package answers, as JSON on its last line, when it is run in a fresh process."""
    command = [sys.executable, "-m", "benchmarks", *arguments]
    # From the root the package is found, whatever folder the caller is in.
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


# Tables

COLUMNS: tuple[str, ...] = (
    "case",
    "who",
    "median",
    "quartiles",
    "n",
    "/ floor",
    "/ jetgraph",
    "peak",
    "error",
    "agrees",
)


def table(rows: Sequence[Row]) -> str:
    """A Markdown table whose columns line up, and below it why what is missing is missing."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.case, []).append(row)
    lines = [list(COLUMNS)]
    for name, group in groups.items():
        floor = next((row.median for row in group if row.contestant.role == "floor" and row.median), None)
        ours = next((row.median for row in group if row.contestant.role == "jetgraph" and row.median), None)
        for index, row in enumerate(group):
            lines.append(_cells(name if index == 0 else "", row, floor, ours))
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    left = {0, 1, 9}
    shown = [
        "| "
        + " | ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    ]
    rows_missing = {f"{row.contestant.name}: {row.missing}": None for row in rows if not row.seconds}
    absent = "".join(f"\n- missing: {text}" for text in rows_missing)
    rule = "|" + "|".join("-" * (w + 2) if i in left else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([shown[0], rule, *shown[1:]]) + (f"\n{absent}" if absent else "")


def _cells(case: str, row: Row, floor: float | None, ours: float | None) -> list[str]:
    one = row.contestant
    who = f"{one.name} ({one.note})" if one.note else one.name
    median, quartiles = row.median, row.quartiles
    if median is None or quartiles is None:
        return [case, who, "missing", *["–"] * 7]
    return [
        case,
        who,
        duration(median),
        f"{duration(quartiles[0])} … {duration(quartiles[1])}",
        str(len(row.seconds)),
        f"{median / floor:.2f}" if floor else "–",
        f"{median / ours:.2f}" if ours else "–",
        "–" if row.peak is None else f"{row.peak / 2**20:,.0f} MiB",
        "–" if row.error is None else f"{row.error:.0e}",
        {None: "–", True: "yes", False: "NO"}[row.right],
    ]


def duration(seconds: float) -> str:
    """Three digits, in ms or s."""
    value, unit = (seconds, "s") if seconds >= 1 else (seconds * 1e3, "ms")
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}" if value >= 10 else f"{value:.2f} {unit}"


def run(benchmark: Benchmark, setting: Setting) -> list[Row]:
    """Measure a benchmark whole."""
    rows: list[Row] = []
    for case in benchmark.cases(setting):
        rows += measure(case, setting)
        # A long run may be cut off at any time: what was measured has been told.
        told = (" ".join(_cells("", row, None, None)[1:3]) for row in rows if row.case == case.name)
        print(f"{benchmark.name}, {case.name}: {'; '.join(told)}", file=sys.stderr, flush=True)
    if setting.memory:
        add_peaks(benchmark, setting, rows)
    return rows


def section(benchmark: Benchmark, setting: Setting, rows: Sequence[Row]) -> str:
    """A benchmark's part of the report, from its heading on."""
    where = "" if setting.device == "cpu" else f", on {setting.device}"
    if setting.checkpoint:
        where = f", {Path(setting.checkpoint).name}{where}"
    tiny = " (quick: a tiny model, which says nothing about speed)" if setting.quick else ""
    heading = f"## {benchmark.name}: {benchmark.title}{where}{tiny}"
    return f"{heading}\n\n{benchmark.text}\n\n{machine(setting)}.\n\n{table(rows)}\n"


def write(file: Path, parts: Iterable[str]) -> None:
    """Put sections into a report; those of the same heading are replaced, others stay."""
    known = _sections(file.read_text(encoding="utf-8")) if file.exists() else {}
    for part in parts:
        known |= _sections(part)
    file.write_text(f"{PREFACE}\n" + "\n".join(known.values()), encoding="utf-8")


def _sections(text: str) -> dict[str, str]:
    parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    return {part.splitlines()[0]: f"{part.rstrip()}\n" for part in parts if part.startswith("## ")}


PREFACE = """# What jetgraph costs

Made by `make bench ARGS="--write"`. Random seeded weights, float32 unless said otherwise. In every case all who take
part alternate strictly, round by round, in one process; times are medians with quartiles of n rounds, after one that
warms up (works of 5 s and more need none; rivals of 10 s and more are run three times). `/ floor` and `/ jetgraph` are
ratios of medians; the floor is the first row of a case, so of jetgraph's own `/ floor` less is better, and of a rival's
`/ jetgraph` 2 means that jetgraph takes half its time. `peak` is what a process of its own held at most above what it
held before (for works of 5 s and more the same process; on a GPU what its allocator held at most), and `error` the
relative distance to an oracle in float64 that shares no code with any of them, where the text says no other.
"""


# Machine


def machine(setting: Setting) -> str:
    """Hardware, versions, date and load, in a line or two."""
    processor = platform.processor() or platform.machine()
    details = Path("/proc/cpuinfo")
    if details.exists() and (found := re.search(r"model name\s*:\s*(.+)", details.read_text(encoding="utf-8"))):
        processor = found[1].strip()
    if setting.device.startswith("cuda"):
        processor = f"{torch.cuda.get_device_name()} with {processor}"
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{name} {version(name) or 'missing'}" for name in ("jetgraph", "torch", "transformers", "jax")]
    versions += [f"{name} {revision(path)}" for name, path in _checkouts(setting).items()]
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {processor} ({torch.backends.cpu.get_cpu_capability()}), "
        f"{os.cpu_count()} cores of which {setting.threads} are used{load}; {', '.join(versions)}"
    )


def version(package: str) -> str | None:
    """The installed version, None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _checkouts(setting: Setting) -> dict[str, str]:
    return {name: path for name, path in (("jex", setting.jex), ("torch-jet", setting.torch_jet)) if path is not None}


def revision(checkout: str) -> str:
    """Its commit."""
    try:
        command = ["git", "-C", checkout, "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "of unknown commit"


def prepare(setting: Setting) -> None:
    """Threads, and what has to be said before JAX is imported."""
    torch.set_num_threads(setting.threads)
    # The size of XLA's thread pool, and how much of a GPU's memory it takes at once.
    os.environ["NPROC"] = str(setting.threads)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
