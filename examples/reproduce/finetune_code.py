"""Which bi-grams does a model gain by fine-tuning on source code, and does the code really contain them?

    python examples/reproduce/finetune_code.py                                            # about 3 minutes
    python examples/reproduce/finetune_code.py --model BASE --tuned TUNED

The paper lists bi-grams that CodeLlama gained over Llama-2 (`**kwargs`, `Assertion` ...), picked by hand. Here the
bundled model, which was trained on docstrings and comments, is trained on for 400 updates on whole source files of
Python's standard library. A control is trained on for as long on the docstrings again, for any training changes
bi-grams. With --tuned two given models are compared, without a control.

Measured, with P(b | a) the table of a path over the whole vocabulary:
  loss        on held-out source files and held-out docstrings, nats per token
  distances   total variation between the tables of two models, mean over contexts: by path
  weights     relative change of a site's weights, |W' - W| / |W|: by site
  change      of ln P(b | a) from the base model to the tuned one, against the change of the logarithm of the frequency
              of b after a from the docstrings to the code (each count with 0.5 added): Spearman's correlation over all
              bi-grams that occur 20 times or more in both together, with 95 % bootstrap intervals over contexts a. It
              is 1 if the table has changed as the corpus has, and 0 if the two have nothing to do with each other
The picture: on the left the bi-grams whose probability rose and fell most, by the mean table of the direct path and the
paths through one MLP; in the middle the distance by path; on the right that correlation by path. `finetune_code.csv`
has a row for each model and path, `bigrams.csv` the bi-grams with their frequencies in both corpora, `sites_*.csv` the
weights, `losses.csv` the losses.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from corpora import Counts, docstrings, fine_tune, source_code, token_row, tuning_settings
from experiment import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    Row,
    bars,
    command_line,
    correlation,
    opened,
    run,
    write_figure,
    write_table,
)
from matplotlib.figure import Figure
from torch import Tensor
from train_demo_model import mean_loss

import jetgraph as jg
from jetgraph.applications.comparing import ModelDiff
from jetgraph.applications.readout import token_text
from jetgraph.applications.subject import subject
from jetgraph.loading import Loaded, load

LISTED = ("embed > logits", "embed > *.mlp > logits")
"""The paths whose mean table the list of bi-grams is of, as in the paper: all without attention, one site at most."""

LEAST = 20
"""Occurrences that a bi-gram needs to be compared."""


def log_table(graph: jg.ResidualGraph, path: str, contexts: Tensor, tokens: Tensor) -> np.ndarray:
    """ln P(b | a) for pairs of contexts and tokens, whose contexts are in order."""
    table, unique = jg.PathTable(graph, path), torch.unique(contexts)
    parts = []
    for rows, logits in table.chunks(unique[:, None]):
        here = (contexts >= rows[0, 0]) & (contexts <= rows[-1, 0])
        place = torch.searchsorted(rows[:, 0].contiguous(), contexts[here])
        parts.append(logits.double().log_softmax(-1)[place, tokens[here]])
    return torch.cat(parts).numpy()


def compare(
    base: Loaded, models: Mapping[str, Loaded], before: Counts, after: Counts, seed: int
) -> tuple[list[Row], dict[str, ModelDiff]]:
    """One row for each model and path, and what `jetgraph.diff` says of each model."""
    codes = np.union1d(before.codes, after.codes)
    codes = codes[before.number(codes) + after.number(codes) >= LEAST]
    contexts, tokens = torch.from_numpy(codes // before.vocabulary), torch.from_numpy(codes % before.vocabulary)
    change = after.log_frequency(codes) - before.log_frequency(codes)
    graph = subject(base).graph
    diffs: dict[str, ModelDiff] = {}
    rows: list[Row] = []
    for name, model in models.items():
        tuned = subject(model).graph
        diffs[name] = jg.diff(graph, tuned, paths=LISTED, top=50, tokenizer=base.tokenizer)
        for found in diffs[name].paths.rows:
            moved = log_table(tuned, found.path, contexts, tokens) - log_table(graph, found.path, contexts, tokens)
            agreement = correlation(codes // before.vocabulary, moved, change, seed)
            rows.append(
                {
                    "model": name,
                    "path": found.path.replace("^0", ""),
                    "total_variation": found.total_variation,
                    "jensen_shannon": found.jensen_shannon,
                    **agreement.columns("spearman"),
                    "bigrams": len(codes),
                }
            )
    return rows, diffs


def bigram_rows(name: str, found: ModelDiff, before: Counts, after: Counts) -> list[Row]:
    """The bi-grams that gained and lost most, with their frequencies in both corpora."""
    rows: list[Row] = []
    for kind, changes in (("gained", found.ngrams.gained), ("lost", found.ngrams.lost)):
        for one in changes:
            code = np.array([one.context[0] * before.vocabulary + one.token])
            rows.append(
                {
                    "model": name,
                    "kind": kind,
                    "context": token_text(found.ngrams.tokenizer, one.context[0]),
                    "token": token_text(found.ngrams.tokenizer, one.token),
                    "p_base": one.before,
                    "p_tuned": one.after,
                    "docstrings": float(before.number(code)[0] / max(1, before.contexts[one.context[0]])),
                    "code": float(after.number(code)[0] / max(1, after.contexts[one.context[0]])),
                }
            )
    return rows


def draw(rows: Sequence[Row], found: ModelDiff) -> Figure:
    """Bi-grams, distances and correlations."""
    figure = Figure(figsize=(14.5, 5.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.25, 1, 1])
    shown = (*found.ngrams.gained[:12], *reversed(found.ngrams.lost[:12]))
    left.barh(range(len(shown)), [one.change for one in shown], color=[BLUE if b.change > 0 else RED for b in shown])
    texts = [" → ".join(token_text(found.ngrams.tokenizer, i) for i in (one.context[0], one.token)) for one in shown]
    left.set_yticks(range(len(shown)), texts, fontsize=8, parse_math=False)
    left.set_xlabel("change of P(b | a), tuned − base; mean table of\nembed > logits and of the paths through one MLP")
    left.set_title("the 12 bi-grams a → b that gained and lost most", fontsize=10)
    paths = list(dict.fromkeys(str(row["path"]) for row in rows))
    colours = {"code": ORANGE, "control": GREY}
    for number, name in enumerate(dict.fromkeys(str(row["model"]) for row in rows)):
        chosen = [row for row in rows if row["model"] == name]
        places = np.arange(len(paths)) + 0.36 * (number - 0.5)
        colour, label = colours.get(name, BLUE), f"trained on: {'docstrings (control)' if name == 'control' else name}"
        middle.barh(places, [row["total_variation"] for row in chosen], 0.34, color=colour, label=label)
        centre, error = bars(chosen, "spearman")
        right.errorbar(centre, places, xerr=error, fmt="o", color=colour, label=label, capsize=3)
    for axes in (left, middle, right):
        axes.invert_yaxis()
        axes.grid(alpha=0.3, axis="x")
    for axes in (middle, right):
        axes.set_yticks(range(len(paths)), paths, fontsize=8)
    figure.legend(*middle.get_legend_handles_labels(), loc="outside lower right", ncols=2)
    middle.set_xlabel("total variation between the tables, mean over contexts")
    middle.set_title("how far a path's table has moved from the base", fontsize=10)
    right.axvline(0, color="black", linewidth=0.8)
    right.set_xlabel(
        "Spearman's ρ: change of ln P(b | a) against the change\nof the frequency of b after a, docstrings → code"
    )
    right.set_title("did it move as the corpus did? (95 % intervals)", fontsize=10)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line(__doc__ or "", "finetune_code", "the base model (default: the bundled GPT-2)")
    parser.add_argument("--tuned", metavar="NAME", help="a model fine-tuned from it; none is trained then")
    parser.add_argument("--steps", type=int, default=400, help="updates of fine-tuning (default: 400)")
    options = parser.parse_args(arguments)
    base, model, tokenizer = opened(options.model)
    texts, code = docstrings(options.quick), source_code(options.quick)
    corpora = {"docstrings": texts, "code": code}
    train, apart = ({name: token_row(tokenizer, part[i]) for name, part in corpora.items()} for i in (0, 1))
    settings = tuning_settings(model, 4 if options.quick else options.steps, options.seed)
    models: dict[str, Loaded] = {}
    if options.tuned:
        models["code"] = load(options.tuned)
    else:
        # They run the base model's code, so one trace serves all of them.
        graph = subject(base).graph
        for name, corpus in (("code", "code"), ("control", "docstrings")):
            tuned = fine_tune(model, train[corpus], settings)
            models[name] = Loaded(name, tuned, tokenizer, graph=graph.over(tuned))
    counts = [Counts(train[name], len(tokenizer)) for name in ("docstrings", "code")]
    table, diffs = compare(base, models, counts[0], counts[1], options.seed)
    every: dict[str, Any] = {"base": model, **{name: one.model for name, one in models.items()}}
    losses = [
        {"model": name, "held_out": corpus, "loss": mean_loss(one, row, settings.context, batch=16)}
        for name, one in every.items()
        for corpus, row in apart.items()
    ]
    bigrams = [row for name, found in diffs.items() for row in bigram_rows(name, found, *counts)]
    write_table(options.output / "finetune_code.csv", table)
    write_table(options.output / "losses.csv", losses)
    write_table(options.output / "bigrams.csv", bigrams)
    for name, found in diffs.items():
        found.sites.save(options.output / f"sites_{name}.csv")
        for kind in ("gained", "lost"):
            rows = [row for row in bigrams if (row["model"], row["kind"]) == (name, kind)]
            more, less = (sum(sign * (row["code"] - row["docstrings"]) > 0 for row in rows) for sign in (1, -1))
            print(
                f"{name}: of the {len(rows)} bi-grams that {kind} most, {more} are more frequent in the code, "
                f"{less} less, and {len(rows) - more - less} occur in neither"
            )
    write_figure(options.output / "finetune_code.png", draw(table, diffs["code"]))


if __name__ == "__main__":
    sys.exit(run(main))
