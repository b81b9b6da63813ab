"""Jobs on a Ray cluster of two workers: what one process gives, also where workers and drivers die."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import jetgraph as jg
from jetgraph.scale.shards import each
from jetgraph.scale.states import State
from tests.commands import succeed

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'jetgraph[scale]'")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def work(folder: Path, unit: int) -> dict[str, torch.Tensor]:
    """A unit's square; the worker at unit 5 is killed once, and every unit leaves a file with its process."""
    (folder / f"{unit} {os.getpid()} {len(list(folder.iterdir()))}").touch()
    if unit == 5 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"x": torch.tensor([unit**2])}


def job(folder: Path) -> list[int]:
    return [int(record["x"]) for record in each("squares", 12, partial(work, folder), dict)()]


def test_a_worker_that_is_killed_costs_its_unit_only(tmp_path: Path) -> None:
    done, state = tmp_path / "done", tmp_path / "state.safetensors"
    done.mkdir()
    assert jg.on_ray(partial(job, done), workers=2, state=state) == [unit**2 for unit in range(12)]
    tried = [name.name.split() for name in done.iterdir() if name.name != "killed"]
    assert sorted(int(unit) for unit, *_ in tried) == sorted([*range(12), 5])
    processes = {process for _, process, _ in tried}
    # One of the two may come so late that the other has done all.
    assert 2 <= len(processes) <= 3
    assert str(os.getpid()) not in processes
    # A driver that is started again has nothing left to do.
    assert len(State.load(state).records) == 12
    (done / "killed").unlink()
    assert jg.on_ray(partial(job, done), state=state) == [unit**2 for unit in range(12)]
    assert not (done / "killed").exists()


def always_killed(unit: int) -> dict[str, torch.Tensor]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def test_a_unit_that_kills_workers_ends_the_job() -> None:
    with pytest.raises(jg.StateError, match="3 workers died at unit 0 of 'bad'"):
        jg.on_ray(lambda: each("bad", 2, always_killed, dict)(), workers=1)
    with pytest.raises(jg.InputError, match="1 or more of each"):
        jg.on_ray(dict, workers=0)


def test_a_worker_with_another_job_is_refused() -> None:
    def other() -> Any:
        return each("who", 1, always_killed, lambda: {"process": str(os.getpid())})()

    with pytest.raises(Exception, match="another job than the driver: process differ"):
        jg.on_ray(other, workers=1)


@pytest.mark.slow
def test_the_table_is_that_of_one_process(tmp_path: Path) -> None:
    command = ("ngrams", "demo", "-p", "embed > *.mlp > logits", "--top", "9", "--memory", "1M")
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    succeed(*command, "-o", one)
    succeed(*command, "-o", other, "--engine", "ray", "--workers", "2")
    assert other.read_bytes() == one.read_bytes()
