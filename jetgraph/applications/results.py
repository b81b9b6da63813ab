"""What every application returns: a table with its context, which prints, draws and saves itself.

A result is a frozen dataclass over this base. Its rows are what `to_dataframe`, `save`, `repr` and `_repr_html_` show;
`plot` is its picture. pandas, pyarrow and matplotlib are needed only by the methods that name them.
"""

from __future__ import annotations

import csv
import html
import importlib.util
import io
import math
import os
import re
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from jetgraph.applications.bars import bars
from jetgraph.applications.formats import arrow_table, json_text, latex_text, markdown_text
from jetgraph.errors import InputError, MissingExtraError, big, check, quoted
from jetgraph.files.graphs import GRAPHS, write_graph
from jetgraph.files.pages import View, view_of
from jetgraph.files.targets import check_target
from jetgraph.files.writing import naming, write_atomically, write_text
from jetgraph.numbers import rounded
from jetgraph.page.building import table_page
from jetgraph.views.picture import PICTURES
from jetgraph.views.style import fit, save_figure, styled

if TYPE_CHECKING:
    import networkx as nx
    import pandas
    from matplotlib.figure import Figure

    from jetgraph.applications.readout import Texts

SHOWN = 12
"""Rows that a repr shows."""

FRAMED = 5000
"""Rows of a result up to which a notebook shows its page."""

TABLES = (".csv", ".parquet", ".json", ".md", ".html", ".tex")
"""Suffixes of tables that can be saved."""

RESOLUTION = 200
"""Dots to the inch of pictures."""

Cell = str | int | float | bool | None
"""What a cell of a table holds; None where there is nothing to say."""


@runtime_checkable
class HasGraph(Protocol):
    """What can be made a graph whose nodes say what they are, and where they stand."""

    def to_networkx(self) -> nx.MultiDiGraph:
        """The graph."""
        ...


@dataclass(frozen=True)
class Shown:
    """What is shown of a table first."""

    columns: tuple[str, ...] | None = None
    """All unless given; those that a table has not are left out."""
    keep: Callable[[Mapping[str, Cell]], bool] | None = None
    """Which rows."""
    first: tuple[str, ...] = ()
    """Columns of numbers, the largest absolute value of which comes first; the table's own order unless given."""
    end: bool = False
    """Where there is no room for all rows, the last ones are shown, to which the others lead; else the first ones."""
    counts: tuple[str, ...] = ()
    """Columns of counts, which people read by thousands; positions and ids are none."""

    def names(self, columns: Mapping[str, Sequence[Cell]]) -> list[str]:
        """Columns of a table, without those that have nothing to say of any row."""
        named = list(columns) if self.columns is None else [name for name in self.columns if name in columns]
        return [name for name in named if not columns[name] or any(cell is not None for cell in columns[name])]

    def rows(self, columns: Mapping[str, Sequence[Cell]]) -> list[int]:
        """Rows of a table, in order."""
        number = len(next(iter(columns.values()), ()))
        kept = range(number)
        if self.keep is not None:
            rows = (dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True))
            kept = [row for row, facts in enumerate(rows) if self.keep(facts)]
        if not self.first:
            return list(kept)
        sizes = [[_size(cell) for cell in columns[name]] for name in self.first]
        return sorted(kept, key=lambda row: -max(size[row] for size in sizes))

    def texts(self, columns: Mapping[str, Sequence[Cell]], names: Sequence[str], row: int) -> list[str]:
        """The cells of a row, for people."""
        cells = ((name, columns[name][row]) for name in names)
        return [big(int(cell)) if name in self.counts and cell else cell_text(cell) for name, cell in cells]

    def cut(self, rows: Sequence[int], most: int) -> Sequence[int]:
        """As many of these rows as there is room for."""
        return rows[max(0, len(rows) - most) :] if self.end else rows[:most]


def _size(cell: Cell) -> float:
    """The absolute value of a number; nothing else has one."""
    if isinstance(cell, bool) or not isinstance(cell, int | float) or math.isnan(cell):
        return -math.inf
    return abs(float(cell))


class Result(ABC):
    """A table: named columns of equal length, under a title."""

    @property
    @abstractmethod
    def title(self) -> str:
        """One line: what was computed, on what."""

    @property
    def note(self) -> str:
        """What there is to say of the table, in words; nothing unless there is."""
        return ""

    @abstractmethod
    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """The table by column, all of one length."""

    def shown(self) -> Shown:
        """What people are shown of it first: the largest effects, at the last position."""
        return Shown()

    def top(self, n: int = 10, *, by: str | None = None) -> Table:
        """The rows of the largest size.

        Parameters
        ----------
        n
            How many.
        by
            A column of numbers, whose largest absolute values come first; unless given, the order in which the result
            prints.

        Raises
        ------
        InputError
            There is no such column, or it holds no numbers.
        """
        check(Result.top, locals())
        if n < 1:
            raise InputError(f"top({n}) names no row: take 1 or more")
        columns = self.columns()
        if by is None:
            return self._rows(self._order()[:n], f"the first {n} of")
        if by not in columns:
            raise InputError(f"there is no column {quoted(by)}: choose one of {', '.join(columns)}")
        sizes = [_size(cell) for cell in columns[by]]
        if not any(size > -math.inf for size in sizes):
            raise InputError(f"the column {quoted(by)} holds no numbers to go by")
        order = sorted(range(len(sizes)), key=lambda row: -sizes[row])
        return self._rows(order[:n], f"the {'' if n == 1 else f'{n:,} '}largest by {by} of")

    def at(self, position: int) -> Table:
        """The rows of one position; negative ones are counted from the end, of each example from its own.

        Raises
        ------
        InputError
            The table has no positions, or not this one.
        """
        check(Result.at, locals())
        columns = self.columns()
        places = columns.get("position", ())
        examples = columns.get("example", [None] * len(places))
        ends: dict[Cell, int] = {}
        for example, place in zip(examples, places, strict=True):
            if isinstance(place, int):
                ends[example] = max(place, ends.get(example, place))
        if not ends:
            raise InputError("this table has no positions")
        chosen = {example: position if position >= 0 else end + 1 + position for example, end in ends.items()}
        pairs = enumerate(zip(examples, places, strict=True))
        rows = [row for row, (example, place) in pairs if isinstance(place, int) and place == chosen[example]]
        if not rows:
            known = [place for place in places if isinstance(place, int)]
            raise InputError(f"there is no position {position}: there are {min(known)} to {max(known)}")
        told = sorted({*chosen.values()})
        return self._rows(rows, f"position {told[0] if len(told) == 1 else position} of")

    def _rows(self, rows: Sequence[int], what: str) -> Table:
        table = {name: [values[row] for row in rows] for name, values in self.columns().items()}
        texts = getattr(self, "tokens", ())
        tokens = texts if isinstance(texts, tuple) else ()
        return Table(f"{what} {self.title}", table, self.note, tokens, self.shown().counts)

    def _order(self) -> list[int]:
        """Rows that are shown, in that order."""
        return self.shown().rows(self.columns())

    def __init_subclass__(cls) -> None:
        """Have figures drawn in the one style."""
        super().__init_subclass__()
        if "figure" in cls.__dict__:
            type.__setattr__(cls, "figure", styled(cls.figure))

    @abstractmethod
    def figure(self) -> Figure:
        """The picture of this result, whose axes say what they measure."""

    def drawn(self, width: float | None = None) -> Figure:
        """The picture, in a width.

        Raises
        ------
        InputError
            As `plot`.
        """
        return fit(self.figure(), width)

    def plot(self, file: str | os.PathLike[str] | None = None, *, width: float | None = None) -> Figure:
        """Draw the result; into `file` (.png, .svg, .pdf) too where one is given.

        `width` is in inches, letters staying as large as they are: 3.3 for a column of a paper, 6.8 for its page.

        Raises
        ------
        InputError
            Another suffix, and a width that no paper has.
        FileError
            A missing folder.
        MissingExtraError
            matplotlib is missing.
        """
        check(Result.plot, locals())
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise MissingExtraError("pictures need matplotlib: pip install 'jetgraph[plot]'") from None
        target = None if file is None else check_target(file, PICTURES)
        figure = self.drawn(width)
        if target is not None:
            styled(save_figure)(figure, target, dpi=RESOLUTION, bbox_inches="tight")
        return figure

    def to_dataframe(self) -> pandas.DataFrame:
        """The table as a pandas data frame.

        Raises
        ------
        MissingExtraError
            pandas is missing.
        """
        try:
            import pandas
        except ImportError:
            raise MissingExtraError("data frames need pandas: pip install 'jetgraph[tables]'") from None
        return pandas.DataFrame(dict(self.columns()))

    def save(self, file: str | os.PathLike[str], *, spreadsheet: bool = False) -> Path:
        """Write the table as .csv, .parquet, .json, .md, .tex or a page with its figure (.html), and return the file.

        Texts survive all of them: see `readout.token_text`. Numbers of .md and .tex are rounded as they print; a .json
        has the title and the columns.

        What is a graph (`to_networkx`) is also written in the formats of `jetgraph.write_graph`, a page and a .json
        among them.

        `spreadsheet` is for a .csv that a spreadsheet is to open: it would take a text that begins with =, +, - or @
        for a formula, and run it. Such texts get a ' before them, which it does not show.

        Raises
        ------
        InputError
            Another suffix.
        FileError
            A missing folder.
        MissingExtraError
            pyarrow is missing for .parquet.
        """
        check(Result.save, locals())
        target = check_target(file, (*TABLES, *GRAPHS) if isinstance(self, HasGraph) else TABLES)
        if isinstance(self, HasGraph) and target.suffix.lower() in GRAPHS:
            if spreadsheet:
                raise InputError("spreadsheet=True is for a .csv, not for a graph")
            return write_graph(self.to_networkx(), target)
        columns = self.columns()
        if target.suffix.lower() == ".html":
            return self.page().save(target)
        if target.suffix.lower() == ".parquet":
            with naming("write", target):
                table = arrow_table(columns)
            import pyarrow.parquet

            return write_atomically(target, lambda path: pyarrow.parquet.write_table(table, path))
        return write_text(target, self._file_text(target.suffix.lower(), columns, spreadsheet))

    def _file_text(self, suffix: str, columns: Mapping[str, Sequence[Cell]], spreadsheet: bool) -> str:
        """The table as the text of a file."""
        if suffix == ".csv":
            return csv_text(columns, zip(*columns.values(), strict=True), spreadsheet=spreadsheet)
        if suffix == ".json":
            return json_text(self.title, columns)
        shown, number = self.shown(), len(next(iter(columns.values()), ()))
        rows = [shown.texts(columns, list(columns), row) for row in range(number)]
        if suffix == ".md":
            return markdown_text(self.title, list(columns), rows)
        numbers = [
            name in shown.counts or any(isinstance(cell, int | float) for cell in cells)
            for name, cells in columns.items()
        ]
        return latex_text(self.title, list(columns), rows, numbers)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The table for polars, duckdb, pyarrow, pandas: `polars.DataFrame(result)`, `SELECT * FROM result`.

        Raises
        ------
        MissingExtraError
            pyarrow is missing.
        """
        return arrow_table(self.columns()).__arrow_c_stream__(requested_schema)

    def page(self) -> View:
        """The page of what is a graph; of others that of the table, under its figure."""
        if isinstance(self, HasGraph):
            return view_of(self.to_networkx())
        return View(self.title, table_page(self.title, self.columns(), self._svg(), self.shown().counts, self.note))

    def _svg(self) -> bytes | None:
        """The figure as an SVG; None where matplotlib is not installed."""
        if importlib.util.find_spec("matplotlib") is None:
            return None
        buffer = io.BytesIO()
        styled(self.drawn().savefig)(buffer, format="svg", bbox_inches="tight")
        return buffer.getvalue()

    def __len__(self) -> int:
        return len(next(iter(self.columns().values()), ()))

    def _shown(self) -> tuple[list[str], list[list[str]]]:
        columns, shown = self.columns(), self.shown()
        names, rows = shown.names(columns), shown.cut(shown.rows(columns), SHOWN)
        return names, [shown.texts(columns, names, row) for row in rows]

    def __repr__(self) -> str:
        names, rows = self._shown()
        widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
        lines = [self.title, *(textwrap.wrap(self.note, 118) if self.note else ())]
        for row in (names, *rows):
            lines.append("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if len(self) > len(rows):
            lines.append(
                f"  … {len(self) - len(rows):,} more rows: .top(n, by=...), .to_dataframe() or .save(file) has all"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The page of what is a graph, where it is small; else the table."""
        if isinstance(self, HasGraph) and len(self) <= FRAMED:
            made = self.page()
            if made.is_small:
                return made.frame()
        names, rows = self._shown()
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        more = f"<p>… {len(self) - len(rows):,} more rows</p>" if len(self) > len(rows) else ""
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        return f"<p><b>{html.escape(self.title)}</b></p>{note}<table><tr>{head}</tr>{body}</table>{more}"


@dataclass(frozen=True, eq=False, repr=False)
class Table(Result):
    """Some rows of a result, which print, draw and save themselves as all of them do."""

    name: str
    data: Mapping[str, Sequence[Cell]]
    words: str = ""
    tokens: Texts = ()
    """By example, the texts of the input's tokens, by which positions go; none where it has no tokens."""
    counts: tuple[str, ...] = ()
    """Columns of counts."""

    @property
    def title(self) -> str:
        return self.name

    @property
    def note(self) -> str:
        return self.words

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """Those of the result that it is of."""
        return self.data

    def shown(self) -> Shown:
        """All rows, in their order."""
        return Shown(counts=self.counts)

    def figure(self) -> Figure:
        """Bars: the last column of numbers, by the texts before it.

        Raises
        ------
        InputError
            There is no column of numbers.
        """
        numbers = [name for name, cells in self.data.items() if any(isinstance(cell, float) for cell in cells)]
        if not numbers:
            raise InputError("this table has no column of numbers to draw")
        label = next((name for name in ("flow", "value", "effect", "share") if name in numbers), numbers[0])
        texts = [name for name, cells in self.data.items() if all(isinstance(cell, str) for cell in cells)]
        rows = [
            ("  ".join(str(self.data[name][row]) for name in texts[:3]), float(cell or 0))
            for row, cell in enumerate(self.data[label])
        ]
        return bars(rows, self.title, label)


_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
"""How a text begins that a spreadsheet may take for a formula; of the signs, there are wide ones too."""


def csv_text(columns: Iterable[str], rows: Iterable[Iterable[Cell]], *, spreadsheet: bool = False) -> str:
    """A table as the text of a .csv; see `Result.save`.

    >>> print(csv_text(["token", "change"], [["=1+1", -0.5]], spreadsheet=True), end="")
    token,change
    '=1+1,-0.5
    """
    buffer = io.StringIO(newline="")
    # The writer quotes what its own line ends hold, and readers end a line at either of the two.
    writer = csv.writer(buffer, lineterminator="\r\n")
    lines = []
    for row in (columns, *rows):
        writer.writerow([_harmless(cell) for cell in row] if spreadsheet else row)
        lines.append(buffer.getvalue().removesuffix("\r\n"))
        buffer.seek(0)
        buffer.truncate()
    return "\n".join([*lines, ""])


def _harmless(cell: Cell) -> Cell:
    if not isinstance(cell, str) or _FORMULA.match(cell) is None or _NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}"


_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?(e[-+]?[0-9]+)?", re.ASCII)
"""A number that a caller has written already."""


def cell_text(cell: Cell) -> str:
    """A cell for people.

    >>> [cell_text(cell) for cell in (0.123456, None, "a", 7, 0.9999997)]
    ['0.1235', '', 'a', '7', '1-3.0e-07']
    """
    if cell is None:
        return ""
    return rounded(cell) if isinstance(cell, float) else str(cell)
