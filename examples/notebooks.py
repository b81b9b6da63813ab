"""Notebooks of the tutorial and of the examples, run, with what they say: `make notebooks`.

A notebook has what its document or script has, cell by cell, so that there is one text of each to keep; the tests hold
the two together. Cells that a notebook alone has, such as a picture, stand in the document as
`<!-- cell: lens.plot() -->`.
"""

from __future__ import annotations

import ast
import json
import re
import tempfile
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "tutorial.md"
SCRIPTS = sorted((ROOT / "examples").glob("[0-9][0-9]_*.py"))

NOTEBOOKS = {
    Path(__file__).parent / name: file
    for name, file in [("00_tutorial.ipynb", TUTORIAL), *((f"{file.stem}.ipynb", file) for file in SCRIPTS)]
}
"""What each notebook is made from."""

INSTALL = """\
# On Colab, and wherever else jetgraph is not installed.
import importlib.util

if importlib.util.find_spec("jetgraph") is None:
    %pip install --quiet "jetgraph[plot,tables]\""""

Cell = tuple[str, str]
"""`markdown` or `code`, and its text."""


def cells_of(file: Path) -> list[Cell]:
    """The cells of a document or of a script, under its title and what installs jetgraph."""
    title, *rest = _of_document(file) if file.suffix == ".md" else _of_script(file)
    return [title, ("code", INSTALL), *rest]


def colab(name: str) -> str | None:
    """Where Colab opens a notebook: on GitHub, once `[project.urls]` says where that is."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    place = re.fullmatch(r"https://github\.com/([^/]+/[^/]+?)(?:\.git)?/?", urls.get("Source", ""))
    return place and f"https://colab.research.google.com/github/{place[1]}/blob/main/examples/{name}"


def notebook(file: Path) -> dict[str, Any]:
    """A notebook that has not run, as JSON."""
    (kind, title), *rest = cells_of(NOTEBOOKS[file])
    link = colab(file.name)
    cells = [(kind, title if link is None else f"{title}\n\n[Open it in Colab]({link})"), *rest]
    return {
        "cells": [_cell(number, kind, text) for number, (kind, text) in enumerate(cells)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def run(made: dict[str, Any]) -> dict[str, Any]:
    """The same with what its cells say, which run in a folder of their own.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        A cell fails.
    """
    import nbformat  # pyright: ignore[reportMissingImports]
    from nbclient import NotebookClient  # pyright: ignore[reportMissingImports]

    node: Any = nbformat.reads(json.dumps(made), as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        where: Any = {"metadata": {"path": folder}}
        NotebookClient(node, timeout=600, record_timing=False, coalesce_streams=True, resources=where).execute()
    ran = {**json.loads(nbformat.writes(node)), "metadata": made["metadata"]}
    for cell in ran["cells"]:
        if "outputs" in cell:
            # Bars, and warnings that name folders of the machine.
            cell["outputs"] = [one for one in cell["outputs"] if one.get("name") != "stderr"]
    return ran


def _cell(number: int, kind: str, text: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "id": f"cell{number}", "metadata": {}}
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return cell | {"source": text.splitlines(keepends=True)}


def _of_document(file: Path) -> Iterator[Cell]:
    """Prose and Python in turn; links lead from the folder of the notebooks."""
    parts = re.split(
        r"^```python\n(.*?)^```$|^<!-- cell: (.*?) -->$", file.read_text(encoding="utf-8"), flags=re.M | re.S
    )
    folder = f"../{file.parent.name}/"
    for prose, block, alone in zip(parts[::3], [*parts[1::3], None], [*parts[2::3], None], strict=True):
        if prose.strip():
            yield (
                "markdown",
                re.sub(r"\]\((?!https?:|#|\.\./)", f"]({folder}", prose).replace("](../examples/", "](").strip(),
            )
        if block or alone:
            yield "code", (block or alone or "").strip()


def _of_script(file: Path) -> Iterator[Cell]:
    """What a script says of itself, and its statements, those of `main` last, without what only a script needs."""
    text = file.read_text(encoding="utf-8")
    module = ast.parse(text)
    title, _, about = (ast.get_docstring(module) or "").partition("\n\n")
    about = about.partition("\n\n")[2]  # after how the script is run
    yield "markdown", f"# {title.rstrip('.')}\n\n{about}".strip()
    (main,) = [one for one in module.body if isinstance(one, ast.FunctionDef) and one.name == "main"]
    lines = text.splitlines()
    yield from _statements(lines, [one for one in module.body[1:] if _stays(one)])
    if any("no_grad" in ast.unparse(one) for one in main.decorator_list):
        yield "code", "torch.set_grad_enabled(False);"
    yield from _statements(lines, main.body[1:])


def _stays(statement: ast.stmt) -> bool:
    """A statement of a module that a notebook has too."""
    named = isinstance(statement, ast.FunctionDef) and statement.name == "main"
    future = isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
    return not (named or future or isinstance(statement, ast.If))


def _statements(lines: list[str], body: list[ast.stmt]) -> Iterator[Cell]:
    """Statements in cells, which end at blank lines; a comment above one is prose."""
    group: list[str] = []
    last = body[0].lineno
    for statement in body:
        first = min([statement.lineno, *(one.lineno for one in getattr(statement, "decorator_list", ()))])
        between = [line.strip() for line in lines[last : first - 1]]
        imports = (
            isinstance(statement, ast.Import | ast.ImportFrom) and group[-1:] and re.match("import|from", group[-1])
        )
        if imports and "" in between:
            group.append("")
        elif group and "" in between:
            yield "code", textwrap.dedent("\n".join(group))
            group = []
        said = [line.removeprefix("# ") for line in between if line.startswith("# ")]
        if said and not group:
            yield "markdown", " ".join(said)
        elif said:
            group += lines[first - 1 - len(said) : first - 1]
        last = statement.end_lineno or first
        group += lines[first - 1 : last]
    yield "code", textwrap.dedent("\n".join(group))


def main() -> None:
    """Make all of them, and run them."""
    for file in NOTEBOOKS:
        file.write_text(json.dumps(run(notebook(file)), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
