"""What people ask of a Llama: each kind of work beside the least that any method has to run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import jetgraph as jg
from benchmarks import harness, models, oracle
from benchmarks.harness import Benchmark, Case, Contestant, Role, Setting
from jetgraph.jets.captured import CALLS, DEVICES
from jetgraph.jets.code import RUNS
from tests.operators import Operators

ORDERS = (0, 1, 2)
ABLATED_TOKENS = 128
TERM_TOKENS = 64
CHECKED = 4
"""So many of the components are held against hooks."""


def cases(setting: Setting) -> Iterator[Case]:
    """Replay, lenses, direct attribution, n-grams, terms, ablations, jets; each is made when the one before is done."""
    problem = Problem(setting)
    # Traced before anything is timed.
    assert problem.graph.check is not None
    yield problem.replay()
    yield from (problem.lens(order) for order in ORDERS)
    yield problem.evaluation()
    yield problem.attribution()
    yield problem.attribution_at_last()
    yield problem.bigrams()
    yield problem.bigrams_through()
    yield from (problem.terms(order) for order in (0, 1))
    yield problem.branches()
    yield problem.heads()
    yield problem.jet()


class Problem:
    """One Llama, its graph, and a text of random tokens."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model: Any = models.llama(setting)
        self.ids = models.token_ids(setting, 1, setting.tokens)
        self.unembedding: Tensor = self.model.lm_head.weight
        self.blocks: Any = self.model.model.layers

    @cached_property
    def graph(self) -> jg.ResidualGraph:
        return models.traced_llama(self.setting)

    def contestant(
        self,
        name: str,
        role: Role,
        work: Callable[[], Any],
        error: Callable[[Any], float] | None = None,
        note: str = "",
        share: float = 1.0,
    ) -> Contestant:
        """With the operators that it dispatches once it has run a few times, as its note."""

        def quietly() -> Any:
            with torch.no_grad():
                return work()

        if role == "jetgraph" and harness.seconds(quietly, self.setting.device) < harness.LONG:
            # On a device what runs again is captured besides.
            for _ in range(RUNS - 1 + (CALLS if torch.device(self.setting.device).type in DEVICES else 0)):
                quietly()
        with Operators() as operators:
            quietly()
        told = f"{operators.counts.total():,} operators"
        return Contestant(name, role, quietly, error, self.tolerance, share, note=f"{note}; {told}" if note else told)

    @cached_property
    def tolerance(self) -> float:
        """The largest error that counts as right: in half precision, where other kernels round otherwise, twice what
        the model itself is off the same in float32."""
        if self.setting.dtype == "float32":
            return 1e-3
        with torch.no_grad():
            own = self.forward(self.ids)
            precise = copy.deepcopy(self.model).float()(self.ids, use_cache=False).logits
        return 2 * oracle.distance(own, precise)

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids, use_cache=False).logits

    def rows(self, number: int) -> Tensor:
        return torch.randn(number, self.setting.width, device=self.setting.device, dtype=self.unembedding.dtype)

    def replay(self) -> Case:
        with torch.no_grad():
            exact = self.forward(self.ids)
        return Case(
            "replay",
            [
                self.contestant("floor", "floor", lambda: self.forward(self.ids), note="the model itself"),
                self.contestant(
                    "jetgraph", "jetgraph", lambda: self.graph(self.ids), lambda found: oracle.distance(found, exact)
                ),
            ],
        )

    def lens(self, order: int) -> Case:
        """At every point of the stream."""
        points = 2 * self.setting.layers + 1
        rows = self.rows(points * self.setting.tokens)

        def floor() -> Tensor:
            self.forward(self.ids)
            return rows @ self.unembedding.T

        def error(found: Any) -> float:
            return oracle.distance(found.logits.reshape(-1, *found.logits.shape[-2:])[-1:], self.forward(self.ids))

        return Case(
            f"lens, order {order}",
            [
                self.contestant("floor", "floor", floor, note=f"forward, {points} decodes in one"),
                self.contestant(
                    "jetgraph",
                    "jetgraph",
                    lambda: jg.lens(self.graph, self.ids, order=[order]),
                    error,
                    f"{points} points",
                ),
            ],
        )

    def evaluation(self) -> Case:
        ids = models.token_ids(self.setting, 4, self.setting.tokens)
        points = 2 * self.setting.layers + 1
        rows = self.rows(ids.numel())

        def floor() -> None:
            self.forward(ids)
            for _ in range(len(ORDERS) * points):
                (rows @ self.unembedding.T).sum()

        return Case(
            "evaluate_lens, orders 0 to 2",
            [
                self.contestant("floor", "floor", floor, note="forward, decodes, one pass over the logits"),
                self.contestant(
                    "jetgraph", "jetgraph", lambda: jg.evaluate_lens(self.graph, ids, orders=ORDERS, resamples=10)
                ),
            ],
        )

    def direct(self) -> jg.PathModule:
        """Every component by itself, heads apart, the final norm held."""
        expansion = jg.expand(self.graph, recipe="components", rules={"logits": jg.Freeze()}, split="heads")
        return jg.compile(expansion)

    def by_heads(self) -> None:
        """A forward pass, and what each head writes."""
        self.forward(self.ids)
        heads, tokens, width = self.setting.heads, self.setting.tokens, self.setting.width
        values = self.rows(tokens).view(tokens, heads, width // heads).transpose(0, 1)
        for block in self.blocks:
            torch.bmm(values, block.self_attn.o_proj.weight.T.view(heads, width // heads, width))

    def attribution(self) -> Case:
        module = self.direct()

        def error(found: Any) -> float:
            return oracle.distance(found.total, self.forward(self.ids))

        def work() -> Any:
            values = module(input_ids=self.ids)
            list(values.hidden.values())
            return values

        return Case(
            "direct attribution by head, hidden",
            [
                self.contestant("floor", "floor", self.by_heads, note="forward, and what each head writes"),
                self.contestant("jetgraph", "jetgraph", work, error, f"{len(module.paths):,} terms"),
            ],
        )

    def attribution_at_last(self) -> Case:
        module = self.direct()
        number = len(module.paths)
        rows = self.rows(number)
        last = self.setting.tokens - 1

        def floor() -> Tensor:
            self.forward(self.ids)
            return rows @ self.unembedding.T

        def error(found: Tensor) -> float:
            return oracle.distance(found.float().sum(0).flatten(), self.forward(self.ids)[:, -1].float().flatten())

        return Case(
            "the same, logits at the last position",
            [
                self.contestant("floor", "floor", floor, note=f"forward, {number:,} decodes"),
                self.contestant("jetgraph", "jetgraph", lambda: module.at(last, input_ids=self.ids).each(), error),
            ],
        )

    def _product(self, hidden: Tensor) -> None:
        buffer = torch.empty(1000, len(self.unembedding), dtype=hidden.dtype, device=hidden.device)
        for start in range(0, len(hidden), len(buffer)):
            rows = hidden[start : start + len(buffer)]
            torch.mm(rows, self.unembedding.T, out=buffer[: len(rows)])

    def bigrams(self) -> Case:
        embedding: Tensor = self.model.model.embed_tokens.weight
        return Case(
            "bi-grams, top 100",
            [
                self.contestant("floor", "floor", lambda: self._product(embedding), note="the product alone"),
                self.contestant(
                    "jetgraph", "jetgraph", lambda: jg.ngrams(self.graph, "embed > logits", top=self.setting.top)
                ),
            ],
        )

    def bigrams_through(self) -> Case:
        embedding: Tensor = self.model.model.embed_tokens.weight
        block = self.blocks[0]

        def floor() -> None:
            for start in range(0, len(embedding), 4096):
                block.mlp(block.post_attention_layernorm(embedding[start : start + 4096]))
            self._product(embedding)

        path = "embed > L0.mlp > logits"
        return Case(
            "bi-grams through the first MLP",
            [
                self.contestant("floor", "floor", floor, note="the MLP on all rows, the product"),
                self.contestant("jetgraph", "jetgraph", lambda: jg.ngrams(self.graph, path, top=self.setting.top)),
            ],
        )

    def terms(self, order: int) -> Case:
        """All pairs of MLPs; the floor runs each distinct prefix once, one by one."""
        length = min(TERM_TOKENS, self.setting.tokens)
        ids = models.token_ids(self.setting, 1, length)
        expansion = jg.expand(self.graph, order, weights="unit", orders="together", scale="none")
        module = jg.compile(expansion, jg.select(expansion, "embed > *.mlp > *.mlp > logits"))
        row = torch.randn(1 + order, length, self.setting.width).to(self.unembedding)
        calls = [block for at, block in enumerate(self.blocks) for _ in range(at + 1)]

        def floor() -> None:
            self.forward(ids)
            for block in calls:
                block.mlp(block.post_attention_layernorm(row))

        return Case(
            f"terms embed > mlp > mlp, order {order}",
            [
                self.contestant("floor", "floor", floor, note=f"forward, {len(calls)} calls one by one"),
                self.contestant(
                    "jetgraph",
                    "jetgraph",
                    lambda: list(module(input_ids=ids).hidden.values()),
                    note=f"{len(module.paths)} terms",
                ),
            ],
        )

    def branches(self) -> Case:
        return self._ablation("attention removed", [(layer, None) for layer in range(self.setting.layers)])

    def heads(self) -> Case:
        chosen = [(layer, head) for layer in range(self.setting.layers) for head in range(self.setting.heads)]
        return self._ablation("heads removed", chosen)

    def _ablation(self, name: str, chosen: Sequence[tuple[int, int | None]]) -> Case:
        """Each component by itself; the floor is one forward pass each, one by one (a few of them are run)."""
        ids = models.token_ids(self.setting, 1, min(ABLATED_TOKENS, self.setting.tokens))
        aliases = [f"L{layer}.attn" if head is None else f"L{layer}.attn.head{head}" for layer, head in chosen]
        split: Any = None if chosen[0][1] is None else "heads"
        few = min(len(chosen), 16)

        def floor() -> None:
            for _ in range(few):
                self.forward(ids)

        def work() -> Any:
            return jg.ablate(self.graph, [f"{alias} > logits" for alias in aliases], ids, split=split)

        def error(found: Any) -> float:
            places = range(0, len(chosen), max(1, len(chosen) // CHECKED))
            through = {path.split(" >")[0]: output.through for path, output in found.outputs.items()}
            errors: list[float] = []
            for at in places:
                value = through[aliases[at]]
                assert value is not None
                errors.append(oracle.distance(value.flatten(), self.without(ids, *chosen[at]).flatten()))
            return max(errors)

        return Case(
            name,
            [
                self.contestant(
                    "floor", "floor", floor, note=f"{len(chosen):,} forward passes", share=few / len(chosen)
                ),
                self.contestant("jetgraph", "jetgraph", work, error, f"{len(chosen):,} and all of them together"),
            ],
        )

    def without(self, ids: Tensor, layer: int, head: int | None) -> Tensor:
        """Logits at the last position without a layer's attention, or a head of it."""
        projection = self.blocks[layer].self_attn.o_proj
        size = self.setting.width // self.setting.heads
        columns = slice(None) if head is None else slice(head * size, (head + 1) * size)

        def hook(module: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            value = given[0].clone()
            value[..., columns] = 0
            return (value, *given[1:])

        handle = projection.register_forward_pre_hook(hook)
        try:
            return self.forward(ids)[:, -1:]
        finally:
            handle.remove()

    def jet(self) -> Case:
        """Order 1 of a block's MLP by `jg.jet`, called again, and by `jg.taylor`; the floor is the MLP on twice the
        rows."""
        mlp: Any = self.blocks[0].mlp
        x, v = self.rows(self.setting.tokens), self.rows(self.setting.tokens)
        both, expanded = torch.stack([x, v]), jg.taylor(mlp, x)

        def error(found: Tensor) -> float:
            return oracle.distance(found[0], mlp(x))

        return Case(
            "jet of an MLP, order 1",
            [
                self.contestant("floor", "floor", lambda: mlp(both), note="the MLP on as many rows"),
                self.contestant("jetgraph", "jetgraph", lambda: jg.jet(mlp, x, v, 1), error),
                self.contestant("jetgraph, taylor", "jetgraph", lambda: expanded(x, v, 1), error),
            ],
        )


BENCHMARK = Benchmark(
    "llama",
    "What people ask of a Llama",
    "A Llama of the setting's size with random weights: 12 layers of width 768 in float32, or with `--size 7b` 32 "
    "layers of width 4096 in bfloat16 on a GPU; with `--checkpoint FOLDER` a trained one. Each row's floor is the "
    "least that has to run, with the model's own modules; `operators` are those that torch dispatches in one run. "
    "Errors are against the model itself, in its own precision; in bfloat16 they may be twice what the model itself is "
    "off the same in float32.",
    cases,
)
