"""When a difference is rounding, and when it is not."""

from __future__ import annotations

import pytest
import torch

from jetgraph.tracing.agreement import compare


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0])
def test_rounding_is_no_difference_at_any_scale(dtype: torch.dtype, scale: float) -> None:
    """What a different order of sums makes of an output passes; a fifth of it does not."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(64, 64, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = ((x @ w) * scale).to(dtype)
    rounded = sum((x[:, i : i + 8] @ w[i : i + 8] * scale).to(dtype) for i in range(0, 64, 8))
    assert compare(rounded, expected).good  # type: ignore[arg-type]
    assert not compare(expected * 0.8, expected).good


def test_each_row_counts_by_itself() -> None:
    """Rows of any size: a small one is held to its own digits, also where another one is large."""
    expected = torch.tensor([[1e-6, 3e-6], [2e5, 1e5]])
    wrong = expected.clone()
    wrong[0, 0] *= 1.4
    assert compare(expected, expected).exact
    assert not compare(wrong, expected).good
    assert compare(expected * (1 + 1e-6), expected).good


def test_probabilities_of_many_classes() -> None:
    logits = torch.randn(3, 20_000, generator=torch.Generator().manual_seed(0))
    expected = logits.softmax(-1)
    assert compare(logits.double().softmax(-1).float(), expected).good
    assert not compare((logits + 0.05 * torch.randn_like(logits)).softmax(-1), expected).good


def test_rows_of_one_entry_count_together() -> None:
    """One that cancels to nearly nothing has no digits of its own."""
    expected = torch.tensor([[1.0], [1e-7], [0.5]])
    assert compare(expected + 1e-8, expected).good
    assert not compare(expected + 1e-3, expected).good
    assert compare(torch.zeros(2, 0), torch.zeros(2, 0)).exact


def test_what_is_not_finite_is_not_good() -> None:
    expected = torch.tensor([[1.0, 2.0]])
    assert not compare(torch.full_like(expected, torch.nan), expected).good
