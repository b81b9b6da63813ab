"""What the experiments share: their command line, their tables and pictures, and confidence intervals."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import rankdata

from jetgraph.errors import InputError, JetGraphError
from jetgraph.loading import Loaded, load

Row = Mapping[str, Any]
"""One row of a table, by column."""

BLUE, ORANGE, GREEN, RED, GREY = "#3b6ea5", "#d1822a", "#4f8f4f", "#b5403c", "#8a8a8a"
"""The colours of all pictures."""


def command_line(description: str, name: str, model: str) -> argparse.ArgumentParser:
    """A parser with the options that every experiment has; `model` is the help text of --model."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", metavar="NAME", help=model)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(name),
        metavar="FOLDER",
        help="where the results go (default: ./%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of training, sampling and resampling (default: 0)")
    parser.add_argument("--quick", action="store_true", help="a few seconds on few data, to see that it runs")
    return parser


def opened(names: Sequence[str] | None) -> tuple[Loaded, Any, Any]:
    """The last model of --model, the bundled GPT-2 without it: as loaded, itself, and its tokenizer.

    Raises `InputError` where it has no tokenizer.
    """
    name = names[-1] if names else "demo"
    loaded = load(name)
    if loaded.tokenizer is None:
        raise InputError(f"{name} has no tokenizer, and these experiments read texts: name a language model with one")
    return loaded, loaded.model, loaded.tokenizer


def run(main: Callable[[Sequence[str] | None], None]) -> int:
    """Run an experiment as a program: errors that the user can mend end in one line and exit status 2."""
    try:
        main(None)
    except (JetGraphError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write_table(file: Path, rows: Sequence[Row]) -> None:
    """Rows of equal keys as CSV; floats with five digits, which is more than they are worth."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{cell:.5g}" if isinstance(cell, float) else cell for key, cell in row.items()})
    print(f"wrote {file}")


def write_figure(file: Path, figure: Figure) -> None:
    """A figure as PNG, in 128 colours, which makes it a third as large."""
    file.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, bbox_inches="tight")
    Image.open(buffer).convert("RGB").quantize(128).save(file, optimize=True)
    print(f"wrote {file}")


def bars(rows: Sequence[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Centres, and lengths [2, rows] of the error bars, of a quantity with columns `name`, `name_low`, `name_high`."""
    centre, low, high = (np.array([row[name + end] for row in rows], dtype=float) for end in ("", "_low", "_high"))
    return centre, np.stack((centre - low, high - centre))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def columns(self, name: str) -> dict[str, float]:
        """As three columns of a table."""
        return {name: self.mean, f"{name}_low": self.low, f"{name}_high": self.high}


def estimate(
    values: Sequence[float] | np.ndarray,
    weights: Sequence[float] | np.ndarray | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> Estimate:
    """Σ values / Σ weights (a plain mean without weights) with the percentile bootstrap over its elements.

    The elements are what was drawn independently: samples or windows of text, not their tokens. With weights, `values`
    are sums over an element and `weights` the numbers of what they sum. All NaN where there is nothing.
    """
    top = np.asarray(values, dtype=float)
    bottom = np.ones_like(top) if weights is None else np.asarray(weights, dtype=float)
    if not bottom.sum():
        return Estimate(float("nan"), float("nan"), float("nan"))
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(top), size=(resamples, len(top)))
    sums, counts = top[drawn].sum(axis=1), bottom[drawn].sum(axis=1)
    means = sums[counts > 0] / counts[counts > 0]
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(top.sum() / bottom.sum()), float(low), float(high))


def correlation(contexts: np.ndarray, one: np.ndarray, other: np.ndarray, seed: int, resamples: int = 500) -> Estimate:
    """Spearman's correlation with a 95 % interval by resampling contexts, whose bi-grams are not independent."""
    a, b = rankdata(one), rankdata(other)
    a, b = a - a.mean(), b - b.mean()
    _, group = np.unique(contexts, return_inverse=True)
    sums = np.stack([np.bincount(group, values) for values in (a * b, a * a, b * b, a, b, np.ones_like(a))])
    drawn = np.random.default_rng(seed).multinomial(sums.shape[1], np.full(sums.shape[1], 1 / sums.shape[1]), resamples)

    def of(total: np.ndarray) -> np.ndarray:
        ab, aa, bb, first, second, number = total
        return (ab - first * second / number) / np.sqrt((aa - first**2 / number) * (bb - second**2 / number))

    low, high = np.quantile(of(sums @ drawn.T), (0.025, 0.975))
    return Estimate(float(of(sums.sum(axis=1))), float(low), float(high))
