"""Streams of complex values: flows, ranks of paths and estimates of patches are of pairs of real numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import jetgraph as jg

WIDTH = 4


class Complex(nn.Module):
    """z + |z| W z, twice, with a mean over positions in the first, and a modulus at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.real, self.imag = nn.Linear(3, WIDTH), nn.Linear(3, WIDTH)
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.complex128)) for _ in "ab")
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.complex(self.real(x), self.imag(x))
        z = z + (z @ self.weights[0] * torch.tanh(z.abs())).cumsum(1)
        z = z + z @ self.weights[1] * torch.tanh(z.abs())
        return self.head(z.abs())


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        return Complex().double().eval()


def centred(net: nn.Module, x: Tensor) -> float:
    row = net(x)[0, -1].detach()
    return float(row[1] - row.mean())


@pytest.mark.parametrize("rules", ["frozen", "gradient"])
def test_flows_of_a_complex_stream_add_up_to_the_target(net: nn.Module, rules: str) -> None:
    inputs = {"x": torch.randn(1, 3, 3, dtype=torch.float64)}
    found = jg.attribute(net, inputs=inputs, target=1, rules=rules)
    assert found.total == pytest.approx(centred(net, **inputs))
    assert found.completeness == pytest.approx(1)
    curve = jg.faithfulness(found, of="edges")
    assert curve.to_dataframe()["value"].iloc[-1] == pytest.approx(centred(net, **inputs))


@pytest.mark.parametrize("memory", [1 << 25, 1 << 9])
def test_the_largest_paths_of_a_complex_stream_are_its_terms(net: nn.Module, memory: int) -> None:
    inputs = {"x": torch.randn(1, 3, 3, dtype=torch.float64)}
    graph = jg.trace(net, inputs=inputs)
    values = jg.compile(jg.expand(graph, recipe="frozen"))(**inputs)
    by_hand = {
        str(path): float(term.detach()[0, -1, 1] - term.detach()[0, -1].mean()) for path, term in values.terms.items()
    }
    found = jg.rank(graph, inputs=inputs, target=1, memory=memory)
    told = {str(one.path): one.value for one in found.found}
    assert len(told) == len(by_hand)
    assert told == pytest.approx(by_hand)


def test_patches_of_a_complex_stream_are_estimated_by_its_gradient(net: nn.Module) -> None:
    x = torch.randn(1, 3, 3, dtype=torch.float64)
    near = x + 1e-6 * torch.randn_like(x)
    found = jg.patch(net, {"x": x}, {"x": near}, target=1, screen=6).to_dataframe()
    assert found["effect"].abs().min() > 1e-9
    assert found["estimate"].to_numpy() == pytest.approx(found["effect"].to_numpy(), rel=1e-3)
