"""What jetgraph adds to the work itself: replays, lenses over a text and jets called again, with operators counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor

import jetgraph as jg
from benchmarks import models, oracle
from benchmarks.harness import Benchmark, Case, Contestant, Role, Setting
from tests.operators import Operators

ORDERS = (0, 1, 2)
REPEATED = 8
"""A chain of operators runs as code once it was interpreted a few times."""


def counted(name: str, role: Role, work: Callable[[], Any], error: Callable[[Any], float] | None = None) -> Contestant:
    """A contestant whose note says how many operators it dispatches."""

    def quietly() -> Any:
        with torch.no_grad():
            return work()

    for _ in range(REPEATED):
        quietly()
    with Operators() as operators:
        quietly()
    return Contestant(name, role, quietly, error, note=f"{operators.counts.total()} operators")


def cases(setting: Setting) -> Iterator[Case]:
    """Each is made when the one before is done."""
    yield _replay("replay of a tiny Llama", tiny(setting), torch.randint(0, 101, (2, 8), generator=_seeded()))
    yield _replay("replay", models.gpt2(setting), models.token_ids(setting, 1, setting.tokens), models.traced(setting))
    yield _evaluation(setting)
    yield _jet(setting)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(models.SEED)


@cache
def tiny(setting: Setting) -> Any:
    """A Llama whose operators take next to no time, so that what is around them counts."""
    torch.manual_seed(models.SEED)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=101,
        max_position_embeddings=64,
    )
    model: Any = transformers.LlamaForCausalLM(config)
    return model.eval().to(setting.device)


def _replay(name: str, model: Any, ids: Tensor, graph: jg.ResidualGraph | None = None) -> Case:
    """A graph's replay beside the model's own forward pass; the error is against the latter."""
    ids = ids.to(model.device)
    traced = graph or jg.trace(model, input_ids=ids)

    def own() -> Tensor:
        return model(ids, use_cache=False).logits

    with torch.no_grad():
        exact = own()
    return Case(
        name,
        [
            counted("floor", "floor", own),
            counted("jetgraph", "jetgraph", lambda: traced(ids), lambda found: oracle.distance(found, exact)),
        ],
    )


def _evaluation(setting: Setting) -> Case:
    """`evaluate_lens` after every block; the floor is a forward pass, all decodes, and one pass over their logits."""
    model: Any = models.gpt2(setting)
    graph = models.traced(setting)
    ids = models.token_ids(setting, 2, setting.tokens)
    unembedding = model.lm_head.weight
    rows = torch.randn(len(ORDERS) * ids.numel(), setting.width).to(unembedding)

    def floor() -> None:
        model(ids, use_cache=False)
        for _ in range(setting.layers):
            (rows @ unembedding.T).sum()

    def evaluated() -> Any:
        return jg.evaluate_lens(graph, ids, orders=ORDERS, layers="*.mlp", resamples=10)

    def work(run: Callable[[], Any]) -> Callable[[], Any]:
        def quietly() -> Any:
            with torch.no_grad():
                return run()

        return quietly

    return Case(
        f"evaluate_lens, orders {ORDERS[0]} to {ORDERS[-1]}",
        [Contestant("floor", "floor", work(floor)), Contestant("jetgraph", "jetgraph", work(evaluated))],
    )


def _jet(setting: Setting) -> Case:
    """`jg.jet` of order 1 of a block's MLP, called again; the floor is the MLP on twice the rows."""
    mlp: Any = models.gpt2(setting).transformer.h[0].mlp
    x, v = torch.randn(2, setting.length, setting.width, generator=_seeded()).to(setting.device)
    both = torch.stack([x, v])
    exact = mlp(x).detach()

    def error(found: Tensor) -> float:
        return oracle.distance(found[0], exact)

    return Case(
        "jet of an MLP, order 1",
        [
            counted("floor", "floor", lambda: mlp(both)),
            counted("jetgraph", "jetgraph", lambda: jg.jet(mlp, x, v, 1), error),
        ],
    )


BENCHMARK = Benchmark(
    "overhead",
    "Replays, lenses over a text, and jets called again",
    "The replay of a graph, of a Llama of 4 layers and width 32 at 2 × 8 tokens and of the model at a text; the lens "
    "of orders 0 to 2 over two texts; a jet of an MLP. Floors: "
    "the model's own forward pass; forward, all decodes and one "
    "pass over their logits; the MLP on as many rows. Operators are those that torch dispatches, once a call was "
    "repeated. Errors are against the model itself.",
    cases,
)
