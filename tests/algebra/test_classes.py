"""Classes of paths: exact numbers at any size, against paths sorted one by one."""

from __future__ import annotations

from collections import Counter

import pytest

import jetgraph as jg
from jetgraph.algebra import JoinStep, MapStep, Outline, Site, Source
from jetgraph.algebra.automaton import TermGraph
from jetgraph.algebra.classes import By, Sorting, choices, classifier, counted, ordered
from jetgraph.algebra.expansion import Expansion


def blocks(number: int, maps: bool = False, bias: bool = False) -> Expansion:
    """Attention and an MLP in turns, frozen, with a bias in each MLP; a norm on the stream after each; the decoder's
    bias.
    """
    steps: list[JoinStep | MapStep] = []
    for i in range(number):
        for kind in ("attn", "mlp"):
            site = Site(f"L{i}.{kind}", f"layers.{i}.{kind}", kind, "branch", False, False, held_bias=kind == "mlp")
            steps.append(JoinStep(f"add{i}", "identity", False, (site,)))
            if maps:
                steps.append(MapStep(Site(f"L{i}.{kind}_norm", "", "norm", "map", False, False, held_bias=False)))
    decoder = Site("logits", "", "logits", "decoder", False, False, held_bias=bias)
    outline = Outline((Source("embed", "embed", "embed"), Source("pos", "pos", "pos")), tuple(steps), decoder)
    return jg.expand(outline, rules={"*": jg.Freeze()})


def by_hand(path: jg.Path, by: str) -> int | str:
    """The class of a path, read off its text."""
    branches = [hop.alias for hop in path.sites if "norm" not in hop.alias]
    source = path.source.alias
    start = "bias" if source.endswith("bias") else source
    kind = by.split()[-1]
    chosen = [alias for alias in branches if alias.endswith(kind)]
    return {
        "all": "all",
        "length": path.length,
        "attn": len(chosen),
        "mlp": len(chosen),
        "last": (branches or [start])[-1],
        "first": (branches or [start])[0],
        "layer": (branches or [start])[-1].split(".")[0],
        "source": source,
        "last attn": (chosen or ["none"])[-1],
        "first attn": (chosen or ["none"])[0],
        "last mlp": (chosen or ["none"])[-1],
        "first mlp": (chosen or ["none"])[0],
    }[by]


@pytest.mark.parametrize(("maps", "bias"), [(False, False), (True, True)])
def test_every_property_sorts_as_by_hand(maps: bool, bias: bool) -> None:
    expansion = blocks(2, maps, bias)
    for by in choices(expansion):
        found = counted(*sorted_by(expansion, by))
        assert found == Counter(by_hand(path, by) for path in expansion), by


def test_a_site_may_be_called_as_a_source() -> None:
    """Here of a group, which begins at one site; what passes to the other goes through the site itself."""
    whole = blocks(1)
    expansion = jg.expand(whole.outline, 0, rules={"*": jg.Freeze(), "L0.mlp": jg.Jet(0, centres="components")})
    assert "L0.attn > L0.mlp^0 > logits" in expansion
    assert "embed > L0.attn > logits" in expansion
    assert counted(*sorted_by(expansion, "source")) == Counter(path.source.alias for path in expansion)


def sorted_by(expansion: Expansion, by: By, pattern: str = "**") -> tuple[TermGraph, Sorting]:
    acceptor = jg.select(expansion, pattern).term_graph().acceptor
    sorting = Sorting(acceptor, classifier(expansion, by))
    return TermGraph(expansion.automaton, sorting), sorting


def test_the_first_pattern_counts() -> None:
    expansion = blocks(2)
    by = {
        "embed > ** > L1.mlp > logits": "last MLP",
        "embed > ** > logits": "embedding",
        "L0.mlp.bias > **": "first bias",
    }
    found = counted(*sorted_by(expansion, by))
    chosen = [jg.select(expansion, pattern).count() for pattern in by]
    number = expansion.count() - chosen[1] - chosen[2]
    assert found == {"last MLP": chosen[0], "embedding": chosen[1] - chosen[0], "first bias": chosen[2], "rest": number}
    assert ordered(expansion, found, by) == ["last MLP", "embedding", "first bias", "rest"]
    # What begins at a site is the beginning of no path.
    assert counted(*sorted_by(expansion, {"L1.mlp > logits": "late"})) == {"rest": expansion.count()}


def test_a_pattern_and_classes_multiply() -> None:
    expansion = blocks(3)
    pattern = "embed > ** > L1.attn > ** > logits"
    found = counted(*sorted_by(expansion, "mlp", pattern))
    assert found == Counter(by_hand(path, "mlp") for path in jg.select(expansion, pattern))


def test_astronomical_numbers() -> None:
    """126 layers: 2^252 paths from each source, by a few thousand states."""
    expansion = blocks(126)
    found = counted(*sorted_by(expansion, "length"))
    assert sum(found.values()) == expansion.count()
    assert found == {length: number for (length, _), number in expansion.counts().items()}
    assert ordered(expansion, found, "length") == list(range(253))


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("lenght", "by='lenght' is unknown: choose all, length, attn, mlp"),
        ("last conv", "choose all"),
        ({}, "sorts nothing"),
        ({"embed > L9.mlp > logits": "a"}, "'L9.mlp' of by= matches no source"),
        ({"embed >> logits": "a"}, "cannot be read"),
    ],
)
def test_what_sorts_nothing_is_refused(by: By, message: str) -> None:
    with pytest.raises(jg.InputError, match=message):
        classifier(blocks(2), by)


def test_layers_of_several_streams_are_told_apart() -> None:
    sites = [Site(f"encoder.L{i}.mlp", "", "mlp", "branch", False, False, held_bias=False) for i in range(3)]
    steps = tuple(JoinStep(f"add{i}", "identity", False, (site,)) for i, site in enumerate(sites))
    decoder = Site("logits", "", "logits", "decoder", False, False, held_bias=False)
    expansion = jg.expand(Outline((Source("embed", "embed", "embed"),), steps, decoder), rules={"*": jg.Freeze()})
    sorting = Sorting(jg.select(expansion, "**").term_graph().acceptor, classifier(expansion, "layer"))
    found = counted(TermGraph(expansion.automaton, sorting), sorting)
    assert found == {"embed": 1, "encoder.L0": 1, "encoder.L1": 2, "encoder.L2": 4}
