"""Sums with weights of a softmax: attention where they go over places of what is read, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetgraph as jg

NEAR = torch.tensor([[0, 1], [1, 0], [2, 1], [3, 2], [4, 3]])


class Net(nn.Module):
    """A branch of each form; they read another input where they want to."""

    def __init__(self, forms: Sequence[Callable[[Net, Tensor, Tensor], Tensor]]) -> None:
        super().__init__()
        self.forms = forms
        self.embed, self.head = nn.Linear(3, 6), nn.Linear(6, 2)
        self.q, self.k, self.v, self.o, self.gate = (nn.Linear(6, n) for n in (6, 6, 6, 6, 3))
        self.wide, self.score, self.table = nn.Linear(6, 18), nn.Linear(6, 1), nn.Embedding(9, 6)
        self.experts = nn.Parameter(torch.randn(3, 6, 6) / 2)
        self.layers = nn.Parameter(torch.randn(3))

    def several(self, h: Tensor) -> list[Tensor]:
        return [each(h).tanh() for each in (self.q, self.k, self.v)]

    def forward(self, x: Tensor, story: Tensor) -> Tensor:
        h = self.embed(x)
        for form in self.forms:
            h = h + self.o(form(self, h, story))
        return self.head(h)


def vector_attention(net: Net, h: Tensor, story: Tensor) -> Tensor:
    weights = net.k(torch.relu(net.q(h).unsqueeze(2) - net.k(h).unsqueeze(1))).softmax(2)
    return (weights * net.v(h).unsqueeze(1)).sum(2)


def of_groups(net: Net, h: Tensor, story: Tensor) -> Tensor:
    """A weight for each group of features."""
    weights = net.gate((net.q(h).unsqueeze(2) - net.k(h).unsqueeze(1)).tanh()).softmax(2).unsqueeze(-1)
    return (weights * net.v(h).unflatten(-1, (3, 2)).unsqueeze(1)).sum(2).flatten(2)


def of_neighbours(net: Net, h: Tensor, story: Tensor) -> Tensor:
    near, offset = h[:, NEAR], net.table(story[:, :1]).unsqueeze(1)
    weights = net.k(net.q(h).unsqueeze(2) - near + offset).softmax(2)
    return (weights * (net.v(near) + offset)).sum(2)


def of_windows(net: Net, h: Tensor, story: Tensor) -> Tensor:
    near = F.pad(h, (0, 0, 1, 1)).unfold(1, 3, 1)
    return (net.gate(h).softmax(-1).unsqueeze(2) * near).sum(-1)


def pooled(net: Net, h: Tensor, story: Tensor) -> Tensor:
    return (net.score(h).softmax(1) * net.v(h)).sum(1, keepdim=True).expand_as(h)


def of_memory(net: Net, h: Tensor, story: Tensor) -> Tensor:
    """Reads another input, of which a hop has embeddings of its own."""
    keys, values = net.k(net.table(story)), net.v(net.table(story))
    weights = (keys.unsqueeze(1) * h.unsqueeze(2)).sum(-1).softmax(-1)
    return (weights.unsqueeze(-1) * values.unsqueeze(1)).sum(2)


def of_one_memory(net: Net, h: Tensor, story: Tensor) -> Tensor:
    values, u = net.v(net.table(story)), h[:, 0]
    weights = (net.k(net.table(story)) * u.unsqueeze(1)).sum(2).softmax(1)
    return (weights.unsqueeze(2) * values).sum(1).unsqueeze(1).expand_as(h)


OVER_PLACES = [vector_attention, of_groups, of_neighbours, of_windows, pooled, of_memory, of_one_memory]


def experts(net: Net, h: Tensor, story: Tensor) -> Tensor:
    return (net.gate(h).softmax(-1).unsqueeze(-1) * torch.stack(net.several(h), -2)).sum(-2)


def experts_in_one(net: Net, h: Tensor, story: Tensor) -> Tensor:
    return (net.gate(h).softmax(-1).unsqueeze(-1) * net.wide(h).tanh().unflatten(-1, (3, 6))).sum(-2)


def experts_by_einsum(net: Net, h: Tensor, story: Tensor) -> Tensor:
    outputs = torch.einsum("btd,edk->btek", h, net.experts).tanh()
    return torch.einsum("bte,btek->btk", net.gate(h).softmax(-1), outputs)


def experts_by_matmul(net: Net, h: Tensor, story: Tensor) -> Tensor:
    return (net.gate(h).softmax(-1).unsqueeze(-2) @ torch.stack(net.several(h), -2)).squeeze(-2)


def layers(net: Net, h: Tensor, story: Tensor) -> Tensor:
    return (net.layers.softmax(0)[:, None, None, None] * torch.stack(net.several(h))).sum(0)


def layers_beside(net: Net, h: Tensor, story: Tensor) -> Tensor:
    """Of layers of another input, chosen by the stream."""
    outputs = torch.cat([each.unsqueeze(2) for each in net.several(net.table(story))], 2)
    return (net.gate(h).softmax(-1).unsqueeze(-1) * outputs).sum(2)


def features(net: Net, h: Tensor, story: Tensor) -> Tensor:
    return (net.q(h).softmax(-1) * h).sum(-1, keepdim=True).expand_as(h)


def features_of_places(net: Net, h: Tensor, story: Tensor) -> Tensor:
    """A softmax over features is a gate, whatever is summed then."""
    return (net.q(h).softmax(-1) * net.v(h)).sum(1, keepdim=True).expand_as(h)


OVER_OTHERS = [
    *(experts, experts_in_one, experts_by_einsum, experts_by_matmul, layers, layers_beside),
    *(features, features_of_places),
]


@pytest.mark.parametrize(("forms", "kind"), [(OVER_PLACES, "attn"), (OVER_OTHERS, "mlp")], ids=["attn", "mlp"])
def test_a_weighted_sum_over_places_is_attention(forms: Sequence[Any], kind: str) -> None:
    """With heads where weights are their own."""
    torch.manual_seed(0)
    net, x, story = Net(forms).double().eval(), torch.randn(2, 5, 3).double(), torch.randint(9, (2, 5))
    graph = jg.trace(net, x, story, dynamic=False)
    assert len(graph.joins) == len(forms)
    found = [{branch.kind for branch in join.branches} for join in graph.joins]
    assert dict(zip(forms, found, strict=True)) == {form: {kind} for form in forms}
    if kind == "attn":
        parts = graph.split("heads")
        heads = [sum(alias.startswith(f"L{layer}.attn") for alias in parts.branches) for layer in range(len(forms))]
        assert heads == [6, 3, 6, 1, 1, 1, 1]
        torch.testing.assert_close(parts(x, story), net(x, story))
