"""Of what a value is an affine image, and of which kind that image is: how skips are known."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from math import prod
from operator import getitem

from torch import fx

from jetgraph.algebra.outline import SkipKind
from jetgraph.export.factors import is_nothing
from jetgraph.structure.dataflow import Dataflow
from jetgraph.structure.dimensions import Size
from jetgraph.structure.operators import (
    FIXED_NORMS,
    IDENTITY,
    PRODUCTS,
    SCALES,
    aten,
    is_float_tensor,
    is_mixing,
    packet_of,
    surrounds,
)

RANK: dict[SkipKind, int] = {"identity": 0, "scaled": 1, "projection": 2, "gated": 3, "concat": 4}
"""The kinds of skips from the plainest on: a chain of images is of the widest kind in it."""


def widest(*kinds: SkipKind) -> SkipKind:
    """The kind of a chain of images of these kinds."""
    return max(kinds, key=RANK.__getitem__)


def image_kind(flow: Dataflow, node: fx.Node) -> SkipKind:
    """What one affine operator makes of what it reads: the same up to layout and precision, a multiple, or more."""
    packet = packet_of(node)
    if packet in IDENTITY:
        return "identity"
    if packet in SCALES:
        return "scaled"
    if packet is aten.slice:
        # A slice that takes everything, as code for any length writes it.
        carriers = flow.carriers[node]
        if len(carriers) == 1 and node.meta.get("shape") == carriers[0].meta.get("shape"):
            return "identity"
    return "projection"


def keeps_channels(flow: Dataflow, way: Iterable[fx.Node]) -> bool:
    """These operators give each channel a factor and a constant of its own, as batch norms in evaluation do, or put
    constants around what they read.
    """
    return all(
        image_kind(flow, node) != "projection"
        or packet_of(flow.carriers[node][0] if node.target is getitem else node) in FIXED_NORMS
        or surrounds(node)
        for node in way
    )


def affine_history(flow: Dataflow, operand: fx.Node) -> Iterator[tuple[fx.Node, SkipKind]]:
    """The operand and the nodes of which it is an affine image, nearest first, each with the kind of that image."""
    kind: SkipKind = "identity"
    node = operand
    # An index that is computed from the value itself (the best expert of a token) makes the image depend on that value,
    # so that the history ends below the node on which something steering depends.
    steering: list[fx.Node] = []
    while not any(flow.depends(other, node) for other in steering):
        if is_float_tensor(node):
            yield node, kind
        carried = _carried(flow, node)
        if carried is None or not flow.affine(node, {carried}):
            return
        kind = widest(kind, image_kind(flow, node))
        steering += [parent for parent in flow.parents[node] if parent is not carried]
        node = carried


def _carried(flow: Dataflow, node: fx.Node) -> fx.Node | None:
    """The one value that a node may be an image of: all that it reads, or what it multiplies by a factor with fewer
    numbers that is made of other inputs, as where a noise level says how much of the input a denoiser keeps.
    """
    carriers = flow.carriers[node]
    if len(carriers) == 2 and packet_of(node) in SCALES:
        value, factor = sorted(carriers, key=lambda one: one.meta["shape"] != node.meta["shape"])
        fewer = factor.meta["shape"] != node.meta["shape"] == value.meta["shape"]
        return value if fewer and flow.inputs(value) & ~flow.inputs(factor) else None
    return carriers[0] if len(carriers) == 1 else None


def affine_past(flow: Dataflow, operand: fx.Node) -> Iterator[tuple[fx.Node, SkipKind]]:
    """As `affine_history`, and on through sums of several images of one node."""
    kind: SkipKind = "identity"
    node: fx.Node | None = operand
    while node is not None:
        last = node
        for last, image in affine_history(flow, node):
            yield last, widest(kind, image)
        # A product of two values ends it, whatever lies above: what is dear is asked for sums alone.
        if not flow.affine(last, flow.parents[last]):
            return
        above = flow.bottleneck(last)
        if above is None or above is node:
            return
        region = flow.region(above, last)
        if not region.affine:
            return
        # h + 0.1 h is a multiple of h: the adds themselves only join images.
        images: list[SkipKind] = [image_kind(flow, inner) for inner in region.nodes if packet_of(inner) is not aten.add]
        kind, node = widest(kind, "scaled", *images), above


# Gated images


_FACTORED = (SCALES | PRODUCTS) - {aten.baddbmm}


def gated_history(flow: Dataflow, operand: fx.Node) -> Iterator[tuple[fx.Node, tuple[fx.Node, ...]]]:
    """The nodes of which an operand is an affine image once factors that depend on them are held, each with these
    factors; the nearest first on every way.

    Nothing learned lies on the way: σ(g(h)) h is a gated image of h, and W h none.
    """
    stack: list[tuple[fx.Node, tuple[fx.Node, ...]]] = [(operand, ())]
    seen = {operand}
    while stack:
        node, held = stack.pop()
        gates = tuple(factor for factor in held if flow.depends(factor, node))
        if gates and is_float_tensor(node):
            yield node, gates
        for parent, factors in multiplied(flow, node):
            if parent not in seen:
                seen.add(parent)
                stack.append((parent, (*held, *factors)))
        several = packet_of(node) in _JOINING and 1 < len(flow.carriers[node]) == len(flow.parents[node])
        above = flow.bottleneck(node) if several else None
        if above is not None and above not in seen and (factors := held_image(flow, node, (above,))) is not None:
            seen.add(above)
            stack.append((above, (*held, *factors)))


def factored(flow: Dataflow, operand: fx.Node) -> Iterator[tuple[fx.Node, tuple[fx.Node, ...]]]:
    """The values of which an operand is a multiple, up to layout, each with the other factors; the nearest first on
    every way.
    """
    stack: list[tuple[fx.Node, tuple[fx.Node, ...]]] = [(operand, ())]
    while stack:
        node, held = stack.pop()
        if held and is_float_tensor(node):
            yield node, held
        stack += ((parent, (*held, *factors)) for parent, factors in multiplied(flow, node))


def multiplied(flow: Dataflow, node: fx.Node) -> Iterator[tuple[fx.Node, tuple[fx.Node, ...]]]:
    """The values of which an operator makes a multiple, up to layout, each with the others that it reads as factors."""
    carriers = flow.carriers[node]
    masks = tuple(other for other in flow.parents[node] if other not in carriers)
    if masks and not _is_masked(node):
        return  # An index that is computed steers what the image is of.
    for parent in carriers:
        factors = (*(other for other in carriers if other is not parent), *masks)
        passed = bool(masks) or packet_of(node) in _FACTORED if factors else not is_mixing(node)
        if passed and flow.affine(node, (parent,)):
            yield parent, factors


def _is_masked(node: fx.Node) -> bool:
    """The operator keeps a value in some places, and gives zeros elsewhere."""
    packet, args = packet_of(node), node.args
    if packet is aten.where:
        return len(args) == 3 and any(map(is_nothing, args[1:]))
    return packet is aten.mul or (packet is aten.masked_fill and is_nothing(args[2]))


_JOINING = {aten.add, aten.cat}


def held_image(flow: Dataflow, node: fx.Node, of: Collection[fx.Node]) -> tuple[fx.Node, ...] | None:
    """The factors that are held for a value to be an affine image of others, of which it may be a sum or a
    concatenation; None where it is none. Nothing learned lies on the way.
    """
    mask = flow.mask(of)
    # A sum of sums reads its first summands on many ways, and they are asked once.
    known: dict[fx.Node, tuple[fx.Node, ...] | None] = dict.fromkeys(of, ())

    def held(node: fx.Node) -> tuple[fx.Node, ...] | None:
        if node not in known:
            known[node] = by_parents(node)
        return known[node]

    def by_parents(node: fx.Node) -> tuple[fx.Node, ...] | None:
        if not flow.touches(node, mask):
            return None
        if packet_of(node) not in _JOINING:
            ways = (
                (*found, *factors) for parent, factors in multiplied(flow, node) if (found := held(parent)) is not None
            )
            first = next(ways, None)
            return None if first is None else tuple(dict.fromkeys(first))
        if len(flow.parents[node]) > len(flow.carriers[node]):
            return None
        every: dict[fx.Node, None] = {}
        for parent in flow.carriers[node]:
            if (found := held(parent)) is None:
                return None
            every |= dict.fromkeys(found)
        return tuple(every)

    return held(node)


def is_of_several(flow: Dataflow, node: fx.Node) -> bool:
    """Up to layout, a value is a sum or concatenation of others, which may be as many as pieces of one."""
    while packet_of(node) in IDENTITY and len(flow.carriers[node]) == 1:
        node = flow.carriers[node][0]
    return packet_of(node) in _JOINING and len(flow.carriers[node]) > 1


def fills(operand: fx.Node, total: fx.Node) -> bool:
    """An operand of a sum is repeated along no dimension of it. Open sizes may be written in several ways, which are
    equal where they are added: as where every other position is taken, and both halves are put together again.
    """
    own, whole = operand.meta["shape"], total.meta["shape"]
    return same_size(operand, total) or (
        len(own) == len(whole) and not any(one == 1 != size for one, size in zip(own, whole, strict=True))
    )


def same_size(one: fx.Node, other: fx.Node) -> bool:
    """Two values have the same sizes, in whatever order and grouping."""
    names = [sorted(size for size in node.meta["shape"] if isinstance(size, str)) for node in (one, other)]
    numbers = [prod(size for size in node.meta["shape"] if isinstance(size, int)) for node in (one, other)]
    return names[0] == names[1] and numbers[0] == numbers[1]


def as_many(one: fx.Node, other: fx.Node) -> bool:
    """Two values have as many numbers, also where dimensions of open sizes were merged."""
    sizes = [list(map(Size.of, node.meta["shape"])) for node in (one, other)]
    numbers = [prod(size.number for size in each) for each in sizes]
    symbols = [sorted(symbol for size in each for symbol in size.symbols) for each in sizes]
    return numbers[0] == numbers[1] and symbols[0] == symbols[1]
