"""The iterative lens, by order."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import jetgraph as jg
from benchmarks import models, oracle, rivals
from benchmarks.harness import Benchmark, Case, Contestant, Setting, missing

ORDERS = (0, 1, 2)
COLUMNS = 97
"""Every so many columns of the logits are compared."""


def cases(setting: Setting) -> Iterator[Case]:
    """One per order, as jex gives it, and all orders together."""
    problem = _Problem(setting)
    for order in ORDERS:
        yield Case(f"order {order}", [problem.floor(1), problem.jetgraph([order]), problem.jex(order)])
    yield Case(f"orders {ORDERS[0]} to {ORDERS[-1]}", [problem.floor(len(ORDERS)), problem.jetgraph(ORDERS)])


class _Problem:
    """A text, and the lens after every block: logits [layer, tokens, vocabulary]."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model: Any = models.gpt2(setting)
        self.ids = models.token_ids(setting, 1, setting.tokens)

    @cached_property
    def graph(self) -> jg.ResidualGraph:
        return models.traced(self.setting)

    @cached_property
    def exact(self) -> Tensor:
        """Partial sums [order + 1, layer, tokens, some of the vocabulary] in float64."""
        model: Any = models.double(self.model)
        states = models.states(model, self.ids.cpu())
        x = torch.stack([states[f"h{2 * layer + 2}"][0] for layer in range(self.setting.layers - 1)])
        end = states[f"h{2 * self.setting.layers}"][0]
        found = oracle.taylor(model.transformer.ln_f, x, end - x, max(ORDERS))
        # The end of the stream is its own expansion: no direction is left to go.
        whole = torch.zeros_like(found[:, :1])
        whole[0] = model.transformer.ln_f(end).detach()
        hidden = torch.cat([found, whole], dim=1).cumsum(0)
        return hidden @ model.lm_head.weight.detach()[::COLUMNS].T

    def error(self, found: Any, order: int) -> float:
        return oracle.distance(found[..., ::COLUMNS].reshape(self.exact[order].shape), self.exact[order])

    def floor(self, orders: int) -> Contestant:
        """A decode per layer and order."""
        return models.forward_and_decodes(self.setting, self.ids, orders * self.setting.layers)

    def jetgraph(self, orders: Sequence[int]) -> Contestant:
        """`jg.lens` after every block; the error is that of the last order."""

        def work() -> Tensor:
            return jg.lens(self.graph, self.ids, order=orders, layers="*.mlp", scale="none").logits

        return Contestant(
            "jetgraph",
            "jetgraph",
            work,
            lambda found: self.error(found[:, -1], orders[-1]),
            prepare=lambda: self.graph,
        )

    def jex(self, order: int) -> Contestant:
        """jex's iterative lens after every block: the sum of the orders 0..k."""
        found = rivals.jex(self.setting)
        if found.module is None:
            return missing("jex", found.why)
        kind = importlib.import_module("jex.lenses.iterative").IterativeJetLenses
        lm = rivals.language_model(found.module, self.model)

        def work() -> Tensor:
            lens = kind(lm, list(range(1, self.setting.layers + 1)), order)
            # It caches by the identity of its input.
            return torch.stack(lens(self.ids.clone())[0]).detach()

        return Contestant("jex", "rival", work, lambda found: self.error(found, order))


BENCHMARK = Benchmark(
    "lens",
    "Iterative lens after every block",
    "Logits of the decoder's jet around the stream after each of 12 blocks, towards the stream's end, for a text of"
    " 64 tokens: the sum of the orders 0..k, and the last case all three of these sums. Floor: one forward pass, and "
    "all decodes in one matrix product. Oracle: the final norm interpolated in float64 between streams that hooks "
    "read, on every 97th column.",
    cases,
)
