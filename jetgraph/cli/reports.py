"""`report`: one page on a model, to be read and handed on."""

from __future__ import annotations

import pathlib
from json import dumps
from typing import Annotated

import typer

import jetgraph as jg
from jetgraph.cli import options, terminal
from jetgraph.cli.root import app
from jetgraph.files.targets import check_target
from jetgraph.views.report import REPORTS, facts


@app.command(
    epilog='[bold]Examples[/bold]\n\n  jetgraph report demo "Raise an exception if" --output report.html\n\n'
    '  jetgraph report gpt2 --other ./gpt2-finetuned "The capital of France is" -o report.md'
)
def report(
    model: options.Model,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="Texts to look at; @FILE takes one from a file.", show_default=False),
    ] = None,
    other: Annotated[
        str | None,
        typer.Option(
            "--other", metavar="MODEL", help="A second model: tell what has changed to it.", show_default=False
        ),
    ] = None,
    output: Annotated[
        list[pathlib.Path] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The report (.html .md); may be given again. \\[default: report.html]",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Write one page on a model: its structure, what its weights know, and what matters on prompts."""
    files = output or [pathlib.Path("report.html")]
    for file in files:
        check_target(file, REPORTS)
    texts = options.prompts_of(prompts or ())
    sides = [terminal.load(name) for name in (model, *([] if other is None else [other]))]
    with terminal.working("writing the report"):
        made = jg.report(sides[0], texts, other=sides[1] if len(sides) > 1 else None)
    for file in files:
        made.save(file)
    if json:
        told = {"title": made.title, "about": made.about, "sections": list(map(facts, made.sections))}
        typer.echo(dumps(told | {"files": list(map(str, files))}, ensure_ascii=False, indent=1))
        return
    for file in files:
        terminal.console().print(f"wrote {file}", markup=False)
