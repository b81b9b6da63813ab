"""What models of several sizes cost, on paper and measured: `python -m benchmarks.sizes [--measure]`.

Llama shapes. FLOPs are those of plans on the `meta` device, where no weight exists: of two and of three layers, and so
of any number, as layers are alike. Seconds are those of one core of this machine, by the processor time that a product
of matrices takes, which does not depend on what else runs. With `--measure` the smallest is run, with random weights.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import torch
import transformers
from torch import fx

import jetgraph as jg
from jetgraph.algebra.sizes import evaluate as size_of
from jetgraph.compilation.costs import flops
from jetgraph.compilation.module import PathModule

SHAPES = {
    "135M": (576, 1536, 9, 3, 49152, 30),
    "1.5B": (1536, 8960, 12, 2, 151936, 28),
    "7B": (4096, 11008, 32, 32, 32000, 32),
    "70B": (8192, 28672, 64, 8, 128256, 80),
    "405B": (16384, 53248, 128, 8, 128256, 126),
}
"""Width, inner width, heads, key heads, vocabulary, layers."""

BATCH, LENGTH = 16, 64


def model(name: str, layers: int | None = None, device: str = "meta") -> Any:
    """A Llama of that shape with random weights."""
    width, inner, heads, keys, vocabulary, own = SHAPES[name]
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        vocab_size=vocabulary,
        num_hidden_layers=own if layers is None else layers,
        tie_word_embeddings=False,
    )
    with torch.device(device):
        return transformers.LlamaForCausalLM(config).eval()


def costs(name: str, layers: int) -> dict[str, float]:
    """FLOPs and bytes of bfloat16 weights of each command on so many layers."""
    shape = SHAPES[name]
    made: Any = model(name, layers)
    graph = jg.trace(made, input_ids=torch.zeros(2, 8, dtype=torch.long, device="meta"))
    bigrams = jg.compile(jg.expand(graph, recipe="path"), "embed > L0.mlp > logits")
    lens = jg.compile(jg.expand(graph, 1, recipe="lens"))
    unembedding = 2 * shape[0] * shape[4]
    points = len(graph.stream.points)
    tokens = BATCH * LENGTH
    forward = flops(graph.traced.graph.nodes, _numbers(lens))
    parameters = sum(parameter.numel() for parameter in made.parameters())
    return {
        "parameters": parameters,
        "forward": forward,
        "lens": forward + _work(lens) + 2 * points * tokens * unembedding,
        "n-grams": shape[4] * (_work(bigrams, batch=1, length=1) + unembedding),
        "read by n-grams": 2 * (2 * shape[0] * shape[4] + 3 * shape[0] * shape[1]),
        "transport": shape[0] * 2 * forward,
    }


def _numbers(module: PathModule, **given: int) -> Callable[[fx.Node], tuple[int, ...]]:
    sizes = module.plan.sizes(**({"batch": BATCH, "length": LENGTH} | given))
    return lambda node: tuple(size if isinstance(size, int) else size_of(size, sizes) for size in node.meta["shape"])


def _work(module: PathModule, **given: int) -> int:
    numbers = _numbers(module, **given)
    return sum(flops(each.runs, numbers, each.rows) for each in module.plan.work)


def on_paper() -> Iterator[tuple[str, dict[str, float]]]:
    """The costs of all shapes."""
    for name, (*_, layers) in SHAPES.items():
        two, three = costs(name, 2), costs(name, 3)
        yield name, {what: two[what] + (layers - 2) * (three[what] - two[what]) for what in two}


def rate() -> float:
    """FLOPs of one core in a second of processor time, in products of float32 matrices."""
    torch.set_num_threads(1)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 4096)
    found = []
    for _ in range(5):
        start = time.process_time()
        torch.matmul(a, b)
        found.append(2 * prod((1024, 1024, 4096)) / (time.process_time() - start))
    return sorted(found)[2]


def measured() -> dict[str, float]:
    """Processor seconds of the smallest, with random weights in float32."""
    torch.set_num_threads(1)
    small = model("135M", device="cpu")
    ids = torch.randint(0, 49152, (BATCH, LENGTH))
    graph = jg.trace(small, input_ids=ids[:2, :8])
    rows = 4096
    works: dict[str, Callable[[], Any]] = {
        "forward": lambda: graph(input_ids=ids),
        "lens": lambda: jg.evaluate_lens(graph, ids, orders=(1,), resamples=2),
        "n-grams": lambda: jg.ngrams(graph, "embed > L0.mlp > logits", rows=list(range(rows))),
    }
    found: dict[str, float] = {}
    with torch.no_grad():
        for name, work in works.items():
            work()
            start = time.process_time()
            work()
            found[name] = time.process_time() - start
    return found | {"n-grams": found["n-grams"] * 49152 / rows}


def main() -> None:
    """Print the tables."""
    speed = rate()
    print(f"One core does {speed / 1e9:.0f} GFLOP in a second of its time, in products of float32 matrices.\n")
    print(
        "| shape | parameters | forward | lens, order 1, all points | n-grams of all tokens | they read | transport |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, cost in on_paper():
        cells = [
            f"{cost[what]:.2e} ({_time(cost[what] / speed)})" for what in ("forward", "lens", "n-grams", "transport")
        ]
        print(
            f"| {name} | {cost['parameters'] / 1e9:.2f}e9 | {' | '.join(cells[:3])} | "
            f"{cost['read by n-grams'] / 1e9:.2f} GB | {cells[3]} |",
            flush=True,
        )
    if "--measure" in sys.argv:
        print("\nmeasured, 135M:", ", ".join(f"{name} {_time(seconds)}" for name, seconds in measured().items()))


def _time(seconds: float) -> str:
    for bound, unit, by in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < bound:
            return f"{seconds / by:.3g} {unit}"
    return f"{seconds / 86400:.3g} d"


if __name__ == "__main__":
    main()
