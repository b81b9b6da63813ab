"""When does a model learn its n-grams, and does that go along with its loss?

    python examples/reproduce/ngram_dynamics.py                                  # trains 3 runs, about 8 minutes
    python examples/reproduce/ngram_dynamics.py --model step-1000 --model step-2000 --model final

The paper followed the jet bi-grams of OLMo over its pre-training: the top bi-grams settle early, and the share of the
final ones rises throughout. Here a small GPT-2 is trained from random weights on the docstrings of Python's standard
library, with a checkpoint at 0, 1, 2, 3, 6, 10, ... 1000 updates, once for each of three seeds; or checkpoints that you
name, in the order of training, are followed (folders or Hugging Face ids that share a tokenizer).

Measured at each checkpoint, without data but for the loss and the corpus:
  loss        cross-entropy on held-out files, nats per token, each predicted from up to 128 tokens before it
  hit_ratio   share of the checkpoint's 1,000 most probable bi-grams a b, by P(b | a) over the whole vocabulary, that
              are among the last checkpoint's 1,000; a table that knew nothing would have 0.001
  mass        the probability that a checkpoint gives to those of the last one, per context that occurs in them
  entropy     of P(b | a), nats, mean over the vocabulary
  corpus_hit  share of the 5 most probable tokens after a context that are also among the 5 most frequent in the
              training texts, mean over the contexts that occur there
Each is given for two tables: the direct path (embedding and unembedding alone) and the mean over the paths through one
MLP. The figure has the number of updates on every horizontal axis (logarithmic, 0 at the left), a thin line for each
seed and a thick one for their mean.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from corpora import Settings, checkpoint_steps, docstrings, encode, gpt2_config, mean_loss, train
from experiment import BLUE, GREY, ORANGE, Row, command_line, run, write_figure, write_table
from matplotlib.figure import Figure
from transformers import PreTrainedModel

import jetgraph as jg
from jetgraph.loading import load

PATHS = {"embed > logits": BLUE, "embed > *.mlp > logits": ORANGE}
"""The tables that are followed, and their colours."""


@dataclass(frozen=True)
class Run:
    """The checkpoints of one training."""

    seed: int
    steps: tuple[int, ...]
    models: tuple[PreTrainedModel, ...]


def train_run(tokens: torch.Tensor, vocabulary: int, steps: int, number: int, seed: int) -> Run:
    """A small GPT-2 from random weights, with copies of it on the way."""
    settings = replace(Settings(), steps=steps, seed=seed, threads=torch.get_num_threads())
    kept: list[tuple[int, PreTrainedModel]] = []
    train(
        gpt2_config(vocabulary, settings.context),
        tokens,
        settings,
        lambda step, model: kept.append((step, copy.deepcopy(model).eval())),
        checkpoint_steps(steps, number),
    )
    return Run(seed, tuple(step for step, _ in kept), tuple(model for _, model in kept))
