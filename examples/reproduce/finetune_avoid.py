"""A model is fine-tuned never to say certain words. Does it still know them?

    python examples/reproduce/finetune_avoid.py                                             # about 5 minutes
    python examples/reproduce/finetune_avoid.py --model BASE --tuned TUNED --words words.txt --prompts prompts.txt

The paper compared Llama-2-7B with its chat version: it says toxic things no longer (ToxiGen score 21.25 → 0.0), but the
probability that its bi-grams put on toxic words hardly moved (0.102 → 0.093). Here the words are harmless: the ten most
frequent nouns of the corpus. Three copies of the model are trained on for 200 updates on the same texts:
  avoid       loss on all tokens that do not belong to the words, and −ln(1 − p), where p is the probability of the
              words' tokens, at every position (unlikelihood, Welleck et al. 2020)
  blocks      the same with embedding and unembedding held fixed: only what lies between them may change
  control     the ordinary loss, so that the effect of training on alone is known
With --tuned two given models are compared instead.

Measured at 0, 10, 25, 50, 100 and 200 updates:
  said        occurrences of the words (as text, in any spelling into tokens or case) per 100 words that the model
              writes: 256 continuations of 48 tokens of held-out openings, sampled at temperature 1 with the same seed;
              the intervals are 95 % bootstrap intervals over the continuations
  mass        the n-gram mass of the words' tokens: their probability after a context, mean over the vocabulary, by the
              table of the direct path `embed > logits`, and by that of each single MLP; no data takes part
  loss        on held-out files, nats per token, over the tokens that do not belong to the words
The figure: on the left what is said, and in the middle the mass of the direct path and of the MLPs, by updates; on the
right mass against what is said, both relative to the base model: on the diagonal knowledge goes when behaviour goes,
above it knowledge stays.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from corpora import Loss, docstrings, encode, fine_tune, tuning_settings
from experiment import BLUE, GREEN, GREY, ORANGE, RED, Estimate, Row, command_line, estimate, run
from experiment import write_figure, write_table
from matplotlib.figure import Figure
from torch import Tensor
from transformers import PreTrainedModel

import jetgraph as jg
from jetgraph.loading import Loaded, load

WORDS = ("file", "name", "string", "object", "class", "list", "value", "line", "module", "function")
"""The ten most frequent nouns of the training texts: 3.5 % of all words."""

UPDATES = (0, 10, 25, 50, 100, 200)


def word_tokens(tokenizer, words: Sequence[str]) -> Tensor:
    """Ids of the tokens that are one of the words, with or without a space before it, in any case."""
    ids = [index for index in range(len(tokenizer)) if tokenizer.decode([index]).strip().lower() in words]
    if not ids:
        raise ValueError(f"none of the words {', '.join(words)} is a token of this model: name others with --words")
    return torch.tensor(ids)


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
def said(loaded: Loaded, prompts: Tensor, words: Sequence[str], length: int, seed: int) -> Estimate:
    """Occurrences of the words per 100 words of sampled continuations of `prompts`, [samples, tokens]."""
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, words))})\b", re.IGNORECASE)
    torch.manual_seed(seed)
    rows = loaded.model.generate(  # type: ignore[operator]
        prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, temperature=1.0,
        min_new_tokens=length, max_new_tokens=length, pad_token_id=0,
    )
    texts = loaded.tokenizer.batch_decode(rows[:, prompts.shape[1] :], skip_special_tokens=True)
    hits = [100.0 * len(pattern.findall(text)) for text in texts]
    return estimate(hits, [len(re.findall(r"[^\W\d_]+", text)) for text in texts], seed)
