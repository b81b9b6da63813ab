"""The ledger of an expansion: what each site leaves besides its terms, so that one sees where a remainder comes from.

    δ_f = f(h) − Σ (terms that the site f gives) − (its constant)

f is applied to the true stream h. Terms that arrive and do not add up to h are part of it, as are orders that are left
out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial

import torch
from torch import Tensor

from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.passages import Passage
from jetgraph.algebra.paths import Path
from jetgraph.compilation.decoding import Decoding
from jetgraph.compilation.evaluation import MEMORY, evaluated
from jetgraph.compilation.linear import LinearMaps, is_linear
from jetgraph.compilation.origins import SOURCES, Model, landed, own
from jetgraph.compilation.planning import plan
from jetgraph.errors import SelectionError, amount, quoted
from jetgraph.running.forward import Forward
from jetgraph.running.reals import in_double


@dataclass(frozen=True, eq=False)
class SiteRemainder:
    """What one site leaves besides its terms."""

    value: Tensor
    """δ, as a summand of the point that the site adds to; of the decoder, before its affine part."""
    size: float
    """‖f(h)‖, in the same units."""
    decode: Callable[[], Tensor | None]
    """Makes `logits`."""

    @cached_property
    def logits(self) -> Tensor | None:
        """δ in the output, where everything after the site is affine or held; else None. Made when it is read."""
        return self.decode()

    @property
    def norm(self) -> float:
        """‖δ‖."""
        return float(in_double(self.value.detach()).norm())

    @property
    def relative(self) -> float:
        """‖δ‖ / ‖f(h)‖."""
        return self.norm / self.size if self.size else float(self.norm > 0)


class Ledger(Mapping[str, SiteRemainder]):
    """Remainders by site, in the order of the stream: of the sites that some compiled path passes, except where each
    centre is an expansion of its own.
    """

    def __init__(self, sites: Mapping[str, SiteRemainder]) -> None:
        self._sites = sites

    def __getitem__(self, alias: str) -> SiteRemainder:
        if alias not in self._sites:
            raise SelectionError(f"no compiled path passes {quoted(alias)}; there are {', '.join(self._sites)}")
        return self._sites[alias]

    def __contains__(self, alias: object) -> bool:
        return alias in self._sites

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def lines(self, most: int = 10) -> list[str]:
        """The sites that leave most of themselves."""
        rows = sorted(self.items(), key=lambda item: -item[1].relative)
        lines = [f"  {one.relative:>10.4g}  {alias}, {one.norm:.4g} of {one.size:.4g}" for alias, one in rows[:most]]
        return [*lines, f"  … {amount(len(rows) - most, 'smaller one')}"] if len(rows) > most else lines

    def __repr__(self) -> str:
        head = "What sites leave besides their terms, as a share of what they give:"
        return "\n".join([head, *self.lines(len(self))])


def ledger(model: Model, forward: Forward, paths: Sequence[Path], memory: int = MEMORY) -> Ledger:
    """Evaluate paths once more, and add up what each site gives.

    Parameters
    ----------
    model, forward
        What the paths are of, and the pass whose stream it is.
    paths
        What was compiled: terms that were not are part of the remainders.
    memory
        Bytes that values may take which pass a site together.
    """
    sums = evaluated(plan(model, paths, by_site=True), model, forward, memory).sums
    return ledger_of(model, forward, {path.source.alias for path in paths}, sums)


def ledger_of(model: Model, forward: Forward, sources: Collection[str], sums: Mapping[str, Tensor]) -> Ledger:
    """What sites leave besides the sums of what they give, by alias; `sources` are those that have terms."""
    left: dict[str, Tensor] = {}
    sizes: dict[str, float] = {}
    for alias, passage in model.expansion.passages.items():
        # Of unit weight, each centre is an expansion of its own, and they add up to nothing.
        if alias in sums and passage.rule.weighting != "unit":
            whole = landed(model, forward, passage, own(model, forward, passage))
            left[alias] = whole - sums[alias] - _constants(model, forward, passage, sources, whole)
            sizes[alias] = float(in_double(whole.detach()).norm())
    decoding = Decoding(model.expansion, forward)

    @cache
    def ends() -> dict[str, Tensor]:
        with decoding.reading():
            return _ends(model.expansion, forward, left)

    def decode(alias: str) -> Tensor | None:
        return decoding.decode(ends()[alias].unsqueeze(0), [0.0])[0] if alias in ends() else None

    return Ledger({alias: SiteRemainder(v, sizes[alias], partial(decode, alias)) for alias, v in left.items()})


def _constants(model: Model, forward: Forward, passage: Passage, sources: Collection[str], whole: Tensor) -> Tensor:
    """The constant part of a site that is a source of its own, if it was compiled."""
    total = torch.zeros_like(whole)
    for entry in model.expansion.entries:
        own_site = entry.site is not None and entry.site.alias == passage.site.alias
        if own_site and entry.origin in ("affine", "freeze") and entry.source.alias in sources:
            total = total + SOURCES[entry.origin].run(model, forward, entry)
    return total


def _ends(expansion: Expansion, forward: Forward, left: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What sites leave before the decoder's affine part, of those after which nothing nonlinear follows. All go there
    in one sweep."""
    passages = expansion.passages
    last_bent = max((passage.step for passage in passages.values() if not is_linear(passage)), default=0)
    rows: dict[int, dict[str, Tensor]] = {}
    """By point, what arrives there, by the site that left it."""
    for alias, value in left.items():
        if passages[alias].step >= last_bent:
            rows.setdefault(passages[alias].step, {})[alias] = value.detach()
    if not rows:
        return {}
    with torch.inference_mode(False), torch.no_grad():
        maps = LinearMaps(expansion, forward)
        for point in range(min(rows) + 1, expansion.sink + 1):
            for move in expansion.automaton.moves[point - 1]:
                if given := rows.get(move.start):
                    map = maps.carry(point, move.start) if move.hop is None else maps.site(passages[move.hop.alias])
                    here = rows.setdefault(point, {})
                    for alias, value in zip(given, map.forwards(torch.stack([*given.values()])), strict=True):
                        here[alias] = here[alias] + value if alias in here else value
        return rows.get(expansion.sink, {})
