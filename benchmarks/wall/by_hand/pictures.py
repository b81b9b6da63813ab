"""Models of pictures on a backbone: detectors, masks, depth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.wall.by_hand.made import STREAM, TEXT, Inputs, Made, all_of, ids, normal

_LEVELS = ["stage1", "stage2", "stage3", "stage4"]
_RESNET: Mapping[str, Any] = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": _LEVELS,
}
_LAST_THREE: Mapping[str, Any] = {**_RESNET, "out_features": _LEVELS[1:]}
_HGNET: Mapping[str, Any] = {
    "model_type": "hgnet_v2",
    "embedding_size": 8,
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 16, 16, 16],
    "stage_mid_channels": [8, 8, 8, 8],
    "stage_out_channels": [16, 16, 16, 16],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [1, 1, 1, 1],
    "hidden_sizes": [16, 16, 16, 16],
    "depths": [1, 1, 1, 1],
    "out_features": _LEVELS[1:],
}
_SWIN: Mapping[str, Any] = {
    "model_type": "swin",
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
    "out_features": _LEVELS,
}
_QUERIES: Mapping[str, Any] = {
    "num_queries": 5,
    "encoder_layers": 2,
    "encoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_layers": 2,
    "decoder_ffn_dim": 48,
    "decoder_attention_heads": 4,
}
_DETR: Mapping[str, Any] = {"backbone_config": _RESNET, "d_model": 32, **_QUERIES}
_RT_DETR: Mapping[str, Any] = {
    "backbone_config": {**_LAST_THREE, "model_type": "rt_detr_resnet"},
    **_QUERIES,
    "encoder_layers": 1,
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [16, 16, 16],
    "d_model": 32,
    "decoder_in_channels": [32, 32, 32],
    "num_denoising": 0,
    "hidden_expansion": 0.5,
}
_FOUR: Mapping[str, Any] = {**STREAM, "num_hidden_layers": 4, "image_size": 32, "patch_size": 8}
_EFFICIENT: Mapping[str, Any] = {
    "width_coefficient": 0.5,
    "depth_coefficient": 1.0,
    "depth_divisor": 4,
    "num_block_repeats": [1, 2, 2, 1, 1, 2, 1],
    "hidden_dim": 640,
    "image_size": 64,
}
_DINO: Mapping[str, Any] = {
    "model_type": "dinov2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "mlp_ratio": 2,
    "image_size": 32,
    "patch_size": 8,
}
_ONE_LEVEL: Mapping[str, Any] = {
    "d_model": 32,
    "decoder_ffn_dim": 48,
    "decoder_n_points": 2,
    "decoder_layers": 2,
    "decoder_self_attention_heads": 4,
    "decoder_cross_attention_heads": 4,
    "num_queries": 5,
    "group_detr": 1,
    "c2f_num_blocks": 1,
}
_FUSED: Mapping[str, Any] = {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16}


def _pixels(side: int) -> Inputs:
    return normal("pixel_values", 2, 3, side, side)


MADE: Mapping[str, Made] = {
    "conditional_detr": Made(_DETR, _pixels(64)),
    "d_fine": Made({**_RT_DETR, "backbone_config": _HGNET}, _pixels(64)),
    "dab-detr": Made({"backbone_config": _RESNET, "hidden_size": 32, **_QUERIES}, _pixels(64)),
    "deformable_detr": Made(
        {
            **_DETR,
            "backbone_config": _LAST_THREE,
            "num_feature_levels": 3,
            "encoder_n_points": 2,
            "decoder_n_points": 2,
        },
        _pixels(64),
    ),
    "depth_pro": Made(
        {
            "fusion_hidden_size": 16,
            "patch_size": 32,
            "intermediate_hook_ids": [1, 0],
            "intermediate_feature_dims": [16, 16],
            "scaled_images_ratios": [0.5, 1.0],
            "scaled_images_overlap_ratios": [0.0, 0.5],
            "scaled_images_feature_dims": [16, 16],
            **{f"{of}_model_config": {**_DINO, "out_features": ["stage2"]} for of in ("image", "patch", "fov")},
        },
        _pixels(64),
    ),
    "detr": Made(_DETR, _pixels(64)),
    "dpt": Made({**_FOUR, **_FUSED, "backbone_out_indices": [0, 1, 2, 3]}, _pixels(32)),
    "efficientnet": Made(_EFFICIENT, _pixels(64)),
    "grounding-dino": Made(
        {
            **_QUERIES,
            "backbone_config": {**_SWIN, "out_features": _LEVELS[1:]},
            "text_config": TEXT,
            "d_model": 32,
            "num_feature_levels": 3,
            "encoder_n_points": 2,
            "decoder_n_points": 2,
            "max_text_len": 16,
        },
        all_of(_pixels(64), ids()),
    ),
    "lw_detr": Made(
        {
            **_ONE_LEVEL,
            "backbone_config": {
                **_DINO,
                "model_type": "lw_detr_vit",
                "image_size": 64,
                "pretrain_image_size": 32,
                "window_block_indices": [0],
                "num_windows": 4,
                "num_windows_side": 2,
                "out_features": _LEVELS[:2],
            },
            "projector_scale_factors": [1.0],
            "projector_in_channels": [32, 32],
            "projector_out_channels": 32,
            "num_feature_levels": 1,
        },
        _pixels(64),
    ),
    "mask2former": Made(
        {
            "backbone_config": _SWIN,
            "feature_size": 32,
            "mask_feature_size": 32,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 48,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "num_attention_heads": 4,
            "dim_feedforward": 48,
            "num_queries": 5,
        },
        _pixels(64),
    ),
    "mgp-str": Made(
        {
            **STREAM,
            "image_size": [16, 32],
            "patch_size": 4,
            "max_token_length": 5,
            "num_character_labels": 10,
            "num_bpe_labels": 20,
            "num_wordpiece_labels": 20,
        },
        normal("pixel_values", 2, 3, 16, 32),
    ),
    "pixio": Made({**STREAM, "image_size": 32, "patch_size": 8}, _pixels(32)),
    "rf_detr": Made(
        {
            **_ONE_LEVEL,
            "backbone_config": {
                **_DINO,
                "model_type": "rf_detr_dinov2",
                "num_windows": 2,
                "window_block_indexes": [0],
                "out_features": _LEVELS[:2],
            },
        },
        _pixels(32),
    ),
    "rt_detr": Made(_RT_DETR, _pixels(64)),
    "rt_detr_v2": Made(_RT_DETR, _pixels(64)),
    "table-transformer": Made(_DETR, _pixels(64)),
    "upernet": Made({"backbone_config": _RESNET, "hidden_size": 16, "use_auxiliary_head": False}, _pixels(64)),
    "zoedepth": Made(
        {
            "backbone_config": {
                **_FOUR,
                "model_type": "beit",
                "use_relative_position_bias": True,
                "out_features": _LEVELS,
                "reshape_hidden_states": False,
            },
            **_FUSED,
            "bottleneck_features": 16,
            "num_relative_features": 8,
            "bin_embedding_dim": 16,
            "num_attractors": [4, 2, 2, 1],
            "bin_configurations": [{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}],
        },
        _pixels(32),
    ),
}
"""By kind of config."""
