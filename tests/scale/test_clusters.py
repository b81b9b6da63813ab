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


def work(folder: Path, driver: int, unit: int) -> dict[str, torch.Tensor]:
    """A unit's square. At unit 5 the worker is killed, once, and at unit 9 the driver is interrupted, once."""
    before = len(list(folder.glob(f"{unit} *")))
    (folder / f"{unit} {os.getpid()} {before}").touch()
    if unit < 2:
        # Both workers are there before one of them goes on.
        come(folder, 0, 1)
    if unit == 5 and not before:
        os.kill(os.getpid(), signal.SIGKILL)
    if unit == 6:
        # The other worker is at this unit until the killed one's has begun at a third.
        come(folder, 5, 5)
    if unit == 9 and not before:
        os.kill(driver, signal.SIGINT)
        time.sleep(60)
    return {"x": torch.tensor([unit**2])}


def job(folder: Path, driver: int) -> list[int]:
    return [int(record["x"]) for record in each("squares", 12, partial(work, folder, driver), dict)()]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """An interrupt arrives as it does at a terminal; workers of the tests may be told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_worker_that_is_killed_costs_its_unit_only_and_a_driver_goes_on(tmp_path: Path) -> None:
    begun, state = tmp_path / "begun", tmp_path / "state.parquet"
    begun.mkdir()
    with pytest.raises(KeyboardInterrupt):
        jg.on_ray(partial(job, begun, os.getpid()), workers=2, state=state)
    units = Counter(int(file.name.split()[0]) for file in begun.iterdir())
    processes = {int(file.name.split()[1]) for file in begun.iterdir()}
    assert units[5] == 2
    assert all(units[unit] == 1 for unit in range(10) if unit != 5)
    assert len(processes - {os.getpid()}) == 3
    kept = {unit for _, unit in State.load(state).records}
    # Two were on their way.
    assert len(kept) >= 8
    assert kept <= {*units} - {9}
    assert jg.on_ray(partial(job, begun, os.getpid()), workers=1, state=state) == [unit**2 for unit in range(12)]
    again = Counter(int(file.name.split()[0]) for file in begun.iterdir()) - units
    assert {*again} == {*range(12)} - kept


def test_workers_that_die_again_and_again_end_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(unit: int) -> dict[str, torch.Tensor]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    monkeypatch.setattr(clusters, "TRIES", 1)
    with pytest.raises(jg.StateError, match="1 workers died at unit 0 of 'bad'"):
        jg.on_ray(lambda: each("bad", 2, killed, dict)(), workers=1)


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


def test_workers_are_as_they_are_asked_for(tmp_path: Path) -> None:
    """And what is wrong at one is told by the driver as it is there."""

    def seen(unit: int) -> dict[str, torch.Tensor]:
        if unit == 1:
            raise jg.LoadError("no such model here")
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        return {"x": torch.tensor([torch.get_num_threads(), len(gpus.split(",")) if gpus else 0])}

    state = tmp_path / "state.safetensors"
    with pytest.raises(jg.LoadError, match=r"^no such model here$"):
        jg.on_ray(lambda: each("who", 2, seen, dict)(), workers=1, threads=2, gpus=0.5, state=state)
    assert State.load(state).records["who", 0]["x"].tolist() == [2, 1]
    for options, message in (
        ({"workers": 0}, "1 or more of each"),
        ({"gpus": -1.0}, "0 or more"),
        ({"threads": 3}, "the cluster has 2 processors and 1 GPUs"),
        ({"gpus": 2.0}, "the cluster has 2 processors and 1 GPUs"),
    ):
        with pytest.raises(jg.InputError, match=message):
            jg.on_ray(dict, **options)


@pytest.mark.slow
def test_the_table_is_that_of_one_process(demo: tuple[jg.ResidualGraph, Any], tmp_path: Path) -> None:
    # Without a tokenizer, which would take longer to import than all else.
    folder = jg.save(demo[0], tmp_path / "model")
    command = ("ngrams", folder, "-p", "embed > *.mlp > logits", "--top", "9", "--memory", "1M")
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    succeed(*command, "-o", one)
    succeed(*command, "-o", other, "--engine", "ray", "--workers", "2")
    assert other.read_bytes() == one.read_bytes()
    assert "the cluster has" in invoke(*command, "--engine", "ray", "--gpus", "2").stderr
