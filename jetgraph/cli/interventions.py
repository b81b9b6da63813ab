"""`ablate` and `patch`: components taken away or exchanged; `patterns`: what heads attend to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import jetgraph as jg
from jetgraph.cli import options, terminal
from jetgraph.cli.root import app
from jetgraph.errors import InputError, amount

PANEL = "Interventions"


@app.command(
    rich_help_panel=PANEL,
    epilog='[bold]Examples[/bold]\n\n  jetgraph ablate demo "Raise Value" --output ablation.png\n\n'
    '  jetgraph ablate demo "Raise Value" --heads -p "L1.attn.* > logits" -t Error\n\n'
    '  jetgraph ablate demo "Raise Value" --path "L3.mlp > logits" --scale 2',
)
def ablate(
    model: options.Model,
    prompts: options.Prompts = None,
    select: options.Select = None,
    heads: options.Heads = False,
    split: options.Splits = None,
    scale: Annotated[float, typer.Option(help="What the paths are multiplied by; 0 removes them.")] = 0.0,
    corrupt: Annotated[
        list[str] | None,
        typer.Option(
            "--corrupt",
            metavar="PROMPT",
            help="Components take their values on this prompt, of as many tokens. Of several prompts, one for all or "
            "one for each.",
            show_default=False,
        ),
    ] = None,
    mean: Annotated[
        bool, typer.Option("--mean", help="They take the mean of their values over --corrupt, of any length.")
    ] = False,
    target: options.Target = None,
    versus: options.Versus = None,
    position: options.Position = None,
    rows: options.Rows = 40,
    json: options.Json = False,
    output: options.Outputs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """Remove, scale or replace components: the change that the terms predict, and the one in the network."""
    texts = options.prompts_of(prompts)
    outputs = terminal.check_outputs(output, spreadsheet, prompts=len(texts))
    how, token = options.split_of(split, heads), options.target_of(target, versus)
    if not math.isfinite(scale):
        raise InputError(f"--scale {scale} is no number to multiply by: 0 removes a path, 2 doubles it")
    if mean and not corrupt:
        raise InputError("--mean is taken over other prompts: give them by --corrupt")
    others = [options.prompt_of(text) for text in corrupt or ()]
    corrupting = _others(others, max(1, len(texts)), mean)
    given: dict[str, Any] = {
        "scale": scale,
        "values": "mean" if mean else None,
        "target": token,
        "position": options.position_of(position or "last"),
        "split": how,
    }
    inputs, graph, given = terminal.read(model, texts, given, others)
    # With others, the graph was traced on all of them, and says what goes with a prompt, such as a mask.
    pairs = list(zip(texts, corrupting, strict=True)) if others else [(one, None) for one in inputs]

    def ablated(pair: tuple[Any, Any]) -> Any:
        return jg.ablate(graph, select or None, pair[0], corrupt=pair[1], **given)

    with terminal.working("ablating"):
        ablation = terminal.of_each(graph, "ablations", pairs, ablated)
    features = "predicted_distance" in ablation.columns()
    means = "distance is ‖ablated − output‖ / ‖output‖" if features else "kl is KL(model ‖ ablated) in nats"
    terminal.show(
        ablation,
        outputs,
        rows=rows,
        note=f"{terminal.where(graph, position)}largest change first; {means}",
        json=json,
    )


def _others(corrupt: list[Any], number: int, mean: bool) -> list[Any]:
    """What components take their values of, for each of so many prompts: of all that are given, or of one for each."""
    if mean or number == 1 or len(corrupt) < 2:
        return [corrupt or None] * number
    if len(corrupt) != number:
        raise InputError(
            f"{len(corrupt)} prompts of --corrupt do not go with {amount(number, 'prompt')}: give one for all, one for "
            "each, or --mean"
        )
    return [[one] for one in corrupt]


@app.command(
    rich_help_panel=PANEL,
    epilog='[bold]Examples[/bold]\n\n  jetgraph patch demo "Raise Value" "Raise Key" --output patching.png\n\n'
    '  jetgraph patch demo "Raise Value" "Raise Key" -s "L0.*" -r logits --heads\n\n'
    '  jetgraph patch demo "Raise Value" "Raise Key" -s "*@*" -r L3.attn.q --screen 9\n\n'
    "  jetgraph patch demo @clean.txt @corrupt.txt --lines -t @tokens.txt",
)
def patch(
    model: options.Model,
    clean: Annotated[str, typer.Argument(metavar="CLEAN", help="The prompt that is run.", show_default=False)],
    corrupt: Annotated[
        str,
        typer.Argument(
            metavar="CORRUPT",
            help="The prompt that senders take their values from; as long in tokens.",
            show_default=False,
        ),
    ],
    senders: Annotated[
        list[str] | None,
        typer.Option(
            "--senders",
            "-s",
            metavar="GLOB",
            help="Components; L0.mlp@3 at one position, @* at each by itself. \\[default: all]",
            show_default=False,
        ),
    ] = None,
    receivers: Annotated[
        list[str] | None,
        typer.Option(
            "--receivers",
            "-r",
            metavar="GLOB",
            help="Components, or logits; L3.attn.q, .k or .v by queries, keys, values alone. \\[default: all]",
            show_default=False,
        ),
    ] = None,
    mean: Annotated[
        bool, typer.Option("--mean", help="Senders take the mean of their values over CORRUPT, of any length.")
    ] = False,
    screen: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="NUMBER",
            help="So many pairs are patched, those of the largest effect to first order, which one gradient pass tells "
            "of all.",
            show_default=False,
        ),
    ] = None,
    heads: options.Heads = False,
    split: options.Splits = None,
    target: options.Target = None,
    versus: options.Versus = None,
    position: options.Position = None,
    rows: options.Rows = 40,
    json: options.Json = False,
    output: options.Outputs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """Path patching, of a pair of prompts: what reaches the output from one component through another.

    With `--lines`, of as many pairs as two files have lines: CLEAN and CORRUPT are then @FILE, effects are means, and
    a file of --target, or of --versus, has a token for each pair.
    """
    outputs = terminal.check_outputs(output, spreadsheet)
    how, token = options.split_of(split, heads), options.targets_by_line(options.target_of(target, versus))
    loaded = terminal.load(model)
    cleans, corrupts = _paired(options.prompts_by_text([clean, corrupt]), mean)
    read = [[loaded.inputs(prompt) for prompt in side] for side in (cleans, corrupts)]
    terminal.tell_prompts(loaded, *(side[0] for side in read))
    if not mean:
        _check_lengths(*read)
    # Of prompts of unequal length one side at least has a mask.
    graph, _ = terminal.trace(loaded, max(map(loaded.inputs, (cleans, corrupts)), key=len))
    with terminal.working("patching"):
        patching = jg.patch(
            graph,
            cleans,
            corrupts,
            values="mean" if mean else "prompt",
            senders=senders or None,
            receivers=receivers or None,
            screen=screen,
            target=token,
            position=options.position_of(position or "last"),
            split=how,
            tokenizer=loaded.tokenizer,
        )
    terminal.show(
        patching,
        outputs,
        rows=rows,
        note=f"{terminal.where(graph, position)}largest effect first",
        json=json,
    )


def _paired(sides: Sequence[list[Any]], mean: bool) -> Sequence[list[Any]]:
    """The clean prompts and the corrupt ones, one for one; of one of them, it is for all of the others. For a mean each
    side is what it is.
    """
    most = max(map(len, sides))
    if mean or all(len(side) == most for side in sides):
        return sides
    if min(map(len, sides)) != 1:
        clean, corrupt = map(len, sides)
        raise InputError(
            f"CLEAN has {amount(clean, 'line')} and CORRUPT {corrupt}: give one for one, or one for all of the others"
        )
    return [side * most if len(side) == 1 else side for side in sides]


def _check_lengths(cleans: Sequence[dict[str, Any]], corrupts: Sequence[dict[str, Any]]) -> None:
    """Raise `InputError` for a pair of prompts of unequal length."""
    for number, pair in enumerate(zip(cleans, corrupts, strict=True), 1):
        clean, corrupt = (next(iter(one.values())).shape[-1] for one in pair)
        if clean != corrupt:
            raise InputError(
                f"the prompts{f' of line {number}' if len(cleans) > 1 else ''} have {clean} and "
                f"{amount(corrupt, 'token')}: path patching compares prompts of one length"
            )


@app.command(
    rich_help_panel=PANEL,
    epilog='[bold]Examples[/bold]\n\n  jetgraph patterns demo "Raise Value" --output patterns.png\n\n'
    '  jetgraph patterns demo "Raise Value" -b L1.attn',
)
def patterns(
    model: options.Model,
    prompts: options.Prompts = None,
    branches: Annotated[
        list[str] | None,
        typer.Option(
            "--branch",
            "-b",
            metavar="GLOB",
            help="Branches, or heads: L3.attn, L3.attn.head2, L3H2. \\[default: all with attention]",
            show_default=False,
        ),
    ] = None,
    rows: options.Rows = 40,
    json: options.Json = False,
    output: options.Outputs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """Attention patterns by head: what each position takes of each other one."""
    texts = options.prompts_of(prompts)
    outputs = terminal.check_outputs(output, spreadsheet, prompts=len(texts))
    inputs, graph, given = terminal.read(model, texts, {"branches": branches or None})
    with terminal.working("reading patterns"):
        attention = terminal.of_each(
            graph, "attention patterns", inputs, lambda one: jg.attention_patterns(graph, one, **given)
        )
    terminal.show(attention, outputs, rows=rows, note="of the last position, largest weight first", json=json)
