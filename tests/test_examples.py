"""The examples, and the Python of README and docs, run as they stand."""

import importlib
import importlib.util
import json
import os
import pathlib
import re
import runpy
import subprocess
import sys
from collections.abc import Callable

import pytest

import jetgraph
from jetgraph.jets import registry

ROOT = pathlib.Path(__file__).parent.parent
EXAMPLES = sorted(ROOT.glob("examples/[0-9][0-9]_*.py"))
SAYS = {
    "01_trace_and_joins": ["8 residual joins", "an identity skip plus L1.mlp (1.body)"],
    "02_expand_and_select": ["1,024", "128 paths", "= 2^252: True"],
    "03_compile_paths": ["no forward pass", "by hand: max difference", "3 x 12 tokens"],
    "04_lens": ["is followed by", "h8"],
    "05_register_rule": ["has no Taylor rule", "order 8: f(x + t v) to within"],
    "06_ngrams": ["8 top bi-grams", "skip-tri-grams", "embed > L0.mlp > logits", "hit@10"],
    "07_refusals": ["before: 0 of 8", "after: 8 of 8", "no other path changes by more than", "says_b"],
}
NUMBERS = {
    "03_compile_paths": {
        "by hand: max difference": (0, 1e-5),
        "remainder": (0, 1e-4),
        "max error": (0, 1e-5),
    },
    # Refusals rise more clearly than what is refused goes.
    "07_refusals": {"mass of forbidden words .*,": (0.7, 1.0), "mass of words of the refusal .*,": (1.8, 50)},
}
"""Numbers that it prints, with their bounds."""


Run = Callable[[pathlib.Path], str]


@pytest.fixture
def run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a script as `python file` does, in a folder of its own, and return what it prints."""

    def run(file: pathlib.Path) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(file)])
        monkeypatch.syspath_prepend(str(file.parent))
        runpy.run_path(str(file), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_here():
    assert [file.stem for file in EXAMPLES] == sorted(SAYS)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_example(file, run, monkeypatch):
    # The example registers a rule of its own, which is gone with it.
    monkeypatch.setattr(registry, "RULES", dict(registry.RULES))
    output = run(file)
    for words in SAYS[file.stem]:
        assert words in output
    for name, (least, most) in NUMBERS.get(file.stem, {}).items():
        values = re.findall(rf"{name} ([\d.e+-]+)", output)
        assert values, name
        assert all(least <= float(value) <= most for value in values), output


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_examples_are_short(file):
    assert len(file.read_text().splitlines()) < 60


@pytest.fixture
def notebooks(monkeypatch: pytest.MonkeyPatch):
    """The script that makes them."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("notebooks")


def test_notebooks_are_the_examples(notebooks):
    """Each has the cells of its script or document, ran from its first cell to its last, and says what that says."""
    assert {file.name for file in ROOT.glob("examples/*.ipynb")} == {file.name for file in notebooks.NOTEBOOKS}
    for file, made_from in notebooks.NOTEBOOKS.items():
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"site-packages|/home/|/tmp/", text), "of the machine that it ran on"
        kept, made = json.loads(text), notebooks.notebook(file)
        code = [cell for cell in kept["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)], file.name
        outputs = [output for cell in code for output in cell["outputs"]]
        printed = "".join("".join(output.get("text", ())) for output in outputs)
        assert all(words in printed for words in SAYS.get(made_from.stem, ["which carry", "Σ = 11 of 11"]))
        assert {output["output_type"] for output in outputs} <= {"stream", "execute_result", "display_data"}
        assert [cell["source"] for cell in kept["cells"]] == [cell["source"] for cell in made["cells"]], (
            f"{file.name} is not made of {made_from.name} as it is: make notebooks"
        )
        assert kept["metadata"] == made["metadata"]


def test_the_tutorial_runs_as_a_notebook(notebooks):
    pytest.importorskip("nbclient", reason="the extra notebooks is not installed")
    (file, *_) = notebooks.NOTEBOOKS
    kept = json.loads(file.read_text(encoding="utf-8"))
    for before, cell in zip(kept["cells"], notebooks.run(notebooks.notebook(file))["cells"], strict=True):
        kinds = [
            [sorted(output.get("data", ["printed"])) for output in one.get("outputs", ())] for one in (before, cell)
        ]
        assert kinds[0] == kinds[1]


def test_colab_opens_what_is_on_github(notebooks, tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    for source, link in {
        "https://github.com/some/where": "https://colab.research.google.com/github/some/where/blob/main/examples/a.ipynb",
        "https://example.org/some": None,
    }.items():
        (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nSource = "{source}"\n')
        assert notebooks.colab("a.ipynb") == link


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


CONTINUED = ("tutorial", "howto")
"""Documents whose blocks go on from each other, on one traced model."""


def blocks() -> dict[str, str]:
    """The Python of the documents, by file and number; all of it, where blocks go on from each other."""
    found: dict[str, str] = {}
    for file in DOCUMENTS:
        text = file.read_text(encoding="utf-8")
        parts = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        whole = ["\n".join(parts)] if file.stem in CONTINUED else parts
        found |= {f"{file.stem}{number}": block for number, block in enumerate(whole, 1)}
    return found


def test_documents_have_python():
    assert sum(name.startswith("README") for name in blocks()) >= 2
    assert sum(name.startswith("guide") for name in blocks()) >= 2


@pytest.mark.parametrize("name", blocks())
def test_block_of_a_document(name, run, tmp_path):
    """Each block runs by itself, in a folder of its own; the tutorial as a notebook, where it can."""
    if name == "tutorial1" and importlib.util.find_spec("nbclient"):
        pytest.skip("it runs as a notebook")
    script = tmp_path / "block.py"
    script.write_text(blocks()[name], encoding="utf-8")
    run(script)


def test_the_site_has_every_page_and_every_public_name():
    """What is in docs/ is in the menu, and what people import has its place among the pages of the API."""
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {file.relative_to(ROOT / "docs").as_posix() for file in (ROOT / "docs").rglob("*.md")}
    assert set(re.findall(r"[\w/]+\.md", menu)) == pages
    told = [line for file in (ROOT / "docs/api").glob("*.md") for line in file.read_text(encoding="utf-8").splitlines()]
    named = {line.removeprefix("::: jetgraph.") for line in told if line.startswith(":::")}
    assert named == set(jetgraph.__all__) - {"loading", "symbolic"}


def test_the_index_of_errors_has_messages_that_there_are():
    """What the index looks up stands in the code, but for what a message fills in."""
    code = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "jetgraph").rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    index = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    looked_up = [cell for line in index.splitlines() if line.startswith("| `") for cell in line.split(" | ")[:1]]
    pieces = [piece for cell in looked_up for text in re.findall("`([^`]+)`", cell) for piece in text.split("…")]
    assert len(pieces) > 30
    assert [piece for piece in pieces if piece.strip(" ()") and piece.strip(" ()") not in code] == []


def test_the_site_has_every_message():
    """Found in the code as it is: of each class that people catch and that is raised, and what to do stands with it."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/site/hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    text = hooks.every_message()
    assert text.count("\n- `") > 500
    raised = set(re.findall(r"^### (\w+): ", text, re.MULTILINE))
    assert raised >= {name for name in jetgraph.__all__ if name.endswith("Error")} - {"JetGraphError"}
    assert "- `… targets for … prompts: give one, or one for each`" in text
    # Texts that are put together elsewhere: in a function, a variable, a choice of two, for an option.
    for one in (
        "has no column …",
        "; take … or less",
        "at=… is no place",
        "it does not name the weight",
        "is no order of",
    ):
        assert one in text
    with pytest.raises(jetgraph.InputError) as told:
        jetgraph.compare("demo", "demo", "a", target=[1, 2])
    assert str(told.value) == "2 targets for 1 prompt: give one, or one for each"


def test_the_site_builds(tmp_path):
    """Without a warning, and with nothing in it that asks a network."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    ran = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr.strip()
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(
            r"<(?:script|img|iframe)[^>]*src=\"?(?:https?:)?//|<link[^>]*rel=\"?(?:stylesheet|preconnect)[^>]*(?:https?:)?//",
            text,
        ), page
    # Opened from a folder, a browser starts no worker and fetches nothing: the search brings both.
    assert (tmp_path / "site/search/search_index.js").exists()
    assert "javascripts/iframe-worker.js" in (tmp_path / "site/index.html").read_text(encoding="utf-8")
    assert "logit lens" in (tmp_path / "site" / "api" / "lenses.html").read_text(encoding="utf-8")


def test_readme_is_an_entrance():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 1500


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_documents_name_what_exists(file):
    """Links lead somewhere, and so do the places of the code that are named."""
    text = file.read_text(encoding="utf-8")
    for name in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", text):
        assert (file.parent / name).exists(), name
    if file.stem != "CHANGELOG":
        for name in re.findall(r"`((?:jetgraph|tests|examples|benchmarks)/[\w./]+)`", text):
            assert (ROOT / name).exists(), name
        for name in re.findall(r"`([a-z_]+/[\w/]*\.py)`", text):
            assert (ROOT / name).exists() or (ROOT / "jetgraph" / name).exists(), name
        for module, name in re.findall(r"`(\w+\.\w+)\.([A-Z]+)`", text):
            assert hasattr(importlib.import_module(f"jetgraph.{module}"), name), f"{module}.{name}"
