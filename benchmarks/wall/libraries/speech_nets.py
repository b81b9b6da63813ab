"""speechbrain and torchaudio: convolution beside attention, dual paths, waves, spectrograms, U-nets."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from speechbrain.lobes.models.conv_tasnet import MaskNet
from speechbrain.lobes.models.CRDNN import CRDNN
from speechbrain.lobes.models.DiffWave import DiffWave
from speechbrain.lobes.models.dual_path import Dual_Path_Model, SBTransformerBlock
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.lobes.models.HifiGAN import HifiganGenerator
from speechbrain.lobes.models.ResNet import ResNet
from speechbrain.lobes.models.transformer.Branchformer import BranchformerEncoder
from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
from speechbrain.lobes.models.transformer.Transformer import TransformerDecoder, TransformerEncoder
from torch import Tensor, nn
from torchaudio import models
from torchaudio.models.wav2vec2.model import wav2vec2_model

from benchmarks.wall.libraries import Net
from benchmarks.wall.libraries.torch_geometric_nets import measured

WIDTH, FRAMES = 16, 10


class First(nn.Module):
    """The first thing that a model gives."""

    def __init__(self, model: nn.Module, **fixed: Any) -> None:
        super().__init__()
        self.model, self.fixed = model, fixed

    def forward(self, *values: Tensor, **named: Tensor) -> Tensor:
        return self.model(*values, **named, **self.fixed)[0]


class Sequence(nn.Module):
    """The first thing that a model gives of a sequence, and for what length."""

    def __init__(self, model: nn.Module, lengths: bool = False) -> None:
        super().__init__()
        self.model, self.lengths = model, lengths

    def forward(self, x: Tensor) -> Tensor:
        if self.lengths:
            return self.model(x, torch.full((x.shape[0],), x.shape[1]))[0]
        return self.model(x)[0]


class Decoded(nn.Module):
    """A decoder on what an encoder may have made."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.model(x, memory)[0]


class Positioned(nn.Module):
    """An encoder with attention by relative positions, which are given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        return self.model(x, pos_embs=places)[0]


def frames(*shape: int, name: str = "x") -> Callable[[], dict[str, Any]]:
    """Random numbers by name."""
    return lambda: {name: torch.randn(*(shape or (2, FRAMES, WIDTH)))}


def _net(
    make: Callable[[], nn.Module], inputs: Callable[[], dict[str, Any]], joins: int, read: str, kinds: str = ""
) -> Net:
    return Net(lambda: measured(make()), inputs, joins, read, kinds)


def _places() -> dict[str, Tensor]:
    return {"x": torch.randn(2, FRAMES, WIDTH), "places": torch.randn(1, 2 * FRAMES - 1, WIDTH)}


CONFORMER = "2 blocks of half feed-forward, attention, convolution, half feed-forward, norm"
CONFORMER_KINDS = "attn 2, conv 2, mlp 4"
STACK: dict[str, Any] = {"num_layers": 2, "nhead": 2, "d_ffn": 24, "d_model": WIDTH}

SPEECHBRAIN: dict[str, Net] = {
    "conformer": _net(
        lambda: Sequence(ConformerEncoder(**STACK, kernel_size=3, attention_type="regularMHA")),
        frames(),
        8,
        CONFORMER,
        CONFORMER_KINDS,
    ),
    "conformer_relative": _net(
        lambda: Positioned(ConformerEncoder(**STACK, kernel_size=3)), _places, 8, CONFORMER, CONFORMER_KINDS
    ),
    "conformer_causal": _net(
        lambda: Sequence(ConformerEncoder(**STACK, kernel_size=3, attention_type="regularMHA", causal=True)),
        frames(),
        8,
        CONFORMER,
        CONFORMER_KINDS,
    ),
    "conformer_rotary": _net(
        lambda: Sequence(ConformerEncoder(**STACK, kernel_size=3, attention_type="RoPEMHA")),
        frames(),
        8,
        CONFORMER,
        CONFORMER_KINDS,
    ),
    "conformer_hypermixing": _net(
        lambda: Sequence(ConformerEncoder(**STACK, kernel_size=3, attention_type="hypermixing")),
        frames(),
        8,
        CONFORMER + "; positions are mixed by a perceptron whose weights are made of them",
    ),
    "branchformer": _net(
        lambda: Positioned(
            BranchformerEncoder(num_layers=2, d_model=WIDTH, nhead=2, kernel_size=3, csgu_linear_units=24)
        ),
        _places,
        2,
        "h + W cat(attention, gated convolution) in 2 blocks",
        "attn 2",
    ),
    "branchformer_plain": _net(
        lambda: Sequence(
            BranchformerEncoder(
                num_layers=2,
                d_model=WIDTH,
                nhead=2,
                kernel_size=3,
                csgu_linear_units=24,
                attention_type="regularMHA",
                use_linear_after_conv=True,
                gate_activation=nn.Sigmoid,
            )
        ),
        frames(),
        2,
        "h + W cat(attention, gated convolution) in 2 blocks",
        "attn 2",
    ),
    "encoder_pre": _net(
        lambda: Sequence(TransformerEncoder(**STACK, normalize_before=True)),
        frames(),
        4,
        "attention and feed-forward of 2 layers",
        "attn 2, mlp 2",
    ),
    "encoder_post": _net(
        lambda: Sequence(TransformerEncoder(**STACK)),
        frames(),
        4,
        "attention and feed-forward of 2 layers",
        "attn 2, mlp 2",
    ),
    "encoder_convolved": _net(
        lambda: Sequence(TransformerEncoder(**STACK, ffn_type="1dcnn", normalize_before=True)),
        frames(),
        4,
        "attention and two convolutions of 2 layers",
        "attn 2, conv 2",
    ),
    "decoder": _net(
        lambda: Decoded(TransformerDecoder(**STACK, normalize_before=True)),
        lambda: {"x": torch.randn(2, FRAMES, WIDTH), "memory": torch.randn(2, 7, WIDTH)},
        6,
        "self-attention, cross-attention, feed-forward of 2 layers",
        "attn 4, mlp 2",
    ),
    "ecapa": _net(
        lambda: ECAPA_TDNN(
            WIDTH,
            lin_neurons=8,
            channels=[16, 16, 16, 16, 24],
            attention_channels=8,
            res2net_scale=4,
            se_channels=8,
        ),
        frames(2, 20, WIDTH),
        7,
        # 10 at first: the sums of pieces in a block are made of what comes from outside, as in Res2Net.
        "3 blocks h + se(tdnn(...)), in each a concatenation of pieces is nested; cat(h1, h2, h3)",
    ),
    "crdnn": _net(
        lambda: CRDNN(
            input_shape=[None, None, WIDTH],
            cnn_channels=[4, 4],
            rnn_layers=2,
            rnn_neurons=8,
            dnn_neurons=8,
            dnn_blocks=1,
        ),
        frames(2, 20, WIDTH),
        39,
        # 0 at first: its recurrent layers are loops over time, and a step whose gate is made of the state is a join.
        "z h + (1 - z) f(h) for each of 20 frames but the first, in 2 layers; the frames side by side in the last one",
    ),
    "conv_tasnet": _net(
        lambda: MaskNet(WIDTH, 8, 12, 3, 2, 2, 2),
        frames(2, WIDTH, 24, name="mixture_w"),
        4,
        "h + convolutions in 2 x 2 temporal blocks",
        "conv 4",
    ),
    "dual_path": _net(
        lambda: Dual_Path_Model(
            WIDTH,
            8,
            SBTransformerBlock(1, 8, 2, d_ffn=12, norm_before=True),
            SBTransformerBlock(1, 8, 2, d_ffn=12, norm_before=True),
            num_layers=2,
            K=6,
        ),
        frames(2, WIDTH, 20),
        12,
        "2 blocks of h + norm(W transformer(h)) within and across chunks, each of which has 2 joins nested in it",
    ),
    "diffwave": _net(
        lambda: DiffWave(
            input_channels=8, residual_layers=3, residual_channels=8, dilation_cycle_length=2, total_steps=10
        ),
        lambda: {
            "audio": torch.randn(2, 1, 256),
            "diffusion_step": torch.randint(0, 10, (2,)),
            "spectrogram": torch.randn(2, 8, 1),
        },
        3,  # read as 4 at first: of the last layer nothing goes on but its skip
        "(h + f(h)) / sqrt 2 in 2 of 3 layers; the skips of all layers are added up",
    ),
    "hifigan": _net(
        lambda: HifiganGenerator(
            in_channels=8,
            out_channels=1,
            resblock_type="1",
            resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]],
            resblock_kernel_sizes=[3, 5],
            upsample_kernel_sizes=[4, 4],
            upsample_initial_channel=16,
            upsample_factors=[2, 2],
        ),
        frames(2, 8, 6),
        12,
        # 14 at first: the mean adds up what the last layers add, and is no join besides.
        "2 levels, each a mean of 2 blocks, each of 3 layers h + f(h)",
    ),
    "resnet": _net(
        lambda: ResNet(WIDTH, channels=[4, 4, 8, 8], block_sizes=[1, 1, 1, 1], lin_neurons=8),
        frames(2, 20, WIDTH),
        4,
        "4 squeeze-and-excitation blocks relu(P h + f(h))",
        "conv 4",
    ),
}

AUDIO: dict[str, Net] = {
    "audio_conformer": _net(
        lambda: Sequence(
            models.Conformer(WIDTH, num_heads=2, ffn_dim=24, num_layers=2, depthwise_conv_kernel_size=3), lengths=True
        ),
        frames(),
        8,
        CONFORMER,
        CONFORMER_KINDS,
    ),
    "audio_conformer_first": _net(
        lambda: Sequence(
            models.Conformer(
                WIDTH,
                num_heads=2,
                ffn_dim=24,
                num_layers=2,
                depthwise_conv_kernel_size=3,
                use_group_norm=True,
                convolution_first=True,
            ),
            lengths=True,
        ),
        frames(),
        8,
        "as the other one, convolution before attention",
        CONFORMER_KINDS,
    ),
    "emformer": _net(
        lambda: Sequence(
            models.Emformer(WIDTH, num_heads=2, ffn_dim=24, num_layers=2, segment_length=4, right_context_length=2),
            lengths=True,
        ),
        frames(),
        4,
        "attention and feed-forward of 2 layers, on frames beside those right of each segment",
        "attn 2, mlp 2",
    ),
    "wavernn": _net(
        lambda: models.WaveRNN(
            upsample_scales=[2, 2],
            n_classes=16,
            hop_length=4,
            n_res_block=2,
            n_rnn=10,
            n_fc=14,
            kernel_size=5,
            n_freq=8,
            n_hidden=8,
            n_output=16,
        ),
        lambda: {"waveform": torch.randn(2, 1, 16), "specgram": torch.randn(2, 1, 8, 8)},
        4,
        # Widths that differ: a piece of a beside as much else as is missing would be a part of it that is carried on.
        "h + gru(h), h + gru(cat(h, a)); and 2 of the residual net of the spectrogram, which gives a",
    ),
    "wav2letter": _net(
        lambda: models.Wav2Letter(num_classes=5, input_type="mfcc", num_features=8),
        frames(1, 8, 24),
        0,
        "none: convolutions",
    ),
    "audio_tasnet": _net(
        lambda: models.ConvTasNet(
            num_sources=2,
            enc_kernel_size=4,
            enc_num_feats=8,
            msk_kernel_size=3,
            msk_num_feats=8,
            msk_num_hidden_feats=12,
            msk_num_layers=2,
            msk_num_stacks=2,
        ),
        frames(2, 1, 40, name="input"),
        4,
        "h + f(h) in 3 of 4 layers; the skips of all layers are added up",
    ),
    "deepspeech": _net(
        lambda: models.DeepSpeech(n_feature=8, n_hidden=12, n_class=5),
        frames(2, 1, 6, 8),
        0,
        "none: both directions of a recurrent layer are added up",
    ),
    "wav2vec2": _net(
        lambda: First(_wav2vec2(False)),
        frames(2, 200, name="waveforms"),
        5,
        "positions by convolution, 2 layers",
        "attn 2, conv 1, mlp 2",
    ),
    "wav2vec2_pre": _net(
        lambda: First(_wav2vec2(True)),
        frames(2, 200, name="waveforms"),
        5,
        "positions by convolution, 2 layers",
        "attn 2, conv 1, mlp 2",
    ),
    "hdemucs": _net(
        lambda: models.HDemucs(sources=["a", "b"], audio_channels=1, channels=4, nfft=64, depth=2),
        frames(1, 1, 256, name="input"),
        8,
        # Read after it was traced.
        "2 layers h + f(h) in each of 3 encoder layers, of which the last is of both towers; and in either tower what "
        "comes back from there is added to what the first layer has made",
    ),
    "tacotron2": _net(
        lambda: First(
            models.Tacotron2(
                n_mels=8,
                n_symbol=11,
                symbol_embedding_dim=12,
                encoder_embedding_dim=12,
                encoder_n_convolution=1,
                encoder_kernel_size=3,
                decoder_rnn_dim=12,
                decoder_max_step=5,
                decoder_dropout=0.0,
                attention_rnn_dim=12,
                attention_hidden_dim=8,
                attention_location_n_filter=4,
                attention_location_kernel_size=3,
                attention_dropout=0.0,
                prenet_dim=8,
                postnet_n_convolution=2,
                postnet_kernel_size=3,
                postnet_embedding_dim=8,
            )
        ),
        lambda: {
            "tokens": torch.randint(0, 11, (2, 5)),
            "token_lengths": torch.tensor([5, 5]),
            "mel_specgram": torch.randn(2, 8, 4),
            "mel_specgram_lengths": torch.tensor([4, 4]),
        },
        1,
        "spectrogram + postnet(spectrogram); its recurrent decoder draws random numbers in its prenet",
    ),
    "rnnt_emformer": _net(
        lambda: First(
            models.rnnt.emformer_rnnt_model(
                input_dim=8,
                encoding_dim=WIDTH,
                num_symbols=7,
                segment_length=4,
                right_context_length=2,
                time_reduction_input_dim=8,
                time_reduction_stride=2,
                transformer_num_heads=2,
                transformer_ffn_dim=24,
                transformer_num_layers=2,
                transformer_dropout=0.0,
                transformer_activation="gelu",
                transformer_left_context_length=4,
                transformer_max_memory_size=0,
                transformer_weight_init_scale_strategy="depthwise",
                transformer_tanh_on_mem=True,
                symbol_embedding_dim=8,
                num_lstm_layers=1,
                lstm_layer_norm=True,
                lstm_layer_norm_epsilon=1e-3,
                lstm_dropout=0.0,
            )
        ),
        lambda: {
            "sources": torch.randn(1, 12, 8),
            "source_lengths": torch.tensor([10]),
            "targets": torch.randint(0, 7, (1, 3)),
            "target_lengths": torch.tensor([3]),
        },
        4,
        "attention and feed-forward of 2 layers; the predictor is recurrent; both are added up in the joiner",
    ),
}


def _wav2vec2(norm_first: bool) -> nn.Module:
    return wav2vec2_model(
        extractor_mode="layer_norm" if norm_first else "group_norm",
        extractor_conv_layer_config=[(8, 5, 3), (8, 3, 2)],
        extractor_conv_bias=False,
        encoder_embed_dim=WIDTH,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=4,
        encoder_pos_conv_groups=2,
        encoder_num_layers=2,
        encoder_num_heads=2,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=24,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=norm_first,
        encoder_layer_drop=0.0,
        aux_num_out=5,
    )


NETS: dict[str, Net] = {**SPEECHBRAIN, **AUDIO}
