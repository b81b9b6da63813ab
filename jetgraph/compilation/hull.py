"""The point of a convex hull that is nearest to 0: exact weights on the simplex, and how to tell that they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CLOSE = 1e-7
"""What may be a rounding error of vectors that are made of their products, relative to their lengths."""

ROUNDING = 4
"""Units in the last place of a value by which rounding is taken to change it."""

HEAVY = 1e5
"""How much more heavily than short weights the right ones are asked for."""


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
        return (diagonal <= 0) / (diagonal <= 0).sum()
    lengths, roots = np.sqrt(diagonal / diagonal[best]), np.sqrt(diagonal)
    (cholesky,) = get_lapack_funcs(("pstrf",), (gram,))
    upper, pivots, rank, _ = cholesky(gram / roots[:, None] / roots, tol=np.finfo(np.float64).eps)
    factor = np.zeros((rank, len(gram)))
    factor[:, pivots - 1] = np.triu(upper)[:rank]
    target = np.zeros(rank + 1)
    target[-1] = 1.0
    solution, _ = nnls(np.vstack([factor, 1.0 / lengths]), target, maxiter=100 * len(gram))
    weights = solution / lengths
    weights = weights / weights.sum()
    return _evened_out(factor, lengths, weights)


def _evened_out(factor: Array, lengths: Array, weights: Array) -> Array:
    """Of all weights of the nearest point, which is one, those with the shortest w_i f_i; so that rounding does not say
    which they are of many, as where there are more vectors than dimensions, or equal ones.

    Those have weights at which the point p touches the hull, ⟨f_i, p⟩ = ⟨p, p⟩; where they are independent, there is
    nothing to choose. Else u_i = w_i |f_i| ≥ 0 solves Σ u_i f_i/|f_i| = p, Σ u_i/|f_i| = 1 and, far less
    heavily, u = 0: which tells those that have none, and the others are the shortest solution.

    Parameters
    ----------
    factor
        [dimension, n], of vectors of length 1; dimensions that are rounding errors of a Gram matrix are left out.
    lengths
        Of the vectors; that of the shortest is 1.
    weights
        Weights of the nearest point.
    """
    from scipy.optimize import nnls

    vectors = factor[np.abs(factor).max(1, initial=0) > CLOSE]
    point = vectors @ (weights * lengths)
    slack = vectors.T @ point - point @ point / lengths
    touching = np.flatnonzero(slack <= CLOSE * (np.linalg.norm(point) + CLOSE))
    size = float(np.linalg.norm(weights * lengths))
    rows = np.vstack([vectors[:, touching], size / lengths[touching]])
    if len(touching) <= min(int((weights > 0).sum()), len(rows)):
        singular = np.linalg.svd(rows, compute_uv=False)
        if singular[-1] > CLOSE * singular[0]:
            return weights
    target = np.append(point / size, 1.0)
    heavily = np.vstack([rows * HEAVY, np.eye(len(touching))])
    solution, _ = nnls(heavily, np.append(target * HEAVY, np.zeros(len(touching))), maxiter=100 * len(touching))
    some = solution > 0
    exact = np.linalg.lstsq(rows[:, some], target, rcond=CLOSE / float(np.linalg.norm(rows)))[0]
    if exact.min(initial=0) < 0 or np.abs(rows[:, some] @ exact - target).max() > CLOSE:
        return weights
    evened = np.zeros_like(weights)
    evened[touching[some]] = exact / lengths[touching[some]]
    return evened / evened.sum()


def without_rounding(gram: Array, size: Array, eps: float) -> Array:
    """Gram matrices [..., n, n] of errors of what is to be `size` = ‖x‖² [...], in which errors are 0 that are rounding
    errors of it: of several that are right, none is right by its rounding.
    """
    least = min(ROUNDING * eps, CLOSE**0.5) ** 2 * size[..., None]
    right = np.diagonal(gram, axis1=-2, axis2=-1) <= least
    return np.where(right[..., None] | right[..., None, :], 0.0, gram)


def optimality(gram: Array, weights: Array) -> tuple[float, float]:
    """How far weights are from the conditions of the minimum of wᵀM w on the simplex.

    w is optimal if and only if (M w)_i ≥ λ = wᵀM w for all i, with equality where w_i > 0. Returned are
    max_i (λ − (M w)_i), which also bounds wᵀM w − minimum by twice itself, and max_i w_i |(M w)_i − λ|.
    """
    gradient = gram @ weights
    level = float(weights @ gradient)
    return float((level - gradient).max()), float((weights * np.abs(gradient - level)).max())
