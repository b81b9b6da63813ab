"""The terms of any expansion that give a target most: all of them evaluated, or the most promising ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.paths import Path
from jetgraph.algebra.rules import Jet
from jetgraph.algebra.selection import Selection, select
from jetgraph.applications.interventions.network import Network
from jetgraph.compilation import compile
from jetgraph.compilation.beam import largest_paths
from jetgraph.compilation.components import Readout
from jetgraph.compilation.origins import Model
from jetgraph.compilation.values import PathValues
from jetgraph.errors import BudgetError, big

LISTED = 5_000
"""Terms that are all evaluated."""

WIDTH = 64
"""Beginnings of terms that go on at a point, at least; of more than `LISTED`."""

TOGETHER = 2**27
"""Bytes of terms that are read at once."""


@dataclass(frozen=True)
class Listed:
    """Terms with their values."""

    terms: tuple[tuple[str, float], ...]
    """Paths and values, the largest absolute value first."""
    exact: bool
    """All terms were evaluated, so that none larger has been missed."""


def largest_listed(
    expansion: Expansion, chosen: Selection, network: Network, readout: Readout, top: int | None, memory: int
) -> Listed:
    """The terms among some that give a target most.

    Up to `LISTED` are all evaluated, and so are those that a beam finds. Of more, those are that keep a large norm from
    point to point (`jetgraph.compilation.beam.largest_paths`), which is a heuristic.

    Raises
    ------
    BudgetError
        There are more, and their values depend on all that arrive: groups, optimal weights, directions along terms.
    """
    exact = expansion.chooses or chosen.count() <= LISTED
    if not exact:
        _check_single(expansion, chosen)
        model = Model(expansion, network.forward.graph)  # type: ignore[arg-type]
        largest = largest_paths(model, network.forward, max(WIDTH, 2 * (top or 0)), memory)
        whole = chosen.count() == expansion.count()
        chosen = select(expansion, largest) if whole else select(expansion, chosen, by=dict.fromkeys(largest, 1.0))
    module = compile(expansion, chosen, budget=max(LISTED, chosen.count()))
    values = module.at(readout.place, **network.inputs)
    paths = list(values.hidden)
    told = zip(map(str, paths), _read(values, paths, readout), strict=True)
    return Listed(tuple(sorted(told, key=lambda one: -abs(one[1]))), exact and not expansion.chooses)


def _check_single(expansion: Expansion, chosen: Selection) -> None:
    """Refuse more terms than are listed where one depends on all that arrive with it."""
    for passage in expansion.passages.values():
        rule = passage.rule
        single = rule.weighs_alike and rule.grouping is None
        if not single or (isinstance(rule, Jet) and rule.directions == "terms"):
            raise BudgetError(
                f"{big(chosen.count())} terms are to be ranked, more than the {LISTED:,} that are all evaluated, and "
                f"at {passage.site.alias!r} each depends on all that arrive ({rule.text}): choose {LISTED:,} or fewer "
                "with path=, take jetgraph.expand(..., recipe='beam'), or linear rules such as rules='frozen', for "
                "which larger numbers are no matter"
            )


def _read(values: PathValues, paths: Sequence[Path], readout: Readout) -> list[float]:
    """⟨weights, term⟩ of each path at the target's position."""
    products: list[float] = []
    weights = readout.weights.double()
    size = max(1, TOGETHER // (8 * weights.numel()))
    for start in range(0, len(paths), size):
        some = values.each(paths[start : start + size])
        flat = some.double().cpu().reshape(len(some), -1, weights.numel())
        products += (flat[:, 0] @ weights.flatten()).tolist()
    return products
