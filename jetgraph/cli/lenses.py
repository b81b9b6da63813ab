"""`lens`, `joint-lens` and `evaluate-lens`: what the stream says before its end."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

import jetgraph as jg
from jetgraph.applications.lenses.evaluation import LensEvaluation
from jetgraph.cli import options, terminal
from jetgraph.cli.root import app

PANEL = "Lenses"

Order = Annotated[
    Any,
    typer.Option(
        "--order",
        "-k",
        metavar="ORDER",
        parser=options.order_of,
        help="Highest order of the jets; 0 is the logit lens. auto: the lowest that leaves little.",
    ),
]


@app.command(
    rich_help_panel=PANEL,
    epilog='[bold]Examples[/bold]\n\n  jetgraph lens demo "Raise Value" --order 1 --output lens.png\n\n'
    '  jetgraph lens gpt2 "The capital of France is" -l "*.mlp" -o lens.csv',
)
def lens(
    model: options.Model,
    prompt: options.Prompt,
    order: Order = "0",
    tolerance: options.Tolerance = None,
    layers: options.Layers = None,
    plain: options.Plain = False,
    rows: options.Rows = 40,
    output: options.Outputs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """Decode the stream at every point: the logit lens (order 0), or jet lenses of higher orders."""
    outputs = terminal.check_outputs(output, spreadsheet)
    loaded, inputs, graph = terminal.read(model, prompt)
    with terminal.working("computing lenses"):
        found = jg.lens(
            graph,
            inputs,
            order=order,
            tolerance=tolerance,
            layers=options.layers_of(layers),
            scale=options.scale_of(plain),
            tokenizer=loaded.tokenizer,
        )
    last = found.output.shape[1] - 1
    says = found.columns()["says"][-1]
    terminal.show(
        found,
        outputs,
        rows=rows,
        columns=("point", "after", "order", "top", "probability", "kl", "cosine", "agrees", "remainder", "chosen"),
        # Of a point, the order that was chosen for it.
        keep=lambda row: row["position"] in (last, None) and row.get("chosen", "") is not None,
        note=f"at the last position, where the model says {says}; files hold every position",
    )


@app.command(
    rich_help_panel=PANEL,
    epilog='[bold]Example[/bold]\n\n  jetgraph joint-lens demo "Raise Value" --output joint.png',
)
def joint_lens(
    model: options.Model,
    prompt: options.Prompt,
    order: Order = "1",
    tolerance: options.Tolerance = None,
    plain: options.Plain = False,
    centres: options.Centres = options.Group.components,
    rows: options.Rows = 40,
    output: options.Outputs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """Decode the output from all components together, with the best weights for each token."""
    outputs = terminal.check_outputs(output, spreadsheet)
    loaded, inputs, graph = terminal.read(model, prompt)
    with terminal.working("computing the joint lens"):
        found = jg.joint_lens(
            graph,
            inputs,
            order=order,
            tolerance=tolerance,
            scale=options.scale_of(plain),
            centres=centres.value,
            tokenizer=loaded.tokenizer,
        )
    last = found.weights.shape[1] - 1
    remainder, uniform = float(found.remainder[-1, last]), float(found.uniform[-1, last])
    terminal.show(
        found,
        outputs,
        rows=rows,
        columns=("component", "weight", "alone"),
        keep=lambda row: row["position"] in (last, None),
        note=f"at the last position; ‖output − lens‖ / ‖output‖ is {remainder:.4g} with these weights, {uniform:.4g} "
        f"with equal ones, and as told with all weight on one (alone); optimal to {found.gap:.1e}",
    )


@app.command(
    rich_help_panel=PANEL,
    epilog="[bold]Example[/bold]\n\n  jetgraph evaluate-lens demo essay.txt --tokens 2000 --output lenses.png",
)
def evaluate_lens(
    model: options.Model,
    textfile: options.TextFile,
    orders: Annotated[str, typer.Option(help="Orders to compare, joined by commas.")] = "0,1,2,3",
    layers: options.Layers = None,
    plain: options.Plain = False,
    tokens: Annotated[int, typer.Option(min=1, help="Positions to compare, about.")] = 20_000,
    window: Annotated[int, typer.Option(min=2, help="Tokens of text in one input.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Inputs that are run at once.")] = 16,
    resamples: Annotated[int, typer.Option(min=1, help="Of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    rows: options.Rows = 40,
    output: options.Outputs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """Compare lenses of several orders with the model's output on a text, with 95 % intervals."""
    outputs = terminal.check_outputs(output, spreadsheet)
    chosen = options.integers_of(orders, "--orders")
    terminal.read_text(textfile)
    loaded = terminal.load_with_tokenizer(model)
    with terminal.working("tracing and evaluating"):
        found = jg.evaluate_lens(
            loaded,
            textfile,
            orders=chosen,
            layers=options.layers_of(layers),
            scale=options.scale_of(plain),
            tokens=tokens,
            window=window,
            batch=batch,
            resamples=resamples,
            seed=seed,
        )
    _show_remainders(found, rows)
    terminal.write(found, outputs)


def _show_remainders(found: LensEvaluation, rows: int) -> None:
    """By point and order what a lens leaves of the output, beside the radius of convergence that explains it."""
    rest, radius = found.metrics["remainder"], found.geometry["radius"].median
    table = [
        (
            f"h{point}",
            after,
            "" if math.isnan(radius[i]) else f"{radius[i]:.3g}",
            *(terminal.interval(rest.mean[i, j], rest.low[i, j], rest.high[i, j]) for j in range(len(found.orders))),
        )
        for i, (point, after) in enumerate(zip(found.points, found.after, strict=True))
    ]
    note = (
        "mean of ‖output − lens‖ / ‖output‖ of centred logits ± half of its 95 % interval, and the median radius "
        "of convergence ρ;\nwhere ρ > 1 higher orders come closer. Files hold KL, cosine and agreement too."
    )
    columns = ("point", "after", "ρ", *(f"order {order}" for order in found.orders))
    terminal.show_table(found.title, note, columns, table[:rows])
