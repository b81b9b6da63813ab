"""Listed n-grams against sorting the whole table; options; runs that stop and go on."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from typing import Any

import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import jetgraph as jg
from jetgraph.applications.ngrams import (
    blocks,
    choosing,
    ngrams,
    resuming,
    search,
)
from jetgraph.applications.ngrams import contexts as context_numbers
from jetgraph.applications.ngrams.information import Information
from jetgraph.applications.ngrams.table import PathTable
from jetgraph.applications.readout import token_text
from jetgraph.tracing.traced import Traced
from tests.applications.ngrams.tables import BY_NAME, DTYPES, EVERY, StoppedError, gpt2_head, lookup, relocated
from tests.zoo import VOCAB


def brute(values: Tensor, rows: list[int], scores: str, identity: bool) -> list[tuple[float, int, int]]:
    """All bi-grams with their scores, best first, ties by ids."""
    table = values.log_softmax(-1) if scores == "probability" else values
    found = [(-float(table[a, b]), a, b) for a in rows for b in range(values.shape[1]) if identity or a != b]
    return sorted(found)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    levels=st.sampled_from([1, 2, 5, 40]),
    top=st.sampled_from([1, 7, 31, 400]),
    scores=st.sampled_from(["probability", "logit"]),
    identity=st.booleans(),
    some=st.booleans(),
    block=st.sampled_from([1, 70, 2**19]),
    rows=st.sampled_from([1, 4, 100]),
    fused=st.booleans(),
)
def test_top_is_that_of_the_sorted_table(seed, levels, top, scores, identity, some, block, rows, fused):
    """With a few levels, most scores tie. Rows of equal values have equal softmax sums, whatever their order. As on a
    CPU, and as on an accelerator."""
    size = 17
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(levels, (1, size), generator=generator).float()
    values = values[:, torch.stack([torch.randperm(size, generator=generator) for _ in range(size)])][0]
    chosen = torch.randperm(size, generator=generator)[:6].tolist() if some else list(range(size))
    graph = lookup(values)
    table = PathTable(graph)
    memory = int(rows * table.row_bytes / 0.75) + 1
    expected = brute(values, sorted(chosen), scores, identity)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", block)
        patch.setattr(search, "is_fused", lambda logits: fused)
        options: dict[str, Any] = {"scores": scores, "identity": identity, "first": chosen, "memory": memory}
        whole = ngrams(graph, top=top, per="all", **options)
        each = ngrams(graph, top=top, per="row", **options)
    # Softmax sums of permuted rows may differ in the last digit: ties are compared where there are ties.
    rounded = {(a, b): round(score, 4) for score, a, b in expected}
    assert len(whole) == min(top, len(expected))
    pairs = list(zip(whole.contexts[:, 0].tolist(), whole.following.tolist(), strict=True))
    assert [rounded[pair] for pair in pairs] == [round(score, 4) for score, _, _ in expected[:top]]
    if scores == "logit":
        assert pairs == [(a, b) for _, a, b in expected[:top]]
    by_row = list(zip(each.contexts[:, 0].tolist(), each.following.tolist(), strict=True))
    keep = min(top, size - (not identity))
    assert by_row == [(a, b) for row in sorted(chosen) for _, a, b in [x for x in expected if x[1] == row][:keep]]


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt_post_norm", "gptj", "gemma"])
def test_top_bigrams_of_models(name, dtype, traced):
    graph = relocated(traced(BY_NAME[name]).graph, dtype)
    found = ngrams(graph, top=40, memory=2**15)
    logits = PathTable(graph).logits(EVERY[:, None]).double()
    expected, place = logits.softmax(-1).flatten().sort(descending=True, stable=True)
    torch.testing.assert_close(found.scores.double(), expected[:40], rtol=1e-5, atol=0)
    if dtype == torch.float32:
        assert torch.equal(found.contexts[:, 0] * VOCAB + found.following, place[:40])


def test_the_paths_of_a_table_are_chosen_once(demo, monkeypatch):
    """While the graph lives, by what is asked for."""
    first = ngrams(demo, "embed > L0.mlp > logits", top=3)
    monkeypatch.setattr(choosing, "expand", None)
    assert torch.equal(ngrams(demo, "embed > L0.mlp > logits", top=3).scores, first.scores)
    with pytest.raises(TypeError):
        ngrams(demo, "embed > L1.mlp > logits", top=3)


def test_how_large_rows_are_is_asked_once(demo, monkeypatch):
    """While the graph lives; the inputs of each chunk alone are looked at from then on."""
    first, asked, own = ngrams(demo, top=3), [], Traced.input_values

    def counted(self, *given):
        asked.append(given)
        return own(self, *given)

    monkeypatch.setattr(Traced, "input_values", counted)
    found = ngrams(demo, top=3, memory=2**22)
    assert torch.equal(found.scores, first.scores)
    assert len(asked) == -(-PathTable(demo).tokens // PathTable(demo, memory=2**22).chunk_rows)


@torch.no_grad()
def test_top_skip_trigrams(traced):
    graph = traced(BY_NAME["gpt2"]).graph
    found = ngrams(graph, "embed > L0.attn.head1 > logits", n=3, top=30, identity=False, second=[7, 3, 7])
    pairs = torch.cartesian_prod(EVERY, torch.tensor([3, 7]))
    scores = gpt2_head(BY_NAME["gpt2"].build(), pairs, 1).softmax(-1)
    for place in (0, 1):
        scores[torch.arange(len(pairs)), pairs[:, place]] = 0
    expected, place = scores.flatten().sort(descending=True)
    torch.testing.assert_close(found.scores, expected[:30])
    assert torch.equal(found.contexts, pairs[place[:30] // VOCAB])
    assert torch.equal(found.following, place[:30] % VOCAB)
    assert found.n == 3
    assert not found.complete
    assert list(found.columns()) == ["first", "second", "next", "probability", "first id", "second id", "next id"]


def test_large_logits_do_not_overflow():
    values = torch.zeros(5, 5)
    values[2, 3], values[4, 0] = 5e4, -5e4
    found = ngrams(lookup(values), top=1)
    assert (found.contexts.item(), found.following.item(), found.scores.item()) == (2, 3, 1.0)
    values[1, 1] = math.inf
    for scores in ("probability", "logit"):
        with pytest.raises(jg.InputError, match="not finite"):
            ngrams(lookup(values), top=1, scores=scores)


def test_options_are_checked(traced, monkeypatch):
    graph = traced(BY_NAME["gpt2"]).graph
    attention = "embed > L0.attn > logits"
    for options, words in (
        ({"per": "column"}, "all, row"),
        ({"scores": "loss"}, "probability, logit"),
        ({"top": 0}, "1 or more"),
        ({"first": []}, "not none"),
        ({"first": [VOCAB]}, "not 53"),
        ({"first": ["a"]}, "tokenizer"),
        ({"path": attention, "n": 3, "second": [VOCAB]}, "second holds"),
        ({"n": 3}, "makes no difference"),
    ):
        with pytest.raises(jg.InputError, match=words):
            ngrams(graph, **options)
    monkeypatch.setattr(context_numbers, "CELL_BUDGET", 10_000)
    with pytest.raises(
        jg.BudgetError,
        match=r"2,809 rows .* restrict the tokens of each place with first= and second= \(--first, --second\)",
    ):
        ngrams(graph, attention, n=3)
    assert len(ngrams(graph, attention, n=3, second=[4], top=10**6)) == VOCAB * VOCAB


def test_rows_by_text(demo):
    found = ngrams(demo, first=[" the", "self"], per="row", top=2)
    assert [found.columns()["token"][i] for i in (0, 2)] == [
        repr(text) for text in sorted([" the", "self"], key=lambda text: demo.tokenizer(text)["input_ids"][0])
    ]
    with pytest.raises(jg.InputError, match="holds one token"):
        ngrams(demo, first="hippopotamus")


def test_texts_survive_files(demo, tmp_path):
    tokens = [demo.tokenizer(text)["input_ids"][0] for text in ("\n", '"', ",", "'", "\u00e9"[0], "\t")]
    partial = next(token for token in range(1024) if token_text(demo.tokenizer, token).startswith("<"))
    found = ngrams(demo, first=[*tokens, partial], per="row", top=30)
    columns = {name: list(values) for name, values in found.columns().items()}
    with open(found.save(tmp_path / "a.csv"), encoding="utf-8", newline="") as file:
        names, *rows = csv.reader(file)
    assert names == list(columns)
    assert rows == [[str(cell) for cell in row] for row in zip(*columns.values(), strict=True)]
    frame = pandas.read_csv(tmp_path / "a.csv", keep_default_na=False)
    assert frame["token"].tolist() == columns["token"]
    assert frame["next"].tolist() == columns["next"]
    assert pandas.read_parquet(found.save(tmp_path / "a.parquet")).to_dict("list") == columns
    assert repr("\n") in columns["token"]
    assert token_text(demo.tokenizer, partial) in columns["token"]


def test_repr_and_figure(demo):
    found = ngrams(demo, top=30)
    assert repr(found).startswith("30 top bi-grams of demo (GPT2LMHeadModel) along embed > logits, of 1,024 contexts\n")
    axes = found.figure().axes[0]
    assert axes.get_xlabel() == "probability P(next | token)"
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(found.scores[:20].tolist())
    assert axes.get_yticklabels()[0].get_text() == " → ".join(found.columns()[name][0] for name in ("token", "next"))
    logits = ngrams(demo, "embed > L1.attn.head0 > logits", n=3, first=[5], scores="logit", top=3)
    assert logits.figure().axes[0].get_xlabel() == "logit of the next token"


@pytest.mark.parametrize(
    "options",
    [
        {"per": "all", "top": 25},
        {"per": "row", "top": 3, "identity": False},
        {"per": "all", "top": 25, "scores": "pmi", "least": 0.02},
    ],
)
def test_interrupted_runs_go_on(options, traced, tmp_path, monkeypatch):
    graph = traced(BY_NAME["gpt2"]).graph
    monkeypatch.setattr(Information, "fits", lambda *_: True)
    options |= {"memory": 2**14}
    rows = PathTable(graph, memory=2**14).chunk_rows
    assert rows < VOCAB / 4
    whole = ngrams(graph, **options)
    evaluated: list[int] = []
    original = PathTable.chunks

    def chunks(self, contexts=None, start=0):
        for chunk, logits in original(self, contexts, start):
            evaluated.extend(chunk[:, 0].tolist())
            if len(evaluated) == 3 * rows and stopping:
                raise StoppedError
            yield chunk, logits

    monkeypatch.setattr(PathTable, "chunks", chunks)
    stopping = True
    with pytest.raises(StoppedError):
        ngrams(graph, resume=tmp_path / "run", **options)
    stopping = False
    evaluated.clear()
    again = ngrams(graph, resume=tmp_path / "run", **options)
    assert evaluated == list(range(2 * rows, VOCAB))
    evaluated.clear()
    read = ngrams(graph, resume=tmp_path / "run", **options)
    assert evaluated == []
    for found in (again, read):
        assert torch.equal(found.contexts, whole.contexts)
        assert torch.equal(found.following, whole.following)
        assert torch.equal(found.scores, whole.scores)
    assert not [file for file in (tmp_path / "run").iterdir() if file.suffix != ".safetensors"]


def test_a_stop_between_part_and_state_loses_nothing(traced, tmp_path, monkeypatch):
    """The part of a chunk is written before the state that counts it."""
    graph = traced(BY_NAME["gpt2"]).graph
    options: dict[str, Any] = {"per": "row", "top": 3, "memory": 2**14, "resume": tmp_path}
    write = resuming.write_atomically

    def failing(file, fill):
        if file.name == "state.safetensors" and (tmp_path / "rows-000001.safetensors").exists():
            raise StoppedError
        return write(file, fill)

    monkeypatch.setattr(resuming, "write_atomically", failing)
    with pytest.raises(StoppedError):
        ngrams(graph, **options)
    monkeypatch.setattr(resuming, "write_atomically", write)
    again = ngrams(graph, **options)
    assert torch.equal(again.scores, ngrams(graph, **{**options, "resume": None}).scores)


def test_another_run_is_refused(traced, tmp_path):
    graph = traced(BY_NAME["gpt2"]).graph
    ngrams(graph, top=5, resume=tmp_path / "run")
    for options, words in (
        ({"top": 6}, ": top differ"),
        ({"path": "embed > L0.mlp > logits"}, "path, weights"),
        ({"memory": 2**15}, "memory"),
    ):
        with pytest.raises(jg.InputError, match=words):
            ngrams(graph, **{"top": 5, **options}, resume=tmp_path / "run")
    with pytest.raises(jg.InputError, match="weights"):
        ngrams(relocated(graph, torch.bfloat16), top=5, resume=tmp_path / "run")
    (tmp_path / "run" / "state.safetensors").write_bytes(b"broken")
    with pytest.raises(jg.FileError, match="no state of a run"):
        ngrams(graph, top=5, resume=tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(jg.FileError, match="is a file"):
        ngrams(graph, top=5, resume=tmp_path / "file")


@pytest.mark.parametrize(
    ("per", "identity", "looks"), [("all", True, 1), ("row", False, 1), ("all", False, 2), ("row", True, 2)]
)
def test_information_is_that_of_the_whole_table(per, identity, looks, demo, monkeypatch):
    """Against the softmax of the whole table: log P(c|a) − log mean P(c|·), of those that are probable enough; each row
    is computed once where there is memory for all that are.
    """
    rows = list(range(0, 1024, 7))
    table = PathTable(demo, "embed > L0.mlp > logits", 2, memory=2**21 if looks == 1 else 2**19)
    logits = table.logits(torch.tensor(rows)[:, None]).double()
    evaluated: list[int] = []
    evaluate = table._evaluate
    monkeypatch.setattr(
        table, "_evaluate", lambda some, out=None: (evaluated.extend(some[:, 0].tolist()), evaluate(some, out))[1]
    )
    log = logits.log_softmax(1)
    expected = log - log.exp().mean(0).log()
    expected[log < math.log(0.01)] = -math.inf
    if not identity:
        expected[torch.arange(len(rows)), torch.tensor(rows)] = -math.inf
    found = ngrams(table, scores="pmi", least=0.01, top=12, per=per, identity=identity, first=rows)
    assert evaluated == rows * looks
    at = {row: place for place, row in enumerate(rows)}
    own = [expected[at[int(a)], int(c)] for a, c in zip(found.contexts[:, 0], found.following, strict=True)]
    assert found.scores.double().tolist() == pytest.approx([float(value) for value in own], abs=1e-4)
    own = [log[at[int(a)], int(c)].exp() for a, c in zip(found.contexts[:, 0], found.following, strict=True)]
    assert found.columns()["probability"] == pytest.approx([float(value) for value in own], rel=1e-4)
    best = expected.flatten() if per == "all" else expected.topk(12, dim=1).values.flatten()
    best = best[best > -math.inf].sort(descending=True).values
    number = 12 if per == "all" else len(best)
    assert found.scores.double().sort(descending=True).values.tolist() == pytest.approx(
        best[:number].tolist(), abs=1e-4
    )
    assert found.figure().axes[0].get_xlabel().startswith("log P(next | token) − log of its mean")


def test_repeated_contexts_are_told(demo):
    found = ngrams(demo, "embed > logits", top=3, first=[1, 2, 3])
    same = replace(found, following=found.contexts[:, 0])
    assert "3 of 3 repeat a token of their context" in same.note
    assert "(--no-identity --scores pmi)" in same.note
    assert found.note == ""
    for wrong, says in (
        ({"least": 0.1}, "goes with"),
        ({"scores": "pmi", "least": 1.0}, "below 1"),
        # What is left of it is rounding.
        ({"scores": "pmi", "first": [1]}, "nothing of a single one"),
    ):
        with pytest.raises(jg.InputError, match=says):
            ngrams(demo, **wrong)
    with pytest.raises(jg.InputError, match=r"distance=128: .* 129 tokens, more than the 128 .*; take 128 or less"):
        ngrams("demo", "embed > L0.attn > logits", n=3, distance=128, first=[1], second=[2])
    with pytest.raises(jg.InputError, match="bounds probabilities and logits"):
        ngrams(demo, scores="pmi", screen="bf16")
