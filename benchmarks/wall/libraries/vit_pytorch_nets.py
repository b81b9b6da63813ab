"""Nets of `vit_pytorch`, one for each of its files that has a network of its own.

Left out are trainers, those that draw random numbers when they run, and those of nested tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.wall.libraries import Net
from benchmarks.wall.libraries.drawing import measured

_WIDTHS: dict[str, Any] = {"num_classes": 5, "dim": 16, "heads": 2, "mlp_dim": 24, "dim_head": 8}
_IMAGE: dict[str, Any] = {"image_size": 16, "patch_size": 4, "depth": 2, **_WIDTHS}
_FRAMES: dict[str, Any] = {**_WIDTHS, "image_size": 8, "frames": 4, "frame_patch_size": 2, "image_patch_size": 4}
_ND: dict[str, Any] = {**_WIDTHS, "ndim": 3, "input_shape": (4, 8, 8), "patch_size": (2, 4, 4), "depth": 2}

_PICTURE = (2, 3, 16, 16)
_VIDEO = (2, 3, 4, 8, 8)

_BLOCKS = "2 blocks of attention and feed-forward"


class _Listed(nn.Module):
    """A net that takes a list of pictures."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pictures: Tensor) -> Tensor:
        return self.net(list(pictures))


def _made(file: str, name: str, arguments: dict[str, Any]) -> nn.Module:
    """A class of the library, with statistics of norms that are not those it starts with."""
    return measured(getattr(import_module(f"vit_pytorch.{file}"), name)(**arguments))


def _drawn(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    return (torch.randn(shape),)


def _net(
    file: str,
    name: str,
    joins: int,
    read: str,
    arguments: dict[str, Any] = _IMAGE,
    shape: tuple[int, ...] = _PICTURE,
    kinds: str = "",
    inputs: Callable[[], Any] | None = None,
    **more: Any,
) -> Net:
    build = partial(_made, file, name, {**arguments, **more})
    return Net(build, inputs or partial(_drawn, shape), joins, read, kinds)


def _plain(
    file: str, name: str = "ViT", arguments: dict[str, Any] = _IMAGE, shape: tuple[int, ...] = _PICTURE, **more: Any
) -> Net:
    """Four joins: two blocks of attention and feed-forward."""
    return _net(file, name, 4, _BLOCKS, arguments, shape, "attn 2, mlp 2", **more)


_SAME: dict[str, Net] = {
    "vit": _plain("vit"),
    "simple_vit": _plain("simple_vit", "SimpleViT"),
    "deepvit": _plain("deepvit", "DeepViT"),
    "learnable_memory_vit": _plain("learnable_memory_vit"),
    "rvt": _plain("rvt", "RvT"),
    "jet_vit": _plain("jet_vit", "JetViT", window_size=2, attn_layers=["FA", "LA"]),
    "simple_vit_with_qk_norm": _plain("simple_vit_with_qk_norm", "SimpleViT"),
    "simple_vit_with_patch_dropout": _plain("simple_vit_with_patch_dropout", "SimpleViT"),
    "simple_vit_with_register_tokens": _plain("simple_vit_with_register_tokens", "SimpleViT"),
    "simple_vit_with_relative_proj_pos_bias": _plain("simple_vit_with_relative_proj_pos_bias", "SimpleViT"),
    "simple_vit_with_sparse_gating": _plain("simple_vit_with_sparse_gating", "SimpleViTWithSparseGating"),
    "simple_vit_with_specialized_cls": _plain("simple_vit_with_specialized_cls", "SimpleViT", specialize_qkv_depth=1),
    "simple_vit_with_value_residual": _plain("simple_vit_with_value_residual", "SimpleViT"),
    "simple_vit_with_fft": _plain("simple_vit_with_fft", "SimpleViT", freq_patch_size=4),
    "vit_1d": _plain("vit_1d", shape=(2, 3, 16), arguments={**_WIDTHS, "depth": 2, "seq_len": 16, "patch_size": 4}),
    "vit_3d": _plain("vit_3d", arguments=_FRAMES, shape=_VIDEO, depth=2),
    "vit_5": _plain("vit_5"),
    "vit_detpool": _plain("vit_detpool", "ViTDetPool"),
    "vit_for_small_dataset": _plain("vit_for_small_dataset"),
    "vit_nd": _plain("vit_nd", "ViTND", arguments=_ND, shape=_VIDEO),
    "vit_nd_pope": _plain("vit_nd_pope", "ViTND", arguments=_ND, shape=_VIDEO),
    "vit_nd_rotary": _plain("vit_nd_rotary", "ViTND", arguments=_ND, shape=_VIDEO),
    "vit_with_decorr": _plain("vit_with_decorr"),
    "vit_with_keel_post_ln": _plain("vit_with_keel_post_ln"),
    "vit_with_patch_dropout": _plain("vit_with_patch_dropout"),
}

_OTHERS: dict[str, Net] = {
    "cait": _net(
        "cait",
        "CaiT",
        7,
        "2 blocks of a stream of patches, and 2 of a class token that reads them, whose first sum is a start",
        cls_depth=2,
    ),
    "xcit": _net(
        "xcit",
        "XCiT",
        9,
        "2 blocks of a stream of patches, and 2 of a class token that reads them, whose first sum is a start",
        cls_depth=2,
    ),
    "cct": _net(
        "cct",
        "CCT",
        4,
        "2 blocks of attention, norm on the stream, and feed-forward",
        {
            "img_size": 16,
            "embedding_dim": 16,
            "kernel_size": 3,
            "stride": 1,
            "padding": 1,
            "num_layers": 2,
            "num_heads": 2,
            "mlp_ratio": 2,
            "num_classes": 5,
        },
    ),
    "cct_3d": _net(
        "cct_3d",
        "CCT",
        4,
        "2 blocks of attention, norm on the stream, and feed-forward",
        {
            "img_size": 8,
            "num_frames": 4,
            "embedding_dim": 16,
            "kernel_size": 3,
            "stride": 1,
            "padding": 1,
            "num_layers": 2,
            "num_heads": 2,
            "mlp_ratio": 2,
            "num_classes": 5,
        },
        (2, 3, 4, 8, 8),
    ),
    "cross_vit": _net(
        "cross_vit",
        "CrossViT",
        13,
        "2 levels: two towers side by side, a block each and a class token that reads the other tower, 3 joins each; "
        "the sum of two heads (6 at first: with layers of both towers as one join, and without the heads)",
        {
            "image_size": 16,
            "num_classes": 5,
            "sm_dim": 12,
            "lg_dim": 16,
            "sm_patch_size": 4,
            "sm_enc_heads": 2,
            "sm_enc_mlp_dim": 16,
            "sm_enc_dim_head": 8,
            "lg_patch_size": 8,
            "lg_enc_depth": 1,
            "lg_enc_heads": 2,
            "lg_enc_mlp_dim": 16,
            "lg_enc_dim_head": 8,
            "cross_attn_depth": 1,
            "cross_attn_heads": 2,
            "cross_attn_dim_head": 8,
            "depth": 2,
        },
    ),
    "crossformer": _net(
        "crossformer",
        "CrossFormer",
        16,
        "4 stages of short attention, feed-forward, long attention, feed-forward",
        {
            "dim": (32, 32, 64, 64),
            "depth": (1, 1, 1, 1),
            "global_window_size": (4, 2, 2, 1),
            "local_window_size": (2, 2, 2, 1),
            "cross_embed_kernel_sizes": ((4, 8), (2, 4), (2, 4), (2, 4)),
            "cross_embed_strides": (4, 2, 2, 2),
            "num_classes": 5,
        },
        (2, 3, 32, 32),
        "attn 8, conv 8",
    ),
    "cvt": _net(
        "cvt",
        "CvT",
        6,
        "3 stages of attention and feed-forward",
        {
            "num_classes": 5,
            "s1_emb_dim": 8,
            "s2_emb_dim": 16,
            "s2_heads": 2,
            "s2_depth": 1,
            "s3_emb_dim": 16,
            "s3_heads": 2,
            "s3_depth": 1,
        },
        (2, 3, 32, 32),
    ),
    "levit": _net(
        "levit",
        "LeViT",
        5,
        "2 stages of attention and feed-forward; between them an attention without a skip and a feed-forward",
        {
            "image_size": 64,
            "num_classes": 5,
            "stages": 2,
            "dim": (16, 24),
            "depth": 1,
            "heads": (2, 2),
            "mlp_mult": 2,
            "dim_key": 8,
            "dim_value": 8,
        },
        (2, 3, 64, 64),
    ),
    "local_vit": _net(
        "local_vit",
        "LocalViT",
        4,
        "2 blocks of attention, and convolutions on all tokens but the first; its norm needs as many "
        "features as columns",
        dim=4,
    ),
    "look_vit": _net(
        "look_vit",
        "LookViT",
        10,
        "2 streams, 2 blocks: tokens look up, attend, feed forward; patches attend with the same "
        "pattern, are normed, feed forward",
        {
            "dim": 16,
            "image_size": 32,
            "num_classes": 5,
            "depth": 2,
            "patch_size": 16,
            "heads": 2,
            "mlp_factor": 2,
            "dim_head": 8,
            "highres_patch_size": 8,
            "highres_mlp_factor": 2,
            "cross_attn_heads": 2,
            "cross_attn_dim_head": 8,
            "patch_conv_kernel_size": 3,
        },
        (2, 3, 32, 32),
    ),
    "max_vit": _net(
        "max_vit",
        "MaxViT",
        13,
        "3 blocks of window attention, feed-forward, grid attention, feed-forward; the second has a "
        "convolution with a skip",
        {"num_classes": 5, "dim": 16, "depth": (2, 1), "dim_head": 8, "window_size": 2},
        (2, 3, 32, 32),
        "attn 6, mlp 6, conv 1",
    ),
    "max_vit_with_registers": _net(
        "max_vit_with_registers",
        "MaxViT",
        13,
        "3 blocks of window attention, feed-forward, grid attention, feed-forward; the second has a "
        "convolution with a skip",
        {"num_classes": 5, "dim": 16, "depth": (2, 1), "dim_head": 8, "window_size": 2},
        (2, 3, 32, 32),
        "attn 6, mlp 6, conv 1",
    ),
    "mobile_vit": _net(
        "mobile_vit",
        "MobileViT",
        12,
        "3 convolution blocks with a skip; 3 concatenations of what 1 block of attention and "
        "feed-forward in the branch has made with what was there",
        {
            "image_size": (64, 64),
            "dims": [16, 16, 16],
            "channels": [8, 8, 8, 8, 12, 12, 12, 12, 16, 16, 24],
            "num_classes": 5,
            "expansion": 2,
            "depths": (1, 1, 1),
        },
        (2, 3, 64, 64),
    ),
    "nest": _net(
        "nest",
        "NesT",
        4,
        "2 levels of attention and feed-forward",
        {
            "image_size": 16,
            "patch_size": 2,
            "num_classes": 5,
            "dim": 8,
            "heads": 2,
            "num_hierarchies": 2,
            "block_repeats": (1, 1),
            "mlp_mult": 2,
        },
        kinds="attn 2, conv 2",
    ),
    "parallel_vit": _net(
        "parallel_vit",
        "ViT",
        4,
        "2 blocks of two attentions at once and two feed-forwards at once",
        kinds="attn 4, mlp 4",
    ),
    "pit": _net("pit", "PiT", 4, "2 stages of attention and feed-forward", depth=(1, 1)),
    "regionvit": _net(
        "regionvit",
        "RegionViT",
        15,
        "tokens of regions and of patches, 4 stages: attention among regions, attention and "
        "feed-forward of both; convolutions on patches ahead of 3",
        {"dim": (8, 8, 16, 16), "depth": (1, 1, 1, 1), "window_size": 2, "num_classes": 5, "use_peg": True},
        (2, 3, 64, 64),
    ),
    "scalable_vit": _net(
        "scalable_vit",
        "ScalableViT",
        10,
        "2 stages of attention, feed-forward, a convolution, feed-forward, windowed attention",
        {
            "num_classes": 5,
            "dim": 8,
            "depth": (1, 1),
            "heads": (2, 2),
            "reduction_factor": (2, 1),
            "window_size": (2, 2),
            "iwsa_dim_key": 8,
            "iwsa_dim_value": 8,
            "ssa_dim_key": 8,
            "ssa_dim_value": 8,
            "ff_expansion_factor": 2,
        },
        (2, 3, 32, 32),
        "attn 4, conv 6",
    ),
    "sep_vit": _net(
        "sep_vit",
        "SepViT",
        6,
        "2 stages of a convolution, attention, feed-forward",
        {"num_classes": 5, "dim": 8, "depth": (1, 1), "heads": (2, 2), "window_size": 7, "dim_head": 8, "ff_mult": 2},
        (2, 3, 56, 56),
        "attn 2, conv 4",
    ),
    "t2t": _net(
        "t2t",
        "T2TViT",
        6,
        "a block of attention and feed-forward on overlapping patches, and 2 on tokens",
        {**_WIDTHS, "image_size": 16, "depth": 2, "t2t_layers": ((3, 2), (3, 2))},
        kinds="attn 3, mlp 3",
    ),
    "twins_svt": _net(
        "twins_svt",
        "TwinsSVT",
        32,
        "4 stages of a transformer, a convolution, a transformer; each of local attention, "
        "feed-forward, global attention, feed-forward, the last one without the first two",
        {
            "num_classes": 5,
            "s1_emb_dim": 8,
            "s1_local_patch_size": 4,
            "s1_global_k": 4,
            "s2_emb_dim": 8,
            "s2_local_patch_size": 2,
            "s2_global_k": 2,
            "s3_emb_dim": 16,
            "s3_local_patch_size": 2,
            "s3_global_k": 2,
            "s3_depth": 1,
            "s4_emb_dim": 16,
            "s4_local_patch_size": 1,
            "s4_global_k": 1,
            "s4_depth": 1,
        },
        (2, 3, 64, 64),
        "attn 14, conv 18",
    ),
    "vivit": _net(
        "vivit",
        "ViViT",
        4,
        "attention and feed-forward over space, then over time",
        _FRAMES,
        _VIDEO,
        spatial_depth=1,
        temporal_depth=1,
        use_flash_attn=False,
    ),
    "vivit_factorized": _net(
        "vivit",
        "ViViT",
        6,
        "2 blocks of attention over space, over time, feed-forward",
        _FRAMES,
        _VIDEO,
        spatial_depth=2,
        temporal_depth=2,
        variant="factorized_self_attention",
        use_flash_attn=False,
        kinds="attn 4, mlp 2",
    ),
    "vivit_with_moss": _net(
        "vivit_with_moss",
        "ViViT",
        6,
        "attention and feed-forward over space, then over time; between them layers of neighbours in "
        "time beside a projection, added to the class tokens",
        _FRAMES,
        _VIDEO,
        spatial_depth=1,
        temporal_depth=1,
        use_flash_attn=False,
        moss_hidden_dim=8,
    ),
    "jumbo_vit": _net(
        "jumbo_vit",
        "JumboViT",
        5,
        "2 blocks of attention and feed-forwards, one for tokens and one for the class, one by one; "
        "the last for the class alone",
        num_jumbo_cls=2,
        jumbo_cls_k=2,
    ),
    "nvit": _net("normalized_vit", "nViT", 4, "2 blocks of interpolations on the sphere"),
    "looped_vit": _net(
        "looped_vit",
        "LoopedViT",
        12,
        "a block, one that is passed twice, and a block; in each attention what lies along its own value is taken away",
        {**_WIDTHS, "image_size": 16, "patch_size": 4},
        pre_loop_depth=1,
        num_looped_blocks=1,
        post_loop_depth=1,
        loop_depth=2,
        kinds="attn 8, mlp 4",
    ),
    "simple_vit_with_hyper_connections": _net(
        "simple_vit_with_hyper_connections", "SimpleViT", 4, "2 blocks, each sum gated", num_residual_streams=2
    ),
    "simple_vit_attn_residual": _net(
        "simple_vit_attn_residual",
        "SimpleViTAttnResidual",
        4,
        "a list to which 2 blocks append, and that each reads by attention",
    ),
    "attn_residual_with_dca": _net(
        "attn_residual_with_dca_simple_vit",
        "SimpleViT",
        6,
        "2 blocks that attend to a weighted sum of all before and add it, then feed forward; a list that grows by a "
        "first feed-forward and by a block (4 at first: without these two, in one of which the block is nested)",
    ),
    "simple_vit_orthog_residual_update": _net(
        "simple_vit_orthog_residual_update",
        "SimpleViT",
        4,
        "2 blocks of which what lies along the stream is taken away",
    ),
    "simple_uvit": _net(
        "simple_uvit",
        "SimpleUViT",
        10,
        "4 blocks; ahead of the last two an earlier point is put beside the stream and both are projected",
        depth=4,
    ),
    "vit_with_patch_merger": _net(
        "vit_with_patch_merger",
        "ViT",
        4,
        "2 blocks, between which tokens are merged by attention",
        patch_merge_layer=1,
        patch_merge_num_tokens=4,
    ),
    "na_vit": Net(
        lambda: _Listed(_made("na_vit", "NaViT", _IMAGE)),
        partial(_drawn, _PICTURE),
        4,
        "2 blocks, then one attention of a constant query",
        "attn 2, mlp 2",
    ),
    "wwt": _net(
        "wwt",
        "WWT",
        4,
        "tokens and slots side by side, 2 blocks of mutual attention, and of a feed-forward each",
        num_slots=(4,),
    ),
}

NETS: dict[str, Net] = {**_SAME, **_OTHERS}
