"""How sure a mean is: percentile bootstrap intervals over whole units, such as windows of a text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from jetgraph.errors import InputError, quoted
from jetgraph.export.waiting import progress

Array = NDArray[np.float64]
"""Numbers in float64."""

RESAMPLES = 100_000
"""The most bootstrap samples."""

ENDS = (0.025, 0.975)
"""The quantiles that are the ends of an interval."""

DRAWN = 2**20
"""Numbers of draws that are in memory at once."""


def check_bootstrap(resamples: int, seed: int) -> None:
    """Raise `InputError` for a number of bootstrap samples, or a seed, that there cannot be."""
    if not 1 <= resamples <= RESAMPLES:
        raise InputError(f"resamples={quoted(resamples)} cannot be drawn: ask for 1 to {RESAMPLES:,}")
    if seed < 0:
        raise InputError(f"seed={quoted(seed)} is no seed: take 0 or more")


def bootstrap(sums: Array, sizes: Array, resamples: int, seed: int) -> tuple[Array, Array]:
    """The ends of the 95 % interval of Σ sums / Σ sizes when units are drawn with replacement.

    Parameters
    ----------
    sums
        Of each unit, [units, ...].
    sizes
        How many values each sum is of, [units, ...] or [units, 1, ...].
    resamples, seed
        Of the bootstrap; the same draws for all quantities of as many units.

    Returns
    -------
    tuple[Array, Array]
        Lower and upper end, [...] each. NaN where there is one unit, which says nothing about others, and where no
        draw has a value.
    """
    units = len(sums)
    if units < 2:
        return np.full(sums.shape[1:], np.nan), np.full(sums.shape[1:], np.nan)
    means = []
    for drawn in _draws(units, resamples, seed):
        with np.errstate(invalid="ignore"):
            means.append(np.tensordot(drawn, sums, axes=1) / np.tensordot(drawn, sizes, axes=1))
    every = np.concatenate(means)
    # Infinite sums have no draws without 0 · ∞.
    known = ~np.isnan(every).all(axis=0) & np.isfinite(sums).all(axis=0)
    every = np.where(known, every, 0.0)
    # Draws without a value are rare, and to look for them goes quantity by quantity.
    quantile = np.nanquantile if np.isnan(every).any() else np.quantile
    low, high = np.where(known, quantile(every, ENDS, axis=0), np.nan)
    return low, high


def _draws(units: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each unit is drawn, [samples, units], some samples at a time."""
    generator = np.random.default_rng(seed)
    size = max(1, DRAWN // units)
    with progress(total=resamples, unit="samples", desc="bootstrap") as bar:
        for start in range(0, resamples, size):
            some = min(size, resamples - start)
            places = generator.integers(units, size=(some, units)) + units * np.arange(some)[:, None]
            yield np.bincount(places.ravel(), minlength=some * units).reshape(some, units).astype(np.float64)
            bar.update(some)
