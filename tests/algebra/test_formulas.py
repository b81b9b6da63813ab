"""Generating functions against counts, formulas against what the terms are."""

from __future__ import annotations

import pytest
import sympy as sp
from hypothesis import given, settings

from jetgraph.algebra.expansion import expand
from jetgraph.algebra.formulas import formula, generating_function, identity, latex, moved, x, y
from jetgraph.algebra.outline import JoinStep, MapStep
from jetgraph.algebra.rules import Freeze
from jetgraph.algebra.selection import select
from jetgraph.errors import BudgetError, SelectionError
from tests.outlines import a_map, branch, decoder, gpt2, join, llama, nets, outline


@given(nets())
@settings(max_examples=100, deadline=None)
def test_coefficients_are_the_counts(case) -> None:
    net, rules = case
    expansion = expand(net, rules=rules)
    polynomial = sp.Poly(generating_function(expansion), x, y)
    assert {key: int(n) for key, n in polynomial.as_dict().items() if n} == expansion.counts()


def test_of_groups_the_site_that_makes_them_counts() -> None:
    within = expand(llama(1), 1, centres="components", rules={"logits": Freeze()})
    assert generating_function(within) == 3 * x * y + 2 * x + 2
    assert generating_function(expand(llama(1), 1, centres="components")) == 3 * y + 3


def test_the_generating_function_of_405b_is_one_power() -> None:
    assert generating_function(expand(llama(126), 3)) == (1 + x * y**3) ** 252 * (1 + y + y**2 + y**3)
    found = generating_function(expand(gpt2(126), 1, orders="apart"))
    assert found == 2 * (1 + x * (1 + y)) ** 252 * (1 + y)
    assert found.subs({x: 1, y: 1}) == 2 * 3**252 * 2


def test_biases_at_252_joins_stay_a_sum_of_powers() -> None:
    net = outline(*(join(branch(f"L{n}.mlp"), bias=True) for n in range(252)))
    expansion = expand(net, 2)
    found = generating_function(expansion)
    assert found.subs({x: 1, y: 1}) == expansion.count()


def test_formula_of_a_term() -> None:
    apart = expand(gpt2(1), 1, orders="apart")
    found = formula(apart, "embed > L0.attn^1 > L0.mlp^0 > logits^1")
    embed, first, second, last = sp.symbols("embed w[L0.attn] w[L0.mlp] w[logits]", seq=True)
    inner = first * sp.Function("J[L0.attn, 1]")(embed)
    middle = second * sp.Function("J[L0.mlp, 0]")(inner)
    assert found == last * sp.Function("J[logits, 1]")(middle)
    together = expand(llama(1), 2)
    assert (
        str(formula(together, "embed > L0.mlp~2 > logits^1"))
        == "w[logits]*J[logits, 1](w[L0.mlp]*J[L0.mlp, ~2](embed))"
    )
    assert r"w_{\mathrm{L0.mlp}}\,J^{\leq 2}_{\mathrm{L0.mlp}}" in latex(together, "embed > L0.mlp~2 > logits^1")
    with pytest.raises(SelectionError):
        formula(expand(llama(1), 1), "embed > L0.mlp^5 > logits^0")


def test_formulas_show_what_names_leave_out() -> None:
    net = outline(
        JoinStep("down", "projection", False, (branch("L0.conv"),)),
        MapStep(a_map("L0.pool", affine=True)),
        join(branch("L1.conv", affine=True)),
        join(branch("L2.conv")),
        last=decoder(affine=True, bias=True),
    )
    expansion = expand(net, rules={"L2.conv": Freeze()}, weights="unit", orders="apart")
    assert str(formula(expansion, "embed > L1.conv > L2.conv > logits")) == (
        "A[logits](F[L2.conv](A[L1.conv](A[L0.pool](S[down](embed)))))"
    )
    assert str(formula(expansion, "bias > logits")) == "bias"
    assert [moved(expansion, start, 2) for start in range(3)] == ["A[L0.pool](S[down](x))", "A[L0.pool](x)", ""]
    assert str(formula(expansion, "embed > L0.conv^0 > logits")) == "A[logits](A[L0.pool](J[L0.conv, 0](embed)))"


def test_formulas_of_other_weights_and_directions() -> None:
    given_weights = expand(llama(1), 0, weights={"embed": 2.0})
    assert str(formula(given_weights, "embed > logits^0")) == "w[logits, embed]*J[logits, 0](embed)"
    whole = expand(llama(1), 1, directions="terms")
    assert str(formula(whole, "embed > L0.mlp~1 > logits^0")) == "w[logits]*J[logits, 0](JT[L0.mlp, ~1](embed))"
    assert r"\tilde J^{\leq 1}_{\mathrm{L0.mlp}}" in latex(whole, "embed > L0.mlp~1 > logits^0")
    split = expand(llama(1), 1, directions="terms", orders="apart")
    assert str(formula(split, "embed > L0.mlp^1 > logits^0")) == "w[logits]*J[logits, 0](JT[L0.mlp](embed))"
    assert r"\tilde J^{1}_{\mathrm{L0.mlp}}\left(\mathrm{embed}\right)" in latex(split, "embed > L0.mlp^1 > logits^0")


def test_the_identity_has_every_term_and_the_remainder() -> None:
    expansion = expand(llama(1), 0)
    found = identity(expansion)
    assert found.lhs == sp.Symbol("output")
    assert set(found.rhs.args) == {sp.Symbol("delta"), *(formula(expansion, path) for path in expansion)}
    written = latex(expansion)
    assert written.startswith(r"\mathrm{logits} = w_{\mathrm{logits}}\,J^{0}_{\mathrm{logits}}\left(\mathrm{embed}")
    assert written.endswith(r" + \delta")
    assert written.count(" + ") == 4
    assert identity(expansion, budget=4) == found
    with pytest.raises(BudgetError, match=r"4 terms, more than the 3 .* or take budget=4"):
        identity(expansion, budget=3)
    for write in (identity, latex):
        with pytest.raises(BudgetError, match=r"2\^252.* or all as their generating_function"):
            write(expand(llama(126), 0))


def test_latex_of_a_path_of_252_sites() -> None:
    expansion = expand(llama(126), 0)
    longest = select(expansion, "**")[-1]
    written = latex(expansion, longest)
    assert written.count(r"\left(") == written.count(r"\right)") == 253
    assert written.count("J^{0}") == 253


def test_latex_escapes_names() -> None:
    net = outline(join(branch("L0.cross_attn")))
    assert r"J^{0}_{\mathrm{L0.cross\_attn}}" in latex(expand(net, 0), "embed > L0.cross_attn^0 > logits^0")
