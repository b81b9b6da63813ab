"""Algorithm 1 against its formula, worked out on plain functions of small nets of every shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jetgraph as jg

WIDTH = 6


def coefficients(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, order: int, number: int = 64) -> list[Tensor]:
    """Taylor coefficients of t ↦ f(x + t v), by Cauchy's integral over a circle in which f is analytic."""
    radius = 0.05 * float(x.norm() / v.norm().clamp_min(1e-30))
    turns = torch.exp(2j * math.pi * torch.arange(number, dtype=torch.float64) / number)
    around = torch.stack([f(x + radius * turn * v) for turn in turns])
    return [torch.fft.fft(around, dim=0)[j].real / (number * radius**j) for j in range(order + 1)]


def jet(f: Callable[[Tensor], Tensor], x: Tensor, h: Tensor, order: int) -> Tensor:
    """J^k f(x)(h)."""
    if order == 1:
        return sum(torch.func.jvp(f, (x,), (h - x,)))  # type: ignore[return-value]
    return f(x) if order == 0 else sum(coefficients(f, x, h - x, order))  # type: ignore[return-value]


def jet_at_matched_length(f: Callable[[Tensor], Tensor], x: Tensor, h: Tensor, order: int) -> Tensor:
    """J^k f(s x)(h) with s = ⟨h, h⟩ / ⟨x, h⟩ by token; of order 0 for a token that points away from h."""
    along = (x * h).sum(-1, keepdim=True)
    near = along > 0
    start = torch.where(near, (h * h).sum(-1, keepdim=True) / torch.where(near, along, 1), 1) * x
    return jet(f, start, torch.where(near, h, start), order)


def norm(x: Tensor) -> Tensor:
    return x * ((x * x).mean(-1, keepdim=True) + 1e-3) ** -0.5


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 5), nn.Linear(5, WIDTH, bias=False)

    def forward(self, x: Tensor, more: Tensor | float = 0.0) -> Tensor:
        weight, bias = self.up.weight.to(x.dtype), self.up.bias.to(x.dtype)
        return torch.tanh(norm(x) @ weight.T + bias + more) @ self.down.weight.to(x.dtype).T


class Base(nn.Module):
    """Points of a stream of two steps or three; a subclass says how each is made of those before."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = Branch(), Branch(), Branch()
        self.stem, self.head = nn.Linear(4, WIDTH, bias=False), nn.Linear(WIDTH, 3)

    def example(self) -> Tensor:
        return torch.randn(2, 3, 4, dtype=torch.float64)

    def points(self, x: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def decode(self, h: Tensor) -> Tensor:
        return self.nu(h) @ self.head.weight.T + self.head.bias

    def nu(self, h: Tensor) -> Tensor:
        return norm(h)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.points(x)[-1])


class Chain(Base):
    def points(self, x: Tensor) -> list[Tensor]:
        h = [self.stem(x)]
        h.append(h[0] + self.first(h[0]))
        h.append(h[1] + self.second(h[1]))
        return h


class PostNorm(Base):
    def points(self, x: Tensor) -> list[Tensor]:
        h = [self.stem(x)]
        h.append(h[0] + self.first(h[0]))
        h.append(norm(h[1]))
        h.append(h[2] + self.second(h[2]))
        return h


class Parallel(Base):
    def points(self, x: Tensor) -> list[Tensor]:
        h = [self.stem(x)]
        h.append(h[0] + self.first(h[0]) + self.second(h[0]))
        h.append(h[1] + self.third(h[1]))
        return h


class Crossed(Base):
    """A second stream, whose end the branches of the first read besides."""

    def points(self, x: Tensor) -> list[Tensor]:
        h = [self.stem(x)]
        memory = self.memory(x)
        h.append(h[0] + self.first(h[0], memory))
        h.append(h[1] + self.second(h[1], memory))
        return h

    def memory(self, x: Tensor) -> Tensor:
        other = torch.cos(self.stem(x))
        return (other + self.third(other)).mean(-1, keepdim=True)


class Sources(Base):
    """Tokens and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(9, WIDTH), nn.Embedding(9, WIDTH)

    def example(self) -> Tensor:
        return torch.randint(0, 9, (2, 3))

    def points(self, x: Tensor) -> list[Tensor]:
        h = [self.tokens(x) + self.places(torch.arange(x.shape[1]))]
        h.append(h[0] + self.first(h[0]))
        h.append(h[1] + self.second(h[1]))
        return h


class LongSkip(Base):
    """The last branch reads the start, which is added again."""

    def points(self, x: Tensor) -> list[Tensor]:
        h = [self.stem(x)]
        h.append(h[0] + self.first(h[0]))
        h.append(h[1] + self.second(h[1]) + self.third(h[0]) + 0.5 * h[0])
        return h


@dataclass(frozen=True)
class Made:
    net: Any
    graph: jg.ResidualGraph
    x: Tensor
    points: list[Tensor]


@pytest.fixture(scope="module")
def made() -> Callable[[type[Base]], Made]:
    known: dict[type[Base], Made] = {}

    def make(kind: type[Base]) -> Made:
        if kind not in known:
            torch.manual_seed(len(known))
            net = kind().double().eval()
            x = net.example()
            with torch.no_grad():
                known[kind] = Made(net, jg.trace(net, x, dynamic=False), x, net.points(x))
        return known[kind]

    return make


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))


Function = Callable[[Any, Made], Callable[[Tensor], Tensor]]


def cases() -> list[Any]:
    """Net, place, the point that is read, the function, and centres with their values by hand."""

    def start(m: Made) -> Tensor:
        return m.points[0]

    def added(net: type[Base]) -> Mapping[str, Callable[[Made], Tensor]]:
        return {"embed": start, "L0.mlp": lambda m: m.net.first(m.points[0])}

    return [
        (Chain, "L1.mlp", 1, lambda m: m.net.second, added(Chain)),
        (Chain, "h2", 1, lambda m: m.net.second, added(Chain)),
        (Chain, "L0", 0, lambda m: m.net.first, {"embed": start}),
        (PostNorm, "L1.mlp", 2, lambda m: m.net.second, {"L0.act": lambda m: m.points[2]}),
        (PostNorm, "L0.act", 1, lambda m: norm, added(PostNorm)),
        (PostNorm, "h3", 2, lambda m: m.net.second, {"h2": lambda m: m.points[2]}),
        (Parallel, "L0.mlp", 0, lambda m: m.net.first, {"embed": start}),
        (Parallel, "h1", 0, lambda m: lambda v: m.net.first(v) + m.net.second(v), {"embed": start}),
        (
            Crossed,
            "stream2.L1.mlp",
            1,
            lambda m: lambda v: m.net.second(v, m.net.memory(m.x)),
            {"embed": start, "stream2.L0.mlp": lambda m: m.net.first(m.points[0], m.net.memory(m.x))},
        ),
        (Sources, "L1.mlp", 1, lambda m: m.net.second, {"embed": lambda m: m.net.tokens(m.x), "h0": start}),
        (LongSkip, "L1.mlp.2", 0, lambda m: m.net.third, {"embed": start}),
        (LongSkip, "L1.mlp", 1, lambda m: m.net.second, added(LongSkip)),
    ]


@pytest.mark.parametrize(("order", "scale"), [(0, "matched"), (1, "none"), (3, "none"), (3, "matched")])
@pytest.mark.parametrize(
    ("kind", "at", "reads", "function", "named"), cases(), ids=lambda one: one if isinstance(one, str) else ""
)
@torch.no_grad()
def test_terms_and_remainder_of_algorithm_1(
    kind: type[Base], at: str, reads: int, function: Any, named: Mapping[str, Any], order: int, scale: Any, made: Any
) -> None:
    """w_i J^k f(x_i)(h) at the stream, beside the centres where the place has a skip; δ is what is missing."""
    one = made(kind)
    f, h = function(one), one.points[reads]
    centres = {name: value(one) for name, value in named.items()}
    # Far from the others, and from the stream.
    centres["own"] = torch.full_like(h, 0.3) + 0.1 * torch.arange(WIDTH, dtype=h.dtype)
    given = {name: name if name != "own" else value for name, value in centres.items()}
    weights = {name: float(number) for number, name in enumerate(centres, 1)}
    found = jg.jet_expand(one.graph, one.x, at=at, centres=given, order=order, weights=weights, scale=scale)
    assert (found.scale == "matched") == (scale == "matched" and order > 0)
    total = sum(weights.values())
    sites = {site.alias for site in one.graph.outline.sites()}
    hop = next(iter(found.terms)).rpartition(" > ")[2] if at in sites else list(found.terms)[-1].rpartition(" > ")[2]
    around = jet_at_matched_length if found.scale == "matched" else jet
    expected = {f"{n} > {hop}": weights[n] / total * around(f, x, h, order) for n, x in centres.items()}
    away = sum(int(((x * h).sum(-1) <= 0).sum()) for x in centres.values())
    assert found.unmatched == ((away, h[..., 0].numel() * len(centres)) if found.scale == "matched" else (0, 0))
    beside = at.startswith("h") or at == "L0"
    expected |= centres if beside else {}
    assert set(found.terms) == set(expected)
    for name, value in expected.items():
        close(found.terms[name], value)
    true = one.points[reads + 1] if beside else f(h)
    close(found.value, true)
    close(found.remainder, true - sum(expected.values()))


@pytest.mark.parametrize("kind", [Chain, PostNorm, Sources])
@torch.no_grad()
def test_the_decoder_and_groups_and_blocks(kind: type[Base], made: Any) -> None:
    """Logits of jets of ν, the unembedding's bias apart; optimal weights are no worse than any others."""
    one = made(kind)
    last = one.points[-1]
    found = jg.jet_expand(one.graph, one.x, at="logits", centres=["components"], order=1, scale="none")
    parts = found.centres
    close(torch.stack(list(parts.values())).sum(0), last)
    for name, x in parts.items():
        close(found.terms[f"{name} > logits~1"], jet(one.net.nu, x, last, 1) @ one.net.head.weight.T / len(parts))
    matched = jg.jet_expand(one.graph, one.x, at="logits", centres=["components"], order=1)
    for name, x in parts.items():
        value = jet_at_matched_length(one.net.nu, x, last, 1) @ one.net.head.weight.T
        close(matched.terms[f"{name} > logits~1"], value / len(parts))
    close(found.terms["bias"], one.net.head.bias.expand_as(found.value))
    close(found.value, one.net(one.x))
    best = jg.jet_expand(
        one.graph, one.x, at="output", centres=["components"], order=1, weights="optimal", scale="none"
    )
    rows = [(each.remainder**2).sum(-1) for each in (best, found)]
    assert bool((rows[0] <= rows[1] + 1e-12).all())
    stacked = torch.stack(list(best.weights.values()), -1)
    assert float((stacked.sum(-1) - 1).abs().max()) < 1e-9
    again = jg.jet_expand(one.graph, one.x, at="logits", centres=["components"], order=1, weights=stacked, scale="none")
    close(again.remainder, best.remainder)


@torch.no_grad()
def test_groups_are_sums(made: Any) -> None:
    one = made(Chain)
    groups = {"ends": ["embed", "L1.mlp"], "middle": "L0"}
    found = jg.jet_expand(one.graph, one.x, at="logits", centres=groups, order=0)
    first, second = one.net.first(one.points[0]), one.net.second(one.points[1])
    close(found.centres["ends"], one.points[0] + second)
    close(found.centres["middle"], first)
    whole = jg.jet_expand(one.graph, one.x, at="logits", centres=["blocks"], order=0)
    assert list(whole.centres) == ["embed", "L0", "L1"]
    nested = jg.jet_expand(one.graph, one.x, at="logits", centres=["embed", ["L0.mlp", "L1"]], order=0)
    close(nested.centres["L0.mlp + L1"], first + second)


@torch.no_grad()
def test_terms_of_one_place_are_centres_of_the_next(made: Any) -> None:
    """The worked example of the paper in two calls, and the centres of Algorithm 2 by their names."""
    one = made(Chain)
    inner = jg.jet_expand(one.graph, one.x, at="h2", centres=["embed", "L0.mlp"], order=1, scale="none")
    outer = jg.jet_expand(one.graph, one.x, at="logits", centres=inner.terms, order=1, scale="none")
    exhaustive = jg.compile(jg.expand(one.graph, 1, orders="together", scale="none"))(one.x)
    close(outer.remainder, exhaustive.remainder)
    assert len(outer.centres) == 4
    named = jg.jet_expand(one.graph, one.x, at="logits", centres=["** > L1.mlp", "embed"], order=1, scale="none")
    assert list(named.centres) == ["embed > L1.mlp~1", "embed > L0.mlp~1 > L1.mlp~1", "embed"]
    close(named.centres["embed > L0.mlp~1 > L1.mlp~1"], inner.terms["L0.mlp > L1.mlp~1"])


def test_a_block_of_several_steps_is_one_function() -> None:
    """γ(x) = a(x) + b(x + a(x)), as a jet of the whole."""

    class Blocks(Base):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.ModuleDict({"a": Branch(), "b": Branch()}) for _ in range(2)])

        def points(self, x: Tensor) -> list[Tensor]:
            h = [self.stem(x)]
            for layer in self.layers:
                for name in ("a", "b"):
                    h.append(h[-1] + layer[name](h[-1]))  # type: ignore[index]
            return h

    torch.manual_seed(0)
    net, x = Blocks().double().eval(), torch.randn(2, 3, 4, dtype=torch.float64)
    graph = jg.trace(net, x, dynamic=False)
    with torch.no_grad():
        points = net.points(x)
        layer: Any = net.layers[1]

        def gamma(v: Tensor) -> Tensor:
            return layer["a"](v) + layer["b"](v + layer["a"](v))

        found = jg.jet_expand(graph, x, at="L1", centres=["embed", "L0"], order=3)
        for name, value in {"embed": points[0], "L0": points[2] - points[0]}.items():
            close(found.terms[name], value)
            close(found.terms[f"{name} > L1~3"], jet(gamma, value, points[2], 3) / 2)
        close(found.value, points[4])
        assert (found.scale, found.bound) == (
            "none",
            "L1.mlp.2 reads what is added on the way, whose length stays, beside the stream",
        )
        assert f"plain centres ({found.bound})" in found.title


class Side(Base):
    """A block of two steps whose branches both read what comes in: as long as one likes; the third reads the first."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"a": Branch(), "b": Branch()}) for _ in range(2)])

    def points(self, x: Tensor) -> list[Tensor]:
        h = [self.stem(x)]
        for layer in self.layers:
            start = h[-1]
            h.append(start + layer["a"](start))  # type: ignore[index]
            h.append(h[-1] + layer["b"](start))  # type: ignore[index]
        return h


@torch.no_grad()
def test_a_block_of_several_steps_that_allows_a_scale(made: Any) -> None:
    """Where all its branches read the point before it, the block is matched; order 0 tells that it may be."""
    one = made(Side)
    layer, points = one.net.layers[1], one.points

    def gamma(v: Tensor) -> Tensor:
        return layer["a"](v) + layer["b"](v)

    found = jg.jet_expand(one.graph, one.x, at="L1", centres=["embed", "L0"], order=3)
    assert found.scale == "matched"
    for name, value in {"embed": points[0], "L0": points[2] - points[0]}.items():
        # Up to the norms' ε.
        assert float((gamma(3 * value) - gamma(value)).norm()) < 0.05 * float(gamma(value).norm())
        close(found.terms[name], value)
        close(found.terms[f"{name} > L1~3"], jet_at_matched_length(gamma, value, points[2], 3) / 2)
    close(found.value, points[4])


@pytest.mark.parametrize(("at", "weights"), [("L1.mlp", "uniform"), ("logits", "optimal"), ("L1", {"embed": 9.0})])
@torch.no_grad()
def test_the_order_is_the_lowest_that_leaves_little(at: str, weights: Any, made: Any) -> None:
    """Of all orders by themselves; where none leaves little enough, the one that leaves least."""
    one = made(Chain)
    options = {"at": at, "centres": ["embed", "L0.mlp"], "weights": weights}
    left = [jg.jet_expand(one.graph, one.x, order=order, **options).relative for order in range(9)]
    for tolerance in (2 * left[0], (left[0] * min(left)) ** 0.5, min(left) / 2):
        found = jg.jet_expand(one.graph, one.x, order="auto", tolerance=tolerance, **options)
        within = [order for order, value in enumerate(left) if value <= tolerance]
        assert found.order == (within[0] if within else left[: len(found.chosen.left)].index(min(left)))
        assert found.relative == left[found.order]
        assert found.chosen.reached == bool(within)
        assert ("the lowest order within" if within else "above") in found.title
    assert jg.jet_expand(one.graph, one.x, order="auto", **options).chosen.tolerance == 0.01


def test_printing_says_what_is_left(made: Any) -> None:
    one = made(Chain)
    found = jg.jet_expand(one.graph, one.x, at="h2", centres=["embed", "L0.mlp"])
    text = repr(found)
    assert "at h2: 2 centres, 4 terms, remainder" in text
    assert "embed > L1.mlp~1" in text
    assert "δ" in text
    assert found.columns()["weight"].count(0.5) == 2
    assert len(found.figure().axes) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"at": "L9.mlp"}, "no place.*L1.mlp"),
        ({"at": "*.mlp"}, "names 2 sites"),
        ({"at": "h0"}, "no point that a step leads to"),
        ({"at": 7}, "h1 to h2"),
        ({"centres": []}, "names none"),
        ({"centres": ["embd"]}, "did you mean 'embed'"),
        ({"centres": ["h2"]}, "h2 comes after h1"),
        ({"centres": ["L1.mlp"]}, "nothing of what h1 consists of"),
        ({"centres": ["embed", "embed"]}, "more than once"),
        ({"centres": {"a": torch.zeros(2, 2)}}, "the shape of h1"),
        ({"centres": [torch.zeros(2, 2)]}, "has no name"),
        ({"centres": {"a": []}}, "at least one member"),
        ({"order": -1}, "no order"),
        ({"order": "all"}, "or 'auto'"),
        ({"tolerance": 0.1}, "is for order='auto'"),
        ({"order": "auto", "tolerance": 0.0}, "no share"),
        ({"scale": "long"}, "scale='long' is unknown"),
        ({"weights": "best"}, "'uniform', 'optimal'"),
        ({"weights": {"embd": 1.0}}, "the centres are embed"),
        ({"weights": {"embed": 0.0}}, "all centres are zero"),
        ({"weights": torch.tensor([0.5, 0.5])}, r"give \[1\]"),
        ({"weights": torch.tensor([0.5])}, "add up to 1"),
        ({"at": "h2", "weights": "optimal"}, "for a site or the decoder"),
    ],
)
def test_what_does_not_fit_is_told(options: dict[str, Any], says: str, made: Any) -> None:
    one = made(Chain)
    with pytest.raises(jg.JetGraphError, match=says):
        jg.jet_expand(one.graph, one.x, **{"at": "L1.mlp", "centres": ["embed"], **options})
