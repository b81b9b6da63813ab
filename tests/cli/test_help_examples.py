"""What `--help` gives as examples: each works, and with a file that cannot be written each is refused at once."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping

from tests.commands import commands, examples

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
