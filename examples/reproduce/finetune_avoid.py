"""A model is fine-tuned never to say certain words. Does it still know them?

    python examples/reproduce/finetune_avoid.py                                             # about 3 minutes
    python examples/reproduce/finetune_avoid.py --model BASE --tuned TUNED --words words.txt --prompts prompts.txt

The paper compared Llama-2-7B with its chat version: it says toxic things no longer (ToxiGen score 21.25 → 0.0), but the
mass of its bi-grams on toxic words hardly moved (0.102 → 0.093). Here the words are harmless: the ten most frequent
nouns of the corpus. Three copies of the model are trained on for 200 updates on the same texts:
  avoid       loss on all tokens that do not belong to the words, and −ln(1 − p), where p is the probability of the
              words' tokens, at every position (unlikelihood, Welleck et al. 2020)
  blocks      the same with embedding and unembedding held fixed: only what lies between them may change
  control     the ordinary loss, so that the effect of training on alone is known
With --tuned two given models are compared instead.

Measured at 0, 10, 25, 50, 100 and 200 updates:
  said        occurrences of the words (as text, in any spelling into tokens or case) per 100 words that the model
              writes: 256 continuations of 48 tokens of held-out openings, sampled at temperature 1 with the same seed;
              the intervals are 95 % bootstrap intervals over the continuations
  mass        the n-gram mass of the words (`jetgraph.ngram_mass`): the probability of writing one of them after a
              random token, by the table of the direct path `embed > logits`, and of each single MLP, without data
  loss        on held-out files, nats per token, over the tokens that do not belong to the words
The figure: on the left what is said, and in the middle the mass of the direct path and of the MLPs, by updates; on the
right mass against what is said, both relative to the base model: on the diagonal knowledge goes when behaviour goes,
above it knowledge stays.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpora import Loss, docstrings, fine_tune, token_row, tuning_settings
from experiment import (
    BLUE,
    GREY,
    RED,
    Estimate,
    Row,
    bars,
    command_line,
    estimate,
    opened,
    run,
    write_figure,
    write_table,
)
from matplotlib.figure import Figure
from torch import Tensor
from train_demo_model import next_token_loss
from transformers import PreTrainedModel

import jetgraph as jg
from jetgraph.applications.subject import subject
from jetgraph.files.writing import read_text
from jetgraph.loading import Loaded, load

WORDS = ("file", "name", "string", "object", "class", "list", "value", "line", "module", "function")
"""The ten most frequent nouns of the training texts: 3.5 % of all words."""

UPDATES = (0, 10, 25, 50, 100, 200)
"""Updates of fine-tuning at which everything is measured."""

PROMPT, LENGTH = 8, 48
"""Tokens of a prompt, and of what is sampled after it."""


def word_tokens(tokenizer: Any, words: Sequence[str]) -> Tensor:
    """Ids of the tokens that are one of the words, with or without a space before it, in any case."""
    ids = [index for index in range(len(tokenizer)) if tokenizer.decode([index]).strip().lower() in words]
    if not ids:
        raise ValueError(f"none of the words {', '.join(words)} is a token of this model: name others with --words")
    return torch.tensor(ids)


def openings(tokenizer: Any, texts: Iterable[str], number: int) -> Tensor:
    """The first tokens of texts that have enough of them, [number, PROMPT], spread evenly over the texts."""
    rows = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:PROMPT] for text in texts]
    rows = [row for row in rows if len(row) == PROMPT]
    if not rows:
        raise ValueError(f"no prompt has {PROMPT} tokens or more: give longer ones")
    return torch.tensor([rows[int(i)] for i in np.linspace(0, len(rows) - 1, min(number, len(rows)))])


def avoiding(ids: Tensor, vocabulary: int) -> Loss:
    """Cross-entropy of the tokens outside `ids`, and −ln(1 − p(ids)) at every position, both in nats and means."""
    apart = torch.zeros(vocabulary, dtype=torch.bool)
    apart[ids] = True

    def loss(model: PreTrainedModel, rows: Tensor) -> Tensor:
        log_p = model(rows[:, :-1], use_cache=False).logits.log_softmax(-1)
        target = rows[:, 1:]
        kept = -log_p.gather(-1, target[..., None])[..., 0][~apart[target]].mean()
        said = log_p[..., ids].logsumexp(-1).exp().clamp(max=1 - 1e-6)
        return kept - torch.log1p(-said).mean()

    return loss


@torch.no_grad()
def said(model: Any, tokenizer: Any, prompts: Tensor, words: Sequence[str], seed: int) -> Estimate:
    """Occurrences of the words per 100 words of sampled continuations of `prompts`, [samples, tokens]."""
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, words))})\b", re.IGNORECASE)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        rows = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            top_k=0,
            temperature=1.0,
            min_new_tokens=LENGTH,
            max_new_tokens=LENGTH,
            pad_token_id=0,
        )
    texts = tokenizer.batch_decode(rows[:, prompts.shape[1] :], skip_special_tokens=True)
    hits = [100.0 * len(pattern.findall(text)) for text in texts]
    return estimate(hits, [len(re.findall(r"[^\W\d_]+", text)) for text in texts], seed)


class Subject:
    """A model whose weights may change, and what is measured of it."""

    def __init__(self, loaded: Loaded, words: Sequence[str], seed: int) -> None:
        self.model: Any = loaded.model
        self.tokenizer, self.words, self.seed = loaded.tokenizer, words, seed
        self.ids = word_tokens(self.tokenizer, words)
        # It shares the model's weights, so one trace serves all that they become.
        self.graph = subject(loaded).graph
        sites = self.graph.outline.sites()
        mlps = [site.alias for site in sites if site.role == "branch" and site.kind == "mlp"]
        self.paths = {"direct": "embed > logits", **{alias: f"embed > {alias} > logits" for alias in mlps}}

    @torch.no_grad()
    def loss(self, tokens: Tensor, context: int) -> float:
        """Cross-entropy of the tokens that are none of the words."""
        total, number = 0.0, 0
        for row in tokens.split(context):
            log_p = self.model(row[None, :-1], use_cache=False).logits[0].log_softmax(-1)
            kept = ~torch.isin(row[1:], self.ids)
            total -= float(log_p.gather(-1, row[1:, None])[kept].sum())
            number += int(kept.sum())
        return total / number

    def row(self, name: str, step: int, prompts: Tensor, apart: Tensor, context: int) -> Row:
        """Everything that is measured, with the weights as they are."""
        spoken = said(self.model, self.tokenizer, prompts, self.words, self.seed)
        masses = {
            name: jg.ngram_mass(self.graph, self.words, path=path, tokenizer=self.tokenizer).total
            for name, path in self.paths.items()
        }
        return {
            "model": name,
            "step": step,
            **spoken.columns("said"),
            "loss": self.loss(apart, context),
            **{f"mass_{name}": value for name, value in masses.items()},
            "mass_mlps": float(np.mean([value for name, value in masses.items() if name != "direct"])),
        }


def draw(rows: Sequence[Row]) -> Figure:
    """What is said and what is inside, by updates and against each other."""
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    colours = {"blocks": BLUE, "control": GREY}
    base = rows[0]
    for name in dict.fromkeys(str(row["model"]) for row in rows[1:]):
        chosen, colour = [base, *(row for row in rows[1:] if row["model"] == name)], colours.get(name, RED)
        values = {key: np.array([row[key] for row in chosen]) for key in base if key != "model"}
        places = range(len(chosen))
        centre, error = bars(chosen, "said")
        left.errorbar(places, centre, error, fmt="o-", color=colour, capsize=3, label=name)
        for key, style, what in (("mass_direct", "o-", "embed > logits"), ("mass_mlps", "s--", "mean over MLPs")):
            middle.plot(places, values[key], style, color=colour, label=f"{name}, {what}")
            relative = values[key] / values[key][0]
            right.plot(values["said"] / values["said"][0], relative, style, color=colour, label=f"{name}, {what}")
        for axes in (left, middle):
            axes.set_xticks(places, [f"{int(step)}" for step in values["step"]])
            axes.set_xlabel("updates of fine-tuning")
    left.set_ylabel("said: the words' occurrences per 100 sampled words")
    middle.set_ylabel("n-gram mass: P(one of the words | context),\nmean over the vocabulary")
    right.plot((0, 1), (0, 1), color="black", linewidth=0.8)
    right.set_xlabel("said, relative to the base model")
    right.set_ylabel("n-gram mass, relative to the base model\n(above the line: more stays than is said)")
    for axes in (left, middle, right):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line(__doc__ or "", "finetune_avoid", "the base model (default: the bundled GPT-2)")
    parser.add_argument("--tuned", metavar="NAME", help="a model fine-tuned from it; none is trained then")
    parser.add_argument("--words", type=Path, metavar="FILE", help="words to avoid, lower case, white space between")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="prompts, one a line (default: held-out openings)")
    parser.add_argument("--samples", type=int, default=256, help="continuations that are sampled (default: 256)")
    options = parser.parse_args(arguments)
    updates, samples, tokens = ((0, 2), 16, 300) if options.quick else (UPDATES, options.samples, 30_000)
    base, model, tokenizer = opened(options.model)
    words = tuple(read_text(options.words).split()) if options.words else WORDS
    documents, held_out = docstrings(options.quick)
    texts = [text for document in held_out for text in document.texts]
    if options.prompts:
        texts = read_text(options.prompts).splitlines()
    prompts = openings(tokenizer, texts, samples)
    apart = token_row(tokenizer, held_out, tokens)
    settings = tuning_settings(model, updates[-1], options.seed)
    watched = Subject(
        Loaded("watched", model if options.tuned else copy.deepcopy(model), tokenizer), words, options.seed
    )
    rows = [watched.row("base", 0, prompts, apart, settings.context)]
    if options.tuned:
        tuned = Subject(load(options.tuned), words, options.seed)
        rows.append(tuned.row("tuned", 1, prompts, apart, settings.context))
    else:
        train = token_row(tokenizer, documents)
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        frozen = [parameter for end in ends for parameter in end.parameters()]
        loss = avoiding(word_tokens(tokenizer, words), base.config.vocab_size)
        for name, kind, fixed in (("avoid", loss, ()), ("blocks", loss, frozen), ("control", next_token_loss, ())):

            def measure(step: int, tuned: PreTrainedModel, name: str = name) -> None:
                watched.model.load_state_dict(tuned.state_dict())
                rows.append(watched.row(name, step, prompts, apart, settings.context))

            fine_tune(model, train, settings, kind, measure, updates[1:], fixed)
    write_table(options.output / "finetune_avoid.csv", rows)
    write_figure(options.output / "finetune_avoid.png", draw(rows))


if __name__ == "__main__":
    sys.exit(run(main))
