"""Taylor coefficients by interpolation in float64: no derivative is taken, by anyone.

t ↦ f(x + t v) is sampled at Chebyshev nodes of [−r, r], the polynomial through them is turned into powers of t, and r
is halved until two radii agree: the error falls geometrically with the ratio of r to the radius of convergence, while
that of rounding grows as r^(−k).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

NODES = 28
ENOUGH = 1e-9


@torch.no_grad()
def taylor(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, order: int) -> Tensor:
    """Coefficients 0..order of t ↦ f(x + t v), stacked on dim 0; x and v are float64.

    Raises `ArithmeticError` where no two radii agree to 1e-6 of each coefficient.
    """
    previous = _fit(f, x, v, order, 0.5)
    best, error = previous, float("inf")
    for halvings in range(2, 9):
        current = _fit(f, x, v, order, 0.5**halvings)
        gap = max(distance(a, b) for a, b in zip(current, previous, strict=True))
        if gap < error:
            best, error = current, gap
        if error < ENOUGH or gap > 10 * error:
            break
        previous = current
    if error > 1e-6:
        raise ArithmeticError(f"the oracle is no better than {error:.0e}: the direction is too long for its nodes")
    return best


def _fit(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, order: int, radius: float) -> Tensor:
    """The polynomial through the nodes of one radius, as its coefficients of t."""
    angles = (np.arange(NODES) + 0.5) * np.pi / NODES
    nodes = np.cos(angles)
    # Chebyshev coefficient m is (2 − [m = 0]) / NODES Σ_i f(node_i) cos(m angle_i).
    cosines = np.cos(np.outer(np.arange(NODES), angles)) * 2 / NODES
    cosines[0] /= 2
    powers = np.zeros((order + 1, NODES))
    for degree in range(NODES):
        unit = np.zeros(degree + 1)
        unit[-1] = 1.0
        converted = np.polynomial.chebyshev.cheb2poly(unit)[: order + 1]
        powers[: len(converted), degree] = converted
    mixing = torch.from_numpy((powers @ cosines) / radius ** np.arange(order + 1)[:, None])
    total: Tensor | None = None
    for node, column in zip(nodes, mixing.T, strict=True):
        value = f(x + float(node) * radius * v)
        part = column.view(-1, *[1] * value.dim()) * value
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def distance(found: Tensor, true: Tensor) -> float:
    """‖found − true‖ / ‖true‖ in float64."""
    true = true.double().cpu()
    return float((found.detach().double().cpu() - true).norm() / true.norm())
