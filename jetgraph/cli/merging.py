"""`merge`: what the shards of a job have computed, in one file."""

from __future__ import annotations

import pathlib
from json import dumps
from typing import Annotated

import typer

from jetgraph.cli import options
from jetgraph.cli.root import app
from jetgraph.errors import amount


@app.command(
    rich_help_panel="Shards",
    epilog="[bold]Example[/bold]\n\n  jetgraph ngrams demo --shard 0/2 --state one.safetensors\n\n"
    "  jetgraph ngrams demo --shard 1/2 --state two.safetensors\n\n"
    "  jetgraph merge one.safetensors two.safetensors -o all.safetensors\n\n"
    "  jetgraph ngrams demo --state all.safetensors",
)
def merge(
    states: Annotated[list[pathlib.Path], typer.Argument(metavar="STATES", help="What --state has written.")],
    output: Annotated[
        pathlib.Path, typer.Option("--output", "-o", metavar="FILE", help="A .safetensors file, or a .parquet folder.")
    ],
    json: options.Json = False,
) -> None:
    """Join the states of shards, in any order and any grouping."""
    from jetgraph.scale.places import check_state

    check_state(output)
    from jetgraph.scale.states import merge as joined

    whole = joined(states)
    whole.save(output)
    done, lacking = len(whole.records), whole.lacking()
    if json:
        typer.echo(dumps({"title": "what shards have computed", "file": str(output), "done": done, "lacking": lacking}))
        return
    told = "give it to the same command with --state" if not lacking else f"{lacking} are in other shards"
    typer.echo(f"wrote {output}: {done} of {amount(done + lacking, 'unit')}; {told}")
