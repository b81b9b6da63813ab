"""Which sums are joins, of which kind, and which are code of a branch: one small net for each question."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jetgraph as jg
from tests.laws import EXACT, check_affine, check_slopes, check_values, distance, subject

WIDTH = 6


class Net(nn.Module):
    """A stem, a head, and blocks that nets call as they like."""

    def __init__(self, run: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run
        self.stem, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList(_block(WIDTH, WIDTH) for _ in range(3))
        self.halves = nn.ModuleList(_block(WIDTH // 2, WIDTH) for _ in range(2))
        self.side, self.unit, self.up = nn.Linear(WIDTH, 2), _block(2, 2), nn.Linear(2, WIDTH)
        self.cell, self.norm = nn.GRUCell(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.gate, self.adapter = nn.Linear(WIDTH, 1), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def _block(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 5), nn.Tanh(), nn.Linear(5, out))


def chosen(net: Net, x: Tensor) -> Tensor:
    """Tokens that a router lets by keep what they are."""
    h = net.stem(x)
    for block in net.blocks:
        h = torch.where(net.gate(h) > 0, h + block(h), h)
    return net.head(net.norm(h))


def coupled(net: Net, x: Tensor) -> Tensor:
    """Affine coupling in one tensor, whose halves change places."""
    h = net.stem(x)
    for half in net.halves:
        one, two = h.chunk(2, -1)
        scale, shift = half(one).chunk(2, -1)
        h = torch.cat([two * torch.sigmoid(scale) + shift, one], -1)
    return net.head(net.norm(h))


def messages(net: Net, x: Tensor) -> Tensor:
    """A gated graph network on a ring: the state of a recurrent cell that reads what is made of that."""
    h = net.stem(x)
    for block in net.blocks[:2]:
        read = torch.roll(block(h), 1, 1)
        h = net.cell(read.reshape(-1, WIDTH), h.reshape(-1, WIDTH)).view(h.shape)
    return net.head(net.norm(h))


def looped(net: Net, x: Tensor) -> Tensor:
    """The input is added to what each block reads, and to nothing else."""
    h = start = net.stem(x)
    for block in net.blocks:
        h = h + block(h + start)
    return net.head(net.norm(h))


def runge_kutta(net: Net, x: Tensor) -> Tensor:
    """Two steps of Heun's method: the sums in a step are the same in the first one and in the second."""
    h = net.stem(x)
    for block in net.blocks[:2]:
        one = block(h)
        h = h + 0.2 * (one + block(h + 0.4 * one))
    return net.head(net.norm(h))


def normalised(net: Net, x: Tensor) -> Tensor:
    """A series without its mean and scale, which the output has again."""
    mean, scale = x.mean(1, keepdim=True), x.square().mean(1, keepdim=True).sqrt()
    h = net.stem((x - mean) / scale)
    for block in net.blocks:
        h = h + block(h)
    return net.head(h) * scale + mean


def with_context(net: Net, x: Tensor) -> Tensor:
    """Queries that attend to themselves and to another stream, beside which they are laid for that."""
    h = net.stem(x)
    h = h + net.blocks[0](h)
    c = net.norm.weight * 0.3 + torch.softmax(net.stem(x[:, :1]) @ h.mT, -1) @ h
    c = c + net.blocks[2](c)
    both = torch.cat([c, h], 1)
    c = c + net.up(net.side(torch.softmax(c @ both.mT, -1) @ both))
    c = c + net.blocks[1](c)
    return net.head(net.norm(c))


def ladder(net: Net, x: Tensor) -> Tensor:
    """A narrow stream that reads each layer of a backbone, and gives nothing back."""
    h = net.stem(x)
    s = net.side(h)
    for block in net.blocks[:2]:
        h = h + block(h)
        s = 0.4 * s + 0.6 * net.side(h)
        s = s + net.unit(s)
    return net.head(net.up(s))


def pooled(net: Net, x: Tensor) -> Tensor:
    """Queries are pooled, as in Funnel; keys and values are all positions of the point that they are a pool of."""
    h = net.stem(x)
    for block in net.blocks[:2]:
        q = nn.functional.avg_pool1d(h.mT, 2, 1).mT
        h = q + block(torch.softmax(q @ h.mT, -1) @ h)
    return net.head(net.norm(h))


def projected(net: Net, x: Tensor) -> Tensor:
    """What is added to is the queries, as in a Set Transformer: keys and values are of the point that they project."""
    h = net.stem(x)
    for block in net.blocks[:2]:
        q = net.adapter(torch.cat([h, h], -1))
        h = q + block(torch.softmax(q @ h.mT, -1) @ h)
    return net.head(net.norm(h))


def gated_projections(net: Net, x: Tensor) -> Tensor:
    """A gate of what is projected is made of the point that it is projected from."""
    h = net.stem(x)
    for block in net.blocks[:2]:
        z = net.adapter(torch.cat([h, h], -1))
        h = z + block(torch.sigmoid(net.gate(h)) * z)
    return net.head(net.norm(h))


def recalled(net: Net, x: Tensor) -> Tensor:
    """Each layer reads a share of the start beside the stream, of which an activation follows."""
    h = start = net.stem(x)
    for block in net.blocks:
        h = torch.relu(h + block(0.9 * h + 0.1 * start))
    return net.head(net.norm(h))


def among_neighbours(net: Net, x: Tensor) -> Tensor:
    """The same by an adjacency that is given to all layers, and is as large as a point of the stream."""
    h = start = net.stem(x)
    adjacency = (x @ x.mT).softmax(-1)
    for block in net.blocks:
        h = h + block(0.9 * (adjacency @ h) + 0.1 * start)
    return net.head(net.norm(h))


def experts(net: Net, x: Tensor) -> Tensor:
    """What experts make is added up from zeros on, which are no source."""
    h = net.stem(x)
    made = torch.zeros_like(h)
    for number, block in enumerate(net.blocks):
        made = made + (net.side(h)[..., :1] * number).sin() * block(h)
    return net.head(net.norm(h + made))


def of_a_set(net: Net, x: Tensor) -> Tensor:
    """Each layer takes the largest value of the set away, behind a linear layer and before an activation."""
    h = net.stem(x)
    for block in net.blocks[:2]:
        h = h + nn.functional.elu(block[2](block[0](h)) - net.up(net.side(h.amax(1, keepdim=True))))
    return net.head(net.norm(h))


def fast_weights(net: Net, x: Tensor) -> Tensor:
    """A layer whose weights take a step at each position, and whose rows are put together in the end."""
    h = net.stem(x[:, :3])
    for norm in (net.norm, nn.functional.normalize):
        z, rows, weights = norm(h), [], net.up.weight.mT.expand(h.shape[0], -1, -1)
        q, k = net.side(z), net.blocks[0](z)
        for t in range(3):
            weights = weights - q[:, t : t + 1].mT @ (q[:, t : t + 1] @ weights - k[:, t : t + 1])
            rows.append(z[:, t : t + 1] + net.norm(q[:, t : t + 1] @ weights))
        h = h + net.blocks[1](torch.cat(rows, 1))
    return net.head(h)


def autoregressive(net: Net, x: Tensor) -> Tensor:
    """A flow that shifts first, and scales the whole sum by what is made of the value before it."""
    h = net.stem(x)
    for block in net.blocks[:2]:
        h = ((h - block(h)) * torch.sigmoid(net.gate(h))).flip(-1)
    return net.head(net.norm(h))


def by_halves(net: Net, x: Tensor) -> Tensor:
    """Every other position is worked on by itself; in the end they take turns again."""
    h = net.stem(x[:, 1:])
    even, odd = net.blocks[0](h[:, ::2]), net.blocks[1](h[:, 1::2])
    return net.head(torch.stack([even, odd], 2).flatten(1, 2) + h)


def weighed_layers(net: Net, x: Tensor) -> Tensor:
    """Each layer reads a weighted sum of all that was made, by weights that the last one makes."""
    h = net.stem(x)
    made = [h]
    for block in net.blocks:
        made.append(block(h))
        weights = net.adapter(torch.cat([made[-1], made[-1]], -1)).softmax(-1)
        h = sum(weights[..., at : at + 1] * each for at, each in enumerate(made))  # type: ignore[assignment]
    return net.head(net.norm(h))


def attending(net: Net, x: Tensor) -> Tensor:
    """Attention over layers, of which the first reads the stem alone."""
    h = net.stem(x)
    made = [h]
    for block in net.blocks:
        made.append(block(h))
        values = torch.stack(made, -2)
        h = ((net.norm(values) @ net.gate.weight[0]).softmax(-1)[..., None] * values).sum(-2)
    return net.head(net.norm(h))


def weighed_from_before(net: Net, x: Tensor) -> Tensor:
    """The same with weights that the stem makes for all layers, and no list has: a join whose skip is the stem."""
    h = net.stem(x)
    made, mean = [h], h.mean(1, keepdim=True)
    weights = net.adapter(torch.cat([mean, mean], -1)).softmax(-1)
    for block in net.blocks:
        made.append(block(h))
        h = sum(weights[..., at : at + 1] * each for at, each in enumerate(made))  # type: ignore[assignment]
    return net.head(net.norm(h))


def reading_all(net: Net, x: Tensor) -> Tensor:
    """What each layer reads is a sum of all points by weights of the last, and no point itself."""
    h = net.stem(x)
    points = [h]
    for block in net.blocks:
        weights = net.head(h).softmax(-1)
        h = h + block(sum(weights[..., at : at + 1] * point for at, point in enumerate(points)))  # type: ignore[arg-type]
        points.append(h)
    return net.head(net.norm(h))


def towers(net: Net, x: Tensor) -> Tensor:
    """Two streams that end in one."""
    a, b = net.stem(x), net.up(x[..., :2])
    a = a + net.blocks[0](a)
    a = a + net.blocks[1](a)
    b = b + net.blocks[2](b)
    h = net.adapter(torch.cat([a, b], -1))
    h = h + net.blocks[0](h)
    return net.head(net.norm(h))


def pathways(net: Net, x: Tensor) -> Tensor:
    """A narrow stream that is added to the wide one after each stage, and goes on beside it to the end."""
    s, f = net.stem(x), net.side(net.stem(x.flip(-1)))
    for block in net.blocks[:2]:
        s = s + block(s)
        f = f + net.unit(f)
        s = s + net.up(f)
    s = s + net.blocks[2](s)
    return net.head(s + net.up(f))


def oscillating(net: Net, x: Tensor) -> Tensor:
    """Coupled oscillators, whose speed starts at zero; their input is a layer's of where they start."""
    y = net.stem(x)
    e, z = net.up(net.side(y)), torch.zeros_like(y)
    for _ in range(3):
        z = z + 0.2 * (torch.tanh(net.adapter(torch.cat([y, z], -1)) + e) - 0.5 * y - 0.3 * z)
        y = y + 0.2 * z
    return net.head(y)


def padded(net: Net, x: Tensor) -> Tensor:
    """Beside a scan in chunks of four places, all that it reads, padded as that is: D x in Mamba 2."""
    h = net.stem(x)
    u = net.blocks[0](h)
    around = nn.functional.pad(u, (0, 0, 0, -u.shape[1] % 4))
    scanned = nn.functional.pad(0.5 * u, (0, 0, 0, -u.shape[1] % 4)).unflatten(1, (-1, 4)).cumsum(2).flatten(1, 2)
    h = h + net.up(net.side((scanned + net.norm.weight * around)[:, : u.shape[1]]))
    return net.head(net.norm(h))


def adapted(net: Net, x: Tensor) -> Tensor:
    """An affine adapter beside a block, in brackets of their own; what is added to the norm itself is a join there."""
    h = net.stem(x)
    for block in net.blocks[:2]:
        n = net.norm(h)
        h = h + (block(n) + net.up(net.side(n)))
    n = net.norm(h)
    return net.head(h + (n + net.blocks[2](n)))


def in_a_branch(net: Net, x: Tensor) -> Tensor:
    """A branch that projects the stream, and has a join of its own there, is one, whatever brackets that stands in."""
    h = net.stem(x)
    for block in net.blocks[:2]:
        a = net.up(net.side(h))
        h = h + (a + block(a))
    return net.head(net.norm(h))


def inside_of_a_shortcut(net: Net, x: Tensor) -> Tensor:
    """A projected shortcut over a branch that adds to what it has made, as global context in a bottleneck."""
    h = net.stem(x)
    for block in net.blocks[:2]:
        y = block(h)
        h = torch.tanh(net.up(net.side(h)) + (y + net.blocks[2](y)))
    return net.head(net.norm(h))


def two_ways(net: Net, x: Tensor) -> Tensor:
    """A layer goes one way through joins and another one past them, and puts both side by side."""
    h = net.stem(x)
    for block in net.blocks[:2]:
        m = net.blocks[2](h)
        m = m + block(torch.tanh(m))
        h = torch.tanh(net.adapter(torch.cat([m, net.up(torch.tanh(net.side(h)))], -1)))
    return net.head(net.norm(h))


def growing_by_parts(net: Net, x: Tensor) -> Tensor:
    """Of what a layer makes one part is added to the first features, and the other one put behind them."""
    h = net.stem(x)
    for block in net.blocks[:2]:
        y = block(torch.tanh(h[..., :WIDTH]))
        h = torch.cat([h[..., :2] + y[..., :2], h[..., 2:], y[..., 2:]], -1)
    return net.head(net.norm(net.adapter(h[..., : 2 * WIDTH])))


def excited(net: Net, x: Tensor) -> Tensor:
    """Squeeze and excitation over features and over places at once: what a point has, by the sum of two gates."""
    h = net.stem(x)
    for block in net.blocks[:2]:
        h = h + block(h)
        mean = h.mean(1, keepdim=True)
        h = h * torch.sigmoid(net.adapter(torch.cat([mean, mean], -1))) + h * torch.sigmoid(net.gate(h))
    return net.head(net.norm(h))


def with_queries(net: Net, x: Tensor) -> Tensor:
    """Queries are added to what they have found, but for the first place, as in MViT."""
    h = net.stem(x)
    for block in net.blocks[:2]:
        q = net.norm(block(h))
        found = torch.softmax(q @ net.blocks[2](h).mT, -1) @ net.up(net.side(h))
        found[:, 1:] += q[:, 1:]
        h = h + net.up(net.side(found))
    return net.head(net.norm(h))


def updated(net: Net, x: Tensor) -> Tensor:
    """A recurrent unit spelled by concatenations, whose steps are given the same, as the updates of optical flow."""
    given, h = net.stem(x), torch.tanh(net.stem(x.flip(-1)))
    for _ in range(3):
        gate = torch.sigmoid(net.adapter(torch.cat([h, given], -1)))
        reset = torch.sigmoid(net.adapter(torch.cat([given, h], -1)))
        h = (1 - gate) * h + gate * torch.tanh(net.adapter(torch.cat([reset * h, given], -1)))
    return net.head(net.norm(h))


def gated_level(net: Net, x: Tensor) -> Tensor:
    """A level, by a gate of what comes back from below, beside that, as in an attention U-net."""
    h = net.stem(x)
    back = net.blocks[0](h)
    gated = h * torch.sigmoid(net.gate(torch.tanh(net.blocks[1](back) + net.blocks[2](h))))
    return net.head(net.norm(net.adapter(torch.cat([gated, back], -1))))


def last_of_all(net: Net, x: Tensor) -> Tensor:
    """A head over all layers' norms, of which the last one's scores are given, as decoders of detectors have it."""
    h, kept = net.stem(x), []
    for block in net.blocks:
        h = h + block(h)
        kept.append(net.norm(h))
    return net.head(torch.stack(kept))[-1]


def kept_in_a_buffer(net: Net, x: Tensor) -> Tensor:
    """The same by a buffer, and in the midst of another layout."""
    h = net.stem(x)
    kept = torch.zeros(3, *h.shape, dtype=h.dtype)
    for at, block in enumerate(net.blocks):
        h = h + block(h)
        kept[at] = net.norm(h)
    return net.head(kept.transpose(0, 1))[:, -1]


NETS: dict[Callable[[Net, Tensor], Tensor], tuple[list[tuple[str, str]], int]] = {
    chosen: ([("identity", "blocks.0"), ("identity", "blocks.1"), ("identity", "blocks.2")], 0),
    coupled: ([("gated", "halves.0"), ("gated", "halves.1")], 0),
    messages: ([("gated", ""), ("gated", "")], 0),
    looped: ([("identity", "blocks.0"), ("identity", "blocks.1"), ("identity", "blocks.2")], 0),
    runge_kutta: ([("identity", "blocks.0"), ("identity", "blocks.1")], 4),
    normalised: ([("identity", "blocks.0"), ("identity", "blocks.1"), ("identity", "blocks.2")], 0),
    with_context: ([("identity", "blocks.2"), ("identity", ""), ("identity", "blocks.1")], 0),
    ladder: ([("identity", "blocks.0"), ("identity", "unit"), ("identity", "blocks.1"), ("identity", "unit")], 0),
    pooled: ([("projection", "blocks.0"), ("projection", "blocks.1")], 0),
    projected: ([("projection", "blocks.0"), ("projection", "blocks.1")], 0),
    gated_projections: ([("projection", "blocks.0"), ("projection", "blocks.1")], 0),
    recalled: ([("identity", "blocks.0"), ("identity", "blocks.1"), ("identity", "blocks.2")], 0),
    among_neighbours: ([("identity", "blocks.0"), ("identity", "blocks.1"), ("identity", "blocks.2")], 1),
    experts: ([("identity", "blocks.0"), ("identity", "blocks.1"), ("identity", "blocks.2")], 0),
    of_a_set: ([("identity", "blocks.0"), ("identity", "blocks.1")], 2),
    fast_weights: ([("identity", ""), ("identity", "")], 12),
    autoregressive: ([("gated", "blocks.0"), ("gated", "blocks.1")], 0),
    by_halves: ([("identity", "blocks")], 0),
    weighed_layers: ([("concat", "blocks.0"), ("concat", "blocks.1"), ("concat", "blocks.2")], 0),
    attending: ([("concat", "blocks.0"), ("concat", "blocks.1"), ("concat", "blocks.2")], 0),
    weighed_from_before: ([("gated", "blocks.0")] * 3, 2),
    reading_all: ([("identity", "blocks.0"), ("identity", "blocks.1"), ("identity", "blocks.2")], 0),
    towers: ([("identity", f"blocks.{block}") for block in (0, 1, 2, 0)], 0),
    pathways: (
        [*[("identity", name) for name in ("blocks.0", "unit", "blocks.1", "unit")], ("projection", "blocks.2")],
        0,
    ),
    oscillating: ([*[("projection", "adapter")] * 3, ("projection", "")], 0),
    padded: ([("identity", "blocks.0")], 1),
    adapted: ([("identity", name) for name in ("blocks.0", "side", "blocks.1", "side", "blocks.2")], 1),
    in_a_branch: ([("identity", ""), ("identity", "")], 2),
    inside_of_a_shortcut: ([("projection", ""), ("projection", "")], 2),
    two_ways: ([("identity", "blocks.0"), ("concat", ""), ("identity", "blocks.1"), ("concat", "")], 0),
    growing_by_parts: ([("projection", "blocks.0"), ("projection", "blocks.1")], 0),
    excited: ([("identity", "blocks.0"), ("identity", "blocks.1")], 0),
    with_queries: ([("identity", ""), ("identity", "")], 2),
    gated_level: ([("concat", "")], 0),
    last_of_all: ([("identity", "blocks.0"), ("identity", "blocks.1"), ("identity", "blocks.2")], 0),
    kept_in_a_buffer: ([("identity", "blocks.0"), ("identity", "blocks.1"), ("identity", "blocks.2")], 0),
    updated: ([("gated", "adapter")] * 3, 0),
}
"""By net, the joins of its stream with what their branches are named after, and how many others are nested in them."""


@pytest.mark.parametrize("run", NETS, ids=lambda run: run.__name__)
def test_joins(run: Callable[[Net, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net = Net(run).eval().double().requires_grad_(False)
    inputs: dict[str, Any] = {"x": torch.randn(2, 5, 3, dtype=torch.float64)}
    graph = jg.trace(net, **inputs)
    joins, nested = NETS[run]
    found = [(join.kind, branch.name) for join in graph.stream.joins for branch in join.branches]
    assert [kind for kind, _ in found] == [kind for kind, _ in joins]
    assert all(name in path for (_, path), (_, name) in zip(found, joins, strict=True)), found
    assert sum(join.depth > 0 for join in graph.joins) == nested
    assert run is not experts or not graph.stream.joins[0].injections
    # Keys and values are made of the fork, and held as no context.
    held = [node for join in graph.stream.joins for branch in join.branches for node in branch.region.context]
    assert run not in (pooled, projected, gated_projections) or not held, held
    given = subject(graph, inputs, {"x": torch.randn(2, 5, 3, dtype=torch.float64)}, torch.float64)
    assert check_values(given) >= 3 * len(joins)
    check_affine(given)
    check_slopes(given)
    # With branches of tanh all terms are frozen at once: side by side, and so behind whatever lays them out anew.
    frozen = jg.compile(jg.expand(graph, rules={"*": jg.Freeze()}))(**inputs)
    assert distance(sum(frozen.terms.values()), net(**inputs)) < EXACT  # type: ignore[arg-type]


def from_nothing(net: Net, x: Tensor) -> Tensor:
    """A state that starts at zeros, beside which the input is laid before each round."""
    start = net.stem(x)
    return rounds(net, torch.zeros_like(start), start)


def from_a_guess(net: Net, x: Tensor) -> Tensor:
    start = net.stem(x)
    return rounds(net, torch.tanh(start), start)


def with_norms(net: Net, x: Tensor) -> Tensor:
    """The input in front, and a norm at the end of each round."""
    start = net.stem(x)
    return rounds(net, net.norm.weight.expand(start.shape), start, ends=net.norm, turned=True)


def rounds(net: Net, h: Tensor, start: Tensor, *, ends: Any = lambda h: h, turned: bool = False) -> Tensor:
    for _ in range(3):
        h = net.adapter(torch.cat([start, h] if turned else [h, start], -1))
        h = ends(h + net.blocks[0](h))
    return net.head(net.norm(h))


@pytest.mark.parametrize("run", [from_nothing, from_a_guess, with_norms])
def test_an_input_that_a_loop_is_given_in_each_round(run: Callable[[Net, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net = Net(run).eval().double().requires_grad_(False)
    inputs: dict[str, Any] = {"x": torch.randn(2, 4, 3, dtype=torch.float64)}
    graph = jg.trace(net, **inputs)
    assert [join.kind for join in graph.joins] == ["identity", *["concat", "identity"] * 2]
    assert not any(join.depth for join in graph.joins)
    given = subject(graph, inputs, {"x": torch.randn(2, 4, 3, dtype=torch.float64)}, torch.float64)
    check_values(given)
    check_affine(given)
    frozen = jg.compile(jg.expand(graph, rules={"*": jg.Freeze()}))(**inputs)
    assert distance(sum(frozen.terms.values()), net(**inputs)) < EXACT  # type: ignore[arg-type]
    # What the last round is given, and no block passes: the start alone, beside a state that is nothing.
    expansion = jg.expand(graph, order=0, weights="unit")
    # It is a point of the stream, of which the first fork is an image.
    entries = "embed > L1.skip"
    term = jg.compile(expansion)(**inputs).terms
    path = next(path for path in term if str(path).startswith(entries) and ".mlp" not in str(path))
    start = net.stem(inputs["x"]) - net.stem.bias
    beside = [start, torch.zeros_like(start)] if run is with_norms else [torch.zeros_like(start), start]
    value = torch.cat(beside, -1) @ net.adapter.weight.mT
    value = net.norm(value) if run is with_norms else value
    assert distance(term[path], net.head(net.norm(value)) - net.head.bias) < EXACT


class _Conditioned(nn.Module):
    """Layers h + f(h), the last of which reads another value too, whose only reader it is, and adds up two layers over
    what it makes of both.
    """

    def __init__(self, other: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.other = other
        self.words, self.values = nn.Embedding(11, 6), nn.Embedding(11, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, ids: Tensor, y: Tensor) -> Tensor:
        h = self.words(ids)
        h = h + self.blocks[0](h)
        v = h + {"looked up again": self.values(ids), "another input": y, "its gate": h * y}[self.other]
        gate = self.blocks[0](h).sigmoid()
        return self.head(h + self.norm(self.blocks[1](v) * gate + self.blocks[2](v) * gate))


@pytest.mark.parametrize("other", ["looked up again", "another input", "its gate"])
def test_what_one_branch_alone_reads_is_no_stream(other: str) -> None:
    ids, y = torch.randint(0, 11, (2, 4)), torch.randn(2, 4, 6)
    graph = jg.trace(_Conditioned(other).eval(), ids=ids, y=y)
    assert [join.kind for join in graph.joins] == ["identity", "identity"]


class _Running(nn.Module):
    """A norm by mean and variance of all places so far, as causal nets of sounds have it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.gain, self.bias = nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.randn(6))

    def forward(self, h: Tensor) -> Tensor:
        number = torch.arange(1, h.shape[1] + 1, dtype=h.dtype)[None, :, None]
        mean = h.mean(-1, keepdim=True).cumsum(1) / number
        if self.how == "of squares":
            variance = h.square().mean(-1, keepdim=True).cumsum(1) / number - mean.square()
        else:
            variance = (h - mean).square().sum(-1, keepdim=True).cumsum(1) / (6 * number)
        return (h - mean) / (variance + 1e-5).sqrt() * self.gain + self.bias


class _Causal(nn.Module):
    """Two layers with such norms, ahead of a layer or after its sum."""

    def __init__(self, how: str, ahead: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.ahead, self.stem, self.head = ahead, nn.Linear(4, 6), nn.Linear(6, 3)
        self.norms = nn.ModuleList(_Running(how) for _ in range(3))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for norm, block in zip(self.norms, self.blocks, strict=False):
            h = h + block(norm(h)) if self.ahead else norm(h + block(h))
        return self.head(self.norms[2](h))


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("how", ["of squares", "of differences"])
def test_norms_by_running_moments(how: str, ahead: bool) -> None:
    graph = jg.trace(_Causal(how, ahead).eval(), x=torch.randn(2, 5, 4))
    assert [(join.kind, [branch.kind for branch in join.branches]) for join in graph.joins] == [
        ("identity", ["mlp"])
    ] * 2


def _by_product(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return h @ weight + bias


def _by_einsum(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return bias + 0.5 * torch.einsum("bnd,de->bne", h, weight)


def _by_heads(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    heads = torch.einsum("bnhd,hde->bnhe", h.unflatten(-1, (2, 3)), weight.unflatten(0, (2, 3)))
    return heads.sum(2) + bias


def _by_two(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (h @ weight + bias) + bias.sin()


def _by_convolution(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (nn.functional.conv1d(h.mT, weight.mT[..., None]) + bias[:, None]).mT


class _Written(nn.Module):
    """Layers beside each other whose last bias is added by an operator of its own, as Falcon and TransformerLens do."""

    def __init__(self, layer: Callable[[Tensor, Tensor, Tensor], Tensor], beside: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.beside, self.head = layer, beside, nn.Linear(WIDTH, 3)
        self.weights = nn.Parameter(torch.randn(3, WIDTH, WIDTH))
        self.biases = nn.Parameter(torch.randn(3, WIDTH))

    def forward(self, x: Tensor, kept: float = 1.0) -> Tensor:
        first, second, third = zip(self.weights, self.biases, strict=True)
        one = self.layer(x.tanh(), *first) * kept if kept != 1 else self.layer(x.tanh(), *first)
        h = x + (one + self.layer(x.sin(), *second)) if self.beside else x + one
        return self.head(h + self.layer(h.tanh(), *third))


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("layer", [_by_product, _by_einsum, _by_heads, _by_two, _by_convolution])
def test_a_bias_that_is_added_to_a_product_is_that_of_the_layer(
    layer: Callable[[Tensor, Tensor, Tensor], Tensor], beside: bool
) -> None:
    net = _Written(layer, beside).eval()
    graph = jg.trace(net, torch.randn(2, 5, WIDTH))
    assert not any(join.injections for join in graph.joins)
    x = torch.randn(3, 4, WIDTH)
    removed = jg.ablate(graph, "L0.* > logits", x, target=1, position=None)
    first = next(one for path, one in removed.outputs.items() if path != "together")
    with torch.no_grad():
        torch.testing.assert_close(first.through, net(x, 0.0))


def test_a_constant_of_the_stream_is_a_source() -> None:
    """What the code adds to a sum, or as large as that, belongs to no layer."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.shift = nn.Parameter(torch.randn(WIDTH, WIDTH)), nn.Parameter(torch.randn(WIDTH))
            self.places, self.head = nn.Parameter(torch.randn(5, WIDTH)), nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = (x + x.tanh() @ self.weight) + self.shift
            return self.head(h + (h.sin() @ self.weight + self.places[None].expand_as(h)))

    graph = jg.trace(Shifted().eval(), torch.randn(2, 5, WIDTH), dynamic=False)
    assert [len(join.injections) for join in graph.joins] == [1, 1]
