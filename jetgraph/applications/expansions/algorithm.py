"""Algorithm 1: jets of a function of the stream around chosen centres, evaluated at the stream.

f(h) = Σ_i w_i J^k f(x_i)(h) + δ,   Σ w_i = 1
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jetgraph.algebra.advice import of_remainder
from jetgraph.algebra.outline import Split
from jetgraph.algebra.paths import Hop
from jetgraph.algebra.rules import Scale, check_scale
from jetgraph.applications.bars import BARS, bars, drawn
from jetgraph.applications.expansions.centres import Centres, Naming
from jetgraph.applications.expansions.nonlinearities import Nonlinearity, nonlinearity_at
from jetgraph.applications.orders import Auto, ChosenOrder, raised, tolerated
from jetgraph.applications.results import Cell, Result
from jetgraph.applications.subject import Inputs, Model, split_subject, subject
from jetgraph.compilation.weighing import optimal_weights
from jetgraph.errors import InputError, amount, check, quoted
from jetgraph.export.precision import own_types
from jetgraph.jets.series import Series, check_order
from jetgraph.numbers import percent
from jetgraph.residual import ResidualGraph, one_look
from jetgraph.running.forward import Forward
from jetgraph.running.matching import Match, match
from jetgraph.running.reals import as_reals, in_double

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Weighting = str | Mapping[str, float] | Tensor
"""`uniform`, `optimal`, relative weights by centre, or a tensor [centre] or [*rows, centre]."""


@dataclass(frozen=True, eq=False, repr=False)
class JetExpansion(Result):
    """Terms and remainder of Algorithm 1 at one function. Made by `jet_expand`."""

    model: str
    where: str
    order: int
    centres: Mapping[str, Tensor]
    """By name, as they arrive at the point that is read."""
    weights: Mapping[str, Tensor]
    """By centre: one number, or one of each row of the stream, [*rows]."""
    terms: Mapping[str, Tensor]
    """By text: `x` a centre beside the function, `x > f~k` its weighted jet, `bias` what the decoder adds."""
    value: Tensor
    """The true value there."""
    scale: Scale = "matched"
    """Whether centres of order 1 and more were matched to the stream: `none` too where the function allows no scale."""
    unmatched: tuple[int, int] = (0, 0)
    """For how many tokens of centres no scale brings x near to h, so that they took order 0; and how many there were.
    """
    chosen: ChosenOrder | None = None
    """Why this order, where it was to be chosen."""
    bound: str = ""
    """Why the function allows no scale, where it does not."""

    @property
    def remainder(self) -> Tensor:
        """δ = value − Σ terms."""
        return self.value - torch.stack(list(self.terms.values())).sum(0)

    @property
    def relative(self) -> float:
        """‖δ‖ / ‖value‖."""
        return _norm(self.remainder) / (_norm(self.value) or 1.0)

    @property
    def title(self) -> str:
        plain = " with plain centres" if self.order and self.scale == "none" else ""
        plain += f" ({self.bound})" if plain and self.bound else ""
        why = "" if self.chosen is None else f"; {self.chosen}"
        return (
            f"Jet expansion of order {self.order}{plain} of {self.model} at {self.where}: "
            f"{amount(len(self.centres), 'centre')}, {amount(len(self.terms), 'term')}, remainder "
            f"{percent(self.relative, 2)} of the value{why}"
        )

    @property
    def note(self) -> str:
        """What the remainder means where it is large, and how many tokens of centres have no matched length."""
        few, seen = self.unmatched
        away = (
            f"{few} of {amount(seen, 'token')} of centres point away from the stream, and took order 0" if few else ""
        )
        return "\n".join(filter(None, (of_remainder(self.relative).replace("output", "value"), away)))

    def columns(self) -> Mapping[str, Sequence[Cell]]:
        """A row per term, the largest first, then δ: norm, share of the value, cosine with it, mean weight."""
        rows = sorted(self.terms.items(), key=lambda item: -_norm(item[1]))
        rows.append(("δ", self.remainder))
        whole = as_reals(self.value.detach()).double().flatten()
        size = float(whole.norm())
        along = [float(as_reals(value.detach()).double().flatten() @ whole) for _, value in rows]
        norms = [_norm(value) for _, value in rows]
        return {
            "term": [name for name, _ in rows],
            "norm": norms,
            "share": [a / size**2 if size else None for a in along],
            "cosine": [a / (n * size) if n * size else None for a, n in zip(along, norms, strict=True)],
            "weight": [self._weight(name) for name, _ in rows],
        }

    def _weight(self, term: str) -> float | None:
        """The mean weight of the centre of a term."""
        centre, mark, _ = term.rpartition(" > ")
        return float(self.weights[centre].mean()) if mark and centre in self.weights else None

    def figure(self) -> Figure:
        """Bars: the norms of the largest terms, and of δ."""
        columns = self.columns()
        last = len(columns["term"]) - 1
        shown = [*range(min(last, BARS - 1)), last]
        title = self.title + drawn(len(shown), last + 1)
        return bars([(str(columns["term"][i]), float(columns["norm"][i] or 0)) for i in shown], title, "norm")


def _norm(value: Tensor) -> float:
    return float(in_double(value.detach()).norm())


@torch.no_grad()
@own_types()
@one_look()
def jet_expand(
    model: Model,
    inputs: Inputs,
    *,
    at: str | int,
    centres: Centres,
    order: int | Auto = 1,
    tolerance: float | None = None,
    weights: Weighting = "uniform",
    scale: Scale = "matched",
    split: Split | None = None,
    tokenizer: Any | None = None,
) -> JetExpansion:
    """Algorithm 1 of the paper: jets around chosen centres at one function, and what they leave there.

    At a site, and at the decoder, the terms are w_i J^k f(x_i)(h). At a point, and of a block, the function is what is
    added on the way there, γ, and each centre goes on beside it as well: x_i + w_i J^k γ(x_i)(h), where the paper has
    w_i J^k id(x_i)(h), which for k ≥ 1 is w_i h whatever the centre. Both have the same remainder where the centres add
    up to the stream.

    Parameters
    ----------
    model, inputs, tokenizer
        As in `lens`.
    at
        A site, such as `L3.mlp`; `logits`; a point `h4`, for the step that leads there; or a block, `L3`.
    centres
        Texts, each a centre or by a pattern several: sources, branches and blocks at the true stream (`embed`,
        `L0.mlp`, `L0`, `*.attn`), points (`h2`), terms (`embed > L0.mlp`). A list among them is one centre, the sum of
        its members; so is each value of a mapping from names, which may hold tensors too. `terms` of another expansion
        are centres of the next.
    order
        The order k of the jets. `auto`: the lowest one that leaves no more than `tolerance`, at most `HIGHEST`; what
        orders leave is measured, and `chosen` says what was found.
    tolerance
        For the order `auto`: ‖δ‖ / ‖value‖ that may be left, 0.01 unless given.
    scale
        Length of the centres of order 1 and more. `matched`: where f(s x) = f(x), behind a norm, each token at the
        length at which it is nearest to the stream (see `jetgraph.Jet`); `none`: as it is, which is the paper's. A
        block of several steps allows a scale where all its branches read the point before it, or where it is behind a
        norm as a whole; where they read what the block itself adds, centres are as they are, and `bound` says so.
    weights
        `uniform`; `optimal`, on the simplex per row of the value (a token), so that the remainder is smallest; relative
        weights by name of centre (1 where none is given); or a tensor [centre] or [*rows, centre] that is on the
        simplex.
    split
        Branches to cut first, as in `jetgraph.expand`.

    Returns
    -------
    JetExpansion
        Terms, weights, and δ as `remainder`.

    Raises
    ------
    SelectionError
        A text or a centre names nothing.
    InputError
        Weights, tensors or inputs that do not fit.
    BudgetError
        An order, or a number of centres, that would take forever.

    References
    ----------
    Chen et al., "Jet Expansions of Residual Computation", arXiv 2410.06024, algorithm 1.

    Examples
    --------
    >>> expansion = jet_expand("demo", "Raise an", at="L1.mlp", centres=["embed", "pos", "L0"], order=0)
    >>> list(expansion.terms)
    ['embed > L1.mlp^0', 'pos > L1.mlp^0', 'L0 > L1.mlp^0']
    """
    check(jet_expand, locals())
    check_scale(scale)
    tolerance = tolerated(order, tolerance)
    if isinstance(order, int):
        if order < 0:
            raise InputError(f"order={order} is no order of a jet: take 0 or more")
        check_order(order)
    named = [at, *([centres] if isinstance(centres, str) else centres)]
    one = split_subject(subject(model, inputs, tokenizer), split, named)
    forward = one.run(one.inputs(inputs))
    nonlinearity = nonlinearity_at(one.graph, forward, at)

    def expanded(order: int) -> JetExpansion:
        return _expanded(one.graph, forward, nonlinearity, at, centres, order, weights, scale)

    if isinstance(order, int):
        return expanded(order)
    assert tolerance is not None
    expansion, why = raised(expanded, lambda expansion: expansion.relative, tolerance)
    return replace(expansion, chosen=why)


def _expanded(
    graph: ResidualGraph,
    forward: Forward,
    nonlinearity: Nonlinearity,
    at: str | int,
    centres: Centres,
    order: int,
    weights: Weighting,
    scale: Scale,
) -> JetExpansion:
    """The expansion of one order."""
    by_name = Naming(graph, forward, nonlinearity.reads, order).centres(centres)
    h = forward.point(nonlinearity.reads)
    matches = {}
    if scale == "matched" and order and nonlinearity.norm is not None:
        matches = {name: match(forward.pieces, nonlinearity.norm, value, h) for name, value in by_name.items()}
    jets = {name: _jet(nonlinearity, matches.get(name, value), h, order) for name, value in by_name.items()}
    scales = _weights(weights, jets, nonlinearity)
    hop = Hop(nonlinearity.name, order, together=True)
    terms = {} if nonlinearity.skip is None else {name: nonlinearity.skip(value) for name, value in by_name.items()}
    terms |= {f"{name} > {hop}": _scaled(jet, scales[name]) for name, jet in jets.items()}
    if nonlinearity.constant is not None:
        terms["bias"] = nonlinearity.constant.expand_as(nonlinearity.value)
    number = at if not isinstance(at, int) or at >= 0 else len(graph.outline.steps) + 1 + at
    title = f"the point h{number}" if isinstance(number, int) else number
    few = sum(int((~one.near).sum()) for one in matches.values())
    seen = few, sum(one.near.numel() for one in matches.values())
    used: Scale = "matched" if matches else "none"
    return JetExpansion(
        graph.title, title, order, by_name, scales, terms, nonlinearity.value, used, seen, bound=nonlinearity.bound
    )


def _jet(nonlinearity: Nonlinearity, centre: Tensor | Match, h: Tensor, order: int) -> Tensor:
    """J^k f(x)(h), landed."""
    if order == 0:
        assert isinstance(centre, Tensor)
        return nonlinearity.land(nonlinearity.through(centre, 0))
    start, way = (centre.centre, centre.way) if isinstance(centre, Match) else (centre, h - centre)
    series = nonlinearity.through(Series.variate(start, way, order), order)
    return nonlinearity.land(series.span(0, order + 1).sum(0) if isinstance(series, Series) else series)


def _scaled(jet: Tensor, weight: Tensor) -> Tensor:
    weight = weight.to(jet)
    return jet * (weight if weight.dim() == 0 else weight[..., None])


# Weights


def _weights(given: Weighting, jets: Mapping[str, Tensor], nonlinearity: Nonlinearity) -> dict[str, Tensor]:
    """The weight of each centre."""
    names, rows = list(jets), tuple(nonlinearity.value.shape[:-1])
    if isinstance(given, Tensor):
        return dict(zip(names, _on_simplex(given, len(names), rows).unbind(-1), strict=True))
    if isinstance(given, Mapping):
        return _relative(given, names)
    if given == "uniform":
        return dict.fromkeys(names, torch.tensor(1 / len(names), dtype=torch.float64))
    if given != "optimal":
        raise InputError(f"weights={quoted(given)} is unknown: choose 'uniform', 'optimal', a mapping or a tensor")
    own = _own(nonlinearity)
    best = optimal_weights(list(jets.values()), own, range(-own.dim(), -1), nonlinearity.name)
    return dict(zip(names, best.double().squeeze(-1).unbind(), strict=True))


def _own(nonlinearity: Nonlinearity) -> Tensor:
    """What the jets stand for: the value without the bias."""
    if nonlinearity.skip is None:
        return nonlinearity.value if nonlinearity.constant is None else nonlinearity.value - nonlinearity.constant
    raise InputError(
        f'weights="optimal" at {quoted(nonlinearity.name)} is for a site or the decoder, whose value the jets stand '
        "for: give the alias of a branch"
    )


def _on_simplex(given: Tensor, number: int, rows: tuple[int, ...]) -> Tensor:
    if tuple(given.shape) not in ((number,), (*rows, number)):
        raise InputError(
            f"weights of shape {list(given.shape)} do not fit {amount(number, 'centre')}: give [{number}] or "
            f"{[*rows, number]}"
        )
    value = given.double()
    off = float((value.sum(-1) - 1).abs().max())
    if not off < 1e-4 or not float(value.min()) >= 0:
        raise InputError("weights are not negative and add up to 1 over the centres")
    return value


def _relative(given: Mapping[str, float], names: Sequence[str]) -> dict[str, Tensor]:
    if unknown := [name for name in given if name not in names]:
        raise InputError(f"weights= has {quoted(unknown[0])}, and the centres are {', '.join(names)}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in given.values()):
        raise InputError("weights are finite and not negative")
    relative = torch.tensor([float(given.get(name, 1.0)) for name in names], dtype=torch.float64)
    if not float(relative.sum()):
        raise InputError("the weights of all centres are zero: give one a positive weight")
    return dict(zip(names, (relative / relative.sum()).unbind(), strict=True))
