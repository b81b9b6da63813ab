"""Rules as JSON."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from jetgraph.algebra import Atom, Distribute, Freeze, Jet, Rule
from jetgraph.algebra import rules as symbolic
from jetgraph.errors import FileError, JetGraphError
from jetgraph.files.stored import Stored
from jetgraph.saving.rules import rule_from_json, rule_to_json
from tests.algebra.test_rules import Drop

WRITTEN = [
    (Distribute(), {"rule": "distribute"}),
    (Atom(), {"rule": "atom"}),
    (Freeze(("gate",)), {"rule": "freeze", "gates": ["gate"], "halves": False}),
    (
        Jet(1, weights=np.array([[0.5, 1.0], [2.0, 0.0]])),
        {
            "rule": "jet",
            "order": 1,
            "directions": "stream",
            "weights": [[0.5, 1.0], [2.0, 0.0]],
            "orders": "auto",
            "scale": "matched",
            "centres": "terms",
            "width": None,
            "target": None,
        },
    ),
    (
        Jet(2, weights="unit"),
        {"rule": "jet", "order": 2, "directions": "stream", "weights": "unit", "orders": "auto", "scale": "matched"}
        | {"centres": "terms", "width": None, "target": None},
    ),
    (
        Jet(1, "terms", {"embed": Fraction(1, 4), "*.mlp": np.float32(0.5), "pos": 3}, "apart", "none"),
        {
            "rule": "jet",
            "order": 1,
            "directions": "terms",
            "weights": {"embed": 0.25, "*.mlp": 0.5, "pos": 3},
            "orders": "apart",
            "scale": "none",
            "centres": "terms",
            "width": None,
            "target": None,
        },
    ),
    (
        Jet(0, centres={"attn": ("*.attn", "L0.*"), "embed": "embed"}),
        {
            "rule": "jet",
            "order": 0,
            "directions": "stream",
            "weights": "uniform",
            "orders": "auto",
            "scale": "matched",
            "centres": {"attn": ["*.attn", "L0.*"], "embed": "embed"},
            "width": None,
            "target": None,
        },
    ),
    (
        Jet(0, width=3, target=7),
        {"rule": "jet", "order": 0, "directions": "stream", "weights": "uniform", "orders": "auto", "scale": "matched"}
        | {"centres": "terms", "width": 3, "target": 7},
    ),
]


@pytest.mark.parametrize(("rule", "written"), WRITTEN, ids=lambda one: one.text if isinstance(one, Rule) else "")
def test_rules_survive_their_files(rule: Rule, written: dict[str, Any]) -> None:
    text = json.dumps(rule_to_json(rule))
    assert json.loads(text) == written
    assert rule_from_json(Stored(json.loads(text), "paths.json")) == rule


def test_a_rule_from_outside_survives_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(symbolic.RULES, "drop", Drop)  # type: ignore[arg-type]
    assert rule_to_json(Drop()) == {"rule": "drop", "why": "noise"}
    assert rule_from_json(Stored({"rule": "drop", "why": "noise"}, "paths.json")) == Drop("noise")


@pytest.mark.parametrize("weights", ["uniform", "unit", {"embed": 2.0}])
@pytest.mark.parametrize("order", [0, 2])
def test_jets_of_files_that_know_no_orders_together(order: int, weights: Any) -> None:
    """They were apart; where terms that are now left out had weight, the numbers would be others."""
    stored = Stored({"rule": "jet", "order": order, "directions": "stream", "weights": weights}, "paths.json")
    if order and weights != "unit":
        with pytest.raises(FileError, match="a jet of order 2 of a version of jetgraph in which"):
            rule_from_json(stored)
    else:
        assert rule_from_json(stored) == Jet(order, weights=weights, orders="apart", scale="none")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({}, "lacks 'rule'"),
        ({"rule": "melt"}, "rule is 'melt', and not one of distribute, jet, atom, freeze"),
        ({"rule": "atom", "order": 1}, "'order' is not expected"),
        ({"rule": "jet", "order": 1, "directions": "stream"}, "lacks 'weights'"),
        ({"rule": "jet", "order": True, "directions": "stream", "weights": "unit"}, "order is True, which is no whole"),
        ({"rule": "jet", "order": 5000, "directions": "stream", "weights": "unit"}, "not between 0 and 1000"),
        ({"rule": "jet", "order": 1, "directions": "up", "weights": "unit"}, "not one of stream, terms"),
        ({"rule": "jet", "order": 1, "directions": "stream", "weights": "odd"}, "not one of uniform, unit"),
        (
            {"rule": "jet", "order": 1, "directions": "stream", "weights": "unit", "orders": "both"},
            "not one of auto, together, apart",
        ),
        ({"rule": "jet", "order": 1, "directions": "stream", "weights": 3}, "weights is 3, which is no object"),
        ({"rule": "jet", "order": 1, "directions": "stream", "weights": {"a": "b"}}, "weights.a is 'b'"),
        ({"rule": "jet", "order": 2, "directions": "terms", "weights": "unit"}, "order 2 is not available yet"),
        ({"rule": "freeze", "gates": ["norm", "door"]}, r"gates\[1\] is 'door'"),
        ({"rule": "freeze", "gates": "norm"}, "gates is 'norm', which is no list"),
    ],
)
def test_what_is_no_rule_is_told_with_its_place(value: Any, says: str) -> None:
    with pytest.raises(JetGraphError, match=says) as caught:
        rule_from_json(Stored(value, "paths.json"))
    assert str(caught.value).startswith("paths.json is damaged")
