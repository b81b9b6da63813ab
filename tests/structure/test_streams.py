"""Where a stream starts and ends: encoders and decoders that are told apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import jetgraph as jg
from tests import zoo
from tests.laws import EXACT, check_values, distance, subject
from tests.zoo import PreNorm


class Queries(nn.Module):
    """A decoder whose queries are constants until they have read the encoder, as DETR's; before or after its norms."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.queries = nn.Parameter(torch.randn(3, 8))
        self.places = nn.Parameter(torch.randn(5, 8))
        self.encoder = nn.ModuleList(PreNorm(8).mlp for _ in range(2))
        self.itself = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
        self.across = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(5))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.encoder:
            x = x + layer(x)
        memory = self.norms[4](x)
        h = torch.zeros_like(self.queries).expand(len(x), -1, -1)
        for itself, across, one, other in zip(self.itself, self.across, self.norms[:2], self.norms[2:4], strict=True):
            read = one(h) if self.first else h
            h = h + itself(read + self.queries, read + self.queries, read)[0]
            h = h if self.first else one(h)
            read = other(h) if self.first else h
            h = h + across(read + self.queries, memory + self.places, memory)[0]
            h = h if self.first else other(h)
        return self.head(h)


@pytest.mark.parametrize("first", [True, False])
@torch.no_grad()
def test_a_decoder_of_constant_queries_is_a_stream_of_its_own(first: bool) -> None:
    torch.manual_seed(0)
    model, x, other = Queries(first).eval().double(), torch.randn(2, 5, 8).double(), torch.randn(2, 5, 8).double()
    graph = jg.trace(model, x, dynamic=False)
    assert [len(stream.joins) for stream in graph.streams] == [2, 2]
    assert [source.kind for source in graph.outline.sources][:2] == ["context", "pos"]
    assert [branch.kind for join in graph.stream.joins for branch in join.branches] == ["attn", "attn"]
    given = subject(graph, {"x": x}, {"x": other}, torch.float64)
    assert check_values(given) >= 15
    frozen = jg.compile(jg.expand(graph, rules={"*": jg.Freeze()}))(x=x)
    assert distance(frozen.total, model(x)) < EXACT


def test_positions_have_one_name_whatever_they_are_counted_by() -> None:
    """By the model itself, from a mask or from the tokens, or given; and so have token types, which are called as in
    the model. Whether there are logits of tokens, features, or as many classes as token types, makes no difference.
    """
    ids = torch.arange(4, 9)[None]
    given = {"attention_mask": torch.ones_like(ids), "position_ids": torch.arange(5)[None], "token_type_ids": 0 * ids}
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    roberta = transformers.RobertaConfig(is_decoder=True, vocab_size=53, max_position_embeddings=40, **config)
    models = {name: zoo.case(name).build() for name in ("gpt2", "opt", "bert")}
    models["roberta"] = transformers.RobertaForCausalLM(roberta).eval()
    models["bert encoder"] = transformers.BertModel(models["bert"].config).eval()
    models["bert classes"] = transformers.BertForSequenceClassification(models["bert"].config).eval()
    for name, model in models.items():
        named: set[tuple[tuple[str, str], ...]] = set()
        takes = {key: value for key, value in given.items() if "bert" in name or key != "token_type_ids"}
        # What is counted from a mask or the tokens is so only where it is not given.
        mask = [{"attention_mask": given["attention_mask"]}] if name in ("opt", "roberta") else []
        for more in ({}, takes, *mask)[:: 1 if name != "opt" else 2]:
            graph = jg.trace(model, input_ids=ids, dynamic=False, **more)
            named.add(tuple((one.alias, one.path.rpartition(".")[2]) for one in graph.outline.sources[:3]))
        assert len(named) == 1, name
        (one,) = named
        expected = ["embed", "position_embeddings", "token_type_embeddings"] if "bert" in name else ["embed", "pos"]
        assert [alias for alias, _ in one][: len(expected)] == expected
        assert "pos" in one[1][1] or one[1][1] == "wpe"


class Affine(nn.Module):
    """A factor and a constant of each channel, as a frozen batch norm (DETR) has them, ActNorm, or an affine layer."""

    def __init__(self, width: int, dims: int, shifted_first: bool) -> None:
        super().__init__()
        self.shape = (1, width, *[1] * dims) if dims else (1, 1, width)
        self.scale, self.shift = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.randn(width))
        self.shifted_first = shifted_first

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.scale.reshape(self.shape), self.shift.reshape(self.shape)
        return (x + shift) * scale if self.shifted_first else x * scale + shift


class Stem(nn.Module):
    """Images, a sound or tokens, through a layer and a norm, and two blocks, of which the second has another width."""

    def __init__(self, dims: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        layer: Any = {0: nn.Linear, 1: partial(nn.Conv1d, kernel_size=1), 2: partial(nn.Conv2d, kernel_size=1)}[dims]
        self.first, self.norms = layer(3, 4, bias=False), nn.ModuleList(map(norm, (4, 4, 6, 6)))
        self.layers = nn.ModuleList(layer(*sizes, bias=False) for sizes in ((4, 4), (4, 6), (4, 6)))
        self.head = nn.Linear(6, 3)
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.norms[0](self.first(x)))
        h = h + torch.tanh(self.norms[1](self.layers[0](h)))
        h = self.norms[2](self.layers[1](h)) + torch.tanh(self.norms[3](self.layers[2](h)))
        return self.head(h.flatten(2).mean(2) if self.dims else h)


@pytest.mark.parametrize(("dims", "shifted_first"), [(2, False), (2, True), (1, False), (0, False)])
@torch.no_grad()
def test_a_constant_of_each_channel_is_no_position(dims: int, shifted_first: bool) -> None:
    """Written out by the model it is a part of the layer, as in an operator: the same sources, joins and terms."""
    torch.manual_seed(0)
    shape = (2, 5, 3) if dims == 0 else (2, 3, *[4] * dims)
    x, other = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    own: Callable[[int], nn.Module] = {0: lambda n: nn.Linear(n, n), 1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[dims]
    told = []
    for norm in (lambda width: Affine(width, dims, shifted_first), own):
        model = Stem(dims, norm).eval().double()
        graph = jg.trace(model, x, dynamic=False)
        outline = graph.outline
        assert [source.kind for source in outline.sources] == ["embed"]
        told.append([(join.kind, [branch.alias for branch in join.branches]) for join in graph.joins])
        told[-1].append(jg.expand(graph, recipe="frozen").count())
        assert check_values(subject(graph, {"x": x}, {"x": other}, torch.float64)) >= 9
        frozen = jg.compile(jg.expand(graph, recipe="frozen"))(x=x)
        assert distance(frozen.total, model(x)) < EXACT
    assert told[0] == told[1]


@torch.no_grad()
def test_a_table_of_positions_is_a_source_and_so_is_a_token_of_its_own() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(3, 4), nn.Linear(4, 3)
            self.token, self.places = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 6, 4))
            self.mlp = PreNorm(4).mlp

        def forward(self, x: Tensor) -> Tensor:
            h = torch.cat((self.token.expand(len(x), -1, -1), self.first(x)), 1) + self.places
            return self.head(h + self.mlp(h))

    graph = jg.trace(Tokens().eval(), torch.randn(2, 5, 3), dynamic=False)
    assert [source.kind for source in graph.outline.sources].count("pos") == 2


class Reader(nn.Module):
    """Attention of tokens to themselves, normed, and to what they are given, which lie side by side for it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.q, self.kv = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 8)

    def forward(self, h: Tensor, given: Tensor | None = None) -> Tensor:
        normed = self.norm(h)
        read = normed if given is None else torch.cat((normed, given), 1)
        return F.scaled_dot_product_attention(self.q(normed), *self.kv(read).chunk(2, -1))


class ClassAttention(nn.Module):
    """A class token is added to by layers that read the patches, as in CaiT and XCiT."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(Reader() for _ in range(2))
        self.second = nn.ModuleList(Reader() for _ in range(2))
        self.mlps = nn.ModuleList(PreNorm(4).mlp for _ in range(4))
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for at, layer in enumerate(self.first):
            x = x + layer(x)
            x = x + self.mlps[at](x)
        h = self.token.expand(len(x), 1, 4)
        for at, layer in enumerate(self.second):
            h = h + layer(h, x)
            h = h + self.mlps[2 + at](h)
        return self.head(h[:, 0])


@torch.no_grad()
def test_a_norm_beside_what_a_layer_is_given_is_no_join() -> None:
    torch.manual_seed(0)
    net, x = ClassAttention().eval(), torch.randn(2, 5, 4)
    graph = jg.trace(net, x)
    # The first sum of the token is where its stream starts.
    assert [join.depth for join in graph.joins] == [0] * 7
    assert {branch.kind for join in graph.joins for branch in join.branches} == {"attn", "mlp"}
    torch.testing.assert_close(jg.compile(jg.expand(graph, recipe="components"))(x).total, net(x))
