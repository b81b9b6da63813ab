"""`spectrum`, `attribute`, `faithfulness` and `rank`: what matters for a logit, with exact bookkeeping."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer

import jetgraph as jg
from jetgraph.cli import options, terminal
from jetgraph.cli.root import app
from jetgraph.errors import InputError, quoted
from jetgraph.files.graphs import GRAPHS
from jetgraph.views.picture import PICTURES

PANEL = "Attribution"


class Linear(enum.StrEnum):
    """What stands for a site."""

    frozen = "frozen"
    half = "half"
    gradient = "gradient"


Rules = Annotated[
    Linear,
    typer.Option(
        "--rules", help="What stands for a site: its gates held, products shared by halves, or its first order."
    ),
]


class Ablation(enum.StrEnum):
    """What stands for what is ablated."""

    zero = "zero"
    mean = "mean"
    resample = "resample"


class Score(enum.StrEnum):
    """What components and edges are ranked by."""

    influence = "influence"
    flow = "flow"


def _share(value: float) -> float:
    """The callback of `--nodes` and `--edges`: what they are is known before a model is loaded."""
    if not 0 < value <= 1:
        raise typer.BadParameter(f"{value:g} is no share of the influence: give a number above 0, up to 1")
    return value


Nodes = Annotated[float, typer.Option(callback=_share, help="Share of the influence of nodes that is kept; 1 for all.")]

Edges = Annotated[float, typer.Option(callback=_share, help="The same for the edges among them.")]

Positions = Annotated[bool, typer.Option("--no-positions", help="Do not tell the positions of the prompt apart.")]


def _given(
    target: list[str] | None,
    versus: str | None,
    position: str | None,
    heads: bool,
    split: list[str] | None,
    rules: Linear,
    memory: str,
) -> dict[str, Any]:
    """What attributions and rankings are made with; what is wrong with an option is said before a model is loaded."""
    return {
        "target": options.targets_of(target, versus),
        "position": options.position_of(position or "last"),
        "split": options.split_of(split, heads),
        "rules": rules.value,
        "memory": options.bytes_of(memory),
    }


def _classes_of(texts: Sequence[str] | None) -> str | dict[str, str]:
    """What `--by` stands for: a property of paths, or PATTERN=NAME several times."""
    if not texts:
        return "length"
    if len(texts) == 1 and ">" not in texts[0]:
        return texts[0]
    by_pattern: dict[str, str] = {}
    for text in texts:
        pattern, equals, name = (part.strip() for part in text.rpartition("="))
        if not equals or not pattern or not name:
            raise InputError(f"--by {quoted(text)} is not understood: several are patterns, each as PATTERN=NAME")
        by_pattern[pattern] = name
    return by_pattern


@app.command(
    rich_help_panel=PANEL,
    epilog='[bold]Examples[/bold]\n\n  jetgraph spectrum demo "Raise Value" --by attn --output spectrum.png\n\n'
    '  jetgraph spectrum demo "Raise Value" --by "last attn" --heads\n\n'
    '  jetgraph spectrum demo "Raise Value" --by "** > L3.mlp > logits=last MLP"',
)
def spectrum(
    model: options.Model,
    prompts: options.Prompts = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            "-b",
            metavar="CLASSES",
            help='length, attn, mlp (how many are passed), last, first, layer, source, "last attn", …; or '
            "PATTERN=NAME, which may be given again. \\[default: length]",
            show_default=False,
        ),
    ] = None,
    select: options.Select = None,
    heads: options.Heads = False,
    split: options.Splits = None,
    rules: Rules = Linear.frozen,
    target: options.Target = None,
    versus: options.Versus = None,
    position: options.Position = None,
    memory: options.Memory = "256M",
    rows: options.Rows = 40,
    json: options.Json = False,
    output: options.Outputs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """A logit as a sum over classes of paths: by length, attention hops, last site, or patterns."""
    texts = options.prompts_of(prompts)
    outputs = terminal.check_outputs(output, spreadsheet, prompts=len(texts))
    given: dict[str, Any] = {
        "by": _classes_of(by),
        "target": options.target_of(target, versus),
        "path": select or None,
        "rules": rules.value,
        "memory": options.bytes_of(memory),
        "split": options.split_of(split, heads),
        "position": options.position_of(position or "last"),
    }
    inputs, graph, given = terminal.read(model, texts, given)
    with terminal.working("summing paths"):
        sums = terminal.of_each(graph, "spectra", inputs, lambda one: jg.spectrum(graph, one, **given))
    terminal.show(
        sums,
        outputs,
        rows=rows,
        columns=("class", "value", "share", "paths"),
        note=f"{terminal.where(graph, position)}classes add up to Σ, and cancel where Σ|class| is larger",
        json=json,
    )


@app.command(
    rich_help_panel=PANEL,
    epilog='[bold]Examples[/bold]\n\n  jetgraph attribute demo "Raise Value" --heads --output graph.png\n\n'
    '  jetgraph attribute demo "Raise Value" -t Error --versus ue --paths 10\n\n'
    '  jetgraph attribute demo "Raise Value" --nodes 0.9 -o a.graphml -o a.csv',
)
def attribute(
    model: options.Model,
    prompts: options.Prompts = None,
    target: options.Targets = None,
    versus: options.Versus = None,
    position: options.Position = None,
    heads: options.Heads = False,
    split: options.Splits = None,
    rules: Rules = Linear.frozen,
    scores: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE",
            help="With --rules gradient: an attention whose scores are sites, by query and by key; may be given again.",
            show_default=False,
        ),
    ] = None,
    no_positions: Positions = False,
    nodes: Nodes = 0.8,
    edges: Edges = 0.98,
    paths: Annotated[int, typer.Option(min=0, help="Paths to tell, in the place of edges.")] = 0,
    drawn: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            help="Nodes that a picture shows, the most influential.  \\[default: as many as a page has room for]",
            show_default=False,
        ),
    ] = None,
    memory: options.Memory = "256M",
    rows: options.Rows = 40,
    json: options.Json = False,
    output: options.Graphs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """The attribution graph: which components, at which tokens, make a logit.

    A picture shows as many of the most influential nodes as a page has room for, and their widest edges, and says so;
    --drawn takes more. Pages and other files have all.
    """
    texts = options.prompts_of(prompts)
    outputs = terminal.check_outputs(output, spreadsheet, () if paths else GRAPHS, len(texts))
    given = _given(target, versus, position, heads, split, rules, memory)
    given |= {"positions": not no_positions, "scores": scores or None}
    if drawn is not None and (paths or not any(file.suffix.lower() in PICTURES for file in outputs.files)):
        raise InputError(f"--drawn is for a picture of the graph ({' '.join(PICTURES)}): name one with --output")
    inputs, graph, given = terminal.read(model, texts, given)

    def attributed(one: Any) -> Any:
        pruned = jg.attribute(graph, one, **given).prune(nodes, edges)
        return pruned.paths(paths) if paths else replace(pruned, most=drawn)

    with terminal.working("attributing"):
        found = terminal.of_each(graph, "paths" if paths else "attributions", inputs, attributed)
    edges_first = f"{terminal.where(graph, position)}most influential edges first; rest is what was cut"
    note = "largest value first" if paths else edges_first
    terminal.show(found, outputs, rows=rows, note=note, json=json)


@app.command(
    rich_help_panel=PANEL,
    epilog='[bold]Examples[/bold]\n\n  jetgraph faithfulness demo "Raise Value" -t Error --output curve.png\n\n'
    '  jetgraph faithfulness demo "Raise Value" --ablation mean --other "Raise Key"\n\n'
    '  jetgraph faithfulness demo "Raise Value" --of-edges --rules gradient',
)
def faithfulness(
    model: options.Model,
    prompts: options.Prompts = None,
    target: options.Targets = None,
    versus: options.Versus = None,
    position: options.Position = None,
    heads: options.Heads = False,
    split: options.Splits = None,
    rules: Rules = Linear.frozen,
    no_positions: Positions = False,
    nodes: Nodes = 0.8,
    edges: Edges = 0.98,
    of_edges: Annotated[bool, typer.Option("--of-edges", help="Patch edges in the place of components.")] = False,
    ablation: Annotated[Ablation, typer.Option(help="What stands for what is ablated.")] = Ablation.zero,
    other: Annotated[
        list[str] | None,
        typer.Option(
            "--other",
            metavar="PROMPT",
            help="A prompt that mean and resample take values from; may be given again.",
            show_default=False,
        ),
    ] = None,
    by: Annotated[Score, typer.Option(help="What components and edges are ranked by.")] = Score.influence,
    inside: Annotated[bool, typer.Option("--inside", help="Ablate the first ones, and keep the others.")] = False,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="SHARES",
            help="Shares that are kept, joined by commas.  \\[default: 0.001 to 0.5]",
            show_default=False,
        ),
    ] = None,
    memory: options.Memory = "256M",
    rows: options.Rows = 40,
    json: options.Json = False,
    output: options.Outputs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """Run the model with only the components, or edges, of an attribution: curves, CPR and CMD."""
    texts = options.prompts_of(prompts)
    outputs = terminal.check_outputs(output, spreadsheet, prompts=len(texts))
    given, shares = _given(target, versus, position, heads, split, rules, memory), options.shares_of(sizes, "--sizes")
    if (ablation is Ablation.zero) == bool(other):
        raise InputError("--other PROMPT goes with --ablation mean and resample, and they go with it")
    from jetgraph.applications.attribution.faithful import SIZES

    how: dict[str, Any] = {
        "of": "edges" if of_edges else "components",
        "ablation": ablation.value,
        "prompts": [options.prompt_of(text) for text in other] if other else None,
        "by": by.value,
        "inside": inside,
        "sizes": SIZES if shares is None else shares,
    }
    inputs, graph, given = terminal.read(model, texts, given)

    def ablated(one: Any) -> Any:
        every = jg.attribute(graph, one, positions=not no_positions, **given)
        return jg.faithfulness(every.prune(nodes, edges), **how)

    with terminal.working("attributing and ablating"):
        curves = terminal.of_each(graph, "faithfulness curves", inputs, ablated)
    note = "faithfulness is (value − that of none) / (that of all − that of none); CPR is the area under the curve"
    terminal.show(curves, outputs, rows=rows, note=note, json=json)


@app.command(
    rich_help_panel=PANEL,
    epilog='[bold]Examples[/bold]\n\n  jetgraph rank demo "Raise Value" "for key in" --top 15\n\n'
    '  jetgraph rank demo "Raise Value" --at-least 0.5 --positions -o paths.csv',
)
def rank(
    model: options.Model,
    prompts: options.Prompts = None,
    target: options.Targets = None,
    versus: options.Versus = None,
    position: options.Position = None,
    top: Annotated[int | None, typer.Option(min=1, help="Paths at most.  \\[default: 20]", show_default=False)] = None,
    at_least: Annotated[
        float | None, typer.Option("--at-least", help="The least absolute value of a path.", show_default=False)
    ] = None,
    heads: options.Heads = False,
    split: options.Splits = None,
    rules: Rules = Linear.frozen,
    positions: Annotated[bool, typer.Option("--positions", help="Tell the positions of the prompt apart.")] = False,
    signs: Annotated[int, typer.Option(min=2, help="Random signs, where the bound is not exact.")] = 64,
    memory: options.Memory = "256M",
    rows: options.Rows = 40,
    json: options.Json = False,
    output: options.Outputs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """The paths that contribute most to a logit, out of all of them, and a bound on the others."""
    texts = options.prompts_of(prompts)
    outputs = terminal.check_outputs(output, spreadsheet, prompts=len(texts))
    given = _given(target, versus, position, heads, split, rules, memory)
    given |= {"top": top, "at_least": at_least, "positions": positions, "signs": signs}
    inputs, graph, given = terminal.read(model, texts, given)
    with terminal.working("ranking paths"):
        ranked = terminal.of_each(graph, "rankings", inputs, lambda one: jg.rank(graph, one, **given))
    note = f"{terminal.where(graph, position)}largest absolute value first"
    terminal.show(ranked, outputs, rows=rows, note=note, json=json)
