"""Everything that jetgraph raises on purpose. Messages say what was seen, where, and what to do next."""

from __future__ import annotations


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


class FileError(JetGraphError, OSError):
    """A file could not be read or written; in one line, with its name and the system's reason."""
