"""Texts that are read as they are needed: the same ones of every kind of source, and no more kept of more of them."""

import gzip
import json
import os
import pathlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest

import jetgraph as jg
from jetgraph.applications.lenses import corpora, tallies
from jetgraph.applications.lenses.tallies import counted, middle
from jetgraph.files import writing
from jetgraph.files.writing import read_lines, read_pieces

ROWS = [{"text": "one line", "other": 1}, {"text": None, "other": 2}, {"text": "", "other": 3}, {"text": "two\nlines"}]
READ = ["one line", "two\nlines"]


@pytest.fixture
def sources(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The same texts in each kind of source."""
    stand_in: Any = types.ModuleType("datasets")
    stand_in.load_dataset = lambda name, config, *, split, streaming: iter(
        [{**row, "name": (name, config, split, streaming)} for row in ROWS]
    )
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    pandas.DataFrame(ROWS).to_parquet(tmp_path / "a.parquet")
    return {name: str(tmp_path / name) for name in ("a.jsonl", "a.parquet")} | {"set": "datasets:org/name"}


def test_each_source_gives_its_texts_again_and_again(sources: dict[str, str]) -> None:
    for source in sources.values():
        corpus = jg.open_corpus(source)
        assert [list(corpus), list(corpus)] == [READ, READ]
        with pytest.raises(jg.FileError, match="has no column 'body', but 'text'"):
            list(jg.open_corpus(source, column="body"))
        with pytest.raises(jg.FileError, match=r"'other' of (row|line) 1 is 1"):
            list(jg.open_corpus(source, column="other"))


def test_data_sets_are_streamed_by_the_library_itself(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="datasets is not installed: pip install 'jetgraph[scale]'")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    lines = [json.dumps({"text": None, "other": 1, **row}) for row in ROWS]
    for name, content in (("train", lines), ("test", ['{"text": "a test"}', "{broken"])):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / f"{name}.jsonl").write_text("\n".join(content), encoding="utf-8")
    source = f"datasets:{tmp_path / 'set'}"
    corpus = jg.open_corpus(source)
    assert [list(corpus), list(corpus)] == [READ, READ]
    for options, message in (
        ({"split": "none"}, "cannot open .* Bad split: none"),
        ({"split": "test"}, "datasets cannot (open|read row)"),
        ({"column": "body"}, "row 1 has no column 'body'"),
    ):
        with pytest.raises(jg.FileError, match=message):
            list(jg.open_corpus(source, **options))


def test_long_files_are_read_in_pieces(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "PIECE", 16)
    file = tmp_path / "long.txt"
    text = "\ufeffshort\r\nlines of text\nüüüüüüüüüüüüüüüüüü and words\n\nend"
    file.write_bytes(text.encode())
    pieces = list(jg.open_corpus(file))
    assert "".join(pieces) == text[1:].replace("\r\n", "\n")
    assert len(pieces) > 3
    assert max(len(piece.encode()) for piece in pieces) <= 32
    file.write_bytes(b"x" * 20 + b"\xff")
    with pytest.raises(jg.FileError, match="no UTF-8 text"):
        list(jg.open_corpus(file))


def test_what_is_no_corpus_is_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.txt", "a.jsonl", "a.parquet"):
        (tmp_path / name).write_text('{"text": "a"}\n[1]\n')
    monkeypatch.setitem(sys.modules, "datasets", None)
    for call, message in (
        (lambda: jg.open_corpus("datasets:org/name"), "needs datasets: pip install"),
        (lambda: jg.open_corpus(tmp_path / "none.txt"), "there is no text file"),
        (lambda: jg.open_corpus(tmp_path / "a.txt", column="body"), "is a text"),
        (lambda: jg.open_corpus(tmp_path / "a.jsonl", split="test"), "is a file"),
        (lambda: list(jg.open_corpus(tmp_path / "a.jsonl")), r"no \.jsonl: line 2: a line holds a mapping"),
        (lambda: list(jg.open_corpus(tmp_path / "a.parquet")), r"no \.parquet"),
    ):
        with pytest.raises(jg.JetGraphError, match=message):
            call()


def test_what_cannot_be_read_is_told_with_its_place(
    tmp_path: pathlib.Path, sources: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any source, and wherever in it: the line of the file, not of the piece that was read."""
    monkeypatch.setattr(writing, "PIECE", 16)
    good = json.dumps({"text": "a"}).encode()
    broken = pyarrow.array([0, 2, 5], pyarrow.int32()).buffers()[1]
    strings = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, broken, pyarrow.py_buffer(b"ab\xffcd")])
    pyarrow.parquet.write_table(pyarrow.table({"text": strings}), tmp_path / "broken.parquet")
    os.mkfifo(tmp_path / "pipe.txt")
    for name, content, message in (
        ("late.txt", b"some line\n" * 9 + b"caf\xe9\n", "line 10 holds the byte 0xe9"),
        ("late.jsonl", good + b'\n{"text": "caf\xe9"}\n', "line 2 holds the byte 0xe9"),
        ("wide.jsonl", good.decode().encode("utf-16"), "begins as UTF-16 does"),
        ("packed.txt.gz", gzip.compress(good), "compressed by gzip. Unpack it first"),
        ("packed.jsonl", gzip.compress(good), "compressed by gzip. Unpack it first"),
        ("broken.parquet", None, "'text' of row 2 is no UTF-8 text"),
        ("pipe.txt", None, "is no regular file, and texts are gone over more than once"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(jg.FileError, match=message):
            list(jg.open_corpus(tmp_path / name))

    def ends(*args: Any, **options: Any) -> Iterator[dict[str, str]]:
        yield {"text": "a"}
        raise ConnectionError("the hub is gone\nand more")

    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", ends)
    with pytest.raises(jg.FileError, match=r"cannot read 'org/name' after row 1: the hub is gone$"):
        list(jg.open_corpus(sources["set"]))


def test_a_byte_order_mark_is_one_at_the_beginning_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\ufeffone line\n\ufeffanother line\r\nand \u2028 one\n", encoding="utf-8", newline="")
    monkeypatch.setattr(writing, "PIECE", 12)
    assert "".join(read_pieces(file)) == "one line\n\ufeffanother line\nand \u2028 one\n"
    # A prompt a line: what else Unicode calls an end of a line is part of a prompt.
    assert [line for line in read_lines(file) if line] == ["one line", "\ufeffanother line", "and \u2028 one"]
    monkeypatch.undo()
    found = jg.survey("demo", file, resamples=2)
    assert "the top tokens of each prompt, means over" in found.title
    assert found.prompts == 3
    with pytest.raises(jg.InputError, match="there is a file of this name"):
        jg.survey("demo", str(file))


def test_medians_of_what_is_counted() -> None:
    """Right to the last digit that is kept, of parts as of the whole; NaN and infinity as NumPy has them."""
    random = np.random.default_rng(0)
    values = np.stack(
        [np.exp(random.normal(0, 5, 1001)), random.normal(0, 1, 1001), random.integers(0, 2, 1001)]
    ).astype(np.float64)
    counts = np.stack([counted(part) for part in np.split(values, [10, 500], axis=1)]).sum(0)
    assert np.array_equal(counts, counted(values))
    np.testing.assert_allclose(middle(counts), np.median(values, axis=-1), rtol=2.0**-7)
    odd = np.array([[np.inf, np.inf, 1.0], [np.nan, 1.0, 1.0], [1e-300, 0.0, 5.0], [1.0, 3.0, -np.inf]])
    np.testing.assert_array_equal(middle(counted(odd)), [np.inf, np.nan, 0.0, 1.0])


def test_what_is_kept_does_not_grow_with_the_text(
    demo: tuple[jg.ResidualGraph, Any], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, words = demo
    monkeypatch.setattr(corpora, "POOLS", 8)
    monkeypatch.setattr(corpora, "TOGETHER", 1)
    texts_of = {n: [f"Return value {i}, or raise KeyError if it is not there." for i in range(n)] for n in (25, 100)}

    def evaluated(given: Any, state: str, kept: int = 0) -> tuple[Any, Any]:
        monkeypatch.setattr(tallies, "KEPT", kept)
        with jg.sharded(tmp_path / state) as job:
            found = jg.evaluate_lens(
                graph, given, orders=[0], tokens=10**6, window=16, batch=2, layers=[1, 4], resamples=9, tokenizer=words
            )
        return found, job.state

    states = {}
    for n, written in texts_of.items():
        file = tmp_path / f"{n}.jsonl"
        file.write_text("\n".join(json.dumps({"text": text}) for text in written), encoding="utf-8")
        found, states[n] = evaluated(file, f"{n}.safetensors")
    exact, _ = evaluated(texts_of[100], "exact.safetensors", kept=2**28)
    assert (found.tokens, found.windows) == (exact.tokens, exact.windows)
    for name, band in exact.metrics.items():
        np.testing.assert_allclose(found.metrics[name].mean, band.mean, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(found.metrics[name].median, band.median, rtol=2.0**-7, atol=1e-9)
    sizes = [
        sum(
            tensor.nbytes
            for record in (*state.records.values(), state.sums)
            for name, tensor in record.items()
            # Of a sample.
            if name != "remainder"
        )
        for state in states.values()
    ]
    assert sizes[1] <= 1.2 * sizes[0]
    mine = jg.ngram_agreement(graph, tmp_path / "100.jsonl", minimum=5, resamples=2, tokenizer=words)
    assert mine.columns() == jg.ngram_agreement(graph, texts_of[100], minimum=5, resamples=2, tokenizer=words).columns()
