"""Towers and nets with inputs of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.wall.by_hand.made import CODEC, STREAM, Inputs, Made, all_of, ids, normal, patched

_TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "vocab_size": 128}

_BLOCKS: Mapping[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "out_hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
}
_STACKED: Mapping[str, Any] = {
    **_BLOCKS,
    "patch_size": 4,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
_CONVOLVED: Mapping[str, Any] = {
    "num_filters": 4,
    "downsampling_ratios": [2, 2],
    "depths": [1, 1, 1],
    "hidden_size": 8,
}
_SERIES: Mapping[str, Any] = {
    **STREAM,
    "intermediate_size": 32,
    "head_dim": 8,
    "patch_length": 8,
    "context_length": 32,
    "horizon_length": 8,
}


def _grid() -> Inputs:
    """Two pictures of 4 × 4 patches of 4 × 4 points, twice in time."""
    return all_of(normal("hidden_states", 32, 96), grid_thw=torch.tensor([[1, 4, 4]] * 2))


def _places() -> torch.Tensor:
    """Where the 4 × 4 patches of two pictures are."""
    return torch.stack([torch.arange(16) % 4, torch.arange(16) // 4], -1).expand(2, 16, 2).clone()


MADE: Mapping[str, Made] = {
    "audio-spectrogram-transformer": Made(
        {
            **STREAM,
            "patch_size": 8,
            "frequency_stride": 8,
            "time_stride": 8,
            "max_length": 32,
            "num_mel_bins": 16,
        },
        normal("input_values", 2, 32, 16),
    ),
    "audioflamingo3_encoder": Made(
        {**STREAM, "num_mel_bins": 16, "max_source_positions": 16},
        all_of(normal("input_features", 2, 16, 32), input_features_mask=torch.ones(2, 32, dtype=torch.long)),
    ),
    "decision_transformer": Made(
        {"hidden_size": 32, "n_layer": 2, "n_head": 4, "state_dim": 5, "act_dim": 3, "max_ep_len": 32},
        all_of(
            normal("states", 2, 6, 5),
            normal("actions", 2, 6, 3),
            normal("rewards", 2, 6, 1),
            normal("returns_to_go", 2, 6, 1),
            timesteps=torch.arange(6).expand(2, 6).clone(),
            attention_mask=torch.ones(2, 6),
        ),
    ),
    "gemma3n_audio": Made(
        {
            "hidden_size": 32,
            "conf_num_attention_heads": 4,
            "conf_num_hidden_layers": 2,
            "input_feat_size": 16,
            "sscp_conv_channel_size": [8, 4],
        },
        all_of(normal("audio_mel", 2, 64, 16), audio_mel_mask=torch.zeros(2, 64, dtype=torch.bool)),
    ),
    "gemma4_audio": Made(
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "subsampling_conv_channels": [8, 4],
            "output_proj_dims": 32,
        },
        normal("input_features", 2, 64, 8),
    ),
    "gemma4_vision": Made(
        {
            **STREAM,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "patch_size": 4,
            "position_embedding_size": 16,
            "pooling_kernel_size": 2,
        },
        all_of(normal("pixel_values", 2, 16, 48), pixel_position_ids=_places()),
    ),
    "glm4v_moe_vision": Made({**_BLOCKS, "patch_size": 4, "image_size": 16}, _grid()),
    "glm4v_vision": Made({**_BLOCKS, "patch_size": 4, "image_size": 16}, _grid()),
    "glm_ocr_vision": Made({**_BLOCKS, "patch_size": 4, "image_size": 16}, _grid()),
    "glmasr_encoder": Made(
        {**STREAM, "num_mel_bins": 16, "num_key_value_heads": 4}, normal("input_features", 2, 16, 32)
    ),
    "mimi": Made(CODEC, normal("input_values", 2, 1, 64)),
    "mimi_encoder": Made(CODEC, normal("input_values", 2, 1, 64)),
    "pix2struct": Made(
        {
            "text_config": {
                "vocab_size": 128,
                "hidden_size": 32,
                "d_kv": 8,
                "d_ff": 48,
                "num_layers": 2,
                "num_heads": 4,
            },
            "vision_config": {**STREAM, "patch_embed_hidden_size": 48, "d_kv": 8, "d_ff": 48, "seq_len": 8},
        },
        lambda: {
            # The first two numbers of a patch are its row and its column.
            "flattened_patches": torch.cat(
                [
                    torch.arange(8.0)[None, :, None].expand(2, 8, 2),
                    normal("patches", 2, 8, 48)()["patches"],
                ],
                -1,
            ),
            **ids(2, 6, name="decoder_input_ids")(),
        },
    ),
    "qwen2_5_vl_vision": Made({**_BLOCKS, "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1]}, _grid()),
    "qwen3_5_vision": Made({**_BLOCKS, "patch_size": 4, "num_position_embeddings": 16}, _grid()),
    "qwen3_vl_moe_vision": Made(_STACKED, _grid()),
    "qwen3_vl_vision": Made(_STACKED, _grid()),
    "timesfm": Made(
        _SERIES,
        all_of(
            normal("past_values", 2, 32),
            past_values_padding=torch.zeros(2, 32, dtype=torch.long),
            freq=torch.zeros(2, 1, dtype=torch.long),
        ),
    ),
    "timesfm2_5": Made({**_SERIES, "num_key_value_heads": 4, "output_quantile_len": 8}, normal("past_values", 2, 32)),
    "wav2vec2-bert": Made(
        {**_TEXT, "num_hidden_layers": 2, "feature_projection_input_dim": 24, "output_hidden_size": 32},
        normal("input_features", 2, 20, 24),
    ),
    "xmod": Made({**_TEXT, "num_hidden_layers": 2, "languages": ["en_XX"], "default_language": "en_XX"}, ids()),
    "zamba": Made(
        {
            **_TEXT,
            "num_hidden_layers": 6,
            "num_key_value_heads": 2,
            "attention_head_dim": 32,
            "mamba_d_state": 8,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "use_mamba_kernels": False,
            "mamba_expand": 2,
            "n_mamba_heads": 2,
            "mamba_dt_rank": 4,
        },
        ids(),
    ),
    "zamba2": Made(
        {
            **_TEXT,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "attention_head_dim": 32,
            "mamba_d_state": 8,
            "layers_block_type": ["mamba", "hybrid", "mamba"],
            "use_mamba_kernels": False,
            "n_mamba_heads": 4,
            "mamba_headdim": 16,
            "mamba_ngroups": 1,
            "chunk_size": 8,
            "adapter_rank": 4,
            "num_mem_blocks": 1,
        },
        ids(),
    ),
    "seggpt": Made(
        {
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": [32, 16],
            "patch_size": 8,
            "mlp_dim": 48,
            "decoder_hidden_size": 8,
            "merge_index": 0,
            "intermediate_hidden_state_indices": [0, 1, 2, 3],
            "pretrain_image_size": 32,
        },
        lambda: (
            {**normal("pixel_values", 2, 3, 16, 16)(), **normal("prompt_pixel_values", 2, 3, 16, 16)()}
            | normal("prompt_masks", 2, 3, 16, 16)()
        ),
    ),
    "siglip2_vision_model": Made(
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 4,
            "num_patches": 16,
        },
        patched,
    ),
    "voxtral_realtime_encoder": Made(
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "num_mel_bins": 16,
        },
        normal("input_features", 2, 16, 32),
    ),
    "vibevoice_acoustic_tokenizer": Made(_CONVOLVED, normal("input_values", 2, 1, 64)),
    "vibevoice_acoustic_tokenizer_decoder": Made(_CONVOLVED, normal("hidden_states", 2, 8, 16)),
    "vibevoice_acoustic_tokenizer_encoder": Made(
        _CONVOLVED,
        normal("hidden_states", 2, 1, 64),
    ),
    "video_llama_3_vision": Made(
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 4,
        },
        lambda: (
            normal("pixel_values", 24, 48)() | {"grid_thw": torch.tensor([[1, 4, 6]]), "merge_sizes": torch.tensor([2])}
        ),
    ),
}
"""By kind of config."""
