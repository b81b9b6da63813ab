"""Example inputs of a model, by the names of its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

BATCH, LENGTH = 2, 10

LARGE = 256
"""Points a side from which on a smaller picture is tried before that of the config."""

_SERIES = ("past_time_features", "past_observed_mask", "future_values", "future_time_features")

MORE: Mapping[str, tuple[str, ...]] = {
    "lxmert": ("visual_feats", "visual_pos"),
    "visual_bert": ("visual_embeds",),
    "layoutlm": ("bbox",),
    "layoutlmv2": ("bbox", "image"),
    "layoutlmv3": ("bbox",),
    "lilt": ("bbox",),
    "markuplm": (),
    "vits": (),
    "time_series_transformer": _SERIES,
    "informer": _SERIES,
    "autoformer": _SERIES,
}
"""What some architectures want besides what their signature says: data about inputs, and nothing of the engine."""


SHAPES: Mapping[str, tuple[int, ...]] = {"encodec": (1, 2000), "mimi": (1, 2000), "dac": (1, 2000), "xcodec": (1, 2000)}
"""Of the sound that a kind of model takes, without the batch; (2000,) elsewhere."""


class Sizes:
    """Numbers that inputs follow, found in a config or in one inside it."""

    def __init__(self, config: Any, most: int = 2**20) -> None:
        self.config = config
        self.most = most
        """Points that a picture has a side, at most."""

    def __call__(self, *names: str, otherwise: int) -> int:
        for config in self._configs(self.config):
            for name in names:
                value = getattr(config, name, None)
                value = value[0] if isinstance(value, list | tuple) and value else value
                if isinstance(value, int) and value > 0:
                    return value
        return otherwise

    def _configs(self, config: Any) -> Iterator[Any]:
        yield config
        for name in getattr(config, "sub_configs", {}):
            if (inner := getattr(config, name, None)) is not None:
                yield from self._configs(inner)


def _ids(sizes: Sizes, random: torch.Generator, length: int = LENGTH) -> Tensor:
    words = sizes("vocab_size", "text_vocab_size", otherwise=100)
    return torch.randint(min(5, words // 4), max(words - 80, words // 2), (BATCH, length), generator=random)


def _normal(*shape: int) -> Callable[[Sizes, torch.Generator], Tensor]:
    return lambda sizes, random: torch.randn(BATCH, *shape, generator=random)


def _pixels(sizes: Sizes, random: torch.Generator) -> Tensor:
    side = sizes("image_size", "input_size", otherwise=64)
    if side > sizes.most:
        patch = sizes("patch_size", otherwise=16)
        side = max(sizes.most // patch, 1) * patch
    return torch.randn(BATCH, sizes("num_channels", "in_channels", otherwise=3), side, side, generator=random)


def _video(sizes: Sizes, random: torch.Generator) -> Tensor:
    frames = sizes("num_frames", "frames_per_clip", otherwise=4)
    return torch.stack([_pixels(sizes, random) for _ in range(frames)], 1)


def _features(sizes: Sizes, random: torch.Generator) -> Tensor:
    mels = sizes("num_mel_bins", "input_feat_per_channel", "feature_size", "input_dim", otherwise=80)
    length = 2 * sizes("max_source_positions", otherwise=32)
    if sizes("max_source_positions", otherwise=0) and sizes("num_mel_bins", otherwise=0):
        return torch.randn(BATCH, mels, length, generator=random)
    return torch.randn(BATCH, 64, mels, generator=random)


def _boxes(sizes: Sizes, random: torch.Generator) -> Tensor:
    corner = torch.randint(0, 400, (BATCH, LENGTH, 2), generator=random)
    return torch.cat([corner, corner + torch.randint(1, 100, corner.shape, generator=random)], -1)


def _ones(sizes: Sizes, random: torch.Generator) -> Tensor:
    return torch.ones(BATCH, LENGTH, dtype=torch.long)


def _series(kind: str, features: bool = False) -> Callable[[Sizes, torch.Generator], Tensor]:
    """Values of a series, or features of its times, before the first one that is predicted or from there on."""

    def build(sizes: Sizes, random: torch.Generator) -> Tensor:
        lags = max(getattr(sizes.config, "lags_sequence", None) or [0])
        past = sizes("context_length", "prediction_length", otherwise=32) + lags
        length = past if kind == "past" else sizes("prediction_length", otherwise=4)
        channels = sizes("num_input_channels", "input_size", otherwise=1)
        if features:
            return torch.randn(BATCH, length, sizes("num_time_features", otherwise=1), generator=random)
        one = channels == 1 and lags
        return torch.randn(BATCH, length, *(() if one else (channels,)), generator=random)

    return build


def _observed(sizes: Sizes, random: torch.Generator) -> Tensor:
    return torch.ones_like(_series("past")(sizes, random))


def _patches(sizes: Sizes, random: torch.Generator) -> Tensor:
    """A number for each patch, which is what a masked autoencoder shuffles them by."""
    side = sizes("image_size", otherwise=64) // sizes("patch_size", otherwise=16)
    return torch.rand(BATCH, side * side, generator=random)


BUILDERS: Mapping[str, Callable[[Sizes, torch.Generator], Tensor]] = {
    "input_ids": _ids,
    "decoder_input_ids": _ids,
    "attention_mask": _ones,
    "pixel_values": _pixels,
    "image": _pixels,
    "pixel_values_videos": _video,
    "input_features": _features,
    "input_values": lambda s, random: torch.randn(
        BATCH, *SHAPES.get(getattr(s.config, "model_type", ""), (2000,)), generator=random
    ),
    "audio_values": _normal(1, 2000),
    "bbox": _boxes,
    "visual_feats": lambda sizes, random: torch.randn(
        BATCH, 5, sizes("visual_feat_dim", otherwise=8), generator=random
    ),
    "visual_pos": _normal(5, 4),
    "visual_embeds": lambda s, random: torch.randn(BATCH, 5, s("visual_embedding_dim", otherwise=8), generator=random),
    "past_values": _series("past"),
    "future_values": _series("future"),
    "past_time_features": _series("past", features=True),
    "future_time_features": _series("future", features=True),
    "past_observed_mask": _observed,
    "noise": _patches,
    "noise_sequence": lambda s, random: torch.randn(BATCH, 64, s("model_in_channels", otherwise=64), generator=random),
    "inputs_embeds": lambda s, random: torch.randn(BATCH, LENGTH, s("hidden_size", otherwise=32), generator=random),
    "hidden_states": lambda s, random: torch.randn(BATCH, LENGTH, s("hidden_size", otherwise=32), generator=random),
}
"""By the name of an argument."""


def candidates(model: nn.Module, seed: int = 0) -> Iterator[dict[str, Tensor]]:
    """Inputs that a model may take, the likeliest first."""
    parameters = inspect.signature(model.forward).parameters
    required = [
        name
        for name, each in parameters.items()
        if each.default is each.empty and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]
    main = getattr(model, "main_input_name", "input_ids")
    config = getattr(model, "config", None)
    # Random numbers that a model would draw, where it takes them as an input.
    noise = [name for name in ("noise", "noise_sequence") if name in parameters]
    more = (*MORE.get(getattr(config, "model_type", ""), ()), *noise)
    tries: list[list[str]] = [[*required, main, *more]]
    if "decoder_input_ids" in parameters:
        # First, since a model that makes them up itself may read nothing but one token that starts a text.
        tries.insert(0, [*required, main, "decoder_input_ids", *more])
    for pair in (["input_ids"], ["pixel_values"], ["input_ids", "pixel_values"], ["input_features"], ["input_values"]):
        tries.append([*required, *pair, *more])
    seen: list[list[str]] = []
    for names in tries:
        names = [name for name in dict.fromkeys(names) if name in parameters]
        if names in seen or not names or not all(name in BUILDERS for name in names):
            continue
        seen.append(names)
        for most in (LARGE // 2, 2**20):
            sizes, random = Sizes(config, most), torch.Generator().manual_seed(seed)
            if most > LARGE or ("pixel_values" in names and sizes("image_size", "input_size", otherwise=64) > LARGE):
                yield {name: BUILDERS[name](sizes, random) for name in names}
    if any("pixel_values" in names for names in seen):
        # A model of films, or of pairs of pictures, may call them so.
        for frames in (Sizes(config)("num_frames", "frames_per_clip", otherwise=4), 2):
            sizes, random = Sizes(config), torch.Generator().manual_seed(seed)
            yield {"pixel_values": torch.stack([_pixels(sizes, random) for _ in range(frames)], 1)}
