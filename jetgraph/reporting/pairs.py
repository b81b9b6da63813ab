"""What a report says of two models: what has changed in their weights, paths, n-grams, and on prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from jetgraph.applications.comparing import ModelDiff, diff
from jetgraph.applications.lenses import Lens, lens
from jetgraph.applications.readout import token_text
from jetgraph.applications.results import cell_text
from jetgraph.applications.subject import Inputs, Subject
from jetgraph.reporting.again import Origin
from jetgraph.reporting.models import CELLS
from jetgraph.views.report import Section, Table

ROWS = 12
"""Rows of each table."""

SAID = 5
"""Tokens that either model says."""


def changes(one: Subject, other: Subject, origin: Origin, name: str | None) -> tuple[Section, ...]:
    """Weights, paths and n-grams that have changed.

    Raises
    ------
    InputError
        As `jetgraph.diff`.
    """
    size = one.graph.traced.output.meta["shape"][-1]
    rows = None if size * size <= CELLS else CELLS // size
    differences = diff(one.graph, other.graph, contexts=rows, tokenizer=one.tokenizer)
    command = _again(origin, name, rows)
    return _weights(differences, command), _paths(differences, command), _ngrams(differences, command)


def _again(origin: Origin, name: str | None, rows: int | None) -> str:
    options = [] if rows is None else ["--contexts", str(rows)]
    if origin.model is not None and name is not None:
        return Origin(origin.model).again("diff", name, *options)
    return f"jg.diff(model, other{'' if rows is None else f', contexts={rows}'})"


def _weights(diff: ModelDiff, command: str) -> Section:
    columns = diff.sites.columns()
    names = [name for name in columns if name != "change"]
    sizes = [value if isinstance(value, float) else 0.0 for value in columns["change"]]
    chosen = sorted(range(len(sizes)), key=lambda place: -sizes[place])[:ROWS]
    rows = tuple(tuple(cell_text(columns[name][place]) for name in (*names, "change")) for place in chosen)
    note = "By site, the size of what was added to its weights, as a multiple of the size that they had."
    table = Table((*names, "change"), rows, bars=tuple(sizes[place] for place in chosen))
    return Section("Which weights have changed", note, tables=(table,), commands=(command,))


def _paths(diff: ModelDiff, command: str) -> Section:
    columns = diff.paths.columns()
    rows = tuple(tuple(map(cell_text, row)) for row in zip(*columns.values(), strict=True))[:ROWS]
    note = "Distances between the two models' tables of bi-grams, path by path, from the weights alone."
    return Section("Which paths have changed", note, tables=(Table(tuple(columns), rows),), commands=(command,))


def _ngrams(diff: ModelDiff, command: str) -> Section:
    columns = diff.ngrams.columns()
    names = ("context", "token", "p_a", "p_b", "change")
    tables = []
    for kind in dict.fromkeys(columns["kind"]):
        kept = [place for place, one in enumerate(columns["kind"]) if one == kind][:ROWS]
        rows = tuple(tuple(cell_text(columns[name][place]) for name in names) for place in kept)
        bars = tuple(float(str(columns["change"][place])) for place in kept)
        tables.append(Table(names, rows, bars=bars, caption=str(kind)))
    note = (
        f"Bi-grams along {diff.ngrams.path} whose probability rose and fell most: a is the first model, b the second."
    )
    return Section("Which n-grams have changed", note, tables=tuple(tables), commands=(command,))


def said(one: Subject, other: Subject, given: Inputs, number: int) -> tuple[Section, str]:
    """What both models say next, and in a line."""
    both = [lens(side.graph, side.inputs(given), order=0, tokenizer=side.tokenizer) for side in (one, other)]
    before, after = (_last(view).double().log_softmax(-1) for view in both)
    top = [*before.topk(SAID).indices.tolist(), *after.topk(SAID).indices.tolist()]
    own = one.tokenizer if both[0].vocabulary else None
    p, q = before.exp(), after.exp()
    kept: Sequence[int] = sorted(dict.fromkeys(top), key=lambda index: -float(p[index] + q[index]))
    rows = tuple((token_text(own, index), f"{p[index]:.3f}", f"{q[index]:.3f}") for index in kept)
    bars = tuple(float(q[index] - p[index]) for index in kept)
    kl = float(torch.where(p > 0, p * (before - after), 0.0).sum())
    text = repr(given) if isinstance(given, str) else "inputs"
    table = Table(("token", "p_a", "p_b"), rows, bars=bars)
    first, second = (token_text(own, int(row.argmax())) for row in (before, after))
    line = f"After {text} they say {first} and {second}; KL(a ‖ b) is {kl:.3g} nats."
    return Section(
        f"Prompt {number}: {text}", "What both say next; bars are changes.", tables=(table,), after=line[:-1]
    ), line


def _last(view: Lens) -> torch.Tensor:
    return view.output[0] if view.output.dim() == 2 else view.output[0, -1]
