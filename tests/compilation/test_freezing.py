"""Sites whose gates are held: what passes a soft cap or a softmax at the end, and where no constant is left."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.jets.registry import RULES

WIDTH = 6


class Block(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH, eps=1e-6)
        self.gate, self.up = nn.Linear(WIDTH, 8, bias=bias), nn.Linear(WIDTH, 8, bias=bias)
        self.down = nn.Linear(8, WIDTH, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Net(nn.Module):
    """Two blocks, a final norm, an unembedding, and something that is done to the logits."""

    def __init__(self, end: Callable[[Tensor], Tensor], bias: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(bias) for _ in range(2))
        self.norm, self.head, self.end = nn.RMSNorm(WIDTH, eps=1e-6), nn.Linear(WIDTH, 5, bias=False), end

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.end(self.head(self.norm(x)))


@functools.cache
def traced(end: Callable[[Tensor], Tensor], bias: bool = False) -> tuple[Net, jg.ResidualGraph, Tensor]:
    torch.manual_seed(0)
    net, x = Net(end, bias).double().eval(), 3 * torch.randn(2, 4, WIDTH, dtype=torch.float64)
    return net, jg.trace(net, x, dynamic=False), x


def soft_cap(z: Tensor) -> Tensor:
    return 2 * torch.tanh(z / 2)


ENDS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "soft cap": (soft_cap, 0.0),
    "sigmoid": (torch.sigmoid, 0.5),
    "two of them": (lambda z: torch.sigmoid(soft_cap(z)), 0.5),
    "exponential": (lambda z: torch.exp(-z), 1.0),
}


@pytest.mark.parametrize("name", ENDS)
def test_components_pass_what_is_done_to_the_logits(name: str) -> None:
    """Each component's part is its own logits times the slope of the secant, (f(z) − f(0)) / z."""
    end, at_zero = ENDS[name]
    net, graph, x = traced(end)
    expansion = jg.expand(graph, recipe="components", rules={"logits": jg.Freeze()})
    with torch.no_grad():
        values = jg.compile(expansion)(x)
        stream = graph.run(x)
        whole = stream.point(-1)
        scale = whole.square().mean(-1, keepdim=True).add(1e-6).rsqrt() * net.norm.weight
        logits = net.head(whole * scale)
        slope = (end(logits) - at_zero) / logits
        for alias in ("embed", "L0.mlp", "L1.mlp"):
            term = stream.component(alias)
            torch.testing.assert_close(values.terms[f"{alias} > logits"], net.head(term * scale) * slope)
        assert ("bias > logits" in values.terms) == bool(at_zero)
        torch.testing.assert_close(values.total, net(x))


def test_components_of_probabilities_are_no_constants() -> None:
    net, graph, x = traced(lambda z: z.softmax(-1))
    with torch.no_grad():
        values = jg.compile(jg.expand(graph, recipe="components", rules={"logits": jg.Freeze()}))(x)
        torch.testing.assert_close(values.total, net(x))
        torch.testing.assert_close(values.terms["bias > logits"], torch.full((2, 4, 5), 0.2, dtype=torch.float64))
        # What is added to all logits alike changes no probability.
        for term in values.terms.values():
            torch.testing.assert_close(term.sum(-1), torch.full_like(term[..., 0], round(float(term.sum(-1)[0, 0]))))


@pytest.mark.parametrize("end", [torch.sign, lambda z: z.argmax(-1).double()], ids=["sign", "argmax"])
def test_an_end_without_a_linear_part_is_refused(end: Callable[[Tensor], Tensor]) -> None:
    _, graph, x = traced(end)
    expansion = jg.expand(graph, recipe="components", rules={"logits": jg.Freeze()})
    with pytest.raises(jg.JetGraphError, match=r"(sign|argmax).*constant on pieces.*take a jet or an atom"):
        jg.compile(expansion)(x)


def test_no_bias_term_where_nothing_has_a_bias() -> None:
    """Everything held, a network without biases is a sum over its paths alone."""
    _, graph, x = traced(lambda z: z)
    expansion = jg.expand(graph, rules={"*": jg.Freeze()})
    assert [entry.source.alias for entry in expansion.entries] == ["embed"]
    assert expansion.count() == 4
    with torch.no_grad():
        values = jg.compile(expansion)(x)
        torch.testing.assert_close(values.total, graph(x))
    _, biased, _ = traced(lambda z: z, bias=True)
    found = jg.expand(biased, rules={"*": jg.Freeze()})
    assert [entry.source.alias for entry in found.entries] == ["embed", "L0.mlp.bias", "L1.mlp.bias"]
    with torch.no_grad():
        torch.testing.assert_close(jg.compile(found)(x).total, biased(x))


CONSTANTS: list[tuple[Callable[[Tensor], Tensor], bool]] = [
    (lambda y: F.gelu(y) * torch.sigmoid(y), False),
    (lambda y: y * torch.where(y > 0, 1.0, 0.1), False),
    (lambda y: F.layer_norm(y, (WIDTH,)) - y.topk(2).values.sum(-1, keepdim=True), False),
    (lambda y: y.clamp(-1, 1), True),
    (lambda y: torch.relu(y) + (3 * y).long().double(), True),
    (lambda y: torch.relu(y) + y.topk(WIDTH).indices, True),
    (lambda y: torch.relu(y) + (y > 0), True),
    (lambda y: torch.relu(y) + y**0, True),
    (lambda y: y.sign() * torch.log1p(y.abs()), False),
    (lambda y: torch.where(y > 0, y.tanh(), y.sigmoid()), True),
    (lambda y: (y > 0) * y.tanh(), False),
    (lambda y: y.softmax(-1).masked_fill(y < 0, 0.0), True),
    (lambda y: y.softmax(-1).gather(-1, y.argsort(-1)), True),
    (lambda y: torch.fft.fft(y).real * torch.fft.fft(y).isfinite(), False),
    (lambda y: torch.sigmoid(y), True),
    (lambda y: torch.tanh(y) + 0.5, True),
    (lambda y: y * y.sigmoid() + torch.cos(y), True),
    (lambda y: F.layer_norm(y, (WIDTH,), None, torch.ones(WIDTH, dtype=y.dtype)), True),
]


@pytest.mark.parametrize(("function", "constant"), CONSTANTS)
def test_where_a_held_branch_leaves_a_constant(function: Callable[[Tensor], Tensor], constant: bool) -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.write = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.write(function(self.read(x)))

    torch.manual_seed(0)
    x = torch.randn(3, WIDTH, dtype=torch.float64)
    graph = jg.trace(Branch().double().eval(), x, dynamic=False)
    expansion = jg.expand(graph, rules={"L0.mlp": jg.Freeze()})
    assert [entry.source.alias for entry in expansion.entries] == (["embed", "L0.mlp.bias"] if constant else ["embed"])
    with torch.no_grad():
        values = jg.compile(expansion)(x)
        torch.testing.assert_close(values.total, graph(x))
        assert not constant or values.terms["L0.mlp.bias > logits"].abs().max() > 1e-3


def test_a_power_by_a_size_is_traced() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.relu(self.read(x)) ** x.shape[1]

    model, x = Branch().eval(), torch.randn(2, 3, WIDTH)
    graph = jg.trace(model, x)
    with torch.no_grad():
        longer = torch.randn(2, 4, WIDTH)
        assert torch.equal(graph(longer), model(longer))


@pytest.mark.parametrize("bias", [False, True])
def test_the_frozen_recipe_leaves_nothing(bias: bool) -> None:
    """2^L paths, in which a gated MLP is W (a ⊙ U t), a its activation at the stream, or the mean of both ways."""
    torch.manual_seed(0)
    net, x = Net(nn.Identity(), bias).double().eval(), torch.randn(3, WIDTH, dtype=torch.float64)
    graph = jg.trace(net, x, dynamic=False)
    block, found = net.blocks[0], {}
    with torch.no_grad():
        for halves in (False, True):
            expansion = jg.expand(graph, recipe="frozen", halves=halves)
            assert expansion.order == 0
            assert jg.expand(graph, rules={"*": jg.Freeze(halves=halves)}).rules == expansion.rules
            values = jg.compile(expansion)(x)
            torch.testing.assert_close(values.total, net(x))
            found[halves] = values
        if bias:
            return
        scale = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        gate, up = block.gate(scale * x), block.up(scale * x)
        end = net.norm(h := net.blocks[1](block(x))) / h
        whole = net.head(end * block.down(F.silu(gate) * up))
        name = "embed > L0.mlp > logits"
        torch.testing.assert_close(found[False].terms[name], whole)
        # Half of the product goes through the activation, as the line through 0 that it is held as, half beside it.
        torch.testing.assert_close(found[True].terms[name], whole)
        later = "embed > L0.mlp > L1.mlp > logits"
        assert float((found[True].terms[later] - found[False].terms[later]).abs().max()) > 1e-4


@torch.library.custom_op("jetgraph_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    """An operator of which torch.vmap knows nothing."""
    return 2 * x


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Foreign(Net):
    """A net whose final norm is followed by an operator of somebody else's."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(torch.tanh(doubled(self.norm(x))))


def test_what_is_held_is_computed_once_for_all_terms() -> None:
    """A norm's statistics do not grow with the number of terms that pass it."""
    _, graph, x = traced(lambda z: z)
    expansion = jg.expand(graph, recipe="components", rules={"logits": jg.Freeze()})
    together = jg.compile(expansion)
    alone = [jg.compile(expansion, [path]) for path in together.paths]
    with torch.no_grad():
        values = together(x)
        for module, path in zip(alone, together.paths, strict=True):
            torch.testing.assert_close(values.hidden[path], module(x).hidden[path], rtol=1e-13, atol=1e-14)
        sizes = [value.untyped_storage().nbytes() for value in values.hidden.values()]
    # They lie in one stack, without the centre beside each.
    assert max(sizes) <= len(sizes) * next(iter(values.hidden.values())).nbytes


class Wide(nn.Module):
    """Two blocks of two layers with a function between them."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.up, self.down = (nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2)) for _ in range(2))
        self.head, self.function = nn.Linear(WIDTH, 5), function

    def forward(self, x: Tensor) -> Tensor:
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(self.function(up(x)))
        return self.head(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda z: 1 / (1 + z.exp()),
        lambda z: (z.abs() + 1) ** 1.5,
        lambda z: torch.log1p(F.softplus(z)),
        lambda z: torch.stack([torch.tanh(z[:, at]) for at in range(4)], 1),
    ],
)
@pytest.mark.parametrize("rule", [jg.Freeze(), jg.Tangent()])
def test_lines_of_what_is_stacked_with_directions(rule: Any, function: Callable[[Tensor], Tensor]) -> None:
    """Terms past one centre are what each is alone, also where an operator puts centre and direction into one tensor,
    whose numbers nobody can look at while all directions go together."""
    torch.manual_seed(0)
    net, x = Wide(function).double().eval(), torch.randn(2, 4, WIDTH, dtype=torch.float64)
    expansion = jg.expand(jg.trace(net, x, dynamic=False), rules={"*.mlp": rule})
    with torch.no_grad():
        together, alone = (jg.compile(expansion, memory=memory)(x) for memory in (None, 0))
        assert len(together.terms) > 6
        for path, term in alone.terms.items():
            torch.testing.assert_close(together.terms[path], term, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(together.total, net(x))


def test_operators_of_others_pass_one_by_one() -> None:
    op = torch.ops.jetgraph_tests.doubled.default
    jg.register_rule(op, lambda order, x: jg.Series(2 * x.coefficients, order, x.start), kind="linear")
    torch.manual_seed(0)
    net, x = Foreign(lambda z: z).double().eval(), torch.randn(2, 4, WIDTH, dtype=torch.float64)
    try:
        graph = jg.trace(net, x, dynamic=False)
        module = jg.compile(jg.expand(graph, recipe="components", rules={"logits": jg.Freeze()}))
        with torch.no_grad():
            torch.testing.assert_close(module(x).total, net(x), rtol=1e-12, atol=1e-13)
    finally:
        del RULES[op]


class Tokens(nn.Module):
    """h + tanh-MLP over positions, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for mixer in self.mixers:
            x = x + mixer(x.mT).mT
        return x


def test_secants_of_several_terms_at_once() -> None:
    """Two terms pass the second site together, as a batch of directions in which nothing may be looked at."""
    torch.manual_seed(0)
    net, x = Tokens().eval().double(), torch.randn(2, 4, 3, dtype=torch.float64)
    with torch.no_grad():
        values = jg.compile(jg.expand(jg.trace(net, x=x, dynamic=False), rules={"*": jg.Freeze()}))(x=x)
        torch.testing.assert_close(sum(values.terms.values()), net(x))
