"""What a second worker brings against a second thread: `python -m benchmarks.scaling [ROUNDS]`.

The same jobs of a Llama with random weights, in rounds that alternate: one process of one thread; one process of two
threads; two processes of one thread, each with half of the units (`jg.sharded`), and the join of their states. Seconds
are told twice. Those of the clock, the least of all rounds, are what this machine took, and other work on it makes them
longer. Those of the processor along the critical path are what a machine with nothing else to do would take, but for
what two of them take from each other: of two processes the longer one's, of two threads the main one's, which has its
part of every product and all that is between them. Efficiency is that of one process of one thread, divided by twice
that of the others. Loading and tracing are no part of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import jetgraph as jg

JOBS: dict[str, Callable[[jg.ResidualGraph, torch.Tensor], Any]] = {
    "n-grams": lambda graph, ids: jg.ngrams(graph, "embed > L0.mlp > logits", top=100, memory=2**25),
    "evaluate-lens": lambda graph, ids: jg.evaluate_lens(graph, ids, orders=(0, 1), batch=2, resamples=10),
}

WAYS = {"1 worker": [(0, 1, 1)], "1 worker, 2 threads": [(0, 1, 2)], "2 workers": [(0, 2, 1), (1, 2, 1)]}
"""Shard, of how many, and threads of each process."""


def serve(index: str, number: str, threads: str) -> None:
    """Do the job of each line of stdin, and print what it took."""
    from benchmarks.harness import Setting
    from benchmarks.models import token_ids, traced

    torch.set_num_threads(int(threads))
    setting = Setting(layers=6, width=512, heads=8, vocabulary=8000, positions=64)
    graph, ids = traced(setting), token_ids(setting, 16, 64)
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder, "state.safetensors")
        print("ready", flush=True)
        for line in sys.stdin:
            state.unlink(missing_ok=True)
            starts = time.perf_counter(), time.thread_time(), time.process_time()
            with jg.sharded(state, (int(index), int(number))):
                JOBS[line.strip()](graph, ids)
            ends = time.perf_counter(), time.thread_time(), time.process_time()
            print(json.dumps([end - start for start, end in zip(starts, ends, strict=True)]), flush=True)


def measured(rounds: int) -> dict[str, dict[str, list[float]]]:
    """The least seconds of the clock, along the critical path, and of the processor in all, by job and way."""
    code = "import sys; from benchmarks.scaling import serve; serve(*sys.argv[1:])"
    servers = {
        way: [
            subprocess.Popen(
                [sys.executable, "-c", code, *map(str, task)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for task in tasks
        ]
        for way, tasks in WAYS.items()
    }
    processes = [server for some in servers.values() for server in some]
    for server in processes:
        _line(server)
    found: dict[str, dict[str, list[float]]] = {job: {} for job in JOBS}
    for number in range(rounds + 1):
        for job in JOBS:
            for way, some in servers.items():
                for server in some:
                    assert server.stdin is not None
                    server.stdin.write(f"{job}\n")
                    server.stdin.flush()
                took = [json.loads(_line(server)) for server in some]
                fresh = [max(one[0] for one in took), max(one[1] for one in took), sum(one[2] for one in took)]
                # The first round warms up.
                before = found[job].get(way, fresh) if number > 1 else fresh
                found[job][way] = [min(pair) for pair in zip(before, fresh, strict=True)]
    for server in processes:
        server.communicate()
    return found


def _line(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    return server.stdout.readline()


def main() -> None:
    """Print the table."""
    print("| job | who | clock s | critical path s | processor s | efficiency by clock | by critical path |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for job, ways in measured(int(sys.argv[1]) if len(sys.argv) > 1 else 3).items():
        for way, (clock, path, processor) in ways.items():
            alone = ways["1 worker"]
            shares = [f"{alone[0] / clock / 2:.2f}", f"{alone[1] / path / 2:.2f}"] if way != "1 worker" else ["", ""]
            print(f"| {job} | {way} | {clock:.2f} | {path:.2f} | {processor:.2f} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    main()
