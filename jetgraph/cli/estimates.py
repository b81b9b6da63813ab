"""`estimate`: what another command will cost, before it is run."""

from __future__ import annotations

from typing import Annotated

import typer

from jetgraph.cli import options
from jetgraph.cli.root import DIVIDING, LONG, app
from jetgraph.errors import InputError, quoted


@app.command(
    rich_help_panel="Shards",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="[bold]Examples[/bold]\n\n  jetgraph estimate ngrams gpt2 --memory 1G\n\n"
    "  jetgraph estimate --json evaluate-lens gpt2 corpus.txt --tokens 1000000",
)
def estimate(
    context: typer.Context,
    command: Annotated[
        list[str],
        typer.Argument(metavar="COMMAND...", help="A command that is divided into shards, with its arguments."),
    ],
    seconds: Annotated[float, typer.Option(min=0.1, help="What each stage of it may take for that.")] = 10.0,
    json: options.Json = False,
) -> None:
    """Estimate a command's FLOPs, bytes read, memory, shards and time from a few units of its work."""
    from json import dumps

    from jetgraph.scale.estimates import estimated

    name = " ".join(command[:2]) if command[0] == "transport" else command[0]
    if name.split()[-1] not in LONG:
        raise InputError(
            f"{quoted(name)} has no units of work to try: an estimate is of {', '.join(LONG[:-1])} and transport "
            f"{LONG[-1]}; other commands take a few passes through the model"
        )
    for argument in command:
        if (option := argument.partition("=")[0]) in ("--resume", *(f"--{name}" for name in DIVIDING)):
            raise InputError(
                f"an estimate is of the whole job in one process, and says how many shards it takes: leave {option} out"
            )
        if option == "--seconds":
            raise InputError("--seconds is of the estimate: write it before the name of the command")
    with estimated(seconds) as found:
        typer.main.get_command(app).main(command, prog_name="jetgraph", standalone_mode=False)
    if not found.stages:
        return
    stages = [vars(stage) for stage in found.stages]
    facts = {"seconds": found.seconds, "before": found.before, "memory": found.memory, "units": found.units}
    typer.echo(dumps({**facts, "shards": found.shards(), "stages": stages}) if json else repr(found))
