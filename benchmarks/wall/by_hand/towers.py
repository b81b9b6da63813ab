"""Towers and nets with inputs of their own."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from benchmarks.wall.by_hand.made import Made, ids, normal

_TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "vocab_size": 128}

MADE: Mapping[str, Made] = {
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
        lambda: (
            normal("pixel_values", 2, 16, 48)()
            | {
                "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long),
                "spatial_shapes": torch.tensor([[4, 4], [2, 8]]),
            }
        ),
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
    "vibevoice_acoustic_tokenizer_encoder": Made(
        {"num_filters": 4, "downsampling_ratios": [2, 2], "depths": [1, 1, 1], "hidden_size": 8},
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
