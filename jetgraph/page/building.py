"""The page itself: one file of HTML, whose policy lets run what is in it, known by digest, and nothing else."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import networkx as nx

from jetgraph.page.data import page_data

WEB = Path(__file__).parent / "web"
LIBRARY = Path(__file__).parent / "vendor" / "cytoscape.min.js"
NOTICE = Path(__file__).parent / "vendor" / "cytoscape.LICENSE"

MODULES = ("elements", "graph", "quotient", "patterns", "formula", "state", "drawing", "axes", "panel", "main")
"""The modules of the page of a graph, each after those that it imports."""

OF_TABLES = ("elements", "table")
"""Those of the page of a table."""


def page(dag: nx.MultiDiGraph) -> str:
    """The page of a graph, as HTML.

    Texts of the graph are data, compressed, and become texts of elements: none is ever read as mark-up or as code.

    Raises
    ------
    InputError
        A graph that is no path graph and no attribution graph.
    """
    return _filled("page.html", _fixed(MODULES, library=True), page_data(dag))


def table_page(
    title: str,
    columns: Mapping[str, Sequence[Any]],
    figure: bytes | None = None,
    counts: Collection[str] = (),
    note: str = "",
) -> str:
    """The page of a table, as HTML, under its figure (an SVG) where there is one and what there is to say of it; some
    columns are counts.
    """
    cells = [[_cell(cell) for cell in column] for column in columns.values()]
    image = None if figure is None else f"data:image/svg+xml;base64,{base64.b64encode(figure).decode()}"
    data = {"title": title, "names": list(columns), "columns": cells, "figure": image, "note": note}
    data["counts"] = [name in counts for name in columns]
    return _filled("table.html", _fixed(OF_TABLES, library=False), data)


def still_page(title: str, body: str) -> str:
    """A page that nothing runs in, as HTML; the body is mark-up already, in which texts are escaped."""
    style = (WEB / "report.css").read_text(encoding="utf-8")
    policy = {"default-src": "'none'", "style-src": _digest(style), "base-uri": "'none'", "form-action": "'none'"}
    return _put("report.html", {"style": style, "policy": _told(policy), "title": html.escape(title), "body": body})


def _cell(cell: Any) -> Any:
    """JSON has no numbers that are not finite."""
    return str(cell) if isinstance(cell, float) and not math.isfinite(cell) else cell


def _filled(template: str, fixed: Mapping[str, str], data: Mapping[str, Any]) -> str:
    return _put(template, {**fixed, "data": _packed(json.dumps(data, allow_nan=False, separators=(",", ":")))})


def _put(template: str, parts: Mapping[str, str]) -> str:
    """A template with its parts, which are not looked into."""
    return re.sub("@([a-z]+)@", lambda match: parts[match[1]], (WEB / template).read_text(encoding="utf-8"))


def _told(policy: Mapping[str, str]) -> str:
    return "; ".join(f"{name} {value}" for name, value in policy.items())


@cache
def _fixed(modules: tuple[str, ...], *, library: bool) -> dict[str, str]:
    """What is alike in all pages of a kind."""
    drawing = LIBRARY.read_text(encoding="utf-8") if library else ""
    style = (WEB / "page.css").read_text(encoding="utf-8")
    script = _script(modules, NOTICE.read_text(encoding="utf-8").strip() if library else "")
    assert not any(mark in text for text in (script, style) for mark in ("</", "<!--")), "it would end its element"
    policy = {
        "default-src": "'none'",
        "script-src": " ".join([_digest(script), *([_digest(drawing)] if library else [])]),
        "style-src": _digest(style),
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return {"library": _packed(drawing), "style": style, "script": script, "policy": _told(policy)}


def _script(modules: tuple[str, ...], notice: str) -> str:
    """The modules as one script: what one takes from another is there already."""
    texts = [(WEB / f"{name}.js").read_text(encoding="utf-8") for name in modules]
    joined = [re.sub(r"^export ", "", re.sub(r"^import .*\n+", "", text, flags=re.M), flags=re.M) for text in texts]
    head = [f"/* Drawn with Cytoscape.js:\n{notice}\n*/"] if notice else []
    return "\n".join([*head, "(() => {", '"use strict";', *joined, "})();"])


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
