"""Counts, names, weights and rules of expansions, against terms written out by hand."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from math import comb
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetgraph.algebra.expansion import Expansion, expand
from jetgraph.algebra.matching import matching, nearest
from jetgraph.algebra.outline import SINK, MapStep, Outline, Site, Source
from jetgraph.algebra.paths import Hop, Path
from jetgraph.algebra.rules import Atom, Distribute, Freeze, Jet
from jetgraph.algebra.summary import Summary
from jetgraph.errors import BudgetError, InputError, JetGraphError, SelectionError, big
from tests.outlines import EMBED, POS, a_map, branch, by_hand, decoder, gpt2, join, llama, nets, outline


def texts(expansion: Expansion) -> list[str]:
    return [str(path) for path in expansion]


# Counts on nets so small that one can write the terms down


@pytest.mark.parametrize(
    ("net", "order", "expected"),
    [
        (outline(), 0, 1),
        # the one term is the true stream: what is of order 1 and 2 would be zero
        (outline(), 2, 1),
        (outline(sources=(EMBED, POS)), 2, 2 * 3),
        # 2 per join, whatever the order, (k + 1) at the decoder
        (llama(1), 0, 4),
        (llama(1), 1, 4 * 2),
        (llama(1), 2, 4 * 3),
        (outline(join(branch("L0.mlp"))), 1, 2 * 2),
        (outline(join(branch("L0.mlp")), join(branch("L1.mlp")), join(branch("L2.mlp"))), 2, 2**3 * 3),
        (gpt2(1), 1, 2 * 4 * 2),
        # side by side: 1 + 2
        (outline(join(branch("L0.attn"), branch("L0.mlp"))), 1, 3 * 2),
        # an affine branch offers one move, and its bias one source after it
        (outline(join(branch("L0.mlp", affine=True))), 1, 2 * 2),
        (outline(join(branch("L0.mlp", affine=True, bias=True))), 1, 3 * 2),
        # a biased skip adds one term behind its join
        (outline(join(branch("L0.mlp"), bias=True), join(branch("L1.mlp"))), 0, 3 * 2),
        (outline(join(injections=(Source("image", "", "embed"),)), join(branch("L1.mlp"))), 0, 4),
        # a map is no choice: one jet, or one silent move where it is affine
        (outline(join(branch("L0.mlp")), MapStep(a_map("L0.norm"))), 1, 2 * 2),
        (outline(MapStep(a_map("L0.norm")), MapStep(a_map("L0.act"))), 3, 1),
        (outline(MapStep(a_map("L0.norm", affine=True, bias=True))), 1, 2 * 2),
        # an affine decoder has no order; a bias is one term, not one per term
        (outline(join(branch("L0.mlp")), last=decoder(affine=True)), 2, 2),
        (outline(join(branch("L0.mlp")), last=decoder(affine=True, bias=True)), 2, 3),
        (outline(join(branch("L0.mlp")), last=decoder(bias=True)), 1, 5),
        # where nothing nonlinear follows, orders are apart
        (outline(join(branch("L0.mlp")), sources=(EMBED, POS), last=decoder(affine=True)), 2, 2 + 2 * 3),
        (outline(join(branch("L0.mlp")), join(branch("L1.mlp")), last=decoder(affine=True)), 2, 2 + 2 * 3),
    ],
)
def test_counts_by_hand(net: Outline, order: int, expected: int) -> None:
    expansion = expand(net, order)
    assert expansion.count() == expected
    assert len(set(texts(expansion))) == expected


def test_orders_are_apart_where_nothing_nonlinear_follows() -> None:
    """The paper's worked example has four paths; orders apart, nine terms would be centres of the last site."""
    net = outline(join(branch("L0.mlp")), join(branch("L1.mlp")))
    assert texts(expand(net, 1)) == [
        "embed > logits^0",
        "embed > logits^1",
        "embed > L1.mlp~1 > logits^0",
        "embed > L1.mlp~1 > logits^1",
        "embed > L0.mlp~1 > logits^0",
        "embed > L0.mlp~1 > logits^1",
        "embed > L0.mlp~1 > L1.mlp~1 > logits^0",
        "embed > L0.mlp~1 > L1.mlp~1 > logits^1",
    ]
    assert texts(expand(net, 2, orders="together")) == [
        "embed > logits~2",
        "embed > L1.mlp~2 > logits~2",
        "embed > L0.mlp~2 > logits~2",
        "embed > L0.mlp~2 > L1.mlp~2 > logits~2",
    ]
    # A site of order 0 takes centres too; a frozen, an affine one and an atom do not.
    for last, hop in ((Jet(0), "L1.mlp~2"), (Freeze(), "L1.mlp^2"), (Distribute(), "L1.mlp^2")):
        linear = outline(*net.steps, last=decoder(affine=isinstance(last, Distribute)))
        mixed = expand(linear, 2, rules={"logits": last})
        assert hop in {str(hop) for path in mixed for hop in path.hops}
        assert ("embed > L0.mlp~2 > L1.mlp~2 > logits^0" in mixed) == isinstance(last, Jet)
    atoms = expand(net, 2, rules={"L1.mlp": Atom(), "logits": Freeze()}, weights="unit")
    assert texts(atoms)[:2] == ["embed > logits", "embed > L0.mlp^0 > logits"]
    asked = {"L0.mlp": Jet(2, orders="together"), "L1.mlp": Jet(2, orders="apart")}
    assert [len(expand(net, 0, rules={a: rule}).passage(a).hops) for a, rule in asked.items()] == [1, 3]


def test_no_term_is_zero_by_construction() -> None:
    """D^j f(h)[0] is zero where the one centre is the true stream; it is no term, and takes no weight."""
    expansion = expand(llama(1), 1, orders="apart")
    # embed | L0.attn^0 | L0.mlp^0, ^1 of both
    assert [expansion.incoming(point) for point in range(4)] == [1, 2, 6, 12]
    assert expansion.weights("embed > L0.attn^0 > L0.mlp^1 > logits^0") == (1, 1, Fraction(1, 2), Fraction(1, 6))
    assert "embed > L0.attn^1 > logits^0" not in expansion
    # After an atom of a map there is one term again, and it is the stream.
    net = outline(join(branch("L0.mlp")), MapStep(a_map("L0.norm")))
    assert texts(expand(net, 2, rules={"L0.norm": Atom()})) == ["L0.norm > logits^0"]
    # One centre that is not the stream: what the jet before leaves is missing.
    after = outline(join(branch("L0.mlp")), MapStep(a_map("L0.norm")), join(branch("L1.mlp", reads=0)))
    dropped = expand(after, 1, rules={"L0.norm": Jet(0)}, orders="apart")
    assert "embed > L1.mlp^1 > logits^0" not in dropped
    assert "embed > L0.norm^0 > logits^1" in dropped
    # What is missing from one join on is missing behind the next, however exact that is.
    three, one = outline(*(join(branch(f"L{i}.mlp")) for i in range(3))), Jet(1, orders="apart", centres={"all": "*"})
    missing = expand(three, 0, rules={"L2.mlp": Atom(), "logits": one})
    assert "all > logits^1" in texts(missing)
    whole = expand(three, 0, rules={"L1.mlp": Atom(), "L2.mlp": Atom(), "logits": one})
    assert "all > logits^1" not in texts(whole)


def test_terms_of_two_joins_in_order() -> None:
    assert texts(expand(llama(1), 0)) == [
        "embed > logits^0",
        "embed > L0.mlp^0 > logits^0",
        "embed > L0.attn^0 > logits^0",
        "embed > L0.attn^0 > L0.mlp^0 > logits^0",
    ]


def test_biases_are_named_along_the_stream() -> None:
    sources = (EMBED, Source("bias", "encoder", "bias"))
    net = outline(
        join(branch("L0.mlp", affine=True, bias=True), bias=True), sources=sources, last=decoder(affine=True, bias=True)
    )
    expansion = expand(net)
    facts = [(entry.source.alias, entry.enters, entry.origin) for entry in expansion.entries]
    assert facts == [
        ("embed", 0, "encoder"),
        ("bias", 0, "encoder"),
        ("L0.mlp.skip.bias", 1, "skip"),
        ("L0.mlp.bias", 1, "affine"),
        ("logits.bias", 2, "decoder"),
    ]
    assert [entry.of_decoder for entry in expansion.entries] == [False] * 4 + [True]
    assert "logits.bias > logits" in expansion
    assert "L0.mlp.skip.bias > L0.mlp > logits" not in expansion


def test_an_affine_net_is_the_sum_over_subsets() -> None:
    net = outline(*(join(branch(f"L{n}.mlp", affine=True)) for n in range(3)), last=decoder(affine=True))
    assert sorted(texts(expand(net, 5)))[0] == "embed > L0.mlp > L1.mlp > L2.mlp > logits"
    assert expand(net, 5).count() == 2**3


def test_orders_are_apart_before_a_sum_that_ends_all_terms() -> None:
    """Where nothing is skipped and the branch is an atom, what nonlinear sites follow takes no term of before."""
    sources = (EMBED, Source("pos", "wpe", "pos"))
    net = outline(join(branch("L0.mlp")), join(branch("L1.mlp"), skip="none"), sources=sources)
    ended = expand(net, 1, rules={"L1.mlp": Atom()})
    assert (ended.incoming(1), texts(ended)) == (6, ["L1.mlp > logits^0"])
    assert expand(net, 1).incoming(1) == 4


@given(nets())
@settings(max_examples=200, deadline=None)
def test_terms_agree_with_terms_by_hand(case) -> None:
    net, rules = case
    points = by_hand(net, rules)
    expansion = expand(net, rules=rules)
    expected = [" > ".join(term.hops) for term in points[-1]]
    assert len(set(expected)) == len(expected)
    found = list(expansion.terms(budget=None))
    assert sorted(map(str, found)) == sorted(expected)
    assert expansion.count() == len(expected)
    for point, terms in enumerate(points):
        assert expansion.incoming(point) == len(terms)
    table = Counter((path.length, path.order) for path in found)
    assert expansion.counts() == table
    assert expansion.automaton.highest == max((order for _, order in table), default=0)
    for length, order in {*table, (0, 0), (9, 9)}:
        assert expansion.count(length=length, order=order) == table[length, order]
        assert expansion.count(length=length) == sum(n for (a, _), n in table.items() if a == length)
        assert expansion.count(order=order) == sum(n for (_, b), n in table.items() if b == order)
    assert all(path in expansion for path in found)


@pytest.mark.parametrize("order", range(6))
def test_counts_of_any_number_of_orders(order: int) -> None:
    expansion = expand(llama(1), order, orders="apart")
    assert expansion.counts() == Counter((path.length, path.order) for path in expansion)


# The largest model


def test_405b_counts_are_exact_and_instant() -> None:
    net = llama(126)
    assert expand(net, 0).count() == 2**252
    for order in (1, 2, 3, 10):
        assert expand(net, order).count() == 2**252 * (order + 1)
        # of what the first site gives of the one term that it reads, all but the value is zero
        assert expand(net, order, orders="apart").count() == 2 * (order + 2) ** 251 * (order + 1)


def test_405b_counts_by_length_and_order() -> None:
    together = expand(llama(126), 1)
    # of length l, and order l or, with that of the decoder, l + 1
    assert together.count(length=100) == 2 * comb(252, 100)
    assert together.counts() == {(n, n + j): comb(252, n) for n in range(253) for j in range(2)}
    expansion = expand(gpt2(126), 1, orders="apart")
    assert expansion.count(length=100) == 2 * comb(252, 100) * 2**100 * 2
    # of length l, order j: C(252, l) ways to choose sites, and j of the l + 1 jets (decoder too) at order 1
    assert expansion.count(length=100, order=30) == 2 * comb(252, 100) * comb(101, 30)
    assert expansion.count(length=252, order=253) == 2
    assert expansion.count(length=253) == expansion.count(order=254) == expansion.count(order=-1) == 0
    assert expansion.count(order=0) == 2 * 2**252


def test_the_budget_stops_before_enumeration() -> None:
    expansion = expand(llama(126), 0)
    with pytest.raises(BudgetError, match=r"2\^252 .*select"):
        iter(expansion)
    with pytest.raises(BudgetError, match="3"):
        expand(llama(1), 0).terms(budget=3)
    first = list(islice(expansion.terms(budget=None), 2))
    assert list(map(str, first)) == ["embed > logits^0", "embed > L125.mlp^0 > logits^0"]
    # Of centres too; no budget of 2^40 is any use.
    deep = expand(llama(20), 0)
    with pytest.raises(BudgetError, match=rf"raise it with expansion\.centres\('L19\.mlp', budget={2**39}\)$"):
        deep.centres("L19.mlp")
    with pytest.raises(BudgetError, match="budget of 100000: expand with centres='blocks'"):
        deep.centres("logits")
    ends = ("embed", "embed > L0.attn^0", "embed > L0.mlp^0", "embed > L0.attn^0 > L0.mlp^0")
    assert expand(llama(1), 0).centres("logits", budget=4) == ends
    with pytest.raises(BudgetError):
        expand(llama(1), 0).centres("logits", budget=3)


@pytest.mark.parametrize(
    ("budget", "order", "fitting"),
    [(9, 2, "take order 2 or a lower one"), (3, 0, "take order 0 or a lower one"), (2, -1, "take jets at fewer sites")],
)
def test_orders_have_a_budget(budget: int, order: int, fitting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three sites have order + 1 hops each; what the message names fits, and the next does not."""
    monkeypatch.setattr("jetgraph.algebra.rewriting.HOP_BUDGET", budget)
    if order >= 0:
        expand(llama(1), order)
    with pytest.raises(BudgetError, match=fitting):
        expand(llama(1), order + 1)


# Weights


def last_counts(net: Outline, expansion: Expansion) -> list[Counter[str]]:
    return [Counter(term.last for term in terms) for terms in by_hand(net, expansion.rules)]


def test_uniform_weights_are_one_over_the_incoming_terms() -> None:
    expansion = expand(llama(1), 1)
    assert expansion.weights("embed > L0.attn~1 > L0.mlp~1 > logits^0") == (1, 1, Fraction(1, 2), Fraction(1, 4))
    assert expansion.weight("embed > L0.mlp~1 > logits^1", -1) == Fraction(1, 4)
    assert expand(llama(126), 0).weight("embed > logits^0", 1) == Fraction(1, 2**252)
    assert expansion.symbol("L0.mlp") == "w[L0.mlp]"
    # Of one term, of two, and of four.
    assert expansion.lightness() == expansion.lightness(Path.parse("embed > L0.attn~1 > L0.mlp~1 > logits^0")) == 3


def test_affine_sites_and_biases_have_weight_one() -> None:
    net = outline(join(branch("L0.mlp", affine=True)), last=decoder(bias=True))
    expansion = expand(net)
    assert expansion.weights("embed > L0.mlp > logits^0") == (1, 1, Fraction(1, 2))
    assert expansion.weights("bias > logits") == (1, 1)
    assert expansion.symbol("L0.mlp") == ""


@given(nets(), st.sampled_from(["uniform", {"*": 2.0, "embed": 3.0}, {"*": 0.5, "e*": 7.0}]))
@settings(max_examples=150, deadline=None)
def test_weights_sum_to_one_at_every_jet(case, weights) -> None:
    net, rules = case
    named = {a: replace(rule, weights=weights) if isinstance(rule, Jet) else rule for a, rule in rules.items()}
    expansion = expand(net, rules=named)
    arriving = last_counts(net, expansion)
    for place in expansion.passages.values():
        centres = arriving[place.reads]
        if isinstance(place.rule, Jet) and centres:
            total = sum(n * expansion.centre_weight(place.site.alias, last) for last, n in centres.items())
            assert total == 1


def test_given_weights_are_relative_and_later_patterns_win() -> None:
    expansion = expand(llama(1), 0, weights={"*.mlp": 5, "L0.*": 2, "embed": 0})
    # at the decoder: embed 0, mlp 2 (twice: behind embed and behind attn), attn 2
    assert expansion.weight("embed > logits^0", 1) == 0
    assert expansion.weight("embed > L0.mlp^0 > logits^0", 2) == Fraction(1, 3)
    assert expansion.weight("embed > L0.attn^0 > logits^0", 2) == Fraction(1, 3)


def test_given_weights_at_252_joins() -> None:
    expansion = expand(gpt2(126), 1, weights={"*.mlp": 2.0}, orders="apart")
    weight = expansion.weight("embed > L125.mlp^0 > logits^0", 2)
    # of 2 · 3^252 terms, two thirds end at the last mlp; by symmetry solve for those that end at any mlp
    endings = 2 * sum(2 * 3**n for n in range(1, 252, 2))
    assert weight == Fraction(2, 2 * endings + (2 * 3**252 - endings))


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"nope": 1.0}, "'nope'.*embed"), ({"embed": -1.0}, "not negative"), ({"embed": float("nan")}, "finite")],
)
def test_bad_weights(weights: dict[str, float], message: str) -> None:
    with pytest.raises(JetGraphError, match=message):
        expand(llama(1), weights=weights)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((0.0, 3.0), ""),
        (((1.0, 3.0),), ""),
        (((1.0, 3.0), (0.0, 2.0)), ""),
        ((((1, 3.0), (0.0, 2.0)), ((1, 3.0), (0.0, 2.0))), ""),
        ((1.0,), "ends in 1 centre, not in 2"),
        (((1.0, 2.0), (1.0, 2.0, 3.0)), "ends in 3 centres, not in 2"),
        (((1.0, 2.0), (3.0, -1.0)), "finite and not negative"),
        ((1.0, float("inf")), "finite and not negative"),
        (("1.0", 2.0), "finite and not negative"),
        (((1.0, 2.0), (0.0, 0.0)), "zero for every centre"),
    ],
)
def test_tables_of_weights_have_one_a_centre_in_each_row(weights: Any, message: str) -> None:
    """At `L0.mlp` the embedding and the attention before it arrive."""
    rules = {"L0.mlp": Jet(0, weights=weights)}
    if not message:
        expansion = expand(llama(1), 0, rules=rules)
        assert expansion.centres("L0.mlp") == ("embed", "embed > L0.attn^0")
        with pytest.raises(InputError, match=r"at 'L0\.mlp' are given by a tensor"):
            expansion.weights("embed > L0.mlp^0 > logits^0")
        return
    with pytest.raises(InputError, match=rf"at 'L0\.mlp' .*{message}"):
        expand(llama(1), 0, rules=rules)


def test_weights_that_are_all_zero() -> None:
    expansion = expand(llama(1), weights={"*": 0.0})
    with pytest.raises(JetGraphError, match=r"'L0.attn' are zero"):
        expansion.weights("embed > L0.attn~1 > logits^0")


# Recipes and rules


def test_components_start_at_their_branches() -> None:
    net = outline(
        join(branch("L0.attn"), bias=True), join(branch("L0.mlp", affine=True, bias=True)), MapStep(a_map("L0.norm"))
    )
    expansion = expand(net, recipe="components")
    assert {path.split(" > ")[0] for path in texts(expansion)} == {"embed", "L0.attn", "bias", "L0.mlp"}
    assert expansion.count() == 4 * 2
    assert expansion.weights("L0.attn > L0.norm~1 > logits^1") == (1, Fraction(1, 4), Fraction(1, 4))
    entry = expansion.entry("L0.mlp")
    assert (entry.source.kind, entry.enters, entry.origin) == ("atom", 2, "atom")
    assert entry.site == branch("L0.mlp", affine=True, bias=True)
    assert expansion.passage("L0.mlp").hops == ()


def test_path_recipe_has_weight_one_everywhere() -> None:
    expansion = expand(llama(2), recipe="path")
    assert (expansion.order, expansion.count()) == (0, 16)
    assert set(expansion.weights("embed > L0.mlp^0 > L1.attn^0 > logits^0")) == {1}
    with pytest.raises(JetGraphError, match="order 0, not 1"):
        expand(llama(2), 1, recipe="path")


def test_lens_reads_the_stream_at_each_point() -> None:
    expansion = expand(llama(1), recipe="lens")
    assert texts(expansion) == ["h0 > logits^0", "h1 > logits^0", "h2 > logits^0"]
    assert expansion.weights("h1 > logits^0") == (1, 1)
    entry = expansion.entry("h1")
    assert (entry.source.kind, entry.point, entry.enters) == ("stream", 1, 2)
    assert texts(expand(llama(1), 1, recipe="lens", layers=-1)) == ["h2 > logits^0", "h2 > logits^1"]
    biased = outline(join(branch("L0.mlp")), last=decoder(bias=True))
    assert texts(expand(biased, recipe="lens", layers=[0])) == ["h0 > logits^0", "bias > logits"]


@pytest.mark.parametrize(
    ("layers", "points"),
    [
        ("*.mlp", [2, 4]),
        ([0, "L1.attn"], [0, 3]),
        ("h4", [4]),
        ("model.layers.0.*", [1, 2]),
        ([-1, 4], [4]),
        ([-5], [0]),
    ],
)
def test_lens_layers(layers: int | str | list[int | str], points: list[int]) -> None:
    expansion = expand(llama(2), recipe="lens", layers=layers)
    assert [entry.point for entry in expansion.entries] == points


@pytest.mark.parametrize("layers", [3, -4, "L9.*"])
def test_lens_layers_that_are_none(layers: int | str) -> None:
    with pytest.raises(JetGraphError, match=r"points 0\.\.2|L0\.attn"):
        expand(llama(1), recipe="lens", layers=layers)


def test_rules_mix_and_later_ones_win() -> None:
    net = llama(2)
    expansion = expand(net, 0, rules={"*": Freeze(), "model.layers.1.*": Jet(2), "L1.mlp": Atom(), "output": Jet(0)})
    assert [type(rule) for rule in expansion.rules.values()] == [Freeze, Freeze, Jet, Atom, Jet]
    # (embed, 2 at attn + bias = 3, 3 * 2 + 1 = 7, 7 * 2 = 14, + the atom)
    assert [expansion.incoming(point) for point in range(6)] == [1, 3, 7, 14, 15, 15]
    assert "L0.attn.bias > L0.mlp > L1.attn~2 > logits^0" in expansion
    assert "L1.mlp > logits^0" in expansion


def test_an_atom_of_a_map_ends_all_histories() -> None:
    net = outline(join(branch("L0.mlp")), MapStep(a_map("L0.norm")), join(branch("L1.mlp")))
    expansion = expand(net, 0, rules={"L0.norm": Atom()})
    assert texts(expansion) == ["L0.norm > logits^0", "L0.norm > L1.mlp^0 > logits^0"]


def test_tables_of_weights_of_groups_have_one_a_group() -> None:
    """Of four terms there are three kinds."""
    kinds = Jet(0, centres="kinds", weights=(1.0, 2.0, 3.0))
    assert len(expand(llama(1), 0, rules={"logits": kinds}).centres("logits")) == 3
    with pytest.raises(InputError, match="ends in 3 centres, not in 4"):
        expand(llama(1), 0, rules={"logits": replace(kinds, centres="terms")})


def test_weights_of_groups_sum_to_one() -> None:
    """Each group counts once, however many terms are in it."""
    expansion = expand(llama(2), 0, centres="kinds", weights={"mlp": 3.0})
    ends = {str(path.hops[0]): expansion.weights(path)[-1] for path in expansion if path.length == 0}
    assert ends == {"embed": Fraction(1, 5), "attn": Fraction(1, 5), "mlp": Fraction(3, 5)}


def test_a_frozen_decoder_has_one_bias() -> None:
    expansion = expand(llama(1), 0, rules={"logits": Freeze(("norm",))})
    assert expansion.count() == 4 + 1
    assert texts(expansion)[-1] == "bias > logits"
    assert expansion.entry("bias").origin == "freeze"


def test_jets_at_affine_sites_distribute() -> None:
    net = outline(join(branch("L0.mlp", affine=True)))
    assert expand(net, rules={"*.mlp": Jet(3)}).rules["L0.mlp"] == Distribute()


def test_terms_direction_has_the_same_names() -> None:
    assert texts(expand(llama(1), 1, directions="terms")) == texts(expand(llama(1), 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "melt"}, "exhaustive, components, frozen, path, lens"),
        ({"recipe": "frozen", "order": 1}, "takes no jets: leave order=1 out"),
        ({"recipe": "frozen", "weights": "optimal"}, "leave weights='optimal' out"),
        ({"recipe": "frozen", "scale": "none"}, "leave scale='none' out"),
        ({"halves": True}, 'for recipe="frozen" only'),
        ({"scale": "short"}, "choose 'matched' or 'none'"),
        ({"weights": "optimal", "directions": "terms"}, 'take directions="stream"'),
        ({"split": "heads"}, "an outline has not"),
        ({"order": 2, "directions": "terms"}, "not available yet"),
        ({"order": -1}, "at least 0"),
        ({"layers": 3}, "lens"),
        ({"orders": "both"}, "'auto', 'together' or 'apart'"),
        ({"recipe": "lens", "weights": "uniform"}, "weight 1"),
        ({"rules": {"L9.mlp": Jet(0)}}, r"did you mean 'L0\.mlp'"),
        ({"rules": {"L0.mlp": Distribute()}}, r"not affine: use Jet"),
        ({"rules": {"logits": Atom()}}, "decoder"),
        ({"rules": {"logits": "jet"}}, "none of Distribute"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(JetGraphError, match=message):
        expand(llama(1), **options)


@dataclass
class Graph:
    outline: Outline


def test_expand_takes_anything_with_an_outline() -> None:
    graph = Graph(llama(1))
    assert expand(graph).graph is graph
    with pytest.raises(JetGraphError, match=r"jetgraph\.trace"):
        expand("gpt2")  # pyright: ignore[reportArgumentType]


def test_names_are_unique() -> None:
    with pytest.raises(JetGraphError, match=r"L0\.mlp occurs more than once"):
        expand(outline(join(branch("L0.mlp")), join(branch("L0.mlp"))))
    with pytest.raises(JetGraphError, match="alias is 'logits'"):
        expand(outline(last=Site("head", "", "logits", "decoder", False, False)))


# Places and checks


def test_places() -> None:
    expansion = expand(llama(2), 1)
    place = expansion.passage("L1.attn")
    assert (place.step, place.rule, place.hops) == (3, Jet(1), (Hop("L1.attn", 1, together=True),))
    assert expansion.passage("logits").step == expansion.sink == 5
    assert list(expansion.passages) == ["L0.attn", "L0.mlp", "L1.attn", "L1.mlp", "logits"]
    with pytest.raises(SelectionError, match=r"did you mean 'L1\.attn'"):
        expansion.passage("L1.atn")
    with pytest.raises(SelectionError, match="no source 'embd'; did you mean 'embed'"):
        expansion.entry("embd")
    with pytest.raises(SelectionError, match=r"0\.\.5"):
        expansion.incoming(6)
    path = "embed > L0.attn > logits"
    weighed = expand(llama(2), 1, weights={"L0.*": 3})
    one = Path.parse("embed > L0.mlp~1 > L1.attn~1 > logits^1")
    product = math.prod(weighed.weights(one))
    assert product.numerator > 1
    assert weighed.lightness(one) == pytest.approx(-math.log2(product))
    assert expansion.weight(path, -3) == expansion.weight(path, 0) == 1
    for index in (3, -4):
        with pytest.raises(SelectionError, match=rf"has hops 0\.\.2, not {index}"):
            expansion.weight(path, index)
    assert len(list(expansion.terms(budget=expansion.count()))) == expansion.count()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("embd > logits^0", "did you mean 'embed'"),
        ("embed^0 > logits^0", "carries no order"),
        ("embed > L0.mpl^0 > logits^0", r"did you mean 'L0\.mlp'"),
        ("embed > L0.mlp > L0.norm~1 > logits^0", r"it has to be L0\.mlp~1, not L0\.mlp$"),
        ("embed > L0.mlp~2 > L0.norm~1 > logits^0", r"not L0\.mlp~2"),
        ("embed > L0.mlp^1 > L0.norm~1 > logits^0", r"it has to be L0\.mlp~1, not L0\.mlp\^1"),
        ("embed > L0.mlp~1 > L0.norm~1 > logits", r"logits\^0 or logits\^1, not logits$"),
        ("embed > L0.mlp~1 > L0.attn~1 > L0.norm~1 > logits^0", "comes before"),
        ("embed > L0.mlp~1 > L0.mlp~1 > L0.norm~1 > logits^0", "or stands beside it"),
        ("embed > L0.mlp~1 > logits^0", r"before 'logits' it has to pass L0\.norm~1"),
        ("embed > L0.mlp~1 > L0.norm~1", "does not end at 'logits'"),
        ("bias > logits^0", "the term 'bias > logits'"),
        ("embed > L0.norm~1 > L1.mlp^0 > logits^0", "whose rule is atom"),
    ],
)
def test_check_says_what_is_wrong(path: str, message: str) -> None:
    net = outline(
        join(branch("L0.attn")),
        join(branch("L0.mlp")),
        MapStep(a_map("L0.norm")),
        join(branch("L1.mlp")),
        last=decoder(bias=True),
    )
    expansion = expand(net, rules={"L1.mlp": Atom()})
    assert path not in expansion
    with pytest.raises(SelectionError, match=message):
        expansion.check(path)


def test_no_more_names_are_told_than_one_reads() -> None:
    names = [f"L{number}.mlp" for number in range(13)]
    told = nearest("L.mlp", names)
    assert (told.count(" or "), told.count("L")) == (2, 3 + 12)
    assert told.endswith("L11.mlp, … (13 in all)")
    assert nearest("?", names[:12]) == f"; there are: {', '.join(names[:12])}"
    for number, told in ((4, "L0.a, L0.b, L0.c, L0.d, as"), (5, "L0.a, L0.b, L0.c, L0.d, … (5 in all), as")):
        known = {f"L0.{letter}": "" for letter in "abcde"[:number]} | {"L1.z": "L0.z"}
        with pytest.raises(SelectionError, match=re.escape(f"as an alias it stands for {told} a module path for L1.z")):
            matching("L0.*", known)


@pytest.mark.parametrize(("number", "more"), [(6, ""), (7, " …")])
def test_of_seven_names_six_are_told(number: int, more: str) -> None:
    sites = [f"L{block}.mlp" for block in range(number)]
    expansion = expand(outline(*(join(branch(alias)) for alias in sites)), 0, centres="components")
    # What begins at a group goes on at each site after it.
    begins = " or ".join(f"L0.mlp > {alias}^0" for alias in [*sites[1:], "logits"][:6])
    groups = ", ".join(["embed", *sites][:6])
    for path, told in (
        (f"embed > L0.mlp^0 > {sites[-1]}^0", f"groups, at which paths start: {groups}{more and ', …'}"),
        ("L0.mlp > embed", f"of 'L0.mlp' paths begin {begins}{more}"),
    ):
        with pytest.raises(SelectionError, match=f"{re.escape(told)}$"):
            expansion.check(path)
    sources = tuple(Source(f"s{place}", "", "embed") for place in range(number))
    told = f"s0, s1, s2, s3, s4, s5{more and ', … (7 in all)'}"
    assert f"sources  {told}\n" in repr(expand(outline(sources=sources)))


def test_check_parses_text() -> None:
    expansion = expand(llama(1))
    assert expansion.check("embed > output^1") == Path((Hop("embed"), Hop("logits", 1)))
    assert expansion.check("embed > output^1").sink == Hop("logits", 1)
    assert "hash" not in repr(expansion.check("embed > output^1"))
    assert str(expand(llama(1), 0).check("embed > L0.mlp~0 > output~0")) == "embed > L0.mlp^0 > logits^0"
    assert "not a path" not in expansion
    assert 3 not in expansion


# Showing


def test_repr_says_what_it_costs() -> None:
    shown = repr(expand(llama(126), 0))
    assert "2^252 ≈ 7.24e+75" in shown
    assert "0 to 252 per term, 126.0 on average" in shown
    assert "branch   attn       126  jet of order 0, uniform weights" in shown
    small = expand(llama(1))
    for bits, told in ((149, False), (149.4, True)):
        text = Summary("exhaustive", 1, small.automaton, small.passages.values(), bits).text()
        assert ("weights of 2^-149 along a path are below what float32 holds (2^-149)" in text) is told
    page = expand(llama(1), weights={"embed": 2.0})._repr_html_()
    assert page.startswith("<table>")
    assert "<td>jet of order 1, given weights</td>" in page


def test_big() -> None:
    assert big(10**11) == "100,000,000,000"
    assert big(10**5000).endswith("e+5000")


# Aliases against module paths


def from_one(*kinds: str) -> Outline:
    """Two blocks, the modules of which are numbered from 1: the path of each is the alias of the next one."""
    steps = [
        join(Site(f"L{block}.{kind}", f"L{block + 1}.{kind}", kind, "branch", False, False))
        for block in range(2)
        for kind in kinds
    ]
    return outline(*steps)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("L1.mlp", ["L1.mlp"]),
        ("L2.mlp", ["L1.mlp"]),
        ("*.mlp", ["L0.mlp", "L1.mlp"]),
        ("L?.attn", ["L0.attn", "L1.attn"]),
        ("L0.*", ["L0.attn", "L0.mlp"]),
        ("output", [SINK]),
        ("lm_*", [SINK]),
        ("L3.mlp", []),
    ],
)
def test_an_alias_comes_before_a_path(pattern: str, expected: list[str]) -> None:
    net = from_one("attn", "mlp")
    assert matching(pattern, {site.alias: site.path for site in net.sites()}) == expected
    if expected:
        rules = expand(net, order=0, rules={pattern: Jet(2)}).rules
        assert [alias for alias, rule in rules.items() if rule.highest == 2] == expected


def test_what_a_glob_stands_for() -> None:
    names = {"L0.mlp": "M0.mlp", "L0.mlp.bias": "", "logits": "L9"}
    assert matching("L0.m*", names) == ["L0.mlp"]
    assert matching("*.bias", names) == ["L0.mlp.bias"]
    # Of aliases and modules, where it does not tell a block.
    assert matching("L*", names) == ["L0.mlp", "logits"]


def test_weights_and_layers_go_by_alias_first() -> None:
    net = from_one("mlp")
    weighted = expand(net, order=0, weights={"L1.mlp": 3.0})
    # The path of L0.mlp is L1.mlp, but the weight is that of the site of this name, of which none arrives at L1.mlp.
    assert weighted.weights("embed > L0.mlp^0 > L1.mlp^0 > logits^0") == (1, 1, Fraction(1, 2), Fraction(3, 8))
    assert weighted.weights("embed > L0.mlp^0 > logits^0")[-1] == Fraction(1, 8)
    # A module path is understood too.
    assert expand(net, order=0, weights={"L2.mlp": 3.0}).weights("embed > L1.mlp^0 > logits^0")[-1] == Fraction(3, 8)
    assert [entry.point for entry in expand(net, recipe="lens", layers="L1.mlp").entries] == [2]
    assert [entry.point for entry in expand(net, recipe="lens", layers=["h1", "L2.mlp"]).entries] == [1, 2]


@pytest.mark.parametrize("option", ["rules", "weights", "layers"])
def test_two_meanings_are_an_error(option: str) -> None:
    value = {"rules": {"L1.*": Atom()}, "weights": {"L1.*": 2.0}, "layers": "L1.*"}[option]
    more = {"recipe": "lens"} if option == "layers" else {}
    with pytest.raises(
        SelectionError, match=r"as an alias .* L1\.mlp, as a module path for L0\.mlp \(module L1\.mlp\)"
    ):
        expand(from_one("mlp"), **{option: value}, **more)


def test_parts_of_a_branch_are_not_the_module_of_its_name() -> None:
    """With L1.attn cut into heads there is no such site, and the module of that name makes another one."""
    heads = [Site(f"L1.attn.head{i}", "L2.attn", "attn", "branch", False, False) for i in range(2)]
    net = outline(join(Site("L0.attn", "L1.attn", "attn", "branch", False, False)), join(*heads))
    with pytest.raises(SelectionError, match=r"L1\.attn\.head0, L1\.attn\.head1"):
        expand(net, rules={"L1.attn": Atom()})
    assert set(expand(net, 0, rules={"L1.attn.*": Atom()}).rules.values()) == {Jet(0), Atom()}


def test_a_module_called_logits_is_not_the_sink() -> None:
    net = outline(join(Site("L0.mlp", "logits", "mlp", "branch", False, False)))
    rules = expand(net, order=0, rules={"logits": Jet(2)}).rules
    assert rules == {"L0.mlp": Jet(0), "logits": Jet(2, orders="apart")}
    with pytest.raises(JetGraphError, match="matches no site and no point"):
        expand(net, recipe="lens", layers="logits")


def test_expansions_are_themselves() -> None:
    one, other = expand(llama(1)), expand(llama(1))
    assert len({one, other}) == len({one.automaton, other.automaton}) == 2


def test_a_group_may_be_called_as_a_source() -> None:
    # Also as one that enters after it.
    net = outline(join(branch("L0.mlp")), join(branch("L1.mlp"), bias=True))
    later = expand(net, 0, centres={"bias": "embed"}, rules={"L1.mlp": Freeze(), "logits": Freeze()})
    found = [later.start(Path.parse(text)) for text in ("bias > logits", "bias > L0.mlp^0 > logits")]
    assert [(entry.is_group, entry.enters) for entry in found] == [(False, 2), (True, 1)]
    expansion = expand(gpt2(1), 0, centres={"embed": "pos"}, rules={"L0.mlp": Freeze(), "logits": Freeze()})
    texts = ("embed > logits", "embed > L0.attn^0 > logits")
    found = [expansion.start(Path.parse(text)) for text in texts]
    assert [(entry.is_group, entry.enters) for entry in found] == [(False, 0), (True, 1)]
    assert all(text in expansion for text in texts)
    assert expansion.groups("L0.attn") == {"embed": "rest", "pos": "embed"}
    with pytest.raises(SelectionError, match="centres of 'logits' are single terms"):
        expansion.groups("logits")


def test_a_beam_lumps_what_is_beyond_its_width() -> None:
    assert [expand(llama(1), 0, recipe="beam", width=width).count() for width in (3, 4, 5)] == [5, 4, 4]
    for options in ({"width": 2}, {"target": 3}):
        with pytest.raises(InputError, match='are for recipe="beam"'):
            expand(llama(1), **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"beam at 'L0\.mlp' .* 'logits' has jet of order 0, uniform weights"):
        expand(llama(1), 0, rules={"L0.mlp": Jet(0, width=2), "L0.attn": Jet(0, weights="unit")})
    assert expand(llama(1), 0, rules={"*": Jet(0, weights="unit"), "L0.mlp": Jet(0, width=2)}).chooses


@pytest.mark.parametrize(("width", "widths"), [(2, [2, 3, 3]), (3, [2, 4, 4]), (9, [2, 4, 9])])
def test_a_beam_is_no_wider_than_what_arrives(width: int, widths: list[int]) -> None:
    """Two sources, then four terms, then these, what is made of them, and a bias."""
    net = outline(join(branch("L0.mlp")), join(branch("L1.mlp"), bias=True), sources=(EMBED, POS))
    assert [place.beam for place in expand(net, 0, recipe="beam", width=width).passages.values()] == widths


def test_a_lens_is_at_points_that_there_are() -> None:
    assert [entry.point for entry in expand(llama(1), recipe="lens", layers="h2").entries] == [2]
    with pytest.raises(SelectionError, match=r"matches no site and no point h0\.\.h2"):
        expand(llama(1), recipe="lens", layers="h3")
