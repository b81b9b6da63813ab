"""Run benchmarks, print a table for each, and keep them where asked."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import (
    algorithm,
    attribution,
    bigrams,
    block_jets,
    harness,
    interventions,
    joint,
    lenses,
    llama,
    models,
    overhead,
    precision,
    terms,
    tracing,
    transport,
)
from benchmarks.harness import Benchmark, Setting

BENCHMARKS: dict[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (
        overhead,
        block_jets,
        precision,
        algorithm,
        lenses,
        joint,
        bigrams,
        tracing,
        terms,
        attribution,
        transport,
        interventions,
        llama,
    )
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options = _options(arguments)
    # torch.export warns about guards that it chose.
    logging.getLogger("torch.fx.experimental.symbolic_shapes").setLevel(logging.ERROR)
    setting = _setting(options)
    harness.prepare(setting)
    if options.peak:
        name, contestant, *cases = options.peak
        print(json.dumps(harness.peaks(BENCHMARKS[name], setting, contestant, cases)))
        return
    if options.trace:
        print(json.dumps(tracing.once(setting, *options.trace)))
        return
    for name in options.only or BENCHMARKS:
        started = time.perf_counter()
        rows = harness.run(BENCHMARKS[name], setting)
        part = harness.section(BENCHMARKS[name], setting, rows)
        print(part, flush=True)
        print(f"{name}: {harness.duration(time.perf_counter() - started)} in all", file=sys.stderr, flush=True)
        if options.write:
            harness.write(options.write, [part])


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument(
        "--size", choices=["small", "7b"], default="small", help="GPT-2 small, or a Llama of 7 billion on a GPU"
    )
    parser.add_argument("--checkpoint", metavar="FOLDER", help="a trained Llama, for the benchmark llama alone")
    parser.add_argument("--quick", action="store_true", help="a tiny model and two rounds: to see that all runs")
    parser.add_argument("--jex", metavar="PATH", help="checkout of github.com/lucfra/JetExpansions")
    parser.add_argument("--torch-jet", metavar="PATH", help="checkout of jet-for-pytorch, where it is not installed")
    parser.add_argument("--transformer-lens", metavar="PYTHON", help="of an environment that has TransformerLens")
    parser.add_argument("--rounds", type=int, help="5")
    parser.add_argument("--threads", type=int, help="2")
    parser.add_argument("--device", help="cpu, or cuda")
    parser.add_argument("--large", action="store_true", help="trace Llama 3.1 405B too: some minutes")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out, which needs processes")
    parser.add_argument(
        "--write",
        nargs="?",
        type=Path,
        const=Path(__file__).with_name("RESULTS.md"),
        metavar="FILE",
        help="put the tables into benchmarks/RESULTS.md, in place of those with the same heading",
    )
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    parser.add_argument("--peak", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--trace", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.checkpoint and options.only != ["llama"]:
        parser.error("--checkpoint: only the benchmark llama runs on a trained model; add --only llama")
    return options


def _setting(options: argparse.Namespace) -> Setting:
    if options.setting:
        return Setting.read(options.setting)
    setting = Setting.small() if options.quick else Setting.seven_billion() if options.size == "7b" else Setting()
    given = {
        name: getattr(options, name) for name in ("rounds", "threads", "device", "jex", "torch_jet", "transformer_lens")
    }
    # Children are run from the root.
    given["checkpoint"] = options.checkpoint
    paths = {name: str(Path(given[name]).resolve()) for name in ("jex", "torch_jet", "checkpoint") if given[name]}
    chosen = {name: value for name, value in (given | paths).items() if value is not None}
    setting = replace(setting, large=options.large, memory=not options.no_memory, **chosen)
    return models.of_checkpoint(setting) if setting.checkpoint else setting


if __name__ == "__main__":
    main()
