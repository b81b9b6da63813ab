"""Sizes that depend on values, held at those of the example: how many places a mask has, how many values differ.

The exporter has a symbol for such a size, and refuses where code chooses by one, or where two have to fit each other.
Here the size is asked for as any other value is (`tracing.decisions`), so that what comes of it has a fixed shape:

    x[mask]  =  x[places],    places = where mask holds, of which there are as many as with the example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Answer = Callable[[Tensor, Callable[[Tensor], Any]], Any]
"""What a tensor's value is, or is to be: as of `Answering`."""

PLACES = (Tensor.nonzero, torch.nonzero, Tensor.argwhere, torch.argwhere)
"""Functions that give the places where a mask holds."""
WHERE = (torch.where, Tensor.where)
"""And these, of a mask alone."""

_SELECTED = (torch.masked_select, Tensor.masked_select)
_NEXT_TO = {"unique_consecutive"}
_UNIQUE = {"unique", "unique_consecutive"}


def counted(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], answer: Answer) -> Any:
    """What a function gives, with a size by values asked for; `NotImplemented` for one that has none."""
    if function in PLACES and args[0].dim():
        rows = _rows(args[0], answer)
        return rows.unbind(1) if kwargs.get("as_tuple", args[1:2] == (True,)) else rows
    if function in WHERE and len(args) == 1 and not kwargs and args[0].dim():
        return _rows(args[0], answer).unbind(1)
    if function in _SELECTED and len(args) == 2:
        x, mask = torch.broadcast_tensors(*args)
        return x[_rows(mask, answer).unbind(1)] if mask.dim() else NotImplemented
    if function is Tensor.__getitem__ and (index := _placed(args[1], answer)) is not None:
        return args[0][index]
    # One number is set wherever the mask holds, however many places these are.
    if function is Tensor.__setitem__ and isinstance(args[2], Tensor) and args[2].dim():
        index = _placed(args[1], answer)
        return NotImplemented if index is None else args[0].__setitem__(index, args[2])
    if getattr(function, "__name__", "") in _UNIQUE and isinstance(args[0], Tensor) and kwargs.get("dim") is None:
        return _unique(function, args, kwargs, answer)
    return NotImplemented


def _rows(mask: Tensor, answer: Answer) -> Tensor:
    """The places where a mask holds, one a row."""
    return torch.nonzero_static(mask, size=answer(mask.count_nonzero(), int))


def _placed(index: Any, answer: Answer) -> tuple[Any, ...] | None:
    """An index whose masks are lists of places; None where there is no mask in it."""
    index = index if isinstance(index, tuple) else (index,)
    if not any(map(_is_mask, index)):
        return None
    return tuple(each for item in index for each in (_rows(item, answer).unbind(1) if _is_mask(item) else (item,)))


def _is_mask(item: Any) -> bool:
    return isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8) and item.dim() > 0


def _unique(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], answer: Answer) -> Any:
    """Different values, of which there are one more than there are neighbours that differ."""
    values = args[0].flatten() if function.__name__ in _NEXT_TO else args[0].flatten().sort().values
    count = answer((values[1:] != values[:-1]).sum() + 1, int)
    given = function(*args, **kwargs)
    torch._check((given if isinstance(given, Tensor) else given[0]).shape[0] == count)
    return given
