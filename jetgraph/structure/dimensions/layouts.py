"""The layout of each operator's value, and the two questions that are asked of layouts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx

from jetgraph.structure.dimensions import combining, rearranging
from jetgraph.structure.dimensions.factors import Factor, Layout, leaves, names_in
from jetgraph.structure.dimensions.following import Dimensions, LayoutOf

aten = torch.ops.aten


def follow(start: fx.Node, nodes: Iterable[fx.Node]) -> Dimensions:
    """The layouts of what depends on `start` among `nodes`, which are in execution order."""
    return Dimensions(start, nodes, LAYOUTS)


def follow_stretches(start: fx.Node, nodes: Iterable[fx.Node]) -> Dimensions:
    """As `follow`, where stretches of a dimension, and what is put one after the other, mix nothing by themselves: what
    is mixed later is told by the roots of its factors.
    """
    return Dimensions(start, nodes, {**LAYOUTS, aten.slice: rearranging.stretch, aten.cat: rearranging.row})


def goes_alone(
    start: fx.Node, nodes: Sequence[fx.Node], exit: fx.Node, side: Iterable[fx.Node], dim: int
) -> tuple[Factor, Layout] | None:
    """The factor of the start's dimension and the exit's layout, if each index of the dimension goes through the nodes
    alone, and all alike; else None.

    The dimension may then have another size than the graph was traced with: no op looks beyond one index, nothing that
    is read besides has a size along it, and no size of it is written down or counted with.
    """
    shape = start.meta["shape"]
    others = [size for place, size in enumerate(shape) if place != dim]
    if names_in([shape[dim]]) & names_in([*others, *(s for node in side for s in node.meta.get("shape", ()))]):
        return None
    dimensions = follow(start, nodes)
    reached = dimensions.get(exit)
    own = dimensions.start.dims[dim]
    if reached is None or len(own) != 1 or dimensions.start.at(dim) != own:
        return None
    return None if own[0] in leaves((*reached.mixed, *reached.tied)) else (own[0], reached)


def go_abreast(starts: Sequence[fx.Node], nodes: Iterable[fx.Node]) -> tuple[Factor, Dimensions]:
    """The factor of the first dimension that several values share, the batch, and the layouts of what is made of them.

    What is not mixed or tied along it is for each element of the batch what it would be alone.
    """
    first, *others = starts
    dimensions = Dimensions(first, nodes, LAYOUTS, others)
    return dimensions.start.dims[0][0], dimensions


def _packets(names: str) -> list[Any]:
    return [getattr(aten, name) for name in names.split() if hasattr(aten, name)]


LAYOUTS: dict[Any, LayoutOf] = {
    **dict.fromkeys(
        _packets(
            "add sub rsub mul div neg abs sign sgn where clamp clamp_min clamp_max relu leaky_relu relu6 hardtanh "
            "hardsigmoid hardswish hardshrink softshrink threshold elu celu selu rrelu frac floor ceil round "
            "trunc remainder fmod maximum minimum fmax fmin nan_to_num lerp addcmul addcdiv masked_fill "
            "_prelu_kernel eq ne lt le gt ge logical_not logical_and logical_or logical_xor bitwise_not "
            "bitwise_and bitwise_or isnan isinf isfinite floor_divide heaviside _to_copy to clone contiguous "
            "alias detach lift_fresh_copy dropout positive copy fill real imag conj _conj conj_physical resolve_conj "
            "complex angle signbit isclose"
        ),
        Dimensions.each,
    ),
    **dict.fromkeys(
        _packets("view _unsafe_view view_copy reshape flatten unflatten unsqueeze squeeze ravel view_as reshape_as"),
        rearranging.reshaped,
    ),
    **dict.fromkeys(_packets("permute transpose t mT movedim moveaxis swapaxes swapdims adjoint"), rearranging.moved),
    **dict.fromkeys(_packets("expand broadcast_to expand_as"), rearranging.expanded),
    **dict.fromkeys(_packets("repeat tile"), rearranging.repeated),
    **dict.fromkeys(_packets("slice narrow"), rearranging.sliced),
    **dict.fromkeys(_packets("constant_pad_nd pad"), rearranging.padded),
    **dict.fromkeys(_packets("split split_with_sizes chunk"), rearranging.divided),
    **dict.fromkeys(_packets("gather index_select"), rearranging.picked),
    **dict.fromkeys(
        _packets("softmax _softmax _safe_softmax log_softmax _log_softmax cumsum cumprod logcumsumexp"),
        combining.mixing(),
    ),
    **dict.fromkeys(_packets("flip roll"), combining.mixing(None)),
    **dict.fromkeys(_packets("fft_fft fft_ifft _fft_c2c"), combining.mixing()),
    **dict.fromkeys(_packets("topk sort argsort cummax cummin"), combining.sorting()),
    **dict.fromkeys(
        _packets(
            "sum mean amax amin var std prod logsumexp any all argmax argmin count_nonzero linalg_vector_norm norm"
        ),
        combining.reducing(),
    ),
    **dict.fromkeys(_packets("var_mean std_mean median kthvalue mode"), combining.reducing(2)),
    **dict.fromkeys(_packets("max min"), combining.extreme),
    **dict.fromkeys(_packets("quantile nanquantile"), combining.quantiles),
    **dict.fromkeys(_packets("layer_norm native_layer_norm rms_norm _fused_rms_norm"), combining.last_dims),
    **dict.fromkeys(_packets("group_norm instance_norm"), combining.group_norm),
    **dict.fromkeys(_packets("batch_norm _native_batch_norm_legit_no_training"), combining.batch_norm),
    **dict.fromkeys(
        _packets("conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d"),
        combining.convolution,
    ),
    **dict.fromkeys(
        _packets(
            "avg_pool1d max_pool1d adaptive_avg_pool1d upsample_nearest1d upsample_linear1d reflection_pad1d "
            "replication_pad1d"
        ),
        combining.positions(1),
    ),
    **dict.fromkeys(
        _packets(
            "avg_pool2d max_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d upsample_nearest2d upsample_bilinear2d "
            "upsample_bicubic2d reflection_pad2d replication_pad2d"
        ),
        combining.positions(2),
    ),
    **dict.fromkeys(_packets("avg_pool3d max_pool3d adaptive_avg_pool3d _adaptive_avg_pool3d"), combining.positions(3)),
    **dict.fromkeys(_packets("zeros_like ones_like full_like empty_like"), combining.of_shape),
    aten.view_as_real: rearranging.paired,
    aten.view_as_complex: combining.unpaired,
    aten.select: rearranging.selected,
    aten.unbind: rearranging.unbound,
    aten.index: rearranging.indexed,
    aten.embedding: rearranging.looked_up,
    aten.cat: rearranging.concatenated,
    aten.stack: rearranging.stacked,
    aten.diff: rearranging.differences,
    aten.unfold: rearranging.windows,
    aten.im2col: rearranging.blocks,
    aten.col2im: rearranging.blocks_together,
    aten.repeat_interleave: rearranging.interleaved,
    **dict.fromkeys(
        _packets("slice_scatter select_scatter scatter scatter_add scatter_reduce index_add index_copy"),
        rearranging.written_into,
    ),
    aten.prelu: combining.by_channel,
    aten.tril: combining.triangle,
    aten.triu: combining.triangle,
    aten.glu: combining.halves,
    aten.linear: combining.linear,
    aten.matmul: combining.matrices("self", "other"),
    aten.mm: combining.matrices("self", "mat2"),
    aten.bmm: combining.matrices("self", "mat2"),
    aten.mv: combining.matrices("self", "vec"),
    aten.addmm: combining.matrices("mat1", "mat2"),
    aten.baddbmm: combining.matrices("batch1", "batch2"),
    aten.einsum: combining.by_equation,
    aten.tensordot: combining.contracted,
    aten.scaled_dot_product_attention: combining.attention,
}
"""The rule of each operator, by its packet, besides those that have a Taylor rule of kind `elementwise`."""
