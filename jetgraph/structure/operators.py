"""What operators do, as far as structure goes: sets of them, and what is read off one by itself.

The tables that several modules share; one that a single rule needs stands beside it. They say what an operator is (a
product, a norm, a change of layout), never whose code it is in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from jetgraph.export.indices import arguments
from jetgraph.jets.registry import is_floating

aten = torch.ops.aten

LOOKUPS = {
    aten.embedding: 1, aten.index_select: 2, aten.gather: 2, aten.index: 1, aten.take_along_dim: 1, aten.take: 1,
    aten.embedding_bag: 1,
}  # fmt: skip
"""Operators that look values up in a table, with the place of the indices."""

COUNTS = {aten.cumsum}
"""Operators by which the place of an element in a sequence becomes a number."""

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

RECURRENT = {
    aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu,
    aten.lstm_cell, aten.gru_cell, aten.rnn_tanh_cell, aten.rnn_relu_cell,
}  # fmt: skip
"""Recurrent layers, and steps of them, that are one operator."""

_MIXING = RECURRENT | {
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
    aten.cumsum, aten.cumprod, aten.logcumsumexp, aten.cummax, aten.cummin, aten.roll, aten.flip, aten.sort,
    aten.fft_fft, aten.fft_ifft, aten.fft_rfft, aten.fft_irfft, aten.fft_hfft, aten.fft_ihfft, aten.fft_fft2,
    aten.fft_ifft2, aten.fft_rfft2, aten.fft_irfft2, aten.fft_fftn, aten.fft_ifftn, aten.fft_rfftn, aten.fft_irfftn,
}  # fmt: skip
"""Operators that combine positions or features in a fixed way."""

CONVOLUTIONS = {packet for packet in _MIXING if "conv" in str(packet)}
POOLS = {packet for packet in _WEIGHTLESS if "pool" in str(packet)}
PRODUCTS = {aten.bmm, aten.baddbmm, aten.matmul, aten.mm, aten.einsum}
SOFTMAX = {aten.softmax, aten._softmax, aten._safe_softmax}
NORMS = {
    aten.layer_norm, aten.native_layer_norm, aten.rms_norm, aten._fused_rms_norm, aten.group_norm,
    aten.native_group_norm, aten.batch_norm, aten._native_batch_norm_legit_no_training, aten.instance_norm,
}  # fmt: skip
"""Norms that are one operator, by statistics of the value or by kept ones."""

ROOTS = {aten.rsqrt, aten.sqrt}
"""Operators by which code that writes a norm out comes to a length."""


def packet_of(node: fx.Node) -> Any:
    """The operator of a node, whatever its overload."""
    return node.target.overloadpacket if isinstance(node.target, torch._ops.OpOverload) else node.target


def multiple_of(node: fx.Node) -> fx.Node:
    """What a value is a multiple of, in whatever layout."""
    while packet_of(node) in IDENTITY | SCALES and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def is_mixing(node: fx.Node) -> bool:
    """The operator combines features or positions through a product."""
    packet = packet_of(node)
    return packet in _MIXING or (isinstance(packet, torch._ops.OpOverloadPacket) and "grouped_mm" in str(packet))


def mixes(node: fx.Node) -> bool:
    """The operator combines features or positions, learned or not."""
    return is_mixing(node) or (packet_of(node) in _WEIGHTLESS and is_floating(node))


def surrounds(node: fx.Node) -> bool:
    """The operator puts constants around a value, of which it takes nothing away."""
    if packet_of(node) not in (aten.pad, aten.constant_pad_nd):
        return False
    given = arguments(node)
    amounts = given["pad"]
    assert isinstance(amounts, list | tuple)
    return given.get("mode", "constant") == "constant" and all(not isinstance(one, int) or one >= 0 for one in amounts)


def is_float_tensor(node: fx.Node) -> bool:
    """The node is a tensor of a floating or complex type."""
    return "dtype" in node.meta and is_floating(node)
