"""Which error is for what: Python's own classes, and one class for one fault on every way."""

from __future__ import annotations

import ast
import importlib.util
import pathlib
import sys
from typing import Any

import pytest

import jetgraph as jg
from jetgraph import errors
from jetgraph.applications.results import Result
from jetgraph.files.targets import check_target
from jetgraph.files.writing import read_text
from jetgraph.views.picture import draw
from tests.outlines import EMBED, branch, decoder, join

CLASSES = {name: value for name, value in vars(errors).items() if isinstance(value, type) and name.endswith("Error")}
EXPANSION = jg.expand(jg.Outline((EMBED,), (join(branch("L0.mlp")),), decoder()), order=0)


class Table(Result):
    title = "a table"

    def columns(self) -> dict[str, Any]:
        return {"number": [1]}

    def figure(self) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("InputError", ValueError),
        ("SelectionError", ValueError),
        ("NoSuchPathError", IndexError),
        ("NotComputedError", KeyError),
        ("StateError", RuntimeError),
        ("FileError", OSError),
        ("LoadError", OSError),
        ("MissingExtraError", ImportError),
    ],
)
def test_errors_are_errors_of_python_too(name: str, builtin: type[Exception]) -> None:
    with pytest.raises(builtin, match=r"^what was seen$"):
        raise CLASSES[name]("what was seen")


def test_all_errors_are_exported_but_the_inner_one() -> None:
    assert {name for name, value in CLASSES.items() if issubclass(value, jg.JetGraphError)} - {"SizeError"} == {
        name for name in jg.__all__ if name.endswith("Error")
    }
    assert all(issubclass(value, jg.JetGraphError) for name, value in CLASSES.items())


@pytest.mark.parametrize(
    "call",
    [
        lambda: jg.Jet(order=-1),
        lambda: jg.Freeze(gates=("nonsense",)),  # type: ignore[arg-type]
        lambda: jg.expand(EXPANSION.outline, recipe="nonsense"),  # type: ignore[arg-type]
        lambda: jg.expand(EXPANSION.outline, recipe="path", order=1),
        lambda: jg.expand(EXPANSION.outline, rules={"L0.mlp": jg.Distribute()}),
        lambda: jg.expand(EXPANSION.outline, rules={"nonsense": jg.Atom()}),
        lambda: jg.select(EXPANSION, "embed > nonsense > logits"),
        lambda: jg.write_graph(jg.path_graph(EXPANSION), "a.nonsense"),
        lambda: draw(jg.path_graph(EXPANSION), "a.nonsense"),
        lambda: Table().save("a.nonsense"),
        lambda: check_target(pathlib.Path("a.nonsense"), (".csv",)),
    ],
)
def test_what_does_not_fit_is_an_input_error(call: Any) -> None:
    with pytest.raises(jg.InputError):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda folder: jg.write_graph(jg.path_graph(EXPANSION), folder / "none" / "a.json"),
        lambda folder: jg.read_graph(folder / "none.json"),
        lambda folder: draw(jg.path_graph(EXPANSION), folder / "none" / "a.png"),
        lambda folder: Table().save(folder / "none" / "a.csv"),
        lambda folder: check_target(folder / "none" / "a.csv", (".csv",)),
        lambda folder: read_text(folder / "none.txt"),
        lambda folder: jg.load(folder / "none"),
    ],
)
def test_a_file_that_is_not_there_is_a_file_error(call: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(jg.FileError, match="none"):
        call(tmp_path)


@pytest.mark.parametrize(
    ("library", "call"),
    [
        ("matplotlib", lambda folder: Table().plot()),
        ("matplotlib.figure", lambda folder: draw(jg.path_graph(EXPANSION))),
        ("pandas", lambda folder: Table().to_dataframe()),
        ("pyarrow", lambda folder: Table().save(folder / "a.parquet")),
        ("pyarrow", lambda folder: check_target(folder / "a.parquet", (".parquet",))),
    ],
)
def test_a_missing_extra_is_an_import_error(
    library: str, call: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(jg.MissingExtraError, match="pip install"):
        call(tmp_path)


def test_the_base_class_is_never_raised() -> None:
    """A fault has a class of its own, so that whoever catches it knows what to do."""
    for path in sorted(pathlib.Path(errors.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            assert called != "JetGraphError", f"{path}:{node.lineno}: name the fault's class, see jetgraph/errors.py"
