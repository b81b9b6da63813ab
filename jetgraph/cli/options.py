"""Arguments and options that several commands have, and the values that their texts stand for."""

from __future__ import annotations

import enum
import json
import pathlib
import re
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Annotated, Any, Literal

import typer

from jetgraph.algebra.outline import Split
from jetgraph.algebra.rules import Scale
from jetgraph.applications.results import TABLES
from jetgraph.errors import InputError, quoted
from jetgraph.files.graphs import GRAPHS
from jetgraph.files.writing import is_file
from jetgraph.views.picture import PICTURES
from jetgraph.views.style import check_width

_NUMBER = re.compile(r"-?[0-9]{1,18}")

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A Hugging Face id (ORG/NAME@REVISION), a folder that transformers or jetgraph.save has written, "
        "package.module:factory, a .pt2 or .gguf file, or a bundled model: demo, demo:llama.",
        show_default=False,
    ),
]

Prompts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PROMPT",
        help="A text; the model is seen at its last token. @FILE takes it from a file, - from stdin. Of several, each "
        "is looked at by itself; a table holds all, and a picture or graph one: NAME.0.png, NAME.1.png, …. A model "
        "without a tokenizer takes none: its own example inputs are looked at, row by row.",
        show_default=False,
    ),
]

TextFile = Annotated[
    str,
    typer.Argument(
        metavar="TEXTFILE",
        help="A text file in UTF-8, a .jsonl, a .parquet, or datasets:NAME, a data set of Hugging Face's.",
        show_default=False,
    ),
]

Column = Annotated[
    str, typer.Option(metavar="NAME", help="Of a .jsonl, a .parquet or a data set: what holds the texts.")
]

Subset = Annotated[
    str | None, typer.Option("--config", metavar="NAME", help="Which part of a data set.", show_default=False)
]

Portion = Annotated[str, typer.Option("--split", metavar="NAME", help="Of a data set, such as validation.")]


class Weights(enum.StrEnum):
    """Weights of centres that go without a name for each."""

    uniform = "uniform"
    optimal = "optimal"


class Group(enum.StrEnum):
    """Which terms are one centre together."""

    terms = "terms"
    components = "components"
    blocks = "blocks"
    kinds = "kinds"


Centres = Annotated[
    Group, typer.Option(help="What is one centre of a jet: a term, or all of a component, of a block, of a kind.")
]

Rows = Annotated[int, typer.Option(min=1, help="Rows of the table that are printed.")]


def _written(what: str) -> Any:
    """The option that names files to write, of which its help says what."""
    names = "--output", "-o"
    return typer.Option(*names, metavar="FILE", help=f"Write {what}; may be given again.", show_default=False)


_TABLE, _FIGURE = f"table ({' '.join(TABLES)})", f"the figure ({' '.join(PICTURES)})"

Outputs = Annotated[list[pathlib.Path] | None, _written(f"the whole {_TABLE} or {_FIGURE}")]

Graphs = Annotated[list[pathlib.Path] | None, _written(f"the graph ({' '.join(GRAPHS)}), the {_TABLE} or {_FIGURE}")]

Spreadsheet = Annotated[
    bool,
    typer.Option("--spreadsheet", help="In a .csv, put a ' before texts that a spreadsheet would take for formulas."),
]

Layers = Annotated[
    list[str] | None,
    typer.Option(
        "--layers",
        "-l",
        metavar="POINTS",
        help='Points of the stream: numbers (negative from the end), names (h3), or patterns over sites ("*.mlp"), '
        "joined by commas. \\[default: all]",
        show_default=False,
    ),
]

Select = Annotated[
    list[str] | None,
    typer.Option(
        "--path",
        "-p",
        "--select",
        "-s",
        metavar="PATTERN",
        help="Paths to take; may be given again. \\[default: **, all]",
        show_default=False,
    ),
]

Paths = Annotated[
    list[str] | None,
    typer.Option(
        "--path",
        "-p",
        metavar="PATTERN",
        help='Order-0 paths; of several, the mean. May be given again. \\[default: "embed > logits"]',
        show_default=False,
    ),
]

Splits = Annotated[
    list[str] | None,
    typer.Option(
        "--split",
        metavar="SPLIT",
        help="Cut branches into parts: heads, neurons, or by branch L3.mlp=neurons, L3.mlp=8 (so many groups), "
        '"L3.mlp=[[0,7],[12]]" (sets of indices); by branch it may be given again.',
        show_default=False,
    ),
]

Heads = Annotated[bool, typer.Option("--heads", help="The same as --split heads: attention head by head.")]


Target = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        "-t",
        metavar="TOKEN",
        help='The token whose logit is told (" the", or #42 by id); without a tokenizer, a class by number (3). '
        "\\[default: the model's top token]",
        show_default=False,
    ),
]

Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        "-t",
        metavar="TOKEN",
        help='The token whose logit is told (" the", or #42 by id); without a tokenizer, a class (3). '
        "May be given again. "
        "\\[default: the top tokens that hold 95 %, by their probability]",
        show_default=False,
    ),
]

Versus = Annotated[
    str | None,
    typer.Option("--versus", metavar="TOKEN", help="The token whose logit is subtracted.", show_default=False),
]

Json = Annotated[bool, typer.Option("--json", help="Print the whole table as JSON: its title, and its columns.")]

Memory = Annotated[
    str,
    typer.Option(metavar="SIZE", help="Memory to use above the model, such as 256M or 2G."),
]


_chat: ContextVar[bool] = ContextVar("prompts are what a user says to a model", default=False)


def as_chat(context: typer.Context, chosen: bool) -> None:
    """The callback of `--chat`."""
    if chosen:
        token = _chat.set(True)
        context.call_on_close(lambda: _chat.reset(token))


_lines: ContextVar[bool] = ContextVar("each line of a file or of stdin is a prompt", default=False)


def by_lines(context: typer.Context, chosen: bool) -> None:
    """The callback of `--lines`."""
    if chosen:
        token = _lines.set(True)
        context.call_on_close(lambda: _lines.reset(token))


_width: ContextVar[tuple[str, float] | None] = ContextVar("by which option, and inches, figures are wide", default=None)


def as_wide(context: typer.Context, option: typer.CallbackParam, chosen: float | None) -> None:
    """The callback of `--width` and `--figure-width`."""
    if chosen is not None:
        token = _width.set((option.opts[0], chosen))
        context.call_on_close(lambda: _width.reset(token))


def draws(parameter: Any) -> bool:
    """A parameter that names files to write, pictures among them, as its help says."""
    return parameter.name == "output" and PICTURES[0] in (parameter.help or "")


def figure_width(files: Sequence[pathlib.Path]) -> float | None:
    """What `--width`, or `--figure-width`, is for the files that are written.

    Raises
    ------
    InputError
        It was given, and none of them is a picture.
    """
    if (given := _width.get()) is None:
        return None
    option, width = given
    if not any(file.suffix.lower() in PICTURES for file in files):
        raise InputError(f"{option} is for a picture ({' '.join(PICTURES)}): name one with --output")
    check_width(width)
    return width


def prompt_of(text: str) -> Any:
    """What a prompt on the command line stands for: a text, `@FILE`, or `-` for stdin; with `--chat` a conversation.

    >>> prompt_of("Raise Value"), prompt_of("@home is"), prompt_of("@")
    ('Raise Value', '@home is', '@')
    """
    held = _held(text)
    if held == "":
        raise InputError(f"{'stdin' if text == '-' else quoted(text[1:])} holds no text")
    if held is None and is_file(text):
        raise InputError(f"there is a file {quoted(text)}: @{text} is what it holds, and a space before it the text")
    return _said(text if held is None else held)


def prompts_of(texts: Sequence[str] | None) -> list[Any]:
    """What prompts on the command line stand for; with `--lines` each line of a file, or of stdin, for one.

    Raises
    ------
    InputError
        `--lines` without a file or stdin, none of their lines holds a text, or `--chat` without a prompt.
    """
    prompts = [prompt for each in prompts_by_text(texts or ()) for prompt in each]
    if _chat.get() and not prompts:
        raise InputError("--chat is for prompts, and none was given: say what the user says")
    return prompts


def prompts_by_text(texts: Sequence[str]) -> list[list[Any]]:
    """Of each of these what it stands for: a prompt, or with `--lines` those in the lines of a file, or of stdin.

    Raises
    ------
    InputError
        `--lines` without a file or stdin, or none of their lines holds a text.
    """
    if not texts or not _lines.get():
        return [[prompt_of(text)] for text in texts]
    held = [_held(text) for text in texts]
    if all(one is None for one in held):
        raise InputError("--lines is for prompts that a file holds, or stdin: give @FILE, or -")
    prompts = [
        [prompt_of(text)] if one is None else [_said(line) for line in one.splitlines() if line.strip()]
        for text, one in zip(texts, held, strict=True)
    ]
    if not any(prompts):
        raise InputError(f"no line of {' and of '.join(map(quoted, texts))} holds a text")
    return prompts


def one_of(texts: Sequence[str] | None, option: str, what: str) -> str | None:
    """The prompt of an option that takes one.

    Raises
    ------
    InputError
        There are several.
    """
    if len(texts or ()) > 1:
        raise InputError(f"{option} was given {len(texts or ())} times, and {what}: give it once")
    return texts[0] if texts else None


def _held(text: str) -> str | None:
    """What the file or the stdin holds that a prompt names; None of a text."""
    if text == "-":
        return sys.stdin.read().rstrip("\r\n")
    if text[:1] != "@" or len(text) == 1 or (not is_file(text[1:]) and re.search(r"\s", text)):
        return None
    from jetgraph.prompts import prompts_of

    return prompts_of(pathlib.Path(text[1:]))[0]


def _said(prompt: str) -> Any:
    """A prompt as the model is given it."""
    if not _chat.get():
        return prompt
    from jetgraph.prompts import chat

    return chat(prompt)


def layers_of(texts: Sequence[str] | None) -> list[int | str] | None:
    """What `--layers` stands for.

    >>> layers_of(["0,-1", "*.mlp"]), layers_of(None)
    ([0, -1, '*.mlp'], None)
    """
    if not texts:
        return None
    parts = [part.strip() for text in texts for part in text.split(",") if part.strip()]
    return [int(part) if _NUMBER.fullmatch(part) else part for part in parts]


def order_of(text: str) -> int | Literal["auto"]:
    """What `--order` stands for, where an order may be chosen.

    >>> order_of("2"), order_of("auto")
    (2, 'auto')
    """
    if text == "auto":
        return "auto"
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise typer.BadParameter(f"{quoted(text)} is no order of a jet: give 0, 1, … or auto")
    return int(text)


Tolerance = Annotated[
    float | None,
    typer.Option(
        help="With --order auto: the share of the value that may be left. \\[default: 0.01]", show_default=False
    ),
]


def position_of(text: str | None) -> int | Literal["last"] | None:
    """What `--position` stands for.

    >>> position_of("-2"), position_of("last"), position_of(None)
    (-2, 'last', None)
    """
    if text is None or text == "last":
        return "last" if text else None
    if not _NUMBER.fullmatch(text):
        raise InputError(f"--position {quoted(text)} is no position: write a whole number, or last")
    return int(text)


Position = Annotated[
    str | None,
    typer.Option(
        "--position",
        metavar="POSITION",
        help="The position that is looked at, from 0 (negative from the end). \\[default: last]",
        show_default=False,
    ),
]


def integers_of(text: str, option: str) -> tuple[int, ...]:
    """Numbers joined by commas.

    >>> integers_of("0, 1,3", "--orders")
    (0, 1, 3)
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} {quoted(text)} is no list of whole numbers: write them as 0,1,2") from None


def shares_of(text: str | None, option: str) -> tuple[float, ...] | None:
    """Shares joined by commas.

    >>> shares_of("0.1, 0.5", "--sizes")
    (0.1, 0.5)
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} {quoted(text)} is no list of shares: write them as 0.1,0.5") from None


def split_of(texts: Sequence[str] | None, heads: bool = False) -> Split | None:
    """What `--split` and `--heads` stand for.

    >>> split_of(["heads"]), split_of(["L0.*=4", "L1.mlp=[[0,7],[2]]"])
    ('heads', {'L0.*': 4, 'L1.mlp': [[0, 7], [2]]})
    """
    if heads and texts:
        raise InputError("--heads and --split say the same twice: leave one of the two out")
    if heads:
        return "heads"
    if not texts:
        return None
    if len(texts) == 1 and texts[0] in ("heads", "neurons"):
        return "heads" if texts[0] == "heads" else "neurons"
    by_branch: dict[str, Literal["heads", "neurons"] | int | Sequence[Sequence[int]]] = {}
    for text in texts:
        branch, equals, how = (part.strip() for part in text.partition("="))
        if not equals or not branch:
            raise InputError(f"--split {quoted(text)} is not understood: write heads, neurons, or BRANCH=HOW")
        by_branch[branch] = _how(how, text)
    return by_branch


def _how(how: str, text: str) -> Literal["heads", "neurons"] | int | list[list[int]]:
    if how == "heads" or how == "neurons":
        return how
    try:
        value: Any = json.loads(how)
    except (ValueError, RecursionError):
        value = None
    is_sets = isinstance(value, list) and all(
        isinstance(one, list) and all(type(index) is int for index in one) for one in value
    )
    if type(value) is int or is_sets:
        return value
    raise InputError(
        f"--split {quoted(text)} is not understood: after = write heads, neurons, a number of groups, or sets such as "
        "[[0,7],[12]]"
    )


def shard_of(text: str) -> tuple[int, int]:
    """A shard of several.

    >>> shard_of("0/4")
    (0, 4)
    """
    index, _, number = text.partition("/")
    if not (index.isdecimal() and number.isdecimal()):
        raise InputError(f"--shard {quoted(text)} is no shard: write 0/4 for the first of four")
    return int(index), int(number)


def bytes_of(text: str, option: str = "--memory") -> int:
    """A size of memory in bytes.

    >>> bytes_of("256M") == 256 * 2**20, bytes_of("1.5GB") == 3 * 2**29
    (True, True)
    """
    digits = text.strip().upper().removesuffix("B").removesuffix("I")
    scale = {"K": 10, "M": 20, "G": 30, "T": 40}.get(digits[-1:], 0)
    try:
        size = int(float(digits[:-1] if scale else digits) * 2**scale)
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise InputError(f"{option} {quoted(text)} is no size: write a number with K, M or G, such as 256M")
    return size


def token_of(text: str) -> int | str:
    """A token by its text, or `#42` by its id.

    >>> token_of(" the"), token_of("#42")
    (' the', 42)
    """
    return int(text[1:]) if text[:1] == "#" and _NUMBER.fullmatch(text[1:]) else text


def classes_of(target: Any) -> Any:
    """Targets of a model without a tokenizer, which no text can be: a whole number is the number of a class.

    >>> classes_of(" 3"), classes_of(["3", 42]), classes_of(("3", "cat")), classes_of(None)
    (3, [3, 42], (3, 'cat'), None)
    """
    if isinstance(target, list | tuple):
        return type(target)(map(classes_of, target))
    return int(target) if isinstance(target, str) and _NUMBER.fullmatch(target.strip()) else target


def targets_of(texts: Sequence[str] | None, versus: str | None) -> Any:
    """What `--target`, given any number of times, and `--versus` stand for in the library.

    >>> targets_of([" the", "#42"], None), targets_of([" the"], "#42"), targets_of(None, None)
    ([' the', 42], (' the', 42), None)
    """
    tokens = [token_of(text) for text in texts or ()]
    if versus is not None:
        if len(tokens) != 1:
            raise InputError(f"--versus goes with one --target, and {len(tokens)} were given")
        return tokens[0], token_of(versus)
    return tokens[0] if len(tokens) == 1 else tokens or None


def target_of(texts: Sequence[str] | None, versus: str | None) -> Any:
    """The same where there is one target at most."""
    if len(texts or ()) > 1:
        raise InputError(
            f"--target was given {len(texts or ())} times, and one logit is told: name the one that is subtracted with "
            "--versus"
        )
    return targets_of(texts, versus)


def targets_by_line(target: Any) -> Any:
    """A target whose tokens may stand in files: with `--lines`, `@FILE` has one in each line, for each prompt its own.

    Spaces count: a line `" the"` of a file, without the quotes, is the token that begins with one.
    """
    if isinstance(target, tuple):
        return tuple(map(targets_by_line, target))
    if not _lines.get() or not isinstance(target, str) or target[:1] != "@" or not is_file(target[1:]):
        return target
    return [token_of(line) for line in (_held(target) or "").splitlines() if line.strip()]


Plain = Annotated[
    bool, typer.Option("--plain", help="Centres of order 1 and more as long as they are, not matched to the stream.")
]


def scale_of(plain: bool) -> Scale:
    """`scale=` of the library's functions."""
    return "none" if plain else "matched"
