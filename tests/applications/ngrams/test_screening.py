"""Rows screened in bfloat16 against the table itself."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import jetgraph as jg
from jetgraph.applications.ngrams import (
    NGrams,
    ngrams,
    streaming,
)
from jetgraph.applications.ngrams.screening import Screen
from jetgraph.applications.ngrams.table import PathTable
from tests.applications.ngrams.tables import BY_NAME, EVERY, Lookup, StoppedError, peak, relocated, written
from tests.zoo import VOCAB


@pytest.fixture(scope="module")
def narrow() -> tuple[Lookup, jg.ResidualGraph]:
    """logits = W E[a] + b of 90 tokens and 8 numbers each."""
    model = Lookup(90, 8, bias=True).eval()
    return model, jg.trace(model, torch.zeros(2, 3, dtype=torch.long))


KINDS = ["random", "near ties", "levels", "huge", "sure", "tiny", "one column", "common part", "beyond bfloat16"]


def log_probabilities(model: Lookup, scores: str, identity: bool) -> Tensor:
    table = model.embed.weight.double() @ model.head.weight.double().T + model.head.bias.double()
    table = table.log_softmax(-1) if scores == "probability" else table
    return table if identity else table.fill_diagonal_(-math.inf)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_of_the_screen_hold(kind, narrow):
    model, graph = narrow
    written(model, kind)
    table, every = PathTable(graph), torch.arange(90)[:, None]
    exact = model.embed.weight.double() @ model.head.weight.double().T
    size = model.embed.weight.double().norm(dim=1) * model.head.weight.double().norm(dim=1).max()
    for scores, identity in itertools.product(("probability", "logit"), (True, False)):
        screen = Screen(table, scores, identity)
        found, error, largest = screen.product(every)
        centred = exact - exact.mean(1, keepdim=True) if scores == "probability" else exact
        if kind == "beyond bfloat16":
            assert not bool(error.isfinite().any())
        else:
            assert bool(((found.double() - centred).abs().amax(1) <= error).all())
            assert bool((error < 0.03 * size + 1e-3).all())
            assert bool((exact + model.head.bias.double()).abs().amax(1).le(largest * (1 + 1e-6)).all())
        highest = log_probabilities(model, scores, identity).amax(1)
        lower, upper = screen.bounds(every)
        assert not bool(((upper < highest) | (lower > highest)).any())
        if kind == "random":
            assert float((upper - lower).max()) < 1


@torch.no_grad()
@pytest.mark.parametrize("rounded", ["unembedding", "value", "logit"])
def test_the_bound_is_reached(rounded, narrow):
    """Where all roundings go one way, they add up to nearly all that is allowed for."""
    model, graph = narrow
    written(model, "tiny")
    # A little less than halfway, up from 1 and down from -1: both are rounded down, and their sum is small.
    half = 2.0**-8 - 2.0**-16
    worst = torch.tensor([1 + half, -1 - 2.0**-7 + half] * 4)
    with torch.no_grad():
        model.embed.weight.copy_(worst if rounded == "value" else torch.ones(8))
        model.head.weight.copy_(worst if rounded == "unembedding" else torch.ones(8))
        if rounded == "logit":
            model.head.weight.copy_(torch.tensor([1, half, 0, 0, 0, 0, 0, 0]))
    found, error, _ = Screen(PathTable(graph), "logit", True).product(torch.arange(90)[:, None])
    exact = model.embed.weight.double() @ model.head.weight.double().T
    distance = (found.double() - exact).abs().amax(1)
    assert bool((distance <= error).all())
    assert bool((distance >= 0.9 * error).all())


def assert_same(found: NGrams, expected: NGrams) -> None:
    """The same n-grams wherever the scores of neighbours differ by more than float32 rounds."""
    assert len(found) == len(expected)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-6, atol=1e-6)
    ids = [torch.cat([one.contexts, one.following[:, None]], 1) for one in (found, expected)]
    assert len(ids[0].unique(dim=0)) == len(found)
    scores = expected.scores.double()
    apart = (scores[:-1] - scores[1:]) > 4e-6 * scores[:-1].abs()
    # Of the last one the next is not known.
    known = torch.cat([torch.tensor([True]), apart]) & torch.cat([apart, torch.tensor([False])])
    assert torch.equal(ids[0][known], ids[1][known])


@pytest.mark.parametrize("kind", KINDS)
def test_screened_ngrams_are_those_of_float32(kind, narrow, monkeypatch):
    model, graph = narrow
    written(model, kind)
    monkeypatch.setattr(streaming, "FEW", 3)
    for scores, identity in itertools.product(("probability", "logit"), (True, False)):
        for top, rows in ((1, None), (40, None), (7, [5, 88, 17, 3]), (100_000, [*range(0, 90, 7)])):
            options: dict[str, Any] = {"top": top, "first": rows, "scores": scores, "identity": identity}
            expected = ngrams(graph, **options)
            found = ngrams(graph, **options, screen="bf16", memory=2**17)
            assert_same(found, expected)
            if kind == "levels" and scores == "logit":
                # Sums of small integers are exact, so ties are ties, and broken by ids in whatever order rows come.
                assert torch.equal(found.contexts, expected.contexts)
                assert torch.equal(found.following, expected.following)


@pytest.fixture
def rescored(monkeypatch) -> list[int]:
    """Tokens of the contexts whose logits a table gives from now on."""
    seen: list[int] = []
    original = PathTable.logits

    def logits(self, contexts):
        seen.extend(contexts[:, -1].tolist())
        return original(self, contexts)

    monkeypatch.setattr(PathTable, "logits", logits)
    return seen


def test_few_rows_are_computed_anew(demo, rescored, narrow):
    expected = ngrams(demo, top=20)
    assert not rescored
    assert_same(ngrams(demo, top=20, screen="bf16"), expected)
    assert 1 <= len(rescored) == len(set(rescored)) < 60
    # Where the bound tells nothing, every row is, once.
    written(narrow[0], "near ties")
    rescored.clear()
    ngrams(narrow[1], top=20, screen="bf16")
    assert sorted(rescored) == list(range(90))
    # Where all are sure, the first of them are the top.
    written(narrow[0], "sure")
    rescored.clear()
    assert ngrams(narrow[1], top=20, screen="bf16").contexts[:, 0].tolist() == list(range(20))
    assert len(rescored) < 60


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt_post_norm", "gptj", "cohere"])
def test_screened_ngrams_of_models(name, traced):
    graph = traced(BY_NAME[name]).graph
    for path in ("embed > logits", ["embed > L0.mlp > logits", "embed > L1.mlp > logits"]):
        table = PathTable(graph, path)
        torch.testing.assert_close(table.decoding.decode(table.hidden(EVERY[:, None])), table.logits(EVERY[:, None]))
        assert_same(ngrams(graph, path, top=40, screen="bf16", memory=2**17), ngrams(graph, path, top=40))


def test_screened_skip_trigrams(traced, rescored):
    graph = traced(BY_NAME["gpt2"]).graph
    options: dict[str, Any] = {"n": 3, "top": 30, "identity": False, "second": [7, 3, 40]}
    expected = ngrams(graph, "embed > L0.attn.head1 > logits", **options)
    rescored.clear()
    found = ngrams(graph, "embed > L0.attn.head1 > logits", **options, screen="bf16", memory=2**17)
    assert_same(found, expected)
    assert len(rescored) < 3 * VOCAB


def test_screened_ngrams_in_float64(traced):
    graph = relocated(traced(BY_NAME["gptj"]).graph, torch.float64)
    assert ngrams(graph, screen="bf16").scores.dtype == torch.float64
    assert_same(ngrams(graph, screen="bf16"), ngrams(graph))


def test_interrupted_screens_go_on(traced, tmp_path, monkeypatch):
    graph = traced(BY_NAME["gpt2"]).graph
    options: dict[str, Any] = {"top": 5, "memory": 80_000, "screen": "bf16"}
    monkeypatch.setattr(streaming, "FEW", 2)
    whole = ngrams(graph, **options)
    original, seen = Screen.bounds, []

    def bounds(self, contexts):
        seen.append(contexts[:, 0].tolist())
        if len(seen) == 3 and stopping:
            raise StoppedError
        return original(self, contexts)

    monkeypatch.setattr(Screen, "bounds", bounds)
    stopping = True
    with pytest.raises(StoppedError):
        ngrams(graph, resume=tmp_path, **options)
    stopping = False
    again = ngrams(graph, resume=tmp_path, **options)
    assert seen[3] == seen[2]
    assert list(itertools.chain(*seen[:2], *seen[3:])) == list(range(VOCAB))
    assert torch.equal(again.contexts, whole.contexts)
    assert torch.equal(again.following, whole.following)
    assert torch.equal(again.scores, whole.scores)
    with pytest.raises(jg.InputError, match=r"screen"):
        ngrams(graph, resume=tmp_path, **{**options, "screen": None})


def test_memory_of_a_screen_is_bounded():
    graph = jg.trace(Lookup(1500, 8).eval(), torch.zeros(2, 3, dtype=torch.long))
    for memory in (2**20, 2**22):
        used = peak(lambda memory=memory: ngrams(graph, top=5, screen="bf16", memory=memory))
        assert memory / 8 < used < memory, (used, memory)
    with pytest.raises(jg.BudgetError, match=r"unembedding in bfloat16.* take memory=[0-9]+ or more"):
        ngrams(graph, screen="bf16", memory=2**16)


def test_screens_that_do_not_fit(traced):
    gpt2 = traced(BY_NAME["gpt2"]).graph
    for graph, options, words in (
        (gpt2, {"screen": "int8"}, "choose one of bf16, None"),
        (gpt2, {"per": "row"}, "the top of every row"),
        (relocated(gpt2, torch.bfloat16), {}, "this one is in torch.bfloat16"),
        (traced(BY_NAME["gemma2"]).graph, {}, "soft cap"),
    ):
        with pytest.raises(jg.InputError, match=words):
            ngrams(graph, **{"screen": "bf16", **options})


def test_a_product_that_is_worse_than_assumed_is_noticed(narrow, monkeypatch):
    written(narrow[0], "random")
    product = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out: out.copy_(product(a[:, :4], b[:4])))
    with pytest.raises(jg.JetGraphError, match="does not accumulate in float32"):
        ngrams(narrow[1], screen="bf16")
