"""Jobs on a Ray cluster of two workers: what one process gives, also where workers and drivers die."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import jetgraph as jg
from jetgraph.scale import clusters
from jetgraph.scale.shards import each
from jetgraph.scale.states import State, code
from tests.commands import invoke, succeed

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'jetgraph[scale]'")

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    # Workers need not load this module, and pytest with it.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.shutdown()


def come(folder: Path, *tries: int) -> None:
    """Wait until units have been begun, each the nth time that is told by how often it is named."""
    end = time.monotonic() + 60
    while any(len(list(folder.glob(f"{unit} *"))) < often for unit, often in Counter(tries).items()):
        assert time.monotonic() < end, f"{tries} have not come"
        time.sleep(0.01)


def work(folder: Path, driver: int, run: int, unit: int) -> dict[str, torch.Tensor]:
    """A unit's square, with the threads and GPUs of who did it.

    The first time that the job is run, a worker is killed at unit 5, once, and at unit 9 the driver is interrupted; the
    second time there is an error at unit 10, and the third time whoever is at that unit is killed.
    """
    before = len(list(folder.glob(f"{unit} *")))
    (folder / f"{unit} {os.getpid()} {before}").touch()
    if run == 1 and unit < 2:
        # Both workers are there before one of them goes on.
        come(folder, 0, 1)
    if run == 1 and unit == 5 and not before:
        os.kill(os.getpid(), signal.SIGKILL)
    if run == 1 and unit == 6:
        # The other worker is at this unit until the killed one's has begun at a third.
        come(folder, 5, 5)
    if run == 1 and unit >= 9:
        if unit == 9:
            os.kill(driver, signal.SIGINT)
        time.sleep(60)
    if run == 2 and unit == 10:
        raise jg.LoadError("no such model here")
    if run == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return {"x": torch.tensor([unit**2, torch.get_num_threads(), len(gpus.split(",")) if gpus else 0])}


def job(folder: Path, driver: int, run: int) -> list[int]:
    return [int(record["x"][0]) for record in each("squares", 12, partial(work, folder, driver, run), dict)()]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """An interrupt arrives as it does at a terminal; workers of the tests may be told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_one_job_whose_workers_and_driver_die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done is kept, and what was under way is lost. One job, as each worker takes seconds to start."""
    begun, state = tmp_path / "begun", tmp_path / "state.parquet"
    begun.mkdir()
    squares = partial(job, begun, os.getpid())

    def kept() -> dict[int, list[int]]:
        return {unit: record["x"].tolist() for (_, unit), record in State.load(state).records.items()}

    # A worker that is killed costs its unit only. The driver is interrupted.
    with pytest.raises(KeyboardInterrupt):
        jg.on_ray(partial(squares, 1), workers=2, state=state)
    units = Counter(int(file.name.split()[0]) for file in begun.iterdir())
    processes = {int(file.name.split()[1]) for file in begun.iterdir()}
    assert units[5] == 2
    assert all(units[unit] == 1 for unit in range(10) if unit != 5)
    assert len(processes - {os.getpid()}) == 3
    first = kept()
    # Two were on their way.
    assert len(first) >= 8
    assert {*first} <= {*range(9)}
    # It goes on; workers are as they are asked for, and what is wrong at one is told by the driver as it is there.
    with pytest.raises(jg.LoadError, match=r"^no such model here$"):
        jg.on_ray(partial(squares, 2), workers=1, threads=2, gpus=0.5, state=state)
    second = kept()
    assert {*second} == {*range(10)}
    assert all(record == [unit**2, *((1, 0) if unit in first else (2, 1))] for unit, record in second.items())
    # Workers that die again and again end the job.
    monkeypatch.setattr(clusters, "TRIES", 1)
    with pytest.raises(jg.StateError, match="1 workers died at unit 10 of 'squares'"):
        jg.on_ray(partial(squares, 3), workers=1, state=state)
    # A process alone ends what a cluster began.
    with jg.sharded(state):
        assert squares(4) == [unit**2 for unit in range(12)]
    often = Counter(int(file.name.split()[0]) for file in begun.iterdir())
    assert often == units + Counter(unit for unit in range(12) if unit not in first) + Counter({10: 2})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "1 or more of each"),
        ({"gpus": -1.0}, "0 or more"),
        ({"threads": 3}, "the cluster has 2 processors and 1 GPUs"),
        ({"gpus": 2.0}, "the cluster has 2 processors and 1 GPUs"),
    ],
)
def test_workers_that_there_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(jg.InputError, match=message):
        jg.on_ray(dict, **options)


def test_what_a_worker_cannot_do_is_told_with_a_unit() -> None:
    def missing() -> Any:
        raise jg.LoadError("no such model here")

    with pytest.raises(jg.LoadError, match="no such model here"):
        clusters.Worker(missing, 1, "").compute("units", 0, {})
    worker = clusters.Worker(lambda: each("units", 1, lambda unit: {}, lambda: {"model": "a"})(), 1, "")
    assert worker.compute("units", 0, {"code": code(), "model": "a"}) == {}
    with pytest.raises(jg.InputError, match=r"^a worker has another job than the driver: model differ"):
        worker.compute("units", 0, {"code": code(), "model": "b"})
    with pytest.raises(jg.InputError, match="no stage 'others' at a worker, but units"):
        worker.compute("others", 0, {})


@pytest.mark.slow
def test_the_table_is_that_of_one_process(
    demo: tuple[jg.ResidualGraph, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a tokenizer, which would take longer to import than all else.
    folder = jg.save(demo[0], tmp_path / "model")
    command = ("ngrams", folder, "-p", "embed > *.mlp > logits", "--top", "9", "--memory", "1M")
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    succeed(*command, "-o", one)
    rooms: list[int] = []
    end = clusters.RayJob.end
    monkeypatch.setattr(clusters.RayJob, "end", lambda self: (rooms.append(self._workers), end(self)))
    succeed(*command, "-o", other, "--engine", "ray", "--workers", "1")
    assert other.read_bytes() == one.read_bytes()
    assert rooms == [1]
    assert "the cluster has" in invoke(*command, "--engine", "ray", "--gpus", "2").stderr
