"""The rewrite rules: what may be done at a site so that the sum of all terms and the remainder stays the model.

A rule is a frozen value that owns what it means in symbols: where it fits, how paths pass a site, which source a site
becomes or has, whether its centres are weighed, and how it reads in tables and formulas; files hold its name and its
fields. What it does with tensors is a line of `jetgraph.compilation.passing.RULES`. A new rule is a class here, named
in `RULES`, and a line there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

from jetgraph.algebra.automaton import Entry
from jetgraph.algebra.grouping import Grouping, check_grouping
from jetgraph.algebra.outline import SINK, Site, Source
from jetgraph.algebra.paths import Hop
from jetgraph.errors import InputError, check, quoted

Directions = Literal["stream", "terms"]
Orders = Literal["auto", "together", "apart"]
Scale = Literal["matched", "none"]
"""How long centres are: see `Jet`."""


def check_scale(scale: Scale) -> None:
    """Raise `InputError` for what is none."""
    if scale not in get_args(Scale):
        raise InputError(f"scale={quoted(scale)} is unknown: choose 'matched' or 'none'")


@runtime_checkable
class Numbers(Protocol):
    """A tensor or an array of numbers."""

    def tolist(self) -> Any: ...


Weights = Literal["uniform", "unit", "optimal"] | tuple[Any, ...] | Numbers | Mapping[str, float]
"""Of the centres of a jet: see `Jet`."""


class Rule(ABC):
    """How a site is rewritten into terms."""

    __slots__ = ()

    name: ClassVar[str]
    """In tables and files."""
    linear: ClassVar[bool] = False
    """What terms pass is linear in them, so that parts of a term may as well pass one by one."""

    @property
    def text(self) -> str:
        """The rule in a few words."""
        return self.name

    def text_at(self, site: Site) -> str:
        """What the rule comes to at a site, in a few words."""
        return self.text

    @property
    def highest(self) -> int | None:
        """The highest order that a path may take; None where paths carry no order."""
        return None

    @property
    def weighting(self) -> Weights | None:
        """How the centres are weighed; None where there are none, and what passes has weight 1."""
        return None

    @property
    def weighs_alike(self) -> bool:
        """The weights of its centres are known before anything runs, from their last hop alone."""
        return not isinstance(self.weighting, tuple) and self.weighting != "optimal"

    def exact(self, whole: bool, alone: bool) -> bool:
        """What the site makes of terms adds up to what it is on the true stream.

        Parameters
        ----------
        whole
            The terms that arrive add up to the true stream.
        alone
            It is one term that arrives.
        """
        return self.linear and whole

    def fitted(self, site: Site, given: str) -> Rule:
        """What this rule comes to at a site.

        By default an affine site is distributed: J^k of an affine map is the map itself whatever the centre, so weights
        there would only blur the terms.

        Parameters
        ----------
        site
            Where it is to hold.
        given
            What a message calls the rule, such as `rules['L3.mlp']`.

        Raises
        ------
        InputError
            The rule cannot hold there.
        """
        return Distribute() if site.affine else self

    def before_linear(self) -> Rule:
        """What this rule comes to at a site after which all rules are linear."""
        return self

    @property
    def grouping(self) -> Grouping | None:
        """Which terms are one centre together; None where each passes by itself."""
        return None

    @property
    def asks_for_centres(self) -> bool:
        """Weights, groups or directions that depend on which other terms arrive, or on how many."""
        return False

    @property
    def frozen(self) -> Freeze | None:
        """The rule itself where gates are held under it."""
        return None

    @property
    def beam(self) -> int | None:
        """How many terms are centres by themselves, the largest, where the others are one centre together."""
        return None

    @abstractmethod
    def hops(self, site: Site) -> tuple[Hop | None, ...]:
        """What paths may write that pass a site: None where they pass it silently, nothing where none passes it."""

    def vanishes(self, hop: Hop | None) -> bool:
        """What passes under a hop is zero where the term that passes is the true stream itself."""
        return False

    def entry(self, site: Site, point: int, bias: Callable[[Site], Source]) -> Entry | None:
        """The source that a site is, or has besides the terms that pass it.

        Parameters
        ----------
        site
            The site.
        point
            To which it adds; n+1 for the decoder.
        bias
            Names the constant part of a site.
        """
        return _output_bias(site, point, bias)

    def across(self, order: int | None) -> bool:
        """What passes at this order reads every term that arrives, not its own alone."""
        return False

    def letter(self, order: int | None) -> str:
        """What formulas call the function that a term passes; A for the linear part of a map."""
        return "A"


def _output_bias(site: Site, point: int, bias: Callable[[Site], Source]) -> Entry | None:
    """The constant of the decoder's affine part, which is added whatever the rule does with ν."""
    if site.role == "decoder" and site.bias:
        return Entry(bias(site), point, point, "decoder", site, Hop(SINK))
    return None


def _sunk(site: Site) -> Hop | None:
    """What the decoder's own constants have passed."""
    return Hop(SINK) if site.role == "decoder" else None


@dataclass(frozen=True, slots=True)
class Distribute(Rule):
    """A h = Σ A_lin t + b + A_lin δ. Only for affine sites, where it is what every recipe does."""

    name: ClassVar[str] = "distribute"
    linear: ClassVar[bool] = True

    def fitted(self, site: Site, given: str) -> Rule:
        if not site.affine:
            raise InputError(f"{given} distributes {_where(site)}, which is not affine: use Jet, Atom or Freeze there")
        return self

    def hops(self, site: Site) -> tuple[Hop | None, ...]:
        return (None,) if site.role == "map" else (Hop(site.alias),)

    def entry(self, site: Site, point: int, bias: Callable[[Site], Source]) -> Entry | None:
        if site.bias and site.role != "decoder":
            return Entry(bias(site), point, point, "affine", site)
        return _output_bias(site, point, bias)


@dataclass(frozen=True, slots=True)
class Jet(Rule):
    """Terms w_i Σ_j (1/j!) D^j f(s_i x_i)[(h - s_i x_i)^{⊗j}], j = 0..order, every incoming term x_i being a centre.

    The orders of a centre stay together, in one term that is one centre of what follows. Where nothing that follows
    takes terms as centres (at the decoder, and before sites that are all affine or frozen), each is a term of its own.

    `scale="matched"`: at a site with f(s x) = f(x), behind a norm, each token of a centre is brought to the length
    s = ⟨h, h⟩ / ⟨x, h⟩, in the norm's coordinates. h − s x is then perpendicular to h, and the series converges like
    sin^{k+1} of the angle between x and h, wherever that is below a right angle. A token with ⟨x, h⟩ ≤ 0 has no such
    length: it stays as it is and where it is, which is order 0. Other sites have no scale, and order 0 does not care.

    `directions="terms"` splits what is of order 1 along the incoming terms instead: that of incoming path m is
    Σ_{i≠m} w_i Df(s_i x_i)[t_m].
    """

    name: ClassVar[str] = "jet"

    order: int = 1
    directions: Directions = "stream"
    weights: Weights = "uniform"
    """`uniform`: 1/n for n centres; `unit`: 1 for each (each centre is then an expansion of its own); `optimal`: those
    on the simplex, per token, that bring the sum of all jets nearest to f(h); a mapping from patterns over the centre's
    last site or source, by alias or module path, to relative weights (1 where none matches), which are scaled to sum to
    1; a tensor [centre] or [*tokens, centre] of relative weights, in the order of `Expansion.centres`, kept as nested
    tuples."""
    orders: Orders = "auto"
    """`together`: one term `f~k` a centre; `apart`: terms `f^0`, `f^1`, … of it; `auto`: apart where nothing nonlinear
    follows."""
    scale: Scale = "matched"
    centres: Grouping = "terms"
    """Which incoming terms are one centre together, their sum: `components`, those of one last site or source;
    `blocks`; `kinds`, such as all attention; or groups by name, as patterns over the last site or source, with what is
    in none as the group `rest`. Paths then start at the group: `attn > L3.mlp~2 > logits^0`."""
    width: int | None = None
    """Only so many terms are centres by themselves, the largest when it is run; the sum of the others is the group
    `rest`. None for no bound. Take optimal weights with it, which the recipe `beam` does: of uniform ones the sum of
    hundreds of terms has as much as one."""
    target: int | None = None
    """Which terms are the largest: by norm; or, for a number, by what they add to the logit of that token, to first
    order in the stream."""

    def __post_init__(self) -> None:
        names = ("order", "directions", "weights", "orders", "scale", "centres", "width", "target")
        check(Jet.__init__, {name: getattr(self, name) for name in names})
        check_grouping(self.centres, "centres")
        if self.directions == "terms" and self.centres != "terms":
            raise InputError('directions="terms" is along single terms: leave centres out, or take directions="stream"')
        self._check_beam()
        if isinstance(self.weights, Numbers):
            try:
                object.__setattr__(self, "weights", _as_tuples(self.weights.tolist()))
            except (NotImplementedError, RuntimeError) as error:
                raise InputError(f"the weights {quoted(self.weights)} cannot be read as numbers: {error}") from error
            if not isinstance(self.weights, tuple):
                raise InputError(
                    f"weights={quoted(self.weights)} is one number: give a tensor with one for each centre"
                )
        if self.order < 0:
            raise InputError(f"the order of a jet is at least 0, not {self.order}")
        if self.directions not in ("stream", "terms"):
            raise InputError(f"directions={quoted(self.directions)} is unknown: choose 'stream' or 'terms'")
        if self.orders not in get_args(Orders):
            raise InputError(f"orders={quoted(self.orders)} is unknown: choose 'auto', 'together' or 'apart'")
        check_scale(self.scale)
        if self.directions == "terms" and self.order > 1:
            raise InputError(
                f'directions="terms" splits terms up to order 1; order {self.order} is not available yet: '
                'use directions="stream" for higher orders'
            )
        if isinstance(self.weights, str) and self.weights not in ("uniform", "unit", "optimal"):
            raise InputError(
                f"weights={quoted(self.weights)} is unknown: choose 'uniform', 'unit', 'optimal', a mapping or a tensor"
            )
        if self.directions == "terms" and not isinstance(self.weights, str | Mapping):
            raise InputError('directions="terms" takes weights that are the same for all tokens, not a tensor')
        if self.directions == "terms" and self.weights == "optimal":
            raise InputError('weights="optimal" are those of whole jets: take directions="stream"')

    def _check_beam(self) -> None:
        if self.width is None:
            if self.target is not None:
                raise InputError(f"target={self.target} is for a beam: give width= too, or leave it out")
            return
        if self.width < 1:
            raise InputError(f"width={self.width}: a beam has at least one term by itself")
        if self.directions == "terms" or self.centres != "terms":
            raise InputError("a beam chooses among single terms along the stream: leave directions and centres out")
        if not isinstance(self.weights, str):
            raise InputError(
                "which terms are centres of a beam is known when it runs: weights are 'uniform', 'unit' or 'optimal'"
            )

    @property
    def asks_for_centres(self) -> bool:
        return self.weights != "unit" or self.grouping is not None or self.directions == "terms"

    @property
    def beam(self) -> int | None:
        return self.width

    @property
    def text(self) -> str:
        weights = self.weights if isinstance(self.weights, str) else "given"
        along = "" if self.directions == "stream" else ", split along terms"
        apart = ", orders apart" if self.order and self.orders == "apart" else ""
        groups = (
            "" if self.grouping is None else f" around {self.centres if isinstance(self.centres, str) else 'groups'}"
        )
        groups += "" if self.width is None else f" around the {self.width} largest"
        return f"jet of order {self.order}{groups}, {weights} weights{along}{apart}"

    @property
    def highest(self) -> int:
        return self.order

    @property
    def weighting(self) -> Weights:
        return self.weights

    @property
    def grouping(self) -> Grouping | None:
        return None if self.centres == "terms" else self.centres

    def exact(self, whole: bool, alone: bool) -> bool:
        # J^k f(h)(h) = f(h)
        return whole and alone

    def before_linear(self) -> Jet:
        return replace(self, orders="apart") if self.order and self.orders == "auto" else self

    def text_at(self, site: Site) -> str:
        return f"{self.text}, matched" if self.matches(site) else self.text

    def matches(self, site: Site) -> bool:
        """Centres at a site are brought to a length of their own."""
        return site.homogeneous and self.scale == "matched" and self.order > 0

    def reads_lengths(self, site: Site) -> bool:
        """How long a centre is makes a difference at a site, beyond a norm's ε."""
        return not site.homogeneous or (self.order > 0 and self.scale == "none")

    def hops(self, site: Site) -> tuple[Hop | None, ...]:
        if self.orders == "apart":
            return tuple(Hop(site.alias, order) for order in range(self.order + 1))
        return (Hop(site.alias, self.order, together=True),)

    def vanishes(self, hop: Hop | None) -> bool:
        # D^j f(h)[0] = 0
        return hop is not None and bool(hop.order) and not hop.together

    def across(self, order: int | None) -> bool:
        return self.directions == "terms" and bool(order)

    def letter(self, order: int | None) -> str:
        return "JT" if self.across(order) else "J"


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class Atom(Rule):
    """f at the true stream, as one term whose history starts at f."""

    name: ClassVar[str] = "atom"

    def exact(self, whole: bool, alone: bool) -> bool:
        return True

    def fitted(self, site: Site, given: str) -> Rule:
        if site.role == "decoder":
            raise InputError(
                f"{given} makes an atom of the decoder {_where(site)}: the one term would be the output itself. "
                "Use Jet or Freeze there"
            )
        return self

    def hops(self, site: Site) -> tuple[Hop | None, ...]:
        return ()

    def entry(self, site: Site, point: int, bias: Callable[[Site], Source]) -> Entry | None:
        return Entry(Source(site.alias, site.path, "atom"), point, point, "atom", site)


@dataclass(frozen=True, slots=True)
class Freeze(Rule):
    """Hold the chosen nonlinear nodes inside f at the values they take on the true stream; f is then affine.

    `gates` names what is held: `norm` (denominators of norms), `attention` (attention patterns), `gate` (activations,
    multiplicative gates, and what selects: masks, indices, comparisons). What is left must be affine. Where a held
    value is read by itself, as a soft cap's is, it is the line through its values at 0 and at h; an index, a mask or a
    step has no such line and is a constant. With `halves`, of a product of two values that vary each is held for one
    half of it (the half rule of layer-wise relevance propagation), where otherwise the one with more gates behind it
    is.
    """

    name: ClassVar[str] = "freeze"
    linear: ClassVar[bool] = True

    gates: tuple[Literal["norm", "attention", "gate"], ...] = ("norm", "attention", "gate")
    halves: bool = False

    @property
    def frozen(self) -> Freeze:
        return self

    def __post_init__(self) -> None:
        check(Freeze.__init__, {"gates": self.gates, "halves": self.halves})
        if unknown := set(self.gates) - {"norm", "attention", "gate"}:
            raise InputError(f"gates={quoted(self.gates)}: {quoted(unknown.pop())} is none of norm, attention, gate")

    def hops(self, site: Site) -> tuple[Hop | None, ...]:
        return (Hop(site.alias),)

    def entry(self, site: Site, point: int, bias: Callable[[Site], Source]) -> Entry | None:
        if site.held_bias or (site.bias and site.role == "decoder"):
            return Entry(bias(site), point, point, "freeze", site, _sunk(site))
        return None

    def letter(self, order: int | None) -> str:
        return "F"


@dataclass(frozen=True, slots=True)
class Tangent(Rule):
    """f at the true stream h to first order in each term: Σ Df(h) t, and f(h) − Df(h) h as a term of its own.

    The one jet of order 1 that is centred at h itself, so that every path is a gradient along it: what input × gradient
    gives. Unlike `Jet`, whose centres are the incoming terms, it leaves no remainder.
    """

    name: ClassVar[str] = "tangent"
    linear: ClassVar[bool] = True

    def hops(self, site: Site) -> tuple[Hop | None, ...]:
        return (Hop(site.alias),)

    def entry(self, site: Site, point: int, bias: Callable[[Site], Source]) -> Entry | None:
        return Entry(bias(site), point, point, "freeze", site, _sunk(site))

    def letter(self, order: int | None) -> str:
        return "T"


def _where(site: Site) -> str:
    return f"{site.alias!r} (module {site.path!r})"


RULES: Mapping[str, type[Rule]] = {rule.name: rule for rule in (Distribute, Jet, Atom, Freeze, Tangent)}
"""All rules by name."""
