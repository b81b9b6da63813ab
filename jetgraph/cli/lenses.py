"""`lens`, `joint-lens`, `evaluate-lens` and `transport`: what the stream says before its end."""

from __future__ import annotations

import enum
import math
import os
import pathlib
from collections import Counter
from contextlib import nullcontext
from json import dumps
from typing import TYPE_CHECKING, Annotated, Any

import typer

import jetgraph as jg
from jetgraph.cli import options, terminal
from jetgraph.cli.root import app, part_of_a_job
from jetgraph.errors import InputError
from jetgraph.files.graphs import GRAPHS
from jetgraph.files.targets import TENSORS, check_target
from jetgraph.files.writing import shown

if TYPE_CHECKING:
    from jetgraph.applications.lenses.evaluation import LensEvaluation
    from jetgraph.applications.lenses.transport import Transport

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


Window = Annotated[int, typer.Option(min=2, help="Tokens of text in one input.")]

Followed = Annotated[
    str | None,
    typer.Option(
        "--target",
        "-t",
        metavar="TOKEN",
        help='A token to follow (" the", #42 by id; without a tokenizer a class, 3): its rank, probability, logit.',
        show_default=False,
    ),
]

transports = typer.Typer(help="Lenses through the mean Jacobian of the rest of the stream.", rich_markup_mode="rich")
app.add_typer(transports, name="transport", rich_help_panel=PANEL)


@app.command(
    rich_help_panel=PANEL,
    epilog='[bold]Examples[/bold]\n\n  jetgraph lens demo "Raise Value" --order 1 --output lens.png\n\n'
    '  jetgraph lens gpt2 "The capital of France is" -l "*.mlp" -o lens.csv\n\n'
    '  jetgraph lens demo "Raise Value" --target Error --output error.png',
)
def lens(
    model: options.Model,
    prompts: options.Prompts = None,
    order: Order = "0",
    tolerance: options.Tolerance = None,
    layers: options.Layers = None,
    plain: options.Plain = False,
    target: Followed = None,
    position: Annotated[
        str | None,
        typer.Option(
            metavar="POSITION",
            help="Look at one position, from 0 (negative from the end), or last. \\[default: all]",
            show_default=False,
        ),
    ] = None,
    rows: options.Rows = 40,
    json: options.Json = False,
    output: options.Graphs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """Decode the stream at every point: the logit lens (order 0), or jet lenses of higher orders."""
    texts = options.prompts_of(prompts)
    outputs = terminal.check_outputs(output, spreadsheet, GRAPHS, len(texts))
    given: dict[str, Any] = {
        "order": order,
        "tolerance": tolerance,
        "layers": options.layers_of(layers),
        "scale": options.scale_of(plain),
        "target": None if target is None else options.token_of(target),
        "position": options.position_of(position),
    }
    inputs, graph, given = terminal.read(model, texts, given)
    with terminal.working("computing lenses"):
        decoded = terminal.of_each(graph, "lenses", inputs, lambda one: jg.lens(graph, one, **given))
    terminal.show(decoded, outputs, rows=rows, json=json)


@app.command(
    rich_help_panel=PANEL,
    epilog='[bold]Example[/bold]\n\n  jetgraph joint-lens demo "Raise Value" --output joint.png',
)
def joint_lens(
    model: options.Model,
    prompts: options.Prompts = None,
    order: Order = "1",
    tolerance: options.Tolerance = None,
    plain: options.Plain = False,
    centres: options.Centres = options.Group.components,
    target: Followed = None,
    rows: options.Rows = 40,
    json: options.Json = False,
    output: options.Graphs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """Decode the output from all components together, with the best weights for each token."""
    texts = options.prompts_of(prompts)
    outputs = terminal.check_outputs(output, spreadsheet, GRAPHS, len(texts))
    given: dict[str, Any] = {
        "order": order,
        "tolerance": tolerance,
        "scale": options.scale_of(plain),
        "centres": centres.value,
        "target": None if target is None else options.token_of(target),
    }
    inputs, graph, given = terminal.read(model, texts, given)
    with terminal.working("computing the joint lens"):
        joint = terminal.of_each(graph, "joint lenses", inputs, lambda one: jg.joint_lens(graph, one, **given))
    terminal.show(joint, outputs, rows=rows, json=json)


@app.command(
    rich_help_panel=PANEL,
    epilog="[bold]Example[/bold]\n\n  jetgraph evaluate-lens demo essay.txt --tokens 2000 --output lenses.png\n\n"
    "  jetgraph evaluate-lens gpt2 datasets:allenai/c4 --config en --tokens 1000000",
)
def evaluate_lens(
    model: options.Model,
    textfile: options.TextFile,
    column: options.Column = "text",
    config: options.Subset = None,
    split: options.Portion = "train",
    orders: Annotated[
        str,
        typer.Option(help="Orders to compare, joined by commas; auto: at each point the lowest that leaves little."),
    ] = "0,1,2,3",
    tolerance: options.Tolerance = None,
    layers: options.Layers = None,
    plain: options.Plain = False,
    tokens: Annotated[int, typer.Option(min=1, help="Positions to compare, about.")] = 20_000,
    window: Window = 64,
    skip_first: Annotated[int, typer.Option(min=0, help="Positions of each window that are left out.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Inputs that are run at once.")] = 16,
    resamples: Annotated[int, typer.Option(min=1, help="Of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    memory: options.Memory = "256M",
    rows: options.Rows = 40,
    json: options.Json = False,
    output: options.Outputs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """Compare lenses of several orders with the model's output on a text, with 95 % intervals."""
    outputs = terminal.check_outputs(output, spreadsheet)
    chosen = "auto" if orders == "auto" else options.integers_of(orders, "--orders")
    texts = terminal.corpus(textfile, column, config, split)
    loaded = terminal.load_with_tokenizer(model)
    with terminal.working("tracing and evaluating"):
        evaluation = jg.evaluate_lens(
            loaded,
            texts,
            orders=chosen,
            tolerance=tolerance,
            layers=options.layers_of(layers),
            scale=options.scale_of(plain),
            tokens=tokens,
            window=window,
            skip_first=skip_first,
            batch=batch,
            resamples=resamples,
            seed=seed,
            memory=options.bytes_of(memory),
        )
    if json:
        terminal.show(evaluation, outputs, rows=rows, json=True)
        return
    _show_remainders(evaluation, rows)
    terminal.write(evaluation, outputs)


def _show_remainders(evaluation: LensEvaluation, rows: int) -> None:
    """By point and order what a lens leaves of the output, beside the radius of convergence that explains it."""
    rest, radius = evaluation.metrics["remainder"], evaluation.geometry["radius"].median
    chosen = [str(one.order) for one in evaluation.chosen] or None
    table = [
        (
            f"h{point}",
            after,
            *(() if chosen is None else (chosen[i],)),
            "" if math.isnan(radius[i]) else f"{radius[i]:.3g}",
            *(
                terminal.interval(rest.mean[i, j], rest.low[i, j], rest.high[i, j])
                for j in range(len(evaluation.orders))
            ),
        )
        for i, (point, after) in enumerate(zip(evaluation.points, evaluation.after, strict=True))
    ]
    note = (
        "mean of ‖output − lens‖ / ‖output‖ of centred logits ± half of its 95 % interval, and the median radius "
        "of convergence ρ;\nwhere ρ > 1 higher orders come closer. Files hold KL, cosine and agreement too."
    )
    if chosen is not None:
        note += "\nWhy an order was chosen stands in the files."
    columns = (
        "point",
        "after",
        *(() if chosen is None else ("chosen",)),
        "ρ",
        *(f"order {order}" for order in evaluation.orders),
    )
    terminal.show_end(evaluation.title, note, columns, table, rows)


class Positions(enum.StrEnum):
    """Positions of a window whose slopes are taken."""

    one = "one"
    all = "all"


class Tail(enum.StrEnum):
    """What stands for the rest of the stream."""

    mean = "mean"
    frozen = "frozen"
    jet = "jet"


Fitted = Annotated[
    pathlib.Path | None,
    typer.Option("--file", "-f", metavar="FILE", help="What transport fit has written.", show_default=False),
]


AsJson = Annotated[bool, typer.Option("--json", help="Say as JSON what was written.")]


@transports.command(
    "fit",
    epilog="[bold]Examples[/bold]\n\n  jetgraph transport fit demo essay.txt -o demo.safetensors\n\n"
    "  jetgraph transport fit demo essay.txt --shard 0/2 -o one.safetensors",
)
def fit(
    model: options.Model,
    textfile: options.TextFile,
    output: Annotated[pathlib.Path, typer.Option("--output", "-o", metavar="FILE", help="A .safetensors file.")],
    column: options.Column = "text",
    config: options.Subset = None,
    split: options.Portion = "train",
    layers: options.Layers = None,
    tokens: Annotated[
        int, typer.Option(min=1, help="Of the text that are looked at; one position of a window.")
    ] = 4096,
    window: Window = 64,
    batch: Annotated[int, typer.Option(min=1, help="Windows that go together.")] = 8,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Every Nth window from the Ith on, counted from 0.", show_default=False),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Keep what is done in this .safetensors file, and go on from there; --shard is of its units then, and "
            "jetgraph merge joins states to what gives all of it to the last bit.",
            show_default=False,
        ),
    ] = None,
    positions: Annotated[
        Positions, typer.Option(help="Of a window: one, or all by random signs, which is more samples at more noise.")
    ] = Positions.one,
    seed: Annotated[int, typer.Option(help="Of the positions, or of the signs.")] = 0,
    json: AsJson = False,
) -> None:
    """Fit the mean Jacobian from points of the stream to its end, on a text or a shard of it."""
    check_target(output, TENSORS)
    part = (0, 1) if shard is None or state is not None else options.shard_of(shard)
    texts = terminal.corpus(textfile, column, config, split)
    loaded = terminal.load_with_tokenizer(model)
    with nullcontext() if state is None else part_of_a_job(state, shard):
        with terminal.working("tracing and fitting"):
            transport = jg.fit_transport(
                loaded,
                texts,
                layers=options.layers_of(layers),
                tokens=tokens,
                window=window,
                batch=batch,
                shard=part,
                positions=positions.value,
                seed=seed,
            )
        _written(transport, output, json)


@transports.command(
    "merge",
    epilog="[bold]Example[/bold]\n\n  jetgraph transport merge one.safetensors two.safetensors -o whole.safetensors",
)
def merge(
    files: Annotated[list[pathlib.Path], typer.Argument(metavar="FILES", help="What transport fit has written.")],
    output: Annotated[pathlib.Path, typer.Option("--output", "-o", metavar="FILE", help="A .safetensors file.")],
    json: AsJson = False,
) -> None:
    """Add up what shards have given."""
    check_target(output, TENSORS)
    twice = next((file for file, number in Counter(map(os.path.realpath, files)).items() if number > 1), None)
    if twice is not None:
        raise InputError(f"{shown(twice)} is named twice, and what it holds would count twice: name each shard once")
    first, *others = [jg.Transport.load(file) for file in files]
    for other in others:
        first = first.merge(other)
    _written(first, output, json)


def _written(transport: Transport, output: pathlib.Path, json: bool) -> None:
    """Write a transport, and say what it is of."""
    transport.save(output)
    facts = {"model": transport.model, "points": list(transport.points), "count": transport.count, "file": str(output)}
    typer.echo(dumps(facts, ensure_ascii=False) if json else f"{transport!r}\nwrote {output}")


@transports.command(
    "lens",
    epilog='[bold]Examples[/bold]\n\n  jetgraph transport lens demo "Raise Value" -f demo.safetensors -t Error\n\n'
    '  jetgraph transport lens demo "Raise Value" --tail jet --order 2',
)
def transport_lens(
    model: options.Model,
    prompts: options.Prompts = None,
    file: Fitted = None,
    tail: Annotated[Tail, typer.Option(help="The fitted map; or the prompt's own, frozen or as a jet.")] = Tail.mean,
    order: Annotated[int, typer.Option("--order", "-k", min=1, help="Of --tail jet.")] = 1,
    layers: options.Layers = None,
    target: Followed = None,
    rows: options.Rows = 70,
    json: options.Json = False,
    output: options.Graphs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """Take the stream at points to its end by a map, and decode it there."""
    texts = options.prompts_of(prompts)
    outputs = terminal.check_outputs(output, spreadsheet, GRAPHS, len(texts))
    if (tail is Tail.mean) != (file is not None):
        raise InputError("--file goes with --tail mean, the default: write one with jetgraph transport fit")
    given: dict[str, Any] = {
        "tail": tail.value,
        "order": order,
        "layers": options.layers_of(layers),
        "target": None if target is None else options.token_of(target),
    }
    fitted = None if file is None else jg.Transport.load(file)
    inputs, graph, given = terminal.read(model, texts, given)
    with terminal.working("computing lenses"):
        decoded = terminal.of_each(
            graph, "transport lenses", inputs, lambda one: jg.transport_lens(graph, one, fitted, **given)
        )
    terminal.show(decoded, outputs, rows=rows, json=json)


@transports.command(
    "compare",
    epilog="[bold]Example[/bold]\n\n  jetgraph transport compare demo other.txt -f demo.safetensors -o lenses.png",
)
def compare(
    model: options.Model,
    textfile: options.TextFile,
    column: options.Column = "text",
    config: options.Subset = None,
    split: options.Portion = "train",
    file: Fitted = None,
    order: Annotated[int, typer.Option("--order", "-k", min=1, help="Of the jets.")] = 1,
    layers: options.Layers = None,
    tokens: Annotated[int, typer.Option(min=1, help="Positions to compare, about.")] = 2_000,
    window: Window = 64,
    resamples: Annotated[int, typer.Option(min=1, help="Of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    rows: options.Rows = 70,
    json: options.Json = False,
    output: options.Outputs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """Logit lens, jets with plain and matched centres, and the transport, side by side on a text."""
    outputs = terminal.check_outputs(output, spreadsheet)
    texts = terminal.corpus(textfile, column, config, split)
    fitted = None if file is None else jg.Transport.load(file)
    loaded = terminal.load_with_tokenizer(model)
    with terminal.working("tracing and comparing"):
        comparison = jg.compare_lenses(
            loaded,
            texts,
            fitted,
            order=order,
            layers=options.layers_of(layers),
            tokens=tokens,
            window=window,
            resamples=resamples,
            seed=seed,
        )
    if json:
        terminal.show(comparison, outputs, rows=rows, json=True)
        return
    kl = [comparison.mean["kl"], comparison.low["kl"], comparison.high["kl"]]
    table = [
        (
            f"h{point}",
            after,
            *(terminal.interval(*(float(end[k, p]) for end in kl)) for k in range(len(comparison.kinds))),
        )
        for p, (point, after) in enumerate(zip(comparison.points, comparison.after, strict=True))
    ]
    note = "mean KL(model ‖ lens) in nats ± half of its 95 % interval; files hold remainder, cosine and agreement too"
    terminal.show_end(comparison.title, note, ("point", "after", *comparison.kinds), table, rows)
    terminal.write(comparison, outputs)
