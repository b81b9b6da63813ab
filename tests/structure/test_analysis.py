"""Dataflow that is not a plain chain of blocks: what the analysis makes of it, and that it stays sound."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.algebra.outline import JoinStep
from jetgraph.jets.series import Series

WIDTH = 8


class Branch(nn.Sequential):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))


class LayerMixture(nn.Module):
    """The output is a weighted sum over all points of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Branch() for _ in range(3))
        self.weights = nn.Parameter(torch.tensor([9.0, 0.0, 0.0, 0.0]))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        points = [x]
        for block in self.blocks:
            points.append(points[-1] + block(points[-1]))
        return self.head((torch.stack(points) * self.weights.softmax(0)[:, None, None]).sum(0))


class Conditioned(nn.Module):
    """A second input is added at every block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Branch() for _ in range(2))
        self.condition = nn.Linear(3, WIDTH)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        extra = self.condition(c)
        for block in self.blocks:
            x = x + block(x) + extra
        return x


class Reversible(nn.Module):
    """Two coupled streams."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.ModuleList(Branch(WIDTH // 2) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        for at in (0, 2):
            a = a + self.f[at](b)
            b = b + self.f[at + 1](a)
        return torch.cat([a, b], -1)


class Gated(nn.Module):
    """A recurrent update: the concatenation feeds gates and is no stream."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.z, self.n = Branch(), nn.Linear(2 * WIDTH, WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        for _ in range(2):
            both = torch.cat([h, self.f(h)], -1)
            gate = self.z(both).sigmoid()
            h = (1 - gate) * h + gate * torch.tanh(self.n(both))
        return h


class Summed(nn.Module):
    """Python's sum starts with a zero."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = Branch(), Branch()

    def forward(self, h: Tensor) -> Tensor:
        return sum([h, self.f(h), self.g(h)])  # type: ignore[return-value]


class EmptyCache(nn.Module):
    """A cache of shape (0,) that is concatenated to, as libraries do on a first step."""

    def __init__(self) -> None:
        super().__init__()
        self.f = Branch()

    def forward(self, h: Tensor) -> Tensor:
        return h + torch.cat([torch.empty(0), self.f(h)], -1)


class OtherNames(nn.Module):
    """Operators by their second names, and a cast to another tensor's type."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        scaled = torch.multiply(torch.special.expit(self.f(h)), 2.0).type_as(h)
        return torch.concat([h, torch.negative(scaled)], -1)


def check(model: nn.Module, *inputs: Tensor) -> jg.ResidualGraph:
    """Trace, and see that the terms of every recipe that has to be complete are."""
    graph = jg.trace(model.eval(), *inputs)
    with torch.no_grad():
        expected = model(*inputs)
        for recipe in ("exhaustive", "components"):
            values = jg.compile(jg.expand(graph, order=1, recipe=recipe))(*inputs)
            assert torch.allclose(values.output, expected)
            assert torch.allclose(values.total + values.remainder, expected, atol=1e-5)
    return graph


def sources(graph: jg.ResidualGraph) -> list[str]:
    return [source.alias for source in graph.outline.sources]


def test_a_mixture_of_layers_reads_all_of_them() -> None:
    """Its earlier points must not pass for constants of the decoder."""
    model, x = LayerMixture(), torch.randn(2, WIDTH)
    graph = check(model, x)
    sites = [("L0.mlp", None), ("L1.mlp", None), ("L2.mlp", None), ("L2.skip", 0), ("L2.skip.2", 1), ("L2.skip.3", 2)]
    assert [(site.alias, site.reads) for site in graph.outline.sites()[:-1]] == sites
    assert graph.outline.decoder.affine
    terms = jg.compile(jg.expand(graph, order=0))(x).terms
    assert torch.allclose(terms["bias > logits"], model.head.bias.expand(2, 5))
    weights = model.weights.softmax(0)
    for text, weight in (("embed > L2.skip > logits", weights[0]), ("embed > logits", weights[3])):
        assert torch.allclose(terms[text], weight * x @ model.head.weight.mT, atol=1e-5)


def test_what_is_added_at_every_block_enters_there() -> None:
    model, x, c = Conditioned(), torch.randn(2, WIDTH), torch.randn(2, 3)
    graph = check(model, x, c)
    assert [(join.name, join.kind, join.depth) for join in graph.joins] == [
        ("blocks.0", "identity", 0),
        ("blocks.1", "identity", 0),
    ]
    assert sources(graph) == ["embed"]
    terms = jg.compile(jg.expand(graph, recipe="components"))(x, c).terms
    assert torch.allclose(terms["embed > logits"], x)
    assert torch.allclose(terms["L1.mlp.in > logits"], model.condition(c))


def test_coupled_streams_are_one_where_their_width_is_open_too() -> None:
    graph = check(Reversible(), torch.randn(2, WIDTH))
    assert [branch.name for join in graph.joins for branch in join.branches] == ["f.0", "f.1", "f.2", "f.3"]
    assert [join.kind for join in graph.stream.joins] == ["identity"] * 4


def test_what_feeds_a_gate_is_no_stream() -> None:
    graph = check(Gated(), torch.randn(2, WIDTH))
    assert [join.kind for join in graph.joins if join.depth == 0] == ["gated", "gated"]
    assert [step.skip for step in graph.outline.steps if isinstance(step, JoinStep)] == ["gated", "gated"]


def test_a_sum_of_a_list_is_one_join() -> None:
    (join,) = check(Summed(), torch.randn(2, WIDTH)).joins
    assert (join.kind, [branch.name for branch in join.branches]) == ("identity", ["f", "g"])


def test_an_empty_part_is_no_part() -> None:
    (join,) = check(EmptyCache(), torch.randn(2, WIDTH)).joins
    assert join.kind == "identity"


def test_second_names_of_operators_are_known() -> None:
    (join,) = check(OtherNames(), torch.randn(2, WIDTH)).joins
    assert (join.kind, join.name) == ("concat", "f")


def test_a_lone_batch_that_cannot_be_widened_is_kept() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = Branch()

        def forward(self, x: Tensor) -> Tensor:
            x = x.reshape(int(x.shape[0]), WIDTH)
            return x + self.f(x)

    graph = jg.trace(Fixed().eval(), torch.randn(1, WIDTH))
    assert len(graph.joins) == 1
    assert graph(torch.randn(1, WIDTH)).shape == (1, WIDTH)


@pytest.mark.parametrize("kind", ["layer_norm", "batch"])
def test_a_map_that_changes_the_shape_is_split(kind: str) -> None:
    """What pools or projects around a norm is distributed, so that a lens can look past it."""

    class Stages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Branch(), Branch(4)
            self.norm = nn.LayerNorm(WIDTH) if kind == "layer_norm" else nn.Sigmoid()
            self.down = nn.Linear(WIDTH, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.one(x)
            x = self.down(self.norm(x))
            return x + self.two(x)

    graph = check(Stages(), torch.randn(3, WIDTH))
    maps = [step.site for step in graph.outline.steps if hasattr(step, "site")]
    assert [(site.path, site.affine) for site in maps] == [("norm", False), ("down", True)]
    assert len(jg.compile(jg.expand(graph, recipe="lens"))(torch.randn(3, WIDTH)).terms) >= 4


ADDED_NOT_AT_ALL = {
    "addmm": lambda f, p: torch.addmm(p["unwritten"], f, p["matrix"], beta=0, alpha=2),
    "addmm of a row": lambda f, p: torch.addmm(p["unwritten"][0], f, p["matrix"], beta=0),
    "baddbmm": lambda f, p: torch.baddbmm(p["unwritten"][None], f[None], p["matrix"][None], beta=0)[0],
    "addbmm": lambda f, p: torch.addbmm(p["unwritten"], f[None], p["matrix"][None], beta=0),
    "addmv": lambda f, p: torch.addmv(p["unwritten"][0], p["matrix"], f.sum(0), beta=0).expand(3, 4),
}
"""Products that 0 times something is added to, which torch then does not look at."""


class Unwritten(nn.Module):
    """Attention scores are such products where there is no mask: of memory that nobody has written."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.mlp = nn.Linear(4, 4)
        self.parts = nn.ParameterDict({"unwritten": torch.full((3, 4), torch.nan), "matrix": torch.randn(4, 4)})

    def forward(self, x: Tensor) -> Tensor:
        return x + ADDED_NOT_AT_ALL[self.how](torch.tanh(self.mlp(x)), self.parts)


@pytest.mark.parametrize("how", ADDED_NOT_AT_ALL)
def test_what_is_added_no_times_is_not_looked_at(how: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Unwritten(how), Unwritten(how)).eval()
    graph = check(model, torch.randn(3, 4))
    assert [join.alias for join in graph.joins] == ["L0.mlp", "L1.mlp"]


FUSED = {
    "addcmul": lambda x, f, p: torch.addcmul(x, f, p["gain"], value=0.5),
    "addcdiv": lambda x, f, p: torch.addcdiv(x, f, 1 + p["gain"].abs(), value=-2),
    "lerp": lambda x, f, p: torch.lerp(x, f, 0.25),
    "lerp by vector": lambda x, f, p: torch.lerp(x, f, p["gain"]),
    "addmm": lambda x, f, p: torch.addmm(x, f, p["matrix"], beta=0.5, alpha=2),
    "baddbmm": lambda x, f, p: torch.baddbmm(x[None], f[None], p["matrix"][None]).squeeze(0),
    "stack": lambda x, f, p: torch.stack([x, f], -1).sum(-1),
}
"""Ways to write a residual sum as one operator together with something else."""


class Fused(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.mlp = nn.Linear(4, 4)
        self.parts = nn.ParameterDict({"gain": torch.rand(4), "matrix": torch.randn(4, 4)})

    def forward(self, x: Tensor) -> Tensor:
        return FUSED[self.how](x, torch.tanh(self.mlp(x)), self.parts)


@pytest.mark.parametrize("how", FUSED)
def test_sums_that_an_operator_makes_on_the_side_are_joins(how: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Fused(how), Fused(how)).eval()
    x = torch.randn(3, 4)
    graph = jg.trace(model, x)
    assert [join.alias for join in graph.joins] == ["L0.mlp", "L1.mlp"]
    assert {join.kind for join in graph.joins} == {"scaled" if how[:4] in ("lerp", "addm") else "identity"}
    # The first branch alone, by hand: what the sum makes of f beside its linear part in x.
    block = model[0]
    with torch.no_grad():
        alone = FUSED[how](torch.zeros_like(x), torch.tanh(block.mlp(x)), block.parts)
        forward = graph.run(x)
        assert torch.allclose(forward.component("L0.mlp").reshape(3, 4), alone, atol=1e-6)
        assert torch.allclose(graph(x), model(x), atol=1e-5)
    expansion = jg.expand(graph, order=0)
    with torch.no_grad():
        values = jg.compile(expansion, "embed > logits")(x)
        (skipped,) = values.terms.values()
        twice = x
        for block in model:
            twice = FUSED[how](twice, torch.zeros_like(x), block.parts)
    assert torch.allclose(skipped, twice, atol=1e-6)


class Recurrent(nn.Module):
    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.rnn = layer(6, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.rnn(self.norm(x))[0]


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_branches(layer: type[nn.RNNBase]) -> None:
    """At order 0 the layer itself, at order 1 its derivative, by differences."""
    model = nn.Sequential(Recurrent(layer), Recurrent(layer)).eval().double()
    x = torch.randn(2, 5, 6).double()
    graph = jg.trace(model, x)
    assert [(join.alias, join.name) for join in graph.joins] == [("L0.ssm", "0.rnn"), ("L1.ssm", "1.rnn")]
    with torch.no_grad():
        (term,) = jg.compile(jg.expand(graph, order=0), "embed > L0.ssm > logits")(x).terms.values()
        assert torch.allclose(term, model[0].rnn(model[0].norm(x))[0], atol=1e-6)
        h, v, step = model[0](x), torch.randn_like(x), 1e-5
        found = graph.run(x).branch(graph.branches["L1.ssm"], Series.variate(h, v, 1), 1).coefficient(1)
        ahead, back = (model[1].rnn(model[1].norm(h + sign * step * v))[0] for sign in (1, -1))
        assert torch.allclose(found, (ahead - back) / (2 * step), atol=1e-7)


class Cells(nn.Module):
    """A recurrent cell, step by step."""

    def __init__(self, cell: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.cell = cell(6, 6)

    def branch(self, x: Tensor) -> Tensor:
        x, state, states = self.norm(x), None, []
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
            states.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(states, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cells_are_branches_with_slopes(cell: type[nn.RNNCellBase]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Cells(cell), Cells(cell)).double().eval()
    x, v = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(2, 5, 6, dtype=torch.float64)
    graph = jg.trace(model, x)
    assert [(join.alias, join.name) for join in graph.joins] == [("L0.ssm", "0.cell"), ("L1.ssm", "1.cell")]
    found = graph.run(x).branch(graph.branches["L1.ssm"], jg.Series.variate(x, v, 1), 1)
    value, slope = torch.func.jvp(model[1].branch, (x,), (v,))
    torch.testing.assert_close(found.coefficient(0), value)
    torch.testing.assert_close(found.coefficient(1), slope)


class Attention(nn.Module):
    """Positions weighted in some way, with two heads."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) / 2
        if self.how == "nan to zero":
            weights = scores.softmax(-1)
            return torch.where(torch.isnan(weights), torch.zeros_like(weights), weights)
        if self.how == "masked afterwards":
            weights = scores.softmax(-1).tril()
            return weights / weights.sum(-1, keepdim=True)
        if self.how == "softmax by hand":
            weights = (scores - scores.amax(-1, keepdim=True)).exp()
            return weights / weights.sum(-1, keepdim=True)
        return torch.sigmoid(scores) if self.how == "sigmoid" else scores.tril()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = self.qkv(y).view(*y.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        if self.how == "linear":
            mixed = torch.relu(q) @ (torch.relu(k).transpose(-1, -2) @ v)
        else:
            mixed = self.weights(q, k) @ v
        return x + self.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    "how", ["nan to zero", "masked afterwards", "softmax by hand", "sigmoid", "scores alone", "linear"]
)
def test_attention_is_two_products_whatever_is_between(how: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    graph = jg.trace(nn.Sequential(Attention(how), Attention(how)).eval(), x)
    assert [join.alias for join in graph.joins] == ["L0.attn", "L1.attn"]
    parts = graph.split("heads")
    assert [alias for alias in parts.branches if alias.startswith("L1")] == ["L1.attn.head0", "L1.attn.head1"]
    with torch.no_grad():
        assert torch.allclose(parts(x), graph(x), atol=1e-6)


MIXERS: dict[str, Callable[[Tensor], Tensor]] = {
    "average pool": lambda y: F.avg_pool1d(y.transpose(1, 2), 3, 1, 1).transpose(1, 2),
    "max pool": lambda y: F.max_pool1d(y.transpose(1, 2), 3, 1, 1).transpose(1, 2),
    "Fourier": lambda y: torch.fft.fft2(y).real,
    "roll": lambda y: y.roll(1, 1),
    "flip": lambda y: y.flip(1).tanh(),
    "sort": lambda y: y.sort(1).values,
    "running maximum": lambda y: y.cummax(1).values,
    "adaptive pool": lambda y: F.adaptive_avg_pool1d(y.transpose(1, 2), 1).transpose(1, 2).expand_as(y),
    "neighbours": lambda y: torch.zeros_like(y).index_add(1, torch.tensor([1, 1, 3]), y[:, [0, 2, 4]].tanh()),
}


@pytest.mark.parametrize("how", MIXERS)
def test_mixing_needs_no_weights(how: str) -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.mlp = nn.LayerNorm(8), Branch()

        def forward(self, x: Tensor) -> Tensor:
            x = x + MIXERS[how](self.norm(x))
            return x + self.mlp(x)

    torch.manual_seed(0)
    model, x = nn.Sequential(Mixer(), Mixer()).eval(), torch.randn(2, 5, 8)
    graph = jg.trace(model, x)
    assert [join.alias for join in graph.joins] == ["L0.mix", "L0.mlp", "L1.mix", "L1.mlp"]
    with torch.no_grad():
        path = "embed > L1.mix > logits"
        (term,) = jg.compile(jg.expand(graph, order=0, recipe="path"), path)(x).terms.values()
        assert torch.allclose(term, MIXERS[how](model[1].norm(x)), atol=1e-5)


class Reparametrised(nn.Module):
    """relu(norm(x) + Σ linear layers of x), as RepVGG and its like are trained: `shortcut` is what the norm is of."""

    def __init__(self, layer: Callable[[], nn.Module], norm: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.one, self.other, self.norm, self.shortcut = layer(), layer(), norm, shortcut
        for value in norm.state_dict().values():
            value.copy_(torch.rand_like(value.float()) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.one(x) + self.other(x) + self.norm(self.shortcut(x)))


@pytest.mark.parametrize("dims", [0, 1, 2])
def test_a_norm_by_kept_statistics_is_a_skip(dims: int) -> None:
    layer: Callable[[], nn.Module] = [
        lambda: nn.Linear(4, 4),
        lambda: nn.Conv1d(4, 4, 3, padding=1),
        lambda: nn.Conv2d(4, 4, 3, padding=1),
    ][dims]
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(4) if dims == 2 else nn.BatchNorm1d(4) for _ in range(3)]
    # The norm of a linear layer beside linear layers is one of these, and no skip.
    blocks = [Reparametrised(layer, norm, nn.Identity()) for norm in norms[:2]]
    model = nn.Sequential(*blocks, Reparametrised(layer, norms[2], layer())).eval()
    x = torch.randn(2, 4, *[5] * dims)
    graph = jg.trace(model, x)
    assert [(join.kind, join.skip and join.skip.bias, len(join.branches)) for join in graph.joins] == [
        ("projection", True, 2)
    ] * 2
    with torch.no_grad():
        forward, y = graph.run(x), torch.randn_like(x)
        assert torch.allclose(forward.through(graph.joins[0].skip, y), model[0].norm(y), atol=1e-6)
        assert torch.allclose(forward.branch(graph.joins[0].branches[1], y), model[0].other(y), atol=1e-6)
        module = jg.compile(jg.expand(graph, order=0))
        values = module(x)
        assert torch.allclose(values.output, model(x), atol=1e-5)


class Biased(nn.Module):
    """Attention whose scores are a sum with something made of the stream: `how` says what becomes of the sum."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(4, width) for width in (4, 4, 4, 5)) for _ in range(2))

    def forward(self, h: Tensor) -> Tensor:
        for query, key, value, position in self.layers:
            scores = query(h) @ key(h).transpose(-1, -2)
            scores = scores + position(h)
            if self.how == "masked":
                scores = (scores / 2).masked_fill(torch.ones(5, 5).triu(1) > 0, -1e9) + 0.1
            pattern = scores if self.how == "linear" else scores.softmax(-1)
            h = h + pattern @ value(h)
        return h


@pytest.mark.parametrize(("how", "inner"), [("plain", 0), ("masked", 0), ("linear", 2)])
def test_what_only_a_softmax_reads_is_no_stream(how: str, inner: int) -> None:
    graph = jg.trace(Biased(how).eval(), torch.randn(2, 5, 4), dynamic=False)
    assert [join.alias for join in graph.stream.joins] == ["L0.attn", "L1.attn"]
    assert sum(join.depth > 0 for join in graph.joins) == inner


class TwoWay(nn.Module):
    """Tokens and an image that read each other, as in a mask decoder: only the last attention reads the image's end."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(3, 4))
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(5))

    def read(self, place: int, h: Tensor, other: Tensor) -> Tensor:
        """A sum with what is read of another stream, through a norm."""
        pattern = (h @ other.transpose(-1, -2)).softmax(-1)
        return self.norms[place](h + self.layers[place](pattern @ other))

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.tokens.expand(image.shape[0], 3, 4)
        for place in (0, 2):
            tokens = self.read(place, tokens, image)
            image = self.read(place + 1, image, tokens)
        return self.read(4, tokens, image)


def test_a_sum_behind_a_norm_that_one_branch_reads_is_a_join() -> None:
    torch.manual_seed(0)
    for dynamic in (True, False):
        graph = jg.trace(TwoWay().eval(), torch.randn(2, 5, 4), dynamic=dynamic)
        # The first sum of the tokens is with a constant: there tokens and image come to lie side by side. The last
        # layer reads both, and goes on with the tokens.
        assert [join.kind for join in graph.stream.joins] == ["projection", *["identity"] * 3, "projection"]
        assert not any(branch.region.context for join in graph.stream.joins for branch in join.branches)


class Pyramid(nn.Module):
    """A dense head over two layers: f(P h) + g(h + f'(h)), in which each branch has a join of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)) for _ in range(3))
        self.side, self.top, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, h: Tensor) -> Tensor:
        first = h + self.layers[0](h)
        second = first + self.layers[1](first)
        fused = self.side(first)
        fused = fused + self.layers[2](fused)
        return self.head(fused + self.top(second).tanh())


def test_joins_inside_the_branches_of_a_head_are_nested_in_them() -> None:
    graph = jg.trace(Pyramid().eval(), torch.randn(3, 4))
    assert sources(graph) == ["embed"]
    assert sorted((join.depth, join.kind) for join in graph.joins) == [
        (0, "identity"),
        (0, "none"),
        (1, "identity"),
        (1, "identity"),
    ]
    assert "2 residual joins and 2 inner ones" in repr(graph)


class Beside(nn.Module):
    """Branches that add a mean of another stream's end inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        other = torch.cos(h)
        end = (other + torch.tanh(self.layers[0](other))).mean(-1, keepdim=True)
        for layer in self.layers[1:]:
            h = h + torch.tanh(layer(torch.tanh(h)) + end)
        return h


def test_a_mean_of_a_stream_that_a_branch_adds_is_no_point_of_one() -> None:
    torch.manual_seed(0)
    graph = jg.trace(Beside().eval(), torch.randn(2, 5, 4))
    assert [(join.kind, join.depth) for join in graph.joins] == [("identity", 0)] * 3
    assert [len(stream.joins) for stream in graph.streams] == [1, 2]
