"""At how many places operators work: rows, pixels, frames. A line of joins at another number is another level."""

from __future__ import annotations

from math import prod

from torch import fx

from jetgraph.export.indices import arguments
from jetgraph.jets.registry import nodes_in
from jetgraph.structure.dimensions.factors import Size
from jetgraph.structure.operators import CONVOLUTIONS, POOLS, aten, is_float_tensor, packet_of

Level = tuple[int, tuple[str, ...]]
"""A number of places, as its known factors and its open ones."""

_RESIZING = POOLS | {
    aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d,
    aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d, aten.upsample_bicubic2d,
}  # fmt: skip


def level(node: fx.Node, *, before: bool = False) -> Level | None:
    """At how many places a layer, a convolution, a pool or a table works: those of what it gives, or of what it reads.

    A convolution that goes on place by place works at the fewer of both: the others are a rim that was put around what
    it reads, or that is cut off what it gives. None for operators that say nothing of places.
    """
    packet = packet_of(node)
    channels_first = packet in CONVOLUTIONS | _RESIZING
    if not (channels_first or packet in (aten.linear, aten.embedding)) or not is_float_tensor(node):
        return None
    read, made = next(nodes_in(node.args[:1])).meta["shape"], node.meta["shape"]
    shape = read if before else made
    if packet in CONVOLUTIONS and _goes_place_by_place(node):
        # Of open sizes, `length` is the one without the rim of `length + 3`.
        shape = tuple(
            min(pair, key=lambda size: size if isinstance(size, int) else len(size))
            for pair in zip(read, made, strict=True)
        )
    sizes = (shape[0], *shape[2:]) if channels_first else shape[:-1]
    factors = [Size.of(size) for size in sizes]
    # Windows that are laid out along the batch are as many places as before.
    return prod(size.number for size in factors), tuple(sorted(name for size in factors for name in size.symbols))


def _goes_place_by_place(node: fx.Node) -> bool:
    """A convolution, and not a transposed one, that skips no places."""
    given = arguments(node)
    stride = given.get("stride", 1)
    return (
        "transpose" not in str(node.target)
        and not given.get("transposed")
        and {1}.issuperset(stride if isinstance(stride, list | tuple) else [stride])
    )
