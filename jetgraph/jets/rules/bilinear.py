"""Products: ops that are linear in each of two arguments. Coefficient j is Σ_i product(a_i, b_(j-i)).

A factor that does not vary leaves a linear op on the other's stack; a structural zero costs nothing. Products of
half-precision matrices stay what they are; where several are added up one after the other, their sum is in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jetgraph.jets import arithmetic
from jetgraph.jets.arithmetic import align, cast, promoted, rank, widened
from jetgraph.jets.recording import may_follow
from jetgraph.jets.registry import find_op, register_rule
from jetgraph.jets.rules.centres import with_own_centre
from jetgraph.jets.rules.linear import fold
from jetgraph.jets.series import Series

aten = torch.ops.aten
Product = Callable[[Any, Any], Tensor]


def pairs(order: int, a: Any, b: Any, product: Product) -> Series:
    """Σ_i product(a_i, b_(j-i)), pair by pair; a and b are series or constants, at least one a series."""
    if not isinstance(b, Series):
        return a.like(torch.stack([product(row, b) for row in a.stored()]))
    if not isinstance(a, Series):
        return b.like(torch.stack([product(a, row) for row in b.stored()]))
    rows: list[Tensor | None] = [None] * (order + 1)
    for i, left in enumerate(a.stored(), a.start):
        for m, right in enumerate(b.stored(), b.start):
            if i + m > order:
                break
            value, so_far = product(left, right), rows[i + m]
            rows[i + m] = value if so_far is None else widened(so_far) + value
    return _summed(rows, order, lambda: product(a.first, b.first))


def _summed(rows: list[Tensor | None], order: int, product: Callable[[], Tensor]) -> Series:
    """The series of rows of which only those that are sums are in the working dtype; `product` is one of the products,
    asked for where there is no row at all."""
    # Row 0, or the lowest there is, is one product only, and has the dtype of all.
    lowest = next((row for row in rows if row is not None), None)
    return Series.of_rows(rows, order, product() if lowest is None else lowest)


def bilinear(op: Any, left: str, right: str) -> None:
    """An op of two factors, nothing added, run pair by pair."""
    names = [argument.name for argument in op._schema.arguments]
    first, second = names.index(left), names.index(right)

    def rule(order: int, *args: Any, **kwargs: Any) -> Series:
        def product(a: Any, b: Any) -> Tensor:
            given = list(args)
            given[first], given[second] = a, b
            return op(*given, **kwargs)

        return pairs(order, args[first], args[second], product)

    register_rule(op, rule, kind="bilinear", affine=(left, right))


for _op, _left, _right in (
    (aten.outer.default, "self", "vec2"),
    (aten.dot.default, "self", "tensor"),
    (aten.vdot.default, "self", "other"),
    (aten.inner.default, "self", "other"),
    (aten.mv.default, "self", "vec"),
    (aten.kron.default, "self", "other"),
    (aten.tensordot.default, "self", "other"),
    (aten.linalg_cross.default, "self", "other"),
    (aten.linalg_vecdot.default, "x", "y"),
):
    bilinear(_op, _left, _right)


# Elementwise products


def _multiply(order: int, a: Any, b: Any) -> Series:
    return arithmetic.multiply(order, a, b)


register_rule(aten.mul.Tensor, _multiply, kind="bilinear", affine=("self", "other"))
register_rule(aten.mul.Scalar, _multiply, kind="linear")


@register_rule(aten.addcmul.default, kind="bilinear", affine=("self tensor1", "self tensor2"))
def _addcmul(order: int, a: Any, b: Any, c: Any, *, value: float = 1) -> Series:
    """a + value · b · c"""
    left, right = widened(b), widened(c)
    varies = isinstance(b, Series) or isinstance(c, Series)
    product = _multiply(order, left, right) if varies else left * right
    return cast(arithmetic.add(order, a, product, value), promoted(a, b, c))


@register_rule(
    aten.lerp.Tensor,
    kind="bilinear",
    affine=("self end", "weight"),
    added=lambda bound, moving: [bound["self"]] if "weight" in moving else None,
)
@partial(with_own_centre, aten.lerp.Tensor)
def _lerp(order: int, a: Any, b: Any, weight: Any) -> Any:
    """a + weight · (b - a)"""
    dtype = promoted(a, b, weight)
    a, b, weight = widened(a), widened(b), widened(weight)
    step = arithmetic.add(order, b, a, -1) if isinstance(a, Series) or isinstance(b, Series) else b - a
    return cast(arithmetic.add(order, a, _multiply(order, weight, step)), dtype)


# Matrix products


def matrix_product(order: int, a: Any, b: Any) -> Series:
    """matmul of series or constants, of any rank."""
    left_vector, right_vector = rank(a) == 1, rank(b) == 1
    ndim = max(rank(a), rank(b), 2)

    def dropped(product: Tensor) -> Tensor:
        if right_vector:
            product = product.squeeze(-1)
        return product.squeeze(-1 if right_vector else -2) if left_vector else product

    start = sum(value.start for value in (a, b) if isinstance(value, Series))
    if start > order or not all(isinstance(value, Series) and value.stop - value.start > 1 for value in (a, b)):
        return Series(dropped(torch.matmul(_as_matrix(a, ndim, -2), _as_matrix(b, ndim, -1))), order, start)
    left, right = ([_matrix(row, dim) for row in value.stored()] for value, dim in ((a, -2), (b, -1)))
    rows = [dropped(product) for product in _contracted(left, right, order + 1 - start)]
    return Series.of_rows([*[None] * start, *rows], order)


def _contracted(left: list[Tensor], right: list[Tensor], count: int) -> list[Tensor]:
    """Σ_i left[i] · right[j - i] for j < count, as one product each, over a contraction up to j + 1 times as long.

    [left_0 … left_j] and [right_j; …; right_0] are slices of one wide and of one tall matrix.
    """
    left, right = left[:count], right[:count]
    inner, last = left[0].shape[-1], len(right) - 1
    wide, tall = torch.cat(left, -1), _on_top_of_each_other(right[::-1])
    products: list[Tensor] = []
    for j in range(min(count, len(left) + last)):
        low, high = max(0, j - last), min(len(left) - 1, j)
        columns = slice(low * inner, (high + 1) * inner)
        rows = slice((last - j + low) * inner, (last - j + high + 1) * inner)
        products.append(torch.matmul(wide[..., columns], tall[..., rows, :]))
    return products


def _on_top_of_each_other(matrices: list[Tensor]) -> Tensor:
    """cat along dim -2, in the memory format of the matrices: transposed ones, as kᵀ of attention, stay transposed."""
    if all(matrix.stride(-2) == 1 for matrix in matrices):
        return torch.cat([matrix.mT for matrix in matrices], -1).mT
    return torch.cat(matrices, -2)


def _matrix(value: Tensor, vector_dim: int) -> Tensor:
    """A matrix, which a vector is with `vector_dim` of size 1."""
    return value.unsqueeze(vector_dim) if value.dim() == 1 else value


def _as_matrix(value: Any, ndim: int, vector_dim: int) -> Tensor:
    """A stack (or a constant) with coefficients of at least two dims, aligned to `ndim`."""
    if not isinstance(value, Series):
        return _matrix(value, vector_dim)
    stack = value.coefficients
    return align(stack.unsqueeze(vector_dim) if value.ndim == 1 else stack, ndim)


for _op, _left, _right in (
    (aten.matmul.default, "self", "other"),
    (aten.mm.default, "self", "mat2"),
    (aten.bmm.default, "self", "mat2"),
):
    register_rule(_op, matrix_product, kind="bilinear", affine=(_left, _right))


def plain_at_order_0(
    x: Series, op: Callable[[Tensor, bool], Tensor], constant: Any, into: Callable[[Tensor, Tensor], Any] | None = None
) -> Series:
    """A linear op, which adds a constant at order 0; there by the call of the plain op, which rounds once.

    Parameters
    ----------
    x
        The series.
    op
        The op on a stack of coefficients, with the constant or without.
    constant
        What the op adds, as it goes with the shape of its result; None where there is none.
    into
        Writes the op on a stack, without the constant, to memory for its result; None where it cannot be had so.
    """
    if constant is None:
        return x.like(op(x.coefficients, False))
    if x.start > 0:
        # Coefficient 0 is zero, so that the constant is all there.
        return arithmetic.add(x.order, x.like(op(x.coefficients, False)), constant)
    if x.stop == 1:
        return x.like(op(x.coefficients, True))
    first, above = op(x.first.unsqueeze(0), True), x.span(1, x.stop)
    if into is None or may_follow() or not first.is_contiguous():
        return Series.of_rows([first[0], *op(above, False).unbind(0)], x.order)
    room = first.new_empty((len(above) + 1, *first.shape[1:]))
    into(above, room[1:])
    return Series.beside(first[0], room, x.order)


def _product_into(weight: Tensor, turned: bool = False) -> Callable[[Tensor, Tensor], Any] | None:
    """Writes x @ weight to memory, or x @ weightᵀ; None of weights that see to themselves, such as those in files."""
    if type(weight) not in (Tensor, nn.Parameter, nn.Buffer) or weight.dim() != 2:
        return None

    def write(stack: Tensor, out: Tensor) -> Tensor:
        rows = stack.reshape(-1, stack.shape[-1])
        return torch.mm(rows, weight.t() if turned else weight, out=out.view(-1, out.shape[-1]))

    return write


def _added_product(op: Any) -> Callable[..., Series]:
    """beta · bias + alpha · a @ b"""

    def rule(order: int, bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Series:
        if isinstance(a, Series) and not isinstance(b, Series) and not isinstance(bias, Series):

            def multiplied(stack: Tensor, first: bool) -> Tensor:
                if first:
                    return op(bias, stack[0], b, beta=beta, alpha=alpha).unsqueeze(0)
                product = torch.matmul(stack, b)
                return product if alpha == 1 else product * alpha

            added = bias if beta == 1 else bias * beta
            return plain_at_order_0(a, multiplied, added, _product_into(b) if alpha == 1 else None)
        if isinstance(a, Series) or isinstance(b, Series):
            product: Any = matrix_product(order, a, b)
            if alpha != 1:
                product = product.like(product.coefficients * alpha)
        else:
            product = torch.matmul(a, b) * alpha
        if beta == 0:
            return product
        if isinstance(product, Series) and not isinstance(bias, Series):
            return plus_constant(product, bias if beta == 1 else bias * beta)
        scaled = bias if beta == 1 else arithmetic.multiply(order, bias, beta)
        return arithmetic.add(order, product, scaled)

    return rule


def plus_constant(x: Series, value: Tensor) -> Series:
    """x + value for a freshly computed x that nobody else holds and whose shape the value does not enlarge."""
    if x.start > 0:
        return arithmetic.add(x.order, x, value)
    x.coefficients[0].add_(value)
    return x


for _op, _left, _right in (
    (aten.addmm.default, "mat1", "mat2"),
    (aten.baddbmm.default, "batch1", "batch2"),
    (aten.addmv.default, "mat", "vec"),
):
    register_rule(_op, _added_product(_op), kind="bilinear", affine=(f"self {_left}", f"self {_right}"))


@register_rule(aten.linear.default, kind="bilinear", affine=("input bias", "weight bias"))
def _linear(order: int, x: Any, weight: Any, bias: Any = None) -> Series:
    """x Wᵀ + b"""
    if not isinstance(weight, Series) and isinstance(x, Series):
        if not isinstance(bias, Series):

            def layer(part: Tensor, first: bool) -> Tensor:
                return F.linear(part, weight, bias if first else None)

            return plain_at_order_0(x, layer, bias, _product_into(weight, turned=True))
        product = x.like(F.linear(x.coefficients, weight))
    elif isinstance(weight, Series):
        turned = weight.like(weight.coefficients.transpose(-1, -2) if weight.ndim == 2 else weight.coefficients)
        product = matrix_product(order, x, turned)
    else:
        return arithmetic.add(order, F.linear(x, weight), bias)
    if bias is None:
        return product
    return arithmetic.add(order, product, bias) if isinstance(bias, Series) else plus_constant(product, bias)


@register_rule(
    aten.einsum.default,
    kind="bilinear",
    affine="tensors",
    when=lambda bound, moving: moving["tensors"] == 1,
    # The tensors beside the varying one are factors.
    added=lambda bound, moving: (),
)
def _einsum(order: int, equation: str, tensors: Sequence[Any], *, path: Any = None) -> Series:
    """A product of any number of tensors: the coefficients' convolution, over all factors."""
    rows: list[Tensor | None] = [None] * (order + 1)

    def descend(chosen: list[Tensor], left: int) -> None:
        place = len(chosen)
        if place == len(tensors):
            value, so_far = torch.einsum(equation, *chosen), rows[order - left]
            rows[order - left] = value if so_far is None else widened(so_far) + value
            return
        factor = tensors[place]
        if not isinstance(factor, Series):
            descend([*chosen, factor], left)
            return
        for i, row in enumerate(factor.stored(), factor.start):
            if i <= left:
                descend([*chosen, row], left - i)

    def product() -> Tensor:
        plain = [value.first if isinstance(value, Series) else value for value in tensors]
        return torch.einsum(equation, *plain)

    descend([], order)
    return _summed(rows, order, product)


# Convolutions


def _convolution(op: Any, spatial: int | None) -> None:
    """Input, weight and bias; the stack joins the batch where only the input varies."""

    def rule(order: int, x: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Series:
        dims = rank(weight) - 2 if spatial is None else spatial
        if isinstance(x, Series) and not isinstance(weight, Series):
            if not isinstance(bias, Series):

                def convolved(stack: Tensor, first: bool) -> Tensor:
                    batch, unfold = fold(stack, dims)
                    return unfold(op(batch, weight, bias if first else None, *args, **kwargs))

                return plain_at_order_0(x, convolved, None if bias is None else bias.reshape(-1, *[1] * dims))
            batch, unfold = fold(x.coefficients, dims)
            product: Any = x.like(unfold(op(batch, weight, None, *args, **kwargs)))
        elif isinstance(weight, Series):
            product = pairs(order, x, weight, lambda a, b: op(a, b, None, *args, **kwargs))
        else:
            product = op(x, weight, None, *args, **kwargs)
        if bias is None:
            return product
        if isinstance(bias, Series):
            return arithmetic.add(order, product, bias.like(bias.coefficients.reshape(-1, *bias.shape, *[1] * dims)))
        return plus_constant(product, bias.reshape(-1, *[1] * dims))

    register_rule(op, rule, kind="bilinear", affine=("input bias", "weight bias"))


for _op, _spatial in (
    (aten.conv1d.default, 1),
    (aten.conv2d.default, 2),
    (aten.conv3d.default, 3),
    (aten.conv1d.padding, 1),
    (aten.conv2d.padding, 2),
    (aten.conv3d.padding, 3),
    (aten.convolution.default, None),
    (aten.conv_transpose1d.default, 1),
    (aten.conv_transpose2d.input, 2),
    (aten.conv_transpose3d.input, 3),
):
    _convolution(_op, _spatial)


@register_rule(aten.embedding.default, kind="linear", affine="weight")
def _embedding(order: int, weight: Series, indices: Tensor, *args: Any, **kwargs: Any) -> Series:
    """Rows of a varying table."""
    return weight.like(weight.coefficients[:, indices])


# Experts


def _grouped(op: Any, left: str, right: str) -> None:
    """Rows of the left factor, grouped by offset, each group by its own matrix of the right."""

    def rule(order: int, a: Any, b: Any, *args: Any, **kwargs: Any) -> Series:
        plain = find_op(op) if isinstance(op, str) else op
        return pairs(order, a, b, lambda first, second: plain(first, second, *args, **kwargs))

    register_rule(op, rule, kind="bilinear", affine=(left, right))


_grouped(aten._grouped_mm.default, "self", "mat2")
_grouped("transformers.grouped_mm_fallback.default", "input", "weight")
