"""Weights of the centres of jets, as exact fractions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from jetgraph.algebra.automaton import Automaton
from jetgraph.algebra.matching import matching, named, nearest
from jetgraph.algebra.outline import SINK
from jetgraph.algebra.passages import Passage
from jetgraph.errors import InputError, SelectionError, amount


def check_weights(passages: Mapping[str, Passage], automaton: Automaton, names: Mapping[str, str]) -> None:
    """Refuse a weight that is none, or is given to nothing that can be a centre.

    Parameters
    ----------
    passages
        The sites, and the rule at each.
    automaton
        Of the expansion that follows from them.
    names
        Module paths by alias, of sources and sites.

    Raises
    ------
    InputError
        A weight is negative, or no number; or a tensor has another number of them than centres arrive.
    SelectionError
        A pattern matches no source and no site.
    """
    single = [entry.source.alias for entry in automaton.entries]
    single += dict.fromkeys(hop.alias for hop in automaton.hops() if hop.alias != SINK)
    # One mapping for all sites is looked at once, over what is a centre at any of them.
    given: dict[int, tuple[Mapping[str, float], dict[str, None]]] = {}
    for passage in passages.values():
        if isinstance(weights := passage.rule.weighting, Mapping):
            centres = given.setdefault(id(weights), (weights, {}))[1]
            centres.update(dict.fromkeys(passage.groups or single))
    for weights, centres in given.values():
        for pattern, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise InputError(f"weights[{pattern!r}] is {weight}: weights are finite and not negative")
            named(pattern, names, centres, f"weights[{pattern!r}] matches no source and no site")
    for passage in passages.values():
        if isinstance(passage.rule.weighting, tuple):
            _check_tensor(passage, len(passage.groups) or automaton.incoming[passage.reads])


def _check_tensor(passage: Passage, centres: int) -> None:
    alias, weights = passage.site.alias, passage.rule.weighting
    for row in _rows(weights):
        if len(row) != centres:
            raise InputError(
                f"the tensor of weights at {alias!r} ends in {amount(len(row), 'centre')}, not in "
                f"{centres}, which is how many terms arrive there: "
                "give one weight for each of expansion.centres(alias), and rules={alias: Jet(...)} for each site"
            )
        if not all(isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0 for weight in row):
            raise InputError(f"the tensor of weights at {alias!r} holds {row}: weights are finite and not negative")
        if not any(row):
            raise InputError(f"the weights at {alias!r} are zero for every centre: give one a positive weight")


def _rows(weights: Any) -> Iterator[tuple[Any, ...]]:
    """The weights of one token each."""
    if isinstance(weights, tuple) and weights and isinstance(weights[0], tuple):
        for row in weights:
            yield from _rows(row)
    else:
        yield weights if isinstance(weights, tuple) else (weights,)


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
            All its weights are zero, or are those of single tokens or centres.
        """
        alias, weighting = passage.site.alias, passage.rule.weighting
        if weighting is None or weighting == "unit":
            return Fraction(1)
        centres = passage.beam or len(passage.groups) or self.automaton.incoming[passage.reads]
        if not centres:
            raise SelectionError(f"no term arrives at {alias!r}, so there are no weights")
        if weighting == "uniform":
            return Fraction(1, centres)
        if not isinstance(weighting, Mapping):
            what = "found for each token" if weighting == "optimal" else "given by a tensor"
            raise InputError(f"the weights at {alias!r} are {what}: PathValues.weights has them")
        if alias not in self._tables:
            self._tables[alias] = self._scaled(passage, weighting)
        if last not in self._tables[alias]:
            known = self._tables[alias]
            raise SelectionError(f"no term whose last hop is {last!r} arrives at {alias!r}{nearest(last, known)}")
        return self._tables[alias][last]

    def _scaled(self, passage: Passage, weights: Mapping[str, float]) -> Mapping[str, Fraction]:
        """By the last hop of the centres that arrive at a site: their weights, which sum to 1 over all centres."""
        arriving = dict.fromkeys(passage.groups, 1) or self.automaton.last_hops(passage.reads)
        relative = {last: Fraction(1) for last in arriving}
        for pattern, weight in weights.items():
            relative |= {last: Fraction(weight) for last in matching(pattern, self.names) if last in arriving}
        total = sum((relative[last] * number for last, number in arriving.items()), Fraction(0))
        if not total:
            alias = passage.site.alias
            raise InputError(f"the weights at {alias!r} are zero for every centre: give one a positive weight")
        return {last: weight / total for last, weight in relative.items()}
