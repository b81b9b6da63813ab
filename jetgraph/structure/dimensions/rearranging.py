"""Operators that move, cut and put together dimensions."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from jetgraph.structure.dimensions.changes import laid_out, of_one, resized
from jetgraph.structure.dimensions.factors import Factor, Factors, Layout, Layouts, Size
from jetgraph.structure.dimensions.following import Dimensions


@of_one
def reshaped(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    """Factors dealt out anew, in row-major order."""
    shape = node.meta["shape"]
    dims, lost = d.regrouped(layout.present, shape)
    if lost:
        d.unknown.add(node)
    written = bound.get("size", bound.get("shape", bound.get("sizes", ())))
    first = bound["dim"] % len(layout.dims) if "sizes" in bound else 0
    stiff = [
        factor
        for place, size in enumerate(written if isinstance(written, (list, tuple)) else (), first)
        for factor in d.stiff(dims[place], size)
    ]
    return laid_out(layout, dims, lost, stiff)


@of_one
def moved(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    """Any op that only exchanges dimensions: the strides of a probe say which came from where."""
    probe = torch.empty_strided((2,) * len(layout.dims), tuple(range(1, len(layout.dims) + 1)), device="meta")
    moved = node.target(probe, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    return laid_out(layout, [layout.dims[stride - 1] for stride in moved.stride()])


@of_one
def expanded(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    """Dimensions of size 1 that are repeated, or new ones in front."""
    shape = node.meta["shape"]
    new = len(shape) - len(layout.dims)
    dims = [
        d.fresh(size) if place < new or not layout.at(place - new) else layout.at(place - new)
        for place, size in enumerate(shape)
    ]
    stiff = [factor for place, size in enumerate(bound.get("size", ())) for factor in d.stiff(dims[place], size)]
    return laid_out(layout, dims, (), stiff)


@of_one
def paired(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    """Real and imaginary parts of complex values along a last dimension of their own."""
    return laid_out(layout, [*layout.dims, d.fresh(2)])


@of_one
def repeated(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout | None:
    """Copies of the whole along dimensions."""
    times = bound.get("repeats", bound.get("dims"))
    shape = node.meta["shape"]
    if not isinstance(times, (list, tuple)):
        return None
    # tile takes fewer numbers than there are dimensions.
    times = [*[1] * (len(shape) - len(times)), *times]
    new = len(shape) - len(layout.dims)
    return laid_out(
        layout,
        [
            ((Factor(Size.of(number)),) if number != 1 else ()) + (layout.at(place - new) if place >= new else ())
            if isinstance(number, int)
            else d.fresh(shape[place])
            for place, number in enumerate(times)
        ],
        (
            f
            for place, number in enumerate(times)
            if not isinstance(number, int) and place >= new
            for f in layout.at(place - new)
        ),
    )


@of_one
def interleaved(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout | None:
    """repeat_interleave: every entry so many times in a row, along one dimension or along all of them as one."""
    times, dim = bound["repeats"], bound.get("dim")
    if dim is None:
        layout = laid_out(layout, [layout.present])
    place = (dim or 0) % len(layout.dims)
    if not isinstance(times, int):
        return resized(d, layout, node.meta["shape"], [place])
    dims = [*layout.dims]
    dims[place] = (*layout.at(place), *d.fresh(times))
    return laid_out(layout, dims, (), layout.at(place) if bound.get("output_size") is not None else ())


# Choosing


@of_one
def sliced(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    """A stretch of a dimension."""
    return resized(d, layout, node.meta["shape"], [bound.get("dim", 0) % len(layout.dims)])


@of_one
def stretch(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    """As `sliced`, with each place as it was."""
    place = bound.get("dim", 0) % len(layout.dims)
    return replace(resized(d, layout, node.meta["shape"], [place]), mixed=frozenset())


@of_one
def padded(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    """Entries beyond the ends of dimensions."""
    pad, rank = bound["pad"], len(layout.dims)
    return resized(
        d, layout, node.meta["shape"], [rank - 1 - i // 2 for i in range(0, len(pad), 2) if pad[i] or pad[i + 1]]
    )


@of_one
def differences(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout | None:
    """Neighbours subtracted along a dimension."""
    beside = bound.get("prepend") is not None or bound.get("append") is not None
    return None if beside else resized(d, layout, node.meta["shape"], [bound.get("dim", -1) % len(layout.dims)])


@of_one
def windows(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    """unfold: pieces of a dimension, one after the other; what is in a piece is a new last dimension."""
    shape = node.meta["shape"]
    cut = resized(d, layout, shape[:-1], [bound["dimension"] % len(layout.dims)])
    return replace(cut, dims=(*cut.dims, d.fresh(shape[-1])))


@of_one
def blocks(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    """nn.functional.unfold: [channels, rows, columns] become [channels · places of a block, blocks]."""
    places = (*layout.at(-2), *layout.at(-1))
    inside = d.fresh(math.prod(bound["kernel_size"]))
    number = (Factor(Size.of(node.meta["shape"][-1]), places),)
    return laid_out(layout, [*layout.dims[:-3], (*layout.at(-3), *inside), number], places)


@of_one
def blocks_together(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout | None:
    """nn.functional.fold: what lies at one pixel in several blocks is added up; channels stay as they are."""
    shape = node.meta["shape"]
    (channels, inside), lost = d.regrouped(layout.at(-2), [shape[-3], math.prod(bound["kernel_size"])])
    if lost:
        return None
    places = (*inside, *layout.at(-1))
    made = [(Factor(Size.of(size), places),) if places else () for size in shape[-2:]]
    return laid_out(layout, [*layout.dims[:-2], channels, *made], places)


def _piece(layout: Layout, place: int, kept: list[Factors], number: int | None) -> Layout:
    """The piece of this number along a dimension; what is left of the dimension is `kept`, if anything is."""
    dims = [*layout.dims[:place], *kept, *layout.dims[place + 1 :]]
    left = {factor for factors in kept for factor in factors}
    of = tuple(factor for factor in layout.at(place) if factor not in left)
    made = laid_out(layout, dims, of)
    return replace(made, pieces=(*made.pieces, (of[0], number))) if len(of) == 1 and number is not None else made


@of_one
def selected(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layout:
    """One place of a dimension."""
    index = bound["index"]
    return _piece(layout, bound["dim"] % len(layout.dims), [], index if isinstance(index, int) else None)


@of_one
def unbound(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layouts | None:
    """All places of a dimension, each by itself."""
    place = bound.get("dim", 0) % len(layout.dims)
    size = node.args[0].meta["shape"][place]  # type: ignore[union-attr]
    return [_piece(layout, place, [], number) for number in range(size)] if isinstance(size, int) else None


@of_one
def divided(d: Dimensions, node: fx.Node, bound: Mapping[str, Any], layout: Layout) -> Layouts | None:
    """split and chunk: numbered pieces where all have one size, slices else."""
    place = bound.get("dim", 0) % len(layout.dims)
    size = Size.of(node.args[0].meta["shape"][place])  # type: ignore[union-attr]
    written = bound.get("split_size", bound.get("split_sizes", bound.get("chunks")))
    if isinstance(written, (list, tuple)):
        if len(set(written)) > 1:
            known = all(isinstance(part, int) for part in written)
            return [resized(d, layout, [part] * len(layout.dims), [place]) for part in written] if known else None
        each = Size.of(written[0]) if isinstance(written[0], int) else None
    else:
        # The size of a piece may be counted in the graph; the pieces say what it is.
        sizes = {Size.of(user.meta["shape"][place]) for user in node.users if "shape" in user.meta}
        each = sizes.pop() if len(sizes) == 1 else None
    number = None if each is None else size.over(each)
    if each is None or number is None or number.symbols:
        return None
    (pieces, rest), lost = d.regrouped(layout.at(place), [number.number, each])
    return None if lost else [_piece(layout, place, [rest], i if pieces else None) for i in range(number.number)]


def picked(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout:
    """gather and index_select: entries along one dimension, by indices."""
    value, index = bound["self"], bound["index"]
    rank = len(value.meta["shape"])
    place = bound["dim"] % max(rank, 1)
    labels: list[Hashable] = list(range(rank))
    labels[place] = "picked"
    indices = range(rank) if len(index.meta["shape"]) == rank > 1 else [place]
    return d.joined([(value, labels), (index, indices)], range(rank), node.meta["shape"])


def indexed(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout | None:
    """x[:, i, j]: neighbouring dimensions give way to those of the indices."""
    value, indices = bound["self"], bound["indices"]
    used = [place for place, index in enumerate(indices) if index is not None]
    given = [indices[place] for place in used]
    mask = any(index.meta.get("dtype") in (torch.bool, torch.uint8) for index in given)
    if mask or not used or used != list(range(used[0], used[-1] + 1)):
        return None
    rank, first = len(value.meta["shape"]), used[0]
    width = max(len(index.meta["shape"]) for index in given)
    chosen = [("index", place) for place in range(-width, 0)]
    labels = [("picked", place) if place in used else place for place in range(rank)]
    operands = [(value, labels), *((index, chosen[width - len(index.meta["shape"]) :]) for index in given)]
    out = [*range(first), *chosen, *range(used[-1] + 1, rank)]
    return d.joined(operands, out, node.meta["shape"])


def looked_up(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout:
    """Rows of a table."""
    table, indices = bound["weight"], bound["indices"]
    rank = len(indices.meta["shape"])
    return d.joined(
        [(table, ("row", "feature")), (indices, range(rank))], (*range(rank), "feature"), node.meta["shape"]
    )


# Putting together


def concatenated(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout:
    """Values side by side along a dimension; all pieces of a factor are that factor, others lie in a new one."""
    operands, shape = list(bound["tensors"]), node.meta["shape"]
    place = bound.get("dim", 0) % len(shape)
    whole = _whole(d, operands)
    labels = [[("part", i) if at == place else at for at in range(len(shape))] for i in range(len(operands))]
    if whole is not None:
        labels = [list(range(len(shape)))] * len(operands)
    joined = d.joined(list(zip(operands, labels, strict=True)), range(len(shape)), shape)
    if whole is None:
        layouts = [layout for operand in operands if (layout := d.get(operand)) is not None]
        inside = tuple(dict.fromkeys(factor for layout in layouts for factor in layout.at(place)))
        dims = [(Factor(Size.of(shape[at]), inside),) if at == place else joined.dims[at] for at in range(len(shape))]
        return replace(joined, dims=tuple(dims)) if inside else joined
    dims = [(whole, *joined.at(at)) if at == place else joined.dims[at] for at in range(len(shape))]
    return replace(joined, dims=tuple(dims), pieces=_without_last(d, operands))


def row(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout:
    """As `concatenated`, with each place as it was."""
    joined = concatenated(d, node, bound)
    place = bound.get("dim", 0) % len(node.meta["shape"])
    layouts = [layout for operand in bound["tensors"] if (layout := d.get(operand)) is not None]
    return replace(joined, mixed=joined.mixed - {factor for layout in layouts for factor in layout.at(place)})


def stacked(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout:
    """Values side by side along a new dimension; all pieces of a factor are that factor."""
    operands, shape = list(bound["tensors"]), node.meta["shape"]
    place = bound.get("dim", 0) % len(shape)
    whole = _whole(d, operands)
    labels = [at for at in range(len(shape)) if at != place]
    joined = d.joined([(operand, labels) for operand in operands], range(len(shape)), shape)
    if whole is None:
        return joined
    dims = [(whole,) if at == place else joined.dims[at] for at in range(len(shape))]
    return replace(joined, dims=tuple(dims), pieces=_without_last(d, operands))


def _whole(d: Dimensions, operands: Sequence[fx.Node]) -> Factor | None:
    """The factor whose pieces these are, all of them and in order."""
    pieces = [layout.pieces[-1] if (layout := d.get(operand)) and layout.pieces else None for operand in operands]
    whole = pieces[0][0] if pieces[0] is not None else None
    if whole is None or whole.leaves() != (whole,) or whole.size != Size(len(operands)):
        return None
    return whole if pieces == [(whole, number) for number in range(len(operands))] else None


def _without_last(d: Dimensions, operands: Sequence[fx.Node]) -> tuple[tuple[Factor, int], ...]:
    layout = d.get(operands[0])
    assert layout is not None
    return layout.pieces[:-1]


def written_into(d: Dimensions, node: fx.Node, bound: Mapping[str, Any]) -> Layout | None:
    """Ops that write entries of another value, or add them, along one dimension, at places that an index may give.

    Along the others their sizes are alike: what is written is not broadcast, and entries beyond it would stay.
    """
    shape = node.meta["shape"]
    rank = len(shape)
    place = bound["dim"] % rank if bound.get("dim") is not None else 0
    off = [at for at in range(rank) if at != place]
    operands: list[tuple[fx.Node, Sequence[Hashable]]] = [
        (bound["self"], ["into" if at == place else at for at in range(rank)])
    ]
    for name in ("index", "src", "source"):
        value = bound.get(name)
        if not isinstance(value, fx.Node) or "shape" not in value.meta:
            continue
        size = value.meta["shape"]
        if len(size) == rank:
            if any(size[at] != shape[at] for at in off):
                return None
            operands.append((value, ["from" if at == place else at for at in range(rank)]))
        else:
            # An index along the dimension, or what is put at one place of it.
            operands.append((value, ["from"] if name == "index" else off))
    return d.joined(operands, range(rank), shape)
