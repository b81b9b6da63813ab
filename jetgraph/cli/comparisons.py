"""`diff`, `compare` and `trajectory`: two models, by weights and on prompts, and one over its training."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence
from dataclasses import replace
from json import dumps
from typing import TYPE_CHECKING, Annotated

import typer

import jetgraph as jg
from jetgraph.cli import options, terminal
from jetgraph.cli.root import app
from jetgraph.errors import LoadError, quoted
from jetgraph.files.writing import is_folder
from jetgraph.views.picture import PICTURES

if TYPE_CHECKING:
    from jetgraph.applications.comparing import ModelDiff
    from jetgraph.applications.results import Result

PANEL = "Comparing models"

Contexts = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="NUMBER",
        help="Look at so many contexts, spread over the vocabulary. \\[default: all; of diff, where that takes long, "
        "so many as take a minute]",
        show_default=False,
    ),
]


Before = Annotated[str, typer.Argument(metavar="MODEL_A", help="The model before.", show_default=False)]

After = Annotated[
    str, typer.Argument(metavar="MODEL_B", help="The model after; of the same tokenizer.", show_default=False)
]


@app.command(
    rich_help_panel=PANEL,
    epilog="[bold]Example[/bold]\n\n  jetgraph diff gpt2 ./gpt2-finetuned --output diff.png --output diff.csv",
)
def diff(
    model_a: Before,
    model_b: After,
    path: options.Paths = None,
    top: Annotated[int, typer.Option(min=1, help="N-grams of each kind that are kept.")] = 50,
    contexts: Contexts = None,
    memory: options.Memory = "256M",
    rows: Annotated[int, typer.Option(min=1, help="Rows of each table that are printed.")] = 12,
    json: options.Json = False,
    output: options.Outputs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """What changed between two models: n-grams, paths and weights, without data.

    A table NAME.csv comes with NAME.paths.csv and NAME.sites.csv.
    """
    outputs = terminal.check_outputs(output, spreadsheet)
    size = options.bytes_of(memory)
    from jetgraph.applications.ngrams.choosing import DIRECT

    sides = [terminal.load(name) for name in (model_a, model_b)]
    with terminal.working("tracing and comparing"):
        differences = jg.diff(*sides, path=path or DIRECT, top=top, contexts=contexts, memory=size)
    if json:
        _echo(differences.title, ngrams=differences.ngrams, paths=differences.paths, sites=differences.sites)
    else:
        _show_changes(differences, rows)
    beside = {} if differences.ngrams.none else {"paths": differences.paths, "sites": differences.sites}
    _write(differences, outputs, not json, **beside)


def _echo(title: str, **parts: Result) -> None:
    """Print several tables as JSON."""
    facts = {name: terminal.facts_of(result) for name, result in parts.items()}
    typer.echo(dumps({"title": title, **facts}, ensure_ascii=False, indent=1))


def _write(whole: Result, outputs: terminal.Outputs, say: bool, **parts: Result) -> None:
    """Write a result to files, and beside its tables those of other parts."""
    terminal.write(whole, outputs, say=say)
    tables = [file for file in outputs.files if file.suffix.lower() not in PICTURES]
    for name, result in parts.items():
        beside = tuple(file.with_suffix(f".{name}{file.suffix}") for file in tables)
        terminal.write(result, replace(outputs, files=beside), say=say)


def _show_changes(differences: ModelDiff, rows: int) -> None:
    """Print what changed: n-grams, paths and weights."""
    if differences.ngrams.none:
        terminal.show(differences.sites, rows=rows, note=differences.note)
        return
    changes = replace(differences.ngrams, gained=differences.ngrams.gained[:rows], lost=differences.ngrams.lost[:rows])
    terminal.show(changes, rows=2 * rows, columns=("kind", "context", "token", "p_a", "p_b", "change"))
    terminal.show(differences.paths, rows=rows)
    terminal.show(differences.sites, rows=rows)


@app.command(
    rich_help_panel=PANEL,
    epilog='[bold]Examples[/bold]\n\n  jetgraph compare gpt2 ./gpt2-finetuned "The capital of France is"\n\n'
    '  jetgraph compare gpt2 ./gpt2-finetuned @prompt.txt -t " yes" --heads',
)
def compare(
    model_a: Before,
    model_b: After,
    prompts: Annotated[
        list[str],
        typer.Argument(
            metavar="PROMPT...", help="Texts; the models are seen at the last token. @FILE takes one from a file."
        ),
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            metavar="TOKEN",
            help='The token whose logit is told (" the", or #42 by id). \\[default: what MODEL_B says, against what '
            "MODEL_A says where that is another token]",
            show_default=False,
        ),
    ] = None,
    versus: options.Versus = None,
    heads: options.Heads = False,
    split: options.Splits = None,
    top: Annotated[int, typer.Option(min=1, help="Paths that are looked for in each model, of each prompt.")] = 20,
    memory: options.Memory = "256M",
    rows: Annotated[int, typer.Option(min=1, help="Rows of each table that are printed.")] = 12,
    json: options.Json = False,
    output: options.Outputs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """What changed between two models on prompts: what they say, by which components, along which paths.

    A table NAME.csv comes with NAME.prompts.csv and NAME.paths.csv.
    """
    outputs = terminal.check_outputs(output, spreadsheet)
    how, token = options.split_of(split, heads), options.target_of(target, versus)
    texts, size = options.prompts_of(prompts), options.bytes_of(memory)
    one, other = (terminal.load_with_tokenizer(name) for name in (model_a, model_b))
    with terminal.working("tracing and comparing"):
        compared = jg.compare(one, other, texts, target=token, split=how, top=top, memory=size)
    if json:
        _echo(compared.title, prompts=compared.prompts, components=compared.components, paths=compared.paths)
    else:
        for part in (compared.prompts, compared.components, compared.paths):
            terminal.show(part, rows=rows)
    _write(compared, outputs, not json, prompts=compared.prompts, paths=compared.paths)


@app.command(
    rich_help_panel=PANEL,
    epilog="[bold]Example[/bold]\n\n  jetgraph trajectory run/checkpoint-* --top 500 --output trajectory.png",
)
def trajectory(
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="FOLDER...",
            help="Checkpoints of one model, in the order of training; sorted by the number at the end of their names "
            "where all have one.",
            show_default=False,
        ),
    ],
    path: options.Paths = None,
    top: Annotated[int, typer.Option(min=1, help="N-grams of the last checkpoint to look for in the others.")] = 1000,
    keywords: Annotated[
        pathlib.Path | None,
        typer.Option(metavar="WORDFILE", help="Follow the mass of these words too, one a line.", show_default=False),
    ] = None,
    contexts: Contexts = None,
    memory: options.Memory = "256M",
    rows: options.Rows = 40,
    json: options.Json = False,
    output: options.Outputs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """Follow a path's n-grams over training: when do those of the last checkpoint appear?"""
    outputs = terminal.check_outputs(output, spreadsheet)
    size = options.bytes_of(memory)
    if keywords is not None:
        terminal.read_text(keywords)
    known = (*jg.loading.BUNDLED, *(name for name in folders if "@" in name))
    missing = next((name for name in folders if name not in known and not is_folder(name)), None)
    if missing is not None:
        raise LoadError(
            f"there is no folder {quoted(missing)}: name the folders of checkpoints that transformers has saved"
        )
    ordered, names = in_order_of_training(folders)
    from jetgraph.applications.ngrams.choosing import DIRECT

    with terminal.working("loading and tracing checkpoints"):
        followed = jg.trajectory(
            ordered,
            path=path or DIRECT,
            top=top,
            names=names,
            keywords=keywords,
            contexts=contexts,
            memory=size,
        )
    terminal.show(followed, outputs, rows=rows, json=json)


def in_order_of_training(folders: Sequence[str]) -> tuple[list[str], list[int] | None]:
    """Checkpoints by the number at the end of their names, as a shell does not sort them, and these numbers.

    >>> in_order_of_training(["run/step-200", "run/step-1000", "run/step-30/"])
    (['run/step-30/', 'run/step-200', 'run/step-1000'], [30, 200, 1000])
    >>> in_order_of_training(["base", "step-10"])
    (['base', 'step-10'], None)
    """
    ends = [re.search(r"(\d+)$", pathlib.PurePath(folder).name) for folder in folders]
    numbers = [int(end[1]) for end in ends if end is not None]
    if len(set(numbers)) < len(folders):
        return list(folders), None
    steps = sorted(zip(numbers, folders, strict=True))
    return [folder for _, folder in steps], [number for number, _ in steps]
