"""Parts of a branch that ends in one matrix product: their columns of the weight, each with its coordinates of u."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from jetgraph.jets.interpreter import evaluate
from jetgraph.structure.parts import Axis

aten = torch.ops.aten

_IN_ORDER = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.alias.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
}
"""What leaves all elements in their order."""

_MOVING = _IN_ORDER | {aten.transpose.int, aten.permute.default}
"""What only puts elements elsewhere."""

_WEIGHTS = {
    aten.linear.default: (1, True),
    aten.mm.default: (1, False),
    aten.addmm.default: (2, False),
}
"""By product the place of its weight, and whether that is [out, in]; what is multiplied stands just before it."""

_SHAPES = 16
"""Shapes of u for which the columns are remembered."""


@dataclass(frozen=True, eq=False)
class Product:
    """L u = W σ(u), where σ and what comes after W only change shapes."""

    u: fx.Node
    before: tuple[fx.Node, ...]
    """σ."""
    node: fx.Node
    """The product itself; a bias of it is no part of L."""
    after: tuple[fx.Node, ...]
    _known: dict[Any, Tensor | None] = field(default_factory=dict)
    """Columns that were looked for already."""

    def of_parts(
        self, values: Mapping[fx.Node, Any], axes: tuple[Axis, ...], parts: Sequence[tuple[int, ...]]
    ) -> Tensor | None:
        """L (1_I ⊙ u) for each part I: [part, *end].

        One product over its own columns for each part, so that all parts together cost what L costs once.

        Parameters
        ----------
        values
            Of u and of all that L reads.
        axes
            What is dealt out of u.
        parts
            The coordinates of each.

        Returns
        -------
        Tensor or None
            None where parts are not made of equally many whole columns.
        """
        u = values[self.u]
        columns = self._columns(u.shape, values, axes, tuple(parts))
        if columns is None:
            return None
        place, transposed = _WEIGHTS[self.node.target]  # type: ignore[index]
        weight = values[self.node.args[place]]  # type: ignore[index]
        weight = weight if transposed else weight.T
        entered = _run(self.before, self.u, u, values)
        flat, order = entered.reshape(-1, entered.shape[-1]), columns.flatten()
        if not torch.equal(order, torch.arange(flat.shape[1])):
            order = order.to(u.device)
            flat, weight = flat[:, order], weight[:, order]
        sizes = tuple(columns.shape)
        factors, weights = flat.unflatten(1, sizes).transpose(0, 1), weight.unflatten(1, sizes).permute(1, 2, 0)
        images = torch.bmm(factors, weights).unflatten(1, entered.shape[:-1])
        end = _run(self.after, self.node, images[0], values)
        return images.reshape(len(images), *end.shape)

    def _columns(
        self,
        shape: torch.Size,
        values: Mapping[fx.Node, Any],
        axes: tuple[Axis, ...],
        parts: tuple[tuple[int, ...], ...],
    ) -> Tensor | None:
        """The columns of each part, [part, column], on the CPU."""
        key = (shape, axes, parts)
        if key not in self._known:
            if len(self._known) >= _SHAPES:
                self._known.clear()
            self._known[key] = self._found(shape, values, axes, parts)
        return self._known[key]

    def _found(
        self,
        shape: torch.Size,
        values: Mapping[fx.Node, Any],
        axes: tuple[Axis, ...],
        parts: tuple[tuple[int, ...], ...],
    ) -> Tensor | None:
        """They, found by sending the number of its coordinate along with each element."""
        if not axes:
            return None
        like = torch.empty(1, dtype=torch.int16).expand(shape)
        numbers = axes[0].numbers(like)
        for axis in axes[1:]:
            numbers = numbers * axis.size + axis.numbers(like)
        coordinates = _run(self.before, self.u, numbers.to(torch.int32).expand(shape), values)
        coordinates = coordinates.reshape(-1, coordinates.shape[-1])
        if not len(coordinates) or not bool((coordinates == coordinates[0]).all()):
            return None
        by_part = [torch.isin(coordinates[0], torch.tensor(indices)).nonzero()[:, 0] for indices in parts]
        alike = len({len(columns) for columns in by_part}) == 1
        return torch.stack(by_part) if alike else None


def product(u: fx.Node, carried: Sequence[fx.Node]) -> Product | None:
    """The matrix product that is all that the way on from u does; None where it does more."""
    current, place = u, None
    for index, node in enumerate(carried):
        if node.target in (_MOVING if place is None else _IN_ORDER) and node.args[:1] == (current,):
            current = node
            continue
        if place is not None or node.target not in _WEIGHTS or node.kwargs:
            return None
        at = _WEIGHTS[node.target][0]  # type: ignore[index]
        if node.args[at - 1 : at] != (current,) or not isinstance(node.args[at], fx.Node) or node.args[at] in carried:
            return None
        current, place = node, index
    return None if place is None else Product(u, tuple(carried[:place]), carried[place], tuple(carried[place + 1 :]))


def _run(nodes: Sequence[fx.Node], entry: fx.Node, value: Tensor, values: Mapping[fx.Node, Any]) -> Tensor:
    """What nodes that only change shapes make of another value."""
    if not nodes:
        return value
    return evaluate(nodes, {**values, entry: value}, keep={nodes[-1]})[nodes[-1]]
