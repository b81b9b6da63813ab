"""What is kept of numbers per token: sums of neighbouring windows, and of a long text counts instead of the numbers.

Means and intervals are made of the sums. A median is that of the numbers where there is room for all of them, and else
of the numbers rounded to `DIGITS` binary digits, which are counted: so what is kept does not grow with the text, and is
the same in whatever order and grouping its parts are put together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from jetgraph.applications.intervals import Array, bootstrap
from jetgraph.applications.lenses.corpora import Windows
from jetgraph.scale.states import ADDED, Record

KEPT = 2**28
"""Bytes of numbers that are kept all; of more, medians are those of rounded ones."""

DIGITS = 7
"""Binary digits of rounded numbers, which are right to 2^−7 of themselves."""

LOWEST, HIGHEST = -30, 18
"""Powers of two between which numbers are told apart; below is 0, above infinity."""

_EACH = 2 ** (DIGITS - 1)
_SIZES = (HIGHEST - LOWEST) * _EACH


@dataclass(frozen=True, eq=False)
class Statistic:
    """A quantity over tokens: its mean with a 95 % bootstrap interval, and its median.

    Arrays of shape [point, order], or [point] for what does not depend on the order.
    """

    mean: Array
    low: Array
    high: Array
    median: Array

    def __getitem__(self, place: int) -> Statistic:
        """Of one of several quantities that stand first."""
        return Statistic(*(values[place] for values in (self.mean, self.low, self.high, self.median)))


@dataclass(frozen=True)
class Tally:
    """What is kept of quantities of each token of a text."""

    pool: int
    """Windows that are one unit that is resampled."""
    tokens: int
    """In the whole text, about; 0 where all numbers are kept."""

    @classmethod
    def over(cls, windows: Windows) -> Tally:
        """Of windows, however many there are."""
        return cls(windows.pool(), round(windows.tokens / windows.share))

    @classmethod
    def whole(cls, windows: Windows) -> Tally:
        """Of few windows, of which all numbers are kept."""
        return cls(windows.pool(), 0)

    def record(self, measured: Sequence[Array]) -> Record:
        """Of what successive windows give, [..., position] each."""
        pools = [measured[start : start + self.pool] for start in range(0, len(measured), self.pool)]
        flat = np.concatenate(measured, axis=-1)
        kept = {
            "sums": np.stack([sum(values.sum(-1, dtype=np.float64) for values in pool) for pool in pools]),
            "sizes": np.array([sum(values.shape[-1] for values in pool) for pool in pools], dtype=np.float64),
        }
        few = 8 * self.tokens * (flat.size // flat.shape[-1]) <= KEPT
        kept |= {"values": flat.astype(np.float64)} if few else {f"{ADDED}counts": counted(flat)}
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in kept.items()}


def statistic(records: Sequence[Record], resamples: int, seed: int) -> Statistic:
    """Means over tokens, their intervals when pools of windows are resampled, and medians."""
    sums, sizes = (np.concatenate([record[name].numpy() for record in records]) for name in ("sums", "sizes"))
    low, high = bootstrap(sums, sizes.reshape(-1, *[1] * (sums.ndim - 1)), resamples, seed)
    counts = records[0].get(f"{ADDED}counts")
    median = np.median(values_of(records), axis=-1) if counts is None else middle(counts.numpy())
    return Statistic(sums.sum(0) / sizes.sum(), low, high, median)


def values_of(records: Sequence[Record], name: str = "values") -> Array:
    """The numbers that were kept, [..., position]."""
    return np.concatenate([record[name].numpy() for record in records if name in record], axis=-1)


def tokens_of(records: Sequence[Record]) -> int:
    """How many there are."""
    return int(sum(record["sizes"].sum() for record in records))


def counted(values: Array) -> np.ndarray:
    """How often each rounded number stands in [..., position]: [..., number], the last one of what is no number.

    >>> counts = counted(np.array([1.0, 0.0, -3.0, 1.001, np.inf]))
    >>> float(middle(counts))
    1.0
    """
    share, power = np.frexp(np.abs(values))
    digits = np.rint(np.where(np.isfinite(share), share, 0.5) * 2 * _EACH).astype(np.int64)
    size = np.where(np.isinf(values), _SIZES, (power.astype(np.int64) - LOWEST) * _EACH + digits - _EACH)
    size = np.where((share == 0) | (size < 0), -1, np.minimum(size, _SIZES))
    place = np.where(np.isnan(values), 2 * _SIZES + 3, _SIZES + 1 + np.where(values < 0, -1, 1) * (size + 1))
    rows = place.reshape(-1, values.shape[-1])
    number = 2 * _SIZES + 4
    flat = (rows + number * np.arange(len(rows))[:, None]).ravel()
    return np.bincount(flat, minlength=number * len(rows)).reshape(*values.shape[:-1], number)


def middle(counts: np.ndarray) -> Array:
    """The median of what was counted; NaN where something is no number, or there is nothing."""
    size = np.arange(_SIZES)
    above = np.append((_EACH + size % _EACH) / (2 * _EACH) * 2.0 ** (size // _EACH + LOWEST), np.inf)
    numbers = np.concatenate([-above[::-1], [0.0], above])
    below, total = counts[..., :-1].cumsum(-1), counts.sum(-1)
    ranks = ((total - 1) // 2, total // 2)
    one, other = (numbers[np.minimum((below <= rank[..., None]).sum(-1), len(numbers) - 1)] for rank in ranks)
    return np.where((counts[..., -1] > 0) | (total == 0), np.nan, (one + other) / 2)
