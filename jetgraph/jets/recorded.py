"""What a function does to one tensor, written down while it runs, to be done again to others of the same shape.

Deciding what to do, operator by operator, takes longer than doing it to few numbers, and on a device longer than doing
it to many. Where the same function is applied to one batch after the other, it is decided once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

from jetgraph.jets.recording import is_followed, written


class Repeated:
    """A function of one tensor that is called again and again, with everything else that it reads as it is.

    From the third call on of a shape, the operators that depend on the tensor are run, and nothing else: what they read
    besides is what it was in the second call. Where derivatives may be asked for, or the function looks at values, it
    is called each time.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function
        self._known: dict[Any, _Recorded | None] = {}
        """By kind of tensor; None where it was seen once, or cannot be recorded."""
        self._refused: set[Any] = set()

    def __call__(self, given: Tensor) -> Tensor:
        kind = given.shape, given.stride(), given.dtype, given.device
        if kind in self._refused or type(given) is not Tensor or is_followed(given):
            return self._function(given)
        if kind not in self._known:
            self._known[kind] = None
            return self._function(given)
        if (recorded := self._known[kind]) is not None:
            return recorded(given)
        with _Recorder(given) as recorder:
            result = self._function(given)
        self._known[kind] = made = recorder.recorded(result)
        if made is None:
            self._refused.add(kind)
        return result


class _Step(NamedTuple):
    """One operator. Tensors that depend on the one that is given are numbered."""

    op: Callable[..., Any]
    leaves: list[Any]
    """Its arguments, flat; None where a numbered tensor stands."""
    reads: tuple[tuple[int, int], ...]
    """Places among the leaves, and the numbers of the tensors there."""
    structure: Any
    """How the leaves are arguments; None where each is one."""
    makes: tuple[int, ...]
    over: list[int]
    """Numbers of the tensors that nothing reads after it."""


class _Recorder(TorchDispatchMode):
    """Writes down the operators that depend on a tensor."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self._numbers = WeakTensorKeyDictionary()
        self._numbers[given] = 0
        self._count = 1
        self._steps: list[_Step] = []
        self._fits = not is_followed(given)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves, structure = tree_flatten((args, kwargs))
        known = [self._numbers.get(leaf) if isinstance(leaf, Tensor) else None for leaf in leaves]
        reads = tuple((place, number) for place, number in enumerate(known) if number is not None)
        made = func(*args, **kwargs)
        if not reads:
            # It would be drawn once.
            self._fits &= torch.Tag.nondeterministic_seeded not in func.tags
            return made
        given = [
            leaf for leaf, number in zip(leaves, known, strict=True) if isinstance(leaf, Tensor) and number is None
        ]
        # Of what is not made anew each time, memory would be written twice, and a number would be what it is now.
        others = any(is_followed(leaf) or type(leaf) not in (Tensor, torch.nn.Parameter) for leaf in given)
        # It writes to no tensor but such as are made again when it is done again.
        self._fits &= not others and all(self._numbers.get(leaf) for leaf in written(func, args, kwargs))
        makes = []
        for leaf in tree_leaves(made):
            self._fits &= isinstance(leaf, Tensor)
            if isinstance(leaf, Tensor):
                self._numbers[leaf] = self._count
                makes.append(self._count)
                self._count += 1
        kept = [None if number is not None else leaf for leaf, number in zip(leaves, known, strict=True)]
        flat = not kwargs and not any(isinstance(arg, list | tuple | dict) for arg in args)
        self._steps.append(_Step(func, kept, reads, None if flat else structure, tuple(makes), []))
        return made

    def recorded(self, result: Tensor) -> _Recorded | None:
        """What was written down; None where the result cannot be had again by it."""
        number = self._numbers.get(result)
        return _Recorded(self._steps, number) if self._fits and number else None


class _Recorded:
    """Operators that make a result of a tensor."""

    def __init__(self, steps: Sequence[_Step], result: int) -> None:
        last = {number: step for step in steps for number in (*step.makes, *(number for _, number in step.reads))}
        for number, step in last.items():
            if number != result:
                step.over.append(number)
        self._steps, self._result = steps, result

    def __call__(self, given: Tensor) -> Tensor:
        values: dict[int, Any] = {0: given}
        for op, leaves, reads, structure, makes, over in self._steps:
            leaves = [*leaves]
            for place, number in reads:
                leaves[place] = values[number]
            if structure is None:
                made = op(*leaves)
            else:
                args, kwargs = tree_unflatten(leaves, structure)
                made = op(*args, **kwargs)
            if len(makes) == 1 and isinstance(made, Tensor):
                values[makes[0]] = made
            else:
                values.update(zip(makes, tree_leaves(made), strict=True))
            for number in over:
                del values[number]
        return values[self._result]
