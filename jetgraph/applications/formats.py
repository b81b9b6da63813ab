"""Tables as texts of other programs: JSON, Markdown, LaTeX; and as a stream of Arrow's, which needs pyarrow."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jetgraph.errors import MissingExtraError
from jetgraph.views.document import visible
from jetgraph.views.report import escaped, row_text

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def json_text(title: str, columns: Mapping[str, Sequence[Any]]) -> str:
    """The title and the columns; numbers that are not finite are null, as JSON has none.

    >>> print(json_text("a", {"x": [1.5, float("nan")]}), end="")
    {"title": "a", "columns": {"x": [1.5, null]}}
    """
    return json.dumps({"title": title, "columns": finite_cells(columns)}, allow_nan=False) + "\n"


def finite_cells(columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Columns without the numbers that JSON has not."""
    return {name: [None if _is_lost(cell) else cell for cell in column] for name, column in columns.items()}


def _is_lost(cell: Any) -> bool:
    return isinstance(cell, float) and not math.isfinite(cell)


def markdown_text(title: str, names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table under its title, in which every text stands as it is.

    >>> print(markdown_text("a", ["token"], [["<b>"]]), end="")
    a
    <BLANKLINE>
    | token |
    | --- |
    | \\<b> |
    """
    lines = [escaped(title), "", row_text(names), "|" + " --- |" * len(names), *map(row_text, rows), ""]
    return visible("\n".join(lines))


def latex_text(title: str, names: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[bool]) -> str:
    """A `tabular` with the rules of `booktabs`, under its title as a comment; columns of numbers are flush right.

    >>> print(latex_text("a", ["token", "p"], [["_", "0.5"]], [False, True]), end="")
    % a
    \\begin{tabular}{lr}
    \\toprule
    token & p \\\\
    \\midrule
    \\_ & 0.5 \\\\
    \\bottomrule
    \\end{tabular}
    """
    line = lambda cells: " & ".join(map(latex, cells)) + r" \\"  # noqa: E731
    return "\n".join(
        [
            f"% {visible(' '.join(title.split()))}",
            f"\\begin{{tabular}}{{{''.join('r' if number else 'l' for number in numbers)}}}",
            *(r"\toprule", line(names), r"\midrule", *map(line, rows), r"\bottomrule", r"\end{tabular}", ""),
        ]
    )


def latex(text: str) -> str:
    """A text in LaTeX as it is, on one line.

    >>> print(latex("50 % of a_b\\n"))
    50 \\% of a\\_b
    """
    return re.sub(r"[\\~^<>&%$#_{}]", lambda match: _LATEX[match[0]], visible(" ".join(text.split("\n"))).strip())


def arrow_table(columns: Mapping[str, Sequence[Any]]) -> Any:
    """The table as pyarrow's.

    Raises
    ------
    MissingExtraError
        pyarrow is missing.
    """
    try:
        import pyarrow
    except ImportError:
        raise MissingExtraError(
            "tables for polars, duckdb and parquet need pyarrow: pip install 'jetgraph[tables]'"
        ) from None
    return pyarrow.table({name: list(values) for name, values in columns.items()})
