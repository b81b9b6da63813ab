"""`spectrum`: what matters for a logit, with exact bookkeeping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

import jetgraph as jg
from jetgraph.applications.attribution.linearising import RULES, Linearisation
from jetgraph.cli import options, terminal
from jetgraph.cli.interventions import Heads, Target, split_of, target_of
from jetgraph.cli.root import app
from jetgraph.errors import InputError, quoted

PANEL = "Attribution"

Rules = Annotated[
    str,
    typer.Option(
        "--rules",
        help="What stands for a site: frozen (gates held), half (products shared by halves), gradient (first order).",
    ),
]

Json = Annotated[bool, typer.Option("--json", help="Print the whole table as JSON.")]


def _rules_of(text: str) -> Linearisation:
    for name in RULES:
        if text == name:
            return name  # type: ignore[return-value]
    raise InputError(f"--rules {quoted(text)} is unknown: choose {', '.join(RULES)}")


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
    rules: Rules = "frozen",
    target: Target = None,
    rows: options.Rows = 40,
    json: Json = False,
    output: options.Outputs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """A logit as a sum over classes of paths: by length, attention hops, last site, or patterns."""
    outputs = terminal.check_outputs(output, spreadsheet)
    how, token, classes, linear = split_of(split, heads), target_of(target), _classes_of(by), _rules_of(rules)
    loaded = terminal.load(model)
    inputs = loaded.inputs(prompt)
    graph, _ = terminal.trace(loaded, inputs)
    with terminal.working("summing paths"):
        found = jg.spectrum(
            graph,
            inputs,
            by=classes,
            target=token,
            paths=select or None,
            rules=linear,
            split=how,
            tokenizer=loaded.tokenizer,
        )
    if json:
        terminal.show_json(found, outputs)
        return
    terminal.show(
        found,
        outputs,
        rows=rows,
        columns=("class", "value", "share", "paths"),
        note="at the last position; classes add up to Σ, and cancel where Σ|class| is larger",
    )
