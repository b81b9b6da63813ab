"""Steps of a function that was written down, without casts that the operators after them do themselves.

On a device a cast is a pass over memory of its own, and takes as long as the sum or product that it is for. An
operator on tensors of two types casts the narrower one as it reads it, to the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from jetgraph.jets.joining import Name, Step
from jetgraph.jets.recording import written

aten = torch.ops.aten

_HALVES = (torch.bfloat16, torch.float16)

_PROMOTING = frozenset(
    {
        aten.add.Tensor,
        aten.add_.Tensor,
        aten.addcmul.default,
        aten.addcmul_.default,
        aten.div.Tensor,
        aten.div_.Tensor,
        aten.mul.Tensor,
        aten.mul_.Tensor,
        aten.sub.Tensor,
        aten.sub_.Tensor,
    }
)
"""Operators that bring what they read to one type."""

_VIEWS = frozenset(
    {
        aten.expand.default,
        aten.permute.default,
        aten.select.int,
        aten.slice.Tensor,
        aten.transpose.int,
        aten.unsqueeze.default,
        aten.view.default,
    }
)


def promoted(steps: Sequence[Step], wanted: Collection[Name]) -> list[Step]:
    """The same steps without casts from half precision to float32 for sums and products alone, each of which reads
    something else in float32.

    Parameters
    ----------
    steps
        As they are to be done.
    wanted
        Results that are read in the end, which keep their type.
    """
    found = [*steps]
    # Of two that are read beside each other, one has to stay: the smaller.
    for cast in sorted(filter(_is_cast, steps), key=lambda step: math.prod(step.results[0].shape), reverse=True):
        found = _without(cast, found, wanted) or found
    return found


def _is_cast(step: Step) -> bool:
    """From half precision to float32, of numbers that lie one after the other, as they do then."""
    if step.op is not aten._to_copy.default or step.kwargs.keys() != {"dtype"} or not isinstance(step.args[0], Name):
        return False
    (value,), (result,) = step.args, step.results
    lie = value.is_contiguous and result.is_contiguous
    return lie and value.dtype in _HALVES and result.dtype is torch.float32


def _without(cast: Step, steps: Sequence[Step], wanted: Collection[Name]) -> list[Step] | None:
    """Steps that read what is cast in place of what it is cast to; None where that is not the same."""
    (value,), (result,) = cast.args, cast.results
    instead, found, is_past = {result: value}, list[Step](), False
    for step in steps:
        if step is cast:
            is_past = True
            continue
        # What was there before belongs to others, and is not written to.
        writes = [each.memory for each in written(step.op, step.args, step.kwargs) if isinstance(each, Name)]
        if result.memory in writes or (is_past and value.memory in writes):
            return None
        if instead.keys().isdisjoint(step.reads):
            found.append(step)
            continue
        args, kwargs = _exchanged((step.args, step.kwargs), instead)
        changed = Step(step.op, args, kwargs, step.results, step.several)
        if step.op in _VIEWS:
            (view,) = step.results
            instead[view] = replace(view, dtype=value.dtype, memory=value.memory)
            changed = replace(changed, results=(instead[view],))
        elif step.op not in _PROMOTING or not any(map(_is_wide, args)):
            return None
        found.append(changed)
    return found if instead.keys().isdisjoint(wanted) else None


def _exchanged(called: tuple[Any, Any], instead: Mapping[Name, Name]) -> tuple[Any, Any]:
    """What an operator is called with, with other names in place of some."""
    return tree_map(lambda leaf: instead.get(leaf, leaf) if isinstance(leaf, Name) else leaf, called)


def _is_wide(value: Any) -> bool:
    """Of the type to which others are brought; one number is of no weight."""
    return isinstance(value, Name | Tensor) and value.dtype is torch.float32 and bool(value.shape)
