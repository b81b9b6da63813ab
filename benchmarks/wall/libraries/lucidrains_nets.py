"""Small packages of one author: local, linear, hashed and routed attention, latents, gate loops, hyper-connections."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from colt5_attention import ConditionalRoutedTransformerBlock
from conformer import Conformer
from gateloop_transformer import SimpleGateLoopLayer
from gateloop_transformer import Transformer as GateLoop
from hyper_connections import HyperConnections, mHC
from hyper_connections.hyper_connections_channel_first import HyperConnections as ChannelFirst
from hyper_connections.residuals import (
    GatedResidual,
    GRUGatedResidual,
    MVSplitResidualUpdate,
    OrthogonalResidualUpdate,
)
from hyper_connections.vit import ViT as HyperViT
from linear_attention_transformer import LinearAttentionTransformerLM, LinformerSettings
from local_attention import LocalTransformer
from memory_efficient_attention_pytorch.transformer import Transformer as MemoryEfficient
from perceiver_pytorch import Perceiver, PerceiverLM
from perceiver_pytorch.experimental import Perceiver as TwoWay
from perceiver_pytorch.gated import Perceiver as GatedPerceiver
from perceiver_pytorch.mixed_latents import Perceiver as MixedPerceiver
from performer_pytorch import PerformerLM
from reformer_pytorch import ReformerLM
from routing_transformer import RoutingTransformerLM
from torch import Tensor, nn

from benchmarks.wall.libraries import Net
from benchmarks.wall.libraries.x_transformers_nets import stirred

VOCABULARY, WIDTH, LENGTH = 17, 24, 8
BLOCKS = "attention and feed-forward of each of 2 blocks"
REVERSIBLE = "y1 = x1 + f(x2), y2 = x2 + g(y1) in 2 blocks; the halves start alike and are added up"
KINDS = "attn 2, mlp 2"
LANGUAGE: dict[str, Any] = {
    "num_tokens": VOCABULARY,
    "dim": WIDTH,
    "depth": 2,
    "max_seq_len": 16,
    "heads": 3,
    "dim_head": 8,
}
PERCEIVER: dict[str, Any] = {
    "num_freq_bands": 2,
    "max_freq": 4.0,
    "depth": 2,
    "input_channels": 3,
    "num_latents": 5,
    "latent_dim": WIDTH,
    "latent_heads": 3,
    "cross_dim_head": 8,
    "latent_dim_head": 8,
    "num_classes": 5,
}
LATENTS = (
    "2 blocks of cross-attention, feed-forward, self-attention, feed-forward on latents; the first sum is with "
    "constants, and the stream starts there"
)


def _tokens(name: str = "x") -> Callable[[], dict[str, Any]]:
    return lambda: {name: torch.randint(0, VOCABULARY, (2, LENGTH))}


def _picture() -> dict[str, Tensor]:
    return {"data": torch.randn(2, 4, 4, 3)}


def _net(kind: Callable[..., nn.Module], joins: int = 4, read: str = BLOCKS, kinds: str = KINDS, **options: Any) -> Net:
    return Net(lambda: stirred(kind(**options)), _tokens(), joins, read, kinds)


def _language(
    kind: Callable[..., nn.Module], read: str = BLOCKS, joins: int = 4, kinds: str = KINDS, **options: Any
) -> Net:
    return _net(kind, joins, read, kinds, **{**LANGUAGE, **options})


def _perceiver(kind: Callable[..., nn.Module], joins: int = 7, read: str = LATENTS, **options: Any) -> Net:
    return Net(lambda: stirred(kind(**{**PERCEIVER, **options})), _picture, joins, read)


class _Stack(nn.Module):
    """Multilayer perceptrons between which a residual update of the package stands."""

    def __init__(self, layers: list[nn.Module], expand: Callable[..., Tensor], reduce: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layers, self.expand, self.reduce = nn.ModuleList(layers), expand, reduce
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.reduce(x))


class _Around(nn.Module):
    """update(f(h), h)."""

    def __init__(self, update: nn.Module) -> None:
        super().__init__()
        self.branch, self.update = _perceptron(), update

    def forward(self, x: Tensor) -> Tensor:
        return self.update(self.branch(x), x)


class _Plus(nn.Module):
    """h + f(h) with a layer that has its own norm."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))


def _same(x: Tensor) -> Tensor:
    return x


def _updates(kind: Callable[..., nn.Module], read: str) -> Net:
    return Net(
        lambda: stirred(_Stack([_Around(kind()) for _ in range(3)], _same, _same)),
        lambda: {"x": torch.randn(2, LENGTH, WIDTH)},
        3,
        read,
        "mlp 3",
    )


def _hyper(kind: Any, streams: int = 3, **options: Any) -> nn.Module:
    make, expand, reduce = kind.get_init_and_expand_reduce_stream_functions(streams, **options)
    layers = [make(dim=WIDTH, branch=_perceptron(), layer_index=index) for index in range(3)]
    return stirred(_Stack(layers, expand, reduce))


def _hypers(kind: Any, read: str, **options: Any) -> Net:
    return Net(partial(_hyper, kind, **options), lambda: {"x": torch.randn(2, LENGTH, WIDTH)}, 3, read, "mlp 3")


NETS: dict[str, Net] = {
    "local": _language(LocalTransformer, num_residual_streams=1, local_attn_window_size=4),
    "local_hyper": _language(
        LocalTransformer,
        "A(h) h + b(h) f(...) with 4 streams: gated",
        num_residual_streams=4,
        local_attn_window_size=4,
        use_dynamic_pos_bias=True,
    ),
    "performer": _language(PerformerLM, nb_features=6, causal=False),
    "performer_causal": _language(PerformerLM, nb_features=6, causal=True),
    "performer_generalized": _language(PerformerLM, nb_features=6, generalized_attention=True, use_scalenorm=True),
    "performer_reversible": _language(PerformerLM, REVERSIBLE, nb_features=6, reversible=True),
    "performer_rezero": _language(PerformerLM, "h + g f(h)", nb_features=6, use_rezero=True, shift_tokens=True),
    "performer_local": _language(PerformerLM, nb_features=6, local_attn_heads=1, local_window_size=4, ff_glu=True),
    "reformer": _language(ReformerLM, REVERSIBLE, bucket_size=4, use_full_attn=True, ff_chunks=2),
    "reformer_tied": _language(
        ReformerLM, REVERSIBLE + "; the same weights", bucket_size=4, use_full_attn=True, weight_tie=True, causal=True
    ),
    "reformer_short": _language(ReformerLM, REVERSIBLE, bucket_size=4, full_attn_thres=64, use_rezero=True),
    "linear": _language(LinearAttentionTransformerLM, local_attn_window_size=8),
    "linear_causal": _language(LinearAttentionTransformerLM, local_attn_window_size=8, causal=True, blindspot_size=2),
    "linear_local": _language(LinearAttentionTransformerLM, local_attn_window_size=4, n_local_attn_heads=1),
    "linear_axial": _language(
        LinearAttentionTransformerLM,
        "2 blocks of linear attention, feed-forward, attention along the other axis, feed-forward",
        8,
        "attn 4, mlp 4",
        local_attn_window_size=4,
        attend_axially=True,
    ),
    "linear_reversible": _language(LinearAttentionTransformerLM, REVERSIBLE, local_attn_window_size=8, reversible=True),
    "linformer": Net(
        lambda: stirred(
            LinearAttentionTransformerLM(
                **{**LANGUAGE, "max_seq_len": LENGTH},
                local_attn_window_size=8,
                linformer_settings=LinformerSettings(k=4),
                shift_tokens=True,
            )
        ),
        _tokens(),
        4,
        BLOCKS,
        KINDS,
    ),
    "routing": _language(RoutingTransformerLM, window_size=4, n_local_attn_heads=1, local_attn_window_size=4),
    "routing_local": _language(
        RoutingTransformerLM,
        window_size=4,
        n_local_attn_heads=3,
        local_attn_window_size=4,
        reversible=True,
        read=REVERSIBLE,
    ),
    "gateloop": _net(
        GateLoop,
        kinds="",
        dim=WIDTH,
        num_tokens=VOCABULARY,
        depth=2,
        gate_loop_heads=3,
        checkpoint_gate_looped_attn=False,
    ),
    "gateloop_post_norm": _net(
        GateLoop,
        kinds="",
        dim=WIDTH,
        num_tokens=VOCABULARY,
        depth=2,
        post_ln_norm=True,
        sub_ln=True,
        checkpoint_gate_looped_attn=False,
    ),
    "gateloop_attention": _net(
        GateLoop,
        dim=WIDTH,
        num_tokens=VOCABULARY,
        depth=2,
        heads=3,
        dim_head=8,
        use_gate_looped_attn=False,
        data_dependent_rel_pos=True,
        checkpoint_gate_looped_attn=False,
    ),
    "gateloop_simple": Net(
        lambda: stirred(_Stack([_Plus(SimpleGateLoopLayer(WIDTH, post_ln=True)) for _ in range(3)], _same, _same)),
        lambda: {"x": torch.randn(2, LENGTH, WIDTH)},
        3,
        "h + loop(h) three times",
    ),
    "memory_efficient": _net(
        MemoryEfficient,
        read=REVERSIBLE,
        dim=WIDTH,
        num_tokens=VOCABULARY,
        max_seq_len=16,
        depth=2,
        heads=3,
        dim_head=8,
        causal=True,
        q_bucket_size=4,
        k_bucket_size=4,
    ),
    "conformer": Net(
        lambda: stirred(Conformer(WIDTH, depth=2, dim_head=8, heads=3, ff_mult=2, conv_kernel_size=3)),
        lambda: {"x": torch.randn(2, LENGTH, WIDTH)},
        8,
        "2 blocks of half feed-forward, attention, convolution, half feed-forward; a norm after each block",
        "attn 2, conv 2, mlp 4",
    ),
    "perceiver": _perceiver(Perceiver),
    "perceiver_tied": _perceiver(Perceiver, weight_tie_layers=True),
    "perceiver_deep": _perceiver(Perceiver, 11, LATENTS + "; two self-attentions a block", self_per_cross_attn=2),
    "perceiver_inverted": _perceiver(Perceiver, inverted_cross_attn=True),
    "perceiver_attn_residual": _perceiver(
        Perceiver,
        8,
        LATENTS
        + "; a list of what blocks have made, which the second one is put into with four of them nested, and over "
        "which there is attention after each (first read as a map, 7)",
        attn_residual=True,
        attn_residual_rank=4,
    ),
    "perceiver_two_way": _perceiver(
        TwoWay,
        11,
        "8 on latents, of which the first is one here, since the data are a stream beside them, and 3 on the data: "
        "linear attention, attention to latents, feed-forward (first read as 10, as if the latents began a stream)",
        fourier_encode_data=False,
    ),
    "perceiver_gated": _perceiver(GatedPerceiver, 7, LATENTS + "; attentions are added by GRU cells"),
    "perceiver_mixer": _perceiver(MixedPerceiver),
    "perceiver_lm": Net(
        lambda: stirred(
            PerceiverLM(
                dim=16,
                num_tokens=VOCABULARY,
                max_seq_len=16,
                depth=2,
                num_latents=5,
                latent_dim=WIDTH,
                latent_heads=3,
                cross_dim_head=8,
                latent_dim_head=8,
                decoder_ff=True,
            )
        ),
        _tokens(),
        6,
        "feed-forward of the first block, where the stream starts, 2 blocks of latents, feed-forward of the queries",
    ),
    "colt5": Net(
        lambda: stirred(
            nn.Sequential(
                *(
                    ConditionalRoutedTransformerBlock(
                        WIDTH,
                        num_heavy_attn_tokens_q=4,
                        num_heavy_attn_tokens_kv=4,
                        num_heavy_ff_tokens=4,
                        light_dim_head=8,
                        light_heads=3,
                        light_window_size=4,
                        heavy_dim_head=8,
                        heavy_heads=3,
                        heavy_ff_mult=2,
                    )
                    for _ in range(2)
                )
            )
        ),
        lambda: {"input": torch.randn(2, LENGTH, WIDTH)},
        4,
        # Two of each at first: what is light and what is heavy are two branches.
        "2 blocks of light attention beside heavy attention of the tokens that a router takes, feed-forward likewise",
        "attn 4, mlp 4",
    ),
    "hyper_vit": Net(
        lambda: stirred(
            HyperViT(
                image_size=16,
                patch_size=8,
                num_classes=5,
                dim=WIDTH,
                depth=2,
                heads=3,
                dim_head=8,
                mlp_dim=32,
                num_residual_streams=3,
            )
        ),
        lambda: {"img": torch.randn(2, 3, 16, 16)},
        4,
        "A(h) h + b(h) f(...) with 3 streams and A doubly stochastic: gated",
        KINDS,
    ),
    "hyper": _hypers(HyperConnections, "A(h) h + b(h) f(...) with 3 streams: gated"),
    "hyper_fractions": _hypers(HyperConnections, "the same, each stream in 2 fractions", num_fracs=2),
    "hyper_manifold": _hypers(mHC, "the same, A doubly stochastic"),
    "hyper_pictures": Net(
        lambda: stirred(_channels_first()),
        lambda: {"input": torch.randn(2, WIDTH, 4, 4)},
        3,
        "the same on pictures, convolutions",
        "conv 3",
    ),
    "update_gru": _updates(partial(GRUGatedResidual, WIDTH), "GRUCell(f(h), h): gated"),
    "update_gate": _updates(partial(GatedResidual, WIDTH), "f(h) + g (h - f(h)), g made of both: gated"),
    "update_fine_gate": _updates(partial(GatedResidual, WIDTH, fine_gate=True), "the same, a gate a feature"),
    "update_orthogonal": _updates(
        partial(OrthogonalResidualUpdate, double_precision=False), "h + f(h) less its part along h"
    ),
    "update_mean_variance": _updates(
        partial(MVSplitResidualUpdate, WIDTH), "h - a mean(h) + b (f - mean f) + a mean f"
    ),
}


def _channels_first() -> nn.Module:
    make, expand, reduce = ChannelFirst.get_init_and_expand_reduce_stream_functions(3)
    convolution = partial(nn.Conv2d, WIDTH, WIDTH, 3, padding=1)
    layers = [make(dim=WIDTH, branch=nn.Sequential(convolution(), nn.GELU()), layer_index=index) for index in range(3)]
    return nn.Sequential(_Wrapped(expand), *layers, _Wrapped(reduce), nn.Conv2d(WIDTH, 3, 1))


class _Wrapped(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
