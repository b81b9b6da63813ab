"""Taylor coefficients of t ↦ op(x(t)) by means that share nothing with the rules under test.

Two oracles. `polynomial`: the plain op in float64 at integer t, on dyadic data on which its arithmetic is exact, and
exact rational interpolation; for ops that are polynomials in their arguments while the active piece stays the same.
`definition`: a textbook definition of the op on arrays of mpmath numbers, divided differences at a tiny step and with
so many digits that the step's error is far below float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath as mp
import numpy as np
import torch

TOP = 6
"""Highest order that is checked."""
_SCALE = 2**62
"""Dyadic data have no digits below 1/_SCALE."""
_DIGITS = 100
"""Differences of order TOP lose TOP times those of the step; what is left are forty."""
_STEP = mp.mpf(10) ** -10
"""Nodes lie on both sides alike, so that the error is of its square at the highest order, and smaller below."""


@functools.cache
def _inverse_vandermonde(degree: int) -> np.ndarray:
    """Rows 0..TOP: values at t = -degree/2 .. degree/2 → coefficients, in exact fractions."""
    nodes = [Fraction(i - degree // 2) for i in range(degree + 1)]
    rows = np.zeros((TOP + 1, degree + 1), dtype=object)
    for k, node in enumerate(nodes):
        # Lagrange basis polynomial of this node, coefficient by coefficient.
        basis = [Fraction(1)]
        for m, other in enumerate(nodes):
            if m == k:
                continue
            scaled = [Fraction(0), *basis]
            for i, value in enumerate(basis):
                scaled[i] -= other * value
            basis = [value / (node - other) for value in scaled]
        for j in range(TOP + 1):
            rows[j, k] = basis[j] if j < len(basis) else Fraction(0)
    return rows


@functools.cache
def _whole_inverse(degree: int) -> tuple[np.ndarray, int]:
    """The same as whole numbers over one denominator."""
    inverse = _inverse_vandermonde(degree)
    denominator = math.lcm(*(value.denominator for value in inverse.flat))
    return np.vectorize(lambda value: int(value * denominator), otypes=[object])(inverse), denominator


def polynomial(value_at: Callable[[float], list[torch.Tensor]], degree: int) -> list[np.ndarray]:
    """Coefficients 0..TOP of every output of a polynomial of the given (even) degree, of shape `[TOP + 1, *shape]`."""
    columns = [value_at(float(i - degree // 2)) for i in range(degree + 1)]
    inverse, denominator = _whole_inverse(degree)
    results = []
    for values in zip(*columns, strict=True):
        samples = [[int(item * _SCALE) for item in value.flatten().tolist()] for value in values]
        numerators = inverse @ np.array(samples, dtype=object).reshape(degree + 1, -1)
        flat = [[float(Fraction(item, denominator * _SCALE)) for item in row] for row in numerators]
        results.append(np.array(flat).reshape(TOP + 1, *values[0].shape))
    return results


def definition(value_at: Callable[[mp.mpf], list[np.ndarray]]) -> list[np.ndarray]:
    """Coefficients 0..TOP of every output, by Newton's divided differences."""
    with mp.workdps(_DIGITS):
        columns = [value_at(_STEP * (i - TOP // 2)) for i in range(TOP + 1)]
        inverse = _inverse_vandermonde(TOP)
        results = []
        for values in zip(*columns, strict=True):
            arrays = [np.asarray(value, dtype=object) for value in values]
            flat = [array.reshape(-1) for array in arrays]
            rows = []
            for j in range(TOP + 1):
                weights = [mp.mpf(inverse[j, k].numerator) / inverse[j, k].denominator for k in range(TOP + 1)]
                row = sum(weight * column for weight, column in zip(weights, flat, strict=True)) / _STEP**j
                rows.append(np.array([float(item) for item in row]).reshape(arrays[0].shape))
            results.append(np.stack(rows))
        return results


def at(coefficients: np.ndarray, t: Any) -> np.ndarray:
    """The polynomial with these coefficients, at an mpmath t, as an array of mpmath numbers."""
    rows = np.vectorize(mp.mpf, otypes=[object])(coefficients)
    total = rows[-1]
    for row in rows[-2::-1]:
        total = total * t + row
    return np.asarray(total, dtype=object)
