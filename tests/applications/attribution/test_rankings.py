"""Rankings on the demo model: all paths by hand, with positions too, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import jetgraph as jg
from jetgraph.applications.attribution import listed
from jetgraph.loading import Loaded, load

PROMPT = "Raise Value"


@pytest.fixture(scope="module")
def demo() -> tuple[Loaded, jg.ResidualGraph]:
    loaded = load("demo")
    return loaded, loaded.trace(loaded.inputs())


def test_the_largest_of_all_paths(demo: tuple[Loaded, jg.ResidualGraph], tmp_path: Path) -> None:
    loaded, graph = demo
    token = loaded.tokenizer("Error")["input_ids"][0]  # type: ignore[misc]
    with torch.no_grad():
        values = jg.compile(jg.expand(graph, rules={"*": jg.Freeze()}))(**loaded.inputs(PROMPT))
        logits = values.each(position=-1)[:, 0, 0].double()
    given = dict(zip(map(str, values.terms), (logits[:, token] - logits.mean(-1)).tolist(), strict=True))
    ranked = sorted(given.items(), key=lambda item: -abs(item[1]))
    found = jg.rank(graph, PROMPT, target="Error", top=15, tokenizer=loaded.tokenizer)
    assert [one.path for one in found.found] == [path for path, _ in ranked[:15]]
    assert [one.value for one in found.found] == pytest.approx([value for _, value in ranked[:15]], rel=1e-3, abs=1e-4)
    assert found.exact
    assert found.paths == len(given) == 768
    assert found.energy == pytest.approx(sum(value**2 for value in given.values()), rel=1e-3)
    assert found.rest == pytest.approx(found.total - sum(value for _, value in ranked[:15]), rel=1e-3)
    assert found.rest_energy == pytest.approx(sum(value**2 for _, value in ranked[15:]), rel=1e-2)
    assert found.visited < 768
    large = jg.rank(graph, PROMPT, target="Error", at_least=0.5, tokenizer=loaded.tokenizer)
    assert len(large) == sum(abs(value) >= 0.5 for value in given.values())
    assert found.save(tmp_path / "paths.csv").read_text().startswith("path,value,share")
    assert found.figure().axes[0].get_xlabel() == "'Error' at position 6"


def test_chains_at_positions(demo: tuple[Loaded, jg.ResidualGraph]) -> None:
    """Against every path of the attribution graph."""
    loaded, graph = demo
    found = jg.rank(graph, PROMPT, target="Error", top=12, positions=True, tokenizer=loaded.tokenizer)
    whole = jg.attribute(graph, PROMPT, target="Error", tokenizer=loaded.tokenizer)
    names = {node.name: f"{node.alias}@{node.position}" for node in whole.nodes}
    routes = whole.paths(600).found
    given = {" > ".join([*(names[step] for step in one.path.split(" > ")[:-1]), "logits"]): one.value for one in routes}
    # Constants of the decoder have no position.
    given = {path.replace("@None", ""): value for path, value in given.items()}
    for one in found.found:
        assert given[one.path] == pytest.approx(one.value, rel=1e-3, abs=1e-4)
    least = abs(found.found[-1].value)
    assert sum(abs(value) > least * 1.001 for value in given.values()) < 12
    assert found.exact


def test_terms_of_jets(demo: tuple[Loaded, jg.ResidualGraph], monkeypatch: pytest.MonkeyPatch) -> None:
    """All, against the terms themselves; some; and by their beginnings, of which none is missed when all go on."""
    loaded, graph = demo
    expansion = jg.expand(graph, order=1)
    token = loaded.tokenizer("Error")["input_ids"][0]  # type: ignore[misc]
    with torch.no_grad():
        values = jg.compile(expansion)(**loaded.inputs(PROMPT))
        logits = values.each(position=-1)[:, 0, 0].double()
    given = dict(zip(map(str, values.terms), (logits[:, token] - logits.mean(-1)).tolist(), strict=True))
    ranked = sorted(given, key=lambda path: -abs(given[path]))
    ask: dict[str, Any] = {"target": "Error", "tokenizer": loaded.tokenizer}
    found = jg.rank(expansion, PROMPT, top=12, **ask)
    assert [one.path for one in found.found] == ranked[:12]
    assert [one.value for one in found.found] == pytest.approx([given[path] for path in ranked[:12]], abs=1e-5)
    assert found.exact
    assert "all 1,024 evaluated" in found.title
    assert found.rest_energy == pytest.approx(sum(given[path] ** 2 for path in ranked[12:]), rel=1e-3)
    some = jg.rank(expansion, PROMPT, path="** > L3.mlp > logits", at_least=0.005, **ask)
    matching = list(map(str, jg.select(expansion, "** > L3.mlp > logits")))
    assert [one.path for one in some.found] == [
        path for path in ranked if path in matching and abs(given[path]) >= 5e-3
    ]
    chosen = jg.select(expansion, "** > L3.mlp > logits", by={one.path: one.value for one in found.found})
    assert [*map(str, chosen)] == [path for path in ranked[:12] if path in matching]
    monkeypatch.setattr(listed, "LISTED", 10)
    guessed = jg.rank(expansion, PROMPT, at_least=1e-9, **ask)
    assert not guessed.exact
    assert "heuristic" in guessed.title
    assert 0 < len(guessed) < len(given)
    assert all(given[one.path] == pytest.approx(one.value, abs=1e-5) for one in guessed.found)
    monkeypatch.setattr(listed, "WIDTH", 1024)
    assert [one.path for one in jg.rank(expansion, PROMPT, top=12, **ask).found] == ranked[:12]
    beam = jg.rank(jg.expand(graph, order=1, recipe="beam", width=2), PROMPT, **ask)
    assert beam.sum == pytest.approx(beam.total, rel=0.5)
    several: list[dict[str, Any]] = [{"weights": "optimal"}, {"directions": "terms"}]
    for options in several:
        with pytest.raises(jg.BudgetError, match="depends on all that arrive"):
            jg.rank(jg.expand(graph, order=1, **options), PROMPT, **ask)
    with pytest.raises(jg.InputError, match="linear sites"):
        jg.rank(expansion, PROMPT, positions=True, **ask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top=0"),
        ({"at_least": -1.0}, "at_least"),
        ({"signs": 1}, "signs"),
        ({"memory": 0}, "memory"),
        ({"position": None}, "at one position"),
    ],
)
def test_what_does_not_fit_is_refused(options: Any, message: str, demo: tuple[Loaded, jg.ResidualGraph]) -> None:
    loaded, graph = demo
    with pytest.raises(jg.InputError, match=message):
        jg.rank(graph, PROMPT, target=3, tokenizer=loaded.tokenizer, **options)


def test_several_targets_are_ranked_together(demo: tuple[Loaded, jg.ResidualGraph]) -> None:
    loaded, graph = demo
    both, one, other = (
        jg.rank(graph, PROMPT, target=target, at_least=1e-6, tokenizer=loaded.tokenizer, split=None)
        for target in ([3, 5], 3, 5)
    )
    values, first, second = ({row.path: row.value for row in found.found} for found in (both, one, other))
    for path in list(values)[:50]:
        assert values[path] == pytest.approx(first.get(path, 0) + second.get(path, 0), abs=1e-4)
    assert both.total == pytest.approx(one.total + other.total, rel=1e-5)
