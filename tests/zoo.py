"""Small residual networks with their expected structure: the table that tests over models run on.

Every `Case` builds a model with random weights in a fraction of a second and says, from a reading of the model's
source, which joins its residual streams have. One-dimensional parameters are randomised too, so that a bias or a
scale that goes missing shows in the output.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

VOCAB = 53
"""Number of token ids in every language model here."""

Attention = Literal["eager", "sdpa"]


# What a case is


@dataclass(frozen=True)
class ExpectedJoin:
    """One join: the kind of its skip, its branches as (module path, alias) pairs, and how deep it is nested."""

    kind: str
    branches: tuple[tuple[str, str], ...]
    depth: int = 0


@dataclass(frozen=True)
class Structure:
    """What a reader of the model's source expects `jetgraph.trace` to find."""

    joins: tuple[ExpectedJoin, ...]
    """All joins of all streams in topological order."""
    sources: tuple[str, ...] | None
    """Aliases of the main stream's summands at the start; None where no one stream leads to the output."""
    nonlinear: bool | None
    """The decoder has a nonlinear part ν; None as for `sources`."""
    bias: bool | None
    """The decoder's affine part U has a constant term; None as for `sources`."""
    maps: tuple[tuple[str, str], ...] = ()
    """(module path, alias) of the main stream's maps, in order."""


@dataclass(frozen=True)
class Case:
    """A model, example inputs and the structure that is expected of it."""

    name: str
    make: Callable[[Attention], nn.Module]
    example: Callable[[int, int], dict[str, Any]]
    """Keyword inputs for a batch size and a length (of the sequence, or the side of an image)."""
    structure: Structure
    length: int = 7
    other_length: int | None = 10
    """A second length at which a trace must hold; None where the model fixes the length, and for images."""
    attention: tuple[Attention, ...] = ()
    """Attention implementations to compare; empty where there is no choice, or where it is a choice in Llama's code."""

    def build(self, attn: Attention = "eager") -> nn.Module:
        """The model in eval mode, float32, with the same random weights on every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(self.name.encode()))
            return _randomised(self.make(attn)).eval()

    def inputs(self, batch: int = 2, length: int | None = None) -> dict[str, Any]:
        """Keyword inputs, the same on every call with the same sizes."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(self.name.encode()) + 1)
            return self.example(batch, length or self.length)


def _randomised(model: nn.Module) -> nn.Module:
    """Draw weights at a scale where nonlinearities matter, and move biases, norms and scales off their defaults."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                fan = parameter.shape[1] * (parameter.shape[3] if parameter.ndim == 4 else 1)
                parameter.normal_(std=fan**-0.5)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model


# Inputs


def _tokens(batch: int, length: int) -> dict[str, Any]:
    return {"input_ids": torch.randint(3, VOCAB, (batch, length))}


def _causal(batch: int, length: int) -> dict[str, Any]:
    return {**_tokens(batch, length), "use_cache": False}


def _masked(batch: int, length: int) -> dict[str, Any]:
    return {**_tokens(batch, length), "attention_mask": torch.ones(batch, length, dtype=torch.long)}


def _translation(batch: int, length: int) -> dict[str, Any]:
    return {
        "input_ids": torch.randint(3, VOCAB, (batch, length)),
        "decoder_input_ids": torch.randint(3, VOCAB, (batch, length - 2)),
        "use_cache": False,
    }


def _speech(batch: int, length: int) -> dict[str, Any]:
    return {
        "input_features": torch.randn(batch, 8, 24),
        "decoder_input_ids": torch.randint(3, VOCAB, (batch, length)),
        "use_cache": False,
    }


def _pixels(batch: int, length: int) -> dict[str, Any]:
    return {"pixel_values": torch.randn(batch, 3, length, length)}


def _image(batch: int, length: int) -> dict[str, Any]:
    return {"x": torch.randn(batch, 3, length, length)}


def _sequence(batch: int, length: int) -> dict[str, Any]:
    return {"x": torch.randn(batch, length, 16)}


def _features(batch: int, length: int) -> dict[str, Any]:
    return {"x": torch.randn(batch, 6)}


# Models of transformers


def _hugging_face(config_name: str, model_name: str, **settings: Any) -> Callable[[Attention], nn.Module]:
    def make(attn: Attention) -> nn.Module:
        config = getattr(transformers, config_name)(**settings)
        config._attn_implementation = attn
        return getattr(transformers, model_name)(config)

    return make


def _causal_lm(family: str, config: str = "", **settings: Any) -> Callable[[Attention], nn.Module]:
    """A decoder-only language model with two layers of width 16 and two heads."""
    common = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return _hugging_face(config or f"{family}Config", f"{family}ForCausalLM", **{**common, **settings})


def _vision(config: str, model: str, **settings: Any) -> Callable[[Attention], nn.Module]:
    return _hugging_face(config, model, **{"num_labels": 5, "num_channels": 3, **settings})


# Plain modules


class Network(nn.Module):
    """stem → blocks, one after the other → head."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        return self.head(h)


def _mlp(width: int = 8, hidden: int = 12) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class PreNorm(nn.Module):
    """h + mlp(norm(h))."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = _mlp(width)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.mlp(self.norm(h))


class RootLoop(nn.Module):
    """The root module adds what its blocks return: h + block(h)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), *_mlp()) for _ in range(2))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, VOCAB)

    def forward(self, input_ids: Tensor) -> Tensor:
        h = self.embed(input_ids)
        for block in self.blocks:
            h = h + block(h)
        return self.head(self.norm(h))


class ReZero(nn.Module):
    """h + α mlp(h) with a learned scalar α."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = _mlp()
        self.alpha = nn.Parameter(torch.full((), 0.5))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.alpha * self.mlp(h)


class LayerScale(nn.Module):
    """h + γ ⊙ mlp(norm(h)) with one learned scale γ per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.mlp = _mlp()
        self.gamma = nn.Parameter(torch.full((8,), 0.5))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.mlp(self.norm(h)).mul(self.gamma)


class DeepNorm(nn.Module):
    """norm(α h + mlp(h)) with a constant α."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = _mlp()
        self.norm = nn.LayerNorm(8)

    def forward(self, h: Tensor) -> Tensor:
        return self.norm(1.7 * h + self.mlp(h))


class ScaledSkip(nn.Module):
    """s ⊙ h + mlp(norm(h)) with one learned scale s per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.mlp = _mlp()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, h: Tensor) -> Tensor:
        return self.scale * h + self.mlp(self.norm(h))


class AffineBranch(nn.Module):
    """h + (A h + b)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.linear(h)


class Polynomial(nn.Module):
    """h + W₂ (W₁ h)²."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Linear(8, 6, bias=False)
        self.w2 = nn.Linear(6, 8, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.w2(self.w1(h) ** 2)


class Highway(nn.Module):
    """h ⊙ (1 − t) + H(h) ⊙ t with the gate t = σ(T h)."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.Linear(8, 8)
        self.gate = nn.Linear(8, 8)

    def forward(self, h: Tensor) -> Tensor:
        t = torch.sigmoid(self.gate(h))
        return h * (1 - t) + torch.tanh(self.transform(h)) * t


class InnerResidual(nn.Module):
    """An MLP with a residual block of its own between its two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 12)
        self.inner = _mlp(12, 6)
        self.down = nn.Linear(12, 8)

    def forward(self, h: Tensor) -> Tensor:
        u = F.gelu(self.up(h))
        return self.down(u + self.inner(u))


class Nested(nn.Module):
    """h + mlp(norm(h)) where the mlp is residual itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.mlp = InnerResidual()

    def forward(self, h: Tensor) -> Tensor:
        return h + self.mlp(self.norm(h))


class LowRank(nn.Module):
    """W x + b + B (A x): a linear layer with a low-rank side path. A sum of affine maps is one affine map, no join."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.base = nn.Linear(width, out)
        self.down = nn.Linear(width, 2, bias=False)
        self.up = nn.Linear(2, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * self.up(self.down(x))


class LowRankBlock(nn.Module):
    """h + fc2(gelu(fc1(norm(h)))) where fc1 has a low-rank side path."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.fc1 = LowRank(8, 12)
        self.fc2 = nn.Linear(12, 8)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.fc2(F.gelu(self.fc1(self.norm(h))))


class MixerBlock(nn.Module):
    """MLP-Mixer: one MLP over positions and one over channels, each with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(8)
        self.tokens = _mlp(7)
        self.norm2 = nn.LayerNorm(8)
        self.channels = _mlp(8)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.tokens(self.norm1(h).transpose(1, 2)).transpose(1, 2)
        return h + self.channels(self.norm2(h))


class Attend(nn.Module):
    """Single-head attention from matmul and softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(8, 8)
        self.k = nn.Linear(8, 8)
        self.v = nn.Linear(8, 8)
        self.o = nn.Linear(8, 8)

    def forward(self, h: Tensor) -> Tensor:
        scores = self.q(h) @ self.k(h).transpose(-1, -2) / 8**0.5
        return self.o(scores.softmax(-1) @ self.v(h))


class TransformerBlock(nn.Module):
    """h + attn(norm(h)), then h + mlp(norm(h))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(8)
        self.attn = Attend()
        self.norm2 = nn.LayerNorm(8)
        self.mlp = _mlp()

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.attn(self.norm1(h))
        return h + self.mlp(self.norm2(h))


class Shared(nn.Module):
    """One block called twice with the same weights, as in ALBERT."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 8)
        self.block = TransformerBlock()
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, VOCAB, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        h = self.embed(input_ids)
        for _ in range(2):
            h = self.block(h)
        return self.head(self.norm(h))


class Functional(nn.Module):
    """No submodules: two residual blocks written out over parameters of the root."""

    def __init__(self) -> None:
        super().__init__()
        self.w_in = nn.Parameter(torch.empty(8, 6))
        self.w1 = nn.Parameter(torch.empty(12, 8))
        self.b1 = nn.Parameter(torch.zeros(12))
        self.w2 = nn.Parameter(torch.empty(8, 12))
        self.w3 = nn.Parameter(torch.empty(12, 8))
        self.w4 = nn.Parameter(torch.empty(8, 12))
        self.w_out = nn.Parameter(torch.empty(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = F.linear(x, self.w_in)
        h = h + F.linear(torch.tanh(F.linear(h, self.w1, self.b1)), self.w2)
        h = h + F.linear(F.silu(F.linear(h, self.w3)), self.w4)
        return F.linear(h, self.w_out)


class BasicBlock(nn.Module):
    """The ResNet block: relu(bn(conv(relu(bn(conv(x))))) + skip(x))."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += skip
        return self.relu(out)


class BasicResNet(nn.Module):
    """A stem, two stages of basic blocks, the second with a projection skip, and a linear head on the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.layer1 = nn.Sequential(BasicBlock(6, 6), BasicBlock(6, 6))
        self.layer2 = nn.Sequential(BasicBlock(6, 10, 2))
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(x.mean((2, 3)))


class UNet(nn.Module):
    """Two levels down and up; each level's features come back in, by concatenation or by addition."""

    def __init__(self, concatenate: bool) -> None:
        super().__init__()
        self.concatenate = concatenate
        factor = 2 if concatenate else 1
        self.enc1 = nn.Conv2d(3, 4, 3, padding=1)
        self.enc2 = nn.Conv2d(4, 6, 3, padding=1)
        self.mid = nn.Conv2d(6, 8, 3, padding=1)
        self.up2 = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.dec2 = nn.Conv2d(6 * factor, 6, 3, padding=1)
        self.up1 = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.dec1 = nn.Conv2d(4 * factor, 4, 3, padding=1)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        e1 = F.relu(self.enc1(x))
        e2 = F.relu(self.enc2(F.max_pool2d(e1, 2)))
        u2 = self.up2(F.relu(self.mid(F.max_pool2d(e2, 2))))
        d2 = F.relu(self.dec2(torch.cat([e2, u2], 1) if self.concatenate else e2 + u2))
        u1 = self.up1(d2)
        d1 = F.relu(self.dec1(torch.cat([e1, u1], 1) if self.concatenate else e1 + u1))
        return self.out(d1)


class DenseLayer(nn.Module):
    """conv(relu(norm(x)))."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.norm(x)))


class DenseNet(nn.Module):
    """Three dense layers, each reading all features before it.

    `listed` keeps the features in a list and concatenates all of them for every layer, as torchvision does; else the
    features grow by x = cat([x, f(x)]).
    """

    def __init__(self, listed: bool) -> None:
        super().__init__()
        self.listed = listed
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.ModuleList(DenseLayer(4 + 2 * i, 2) for i in range(3))
        self.norm = nn.BatchNorm2d(10)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.listed:
            features = [x]
            for layer in self.layers:
                features.append(layer(torch.cat(features, 1)))
            x = torch.cat(features, 1)
        else:
            for layer in self.layers:
                x = torch.cat([x, layer(x)], 1)
        return self.fc(F.relu(self.norm(x)).mean((2, 3)))


class Tower(nn.Module):
    """A stem and two pre-norm blocks, averaged over positions, projected and scaled to unit length."""

    def __init__(self, stem: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(PreNorm() for _ in range(2))
        self.project = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        return F.normalize(self.project(h.mean(1)), dim=-1)


class TwoTowers(nn.Module):
    """CLIP: logits = text imageᵀ."""

    def __init__(self) -> None:
        super().__init__()
        self.text = Tower(nn.Embedding(VOCAB, 8))
        self.image = Tower(nn.Linear(6, 8))

    def forward(self, input_ids: Tensor, x: Tensor) -> Tensor:
        return self.text(input_ids) @ self.image(x).T


def _two_inputs(batch: int, length: int) -> dict[str, Any]:
    return {**_tokens(batch, length), "x": torch.randn(batch, 4, 6)}


class Several(nn.Module):
    """A small pre-norm language model that returns several tensors, as a dictionary or as a tuple."""

    def __init__(self, as_dict: bool) -> None:
        super().__init__()
        self.as_dict = as_dict
        self.embed = nn.Embedding(VOCAB, 8)
        self.blocks = nn.ModuleList(PreNorm() for _ in range(2))
        self.head = nn.Linear(8, VOCAB)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor] | tuple[Tensor, ...]:
        h = self.embed(input_ids)
        for block in self.blocks:
            h = block(h)
        logits = self.head(h)
        if self.as_dict:
            return {"features": h, "logits": logits}
        return logits.argmax(-1), logits, h


def _network(stem: nn.Module, block: Callable[[], nn.Module], head: nn.Module, depth: int = 2) -> nn.Module:
    return Network(stem, [block() for _ in range(depth)], head)


def _normed_head() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 5))


def _encoder(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, norm_first=norm_first, activation="gelu")
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


# Expected structure


def _joined(*branches: tuple[str, str], kind: str = "identity", depth: int = 0) -> ExpectedJoin:
    return ExpectedJoin(kind, branches, depth)


def _serial(
    path: str, first: str, second: str | None, *, kinds: tuple[str, str] = ("attn", "mlp"), prefix: str = "", n: int = 2
) -> tuple[ExpectedJoin, ...]:
    """n blocks at `path`, a join after the child `first` and one after the child `second`."""
    joins: list[ExpectedJoin] = []
    for i in range(n):
        for child, kind in zip((first, second), kinds, strict=True):
            if child is not None:
                joins.append(_joined((f"{path}.{i}.{child}", f"{prefix}L{i}.{kind}")))
    return tuple(joins)


def _parallel(path: str, first: str, second: str) -> tuple[ExpectedJoin, ...]:
    """Two blocks at `path`, one join each, to which an attention and an MLP child add."""
    return tuple(
        _joined((f"{path}.{i}.{first}", f"L{i}.attn"), (f"{path}.{i}.{second}", f"L{i}.mlp")) for i in range(2)
    )


def _mlps(path: str, kind: str = "identity", n: int = 2) -> tuple[ExpectedJoin, ...]:
    """n blocks with one MLP branch each; `path` holds a place for the number."""
    return tuple(_joined((path.format(i), f"L{i}.mlp"), kind=kind) for i in range(n))


_LLAMA = Structure(_serial("model.layers", "self_attn", "mlp"), ("embed",), nonlinear=True, bias=False)
"""Most decoder-only models: two joins a layer, rotary positions, a final norm, an unembedding without bias."""


def _cross(path: str, alias: str, self_attn: str, cross_attn: str, mlp: str) -> tuple[ExpectedJoin, ...]:
    """Two decoder blocks with self-attention, cross-attention and an MLP."""
    joins: list[ExpectedJoin] = []
    for i in range(2):
        joins.append(_joined((f"{path}.{i}.{self_attn}", f"{alias}.L{i}.attn")))
        joins.append(_joined((f"{path}.{i}.{cross_attn}", f"{alias}.L{i}.attn.2")))
        joins.append(_joined((f"{path}.{i}.{mlp}", f"{alias}.L{i}.mlp")))
    return tuple(joins)


def _numbered(*pairs: tuple[str, str]) -> tuple[ExpectedJoin, ...]:
    """Convolution branches at (module path, kind of the skip), numbered in order."""
    return tuple(_joined((path, f"L{i}.conv"), kind=kind) for i, (path, kind) in enumerate(pairs))


# The table

_BOTH: tuple[Attention, ...] = ("eager", "sdpa")
_TINY = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2}
_TINY |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "vocab_size": VOCAB}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

_LANGUAGE_MODELS = (
    Case(
        "gpt2",
        _hugging_face(
            "GPT2Config", "GPT2LMHeadModel", vocab_size=VOCAB, n_positions=32, n_embd=16, n_layer=2, n_head=2
        ),
        _causal,
        Structure(_serial("transformer.h", "attn", "mlp"), ("embed", "pos"), nonlinear=True, bias=False),
        attention=_BOTH,
    ),
    Case(
        "gpt_neo",
        _causal_lm("GPTNeo", num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], window_size=3),
        _causal,
        Structure(_serial("transformer.h", "attn", "mlp"), ("embed", "pos"), nonlinear=True, bias=False),
    ),
    Case(
        "gptj",
        _hugging_face(
            "GPTJConfig",
            "GPTJForCausalLM",
            vocab_size=VOCAB,
            n_positions=32,
            n_embd=16,
            n_layer=2,
            n_head=2,
            rotary_dim=4,
        ),
        _causal,
        Structure(_parallel("transformer.h", "attn", "mlp"), ("embed",), nonlinear=True, bias=True),
    ),
    Case(
        "gpt_neox",
        _causal_lm("GPTNeoX"),
        _causal,
        Structure(_parallel("gpt_neox.layers", "attention", "mlp"), ("embed",), nonlinear=True, bias=False),
        attention=_BOTH,
    ),
    Case(
        "gpt_neox_serial",
        _causal_lm("GPTNeoX", use_parallel_residual=False),
        _causal,
        Structure(_serial("gpt_neox.layers", "attention", "mlp"), ("embed",), nonlinear=True, bias=False),
    ),
    Case("llama", _causal_lm("Llama"), _causal, _LLAMA, attention=_BOTH),
    Case("mixtral", _causal_lm("Mixtral", num_local_experts=4), _causal, _LLAMA, attention=_BOTH),
    Case("qwen3", _causal_lm("Qwen3", head_dim=8), _causal, _LLAMA),
    Case("gemma", _causal_lm("Gemma", head_dim=8), _causal, _LLAMA),
    Case("gemma2", _causal_lm("Gemma2", head_dim=8, sliding_window=4), _causal, _LLAMA),
    Case(
        "gemma3",
        _causal_lm("Gemma3", "Gemma3TextConfig", head_dim=8, sliding_window=4),
        _causal,
        _LLAMA,
        attention=_BOTH,
    ),
    Case("olmo2", _causal_lm("Olmo2"), _causal, _LLAMA),
    Case(
        "phi",
        _causal_lm("Phi"),
        _causal,
        Structure(_parallel("model.layers", "self_attn", "mlp"), ("embed",), nonlinear=True, bias=True),
    ),
    Case("phi3", _causal_lm("Phi3"), _causal, _LLAMA),
    Case(
        "opt",
        _causal_lm("OPT", ffn_dim=24, word_embed_proj_dim=16),
        _causal,
        Structure(_serial("model.decoder.layers", "self_attn", "fc1"), ("embed", "pos"), nonlinear=True, bias=False),
        attention=_BOTH,
    ),
    Case(
        "opt_post_norm",
        _causal_lm("OPT", ffn_dim=24, word_embed_proj_dim=12, do_layer_norm_before=False),
        _causal,
        Structure(
            _serial("model.decoder.layers", "self_attn", "fc1"),
            ("embed", "pos"),
            nonlinear=True,
            bias=False,
            maps=(
                # Around its MLP, OPT folds batch and length into one dimension.
                ("model.decoder.layers.0.self_attn_layer_norm", "L0.norm"),
                ("model.decoder.layers.0", "L0.map"),
                ("model.decoder.layers.0", "L0.map.2"),
                ("model.decoder.layers.0.final_layer_norm", "L0.norm.2"),
                ("model.decoder.layers.1.self_attn_layer_norm", "L1.norm"),
                ("model.decoder.layers.1", "L1.map"),
            ),
        ),
    ),
    Case(
        "bloom",
        _hugging_face("BloomConfig", "BloomForCausalLM", vocab_size=VOCAB, hidden_size=16, n_layer=2, n_head=2),
        _causal,
        Structure(
            _serial("transformer.h", "self_attention", "mlp.dense_h_to_4h"), ("embed",), nonlinear=True, bias=False
        ),
    ),
    Case(
        "falcon",
        _causal_lm("Falcon", ffn_hidden_size=24),
        _causal,
        Structure(_parallel("transformer.h", "self_attention", "mlp"), ("embed",), nonlinear=True, bias=False),
        attention=_BOTH,
    ),
    Case(
        "granite",
        _causal_lm(
            "Granite", embedding_multiplier=1.5, residual_multiplier=0.7, attention_multiplier=0.3, logits_scaling=2.0
        ),
        _causal,
        _LLAMA,
    ),
    Case(
        "cohere",
        _causal_lm("Cohere"),
        _causal,
        Structure(_parallel("model.layers", "self_attn", "mlp"), ("embed",), nonlinear=True, bias=False),
    ),
    Case(
        "mamba",
        _hugging_face(
            "MambaConfig",
            "MambaForCausalLM",
            vocab_size=VOCAB,
            hidden_size=16,
            num_hidden_layers=2,
            state_size=4,
            time_step_rank=2,
            **_IDS,
        ),
        _causal,
        Structure(
            tuple(
                join
                for i in range(2)
                for join in (
                    _joined((f"backbone.layers.{i}.mixer", f"L{i}.ssm.ssm"), kind="scaled", depth=1),
                    _joined((f"backbone.layers.{i}.mixer", f"L{i}.ssm")),
                )
            ),
            ("embed",),
            nonlinear=True,
            bias=False,
        ),
        other_length=None,
    ),
    Case("gpt_oss", _causal_lm("GptOss", head_dim=8, num_local_experts=4, sliding_window=4), _causal, _LLAMA),
    Case(
        "deepseek_v3",
        _causal_lm(
            "DeepseekV3",
            num_key_value_heads=2,
            moe_intermediate_size=8,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=2,
            topk_group=1,
            first_k_dense_replace=1,
            kv_lora_rank=8,
            q_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=8,
        ),
        _causal,
        Structure(
            (
                _joined(("model.layers.0.self_attn", "L0.attn")),
                _joined(("model.layers.0.mlp", "L0.mlp")),
                _joined(("model.layers.1.self_attn", "L1.attn")),
                _joined(("model.layers.1.mlp", "L1.mlp"), ("model.layers.1.mlp", "L1.mlp.2")),
            ),
            ("embed",),
            nonlinear=True,
            bias=False,
        ),
        attention=_BOTH,
    ),
    Case(
        "bert",
        _hugging_face(
            "BertConfig",
            "BertForMaskedLM",
            vocab_size=VOCAB,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=32,
        ),
        _masked,
        Structure(
            _serial("bert.encoder.layer", "attention.self", "intermediate"),
            ("embed", "position_embeddings", "token_type_embeddings"),
            nonlinear=True,
            bias=True,
            maps=(
                ("bert.embeddings.LayerNorm", "norm"),
                ("bert.encoder.layer.0.attention.output.LayerNorm", "L0.norm"),
                ("bert.encoder.layer.0.output.LayerNorm", "L0.norm.2"),
                ("bert.encoder.layer.1.attention.output.LayerNorm", "L1.norm"),
            ),
        ),
        attention=_BOTH,
    ),
    Case(
        "modernbert",
        _hugging_face(
            "ModernBertConfig",
            "ModernBertForMaskedLM",
            vocab_size=VOCAB,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=32,
            local_attention=4,
            **{"cls_token_id": 1, "sep_token_id": 2, **_IDS},
        ),
        _masked,
        Structure(_serial("model.layers", "attn", "mlp"), ("embed",), nonlinear=True, bias=True),
        attention=_BOTH,
    ),
)

_ENCODER_DECODERS = (
    Case(
        "t5",
        _hugging_face(
            "T5Config",
            "T5ForConditionalGeneration",
            vocab_size=VOCAB,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=2,
            num_heads=2,
        ),
        _translation,
        Structure(
            tuple(
                join
                for i in range(2)
                for join in (
                    _joined((f"encoder.block.{i}.layer.0.SelfAttention", f"L{i}.attn")),
                    _joined((f"encoder.block.{i}.layer.1.DenseReluDense", f"L{i}.mlp")),
                )
            )
            + _cross(
                "decoder.block", "decoder", "layer.0.SelfAttention", "layer.1.EncDecAttention", "layer.2.DenseReluDense"
            ),
            ("embed",),
            nonlinear=True,
            bias=False,
        ),
        attention=_BOTH,
    ),
    Case(
        "bart",
        _hugging_face("BartConfig", "BartForConditionalGeneration", max_position_embeddings=32, **_TINY),
        _translation,
        Structure(
            _serial("model.encoder.layers", "self_attn", "fc1")
            + _cross("model.decoder.layers", "decoder", "self_attn", "encoder_attn", "fc1"),
            ("embed", "pos"),
            nonlinear=True,
            bias=True,
            maps=(
                ("model.decoder.layernorm_embedding", "decoder.norm"),
                ("model.decoder.layers.0.self_attn_layer_norm", "decoder.L0.norm"),
                ("model.decoder.layers.0.encoder_attn_layer_norm", "decoder.L0.norm.2"),
                ("model.decoder.layers.0.final_layer_norm", "decoder.L0.norm.3"),
                ("model.decoder.layers.1.self_attn_layer_norm", "decoder.L1.norm"),
                ("model.decoder.layers.1.encoder_attn_layer_norm", "decoder.L1.norm.2"),
            ),
        ),
        attention=_BOTH,
    ),
    Case(
        "whisper",
        _hugging_face(
            "WhisperConfig",
            "WhisperForConditionalGeneration",
            **{"num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 32, **_TINY, **_IDS},
            decoder_start_token_id=1,
        ),
        _speech,
        Structure(
            _serial("model.encoder.layers", "self_attn", "fc1")
            + _cross("model.decoder.layers", "decoder", "self_attn", "encoder_attn", "fc1"),
            ("embed", "pos"),
            nonlinear=True,
            bias=False,
        ),
        attention=_BOTH,
    ),
)

_VISION_MODELS = (
    Case(
        "vit",
        _vision(
            "ViTConfig",
            "ViTForImageClassification",
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            image_size=16,
            patch_size=8,
        ),
        _pixels,
        Structure(
            _serial("vit.layers", "attention", "mlp"),
            ("bias", "embed", "position_embeddings", "cls_token"),
            nonlinear=True,
            bias=True,
        ),
        length=16,
        other_length=None,
        attention=_BOTH,
    ),
    Case(
        "resnet_basic",
        _vision(
            "ResNetConfig",
            "ResNetForImageClassification",
            embedding_size=8,
            hidden_sizes=[8, 12],
            depths=[2, 2],
            layer_type="basic",
        ),
        _pixels,
        Structure(
            _numbered(
                ("resnet.encoder.stages.0.layers.0.layer", "identity"),
                ("resnet.encoder.stages.0.layers.1.layer", "identity"),
                ("resnet.encoder.stages.1.layers.0.layer", "projection"),
                ("resnet.encoder.stages.1.layers.1.layer", "identity"),
            ),
            ("embed",),
            nonlinear=True,
            bias=True,
            maps=(
                ("resnet.encoder.stages.0.layers.0.activation", "L0.act"),
                ("resnet.encoder.stages.0.layers.1.activation", "L1.act"),
                ("resnet.encoder.stages.1.layers.0.activation", "L2.act"),
            ),
        ),
        length=32,
        other_length=None,
    ),
    Case(
        "resnet_bottleneck",
        _vision(
            "ResNetConfig",
            "ResNetForImageClassification",
            embedding_size=8,
            hidden_sizes=[16, 24],
            depths=[1, 2],
            layer_type="bottleneck",
        ),
        _pixels,
        Structure(
            _numbered(
                ("resnet.encoder.stages.0.layers.0.layer", "projection"),
                ("resnet.encoder.stages.1.layers.0.layer", "projection"),
                ("resnet.encoder.stages.1.layers.1.layer", "identity"),
            ),
            ("embed",),
            nonlinear=True,
            bias=True,
            maps=(
                ("resnet.encoder.stages.0.layers.0.activation", "L0.act"),
                ("resnet.encoder.stages.1.layers.0.activation", "L1.act"),
            ),
        ),
        length=32,
        other_length=None,
    ),
    Case(
        "convnext",
        _vision(
            "ConvNextConfig",
            "ConvNextForImageClassification",
            num_stages=2,
            hidden_sizes=[8, 12],
            depths=[1, 2],
            image_size=32,
            layer_scale_init_value=0.5,
        ),
        _pixels,
        Structure(
            _numbered(
                ("convnext.encoder.stages.0.layers.0.dwconv", "identity"),
                ("convnext.encoder.stages.1.layers.0.dwconv", "identity"),
                ("convnext.encoder.stages.1.layers.1.dwconv", "identity"),
            ),
            ("embed",),
            nonlinear=True,
            bias=True,
            maps=(
                # Channels go last for the norm, and first again for the convolution.
                ("convnext.encoder.stages.1.downsampling_layer.0", "L0.map"),
                ("convnext.encoder.stages.1.downsampling_layer.0", "L0.norm"),
                ("convnext.encoder.stages.1.downsampling_layer.1", "L0.map.2"),
            ),
        ),
        length=32,
        other_length=None,
    ),
    Case(
        "swin",
        _vision(
            "SwinConfig",
            "SwinForImageClassification",
            image_size=32,
            patch_size=4,
            window_size=4,
            embed_dim=8,
            depths=[2, 2],
            num_heads=[2, 2],
        ),
        _pixels,
        Structure(
            tuple(
                join
                for i in range(4)
                for join in (
                    _joined((f"swin.encoder.layers.{i // 2}.blocks.{i % 2}.attention", f"L{i}.attn")),
                    _joined((f"swin.encoder.layers.{i // 2}.blocks.{i % 2}.mlp", f"L{i}.mlp")),
                )
            ),
            ("embed",),
            nonlinear=True,
            bias=True,
            maps=(
                ("swin.encoder.layers.0.downsample", "L1.map"),
                ("swin.encoder.layers.0.downsample.norm", "L1.norm"),
                ("swin.encoder.layers.0.downsample.reduction", "L1.map.2"),
            ),
        ),
        length=32,
        other_length=None,
        attention=_BOTH,
    ),
)


def _tokens_x(batch: int, length: int) -> dict[str, Any]:
    return {"x": torch.randint(3, VOCAB, (batch, length))}


def _encoder_inputs(batch: int, length: int) -> dict[str, Any]:
    return {"src": torch.randn(batch, length, 16)}


def _lm(block: Callable[[], nn.Module]) -> Callable[[Attention], nn.Module]:
    """Tokens, two blocks, a final norm and an unembedding with a bias."""
    return lambda attn: _network(nn.Embedding(VOCAB, 8), block, _normed_head())


def _affine_ends(block: Callable[[], nn.Module], bias: bool) -> Callable[[Attention], nn.Module]:
    """A linear stem, two blocks and a linear head."""
    return lambda attn: _network(nn.Linear(6, 8, bias=bias), block, nn.Linear(8, 5, bias=bias))


_NO_JOIN = Structure((), None, None, None)

_PLAIN_MODULES = (
    Case(
        "encoder_pre_norm",
        lambda attn: _encoder(norm_first=True),
        _encoder_inputs,
        Structure(_serial("layers", "self_attn", "linear1"), ("embed",), nonlinear=False, bias=False),
    ),
    Case(
        "encoder_post_norm",
        lambda attn: _encoder(norm_first=False),
        _encoder_inputs,
        Structure(
            _serial("layers", "self_attn", "linear1"),
            ("embed",),
            nonlinear=True,
            bias=False,
            maps=(("layers.0.norm1", "L0.norm"), ("layers.0.norm2", "L0.norm.2"), ("layers.1.norm1", "L1.norm")),
        ),
    ),
    Case(
        "basic_resnet",
        lambda attn: BasicResNet(),
        _image,
        Structure(
            _numbered(("layer1.0.conv1", "identity"), ("layer1.1.conv1", "identity"), ("layer2.0.conv1", "projection")),
            ("embed",),
            nonlinear=True,
            bias=True,
            maps=(("layer1.0.relu", "L0.act"), ("layer1.1.relu", "L1.act")),
        ),
        length=12,
        other_length=None,
    ),
    Case(
        "root_loop",
        lambda attn: RootLoop(),
        _tokens,
        Structure(_mlps("blocks.{}"), ("embed",), nonlinear=True, bias=True),
    ),
    Case(
        "transformer_block",
        _lm(TransformerBlock),
        _tokens_x,
        Structure(_serial("blocks", "attn", "mlp"), ("embed",), nonlinear=True, bias=True),
    ),
    Case("rezero", _lm(ReZero), _tokens_x, Structure(_mlps("blocks.{}.mlp"), ("embed",), nonlinear=True, bias=True)),
    Case(
        "layer_scale",
        _lm(LayerScale),
        _tokens_x,
        Structure(_mlps("blocks.{}.mlp"), ("embed",), nonlinear=True, bias=True),
    ),
    Case(
        "deep_norm",
        _lm(DeepNorm),
        _tokens_x,
        Structure(
            _mlps("blocks.{}.mlp", "scaled"),
            ("embed",),
            nonlinear=True,
            bias=True,
            maps=(("blocks.0.norm", "L0.norm"),),
        ),
    ),
    Case(
        "scaled_skip",
        _lm(ScaledSkip),
        _tokens_x,
        Structure(_mlps("blocks.{}.mlp", "scaled"), ("embed",), nonlinear=True, bias=True),
    ),
    Case(
        "affine_branch",
        _affine_ends(AffineBranch, bias=True),
        _features,
        Structure(_mlps("blocks.{}.linear"), ("bias", "embed"), nonlinear=False, bias=True),
        other_length=None,
    ),
    Case(
        "polynomial",
        _affine_ends(Polynomial, bias=False),
        _features,
        Structure(_mlps("blocks.{}.w1"), ("embed",), nonlinear=False, bias=False),
        other_length=None,
    ),
    Case(
        "functional",
        lambda attn: Functional(),
        _features,
        Structure(
            (_joined(("L0.mlp", "L0.mlp")), _joined(("L1.mlp", "L1.mlp"))), ("embed",), nonlinear=False, bias=False
        ),
        other_length=None,
    ),
    Case(
        "shared",
        lambda attn: Shared(),
        _tokens,
        Structure(
            (
                _joined(("block.attn", "L0.attn")),
                _joined(("block.mlp", "L1.mlp")),
                _joined(("block.attn", "L2.attn")),
                _joined(("block.mlp", "L3.mlp")),
            ),
            ("embed",),
            nonlinear=True,
            bias=False,
        ),
    ),
    Case(
        "low_rank",
        _lm(LowRankBlock),
        _tokens_x,
        Structure(_mlps("blocks.{}.fc1"), ("embed",), nonlinear=True, bias=True),
    ),
    Case(
        "mixer",
        lambda attn: _network(nn.Linear(16, 8), MixerBlock, _normed_head()),
        _sequence,
        Structure(
            tuple(
                join
                for i in range(2)
                for join in (
                    _joined((f"blocks.{i}.tokens", f"L{i}.mlp")),
                    _joined((f"blocks.{i}.channels", f"L{i}.mlp.2")),
                )
            ),
            ("bias", "embed"),
            nonlinear=True,
            bias=True,
        ),
        other_length=None,
    ),
    Case(
        "nested",
        _lm(Nested),
        _tokens_x,
        Structure(
            tuple(
                join
                for i in range(2)
                for join in (
                    _joined((f"blocks.{i}.mlp.inner", f"L{i}.mlp.mlp"), depth=1),
                    _joined((f"blocks.{i}.mlp", f"L{i}.mlp")),
                )
            ),
            ("embed",),
            nonlinear=True,
            bias=True,
        ),
    ),
    Case(
        "highway_between",
        lambda attn: Network(nn.Embedding(VOCAB, 8), [PreNorm(), Highway(), PreNorm()], _normed_head()),
        _tokens_x,
        Structure(
            (
                _joined(("blocks.0.mlp", "L0.mlp")),
                _joined(("blocks.1.transform", "L1.mlp"), kind="gated"),
                _joined(("blocks.2.mlp", "L2.mlp")),
            ),
            ("embed",),
            nonlinear=True,
            bias=True,
        ),
    ),
    Case(
        "highway",
        _affine_ends(Highway, bias=True),
        _features,
        Structure(
            tuple(_joined((f"blocks.{i}.transform", f"L{i}.mlp"), kind="gated") for i in range(2)),
            ("embed", "bias"),
            nonlinear=False,
            bias=True,
        ),
        other_length=None,
    ),
    Case(
        "plain_mlp",
        lambda attn: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 5)),
        lambda batch, length: {"input": torch.randn(batch, 6)},
        _NO_JOIN,
        other_length=None,
    ),
    Case(
        "unet",
        lambda attn: UNet(concatenate=True),
        _image,
        Structure(
            (
                _joined(("mid", "L0.conv.conv"), kind="concat", depth=1),
                _joined(("enc2", "L0.conv"), kind="concat"),
            ),
            ("embed",),
            nonlinear=True,
            bias=True,
        ),
        length=8,
        other_length=None,
    ),
    Case(
        "unet_additive",
        lambda attn: UNet(concatenate=False),
        _image,
        Structure(
            (_joined(("mid", "L0.conv.conv"), depth=1), _joined(("enc2", "L0.conv"))),
            ("embed",),
            nonlinear=True,
            bias=True,
        ),
        length=8,
        other_length=None,
    ),
    *(
        Case(
            name,
            lambda attn, listed=listed: DenseNet(listed),
            _image,
            Structure(
                _numbered(*((f"layers.{i}", "concat") for i in range(3))), ("bias", "embed"), nonlinear=True, bias=True
            ),
            length=6,
            other_length=None,
        )
        for name, listed in (("dense_block", False), ("dense_block_list", True))
    ),
    Case(
        "two_towers",
        lambda attn: TwoTowers(),
        _two_inputs,
        Structure(
            _mlps("text.blocks.{}.mlp")
            + tuple(_joined((f"image.blocks.{i}.mlp", f"image.L{i}.mlp")) for i in range(2)),
            None,
            None,
            None,
        ),
    ),
    *(
        Case(
            name,
            lambda attn, as_dict=as_dict: Several(as_dict),
            _tokens,
            Structure(_mlps("blocks.{}.mlp"), ("embed",), nonlinear=False, bias=True),
        )
        for name, as_dict in (("returns_dict", True), ("returns_tuple", False))
    ),
)

CASES: tuple[Case, ...] = _LANGUAGE_MODELS + _ENCODER_DECODERS + _VISION_MODELS + _PLAIN_MODULES
"""Every model of the zoo."""

_EXPERTS = {"moe_intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2}

ROUTED: tuple[Case, ...] = (
    Case(
        "qwen2_moe", _causal_lm("Qwen2Moe", **_EXPERTS, shared_expert_intermediate_size=12), _causal, _LLAMA, length=5
    ),
    Case(
        "phimoe",
        _causal_lm("Phimoe", num_local_experts=4, num_experts_per_tok=2, lm_head_bias=True),
        _causal,
        Structure(_serial("model.layers", "self_attn", "mlp"), ("embed",), nonlinear=True, bias=True),
        length=5,
    ),
    Case(
        "granitemoe",
        _causal_lm("GraniteMoe", num_local_experts=4, num_experts_per_tok=2),
        _causal,
        Structure(_serial("model.layers", "self_attn", "block_sparse_moe"), ("embed",), nonlinear=True, bias=False),
        length=5,
    ),
)
"""More mixtures of experts, for the law that whatever depends on a branch's entry belongs to the branch."""


def case(name: str) -> Case:
    """The case of that name; KeyError with the names that exist otherwise."""
    found = {one.name: one for one in CASES + ROUTED}
    if name not in found:
        raise KeyError(f"no model {name!r} in the zoo: choose one of {', '.join(found)}")
    return found[name]
