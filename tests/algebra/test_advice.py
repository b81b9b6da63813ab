"""What is said of remainders and weights."""

from __future__ import annotations

from fractions import Fraction

import pytest

from jetgraph.algebra.advice import INSTEAD, NO_MORE, exponent_text, of_remainder, of_weights


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.0, ""),
        (NO_MORE, ""),
        (float("nan"), ""),
        (0.501, "the remainder is 50% of the output: these terms tell less than half of it"),
        (1.0, "the remainder is 100% of the output: these terms tell less than half of it"),
        (1.01, "the remainder is 1.01 times as large as the output: these terms do not tell what it is"),
        (float("inf"), "the remainder is inf times as large as the output: these terms do not tell what it is"),
    ],
)
def test_a_remainder_is_told_from_a_half_on(share: float, said: str) -> None:
    assert NO_MORE == 0.5
    assert of_remainder(share) == (f"{said}; {INSTEAD}" if said else "")


def test_weights_below_a_type_are_told_with_both_exponents() -> None:
    assert of_weights(119.0, 24.4, "float16").startswith(
        "weights of 2^-119 along a path are below what float16 holds (2^-24), so that such paths come out as zeros"
    )


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        (Fraction(1), "1"),
        (Fraction(-3, 7), "-3/7"),
        (Fraction(9999, 9998), "9999/9998"),
        (Fraction(1, 9999), "1/9999"),
        (Fraction(1, 10_000), "0.0001"),
        (Fraction(10_000, 3), "3.33e+03"),
        (Fraction(1, 2**13), "1/8192"),
        (Fraction(1, 2**14), "2^-14"),
        (Fraction(3, 2**14), "0.000183"),
        (Fraction(1, 2**2000), "2^-2000"),
        # Below and above what a float holds.
        (Fraction(3, 2**2000), "2^-1998.4"),
        (Fraction(-1, 3**2000), "-2^-3169.9"),
        (Fraction(2**2000, 3), "2^1998.4"),
    ],
)
def test_a_weight_as_people_read_it(weight: Fraction, text: str) -> None:
    assert exponent_text(weight) == text
