"""Operators that are run, counted, and the memory of what they make."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Operators(TorchDispatchMode):
    """Counts the operators that run while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        """By name, without that of the overload."""
        self.numbers: Counter[str] = Counter()
        """That they make, by name."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        self.counts[name] += 1
        self.numbers[name] += sum(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor))
        return made


class Memory(TorchDispatchMode):
    """Adds up the bytes that tensors take that were made while it was entered, and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        """Now."""
        self.peak = 0
        """At most."""
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and id(storage := leaf.untyped_storage()) not in self._known | given:
                self._known.add(id(storage))
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self._gone, id(storage), storage.nbytes())
        self.peak = max(self.peak, self.bytes)
        return made

    def _gone(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self.bytes -= size


class Moved(TorchDispatchMode):
    """Adds up the bytes that operators read and write, but for products of matrices, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        # What is written to is given too where it is there before.
        given = {name: value for name, value in (kwargs or {}).items() if name != "out"}
        read, written = (
            [leaf for leaf in tree_leaves(each) if isinstance(leaf, torch.Tensor)] for each in ((args, given), made)
        )
        known = {id(leaf.untyped_storage()) for leaf in read}
        is_view = all(id(leaf.untyped_storage()) in known for leaf in written) and not func._schema.is_mutable
        if not is_view and func.overloadpacket.__name__ not in (
            "mm",
            "addmm",
            "bmm",
            "empty",
            "empty_like",
            "new_empty",
        ):
            self.bytes += sum(map(_size, (*read, *written)))
        return made


def _size(tensor: torch.Tensor) -> int:
    """Bytes that a tensor is, each place in memory once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return prod(sizes) * tensor.element_size()


def peak(work: Callable[[], object]) -> int:
    """The bytes that a work has at most, what it gives back among them; weights that it reads are none."""
    with torch.no_grad(), Memory() as memory:
        kept = work()
    del kept
    return memory.peak
