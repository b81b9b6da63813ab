"""The lines of a wall → docs/architectures.md (transformers), docs/libraries.md (others)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

from benchmarks.wall.expected import expected

MEANINGS = {
    "right": "traced, with all its joins; all that was compared agrees",
    "wrong": "a value or a derivative of a region differs, or jetgraph raised what it should not",
    "joins": "all numbers agree, but joins were missed, or not all hidden states are points",
    "refused": "jetgraph refuses the model, and says why",
    "time": "not done within the time limit",
    "random": "the model draws random numbers that it takes from nobody: it has no one output to explain",
    "not built": "no tiny model, or no inputs for it, could be made of the config alone, and nobody has chosen any",
}
"""Verdicts, in the order in which they are counted."""


def lines_of(library: bool) -> Path:
    """Where the lines of a wall are kept: that of transformers, or that of other libraries."""
    return Path("benchmarks/wall/libraries.jsonl" if library else "benchmarks/wall/architectures.jsonl")


def write(lines: Sequence[Mapping[str, Any]], library: bool) -> None:
    """The page of a wall, where the documentation has it."""
    if library:
        Path("docs/libraries.md").write_text(libraries(lines), encoding="utf-8")
    else:
        Path("docs/architectures.md").write_text(architectures(lines), encoding="utf-8")


def architectures(lines: Sequence[Mapping[str, Any]]) -> str:
    """The page of transformers' classes."""
    tried = [line for line in lines if line["verdict"] not in ("not built", "random")]
    random = sum(line["verdict"] == "random" for line in lines)
    return "\n".join(
        (
            "# Architectures",
            "",
            f"{len(lines)} classes of transformers {transformers.__version__} were looked at, with torch "
            f"{_torch_version()}, one for each kind of config;\n{len(tried) + random} could be built, of which "
            f"{random} give something else each time. {_shares(tried)} [Other libraries](libraries.md) have a page of "
            "their own.",
            "",
            *_counts(lines),
            "",
            JUDGED,
            "## Table",
            "",
            "| class | joins | expected | verdict | hidden states | regions | heads | seconds | sizes | reason |",
            "| --- | ---: | ---: | --- | --- | --- | --- | ---: | --- | --- |",
            *map(_row, _sorted(lines)),
            "",
        )
    )


def libraries(lines: Sequence[Mapping[str, Any]]) -> str:
    """The page of nets of other libraries."""
    tried = [line for line in lines if line["verdict"] not in ("not built", "random")]
    page = [
        "# Other libraries",
        "",
        f"{len(lines)} nets of other libraries than transformers, one for each family of blocks, tiny and with random "
        f"weights, with torch {_torch_version()}. {_shares(tried)}",
        "",
        *_counts(lines),
        "",
        LIBRARIES_JUDGED,
    ]
    for library in sorted({line["type"] for line in lines}):
        page += [
            f"## {library}",
            "",
            "| net | joins | expected | branches | verdict | regions | heads | seconds | reason |",
            "| --- | ---: | ---: | --- | --- | --- | --- | ---: | --- |",
            *(_library_row(line) for line in _sorted(lines) if line["type"] == library),
            "",
        ]
    return "\n".join(page)


def _sorted(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(lines, key=lambda line: str(line["model"]).lower())


def _torch_version() -> str:
    return torch.__version__.split("+")[0]


def _shares(tried: Sequence[Mapping[str, Any]]) -> str:
    """Of those that were tried, how many are right, and how long a trace takes."""
    if not tried:
        return ""
    right = sum(line["verdict"] == "right" for line in tried)
    seconds = [line["seconds"] for line in tried if line["verdict"] in ("right", "wrong", "joins") and line["seconds"]]
    return f"Of {len(tried)} that were tried, {right} are right, {100 * right / len(tried):.1f} %. " + (
        f"A trace takes {median(seconds):.1f} s (median)." if seconds else ""
    )


def _counts(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    number = Counter(line["verdict"] for line in lines)
    return [
        "| verdict | nets | meaning |",
        "| --- | ---: | --- |",
        *(f"| {verdict} | {number[verdict]} | {meaning} |" for verdict, meaning in MEANINGS.items() if number[verdict]),
    ]


JUDGED = """## What was judged, and how

`python -m benchmarks.wall run` makes this table, `python -m benchmarks.wall page` this page; neither is among the
tests. Each class is built at tiny size (two layers where the config says how many; random weights) from its config
alone, and is given random inputs by the names of its arguments; where that makes none, from sizes and inputs that a
person chose (`benchmarks/wall/by_hand`).

- *Regions*: every branch, skip, map and both parts of the decoder is a function that jetgraph has cut out of the graph.
  It is compared with the graph run node by node with torch alone (`tests/interpretation.py`, which shares no code with
  the engine) at three other values of what it reads: near the stream, at another input's, and at noise three times as
  large. The first number counts regions that agree, to 1e-6 in float64 (2e-3 where an operator has float32 only).
- The second number counts those whose first-order coefficient along a direction agrees with `torch.func.jvp` too. It is
  smaller where torch has no forward mode for an operator.
- *Hidden states*: those that the model returns with `output_hidden_states=True`, as far as its output is made of them.
  Each has to be a point of a stream, or the fork or sum of an inner join, in any layout, cropped, or through a norm: no
  learned operator may lie between. What is before the first join or after the last one lies in the encoder or decoder,
  if there is no residual sum (`benchmarks/wall/sums.py`, which looks for them without jetgraph). A dash: the model
  returns none.
- *Heads*: branches of attention of the main stream that can be cut into heads, of how many. That parts add up is held
  by the tests, not here.
- *Seconds* are of `jg.trace`, of the processor; empty where only the clock of a busy machine was looked at.
- Random numbers are given as an input where the model takes them; where it draws them by itself, it is counted apart.
- *Expected*: the joins, inner ones included, by the code of the class: the sums with a residual in the methods that
  ran, times how often, each kind of line looked at; where that settles nothing, as where a cross-attention does not
  run, the class was read by eye. Which sums these are is told in `benchmarks/wall/expected.jsonl`. Empty where nobody
  has.
- Classes are judged again some at a time: not every line is of the same day's code.
- Only the first of the outputs, and one kind of inputs, was traced; models of several modalities mostly with text, and
  those that are made by hand with pictures among the tokens.
"""
"""The middle of the page."""


LIBRARIES_JUDGED = """`python -m benchmarks.wall run --libraries` judges those that are installed, none of which is
needed, in the same way as [transformers' classes](architectures.md): each region at three other values against plain
interpretation, its derivative against `torch.func.jvp`, which branches of attention can be cut into heads. How many
joins a net has, and mostly of which kinds the branches are, was read off its code before it was traced; what was read
is told in `benchmarks/wall/libraries`. Some 80 of the readings were corrected when jetgraph said otherwise and
[its rules](structure.md) bore it out: those agree by less than the others.
"""
"""The middle of that page."""


def _row(line: Mapping[str, Any]) -> str:
    hidden, heads = (_of(line.get(name)) for name in ("hidden", "heads"))
    looked = line["verdict"] in ("right", "wrong", "joins")
    cells = (
        line["model"],
        line.get("joins", 0) if looked else "",
        read.joins if looked and (read := expected().get(line["model"])) else "",
        line["verdict"],
        hidden if looked else "",
        f"{line.get('values', 0)}, {line.get('slopes', 0)}" if looked else "",
        heads if looked else "",
        f"{line['seconds']:.1f}" if looked and line["seconds"] else "",
        line.get("sizes", ""),
        _reason(line["reason"]),
    )
    return f"| {' | '.join(map(str, cells))} |"


def _library_row(line: Mapping[str, Any]) -> str:
    looked = line["verdict"] in ("right", "wrong", "joins")
    cells = (
        line["model"],
        line["joins"] if looked else "",
        line.get("expected", ""),
        ", ".join(f"{kind} {number}" for kind, number in line.get("kinds", {}).items()),
        line["verdict"],
        f"{line['values']}, {line['slopes']}" if looked else "",
        _of(line["heads"]) if looked else "",
        f"{line['seconds']:.1f}" if looked and line["seconds"] else "",
        _reason(line["reason"]),
    )
    return f"| {' | '.join(map(str, cells))} |"


def _of(pair: Iterable[int] | None) -> str:
    return "–" if pair is None else " of ".join(map(str, pair))


def _reason(text: str) -> str:
    """What was said, on one line, without the places of files on this machine."""
    words = [word.rpartition("/site-packages/")[2] for word in text.replace("|", "/").split()]
    line = " ".join(words)
    return line if len(line) <= 240 else f"{line[:239]}…"
