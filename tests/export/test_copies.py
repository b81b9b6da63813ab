"""Code that writes into parts of tensors, of other types and complex ones too, has the derivatives of the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import jetgraph as jg
from tests.laws import EXACT, check_slopes, check_values, distance, subject

WIDTH = 4


def half(f: Tensor) -> Tensor:
    g = torch.zeros_like(f)
    g[:, 1:3] = f[:, :2].half()
    return g


def spread(f: Tensor) -> Tensor:
    return torch.empty_like(f).copy_(f[0].float())


def real_into_complex(f: Tensor) -> Tensor:
    g = torch.ones(f.shape, dtype=torch.complex128)
    g[:, 1:3] = f[:, :2]
    return g.abs()


def frequencies(f: Tensor) -> Tensor:
    z = torch.fft.rfft(f)
    g = torch.zeros_like(z)
    g[:, :2] = z[:, 1:].conj()
    return torch.fft.irfft(g)


def one_frequency(f: Tensor) -> Tensor:
    z = torch.fft.fft(f)
    g = z * 2
    g[..., 2] = z[..., 1]
    return torch.fft.ifft(g).imag


def every_other(f: Tensor) -> Tensor:
    z = torch.fft.fft(f)
    g = torch.zeros_like(z)
    g[..., ::2] = z[..., 1::2]
    g[..., -1] += z[..., 0]
    return torch.fft.ifft(g).real


def conjugated(f: Tensor) -> Tensor:
    g = torch.complex(f, f**2).conj().clone()
    g[0] = g[1]
    return torch.view_as_real(g.conj().resolve_conj()).sum(-1)


WRITTEN = (half, spread, real_into_complex, frequencies, one_frequency, every_other, conjugated)


class Written(nn.Module):
    """h + g(f(h)), twice, where g writes."""

    def __init__(self, write: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.write = write
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in "ab")
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + self.write(torch.tanh(layer(x)))
        return self.head(x)


@pytest.mark.parametrize("write", WRITTEN, ids=lambda write: write.__name__)
def test_what_is_written_into_parts_has_the_derivative_of_the_model(write: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net = Written(write).eval().double()
    inputs, others = ({"x": torch.randn(3, WIDTH, dtype=torch.float64)} for _ in range(2))
    graph = jg.trace(net, **inputs)
    assert len(graph.stream.joins) == 2
    actual, expected = (
        torch.autograd.functional.jacobian(lambda x, run=run: run(x), others["x"]) for run in (graph, net)
    )
    assert distance(actual, expected) < EXACT  # type: ignore[arg-type]
    if write in (half, spread):  # which round in between
        return
    with torch.no_grad():
        assert check_values(subject(graph, inputs, others, torch.float64)) >= 6
    check_slopes(subject(graph, inputs, others, torch.float64))


def test_nets_that_write_into_frequencies_have_attributions() -> None:
    torch.manual_seed(0)
    net, x = Written(frequencies).eval().double(), torch.randn(3, WIDTH, dtype=torch.float64)
    found = jg.attribute(net, inputs={"x": x[:1]}, target=1, rules="gradient")
    logits = net(x[:1]).detach()[0]
    assert found.total == pytest.approx(float(logits[1] - logits.mean()))
