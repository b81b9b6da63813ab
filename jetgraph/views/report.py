"""A report: sections of prose, tables and pictures, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of text under column names; `file` is where all of them are."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    file: str = ""
    total: int = 0
    """Number of rows in the file, where that is more than are shown."""


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


def markdown(title: str, about: str, sections: Iterable[Section]) -> str:
    """The report as Markdown in which every text stands as it is."""
    lines = [f"# {escaped(title)}", "", escaped(about), ""]
    for section in sections:
        lines += [f"## {escaped(section.title)}", "", escaped(section.note), ""]
        if section.text:
            # Longer than any in the text.
            fence = "`" * (1 + max((len(ticks) for ticks in re.findall("`+", section.text)), default=2))
            lines += [f"{fence}text", section.text, fence, ""]
        for table in section.tables:
            rows = [row_text(table.columns), "|" + " --- |" * len(table.columns), *map(row_text, table.rows)]
            lines += [*rows, ""]
        if section.after:
            lines += [escaped(section.after[0].upper() + section.after[1:]) + ".", ""]
        for what, file in section.pictures:
            lines += [f"![{escaped(what)}]({file})", ""]
    return "\n".join(lines)


def row_text(cells: Sequence[str]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(map(escaped, cells)) + " |"


def escaped(text: str) -> str:
    """A text in Markdown as it is: no mark-up, no HTML, no formula, and on one line.

    >>> print(escaped("<b>*a* | b`"))
    \\<b>\\*a\\* \\| b\\`
    """
    return re.sub(r"([\\\\`*_\[\]<&|~$])", r"\\\1", " ".join(text.splitlines()))
