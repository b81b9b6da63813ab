"""Nets of MONAI, in two dimensions: one for each design of blocks."""

# pyright: reportMissingImports=false

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from monai.networks import nets
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.wall.libraries import Net
from benchmarks.wall.libraries.drawing import drawn, pictures

PLANE = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}


class Mean(nn.Module):
    """The mean of what a net with deep supervision gives, brought to one size."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """The mean over the levels."""
        levels = [F.interpolate(level, size=x.shape[2:]) for level in self.net(x)]
        return torch.stack(levels).mean(0)


class First(nn.Module):
    """The first of what a net gives."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """The first output."""
        return self.net(x)[0]


class Mode(nn.Module):
    """An autoencoder by the mean of its latent."""

    def __init__(self, net: nets.AutoencoderKL) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """The picture made of the mean."""
        return self.net.decode(self.net.encode(x)[0])


def _diffusion(**more: Any) -> nn.Module:
    return nets.DiffusionModelUNet(
        **PLANE,
        num_res_blocks=1,
        channels=(8, 16),
        attention_levels=(False, True),
        norm_num_groups=4,
        num_head_channels=8,
        **more,
    )


def _noisy(context: bool = False) -> Any:
    def draw() -> tuple[Tensor, ...]:
        random = torch.Generator().manual_seed(0)
        given = (torch.randn(2, 1, 16, 16, generator=random), torch.tensor([3, 7]))
        return (*given, torch.randn(2, 5, 8, generator=random)) if context else given

    return draw


def _resnet(shortcut: str) -> nn.Module:
    return nets.ResNet(
        "bottleneck",
        [2, 1, 1, 1],
        [8, 8, 16, 16],
        spatial_dims=2,
        n_input_channels=1,
        num_classes=3,
        shortcut_type=shortcut,
        bias_downsample=False,
    )


_LAYERS = [
    {"name": "conv_0", "n_features": 4, "kernel_size": 3},
    {"name": "res_1", "n_features": 4, "kernels": (3, 3), "repeat": 2},
    {"name": "res_2", "n_features": 8, "kernels": (3, 3), "repeat": 2},
    {"name": "conv_1", "n_features": 8, "kernel_size": 1},
    {"name": "conv_2", "kernel_size": 1},
]

_PICTURE = pictures(1, 32, 32)

NETS: dict[str, Net] = {
    "unet": Net(
        drawn(lambda: nets.UNet(**PLANE, channels=(4, 8, 16), strides=(2, 2), num_res_units=0)),
        _PICTURE,
        2,
        "two levels beside what comes back from below",
        "conv 2",
    ),
    "unet residual": Net(
        drawn(lambda: nets.UNet(**PLANE, channels=(4, 8, 16), strides=(2, 2), num_res_units=2, norm="batch")),
        _PICTURE,
        7,
        "P h + f(h) in two layers down and the lowest, two levels beside what comes back, h + f(h) in two layers up",
    ),
    "dynunet": Net(
        drawn(
            lambda: nets.DynUNet(
                **PLANE, kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2], filters=[4, 8, 16]
            )
        ),
        _PICTURE,
        2,
        "two levels beside what comes back from below",
    ),
    "dynunet residual": Net(
        drawn(
            lambda: nets.DynUNet(
                **PLANE,
                kernel_size=[3, 3, 3],
                strides=[1, 2, 2],
                upsample_kernel_size=[2, 2],
                filters=[4, 8, 16],
                res_block=True,
                deep_supervision=True,
                deep_supr_num=1,
            )
        ),
        _PICTURE,
        3,
        # It was read as 5: a norm of a convolution on the shortcut is a layer as f is, and a sum of two layers is a
        # join on the way of everything alone, as in the first block.
        "f(h) and the norm of a convolution in the first block; two levels beside what comes back from below",
    ),
    "segresnet": Net(
        drawn(lambda: nets.SegResNet(**PLANE, init_filters=8, blocks_down=(1, 2, 1), blocks_up=(1, 1))),
        _PICTURE,
        8,
        "4 blocks down, a level and what comes back from below, and a block, twice",
    ),
    "segresnet ds": Net(
        drawn(lambda: nets.SegResNetDS(**PLANE, init_filters=4, blocks_down=(1, 1, 1), blocks_up=(1, 1), dsdepth=2)),
        _PICTURE,
        7,
        "3 blocks down, a level and what comes back from below, and a block, twice",
    ),
    "unetr": Net(
        drawn(
            lambda: nets.UNETR(
                1, 2, (32, 32), feature_size=4, hidden_size=16, mlp_dim=16, num_heads=2, spatial_dims=2, res_block=True
            )
        ),
        _PICTURE,
        29,
        # It was read as 36: blocks that change widths have a norm of a convolution on the shortcut, and are joins
        # where everything passes them, as the last one. So the decoder is a function of four points.
        "12 layers of attention and MLP, the points that the decoder reads, 3 residual blocks that keep their width, "
        "and the last block",
    ),
    "swinunetr": Net(
        drawn(
            lambda: nets.SwinUNETR(
                1, 2, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), feature_size=12, spatial_dims=2, window_size=4
            )
        ),
        pictures(1, 64, 64),
        15,
        # It was read as 23, with the blocks that change widths, whose shortcuts are layers, and all levels.
        "4 layers of attention and MLP, 4 residual blocks that keep their width, the points that the decoder reads, a "
        "level beside that, and the last block",
    ),
    "swinunetr v2": Net(
        drawn(
            lambda: nets.SwinUNETR(
                1,
                2,
                depths=(1, 1, 1, 1),
                num_heads=(1, 1, 2, 2),
                feature_size=12,
                spatial_dims=2,
                window_size=4,
                use_v2=True,
            )
        ),
        pictures(1, 64, 64),
        19,
        "as SwinUNETR, and a residual block of convolutions before each of the four stages",
    ),
    "vnet": Net(
        drawn(lambda: nets.VNet(**PLANE, dropout_dim=2)),
        _PICTURE,
        12,
        # It was read as 13: the picture is added to each of the channels of the first layer, and no skip through them.
        "h + f(h) in four layers down; a level beside what comes back, and h + f(h), in four layers up",
    ),
    "highresnet": Net(
        drawn(lambda: nets.HighResNet(**PLANE, layer_params=_LAYERS)),
        _PICTURE,
        4,
        "4 blocks, in one of which channels of zeros come beside the stream",
        "conv 4",
    ),
    "highresnet project": Net(
        drawn(lambda: nets.HighResNet(**PLANE, layer_params=_LAYERS, channel_matching="project")),
        _PICTURE,
        4,
        "4 blocks, of which one projects the stream",
        "conv 4",
    ),
    "mednext": Net(
        drawn(
            lambda: nets.MedNeXt(
                **PLANE,
                init_filters=4,
                encoder_expansion_ratio=2,
                decoder_expansion_ratio=2,
                bottleneck_expansion_ratio=2,
                kernel_size=3,
                blocks_down=(1, 1),
                blocks_bottleneck=1,
                blocks_up=(1, 1),
                use_residual_connection=True,
                global_resp_norm=True,
            )
        ),
        _PICTURE,
        9,
        "2 blocks, P h + f(h) down from each, a block; what comes back, P h + f(h), with the level, and a block, twice",
    ),
    "diffusion unet": Net(
        drawn(_diffusion),
        _noisy(),
        16,
        "a block and a block with attention down, two blocks and attention, two blocks with attention and two blocks "
        "up, each with a level put beside it first",
    ),
    "diffusion unet resample": Net(
        drawn(lambda: _diffusion(resblock_updown=True)),
        _noisy(),
        18,
        "as the one before, with P h + f(h) where sizes change",
    ),
    "diffusion unet cross": Net(
        drawn(lambda: _diffusion(with_conditioning=True, cross_attention_dim=8)),
        _noisy(context=True),
        28,
        "as the first one, where each attention is h + P T(h) with three joins in T",
    ),
    "ahnet": Net(
        drawn(lambda: nets.AHNet((1, 1, 1, 1), 2, 1, 2, psp_block_num=1, upsample_mode="bilinear")),
        pictures(1, 64, 64),
        39,
        # It was read as 40, with the lowest block: a sum of two layers is code of the branch that comes back from it.
        "3 blocks, whose shortcuts go through a largest value, 5 levels and what comes back from below; 5 dense blocks "
        "of 3 layers, in each of which a sum h + f(h) is nested; the end beside what is made of it by pooling",
    ),
    "attention unet": Net(
        drawn(lambda: nets.AttentionUnet(**PLANE, channels=(4, 8, 16), strides=(2, 2))),
        _PICTURE,
        2,
        "two levels, by a gate, beside what comes back from below",
    ),
    "unet++": Net(
        drawn(lambda: First(nets.BasicUNetPlusPlus(2, 1, 2, features=(4, 4, 8, 8, 8, 4)))),
        _PICTURE,
        11,
        # It was read as 16: what was made of a level beside what comes back, cat(cat(h, f(h)), y), is code of the
        # branch that reads it, but for the last one.
        "a level beside what comes back from below, on 4 levels and at the end, and 6 times what was made of a level "
        "before beside it",
    ),
    "unet++ ds": Net(
        drawn(lambda: Mean(nets.BasicUNetPlusPlus(2, 1, 2, features=(4, 4, 8, 8, 8, 4), deep_supervision=True))),
        _PICTURE,
        10,
        "as the one before, where the last concatenation and the first of the finest level are code of branches, and "
        "the mean of four outputs",
    ),
    "autoencoderkl": Net(
        drawn(
            lambda: Mode(
                nets.AutoencoderKL(
                    **PLANE,
                    num_res_blocks=(1, 1),
                    channels=(8, 16),
                    attention_levels=(False, False),
                    latent_channels=4,
                    norm_num_groups=4,
                )
            )
        ),
        _PICTURE,
        10,
        "2 blocks, and block, attention, block, in either half",
    ),
    "vqvae": Net(
        drawn(
            lambda: First(
                nets.VQVAE(
                    2,
                    1,
                    1,
                    channels=(8, 8),
                    num_res_layers=1,
                    downsample_parameters=((2, 4, 1, 1), (2, 4, 1, 1)),
                    upsample_parameters=((2, 4, 1, 1, 0), (2, 4, 1, 1, 0)),
                    num_res_channels=(8, 8),
                    num_embeddings=8,
                    embedding_dim=4,
                )
            )
        ),
        _PICTURE,
        4,
        "2 blocks in either half",
    ),
    "localnet": Net(
        drawn(lambda: nets.LocalNet(2, 2, 4, (0, 1, 2), out_channels=2)),
        pictures(2, 32, 32),
        7,
        # It was read as 8: the lowest block adds nothing to what it reads.
        "2 blocks down; twice what comes back, f(h) + up(h), with the level, and a block; the mean of three levels' "
        "outputs",
    ),
    "efficientnet": Net(
        drawn(
            lambda: nets.EfficientNet(
                ["r1_k3_s11_e1_i32_o32_se0.25", "r2_k3_s22_e2_i32_o16_se0.25"], 2, 1, 3, 1.0, 1.0, image_size=32
            )
        ),
        _PICTURE,
        2,
        "h + f(h) in the first block and the second of the second stage",
        "conv 2",
    ),
    "densenet": Net(
        drawn(lambda: nets.DenseNet121(2, 1, 3, init_features=8, growth_rate=4, block_config=(3, 2))),
        _PICTURE,
        5,
        "blocks of 3 and 2 layers, each cat(h, f(h))",
        "conv 5",
    ),
    "senet": Net(
        drawn(lambda: nets.SENet(2, 1, "se_resnetxt_bottleneck", (1, 1, 1, 1), 32, 16, num_classes=3)),
        _PICTURE,
        4,
        "4 blocks",
        "conv 4",
    ),
    # The other shortcut of MONAI's ResNet takes `.data` of a value, which torch.export refuses.
    "resnet b": Net(drawn(partial(_resnet, "B")), _PICTURE, 5, "5 blocks, of which some project", "conv 5"),
    "regressor": Net(
        drawn(lambda: nets.Regressor((1, 32, 32), (2,), (4, 8), (2, 2))),
        _PICTURE,
        2,
        "2 blocks P h + f(h)",
        "conv 2",
    ),
    "autoencoder": Net(
        drawn(lambda: nets.AutoEncoder(2, 1, 1, channels=(4, 8), strides=(2, 2), num_res_units=2)),
        _PICTURE,
        4,
        "2 blocks P h + f(h), 2 blocks h + f(h)",
        "conv 4",
    ),
    "vit": Net(
        drawn(lambda: First(nets.ViT(1, 32, 8, hidden_size=16, mlp_dim=32, num_layers=2, num_heads=2, spatial_dims=2))),
        _PICTURE,
        4,
        "2 layers of attention and MLP",
        "attn 2, mlp 2",
    ),
    "vit autoencoder": Net(
        drawn(
            lambda: First(
                nets.ViTAutoEnc(1, 32, 4, 1, 4, hidden_size=16, mlp_dim=32, num_layers=2, num_heads=2, spatial_dims=2)
            )
        ),
        _PICTURE,
        4,
        "2 layers of attention and MLP",
        "attn 2, mlp 2",
    ),
    "decoder only": Net(
        drawn(
            lambda: nets.DecoderOnlyTransformer(
                num_tokens=11, max_seq_len=8, attn_layers_dim=16, attn_layers_depth=2, attn_layers_heads=2
            )
        ),
        lambda: (torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(0)),),
        4,
        "2 layers of attention and MLP",
        "attn 2, mlp 2",
    ),
}
