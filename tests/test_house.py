"""The law of imports: which room may use which, over every module of the package."""

from __future__ import annotations

import ast
import pathlib

import pytest

import jetgraph

ROOT = pathlib.Path(jetgraph.__file__).parent

ROOMS = (
    "errors",
    "algebra",
    "files",
    "export",
    "jets",
    "tracing",
    "structure",
    "views",
    "running",
    "residual",
    "compilation",
    "saving",
    "models",
    "prompts",
    "loading",
    "applications",
    "demo",
    "cli",
)
"""In this order: a module imports from its own room and from those before it."""

WITHOUT_TENSORS = ("errors", "algebra")

MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}


def imported(path: pathlib.Path) -> set[str]:
    """The modules that a file imports when it is imported itself, as `a.b` below jetgraph, others in full."""
    found: set[str] = set()
    nodes = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        nodes += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ("__init__", "__main__")])
def test_imports_run_one_way(name: str) -> None:
    room = name.split(".")[0]
    assert room in ROOMS, f"{name}: say in this test where the room stands"
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    for module in imported(MODULES[name]):
        top, _, rest = module.partition(".")
        if top == "jetgraph":
            # What people run is made of what people import.
            whole = not rest and room in ("demo", "cli")
            assert whole or rest.split(".")[0] in allowed, f"{name} imports {module}"
        elif top in ("torch", "transformers", "safetensors"):
            assert room not in WITHOUT_TENSORS, f"{name} imports {module}"


def test_every_room_is_there() -> None:
    assert {name.split(".")[0] for name in MODULES} - {"__init__", "__main__"} == set(ROOMS)


def test_modules_have_no_circles() -> None:
    """Within rooms as well."""
    edges = {
        name: {
            other
            for module in imported(path)
            for other in MODULES
            if module.removeprefix("jetgraph.") == other or module.removeprefix("jetgraph.").startswith(f"{other}.")
        }
        - {name}
        for name, path in MODULES.items()
        if not name.endswith("__init__")
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " → ".join((*above[above.index(name) :], name))
        if name not in done:
            for other in edges.get(name, ()):
                visit(other, (*above, name))
            done.add(name)

    for name in edges:
        visit(name, ())
