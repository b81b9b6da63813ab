"""Frozen evaluation: f(h) = A_h h + b_h with the gates held at h."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from numpy.polynomial.legendre import leggauss
from torch import Tensor, nn

from jetgraph.algebra.rules import Freeze
from jetgraph.errors import JetGraphError
from jetgraph.jets import Series, evaluate
from jetgraph.jets.frozen import leaves_constant
from tests.jets.graphs import Graph

ALL = Freeze()
D, HEADS, HIDDEN = 8, 2, 12
W = torch.ones(6, 6, dtype=torch.float64)


class Gpt2Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, HIDDEN), nn.Linear(HIDDEN, D)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(self.ln_1(x)).split(D, dim=-1))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


def gpt2_by_hand(block: Gpt2Block, h: Tensor, t: Tensor) -> Tensor:
    """A_h t, written out: norms divide by h's deviation, attention uses h's pattern, gelu multiplies by Φ of h's."""

    def norm(norm: nn.LayerNorm, at: Tensor, x: Tensor) -> Tensor:
        return (
            (x - x.mean(-1, keepdim=True)) / torch.sqrt(at.var(-1, correction=0, keepdim=True) + norm.eps) * norm.weight
        )

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    q, k, _ = (heads(part) for part in block.qkv(block.ln_1(h)).split(D, dim=-1))
    scores = q @ k.transpose(-1, -2) / math.sqrt(D // HEADS)
    pattern = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf).softmax(-1)
    values = heads(norm(block.ln_1, h, t) @ block.qkv.weight[2 * D :].T)
    middle = t + (pattern @ values).transpose(1, 2).flatten(2) @ block.out.weight.T
    at = h + block.attend(h)
    inner = block.up(block.ln_2(at))
    held = 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    return middle + (norm(block.ln_2, at, middle) @ block.up.weight.T * held) @ block.down.weight.T


class LlamaBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(2, D) + 0.5)
        self.q, self.k, self.v, self.o = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(D, HIDDEN, bias=False), nn.Linear(D, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, D, bias=False)

    def norm(self, x: Tensor, place: int) -> Tensor:
        return self.weight[place] * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

    def pattern(self, x: Tensor) -> Tensor:
        y = self.norm(x, 0)
        scores = torch.matmul(self.q(y), self.k(y).transpose(1, 2)) / math.sqrt(D)
        return F.softmax(scores + torch.full(scores.shape[-2:], -1e9, dtype=x.dtype).triu(1), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.o(torch.matmul(self.pattern(x), self.v(self.norm(x, 0))))
        y = self.norm(x, 1)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def llama_by_hand(block: LlamaBlock, h: Tensor, t: Tensor) -> Tensor:
    """A_h t, written out: the gate σ and silu(gate) are h's."""

    def norm(at: Tensor, x: Tensor, place: int) -> Tensor:
        return block.weight[place] * x / torch.sqrt(at.square().mean(-1, keepdim=True) + 1e-6)

    middle = t + block.pattern(h) @ (norm(h, t, 0) @ block.v.weight.T) @ block.o.weight.T
    at = h + block.o(block.pattern(h) @ block.v(block.norm(h, 0)))
    opened = F.silu(block.gate(block.norm(at, 1)))
    return middle + (opened * (norm(at, middle, 1) @ block.up.weight.T)) @ block.down.weight.T


def _applied(function: Graph | Callable[..., Any], h: Tensor, t: Tensor, frozen: Freeze = ALL) -> Any:
    graph = function if isinstance(function, Graph) else Graph(function, h)
    value = evaluate(graph.nodes, graph.values(Series.variate(h, t, 1)), 1, frozen=frozen)[graph.result]
    return value


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(("kind", "by_hand"), [(Gpt2Block, gpt2_by_hand), (LlamaBlock, llama_by_hand)])
def test_block_agrees_with_its_linearisation_by_hand(kind: Callable[[], Any], by_hand: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    block = kind().double()
    h = _random(2, 4, D)
    graph = Graph(block, h)

    def direction(t: Tensor) -> Tensor:
        value = evaluate(graph.nodes, graph.values(Series.variate(h, t, 1)), 1, frozen=ALL)[graph.result]
        torch.testing.assert_close(value.coefficient(0), block(h))
        return value.coefficient(1)

    a, b = _random(2, 4, D), _random(2, 4, D)
    torch.testing.assert_close(direction(a), by_hand(block, h, a))
    torch.testing.assert_close(direction(a + 3 * b), direction(a) + 3 * direction(b))
    if kind is LlamaBlock:
        # No biases, so b_h = f(h) - A_h h is 0.
        torch.testing.assert_close(direction(h), block(h))


def _halves(h: Tensor, *functions: Callable[[Tensor], Tensor]) -> Tensor:
    """The slope of f g with each held for one half."""
    (f, g), zero = (function(h) for function in functions), torch.zeros_like(h)
    rises = [(value - function(zero)) / h for value, function in zip((f, g), functions, strict=True)]
    return (rises[0] * g + f * rises[1]) / 2


@pytest.mark.parametrize(
    ("function", "slope"),
    [
        (F.relu, lambda h: (h > 0).double()),
        (F.gelu, lambda h: 0.5 * (1 + torch.erf(h / math.sqrt(2)))),
        (lambda x: F.gelu(x, approximate="tanh"), lambda h: F.gelu(h, approximate="tanh") / h),
        (F.silu, torch.sigmoid),
        (F.mish, lambda h: torch.tanh(F.softplus(h))),
        (F.hardswish, lambda h: (h + 3).clamp(0, 6) / 6),
        (F.leaky_relu, lambda h: torch.where(h > 0, 1.0, 0.01)),
        (F.elu, lambda h: (h > 0).double()),
        # Read by themselves, what is held is a line through 0.
        (torch.tanh, lambda h: h.tanh() / h),
        (torch.sigmoid, lambda h: (h.sigmoid() - 0.5) / h),
        (torch.exp, lambda h: h.expm1() / h),
        (lambda x: 30 * torch.tanh(x / 30), lambda h: 30 * torch.tanh(h / 30) / h),
        (lambda x: torch.sigmoid(torch.tanh(x)), lambda h: (h.tanh().sigmoid() - 0.5) / h),
        (lambda x: x + torch.exp(-x), lambda h: 1 + (-h).expm1() / h),
        (lambda x: x.abs().sqrt(), lambda h: h.abs().sqrt() / h),
        (lambda x: (1 + x.square().sum()).log() * x, lambda h: (1 + h.square().sum()).log().expand_as(h)),
        (lambda x: torch.stack(x.tanh().chunk(2)).flatten(), lambda h: h.tanh() / h),
        # Where it multiplies, divides or selects, it is a constant; of two that are alike each is held for one half.
        (lambda x: torch.sigmoid(3 * x).clone() * x, lambda h: torch.sigmoid(3 * h)),
        (lambda x: torch.tanh(x) * torch.sigmoid(x), lambda h: _halves(h, torch.tanh, torch.sigmoid)),
        # Unless one of them has more behind it.
        (lambda x: x.tanh() * F.silu(x).tanh(), lambda h: h.tanh() / h * F.silu(h).tanh()),
        (lambda x: torch.where(x > 0.1, x, 2 * x), lambda h: torch.where(h > 0.1, 1.0, 2.0).double()),
        (lambda x: x * (x > 0.1), lambda h: (h > 0.1).double()),
        (lambda x: x.masked_fill(x < 0, 0.0), lambda h: (h > 0).double()),
        (lambda x: x * torch.sigmoid(2 * x), lambda h: torch.sigmoid(2 * h)),
        (lambda x: 0.5 * x * (1 + torch.tanh(x + 0.1 * x**3)), lambda h: 0.5 * (1 + torch.tanh(h + 0.1 * h**3))),
        (lambda x: torch.einsum("i,i->i", x, torch.sigmoid(x)), torch.sigmoid),
        # What was held counts for the products that it is in.
        (lambda x: x * torch.sigmoid(2 * x) * x, lambda h: h * torch.sigmoid(2 * h)),
        # What is held need not be affine.
        (lambda x: x * F.silu(x * x), lambda h: F.silu(h * h)),
        (lambda x: F.relu(x).square(), F.relu),
        (lambda x: (lambda r: r * r)(F.relu(x)), F.relu),
        (lambda x: F.relu(x) ** 2, F.relu),
        (
            lambda x: F.silu(F.relu(x)) * F.relu(x),
            lambda h: F.silu(F.relu(h)) * (h > 0),
        ),
        # Of two with as many gates behind them, it is the one that more layers lead to: the spatial gate of a gMLP.
        (lambda x: F.silu(x) * F.linear(F.silu(x), W), lambda h: torch.sigmoid(h) * (W @ F.silu(h))),
        (
            lambda x: F.conv1d(F.relu(x)[None], W[:1, None, :3], padding=1)[0] * F.relu(x),
            lambda h: F.conv1d(F.relu(h)[None], W[:1, None, :3], padding=1)[0] * (h > 0),
        ),
        (lambda x: x / (1 + x.abs()), lambda h: 1 / (1 + h.abs())),
        (lambda x: x * torch.rsqrt((x * x).sum() + 1), lambda h: torch.rsqrt((h * h).sum() + 1).expand_as(h)),
        (lambda x: torch.log_softmax(x, -1), torch.ones_like),
        (lambda x: torch.view_as_real(torch.polar(x, x.sin())).sum(-1), lambda h: h.sin().cos() + h.sin().sin()),
        (lambda x: torch.complex(x, 2 * x).abs(), lambda h: h.sign() * math.sqrt(5)),
        (lambda x: x * x.var(), lambda h: h.var().expand_as(h)),
        (lambda x: x / torch.linalg.vector_norm(x), lambda h: (1 / torch.linalg.vector_norm(h)).expand_as(h)),
    ],
)
def test_what_is_held(function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    h, t = _random(6), _random(6)
    graph = Graph(function, h)
    value = _applied(graph, h, t)
    direction = value.coefficient(1) if isinstance(value, Series) else torch.zeros_like(h)
    torch.testing.assert_close(direction, slope(h) * t)
    # What h itself leaves of the value is a constant, of which the graph tells without numbers.
    rest = function(h) - slope(h) * h
    assert leaves_constant(graph.nodes, graph.inputs[0]) == bool(rest.abs().max() > 1e-8)


def test_recurrences_are_frozen_as_what_they_consist_of() -> None:
    """Cells and layers against the same written out in operators, gates by gates, over three positions."""
    torch.manual_seed(0)
    weights = [_random(4 * D, D) / 3, _random(4 * D, D) / 3, _random(4 * D), _random(4 * D)]
    start = torch.zeros(2, D, dtype=torch.float64)

    def lstm(x: Tensor, step: Callable[..., Any]) -> Tensor:
        state, made = (start, start), []
        for one in x.unbind(1):
            state = step(one, state)
            made.append(state[0])
        return torch.stack(made, 1)

    def lstm_step(x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        read, kept = F.linear(x, weights[0], weights[2]), F.linear(state[0], weights[1], weights[3])
        i, f, g, o = (kept + read).chunk(4, 1)
        cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(cell), cell

    def gru(x: Tensor) -> Tensor:
        w = [weight[: 3 * D] for weight in weights]
        read, kept = F.linear(x, w[0], w[2]).chunk(3, 1), F.linear(x.tanh(), w[1], w[3]).chunk(3, 1)
        reset, update = torch.sigmoid(kept[0] + read[0]), torch.sigmoid(kept[1] + read[1])
        new = torch.tanh(read[2] + kept[2] * reset)
        return (x.tanh() - new) * update + new

    def rnn(x: Tensor) -> Tensor:
        w = [weight[:D] for weight in weights]
        return torch.tanh(F.linear(x, w[1], w[3]) + F.linear(x, w[0], w[2]))

    aten, fewer = torch.ops.aten, [weight[: 3 * D] for weight in weights]
    pairs: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor]] = [
        (
            lambda x: lstm(x, lambda one, state: aten.lstm_cell(one, state, *weights)),
            lambda x: lstm(x, lstm_step),
            _random(2, 3, D),
        ),
        (
            lambda x: aten.lstm(x, [start[None], start[None]], weights, True, 1, 0.0, False, False, True)[0],
            lambda x: lstm(x, lstm_step),
            _random(2, 3, D),
        ),
        (lambda x: aten.gru_cell(x, x.tanh(), *fewer), gru, _random(2, D)),
        (lambda x: aten.rnn_tanh_cell(x, x, *(weight[:D] for weight in weights)), rnn, _random(2, D)),
    ]
    for whole, written, h in pairs:
        t = _random(*h.shape)
        found, expected = _applied(whole, h, t), _applied(written, h, t)
        assert expected.coefficient(1).abs().max() > 0.1
        torch.testing.assert_close(found.stacked(), expected.stacked())
        graph = Graph(whole, h)
        assert leaves_constant(graph.nodes, graph.inputs[0])
        with pytest.raises(JetGraphError, match="neither affine nor held"):
            _applied(whole, h, t, Freeze(gates=("norm",)))


@pytest.mark.parametrize(
    ("function", "gates", "culprit"),
    [
        (lambda x: F.layer_norm(x, (6,)), ("attention", "gate"), "layer_norm"),
        (F.gelu, ("norm", "attention"), "gelu"),
        (F.relu, ("norm", "attention"), "relu"),
        (lambda x: torch.softmax(x, -1), ("norm", "gate"), "softmax"),
        (lambda x: x * x, ("norm", "attention", "gate"), "mul"),
        (lambda x: x[:3] * x[3:], ("norm", "attention", "gate"), "mul"),
        (lambda x: (x * x).tanh() + x * x, ("norm", "attention", "gate"), "mul"),
        (lambda x: F.silu(x) * F.relu(x), ("norm", "attention", "gate"), "mul"),
        (lambda x: F.silu(x) * (F.relu(x) * W[0] * 2), ("norm", "attention", "gate"), "mul"),
        (lambda x: x * F.linear(x, W), ("norm", "attention", "gate"), "mul"),
        (lambda x: x**3, ("norm", "attention", "gate"), "pow"),
        (lambda x: torch.tanh(x * x), ("norm", "attention", "gate"), "mul"),
        (lambda x: torch.tanh(F.relu(x) * F.relu(x).flip(0)), ("norm", "attention", "gate"), "mul"),
        (lambda x: x.sign(), ("norm", "attention", "gate"), "sign"),
        (lambda x: W[x.argmax()], ("norm", "attention", "gate"), "argmax"),
        (lambda x: x * (x > 0), ("norm", "attention"), "gt"),
        (lambda x: x.prod(), ("norm", "attention", "gate"), "prod"),
        (lambda x: F.layer_norm(x, (6,)) * x, ("norm", "attention", "gate"), "mul"),
        (lambda x: torch.addcmul(torch.sigmoid(x), x, 2 * x), ("norm", "attention", "gate"), "addcmul"),
    ],
)
def test_what_is_left_must_be_affine(function: Callable[[Tensor], Tensor], gates: Any, culprit: str) -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    with pytest.raises(JetGraphError, match=f"not affine.*{culprit}.*module '0'") as caught:
        _applied(nn.Sequential(Named()), _random(6), _random(6), Freeze(gates))
    others = [repr(gate) for gate in ALL.gates if gate not in gates]
    said = str(caught.value)
    assert (f"; add {others[0]}" if others else "; take a jet") in said or "; hold each of its factors" in said


def test_affine_part_is_left_alone_whatever_is_held() -> None:
    h, t = _random(3, 4), _random(3, 4)
    weight = _random(4, 4)
    graph = Graph(lambda x: F.linear(x, weight).cumsum(0) - x / 2 + 1, h)
    for series in (Series.variate(h, t, 1), Series.of_rows([h, t], 1)):
        apart = series.apart
        value = evaluate(graph.nodes, graph.values(series), 1, frozen=Freeze(()))[graph.result]
        torch.testing.assert_close(value.coefficient(1), (t @ weight.T).cumsum(0) - t / 2)
        assert value.apart or not apart


def test_a_mask_of_a_gated_value_is_no_gate() -> None:
    """What it selects has no gate behind it, so that of two factors the gate is the other."""
    torch.manual_seed(0)
    h, t = _random(6), _random(6)
    value = _applied(lambda x: torch.where(F.silu(x) > 0.1, x, 2 * x) * F.silu(x), h, t)
    torch.testing.assert_close(value.coefficient(1), torch.where(F.silu(h) > 0.1, 1, 2) * t * F.silu(h))


def test_a_poisoned_value_that_nobody_keeps_is_dropped() -> None:
    h, t = _random(3, 4), _random(3, 4)
    graph = Graph(lambda x: x / (2 + (x * x).tanh()), h)
    values = evaluate(graph.nodes, graph.values(Series.variate(h, t, 1)), 1, frozen=ALL)
    assert graph.node("mul") not in values
    assert torch.equal(values[graph.node("tanh")], (h * h).tanh())


@pytest.mark.parametrize(
    ("function", "at_zero"),
    [(lambda x: torch.softmax(x, -1), 1 / 6), (lambda x: torch.logsumexp(x, -1), math.log(6))],
)
def test_partitions_read_by_themselves_are_secants_from_zero(
    function: Callable[[Tensor], Tensor], at_zero: float
) -> None:
    torch.manual_seed(0)
    h, t = 3 * _random(6), _random(6)
    graph = Graph(function, h)
    torch.testing.assert_close(_applied(graph, h, h).coefficient(1), function(h) - at_zero)
    nodes, shares = (torch.from_numpy(array) for array in leggauss(40))
    steps = [torch.func.jvp(function, ((node + 1) / 2 * h,), (t,))[1] for node in nodes]
    mean = sum(share / 2 * step for share, step in zip(shares, steps, strict=True))
    torch.testing.assert_close(_applied(graph, h, t).coefficient(1), mean, rtol=1e-6, atol=1e-6)
    shift = torch.ones_like(h)
    torch.testing.assert_close(
        _applied(graph, h, t + shift).coefficient(1),
        _applied(graph, h, t).coefficient(1) + (1.0 if function(h).dim() == 0 else 0.0),
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.relu().sqrt(),
        lambda x: x.relu() ** (1 / 3),
        lambda x: x.relu() ** 1.5,
        lambda x: (x.relu() * 1e-9).sqrt(),
        lambda x: x.relu().square().sum(-1).sqrt(),
        lambda x: x.relu().norm(dim=-1),
        lambda x: x.relu().std(-1),
        lambda x: x.relu().var(-1),
    ],
)
def test_lines_through_zero_where_there_is_no_derivative(function: Callable[[Tensor], Tensor]) -> None:
    """What is 0 at 0 is its line at the centre, at 0 itself and near it too; there the line is flat."""
    h = torch.cat([_random(2, 4), -_random(1, 4).abs(), torch.tensor([[1e-9, 0, 2, -1]]).double()])
    expected = function(h)
    assert (expected[2] == 0).all()
    graph = Graph(function, h)
    assert not leaves_constant(graph.nodes, graph.inputs[0])
    torch.testing.assert_close(_applied(graph, h, h).coefficient(1), expected, rtol=1e-9, atol=1e-13)
    moved = _applied(graph, h, _random(4, 4)).coefficient(1)
    assert torch.equal(moved[2], torch.zeros_like(moved[2]))


def test_of_factors_that_vary_each_is_held_for_one_half() -> None:
    """Whatever is behind them; what is no product, such as a power or a quotient, is not."""
    torch.manual_seed(0)
    h, t = _random(6), _random(6)
    halves = Freeze(halves=True)
    cases: list[tuple[Callable[[Tensor], Tensor], Tensor]] = [
        (lambda x: x * x.flip(0), (t * h.flip(0) + h * t.flip(0)) / 2),
        (lambda x: x[:3] * (2 * x[3:] + 1), (t[:3] * (2 * h[3:] + 1) + h[:3] * 2 * t[3:]) / 2),
        (lambda x: torch.outer(x, x), (torch.outer(t, h) + torch.outer(h, t)) / 2),
        (lambda x: F.silu(x) * x.flip(0), (h.sigmoid() * t * h.flip(0) + F.silu(h) * t.flip(0)) / 2),
        (lambda x: x / x.flip(0), t / h.flip(0)),
        (lambda x: 3 * x - 1, 3 * t),
        # Factors that are in one list; of three, each for a third.
        (lambda x: torch.einsum("a,b->ba", x, x), (torch.outer(t, h) + torch.outer(h, t)) / 2),
        (
            lambda x: torch.einsum("a,a,b,a->a", x, 2 * x + 1, torch.ones(2).double(), x.flip(0)),
            2 * (t * (2 * h + 1) * h.flip(0) + 2 * h * t * h.flip(0) + h * (2 * h + 1) * t.flip(0)) / 3,
        ),
    ]
    for function, slope in cases:
        value = _applied(function, h, t, halves)
        torch.testing.assert_close(value.stacked(), torch.stack((function(h), slope)))
    graph = Graph(cases[0][0], h)
    assert leaves_constant(graph.nodes, graph.inputs[0])
    assert not leaves_constant([], graph.inputs[0])
    for function, said in (
        (
            cases[0][0],
            r"mul.*neither affine nor held; hold each of its factors .* Freeze\(halves=True\), or take a jet",
        ),
        (
            cases[6][0],
            r"einsum.*neither affine nor held; hold each of its factors .* Freeze\(halves=True\), or take a jet",
        ),
        (lambda x: x**3, "neither affine nor held; take a jet"),
    ):
        with pytest.raises(JetGraphError, match=said):
            _applied(function, h, t, Freeze())
    with pytest.raises(JetGraphError, match="neither affine nor held; take a jet"):
        _applied(lambda x: x**3, h, t, halves)
