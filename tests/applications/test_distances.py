"""Distances between logits and distributions against their definitions, written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from jetgraph.applications import distances
from tests.operators import Operators, peak


def test_distances() -> None:
    model = torch.tensor([2.0, 0.0, 1.0])
    assert float(distances.divergence(model, model + 5)) == pytest.approx(0, abs=1e-12)
    assert float(distances.cosine(model, 3 * model + 5)) == pytest.approx(1)
    assert float(distances.cosine(model, -model)) == pytest.approx(-1)
    assert float(distances.cosine(model, torch.ones(3))) == 0
    assert float(distances.relative_remainder(model, model + 5)) == pytest.approx(0)
    p, q = model.double().softmax(-1), torch.zeros(3).double().softmax(-1)
    expected = float((p * (p / q).log()).sum())
    assert float(distances.divergence(model, torch.zeros(3))) == pytest.approx(expected)
    assert float(distances.norm(model)) == pytest.approx(math.sqrt(2))


def test_distances_of_many_are_those_of_each() -> None:
    model, other = torch.randn(2, 4, 3, 17, generator=torch.Generator().manual_seed(1)).double()
    found = distances.compare(model, other)
    for place in ((0, 0), (2, 1), (3, 2)):
        a, b = model[place], other[place]
        p, q = a.softmax(-1), b.softmax(-1)
        assert float(found.kl[place]) == pytest.approx(float((p * (p / q).log()).sum()))
        assert float(found.cosine[place]) == pytest.approx(float(torch.corrcoef(torch.stack([a, b]))[0, 1]))
        assert bool(found.top1[place]) is bool(a.argmax() == b.argmax())
        assert bool(found.top5[place]) is (int(a.argmax()) in b.topk(5).indices.tolist())
    torch.testing.assert_close(found.kl, distances.divergence(model, other))
    torch.testing.assert_close(found.cosine, distances.cosine(model, other))
    torch.testing.assert_close(found.remainder, distances.relative_remainder(model, other))
    # Nothing at all is left of what is the same.
    same = distances.compare(model, model)
    assert not same.kl.any()
    assert not same.remainder.any()
    assert (same.cosine == 1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_float32(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose digits its rounding leaves alone; ties, of which it has many, count as they are."""
    model, other = torch.randn(2, 3, 50_000, generator=torch.Generator().manual_seed(3)).to(dtype)
    others = torch.stack([model + other / 64, other, 8 * other, model])
    exact = distances.compare(model.double(), others.double())
    found = distances.compare(model, others)
    for name in distances.METRICS:
        value: torch.Tensor = getattr(found, name)
        torch.testing.assert_close(value, getattr(exact, name), rtol=3e-5, atol=1e-5)
        assert value.dtype in (torch.float64, torch.bool)
    assert not found.kl[-1].any()
    assert not found.remainder[-1].any()
    assert 0 < exact.top5[:3].sum() < 9
    monkeypatch.setattr(distances, "CACHE", 2**28)
    half, whole = (peak(lambda one=one: distances.compare(one[0], one)) for one in (others, others.float()))
    assert half < 0.6 * whole


def test_ranks_on_an_accelerator_are_those_on_a_cpu() -> None:
    """Where they are counted by sums of numbers, for truth values would be widened to eight bytes each first."""
    logits = torch.randint(-3, 4, (6, 40), generator=torch.Generator().manual_seed(5)).bfloat16()
    logits[:, 30:] = torch.tensor([-torch.inf, torch.finfo(torch.bfloat16).max]).bfloat16().repeat(5)
    logits[-1] = torch.finfo(torch.bfloat16).smallest_normal * torch.arange(40)
    for best in (0, 7, 31, 39):
        before = torch.arange(40) < best
        chosen = logits[:, best : best + 1]
        expected, numbers = distances._number_ahead(logits, chosen, before), before.to(logits.dtype)
        with Operators() as operators:
            found = distances._number_ahead(logits, chosen, numbers)
        assert torch.equal(found.long(), expected), best
        assert operators.counts.total() == 3


def test_distributions() -> None:
    p = torch.tensor([0.5, 0.5, 0.0]).double()
    q = torch.tensor([0.0, 0.5, 0.5]).double()
    m = (p + q) / 2
    expected = sum(float((one * (one / m).log()).nan_to_num().sum()) for one in (p, q)) / 2
    assert float(distances.jensen_shannon(p.log(), q.log())) == pytest.approx(expected)
    assert float(distances.total_variation(p, q)) == pytest.approx(0.5)


def test_tokens_without_probability_add_nothing() -> None:
    model = torch.tensor([1.0, -math.inf, 0.0])
    assert math.isfinite(float(distances.divergence(model, model + 1)))
    assert float(distances.divergence(model, torch.zeros(3))) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lowest", [torch.finfo(torch.bfloat16).min, -torch.inf])
def test_tokens_that_are_ruled_out_take_no_part_in_the_divergence(lowest: float, dtype: torch.dtype) -> None:
    """By the lowest number of all, which is nearly all of the mean of the logits."""
    model, other = torch.randn(2, 3, 9).to(dtype), torch.randn(4, 2, 3, 9).to(dtype)
    ruled = [torch.cat([each, torch.full_like(each[..., :2], lowest)], -1) for each in (model, other)]
    own, with_more = distances.compare(model, other), distances.compare(*ruled)
    near: Any = {"rtol": 1e-7, "atol": 0} if dtype is torch.float32 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(with_more.kl, own.kl, **near)
    assert torch.equal(with_more.top1, own.top1)
    torch.testing.assert_close(with_more.kl, distances.divergence(*ruled), **near)
    assert torch.isfinite(lowest * with_more.remainder).all() or lowest == -torch.inf
    # What is no number is told.
    broken = other.clone()
    broken[0, 0, 0, 3] = torch.nan
    assert distances.compare(model, broken).kl.isnan().sum() == 1
    assert distances.compare(broken, model[None]).kl.isnan().sum() == 1


def test_a_comparison_of_nothing() -> None:
    assert distances.compare(torch.zeros(2, 0, 5), torch.zeros(3, 2, 0, 5)).kl.shape == (3, 2, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_another_comparison_finds_the_same_bits_with_the_totals_of_the_first(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ties, tokens that are ruled out and rows that are no numbers too; logits themselves are at distance 0."""
    monkeypatch.setattr(distances, "CACHE", 2**13)
    torch.manual_seed(0)
    model = (3 * torch.randn(7, 5, 300)).to(dtype)
    model[0, 0] = model[0, 0].round()
    model[1, 1, ::3], model[2, 2], model[3, 3, 4] = -math.inf, -math.inf, math.nan
    others = [(model + torch.randn_like(model)).expand(2, -1, -1, -1), model]
    reference = distances.Reference(model)
    for other in (*others, *others):
        found, expected = reference.compare(other), distances.Reference(model).compare(other)
        for name in distances.METRICS:
            one, two = (getattr(values, name) for values in (found, expected))
            assert torch.equal(one.isnan(), two.isnan())
            assert torch.equal(one.nan_to_num(), two.nan_to_num())
    assert reference.compare(model).kl.nansum() == 0


def test_groups_that_fit_are_compared_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One launch of each operator for all of them, with the numbers of each by itself, however many fit."""
    random = torch.Generator().manual_seed(2)
    model, others = torch.randn(5, 17, generator=random), torch.randn(6, 5, 17, generator=random)
    with Operators() as alone:
        each = [distances.compare(model, other) for other in others]
    with Operators() as together:
        found = distances.compare(model, others)
    assert together.counts.total() < alone.counts.total() / 5
    for rows in (1, 5, 10, 30):
        monkeypatch.setattr(distances, "CACHE", 8 * 17 * rows)
        found = distances.compare(model, others)
        for name in distances.METRICS:
            assert torch.equal(getattr(found, name), torch.stack([getattr(one, name) for one in each])), (name, rows)


@pytest.mark.parametrize("value", [0.3, -1e4, 1e-9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_logits_have_no_direction(value: float, dtype: torch.dtype) -> None:
    """Nor has their rounding. What is nearly equal has."""
    number, own = 5001, torch.randn(5001, dtype=torch.float64).to(dtype)
    equal = torch.full((number,), value, dtype=dtype)
    for one, other in ((own, equal), (equal, own), (equal, equal)):
        assert (distances.compare(one, other).cosine, distances.cosine(one, other)) == (0, 0)
    assert distances.norm(equal) == 0
    nearly = equal.double() + own.double() * abs(value) * 1e-9
    assert distances.cosine(own, nearly) > 0.99
