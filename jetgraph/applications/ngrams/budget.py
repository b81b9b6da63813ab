"""How many n-grams a result may hold."""

from __future__ import annotations

from jetgraph.errors import BudgetError, quoted

TOP_BUDGET = 2**32
"""Bytes that the n-grams of a result may take, at `NGRAM_BYTES` each."""

NGRAM_BYTES = 20
"""Bytes of an n-gram: its row, the next token and a score."""


def check_top(top: int, cells: int) -> None:
    """Raise `BudgetError` for more n-grams than memory holds, of a table of so many cells."""
    if (number := min(top, cells)) * NGRAM_BYTES > TOP_BUDGET:
        raise BudgetError(
            f"top={quoted(top)} are {number:,} n-grams here, more than the {TOP_BUDGET // NGRAM_BYTES:,} that a result "
            f"may hold: take top={TOP_BUDGET // NGRAM_BYTES} or less (--top)"
        )
