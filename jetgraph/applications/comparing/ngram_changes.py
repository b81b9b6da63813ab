"""The n-grams that gained most and lost most from one model to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jetgraph.applications.bars import drawn
from jetgraph.applications.ranking import RunningTop
from jetgraph.applications.readout import token_text
from jetgraph.applications.results import Cell, Result
from jetgraph.errors import amount
from jetgraph.layout.colours import GIVES, TAKES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_NGRAMS = 12
"""Bars of a kind that a figure of n-grams has."""


@dataclass(frozen=True)
class NgramChange:
    """One n-gram a b in two models."""

    context: tuple[int, ...]
    token: int
    before: float
    """P_a(b | a)."""
    after: float
    """P_b(b | a)."""

    @property
    def change(self) -> float:
        """P_b(b | a) − P_a(b | a)."""
        return self.after - self.before


@dataclass(frozen=True, eq=False, repr=False)
class NgramChanges(Result):
    """The n-grams that gained most and lost most, largest change first."""

    names: tuple[str, str]
    path: str
    contexts: int
    """Number of contexts that were compared."""
    gained: tuple[NgramChange, ...]
    lost: tuple[NgramChange, ...]
    tokenizer: Any | None = field(default=None)
    of: int = 0
    """Number of tokens that could be contexts, where those compared are a sample."""
    none: str = ""
    """Why one of the models has no n-grams, where that is so."""

    @property
    def title(self) -> str:
        """What was compared."""
        one, other = self.names
        if self.none:
            return f"n-grams of {one} and {other}: none"
        over = f"{self.contexts:,} of {self.of:,} contexts" if self.of else amount(self.contexts, "context")
        return f"n-grams that {other} has gained and lost against {one}, over {over} along {self.path}"

    @property
    def note(self) -> str:
        """That nothing has changed, that it is a sample, or why there are none."""
        if self.none:
            return f"{self.none}. Weights have been compared; jg.compare (jetgraph compare) compares on prompts"
        if not (self.gained or self.lost):
            return (
                "none has changed along this path; path= (--path) names others, and how far they changed stands below"
            )
        if not self.of:
            return ""
        return (
            f"a sample of contexts, spread evenly over the vocabulary: the largest changes among the others are not "
            f"here. contexts={self.of} (--contexts {self.of}) looks at all"
        )

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """kind, context, token, p_a, p_b, change = p_b − p_a, and the ids behind the texts."""
        rows = [("gained", one) for one in self.gained] + [("lost", one) for one in self.lost]
        return {
            "kind": [kind for kind, _ in rows],
            "context": [self._context(one) for _, one in rows],
            "token": [token_text(self.tokenizer, one.token) for _, one in rows],
            "p_a": [one.before for _, one in rows],
            "p_b": [one.after for _, one in rows],
            "change": [one.change for _, one in rows],
            "context_ids": [" ".join(map(str, one.context)) for _, one in rows],
            "token_id": [one.token for _, one in rows],
        }

    def figure(self) -> Figure:
        """Bars: the change of P(b | a) by n-gram."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 1.5 + 0.24 * len(self._bars())), layout="constrained")
        self.draw(figure.subplots())
        return figure

    def draw(self, axes: Any) -> None:
        """The bars, on matplotlib axes."""
        bars = self._bars()
        places = range(len(bars))
        axes.barh(places, [one.change for one in bars], color=[GIVES if one.change > 0 else TAKES for one in bars])
        labels = [f"{self._context(one)} → {token_text(self.tokenizer, one.token)}" for one in bars]
        axes.set_yticks(places, labels, fontsize=8, parse_math=False)
        axes.invert_yaxis()
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel("change of P(next token | context)")
        title = f"n-grams along {self.path}" + drawn(len(bars), len(self.gained) + len(self.lost))
        axes.set_title(title, fontsize=10, parse_math=False)

    def _bars(self) -> tuple[NgramChange, ...]:
        return (*self.gained[:SHOWN_NGRAMS], *reversed(self.lost[:SHOWN_NGRAMS]))

    def _context(self, one: NgramChange) -> str:
        return " ".join(token_text(self.tokenizer, index) for index in one.context)


def changes_of(best: RunningTop) -> tuple[NgramChange, ...]:
    """The entries of a top, with what both tables have there."""
    rows = zip(best.rows.tolist(), best.columns.tolist(), best.carried.tolist(), strict=True)
    return tuple(NgramChange((context,), token, before, after) for context, token, (before, after) in rows)
