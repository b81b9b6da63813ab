"""What a report says of a model by itself: its structure, how many terms it has, what its weights know."""

from __future__ import annotations

import math
from typing import Any

import torch

from jetgraph.algebra.expansion import expand
from jetgraph.applications.ngrams import ngrams
from jetgraph.applications.ngrams.choosing import DIRECT, single_mlps
from jetgraph.applications.subject import Subject, is_vocabulary
from jetgraph.errors import big
from jetgraph.numbers import fixed
from jetgraph.reporting.again import Name, Origin
from jetgraph.views.report import Section, Table
from jetgraph.views.tree import of_parameters

ORDERS = (0, 1, 2)
"""Orders whose number of terms is told."""

CELLS = 2**25
"""The most cells of a table of n-grams that are looked at for each path, twice; of larger ones, some rows."""

PATHS = 5
"""The most paths whose n-grams are told."""

TOP = 8
"""N-grams of each path."""


def structure(subject: Subject, origin: Origin) -> Section:
    """The residual structure, and how far the trace is the model."""
    graph = subject.graph
    weights = graph.traced.tensors.values()
    types = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights}))
    return Section(
        "Structure",
        "Residual joins, the branches that add to the stream, and the module that computes each: read off the traced "
        "graph, without knowing the architecture.",
        text=str(graph),
        after=f"parameters: {of_parameters(subject.parameters, graph.traced.parameters, f'({types})')}",
        commands=(origin.shell("inspect") or f"print({origin.graph})",),
    )


def counts(subject: Subject, origin: Origin) -> Section:
    """The number of terms by recipe and order."""
    rows = []
    for recipe in ("exhaustive", "components"):
        numbers = [expand(subject.graph, order, recipe=recipe).count() for order in ORDERS]
        rows.append((recipe, *map(big, numbers)))
    return Section(
        "How many terms",
        "A term is a path from a source to the output with an order at each site. Counted exactly, without listing "
        "them: exhaustive takes a jet at every site, components takes every branch as it is.",
        tables=(Table(("recipe", *(f"order {order}" for order in ORDERS)), tuple(rows)),),
        commands=(origin.shell("inspect") or f"print(jg.expand({origin.graph}, order=1))",),
    )


def bigrams(subject: Subject, origin: Origin) -> Section | None:
    """The bi-grams of which single paths say most; None of what is no language model, or has no such paths.

    By what a token changes against the mean row, since by probability alone each path has few next tokens that follow
    nearly all others.
    """
    graph = subject.graph
    size = graph.traced.output.meta["shape"][-1]
    if subject.tokenizer is None or not isinstance(size, int) or not is_vocabulary(graph, size, subject.tokenizer):
        return None
    if not any(source.alias == "embed" for source in graph.outline.sources):
        return None
    mlps = single_mlps(graph)
    chosen = [mlps[round(place * (len(mlps) - 1) / (PATHS - 2))] for place in range(PATHS - 1)] if mlps else []
    known = min(size, len(subject.tokenizer))
    rows = None if known * size <= CELLS else torch.linspace(0, known - 1, max(1, CELLS // size)).long().tolist()
    tables, commands = [], []
    for path in dict.fromkeys((DIRECT, *chosen)):
        asked: dict[str, Any] = {"path": path, "top": TOP, "scores": "pmi", "identity": False}
        columns = ngrams(graph, first=rows, tokenizer=subject.tokenizer, **asked).columns()
        # Information is at its most in each row; how probable it is tells rows apart.
        bars = tuple(float(str(p)) for p in columns["probability"])
        cells = zip(columns["token"], columns["next"], bars, columns["pmi"], strict=True)
        told = tuple((str(token), str(following), fixed(p), f"{pmi:.3f}") for token, following, p, pmi in cells)
        if not told:
            continue
        tables.append(Table(("token", "next", "probability", "pmi"), told, bars=bars, caption=path))
        arguments = asked | ({} if rows is None else {"first": Name("rows")})
        options = ("--path", path, "--top", TOP, "--scores", "pmi", "--no-identity")
        command = origin.again("ngrams", *options, **arguments) if rows is None else None
        commands.append(command or origin.python("ngrams", **arguments))
    if not tables:
        return None
    number = known if rows is None else len(rows)
    looked = "all tokens" if rows is None else f"{len(rows):,} of {known:,} tokens, evenly spread"
    made = f"rows = torch.linspace(0, {known - 1}, {len(rows or ())}).long().tolist()"
    return Section(
        "What the weights know without context",
        "The next tokens of which single paths say most, from the weights alone: no text is read. pmi is the log of "
        "the probability less that of its mean over all contexts, in nats: what the token before changes. A path "
        f"through one MLP tells what that MLP has stored. Contexts: {looked}; a token that follows itself is left out, "
        f"and so is what stays below a probability of 0.1. A pmi of {math.log(number):.3f}, the log of the number of "
        "contexts, is as large as it can be: that next token follows one context alone.",
        tables=tuple(tables),
        commands=tuple(commands) if rows is None else ("import torch", made, *commands),
    )
