"""The heads of a branch: where in an attention product they are, told from what the branch does with a head's features.

A head is no name and no reshape: dimensions are followed from the attention product to the branch's end
(`jetgraph.structure.dimensions`), and the heads are what is summed over, or merged, together with the features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from jetgraph.errors import JetGraphError
from jetgraph.export.reach import below
from jetgraph.jets.interpreter import op_in_module
from jetgraph.jets.registry import bind, nodes_in
from jetgraph.structure.contractions import SUMS, labels_of
from jetgraph.structure.cuts import carry, find_neurons, needed
from jetgraph.structure.dimensions import Dimensions, Factor, Factors, Layout, Size, follow, leaves
from jetgraph.structure.kinds import attention_products
from jetgraph.structure.operators import PRODUCTS, aten, is_mixing, packet_of
from jetgraph.structure.parts import Axis
from jetgraph.structure.regions import Cut, Region


class HeadsError(JetGraphError):
    """Why an attention product has no heads that could be told apart."""


def find_heads(region: Region) -> Cut | None:
    """The cut at the last attention product from which the end is reached linearly, along its heads; where something
    else comes in between, such as an activation, at the input of the layer that follows that.

    So it is where several products go there beside each other, as the two of differential attention do: a cut at one of
    them would leave the others out. Where the layer reads a norm over all heads, it is before that. Where
    whole layers follow, as in a bottleneck with joins of its own, their activations and gates are held at the branch's
    own value, and what does not come by these heads is the offset.

    Heads are what comes together with a head's features: where the features are summed over, by the output projection
    as a rule, so are they, or before that, or the projection has other weights for each; without a projection both are
    in one dimension of the branch's end. Without such a dimension there is one head, which is everything.

    Parameters
    ----------
    region
        The whole branch.

    Returns
    -------
    Cut or None
        None where no attention product reaches the branch's end linearly, and none a layer that does with its heads
        apart.

    Raises
    ------
    HeadsError
        Where one does, but its heads cannot be told apart; or several do beside each other, and theirs cannot.
    """
    products = attention_products(region)
    carried = {product: cut for product in reversed(products) if (cut := carry(region, product, ())) is not None}
    if not carried or _is_beside(carried):
        at_layer = _beside(region, products)
        if at_layer is not None:
            return at_layer
        if carried:
            raise HeadsError(
                f"its {len(carried)} attention products reach its end beside each other, the last of them "
                f"{op_in_module(next(iter(carried)))}, and at no place before the end do their heads lie apart"
            )
    held = (carry(region, product, (), gates=True) for product in reversed(products))
    for cut in (*carried.values(), *filter(None, held)):
        dimensions, heads = _head_factors(cut, products[cut.node])
        return replace(cut, axes=tuple(_axis(cut.node, dimensions.start, factor) for factor in heads))
    return None


def _beside(region: Region, products: dict[fx.Node, fx.Node]) -> Cut | None:
    """The cut at the input of the last layer along heads that go there apart; or else at the last place that all
    products have come to where they are apart.
    """
    layer = find_neurons(region)
    places = [] if layer is None else [layer]
    met = reversed(list(_meeting(region, products)))
    places += [cut for node in met if (cut := carry(region, node, ())) is not None]
    # What lies side by side is told there: behind it, the heads of one piece would pass for those of all.
    cuts = (_side_by_side(region, products, place) for place in places)
    if (cut := next(filter(None, cuts), None)) is not None:
        return cut
    for place in places:
        for product in reversed(products):
            try:
                cut = _at_place(region, product, products[product], place)
            except HeadsError:
                continue  # Others of them may be told.
            if cut is not None:
                return cut
    return None


def _side_by_side(region: Region, products: dict[fx.Node, fx.Node], place: Cut) -> Cut | None:
    """The cut at a concatenation or a stack of what attention products give, each piece with heads of its own or as one
    head: heads that are a list, or of which some look at windows. Where the pieces are of a sequence, heads are what
    all of them have.
    """
    node = place.node
    if packet_of(node) not in (aten.cat, aten.stack):
        return None
    dim = bind(node.target, node.args, node.kwargs).get("dim", 0)  # type: ignore[arg-type]
    dim = dim % len(node.meta["shape"]) - len(node.meta["shape"])
    pieces = [_piece(region, products, piece) for piece in nodes_in(node.args[:1])]
    own = [product for piece in pieces if piece is not None for product in piece.products]
    if None in pieces or len(set(own)) < len(own):
        return None
    axes = _dealt_side_by_side(place, dim, [piece for piece in pieces if piece is not None])
    return None if axes is None else replace(place, axes=axes)


@dataclass(frozen=True)
class _Piece:
    """What stands beside others, and is made of attention products that nothing else is made of."""

    node: fx.Node
    products: tuple[fx.Node, ...]
    axes: tuple[Axis, ...]
    features: frozenset[int]
    """The dimensions, counted from the end, that hold the features of a head."""


def _piece(region: Region, products: dict[fx.Node, fx.Node], node: fx.Node) -> _Piece | None:
    """None where no product is in it, or several that stand side by side in it in turn."""
    own = [product for product in reversed(products) if node in _made_in(region, product)]
    cut = carry(region, node, ()) if own else None
    inside = [inner for inner in needed(region, {node}) if packet_of(inner) in (aten.cat, aten.stack)]
    sets = [[_made_of(region, operand, own) for operand in nodes_in(inner.args[:1])] for inner in inside]
    if cut is None or any(len(set(each)) > 1 for each in sets if all(each)):
        return None
    product, *_ = own
    try:
        apart = _at_place(region, product, products[product], cut)
        features = _features_in(region, product, products[product], node)
    except HeadsError:
        return None
    return _Piece(node, tuple(own), () if apart is None else apart.axes, features)


def _made_of(region: Region, node: fx.Node, products: Sequence[fx.Node]) -> frozenset[fx.Node]:
    return frozenset(product for product in products if node in _made_in(region, product))


def _made_in(region: Region, product: fx.Node) -> set[fx.Node]:
    """A product and what a region makes of it; zeros of its shape are none of that."""
    return below([product]) & {product, *region.nodes}


def _features_in(region: Region, product: fx.Node, start: fx.Node, value: fx.Node) -> frozenset[int]:
    """The dimensions of a value that hold the features of what an attention product before it gives, and no less."""
    made = below([product])
    followed = follow(product, [node for node in needed(region, {value}) if node in made and node is not product])
    layout = followed.get(value)
    features = {factor for place in _roles(product, start)[0] for factor in followed.start.at(place)}
    if layout is None or not features:
        return frozenset()
    rank = len(layout.dims)
    return frozenset(place - rank for place in range(rank) if features.issubset(layout.at(place)))


def _dealt_side_by_side(place: Cut, dim: int, pieces: Sequence[_Piece]) -> tuple[Axis, ...] | None:
    """Axes along which heads lie, where pieces lie along a dimension."""
    stacks = packet_of(place.node) is aten.stack
    if not stacks and all(dim in piece.features for piece in pieces):
        return _along_features(dim, pieces)
    (axes, *others) = (piece.axes for piece in pieces)
    if any(other != axes for other in others):
        return None
    if stacks:
        axes = tuple(axis if axis.dim > dim else replace(axis, dim=axis.dim - 1) for axis in axes)
    elif any(axis.dim == dim for axis in axes):
        return None
    return (*_lie_apart(place, dim, pieces), *axes)


def _along_features(dim: int, pieces: Sequence[_Piece]) -> tuple[Axis] | None:
    """Heads that lie one after the other with their features."""
    widths: list[int] = []
    for piece in pieces:
        (axis, *rest) = piece.axes or (Axis(dim, 1, inner=piece.node.meta["shape"][dim]),)
        if rest or axis.dim != dim or axis.outer != 1 or not isinstance(axis.inner, int):
            return None
        widths += [axis.inner] * axis.size
    alike = len(set(widths)) == 1
    return (Axis(dim, len(widths), inner=widths[0]) if alike else Axis(dim, len(widths), widths=tuple(widths)),)


def _lie_apart(place: Cut, dim: int, pieces: Sequence[_Piece]) -> tuple[Axis, ...]:
    """The axis that counts pieces, if they are heads: it ends with their features, or later, where these have ended in
    each piece. What ends nowhere, or with others, counts positions.
    """
    node, number = place.node, len(pieces)
    rank = len(node.meta["shape"])
    stacks = packet_of(node) is aten.stack
    dimensions = follow(node, place.carried)
    # A view may have split the dimension where one piece begins.
    counted = next(iter(dimensions.start.at(dim)), None)
    if counted is None or counted.size != Size(number):
        return ()
    held = {at if not stacks or at > dim else at - 1 for piece in pieces for at in piece.features}
    features = [factor for at in held for factor in dimensions.start.dims[rank + at]]
    if not features:
        end = dimensions.get(place.carried[-1] if place.carried else node)
        assert end is not None
        left = {root for factor in end.present for root in leaves(factor.roots())}
        return () if counted in left else (_axis(node, dimensions.start, counted),)
    met = _met_by_features(place, dimensions, features)
    return (_axis(node, dimensions.start, counted),) if counted in met else ()


def _meeting(region: Region, products: dict[fx.Node, fx.Node]) -> Iterator[fx.Node]:
    """The nodes that everything made of these products passes, in execution order."""
    places = {node: place for place, node in enumerate(region.nodes)}
    made = below(products)
    read_last = max(map(places.__getitem__, products), default=-1)
    for node, place in places.items():
        if node in made:
            if place >= read_last:
                yield node
            read_last = max([read_last, *(places[user] for user in node.users if user in places)])


def _is_beside(carried: Mapping[fx.Node, Cut]) -> bool:
    """The last product, which comes first here, is not on the way of all others to the end."""
    last, *others = carried
    return any(last not in carried[product].carried for product in others)


def _at_place(region: Region, product: fx.Node, start: fx.Node, place: Cut) -> Cut | None:
    """The cut at a place along the heads of a product before it, if each head goes there by itself."""
    made = below([product])
    if place.node not in made:
        return None
    # What a norm behind it divides by is held: that it takes the mean over some heads alone sets none of them apart.
    way = {*needed(region, {place.node}), *place.carried}
    after = tuple(node for node in region.nodes if node in way and node in made and node is not product)
    dimensions, factors = _head_factors(replace(place, node=product, carried=after), start)
    reached = dimensions.get(place.node)
    heads = leaves(factors)
    if reached is None or not heads or not set(heads) <= set(reached.present) - set(leaves(reached.mixed)):
        return None
    return replace(place, axes=tuple(_axis(place.node, reached, factor) for factor in heads))


def _head_factors(cut: Cut, start: fx.Node) -> tuple[Dimensions, list[Factor]]:
    """The heads of an attention product, whose pattern starts at a node, among the factors of its dimensions."""
    features, queries = _roles(cut.node, start)
    dimensions = follow(cut.node, cut.carried)
    if _summed(dimensions, cut, queries) and not _summed(dimensions, cut, features):
        # Linear attention q (kᵀ v): it is what the pattern is made of that has the features.
        features, queries = queries, features
    met = _met_by_features(cut, dimensions, [factor for place in features for factor in dimensions.start.dims[place]])
    layout = dimensions.start
    inside = {factor for place in features for factor in layout.at(place)}
    asked = {factor for place in queries for factor in layout.at(place)}
    # A dimension of queries that goes there as a whole holds positions; with heads in it, positions are left over.
    inside |= asked if asked <= met.keys() else set()
    heads = [factor for factor in layout.present if factor in met and factor not in inside]
    return dimensions, sorted(heads, key=met.__getitem__)


def _summed(dimensions: Dimensions, cut: Cut, places: Sequence[int]) -> bool:
    """These dimensions of u have factors, of which nothing is left at the branch's end."""
    end = dimensions.get(cut.carried[-1] if cut.carried else cut.node)
    assert end is not None
    left = {root for factor in end.present for root in leaves(factor.roots())}
    own = {factor for place in places for factor in dimensions.start.at(place)}
    return bool(own) and left.isdisjoint(own)


def _axis(product: fx.Node, layout: Layout, factor: Factor) -> Axis:
    rank = len(layout.dims)
    place = next(place for place in range(rank) if factor in layout.at(place))
    factors = layout.at(place)
    at = factors.index(factor)
    outer, inner = (_number(part) for part in (factors[:at], factors[at + 1 :]))
    size = _number((factor,))
    where = f"{op_in_module(product)}, of shape {list(product.meta['shape'])},"
    if size is None:
        raise HeadsError(f"the number of heads of {where} is open")
    if outer is None and inner is None:
        raise HeadsError(f"the heads of {where} lie between sizes that are both open")
    return Axis(place - rank, size, outer, inner)


def _number(factors: Factors) -> int | None:
    """The product of sizes, if they are all known."""
    return None if any(factor.size.symbols for factor in factors) else math.prod(f.size.number for f in factors)


def _met_by_features(cut: Cut, dimensions: Dimensions, features: Sequence[Factor]) -> dict[Factor, int]:
    """The factors that are summed over, or merged, with a head's features, or summed over before, with their order
    there.

    Raises `HeadsError` where the features cannot be followed that far.
    """

    def held(layout: Layout | None) -> list[Factor]:
        """What the layout has of the features, slices of them too."""
        wanted = set(leaves(features))
        present = () if layout is None else layout.present
        return [factor for factor in present if not wanted.isdisjoint(leaves(factor.roots()))]

    summed: list[Factor] = []
    for node in cut.carried:
        if "shape" not in node.meta:
            continue
        after = dimensions.get(node)
        reads = [arg for arg in node.all_input_nodes if arg in {cut.node, *cut.carried}]
        if features:
            before = None if held(after) else next((arg for arg in reads if held(dimensions.get(arg))), None)
        else:
            # A head of one feature has no dimension of them.
            before = reads[0] if is_mixing(node) else None
        if before is None:
            summed += _lost(dimensions, node, reads) if packet_of(node) in _SUM_FACTORS_AWAY else ()
            continue
        if node in dimensions.unknown:
            raise HeadsError(
                f"a head's features cannot be followed through {op_in_module(node)}, which does not say what "
                "it does to dimensions"
            )
        one = dimensions.get(before)
        assert one is not None
        assert after is not None
        gone = [factor for factor in one.present if factor not in after.present]
        own = [factor for factor in one.present if factor in leaves(dimensions.ties.get(node, ()))]
        return _ordered([*summed, *(factor for factor, _ in one.pieces), *own, *gone])
    end = dimensions.get(cut.carried[-1] if cut.carried else cut.node)
    assert end is not None
    merged = (factor for dim in range(len(end.dims)) if set(held(end)) & set(end.at(dim)) for factor in end.at(dim))
    return _ordered([*summed, *merged])


_SUM_FACTORS_AWAY = SUMS | {*PRODUCTS}


def _lost(dimensions: Dimensions, node: fx.Node, reads: Iterable[fx.Node]) -> list[Factor]:
    """What a node sums over."""
    after = dimensions.get(node)
    assert after is not None
    layouts = filter(None, map(dimensions.get, reads))
    return [factor for layout in layouts for factor in layout.present if factor not in after.present]


def _ordered(factors: Iterable[Factor]) -> dict[Factor, int]:
    """Numbers of the factors, and of what they are slices of, in order."""
    roots = [root for factor in factors for root in (factor, *leaves(factor.roots()))]
    return {factor: place for place, factor in enumerate(dict.fromkeys(roots))}


def _roles(product: fx.Node, start: fx.Node) -> tuple[list[int], list[int]]:
    """The dimensions of an attention product that come from the values alone, the features of a head, and from the
    pattern alone, the queries.
    """
    if product is start:
        return [-1], [-2]
    told = labels_of(product)
    if told is None:
        raise HeadsError(f"the roles of dimensions in the product {op_in_module(product)} are unclear")
    operands, (*read, out) = told
    made = below([start])
    pattern = next((place for place, operand in enumerate(operands) if operand in made), 0)
    alone = [
        [place for place, label in enumerate(out) if label in read[one] and label not in read[1 - one]]
        for one in (1 - pattern, pattern)
    ]
    return alone[0], alone[1]
