"""Algorithm 1 of the paper in two steps on its own worked example, term by term.

Two blocks h + γ(h) without a norm, then a LayerNorm and an unembedding. First γ_2 around the centres x_0 and γ_1(x_0),
with their skips; then the norm around the four terms of that. The skips are the paper's, w_i J^k id(x_i)(h): so w_i x_i
at order 0, and w_i h above.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

import jetgraph as jg
from benchmarks import oracle, rivals
from benchmarks.harness import Benchmark, Case, Contestant, Setting, missing

WIDTH, VOCABULARY, LENGTH = 32, 100, 8
"""Of the toy of the paper's code."""


class Block(nn.Module):
    """h + γ(h)."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.branch(h)


class Toy(nn.Module):
    """Tokens, two blocks, a norm, logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = nn.LayerNorm(WIDTH)
        self.unembedding = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embedding(ids)
        for block in self.blocks:
            h = block(h)
        return self.unembedding(self.norm(h))


def cases(setting: Setting) -> Iterator[Case]:
    """Orders 0 and 1, at which the paper's code is right."""
    for order in (0, 1):
        problem = _Problem(setting, order)
        yield Case(f"order {order}", [problem.floor(), problem.jetgraph(), problem.jex()])


class _Problem:
    """The four terms of the second step in logits, and what they leave."""

    def __init__(self, setting: Setting, order: int) -> None:
        self.setting, self.order = setting, order
        torch.manual_seed(0)
        self.model: Any = Toy().to(setting.device).eval()
        self.ids = torch.randint(0, VOCABULARY, (1, LENGTH)).to(setting.device)

    @cached_property
    def graph(self) -> jg.ResidualGraph:
        return jg.trace(self.model, self.ids)

    @cached_property
    def expected(self) -> Tensor:
        """The four terms and δ, in float64: jets of order 1 by forward mode through formulas written out."""
        model = Toy().double()
        model.load_state_dict({name: value.cpu() for name, value in self.model.state_dict().items()})
        blocks: Any = model.blocks
        first, second = (block.branch for block in blocks)

        def norm(x: Tensor) -> Tensor:
            centred = x - x.mean(-1, keepdim=True)
            scaled = centred * ((centred**2).mean(-1, keepdim=True) + model.norm.eps) ** -0.5
            return scaled * model.norm.weight + model.norm.bias

        def jet(f: Callable[[Tensor], Tensor], x: Tensor, h: Tensor) -> Tensor:
            value, slope = torch.func.jvp(f, (x,), (h - x,))[:2]
            return value + slope if self.order else value

        with torch.no_grad():
            start = model.embedding(self.ids.cpu())
            centres = [start, first(start)]
            middle = sum(centres, torch.zeros(()))
            inner = [jet(f, x, middle) / 2 for f in (second, lambda v: v) for x in centres]
            end = middle + second(middle)
            outer = [jet(norm, x, end) / 4 for x in inner]
            left = norm(end) - sum(outer, torch.zeros(()))
            return torch.stack([model.unembedding(value) for value in (*outer, left)])

    def error(self, found: Tensor) -> float:
        """The largest distance among terms and δ."""
        return max(oracle.distance(one.cpu(), other) for one, other in zip(found, self.expected, strict=True))

    def floor(self) -> Contestant:
        """A forward pass."""

        def work() -> Tensor:
            with torch.no_grad():
                return self.model(self.ids)

        return Contestant("forward pass", "floor", work)

    def jetgraph(self) -> Contestant:
        """`jg.jet_expand` twice."""
        options: dict[str, Any] = {"order": self.order, "scale": "none"}

        def work() -> Tensor:
            inner = jg.jet_expand(self.graph, self.ids, at="L1.mlp", centres=["embed", "L0.mlp"], **options)
            h = sum(inner.centres.values(), torch.zeros((), device=self.ids.device))
            skips = {name: (h if self.order else value) / 2 for name, value in inner.centres.items()}
            terms = {**inner.terms, **{f"{name} > id": value for name, value in skips.items()}}
            outer = jg.jet_expand(self.graph, self.ids, at="logits", centres=terms, **options)
            return torch.stack([*outer.terms.values(), outer.remainder])

        return Contestant("jetgraph", "jetgraph", work, self.error, prepare=lambda: self.graph)

    def jex(self) -> Contestant:
        """`expand_lm` twice, as in the paper's README, on the same weights."""
        found = rivals.jex(self.setting)
        if found.module is None:
            return missing("jex", found.why)
        lm = importlib.import_module("jex.models").toy_two_layer_rn(WIDTH)
        expand = importlib.import_module("jex.jet_expand").expand_lm
        for theirs, ours in zip(lm.model.parameters(), self.model.cpu().parameters(), strict=True):
            theirs.data.copy_(ours.data)
        self.model.to(self.setting.device)

        def work() -> Tensor:
            with torch.no_grad():
                inner = expand(lm, 2, [lm.residual_stream(0), lm.layer_gamma(0)], self.order)
                outer = expand(lm, lm.depth + 1, inner.terms, self.order)
                # It remembers by tensor, and would give what it has given.
                terms, left = outer.expansions_and_remainder(self.ids.cpu().clone(), with_unembedding=True)
            return torch.stack([*terms, left])

        return Contestant("jex", "rival", work, self.error)


BENCHMARK = Benchmark(
    "algorithm",
    "The paper's worked example, term by term",
    "Two blocks without norms, width 32, 8 tokens, random weights: γ_2 around x_0 and γ_1(x_0), then the final "
    "LayerNorm around the four terms of that, both with uniform weights, plain lengths and the paper's skips. The "
    "error is the largest among the four terms and δ, each in logits, against the same in float64 with jets by forward "
    "mode. Floor: a forward pass.",
    cases,
)
