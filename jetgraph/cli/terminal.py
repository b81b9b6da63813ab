"""What the commands share: loading with a spinner, tables, and files that are checked before work starts."""

from __future__ import annotations

import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import takewhile
from json import dumps
from typing import TYPE_CHECKING, Any

import typer
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

import jetgraph as jg
from jetgraph.applications.formats import finite_cells
from jetgraph.applications.results import TABLES, Result
from jetgraph.cli import options
from jetgraph.errors import FileError, InputError, amount
from jetgraph.files.targets import check_target
from jetgraph.files.writing import absent, is_file
from jetgraph.files.writing import read_text as read_text_of
from jetgraph.numbers import NUMBER, rounded
from jetgraph.views.picture import PICTURES

if TYPE_CHECKING:
    from jetgraph.applications.several import Several
    from jetgraph.loading import Loaded
    from jetgraph.residual import ResidualGraph
    from jetgraph.scale.texts import Corpus

NARROWEST = 18
"""Letters of a text that stay side by side, however narrow the terminal is."""

GAP = 2
"""Letters between columns."""


# Loading


def load(name: str, *, meta: bool = False) -> Loaded:
    """Load a model by name, with a spinner; what a command before it has said of its prompt is forgotten."""
    _said.set("")
    with progress(f"loading {name}"):
        return jg.loading.load_model(name, meta=True) if meta else jg.loading.load_to_look(name)


def load_with_tokenizer(name: str) -> Loaded:
    """Load a model that is to read a text.

    Raises
    ------
    InputError
        One without a tokenizer.
    """
    loaded = load(name)
    loaded.reader.check_tokenizer("text")
    return loaded


def trace(loaded: Loaded, inputs: dict[str, Any]) -> tuple[ResidualGraph, float]:
    """Trace a model, with a line that says so; the graph and the seconds that it took."""
    start = time.perf_counter()
    with working(f"tracing {loaded.name}"):
        graph = loaded.trace(inputs)
    return graph, time.perf_counter() - start


def read(
    name: str, prompts: Sequence[Any], given: Mapping[str, Any], others: Sequence[Any] = ()
) -> tuple[list[dict[str, Any]], ResidualGraph, dict[str, Any]]:
    """Load a model by name, read each prompt as inputs, and trace it; the graph takes others too, of any length.

    Without a prompt, a model that reads no texts is looked at on the example inputs that came with it, row by row.
    What is `given` to an application comes back with the tokenizer; where there is none, a target is the number of
    a class.

    Raises
    ------
    InputError
        No prompt for a model that reads texts, or for one that came without inputs; a target that is no class.
    """
    loaded = load(name)
    given = {**given, "tokenizer": loaded.tokenizer}
    if loaded.tokenizer is None and "target" in given:
        given["target"] = options.classes_of(given["target"])
    if not prompts:
        return *_read_examples(loaded, others), given
    inputs = list(map(loaded.inputs, prompts))
    tell_prompts(loaded, *inputs)
    return inputs, trace(loaded, loaded.inputs([*prompts, *others]) if others else inputs[0])[0], given


def _read_examples(loaded: Loaded, others: Sequence[Any]) -> tuple[list[dict[str, Any]], ResidualGraph]:
    """Example inputs row by row, and the graph."""
    from jetgraph.applications.several import each_row
    from jetgraph.applications.subject import Subject

    if loaded.tokenizer is not None:
        raise InputError(f"{loaded.name} reads texts, and there is none: give a PROMPT")
    if not loaded.example:
        raise InputError(
            f"{loaded.name} came without inputs and without a tokenizer, so there is nothing to look at it on: name "
            "package.module:factory that makes (model, inputs), or for texts a tokenizer with --tokenizer and a PROMPT"
        )
    if others:
        raise InputError(f"{loaded.name} has no tokenizer, so it takes no other prompts")
    graph, _ = trace(loaded, dict(loaded.example))
    rows = each_row(Subject(graph, None, loaded), dict(loaded.example))
    _said.set("\n".join(_said_of_example(row, number, len(rows)) for number, row in enumerate(rows)))
    return rows, graph


def _said_of_example(inputs: Mapping[str, Any], number: int, of: int) -> str:
    """What a row of example inputs is, as it is told above a table."""
    shapes = (f"{name} {list(value.shape)}" for name, value in inputs.items() if hasattr(value, "shape"))
    return f"its own example inputs{f', row {number} of {of}' if of > 1 else ''}: {', '.join(shapes)}"


def of_each(
    graph: ResidualGraph, of: str, prompts: Sequence[Any], look: Callable[[Any], Result]
) -> Result | Several[Any]:
    """What is made of a prompt; of several, of each of them by itself. `of` says what that is, in the plural."""
    from jetgraph.applications.several import Several

    return Several(graph.title, of, tuple(map(look, prompts))).alone


_said: ContextVar[str] = ContextVar("what the prompt became, until it is told", default="")


def tell_prompts(loaded: Loaded, *several: Mapping[str, Any]) -> None:
    """Tell above the next table what prompts became."""
    _said.set("\n".join(filter(None, (said_of_prompt(loaded, inputs) for inputs in several))))


def said_of_prompt(loaded: Loaded, inputs: Mapping[str, Any]) -> str:
    """What a prompt became, as it is told above a table."""
    from jetgraph.applications.readout import said_of

    return said_of(loaded.tokenizer, next(iter(inputs.values()))[0].tolist())


def where(graph: ResidualGraph, position: str | None) -> str:
    """How a table's note begins: what `--position` stands for, and nothing where the output has no positions."""
    if len(graph.traced.output.meta["shape"]) < 3:
        return ""
    return "at the last position, " if position in (None, "last", "-1") else f"at position {position}, "


# Files


@dataclass(frozen=True)
class Outputs:
    """Files that a result is to be written to, and how."""

    files: tuple[pathlib.Path, ...] = ()
    spreadsheet: bool = False
    """Its .csv files are for a spreadsheet."""
    width: float | None = None
    """Inches that its figure is wide."""
    apart: tuple[str, ...] = PICTURES
    """Suffixes of files of which each prompt has one."""

    def of(self, found: Result) -> Iterator[tuple[Result, pathlib.Path]]:
        """What goes into each file: of several prompts a table has all, and a picture or a graph one."""
        from jetgraph.applications.several import Several

        for file in self.files:
            if isinstance(found, Several) and file.suffix.lower() in self.apart:
                yield from zip(found.each, numbered(file, len(found.each)), strict=True)
            else:
                yield found, file


NOWHERE = Outputs()


def numbered(file: pathlib.Path, number: int) -> list[pathlib.Path]:
    """Files of so many prompts.

    >>> [file.name for file in numbered(pathlib.Path("lens.png"), 2)]
    ['lens.0.png', 'lens.1.png']
    """
    return [file.with_suffix(f".{prompt}{file.suffix}") for prompt in range(number)]


def check_outputs(
    files: Sequence[pathlib.Path] | None, spreadsheet: bool = False, graphs: Sequence[str] = (), prompts: int = 1
) -> Outputs:
    """Check the files that a result on so many prompts is to be written to, as tables, pictures or `graphs`; see
    `check_target`.
    """
    outputs = Outputs(tuple(files or ()), spreadsheet, options.figure_width(files or ()), (*PICTURES, *graphs))
    for file in outputs.files:
        several = prompts > 1 and file.suffix.lower() in outputs.apart
        for one in numbered(file, prompts) if several else [file]:
            check_target(one, (*TABLES, *PICTURES, *graphs))
    if spreadsheet and not any(file.suffix.lower() == ".csv" for file in outputs.files):
        raise InputError("--spreadsheet is for a .csv file: name one with --output")
    return outputs


def read_text(file: pathlib.Path) -> str:
    """The text of a UTF-8 file.

    Raises
    ------
    FileError
        What is no such file.
    InputError
        An empty one.
    """
    if not is_file(file):
        raise FileError(absent(file))
    text = read_text_of(file)
    if not text.strip():
        raise InputError(f"{file} holds no text")
    return text


def corpus(source: str, column: str, config: str | None, split: str) -> Corpus:
    """A text file, a file with a column of texts, or a data set, which is read when it is needed.

    Raises
    ------
    FileError
        What is no such file.
    InputError
        An empty one.
    """
    if source == "-":
        raise FileError("texts are gone over more than once, and stdin comes once: write it to a file, and name that")
    # As of prompts, though here a file is all that can be meant.
    named = source[1:] if source[:1] == "@" and is_file(source[1:]) else source
    texts = jg.open_corpus(named, column=column, split=split, config=config)
    if not any(text.strip() for text in texts):
        raise InputError(f"{source} holds no text")
    return texts


# Showing


def show(
    found: Result | Several[Any],
    outputs: Outputs = NOWHERE,
    *,
    rows: int,
    columns: Sequence[str] | None = None,
    note: str = "",
    json: bool = False,
) -> None:
    """Print a result's table, or those of several prompts under one another, and write all of it to files.

    Which rows and columns are printed the result says (`Result.shown`), or `columns`; `note` says of them what the
    result does not. As `json`, all of it is printed by column, and nothing is said of files.
    """
    from jetgraph.applications.several import Several

    if json:
        typer.echo(dumps(facts_of(found), ensure_ascii=False, indent=1))
    elif isinstance(found, Several):
        said = _said.get().split("\n")
        for number, one in enumerate(found.each):
            if number:
                typer.echo()
            _said.set(said[number] if len(said) == len(found.each) else "")
            _show(one, rows, columns, note)
    else:
        _show(found, rows, columns, note)
    write(found, outputs, say=not json)


def _show(result: Result, rows: int, columns: Sequence[str] | None, note: str) -> None:
    """Print a result's table."""
    whole, shown = result.columns(), result.shown()
    names = shown.names(whole) if columns is None else [name for name in columns if name in whole]
    order = shown.rows(whole)
    some = shown.cut(order, rows)
    said = "\n".join(filter(None, (_said.get(), note, result.note)))
    _said.set("")
    show_table(result.title, said, names, [shown.texts(whole, names, row) for row in some])
    if len(result) > len(some):
        more = "--rows prints more, " if len(order) > len(some) else ""
        last = "the last " if shown.end and more else ""
        # Of rows that stand here, such as those of one position, where --rows prints more of them.
        number, every = (len(order), f" {len(result):,}") if more and len(order) < len(result) else (len(result), "")
        told = f"{last}{len(some)} of {amount(number, 'row')}; {more}--output writes all{every}"
        console().print(Text(told, style="dim"))


def facts_of(result: Result) -> dict[str, Any]:
    """A result as JSON has it: title, what there is to say of it, and the table by column."""
    return {"title": result.title, "columns": finite_cells(result.columns())} | (
        {"note": result.note} if result.note else {}
    )


def show_table(title: str, note: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table under its title and what there is to say about it."""
    printed = console()
    printed.print(Text(title))
    if note:
        printed.print(Text(note, style="dim"))
    printed.print(Columns(columns, rows))


def show_end(title: str, note: str, columns: Sequence[str], rows: Sequence[Sequence[str]], most: int) -> None:
    """Print a table whose rows go along the stream: of more rows than there is room for, those at its end."""
    show_table(title, note, columns, rows[max(0, len(rows) - most) :])
    if len(rows) > most:
        console().print(Text(f"the last {most} of {amount(len(rows), 'row')}; --rows prints more", style="dim"))


def interval(mean: float, low: float, high: float) -> str:
    """A mean and half of its interval, where it has one.

    >>> interval(0.51234, 0.49, 0.53), interval(0.51234, float("nan"), float("nan"))
    ('0.512±0.02', '0.512')
    """
    if math.isnan(high - low):
        return rounded(mean, 3)
    return f"{rounded(mean, 3)}±{(high - low) / 2:.1g}"


def write(result: Result, outputs: Outputs, *, say: bool = True) -> None:
    """Write a result's table or figure to files, and say so."""
    for one, file in outputs.of(result):
        if file.suffix.lower() in PICTURES:
            one.plot(file, width=outputs.width)
        else:
            one.save(file, spreadsheet=outputs.spreadsheet and file.suffix.lower() == ".csv")
        if say:
            typer.echo(f"wrote {file}")


@contextmanager
def progress(text: str) -> Iterator[None]:
    """A spinner on stderr, where that is a terminal. Only around work that shows no bar of its own."""
    errors = Console(stderr=True)
    if not errors.is_terminal or errors.is_dumb_terminal:
        yield
        return
    with errors.status(Text(f"{text} …")):
        yield


@contextmanager
def working(text: str) -> Iterator[None]:
    """A line on stderr, where that is a terminal, that a bar of the library may write over."""
    from jetgraph.export.waiting import overwrites, said

    if not overwrites():
        with jg.loading.quiet(), said():
            yield
        return
    sys.stderr.write(f"{text} …\r")
    sys.stderr.flush()
    try:
        with jg.loading.quiet(), said():
            yield
    finally:
        sys.stderr.write("\r\x1b[2K")
        sys.stderr.flush()


def console() -> Console:
    """Colours and the terminal's width on terminals; plain text, wide enough for paths, elsewhere."""
    printed = Console(highlight=False, emoji=False)
    return printed if printed.is_terminal else Console(highlight=False, emoji=False, width=140)


@dataclass(frozen=True)
class _Column:
    """A column of a table for people."""

    name: str
    cells: tuple[str, ...]

    @property
    def counts(self) -> bool:
        """It is one of numbers."""
        filled = [cell for cell in self.cells if cell]
        return bool(filled) and all(map(NUMBER.fullmatch, filled))

    @property
    def least(self) -> int:
        """How many letters wide it is at least: a number that is broken over lines, or cut, is another or none."""
        if self.counts:
            return max(map(cell_len, (self.name, *self.cells)))
        # Broken at its space, a token is another one, and a path in many lines is hard to read.
        return max(cell_len(self.name), min(max(map(cell_len, self.cells), default=0), NARROWEST))

    @property
    def natural(self) -> int:
        """How many it is wide where there is room."""
        return max([self.least, *map(cell_len, self.cells)])


class Columns:
    """Columns side by side; where a terminal is too narrow for all, some go on below, beside the texts before them."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._columns = [_Column(name, tuple(row[place] for row in rows)) for place, name in enumerate(columns)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | str]:
        for number, block in enumerate(self._blocks(options.max_width)):
            if number:
                yield ""
            yield _made(block, options.max_width)

    def _blocks(self, width: int) -> Iterator[list[_Column]]:
        """Columns that fit into a width, in order."""
        named = list(takewhile(lambda column: not column.counts, self._columns)) or self._columns[:1]
        while len(named) > 1 and _width(named) > width // 2:
            named = named[:-1]
        block, fresh = list(named), False
        for column in self._columns[len(named) :]:
            if fresh and _width([*block, column]) > width:
                yield block
                block = list(named)
            block.append(column)
            fresh = True
        yield block


def _width(columns: Sequence[_Column]) -> int:
    return sum(column.least + GAP for column in columns) - GAP


def _made(columns: Sequence[_Column], width: int) -> Table:
    """A table for people: columns of numbers flush right, long cells folded."""
    widths = [column.least for column in columns]
    spare = max(0, width - _width(columns))
    # Those that lack least first, so that what they leave is for the others.
    lacking = sorted(range(len(columns)), key=lambda place: columns[place].natural - widths[place])
    for number, place in enumerate(lacking):
        more = min(columns[place].natural - widths[place], spare // (len(lacking) - number))
        widths[place] += more
        spare -= more
    made = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    for column, letters in zip(columns, widths, strict=True):
        if column.counts:
            made.add_column(column.name, justify="right", no_wrap=True, width=letters)
        else:
            made.add_column(column.name, overflow="fold", width=letters)
    for row in zip(*(column.cells for column in columns), strict=True):
        made.add_row(*map(Text, row))
    return made
