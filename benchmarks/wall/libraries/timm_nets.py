"""Nets of timm, one or more for each source file, with the joins that a person reads off their code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.wall.libraries import Net
from benchmarks.wall.libraries.drawing import measured


def _at(path: str) -> Any:
    """What `file.Class` names in `timm.models`."""
    module, name = path.split(".")
    return getattr(import_module(f"timm.models.{module}"), name)


def _stirred(model: nn.Module) -> nn.Module:
    """In place: scales, biases and kept statistics of norms are drawn, as many begin at 0 or 1, or next to 0."""
    for parameter in model.parameters():
        if parameter.dim() == 1 or parameter.std() < 1e-3:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return measured(model).eval()


def _image(size: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(2, 3, size, size),)


def _made(make: Callable[[], nn.Module], joins: int, read: str, size: int = 32, kinds: str = "") -> Net:
    return Net(lambda: _stirred(make()), _image(size), joins, read, kinds)


def _net(path: str, joins: int, read: str, size: int = 32, kinds: str = "", **arguments: Any) -> Net:
    """A class of timm with small arguments; what is a string with `file.Class` in it is made when the net is."""
    return _made(lambda: _at(path)(**_resolved(arguments), num_classes=5), joins, read, size, kinds)


def _resolved(value: Any) -> Any:
    if isinstance(value, _Later):
        return value.make()
    if isinstance(value, dict):
        return {name: _resolved(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_resolved, value))
    return value


class _Later:
    """An argument, or a part of one, that is made of timm when the net is built."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def _class(path: str) -> _Later:
    return _Later(lambda: _at(path))


def _of(path: str, **arguments: Any) -> _Later:
    return _Later(lambda: _at(path)(**_resolved(arguments)))


def _layer(name: str, **arguments: Any) -> _Later:
    """A layer of `timm.layers` with arguments that stay."""

    def make() -> Any:
        layer = getattr(import_module("timm.layers"), name)
        return partial(layer, **arguments) if arguments else layer

    return _Later(make)


def _lines(*blocks: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Blocks of a net that has no small arguments, one after the other, behind a convolution and before a head."""
    return lambda: nn.Sequential(
        *(block() for block in blocks), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5)
    )


def _lazy(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def built() -> nn.Module:
        model = make().eval()
        with torch.no_grad():
            model(torch.randn(1, 3, 32, 32))
        return model

    return built


def _blocks(joins: int, read: str, *blocks: Callable[[], nn.Module]) -> Net:
    return _made(_lazy(_lines(*blocks)), joins, read)


_CHANNELS = (8, 16, 24, 32)
_RESNET: dict[str, Any] = {"layers": (2, 1, 1, 1), "channels": _CHANNELS, "stem_width": 8}
_BOTTLE: dict[str, Any] = {
    "block": _class("resnet.Bottleneck"),
    "channels": _CHANNELS,
    "stem_width": 8,
    "stem_type": "deep",
}
_VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
_STAGES: dict[str, Any] = {"depths": (1, 1, 2, 1)}


def _arch(*stages: str) -> _Later:
    """Stages in the notation of EfficientNets."""
    return _Later(lambda: import_module("timm.models._efficientnet_builder").decode_arch_def([[s] for s in stages]))


def _mobile(path: str, joins: int, read: str, *stages: str, **more: Any) -> Net:
    return _net(path, joins, read, block_args=_arch(*stages), stem_size=8, num_features=32, **more)


def _byo(joins: int, read: str, *blocks: dict[str, Any], size: int = 32, **more: Any) -> Net:
    block = "byobnet.ByoBlockCfg"
    config = _Later(
        lambda: _at("byobnet.ByoModelCfg")(
            **{"stem_chs": 8, "stem_pool": "", "blocks": tuple(_at(block)(**each) for each in blocks)} | more
        )
    )
    return _net("byobnet.ByobNet", joins, read, size, cfg=config, img_size=size)


def _stage(kind: str, depth: int, width: int, stride: int = 2, **more: Any) -> dict[str, Any]:
    return {"type": kind, "d": depth, "c": width, "s": stride, "gs": None, "br": 0.5} | more


def _cspnet(joins: int, read: str, **stages: Any) -> Net:
    config = _of(
        "cspnet.CspModelCfg",
        stem=_of("cspnet.CspStemCfg", out_chs=8, stride=2),
        stages=_of("cspnet.CspStagesCfg", depth=(1, 2), out_chs=(16, 24), **stages),
    )
    return _net("cspnet.CspNet", joins, read, cfg=config)


def _maxxvit(joins: int, read: str, depths: tuple[int, ...], types: tuple[Any, ...], **more: Any) -> Net:
    config = _Later(
        lambda: _at("maxxvit.MaxxVitCfg")(
            **{"embed_dim": (8, 16, 24, 32)[: len(depths)], "depths": depths, "block_type": types, "stem_width": 8}
            | _resolved(more)
        )
    )
    return _net("maxxvit.MaxxVit", joins, read, 64, cfg=config, img_size=64)


def _hgnet(joins: int, read: str, stem: str, light: bool, lab: bool) -> Net:
    stages = {
        "stage1": [8, 8, 16, 1, False, False, 3, 2],
        "stage2": [16, 8, 24, 2, True, light, 3, 2],
        "stage3": [24, 8, 32, 1, True, light, 5, 2],
        "stage4": [32, 8, 32, 1, True, light, 5, 2],
    }
    chans = [8, 8, 8] if stem == "v1" else [8, 8]
    config = {"stem_type": stem, "stem_chs": chans} | stages
    return _net("hgnet.HighPerfGpuNet", joins, read, cfg=config, use_lab=lab, head_hidden_size=32)


def _hr(branches: int, block: str, width: int) -> dict[str, Any]:
    return {
        "num_modules": 1,
        "num_branches": branches,
        "block_type": block,
        "num_blocks": (1,) * branches,
        "num_channels": tuple(width * 2**i for i in range(branches)),
        "fuse_method": "SUM",
    }


_ATTENTION = "2 blocks: attention, mlp"

NETS: dict[str, Net] = {
    "resnet": _net("resnet.ResNet", 5, "5 BasicBlocks", block=_class("resnet.BasicBlock"), **_RESNET),
    "resnet_d": _net(
        "resnet.ResNet", 5, "5 Bottlenecks, average pooled shortcuts", layers=(2, 1, 1, 1), avg_down=True, **_BOTTLE
    ),
    "resnet_se": _net(
        "resnet.ResNet", 4, "4 Bottlenecks, SE", layers=(1,) * 4, block_args={"attn_layer": "se"}, **_BOTTLE
    ),
    "resnet_eca": _net(
        "resnet.ResNet", 4, "4 Bottlenecks, ECA", layers=(1,) * 4, block_args={"attn_layer": "eca"}, **_BOTTLE
    ),
    "resnet_cbam": _net(
        "resnet.ResNet",
        4,
        "4 Bottlenecks, CBAM, blur pools; sums inside it are read by sigmoids alone",
        layers=(1,) * 4,
        block_args={"attn_layer": "cbam"},
        aa_layer=_layer("BlurPool2d"),
        **_BOTTLE,
    ),
    "resnet_gc": _net(
        "resnet.ResNet",
        10,
        "5 Bottlenecks, global context added inside each branch",
        layers=(2, 1, 1, 1),
        block_args={"attn_layer": "gca"},
        **_BOTTLE,
    ),
    "resnetv2_bit": _net(
        "resnetv2.ResNetV2",
        5,
        "5 PreActBottlenecks; of the first of a stage both read the norm",
        layers=(2, 1, 1, 1),
        channels=(16, 24, 32, 32),
        stem_chs=8,
        stem_type="fixed",
        norm_layer=_layer("GroupNormAct", num_groups=4),
    ),
    "resnetv2_post": _net(
        "resnetv2.ResNetV2",
        5,
        "5 Bottlenecks, act after the sum",
        layers=(2, 1, 1, 1),
        channels=(16, 24, 32, 32),
        stem_chs=8,
        preact=False,
        norm_layer=_layer("BatchNormAct2d"),
    ),
    "resnetv2_basic": _net(
        "resnetv2.ResNetV2",
        5,
        "5 PreActBasics",
        layers=(2, 1, 1, 1),
        channels=(16, 24, 32, 32),
        stem_chs=8,
        basic=True,
        bottle_ratio=1.0,
        conv_layer=_layer("create_conv2d"),
        norm_layer=_layer("BatchNormAct2d"),
    ),
    "regnet": _net(
        "regnet.RegNet",
        5,
        "5 Bottlenecks with SE",
        cfg=_of("regnet.RegNetCfg", depth=5, w0=8, wa=12.0, wm=2.0, group_size=8, se_ratio=0.25, stem_width=8),
    ),
    "regnet_pre": _net(
        "regnet.RegNet",
        5,
        "5 PreBottlenecks",
        cfg=_of(
            "regnet.RegNetCfg",
            depth=5,
            w0=8,
            wa=12.0,
            wm=2.0,
            group_size=8,
            preact=True,
            downsample="avg",
            stem_width=8,
        ),
    ),
    "efficientnet": _mobile(
        "efficientnet.EfficientNet",
        4,
        "the separable convolution, and the second of 3 inverted residuals",
        "ds_r1_k3_s1_e1_c8_se0.25",
        "ir_r2_k3_s2_e4_c16_se0.25",
        "ir_r2_k5_s2_e4_c24_se0.25",
        "er_r2_k3_s1_e2_c32",
    ),
    "efficientnet_condconv": _mobile(
        "efficientnet.EfficientNet",
        2,
        "2 of 4 inverted residuals, kernels mixed by the input",
        "ir_r2_k3_s2_e2_c16_cc2",
        "ir_r2_k3_s2_e2_c24_cc2",
    ),
    "mixnet": _mobile(
        "efficientnet.EfficientNet", 2, "2 of 4", "ir_r2_k3.5_a1.1_p1.1_s2_e2_c16", "ir_r2_k3.5.7_s2_e2_c24_se0.5_nsw"
    ),
    "mobilenetv3": _mobile(
        "mobilenetv3.MobileNetV3",
        3,
        "the separable convolution, 2 of 4 inverted residuals; none in the last convolution",
        "ds_r1_k3_s1_e1_c8_nre",
        "ir_r2_k3_s2_e4_c16_nre",
        "ir_r2_k5_s2_e4_c24_se0.25",
        "cn_r1_k1_s1_c32",
    ),
    "mobilenetv4": _mobile(
        "mobilenetv3.MobileNetV3",
        4,
        "2 universal inverted residuals, multi-query attention and the block after it",
        "uir_r2_a5_k5_s2_e4_c16",
        "uir_r2_a0_k3_s2_e4_c32",
        "mqa_r1_k3_h2_s1_v2_d8_c32",
        "uir_r1_a3_k0_s1_e4_c32",
        layer_scale_init_value=0.5,
    ),
    "mobilenetv5": _mobile(
        "mobilenetv5.MobileNetV5",
        3,
        "2 inverted residuals, and two stages side by side for the fusion",
        "uir_r2_a5_k5_s2_e4_c16",
        "uir_r2_a0_k3_s2_e4_c32",
        msfa_output_resolution=8,
    ),
    "hardcorenas": _mobile(
        "mobilenetv3.MobileNetV3",
        2,
        "the separable convolution, 1 of 2 inverted residuals",
        "ds_r1_k3_s1_e1_c8_nre",
        "ir_r1_k5_s2_e3_c16_nre_se0.25",
        "ir_r1_k5_s1_e3_c16_se0.25",
    ),
    "densenet": _net("densenet.DenseNet", 4, "2 blocks of 2 layers, concatenated", growth_rate=8, block_config=(2, 2)),
    "dla": _net(
        "dla.DLA",
        15,
        "4 trees of 2 blocks and a root each, one of two levels; no residual roots",
        levels=(1, 1, 1, 2, 1, 1),
        channels=(8, 8, 8, 16, 16, 24),
        block=_class("dla.DlaBasic"),
    ),
    "dla_residual": _net(
        "dla.DLA",
        16,
        "4 trees of 2 blocks and a root each, which adds what comes last",
        levels=(1, 1, 1, 1, 1, 1),
        channels=(8, 8, 8, 16, 16, 24),
        block=_class("dla.DlaBottleneck"),
        shortcut_root=True,
        size=64,
    ),
    "dpn": _net(
        "dpn.DPN",
        5,
        "5 blocks, each adds to one part and appends the other",
        64,
        k_sec=(2, 1, 1, 1),
        inc_sec=(4, 4, 4, 4),
        k_r=8,
        groups=2,
        small=True,
        num_init_features=8,
    ),
    "inception_resnet_v2": _blocks(
        2,
        "2 Block35, scaled",
        lambda: nn.Conv2d(3, 320, 3, 4),
        lambda: _at("inception_resnet_v2.Block35")(0.17),
        lambda: _at("inception_resnet_v2.Block35")(0.17),
    ),
    "xception": _blocks(
        3,
        "3 Blocks",
        lambda: nn.Conv2d(3, 8, 3, 2),
        lambda: _at("xception.Block")(8, 16, 2, 2, start_with_relu=False),
        lambda: _at("xception.Block")(16, 16, 3, 1),
        lambda: _at("xception.Block")(16, 24, 2, 2, grow_first=False),
    ),
    "xception_aligned": _net(
        "xception_aligned.XceptionAligned",
        3,
        "3 of 4 modules; the last has no skip",
        block_cfg=[
            {"in_chs": 64, "out_chs": 16, "stride": 2},
            {"in_chs": 16, "out_chs": 16, "stride": 1},
            {"in_chs": 16, "out_chs": 24, "stride": 2},
            {"in_chs": 24, "out_chs": (24, 24, 32), "stride": 1, "no_skip": True, "start_with_relu": False},
        ],
    ),
    "xception_aligned_pre": _net(
        "xception_aligned.XceptionAligned",
        2,
        "2 modules",
        preact=True,
        norm_layer=_layer("BatchNormAct2d"),
        block_cfg=[{"in_chs": 64, "out_chs": 16, "stride": 2}, {"in_chs": 16, "out_chs": 16, "stride": 1}],
    ),
    "hrnet": _net(
        "hrnet.HighResolutionNet",
        18,
        "1 + 2 + 3 + 4 blocks, 2 resolutions that are put beside the others, 2 exchanges with ways that are not "
        "affine, 4 blocks of the head (17 at first: without the four between the blocks, and with 3 sums of maps in "
        "the head, which are code of the decoder)",
        64,
        cfg={
            "stem_width": 8,
            "stage1": _hr(1, "BOTTLENECK", 8),
            "stage2": _hr(2, "BASIC", 4),
            "stage3": _hr(3, "BASIC", 4),
            "stage4": _hr(4, "BASIC", 4),
        },
    ),
    "cspnet": _cspnet(
        5,
        "2 cross stages of 1 and 2 bottlenecks, each beside the other half",
        expand_ratio=2.0,
        bottle_ratio=0.5,
        cross_linear=True,
    ),
    "cs3net": _cspnet(
        4,
        "3 dark blocks on one half, after two of which the other one is put beside it (3 at first)",
        stage_type="cs3",
        block_type="dark",
        block_ratio=0.5,
    ),
    "darknet": _cspnet(3, "3 dark blocks", stage_type="dark", block_type="dark", bottle_ratio=0.5),
    "cspnext": _net(
        "cspnext.CspNext",
        7,
        "3 layers: a block, and another way beside it; the last has pools side by side, and a block that adds nothing",
        depths=(1, 1, 1, 1),
        channels=(8, 8, 16, 16),
    ),
    "nfnet": _net(
        "nfnet.NormFreeNet",
        5,
        "5 NormFreeBlocks",
        cfg=_of(
            "nfnet.NfCfg",
            depths=(2, 1, 1, 1),
            channels=(8, 16, 24, 32),
            stem_type="3x3",
            stem_chs=8,
            group_size=4,
            attn_layer="se",
            attn_kwargs={"rd_ratio": 0.5},
            num_features=32,
            act_layer="relu",
        ),
    ),
    "ghostnet": _net(
        "ghostnet.GhostNet",
        4,
        "2 bottlenecks, each with a cheap image beside the first layer; beside the second it is linear",
        cfgs=[[[3, 16, 16, 0, 1]], [[3, 24, 24, 0.25, 2]]],
        width=0.5,
    ),
    "ghostnetv2": _net(
        "ghostnet.GhostNet",
        6,
        "3 bottlenecks, each with a cheap image beside the first layer",
        cfgs=[[[3, 16, 16, 0, 1]], [[3, 24, 24, 0.25, 2]], [[3, 24, 24, 0.25, 1]]],
        width=0.5,
        version="v2",
    ),
    "rexnet": _net(
        "rexnet.RexNet",
        4,
        "4 of 9 bottlenecks, added to the first channels",
        initial_chs=8,
        final_chs=32,
        depth_mult=0.4,
        width_mult=0.5,
    ),
    "selecsls": _net(
        "selecsls.SelecSls",
        3,
        "3 blocks, each puts what it makes side by side, and before that what the first one made",
        cfg={
            "block": _class("selecsls.SelecSlsBlock"),
            "features": [(32, 0, 8, 16, True, 2), (16, 16, 8, 16, False, 1), (16, 16, 8, 24, False, 1)],
            "head": [(24, 32, 3, 2)],
            "num_features": 32,
            "feature_info": [],
        },
    ),
    "tresnet": _net(
        "tresnet.TResNet", 4, "2 BasicBlocks, 2 Bottlenecks", layers=(1, 1, 1, 1), width_factor=0.125, size=64
    ),
    "vovnet": _net(
        "vovnet.VovNet",
        6,
        "5 blocks, each concatenates its layers; the second of a stage adds its input",
        cfg={
            "stem_chs": [8, 8, 8],
            "stage_conv_chs": [8, 8, 8, 8],
            "stage_out_chs": [16, 16, 24, 32],
            "layer_per_block": 2,
            "block_per_stage": [1, 2, 1, 1],
            "residual": True,
            "depthwise": False,
            "attn": "ese",
        },
    ),
    "hgnet": _hgnet(
        6, "5 blocks, each concatenates its layers; the second of a stage adds its input", "v1", False, False
    ),
    "hgnetv2": _hgnet(6, "the same with light convolutions and learned affine layers", "v2", True, True),
    "res2net": _net(
        "resnet.ResNet",
        6,
        "5 Bottle2necks; in the one with stride 1 that is not first, pieces side by side of which each is made of the "
        "one before (12 at first: a pooled piece is no skip, and what is added to each piece comes from outside)",
        block=_class("res2net.Bottle2neck"),
        layers=(2, 1, 1, 1),
        base_width=8,
        channels=(32, 32, 32, 32),
        block_args={"scale": 4},
        stem_width=8,
    ),
    "resnest": _net(
        "resnet.ResNet",
        5,
        "5 ResNestBottlenecks",
        block=_class("resnest.ResNestBottleneck"),
        layers=(2, 1, 1, 1),
        channels=(16, 16, 16, 16),
        stem_type="deep",
        stem_width=8,
        avg_down=True,
        block_args={"radix": 2, "avd": True, "avd_first": False},
    ),
    "sknet": _net(
        "resnet.ResNet",
        5,
        "5 SelectiveKernelBottlenecks",
        block=_class("sknet.SelectiveKernelBottleneck"),
        layers=(2, 1, 1, 1),
        channels=(16, 16, 16, 16),
        stem_width=8,
        block_args={"sk_kwargs": {"split_input": True}},
    ),
    "senet": _blocks(
        2,
        "2 SEResNeXtBottlenecks",
        lambda: nn.Conv2d(3, 32, 3, 2),
        lambda: _at("senet.SEResNeXtBottleneck")(32, 8, groups=2, reduction=4, base_width=32),
        lambda: _at("senet.SEResNetBlock")(32, 32, groups=1, reduction=4),
    ),
    "repvgg": _byo(
        3,
        "3 blocks: a norm of the input beside two convolutions; those that change the size have none",
        _stage("rep", 2, 8),
        _stage("rep", 3, 16),
        stem_type="rep",
        stem_chs=8,
    ),
    "mobileone": _byo(
        3,
        "the blocks that keep the size: a norm of the input beside convolutions",
        _stage("one", 2, 8),
        _stage("one", 3, 16),
        stem_type="one",
        stem_chs=8,
    ),
    "gernet": _byo(3, "1 BasicBlock, 2 BottleneckBlocks", _stage("basic", 1, 8, gs=0), _stage("bottle", 2, 16, gs=0)),
    "botnet": _byo(
        3,
        "a bottleneck, 2 with attention",
        _stage("bottle", 1, 16, gs=0),
        {**_stage("self_attn", 2, 32, gs=0), "self_attn_layer": "bottleneck", "self_attn_kwargs": {"dim_head": 8}},
    ),
    "halonet": _byo(
        3,
        "a bottleneck, 2 with attention to neighbours",
        _stage("bottle", 1, 16, gs=0),
        {
            **_stage("self_attn", 2, 32, gs=0),
            "self_attn_layer": "halo",
            "self_attn_kwargs": {"dim_head": 8, "block_size": 4, "halo_size": 1},
        },
    ),
    "lambdanet": _byo(
        3,
        "a bottleneck, 2 with lambdas",
        _stage("bottle", 1, 16, gs=0),
        {**_stage("self_attn", 2, 32, gs=0), "self_attn_layer": "lambda", "self_attn_kwargs": {"r": 3, "dim_head": 8}},
    ),
    "mobilevit": _byo(
        4,
        "an inverted residual; a picture beside itself after two layers: attention, mlp, nested",
        _stage("bottle", 2, 16, gs=1, br=2.0, block_kwargs={"bottle_in": True, "linear_out": True}),
        {
            "type": "mobilevit",
            "d": 1,
            "c": 16,
            "s": 1,
            "gs": None,
            "block_kwargs": {"transformer_dim": 16, "transformer_depth": 1, "patch_size": 2, "num_heads": 2},
        },
        downsample="",
    ),
    "mobilevitv2": _byo(
        4,
        "attention, mlp twice",
        _stage("bottle", 1, 16, gs=1, br=2.0, block_kwargs={"bottle_in": True, "linear_out": True}),
        {
            "type": "mobilevit2",
            "d": 1,
            "c": 16,
            "s": 1,
            "br": 0.5,
            "gs": 1,
            "block_kwargs": {"transformer_depth": 2, "patch_size": 2},
        },
        downsample="",
    ),
    "convnext": _net("convnext.ConvNeXt", 5, "5 blocks", dims=_CHANNELS, **_STAGES),
    "convnextv2": _net(
        "convnext.ConvNeXt", 5, "5 blocks", dims=_CHANNELS, use_grn=True, ls_init_value=None, conv_mlp=True, **_STAGES
    ),
    "inception_next": _net("inception_next.MetaNeXt", 5, "5 blocks", dims=(16, 16, 24, 32), **_STAGES),
    "poolformer": _net(
        "metaformer.MetaFormer",
        15,
        "5 blocks: pooling, mlp (10 at first: pool(n) - n is a sum of its own, of the norm that enters as it is)",
        dims=_CHANNELS,
        layer_scale_init_values=0.3,
        res_scale_init_values=None,
        norm_layers=_layer("GroupNorm1"),
        use_mlp_head=False,
        **_STAGES,
    ),
    "caformer": _net(
        "metaformer.MetaFormer",
        10,
        "5 blocks: separable convolution or attention, mlp",
        dims=(8, 16, 32, 32),
        token_mixers=[_class("metaformer.SepConv")] * 2 + [_class("metaformer.Attention")] * 2,
        norm_layers=[_class("metaformer.LayerNorm2dNoBias")] * 2 + [_class("metaformer.LayerNormNoBias")] * 2,
        **_STAGES,
    ),
    "convmixer": _net("convmixer.ConvMixer", 2, "2 blocks", dim=16, depth=2, kernel_size=5, patch_size=4),
    "mlp_mixer": _net(
        "mlp_mixer.MlpMixer", 4, "2 blocks: tokens, channels", img_size=32, patch_size=8, num_blocks=2, embed_dim=16
    ),
    "resmlp": _net(
        "mlp_mixer.MlpMixer",
        4,
        "2 blocks: tokens, channels",
        img_size=32,
        patch_size=8,
        num_blocks=2,
        embed_dim=16,
        mlp_ratio=4,
        block_layer=_class("mlp_mixer.ResBlock"),
        norm_layer=_class("mlp_mixer.Affine"),
    ),
    "gmlp": _net(
        "mlp_mixer.MlpMixer",
        2,
        "2 blocks",
        img_size=32,
        patch_size=8,
        num_blocks=2,
        embed_dim=16,
        mlp_ratio=4,
        block_layer=_class("mlp_mixer.SpatialGatingBlock"),
        mlp_layer=_layer("GatedMlp"),
    ),
    "vit": _net("vision_transformer.VisionTransformer", 4, _ATTENTION, kinds="attn 2, mlp 2", **_VIT),
    "vit_reg_gap": _net(
        "vision_transformer.VisionTransformer",
        4,
        _ATTENTION,
        kinds="attn 2, mlp 2",
        qk_norm=True,
        init_values=0.5,
        reg_tokens=2,
        class_token=False,
        no_embed_class=True,
        global_pool="avg",
        pre_norm=True,
        mlp_layer=_layer("SwiGLUPacked"),
        **_VIT,
    ),
    "vit_map": _net(
        "vision_transformer.VisionTransformer",
        5,
        f"{_ATTENTION}; an mlp on what the head's attention has pooled",
        kinds="attn 2, mlp 3",
        class_token=False,
        global_pool="map",
        **_VIT,
    ),
    "vit_post": _net(
        "vision_transformer.VisionTransformer",
        4,
        "2 ResPostBlocks: attention, mlp",
        kinds="attn 2, mlp 2",
        block_fn=_class("vision_transformer.ResPostBlock"),
        **_VIT,
    ),
    "vit_parallel": _net(
        "vision_transformer.VisionTransformer",
        2,
        "2 blocks: attention beside mlp, one projection of both",
        block_fn=_class("vision_transformer.ParallelScalingBlock"),
        **_VIT,
    ),
    "vit_diff_parallel": _net(
        "vision_transformer.VisionTransformer",
        2,
        "2 blocks: differential attention beside mlp, one projection of both",
        block_fn=_class("vision_transformer.DiffParallelScalingBlock"),
        **_VIT,
    ),
    "vit_things": _net(
        "vision_transformer.VisionTransformer",
        4,
        "2 blocks: 2 attentions, 2 mlps",
        kinds="attn 4, mlp 4",
        block_fn=_class("vision_transformer.ParallelThingsBlock"),
        **_VIT,
    ),
    "vit_hybrid": _made(
        lambda: _at("vision_transformer.VisionTransformer")(
            **_VIT | {"patch_size": 1},
            num_classes=5,
            embed_layer=partial(
                _at("vision_transformer_hybrid.HybridEmbed"),
                backbone=_at("resnetv2.ResNetV2")(
                    layers=(1, 1),
                    channels=(16, 24),
                    stem_chs=8,
                    num_classes=0,
                    global_pool="",
                    stem_type="same",
                    preact=False,
                    norm_layer=partial(import_module("timm.layers").GroupNormAct, num_groups=4),
                ),
            ),
        ),
        6,
        f"2 Bottlenecks; {_ATTENTION}",
    ),
    "vit_relpos": _net(
        "vision_transformer_relpos.VisionTransformerRelPos", 4, _ATTENTION, kinds="attn 2, mlp 2", **_VIT
    ),
    "vit_srelpos": _net(
        "vision_transformer_relpos.VisionTransformerRelPos",
        4,
        "2 ResPostRelPosBlocks",
        kinds="attn 2, mlp 2",
        rel_pos_type="bias",
        shared_rel_pos=True,
        class_token=True,
        block_fn=_class("vision_transformer_relpos.ResPostRelPosBlock"),
        **_VIT,
    ),
    "vit_sam": _net(
        "vision_transformer_sam.VisionTransformerSAM",
        4,
        _ATTENTION,
        use_rel_pos=True,
        window_size=3,
        global_attn_indexes=(1,),
        neck_chans=16,
        kinds="attn 2, mlp 2",
        **_VIT,
    ),
    "deit": _net("deit.VisionTransformerDistilled", 4, f"{_ATTENTION}; two heads", kinds="attn 2, mlp 2", **_VIT),
    "beit": _net(
        "beit.Beit",
        4,
        _ATTENTION,
        kinds="attn 2, mlp 2",
        init_values=0.3,
        use_rel_pos_bias=True,
        swiglu_mlp=True,
        **_VIT,
    ),
    "beit_shared": _net(
        "beit.Beit", 4, _ATTENTION, kinds="attn 2, mlp 2", use_abs_pos_emb=False, use_shared_rel_pos_bias=True, **_VIT
    ),
    "eva": _net(
        "eva.Eva",
        4,
        _ATTENTION,
        kinds="attn 2, mlp 2",
        swiglu_mlp=True,
        scale_mlp=True,
        qkv_fused=False,
        use_rot_pos_emb=True,
        init_values=0.3,
        **_VIT | {"num_heads": 2, "embed_dim": 32},
    ),
    "eva_post": _net(
        "eva.Eva",
        4,
        _ATTENTION,
        kinds="attn 2, mlp 2",
        use_post_norm=True,
        num_reg_tokens=2,
        **_VIT | {"embed_dim": 32},
    ),
    "cait": _net(
        "cait.Cait",
        7,
        "2 blocks: attention, mlp; 2 of the class token, which begins with the first attention",
        init_values=0.3,
        **_VIT,
    ),
    "xcit": _net(
        "xcit.Xcit",
        14,
        "2 blocks: attention, convolutions, mlp; 2 of the class token: attention, mlp, each with the token "
        "in its place "
        "among the others (10 at first: without these four inner ones)",
        kinds="attn 6, conv 2, mlp 6",
        tokens_norm=True,
        eta=0.5,
        **_VIT,
    ),
    "xcit_cls": _net(
        "xcit.Xcit",
        14,
        "the same with a norm of the class token alone (10 at first)",
        kinds="attn 6, conv 2, mlp 6",
        tokens_norm=False,
        eta=0.5,
        use_pos_embed=False,
        **_VIT,
    ),
    "swin": _net(
        "swin_transformer.SwinTransformer",
        8,
        "4 blocks: attention, mlp",
        kinds="attn 4, mlp 4",
        img_size=32,
        patch_size=4,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 2),
        window_size=4,
        drop_path_rate=0.0,
    ),
    "swin_v2": _net(
        "swin_transformer_v2.SwinTransformerV2",
        8,
        "4 blocks: attention, mlp, normed",
        kinds="attn 4, mlp 4",
        img_size=32,
        patch_size=4,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 2),
        window_size=4,
        drop_path_rate=0.0,
    ),
    "swin_v2_cr": _net(
        "swin_transformer_v2_cr.SwinTransformerV2Cr",
        8,
        "4 blocks: attention, mlp, normed",
        kinds="attn 4, mlp 4",
        img_size=32,
        patch_size=4,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 2),
        window_size=4,
        extra_norm_period=1,
    ),
    "coatnet": _maxxvit(
        6,
        "2 MbConvs; 2 transformers: attention, mlp",
        (1, 1, 1, 1),
        ("C", "C", "T", "T"),
        transformer_cfg=_of("maxxvit.MaxxVitTransformerCfg", dim_head=8, init_values=0.3),
    ),
    "maxvit": _maxxvit(
        10,
        "2 blocks: MbConv, attention in windows and grids, each with an mlp",
        (1, 1),
        ("M", "M"),
        transformer_cfg=_of("maxxvit.MaxxVitTransformerCfg", dim_head=8, window_size=(4, 4), grid_size=(4, 4)),
    ),
    "maxxvit": _maxxvit(
        8,
        "2 blocks: 2 ConvNeXts, attention in windows beside grids, mlp (6 at first: such a block has two convolutions)",
        (1, 1),
        ("PM", "PM"),
        conv_cfg=_of("maxxvit.MaxxVitConvCfg", block_type="convnext"),
        transformer_cfg=_of("maxxvit.MaxxVitTransformerCfg", dim_head=8, window_size=(4, 4), grid_size=(4, 4)),
    ),
    "crossvit": _net(
        "crossvit.CrossVit",
        9,
        "2 branches: attention, mlp; 2 times attention of a class token to the other branch, and that put in "
        "its place; the sum of two heads (8 at first: without the heads)",
        img_size=32,
        patch_size=(8, 16),
        embed_dim=(16, 24),
        depth=((1, 1, 0),),
        num_heads=(2, 2),
        mlp_ratio=(2.0, 2.0, 1.0),
    ),
    "coat_lite": _net(
        "coat.CoaT",
        12,
        "4 blocks: convolution, attention, mlp",
        64,
        kinds="conv 4, attn 4, mlp 4",
        img_size=64,
        patch_size=4,
        embed_dims=(16, 16, 16, 16),
        serial_depths=(1, 1, 1, 1),
        num_heads=2,
        crpe_window={3: 1, 5: 1},
    ),
    "coat": _net(
        "coat.CoaT",
        21,
        "4 blocks: convolution, attention, mlp; 3 levels beside each other: the same",
        64,
        img_size=64,
        patch_size=4,
        embed_dims=(16, 16, 16, 16),
        serial_depths=(1, 1, 1, 1),
        parallel_depth=1,
        num_heads=2,
        crpe_window={3: 1, 5: 1},
    ),
    "convit": _net("convit.ConVit", 4, _ATTENTION, kinds="attn 2, mlp 2", local_up_to_layer=1, **_VIT),
    "levit": _net(
        "levit.Levit",
        5,
        "2 blocks: attention, mlp; an mlp between, after attention that pools",
        64,
        kinds="attn 2, mlp 3",
        img_size=64,
        embed_dim=(16, 24),
        key_dim=8,
        depth=(1, 1),
        num_heads=(2, 2),
    ),
    "pit": _net(
        "pit.PoolingVisionTransformer",
        6,
        "3 stages of a block: attention, mlp",
        kinds="attn 3, mlp 3",
        img_size=32,
        patch_size=8,
        stride=4,
        base_dims=(8, 8, 8),
        depth=(1, 1, 1),
        heads=(2, 2, 4),
    ),
    "tnt": _net(
        "tnt.TNT",
        11,
        "patches start with what is made of pixels; 2 blocks: attention, mlp of pixels; their patch, "
        "attention, mlp (10 at "
        "first: such a start is a join by docs/structure.md)",
        img_size=32,
        patch_size=8,
        embed_dim=24,
        inner_dim=8,
        depth=2,
        num_heads_inner=2,
        num_heads_outer=2,
        qkv_bias=True,
    ),
    "tiny_vit": _net(
        "tiny_vit.TinyVit",
        7,
        "a convolution; 3 blocks: attention, mlp",
        64,
        kinds="conv 1, attn 3, mlp 3",
        embed_dims=(8, 16, 16, 24),
        depths=(1, 1, 1, 1),
        num_heads=(2, 2, 2, 2),
        window_sizes=(4, 4, 4, 2),
        drop_path_rate=0.0,
    ),
    "twins_pcpvt": _net(
        "twins.Twins",
        12,
        "4 blocks: attention, mlp; a convolution after each",
        64,
        kinds="attn 4, mlp 4, conv 4",
        img_size=64,
        embed_dims=(8, 16, 16, 24),
        num_heads=(2, 2, 2, 2),
        depths=(1, 1, 1, 1),
        sr_ratios=(4, 2, 2, 1),
    ),
    "twins_svt": _net(
        "twins.Twins",
        14,
        "5 blocks: attention, mlp; a convolution after the first of a stage",
        64,
        kinds="attn 5, mlp 5, conv 4",
        img_size=64,
        embed_dims=(8, 16, 16, 24),
        num_heads=(2, 2, 2, 2),
        depths=(2, 1, 1, 1),
        wss=(4, 4, 4, 2),
        sr_ratios=(4, 2, 2, 1),
    ),
    "volo": _net(
        "volo.VOLO",
        13,
        "an outlooker, 3 transformers, 2 of the class token: attention, mlp; the head adds the largest of another one",
        img_size=32,
        layers=[1, 1, 1, 1],
        patch_size=8,
        stem_hidden_dim=8,
        embed_dims=[16, 24, 24, 24],
        num_heads=[2, 2, 2, 2],
    ),
    "visformer": _net(
        "visformer.Visformer",
        5,
        "3 blocks: attention, mlp; none in the first",
        64,
        img_size=64,
        patch_size=16,
        init_channels=8,
        embed_dim=32,
        depth=(1, 1, 1),
        num_heads=2,
        attn_stage="011",
        spatial_conv="100",
        vit_stem=False,
        group=2,
        embed_norm=_Later(lambda: nn.BatchNorm2d),
        mlp_ratio=2.0,
    ),
    "mvitv2": _net(
        "mvitv2.MultiScaleVit",
        6,
        "2 blocks: attention, mlp; in attention the queries are added",
        64,
        img_size=(64, 64),
        cfg=_of("mvitv2.MultiScaleVitCfg", depths=(1, 1), embed_dim=16, num_heads=2),
    ),
    "nest": _net(
        "nest.Nest",
        6,
        "3 levels of a block: attention, mlp",
        kinds="attn 3, mlp 3",
        img_size=32,
        patch_size=4,
        embed_dims=(8, 16, 24),
        num_heads=(2, 2, 2),
        depths=(1, 1, 1),
    ),
    "edgenext": _net(
        "edgenext.EdgeNeXt",
        8,
        "5 blocks; 3 of them with attention nested",
        64,
        dims=_CHANNELS,
        depths=(1, 2, 1, 1),
        heads=(2, 2, 2, 2),
        ls_init_value=0.3,
    ),
    "efficientformer": _net(
        "efficientformer.EfficientFormer",
        10,
        "4 blocks: pooling, mlp; one: attention, mlp; two heads",
        224,
        depths=(1, 1, 1, 2),
        embed_dims=(8, 16, 16, 24),
        num_vit=1,
        layer_scale_init_value=0.3,
    ),
    "efficientformer_v2": _net(
        "efficientformer_v2.EfficientFormerV2",
        7,
        "4 blocks: an mlp, in 2 of them attention; attention beside a convolution before the last (10 at "
        "first: attention "
        "and the convolution of values that is added to it are both linear in these, and one layer)",
        64,
        img_size=64,
        depths=(1, 1, 1, 1),
        embed_dims=(8, 16, 16, 24),
        num_vit=1,
        layer_scale_init_value=0.3,
    ),
    "efficientvit_mit": _net(
        "efficientvit_mit.EfficientVit",
        4,
        "a convolution in the stem, one in the first stage, a block: attention, convolution (6 at first: "
        "misread depths)",
        64,
        widths=(8, 16, 16, 16),
        depths=(1, 2, 1, 1),
        head_dim=8,
        head_widths=(32, 32),
    ),
    "efficientvit_msra": _net(
        "efficientvit_msra.EfficientVitMsra",
        29,
        "3 blocks: convolution, mlp, attention, convolution, mlp; in attention what a head made is added to "
        "what the next "
        "one reads, and both are put side by side; 2 times convolution, mlp before and after merging (26 at "
        "first: without "
        "the heads side by side)",
        64,
        img_size=64,
        embed_dim=(16, 24, 32),
        key_dim=(4, 4, 4),
        depth=(1, 1, 1),
        num_heads=(2, 2, 2),
        window_size=(2, 2, 2),
    ),
    "fastvit": _net(
        "fastvit.FastVit",
        16,
        "1 layer of the stem and of each patch embedding; 3 blocks: RepMixer, mlp; positions, attention, mlp "
        "(13 at first: "
        "a norm beside convolutions inside each RepMixer)",
        64,
        layers=(1, 1, 1, 1),
        token_mixers=("repmixer", "repmixer", "repmixer", "attention"),
        embed_dims=(8, 16, 16, 32),
        mlp_ratios=(2, 2, 2, 2),
        pos_embs=_Later(lambda: (None, None, None, partial(_at("fastvit.RepConditionalPosEnc"), spatial_shape=(7, 7)))),
        layer_scale_init_value=0.3,
    ),
    "repvit": _net(
        "repvit.RepVit",
        7,
        "2 blocks: convolution, mlp; between them the same and one more mlp; two heads",
        embed_dim=(8, 16),
        depth=(1, 1),
    ),
    "hiera": _net(
        "hiera.Hiera",
        6,
        "3 blocks: attention, mlp; where the stage changes the shortcut is the largest of a projection, a branch",
        64,
        kinds="attn 3, mlp 5",
        img_size=(64, 64),
        embed_dim=8,
        num_heads=1,
        stages=(1, 1, 1),
        q_pool=2,
        mask_unit_size=(4, 4),
        mask_unit_attn=(True, True, False),
    ),
    "hieradet_sam2": _net(
        "hieradet_sam2.HieraDet",
        10,
        "5 blocks: attention, mlp; where the stage changes the shortcut is the largest of a projection",
        64,
        embed_dim=8,
        num_heads=1,
        stages=(1, 1, 2, 1),
        global_att_blocks=(3,),
        window_spec=(4, 4, 4, 4),
        global_pos_size=(4, 4),
    ),
    "davit": _net(
        "davit.DaVit",
        16,
        "2 stages: attention in windows, attention of channels: convolution, attention, convolution, mlp",
        kinds="conv 8, attn 4, mlp 4",
        depths=(1, 1),
        embed_dims=(16, 16),
        num_heads=(2, 2),
        window_size=4,
    ),
    "focalnet": _net(
        "focalnet.FocalNet",
        8,
        "4 blocks: modulation, mlp",
        64,
        embed_dim=8,
        depths=(1, 1, 1, 1),
        layerscale_value=0.3,
    ),
    "gcvit": _net(
        "gcvit.GlobalContextVit",
        12,
        "4 blocks: attention, mlp; a convolution in the stem, one between stages, one in each stage's query",
        64,
        img_size=64,
        window_ratio=None,
        window_size=(8, 4),
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 2),
        layer_scale=0.3,
    ),
    "sequencer": _net(
        "sequencer.Sequencer2d",
        8,
        "4 blocks: recurrence, mlp",
        kinds="ssm 4, mlp 4",
        img_size=32,
        layers=(1, 1, 1, 1),
        patch_sizes=(4, 2, 1, 1),
        embed_dims=(8, 16, 16, 16),
        hidden_sizes=(4, 4, 4, 4),
    ),
    "starnet": _net("starnet.StarNet", 5, "5 blocks", base_dim=8, depths=[1, 1, 2, 1]),
    "shvit": _net(
        "shvit.SHViT",
        20,
        "3 blocks: convolution, attention beside the other channels, mlp; 2 times convolution, mlp before and after "
        "merging",
        64,
        embed_dim=(16, 24, 32),
        partial_dim=(8, 8, 8),
        qk_dim=(4, 4, 4),
        depth=(1, 1, 1),
    ),
    "swiftformer": _net(
        "swiftformer.SwiftFormer",
        17,
        "a convolution; 4 blocks: convolution, attention, to which the queries are added, mlp; two heads",
        64,
        layers=[2, 1, 1, 1],
        embed_dims=[8, 16, 16, 24],
        layer_scale_init_value=0.3,
    ),
    "mambaout": _net("mambaout.MambaOut", 5, "5 blocks", dims=(8, 16, 24, 32), kernel_size=3, **_STAGES),
    "naflexvit": _net(
        "naflexvit.NaFlexVit",
        5,
        "2 blocks: attention, mlp; an mlp on what the head's attention has pooled (4 at first: it pools by default)",
        kinds="attn 2, mlp 3",
        cfg=_of("naflexvit.NaFlexVitCfg", patch_size=8, embed_dim=24, depth=2, num_heads=2, pos_embed_grid_size=(4, 4)),
    ),
    "csatv2": _net(
        "csatv2.CSATv2",
        14,
        "2 convolutional blocks with attention for a gate, nested: attention, mlp; 2 transformers: attention of "
        "positions that a convolution is added to, mlp",
        64,
        dims=(8, 16, 16, 16),
        depths=(1, 1, 1, 1),
        transformer_depths=(0, 0, 1, 1),
    ),
    "efficientvim": _net(
        "efficientvim.EfficientViM",
        17,
        "3 blocks: convolution, state space, convolution, mlp; 2 convolutions at each merging; heads of all stages",
        64,
        embed_dim=(8, 16, 16),
        depths=(1, 1, 1),
        state_dim=(9, 4, 4),
    ),
    "fasternet": _net("fasternet.FasterNet", 5, "5 blocks", embed_dim=8, feature_dim=32, **_STAGES),
    "nextvit": _blocks(
        8,
        "2 convolutional blocks: convolution, mlp; a transformer: attention, convolution, both side by side, mlp",
        lambda: nn.Conv2d(3, 16, 3, 2, 1),
        lambda: _at("nextvit.NextConvBlock")(16, 16, head_dim=8),
        lambda: _at("nextvit.NextConvBlock")(16, 32, stride=2, head_dim=8),
        lambda: _at("nextvit.NextTransformerBlock")(32, 128, 0.0, sr_ratio=2, head_dim=16),
    ),
    "pvt_v2": _net(
        "pvt_v2.PyramidVisionTransformerV2",
        8,
        "4 blocks: attention, mlp",
        64,
        depths=(1, 1, 1, 1),
        embed_dims=(8, 16, 16, 16),
        num_heads=(1, 2, 2, 2),
        sr_ratios=(4, 2, 2, 1),
        mlp_ratios=(2, 2, 2, 2),
    ),
    "rdnet": _net(
        "rdnet.RDNet",
        4,
        "2 stages of 2 dense blocks",
        growth_rates=(8, 8),
        num_blocks_list=(2, 2),
        block_type=("Block", "BlockESE"),
        is_downsample_block=(None, True),
        num_init_features=16,
        ls_init_value=0.3,
    ),
    "deepseek_vit": _net(
        "deepseek_vit.DeepseekVitClassifier",
        4,
        _ATTENTION,
        48,
        kinds="attn 2, mlp 2",
        img_size=48,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
    ),
    "qwen3_vit": _net(
        "qwen3_vit.Qwen3VitClassifier",
        4,
        _ATTENTION,
        kinds="attn 2, mlp 2",
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        pos_embed_grid_size=4,
    ),
    "gemma4_vit": _net(
        "gemma4_vit.Gemma4VitClassifier",
        4,
        _ATTENTION,
        48,
        kinds="attn 2, mlp 2",
        img_size=48,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        head_dim=16,
        intermediate_size=48,
        position_embedding_size=64,
    ),
    "lcnetv2": _net(
        "lcnetv2.LCNetV2",
        2,
        "the blocks of the last stage that keep the size",
        64,
        scale=0.25,
        depths=(1, 1, 1, 3),
        head_hidden_size=32,
    ),
    "iformer": _net(
        "iformer.IFormer",
        9,
        "3 convolutional blocks; 2 times convolution, attention, mlp",
        64,
        dims=(8, 16, 24, 32),
        depths=(1, 1, 3, 4),
        attn_groups=(0, 0, 1, 1),
        layer_scale_init_value=0.3,
    ),
    "lowformer": _net(
        "lowformer.LowFormer",
        8,
        "a convolution in the stem, one in the second stage; 2 blocks: attention, mlp, convolution",
        64,
        width_list=(8, 8, 16, 16, 16),
        depth_list=(1, 1, 2, 1, 1),
        head_widths=(32, 32),
    ),
    "cpubone": _net(
        "cpubone.CPUBone",
        8,
        "a convolution in the stem, one in the second stage; 2 blocks: attention, mlp, convolution",
        64,
        width_list=(8, 8, 16, 16, 16),
        depth_list=(1, 1, 2, 1, 1),
        head_widths=(32, 32),
    ),
    "repghost": _net(
        "repghost.RepGhostNet",
        6,
        "2 bottlenecks, each with a norm beside a cheap convolution in both layers (4 at first, as the "
        "second is linear)",
        cfgs=[[[3, 16, 16, 0, 1]], [[3, 24, 24, 0.25, 2]]],
        width=0.5,
        drop_rate=0.0,
    ),
    "ghostnetv3": _net(
        "ghostnet.GhostNet",
        8,
        "2 bottlenecks: a norm beside convolutions in both layers, in the first a cheap image beside it",
        cfgs=[[[3, 16, 16, 0, 1]], [[3, 24, 24, 0.25, 2]]],
        width=0.5,
        version="v3",
    ),
}
