"""The command line: `jetgraph demo`, `jetgraph inspect`, `jetgraph expand`.

Results go to stdout, progress and errors to stderr. What a person can put right (a name, a pattern, a file) ends in one
line and exit code 2; a traceback is a bug of ours.
"""

from __future__ import annotations

import enum
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from jetgraph.drawing import PICTURES
from jetgraph.errors import BudgetError, InputError, JetGraphError

if TYPE_CHECKING:
    from torch import Tensor

    from jetgraph.compilation import PathValues
    from jetgraph.demo import Section
    from jetgraph.expansion import Expansion
    from jetgraph.loading import Loaded
    from jetgraph.paths import Selection
    from jetgraph.residual import ResidualGraph

GRAPHS = (".graphml", ".gexf", ".json", ".dot", ".gv")
"""Suffixes of graph files; pictures are those of `jetgraph.drawing`."""

ORDERS = (0, 1, 2)
"""Orders whose number of terms `inspect` tells."""

MEMORY_BUDGET = 4 * 2**30
"""Bytes that the values of terms may take in `expand --prompt`."""

# typer has its own copy of click in some versions; the base of its errors is reached through a name that it exports.
_CommandError: type[Exception] = typer.BadParameter.__mro__[2]


class _Commands(TyperGroup):
    """A group of commands whose errors are one line each."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run, and end the process with 0, or with 2 and one line."""
        if not standalone_mode:
            return super().main(args, *rest, standalone_mode=False, **extra)
        try:
            code = super().main(args, *rest, standalone_mode=False, **extra)
        except typer.Abort:
            sys.exit(130)
        except _CommandError as error:
            message = getattr(error, "format_message", error.__str__)()
            _fail(f"{message} (see jetgraph --help)")
        except (JetGraphError, OSError) as error:
            _fail(str(error))
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    text = re.sub(r"\s+", " ", message).strip()
    sys.stderr.write(f"jetgraph: {text}\n")
    sys.exit(2)


_EXAMPLES = """
[bold]Examples[/bold]

  jetgraph demo

  jetgraph inspect demo

  jetgraph inspect meta-llama/Llama-3.1-405B --meta

  jetgraph expand demo --order 1 --output dag.png

  jetgraph expand demo --select "embed > *.mlp > logits" --prompt "Return the"
"""

app = typer.Typer(
    cls=_Commands,
    name="jetgraph",
    help="Residual networks as exact sums of path terms plus an explicit remainder.",
    epilog=_EXAMPLES,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A Hugging Face id, a folder that transformers has saved, or a bundled model: demo, demo:gpt2, "
        "demo:llama.",
        show_default=False,
    ),
]


class Recipe(enum.StrEnum):
    """Recipes of `jetgraph.expand`."""

    exhaustive = "exhaustive"
    components = "components"
    lens = "lens"
    path = "path"


class Directions(enum.StrEnum):
    """How the variate of a jet is split."""

    stream = "stream"
    terms = "terms"


def main() -> None:
    """Entry point of the `jetgraph` command."""
    app(prog_name="jetgraph")


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Residual networks as exact sums of path terms plus an explicit remainder."""
    if version:
        import importlib.metadata

        try:
            typer.echo(importlib.metadata.version("jetgraph"))
        except importlib.metadata.PackageNotFoundError:
            raise InputError("jetgraph runs from a folder in which it is not installed, so it has no version") from None
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(
    epilog='[bold]Example[/bold]\n\n  jetgraph demo --model demo:llama --prompt "keyword argu" --output llama-demo'
)
def demo(
    model: Annotated[str, typer.Option(help="The language model to show.")] = "demo",
    prompt: Annotated[str, typer.Option(help="The text that it continues.")] = "Raise Value",
    output: Annotated[pathlib.Path, typer.Option("--output", "-o", help="Folder for all files.")] = pathlib.Path(
        "jetgraph-demo"
    ),
) -> None:
    """Show the whole line on a bundled model: trace, expand, draw, compile, lenses, bigrams."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file: name a folder with --output")
    console = _console()
    loaded = _load(model)
    from jetgraph.demo import Demo

    console.print(f"[bold]jetgraph demo[/bold]  model {loaded.name}, prompt {prompt!r}\n", highlight=False)
    steps = Demo(loaded, prompt, output).steps()
    number = 0
    while True:
        with _progress("running the next step"):
            section = next(steps, None)
        if section is None:
            break
        number += 1
        _show(console, section, number)


def _show(console: Console, section: Section, number: int) -> None:
    console.print(Text(f"{number}  {section.title}", style="bold cyan"))
    console.print(Text(section.note, style="italic"))
    if section.text:
        console.print(Text(section.text), soft_wrap=True)
    for table in section.tables:
        console.print(_table(table.columns, table.rows))
        if table.file and table.total > len(table.rows):
            console.print(Text(f"{len(table.rows)} of {table.total} rows; all are in {table.file}", style="dim"))
    if section.after:
        console.print(Text(section.after, style="green"))
    console.print()


@app.command(epilog="[bold]Example[/bold]\n\n  jetgraph inspect gpt2 --meta --json")
def inspect(
    model: Model,
    meta: Annotated[
        bool, typer.Option("--meta", help="Read only the config, without weights: structure of any size.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show a model's residual structure: streams, joins, branches, and how many terms it has."""
    start = time.perf_counter()
    loaded = _load(model, meta=meta)
    loading = time.perf_counter() - start
    graph, tracing = _trace(loaded, loaded.inputs())
    counts = _counts(graph)
    if as_json:
        typer.echo(json.dumps(_described(loaded, graph, counts, loading, tracing), indent=2, ensure_ascii=False))
        return
    console = _console()
    console.print(Text(str(graph)), soft_wrap=True)
    console.print()
    console.print(f"parameters  {loaded.parameters:,}", highlight=False)
    console.print(f"time        load {loading:.1f} s, trace {tracing:.1f} s", highlight=False)
    from jetgraph.expansion import big

    rows = [(recipe, *(big(int(number)) for number in numbers.values())) for recipe, numbers in counts.items()]
    console.print(_table(("terms", *(f"order {order}" for order in ORDERS)), rows))


def _counts(graph: ResidualGraph) -> dict[str, dict[str, str]]:
    """Number of terms by recipe and order, in digits: JSON's readers round numbers of this size."""
    import jetgraph as jg

    return {
        recipe: {str(order): str(jg.expand(graph, order, recipe=recipe).count()) for order in ORDERS}
        for recipe in ("exhaustive", "components")
    }


def _described(
    loaded: Loaded, graph: ResidualGraph, counts: dict[str, dict[str, str]], loading: float, tracing: float
) -> dict[str, Any]:
    check = None if graph.check is None else {"error": graph.check.error, "scale": graph.check.scale}
    return {
        "model": loaded.name,
        "class": graph.title,
        "parameters": loaded.parameters,
        "output": graph.traced.output_name,
        "inputs": {name: list(shape) for name, shape in graph.traced.input_shapes.items()},
        "dynamic": graph.traced.dynamic,
        "note": graph.traced.note,
        "replay": check,
        "streams": len(graph.streams),
        "sources": [{"alias": s.alias, "path": s.path, "kind": s.kind} for s in graph.outline.sources],
        "joins": [
            {
                "name": join.name,
                "kind": join.kind,
                "depth": join.depth,
                "branches": [
                    {"alias": b.alias, "path": b.name, "kind": b.kind, "affine": b.region.affine} for b in join.branches
                ],
            }
            for join in graph.joins
        ],
        "terms": counts,
        "seconds": {"load": round(loading, 3), "trace": round(tracing, 3)},
    }


@app.command(
    epilog="[bold]Examples[/bold]\n\n  jetgraph expand demo --order 1 --output dag.graphml\n\n"
    '  jetgraph expand demo --select "embed > ** > L1.mlp^1 > logits^0" --output paths.png\n\n'
    '  jetgraph expand demo --recipe lens --order 1 --prompt "Return the"'
)
def expand(
    model: Model,
    order: Annotated[
        int | None,
        typer.Option(
            "--order", "-k", min=0, help="Order of the jets. [default: 1; lens and path: 0]", show_default=False
        ),
    ] = None,
    recipe: Annotated[Recipe, typer.Option(help="Which rule holds where.")] = Recipe.exhaustive,
    directions: Annotated[
        Directions, typer.Option(help="Keep the variate of a jet whole, or split it along terms.")
    ] = Directions.stream,
    select: Annotated[
        list[str] | None,
        typer.Option(
            "--select",
            "-s",
            metavar="PATTERN",
            help="Paths to take; may be given again. [default: **, all]",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take no more than the first so many of these.", show_default=False)
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Evaluate the paths on this text.", show_default=False)] = None,
    output: Annotated[
        pathlib.Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help=f"Write the path graph: {' '.join((*GRAPHS, *PICTURES))}",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of tables that are printed.")] = 20,
    meta: Annotated[bool, typer.Option("--meta", help="Read only the config, without weights.")] = False,
) -> None:
    """Expand a model into terms: count them, select paths, draw them, evaluate them on a prompt."""
    if output is not None:
        _check_output(output)
    if meta and prompt is not None:
        raise InputError("--meta has no weights to evaluate a prompt with: leave one of the two out")
    loaded = _load(model, meta=meta)
    inputs = loaded.inputs(prompt)
    graph, _ = _trace(loaded, inputs)
    import jetgraph as jg

    expansion = jg.expand(graph, order, recipe=recipe.value, directions=directions.value)
    selection = jg.select(expansion, select or "**", limit=limit)
    console = _console()
    console.print(Text(repr(expansion)), soft_wrap=True)
    console.print()
    _show_paths(console, expansion, selection, rows, select or ["**"])
    if prompt is not None:
        _evaluate(console, loaded, expansion, selection, inputs, rows)
    if output is not None:
        everything = select is None and limit is None
        _write(expansion, None if everything else selection, output, graph.title)
        typer.echo(f"wrote {output}")


def _check_output(file: pathlib.Path) -> None:
    """Refuse what cannot be written before a model is loaded."""
    if file.suffix.lower() not in (*GRAPHS, *PICTURES):
        raise InputError(f"{file.name!r} names no format: end it in one of {', '.join((*GRAPHS, *PICTURES))}")
    if not file.parent.is_dir():
        raise InputError(f"cannot write {file}: the folder {file.parent} does not exist")
    if file.is_dir() or not os.access(file.parent, os.W_OK):
        raise InputError(f"cannot write {file}: {'it is a folder' if file.is_dir() else 'its folder is not writable'}")


def _write(expansion: Expansion, selection: Selection | None, file: pathlib.Path, title: str) -> None:
    import jetgraph as jg
    from jetgraph.drawing import draw

    dag = jg.path_graph(expansion, selection)
    if file.suffix.lower() in PICTURES:
        draw(dag, file, title=title)
    else:
        jg.write_graph(dag, file)


def _show_paths(console: Console, expansion: Expansion, selection: Selection, rows: int, patterns: list[str]) -> None:
    from jetgraph.expansion import big

    chosen = [*selection[:rows]]
    table = []
    for path in chosen:
        weights = [
            f"{alias.alias}: {weight}"
            for alias, weight in zip(path.hops, expansion.weights(path), strict=True)
            if weight != 1
        ]
        table.append((str(path), "  ".join(weights) or "1"))
    more = f", the first {len(chosen)}" if selection.count() > len(chosen) else ""
    console.print(Text(f"{big(selection.count())} paths match {' or '.join(patterns)}{more}:"))
    console.print(_table(("path", "weights"), table))


def _evaluate(
    console: Console, loaded: Loaded, expansion: Expansion, selection: Selection, inputs: dict[str, Any], rows: int
) -> None:
    """Print the selected terms at the last position, and what is left of the model's output."""
    import torch

    import jetgraph as jg
    from jetgraph import readout
    from jetgraph.loading import quiet
    from jetgraph.tracing import run_model

    graph: Any = expansion.graph
    with torch.no_grad(), quiet(), _progress("evaluating"):
        output = run_model(loaded.model, (), inputs, graph.traced.output_name)
        needed = selection.count() * output.numel() * output.element_size()
        if needed > MEMORY_BUDGET:
            raise BudgetError(
                f"{selection.count()} terms of shape {list(output.shape)} take {needed / 2**30:.0f} GiB, more than "
                f"{MEMORY_BUDGET / 2**30:.0f}: take fewer with --limit, or narrow the pattern"
            )
        values = jg.compile(expansion, selection)(**inputs)
        put_together = values.total + values.remainder
    last = output[0, -1]
    console.print()
    console.print(Text(f"at the last position the model says {readout.top_tokens(last, loaded.tokenizer, 3)}"))
    if expansion.recipe in ("lens", "path"):
        _show_alone(console, values, last, loaded, rows)
        return
    found = [(readout.norm(term[0, -1]), str(path), term[0, -1]) for path, term in values.terms.items()]
    found.sort(key=lambda item: -item[0])
    cells = [
        (f"{size:.4g}", path, f"{readout.cosine(last, value):+.3f}", readout.top_tokens(value, loaded.tokenizer, 3))
        for size, path, value in found[:rows]
    ]
    console.print(_table(("norm", "term", "cosine", "says"), cells))
    rest, size = readout.norm(values.remainder[0, -1]), readout.norm(last)
    error = float((put_together - output).abs().max())
    console.print(Text(f"remainder   {rest:.4g}, which is {rest / size:.1%} of the output's {size:.4g}"))
    console.print(Text(f"check       terms + remainder against the model called by itself: max error {error:.1e}"))


def _show_alone(console: Console, values: PathValues, last: Tensor, loaded: Loaded, rows: int) -> None:
    """Paths that are an expansion each: the orders of one chain add up, different chains do not."""
    from jetgraph import readout

    sums: dict[tuple[str, ...], Tensor] = {}
    cells = []
    for path, term in values.terms.items():
        chain = tuple(hop.alias for hop in path.hops)
        sums[chain] = sums[chain] + term[0, -1] if chain in sums else term[0, -1]
        value = sums[chain]
        facts = [readout.cosine(last, value), readout.divergence(last, value), readout.relative_remainder(last, value)]
        cells.append((str(path), *(f"{fact:.3f}" for fact in facts), readout.top_tokens(value, loaded.tokenizer, 3)))
    console.print(Text("each chain of sites is an expansion of its own; its orders are summed up to the one named"))
    console.print(_table(("path", "cosine", "KL", "rest", "says"), cells[:rows]))


# Loading and showing


def _load(name: str, *, meta: bool = False) -> Loaded:
    with _progress(f"loading {name}"):
        from jetgraph.loading import load

        return load(name, meta=meta)


def _trace(loaded: Loaded, inputs: dict[str, Any]) -> tuple[ResidualGraph, float]:
    import jetgraph as jg
    from jetgraph.loading import quiet

    start = time.perf_counter()
    with _progress(f"tracing {loaded.name}"), quiet():
        graph = jg.trace(loaded.model, **inputs)
    return graph, time.perf_counter() - start


@contextmanager
def _progress(text: str) -> Iterator[None]:
    """A spinner on stderr, where that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(f"{text} …"):
        yield


def _console() -> Console:
    """Colours and the terminal's width on terminals; plain text, wide enough for paths, elsewhere."""
    console = Console(highlight=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, emoji=False, width=140)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for index, column in enumerate(columns):
        number = all(re.fullmatch(r"[-+]?[\d.,]+%?", row[index]) for row in rows if row[index]) and bool(rows)
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


if __name__ == "__main__":
    main()
