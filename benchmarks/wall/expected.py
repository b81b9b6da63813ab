"""The joins of a class by its own code, with what was read there.

`expected.jsonl` has a line for each class: how many joins there are at the size and with the inputs of the wall, inner
ones included, and which sums of the code these are. What does not run (a cross-attention without an encoder), what the
output is not made of, and sums with what does not depend on the inputs, are none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LINES = Path(__file__).with_name("expected.jsonl")


@dataclass(frozen=True)
class Expected:
    """What the code of a class says."""

    joins: int
    read: str
    kinds: str = ""
    """Of branches, as `attn 2, mlp 2`; empty where nobody wrote them down."""

    def counted(self) -> dict[str, int]:
        """The branches of each kind."""
        pairs = (part.rsplit(maxsplit=1) for part in self.kinds.split(",") if part.strip())
        return {kind.strip(): int(number) for kind, number in pairs}


@cache
def expected() -> Mapping[str, Expected]:
    """By class, of those that were read."""
    lines = map(json.loads, LINES.read_text(encoding="utf-8").splitlines())
    return {line["model"]: Expected(line["joins"], line["read"]) for line in lines}
