"""Rules on complex values, against polynomials fitted to plain evaluations at Chebyshev nodes.

Each function takes a real tensor and gives a real one, so that t is real and nothing is assumed to be holomorphic.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import jetgraph as jg
from jetgraph.errors import DomainError, MissingRuleError
from jetgraph.export.callables import wrap_function
from jetgraph.export.program import export_program

SHAPE = (2, 4, 6)
_NODES = 16
_REACH = 0.08


def pairs(x: Tensor) -> Tensor:
    """Neighbours as real and imaginary part: complex, [2, 4, 3]."""
    return torch.view_as_complex(x.reshape(2, 4, 3, 2))


def real(z: Tensor) -> Tensor:
    return torch.view_as_real(z.resolve_conj())


def windowed(x: Tensor) -> Tensor:
    window = torch.ones(8, dtype=x.dtype)
    return torch.stft(x.flatten(1), 8, hop_length=4, window=window, return_complex=True)


def unwindowed(z: Tensor) -> Tensor:
    return torch.istft(z, 8, hop_length=4, window=torch.ones(8, dtype=torch.float64))


def positive(z: Tensor) -> Tensor:
    """Hermitian matrices with eigenvalues of their own, of which half is read."""
    return z @ z.mH + torch.diag_embed(torch.arange(1.0, z.shape[-2] + 1)).to(z)


OF_REAL: dict[str, Callable[[Tensor], Tensor]] = {
    "fft": lambda x: real(torch.fft.fft(x, dim=1)),
    "rfft": lambda x: real(torch.fft.rfft(x, n=7)),
    "ihfft": lambda x: real(torch.fft.ihfft(x)),
    "fft2": lambda x: torch.fft.fft2(x).real,
    "rfft2": lambda x: real(torch.fft.rfft2(x)),
    "rfftn": lambda x: real(torch.fft.rfftn(x)),
    "ifftn": lambda x: real(torch.fft.ifftn(x, dim=(1,))),
    "fftshift": lambda x: torch.fft.fftshift(x) * x,
    "ifftshift": lambda x: torch.fft.ifftshift(x, dim=1),
    "stft": lambda x: real(windowed(x)),
    "istft": lambda x: unwindowed(windowed(x) ** 2),
    "eigenvalues": lambda x: torch.linalg.eigvalsh(positive(x) + x[:, :, :4].triu(1)),
    "eigenvectors": lambda x: torch.linalg.eigh(positive(x) + x[:, :, :4].tril(-1), "U")[1].square(),
    "real and a complex number": lambda x: real(torch.exp(1j * x) + (x + 0.5j) / 2j - (1j - x)),
    "complex": lambda x: real(torch.complex(x, x * x)),
    "polar": lambda x: real(torch.polar(x, x * x)),
    "polar, radius": lambda x: real(torch.polar(x, torch.ones_like(x))),
    "polar, angle": lambda x: real(torch.polar(torch.ones_like(x), x)),
    "long convolution": lambda x: torch.fft.irfft(torch.fft.rfft(x, n=12) * torch.fft.rfft(x.flip(-1), n=12), n=12),
    "real angle": lambda x: x.angle() * x,
    "real sgn": lambda x: x.sgn() * x,
}

OF_COMPLEX: dict[str, Callable[[Tensor], Tensor]] = {
    "ifft": torch.fft.ifft,
    "ifft2": lambda z: torch.fft.ifft2(z, dim=(0, 1)),
    "fftn": torch.fft.fftn,
    "irfft": lambda z: torch.fft.irfft(z, n=5, dim=1),
    "irfft2": torch.fft.irfft2,
    "irfftn": torch.fft.irfftn,
    "hfft": torch.fft.hfft,
    "conj": lambda z: z * z.conj(),
    "imag": lambda z: (z**2).imag,
    "mH": lambda z: z @ z.mH,
    "adjoint": lambda z: z.adjoint() * 1j,
    "abs": torch.abs,
    "angle": torch.angle,
    "sgn": torch.sgn,
    "norm": lambda z: z.norm(dim=-1),
    "norm of all": lambda z: z.norm(),
    "norm of order 3": lambda z: torch.linalg.vector_norm(z, 3, dim=(0, 2), keepdim=True),
    "kept norm": lambda z: z / torch.linalg.vector_norm(z, dim=(1,), keepdim=True),
    "sum of moduli": lambda z: torch.linalg.vector_norm(z, 1, dim=1),
    "exp": torch.exp,
    "expm1": torch.expm1,
    "exp2": torch.exp2,
    "log": torch.log,
    "log2": torch.log2,
    "log10": torch.log10,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "square": torch.square,
    "cube": lambda z: z**3,
    "power": lambda z: z**-0.5,
    "quotient": lambda z: z / (z + 1),
    "unit": lambda z: z / z.abs(),
    "cumsum": lambda z: z.cumsum(1),
    "mean": lambda z: z.mean(1, keepdim=True) * z,
    "cholesky": lambda z: torch.linalg.cholesky(positive(z) + (z @ z.mT).triu(1)),
    "matmul": lambda z: z @ z.transpose(1, 2),
    "einsum": lambda z: torch.einsum("bij,bkj->bik", z, z.conj()),
    "where": lambda z: torch.where((z.real > 0) & (z != 0), z, 0 * z),
}


def _fitted(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, order: int) -> np.ndarray:
    """Coefficients 0..order of t ↦ f(x + t v) from its values at Chebyshev nodes, [order + 1, entries]."""
    nodes = np.cos(np.pi * (np.arange(_NODES) + 0.5) / _NODES)
    values = np.stack([f(x + float(_REACH * node) * v).reshape(-1).numpy() for node in nodes])
    fitted = np.polynomial.chebyshev.chebfit(nodes, values, _NODES - 1)
    powers = np.zeros((_NODES, _NODES))
    for degree in range(_NODES):
        row = np.polynomial.chebyshev.cheb2poly(np.eye(_NODES)[degree])
        powers[degree, : len(row)] = row
    return (powers.T @ fitted)[: order + 1] / _REACH ** np.arange(order + 1)[:, None]


FUNCTIONS = OF_REAL | {name: lambda x, f=f: f(pairs(x)) for name, f in OF_COMPLEX.items()}


def results(x: Tensor) -> list[Tensor]:
    values = [function(x) for function in FUNCTIONS.values()]
    return [(real(value) if value.is_complex() else value).reshape(-1) for value in values]


def together(x: Tensor) -> Tensor:
    """All in one function, for tracing it is what takes time."""
    return torch.cat(results(x))


@functools.cache
def traced_ops() -> set[Any]:
    """The ops that these functions consist of."""
    program = export_program(wrap_function(together), (torch.ones(SHAPE),)).program
    return {node.target for node in program.graph.nodes if node.op == "call_function"}


def test_coefficients_of_complex_functions() -> None:
    random = torch.Generator().manual_seed(0)
    x, v = (torch.randn(SHAPE, generator=random, dtype=torch.float64) for _ in range(2))
    # No entry changes its sign within reach.
    x = x + x.sign() * _REACH * v.abs().max()
    found, first = (jg.jet(together, x, v, order).numpy() for order in (3, 1))
    np.testing.assert_allclose(first, found[:2], rtol=1e-12, atol=1e-12)
    expected = _fitted(together, x, v, 3)
    start = 0
    for name, value in zip(FUNCTIONS, results(x), strict=True):
        part = slice(start, start := start + len(value))
        error = np.abs(found[:, part] - expected[:, part]).max()
        assert error <= 1e-7 * np.abs(expected[:, part]).max(), f"{name}: {error:.1e}"


def test_modulus_of_zero_has_no_slope() -> None:
    with pytest.raises(DomainError, match=r"aten\.abs.*modulus of a complex value must not be 0"):
        jg.jet(lambda x: pairs(x).abs(), torch.zeros(SHAPE), torch.ones(SHAPE), 1)


def test_an_op_without_a_rule_for_complex_values_is_told() -> None:
    for name, function in (("var", lambda z: z.var(-1)), ("atan", torch.atan)):
        with pytest.raises(MissingRuleError, match=rf"aten\.{name}.* has no Taylor rule for complex values"):
            jg.jet(lambda x, f=function: f(pairs(x)), torch.ones(SHAPE), torch.ones(SHAPE), 1)
