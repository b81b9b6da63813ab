"""Sums and products of series against the sums over all pairs of coefficients that they stand for."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from jetgraph.jets import arithmetic
from jetgraph.jets.rules import bilinear
from jetgraph.jets.rules.bilinear import matrix_product
from jetgraph.jets.series import Series
from tests.operators import Moved, Operators

ORDER = 4
SPANS = [(start, stop) for start in range(ORDER + 1) for stop in range(start + 1, ORDER + 2)]
SHAPES = [((3, 4), (3, 4)), ((3, 4), (4,)), ((4,), (2, 3, 4)), ((3, 1), (1, 4)), ((), (3,))]
VIEWS = ("select", "slice", "unbind", "view", "new_empty", "zeros")
MATRICES = [((2, 3, 4), (2, 4, 5)), ((3, 4), (2, 4, 5)), ((4,), (2, 4, 5)), ((2, 3, 4), (4,)), ((4,), (4,))]


def series(span: tuple[int, int], shape: tuple[int, ...], *, apart: bool = False, seed: int = 0) -> Series:
    start, stop = span
    generator = torch.Generator().manual_seed(seed)
    rows = list(torch.randn((stop - start, *shape), dtype=torch.float64, generator=generator).unbind(0))
    if apart:
        return Series.of_rows([*[None] * start, *(row.clone() for row in rows)], ORDER, rows[0])
    return Series(torch.stack(rows), ORDER, start)


def by_pairs(a: Series, b: Series, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Σ_i product(a_i, b_(j-i)) at every order, all zeros written out."""
    return torch.stack(
        [sum(product(a.coefficient(i), b.coefficient(j - i)) for i in range(j + 1)) for j in range(ORDER + 1)]  # type: ignore[misc]
    )


@pytest.mark.parametrize("left", SPANS)
def test_products_of_all_spans(left: tuple[int, int]) -> None:
    for right, *apart in itertools.product(SPANS, (False, True), (False, True)):
        a, b = series(left, (3,), apart=apart[0]), series(right, (3,), apart=apart[1], seed=1)
        before = [one.clone() for one in (*a.stored(), *b.stored())]
        found = arithmetic.multiply(ORDER, a, b).stacked()
        torch.testing.assert_close(found, by_pairs(a, b, torch.mul), rtol=1e-13, atol=1e-13)
        total = arithmetic.add(ORDER, a, b, 0.5).stacked()
        # What lies apart stays so until now: `stacked` puts it into one tensor.
        assert (a.apart, b.apart) == tuple(
            one and stop - start > 1 for one, (start, stop) in zip(apart, (left, right), strict=True)
        )
        assert all(map(torch.equal, (*a.stored(), *b.stored()), before))
        torch.testing.assert_close(total, a.stacked() + 0.5 * b.stacked(), rtol=0, atol=0)


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("apart", [False, True])
def test_squares_of_all_spans(span: tuple[int, int], apart: bool) -> None:
    a = series(span, (3,), apart=apart)
    expected = by_pairs(a, a, torch.mul)
    torch.testing.assert_close(arithmetic.multiply(ORDER, a, a).stacked(), expected, rtol=1e-13, atol=1e-13)


HALVES = [torch.bfloat16, torch.float16]


def half(value: Series, dtype: torch.dtype) -> Series:
    """As it is in half precision, its rows apart where they were."""
    return arithmetic.entrywise(value, lambda part: part.to(dtype))


def check_rounded_once(found: Series, a: Series, b: Series) -> None:
    """The exact product of what is there, rounded to its type by half a unit in the last place, and added up in
    float32."""
    dtype, wide = found.dtype, [arithmetic.cast(value, torch.float64) for value in (a, b)]
    exact, sizes = (
        by_pairs(*values, torch.mul) for values in (wide, [arithmetic.entrywise(value, torch.abs) for value in wide])
    )
    bound = torch.finfo(dtype).eps / 2 * exact.abs() + 2**-21 * sizes + torch.finfo(dtype).smallest_normal
    assert found.dtype == a.dtype
    assert bool(((found.stacked().double() - exact).abs() <= bound).all())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("apart", list(itertools.product((False, True), repeat=2)))
def test_products_in_half_precision_round_once(dtype: torch.dtype, apart: tuple[bool, bool]) -> None:
    shapes = [*SHAPES, ((), ()), ((4,), ())]
    spans = [(0, 1), (0, 2), (1, 3), (0, ORDER + 1), (ORDER, ORDER + 1), (3, ORDER + 1)]
    for left, right in shapes:
        for one, other in itertools.product(spans, repeat=2):
            a, b = (
                half(series(one, left, apart=apart[0]), dtype),
                half(series(other, right, apart=apart[1], seed=1), dtype),
            )
            check_rounded_once(arithmetic.multiply(ORDER, a, b), a, b)
            check_rounded_once(arithmetic.multiply(ORDER, a, a), a, a)


def test_products_in_half_precision_with_gaps() -> None:
    """Rows that are zero by structure cost nothing, and one that nothing adds to is zero."""
    rows = torch.randn(3, 5).bfloat16().unbind(0)
    a = Series.of_rows([rows[0], None, None, rows[1]], ORDER)
    b = Series.of_rows([rows[2], None, None, None, rows[1]], ORDER)
    with Operators() as operators:
        found = arithmetic.multiply(ORDER, a, b)
    assert operators.counts["mul"] == 3
    assert operators.counts["addcmul"] == 0
    check_rounded_once(found, a, b)
    assert not found.coefficient(1).any()


@pytest.mark.parametrize("dtype", HALVES)
def test_a_product_in_half_precision_is_a_pass_for_each_pair(dtype: torch.dtype) -> None:
    """No casts before or after it, which are passes of their own; what it moves is what the pairs are and the sums."""
    a, b = half(series((0, 2), (30, 40)), dtype), half(series((0, 2), (30, 40), seed=1), dtype)
    with Operators() as operators, Moved() as moved:
        found = arithmetic.multiply(1, a, b)
    passes = {name: count for name, count in operators.counts.items() if name not in VIEWS}
    assert passes == {"mul": 1, "addcmul": 2}
    # Two factors and a product; two factors and a sum in float32; that, two factors and a sum. And a zero.
    assert moved.bytes == (3 + 4 + 5) * 30 * 40 * dtype.itemsize + 8
    assert found.coefficients.shape == (2, 30, 40)
    # Nothing is made above the highest order that there is.
    assert arithmetic.multiply(ORDER, a, b).stop == 3
    with Operators() as operators:
        arithmetic.multiply(1, a, a)
    assert {name: count for name, count in operators.counts.items() if name not in VIEWS} == {"mul": 1, "addcmul": 1}


@pytest.mark.parametrize("dtype", HALVES)
def test_products_in_half_precision_that_are_followed(dtype: torch.dtype) -> None:
    """The same numbers, and derivatives of them."""
    a, b = half(series((0, 3), (5,)), dtype), half(series((0, 2), (5,), seed=1), dtype)
    plain = arithmetic.multiply(ORDER, a, b).stacked()
    stack = a.coefficients.clone().requires_grad_()
    found = arithmetic.multiply(ORDER, Series(stack, ORDER), b).stacked()
    assert torch.equal(found, plain)
    (slope,) = torch.autograd.grad(found.float().sum(), stack)
    torch.testing.assert_close(slope, b.coefficients.float().sum(0).to(dtype).expand(3, 5))
    over = torch.func.vmap(lambda rows: arithmetic.multiply(ORDER, Series(rows, ORDER), b).stacked())
    assert torch.equal(over(a.coefficients[None])[0], plain)


@pytest.mark.parametrize(("left", "right"), SHAPES)
@pytest.mark.parametrize("apart", list(itertools.product((False, True), repeat=2)))
def test_products_broadcast(left: tuple[int, ...], right: tuple[int, ...], apart: tuple[bool, bool]) -> None:
    for spans in itertools.product([(0, ORDER + 1), (0, 2), (1, 2), (0, 1)], repeat=2):
        a, b = series(spans[0], left, apart=apart[0]), series(spans[1], right, apart=apart[1], seed=1)
        for one, other in ((a, b), (b, a)):
            found = arithmetic.multiply(ORDER, one, other).stacked()
            torch.testing.assert_close(found, by_pairs(one, other, torch.mul), rtol=1e-13, atol=1e-13)
        constant = b.first
        found = arithmetic.multiply(ORDER, a, constant).stacked()
        torch.testing.assert_close(found, torch.stack([row * constant for row in a.stacked().unbind(0)]))


def test_products_of_two_dtypes_are_of_the_larger() -> None:
    a, b = series((0, 3), (2,)), series((0, 5), (2,), seed=1)
    short = Series(a.coefficients.float(), ORDER)
    for one, other in ((short, b), (b, short)):
        found = arithmetic.multiply(ORDER, one, other)
        assert found.dtype == torch.float64
        wide = Series(short.coefficients.double(), ORDER)
        torch.testing.assert_close(found.stacked(), by_pairs(wide, b, torch.mul), rtol=1e-13, atol=1e-13)


def operands() -> list[Series | Tensor | complex]:
    """Series of two types, tensors with and without dims, and numbers of all kinds."""
    of = {
        dtype: torch.tensor([[1.5, -2.0], [0.5, 3.0], [2.5, 1.0]], dtype=dtype)
        for dtype in (torch.float32, torch.float64)
    }
    whole = [Series(torch.tensor([[3, 4], [1, 2]]), ORDER), torch.tensor(5), torch.tensor([7, 8])]
    floats = [Series(of[dtype], ORDER) for dtype in of]
    tensors = [torch.tensor(0.25, dtype=torch.float64), torch.tensor([0.5, 1.5]), torch.tensor([0.5, 1.5]).double()]
    return [*whole, *floats, *tensors, 2, 2.5, True, 1 + 2j]


def test_sums_and_products_with_constants_are_those_of_the_plain_operators() -> None:
    """Of each order what the coefficients give, in the type that the plain operator makes of the first."""
    for a, b in itertools.product(operands(), operands()):
        if not (isinstance(a, Series) or isinstance(b, Series)):
            continue
        rows = [
            [one.coefficient(j) if isinstance(one, Series) else one if j == 0 else 0 * one for j in range(3)]
            for one in (a, b)
        ]
        total, product = arithmetic.add(ORDER, a, b), arithmetic.multiply(ORDER, a, b)
        plain = torch.add(torch.as_tensor(arithmetic.row_of(a)), arithmetic.row_of(b))
        both = torch.result_type(*(torch.zeros(2, dtype=o.first.dtype) if isinstance(o, Series) else o for o in (a, b)))  # type: ignore[arg-type]
        assert total.dtype == product.dtype == both, (a, b)
        assert torch.equal(total.coefficient(0), plain.to(both))
        for j in range(3):
            torch.testing.assert_close(
                total.coefficient(j), torch.as_tensor(rows[0][j] + rows[1][j]).to(both).expand(2)
            )
            expected = sum(torch.as_tensor(rows[0][i] * rows[1][j - i]).to(both) for i in range(j + 1))
            torch.testing.assert_close(product.coefficient(j), torch.as_tensor(expected).expand(2))


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("shape", [(3,), ()])
def test_numbers_keep_their_digits(start: int, shape: tuple[int, ...]) -> None:
    """Also where nothing is at order 0, and where the number comes first."""
    x = series((start, 4), shape)
    assert torch.equal(arithmetic.multiply(ORDER, 0.7, x).stacked(), 0.7 * x.stacked())
    for found, expected in (
        (arithmetic.add(ORDER, x, 0.7), x.coefficient(0) + 0.7),
        (arithmetic.add(ORDER, x, 0.7, -0.3), x.coefficient(0) - 0.3 * 0.7),
        (arithmetic.add(ORDER, 0.7, x, -1), 0.7 - x.coefficient(0)),
    ):
        assert torch.equal(found.coefficient(0), expected)


def test_entries_are_mapped_by_one_call_on_a_stack() -> None:
    calls: list[Tensor] = []

    def doubled(part: Tensor) -> Tensor:
        calls.append(part)
        return 2 * part

    for apart, number in ((False, 1), (True, 3)):
        for shape in ((), (2,)):
            x = series((1, 4), shape, apart=apart)
            calls.clear()
            found = arithmetic.entrywise(x, doubled)
            assert (found.apart, len(calls)) == (apart, number)
            assert torch.equal(found.stacked(), 2 * x.stacked())


def test_a_constant_has_order_0_alone() -> None:
    like = torch.zeros(2)
    assert arithmetic.orders(2.5) == arithmetic.orders(like) == (0, 1)
    assert torch.equal(arithmetic.spread(2.5, 0, 3, like), torch.tensor([2.5, 0, 0]))
    assert torch.equal(arithmetic.spread(like + 1, 0, 2, like), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    for start in (1, 2):
        assert torch.equal(arithmetic.spread(2.5, start, 3, like), torch.zeros(3 - start))


@pytest.mark.parametrize(("left", "right"), MATRICES)
def test_matrix_products(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    for spans in itertools.product([(0, ORDER + 1), (0, 2), (1, 4), (2, 4), (4, 5)], repeat=2):
        for apart in itertools.product((False, True), repeat=2):
            a, b = series(spans[0], left, apart=apart[0]), series(spans[1], right, apart=apart[1], seed=1)
            expected = by_pairs(a, b, torch.matmul)
            torch.testing.assert_close(matrix_product(ORDER, a, b).stacked(), expected, rtol=1e-12, atol=1e-12)
            if len(right) > 1:
                turned = b.like(b.coefficients.mT.contiguous().mT)
                torch.testing.assert_close(matrix_product(ORDER, a, turned).stacked(), expected, rtol=1e-12, atol=1e-12)


def test_matrices_on_top_of_each_other_stay_in_their_memory_format() -> None:
    """As the keys of attention are, which are read transposed."""
    matrices = [*torch.randn(3, 4, 5)]
    for given in (matrices, [matrix.mT.contiguous().mT for matrix in matrices]):
        found = bilinear._on_top_of_each_other(given)
        assert torch.equal(found, torch.cat(matrices))
        assert found.stride().index(1) == given[0].stride().index(1)


def _chain(x: Series) -> Tensor:
    """Both ways to add up a product, a recurrence, and a product of matrices."""
    square = arithmetic.multiply(ORDER, x, x)
    rows = arithmetic.multiply(ORDER, Series.of_rows(square.rows(), ORDER, square.first), x)
    return matrix_product(ORDER, rows, square.like(square.coefficients.mT)).stacked()


def _of(stack: Tensor) -> Tensor:
    return _chain(Series(stack, ORDER))


def test_transformations_see_what_the_plain_run_gives() -> None:
    """Results are written part by part where nothing looks on, and only there."""
    stack = series((0, ORDER + 1), (3, 4)).coefficients
    expected = _of(stack)
    torch.testing.assert_close(make_fx(_of)(stack)(stack), expected)
    batch = torch.stack([stack, 2 * stack, -stack])
    torch.testing.assert_close(torch.vmap(_of)(batch), torch.stack([_of(item) for item in batch]))
    direction = torch.randn_like(stack)
    _, forward = torch.func.jvp(_of, (stack,), (direction,))
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.unpack_dual(_of(forward_ad.make_dual(stack, direction)))
    torch.testing.assert_close(dual.tangent, forward)
    leaf = stack.clone().requires_grad_()
    weight = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(_of(leaf), leaf, weight)
    torch.testing.assert_close((gradient * direction).sum(), (forward * weight).sum())
    step = 1e-6
    torch.testing.assert_close(
        forward, (_of(stack + step * direction) - _of(stack - step * direction)) / (2 * step), rtol=1e-6, atol=1e-6
    )


def test_a_batch_of_directions_at_one_centre() -> None:
    """(x + t x) (x + t v) for several v: a product without a batch and one with are added up."""
    x, directions = torch.randn(3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)

    expected = torch.stack([torch.stack([x * x, x * v + x * x, x * v]) for v in directions])
    for fixed in (Series.of_rows([x, x], 2, x), Series(torch.stack([x, x, 0 * x]), 2)):

        def product(direction: Tensor, fixed: Series = fixed) -> Tensor:
            return arithmetic.multiply(2, fixed, Series.of_rows([x, direction], 2, x)).stacked()

        torch.testing.assert_close(torch.vmap(product)(directions), expected)
