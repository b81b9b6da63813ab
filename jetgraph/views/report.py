"""What a report is made of: sections of prose, tables, grids and pictures; how they read as Markdown, and as facts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jetgraph.errors import InputError, amount

REPORTS = (".html", ".md")
"""Suffixes of reports."""


@dataclass(frozen=True)
class Table:
    """Rows of text under column names; `file` is where all of them are."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    file: str = ""
    total: int = 0
    """Number of rows in the file, where that is more than are shown."""
    bars: tuple[float, ...] = ()
    """By row, a number that pages draw as a bar; they are to each other as the numbers."""
    caption: str = ""

    def __post_init__(self) -> None:
        if self.bars and len(self.bars) != len(self.rows):
            raise InputError(
                f"{amount(len(self.bars), 'bar')} for {amount(len(self.rows), 'row')}: give one for each, or none"
            )


@dataclass(frozen=True)
class Grid:
    """Texts by row and column, each with a strength from −1 to 1, which pages show as a colour."""

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    strengths: tuple[tuple[float, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """One step: what it is, why it is done, and what came out."""

    title: str
    note: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    after: str = ""
    pictures: tuple[tuple[str, str], ...] = ()
    """What each picture shows, and its file."""
    grids: tuple[Grid, ...] = ()
    points: tuple[str, ...] = ()
    """Findings, one a line."""
    commands: tuple[str, ...] = ()
    """What makes these numbers again."""
    inner: tuple[Section, ...] = ()


def facts(section: Section) -> dict[str, Any]:
    """A section for programs: what it says, and its tables by column; what it has not is left out."""
    tables = [
        {"caption": table.caption, "file": table.file, **_by_column(table.columns, table.rows)}
        for table in section.tables
    ]
    grids = [{"caption": grid.caption, **_by_column(("", *grid.columns), _named(grid))} for grid in section.grids]
    told = {
        "note": section.note,
        "points": list(section.points),
        "text": section.text,
        "tables": [{name: value for name, value in table.items() if value} for table in [*tables, *grids]],
        "after": section.after,
        "pictures": dict(section.pictures),
        "commands": list(section.commands),
        "inner": list(map(facts, section.inner)),
    }
    return {"title": section.title, **{name: value for name, value in told.items() if value}}


def _by_column(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    if len({*columns}) < len(columns):
        # A grid has a column for each token, and a text may hold one twice.
        return {"rows": [list(columns), *map(list, rows)]}
    return {"columns": {name: [row[place] for row in rows] for place, name in enumerate(columns)}}


def _named(grid: Grid) -> list[tuple[str, ...]]:
    """The rows of a grid, each after its name."""
    return [(name, *cells) for name, cells in zip(grid.rows, grid.texts, strict=True)]


def markdown(title: str, about: str, sections: Iterable[Section]) -> str:
    """The report as Markdown in which every text stands as it is."""
    lines = [f"# {escaped(title)}", "", escaped(about), ""]
    for section in sections:
        lines += _lines(section, 2)
    return "\n".join(lines)


def _lines(section: Section, level: int) -> Iterator[str]:
    yield from ("#" * level + f" {escaped(section.title)}", "")
    if section.note:
        yield from (escaped(section.note), "")
    if section.points:
        yield from (*(f"- {escaped(point)}" for point in section.points), "")
    if section.text:
        yield from (*_fenced(section.text), "")
    for table in section.tables:
        yield from _captioned(table.caption, table.columns, table.rows)
    for grid in section.grids:
        yield from _captioned(grid.caption, ("", *grid.columns), _named(grid))
    if section.after:
        yield from (escaped(section.after[0].upper() + section.after[1:]) + ".", "")
    for what, file in section.pictures:
        yield from (f"![{escaped(what)}]({file})", "")
    if section.commands:
        yield from (*_fenced("\n".join(section.commands)), "")
    for inner in section.inner:
        yield from _lines(inner, level + 1)


def _captioned(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    if caption:
        yield from (escaped(caption), "")
    yield from (row_text(columns), "|" + " --- |" * len(columns), *map(row_text, rows), "")


def _fenced(text: str) -> list[str]:
    # Longer than any in the text.
    fence = "`" * (1 + max((len(ticks) for ticks in re.findall("`+", text)), default=2))
    return [f"{fence}text", text, fence]


def row_text(cells: Sequence[str]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(map(escaped, cells)) + " |"


def escaped(text: str) -> str:
    """A text in Markdown as it is: no mark-up, no HTML, no formula, and on one line.

    >>> print(escaped("<b>*a* | b`"))
    \\<b>\\*a\\* \\| b\\`
    """
    return re.sub(r"([\\\\`*_\[\]<&|~$])", r"\\\1", " ".join(text.splitlines()))
