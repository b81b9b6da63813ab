"""The value that flows through a jet: a truncated power series in t with tensor coefficients.

A series stores only the coefficients that can differ from zero, stacked on dim 0, so that a linear op is one call on
the stack, a fresh variate c + t v costs two rows at any order, and a direction alone (t v) costs one. Coefficients that
come one by one, from a recurrence, stay apart until an op asks for the stack: the next recurrence does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jetgraph.errors import BudgetError, InputError, quoted
from jetgraph.jets.recording import may_follow

ORDER_BUDGET = 1000
"""The highest order that is computed: the time for a product grows with its square."""


def check_order(order: int) -> None:
    """Raise `BudgetError` for an order that is too high to be computed."""
    if order > ORDER_BUDGET:
        raise BudgetError(f"a jet of order {quoted(order)} would take forever: take {ORDER_BUDGET} or less")


class Series:
    """x(t) = Σ_j x_j t^j mod t^(order+1), with normalised coefficients x_j = x^(j)(0) / j!.

    `coefficients[i]` is x_(start+i), of shape `[stored, *shape]`. Orders below `start` and from `stop` on are zero by
    structure: nothing is stored or computed for them. At least one coefficient is stored (a zero, if all are). The
    value of a series never changes once it is built.

    >>> x = Series.variate(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0]), order=3)
    >>> x.start, x.stop, x.order, x.shape
    (0, 2, 3, torch.Size([2]))
    >>> x.stacked().shape
    torch.Size([4, 2])
    """

    __slots__ = ("_room", "_rows", "_stack", "order", "start")

    def __init__(self, coefficients: Tensor, order: int, start: int = 0) -> None:
        if coefficients.dim() == 0:
            raise InputError("the coefficients of a series are stacked on dim 0, but a 0-dim tensor was given")
        if order < 0 or start < 0:
            raise InputError(f"orders are not negative, but order={order} and start={start} were given")
        room = order + 1 - start
        if room <= 0:
            coefficients, start = coefficients.new_zeros((1, *coefficients.shape[1:])), 0
        elif coefficients.shape[0] > room:
            coefficients = coefficients[:room]
        self._stack: Tensor | None = coefficients
        self._rows: Sequence[Tensor | None] = ()
        self._room: Tensor | None = None
        self.order = order
        self.start = start

    @classmethod
    def of_rows(cls, rows: Sequence[Tensor | None], order: int, like: Tensor | None = None) -> Series:
        """The series whose coefficients are `rows` (index = order, None = zero by structure).

        Each gets the dtype and the shape of `like`, being broadcast to it. Without `like`, which a series needs that is
        zero throughout, they have those of the first.

        Raises
        ------
        InputError
            All rows are zero by structure, and `like` is not given.
        """
        rows = rows[: order + 1]
        present = [j for j, row in enumerate(rows) if row is not None]
        if not present:
            if like is None:
                raise InputError("a series all of whose rows are zero by structure needs `like` for its shape")
            return cls(torch.zeros_like(like).unsqueeze(0), order)
        start, stop = present[0], present[-1] + 1
        held = list(rows[start:stop])
        if like is not None:
            held = [None if row is None else row.to(like.dtype) for row in held]
            held = [row if row is None or row.shape == like.shape else row.expand(like.shape) for row in held]
        first = held[0]
        assert first is not None
        series = cls(first.unsqueeze(0), order, start)
        if len(held) > 1:
            series._stack, series._rows = None, held
        return series

    @classmethod
    def beside(cls, first: Tensor, room: Tensor, order: int) -> Series:
        """`first` at order 0, and above it `room[1:]`; `room[0]` is free, so that their stack costs one copy."""
        series = cls.of_rows([first, *room[1:].unbind(0)], order)
        if series.apart and len(room) <= order + 1:
            series._room = room
        return series

    @classmethod
    def variate(cls, centre: Tensor, direction: Tensor, order: int) -> Series:
        """centre + t · direction; both of one shape and dtype.

        Raises
        ------
        InputError
            They differ in one of these.
        """
        if centre.shape != direction.shape or centre.dtype != direction.dtype:
            raise InputError(
                f"centre and direction differ: {list(centre.shape)} {centre.dtype} and "
                f"{list(direction.shape)} {direction.dtype}; give the direction the centre's shape and dtype"
            )
        if order == 0:
            return cls.constant(centre, 0)
        return cls(stack_of((centre, direction)), order)

    @classmethod
    def direction(cls, value: Tensor, order: int = 1) -> Series:
        """t · value: without a constant term, which is all that linear parts need."""
        return cls(value.unsqueeze(0), order, 1)

    @classmethod
    def constant(cls, value: Tensor, order: int) -> Series:
        """`value` at order 0, zero above."""
        return cls(value.unsqueeze(0), order)

    @property
    def coefficients(self) -> Tensor:
        """x_start … x_(stop-1), of shape `[stop - start, *shape]`."""
        if self._stack is None:
            if self._room is None:
                self._stack = torch.stack(self.stored())
            else:
                self._room[0].copy_(self.first)
                self._stack = self._room
            self._rows, self._room = (), None
        return self._stack

    @property
    def apart(self) -> bool:
        """The coefficients do not lie in one tensor yet: `coefficients` copies them, `rows` and `stored` do not."""
        return self._stack is None

    @property
    def first(self) -> Tensor:
        """x_start; of the shape, dtype and device of all."""
        row = self._rows[0] if self._stack is None else self._stack[0]
        assert row is not None
        return row

    @property
    def stop(self) -> int:
        """One more than the highest order that is stored."""
        return self.start + (len(self._rows) if self._stack is None else self._stack.shape[0])

    @property
    def shape(self) -> torch.Size:
        """Shape of one coefficient."""
        return self.first.shape if self._stack is None else self._stack.shape[1:]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.first.dtype if self._stack is None else self._stack.dtype

    @property
    def device(self) -> torch.device:
        return self.first.device if self._stack is None else self._stack.device

    @property
    def varies(self) -> bool:
        """Some coefficient above order 0 is stored."""
        return self.stop > 1

    def coefficient(self, j: int) -> Tensor:
        """x_j, of shape `shape`; zeros where nothing is stored."""
        row = self.row(j)
        return torch.zeros_like(self.first) if row is None else row

    def row(self, j: int) -> Tensor | None:
        """x_j, or None where it is zero by structure."""
        if not self.start <= j < self.stop:
            return None
        return self._rows[j - self.start] if self._stack is None else self._stack[j - self.start]

    def rows(self) -> list[Tensor | None]:
        """x_0 … x_order, None where zero by structure."""
        held = self._rows if self._stack is None else self._stack.unbind(0)
        return [*[None] * self.start, *held, *[None] * (self.order + 1 - self.stop)]

    def stored(self) -> list[Tensor]:
        """x_start … x_(stop-1), one by one, zeros filled in."""
        if self._stack is not None:
            return list(self._stack.unbind(0))
        return [torch.zeros_like(self.first) if row is None else row for row in self._rows]

    def span(self, start: int, stop: int) -> Tensor:
        """x_start … x_(stop-1) stacked, of shape `[stop - start, *shape]`, zeros filled in."""
        low, high = max(start, self.start), min(stop, self.stop)
        if low >= high:
            return self.first.new_zeros((stop - start, *self.shape))
        if (low, high) == (self.start, self.stop):
            held = self.coefficients
        elif self._stack is None:
            held = stack_of(self.stored()[low - self.start : high - self.start])
        else:
            held = self._stack[low - self.start : high - self.start]
        if (low, high) == (start, stop):
            return held
        parts = [held]
        if low > start:
            parts.insert(0, held.new_zeros((low - start, *self.shape)))
        if high < stop:
            parts.append(held.new_zeros((stop - high, *self.shape)))
        return torch.cat(parts)

    def stacked(self) -> Tensor:
        """All coefficients, of shape `[order + 1, *shape]`."""
        return self.span(0, self.order + 1)

    def raised(self, power: int, order: int) -> Series:
        """t^power · x, up to `order`."""
        if self._stack is not None:
            return Series(self._stack, order, self.start + power)
        return Series.of_rows([*[None] * (self.start + power), *self._rows], order, self.first)

    def like(self, coefficients: Tensor) -> Series:
        """The series of the same orders with other coefficients, such as a linear op's result on the stack."""
        return Series(coefficients, self.order, self.start)

    def __repr__(self) -> str:
        shape = ", ".join(map(str, self.shape))
        return f"Series(orders {self.start}..{self.stop - 1} of 0..{self.order}, {self.dtype}[{shape}])"


def stack_of(rows: Sequence[Tensor]) -> Tensor:
    """The rows as a stack, to be read: the memory in which they lie one after the other, where nothing follows what is
    made of it; else a copy.
    """
    first = rows[0]
    if len(rows) == 1:
        return first.unsqueeze(0)
    if may_follow() or not _lie_in_a_row(rows):
        return torch.stack([*rows])
    return first.as_strided((len(rows), *first.shape), (first.numel(), *first.stride()))


def _lie_in_a_row(rows: Sequence[Tensor]) -> bool:
    """They are one after the other in one memory, in which whatever is between its first and its last is."""
    first, last = rows[0], rows[-1]
    if type(first) is not Tensor or type(last) is not Tensor:
        return False
    if first.untyped_storage()._cdata != last.untyped_storage()._cdata:
        return False
    shape, dtype, size, place = first.shape, first.dtype, first.nbytes, first.data_ptr()
    for row in rows:
        if type(row) is not Tensor or row.data_ptr() != place or row.shape != shape:
            return False
        if row.dtype is not dtype or not row.is_contiguous():
            return False
        place += size
    return True


def centre(value: Any) -> Any:
    """`value` with every series in it, nested in lists, tuples and dicts too, replaced by its coefficient 0."""
    if isinstance(value, Series):
        return value.coefficient(0)
    if isinstance(value, (list, tuple)):
        return type(value)(centre(item) for item in value)
    if isinstance(value, dict):
        return {key: centre(item) for key, item in value.items()}
    return value


def coefficient(value: Any, order: int) -> Tensor:
    """The coefficient of what a function of a series gave; a plain tensor did not depend on the variate."""
    if isinstance(value, Series):
        return value.coefficient(order)
    return value if order == 0 else torch.zeros_like(value)


def rows_of(value: Any, order: int) -> list[Tensor | None]:
    """x_0 … x_order of a series, or of a plain tensor, which is its own coefficient 0; None where zero by structure."""
    return value.rows() if isinstance(value, Series) else [value, *[None] * order]


def has_series(value: Any) -> bool:
    """`value` is a series or holds one, in lists, tuples and dicts too."""
    if isinstance(value, Series):
        return True
    if isinstance(value, (list, tuple)):
        return any(map(has_series, value))
    if isinstance(value, dict):
        return any(map(has_series, value.values()))
    return False
