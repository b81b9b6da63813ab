"""The joint lens of order 1, to its exact optimum. What jex's descent finds is in `joint_lens.py`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import jetgraph as jg
from benchmarks import models, oracle, rivals
from benchmarks.harness import Benchmark, Case, Contestant, Setting, missing

ORDER = 1
STEPS = 100
"""Of jex's descent, as it is by default; one is timed."""


def cases(setting: Setting) -> Iterator[Case]:
    """A single one."""
    problem = _Problem(setting)
    yield Case(f"order {ORDER}", [problem.floor(), problem.jetgraph(), problem.jex()])


class _Problem:
    """A text, and the components of its stream: the encoder's summands and every branch."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model: Any = models.gpt2(setting)
        self.ids = models.token_ids(setting, 1, setting.tokens)
        branches = [f"L{layer}.{kind}" for layer in range(setting.layers) for kind in ("attn", "mlp")]
        self.components = ("embed", "pos", *branches)

    @cached_property
    def graph(self) -> jg.ResidualGraph:
        return models.traced(self.setting)

    @cached_property
    def gram(self) -> tuple[Tensor, Tensor]:
        """Inner products of T_i − output [token, component, component], and ‖output‖² [token], in float64."""
        model: Any = models.double(self.model)
        states = models.states(model, self.ids.cpu())
        end = states[f"h{2 * self.setting.layers}"][0]
        parts = [states[name][0] for name in self.components]
        # Component by component, for each has a radius of convergence of its own.
        terms = torch.stack([oracle.taylor(model.transformer.ln_f, x, end - x, ORDER).sum(0) for x in parts])
        unembedding = model.lm_head.weight.detach()
        metric = unembedding.T @ unembedding
        output = model.transformer.ln_f(end).detach()
        error = (terms - output).transpose(0, 1)
        return error @ metric @ error.mT, ((output @ metric) * output).sum(-1)

    def error(self, found: Any) -> float:
        """How far the weights may be above the minimum of q(w) = wᵀM w, by ‖output‖²: q is convex, so at most by
        2 (q − min_i (M w)_i)."""
        gram, scale = self.gram
        order = [found.components.index(name) for name in self.components]
        weights = found.weights[0][:, order].double().cpu()
        gradient = torch.einsum("tij,tj->ti", gram, weights)
        level = (weights * gradient).sum(-1)
        return float((2 * (level - gradient.min(-1).values) / scale).max())

    def floor(self) -> Contestant:
        """A decode per component."""
        return models.forward_and_decodes(self.setting, self.ids, len(self.components))

    def jetgraph(self) -> Contestant:
        def work() -> Any:
            return jg.joint_lens(self.graph, self.ids, order=ORDER, scale="none")

        note = f"{len(self.components)} components, optimum"
        return Contestant("jetgraph", "jetgraph", work, self.error, note=note, prepare=lambda: self.graph)

    def jex(self) -> Contestant:
        """One step of jex's descent, whose time is taken for all of them."""
        found = rivals.jex(self.setting)
        if found.module is None:
            return missing("jex", found.why)
        kind = importlib.import_module("jex.lenses.joint").JointJetLens
        lm = rivals.language_model(found.module, self.model)

        def work() -> Any:
            lens = kind(lm, list(range(self.setting.layers + 1)), ORDER)
            return lens.optimize_weights(self.ids.clone(), iters=1)

        note = f"{self.setting.layers + 1} components, {STEPS} × a step of its descent"
        return Contestant("jex", "rival", work, share=1 / STEPS, note=note)


BENCHMARK = Benchmark(
    "joint",
    "Joint lens of order 1",
    "Weights on the simplex, per token, that bring the decoder's jets around all components closest to the output, "
    "for a text of 64 tokens. Floor: one forward pass, and the decodes of all components in one matrix product. The"
    " error bounds how far the objective may be above its minimum, relative to ‖output‖², by convexity; the Gram "
    "matrix of it comes from the final norm interpolated in float64. jex descends: the time of a step, times the "
    "100 that it takes by default, after which it is not at the optimum; `benchmarks/joint_lens.py` compares what "
    "both find.",
    cases,
)
