"""open_clip: pairs of towers, captions, and residual networks whose pool is attention."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import CustomResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import Tensor, nn

from benchmarks.wall.libraries import Net
from benchmarks.wall.libraries.torch_geometric_nets import measured
from benchmarks.wall.libraries.x_transformers_nets import stirred

WIDTH, VOCABULARY = 16, 23
BLOCKS = "attention and feed-forward of 2 blocks"
TEXT: dict[str, Any] = {"context_length": 6, "vocab_size": VOCABULARY, "width": WIDTH, "heads": 2, "layers": 2}
VISION: dict[str, Any] = {"image_size": 16, "patch_size": 8, "width": WIDTH, "head_width": 8, "layers": 2}
PICTURE: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 8,
    "width": WIDTH,
    "heads": 2,
    "layers": 2,
    "mlp_ratio": 2.0,
    "output_dim": 8,
}


class Similar(nn.Module):
    """How much alike pictures and texts are, and not the vectors of both."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        logits: Callable[..., tuple[Tensor, ...]] = getattr(self.model, "get_logits")  # noqa: B009
        return logits(image, text)[0]


class Captions(nn.Module):
    """The words that a model says next to a picture."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return self.model(image, text)["logits"]


def _text() -> dict[str, Tensor]:
    return {"text": torch.randint(1, VOCABULARY, (2, 6))}


def _picture(name: str = "x") -> dict[str, Tensor]:
    return {name: torch.randn(2, 3, 16, 16)}


def _both() -> dict[str, Tensor]:
    return {**_picture("image"), **_text()}


def _net(
    make: Callable[[], nn.Module], inputs: Callable[[], dict[str, Any]], joins: int, read: str, kinds: str = ""
) -> Net:
    return Net(lambda: measured(stirred(make(), 0.05)), inputs, joins, read, kinds)


def _vision(joins: int = 4, read: str = BLOCKS, kinds: str = "attn 2, mlp 2", **options: Any) -> Net:
    return _net(lambda: VisionTransformer(**{**PICTURE, **options}), _picture, joins, read, kinds)


def _words(joins: int = 4, read: str = BLOCKS, kinds: str = "attn 2, mlp 2", **options: Any) -> Net:
    return _net(lambda: TextTransformer(**{**TEXT, "output_dim": 8, **options}), _text, joins, read, kinds)


NETS: dict[str, Net] = {
    "clip": _net(lambda: Similar(CLIP(8, VISION, TEXT)), _both, 8, BLOCKS + " of each tower", "attn 4, mlp 4"),
    "clip_resnet": _net(
        lambda: Similar(CLIP(8, {"image_size": 32, "layers": [1, 1, 1, 1], "width": 4, "head_width": 32}, TEXT)),
        lambda: {"image": torch.randn(2, 3, 32, 32), **_text()},
        8,
        BLOCKS + " of text, 4 bottlenecks of pictures",
        "attn 2, conv 4, mlp 2",
    ),
    "clip_custom": _net(
        lambda: Similar(CustomTextCLIP(8, {**VISION, "ls_init_value": 0.5}, {**TEXT, "embed_cls": True, "pad_id": 0})),
        _both,
        8,
        BLOCKS + " of each tower",
        "attn 4, mlp 4",
    ),
    "coca": _net(
        lambda: Captions(
            CoCa(
                WIDTH,
                {**TEXT, "dim_head": 8, "n_queries": 3, "attn_pooler_heads": 2},
                {**TEXT, "embed_cls": True, "output_tokens": True},
                {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
            )
        ),
        _both,
        16,
        "2 blocks of pictures (4), 2 of text (4), 2 of text with cross-attention to pictures (8)",
        "attn 8, mlp 8",
    ),
    "resnet": _net(
        lambda: ModifiedResNet([1, 1, 1, 1], output_dim=8, heads=4, image_size=32, width=4),
        lambda: {"x": torch.randn(2, 3, 32, 32)},
        4,
        "relu(P h + f(h)) in 4 bottlenecks, of which the last is read by attention that is no join",
        "conv 4",
    ),
    "vision": _vision(),
    "vision_scaled": _vision(ls_init_value=0.5, pool_type="avg", no_ln_pre=True),
    "vision_sincos": _vision(pos_embed_type="sin_cos_2d", final_ln_after_pool=True),
    "vision_pooled": _vision(attentional_pool=True, attn_pooler_queries=3, attn_pooler_heads=2),
    "vision_normed": _vision(block_type="custom", qk_norm=True, scale_heads=True, scale_attn=True, scale_fc=True),
    "text": _words(),
    "text_class": _words(embed_cls=True, pad_id=0, pool_type="last"),
    "text_scaled": _words(ls_init_value=0.5, pool_type="first"),
    "block_custom": _net(
        lambda: nn.Sequential(
            *(
                CustomResidualAttentionBlock(WIDTH, 2, qk_norm=True, scale_heads=True, scale_attn=True, scale_fc=True)
                for _ in range(2)
            )
        ),
        lambda: {"input": torch.randn(2, 5, WIDTH)},
        4,
        BLOCKS,
        "attn 2, mlp 2",
    ),
}
