"""Sums of the parts of complex values that were put together from real ones are joins, as sums of those are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import jetgraph as jg
from tests.laws import EXACT, check_values, distance, subject

WIDTH = 6


def paired(h: Tensor, f: Tensor) -> Tensor:
    return torch.view_as_complex(torch.stack([h, f], -1))


def parts(z: Tensor) -> Tensor:
    return z.real + z.imag


SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "complex": lambda h, f: parts(torch.complex(h, f)),
    "difference": lambda h, f: torch.complex(h, f).real - torch.complex(h, -f).imag,
    "pair": lambda h, f: parts(paired(h, f)),
    "as real": lambda h, f: torch.view_as_real(torch.complex(f, h)).sum(-1),
    "entries": lambda h, f: sum(torch.view_as_real(paired(h, f)).unbind(-1), torch.zeros_like(h)),
    "conjugate": lambda h, f: torch.complex(h, f).conj().real - paired(h, f).conj().imag,
    "times a number": lambda h, f: (torch.complex(h, f) * (1 - 1j)).real,
    "times another": lambda h, f: (torch.complex(h, f) * torch.complex(torch.ones_like(h), -torch.ones_like(h))).real,
    "written": lambda h, f: parts(h + 1j * f),
    "negated": lambda h, f: (-torch.complex(-h, -f)).real + f,
}


class Net(nn.Module):
    """Layers that are added to a stream by way of complex values."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.add = SUMS[how]
        self.embed, self.head = nn.Embedding(9, WIDTH), nn.Linear(WIDTH, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, 4), nn.GELU(), nn.Linear(4, WIDTH)) for _ in "ab")

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = self.add(h, block(h))
        return self.head(h)


@pytest.mark.parametrize("how", SUMS)
@torch.no_grad()
def test_a_sum_of_parts_is_a_join(how: str) -> None:
    torch.manual_seed(0)
    net = Net(how).eval().double()
    inputs, others = ({"x": torch.randint(0, 9, (2, 4))} for _ in range(2))
    graph = jg.trace(net, **inputs, dynamic=False)
    assert [(join.depth, [branch.name for branch in join.branches]) for join in graph.joins][::-1][:2] == [
        (0, ["blocks.1"]),
        (0, ["blocks.0"]),
    ]
    assert len(graph.stream.joins) == 2
    assert distance(graph(**others), net(**others)) < EXACT
    assert check_values(subject(graph, inputs, others, torch.float64)) > 0
    if how != "times another":
        assert {join.kind for join in graph.joins} == {"identity"}


@torch.no_grad()
def test_a_complex_stream_stays_one() -> None:
    class Complex(Net):
        def forward(self, x: Tensor) -> Tensor:
            z = torch.complex(self.embed(x), self.embed(x + 1))
            for block in self.blocks:
                z = z + torch.complex(block(z.imag), block(z.real))
            return self.head(z.abs())

    torch.manual_seed(0)
    graph = jg.trace(Complex("complex").eval(), torch.randint(0, 8, (2, 4)), dynamic=False)
    assert [join.node.meta["dtype"] for join in graph.stream.joins] == [torch.complex64] * 2


def test_jets_of_parts_are_those_of_what_they_are_made_of() -> None:
    x, v = torch.randn(2, 5, dtype=torch.float64)
    found = jg.jet(lambda y: (torch.complex(y.sin(), y**2) * (2 + 1j)).imag, x, v, 1)
    assert torch.allclose(found, torch.stack([x.sin() + 2 * x**2, (x.cos() + 4 * x) * v]))
