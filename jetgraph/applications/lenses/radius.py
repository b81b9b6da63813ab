"""How far a power series converges, read off the sizes of its coefficients."""

from __future__ import annotations

import numpy as np

from jetgraph.applications.intervals import Array

RADIUS_ORDER = 24
"""Highest Taylor coefficient from which a radius of convergence is read."""


def radius_of_convergence(sizes: Array) -> Array:
    """Radius of convergence of power series from the sizes ‖c_j‖ of their coefficients j = 0..K: [K+1, ...] → [...].

    The root test on ‖c_j‖ ~ C j^(−1/2) ρ^(−j), the growth at a singularity of the kind x^(−1/2), which norms have:
    −log ρ is the slope of log ‖c_j‖ + ½ log j over the upper two thirds of the orders. At a pole that is a few per cent
    too large at K = 24. Only orders before the first one that overflows count; ρ is infinite where the coefficients end
    (a polynomial).

    >>> orders = np.arange(25.0)
    >>> float(radius_of_convergence(0.5**orders / np.sqrt(orders.clip(min=1))).round(6))
    2.0
    """
    sizes = np.asarray(sizes, dtype=np.float64)
    orders = np.arange(len(sizes)).reshape(-1, *[1] * (sizes.ndim - 1))
    finite = np.logical_and.accumulate(np.isfinite(sizes), axis=0)
    usable = finite & (np.nan_to_num(sizes, posinf=0.0) > 0) & (orders > 0)
    last = (usable * orders).max(axis=0)
    used = usable & (orders >= np.maximum(last // 3, 1))
    count = used.sum(axis=0)
    logs = np.where(used, np.log(np.where(used, sizes, 1.0)) + 0.5 * np.log(np.maximum(orders, 1)), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (used * orders).sum(axis=0) / count
        offset = np.where(used, orders - mean, 0.0)
        slope = (offset * logs).sum(axis=0) / np.square(offset).sum(axis=0)
        radius = np.exp(-slope)
    # Zeros after sizes near the smallest number are underflow, zeros after large ones the end of a polynomial.
    size = np.take_along_axis(sizes, last[None], axis=0)[0]
    ended = (last < len(sizes) - 1) & finite[-1] & (size > 1e-25)
    return np.where(ended | (count < 2), np.inf, radius)
