"""The exact sum of terms that an outline is rewritten into, in symbols.

The terms of an expansion are never stored: their names are the walks of its `Automaton`. Nothing here sees a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Protocol, get_args, runtime_checkable

from jetgraph.algebra.automaton import Automaton, Entry, Everything, TermGraph
from jetgraph.algebra.dialects import parts_asked
from jetgraph.algebra.grouping import Grouping
from jetgraph.algebra.matching import Aliases, nearest
from jetgraph.algebra.outline import SINK, Outline, Split
from jetgraph.algebra.passages import Passage, fault, passages
from jetgraph.algebra.paths import Hop, Path
from jetgraph.algebra.rewriting import Recipe, choose_rules, rewritten, rewritten_lens
from jetgraph.algebra.rules import Directions, Freeze, Jet, Orders, Rule, Scale, Weights
from jetgraph.algebra.summary import Summary
from jetgraph.algebra.weights import CentreWeights, check_weights
from jetgraph.errors import BudgetError, InputError, JetGraphError, SelectionError, amount, big, check, quoted

TERM_BUDGET = 100_000
"""How many terms are enumerated without being asked for by number."""

COUNTABLE = 10**12
"""A budget from here on is no advice: nobody sees its end."""


class HasOutline(Protocol):
    """What `expand` needs of a residual graph."""

    @property
    def outline(self) -> Outline: ...


@runtime_checkable
class HasParts(HasOutline, Protocol):
    """What `expand` needs to split branches."""

    def split(self, how: Split) -> HasOutline: ...


@dataclass(frozen=True, eq=False)
class Expansion:
    """An exact sum of terms plus a remainder, in symbols. Made by `expand`.

    Iterating gives the `Path` of each term, in a fixed order: by source, then shortest first at each join.
    """

    graph: Outline | HasOutline
    """What it was made from."""
    outline: Outline
    recipe: Recipe
    order: int
    rules: Mapping[str, Rule]
    """The rule at each site, by alias."""
    automaton: Automaton
    """Sources, and the moves between points: its walks are the terms."""

    # Sources and sites

    @cached_property
    def passages(self) -> Mapping[str, Passage]:
        """Every site by alias, in the order of the stream, and how paths pass it."""
        return passages(self.outline, self.rules, self.automaton)

    @cached_property
    def names(self) -> Aliases:
        """Module paths by alias, of everything that a path may write: sources, then sites along the stream.

        A bias is made by a site's module but is not the site: it goes by its alias only, and has no path here.
        """
        paths = _paths(self.entries) | {alias: passage.site.path for alias, passage in self.passages.items()}
        return Aliases(paths, {one.source.alias: one.source.kind for one in self.entries})

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All sources, in the order in which they enter."""
        return self.automaton.entries

    @cached_property
    def _entry_by_alias(self) -> Mapping[str, Entry]:
        return {entry.source.alias: entry for entry in reversed(self.entries)}

    @cached_property
    def _beginnings(self) -> Mapping[tuple[Hop, ...], Entry]:
        """Sources by what their paths begin with."""
        return {entry.hops: entry for entry in self.entries}

    @cached_property
    def constants(self) -> frozenset[str]:
        """The sources, by alias, of what the decoder adds besides its linear part: no term passes it."""
        return frozenset(entry.source.alias for entry in self.entries if entry.of_decoder)

    def passage(self, alias: str) -> Passage:
        """How paths pass the site `alias`.

        Raises
        ------
        SelectionError
            An unknown alias.
        """
        if not isinstance(alias, str) or alias not in self.passages:
            raise SelectionError(f"there is no site {quoted(alias)}{nearest(quoted(alias), self.passages)}")
        return self.passages[alias]

    def entry(self, alias: str) -> Entry:
        """Where the source `alias` enters, a group first.

        Raises
        ------
        SelectionError
            An unknown alias.
        """
        if not isinstance(alias, str) or alias not in self._entry_by_alias:
            raise SelectionError(f"there is no source {quoted(alias)}{nearest(quoted(alias), self._entry_by_alias)}")
        return self._entry_by_alias[alias]

    @cached_property
    def chooses(self) -> bool:
        """Which terms there are is chosen when it runs, as by a beam."""
        return any(passage.beam is not None for passage in self.passages.values())

    def groups(self, alias: str) -> Mapping[str, str]:
        """At a site whose centres are groups: the group of a term, by the alias of its last hop.

        Raises
        ------
        SelectionError
            An unknown site, or one whose centres are single terms.
        """
        if self.passage(alias).rule.grouping is None:
            raise SelectionError(f"the centres of {quoted(alias)} are single terms")
        return self.automaton.groups[alias]

    def start(self, path: Path) -> Entry:
        """Where the source of a path enters; of a group, at the site that the path passes first."""
        entry = self._beginnings.get(path.hops[:2]) or self._beginnings.get(path.hops[:1])
        return self.entry(path.source.alias) if entry is None else entry

    @property
    def sink(self) -> int:
        """The number of the sink as a point: one after the last point of the stream."""
        return self.automaton.sink

    # Counting

    def incoming(self, point: int) -> int:
        """Number of terms at a point of the stream: the centres of a jet at the site that reads this point.

        Raises
        ------
        SelectionError
            A point that the stream has not.
        """
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

    @cached_property
    def _centre_weights(self) -> CentreWeights:
        return CentreWeights(self.automaton, self.names)

    def centre_weight(self, alias: str, last: str) -> Fraction:
        """Weight at the site `alias` of a centre whose last hop is `last`; 1 where no jet is taken.

        Weights sum to 1 over the centres of a site: `uniform` is 1/incoming, a mapping's relative weights are scaled.
        `unit` weights are 1 each, as every centre is an expansion of its own.

        Raises
        ------
        SelectionError
            An unknown site, or one at which no such term arrives.
        InputError
            Weights that differ between tokens, or are those of single centres.
        """
        return self._centre_weights.of(self.passage(alias), last)

    def weight(self, path: Path | str, index: int) -> Fraction:
        """Weight w_i of the centre that arrives at hop `index` of a path; 1 where no jet is taken.

        Raises
        ------
        SelectionError
            A number that the path has no hop of.
        """
        check(Expansion.weight, locals())
        hops = _as_path(path).hops
        if not -len(hops) <= index < len(hops):
            raise SelectionError(f"{path} has hops 0..{len(hops) - 1}, not {index}")
        index %= len(hops)
        if index == 0 or hops[index].order is None:
            return Fraction(1)
        return self.centre_weight(hops[index].alias, hops[index - 1].alias)

    def weights(self, path: Path | str) -> tuple[Fraction, ...]:
        """The weight at every hop of a path, 1 where no jet is taken.

        Raises
        ------
        SelectionError
            It is no path of this expansion.
        """
        path = self.check(path)
        return tuple(self.weight(path, index) for index in range(len(path.hops)))

    def lightness(self, path: Path | None = None) -> float:
        """−log₂ of the product of the weights along a path; of the lightest path, or nearly so, unless one is given.

        Weights of single tokens, which are known when it runs, count as 1.
        """
        if path is not None:
            known = (
                self.weight(path, index)
                for index in range(1, len(path.hops))
                if self.passage(path.hops[index].alias).rule.weighs_alike
            )
            return sum(math.log2(one.denominator) - math.log2(one.numerator) for one in known if one)
        # A path passes one site of those that read a point.
        by_point: dict[int, float] = {}
        for passage in self.passages.values():
            if passage.rule.weighting == "uniform":
                centres = passage.beam or len(passage.groups) or self.automaton.incoming[passage.reads]
                by_point[passage.reads] = max(by_point.get(passage.reads, 0.0), math.log2(max(centres, 1)))
        return sum(by_point.values())

    def centres(self, alias: str, budget: int = TERM_BUDGET) -> tuple[str, ...]:
        """The centres at a site, each as the text of its path so far, in the order in which tensors of weights go.

        Raises
        ------
        SelectionError
            An unknown site.
        BudgetError
            There are more than `budget`.
        """
        check(Expansion.centres, locals())
        point = self.passage(alias).reads
        if groups := self.passage(alias).groups:
            return groups
        if self.incoming(point) > budget:
            number = self.incoming(point)
            fitting = f"raise it with expansion.centres({alias!r}, budget={number})" if number < COUNTABLE else ""
            raise BudgetError(
                f"{big(number)} terms arrive at {alias!r}, more than the budget of {budget}: "
                + (fitting or "expand with centres='blocks', which makes one of each block")
            )
        return self.automaton.beginnings(point)

    def symbol(self, alias: str) -> str:
        """Name of the weights at a site, such as `w[L3.mlp]`; empty where the site takes no jet."""
        return "" if self.passage(alias).rule.weighting is None else f"w[{alias}]"

    # Terms

    @cached_property
    def term_graph(self) -> TermGraph:
        """The automaton of all terms."""
        return TermGraph(self.automaton, Everything())

    def terms(self, budget: int | None = TERM_BUDGET) -> Iterator[Path]:
        """The paths of all terms, one at a time, in a fixed order.

        Raises
        ------
        BudgetError
            There are more than `budget` (None: no limit); before the first one.
        """
        check(Expansion.terms, locals())
        if budget is not None and self.count() > budget:
            raise BudgetError(
                f"this expansion has {amount(self.count(), 'term')}, more than the budget of {budget}: choose some "
                f"with jetgraph.select(expansion, pattern, limit={budget}), or raise it with "
                "expansion.terms(budget=None)"
            )
        return self.term_graph.paths()

    def __iter__(self) -> Iterator[Path]:
        return self.terms()

    def __contains__(self, path: object) -> bool:
        return (parsed := _parsed(path)) is not None and self._fault(parsed) is None

    def check(self, path: Path | str) -> Path:
        """The path itself, parsed from text where it is text.

        Raises
        ------
        SelectionError
            No term has this name.
        """
        path = _as_path(path)
        if (problem := self._fault(path)) is not None:
            raise SelectionError(f"{quoted(str(path))} is no path of this expansion: {problem}")
        return path

    def _fault(self, path: Path) -> str | None:
        return fault(path, self._beginnings, self.passages, self.automaton)

    def _summary(self) -> Summary:
        return Summary(self.recipe, self.order, self.automaton, self.passages.values(), self.lightness())

    def __repr__(self) -> str:
        return self._summary().text()

    def _repr_html_(self) -> str:
        return self._summary().markup()


def _parsed(path: object) -> Path | None:
    """A path, or the path that a text is; None for anything else."""
    try:
        path = Path.parse(path) if isinstance(path, str) else path
    except JetGraphError:
        return None
    return path if isinstance(path, Path) else None


def _as_path(path: Path | str) -> Path:
    if not isinstance(path, Path | str):
        raise SelectionError(f"{quoted(path)} is no path: give one, or its text such as 'embed > {SINK}^0'")
    return Path.parse(path) if isinstance(path, str) else path


# Making an expansion


def _paths(entries: Iterable[Entry]) -> dict[str, str]:
    """Module paths of sources by alias; a group may be called as a source, and has none."""
    first = sorted(entries, key=lambda entry: not entry.is_group)
    return {one.source.alias: "" if one.source.kind == "bias" else one.source.path for one in first}


def expand(
    graph: Outline | HasOutline,
    order: int | None = None,
    *,
    recipe: Recipe = "exhaustive",
    directions: Directions = "stream",
    weights: Weights | None = None,
    orders: Orders = "auto",
    scale: Scale = "matched",
    centres: Grouping = "terms",
    halves: bool = False,
    width: int | None = None,
    target: int | None = None,
    split: Split | None = None,
    rules: Mapping[str, Rule] | None = None,
    layers: int | str | Iterable[int | str] | None = None,
) -> Expansion:
    """Rewrite a residual graph into a sum of terms plus a remainder, in symbols: output = Σ terms + δ.

    Recipes, at a nonlinear site (an affine one is distributed: f(Σ t) = Σ A t + b, exact and without weights):

    - `exhaustive` (order 1 unless given): a jet with every incoming term as a centre, at every site. The orders of a
      jet are one term, `f~1`, and later one centre; where nothing nonlinear follows, as at the decoder, they are terms
      `f^0`, `f^1`.
    - `components` (order 1): every branch is one term evaluated at the true stream; a jet at maps and at the decoder.
    - `frozen` (no order): what is nonlinear inside every site, norms, attention patterns and gates, is held at the true
      stream, so that all sites are affine: an exact sum of paths without weights and without remainder.
    - `beam` (order 1), with a `width`: at every site the `width` largest terms are centres by themselves, and the sum
      of the others is one more, `rest`. Which they are is known when it runs; the values carry the paths that were
      found. The sum is exact at any width, and the cost a polynomial of the depth. `count` and patterns are of all
      terms that may be found.
    - `path` (order 0, no other): every chain of sites on its own, weight 1. `select` picks the chains.
    - `lens` (order 0): one term `h{p} > logits^j` per point p and order j, weight 1. Each layer is an expansion on its
      own: terms of different layers do not add up.

    Parameters
    ----------
    graph
        A residual graph, or its outline.
    order
        Order of the jets.
    recipe
        Which rule holds where.
    directions
        `stream` keeps the variate h - x_i whole; `terms` splits it along incoming terms (order <= 1).
    weights
        Of the centres; `uniform` unless given, and `optimal` for a beam. See `jetgraph.Jet`.
    orders
        Whether the orders of a jet are one term (`together`) or one each (`apart`) everywhere; see `jetgraph.Jet`.
    scale
        Length of the centres of order 1 and more; behind a norm it decides whether they converge. See `jetgraph.Jet`.
    centres
        Which terms are one centre together: each by itself, or `components`, `blocks`, `kinds`, or groups by name. At
        every site that makes the number of terms a polynomial of the depth.
    halves
        For the recipe `frozen` only: of a product of two values that vary, such as a gated MLP's, each is held for one
        half, where otherwise the gate, the activation, is. See `jetgraph.Freeze`.
    width, target
        For the recipe `beam`: how many terms are centres by themselves at each site, and the id of the token whose
        logit they are chosen for; by norm unless given. See `jetgraph.Jet`.
    split
        Cut branches into parts, each a site of its own; their sum is the branch, exactly. `heads`: every attention
        branch into `L0.attn.head0`, `L0.attn.head1`…; `neurons`: every other branch into `L0.mlp.neuron0`… by the
        inputs of its last layer. A branch that cannot be split is left whole: `print(graph.split("heads"))` names it,
        `graph.split("heads").branches[…].undivided` says why. Or a mapping from patterns over branches to `heads`,
        `neurons`, a number of groups of neighbours, or sets of indices (of heads in attention, of neurons elsewhere):
        `{"L3.mlp": [[0, 7], [12]]}` gives `L3.mlp.set0`, `L3.mlp.set1` and, with what is in no set, `L3.mlp.rest`. The
        bias of the branch's last layer becomes a source; where a norm comes after that layer, its denominator is held
        at the branch's own value, and what the bias gives is the part `.offset`.
    rules
        Rules at sites by pattern over alias or module path, which override the recipe's; later entries win. An affine
        site is distributed under `Jet` and `Freeze` too, for that is what they come to there.
    layers
        For the recipe `lens` only: points by number (negative from the end), by their name `h3`, or by a pattern over
        the sites of the step that they follow; all points unless given.

    Returns
    -------
    Expansion
        Its terms can be counted at any size; none is enumerated, and no tensor is touched.

    Raises
    ------
    InputError
        An option is unknown or does not fit; the message has the choices.
    SelectionError
        A pattern of an option matches nothing.
    BudgetError
        The orders are so high that paths would have millions of hops to choose from.

    References
    ----------
    Chen et al., "Jet Expansions of Residual Computation", arXiv 2410.06024.

    Examples
    --------
    >>> from jetgraph.algebra import JoinStep, Outline, Site, Source
    >>> branch = Site("L0.mlp", "layers.0.mlp", "mlp", "branch", affine=False, bias=False)
    >>> decoder = Site("logits", "", "logits", "decoder", affine=False, bias=False)
    >>> join = JoinStep("add", "identity", False, (branch,))
    >>> outline = Outline((Source("embed", "embed", "embed"),), (join,), decoder)
    >>> for path in expand(outline, order=0):
    ...     print(path)
    embed > logits^0
    embed > L0.mlp^0 > logits^0
    """
    if isinstance(order, str):
        raise InputError(
            f"order={quoted(order)}: which order a site needs depends on the input, so jetgraph.choose_orders(graph, "
            "inputs, tolerance=0.01) finds them, and gives the expansion that has them"
        )
    # Which rules there are is told below, and which parts where branches are cut.
    told_later = {"rules": None if isinstance(rules, Mapping) else rules, "split": None}
    check(expand, locals() | told_later)
    if split is None and rules and isinstance(graph, HasParts) and getattr(graph, "parts", None) is None:
        split = parts_asked(rules, graph.outline)
    graph, outline = _outlined(graph, split)
    if recipe not in get_args(Recipe):
        raise InputError(f"recipe={quoted(recipe)} is unknown: choose one of {', '.join(get_args(Recipe))}")
    if layers is not None and recipe != "lens":
        raise InputError(f'layers={quoted(layers)} is for recipe="lens" only, not for {recipe!r}')
    jet = _recipe_jet(recipe, order, directions, weights, orders, scale, centres)
    if halves and recipe != "frozen":
        raise InputError(
            f'halves=True is for recipe="frozen" only, not for {recipe!r}: give sites Freeze(halves=True) in rules='
        )
    jet = _with_beam(jet, recipe, width, target, weights)
    chosen = choose_rules(outline, recipe, Freeze(halves=halves) if recipe == "frozen" else jet, rules or {})
    automaton = rewritten_lens(outline, chosen, layers) if recipe == "lens" else rewritten(outline, chosen)
    expansion = Expansion(graph, outline, recipe, jet.order, chosen, automaton)
    check_weights(expansion.passages, automaton, expansion.names)
    return expansion


def _outlined(graph: Outline | HasOutline, split: Split | None) -> tuple[Outline | HasOutline, Outline]:
    """What is expanded, its branches cut into parts where that is asked for, and its outline."""
    outline = graph if isinstance(graph, Outline) else getattr(graph, "outline", None)
    if not isinstance(outline, Outline):
        raise InputError(
            f"cannot expand {type(graph).__name__}: give what jetgraph.trace(model, ...) returns, or an Outline"
        )
    if split is None:
        return graph, outline
    if not isinstance(graph, HasParts):
        raise InputError(
            "split= reads the code of the branches, which an outline has not: expand what "
            "jetgraph.trace(model, ...) returns"
        )
    parts = graph.split(split)
    return parts, parts.outline


def _with_beam(jet: Jet, recipe: Recipe, width: int | None, target: int | None, weights: Weights | None) -> Jet:
    if recipe != "beam":
        if width is not None or target is not None:
            raise InputError(f'width and target are for recipe="beam", not for {recipe!r}: leave them out')
        return jet
    if width is None:
        raise InputError('recipe="beam" needs a width: how many terms are centres by themselves at each site')
    # The sum of all others is no centre like the rest: alike, weights leave most of the output of a deep model.
    return replace(jet, width=width, target=target, weights="optimal" if weights is None else weights)


def _recipe_jet(
    recipe: Recipe,
    order: int | None,
    directions: Directions,
    weights: Weights | None,
    orders: Orders,
    scale: Scale,
    centres: Grouping,
) -> Jet:
    """The rule of a recipe at a site that is not affine, where it takes no atom, and holds nothing."""
    if recipe == "frozen":
        given = {
            "order": (order or 0, 0),
            "directions": (directions, "stream"),
            "weights": (weights, None),
            "orders": (orders, "auto"),
            "scale": (scale, "matched"),
            "centres": (centres, "terms"),
        }
        if wrong := [name for name, (value, usual) in given.items() if value != usual]:
            raise InputError(f'recipe="frozen" takes no jets: leave {wrong[0]}={quoted(given[wrong[0]][0])} out')
        return Jet(0)
    apart = recipe in ("path", "lens")
    order = order if order is not None else (0 if apart else 1)
    if recipe == "path" and order != 0:
        raise InputError(
            f'recipe="path" is of order 0, not {order}: a path on its own has no other terms to take directions from. '
            'Use recipe="exhaustive" for higher orders'
        )
    if apart and weights not in (None, "unit"):
        raise InputError(f"recipe={recipe!r} has weight 1 on every centre: leave weights={quoted(weights)} out")
    if apart and centres != "terms":
        raise InputError(f"recipe={recipe!r} has single centres: leave centres={quoted(centres)} out")
    weighting = "unit" if apart else "uniform" if weights is None else weights
    return Jet(order, directions, weighting, orders, scale, centres)
