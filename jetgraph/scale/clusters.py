"""Jobs on a Ray cluster: the same units of work, done by actors of which each holds the model once.

An actor calls the job once, which loads and traces the model and comes to its stages; what computes a unit of each is
kept, and nothing is computed. Then the driver, which has called the job too, sends units one at a time to whoever is
free, and takes what they give into the state of the job. So a worker that dies costs the unit that it was at, which
goes to another one, and a driver that is started again goes on from its state. The result is made by the driver, of
records in the order of units: it is that of a job in one process.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch

from jetgraph.errors import InputError, MissingExtraError, StateError, UnfinishedError, check
from jetgraph.export.precision import own_types
from jetgraph.files.writing import is_folder
from jetgraph.running.memory import give_back
from jetgraph.scale.places import check_state
from jetgraph.scale.shards import Glance, Job, Parts, alone, divided_by
from jetgraph.scale.states import Record, code

T = TypeVar("T")

TRIES = 3
"""How often a unit may be at a worker that dies."""


class Worker:
    """What an actor does."""

    def __init__(self, job: Callable[[], Any], threads: int, folder: str) -> None:
        torch.set_num_threads(threads)
        # Where files are named from the folder of the driver, on machines that share it.
        if is_folder(folder):
            os.chdir(folder)
        self._stages: dict[str, tuple[Callable[[int], Record], Callable[[], Mapping[str, str]]]] = {}
        self._told: dict[str, str] | None = None
        self._failed: Exception | None = None
        try:
            with divided_by(self), suppress(UnfinishedError):
                job()
        except Exception as error:
            # It is told with the first unit: of an actor that could not be made the driver would have a text alone.
            self._failed = error

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
        """Keep what computes the units of a stage; see `jetgraph.scale.shards.each`."""
        assert glance is None
        self._stages[stage] = compute, identity

        def unfinished() -> list[Record]:
            raise UnfinishedError("a worker computes units, and no result")

        return unfinished

    def compute(self, stage: str, unit: int, told: Mapping[str, str]) -> dict[str, torch.Tensor]:
        """The record of a unit, if the job is that of the driver.

        Raises
        ------
        InputError
            It is another one.
        Exception
            What calling the job was.
        """
        if self._failed is not None:
            raise self._failed
        if stage not in self._stages:
            raise InputError(f"the job has no stage {stage!r} at a worker, but {', '.join(self._stages) or 'none'}")
        work, identity = self._stages[stage]
        if self._told is None:
            self._told = {"code": code(), **identity()}
        if differs := [name for name in {**self._told, **told} if self._told.get(name) != told.get(name)]:
            raise InputError(
                f"a worker has another job than the driver: {', '.join(differs)} differ. Workers have the library, "
                "model and files that the driver has, under the same names"
            )
        # What stands around the function that the work is of.
        with torch.no_grad(), own_types(), alone():
            record = {name: tensor.detach().cpu() for name, tensor in work(unit).items()}
        give_back()
        return record


class RayJob(Job):
    """A job whose units are done by a cluster."""

    def __init__(self, file: Path, job: Callable[[], Any], ray: Any, workers: int, options: Mapping[str, Any]) -> None:
        super().__init__(file, (0, 1))
        self._job, self._ray, self._workers, self._options = job, ray, workers, options
        self._idle: list[Any] = []
        self._made: list[Any] = []

    def records(
        self, stage: str, units: Sequence[int], compute: Callable[[int], Record]
    ) -> Iterator[tuple[int, Record]]:
        """The records of units, as they come in.

        Raises
        ------
        StateError
            Workers died at one unit again and again.
        Exception
            What the job is at a worker.
        """
        waiting, tries = deque(units), Counter[int]()
        busy: dict[Any, tuple[Any, int]] = {}
        failures = self._ray.exceptions
        while waiting or busy:
            while waiting and len(busy) < self._workers:
                unit = waiting.popleft()
                actor = self._idle.pop() if self._idle else self._new()
                busy[actor.compute.remote(stage, unit, self.state.identity)] = actor, unit
            (ready, *_), _ = self._ray.wait(list(busy), num_returns=1)
            actor, unit = busy.pop(ready)
            try:
                record = self._ray.get(ready)
            except failures.RayTaskError as error:
                raise error.cause from error
            except (failures.RayActorError, failures.WorkerCrashedError) as error:
                tries[unit] += 1
                if tries[unit] >= TRIES:
                    said = str(error).strip().splitlines()
                    raise StateError(
                        f"{TRIES} workers died at unit {unit} of {stage!r}, the last one so: {said[-1][:300]}"
                    ) from error
                waiting.appendleft(unit)
                continue
            self._idle.append(actor)
            yield unit, record

    def end(self) -> None:
        """Let the workers go, those that are still at a unit too."""
        for actor in self._made:
            self._ray.kill(actor)

    def _new(self) -> Any:
        made = self._ray.remote(Worker).options(**self._options)
        self._made.append(made.remote(self._job, self._options["num_cpus"], os.getcwd()))
        return self._made[-1]


def on_ray(
    job: Callable[[], T],
    *,
    address: str | None = None,
    workers: int | None = None,
    threads: int = 1,
    gpus: float = 0.0,
    state: str | os.PathLike[str] | None = None,
) -> T:
    """Do a job on a Ray cluster.

    Parameters
    ----------
    job
        Calls one of the functions that are divided into units (see `sharded`) with the name of a model, which each
        worker loads, from a shared folder or with `weights="lazy"`: `lambda: jg.ngrams("org/name", top=1000)`. It is
        called by the driver too, which makes the result.
    address
        Of a cluster that runs, such as `auto` or `ray://host:10001`; one of this machine is started unless given.
    workers
        Actors at most; as many as the cluster has room for unless given.
    threads
        Of each, which are as many processors of the cluster. Other numbers of threads may round in another way.
    gpus
        Of each, or the share of one that several workers have; Ray hides all others from it.
    state
        A .safetensors file, or a .parquet folder, to go on from where a driver was interrupted; see `sharded`.

    Returns
    -------
    T
        What the job returns.

    Raises
    ------
    MissingExtraError
        Ray is not installed.
    InputError
        Workers or threads that there cannot be; or a job that is other at workers than here.
    StateError
        A unit at which workers die.
    """
    check(on_ray, locals())
    with cluster(job, address=address, workers=workers, threads=threads, gpus=gpus, state=state):
        return job()


@contextmanager
def cluster(
    job: Callable[[], Any],
    *,
    address: str | None = None,
    workers: int | None = None,
    threads: int = 1,
    gpus: float = 0.0,
    state: str | os.PathLike[str] | None = None,
) -> Iterator[RayJob]:
    """Have a cluster do the units of the job, which is called inside; see `on_ray`."""
    if threads < 1 or (workers is not None and workers < 1):
        raise InputError(f"workers={workers}, threads={threads}: there is 1 or more of each")
    if not 0 <= gpus < math.inf:
        raise InputError(f"gpus={gpus} of each worker: there is 0 or more, or a share of one")
    target = None if state is None else check_state(state)
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtraError("the engine ray needs Ray: pip install 'jetgraph[scale]'") from None
    with ExitStack() as stack:
        if not ray.is_initialized():
            dashboard: dict[str, Any] = {"include_dashboard": False} if address is None else {}
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **dashboard)
            stack.callback(ray.shutdown)
        wanted = {"num_cpus": threads, "num_gpus": gpus}
        room = _room(ray.cluster_resources(), wanted)
        folder = stack.enter_context(tempfile.TemporaryDirectory()) if target is None else ""
        file = Path(folder, "state.safetensors") if target is None else target
        made = RayJob(file, job, ray, min(room, workers or room), wanted)
        stack.callback(made.end)
        stack.enter_context(divided_by(made))
        yield made


def _room(resources: Mapping[str, float], wanted: Mapping[str, float]) -> int:
    """How many workers a cluster has room for.

    Raises
    ------
    InputError
        None.
    """
    there = {"num_cpus": resources.get("CPU", 0), "num_gpus": resources.get("GPU", 0)}
    room = min(int(there[name] / number) for name, number in wanted.items() if number)
    if room < 1:
        raise InputError(
            f"the cluster has {there['num_cpus']:g} processors and {there['num_gpus']:g} GPUs, and a worker is to have "
            f"threads={wanted['num_cpus']} and gpus={wanted['num_gpus']:g}: take fewer, or another cluster (address=)"
        )
    return room
