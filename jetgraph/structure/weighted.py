"""Sums with weights of a softmax: over places of what is read, as attention is, or over something else, as of experts.

    (softmax(scores, 1)[..., None] ⊙ values).sum(1)       values at places of the stream, of an input, of neighbours
    (softmax(gates, -1)[..., None] ⊙ experts).sum(-2)     outputs of experts, layers, scales, groups of features

Told by dimensions: a place of what is read is there before anything is computed of it; what a stack, a layer or a
parameter makes is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import fx

from jetgraph.jets.registry import bind
from jetgraph.structure.contractions import labels_of
from jetgraph.structure.dimensions import LAYOUTS, Dimensions, Factor, Layout, follow
from jetgraph.structure.dimensions.changes import laid_out
from jetgraph.structure.dimensions.factors import Factors, Layouts, Size
from jetgraph.structure.operators import aten, packet_of
from jetgraph.structure.places import place_of_features
from jetgraph.structure.regions import Region


def sums_places(region: Region, total: fx.Node, softmax: fx.Node) -> bool:
    """A sum with weights of a softmax goes over the dimension that the softmax does, and over places."""
    told = _summed(region, total, softmax)
    if told is None:
        return False
    competing, value, summed = told
    return len(summed) == 1 and all(
        set(factors) == set(competing) and _are_places(region, value, place) is True
        for place, factors in summed.items()
    )


def sums_others(region: Region, product: fx.Node, softmax: fx.Node) -> bool:
    """A product with weights of a softmax sums over what is known to be no place of what the region reads."""
    told = _summed(region, product, softmax)
    if told is None:
        return False
    _, value, summed = told
    # Copies that are moved against each other, and stacked, are places too.
    moved = any(packet_of(node) in _MOVES for node in _above(value, region.entry) if node in region.node_set)
    return bool(summed) and not moved and all(_are_places(region, value, place) is False for place in summed)


_MOVES = {aten.roll, aten.slice, aten.pad, aten.constant_pad_nd, aten.as_strided}


def _summed(region: Region, total: fx.Node, softmax: fx.Node) -> tuple[Factors, fx.Node, dict[int, Factors]] | None:
    """What the softmax goes over; the value that is weighted; and what its weights have where it is summed, by the
    value's dimension. None where it is not told which is the value.
    """
    told = labels_of(total)
    if told is None:
        return None
    pair, labels = told
    # What lies between them, and not the whole of a region that holds many of these.
    between = region.nodes[region.nodes.index(softmax) + 1 : region.nodes.index(total)]
    layouts = follow(softmax, between)
    at = next((at for at in (0, 1) if layouts.get(pair[at]) is None), None)
    weights = None if at is None else layouts.get(pair[1 - at])
    if at is None or weights is None:
        return None
    own, other, out = labels[at], labels[1 - at], labels[2]
    both = [label for label in own if label in other and label not in out]
    competing = layouts.start.at(bind(softmax.target, softmax.args, softmax.kwargs)["dim"])  # type: ignore[arg-type]
    return competing, pair[at], {own.index(label): weights.at(other.index(label)) for label in both}


def _are_places(region: Region, value: fx.Node, place: int) -> bool | None:
    """The indices along a dimension of a value are places of what is read; None where it cannot be told."""
    above = _above(value, region.entry)
    ways = [(region.entry, region.nodes)]
    beside = [node for node in region.context if node in above]
    if beside:
        ordered = [node for node in value.graph.nodes if node in above]
        ways += [(start, ordered) for start in ordered if _is_read(start, region)]
    told = not beside and region.entry in above
    for start, nodes in ways:
        followed = Dimensions(start, (node for node in nodes if node in above), _LAYOUTS)
        layout = followed.get(value)
        if layout is None or not layout.at(place):
            continue
        roots, places = _roots(layout.at(place)), _places_in(followed, start)
        if roots.issubset(places):
            return True
        told = told and not followed.unknown and roots.isdisjoint(places)
    return False if told else None


def _is_read(node: fx.Node, region: Region) -> bool:
    """An input, which a region reads or which alone has open sizes; or what is looked up for its numbers."""
    if node.op == "placeholder":
        return node in region.context or any(isinstance(size, str) for size in node.meta.get("shape", ()))
    return packet_of(node) is aten.embedding


def _places_in(followed: Dimensions, start: fx.Node) -> set[Factor]:
    """All dimensions but that of features, and one along which layers are stacked."""
    rank = len(followed.start.dims)
    features = place_of_features(start) % rank if start.meta["dtype"].is_floating_point and rank > 1 else -1
    places = (place for place in range(rank) if place != features and not _is_stacked(start, place))
    return _roots(factor for place in places for factor in followed.start.at(place))


def _is_stacked(node: fx.Node, place: int) -> bool:
    """Along a dimension lie values that have none of it themselves, as in a state that grows by what layers make."""
    if packet_of(node) not in (aten.stack, aten.cat) or len(node.all_input_nodes) < 2:
        return False
    dim = bind(node.target, node.args, node.kwargs).get("dim", 0) % len(node.meta["shape"])  # type: ignore[arg-type]
    if dim != place or packet_of(node) is aten.stack:
        return dim == place
    return all(part.meta["shape"][place] == 1 or _is_stacked(part, place) for part in node.all_input_nodes)


def _roots(factors: Iterable[Factor]) -> set[Factor]:
    return {leaf for factor in factors for root in factor.roots() for leaf in root.leaves()}


def _above(value: fx.Node, entry: fx.Node) -> set[fx.Node]:
    """What a value is made of, not looking beyond the entry."""
    above, stack = {value}, [value]
    while stack:
        node = stack.pop()
        new = () if node is entry else set(node.all_input_nodes) - above
        above.update(new)
        stack.extend(new)
    return above


def _cut_from_places(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layouts | None:
    """What is picked along a dimension, by indices or in windows, is places of that dimension."""
    plain = LAYOUTS[packet_of(node)](d, node, bound)
    read = d.get(node.args[0])
    if read is None or not isinstance(plain, Layout):
        return plain
    packet, rank = packet_of(node), len(plain.dims)
    dims = list(plain.dims)
    if packet is aten.index:
        used = [at for at, index in enumerate(bound["indices"]) if index is not None]
        width = rank - (len(read.dims) - len(used))
        chosen, of = range(used[0], used[0] + width), [factor for at in used for factor in read.at(at)]
    elif packet is aten.unfold:
        chosen, of = range(rank - 1, rank), [*read.at(bound["dimension"] % len(read.dims))]
    else:
        at = bound["dim"] % rank
        chosen, of = range(at, at + 1), [*read.at(at)]
    for at in chosen:
        size = Size.of(node.meta["shape"][at])
        if size != Size(1) and not _roots(plain.at(at)) & set(d.start.present):
            dims[at] = (Factor(size, tuple(of)),)
    return laid_out(plain, dims, plain.mixed, plain.tied)


_LAYOUTS = LAYOUTS | dict.fromkeys((aten.gather, aten.index_select, aten.index, aten.unfold), _cut_from_places)
