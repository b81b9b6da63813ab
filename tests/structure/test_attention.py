"""Queries, keys and values are told, or it is said why not; what is done with them is in `tests/applications`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import jetgraph as jg
from jetgraph.structure.attention import operands

REFUSED = {
    "none": "has no attention by softmax",
    "one for both": "queries, keys and values of .* cannot be told apart",
    "einsum": "queries, keys and values of .* cannot be told apart",
    "of itself": "queries, keys and values of .* cannot be told apart",
    "two": "has 2 attention products beside each other",
    "shifted": "reads its fork besides by queries and keys",
}


class Attention(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.q, self.k, self.v, self.o, self.b = (nn.Linear(4, size) for size in (4, 4, 4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.way == "one for both":
            return self.o(F.scaled_dot_product_attention(q, q, v))
        scores = q @ k.mT
        if self.way == "written out":
            pattern = (q[:, :, None] * k[:, None]).sum(-1).softmax(-1)
            return self.o((pattern[..., None] * v[:, None]).sum(2))
        if self.way == "none":
            return self.o(scores @ v)
        if self.way == "einsum":
            return self.o(torch.einsum("bqk,bkd->bqd", scores.softmax(-1), v))
        if self.way == "shifted":
            scores = scores * self.b(x).sigmoid()
        pattern = scores.softmax(-1)
        if self.way == "of itself":
            return self.o(pattern @ (pattern @ v))
        if self.way == "two":
            return self.o(pattern @ v - (k @ q.mT).softmax(-1) @ v)
        return self.o(pattern @ v)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(Attention, ("plain", "written out", *REFUSED)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def test_queries_keys_and_values_are_told_or_refused() -> None:
    branches = [*jg.trace(Model().eval(), torch.randn(2, 3, 4)).branches.values()]
    plain, written, *others = branches
    assert {name: operand.dim for name, operand in operands(plain).items()} == {"q": -2, "k": -1, "v": -2}
    assert {name: operand.dim for name, operand in operands(written).items()} == {"q": -3, "k": -2, "v": -2}
    for branch, (way, says) in zip(others, REFUSED.items(), strict=True):
        with pytest.raises(jg.InputError, match=says):
            raise AssertionError(way, operands(branch))
