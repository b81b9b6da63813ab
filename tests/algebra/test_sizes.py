"""Formulas of sizes: what the exporter writes, worked out as sympy does; and what hostile files may hold."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import sympy
from torch.utils._sympy import functions as exporter

import jetgraph as jg
from jetgraph.algebra import sizes

A, B = sympy.symbols("batch length", integer=True, positive=True)


@pytest.mark.parametrize(
    "expression",
    [
        A * B + 2,
        A**2 - 3 * B,
        2 - A,
        exporter.FloorDiv(A * B + 1, 3) - B,
        exporter.FloorDiv(-A, 4),
        exporter.Mod(A + B, 5) * 2,
        exporter.PythonMod(A - 20, 7),
        exporter.ModularIndexing(A * B, 3, 4),
        exporter.Max(1, A - B, 3),
        exporter.Min(A, exporter.Max(B, 4)),
        exporter.CeilToInt(exporter.IntTrueDiv(A, 3)) * exporter.TruncToInt(exporter.ToFloat(B) * 1.5),
        exporter.CeilDiv(A + B, 4),
        exporter.RoundToInt(exporter.FloatTrueDiv(exporter.ToFloat(A), 3.0)),
        exporter.PowByNatural(A, 3) + exporter.LShift(B, 2) - exporter.RShift(A * B, 1),
        sympy.floor(A / 2) + sympy.ceiling(B / 3) + sympy.Abs(A - B),
        (A * (A + 1)) / 2,
        sympy.Eq(A, 5),
        sympy.Ne(exporter.Mod(B, 4), 0),
        sympy.And(A > 2, sympy.Or(B <= 7, sympy.Eq(A, B))),
        sympy.Not(sympy.And(A < 3, B >= 2)),
    ],
    ids=str,
)
def test_formulas_of_the_exporter(expression: Any) -> None:
    """The text of an expression has the expression's own value."""
    for batch, length in ((1, 1), (2, 7), (5, 5), (12, 64)):
        expected = expression.subs({A: batch, B: length})
        work = sizes.holds if isinstance(expression, sympy.logic.boolalg.Boolean) else sizes.evaluate
        assert work(str(expression), {"batch": batch, "length": length}) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 + 3*4", 14),
        ("-2**2", -4),
        ("2**3**2", 512),
        ("2**-1*6", 3),
        ("(2 + 3)*4 - 1 - 1", 18),
        ("7//2*2 + 7 % 4", 9),
        ("-7//2", -4),
        ("9/3", 3),
        ("--3 + +4", 7),
        ("(2 < 1) | (1 + 1 == 2)", True),
        ("12 & 10 | 1", 9),
    ],
)
def test_precedence_is_pythons(text: str, value: int) -> None:
    assert sizes._value(text, {}) == value == eval(text)


HOSTILE = [
    "__import__('os').system('true')",
    "(1).__class__",
    "[x for x in (1,)]",
    "lambda: 1",
    "'a'*9",
    "open('x')",
    "x.y",
    "1 if 1 else 2",
    "1 < 2 < 3",
    "",
    "()",
    "Max()",
    "Max(1",
    "Mod(1)",
    "1 2",
    "\x00",
    "(" * 5000,
    "-" * 5000 + "1",
    "1**" * 5000 + "1",
    "9**9**9**9",
    "((9**63)**63)**63",
    "((1/9)**63)**63",
    "1/0",
    "Mod(1, 0)",
    "sqrt(-1)",
    "(0 - 8)**0.5",
    "1e99",
    "RoundDecimal(3, 0 - 1000000000) + 0.5",
    "1/2",
    "x*" * 20000,
    "Max(1" + ", 1" * 5000 + ")",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:20])
def test_hostile_text(text: str) -> None:
    """Refused at once, in one line, by an error of ours."""
    start = time.process_time()
    with pytest.raises(sizes.SizeError) as caught:
        sizes.evaluate(text, {"x": 2})
    assert time.process_time() - start < 0.5
    assert isinstance(caught.value, jg.JetGraphError)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 300


def test_a_condition_that_divides_by_nothing_does_not_hold() -> None:
    """As where the exporter asks how often a half of one fits."""
    asked = "Eq(6*length, (length//2)*((6*length)//(length//2)))"
    assert [sizes.holds(asked, {"length": length}) for length in (1, 2, 3, 4)] == [False, True, True, True]
    with pytest.raises(sizes.SizeError, match="has no value for length=1"):
        sizes.evaluate("(6*length)//(length//2)", {"length": 1})


def test_what_is_said() -> None:
    with pytest.raises(sizes.SizeError, match=r"'length \+ 1' .* reads 'length', and known are batch"):
        sizes.evaluate("length + 1", {"batch": 2})
    with pytest.raises(sizes.SizeError, match="'length/2' is 7/2 for length=7, which is no integer"):
        sizes.evaluate("length/2", {"length": 7})
    with pytest.raises(sizes.SizeError, match="'length' is 7 for length=7, and not true or false"):
        sizes.holds("length", {"length": 7})
    assert math.isclose(sizes._value("0.5*length", {"length": 7}), 3.5)
