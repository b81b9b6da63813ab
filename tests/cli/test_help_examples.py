"""What `--help` and documents give as commands: each works, and what names a file that cannot be written is refused."""

from __future__ import annotations

import glob
import json
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch

import jetgraph as jg
from jetgraph.loading import Loaded
from tests.commands import commands, examples, succeed

ROOT = pathlib.Path(__file__).parent.parent.parent

BAD: Mapping[str, Mapping[str, str]] = {
    "--output": {"no/x.png": "the folder no does not exist", "x.nonsense": "names no format", "held.png": "a folder"},
    "--state": {"no/x.parquet": "the folder no does not exist", "x.nonsense": "names no format"},
    "--resume": {"file.txt": "file.txt is a file", "file.txt/under": "file.txt is a file"},
}
"""By option that names what is written: names that cannot be, and what is said of them."""

SUFFIXES = {"report": ".html", "transport fit": ".safetensors", "transport merge": ".safetensors", "merge": ".parquet"}
"""Of commands that write no pictures."""

REFUSING = """
import json, sys
from typer.testing import CliRunner
from jetgraph.cli import app
for words in json.loads(sys.argv[1]):
    before = "torch" in sys.modules
    result = CliRunner().invoke(app, words)
    print(json.dumps([words, result.exit_code, result.stderr, "torch" in sys.modules and not before]))
"""
"""Runs commands one after the other, and says of each whether what computes had been imported by then."""


def _without(words: list[str], *options: str) -> list[str]:
    """The words of a command without some of its options, and what is given to them."""
    taken = {place + more for place, word in enumerate(words) if word in options for more in (0, 1)}
    return [word for place, word in enumerate(words) if place not in taken]


def _refused() -> Iterator[tuple[list[str], str]]:
    """Every command with each option that names what is written, and names that cannot be; and what is to be said."""
    for name, command in commands().items():
        names = {option: one for one in command.params for option in one.opts if option in BAD}
        words = next((words for words in examples(command) if " ".join(words).startswith(name)), None)
        assert words is not None, f"the help of {name} has no example of it"
        for option, parameter in names.items():
            bad = BAD["--resume" if name == "demo" else option]
            for file, said in bad.items():
                named = file.replace(".png", SUFFIXES.get(name, ".png"))
                if not (named == "held.parquet" or (option, name) == ("--state", "transport fit")):
                    yield [*_without(words, *parameter.opts), option, named], said


def test_what_cannot_be_written_is_refused_before_anything_is_loaded(tmp_path: pathlib.Path) -> None:
    """By every command, and by every option of it that names a file or folder to write."""
    for suffix in (".png", ".0.png", ".html", ".safetensors"):
        (tmp_path / f"held{suffix}").mkdir()
    for name in ("file", "essay", "corpus", "words", "prompts", "prompt", "clean", "corrupt", "tokens", "other"):
        (tmp_path / f"{name}.txt").write_text("Raise Value")
    asked = list(_refused())
    told = json.dumps([words for words, _ in asked])
    found = subprocess.run([sys.executable, "-c", REFUSING, told], cwd=tmp_path, capture_output=True, text=True)
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert len(asked) == len(lines) > 60, found.stderr
    wrong = [
        line for line, (_, said) in zip(lines, asked, strict=True) if line[1] != 2 or said not in line[2] or line[3]
    ]
    assert not wrong, wrong[:3]


TEXTS: Mapping[str, str] = {
    **dict.fromkeys(("essay.txt", "corpus.txt", "other.txt"), "Return the value of the key, or raise an error. " * 30),
    "words.txt": "the\nvalue\nerror\n",
    "prompts.txt": "Raise Value\nReturn the\n",
    "prompts.jsonl": '{"text": "Raise Value"}\n{"text": "Return the"}\n',
    "prompt.txt": "Raise Value",
    "clean.txt": "Raise Value\nRaise Type\n",
    "corrupt.txt": "Raise Key\nRaise Name\n",
    "tokens.txt": "Error\nError\n",
}
"""Files that examples name."""

STAND_IN: Mapping[str, str] = {
    **dict.fromkeys(("gpt2", "MODEL", "org/name", "meta-llama/Llama-3.1-405B"), "demo"),
    "OTHER": "./gpt2-finetuned",
    "datasets:allenai/c4": "corpus.txt",
    "HEAD:6379": "auto",
    " yes": "Error",
}
"""What is in the place of what is somebody's own, or large."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Folders of models, and the traces of all commands."""
    folder = tmp_path_factory.mktemp("models")
    loaded = jg.load_model("demo")
    torch.manual_seed(0)
    for name in ("run/checkpoint-1", "run/checkpoint-2", "gpt2-finetuned"):
        with torch.no_grad():
            for parameter in loaded.model.parameters():
                parameter.mul_(1 + 0.05 * torch.randn_like(parameter))
        loaded.model.save_pretrained(folder / name)
        loaded.tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def place(models: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder that has all that examples name, in which commands run."""
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text)
    for name in ("run", "gpt2-finetuned"):
        (tmp_path / name).symlink_to(models / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JETGRAPH_CACHE", str(models / "cache"))

    def trace(loaded: Loaded, inputs: Any, **more: Any) -> jg.ResidualGraph:
        key = loaded.name, loaded.meta, *sorted(inputs)
        if key not in TRACED:
            TRACED[key] = traced(loaded, inputs, **more)
        return TRACED[key]

    traced = Loaded.trace
    monkeypatch.setattr(Loaded, "trace", trace)
    return tmp_path


TRACED: dict[tuple[object, ...], jg.ResidualGraph] = {}
"""What commands have traced: each model once with inputs of these names, whose graph takes any prompt."""


def _run(words: list[str]) -> None:
    """Run a command, which ends without an error, says something and writes what it is to write."""
    spread = [sorted(glob.glob(word)) if "/" in word and "*" in word else [] for word in words]
    given = [STAND_IN.get(part, part) for word, files in zip(words, spread, strict=True) for part in files or [word]]
    if "datasets:allenai/c4" in words:
        at = given.index("--config")
        del given[at : at + 2]
    said = succeed(*given)
    # What a shard has done is told on stderr.
    assert said.strip() or "--shard" in given
    assert "--json" not in given or json.loads(said)
    for option, file in pairwise(given):
        assert option not in ("-o", "--output", "--state", "--resume") or pathlib.Path(file).exists(), given


BEFORE: Mapping[str, list[str]] = {
    "transport merge": [
        f"transport fit demo essay.txt --shard {shard}/2 -o {file}.safetensors"
        for shard, file in enumerate(("one", "two"))
    ],
    "transport lens": ["transport fit demo essay.txt -o demo.safetensors"],
    "transport compare": ["transport fit demo essay.txt -o demo.safetensors"],
}
"""Commands whose files others read."""


@pytest.mark.parametrize("name", commands())
def test_examples_of_help_work(name: str, place: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "cache clear":
        monkeypatch.setenv("JETGRAPH_CACHE", str(place / "own"))
    for line in BEFORE.get(name, ()):
        _run(shlex.split(line))
    found = examples(commands()[name])
    assert found
    for words in found:
        _run(words)


def _of_readme() -> list[str]:
    """The commands that README lists, with what may be given to them, and without what is said of each."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    jetgraph (.*?)(?:   .*)?$", text, re.MULTILINE)
    # Those of shards take several processes, and are run by the tests of these.
    return [line.replace("[", "").replace("]", "") for line in lines if not re.search(r"run-\*|--engine", line)]


def test_readme_lists_commands() -> None:
    assert {line.split()[0] for line in _of_readme()} >= {"attribute", "diff", "inspect", "expand", "report", "ablate"}


@pytest.mark.parametrize("line", [line for line in _of_readme() if line != "demo"])
def test_commands_of_readme_work(line: str, place: pathlib.Path) -> None:
    _run(shlex.split(line))


def test_readme_shows_what_inspect_prints(place: pathlib.Path) -> None:
    """To the letter, but for the time that it took."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    ((command, shown),) = re.findall(r"^```text\n\$ jetgraph (.*?)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    printed = succeed(*shlex.split(command))

    def lines(text: str) -> list[str]:
        return [line.rstrip() for line in text.strip().splitlines() if line.strip() and not line.startswith("time")]

    assert lines(printed) == lines(shown)
