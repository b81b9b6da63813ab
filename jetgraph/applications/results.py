"""What every application returns: a table with its context, which prints, draws and saves itself.

A result is a frozen dataclass over this base. Its rows are what `to_dataframe`, `save`, `repr` and `_repr_html_` show;
`plot` is its picture. pandas, pyarrow and matplotlib are needed only by the methods that name them.
"""

from __future__ import annotations

import csv
import html
import importlib.util
import io
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from jetgraph.errors import InputError, MissingExtraError, check
from jetgraph.files.graphs import GRAPHS, write_graph
from jetgraph.files.pages import View, view_of
from jetgraph.files.targets import check_target
from jetgraph.files.writing import write_atomically
from jetgraph.page.building import table_page
from jetgraph.views.picture import PICTURES

if TYPE_CHECKING:
    import networkx as nx
    import pandas
    from matplotlib.figure import Figure

SHOWN = 12
"""Rows that a repr shows."""

FRAMED = 5000
"""Rows of a result up to which a notebook shows its page."""

TABLES = (".csv", ".parquet", ".html")
"""Suffixes of tables that can be saved."""

Cell = str | int | float | bool | None
"""What a cell of a table holds; None where there is nothing to say."""


@runtime_checkable
class HasGraph(Protocol):
    """What can be made a graph whose nodes say what they are, and where they stand."""

    def to_networkx(self) -> nx.MultiDiGraph:
        """The graph."""
        ...


class Result(ABC):
    """A table: named columns of equal length, under a title."""

    @property
    @abstractmethod
    def title(self) -> str:
        """One line: what was computed, on what."""

    @abstractmethod
    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """The table by column, all of one length."""

    @abstractmethod
    def figure(self) -> Figure:
        """The picture of this result, whose axes say what they measure."""

    def plot(self, file: str | os.PathLike[str] | None = None) -> Figure:
        """Draw the result; into `file` (.png, .svg, .pdf) too where one is given.

        Raises
        ------
        InputError
            Another suffix.
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
        figure = self.figure()
        if target is not None:
            write_atomically(target, lambda path: figure.savefig(path, dpi=150, bbox_inches="tight"))
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
        """Write the table as .csv, .parquet or a page with its figure (.html), and return the file.

        Texts survive all of them: see `readout.token_text`.

        What is a graph (`to_networkx`) is also written in the formats of `jetgraph.write_graph`, a page among them.

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
            import pyarrow
            import pyarrow.parquet

            table = pyarrow.table({name: list(values) for name, values in columns.items()})
            return write_atomically(target, lambda path: pyarrow.parquet.write_table(table, path))
        text = csv_text(columns, zip(*columns.values(), strict=True), spreadsheet=spreadsheet)
        return write_atomically(target, lambda path: path.write_text(text, encoding="utf-8", newline=""))

    def page(self) -> View:
        """The page of what is a graph; of others that of the table, under its figure."""
        if isinstance(self, HasGraph):
            return view_of(self.to_networkx())
        return View(self.title, table_page(self.title, self.columns(), self._svg()))

    def _svg(self) -> bytes | None:
        """The figure as an SVG; None where matplotlib is not installed."""
        if importlib.util.find_spec("matplotlib") is None:
            return None
        buffer = io.BytesIO()
        self.figure().savefig(buffer, format="svg", bbox_inches="tight")
        return buffer.getvalue()

    def __len__(self) -> int:
        return len(next(iter(self.columns().values()), ()))

    def _shown(self) -> tuple[list[str], list[list[str]]]:
        columns = self.columns()
        rows = zip(*(values[:SHOWN] for values in columns.values()), strict=True)
        return list(columns), [[cell_text(cell) for cell in row] for row in rows]

    def __repr__(self) -> str:
        names, rows = self._shown()
        widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
        lines = [self.title]
        for row in (names, *rows):
            lines.append("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if len(self) > len(rows):
            lines.append(f"  … {len(self) - len(rows)} more rows: .to_dataframe() or .save(file) has all")
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
        more = f"<p>… {len(self) - len(rows)} more rows</p>" if len(self) > len(rows) else ""
        return f"<p><b>{html.escape(self.title)}</b></p><table><tr>{head}</tr>{body}</table>{more}"


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

    >>> cell_text(0.123456), cell_text(12345.678), cell_text(None), cell_text("a")
    ('0.1235', '1.235e+04', '', 'a')
    """
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
