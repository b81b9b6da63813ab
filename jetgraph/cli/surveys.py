"""`survey`: what components do on a file of prompts."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

import jetgraph as jg
from jetgraph.cli import options, terminal
from jetgraph.cli.root import app


class Studied(enum.StrEnum):
    """What is made of each prompt."""

    attributions = "attributions"
    ablations = "ablations"


@app.command(
    rich_help_panel="Interventions",
    epilog='[bold]Examples[/bold]\n\n  jetgraph survey demo prompts.txt --heads --target " the"\n\n'
    "  jetgraph survey demo prompts.jsonl --of ablations -o effects.csv",
)
def survey(
    model: options.Model,
    textfile: Annotated[
        str,
        typer.Argument(
            metavar="PROMPTFILE",
            help="A text file with a prompt in each line, a .jsonl, a .parquet, or datasets:NAME.",
            show_default=False,
        ),
    ],
    column: options.Column = "text",
    config: options.Subset = None,
    portion: options.Portion = "train",
    of: Annotated[Studied, typer.Option(help="What is made of each prompt.")] = Studied.attributions,
    heads: options.Heads = False,
    target: options.Target = None,
    versus: options.Versus = None,
    resamples: Annotated[int, typer.Option(min=1, help="Of the bootstrap over prompts.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    rows: options.Rows = 40,
    json: options.Json = False,
    output: options.Outputs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """Which components make a logit on many prompts: means of attributions or of ablations."""
    outputs = terminal.check_outputs(output, spreadsheet)
    aim = options.target_of(target, versus)
    corpus = terminal.corpus(textfile, column, config, portion)
    loaded = terminal.load_with_tokenizer(model)
    with terminal.working("tracing and surveying"):
        found = jg.survey(
            loaded,
            corpus,
            of=of.value,
            targets=aim,
            split="heads" if heads else None,
            resamples=resamples,
            seed=seed,
        )
    terminal.show(found, outputs, rows=rows, note="largest mean first, with 95 % intervals over prompts", json=json)
