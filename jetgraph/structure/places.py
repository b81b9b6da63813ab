"""Does a branch read other places than its own, where no operator in it is a layer, a pool or a transform?

    tanh(h[:, perm]), relu(shift(h)), max over windows of h       what stands at a place is made of other places' values
    tanh(h), softmax(h), h / |h|, (h − mean(h)) ⊙ g               of its own place, and of numbers of the whole

Told by dimensions: a way on which values keep their places leaves each dimension of the skip with the factors that it
has there. A mean over features is part of a norm; one over positions is a pool.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from typing import Any

from torch import fx

from jetgraph.jets.registry import bind
from jetgraph.structure.contractions import SUMS, summed_by_index
from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.dimensions import LAYOUTS, Dimensions, Layout
from jetgraph.structure.dimensions.changes import laid_out, of_one, places_of
from jetgraph.structure.operators import CONVOLUTIONS, FIXED_NORMS, IDENTITY, aten, packet_of
from jetgraph.structure.regions import Region


@of_one
def _spread(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    """What is repeated has no place of its own along that dimension, as where an operator broadcasts it."""
    new = len(node.meta["shape"]) - len(layout.dims)
    return laid_out(layout, [*[()] * new, *map(layout.at, range(len(layout.dims)))])


_LAYOUTS = LAYOUTS | dict.fromkeys((aten.expand, aten.expand_as, aten.broadcast_to), _spread)


def reads_elsewhere(flow: Dataflow, region: Region, skip: fx.Node) -> bool:
    """This branch of a fork reads other positions or features than the skip beside it.

    What only rearranges is affine and no branch: in rotary embeddings, x cos + rotated(x) sin, both are the stream.
    """
    fork, end = region.entry, region.exit
    if region.affine or "shape" not in fork.meta or "shape" not in end.meta:
        return False
    followed = Dimensions(fork, flow.ordered({*region.nodes, *flow.between(fork, skip)}), _LAYOUTS)
    one, other = followed.get(skip), followed.get(end)
    if _pools(region, followed, _POOLS if end.meta["shape"] != skip.meta["shape"] else _POOLS | _EXTREMES):
        return True
    if one is None or other is None or len(one.dims) < len(other.dims):
        return False
    ahead = len(one.dims) - len(other.dims)
    # What is one value for many places is no value of another place.
    return any(
        end.meta["shape"][place] != 1 and other.at(place) != one.at(ahead + place) for place in range(len(other.dims))
    )


def bounds(total: fx.Node) -> bool:
    """A sum takes the largest of several values away from each ahead of exp, so that none is too large: a softmax among
    neighbours in a graph that is written out, say, has the same values without it.
    """
    if not total.users or any(packet_of(user) is not aten.exp for user in _past_layout(total)):
        return False
    one, other = total.args[:2]
    return _is_largest_of(one, other) or _is_largest_of(other, one)


def _past_layout(node: fx.Node) -> list[fx.Node]:
    """What reads a value, in whatever layout."""
    found: list[fx.Node] = []
    for user in node.users:
        found += _past_layout(user) if packet_of(user) in IDENTITY else [user]
    return found


def _is_largest_of(node: Any, value: Any) -> bool:
    """A node is the negative of the largest of some entries of a value, put back at each of them."""
    signs = 0
    while isinstance(node, fx.Node) and packet_of(node) in IDENTITY | _PUT_BACK | {aten.neg}:
        signs += packet_of(node) is aten.neg
        node = node.args[0]
    if signs != 1 or not isinstance(node, fx.Node) or packet_of(node) not in _LARGEST:
        return False
    bound = bind(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
    if packet_of(node) is aten.scatter_reduce and bound["reduce"] != "amax":
        return False
    return _as_it_was(bound.get("src", bound["self"])) is _as_it_was(value)


_LARGEST = {aten.amax, aten.max, aten.scatter_reduce}
_PUT_BACK = {aten.index_select, aten.gather, aten.index, aten.select}


def is_softmax_of_neighbours(node: fx.Node) -> bool:
    """exp(s) over the sum of those that have one index, put back at each of them: e / (scatter_add(0, i, e) + ε)[i]."""
    if packet_of(node) is not aten.div:
        return False
    top, total = node.args[:2]
    back = False
    while isinstance(total, fx.Node) and packet_of(total) in IDENTITY | _PUT_BACK | _WITH_FLOOR:
        back = back or packet_of(total) in _PUT_BACK
        total = total.args[0]
    top = _as_it_was(top)
    return (
        back
        and isinstance(top, fx.Node)
        and packet_of(top) is aten.exp
        and isinstance(total, fx.Node)
        and _as_it_was(summed_by_index(total)) is top
    )


_WITH_FLOOR = {aten.add, aten.clamp, aten.clamp_min, aten.maximum}
"""What keeps a sum of none from being zero."""


def _as_it_was(node: Any) -> Any:
    while isinstance(node, fx.Node) and packet_of(node) in IDENTITY:
        node = node.args[0]
    return node


# Pools


_POOLS = SUMS | {aten.var, aten.std}
_EXTREMES = {
    aten.amax, aten.amin, aten.max, aten.min, aten.prod, aten.logsumexp, aten.kthvalue, aten.median, aten.nanmedian,
    aten.mode, aten.quantile, aten.nanquantile, aten.softmax, aten._softmax, aten.log_softmax, aten._log_softmax,
}  # fmt: skip
"""Those that are pools where they are spread again; the largest value that is taken away ahead of exp is none."""


def _pools(region: Region, followed: Dimensions, pools: Collection[Any]) -> bool:
    """A mean or the like of positions is taken; that of features too is part of a norm, of the batch a statistic."""
    apart = {factor for place in (0, place_of_features(region.entry)) for factor in followed.start.at(place)}
    for node in region.nodes:
        read = followed.get(node.args[0]) if packet_of(node) in pools else None
        if read is None:
            continue
        bound = bind(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
        summed = {factor for place in places_of(bound.get("dim"), len(read.dims)) for factor in read.at(place)}
        if summed and summed.issubset(followed.start.present) and summed.isdisjoint(apart):
            return True
    return False


_BY_CHANNEL = CONVOLUTIONS | FIXED_NORMS | {aten.group_norm, aten.native_group_norm, aten.instance_norm}
_BY_LAST = {
    aten.linear, aten.embedding, aten.layer_norm, aten.native_layer_norm, aten.rms_norm, aten._fused_rms_norm,
}  # fmt: skip


def place_of_features(node: fx.Node) -> int:
    """Which dimension holds features, by the nearest layer or norm above; the last one where none says so."""
    seen, queue = {node}, deque([node])
    while queue:
        current = queue.popleft()
        packet = packet_of(current)
        if packet in _BY_LAST:
            return -1
        if packet in _BY_CHANNEL and len(current.meta["shape"]) > 1:
            return 1
        for parent in current.all_input_nodes:
            if parent not in seen and parent.meta.get("shape") == node.meta["shape"]:
                seen.add(parent)
                queue.append(parent)
    return -1
