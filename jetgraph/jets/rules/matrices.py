"""Solutions of linear equations, inverses, determinants, and factors of matrices.

What solves A X = B at the centre solves it at every order: A_0 X_j = B_j − Σ_{i=1..j} A_i X_(j−i).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from jetgraph.errors import MissingRuleError
from jetgraph.jets.arithmetic import cast, widened
from jetgraph.jets.domain import demand, nonzero
from jetgraph.jets.elementary import Rows
from jetgraph.jets.registry import find_rule, register_rule
from jetgraph.jets.rules.centres import with_own_centre
from jetgraph.jets.series import Series, centre, rows_of

aten = torch.ops.aten


def _solved(
    order: int,
    a: Any,
    b: Any,
    solve: Callable[[Tensor, Tensor], Tensor],
    product: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
) -> Series:
    """X with product(A, X) = B, where `solve` gives it of two tensors."""
    first = centre(a)
    x0 = solve(first, centre(b))
    left, right = rows_of(a, order), rows_of(b, order)
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


def solve_triangular(
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
    _, info = aten.linalg_solve_ex.default(centre(a), centre(b), left=left, check_errors=check_errors)
    return _solve(order, a, b, left=left), info


for _op, _rule in (
    (aten.linalg_solve_triangular.default, solve_triangular),
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


# Factors


def product_of(one: Sequence[Tensor | None], other: Sequence[Tensor | None], j: int, turned: str = "") -> Tensor | None:
    """Σ_{0<i<j} X_i Y_(j−i), of which one may be turned over, `left` or `right`."""
    total: Tensor | None = None
    for i in range(1, j):
        x, y = one[i], other[j - i]
        if x is not None and y is not None:
            part = (x.mH if turned == "left" else x) @ (y.mH if turned == "right" else y)
            total = part if total is None else total + part
    return total


def less(value: Tensor | None, other: Tensor | None, like: Tensor) -> Tensor:
    """The difference of two rows, of which each may be zero."""
    value = torch.zeros_like(like) if value is None else value
    return value if other is None else value - other


def from_half(matrix: Tensor, upper: bool) -> Tensor:
    """The symmetric matrix of which one half is read."""
    half = matrix.triu(1) if upper else matrix.tril(-1)
    return half + half.mH + matrix.diagonal(0, -2, -1).real.diag_embed()


def _cholesky(order: int, a: Series, upper: bool = False) -> Series:
    """L_0 L_j* + L_j L_0* = A_j − Σ L_i L_(j−i)*, of which half is read, so that L_j = L_0 half(L_0⁻¹ … L_0⁻*)."""
    first = aten.linalg_cholesky.default(a.coefficient(0), upper=upper)
    rows: list[Tensor | None] = [first.mH if upper else first]
    for j, read in enumerate(a.rows()[1:], 1):
        if read is not None:
            read = from_half(read, upper)
        beside = product_of(rows, rows, j, "right")
        if read is None and beside is None:
            rows.append(None)
            continue
        rest = less(read, beside, first)
        solve = partial(torch.linalg.solve_triangular, rows[0], upper=False)
        inner = solve(solve(rest).mH).mH.tril()
        rows.append(rows[0] @ (inner - inner.diagonal(0, -2, -1).diag_embed() / 2))
    return Series.of_rows([row.mH if upper and row is not None else row for row in rows], order, first)


def _cholesky_ex(order: int, a: Series, *, upper: bool = False, check_errors: bool = False) -> tuple[Series, Tensor]:
    _, info = aten.linalg_cholesky_ex.default(a.coefficient(0), upper=upper, check_errors=check_errors)
    return _cholesky(order, a, upper), info


def turned(value: Any) -> Any:
    """X*, of a series too."""
    return value.like(value.coefficients.mH) if isinstance(value, Series) else value.mH


def _cholesky_solve(order: int, b: Any, factor: Any, upper: bool = False) -> Series:
    """L L* X = B"""
    lower = turned(factor) if upper else factor
    return solve_triangular(order, turned(lower), solve_triangular(order, lower, b, upper=False), upper=True)


def _cholesky_inverse(order: int, factor: Series, upper: bool = False) -> Series:
    ones = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device).expand(factor.shape)
    return _cholesky_solve(order, ones, factor, upper)


def _qr(order: int, a: Series, mode: str = "reduced") -> tuple[Any, Series]:
    """Q_j R_0 + Q_0 R_j = S and Q_j* Q_0 + Q_0* Q_j = N: what Q_j is along Q_0 follows from R_j having one half."""
    tall, wide = a.shape[-2:]
    if mode == "complete" and tall > wide:
        raise MissingRuleError(
            "there is no Taylor rule with mode='complete' for more rows than columns, where Q is not one function "
            "of the matrix: use mode='reduced'"
        )
    square = a.like(a.coefficients[..., : min(tall, wide)])
    first, upper = torch.linalg.qr(square.coefficient(0))
    demand(upper.diagonal(0, -2, -1), nonzero, "the columns of a matrix under a QR decomposition must be independent")
    q: list[Tensor | None] = [first]
    r: list[Tensor | None] = [upper]
    over = partial(torch.linalg.solve_triangular, upper, upper=True, left=False)
    for j, read in enumerate(square.rows()[1:], 1):
        rest, beside = less(read, product_of(q, r, j), first), product_of(q, q, j, "left")
        along = first.mH @ over(rest)
        norm = less(None, beside, upper)
        turn = along.tril(-1)
        turn = turn + (norm.triu(1) - turn.mH) + norm.diagonal(0, -2, -1).diag_embed() / 2
        r.append((along - turn).triu() @ upper)
        q.append(over(rest - first @ r[-1]))
    orthogonal, triangle = Series.of_rows(q, order, first), Series.of_rows(r, order, upper)
    if wide > tall:
        triangle = find_rule(aten.matmul.default).rule(order, turned(orthogonal), a)  # type: ignore[union-attr]
    return (first.new_empty(0) if mode == "r" else orthogonal), triangle


def _eigh(order: int, a: Series, UPLO: str = "L") -> tuple[Series, Series]:
    """A V = V Λ and V* V = 1, where no two eigenvalues are one."""
    values, vectors = torch.linalg.eigh(a.coefficient(0), UPLO)
    gaps = values.unsqueeze(-2) - values.unsqueeze(-1)
    demand(gaps + torch.eye(gaps.shape[-1]).to(gaps), nonzero, "the eigenvalues of a matrix must differ")
    rows = [None if row is None else from_half(row, UPLO == "U") for row in a.rows()]
    v: list[Tensor | None] = [vectors]
    roots: list[Tensor | None] = [values]
    for j in range(1, order + 1):
        rest = None if rows[j] is None else rows[j] @ vectors
        rest = less(rest, None, vectors) + less(product_of(rows, v, j), None, vectors)
        scaled = [None if root is None else root.to(vectors.dtype).diag_embed() for root in roots]
        inner = vectors.mH @ less(rest, product_of(v, scaled, j), vectors)
        roots.append(inner.diagonal(0, -2, -1).real)
        turn = inner / (gaps + torch.eye(gaps.shape[-1]).to(gaps))
        norm = less(None, product_of(v, v, j, "left"), vectors).diagonal(0, -2, -1) / 2
        v.append(vectors @ (turn - turn.diagonal(0, -2, -1).diag_embed() + norm.diag_embed()))
    return Series.of_rows(roots, order, values), Series.of_rows(v, order, vectors)


def _eigvalsh(order: int, a: Series, UPLO: str = "L") -> Series:
    return _eigh(order, a, UPLO)[0]


def _matrix_exp(order: int, a: Series) -> Series:
    """exp of the series as a matrix of blocks, whose first row is the series of exp."""
    wide = widened(a)
    size, rows = a.shape[-1], wide.rows()
    whole = wide.first.new_zeros((*a.shape[:-2], (order + 1) * size, (order + 1) * size))
    for i in range(order + 1):
        for j, row in enumerate(rows[: order + 1 - i], i):
            if row is not None:
                whole[..., i * size : (i + 1) * size, j * size : (j + 1) * size] = row
    found = torch.linalg.matrix_exp(whole)[..., :size, :]
    return cast(Series.of_rows([*found.split(size, -1)], order), a.dtype)


for _op in (aten.linalg_cholesky.default, aten.cholesky.default):
    register_rule(_op, with_own_centre(_op, _cholesky), complex_values=True)
for _op, _rule in (
    (aten.linalg_cholesky_ex.default, _cholesky_ex),
    (aten.cholesky_inverse.default, _cholesky_inverse),
    (aten.linalg_matrix_exp.default, _matrix_exp),
    (aten.matrix_exp.default, _matrix_exp),
):
    register_rule(_op, with_own_centre(_op, _rule), complex_values=True)
register_rule(
    aten.cholesky_solve.default,
    with_own_centre(aten.cholesky_solve.default, _cholesky_solve),
    affine="self",
    complex_values=True,
)
register_rule(aten.linalg_qr.default, with_own_centre(aten.linalg_qr.default, _qr))
register_rule(aten.linalg_eigh.default, with_own_centre(aten.linalg_eigh.default, _eigh))
register_rule(aten.linalg_eigvalsh.default, with_own_centre(aten.linalg_eigvalsh.default, _eigvalsh))
