"""Nets of `diffusers`: denoisers, U-nets and autoencoders, one for each design of a block.

Autoencoders run whole: what they decode is the mean of what they have encoded. Arguments that are no tensors are fixed
when a net is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.wall.libraries import Net

Spec = tuple[int, ...] | Callable[[], Tensor]
"""A shape of normal numbers, or what makes a tensor."""


class _Fixed(nn.Module):
    """A net some of whose arguments are given."""

    def __init__(self, net: nn.Module, given: Mapping[str, Any]) -> None:
        super().__init__()
        self.net, self.given = net, given

    def forward(self, **tensors: Tensor) -> Any:
        return self.net(**tensors, **self.given)


class _Listed(nn.Module):
    """A net that takes lists of tensors, one for each example, or as many as a list has."""

    def __init__(self, net: nn.Module, lists: tuple[str, ...]) -> None:
        super().__init__()
        self.net, self.lists = net, lists

    def forward(self, **tensors: Tensor) -> Any:
        return self.net(**{name: list(value) if name in self.lists else value for name, value in tensors.items()})


class _Encodings(nn.Module):
    """A decoder that takes pairs of encodings and masks."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, encodings: Tensor, tokens: Tensor, time: Tensor) -> Tensor:
        return self.net([(encodings, torch.ones(encodings.shape[:2]))], tokens, time)


class _Controlled(nn.Module):
    """A U-net with a copy of its encoder that reads a picture and is added to its skips."""

    def __init__(self, net: nn.Module, control: nn.Module) -> None:
        super().__init__()
        self.net, self.control = net, control

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, picture: Tensor) -> Any:
        down, mid = self.control(sample, timestep, encoder_hidden_states, picture, return_dict=False)
        return self.net(
            sample,
            timestep,
            encoder_hidden_states,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
            return_dict=False,
        )


def _ids(high: int, *shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, high, shape)


def _ones(*shape: int, dtype: torch.dtype = torch.int64) -> Callable[[], Tensor]:
    return lambda: torch.ones(shape, dtype=dtype)


def _uniform(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.rand(shape)


def _made(name: str, config: Mapping[str, Any]) -> nn.Module:
    """A class of the library whose weights are all drawn: many start with zeros where a branch ends."""
    net = getattr(import_module("diffusers"), name)(**config)
    for weight in net.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.1)
    return net


def _drawn(inputs: Mapping[str, Spec]) -> dict[str, Tensor]:
    return {name: spec() if callable(spec) else torch.randn(spec) for name, spec in inputs.items()}


def _net(
    name: str,
    joins: int,
    read: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Spec],
    kinds: str = "",
    around: Callable[[nn.Module], nn.Module] = lambda net: net,
) -> Net:
    return Net(lambda: around(_made(name, config)), partial(_drawn, inputs), joins, read, kinds)


def _fixed(**given: Any) -> Callable[[nn.Module], nn.Module]:
    return partial(_Fixed, given=given)


_HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8}
_PATCHES: dict[str, Any] = {**_HEADS, "in_channels": 4, "num_layers": 2, "sample_size": 8, "patch_size": 2}
_TOKENS: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "joint_attention_dim": 12,
}
_TIME = _ids(100, 2)
_PICTURE: dict[str, Spec] = {"hidden_states": (2, 4, 8, 8), "timestep": _TIME}
_VIDEO: dict[str, Spec] = {"hidden_states": (2, 4, 2, 8, 8), "timestep": _TIME}
_TEXT: dict[str, Spec] = {"encoder_hidden_states": (2, 5, 12)}
_ROW: dict[str, Spec] = {"hidden_states": (2, 16, 4), "timestep": _uniform(2), **_TEXT}
_IDS: dict[str, Spec] = {"img_ids": _ids(4, 16, 3), "txt_ids": _ids(4, 5, 3)}
_SIZES: dict[str, Spec] = {name: _uniform(2, 2) for name in ("original_size", "target_size", "crop_coords")}

_JOINT = "2 blocks of attention over both streams side by side, then a feed-forward of each, maybe one by one"
_THREE = "2 blocks of attention, attention to the text, feed-forward, with gates of the time"

_DENOISERS: dict[str, Net] = {
    "dit": _net(
        "DiTTransformer2DModel",
        4,
        "2 blocks of attention and feed-forward, with gates of the time",
        {**_PATCHES, "num_embeds_ada_norm": 10},
        {**_PICTURE, "timestep": _ids(10, 2), "class_labels": _ids(10, 2)},
        "attn 2, mlp 2",
    ),
    "pixart": _net(
        "PixArtTransformer2DModel",
        6,
        _THREE,
        {**_PATCHES, "out_channels": 8, "cross_attention_dim": 16, "caption_channels": 12},
        {**_PICTURE, **_TEXT},
        "attn 4, mlp 2",
    ),
    "sana": _net(
        "SanaTransformer2DModel",
        6,
        _THREE,
        {
            **_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": 16,
            "caption_channels": 12,
            "sample_size": 8,
        },
        {**_PICTURE, **_TEXT},
    ),
    "sana_video": _net(
        "SanaVideoTransformer3DModel",
        8,
        f"{_THREE}, whose convolution over time has a nested skip",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 12,
            "cross_attention_dim": 24,
            "caption_channels": 12,
            "sample_size": 8,
        },
        {**_VIDEO, **_TEXT},
    ),
    "sd3": _net(
        "SD3Transformer2DModel",
        5,
        _JOINT,
        {
            **_PATCHES,
            "joint_attention_dim": 12,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 8,
            "out_channels": 4,
            "pos_embed_max_size": 8,
        },
        {**_PICTURE, **_TEXT, "pooled_projections": (2, 8)},
    ),
    "sd35": _net(
        "SD3Transformer2DModel",
        5,
        f"{_JOINT}; two attentions at once in the first stream",
        {
            **_PATCHES,
            "joint_attention_dim": 12,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 8,
            "out_channels": 4,
            "pos_embed_max_size": 8,
            "dual_attention_layers": (0, 1),
            "qk_norm": "rms_norm",
        },
        {**_PICTURE, **_TEXT, "pooled_projections": (2, 8)},
    ),
    "auraflow": _net(
        "AuraFlowTransformer2DModel",
        7,
        "a block of two streams and 2 of one; each is one join around a norm of a nested sum, h + f(norm(h + attn))",
        {
            **_HEADS,
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 2,
            "joint_attention_dim": 12,
            "caption_projection_dim": 16,
            "out_channels": 4,
            "pos_embed_max_size": 16,
        },
        {**_PICTURE, **_TEXT, "timestep": _uniform(2)},
    ),
    "cogvideox": _net(
        "CogVideoXTransformer3DModel",
        4,
        _JOINT,
        {
            **_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": 12,
            "num_layers": 2,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 9,
            "patch_size": 2,
            "max_text_seq_length": 5,
        },
        {"hidden_states": (2, 3, 4, 8, 8), "timestep": _TIME, **_TEXT},
    ),
    "cogview3": _net(
        "CogView3PlusTransformer2DModel",
        4,
        _JOINT,
        {
            **_PATCHES,
            "out_channels": 4,
            "text_embed_dim": 12,
            "time_embed_dim": 8,
            "condition_dim": 4,
            "pos_embed_max_size": 8,
        },
        {**_PICTURE, **_TEXT, **_SIZES},
    ),
    "cogview4": _net(
        "CogView4Transformer2DModel",
        4,
        _JOINT,
        {
            **_PATCHES,
            "out_channels": 4,
            "text_embed_dim": 12,
            "time_embed_dim": 8,
            "condition_dim": 4,
            "pos_embed_max_size": 8,
            "rope_axes_dim": (8, 8),
        },
        {**_PICTURE, **_TEXT, **_SIZES},
    ),
    "hunyuan_dit": _net(
        "HunyuanDiT2DModel",
        13,
        "4 blocks of attention, attention to the text, feed-forward; ahead of the last an earlier "
        "point is put beside the stream",
        {
            **_HEADS,
            "in_channels": 4,
            "patch_size": 2,
            "sample_size": 8,
            "hidden_size": 16,
            "num_layers": 4,
            "cross_attention_dim": 12,
            "cross_attention_dim_t5": 16,
            "pooled_projection_dim": 8,
            "text_len": 5,
            "text_len_t5": 6,
            "use_style_cond_and_image_meta_size": False,
        },
        {
            **_PICTURE,
            **_TEXT,
            "timestep": _uniform(2),
            "text_embedding_mask": _ones(2, 5),
            "encoder_hidden_states_t5": (2, 6, 16),
            "text_embedding_mask_t5": _ones(2, 6),
        },
    ),
    "latte": _net(
        "LatteTransformer3DModel",
        10,
        "2 times attention over space, attention to the text, feed-forward, attention over time, feed-forward",
        {
            **_PATCHES,
            "out_channels": 8,
            "cross_attention_dim": 16,
            "attention_bias": True,
            "activation_fn": "gelu-approximate",
            "num_embeds_ada_norm": 10,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "caption_channels": 12,
            "video_length": 2,
        },
        {**_VIDEO, **_TEXT},
        "attn 6, mlp 4",
    ),
    "lumina_next": _net(
        "LuminaNextDiT2DModel",
        4,
        "2 blocks of attention to itself and to the text at once, and feed-forward",
        {
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "hidden_size": 16,
            "num_layers": 2,
            "num_attention_heads": 2,
            "num_kv_heads": 2,
            "multiple_of": 8,
            "cross_attention_dim": 12,
        },
        {**_PICTURE, **_TEXT, "timestep": _uniform(2), "encoder_mask": _ones(2, 5)},
        around=_fixed(image_rotary_emb=torch.ones(8, 8, 4), cross_attention_kwargs={}),
    ),
    "lumina2": _net(
        "Lumina2Transformer2DModel",
        6,
        "text and picture refined by a block each, 2 joins of two branches; 2 blocks over both",
        {
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "hidden_size": 16,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 8,
            "axes_dim_rope": (4, 2, 2),
            "axes_lens": (32, 16, 16),
            "cap_feat_dim": 12,
        },
        {**_PICTURE, **_TEXT, "timestep": _uniform(2), "encoder_attention_mask": _ones(2, 5, dtype=torch.bool)},
    ),
    "prior": _net(
        "PriorTransformer",
        4,
        "2 blocks of attention and feed-forward",
        {**_HEADS, "num_layers": 2, "embedding_dim": 8, "num_embeddings": 5},
        {"hidden_states": (2, 8), "timestep": _TIME, "proj_embedding": (2, 8), "encoder_hidden_states": (2, 5, 8)},
        "attn 2, mlp 2",
    ),
    "stable_audio": _net(
        "StableAudioDiTModel",
        8,
        "a convolution, 2 blocks of attention, attention to the text, feed-forward, and a convolution",
        {
            **_HEADS,
            "sample_size": 16,
            "in_channels": 4,
            "num_layers": 2,
            "num_key_value_attention_heads": 1,
            "out_channels": 4,
            "cross_attention_dim": 8,
            "time_proj_dim": 8,
            "global_states_input_dim": 6,
            "cross_attention_input_dim": 8,
        },
        {
            "hidden_states": (2, 4, 16),
            "timestep": _uniform(2),
            "encoder_hidden_states": (2, 5, 8),
            "global_hidden_states": (2, 1, 6),
        },
        "attn 4, mlp 2, conv 2",
    ),
    "t5_film": _net(
        "T5FilmDecoder",
        6,
        "2 blocks of attention, attention to encodings, feed-forward",
        {"input_dims": 6, "targets_length": 8, "d_model": 16, "num_layers": 2, "num_heads": 2, "d_kv": 8, "d_ff": 24},
        {"encodings": (2, 5, 16), "tokens": (2, 8, 6), "time": _uniform(2)},
        "attn 4, mlp 2",
        _Encodings,
    ),
    "transformer_2d": _net(
        "Transformer2DModel",
        4,
        "one branch, in which are attention, attention to the text, feed-forward",
        {**_HEADS, "in_channels": 16, "cross_attention_dim": 12, "norm_num_groups": 4},
        {"hidden_states": (2, 16, 4, 4), **_TEXT},
    ),
    "allegro": _net(
        "AllegroTransformer3DModel",
        6,
        _THREE,
        {
            **_HEADS,
            "in_channels": 4,
            "num_layers": 2,
            "cross_attention_dim": 16,
            "sample_height": 4,
            "sample_width": 4,
            "sample_frames": 2,
            "caption_channels": 12,
        },
        {**_VIDEO, **_TEXT},
    ),
    "flux": _net(
        "FluxTransformer2DModel",
        5,
        "a block of two streams, attention and feed-forward; 2 of one, attention and feed-forward at "
        "once; the feed-forwards of the first are joins one by one",
        {**_TOKENS, "num_layers": 1, "num_single_layers": 2, "pooled_projection_dim": 8, "axes_dims_rope": (4, 4, 8)},
        {**_ROW, **_IDS, "pooled_projections": (2, 8)},
    ),
    "flux2": _net(
        "Flux2Transformer2DModel",
        5,
        "a block of two streams, attention and feed-forward; 2 of one, attention and feed-forward at "
        "once; the feed-forwards of the first are joins one by one",
        {
            **_TOKENS,
            "num_layers": 1,
            "num_single_layers": 2,
            "timestep_guidance_channels": 8,
            "axes_dims_rope": (4, 4, 4, 4),
        },
        {**_ROW, "img_ids": _ids(4, 16, 4), "txt_ids": _ids(4, 5, 4), "guidance": _uniform(2)},
    ),
    "chroma": _net(
        "ChromaTransformer2DModel",
        6,
        "a block of two streams, attention and feed-forward; 2 of one, attention and feed-forward at "
        "once; the feed-forwards of the first are joins one by one, and gates are made by a residual layer",
        {
            **_TOKENS,
            "num_layers": 1,
            "num_single_layers": 2,
            "axes_dims_rope": (4, 4, 8),
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 16,
            "approximator_layers": 1,
        },
        {**_ROW, **_IDS},
    ),
    "ovis": _net(
        "OvisImageTransformer2DModel",
        5,
        "a block of two streams, attention and feed-forward; 2 of one, attention and feed-forward at "
        "once; the feed-forwards of the first are joins one by one",
        {**_TOKENS, "out_channels": 4, "num_layers": 1, "num_single_layers": 2, "axes_dims_rope": (4, 4, 8)},
        {**_ROW, **_IDS},
    ),
    "cosmos": _net(
        "CosmosTransformer3DModel",
        6,
        _THREE,
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 2,
            "mlp_ratio": 2.0,
            "text_embed_dim": 12,
            "adaln_lora_dim": 4,
            "max_size": (4, 8, 8),
        },
        {**_VIDEO, **_TEXT, "padding_mask": lambda: torch.zeros(1, 1, 8, 8)},
    ),
    "easyanimate": _net(
        "EasyAnimateTransformer3DModel",
        4,
        _JOINT,
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 2,
            "num_layers": 2,
            "mmdit_layers": 2,
            "time_embed_dim": 8,
            "text_embed_dim": 12,
            "sample_width": 8,
            "sample_height": 8,
        },
        {**_VIDEO, **_TEXT},
    ),
    "hunyuan_video": _net(
        "HunyuanVideoTransformer3DModel",
        5,
        "the text refined by a block, 2 joins; a block of two streams, attention and feed-forward; "
        "one of one, both at once",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "text_embed_dim": 12,
            "pooled_projection_dim": 8,
            "rope_axes_dim": (4, 6, 6),
        },
        {
            **_VIDEO,
            **_TEXT,
            "encoder_attention_mask": _ones(2, 5),
            "pooled_projections": (2, 8),
            "guidance": _uniform(2),
        },
    ),
    "ltx": _net(
        "LTXVideoTransformer3DModel",
        6,
        _THREE,
        {
            **_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "cross_attention_dim": 16,
            "caption_channels": 12,
        },
        {"hidden_states": (2, 32, 4), **_TEXT, "timestep": _TIME, "encoder_attention_mask": _ones(2, 5)},
        around=_fixed(num_frames=2, height=4, width=4),
    ),
    "mochi": _net(
        "MochiTransformer3DModel",
        6,
        f"{_JOINT}; the text has another width, and is a stream of its own",
        {
            **_HEADS,
            "num_layers": 2,
            "pooled_projection_dim": 8,
            "in_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
            "max_sequence_length": 5,
        },
        {**_VIDEO, "encoder_hidden_states": (2, 5, 16), "encoder_attention_mask": _ones(2, 5, dtype=torch.bool)},
    ),
    "omnigen": _net(
        "OmniGenTransformer2DModel",
        4,
        "2 blocks of attention and feed-forward over text, time and picture",
        {
            "in_channels": 4,
            "patch_size": 2,
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 24,
            "num_layers": 2,
            "pad_token_id": 0,
            "vocab_size": 20,
            "pos_embed_max_size": 8,
            "time_step_dim": 8,
            "rope_scaling": {"short_factor": [1.0] * 4, "long_factor": [1.0] * 4, "type": "su"},
        },
        {
            **_PICTURE,
            "timestep": _uniform(2),
            "input_ids": _ids(20, 2, 5),
            "attention_mask": _ones(2, 22, 22),
            "position_ids": lambda: torch.arange(22).expand(2, 22),
        },
        "attn 2, mlp 2",
        _fixed(input_img_latents=[], input_image_sizes={}),
    ),
    "qwenimage": _net(
        "QwenImageTransformer2DModel",
        5,
        _JOINT,
        {**_TOKENS, "in_channels": 16, "out_channels": 4, "num_layers": 2, "axes_dims_rope": (4, 6, 6)},
        {**_ROW, "hidden_states": (2, 16, 16), "encoder_hidden_states_mask": _ones(2, 5)},
        around=_fixed(img_shapes=[[(1, 4, 4)], [(1, 4, 4)]]),
    ),
    "wan": _net(
        "WanTransformer3DModel",
        6,
        _THREE,
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 12,
            "freq_dim": 8,
            "ffn_dim": 24,
            "num_layers": 2,
        },
        {**_VIDEO, **_TEXT},
        "attn 4, mlp 2",
    ),
    "wan_vace": _net(
        "WanVACETransformer3DModel",
        12,
        "3 joins in each of 2 blocks and of 2 of a control stream; what that has made is added with the feed-forwards "
        "of the others, as a second branch of these joins (first read as joins of their own, 14)",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 12,
            "freq_dim": 8,
            "ffn_dim": 24,
            "num_layers": 2,
            "vace_layers": [0, 1],
            "vace_in_channels": 4,
        },
        {**_VIDEO, **_TEXT, "control_hidden_states": (2, 4, 2, 8, 8)},
    ),
    "prx": _net(
        "PRXTransformer2DModel",
        4,
        "2 blocks of attention to itself and the text at once, and feed-forward",
        {
            "in_channels": 4,
            "patch_size": 2,
            "context_in_dim": 12,
            "hidden_size": 16,
            "mlp_ratio": 2.0,
            "num_heads": 2,
            "depth": 2,
            "axes_dim": [4, 4],
        },
        {**_PICTURE, **_TEXT, "timestep": _uniform(2)},
        "attn 2, mlp 2",
    ),
    "z_image": _net(
        "ZImageTransformer2DModel",
        8,
        "text and picture refined by a block each, one by one, as neither reads the other; 2 blocks over both (first "
        "read as 6, with joins of two branches)",
        {
            "in_channels": 4,
            "dim": 16,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 12,
            "axes_dims": [4, 2, 2],
            "axes_lens": [64, 16, 16],
        },
        {"x": (2, 4, 1, 8, 8), "t": _uniform(2), "cap_feats": (2, 5, 12)},
        around=partial(_Listed, lists=("x", "cap_feats")),
    ),
    "hidream": _net(
        "HiDreamImageTransformer2DModel",
        4,
        "a block of two streams and one of one, attention and a mixture of experts; what the text "
        "adds to each is dropped after it",
        {
            **_HEADS,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "caption_channels": [12, 12],
            "text_emb_dim": 8,
            "num_routed_experts": 2,
            "num_activated_experts": 1,
            "axes_dims_rope": (2, 2, 4),
            "max_resolution": (8, 8),
            "llama_layers": (0, 1),
            "force_inference_output": True,
        },
        {
            "hidden_states": (2, 4, 8, 8),
            "timesteps": _TIME,
            "encoder_hidden_states_t5": (2, 5, 12),
            "encoder_hidden_states_llama3": (2, 2, 5, 12),
            "pooled_embeds": (2, 8),
        },
    ),
    "kandinsky5": _net(
        "Kandinsky5Transformer3DModel",
        8,
        f"{_THREE}; 2 of a stream of the text",
        {
            "in_visual_dim": 4,
            "in_text_dim": 12,
            "in_text_dim2": 8,
            "time_dim": 8,
            "out_visual_dim": 4,
            "model_dim": 16,
            "ff_dim": 24,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
            "axes_dims": (2, 2, 4),
        },
        {"hidden_states": (2, 2, 8, 8, 4), **_TEXT, "timestep": _uniform(2), "pooled_projections": (2, 8)},
        around=_fixed(
            visual_rope_pos=[torch.arange(2), torch.arange(4), torch.arange(4)], text_rope_pos=torch.arange(5)
        ),
    ),
    "transformer_temporal": _net(
        "TransformerTemporalModel",
        4,
        "one branch, in which are two attentions over frames and feed-forward",
        {**_HEADS, "in_channels": 16, "norm_num_groups": 4},
        {"hidden_states": (4, 16, 4, 4)},
        around=_fixed(num_frames=2),
    ),
    "uvit": _net(
        "UVit2DModel",
        12,
        "a residual block and two attentions, 2 blocks of three, a residual block and two attentions",
        {
            "hidden_size": 16,
            "cond_embed_dim": 8,
            "micro_cond_encode_dim": 4,
            "micro_cond_embed_dim": 20,
            "encoder_hidden_size": 12,
            "vocab_size": 20,
            "codebook_size": 16,
            "in_channels": 8,
            "block_out_channels": 8,
            "num_res_blocks": 1,
            "block_num_heads": 2,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "sample_size": 4,
        },
        {"input_ids": _ids(20, 2, 4, 4), **_TEXT, "pooled_text_emb": (2, 8), "micro_conds": _uniform(2, 5)},
    ),
}

_UNET: dict[str, Any] = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
_CROSS: dict[str, Any] = {
    **_UNET,
    "in_channels": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
}
_UP: dict[str, Any] = {"out_channels": 4, "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
_CONTROL: dict[str, Any] = {**_CROSS, "conditioning_embedding_out_channels": (4, 4)}
_SAMPLE: dict[str, Spec] = {"sample": (2, 4, 8, 8), "timestep": _TIME}
_FRAMES: dict[str, Spec] = {"sample": (2, 4, 2, 8, 8), "timestep": _TIME, **_TEXT}
_NETS = "levels meet by concatenation"


def _controlled() -> nn.Module:
    return _Controlled(_made("UNet2DConditionModel", {**_CROSS, **_UP}), _made("ControlNetModel", _CONTROL))


_UNETS: dict[str, Net] = {
    "unet_1d": _net(
        "UNet1DModel",
        39,
        "3 residual blocks and 3 attentions in one of 3 levels each, 6 of each at the bottom, 3 concatenations",
        {
            "sample_size": 32,
            "block_out_channels": (32, 32, 64),
            "extra_in_channels": 64,
            "in_channels": 2,
            "out_channels": 2,
        },
        {"sample": (2, 2, 32), "timestep": _TIME},
    ),
    "unet_2d": _net(
        "UNet2DModel",
        16,
        f"a residual block and one with attention, 2 and attention at the bottom, 4 of which 2 with "
        f"attention; {_NETS}, 4 of them",
        {
            **_UNET,
            "attention_head_dim": 8,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
        {"sample": (2, 3, 8, 8), "timestep": _TIME},
    ),
    "unet_2d_condition": _net(
        "UNet2DConditionModel",
        28,
        f"8 residual blocks, 4 transformers of one branch with 3 nested joins; {_NETS}, 4 of them",
        {**_CROSS, **_UP},
        {**_SAMPLE, **_TEXT},
    ),
    "unet_3d_condition": _net(
        "UNet3DConditionModel",
        56,
        f"8 residual blocks with as many over time, 4 transformers of one branch with 3 nested joins, "
        f"as many over time and one more at the start; {_NETS}, 4 of them",
        {
            **_UNET,
            "cross_attention_dim": 12,
            "attention_head_dim": 2,
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        },
        _FRAMES,
    ),
    "unet_motion": _net(
        "UNetMotionModel",
        56,
        f"8 residual blocks, 4 transformers of one branch with 3 nested joins, 7 such motion modules; "
        f"{_NETS}, 4 of them",
        {
            **_UNET,
            "cross_attention_dim": 12,
            "num_attention_heads": 2,
            "motion_num_attention_heads": 2,
            "motion_max_seq_length": 4,
            "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
            "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
        },
        {**_FRAMES, "encoder_hidden_states": (4, 5, 12)},
    ),
    "unet_spatio_temporal": _net(
        "UNetSpatioTemporalConditionModel",
        64,
        f"8 residual blocks, one over space, one over time, and a blend of both; 4 transformers of "
        f"one branch with 9 nested joins; {_NETS}, 4 of them",
        {
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "cross_attention_dim": 12,
            "num_attention_heads": (2, 2),
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24,
            "in_channels": 4,
            "num_frames": 2,
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        },
        {
            "sample": (2, 2, 4, 8, 8),
            "timestep": _TIME,
            "encoder_hidden_states": (2, 1, 12),
            "added_time_ids": _uniform(2, 3),
        },
    ),
    "stable_cascade": _net(
        "StableCascadeUNet",
        8,
        "2 levels down and up of a residual block and attention; the earlier level is read inside a branch",
        {
            "in_channels": 4,
            "out_channels": 4,
            "timestep_ratio_embedding_dim": 8,
            "conditioning_dim": 12,
            "block_out_channels": (8, 16),
            "num_attention_heads": (2, 2),
            "down_num_layers_per_block": (1, 1),
            "up_num_layers_per_block": (1, 1),
            "clip_text_pooled_in_channels": 12,
            "dropout": (0.0, 0.0),
        },
        {"sample": (2, 4, 8, 8), "timestep_ratio": _uniform(2), "clip_text_pooled": (2, 1, 12)},
        "attn 4, conv 4",
    ),
    "controlnet": _net(
        "ControlNetModel",
        0,
        "4 residual blocks, 2 transformers of one branch with 3 nested joins; all that it gives is "
        "read by another net, and the first that is given is made ahead of all blocks",
        _CONTROL,
        {**_SAMPLE, **_TEXT, "controlnet_cond": (2, 3, 16, 16)},
    ),
    "controlled_unet": Net(
        _controlled,
        partial(_drawn, {**_SAMPLE, **_TEXT, "picture": (2, 3, 16, 16)}),
        36,
        "24 of the U-net, 12 of the copy of its encoder beside it; what is laid beside the stream is "
        "a piece of the state",
    ),
}

_AUTO: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
}
_LEVELS: dict[str, Any] = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
_WIDE: dict[str, Spec] = {"sample": (2, 3, 16, 16)}

_AUTOENCODERS: dict[str, Net] = {
    "kl": _net(
        "AutoencoderKL",
        12,
        "2 residual blocks, 2 and attention, 2 and attention, 4",
        {**_AUTO, **_LEVELS},
        _WIDE,
        "attn 2, conv 10",
    ),
    "vq": _net(
        "VQModel",
        12,
        "5 of the encoder, a stream that ends at a code book; 7 of the decoder, which reads that",
        {**_AUTO, **_LEVELS, "num_vq_embeddings": 12},
        _WIDE,
    ),
    "tiny": _net(
        "AutoencoderTiny",
        4,
        "2 blocks with a ReLU after each, of an encoder whose numbers are rounded, and 2 of the decoder",
        {
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
        },
        _WIDE,
        "conv 4",
    ),
    "dc": _net(
        "AutoencoderDC",
        6,
        "a residual block, attention and feed-forward, and the way back; averages beside "
        "convolutions alone are affine maps",
        {
            "latent_channels": 4,
            "attention_head_dim": 8,
            "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "encoder_block_out_channels": (8, 16),
            "decoder_block_out_channels": (8, 16),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "encoder_qkv_multiscales": ((), (5,)),
            "decoder_qkv_multiscales": ((), (5,)),
        },
        _WIDE,
    ),
    "kl_temporal_decoder": _net(
        "AutoencoderKLTemporalDecoder",
        20,
        "2 residual blocks, 2 and attention; 5 blocks of one over space, one over time, and a blend of both",
        {
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "latent_channels": 4,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
        },
        {"sample": (2, 3, 16, 16)},
        around=_fixed(num_frames=2),
    ),
    "kl_cogvideox": _net(
        "AutoencoderKLCogVideoX",
        11,
        "2 residual blocks, 2 at the bottom, 2 at the bottom, 4; norms of the decoder read the code, the last one in "
        "the head, which so reads two points, and forks at one where they lie side by side (first overlooked, 10)",
        {**_AUTO, "down_block_types": ("CogVideoXDownBlock3D",) * 2, "up_block_types": ("CogVideoXUpBlock3D",) * 2},
        {"sample": (2, 3, 1, 16, 16)},
    ),
    "kl_wan": _net(
        "AutoencoderKLWan",
        12,
        "2 residual blocks, 2 and attention, 2 and attention, 4",
        {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [False]},
        {"sample": (2, 3, 1, 16, 16)},
        "attn 2, conv 10",
    ),
    "kl_ltx": _net(
        "AutoencoderKLLTXVideo",
        8,
        "3 residual blocks and one that widens, 3 and one that narrows",
        {
            "latent_channels": 4,
            "block_out_channels": (8, 16),
            "decoder_block_out_channels": (8, 16),
            "layers_per_block": (1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1),
            "spatio_temporal_scaling": (True, False),
            "decoder_spatio_temporal_scaling": (True, False),
            "down_block_types": ("LTXVideoDownBlock3D",) * 2,
            "decoder_inject_noise": (False,) * 3,
            "downsample_type": ("conv",) * 2,
            "upsample_residual": (False,) * 2,
            "upsample_factor": (1, 1),
            "patch_size": 2,
        },
        {"sample": (2, 3, 1, 16, 16)},
    ),
    "oobleck": _net(
        "AutoencoderOobleck",
        12,
        "2 levels of 3 residual units each, down and up",
        {
            "encoder_hidden_size": 8,
            "downsampling_ratios": [2, 2],
            "channel_multiples": [1, 2],
            "decoder_channels": 8,
            "decoder_input_channels": 4,
            "audio_channels": 2,
        },
        {"sample": (2, 2, 64)},
        "conv 12",
    ),
}

NETS: dict[str, Net] = {**_DENOISERS, **_UNETS, **_AUTOENCODERS}
