"""Models of texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.wall.by_hand.made import CODEC, GROUPED, TEXT, Made, all_of, ids, uniform

_EXPERTS: Mapping[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_ROUTED: Mapping[str, Any] = {**_EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
_LATENT: Mapping[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
_PER_LAYER: Mapping[str, Any] = {
    "head_dim": 8,
    "vocab_size_per_layer_input": 128,
    "hidden_size_per_layer_input": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}
_SPOKEN: Mapping[str, Any] = {**GROUPED, "vocab_size": 32, "num_codebooks": 3, "head_dim": 8}
_MUSIC: Mapping[str, Any] = {**TEXT, "ffn_dim": 48, "num_codebooks": 2}

MADE: Mapping[str, Made] = {
    "bros": Made(
        {**TEXT, "dim_bbox_sinusoid_emb_2d": 16, "dim_bbox_sinusoid_emb_1d": 2, "dim_bbox_projection": 8},
        all_of(ids(), uniform("bbox", 2, 10, 8)),
    ),
    "csm": Made(
        {
            **_SPOKEN,
            "text_vocab_size": 128,
            "codebook_pad_token_id": 30,
            "codebook_eos_token_id": 0,
            "audio_token_id": 126,
            "audio_eos_token_id": 127,
            "depth_decoder_config": {**_SPOKEN, "backbone_hidden_size": 32, "max_position_embeddings": 8},
            "codec_config": CODEC,
        },
        ids(2, 6, 3, most=30),
    ),
    "dbrx": Made(
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "vocab_size": 128,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        }
    ),
    "deepseek_v2": Made({**TEXT, **_LATENT, **_ROUTED}),
    "dia": Made(
        {
            "encoder_config": {**TEXT, "num_key_value_heads": 4, "head_dim": 8},
            "decoder_config": {
                **GROUPED,
                "head_dim": 8,
                "cross_num_attention_heads": 4,
                "cross_head_dim": 8,
                "cross_num_key_value_heads": 4,
                "cross_hidden_size": 32,
                "num_channels": 3,
            },
            "delay_pattern": [0, 1, 2],
            "pad_token_id": 120,
            "eos_token_id": 121,
            "bos_token_id": 122,
        },
        all_of(ids(), ids(2, 6, 3, name="decoder_input_ids")),
    ),
    "dots1": Made({**GROUPED, **_ROUTED, "max_window_layers": 1, "sliding_window": 4}),
    "embedding_gemma2_text": Made({**GROUPED, **_PER_LAYER}),
    "ernie4_5_moe": Made(
        {**GROUPED, "moe_intermediate_size": 16, "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1}
    ),
    "esm": Made(
        {
            **TEXT,
            "pad_token_id": 1,
            "mask_token_id": 2,
            "token_dropout": True,
            "position_embedding_type": "rotary",
            "emb_layer_norm_before": False,
        }
    ),
    "gemma4_text": Made({**GROUPED, **_PER_LAYER}),
    "gemma4_unified_text": Made({**GROUPED, **_PER_LAYER}),
    "gpt_neo": Made(
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": 128,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
        }
    ),
    "granitemoehybrid": Made(
        {
            **GROUPED,
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 4,
            "shared_intermediate_size": 16,
            "mamba_n_heads": 4,
            "mamba_d_state": 8,
            "mamba_d_head": 16,
            "mamba_chunk_size": 8,
            "residual_multiplier": 0.7,
        }
    ),
    "lfm2_moe": Made(
        {**GROUPED, **_EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1, "num_experts": 4}
    ),
    "mamba2": Made(
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "vocab_size": 128,
            "num_heads": 4,
            "head_dim": 16,
            "state_size": 8,
            "n_groups": 2,
            "chunk_size": 8,
        }
    ),
    "mimo_v2_flash": Made(
        {
            **GROUPED,
            **_EXPERTS,
            "n_routed_experts": 4,
            "head_dim": 12,
            "v_head_dim": 8,
            "layer_types": ["full_attention", "sliding_attention"],
            "mlp_layer_types": ["dense", "sparse"],
            "sliding_window": 4,
        }
    ),
    "mistral4": Made({**TEXT, **_LATENT, **_ROUTED, "head_dim": 16}),
    "musicgen": Made(_MUSIC, ids(4, 10)),
    "musicgen_melody": Made(_MUSIC, ids(4, 10)),
    "nemotron": Made({**GROUPED, "head_dim": 8}),
    "nemotron_h": Made(
        {
            **GROUPED,
            "layers_block_type": ["mamba", "moe", "attention", "mlp"],
            "head_dim": 8,
            "ssm_state_size": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "chunk_size": 8,
            "n_routed_experts": 4,
            "moe_intermediate_size": 16,
            "moe_shared_expert_intermediate_size": 16,
            "use_mamba_kernels": False,
        }
    ),
    "neomme": Made(GROUPED),
    "reformer": Made(
        {
            "is_decoder": True,
            "hidden_size": 32,
            "attention_head_size": 8,
            "num_attention_heads": 4,
            "feed_forward_size": 48,
            "vocab_size": 128,
            "attn_layers": ["local", "local"],
            "axial_pos_embds": False,
            "max_position_embeddings": 64,
            "local_attn_chunk_length": 4,
        },
        ids(2, 12),
    ),
}
"""By kind of config."""
