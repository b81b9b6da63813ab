"""Singular values, pseudo-inverses, LU factors and products of Householder reflections.

As in `jetgraph.jets.rules.matrices`: what is solved at the centre is solved at every order, with the same factors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jetgraph.errors import MissingRuleError
from jetgraph.jets.arithmetic import add
from jetgraph.jets.domain import demand, nonzero
from jetgraph.jets.registry import find_rule, register_rule
from jetgraph.jets.rules.centres import with_own_centre
from jetgraph.jets.rules.matrices import from_half, less, product_of, solve_triangular, turned
from jetgraph.jets.series import Series, centre

aten = torch.ops.aten


def _apply(op: Any, order: int, *args: Any, **kwargs: Any) -> Any:
    """What the rule of another operator gives; the operator itself of tensors."""
    if not any(isinstance(arg, Series) for arg in args):
        return op(*args, **kwargs)
    entry = find_rule(op)
    assert entry is not None
    return entry.rule(order, *args, **kwargs)


# Singular values


def _svd(order: int, a: Series, full_matrices: bool = True, *, driver: str | None = None) -> tuple[Any, Any, Any]:
    """A V = U Σ with U* U = V* V = 1, where singular values differ and are not 0.

    A matrix that is not square is first made so by a QR decomposition of it, or of its transpose.
    """
    del driver
    tall, wide = a.shape[-2:]
    if full_matrices and tall != wide:
        raise MissingRuleError(
            "there is no Taylor rule with full_matrices=True for a matrix that is not square, whose further "
            "vectors are not one function of it: use full_matrices=False"
        )
    if wide > tall:
        v, s, uh = _svd(order, turned(a), False)
        return turned(uh), s, turned(v)
    if tall > wide:
        q, r = _apply(aten.linalg_qr.default, order, a)
        u, s, vh = _svd(order, r)
        return _apply(aten.matmul.default, order, q, u), s, vh
    u, s, vh = torch.linalg.svd(a.coefficient(0))
    squares = s.unsqueeze(-2) ** 2 - s.unsqueeze(-1) ** 2
    demand(squares + torch.eye(wide).to(s), nonzero, "the singular values of a matrix must differ")
    demand(s, nonzero, "the singular values of a matrix must not be 0")
    return _singular_series(order, a, u, s, vh)


def _singular_series(order: int, a: Series, u: Tensor, s: Tensor, vh: Tensor) -> tuple[Series, Series, Series]:
    """In the basis of the centre, U = u P and V = v Q: P_j Σ_0 + Σ_j − Σ_0 Q_j = M, P_j + P_j* = N, Q_j + Q_j* = K."""
    ones = torch.eye(s.shape[-1]).to(u).expand(u.shape)
    gaps = s.unsqueeze(-2) ** 2 - s.unsqueeze(-1) ** 2 + ones
    columns, lines = s.unsqueeze(-2).expand(u.shape), s.unsqueeze(-1).expand(u.shape)
    inner = [None if row is None else u.mH @ row @ vh.mH for row in a.rows()]
    p, q, sigma = [ones], [ones], [s.diag_embed()]
    for j in range(1, order + 1):
        rest = less(inner[j], None, u)
        for left, right, sign in ((inner, q, 1), (p, sigma, -1)):
            beside = product_of(left, right, j)
            rest = rest if beside is None else rest + sign * beside
        turned_u, turned_v = (less(None, product_of(each, each, j, "left"), u) for each in (p, q))
        other = rest.mH - turned_u * lines + turned_v * columns
        first, second = (columns * rest + lines * other) / gaps, (lines * rest + columns * other) / gaps
        upper = torch.ones_like(u).triu(1)
        rows = []
        for turn, norm in ((first, turned_u), (second, turned_v)):
            above = turn * upper
            rows.append(above + (norm - above).mH.tril(-1) + norm.diagonal(0, -2, -1).diag_embed() / 2)
        own = (rest - rows[0] * columns + rows[1] * lines).diagonal(0, -2, -1)
        p.append(rows[0])
        q.append(rows[1])
        sigma.append(own.diag_embed())
    return (
        Series.of_rows([u, *(u @ row for row in p[1:])], order, u),
        Series.of_rows([s, *(row.diagonal(0, -2, -1) for row in sigma[1:])], order, s),
        Series.of_rows([vh, *(row.mH @ vh for row in q[1:])], order, vh),
    )


def _svdvals(order: int, a: Series, *, driver: str | None = None) -> Series:
    return _svd(order, a, False)[1]


def _matrix_norm(
    order: int, a: Series, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False, *, dtype: Any = None
) -> Series:
    """The largest or least singular value, or their sum; the other norms are sums and extremes of entries."""
    if dtype is not None:
        raise MissingRuleError("there is no Taylor rule with a dtype: cast the matrix first")
    rows, columns = (place % a.ndim for place in dim)
    if ord == "fro":
        return _apply(aten.linalg_vector_norm.default, order, a, 2, [rows, columns], keepdim)
    if ord in (1, -1, float("inf"), -float("inf")):
        summed, other = (rows, columns) if abs(ord) == 1 else (columns, rows)
        sums = _apply(aten.sum.dim_IntList, order, _apply(aten.abs.default, order, a), [summed], True)
        extreme = _apply(aten.amax.default if ord > 0 else aten.amin.default, order, sums, [other], True)
        return extreme if keepdim else _apply(aten.squeeze.dims, order, extreme, [rows, columns])
    aside = [place for place in range(a.ndim) if place not in (rows, columns)]
    values = _svdvals(order, _apply(aten.permute.default, order, a, [*aside, rows, columns]))
    if ord == "nuc":
        norm = _apply(aten.sum.dim_IntList, order, values, [-1])
    else:
        norm = _apply(aten.select.int, order, values, -1, 0 if ord == 2 else values.shape[-1] - 1)
    if not keepdim:
        return norm
    for place in sorted((rows, columns)):
        norm = _apply(aten.unsqueeze.default, order, norm, place)
    return norm


def _pseudo_inverse(order: int, a: Series, hermitian: bool) -> Series:
    """R⁻¹ Q* of A = Q R with independent columns; of independent rows, that of A* turned over."""
    if hermitian:
        # Half of it is read.
        a = Series.of_rows([None if row is None else from_half(row, False) for row in a.rows()], order)
    if a.shape[-1] > a.shape[-2]:
        return turned(_pseudo_inverse(order, turned(a), False))
    q, r = _apply(aten.linalg_qr.default, order, a)
    return solve_triangular(order, r, turned(q), upper=True)


def _pinv(op: Any) -> None:
    def rule(order: int, a: Series, *args: Any, hermitian: bool = False, **kwargs: Any) -> Series:
        # rcond comes with the flag behind it; atol and rtol have names.
        *_, last = (hermitian, *args)
        flag = last if isinstance(last, bool) else hermitian
        first = a.coefficient(0)
        inverse = op(first, *args, **({"hermitian": True} if hermitian else {}), **kwargs)
        # What is below the tolerance counts as 0, so that the product with the inverse tells the rank.
        rank = (inverse @ first).diagonal(0, -2, -1).sum(-1)
        full = min(a.shape[-2:])
        demand(
            rank,
            lambda value: (value - full).abs() < 0.5,
            f"the rank of a matrix whose pseudo-inverse is taken must be full, which is {full}",
        )
        return _pseudo_inverse(order, a, flag)

    register_rule(op, with_own_centre(op, rule))


# Factors of rows that have changed places


def _lu(order: int, a: Series, pivot: bool = True) -> tuple[Tensor, Series, Series]:
    """P* A = L U, where rows change places as at the centre: L_0⁻¹ X U_0⁻¹ = L_0⁻¹ L_j + U_j U_0⁻¹ is cut in halves.

    What is beside the square follows: L_2 U_1 = A_2, or L_1 U_2 = A_2.
    """
    places, first, upper = torch.linalg.lu(a.coefficient(0), pivot=pivot)
    size = min(a.shape[-2:])
    demand(
        upper[..., :size, :size].diagonal(0, -2, -1),
        nonzero,
        "the pivots of a matrix under an LU decomposition must not be 0",
    )
    moved = _apply(aten.matmul.default, order, places.mT, a)
    square = moved.like(moved.coefficients[..., :size, :size])
    lower, upper = _square_lu(order, square, first[..., :size, :], upper[..., :size])
    if a.shape[-2] > size:
        below = moved.like(moved.coefficients[..., size:, :])
        rest = solve_triangular(order, upper, below, upper=True, left=False)
        lower = _beside(order, lower, rest, -2)
    if a.shape[-1] > size:
        right = moved.like(moved.coefficients[..., :, size:])
        rest = solve_triangular(order, lower, right, upper=False, unitriangular=True)
        upper = _beside(order, upper, rest, -1)
    return places, lower, upper


def _beside(order: int, one: Series, other: Series, dim: int) -> Series:
    return Series(torch.cat([one.stacked(), other.stacked()], dim), order)


def _square_lu(order: int, a: Series, first: Tensor, last: Tensor) -> tuple[Series, Series]:
    lower: list[Tensor | None] = [first]
    upper: list[Tensor | None] = [last]
    for j, read in enumerate(a.rows()[1:], 1):
        rest = less(read, product_of(lower, upper, j), first)
        inner = torch.linalg.solve_triangular(first, rest, upper=False, unitriangular=True)
        inner = torch.linalg.solve_triangular(last, inner, upper=True, left=False)
        lower.append(first @ inner.tril(-1))
        upper.append(inner.triu() @ last)
    return Series.of_rows(lower, order, first), Series.of_rows(upper, order, last)


def _lu_factor(order: int, a: Series, *, pivot: bool = True) -> tuple[Series, Tensor]:
    """L without its diagonal, and U, in one matrix."""
    _, pivots = torch.linalg.lu_factor(a.coefficient(0), pivot=pivot)
    _, lower, upper = _lu(order, a, pivot)
    rows, columns = a.shape[-2:]
    whole = torch.zeros_like(a.coefficient(0)).expand(order + 1, *a.shape).clone()
    whole[..., :, : min(rows, columns)] += lower.stacked().tril(-1)
    whole[..., : min(rows, columns), :] += upper.stacked().triu()
    return Series(whole, order), pivots


def _lu_factor_ex(
    order: int, a: Series, *, pivot: bool = True, check_errors: bool = False
) -> tuple[Series, Tensor, Tensor]:
    *_, info = torch.linalg.lu_factor_ex(a.coefficient(0), pivot=pivot, check_errors=check_errors)
    return *_lu_factor(order, a, pivot=pivot), info


def _lu_unpack(
    order: int, data: Series, pivots: Tensor, unpack_data: bool = True, unpack_pivots: bool = True
) -> tuple[Any, Any, Any]:
    places, lower, upper = torch.lu_unpack(data.coefficient(0), centre(pivots), unpack_data, unpack_pivots)
    if not unpack_data:
        return places, lower, upper
    size = min(data.shape[-2:])
    rows = [
        (row[..., :, :size].tril(-1), row[..., :size, :].triu())
        for row in (torch.zeros_like(data.first) if row is None else row for row in data.rows()[1:])
    ]
    return (
        places,
        Series.of_rows([lower, *(row for row, _ in rows)], order, lower),
        Series.of_rows([upper, *(row for _, row in rows)], order, upper),
    )


def _lu_solve(order: int, data: Any, pivots: Tensor, b: Any, *, left: bool = True, adjoint: bool = False) -> Series:
    """P L U X = B, or X P L U = B, or with all turned over."""
    if not left:
        # X A = B is A* X* = B*.
        return turned(_lu_solve(order, data, pivots, turned(b), adjoint=not adjoint))
    if isinstance(data, Series):
        places, lower, upper = _lu_unpack(order, data, pivots)
    else:
        places, lower, upper = torch.lu_unpack(data, pivots)
    if adjoint:
        inner = solve_triangular(order, turned(upper), b, upper=False)
        inner = solve_triangular(order, turned(lower), inner, upper=True, unitriangular=True)
        return _apply(aten.matmul.default, order, places, inner)
    inner = _apply(aten.matmul.default, order, places.mT, b)
    inner = solve_triangular(order, lower, inner, upper=False, unitriangular=True)
    return solve_triangular(order, upper, inner, upper=True)


# Reflections


def _householder_product(order: int, a: Any, tau: Any) -> Series:
    """(1 − τ_1 v_1 v_1*) (1 − τ_2 v_2 v_2*) …, of which v_i is column i below the diagonal, and 1 on it: polynomial."""
    shape, number = a.shape, tau.shape[-1]
    like = centre(a)
    made: Any = torch.eye(shape[-2]).to(like)[:, : shape[-1]].expand(shape).contiguous()
    for place in range(number - 1, -1, -1):
        below = torch.zeros(shape[-2]).to(like)
        below[place + 1 :] = 1
        start = torch.zeros(shape[-2], 1).to(like)
        start[place] = 1
        column = _apply(aten.slice.Tensor, order, a, -1, place, place + 1)
        v = _apply(aten.add.Tensor, order, _apply(aten.mul.Tensor, order, column, below.unsqueeze(-1)), start)
        factor = _apply(aten.slice.Tensor, order, tau, -1, place, place + 1)
        factor = _apply(aten.unsqueeze.default, order, factor, -1)
        turn = _apply(aten.matmul.default, order, turned(v), made)
        turn = _apply(aten.matmul.default, order, _apply(aten.mul.Tensor, order, v, factor), turn)
        made = add(order, made, turn, -1)
    return made


for _op, _rule in (
    (aten.linalg_svd.default, _svd),
    (aten.linalg_svdvals.default, _svdvals),
    (aten.linalg_matrix_norm.default, _matrix_norm),
    (aten.linalg_matrix_norm.str_ord, _matrix_norm),
    (aten.linalg_lu.default, _lu),
    (aten.linalg_lu_factor.default, _lu_factor),
    (aten.linalg_lu_factor_ex.default, _lu_factor_ex),
    (aten.linalg_householder_product.default, _householder_product),
):
    register_rule(_op, with_own_centre(_op, _rule))
for _op in (
    aten.linalg_pinv.default,
    aten.linalg_pinv.rcond_tensor,
    aten.linalg_pinv.atol_rtol_tensor,
    aten.linalg_pinv.atol_rtol_float,
    aten.pinverse.default,
):
    _pinv(_op)
register_rule(aten.lu_unpack.default, _lu_unpack, affine="LU_data", added=lambda bound, moving: [True])
register_rule(aten.linalg_lu_solve.default, with_own_centre(aten.linalg_lu_solve.default, _lu_solve), affine="B")
