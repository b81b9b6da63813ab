"""An expansion in a few lines, as text and as HTML."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction

from jetgraph.algebra.advice import of_weights
from jetgraph.algebra.automaton import Automaton
from jetgraph.algebra.passages import Passage
from jetgraph.errors import big

SMALLEST = 149
"""−log₂ of the smallest number of float32."""


@dataclass(frozen=True)
class Summary:
    """How many terms there are, of how many sites, from which sources, by which rules."""

    recipe: str
    order: int
    automaton: Automaton
    passages: Collection[Passage]
    lightness: float
    """−log₂ of the weights along the lightest path."""

    def facts(self) -> list[tuple[str, str]]:
        """Names and texts of what there is to say of the whole."""
        automaton = self.automaton
        aliases = list(dict.fromkeys(entry.source.alias for entry in automaton.entries))
        shown = ", ".join(aliases[:6]) + (f", … ({len(aliases)} in all)" if len(aliases) > 6 else "")
        by_length, _ = automaton.distribution()
        lengths = [n for n, value in by_length.items() if value]
        facts = [("recipe", f"{self.recipe}, order {self.order}"), ("terms", big(automaton.count()))]
        if lengths:
            mean = Fraction(sum(n * value for n, value in by_length.items()), automaton.count())
            facts.append(("sites", f"{min(lengths)} to {max(lengths)} per term, {float(mean):.1f} on average"))
        facts.append(("sources", shown))
        if self.lightness > SMALLEST:
            facts.append(("weights", of_weights(self.lightness, SMALLEST, "float32")))
        return facts

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Role and kind of sites, their number, and their rule."""
        kinds = Counter(
            (passage.site.role, passage.site.kind, passage.rule.text_at(passage.site)) for passage in self.passages
        )
        return [(role, kind, str(number), rule) for (role, kind, rule), number in kinds.items()]

    def text(self) -> str:
        lines = ["Expansion", *(f"  {name:<8} {text}" for name, text in self.facts())]
        rows = [("role", "kind", "sites", "rule"), *self.rows()]
        lines += [f"  {role:<8} {kind:<8} {number:>5}  {rule}" for role, kind, number, rule in rows]
        return "\n".join(lines)

    def markup(self) -> str:
        facts = "".join(f"<tr><th>{a}</th><td colspan=3>{html.escape(b)}</td></tr>" for a, b in self.facts())
        head = "<tr><th>role</th><th>kind</th><th>sites</th><th>rule</th></tr>"
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self.rows())
        return f"<table>{facts}{head}{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
