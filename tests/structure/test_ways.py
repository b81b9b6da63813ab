"""The ways into attention: which products they are found at, and that what goes by each is the gradient by it alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.compilation.components import Readout
from jetgraph.compilation.flows import Flows, flows
from jetgraph.structure.ways import find_ways
from tests.compilation.test_flows import Net, check_conservation, normed, one_example
from tests.conftest import Example
from tests.zoo import case


class Written(nn.Module):
    """Attention written in another way each time, between two linear maps."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.q, self.k, self.v, self.out, self.gate = (nn.Linear(6, 6) for _ in range(5))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.attn(h, h, h, h)

    def attn(self, hq: Tensor, hk: Tensor, hv: Tensor, hg: Tensor) -> Tensor:
        q, k, v = self.q(hq), self.k(hk), self.v(hv)
        if self.how == "keys first":
            pattern = (k @ q.transpose(-1, -2)).softmax(-2).transpose(-1, -2)
            return self.out(pattern @ v)
        if self.how == "einsum":
            pattern = torch.einsum("bkd,bqd->bqk", k, q).softmax(-1)
            return self.out(torch.einsum("bqk,bkd->bqd", pattern, v))
        if self.how == "sink":
            scores = q @ k.transpose(-1, -2)
            return self.out(torch.cat([scores, scores[..., :1] * 0 + 0.3], dim=-1).softmax(-1)[..., :-1] @ v)
        if self.how == "slots":
            # Queries compete for the keys, of which each is shared out, and are given their sums.
            pattern = (k @ q.transpose(-1, -2)).softmax(-1)
            return self.out(pattern.transpose(-1, -2) @ v)
        if self.how == "gated":
            return self.out(F.scaled_dot_product_attention(q, k, v) * torch.sigmoid(self.gate(hg)))
        if self.how == "linear":
            return self.out(q @ (k.transpose(-1, -2) @ v))
        return self.out(F.scaled_dot_product_attention(hq, hk, hv))


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ("keys first", ("q", "k", "v")),
        ("einsum", ("q", "k", "v")),
        ("sink", ("q", "k", "v")),
        ("slots", ("q", "k", "v")),
        ("gated", ("q", "k", "v", "past")),
        ("linear", None),
        ("one value", None),
    ],
)
def test_what_goes_by_each_way_is_the_gradient_by_it(how: str, names: Any) -> None:
    torch.manual_seed(0)
    net, x = Written(how).double().eval(), torch.randn(1, 4, 6, dtype=torch.float64)
    graph = jg.trace(net, x, dynamic=False)
    ways = find_ways(graph.branches["L0.attn"].region)
    assert (ways and ways.names) == names
    found = jg.attribute(graph, x, target=torch.randn(6), position=2, rules="gradient")
    assert found.total == pytest.approx(found.output, rel=1e-9)
    weights = found.aims[0].readout.weights
    entered = [x.clone().requires_grad_() for _ in range(4)]
    slopes = torch.autograd.grad((net.attn(*entered)[0, 2] @ weights).sum(), entered, allow_unused=True)
    flow = {node.name: node.flow for node in found.nodes}
    by_hand = {way: 0.0 if s is None else float((s * x).sum()) for way, s in zip("qkvp", slopes, strict=True)}
    if names is None:
        assert flow["L0.attn@2"] == pytest.approx(sum(by_hand.values()), rel=1e-9)
    for way in names or ():
        assert flow[f"L0.attn.{way}@2"] == pytest.approx(by_hand[way[0]], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("how", ["keys first", "einsum", "sink", "gated"])
def test_terms_of_every_score(how: str) -> None:
    """Each score is q · k: its slope times what enters of q, and times what enters of k, with scores as a leaf."""
    torch.manual_seed(0)
    net, x = Written(how).double().eval(), torch.randn(1, 4, 6, dtype=torch.float64)
    graph = jg.trace(net, x, dynamic=False)
    found = jg.attribute(graph, x, target=torch.randn(6), position=2, rules="gradient", scores="L0.attn")
    net.requires_grad_(False)
    q, k, v = net.q(x), net.k(x), net.v(x)
    factor = 6**-0.5 if how == "gated" else 1.0
    scores = (factor * q @ k.transpose(-1, -2)).detach().requires_grad_()
    sink = torch.full((1, 4, 1), 0.3, dtype=torch.float64)
    pattern = torch.cat([scores, sink], -1).softmax(-1)[..., :-1] if how == "sink" else scores.softmax(-1)
    made = net.out(pattern @ v * torch.sigmoid(net.gate(x))) if how == "gated" else net.out(pattern @ v)
    (slope,) = torch.autograd.grad((made[0, 2] @ found.aims[0].readout.weights).sum(), scores)
    flow = {node.name: node.flow for node in found.nodes}
    entered = {"q": x @ net.q.weight.T, "k": x @ net.k.weight.T}
    for i in range(4):
        by_query = float(slope[0, 2, i] * factor * (entered["q"][0, 2] @ k[0, i]))
        by_key = float(slope[0, 2, i] * factor * (q[0, 2] @ entered["k"][0, i]))
        assert flow[f"L0.attn.q{i}@2"] == pytest.approx(by_query, rel=1e-9, abs=1e-12)
        assert flow[f"L0.attn.k{i}@2"] == pytest.approx(by_key, rel=1e-9, abs=1e-12)


def table(found: Flows) -> dict[tuple[str, int, str, int], float]:
    names = [(one.alias, at) for one in found.components for at in range(len(one.positions))]
    names += [("target", 0)] * found.targets
    columns = zip(found.senders.tolist(), found.receivers.tolist(), found.values.tolist(), strict=True)
    return {(*names[sender], *names[receiver]): value for sender, receiver, value in columns}


def test_edges_into_queries_keys_and_values_at_positions() -> None:
    """Every edge into the second attention, by autograd with what enters by each way a leaf of its own."""
    torch.manual_seed(0)
    net, x = Net().double().eval(), torch.randn(1, 4, 6, dtype=torch.float64)
    graph = jg.trace(net, x, dynamic=False)
    weights = torch.randn(5, dtype=torch.float64)
    with torch.no_grad():
        found = flows(jg.expand(graph, rules={"*": jg.Tangent()}), graph.run(x), [Readout(2, weights)])
    check_conservation(found, 1e-12)
    first, second = net.blocks[0], net.blocks[1]
    h = first(x).detach()  # type: ignore[operator]
    entered = [h.clone().requires_grad_() for _ in range(3)]
    a, b, c = (normed(second.norm, one, False) for one in entered)  # type: ignore[arg-type]
    scores = (second.q(a) @ second.k(b).transpose(-1, -2)).tril()  # type: ignore[operator]
    inner: Any = scores.masked_fill(scores == 0, -torch.inf).softmax(-1) @ second.v(c)  # type: ignore[operator]
    value: Any = second.out(inner)  # type: ignore[operator]
    middle = h + value
    target = (net.head(middle + second.mlp(middle))[0, 2] * weights).sum()  # type: ignore[operator]
    (slope,) = torch.autograd.grad(target, value, retain_graph=True)
    given = table(found)
    with torch.no_grad():
        expansion = jg.expand(graph, rules={"*": jg.Tangent()})
        by_score = flows(expansion, graph.run(x), [Readout(2, weights)], scores=["L1.attn"])
    check_conservation(by_score, 1e-12)
    check_scores(given, table(by_score), "L1.attn", 4)
    added = {one.alias: value for one, value in zip(found.components, found.stream.added, strict=True)}
    for j in range(4):
        seed = torch.zeros_like(slope)
        seed[0, j] = slope[0, j]
        for way, back in zip("qkv", torch.autograd.grad(value, entered, seed, retain_graph=True), strict=True):
            for sender in ("embed", "L0.attn.q", "L0.attn.k", "L0.attn.v", "L0.mlp.bias", "L0.mlp"):
                for i in range(4):
                    expected = float((back[0, i] * added[sender][0, i]).sum())
                    told = given.get((sender, i, f"L1.attn.{way}", j), 0.0)
                    assert told == pytest.approx(expected, rel=1e-8, abs=1e-11), (sender, i, way, j)


def check_scores(whole: dict[Any, float], by_score: dict[Any, float], alias: str, length: int) -> None:
    """Edges into the scores of a position add up to those into its queries, or keys, and none comes from after it."""
    for way in "qk":
        sums: dict[Any, float] = {}
        for (sender, i, receiver, j), value in by_score.items():
            if receiver.startswith(f"{alias}.{way}"):
                key = int(receiver.removeprefix(f"{alias}.{way}"))
                assert i == (j if way == "q" else key) or sender.endswith(".bias"), (sender, i, receiver, j)
                assert key <= j < length
                sums[sender, i, j] = sums.get((sender, i, j), 0.0) + value
        wanted = {(u, i, j): value for (u, i, v, j), value in whole.items() if v == f"{alias}.{way}"}
        # What goes out of the attention itself is told apart as well.
        size = max(map(abs, wanted.values()))
        for sender_i_j in sums.keys() & wanted.keys():
            assert sums[sender_i_j] == pytest.approx(wanted[sender_i_j], rel=1e-5, abs=1e-6 * size)
        assert sum(sums.values()) == pytest.approx(sum(wanted.values()), rel=1e-5, abs=1e-5 * size)
        assert sums.keys() & wanted.keys()


@pytest.mark.parametrize("name", ["llama"])
def test_fused_attention_against_hooks(
    name: str, traced: Callable[..., Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads together: the model with all but one operand of the layer's attention detached."""
    example, layer = traced(case(name), "sdpa"), 1
    inputs = one_example(example.inputs)
    heads = jg.attribute(example.graph, inputs, target=3, rules="gradient", split="heads")
    stream = heads.flows.stream
    added = {one.alias: value for one, value in zip(stream.components, stream.added, strict=True)}
    model: Any = example.model
    original, calls = F.scaled_dot_product_attention, [0]
    for number, way in enumerate("qkv"):
        calls[0] = 0

        def attention(*args: Any, number: int = number, **kwargs: Any) -> Tensor:
            own = calls[0] == layer
            calls[0] += 1
            operands = [x if not own or at == number else x.detach() for at, x in enumerate(args[:3])]
            return original(*operands, *args[3:], **kwargs)

        monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
        leaf: list[Tensor] = []
        hook = model.get_submodule(f"model.layers.{layer}.input_layernorm").register_forward_pre_hook(
            lambda module, given, leaf=leaf: leaf.append(given[0].detach().requires_grad_()) or (leaf[0],)
        )
        logits = model(**inputs).logits[0, -1]
        hook.remove()
        (slope,) = torch.autograd.grad(logits[3] - logits.mean(), leaf)
        expected = float((slope * added["embed"]).sum())
        told = sum(
            value
            for (sender, _, receiver, _), value in table(heads.flows).items()
            if sender == "embed" and receiver.startswith("L1.attn.head") and receiver.endswith(f".{way}")
        )
        assert told == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert calls[0] == 2
    scores = [f"L1.attn.head{head}" for head in (0, 1)]
    by_score = jg.attribute(
        example.graph, inputs, target=3, rules="gradient", split="heads", scores=scores, memory=2**30
    )
    check_conservation(by_score.flows, 1e-4)
    for alias in scores:
        check_scores(table(heads.flows), table(by_score.flows), alias, 7)
    with pytest.raises(jg.InputError, match="attribute without scores="):
        jg.faithfulness(by_score, of="edges")
    with pytest.raises(jg.InputError, match=r"'L0\.mlp' has none that vary"):
        jg.attribute(example.graph, inputs, target=3, rules="gradient", scores="L0.mlp")
    with pytest.raises(jg.InputError, match='rules="gradient"'):
        jg.attribute(example.graph, inputs, target=3, scores="L0.attn")
