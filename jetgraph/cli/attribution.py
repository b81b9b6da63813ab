"""`spectrum`, `attribute` and `rank`: what matters for a logit, with exact bookkeeping."""

from __future__ import annotations

import enum
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import jetgraph as jg
from jetgraph.applications.results import TABLES
from jetgraph.cli import options, terminal
from jetgraph.cli.interventions import Heads, Target, split_of, target_of
from jetgraph.cli.root import app
from jetgraph.errors import InputError, quoted
from jetgraph.files.graphs import GRAPHS
from jetgraph.views.picture import PICTURES

PANEL = "Attribution"


class Linear(enum.StrEnum):
    """What stands for a site."""

    frozen = "frozen"
    half = "half"
    gradient = "gradient"


Rules = Annotated[
    Linear,
    typer.Option(
        "--rules", help="What stands for a site: its gates held, products shared by halves, or its first order."
    ),
]

Positions = Annotated[bool, typer.Option("--positions/--no-positions", help="Tell the positions of the prompt apart.")]

OfRanking = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        "-t",
        metavar="TOKEN",
        help='The token whose logit is told (" the", or #42 by id); given twice, the difference of the two logits. '
        "\\[default: the top tokens that hold 95 %, by their probability]",
        show_default=False,
    ),
]


def _classes_of(texts: Sequence[str] | None) -> str | dict[str, str]:
    """What `--by` stands for: a property of paths, or PATTERN=NAME several times."""
    if not texts:
        return "length"
    if len(texts) == 1 and ">" not in texts[0]:
        return texts[0]
    found: dict[str, str] = {}
    for text in texts:
        pattern, equals, name = (part.strip() for part in text.rpartition("="))
        if not equals or not pattern or not name:
            raise InputError(f"--by {quoted(text)} is not understood: several are patterns, each as PATTERN=NAME")
        found[pattern] = name
    return found


@app.command(
    rich_help_panel=PANEL,
    epilog='[bold]Examples[/bold]\n\n  jetgraph spectrum demo "Raise Value" --by attn --output spectrum.png\n\n'
    '  jetgraph spectrum demo "Raise Value" --by "last attn" --heads\n\n'
    '  jetgraph spectrum demo "Raise Value" --by "** > L3.mlp > logits=through the last MLP"',
)
def spectrum(
    model: options.Model,
    prompt: options.Prompt,
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            "-b",
            metavar="CLASSES",
            help='length, attn, mlp (how many are passed), last, first, layer, source, "last attn", …; or '
            "PATTERN=NAME, which may be given again. \\[default: length]",
            show_default=False,
        ),
    ] = None,
    select: options.Select = None,
    heads: Heads = False,
    split: options.Splits = None,
    rules: Rules = Linear.frozen,
    target: Target = None,
    memory: options.Memory = "256M",
    rows: options.Rows = 40,
    json: options.Json = False,
    output: options.Outputs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """A logit as a sum over classes of paths: by length, attention hops, last site, or patterns."""
    outputs = terminal.check_outputs(output, spreadsheet)
    how, token, classes, linear = split_of(split, heads), target_of(target), _classes_of(by), rules.value
    loaded, inputs, graph = terminal.read(model, prompt)
    with terminal.working("summing paths"):
        found = jg.spectrum(
            graph,
            inputs,
            by=classes,
            target=token,
            paths=select or None,
            rules=linear,
            memory=options.bytes_of(memory),
            split=how,
            tokenizer=loaded.tokenizer,
        )
    terminal.show(
        found,
        outputs,
        rows=rows,
        columns=("class", "value", "share", "paths"),
        note="at the last position; classes add up to Σ, and cancel where Σ|class| is larger",
        json=json,
    )


@app.command(
    rich_help_panel=PANEL,
    epilog='[bold]Examples[/bold]\n\n  jetgraph attribute demo "Raise Value" --heads --output graph.png\n\n'
    '  jetgraph attribute demo "Raise Value" -t Error --versus ue --paths 10\n\n'
    '  jetgraph attribute demo "Raise Value" --nodes 0.9 --output graph.graphml --output edges.csv',
)
def attribute(
    model: options.Model,
    prompt: options.Prompt,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            metavar="TOKEN",
            help='A token (" the", or #42 by id); may be given again. \\[default: the top tokens that hold 95 %]',
            show_default=False,
        ),
    ] = None,
    versus: Annotated[
        str | None,
        typer.Option("--versus", metavar="TOKEN", help="The token whose logit is subtracted.", show_default=False),
    ] = None,
    heads: Heads = False,
    split: options.Splits = None,
    rules: Rules = Linear.frozen,
    positions: Positions = True,
    nodes: Annotated[float, typer.Option(help="Share of the influence of nodes that is kept; 1 for all.")] = 0.8,
    edges: Annotated[float, typer.Option(help="The same for the edges among them.")] = 0.98,
    paths: Annotated[int, typer.Option(min=0, help="Paths to tell, in the place of edges.")] = 0,
    memory: options.Memory = "256M",
    rows: options.Rows = 40,
    json: options.Json = False,
    output: Annotated[
        list[pathlib.Path] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help=f"Write the graph ({' '.join(GRAPHS)}), the table ({' '.join(TABLES)}) or the figure "
            f"({' '.join(PICTURES)}); may be given again.",
            show_default=False,
        ),
    ] = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """The attribution graph: which component, at which token, by which way, makes a logit."""
    outputs = terminal.check_outputs(output, spreadsheet, () if paths else GRAPHS)
    how, linear, size = split_of(split, heads), rules.value, options.bytes_of(memory)
    chosen = _targets_of(target, versus)
    loaded, inputs, graph = terminal.read(model, prompt)
    with terminal.working("attributing"):
        found = jg.attribute(
            graph,
            inputs,
            target=chosen,
            split=how,
            rules=linear,
            positions=positions,
            memory=size,
            tokenizer=loaded.tokenizer,
        ).prune(nodes, edges)
        told = found.paths(paths) if paths else found
    note = (
        "largest value first" if paths else "at the last position, most influential edges first; rest is what was cut"
    )
    terminal.show(told, outputs, rows=rows, note=note, json=json)


def _targets_of(texts: Sequence[str] | None, versus: str | None) -> Any:
    tokens = [options.token_of(text) for text in texts or ()]
    if versus is not None:
        if len(tokens) != 1:
            raise InputError(f"--versus goes with one --target, and {len(tokens)} were given")
        return tokens[0], options.token_of(versus)
    return tokens[0] if len(tokens) == 1 else tokens or None


@app.command(
    rich_help_panel=PANEL,
    epilog='[bold]Examples[/bold]\n\n  jetgraph rank demo "Raise Value" --top 15\n\n'
    '  jetgraph rank demo "Raise Value" -t Error --at-least 0.5 --positions --output paths.csv',
)
def rank(
    model: options.Model,
    prompt: options.Prompt,
    target: OfRanking = None,
    top: Annotated[int | None, typer.Option(min=1, help="Paths at most.  \\[default: 20]", show_default=False)] = None,
    at_least: Annotated[
        float | None, typer.Option("--at-least", help="The least absolute value of a path.", show_default=False)
    ] = None,
    heads: Heads = False,
    split: options.Splits = None,
    rules: Rules = Linear.frozen,
    positions: Positions = False,
    signs: Annotated[int, typer.Option(min=2, help="Random signs, where the bound is not exact.")] = 64,
    memory: options.Memory = "256M",
    rows: options.Rows = 40,
    json: options.Json = False,
    output: options.Outputs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """The paths that give a logit most, out of all of them, and what the others may hold."""
    outputs = terminal.check_outputs(output, spreadsheet)
    how, token, linear, size = split_of(split, heads), target_of(target), rules.value, options.bytes_of(memory)
    loaded, inputs, graph = terminal.read(model, prompt)
    with terminal.working("ranking paths"):
        found = jg.rank(
            graph,
            inputs,
            target=token,
            top=top,
            at_least=at_least,
            positions=positions,
            split=how,
            rules=linear,
            signs=signs,
            memory=size,
            tokenizer=loaded.tokenizer,
        )
    terminal.show(found, outputs, rows=rows, note="at the last position, largest absolute value first", json=json)
