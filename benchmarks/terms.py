"""A thousand selected terms, which share prefixes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import jetgraph as jg
from benchmarks import models, oracle
from benchmarks.harness import Benchmark, Case, Contestant, Setting, missing

PATTERNS = ("embed > * > * > logits", "embed > * > * > * > logits")
SAMPLE = 16
"""The floor runs one in so many of the evaluations."""


def cases(setting: Setting) -> Iterator[Case]:
    """Order 0, and orders 0 and 1 mixed."""
    for order in (0, 1):
        problem = _Problem(setting, order)
        yield Case(
            f"order {order}",
            [problem.floor(), *problem.jetgraph(), missing("jex", "does not compile single paths")],
        )


Evaluation = tuple[str, int]
"""Alias of a site, and times the rows of one forward pass through it."""


def evaluations(paths: Sequence[jg.Path]) -> list[Evaluation]:
    """What the distinct prefixes of the paths need: a forward pass (1) or a Jacobian-vector product (2) per prefix and
    site, whatever orders are taken there; at the decoder, one decode per order."""
    orders: dict[tuple[Any, str], set[int]] = {}
    for path in paths:
        for place in range(1, len(path.hops)):
            hop = path.hops[place]
            orders.setdefault((path.hops[:place], hop.alias), set()).add(hop.order or 0)
    return sorted((key[1], len(found) if key[1] == "logits" else 1 + max(found)) for key, found in orders.items())


class _Problem:
    """Paths through two or three sites, evenly spaced among all that there are, with weights of 1."""

    def __init__(self, setting: Setting, order: int) -> None:
        self.setting = setting
        self.model: Any = models.gpt2(setting)
        self.ids = models.token_ids(setting, 1, setting.term_tokens)
        graph = models.traced(setting)
        expansion = jg.expand(graph, order, weights="unit", orders="apart", scale="none")
        selection = jg.select(expansion, PATTERNS)
        number = min(setting.terms, selection.count())
        self.paths = [selection[i * selection.count() // number] for i in range(number)]
        self.module = jg.compile(expansion, self.paths)

    def floor(self) -> Contestant:
        """The model's own modules, for a part of what the prefixes need."""
        every = evaluations(self.paths)
        step = 1 if self.setting.quick else SAMPLE
        chosen = every[::step]
        sites = {alias: _module(self.model, alias) for alias, _ in every}
        rows = {n: torch.randn(n, self.setting.term_tokens, self.setting.width).to(self.model.device) for n in (1, 2)}

        def work() -> None:
            with torch.no_grad():
                for alias, times in chosen:
                    sites[alias](rows[times])

        double = sum(times == 2 for _, times in every)
        return Contestant(
            "floor",
            "floor",
            work,
            share=len(chosen) / len(every),
            note=f"{len(every) - double} forwards, {double} on 2× rows",
        )

    def jetgraph(self) -> list[Contestant]:
        """With all terms, and with what is held before the unembedding, which sums, norms and choices are made of."""

        def hidden() -> jg.PathValues:
            with torch.no_grad():
                values = self.module(input_ids=self.ids)
            assert len(values.hidden) == len(self.paths)
            return values

        def work() -> jg.PathValues:
            values = hidden()
            # Terms are made when they are read.
            assert len(values.terms.values()) == len(self.paths)
            return values

        number = len(self.paths)
        return [
            Contestant("jetgraph", "jetgraph", work, self.error, note=f"{number} terms"),
            Contestant("jetgraph, before U", "jetgraph", hidden, self.error, note=f"{number} values"),
        ]

    def error(self, found: jg.PathValues) -> float:
        """The largest relative distance among some of the terms."""
        model: Any = models.double(self.model)
        states = models.states(model, self.ids.cpu())
        chosen = self.paths[:: max(1, len(self.paths) // 6)]
        return max(oracle.distance(found.terms[path], self._exact(model, states, path)) for path in chosen)

    @torch.no_grad()
    def _exact(self, model: Any, states: dict[str, Tensor], path: jg.Path) -> Tensor:
        """A path by hand, in float64: x ← coefficient of the site's module around x towards the stream there."""
        value = states[path.source.alias]
        for hop in path.hops[1:]:
            stream = states[f"h{_point(hop.alias, self.setting.layers)}"]
            function = model.transformer.ln_f if hop.alias == "logits" else _module(model, hop.alias)
            order = hop.order or 0
            value = oracle.taylor(function, value, stream - value, order)[order] if order else function(value)
        return model.lm_head(value)


def _module(model: Any, alias: str) -> Callable[[Tensor], Tensor]:
    """The code at a site of GPT-2, with its norm."""
    if alias == "logits":
        return nn.Sequential(model.transformer.ln_f, model.lm_head)
    layer, kind = alias.removeprefix("L").split(".")
    block = model.transformer.h[int(layer)]
    if kind == "mlp":
        return nn.Sequential(block.ln_2, block.mlp)
    return lambda x: block.attn(block.ln_1(x))[0]


def _point(alias: str, layers: int) -> int:
    """The point of the stream that a site of GPT-2 reads."""
    if alias == "logits":
        return 2 * layers
    layer, kind = alias.removeprefix("L").split(".")
    return 2 * int(layer) + (kind == "mlp")


BENCHMARK = Benchmark(
    "terms",
    "A thousand terms",
    "1,000 paths from the token embedding through two or three sites of 12 layers, compiled into one module, on a "
    'text of 8 tokens: all at order 0; and with orders 0 and 1 mixed (`directions="stream"`). Floor: for each '
    "distinct prefix and the site after it, a forward pass of the model's own module, on 2× rows where a "
    "Jacobian-vector product is needed (every 16th of them is run), without the pass that gives the true stream. "
    "Oracle: paths evaluated by hand in float64, with derivatives by interpolation. The peak holds the results, 1.5"
    " GiB.",
    cases,
)
