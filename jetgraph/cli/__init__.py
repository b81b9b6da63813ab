"""The command line: `jetgraph COMMAND`.

Results go to stdout, progress and errors to stderr. What a person can put right (a name, a pattern, a file) ends in one
line and exit code 2; a traceback is a bug of ours. Importing this package registers every command on `app`.
"""

import gc
import sys

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
    # Ctrl-C in the first second, before there is a command that could be stopped.
    sys.stderr.write("interrupted: no output was written\n")
    sys.exit(130)

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
    app(prog_name="jetgraph")
