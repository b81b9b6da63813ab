"""Operators that combine entries along dimensions: norms, sorts and sums, and sums of products."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from jetgraph.structure.dimensions.changes import laid_out, mixed_along, of_one, places_of, reduced, resized
from jetgraph.structure.dimensions.factors import Factor, Layout, Layouts, Size
from jetgraph.structure.dimensions.following import Dimensions, LayoutOf

# Along dimensions


def mixing(default: Any = -1) -> LayoutOf:
    """Ops that keep their dimensions, of which they mix those named by `dim`."""

    def rule(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layouts:
        places = places_of(bound.get("dim", bound.get("dims", default)), len(layout.dims))
        return mixed_along(layout, places)

    return of_one(rule)


def sorting(default: Any = -1) -> LayoutOf:
    """As `mixing`, of ops that give entries and their indices; the dimension may have another size."""

    def rule(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layouts:
        places = places_of(bound.get("dim", default), len(layout.dims))
        whole = mixed_along(layout, places)
        fresh = [
            (Factor(Size(1, (f"{node.name} {place}",)), whole.at(place)),) if place in places else dims
            for place, dims in enumerate(whole.dims)
        ]
        chosen = replace(whole, dims=tuple(fresh)) if "k" in bound else whole
        return chosen if "shape" in node.meta else [chosen, chosen]

    return of_one(rule)


def reducing(outputs: int = 1) -> LayoutOf:
    """Sums, means and extremes over the dimensions named by `dim`, or over all."""

    def rule(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layouts | None:
        if "other" in bound:
            return None
        places = places_of(bound.get("dim"), len(layout.dims))
        remaining = reduced(layout, places, bool(bound.get("keepdim", False)))
        return remaining if "shape" in node.meta else [remaining] * max(outputs, 2)

    return of_one(rule)


@of_one
def unpaired(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    """Complex values of real and imaginary parts along the last dimension."""
    return reduced(layout, [len(layout.dims) - 1], False)


@of_one
def quantiles(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    """As `reducing`, for a share, or for several along a dimension ahead."""
    places = places_of(bound.get("dim"), len(layout.dims))
    left = reduced(layout, places, bool(bound.get("keepdim", False)))
    shares = bound["q"].meta["shape"] if isinstance(bound["q"], fx.Node) else ()
    return replace(left, dims=(*map(d.fresh, shares), *left.dims))


def extreme(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layouts | None:
    """max and min: of two values, or over a dimension."""
    return d.each(node, bound) if "other" in bound else reducing(2)(d, node, bound)


@of_one
def last_dims(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layouts:
    """Norms over the last dimensions; a native one gives its statistics besides."""
    rank = len(layout.dims)
    places = range(rank - len(bound["normalized_shape"]), rank)
    norm = mixed_along(layout, places)
    return norm if "shape" in node.meta else [norm, *[reduced(layout, list(places), keep=True)] * 2]


@of_one
def group_norm(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout | None:
    """Group and instance norm: each element of the batch by itself."""
    return (
        mixed_along(layout, range(1, len(layout.dims)))
        if "shape" in node.meta and bound.get("use_input_stats", True)
        else None
    )


@of_one
def batch_norm(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layouts:
    """With running statistics entry by entry, channels not being alike."""
    batch = bound.get("training", False) or bound.get("running_mean") is None
    norm = mixed_along(layout, range(len(layout.dims))) if batch else laid_out(layout, layout.dims, (), layout.at(1))
    return norm if "shape" in node.meta else [norm, *[reduced(layout, list(range(len(layout.dims))), False)] * 2]


@of_one
def by_channel(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    """A slope for each channel."""
    return laid_out(layout, layout.dims, (), layout.at(1) if len(layout.dims) > 1 else ())


@of_one
def triangle(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    """What is kept depends on the indices."""
    return laid_out(layout, layout.dims, (), (*layout.at(-2), *layout.at(-1)))


@of_one
def halves(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    """The first half of a dimension, gated by the second."""
    return resized(d, layout, node.meta["shape"], [bound.get("dim", -1) % len(layout.dims)])


# Sums of products


def linear(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout:
    """Features of the last dimension are summed over, and there are new ones."""
    rank = len(node.meta["shape"])
    operands = [(bound["input"], (*range(rank - 1), "in")), (bound["weight"], ("out", "in"))]
    if bound.get("bias") is not None:
        operands.append((bound["bias"], ("out",)))
    return d.joined(operands, (*range(rank - 1), "out"), node.meta["shape"])


def matrices(left: str, right: str) -> LayoutOf:
    """Matrix products of any rank, with or without a summand."""

    def rule(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout:
        one, other = bound[left], bound[right]
        first, second = len(one.meta["shape"]), len(other.meta["shape"])
        rows = () if first == 1 else ("row",)
        columns = () if second == 1 else ("column",)
        batch = range(-max(first, second, 2), -2)
        operands = [
            (one, (*batch[len(batch) - max(first - 2, 0) :], *rows, "in")),
            (other, (*batch[len(batch) - max(second - 2, 0) :], "in", *columns)),
        ]
        out = (*batch, *rows, *columns)
        if left != "self":
            added = bound["self"]
            rank = len(added.meta["shape"])
            operands.append((added, out[len(out) - rank :]))
        return d.joined(operands, out, node.meta["shape"])

    return rule


def contracted(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout:
    """A product summed over pairs of dimensions; the others of both, in order."""
    labelled: list[tuple[fx.Node, list[Hashable]]] = []
    for name in ("self", "other"):
        rank = len(bound[name].meta["shape"])
        pairs = {at % rank: pair for pair, at in enumerate(bound[f"dims_{name}"])}
        labels: list[Hashable] = [("summed", pairs[at]) if at in pairs else (name, at) for at in range(rank)]
        labelled.append((bound[name], labels))
    out = [label for _, labels in labelled for label in labels if label[0] != "summed"]  # type: ignore[index]
    return d.joined(labelled, out, node.meta["shape"])


def by_equation(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout | None:
    """What the labels of an equation say."""
    labels = einsum_labels(bound["equation"], [len(operand.meta["shape"]) for operand in bound["tensors"]])
    if labels is None:
        return None
    *read, out = labels
    return d.joined(list(zip(bound["tensors"], read, strict=True)), out, node.meta["shape"])


def einsum_labels(equation: str, ranks: Sequence[int]) -> list[list[Hashable]] | None:
    """Labels of the operands' dimensions and of the result's; None where an operand has one twice."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    texts = left.split(",")
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        right = "..." * ("..." in left) + "".join(
            sorted(letter for letter in set(letters) if letters.count(letter) == 1)
        )
    widths = [rank - len(text.replace("...", "")) for text, rank in zip(texts, ranks, strict=True)]
    by_operand: list[list[Hashable]] = []
    for text, width in zip([*texts, right], [*widths, max(widths, default=0)], strict=True):
        before, dots, after = text.partition("...")
        by_operand.append([*before, *(range(-width, 0) if dots else ()), *after])
    return None if any(len(set(labels)) < len(labels) for labels in by_operand) else by_operand


def attention(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout:
    """Keys are summed over; heads and the batch stay."""
    rank = len(node.meta["shape"])
    batch: list[Hashable] = list(range(-rank, -2))
    shared: list[Hashable] = [*batch[:-1], "group"] if bound.get("enable_gqa") and batch else batch
    operands = [
        (bound["query"], [*batch, "query", "score"]),
        (bound["key"], [*shared, "key", "score"]),
        (bound["value"], [*shared, "key", "feature"]),
    ]
    mask = bound.get("attn_mask")
    if mask is not None:
        operands.append((mask, [*batch, "query", "key"][rank - len(mask.meta["shape"]) :]))
    joined = d.joined(operands, [*batch, "query", "feature"], node.meta["shape"])
    # Keys and values are other ones for each group of heads; a causal mask for each query.
    tied = {*(joined.at(-2) if bound.get("is_causal") else ()), *(joined.at(-3) if shared != batch else ())}
    return replace(joined, tied=joined.tied | tied)


@of_one
def convolution(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    """Positions are mixed unless the kernel is one position wide; channels always."""
    shape, kernel = node.meta["shape"], bound["weight"].meta["shape"][2:]
    first = len(layout.dims) - len(kernel)
    read = node.args[0].meta["shape"]  # type: ignore[union-attr]
    padded = bound.get("padding", 0) not in (0, "same", "valid") and any(_listed(bound["padding"]))
    pointwise = all(size == 1 for size in kernel) and tuple(shape[first:]) == tuple(read[first:]) and not padded
    moved = () if pointwise else range(first, len(shape))
    sized = resized(d, layout, shape, moved)
    dims = [d.fresh(shape[place]) if place == first - 1 else dims for place, dims in enumerate(sized.dims)]
    return laid_out(layout, dims, {*sized.mixed, *layout.at(first - 1)})


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def positions(spatial: int) -> LayoutOf:
    """Pools and resizing of the last dimensions."""

    def rule(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout | None:
        places = range(len(layout.dims) - spatial, len(layout.dims))
        return resized(d, layout, node.meta["shape"], places) if "shape" in node.meta else None

    return of_one(rule)


def of_shape(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout | None:
    """Of the argument only the shape is read."""
    layout = d.get(node.args[0])
    return None if layout is None or "shape" not in node.meta else Layout(layout.dims)
