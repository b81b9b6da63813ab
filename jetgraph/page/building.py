"""The page itself: one file of HTML, whose policy lets run what is in it, known by digest, and nothing else."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from functools import cache
from pathlib import Path

import networkx as nx

from jetgraph.page.data import page_data

WEB = Path(__file__).parent / "web"
LIBRARY = Path(__file__).parent / "vendor" / "cytoscape.min.js"
NOTICE = Path(__file__).parent / "vendor" / "cytoscape.LICENSE"

MODULES = ("graph", "quotient", "patterns", "formula", "state", "drawing", "axes", "panel", "main")
"""The page's modules, each after those that it imports."""


def page(dag: nx.MultiDiGraph) -> str:
    """The page of a graph, as HTML.

    Texts of the graph are data, compressed, and become texts of elements: none is ever read as mark-up or as code.

    Raises
    ------
    InputError
        A graph that is no path graph and no attribution graph.
    """
    parts = {**_fixed(), "data": _packed(json.dumps(page_data(dag), allow_nan=False, separators=(",", ":")))}
    return re.sub("@([a-z]+)@", lambda found: parts[found[1]], (WEB / "page.html").read_text(encoding="utf-8"))


@cache
def _fixed() -> dict[str, str]:
    """What is alike in all pages."""
    library = LIBRARY.read_text(encoding="utf-8")
    style = (WEB / "page.css").read_text(encoding="utf-8")
    script = _script()
    assert not any(mark in text for text in (script, style) for mark in ("</", "<!--")), "it would end its element"
    policy = {
        "default-src": "'none'",
        "script-src": f"{_digest(script)} {_digest(library)}",
        "style-src": _digest(style),
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    told = "; ".join(f"{name} {value}" for name, value in policy.items())
    return {"library": _packed(library), "style": style, "script": script, "policy": told}


def _script() -> str:
    """The modules as one script: what one takes from another is there already."""
    texts = [(WEB / f"{name}.js").read_text(encoding="utf-8") for name in MODULES]
    joined = [re.sub(r"^export ", "", re.sub(r"^import .*\n+", "", text, flags=re.M), flags=re.M) for text in texts]
    notice = NOTICE.read_text(encoding="utf-8").strip()
    return "\n".join([f"/* Drawn with Cytoscape.js:\n{notice}\n*/", "(() => {", '"use strict";', *joined, "})();"])


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
