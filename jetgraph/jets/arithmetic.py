"""Sums and products of series, with the broadcasting and type promotion of the plain ops.

Operands are series, tensors or numbers. A coefficient keeps its own rank under the stack, so a stack is aligned with
an operand of higher rank by size-1 dims after dim 0, and promotion asks the coefficients, not the stack: a 0-dim
coefficient does not promote, although its stack is 1-dim.

Sums of products of half-precision series run in float32 and are rounded once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from jetgraph.jets.recording import is_followed
from jetgraph.jets.series import Series

Operand = Series | Tensor | float | int | bool | complex


def row_of(value: Operand) -> Any:
    """What stands for the operand in shape and type questions: one coefficient of a series."""
    return value.first if isinstance(value, Series) else value


def rank(value: Operand) -> int:
    """Number of dims of one coefficient."""
    return value.ndim if isinstance(value, Series | Tensor) else 0


def promoted(*values: Operand) -> torch.dtype:
    """The dtype that the plain op gives for these operands."""
    rows = [row_of(value) for value in values]
    tensors = [row for row in rows if isinstance(row, Tensor)]
    alike = len({row.dtype for row in tensors}) == 1 and tensors[0].is_floating_point()
    if alike and not any(isinstance(row, complex) for row in rows):
        return tensors[0].dtype
    result = rows[0]
    for row in rows[1:]:
        dtype = torch.result_type(result, row)
        dims = max(rank(result), rank(row))
        result = torch.empty((1,) * dims, dtype=dtype, device="meta")
    return torch.result_type(result, result)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Where recurrences and sums of products run: half precision would round every step of them."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def cast(value: Any, dtype: torch.dtype) -> Any:
    """A tensor or series in that dtype."""
    if value.dtype == dtype:
        return value
    return entrywise(value, lambda part: part.to(dtype)) if isinstance(value, Series) else value.to(dtype)


def widened(value: Any) -> Any:
    """A tensor or series in its working dtype; a number as it is."""
    return cast(value, working_dtype(value.dtype)) if isinstance(value, Series | Tensor) else value


def align(stack: Tensor, ndim: int) -> Tensor:
    """The stack `[n, *shape]` with shape padded on the left to `ndim` dims."""
    missing = ndim + 1 - stack.dim()
    return stack if missing <= 0 else stack.reshape(stack.shape[0], *(1,) * missing, *stack.shape[1:])


def entrywise(x: Series, function: Callable[[Tensor], Tensor], ndim: int = 0) -> Series:
    """function(x_j) at every stored order, by one call on the stack where there is one.

    The function goes entry by entry; what else it reads has at most `ndim` dims.
    """
    if not x.apart:
        return x.like(function(align(x.coefficients, ndim)))
    rows = [None if row is None else function(row) for row in x.rows()]
    return Series.of_rows(rows, x.order)


def spread(value: Operand, start: int, stop: int, like: Tensor) -> Tensor:
    """Coefficients start..stop-1 of any operand, stacked; of a constant, itself at order 0 and zeros above."""
    if isinstance(value, Series):
        return value.span(start, stop)
    tensor = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if start > 0:
        return torch.zeros((stop - start, *tensor.shape), dtype=tensor.dtype, device=tensor.device)
    row = tensor.unsqueeze(0)
    return row if stop == 1 else torch.cat((row, row.new_zeros((stop - 1, *tensor.shape))))


def orders(*values: Any) -> tuple[int, int]:
    """The smallest range start..stop that holds every stored coefficient; a constant counts as order 0."""
    spans = [(value.start, value.stop) if isinstance(value, Series) else (0, 1) for value in values]
    return min(start for start, _ in spans), max(stop for _, stop in spans)


def add(order: int, a: Operand, b: Operand, alpha: float | int = 1) -> Series:
    """a + alpha · b; coefficient j is a_j + alpha b_j."""
    dtype = promoted(a, b)
    if isinstance(a, Series) and isinstance(b, Series) and not (a.apart or b.apart) and orders(a) == orders(b):
        ndim = max(a.ndim, b.ndim)
        total = torch.add(align(a.coefficients, ndim), align(b.coefficients, ndim), alpha=alpha)
        return Series(total.to(dtype), order, a.start)
    start, stop = orders(a, b)
    shape = _broadcast(shape_of(a), shape_of(b))
    rows: list[Tensor | None] = [None] * start
    for j in range(start, stop):
        left, right = row_at(a, j), row_at(b, j)
        if left is None and right is None:
            rows.append(None)
        elif right is None:
            assert left is not None
            rows.append(_written(left, dtype, b).to(dtype).expand(shape))
        elif left is None:
            scaled = right if alpha == 1 else right * alpha
            rows.append(_written(scaled, dtype, a).to(dtype).expand(shape))
        else:
            rows.append(torch.add(_written(left, dtype, b), right, alpha=alpha).to(dtype))
    return Series.of_rows(rows, order)


def _written(value: Any, dtype: torch.dtype, beside: Operand) -> Tensor:
    """A number as a tensor of that type, where the other operand is; a tensor as it is."""
    if isinstance(value, Tensor):
        return value
    return torch.as_tensor(value, dtype=dtype, device=row_of(beside).device)


def row_at(value: Any, j: int) -> Any:
    """Coefficient j, None where it is zero by structure; a constant has only order 0."""
    if isinstance(value, Series):
        return value.row(j)
    return value if j == 0 else None


def shape_of(value: Any) -> torch.Size:
    """Shape of one coefficient."""
    return value.shape if isinstance(value, Series | Tensor) else torch.Size()


def _broadcast(a: torch.Size, b: torch.Size) -> torch.Size:
    """As `torch.broadcast_shapes`, which takes tens of microseconds."""
    return a if a == b or not b else b if not a else torch.broadcast_shapes(a, b)


def multiply(order: int, a: Operand, b: Operand) -> Series:
    """a · b elementwise; coefficient j is Σ_i a_i b_(j-i)."""
    dtype = promoted(a, b)
    if not isinstance(a, Series):
        a, b = b, a
    assert isinstance(a, Series)
    if isinstance(b, Series) and a.stop - a.start == 1:
        a, b = b, a
    if isinstance(b, Series) and b.stop - b.start > 1:
        if a.dtype == b.dtype == dtype != working_dtype(dtype) and _writable(a, b):
            return _rounded_once(order, a, b)
        left = cast(a, working_dtype(dtype))
        return cast(_convolved(order, left, left if a is b else cast(b, left.dtype)), dtype)
    factor = row_of(b)
    product = entrywise(a, lambda part: (part * factor).to(dtype), rank(b))
    return product.raised(b.start, order) if isinstance(b, Series) and b.start else product


def _convolved(order: int, a: Series, b: Series) -> Series:
    """a · b for two that have several coefficients, of one dtype."""
    start = a.start + b.start
    count = min(order + 1, a.stop + b.stop - 1) - start
    if count <= 0:
        return Series.constant(torch.zeros_like(a.first * b.first), order)
    for one, other in ((a, b), (b, a)):
        if not one.apart and one.stop - one.start >= count and _writable(one, other):
            stack = align(one.coefficients[:count], other.ndim)
            return Series(_squared(stack) if a is b else _multiplied(stack, other.rows()[other.start :]), order, start)
    left = a.rows()
    return Series.of_rows(convolve(left, left if a is b else b.rows(), order), order)


def _rounded_once(order: int, a: Series, b: Series) -> Series:
    """a · b of one type in half precision. Operators cast what they read and what they write as they go: a product is
    one pass over memory, and a sum of n of them n, of which the last one rounds."""
    start, shape = a.start + b.start, _broadcast(a.shape, b.shape)
    left = a.rows()
    right = left if a is b else b.rows()
    room = a.first.new_empty((max(0, min(order + 1, a.stop + b.stop - 1) - start), *shape))
    # Beside it factors are brought to its type, which they are not beside one another.
    zero = torch.zeros((1,) * len(shape), dtype=working_dtype(a.dtype), device=a.device)
    for j, row in enumerate(room.unbind(0), start):
        terms = _squares(left, j) if a is b else [(left[i], right[j - i], 1) for i in range(j, -1, -1)]
        held = [(x, y, times) for x, y, times in terms if x is not None and y is not None]
        total = zero
        for x, y, times in held[:-1]:
            total = torch.addcmul(zero, x, y, value=times) if total is zero else total.addcmul_(x, y, value=times)
        if not held:
            row.zero_()
        elif held[1:] or held[0][2] != 1:
            torch.addcmul(total, held[-1][0], held[-1][1], value=held[-1][2], out=row)
        else:
            torch.mul(held[0][0], held[0][1], out=row)
    return Series(room, order, start)


def _squares(rows: list[Tensor | None], j: int) -> list[tuple[Tensor | None, Tensor | None, int]]:
    """Pairs of rows and how often each is in Σ_i rows[i] · rows[j - i]."""
    return [(rows[i], rows[j - i], 2 - (2 * i == j)) for i in range(j // 2 + 1)]


def _multiplied(stack: Tensor, rows: list[Tensor | None]) -> Tensor:
    """Σ_i stack[j - i] · rows[i] for every j: a call a row, added up where the stack of the result stays."""
    count, first = stack.shape[0], rows[0]
    assert first is not None
    total = stack * first
    for i, row in enumerate(rows[1:count], 1):
        if row is not None:
            total[i:].addcmul_(stack[: count - i], row)
    return total


def _squared(stack: Tensor) -> Tensor:
    """Σ_i stack[i] · stack[j - i] for every j, each pair once."""
    count = stack.shape[0]
    total = stack * (stack[0] * 2)
    torch.mul(stack[0], stack[0], out=total[0])
    for i in range(1, (count + 1) // 2):
        total[2 * i].addcmul_(stack[i], stack[i])
        total[2 * i + 1 :].addcmul_(stack[i + 1 : count - i], stack[i], value=2)
    return total


def _writable(*values: Series) -> bool:
    """Parts of a tensor may be written one after the other: nothing records, transforms or compiles the ops."""
    rows = (row for value in values for row in _held(value))
    return not any(is_followed(row) or is_functorch_wrapped_tensor(row) for row in rows)


def _held(value: Series) -> Iterable[Tensor]:
    """The tensors that a series consists of."""
    return (row for row in value.rows() if row is not None) if value.apart else (value.coefficients,)


def convolve(a: list[Tensor | None], b: list[Tensor | None], order: int) -> list[Tensor | None]:
    """Rows 0..order of the product of two series given by their rows."""
    if a is b:
        return [square_at(a, j) for j in range(order + 1)]
    return [dot(a, b, j) for j in range(order + 1)]


def dot(
    a: list[Tensor | None],
    b: list[Tensor | None],
    j: int,
    first: int = 0,
    last: int | None = None,
    weight: Callable[[int], float] | None = None,
    onto: Tensor | None = None,
) -> Tensor | None:
    """Σ_{i=first..last} weight(i) a_i b_(j-i), None if every product is zero by structure.

    With `onto`, the sum of both, written over it.
    """
    for i in range(j if last is None else last, first - 1, -1):
        left, right = a[i], b[j - i]
        if left is None or right is None:
            continue
        onto = _plus_product(onto, left, right, 1 if weight is None else weight(i))
    return onto


def _plus_product(total: Tensor | None, a: Tensor, b: Tensor, factor: float) -> Tensor | None:
    """total + factor · a b, written over `total`, which nobody else holds."""
    if total is None:
        return None if factor == 0 else a * b if factor == 1 else (a * b).mul_(factor)
    if not torch.compiler.is_compiling() and (is_functorch_wrapped_tensor(a) or is_functorch_wrapped_tensor(b)):
        # The batch of a vmap does not fit into a total without one; a compiler cannot ask.
        return torch.addcmul(total, a, b, value=factor)
    return total.addcmul_(a, b, value=factor)


def square_at(a: list[Tensor | None], j: int) -> Tensor | None:
    """Σ_i a_i a_(j-i), each pair once."""
    total: Tensor | None = None
    middle = a[j // 2] if j % 2 == 0 else None
    if middle is not None:
        total = middle * middle
    for i in range((j + 1) // 2):
        left, right = a[i], a[j - i]
        if left is not None and right is not None:
            total = _plus_product(total, left, right, 2)
    return total
