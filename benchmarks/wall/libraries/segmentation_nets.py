"""Nets of segmentation_models_pytorch: each decoder on the first stages of a small encoder."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import segmentation_models_pytorch as smp
from torch import nn

from benchmarks.wall.libraries import Net
from benchmarks.wall.libraries.drawing import drawn, pictures

CLASSES = 5
BLOCKS = {3: 3, 4: 8}
"""Joins of MobileNet V2 up to a depth: stages of 1, 2, 3, 4, 3, 3 and 1 blocks, of which the first has no skip."""


def _net(kind: Callable[..., nn.Module], depth: int, encoder: str = "mobilenet_v2", **more: Any) -> Any:
    return drawn(lambda: kind(encoder, encoder_depth=depth, encoder_weights=None, classes=CLASSES, **more))


def _case(kind: Callable[..., nn.Module], depth: int, joins: int, read: str, kinds: str = "", **more: Any) -> Net:
    blocks = BLOCKS[depth]
    return Net(
        _net(kind, depth, **more), pictures(3, 64, 64), blocks + joins, f"{blocks} of the encoder, and {read}", kinds
    )


_UNET: dict[str, Any] = {"decoder_channels": (16, 16, 16)}

NETS: dict[str, Net] = {
    "unet": _case(smp.Unet, 3, 2, "a level beside what comes back from below, twice", **_UNET),
    "unet scse": _case(
        smp.Unet,
        3,
        2,
        "a level beside what comes back from below, twice; what squeeze and excitation multiply and add up is the "
        "same value by the sum of two gates",
        decoder_attention_type="scse",
        **_UNET,
    ),
    "unet++": _case(
        smp.UnetPlusPlus,
        3,
        4,
        "a level beside what comes back from below: three, and beside what was made of it before: one",
        **_UNET,
    ),
    "manet": _case(
        smp.MAnet,
        3,
        3,
        "h + attn(h) at the lowest level, and a level beside what comes back from below, twice",
        decoder_pab_channels=4,
        **_UNET,
    ),
    "linknet": _case(smp.Linknet, 3, 2, "a level and what comes back from below, twice"),
    "fpn": _case(
        smp.FPN,
        4,
        4,
        "three sums from the top down, P h + up(y), and that of the levels' heads",
        decoder_pyramid_channels=8,
        decoder_segmentation_channels=32,
    ),
    "fpn cat": _case(
        smp.FPN,
        4,
        4,
        "three sums from the top down, P h + up(y), and the levels' heads side by side",
        decoder_pyramid_channels=8,
        decoder_segmentation_channels=32,
        decoder_merge_policy="cat",
    ),
    "pan": _case(
        smp.PAN,
        3,
        2,
        "the attention pyramid, f(h) g(h) + k(h), and up(y) + σ(g(y)) P h",
        decoder_channels=8,
        encoder_output_stride=32,
    ),
    "pspnet": _case(smp.PSPNet, 3, 1, "h beside what is made of it by pooling", psp_out_channels=8),
    "deeplabv3+": _case(
        smp.DeepLabV3Plus,
        4,
        1,
        "a level beside the pyramid of dilated convolutions",
        decoder_channels=8,
    ),
    "upernet": _case(
        smp.UPerNet,
        4,
        3,
        # It was read as 4, with both sums from the top down: the first is made of what layers over the pools gave.
        "h beside what is made of it by pooling, the points that the pyramid reads, and the last sum from the top "
        "down, f(h) + up(y)",
        decoder_channels=16,
    ),
    "segformer": _case(
        smp.Segformer, 4, 1, "a linear layer on each level, all side by side", decoder_segmentation_channels=8
    ),
    "unet mit": Net(
        _net(smp.Unet, 5, "mit_b0", decoder_channels=(8, 8, 8, 8, 4)),
        pictures(3, 64, 64),
        19,
        "4 stages of 2 layers of attention and MLP, and a level beside what comes back from below, three times",
    ),
    "dpt": Net(
        drawn(
            lambda: smp.DPT(
                "tu-vit_tiny_patch16_224",
                encoder_depth=4,
                encoder_weights=None,
                encoder_output_indices=[0, 1, 2, 3],
                decoder_intermediate_channels=(8, 8, 8, 8),
                decoder_fusion_channels=8,
                classes=CLASSES,
                img_size=64,
                embed_dim=16,
                num_heads=2,
            )
        ),
        pictures(3, 64, 64),
        19,
        # It was read as 16: of the fusion h + f(h) of an earlier layer is nested in the branch that reads that.
        "4 layers of attention and MLP; of each layer h + f(h), that with what comes from the one above, and y + g(y)",
    ),
}
