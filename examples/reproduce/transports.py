"""What does the stream say at a layer: by logit lens, jets with plain and matched centres, or a transport?

    python examples/reproduce/transports.py                                   # the bundled GPT-2: half a minute
    python examples/reproduce/transports.py --model FOLDER --layers L14.mlp --layers L24.mlp --fitted a.safetensors …

The lenses of the paper look past all that comes between a layer and the decoder. A transport is the mean Jacobian of
just that, fitted on docstrings over shards that merge, all positions of a window at once by random signs; or read from
what `jetgraph transport fit` has written. All four are compared with the model on held-out docstrings, with 95 %
bootstrap intervals over windows.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

from corpora import docstrings
from experiment import BLUE, GREEN, ORANGE, RED, Row, command_line, opened, run, write_figure, write_table
from matplotlib.figure import Figure

import jetgraph as jg
from jetgraph.applications.lenses.sidebyside import LensComparison
from jetgraph.applications.subject import subject

COLOURS = (BLUE, ORANGE, GREEN, RED)
SHARDS = 2


def table(found: LensComparison) -> list[Row]:
    """A row for each quantity, lens and point."""
    columns = found.columns()
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def draw(found: LensComparison) -> Figure:
    """KL, remainder and agreement of the top token, by lens, along the points."""
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    places = range(len(found.points))
    panels = {
        "kl": "mean KL(model ‖ lens), nats",
        "remainder": "mean of ‖output − lens‖ / ‖output‖",
        "top1": "top agrees",
    }
    for axes, (name, label) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for kind, colour, mean, low, high in zip(
            found.kinds, COLOURS, found.mean[name], found.low[name], found.high[name], strict=False
        ):
            axes.plot(places, mean, "o-", markersize=3, color=colour, label=kind)
            axes.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
        if name != "top1":
            axes.set_yscale("log")
        axes.set_xticks(places, found.after, rotation=40, ha="right", fontsize=8)
        axes.set_title(label, fontsize=9)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line(__doc__ or "", "transports", "a causal language model (default: the bundled GPT-2)")
    parser.add_argument("--fitted", nargs="+", metavar="FILE", help="shards that were fitted before; they are merged")
    parser.add_argument("--layers", action="append", metavar="POINT", help="what points follow (default: every MLP)")
    parser.add_argument("--tokens", type=int, default=4096, help="of the text of the fit (default: 4096)")
    parser.add_argument("--compared", type=int, default=2000, help="of the text of the comparison (default: 2000)")
    parser.add_argument("--order", type=int, default=1, help="of the jets (default: 1)")
    options = parser.parse_args(arguments)
    loaded, _, tokenizer = opened(options.model)
    train, held = ([text for one in part for text in one.texts] for part in docstrings(options.quick))
    graph = subject(loaded).graph
    if options.fitted:
        shards = [jg.Transport.load(file) for file in options.fitted]
    else:
        size = {"tokens": 256 if options.quick else options.tokens, "window": 32}
        shards = [
            jg.fit_transport(
                graph, train, layers=options.layers or ["*.mlp"], shard=(at, SHARDS), positions="all",
                seed=options.seed, tokenizer=tokenizer, **size,
            )
            for at in range(SHARDS)
        ]  # fmt: skip
    whole = functools.reduce(lambda one, other: one.merge(other), shards)
    compared = 200 if options.quick else options.compared
    found = jg.compare_lenses(
        graph, held, whole, order=options.order, tokens=compared, window=32, seed=options.seed, tokenizer=tokenizer
    )
    print(f"a transport of {whole.count} positions, out of {len(shards)} shards")
    write_table(options.output / "transports.csv", table(found))
    write_figure(options.output / "transports.png", draw(found))


if __name__ == "__main__":
    sys.exit(run(main))
