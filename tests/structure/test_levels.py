"""Streams over levels of different sizes: pyramids, U-nets, hourglasses, resolutions that exchange what they have made;
and conditions that every layer is given.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from tests.laws import EXACT, check_affine, check_values, distance, subject
from tests.plain_terms import PlainTerms

CHANNELS = (4, 6, 8)


def block(channels: int) -> nn.Module:
    return nn.Sequential(nn.GroupNorm(2, channels), nn.SiLU(), nn.Conv1d(channels, channels, 3, padding=1))


def up(x: Tensor, times: int = 1) -> Tensor:
    return F.interpolate(x, scale_factor=2.0**times, mode="nearest")


class Levels(nn.Module):
    """A residual block at each of three sizes, and a head over what is made of them."""

    def __init__(self, run: Callable[[Levels, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run
        self.stem = nn.Conv1d(3, 4, 1)
        self.blocks = nn.ModuleList(map(block, CHANNELS))
        self.down = nn.ModuleList((nn.Conv1d(4, 6, 2, stride=2), nn.Conv1d(6, 8, 2, stride=2)))
        self.lateral = nn.ModuleList(nn.Conv1d(channels, 4, 1) for channels in CHANNELS)
        self.up = nn.ModuleList((nn.ConvTranspose1d(6, 4, 2, stride=2), nn.ConvTranspose1d(8, 6, 2, stride=2)))
        self.merge = nn.ModuleList((nn.Conv1d(8, 4, 1), nn.Conv1d(12, 6, 1)))
        self.after = nn.ModuleList(block(channels) for channels in CHANNELS)
        self.condition = nn.Conv1d(3, 4, 1)
        self.head = nn.Conv1d(4, 2, 3, padding=1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.head(torch.tanh(self.run(self, self.stem(x), c)))

    def levels(self, h: Tensor) -> list[Tensor]:
        points = [h + self.blocks[0](h)]
        for inner, down in zip(self.blocks[1:], self.down, strict=True):
            h = down(points[-1])
            points.append(h + inner(h))
        return points


def pyramid(net: Levels, h: Tensor, c: Tensor) -> Tensor:
    """A feature pyramid."""
    *others, last = (lateral(point) for lateral, point in zip(net.lateral, net.levels(h), strict=True))
    for level in reversed(others):
        last = level + up(last)
    return last


def heads_at_all_levels(net: Levels, h: Tensor, c: Tensor) -> Tensor:
    """One with a head for each level, side by side."""
    *others, last = (lateral(point) for lateral, point in zip(net.lateral, net.levels(h), strict=True))
    made = [last]
    for level in reversed(others):
        made.append(level + up(made[-1]))
    return torch.cat([torch.tanh(net.lateral[0](one)) for one in made], -1)


def concatenated(net: Levels, h: Tensor, c: Tensor) -> Tensor:
    """A U-net with one block at the smallest size."""
    first, second, h = net.levels(h)
    for at, skip in ((1, second), (0, first)):
        h = net.merge[at](torch.cat([net.up[at](h), skip], 1))
        h = h + net.after[at](h)
    return h


def resampled(net: Levels, h: Tensor, c: Tensor) -> Tensor:
    """A U-net that changes sizes by residual blocks, P h + f(h), whose sums are laid beside levels as they are."""
    above = h + net.blocks[0](h)
    first = above + net.after[0](above)
    second = net.down[0](first) + net.down[0](net.after[0](first))
    h = net.up[0](second) + net.up[0](net.after[1](second))
    for skip in (first, above):
        h = net.merge[0](torch.cat([h, skip], 1))
        h = h + net.after[0](h)
    return h


def scores_of_all_levels(net: Levels, h: Tensor, c: Tensor) -> Tensor:
    """One with scores at each level, which are brought to one size and added up one by one."""
    *others, last = (lateral(point) for lateral, point in zip(net.lateral, net.levels(h), strict=True))
    made = [last]
    for level in reversed(others):
        made.append(level + up(made[-1]))
    small, middle, large = (net.lateral[0](one) for one in made)
    return large + up(middle) + up(small.relu(), 2)


def summed(net: Levels, h: Tensor, c: Tensor) -> Tensor:
    """One that adds the level above as it is."""
    first, second, h = net.levels(h)
    for at, skip in ((1, second), (0, first)):
        h = net.up[at](h) + skip
        h = h + net.after[at](h)
    return h


def hourglass(net: Levels, h: Tensor, c: Tensor) -> Tensor:
    """A smaller size by pooling and repeating, between post-norms."""
    h = F.layer_norm(h + net.blocks[0](h), h.shape[1:])
    inner = F.avg_pool1d(h, 2)
    inner = F.layer_norm(inner + net.after[0](inner), inner.shape[1:])
    return h + inner.repeat_interleave(2, -1)


def pooled_first(net: Levels, h: Tensor, c: Tensor) -> Tensor:
    """The stream goes down by a maximum before any layer has added to it."""
    inner = F.max_pool1d(h, 2)
    inner = inner + net.after[0](inner)
    return h + net.blocks[0](h) + inner.repeat_interleave(2, -1)


def resolutions(net: Levels, h: Tensor, c: Tensor) -> Tensor:
    """Two resolutions beside each other, which exchange what they have made, twice."""
    a, b = h, net.down[0](h)
    for one, other in ((net.blocks[0], net.blocks[1]), (net.after[0], net.after[1])):
        a, b = a + one(a), b + other(b)
        a, b = a + up(net.lateral[1](b)), b + net.down[0](a)
    return net.merge[0](torch.cat([a, up(net.lateral[1](b))], 1))


def conditioned(net: Levels, h: Tensor, c: Tensor) -> Tensor:
    """A WaveNet with a condition in every layer."""
    total: Any = 0
    for inner, condition in zip((net.blocks[0], net.after[0], net.blocks[0]), (net.condition,) * 3, strict=True):
        made = torch.tanh(inner(h) + condition(torch.tanh(c)))
        total, h = total + net.lateral[0](made), h + net.lateral[0](made)
    return total


def given_one_code(net: Levels, h: Tensor, c: Tensor) -> Tensor:
    """The same with one code of the input itself, added as it is."""
    total, code = 0, net.condition(c.mean(-1, keepdim=True))
    for inner in (net.blocks[0], net.after[0], net.blocks[0]):
        made = torch.tanh(inner(h) + code)
        total, h = total + net.lateral[0](made), h + net.lateral[0](made)
    return total  # type: ignore[return-value]


def selected(net: Levels, h: Tensor, c: Tensor) -> Tensor:
    """A fusion of levels by weights that are made of both, as GLPN's."""
    *others, last = (lateral(point) for lateral, point in zip(net.lateral, net.levels(h), strict=True))
    for level in reversed(others):
        below = up(last)
        weights = torch.sigmoid(net.merge[0](torch.cat([level, below], 1)))
        last = level * weights[:, :1] + below * weights[:, 1:2]
    return last


def dense_head(net: Levels, h: Tensor, c: Tensor) -> Tensor:
    """Layers of one size, of which a head makes levels with units of their own, as DPT's."""
    h = h + net.blocks[0](h)
    last = h + net.after[0](h)
    made = net.down[0](last)
    made = made + net.blocks[1](made)
    unit = net.lateral[0](h)
    return net.up[0](made) + (unit + net.after[0](unit)).tanh()


def modulated(net: Levels, h: Tensor, c: Tensor) -> Tensor:
    """Norms after each sum whose scale and shift are made of a condition, which is a stream of its own or none."""
    c = net.stem(c)
    for inner in (net.blocks[0], net.after[0], net.blocks[0]):
        h = h + inner(h)
        h = F.layer_norm(h, h.shape[1:]) * torch.sigmoid(net.condition(c[:, :3])) + net.lateral[0](c)
    return h


def preconditioned(net: Levels, h: Tensor, c: Tensor) -> Tensor:
    """The noise level, another input, says how much of the input is kept, and how much of what the layers make is."""
    noise = c[:, :1, :1].exp()
    z = h / (1 + noise)
    for inner in (net.blocks[0], net.after[0]):
        z = z + inner(z)
    return h * noise / (1 + noise) + noise.sqrt() * net.lateral[0](z)


def pooled_again(net: Levels, h: Tensor, c: Tensor) -> Tensor:
    """Deep layer aggregation: a level starts with a shortcut that is no affine one, and what it ends with is put beside
    what is pooled of the level before.
    """
    above = h + net.blocks[0](h)
    h = torch.tanh(net.blocks[1](net.down[0](above)) + net.down[0](above.relu()))
    h = h + net.after[1](h)
    return net.lateral[1](net.merge[1](torch.cat([h, net.down[0](F.softplus(above))], 1)))


def summed_under_a_condition(net: Levels, h: Tensor, c: Tensor) -> Tensor:
    """Two layers that each have a gate of the condition, as where an adjacency says what attention reads."""
    gate = torch.sigmoid(net.condition(c))
    for inner in (net.blocks[0], net.after[0]):
        h = inner(h) * gate + net.lateral[0](h.relu()) * (1 - gate)
    return h


def added_again_under_a_condition(net: Levels, h: Tensor, c: Tensor) -> Tensor:
    """A layer adds its branch to the point before the one that it reads, and both to that."""
    gate = torch.sigmoid(net.condition(c))
    point = h + net.blocks[0](h) * gate
    return point + (h + net.after[0](point) * gate)


def led_by_a_condition(net: Levels, h: Tensor, c: Tensor) -> Tensor:
    """The condition is read once, by the first sum of layers that the stream meets."""
    h = torch.tanh(net.lateral[0](h.relu() * c.mean()) + net.blocks[0](h * c.mean()))
    return h + net.after[0](h)


def read_by_a_layer(net: Levels, h: Tensor, c: Tensor) -> Tensor:
    """What comes back from below is laid beside the level by a layer, which has it normed or convolved by then."""
    first, second, _ = net.levels(h)
    back = net.up[0](second)
    back = back + torch.tanh(net.merge[0](torch.cat([F.layer_norm(back, back.shape[1:]), first], 1)))
    return back + torch.tanh(net.merge[0](torch.cat([first, torch.sigmoid(net.lateral[0](back))], 1)))


def read_by_a_later_layer(net: Levels, h: Tensor, c: Tensor) -> Tensor:
    """The same on one level: layers that each read a norm of the stream beside what the first one has made."""
    first = h + net.blocks[0](h)
    h = first + net.after[0](first)
    for _ in range(2):
        h = h + torch.tanh(net.merge[0](torch.cat([F.layer_norm(h, h.shape[1:]), first], 1)))
    return h


NETS: dict[Callable[[Levels, Tensor, Tensor], Tensor], list[tuple[str, int | None]]] = {
    pyramid: [("blocks.0", None), ("blocks.1", None), ("blocks.2", None), ("lateral.1", 3), ("lateral.0", 1)],
    heads_at_all_levels: [
        ("blocks.0", None),
        ("blocks.1", None),
        ("blocks.2", None),
        ("lateral.1", 3),
        ("lateral.0", 1),
        ("lateral.0", None),
        ("lateral", 5),
        ("lateral.0", 6),
    ],
    concatenated: [
        ("blocks.0", None),
        ("blocks.1", None),
        ("blocks.2", None),
        ("skip", 3),
        ("after.1", None),
        ("skip", 1),
        ("after.0", None),
    ],
    resampled: [
        ("blocks.0", None),
        ("after.0", None),
        ("after.0", None),
        ("after.1", None),
        ("skip", 2),
        ("after.0", None),
        ("skip", 1),
        ("after.0", None),
    ],
    scores_of_all_levels: [
        ("blocks.0", None),
        ("blocks.1", None),
        ("blocks.2", None),
        ("lateral.1", 3),
        ("lateral.0", 1),
        ("lateral.0", 6),
        ("lateral", 5),
    ],
    summed: [
        ("blocks.0", None),
        ("blocks.1", None),
        ("blocks.2", None),
        ("skip", 3),
        ("after.1", None),
        ("skip", 1),
        ("after.0", None),
    ],
    hourglass: [("blocks.0", None), ("after.0", None), ("mix", None), ("skip", 2)],
    pooled_first: [("after.0", None), ("skip", 0), ("blocks.0", 0)],
    resolutions: [("blocks.0", None), ("blocks.1", None), ("after.0", None), ("after.1", None)],
    selected: [("blocks.0", None), ("blocks.1", None), ("blocks.2", None), ("lateral.1", 3), ("lateral.0", 1)],
    dense_head: [("blocks.0", None), ("after.0", None), ("blocks.1", None), ("lateral.0", 1)],
    modulated: [("blocks.0", None), ("after.0", None), ("blocks.0", None)],
    preconditioned: [("blocks.0", None), ("after.0", None), ("skip", 0)],
    conditioned: [("blocks.0", None), ("after.0", None), ("blocks.0", None), ("blocks.0", 0), ("after.0", 1)],
    pooled_again: [("blocks.0", None), ("down.0", None), ("down.0", None), ("after.1", None), ("down.0", 1)],
    summed_under_a_condition: [("blocks.0", None), ("lateral.0", None), ("after.0", None), ("lateral.0", None)],
    added_again_under_a_condition: [("blocks.0", None), ("after.0", None), ("skip", 0)],
    led_by_a_condition: [("lateral.0", None), ("blocks.0", None), ("after.0", None)],
    read_by_a_layer: [("blocks.0", None), ("blocks.1", None), ("merge.0", None), ("lateral.0", None)],
    read_by_a_later_layer: [("blocks.0", None), ("after.0", None), ("merge.0", None), ("merge.0", None)],
    given_one_code: [("blocks.0", None), ("after.0", None), ("blocks.0", None), ("blocks.0", 0), ("after.0", 1)],
}
"""By net, its branches in order by what they are named after, and the earlier points that they read."""


@pytest.mark.parametrize("run", NETS, ids=lambda run: run.__name__)
def test_levels_are_points_of_one_stream(run: Callable[[Levels, Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net, x = Levels(run).eval().double().requires_grad_(False), torch.randn(2, 3, 8).double()
    inputs = {"x": x, "c": torch.randn(2, 3, 8).double()}
    graph = jg.trace(net, **inputs, dynamic=False)
    sites = [site for site in graph.outline.sites() if site.role == "branch"]
    found = [(site.path, site.reads) for site in sites]
    assert len(found) == len(NETS[run]), found
    assert all(
        name in path and reads == wanted for (path, reads), (name, wanted) in zip(found, NETS[run], strict=True)
    ), found
    assert len(graph.streams) == 1
    # What is added up one by one is one sum.
    assert run is not scores_of_all_levels or len(graph.joins) == len(found) - 1
    # A unit of a head on an earlier layer is what the branch is made of that reads it.
    assert sum(join.depth for join in graph.joins) == (1 if run is dense_head else 0)
    given = subject(graph, inputs, {name: value.flip(0) for name, value in inputs.items()}, torch.float64)
    assert check_values(given) >= 12
    check_affine(given)
    frozen = jg.compile(jg.expand(graph, rules={"*": jg.Freeze()}))(**inputs)
    assert distance(sum(frozen.terms.values()), net(**inputs)) < EXACT  # type: ignore[arg-type]
    expansion = jg.expand(graph, order=1, weights="unit", orders="apart")
    plain, paths = PlainTerms(expansion, graph, inputs), list(expansion)
    some = [path for path in paths if path.order == 0][::15] + [path for path in paths if path.order == 1][:2]
    values = jg.compile(expansion, some)(**inputs)
    for path in some:
        expected = plain(path)
        scale = max(float(expected.abs().max()), float(values.output.abs().max()))
        assert float((values.terms[path] - expected).abs().max()) < (1e-6 if path.order else 1e-10) * scale, path


class Rimmed(nn.Module):
    """Layers whose branch adds, within itself, a short convolution of what it made and is read on by another way.

    The places that the convolution sees or makes besides are a rim, cut off what it gives or padded around what it
    reads: what it works at is no other level.
    """

    def __init__(self, padded: bool, last: bool) -> None:
        super().__init__()
        self.padded, self.last = padded, last
        self.stem = nn.Linear(4, 4)
        self.made, self.back = (nn.ModuleList(nn.Linear(4, 4) for _ in range(2)) for _ in range(2))
        self.conv = nn.ModuleList(nn.Conv1d(4, 4, 3, padding=0 if padded else 2, groups=4) for _ in range(4))

    def forward(self, h: Tensor) -> Tensor:
        h = self.stem(h)
        for made, back, inner, outer in zip(self.made, self.back, self.conv[:2], self.conv[2:], strict=True):
            k = made(F.layer_norm(h, (4,)))
            k = k + self.short(inner, k)
            a = torch.softmax(k @ k.mT, -1) @ k
            if self.last:
                # What leaves the branch is what would pass for a stream, with h added beside.
                a = back(a)
                h = h + (a + self.short(outer, a))
            else:
                h = h + back(a + self.short(outer, a))
        return h

    def short(self, conv: nn.Module, x: Tensor) -> Tensor:
        x, length = x.mT, x.shape[1]
        return (conv(F.pad(x, (2, 0))) if self.padded else conv(x)[..., :length]).mT


@pytest.mark.parametrize(
    ("padded", "last", "dynamic"),
    [(False, False, False), (False, True, True), (True, False, True), (True, True, False)],
)
def test_a_rim_is_no_level(padded: bool, last: bool, dynamic: bool) -> None:
    graph = jg.trace(Rimmed(padded, last).eval(), torch.randn(2, 7, 4), dynamic=dynamic)
    assert len(graph.streams) == 1
    assert sorted(join.depth for join in graph.joins) == [0, 0, 1, 1, 1, 1]
    assert [join.kind for join in graph.stream.joins] == ["identity", "identity"]


class InducingPoints(nn.Module):
    """Layers of a set transformer: a few learned points read the set and have a layer of their own, and the set reads
    them; the skips of both are what asks.
    """

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor], projects: bool) -> None:
        super().__init__()
        self.attend = attend
        self.points = nn.Parameter(torch.randn(1, 3, 8))
        self.read, self.back, self.mlps = (
            nn.ModuleList(nn.ModuleList(nn.Linear(8, 8) for _ in range(number)) for _ in range(2))
            for number in (3, 3, 2)
        )
        self.projects, self.head = projects, nn.Linear(8, 2)

    def reads(self, layers: nn.ModuleList, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = layers[0](x), layers[1](y), layers[2](y)
        return (q if self.projects else x) + self.attend(q, k, v)

    def forward(self, x: Tensor) -> Tensor:
        for read, back, (inner, outer) in zip(self.read, self.back, self.mlps, strict=True):
            h = self.reads(read, self.points.expand(len(x), -1, -1), x)
            h = h + torch.relu(inner(h))
            x = self.reads(back, x, h)
            x = x + torch.relu(outer(x))
        return self.head(x)


def by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two heads in rows of the batch, as the first code of it has them."""
    q, k, v = (torch.cat(one.split(4, -1)) for one in (q, k, v))
    attended = torch.softmax(q @ k.transpose(1, 2) / 2, -1) @ v
    return torch.cat(attended.chunk(2), -1)


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (one.unflatten(-1, (2, 4)) for one in (q, k, v))
    weights = torch.softmax(torch.einsum("bihd,bjhd->bhij", q, k) / 2, -1)
    return torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2)


def by_places(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Weights that are no softmax."""
    weights = torch.sigmoid(q @ k.transpose(1, 2))
    return (weights / weights.sum(-1, keepdim=True)) @ v


@pytest.mark.parametrize("projects", [True, False])
@pytest.mark.parametrize("attend", [by_products, by_einsum, by_places], ids=lambda attend: attend.__name__)
def test_what_a_set_reads_of_inducing_points_is_an_attention_and_no_gated_skip(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor], projects: bool
) -> None:
    torch.manual_seed(0)
    net, x = InducingPoints(attend, projects).eval().double(), torch.randn(2, 5, 8).double()
    graph = jg.trace(net, x)
    outer = [(join.kind, [branch.kind for branch in join.branches]) for join in graph.stream.joins]
    assert outer == 2 * [("projection" if projects else "identity", ["attn"]), ("identity", ["mlp"])]
    # What the points have made is code of the branch in which the set reads them.
    inner = [join for join in graph.joins if join.depth]
    assert len(inner) == 2
    assert {join.kind for join in inner} == {"identity"}
    given = subject(graph, {"x": x}, {"x": x.flip(0)}, torch.float64)
    assert check_values(given) >= 6


class Windows(nn.Module):
    """A branch over windows, or rows, that are laid out along the batch, with a join of its own there."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.whole, self.first, self.inner = (nn.ModuleList(block(4) for _ in range(2)) for _ in range(3))
        self.last = nn.ModuleList(nn.Conv1d(4, 4, 1) for _ in range(2))
        self.pos = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.pos
        for whole, first, inner, last in zip(self.whole, self.first, self.inner, self.last, strict=True):
            h = h + whole(h)
            windows = h.unflatten(2, (-1, self.size)).transpose(1, 2).flatten(0, 1)
            y = first(windows)
            y = torch.tanh(y + inner(y))
            h = h + last(y).unflatten(0, (-1, 8 // self.size)).transpose(1, 2).flatten(2)
        return h


@pytest.mark.parametrize("size", [2, 4])
def test_windows_are_no_level(size: int) -> None:
    torch.manual_seed(0)
    graph = jg.trace(Windows(size).eval(), torch.randn(3, 4, 8))
    assert [(join.kind, join.depth) for join in graph.joins] == [("identity", 0), ("identity", 1), ("identity", 0)] * 2
    assert len(graph.streams) == 1


class PlainBetween(nn.Module):
    """A U-net with plain layers between levels, so that what is below is code of a branch, with joins nested in it.

    Levels are normed, laid side by side or added up, and the one between is read by a second way up, as in a UNet++.
    """

    def __init__(self, normed: bool, again: bool, summed: bool) -> None:
        super().__init__()
        self.normed, self.again, self.summed = normed, again, summed
        self.stem = nn.Conv1d(3, 4, 1)
        self.blocks = nn.ModuleList(block(4) for _ in range(3))
        self.down = nn.ModuleList(nn.Sequential(nn.Conv1d(4, 4, 2, stride=2), nn.SiLU()) for _ in range(2))
        merged = (4, 4, 4) if summed else (8, 12 if again else 8, 8)
        self.merge = nn.ModuleList(nn.Sequential(nn.Conv1d(size, 4, 1), nn.SiLU()) for size in merged)
        self.head = nn.Conv1d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        levels: list[Tensor] = []
        for at, inner in enumerate(self.blocks):
            h = self.down[at - 1](h) if at else h
            h = h + inner(h)
            h = F.group_norm(h, 2) if self.normed else h
            levels.append(h)
        first, second, third = levels
        below = self.merge[0](self.beside(up(third), second))
        if self.again:
            first = self.beside(self.merge[2](self.beside(up(second), first)), first)
        return self.head(self.merge[1](self.beside(up(below), first)))

    def beside(self, *levels: Tensor) -> Tensor:
        return sum(levels[1:], levels[0]) if self.summed else torch.cat(levels, 1)


class Branched(nn.Module):
    """A branch that is a U-net, whose largest level is the stream's own value."""

    def __init__(self, normed: bool, summed: bool) -> None:
        super().__init__()
        self.normed, self.summed = normed, summed
        self.stem, self.head = nn.Conv1d(3, 4, 1), nn.Conv1d(4, 2, 1)
        self.blocks = nn.ModuleList(block(4) for _ in range(3))
        self.down = nn.ModuleList(nn.Conv1d(4, 4, 2, stride=2) for _ in range(2))
        self.merge = nn.ModuleList(nn.Sequential(nn.Conv1d(4 if summed else 8, 4, 1), nn.SiLU()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + self.blocks[2](h)
        for inner, down, merge in zip(self.blocks, self.down, self.merge, strict=False):
            below = down(h)
            below = below + inner(below)
            below = up(F.group_norm(below, 2) if self.normed else below)
            h = h + merge(below + h if self.summed else torch.cat([below, h], 1))
        return self.head(h)


@pytest.mark.parametrize(
    ("make", "joins"),
    [
        (partial(PlainBetween, normed=True, again=False, summed=False), 5),
        (partial(PlainBetween, normed=True, again=False, summed=True), 5),
        (partial(PlainBetween, normed=False, again=True, summed=False), 6),
        (partial(PlainBetween, normed=True, again=True, summed=True), 6),
        (partial(Branched, normed=False, summed=False), 7),
        (partial(Branched, normed=True, summed=False), 7),
        (partial(Branched, normed=False, summed=True), 7),
        (partial(Branched, normed=True, summed=True), 7),
    ],
)
def test_levels_that_come_back_inside_a_branch_have_their_joins(make: Callable[[], nn.Module], joins: int) -> None:
    torch.manual_seed(0)
    net, x = make().eval().double().requires_grad_(False), torch.randn(2, 3, 8).double()
    graph = jg.trace(net, x)
    assert len(graph.joins) == joins
    assert check_values(subject(graph, {"x": x}, {"x": x.flip(0)}, torch.float64)) >= 5


class Modulated(nn.Module):
    """Pixels, tokens, and pixels again, which a condition scales and shifts; the last time it is read as a scale, or as
    a gate.
    """

    def __init__(self, last: str) -> None:
        super().__init__()
        self.last = last
        self.stem, self.start = nn.Conv2d(3, 4, 1), nn.Linear(2, 5)
        self.convolutions = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.scales = nn.ModuleList(nn.Linear(5, 8) for _ in range(2))
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU()) for _ in range(2))
        self.head = nn.Linear(4, 2)

    def modulated(self, h: Tensor, code: Tensor, at: int) -> Tensor:
        scale, shift = self.scales[at](F.silu(code))[:, :, None, None].chunk(2, 1)
        return h * torch.sigmoid(scale) + shift if at and self.last == "gate" else h * (1 + scale) + shift

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h, code = self.stem(x), torch.tanh(self.start(c))
        for at, (convolution, layer) in enumerate(zip(self.convolutions, self.layers, strict=True)):
            h = self.modulated(h + torch.tanh(convolution(h)), code, at)
            tokens = h.flatten(2).transpose(1, 2)
            tokens = tokens + layer(tokens)
            h = tokens.transpose(1, 2).unflatten(2, h.shape[2:])
        return self.head(tokens)


class Timed(nn.Module):
    """A token of the time stands beside the others, and scales and shifts what the last layer's norm gives."""

    def __init__(self, last: str) -> None:
        super().__init__()
        self.last = last
        self.stem, self.token, self.scale = nn.Linear(3, 4), nn.Linear(5, 4), nn.Linear(5, 8)
        self.start, self.head = nn.Linear(2, 5), nn.Linear(4, 2)
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU()) for _ in range(4))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        code = torch.tanh(self.start(c))
        tokens = [self.token(torch.tanh(code))[:, None], self.stem(x.flatten(2).transpose(1, 2))]
        h = torch.cat(tokens[::-1] if self.last == "gate" else tokens, 1)
        for layer in self.layers:
            h = h + layer(h)
        h = h[:, :-1] if self.last == "gate" else h[:, 1:]
        scale, shift = self.scale(F.silu(code))[:, None].chunk(2, -1)
        return self.head(F.layer_norm(h, (4,)) * (1 + scale) + shift)


@pytest.mark.parametrize("last", ["scale", "gate"])
@pytest.mark.parametrize("kind", [Modulated, Timed])
def test_what_scales_and_shifts_a_stream_last_is_a_condition(kind: type[nn.Module], last: str) -> None:
    torch.manual_seed(0)
    net = kind(last).eval().double()
    inputs, others = ({"x": torch.randn(2, 3, 4, 5).double(), "c": torch.randn(2, 2).double()} for _ in range(2))
    graph = jg.trace(net, **inputs)
    assert len(graph.streams) == 1
    assert len(graph.joins) == 4
    assert {join.kind for join in graph.joins} == {"identity"}
    assert {join.depth for join in graph.joins} == {0}
    assert check_values(subject(graph, inputs, others, torch.float64)) >= 4
