"""Example inputs as the exporter sees them: wider than they are, with open sizes, or cut down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export.dynamic_shapes import _tree_map_with_path
from torch.utils import _pytree as pytree

from jetgraph.algebra.sizes import evaluate as size_of
from jetgraph.tracing.traced import Dynamic

LEVELS: tuple[Dynamic, ...] = ("all", "batch", "none")


def levels(dynamic: bool | Literal["batch"]) -> tuple[Dynamic, ...]:
    """Which sizes are tried to be left open, one after the other."""
    return LEVELS[{True: 0, "batch": 1, False: 2}[dynamic] :]


def generic(example: Any) -> Any:
    """Repeat examples of batch or length 1: the exporter takes sizes 0 and 1 for constants of the program.

    The same object where there are none.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor) and leaf.dim() > 0]
    ids = [tensor for tensor in tensors if tensor.dim() > 1 and not tensor.is_floating_point()]
    lone_batch = bool(tensors) and all(tensor.shape[0] == 1 for tensor in tensors)
    short = bool(ids) and all(tensor.shape[1] == 1 for tensor in ids)

    def widen(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0:
            return leaf
        if lone_batch:
            leaf = torch.cat([leaf, leaf])
        if short and leaf.dim() > 1 and not leaf.is_floating_point():
            leaf = torch.cat([leaf, leaf], dim=1)
        return leaf

    return pytree.tree_map(widen, example) if lone_batch or short else example


def open_sizes(example: Any, level: Dynamic) -> Any:
    """Which sizes of the inputs the exporter may leave open, in the containers that hold these.

    What a registered container of its own kind holds is listed, as the exporter takes it: such a class may not hold
    anything but tensors.
    """
    leaves = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor)]
    lengths = {size for leaf in leaves if leaf.dim() in (2, 3) for size in leaf.shape[1:2]}

    def opened(_: Any, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim():
            return {} if isinstance(leaf, Tensor) else None
        free = range(1) if level == "batch" else range(leaf.dim())
        if leaf.is_floating_point() and leaf.dim() > 3:
            # Free image sides would mean proofs about windows and strides, over which the exporter can spend hours
            # (Swin); those of a mask are lengths of other inputs.
            free = [dim for dim in free if dim == 0 or leaf.shape[dim] in lengths]
        return dict.fromkeys(free, torch.export.Dim.AUTO)

    return _tree_map_with_path(opened, example)


def freedom(shapes: Mapping[str, tuple[int | str, ...]], bindings: Mapping[str, torch.dtype]) -> Dynamic:
    """What may change between calls, by the sizes that the exporter left open."""
    ranked = [(place, shape) for place, shape in shapes.items() if shape]
    if not any(isinstance(size, str) for _, shape in ranked for size in shape):
        return "none"
    ids = [shape[1] for place, shape in ranked if len(shape) > 1 and not bindings[place].is_floating_point]
    return "batch" if ids and not any(isinstance(size, str) for size in ids) else "all"


def unmarked(leaf: Any) -> Any:
    """A tensor as an object of its own: an export that fails leaves marks on its examples, which the next one heeds."""
    return leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf


def cut_down(leaf: Any, shape: Sequence[int | str], sizes: Mapping[str, int]) -> Any:
    """A tensor cut down to smaller sizes."""
    for dim, size in enumerate(shape):
        leaf = leaf if isinstance(size, int) else leaf.narrow(dim, 0, size_of(size, sizes))
    return leaf
