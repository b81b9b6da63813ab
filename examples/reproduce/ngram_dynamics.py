"""When does a model learn its n-grams, and does that go along with its loss?

    python examples/reproduce/ngram_dynamics.py                                  # trains twice, about 5 minutes
    python examples/reproduce/ngram_dynamics.py --model step-1000 --model step-2000 --model final

The paper followed the jet bi-grams of OLMo over its pre-training: the top bi-grams settle early, and the share of the
final ones rises throughout. Here a small GPT-2 is trained from random weights on the docstrings of Python's standard
library, with a checkpoint at 0, 1, 2, 3, 5, 8, 14, ... 600 updates, once for each of two seeds; or checkpoints that
you name, in the order of training, are followed (folders or Hugging Face ids that share a tokenizer).

Measured at each checkpoint, without data but for the loss and the corpus:
  loss        cross-entropy on held-out files, nats per token, each predicted from up to 128 tokens before it
  hit_ratio   share of the checkpoint's 1,000 most probable bi-grams a b, by P(b | a) over the whole vocabulary, that
              are among the last checkpoint's 1,000; a table that knew nothing would have 0.001
  mass        the probability that a checkpoint gives to those of the last one, per context that occurs in them
  entropy     of P(b | a), nats, mean over the vocabulary
  corpus_hit  share of the 5 most frequent tokens after a context in the training texts that are among the table's 5
              most probable (`jetgraph.ngram_agreement`), mean over the contexts that occur 20 times or more; beside it
              `model_hit`, the same for the model's own output after that one token
Each is given for two tables: the direct path (embedding and unembedding alone) and the mean over the paths through one
MLP. The figure has the number of updates on every horizontal axis (logarithmic, 0 at the left), a thin line for each
seed and a thick one for their mean.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from corpora import CONTEXT, docstrings, token_row
from experiment import BLUE, GREEN, ORANGE, Row, command_line, opened, run, write_figure, write_table
from matplotlib.figure import Figure
from torch import Tensor
from train_demo_model import Settings, checkpoint_steps, gpt2_config, mean_loss, train
from transformers import PreTrainedModel

import jetgraph as jg
from jetgraph.applications.subject import subject
from jetgraph.loading import Loaded

PATHS = {"embed > logits": BLUE, "embed > *.mlp > logits": ORANGE}
"""The tables that are followed, and their colours."""


@dataclass(frozen=True)
class Run:
    """The checkpoints of one training, by name; each function gives the model as it was then."""

    label: str
    steps: tuple[int | str, ...]
    models: tuple[Callable[[], jg.ResidualGraph], ...]
    losses: tuple[float, ...]


def trained(loaded: Loaded, tokens: Tensor, held_out: Tensor, steps: int, number: int, seed: int) -> Run:
    """Train a small GPT-2 from random weights with a model's vocabulary, and keep copies of its weights on the way."""
    settings = replace(Settings(), steps=steps, seed=seed, threads=torch.get_num_threads())
    kept: list[tuple[int, float, dict[str, Tensor]]] = []

    def keep(step: int, model: PreTrainedModel) -> None:
        loss = mean_loss(model.eval(), held_out, settings.context)
        kept.append((step, loss, {name: value.clone() for name, value in model.state_dict().items()}))
        model.train()

    config = gpt2_config(loaded.config.vocab_size, settings.context)
    model = train(config, tokens, settings, keep, checkpoint_steps(steps, number))
    # A graph shares its model's weights, so one trace serves every checkpoint.
    graph = subject(Loaded(loaded.name, model, loaded.tokenizer)).graph

    def at(weights: dict[str, Tensor]) -> jg.ResidualGraph:
        model.load_state_dict(weights)
        return graph

    models = tuple(partial(at, weights) for _, _, weights in kept)
    return Run(f"seed {seed}", tuple(step for step, _, _ in kept), models, tuple(loss for _, loss, _ in kept))


def given(names: Sequence[str], held_out: Tensor) -> Run:
    """Checkpoints by name, in the order of training; one at a time is in memory."""
    losses = [mean_loss(opened([name])[1], held_out, CONTEXT, batch=8) for name in names]
    models = tuple(lambda name=name: subject(name).graph for name in names)
    return Run("given", tuple(Path(name).name for name in names), models, tuple(losses))


def follow(training: Run, tokenizer: object, corpus: Tensor, top: int) -> list[Row]:
    """One row for each table and checkpoint of a training."""
    agreements = [
        jg.ngram_agreement(model(), corpus, path=list(PATHS), top=(5,), resamples=1, tokenizer=tokenizer)
        for model in training.models
    ]
    rows: list[Row] = []
    for path in PATHS:
        found = jg.trajectory(training.models, path=path, top=top, names=training.steps, tokenizer=tokenizer)
        for i, step in enumerate(training.steps):
            rows.append(
                {
                    "run": training.label,
                    "path": path,
                    "step": step,
                    "loss": training.losses[i],
                    "hit_ratio": found.hit_ratio[i],
                    "mass": found.mass[i],
                    "entropy": found.entropy[i],
                    "corpus_hit": agreements[i].value(path, "hit@5")[0],
                    "model_hit": agreements[i].value("model", "hit@5")[0],
                }
            )
    return rows


def draw(rows: Sequence[Row], top: int) -> Figure:
    """Loss, hit ratio, mass and agreement with the corpus over the updates."""
    steps = list(dict.fromkeys(row["step"] for row in rows))
    places = np.log10(1 + np.array(steps, dtype=float)) if not isinstance(steps[0], str) else np.arange(len(steps))
    figure = Figure(figsize=(10.5, 7), layout="constrained")
    panels = (
        ("loss", "held-out loss, nats per token"),
        ("hit_ratio", f"hit ratio: share of the top {top:,} bi-grams\nthat are the last checkpoint's"),
        ("mass", f"mass: P of the last checkpoint's\ntop {top:,} bi-grams, per context"),
        ("corpus_hit", "share of the 5 most frequent next tokens\nof the training texts in the table's top 5"),
    )
    first = next(iter(PATHS))
    for axes, (name, label) in zip(figure.subplots(2, 2, sharex=True).flatten(), panels, strict=True):
        curves = [] if name == "loss" else [(path, name, colour, f"table of {path}") for path, colour in PATHS.items()]
        curves += [(first, "loss", GREEN, "the model")] if name == "loss" else []
        curves += [(first, "model_hit", GREEN, "the model, after one token")] if name == "corpus_hit" else []
        for path, key, colour, text in curves:
            chosen = [row for row in rows if row["path"] == path]
            lines = [
                [row[key] for row in chosen if row["run"] == one] for one in dict.fromkeys(row["run"] for row in chosen)
            ]
            for line in lines:
                axes.plot(places, line, color=colour, linewidth=0.7, alpha=0.5)
            axes.plot(places, np.mean(lines, axis=0), "o-", color=colour, markersize=4, label=text)
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        axes.set_xticks(places, [str(step) for step in steps], rotation=60, fontsize=8)
    for axes in figure.axes[2:]:
        axes.set_xlabel("checkpoint" if isinstance(steps[0], str) else "updates (log scale)")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line(__doc__ or "", "ngram_dynamics", "a checkpoint; give several, in the order of training")
    parser.add_argument("--steps", type=int, default=600, help="updates of each training (default: 600)")
    parser.add_argument("--checkpoints", type=int, default=14, help="of each training (default: 14)")
    parser.add_argument("--runs", type=int, default=2, help="trainings, each with a seed of its own (default: 2)")
    parser.add_argument("--top", type=int, default=1000, help="how many bi-grams are compared (default: 1000)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.steps, options.checkpoints, options.runs = 8, 4, 1
    loaded, _, tokenizer = opened(options.model)
    documents, held_out = docstrings(options.quick)
    corpus, apart = token_row(tokenizer, documents), token_row(tokenizer, held_out)
    seeds = range(options.seed, options.seed + options.runs)
    if options.model:
        runs = iter([given(options.model, apart)])
    else:
        runs = (trained(loaded, corpus, apart, options.steps, options.checkpoints, seed) for seed in seeds)
    rows: list[Row] = []
    for one in runs:
        # After each, so that one that is interrupted leaves what it has.
        rows += follow(one, tokenizer, corpus, options.top)
        write_table(options.output / "ngram_dynamics.csv", rows)
        write_figure(options.output / "ngram_dynamics.png", draw(rows, options.top))


if __name__ == "__main__":
    sys.exit(run(main))
