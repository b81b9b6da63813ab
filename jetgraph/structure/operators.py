"""What operators do, as far as structure goes: sets of them, and the kinds of branches and maps read off them.

The only tables of operators in structure finding. They say what an operator is (a product, a norm, a change of layout),
never whose code it is in.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from jetgraph.jets.registry import is_floating, nodes_in, values_read

if TYPE_CHECKING:
    from jetgraph.structure.regions import Region

aten = torch.ops.aten

LOOKUPS = {aten.embedding: 1, aten.index_select: 2, aten.gather: 2, aten.index: 1}
"""Operators that look values up in a table, with the place of the indices."""

LAYOUT = {
    aten.view, aten._unsafe_view, aten.reshape, aten.flatten, aten.unflatten, aten.permute, aten.transpose, aten.t,
    aten.unsqueeze, aten.squeeze, aten.movedim, aten.expand,
}  # fmt: skip
"""Operators that move or group dimensions."""

IDENTITY = LAYOUT | {
    aten.clone, aten.dropout, aten.alias, aten.detach, aten._to_copy, aten.to, aten.contiguous, aten.native_dropout,
}  # fmt: skip
"""Affine operators that leave the stream what it is, up to layout and precision."""

SCALES = {aten.mul, aten.div, aten.neg}

FIXED_NORMS = {aten.batch_norm, aten._native_batch_norm_legit_no_training}
"""Norms by statistics that are kept: where a node is affine, a factor and a constant for each channel."""

_RECURRENT = {
    aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu,
    aten.lstm_cell, aten.gru_cell, aten.rnn_tanh_cell, aten.rnn_relu_cell,
}  # fmt: skip
"""Recurrent layers, and steps of them, that are one operator."""

_MIXING = _RECURRENT | {
    aten.linear, aten.addmm, aten.mm, aten.bmm, aten.baddbmm, aten.matmul, aten.mv, aten.einsum,
    aten.convolution, aten.conv1d,
    aten.conv2d, aten.conv3d, aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d,
    aten.scaled_dot_product_attention, aten._grouped_mm, aten.bilinear,
}  # fmt: skip
"""Learned mixing: operators that combine features or positions through a product."""

_WEIGHTLESS = {
    aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d, aten.max_pool1d, aten.max_pool2d, aten.max_pool3d,
    aten.max_pool1d_with_indices, aten.max_pool2d_with_indices, aten.max_pool3d_with_indices,
    aten.adaptive_avg_pool1d, aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d,
    aten.adaptive_max_pool1d, aten.adaptive_max_pool2d, aten.adaptive_max_pool3d,
    aten.index_add, aten.scatter_add, aten.scatter_reduce,
    aten.cumsum, aten.cumprod, aten.logcumsumexp, aten.cummax, aten.cummin, aten.roll,
    aten.fft_fft, aten.fft_ifft, aten.fft_rfft, aten.fft_irfft, aten.fft_hfft, aten.fft_ihfft, aten.fft_fft2,
    aten.fft_ifft2, aten.fft_rfft2, aten.fft_irfft2, aten.fft_fftn, aten.fft_ifftn, aten.fft_rfftn, aten.fft_irfftn,
}  # fmt: skip
"""Operators that combine positions or features in a fixed way."""

_CONVOLUTIONS = {packet for packet in _MIXING if "conv" in str(packet)}
PRODUCTS = {aten.bmm, aten.baddbmm, aten.matmul, aten.mm, aten.einsum}
SOFTMAX = {aten.softmax, aten._softmax, aten._safe_softmax}
NORMS = {
    aten.layer_norm, aten.native_layer_norm, aten.rms_norm, aten._fused_rms_norm, aten.group_norm,
    aten.native_group_norm, aten.batch_norm,
    aten._native_batch_norm_legit_no_training, aten.instance_norm, aten.rsqrt, aten.sqrt,
}  # fmt: skip


def packet_of(node: fx.Node) -> Any:
    """The operator of a node, whatever its overload."""
    return node.target.overloadpacket if isinstance(node.target, torch._ops.OpOverload) else node.target


def is_mixing(node: fx.Node) -> bool:
    """The operator combines features or positions through a product."""
    packet = packet_of(node)
    return packet in _MIXING or (isinstance(packet, torch._ops.OpOverloadPacket) and "grouped_mm" in str(packet))


def mixes(node: fx.Node) -> bool:
    """The operator combines features or positions, learned or not."""
    return is_mixing(node) or (packet_of(node) in _WEIGHTLESS and is_floating(node))


Level = tuple[int, tuple[str, ...]]
"""A number of places, as its known factors and its open ones."""


_RESIZING = {packet for packet in _WEIGHTLESS if "pool" in str(packet)} | {
    aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d,
    aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d, aten.upsample_bicubic2d,
}  # fmt: skip


def level(node: fx.Node, *, before: bool = False) -> Level | None:
    """At how many places a layer, a convolution, a pool or a table works: those of what it gives, or of what it reads.

    None for operators that say nothing of places.
    """
    packet = packet_of(node)
    channels_first = packet in _CONVOLUTIONS | _RESIZING
    if not (channels_first or packet in (aten.linear, aten.embedding)) or not is_float_tensor(node):
        return None
    shape = next(nodes_in(node.args[:1])).meta["shape"] if before else node.meta["shape"]
    sizes = (shape[0], *shape[2:]) if channels_first else shape[:-1]
    known = prod(size for size in sizes if isinstance(size, int))
    return known, tuple(sorted(size for size in sizes if isinstance(size, str)))


def attention_products(region: Region) -> dict[fx.Node, fx.Node]:
    """The attention products of a region, in execution order, each with the node at which its pattern starts.

    These are fused attention (which starts at itself), products with what a softmax gives, and in general each product
    of something with an earlier product, both factors of both being activations. So softmax may be written by hand,
    masked or renormalised, or be a sigmoid or nothing (linear attention).
    """
    activations = {region.entry, *region.nodes, *region.context}
    scores: list[fx.Node] = []
    above: dict[fx.Node, int] = {}
    """By node, the pairwise products above it as a bit set."""
    starts: dict[fx.Node, fx.Node] = {}
    for node in region.nodes:
        made = 0
        for arg in node.all_input_nodes:
            made |= above.get(arg, 0)
        packet = packet_of(node)
        if packet is aten.scaled_dot_product_attention:
            starts[node] = node
        elif packet in PRODUCTS:
            factors = [arg for arg in node.all_input_nodes if arg in activations]
            histories = [above.get(factor, 0) for factor in factors]
            alone = next((one & ~other for one, other in permutations(histories, 2) if one & ~other), 0)
            if alone:
                starts.setdefault(node, scores[alone.bit_length() - 1])
            if len(factors) > 1:
                made |= 1 << len(scores)
                scores.append(node)
        elif packet in SOFTMAX:
            starts |= dict.fromkeys((product for product in _weighted_by(node) if product in region.node_set), node)
        above[node] = made
    return {node: starts[node] for node in region.nodes if node in starts}


def _weighted_by(softmax: fx.Node) -> Iterator[fx.Node]:
    """The products that a softmax goes into through changes of layout alone."""
    stack = [softmax]
    while stack:
        for user in stack.pop().users:
            if packet_of(user) in PRODUCTS:
                yield user
            elif packet_of(user) in IDENTITY or packet_of(user) is aten.slice:
                stack.append(user)


def is_float_tensor(node: fx.Node) -> bool:
    """The node is a tensor of a floating or complex type."""
    return "dtype" in node.meta and is_floating(node)


def branch_kind(region: Region) -> str:
    """`attn`, `ssm`, `conv`, `mlp`, `mix` or `skip`: the first that the operators of a region show."""
    if attention_products(region):
        return "attn"
    if _scans(region):
        return "ssm"
    if any(packet_of(node) in _CONVOLUTIONS for node in region.nodes):
        return "conv"
    if any(map(is_mixing, region.nodes)):
        return "mlp"
    return "skip" if region.affine and not any(map(mixes, region.nodes)) else "mix"


def map_kind(region: Region) -> str:
    """`map`, `norm` or `act`: what a map on the stream is named after."""
    if any(map(is_mixing, region.nodes)) or region.affine:
        return "map"
    return "norm" if any(packet_of(node) in NORMS for node in region.nodes) else "act"


def _scans(region: Region) -> bool:
    """A recurrence x_t = a_t x_{t-1} + b_t of three or more steps with varying a_t, or a cumulative operator."""
    length: dict[fx.Node, int] = {}
    """By add, the steps of the longest recurrence that ends there."""
    for node in region.nodes:
        packet = packet_of(node)
        if not is_float_tensor(node) and packet not in _RECURRENT:
            continue
        if packet in (aten.cumsum, aten.cumprod, aten.logcumsumexp) or packet in _RECURRENT:
            return True
        if packet is not aten.add:
            continue
        steps = [
            length[before]
            for product in values_read(node)
            if product in region.node_set and packet_of(product) is aten.mul
            for before in values_read(product)
            if before in length
        ]
        length[node] = 1 + max(steps, default=0)
        if length[node] >= 3:
            return True
    return False


def working(region: Region) -> list[fx.Node]:
    """The nodes that a region is named after: its learned mixing, where there is none the other."""
    return list(filter(is_mixing, region.nodes)) or list(filter(mixes, region.nodes))
