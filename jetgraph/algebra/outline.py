"""What a residual model is made of, without a tensor: the outline in which tracing and structural analysis end.

    h_0 = Σ sources
    h_p = S_p(h_{p-1}) + Σ_b γ_{p,b}(h_{p-1})      a `JoinStep`
    h_p = m_p(h_{p-1})                             a `MapStep`
    output = U(ν(h_n))                             the decoder, the site `logits`

Point p of the stream is the value after step p; point 0 is the encoder's sum. Everything here is a frozen value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jetgraph.errors import check

SINK = "logits"
"""Alias of the decoder, the last step of every path; patterns accept `output` for it too."""

SkipKind = Literal["identity", "scaled", "projection", "gated", "concat", "none"]
"""What a skip S is: the stream itself, a multiple, an affine image, one whose factors depend on the stream and are held
at their true values, or an operand of a concatenation; `none` where branches alone are added."""
SourceKind = Literal["embed", "context", "pos", "bias", "atom", "stream", "group"]
Split = Literal["heads", "neurons"] | Mapping[str, Literal["heads", "neurons"] | int | Sequence[Sequence[int]]]
"""Which branches are cut into parts, by pattern, and how: see `jetgraph.expand`."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a term's history starts.

    `embed` depends on the user's input, `context` by way of other joins, `pos` does not, `bias` is the constant part of
    an affine map; an `atom` is a branch evaluated at the true stream, a `stream` the true stream itself at a point, and
    a `group` the sum of terms that are one centre together.
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
    homogeneous: bool = False
    """f(s x) = f(x) for every s > 0, as behind a norm: how long a centre is changes none of its values, up to the
    norm's ε, and decides about its derivatives. For the decoder: ν."""

    def reads_at(self, step: int) -> int:
        """The point that it reads as a site of this step."""
        return step - 1 if self.reads is None else self.reads


@dataclass(frozen=True, slots=True)
class JoinStep:
    """h_p = S(h_{p-1}) + Σ branches + Σ injections; S = 0 where the skip is `none`."""

    name: str
    skip: SkipKind
    bias: bool
    """The skip S is affine with a constant part."""
    branches: tuple[Site, ...]
    injections: tuple[Source, ...] = ()
    """Summands that do not depend on h_{p-1}, such as features added in mid-stream."""
    constants: tuple[Site, ...] = ()
    """Branches that are split into parts, as the whole that they were, where that has a constant part besides."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """The functions of this step."""
        return self.branches


@dataclass(frozen=True, slots=True)
class MapStep:
    """h_p = m(h_{p-1}), such as the norm of a post-norm block or the activation after a ResNet's add."""

    site: Site

    @property
    def sites(self) -> tuple[Site, ...]:
        """The functions of this step."""
        return (self.site,)


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
        return tuple(site for _, site in self.numbered())

    def numbered(self) -> Iterator[tuple[int, Site]]:
        """Every site with the number of its step, the decoder last, whose number is n+1."""
        for number, step in enumerate(self.steps, start=1):
            for site in step.sites:
                yield number, site
        yield len(self.steps) + 1, self.decoder

    def injections(self) -> tuple[Source, ...]:
        """All sources that enter in mid-stream, in the order of the stream."""
        return tuple(source for step in self.steps if isinstance(step, JoinStep) for source in step.injections)
