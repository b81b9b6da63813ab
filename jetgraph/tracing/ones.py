"""Sizes of 1: for which of them a trace is shown to be what its model does.

The exporter takes it for granted that open sizes are 2 or more, and notes no choice that follows from it. So the model
and its trace are both run with the example cut down; a size for which they differ, or the model does not run, gets a
guard.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch.utils import _pytree as pytree

from jetgraph.algebra.sizes import holds
from jetgraph.tracing.called import Called
from jetgraph.tracing.calls import named_leaves
from jetgraph.tracing.examples import cut_down
from jetgraph.tracing.traced import Traced
from jetgraph.tracing.unlike import alike, replayed


def guarded(called: Called, traced: Traced, known: Mapping[str, int]) -> Traced:
    """The trace, with a guard against each size of 1 for which it is not shown to be what the model does.

    Parameters
    ----------
    called
        Its model on the example.
    known
        The example's sizes by name.
    """
    bounded = {guard.partition(" >= ")[0] for guard in traced.guards}
    guards: list[str] = []
    shown: list[str] = []
    for name in (name for name, size in known.items() if size > 1 and name not in bounded):
        # A mask may have a batch of its own to the exporter, and be 1 where the ids' is.
        equal = [other for other, size in known.items() if size == known[name]]
        if _holds_at_one(called, traced, known, name):
            shown.append(name)
        elif len(equal) > 1 and _holds_for(called, traced, {**known, **dict.fromkeys(equal, 1)}):
            shown.append(name)
            guards.append(f"({name} >= 2) | (Max({', '.join(equal)}) < 2)")
        else:
            guards.append(f"{name} >= 2")
    if len(shown) > 1 and not _holds_for(called, traced, {**known, **dict.fromkeys(shown, 1)}):
        guards.append(f"Max({', '.join(shown)}) >= 2")
    return dataclasses.replace(traced, guards=(*traced.guards, *guards))


def _holds_at_one(called: Called, traced: Traced, known: Mapping[str, int], name: str) -> bool:
    """With one size cut down to 1, the graph and the model give the same; the others as they are, and at 2."""
    few = {other: min(size, 2) for other, size in known.items()} | {name: 1}
    many = {**known, name: 1}
    possible = [many] if many == few or not all(holds(guard, few) for guard in traced.guards) else [many, few]
    return all(_holds_for(called, traced, sizes) for sizes in possible)


def _holds_for(called: Called, traced: Traced, sizes: Mapping[str, int]) -> bool:
    """With the example cut down to these sizes, the graph and the model give the same."""
    leaves, structure = pytree.tree_flatten(called.inputs)
    names = (name for name, _ in named_leaves(*called.inputs, traced.positional))
    shapes = (traced.input_shapes.get(name, ()) for name in names)
    try:
        cut = [cut_down(leaf, shape, sizes) for leaf, shape in zip(leaves, shapes, strict=True)]
        args, kwargs = pytree.tree_unflatten(cut, structure)
        expected = called.run(args, kwargs)
        return alike(replayed(traced, args, kwargs), expected)
    except Exception:  # whatever the model raises for such sizes: it is not shown, and refused
        return False
