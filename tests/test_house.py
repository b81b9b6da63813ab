"""The law of imports: which room may use which, over every module of the package."""

from __future__ import annotations

import ast
import functools
import pathlib
import re

import pytest

import jetgraph

ROOT = pathlib.Path(jetgraph.__file__).parent

ROOMS = (
    "errors",
    "numbers",
    "layout",
    "algebra",
    "program",
    "symbolic",
    "page",
    "files",
    "lazy",
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
    "scale",
    "applications",
    "viewing",
    "reporting",
    "demo",
    "cli",
)
"""In this order: a module imports from its own room and from those before it."""

WITHOUT_TENSORS = ("errors", "numbers", "layout", "algebra", "page")


@functools.cache
def parsed(path: pathlib.Path) -> ast.Module:
    """A module as a tree, read once for all tests."""
    return ast.parse(path.read_text(encoding="utf-8"))


MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}


def imported(path: pathlib.Path, *, types: bool = False) -> set[str]:
    """The modules that a file imports when it is imported itself, as `a.b` below jetgraph, others in full; with `types`
    those too that it names in annotations alone."""
    found: set[str] = set()
    nodes = list(parsed(path).body)
    while nodes:
        node = nodes.pop()
        if not types and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        nodes += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports_run_one_way() -> None:
    wrong: list[str] = []
    for name, path in MODULES.items():
        room = name.split(".")[0]
        if room in ("__init__", "__main__"):
            continue
        assert room in ROOMS, f"{name}: say in this test where the room stands"
        allowed = set(ROOMS[: ROOMS.index(room) + 1])
        for module in imported(path):
            top, _, rest = module.partition(".")
            # What people run is made of what people import.
            whole = not rest and room in ("demo", "cli")
            right = whole or rest.split(".")[0] in allowed if top == "jetgraph" else room not in WITHOUT_TENSORS
            if top in ("jetgraph", "torch", "transformers", "safetensors") and not right:
                wrong.append(f"{name} imports {module}")
    assert not wrong


def test_every_room_is_there() -> None:
    assert {name.split(".")[0] for name in MODULES} - {"__init__", "__main__"} == set(ROOMS)


def test_modules_have_no_circles() -> None:
    """Within rooms as well, and in annotations."""
    edges = {
        name: {
            other
            for module in imported(path, types=True)
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


def test_symbols_are_frozen_values() -> None:
    """What has no tensors is made once: automata are shared by expansions, selections and plans."""
    made = [
        (name, node.name, ast.unparse(decorator))
        for name, path in MODULES.items()
        if name.partition(".")[0] == "algebra"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef)
        for decorator in node.decorator_list
        if "dataclass" in ast.unparse(decorator)
    ]
    assert len(made) > 10
    assert [one for one in made if "frozen=True" not in one[2]] == []


def documented(module: str) -> set[str]:
    """The names at the top of a module that are public and say what they are, and those that it takes from others."""
    found: set[str] = set()
    body = parsed(MODULES_BY_PATH[module]).body
    for node, following in zip(body, [*body[1:], None], strict=True):
        text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            found.add(node.name)
        elif isinstance(node, ast.Assign) and text:
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom) and module.endswith("__init__"):
            found |= {alias.name for alias in node.names}
    return {name for name in found if not name.startswith("_")}


def test_errors_have_their_section() -> None:
    """What a public function raises stands under `Raises`, as numpydoc has it, and not in its prose."""
    wrong: list[str] = []
    for name, path in MODULES.items():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                prose = (ast.get_docstring(node) or "").partition("Raises\n------")[0]
                if re.search(r"(^|[.;] |\n)[Rr]aises `", prose):
                    wrong.append(f"{name}.{node.name}")
    assert not wrong


MODULES_BY_PATH = {f"jetgraph.{name}".removesuffix(".__init__"): path for name, path in MODULES.items()} | {
    f"jetgraph.{name}": path for name, path in MODULES.items()
}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("applications")])
def test_applications_use_public_names(name: str) -> None:
    """What they import says what it is, and nothing private of anything else is looked at."""
    tree = parsed(MODULES[name])
    assert ast.get_docstring(tree), f"{name} does not say why it exists"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("_"):
            assert isinstance(node.value, ast.Name), f"{name} uses {ast.unparse(node)}"
            assert node.value.id in ("self", "cls"), f"{name} uses {ast.unparse(node)}"
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("jetgraph"):
            source = f"{node.module}.__init__" if f"{node.module}.__init__" in MODULES_BY_PATH else str(node.module)
            wrong = {alias.name for alias in node.names} - documented(source)
            assert not wrong, f"{name} imports {', '.join(sorted(wrong))} of {node.module}: make public what it needs"


def docstring_lines(node: ast.AST) -> int:
    described = isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None
    return (node.body[0].end_lineno or 0) - node.body[0].lineno + 1 if described else 0


def test_what_is_read_in_one_go_is_short() -> None:
    """Functions fit a screen and classes a sitting, docstrings aside; a comment at the head says why one must not."""
    long: list[str] = []
    for name, path in MODULES.items():
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                body = node.body[ast.get_docstring(node) is not None :]
                length = node.end_lineno - body[0].lineno + 1 if body and node.end_lineno else 0
                length -= sum(docstring_lines(inner) for inner in ast.walk(node) if inner is not node)
                allowed = 200 if isinstance(node, ast.ClassDef) else 40
                if length > allowed and not lines[node.lineno - 2].lstrip().startswith("# Long, for "):
                    long.append(f"{name}.{node.name}: {length} lines")
    assert not long
