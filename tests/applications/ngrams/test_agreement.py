"""Agreement with a corpus against counting by hand."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pandas
import pytest
import torch
from torch import Tensor

import jetgraph as jg
from jetgraph.applications.ngrams import (
    NGrams,
    agreement,
    budget,
    ngram_agreement,
    ngrams,
)
from jetgraph.applications.ngrams.mass import prefix_free
from jetgraph.applications.ngrams.table import PathTable
from tests.applications.ngrams.tables import BY_NAME, EVERY, FORMULAS, lookup, relocated
from tests.zoo import VOCAB


def corpus(tokens: int = 4000) -> Tensor:
    """A Markov chain over 20 tokens with skewed transitions."""
    generator = np.random.default_rng(0)
    transitions = generator.dirichlet(np.full(20, 0.3), size=20)
    row = [0]
    for _ in range(tokens - 1):
        row.append(generator.choice(20, p=transitions[row[-1]]))
    return torch.tensor(row)


def by_hand(scores: Tensor, counts: np.ndarray, minimum: int, top: int) -> tuple[float, float]:
    hits, correlations = [], []
    for context in range(len(counts)):
        if counts[context].sum() < minimum:
            continue
        seen = [token for token in range(VOCAB) if counts[context, token] > 0]
        truth = sorted(seen, key=lambda token: (-counts[context, token], token))[:top]
        best = sorted(range(VOCAB), key=lambda token: (-float(scores[context, token]), token))[:top]
        hits.append(len(set(truth) & set(best)) / len(truth))
        ours = pandas.Series([float(scores[context, token]) for token in seen]).rank()
        theirs = pandas.Series([counts[context, token] for token in seen]).rank()
        if theirs.nunique() > 1:
            correlations.append(float(ours.corr(theirs)) if ours.nunique() > 1 else 0.0)
    return float(np.mean(hits)), float(np.mean(correlations))


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt_post_norm", "gptj", "gemma"])
def test_agreement_by_hand(name, traced):
    example = traced(BY_NAME[name])
    ids = corpus()
    found = ngram_agreement(example.graph, ids, top=(1, 5), minimum=50, resamples=50)
    assert found.paths == ("embed > logits", "embed > L0.mlp > logits", "embed > L1.mlp > logits", "unigram", "model")
    counts = np.zeros((VOCAB, VOCAB), dtype=int)
    for a, b in itertools.pairwise(ids.tolist()):
        counts[a, b] += 1
    model = BY_NAME[name].build()
    tables = {
        "embed > logits": FORMULAS[name](model, EVERY, False),
        "embed > L0.mlp > logits": FORMULAS[name](model, EVERY, True),
        "unigram": torch.tensor(counts.sum(0))[None].expand(VOCAB, -1),
        "model": model(EVERY[:, None]).logits[:, 0],
    }
    for path, scores in tables.items():
        for top in (1, 5):
            hit, correlation = by_hand(scores, counts, 50, top)
            assert found.value(path, f"hit@{top}")[0] == pytest.approx(hit)
        assert found.value(path, "spearman")[0] == pytest.approx(correlation)
    assert found.pairs == len(ids) - 1


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt_post_norm", "gptj", "gemma"])
def test_agreement_in_bfloat16(name, traced):
    """By the tables as they are in bfloat16, for its rounding makes ties that the formula breaks otherwise."""
    graph = relocated(traced(BY_NAME[name]).graph, torch.bfloat16)
    ids = corpus()
    found = ngram_agreement(graph, ids, path="embed > L0.mlp > logits", top=(5,), minimum=50, resamples=50)
    counts = np.zeros((VOCAB, VOCAB), dtype=int)
    for a, b in itertools.pairwise(ids.tolist()):
        counts[a, b] += 1
    scores = PathTable(graph, "embed > L0.mlp > logits").logits(EVERY[:, None])
    assert scores.dtype == torch.bfloat16
    hit, correlation = by_hand(scores, counts, 50, 5)
    # The last bit depends on how many contexts are computed at once.
    assert found.value("embed > L0.mlp > logits", "hit@5")[0] == pytest.approx(hit, abs=0.02)
    assert found.value("embed > L0.mlp > logits", "spearman")[0] == pytest.approx(correlation, abs=0.01)


def test_agreement_of_the_true_table_is_perfect():
    ids = corpus()
    counts = torch.zeros(VOCAB, VOCAB)
    for a, b in itertools.pairwise(ids.tolist()):
        counts[a, b] += 1
    found = ngram_agreement(lookup(counts), ids, path=["embed > logits"], resamples=20)
    for measure in found.measures:
        assert found.value("embed > logits", measure) == pytest.approx((1, 1, 1))
        assert found.value("unigram", measure)[2] < 1


def test_intervals_are_those_of_the_mean():
    """With many contexts, the percentile bootstrap comes to mean ± 1.96 standard errors."""
    values = torch.from_numpy(np.random.default_rng(1).exponential(size=(2, 900, 1)))
    values[0, 3, 0] = math.nan
    mean, low, high = agreement._intervals(values, 2000, 0)
    for path in (0, 1):
        known = values[path, :, 0][~values[path, :, 0].isnan()]
        error = 1.96 * float(known.std()) / math.sqrt(len(known))
        assert float(mean[path, 0]) == pytest.approx(float(known.mean()))
        assert float(known.mean() - low[path, 0]) == pytest.approx(error, rel=0.15)
        assert float(high[path, 0] - known.mean()) == pytest.approx(error, rel=0.15)
    again = agreement._intervals(values, 2000, 0)
    assert torch.equal(again[1], low)


def test_agreement_with_texts(demo):
    texts = ["raise an exception if the value is not valid", "return the value of the name"] * 10
    found = ngram_agreement(demo, texts, path=["embed > logits", "embed > *.mlp > logits"], minimum=10, resamples=10)
    lengths = [len(demo.tokenizer(text)["input_ids"]) for text in texts]
    assert found.pairs == sum(lengths) - len(texts)
    frame = found.to_dataframe()
    assert list(frame.columns) == ["measure", "path", "mean", "low", "high", "contexts"]
    assert ((frame["low"] <= frame["mean"] + 1e-9) & (frame["mean"] <= frame["high"] + 1e-9)).all()
    axes = found.figure().axes
    assert [one.get_xlabel() for one in axes][-2:] == ["hit ratio at 10 [share]", "Spearman rank correlation"]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == list(found.paths)
    with pytest.raises(jg.InputError, match="there are hit@1"):
        found.value("unigram", "hit@3")


def test_corpora_that_do_not_fit(demo, traced):
    graph = traced(BY_NAME["gpt2"]).graph
    for ids, words in (
        (torch.tensor([1, VOCAB]), "model knows 0 to 52"),
        (torch.tensor([1, 2]), "give more text"),
        (torch.tensor([0.5]), "token ids"),
        (torch.tensor([1]), "give more text"),
        ("text", "tokenizer"),
    ):
        with pytest.raises(jg.InputError, match=words):
            ngram_agreement(graph, ids)
    with pytest.raises(jg.InputError, match="1 or more"):
        ngram_agreement(graph, corpus(), top=())


def test_a_result_is_what_it_says(traced):
    found = ngrams(traced(BY_NAME["gpt2"]).graph, top=3)
    assert isinstance(found, NGrams)
    assert len(found) == 3
    assert found.columns()["token"][0].startswith("#")


def test_words_of_any_length_are_read_at_once():
    sequences = [(1, 2), (3,), (1,), (3, 1), (1, 2, 3), (2, 1)]
    assert prefix_free(sequences) == [(3,), (1,), (2, 1)]
    random = np.random.default_rng(0)
    for _ in range(50):
        some = [tuple(random.integers(0, 3, random.integers(1, 5)).tolist()) for _ in range(8)]
        every = dict.fromkeys(some)
        free = [one for one in every if not any(one[:length] in every for length in range(1, len(one)))]
        assert prefix_free(some) == free
    start = time.process_time()
    assert len(prefix_free([(1,) * 100_000, (2,) * 100_000])) == 2
    assert time.process_time() - start < 1


def test_results_that_no_memory_holds_are_refused(monkeypatch, demo):
    calls = [
        lambda: ngrams(demo.graph, top=10**9),
        lambda: ngrams(demo.graph, top=10**9, per="row"),
        lambda: jg.diff(demo.graph, demo.graph, top=10**9),
        lambda: jg.trajectory([demo.graph], top=10**9),
    ]
    monkeypatch.setattr(budget, "TOP_BUDGET", 2**20)
    for call in calls:
        with pytest.raises(jg.BudgetError, match=r"are [\d,]+ n-grams here, more than the 52,428 that a result"):
            call()


def test_positions_are_whole_numbers_of_a_model(demo):
    with pytest.raises(jg.InputError, match=r"distance=1\d+ does not fit: it is 1 to 2,147,483,648"):
        ngrams(demo.graph, "embed > L0.attn > logits", n=3, distance=10**23)
