"""The symbolic vocabulary: what a residual model is made of and what a term is, without a tensor.

Tracing and residual analysis end in an `Outline`; expansion turns an outline and `Rule`s into terms, each
named by a `Path`; compilation reads paths back into computations. Everything here is a frozen value.

    h_0 = Σ sources
    h_p = S_p(h_{p-1}) + Σ_b γ_{p,b}(h_{p-1})      a `JoinStep`
    h_p = m_p(h_{p-1})                             a `MapStep`
    output = U(ν(h_n))                             the decoder, the site `logits`

Point p of the stream is the value after step p; point 0 is the encoder's sum.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jetgraph.errors import InputError, SelectionError, check, quoted

SINK = "logits"
"""Alias of the decoder, the last step of every path; patterns accept `output` for it too."""

SkipKind = Literal["identity", "scaled", "projection", "concat"]
SourceKind = Literal["embed", "pos", "bias", "atom", "stream"]
Directions = Literal["stream", "terms"]
Split = Literal["heads", "neurons"] | Mapping[str, Literal["heads", "neurons"] | int | Sequence[Sequence[int]]]
"""Which branches are cut into parts, by pattern, and how: see `jetgraph.expand`."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a term's history starts.

    `embed` depends on the user's input, `pos` does not, `bias` is the constant part of an affine map; an `atom`
    is a branch evaluated at the true stream and a `stream` the true stream itself at one point.
    """

    alias: str
    path: str
    """Module path of the code that makes it; empty for code of the root module."""
    kind: SourceKind


@dataclass(frozen=True, slots=True)
class Site:
    """A function that a path may pass: a branch of a join, a map on the stream, or the decoder."""

    alias: str
    """Short unique name, such as `L3.mlp`."""
    path: str
    """Module path, such as `model.layers.3.mlp`."""
    kind: str
    """`attn`, `mlp`, `conv`, `ssm`, `mix` (pools, Fourier transforms and the like alone), `skip` (what is added of an
    earlier point as it is, or scaled); `norm`, `act` or `map` for maps; `logits` for the decoder."""
    role: Literal["branch", "map", "decoder"]
    affine: bool
    """The site is affine in the stream: it distributes over terms, and a path through it carries no order. For the
    decoder: ν is the identity."""
    bias: bool
    """The affine part has a constant term, which becomes a source of its own. For the decoder: U has a bias."""
    held_bias: bool = True
    """With gates held, a constant may be left. False where there is none by structure, as in an MLP without biases. For
    the decoder: in ν."""
    reads: int | None = None
    """The point that it reads where that is an earlier one than the point before its step, as a long skip does."""


@dataclass(frozen=True, slots=True)
class JoinStep:
    """h_p = S(h_{p-1}) + Σ branches + Σ injections."""

    name: str
    skip: SkipKind
    bias: bool
    """The skip S is affine with a constant part."""
    branches: tuple[Site, ...]
    injections: tuple[Source, ...] = ()
    """Summands that do not depend on h_{p-1}, such as features added in mid-stream."""
    constants: tuple[Site, ...] = ()
    """Branches that are split into parts, as the whole that they were, where that has a constant part besides."""


@dataclass(frozen=True, slots=True)
class MapStep:
    """h_p = m(h_{p-1}), such as the norm of a post-norm block or the activation after a ResNet's add."""

    site: Site


Step = JoinStep | MapStep


@dataclass(frozen=True, slots=True)
class Outline:
    """The stream that leads to the output, as expansion sees it."""

    sources: tuple[Source, ...]
    steps: tuple[Step, ...]
    decoder: Site

    def __post_init__(self) -> None:
        check(Outline.__init__, {name: getattr(self, name) for name in ("sources", "steps", "decoder")})

    def sites(self) -> tuple[Site, ...]:
        """All sites in the order in which the stream meets them, the decoder last."""
        found: list[Site] = []
        for step in self.steps:
            found.extend(step.branches if isinstance(step, JoinStep) else (step.site,))
        return (*found, self.decoder)


# Rules


@dataclass(frozen=True, slots=True)
class Distribute:
    """A h = Σ A_lin t + b + A_lin δ. Only for affine sites, where it is what every recipe does."""


@dataclass(frozen=True, slots=True)
class Jet:
    """Terms w_i (1/j!) D^j f(x_i)[(h - x_i)^{⊗j}] for j = 0..order, every incoming term x_i being a centre.

    `directions="terms"` splits the order-1 term along the incoming terms instead: the term of incoming path m is
    Σ_{i≠m} w_i Df(x_i)[t_m].
    """

    order: int = 1
    directions: Directions = "stream"
    weights: Literal["uniform", "unit"] | Mapping[str, float] = "uniform"
    """`uniform`: 1/n for n centres; `unit`: 1 for each (each centre is then an expansion of its own); a mapping
    from patterns over the centre's last site or source, by alias or module path, to relative weights (1 where none
    matches), which are scaled to sum to 1."""

    def __post_init__(self) -> None:
        check(Jet.__init__, {name: getattr(self, name) for name in self.__slots__})
        if self.order < 0:
            raise InputError(f"the order of a jet is at least 0, not {self.order}")
        if self.directions not in ("stream", "terms"):
            raise InputError(f"directions={quoted(self.directions)} is unknown: choose 'stream' or 'terms'")
        if self.directions == "terms" and self.order > 1:
            raise InputError(
                f'directions="terms" splits terms up to order 1; order {self.order} is not available yet: '
                'use directions="stream" for higher orders'
            )
        if not isinstance(self.weights, Mapping) and self.weights not in ("uniform", "unit"):
            raise InputError(f"weights={quoted(self.weights)} is unknown: choose 'uniform', 'unit' or a mapping")


@dataclass(frozen=True, slots=True)
class Atom:
    """f at the true stream, as one term whose history starts at f."""


@dataclass(frozen=True, slots=True)
class Freeze:
    """Hold the chosen nonlinear nodes inside f at the values they take on the true stream; f is then affine.

    `gates` names what is held: `norm` (denominators of norms), `attention` (attention patterns), `gate`
    (activations, multiplicative gates, and what selects: masks, indices, comparisons). What is left must be affine.
    Where a held value is read by itself, as a soft cap's is, it is the line through its values at 0 and at h; an index,
    a mask or a step has no such line and is a constant.
    """

    gates: tuple[Literal["norm", "attention", "gate"], ...] = ("norm", "attention", "gate")

    def __post_init__(self) -> None:
        check(Freeze.__init__, {"gates": self.gates})
        if unknown := set(self.gates) - {"norm", "attention", "gate"}:
            raise InputError(f"gates={quoted(self.gates)}: {quoted(unknown.pop())} is none of norm, attention, gate")


Rule = Distribute | Jet | Atom | Freeze


# Paths

_STEP = re.compile(r"(?P<alias>[^\s^>]+)(?:\^(?P<order>\d{1,9}))?", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Hop:
    """One element of a path: an alias and, at a nonlinear site, the order taken there."""

    alias: str
    order: int | None = None

    def __str__(self) -> str:
        return self.alias if self.order is None else f"{self.alias}^{self.order}"


@dataclass(frozen=True, slots=True)
class Path:
    """The name of a term: its source, the sites it passes, and the sink.

    >>> path = Path.parse("embed > L0.attn^0 > L3.mlp^1 > logits^0")
    >>> path.length, path.order, str(path.source)
    (2, 1, 'embed')
    >>> str(path)
    'embed > L0.attn^0 > L3.mlp^1 > logits^0'
    """

    hops: tuple[Hop, ...]
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.hops, tuple):
            raise SelectionError(f"a path is made of a tuple of hops, not of {quoted(self.hops)}")
        if len(self.hops) < 2:
            raise SelectionError(
                f"a path has a source and a sink, but {quoted(str(self))} has {len(self.hops)} element(s)"
            )
        object.__setattr__(self, "_hash", hash(self.hops))

    def __hash__(self) -> int:
        return self._hash

    @property
    def source(self) -> Hop:
        return self.hops[0]

    @property
    def sites(self) -> tuple[Hop, ...]:
        """What lies between source and sink."""
        return self.hops[1:-1]

    @property
    def sink(self) -> Hop:
        return self.hops[-1]

    @property
    def length(self) -> int:
        """Number of sites between source and sink."""
        return len(self.hops) - 2

    @property
    def order(self) -> int:
        """Sum of the orders taken along the path, the decoder's included."""
        return sum(hop.order or 0 for hop in self.hops)

    @classmethod
    def parse(cls, text: str) -> Path:
        """Read a path back from its text; raises `SelectionError` for text that no path prints."""
        if not isinstance(text, str):
            raise SelectionError(f"a path is read from its text, not from {quoted(text)}")
        hops = []
        for part in text.split(">"):
            match = _STEP.fullmatch(part.strip())
            if match is None:
                raise SelectionError(
                    f"{quoted(part.strip())} in {quoted(text)} is no element of a path: write alias or alias^order, "
                    "joined by ' > ', such as 'embed > L0.mlp^0 > logits^0'"
                )
            order = match["order"]
            hops.append(
                Hop("logits" if match["alias"] == "output" else match["alias"], None if order is None else int(order))
            )
        return cls(tuple(hops))

    def __str__(self) -> str:
        return " > ".join(map(str, self.hops))
