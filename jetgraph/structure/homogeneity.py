"""Where a function does not care how long its argument is, and the norm that makes it so.

A value v of a region has degree d if v(s x) = s^d v(x) for every s > 0, x being the entry. The entry has degree 1; a
linear operator without a constant keeps the degree, products add degrees, a norm gives degree 0, and whatever is made
of values of degree 0 alone has degree 0. Anything else has none: a nonlinearity of a value of another degree, a sum
with a constant. A norm's ε is such a constant; numbers up to `SMALL` that are added to a value, or that bound it from
below, count as nothing.

A region of degree 0 may be scaled: f(s x) = f(x), with an s of its own for every index of those dimensions of the entry
that nothing mixes before the degree is 0 (`Scaling.free`), such as every token.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from jetgraph.jets.registry import adds_constant, bind, is_affine, nodes_in, values_read
from jetgraph.structure.dimensions import Dimensions, follow_stretches, leaves
from jetgraph.structure.operators import IDENTITY, NORMS, aten, packet_of

SMALL = 1e-3
"""A number up to this one in the place of an ε is one."""

_CENTRED = {
    aten.layer_norm, aten.native_layer_norm, aten.group_norm, aten.native_group_norm, aten.instance_norm,
    aten.batch_norm,
}  # fmt: skip
"""Norms that take the mean off first."""

_OWN_NORMS = NORMS - {aten._native_batch_norm_legit_no_training}
"""Those by statistics of the value itself, or that may be so."""

_ROWS = {aten.layer_norm, aten.rms_norm}
"""Norms over the last dimensions."""

_LENGTHS = {aten.linalg_vector_norm: 1, aten.norm: 1, aten.std: 1, aten.var: 2, aten.square: 2}
"""Operators that square what they read, and the degree that they multiply by."""

_DEVIATIONS = {aten.std, aten.var}

_POWERS = {
    aten.sqrt: 0.5, aten.rsqrt: -0.5, aten.reciprocal: -1, aten.abs: 1, aten.relu: 1, aten.leaky_relu: 1,
    aten.amax: 1, aten.amin: 1, **_LENGTHS,
}  # fmt: skip
"""Functions of one value, and the degree that they multiply by."""

_PRODUCTS = {aten.mul: ("self", "other"), aten.matmul: ("self", "other"), aten.bmm: ("self", "mat2"),
             aten.mm: ("self", "mat2")}  # fmt: skip

_REARRANGING = IDENTITY - {aten.expand, aten.native_dropout}
"""Operators that keep all entries and change their precision or their places alone, so that lengths are the same."""


@dataclass(frozen=True, eq=False)
class Scaling:
    """How the entry of a region of degree 0 may be scaled, and in which coordinates its length counts."""

    free: tuple[int, ...]
    """Dimensions of the entry, counted from the end, along which every index may have a scale of its own."""
    image: fx.Node
    """The linear image of the entry that the region's norm normalises; the entry itself where there is none, or where
    several norms normalise different images."""
    nodes: tuple[fx.Node, ...]
    """What computes it, in execution order."""
    side: tuple[fx.Node, ...]
    """What these read besides the entry."""
    places: tuple[int, ...]
    """Where the free dimensions are in the image, counted from its end."""
    centred: bool
    """The norm takes the mean off first."""
    alone: bool
    """Besides this one norm the region is affine, so that along a line it is singular where the norm's square is 0."""

    @property
    def summed(self) -> tuple[int, ...]:
        """The other dimensions of the image: over these a length is measured."""
        rank = len(self.image.meta["shape"])
        return tuple(dim for dim in range(-rank, 0) if dim not in self.places)


def degree(entry: fx.Node, nodes: Sequence[fx.Node]) -> float | None:
    """The degree of homogeneity of the last node; None where there is none. Of no nodes it is the entry's, 1."""
    return _Degrees(entry, nodes).of(nodes[-1]) if nodes else 1.0


def scaling(entry: fx.Node, nodes: Sequence[fx.Node]) -> Scaling | None:
    """How the entry may be scaled without any effect on the last node; None where it may not.

    Norms that normalise different images of the entry, or one with and one without its mean, have no coordinates in
    common: lengths are then those of the entry itself. So they are where norms read stretches of it, as of two streams
    that lie one after the other.
    """
    degrees = _Degrees(entry, nodes)
    if not nodes or degrees.of(nodes[-1]) != 0:
        return None
    scaled = [node for node in nodes if any(map(degrees.scales, node.all_input_nodes))]
    layouts = follow_stretches(entry, scaled)
    mixed = {
        leaf
        for node in scaled
        if (layout := layouts.get(node)) is not None
        for factor in leaves(layout.mixed)
        for root in factor.roots()
        for leaf in root.leaves()
    }
    rank = len(entry.meta["shape"])
    own = [layouts.start.at(dim) for dim in range(rank)]
    free = tuple(dim for dim in range(rank) if own[dim] and not mixed.intersection(own[dim]))
    known = degrees.coordinates()
    image, centred = known or (entry, False)
    places = _places(layouts, image, [own[dim] for dim in free])
    if known is None or places is None:
        # Stretches of the entry, each of which a norm of one kind reads.
        centred = degrees.coordinates(free) == (entry, True)
        image, places = entry, free
    inner = _leading(image, entry, nodes)
    inside = {entry, *inner}
    side = dict.fromkeys(arg for node in inner for arg in node.all_input_nodes if arg not in inside)
    ends = len(image.meta["shape"])
    return Scaling(
        tuple(dim - rank for dim in free),
        image,
        inner,
        tuple(side),
        tuple(at - ends for at in places),
        centred,
        known is not None and image is known[0] and degrees.affine_after(nodes),
    )


def _places(layouts: Dimensions, image: fx.Node, wanted: Iterable[Any]) -> tuple[int, ...] | None:
    """Which dimensions of an image these factors make up, each by itself; None where one is not there alone."""
    layout = layouts.get(image)
    assert layout is not None
    dims = [layout.at(dim) for dim in range(len(layout.dims))]
    sought = list(wanted)
    return tuple(map(dims.index, sought)) if all(factors in dims for factors in sought) else None


def _leading(image: fx.Node, entry: fx.Node, nodes: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
    """The nodes on the way from the entry to an image of it."""
    if image is entry:
        return ()
    needed = {image}
    for node in reversed(nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    dependent = {entry}
    for node in nodes:
        if node in needed and dependent.intersection(node.all_input_nodes):
            dependent.add(node)
    return tuple(node for node in nodes if node in dependent)


@dataclass(frozen=True)
class _Row:
    """Values of one degree and constants, one after the other along a dimension, counted from the end."""

    dim: int
    degree: float


class _Degrees:
    """The degree of every value of a region."""

    def __init__(self, entry: fx.Node, nodes: Sequence[fx.Node]) -> None:
        self.entry = entry
        self._found: dict[fx.Node, Any] = {entry: 1.0}
        """By node: a degree, None for none, a list of such for a tuple, a row with constants beside."""
        self._linear = {entry}
        """Linear images of the entry."""
        self._normalised: list[tuple[fx.Node, bool] | None] = []
        """What is squared first, and whether its mean is taken off; None for another function of a linear image."""
        for node in nodes:
            reads = [arg for arg in values_read(node) if arg in self._found]
            if not reads:
                continue
            self._found[node] = self._through(node, reads)
            if any(arg in self._linear for arg in reads):
                self._meet(node, reads)

    def of(self, node: fx.Node) -> float | None:
        """The degree of a node; None for a tuple too."""
        degree = self._found.get(node)
        return None if isinstance(degree, list | _Row) else degree

    def scales(self, node: fx.Node) -> bool:
        """The value changes where the entry is scaled."""
        return node in self._found and self._found[node] != 0

    def coordinates(self, free: Sequence[int] = ()) -> tuple[fx.Node, bool] | None:
        """What is normalised first, and whether without its mean; None where that is no one thing. Stretches along free
        dimensions count as the whole.
        """
        images = {seen and (self._whole(seen[0], free), seen[1]) for seen in self._normalised}
        image = images.pop() if len(images) == 1 else None
        return None if image is None or isinstance(self._found[image[0]], _Row) else image

    def _whole(self, node: fx.Node, free: Sequence[int]) -> fx.Node:
        alone = {place for place, size in enumerate(self.entry.meta["shape"]) if size == 1}
        while packet_of(node) in (aten.slice, aten.cat):
            bound = bind(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
            read = [arg for arg in values_read(node) if arg in self._found]
            if len(read) != 1 or len(node.meta["shape"]) + _from_end(node, bound.get("dim", 0)) not in {*free, *alone}:
                break
            node = self._unmoved(read[0])
        return node

    def affine_after(self, nodes: Iterable[fx.Node]) -> bool:
        """What is made of values of degree 0 alone is affine in them."""
        for node in nodes:
            reads = {arg for arg in values_read(node) if arg in self._found}
            if reads and all(self._found[arg] == 0 for arg in reads) and not is_affine(node, reads.__contains__):
                return False
        return True

    def _meet(self, node: fx.Node, reads: Sequence[fx.Node]) -> None:
        """Note what a node does to linear images."""
        varying = set(reads)
        if varying <= self._linear and is_affine(node, varying.__contains__):
            if self._found[node] is not None:
                self._linear.add(node)
            return
        packet = packet_of(node)
        squares = packet in _OWN_NORMS | _LENGTHS.keys() | _DEVIATIONS or (packet is aten.pow and node.args[1] == 2)
        itself = packet in _PRODUCTS and len(set(node.args[:2])) == 1
        if squares or itself:
            read = next(arg for arg in reads if arg in self._linear)
            self._normalised.append((self._unmoved(read), packet in _CENTRED or packet in _DEVIATIONS))
        elif packet not in _PRODUCTS and packet is not aten.div:
            # What a norm divides is a factor next to its inverse length.
            self._normalised.append(None)

    def _unmoved(self, node: fx.Node) -> fx.Node:
        while node is not self.entry and packet_of(node) in _REARRANGING:
            node = node.all_input_nodes[0]
        return node

    def _through(self, node: fx.Node, reads: Sequence[fx.Node]) -> Any:
        if node.target is operator.getitem:
            degree = self._found[reads[0]]
            return degree[node.args[1]] if isinstance(degree, list) else degree  # type: ignore[index]
        degrees = [self._found[arg] for arg in reads]
        if all(degree == 0 for degree in degrees):
            return 0.0
        bound = bind(node.target, node.args, node.kwargs)  # type: ignore[arg-type]
        packet, first = packet_of(node), degrees[0]
        if isinstance(first, _Row):
            return self._in_row(packet, bound, first) if len(reads) == 1 else None
        if any(degree is None or isinstance(degree, list | _Row) for degree in degrees):
            return None
        if packet in _OWN_NORMS:
            return self._normed(packet, bound, reads)
        if packet is aten.cat and len(set(degrees)) == 1 and (len(bound["tensors"]) > len(degrees)):
            return _Row(_from_end(node, bound.get("dim", 0)), first)
        scaled = {arg for arg in reads if self._found[arg] != 0}
        if len(kept := {self._found[arg] for arg in scaled}) == 1 and self._keeps(node, packet, bound, scaled):
            return kept.pop()
        if len(reads) == 1 and packet in _POWERS:
            return first * _POWERS[packet]
        if packet is aten.pow and len(reads) == 1 and isinstance(power := node.args[1], int | float):
            return first * power
        if packet in _PRODUCTS or packet is aten.div:
            return self._product(packet, bound)
        return None

    def _normed(self, packet: Any, bound: Mapping[str, Any], reads: Sequence[fx.Node]) -> Any:
        """0 for what a norm gives, and what it gives besides."""
        whole = bound.get("input", bound.get("self"))
        running = packet is aten.batch_norm and not bound["training"]
        if list(reads) != [whole] or running or not bound.get("use_input_stats", True):
            return None
        given = self._found[whole]
        if packet in (aten.native_layer_norm, aten.native_group_norm):
            return [0.0, given, -given]
        return [0.0, -given] if packet is aten._fused_rms_norm else 0.0

    def _in_row(self, packet: Any, bound: Mapping[str, Any], row: _Row) -> Any:
        """What keeps rows apart: a norm of each, which leaves no degree in any."""
        if packet in _ROWS:
            return 0.0 if -len(bound["normalized_shape"]) > row.dim else None
        return row if packet is aten._to_copy else None

    def _keeps(self, node: fx.Node, packet: Any, bound: Mapping[str, Any], varying: set[fx.Node]) -> bool:
        """The node is linear in what varies, or adds to it, or bounds it from below by, no more than an ε."""
        if is_affine(node, varying.__contains__):
            if not adds_constant(node, varying.__contains__):
                return True
            return packet is aten.add and _small(bound.get("other"))
        if packet is aten.clamp:
            return _small(bound.get("min")) and bound.get("max") is None
        return packet is aten.clamp_min and _small(bound.get("min"))

    def _product(self, packet: Any, bound: Mapping[str, Any]) -> float | None:
        one, other = _PRODUCTS.get(packet, ("self", "other"))
        degrees = [
            sum((self._found.get(arg, 0.0) for arg in nodes_in(bound[name])), 0.0) if name in bound else 0.0
            for name in (one, other)
        ]
        if packet is not aten.div:
            return degrees[0] + degrees[1]
        return None if bound.get("rounding_mode") else degrees[0] - degrees[1]


def _from_end(node: fx.Node, dim: int) -> int:
    rank = len(node.meta["shape"])
    return dim % rank - rank


def _small(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= SMALL
