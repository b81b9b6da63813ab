"""Estimates of jobs: what a few units say is what all of them take."""

import json
import pathlib
import time
from typing import Any

import pytest
import torch

import jetgraph as jg
from jetgraph.applications.lenses import corpora
from jetgraph.scale.shards import each
from tests.commands import invoke, succeed


def test_an_estimate_is_what_the_job_takes() -> None:
    done: list[int] = []

    def work(unit: int) -> dict[str, torch.Tensor]:
        done.append(unit)
        # The first units are slow, as code is made in them.
        time.sleep(0.03 if unit < 2 else 0.002)
        return {"x": torch.ones(4, 8) @ torch.ones(8, 16)}

    def job(number: int) -> int:
        first = each("one", number, work, dict)
        second = each("other", 1, work, dict)
        return len(first()) + len(second())

    start = time.perf_counter()
    assert job(200) == 201
    measured = time.perf_counter() - start
    done.clear()
    with jg.estimated(5) as estimate:
        job(200)
    assert len(done) < 41
    # A stage of one unit is done to be counted, and again to be timed where that is no matter.
    assert done[-2:] == [0, 0]
    assert done[1:] != sorted(done[1:])
    assert [(stage.name, stage.units) for stage in estimate.stages] == [("one", 200), ("other", 1)]
    assert [stage.flops for stage in estimate.stages] == [200 * 2 * 4 * 8 * 16, 2 * 4 * 8 * 16]
    assert [stage.kept for stage in estimate.stages] == [200 * 4 * 16 * 4, 4 * 16 * 4]
    assert estimate.memory > estimate.peak > 2**20
    done.clear()
    with jg.estimated(1e-4):
        each("slow", 1, work, dict)
    assert done == [0]
    # The machine may be busy in one of the two.
    assert measured / 3 < estimate.seconds < 3 * measured
    assert (estimate.shards(3600), estimate.shards(1e-9)) == (1, 201)
    assert "201 units" in repr(estimate)
    with pytest.raises(jg.InputError, match="no time to estimate"), jg.estimated(0):
        pass


def test_of_a_long_text_the_beginning_is_read(
    demo: tuple[jg.ResidualGraph, Any], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much of it as says what the whole costs: of its tokens, or of those that are asked for."""
    graph, words = demo
    monkeypatch.setattr(corpora, "POOLS", 8)
    monkeypatch.setattr(corpora, "TOGETHER", 1)
    file = tmp_path / "a.jsonl"
    row = {"text": "Return the value, or raise KeyError if it is not there. " * 3, "more": "x" * 200}
    file.write_text("\n".join([json.dumps(row)] * 80), encoding="utf-8")
    read: list[str] = []

    class Counting:
        def __call__(self, text: str, **options: Any) -> Any:
            read.append(text)
            return words(text, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(words, name)

        def __len__(self) -> int:
            return len(words)

    def job(tokens: int) -> Any:
        return jg.evaluate_lens(
            graph, file, orders=[0], tokens=tokens, window=16, batch=2, layers=[1], resamples=2, tokenizer=Counting()
        )

    for tokens in (10**6, 320):
        read.clear()
        with jg.estimated(0.2) as estimate:
            job(tokens)
        assert len(read) < 20
        read.clear()
        with jg.sharded(tmp_path / f"{tokens}.safetensors") as whole:
            job(tokens)
        assert estimate.stages[0].units == whole.state.totals["lenses"]


def test_commands_are_estimated() -> None:
    told = succeed("estimate", "--seconds", "0.1", "ngrams", "demo", "--top", "3", "--memory", "1M")
    assert told.startswith("Estimate: ")
    assert "n-grams" in told
    for arguments, message in (
        (("ngrams", "demo", "--seconds", "5"), "write it before the name of the command"),
        (("lens", "demo", "a"), "'lens' has no units of work to try: an estimate is of ngrams"),
        (("ngrams", "demo", "--state", "a.safetensors"), "an estimate is of the whole job"),
        (("ngrams", "demo", "--top", "0"), "'--top'"),
    ):
        assert message in invoke("estimate", *arguments).stderr
