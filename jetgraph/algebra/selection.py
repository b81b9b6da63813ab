"""Choosing among the terms of an expansion, lazily."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from numbers import Real
from typing import overload

from jetgraph.algebra.automaton import TermGraph, accepted
from jetgraph.algebra.dialects import parts_asked, translated
from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.matching import matching, nearest
from jetgraph.algebra.outline import SINK
from jetgraph.algebra.paths import Hop, Path
from jetgraph.algebra.patterns import (
    BoundedAcceptor,
    Element,
    ListAcceptor,
    PathList,
    PatternAcceptor,
    join,
    parse,
    with_gaps,
)
from jetgraph.errors import BudgetError, InputError, NoSuchPathError, SelectionError, amount, big, check, quoted

LIST_BUDGET = 1_000_000
"""How many paths a selection lists without being given a limit."""


class Selection:
    """Paths of an expansion that match; lazy, in a fixed order, and countable without being listed.

    Indexing and slicing go straight to the place. Listing more than `LIST_BUDGET` paths raises `BudgetError` unless a
    limit or a slice says how many.
    """

    def __init__(
        self,
        expansion: Expansion,
        text: str,
        terms: TermGraph | PathList,
        wanted: tuple[Sequence[str | Path], int | None, int | None],
        window: range | None = None,
    ) -> None:
        self.expansion = expansion
        self._wanted = wanted
        self.text = text
        """What was asked for."""
        self._found = terms
        self._window = range(terms.count()) if window is None else window
        self._asked = window is not None

    def count(self) -> int:
        """Exact number of paths, of any size."""
        window = self._window
        return max(0, (window.stop - window.start + window.step - (1 if window.step > 0 else -1)) // window.step)

    def __len__(self) -> int:
        self._check_budget()
        return self.count()

    def __bool__(self) -> bool:
        return self.count() > 0

    def _check_budget(self) -> None:
        if not self._asked and self.count() > LIST_BUDGET:
            raise BudgetError(
                f"{quoted(self.text)} selects {big(self.count())} paths, too many to list (over {LIST_BUDGET:,}): take "
                f"some with [:{LIST_BUDGET}] or limit={LIST_BUDGET}, narrow the pattern, or use .count() for the number"
            )

    def __iter__(self) -> Iterator[Path]:
        if self._window.step == 1:
            count = self.count()
            allowed = count if self._asked else min(count, LIST_BUDGET)
            yield from islice(self._found.paths(self._window.start), allowed)
            if allowed < count:
                self._check_budget()
        else:
            for number in self._window:
                yield next(self._found.paths(number))

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Selection: ...
    def __getitem__(self, index: int | slice) -> Path | Selection:
        try:
            chosen = self._window[index]
        except IndexError:
            raise NoSuchPathError(
                f"{quoted(self.text)} selects {amount(self.count(), 'path')}, so number {quoted(index)} is none"
            ) from None
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"a selection gives a path by its number, or several by a slice, not by {quoted(index)} "
                f"({type(index).__name__}): {quoted(str(error))[1:-1]}"
            ) from None
        if isinstance(chosen, range):
            return Selection(self.expansion, self.text, self._found, self._wanted, chosen)
        return next(self._found.paths(chosen))

    def asked(self) -> tuple[Sequence[str | Path], int | None, int | None]:
        """Patterns and paths that `select` makes this selection of, and bounds on the length."""
        if isinstance(self._found, TermGraph) and self._whole:
            return self._wanted
        return list(self), None, None

    @property
    def _whole(self) -> bool:
        return self._window == range(self._found.count())

    def term_graph(self) -> TermGraph:
        """The automaton whose walks are exactly these paths.

        Raises
        ------
        BudgetError
            It would have more than `STATE_BUDGET` states; the message says how many of the paths fit.
        """
        if self._whole and isinstance(self._found, TermGraph):
            return self._found
        automaton = self.expansion.automaton
        try:
            return TermGraph(automaton, ListAcceptor(self))
        except BudgetError as error:
            number = self.count() // 2
            while number > 1 and not TermGraph.count_within(automaton, ListAcceptor(self[:number])):
                number //= 2
            raise BudgetError(
                f"{error}, a list of {amount(self.count(), 'path')}: take the first [:{number}]"
            ) from None

    def __repr__(self) -> str:
        shown = [f"  {path}" for path in self[:5]]
        more = [f"  … and {big(self.count() - 5)} more"] if self.count() > 5 else []
        return "\n".join([f"Selection {self.text!r}: {amount(self.count(), 'path')}", *shown, *more])

    def _repr_html_(self) -> str:
        """How many paths there are, and the first of them."""
        first = self[:12]
        rows = "".join(f"<tr><td>{path._repr_html_()}</td></tr>" for path in first)
        left = self.count() - 12
        more = f"<p>… and {big(left)} more</p>" if left > 0 else ""
        return f"<p><b>{html.escape(self.text)}</b>: {amount(self.count(), 'path')}</p><table>{rows}</table>{more}"


Pattern = str | Path | Iterable[str | Path] | Selection
"""What `select` takes: a path, a pattern, several of them, or what it has returned."""


By = Mapping[str, float] | Mapping[Path, float] | Callable[[Path], float | None]
"""Values of paths."""


def select(
    expansion: Expansion,
    pattern: Pattern,
    *,
    limit: int | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
    by: By | None = None,
) -> Selection:
    """The paths of an expansion that match a pattern, lazily.

    A pattern describes a whole path, from source to sink: elements joined by `>`. An element is a name or a glob over
    aliases and module paths (a bias goes by its alias only), with `^order` where only the part of one order is meant,
    or `~order` for the jet up to it; `*` alone is any one site, `**` any chain, also an empty one; `logits` or `output`
    is the sink. A name or a glob alone stands for all paths with it: `L1.mlp` is `** > L1.mlp > **`. Maps on the
    stream, such as the norms of a post-norm model, may be named but need not be: every path passes them. A bare `*`
    stands for none.

    Parameters
    ----------
    expansion
        Whose terms are chosen among.
    pattern
        One or several (then their union, without duplicates), or paths, which are checked. Paths come in the order
        given, matches of patterns in the order of the expansion.
    limit
        No more than the first so many.
    min_length, max_length
        Bounds on `Path.length`, the number of sites between source and sink.
    by
        Values by path, or by its text, such as `{one.path: one.value for one in ranking.found}`, or a function of the
        path, for which all that match are listed: the largest absolute value comes first, and paths that have none are
        left out.

    Returns
    -------
    Selection
        Counted exactly at any size, and listed only as far as it is read.

    Raises
    ------
    SelectionError
        A pattern cannot be read or matches nothing; the message says which element, and what there is.
    BudgetError
        The patterns make an automaton of more than `STATE_BUDGET` states.

    Examples
    --------
    >>> from jetgraph.algebra.expansion import expand
    >>> from jetgraph.algebra import JoinStep, Outline, Site, Source
    >>> mlps = [Site(f"L{i}.mlp", f"layers.{i}.mlp", "mlp", "branch", False, False) for i in range(200)]
    >>> joins = tuple(JoinStep(f"add{i}", "identity", False, (site,)) for i, site in enumerate(mlps))
    >>> decoder = Site("logits", "", "logits", "decoder", False, False)
    >>> expansion = expand(Outline((Source("embed", "embed", "embed"),), joins, decoder))
    >>> selection = select(expansion, "embed > ** > L7.mlp > logits^0")
    >>> selection.count()
    128
    >>> print(selection[1])
    embed > L6.mlp~1 > L7.mlp~1 > logits^0
    """
    check(select, locals())
    for name, bound, least in (("limit", limit, 1), ("min_length", min_length, 0), ("max_length", max_length, 0)):
        if bound is not None and bound < least:
            raise SelectionError(f"{name} is at least {least}, not {bound}")
    if by is not None:
        whole = select(expansion, pattern, min_length=min_length, max_length=max_length)
        return _by_value(whole, by)[:limit]
    if isinstance(pattern, Selection) and pattern.expansion is expansion and min_length is None and max_length is None:
        return pattern if limit is None else pattern[:limit]
    wanted = [pattern] if isinstance(pattern, str | Path) else list(pattern)
    if wrong := [item for item in wanted if not isinstance(item, str | Path)]:
        raise SelectionError(
            f"{quoted(wrong[0])} is neither a pattern nor a path: give texts such as 'embed > *.mlp > logits'"
        )
    if not wanted:
        raise SelectionError("an empty list selects nothing: give a pattern such as 'embed > *.mlp > logits'")
    text = str(wanted[0]) if len(wanted) == 1 else f"{wanted[0]}' and {len(wanted) - 1} more, such as '{wanted[1]}"
    paths = [item for item in wanted if isinstance(item, Path)]
    if len(paths) == len(wanted):
        longest = max_length if max_length is not None else expansion.sink
        checked = [expansion.check(path) for path in paths]
        terms = PathList(path for path in checked if (min_length or 0) <= path.length <= longest)
        if not terms.count():
            raise SelectionError(
                f"none of {amount(len(paths), 'path')} has a length within {_bounds(min_length, max_length)}"
            )
    else:
        terms = _match(expansion, wanted, min_length, max_length)
    selection = Selection(expansion, text, terms, (wanted, min_length, max_length))
    return selection if limit is None else selection[:limit]


def _by_value(selection: Selection, by: By) -> Selection:
    """The paths of a selection, the largest absolute value first."""
    if isinstance(by, Mapping):
        # What has a value is looked up among the paths: there may be many more of these.
        acceptor, expansion = selection.term_graph().acceptor, selection.expansion
        given: dict[Path, object] = {expansion.check(path): value for path, value in by.items()}
        values = {path: value for path, value in given.items() if accepted(acceptor, path)}
    else:
        values = {path: by(path) for path in selection}
    told: dict[Path, float] = {}
    for path, value in values.items():
        if value is None:
            continue
        if not isinstance(value, Real) or not math.isfinite(value):
            raise SelectionError(f"by= gives {quoted(value)} for {quoted(str(path))}: give finite numbers")
        told[path] = float(value)
    if not told:
        raise SelectionError(f"by= has a value for none of the paths that match {quoted(selection.text)}")
    ordered = sorted(told, key=lambda path: -abs(told[path]))
    return Selection(selection.expansion, selection.text, PathList(ordered), (ordered, None, None))


def _match(expansion: Expansion, wanted: list[str | Path], min_length: int | None, max_length: int | None) -> TermGraph:
    patterns: list[tuple[Element, ...]] = []
    for item in wanted:
        if isinstance(item, Path):
            expansion.check(item)
            patterns.append(tuple(Element(hop.alias, exact=hop) for hop in item.hops))
        else:
            patterns.append(parse(item))
    plain, acceptor = _acceptor(expansion, patterns, min_length, max_length)
    try:
        terms = TermGraph(expansion.automaton, acceptor)
    except BudgetError as error:
        raise BudgetError(f"{error}: {_fitting(expansion, patterns, min_length, max_length)}") from None
    matched = 0
    for state in terms.finals:
        matched |= acceptor.matched(state)
    for item, pattern, end in zip(wanted, patterns, plain.ends, strict=True):
        if not matched & end:
            raise SelectionError(_no_match(expansion, str(item), pattern, min_length, max_length))
    return terms


def _acceptor(
    expansion: Expansion, patterns: Sequence[tuple[Element, ...]], shortest: int | None, longest: int | None
) -> tuple[PatternAcceptor, PatternAcceptor | BoundedAcceptor]:
    """What accepts all that patterns match, and the same within bounds on the length."""
    plain = PatternAcceptor(expansion, patterns)
    bounded = shortest is not None or longest is not None
    return plain, BoundedAcceptor(plain, shortest or 0, longest) if bounded else plain


def _fitting(
    expansion: Expansion, patterns: Sequence[tuple[Element, ...]], shortest: int | None, longest: int | None
) -> str:
    """What of a selection is within the budget: fewer patterns, or one of them with sites in the place of globs."""

    def count(some: Sequence[tuple[Element, ...]]) -> int | None:
        return TermGraph.count_within(expansion.automaton, _acceptor(expansion, some, shortest, longest)[1])

    number = _most(lambda n: count(patterns[:n]) is not None, 0, len(patterns) - 1)
    if count(patterns[:number]):
        return f"take the first {number} of {amount(len(patterns), 'pattern')} at once"
    narrow = list(patterns[0])
    for place, element in enumerate(patterns[0]):
        names = () if element.gap else element.names(expansion)
        sites = [hop.alias for hop in dict.fromkeys(expansion.automaton.hops()) if hop.alias in names]
        for name in sites[len(sites) // 2 :]:
            narrow[place] = replace(element, glob=name)
            found = count([tuple(narrow)])
            if found:
                return f"name sites between the gaps, as in '{join(narrow)}'"
            if found is None:
                break
    return "name sites between the gaps"


def _most(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The largest number from `low` to `high` for which something holds that holds for all smaller ones."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _hops(expansion: Expansion) -> list[Hop]:
    """Everything that a path may write, sources first, then along the stream."""
    sources = [Hop(entry.source.alias) for entry in expansion.entries]
    return [*sources, *expansion.automaton.hops()]


def _bounds(min_length: int | None, max_length: int | None) -> str:
    return f"{min_length or 0}..{'any' if max_length is None else max_length}"


def _no_match(
    expansion: Expansion, text: str, pattern: tuple[Element, ...], shortest: int | None, longest: int | None
) -> str:
    """Why a pattern matches no path."""
    hops = _hops(expansion)
    named: list[Hop] = []
    for element in (element for element in pattern if not element.gap):
        names = element.names(expansion)
        orders = [hop for hop in hops if hop.alias in names]
        taken = [hop for hop in orders if element.takes(hop)]
        named += taken
        if taken:
            continue
        if orders:
            shown = ", ".join(map(str, orders[:6]))
            return f"{_said(element, text)} has an order that is not taken there. There are: {shown}"
        return _unnamed(expansion, element, text, list(dict.fromkeys(hop.alias for hop in hops)))
    if shortest is not None or longest is not None:
        count = TermGraph(expansion.automaton, PatternAcceptor(expansion, [pattern])).count()
        if count:
            bounds = _bounds(shortest, longest)
            return f"{quoted(text)} matches {amount(count, 'path')}, but none of a length within {bounds}"
    for fuller in with_gaps(pattern):
        if count := TermGraph.count_within(expansion.automaton, PatternAcceptor(expansion, [fuller])):
            return (
                f"every element of {quoted(text)} matches by itself, but no path has them alone: a path runs from a "
                f"source to {SINK!r}, and ** stands for what is left out. '{join(fuller)}' selects "
                f"{amount(count, 'path')}"
            )
    sources = {entry.source.alias for entry in expansion.entries if entry.is_atom or entry.is_stream}
    inside = [element.glob for element in pattern[1:] if element.glob in sources]
    if inside:
        return (
            f"no path matches {quoted(text)}: in this expansion (recipe {expansion.recipe!r}) {inside[-1]!r} is a "
            f"source of its own, at which paths start. Write '{inside[-1]} > {SINK}' or "
            f"'{inside[-1]} > ** > {SINK}', or take another recipe"
        )
    order = list(dict.fromkeys(hop.alias for hop in hops if hop in named))
    shown = " > ".join(order[:12]) + (" > …" if len(order) > 12 else "")
    return (
        f"every element of {quoted(text)} matches by itself, but no path has them in this order. Along the stream they "
        f"come as {shown}; a path runs from a source to {SINK!r}, passes each site once, and branches side by side "
        "exclude each other"
    )


def _said(element: Element, text: str) -> str:
    return quoted(text) if str(element) == text else f"{quoted(str(element))} in {quoted(text)}"


def _unnamed(expansion: Expansion, element: Element, text: str, written: Sequence[str]) -> str:
    """What is said of an element that stands for nothing that a path may write."""
    said = _said(element, text)
    there = nearest(translated(element.glob) or element.glob, written, globs=True)
    outline = expansion.outline
    model = {source.alias: source.path for source in outline.sources}
    model |= {site.alias: site.path for site in outline.sites()}
    if matching(element.glob, model):
        return f"{said} is in the model, but in no path of this expansion (recipe {expansion.recipe!r}){there}"
    asked = parts_asked([element.glob])
    parted = asked is None or any(parts_asked([name]) for name in written)
    more = "" if parted else f". Parts are there where expand is given split={asked!r}"
    return f"{said} matches no source and no site{there}{more}"
