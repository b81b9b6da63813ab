"""Sums over a part of a value, in all the ways in which models write them, are joins over the whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jetgraph as jg
from tests.laws import EXACT, check_affine, check_values, distance, subject

WIDTH, LENGTH = 6, 5


def index_add(block: Update, h: Tensor) -> Tensor:
    at = torch.tensor([0, 2])
    return h.index_add(1, at, block.mlp(h[:, at]), alpha=2)


def in_place(block: Update, h: Tensor) -> Tensor:
    h = h.clone()
    h[:, 1:] += block.mlp(h[:, :-1])
    return h


def assigned(block: Update, h: Tensor) -> Tensor:
    h = h.clone()
    h[:, 1:-1] = h[:, 1:-1] + block.mlp(h[:, :-2]) + block.mlp(h[:, 2:])
    return h


def spread(block: Update, h: Tensor) -> Tensor:
    """One row for all of them."""
    h = h.clone()
    h[:, 2:] += block.mlp(h[:, 0]).unsqueeze(1)
    return h


def features(block: Update, h: Tensor) -> Tensor:
    h = h.clone()
    h[..., 4:] += block.mlp(h)[..., :2]
    return h


def row(block: Update, h: Tensor) -> Tensor:
    h = h.clone()
    h[:, -1] += block.mlp(h[:, 0])
    return h


def rows(block: Update, h: Tensor) -> Tensor:
    at = torch.tensor([3, 1])
    h = h.clone()
    h[:, at] += block.mlp(h[:, at])
    return h


def accumulated(block: Update, h: Tensor) -> Tensor:
    batch, at = torch.tensor([[0], [1]]), torch.tensor([[0, 2], [1, 1]])
    return torch.index_put(h, (batch, at), block.mlp(h[batch, at]), accumulate=True)


def copied(block: Update, h: Tensor) -> Tensor:
    at = torch.tensor([4, 0])
    return h.index_copy(1, at, block.mlp(h.index_select(1, at)) + h.index_select(1, at))


def chosen(block: Update, h: Tensor) -> Tensor:
    """A mixture of depths: the block runs on the positions that a router likes best."""
    best, at = block.route(h).squeeze(-1).topk(3, 1)
    at = at.unsqueeze(-1).expand(-1, -1, WIDTH)
    kept = h.gather(1, at)
    return h.scatter(1, at, kept + best.unsqueeze(-1).sigmoid() * block.mlp(kept))


def scattered(block: Update, h: Tensor) -> Tensor:
    best, at = block.route(h).squeeze(-1).topk(3, 1)
    at = at.unsqueeze(-1).expand(-1, -1, WIDTH)
    return h.scatter_add(1, at, best.unsqueeze(-1).tanh() * block.mlp(h.gather(1, at)))


def reduced(block: Update, h: Tensor) -> Tensor:
    """The sums of neighbours by an operator that has other reductions too."""
    at = torch.tensor([1, 1, 4])[None, :, None].expand(len(h), -1, WIDTH)
    return h.scatter_reduce(1, at, block.mlp(h[:, :3]), "sum")


def added(block: Update, h: Tensor) -> Tensor:
    at = torch.tensor([[[2]]]).expand(len(h), 1, WIDTH)
    return h.scatter(1, at, block.mlp(h[:, :1]), reduce="add")


def side_by_side(block: Update, h: Tensor) -> Tensor:
    first, rest = h[:, :1], h[:, 1:]
    return torch.cat([first, rest + block.mlp(rest)], 1)


def in_thirds(block: Update, h: Tensor) -> Tensor:
    one, two, three = h.split([1, 2, 2], 1)
    return torch.cat([one, block.mlp(three) + two, three], 1)


def halves(block: Update, h: Tensor) -> Tensor:
    """An additive coupling layer."""
    one, two = h.chunk(2, -1)
    return torch.cat([one, two + block.small(one)], -1)


def first(block: Update, h: Tensor) -> Tensor:
    """A class token that reads the others, taken out by itself and put before them again."""
    return torch.cat([(h[:, 0] + block.mlp(h.mean(1))).unsqueeze(1), h[:, 1:]], 1)


def last(block: Update, h: Tensor) -> Tensor:
    return torch.cat([h[:, :-1], h[:, -1:] + block.mlp(h[:, :1])], 1)


def in_the_middle(block: Update, h: Tensor) -> Tensor:
    """Where a half begins is computed from the length."""
    at = h.shape[1] // 2
    one, two = h[:, :at], h[:, at:]
    return torch.cat([one + block.mlp(two).sum(1, keepdim=True), two], 1)


def listed(block: Update, h: Tensor) -> Tensor:
    """The places are written down twice, once to read and once to write."""
    h = h.clone()
    h[:, [3, 1]] += block.mlp(h[:, [3, 1]])
    return h


def either(block: Update, h: Tensor) -> Tensor:
    """Sums with the same value on both sides of a choice."""
    return torch.where(block.route(h) > 0, h + block.mlp(h), block.mlp(h.flip(1)) + h)


def twice(block: Update, h: Tensor) -> Tensor:
    made = block.mlp(h)
    return made + h + made


def doubled(block: Update, h: Tensor) -> Tensor:
    """One of several summands of a part is a value twice."""
    made = block.mlp(h[:, :-1])
    h = h.clone()
    h[:, 1:] = h[:, 1:] + (made + made) + block.mlp(h[:, 1:])
    return h


def doubled_beside(block: Update, h: Tensor) -> Tensor:
    """It alone is added, to a piece that is put beside the others."""
    made = block.mlp(h[:, :2])
    return torch.cat([h[:, :2] + (made + made), h[:, 2:]], 1)


class Update(nn.Module):
    """h with an MLP added to a part of it."""

    def __init__(self, write: Callable[[Update, Tensor], Tensor]) -> None:
        super().__init__()
        self.write = write
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4), nn.GELU(), nn.Linear(4, WIDTH))
        self.small = nn.Sequential(nn.Linear(WIDTH // 2, 4), nn.GELU(), nn.Linear(4, WIDTH // 2))
        self.route = nn.Linear(WIDTH, 1)
        self.held: Tensor | None = None

    def forward(self, h: Tensor) -> Tensor:
        return self.write(self, h)


class Net(nn.Module):
    def __init__(self, writes: Sequence[Callable[[Update, Tensor], Tensor]]) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(9, WIDTH), nn.ModuleList(map(Update, writes))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3, bias=False)

    def end(self, h: Tensor) -> Tensor:
        return self.head(self.norm(h))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        return self.end(h)


WRITES = [
    (index_add, in_place, assigned, spread, features, row, rows),
    (accumulated, copied, chosen, scattered, side_by_side, in_thirds, halves),
    (first, last, in_the_middle, listed, either, twice, reduced, added),
    (doubled, doubled_beside),
]


@pytest.mark.parametrize("writes", WRITES, ids=["places", "pieces", "others", "doubled"])
@torch.no_grad()
def test_each_is_a_join(writes: Sequence[Callable[[Update, Tensor], Tensor]]) -> None:
    torch.manual_seed(0)
    net, inputs = Net(writes).eval().double(), {"x": torch.randint(0, 9, (2, LENGTH))}
    graph = jg.trace(net, **inputs, dynamic=False)
    aliases = [site.alias for site in graph.outline.sites()[:-1]]
    assert [join.kind for join in graph.joins] == ["identity"] * len(writes)
    assert aliases == [f"L{number}.mlp" for number in range(len(writes))]
    given = subject(graph, inputs, {"x": torch.randint(0, 9, (2, LENGTH))}, torch.float64)
    assert check_values(given) > 3 * len(writes)
    check_affine(given)
    frozen = jg.compile(jg.expand(graph, rules={"*": jg.Freeze()}))(**inputs)
    assert distance(sum(frozen.terms.values()), net(**inputs)) < EXACT  # type: ignore[arg-type]
    # γ(t) = block(t) − t, whatever the block does in between.
    single = {f"embed > {alias}^0 > logits^0": (number,) for number, alias in enumerate(aliases)}
    double = {
        f"embed > {one}^0 > {two}^0 > logits^0": (number, number + 1)
        for number, (one, two) in enumerate(pairwise(aliases))
    }
    terms = jg.compile(jg.expand(graph, order=0, weights="unit"), [*single, *double])(**inputs).terms
    for text, numbers in (single | double).items():
        value = net.embed(inputs["x"])
        for number in numbers:
            value = net.blocks[number](value) - value
        assert distance(terms[jg.Path.parse(text)], net.end(value)) < EXACT, text


EVEN = torch.arange(LENGTH)[:, None] % 2 == 0


def replaced_by_a_mask(block: Update, h: Tensor) -> tuple[Tensor, ...]:
    """Some positions are what the block makes of them: γ(t), the skip S(t), and their sum as it is written."""
    made, zeros = block.mlp(h), torch.zeros_like(h)
    return torch.where(EVEN, made, zeros), torch.where(EVEN, zeros, h), torch.where(EVEN, made, h)


def scaled_by_a_mask(block: Update, h: Tensor) -> tuple[Tensor, ...]:
    made, zeros = block.mlp(h), torch.zeros_like(h)
    return torch.where(EVEN, zeros, -made), torch.where(EVEN, h, 0.5 * h), torch.where(EVEN, h, 0.5 * h - made)


def left_early(block: Update, h: Tensor) -> tuple[Tensor, ...]:
    """A token goes through both layers of a block, or past them."""
    one = h + block.mlp(h)
    two = one + block.mlp(torch.tanh(one))
    on = block.route(h) > 0
    return torch.where(on, two - h, torch.zeros_like(h)), h, torch.where(on, two, h)


def listed_in_one_tensor(block: Update, h: Tensor) -> tuple[Tensor, ...]:
    """Layers are written into one tensor, one after the other, and read from there."""
    made = block.mlp(h)
    layers = torch.zeros(3, *h.shape, dtype=h.dtype)
    layers[0], layers[2:] = h, 7
    layers[1] = layers[0] + made
    return made, h, layers[-2]


def a_factor_over_a_sum(block: Update, h: Tensor) -> tuple[Tensor, ...]:
    """A coupling layer of Glow, whose factor is held in the skip."""
    one, two = h.chunk(2, -1)
    shift, factor = block.small(one), block.small(torch.tanh(one)).sigmoid()
    zeros = torch.zeros_like(one)
    block.held = factor if block.held is None else block.held
    skip = torch.cat([one, block.held * two], -1)
    return torch.cat([zeros, factor * shift], -1), skip, torch.cat([one, factor * (two + shift)], -1)


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (replaced_by_a_mask, "projection"),
        (scaled_by_a_mask, "projection"),
        (left_early, "identity"),
        (listed_in_one_tensor, "identity"),
        (a_factor_over_a_sum, "gated"),
    ],
)
@torch.no_grad()
def test_what_is_chosen_or_written_is_told_from_what_is_kept(write: Callable[..., Any], kind: str) -> None:
    torch.manual_seed(0)
    net = Net([lambda block, h: write(block, h)[-1]] * 2).eval().double()
    inputs = {"x": torch.randint(0, 9, (2, LENGTH))}
    graph = jg.trace(net, **inputs)
    assert [(join.kind, len(join.branches)) for join in graph.stream.joins] == [(kind, 1)] * 2
    given = subject(graph, inputs, {"x": torch.randint(0, 9, (2, LENGTH))}, torch.float64)
    check_values(given)
    check_affine(given)
    for block in net.blocks:
        block.held = None
    net(**inputs)
    terms = jg.compile(jg.expand(graph, order=0, weights="unit"))(**inputs).terms
    for taken in product((False, True), repeat=2):
        value, text = net.embed(inputs["x"]), "embed"
        for block, branch, join in zip(net.blocks, taken, graph.stream.joins, strict=True):
            value = write(block, value)[not branch]
            text += f" > {join.branches[0].alias}^0" * branch
        assert distance(terms[jg.Path.parse(f"{text} > logits^0")], net.end(value)) < EXACT, text


def coupled(block: Update, h: Tensor) -> Tensor:
    """Each half is read by what is added to the other, as in a reversible network."""
    one, two = h.chunk(2, -1)
    one = one + block.small(two)
    two = two + block.small(torch.tanh(one))
    return torch.cat([one, two], -1) + block.mlp(torch.cat([two, one], -1))


@torch.no_grad()
def test_halves_that_read_each_other_are_one_stream() -> None:
    torch.manual_seed(0)
    net, inputs = Net([coupled, coupled]).eval().double(), {"x": torch.randint(0, 9, (2, LENGTH))}
    graph = jg.trace(net, **inputs)
    aliases = ["L0.mlp", "L1.mlp", "L1.mlp.2", "L2.mlp", "L3.mlp", "L3.mlp.2"]
    assert [join.alias for join in graph.stream.joins] == aliases
    assert all(join.depth == 0 for join in graph.joins)
    # Each branch reads the halves as they are by then.
    starts = [join.fork for join in graph.stream.joins]
    assert not any(b.region.context.intersection(starts) for join in graph.stream.joins for b in join.branches)
    path = jg.Path.parse("embed > L0.mlp^0 > L1.mlp^0 > L1.mlp.2^0 > L2.mlp^0 > logits^0")
    term = jg.compile(jg.expand(graph, order=0, weights="unit"), [path])(**inputs).terms[path]
    first, second = net.blocks
    one = first.small(net.embed(inputs["x"]).chunk(2, -1)[1])
    two = first.small(torch.tanh(one))
    both = first.mlp(torch.cat([two, torch.zeros_like(two)], -1))
    value = second.small(both.chunk(2, -1)[1])
    assert distance(term, net.end(torch.cat([value, torch.zeros_like(value)], -1))) < EXACT


def replaced(block: Update, h: Tensor) -> tuple[Tensor, Tensor]:
    """A unit of ShuffleNet: one half is carried on, what is made of the other one takes its place; then a shuffle."""
    one, two = h.chunk(2, -1)
    return one, block.small(two)


def exchanged(block: Update, h: Tensor) -> tuple[Tensor, Tensor]:
    """Coupling layers that let the halves change places."""
    one, two = h.chunk(2, -1)
    return two + block.small(one), one


class Shuffled(Update):
    """Two halves, side by side or mingled."""

    def forward(self, h: Tensor) -> Tensor:
        return self.mingled(torch.cat(self.write(self, h), -1))  # type: ignore[arg-type]

    def mingled(self, h: Tensor) -> Tensor:
        return h.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2) if self.write is replaced else h

    def skip(self, h: Tensor) -> Tensor:
        one, two = h.chunk(2, -1)
        return self.mingled(torch.cat((one, torch.zeros_like(two)) if self.write is replaced else (two, one), -1))

    def branch(self, h: Tensor) -> Tensor:
        one, two = h.chunk(2, -1)
        zeros = torch.zeros_like(one)
        both = (zeros, self.small(two)) if self.write is replaced else (self.small(one), zeros)
        return self.mingled(torch.cat(both, -1))


@pytest.mark.parametrize("write", [replaced, exchanged])
@torch.no_grad()
def test_halves_that_are_carried_to_other_places(write: Callable[[Update, Tensor], Any]) -> None:
    torch.manual_seed(0)
    net = Net([])
    inputs: dict[str, Any] = {"x": torch.randint(0, 9, (2, LENGTH))}
    net.blocks.extend(Shuffled(write) for _ in range(3))
    net.eval().double()
    graph = jg.trace(net, **inputs, dynamic=False)
    assert [join.kind for join in graph.joins] == ["concat" if write is replaced else "identity"] * 3
    assert len(graph.streams) == 1
    assert all(site.affine for site in graph.outline.sites() if site.role == "map")
    given = subject(graph, inputs, {"x": torch.randint(0, 9, (2, LENGTH))}, torch.float64)
    assert check_values(given) >= 9
    check_affine(given)
    frozen = jg.compile(jg.expand(graph, rules={"*": jg.Freeze()}))(**inputs)
    assert distance(frozen.total, net(**inputs)) < EXACT
    terms = jg.compile(jg.expand(graph, order=0, weights="unit"))(**inputs).terms
    # Where the halves change places is a map of its own, behind each block.
    passed = {re.sub(r" > L\d\.map", "", str(path)): value for path, value in terms.items()}
    assert len(passed) == 8
    for way in product((False, True), repeat=3):
        value, text = net.embed(inputs["x"]), "embed"
        for number, (block, taken) in enumerate(zip(net.blocks, way, strict=True)):
            assert isinstance(block, Shuffled)
            value = block.branch(value) if taken else block.skip(value)
            text += f" > L{number}.mlp^0" * taken
        assert distance(passed[f"{text} > logits^0"], net.end(value)) < EXACT


def ends_late(block: Update, h: Tensor) -> Tensor:
    """Where the second piece ends is computed after something was added to the first one."""
    at = h.shape[1] // 3
    one = h[:, :at] + block.mlp(h[:, :at])
    end = h.shape[1] - h.shape[1] // 2
    return torch.cat([one, h[:, at:end], h[:, end:]], 1)


class Overwritten(nn.Module):
    """What is written is no sum with what was there: nothing is added to h, and it is no join."""

    def __init__(self) -> None:
        super().__init__()
        self.f = Update(index_add)

    def forward(self, h: Tensor) -> Tensor:
        h = h.clone()
        h[:, :2] = h[:, 1:3] + self.f.mlp(h[:, :2])
        return torch.cat([h[:, 1:], h[:, 1:2] + self.f.mlp(h[:, :1])], 1)


@torch.no_grad()
def test_open_sizes_are_no_matter() -> None:
    writes = (in_place, assigned, features, row, side_by_side, halves, first, last, in_the_middle)
    net, inputs = Net(writes).eval(), {"x": torch.randint(0, 9, (2, LENGTH))}
    graph = jg.trace(net, **inputs)
    assert [join.kind for join in graph.stream.joins] == ["identity"] * len(writes)
    longer = torch.randint(0, 9, (3, LENGTH + 2))
    assert torch.allclose(graph(x=longer), net(longer), atol=1e-5)
    late, wide = Net([ends_late]).eval(), torch.randint(0, 9, (2, 9))
    assert torch.allclose(jg.trace(late, wide.repeat(1, 2))(x=wide), late(wide), atol=1e-5)


@torch.no_grad()
def test_other_places_are_told_apart() -> None:
    """Read here, and written there; put together of other pieces than there were."""
    h = torch.randn(2, LENGTH, WIDTH)
    graph = jg.trace(Overwritten().eval(), h, dynamic=False)
    assert "identity" not in [join.kind for join in graph.joins if join.node.meta["shape"] == h.shape]


@torch.no_grad()
def test_experts_that_are_gathered_are_no_summands() -> None:
    class Gathering(Update):
        def forward(self, h: Tensor) -> Tensor:
            total = torch.zeros_like(h)
            for at in ([0, 2], [1, 3]):
                total = total.index_add(1, torch.tensor(at), self.mlp(h[:, at]))
            return h + total

    graph = jg.trace(Gathering(index_add).eval(), torch.randn(2, LENGTH, WIDTH), dynamic=False)
    assert [str(node.target) for node in graph.traced.graph.nodes].count("aten.index_add.default") == 2
    (join,) = graph.joins
    assert len(join.branches) == 1


def by_masks(h: Tensor, mask: Tensor, one: Tensor, other: Tensor) -> Tensor:
    h = h.clone()
    h[mask] += one[mask]
    h[~mask] += other[~mask]
    return h


def by_slices(h: Tensor, mask: Tensor, one: Tensor, other: Tensor) -> Tensor:
    h = h.clone()
    h[:, 1:] += one[:, 1:]
    h[..., :2] += other[..., :2]
    return h


def by_rows(h: Tensor, mask: Tensor, one: Tensor, other: Tensor) -> Tensor:
    at = torch.tensor([0, 3])
    return h.index_add(1, at, one[:, at]).index_add(1, at + 1, other[:, at])


@torch.no_grad()
@pytest.mark.parametrize("write", [by_masks, by_slices, by_rows])
def test_parts_that_are_added_one_after_the_other_are_one_join(write: Callable[..., Tensor]) -> None:
    """Of the first sum the second one only asks the shape, so that both branches read one value."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, h: Tensor) -> Tensor:
            for _ in range(2):
                h = write(h, h[..., 0] > 0, self.one(h).tanh(), self.other(h).tanh())
            return h

    torch.manual_seed(0)
    net, h = Experts().eval(), torch.randn(2, LENGTH, WIDTH)
    graph = jg.trace(net, h, dynamic=False)
    assert [(join.kind, len(join.branches)) for join in graph.stream.joins] == [("identity", 2)] * 2
    forward, zero = graph.run(h), torch.zeros_like(h)
    for place, branch in enumerate(graph.stream.joins[0].branches):
        own = [zero, zero]
        own[place] = (net.one if place == 0 else net.other)(h).tanh()
        assert distance(forward.component(branch.alias), write(zero, h[..., 0] > 0, *own)) < 1e-5


@torch.no_grad()
def test_tokens_that_a_router_chooses_are_added_to_by_scatter() -> None:
    """Mixture of depths: a block runs on two positions, and all others pass it by."""

    class Depths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.routers = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(2))
            self.blocks = nn.ModuleList(Update(index_add) for _ in range(2))

        def added(self, place: int, h: Tensor) -> tuple[Tensor, Tensor]:
            weights = self.routers[place](h).squeeze(-1)
            at = weights.topk(2, 1).indices.sort(1).values
            rows = at.unsqueeze(-1).expand(-1, -1, WIDTH)
            return rows, self.blocks[place].mlp(h.gather(1, rows)) * weights.gather(1, at).unsqueeze(-1).sigmoid()

        def forward(self, h: Tensor) -> Tensor:
            for place in range(2):
                h = h.scatter_add(1, *self.added(place, h))
            return h

    torch.manual_seed(0)
    net, h = Depths().eval(), torch.randn(2, LENGTH, WIDTH)
    graph = jg.trace(net, h)
    assert [(join.kind, join.alias) for join in graph.stream.joins] == [("identity", "L0.mlp"), ("identity", "L1.mlp")]
    assert jg.expand(graph, order=0).count() == 4
    # At another value other tokens are chosen.
    other = torch.randn(2, LENGTH, WIDTH)
    found = graph.run(h).branch(graph.stream.joins[1].branches[0], other)
    assert distance(found, torch.zeros_like(h).scatter_add(1, *net.added(1, other))) < 1e-5


@torch.no_grad()
def test_pieces_that_each_get_a_piece_of_one_value_are_one_sum() -> None:
    """A class token that is kept apart, and attends with the others: h and c are one stream from the start."""

    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.blocks = nn.Linear(WIDTH, WIDTH), nn.ModuleList(Update(index_add) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            h, c = x, self.first(x.mean(1, keepdim=True))
            for block in self.blocks:
                made = block.mlp(torch.cat([c, h], 1)).cumsum(1)
                c, h = c + made[:, :1], h + made[:, 1:]
            return torch.cat([h, c], 1)

    torch.manual_seed(0)
    net, x = Apart().eval().double(), torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    graph = jg.trace(net, x)
    assert [(join.kind, len(join.branches)) for join in graph.stream.joins] == [("identity", 1)] * 3
    other = torch.randn(2, LENGTH + 1, WIDTH, dtype=torch.float64)
    for join, block in zip(graph.stream.joins, net.blocks, strict=True):
        assert distance(graph.run(x).branch(join.branches[0], other), block.mlp(other).cumsum(1)) < EXACT  # type: ignore[union-attr]


@torch.no_grad()
@pytest.mark.parametrize("turned", [lambda d: d.transpose(1, 2), lambda d: d.permute(0, 2, 1)])
def test_diagonals_that_are_written_back_in_another_order(turned: Callable[[Tensor], Tensor]) -> None:
    class Diagonal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Update(index_add) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            z = x.unsqueeze(1) * x.unsqueeze(2)
            for block in self.blocks:
                diagonal = turned(z.diagonal(dim1=1, dim2=2))
                z = z.diagonal_scatter(turned(diagonal + block.mlp(z.mean(1))), dim1=1, dim2=2)  # type: ignore[operator]
            return z

    torch.manual_seed(0)
    net, x = Diagonal().eval().double(), torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    graph = jg.trace(net, x)
    assert [(join.kind, len(join.branches)) for join in graph.stream.joins] == [("identity", 1)] * 2
    other = torch.randn(2, LENGTH, LENGTH, WIDTH, dtype=torch.float64)
    for join, block in zip(graph.stream.joins, net.blocks, strict=True):
        expected = torch.zeros_like(other).diagonal_scatter(turned(block.mlp(other.mean(1))), dim1=1, dim2=2)  # type: ignore[operator]
        assert distance(graph.run(x).branch(join.branches[0], other), expected) < EXACT


def pictured(net: Pictured, h: Tensor) -> Tensor:
    picture = h.transpose(1, 2).view(h.shape[0], WIDTH, 3, 2)
    return (net.conv(picture) + picture).flatten(2).transpose(1, 2)


def folded(net: Pictured, h: Tensor) -> Tensor:
    picture = h.reshape(h.shape[0], 3, 2, WIDTH).permute(0, 3, 1, 2)
    return (picture + net.conv(picture)).permute(0, 2, 3, 1).reshape(h.shape[0], -1, WIDTH)


def unfolded(net: Pictured, h: Tensor) -> Tensor:
    picture = h.mT.unflatten(2, (3, 2))
    return (picture + net.conv(picture)).flatten(2).mT


def turned_over(net: Pictured, h: Tensor) -> Tensor:
    """What comes back is not what was there: rows are columns."""
    picture = h.mT.unflatten(2, (3, 2))
    return (picture + net.conv(picture)).mT.flatten(2).mT


class Pictured(nn.Module):
    """All tokens but the first are laid out as a picture, added to there, and put behind the first one again."""

    def __init__(self, lay: Callable[[Pictured, Tensor], Tensor], whole: bool) -> None:
        super().__init__()
        self.lay, self.whole = lay, whole
        self.conv, self.mlp = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), Update(index_add).mlp

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for _ in range(2):
            if self.whole:
                h = h.clone()
                h[:, 1:] = self.lay(self, h[:, 1:])
            else:
                h = torch.cat([h[:, :1], self.lay(self, h[:, 1:])], 1)
            h = h + self.mlp(h)
        return h


@torch.no_grad()
@pytest.mark.parametrize("lay", [pictured, folded, unfolded, turned_over])
@pytest.mark.parametrize("whole", [False, True])
def test_what_is_added_to_in_another_layout_is_a_part(lay: Callable[[Pictured, Tensor], Tensor], whole: bool) -> None:
    torch.manual_seed(0)
    net, x = Pictured(lay, whole).eval().double(), torch.randn(2, 7, WIDTH, dtype=torch.float64)
    # Of an open length it is not known to be the same before and after, where only its quotient by 3 is.
    graph = jg.trace(net, x, dynamic=lay is unfolded)
    if lay is turned_over:
        assert [join.kind for join in graph.stream.joins].count("identity") < 4
        return
    assert [join.kind for join in graph.stream.joins] == ["identity"] * 4
    assert len(graph.joins) == 4
    assert len(graph.streams) == 1
    other = torch.randn(2, 7, WIDTH, dtype=torch.float64)
    picture = other[:, 1:].mT.unflatten(2, (3, 2))
    expected = torch.cat([torch.zeros_like(other[:, :1]), net.conv(picture).flatten(2).mT], 1)
    for join in graph.stream.joins[::2]:
        assert distance(graph.run(x).branch(join.branches[0], other), expected) < EXACT


class ClassAttention(nn.Module):
    """Tokens of which some go through several layers, each made of the sum before it, and are put back."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.keys, self.values, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6)) for _ in range(3))

    def attended(self, c: Tensor, h: Tensor) -> Tensor:
        return torch.softmax(c @ self.keys(h).mT, -1) @ self.values(h)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.layers[0](h)
        for _ in range(2):
            if self.way == "last":
                c, rest = h[:, -1:], h[:, :-1]
            elif self.way == "split":
                c, rest = h.split([2, 3], 1)
            else:
                c, rest = h[:, :1], h[:, 1:]
            c = c + self.attended(c, h)
            c = c + self.layers[1](c)
            if self.way == "thrice":
                c = c + self.layers[2](c)
            h = torch.cat([rest, c] if self.way == "last" else [c, rest], 1)
        return self.head(h)


@pytest.mark.parametrize("way", ["first", "last", "split", "thrice"])
def test_tokens_that_are_added_to_again_before_they_are_put_back(way: str) -> None:
    torch.manual_seed(0)
    net, x = ClassAttention(way).eval().double(), torch.randn(2, 5, 6).double()
    graph = jg.trace(net, x)
    kinds = ["attn", "mlp", "mlp"] if way == "thrice" else ["attn", "mlp"]
    assert [branch.kind for join in graph.joins for branch in join.branches] == ["mlp", *kinds, *kinds]
    assert {join.kind for join in graph.joins} == {"identity"}
    assert len(graph.streams) == 1
    assert distance(graph(x.flip(0)), net(x.flip(0))) < EXACT
    assert check_values(subject(graph, {"h": x}, {"h": x.flip(0)}, torch.float64)) >= 6


@pytest.mark.parametrize("twice", [False, True])
def test_all_that_is_read_of_a_concatenation_stands_for_it(twice: bool) -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.block, self.other = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, h: Tensor) -> Tensor:
            h = h + torch.tanh(self.block(h))
            t = h if twice else h + torch.tanh(self.other(h))
            return torch.cat([h, t], 1)[:, 3:] if twice else torch.cat([h, t], 1)[:, :3]

    net, x = Beside().eval().double(), torch.randn(2, 3, 6).double()
    graph = jg.trace(net, x, dynamic=False)
    assert [join.kind for join in graph.joins] == ["identity"]
    assert distance(graph(x.flip(0)), net(x.flip(0))) < EXACT
