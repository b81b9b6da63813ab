"""x_transformers: one net for each option that changes what a layer or the stream is."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from x_transformers import (
    ContinuousTransformerWrapper,
    Decoder,
    Encoder,
    NeoMLP,
    TransformerWrapper,
    ViTransformerWrapper,
    XTransformer,
    XValTransformerWrapper,
)
from x_transformers.multi_input import MultiInputTransformerWrapper
from x_transformers.x_transformers import PrefixDecoder

from benchmarks.wall.libraries import Net

VOCABULARY, WIDTH, LENGTH = 17, 24, 6
BLOCKS = "attention and feed-forward of each of 2 blocks"
KINDS = "attn 2, mlp 2"


def stirred(model: nn.Module, scale: float = 0.1) -> nn.Module:
    """A model of which no weight is left at zero or one, as many start here."""
    with torch.no_grad():
        for weight in model.parameters():
            weight += scale * torch.randn_like(weight)
    return model


def language(
    layers: Callable[..., nn.Module] = Decoder, around: dict[str, Any] | None = None, **options: Any
) -> nn.Module:
    """A small language model with these layers; `around` is for its wrapper."""
    options = {"dim": WIDTH, "depth": 2, "heads": 3, "attn_dim_head": 8, "verbose": False, **options}
    wrapper: dict[str, Any] = {"num_tokens": VOCABULARY, "max_seq_len": 16, **(around or {})}
    return stirred(TransformerWrapper(attn_layers=layers(**options), **wrapper))


def tokens(**others: Callable[[], Any]) -> dict[str, Any]:
    """Two rows of tokens, and what else is given."""
    return {"x": torch.randint(0, VOCABULARY, (2, LENGTH)), **{name: make() for name, make in others.items()}}


def vectors(*shape: int) -> Callable[[], Tensor]:
    """Random numbers of a shape."""
    return partial(torch.randn, *shape)


class Called(nn.Module):
    """A model that is called in a way of its own, with tensors by name."""

    def __init__(self, model: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, **tensors: Tensor) -> Any:
        return self.call(self.model, **tensors)


def _net(
    joins: int = 4, read: str = BLOCKS, kinds: str = KINDS, call: Callable[..., Any] | None = None, **options: Any
) -> Net:
    """A language model with options; what begins with `given_` is made anew for each call."""
    given = {name[6:]: options.pop(name) for name in list(options) if name.startswith("given_")}

    def build() -> nn.Module:
        model = language(**options)
        return model if call is None else Called(model, call)

    return Net(build, partial(tokens, **given), joins, read, kinds)


STREAM: dict[str, Net] = {
    "pre_norm": _net(),
    "post_norm": _net(pre_norm=False),
    "sandwich_norm": _net(sandwich_norm=True),
    "pre_and_post_norm": _net(pre_and_post_norm=True),
    "macaron": _net(6, "half feed-forward, attention, half feed-forward in 2 blocks", "attn 2, mlp 4", macaron=True),
    "sandwich_coef": _net(6, "order aa ff af", "attn 3, mlp 3", depth=3, sandwich_coef=1),
    "par_ratio": _net(8, "4 attention layers, then 4 feed-forwards", "attn 4, mlp 4", depth=4, par_ratio=2),
    "weight_tied": _net(6, "the same block three times", "attn 3, mlp 3", depth=3, weight_tie_layers=True),
    "execute_order": _net(6, "layers 0 1 0 1 2 3", "attn 3, mlp 3", layers_execute_order=(0, 1, 0, 1, 2, 3)),
    "gru_gate": _net(read="GRUCell(f(h), h) at each layer: z h + (1 - z) n, gated", gate_residual=True),
    "gru_gate_scaled": _net(read="GRUCell(f(h), s h), gated", gate_residual=True, scale_residual=True),
    "scale_residual": _net(read="s h + f(h)", scale_residual=True),
    "scale_constant": _net(read="0.5 h + f(h)", scale_residual_constant=0.5),
    "scale_branch": _net(read="h + 0.7 f(h)", depth_scale_residual=0.7),
    "orthogonal": _net(read="h + f(h) less its part along h: gated", orthog_residual=True),
    "mean_variance": _net(read="h - a mean(h) + b (f - mean f) + a mean f", mv_split_residual=True),
    "mean_variance_learned": _net(
        read="h - a(mean f) mean(h) + ...: gated", mv_split_residual=True, residual_fn_kwargs={"learned": True}
    ),
    "hyper_connections": _net(read="A(h) h + b(h) f(...) with 3 streams: gated", num_residual_streams=3),
    "hyper_connections_views": _net(
        read="as before; queries, keys and values read mixtures of their own",
        num_residual_streams=3,
        qkv_receive_diff_residuals=True,
    ),
    "gated_multi_residual": _net(
        read="h + b(h) f(gates of h) with 3 streams: the skip is an identity",
        num_residual_streams=3,
        gated_multi_residual=True,
        residual_fn_kwargs={"read_gate_rank": 4},
    ),
    # Read as 4 at first: the list of all h, of which layers read mixtures, is a stream beside it that grows.
    "integrate_layers": _net(7, "h + f(mixtures of all h so far), and the list of these", "", integrate_layers=True),
    "attn_residuals": _net(
        11,  # read as 4 at first: the list of all h (3), and h + W norm(h), of which queries are made, in each layer
        "h + f(attention over all h so far), and the list of these",
        "",
        attn_aggregated_residuals=True,
        attn_aggregated_residual_kwargs={"lora_rank": 4},
    ),
    "unet_skips": _net(
        10,
        "attention and feed-forward of 4 blocks, and W cat(earlier, h) before blocks 2 and 3",
        depth=4,
        unet_skips=True,
        kinds="",
    ),
    # Read as 4 at first: what the first layer reads is e + W e, a sum of its own inside the branch.
    "reinject_input": _net(5, "h + f(norm(h + W e))", "", reinject_input=True),
    "reinject_gate": _net(5, "h + f(norm(h + g(e) W e))", "", reinject_input=True, learned_reinject_input_gate=True),
    "residual_attention": _net(read="scores of a layer are added to the next one's: none", residual_attn=True),
    "value_residual": _net(
        read="values of layer 0 are mixed into those of the next one: none",
        add_value_residual=True,
        learned_value_residual_mix=True,
    ),
    "value_residual_half": _net(add_value_residual=True, learned_value_residual_mix=False),
    "shift_tokens": _net(shift_tokens=1),
    "softclamp_output": _net(softclamp_output=True),
    "layer_scale": _net(use_layerscale=True),
    "adaptive_norm": _net(use_adaptive_layernorm=True, given_condition=vectors(2, WIDTH)),
    "adaptive_rms": _net(use_adaptive_rmsnorm=True, adaptive_condition_mlp=True, given_condition=vectors(2, WIDTH)),
    "adaptive_scale": _net(use_adaptive_layerscale=True, given_condition=vectors(2, WIDTH)),
    "scale_norm": _net(use_scalenorm=True),
    "rms_norm": _net(use_rmsnorm=True),
    "simple_rms": _net(use_simple_rmsnorm=True),
    "dynamic_tanh": _net(use_dynamic_tanh=True),
    "derf": _net(use_derf=True),
    "attention_only": _net(2, "attention of 2 blocks", "attn 2", only_attn=True),
    "cross": _net(
        6,
        "self-attention, cross-attention, feed-forward in 2 blocks",
        "attn 4, mlp 2",
        cross_attend=True,
        given_context=vectors(2, 5, WIDTH),
    ),
    "cross_residual": _net(
        6,
        "as cross; scores are added to the next layer's",
        "attn 4, mlp 2",
        cross_attend=True,
        cross_residual_attn=True,
        given_context=vectors(2, 5, WIDTH),
    ),
    "custom_layers": _net(5, "layers a f f a f", "attn 2, mlp 3", depth=None, custom_layers=("a", "f", "f", "a", "f")),
    "encoder": _net(layers=Encoder),
    "prefix_decoder": _net(layers=PrefixDecoder),
}

ATTENTION: dict[str, dict[str, Any]] = {
    "on_attn": {"attn_on_attn": True},
    "gate_values": {"attn_gate_values": True},
    "gate_heads": {"attn_gate_value_heads": True},
    "swiglu_values": {"attn_gate_values": True, "attn_swiglu_values": True},
    "output_gate": {"attn_output_gate": True, "attn_output_gate_rank": 4},
    "head_scale": {"attn_head_scale": True},
    "talking_heads": {"attn_pre_talking_heads": True, "attn_post_talking_heads": True},
    "talking_after": {"attn_pre_scale_post_talking_heads": True},
    "memory_kv": {"attn_num_mem_kv": 3},
    "sparse_topk": {"attn_sparse_topk": 2},
    "hard": {"attn_hard": True},
    "sigmoid": {"attn_sigmoid": True},
    "l2_distance": {"attn_l2_distance": True},
    "selective": {"attn_selective": True},
    "cog_signed": {"attn_cog_signed": True},
    "one_kv_head": {"attn_one_kv_head": True},
    "grouped": {"heads": 4, "attn_kv_heads": 2},
    "latent": {
        "heads": 4,
        "attn_use_latent_q": True,
        "attn_dim_latent_q": 12,
        "attn_use_latent_kv": True,
        "attn_dim_latent_kv": 8,
        "attn_latent_rope_subheads": 2,
        "rotary_pos_emb": True,
    },
    "forgetting": {"attn_data_dependent_alibi": True},
    "forgetting_rows": {"attn_data_dependent_alibi": True, "attn_data_dependent_alibi_per_row": True},
    "relative_projected": {"attn_use_rel_proj_pos_bias": True},
    "cope": {"attn_use_cope": True, "attn_cope_max_pos": 8},
    "softclamp": {"attn_softclamp_logits": True},
    "laser": {"attn_laser": True},
    "belief": {"attn_orthog_projected_values": True, "attn_orthog_projected_values_per_head": True},
    "qk_norm": {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True},
    "qk_rms": {"attn_qk_rmsnorm": True},
    "value_rms": {"attn_value_rmsnorm": True},
    "zero_kv": {"attn_add_zero_kv": True},
    "sink": {"attn_head_learned_sink": True},
    "local": {"attn_max_attend_past": 2},
    "flash": {"attn_flash": True},
    "rotary": {"rotary_pos_emb": True},
    "xpos": {"rotary_xpos": True},
    "polar": {"polar_pos_emb": True},
    "alibi": {"alibi_pos_bias": True},
    "t5_bias": {"rel_pos_bias": True},
    "dynamic_bias": {"dynamic_pos_bias": True},
    "glu": {"ff_glu": True, "ff_swish": True},
    "glu_clamped": {"ff_glu": True, "ff_glu_softclamp": True, "ff_glu_mult_bias": True},
    "relu_squared": {"ff_relu_squared": True},
    "solu": {"ff_solu": True},
    "after_act_norm": {"ff_post_act_ln": True},
}
"""Options of attention, of positions and of feed-forwards: the joins are those of two blocks."""

AROUND: dict[str, Net] = {
    "memory_tokens": _net(around={"num_memory_tokens": 3}),
    "memory_between": _net(around={"num_memory_tokens": 2, "memory_tokens_interspersed_every": 3}),
    "deep_embed": _net(around={"ff_deep_embed": True}),
    "narrow_embedding": _net(around={"emb_dim": 12, "post_emb_norm": True}),
    "sinusoidal": _net(around={"scaled_sinu_pos_emb": True, "tie_embedding": True}),
    "cosine_embedding": _net(around={"l2norm_embed": True}),
    "mixture_of_softmax": _net(around={"mixture_of_softmax": True, "mixture_of_softmax_k": 2}),
    "sig_softmax": _net(around={"sigsoftmax_logits": True}),
    "cls_token": _net(layers=Encoder, around={"use_cls_token": True}),
    "attn_pool": _net(layers=Encoder, around={"attn_pool": True}),
    "attn_pool_deep": _net(
        7,  # read as 8 at first: the queries are constants, to which the first cross-attention is added
        "2 blocks of the encoder, and 2 of the pool, whose stream starts at its first sum",
        "",
        layers=Encoder,
        around={"attn_pool": True, "attn_pool_depth": 2},
    ),
    "average_pool": _net(layers=Encoder, around={"average_pool_embed": True}),
    "token_types": _net(
        around={"embed_num_tokens": {"type": 3}},
        given_types=lambda: torch.randint(0, 3, (2, LENGTH)),
        call=lambda model, x, types: model(x, embed_ids={"type": types}),
    ),
    "recycling": _net(
        14,
        "3 rounds of 2 blocks, each from e + W norm(h) of the round before",
        "",
        around={"recycling": True},
        call=lambda model, x: model(x, recycle_steps=3),
    ),
    "looped": _net(
        8,
        "2 blocks with norms before and after, twice",
        "attn 4, mlp 4",
        pre_and_post_norm=True,
        around={"looped": True},
        call=lambda model, x: model(x, looped_steps=2),
    ),
}


def _layers(kind: Callable[..., nn.Module] = Encoder, **options: Any) -> nn.Module:
    return kind(**{"dim": WIDTH, "depth": 2, "heads": 3, "attn_dim_head": 8, "verbose": False, **options})


def _two_stacks() -> nn.Module:
    small = {"depth": 2, "heads": 3, "attn_dim_head": 8, "num_tokens": VOCABULARY, "max_seq_len": 16, "verbose": False}
    both = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in small.items()}
    return stirred(XTransformer(dim=WIDTH, **both))


OTHERS: dict[str, Net] = {
    "vit": Net(
        lambda: stirred(
            ViTransformerWrapper(
                image_size=16,
                patch_size=8,
                num_classes=5,
                num_register_tokens=2,
                attn_layers=_layers(),
                post_emb_norm=True,
            )
        ),
        lambda: {"img": torch.randn(2, 3, 16, 16)},
        4,
        BLOCKS,
        KINDS,
    ),
    "encoder_decoder": Net(
        _two_stacks,
        lambda: {
            "src": torch.randint(0, VOCABULARY, (2, 5)),
            "tgt": torch.randint(0, VOCABULARY, (2, LENGTH + 1)),
        },
        10,
        "2 blocks of the encoder (2 joins) and 2 of the decoder (3); the output is a loss",
        "attn 6, mlp 4",
    ),
    "continuous": Net(
        lambda: stirred(
            ContinuousTransformerWrapper(max_seq_len=16, attn_layers=_layers(Decoder), dim_in=5, dim_out=4)
        ),
        lambda: {"x": torch.randn(2, LENGTH, 5)},
        4,
        BLOCKS,
        KINDS,
    ),
    "neo_mlp": Net(
        lambda: stirred(
            NeoMLP(
                dim_in=4,
                dim_hidden=5,
                dim_out=3,
                dim_model=16,
                depth=2,
                encoder_kwargs={"heads": 2, "attn_dim_head": 8},
            )
        ),
        lambda: {"x": torch.randn(2, 4)},
        4,
        BLOCKS + "; tokens are the nodes of a multilayer perceptron",
        KINDS,
    ),
    "xval": Net(
        lambda: stirred(
            XValTransformerWrapper(
                num_tokens=VOCABULARY, numerical_token_id=3, max_seq_len=16, attn_layers=_layers(Decoder)
            )
        ),
        lambda: {"x": torch.randint(0, VOCABULARY, (2, LENGTH)), "x_num": torch.randn(2, LENGTH)},
        4,
        BLOCKS + "; two heads",
        KINDS,
    ),
    "multi_input": Net(
        lambda: stirred(
            Called(
                MultiInputTransformerWrapper(
                    num_tokens={"note": 7, "pitch": 5},
                    max_seq_len=16,
                    attn_layers=_layers(Decoder),
                    return_only_embed=True,
                ),
                lambda model, note, pitch: model({"note": note, "pitch": pitch}),
            )
        ),
        lambda: {"note": torch.randint(0, 7, (2, LENGTH)), "pitch": torch.randint(0, 5, (2, LENGTH))},
        4,
        BLOCKS,
        KINDS,
    ),
}

NETS: dict[str, Net] = {
    **STREAM,
    **{name: _net(**options) for name, options in ATTENTION.items()},
    **AROUND,
    **OTHERS,
}
