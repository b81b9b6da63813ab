"""Which classes of transformers there are, one for each kind of config: that with the head people use most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

HEADS = (
    "CAUSAL_LM",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "MASKED_LM",
    "IMAGE_CLASSIFICATION",
    "SPEECH_SEQ_2_SEQ",
    "CTC",
    "AUDIO_CLASSIFICATION",
    "IMAGE_TEXT_TO_TEXT",
    "SEMANTIC_SEGMENTATION",
    "DEPTH_ESTIMATION",
    "OBJECT_DETECTION",
    "VIDEO_CLASSIFICATION",
    "SEQUENCE_CLASSIFICATION",
)
"""The likeliest first; the bare model where a config has none of them."""


def found(kinds: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Kinds of configs with the name of a class each, which no other has."""
    tables = [getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES") for head in HEADS]
    tables.append(modeling_auto.MODEL_MAPPING_NAMES)
    seen: set[str] = set()
    for kind in kinds or CONFIG_MAPPING_NAMES:
        names = [name for table in tables if kind in table for name in _listed(table[kind])]
        name = next((name for name in names if hasattr(transformers, name)), None)
        if name is not None and name not in seen:
            seen.add(name)
            yield kind, name


def _listed(names: Any) -> tuple[str, ...]:
    return tuple(names) if isinstance(names, tuple | list) else (names,)
