"""Solutions of linear equations, inverses and determinants.

What solves A X = B at the centre solves it at every order: A_0 X_j = B_j − Σ_{i=1..j} A_i X_(j−i).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from jetgraph.jets.domain import demand, nonzero
from jetgraph.jets.elementary import Rows
from jetgraph.jets.registry import register_rule
from jetgraph.jets.series import Series

aten = torch.ops.aten


def _rows(value: Any, order: int) -> Rows:
    return value.rows() if isinstance(value, Series) else [value, *[None] * order]


def _centre(value: Any) -> Tensor:
    return value.coefficient(0) if isinstance(value, Series) else value


def _solved(
    order: int,
    a: Any,
    b: Any,
    solve: Callable[[Tensor, Tensor], Tensor],
    product: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
) -> Series:
    """X with product(A, X) = B, where `solve` gives it of two tensors."""
    first = _centre(a)
    x0 = solve(first, _centre(b))
    left, right = _rows(a, order), _rows(b, order)
    x: Rows = [x0]
    for j in range(1, order + 1):
        rest = right[j]
        for i in range(1, j + 1):
            factor, before = left[i], x[j - i]
            if factor is not None and before is not None:
                part = product(factor, before)
                rest = -part if rest is None else rest - part
        x.append(None if rest is None else solve(first, rest))
    return Series.of_rows(x, order, x0)


# Equations


def _solve_triangular(
    order: int, a: Any, b: Any, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Series:
    """A X = B, or X A = B, of which half of A is read."""
    solve = partial(aten.linalg_solve_triangular.default, upper=upper, left=left, unitriangular=unitriangular)

    def product(factor: Tensor, x: Tensor) -> Tensor:
        beside = 1 if unitriangular else 0
        half = factor.triu(beside) if upper else factor.tril(-beside)
        return half @ x if left else x @ half

    return _solved(order, a, b, solve, product)


def _solve(order: int, a: Any, b: Any, *, left: bool = True) -> Series:
    """A X = B, or X A = B; a vector for each matrix, or a matrix."""
    vectors = b.ndim == 1 or (a.ndim - 1 == b.ndim and b.shape == a.shape[:-1])

    def product(factor: Tensor, x: Tensor) -> Tensor:
        if vectors:
            return (factor @ x.unsqueeze(-1)).squeeze(-1)
        return factor @ x if left else x @ factor

    return _solved(order, a, b, partial(aten.linalg_solve.default, left=left), product)


def _solve_ex(order: int, a: Any, b: Any, *, left: bool = True, check_errors: bool = False) -> tuple[Series, Tensor]:
    _, info = aten.linalg_solve_ex.default(_centre(a), _centre(b), left=left, check_errors=check_errors)
    return _solve(order, a, b, left=left), info


for _op, _rule in (
    (aten.linalg_solve_triangular.default, _solve_triangular),
    (aten.linalg_solve.default, _solve),
    (aten.linalg_solve_ex.default, _solve_ex),
):
    register_rule(_op, _rule, affine="B", complex_values=True)


def _inverse(order: int, a: Series) -> Series:
    """A X = 1, from the inverse at the centre."""
    inverse = aten.linalg_inv.default(a.coefficient(0))
    ones = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand(a.shape)
    found = _solved(order, a, ones, lambda _, right: inverse @ right)
    return Series.of_rows([inverse, *found.rows()[1:]], order, inverse)


def _inverse_ex(order: int, a: Series, *, check_errors: bool = False) -> tuple[Series, Tensor]:
    _, info = aten.linalg_inv_ex.default(a.coefficient(0), check_errors=check_errors)
    return _inverse(order, a), info


for _op in (aten.linalg_inv.default, aten.inverse.default):
    register_rule(_op, _inverse, complex_values=True)
register_rule(aten.linalg_inv_ex.default, _inverse_ex, complex_values=True)


# Determinants


def _logarithmic_slopes(order: int, a: Series) -> Rows:
    """j times coefficient j of log |A|, whose derivative is tr A⁻¹ A'."""
    above: Rows = [None if row is None else row * j for j, row in enumerate(a.rows()[1:], 1)]
    if not order or all(row is None for row in above):
        return [None] * (order + 1)
    moving = Series.of_rows(above, order - 1)
    short = Series.of_rows(a.rows(), order - 1, a.first)
    found = _solved(order - 1, short, moving, aten.linalg_solve.default)
    return [None, *(None if row is None else row.diagonal(0, -2, -1).sum(-1) for row in found.rows())]


def _determinant(order: int, a: Series) -> Series:
    """y' = y tr A⁻¹ A'"""
    y0 = aten.linalg_det.default(a.coefficient(0))
    if order == 0 or not a.varies:
        return Series.constant(y0, order)
    demand(y0, nonzero, "the determinant must not be 0")
    slopes, y = _logarithmic_slopes(order, a), [y0]
    for j in range(1, order + 1):
        parts = [slope * y[j - i] for i, slope in enumerate(slopes[: j + 1]) if slope is not None]
        y.append(sum(parts[1:], parts[0]) / j if parts else torch.zeros_like(y0))
    return Series.of_rows([*y], order, y0)


def _log_determinant(order: int, a: Series) -> tuple[Series, Series]:
    """The sign, which stays as it is, and log |det A|."""
    sign, y0 = aten.linalg_slogdet.default(a.coefficient(0))
    slopes = _logarithmic_slopes(order, a)
    rows: Rows = [y0, *(None if slope is None else slope / j for j, slope in enumerate(slopes[1:], 1))]
    return Series.constant(sign, order), Series.of_rows(rows, order, y0)


def _logdet(order: int, a: Series) -> Series:
    """log det A, which is no number where that is negative."""
    y0 = aten.logdet.default(a.coefficient(0))
    return Series.of_rows([y0, *_log_determinant(order, a)[1].rows()[1:]], order, y0)


register_rule(aten.logdet.default, _logdet)
for _op in (aten.linalg_det.default, aten.det.default):
    register_rule(_op, _determinant)
for _op in (aten.linalg_slogdet.default, aten.slogdet.default):
    register_rule(_op, _log_determinant)
