"""How much memory is free: the smaller of what the machine has and of what the groups of the process may take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jetgraph.running import memory

CPU = torch.device("cpu")


def written(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "PROCESSES", tmp_path / "proc")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "cgroup")
    written(tmp_path / "proc" / "meminfo", "MemTotal: 1000 kB\nMemAvailable:  500 kB\nHugePages_Total: 0\n")
    return tmp_path


def test_a_machine_without_groups(root: Path) -> None:
    assert memory.free(CPU) == 500 * 1024
    assert memory.allowed(None, CPU) == 125 * 1024
    assert memory.allowed(7, CPU) == 7


@pytest.mark.parametrize(
    ("inner", "outer", "free"), [("2000", "9000", 1300), ("max", "6000", 2300), ("max", "max", 512000)]
)
def test_groups_of_version_2(root: Path, inner: str, outer: str, free: int) -> None:
    """The narrowest of a group and of those around it; a cache of files counts as free."""
    written(root / "proc" / "self" / "cgroup", "0::/a.slice/b\n")
    for group, limit, used, cached in (("a.slice/b", inner, 800, 100), ("a.slice", outer, 4000, 300)):
        written(root / "cgroup" / group / "memory.max", f"{limit}\n")
        written(root / "cgroup" / group / "memory.current", f"{used}\n")
        written(root / "cgroup" / group / "memory.stat", f"anon 5\ninactive_file {cached}\n")
    assert memory.free(CPU) == free


def test_groups_of_version_1(root: Path) -> None:
    """Of a container, whose path is that of the machine; other controllers say nothing of memory."""
    written(root / "proc" / "self" / "cgroup", "9:cpu:/docker/x\n4:memory,hugetlb:/docker/x\n0::/\n")
    written(root / "cgroup" / "memory" / "memory.limit_in_bytes", "3000")
    written(root / "cgroup" / "memory" / "memory.usage_in_bytes", "3500")
    written(root / "cgroup" / "memory" / "memory.stat", "inactive_file 1\ntotal_inactive_file 700\n")
    assert memory.free(CPU) == 200
    assert memory.total() == 3000


def test_what_is_freed_is_given_back_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(memory, "_trim", lambda: given.append)
    monkeypatch.setattr(memory, "_given_back", [0.0])
    for _ in range(5):
        memory.give_back(CPU)
    assert given == [0]
    monkeypatch.setattr(memory, "OFTEN", -1.0)
    memory.give_back(torch.device("cuda"))
    assert given == [0]
    monkeypatch.setattr(memory, "_trim", lambda: None)
    memory.give_back()
