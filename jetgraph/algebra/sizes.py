"""Formulas of sizes, as the exporter writes them: `2*length + 1`, `batch*length//4`, `Mod(length, 2) == 0`.

They are texts, so that they go into files as they are, and files come from anywhere: a formula is read by a grammar of
its own and worked out by the arithmetic below, and nothing of it is ever run as Python.

    comparison  a == b, !=, <, <=, >, >=
    sum         a + b, a - b;  before them a | b, a & b of truths
    product     a * b, a / b, a // b, a % b
    sign        -a, +a, ~a (not)
    power       a ** b
    atom        12, 0.5, name, True, False, Function(a, b), (a)

Precedence is Python's. Integers and fractions are exact, and floats are double, as they are for the exporter.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from jetgraph.errors import SizeError

Number = int | Fraction | float

LONGEST = 20_000
"""Characters of a formula; the exporter's have some hundred."""

DEEPEST = 60
"""Brackets and signs inside each other."""

LARGEST = 2**63
"""No size, and nothing on the way to one, is as large."""


def evaluate(text: str, sizes: Mapping[str, int]) -> int:
    """The size that a formula gives for these sizes.

    Raises
    ------
    SizeError
        A text that is no formula, a name that `sizes` does not hold, and a value that is none, no integer or
        too large.

    >>> evaluate("batch*(length + 1)//2", {"batch": 3, "length": 4})
    7
    >>> evaluate("Max(1, ceiling(length/4))", {"length": 9})
    3
    >>> evaluate("exec('')", {})
    Traceback (most recent call last):
    jetgraph.errors.SizeError: "exec('')" is no formula of sizes: there is no function 'exec'
    """
    value = _value(text, sizes)
    if isinstance(value, bool) or value != int(value):
        raise SizeError(f"the size {_short(text)} is {value}{_where(text, sizes)}, which is no integer")
    return int(value)


def holds(text: str, sizes: Mapping[str, int]) -> bool:
    """Whether a condition is true for these sizes. One that divides by 0 does not hold.

    Raises
    ------
    SizeError
        As of `evaluate`, or a formula that is no condition.

    >>> holds("length <= 8", {"length": 7}), holds("(Mod(length, 2) == 0) & (batch > 1)", {"length": 7, "batch": 2})
    (True, False)
    """
    try:
        value = _value(text, sizes)
    except SizeError as error:
        if isinstance(error.__cause__, ZeroDivisionError):
            return False
        raise
    if not isinstance(value, bool):
        raise SizeError(f"the condition {_short(text)} is {value}{_where(text, sizes)}, and not true or false")
    return value


def names(text: str) -> tuple[str, ...]:
    """The sizes that a formula reads, in the order of their first use.

    >>> names("batch*Max(length, 2) - batch")
    ('batch', 'length')
    """
    return tuple(dict.fromkeys(step.what for step in _program(text) if step.kind == "name"))


# Arithmetic


def _value(text: str, sizes: Mapping[str, int]) -> Any:
    """A formula's value: its program run on a stack, so that no formula is too deep."""
    stack: list[Any] = []
    for step in _program(text):
        if step.kind == "number":
            value = step.what
        elif step.kind == "name":
            if step.what not in sizes:
                known = ", ".join(map(str, sizes)) or "none"
                raise SizeError(
                    f"the size {_short(text)} does not follow from the sizes of the inputs: it reads {step.what!r}, "
                    f"and known are {known}"
                )
            value = sizes[step.what]
        else:
            arguments = stack[len(stack) - step.arity :]
            del stack[len(stack) - step.arity :]
            try:
                value = step.what(*arguments)
            except (ArithmeticError, ValueError, TypeError) as error:
                raise SizeError(f"the size {_short(text)} has no value{_where(text, sizes)}: {error}") from error
        if isinstance(value, Fraction) and value.denominator == 1:
            value = value.numerator
        if isinstance(value, complex) or not -LARGEST < value < LARGEST or getattr(value, "denominator", 1) >= LARGEST:
            raise SizeError(f"the size {_short(text)} is no number below 2**63{_where(text, sizes)}")
        stack.append(value)
    (value,) = stack
    return value


def _divided(one: Number, other: Number) -> Number:
    exact = isinstance(one, int | Fraction) and isinstance(other, int | Fraction)
    return Fraction(one) / Fraction(other) if exact else one / other


def _power(base: Number, exponent: Number) -> Number:
    if abs(exponent) >= 64:
        raise ValueError(f"the exponent {exponent} is too large")
    return Fraction(base) ** exponent if isinstance(base, int) and isinstance(exponent, int) else base**exponent


def _where_true(condition: bool, one: Number, other: Number) -> Number:
    return one if condition else other


_MANY = 256
"""The most that a function takes where it takes any number."""

_BEFORE: dict[str, Callable[..., Any]] = {"-": operator.neg, "+": operator.pos, "~": operator.not_}
"""What is written before an operand."""

_BETWEEN: dict[str, Callable[..., Any]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": _divided, "//": operator.floordiv,
    "%": operator.mod, "&": operator.and_, "|": operator.or_,
}  # fmt: skip
"""What is written between two."""

_FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int]] = {
    "Eq": (operator.eq, 2, 2), "Ne": (operator.ne, 2, 2),
    **dict.fromkeys(("Max", "max"), (lambda *all_of: max(all_of), 1, _MANY)),
    **dict.fromkeys(("Min", "min"), (lambda *all_of: min(all_of), 1, _MANY)),
    **dict.fromkeys(("floor", "FloorToInt"), (math.floor, 1, 1)),
    **dict.fromkeys(("ceil", "ceiling", "CeilToInt"), (math.ceil, 1, 1)),
    **dict.fromkeys(("Abs", "abs"), (abs, 1, 1)), **dict.fromkeys(("Mod", "PythonMod"), (operator.mod, 2, 2)),
    **dict.fromkeys(("FloorDiv", "CleanDiv"), (operator.floordiv, 2, 2)), "CeilDiv": (lambda a, b: -(-a // b), 2, 2),
    "ModularIndexing": (lambda a, b, c: a // b % c, 3, 3), "Where": (_where_true, 3, 3), "Not": (operator.not_, 1, 1),
    "And": (lambda *all_of: all(all_of), 1, _MANY), "Or": (lambda *any_of: any(any_of), 1, _MANY),
    "IntTrueDiv": (operator.truediv, 2, 2), "FloatTrueDiv": (operator.truediv, 2, 2),
    "PowByNatural": (_power, 2, 2), "FloatPow": (_power, 2, 2), "TruncToInt": (math.trunc, 1, 1),
    "TruncToFloat": (lambda a: float(math.trunc(a)), 1, 1), "RoundToInt": (round, 1, 1),
    "RoundDecimal": (lambda a, digits: round(float(a), digits), 2, 2), "ToFloat": (float, 1, 1),
    "LShift": (lambda a, b: a * _power(2, b), 2, 2), "RShift": (lambda a, b: a // _power(2, b), 2, 2),
    **dict.fromkeys(("sqrt", "OpaqueUnaryFn_sqrt"), (math.sqrt, 1, 1)), "Identity": (operator.pos, 1, 1),
}  # fmt: skip
"""By name, as sympy and the exporter have them, with the least and the largest number of operands."""


# Reading


class _Step(NamedTuple):
    """One step of a formula's program: put a number or a size on the stack, or apply a function to the top of it."""

    kind: Literal["number", "name", "function"]
    what: Any
    arity: int = 0


_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d{1,25}(?:\.\d{0,25})?(?:e[+-]?\d{1,2})?)|(?P<name>[^\W\d]\w*)"
    r"|(?P<sign>\*\*|//|[=!<>]=|[-+*/%<>()~,&|]))",
    re.ASCII,
)
_TIGHTNESS = {
    sign: tightness
    for tightness, signs in enumerate((("==", "!=", "<", "<=", ">", ">="), "|", "&", "+-", ("*", "/", "//", "%")))
    for sign in signs
}
"""Operators between two operands: how tightly each binds."""


@lru_cache(maxsize=4096)
def _program(text: str) -> tuple[_Step, ...]:
    """A formula in postfix order."""
    if len(text) > LONGEST:
        raise SizeError(f"{_short(text)} is no formula of sizes: it has {len(text)} characters")
    return _Reader(text).read()


class _Reader:
    """Reads a formula by recursive descent."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0
        self.steps: list[_Step] = []

    def read(self) -> tuple[_Step, ...]:
        self._operation()
        if self.text[self.at :].strip():
            raise self._refusal()
        return tuple(self.steps)

    def _operation(self, tightness: int = 0) -> None:
        """Operands and the operators between them that bind as tightly as this, or more."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise SizeError(f"{_short(self.text)} is no formula of sizes: it is more than {DEEPEST} levels deep")
        self._signed()
        while (sign := self._take(*(sign for sign, binds in _TIGHTNESS.items() if binds >= tightness))) is not None:
            self._operation(_TIGHTNESS[sign] + 1)
            self._apply(_BETWEEN[sign], 2)
            if _TIGHTNESS[sign] == 0:
                # a < b < c is not (a < b) < c, and nothing that the exporter writes.
                break
        self.depth -= 1

    def _signed(self) -> None:
        if (sign := self._take(*_BEFORE)) is not None:
            self._operation(len(_TIGHTNESS))
            self._apply(_BEFORE[sign], 1)
            return
        self._atom()
        if self._take("**"):
            self._operation(len(_TIGHTNESS))
            self._apply(_power, 2)

    def _atom(self) -> None:
        if self._take("("):
            self._operation()
            self._close()
            return
        token = self._next()
        if token is None or token["sign"] is not None:
            raise self._refusal()
        self.at = token.end()
        if (number := token["number"]) is not None:
            self.steps.append(_Step("number", int(number) if number.isdigit() else float(number)))
        elif self._take("("):
            self._call(token["name"])
        elif token["name"] in ("True", "False"):
            self.steps.append(_Step("number", token["name"] == "True"))
        else:
            self.steps.append(_Step("name", token["name"]))

    def _call(self, name: str) -> None:
        if name not in _FUNCTIONS:
            raise SizeError(f"{_short(self.text)} is no formula of sizes: there is no function {name!r}")
        self._operation()
        given = 1
        while self._take(","):
            self._operation()
            given += 1
        self._close()
        function, least, most = _FUNCTIONS[name]
        if not least <= given <= most:
            raise SizeError(f"{_short(self.text)} is no formula of sizes: {name} does not take {given} operands")
        self._apply(function, given)

    def _apply(self, function: Callable[..., Any], operands: int) -> None:
        self.steps.append(_Step("function", function, operands))

    def _next(self) -> re.Match[str] | None:
        return _TOKEN.match(self.text, self.at)

    def _take(self, *signs: str) -> str | None:
        """The next sign, if it is one of these."""
        token = self._next()
        if token is None or token["sign"] not in signs:
            return None
        self.at = token.end()
        return token["sign"]

    def _close(self) -> None:
        if self._take(")") is None:
            raise self._refusal()

    def _refusal(self) -> SizeError:
        rest = self.text[self.at :].strip()
        where = f"it cannot be read from {_short(rest, 8)} on" if rest else "it ends too early"
        return SizeError(f"{_short(self.text)} is no formula of sizes: {where}")


def _short(text: str, length: int = 60) -> str:
    return repr(text if len(text) <= length else f"{text[: length - 3]}...")


def _where(text: str, sizes: Mapping[str, int]) -> str:
    read = ", ".join(f"{name}={sizes[name]}" for name in names(text) if name in sizes)
    return f" for {read}" if read else ""
