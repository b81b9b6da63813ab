"""Orders of jets that are not given but chosen: the lowest one that leaves no more than a tolerance, and why.

What an order leaves is known in one of two ways. A norm along a line has a closed form (`matching.left_by_orders`), for
which no order has to be evaluated: that is a certificate, in the units of the norm. Elsewhere orders are raised one by
one, and what each leaves is measured; the ratio of successive ones says whether a higher one is worth it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from jetgraph.errors import InputError, quoted

_Made = TypeVar("_Made")

Auto = Literal["auto"]
"""An order that is chosen."""

HIGHEST = 8
"""No higher order is chosen."""

TOLERANCE = 0.01
"""What may be left unless told otherwise: a share of the true value."""


WORTH = 0.9
"""Where orders are costly, ratios of successive ones above this are not worth another."""


@dataclass(frozen=True)
class ChosenOrder:
    """An order, and why it was chosen."""

    order: int
    tolerance: float
    """What was to be left at most, as a share of the true value."""
    left: tuple[float, ...]
    """What orders 0, 1, … leave, as far as was looked."""
    certified: bool
    """By the closed form of a norm along a line, in the norm's units; else measured."""

    @property
    def reached(self) -> bool:
        """No more is left than the tolerance."""
        return self.left[self.order] <= self.tolerance

    @property
    def why(self) -> str:
        """The reason in a few words."""
        how = "by the norm's closed form" if self.certified else "measured"
        share = f"leaves {self.left[self.order]:.2g}, {how}"
        if self.reached:
            return f"{share}: the lowest order within {self.tolerance:g}"
        return f"{share}: above {self.tolerance:g}, but of orders 0 to {len(self.left) - 1} none leaves less"

    def __str__(self) -> str:
        return f"order {self.order} {self.why}"


def tolerated(order: int | Sequence[int] | Auto, tolerance: float | None) -> float | None:
    """What may be left where an order is to be chosen; None where orders are given.

    Raises
    ------
    InputError
        A text other than `auto`, a tolerance beside orders that are given, or one that is no share above 0.
    """
    if isinstance(order, str) and order != "auto":
        raise InputError(f"order={quoted(order)} is no order of a jet: give a number, or 'auto'")
    if tolerance is None:
        return TOLERANCE if order == "auto" else None
    if order != "auto":
        raise InputError(f"tolerance={tolerance} is for order='auto', not for order={quoted(order)}: leave it out")
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise InputError(f"tolerance={tolerance} is no share of a value: give a number above 0, such as 0.01")
    return tolerance


def chosen(left: Sequence[float], tolerance: float, certified: bool = False) -> ChosenOrder:
    """The lowest order that leaves no more than a tolerance, else the one that leaves least.

    Parameters
    ----------
    left
        What orders 0, 1, … leave; what is no number counts as endless.
    tolerance
        A share of the true value.
    certified
        Of a closed form.

    Examples
    --------
    >>> chosen([0.5, 0.1, 0.02, 0.004, 0.0008], 0.01).order, chosen([0.5, 0.1, 0.3, 2.0], 0.01).order
    (3, 1)
    >>> print(chosen([0.5, 0.1, 0.3, 2.0], 0.01))
    order 1 leaves 0.1, measured: above 0.01, but of orders 0 to 3 none leaves less
    """
    numbers = [value if math.isfinite(value) else math.inf for value in left]
    best = min(range(len(numbers)), key=numbers.__getitem__)
    order = next((k for k, value in enumerate(numbers) if value <= tolerance), best)
    return ChosenOrder(order, tolerance, tuple(numbers), certified)


def raised(
    make: Callable[[int], _Made], left: Callable[[_Made], float], tolerance: float, highest: int = HIGHEST
) -> tuple[_Made, ChosenOrder]:
    """Raise the order until little enough is left.

    Parameters
    ----------
    make
        What is made of an order; each is made once.
    left
        What it leaves, as a share of the true value.
    tolerance
        What may be left.
    highest
        The order to stop at.

    Returns
    -------
    tuple[_Made, ChosenOrder]
        What was made of the order that was chosen, and why it was.
    """
    made: list[_Made] = []
    sizes: list[float] = []
    while len(made) <= highest and not (sizes and sizes[-1] <= tolerance):
        made.append(make(len(made)))
        sizes.append(left(made[-1]))
    why = chosen(sizes, tolerance)
    return made[why.order], why


def improving(left: Sequence[float]) -> bool:
    """Whether orders are worth raising further: one of the last two leaves less than `WORTH` of the best before."""
    before = min((value for value in left[:-2] if math.isfinite(value)), default=math.inf)
    return len(left) < 3 or any(value < WORTH * before for value in left[-2:])
