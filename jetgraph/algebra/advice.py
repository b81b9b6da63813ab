"""What is said in words of a remainder that is too large, and of weights that are too small."""

from __future__ import annotations

import math
from fractions import Fraction

from jetgraph.numbers import percent

NO_MORE = 0.5
"""The share of the output up to which a remainder needs no words."""

INSTEAD = (
    "the recipe frozen, attribute and spectrum leave nothing, and of jets the weights optimal with order 2 leave least "
    "(docs/choosing.md)"
)


def of_remainder(share: float) -> str:
    """What a remainder of this share of the output means; nothing where it is small.

    >>> of_remainder(0.1), of_remainder(137.86).split(":")[0]
    ('', 'the remainder is 138 times as large as the output')
    """
    if not share > NO_MORE:
        return ""
    if share > 1:
        return (
            f"the remainder is {share:.3g} times as large as the output: these terms do not tell what it is; {INSTEAD}"
        )
    return f"the remainder is {percent(share, 0)} of the output: these terms tell less than half of it; {INSTEAD}"


def of_weights(exponent: float, smallest: float, kind: str) -> str:
    """What weights of 2^−exponent along a path come to in a type whose smallest number is 2^−smallest."""
    return (
        f"weights of 2^-{exponent:.0f} along a path are below what {kind} holds (2^-{smallest:.0f}), so that such "
        f"paths come out as zeros; {INSTEAD}, or take centres by component or block"
    )


def exponent_text(weight: Fraction) -> str:
    """A weight as people read it; one with a long denominator as a power of two.

    >>> exponent_text(Fraction(1, 61)), exponent_text(Fraction(1, 2**60)), exponent_text(Fraction(1, 3 * 2**59))
    ('1/61', '2^-60', '5.78e-19')
    """
    top, bottom = weight.numerator, weight.denominator
    if bottom < 10_000 and top < 10_000:
        return str(weight)
    if top == 1 and bottom.bit_count() == 1:
        return f"2^-{bottom.bit_length() - 1}"
    # Below and above what a float holds, its logarithm is found of both parts.
    try:
        value = float(weight)
    except OverflowError:
        value = 0.0
    if value:
        return f"{value:.3g}"
    return f"{'-' * (top < 0)}2^{math.log2(abs(top)) - math.log2(bottom):.1f}"
