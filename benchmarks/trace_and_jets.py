"""What tracing costs at the size of GPT-2 small and of Llama 3.1 405B, and what jets of one block cost.

    python benchmarks/trace_and_jets.py            all rows; the second trace takes a minute or more
    python benchmarks/trace_and_jets.py --small    without Llama 3.1 405B

Weights are random and seeded. Trace rows give the time of `jetgraph.trace` and of its unavoidable part,
torch.export with its
decompositions, each in a process of its own, and that process's peak memory. Jet rows give medians of rounds
in which the jet and
its floor, a forward pass on (k+1) times as many rows, strictly alternate.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

import jetgraph as jg
from jetgraph.jets import Series
from jetgraph.tracing import ordinary_operators

THREADS = 2
BATCH, LENGTH = 4, 32
ROUNDS = 7


def main() -> None:
    """Run everything, or one trace when called as a child process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="leave Llama 3.1 405B out")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "WHAT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.one:
        print(json.dumps(one_trace(*options.one)))
        return
    print(f"torch {torch.__version__}, {THREADS} threads, {torch.backends.cpu.get_cpu_capability()}\n")
    trace_table(["gpt2"] if options.small else ["gpt2", "llama-405b"])
    jet_table()


# Tracing


def trace_table(models: list[str]) -> None:
    """Time and peak memory of tracing."""
    print(f"{'trace':<12} {'jetgraph':>10} {'export':>10} {'ratio':>6}  {'peak':>9} {'over model':>11}  joins")
    for model in models:
        rows = {what: child(model, what) for what in ("trace", "export")}
        ours, floor = rows["trace"], rows["export"]
        print(
            f"{model:<12} {ours['seconds']:>8.1f} s {floor['seconds']:>8.1f} s "
            f"{ours['seconds'] / floor['seconds']:>6.2f}  "
            f"{ours['peak']:>6.2f} GB {ours['peak'] - ours['before']:>8.2f} GB  {ours['joins']}"
        )
    print()


def child(model: str, what: str) -> dict[str, float]:
    """One trace in a fresh process."""
    command = [sys.executable, __file__, "--one", model, what]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def one_trace(name: str, what: str) -> dict[str, float]:
    """Trace or export one model, and measure this process."""
    model, ids = build(name)
    before = peak_memory()
    start = time.perf_counter()
    joins = 0
    if what == "trace":
        joins = len(jg.trace(model, input_ids=ids).joins)
    else:
        auto = torch.export.Dim.AUTO
        shapes = {"input_ids": {0: auto, 1: auto}, "use_cache": None}
        with ordinary_operators():
            program = torch.export.export(
                model, (), {"input_ids": ids, "use_cache": False}, dynamic_shapes=shapes, strict=False
            )
            program.run_decompositions({})
    return {"seconds": time.perf_counter() - start, "before": before, "peak": peak_memory(), "joins": joins}


def build(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """A model of that size, and token ids."""
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    if name == "gpt2":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval(), torch.randint(0, 50257, (2, 16))
    config = transformers.LlamaConfig(
        num_hidden_layers=126,
        hidden_size=16384,
        intermediate_size=53248,
        num_attention_heads=128,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(config).eval(), torch.zeros(2, 16, dtype=torch.long)


def peak_memory() -> float:
    """Peak resident memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


# Jets


def jet_table() -> None:
    """Jets of a whole block (both branches), as multiples of its forward pass and of the floor."""
    model, ids = build("gpt2")
    graph = jg.trace(model, input_ids=ids)
    batch = torch.randint(0, 50257, (BATCH, LENGTH))
    print(f"one block of GPT-2 small, batch {BATCH} × {LENGTH}, float32; F = forward")
    print(f"{'order':>5} {'jet':>10} {'jet / F':>8} {'floor / F':>9} {'jet / floor':>11}")
    with torch.no_grad():
        run = graph.run(input_ids=batch)
        stages = graph.stream.stages[:2]
        entry = graph.stream.points[0]
        centre = run[entry]
        direction = torch.randn_like(centre)
        for stage in stages:
            run.side(stage.region)

        def block(value: object, order: int = 0) -> object:
            for stage in stages:
                value = run.through(stage.region, value, order)
            return value

        forward = {rows: graph.run(input_ids=batch.repeat(rows, 1)) for rows in range(1, 6)}
        inputs = {rows: other[entry] for rows, other in forward.items()}
        for other in forward.values():
            for stage in stages:
                other.side(stage.region)

        def plain(rows: int) -> None:
            value = inputs[rows]
            for stage in stages:
                value = forward[rows].through(stage.region, value)

        for order in (1, 2, 3, 4):
            times: dict[str, list[float]] = {"F": [], "floor": [], "jet": []}
            for attempt in range(ROUNDS + 1):
                measured = {
                    "F": clock(lambda: plain(1)),
                    "floor": clock(lambda order=order: plain(order + 1)),
                    "jet": clock(lambda order=order: block(Series.variate(centre, direction, order), order)),
                }
                if attempt:  # the first round warms up
                    for name, seconds in measured.items():
                        times[name].append(seconds)
            f, floor, jet = (statistics.median(times[name]) for name in ("F", "floor", "jet"))
            print(f"{order:>5} {jet * 1e3:>7.1f} ms {jet / f:>8.2f} {floor / f:>9.2f} {jet / floor:>11.2f}")


def clock(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
