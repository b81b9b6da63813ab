"""Spectra against terms that are listed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import jetgraph as jg
from tests.conftest import Example
from tests.zoo import case


def test_classes_are_sums_of_centred_logits(traced: Callable[..., Example], tmp_path: Path) -> None:
    """Both examples, a target for each, by the number of heads on the way."""
    example = traced(case("gpt2"))
    found = jg.spectrum(example.graph, example.inputs, by="attn", target=[3, 5], split="heads")
    expansion = jg.expand(example.graph, rules={"*": jg.Freeze()}, split="heads")
    with torch.no_grad():
        terms = jg.compile(expansion)(**example.inputs).terms
    assert sum(found.counts.values()) == expansion.count()
    for number, label in enumerate(found.counts):
        chosen = [
            term[:, -1] for path, term in terms.items() if sum(".attn" in str(hop) for hop in path.sites) == label
        ]
        logits = sum(chosen).double()  # type: ignore[union-attr]
        expected = (logits - logits.mean(-1, keepdim=True))[torch.arange(2), torch.tensor([3, 5])]
        torch.testing.assert_close(found.values[number, :, 0], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.total, found.output, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.cancellation, found.values.abs().sum(0) / found.total.abs())
    assert found.save(tmp_path / "spectrum.csv").read_text().startswith("example,position,class,value,share,paths")
    assert len(found) == 2 * len(found.counts)
    assert found.figure().axes[0].get_xlabel() == "attn sites passed"
    # A class that is next to nothing everywhere is told of, and not shown.
    small = replace(found, values=found.values * torch.tensor([1.0, 1e-9, 1.0])[:, None, None])
    assert (found.note, len(found.shown().rows(found.columns()))) == ("", len(found))
    assert small.note.startswith("1 class of less than 1e-06")
    assert len(small.shown().rows(small.columns())) == len(found) - 2
    # Nor drawn, where nothing is seen of it from its place on; between others it keeps its place.
    for scales, drawn in (([1.0, 1e-9, 1.0], "012"), ([1.0, 1.0, 1e-5], "01"), ([1e-5, 1.0, 1e-5], "1")):
        small = replace(found, values=found.values * torch.tensor(scales)[:, None, None])
        assert "".join(tick.get_text() for tick in small.figure().axes[0].get_xticklabels()) == drawn


def test_a_difference_at_all_positions(traced: Callable[..., Example]) -> None:
    example = traced(case("phi"))
    found = jg.spectrum(example.graph, example.inputs, by="last", target=(3, 5), position=None)
    with torch.no_grad():
        output = example.model(**example.inputs).logits.double()
    torch.testing.assert_close(found.total, output[..., 3] - output[..., 5], rtol=1e-4, atol=1e-4)
    assert found.what.startswith("logit difference")
    assert len(found) == output.shape[0] * output.shape[1] * len(found.counts)


def test_some_paths_alone(traced: Callable[..., Example]) -> None:
    example = traced(case("gpt2"))
    pattern = "** > L1.mlp > logits"
    some = jg.spectrum(example.graph, example.inputs, by="length", path=pattern)
    rest = jg.spectrum(example.graph, example.inputs, by={pattern: "last"})
    torch.testing.assert_close(some.total, rest.values[0])
    assert sum(some.counts.values()) == rest.counts["last"]
    torch.testing.assert_close(rest.total, rest.output, rtol=1e-4, atol=1e-4)


def test_every_linearisation_adds_up(traced: Callable[..., Example]) -> None:
    example = traced(case("llama"))
    found = [
        jg.spectrum(example.graph, example.inputs, by="mlp", rules=rules)
        for rules in ("frozen", "half", "gradient", {"*.mlp": jg.Tangent()})
    ]
    for one in found:
        torch.testing.assert_close(one.total, one.output, rtol=1e-3, atol=1e-3)
    assert all(not torch.allclose(one.values[:2], other.values[:2]) for one, other in pairwise(found))


def test_what_does_not_fit_is_refused(traced: Callable[..., Example]) -> None:
    example = traced(case("gpt2"))
    expansion = jg.expand(example.graph, rules={"*": jg.Freeze()})
    with pytest.raises(jg.InputError, match="rules='half' come too late"):
        jg.spectrum(expansion, example.inputs, rules="half")
    with pytest.raises(jg.InputError, match="is unknown"):
        jg.spectrum(example.graph, example.inputs, rules="frosty")  # type: ignore[arg-type]
    with pytest.raises(jg.InputError, match="no linear image"):
        jg.spectrum(jg.expand(example.graph, order=0), example.inputs)
    with pytest.raises(jg.InputError, match="memory"):
        jg.spectrum(example.graph, example.inputs, memory=0)


def test_of_many_classes_without_an_order_the_largest_come_first() -> None:
    sums = jg.spectrum("demo", "Raise Value", by="last attn", split="heads")
    values = sums.top(20).columns()["value"]
    sizes = [abs(value) for value in values if isinstance(value, float)]
    assert len(sums.counts) > 12
    assert sizes == sorted(sizes, reverse=True)
    by_length = jg.spectrum("demo", "Raise Value", by="length").top(3).columns()
    assert by_length["class"] == ["0", "1", "2"]
