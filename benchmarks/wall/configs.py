"""A config → one of the same architecture at tiny size, by kinds of fields and not by architecture."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from transformers import PreTrainedConfig

LAYERS = 2
VOCABULARY = 512

_LAYERS = re.compile(r"(layers|blocks|block|depth|depths|repeats|stages_repeats|n_layer|layer_num)$|^num_.*_layers?$")
_VOCABULARY = re.compile(r"vocab_size|vocab_size_\w+|num_embeddings|codebook_size$")
_PLACES = re.compile(r"position|max_.*len|n_ctx|context_length|max_seq|seq_len|source_positions|target_positions")
_IDS = re.compile(r"_(token_id|token_index|id|idx|ids)$|^.*_token$")
_HEADS = re.compile(r"(num|n)_?.*heads?$|^n_head$|attention_heads$|key_value_heads$|num_kv_heads$")
_EXPERTS = re.compile(r"(num|n)_.*experts?$|^num_local_experts$|n_routed_experts$|moe_num_experts$")
_CHOSEN = re.compile(r"experts_per_tok|top_?k|experts_per_token|topk_group|n_group$")
_KEPT = re.compile(
    r"kernel|stride|window|patch|label|group|channels$|bins|mel|ratio|padding|dilation|shift|buckets|distance|levels"
    r"|version|seed|type_vocab|token|factor|period|sample|rate|num_queries|num_points|interval|freq|chunk|temperature"
    r"|frames|every|step|theta|scale|beta|size_divisor|resolution|classes|tubelet|conv_width|d_conv|state"
)


def tiny(kind: type[PreTrainedConfig], width: int) -> PreTrainedConfig:
    """A config of this kind whose stream has about `width` features; 0 leaves widths as they are."""
    return kind(**_changes(kind(), width))


def attempts(kind: type[PreTrainedConfig]) -> Iterator[PreTrainedConfig]:
    """Tiny configs, the smallest first, as far as their kind can be made at all."""
    failures: list[Exception] = []
    for width in (32, 64, 128, 0, None):
        try:
            config = kind() if width is None else tiny(kind, width)
        except Exception as error:  # whatever a config checks
            failures.append(error)
            continue
        yield config
    if len(failures) == 5:
        raise failures[0]


def _changes(config: PreTrainedConfig, width: int, outer: int = 0) -> dict[str, Any]:
    """Arguments that make another config of this one's kind."""
    fields = {name: value for name, value in config.to_dict().items() if hasattr(config, name)}
    divisor = _divisor(fields, width) if width else 1
    if width and divisor == 1 and outer:
        divisor = outer
    layers = fields.get("num_hidden_layers")
    lengths = {len(value) for value in fields.values() if _whole_numbers(value)}
    changes: dict[str, Any] = {}
    for name in fields:
        value = getattr(config, name)
        if _numbers(value) and 16 < len(value) == layers:
            value = value[:LAYERS]  # One for each layer, of which there are fewer now.
        if isinstance(value, PreTrainedConfig):
            changes[name] = {"model_type": value.model_type, **_set(value), **_changes(value, width, divisor)}
        elif isinstance(value, bool) or value is None:
            continue
        elif isinstance(value, int) and value in lengths and value <= 16:
            continue  # How many a list has.
        elif isinstance(value, int):
            changes[name] = _smaller(name, value, divisor)
        elif _whole_numbers(value):
            changes[name] = [_smaller(name, item, divisor) for item in value]
        elif _numbers(value):
            changes[name] = list(value)
    changes = {name: value for name, value in changes.items() if value != _plain(getattr(config, name))}
    unset = {name: value for name, value in _UNSET.items() if name in fields and not fields[name]}
    heads = _heads(fields, changes)
    return changes | unset | heads | _image(fields) | _ids(fields) | _sections(type(config), fields, changes | heads)


_UNSET = {"vocab_size": 32, "prediction_length": 12, "num_time_features": 2}
"""What a config leaves to whoever makes a model of it."""


def _sections(kind: type[PreTrainedConfig], fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary positions that are dealt out to three kinds of places, a share of a narrower head each."""
    rotary = fields.get("rope_parameters")
    if not isinstance(rotary, dict) or not _reads_sections(kind):
        return {}
    now = {**fields, **changes}
    width = now.get("head_dim") or now.get("hidden_size", 0) // now.get("num_attention_heads", 1)
    if "num_attention_heads" not in now or not width:
        return {}  # A tower of pictures beside the text.
    pairs = int(width * rotary.get("partial_rotary_factor", 1)) // 2
    share = max(3 * pairs // 8, 1)
    return {"rope_parameters": {**rotary, "mrope_section": [pairs - 2 * share, share, share]}}


def _reads_sections(kind: type[PreTrainedConfig]) -> bool:
    """The config says so, or the code of its models does."""
    if "mrope_section" in getattr(kind, "ignore_keys_at_rope_validation", ()):
        return True
    code = importlib.util.find_spec(kind.__module__.replace(".configuration_", ".modeling_"))
    return code is not None and code.origin is not None and "mrope_section" in Path(code.origin).read_text("utf-8")


def _set(config: PreTrainedConfig) -> dict[str, bool]:
    """What the config around it has switched on or off in this one, such as the cross-attention of a decoder."""
    plain = type(config)()
    switches = {name: getattr(config, name) for name in config.to_dict() if hasattr(config, name)}
    return {
        name: value
        for name, value in switches.items()
        if isinstance(value, bool) and value != getattr(plain, name, value)
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _whole_numbers(value: Any) -> TypeGuard[list[int] | tuple[int, ...]]:
    return isinstance(value, list | tuple) and bool(value) and all(type(item) is int for item in value)


def _numbers(value: Any) -> TypeGuard[list[int | float] | tuple[int | float, ...]]:
    return isinstance(value, list | tuple) and bool(value) and all(type(item) in (int, float) for item in value)


def _divisor(fields: Mapping[str, Any], width: int) -> int:
    """A power of two that brings the stream down to the width, and divides every one of its sizes."""
    named = (
        "hidden_size",
        "d_model",
        "n_embd",
        "embed_dim",
        "dim",
        "hidden_dim",
        "hidden_sizes",
        "embed_dims",
        "n_dim",
    )
    named = (*named, "embedding_size", "model_dim", "emb_dim", "width", "hidden_channels", "base_channels", "dims")
    found = next((fields[name] for name in named if fields.get(name)), None)
    sizes: Any = found if isinstance(found, list | tuple) else [found]
    if not all(type(size) is int and size > 0 for size in sizes):
        return 1
    wanted = max(1, min(sizes) // min(width, 16) if len(sizes) > 1 else sizes[0] // width)
    return math.gcd(2 ** int(math.log2(wanted)), *sizes)


def _smaller(name: str, value: int, divisor: int) -> int:
    if _CHOSEN.search(name):
        return min(value, 2) if value > 0 else value
    if _EXPERTS.search(name):
        return min(value, 4)
    if _HEADS.search(name) or _IDS.search(name):
        return value
    if _VOCABULARY.search(name) and "type_vocab" not in name:
        return min(value, VOCABULARY)
    if _LAYERS.search(name):
        # Of the layers, those that read what another one has made are never all.
        return min(value, LAYERS - 1 if "shared" in name else LAYERS)
    if _PLACES.search(name):
        return min(value, 1024)
    if _KEPT.search(name) or value < 16 or value % divisor:
        return value
    return max(value // divisor, 4)


def _heads(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Four heads, or as many as there were, two of keys where there were fewer, and heads as wide as they can be."""
    found: dict[str, Any] = {}
    stream = next((changes[name] for name in ("hidden_size", "d_model", "n_embd", "embed_dim") if name in changes), 0)
    if not isinstance(stream, int) or not stream:
        return found
    for name, value in fields.items():
        if _HEADS.search(name) and type(value) is int and value > 4 and stream % 4 == 0:
            fewer = "key_value" in name or "kv" in name
            most = max((other for key, other in fields.items() if _HEADS.search(key) and type(other) is int), default=0)
            found[name] = 2 if fewer and value < most else 4
    old, heads = fields.get("head_dim"), fields.get("num_attention_heads")
    rotated = fields.get("qk_rope_head_dim")
    if "head_dim" in fields and old in (None, rotated):
        # What is left open is the stream's share, or that of the heads which turns with the position.
        share = stream // found.get("num_attention_heads", heads or stream)
        found["head_dim"] = share if old is None else changes.get("qk_rope_head_dim", rotated)
    elif type(old) is int and type(heads) is int:
        whole = stream == changes.get("hidden_size") and old * heads == fields.get("hidden_size")
        found["head_dim"] = max(stream // found.get("num_attention_heads", heads), 4) if whole else min(old, 16)
    return found


def _image(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A picture of 64 points a side, or of a few more where patches ask for them."""
    size, patch = fields.get("image_size"), fields.get("patch_size")
    side = -(-64 // patch) * patch if type(patch) is int and patch > 0 else 64
    if type(size) is int:
        return {"image_size": min(size, side)}
    if _whole_numbers(size) and len(size) == 2:
        return {"image_size": [min(item, side) for item in size]}
    return {}


def _ids(fields: Mapping[str, Any]) -> dict[str, int]:
    """Special tokens inside the vocabulary, each its own."""
    large = [
        name for name, value in fields.items() if type(value) is int and _IDS.search(name) and value >= VOCABULARY - 64
    ]
    return {name: VOCABULARY - 1 - place for place, name in enumerate(large)}
