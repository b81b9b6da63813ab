"""Kernels for CUDA devices against the same by operators. Triton's interpreter runs them on a CPU where it is there."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch

from jetgraph.applications import distances
from jetgraph.applications.distances import METRICS, compare

CUDA = torch.cuda.is_available()
pytestmark = [
    *([pytest.mark.gpu] if CUDA else []),
    pytest.mark.skipif(
        find_spec("triton") is None or not (CUDA or os.environ.get("TRITON_INTERPRET") == "1"),
        reason="no Triton, or no device for it: TRITON_INTERPRET=1 has it interpreted",
    ),
]
DEVICE = "cuda" if CUDA else "cpu"


def test_kernels_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    from jetgraph.applications import kernels

    kernels.check(torch.device(DEVICE))
    monkeypatch.setattr(kernels, "rounding", lambda number, dtype: 1e3)
    with pytest.raises(ArithmeticError, match="other numbers"):
        kernels.check(torch.device(DEVICE))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rows_by_kernels(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal ones, ruled out tokens, numbers that are none; rows without and with gaps; more tokens than one block."""
    from jetgraph.applications import kernels

    model = (3 * torch.randn(2, 3, 5001, device=DEVICE)).to(dtype)
    other = model + torch.randn(4, 2, 3, 5001, device=DEVICE).to(dtype) / 3
    other[0] = model
    other[1, 0, 0, 7] = model[0, 1, 7] = -torch.inf
    other[0, 0, 1, 7] = -torch.inf
    other[2, 1, 2, 3], other[3, 0, 2, 5], model[1, 1, 9] = torch.inf, torch.nan, torch.nan
    other[:, 1, 0] = 0.5
    cases = [
        (model, other),
        (model[:, 1:], other[:, :, 1:]),
        (model[0], other[:, :, :, ::2].repeat(1, 1, 1, 2)[..., :5001]),
    ]
    for one, another in cases:
        monkeypatch.setattr(distances, "kernels_for", lambda logits: None)
        by_operators = compare(one, another)
        precise = compare(one.double(), another.double())
        monkeypatch.setattr(distances, "kernels_for", lambda logits: kernels)
        found = compare(one, another)
        # The operators' own numbers in half precision are those of float32.
        digits = 1e-5 if dtype.itemsize == 2 else 1e-12
        for name in METRICS:
            close = [getattr(each, name).double() for each in (found, precise)]
            torch.testing.assert_close(*close, rtol=digits, atol=digits, equal_nan=True)
        assert torch.equal(found.top1, by_operators.top1)
        assert torch.equal(found.top5, by_operators.top5)
    same = compare(other[2, 0], other[2:, 0])
    assert (same.kl[0].max(), same.remainder[0].max(), same.cosine[0].min()) == (0, 0, 1)
