"""`jet-expand`: Algorithm 1 of the paper at one place."""

from __future__ import annotations

from typing import Annotated, Any

import typer

import jetgraph as jg
from jetgraph.cli import options, terminal
from jetgraph.cli.root import app
from jetgraph.errors import InputError, quoted


def _centres_of(texts: list[str]) -> list[Any] | dict[str, Any]:
    """What `--centre` stands for: texts by themselves, sums of several by +, or NAME=TEXT + TEXT.

    >>> _centres_of(["embed", "L0.mlp + L1.mlp"]), _centres_of(["early=embed+L0", "late=L1"])
    (['embed', ['L0.mlp', 'L1.mlp']], {'early': ['embed', 'L0'], 'late': ['L1']})
    """
    parts = [[part.strip() for part in text.rpartition("=")[2].split("+")] for text in texts]
    names = [text.rpartition("=")[0].strip() for text in texts]
    if not all(all(part) for part in parts) or (any(names) and not all(names)):
        raise InputError(
            f"--centre {quoted(' '.join(texts))} is not understood: give names such as embed or L0.mlp, sums such as "
            "'L0.attn + L0.mlp', or each with a name, such as 'early=embed + L0'"
        )
    if any(names):
        if len(set(names)) < len(names):
            raise InputError(f"--centre has the name {quoted(next(n for n in names if names.count(n) > 1))} twice")
        return dict(zip(names, parts, strict=True))
    return [some if len(some) > 1 else some[0] for some in parts]


@app.command(
    rich_help_panel="Lenses",
    epilog='[bold]Examples[/bold]\n\n  jetgraph jet-expand demo "Raise Value" --at L2.mlp --centre blocks\n\n'
    '  jetgraph jet-expand demo "Raise Value" --at logits --order auto\n\n'
    '  jetgraph jet-expand demo "Raise Value" --at L3 -c "early=embed + L0"\n\n'
    '  jetgraph jet-expand demo "Raise" --at L1.attn -c embed -c "L0.*" --json',
)
def jet_expand(
    model: options.Model,
    at: Annotated[
        str,
        typer.Option(
            "--at",
            metavar="PLACE",
            help="Where: a site (L3.mlp), logits, a point (h4) for the step that leads there, or a block (L3).",
            show_default=False,
        ),
    ],
    prompts: options.Prompts = None,
    centre: Annotated[
        list[str] | None,
        typer.Option(
            "--centre",
            "-c",
            metavar="CENTRE",
            help="A source, branch, block, point, term or pattern (embed, L0.mlp, L0, h2, *.attn), blocks, components; "
            "a sum by +, with a name by =. May be given again. \\[default: components]",
            show_default=False,
        ),
    ] = None,
    order: Annotated[
        Any, typer.Option("--order", "-k", metavar="ORDER", parser=options.order_of, help="Of the jets; or auto.")
    ] = "1",
    tolerance: options.Tolerance = None,
    weights: Annotated[
        options.Weights, typer.Option(help="Of centres: alike, or per token the best ones on the simplex.")
    ] = options.Weights.uniform,
    plain: options.Plain = False,
    split: options.Splits = None,
    rows: options.Rows = 40,
    json: options.Json = False,
    output: options.Outputs = None,
    spreadsheet: options.Spreadsheet = False,
) -> None:
    """Jets around chosen centres at one place of the model, and what they leave there: Algorithm 1 of the paper."""
    texts = options.prompts_of(prompts)
    outputs = terminal.check_outputs(output, spreadsheet, prompts=len(texts))
    given: dict[str, Any] = {
        "at": at,
        "centres": _centres_of(centre or ["components"]),
        "order": order,
        "tolerance": tolerance,
        "weights": weights.value,
        "scale": options.scale_of(plain),
        "split": options.split_of(split),
    }
    inputs, graph, given = terminal.read(model, texts, given)
    with terminal.working("expanding"):
        found = terminal.of_each(graph, "jet expansions", inputs, lambda one: jg.jet_expand(graph, one, **given))
    note = "the largest first, over all positions; δ is what is left"
    terminal.show(found, outputs, rows=rows, note=note, json=json)
