"""A model three times as large as its weights may be: `python -m benchmarks.larger_than_memory [MiB] [ROUNDS]`.

A Llama with random weights is saved in shards; a process that may not map more than it has at its start, a third of the
weights and some working memory (`RLIMIT_AS`) then makes forward passes of a few tokens, and another one with all
weights in memory the same. Floor: to read the files once, from the disk, as the passes do. Passes and readings
alternate; the least seconds are told, as other work on the machine makes them longer, and those of the processor beside
those of the clock.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORKING = 192 * 2**20
"""Bytes above the weights: activations, stacks of threads, what the allocator keeps."""

TOKENS = 4
"""So few that a pass is reading above all."""

CODE = """
import sys, torch
from benchmarks.larger_than_memory import measure
measure(*sys.argv[1:])
"""


def save(folder: Path, mebibytes: int, width: int = 1024) -> Any:
    """A checkpoint of about so much, and its model."""
    import transformers

    layers = max(2, round(mebibytes * 2**20 / 4 / (16 * width**2)))
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=16,
        vocab_size=4096,
        num_hidden_layers=layers,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder, max_shard_size="64MB")
    return model


def digest(output: Any) -> str:
    """Of the bits of a tensor."""
    return hashlib.sha256(output.numpy().tobytes()).hexdigest()


def measure(folder: str, how: str, rounds: str) -> None:
    """Print what a forward pass takes."""
    import torch

    import jetgraph as jg
    from jetgraph.lazy.tensors import Deferred

    files = list(Path(folder).glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    options = {"weights": "lazy", "memory": size // 3} if how == "lazy" else {}
    ids = torch.arange(TOKENS)[None]
    outputs = list[torch.Tensor]()
    with torch.no_grad():
        loaded = jg.load_model(folder, **options)
        graph = loaded.trace(loaded.inputs()) if how == "lazy" else _logits_of(loaded.model)
        before = _status("VmSize")
        if how == "lazy":
            most = before + size // 3 + WORKING
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resident = _status("VmRSS")
        passes, readings = list[tuple[float, ...]](), list[tuple[float, ...]]()
        for _ in range(int(rounds)):
            _forget(files)
            passes.append(_timed(lambda: outputs.append(graph(input_ids=ids))))
            _forget(files)
            readings.append(_timed(lambda: [_read(file) for file in files]))
    shelves = {parameter.shelf for parameter in loaded.model.parameters() if isinstance(parameter, Deferred)}
    found = {
        "pass": list(map(min, zip(*passes, strict=True))),
        "reading": list(map(min, zip(*readings, strict=True))),
        "resident": _status("VmHWM") - resident,
        "live": max((shelf.peak for shelf in shelves), default=size),
        "read": sum(shelf.read for shelf in shelves) // int(rounds) or size,
        "output": list(map(digest, outputs)),
    }
    print(json.dumps(found))


def _logits_of(model: Any) -> Callable[..., Any]:
    """What the model itself gives."""
    return lambda **inputs: model(**inputs).logits


def _timed(work: Callable[[], object]) -> tuple[float, ...]:
    """Seconds of the clock, of the processor, and those of the main thread, which does not wait while another reads."""
    clocks = time.perf_counter, time.process_time, time.thread_time
    starts = [clock() for clock in clocks]
    work()
    return tuple(clock() - start for clock, start in zip(clocks, starts, strict=True))


def _forget(files: list[Path]) -> None:
    """Have the system drop its copies of files, so that they are read from the disk."""
    for file in files:
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(file: Path) -> None:
    """Read a file once, into memory that nobody has had, as weights are."""
    read = 1
    with open(file, "rb", buffering=0) as opened:
        while read:
            with mmap.mmap(-1, 2**24) as fresh:
                read = opened.readinto(fresh)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        size, rounds = [*sys.argv[1:], *("600", "5")[len(sys.argv) - 1 :]]
        save(Path(folder), int(size))
        files = list(Path(folder).glob("*.safetensors"))
        size = sum(file.stat().st_size for file in files)
        sizes = [f"{number / 2**20:.0f} MiB" for number in (size, size / 3)]
        print(f"{sizes[0]} in {len(files)} files; {sizes[1]} allowed")
        found = {}
        for how in ("memory", "lazy"):
            ran = subprocess.run(
                [sys.executable, "-c", CODE, folder, how, rounds], check=True, stdout=subprocess.PIPE, text=True
            )
            found[how] = one = json.loads(ran.stdout.splitlines()[-1])
            sizes = ", ".join(f"{name} {one[name] / 2**20:.0f} MiB" for name in ("read", "live", "resident"))
            took = ", ".join(
                f"{what} {one[what][0]:.2f} s, of the processor {one[what][1]:.2f} s, {one[what][2]:.2f} s in the main "
                "thread"
                for what in ("pass", "reading")
            )
            print(f"{how}: {took}; {sizes}")
        print("bit for bit the same:", len({*found["memory"]["output"], *found["lazy"]["output"]}) == 1)


if __name__ == "__main__":
    main()
