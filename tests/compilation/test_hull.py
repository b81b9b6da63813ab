"""Weights of the nearest point in a hull are the same whatever rounding has done, also where many give that point."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jetgraph as jg
from jetgraph.compilation.hull import nearest_in_hull, optimality, without_rounding


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("number", "rank"), [(19, 6), (30, 3), (12, 12), (6, 1)])
def test_weights_do_not_hang_on_rounding(number: int, rank: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(number, rank)) + seed % 3 * random.normal(size=rank)
    vectors[2] = vectors[1]
    vectors[3] = 2 * vectors[1]
    weights = nearest_in_hull(vectors @ vectors.T)
    rounded = vectors * (1 + 1e-15 * random.normal(size=vectors.shape))
    assert nearest_in_hull(rounded @ rounded.T) == pytest.approx(weights, abs=1e-9)
    assert weights[1] == pytest.approx(weights[2], abs=1e-12)
    assert max(optimality(vectors @ vectors.T, weights)) < 1e-12 * np.square(vectors).sum(1).max()


def test_those_with_the_shortest_summands_are_taken() -> None:
    # Of a, b with a + b = 1 and (a − b)·1 = 0 twice over, the four weights are alike.
    vectors = np.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert nearest_in_hull(vectors @ vectors.T) == pytest.approx([0.25] * 4)


def test_centres_that_are_all_right_have_equal_weights() -> None:
    gram = np.diag([1e-34, 0.0, 1.0, 1e-32])
    assert nearest_in_hull(without_rounding(gram, np.array(1.0), 2**-52)) == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
    assert without_rounding(gram, np.array(1e-20), 2**-52)[2, 2] == 1
    assert nearest_in_hull(gram).tolist() == [0, 1, 0, 0]


class First(nn.Module):
    """Attention of one token to itself, which is affine, so that a jet is right around any centre; then an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(3, 6), nn.MultiheadAttention(6, 2, batch_first=True)
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.GELU()) for _ in "ab")
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        for layer in self.layers:
            h = h + layer(h)
        return self.head(h)


@torch.no_grad()
def test_terms_with_optimal_weights_are_the_same_when_loaded_and_in_little_memory(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = First().eval().double(), torch.randn(3, 1, 3, dtype=torch.float64)
    expansion = jg.expand(jg.trace(net, x), order=1, weights="optimal")
    module = jg.compile(expansion)
    jg.save(module, tmp_path / "module")
    values = module(x=x)
    scale = float(values.output.abs().max())
    for other in (jg.load(tmp_path / "module"), jg.compile(expansion, memory=2000)):
        found = other(x=x)  # type: ignore[operator]
        assert max(float((found.terms[path] - term).abs().max()) for path, term in values.terms.items()) < 1e-9 * scale
