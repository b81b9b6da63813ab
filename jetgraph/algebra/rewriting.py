"""Rewriting an outline: which rule holds at each site, and the automaton of terms that follows from it."""

from __future__ import annotations

import numbers
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count
from typing import Literal

from jetgraph.algebra.automaton import Automaton, Entry, Move
from jetgraph.algebra.dialects import points_called
from jetgraph.algebra.grouping import REST, grouped
from jetgraph.algebra.matching import named
from jetgraph.algebra.outline import SINK, JoinStep, Outline, Site, Source, Step
from jetgraph.algebra.paths import Hop
from jetgraph.algebra.rules import RULES, Atom, Rule
from jetgraph.errors import BudgetError, InputError, big, quoted

HOP_BUDGET = 1_000_000
"""How many hops, sites times orders, an expansion may offer to its paths."""

Recipe = Literal["exhaustive", "components", "frozen", "path", "lens", "beam"]
Layers = int | str | Iterable[int | str] | None
"""Points of the stream: see `jetgraph.expand`."""


def choose_rules(outline: Outline, recipe: Recipe, usual: Rule, given: Mapping[str, Rule]) -> dict[str, Rule]:
    """The rule at each site, by alias: the recipe's, or the last one given for it.

    Parameters
    ----------
    outline
        Whose sites are rewritten; for the recipe `lens` the decoder alone.
    recipe
        Says where atoms are taken.
    usual
        The rule of all other sites, where they are not affine.
    given
        Rules by pattern over alias or module path.

    Raises
    ------
    InputError
        Two names are the same, or a rule given is none, or does not fit a site.
    SelectionError
        A rule is given for no site.
    BudgetError
        Orders are so high that paths would have more than `HOP_BUDGET` hops to choose from.
    """
    _check_names(outline)
    sites = (outline.decoder,) if recipe == "lens" else outline.sites()
    chosen: dict[str, Rule] = {}
    for site in sites:
        # What a long skip adds is made of components of before, each of which has a term of its own.
        whole = recipe == "components" and site.role == "branch" and site.kind != "skip"
        chosen[site.alias] = Atom() if whole else usual.fitted(site, "the recipe")
    paths, by_alias = {site.alias: site.path for site in outline.sites()}, {site.alias: site for site in sites}
    for pattern, rule in given.items():
        if not isinstance(rule, Rule):
            known = ", ".join(kind.__name__ for kind in RULES.values())
            raise InputError(f"rules[{pattern!r}] is {quoted(rule)}, which is none of {known}")
        for alias in named(pattern, paths, by_alias, f"rules[{pattern!r}] matches no site of this recipe"):
            chosen[alias] = rule.fitted(by_alias[alias], f"rules[{pattern!r}]")
    _check_orders(chosen)
    _check_beams(chosen)
    return _settled(outline, chosen) if recipe != "lens" else {SINK: chosen[SINK].before_linear()}


def _settled(outline: Outline, rules: Mapping[str, Rule]) -> dict[str, Rule]:
    """What rules come to where nothing follows that takes terms as centres."""
    settled: dict[str, Rule] = {}
    # From the end on: whether a term at a point gets to a site that is not linear in it.
    sites = [*(step.sites for step in outline.steps), (outline.decoder,)]
    follows = [False] * (len(sites) + 1)
    for number in range(len(sites), 0, -1):
        for site in sites[number - 1]:
            rule = rules[site.alias]
            settled[site.alias] = rule if follows[number] else rule.before_linear()
            if rule.hops(site):
                follows[site.reads_at(number)] |= follows[number] or not rule.linear
        step = outline.steps[number - 1] if number < len(sites) else None
        # Where nothing is skipped, terms go on through branches alone.
        if isinstance(step, JoinStep) and step.skip != "none":
            follows[number - 1] |= follows[number]
    return {alias: settled[alias] for alias in rules}


def _check_beams(rules: Mapping[str, Rule]) -> None:
    """Raise `InputError` for a jet beside a beam that asks which terms arrive, for that is known when it runs."""
    chosen = next((alias for alias, rule in rules.items() if rule.beam is not None), None)
    if chosen is None:
        return
    for alias, rule in rules.items():
        if rule.beam is None and rule.asks_for_centres:
            raise InputError(
                f"the beam at {chosen!r} chooses terms when it runs, but {alias!r} has {rule.text}, which asks before "
                "which of them arrive: give it a width too, weights='unit', or a rule without centres such as Freeze()"
            )


def _check_names(outline: Outline) -> None:
    if outline.decoder.alias != SINK:
        raise InputError(f"the decoder's alias is {SINK!r}, not {outline.decoder.alias!r}")
    aliases = Counter(one.alias for one in (*outline.sources, *outline.injections(), *outline.sites()))
    twice = [alias for alias, number in aliases.items() if number > 1]
    if twice:
        raise InputError(f"names of sources and sites are unique, but {', '.join(twice)} occurs more than once")


def _check_orders(rules: Mapping[str, Rule]) -> None:
    orders = [rule.highest for rule in rules.values() if rule.highest is not None]
    hops = sum(orders) + len(orders)
    if hops > HOP_BUDGET:
        fit = HOP_BUDGET // len(orders) - 1
        fitting = f"take order {fit} or a lower one" if fit >= 0 else "take jets at fewer sites"
        raise BudgetError(
            f"at orders of up to {big(max(orders))} this expansion offers {big(hops)} hops to its paths, more than "
            f"{HOP_BUDGET:,}: {fitting}"
        )


class _BiasNames:
    """Names of constants: `L3.mlp.bias` of a site on the stream; of a skip or of the decoder `bias`, or where that is
    taken `L3.mlp.skip.bias` and `logits.bias`; of the rest, with a number.
    """

    def __init__(self, outline: Outline) -> None:
        self._taken = {source.alias for source in (*outline.sources, *outline.injections())}

    def __call__(self, site: Site | str) -> Source:
        """The constant of a site, or of the skip of a join of this name."""
        whose, path = (f"{site}.skip", "") if isinstance(site, str) else (site.alias, site.path)
        short = () if not isinstance(site, str) and site.role != "decoder" else ("bias",)
        numbered = (f"{whose}.bias{number}" for number in count(2))
        alias = next(alias for alias in chain(short, (f"{whose}.bias",), numbered) if alias not in self._taken)
        self._taken.add(alias)
        return Source(alias, path, "bias")


def rewritten(outline: Outline, rules: Mapping[str, Rule]) -> Automaton:
    """The automaton whose walks are the terms that rules make of an outline.

    Parameters
    ----------
    outline
        The stream.
    rules
        The rule at each site, by alias.
    """
    bias = _BiasNames(outline)
    entries = [Entry(source, 0, 0, "encoder") for source in outline.sources]
    moves: list[tuple[Move, ...]] = []
    arriving = _Arriving(outline)
    for point, step in enumerate(outline.steps, start=1):
        silent = (Move(point - 1),) if isinstance(step, JoinStep) and step.skip != "none" else ()
        moves.append(sum((arriving.moves(site, rules[site.alias], point) for site in step.sites), silent))
        new = [*_constants(step, point, bias), *_own(step.sites, rules, point, bias)]
        new += [entry for site in step.sites for entry in arriving.groups(site, rules[site.alias], point)]
        arriving.step(step, rules, moves[-1], new)
        entries += new
    moves.append(arriving.moves(outline.decoder, rules[SINK], len(moves) + 1))
    entries += arriving.groups(outline.decoder, rules[SINK], len(moves))
    entries += _own((outline.decoder,), rules, len(moves), bias)
    return Automaton(tuple(entries), tuple(moves), arriving.grouped)


class _Arriving:
    """What arrives at the points: how many terms of which last hop, and whether they add up to the true stream."""

    def __init__(self, outline: Outline) -> None:
        self._lasts = [Counter(source.alias for source in outline.sources)]
        self._whole = [True]
        everything = (*outline.sources, *outline.injections(), *outline.sites())
        self._paths = {one.alias: one.path for one in everything}
        self._kinds: dict[str, str] = {one.alias: one.kind for one in everything}
        self.grouped: dict[str, Mapping[str, str]] = {}
        """By site whose centres are groups of terms: the group of each, by the alias of its last hop."""

    def _groups(self, rule: Rule, point: int) -> Mapping[str, str]:
        """The group of each term at a point, by the alias of its last hop."""
        assert rule.grouping is not None
        lasts = [last for last, number in self._lasts[point].items() if number]
        return grouped(rule.grouping, lasts, dict.fromkeys(lasts, "") | self._paths, self._kinds)

    def _hops(self, site: Site, rule: Rule, start: int) -> tuple[Hop | None, ...]:
        """What may be written of a site, but for what is zero."""
        still = self._whole[start] and self._alone(rule, start)
        return tuple(hop for hop in rule.hops(site) if not (still and rule.vanishes(hop)))

    def _alone(self, rule: Rule, point: int) -> bool:
        """There is one centre at a point."""
        if rule.grouping is None:
            return self._lasts[point].total() == 1
        return len(set(self._groups(rule, point).values())) == 1

    def moves(self, site: Site, rule: Rule, step: int) -> tuple[Move, ...]:
        """The moves that a site offers to single terms."""
        start = site.reads_at(step)
        return () if rule.grouping is not None else tuple(Move(start, hop) for hop in self._hops(site, rule, start))

    def groups(self, site: Site, rule: Rule, step: int) -> Iterator[Entry]:
        """What a site makes of groups of terms."""
        start = site.reads_at(step)
        lumped = rule.beam is not None and self._lasts[start].total() > rule.beam
        if rule.grouping is not None:
            self.grouped[site.alias] = self._groups(rule, start)
        elif not lumped:
            return
        for group in (REST,) if lumped else dict.fromkeys(self.grouped[site.alias].values()):
            for hop in self._hops(site, rule, start):
                yield Entry(Source(group, "", "group"), step, start, "group", site, hop)

    def step(self, step: Step, rules: Mapping[str, Rule], moves: Iterable[Move], entries: Iterable[Entry]) -> None:
        """Go on to the point after a step."""
        point = len(self._lasts)
        whole = self._whole[-1] if isinstance(step, JoinStep) and step.skip != "none" else True
        for site in step.sites:
            start = site.reads_at(point)
            rule = rules[site.alias]
            whole &= rule.exact(self._whole[start], self._alone(rule, start))
        lasts: Counter[str] = Counter()
        for move in moves:
            if move.hop is None:
                lasts.update(self._lasts[move.start])
            else:
                lasts[move.hop.alias] += self._lasts[move.start].total()
        lasts.update(entry.last for entry in entries)
        # An atom is called as its site, whose kind says more.
        self._kinds = {one.source.alias: one.source.kind for one in entries if not one.is_group} | self._kinds
        self._lasts.append(lasts)
        self._whole.append(whole)


def _constants(step: Step, point: int, bias: _BiasNames) -> Iterator[Entry]:
    """The sources that enter at a join whatever the rules at its branches."""
    if not isinstance(step, JoinStep):
        return
    for source in step.injections:
        yield Entry(source, point, point, "injection")
    if step.bias:
        yield Entry(bias(step.name), point, point, "skip")
    for site in step.constants:
        yield Entry(bias(site), point, point, "split", site)


def _own(sites: Iterable[Site], rules: Mapping[str, Rule], point: int, bias: _BiasNames) -> Iterator[Entry]:
    """The sources that sites are, or have, under their rules."""
    for site in sites:
        if (entry := rules[site.alias].entry(site, point, bias)) is not None:
            yield entry


def rewritten_lens(outline: Outline, rules: Mapping[str, Rule], layers: Layers) -> Automaton:
    """The automaton of the recipe `lens`, whose sources are the true stream at some points.

    Parameters
    ----------
    outline
        The stream.
    rules
        The rule at the decoder.
    layers
        Numbers of points, their names, or patterns over the sites of the steps that they follow; None for all.

    Raises
    ------
    InputError
        A number is none of a point, or there are none at all.
    SelectionError
        A name is none of a point, and no site has it.
    """
    last = len(outline.steps)
    points = range(last + 1) if layers is None else _points(outline, layers)
    entries = [Entry(Source(f"h{point}", "", "stream"), last, point, "stream") for point in points]
    entries += _own((outline.decoder,), rules, last + 1, _BiasNames(outline))
    silent = tuple((Move(point),) for point in range(last))
    hops = rules[SINK].hops(outline.decoder)
    return Automaton(tuple(entries), (*silent, tuple(Move(last, hop) for hop in hops)))


def _points(outline: Outline, layers: int | str | Iterable[int | str]) -> Sequence[int]:
    points: set[int] = set()
    for layer in (layers,) if isinstance(layers, int | numbers.Integral | str) else layers:
        if isinstance(layer, numbers.Integral):
            points.add(_numbered_point(outline, int(layer)))
        elif isinstance(layer, str):
            points |= _named_points(outline, layer)
        else:
            raise InputError(f"layers={quoted(layers)} holds {quoted(layer)}, which is neither a number nor a name")
    if not points:
        raise InputError(f"layers={quoted(layers)} names no point: give numbers, names such as h0, or leave it out")
    return sorted(points)


def _numbered_point(outline: Outline, number: int) -> int:
    last = len(outline.steps)
    if not -last - 1 <= number <= last:
        raise InputError(f"the stream has points 0..{last}, so layers={quoted(number)} does not exist")
    return number % (last + 1)


def _named_points(outline: Outline, name: str) -> set[int]:
    last = len(outline.steps)
    if points := {point for point in range(last + 1) if name == f"h{point}"}:
        return points
    if points := points_called(name, outline):
        return points
    steps = {site.alias: step for step, site in outline.numbered() if step <= last}
    paths = {site.alias: site.path for site in outline.sites()}
    aliases = named(name, paths, steps, f"layers={quoted(name)} matches no site and no point h0..h{last}")
    return {steps[alias] for alias in aliases}
