"""`ngrams`, `mass` and `agreement`: what a model's weights know of n-grams, without data and against it."""

from __future__ import annotations

import enum
import pathlib
from typing import Annotated

import typer

import jetgraph as jg
from jetgraph.cli import options, terminal
from jetgraph.cli.root import app
from jetgraph.errors import InputError
from jetgraph.files.targets import check_folder

PANEL = "N-grams"


class Per(enum.StrEnum):
    """What `--top` counts."""

    all = "all"
    row = "row"


class Scores(enum.StrEnum):
    """What an n-gram is ranked by."""

    probability = "probability"
    logit = "logit"
    pmi = "pmi"


class Screening(enum.StrEnum):
    """In what precision candidates are found."""

    bf16 = "bf16"


class Reference(enum.StrEnum):
    """What masses stand beside."""

    uniform = "uniform"
    model = "model"


Tokens = list[str] | None


def _tokens_option(name: str, what: str) -> typer.models.OptionInfo:
    return typer.Option(
        name,
        metavar="TOKEN",
        help=f'{what} (" the", or #42 by id); may be given again. \\[default: all]',
        show_default=False,
    )


@app.command(
    rich_help_panel=PANEL,
    epilog="[bold]Examples[/bold]\n\n  jetgraph ngrams demo --top 20 --no-identity --output bigrams.csv\n\n"
    '  jetgraph ngrams demo -p "embed > L0.mlp > logits" --per row --top 5\n\n'
    '  jetgraph ngrams demo -n 3 -p "embed > L1.attn > logits" --second " the"\n\n'
    "  jetgraph ngrams gpt2 --memory 1G --resume gpt2-bigrams --output bigrams.csv\n\n"
    "  jetgraph ngrams gpt2 --screen bf16 --memory 1G --top 1000",
)
def ngrams(
    model: options.Model,
    path: options.Paths = None,
    n: Annotated[
        int, typer.Option("-n", "--n", min=2, max=3, help="2: bi-grams; 3: skip-tri-grams, through attention.")
    ] = 2,
    top: Annotated[int, typer.Option(min=1, help="How many to keep, in all or per context.")] = 100,
    per: Annotated[Per, typer.Option(help="The best of all contexts, or of each context (row) its best.")] = Per.all,
    scores: Annotated[
        Scores, typer.Option(help="What they are ranked by; pmi: what the context changes against the mean row.")
    ] = Scores.probability,
    least: Annotated[
        float | None,
        typer.Option(help="With pmi: the least probability.  \\[default: 0.1]", show_default=False),
    ] = None,
    no_identity: Annotated[
        bool, typer.Option("--no-identity", help="Leave out next tokens that are in the context.")
    ] = False,
    first: Annotated[Tokens, _tokens_option("--first", "First token of the context")] = None,
    second: Annotated[Tokens, _tokens_option("--second", "Second token of the context, with -n 3")] = None,
    distance: Annotated[int, typer.Option(min=1, help="Positions between the two tokens, with -n 3.")] = 1,
    memory: options.Memory = "256M",
    screen: Annotated[
        Screening | None,
        typer.Option(
            help="Find candidates in bfloat16, which is two to three times as fast where the processor has it, and "
            "compute only the rows that can hold one of the top in the model's precision: the same n-grams. Not with "
            "--per row, nor for models in half precision.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        pathlib.Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep the state there: the same command continues after an interruption.",
            show_default=False,
        ),
    ] = None,
    rows: options.Rows = 20,
    json: options.Json = False,
    output: options.Outputs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """List the n-grams that the weights along a path make most probable, over the whole vocabulary."""
    outputs = terminal.check_outputs(output, spreadsheet)
    size = options.bytes_of(memory)
    if second and n == 2:
        raise InputError("--second is the second token of a context of two: it needs -n 3")
    if resume is not None:
        check_folder(resume, "--resume")
    places = [None if texts is None else [options.token_of(text) for text in texts] for texts in (first, second)]
    from jetgraph.applications.ngrams.choosing import DIRECT

    loaded = terminal.load(model)
    try:
        with terminal.working("tracing and streaming"):
            best = jg.ngrams(
                loaded,
                path or DIRECT,
                n=n,
                top=top,
                per=per.value,
                scores=scores.value,
                least=least,
                identity=not no_identity,
                first=places[0],
                second=places[1],
                distance=distance,
                memory=size,
                screen=None if screen is None else screen.value,
                resume=resume,
            )
    except KeyboardInterrupt:
        if resume is not None:
            raise KeyboardInterrupt(f"the same command continues from {resume}") from None
        raise
    terminal.show(best, outputs, rows=rows, json=json)


@app.command(
    rich_help_panel=PANEL,
    epilog='[bold]Example[/bold]\n\n  jetgraph mass demo words.txt -p "embed > *.mlp > logits" -o mass.csv',
)
def mass(
    model: options.Model,
    wordfile: Annotated[
        pathlib.Path,
        typer.Argument(
            metavar="WORDFILE", help="A text file with a word in each line; # begins a comment.", show_default=False
        ),
    ],
    path: options.Paths = None,
    reference: Annotated[
        Reference, typer.Option(help="What masses stand beside: tokens drawn alike, or the model itself as well.")
    ] = Reference.uniform,
    memory: options.Memory = "256M",
    rows: options.Rows = 40,
    json: options.Json = False,
    output: options.Outputs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """The probability that a path's bi-grams give to the words of a list."""
    outputs = terminal.check_outputs(output, spreadsheet)
    size = options.bytes_of(memory)
    terminal.read_text(wordfile)
    from jetgraph.applications.ngrams.choosing import DIRECT

    loaded = terminal.load_with_tokenizer(model)
    with terminal.working("tracing and streaming"):
        masses = jg.ngram_mass(loaded, wordfile, path=path or DIRECT, reference=reference.value, memory=size)
    terminal.show(masses, outputs, rows=rows, note="largest mass first", json=json)


@app.command(
    rich_help_panel=PANEL,
    epilog="[bold]Example[/bold]\n\n  jetgraph agreement demo corpus.txt --top 1,5 --output agreement.png",
)
def agreement(
    model: options.Model,
    textfile: options.TextFile,
    column: options.Column = "text",
    config: options.Subset = None,
    split: options.Portion = "train",
    path: Annotated[
        list[str] | None,
        typer.Option(
            "--path",
            "-p",
            metavar="PATTERN",
            help="Each a table of its own; may be given again. \\[default: the embedding alone, and through each MLP]",
            show_default=False,
        ),
    ] = None,
    top: Annotated[str, typer.Option(help="K of the hit ratios, joined by commas.")] = "1,5,10",
    minimum: Annotated[int, typer.Option(min=1, help="How often a context has to occur in the text.")] = 20,
    resamples: Annotated[int, typer.Option(min=1, help="Of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    memory: options.Memory = "256M",
    json: options.Json = False,
    output: options.Outputs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """Compare a model's bi-grams, path by path, with the bi-gram counts of a text."""
    outputs = terminal.check_outputs(output, spreadsheet)
    chosen, size = options.integers_of(top, "--top"), options.bytes_of(memory)
    texts = terminal.corpus(textfile, column, config, split)
    loaded = terminal.load_with_tokenizer(model)
    with terminal.working("tracing and counting"):
        measured = jg.ngram_agreement(
            loaded,
            texts,
            path=path or None,
            top=chosen,
            minimum=minimum,
            resamples=resamples,
            seed=seed,
            memory=size,
        )
    if json:
        terminal.show(measured, outputs, rows=len(measured), json=True)
        return
    table = [
        (name, *(terminal.interval(*measured.value(name, measure)) for measure in measured.measures))
        for name in measured.paths
    ]
    note = "± half of the 95 % interval over contexts; unigram and model are references"
    terminal.show_table(measured.title, note, ("path", *measured.measures), table)
    terminal.write(measured, outputs)
