"""Masks in the graph against the model: which are causal by construction, and that the values are the model's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import jetgraph as jg

aten = torch.ops.aten
LOWEST = torch.finfo(torch.float32).min
Mask = Callable[[Tensor], Tensor]


class Attention(nn.Module):
    """x + attention(x) with a mask [query, key] of its own; each head of keys and values is for several of queries."""

    def __init__(self, mask: Mask, shared: int = 1) -> None:
        super().__init__()
        self.mask, self.shared = mask, shared
        torch.manual_seed(0)
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8 // shared)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k = (each(x).view(batch, length, -1, 2).transpose(1, 2) for each in (self.q, self.k))
        if self.shared > 1:
            k = k[:, :, None].expand(batch, 4 // self.shared, self.shared, length, 2).reshape(batch, 4, length, 2)
        z = F.scaled_dot_product_attention(q, k, k, self.mask(x))
        return x + z.transpose(1, 2).reshape(batch, length, 8)


def places(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1])


def packed(x: Tensor) -> Tensor:
    """As models find sequences that are packed one after the other: wherever positions do not go on."""
    at = places(x)[None].expand(x.shape[0], -1)
    numbers = (torch.diff(at, prepend=at[:, :1] - 1, dim=-1) != 1).cumsum(-1)
    rows = torch.arange(x.shape[0])[:, None, None, None]
    query, key = places(x)[None, None, :, None], places(x)[None, None, None, :]
    return (numbers[rows, query] == numbers[rows, key]) & (at[rows, key] <= at[rows, query])


def long_filled(x: Tensor) -> Tensor:
    """As models wrote it for years, in numbers."""
    mask = torch.full((x.shape[1], x.shape[1]), LOWEST).triu(1)
    mask = mask * (places(x) > places(x).reshape(-1, 1))
    return mask[None, None].expand(x.shape[0], 1, -1, -1)


CAUSAL: dict[str, Mask] = {
    "comparison": lambda x: places(x)[:, None] >= places(x),
    "comparison the other way round": lambda x: ~(places(x)[:, None] - places(x) < 0),
    "shifted places": lambda x: (places(x)[:, None] + 3) > (places(x) + 2),
    "triangle": lambda x: torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(),
    "triangle of numbers": lambda x: torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1),
    "chosen numbers": lambda x: torch.where(places(x)[:, None] >= places(x), 0.0, LOWEST)[None],
    "filled": lambda x: torch.zeros(x.shape[1], x.shape[1]).masked_fill(places(x)[:, None] < places(x), -torch.inf),
    "packed": packed,
    "long": long_filled,
}
OTHER: dict[str, Mask] = {
    "one place ahead": lambda x: places(x)[:, None] >= places(x) - 1,
    "window": lambda x: (places(x)[:, None] >= places(x)) & (places(x)[:, None] - places(x) < 2),
    "transposed": lambda x: (places(x)[:, None] >= places(x)).mT,
    "from the end": lambda x: (x.shape[1] - 1 - places(x))[:, None] >= places(x),
    "by values": lambda x: (places(x)[:, None] >= places(x)) & (x[:, None, None, :, 0] < 9),
    "every other place": lambda x: 2 * places(x)[:, None] >= places(x),
    "not much lower": lambda x: torch.where(places(x)[:, None] >= places(x), 0.0, -1.0),
    "others added": lambda x: torch.where(places(x)[:, None] >= places(x), 1.0, LOWEST),
}
NOTHING: dict[str, Mask] = {
    "all true": lambda x: (places(x)[:, None] >= 0) | (places(x) < 0),
    "zeros": lambda x: torch.zeros(x.shape[1], x.shape[1]),
}


def attention_of(model: Attention, x: Tensor) -> dict[str, object]:
    """The arguments of the graph's attention besides queries, keys and values, once it is shown to be the model."""
    graph = jg.trace(model.eval(), x)
    for size in ((2, 5), (1, 3), (3, 1), (1, 8)):
        other = torch.randn(*size, 8)
        torch.testing.assert_close(graph(other), model(other))
    (node,) = graph.traced.graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default)
    assert node.args[1].meta["shape"][1] == 4 // (model.shared if node.kwargs.get("enable_gqa") else 1)
    return {"mask": len(node.args) > 3, **node.kwargs}


@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_mask_is_a_flag(name: str) -> None:
    assert attention_of(Attention(CAUSAL[name]), torch.randn(2, 5, 8)) == {"mask": False, "is_causal": True}


@pytest.mark.parametrize("name", OTHER)
def test_any_other_mask_stays(name: str) -> None:
    assert attention_of(Attention(OTHER[name]), torch.randn(2, 5, 8)) == {"mask": True}


@pytest.mark.parametrize("name", NOTHING)
def test_a_mask_that_says_nothing_is_left_out(name: str) -> None:
    assert attention_of(Attention(NOTHING[name]), torch.randn(2, 5, 8)) == {"mask": False}


@pytest.mark.parametrize("mask", [CAUSAL["comparison"], OTHER["window"]])
def test_keys_and_values_are_repeated_where_there_is_a_mask(mask: Mask) -> None:
    found = attention_of(Attention(mask, shared=2), torch.randn(2, 5, 8))
    assert found == (
        {"mask": False, "is_causal": True, "enable_gqa": True} if mask is CAUSAL["comparison"] else {"mask": True}
    )
