"""The largest paths to a logit, with a bound on what was not found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import torch

from jetgraph.algebra.expansion import Expansion
from jetgraph.algebra.outline import Split
from jetgraph.algebra.scores import PathScores
from jetgraph.algebra.selection import Pattern, select
from jetgraph.applications.attribution.linearising import Rules, linearised
from jetgraph.applications.attribution.listed import largest_listed
from jetgraph.applications.attribution.targets import Aim, Positions, Target, aims, measured, named
from jetgraph.applications.bars import bars
from jetgraph.applications.interventions.network import Network
from jetgraph.applications.interventions.targets import texts_at
from jetgraph.applications.readout import Texts
from jetgraph.applications.results import Cell, Result
from jetgraph.applications.several import Several, each_prompt, first_of
from jetgraph.applications.subject import Inputs, Model
from jetgraph.compilation.bounds import energies
from jetgraph.compilation.components import Readout, Stream
from jetgraph.compilation.evaluation import MEMORY
from jetgraph.compilation.linear import is_linear
from jetgraph.compilation.search import Found, search
from jetgraph.errors import InputError, amount, check, quoted, renamed
from jetgraph.export.precision import own_types
from jetgraph.residual import one_look
from jetgraph.running.memory import check_memory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST = 1e30
"""The least value that can be asked for, at most."""

TOP = 20
"""Paths, unless a number or a least value is asked for."""


@dataclass(frozen=True)
class Ranked:
    """One path."""

    path: str
    """With `@i` after each hop where positions are told apart."""
    value: float
    share: float | None
    """Of the target."""


@dataclass(frozen=True, eq=False, repr=False)
class Ranking(Result):
    """The largest paths to a target. Made by `rank`."""

    model: str
    what: str
    total: float
    """The target in the model's own output."""
    paths: int
    """How many there are in all, positions not told apart."""
    found: tuple[Ranked, ...]
    """Largest absolute value first."""
    energy: float
    """Σ value² over all paths, the energy; NaN where it is not known."""
    error: float
    """Its standard error; 0 where it is exact."""
    exact: bool
    """The bounds are exact, or all paths were evaluated, and nothing larger than what was found has been missed."""
    visited: int
    """Prefixes of paths that were evaluated; paths, where there are no bounds."""
    bounded: bool = True
    """There are bounds: all sites are linear."""
    tokens: Texts = ()
    """The texts of the prompt's tokens, as of its one example; none where it has no tokens."""

    @property
    def sum(self) -> float:
        """Σ of what was found."""
        return sum(one.value for one in self.found)

    @property
    def rest(self) -> float:
        """Σ of what was not: `total` − `sum`."""
        return self.total - self.sum

    @property
    def rest_energy(self) -> float:
        """Σ value² of what was not; estimated where the bounds are."""
        return max(0.0, self.energy - sum(one.value**2 for one in self.found))

    def scores(self) -> PathScores:
        """The value of each path, for `jetgraph.path_graph`; those of its positions are summed."""
        by_path: dict[str, float] = {}
        for one in self.found:
            text = " > ".join(hop.partition("@")[0] for hop in one.path.split(" > "))
            by_path[text] = by_path.get(text, 0.0) + one.value
        return PathScores(by_path, self.total, self.what)

    @property
    def title(self) -> str:
        together = f"{amount(len(self.found), 'path')}, together {self.sum:.4g} of {self.total:.4g}"
        if not self.bounded:
            how = "all" if self.exact else "by a heuristic, the norms of their beginnings: some may be missed;"
            rest = f"the rest {self.rest:.4g} ({how} {self.visited:,} evaluated)"
            return f"{self.model}: paths to {self.what}: {together}; {rest}"
        bound = "exact" if self.exact else f"estimated, energy ± {self.error:.2g}: a path may have been missed"
        seen = amount(self.visited, "prefix")
        rest = f"the rest {self.rest:.4g}, √energy {self.rest_energy**0.5:.3g} ({bound}; {seen} seen)"
        return f"{self.model}: paths to {self.what}: {together}; {rest}"

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """path, value, and its share of the target."""
        return {name: [getattr(one, name) for one in self.found] for name in ("path", "value", "share")}

    def figure(self) -> Figure:
        """Bars: the values of the largest paths."""
        return bars([(one.path, one.value) for one in self.found], self.title, self.what)


class _Facts(NamedTuple):
    """How the paths were found: see `Ranking`."""

    energy: float
    error: float
    exact: bool
    visited: int
    bounded: bool


# As of `attribute`.
@overload
def rank(
    model: Model | Expansion,
    inputs: str | PathLike[str] | torch.Tensor | Mapping[str, Any],
    *,
    target: Target | None = None,
    position: Positions = "last",
    top: int | None = None,
    at_least: float | None = None,
    path: Pattern | None = None,
    positions: bool = False,
    split: Split | None = None,
    rules: Rules | None = None,
    signs: int = 64,
    seed: int = 0,
    memory: int = MEMORY,
    tokenizer: Any | None = None,
) -> Ranking: ...
@overload
def rank(
    model: Model | Expansion,
    inputs: list[Any] | tuple[Any, ...],
    *,
    target: Target | None = None,
    position: Positions = "last",
    top: int | None = None,
    at_least: float | None = None,
    path: Pattern | None = None,
    positions: bool = False,
    split: Split | None = None,
    rules: Rules | None = None,
    signs: int = 64,
    seed: int = 0,
    memory: int = MEMORY,
    tokenizer: Any | None = None,
) -> Several[Ranking]: ...
@renamed(paths="path")
@torch.no_grad()
@own_types()
@one_look()
def rank(
    model: Model | Expansion,
    inputs: Inputs | Sequence[Inputs],
    *,
    target: Target | None = None,
    position: Positions = "last",
    top: int | None = None,
    at_least: float | None = None,
    path: Pattern | None = None,
    positions: bool = False,
    split: Split | None = None,
    rules: Rules | None = None,
    signs: int = 64,
    seed: int = 0,
    memory: int = MEMORY,
    tokenizer: Any | None = None,
) -> Ranking | Several[Ranking]:
    """The paths that contribute most to a logit, out of all paths.

    Branch and bound: a prefix of paths is followed as long as the energy of its completions, Σ value², says that one of
    them may be large enough. Where the stream is small the energy is exact, and so is the list; else it is estimated by
    random signs, a prefix is dropped two standard errors below, and `error` says how sure the total is. Single paths
    often explain little of a logit, and classes of them much: see `jetgraph.spectrum`.

    Terms of other expansions, with jets, and those that match `path`, have no such bound. Up to 5,000 are all
    evaluated; of more, those whose beginnings keep the largest norms from point to point, which is a heuristic, and
    `exact` is then False.

    Parameters
    ----------
    model, inputs, target, position, split, rules, tokenizer
        As in `jetgraph.attribute`. Of several targets, their sum.
    top
        How many paths; 20 unless `at_least` is given.
    at_least
        The least absolute value of a path.
    path
        Rank only those that match, as in `jetgraph.select`.
    positions
        Tell the positions of the sequence apart: a path is then a chain of sites at positions. For linear sites.
    signs
        How many random signs are drawn where the energy is not exact.
    seed
        Of the signs.
    memory
        Bytes for the values that pass a site together, and for exact energies.

    Returns
    -------
    Ranking
        The paths found with their values, and the sum and the energy of the others. Of several prompts they are in
        `Several.each`, each as it is by itself.

    Raises
    ------
    InputError
        An option does not fit.
    BudgetError
        Too many paths are that large; or there are too many terms, each of which depends on all others.

    >>> ranking = rank("demo", "Raise Value", target="Error", top=2)
    >>> [one.path for one in ranking.found]
    ['embed > L0.mlp > logits', 'embed > L0.attn > L0.mlp > logits']
    >>> ranking.exact
    True
    """
    check(rank, {**locals(), "rules": None if isinstance(rules, Mapping) else rules})
    _check_numbers(top, at_least, signs, seed, memory)
    subject, expansion = linearised(model, first_of(inputs), rules, split, tokenizer, path)
    asked = _Asked(top, at_least, path, positions, signs, seed, memory)

    def look(given: dict[str, Any]) -> Ranking:
        network = Network(subject.graph, given)
        return _ranked(expansion, network, aims(network, target, position, subject.tokenizer), asked, subject.tokenizer)

    return each_prompt(subject, inputs, "rankings", look)


class _Asked(NamedTuple):
    """Which paths are looked for, and how: see `rank`."""

    top: int | None
    at_least: float | None
    path: Pattern | None
    positions: bool
    signs: int
    seed: int
    memory: int


def _ranked(
    expansion: Expansion, network: Network, chosen: Sequence[Aim], asked: _Asked, tokenizer: Any | None
) -> Ranking:
    """The largest paths of one prompt."""
    if len({aim.readout.place for aim in chosen}) > 1:
        raise InputError("paths are ranked at one position of the output: give position=, or attribute them all")
    readout = Readout(chosen[0].readout.place, torch.stack([aim.readout.weights for aim in chosen]).sum(0))
    value = measured(network.forward, chosen)
    with torch.inference_mode(False), torch.no_grad():
        told, facts = _found(expansion, network, readout, asked)
    return Ranking(
        network.graph.title,
        named(chosen),
        value,
        expansion.count(),
        tuple(Ranked(path, one, one / value if value else None) for path, one in told),
        facts.energy,
        facts.error,
        facts.exact,
        facts.visited,
        facts.bounded,
        texts_at(network, tokenizer),
    )


def _found(
    expansion: Expansion, network: Network, readout: Readout, asked: _Asked
) -> tuple[list[tuple[str, float]], _Facts]:
    """Paths with their values, the largest first, and how they were found."""
    number = TOP if asked.top is None and asked.at_least is None else asked.top
    least = None if asked.at_least is None else float(asked.at_least)
    if asked.path is None and all(map(is_linear, expansion.passages.values())):
        stream = Stream(expansion, network.forward, asked.positions, asked.memory)
        back = stream.cotangents([readout])[0]
        bound = energies(stream, back, asked.signs, asked.memory, asked.seed)
        result = search(stream, readout, bound, back, number, least)
        facts = _Facts(result.energy, result.error, bound.exact, result.visited, bounded=True)
        return [(_text(one), one.value) for one in result.found], facts
    if asked.positions:
        raise InputError("positions=True is for linear sites and without path=: leave it out")
    some = select(expansion, "**" if asked.path is None else asked.path)
    listed = largest_listed(expansion, some, network, readout, number, asked.memory)
    told = [one for one in listed.terms if least is None or abs(one[1]) >= least][:number]
    energy = sum(one**2 for _, one in listed.terms) if listed.exact else math.nan
    return told, _Facts(energy, 0.0, listed.exact, len(listed.terms), bounded=False)


def _check_numbers(top: int | None, at_least: float | None, signs: int, seed: int, memory: int) -> None:
    if top is not None and not 1 <= top <= 100_000:
        raise InputError(f"top={quoted(top)} is no number of paths between 1 and 100000")
    if at_least is not None and not 0 < at_least < LARGEST:
        raise InputError(f"at_least={quoted(at_least)} is no least value: give a positive number")
    if not 2 <= signs <= 100_000:
        raise InputError(f"signs={quoted(signs)} is no number of random signs between 2 and 100000")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed={quoted(seed)} is no whole number between 0 and 2^63")
    check_memory(memory)


def _text(path: Found) -> str:
    return " > ".join(str(hop) if place is None else f"{hop}@{place}" for hop, place in path.steps)
