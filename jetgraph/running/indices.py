"""Whole numbers that callers give, as numbers or as tensors: positions of a sequence, rows, targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jetgraph.errors import InputError, amount, quoted

Position = int | Sequence[int] | Tensor
"""A position of a sequence, negative ones counted from its end; or one for each row of the batch."""


def check_whole(value: Tensor, name: str) -> None:
    """Refuse what is no tensor of indices.

    Parameters
    ----------
    value
        What was given.
    name
        The argument that it was given for.

    Raises
    ------
    InputError
        The tensor is of another type, or has no numbers.
    """
    packed = value.layout is not torch.strided or value.is_quantized
    if value.is_meta or packed or value.is_floating_point() or value.is_complex():
        raise InputError(f"{name} is a tensor of {value.dtype} on {value.device}: give whole numbers")


def whole_numbers(value: Tensor, name: str) -> list[int]:
    """The numbers in a tensor of indices; see `check_whole`."""
    check_whole(value, name)
    return [int(number) for number in value.flatten().tolist()]


def dims_of_rows(shape: Sequence[int | str], rows: Sequence[int | str]) -> tuple[int | None, int | None]:
    """The dimensions of a value, counted from the end, along which batch and positions of an output lie, as sizes of
    the trace tell; None for one that they do not tell.

    Parameters
    ----------
    shape, rows
        Of the value, and of the output but for its last dimension, as they are in the trace.
    """
    found: list[int] = []
    for size, usual in zip(rows, (0, len(shape) - 2), strict=False):
        dims = [dim for dim, one in enumerate(shape) if one == size and dim not in found]
        # Fixed sizes may be those of other things too.
        found.append(usual if usual in dims else dims[0] if len(dims) == 1 else -1)
    batch, positions = (*(None if dim < 0 else dim - len(shape) for dim in found), None, None)[:2]
    return batch, positions


def places_of(position: Position, shape: Sequence[int]) -> int | Tensor:
    """Where a position of an output [batch, position, ...] is, counted from the start.

    Parameters
    ----------
    position
        One for all rows, or one for each.
    shape
        The output's.

    Returns
    -------
    int or Tensor
        One for all rows, or one of each [batch].

    Raises
    ------
    InputError
        The output does not have that position, or has another number of rows.
    """
    if len(shape) < 3:
        raise InputError(f"position={quoted(position)} does not exist: the output {list(shape)} has no positions")
    listed = whole_numbers(position, "position") if isinstance(position, Tensor) else position
    rows = list(listed) if isinstance(listed, Sequence) else [listed]
    if len(rows) not in (1, shape[0]) or not all(isinstance(row, int) for row in rows):
        raise InputError(
            f"position={quoted(listed)} does not fit an output of {amount(shape[0], 'row')}: give a whole number, or "
            "one for each row"
        )
    wrong = next((row for row in rows if not -shape[1] <= row < shape[1]), None)
    if wrong is not None:
        raise InputError(f"position={quoted(wrong)} does not exist: the output has positions 0 to {shape[1] - 1}")
    places = [row % shape[1] for row in rows]
    return places[0] if len(set(places)) == 1 else torch.tensor(places)


def at_places(value: Tensor, places: int | Tensor, dim: int = 1, batch: int | None = None) -> Tensor:
    """One place along a dimension, which is kept with the size 1.

    Parameters
    ----------
    value
        [..., batch, ..., `dim`, ...].
    places
        One place, or the place of each element of the batch [batch].
    dim
        The dimension along which the place is.
    batch
        The dimension of the batch; the one before `dim` unless given.
    """
    if isinstance(places, int):
        return value.narrow(dim, places, 1)
    batch = dim - 1 if batch is None else batch
    index = places.to(value.device).view(-1, *[1] * (value.dim() - batch - 1))
    shape = (*value.shape[:dim], 1, *value.shape[dim + 1 :])
    return value.take_along_dim(index.expand(shape), dim)
