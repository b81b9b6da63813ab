"""Streams that are no chain: long skips, inputs that are added again, sums of layers, dense connections."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.algebra.dag import count_paths, path_texts
from jetgraph.algebra.formulas import generating_function, x, y
from jetgraph.algebra.outline import JoinStep, MapStep
from tests.laws import EXACT, check_affine, check_values, distance, subject
from tests.plain_terms import PlainTerms, RoughError
from tests.zoo import PreNorm

WIDTH = 8


class Net(nn.Module):
    """Embedding, the blocks in some order, norm and head; a block is an MLP behind a norm, without its skip."""

    def __init__(self, run: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run
        self.embed = nn.Embedding(9, WIDTH)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(WIDTH), PreNorm(WIDTH).mlp) for _ in range(4))
        self.merge = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(2))
        self.group = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.scales = nn.Parameter(torch.rand(4, 5))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.run(self, self.embed(x))))


def added_again(net: Net, h: Tensor) -> Tensor:
    """Looped nets and deep equilibria."""
    start = h
    for block in net.blocks[:3]:
        h = h + block(h)
        h = h + start
    return h


def mixed_with_the_start(net: Net, h: Tensor) -> Tensor:
    """The x0-residuals of speed runs of GPT-2."""
    h = start = F.layer_norm(h, (WIDTH,))
    for block, scale in zip(net.blocks[:3], net.scales, strict=False):
        h = scale[0] * h + scale[1] * start
        h = h + block(h)
    return h


def mixed_after_a_norm(net: Net, h: Tensor) -> Tensor:
    start = h
    for block, scale in zip(net.blocks[:2], net.scales, strict=False):
        h = net.norm(h + block(h) + scale[0] * start)
    return h


def added_in_every_round(net: Net, h: Tensor) -> Tensor:
    """A looped model that is given its input after the norm of each round."""
    start, h = h, torch.zeros_like(h)
    for _ in range(3):
        h = h + start
        h = net.norm(h + net.blocks[0](h))
    return h


def added_to_a_projection(net: Net, h: Tensor) -> Tensor:
    """What the rounds before have made comes back by a layer."""
    start = h
    for round in range(3):
        h = start + net.group[round - 1](h) if round else start
        h = h + net.blocks[0](h)
    return h


def halting(net: Net, h: Tensor) -> Tensor:
    """States by the probability to halt there, of which the first is made of that state alone."""
    left: Any = 1.0
    mean: Any = 0.0
    for block, halts in zip(net.blocks[:3], (0, 1, None), strict=True):
        h = h + block(h)
        chance = 1.0 if halts is None else torch.sigmoid(h[..., halts : halts + 1])
        mean = mean + left * chance * h
        left = left * (1 - chance)
    return mean


def concatenated(net: Net, h: Tensor) -> Tensor:
    """A U-net of residual blocks, as U-ViT."""
    stack = []
    for block in net.blocks[:2]:
        h = h + block(h)
        stack.append(h)
    for block, merge in zip(net.blocks[2:], net.merge, strict=True):
        h = merge(torch.cat([h, stack.pop()], -1))
        h = h + block(h)
    return h


def summed(net: Net, h: Tensor) -> Tensor:
    """The same with sums."""
    stack = []
    for block in net.blocks[:2]:
        stack.append(h)
        h = h + block(h)
    for block, scale in zip(net.blocks[2:], net.scales, strict=False):
        h = h + scale[0] * stack.pop()
        h = h + block(h)
    return h


def python_sum_of_layers(net: Net, h: Tensor) -> Tensor:
    points = [h]
    for block in net.blocks[:3]:
        points.append(points[-1] + block(points[-1]))
    return sum(scale * point for scale, point in zip(net.scales[0], points, strict=False))  # type: ignore[return-value]


def weighted_history(net: Net, h: Tensor) -> Tensor:
    """DenseFormer."""
    points = [h]
    for block, scales in zip(net.blocks[:3], net.scales, strict=False):
        points.append(h + block(h))
        h = sum(scale * point for scale, point in zip(scales, points, strict=False))  # type: ignore[assignment]
    return h


def branch_of_an_earlier_point(net: Net, h: Tensor) -> Tensor:
    """What a nonlinear branch makes of an earlier point than the stream has come to."""
    start = h
    h = h + net.blocks[0](h)
    h = h + net.blocks[1](h) + net.blocks[2](start)
    return h


def sum_of_skips(net: Net, h: Tensor) -> Tensor:
    """A WaveNet: what each layer makes goes on twice, into the stream and into a sum that alone the output reads."""
    total: Any = 0
    for block in net.blocks[:3]:
        made = torch.tanh(block(h))
        total = total + net.group[0](made)
        h = h + net.group[1](made)
    return total


def sum_of_projections(net: Net, h: Tensor) -> Tensor:
    """A dense head of one linear layer over several layers side by side."""
    total: Any = 0
    for block, project in zip(net.blocks[:3], (*net.group, net.group[0]), strict=False):
        h = h + block(h)
        total = total + project(h)
    return total


def sum_of_layers_and_a_norm(net: Net, h: Tensor) -> Tensor:
    """A weighted sum of hidden states, the last of which is the final norm of the stream."""
    points = [h]
    for block in net.blocks[:2]:
        points.append(points[-1] + block(points[-1]))
    points[-1] = net.norm(points[-1])
    return sum(scale * point for scale, point in zip(net.scales[0], points, strict=False))  # type: ignore[return-value]


def fused(net: Net, h: Tensor) -> Tensor:
    """A dense head, as DPT's: residual units on each layer, added up from the last layer to the first."""
    first = h + net.blocks[0](h)
    last = first + net.blocks[1](first)
    last = net.group[0](net.norm(last))
    last = last + net.blocks[2](last)
    first = net.group[1](net.norm(first))
    first = first + net.blocks[3](first)
    return (last + first).tanh()


def layers(net: Net, h: Tensor) -> list[Tensor]:
    points = [h]
    for block in net.blocks[:3]:
        points.append(points[-1] + block(points[-1]))
    return points


def side_by_side(net: Net, h: Tensor) -> Tensor:
    """A head over a concatenation of what it makes of two layers and the start."""
    start, first, _, last = layers(net, h)
    read = torch.cat([net.group[0](first).tanh(), net.group[1](last), start], -1)
    return net.merge[0](torch.relu(read[..., : 2 * WIDTH]) + read[..., WIDTH:])


def multiplied(net: Net, h: Tensor) -> Tensor:
    """What is made of one layer times what is made of another one; the head goes on with a residual unit."""
    _, first, _, last = layers(net, h)
    h = torch.tanh(net.group[0](first) * last)
    return h + net.blocks[3](h)


def weighed_by_data(net: Net, h: Tensor) -> Tensor:
    """A sum of layers with weights that a softmax makes of all of them."""
    points = torch.stack(layers(net, h), -2)
    return (points * net.head(points)[..., :1].softmax(-2)).sum(-2)


def summed_in_another_order(net: Net, h: Tensor) -> Tensor:
    """Steps to an equilibrium: what is added again comes before the stream in the sum."""
    start = h
    for block in net.blocks[:3]:
        h = net.norm(block(h) + start + h)
    return h


def behindhand(net: Net, h: Tensor) -> Tensor:
    """Ladder residuals: a layer does not wait for the one before it."""
    before = h
    for block in net.blocks[:4]:
        h, before = h + block(before), h
    return h


def behindhand_and_damped(net: Net, h: Tensor) -> Tensor:
    """The same, of a stream that fades, and with a factor of each layer."""
    before = h
    for number, block in enumerate(net.blocks[:4]):
        h, before = 0.7 * h + (0.1 * number + 0.1) * block(before), h
    return h


def behind_a_norm(net: Net, h: Tensor) -> Tensor:
    """Layers that read what was there before the norm of the stream, two of them at once."""
    one, two, three, four = net.blocks[:4]
    normed = net.norm(h + one(h))
    added = 0.7 * normed + two(h) + three(h)
    return added + four(added)


def leapfrog(net: Net, h: Tensor) -> Tensor:
    """A wave equation: 2 h − what h was before + f(h)."""
    before = h
    for block in net.blocks[:3]:
        h, before = 2 * h - before + block(h), h
    return h


def running_mean(net: Net, h: Tensor) -> Tensor:
    """The mean of all layers, brought up to date layer by layer."""
    mean = h
    for block in net.blocks[:3]:
        h = h + block(h)
        mean = 0.7 * mean + 0.3 * h
    return mean


def stacked_history(net: Net, h: Tensor) -> Tensor:
    """DenseFormer, whose layers are stacked."""
    points = [h]
    for number, (block, scales) in enumerate(zip(net.blocks[:2], net.scales, strict=False), 2):
        points.append(h + block(h))
        if number % 2:
            h = (torch.stack(points) * scales[:number].view(-1, 1, 1, 1)).sum(0)
        else:
            h = torch.einsum("nbtd,n->btd", torch.stack(points), scales[:number])
    return h


def weighed_by_the_last(net: Net, h: Tensor) -> Tensor:
    """Dense connections by weights that are made of the layer that was there last."""
    points = [h]
    for block in net.blocks[:2]:
        points.append(h + block(h))
        weights = net.merge[0](torch.cat([points[-1], points[-1]], -1))
        h = sum(weights[..., at : at + 1] * point for at, point in enumerate(points))  # type: ignore[assignment]
    return h


def backcast(net: Net, h: Tensor) -> Tensor:
    """N-BEATS: each block takes away what it explains, and says what it makes of the rest."""
    total: Any = 0
    for block, other in zip(net.blocks[:3], (net.group[0], net.group[1], net.group[0]), strict=True):
        total, h = total + torch.tanh(other(h)), h - block(h)
    return total


def attention_over_layers(net: Net, h: Tensor) -> Tensor:
    """Each block reads all that the others have made, by weights of its own."""
    made = [h]
    for block in (*net.blocks[:3], None):
        values = torch.stack(made)
        h = (values * (F.layer_norm(values, (WIDTH,)) @ net.head.weight[len(made)]).softmax(0)[..., None]).sum(0)
        if block is not None:
            made.append(block(h))
    return h


def points_put_beside(net: Net, h: Tensor) -> Tensor:
    """Deep layer aggregation: a root puts two points side by side, projects them, and adds that to the last."""
    one = F.layer_norm(h + net.blocks[0](h), (WIDTH,))
    two = F.layer_norm(one + net.blocks[1](one), (WIDTH,))
    return net.merge[0](torch.cat([two, one], -1)) + two


def dense_blocks(net: Net, h: Tensor) -> Tensor:
    """Dense blocks in a residual one: the point that the first of them adds to is read again behind the last."""
    start = h
    for block, merge in zip(net.blocks[:2], net.merge, strict=True):
        h = h + merge(torch.cat([h, block(h)], -1))
    return start + 0.2 * h


def beside_an_adapter(net: Net, h: Tensor) -> Tensor:
    """LAuReL: the skip has an affine branch of its own, and a weight."""
    for block, group, scale in zip(net.blocks[:2], net.group, net.scales, strict=False):
        h = scale[0] * block(h) + scale[1] * (h + group(h))
    return h


def started_again(net: Net, h: Tensor) -> Tensor:
    """Personalised propagation: each round adds a multiple of the start to an image of the one before."""
    start = h
    for group in (*net.group, net.group[0]):
        h = 0.9 * group(h) + 0.1 * start
    return h


def weighted_list(net: Net, h: Tensor) -> Tensor:
    """DenseFormer without skips: layers read weighted sums of what all layers before have made, and no sum is kept."""
    made = [h]
    for block, scale in zip((*net.blocks, None), (*net.scales, net.scales[0]), strict=True):
        h = sum(weight * value for weight, value in zip(scale, made, strict=False))  # type: ignore[assignment]
        if block is not None:
            made.append(block(h))
    return h


NETS: dict[Callable[[Net, Tensor], Tensor], list[tuple[str, int | None]]] = {
    points_put_beside: [
        ("L0.mlp", None),
        ("L0.norm", None),
        ("L1.mlp", None),
        ("L1.norm", None),
        ("L1.skip", 2),
        ("L1.skip.2", 4),
    ],
    dense_blocks: [("L0.mlp", None), ("L1.mlp", None), ("L1.skip", 0)],
    beside_an_adapter: [("L0.mlp", None), ("L1.mlp", 0), ("L2.mlp", None), ("L3.mlp", 2)],
    started_again: [("L0.mlp", None), ("L0.skip", 0), ("L0.skip.2", 0)],
    weighted_list: [(f"L{block}.mlp", None) for block in range(4)],
    added_again: [
        (f"L{block}.{kind}", 0 if kind == "skip" and block else None) for block in range(3) for kind in ("mlp", "skip")
    ],
    mixed_with_the_start: [
        ("map", None),
        ("L0.mlp", None),
        ("L0.skip", 0),
        ("L1.mlp", None),
        ("L1.skip", 0),
        ("L2.mlp", None),
    ],
    mixed_after_a_norm: [
        ("L0.mlp", None),
        ("L0.skip", None),
        ("L0.norm", None),
        ("L1.mlp", None),
        ("L1.skip", 0),
    ],
    concatenated: [
        ("L0.mlp", None),
        ("L1.mlp", None),
        ("L1.map", None),
        ("L2.mlp", None),
        ("L2.skip", 1),
        ("L2.map", None),
        ("L3.mlp", None),
    ],
    summed: [
        ("L0.mlp", None),
        ("L1.mlp", None),
        ("L1.skip", None),
        ("L2.mlp", None),
        ("L2.skip", 0),
        ("L3.mlp", None),
    ],
    python_sum_of_layers: [
        ("L0.mlp", None),
        ("L1.mlp", None),
        ("L2.mlp", None),
        ("L2.skip", 0),
        ("L2.skip.2", 1),
        ("L2.skip.3", 2),
    ],
    weighted_history: [
        ("L0.mlp", None),
        ("L0.skip", 0),
        ("L1.mlp", None),
        ("L1.skip", 0),
        ("L1.skip.2", 1),
        ("L2.mlp", None),
        ("L2.skip", 0),
        ("L2.skip.2", 1),
        ("L2.skip.3", 3),
    ],
    branch_of_an_earlier_point: [("L0.mlp", None), ("L1.mlp", None), ("L1.mlp.2", 0)],
    sum_of_skips: [
        ("L0.mlp", None),
        ("L1.mlp", None),
        ("L2.mlp", None),
        ("L2.mlp.2", 0),
        ("L2.mlp.3", 1),
    ],
    sum_of_projections: [
        ("L0.mlp", None),
        ("L1.mlp", None),
        ("L2.mlp", None),
        ("L3.mlp", 1),
        ("L3.mlp.2", 2),
    ],
    sum_of_layers_and_a_norm: [
        ("L0.mlp", None),
        ("L1.mlp", None),
        ("L2.mix", None),
        ("L2.skip", 0),
        ("L2.skip.2", 1),
    ],
    side_by_side: [
        ("L0.mlp", None),
        ("L1.mlp", None),
        ("L2.mlp", None),
        ("L3.mlp", 1),
        ("L3.skip", 0),
    ],
    multiplied: [
        ("L0.mlp", None),
        ("L1.mlp", None),
        ("L2.mlp", None),
        ("L3.mlp", 1),
        ("L3.act", None),
        ("L4.mlp", None),
    ],
    weighed_by_data: [
        ("L0.mlp", None),
        ("L1.mlp", None),
        ("L2.mlp", None),
        ("L2.skip", 0),
        ("L2.skip.2", 1),
        ("L2.skip.3", 2),
    ],
    summed_in_another_order: [
        ("L0.mlp", None),
        ("L0.skip", None),
        ("L0.norm", None),
        ("L1.mlp", None),
        ("L1.skip", 0),
        ("L1.norm", None),
        ("L2.mlp", None),
        ("L2.skip", 0),
    ],
    halting: [("L0.mlp", None), ("L1.mlp", None), ("L2.mlp", None), ("L2.skip", 1), ("L2.skip.2", 2)],
    added_in_every_round: [
        ("L0.mlp", None),
        ("L0.norm", None),
        ("L0.skip", 0),
        ("L1.mlp", None),
        ("L1.norm", None),
        ("L1.skip", 0),
        ("L2.mlp", None),
    ],
    added_to_a_projection: [
        ("L0.mlp", None),
        ("L0.skip", 0),
        ("L1.mlp", None),
        ("L1.skip", 0),
        ("L2.mlp", None),
    ],
    behindhand: [("L0.mlp", None), ("L1.mlp", 0), ("L3.mlp", None), ("L3.mlp.2", 1)],
    behindhand_and_damped: [("L0.mlp", None), ("L1.mlp", 0), ("L2.mlp", 1), ("L3.mlp", 2)],
    behind_a_norm: [("L0.mlp", None), ("L0.norm", None), ("L1.mlp", 0), ("L1.mlp.2", 0), ("L3.mlp", None)],
    leapfrog: [("L0.mlp", None), ("L1.mlp", None), ("L1.skip", 0), ("L2.mlp", None), ("L2.skip", 1)],
    running_mean: [
        ("L0.mlp", None),
        ("L1.mlp", None),
        ("L2.mlp", None),
        ("L2.skip", 0),
        ("L2.skip.2", 1),
        ("L2.skip.3", 2),
    ],
    stacked_history: [("L0.mlp", None), ("L0.skip", 0), ("L1.mlp", None), ("L1.skip", 0), ("L1.skip.2", 1)],
    weighed_by_the_last: [("L0.mlp", None), ("L0.skip", 0), ("L1.mlp", None), ("L1.skip", 0), ("L1.skip.2", 1)],
    backcast: [("L0.mlp", None), ("L1.mlp", None), ("L2.mlp", None), ("L2.mlp.2", 0), ("L2.mlp.3", 1)],
    attention_over_layers: [("L0.mlp", None), ("L1.mlp", None), ("L2.mlp", None)],
    fused: [
        ("L0.mlp", None),
        ("L1.mlp", None),
        ("L1.map", None),
        ("L2.mlp", None),
        ("L2.mlp.2", 1),
    ],
}
"""By net, its sites in order but for the decoder, and the earlier points that they read."""


@functools.cache
def traced(run: Callable[[Net, Tensor], Tensor]) -> tuple[Net, dict[str, Any], jg.ResidualGraph]:
    torch.manual_seed(0)
    net = Net(run).eval().double()
    inputs = {"x": torch.randint(0, 9, (2, 3))}
    return net, inputs, jg.trace(net, **inputs, dynamic=False)


@pytest.mark.parametrize("run", NETS, ids=lambda run: run.__name__)
@torch.no_grad()
def test_structure_and_terms(run: Callable[[Net, Tensor], Tensor]) -> None:
    net, inputs, graph = traced(run)
    sites = graph.outline.sites()[:-1]
    assert [(site.alias, site.reads) for site in sites] == NETS[run]
    # The units of a head on an earlier layer are what the branch is made of that reads it, and dense blocks are one.
    assert sum(join.depth for join in graph.joins) == (1 if run is fused else 2 if run is dense_blocks else 0)
    steps = graph.outline.steps
    assert sum(isinstance(step, MapStep) for step in steps) == sum(site.role == "map" for site in sites)
    assert not any(step.injections for step in steps if isinstance(step, JoinStep))
    # The pieces, at other values.
    given = subject(graph, inputs, {"x": torch.randint(0, 9, (2, 3))}, torch.float64)
    assert check_values(given) >= 3
    check_affine(given)
    # The terms: frozen, they are the model; others against plain runs, orders 0 and 1.
    output = net(**inputs)
    if run is not multiplied:  # a product of two values has no gate to hold
        frozen = jg.compile(jg.expand(graph, rules={"*": jg.Freeze()}))(**inputs)
        assert distance(sum(frozen.terms.values()), output) < EXACT  # type: ignore[arg-type]
    # Weights would shrink centres until differences have no digits left.
    expansion = jg.expand(graph, order=1, weights="unit", orders="apart")
    plain = PlainTerms(expansion, graph, inputs)
    some = [path for path in expansion if path.order == 0][:40] + [path for path in expansion if path.order == 1][:10]
    values = jg.compile(expansion, some)(**inputs)
    compared = 0
    for path in some:
        try:
            expected = plain(path)
        except RoughError:
            continue
        compared += 1
        scale = max(float(expected.abs().max()), float(output.abs().max()))
        assert float((values.terms[path] - expected).abs().max()) < (1e-4 if path.order else 1e-9) * scale
    assert compared > len(some) // 2


class Cut(Net):
    """A net whose blocks and long skips can be scaled: the number of the long skip, counted from 0, and by what."""

    def __init__(self, net: Net, cut: Callable[[Cut, Tensor], Tensor], number: int, scale: float) -> None:
        super().__init__(cut)
        self.load_state_dict(net.state_dict())
        self.number, self.scale, self.met = number, scale, 0

    def skip(self, value: Tensor) -> Tensor:
        self.met += 1
        return self.scale * value if self.met == self.number + 1 else value


def cut_added_again(net: Cut, h: Tensor) -> Tensor:
    start = h
    for block in net.blocks[:3]:
        h = h + block(h)
        h = h + net.skip(start)
    return h


def cut_concatenated(net: Cut, h: Tensor) -> Tensor:
    stack = []
    for block in net.blocks[:2]:
        h = h + block(h)
        stack.append(h)
    for block, merge in zip(net.blocks[2:], net.merge, strict=True):
        h = merge(torch.cat([h, net.skip(stack.pop())], -1))
        h = h + block(h)
    return h


def cut_summed(net: Cut, h: Tensor) -> Tensor:
    stack = []
    for block in net.blocks[:2]:
        stack.append(h)
        h = h + block(h)
    for block, scale in zip(net.blocks[2:], net.scales, strict=False):
        h = h + net.skip(scale[0] * stack.pop())
        h = h + block(h)
    return h


@pytest.mark.parametrize(
    ("run", "cut", "number", "alias"),
    [
        (added_again, cut_added_again, 0, "L0.skip"),
        (added_again, cut_added_again, 1, "L1.skip"),
        (concatenated, cut_concatenated, 1, "L2.skip"),
        (summed, cut_summed, 1, "L2.skip"),
    ],
)
@torch.no_grad()
def test_a_long_skip_is_replaced_where_it_is_added(run: Any, cut: Any, number: int, alias: str) -> None:
    """And not the stream itself at the point that it reads, which others read too."""
    net, inputs, graph = traced(run)
    expected = Cut(net, cut, number, 0.3).eval().double()(**inputs)
    forward = graph.run(**inputs)
    value = 0.3 * forward.component(alias)
    forward.patch(alias, value)
    assert distance(forward.output, expected) < EXACT
    assert torch.equal(forward.component(alias), value)
    found = jg.ablate(graph, f"embed > {alias} > logits", inputs, scale=0.3, position=-1)
    through = found.outputs[f"embed > {alias} > logits"].through
    assert through is not None
    assert distance(through, expected[:, -1:]) < EXACT


def nested_groups(net: Net, h: Tensor) -> Tensor:
    """Residual blocks within residual groups, as in image restoration: what the blocks make is projected."""
    for start, last in zip((0, 2), net.group, strict=True):
        inner = h
        for block in net.blocks[start : start + 2]:
            inner = inner + block(inner)
        h = h + last(inner)
    return h


@torch.no_grad()
def test_a_branch_that_projects_is_nested() -> None:
    net, inputs, graph = traced(nested_groups)
    assert [(join.depth, len(join.branches)) for join in graph.joins] == [(1, 1), (1, 1), (0, 1)] * 2
    assert distance(graph(**inputs), net(**inputs)) < EXACT


@torch.no_grad()
def test_a_path_along_a_long_skip() -> None:
    net, inputs, graph = traced(mixed_with_the_start)
    text = "embed > L1.skip > L2.mlp^0 > logits^0"
    (value,) = jg.compile(jg.expand(graph, recipe="path"), text)(**inputs).terms.values()
    start = F.layer_norm(net.embed(inputs["x"]), (WIDTH,))
    expected = net.head.weight @ net.norm(net.blocks[2](net.scales[2, 1] * start)).mT
    assert distance(value, expected.mT) < EXACT
    with pytest.raises(jg.SelectionError, match="reads point 0, which comes before"):
        jg.expand(graph, recipe="path").check("embed > L0.mlp^0 > L1.skip > logits^0")


@torch.no_grad()
def test_what_reads_long_skips() -> None:
    """Formulas, counts, pictures, components and splits know of them."""
    net, inputs, graph = traced(mixed_with_the_start)
    expansion = jg.expand(graph, order=1)
    assert len(list(expansion)) == expansion.count() == sum(expansion.counts().values())
    assert generating_function(expansion).subs({x: 1, y: 1}) == expansion.count()
    dag = jg.path_graph(expansion)
    assert count_paths(dag) == expansion.count()
    assert sorted(path_texts(dag)) == sorted(map(str, expansion))
    assert "of h0" in repr(graph)
    values = jg.compile(jg.expand(graph, 0, recipe="components"))(**inputs)
    assert distance(values.output, net(**inputs)) < EXACT
    parts = jg.expand(graph, split="neurons", rules={"*": jg.Freeze()}, recipe="components")
    assert not any(".skip." in alias for alias in parts.passages)
    lens = jg.compile(jg.expand(graph, recipe="lens"))(**inputs)
    assert (
        distance(lens.terms[f"h{len(graph.outline.steps)} > logits^0"] + lens.terms["bias > logits"], lens.output)
        < EXACT
    )


def value_residual(net: Net, h: Tensor) -> Tensor:
    """What the first layer has made is added to what later ones make of their own streams."""
    first = None
    for block, group in zip(net.blocks[:3], (*net.group, net.group[0]), strict=True):
        value = block(h)
        first = value if first is None else first
        h = h + group(torch.tanh(0.5 * value + 0.5 * first))
    return h


def shared_values_and_scales(net: Net, h: Tensor) -> Tensor:
    first = torch.tanh(net.blocks[0](h))
    h = h + net.group[0](first)
    for block, scale in zip(net.blocks[1:], net.scales, strict=False):
        h = h + net.group[1](torch.lerp(first, torch.tanh(block(h)), scale[0]))
    return h


def shared_block_on_the_start(net: Net, h: Tensor) -> Tensor:
    """One block over the stream and its start side by side, added before the block of each layer, as in zamba2."""
    start = h
    for block in net.blocks[:3]:
        h = h + block(h + net.merge[0](torch.cat([h, start], -1).tanh()))
    return h


@pytest.mark.parametrize("run", [value_residual, shared_values_and_scales, shared_block_on_the_start])
@torch.no_grad()
def test_shared_values_leave_the_stream_whole(run: Callable[[Net, Tensor], Tensor]) -> None:
    """Values that branches share are read by each as they are; the joins between them are on the stream."""
    net, inputs, graph = traced(run)
    joins = [join for join in graph.joins if join.depth == 0]
    assert [join.kind for join in joins] == ["identity"] * (4 if run is shared_values_and_scales else 3)
    assert list(graph.stream.joins) == joins
    assert len(graph.streams) == 1
    assert [summand.source.alias for summand in graph.stream.encoder.summands] == ["embed"]
    given = subject(graph, inputs, {"x": torch.randint(0, 9, (2, 3))}, torch.float64)
    assert check_values(given) >= 9
    frozen = jg.compile(jg.expand(graph, rules={"*": jg.Freeze()}))(**inputs)
    assert distance(frozen.total, net(**inputs)) < EXACT
    # A branch of order 0 at another centre, with the shared value as on the true stream.
    if run is value_residual:
        start = net.embed(inputs["x"])
        value = net.group[1](torch.tanh(0.5 * net.blocks[1](start) + 0.5 * net.blocks[0](start)))
        path = jg.Path.parse("embed > L1.mlp^0 > logits^0")
        terms = jg.compile(jg.expand(graph, order=0, weights="unit"), [path])(**inputs).terms
        assert distance(terms[path], net.head(net.norm(value)) - net.head.bias) < EXACT


class Biased(Net):
    """What is made once of other inputs, and added in every layer: to scores, or to what an MLP reads."""

    def __init__(self, add: Callable[[Biased, nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__(lambda net, h: h)
        self.add = add
        self.places = nn.Embedding(9, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h, side = self.embed(x), self.places(x)
        for block in self.blocks[:3]:
            h = h + self.add(self, block, h, side)
        return self.head(self.norm(h))


def to_scores(net: Biased, block: nn.Module, h: Tensor, side: Tensor) -> Tensor:
    read = net.norm(h)
    return block((read @ net.group[0](read).mT + side @ side.mT).softmax(-1) @ read)


def to_what_is_read(net: Biased, block: nn.Module, h: Tensor, side: Tensor) -> Tensor:
    return block(h + net.group[0](torch.tanh(side)))


def of_two_projections(net: Biased, block: nn.Module, h: Tensor, side: Tensor) -> Tensor:
    return block(net.group[0](torch.tanh(h)) + net.group[1](side))


class Scored(Biased):
    """As in RealFormer: to its scores each layer adds those of the layer before."""

    def forward(self, x: Tensor) -> Tensor:
        h, scores = self.embed(x), None
        for block in self.blocks[:3]:
            read = self.norm(h)
            own = read @ self.group[0](read).mT
            scores = own if scores is None else self.added(own, scores)
            h = h + block(scores.softmax(-1) @ read)
        return self.head(self.norm(h))

    def added(self, own: Tensor, before: Tensor) -> Tensor:
        return own + before


class Averaged(Scored):
    def added(self, own: Tensor, before: Tensor) -> Tensor:
        return 0.3 * own + 0.7 * before


class Masked(Scored):
    def added(self, own: Tensor, before: Tensor) -> Tensor:
        return (own + before).masked_fill(torch.ones(3, 3).triu(1) > 0, -1e4)


KINDS = [partial(Biased, add) for add in (to_scores, to_what_is_read, of_two_projections)]
KINDS += [partial(kind, to_scores) for kind in (Scored, Averaged, Masked)]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_every_layer_is_given_is_no_stream(kind: Callable[[], Biased]) -> None:
    torch.manual_seed(0)
    net, inputs = kind().eval().double(), {"x": torch.randint(0, 9, (2, 3))}
    graph = jg.trace(net, **inputs, dynamic=False)
    assert [(join.kind, join.depth) for join in graph.joins] == [("identity", 0)] * 3
    assert len(graph.streams) == 1
    frozen = jg.compile(jg.expand(graph, rules={"*": jg.Freeze()}))(**inputs)
    assert distance(frozen.total, net(**inputs)) < EXACT
