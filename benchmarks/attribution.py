"""Attribution graphs, spectra and rankings, as multiples of one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import jetgraph as jg
from benchmarks import models, oracle
from benchmarks.elsewhere import Elsewhere
from benchmarks.harness import Benchmark, Case, Contestant, Setting, missing
from jetgraph.applications.attribution.graphs import Attribution

TOKENS = 16


def cases(setting: Setting) -> Iterator[Case]:
    """All positions without heads and with them; edges to first order; sums by attention hops; the largest paths."""
    problem = _Problem(setting)
    tokens = problem.ids
    split = missing("circuit-tracer", "attributes features of transcoders, which GPT-2 has none of here")
    yield Case("graph", [problem.floor(), problem.attributed("jetgraph", None), split])
    yield problem.components()
    yield problem.edges()
    yield Case("graph, heads", [problem.floor(), problem.attributed("jetgraph", "heads")])
    graph = models.traced(setting)
    yield Case(
        "spectrum",
        [
            problem.floor(),
            Contestant(
                "jetgraph",
                "jetgraph",
                lambda: jg.spectrum(graph, tokens, by="attn", target=problem.target),
                lambda found: abs(float(found.total) - problem.exact) / abs(problem.exact),
                note=f"2^{2 * setting.layers} paths by attention hops",
            ),
        ],
    )
    yield Case(
        "largest paths",
        [
            problem.floor(),
            Contestant(
                "jetgraph",
                "jetgraph",
                lambda: jg.rank(graph, tokens, target=problem.target, top=20),
                lambda found: abs(found.total - problem.exact) / abs(problem.exact),
                note="20 paths",
            ),
        ],
    )


class _Problem:
    """A prompt of random tokens, and the model's top token after it."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model: Any = models.gpt2(setting)
        self.ids = models.token_ids(setting, 1, TOKENS)
        with torch.no_grad():
            logits = models.double(self.model)(input_ids=self.ids.cpu()).logits[0, -1]
        self.target = int(logits.argmax())
        self.exact = float(logits[self.target] - logits.mean())

    def floor(self) -> Contestant:
        def work() -> None:
            with torch.no_grad():
                self.model(input_ids=self.ids)

        return Contestant("floor", "floor", work, note="a forward pass")

    def attributed(self, name: str, split: Any) -> Contestant:
        graph = models.traced(self.setting)

        def error(found: Any) -> float:
            return abs(found.total - self.exact) / abs(self.exact)

        return Contestant(
            name,
            "jetgraph",
            lambda: jg.attribute(graph, self.ids, target=self.target, split=split),
            error,
            note="every edge between components at 16 positions",
        )

    def components(self) -> Case:
        """What each component gives to the logits at the last position, heads apart, the final norm held."""
        expansion = jg.expand(
            models.traced(self.setting), recipe="components", rules={"logits": jg.Freeze()}, split="heads"
        )
        module = jg.compile(expansion)

        def error(found: Any) -> float:
            with torch.no_grad():
                exact = models.double(self.model)(input_ids=self.ids.cpu()).logits[0, -1]
            return oracle.distance(torch.as_tensor(found).double(), exact)

        return Case(
            "components to all logits",
            [
                self.floor(),
                Contestant(
                    "jetgraph",
                    "jetgraph",
                    lambda: module.at(TOKENS - 1, input_ids=self.ids).each(),
                    lambda found: error(found.sum(0).flatten()),
                    note=f"{len(module.paths)} terms",
                ),
                Elsewhere(self.setting, self.model).contestant(
                    "attributed", self.ids, self.ids, error, "decomposition of its cached stream, times W_U"
                ),
            ],
        )

    def edges(self) -> Case:
        """Edges between branches to first order, positions summed: here, and by plain autograd."""
        graph = models.traced(self.setting)

        def work() -> Tensor:
            found = jg.attribute(graph, self.ids, target=self.target, rules="gradient", positions=False)
            return _between_branches(found, self.setting.layers)

        return Case(
            "edges, first order",
            [
                self.floor(),
                Contestant(
                    "jetgraph", "jetgraph", work, self.edge_error, note="every edge, by queries, keys and values"
                ),
                Contestant(
                    "EAP, plain autograd",
                    "rival",
                    lambda: edge_patching(self.model, self.ids, self.target),
                    self.edge_error,
                    note="one forward and one backward pass; edges of branches alone",
                ),
            ],
        )

    def edge_error(self, found: Tensor) -> float:
        """Largest distance from edges by autograd in float64, as a share of the largest."""
        exact = self.exact_edges
        return float((found.cpu().double() - exact).abs().max() / exact.abs().max())

    @cached_property
    def exact_edges(self) -> Tensor:
        return edge_patching(models.double(self.model), self.ids.cpu(), self.target)


def _between_branches(found: Attribution, layers: int) -> Tensor:
    """Flows [receiver, sender] between the branches of a GPT-2, in the order in which they come."""
    place = {f"L{layer}.{kind}": 2 * layer + at for layer in range(layers) for at, kind in enumerate(("attn", "mlp"))}
    table = torch.zeros(len(place), len(place), dtype=torch.float64)
    # What a branch adds is what passes it, and the constant that its tangent leaves, a source of its own.
    number = [place.get(".".join(node.name.split("@")[0].split(".")[:2]), -1) for node in found.nodes]
    for sender, receiver, value in zip(
        *(x.tolist() for x in (found.senders, found.receivers, found.values)), strict=True
    ):
        if number[sender] >= 0 and number[receiver] >= 0:
            table[number[receiver], number[sender]] += value
    return table


def edge_patching(model: Any, ids: Tensor, target: int) -> Tensor:
    """Gradients times activations by plain autograd, [receiver, sender]: edges between branches, positions summed."""
    added: list[Tensor] = []
    entered: list[Tensor] = []
    handles = []
    for block in model.transformer.h:
        for norm, branch in ((block.ln_1, block.attn), (block.ln_2, block.mlp)):
            handles.append(norm.register_forward_pre_hook(_keeping(entered)))
            handles.append(branch.register_forward_hook(_kept(added)))
    try:
        logits = model(input_ids=ids).logits[0, -1]
        slopes = torch.autograd.grad(logits[target] - logits.mean(), entered)
    finally:
        for handle in handles:
            handle.remove()
    values = torch.stack(added).detach().flatten(1)
    return torch.stack([values @ slope.flatten() for slope in slopes]).tril(-1)


def _keeping(into: list[Tensor]) -> Callable[..., Any]:
    """A hook that lets what enters be a value of its own, so that its gradient is that of one branch's way."""

    def hook(module: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        value = given[0] + 0
        into.append(value)
        return (value, *given[1:])

    return hook


def _kept(into: list[Tensor]) -> Callable[..., None]:
    def hook(module: Any, given: Any, value: Any) -> None:
        into.append(value[0] if isinstance(value, tuple) else value)

    return hook


BENCHMARK = Benchmark(
    "attribution",
    "Attribution",
    "A prompt of 16 random tokens and the centred logit of the model's top token: the attribution graph over all "
    "components and positions, without heads and with them; what every component gives to all logits at the last "
    "position, beside TransformerLens in a process of its own environment that times itself; edges to first order "
    "with positions summed; the spectrum by attention hops; the 20 largest paths. Floor: one forward pass, so that "
    "the column / floor is the multiple of it. Rival of the edges: edge attribution patching written by hand, one "
    "forward and one backward pass, which gives those between branches alone, and its error, as jetgraph's, is the "
    "distance to the same in float64. Elsewhere the error is that of the sum of all flows, or classes, to the logit "
    "in float64; frozen edges are held against sums over all paths in `tests/compilation/test_flows.py`.",
    cases,
)
