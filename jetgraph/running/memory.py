"""How much memory there is for what is computed side by side."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from jetgraph.errors import InputError

SHARE = 0.25
"""Of the memory that is free, what batches may take where nobody says."""

PROCESSES, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
"""Where Linux tells of memory, and of the limits of groups of processes, such as a container."""

_VERSIONS = (
    ("", "", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Of control groups, 2 and 1: the controller that a group is of, its folder, limit and use, and what of the use is a
copy of files that nobody waits for."""


def free(device: torch.device) -> int:
    """Bytes that are free on a device; for a CPU what the process may still take, of the machine and of its groups."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = _numbers(PROCESSES / "meminfo")
    machine = known["MemAvailable"] * 1024 if "MemAvailable" in known else _physical() // 2
    return max(0, min((machine, *(limit - used for limit, used in _groups()))))


def total() -> int:
    """Bytes of memory that the process may take in all."""
    return min((_physical(), *(limit for limit, _ in _groups())))


def suited(device: torch.device | None, *, cpu: int, accelerator: int) -> int:
    """A bound for what is looked at together: on a CPU what stays near it, on an accelerator what is worth a launch.

    No device is that of a graph without weights.
    """
    return accelerator if is_accelerator(device) else cpu


def is_accelerator(device: torch.device | None) -> bool:
    """Each operator there is a launch."""
    return device is not None and device.type not in ("cpu", "meta")


def allowed(memory: int | None, device: torch.device) -> int:
    """Bytes that batches may take: what is given, else a share of what is free."""
    return int(free(device) * SHARE) if memory is None else memory


def check_memory(memory: int | None) -> None:
    """Raise `InputError` for what is no number of bytes; None is left to `allowed`."""
    if memory is not None and memory < 1:
        raise InputError(f"memory is a number of bytes, not {memory}")


OFTEN = 0.3
"""Seconds from one time that memory is given back to the next."""

_given_back = [0.0]


def give_back(device: torch.device | None = None) -> None:
    """Give the system what this process has freed, at most once in `OFTEN` seconds; between the parts of long work.

    The allocator of glibc keeps it, in pieces that blocks of the same size do not fit into again, since those of
    tensors are aligned: a job would take more and more.

    Parameters
    ----------
    device
        Where the work is done; of an accelerator's memory the process has nothing.
    """
    if is_accelerator(device):
        return
    now = time.monotonic()
    if now - _given_back[0] > OFTEN and (trim := _trim()) is not None:
        trim(0)
        _given_back[0] = now


@cache
def _trim() -> Any:
    """What does so; None where the system's library is another one."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):
        return None


def _physical() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**33


def _groups() -> Iterator[tuple[int, int]]:
    """Limit and use of the control groups that the process is in, each within the next; those that have a limit."""
    listed = PROCESSES / "self" / "cgroup"
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
    for _, controllers, place in (line.split(":", 2) for line in lines):
        for controller, folder, limit, use, cached in _VERSIONS:
            if controller not in controllers.split(","):
                continue
            root = GROUPS / folder
            group = root / place.lstrip("/")
            # Inside a container the path may be that of the machine, of which only the root is there.
            for each in (group, *(parent for parent in group.parents if parent.is_relative_to(root))):
                most = each / limit
                if most.exists() and (text := most.read_text(encoding="ascii").strip()).isdigit():
                    used = int((each / use).read_text(encoding="ascii"))
                    yield int(text), used - _numbers(each / "memory.stat").get(cached, 0)


def _numbers(file: Path) -> dict[str, int]:
    """The first number of each line of a file, by what stands before it; none where there is no file."""
    lines = file.read_text(encoding="ascii").splitlines() if file.exists() else []
    words = (line.replace(":", " ").split() for line in lines)
    return {name: int(number) for name, number, *_ in words}
