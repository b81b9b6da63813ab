"""What a report says of two models: what has changed in their weights, paths, n-grams, and on prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from jetgraph.applications.comparing import ModelDiff, compare, diff
from jetgraph.applications.lenses import Lens, lens
from jetgraph.applications.ngrams.fitting import without_ngrams
from jetgraph.applications.results import Result, cell_text
from jetgraph.applications.subject import Inputs, Subject
from jetgraph.numbers import fixed
from jetgraph.reporting.again import Origin
from jetgraph.reporting.models import CELLS
from jetgraph.reporting.wording import Wording
from jetgraph.views.report import Section, Table

ROWS = 12
"""Rows of each table."""

SAID = 5
"""Tokens that either model says."""


@dataclass(frozen=True)
class Changes:
    """What has changed without a prompt, and what it comes to in a line."""

    sections: tuple[Section, ...]
    finding: str


def changes(one: Subject, other: Subject, origins: tuple[Origin, Origin]) -> Changes:
    """Weights, paths and n-grams that have changed.

    Raises
    ------
    InputError
        As `jetgraph.diff`.
    """
    rows = None
    if not (without_ngrams(one) or without_ngrams(other)):
        size = one.graph.traced.output.meta["shape"][-1]
        rows = None if size * size <= CELLS else CELLS // size
    differences = diff(one.graph, other.graph, contexts=rows, tokenizer=one.tokenizer)
    command = _again(*origins, rows)
    sections = [_weights(differences, command)]
    if not differences.ngrams.none:
        sections += [_paths(differences, command), _ngrams(differences, command)]
    return Changes(tuple(sections), _most(differences))


def _most(diff: ModelDiff) -> str:
    """Which weights have changed most, where any has, or can be compared."""
    columns = diff.sites.columns()
    known = [
        (change, site)
        for site, change in zip(columns["site"], columns["change"], strict=True)
        if isinstance(change, float)
    ]
    if not known:
        return "No site of one has weights of the same names and shapes in the other."
    change, site = max(known, key=lambda one: one[0])
    return f"The weights of {site} have changed most." if change > 0 else "No weights have changed."


def _again(origin: Origin, other: Origin, rows: int | None) -> str:
    options = [] if rows is None else ["--contexts", str(rows)]
    if other.model is not None and other.options == origin.options:
        command = origin.shell("diff", *options, other=other.model)
        if command is not None:
            return command
    return origin.python("diff", of=f"{origin.loaded}, {other.loaded}", **({} if rows is None else {"contexts": rows}))


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


def said(
    sides: tuple[Subject, Subject], origins: tuple[Origin, Origin], given: Inputs, number: int
) -> tuple[Section, str]:
    """What both models say next, and by which components and paths; what they say in a line too."""
    both = [lens(side.graph, side.inputs(given), order=0, tokenizer=side.tokenizer) for side in sides]
    if both[0].features:
        return _features(sides, origins, given, Wording.of(sides[0], given, number, both[0]))
    before, after = (_last(view).double().log_softmax(-1) for view in both)
    top = [*before.topk(SAID).indices.tolist(), *after.topk(SAID).indices.tolist()]
    words = Wording.of(sides[0], given, number, both[0])
    p, q = before.exp(), after.exp()
    kept: Sequence[int] = sorted(dict.fromkeys(top), key=lambda index: -float(p[index] + q[index]))
    rows = tuple((words.said(index), fixed(float(p[index])), fixed(float(q[index]))) for index in kept)
    bars = tuple(float(q[index] - p[index]) for index in kept)
    kl = float(torch.where(p > 0, p * (before - after), 0.0).sum())
    table = Table((words.output, "p_a", "p_b"), rows, bars=bars)
    first, second = (words.said(int(row.argmax())) for row in (before, after))
    line = f"After {words.given} they say {first} and {second}; KL(a ‖ b) is {kl:.3g} nats."
    note = "What both say next; bars are changes."
    commands = tuple(origin.at(given).again("lens", "--order", 0, order=0) for origin in origins)
    inner = (_made(sides, origins, given),)
    return Section(words.title, note, tables=(table,), after=line[:-1], commands=commands, inner=inner), line


def _features(
    sides: tuple[Subject, Subject], origins: tuple[Origin, Origin], given: Inputs, words: Wording
) -> tuple[Section, str]:
    """How far the features are from each other that two encoders give."""
    compared = compare(sides[0].graph, sides[1].graph, sides[0].inputs(given), tokenizer=sides[0].tokenizer)
    (row,) = compared.prompts.rows
    cosine = fixed(row.cosine, 4)
    table = Table(("distance", "cosine"), ((f"{row.distance:.4g}", cosine),))
    line = f"On {words.given} their features are {row.distance:.3g} of their length apart, with cosine {cosine}."
    note = "How far apart the features are that both give at the last position: ‖b − a‖ / ‖a‖, and the cosine."
    commands, inner = (_compared(*origins, given),), (_made(sides, origins, given),)
    return Section(words.title, note, tables=(table,), after=line[:-1], commands=commands, inner=inner), line


def _made(sides: tuple[Subject, Subject], origins: tuple[Origin, Origin], given: Inputs) -> Section:
    """The components and paths that make the change."""
    one, other = sides
    compared = compare(one.graph, other.graph, one.inputs(given), tokenizer=one.tokenizer)
    tables = [
        _largest(part, name, "change" if part is compared.paths else "direct")
        for name, part in (("by component", compared.components), ("by path", compared.paths))
    ]
    (row,) = compared.prompts.rows
    note = (
        f"The target is {row.target}: {row.value[0]:.4g} in the first model and {row.value[1]:.4g} in the second. What "
        f"components give it directly, whose changes add up, and along all paths that pass them; then single paths: "
        f"{compared.paths.note.partition(';')[0]}."
    )
    return Section("What makes the change", note, tables=tuple(tables), commands=(_compared(*origins, given),))


def _largest(result: Result, caption: str, by: str) -> Table:
    """The rows that a result shows first, with bars of a column."""
    columns, rows = result.columns(), result.shown().rows(result.columns())[:ROWS]
    cells = tuple(tuple(cell_text(columns[name][row]) for name in columns) for row in rows)
    return Table(tuple(columns), cells, bars=tuple(float(str(columns[by][row])) for row in rows), caption=caption)


def _compared(origin: Origin, other: Origin, given: Inputs) -> str:
    """What compares two models on a prompt."""
    read = origin.at(given)
    if other.model is not None and other.options == origin.options:
        command = read.shell("compare", other=other.model)
        if command is not None:
            return command
    return read.python("compare", of=f"{origin.loaded}, {other.loaded}")


def _last(view: Lens) -> torch.Tensor:
    return view.output[0] if view.output.dim() == 2 else view.output[0, -1]
