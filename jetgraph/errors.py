"""Everything that jetgraph raises on purpose. Messages say what was seen, where, and what to do next."""

from __future__ import annotations

SHOWN = 160
"""Characters of what was given that a message shows."""


def shown(value: object) -> str:
    """What was given, as a message shows it: its repr, the middle of a long one left out.

    >>> shown("L0.mlp"), shown(["a"] * 1000)[-46:]
    ("'L0.mlp'", "'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a']")
    """
    try:
        text = repr(value)
    except ValueError:
        # Python prints no integers of thousands of digits.
        text = f"a number of {int(value).bit_length()} bits" if isinstance(value, int) else type(value).__name__
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} … {text[-SHOWN // 2 :]}"


class JetGraphError(Exception):
    """Base of all errors of this package."""


class TraceError(JetGraphError):
    """A model could not be traced, or the traced graph does not reproduce it."""


class MissingRuleError(JetGraphError):
    """An operator on the variate's way has no Taylor rule."""


class DomainError(JetGraphError):
    """A Taylor expansion was asked for at a point where the function has none (a kink, a pole)."""


class BudgetError(JetGraphError):
    """A plan is larger than its budget; nothing was computed."""


class SelectionError(JetGraphError):
    """A pattern could not be read, or matches no path."""


class InputError(JetGraphError):
    """Inputs do not fit the traced model."""
