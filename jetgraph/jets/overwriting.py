"""Steps of a function that was written down, with results written over what nothing reads any more.

Where memory is had anew for each result, a host writes it twice, once to clear it; and a cache holds what is read once.
An operator that goes entry by entry gives the same to the bit wherever it writes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from jetgraph.jets.joining import Memory, Name, Step

aten = torch.ops.aten

OVER = {
    aten.add.Tensor: aten.add_.Tensor,
    aten.div.Tensor: aten.div_.Tensor,
    aten.exp.default: aten.exp_.default,
    aten.mul.Tensor: aten.mul_.Tensor,
    aten.nan_to_num.default: aten.nan_to_num_.default,
    aten.neg.default: aten.neg_.default,
    aten.pow.Tensor_Scalar: aten.pow_.Scalar,
    aten.reciprocal.default: aten.reciprocal_.default,
    aten.rsqrt.default: aten.rsqrt_.default,
    aten.sigmoid.default: aten.sigmoid_.default,
    aten.sqrt.default: aten.sqrt_.default,
    aten.sub.Tensor: aten.sub_.Tensor,
    aten.tanh.default: aten.tanh_.default,
}
"""By operator, the one that writes its result over its first argument."""

_EITHER = (aten.add.Tensor, aten.mul.Tensor)
"""Those that may write over the second one: exchanged, the two give the same."""


def overwritten(steps: Sequence[Step], wanted: Collection[Name]) -> list[Step]:
    """The same steps, each of which writes its result over what it is the last to read, where it can.

    Parameters
    ----------
    steps
        As they are to be done.
    wanted
        Results that are read in the end, in whose memory nothing else is written.
    """
    last = {name.memory: at for at, step in enumerate(steps) for name in (*step.reads, *step.results)}
    last |= dict.fromkeys((name.memory for name in wanted), len(steps))
    return [_over(step, {memory for memory in _read(step) if last[memory] == at}) for at, step in enumerate(steps)]


def _read(step: Step) -> set[Memory]:
    return {name.memory for name in step.reads}


def _over(step: Step, over: Collection[Memory]) -> Step:
    """A step, whose result is written into memory that nothing reads after it."""
    if (op := OVER.get(step.op)) is None or not over:
        return step
    orders = [step.args, step.args[::-1]] if step.op in _EITHER and not step.kwargs else [step.args]
    for first, *others in orders:
        if isinstance(first, Name) and first.memory in over and _has_room(first, others, step.results[0]):
            return Step(op, (first, *others), step.kwargs, step.results)
    return step


def _has_room(name: Name, others: Sequence[object], result: Name) -> bool:
    """The result lies where a value was that is all of its memory, of which nothing else is read at that step."""
    fits = name.shape == result.shape and name.dtype == result.dtype and name.is_contiguous and result.is_contiguous
    apart = all(other is name or not isinstance(other, Name) or other.memory is not name.memory for other in others)
    return fits and apart and name.memory.is_own and result.memory.is_own and name.fills
