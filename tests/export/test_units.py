"""Tokens that come in by products of unit vectors, or by what is counted, are sources like those that are looked up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import jetgraph as jg
from tests.laws import EXACT, check_values, distance, subject

VOCAB, WIDTH = 7, 4

WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda x, w: F.one_hot(x, VOCAB).to(w.dtype) @ w,
    "linear": lambda x, w: F.linear(F.one_hot(x, VOCAB).to(w), w.T),
    "einsum": lambda x, w: torch.einsum("...v,vd->...d", F.one_hot(x, VOCAB).to(w.dtype), w),
    "comparison": lambda x, w: (x[..., None] == torch.arange(VOCAB)).to(w.dtype) @ w,
    "scatter": lambda x, w: w.new_zeros(*x.shape, VOCAB).scatter(-1, x[..., None], 1.0) @ w,
    "identity matrix": lambda x, w: torch.eye(VOCAB, dtype=w.dtype)[x] @ w,
    "take": lambda x, w: torch.take(w, x[..., None] * WIDTH + torch.arange(WIDTH)),
    "take_along_dim": lambda x, w: torch.take_along_dim(w, x.flatten()[:, None], 0).view(*x.shape, WIDTH),
}


class Net(nn.Module):
    def __init__(self, way: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.way = way
        self.table, self.head = nn.Parameter(torch.randn(VOCAB, WIDTH)), nn.Linear(WIDTH, VOCAB)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in "ab"
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.way(x, self.table)
        for layer in self.layers:
            h = h + layer(h)
        return self.head(h)


def made(way: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(way).double().eval()


@pytest.mark.parametrize("way", WAYS)
def test_tokens_are_a_source_however_they_come_in(way: str) -> None:
    net = made(WAYS[way])
    inputs, others = ({"x": torch.tensor(ids)} for ids in ([[0, 3, 6]], [[5, 1, 1]]))
    graph = jg.trace(net, **inputs)
    assert [source.alias for source in graph.outline.sources] == ["embed"]
    assert len(graph.stream.joins) == 2
    expected = jg.compile(jg.expand(jg.trace(made(lambda x, w: w[x]), **inputs), order=1))(**others)
    actual = jg.compile(jg.expand(graph, order=1))(**others)
    assert {str(path) for path in actual.terms} == {str(path) for path in expected.terms}
    terms = {str(path): term for path, term in expected.terms.items()}
    assert all(distance(term, terms[str(path)]) < EXACT for path, term in actual.terms.items())
    with torch.no_grad():
        assert check_values(subject(graph, inputs, others, torch.float64)) >= 6


@pytest.mark.parametrize("way", ["matmul", "linear"])
def test_unit_vectors_times_a_table_have_n_grams(way: str) -> None:
    tables = [
        jg.ngrams(jg.trace(made(each), x=torch.tensor([[0, 3]])), "embed > L0.mlp > logits", top=9)
        for each in (WAYS[way], lambda x, w: w[x])
    ]
    actual, expected = (table.to_dataframe() for table in tables)
    assert actual.drop(columns="probability").equals(expected.drop(columns="probability"))
    assert actual["probability"].to_numpy() == pytest.approx(expected["probability"].to_numpy())


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_tokens_beside_features_are_a_source(mode: str) -> None:
    class Bags(Net):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
            h = F.embedding_bag(x, self.table, mode=mode) + y
            for layer in self.layers:
                h = h + layer(h)
            return self.head(h)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Bags(WAYS["matmul"]).double().eval()
    inputs, others = (
        {"x": torch.randint(0, VOCAB, (3, 2)), "y": torch.randn(3, WIDTH, dtype=torch.float64)} for _ in range(2)
    )
    graph = jg.trace(net, inputs=inputs)
    assert [source.kind for source in graph.outline.sources].count("embed") == 2
    assert distance(graph(**others), net(**others)) < EXACT
