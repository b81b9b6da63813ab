"""The order at every site of an expansion, chosen on an input: the lowest that leaves little enough of the site."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from jetgraph.algebra.expansion import Expansion, expand
from jetgraph.algebra.grouping import Grouping
from jetgraph.algebra.matching import matching
from jetgraph.algebra.outline import Split
from jetgraph.algebra.rules import Jet, Rule, Scale, Weights
from jetgraph.applications.bars import bars
from jetgraph.applications.orders import HIGHEST, TOLERANCE, ChosenOrder, chosen, improving, tolerated
from jetgraph.applications.results import Cell, Result
from jetgraph.applications.subject import Inputs, Model, subject
from jetgraph.compilation import PathValues, compile
from jetgraph.compilation.certificates import certified, left_by_sites
from jetgraph.errors import InputError, amount, check, quoted
from jetgraph.export.precision import own_types
from jetgraph.jets.series import check_order
from jetgraph.numbers import percent
from jetgraph.residual import one_look
from jetgraph.running.reals import in_double

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class SiteOrders(Result):
    """The order at each site, why, and the expansion that has them. Made by `choose_orders`."""

    model: str
    tolerance: float
    chosen: Mapping[str, ChosenOrder]
    """By site with a jet, in the order of the stream."""
    remainders: Mapping[str, float]
    """By site, what it leaves with all of them: ‖f(h) − Σ terms‖ / ‖f(h)‖."""
    relative: float
    """‖output − Σ terms‖ / ‖output‖."""
    expansion: Expansion
    """With these orders."""

    @property
    def title(self) -> str:
        reached = sum(one.reached for one in self.chosen.values())
        return (
            f"Orders of {self.model} at {amount(len(self.chosen), 'site')}, each to leave no more than "
            f"{self.tolerance:g} of its site, as {reached} do; all together leave {percent(self.relative, 2)} of the "
            "output"
        )

    @property
    def note(self) -> str:
        """Which remainder is that of all orders together."""
        return "remainder: what a site leaves with all these orders; why: what it left when its own was chosen"

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """A row per site: its order, what it leaves in the end, the ratio to what the order below left, and why."""
        rows = self.chosen.items()
        return {
            "site": [site for site, _ in rows],
            "order": [one.order for _, one in rows],
            "remainder": [self.remainders.get(site) for site, _ in rows],
            "ratio": [_ratio(one) for _, one in rows],
            "why": [one.why for _, one in rows],
        }

    def figure(self) -> Figure:
        """Bars: the remainders of the sites that leave most, by site and order."""
        rows = sorted(self.remainders.items(), key=lambda item: -item[1])
        named = [(f"{site}, order {self.chosen[site].order}", value) for site, value in rows if site in self.chosen]
        return bars(named, self.title, "remainder, as a share of the site")


def _ratio(one: ChosenOrder) -> float | None:
    """What an order leaves by what the order below leaves."""
    return one.left[one.order] / one.left[one.order - 1] if one.order and one.left[one.order - 1] else None


@torch.no_grad()
@own_types()
@one_look()
def choose_orders(
    model: Model,
    inputs: Inputs,
    *,
    tolerance: float = TOLERANCE,
    highest: int = HIGHEST,
    recipe: Literal["exhaustive", "components", "beam"] = "exhaustive",
    weights: Weights | None = None,
    scale: Scale = "matched",
    centres: Grouping = "terms",
    width: int | None = None,
    target: int | None = None,
    split: Split | None = None,
    rules: Mapping[str, Rule] | None = None,
    tokenizer: Any | None = None,
) -> SiteOrders:
    """Choose the order of the jet at every site: the lowest whose remainder there is within a tolerance, on an input.

    All sites start at order 0. Of a site that is one norm, such as the end of most models, or a post-norm between two
    joins, a closed form says what every order leaves of it (`jetgraph.compilation.certificates`), in the norm's units.
    Elsewhere, and in beams, what a site leaves of itself, ‖f(h) − Σ terms‖ / ‖f(h)‖, is measured
    (`values.remainders`); those that leave too much are raised by one, as long as the ratio of successive orders says
    that it is worth it, and measured again. A site at which no order leaves little enough gets the one that left least.
    With uniform weights hardly any site leaves little at any order: take the best ones.

    Parameters
    ----------
    model, inputs, tokenizer
        As in `jetgraph.lens`.
    tolerance
        What may be left of a site, as a share of what it gives.
    highest
        The highest order that is tried.
    recipe, weights, scale, centres, width, target, split
        As in `jetgraph.expand`.
    rules
        Sites whose rules are given, and are left as they are.

    Returns
    -------
    SiteOrders
        `expansion` is the one with these orders; `chosen` says for each site why.

    Raises
    ------
    InputError
        A recipe without orders, weights of 1 for each centre, whose sum is near to nothing, or what `expand` refuses.
    BudgetError
        What is to be compiled has more paths than can be listed: take groups as centres, or a beam.

    Examples
    --------
    >>> orders = choose_orders("demo", "Raise an", tolerance=0.05, centres="blocks", weights="optimal")
    >>> orders.chosen["logits"].order > 0, orders.expansion.rules["logits"].order == orders.chosen["logits"].order
    (True, True)
    """
    check(choose_orders, locals())
    tolerated("auto", tolerance)
    if recipe not in ("exhaustive", "components", "beam"):
        raise InputError(f"recipe={quoted(recipe)} has no orders to choose: take 'exhaustive', 'components' or 'beam'")
    if isinstance(weights, str) and weights == "unit":
        raise InputError("weights='unit' make an expansion of each centre, so that no order leaves little of a site")
    if highest < 0:
        raise InputError(f"highest={highest} is no order of a jet: take 0 or more")
    check_order(highest)
    one = subject(model, inputs, tokenizer)
    given, base = one.inputs(inputs), dict(rules or {})

    def expanded(jets: Mapping[str, Rule]) -> Expansion:
        return expand(
            one.graph, 1, recipe=recipe, weights=weights, scale=scale, centres=centres, width=width, target=target,
            split=split, rules={**base, **jets},
        )  # fmt: skip

    return _raised(one.graph.title, expanded, _free_jets(expanded({}), base), given, tolerance, highest)


def _free_jets(expansion: Expansion, rules: Mapping[str, Rule]) -> dict[str, Jet]:
    """The jets of the recipe, at sites for which no rule is given."""
    paths = {alias: passage.site.path for alias, passage in expansion.passages.items()}
    given = {alias for pattern in rules for alias in matching(pattern, paths)}
    return {alias: rule for alias, rule in expansion.rules.items() if isinstance(rule, Jet) and alias not in given}


def _raised(
    title: str,
    expanded: Callable[[Mapping[str, Rule]], Expansion],
    jets: Mapping[str, Jet],
    given: Mapping[str, Any],
    tolerance: float,
    highest: int,
) -> SiteOrders:
    """Orders from 0 on, raised where they leave too much; those of norms as their closed form has them.

    What arrives at a site depends on the orders before it, so that closed forms are read off again until nothing
    changes: after the last measured order is settled, once for each of them at most.
    """
    orders = dict.fromkeys(jets, 0)
    closed = [alias for alias in certified(expanded(_with_orders(jets, orders))) if alias in jets]
    left: dict[str, list[float]] = {alias: [] for alias in jets}
    pending = [alias for alias in jets if alias not in closed]
    while True:
        expansion = expanded(_with_orders(jets, orders))
        left |= left_by_sites(expansion, given, closed, highest)
        measured = _left(expansion, given)[1] if pending else {}
        for alias in pending:
            left[alias].append(measured.get(alias, 0.0))
        pending = [alias for alias in pending if _is_worth_raising(left[alias], tolerance, highest)]
        why = {alias: chosen(left[alias], tolerance, certified=alias in closed) for alias in jets}
        now = {alias: len(left[alias]) if alias in pending else one.order for alias, one in why.items()}
        if now == orders:
            break
        orders = now
    values, sizes = _left(expansion, given)
    relative = float(in_double(values.remainder).norm() / in_double(values.output).norm())
    return SiteOrders(title, tolerance, why, {a: size for a, size in sizes.items() if a in why}, relative, expansion)


def _is_worth_raising(left: Sequence[float], tolerance: float, highest: int) -> bool:
    return len(left) <= highest and not left[-1] <= tolerance and improving(left)


def _with_orders(jets: Mapping[str, Jet], orders: Mapping[str, int]) -> dict[str, Rule]:
    return {alias: replace(jet, order=orders[alias]) for alias, jet in jets.items()}


def _left(expansion: Expansion, given: Mapping[str, Any]) -> tuple[PathValues, dict[str, float]]:
    """What is evaluated, and what each site leaves of itself."""
    values = compile(expansion)(**given)
    return values, {alias: one.relative for alias, one in values.remainders.items()}
