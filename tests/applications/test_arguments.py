"""Arguments are used or refused: beside a table, n-grams, windows or classes that have their own, none is ignored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import jetgraph as jg
from jetgraph.loading import load

IDS = torch.tensor([[5, 9, 17, 3], [2, 4, 6, 8]])


class Classes(nn.Module):
    """Classes [batch, 5] of vectors [batch, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(6, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + torch.tanh(self.mlp(x)))


@pytest.fixture(scope="module")
def table() -> jg.PathTable:
    return jg.PathTable(load("demo"), "embed > L0.mlp > logits")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda table: jg.ngrams(table, "embed > L0.mlp > logits", n=3), "path='embed > L0.mlp > logits' and n=3"),
        (lambda table: jg.ngrams(table, distance=2), "distance=2"),
        (lambda table: jg.ngrams(table, memory=2**20), "memory=1048576"),
        (lambda table: jg.ngrams(table, tokenizer=table.subject.tokenizer), "tokenizer="),
        (lambda table: jg.ngram_mass(table, ["if"], path="embed > logits"), "path='embed > logits'"),
        (lambda table: jg.ngram_mass(table, ["if"], memory=2**20), "memory=1048576"),
    ],
    ids=["path", "distance", "memory", "tokenizer", "mass", "memory of mass"],
)
def test_a_table_has_its_own(call: Callable[[jg.PathTable], Any], says: str, table: jg.PathTable) -> None:
    with pytest.raises(jg.InputError, match=r"would change nothing, for the table .* has its own") as error:
        call(table)
    assert says in str(error.value)


def test_a_table_gives_its_ngrams(table: jg.PathTable) -> None:
    assert jg.ngrams(table, top=3).path == "embed > L0.mlp > logits"
    assert jg.ngram_mass(table, ["if"], tokenizer=table.subject.tokenizer).path == "embed > L0.mlp > logits"


def test_old_names_are_understood_with_a_warning_and_not_beside_the_new(table: jg.PathTable) -> None:
    chosen = jg.ngrams(table, first=[5, 7], top=3)
    with pytest.warns(DeprecationWarning, match="is now called first=") as told:
        assert jg.ngrams(table, rows=[5, 7], top=3).columns() == chosen.columns()
    loaded = load("demo")
    with pytest.warns(DeprecationWarning, match=r"PathTable\(paths=\) is now called path=") as told_of_tables:
        assert jg.PathTable(loaded, paths="embed > logits").label == "embed > logits"
    # Python shows such a warning where it is of the caller's own line.
    assert {one.filename for one in (*told, *told_of_tables)} == {__file__}
    for call, says in (
        (lambda: jg.ngrams(table, first=[5], rows=[5]), "whose old name is rows="),
        (lambda: jg.ngrams(table, second=[5]), "it needs n=3"),
        (lambda: jg.PathTable(loaded, paths="**", path="**"), "whose old name is paths="),
        (lambda: jg.terms("demo", "Raise", paths="**", path="**"), "terms takes path=, whose old name is paths="),
    ):
        with pytest.raises(jg.InputError, match=says):
            call()


def test_listed_ngrams_have_a_path(table: jg.PathTable) -> None:
    listed = jg.ngrams(table, per="row", top=2)
    for option in ({"path": "embed > logits"}, {"memory": 2**20}):
        with pytest.raises(jg.InputError, match="leave path and memory out"):
            jg.ngram_mass(listed, ["if"], **option)


def test_rows_of_a_tensor_are_windows() -> None:
    with pytest.raises(jg.InputError, match=r"window=2 is for texts"):
        jg.evaluate_lens("demo", IDS, window=2)


def test_classes_have_one_picture() -> None:
    graph = jg.trace(Classes().eval(), torch.randn(2, 6))
    x = torch.randn(3, 6)
    for found in (jg.lens(graph, x), jg.joint_lens(graph, x)):
        assert len(found.figure(row=0).axes) > 0
        with pytest.raises(jg.InputError, match="row=1 is for outputs with positions"):
            found.figure(row=1)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda graph: jg.ablate(graph, None, IDS, memory=0), "memory is a number of bytes, not 0"),
        (lambda graph: jg.patch(graph, IDS, IDS, memory=-1), "memory is a number of bytes, not -1"),
        (lambda graph: jg.lens(graph, IDS, position="first"), "position='first' is unknown"),
        (lambda graph: jg.lens(graph, IDS, layers=[0]).plot(width=float("nan")), "width=nan is no width"),
        (lambda graph: jg.attention_patterns(graph, IDS, branches=[]), "names no branch"),
    ],
)
def test_what_is_no_number_or_name_is_refused(
    call: Callable[[jg.ResidualGraph], Any], says: str, table: jg.PathTable
) -> None:
    with pytest.raises(jg.InputError, match=says):
        call(table.subject.graph)
