"""Where a stream starts and ends: encoders and decoders that are told apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import jetgraph as jg
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
