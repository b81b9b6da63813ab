"""Bootstrap intervals against the normal approximation of a mean, and where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jetgraph.applications import intervals
from jetgraph.applications.intervals import bootstrap


def test_intervals_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = np.random.default_rng(1).exponential(size=(300, 2))
    whole = bootstrap(sums, np.ones((300, 1)), 400, 0)
    monkeypatch.setattr(intervals, "DRAWN", 7 * 300)
    np.testing.assert_allclose(bootstrap(sums, np.ones((300, 1)), 400, 0), whole)
    error = 1.96 * sums.std(0) / math.sqrt(300)
    np.testing.assert_allclose(np.subtract(*whole[::-1]) / 2, error, rtol=0.15)


def test_units_weigh_by_their_size() -> None:
    """Means are of values, not of units: the large one rules."""
    sizes = np.array([1000.0, 1.0, 1.0, 1.0])[:, None]
    low, high = bootstrap(np.array([0.0, 1.0, 1.0, 1.0])[:, None] * sizes, sizes, 500, 0)
    assert low[0] == pytest.approx(0.0, abs=1e-2)
    assert high[0] == 1.0


def test_what_has_no_interval() -> None:
    low, high = bootstrap(np.ones((1, 2)), np.ones((1, 1)), 10, 0)
    assert np.isnan([low, high]).all()
    low, high = bootstrap(np.array([[1.0, np.inf], [2.0, 3.0], [3.0, 1.0]]), np.ones((3, 1)), 50, 0)
    assert np.isfinite([low[0], high[0]]).all()
    assert np.isnan([low[1], high[1]]).all()
    unknown = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    low, high = bootstrap(unknown, (unknown > 0).astype(float), 50, 0)
    assert np.isnan(low[0])
    assert np.isfinite(low[1])
