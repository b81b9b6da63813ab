"""What the commands share: loading with a spinner, tables, and files that are checked before work starts."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import jetgraph as jg
from jetgraph.applications.results import TABLES, Result, cell_text
from jetgraph.drawing import PICTURES
from jetgraph.errors import InputError
from jetgraph.loading import Loaded, quiet
from jetgraph.loading import load as load_by_name
from jetgraph.residual import ResidualGraph

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A Hugging Face id, a folder that transformers has saved, or a bundled model: demo, demo:gpt2, "
        "demo:llama.",
        show_default=False,
    ),
]

Rows = Annotated[int, typer.Option(min=1, help="Rows of the table that are printed.")]

Outputs = Annotated[
    list[pathlib.Path] | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help=f"Write the whole table ({' '.join(TABLES)}) or the figure ({' '.join(PICTURES)}); may be given again.",
        show_default=False,
    ),
]

_NEEDED = {".parquet": ("pyarrow", "tables"), **dict.fromkeys(PICTURES, ("matplotlib", "plot"))}
"""Module that writes a suffix, and the extra that brings it."""

_NUMBER = re.compile(r"[-+]?([\d.,]+(e[-+]?\d+)?|inf|nan)%?")


# Loading


def load(name: str, *, meta: bool = False) -> Loaded:
    """Load a model by name, with a spinner."""
    with progress(f"loading {name}"):
        return load_by_name(name, meta=meta)


def trace(loaded: Loaded, inputs: dict[str, Any]) -> tuple[ResidualGraph, float]:
    """Trace a model, with a spinner; the graph and the seconds that it took."""
    start = time.perf_counter()
    with progress(f"tracing {loaded.name}"), quiet():
        graph = jg.trace(loaded.model, **inputs)
    return graph, time.perf_counter() - start


# Files


def check_output(file: pathlib.Path, suffixes: Sequence[str]) -> None:
    """Refuse what cannot be written, before a model is loaded.

    Raises `InputError` for a suffix that is not one of `suffixes`, a missing folder, one that is not writable, and a
    library that is not installed.
    """
    suffix = file.suffix.lower()
    if suffix not in suffixes:
        raise InputError(f"{file.name!r} names no format: end it in one of {', '.join(suffixes)}")
    if not file.parent.is_dir():
        raise InputError(f"cannot write {file}: the folder {file.parent} does not exist")
    if file.is_dir() or not os.access(file.parent, os.W_OK):
        raise InputError(f"cannot write {file}: {'it is a folder' if file.is_dir() else 'its folder is not writable'}")
    module, extra = _NEEDED.get(suffix, ("json", ""))
    if importlib.util.find_spec(module) is None:
        raise InputError(f"writing {suffix} needs {module}: pip install 'jetgraph[{extra}]'")


def check_outputs(files: Sequence[pathlib.Path] | None) -> tuple[pathlib.Path, ...]:
    """Check the files that a result is to be written to; see `check_output`."""
    chosen = tuple(files or ())
    for file in chosen:
        check_output(file, (*TABLES, *PICTURES))
    return chosen


def read_text(file: pathlib.Path) -> str:
    """The text of a UTF-8 file. Raises `InputError` for what is no such file, or an empty one."""
    if not file.is_file():
        raise InputError(f"there is no text file {file}")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no UTF-8 text: {error}") from error
    if not text.strip():
        raise InputError(f"{file} holds no text")
    return text


# Showing


def show(result: Result, rows: int, outputs: Sequence[pathlib.Path]) -> None:
    """Print a result's first rows and write it to files."""
    columns = result.columns()
    printed = console()
    printed.print(Text(result.title))
    cells = zip(*(values[:rows] for values in columns.values()), strict=True)
    printed.print(table(tuple(columns), [tuple(map(cell_text, row)) for row in cells]))
    if len(result) > rows:
        printed.print(Text(f"{rows} of {len(result)} rows; --rows shows more, --output writes all", style="dim"))
    for file in outputs:
        if file.suffix.lower() in PICTURES:
            result.plot(file)
        else:
            result.save(file)
        typer.echo(f"wrote {file}")


@contextmanager
def progress(text: str) -> Iterator[None]:
    """A spinner on stderr, where that is a terminal. Only around work that shows no bar of its own."""
    errors = Console(stderr=True)
    if not errors.is_terminal:
        yield
        return
    with errors.status(f"{text} …"):
        yield


def console() -> Console:
    """Colours and the terminal's width on terminals; plain text, wide enough for paths, elsewhere."""
    printed = Console(highlight=False, emoji=False)
    return printed if printed.is_terminal else Console(highlight=False, emoji=False, width=140)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table for people: columns of numbers flush right, long cells folded."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for index, column in enumerate(columns):
        filled = [row[index] for row in rows if row[index]]
        number = bool(filled) and all(map(_NUMBER.fullmatch, filled))
        made.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made
