"""Models of texts with pictures, or sounds, among the tokens: what holds a picture's place is a token of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.wall.by_hand.made import GROUPED, STREAM, TEXT, Inputs, Made, all_of, ids, normal, patched, uniform

PLACE = 127
"""The token whose embedding a part of a picture replaces."""

_SEEN: Mapping[str, Any] = {**STREAM, "image_size": 16, "patch_size": 8}
_SIGLIP: Mapping[str, Any] = {"model_type": "siglip_vision_model", **_SEEN, "vision_use_head": False}
_CLIP: Mapping[str, Any] = {"model_type": "clip_vision_model", **_SEEN, "projection_dim": 32}
_LLAMA: Mapping[str, Any] = {"model_type": "llama", **GROUPED, "pad_token_id": 0}
_OPT: Mapping[str, Any] = {
    "model_type": "opt",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "ffn_dim": 48,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "word_embed_proj_dim": 32,
}
_QUERIES: Mapping[str, Any] = {**TEXT, "encoder_hidden_size": 32, "cross_attention_frequency": 1}
_ROTARY: Mapping[str, Any] = {"rope_theta": 10000.0, "rope_type": "default", "mrope_section": [2, 1, 1]}
_TURNED: Mapping[str, Any] = {**GROUPED, "head_dim": 8, "rope_parameters": _ROTARY}
_GRID_SEEN: Mapping[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 4, "intermediate_size": 48}
_TOKENS: Mapping[str, int] = {"image_token_id": PLACE, "video_token_id": 126}
_VISION_TOKENS: Mapping[str, int] = {**_TOKENS, "vision_start_token_id": 125, "vision_end_token_id": 124}


def _pictured(parts: int, *shape: int, length: int = 10, **more: torch.Tensor) -> Inputs:
    """Two texts with as many parts of a picture from the second token on; 16 × 16 points if no shape is given."""

    def build() -> dict[str, torch.Tensor]:
        words = ids(2, length)()["input_ids"]
        words[:, 1 : 1 + parts] = PLACE
        return {"input_ids": words, **normal("pixel_values", *(shape or (2, 3, 16, 16)))(), **more}

    return build


def _marked(parts: int, length: int = 10) -> torch.Tensor:
    """1 where a picture is."""
    place = torch.arange(length)
    return ((place > 0) & (place <= parts)).long().expand(2, length).clone()


_GRID = _pictured(4, 32, 96, image_grid_thw=torch.tensor([[1, 4, 4]] * 2), mm_token_type_ids=_marked(4))

_SHUFFLED = Made(
    {
        "vision_config": {**_SEEN, "image_size": 32},
        "text_config": _LLAMA,
        "image_token_id": PLACE,
        "scale_factor": 2,
        "pad_token_id": 0,
    },
    _pictured(4, 2, 1, 3, 32, 32),
)
"""Four patches are one token."""

MADE: Mapping[str, Made] = {
    "aria": Made(
        {
            "vision_config": {"model_type": "idefics3_vision", **_SEEN},
            "text_config": {**GROUPED, "moe_num_experts": 4, "pad_token_id": 0},
            "image_token_index": PLACE,
            "projector_patch_to_query_dict": {4: 4},
        },
        _pictured(4),
    ),
    "aya_vision": Made(
        {
            "vision_config": {**_SIGLIP, "image_size": 32},
            "text_config": {"model_type": "cohere2", **GROUPED, "head_dim": 8},
            "image_token_index": PLACE,
        },
        _pictured(4, 2, 3, 32, 32),
    ),
    "blip-2": Made(
        {
            "vision_config": _SEEN,
            "qformer_config": _QUERIES,
            "text_config": _OPT,
            "num_query_tokens": 4,
            "image_token_index": PLACE,
            "image_text_hidden_size": 32,
        },
        _pictured(4),
    ),
    "blip_2_qformer": Made(
        _QUERIES, all_of(normal("query_embeds", 2, 4, 32), normal("encoder_hidden_states", 2, 6, 32))
    ),
    "clap": Made(
        {
            "text_config": {**TEXT, "projection_dim": 16},
            "audio_config": {
                "hidden_size": 32,
                "window_size": 4,
                "num_mel_bins": 16,
                "spec_size": 64,
                "patch_size": 4,
                "patch_stride": [4, 4],
                "depths": [2, 2],
                "num_attention_heads": [2, 2],
                "patch_embeds_hidden_size": 16,
                "projection_dim": 16,
            },
            "projection_dim": 16,
        },
        all_of(ids(), normal("input_features", 2, 1, 64, 16)),
    ),
    "gemma3": Made(
        {
            "vision_config": _SIGLIP,
            "text_config": {
                **GROUPED,
                "head_dim": 8,
                "layer_types": ["sliding_attention", "full_attention"],
                "sliding_window": 6,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": PLACE,
            "boi_token_index": 125,
            "eoi_token_index": 126,
        },
        _pictured(4, token_type_ids=_marked(4)),
    ),
    "git": Made({"vision_config": _SEEN, **TEXT}, all_of(ids(), normal("pixel_values", 2, 3, 16, 16))),
    "glm4v": Made(
        {
            "text_config": _TURNED,
            "vision_config": {**_GRID_SEEN, "hidden_size": 32, "out_hidden_size": 32, "image_size": 16},
            **_TOKENS,
            "image_start_token_id": 125,
            "image_end_token_id": 124,
        },
        _GRID,
    ),
    "idefics": Made(
        {
            **TEXT,
            "num_key_value_heads": 4,
            "additional_vocab_size": 0,
            "cross_layer_interval": 1,
            "use_resampler": False,
            "vision_config": {
                "embed_dim": 32,
                "image_size": 16,
                "patch_size": 8,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
            },
            "perceiver_config": {},
        },
        all_of(
            ids(),
            normal("pixel_values", 2, 1, 3, 16, 16),
            image_attention_mask=torch.ones(2, 10, 1, dtype=torch.long),
            attention_mask=torch.ones(2, 10, dtype=torch.long),
        ),
    ),
    "idefics3": _SHUFFLED,
    "instructblip": Made(
        {
            "vision_config": _SEEN,
            "qformer_config": _QUERIES,
            "text_config": _OPT,
            "num_query_tokens": 4,
            "image_token_index": PLACE,
        },
        all_of(_pictured(4), ids(name="qformer_input_ids")),
    ),
    "internvl": Made(
        {
            "vision_config": {**STREAM, "image_size": [32, 32], "patch_size": [8, 8]},
            "text_config": {"model_type": "qwen2", **GROUPED},
            "image_token_id": PLACE,
            "image_seq_length": 4,
        },
        _pictured(4, 2, 3, 32, 32),
    ),
    "janus": Made(
        {
            "vision_config": {"model_type": "janus_vision_model", **_SEEN, "num_image_tokens": 4, "projection_dim": 32},
            "vq_config": {
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
                "num_embeddings": 16,
                "embed_dim": 4,
                "latent_channels": 8,
                "num_hidden_layers": 2,
                "hidden_size": 16,
                "image_token_embed_dim": 16,
                "projection_dim": 16,
                "num_patches": 8,
            },
            "text_config": _LLAMA,
            "image_token_id": PLACE,
        },
        _pictured(4),
    ),
    "kosmos-2": Made(
        {
            "vision_config": _SEEN,
            "text_config": {"vocab_size": 128, "embed_dim": 32, "layers": 2, "ffn_dim": 48, "attention_heads": 4},
            "latent_query_num": 4,
        },
        _pictured(4, image_embeds_position_mask=_marked(4)),
    ),
    "lfm2_vl": Made(
        {
            "vision_config": {**STREAM, "patch_size": 4, "num_patches": 16},
            "text_config": {**GROUPED, "layer_types": ["conv", "full_attention"]},
            "image_token_id": PLACE,
            "projector_hidden_size": 32,
        },
        _pictured(
            4,
            2,
            16,
            48,
            spatial_shapes=torch.tensor([[4, 4]] * 2),
            pixel_attention_mask=torch.ones(2, 16, dtype=torch.long),
        ),
    ),
    "llava": Made(
        {"vision_config": _CLIP, "text_config": _LLAMA, "image_token_index": PLACE, "image_seq_length": 4}, _pictured(4)
    ),
    "llava_next": Made(
        {
            "vision_config": _CLIP,
            "text_config": _LLAMA,
            "image_token_index": PLACE,
            "image_seq_length": 4,
            "image_grid_pinpoints": [[16, 32], [32, 16], [32, 32]],
        },
        _pictured(14, 2, 3, 3, 16, 16, length=18, image_sizes=torch.tensor([[16, 32]] * 2)),
    ),
    "llava_onevision": Made(
        {
            "vision_config": _SIGLIP,
            "text_config": {"model_type": "qwen2", **GROUPED},
            "image_token_index": PLACE,
            "image_grid_pinpoints": [[16, 16], [16, 32]],
        },
        _pictured(10, 2, 2, 3, 16, 16, length=14, image_sizes=torch.tensor([[16, 16]] * 2)),
    ),
    "mistral3": Made(
        {
            "vision_config": {"model_type": "pixtral", **STREAM, "image_size": 32, "patch_size": 8, "head_dim": 8},
            "text_config": {"model_type": "mistral", **GROUPED, "head_dim": 8},
            "image_token_index": PLACE,
            "spatial_merge_size": 2,
        },
        _pictured(4, 2, 3, 32, 32, image_sizes=torch.tensor([[32, 32]] * 2)),
    ),
    "paligemma": Made(
        {
            "vision_config": {**_SIGLIP, "projection_dim": 32},
            "text_config": {"model_type": "gemma", **GROUPED, "head_dim": 8},
            "image_token_index": PLACE,
            "projection_dim": 32,
            "hidden_size": 32,
        },
        # As its processor gives it; without, two of its kernels disagree on what is masked.
        _pictured(4, token_type_ids=torch.zeros(2, 10, dtype=torch.long)),
    ),
    "qwen2_vl": Made(
        {
            "text_config": _TURNED,
            "vision_config": {**_GRID_SEEN, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
            **_VISION_TOKENS,
        },
        _GRID,
    ),
    "qwen2_5_vl": Made(
        {
            "text_config": _TURNED,
            "vision_config": {
                **_GRID_SEEN,
                "hidden_size": 32,
                "out_hidden_size": 32,
                "window_size": 16,
                "fullatt_block_indexes": [1],
            },
            **_VISION_TOKENS,
        },
        _GRID,
    ),
    "qwen3_vl": Made(
        {
            "text_config": _TURNED,
            "vision_config": {
                **_GRID_SEEN,
                "hidden_size": 32,
                "out_hidden_size": 32,
                "deepstack_visual_indexes": [0],
                "num_position_embeddings": 16,
            },
            **_VISION_TOKENS,
        },
        _GRID,
    ),
    "siglip2": Made(
        {"vision_config": {**STREAM, "patch_size": 4, "num_patches": 16}},
        patched,
    ),
    "smolvlm": _SHUFFLED,
    "udop": Made(
        {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": 128,
            "image_size": 16,
            "patch_size": 8,
            "max_2d_position_embeddings": 64,
        },
        all_of(ids(), ids(name="decoder_input_ids"), uniform("bbox", 2, 10, 4)),
    ),
    "xclip": Made(
        {
            "text_config": TEXT,
            "vision_config": {
                **_SEEN,
                "num_frames": 2,
                "mit_hidden_size": 32,
                "mit_intermediate_size": 48,
                "mit_num_attention_heads": 4,
            },
            "projection_dim": 32,
            "prompt_num_attention_heads": 4,
        },
        all_of(ids(), normal("pixel_values", 2, 2, 3, 16, 16)),
    ),
}
"""By kind of config."""
