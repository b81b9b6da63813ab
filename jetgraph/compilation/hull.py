"""The point of a convex hull that is nearest to 0: exact weights on the simplex, and how to tell that they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def nearest_in_hull(gram: Array) -> Array:
    """The weights w on the simplex that minimise q(w) = wᵀM w: the point nearest to 0 in the hull of vectors of Gram
    matrix M [n, n].

    With FᵀF = M, non-negative least squares on [F; 1ᵀ] u = [0; 1] minimises s² q(w) + (s − 1)² over u = s w, s ≥ 0. For
    fixed w the best s = 1/(1 + q(w)) leaves q/(1 + q), which grows with q: so w = u / Σu minimises q, exactly.

    The active-set solution is exact up to rounding. Vectors are first scaled to length 1 (which only rescales u), and M
    by its smallest diagonal entry, so that s is at least 1/2. F is a Cholesky factor with pivots, of as many rows as
    the vectors have dimensions: many terms are centres of few features.

    >>> nearest_in_hull(np.diag([1.0, 3.0])).round(12).tolist()
    [0.75, 0.25]
    """
    # Importing it takes a tenth of what importing jetgraph does, and few come for joint lenses.
    from scipy.linalg import get_lapack_funcs
    from scipy.optimize import nnls

    diagonal = np.diagonal(gram)
    best = int(diagonal.argmin())
    if diagonal[best] <= 0:
        return np.eye(len(gram))[best]
    lengths, roots = np.sqrt(diagonal / diagonal[best]), np.sqrt(diagonal)
    (cholesky,) = get_lapack_funcs(("pstrf",), (gram,))
    upper, pivots, rank, _ = cholesky(gram / roots[:, None] / roots, tol=np.finfo(np.float64).eps)
    factor = np.zeros((rank, len(gram)))
    factor[:, pivots - 1] = np.triu(upper)[:rank]
    target = np.zeros(rank + 1)
    target[-1] = 1.0
    solution, _ = nnls(np.vstack([factor, 1.0 / lengths]), target, maxiter=100 * len(gram))
    weights = solution / lengths
    return weights / weights.sum()


def optimality(gram: Array, weights: Array) -> tuple[float, float]:
    """How far weights are from the conditions of the minimum of wᵀM w on the simplex.

    w is optimal if and only if (M w)_i ≥ λ = wᵀM w for all i, with equality where w_i > 0. Returned are
    max_i (λ − (M w)_i), which also bounds wᵀM w − minimum by twice itself, and max_i w_i |(M w)_i − λ|.
    """
    gradient = gram @ weights
    level = float(weights @ gradient)
    return float((level - gradient).max()), float((weights * np.abs(gradient - level)).max())
