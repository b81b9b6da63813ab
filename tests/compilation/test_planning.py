"""From paths to operations: a rule from outside needs a line of the table, and what is read is what is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import jetgraph as jg
from jetgraph.algebra import Hop, Rule, Site
from jetgraph.compilation import planning
from tests import zoo
from tests.conftest import Example


@dataclass(frozen=True, slots=True)
class Plain(Rule):
    """f(t) for every incoming term t, unweighted."""

    name: ClassVar[str] = "plain"

    def hops(self, site: Site) -> tuple[Hop | None, ...]:
        return (Hop(site.alias),)


def _plain(lane: planning._Lane, value: int, given: planning.Given) -> planning.Made:
    made = lane.land(lane.coefficient(lane.through(lane.value(value), 0), 0))
    return dict.fromkeys(given.values(), made)


def test_a_rule_from_outside_runs(traced: Callable[..., Example], monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives what a jet of order 0 with weight 1 gives."""
    monkeypatch.setitem(planning.RULES, Plain, _plain)
    example = traced(zoo.case("gpt2"))
    with torch.no_grad():
        plain, jets = (
            jg.compile(jg.expand(example.graph, 0, weights="unit", rules={"*.mlp": rule}))(**example.inputs)
            for rule in (Plain(), jg.Jet(0, weights="unit"))
        )
    assert len(plain.terms) == len(jets.terms) > 4
    for path, value in plain.terms.items():
        named = " > ".join(f"{hop.alias}^0" if hop.alias.endswith("mlp") else str(hop) for hop in path.hops)
        assert torch.equal(value, jets.terms[jg.Path.parse(named)])


@pytest.mark.parametrize(
    ("rules", "point"),
    [({}, None), ({"L0.mlp": jg.Atom()}, 2), ({"L1.attn": jg.Freeze()}, 2), ({"logits": jg.Jet(1)}, 4)],
    ids=["none", "atom", "freeze", "order"],
)
def test_the_last_point_that_is_read(rules: dict[str, Rule], point: int | None, traced: Callable[..., Example]) -> None:
    """The true stream is run as far as a rule needs it, and not at all where every jet is of order 0."""
    module = jg.compile(jg.expand(traced(zoo.case("gpt2")).graph, 0, rules=rules))
    assert module.plan.last == point
