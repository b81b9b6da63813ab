"""Weights of the centres of jets, as exact fractions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from jetgraph.algebra.automaton import Automaton
from jetgraph.algebra.matching import matching, nearest
from jetgraph.algebra.outline import SINK
from jetgraph.algebra.passages import Passage
from jetgraph.algebra.rules import Rule
from jetgraph.errors import InputError, SelectionError


def check_weights(rules: Mapping[str, Rule], automaton: Automaton, names: Mapping[str, str]) -> None:
    """Refuse a weight that is none, or is given to nothing that can be a centre.

    Parameters
    ----------
    rules
        The rule at each site.
    automaton
        Of the expansion that follows from them.
    names
        Module paths by alias, of sources and sites.

    Raises
    ------
    InputError
        A weight is negative, or no number.
    SelectionError
        A pattern matches no source and no site.
    """
    centres = [entry.source.alias for entry in automaton.entries]
    centres += dict.fromkeys(hop.alias for hop in automaton.hops() if hop.alias != SINK)
    # One mapping for all sites is looked at once.
    given = {id(rule.weighting): rule.weighting for rule in rules.values() if isinstance(rule.weighting, Mapping)}
    for weights in given.values():
        for pattern, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise InputError(f"weights[{pattern!r}] is {weight}: weights are finite and not negative")
            if not set(centres).intersection(matching(pattern, names)):
                raise SelectionError(f"weights[{pattern!r}] matches no source and no site{nearest(pattern, centres)}")


@dataclass(frozen=True)
class CentreWeights:
    """Weights of the centres at the sites of an expansion."""

    automaton: Automaton
    names: Mapping[str, str]
    """Module paths by alias, of sources and sites."""
    _tables: dict[str, Mapping[str, Fraction]] = field(default_factory=dict)

    def of(self, passage: Passage, last: str) -> Fraction:
        """w_i at a site, of a centre whose last hop is `last`.

        `uniform` is 1/incoming, `unit` is 1, and relative weights are scaled so that Σ w_i = 1 over all centres.

        Raises
        ------
        SelectionError
            No such term arrives at the site.
        InputError
            All its weights are zero.
        """
        alias, weighting = passage.site.alias, passage.rule.weighting
        if weighting is None or weighting == "unit":
            return Fraction(1)
        centres = self.automaton.incoming[passage.reads]
        if not centres:
            raise SelectionError(f"no term arrives at {alias!r}, so there are no weights")
        if isinstance(weighting, str):
            return Fraction(1, centres)
        if alias not in self._tables:
            self._tables[alias] = self._scaled(passage, weighting)
        if last not in self._tables[alias]:
            known = self._tables[alias]
            raise SelectionError(f"no term whose last hop is {last!r} arrives at {alias!r}{nearest(last, known)}")
        return self._tables[alias][last]

    def _scaled(self, passage: Passage, weights: Mapping[str, float]) -> Mapping[str, Fraction]:
        """By the last hop of the centres that arrive at a site: their weights, which sum to 1 over all centres."""
        arriving = self.automaton.last_hops(passage.reads)
        relative = {last: Fraction(1) for last in arriving}
        for pattern, weight in weights.items():
            relative |= {last: Fraction(weight) for last in matching(pattern, self.names) if last in arriving}
        total = sum((relative[last] * number for last, number in arriving.items()), Fraction(0))
        if not total:
            alias = passage.site.alias
            raise InputError(f"the weights at {alias!r} are zero for every centre: give one a positive weight")
        return {last: weight / total for last, weight in relative.items()}
