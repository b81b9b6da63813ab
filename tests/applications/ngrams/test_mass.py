"""The mass of words against chains of probabilities."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import jetgraph as jg
from jetgraph.applications.ngrams import mass as masses
from jetgraph.applications.ngrams import ngram_mass, ngrams
from jetgraph.applications.ngrams.table import PathTable
from tests.applications.ngrams.tables import BY_NAME, DTYPES, EVERY, FORMULAS, relocated
from tests.zoo import VOCAB


@pytest.fixture(scope="module")
def probabilities(demo) -> Tensor:
    return PathTable(demo).logits(torch.arange(1024)[:, None]).double().softmax(-1)


def chain(probabilities: Tensor, start: Tensor, sequence: tuple[int, ...]) -> float:
    value = float(start @ probabilities[:, sequence[0]])
    for a, b in itertools.pairwise(sequence):
        value *= float(probabilities[a, b])
    return value


def test_mass_by_hand(demo, probabilities):
    words = ["return", "raise", "re", "the"]
    uniform = torch.full((1024,), 1 / 1024, dtype=torch.float64)
    spelt = {word: [tuple(demo.tokenizer(text)["input_ids"]) for text in (word, " " + word)] for word in words}
    assert spelt["return"][0][: len(spelt["re"][0])] == spelt["re"][0]
    found = ngram_mass(demo, words, memory=2**22)
    for word, mass in zip(found.words, found.masses, strict=True):
        assert mass == pytest.approx(sum(chain(probabilities, uniform, one) for one in spelt[word]), rel=1e-5)
    kept = {one for some in spelt.values() for one in some} - {spelt["return"][0]}
    assert found.total == pytest.approx(sum(chain(probabilities, uniform, one) for one in kept), rel=1e-5)
    assert found.total < sum(found.masses)
    weights = torch.arange(1024.0)
    weighted = ngram_mass(PathTable(demo), words, weights=weights)
    expected = sum(chain(probabilities, weights.double() / weights.sum(), one) for one in spelt["the"])
    assert weighted.masses[3] == pytest.approx(expected, rel=1e-5)


def test_masses_beside_those_of_the_model_itself(demo, monkeypatch):
    words, tokenizer = ["return", "raise"], demo.tokenizer
    ids = torch.linspace(0, 1023, 50).round().long()
    with torch.no_grad():
        own = demo.loaded.model(input_ids=torch.arange(1024)[:, None]).logits[:, -1].double().softmax(-1)
    for number, chosen in ((50, ids), (1024, torch.arange(1024))):
        monkeypatch.setattr(masses, "ASKED", number)
        found = ngram_mass(demo, words, reference="model")
        start = torch.zeros(1024, dtype=torch.float64)
        start[chosen] = 1 / len(chosen)
        for place, word in enumerate(words):
            spelt = [tuple(tokenizer(text)["input_ids"]) for text in (word, f" {word}")]
            assert found.own[place] == pytest.approx(sum(chain(own, start, one) for one in spelt), rel=1e-4)
        assert found.columns()["times model"][0] == pytest.approx(found.masses[0] / found.own[0])
        assert (f"means over {number} contexts" in found.note) == (number < 1024)
    with pytest.raises(jg.InputError, match="n-grams are not"):
        ngram_mass(ngrams(demo, per="row", top=2), words, reference="model")


class Letters:
    """A tokenizer with a token for a space and for each letter."""

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [2 if letter == " " else ord(letter) - ord("a") + 3 for letter in text]}

    def decode(self, ids: list[int]) -> str:
        return "".join(" " if token == 2 else chr(token - 3 + ord("a")) for token in ids)

    def __len__(self) -> int:
        return 29


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_mass_on_every_architecture(name, dtype, traced):
    graph, model = relocated(traced(BY_NAME[name]).graph, dtype), BY_NAME[name].build().to(dtype)
    found = ngram_mass(graph, ["a", "if", "def"], path="embed > L0.mlp > logits", tokenizer=Letters())
    table = FORMULAS[name](model, EVERY, True).double().softmax(-1)
    uniform = torch.full((VOCAB,), 1 / VOCAB, dtype=torch.float64)
    for word, mass in zip(("a", "if", "def"), found.masses, strict=True):
        sequences = [tuple(Letters()(text)["input_ids"]) for text in (word, " " + word)]
        expected = sum(chain(table, uniform, sequence) for sequence in sequences)
        assert mass == pytest.approx(expected, rel=1e-4 if dtype == torch.float32 else 0.1)
    assert found.total == pytest.approx(sum(found.masses))


def test_mass_of_everything_is_one(demo):
    """Every printable beginning of a text starts with one of these tokens, whatever follows."""
    tokens = [demo.tokenizer.decode([token]) for token in range(1024)]
    single = [text for text in tokens if demo.tokenizer(text)["input_ids"] == [demo.tokenizer(text)["input_ids"][0]]]
    words = [word for word in dict.fromkeys(text.strip() for text in single) if word and "\ufffd" not in word]
    total = ngram_mass(demo, words).total
    assert 0.8 < total <= 1
    assert total >= ngram_mass(demo, words[::2]).total


def test_mass_of_listed_ngrams_is_a_lower_bound(demo):
    words = ["return", "raise", "import"]
    exact = ngram_mass(demo, words)
    bound = ngram_mass(ngrams(demo, per="row", top=20), words)
    assert bound.lower_bound
    assert not exact.lower_bound
    assert 0 < bound.total < exact.total
    assert "at least" in bound.title
    full = ngram_mass(ngrams(demo, per="row", top=1024), words)
    assert full.masses == pytest.approx(exact.masses, rel=1e-5)
    for wrong in (ngrams(demo), ngrams(demo, per="row", scores="logit"), ngrams(demo, per="row", first=[1])):
        with pytest.raises(jg.InputError, match="needs ngrams"):
            ngram_mass(wrong, words)


def test_keywords_from_a_file(demo, tmp_path):
    file = tmp_path / "words.txt"
    # With a byte-order mark, as some editors write.
    file.write_text("\ufeffreturn  # often\n# a list\n\nC#\nreturn\n", encoding="utf-8")
    found = ngram_mass(demo, file)
    assert found.words == ("return", "C#")
    assert found.masses == pytest.approx(ngram_mass(demo, ["return", "C#"]).masses)
    assert found.figure().axes[0].get_xlabel().startswith("mass: mean over contexts")
    assert list(found.to_dataframe().columns) == ["word", "tokens", "mass", "uniform", "times"]
    spelt = [[len(demo.tokenizer(text)["input_ids"]) for text in (word, f" {word}")] for word in found.words]
    assert found.uniform == pytest.approx([sum(1024.0**-length for length in some) for some in spelt])
    assert found.columns()["times"][0] == pytest.approx(found.masses[0] / found.uniform[0])
    with pytest.raises(jg.InputError, match="no word"):
        ngram_mass(demo, [])
    with pytest.raises(jg.FileError, match="there is no file"):
        ngram_mass(demo, tmp_path / "none.txt")
    with pytest.raises(jg.InputError, match="weights are one number"):
        ngram_mass(demo, ["a"], weights=torch.ones(3))


def test_mass_needs_a_tokenizer_and_bigrams(demo, traced):
    with pytest.raises(jg.InputError, match="tokenizer"):
        ngram_mass(traced(BY_NAME["gpt2"]).graph, ["a"])
    with pytest.raises(jg.InputError, match="n=3"):
        ngram_mass(PathTable(demo, "embed > L0.attn > logits", 3), ["a"])
