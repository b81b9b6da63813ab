"""Sympy's view of an expansion: how many terms have which length and order, and what a term is as a formula.

In formulas `embed` is a source, `w[L3.mlp]` the weight of a centre at a site (`w[L3.mlp, embed]` where it depends on
the centre's last site or source), and

    J[L3.mlp, j](x)   (1/j!) D^j f(x)[(h - x)^{⊗j}], the order-j term of f's jet at x, h being the stream there
    J[L3.mlp, ~k](x)  Σ_{j≤k} J[L3.mlp, j](x), the jet up to order k
    A[L3.mlp](x)      the linear part of an affine site; F[…] that of a frozen one; S[…] that of a skip; G[…] a gated
                      skip, with its gates as on the true stream
    JT[L3.mlp](t)     Σ_{i≠t} w_i D f(x_i)[t], the order-1 term of an incoming term t (`directions="terms"`);
                      JT[L3.mlp, ~1](t) has w_t f(t) as well
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import sympy as sp

from jetgraph.algebra.automaton import Entry, Move
from jetgraph.algebra.expansion import COUNTABLE, Expansion
from jetgraph.algebra.outline import SINK, JoinStep
from jetgraph.algebra.paths import Hop, Path
from jetgraph.errors import BudgetError, amount, check

x = sp.Symbol("x")
"""Marks length: its exponent is the number of sites between source and sink."""

y = sp.Symbol("y")
"""Marks order: its exponent is the sum of the orders along the path."""

FORMULA_BUDGET = 256
"""How many terms `identity` writes out."""


def generating_function(expansion: Expansion) -> sp.Expr:
    """Σ_terms x^length y^order, as a sum over the entry points of products over the sites after them.

    Its coefficient of x^l y^j is `expansion.count(length=l, order=j)`, and at x = y = 1 it is `expansion.count()`.

    Parameters
    ----------
    expansion
        Of any size.

    Returns
    -------
    sp.Expr
        In a chain left factored: at 252 joins it is the power of one factor. With long skips it is the polynomial.

    Examples
    --------
    >>> from jetgraph.algebra.expansion import expand
    >>> from jetgraph.algebra import Outline, Site, Source
    >>> decoder = Site("logits", "", "logits", "decoder", False, False)
    >>> sources = Source("embed", "", "embed"), Source("pos", "", "pos")
    >>> generating_function(expand(Outline(sources, (), decoder), order=2))
    2*y**2 + 2*y + 2
    """
    automaton = expansion.automaton
    if any(move.start != point for point, moves in enumerate(automaton.moves) for move in moves):
        return sp.Add(*(number * x**length * y**order for (length, order), number in automaton.counts().items()))
    factors: Counter[sp.Expr] = Counter()
    summands: list[sp.Expr] = []
    for point in range(automaton.sink, -1, -1):
        if automaton.entering[point]:
            onward = (factor**number for factor, number in factors.items())
            starts = sp.Add(*(_beginning(entry, automaton.sink) for entry in automaton.entering[point]))
            summands.append(sp.Mul(starts, *onward, evaluate=True))
        if point > 0:
            factors[_factor(automaton.moves[point - 1], sp.Integer(1) if point == automaton.sink else x)] += 1
    return sp.Add(*summands)


def _beginning(entry: Entry, sink: int) -> sp.Expr:
    """What a source is worth where it enters: x and y to the length and order that it has there."""
    order = 0 if entry.hop is None else entry.hop.order or 0
    return x ** int(entry.is_group and entry.enters < sink) * y**order


def _factor(moves: Sequence[Move], length: sp.Expr) -> sp.Expr:
    """What the moves to a point multiply the generating function by; `length` is the factor of a site."""
    orders = Counter((move.hop.order or 0) for move in moves if move.hop is not None)
    silent = sum(move.hop is None for move in moves)
    return sp.Integer(silent) + length * sp.Add(*(number * y**order for order, number in orders.items()))


@dataclass(frozen=True)
class _Function:
    """One function that a term passes, as formulas show it."""

    letter: str
    alias: str
    order: int | None = None
    together: bool = False
    weight: str = ""
    """What the weight depends on, where there is one: the site, and the centre's last hop for given weights."""


def _functions(expansion: Expansion, path: Path) -> list[_Function]:
    """Everything that a term passes, also what its name leaves out: skips that are no identity, affine maps."""
    entry = expansion.start(path)
    point = entry.enters
    begun = [_written(expansion, entry.hop, path.source)] if entry.is_group and entry.hop else []
    if point == expansion.sink:
        return begun
    functions: list[_Function] = begun
    for last, hop in pairwise(path.hops[len(entry.hops) - 1 :]):
        passage = expansion.passage(hop.alias)
        route = expansion.automaton.route(point, passage.reads) or ()
        functions += [function for step in route if (function := _silent(expansion, step))]
        functions.append(_written(expansion, hop, last))
        point = passage.step
    return functions


def _silent(expansion: Expansion, number: int) -> _Function | None:
    step = expansion.outline.steps[number - 1]
    if not isinstance(step, JoinStep):
        return _Function("A", step.site.alias)
    return None if step.skip == "identity" else _Function("G" if step.skip == "gated" else "S", step.name)


def _written(expansion: Expansion, hop: Hop, last: Hop) -> _Function:
    rule = expansion.rules[hop.alias]
    letter = rule.letter(hop.order)
    if rule.across(hop.order):
        # It sums over all centres, and has their weights inside.
        return _Function(letter, hop.alias, hop.order if hop.together else None, hop.together)
    if rule.weighting is None or rule.weighting == "unit":
        return _Function(letter, hop.alias, hop.order, hop.together)
    weight = hop.alias if rule.weighting == "uniform" else f"{hop.alias}, {last.alias}"
    return _Function(letter, hop.alias, hop.order, hop.together, weight)


def passed(expansion: Expansion, hop: Hop, what: str = "x") -> str:
    """What a site, passed at some order, makes of one value, as text: `w[L3.mlp]*J[L3.mlp, ~1](x)`.

    A weight that depends on the centre is `w[L3.mlp, x]`.
    """
    return _applied(_written(expansion, hop, Hop(what)), what)


def moved(expansion: Expansion, start: int, end: int) -> str:
    """What becomes of a value on the stream from one point to a later one, as text; empty where it stays the same."""
    route = expansion.automaton.route(start, end) or ()
    functions = [function for step in route if (function := _silent(expansion, step))]
    text = "x" if functions else ""
    for function in functions:
        text = _applied(function, text)
    return text


def _applied(function: _Function, what: str) -> str:
    order = "" if function.order is None else f", {'~' * function.together}{function.order}"
    weight = f"w[{function.weight}]*" if function.weight else ""
    return f"{weight}{function.letter}[{function.alias}{order}]({what})"


def formula(expansion: Expansion, path: Path | str) -> sp.Expr:
    """One term as a nested expression, from the source inside to the decoder outside.

    Sympy's printers are recursive; `latex` also prints a path of hundreds of sites.

    Parameters
    ----------
    expansion
        Whose term it is.
    path
        Its name.

    Returns
    -------
    sp.Expr
        In the letters that the head of this module lists.

    Raises
    ------
    SelectionError
        The path is none of this expansion.

    Examples
    --------
    >>> from jetgraph.algebra.expansion import expand
    >>> from jetgraph.algebra import JoinStep, Outline, Site, Source
    >>> join = JoinStep("add", "identity", False, (Site("L0.mlp", "layers.0.mlp", "mlp", "branch", False, False),))
    >>> decoder = Site("logits", "", "logits", "decoder", False, False)
    >>> expansion = expand(Outline((Source("embed", "embed", "embed"),), (join,), decoder), order=1, weights="unit")
    >>> formula(expansion, "embed > L0.mlp~1 > logits^1")
    J[logits, 1](J[L0.mlp, ~1](embed))
    """
    check(formula, locals())
    path = expansion.check(path)
    term: sp.Expr = sp.Symbol(path.source.alias)
    for passed in _functions(expansion, path):
        order = "" if passed.order is None else f", {'~' * passed.together}{passed.order}"
        function: Any = sp.Function(f"{passed.letter}[{passed.alias}{order}]")
        weight = sp.Symbol(f"w[{passed.weight}]") if passed.weight else sp.Integer(1)
        term = weight * function(term)
    return term


def identity(expansion: Expansion, *, budget: int = FORMULA_BUDGET) -> sp.Eq:
    """What the expansion says: output = Σ terms + δ. For the recipes `path` and `lens`, whose terms are expansions
    each on its own, the sum is that of their formulas all the same, and δ what it leaves.

    Parameters
    ----------
    expansion
        All of whose terms are written out.
    budget
        No more terms than these.

    Raises
    ------
    BudgetError
        There are more terms; `generating_function` has a formula of any size.
    """
    _check_budget(expansion, budget)
    terms = (formula(expansion, path) for path in expansion.terms(budget))
    return cast(sp.Eq, sp.Eq(sp.Symbol("output"), sp.Add(*terms, sp.Symbol("delta")), evaluate=False))


def _check_budget(expansion: Expansion, budget: int) -> None:
    if expansion.count() > budget:
        number = expansion.count()
        more = f"take budget={number}" if number < COUNTABLE else "all as their generating_function"
        raise BudgetError(
            f"this expansion has {amount(number, 'term')}, more than the {budget} that are written out: show one with "
            f"a path, such as '{next(expansion.terms(None))}', or {more}"
        )


def latex(expansion: Expansion, path: Path | str | None = None, *, budget: int = FORMULA_BUDGET) -> str:
    r"""LaTeX of one term, or of the whole identity: `output = Σ terms + δ`.

    Parameters
    ----------
    expansion
        What is shown.
    path
        One of its terms; the whole if left out.
    budget
        No more terms than these.

    Raises
    ------
    SelectionError
        The path is none of this expansion.
    BudgetError
        There are more terms than `budget`, as in `identity`.

    Examples
    --------
    >>> from jetgraph.algebra.expansion import expand
    >>> from jetgraph.algebra import Outline, Site, Source
    >>> decoder = Site("logits", "", "logits", "decoder", False, False)
    >>> print(latex(expand(Outline((Source("embed", "", "embed"),), (), decoder), order=0), "embed > logits^0"))
    w_{\mathrm{logits}}\,J^{0}_{\mathrm{logits}}\left(\mathrm{embed}\right)
    """
    check(latex, locals())
    if path is None:
        _check_budget(expansion, budget)
        terms = (_latex(expansion, term) for term in expansion.terms(budget))
        return rf"\mathrm{{{SINK}}} = " + " + ".join([*terms, r"\delta"])
    return _latex(expansion, expansion.check(path))


def _latex(expansion: Expansion, path: Path) -> str:
    text = _roman(path.source.alias)
    for passed in _functions(expansion, path):
        name = _roman(passed.alias)
        upto = r"\leq " if passed.together else ""
        order = "" if passed.order is None else f"^{{{upto}{passed.order}}}"
        letter = rf"\tilde J{order or '^{1}'}" if passed.letter == "JT" else f"{passed.letter}{order}"
        weight = rf"w_{{{_roman(passed.weight)}}}\," if passed.weight else ""
        text = rf"{weight}{letter}_{{{name}}}\left({text}\right)"
    return text


def _roman(name: str) -> str:
    escaped = name.replace("_", r"\_")
    return rf"\mathrm{{{escaped}}}"
