"""The command line: `jetgraph COMMAND`.

Results go to stdout, progress and errors to stderr. What a person can put right (a name, a pattern, a file) ends in one
line and exit code 2; a traceback is a bug of ours. Importing this package registers every command on `app`.
"""

import gc

from jetgraph.cli.stopping import interrupted

try:
    from jetgraph.cli import (
        attribution,
        cache,
        comparisons,
        estimates,
        expansions,
        interventions,
        lenses,
        merging,
        ngrams,
        reports,
        structure,
        surveys,
    )
    from jetgraph.cli.root import app
except KeyboardInterrupt:
    # In the first second, before there is a command that could be stopped.
    interrupted()

__all__ = [
    "app",
    "attribution",
    "cache",
    "comparisons",
    "estimates",
    "expansions",
    "interventions",
    "lenses",
    "main",
    "merging",
    "ngrams",
    "reports",
    "structure",
    "surveys",
]


def main() -> None:
    """Entry point of the `jetgraph` command."""
    # Imports and graphs make millions of objects that stay: looking for cycles among them as often as Python does takes
    # a tenth of the time before the first number.
    gc.set_threshold(100_000, 20, 100)
    try:
        app(prog_name="jetgraph")
    except KeyboardInterrupt:
        # While typer makes the commands, of which one is not yet known.
        interrupted()
