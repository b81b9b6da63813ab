"""What the site does differently from the repository: links out of docs/ lead there where its address is known, and are
texts where it is not; the index of errors goes on with every message, as the code has it.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2] / "pyproject.toml"

CODE = PROJECT.parent / "jetgraph"


def source() -> str | None:
    """Where the repository is, by `[project.urls]`."""
    return tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["urls"].get("Source")


def public_errors() -> set[str]:
    """The classes that people catch."""
    classes = ast.parse((CODE / "errors.py").read_text(encoding="utf-8")).body
    return {one.name for one in classes if isinstance(one, ast.ClassDef) and one.name.endswith("Error")}


def messages() -> Iterator[tuple[str, str]]:
    """Class and text of each error that the code raises, with … for what it fills in."""
    known = public_errors()
    for file in sorted(CODE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in known):
                continue
            text = "".join(map(_text, node.args[:1]))
            if re.search(r"[a-z]{3}", text):
                yield node.func.id, " ".join(text.split())


def _text(value: ast.expr) -> str:
    if isinstance(value, ast.JoinedStr):
        return "".join(map(_text, value.values))
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else "…"


def every_message() -> str:
    """All of them as Markdown, by class and in the order of the alphabet."""
    by_class: dict[str, set[str]] = {}
    for name, text in messages():
        by_class.setdefault(name, set()).add(re.sub(r"`+", "'", text))
    lines = ["## Every message", "", "As the code has them; … stands for what is filled in.", ""]
    for name, texts in sorted(by_class.items()):
        lines += [f"### {name}: {len(texts)}", "", *(f"- `{text}`" for text in sorted(texts, key=_order)), ""]
    return "\n".join(lines)


def _order(text: str) -> str:
    """By the first word that is always there."""
    return text.lstrip("…' (").lower()


def on_page_markdown(markdown: str, page: Any = None, **_: Any) -> str:
    """A page's Markdown without links to files that the site does not have; the index of errors with every message."""
    if page is not None and page.file.src_uri == "errors.md":
        markdown = f"{markdown}\n{every_message()}"
    place = source()
    to = r"\1" if place is None else rf"[\1]({place}/blob/main/\2)"
    return re.sub(r"(?<!!)\[([^\]]+)\]\((?:\.\./)([^)]*)\)", to, markdown)
