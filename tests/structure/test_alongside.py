"""Streams that read each other are one stream of all of them, against recursions over their values."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from tests.laws import EXACT, check_affine, check_slopes, check_values, distance, subject
from tests.zoo import PreNorm

WIDTH = 6

State = tuple[Tensor, ...]


class Net(nn.Module):
    """An embedding, what is made of several tensors by steps that each add a branch to some of them, and a head."""

    width = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, self.width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(WIDTH), PreNorm(WIDTH).mlp) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(self.width), nn.Linear(self.width, 5, bias=False)
        self.weights = nn.Parameter(torch.rand(3, 5, 5))

    def start(self, x: Tensor) -> State:
        raise NotImplementedError

    def carried(self, step: int, state: State) -> State:
        """The skip of a step."""
        return state

    def added(self, step: int, state: State) -> State:
        """Its branch."""
        raise NotImplementedError

    def end(self, state: State) -> Tensor:
        return self.head(self.norm(torch.cat(state, -1)))

    def forward(self, x: Tensor) -> Tensor:
        state = self.start(x)
        for step in range(len(self.blocks)):
            state = self.step(step, state)
        return self.end(state)

    def step(self, step: int, state: State) -> State:
        """As a model's code has it."""
        raise NotImplementedError

    def settle(self, x: Tensor) -> None:
        """Hold what skips hold at these inputs."""


class Reversible(Net):
    """Two halves, each of which is added what is made of the other."""

    width = 2 * WIDTH

    def start(self, x: Tensor) -> State:
        return self.embed(x).chunk(2, -1)

    def step(self, step: int, state: State) -> State:
        one, two = state
        return (one, two + self.blocks[step](one)) if step % 2 else (one + self.blocks[step](two), two)

    def added(self, step: int, state: State) -> State:
        one, two = state
        zeros = torch.zeros_like(one)
        return (zeros, self.blocks[step](one)) if step % 2 else (self.blocks[step](two), zeros)


class Averaged(Reversible):
    """Both start at the embedding, and the last ones are averaged, as in Reformer."""

    width = WIDTH

    def start(self, x: Tensor) -> State:
        return (self.embed(x),) * 2

    def end(self, state: State) -> Tensor:
        return self.head(self.norm(sum(state) / 2))


class Momentum(Net):
    """A stream and its speed: the branch goes into the speed, and that into the stream."""

    def start(self, x: Tensor) -> State:
        h = self.embed(x)
        return h, torch.zeros_like(h)

    def step(self, step: int, state: State) -> State:
        at, speed = state
        speed = 0.9 * speed + 0.1 * self.blocks[step](at)
        return at + speed, speed

    def carried(self, step: int, state: State) -> State:
        return state[0] + 0.9 * state[1], 0.9 * state[1]

    def added(self, step: int, state: State) -> State:
        return (0.1 * self.blocks[step](state[0]),) * 2

    def end(self, state: State) -> Tensor:
        return self.head(self.norm(state[0] - state[1] / 2))


class Nesterov(Momentum):
    """The branch reads where the speed leads."""

    def step(self, step: int, state: State) -> State:
        at, speed = state
        speed = 0.9 * speed + self.blocks[step](at + 0.9 * speed)
        return at + speed, speed

    def added(self, step: int, state: State) -> State:
        return (self.blocks[step](state[0] + 0.9 * state[1]),) * 2


class Stopped(Nesterov):
    """The speed goes no further than the last layer, which is the third."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = self.blocks[:3]

    def end(self, state: State) -> Tensor:
        return self.head(self.norm(state[0]))


class Coupled(Reversible):
    """Affine coupling: each of two values in turn is multiplied by what is made of the other one, and added to."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in self.blocks)
        self.held: list[Tensor] = []

    def factor(self, step: int, state: State) -> Tensor:
        return torch.exp(torch.tanh(self.factors[step](state[0])))

    def settle(self, x: Tensor) -> None:
        state, self.held = self.start(x), []
        for step in range(len(self.blocks)):
            self.held.append(self.factor(step, state))
            state = self.step(step, state)

    def step(self, step: int, state: State) -> State:
        one, two = state
        return two * self.factor(step, state) + self.blocks[step](one), one

    def carried(self, step: int, state: State) -> State:
        return state[1] * self.held[step], state[0]

    def added(self, step: int, state: State) -> State:
        return self.blocks[step](state[0]), torch.zeros_like(state[0])


class Registers(Net):
    """Three values that move up; the last one gets what was first, and what is made of the others side by side."""

    width = 3 * WIDTH
    rounds, read = 5, 2

    def __init__(self) -> None:
        super().__init__()
        layers = [(nn.Linear(self.read * WIDTH, WIDTH), PreNorm(WIDTH).mlp) for _ in range(self.rounds)]
        self.blocks = nn.ModuleList(nn.Sequential(*each) for each in layers)

    def start(self, x: Tensor) -> State:
        return self.embed(x).chunk(self.width // WIDTH, -1)

    def step(self, step: int, state: State) -> State:
        first, *others = state
        return (*others, first + self.blocks[step](torch.cat(others[: self.read], -1)))

    def carried(self, step: int, state: State) -> State:
        return (*state[1:], state[0])

    def added(self, step: int, state: State) -> State:
        made = self.blocks[step](torch.cat(state[1 : 1 + self.read], -1))
        return (*(torch.zeros_like(made) for _ in state[1:]), made)


class Projected(Registers):
    """Each starts with a projection of its own; all have been added to once."""

    rounds = 3

    def __init__(self) -> None:
        super().__init__()
        self.starts = nn.ModuleList(nn.Linear(self.width, WIDTH, bias=False) for _ in range(3))

    def start(self, x: Tensor) -> State:
        return tuple(start(self.embed(x)) for start in self.starts)


class OneByOne(Registers):
    """Each layer reads the next register alone, as in a generalised Feistel network."""

    rounds, read = 6, 1


class Four(Registers):
    width = 4 * WIDTH
    rounds, read = 5, 3


class AltUp(Reversible):
    """All values are predicted, one of them passes the block, and what that has added corrects all."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, WIDTH, bias=False)
        self.low = nn.Linear(WIDTH, WIDTH, bias=False)

    def start(self, x: Tensor) -> State:
        one, two = super().start(x)
        return one, self.up(one + two)

    def step(self, step: int, state: State) -> State:
        predicted = self.carried(step, state)
        active = predicted[step % 2]
        added = active + self.blocks[step](active) - active
        return tuple(value + self.weights[2, step, place] * added for place, value in enumerate(predicted))

    def carried(self, step: int, state: State) -> State:
        weights = self.weights[:2, step]
        return tuple(sum(weights[place, other] * value for other, value in enumerate(state)) for place in range(2))  # type: ignore[return-value]

    def added(self, step: int, state: State) -> State:
        made = self.blocks[step](self.carried(step, state)[step % 2])
        return tuple(self.weights[2, step, place] * made for place in range(2))


class Predicted(AltUp):
    """The same from two projections of the embedding, where what the block makes stands for what was predicted."""

    width = WIDTH

    def start(self, x: Tensor) -> State:
        h = self.embed(x)
        return self.up(h), self.low(h)

    def end(self, state: State) -> Tensor:
        return self.head(self.norm(sum(state)))

    def step(self, step: int, state: State) -> State:
        predicted, made = AltUp.carried(self, step, state), self.blocks[step](state[step % 2])
        return tuple(
            value + self.weights[2, step, place] * (made - predicted[step % 2]) for place, value in enumerate(predicted)
        )

    def carried(self, step: int, state: State) -> State:
        predicted = AltUp.carried(self, step, state)
        return tuple(
            value - self.weights[2, step, place] * predicted[step % 2] for place, value in enumerate(predicted)
        )

    def added(self, step: int, state: State) -> State:
        made = self.blocks[step](state[step % 2])
        return tuple(self.weights[2, step, place] * made for place in range(2))


class Midpoint(Stopped):
    """The midpoint rule: each layer is added to the state before the one that it reads."""

    def start(self, x: Tensor) -> State:
        return (self.embed(x),) * 2

    def step(self, step: int, state: State) -> State:
        return state[1] + self.blocks[step](state[0]), state[0]


class Hyper(Net):
    """Hyper-connections that are kept as a list."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = self.blocks[:3]

    def start(self, x: Tensor) -> State:
        return (self.embed(x),) * 3

    def read(self, step: int, state: State) -> Tensor:
        return sum(self.weights[step, 3, place] * value for place, value in enumerate(state))  # type: ignore[return-value]

    def step(self, step: int, state: State) -> State:
        made = self.blocks[step](self.read(step, state))
        return tuple(
            value + self.weights[step, 4, place] * made for place, value in enumerate(self.carried(step, state))
        )

    def carried(self, step: int, state: State) -> State:
        return tuple(
            sum(self.weights[step, place, other] * value for other, value in enumerate(state)) for place in range(3)
        )  # type: ignore[return-value]

    def added(self, step: int, state: State) -> State:
        made = self.blocks[step](self.read(step, state))
        return tuple(self.weights[step, 4, place] * made for place in range(3))

    def end(self, state: State) -> Tensor:
        return self.head(self.norm(sum(state)))


class Dynamic(Hyper):
    """The same with factors that are made of the stream: those of a skip are as they are on the true one."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.ModuleList(nn.Linear(WIDTH, 15) for _ in self.blocks)
        self.held: list[list[Tensor]] = []

    def settle(self, x: Tensor) -> None:
        state, held = self.start(x), list[list[Tensor]]()
        for step in range(len(self.blocks)):
            held.append(self.gates(step, state))
            state = self.step(step, state)
        self.held = held

    def gates(self, step: int, state: State) -> list[Tensor]:
        return list(torch.sigmoid(self.factors[step](sum(state) / 3)).split(1, -1))

    def carried(self, step: int, state: State) -> State:
        return self.mixed(self.held[step], state)

    def added(self, step: int, state: State) -> State:
        gates = self.gates(step, state)
        made = self.blocks[step](sum(gate * value for gate, value in zip(gates, state, strict=False)))
        return tuple(gate * made for gate in gates[12:])

    def mixed(self, gates: list[Tensor], state: State) -> State:
        return tuple(
            sum(gates[3 + 3 * place + other] * value for other, value in enumerate(state)) for place in range(3)
        )  # type: ignore[return-value]

    def step(self, step: int, state: State) -> State:
        gates = self.gates(step, state)
        made = self.blocks[step](sum(gate * value for gate, value in zip(gates, state, strict=False)))
        return tuple(value + gate * made for value, gate in zip(self.mixed(gates, state), gates[12:], strict=True))


@pytest.mark.parametrize(
    "kind",
    [
        *(Reversible, Averaged, Momentum, Nesterov, Stopped, Coupled, AltUp, Predicted, Hyper, Dynamic),
        *(Registers, OneByOne, Four),
    ],
)
@torch.no_grad()
def test_terms_of_streams_that_read_each_other(kind: type[Net]) -> None:
    torch.manual_seed(0)
    net = kind().eval().double()
    inputs: dict[str, Any] = {"x": torch.randint(0, 9, (2, 3))}
    graph = jg.trace(net, **inputs, dynamic=False)
    number = len(net.blocks)
    assert [branch.name for join in graph.joins for branch in join.branches] == [f"blocks.{at}" for at in range(number)]
    assert len(graph.streams) == 1
    given = subject(graph, inputs, {"x": torch.randint(0, 9, (2, 3))}, torch.float64)
    assert check_values(given) >= 3 * number
    check_affine(given)
    check_slopes(given)
    frozen = jg.compile(jg.expand(graph, rules={"*": jg.Freeze(halves=True)}))(**inputs)
    assert distance(frozen.total, net(**inputs)) < EXACT
    expansion = jg.expand(graph, order=0, weights="unit")
    terms = jg.compile(expansion)(**inputs).terms
    assert len(terms) == expansion.count()
    assert sum(str(path).startswith("embed") for path in terms) == 2**number
    net.settle(**inputs)
    for way in product((False, True), repeat=number):
        state, text = net.start(**inputs), "embed"
        for step, taken in enumerate(way):
            state = (net.added if taken else net.carried)(step, state)
            text += f" > L{step}.mlp^0" * taken
        assert distance(terms[jg.Path.parse(f"{text} > logits^0")], net.end(state)) < EXACT, text


class Normed(Averaged):
    """With a norm behind each sum."""

    def step(self, step: int, state: State) -> State:
        one, two = super().step(step, state)
        return (one, self.norm(two)) if step % 2 else (self.norm(one), two)


class Residual(Averaged):
    """ResiDual: one branch goes into a stream with norms and into one without."""

    def step(self, step: int, state: State) -> State:
        made = self.blocks[step](state[0])
        plain = state[1] + made
        return self.norm(state[0] + made), plain

    def end(self, state: State) -> Tensor:
        return self.head(state[0] + self.norm(state[1]))


class Narrow(Reversible):
    """Two streams of different widths, the one made of the other."""

    width = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(WIDTH, 2), nn.Linear(2, WIDTH)

    def start(self, x: Tensor) -> State:
        h = self.embed(x)
        return h, torch.tanh(self.down(h))

    def step(self, step: int, state: State) -> State:
        one, two = state
        if step % 2:
            return one, two + self.down(self.blocks[step](one))
        return one + self.blocks[step](torch.tanh(self.up(two))), two

    def end(self, state: State) -> Tensor:
        return self.head(self.norm(state[0])) + self.head(self.up(state[1]))


class Joint(Net):
    """Tokens, and as many more as they are: each attends to both, and has an MLP of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.mixes = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))

    def start(self, x: Tensor) -> State:
        h = self.embed(x)
        return h, torch.tanh(torch.cat([h, -h], 1))

    def step(self, step: int, state: State) -> State:
        one, two = state
        if step % 2:
            return one + self.blocks[step](one), two + self.blocks[step - 1](two)
        q, k, v = self.mixes[step // 2](F.layer_norm(torch.cat([two, one], 1), (WIDTH,))).chunk(3, -1)
        made = F.scaled_dot_product_attention(q, k, v)
        return one + made[:, two.shape[1] :], two + made[:, : two.shape[1]]

    def end(self, state: State) -> Tensor:
        return self.head(self.norm(state[0].mean(1) * 2 + state[1].mean(1)))


class Last(Joint):
    """The last layer reads both, and goes on with one of them."""

    def end(self, state: State) -> Tensor:
        return self.head(self.norm(state[0]))


class Once(Joint):
    """One layer in which they read each other, neither start being made of the other, and a head over both."""

    def start(self, x: Tensor) -> State:
        return self.embed(x), self.embed(torch.cat([1 + x // 2, x // 3], 1))

    def step(self, step: int, state: State) -> State:
        return super().step(step, state) if step < 2 else state

    def end(self, state: State) -> Tensor:
        return sum(self.head(self.norm(each)).mean(1) for each in state)  # type: ignore[return-value]


class Ahead(Last):
    """Two streams with their scores in common, each of which passes its norm before the other one's sum is made."""

    def start(self, x: Tensor) -> State:
        return self.embed(x), self.embed(x // 2)

    def step(self, step: int, state: State) -> State:
        if step % 2:
            return self.layer(step, state[0]), self.layer(step, state[1])
        (q, k, v), (r, s, w) = (mix(each).chunk(3, -1) for mix, each in zip(self.mixes, state, strict=True))
        scores = (q @ k.mT + r @ s.mT).softmax(-1)
        return self.further(self.norm(state[0] + scores @ v)), self.norm(state[1] + scores @ w)

    def layer(self, step: int, h: Tensor) -> Tensor:
        return self.norm(h + self.blocks[step](h))

    def further(self, h: Tensor) -> Tensor:
        """How far the one goes meanwhile."""
        return h


class Further(Ahead):
    """The one passes a whole layer before the other one's sum is made."""

    def further(self, h: Tensor) -> Tensor:
        return self.layer(0, h)


class Crossed(Reversible):
    """Each of two values is added what is made of the other one as it was, all at once."""

    def __init__(self) -> None:
        super().__init__()
        self.others = nn.ModuleList(PreNorm(WIDTH).mlp for _ in self.blocks)

    def step(self, step: int, state: State) -> State:
        one, two = state
        return one + self.blocks[step](two), two + self.others[step](one)


class Rotating(Crossed):
    """Of three that start with projections, each is added what is made of the next one."""

    width = 3 * WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, WIDTH)
        self.starts = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.blocks, self.others = self.blocks[:2], self.others[:2]

    def start(self, x: Tensor) -> State:
        h = self.embed(x)
        return tuple(start(h) for start in self.starts)

    def step(self, step: int, state: State) -> State:
        one, two, three = state
        f, g = self.others[step], self.others[step - 1]
        return one + f(two), two + g(three), three + g(one)


class Levels(Net):
    """A low level that is given the input and the high one in each round, and a high one that reads it after two: both
    start with constants, as in a hierarchical reasoning model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rest = nn.Parameter(torch.randn(2, WIDTH))

    def start(self, x: Tensor) -> State:
        return self.embed(x), self.rest[0], self.rest[1]

    def step(self, step: int, state: State) -> State:
        given, low, high = state
        if step % 2:
            return given, low, self.layer(step, high + low)
        for _ in range(2):
            low = self.layer(step, low + (high + given))
        return given, low, high

    def layer(self, step: int, h: Tensor) -> Tensor:
        return self.norm(h + self.blocks[step](h))

    def end(self, state: State) -> Tensor:
        return self.head(state[2])


class DualPath(Narrow):
    """A dual path network: of what a block makes of both, one part is added to a stream and one put beside another."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = nn.ModuleList(nn.Linear(WIDTH + 2 + step, WIDTH) for step in range(4))
        self.makes = nn.ModuleList(nn.Linear(WIDTH, WIDTH + 1) for _ in range(4))

    def step(self, step: int, state: State) -> State:
        one, two = state
        made = self.makes[step](torch.tanh(self.reads[step](torch.cat(state, -1))))
        return one + made[..., :WIDTH], torch.cat([two, made[..., WIDTH:]], -1)

    def end(self, state: State) -> Tensor:
        return self.head(self.norm(state[0] + state[1]))


class Edges(Narrow):
    """Nodes, and edges between them, of which one product of both is made in each layer, as in GatedGCN."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(20))
        self.register_buffer("one", torch.tensor([0, 1, 2, 2]))
        self.register_buffer("other", torch.tensor([1, 2, 0, 1]))

    def start(self, x: Tensor) -> State:
        h = self.embed(x)
        return h, self.reads[0](h[:, self.one]) + h[:, self.other]

    def step(self, step: int, state: State) -> State:
        h, e = state
        first, second, third, fourth, fifth = self.reads[5 * step : 5 * step + 5]
        y = first(h)[:, self.one] + second(h)[:, self.other] + third(e)
        weight = torch.sigmoid(y)
        message = torch.zeros_like(h).index_add(1, self.other, weight * fourth(h)[:, self.one])
        return h + torch.relu(F.layer_norm(message + fifth(h), (WIDTH,))), e + torch.relu(F.layer_norm(y, (WIDTH,)))

    def end(self, state: State) -> Tensor:
        return self.head(self.norm(state[0]))


class Positions(Edges):
    """Features, and positions that move along their differences, as in EGNN; the last sum reads both."""

    def start(self, x: Tensor) -> State:
        h = self.embed(x)
        return h, self.down(h)

    def step(self, step: int, state: State) -> State:
        h, r = state
        d = r[:, self.one] - r[:, self.other]
        message = torch.tanh(self.reads[step](h[:, self.one] + h[:, self.other] + self.up(d)))
        moved = torch.zeros_like(r).index_add(1, self.other, d * torch.sigmoid(self.down(message)))
        return h + self.blocks[step](torch.zeros_like(h).index_add(1, self.other, message)), r + moved

    def end(self, state: State) -> Tensor:
        return self.head(self.norm(state[0] + self.up(state[1])))


class Vectors(Narrow):
    """Features, and three vectors for each of them, as in PaiNN: rows of which batch and length are alike."""

    def start(self, x: Tensor) -> State:
        h = self.embed(x)
        return h, torch.tanh(torch.stack([h, -h, 2 * h], 2))

    def step(self, step: int, state: State) -> State:
        h, v = state
        if step % 2:
            return h, v + torch.sigmoid(self.blocks[step](h)).unsqueeze(2) * self.up(self.down(v))
        return h + self.blocks[step](torch.relu(v).sum(2)), v

    def end(self, state: State) -> Tensor:
        return self.head(self.norm(state[0] + state[1].sum(2)))


class Pairs(Narrow):
    """Tokens, and pairs of them, as in an Evoformer: rows with an open size."""

    def start(self, x: Tensor) -> State:
        h = self.embed(x)
        return h, torch.tanh(self.down(h).unsqueeze(2) * self.down(h).unsqueeze(1))

    def step(self, step: int, state: State) -> State:
        h, z = state
        if step % 2:
            y = self.down(self.blocks[step](h))
            return h, z + torch.sigmoid(y).unsqueeze(2) * y.unsqueeze(1)
        return h + (h @ h.mT + z.sum(-1)).softmax(-1) @ self.blocks[step](h), z

    def end(self, state: State) -> Tensor:
        return self.head(self.norm(state[0] + self.up(state[1].mean(2))))


class Scores(Pairs):
    """The last layer's attention is all that reads the last pairs, added to its scores."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([*self.blocks, self.blocks[0]])

    def end(self, state: State) -> Tensor:
        return self.head(self.norm(state[0]))


OPEN = (Edges, Vectors, Scores, Further, Joint, Normed)
"""Nets that are traced with open sizes, which take three times as long: one of each kind of pieces."""


@pytest.mark.parametrize(
    ("kind", "sites"),
    [
        (Edges, ["L0.mlp", "L0.mlp.2", "L5.mlp", "L5.mlp.2", "L10.mlp", "L10.mlp.2", "L15.mlp"]),
        (Positions, ["L0.mlp", "L0.mlp.2", "L1.mlp", "L1.mlp.2", "L2.mlp", "L2.mlp.2", "L3.mlp", "L3.mlp.2"]),
        (Vectors, ["L0.mlp", "L1.mlp", "L2.mlp", "L3.mlp"]),
        (Pairs, ["L0.mlp", "L1.attn", "L2.mlp", "L3.attn", "L4.mlp"]),
        (Scores, ["L0.mlp", "L1.attn", "L2.mlp", "L3.attn", "L4.mlp", "L5.attn"]),
        (DualPath, ["L0.mlp", "L1.mlp", "L2.mlp", "L3.mlp", "L4.mlp"]),
        (
            Ahead,
            [
                "L0.attn",
                "L0.attn.2",
                "L0.norm",
                "L1.mlp",
                "L1.norm",
                "L2.mlp",
                "L2.norm",
                "L3.attn",
                "L3.norm",
                "L4.mlp",
            ],
        ),
        (
            Further,
            [
                "L0.attn",
                "L0.attn.2",
                "L0.norm",
                "L1.mlp",
                "L1.norm",
                "L2.mlp",
                "L2.norm",
                "L3.mlp",
                "L3.norm",
                "L4.attn",
                "L4.norm",
                "L5.mlp",
                "L5.norm",
                "L6.mlp",
            ],
        ),
        (
            Levels,
            [
                *("L0.mlp", "L0.norm", "L1.mlp", "L1.norm", "L2.mlp", "L2.norm"),
                *("L3.mlp", "L3.norm", "L4.mlp", "L4.norm", "L4.map", "L5.mlp"),
            ],
        ),
        (Last, ["L0.attn", "L1.mlp", "L2.mlp", "L3.attn", "L4.mlp"]),
        (Once, ["L0.attn", "L1.mlp", "L2.mlp", "L3.mlp", "L3.mlp.2"]),
        (Joint, ["L0.attn", "L1.mlp", "L2.mlp", "L3.attn", "L4.mlp", "L5.mlp"]),
        (Normed, ["L0.mlp", "L0.norm", "L1.mlp", "L1.norm", "L2.mlp", "L2.norm", "L3.mlp"]),
        (Midpoint, ["L0.mlp", "L1.mlp", "L1.norm", "L2.mlp"]),  # which alone reads what the second layer has made
        (Residual, ["L0.mlp", "L0.norm", "L1.mlp", "L1.norm", "L2.mlp", "L2.norm", "L3.mlp"]),
        (Narrow, ["L0.mlp", "L1.mlp", "L2.mlp", "L3.mlp", "L4.mlp", "L5.mlp"]),
        (Projected, ["L0.mlp", "L1.mlp", "L2.mlp"]),
        (Crossed, [f"L{at}.mlp" for at in range(8)]),
        (Rotating, [f"L{at}.mlp" for at in range(6)]),
    ],
)
@torch.no_grad()
def test_norms_and_widths(kind: type[Net], sites: list[str]) -> None:
    torch.manual_seed(0)
    net = kind().eval().double()
    inputs: dict[str, Any] = {"x": torch.randint(0, 9, (2, 3))}
    graph = jg.trace(net, **inputs, dynamic=kind in OPEN)
    assert [site.alias for site in graph.outline.sites()[:-1]] == sites
    assert len(graph.streams) == 1
    # The last layer's attention reads no value that it would take for a constant.
    assert not any(branch.region.context for join in graph.stream.joins for branch in join.branches)
    if kind in OPEN:
        longer = {"x": torch.randint(0, 9, (3, 5))}
        assert distance(graph(**longer), net(**longer)) < EXACT
    given = subject(graph, inputs, {"x": torch.randint(0, 9, (2, 3))}, torch.float64)
    assert check_values(given) >= 3 * len(sites)
    frozen = jg.compile(jg.expand(graph, rules={"*": jg.Freeze(halves=True)}))(**inputs)
    assert distance(frozen.total, net(**inputs)) < EXACT


class Pixels(nn.Module):
    """Pixels of all patches, which lie along the batch, beside tokens, of which all but the first are added what each
    layer has made of them by then, as in a Transformer in Transformer.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.pos, self.token = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(1, 1, 5))
        self.give = nn.ModuleList(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5)) for _ in range(layers + 1))
        self.inner = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)) for _ in range(layers)
        )
        self.outer = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 5)) for _ in range(layers)
        )
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        p = x.flatten(0, 1) + self.pos
        first, *give = self.give
        h = torch.cat([self.token.expand(x.shape[0], -1, -1), first(p.reshape(x.shape[0], 4, 6))], 1)
        for given, inner, outer in zip(give, self.inner, self.outer, strict=True):
            p = p + inner(p)
            h = torch.cat([h[:, :1], h[:, 1:] + given(p.reshape(x.shape[0], 4, 6))], 1)
            h = h + outer(h)
        return self.head(torch.tanh(h))


@pytest.mark.parametrize(("layers", "dynamic"), [(2, True), (3, False)])
@torch.no_grad()
def test_what_lies_along_the_batch_is_in_the_row(layers: int, dynamic: bool) -> None:
    torch.manual_seed(0)
    net, x = Pixels(layers).eval().double(), torch.randn(2, 4, 3, 2, dtype=torch.float64)
    graph = jg.trace(net, x=x, dynamic=dynamic)
    # The tokens start with what is made of the pixels.
    assert graph.stream.joins[0].kind == "concat"
    assert len(graph.joins) == len(graph.stream.joins) == 1 + 3 * layers
    assert len(graph.streams) == 1
    given = subject(graph, {"x": x}, {"x": x.flip(0)}, torch.float64)
    assert check_values(given) >= 3 * layers
    if dynamic:
        # Of three layers there are 3,072 terms.
        frozen = jg.compile(jg.expand(graph, rules={"*": jg.Freeze(halves=True)}))(x=x)
        assert distance(frozen.total, net(x)) < EXACT
        more = torch.randn(5, 4, 3, 2, dtype=torch.float64)
        assert distance(graph(x=more), net(more)) < EXACT


class Neighbours(nn.Module):
    """Edges of a graph and its nodes, each with layers of their own that read the other; or, without indices, rows of
    one of two tables that are read as a whole.
    """

    def __init__(self, nodes: int, edges: int, *, whole: bool = False) -> None:
        super().__init__()
        self.whole = whole
        self.register_buffer("start", torch.arange(edges) * 7 % nodes)
        self.register_buffer("end", torch.arange(edges) * 3 % nodes)
        self.of_edges = nn.ModuleList(nn.Linear(12, 4) for _ in range(3))
        self.of_nodes = nn.ModuleList(nn.Linear(12, 8) for _ in range(3))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        for of_edges, of_nodes in zip(self.of_edges, self.of_nodes, strict=True):
            read = x.mean(0, keepdim=True).expand(len(self.start), -1) if self.whole else x[self.start]
            edges = edges + torch.tanh(of_edges(torch.cat([edges, read], -1)))
            if self.whole:
                given = edges.mean(0, keepdim=True).expand(x.shape[0], -1)
            else:
                given = torch.zeros(x.shape[0], 4, dtype=x.dtype).index_add(0, self.end, edges)
            x = x + torch.tanh(of_nodes(torch.cat([x, given], -1)))
        return self.head(x)


@pytest.mark.parametrize("whole", [False, True])
@torch.no_grad()
def test_that_one_number_is_a_multiple_of_another_may_be_an_accident(whole: bool) -> None:
    """Two edges beside each of ten nodes are no rows: the streams are those of as many edges as are no multiple."""
    torch.manual_seed(0)
    streams = {}
    for edges in (20, 21, 40):
        net = Neighbours(10, edges, whole=whole).eval().double()
        inputs = {"x": torch.randn(10, 8).double(), "edges": torch.randn(edges, 4).double()}
        graph = jg.trace(net, **inputs, dynamic=False)
        streams[edges] = [[(join.kind, len(join.branches)) for join in one.joins] for one in graph.streams]
        assert distance(jg.compile(jg.expand(graph, rules={"*": jg.Freeze()}))(**inputs).total, net(**inputs)) < EXACT
    assert streams[20] == streams[21] == streams[40]


class Both(nn.Module):
    """A block over two streams of tokens: attention over both side by side, then a feed-forward of each, each with a
    norm whose scale, and a gate, that are made of a condition.
    """

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.number = 1 if last else 2
        self.made = nn.ModuleList(nn.Linear(WIDTH, 4 * WIDTH) for _ in range(2))
        self.read = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.given = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.mlp = nn.ModuleList(PreNorm(WIDTH).mlp for _ in range(2))

    def forward(self, state: State, condition: Tensor) -> State:
        factors = [made(F.silu(condition))[:, None].chunk(4, -1) for made in self.made]
        normed = [F.layer_norm(h, (WIDTH,)) * (1 + scale) for h, (scale, *_) in zip(state, factors, strict=True)]
        read = torch.cat([read(h) for read, h in zip(self.read, normed, strict=True)], 1)
        attended = F.scaled_dot_product_attention(*read.chunk(3, -1)).split([h.shape[1] for h in state], 1)
        state = list(state)
        for at in range(self.number):  # first all of one stream, then all of the other
            _, gate, scale, other = factors[at]
            state[at] = state[at] + gate * self.given[at](attended[at])
            state[at] = state[at] + other * self.mlp[at](F.layer_norm(state[at], (WIDTH,)) * (1 + scale))
        return tuple(state)


class Two(nn.Module):
    """A picture and a text with a time, as in a multimodal diffusion transformer."""

    def __init__(self, *, laid: bool = False) -> None:
        super().__init__()
        self.start = nn.ModuleList((nn.Linear(3, WIDTH), nn.Linear(4, WIDTH)))
        self.time = nn.Linear(2, WIDTH)
        self.blocks = nn.ModuleList(Both(last=not laid and at == 1) for at in range(2))
        self.single = PreNorm(WIDTH).mlp if laid else None
        self.head = nn.Linear(WIDTH, 3)

    def condition(self, text: Tensor, time: Tensor) -> Tensor:
        return self.time(time)

    def forward(self, picture: Tensor, text: Tensor, time: Tensor) -> Tensor:
        state: State = (self.start[0](picture), self.start[1](text))
        condition = self.condition(text, time)
        for block in self.blocks:
            state = block(state, condition)
        if self.single is None:
            return self.head(F.layer_norm(state[0], (WIDTH,)))
        whole = torch.cat(state, 1)
        whole = whole + self.single(F.layer_norm(whole, (WIDTH,)))
        return self.head(F.layer_norm(whole, (WIDTH,))[:, : -text.shape[1]])


class Pooled(Two):
    """Its condition is made of the text that a stream starts with as well."""

    def condition(self, text: Tensor, time: Tensor) -> Tensor:
        return torch.tanh(self.start[1](text)).mean(1) + super().condition(text, time)


@pytest.mark.parametrize("kind", [Two, Pooled])
@pytest.mark.parametrize("laid", [False, True])
def test_streams_of_tokens_with_scales_and_gates_from_outside(kind: type[Two], laid: bool) -> None:
    torch.manual_seed(0)
    net = kind(laid=laid).eval().double()

    def inputs() -> dict[str, Any]:
        shapes = {"picture": (2, 4, 3), "text": (2, 5, 4), "time": (2, 2)}
        return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}

    example = inputs()
    graph = jg.trace(net, **example, dynamic=kind is Two)
    assert len(graph.streams) == 1
    first, last = ["attn", "attn", "mlp", "mlp"], ["attn", "attn", "mlp", "mlp", "mlp"] if laid else ["attn", "mlp"]
    assert [branch.kind for join in graph.joins for branch in join.branches] == [*first, *last]
    given = subject(graph, example, inputs(), torch.float64)
    assert check_values(given) >= 6
    check_slopes(given)
    if not laid:  # else there are 1,152 terms
        frozen = jg.compile(jg.expand(graph, rules={"*": jg.Freeze(halves=True)}))(**example)
        assert distance(frozen.total, net(**example)) < EXACT


class Sides(nn.Module):
    """A U-net of two levels: what each step down has made is laid beside the stream on the way up."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(4, 4), (4, 6), (6, 6), (12, 6), (10, 6), (10, 4), (8, 4)]
        self.shortcuts = nn.ModuleList(nn.Conv1d(one, two, 1) if one != two else nn.Identity() for one, two in widths)
        self.layers = nn.ModuleList(nn.Conv1d(one, two, 3, padding=1) for one, two in widths)
        self.start, self.down = nn.Conv1d(3, 4, 1), nn.Conv1d(4, 4, 3, stride=2, padding=1)
        self.up, self.end = nn.Conv1d(6, 6, 3, padding=1), nn.Conv1d(4, 3, 1)

    def block(self, number: int, x: Tensor) -> Tensor:
        return self.shortcuts[number](x) + torch.tanh(self.layers[number](F.silu(x)))

    def forward(self, x: Tensor) -> Tensor:
        made = [self.start(x)]
        made.append(self.block(0, made[-1]))
        made.append(self.down(made[-1]))
        made.append(self.block(1, made[-1]))
        h = self.block(2, made[-1])
        for number in range(3, 7):
            if number == 5:
                h = self.up(F.interpolate(h, scale_factor=2))
            h = self.block(number, torch.cat([h, made.pop()], 1))
        return self.end(F.silu(h))


def test_what_is_laid_beside_a_stream_is_no_stream_of_its_own() -> None:
    torch.manual_seed(0)
    net = Sides().eval().double()
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    graph = jg.trace(net, x, dynamic=False)  # of open sizes pieces would not fit side by side
    kinds = [branch.kind for join in graph.joins for branch in join.branches]
    assert kinds == ["conv", "conv", "conv", *["skip", "conv"] * 4]
    assert [join.kind for join in graph.joins].count("concat") == 4
    check_values(subject(graph, {"x": x}, {"x": torch.randn_like(x)}, torch.float64))


class Shifted(nn.Module):
    """Two streams, of which one has a number added to it, or taken away from a multiple of it, between its layers."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.start, self.head = nn.Linear(3, 2 * WIDTH), nn.Linear(2 * WIDTH, 4)
        self.layers = nn.ModuleList(PreNorm(WIDTH).mlp for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.start(x).chunk(2, -1)
        for one, other in zip(self.layers[::2], self.layers[1::2], strict=True):
            a = a + one(b)
            b = b + other(a)
            b = {"sum": b + 1.5, "multiple": 0.5 * b - 0.25, "alpha": torch.add(b, a, alpha=1) + 2}[self.way]
        return self.head(torch.cat([a, b], -1))


@pytest.mark.parametrize("way", ["sum", "multiple", "alpha"])
@torch.no_grad()
def test_numbers_that_are_added_to_a_stream_stay(way: str) -> None:
    torch.manual_seed(0)
    net, x = Shifted(way).eval().double(), torch.randn(2, 4, 3, dtype=torch.float64)
    graph = jg.trace(net, x)
    assert len(graph.streams) == 1
    other = torch.randn(3, 5, 3, dtype=torch.float64)
    assert distance(graph(other), net(other)) < EXACT
    assert check_values(subject(graph, {"x": x}, {"x": x.flip(0)}, torch.float64)) >= 4


class Meaned(nn.Module):
    """Rows of layers from one point, of which each adds to a value of its own, are added up or averaged, at each level.

    As in HiFi-GAN, whose levels are joined by a map and an affine layer.
    """

    def __init__(self, rows: int, depth: int, way: str) -> None:
        super().__init__()
        self.way = way
        self.start, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)
        self.ups = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.levels = nn.ModuleList(
            nn.ModuleList(nn.ModuleList(PreNorm(WIDTH).mlp for _ in range(depth)) for _ in range(rows))
            for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x)
        for up, rows in zip(self.ups, self.levels, strict=True):
            h = up(torch.tanh(h))
            made = []
            for row in rows:
                z = h
                for layer in row:
                    z = z + layer(z)
                made.append(z)
            h = sum(made[1:], made[0])
            h = {"sum": h, "mean": h / len(made), "norm": F.layer_norm(h, (WIDTH,))}[self.way]
        return self.head(h)


@pytest.mark.parametrize(("rows", "depth", "way"), [(2, 3, "mean"), (3, 2, "sum"), (2, 2, "norm")])
@torch.no_grad()
def test_rows_that_start_at_one_point_are_a_line_and_branches(rows: int, depth: int, way: str) -> None:
    torch.manual_seed(0)
    net, x = Meaned(rows, depth, way).eval().double(), torch.randn(2, 4, 3, dtype=torch.float64)
    graph = jg.trace(net, x, dynamic=False)
    assert len(graph.streams) == 1
    # The last row is the line, to which its last layer and the rows before are added at once.
    assert [join.depth for join in graph.stream.joins] == [0] * 3 * depth
    assert [len(join.branches) for join in graph.stream.joins] == [*[1] * (depth - 1), 2] * 3
    assert len(graph.joins) == 3 * depth * rows
    assert check_values(subject(graph, {"x": x}, {"x": x.flip(0)}, torch.float64)) >= 4


class Towers(nn.Module):
    """Towers of tokens, each of its own width and length, with a class token and positions: all layers of one before
    those of the next, and then class tokens that attend to what the next tower has.
    """

    widths: tuple[int, ...] = (6, 8)

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        number = len(self.widths)
        self.starts = nn.ModuleList(nn.Linear(3, width) for width in self.widths)
        self.tokens = nn.ParameterList(torch.randn(1, 1, width) for width in self.widths)
        self.positions = nn.ParameterList(torch.randn(1, 5 - at, width) for at, width in enumerate(self.widths))
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Sequential(nn.LayerNorm(width), PreNorm(width).mlp) for width in self.widths)
            for _ in range(2 * depth)
        )
        self.norms = nn.ModuleList(nn.ModuleList(nn.LayerNorm(width) for width in self.widths) for _ in range(depth))
        pairs = [(self.widths[at], self.widths[(at + 1) % number]) for at in range(number)]
        self.read = nn.ModuleList(
            nn.ModuleList(
                nn.MultiheadAttention(one, 2, kdim=other, vdim=other, batch_first=True) for one, other in pairs
            )
            for _ in range(depth)
        )
        self.heads = nn.ModuleList(nn.Linear(width, 4) for width in self.widths)

    def exchanged(self, level: int, state: list[Tensor]) -> list[Tensor]:
        """Each class token with what it reads of the next tower's other tokens."""
        made = []
        for at, read in enumerate(self.read[level]):
            patches = state[(at + 1) % len(state)][:, 1:]
            token = state[at][:, :1]
            made.append(torch.cat([token + read(token, patches, patches, need_weights=False)[0], state[at][:, 1:]], 1))
        return made

    def forward(self, x: Tensor) -> Tensor:
        state = []
        for at, (start, token) in enumerate(zip(self.starts, self.tokens, strict=True)):
            tokens = torch.cat([token.expand(x.shape[0], -1, -1), start(x[:, at:])], 1)
            state.append(tokens + self.positions[at])
        for level, norms in enumerate(self.norms):
            for at, norm in enumerate(norms):
                for block in self.blocks[2 * level : 2 * level + 2]:
                    state[at] = state[at] + block[at](state[at])
                state[at] = norm(state[at])
            state = self.exchanged(level, state)
        return sum(head(h[:, 0]) for head, h in zip(self.heads, state, strict=True))


class ThreeTowers(Towers):
    widths = (6, 8, 4)


class Exchanged(Towers):
    """Class tokens in the other tower's width, to which what they read there is added; they come back by a layer."""

    def __init__(self) -> None:
        super().__init__()
        one, other = self.widths
        self.there = nn.ModuleList((nn.Linear(one, other), nn.Linear(other, one)))
        self.back = nn.ModuleList((nn.Linear(other, one), nn.Linear(one, other)))
        self.layers = nn.ModuleList(nn.MultiheadAttention(width, 2, batch_first=True) for width in (other, one))

    def exchanged(self, level: int, state: list[Tensor]) -> list[Tensor]:
        made = []
        for at in range(2):
            token = self.there[at](F.gelu(state[at][:, :1]))
            whole = torch.cat([token, state[1 - at][:, 1:]], 1)
            token = token + self.layers[at](token, whole, whole, need_weights=False)[0]
            made.append(torch.cat([self.back[at](F.gelu(token)), state[at][:, 1:]], 1))
        return made


@pytest.mark.parametrize(
    ("kind", "joins", "inner"),
    [
        (Towers, [["mlp"]] * 4 + [["attn"] * 2], 0),
        (ThreeTowers, [["mlp"]] * 6 + [["attn"] * 3], 0),
        (Exchanged, [["mlp"]] * 4 + [["attn", "attn"]], 2),
    ],
)
@torch.no_grad()
def test_towers_that_exchange_class_tokens(kind: type[Towers], joins: list[list[str]], inner: int) -> None:
    torch.manual_seed(0)
    net = kind().eval().double()
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    graph = jg.trace(net, x, dynamic=kind is Towers)
    assert len(graph.streams) == 1
    assert [[branch.kind for branch in join.branches] for join in graph.stream.joins] == 2 * joins
    assert len(graph.joins) - len(graph.stream.joins) == 2 * inner
    assert not any(join.injections for join in graph.stream.joins)
    given = subject(graph, {"x": x}, {"x": torch.randn_like(x)}, torch.float64)
    assert check_values(given) >= 2 * len(joins)
    check_slopes(given)
    if kind is Towers:
        other = torch.randn(3, 4, 3, dtype=torch.float64)
        assert distance(graph(x=other), net(other)) < EXACT


class Growing(nn.Module):
    """Resolutions beside each other, to which each stage adds the next one, and which exchange what they have made: one
    after the other, down two resolutions with an activation between.
    """

    def __init__(self, number: int = 3) -> None:
        super().__init__()
        self.number = number
        widths = [4 + 2 * at for at in range(number)]
        self.start = nn.Conv1d(3, 4, 1)
        self.news = nn.ModuleList(self.down(one, other) for one, other in pairwise(widths))
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Sequential(nn.Conv1d(width, width, 3, padding=1), nn.Tanh()) for width in widths[: at + 2])
            for at in range(number - 1)
        )
        self.ways = nn.ModuleList(
            nn.ModuleList(
                nn.ModuleList(self.way(widths, one, other) for one in range(at + 2)) for other in range(at + 2)
            )
            for at in range(number - 1)
        )
        self.last = nn.ModuleList(nn.Sequential(nn.Conv1d(width, width, 3, padding=1), nn.Tanh()) for width in widths)
        self.heads = nn.ModuleList(nn.Linear(width, 4) for width in widths)

    def down(self, one: int, other: int) -> nn.Module:
        return nn.Sequential(nn.Conv1d(one, other, 2, stride=2), nn.Softplus())

    def way(self, widths: list[int], one: int, other: int) -> nn.Module:
        if one >= other:
            return nn.Conv1d(widths[one], widths[other], 1)
        steps: list[nn.Module] = []
        for at in range(one, other):
            steps += [nn.Conv1d(widths[at], widths[at + 1], 2, stride=2), *([nn.Softplus()] if at + 1 < other else [])]
        return nn.Sequential(*steps)

    def mixed(self, state: list[Tensor], other: int, ways: Any) -> Tensor:
        total = None
        for one, (h, way) in enumerate(zip(state, ways, strict=True)):
            made = h if one == other else way(h)
            made = F.interpolate(made, scale_factor=2.0 ** (one - other)) if one > other else made
            total = made if total is None else total + made
        return F.softplus(total)

    def forward(self, x: Tensor) -> Tensor:
        state = [self.start(x)]
        for new, blocks, ways in zip(self.news, self.blocks, self.ways, strict=True):
            state.append(new(state[-1]))
            state = [F.softplus(h + block(h)) for h, block in zip(state, blocks, strict=True)]
            state = [self.mixed(state, other, each) for other, each in enumerate(ways)]
        state = [h + block(h) for h, block in zip(state, self.last, strict=True)]
        return sum(head(h.mean(-1)) for head, h in zip(self.heads, state, strict=True))


class Wider(Growing):
    """The same without sizes: each next stream is made of the last one by a layer, and has its own width."""

    def down(self, one: int, other: int) -> nn.Module:
        return nn.Sequential(nn.Conv1d(one, other, 1), nn.Softplus())

    def way(self, widths: list[int], one: int, other: int) -> nn.Module:
        layers = [nn.Conv1d(widths[one], widths[other], 1)]
        inner = [nn.Conv1d(widths[one], widths[one], 1), nn.Softplus()] if other - one > 1 else []
        return nn.Sequential(*inner, *layers)

    def mixed(self, state: list[Tensor], other: int, ways: Any) -> Tensor:
        return F.softplus(sum(h if one == other else ways[one](h) for one, h in enumerate(state)))


@pytest.mark.parametrize("kind", [Growing, Wider])
@pytest.mark.parametrize("number", [3, 4])
@torch.no_grad()
def test_streams_that_are_added_to_others(kind: type[Growing], number: int) -> None:
    torch.manual_seed(0)
    net = kind(number).eval().double()
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    graph = jg.trace(net, x, dynamic=False)
    assert len(graph.streams) == 1
    found = [(join.kind, len(join.branches)) for join in graph.joins]
    # Down to the next resolution the way is affine; of those further down each has a branch.
    stages = [
        [("concat", 1), *[("identity", 1)] * (at + 2), *[("projection", at * (at + 1) // 2)] * (at > 0)]
        for at in range(number - 1)
    ]
    assert found == [*(join for stage in stages for join in stage), *[("identity", 1)] * number]
    given = subject(graph, {"x": x}, {"x": torch.randn_like(x)}, torch.float64)
    assert check_values(given) >= len(found)
    check_slopes(given)


class Shared(nn.Module):
    """Tokens that look up pixels, and pixels that are given what tokens are by the same scores, in another shape."""

    def __init__(self, *, direct: bool) -> None:
        super().__init__()
        self.direct = direct
        self.starts = nn.ModuleList(nn.Linear(3, WIDTH) for _ in range(2))
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4)) for _ in range(2))
        self.mlps = nn.ModuleList(nn.ModuleList(PreNorm(WIDTH).mlp for _ in range(2)) for _ in range(2))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens, pixels = self.starts[0](x[:, :2]), self.starts[1](x)
        for (query, key, value, given), (one, other) in zip(self.layers, self.mlps, strict=True):
            scores = query(tokens) @ key(pixels).mT
            tokens = tokens + scores.softmax(-1) @ value(pixels)
            tokens = tokens + one(F.layer_norm(tokens, (WIDTH,)))
            where = scores if self.direct else scores.tanh().square()
            pixels = pixels + where.softmax(-2).mT @ given(tokens)
            pixels = pixels + other(F.layer_norm(pixels, (WIDTH,)))
        return self.head(F.layer_norm(tokens, (WIDTH,)).mean(1) + F.layer_norm(pixels, (WIDTH,)).mean(1))


@pytest.mark.parametrize("direct", [True, False])
@torch.no_grad()
def test_streams_whose_layers_share_where_they_look(direct: bool) -> None:
    torch.manual_seed(0)
    net = Shared(direct=direct).eval().double()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    graph = jg.trace(net, x, dynamic=False)
    assert len(graph.streams) == 1
    assert len(graph.joins) == len(graph.stream.joins) == 8
    given = subject(graph, {"x": x}, {"x": torch.randn_like(x)}, torch.float64)
    assert check_values(given) >= 8
    check_slopes(given)


class Rounding(Both):
    """The same, of layers around another: h + f(norm(h + attention)), one after the other, or both at once."""

    def forward(self, state: State, condition: Tensor) -> State:
        factors = [made(F.silu(condition))[:, None].chunk(4, -1) for made in self.made]
        read = torch.cat([read(F.layer_norm(h, (WIDTH,))) for read, h in zip(self.read, state, strict=True)], 1)
        attended = F.scaled_dot_product_attention(*read.chunk(3, -1)).split([h.shape[1] for h in state], 1)
        after = []
        for h, made, given, mlp, (scale, gate, _, other) in zip(
            state, attended, self.given, self.mlp, factors, strict=True
        ):
            inner = F.layer_norm(h + gate * given(made), (WIDTH,)) * (1 + scale)
            after.append(h + other * mlp(inner))
        return tuple(after)


class Around(Two):
    """Blocks of such layers over both, and some over both side by side."""

    def __init__(self, layers: int, *, before: bool) -> None:
        super().__init__(laid=True)
        self.blocks = nn.ModuleList(Rounding(last=False) for _ in range(layers))
        self.over, self.beyond = PreNorm(WIDTH).mlp, PreNorm(WIDTH).mlp
        self.before = before

    def forward(self, picture: Tensor, text: Tensor, time: Tensor) -> Tensor:
        state: State = (self.start[0](picture), self.start[1](text))
        for block in self.blocks:
            state = block(state, self.condition(text, time))
        whole = torch.cat([*reversed(state)] if self.before else state, 1)
        for layer in (self.over, self.beyond):
            whole = whole + layer(F.layer_norm(whole + torch.tanh(self.single(whole)), (WIDTH,)))
        return self.head(whole[:, text.shape[1] :] if self.before else whole[:, : -text.shape[1]])


@pytest.mark.parametrize(
    ("layers", "before", "dynamic"), [(1, True, True), (1, False, False), (2, True, True), (2, True, False)]
)
def test_layers_around_others_over_streams_that_are_put_side_by_side(layers: int, before: bool, dynamic: bool) -> None:
    torch.manual_seed(0)
    net = Around(layers, before=before).eval().double()
    shapes = {"picture": (2, 4, 3), "text": (2, 5, 4), "time": (2, 2)}
    example, other = ({name: torch.randn(shape).double() for name, shape in shapes.items()} for _ in range(2))
    graph = jg.trace(net, **example, dynamic=dynamic)
    assert len(graph.streams) == 1
    outer = [join for join in graph.joins if join.depth == 0]
    assert [len(join.branches) for join in outer] == [*[2] * layers, 1, 1]
    assert [join.kind for join in outer] == ["identity"] * len(outer)
    assert len(graph.joins) == 2 * len(outer) + layers  # one inside of each branch
    assert check_values(subject(graph, example, other, torch.float64)) >= 4


class Halved(nn.Module):
    """Two streams with layers of their own, one after the other, which then read each other; one of them starts with a
    mean, or a share, of several values.
    """

    def __init__(self, share: float, number: int) -> None:
        super().__init__()
        self.share = share
        self.start, self.head = nn.ModuleList(nn.Linear(3, WIDTH) for _ in range(1 + number)), nn.Linear(WIDTH, 4)
        self.own = nn.ModuleList(PreNorm(WIDTH).mlp for _ in range(4))
        self.layers = nn.ModuleList(PreNorm(WIDTH).mlp for _ in range(4))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b, *others = (F.layer_norm(start(y if at else x), (WIDTH,)) for at, start in enumerate(self.start))
        for other in others:
            b = b + other
        b = self.share * b
        for layer in self.own[:2]:
            a = F.layer_norm(a + layer(a), (WIDTH,))
        for layer in self.own[2:]:
            b = F.layer_norm(b + layer(b), (WIDTH,))
        for one, other in zip(self.layers[::2], self.layers[1::2], strict=True):
            a, b = F.layer_norm(a + one(a * b), (WIDTH,)), F.layer_norm(b + other(a * b), (WIDTH,))
        return self.head(torch.cat([a, b], 1))


@pytest.mark.parametrize(("share", "number"), [(0.5, 2), (1 / 3, 3), (0.7, 2)])
def test_a_state_starts_with_what_its_first_layers_add_to(share: float, number: int) -> None:
    torch.manual_seed(0)
    net = Halved(share, number).eval().double()
    inputs, others = ({name: torch.randn(2, 4, 3).double() for name in "xy"} for _ in range(2))
    graph = jg.trace(net, **inputs, dynamic=share == 0.5)
    assert len(graph.streams) == 1
    assert {join.kind for join in graph.joins} == {"identity"}
    assert check_values(subject(graph, inputs, others, torch.float64)) >= 4


class TwoKinds(nn.Module):
    """Queries and words in one tensor: they attend together; feed-forward layers, and the norms after them, are each
    kind's own (a multiway transformer, normed after its sums). Queries may read something else besides.
    """

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.queries = nn.Parameter(torch.randn(1, 3, WIDTH))
        self.words, self.seen, self.head = nn.Linear(4, WIDTH), nn.Linear(4, WIDTH), nn.Linear(WIDTH, 2)
        self.attention = nn.ModuleList(nn.MultiheadAttention(WIDTH, 2, batch_first=True) for _ in range(4))
        self.mlps = nn.ModuleList(PreNorm(WIDTH).mlp for _ in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(8))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h, e = torch.cat([self.queries.expand(len(x), -1, -1), self.words(x)], 1), self.seen(e)
        for at in (0, 1):
            of_queries, of_words, after, crossed = self.norms[4 * at : 4 * at + 4]
            if self.way == "one norm":
                of_words = of_queries
            h = after(h + self.attention[at](h, h, h, need_weights=False)[0])
            q, t = h[:, :3], h[:, 3:]
            if self.way == "crossed":
                q = crossed(q + self.attention[2 + at](q, e, e, need_weights=False)[0])
            h = torch.cat([of_queries(q + self.mlps[at](q)), of_words(t + self.mlps[2 + at](t))], 1)
        return self.head(h[:, :3] if self.way == "queries" else h)


@pytest.mark.parametrize(
    ("way", "kinds"),
    [
        ("own norms", ["attn", "mlp", "mlp"] * 2),
        ("one norm", ["attn", "mlp", "mlp"] * 2),
        ("crossed", ["attn", "attn", "mlp", "mlp"] * 2),
        ("queries", ["attn", "mlp", "mlp", "attn", "mlp"]),
    ],
)
@torch.no_grad()
def test_tokens_of_two_kinds_are_one_stream_to_the_end(way: str, kinds: list[str]) -> None:
    torch.manual_seed(0)
    net = TwoKinds(way).eval().double()
    given = {"x": torch.randn(2, 5, 4, dtype=torch.float64), "e": torch.randn(2, 4, 4, dtype=torch.float64)}
    graph = jg.trace(net, inputs=given, dynamic=way == "crossed")
    assert [branch.kind for join in graph.joins for branch in join.branches] == kinds
    assert len(graph.streams) == 1
    assert {join.depth for join in graph.joins} == {0}
    others = {name: value.flip(0) for name, value in given.items()}
    assert distance(graph(**others), net(**others)) < EXACT
    assert check_values(subject(graph, given, others, torch.float64)) >= len(kinds)


class Twice(nn.Module):
    """A layer reads the sum that it is added to, and the code writes that sum down twice."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, WIDTH)) for _ in range(4)
        )
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, h: Tensor) -> Tensor:
        for at in (0, 2):
            d = self.layers[at](h)
            h = torch.add(h, d, alpha=self.alpha) + self.layers[at + 1](torch.add(h, d, alpha=self.alpha))
        return self.head(h)


@pytest.mark.parametrize("alpha", [1, 0.5])
@torch.no_grad()
def test_a_sum_that_is_written_twice_is_one_point(alpha: float) -> None:
    torch.manual_seed(0)
    net, h = Twice(alpha).eval().double(), torch.randn(2, 3, WIDTH, dtype=torch.float64)
    graph = jg.trace(net, h, dynamic=False)
    assert [(join.kind, join.depth) for join in graph.joins] == [("identity", 0)] * 4
    assert check_values(subject(graph, {"h": h}, {"h": h.flip(0)}, torch.float64)) >= 4
