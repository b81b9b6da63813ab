"""`jetgraph cache`: the traces that are kept between processes."""

from __future__ import annotations

import time
from json import dumps

import typer

from jetgraph.cli import options, terminal
from jetgraph.cli.root import app
from jetgraph.errors import amount, big

caches = typer.Typer(help="The traces that are kept between commands.", rich_markup_mode="rich")
app.add_typer(caches, name="cache", rich_help_panel="Housekeeping")


@caches.command("list", epilog="[bold]Example[/bold]\n\n  jetgraph cache list")
def listed(json: options.Json = False) -> None:
    """The traces in the cache, the last used first.

    A model that is loaded by its name is traced once: what torch.export makes of it is kept, without its weights, and
    checked against the model's own output with the weights at hand. A change of the model's class, config or
    attributes, of the kinds of its inputs, or of a library makes another trace.
    """
    from jetgraph.saving.traces import MOST, cache_folder, kept_traces

    folder, kept = cache_folder(), kept_traces()
    if json:
        table = [(one.model, one.inputs, one.bytes, one.used, str(one.file)) for one in kept]
        columns = {
            name: [row[at] for row in table] for at, name in enumerate(("model", "inputs", "bytes", "used", "file"))
        }
        typer.echo(dumps({"title": f"traces in {folder}", "columns": columns}, ensure_ascii=False, indent=1))
        return
    if folder is None:
        typer.echo("no traces are kept: JETGRAPH_CACHE is off")
        return
    rows = [(one.model or "(damaged)", one.inputs, f"{big(one.bytes)}", _ago(one.used)) for one in kept]
    note = f"{len(kept)} of at most {MOST}, {big(sum(one.bytes for one in kept))} bytes"
    terminal.show_table(f"traces in {folder}", note, ("model", "inputs", "bytes", "last used"), rows)


@caches.command("clear", epilog="[bold]Example[/bold]\n\n  jetgraph cache clear")
def clear(json: options.Json = False) -> None:
    """Remove all traces from the cache."""
    from jetgraph.saving.traces import clear_traces

    gone = clear_traces()
    if json:
        typer.echo(dumps({"title": "removed traces", "traces": len(gone), "bytes": sum(one.bytes for one in gone)}))
        return
    typer.echo(f"removed {amount(len(gone), 'trace')}, {big(sum(one.bytes for one in gone))} bytes")


def _ago(moment: float) -> str:
    """How long ago that was, in the largest unit of which there is one."""
    seconds = max(0, int(time.time() - moment))
    for unit, size in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            number = seconds // size
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    return "just now"
