"""Nets of torchvision: one for each design of blocks, and heads that read several levels."""

# pyright: reportMissingImports=false

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models import efficientnet, mobilenetv3, regnet, resnet, swin_transformer
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.optical_flow import raft
from torchvision.models.segmentation import deeplabv3, fcn, lraspp
from torchvision.models.video import mvit
from torchvision.models.video import resnet as video
from torchvision.models.video import swin_transformer as swin3d

from benchmarks.wall.libraries import Net
from benchmarks.wall.libraries.drawing import drawn, pictures

CLASSES = 7


class Flow(nn.Module):
    """The last of the flows that RAFT predicts."""

    def __init__(self, kernels: tuple[tuple[int, int], ...], mask: bool) -> None:
        super().__init__()
        encoder = partial(raft.FeatureEncoder, strides=(2, 1, 2, 2))
        corr = raft.CorrBlock(num_levels=2, radius=1)
        motion = raft.MotionEncoder(
            in_channels_corr=corr.out_channels, corr_layers=(8,), flow_layers=(8, 4), out_channels=10
        )
        padding = tuple((a // 2, b // 2) for a, b in kernels)
        self.raft = raft.RAFT(
            feature_encoder=encoder(layers=(8, 8, 12, 16, 16), norm_layer=nn.InstanceNorm2d),
            context_encoder=encoder(layers=(8, 8, 12, 16, 16), norm_layer=nn.BatchNorm2d),
            corr_block=corr,
            update_block=raft.UpdateBlock(
                motion_encoder=motion,
                recurrent_block=raft.RecurrentBlock(
                    input_size=10 + 8, hidden_size=8, kernel_size=kernels, padding=padding
                ),
                flow_head=raft.FlowHead(in_channels=8, hidden_size=8),
            ),
            mask_predictor=raft.MaskPredictor(in_channels=8, hidden_size=8) if mask else None,
        )

    def forward(self, image1: Tensor, image2: Tensor) -> Tensor:
        """The flow after two updates."""
        return self.raft(image1, image2, num_flow_updates=2)[-1]


class Retina(nn.Module):
    """Scores of a RetinaNet's heads on all levels of a feature pyramid."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = RetinaNetHead(8, 1, CLASSES, norm_layer=nn.BatchNorm2d)

    def forward(self, x: Tensor) -> Tensor:
        """Scores, level after level."""
        return self.head(list(self.backbone(x).values()))["cls_logits"]


class Pyramid(nn.Module):
    """The finest level of a feature pyramid."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        """The finest level."""
        return self.backbone(x)["0"]


class Panoptic(nn.Module):
    """A Panoptic FPN's head: a layer on each level, all brought to the finest and added up."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(nn.Conv2d(8, CLASSES, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Scores at each pixel of the finest level."""
        levels = list(self.backbone(x).values())[:3]
        size = levels[0].shape[-2:]
        first, *others = (F.interpolate(head(level), size=size) for head, level in zip(self.heads, levels, strict=True))
        for scores in others:
            first = first + scores
        return first


def _thin(blocks: list[int], **more: Any) -> resnet.ResNet:
    """A ResNet of bottlenecks 8 channels wide."""
    return resnet.ResNet(resnet.Bottleneck, blocks, num_classes=CLASSES, width_per_group=8, **more)


def _pyramid(blocks: list[int]) -> BackboneWithFPN:
    layers = {"layer1": "0", "layer2": "1", "layer3": "2"}
    return BackboneWithFPN(_thin(blocks), layers, [256, 512, 1024], 8)


def _levels(blocks: list[int]) -> IntermediateLayerGetter:
    dilated = [False, True, True]
    return IntermediateLayerGetter(_thin(blocks, replace_stride_with_dilation=dilated), {"layer4": "out"})


def _efficient(kind: type, *settings: tuple[float, int, int, int, int, int]) -> nn.Module:
    configs = [kind(*setting) for setting in settings]
    return efficientnet.EfficientNet(configs, dropout=0.0, num_classes=CLASSES, last_channel=32)


def _mobile3() -> mobilenetv3.MobileNetV3:
    config = partial(mobilenetv3.InvertedResidualConfig, width_mult=1.0, dilation=1)
    settings = [
        config(8, 3, 8, 8, True, "RE", 1),
        config(8, 3, 24, 16, False, "RE", 2),
        config(16, 3, 32, 16, False, "RE", 1),
        config(16, 5, 32, 24, True, "HS", 2),
        config(24, 5, 48, 24, True, "HS", 1),
        config(24, 5, 48, 24, True, "HS", 1),
    ]
    return mobilenetv3.MobileNetV3(settings, last_channel=32, num_classes=CLASSES)


def _lraspp() -> lraspp.LRASPP:
    features = _mobile3().features
    levels = IntermediateLayerGetter(features, {"2": "low", "7": "high"})
    return lraspp.LRASPP(levels, 16, 144, CLASSES, inter_channels=8)


def _mvit(v2: bool) -> mvit.MViT:
    stride = [1, 2, 2]
    wide = (16, 32)
    settings = [
        mvit.MSBlockConfig(2, 16, 16, [3, 3, 3], [3, 3, 3], [1, 1, 1], stride),
        mvit.MSBlockConfig(2, *wide, [3, 3, 3], [3, 3, 3], stride, [1, 1, 1]),
        mvit.MSBlockConfig(2, 32, 32, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 1, 1]),
    ]
    return mvit.MViT(
        (32, 32),
        4,
        settings,
        residual_pool=v2,
        residual_with_cls_embed=not v2,
        rel_pos_embed=v2,
        proj_after_attn=v2,
        dropout=0.0,
        num_classes=CLASSES,
    )


def _swin(block: Any, merging: Any) -> swin_transformer.SwinTransformer:
    return swin_transformer.SwinTransformer(
        [4, 4], 16, [2, 2], [2, 2], [4, 4], num_classes=CLASSES, block=block, downsample_layer=merging
    )


_RESIDUAL = "each block h + f(h), by a convolution and a norm of kept statistics on the shortcut where sizes change"

NETS: dict[str, Net] = {
    "vgg": Net(
        drawn(lambda: models.VGG(models.vgg.make_layers([8, "M", 8, "M"], True), CLASSES).features),
        pictures(3, 32, 32),
        0,
        "a plain net of convolutions",
    ),
    "resnet basic": Net(
        drawn(lambda: resnet.ResNet(resnet.BasicBlock, [2, 1, 1, 1], num_classes=CLASSES)),
        pictures(3, 32, 32),
        5,
        _RESIDUAL,
        "conv 5",
    ),
    "resnet": Net(drawn(lambda: _thin([2, 2, 1, 1])), pictures(3, 32, 32), 6, _RESIDUAL, "conv 6"),
    "resnext": Net(drawn(lambda: _thin([2, 1, 1, 1], groups=2)), pictures(3, 32, 32), 5, _RESIDUAL, "conv 5"),
    "densenet": Net(
        drawn(lambda: models.DenseNet(4, (3, 2), 8, 2, num_classes=CLASSES)),
        pictures(3, 32, 32),
        5,
        "blocks of 3 and 2 layers, each cat(h, f(h))",
        "conv 5",
    ),
    "googlenet": Net(
        drawn(lambda: models.GoogLeNet(CLASSES, aux_logits=False, init_weights=False)),
        pictures(3, 64, 64),
        0,
        "concatenations of four layers without the stream itself",
    ),
    "squeezenet": Net(
        drawn(lambda: models.SqueezeNet("1_1", CLASSES)), pictures(3, 48, 48), 0, "concatenations of two layers"
    ),
    "mobilenet_v2": Net(
        drawn(lambda: models.MobileNetV2(CLASSES, 0.25, [[1, 16, 1, 1], [4, 24, 3, 2], [4, 32, 2, 2], [4, 48, 2, 1]])),
        pictures(3, 32, 32),
        5,
        "stages of 1, 3, 2 and 2 blocks; the first of each has no skip but that of 8 channels of stride 1, whose "
        "width is 8 as the stem's, and that of stage 1",
        "conv 5",
    ),
    "mobilenet_v3": Net(drawn(_mobile3), pictures(3, 32, 32), 4, "h + f(h) in blocks 1, 3, 5 and 6", "conv 4"),
    "efficientnet": Net(
        drawn(
            lambda: _efficient(
                efficientnet.MBConvConfig, (1, 3, 1, 16, 8, 1), (4, 3, 2, 8, 16, 2), (4, 5, 2, 16, 24, 3)
            )
        ),
        pictures(3, 32, 32),
        3,
        "h + f(h) in all blocks but the first of a stage",
        "conv 3",
    ),
    "efficientnet_v2": Net(
        drawn(
            lambda: _efficient(
                efficientnet.FusedMBConvConfig, (1, 3, 1, 16, 16, 2), (4, 3, 2, 16, 16, 2), (4, 5, 2, 16, 24, 2)
            )
        ),
        pictures(3, 32, 32),
        4,
        "h + f(h) in both blocks of the first stage and the second of the others",
        "conv 4",
    ),
    "mnasnet": Net(
        drawn(lambda: models.MNASNet(0.2, CLASSES, 0.0)),
        pictures(3, 64, 64),
        10,
        "stacks of 3, 3, 3, 2, 4 and 1 blocks, of which the first has no skip",
        "conv 10",
    ),
    "regnet_x": Net(
        drawn(
            lambda: regnet.RegNet(
                regnet.BlockParams.from_init_params(5, 16, 8.0, 2.0, 8), num_classes=CLASSES, stem_width=8
            )
        ),
        pictures(3, 32, 32),
        5,
        _RESIDUAL,
        "conv 5",
    ),
    "regnet_y": Net(
        drawn(
            lambda: regnet.RegNet(
                regnet.BlockParams.from_init_params(5, 16, 8.0, 2.0, 8, se_ratio=0.25),
                num_classes=CLASSES,
                stem_width=8,
            )
        ),
        pictures(3, 32, 32),
        5,
        _RESIDUAL,
        "conv 5",
    ),
    "convnext": Net(
        drawn(
            lambda: models.ConvNeXt(
                [
                    models.convnext.CNBlockConfig(8, 16, 2),
                    models.convnext.CNBlockConfig(16, None, 3),
                ],
                num_classes=CLASSES,
            )
        ),
        pictures(3, 32, 32),
        5,
        "2 and 3 blocks, each h + s f(h); norms and strided convolutions between",
        "conv 5",
    ),
    "shufflenet_v2": Net(
        drawn(lambda: models.ShuffleNetV2([2, 3, 2], [8, 16, 24, 32, 32], CLASSES)),
        pictures(3, 64, 64),
        4,
        "blocks of stride 1, cat(h₁, f(h₂)): 1, 2 and 1; those of stride 2 are two layers side by side",
        "conv 4",
    ),
    "vit": Net(
        drawn(lambda: models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=CLASSES)),
        pictures(3, 32, 32),
        4,
        "2 layers of attention and MLP",
        "attn 2, mlp 2",
    ),
    "swin": Net(
        drawn(lambda: _swin(swin_transformer.SwinTransformerBlock, swin_transformer.PatchMerging)),
        pictures(3, 32, 32),
        8,
        "2 stages of 2 blocks of attention and MLP",
        "attn 4, mlp 4",
    ),
    "swin_v2": Net(
        drawn(lambda: _swin(swin_transformer.SwinTransformerBlockV2, swin_transformer.PatchMergingV2)),
        pictures(3, 32, 32),
        8,
        "2 stages of 2 blocks of attention and MLP, normed before they are added",
        "attn 4, mlp 4",
    ),
    "maxvit": Net(
        drawn(lambda: models.MaxVit((32, 32), 8, 4, [8, 16], [1, 1], 8, 0.0, num_classes=CLASSES)),
        pictures(3, 32, 32),
        10,
        "2 layers: an MBConv with a pooled and projected shortcut, and attention and MLP in windows and on a grid",
        "conv 2, attn 4, mlp 4",
    ),
    "r3d": Net(
        drawn(
            lambda: video.VideoResNet(
                video.BasicBlock, [video.Conv3DNoTemporal] * 4, [1, 1, 1, 1], video.BasicStem, CLASSES
            )
        ),
        pictures(3, 4, 16, 16, batch=1),
        4,
        _RESIDUAL,
        "conv 4",
    ),
    "r2plus1d": Net(
        drawn(
            lambda: video.VideoResNet(
                video.Bottleneck,
                [video.Conv2Plus1D, video.Conv2Plus1D, video.Conv3DNoTemporal, video.Conv3DNoTemporal],
                [2, 1, 1, 1],
                video.R2Plus1dStem,
                CLASSES,
            )
        ),
        pictures(3, 4, 16, 16, batch=1),
        5,
        _RESIDUAL,
        "conv 5",
    ),
    "mvit_v1": Net(
        drawn(lambda: _mvit(False)),
        pictures(3, 4, 32, 32),
        6,
        "3 blocks of attention and MLP; where queries are pooled, the stream is by the largest value, and of the "
        "MLP where the width changes it is a projection of the norm",
        "attn 3, mix 1, mlp 3",
    ),
    "mvit_v2": Net(
        drawn(lambda: _mvit(True)),
        pictures(3, 4, 32, 32),
        9,
        "3 blocks of attention and MLP, and in each attention the pooled queries q + attn(q, k, v) but for the class "
        "token",
        "attn 6, mlp 4",
    ),
    "swin3d": Net(
        drawn(
            lambda: swin3d.SwinTransformer3d(
                [2, 4, 4], 16, [2, 2], [2, 2], [2, 2, 2], num_classes=CLASSES, norm_layer=nn.LayerNorm
            )
        ),
        pictures(3, 4, 32, 32),
        8,
        "2 stages of 2 blocks of attention and MLP",
        "attn 4, mlp 4",
    ),
    "fcn": Net(
        drawn(lambda: fcn.FCN(_levels([1, 1, 1, 1]), fcn.FCNHead(2048, CLASSES))),
        pictures(3, 32, 32),
        4,
        _RESIDUAL,
        "conv 4",
    ),
    "deeplabv3": Net(
        drawn(
            lambda: deeplabv3.DeepLabV3(
                _levels([1, 1, 1, 1]), nn.Sequential(deeplabv3.ASPP(2048, [2, 3], 8), nn.Conv2d(8, CLASSES, 1))
            )
        ),
        pictures(3, 32, 32),
        4,
        _RESIDUAL + "; the pyramid of dilated convolutions is a concatenation of layers",
        "conv 4",
    ),
    "lraspp": Net(
        drawn(_lraspp),
        pictures(3, 32, 32),
        5,
        "4 of MobileNet V3, and the sum of scores at two levels",
    ),
    "fpn": Net(
        drawn(lambda: Pyramid(_pyramid([2, 1, 1, 1]))),
        pictures(3, 32, 32),
        6,
        "4 blocks of stages 1 to 3, and two sums from the top down, P h + up(y)",
        "conv 7",
    ),
    "panoptic fpn": Net(
        drawn(lambda: Panoptic(_pyramid([1, 1, 1, 1]))),
        pictures(3, 32, 32),
        6,
        "3 blocks, two sums from the top down, and the sum of the levels' scores",
    ),
    "retinanet": Net(
        drawn(lambda: Retina(_pyramid([1, 1, 1, 1]))),
        pictures(3, 32, 32),
        6,
        "3 blocks, two sums from the top down, and the heads of four levels side by side",
    ),
    "raft small": Net(
        drawn(lambda: Flow(((3, 3),), mask=False)),
        lambda: tuple(torch.randn(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))),
        17,
        "6 blocks in either encoder, (1 − z) h + z q in each of two updates, the flow that each adds to, which is "
        "beside h from the first on (read as if it started there, 16), and that beside its own features in the second",
    ),
    "raft large": Net(
        drawn(lambda: Flow(((1, 5), (5, 1)), mask=True)),
        lambda: tuple(torch.randn(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))),
        18,
        "as the small one, with two recurrent units in each update",
    ),
}
