"""`demo`, `inspect` and `expand`: what a model is made of, and its terms."""

from __future__ import annotations

import enum
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

import jetgraph as jg
from jetgraph.algebra.advice import exponent_text, of_remainder
from jetgraph.algebra.dialects import parts_asked
from jetgraph.algebra.paths import Hop, Path
from jetgraph.applications.orders import TOLERANCE, tolerated
from jetgraph.applications.results import cell_text
from jetgraph.cli import options, terminal
from jetgraph.cli.root import app
from jetgraph.errors import InputError, amount, big, quoted
from jetgraph.files.graphs import GRAPHS
from jetgraph.files.targets import check_folder, check_target
from jetgraph.numbers import fixed, percent
from jetgraph.views.picture import PICTURES, draw

if TYPE_CHECKING:
    from jetgraph.algebra.expansion import Expansion
    from jetgraph.algebra.scores import Values
    from jetgraph.algebra.selection import Selection
    from jetgraph.applications.attribution.rankings import Ranking
    from jetgraph.applications.terms import Terms
    from jetgraph.loading import Loaded
    from jetgraph.residual import ResidualGraph
    from jetgraph.views.report import Section

ORDERS = (0, 1, 2)
"""Orders whose number of terms `inspect` tells."""


class Recipe(enum.StrEnum):
    """Recipes of `jetgraph.expand`."""

    exhaustive = "exhaustive"
    components = "components"
    frozen = "frozen"
    lens = "lens"
    beam = "beam"
    path = "path"


class Orders(enum.StrEnum):
    """Whether the orders of a jet are one term or several."""

    auto = "auto"
    together = "together"
    apart = "apart"


class Directions(enum.StrEnum):
    """How the variate of a jet is split."""

    stream = "stream"
    terms = "terms"


@app.command(
    epilog='[bold]Example[/bold]\n\n  jetgraph demo --model demo:llama --prompt "keyword argu" --output llama-demo'
)
def demo(
    model: Annotated[str, typer.Option(help="The language model to show.")] = "demo",
    prompt: Annotated[
        list[str] | None,
        typer.Option(help='The text that it continues. \\[default: "Raise Value"]', show_default=False),
    ] = None,
    output: Annotated[pathlib.Path, typer.Option("--output", "-o", help="Folder for all files.")] = pathlib.Path(
        "jetgraph-demo"
    ),
    spreadsheet: options.Spreadsheet = False,
    as_json: options.Json = False,
) -> None:
    """Take a bundled model through every step: trace, expand, draw, compile, lenses, bigrams."""
    check_folder(output, "--output")
    text = options.prompt_of(options.one_of(prompt, "--prompt", "one text is shown") or "Raise Value")
    console = terminal.console()
    from jetgraph.demo import Demo

    loaded = terminal.load(model)
    steps = Demo(loaded, text, output, spreadsheet).steps()
    if as_json:
        from jetgraph.views.report import facts

        told = {"title": f"model {loaded.name}, prompt {text!r}", "sections": list(map(facts, steps))}
        typer.echo(json.dumps(told | {"folder": str(output)}, ensure_ascii=False, indent=1))
        return
    console.print(Text.assemble(("jetgraph demo", "bold"), f"  model {loaded.name}, prompt {text!r}\n"))
    number = 0
    while True:
        with terminal.progress("running the next step"):
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
        console.print(terminal.Columns(table.columns, table.rows))
        if table.file and table.total > len(table.rows):
            console.print(
                Text(f"{len(table.rows)} of {amount(table.total, 'row')}; all are in {table.file}", style="dim")
            )
    if section.after:
        console.print(Text(section.after, style="green"))
    console.print()


@app.command(epilog="[bold]Example[/bold]\n\n  jetgraph inspect gpt2 --meta --json")
def inspect(
    model: options.Model,
    meta: Annotated[
        bool, typer.Option("--meta", help="Read only the config, without weights: structure of any size.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show a model's residual structure: streams, joins, branches, and how many terms it has."""
    start = time.perf_counter()
    loaded = terminal.load(model, meta=meta)
    loading = time.perf_counter() - start
    graph, tracing = terminal.trace(loaded, loaded.inputs())
    counts = _counts(graph)
    if as_json:
        typer.echo(json.dumps(_described(loaded, graph, counts, loading, tracing), indent=2, ensure_ascii=False))
        return
    console = terminal.console()
    console.print(Text(str(graph)), soft_wrap=True)
    console.print()
    from jetgraph.views.tree import of_parameters

    said = of_parameters(loaded.parameters, graph.traced.parameters, f"of {loaded.dtype} on {loaded.device}")
    console.print(Text(f"parameters  {said}"), soft_wrap=True)
    console.print(f"time        load {loading:.1f} s, trace {tracing:.1f} s", highlight=False)
    rows = [(recipe, *(big(int(number)) for number in numbers.values())) for recipe, numbers in counts.items()]
    console.print(terminal.Columns(("terms", *(f"order {order}" for order in ORDERS)), rows))


def _counts(graph: ResidualGraph) -> dict[str, dict[str, str]]:
    """Number of terms by recipe and order, in digits: JSON's readers round numbers of this size."""
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
        "class": loaded.facts.kind if loaded.graph is None else graph.title,
        "parameters": loaded.parameters,
        "parameters_read": graph.traced.parameters,
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
    '  jetgraph expand demo --path "embed > ** > L1.mlp~1 > logits^0" -o paths.png\n\n'
    '  jetgraph expand demo --recipe beam --width 8 --order 2 --prompt "Return the"\n\n'
    "  jetgraph expand demo --recipe components -k auto --weights optimal --prompt if\n\n"
    '  jetgraph expand demo --recipe lens --order 1 --prompt "Return the"\n\n'
    '  jetgraph expand demo --recipe components --split heads --prompt "Return the"'
)
def expand(
    model: options.Model,
    order: Annotated[
        Any,
        typer.Option(
            "--order",
            "-k",
            metavar="ORDER",
            parser=options.order_of,
            help="Order of the jets. auto: at each site the lowest that leaves little of it on --prompt. "
            "\\[default: 1; lens and path: 0]",
            show_default=False,
        ),
    ] = None,
    tolerance: options.Tolerance = None,
    recipe: Annotated[Recipe, typer.Option(help="Which rule holds where.")] = Recipe.exhaustive,
    directions: Annotated[
        Directions, typer.Option(help="Keep the variate of a jet whole, or split it along terms.")
    ] = Directions.stream,
    orders: Annotated[
        Orders, typer.Option(help="Jets as one term each, or order by order; auto: where nothing nonlinear follows.")
    ] = Orders.auto,
    centres: options.Centres = options.Group.terms,
    weights: Annotated[
        options.Weights | None,
        typer.Option(
            help="Of centres: alike, or per token the best ones on the simplex. "
            "\\[default: uniform; of a beam: optimal]",
            show_default=False,
        ),
    ] = None,
    plain: options.Plain = False,
    halves: Annotated[
        bool, typer.Option("--halves", help="With --recipe frozen: hold each factor of a product for one half.")
    ] = False,
    width: Annotated[
        int | None, typer.Option(min=1, help="Of a beam: how many terms are centres by themselves.", show_default=False)
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            metavar="TOKEN",
            help='The token whose logit the terms of a beam are chosen for, and --rank tells (" the", or #42 by id).',
            show_default=False,
        ),
    ] = None,
    split: options.Splits = None,
    select: options.Select = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take no more than the first so many of these.", show_default=False)
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Evaluate the paths on this text.", show_default=False)
    ] = None,
    rank: Annotated[bool, typer.Option("--rank", help="Rank the paths by what they give a logit on --prompt.")] = False,
    as_json: options.Json = False,
    output: Annotated[
        list[pathlib.Path] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help=f"Write the path graph, with values on a prompt: {' '.join((*GRAPHS, *PICTURES))}; may be repeated.",
            show_default=False,
        ),
    ] = None,
    rows: options.Rows = 20,
    meta: Annotated[bool, typer.Option("--meta", help="Read only the config, without weights.")] = False,
) -> None:
    """Expand a model into terms: count them, select paths, draw them, evaluate them on a prompt."""
    text = options.one_of(prompt, "--prompt", "paths are evaluated on one text")
    _check_options(output or (), meta, text, rank, order)
    parts, given_prompt = options.split_of(split), None if text is None else options.prompt_of(text)
    loaded = terminal.load(model, meta=meta)
    inputs = loaded.inputs(given_prompt)
    graph, _ = terminal.trace(loaded, inputs)
    token = None if target is None else _token_id(loaded, graph, target)
    given: dict[str, Any] = {
        "recipe": recipe.value,
        "weights": None if weights is None else weights.value,
        "scale": options.scale_of(plain),
        "centres": centres.value,
        "width": width,
        "target": token if recipe is Recipe.beam or not rank else None,
        "split": parts or parts_asked(select or (), graph.outline),
    }
    more: dict[str, Any] = {"directions": directions.value, "orders": orders.value, "halves": halves}
    if order == "auto":
        expansion = _with_chosen_orders(graph, inputs, tolerance, given, more, 0 if as_json else rows)
    else:
        tolerated(order or 0, tolerance)
        expansion = jg.expand(graph, order, **given, **more)
    selection = jg.select(expansion, select or "**", limit=limit)
    chosen = None if select is None and limit is None else selection
    values: Values | None = None
    if rank:
        values = _rank(loaded, expansion, chosen, inputs, token, rows, as_json)
        chosen = None
    elif as_json:
        values = _as_json(loaded, expansion, selection, None if text is None else inputs, rows)
    else:
        console = terminal.console()
        console.print(Text(repr(expansion)), soft_wrap=True)
        console.print()
        _show_paths(console, expansion, selection, rows, select or ["**"], text)
        if text is not None:
            values = _evaluate(console, loaded, expansion, selection, inputs, rows)
    _write(expansion, chosen, None if expansion.chooses else values, output or (), graph.title, say=not as_json)


def _check_options(files: Sequence[pathlib.Path], meta: bool, prompt: str | None, rank: bool, order: Any) -> None:
    """Raise `InputError` for options of `expand` that do not go together, before anything is loaded."""
    for file in files:
        check_target(file, (*GRAPHS, *PICTURES))
    options.figure_width(files)
    if meta and prompt is not None:
        raise InputError("--meta has no weights to evaluate a prompt with: leave one of the two out")
    if rank and prompt is None:
        raise InputError("--rank needs values: give --prompt")
    if order == "auto" and prompt is None:
        raise InputError("--order auto chooses orders on a text: give --prompt")


def _rank(
    loaded: Loaded,
    expansion: Expansion,
    selection: Selection | None,
    inputs: dict[str, Any],
    target: int | None,
    rows: int,
    as_json: bool,
) -> Ranking:
    """Print the paths that give a logit most, at the last position."""
    with terminal.working("ranking paths"):
        ranking = jg.rank(expansion, inputs, target=target, path=selection, top=rows, tokenizer=loaded.tokenizer)
    note = "at the last position, largest absolute value first"
    terminal.show(ranking, rows=rows, note=note, json=as_json)
    return ranking


def _token_id(loaded: Loaded, graph: ResidualGraph, text: str) -> int:
    """The id of the token that `--target` names."""
    from jetgraph.applications.subject import encode_token

    token = options.token_of(text)
    index = encode_token(loaded.tokenizer, token, "target") if isinstance(token, str) else token
    size = (0, *graph.traced.output.meta["shape"])[-1]
    if index < 0 or (isinstance(size, int) and index >= size):
        raise InputError(f"--target {quoted(text)} is no token: the output has {size}")
    return index


def _with_chosen_orders(
    graph: ResidualGraph,
    inputs: dict[str, Any],
    tolerance: float | None,
    given: dict[str, Any],
    more: dict[str, Any],
    rows: int,
) -> Expansion:
    """Choose orders on inputs, and say which in so many rows, or not at all; `more` are options that do not go with it,
    unless they are as ever.
    """
    if more != {"directions": "stream", "orders": "auto", "halves": False}:
        raise InputError("--order auto is for jets along the stream: leave --halves, --directions and --orders out")
    with terminal.working("choosing orders"):
        chosen = jg.choose_orders(graph, inputs, tolerance=TOLERANCE if tolerance is None else tolerance, **given)
    if rows:
        columns = chosen.columns()
        cells = [tuple(map(cell_text, row)) for row in zip(*columns.values(), strict=True)]
        terminal.show_end(chosen.title, chosen.note, tuple(columns), cells, rows)
    return chosen.expansion


def _write(
    expansion: Expansion,
    selection: Selection | None,
    values: Values | None,
    files: Sequence[pathlib.Path],
    title: str,
    say: bool,
) -> None:
    """Write the path graph to files, with the values of paths where there are some, and say so."""
    for file in files:
        dag = jg.path_graph(expansion, selection, values=values)
        if file.suffix.lower() in PICTURES:
            draw(dag, file, title=title, width=options.figure_width(files))
        else:
            jg.write_graph(dag, file)
        if say:
            typer.echo(f"wrote {file}")


def _as_json(
    loaded: Loaded, expansion: Expansion, selection: Selection, inputs: dict[str, Any] | None, rows: int
) -> Terms | None:
    """Print as JSON the selected terms on inputs, all of them, or without inputs the first so many paths."""
    if inputs is not None:
        with jg.loading.quiet(), terminal.progress("evaluating"):
            terms = jg.terms(expansion, inputs, selection, tokenizer=loaded.tokenizer)
        facts = terminal.facts_of(terms)
    else:
        table = [] if expansion.chooses else _table(expansion, selection, rows)
        columns = {name: [row[at] for row in table] for at, name in enumerate(("path", "weights"))}
        number = None if expansion.chooses else str(selection.count())
        facts = {"title": f"{expansion.recipe} of order {expansion.order}", "paths": number}
        terms, facts = None, {**facts, "columns": columns}
    typer.echo(json.dumps(facts, ensure_ascii=False, indent=1))
    return terms


def _table(expansion: Expansion, selection: Selection, rows: int) -> list[tuple[str, str]]:
    """The first so many paths with their weights."""
    table: list[tuple[str, str]] = []
    for path in selection[:rows]:
        weights = [
            f"{hop.alias}: {exponent_text(weight) if isinstance(weight, Fraction) else weight}"
            for hop, weight in _weights(expansion, path)
            if weight != 1
        ]
        table.append((str(path), "  ".join(weights) or "1"))
    return table


def _show_paths(
    console: Console, expansion: Expansion, selection: Selection, rows: int, patterns: list[str], prompt: str | None
) -> None:
    if expansion.chooses:
        if prompt is None:
            console.print(Text("which terms are by themselves is chosen on a text: give --prompt"))
        return
    table = _table(expansion, selection, rows)
    more = f", the first {len(table)}" if selection.count() > len(table) else ""
    number = selection.count()
    matching = "path matches" if number == 1 else "paths match"
    console.print(Text(f"{big(number)} {matching} {' or '.join(patterns)}{more}:"))
    console.print(terminal.Columns(("path", "weights"), table))


def _weights(expansion: Expansion, path: Path) -> Iterator[tuple[Hop, Fraction | str]]:
    """The weight at every hop of a path, as far as it is known before anything runs."""
    for index, hop in enumerate(path.hops):
        known = index == 0 or expansion.passage(hop.alias).rule.weighs_alike
        yield hop, expansion.weight(path, index) if known else "per token"


def _given(terms: Terms) -> str:
    """What the model itself gives."""
    if terms.direction is None:
        return f"at the last position the model says {terms.says[0]}"
    what = "the output has features, as of an encoder, which are no tokens"
    return f"{what}; what terms give is told along the {terms.best[0]}"


def _evaluate(
    console: Console, loaded: Loaded, expansion: Expansion, selection: Selection, inputs: dict[str, Any], rows: int
) -> Terms:
    """Print the selected terms at the last position, and what is left of the model's output."""
    import torch

    from jetgraph.applications.distances import norm
    from jetgraph.tracing.calls import run_model

    graph: Any = expansion.graph
    with torch.no_grad(), jg.loading.quiet(), terminal.progress("evaluating"):
        output = run_model(loaded.model, (), inputs, graph.traced.output_name)
        terms = jg.terms(expansion, inputs, selection, tokenizer=loaded.tokenizer)
    console.print()
    console.print(Text(_given(terms)))
    if terms.alone:
        cells = [
            (term.path, fixed(term.cosine), f"{term.kl:.3f}", f"{term.remainder:.3f}", term.says)
            for term in terms.terms
        ]
        console.print(Text("each chain of sites is an expansion of its own; its orders are summed up to the one named"))
        console.print(terminal.Columns(("path", "cosine", "KL", "rest", "says"), cells[:rows]))
        return terms
    said = "says" if terms.direction is None else "along it"
    cells = [(f"{one.norm:.4g}", one.path, f"{one.cosine:+.3f}", one.says or f"{one.share:.4g}") for one in terms.terms]
    console.print(terminal.Columns(("norm", "term", "cosine", said), cells[:rows]))
    rest, size = float(norm(terms.output - terms.total)[0]), float(norm(terms.output)[0])
    error = float((terms.output - (output if output.dim() == 2 else output[:, -1])).abs().max())
    share = percent(rest / size) if size else "a part"
    left, more = "remainder", ""
    if terms.remainders is None and not expansion.chooses:
        left, more = "others", f"; {len(terms.terms)} of {amount(expansion.count(), 'term')} are told here"
    console.print(Text(f"{left:<11} {rest:.4g}, which is {share} of the output's {size:.4g}{more}"))
    if terms.remainders is not None and size and (told := of_remainder(rest / size)):
        console.print(Text(told, style="bold"))
    if terms.remainders:
        console.print(Text("what sites leave besides their terms, at all positions, as a share of what they give"))
        sites = sorted(terms.remainders.items(), key=lambda item: -item[1].relative)
        told = [(f"{one.relative:.3g}", site, f"{one.norm:.4g}", f"{one.size:.4g}") for site, one in sites[:rows]]
        console.print(terminal.Columns(("share", "site", "remainder", "of"), told))
    console.print(Text(f"check       terms + {left} against the model called by itself: max error {error:.1e}"))
    return terms
