"""How much memory there is for what is computed side by side."""

from __future__ import annotations

import os
from pathlib import Path

import torch

SHARE = 0.25
"""Of the memory that is free, what batches may take where nobody says."""


def free(device: torch.device) -> int:
    """Bytes that are free on a device; for a CPU those that the system says a process may still take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = Path("/proc/meminfo")
    if known.exists():
        lines = dict(line.split(":", 1) for line in known.read_text(encoding="ascii").splitlines())
        if "MemAvailable" in lines:
            return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if hasattr(os, "sysconf") else 2**32


def allowed(memory: int | None, device: torch.device) -> int:
    """Bytes that batches may take: what is given, else a share of what is free."""
    return int(free(device) * SHARE) if memory is None else memory
