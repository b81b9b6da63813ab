"""What commands cost by size of the model: `python -m benchmarks.commands [FOLDER] [SIZES]`, or `--paper`.

Llama shapes of `benchmarks.sizes` with random weights in bfloat16, saved into a folder as shards of a checkpoint, and
read lazily within `MEMORY`. Each command runs once, after the trace; seconds are those of the processor, with one
thread, beside those of the clock, which other work on the machine makes longer. Memory is the most that the process
had. On paper, larger shapes are those of 7B: seconds by FLOPs, bytes by passes over the weights, and memory is what the
process has beside its weights, twice the largest weight, so that the next is read meanwhile, and the logits of a lens.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

import jetgraph as jg
from benchmarks.sizes import SHAPES, model
from jetgraph.lazy.shelf import bytes_read
from jetgraph.scale.estimates import peak, reset_peak

MEMORY = {"135M": 2**31, "1.5B": 2**31, "7B": 2**30}
LENGTH = 16

Work = Callable[[jg.ResidualGraph, torch.Tensor], Any]

WORKS: dict[str, Work] = {
    "forward pass, 16 tokens": lambda graph, ids: graph(input_ids=ids),
    "lens, order 1, all points, last token": lambda graph, ids: jg.lens(graph, ids, order=1, position=-1),
    "ngrams embed > L0.mlp > logits, 256 contexts": lambda graph, ids: jg.ngrams(
        graph, "embed > L0.mlp > logits", rows=list(range(256)), top=20
    ),
    "attribute": lambda graph, ids: jg.attribute(graph, ids, target=7),
    "evaluate-lens, orders 0 and 1, 32 tokens": lambda graph, ids: jg.evaluate_lens(
        graph, ids.repeat(2, 1), orders=(0, 1), batch=2, layers=(0, -2), resamples=10
    ),
    "spectrum by attention hops": lambda graph, ids: jg.spectrum(graph, ids, by="attn", target=7),
    "ablate every branch": lambda graph, ids: jg.ablate(graph, None, ids, target=7),
}


MEASURED = {
    "forward pass, 16 tokens": (23.9, 13.48),
    "lens, order 1, all points, last token": (20.9, 13.48),
    # With the unembedding, which the lens before it had left.
    "ngrams embed > L0.mlp > logits, 256 contexts": (5.0, 0.79),
    "attribute": (90.2, 46.48),
    "evaluate-lens, orders 0 and 1, 32 tokens": (51.9, 26.69),
    "spectrum by attention hops": (182.3, 26.95),
    "ablate every branch": (327.4, 64.92),
}
"""Seconds of the processor and GB read, of 7B."""

BESIDE = 740
"""MiB that a process has beside its weights."""


def save(name: str, folder: Path) -> None:
    """A checkpoint of random weights; layers are alike, which costs nothing of what is measured."""
    made = model(name)
    made.config.dtype = torch.bfloat16
    made.config.save_pretrained(folder)
    (folder / "config.json").write_text(
        json.dumps({**json.loads((folder / "config.json").read_text()), "architectures": ["LlamaForCausalLM"]})
    )
    shards: dict[str, dict[str, torch.Tensor]] = {}
    values: dict[tuple[int, ...], torch.Tensor] = {}
    for key, parameter in made.named_parameters():
        shape = tuple(parameter.shape)
        if shape not in values:
            values[shape] = (torch.randn(shape, dtype=torch.bfloat16) * 0.02) + (len(shape) == 1)
        layer = key.split(".")[2] if ".layers." in key else "ends"
        shards.setdefault(f"model-{layer}.safetensors", {})[key] = values[shape]
    index = {key: shard for shard, tensors in shards.items() for key in tensors}
    for shard, tensors in shards.items():
        # Alike, but each a tensor of its own.
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / shard, metadata={"format": "pt"})
    told = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(told))


def measure(name: str, folder: Path) -> None:
    """Print a line for each command."""
    start, clock = time.process_time(), time.perf_counter()
    loaded = jg.load_model(folder, weights="lazy", memory=MEMORY[name])
    graph = loaded.trace(loaded.inputs())
    told(name, "load and trace", start, clock, 0)
    ids = torch.arange(LENGTH)[None] * 7 + 3
    for command, work in WORKS.items():
        reset_peak()
        start, clock, read = time.process_time(), time.perf_counter(), bytes_read()
        with torch.no_grad():
            work(graph, ids)
        told(name, command, start, clock, bytes_read() - read)


def on_paper(name: str) -> None:
    """Print a line for each command of which 7B was measured, of a larger shape."""
    for command, (seconds, read) in MEASURED.items():
        (flops, passed, weights, logits), (own, before, *_) = _of(name, command), _of("7B", command)
        print(
            f"| {name} | {command} | {seconds * flops / own:,.0f} | – | {read * passed / before:,.0f} | "
            f"{BESIDE + (2 * weights + logits) / 2**20:,.0f} |"
        )


def _of(name: str, command: str) -> tuple[float, float, float, float]:
    """FLOPs, weights that are passed, and bytes of the largest weight and of logits."""
    width, inner, heads, keys, vocabulary, layers = SHAPES[name]
    unembedding, mlp = width * vocabulary, 3 * width * inner
    layer = mlp + 2 * width**2 * (1 + keys / heads)
    points, largest = 2 * layers + 1, 2.0 * max(width * vocabulary, width * inner)
    if command.startswith("ngrams"):
        return 2 * 256 * (mlp + unembedding), mlp + 2 * unembedding, largest, 0.0
    flops = 2 * LENGTH * (layers * layer + unembedding)
    logits = 0.0
    if command.startswith("lens"):
        flops, logits = flops + 2 * 2 * points * unembedding, 2 * points * vocabulary * 4.0
    if command.startswith("ablate"):
        # A pass for each branch, side by side in as few passes over the weights.
        flops *= 2 * layers
    return flops, layers * layer + 2 * unembedding, largest, logits


def told(name: str, command: str, start: float, clock: float, read: int) -> None:
    """Print a line of the table."""
    spent, passed = time.process_time() - start, time.perf_counter() - clock
    print(f"| {name} | {command} | {spent:.1f} | {passed:.1f} | {read / 1e9:.2f} | {peak() / 2**20:,.0f} |", flush=True)


def main() -> None:
    """Print the table."""
    if sys.argv[1:] == ["--paper"]:
        for name in ("70B", "405B"):
            on_paper(name)
        return
    folder, *names = sys.argv[1:] or [tempfile.mkdtemp()]
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| shape | command | processor s | clock s | read GB | memory MiB |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for name in names or ("135M", "1.5B", "7B"):
        assert name in MEMORY, f"{name} is none of {', '.join(MEMORY)}"
        place = Path(folder, name)
        if not (place / "model.safetensors.index.json").exists():
            place.mkdir(parents=True, exist_ok=True)
            save(name, place)
        measure(name, place)


if __name__ == "__main__":
    main()
