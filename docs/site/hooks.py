"""What the site does differently from the repository: links out of docs/ lead there where its address is known, and are
texts where it is not; the index of errors goes on with every message, as the code has it.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2] / "pyproject.toml"

CODE = PROJECT.parent / "jetgraph"

MOST = 16
"""Texts that one expression may be, at most."""


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
        module = ast.parse(file.read_text(encoding="utf-8"))
        made = _made_of(module)
        for node in ast.walk(module):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            # What is wrong with the value of an option is one for people too.
            name = ast.unparse(node.func).replace("typer.BadParameter", "InputError")
            if name not in known:
                continue
            (text, *_) = texts = _texts(node.args[0], {})
            for one in texts if re.search(r"[a-z]{3}", text) else _texts(node.args[0], made):
                if re.search(r"[a-z]{3}", one):
                    yield name, " ".join(one.split())


def _made_of(module: ast.Module) -> dict[str, list[ast.expr]]:
    """What the names of a module may stand for, where these are texts: values of variables, results of functions."""
    made: dict[str, list[ast.expr]] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            made.setdefault(node.targets[0].id, []).append(node.value)
        elif isinstance(node, ast.FunctionDef):
            results = [one.value for one in ast.walk(node) if isinstance(one, ast.Return) and one.value is not None]
            made.setdefault(f"{node.name}()", []).extend(results)
    return made


def _texts(value: ast.expr, made: dict[str, list[ast.expr]]) -> list[str]:
    """The texts that an expression may be."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return [value.value]
    if isinstance(value, ast.JoinedStr) or (isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add)):
        parts = value.values if isinstance(value, ast.JoinedStr) else [value.left, value.right]
        joined = ("".join(some) for some in islice(product(*(_texts(part, made) for part in parts)), MOST))
        return [re.sub("…+", "…", one) for one in joined]
    if isinstance(value, ast.FormattedValue):
        return _texts(value.value, made)
    if isinstance(value, ast.IfExp):
        return [text for one in (value.body, value.orelse) for text in _texts(one, made)]
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "amount":
        return [f"… {word}s" for word in _texts(value.args[1], made)]
    name = f"{ast.unparse(value.func)}()" if isinstance(value, ast.Call) else ast.unparse(value)
    # Nothing stands for itself.
    rest = {other: values for other, values in made.items() if other != name}
    return [text for one in made.get(name, ()) for text in _texts(one, rest)][:MOST] or ["…"]


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
