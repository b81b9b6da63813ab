"""What the site does differently from the repository: links out of docs/ lead nowhere in it, and are texts there."""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page's Markdown without links to files that the site does not have."""
    return re.sub(r"(?<!!)\[([^\]]+)\]\((?:\.\./)[^)]*\)", r"\1", markdown)
