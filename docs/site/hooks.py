"""What the site does differently from the repository: links out of docs/ lead there where its address is known, and are
texts where it is not.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def source() -> str | None:
    """Where the repository is, by `[project.urls]`."""
    return tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["urls"].get("Source")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page's Markdown without links to files that the site does not have."""
    place = source()
    to = r"\1" if place is None else rf"[\1]({place}/blob/main/\2)"
    return re.sub(r"(?<!!)\[([^\]]+)\]\((?:\.\./)([^)]*)\)", to, markdown)
