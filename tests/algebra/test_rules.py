"""What each rule means in symbols, and that a rule from outside is as good as those of the house."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from jetgraph.algebra import Atom, Distribute, Freeze, Hop, Jet, Rule, Site
from jetgraph.algebra.expansion import expand
from jetgraph.algebra.formulas import formula
from jetgraph.algebra.rules import RULES
from jetgraph.compilation import passing
from jetgraph.errors import InputError, SelectionError
from tests.outlines import a_map, branch, decoder, join, llama, outline


def test_every_rule_has_a_name_and_a_way_to_run() -> None:
    assert [(name, rule.name) for name, rule in RULES.items()] == [(rule.name, rule.name) for rule in RULES.values()]
    # No path passes an atom.
    assert set(RULES.values()) == {*passing.RULES, Atom}


@pytest.mark.parametrize("rule", [Distribute(), Jet(2), Jet(1, "terms"), Atom(), Freeze()], ids=lambda rule: rule.text)
@pytest.mark.parametrize("site", [branch("L0.mlp", bias=True), a_map("L0.norm", bias=True)], ids=lambda site: site.role)
def test_what_passes_a_site_and_what_the_site_makes(rule: Rule, site: Site) -> None:
    silent = isinstance(rule, Distribute) and site.role == "map"
    hops = {
        Distribute: (None,) if silent else (Hop(site.alias),),
        Jet: (Hop(site.alias, rule.highest, together=True),),
        Atom: (),
        Freeze: (Hop(site.alias),),
    }
    assert rule.hops(site) == hops[type(rule)]
    last = tuple(Hop(site.alias, order) for order in range((rule.highest or 0) + 1))
    assert rule.before_linear().hops(site) == (last if isinstance(rule, Jet) else hops[type(rule)])
    assert [rule.exact(True, alone) for alone in (False, True)] == [not isinstance(rule, Jet), True]
    assert rule.exact(False, True) == isinstance(rule, Atom)
    assert (rule.highest is None, rule.weighting is None) == (not isinstance(rule, Jet),) * 2
    assert [rule.across(order) for order in (None, 0, 1)] == [False, False, rule == Jet(1, "terms")]


def test_defaults_and_what_is_said_of_others() -> None:
    assert Jet(2).text == Jet(2, orders="together").text == "jet of order 2, uniform weights"
    assert Jet(2, orders="apart").text == "jet of order 2, uniform weights, orders apart"
    groups = [Jet(0, centres=centres).text.partition(" around ")[2] for centres in ("blocks", {"all": "*"})]
    assert groups == ["blocks, uniform weights", "groups, uniform weights"]
    assert Freeze() == Freeze(halves=False) != Freeze(halves=True)
    normed = replace(branch("L0.mlp"), homogeneous=True)
    # There is nothing to match where no derivative is taken.
    assert [rule.matches(normed) for rule in (Jet(0), Jet(1), Jet(1, scale="none"))] == [False, True, False]
    rules = (Jet(0), Jet(0, scale="none"), Jet(1), Jet(1, scale="none"))
    assert [rule.reads_lengths(normed) for rule in rules] == [False, False, False, True]
    assert not Jet(1).matches(branch("L0.mlp"))
    assert Jet(1).reads_lengths(branch("L0.mlp"))


def test_what_a_beam_goes_with() -> None:
    assert Jet(0, width=1).beam == 1
    with pytest.raises(InputError, match="0"):
        Jet(0, width=0)
    for options in ({"directions": "terms"}, {"centres": "blocks"}):
        with pytest.raises(InputError, match="a beam chooses among single terms"):
            Jet(1, width=2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "site", "says"),
    [
        (Distribute(), branch("L0.mlp"), "given distributes 'L0.mlp'"),
        (Distribute(), decoder(), "given distributes 'logits'"),
        (Atom(), decoder(), "given makes an atom of the decoder"),
        (Atom(), decoder(affine=True), "given makes an atom of the decoder"),
    ],
)
def test_a_rule_says_where_it_cannot_hold(rule: Rule, site: Site, says: str) -> None:
    with pytest.raises(InputError, match=says):
        rule.fitted(site, "given")


@pytest.mark.parametrize("rule", [Distribute(), Jet(3), Freeze()], ids=lambda rule: rule.text)
def test_an_affine_site_is_distributed(rule: Rule) -> None:
    assert rule.fitted(branch("L0.mlp", affine=True), "given") == Distribute()
    assert Atom().fitted(branch("L0.mlp", affine=True), "given") == Atom()


@dataclass(frozen=True, slots=True)
class Drop(Rule):
    """The site gives nothing: what it makes is left to the remainder."""

    name: ClassVar[str] = "drop"

    why: str = "noise"

    def hops(self, site: Site) -> tuple[Hop | None, ...]:
        return ()


@dataclass(frozen=True, slots=True)
class Pair(Rule):
    """Paths pass at the orders 1 and 3."""

    name: ClassVar[str] = "pair"

    def hops(self, site: Site) -> tuple[Hop | None, ...]:
        return Hop(site.alias, 1), Hop(site.alias, 3)

    def letter(self, order: int | None) -> str:
        return "P"


def test_a_rule_from_outside_is_used_as_it_says() -> None:
    expansion = expand(llama(1), 0, rules={"L0.attn": Drop(), "L0.mlp": Pair()})
    assert list(map(str, expansion)) == [
        "embed > logits^0",
        "embed > L0.mlp^1 > logits^0",
        "embed > L0.mlp^3 > logits^0",
    ]
    assert expansion.counts() == {(0, 0): 1, (1, 1): 1, (1, 3): 1}
    assert (expansion.count(), expansion.count(order=3), expansion.count(order=2)) == (3, 1, 0)
    with pytest.raises(SelectionError, match=r"no path passes 'L0.attn', whose rule is drop"):
        expansion.check("embed > L0.attn > logits^0")
    assert "pair" in repr(expansion)
    assert str(formula(expansion, "embed > L0.mlp^3 > logits^0")) == "w[logits]*J[logits, 0](P[L0.mlp, 3](embed))"
    assert (expansion.symbol("L0.mlp"), expansion.weight("embed > L0.mlp^3 > logits^0", 1)) == ("", 1)


def test_the_decoders_constant_is_there_whatever_the_rule() -> None:
    biased = outline(join(branch("L0.mlp")), last=decoder(bias=True))
    for rule in (Jet(0), Freeze(), Pair()):
        entry = expand(biased, 0, rules={"logits": rule}).entry("bias")
        assert (entry.enters, entry.is_output_bias) == (2, not isinstance(rule, Freeze))
