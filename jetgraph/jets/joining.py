"""Steps of a function that was written down, with fewer calls for the same numbers.

PyTorch does a linear layer in four steps, and takes as long to call them as to multiply small matrices. Written down
again as the one call that they came from, it does them itself, in the same way and to the bit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

_VIEWS = (aten.view.default, aten._unsafe_view.default)


@dataclass(frozen=True, eq=False)
class Memory:
    """Where some tensors lie."""

    is_own: bool
    """An operator made it anew for its result: no one has it but those that are called after it."""
    size: int
    """Of how many bytes it is."""


@dataclass(frozen=True, eq=False)
class Name:
    """What a tensor is called that is another one in each call, and how it lies in memory."""

    text: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    is_contiguous: bool
    memory: Memory

    @property
    def fills(self) -> bool:
        """It has all of its memory, where it is contiguous."""
        return math.prod(self.shape) * self.dtype.itemsize == self.memory.size


@dataclass(frozen=True, eq=False)
class Step:
    """An operator, with names in place of tensors that are other ones in each call."""

    op: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: tuple[Name, ...]
    several: bool = False
    """It gives several tensors, or a sequence of one."""

    @property
    def reads(self) -> list[Name]:
        """What it is called with."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Name)]


def joined(steps: Sequence[Step], wanted: Collection[Name]) -> list[Step]:
    """The steps with one call for each linear layer, without those of which nothing comes.

    Parameters
    ----------
    steps
        As they are to be done.
    wanted
        Results that are read in the end.
    """
    made = {name: step for step in steps for name in step.results}
    reads = Counter([name for step in steps for name in step.reads] + [*wanted])
    before: Step | None = None
    found = list[Step]()
    for step in steps:
        alone = before is not None and [*before.results] == step.reads[:1] and reads[before.results[0]] == 1
        inputs = (_folded(before, step, made) if before is not None and alone else None) or _flat(step, made)
        found.append(step if inputs is None else Step(aten.linear.default, inputs, {}, step.results))
        before = step
    return _needed(found, wanted)


def _needed(steps: Sequence[Step], wanted: Collection[Name]) -> list[Step]:
    """Those whose results are read, and those that write to something or draw numbers."""
    read, kept = set(wanted), list[Step]()
    for step in reversed(steps):
        acts = step.op._schema.is_mutable or torch.Tag.nondeterministic_seeded in step.op.tags
        if acts or not read.isdisjoint(step.results):
            read.update(step.reads)
            kept.append(step)
    return kept[::-1]


def _flat(step: Step, made: Mapping[Name, Step]) -> tuple[Any, ...] | None:
    """Input, weight and bias of a layer on rows, which is a product with a weight that was turned."""
    if step.op not in (aten.mm.default, aten.addmm.default) or step.kwargs:
        return None
    *bias, x, turned = step.args
    turn = made.get(turned) if isinstance(turned, Name) else None
    if turn is None or turn.op is not aten.t.default or len(turn.args[0].shape) != 2 or not isinstance(x, Name):
        return None
    weight = turn.args[0]
    if any(tuple(each.shape) != weight.shape[:1] for each in bias):
        return None
    return x, weight, *bias


def _folded(product: Step, step: Step, made: Mapping[Name, Step]) -> tuple[Any, ...] | None:
    """The same of a layer on more dimensions, whose leading ones are made one before the product, and are put back by
    this step.
    """
    inputs = _flat(product, made) if step.op in _VIEWS else None
    if inputs is None:
        return None
    rows, weight, *bias = inputs
    fold = made.get(rows)
    if fold is None or fold.op is not aten.view.default or not isinstance(x := fold.args[0], Name):
        return None
    is_layer = x.is_contiguous and x.shape[-1:] == rows.shape[1:] and len(x.shape) in ((3,) if bias else (3, 4, 5))
    if not is_layer or step.results[0].shape != (*x.shape[:-1], weight.shape[0]):
        return None
    return x, weight, *bias
