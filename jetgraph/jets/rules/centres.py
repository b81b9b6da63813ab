"""What rules of several kinds have in common: the plain operator's value at the centre, and a dim for a number."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from jetgraph.jets.recording import is_followed
from jetgraph.jets.registry import TaylorRule
from jetgraph.jets.series import Series


def with_own_centre(plain: Callable[..., Any], rule: TaylorRule, *, in_place: bool = False) -> TaylorRule:
    """A rule whose coefficient 0 is what the operator gives at the centre, to the last bit.

    What is taken apart rounds unlike the operator's own kernel, so that a ReLU or an arg-max behind it could decide
    otherwise than in the plain pass. Its derivatives stay the rule's.

    Parameters
    ----------
    plain
        What gives the value, of the rule's arguments without the order.
    in_place
        The rule's coefficients are its own: where they lie in one tensor, the first of them is overwritten.
    """

    @wraps(rule)
    def with_own_centre(order: int, *args: Any, **kwargs: Any) -> Any:
        result = rule(order, *args, **kwargs)
        parts = result if isinstance(result, tuple) else (result,)
        if not any(isinstance(part, Series) and part.start == 0 for part in parts):
            return result
        at, named = pytree.tree_map(_at_centre, (args, kwargs), is_leaf=_is_series)
        with torch.no_grad():
            own = plain(*at, **named)
        values = own if isinstance(own, tuple) else (own,)
        replaced = tuple(_replaced(part, value, in_place) for part, value in zip(parts, values, strict=True))
        return replaced if isinstance(result, tuple) else replaced[0]

    return with_own_centre


def with_a_dim(rule: TaylorRule) -> TaylorRule:
    """A rule that goes along dims of a series, for a series of numbers too, which have a dim 0 (and -1) for PyTorch: a
    number is the one entry of a dim that the result has no more.
    """

    @wraps(rule)
    def with_a_dim(order: int, x: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(x, Series) or x.ndim:
            return rule(order, x, *args, **kwargs)
        result = rule(order, x.like(x.coefficients.unsqueeze(1)), *args, **kwargs)
        return pytree.tree_map(_as_numbers, result, is_leaf=_is_series)

    return with_a_dim


def _as_numbers(value: Series) -> Series:
    return value.like(value.coefficients.reshape(-1))


def _is_series(value: Any) -> bool:
    return isinstance(value, Series)


def _at_centre(value: Any) -> Any:
    first = value.coefficient(0) if isinstance(value, Series) else value
    return first.detach() if isinstance(first, Tensor) else first


def _replaced(part: Any, value: Any, in_place: bool) -> Any:
    if not isinstance(part, Series) or part.start > 0:
        return part
    row = part.first
    value = value.to(row.dtype)
    if is_followed(row):
        # Derivatives stay those of what it consists of, which has all of them: fused kernels often have one only.
        value = (row - row.detach()).nan_to_num(0.0) + value
    if part.apart or not in_place:
        return Series.of_rows([value, *part.rows()[1:]], part.order)
    part.coefficients[0].copy_(value)
    return part
