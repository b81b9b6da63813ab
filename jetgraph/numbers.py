"""How numbers are said: rounded, and never so far that what is nearly all or nearly nothing is said to be it."""

from __future__ import annotations

import re

NUMBER = re.compile(r"[<>]?(2\^\d+ )?(≈ )?[-+−]?(1-)?([\d.,]+(e[-+]?\d+)?|inf|nan)\s?%?")
"""A number as it is said for people, counts (`jetgraph.errors.big`) among them: columns of such are flush right."""

ROUNDING = 1e-12
"""How far below 1 a number is that is 1 but for the rounding of float64."""


def rounded(value: float, digits: int = 4) -> str:
    """A number by its first digits; where it is 1 to these, how far below 1 it is.

    >>> [rounded(value) for value in (0.123456, 12345.678, -0.0, 0.9998, 0.99996, 0.9999997, 1 - 1e-15, 1.00001)]
    ['0.1235', '1.235e+04', '0', '0.9998', '0.99996', '1-3.0e-07', '1', '1']
    """
    text = f"{value + 0.0:.{digits}g}"
    if text != "1" or 1 - value <= ROUNDING:
        return text
    longer = f"{value:.{digits + 2}g}"
    return longer if longer != "1" else f"1-{1 - value:.1e}"


def fixed(share: float, places: int = 3) -> str:
    """A share of 1, such as a probability, with so many decimal places: one more where it is nearly 0 or nearly 1, and
    a bound where it is nearer.

    >>> [fixed(share) for share in (0.25, 0.9998, 0.99999, 1.0, 0.0002, 3e-7, 0.0, -0.0002, 1.0004)]
    ['0.250', '0.9998', '>0.9999', '1.000', '0.0002', '<0.0001', '0.000', '-0.0002', '1.000']
    """
    return _said(share, places, "f")


def percent(share: float, places: int = 1) -> str:
    """The same in percent.

    >>> [percent(share) for share in (0.9597, 0.9998, 0.99999, 1.0, 0.0002, 3e-7, 4.36, -0.5)]
    ['96.0%', '99.98%', '>99.99%', '100.0%', '0.02%', '<0.01%', '436.0%', '-50.0%']
    """
    return _said(share, places, "%")


def _said(share: float, places: int, kind: str) -> str:
    """A share as a format has it with some places, or one more where these do not tell it from 0 or from 1."""
    share = share + 0.0
    is_told = share == 0 or share < -0.5 or share > 1 - ROUNDING
    for more in (places, places + 1):
        text = f"{share:.{more}{kind}}"
        near = [end for end in (0.0, 1.0) if text.lstrip("-") == f"{end:.{more}{kind}}"]
        if is_told or not near:
            return text
    step = 10.0 ** -(places + (3 if kind == "%" else 1))
    bound = 1 - step if near == [1.0] else step if share > 0 else -step
    return f"{'<' if 0 < bound < 0.5 else '>'}{bound:.{places + 1}{kind}}"
