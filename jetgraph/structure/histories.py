"""Lists of what layers have made, and weighted sums of those → one stream that grows by what each layer makes.

Where each layer reads a weighted sum of all that was made before it, and keeps none, no place has a sum with a skip:

    x₁ = f₁(x₀),    x₂ = f₂(a x₀ + b x₁),    x₃ = f₃(c x₀ + d x₁ + e x₂), …

The list is the state. It is written as one tensor, which each layer reads and lays its own beside,

    H₁ = cat(x₀, x₁),    H₂ = cat(H₁, f₂(a H₁[…] + b H₁[…])), …

joins of kind `concat`. The weights are numbers, parameters, or made of the list itself. Values stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import fx

from jetgraph.jets.registry import is_affine, readers
from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.images import RANK, image_kind
from jetgraph.structure.operators import aten, is_float_tensor
from jetgraph.structure.pieces import Pieces, cleaned, copy_of, lying
from jetgraph.structure.sums import summands_of_whole
from jetgraph.tracing.traced import Traced


@dataclass(frozen=True, eq=False)
class _Weighing:
    """A sum of multiples of values, two at least, of which none is there as it is."""

    node: fx.Node
    values: tuple[fx.Node, ...]


def side_by_side_in_lists(flow: Dataflow) -> Traced | None:
    """The program with the first list that layers read weighted sums of as one tensor that grows; None where there is
    no list, or one of values that cannot lie side by side.
    """
    weighings = list(_weighings(flow))
    kept = {node for node in flow.nodes if node.target is aten.add.Tensor}
    for number, first in enumerate(weighings):
        chain = _chain(first, weighings[number + 1 :])
        values = flow.ordered({value for each in chain for value in each.values})
        lies = lying(flow, values) if kept.isdisjoint(values[1:]) else None
        if lies is not None and not lies.in_rows and _is_list(flow, chain, values):
            graph, copied = copy_of(flow.traced.graph)
            pieces = Pieces(flow, graph, copied, lies)
            whole = copied[values[0]]
            for number, value in enumerate(values[1:], 2):
                with pieces.behind(value):
                    whole = pieces.cat([whole, copied[value]])
                    pieces.read(whole, values[:number], value)
            return replace(flow.traced, graph=cleaned(graph))
    return None


def _weighings(flow: Dataflow) -> Iterator[_Weighing]:
    """The sums of multiples of several values that are no part of another sum, in execution order."""
    for node in flow.nodes:
        operands = summands_of_whole(flow, node)
        values = tuple(_value(flow, operand) for operand in operands)
        # What is added as it is goes on in the sum, which is a point of a stream then.
        weighed = set(values).isdisjoint(operands)
        if weighed and len(set(values)) > 1 and all(value.meta["shape"] == node.meta["shape"] for value in values):
            yield _Weighing(node, values)


def _value(flow: Dataflow, operand: fx.Node) -> fx.Node:
    """What an operand is a multiple of, by numbers or by weights that are made of the stream: the nearest value that
    others read too, or else the furthest one.
    """
    value, above = operand, _multiplied(flow, operand)
    while above is not None and len(readers(value)) == 1:
        value, above = above, _multiplied(flow, above)
    return value


def _multiplied(flow: Dataflow, node: fx.Node) -> fx.Node | None:
    """What a node is a multiple of, if it is one; of two values of its shape, that which others read too."""
    above = [
        parent
        for parent in flow.carriers[node]
        if is_float_tensor(parent)
        and "shape" in node.meta
        and parent.meta["shape"] == node.meta["shape"]
        and is_affine(node, lambda other, parent=parent: other is parent)
        and RANK[image_kind(flow, node)] <= RANK["scaled"]
    ]
    shared = [parent for parent in above if len(readers(parent)) > 1]
    return next(iter(shared if len(above) > 1 else above), None)


def _chain(first: _Weighing, later: Sequence[_Weighing]) -> list[_Weighing]:
    """A sum and those after it that read values of it, or of one of them."""
    chain, known = [first], set(first.values)
    for each in later:
        if not known.isdisjoint(each.values):
            chain.append(each)
            known.update(each.values)
    return chain


def _is_list(flow: Dataflow, chain: Sequence[_Weighing], values: Sequence[fx.Node]) -> bool:
    """Each value after the first one is made by a layer that reads one of the sums, or the first value."""
    sums = [each.node for each in chain]
    if len(chain) < 3 or any(_is_weighed_from_before(flow, value, chain[-1], values) for value in chain[-1].values):
        return False
    for value in values[1:]:
        above = [node for node in (values[0], *sums) if flow.depends(value, node)]
        last = max(above, key=flow.positions.__getitem__, default=None)
        if last is None or not flow.dominates(last, value) or flow.region(last, value).affine:
            return False
    return True


def _is_weighed_from_before(flow: Dataflow, value: fx.Node, last: _Weighing, values: Sequence[fx.Node]) -> bool:
    """A weight in the last sum was made of the stream before the list was whole: it is no function of that."""
    made = flow.positions[values[-1]]
    others = [other for other in values if other is not value]
    way = flow.region(value, last.node, others)
    read = (*way.nodes, *way.context.difference(values))
    return any(flow.positions[node] < made and flow.depends(node, values[0]) for node in read)
