"""The most probable bi-grams over the whole vocabulary."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import jetgraph as jg
from benchmarks import models, rivals
from benchmarks.harness import Benchmark, Case, Contestant, Setting, missing

CHUNK = 1000
"""Rows of the vocabulary in the floor's product at a time."""

Found = tuple[Tensor, Tensor]
"""Pairs [top, 2] and their probabilities [top]."""


def cases(setting: Setting) -> Iterator[Case]:
    """float32, the same from a screen in bfloat16, and a model in bfloat16."""
    whole, half = _Problem(setting, torch.float32), _Problem(setting, torch.bfloat16)
    yield Case("float32", [whole.floor(), whole.jetgraph(), whole.jex()])
    yield Case('screen="bf16"', [half.floor(), whole.jetgraph(screen="bf16")])
    yield Case("bfloat16", [half.floor(), half.jetgraph()])


class _Problem:
    """P(c | a) = softmax_c(U ν(E a)) for all pairs of the vocabulary."""

    def __init__(self, setting: Setting, dtype: torch.dtype) -> None:
        self.setting = setting
        self.dtype = dtype
        self.model: Any = models.gpt2(setting, dtype)
        # bfloat16 has 8 bits, which is what a logit near 16 is worth.
        self.tolerance = 1e-4 if dtype == torch.float32 else 0.1

    @cached_property
    def graph(self) -> jg.ResidualGraph:
        return models.traced(self.setting, self.dtype)

    @cached_property
    @torch.no_grad()
    def exact(self) -> Found:
        """The top in float64: pairs that a product in float32 finds, many more than asked for, scored again."""
        embedding = self.model.transformer.wte.weight.float()
        norm: Any = models.double(self.model.transformer.ln_f)
        hidden = norm(embedding.cpu().double()).to(embedding)
        keep = 4 * self.setting.top
        pairs, scores = torch.empty(0, 2, dtype=torch.long), torch.empty(0)
        for start in range(0, len(hidden), CHUNK):
            value = (hidden[start : start + CHUNK] @ embedding.T).log_softmax(-1).flatten()
            best = value.topk(min(keep, len(value)))
            found = torch.stack([best.indices // len(hidden) + start, best.indices % len(hidden)], -1).cpu()
            scores, pairs = torch.cat([scores, best.values.cpu()]), torch.cat([pairs, found])
            chosen = scores.topk(min(keep, len(scores)))
            scores, pairs = chosen.values, pairs[chosen.indices]
        return self._scored(pairs, embedding.cpu().double(), norm)

    def _scored(self, pairs: Tensor, embedding: Tensor, norm: Any) -> Found:
        rows, index = pairs[:, 0].unique(return_inverse=True)
        logits = norm(embedding[rows]) @ embedding.T
        values = (logits[index, pairs[:, 1]] - logits.logsumexp(-1)[index]).exp()
        best = values.topk(self.setting.top)
        return pairs[best.indices], best.values

    def error(self, found: Found) -> float:
        """The largest relative distance of a probability to that of its rank, plus 1 if a pair has no place there.

        A pair may be exchanged for another whose probability is the same as far as the tolerance goes.
        """
        pairs, values = self.exact
        got, scores = found[0].cpu(), found[1].double().cpu()
        gap = float(((scores.sort(descending=True).values - values) / values).abs().max())
        known = {tuple(pair) for pair in pairs.tolist()}
        strange = [tuple(pair) for pair in got.tolist() if tuple(pair) not in known]
        if strange:
            embedding = self.model.transformer.wte.weight.cpu().double()
            norm: Any = models.double(self.model.transformer.ln_f)
            least = self._least(torch.tensor(strange), embedding, norm)
            if least < float(values[-1]) * (1 - self.tolerance):
                return 1 + gap
        return gap

    @torch.no_grad()
    def _least(self, pairs: Tensor, embedding: Tensor, norm: Any) -> float:
        logits = norm(embedding[pairs[:, 0]]) @ embedding.T
        return float((logits.gather(1, pairs[:, 1:])[:, 0] - logits.logsumexp(-1)).exp().min())

    def floor(self) -> Contestant:
        """The product of all rows with the unembedding, chunk by chunk."""
        weight = self.model.lm_head.weight.detach()
        with torch.no_grad():
            hidden = self.model.transformer.ln_f(self.model.transformer.wte.weight)

        def work() -> None:
            buffer = torch.empty(CHUNK, len(weight), dtype=weight.dtype, device=weight.device)
            for start in range(0, len(hidden), CHUNK):
                rows = hidden[start : start + CHUNK]
                torch.mm(rows, weight.T, out=buffer[: len(rows)])

        return Contestant("floor", "floor", work, note="the product alone")

    def jetgraph(self, **options: Any) -> Contestant:
        def work() -> Found:
            found = jg.ngrams(self.graph, "embed > logits", top=self.setting.top, **options)
            return torch.cat([found.contexts, found.following[:, None]], 1), found.scores

        return Contestant("jetgraph", "jetgraph", work, self.error, self.tolerance, prepare=lambda: self.graph)

    def jex(self) -> Contestant:
        found = rivals.jex(self.setting)
        if found.module is None:
            return missing("jex", found.why)
        lm = rivals.language_model(found.module, self.model)
        expansion = importlib.import_module("jex.ngrams.bigrams").embedding_decoder(lm)
        evaluate = importlib.import_module("jex.ngrams.utils").eval_over_vocab

        def work() -> Found:
            with torch.no_grad():
                values, pairs = evaluate(expansion, lm, global_topk=self.setting.top)
            return pairs, values

        return Contestant("jex", "rival", work, self.error, self.tolerance)


BENCHMARK = Benchmark(
    "bigrams",
    "Bi-grams over the whole vocabulary",
    "The 100 most probable of all pairs of tokens along `embed > logits`: 50,257 × 50,257 logits and their softmax,"
    " from the weights alone. Floor: the matrix product alone, chunk by chunk into one buffer, in the same precision, "
    "that of the screen where a float32 model is screened in bfloat16. Oracle: candidates of a product in float32, "
    "scored again in float64; the error is the largest of a rank's probability, and more than 1 if a pair is among the "
    "100 that has no place there.",
    cases,
)
