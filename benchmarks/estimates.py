"""Estimates of jobs against what they take: `python -m benchmarks.estimates`.

Each kind of job at three sizes of a GPT-2 with random weights: what `estimated` says of a few units, and the job itself
right after it, in the same process. The estimate is right where the ratio is between 2/3 and 3/2. Seconds are those of
the processor, for both, so that what else the machine does is no part of them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch

import jetgraph as jg
from benchmarks import models
from benchmarks.harness import Setting
from jetgraph.scale import estimates
from jetgraph.scale.estimates import estimated, peak, reset_peak

SIZES = ((2, 64, 2000, 2), (4, 128, 4000, 4), (6, 256, 8000, 8))
"""Layers, width, vocabulary, and what texts are divided by."""

Job = Callable[[jg.ResidualGraph, torch.Tensor], Any]

JOBS: dict[str, Job] = {
    "n-grams": lambda graph, ids: jg.ngrams(graph, "embed > *.mlp > logits", top=100, memory=2**24),
    "mass": lambda graph, ids: jg.ngram_mass(graph, ["the", "of", "value"], tokenizer=words(), memory=2**24),
    "agreement": lambda graph, ids: jg.ngram_agreement(graph, ids, minimum=2, resamples=10, memory=2**24),
    "diff": lambda graph, ids: jg.diff(graph, graph, memory=2**24),
    "evaluate-lens": lambda graph, ids: jg.evaluate_lens(graph, ids, orders=(0, 1, 2), batch=4, resamples=10),
    "transport": lambda graph, ids: jg.fit_transport(graph, ids[: len(ids) // 4], batch=4, tokens=10**9),
    "trajectory": lambda graph, ids: jg.trajectory([graph] * 6, memory=2**24),
    "survey": lambda graph, ids: jg.survey(graph, PROMPTS, tokenizer=words(), targets="\n", resamples=10),
}


PROMPTS = [f"Return the value of number {number}, or raise an exception if the" for number in range(24)]


@cache
def words() -> Any:
    """A tokenizer."""
    return jg.load_model("demo").tokenizer


def main() -> None:
    """Print the table; of the jobs that are named, or of all."""
    estimates.time = SimpleNamespace(perf_counter=time.process_time)  # pyright: ignore[reportAttributeAccessIssue]
    torch.set_num_threads(1)
    print("| job | layers, width | FLOPs | estimated s | measured s | ratio | estimated MiB | measured MiB |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for layers, width, vocabulary, by in SIZES:
        setting = Setting(layers=layers, width=width, heads=width // 32, vocabulary=vocabulary, positions=64)
        graph = models.traced(setting)
        ids = models.token_ids(setting, 256 // by, 64) % 500
        for name, job in ((name, job) for name, job in JOBS.items() if name in (sys.argv[1:] or JOBS)):
            with estimated(0.1):
                # Code is made.
                job(graph, ids)
            with estimated(2.0) as estimate:
                job(graph, ids)
            reset_peak()
            start = time.process_time()
            job(graph, ids)
            measured, memory = time.process_time() - start, peak()
            flops = sum(stage.flops for stage in estimate.stages)
            print(
                f"| {name} | {layers}, {width} | {flops:.2e} | {estimate.seconds:.2f} | {measured:.2f} | "
                f"{estimate.seconds / measured:.2f} | {estimate.memory / 2**20:.0f} | {memory / 2**20:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
