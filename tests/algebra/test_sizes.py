"""Formulas of sizes: what the exporter writes, worked out as sympy does; and what hostile files may hold."""

from __future__ import annotations

import re
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
        ("1 | 2 | 4", 7),
        ("2*3 == 6 - 0", True),
        ("~(1 > 2) & (1 >= 1)", True),
        ("1/0.1", 10.0),
        ("7/0.5", 14.0),
        # Rounded, as the exporter's floats are.
        ("0.1**2*100", 1.0000000000000002),
        ("10 - 2 - 3 + 1", 6),
        ("5 - 8/4/2", 4),
    ],
)
def test_precedence_is_pythons(text: str, value: float) -> None:
    assert sizes._value(text, {}) == value == eval(text.replace("~", "not "))


def test_fractions_are_exact() -> None:
    """Where floats are not."""
    assert [sizes.evaluate(text, {"length": 10}) for text in ("10**-1*3*10", "length/3*3", "(1/10 + 2/10)*10")] == [
        *(3, 10, 3)
    ]


CALLS = {
    **{f"{name}({first}, 3)": value for first, names, value in (
        (7, "Mod PythonMod", 1), (7, "FloorDiv CleanDiv", 2), (7, "CeilDiv", 3), (6, "CeilDiv", 2), (-7, "Mod", 2),
        (6, "IntTrueDiv FloatTrueDiv", 2), (7, "PowByNatural FloatPow", 343), (7, "LShift", 56), (70, "RShift", 8),
        (2.12345, "RoundDecimal", 2.123), (3, "Eq", True), (7, "Eq", False), (3, "Ne", False), (7, "Ne", True),
        (7, "Max max", 7), (7, "Min min", 3),
    ) for name in names.split()},
    **{f"{name}({first})": value for first, names, value in (
        (2.5, "floor FloorToInt", 2), (2.5, "ceil ceiling CeilToInt", 3), (-4, "Abs abs", 4), (4, "Abs abs", 4),
        (-2.5, "TruncToInt TruncToFloat", -2), (3.5, "RoundToInt", 4), (2, "ToFloat Identity", 2),
        (4, "Max max Min min", 4),
        (9, "sqrt OpaqueUnaryFn_sqrt", 3), (True, "Not", False), (False, "Not And Or", None), (True, "And Or", True),
    ) for name in names.split()},
    "Not(False)": True, "And(False)": False, "Or(False)": False, "And(True, True, False)": False,
    "Or(False, False, True)": True, "ModularIndexing(29, 4, 5)": 2, "Where(1 < 2, 3, 4)": 3, "Where(2 < 1, 3, 4)": 4,
}  # fmt: skip
"""What each function gives."""
ANY_NUMBER = {"Max", "max", "Min", "min", "And", "Or"}


def test_each_function_has_its_value_and_takes_so_many_operands() -> None:
    assert {text.partition("(")[0] for text in CALLS} == {*sizes._FUNCTIONS}
    for text, value in CALLS.items():
        found = sizes._value(text, {})
        assert (found, isinstance(found, bool)) == (value, isinstance(value, bool)), text
        name, _, operands = text[:-1].partition("(")
        given = operands.split(", ")
        wrong = [given[1:], [*given, *given[:1] * (sizes._MANY + 1 - len(given) if name in ANY_NUMBER else 1)]]
        for these in wrong:
            if name not in ANY_NUMBER or not these or len(these) > sizes._MANY:
                said = f"{name} does not take {len(these)} operands" if these else "cannot be read"
                with pytest.raises(sizes.SizeError, match=said):
                    sizes._value(f"{name}({', '.join(these)})", {})


def test_what_is_just_not_too_much() -> None:
    assert (sizes.LONGEST, sizes.DEEPEST, sizes.LARGEST, sizes._MANY) == (20_000, 60, 2**63, 256)
    for right, wrong, value in (
        ("1" + " " * 19_999, "1" + " " * 20_000, 1),
        ("(" * 59 + "1" + ")" * 59, "(" * 60 + "1" + ")" * 60, 1),
        ("(1) + " * 70 + "-" * 58 + "1", "(1) + " * 70 + "-" * 59 + "1", 71),
        ("9223372036854775807", "9223372036854775808", 2**63 - 1),
        ("-9223372036854775807", "-9223372036854775807 - 1", 1 - 2**63),
        ("9223372036854775807*(1/9223372036854775807)", "9223372036854775807*(1/(9223372036854775807 + 1))", 1),
        ("(1/2**62)*(1/3)*3*2**62", "(1/2**62)*(1/2)*2*2**62", None),
        ("1**63", "1**64", 1),
        (f"Max({'3, ' * 255}4)", f"Max({'3, ' * 256}4)", 4),
    ):
        if value is not None:
            assert sizes.evaluate(right, {}) == value
        with pytest.raises(sizes.SizeError):
            sizes.evaluate(wrong, {})


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
    with pytest.raises(sizes.SizeError, match=r"and known are none$"):
        sizes.evaluate("length", {})
    with pytest.raises(sizes.SizeError, match=r"has no value: "):
        sizes.evaluate("1/0", {"length": 7})
    # What is longer than 60 characters is cut, and so is what cannot be read.
    for text, said in (
        ("1 " * 30, f"'{'1 ' * 30}'"),
        ("1 " * 31, f"'{('1 ' * 31)[:57]}...'"),
        ("1 12345678", "'12345678'"),
    ):
        with pytest.raises(sizes.SizeError, match=re.escape(said)):
            sizes.evaluate(text, {})
    with pytest.raises(sizes.SizeError, match=r"cannot be read from '12345\.\.\.' on"):
        sizes.evaluate("1 123456789", {})
    with pytest.raises(sizes.SizeError, match="it ends too early"):
        sizes.evaluate("1 +", {})
    with pytest.raises(sizes.SizeError, match="cannot be read from '< 3' on"):
        sizes.holds("1 < 2 < 3", {})
