"""Rewriting an outline into terms: which rule holds at each site, and the automaton of paths that follows from it.

The terms of an expansion are never stored: their names are the walks of its `Automaton`. Nothing here sees a tensor.
"""

from __future__ import annotations

import html
import math
import numbers
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from jetgraph.algebra.automaton import Automaton, Entry, Everything, Move, TermGraph
from jetgraph.algebra.matching import matching, nearest
from jetgraph.algebra.program import (
    SINK,
    Atom,
    Directions,
    Distribute,
    Freeze,
    Hop,
    Jet,
    JoinStep,
    MapStep,
    Outline,
    Path,
    Rule,
    Site,
    Source,
    Split,
    Step,
)
from jetgraph.errors import BudgetError, InputError, JetGraphError, SelectionError, big, check, quoted

TERM_BUDGET = 100_000
"""How many terms are enumerated without being asked for by number."""

HOP_BUDGET = 1_000_000
"""How many hops, sites times orders, an expansion may offer to its paths."""

Recipe = Literal["exhaustive", "components", "path", "lens"]
Weights = Literal["uniform", "unit"] | Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Place:
    """A site, and how paths pass it."""

    step: int
    """The site adds to this point; the decoder's is n+1."""
    reads: int
    """The point that it reads: the one before, but for long skips."""
    site: Site
    rule: Rule
    hops: tuple[Hop, ...]
    """What a path may write here; empty where none is written (an atom, an affine map)."""


class HasOutline(Protocol):
    """What `expand` needs of a residual graph."""

    @property
    def outline(self) -> Outline: ...


@runtime_checkable
class HasParts(HasOutline, Protocol):
    """What `expand` needs to split branches."""

    def split(self, how: Split) -> HasOutline: ...


@dataclass(frozen=True, eq=False, repr=False)
class Expansion:
    """An exact sum of terms plus a remainder, in symbols. Made by `expand`.

    Iterating gives the `Path` of each term, in a fixed order: by source, then shortest first at each join.
    """

    graph: Any
    """What it was made from: a residual graph, or an outline."""
    outline: Outline
    recipe: Recipe
    order: int
    rules: Mapping[str, Rule]
    """The rule at each site, by alias."""
    automaton: Automaton
    """Sources, and the moves between points: its walks are the terms."""

    # Where things are

    @cached_property
    def places(self) -> Mapping[str, Place]:
        """Every site's place by alias, in the order of the stream."""
        places = {}
        for step, site in _sited(self.outline):
            if site.alias in self.rules:
                hops = (move.hop for move in self.automaton.moves[step - 1] if move.hop is not None)
                passing = tuple(hop for hop in hops if hop.alias == site.alias)
                places[site.alias] = Place(step, _reads(step, site), site, self.rules[site.alias], passing)
        return places

    @cached_property
    def names(self) -> Mapping[str, str]:
        """Module paths by alias, of everything that a path may write: sources, then sites along the stream.

        A bias is made by a site's module but is not the site: it goes by its alias only, and has no path here.
        """
        sources = {entry.source.alias: entry.source for entry in self.entries}
        paths = {alias: "" if source.kind == "bias" else source.path for alias, source in sources.items()}
        return paths | {alias: place.site.path for alias, place in self.places.items()}

    @cached_property
    def _entry_by_alias(self) -> Mapping[str, Entry]:
        return {entry.source.alias: entry for entry in self.entries}

    def place(self, alias: str) -> Place:
        """Where the site `alias` is; raises `SelectionError` for an unknown one."""
        if not isinstance(alias, str) or alias not in self.places:
            raise SelectionError(f"there is no site {quoted(alias)}{nearest(quoted(alias), self.places)}")
        return self.places[alias]

    def entry(self, alias: str) -> Entry:
        """Where the source `alias` enters; raises `SelectionError` for an unknown one."""
        if not isinstance(alias, str) or alias not in self._entry_by_alias:
            raise SelectionError(f"there is no source {quoted(alias)}{nearest(quoted(alias), self._entry_by_alias)}")
        return self._entry_by_alias[alias]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All sources, in the order in which they enter."""
        return self.automaton.entries

    @property
    def sink(self) -> int:
        """The number of the sink as a point: one after the last point of the stream."""
        return self.automaton.sink

    # Counting

    def incoming(self, point: int) -> int:
        """Number of terms at a point of the stream: the centres of a jet at the site that reads this point."""
        check(Expansion.incoming, locals())
        if not 0 <= point <= self.sink:
            raise SelectionError(f"the points are 0..{self.sink} (the last one is the sink), not {point}")
        return self.automaton.incoming[point]

    def count(self, *, length: int | None = None, order: int | None = None) -> int:
        """Exact number of terms, of those with a given `Path.length` or `Path.order` where one is given.

        By dynamic programming over the points, never by enumeration.
        """
        check(Expansion.count, locals())
        return self.automaton.count(length, order)

    def counts(self) -> dict[tuple[int, int], int]:
        """Number of terms by (`Path.length`, `Path.order`); pairs without terms are left out."""
        return self.automaton.counts()

    # Weights

    def weight(self, path: Path | str, index: int) -> Fraction:
        """Weight w_i of the centre that arrives at hop `index` of a path; 1 where no jet is taken."""
        check(Expansion.weight, locals())
        hops = _as_path(path).hops
        if not -len(hops) <= index < len(hops):
            raise SelectionError(f"{path} has hops 0..{len(hops) - 1}, not {index}")
        index %= len(hops)
        if index == 0 or hops[index].order is None:
            return Fraction(1)
        return self.centre_weight(hops[index].alias, hops[index - 1].alias)

    def weights(self, path: Path | str) -> tuple[Fraction, ...]:
        """The weight at every hop of a path, 1 where no jet is taken. Raises `SelectionError` for no path of this."""
        path = self.check(path)
        return tuple(self.weight(path, index) for index in range(len(path.hops)))

    def centre_weight(self, alias: str, last: str) -> Fraction:
        """Weight at the site `alias` of a centre whose last hop is `last`.

        Weights sum to 1 over the centres of a site: `uniform` is 1/incoming, a mapping's relative weights are scaled.
        `unit` weights are 1 each, as every centre is an expansion of its own.
        """
        place = self.place(alias)
        if not isinstance(place.rule, Jet) or place.rule.weights == "unit":
            return Fraction(1)
        centres = self.automaton.incoming[place.reads]
        if not centres:
            raise SelectionError(f"no term arrives at {alias!r}, so there are no weights")
        if place.rule.weights == "uniform":
            return Fraction(1, centres)
        relative = self._relative_weights(alias)
        if last not in relative:
            raise SelectionError(f"no term whose last hop is {last!r} arrives at {alias!r}{nearest(last, relative)}")
        return relative[last]

    @cached_property
    def _weight_tables(self) -> dict[str, Mapping[str, Fraction]]:
        return {}

    def _relative_weights(self, alias: str) -> Mapping[str, Fraction]:
        """Scaled weights by the last hop of the centres that arrive at a site with a mapping of weights."""
        if alias not in self._weight_tables:
            place = self.places[alias]
            rule = place.rule
            assert isinstance(rule, Jet)
            assert isinstance(rule.weights, Mapping)
            arriving = self.automaton.last_hops(place.reads)
            relative = {last: Fraction(1) for last in arriving}
            for pattern, weight in rule.weights.items():
                relative |= {last: Fraction(weight) for last in matching(pattern, self.names) if last in arriving}
            total = sum((relative[last] * n for last, n in arriving.items()), Fraction(0))
            if not total:
                raise InputError(f"the weights at {alias!r} are zero for every centre: give one a positive weight")
            self._weight_tables[alias] = {last: weight / total for last, weight in relative.items()}
        return self._weight_tables[alias]

    def symbol(self, alias: str) -> str:
        """Name of the weights at a site, such as `w[L3.mlp]`; empty where the site takes no jet."""
        return f"w[{alias}]" if isinstance(self.place(alias).rule, Jet) else ""

    # Enumerating

    @cached_property
    def term_graph(self) -> TermGraph:
        """The automaton of all terms."""
        return TermGraph(self.automaton, Everything())

    def terms(self, budget: int | None = TERM_BUDGET) -> Iterator[Path]:
        """The paths of all terms, one at a time, in a fixed order.

        Raises `BudgetError` before the first one if there are more than `budget` (None: no limit).
        """
        check(Expansion.terms, locals())
        if budget is not None and self.count() > budget:
            raise BudgetError(
                f"this expansion has {big(self.count())} terms, more than the budget of {budget}: choose some with "
                "jetgraph.select(expansion, pattern), or raise it with expansion.terms(budget=...)"
            )
        return self.term_graph.paths()

    def __iter__(self) -> Iterator[Path]:
        return self.terms()

    # Validating

    def __contains__(self, path: object) -> bool:
        if isinstance(path, str):
            try:
                path = Path.parse(path)
            except JetGraphError:
                return False
        return isinstance(path, Path) and self._problem(path) is None

    def check(self, path: Path | str) -> Path:
        """The path itself, parsed from text where it is text; raises `SelectionError` if no term has this name."""
        path = _as_path(path)
        problem = self._problem(path)
        if problem is not None:
            raise SelectionError(f"{quoted(str(path))} is no path of this expansion: {problem}")
        return path

    def _problem(self, path: Path) -> str | None:
        source, *hops = path.hops
        entry = self._entry_by_alias.get(source.alias)
        if entry is None:
            return f"it starts at {source.alias!r}, which is no source{nearest(source.alias, self._entry_by_alias)}"
        if source.order is not None:
            return f"the source {source.alias!r} carries no order"
        if entry.enters == self.sink:
            whole = f"{source.alias} > {SINK}"
            return None if str(path) == whole else f"this bias of the decoder is the term '{whole}'"
        point = entry.enters
        for hop in hops:
            place = self.places.get(hop.alias)
            if place is None:
                return f"there is no site {hop.alias!r}{nearest(hop.alias, self.places)}"
            if not place.hops:
                return f"no path passes {hop.alias!r}, whose rule is {_rule_text(place.rule)}"
            if place.step <= point:
                return f"{hop.alias!r} comes before what precedes it in the path, or stands beside it"
            if self.automaton.route(point, place.reads) is None:
                return self._no_way(point, place)
            if hop not in place.hops:
                return f"at {hop.alias!r} it has to be {' or '.join(map(str, place.hops))}, not {hop}"
            point = place.step
        return None if point == self.sink else f"it does not end at {SINK!r}"

    def _no_way(self, point: int, place: Place) -> str:
        """Why nothing gets silently from a point to what a site reads."""
        if place.reads < point:
            return f"{place.site.alias!r} reads point {place.reads}, which comes before what precedes it in the path"
        for moves in self.automaton.moves[point : place.reads]:
            if all(move.hop is not None for move in moves):
                return f"before {place.site.alias!r} it has to pass {_texts(moves) or 'an atom of a map'}"
        return f"{place.site.alias!r} reads point {place.reads}, to which no skip leads from point {point}"

    # Showing

    def _facts(self) -> list[tuple[str, str]]:
        aliases = [entry.source.alias for entry in self.entries]
        shown = ", ".join(aliases[:6]) + (f", … ({len(aliases)} in all)" if len(aliases) > 6 else "")
        by_length, _ = self.automaton.distribution()
        lengths = [n for n, value in by_length.items() if value]
        facts = [("recipe", f"{self.recipe}, order {self.order}"), ("terms", big(self.count()))]
        if lengths:
            mean = Fraction(sum(n * value for n, value in by_length.items()), self.count())
            facts.append(("sites", f"{min(lengths)} to {max(lengths)} per term, {float(mean):.1f} on average"))
        return [*facts, ("sources", shown)]

    def _table(self) -> list[tuple[str, str, str, str]]:
        places = self.places.values()
        rows = Counter((place.site.role, place.site.kind, _rule_text(place.rule)) for place in places)
        return [(role, kind, str(number), rule) for (role, kind, rule), number in rows.items()]

    def __repr__(self) -> str:
        lines = ["Expansion", *(f"  {name:<8} {text}" for name, text in self._facts())]
        rows = [("role", "kind", "sites", "rule"), *self._table()]
        lines += [f"  {role:<8} {kind:<8} {number:>5}  {rule}" for role, kind, number, rule in rows]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        facts = "".join(f"<tr><th>{a}</th><td colspan=3>{html.escape(b)}</td></tr>" for a, b in self._facts())
        head = "<tr><th>role</th><th>kind</th><th>sites</th><th>rule</th></tr>"
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self._table())
        return f"<table>{facts}{head}{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


# Making an expansion


def expand(
    graph: Outline | HasOutline,
    order: int | None = None,
    *,
    recipe: Recipe = "exhaustive",
    directions: Directions = "stream",
    weights: Weights | None = None,
    split: Split | None = None,
    rules: Mapping[str, Rule] | None = None,
    layers: int | str | Iterable[int | str] | None = None,
) -> Expansion:
    """Rewrite a residual graph into a sum of terms plus a remainder, in symbols.

    Recipes, at a nonlinear site (an affine one is distributed: f(Σ t) = Σ A t + b, exact and without weights):

    - `exhaustive` (order 1 unless given): a jet with every incoming term as a centre, at every site.
    - `components` (order 1): every branch is one term evaluated at the true stream; a jet at maps and at the decoder.
    - `path` (order 0, no other): every chain of sites on its own, weight 1. `select` picks the chains.
    - `lens` (order 0): one term `h{p} > logits^j` per point p and order j, weight 1. Each layer is an expansion on its
      own: terms of different layers do not add up. `layers` chooses points by number (negative from the end),
      by their name `h3`, or by a pattern over the sites of the step that they follow; all points unless given.

    Args:
        graph: a residual graph, or its outline.
        order: order of the jets.
        directions: `stream` keeps the variate h - x_i whole; `terms` splits it along incoming terms (order <= 1).
        weights: of the centres; `uniform` unless given. See `jetgraph.algebra.program.Jet`.
        split: cut branches into parts, each a site of its own; their sum is the branch, exactly. `heads`: every
            attention branch into `L0.attn.head0`, `L0.attn.head1`…; `neurons`: every other branch into
            `L0.mlp.neuron0`… by the inputs of its last layer. Or a mapping from patterns over branches to `heads`,
            `neurons`, a number of groups of neighbours, or sets of indices (of heads in attention, of neurons
            elsewhere): `{"L3.mlp": [[0, 7], [12]]}` gives `L3.mlp.set0`, `L3.mlp.set1` and, with what is in no set,
            `L3.mlp.rest`. The bias of the branch's last layer becomes a source; where a norm comes after that layer,
            its denominator is held at the branch's own value, and what the bias gives is the part `.offset`.
        rules: rules at sites by pattern over alias or module path, which override the recipe's; later entries win.
            An affine site is distributed under `Jet` and `Freeze` too, for that is what they come to there.
        layers: for the recipe `lens` only.

    Raises:
        JetGraphError: for an option that is unknown or does not fit, with the choices.

    Source: Chen et al., "Jet Expansions of Residual Computation", arXiv 2410.06024.

    >>> from jetgraph.algebra.program import JoinStep, Outline, Site, Source
    >>> branch = Site("L0.mlp", "layers.0.mlp", "mlp", "branch", affine=False, bias=False)
    >>> decoder = Site("logits", "", "logits", "decoder", affine=False, bias=False)
    >>> join = JoinStep("add", "identity", False, (branch,))
    >>> outline = Outline((Source("embed", "embed", "embed"),), (join,), decoder)
    >>> for path in expand(outline, order=0):
    ...     print(path)
    embed > logits^0
    embed > L0.mlp^0 > logits^0
    """
    # Which rules there are is told below, and which parts where branches are cut.
    check(expand, {**locals(), "rules": None if isinstance(rules, Mapping) else rules, "split": None})
    outline = graph if isinstance(graph, Outline) else getattr(graph, "outline", None)
    if not isinstance(outline, Outline):
        raise InputError(
            f"cannot expand {type(graph).__name__}: give what jetgraph.trace(model, ...) returns, or an Outline"
        )
    if split is not None:
        if not isinstance(graph, HasParts):
            raise InputError(
                "split= reads the code of the branches, which an outline has not: expand what "
                "jetgraph.trace(model, ...) returns"
            )
        graph = graph.split(split)
        outline = graph.outline
    if recipe not in get_args(Recipe):
        raise InputError(f"recipe={quoted(recipe)} is unknown: choose one of {', '.join(get_args(Recipe))}")
    if layers is not None and recipe != "lens":
        raise InputError(f'layers={quoted(layers)} is for recipe="lens" only, not for {recipe!r}')
    order = order if order is not None else (0 if recipe in ("path", "lens") else 1)
    if recipe == "path" and order != 0:
        raise InputError(
            f'recipe="path" is of order 0, not {order}: a path on its own has no other terms to take directions from. '
            'Use recipe="exhaustive" for higher orders'
        )
    if recipe in ("path", "lens"):
        if weights not in (None, "unit"):
            raise InputError(f"recipe={recipe!r} has weight 1 on every centre: leave weights={quoted(weights)} out")
        weights = "unit"
    jet = Jet(order, directions, "uniform" if weights is None else weights)
    _check_names(outline)
    chosen = _choose_rules(outline, recipe, jet, rules or {})
    hops = sum(rule.order + 1 for rule in chosen.values() if isinstance(rule, Jet))
    if hops > HOP_BUDGET:
        raise BudgetError(
            f"at orders of up to {big(max(rule.order for rule in chosen.values() if isinstance(rule, Jet)))} this "
            f"expansion offers {big(hops)} hops to its paths, more than {HOP_BUDGET:,}: take a lower order"
        )
    automaton = _lens_automaton(outline, chosen, layers) if recipe == "lens" else _automaton(outline, chosen)
    expansion = Expansion(graph, outline, recipe, order, chosen, automaton)
    _check_weights(expansion)
    return expansion


def _sited(outline: Outline) -> Iterator[tuple[int, Site]]:
    """Every site with the number of its step, the decoder last."""
    for number, step in enumerate(outline.steps, start=1):
        for site in step.branches if isinstance(step, JoinStep) else (step.site,):
            yield number, site
    yield len(outline.steps) + 1, outline.decoder


def _reads(step: int, site: Site) -> int:
    """The point that a site of this step reads."""
    return step - 1 if site.reads is None else site.reads


def _check_names(outline: Outline) -> None:
    if outline.decoder.alias != SINK:
        raise InputError(f"the decoder's alias is {SINK!r}, not {outline.decoder.alias!r}")
    injected = [source for step in outline.steps if isinstance(step, JoinStep) for source in step.injections]
    aliases = Counter(named.alias for named in (*outline.sources, *injected, *outline.sites()))
    twice = [alias for alias, number in aliases.items() if number > 1]
    if twice:
        raise InputError(f"names of sources and sites are unique, but {', '.join(twice)} occurs more than once")


def _choose_rules(outline: Outline, recipe: Recipe, jet: Jet, overrides: Mapping[str, Rule]) -> dict[str, Rule]:
    sites = (outline.decoder,) if recipe == "lens" else outline.sites()
    chosen: dict[str, Rule] = {}
    for site in sites:
        # What a long skip adds is made of components of before, each of which has a term of its own.
        if recipe == "components" and site.role == "branch" and site.kind != "skip":
            chosen[site.alias] = Atom()
        else:
            chosen[site.alias] = Distribute() if site.affine else jet
    paths = {site.alias: site.path for site in outline.sites()}
    for pattern, rule in overrides.items():
        if not isinstance(rule, Rule):
            raise InputError(f"rules[{pattern!r}] is {quoted(rule)}, which is none of Distribute, Jet, Atom, Freeze")
        named = set(matching(pattern, paths))
        found = [site for site in sites if site.alias in named]
        if not found:
            names = [site.alias for site in sites]
            raise SelectionError(f"rules[{pattern!r}] matches no site of this recipe{nearest(pattern, names)}")
        for site in found:
            chosen[site.alias] = _fit(rule, site, pattern)
    return chosen


def _fit(rule: Rule, site: Site, pattern: str) -> Rule:
    where = f"{site.alias!r} (module {site.path!r})"
    if isinstance(rule, Distribute) and not site.affine:
        raise InputError(f"rules[{pattern!r}] distributes {where}, which is not affine: use Jet, Atom or Freeze there")
    if isinstance(rule, Atom) and site.role == "decoder":
        raise InputError(
            f"rules[{pattern!r}] makes an atom of the decoder {where}: the one term would be the output itself. "
            "Use Jet or Freeze there"
        )
    # J^k of an affine map is the map itself whatever the centre, so weights there would only blur the terms.
    return Distribute() if site.affine and not isinstance(rule, Atom) else rule


class _BiasNames:
    """`bias`, `bias2`, … in order, without those that the outline has taken."""

    def __init__(self, outline: Outline) -> None:
        injected = (source for step in outline.steps if isinstance(step, JoinStep) for source in step.injections)
        self._taken = {source.alias for source in (*outline.sources, *injected)}
        self._number = 1

    def source(self, path: str) -> Source:
        while (alias := "bias" if self._number == 1 else f"bias{self._number}") in self._taken:
            self._number += 1
        self._taken.add(alias)
        return Source(alias, path, "bias")


def _passes(site: Site, rule: Rule, step: int) -> tuple[Move, ...]:
    """The moves that a site offers."""
    start = _reads(step, site)
    if isinstance(rule, Jet):
        return tuple(Move(start, Hop(site.alias, order)) for order in range(rule.order + 1))
    if isinstance(rule, Atom):
        return ()
    if isinstance(rule, Distribute) and site.role == "map":
        return (Move(start),)
    return (Move(start, Hop(site.alias)),)


def _made_by(site: Site, rule: Rule, point: int, biases: _BiasNames) -> Iterator[Entry]:
    """The source that a site is, or has, under its rule."""
    if isinstance(rule, Atom):
        yield Entry(Source(site.alias, site.path, "atom"), point, point, "atom", site)
    elif isinstance(rule, Freeze):
        if site.held_bias or (site.bias and site.role == "decoder"):
            yield Entry(biases.source(site.path), point, point, "freeze", site)
    elif site.bias and site.role == "decoder":
        yield Entry(biases.source(site.path), point, point, "decoder", site)
    elif site.bias and isinstance(rule, Distribute):
        yield Entry(biases.source(site.path), point, point, "affine", site)


def _step_entries(step: Step, rules: Mapping[str, Rule], point: int, biases: _BiasNames) -> Iterator[Entry]:
    if isinstance(step, MapStep):
        yield from _made_by(step.site, rules[step.site.alias], point, biases)
        return
    for source in step.injections:
        yield Entry(source, point, point, "injection")
    if step.bias:
        yield Entry(biases.source(""), point, point, "skip")
    for site in step.constants:
        yield Entry(biases.source(site.path), point, point, "split", site)
    for site in step.branches:
        yield from _made_by(site, rules[site.alias], point, biases)


def _automaton(outline: Outline, rules: Mapping[str, Rule]) -> Automaton:
    biases = _BiasNames(outline)
    entries = [Entry(source, 0, 0, "encoder") for source in outline.sources]
    moves: list[tuple[Move, ...]] = []
    for point, step in enumerate(outline.steps, start=1):
        sites = step.branches if isinstance(step, JoinStep) else (step.site,)
        silent = (Move(point - 1),) if isinstance(step, JoinStep) else ()
        moves.append(sum((_passes(site, rules[site.alias], point) for site in sites), silent))
        entries.extend(_step_entries(step, rules, point, biases))
    decoder = outline.decoder
    moves.append(_passes(decoder, rules[decoder.alias], len(moves) + 1))
    entries.extend(_made_by(decoder, rules[decoder.alias], len(moves), biases))
    return Automaton(tuple(entries), tuple(moves))


def _lens_automaton(
    outline: Outline, rules: Mapping[str, Rule], layers: int | str | Iterable[int | str] | None
) -> Automaton:
    last = len(outline.steps)
    decoder = outline.decoder
    points = range(last + 1) if layers is None else _lens_points(outline, layers)
    entries = [Entry(Source(f"h{point}", "", "stream"), last, point, "stream") for point in points]
    entries.extend(_made_by(decoder, rules[decoder.alias], last + 1, _BiasNames(outline)))
    silent = tuple((Move(point),) for point in range(last))
    return Automaton(tuple(entries), (*silent, _passes(decoder, rules[decoder.alias], last + 1)))


def _lens_points(outline: Outline, layers: int | str | Iterable[int | str]) -> Sequence[int]:
    last = len(outline.steps)
    paths = {site.alias: site.path for site in outline.sites()}
    found: set[int] = set()
    for layer in (layers,) if isinstance(layers, int | numbers.Integral | str) else layers:
        if not isinstance(layer, numbers.Integral | str):
            raise InputError(f"layers={quoted(layers)} holds {quoted(layer)}, which is neither a number nor a name")
        if isinstance(layer, numbers.Integral):
            layer = int(layer)
            if not -last - 1 <= layer <= last:
                raise InputError(f"the stream has points 0..{last}, so layers={quoted(layer)} does not exist")
            found.add(layer % (last + 1))
            continue
        points = {point for point in range(last + 1) if layer == f"h{point}"}
        if not points:
            named = set(matching(layer, paths))
            points = {number for number, site in _sited(outline) if number <= last and site.alias in named}
        if not points:
            names = [site.alias for site in outline.sites()[:-1]]
            raise SelectionError(
                f"layers={quoted(layer)} matches no site and no point h0..h{last}{nearest(layer, names)}"
            )
        found |= points
    if not found:
        raise InputError(f"layers={quoted(layers)} names no point: give numbers, names such as h0, or leave it out")
    return sorted(found)


def _check_weights(expansion: Expansion) -> None:
    names = [entry.source.alias for entry in expansion.entries]
    passed = (move.hop for moves in expansion.automaton.moves[:-1] for move in moves)
    names += dict.fromkeys(hop.alias for hop in passed if hop is not None)
    weightings = {id(rule.weights): rule.weights for rule in expansion.rules.values() if isinstance(rule, Jet)}
    for weights in weightings.values():
        if isinstance(weights, str):
            continue
        for pattern, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise InputError(f"weights[{pattern!r}] is {weight}: weights are finite and not negative")
            if not set(names).intersection(matching(pattern, expansion.names)):
                raise SelectionError(f"weights[{pattern!r}] matches no source and no site{nearest(pattern, names)}")


# Small arithmetic and text


def _as_path(path: Path | str) -> Path:
    if not isinstance(path, Path | str):
        raise SelectionError(f"{quoted(path)} is no path: give one, or its text such as 'embed > {SINK}^0'")
    return Path.parse(path) if isinstance(path, str) else path


def _texts(moves: Iterable[Move]) -> str:
    return " or ".join(str(move.hop) for move in moves if move.hop is not None)


def _rule_text(rule: Rule) -> str:
    if not isinstance(rule, Jet):
        return type(rule).__name__.lower()
    weights = rule.weights if isinstance(rule.weights, str) else "given"
    along = "" if rule.directions == "stream" else ", split along terms"
    return f"jet of order {rule.order}, {weights} weights{along}"
