"""Path patching of sets of edges, against models written out by hand with a stream for each receiver and position."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import jetgraph as jg
from tests.compilation.test_flows import Net, normed, one_example
from tests.conftest import Example
from tests.zoo import case

Pair = tuple[str, str]


class Patched:
    """A model as a chain of sites, in which each edge that is not kept carries its filling."""

    def __init__(self, kept: set[Pair], fill: Mapping[str, Tensor]) -> None:
        self.kept, self.fill = kept, fill
        self.values: dict[str, Tensor] = {}

    def stream(self, receiver: str) -> Tensor:
        """What a receiver at a position reads; of a sender's positions those that are kept, else the filling."""
        total: Any = 0
        for alias, value in self.values.items():
            rows = [
                value[:, i] if (f"{alias}@{i}", receiver) in self.kept else self.fill[alias][:, i]
                for i in range(value.shape[1])
            ]
            total = total + torch.stack(rows, dim=1)
        return total

    def add(self, alias: str, site: Callable[..., Tensor], length: int, ways: tuple[str, ...] = ("",)) -> None:
        rows = [
            site(*(self.stream(f"{alias}{way}@{j}") for way in ways))[:, j]  # each position from streams of its own
            for j in range(length)
        ]
        self.values[alias] = torch.stack(rows, dim=1)


def fillings(ablation: str, own: Mapping[str, Tensor], others: list[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    if ablation == "zero":
        return [{alias: torch.zeros_like(value) for alias, value in own.items()}]
    if ablation == "resample":
        return [dict(one) for one in others]
    mean = {alias: torch.cat([one[alias] for one in others], dim=1).mean(1, keepdim=True) for alias in own}
    return [{alias: value.expand_as(own[alias]) for alias, value in mean.items()}]


def pairs_of(graph: Any) -> dict[Pair, float]:
    """Flows by edge, those of constants of sites with those of the site."""
    columns = graph.columns()
    flow: dict[Pair, float] = {}
    for sender, receiver, value in zip(columns["sender"], columns["receiver"], columns["flow"], strict=True):
        if sender != "logits.bias":
            pair = (sender.replace(".bias@", "@"), receiver)
            flow[pair] = flow.get(pair, 0.0) + value
    return flow


# A net of float64, its attention by queries, keys and values


def attended(block: Any, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    a, b, c = (normed(block.norm, one, False) for one in (a, b, c))
    scores = (block.q(a) @ block.k(b).transpose(-1, -2)).tril()
    return block.out(scores.masked_fill(scores == 0, -torch.inf).softmax(-1) @ block.v(c))


def run_net(net: Net, x: Tensor, weights: Tensor, ways: tuple[str, ...], patched: Patched) -> float:
    patched.values["embed"] = x
    for number, block in enumerate(net.blocks):
        site = (lambda a, block=block: attended(block, a, a, a)) if len(ways) == 1 else (
            lambda a, b, c, block=block: attended(block, a, b, c)
        )  # fmt: skip
        patched.add(f"L{number}.attn", site, x.shape[1], ways)
        patched.add(f"L{number}.mlp", block.mlp, x.shape[1])  # type: ignore[arg-type]
    return float(net.head(patched.stream("direction@2"))[0, 2] @ weights)


def clean_values(net: Net, x: Tensor) -> dict[str, Tensor]:
    everything: Any = type("All", (), {"__contains__": lambda self, pair: True})()
    patched = Patched(everything, {})
    run_net(net, x, torch.zeros(5, dtype=x.dtype), ("",), patched)
    return patched.values


@pytest.fixture(scope="module")
def net() -> tuple[Net, Tensor, list[Tensor], jg.ResidualGraph]:
    torch.manual_seed(0)
    net = Net().double().eval().requires_grad_(False)
    x, *others = torch.randn(3, 1, 4, 6, dtype=torch.float64)
    return net, x, others, jg.trace(net, x, dynamic=False)


@pytest.mark.parametrize("rules", ["frozen", "gradient"])
@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
@torch.no_grad()
def test_edges_are_patched_as_by_hand(ablation: Any, rules: Any, net: Any) -> None:
    """Half of the edges, into queries, keys and values too where these are told apart."""
    model, x, others, graph = net
    weights = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = jg.attribute(graph, x, target=weights, position=2, rules=rules)
    ways = (".q", ".k", ".v") if rules == "gradient" else ("",)
    # By name, a sender is a site, and its first component stands for it.
    merged: dict[Pair, Pair] = {}
    for sender, receiver in pairs_of(found):
        if sender.split("@")[0] in ("L0.attn", "L1.attn") and rules == "gradient":
            continue  # the constant alone, whose site has several nodes
        whole = sender.replace(".q@", "@").replace(".k@", "@").replace(".v@", "@")
        merged[whole, receiver] = (sender, receiver)
    chosen = set(random.Random(0).sample(sorted(merged), len(merged) // 2))
    prompts = None if ablation == "zero" else others
    fills = fillings(ablation, clean_values(model, x), [clean_values(model, other) for other in others])
    for inside in (False, True):
        told = jg.faithfulness(
            found, of="edges", edges=[merged[pair] for pair in sorted(chosen)], ablation=ablation, prompts=prompts,
            inside=inside, sizes=(),
        )  # fmt: skip
        kept = merged.keys() - chosen if inside else chosen
        expected = [run_net(model, x, weights, ways, Patched(set(kept), fill)) for fill in fills]
        assert told.kept.value == pytest.approx(sum(expected) / len(expected), rel=1e-9)
    assert told.circuits[-1].components == len(merged)
    assert told.circuits[0 if inside else -1].value == pytest.approx(found.output, rel=1e-9)
    if ablation == "resample":
        # All that is sent comes from the other prompts.
        outputs = [float(model(other)[0, 2] @ weights) for other in others]
        assert told.circuits[-1].value == pytest.approx(sum(outputs) / 2, rel=1e-9)


def test_edges_are_ranked_by_what_flows(net: Any) -> None:
    model, x, _, graph = net
    found = jg.attribute(graph, x, target=torch.ones(5).cumsum(0), position=2)
    flow = pairs_of(found)
    order = sorted(flow, key=lambda pair: -abs(flow[pair]))
    told = jg.faithfulness(found, of="edges", by="flow", sizes=(0.1, 0.4))
    zero = {alias: torch.zeros_like(value) for alias, value in clean_values(model, x).items()}
    weights = found.aims[0].readout.weights
    for circuit in told.circuits:
        with torch.no_grad():
            expected = run_net(model, x, weights, ("",), Patched(set(order[: circuit.components]), zero))
        assert circuit.value == pytest.approx(expected, rel=1e-9, abs=1e-12)
    pruned = found.prune(0.7, 0.8)
    kept = jg.faithfulness(pruned, of="edges", sizes=()).kept
    assert 0 < kept.components < len(order)
    assert "edges" in told.title
    assert list(told.columns()) == ["share", "edges", "value", "faithfulness"]
    one = replace(told, kept=replace(told.kept, components=1)).title
    assert "the graph's 1 edge: " in one
    assert told.figure().axes[0].get_xlabel() == "share of the edges kept"


@torch.no_grad()
def test_edges_of_a_transformer(traced: Callable[..., Example]) -> None:
    """GPT-2's own modules, positions and words as two sources; and its heads, which are one branch together."""
    example = traced(case("gpt2"))
    inputs = one_example(example.inputs)
    body: Any = example.model.transformer  # type: ignore[union-attr]
    ids = inputs["input_ids"]
    length = ids.shape[1]
    mask = torch.full((1, 1, length, length), -torch.inf).triu(1)
    found = jg.attribute(example.graph, inputs, target=(3, 5))
    pairs = sorted(pairs_of(found))
    kept = set(random.Random(1).sample(pairs, len(pairs) // 2))
    zeros = dict.fromkeys(("embed", "pos", "L0.attn", "L0.mlp", "L1.attn"), torch.zeros(1, length, body.embed_dim))
    patched = Patched(kept, zeros | {"L1.mlp": zeros["embed"]})
    patched.values |= {"embed": body.wte(ids), "pos": body.wpe(torch.arange(length))[None]}
    for number, block in enumerate(body.h):
        patched.add(f"L{number}.attn", lambda a, block=block: block.attn(block.ln_1(a), attention_mask=mask)[0], length)
        patched.add(f"L{number}.mlp", lambda a, block=block: block.mlp(block.ln_2(a)), length)
    logits = example.model.lm_head(body.ln_f(patched.stream(found.nodes[-1].name)))[0, -1]  # type: ignore[operator]
    told = jg.faithfulness(found, of="edges", edges=sorted(kept), sizes=())
    assert told.kept.value == pytest.approx(float(logits[3] - logits[5]), rel=1e-3, abs=1e-4)
    # Heads that share the fate of their branch are their branch; what constants there are is the same on both prompts.
    heads = jg.attribute(example.graph, inputs, target=(3, 5), split="heads")
    sites = [one.alias for one in heads.flows.components if one.entry is None]
    parts = {alias: [one for one in sites if one.startswith(f"{alias}.head")] for alias in ("L0.attn", "L1.attn")}
    cut = [
        (f"{one}@{sender.split('@')[1]}", receiver if "−" in receiver else f"{other}@{receiver.split('@')[1]}")
        for sender, receiver in sorted(kept)
        for one in parts.get(sender.split("@")[0], [sender.split("@")[0]])
        for other in parts.get(receiver.split("@")[0], [receiver.split("@")[0]])
    ]
    other = {**inputs, "input_ids": ids.flip(1)}
    whole, apart = (
        jg.faithfulness(graph, of="edges", edges=some, sizes=(), ablation="resample", prompts=other)
        for graph, some in ((found, sorted(kept)), (heads, cut))
    )
    assert apart.kept.value == pytest.approx(whole.kept.value, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", ["scaled_skip", "opt_post_norm"])
@torch.no_grad()
def test_edges_where_skips_change_the_stream(name: str, traced: Callable[..., Example]) -> None:
    """With all edges the model is itself, and with none what it is on the other prompt."""
    example = traced(case(name))
    inputs = one_example(example.inputs)
    other = {key: value.flip(1) if isinstance(value, Tensor) else value for key, value in inputs.items()}
    direction = torch.linspace(-1, 2, example.output.shape[-1])
    found = jg.attribute(example.graph, inputs, target=direction, rules="gradient")
    told = jg.faithfulness(found, of="edges", ablation="resample", prompts=other, sizes=())
    none, every = (example.graph.run(**given).output[0, -1] @ direction for given in (other, inputs))
    assert [one.value for one in told.circuits] == pytest.approx([float(none), float(every)], rel=1e-3, abs=1e-3)


def test_what_is_no_edge_is_refused(net: Any) -> None:
    _, x, _, graph = net
    found = jg.attribute(graph, x, target=torch.ones(5).cumsum(0), position=2)
    for options, message in (
        ({"edges": [("embed@0", "L7.mlp@0")], "of": "edges"}, "no edge"),
        ({"edges": [("embed@0", "L0.mlp@0")]}, "of=.edges."),
        ({"of": "paths"}, "choose 'components', 'edges'"),
    ):
        with pytest.raises(jg.InputError, match=message):
            jg.faithfulness(found, **options)  # type: ignore[arg-type]
    few = jg.attribute(graph, x, target=torch.ones(5).cumsum(0), position=2, memory=2000)
    with pytest.raises(jg.InputError, match="more memory"):
        jg.faithfulness(few, of="edges")
