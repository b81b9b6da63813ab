"""Numbers by component as a map: a row a block, a column a head, and one for each other branch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 16
"""Names up to which a list of them is easier to read than a map."""

NAMED = 4
"""Names of no block up to which a title has all of them."""

_NAME = re.compile(r"L(\d+)\.([^@ ]+?)(?:\.head(\d+))?")


@dataclass(frozen=True)
class LayerMap:
    """Numbers by block and by part of it."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: NDArray[np.float64]
    """[row, column]; NaN where there is nothing."""

    def draw(self, axes: Axes, limit: float, label: str = "") -> Any:
        """Paint it, blocks from below; the image, for a bar of colours."""
        image = axes.imshow(self.values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto", origin="lower")
        axes.set_xticks(range(len(self.columns)), self.columns, rotation=90, fontsize=7, parse_math=False)
        axes.set_yticks(range(len(self.rows)), self.rows, fontsize=7, parse_math=False)
        axes.set_title(label, fontsize=8, parse_math=False)
        return image


def has_place(name: str) -> bool:
    """A name is of a block, so that it has a place in a map.

    >>> has_place("L3.attn.head5"), has_place("embed")
    (True, False)
    """
    return _NAME.fullmatch(name) is not None


def without(names: Iterable[str]) -> str:
    """How a title ends where a map of these has no place for some of them.

    >>> without(["L3.mlp", "embed", "pos"]), without(["L3.mlp"])
    ('; without embed, pos', '')
    """
    others = list(dict.fromkeys(name for name in names if not has_place(name)))
    told = ", ".join(others) if len(others) <= NAMED else f"{len(others):,} that are of no block"
    return f"; without {told}" if others else ""


def layer_map(values: Mapping[str, float]) -> LayerMap | None:
    """The map of some numbers by name; None where they are few, or most are of no block.

    Names are aliases of branches and heads (`L3.mlp`, `L3.attn.head5`); what is of no block is left out.

    >>> layers = layer_map({f"L{block}.attn.head{head}": 1.0 for block in range(6) for head in range(5)})
    >>> layers.columns, layers.values.shape
    (('head0', 'head1', 'head2', 'head3', 'head4'), (6, 5))
    """
    cells: dict[tuple[int, str], float] = {}
    for name, value in values.items():
        if (match := _NAME.fullmatch(name)) is not None:
            block, branch, head = int(match[1]), match[2], match[3]
            cells[block, branch if head is None else f"{'' if branch == 'attn' else f'{branch}.'}head{head}"] = value
    if len(cells) <= MOST or 2 * len(cells) < len(values):
        return None
    blocks = sorted({block for block, _ in cells})
    parts = sorted({part for _, part in cells}, key=_by_number)
    grid = np.full((len(blocks), len(parts)), math.nan)
    for (block, part), value in cells.items():
        grid[blocks.index(block), parts.index(part)] = value
    return LayerMap(tuple(f"L{block}" for block in blocks), tuple(parts), grid)


def _by_number(part: str) -> tuple[bool, str, int]:
    """Heads first, in the order of their numbers."""
    text, _, digits = part.rpartition("head")
    return (not digits.isdigit(), text, int(digits)) if digits.isdigit() else (True, part, 0)
